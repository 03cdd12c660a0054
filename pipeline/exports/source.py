"""What an export reads: the rows of a split, as windows, and as the stream that the windows were cut from.

The stream of windows with context length L and stride s: the first row whole, then the last s targets of each row.

    stream   0 1 2 3 4 5 6 7 8          L = 4, s = 2
    row 0   [0 1 2 3]→4                 0 1 2 3 4
    row 1       [2 3 4 5]→6                       5 6
    row 2           [4 5 6 7]→8                       7 8

So every position that some window holds is given once, in order.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import config
from pipeline.arrow import flattened, read_batches, to_numpy
from pipeline.dataset import WindowDataset
from pipeline.errors import ConfigError

Ids = npt.NDArray[Any]


IN_ORDER = "rows in the order of the stream"


class Source:
    """One split of a finished dataset, read in order and a batch at a time. `advance` hears of the bytes read."""

    def __init__(self, dataset: WindowDataset, split: str) -> None:
        self.split = split
        self.advance: Callable[[int], None] = lambda count: None
        self._dataset = dataset
        given = dataset.manifest["config"]["window"]
        known = config.Window.__dataclass_fields__
        self.window = config.Window(**{name: value for name, value in given.items() if name in known})

    def __len__(self) -> int:
        """How many rows."""
        return len(self._dataset)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows, less `embeddings`."""
        fields = [self._dataset.schema.field(name) for name in self._dataset.columns]
        return pa.schema(fields, metadata=self._dataset.schema.metadata)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the IDs."""
        dtype: np.dtype[Any] = np.dtype(self._dataset.schema.field("input_ids").type.value_type.to_pandas_dtype())
        return dtype

    @property
    def length(self) -> int:
        """How many IDs a window has: the context length, and one."""
        return self.window.context_length + 1

    @property
    def bytes(self) -> int:
        """Bytes of the data files."""
        return sum(int(self._dataset.manifest["files"][name]["bytes"]) for name in self._dataset.files)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest ID of the vocabulary."""
        ids: dict[str, int] = json.loads(self._dataset.verified("vocabulary.json").read_bytes())
        return 1 + max(ids.values())

    # -- rows

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop) as they lie in the dataset, less `embeddings`, in batches."""
        for batch in self._dataset.record_batches(start, stop):
            batch = batch.select(self._dataset.columns)
            yield batch
            self.advance(batch.nbytes)

    def windows(self, start: int = 0, stop: int | None = None) -> Iterator[Ids]:
        """The rows [start, stop) as `[rows, L + 1]`, the inputs and the last target, in batches.

        Raises ConfigError where the rows are not such, or may be padded.
        """
        self._require("windows", self.window.mode == "sliding", "window=sliding")
        self._require("windows without padding", self.window.tail == "drop", "window.tail=drop")
        for batch in self.rows(start, stop):
            inputs, targets = (_ids(batch[name]) for name in ("input_ids", "target_ids"))
            yield np.concatenate([inputs, targets[:, -1:]], axis=1)

    def parts(self, most: int) -> Iterator[range]:
        """The numbers of the rows of each file, where a file has at most so many."""
        for start in range(0, len(self), most):
            yield range(start, min(start + most, len(self)))

    # -- the stream

    @cached_property
    def positions(self) -> int:
        """How many IDs the stream has: those in a window, padding not counted."""
        self._require_stream()
        reach = (len(self) - 1) * self._stride + self.length
        return min(reach, self.tokens)

    @cached_property
    def tokens(self) -> int:
        """How many IDs all documents have: the positions, and the tail that the windows left out."""
        return sum(int(lengths.sum()) for lengths in self._documents())

    def stream(self) -> Iterator[Ids]:
        """The IDs of the stream, in pieces, in order. Raises ConfigError where the rows do not hold it whole."""
        left, stride = self.positions, self._stride
        due: Ids | None = None  # the ID with which the next row must begin
        for batch in self.rows():
            inputs, targets = (_ids(batch[name]) for name in ("input_ids", "target_ids"))
            begins = inputs[:1, 0] if due is None else due
            if not np.array_equal(np.append(begins, targets[:-1, stride - 1]), inputs[:, 0]):
                self._require(IN_ORDER, False, "split.shuffle=none or documents")
            pieces = [targets[:, -stride:].reshape(-1)]
            if due is None:
                pieces = [inputs[0, :1], targets[0], targets[1:, -stride:].reshape(-1)]
            due = targets[-1:, stride - 1].copy()
            for piece in (piece[:left] for piece in pieces if len(piece)):
                yield np.ascontiguousarray(piece)
                left -= len(piece)

    def documents(self) -> Iterator[npt.NDArray[np.int64]]:
        """How many IDs each document has in the stream, int64, in pieces, in order; those that have none are left out."""
        at = 0
        for lengths in self._documents():
            ends = np.minimum(at + np.cumsum(lengths), self.positions)
            kept = np.diff(ends, prepend=min(at, self.positions))
            at += int(lengths.sum())
            if (kept > 0).any():
                yield kept[kept > 0]

    def _documents(self) -> Iterator[npt.NDArray[np.int64]]:
        """How many IDs each document has, in the order of the stream."""
        if self._in_order:
            yield from (tokens for _, tokens in self._places())
            return
        first, tokens = (np.concatenate(each) for each in zip(*self._places(), strict=True))
        yield tokens[np.argsort(first, kind="stable")]

    @cached_property
    def _in_order(self) -> bool:
        """Do the documents stand in their file in the order of the stream? Else they are sorted in memory."""
        last = 0
        for first, _ in self._places():
            if (np.diff(first, prepend=last) < 0).any():
                return False
            last = int(first[-1]) if len(first) else last
        return True

    def _places(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Where each document begins in the stream, and how many IDs it has, as the file has them."""
        for batch in read_batches(self._dataset.verified("documents.arrow")):
            yield to_numpy(batch["first"]), to_numpy(batch["tokens"])

    @property
    def _stride(self) -> int:
        return self.window.stride or self.window.context_length

    def _require_stream(self) -> None:
        w, what, given = self.window, "the stream", self._dataset.manifest["config"].get("split") or {}
        self._require(what, w.mode == "sliding", "window=sliding")
        self._require(what, w.cross_documents, "window.cross_documents=true")
        self._require(what, self._stride <= w.context_length, f"window.stride={w.context_length} or less")
        self._require(IN_ORDER, given.get("shuffle") != "windows", "split.shuffle=none or documents")

    def _require(self, what: str, holds: bool, instead: str) -> None:
        if not holds:
            raise ConfigError(
                f"export: this format needs {what}, and these rows do not hold it: prepare the dataset with {instead} "
                "(only the windows are computed anew), or export to parquet or webdataset."
            )


def _ids(column: pa.FixedSizeListArray) -> Ids:
    """A column of equal lists as `[rows, L]`, over the same memory."""
    return to_numpy(flattened(column)).reshape(len(column), column.type.list_size)
