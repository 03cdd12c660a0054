"""Feeding a finished dataset to a training job: shuffled, shared out among ranks, resumable.

    loader = open_dataset("outputs/verdict").loader(batch_size=8, seed=1)    # batches {"input_ids": [8, L], …}

**The shuffle** is a permutation that is computed, not stored: `permute(k, n, keys)` gives the sample at position k
of an epoch, in constant memory whatever n. See there.

**Resuming.** The samples of all ranks and workers form one sequence, a pure function of (seed, epoch, position);
the state is a position in it. So a job may go on with another batch size, world size or number of workers and sees
every sample that was left, once, in the same order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.documents import marks
from pipeline.errors import ConfigError
from pipeline.files import digest
from pipeline.permutation import keys, permute

if TYPE_CHECKING:
    from pipeline.dataset import Sample, WindowDataset

POSITIONS_AT_ONCE = 8192  # permuted together, so that numpy's overhead is shared
LARGEST = (1 << 31) - 1  # rows of a batch

Ints = npt.NDArray[np.int64]


class Loader:
    """Batches of a dataset as one rank of a job sees them, from where the loader stands to the end of the epoch.

    Step after step, `world_size * batch_size` consecutive positions of the epoch are shared out in order, rank 0
    first. With n = 10 samples, batch_size 2 and 2 ranks:

        position       0 1 2 3 | 4 5 6 7 | 8 9
        rank           0 0 1 1 | 0 0 1 1 | 0 1          the rest is shared evenly (drop_last: not at all)
        state "samples"        4         8     0            with the last, the state is the start of the next epoch

    The sample at a position is `permute(position, n, keys(seed, epoch))`, or the position itself where `shuffle` is
    off. Iterating goes on from where the last iteration stopped; with the last batch of an epoch the next one begins:

        for epoch in range(loader.epoch, 3):
            for batch in loader:
                ...

    Every rank's state is the same, so any rank's will do, for any world size. Batches that workers have read ahead
    are not counted before they are given out.
    """

    def __init__(
        self,
        dataset: "WindowDataset",
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle: bool = True,
        drop_last: bool | None = None,
        pin_memory: bool = False,
        documents: bool = False,
        embeddings: bool = False,
        numpy: bool = False,
    ) -> None:
        """`drop_last` leaves out the last, smaller step; None means where there are several ranks, which must take
        equally many steps. `documents` adds what tells documents apart: `position_ids`, `document_ids`, `cu_seqlens`
        and `max_seqlen`, see documents.py; `embeddings` the vectors [B, L, D], looked up where none were written.
        `numpy` gives arrays, in the dtypes in which they are stored, without torch, its workers and these additions.
        Raises ConfigError where a number cannot be, or an epoch would have no batch.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1), ("seed", seed, 0), ("epoch", epoch, 0), ("world_size", world_size, 1),
            ("rank", rank, 0), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value < least:
                raise ConfigError(f"loader: {name}={value} is less than {least}.")
        if batch_size > LARGEST:
            raise ConfigError(f"loader: batch_size={batch_size} is more than {LARGEST}.")
        if rank >= world_size:
            raise ConfigError(f"loader: rank={rank} must be less than world_size={world_size}.")
        if not dataset.fixed:
            raise ConfigError(
                "loader: rows of window.mode=prefix differ in length; use torch's DataLoader with a collate_fn that pads."
            )
        if numpy and (num_workers or pin_memory or documents or embeddings):
            raise ConfigError(
                "loader: numpy=True has no workers, pinned memory, documents or embeddings: they need torch; "
                "dataset.documents.of(rows) and dataset.tables are numpy too."
            )
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, epoch
        self.rank, self.world_size, self.num_workers, self.shuffle = rank, world_size, num_workers, shuffle
        self.drop_last = world_size > 1 if drop_last is None else drop_last
        self.pin_memory = pin_memory
        self._get: Callable[..., Any] = dataset.arrays if numpy else _Stacked(dataset, documents, embeddings)
        self.samples = 0  # of this epoch, of all ranks, given out
        if not len(self):
            raise ConfigError(
                f"loader: {len(dataset)} rows do not fill one step of world_size={world_size} times batch_size={batch_size}: "
                "lower them, or set drop_last=False."
            )

    def __len__(self) -> int:
        """Batches of a whole epoch, for this rank."""
        return self._batches(len(self.dataset))

    def _batches(self, samples: int) -> int:
        """Batches that this rank makes of so many samples of all ranks."""
        whole, rest = divmod(samples, self.batch_size * self.world_size)
        return whole + (not self.drop_last and self._share(rest)[0] < self._share(rest)[1])

    def __iter__(self) -> Iterator["Sample"]:
        """The batches that are left of the epoch: dicts of tensors [batch_size, …]."""
        counts: deque[int] = deque()

        def rows() -> Iterator[list[int]]:
            for count, indices in self._steps():
                counts.append(count)
                yield indices.tolist()

        if self.num_workers or self.pin_memory:
            from torch import Generator
            from torch.utils.data import DataLoader

            batches: Iterable[Sample] = DataLoader(
                self._get,  # type: ignore[arg-type]
                batch_size=None,
                sampler=rows(),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                generator=Generator(),  # else it draws a seed from the job's own random numbers
            )
        else:
            batches = map(self._get, rows())
        step, n = self.batch_size * self.world_size, len(self.dataset)
        end = n - (n - self.samples) % step if self.drop_last else n
        epoch = self.epoch
        for batch in batches:
            self.samples = counts.popleft()
            if self.samples == end:  # not behind the yield: some loops stop at len(loader) batches and ask for no more
                self.set_epoch(epoch + 1)
            yield batch
        self.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, as integers: the seed, the epoch, and the samples of it that all ranks were given."""
        return {"seed": self.seed, "epoch": self.epoch, "samples": self.samples, "shuffle": int(self.shuffle), **self._about()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader stood, whatever its batch size, world size and workers.

        Raises ConfigError where that loader had another dataset or another order.
        """
        here = {"shuffle": int(self.shuffle), **self._about()}
        for name, value in here.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"loader: the state is of another {name}: {state.get(name)}, here {value}; it cannot be resumed."
                )
        self.seed, self.epoch, self.samples = (int(state[name]) for name in ("seed", "epoch", "samples"))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.samples = epoch, 0

    @property
    def batch_sampler(self) -> "Order":
        """The rows of the batches that are left, for other loaders: `StatefulDataLoader(dataset, batch_sampler=)`."""
        return Order(self)

    def rows_at(self, step: int) -> list[int]:
        """The rows that this rank is given at a step of the epoch, counted from 0. Raises ConfigError beyond its last."""
        at = self.samples
        try:
            self.samples = step * self.batch_size * self.world_size
            rows = next(self._steps(), None) if 0 <= step < len(self) else None
        finally:
            self.samples = at
        if rows is None:
            raise ConfigError(f"loader: rank {self.rank} has steps 0 to {len(self) - 1} in an epoch, not {step}.")
        return [int(row) for row in rows[1]]

    def _about(self) -> dict[str, int]:
        """What says that two datasets have the same rows: 60 bits of their files' hashes."""
        notes = self.dataset.manifest["files"]
        return {"dataset": int(digest([notes[name]["sha256"] for name in self.dataset.files])[:15], 16)}

    def _share(self, count: int) -> tuple[int, int]:
        """This rank's part of a step of `count` samples."""
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size

    def _steps(self) -> Iterator[tuple[int, Ints]]:
        """(samples of all ranks after the step, this rank's rows in it) for every step that is left."""
        n, at, step = len(self.dataset), self.samples, self.batch_size * self.world_size
        order = keys(self.seed, self.epoch)

        def samples(positions: Ints) -> Ints:
            return permute(positions.reshape(-1), n, order).reshape(positions.shape) if self.shuffle else positions

        at_once = step * max(1, POSITIONS_AT_ONCE // self.batch_size)
        last = at + (n - at) // step * step
        own = np.arange(*self._share(step if at < last else 0), dtype=np.int64)
        for first in range(at, last, at_once):
            starts = np.arange(first, min(last, first + at_once), step, dtype=np.int64)
            yield from zip((starts + step).tolist(), samples(starts[:, None] + own), strict=True)
        start, stop = self._share(n - last)
        if start < stop and not self.drop_last:
            yield n, samples(np.arange(last + start, last + stop, dtype=np.int64))


class Order:
    """Lists of rows, a batch each, from where a loader stands to the end of its epoch. The loader does not move with them."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for _, rows in self._loader._steps())

    def __len__(self) -> int:
        return self._loader._batches(len(self._loader.dataset) - self._loader.samples)


class _Stacked:
    """What DataLoader's workers see: an index is a list of rows, an item their batch."""

    def __init__(self, dataset: "WindowDataset", documents: bool, embeddings: bool) -> None:
        if documents:
            _ = dataset.documents  # refused here, not in a worker
        if embeddings and "embeddings" in dataset.schema.names and "embeddings" not in dataset.columns:
            dataset = dataset.select([*dataset.columns, "embeddings"])
        self._dataset, self._documents = dataset, documents
        self._vectors = embeddings and "embeddings" not in dataset.columns
        if self._vectors:
            _ = dataset.tables

    def __call__(self, indices: list[int]) -> "Sample":
        batch = self._dataset.batch(indices)
        if self._documents:
            batch |= marks(self._dataset.documents, indices)
        if self._vectors:
            batch["embeddings"] = self._dataset.embeddings(batch["input_ids"])
        return batch

    __getitem__ = __call__

    def __len__(self) -> int:
        return len(self._dataset)
