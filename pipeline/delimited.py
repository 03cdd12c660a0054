"""CSV and TSV with a header line, as RFC 4180 says: a field in quotes may hold the separator, line ends, and "" for ".

    id,text⏎
    1,"Dear Hester,⏎
    the ferry was ""late""."⏎       one document, `start` and `end` are the bytes of its row

The text is read line by line (`\\n` ends one) and Python's parser takes as many lines as a row needs, so that the bytes of
each row are known. A row with more or fewer fields than the header, or with a quote in the wrong place, is a bad row.
"""

import csv
import sys
from collections.abc import Callable, Iterator

import numpy as np

from pipeline import batches
from pipeline.arrow import joined, text_bytes
from pipeline.batches import Batches, make_batch
from pipeline.columns import columns, joined_or_null, missing
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.plain_text import ADVICE, too_long, without_blank
from pipeline.rejects import Rejects

SEPARATORS = {"csv": ",", "tsv": "\t"}
MANY = 1 << 14  # rows in a batch


class _Lines:
    """The lines of a content, as the parser takes them; `position` is behind the last one that it took."""

    def __init__(self, content: Content, corpus: Corpus, counts: Counts) -> None:
        self.take, self.position = content.as_text(counts)
        self.begin = self.position  # of the row at hand
        self.raw: list[bytes] = []  # its lines
        self._content, self._corpus, self._pending = content, corpus, self._split()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._pending)
        self.raw.append(line)
        self.position += len(line)
        if self.position - self.begin > self._corpus.max_document_bytes:
            raise too_long(self.begin, self._content, self._corpus)
        return line.decode(errors="surrogateescape")

    def row(self) -> bytes:
        """The bytes of the row that the parser has just given, and begin the next one."""
        data, self.raw, self.begin = b"".join(self.raw), [], self.position
        return data

    def _split(self) -> Iterator[bytes]:
        at, size, final = self.position, 0, False
        rest: list[bytes] = []
        while not final:
            data, final = self.take(at, batches.BLOCK)
            at += len(data)
            *whole, last = data.split(b"\n")
            for line in whole:
                yield b"".join([*rest, line, b"\n"])
                rest, size = [], 0
            rest.append(last)
            size += len(last)
            if size > self._corpus.max_document_bytes:
                raise too_long(self.begin, self._content, self._corpus)
        if size:
            yield b"".join(rest)


def read(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The rows below the header."""
    csv.field_size_limit(sys.maxsize)
    wanted, lines = columns(corpus), _Lines(content, corpus, counts)
    parser = csv.reader(lines, delimiter=SEPARATORS[content.format], strict=True)
    header: list[str] | None = None
    texts: list[bytes] = []
    edges: list[tuple[int, int]] = []
    carried: list[list[str | None]] = [[] for _ in wanted.metadata]
    held = 0

    def flush() -> Batches:
        nonlocal held
        added = wanted.added * len(texts)
        text = joined(texts)
        counts["added_bytes"] += added
        counts["syntax_bytes"] += added - text_bytes(text)
        start, end = np.array(edges, np.int64).reshape(-1, 2).T
        metadata = {name: joined_or_null(rows) for name, rows in zip(wanted.metadata, carried, strict=True)}
        yield without_blank(make_batch(text, content.source, start, end, metadata=metadata), counts)
        texts.clear()
        edges.clear()
        for rows in carried:
            rows.clear()
        held = 0

    while True:
        fields, problem = None, ""
        try:
            fields = next(parser, None)
        except csv.Error as error:
            problem = str(error)
        start, raw = lines.begin, lines.row()
        if fields is None and not problem:
            break
        counts["syntax_bytes"] += len(raw)
        if header is None:
            if problem:
                raise _bad(content, start, f"{problem} in the header")()
            header = fields
            places = {name: _place(header or [], name, content, corpus) for name in wanted.all}
            continue
        if not fields and not problem:  # a blank line
            continue
        if not problem and len(fields or ()) != len(header):
            problem = f"{len(fields or ())} fields, the header has {len(header)}"
        if problem:
            counts["syntax_bytes"] -= len(raw)
            rejects.bad(content, start, lines.begin, raw, _bad(content, start, problem))
            continue
        values = [(fields or [])[places[name]].encode(errors="surrogateescape") for name in wanted.text]
        text = wanted.join(values)
        if (kept := _utf8(text, raw, start, lines.begin, content, corpus, counts, rejects)) is None:
            counts["syntax_bytes"] -= len(raw)
            continue
        texts.append(kept)
        edges.append((start, start + len(raw.rstrip(b"\r\n"))))
        for name, rows in zip(wanted.metadata, carried, strict=True):
            rows.append((fields or [])[places[name]].encode(errors="surrogateescape").decode(errors="replace"))
        held += len(kept)
        if held >= batches.BLOCK or len(texts) >= MANY:
            yield from flush()
    if texts:
        yield from flush()


def _place(header: list[str], name: str, content: Content, corpus: Corpus) -> int:
    if header.count(name) > 1:
        raise InputError(f"{content.name!r}: column {name!r} is given {header.count(name)} times in the header.")
    if name not in header:
        raise ConfigError(f"{content.name!r} line 1: {missing(name, [repr(one) for one in header], header[:0], corpus)}")
    return header.index(name)


def _utf8(
    text: bytes, raw: bytes, start: int, end: int, content: Content, corpus: Corpus, counts: Counts, rejects: Rejects
) -> bytes | None:
    """The text where it is UTF-8, or as `corpus.errors` says; None where the row is left out."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        if corpus.errors == "strict":
            line = _bad(content, start, f"0x{byte:02x} is not UTF-8. {ADVICE}, or corpus.encoding=", advice="")
            rejects.bad(content, start, end, raw, line, "undecodable")
            return None
        new = text.decode(errors="replace").encode()
        counts["recoded_bytes"] += len(new) - len(text)
        counts["syntax_bytes"] += len(new) - len(text)
        counts["replaced_documents"] += 1
        return new
    return text


def _bad(
    content: Content, start: int, problem: str, advice: str = " Set corpus.on_bad_row=skip to leave such rows out."
) -> Callable[[], PipelineError]:
    return lambda: InputError(f"{content.name!r} line {content.line_and_byte(start)[0]}: {problem}.{advice}")
