"""Tables: Parquet, and Arrow IPC files (Feather V2) and streams. A record is a row.

`start` and `end` of a document are its row and the next. `bytes` of the balance are those of the values of the text
columns. Parquet is read a few MiB at a time. Of an Arrow file, of which no part can be had but a record batch, a batch
is held; it is checked to the last offset before a value of it is touched, since Arrow itself trusts what it reads.

A dictionary makes of one long value as many as there are rows. So of Parquet no more rows are decoded at once than would
take WIDE bytes if each were all of the dictionary; where that is a few short ones, it is read with its dictionaries as
they are, as Arrow files are, and no more rows of those become strings at once than hold PIECE bytes, metadata included:

    dictionary  "a …"  "b …"          rows, by size     ─┬─▶ strings of at most PIECE bytes
    indices     0 0 1 0 …                               └─▶ …
"""

import errno
import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import batches
from pipeline.arrow import adjoin, string_bytes, strings, text_bytes, to_numpy
from pipeline.batches import Batches, make_batch
from pipeline.columns import KINDS, columns, lies_in, metadata_array, null_rows, require_columns, take, take_column
from pipeline.compression import require_growth
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import InputError, PipelineError
from pipeline.plain_text import ADVICE, repaired, without_blank
from pipeline.plan import open_parquet
from pipeline.rejects import BadRow, Rejects

ROWS = 1 << 16  # at most, in one go
LEAST = 1 << 16  # bytes that a batch of Parquet should have to be worth its while
PIECE = 16 << 20  # bytes of text and metadata that become strings at once, but for a longer row
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)  # the last of a time in metadata that Python has not
WIDE = 1 << 28  # bytes that a batch of Parquet may take where every row is as long as all of its dictionary


def read_parquet(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The rows of a part; those before it in its first row group are decoded and passed over."""
    file = content.seekable()
    packed = file.seek(0, io.SEEK_END)
    parquet = open_parquet(file, content.name, corpus)
    ways = require_columns(parquet.schema_arrow, content.name, corpus)
    metadata = parquet.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    edges = np.cumsum([0, *(group.num_rows for group in groups)])
    part = content.part
    start, end, size = (part.start, part.end, part.bytes) if content.plain and not part.member else (0, int(edges[-1]), 0)
    size = size or sum(group.total_byte_size for group in groups)
    first, last = int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, end, "left"))
    names = [".".join(ways[name]) for name in columns(corpus).metadata]
    beside = sum(_column_bytes(group, names) for group in groups[first:last])
    size += beside * (end - start) // max(int(edges[last] - edges[first]), 1)
    rows = max(1, min(ROWS, batches.BLOCK * 3 // 4 * (end - start) // max(size, 1)))  # most fit a batch
    row = int(edges[first])
    names = [".".join(way) for way in ways.values()]
    widest = max((_dictionary_bytes(file, group, names) for group in groups[first:last]), default=0)
    safe = max(1, WIDE // max(widest, 1))
    if safe < rows and safe * size < LEAST * (end - start):
        parquet = open_parquet(file, content.name, corpus, names)
    else:
        rows = min(rows, safe)
    grown = 0
    try:
        for batch in _joined(parquet.iter_batches(rows, row_groups=range(first, last), columns=names, use_threads=False)):
            here, row = row, row + len(batch)
            low, high = max(start, here), min(end, row)
            if low < high:
                for documents in _pieces(batch.slice(low - here, high - low), ways, low, content, corpus, counts, rejects):
                    grown += text_bytes(documents["text"])
                    require_growth(content.name, grown, packed, corpus)
                    yield documents
    except UNREADABLE as error:
        raise _unreadable(error, content, "Parquet") from error
    finally:
        if not content.plain:
            file.close()


def _joined(found: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about the size that a batch of text has, where they come in smaller ones."""
    waiting: list[pa.RecordBatch] = []
    for batch in found:
        waiting.append(batch)
        if sum(one.nbytes for one in waiting) > batches.BLOCK // 2:
            yield pa.concat_batches(waiting) if len(waiting) > 1 else batch
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _column_bytes(group: Any, names: list[str]) -> int:
    """Bytes that these columns of a row group take, decompressed."""
    own = [column for column in map(group.column, range(group.num_columns)) if lies_in(column.path_in_schema, names)]
    return sum(column.total_uncompressed_size for column in own)


def _dictionary_bytes(file: Any, group: Any, names: list[str]) -> int:
    """Bytes of the largest dictionary that these columns of a row group have.

    They stand in the header of its page, the second field of PageHeader in parquet.thrift of the project parquet-format, in
    Thrift's compact protocol: a mark of the field, a varint, and the same again.
    """
    largest = 0
    for column in map(group.column, range(group.num_columns)):
        if not column.has_dictionary_page or not lies_in(column.path_in_schema, names):
            continue
        file.seek(column.dictionary_page_offset or 0)
        head, at, value = file.read(32), 0, 0
        for _ in range(2):
            if head[at : at + 1] != b"\x15":
                return WIDE  # it cannot be told
            length = next((i for i, byte in enumerate(head[at + 1 :], 1) if byte < 0x80), 0)
            value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[at + 1 : at + 1 + length]))
            at += 1 + length
        largest = max(largest, value >> 1)
    return largest


