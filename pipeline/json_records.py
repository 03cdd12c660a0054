"""JSON: an object a line (JSONL, NDJSON), or all of them in one array.

    {"id": 1, "text": "a"}⏎          [ {"id": 1, "text": "a"} ,            start and end of a document are
    {"id": 2, "text": "b"}⏎            {"id": 2, "text": "b"} ]            those of its object

A block of whole objects is parsed at the speed of pyarrow's parser (0.8 GB/s on one core), no Python object per line;
a block that the parser refuses is parsed again object by object by Python's parser, to name the one that is wrong, or to leave
it out. An object that only one of the two takes is sound, so that what becomes of it depends on no other: in a column that is
not read there may be arrays 3,000 deep, numbers of 5,000 digits, and Inf, which Python refuses, or lone surrogates and 1e999,
which pyarrow does. A key that is given twice is an error where it is read.

An array is cut into its elements without being parsed, a block at a time, so that it may be of any length:

    bytes            [ { " a , \\ " ] " : 1 } , { … } ]
    in a string          x x x  x x
    depth            0 1 1               1 0       0 -1      a comma at depth 0 ends an element, depth -1 the array
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import batches
from pipeline.arrow import joined, joined_or_null, strings, text_bytes
from pipeline.batches import Batches, blank_ranges, make_batch, row_bytes
from pipeline.columns import MISSING, Columns, as_metadata, columns, find_field, look_up, missing, take_column
from pipeline.config import Corpus
from pipeline.content import Content, Counts, Read
from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.plain_text import ADVICE, grown, lines, not_utf8, too_long, without_blank
from pipeline.rejects import BadRow, Rejects

SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = np.isin(np.arange(256), list(b" \t\r\n"))  # between the parts of JSON
STEP = np.zeros(256, np.int8)  # what a bracket does to the depth
STEP[list(b"[{")], STEP[list(b"]}")] = 1, -1
STRUCTURE = (STEP != 0) | (np.arange(256) == ord(","))


class Found(NamedTuple):
    """Records of a block: their text, their metadata, and which of the ranges they are."""

    text: pa.StringArray
    metadata: dict[str, pa.Array]
    places: np.ndarray | None  # None: all


# -- lines ------------------------------------------------------------------------------------------------


def read_lines(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """An object a line."""
    take, position = content.as_text(counts)
    want, final = batches.BLOCK, False
    while not final:
        data, final = take(position, want)
        stop = len(data) if final else data.rfind(b"\n") + 1
        if stop or final:
            view = np.frombuffer(data, np.uint8, stop)
            starts, stops, _ = lines(view, True)
            yield _block(data, view, starts, stops, position, final, content, corpus, counts, rejects)
        elif rejects.skipping and want > corpus.max_document_bytes:
            stop = _pass_over(take, position, data, content, counts, rejects, too_long(position, content, corpus))
        else:
            want = grown(want, position, content, corpus)
            continue
        position, want = position + stop, batches.BLOCK


def _pass_over(
    take: Read, position: int, data: bytes, content: Content, counts: Counts, rejects: Rejects, error: PipelineError
) -> int:
    """Reject a line that is too long to be held; returns its length. What follows it is left to be read."""
    size, final, head = len(data), False, data[:1000]
    while not final:
        data, final = take(position + size, batches.BLOCK)
        at = data.find(b"\n")
        size += at if at >= 0 else len(data)
        if at >= 0:
            break
    rejects.bad(content, position, position + size, head, _given(error), size=size)
    return size


# -- an array ---------------------------------------------------------------------------------------------


def read_array(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The objects of one array."""
    take, position = content.as_text(counts)
    position, data, final = _solid(take, position, counts)
    if not data and final:
        return
    if not data.startswith(b"["):
        hint = ": set corpus.format=jsonl, if each line is an object" if data.startswith(b"{") else ""
        line, _ = content.line_and_byte(position)
        raise InputError(
            f"{content.name!r} line {line}: an array is needed, found {data[:1].decode(errors='replace')!r}{hint}."
        )
    position, want, first = position + 1, batches.BLOCK, True
    counts["syntax_bytes"] += 1
    while True:
        data, final = take(position, want)
        view = np.frombuffer(data, np.uint8)
        starts, stops, rest, closed = _elements(view)
        if not rest and not closed:
            if final:
                line, _ = content.line_and_byte(position)
                raise InputError(
                    f"{content.name!r} line {line}: the array is not closed behind what begins here. The file may be truncated."
                )
            want = grown(want, position, content, corpus)
            continue
        empty = starts == stops
        if first and closed and len(starts) == 1 and empty[0]:
            starts, stops, empty = starts[:0], stops[:0], empty[:0]
        if empty.any():
            line, column = content.line_and_byte(position + int(starts[empty][0]))
            raise InputError(f"{content.name!r} line {line}, byte {column}: invalid JSON: a comma with nothing beside it.")
        yield _block(data, view[:rest], starts, stops, position, False, content, corpus, counts, rejects)
        position, want, first = position + rest, batches.BLOCK, False
        if closed:
            break
    position, data, final = _solid(take, position, counts)
    if data:
        line, column = content.line_and_byte(position)
        raise InputError(f"{content.name!r} line {line}, byte {column}: something follows the array.")


