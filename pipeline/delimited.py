"""CSV and TSV with a header line, as RFC 4180 says: a field in quotes may hold the separator, line ends, and "" for ".

    id,text⏎
    1,"Dear Hester,⏎
    the ferry was ""late""."⏎       one document, `start` and `end` are the bytes of its row

The text is read line by line (`\\n` ends one) and Python's parser takes as many lines as a row needs, so that the bytes of
each row are known. A row with more or fewer fields than the header, or with a quote in the wrong place, is a bad row, and so
is one that is not UTF-8, whatever columns are read.
"""

import csv
import sys
from collections.abc import Callable, Iterator

import numpy as np

from pipeline import batches
from pipeline.arrow import joined, joined_or_null, text_bytes
from pipeline.batches import Batches, make_batch
from pipeline.columns import columns, missing
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.plain_text import not_utf8, too_long, without_blank
from pipeline.rejects import BadRow, Rejects

SEPARATORS = {"csv": ",", "tsv": "\t"}
MANY = 1 << 14  # rows in a batch
LONE = r"a lone carriage return (\r) outside of quotes; make it \n, which alone ends a line"


class _Lines:
    """The lines of a content, as the parser takes them; `position` is behind the last one that it took."""

    def __init__(self, content: Content, corpus: Corpus, counts: Counts) -> None:
        self.take, self.position = content.as_text(counts)
        self.begin = self.position  # of the row at hand
        self.raw: list[bytes] = []  # its lines
        self.wrong: int | None = None  # where in the row its first byte lies that is not UTF-8
        self.grown = 0  # bytes that the row has more where such bytes are replaced
        self._content, self._corpus, self._pending = content, corpus, self._split()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._pending)
        self.raw.append(line)
        at, self.position = self.position - self.begin, self.position + len(line)
        if self.position - self.begin > self._corpus.max_document_bytes:
            raise too_long(self.begin, self._content, self._corpus)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.wrong = at + error.start if self.wrong is None else self.wrong
            text = line.decode(errors="replace")
            self.grown += len(text.encode()) - len(line)
            return text

    def row(self) -> tuple[bytes, int | None, int]:
        """The bytes of the row that the parser has just given, `wrong` and `grown`; and begin the next one."""
        data = b"".join(self.raw), self.wrong, self.grown
        self.raw, self.wrong, self.grown, self.begin = [], None, 0, self.position
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
    carried: list[list[bytes | None]] = [[] for _ in wanted.metadata]
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
            problem = LONE if str(error).startswith("new-line character") else str(error)
        start, (raw, wrong, grown) = lines.begin, lines.row()
        if fields is None and not problem:
            break
        counts["syntax_bytes"] += len(raw)
        if not fields and not problem:  # a blank line
            continue
        if header is None:
            if problem:
                raise InputError(f"{content.name!r} line {content.line_and_byte(start)[0]}: {problem} in the header.")
            if wrong is not None and corpus.errors == "strict":
                raise not_utf8(content, start, raw, wrong, "Set corpus.errors=replace")()
            counts.update(recoded_bytes=grown, syntax_bytes=grown)
            header = fields or []
            places = {name: _place(header, name, start, content, corpus) for name in wanted.all}
            continue
        if not problem and len(fields or ()) != len(header):
            problem = f"{len(fields or ())} fields, the header has {len(header)}"
        if problem:
            counts["syntax_bytes"] -= len(raw)
            rejects.bad(content, start, lines.begin, raw, _bad(content, start, problem))
            continue
        if wrong is not None:
            if corpus.errors == "strict":
                counts["syntax_bytes"] -= len(raw)
                rejects.bad(content, start, lines.begin, raw, not_utf8(content, start, raw, wrong), "undecodable")
                continue
            counts.update(replaced_documents=1, recoded_bytes=grown, syntax_bytes=grown)
        values = {name: (fields or [])[place].encode() for name, place in places.items()}
        texts.append(wanted.join([values[name] for name in wanted.text]))
        edges.append((start, start + len(raw.rstrip(b"\r\n"))))
        for name, rows in zip(wanted.metadata, carried, strict=True):
            rows.append(values[name])
        held += len(texts[-1]) + sum(len(values[name]) for name in wanted.metadata)
        if held >= batches.BLOCK or len(texts) >= MANY:
            yield from flush()
    if texts:
        yield from flush()


def _place(header: list[str], name: str, start: int, content: Content, corpus: Corpus) -> int:
    if header.count(name) > 1:
        raise InputError(f"{content.name!r}: column {name!r} is given {header.count(name)} times in the header.")
    if name not in header:
        line, _ = content.line_and_byte(start)
        raise ConfigError(f"{content.name!r} line {line}: {missing(name, [repr(one) for one in header], header[:0], corpus)}")
    return header.index(name)


def _bad(content: Content, start: int, problem: str) -> Callable[[], PipelineError]:
    return lambda: BadRow(f"{content.name!r} line {content.line_and_byte(start)[0]}: {problem}.")
