"""Stage `window`: the stream of IDs becomes rows.

`sliding` (context_length L = 4, stride 2): row i takes the L positions from i * stride on as input and the same
moved on by one as target. A stream of n IDs has 0 rows if n <= L, else (n - L - 1) // stride + 1.

    stream       0  1  2  3  4  5  6  7
    row 0       [0  1  2  3]              → [1 2 3 4]
    row 1             [2  3  4  5]        → [3 4 5 6]
    tail=pad          .     [4  5  6  7]  → [5 6 7 p]    attention_mask [1 1 1 0]; p is the pad ID

Position 7 is no target of a full window: with tail=drop it is counted as tail, with tail=pad it gets one more row,
at rows * stride. With `cross_documents` the whole stream is cut so, through documents, shards and batches;
without, each document is.

`prefix` (L = 4): in each document every token but the first is a target; its input is all that stands before it,
at most the last L tokens.

    [0] → 1    [0 1] → 2    [0 1 2] → 3    [0 1 2 3] → 4    [1 2 3 4] → 5

`document` (L = 8): one row per document, cut where `truncate` allows, framed where `special_tokens`, padded to L. No
target: the training of an encoder makes its own, by masking or from a label.

    [CLS] 0 1 2 [SEP] p p p    attention_mask 1 1 1 1 1 0 0 0    token_type_ids 0 0 0 0 0 0 0 0

Rows are made a batch at a time. A column of IDs costs one copy out of the mapped stream; none where stride = L and
the batch lies in one batch of the stream.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from pipeline import config
from pipeline.arrow import adjoin, flat_list, numbers
from pipeline.console import counted
from pipeline.errors import ConfigError, InputError
from pipeline.permutation import keys, permute
from pipeline.stream import AnyStream

VERSION = 1
SHARD = 16 << 20  # bytes of rows in one file, where the whole stream is cut
MOST = 1 << 16  # files, about: beyond 1.1 TB they grow
BATCH = 2 << 20  # bytes of input_ids in a batch, and of the stream in which its rows begin
ROWS = 1 << 16  # rows in a batch at most

Positions = np.ndarray[Any, np.dtype[np.int64]]
Frame = tuple[Sequence[int], Sequence[int], bool]  # IDs before and after a document; are there token types?

SHIFTED = "already shifted by one; do not shift again; do not rename to labels"
TARGETS = {
    "sliding": f"target_ids[i][j] is the token that follows input_ids[i][j]; {SHIFTED}",
    "prefix": f"target_ids[i][0] is the token that follows input_ids[i]; {SHIFTED}",
    "document": "none: rows for encoders and masked objectives, whose targets are made while training",
}
MASK = {
    "sliding": "1 where target_ids[i][j] is a token of the text, 0 where it is padding and must not count in the loss",
    "document": "1 where input_ids[i][j] is a token, special ones too, 0 where it is padding",
}
BALANCE: dict[str, dict[str, tuple[str, ...]]] = {
    "sliding": {"tokens": ("first", "targets", "tail", "gap"), "slots": ("targets", "repeated", "padding")},
    "prefix": {"tokens": ("first", "targets")},
    "document": {"tokens": ("kept", "truncated"), "slots": ("kept", "special", "padding")},
}


@dataclass(frozen=True)
class WindowShard:
    """One unit of work: the rows [start, stop) of the dataset, one file."""

    index: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"window shard {self.index} (rows {self.start} to {self.stop})"


@dataclass(frozen=True)
class WindowPlan:
    """What `chunk` needs besides the stream. Picklable.

    `bytes` is the size of all rows in memory; `ledger` says what becomes of each token (see `check_ledger`).
    """

    window: config.Window
    dtype: np.dtype[Any]
    pad_id: int
    frame: Frame
    rows: int
    shards: tuple[WindowShard, ...]
    ledger: dict[str, int]
    bytes: int
    firsts: tuple[int, ...]  # in the order of the stream, the first row of each part that `_lengths` gives, and all rows
    order: int | None = None  # seed of the rows' order; None: that of the stream


def identity(w: config.Window) -> dict[str, Any]:
    """The settings that can change the rows in this mode. `allow_gaps` and `max_bytes` only refuse.

    `truncate` counts: rows that were cut must not be served where cutting is not allowed.
    """
    settings: dict[str, Any] = {"mode": w.mode, "context_length": w.context_length}
    if w.mode == "sliding":
        return settings | {"stride": _stride(w), "tail": w.tail, "cross_documents": w.cross_documents}
    if w.mode == "document":
        return settings | {"truncate": w.truncate, "special_tokens": w.special_tokens}
    return settings


def plan(
    w: config.Window,
    counts: Sequence[int],
    dtype: np.dtype[Any] | str,
    pad_id: int | None,
    frame: Frame | None,
    stream: AnyStream,
    sources: Sequence[str] = (),
    order: int | None = None,
) -> WindowPlan:
    """Count the rows and cut them into shards, from counts and lengths alone; nothing is written.

    `counts` are the IDs per ID shard; `pad_id` is the pad token's, else that of EOS, else None; `frame` is the
    tokenizer's own; `sources` name the input files in errors. `order` is the seed of a random order of the rows (see
    `shuffled`), None for that of the stream. Where windows cross documents, or rows are shuffled, a shard is about
    16 MiB of rows; else it has the rows of one ID shard. Where they do not cross, the lengths of the documents are read.

    Raises InputError where there would be no row or a document is too long; ConfigError where the tokenizer lacks
    a token that is needed, or the rows would take more than `window.max_bytes`.
    """
    dtype = np.dtype(dtype)
    frame = checked_frame(w, dtype, pad_id, frame)
    ledger: dict[str, int] = {}
    edges, longest = [0], 0
    for index, lengths in _lengths(w, counts, stream):
        if w.mode == "document" and not w.truncate:
            _require_short(w, lengths, _room(w, frame), stream, index, sources)
        entries = _account(w, frame, lengths)
        ledger = {name: ledger.get(name, 0) + value for name, value in entries.items()}
        edges.append(edges[-1] + int(_row_counts(w, lengths).sum()))
        longest = max(longest, int(lengths.max(initial=0)))
    rows = edges[-1]
    if not rows:
        raise InputError(_no_row(w, longest))
    check_ledger(w.mode, ledger)
    size = _bytes(w, dtype, frame, rows, ledger["slots"])
    if size > w.max_bytes:
        lower = "Raise window.stride=" if w.mode == "sliding" else "Lower window.context_length="
        raise ConfigError(
            f"window.max_bytes={w.max_bytes}, but {counted(rows, 'row')} would take {size} bytes: every token would be written "
            f"{ledger['slots'] / max(ledger['tokens'], 1):.1f} times. {lower}, or raise window.max_bytes=."
        )
    firsts = tuple(edges)
    if crosses(w) or order is not None:
        step = max(1, SHARD // (size // rows), -(-rows // MOST))
        step -= step % min(step, _most_rows(w, dtype))  # whole batches, where a shard has room for one
        edges = [*range(0, rows, step), rows]
    shards = tuple(WindowShard(i, start, stop) for i, (start, stop) in enumerate(itertools.pairwise(edges)))
    return WindowPlan(w, dtype, pad_id or 0, frame, rows, shards, ledger, size, firsts, order)


def expect(w: config.Window, dtype: np.dtype[Any], frame: Frame, lengths: np.ndarray) -> tuple[int, int, int, int]:
    """Rows, slots, tokens that become no target, and bytes that `plan` would count for documents of these lengths.

    `lengths` is int64 `[documents]`; where windows cross documents only their sum counts.
    """
    cut = np.array([lengths.sum()]) if crosses(w) else lengths
    rows, ledger = int(_row_counts(w, cut).sum()), _account(w, frame, cut)
    lost = sum(ledger.get(name, 0) for name in ("tail", "gap", "truncated"))
    return rows, ledger["slots"], lost, _bytes(w, dtype, frame, rows, ledger["slots"])


def check_ledger(mode: str, ledger: dict[str, int]) -> None:
    """Raise RuntimeError, a bug of ours, where a token or a slot is not accounted for.

    `sliding`: tokens = first (can be no target: one per stream, or per document) + targets (positions that are a
    target at least once) + tail (behind the last window) + gap (between windows, where stride > L); slots (of
    target_ids) = targets + repeated (by overlap) + padding. `prefix`: tokens = first + targets; slots are the IDs in
    all inputs. `document`: tokens = kept + truncated; slots (of input_ids) = kept + special + padding.
    """
    for total, parts in BALANCE[mode].items():
        if ledger[total] != sum(ledger[part] for part in parts) or min(ledger.values()) < 0:
            raise RuntimeError(f"the window ledger does not balance: {total} = {' + '.join(parts)} in {ledger}")


def schema(plan: WindowPlan) -> pa.Schema:
    """The columns; the metadata key `pipeline` holds what they mean, as JSON.

    `input_ids` fixed_size_list<uintN, L>, in `prefix` list<uintN>. `target_ids` fixed_size_list<uintN, L>, in `prefix`
    of length 1, in `document` absent. `attention_mask` fixed_size_list<uint8, L> where rows may be padded: in `sliding`
    1 where the *target* at that position is a token of the text (so it is 0 at the last real input already), in
    `document` 1 where the input is. `token_type_ids` fixed_size_list<uint8, L>, all 0, in `document` where the
    tokenizer's frame has token types.
    """
    w, ids = plan.window, pa.from_numpy_dtype(plan.dtype)
    row, mask = pa.list_(ids, w.context_length), pa.list_(pa.uint8(), w.context_length)
    fields: dict[str, pa.DataType] = {"input_ids": pa.list_(ids) if w.mode == "prefix" else row}
    meaning: dict[str, Any] = {"mode": w.mode, "context_length": w.context_length, "targets": TARGETS[w.mode]}
    if w.mode == "sliding":
        meaning["stride"] = _stride(w)
    if w.mode != "document":
        fields["target_ids"] = pa.list_(ids, 1) if w.mode == "prefix" else row
    if _pads(w):
        fields["attention_mask"] = mask
        meaning["attention_mask"] = MASK[w.mode]
    if plan.frame[2]:
        fields["token_type_ids"] = mask
    if plan.order is not None:
        meaning["shuffle"] = plan.order
    return pa.schema(list(fields.items()), metadata={"pipeline": json.dumps(meaning, sort_keys=True)})


def chunk(stream: AnyStream, plan: WindowPlan, shard: WindowShard) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, in batches of about 2 MiB of input_ids that are cut from the plan alone.

    Shuffled rows are gathered in the order of the stream, a whole shard together, so that each file is mapped once.
    """
    most, columns = _most_rows(plan.window, plan.dtype), schema(plan)
    if plan.order is None:
        rows, edges = np.arange(shard.start, shard.stop), _edges(stream, plan, 0 if crosses(plan.window) else shard.index)
        while len(rows):
            arrays = _make(stream, plan, edges, rows[:most])
            yield pa.record_batch(arrays, schema=columns)
            rows = rows[len(arrays[0]) :]
        return
    rows = shuffled(np.arange(shard.start, shard.stop), plan.rows, plan.order)
    ascending, places = np.argsort(rows), np.empty(len(rows), np.int64)
    places[ascending] = np.arange(len(rows))
    ends = np.searchsorted(rows[ascending], plan.firsts).tolist()
    gathered = pa.concat_batches(
        pa.record_batch(_make(stream, plan, _edges(stream, plan, part), rows[ascending[low:high]]), schema=columns)
        for part, (low, high) in enumerate(itertools.pairwise(ends))
        if low < high
    )
    for low in range(0, len(rows), most):
        yield gathered.take(numbers(places[low : low + most]))


