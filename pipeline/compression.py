"""Compressed files, known by their first bytes and never by their names, read from front to back in bounded memory.

    1f 8b 08 …  ──gzip──▶  64 KiB of the file at a time, at most so many bytes out as were asked for

Several members or frames that follow one another (`cat a.gz b.gz`, pigz, bgzip, pzstd) are one text. A file that
stops within a frame, or holds anything else behind its last one, is an error.

A few kilobytes can stand for terabytes, so growth is bounded. With `corpus.max_decompressed_bytes` no file may become
larger than that. Without it, a file that becomes larger than 64 MiB must not be more than 200 times its compressed
size; text compresses ten times at most. A zstd frame that needs a window of more than 128 MiB, or xz with a
dictionary beyond 256 MiB, is refused before the memory is taken.

gzip, bzip2, zstd and lz4 are pyarrow's, xz is Python's.
"""

import io
from typing import Any, Protocol

from pipeline.config import Corpus
from pipeline.errors import InputError, PipelineError

MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
BLOCK_MAGIC = (b"1AY&SY", b"\x17rE8P\x90")  # of bzip2 behind its level: a block, or the end
SKIPPABLE = b"\x2a\x4d\x18"  # behind one of 16 bytes: a frame of zstd or lz4 that holds no data
READ = 1 << 16  # bytes of the file at a time
RATIO, SMALL = 200, 64 << 20
XZ_MEMORY = 256 << 20


class Stream(Protocol):
    """What is read from front to back."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""


class Positioned(Protocol):
    """A file that is read by position."""

    def pread(self, size: int, position: int) -> bytes:
        """At most `size` bytes from `position` on, fewer only at the end."""


class Ranged:
    """The first `size` bytes of a file, from front to back."""

    def __init__(self, file: Positioned, size: int) -> None:
        self._file, self._size, self._position = file, size, 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        data = self._file.pread(min(size, self._size - self._position), self._position)
        self._position += len(data)
        return data


def kind(head: bytes) -> str | None:
    """How a file that begins with these bytes (ten are enough) is compressed; None where it is not.

    >>> kind(b"\\x1f\\x8b\\x08rest"), kind(b"BZh9 is no bzip2 yet"), kind(b"text")
    ('gzip', None, None)
    """
    if head[1:4] == SKIPPABLE and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return None if found == "bz2" and head[4:10] not in BLOCK_MAGIC else found


def archive(head: bytes) -> str | None:
    """What archive begins with these bytes (512 are enough): zip, tar or None.

    >>> archive(b"PK\\3\\4..."), archive(b"text")
    ('zip', None)
    """
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    return "tar" if head[257:262] == b"ustar" else None


class Decompressed:
    """What a compressed file stands for, from front to back. Raises InputError naming `name`."""

    def __init__(self, stream: Stream, kind: str, name: str, corpus: Corpus, head: bytes = b"") -> None:
        self.position = 0  # bytes given so far
        self._kind, self._name, self._corpus = kind, name, corpus
        self._raw = _Raw(stream, head)
        self._stream: Any = _Xz(self._raw) if kind == "xz" else self._arrow()

    def _arrow(self) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), self._kind)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        pieces = []
        while size and (piece := self._some(min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _some(self, size: int) -> bytes:
        try:
            data = bytes(self._stream.read(size))
        except Exception as error:  # every library has its own
            if isinstance(error, PipelineError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            said = " ".join(str(error).split())
            if "Truncated" in said:
                raise InputError(
                    f"{self._name!r} is truncated: its {self._kind} data ends in the middle, after {self._raw.position} bytes "
                    f"that make {self.position}. Get the whole file."
                ) from error
            raise InputError(
                f"{self._name!r} is damaged, or something else follows its {self._kind} data, at byte "
                f"{self._raw.position} or before: {said}."
            ) from error
        self.position += len(data)
        require_growth(self._name, self.position, self._raw.position, self._corpus)
        return data


def require_growth(name: str, size: int, packed: int, corpus: Corpus) -> None:
    """Raise InputError where `packed` bytes become more than they may; `size` is what they have become so far."""
    limit = corpus.max_decompressed_bytes
    if limit is not None and size > limit:
        raise InputError(
            f"{name!r} becomes larger than corpus.max_decompressed_bytes={limit}: raise it, or leave the file out."
        )
    if limit is None and size > max(SMALL, RATIO * packed):
        raise InputError(
            f"{name!r} becomes more than {RATIO} times larger ({size} bytes from {packed}): is it a bomb? If it is not, set "
            "corpus.max_decompressed_bytes= to what it may become."
        )


class _Raw(io.RawIOBase):
    """The compressed bytes, in order, behind those that were read already to tell what they are."""

    def __init__(self, stream: Stream, head: bytes) -> None:
        self.position, self._stream, self._head = 0, stream, head

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._head or self._stream.read(READ if size < 0 else size)
        self._head = b""
        self.position += len(data)
        return data


class _Xz:
    """The streams of an xz file, one after another; zeros between them, in fours, are padding."""

    def __init__(self, raw: _Raw) -> None:
        self._raw, self._waiting = raw, b""
        self._decoder = self._new()

    @staticmethod
    def _new() -> Any:
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder is None:
                while not (rest := self._waiting.lstrip(b"\0")) and (more := self._raw.read(READ)):
                    self._waiting = self._waiting[: len(self._waiting) % 4] + more
                if (len(self._waiting) - len(rest)) % 4:
                    raise ValueError("padding of the wrong length")
                if not rest:
                    return b""
                self._waiting, self._decoder = rest, self._new()
            if self._decoder.needs_input and not self._waiting and not (more := self._raw.read(READ)):
                raise ValueError("Truncated")
            if self._decoder.needs_input and not self._waiting:
                self._waiting = more
            data: bytes = self._decoder.decompress(self._waiting, size)
            self._waiting = b""
            if self._decoder.eof:
                self._waiting, self._decoder = self._decoder.unused_data, None
            if data:
                return data
