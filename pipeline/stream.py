"""The stream: the IDs of every shard end to end, read where they lie.

    00000000.arrow         00000001.arrow                files of the stage `encode`
    ┌────────┬─────┬─────┐ ┌───────────┬────────┐
    │ batch  │ …   │ …   │ │ batch     │ …      │        each a list of IDs per document, or piece of one
    └────────┴─────┴─────┘ └───────────┴────────┘
    0 1 2 3 … ───────────▶ position in the stream

Nothing is loaded: files are memory-mapped when first touched, a few at a time, and `read` gives a view into the
map, or one copy where the range crosses the border of a batch or a file.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.arrow import adjoin, flags, list_values, numbers, read_batches, to_numpy
from pipeline.errors import IntegrityError

MAPPED = 4  # files kept mapped


@dataclass(frozen=True)
class _Shard:
    """One mapped file."""

    batches: list[pa.RecordBatch]
    ids: list[np.ndarray]  # of each batch, end to end
    starts: np.ndarray  # position in the shard at which each batch begins, and the last one ends


class AnyStream(Protocol):
    """What windows are cut from: `Stream`, or an `arrange.Arrangement` of some of its documents. Shards are parts of it."""

    dtype: np.dtype[Any]
    counts: tuple[int, ...]
    starts: np.ndarray

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """The IDs at positions [start, stop)."""

    def document_lengths(self, shard: int) -> np.ndarray:
        """IDs per document of a shard, int64 `[documents]`."""

    def documents(self, shard: int) -> pa.RecordBatch:
        """Where each document of a shard came from."""


class Stream:
    """The IDs of all shards as one array on disk. Picklable, and safe to share between threads.

    `paths` are Arrow IPC stream files with the columns `input_ids` list<uintN>, `source` int32, `start` int64,
    `end` int64 and `ends` bool; `counts` their numbers of IDs, as noted when they were written; `dtype` is that
    of the IDs. `starts`, int64 `[len(paths) + 1]`, holds the position at which each file begins.

    The methods raise IntegrityError where a file is not what it was said to be.
    """

    def __init__(self, paths: Sequence[os.PathLike[str]], counts: Sequence[int], dtype: np.dtype[Any] | str) -> None:
        if len(paths) != len(counts):
            raise ValueError(f"{len(paths)} paths, but {len(counts)} counts")
        self.paths = tuple(paths)
        self.counts = tuple(counts)
        self.dtype = np.dtype(dtype)
        self.starts = adjoin(counts)
        self._mapped: dict[int, _Shard] = {}  # the one used last comes last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its maps."""
        return Stream, (self.paths, self.counts, self.dtype)

    def __len__(self) -> int:
        """How many IDs there are."""
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The IDs at positions [start, stop), shape `[stop - start]`; not to be written to, as it may be a view.

        Raises IndexError where the range is not within the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"[{start}, {stop}) is not within [0, {len(self)})")
        pieces = []
        while start < stop:
            index = _place(self.starts, start)
            shard, origin = self._shard(index), int(self.starts[index])
            batch = _place(shard.starts, start - origin)
            origin += int(shard.starts[batch])
            pieces.append(shard.ids[batch][start - origin : stop - origin])
            start += len(pieces[-1])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def document_lengths(self, shard: int) -> np.ndarray:
        """IDs per document of a shard, int64 `[documents]`; the pieces of a long document count as one."""
        lengths, last = self._rows(shard)
        return np.diff(adjoin(lengths)[last + 1], prepend=0)

    def documents(self, shard: int) -> pa.RecordBatch:
        """Where each document of a shard came from, and how many IDs it has.

        Columns: `source` int32, `start` int64 (of its first piece), `end` int64 (of its last), `tokens` int64.
        """
        _, last = self._rows(shard)
        first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
        batches = self._shard(shard).batches

        def column(name: str, dtype: type, rows: np.ndarray) -> pa.Array:
            return numbers(np.concatenate([np.empty(0, dtype), *(to_numpy(batch[name]) for batch in batches)])[rows])

        return pa.record_batch(
            {
                "source": column("source", np.int32, first),
                "start": column("start", np.int64, first),
                "end": column("end", np.int64, last),
                "tokens": numbers(self.document_lengths(shard)),
            }
        )

    def _rows(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """IDs per row of a shard, and the rows with which a document ends."""
        batches = self._shard(index).batches
        lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(list_values(batch["input_ids"])[1]) for batch in batches)])
        ends = np.concatenate([np.empty(0, bool), *(flags(batch["ends"]) for batch in batches)])
        if not ends[-1:].all():
            raise IntegrityError(f"{str(self.paths[index])!r} ends within a document; remove its folder and run again.")
        return lengths, np.flatnonzero(ends)

    def _shard(self, index: int) -> _Shard:
        with self._lock:
            shard = self._mapped.pop(index, None) or self._map(index)
            self._mapped[index] = shard
            if len(self._mapped) > MAPPED:
                del self._mapped[next(iter(self._mapped))]  # unmapped once no view into it is left
        return shard

    def _map(self, index: int) -> _Shard:
        path = str(self.paths[index])
        batches = list(read_batches(self.paths[index]))
        wanted = pa.list_(pa.from_numpy_dtype(self.dtype))
        for batch in batches:
            if batch["input_ids"].type != wanted:
                raise IntegrityError(
                    f"{path!r} holds {batch['input_ids'].type}, not {wanted}; remove its folder and run again."
                )
        ids = [list_values(batch["input_ids"])[0] for batch in batches]
        starts = adjoin([len(part) for part in ids])
        if starts[-1] != self.counts[index]:
            raise IntegrityError(
                f"{path!r} holds {starts[-1]} tokens, its manifest says {self.counts[index]}; remove its folder and run again."
            )
        return _Shard(batches, ids, starts)


def _place(starts: np.ndarray, position: int) -> int:
    """Which of the ranges holds a position; an empty range holds none."""
    return int(np.searchsorted(starts, position, "right")) - 1
