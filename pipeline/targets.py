"""Targets, and who shifts them: exactly one of the dataset and the training loop.

    stream       the  ferry  was  late  .          L = 4

    our rows     input_ids   the  ferry  was  late          the loss of the logits against target_ids, as they are:
                 target_ids  ferry  was  late  .            cross_entropy(logits, targets(batch))

    Trainer's    input_ids   the  ferry  was  late  .       L + 1 IDs, labels the same: causal models of transformers
                 labels      the  ferry  was  late  .       shift by themselves, logits[:-1] against labels[1:]

Both give the same loss. What does not count has the label -100, by the mask and never by the token: where the pad token
is the EOS token, the EOS of the text stays a target. `collate` refuses a batch whose targets would be shifted twice, or
not at all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.dataset import Sample, WindowDataset
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

IGNORED = -100  # what torch's cross_entropy and transformers leave out of a loss


def targets(batch: Sample) -> "torch.Tensor":
    """`target_ids` int64 [B, L], -100 where they are padding: `cross_entropy(logits.flatten(0, 1), targets(batch).flatten())`.

    Raises ConfigError where there are no `target_ids`, or `labels` beside them.
    """
    if "labels" in batch:
        raise ConfigError(
            "targets: the batch has labels, which a model of transformers shifts by itself; a plain loss needs target_ids, "
            "already shifted: take the batches of dataset.loader(...), not of TrainerRows."
        )
    if "target_ids" not in batch:
        raise ConfigError(
            "targets: the batch has no target_ids: prepare it with window.mode=sliding, and do not leave them out."
        )
    if "attention_mask" not in batch:
        return batch["target_ids"]
    return batch["target_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)


class TrainerRows:
    """A dataset as Trainer and the causal models of transformers want it: a map-style dataset of L + 1 IDs a row.

    A row has `input_ids` and `labels`, int64 [L + 1], unshifted and equal but for -100 at padding, and `attention_mask`
    where rows may be padded. The model needs L + 1 positions. Give `collate` to Trainer as its `data_collator`.
    Raises ConfigError where the dataset has no targets (window.mode=document) or rows of different length (prefix).
    """

    def __init__(self, dataset: WindowDataset) -> None:
        if not dataset.fixed or "target_ids" not in dataset.schema.names:
            mode = dataset.manifest["config"]["window"]["mode"]
            raise ConfigError(f"TrainerRows: rows of window.mode={mode} are none of a causal model: use window.mode=sliding.")
        names = [name for name in ("input_ids", "target_ids", "attention_mask") if name in dataset.schema.names]
        self.dataset = dataset.select(names)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Row `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Rows, which share the memory of one batch."""
        batch = unshifted(self.dataset.batch(indices))
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def unshifted(batch: Sample) -> Sample:
    """A batch of ours as `input_ids`, `labels` and, with padding, `attention_mask`, each [B, L + 1]; see TrainerRows."""
    import torch

    ids = torch.cat([batch["input_ids"][:, :1], batch["target_ids"]], 1)
    labels = torch.cat([batch["input_ids"][:, :1], targets(batch)], 1)
    out = {"input_ids": ids, "labels": labels}
    if "attention_mask" in batch:  # it speaks of targets: what precedes the first of them is real
        out["attention_mask"] = torch.cat([torch.ones_like(ids[:, :1]), batch["attention_mask"]], 1)
    return out


def collate(rows: Sequence[Sample]) -> Sample:
    """Rows of TrainerRows stacked, for Trainer's `data_collator`.

    Raises ConfigError, with the way out, where a model that shifts would learn the wrong thing: rows of ours, labels
    that are shifted already, or none.
    """
    import torch

    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    way = "Give Trainer train_dataset=TrainerRows(dataset)."
    if "target_ids" in batch:
        raise ConfigError(f"collate: these rows have target_ids, which Trainer drops and its model would never see. {way}")
    if "labels" not in batch:
        raise ConfigError(f"collate: these rows have no labels (Trainer may have dropped target_ids): no loss. {way}")
    ids, labels = batch["input_ids"], batch["labels"]
    if ids.shape != labels.shape:
        raise ConfigError(f"collate: input_ids {list(ids.shape)} and labels {list(labels.shape)} differ in shape. {way}")
    counted = labels != IGNORED
    if bool((labels != ids)[counted].any()):
        after = counted[:, :-1] & (labels[:, :-1] != ids[:, 1:])
        why = "are already shifted, and the model shifts them again" if not after.any() else "are not the input_ids"
        raise ConfigError(f"collate: labels {why}. {way}")
    return batch
