"""Stage `load`: a shard of source bytes becomes batches of documents.

    bytes of a part ──▶ blocks of whole records ──▶ documents (text, where from) ──▶ batches of at most 4 MiB

A batch has the columns of `SCHEMA`. A document longer than a batch spans several rows, each in a batch of its
own; `ends` is true on its last row. `source` is the file's place in the plan; `start` and `end` are the byte range
of the row's text in it (in JSONL of the document's line, in Parquet of its row; in an encoding other than UTF-8
positions count the bytes of the text as UTF-8). Batches are cut from the input alone.

What a document is. `file`: all of it, untouched but for a byte-order mark at its head. `line`: what lies between
two `\\n`, less a `\\r` before the second; nothing else ends a line, neither a lone `\\r` nor U+2028, U+0085, VT or
FF. `paragraph`: lines up to one of nothing but spaces, tabs and `\\r`, less the last line's end. A document of ASCII
white space alone is dropped and counted.

    "one\\r\\n\\r\\n two\\nlines\\n"   line: "one", " two", "lines" (and one blank one)   paragraph: "one", " two\\nlines"

Every byte is accounted for, in `counts` of `load`:

    bytes + recoded_bytes = text_bytes + dropped_blank_bytes + dropped_undecodable_bytes + syntax_bytes

`syntax_bytes` are line ends, blank lines, byte-order marks and all of JSON that is not the text; `recoded_bytes` is
what the text grew by when it became UTF-8, or when what could not be decoded became U+FFFD. In Parquet, `bytes` are
those of the column's values.

JSONL is parsed at the speed of pyarrow's parser (0.8 GB/s on one core), no Python object per line; a block that the
parser refuses is parsed again line by line, to name the line or to repair it.
"""

import codecs
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from pipeline.arrow import flags, joined, numbers, string_bytes, strings, text_bytes
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, from_os_error
from pipeline.places import File, file_stat, open_file
from pipeline.plan import Part, Plan, Shard, is_utf8, open_parquet, require_planned

log = logging.getLogger(__name__)

VERSION = 2
BLOCK = 4 << 20  # bytes of source read at a time, and most bytes of text in a batch
ORIGIN = {"source": pa.int32(), "start": pa.int64(), "end": pa.int64(), "ends": pa.bool_()}  # of rows, up to `encode`
SCHEMA = pa.schema({"text": pa.string()} | ORIGIN)
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WHITE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))  # in a document
LAST_WORD = re.compile(rb"(?s:.*)(?:(?=[ \t][^ \t-\r])|(?<=\n)(?=[^ \t-\r]))")  # up to the last word or line
NEAR = 1 << 16  # bytes in which it is looked for
SURROGATE = re.compile("[\ud800-\udfff]")
ADVICE = "Set corpus.errors=replace or skip"
BLANK = np.isin(np.arange(256), list(b" \t\r"))  # in a line between paragraphs

Counts = Counter[str]
Batches = Iterator[pa.RecordBatch]
Read = Callable[[int, int], tuple[bytes, bool]]


def identity(corpus: Corpus) -> dict[str, object]:
    """The settings that can change what `load` gives."""
    common: dict[str, object] = {"format": corpus.format, "errors": corpus.errors, "shard_bytes": corpus.shard_bytes}
    if corpus.format == "text":
        return common | {"document": corpus.document, "encoding": corpus.encoding}
    encoding = {"encoding": corpus.encoding} if corpus.format == "jsonl" else {}
    return common | encoding | {"text_column": corpus.text_column}


def load(shard: Shard, corpus: Corpus, counts: Counts, rehash: bool = False) -> Batches:
    """The documents of a shard, in batches of at most 4 MiB of text.

    `counts` gains `documents`, `nul_bytes`, `empty_files` and the bytes that the module's equation names. Raises
    InputError naming file, line and byte of what is wrong, or where a file is no longer what was planned: its
    stat is compared before and after, and its bytes are hashed again where that differs, or always with `rehash`.
    """
    for batch in _regular(_read(shard, corpus, counts, rehash)):
        counts["documents"] += batch["ends"].true_count
        counts["text_bytes"] += text_bytes(batch["text"])
        yield batch