def _edges(stream: AnyStream, plan: WindowPlan, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Of what a part (see `_lengths`) has that is cut on its own: where it begins in the stream, and its first row."""
    whole = crosses(plan.window)
    lengths = np.array([len(stream)]) if whole else stream.document_lengths(part)
    begins = (0 if whole else int(stream.starts[part])) + adjoin(lengths)
    return begins, plan.firsts[part] + adjoin(_row_counts(plan.window, lengths))


def _make(stream: AnyStream, plan: WindowPlan, edges: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> list[pa.Array]:
    """The columns of ascending rows, by their numbers in the order of the stream; of fewer where one batch holds no more."""
    begins, first_row = edges
    document = np.searchsorted(first_row, rows, "right") - 1
    make = {"sliding": _sliding, "prefix": _prefix, "document": _document}[plan.window.mode]
    return make(stream, plan, begins[document], begins[document + 1], rows - first_row[document])


def shuffled(rows: np.ndarray, count: int, order: int | None) -> np.ndarray:
    """Which row in the order of the stream stands at each of `rows`, of `count`: int64, like `rows`.

    `order` is the seed of `permutation.permute`; None where rows stand in the order of the stream.
    """
    return rows if order is None else permute(rows, count, keys(order, 0))


def position(w: config.Window, lengths: np.ndarray, row: int) -> tuple[int, int]:
    """Where row `row` lies in the stream: its first position, and the one behind its last input or target.

    `lengths` are the IDs of each document, int64 `[documents]`; padding and special tokens have no position.

    >>> position(config.Window(context_length=4, stride=2), np.array([9]), 1)
    (2, 7)
    """
    whole = np.array([lengths.sum()]) if crosses(w) else lengths
    first_row, begins = adjoin(_row_counts(w, whole)), adjoin(whole)
    document = int(np.searchsorted(first_row, row, "right")) - 1
    begin, end, nth = int(begins[document]), int(begins[document + 1]), row - int(first_row[document])
    if w.mode == "document":
        return begin, end
    if w.mode == "prefix":
        return max(begin, begin + nth + 1 - w.context_length), begin + nth + 2
    return begin + nth * _stride(w), min(begin + nth * _stride(w) + w.context_length + 1, end)


def first_rows(w: config.Window, lengths: np.ndarray) -> Positions:
    """The first row of each document that is cut on its own, and behind them the number of rows: int64 `[documents + 1]`."""
    return adjoin(_row_counts(w, lengths))


def rows_at(w: config.Window, lengths: np.ndarray, first: int, stop: int) -> range:
    """The rows that hold a position of [first, stop), as input or target: the inverse of `position`.

    Rows follow the stream, so they are consecutive; none where the positions lie in no row. In `document` a row that was
    cut counts with what was cut from it.

    >>> rows_at(config.Window(context_length=4, stride=2), np.array([11]), 6, 7)
    range(1, 4)
    """
    whole = np.array([lengths.sum()]) if crosses(w) else lengths
    counts, begins = _row_counts(w, whole), adjoin(whole)
    first_row = adjoin(counts)
    reach, step = w.context_length + 1, _stride(w) if w.mode == "sliding" else 1
    back = w.context_length - 1 if w.mode == "prefix" else 0  # the row that ends L IDs later begins here

    def at(position: int) -> tuple[int, int]:
        """The first row that ends behind a position, and the one after the last that begins at or before it."""
        document = int(np.searchsorted(begins, position, "right")) - 1
        if w.mode == "document":
            return document, document + 1
        inside, rows = position - int(begins[document]), int(counts[document])
        low, high = max(0, (inside - reach) // step + 1 + back), inside // step + 1 + back
        return int(first_row[document]) + min(rows, low), int(first_row[document]) + min(rows, high)

    return range(at(first)[0], at(stop - 1)[1])


def _sliding(stream: AnyStream, plan: WindowPlan, begin: np.ndarray, end: np.ndarray, nth: np.ndarray) -> list[pa.Array]:
    """Columns for window `nth` of the documents at [begin, end)."""
    length = plan.window.context_length
    start = begin + nth * _stride(plan.window)
    if plan.order is not None:
        ids = _read_each(stream, plan, start, end, length + 1)
        inputs, targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    else:
        start = _near(start, plan.dtype)
        end = end[: len(start)]
        ids = _read(stream, plan, start, end, length + 1)
        inputs, targets = (_cut(ids[shift:], start - start[0], length) for shift in (0, 1))
    if not _pads(plan.window):
        return [_lists(inputs), _lists(targets)]
    real, place = (end - start)[:, None], np.arange(length)  # real: IDs of the document from `start` on
    if (real <= length).any():
        pad = plan.dtype.type(plan.pad_id)
        inputs, targets = np.where(place < real, inputs, pad), np.where(place + 1 < real, targets, pad)
    return [_lists(inputs), _lists(targets), _lists((place + 1 < real).view(np.uint8))]


def _prefix(stream: AnyStream, plan: WindowPlan, begin: np.ndarray, end: np.ndarray, nth: np.ndarray) -> list[pa.Array]:
    """Columns for the pair whose target is ID `nth` + 1 of the documents at [begin, end)."""
    target = begin + nth + 1
    start = np.maximum(begin, target - plan.window.context_length)
    if plan.order is not None:
        ids = np.concatenate([stream.read(low, high + 1) for low, high in zip(start.tolist(), target.tolist(), strict=True)])
        ends = np.cumsum(target + 1 - start) - 1  # the last of each is its target
        return [flat_list(numbers(np.delete(ids, ends)), adjoin(target - start)), _lists(ids[ends][:, None])]
    start = _near(start, plan.dtype)
    lengths = target[: len(start)] - start
    fit = max(1, int(np.searchsorted(np.cumsum(lengths), BATCH // plan.dtype.itemsize, "right")))
    start, target, lengths = start[:fit], target[:fit], lengths[:fit]
    ids = stream.read(int(start[0]), int(target[-1]) + 1)
    offsets = adjoin(lengths)
    flat = np.arange(offsets[-1]) + np.repeat(start - start[0] - offsets[:-1], lengths)
    return [flat_list(numbers(ids[flat]), offsets), _lists(ids[target - start[0]][:, None])]


def _document(stream: AnyStream, plan: WindowPlan, begin: np.ndarray, end: np.ndarray, nth: np.ndarray) -> list[pa.Array]:
    """Columns for the documents at [begin, end); `nth` is 0."""
    w, (before, after, typed) = plan.window, plan.frame
    room, place = _room(w, plan.frame), np.arange(w.context_length)
    if plan.order is not None:
        start, ids = begin, _read_each(stream, plan, begin, end, room)
    else:
        start = _near(begin, plan.dtype)
        end = end[: len(start)]
        ids = _cut(_read(stream, plan, start, end, room), start - start[0], room)
    kept = np.minimum(end - start, room)[:, None]
    filled = len(before) + kept + len(after)
    inputs = np.empty((len(start), w.context_length), plan.dtype)
    inputs[:, len(before) : len(before) + room] = ids
    inputs[place >= filled] = plan.pad_id
    for i, special in enumerate(before):
        inputs[:, i] = special
    for i, special in enumerate(after):
        inputs[np.arange(len(start)), len(before) + kept[:, 0] + i] = special
    columns = [inputs, (place < filled).view(np.uint8)] + [np.zeros(inputs.shape, np.uint8)] * typed
    return [_lists(column) for column in columns]


def _near(start: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Those rows, of ascending starts, that begin within BATCH bytes of the first.

    Without it a batch of wide strides, or of long documents cut short, would span the corpus.
    """
    many: int = np.searchsorted(start, start[0] + BATCH // dtype.itemsize, "right")
    return start[:many]


def _read(stream: AnyStream, plan: WindowPlan, start: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """The IDs from the first start to `length` behind the last one, padded where its document ends before."""
    stop = int(start[-1]) + length
    ids = stream.read(int(start[0]), min(stop, int(end[-1])))
    missing = stop - int(end[-1])
    return ids if missing <= 0 else np.concatenate([ids, np.full(missing, plan.pad_id, plan.dtype)])


def _read_each(stream: AnyStream, plan: WindowPlan, start: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """`length` IDs from each start on, padded where its document ends before: `[len(start), length]`."""
    out = np.full((len(start), length), plan.pad_id, plan.dtype)
    for row, (low, high) in enumerate(zip(start.tolist(), np.minimum(start + length, end).tolist(), strict=True)):
        out[row, : high - low] = stream.read(low, high)
    return out


def _cut(ids: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    """`ids[o : o + length]` for each of ascending offsets: `[len(offsets), length]`, contiguous.

    Even steps take one strided copy, and none where the step is `length`.
    """
    windows, steps = sliding_window_view(ids, length), np.diff(offsets)
    step = int(steps[0]) if len(steps) else 1
    even = step > 0 and bool((steps == step).all())
    return np.ascontiguousarray(windows[offsets[0] : offsets[-1] + 1 : step] if even else windows[offsets])


def _lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(numbers(rows.reshape(-1)), rows.shape[1])


def _stride(w: config.Window) -> int:
    return w.stride or w.context_length


def crosses(w: config.Window) -> bool:
    """Is the stream cut as a whole, or each document?"""
    return w.mode == "sliding" and w.cross_documents


def _pads(w: config.Window) -> bool:
    return w.mode == "document" or (w.mode == "sliding" and w.tail == "pad")


def _room(w: config.Window, frame: Frame) -> int:
    """How many IDs of a document a row holds."""
    return w.context_length - len(frame[0]) - len(frame[1])


def _most_rows(w: config.Window, dtype: np.dtype[Any]) -> int:
    """Rows in a batch at most; `prefix` cuts by what its rows hold."""
    return ROWS if w.mode == "prefix" else min(ROWS, max(1, BATCH // (w.context_length * dtype.itemsize)))


def _lengths(w: config.Window, counts: Sequence[int], stream: AnyStream) -> Iterator[tuple[int, np.ndarray]]:
    """Lengths of what is cut on its own, a part of the stream at a time: all of it, or the documents of each ID shard."""
    if crosses(w):
        yield 0, np.array([sum(counts)], np.int64)
    else:
        yield from ((index, stream.document_lengths(index)) for index in range(len(counts)))


def _row_counts(w: config.Window, lengths: Positions) -> Positions:
    """Rows of each document, int64 `[documents]`."""
    if w.mode == "document":
        return np.ones_like(lengths)
    if w.mode == "prefix":
        return np.maximum(lengths - 1, 0)
    full = np.maximum((lengths - w.context_length - 1) // _stride(w) + 1, 0)
    if w.tail == "drop":
        return full
    left = lengths - 1 > _reach(w, full)  # but where stride > L the next row may begin behind what is left
    return full + (left & (lengths - 1 > full * _stride(w)))


def _reach(w: config.Window, rows: Positions) -> Positions:
    """The position of the last target of a document's last row, padding included; 0 where it has no row."""
    return np.where(rows > 0, (rows - 1) * _stride(w) + w.context_length, 0)


def _account(w: config.Window, frame: Frame, lengths: np.ndarray) -> dict[str, int]:
    """The ledger of documents of these lengths."""
    rows, room = _row_counts(w, lengths), _room(w, frame)
    ledger: dict[str, Any] = {"tokens": lengths}
    if w.mode == "document":
        ledger |= {"kept": np.minimum(lengths, room), "truncated": np.maximum(lengths - room, 0)}
        ledger |= {"slots": rows * w.context_length, "special": rows * (w.context_length - room)}
        ledger |= {"padding": np.maximum(room - lengths, 0)}
    elif w.mode == "prefix":
        growing = np.minimum(rows, w.context_length)
        ledger |= {"first": lengths > 0, "targets": rows}
        ledger |= {"slots": growing * (growing + 1) // 2 + (rows - growing) * w.context_length}
    else:
        reach, last = _reach(w, rows), np.maximum(lengths - 1, 0)
        steps, wider = np.maximum(rows - 1, 0), _stride(w) - w.context_length
        gap = steps * max(wider, 0)
        ledger |= {"first": lengths > 0, "targets": np.minimum(reach, last) - gap}
        ledger |= {"tail": np.maximum(last - reach, 0), "gap": gap}
        ledger |= {"slots": rows * w.context_length, "repeated": steps * max(-wider, 0), "padding": np.maximum(reach - last, 0)}
    return {name: int(values.sum()) for name, values in ledger.items()}


def _bytes(w: config.Window, dtype: np.dtype[Any], frame: Frame, rows: int, slots: int) -> int:
    """Size of all rows: their IDs, masks and (in `prefix`) offsets."""
    if w.mode == "prefix":
        return slots * dtype.itemsize + rows * (dtype.itemsize + 4)
    columns = dtype.itemsize * (1 if w.mode == "document" else 2) + _pads(w) + frame[2]
    return slots * columns


def checked_frame(w: config.Window, dtype: np.dtype[Any], pad_id: int | None, frame: Frame | None) -> Frame:
    """The special tokens to put around each document, after a check of all that depends on the tokenizer."""
    if _pads(w) and pad_id is None:
        why = "window.tail=pad" if w.mode == "sliding" else "window.mode=document"
        raise ConfigError(f"{why} needs a pad or an EOS token, and the tokenizer has neither: set tokenizer.pad_token=.")
    adds = frame is not None and bool(frame[0] or frame[1])
    if w.mode != "document" or not (adds if w.special_tokens is None else w.special_tokens):
        frame = ((), (), False)
    elif frame is None or not adds:
        raise ConfigError("window.special_tokens=true, but the tokenizer adds none: set window.special_tokens=false.")
    largest = max([*frame[0], *frame[1], pad_id or 0])
    if largest > np.iinfo(dtype).max:
        raise ConfigError(f"vocabulary.dtype={dtype} cannot hold the special token {largest}: set vocabulary.dtype=auto.")
    if _room(w, frame) < 1:
        raise ConfigError(
            f"window.context_length={w.context_length} leaves no room beside {len(frame[0]) + len(frame[1])} special tokens: "
            "raise it, or set window.special_tokens=false."
        )
    return frame


def _require_short(
    w: config.Window, lengths: np.ndarray, room: int, stream: AnyStream, index: int, sources: Sequence[str]
) -> None:
    """Raise InputError naming the first document that does not fit a row."""
    long = np.flatnonzero(lengths > room)
    if not len(long):
        return
    row = stream.documents(index).slice(int(long[0]), 1).to_pylist()[0]
    source = repr(sources[row["source"]]) if row["source"] < len(sources) else f"source {row['source']}"
    raise InputError(
        f"{source}, document at {row['start']} to {row['end']}: {row['tokens']} tokens, but a row of "
        f"window.context_length={w.context_length} holds {room}. "
        "Set window.truncate=true to cut it, or raise window.context_length=."
    )


def _no_row(w: config.Window, longest: int) -> str:
    """Why there is nothing to write, and the way out."""
    what = f"{'corpus' if crosses(w) else 'the longest document'} has {counted(longest, 'token')}"
    if w.mode != "sliding" or w.tail == "pad":
        return f"{what}, one row needs 2: add text to the corpus."
    way = "set window.tail=pad" + ("" if crosses(w) else " or window.cross_documents=true")
    return f"{what}, one window needs {w.context_length + 1}; lower window.context_length, or {way}."