def _solid(take: Read, position: int, counts: Counts) -> tuple[int, bytes, bool]:
    """The next position that holds more than white space, what stands there, and whether that is all there is."""
    while True:
        data, final = take(position, 1 << 16)
        solid = data.lstrip(b" \t\r\n")
        position += len(data) - len(solid)
        counts["syntax_bytes"] += len(data) - len(solid)
        if solid or final:
            return position, solid, final


def _elements(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """The whole elements of an array, of which `data` is a piece that begins with one.

    Starts and stops, int64, without the white space around; how much of `data` they take, with the comma or the
    bracket behind the last; and whether that bracket is the array's.
    """
    slashes = np.flatnonzero(data == ord("\\"))
    begins = np.diff(slashes, prepend=-2) != 1  # of several in a row every second one is escaped itself
    runs = np.maximum.accumulate(np.where(begins, slashes, 0))
    escaped = np.zeros(len(data) + 1, bool)
    escaped[slashes[(slashes - runs) % 2 == 0] + 1] = True
    quotes = np.flatnonzero((data == ord('"')) & ~escaped[:-1])
    marks = np.flatnonzero(STRUCTURE[data])
    marks = marks[np.searchsorted(quotes, marks) % 2 == 0]
    depth = np.cumsum(STEP[data[marks]], dtype=np.int64)
    over = np.flatnonzero(depth < 0)[:1]
    limit = int(over[0]) if over.size else len(marks)
    ends = marks[:limit][(depth[:limit] == 0) & (data[marks[:limit]] == ord(","))]
    closed = bool(over.size)
    if closed:
        ends = np.append(ends, marks[limit])
    starts = np.append(np.zeros(1, np.int64), ends[:-1] + 1) if len(ends) else np.zeros(0, np.int64)
    stops, rest = ends.copy(), int(ends[-1]) + 1 if len(ends) else 0
    for edges, inner, step in ((starts, 0, 1), (stops, -1, -1)):
        while (loose := (starts < stops) & SPACE[data[np.minimum(edges + inner, len(data) - 1)]]).any():
            edges[loose] += step
    return starts, stops, rest, closed


# -- records ----------------------------------------------------------------------------------------------


def _block(
    data: bytes, view: np.ndarray, starts: np.ndarray, stops: np.ndarray, base: int, final: bool, content: Content,
    corpus: Corpus, counts: Counts, rejects: Rejects,
) -> pa.RecordBatch:  # fmt: skip
    """The documents of the objects that lie in these ranges of the block `view` of `data`."""
    solid = ~blank_ranges(view, starts, stops)
    starts, stops = starts[solid], stops[solid]
    wanted, dropped = columns(corpus), 0
    if (long := np.flatnonzero(stops - starts > corpus.max_document_bytes)).size:
        for place in long.tolist() if rejects.skipping else long[:1].tolist():
            start, stop = int(starts[place]), int(stops[place])
            error = too_long(base + start, content, corpus)
            rejects.bad(content, base + start, base + stop, data[start:stop], _given(error))
            dropped += stop - start
        short = stops - starts <= corpus.max_document_bytes
        starts, stops = starts[short], stops[short]
    found = _parse_fast(data, view, starts, stops, wanted, lines=content.format == "jsonl")
    if found is None:
        found = _parse_slowly(data, starts, stops, base, final, content, corpus, counts, rejects)
        lengths = stops - starts
        dropped += int(lengths.sum() - lengths[found.places].sum())
        starts, stops = starts[found.places], stops[found.places]
    added = wanted.added * len(found.text)
    counts["added_bytes"] += added
    counts["syntax_bytes"] += len(view) - dropped - text_bytes(found.text) + added
    return without_blank(make_batch(found.text, content.source, starts + base, stops + base, metadata=found.metadata), counts)


def _given(error: PipelineError) -> Callable[[], PipelineError]:
    return lambda: error


def _parse_fast(
    data: bytes, view: np.ndarray, starts: np.ndarray, stops: np.ndarray, wanted: Columns, lines: bool
) -> Found | None:
    """The records by pyarrow's parser, or None where one of them is not plainly one sound object.

    That parser does not look for lines: so that a row is a line, each must start with { and end with }, which
    leaves no object that spans two, and there must be as many rows as lines, which leaves no line with two.
    """
    import pyarrow.json as pj

    if not len(starts) or not ((view[starts] == ord("{")) & (view[stops - 1] == ord("}"))).all():
        return None
    if any(key in data for key in _with_dots(wanted.all)):
        return None
    try:
        block = pa.py_buffer(data).slice(0, len(view))
        strings(block, np.array([0, len(view)])).validate(full=True)  # the parser passes what is not UTF-8
        if not lines:
            block = pa.py_buffer(b"\n".join([data[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]))
        schema = _schema(wanted.all)
        if schema is None:
            return None
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=not lines
            ),
        )
        rows = table.to_batches()
        if len(rows) != 1 or len(rows[0]) != len(starts):
            return None
        found = {name: take_column(rows[0], find_field(schema, name) or ()) for name in wanted.all}
        for column in found.values():
            column.validate(full=True)
        if any(found[name].null_count for name in wanted.text):
            return None
    except pa.ArrowException:
        return None
    return Found(
        wanted.join_arrays([found[name] for name in wanted.text]), {name: found[name] for name in wanted.metadata}, None
    )


