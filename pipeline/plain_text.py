"""Plain text and Markdown: where documents begin and end.

`file`: all of it, untouched but for a byte-order mark at its head. `line`: what lies between two `\\n`, less a `\\r`
before the second; nothing else ends a line, neither a lone `\\r` nor U+2028, U+0085, VT or FF. `paragraph`: lines up to
one of nothing but spaces, tabs and `\\r`, less the last line's end. A document of ASCII white space alone is dropped and
counted.

    "one\\r\\n\\r\\n two\\nlines\\n"   line: "one", " two", "lines" (and one blank one)   paragraph: "one", " two\\nlines"

A document larger than a block passes in pieces, so that one of any size needs no more memory.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipeline import batches
from pipeline.arrow import flags, joined_or_null, numbers, string_bytes
from pipeline.batches import Batches, blank_ranges, gather, make_batch, row_bytes, word_border
from pipeline.config import Corpus
from pipeline.content import Content, Counts, marked
from pipeline.errors import InputError
from pipeline.plan import is_utf8
from pipeline.rejects import BadRow, Rejects

UNSKIPPED = "A document this long cannot be skipped: set corpus.errors=replace"
BLANK = np.isin(np.arange(256), list(b" \t\r"))  # in a line between paragraphs
ADVICE = "Set corpus.errors=replace or corpus.on_bad_row=skip."


def read(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """A block holds whole documents, and the next begins where the last of them ended; or it holds a piece of one."""
    take, position = content.as_text(counts)
    documents = {"file": _whole, "line": lines, "paragraph": _paragraphs}[corpus.document]
    want, inside, final = batches.BLOCK, False, False  # inside a document that did not fit a block
    while not final:
        data, final = take(position, want)
        view = np.frombuffer(data, np.uint8)
        starts, stops, rest = documents(view, final)
        if not rest and not final:
            piece = _certain(data, corpus.document)
            if not piece or (not inside and data[:piece].isspace()):
                want = grown(want, position, content, corpus)
                continue
            starts, stops, rest = np.zeros(1, np.int64), np.full(1, piece), piece
            yield from _documents(data, starts, stops, position, content, corpus, counts, rejects, piece=True, ends=False)
            inside = True
        else:
            counts["syntax_bytes"] += rest - int((stops - starts).sum())
            if inside:
                yield from _documents(data, starts[:1], stops[:1], position, content, corpus, counts, rejects, piece=True)
                starts, stops, inside = starts[1:], stops[1:], False
            blank = blank_ranges(view, starts, stops)
            count_blank(blank, starts, stops, counts)
            yield from _documents(data, starts[~blank], stops[~blank], position, content, corpus, counts, rejects)
        position, want = position + rest, batches.BLOCK


def _certain(data: bytes, unit: str) -> int:
    """How much of a block that one document fills is surely its text, one character less so that some is left.

    White space at the end may belong to a separator.
    """
    if unit == "paragraph":
        return word_border(data, len(data.rstrip(b" \t\r\n")) - 1)
    return word_border(data, len(data) - 1 - (unit == "line" and data.endswith(b"\r")))


def _documents(
    data: bytes, starts: np.ndarray, stops: np.ndarray, base: int, content: Content, corpus: Corpus, counts: Counts,
    rejects: Rejects, piece: bool = False, ends: bool = True,
) -> Batches:  # fmt: skip
    """A batch of the ranges of `data`, whose first byte lies at `base` in the file."""
    if not len(starts):
        return
    text = gather(data, starts, stops)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:

        def bad(place: int, row: bytes, error: UnicodeDecodeError) -> None:
            detail = not_utf8(content, base + int(starts[place]), row, error.start, *[UNSKIPPED] * piece)
            if piece:
                raise detail()
            rejects.bad(content, base + int(starts[place]), base + int(stops[place]), row, detail, "undecodable")

        text, kept = repaired(text, corpus, counts, bad)
        starts, stops = starts[kept], stops[kept]
    metadata = {name: pa.nulls(len(text), pa.string()) for name in corpus.metadata}  # where other files have columns
    yield make_batch(text, content.source, starts + base, stops + base, ends, metadata)


def lines(data: np.ndarray, final: bool) -> tuple[np.ndarray, np.ndarray, int]:
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
    starts, stops, rest = lines(data, final)
    solid = (~blank_ranges(data, starts, stops, BLANK)).view(np.int8)
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


# -- what other formats of text need too ------------------------------------------------------------------


def repaired(
    text: pa.StringArray, corpus: Corpus, counts: Counts, bad: Callable[[int, bytes, UnicodeDecodeError], None]
) -> tuple[pa.StringArray, np.ndarray]:
    """Rows that are not all UTF-8, as `corpus.errors` says: the text, and the places of the rows that are left.

    `bad(place, row, error)` is told of those that are not, where they are not to be replaced.
    """
    texts: list[bytes | None] = []
    kept, null = [], flags(text.is_null())
    for place, row in enumerate(row_bytes(text)):
        try:
            row.decode()
        except UnicodeDecodeError as error:
            if corpus.errors == "strict":
                bad(place, row, error)
                continue
            new = row.decode(errors="replace").encode()
            counts["recoded_bytes"] += len(new) - len(row)
            counts["replaced_documents"] += 1
            row = new
        texts.append(None if null[place] else row)
        kept.append(place)
    return joined_or_null(texts), np.array(kept, np.int64)


def not_utf8(
    content: Content, position: int, data: bytes, at: int, advice: str = "Set corpus.errors=replace, corpus.on_bad_row=skip"
) -> Callable[[], InputError]:
    """What makes the error for the byte at `at` of `data`, which begins at `position`, where it cannot be decoded."""

    def detail() -> InputError:
        line, column = content.line_and_byte(position + at)
        if is_utf8(content.corpus):
            said = f"byte {column}: 0x{data[at]:02x} is not UTF-8"
        else:
            said = f"byte {column} as UTF-8: 0x{marked(data, at):02x} is not {content.corpus.encoding}"
        return BadRow(f"{content.name!r} line {line}, {said}.", f"{advice}, or corpus.encoding=.")

    return detail


def grown(want: int, position: int, content: Content, corpus: Corpus) -> int:
    """Up to twice as many bytes, for what begins at `position` and is longer than `want`."""
    most = corpus.max_document_bytes + len(b"\r\n")
    if want >= most:
        raise too_long(position, content, corpus)
    return min(2 * want, most)


def too_long(position: int, content: Content, corpus: Corpus) -> InputError:
    """The error for what begins at `position` and cannot be held in one."""
    return InputError(
        f"{content.name!r}: what begins in line {content.line_and_byte(position)[0]} is longer than corpus.max_document_bytes="
        f"{corpus.max_document_bytes}: raise it, or give the text as a plain file, which is read in pieces."
    )


def without_blank(batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
    """The rows of a batch that are more than white space."""
    data, offsets = string_bytes(batch["text"])
    blank = blank_ranges(data, offsets[:-1], offsets[1:])
    if not blank.any():
        return batch
    count_blank(blank, offsets[:-1], offsets[1:], counts)
    return batch.take(numbers(np.flatnonzero(~blank)))


def count_blank(blank: np.ndarray, starts: np.ndarray, stops: np.ndarray, counts: Counts) -> None:
    """Count the ranges that are dropped since they are blank."""
    counts["dropped_blank_documents"] += int(blank.sum())
    counts["dropped_blank_bytes"] += int((stops - starts)[blank].sum())
