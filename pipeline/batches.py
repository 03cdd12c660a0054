"""Documents as batches of Arrow rows, the shape in which they go from stage to stage.

    reader ──▶ rows of any number and length ──regular──▶ batches of at most 2 MiB of text and metadata

A batch has the columns of `SCHEMA`, and one more of strings for each column in `corpus.metadata`. A document longer
than a batch spans several rows, each in a batch of its own; `ends` is true on its last row. `source` is the file's
place in the plan; `start` and `end` are the byte range of the row's text in the file, or of the line, the element or
the row of a table that it stands in. Batches are cut from the input alone. The metadata of one row is never cut: a row
whose metadata is longer has a batch of its own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import numbers, string_bytes, strings

BLOCK = 2 << 20  # bytes of source read at a time, and most bytes of text and metadata in a batch
ORIGIN = {"source": pa.int32(), "start": pa.int64(), "end": pa.int64(), "ends": pa.bool_()}  # of rows, up to `encode`
SCHEMA = pa.schema({"text": pa.string()} | ORIGIN)
WHITE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))  # in a document
LAST_WORD = re.compile(rb"(?s:.*)(?:(?=[ \t][^ \t-\r])|(?<=\n)(?=[^ \t-\r]))")  # up to the last word or line
NEAR = 1 << 16  # bytes in which it is looked for
MANY = 1024  # batches that may wait: those of tiny files are far larger than their text

Batches = Iterator[pa.RecordBatch]


def with_metadata(names: Iterable[str]) -> pa.Schema:
    """The schema of batches that carry these columns along."""
    return pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in names)]) if names else SCHEMA


def head(text: pa.StringArray, limit: int) -> pa.StringArray:
    """The rows at the head of `text` that make about `limit` bytes, the last one cut between characters."""
    data, offsets = string_bytes(text)
    rows = int(np.searchsorted(offsets, limit, "left"))
    if rows > len(text):
        return text
    stop = limit if offsets[rows] == limit else character_border(data, limit)
    return strings(data, np.append(offsets[:rows], stop))


def make_batch(
    text: pa.Array,
    source: int,
    start: np.ndarray,
    end: np.ndarray,
    ends: bool = True,
    metadata: Mapping[str, pa.Array] = MappingProxyType({}),
) -> pa.RecordBatch:
    """A batch from its columns; `start` and `end` are int64 `[rows]`, `ends` is that of every row."""
    rows = len(text)
    closes = pa.Array.from_buffers(pa.bool_(), rows, [None, pa.py_buffer((b"\xff" if ends else b"\0") * (rows // 8 + 1))])
    columns = [text, numbers(np.full(rows, source, np.int32)), numbers(start), numbers(end), closes, *metadata.values()]
    return pa.record_batch(columns, schema=with_metadata(metadata))


def row_bytes(text: pa.StringArray) -> Iterator[bytes]:
    """The rows of a string array as bytes, which may not be UTF-8."""
    data, offsets = string_bytes(text)
    return (data[a:b].tobytes() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def gather(data: bytes, starts: np.ndarray, stops: np.ndarray) -> pa.StringArray:
    """The ranges of `data`, which follow one another, as rows; one range alone is not copied."""
    edges = np.empty(2 * len(starts), np.int32)
    edges[::2], edges[1::2] = starts, stops
    rows_and_gaps = pa.StringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges), pa.py_buffer(data))
    return rows_and_gaps if len(starts) == 1 else rows_and_gaps.take(numbers(np.arange(0, len(edges), 2, dtype=np.int32)))


def character_border(data: Any, position: int) -> int:
    """The last position at or before `position`, inside `data`, that does not cut a UTF-8 character."""
    for back in range(min(4, position + 1)):
        if data[position - back] & 0xC0 != 0x80:
            return position - back
    return max(position, 0)


def word_border(data: Any, position: int) -> int:
    """The last position near and at or before `position`, inside `data`, where a line or a space and a word begin.

    What learns words from pieces of a document then sees none in two, and a paragraph no blank line at the head of
    a piece. Where there is no such place, a character's border.
    """
    base = max(1, position - NEAR)
    match = LAST_WORD.match(bytes(data[base : position + 1]))
    return base + match.end() if match else character_border(data, position)


def regular(batches: Batches) -> Batches:
    """The same rows in batches of at most BLOCK bytes, metadata included; a longer document becomes rows of its own.

    Most batches of a reader pass as they are; small ones are joined, large ones cut between rows.
    """
    waiting: list[pa.RecordBatch] = []
    size = 0

    def flush() -> Batches:
        nonlocal waiting, size
        if waiting:
            yield waiting[0] if len(waiting) == 1 else pa.concat_batches(waiting)
        waiting, size = [], 0

    inside = False  # a document that its reader gives in pieces
    for batch in batches:
        ends = batch["ends"].true_count == len(batch)
        if inside or not ends:
            yield from flush()
            yield from _split(batch)
            inside = not ends
            continue
        texts = [string_bytes(batch[name])[1] for name in batch.schema.names if name not in ORIGIN]
        offsets = sum(texts[1:], start=texts[0])
        row = 0
        while row < len(batch):
            stop = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK, "right")) - 1)
            more = int(offsets[stop] - offsets[row])
            if size + more > BLOCK:
                yield from flush()
            if more > BLOCK:
                yield from _split(batch.slice(row, 1))
            else:
                waiting.append(batch.slice(row, stop - row))
                size += more
                if len(waiting) == MANY:
                    waiting = [pa.concat_batches(waiting)]
            if size > BLOCK // 2:
                yield from flush()
            row = stop
    yield from flush()


def _split(batch: pa.RecordBatch) -> Batches:
    """One row as rows of at most BLOCK bytes, cut between characters; `ends` is that of the row on the last one."""
    data, _ = string_bytes(batch["text"])
    metadata = {name: batch[name] for name in batch.schema.names[len(SCHEMA) :]}
    source, ends = batch["source"][0].as_py(), batch["ends"][0].as_py()
    start, end = (np.array([batch[name][0].as_py()]) for name in ("start", "end"))
    position = 0
    while position < len(data):
        stop = position + BLOCK
        stop = position + word_border(data[position:], BLOCK) if stop < len(data) else len(data)
        text = strings(data[position:stop], np.array([0, stop - position]))
        yield make_batch(text, source, start, end, ends and stop == len(data), metadata)
        position = stop


def blank_ranges(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, white: np.ndarray = WHITE) -> np.ndarray:
    """Which of the ranges of `data` hold nothing, or nothing but `white`; bool `[ranges]`."""
    lengths = stops - starts
    blank: np.ndarray = lengths == 0
    filled = np.flatnonzero(~blank)
    likely = filled[white[data[starts[filled]]] & white[data[stops[filled] - 1]]]
    blank[likely[lengths[likely] <= 2]] = True
    for row in likely[lengths[likely] > 2].tolist():
        blank[row] = white[data[starts[row] : stops[row]]].all()
    return blank
