"""The bytes of a part, whatever they are wrapped in.

    file ──▶ [archive ──▶ member] ──▶ [decompressed] ──▶ [decoded to UTF-8] ──▶ read(position, want)

A plain file is read by position. What is compressed or lies in an archive can only be read from front to back, and
positions are those in the decompressed text. Formats that jump about in a file (Parquet, Arrow) get a temporary copy of
such a text, in memory up to 16 MiB and on the disk beyond.
"""

import codecs
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline import batches, compression
from pipeline.compression import Stream
from pipeline.config import Corpus
from pipeline.errors import InputError
from pipeline.places import File, open_file, shown
from pipeline.plan import Part, file_format, is_utf8

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD = 512  # bytes that tell compression and archives
IN_MEMORY = 16 << 20  # bytes of a temporary copy

MARKING = "pipeline.mark"  # what is to be done with bytes that are not of the encoding

Counts = Counter[str]
Read = Callable[[int, int], tuple[bytes, bool]]


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Lone surrogates in place of the bytes that cannot be decoded, so that they are not UTF-8 afterwards either."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(MARKING, _mark)


def marked(data: bytes, at: int) -> int:
    """The byte that could not be decoded, of which a mark stands at `at`."""
    return ord(data[at : at + 3].decode(errors="surrogatepass")) & 0xFF


