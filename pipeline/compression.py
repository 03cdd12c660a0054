"""Compressed files, known by their first bytes and never by their names, read from front to back in bounded memory.

    1f 8b 08 …  ──gzip──▶  64 KiB of the file at a time, at most so many bytes out as were asked for

Several members or frames that follow one another (`cat a.gz b.gz`, pigz, bgzip, pzstd) are one text. A file that
stops within a frame, or holds anything else behind its last one, is an error.

A few kilobytes can stand for terabytes, so growth is bounded. With `corpus.max_decompressed_bytes` no file may become
larger than that. Without it, a file that becomes larger than 32 MiB must not be more than 200 times its compressed
size; text compresses ten times at most. A zstd frame that needs a window of more than 128 MiB, or xz with a
dictionary beyond 256 MiB, is refused before the memory is taken.

bzip2, zstd, lz4 and brotli are pyarrow's, gzip, deflate and xz are Python's, which tells where a member ends: zeros may
follow as padding. Brotli and deflate have no first bytes of their own: the answers in a WARC say where they are used.
"""

import io
import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.config import Corpus
from pipeline.errors import InputError, PipelineError

LZ4 = b"\x04\x22\x4d\x18"
MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    LZ4: "lz4",
}
BLOCK_MAGIC = (b"1AY&SY", b"\x17rE8P\x90")  # of bzip2 behind its level: a block, or the end
SKIPPABLE = b"\x2a\x4d\x18"  # behind one of 16 bytes: a frame of zstd or lz4 that holds no data
READ = 1 << 16  # bytes of the file at a time
RATIO, SMALL = 200, 32 << 20  # times; bytes up to which nothing is called a bomb
XZ_MEMORY = 256 << 20
WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS, "deflate": -zlib.MAX_WBITS}  # what zlib takes for each


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
    """How a file that begins with these bytes is compressed; None where it is not. Ten are enough to know that it is.

    >>> kind(b"\\x1f\\x8b\\x08rest"), kind(b"BZh9 is no bzip2 yet"), kind(b"text")
    ('gzip', None, None)
    """
    behind = head
    while behind[1:4] == SKIPPABLE and 0x50 <= behind[0] <= 0x5F:
        behind = behind[8 + int.from_bytes(behind[4:8], "little") :]
    if len(behind) < len(head):
        return "lz4" if behind.startswith(LZ4) else "zstd"
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return None if found == "bz2" and head[4:10] not in BLOCK_MAGIC else found


def archive(head: bytes) -> str | None:
    """What archive begins with these bytes (512 are enough): zip, tar or None.

    >>> archive(b"PK\\3\\4..."), archive(b"text")
    ('zip', None)
    """
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    return "tar" if head[257:262] == b"ustar" or _is_old_tar(head[:512]) else None


def _is_old_tar(head: bytes) -> bool:
    """Is it the header of a member as tar wrote it before POSIX (Unix v7)? Such a one has no mark but its checksum: in bytes
    148 to 155, in octal digits with a NUL behind them, the sum of all bytes, these eight taken for spaces.
    """
    digits, nul, _ = head[148:156].partition(b"\0")
    if len(head) < 512 or not nul or not re.fullmatch(rb" *[0-7]+ *", digits):
        return False
    return int(digits, 8) == sum(head) - sum(head[148:156]) + 8 * ord(" ")


class DamagedData(InputError):
    """Compressed data that cannot be undone."""


class Decompressed:
    """What a compressed file stands for, from front to back. Raises InputError naming `name`."""

    def __init__(self, stream: Stream, kind: str, name: str, corpus: Corpus, head: bytes = b"") -> None:
        self.position = 0  # bytes given so far
        self._kind, self._name, self._corpus = kind, name, corpus
        self._raw = _Raw(stream, head)
        self._stream = self._open()

    def _open(self) -> Any:
        if self._kind in WINDOW:
            return _Members(self._raw, lambda: _Zlib(WINDOW[self._kind]), 1)
        if self._kind == "xz":
            return _Members(self._raw, _xz, 4)
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
                raise DamagedData(
                    f"{self._name!r} is truncated: its {self._kind} data ends in the middle, after {self._raw.position} bytes "
                    f"that make {self.position}. Get the whole file."
                ) from error
            if "too much memory" in said or "Memory usage limit" in said:
                raise DamagedData(
                    f"{self._name!r} takes more memory to decompress than is allowed, a window of 128 MiB in zstd or of "
                    "256 MiB in xz: compress it anew with a smaller one (zstd without --long)."
                ) from error
            raise DamagedData(
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


class _Members:
    """The members of a file, one after another; zeros between and behind them, `padding` at a time, are passed over."""

    def __init__(self, raw: _Raw, new: Callable[[], Any], padding: int) -> None:
        self._raw, self._new, self._padding = raw, new, padding
        self._waiting, self._decoder = b"", new()

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder is None:
                padding = self._padding
                while not (rest := self._waiting.lstrip(b"\0")) and (more := self._raw.read(READ)):
                    self._waiting = self._waiting[: len(self._waiting) % padding] + more
                if (len(self._waiting) - len(rest)) % padding:
                    raise ValueError("padding of the wrong length")
                if not rest:
                    return b""
                self._waiting, self._decoder = rest, self._new()
            if self._decoder.needs_input and not self._waiting:
                self._waiting = self._raw.read(READ)
                if not self._waiting:
                    raise ValueError("Truncated")
            data: bytes = self._decoder.decompress(self._waiting, size)
            self._waiting = b""
            if self._decoder.eof:
                self._waiting, self._decoder = self._decoder.unused_data, None
            if data:
                return data


class _Zlib:
    """A member of a gzip file, or other deflated data, as lzma gives a stream."""

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _xz() -> Any:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
