"""The bytes of a part, whatever they are wrapped in.

    file ──▶ [archive ──▶ member] ──▶ [decompressed] ──▶ [decoded to UTF-8] ──▶ read(position, want)

A plain file is read by position. What is compressed or lies in an archive can only be read from front to back, and
positions are those in the decompressed text. Formats that jump about in a file (Parquet, Arrow) get a temporary copy of
such a text, in memory up to 16 MiB and on the disk beyond.
"""

import codecs
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pipeline import archives, compression
from pipeline.batches import BLOCK
from pipeline.config import Corpus
from pipeline.errors import InputError
from pipeline.plan import Part, file_format, is_utf8, open_file

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD = 512  # bytes that tell compression and archives
IN_MEMORY = 16 << 20  # bytes of a temporary copy

Read = Callable[[int, int], tuple[bytes, bool]]


class Opener:
    """Opens parts one after another, holding one file at a time; parts of one archive are read in one pass."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._path = ""
        self._archive: Any = None
        self.file: Any = None

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
        self._path, self._archive, self.file = "", None, None

    def open(self, part: Part) -> "Content":
        """The content of a part. Raises OSError, or InputError where its archive or compression is not sound."""
        if not (part.member and part.path == self._path):
            self.close()
            self._path, self.file = part.path, open_file(part.path)
        if not part.member:
            return Content(part, self.corpus, self.file)
        if self._archive is None:
            self._archive = archives.open_archive(self.file, part.path, self.corpus)
        return Content(part, self.corpus, stream=self._archive.member(part.member))


class Content:
    """The decompressed bytes of a part."""

    def __init__(self, part: Part, corpus: Corpus, file: Any = None, stream: Any = None) -> None:
        self.part, self.corpus = part, corpus
        self.name = f"{part.path}!{part.member}" if part.member else part.path
        self.source, self.start = part.source, part.start
        self.format = file_format(part.member or part.path, corpus)
        self._file, self._lines = file, None
        self._waiting, self._first, self._over = b"", 0, False  # of a stream: what was read ahead, where it begins
        self._stream = self._unwrapped(file, stream)
        self.bytes = 0  # of a stream, so far

    def _unwrapped(self, file: Any, stream: Any) -> Any:
        """The stream to read from; None for a plain file."""
        if self.start:
            return None
        if stream is None:
            kind = compression.kind(file.pread(HEAD, 0))
            if kind is None:
                return None
            return compression.Decompressed(compression.ahead(file, self.part.end), kind, self.name, self.corpus)
        self._waiting = stream.read(HEAD)
        if (kind := compression.kind(self._waiting)) is None:
            return stream
        head, self._waiting = self._waiting, b""
        return compression.Decompressed(compression.Joined(head, stream), kind, self.name, self.corpus)
