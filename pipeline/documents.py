"""Documents inside rows: positions that restart, borders for variable-length attention, a block-diagonal mask.

Documents lie end to end in the stream, and a window takes no notice of them. `documents.arrow` keeps where each begins,
and a row's place in the stream follows from its number; so what a row holds is looked up, never guessed from end marks:

    stream         a a a B B B B c c D D ...          four documents
    row 0, L = 6   a a a B B B
    position_ids   0 1 2 0 1 2      restart with each document, and with the row: B, cut by the window, goes on in
    document_ids   0 0 0 1 1 1      row 1 from position 0 again, so that positions stay below L
    cu_seqlens     0     3     6
    row 1          B c c D D p      p: padding, a segment of its own
    position_ids   0 0 1 0 1 0
    document_ids   1 2 2 3 3 -1

All of it follows from `position_ids`: a segment begins where it is 0. That is also how the variable-length attention of
`transformers` finds them. The table is memory-mapped and searched; memory is a few numbers per shard of the corpus.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline import window
from pipeline.arrow import adjoin, read_batches, to_numpy
from pipeline.config import Window
from pipeline.errors import ConfigError
from pipeline.files import Json

if TYPE_CHECKING:
    import torch

KEPT = 64  # batches of the table whose rows are kept counted, where each document is cut on its own

Ints = npt.NDArray[np.int64]


class Documents:
    """What the rows of a dataset hold of its documents. Picklable where its dataset is: a copy opens the table again.

    `path` is `documents.arrow`, with the columns `first` (a document's place in the stream) and `tokens`; `manifest` is
    that of the dataset. Raises ConfigError for window.mode=prefix, whose rows hold one document each and have no fixed
    length.
    """

    def __init__(self, path: Path, manifest: Json) -> None:
        config = manifest["config"]
        w = Window(**{name: value for name, value in config["window"].items() if name in Window.__dataclass_fields__})
        if w.mode == "prefix":
            raise ConfigError("documents: a row of window.mode=prefix lies in one document; there is nothing to tell apart.")
        split = config.get("split") or {}
        self._order = int(split["seed"]) if split.get("shuffle") == "windows" else None  # else rows follow the stream
        self.window, self.rows = w, int(manifest["rows"])
        self._special = int(manifest["ledger"]["window"].get("special", 0)) // max(1, self.rows)  # in each row
        self._batches = [batch for batch in read_batches(path) if len(batch)]
        self._begins = [int(batch["first"][0].as_py()) for batch in self._batches]
        self._numbers: list[int] = adjoin([len(batch) for batch in self._batches]).tolist()
        last = self._batches[-1]
        self.total = int(last["first"][-1].as_py()) + int(last["tokens"][-1].as_py())  # IDs of the stream
        alone = w.mode == "sliding" and not w.cross_documents
        self._first_rows: list[int] = adjoin([self._counts(i)[-1] for i in range(len(self._batches))]).tolist() if alone else []
        self._counted = lru_cache(KEPT)(self._counts)

    def _counts(self, batch: int) -> Ints:
        """Rows before each document of a batch of the table, and those of all of it: int64 `[documents + 1]`."""
        return window.first_rows(self.window, to_numpy(self._batches[batch]["tokens"]))

    def between(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """The documents that have an ID in [start, stop): their numbers, and their places in the stream, ascending."""
        numbers, firsts = [], []
        batch = bisect_right(self._begins, start) - 1
        while batch < len(self._batches) and self._begins[batch] < stop:
            table = self._batches[batch]
            first, tokens = to_numpy(table["first"]), to_numpy(table["tokens"])
            low = max(0, int(np.searchsorted(first, start, "right")) - 1)
            high = int(np.searchsorted(first, stop, "left"))
            here = np.arange(low, high)[tokens[low:high] > 0]
            here = here[first[here] + tokens[here] > start]
            numbers.append(here + self._numbers[batch])
            firsts.append(first[here])
            batch += 1
        return np.concatenate(numbers), np.concatenate(firsts)

    def span(self, row: int) -> tuple[int, int]:
        """The positions that the inputs of a row hold, [start, stop), by its number in the stream; padding has none."""
        w = self.window
        step = w.stride or w.context_length
        if w.cross_documents:
            return row * step, min(row * step + w.context_length, self.total)
        batch = bisect_right(self._first_rows, row) - 1
        first_row = self._counted(batch)
        inside = row - self._first_rows[batch]
        document = int(np.searchsorted(first_row, inside, "right")) - 1
        first, tokens = (int(to_numpy(self._batches[batch][name])[document]) for name in ("first", "tokens"))
        start = first + (inside - int(first_row[document])) * step
        return start, min(start + w.context_length, first + tokens)

    def of(self, rows: Sequence[int]) -> tuple[Ints, Ints]:
        """`position_ids` and `document_ids` of the inputs of rows, int64 `[len(rows), L]`; see the module.

        A document's number is its row in documents.arrow; padding has -1.
        """
        length = self.window.context_length
        begin = np.zeros((len(rows), length), np.int64)  # where the segment that a place lies in begins
        document = np.full((len(rows), length), -1, np.int64)
        in_stream = window.shuffled(np.array(rows, np.int64), self.rows, self._order)
        for i, row in enumerate(in_stream.tolist()):
            if self.window.mode == "document":
                batch = bisect_right(self._numbers, row) - 1
                tokens = int(to_numpy(self._batches[batch]["tokens"])[row - self._numbers[batch]])
                filled = min(tokens + self._special, length)
                document[i, :filled] = row
            else:
                start, stop = self.span(row)
                numbers, firsts = self.between(start, stop)
                places, filled = np.maximum(firsts - start, 0), stop - start
                begin[i, places] = places
                document[i, :filled] = np.repeat(numbers, np.diff(places, append=filled))
            if filled < length:
                begin[i, filled] = filled
        return np.arange(length) - np.maximum.accumulate(begin, axis=1), document


def cu_seqlens(position_ids: "torch.Tensor") -> "tuple[torch.Tensor, int]":
    """Borders of the segments of rows laid end to end, int32 `[segments + 1]`, from 0 to B * L, and the longest one.

    `position_ids` is `[B, L]`, or `[L]`. The form that flash-attention's `varlen` functions take, for q and k alike.

    >>> import torch
    >>> cu_seqlens(torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 0, 1, 0]]))
    (tensor([ 0,  3,  6,  7,  9, 11, 12], dtype=torch.int32), 3)
    """
    import torch

    flat = position_ids.reshape(-1)
    borders = torch.cat([torch.nonzero(flat == 0)[:, 0], torch.tensor([len(flat)], device=flat.device)])
    return borders.to(torch.int32), int(torch.diff(borders).max())


def block_mask(document_ids: "torch.Tensor", causal: bool = True) -> "torch.Tensor":
    """Which places may attend to which: bool `[B, 1, L, L]` (query, key), True within one document and, causal, not ahead.

    `document_ids` is `[B, L]`. For torch's `scaled_dot_product_attention(..., attn_mask=)`; padding attends to padding, so
    that no row of a softmax is empty.

    >>> import torch
    >>> block_mask(torch.tensor([[7, 7, 8]])).int().tolist()
    [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]
    """
    mask = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return mask.tril() if causal else mask


def marks(documents: Documents, rows: Sequence[int]) -> dict[str, Any]:
    """What the loader adds to a batch: `position_ids`, `document_ids` int64 [B, L]; `cu_seqlens`, `max_seqlen` int32."""
    import torch

    positions, numbers = (torch.from_numpy(values) for values in documents.of(rows))
    borders, longest = cu_seqlens(positions)
    return {
        "position_ids": positions,
        "document_ids": numbers,
        "cu_seqlens": borders,
        "max_seqlen": torch.tensor(longest, dtype=torch.int32),
    }