def several_documents(shards: Iterable[Shard], corpus: Corpus) -> bool:
    """Does the corpus hold two documents or more? Reads no further than the second."""
    counts: Counts = Counter()
    return any(counts["documents"] > 1 for shard in shards for _ in load(shard, corpus, counts))


def require_documents(counts: Counts, plan: Plan) -> None:
    """Raise InputError where the `counts` of all shards together hold no document, with the reasons."""
    if not counts["documents"]:
        reasons = {
            "empty files": counts["empty_files"],
            "documents of white space alone": counts["dropped_blank_documents"],
            "undecodable documents skipped": counts["dropped_undecodable_documents"],
        }
        told = ", ".join(f"{count} {what}" for what, count in reasons.items() if count) or "nothing but separators"
        size = sum(source.bytes for source in plan.sources)
        raise InputError(f"read {len(plan.sources)} files, {size} bytes, 0 usable documents (reasons: {told}).")


def head(text: pa.StringArray, limit: int) -> pa.StringArray:
    """The rows at the head of `text` that make about `limit` bytes, the last one cut between characters."""
    data, offsets = string_bytes(text)
    rows = int(np.searchsorted(offsets, limit, "left"))
    if rows > len(text):
        return text
    stop = limit if offsets[rows] == limit else _character_border(data, limit)
    return strings(data, np.append(offsets[:rows], stop))


# -- Arrow ------------------------------------------------------------------------------------------------