class Opener:
    """Opens parts one after another, one file at a time; parts of one archive that follow one another in one pass."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.file: File | None = None
        self._path = ""
        self._archive: Any = None  # of archives.py
        self._second: Opener | None = None

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._second is not None:
            self._second.close()
        if self.file is not None:
            self.file.close()
        self.file, self._path, self._archive = None, "", None

    def second(self) -> "Opener":
        """Another one, which follows this one through the same parts to count their lines."""
        self._second = self._second or Opener(self.corpus)
        return self._second

    def open(self, part: Part) -> File:
        """Open the file that a part lies in. Raises OSError."""
        if self.file is None or not part.member or part.path != self._path:
            self.close()
            self.file, self._path = open_file(part.path), part.path
        return self.file

    def content(self, part: Part) -> "Content":
        """The content of the part that was opened last. Raises InputError where archive or compression are not sound."""
        file = self.file
        assert file is not None
        if not part.member:
            return Content(part, self, file)
        if self._archive is None:
            from pipeline import archives

            self._archive = archives.open_archive(file, part.stat[1] or file.stat()[1], part.path, self.corpus)
            if self._archive is None:
                raise InputError(f"{part.path!r} is no archive any more; nothing was published from it. Run again.")
        return Content(part, self, stream=self._archive.member(part.member))


class Content:
    """The decompressed bytes of a part."""

    def __init__(self, part: Part, opener: Opener, file: File | None = None, stream: Stream | None = None) -> None:
        self.part, self.opener, self.corpus = part, opener, opener.corpus
        self.name = f"{part.path}!{part.member}" if part.member else part.path
        self.source, self.start = part.source, part.start
        self.format = file_format(part.member or part.path, self.corpus)
        self.rowwise = self.format in ("parquet", "arrow")  # positions are rows, not bytes
        self._file, self._stream = file, stream
        self._waiting, self._first, self._over = b"", 0, False  # of a stream: read ahead, where that begins, all read?
        self._lines: Lines | None = None
        if not self.start:
            self._unwrap()

    def _unwrap(self) -> None:
        head = self._head()
        kind = compression.kind(head)
        if kind:
            stream = self._stream or compression.Ranged(self._plain, self.part.end)
            self._stream = compression.Decompressed(stream, kind, self.name, self.corpus, self._waiting)
            self._waiting = b""
            if self.part.end and (again := compression.kind(head := self._head())):
                raise InputError(f"{self.name!r} is compressed twice ({again} within {kind}): decompress it once.")
        if found := compression.archive(head):
            said = ": set corpus.archives=true to read its members."
            if self.part.member:
                said = " within an archive: unpack it."
            elif kind and found == "zip":  # which is read from its end
                said = f" within {kind}: decompress it first, then corpus.archives=true reads its members."
            raise InputError(f"{self.name!r} is an archive ({found}){said}")
        if self.format == "json" and self.corpus.format == "auto":  # the name says no more than JSON
            text = head.decode(self.corpus.encoding, "ignore").lstrip("\ufeff \t\r\n")
            self.format = "jsonl" if text.startswith("{") else "json"

    def _head(self) -> bytes:
        if self._stream is None:
            return self._plain.pread(min(HEAD, self.part.end), 0)
        self._waiting = self._stream.read(HEAD)
        return self._waiting

    @property
    def shown(self) -> str:
        """The name as a manifest may show it."""
        name = shown([self.part.path])[0]
        return f"{name}!{self.part.member}" if self.part.member else name

    @property
    def _plain(self) -> File:
        assert self._file is not None
        return self._file

    @property
    def plain(self) -> bool:
        """Is it a file as it lies there, in which one can jump about?"""
        return self._stream is None

    @property
    def size(self) -> int:
        """How many bytes were read of it; of a plain file, all of the part's."""
        return self.part.end - self.part.start if self.plain else self._first + len(self._waiting)

    def read(self, position: int, want: int) -> tuple[bytes, bool]:
        """At most `want` bytes from `position` on, and whether they are the last ones. Positions may only grow."""
        if self._stream is None:
            want = min(want, self.part.end - position)
            data = self._plain.pread(want, position)
            if len(data) < want:
                raise InputError(f"{self.name!r} became shorter during the run; nothing was published from it. Run again.")
            return data, position + want == self.part.end
        if position < self._first + len(self._waiting):
            self._waiting = self._waiting[position - self._first :]
        else:
            self._waiting = b""
        self._first = position
        if len(self._waiting) <= want and not self._over:  # one byte more tells whether these are the last
            missing = max(want + 1, batches.BLOCK) - len(self._waiting)
            more = self._stream.read(missing)
            self._over = len(more) < missing
            self._waiting += more
        return self._waiting[:want], self._over and len(self._waiting) <= want

    def seekable(self) -> Any:
        """A file in which one can jump about. Close it, where it is not the plain one."""
        if self._stream is None:
            return self._plain
        copy = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        data = self._waiting
        while data:
            copy.write(data)
            self._first += len(data)
            data = self._stream.read(1 << 20)
        self._waiting = b""
        copy.seek(0)
        return copy

    def line_and_byte(self, position: int) -> tuple[int, int]:
        """The line of a position and the byte within that line, both from 1; reads it again, once where positions grow."""
        if self._lines is None:
            self._lines = Lines(self)
        return self._lines.find(position)

    def as_text(self, counts: Counts) -> tuple[Read, int]:
        """How to read it as UTF-8, and the position at which its text begins, behind a byte-order mark."""
        if not is_utf8(self.corpus):
            return self._recoded(counts), 0
        top = self.read(0, 4)[0] if self.start == 0 else b""
        for mark, encoding in MARKS.items():
            if top.startswith(mark):
                looks = f"{self.name!r} looks like {encoding.upper()} (BOM {mark.hex(' ')})"
                raise InputError(f"{looks}: set corpus.encoding={encoding}, or save it as UTF-8.")
        mark = codecs.BOM_UTF8 if top.startswith(codecs.BOM_UTF8) else b""
        counts["syntax_bytes"] += len(mark)
        counts["byte_order_marks"] += bool(mark)
        return self.read, self.start + len(mark)

    def _recoded(self, counts: Counts) -> Read:
        corpus = self.corpus
        decoder = codecs.getincrementaldecoder(corpus.encoding)("replace" if corpus.errors == "replace" else MARKING)
        waiting, first, at, over = b"", 0, 0, False  # UTF-8, the position of its first byte, how far the file is read

        def read(position: int, want: int) -> tuple[bytes, bool]:
            nonlocal waiting, first, at, over
            waiting, first = waiting[position - first :], position
            while len(waiting) <= want and not over:
                data, over = self.read(at, batches.BLOCK)
                try:
                    text = decoder.decode(data, over)
                except UnicodeError as error:  # of the whole, not of a byte: there is no byte-order mark
                    raise InputError(
                        f"{self.name!r} cannot be read with corpus.encoding={corpus.encoding}: {error}."
                    ) from error
                if at == 0:
                    text = text.removeprefix("\ufeff")
                new = text.encode(errors="surrogatepass")
                counts["recoded_bytes"] += len(new) - len(data)
                waiting, at = waiting + new, at + len(data)
            return waiting[:want], over and len(waiting) <= want

        return read


class Lines:
    """Counts the lines of a content's text, reading it a second time from the beginning of the file or of the member."""

    def __init__(self, content: Content) -> None:
        part, opener = content.part, content.opener.second()
        whole = part if part.member else Part(part.source, part.path, 0, part.end, part.end, "", part.stat)
        opener.open(whole)
        again = opener.content(whole)
        self._read: Read = again.read if is_utf8(content.corpus) else again._recoded(Counter())
        self._line, self._start, self._at = 1, 0, 0

    def find(self, position: int) -> tuple[int, int]:
        """The line and the byte within it of a position, which may not be smaller than that of the last call's line."""
        while self._at < position:
            data, final = self._read(self._at, min(1 << 20, position - self._at))
            self._line += data.count(b"\n")
            last = data.rfind(b"\n")
            self._start = self._at + last + 1 if last >= 0 else self._start
            self._at += len(data)
            if final:
                break
        return self._line, position - self._start + 1
