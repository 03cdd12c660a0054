"""Tables: Parquet, and Arrow IPC files (Feather V2) and streams. A record is a row.

`start` and `end` of a document are its row and the next. `bytes` of the balance are those of the values of the text
columns. Parquet is read a few MiB at a time. Of an Arrow file, of which no part can be had but a record batch, a batch
is held; it is checked to the last offset before a value of it is touched, since Arrow itself trusts what it reads.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import batches
from pipeline.arrow import string_bytes, text_bytes
from pipeline.batches import Batches, make_batch
from pipeline.columns import columns, metadata_array, null_rows, require_columns, take, take_column
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import InputError, PipelineError
from pipeline.plain_text import ADVICE, repaired, without_blank
from pipeline.plan import open_parquet
from pipeline.rejects import Rejects

ROWS = 1 << 16  # at most, in one go
MOST = (1 << 31) - 1  # bytes of text in one array


def read_parquet(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The rows of a part; those before it in its first row group are decoded and passed over."""
    file = content.seekable()
    parquet = open_parquet(file, content.name, corpus)
    ways = require_columns(parquet.schema_arrow, content.name, corpus)
    metadata = parquet.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    edges = np.cumsum([0, *(group.num_rows for group in groups)])
    part = content.part
    start, end, size = (part.start, part.end, part.bytes) if content.plain and not part.member else (0, int(edges[-1]), 0)
    size = size or sum(group.total_byte_size for group in groups)
    first, last = int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, end, "left"))
    rows = max(1, min(ROWS, batches.BLOCK * 3 // 4 * (end - start) // max(size, 1)))  # most fit a batch
    row = int(edges[first])
    names = [".".join(way) for way in ways.values()]
    try:
        for batch in parquet.iter_batches(rows, row_groups=range(first, last), columns=names, use_threads=False):
            here, row = row, row + len(batch)
            low, high = max(start, here), min(end, row)
            if low < high:
                yield _documents(batch.slice(low - here, high - low), ways, low, content, corpus, counts, rejects)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error, content, "Parquet") from error
    finally:
        if not content.plain:
            file.close()


def read_arrow(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The rows of an Arrow file or stream."""
    file = content.seekable()
    row = 0
    try:
        for batch in _record_batches(file, content):
            if row == 0:
                ways = require_columns(batch.schema, content.name, corpus)
            batch.validate(full=True)
            for at in range(0, len(batch), ROWS):
                yield _documents(batch.slice(at, ROWS), ways, row + at, content, corpus, counts, rejects)
            row += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(error, content, "Arrow") from error
    finally:
        if not content.plain:
            file.close()


def _record_batches(file: Any, content: Content) -> Iterator[pa.RecordBatch]:
    head = file.read(6)
    file.seek(0)
    if head[:4] == b"FEA1":
        raise InputError(f"{content.name!r} is Feather of version 1, which Arrow has given up: save it as version 2.")
    if head != b"ARROW1":
        yield from pa.ipc.open_stream(file)
        return
    reader = pa.ipc.open_file(file)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _unreadable(error: Exception, content: Content, kind: str) -> Exception:
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a place before the file's beginning
        return error
    return InputError(f"{content.name!r} is not a readable {kind} file: {' '.join(str(error).split())}")


def _documents(
    batch: pa.RecordBatch, ways: dict[str, tuple[str, ...]], row: int, content: Content, corpus: Corpus, counts: Counts,
    rejects: Rejects,
) -> pa.RecordBatch:  # fmt: skip
    """The documents of a batch whose first row is `row`: text that is there and is UTF-8."""
    wanted = columns(corpus)
    found = {name: take_column(batch, way) for name, way in ways.items()}
    places = np.arange(len(batch))
    for name in wanted.text:
        nulls = null_rows(found[name])
        for place in nulls.tolist():
            rejects.bad(content, row + place, row + place + 1, b"", _null(content, row + place, name))
        places = np.setdiff1d(places, nulls, assume_unique=True) if len(nulls) else places
    if len(places) < len(batch):
        found = take(found, places)
    try:
        values = [found[name].cast(pa.string()) for name in wanted.text]
    except pa.ArrowException as error:
        raise InputError(
            f"{content.name!r} rows {row} to {row + len(batch)} hold more than {MOST} bytes: write smaller batches."
        ) from error
    counts["bytes"] += sum(map(text_bytes, values))
    metadata = {name: metadata_array(found[name]) for name in wanted.metadata}
    for index, column in enumerate(wanted.text):
        try:
            values[index].validate(full=True)
        except pa.ArrowInvalid:
            sizes = sum(np.diff(string_bytes(value)[1]) for value in values)

            def bad(
                place: int, text: bytes, error: UnicodeDecodeError, rows: Any = places, sizes: Any = sizes, name: str = column
            ) -> None:
                at = row + int(rows[place])
                detail = _undecodable(content, at, error, name)
                rejects.bad(content, at, at + 1, text, detail, "undecodable", int(sizes[place]))

            new, kept = repaired(values[index], corpus, counts, bad)
            places, metadata = places[kept], take(metadata, kept)
            values = [new if other == index else take({"": value}, kept)[""] for other, value in enumerate(values)]
    counts["added_bytes"] += wanted.added * len(places)
    text = wanted.join_arrays(values)
    return without_blank(make_batch(text, content.source, places + row, places + row + 1, metadata=metadata), counts)


def _null(content: Content, row: int, column: str) -> Callable[[], PipelineError]:
    advice = "Set corpus.on_bad_row=skip to leave such rows out."
    return lambda: InputError(f"{content.name!r} row {row}: column {column!r} is null. {advice}")


def _undecodable(content: Content, row: int, error: UnicodeDecodeError, column: str) -> Callable[[], PipelineError]:
    byte = error.object[error.start]
    return lambda: InputError(
        f"{content.name!r} row {row}, byte {error.start + 1}: 0x{byte:02x} in {column!r} is not UTF-8. {ADVICE}."
    )