@lru_cache
def _with_dots(names: tuple[str, ...]) -> tuple[bytes, ...]:
    """Keys that have a dot in their very name and lie on these paths, which pyarrow's parser does not look for, as JSON.

    >>> _with_dots(("a.b.c", "d"))
    (b'"a.b"', b'"a.b.c"', b'"b.c"')
    """
    paths = [name.split(".") for name in names]
    found = {".".join(path[low:high]) for path in paths for low in range(len(path)) for high in range(low + 2, len(path) + 1)}
    return tuple(json.dumps(name, ensure_ascii=False).encode() for name in sorted(found))


@lru_cache
def _schema(names: tuple[str, ...]) -> pa.Schema | None:
    """The schema of strings at these dotted paths; None where one path leads through another."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        *above, last = name.split(".")
        for part in above:
            node = node.setdefault(part, {})
            if node is None:
                return None
        if last in node:
            return None
        node[last] = None

    def kind(node: dict[str, Any] | None) -> pa.DataType:
        return pa.string() if node is None else pa.struct([(name, kind(inner)) for name, inner in node.items()])

    return pa.schema([(name, kind(inner)) for name, inner in tree.items()])


def _parse_slowly(
    data: bytes, starts: np.ndarray, stops: np.ndarray, base: int, final: bool, content: Content, corpus: Corpus,
    counts: Counts, rejects: Rejects,
) -> Found:  # fmt: skip
    """Object by object, to name the one that is wrong, or to leave it out."""
    wanted = columns(corpus)
    texts: list[bytes] = []
    kept: list[int] = []
    metadata: dict[str, list[bytes | None]] = {name: [] for name in wanted.metadata}
    for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        row = data[start:stop]
        try:
            text, carried = _parse_row(row, wanted, corpus, counts)
        except (UnicodeError, InputError, ConfigError) as error:
            if (alone := _parse_alone(row, wanted, content)) is None:
                torn = final and stop == len(data)
                kind = "undecodable" if isinstance(error, UnicodeError) else "bad"
                detail = _detail(error, row, base + start, torn, content)
                rejects.bad(content, base + start, base + stop, row, detail, kind)
                continue
            text, carried = alone
        texts.append(text)
        kept.append(place)
        for name, value in zip(wanted.metadata, carried, strict=True):
            metadata[name].append(value)
    return Found(joined(texts), {name: joined_or_null(rows) for name, rows in metadata.items()}, np.array(kept, np.int64))


def _parse_alone(row: bytes, wanted: Columns, content: Content) -> tuple[bytes, list[bytes | None]] | None:
    """What the fast parser makes of one object, as if it were a block."""
    view, end = np.frombuffer(row, np.uint8), np.array([len(row)])
    found = _parse_fast(row, view, np.zeros(1, np.int64), end, wanted, lines=content.format == "jsonl")
    if found is None:
        return None
    carried = [column[0].as_py() for column in found.metadata.values()]
    return next(row_bytes(found.text)), [None if value is None else value.encode() for value in carried]


def _detail(error: Exception, row: bytes, position: int, torn: bool, content: Content) -> Callable[[], PipelineError]:
    """The error for a person, made only where it is needed: to tell the line, the file is read again."""
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(content, position, row, error.start)

    def detail() -> PipelineError:
        line, _ = content.line_and_byte(position)
        where, said = f"{content.name!r} line {line}", str(error)
        if isinstance(error, UnicodeError):
            return BadRow(f"{where}: {said}", ADVICE)
        if isinstance(error, InputError):
            if torn and isinstance(error.__cause__, json.JSONDecodeError):
                said += " The file may be truncated."
            elif content.format == "jsonl" and row[:1] == b"[" and line == 1:
                said += " If the file is one array, set corpus.format=json."
            elif content.format == "jsonl" and row.strip() == b"{" and line == 1:
                said += " If the objects span lines, make it an array and set corpus.format=json."
            return BadRow(f"{where}: {said}")
        return ConfigError(f"{where}: {said}")

    return detail


def _parse_row(row: bytes, wanted: Columns, corpus: Corpus, counts: Counts) -> tuple[bytes, list[bytes | None]]:
    """The text and the metadata of one object. Raises UnicodeError, or InputError and ConfigError saying what is wrong."""
    replacing = corpus.errors == "replace"
    decoded = row.decode(errors="replace" if replacing else "strict")
    try:
        pairs = json.loads(decoded, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise InputError(f"invalid JSON (col {error.colno}): {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}.") from error
    if not isinstance(pairs, tuple):
        raise InputError(f"a JSON object is needed, found {_named(pairs)}.")
    changed = decoded.encode() != row if replacing else False

    def encoded(name: str, value: str) -> bytes:
        nonlocal changed
        if replacing:
            text = SURROGATE.sub("\ufffd", value)
            changed, value = changed or text != value, text
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise UnicodeError(f"column {name!r} holds a lone surrogate.") from error

    texts = []
    for name in wanted.text:
        value = look_up(pairs, name)
        if value is MISSING:
            raise missing(
                name, [repr(key) for key, _ in pairs], [key for key, inner in pairs if isinstance(inner, str)], corpus
            )
        if not isinstance(value, str):
            raise InputError(f"column {name!r} holds {_named(value)}, not a string.")
        texts.append(encoded(name, value))
    carried = []
    for name in wanted.metadata:
        try:
            words = as_metadata(look_up(pairs, name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"column {name!r} holds what cannot be written as JSON again.") from error
        carried.append(None if words is None else encoded(name, words))
    counts["replaced_documents"] += changed
    return wanted.join(texts), carried


def _named(value: object) -> str:
    return "an object" if isinstance(value, tuple) else "an array" if isinstance(value, list) else json.dumps(value)[:40]