def make_batch(text: pa.Array, source: int, start: np.ndarray, end: np.ndarray, ends: bool = True) -> pa.RecordBatch:
    """A batch from its columns; `start` and `end` are int64 `[rows]`, `ends` is that of every row."""
    rows = len(text)
    closes = pa.Array.from_buffers(pa.bool_(), rows, [None, pa.py_buffer((b"\xff" if ends else b"\0") * (rows // 8 + 1))])
    return pa.record_batch(
        [text, numbers(np.full(rows, source, np.int32)), numbers(start), numbers(end), closes], schema=SCHEMA
    )


def _rows(text: pa.StringArray) -> Iterator[bytes]:
    """The rows of a string array as bytes, which may not be UTF-8."""
    data, offsets = string_bytes(text)
    return (data[a:b].tobytes() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def _gather(data: bytes, starts: np.ndarray, stops: np.ndarray) -> pa.StringArray:
    """The ranges of `data`, which follow one another, as rows; one range alone is not copied."""
    edges = np.empty(2 * len(starts), np.int32)
    edges[::2], edges[1::2] = starts, stops
    rows_and_gaps = pa.StringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges), pa.py_buffer(data))
    return rows_and_gaps if len(starts) == 1 else rows_and_gaps.take(numbers(np.arange(0, len(edges), 2, dtype=np.int32)))


def _character_border(data: Any, position: int) -> int:
    """The last position at or before `position`, inside `data`, that does not cut a UTF-8 character."""
    for back in range(min(4, position + 1)):
        if data[position - back] & 0xC0 != 0x80:
            return position - back
    return max(position, 0)


def _word_border(data: Any, position: int) -> int:
    """The last position near and at or before `position`, inside `data`, where a line or a space and a word begin.

    What learns words from pieces of a document then sees none in two, and a paragraph no blank line at the head of
    a piece. Where there is no such place, a character's border.
    """
    base = max(1, position - NEAR)
    match = LAST_WORD.match(bytes(data[base : position + 1]))
    return base + match.end() if match else _character_border(data, position)


def _regular(batches: Batches) -> Batches:
    """The same rows in batches of at most BLOCK bytes; a longer document becomes rows of its own.

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
        offsets = string_bytes(batch["text"])[1]
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
            if size > BLOCK // 2:
                yield from flush()
            row = stop
    yield from flush()


def _split(batch: pa.RecordBatch) -> Batches:
    """One row as rows of at most BLOCK bytes, cut between characters; `ends` is that of the row on the last one."""
    data, _ = string_bytes(batch["text"])
    source, ends = batch["source"][0].as_py(), batch["ends"][0].as_py()
    start, end = (np.array([batch[name][0].as_py()]) for name in ("start", "end"))
    position = 0
    while position < len(data):
        stop = position + BLOCK
        stop = position + _word_border(data[position:], BLOCK) if stop < len(data) else len(data)
        text = strings(data[position:stop], np.array([0, stop - position]))
        yield make_batch(text, source, start, end, ends and stop == len(data))
        position = stop


# -- documents --------------------------------------------------------------------------------------------


def _read(shard: Shard, corpus: Corpus, counts: Counts, rehash: bool) -> Batches:
    """The documents of a shard as its reader gives them, from files that are what was planned."""
    read = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[corpus.format]
    for part in shard.parts:
        nul = size = 0
        skipped = counts["dropped_undecodable_documents"]
        try:
            with open_file(part.path) as file:
                stat = file.stat()
                if stat != part.stat:
                    require_planned(file, part, corpus)
                for batch in read(file, part, corpus, counts):
                    data, _ = string_bytes(batch["text"])
                    size += len(data)
                    nul += len(data) - int(np.count_nonzero(data))
                    yield batch
                if rehash or file.stat() != stat:
                    require_planned(file, part, corpus)
        except FileNotFoundError as error:
            raise InputError(f"{part.path!r} is gone since the run began; nothing was published from it. Run again.") from error
        except OSError as error:
            raise from_os_error(error, part.path) from error
        counts["nul_bytes"] += nul
        if nul > size / 1000:
            _warn(f"{part.path!r} holds {nul} NUL bytes in {size}: is it a binary file?")
        if skipped := counts["dropped_undecodable_documents"] - skipped:
            _warn(f"{part.path!r}: {skipped} documents from byte or row {part.start} on are not UTF-8 and were skipped.")
        if corpus.format != "parquet":
            counts["bytes"] += part.end - part.start
        if part.start == part.end:
            counts["empty_files"] += 1


@lru_cache
def _warn(message: str) -> None:
    """Warn once, however often a part is read in a run."""
    log.warning("%s", message)


def _blank(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, white: np.ndarray = WHITE) -> np.ndarray:
    """Which of the ranges of `data` hold nothing, or nothing but `white`; bool `[ranges]`."""
    lengths = stops - starts
    blank: np.ndarray = lengths == 0
    filled = np.flatnonzero(~blank)
    likely = filled[white[data[starts[filled]]] & white[data[stops[filled] - 1]]]
    blank[likely[lengths[likely] <= 2]] = True
    for row in likely[lengths[likely] > 2].tolist():
        blank[row] = white[data[starts[row] : stops[row]]].all()
    return blank


def _without_blank(batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
    data, offsets = string_bytes(batch["text"])
    blank = _blank(data, offsets[:-1], offsets[1:])
    if not blank.any():
        return batch
    _count_blank(blank, offsets[:-1], offsets[1:], counts)
    return batch.take(numbers(np.flatnonzero(~blank)))


def _count_blank(blank: np.ndarray, starts: np.ndarray, stops: np.ndarray, counts: Counts) -> None:
    counts["dropped_blank_documents"] += int(blank.sum())
    counts["dropped_blank_bytes"] += int((stops - starts)[blank].sum())


def _repair(
    rows: Iterable[bytes], errors: str, counts: Counts, fail: Callable[[int, UnicodeDecodeError], NoReturn]
) -> tuple[pa.StringArray, np.ndarray]:
    """Rows that are not all UTF-8, as `errors` says: the text, and the places of the rows that are left."""
    texts, kept = [], []
    for place, row in enumerate(rows):
        try:
            row.decode()
        except UnicodeDecodeError as error:
            if errors == "strict":
                fail(place, error)
            if errors == "skip":
                counts["dropped_undecodable_documents"] += 1
                counts["dropped_undecodable_bytes"] += len(row)
                continue
            repaired = row.decode(errors="replace").encode()
            counts["recoded_bytes"] += len(repaired) - len(row)
            counts["replaced_documents"] += 1
            row = repaired
        texts.append(row)
        kept.append(place)
    return joined(texts), np.array(kept, np.int64)


def _not_utf8(path: str, position: int, byte: int, advice: str) -> NoReturn:
    line, column = line_and_byte(path, position)
    raise InputError(f"{path!r} line {line}, byte {column}: 0x{byte:02x} is not UTF-8. {advice}, or corpus.encoding=.")


def line_and_byte(path: str, position: int) -> tuple[int, int]:
    """The line of a byte position in a file and the byte within that line, both from 1."""
    line, start, at = 1, 0, 0
    with open_file(path) as file:
        while at < position and (piece := file.read(min(1 << 20, position - at))):
            line += piece.count(b"\n")
            last = piece.rfind(b"\n")
            start = at + last + 1 if last >= 0 else start
            at += len(piece)
    return line, position - start + 1


# -- bytes of a part --------------------------------------------------------------------------------------


def _open(file: File, part: Part, corpus: Corpus, counts: Counts) -> tuple[Read, int]:
    """How to read a part as UTF-8, and the position at which its text begins, behind a byte-order mark.

    `read(position, want)` gives at most `want` bytes from `position` on and whether they are the last ones.
    Positions may only grow.
    """
    if not is_utf8(corpus):
        return _recoded(file, part, corpus, counts), part.start
    top = file.pread(4, 0) if part.start == 0 else b""
    for mark, encoding in MARKS.items():
        if top.startswith(mark):
            looks = f"{part.path!r} looks like {encoding.upper()} (BOM {mark.hex(' ')})"
            raise InputError(f"{looks}: set corpus.encoding={encoding}, or save it as UTF-8.")
    mark = codecs.BOM_UTF8 if top.startswith(codecs.BOM_UTF8) else b""
    counts["syntax_bytes"] += len(mark)
    counts["byte_order_marks"] += bool(mark)

    def read(position: int, want: int) -> tuple[bytes, bool]:
        want = min(want, part.end - position)
        data = file.pread(want, position)
        if len(data) < want:
            raise InputError(f"{part.path!r} became shorter during the run; nothing was published from it. Run again.")
        return data, position + want == part.end

    return read, part.start + len(mark)


def _recoded(file: File, part: Part, corpus: Corpus, counts: Counts) -> Read:
    decoder = codecs.getincrementaldecoder(corpus.encoding)("replace" if corpus.errors == "replace" else "strict")
    waiting, first, at = b"", 0, 0  # bytes of UTF-8, the position of the first, and how far the file is read

    def read(position: int, want: int) -> tuple[bytes, bool]:
        nonlocal waiting, first, at
        waiting, first = waiting[position - first :], position
        while len(waiting) <= want and at < part.end:
            data = file.pread(min(BLOCK, part.end - at), at)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, at + len(data) >= part.end)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{part.path!r} byte {at - held + error.start + 1}: {error.reason} in corpus.encoding={corpus.encoding}. "
                    "Set corpus.errors=replace, or the right encoding."
                ) from error
            if at == 0:
                text = text.removeprefix("\ufeff")
            new = text.encode(errors="surrogatepass")
            counts["recoded_bytes"] += len(new) - len(data)
            waiting, at = waiting + new, at + len(data)
        return waiting[:want], at >= part.end and len(waiting) <= want

    return read


def _grown(want: int, position: int, part: Part, corpus: Corpus) -> int:
    """Up to twice as many bytes, for what begins at `position` and is longer than `want`."""
    most = corpus.max_document_bytes + len(b"\r\n")
    if want >= most:
        _too_long(position, part, corpus)
    return min(2 * want, most)


def _too_long(position: int, part: Part, corpus: Corpus) -> NoReturn:
    raise InputError(
        f"{part.path!r}: what begins in line {line_and_byte(part.path, position)[0]} is longer than corpus.max_document_bytes="
        f"{corpus.max_document_bytes}: raise it, or give the text as a plain file, which is read in pieces."
    )


def _lines(data: np.ndarray, final: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Starts and stops of the whole lines of `data`, int64, and where the unfinished last one begins."""
    ends = np.flatnonzero(data == 10)
    starts = np.empty_like(ends)
    starts[:1], starts[1:] = 0, ends[:-1] + 1
    stops = ends - ((ends > starts) & (data[ends - 1] == 13))
    rest = int(ends[-1]) + 1 if len(ends) else 0
    if final and rest < len(data):
        return np.append(starts, rest), np.append(stops, len(data)), len(data)
    return starts, stops, rest


def _paragraphs(data: np.ndarray, final: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Starts and stops of the whole paragraphs of `data`, int64, and where the unfinished last one begins."""
    starts, stops, rest = _lines(data, final)
    solid = (~_blank(data, starts, stops, BLANK)).view(np.int8)
    change = np.diff(solid, prepend=0, append=0)
    first, last = np.flatnonzero(change == 1), np.flatnonzero(change == -1) - 1
    if not final and len(last) and last[-1] == len(solid) - 1:
        rest, first, last = int(starts[first[-1]]), first[:-1], last[:-1]
    return starts[first], stops[last], rest


def _whole(data: np.ndarray, final: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """The one document of a file, once its end is there."""
    size = len(data) if final else 0
    documents = min(size, 1)
    return np.zeros(documents, np.int64), np.full(documents, size), size


# -- plain text -------------------------------------------------------------------------------------------


def _read_text(file: File, part: Part, corpus: Corpus, counts: Counts) -> Batches:
    """A block holds whole documents, and the next begins where the last of them ended; or it holds a piece of one."""
    read, position = _open(file, part, corpus, counts)
    documents = {"file": _whole, "line": _lines, "paragraph": _paragraphs}[corpus.document]
    want, inside, final = BLOCK, False, False  # inside a document that did not fit a block
    while not final:
        data, final = read(position, want)
        view = np.frombuffer(data, np.uint8)
        starts, stops, rest = documents(view, final)
        if not rest and not final:
            piece = _certain(data, corpus.document)
            if not piece or (not inside and data[:piece].isspace()):
                want = _grown(want, position, part, corpus)
                continue
            starts, stops, rest = np.zeros(1, np.int64), np.full(1, piece), piece
            yield from _documents(data, starts, stops, position, part, corpus, counts, piece=True, ends=False)
            inside = True
        else:
            counts["syntax_bytes"] += rest - int((stops - starts).sum())
            if inside:
                yield from _documents(data, starts[:1], stops[:1], position, part, corpus, counts, piece=True)
                starts, stops, inside = starts[1:], stops[1:], False
            blank = _blank(view, starts, stops)
            _count_blank(blank, starts, stops, counts)
            yield from _documents(data, starts[~blank], stops[~blank], position, part, corpus, counts)
        position, want = position + rest, BLOCK


def _certain(data: bytes, unit: str) -> int:
    """How much of a block that one document fills is surely its text, one character less so that some is left.

    White space at the end may belong to a separator.
    """
    if unit == "paragraph":
        return _word_border(data, len(data.rstrip(b" \t\r\n")) - 1)
    return _word_border(data, len(data) - 1 - (unit == "line" and data.endswith(b"\r")))


def _documents(
    data: bytes, starts: np.ndarray, stops: np.ndarray, base: int, part: Part, corpus: Corpus, counts: Counts,
    piece: bool = False, ends: bool = True,
) -> Batches:  # fmt: skip
    """A batch of the ranges of `data`, whose first byte lies at `base` in the file."""
    if not len(starts):
        return
    text = _gather(data, starts, stops)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        unskippable = piece and corpus.errors == "skip"

        def fail(place: int, error: UnicodeDecodeError) -> NoReturn:
            advice = "A document this long cannot be skipped: set corpus.errors=replace" if unskippable else ADVICE
            _not_utf8(part.path, base + int(starts[place]) + error.start, error.object[error.start], advice)

        text, kept = _repair(_rows(text), "strict" if unskippable else corpus.errors, counts, fail)
        starts, stops = starts[kept], stops[kept]
    yield make_batch(text, part.source, starts + base, stops + base, ends)


# -- JSON lines -------------------------------------------------------------------------------------------


def _read_jsonl(file: File, part: Part, corpus: Corpus, counts: Counts) -> Batches:
    read, position = _open(file, part, corpus, counts)
    want, final = BLOCK, False
    while not final:
        data, final = read(position, want)
        stop = len(data) if final else data.rfind(b"\n") + 1
        if stop or final:
            batch = _parse_block(data, stop, position, part, corpus, counts)
            yield _without_blank(batch, counts)
            position, want = position + stop, BLOCK
        else:
            want = _grown(want, position, part, corpus)


def _parse_block(data: bytes, stop: int, base: int, part: Part, corpus: Corpus, counts: Counts) -> pa.RecordBatch:
    """The documents of the lines of data[:stop]."""
    view = np.frombuffer(data, np.uint8, stop)
    starts, stops, _ = _lines(view, True)
    solid = ~_blank(view, starts, stops)
    starts, stops = starts[solid], stops[solid]
    if (long := np.flatnonzero(stops - starts > corpus.max_document_bytes)).size:
        _too_long(base + int(starts[long[0]]), part, corpus)
    text, dropped = _parse_fast(data, view, starts, stops, corpus), 0
    if text is None:
        text, kept = _parse_slowly(data, starts, stops, base, part, corpus, counts)
        dropped = int((stops - starts).sum() - (stops - starts)[kept].sum())
        starts, stops = starts[kept], stops[kept]
    counts["syntax_bytes"] += stop - dropped - text_bytes(text)
    return make_batch(text, part.source, starts + base, stops + base)


def _parse_fast(data: bytes, view: np.ndarray, starts: np.ndarray, stops: np.ndarray, corpus: Corpus) -> pa.StringArray | None:
    """The text of each line by pyarrow's parser, or None where a line is not plainly one sound object.

    That parser does not look for lines: so that a row is a line, each must start with { and end with }, which
    leaves no object that spans two, and there must be as many rows as lines, which leaves no line with two.
    """
    import pyarrow.json as pj

    if not len(starts) or not ((view[starts] == ord("{")) & (view[stops - 1] == ord("}"))).all():
        return None
    try:
        block = pa.py_buffer(data).slice(0, len(view))
        strings(block, np.array([0, len(view)])).validate(full=True)  # the parser passes what is not UTF-8
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(view) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=pa.schema([(corpus.text_column, pa.string())]), unexpected_field_behavior="ignore"
            ),
        )
        text = pa.concat_arrays(table.column(0).chunks)
        text.validate(full=True)
    except pa.ArrowException:
        return None
    return text if len(text) == len(starts) and not text.null_count else None


def _parse_slowly(
    data: bytes, starts: np.ndarray, stops: np.ndarray, base: int, part: Part, corpus: Corpus, counts: Counts
) -> tuple[pa.StringArray, np.ndarray]:
    """Line by line, to name the line that is wrong, or to repair it where `corpus.errors` allows.

    Gives the text and the places of the lines that are left.
    """
    texts, kept = [], []
    for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        line = data[start:stop]
        try:
            texts.append(_parse_line(line, corpus, counts))
        except UnicodeError as error:
            if corpus.errors == "skip":
                counts["dropped_undecodable_documents"] += 1
                counts["dropped_undecodable_bytes"] += len(line)
                continue
            if isinstance(error, UnicodeDecodeError):
                _not_utf8(part.path, base + start + error.start, line[error.start], ADVICE)
            number, _ = line_and_byte(part.path, base + start)
            raise InputError(
                f"{part.path!r} line {number}: column {corpus.text_column!r} holds a lone surrogate. {ADVICE}."
            ) from error
        except (InputError, ConfigError) as error:
            torn = isinstance(error.__cause__, json.JSONDecodeError) and base + stop == file_stat(part.path)[1]
            where = f"{part.path!r} line {line_and_byte(part.path, base + start)[0]}"
            raise type(error)(f"{where}: {error}{' The file may be truncated.' if torn else ''}") from error
        kept.append(place)
    return joined(texts), np.array(kept, np.int64)


def _parse_line(line: bytes, corpus: Corpus, counts: Counts) -> bytes:
    """The text of one line. Raises UnicodeError, or InputError and ConfigError saying what is wrong with it."""
    column, replacing = corpus.text_column, corpus.errors == "replace"
    decoded = line.decode(errors="replace" if replacing else "strict")
    try:
        row = json.loads(decoded, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise InputError(f"invalid JSON (col {error.colno}): {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}.") from error
    if not isinstance(row, tuple):
        raise InputError(f"a JSON object is needed, found {_named(row)}.")
    values = [value for key, value in row if key == column]
    if not values:
        strings = [key for key, value in row if isinstance(value, str)]
        hint = f" Did you mean corpus.text_column={strings[0]}?" if strings else ""
        raise ConfigError(f"no column {column!r}; found: {', '.join(repr(key) for key, _ in row[:8])}.{hint}")
    if len(values) > 1:
        raise InputError(f"column {column!r} is given {len(values)} times.")
    if not isinstance(values[0], str):
        raise InputError(f"column {column!r} holds {_named(values[0])}, not a string.")
    text = SURROGATE.sub("\ufffd", values[0]) if replacing else values[0]
    counts["replaced_documents"] += replacing and (text != values[0] or decoded.encode() != line)
    return text.encode()


def _named(value: object) -> str:
    return "an object" if isinstance(value, tuple) else "an array" if isinstance(value, list) else json.dumps(value)[:40]


# -- Parquet ----------------------------------------------------------------------------------------------


def _read_parquet(file: File, part: Part, corpus: Corpus, counts: Counts) -> Batches:
    """The rows of a part; those before it in its first row group are decoded and passed over."""
    parquet = open_parquet(file, part.path, corpus)
    metadata = parquet.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    edges = np.cumsum([0, *(group.num_rows for group in groups)])
    first, last = int(np.searchsorted(edges, part.start, "right")) - 1, int(np.searchsorted(edges, part.end, "left"))
    rows = max(1, min(1 << 16, BLOCK * 3 // 4 * (part.end - part.start) // max(part.bytes, 1)))  # most fit a batch
    row = int(edges[first])
    try:
        for batch in parquet.iter_batches(rows, row_groups=range(first, last), columns=[corpus.text_column], use_threads=False):
            here, row = row, row + len(batch)
            begin, end = max(part.start, here), min(part.end, row)
            if begin < end:
                text = batch.column(0).slice(begin - here, end - begin)
                yield _without_blank(_checked(text, begin, part, corpus, counts), counts)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{part.path!r} is not a readable Parquet file: {' '.join(str(error).split())}") from error


def _checked(text: pa.Array, row: int, part: Part, corpus: Corpus, counts: Counts) -> pa.RecordBatch:
    """A batch of a Parquet column's values from `row` on, which must be there and be UTF-8."""
    column = corpus.text_column
    if text.null_count:
        missing = row + int(np.flatnonzero(flags(text.is_null()))[0])
        raise InputError(f"{part.path!r} row {missing}: column {column!r} is null.")
    text, places = text.cast(pa.string()), np.arange(row, row + len(text))
    counts["bytes"] += text_bytes(text)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:

        def fail(place: int, error: UnicodeDecodeError) -> NoReturn:
            byte = error.object[error.start]
            raise InputError(
                f"{part.path!r} row {row + place}, byte {error.start + 1}: 0x{byte:02x} in {column!r} is not UTF-8. {ADVICE}."
            ) from error

        text, kept = _repair(_rows(text), corpus.errors, counts, fail)
        places = places[kept]
    return make_batch(text, part.source, places, places + 1)