def read_arrow(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The rows of an Arrow file or stream."""
    file = content.seekable()
    packed = file.seek(0, io.SEEK_END)
    file.seek(0)
    row = grown = 0
    try:
        for batch in _record_batches(file, content):
            if row == 0:
                ways = require_columns(batch.schema, content.name, corpus)
            batch.validate(full=True)
            for at in range(0, len(batch), ROWS):
                for documents in _pieces(batch.slice(at, ROWS), ways, row + at, content, corpus, counts, rejects):
                    grown += text_bytes(documents["text"])
                    require_growth(content.name, grown, packed, corpus)
                    yield documents
            row += len(batch)
    except UNREADABLE as error:
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


def _pieces(
    batch: pa.RecordBatch, ways: dict[str, tuple[str, ...]], row: int, content: Content, corpus: Corpus, counts: Counts,
    rejects: Rejects,
) -> Batches:  # fmt: skip
    """The documents of a batch whose first row is `row`, a few rows at a time; a row that is too long to be held is bad."""
    wanted = columns(corpus)
    found, none = {name: take_column(batch, way) for name, way in ways.items()}, np.zeros(len(batch), np.int64)
    sizes, beside = (sum((_sizes(found[name]) for name in names), none) for names in (wanted.text, wanted.metadata))
    edges, long = adjoin(sizes + beside), np.append(np.flatnonzero(sizes > corpus.max_document_bytes), len(batch))
    low = 0
    while low < len(batch):
        high = max(low + 1, int(np.searchsorted(edges, edges[low] + PIECE, "right")) - 1)
        high = max(low + 1, min(high, int(long[np.searchsorted(long, low)])))
        if sizes[low] > corpus.max_document_bytes:
            rejects.bad(content, row + low, row + low + 1, b"", _too_long(content, row + low, corpus), size=int(sizes[low]))
            counts["bytes"] += int(sizes[low])
        else:
            here = {name: column.slice(low, high - low) for name, column in found.items()}
            here = {name: _plain(column) for name, column in here.items()}
            yield _documents(here, row + low, content, corpus, counts, rejects)
        low = high


def _sizes(column: pa.Array) -> np.ndarray:
    """Bytes of each value of a column, int64 `[rows]`; a null has none. Of what is no string, about as many."""
    sizes = _lengths(column)
    sizes[null_rows(column)] = 0
    return sizes


def _lengths(column: pa.Array) -> np.ndarray:
    """The same, but for nulls, which may have any number."""
    if pa.types.is_dictionary(column.type):
        if column.null_count == len(column):
            return np.zeros(len(column), np.int64)
        indices = column.indices.fill_null(0) if column.null_count else column.indices
        sizes: np.ndarray = _lengths(column.dictionary)[to_numpy(indices)]
        return sizes
    if column.type in (pa.string_view(), pa.binary_view()):  # 16 bytes each, the first four of which are its length
        views = np.frombuffer(column.buffers()[1] or b"", np.int32).reshape(-1, 4)
        return views[column.offset : column.offset + len(column), 0].astype(np.int64)
    if column.type in (*KINDS, pa.binary(), pa.large_binary()):
        return np.diff(_edges(column))
    return np.full(len(column), -(-column.nbytes // max(len(column), 1)), np.int64)


def _edges(column: pa.Array) -> np.ndarray:
    """Where the values of a column of plain strings begin in its buffer, and the last one ends: int64."""
    if not len(column):
        return np.zeros(1, np.int64)
    width = np.int32 if column.type in (pa.string(), pa.binary()) else np.int64
    return np.frombuffer(column.buffers()[1], width)[column.offset : column.offset + len(column) + 1].astype(np.int64)


def _plain(column: pa.Array) -> pa.Array:
    """A column of which rows can be taken: Arrow takes none of views."""
    if pa.types.is_dictionary(column.type) and column.type.value_type == pa.string_view():
        return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
    return column.cast(pa.string()) if column.type == pa.string_view() else column


def _as_strings(column: pa.Array) -> pa.StringArray:
    """A column without nulls as strings; of large strings the bytes are not copied, however far in their buffer they lie."""
    if column.type == pa.large_string():
        edges = _edges(column)
        data = column.buffers()[2] or pa.py_buffer(b"")
        return strings(data.slice(int(edges[0]), int(edges[-1] - edges[0])), edges - edges[0])
    return column.cast(pa.string())


def _documents(
    found: dict[str, pa.Array], row: int, content: Content, corpus: Corpus, counts: Counts, rejects: Rejects
) -> pa.RecordBatch:
    """The documents of rows, of which the first is `row`, by their columns: text that is there and is UTF-8."""
    wanted, rows = columns(corpus), len(next(iter(found.values())))
    places = np.arange(rows)
    for name in wanted.text:
        nulls = np.intersect1d(null_rows(found[name]), places)
        for place in nulls.tolist():
            rejects.bad(content, row + place, row + place + 1, b"", _null(content, row + place, name))
        places = np.setdiff1d(places, nulls, assume_unique=True) if len(nulls) else places
    if len(places) < rows:
        found = take(found, places)
    texts = range(len(wanted.text))
    values = dict(enumerate([_as_strings(found[name]) for name in wanted.text]))
    counts["bytes"] += sum(map(text_bytes, values.values()))
    values |= dict(enumerate([metadata_array(found[name]) for name in wanted.metadata], len(texts)))
    for index, column in enumerate(wanted.text + wanted.metadata):
        try:
            values[index].validate(full=True)
        except pa.ArrowInvalid:
            sizes = sum(np.diff(string_bytes(values[text])[1]) for text in texts)

            def bad(
                place: int, text: bytes, error: UnicodeDecodeError, rows: Any = places, sizes: Any = sizes, name: str = column
            ) -> None:
                at = row + int(rows[place])
                detail = _undecodable(content, at, error, name)
                rejects.bad(content, at, at + 1, text, detail, "undecodable", int(sizes[place]))

            changes: Counts = Counter()
            new, kept = repaired(values[index], corpus, changes, bad)
            counts["replaced_documents"] += changes["replaced_documents"]
            counts["recoded_bytes"] += changes["recoded_bytes"] if index in texts else 0
            places, values = places[kept], take(values, kept) | {index: new}
    counts["added_bytes"] += wanted.added * len(places)
    text = wanted.join_arrays([values[index] for index in texts])
    metadata = {name: values[index] for index, name in enumerate(wanted.metadata, len(texts))}
    return without_blank(make_batch(text, content.source, places + row, places + row + 1, metadata=metadata), counts)


def _null(content: Content, row: int, column: str) -> Callable[[], PipelineError]:
    return lambda: BadRow(f"{content.name!r} row {row}: column {column!r} is null.")


def _too_long(content: Content, row: int, corpus: Corpus) -> Callable[[], PipelineError]:
    return lambda: BadRow(
        f"{content.name!r} row {row} is longer than corpus.max_document_bytes={corpus.max_document_bytes}: raise it."
    )


def _undecodable(content: Content, row: int, error: UnicodeDecodeError, column: str) -> Callable[[], PipelineError]:
    byte = error.object[error.start]
    said = f"{content.name!r} row {row}, byte {error.start + 1}: 0x{byte:02x} in {column!r} is not UTF-8."
    return lambda: BadRow(said, ADVICE)
