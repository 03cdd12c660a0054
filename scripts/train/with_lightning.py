"""Lightning, resumable in mid-epoch: `python -m scripts.train.with_lightning outputs/sample`.

The loader has `state_dict` and `load_state_dict`, which Lightning saves in its checkpoints and restores by itself.
"""

import json
import sys
from pathlib import Path

import lightning
import torch
from torch.nn import functional

from pipeline import open_dataset
from pipeline.loader import Loader
from pipeline.targets import targets
from scripts.train.__main__ import GPT


class Windows(lightning.LightningDataModule):
    """A finished dataset; each process of the trainer sees its share."""

    def __init__(self, path: Path, batch_size: int = 4, seed: int = 1) -> None:
        super().__init__()
        self.path, self.batch_size, self.seed = path, batch_size, seed

    def train_dataloader(self) -> Loader:
        """Shuffled batches; Lightning must not wrap them in a sampler of its own (use_distributed_sampler=False)."""
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        return open_dataset(self.path).loader(self.batch_size, self.seed, **ranks)


class Model(lightning.LightningModule):
    """The tiny GPT of the plain loop; keeps its losses."""

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model, self.losses = GPT(vocab_size, length), []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch against its targets."""
        loss = functional.cross_entropy(self.model(batch["input_ids"]).flatten(0, 1), targets(batch).flatten())
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(path: Path, steps: int = 20, checkpoint: str | None = None, save: str | None = None) -> list[float]:
    """The losses of the steps taken, up to step `steps` of the whole; `save` writes a checkpoint at the end."""
    dataset = open_dataset(path)
    vocabulary = json.loads((path / "vocabulary.json").read_text("utf-8"))
    model = Model(len(vocabulary), len(dataset[0]["input_ids"]))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=Windows(path), ckpt_path=checkpoint)
    if save:
        trainer.save_checkpoint(save)
    return model.losses


if __name__ == "__main__":
    print([round(loss, 3) for loss in main(Path(sys.argv[1]))])
