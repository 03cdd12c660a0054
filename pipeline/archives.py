"""Archives (zip, tar, compressed tar) read member by member. Nothing is ever unpacked onto the disk.

    letters.zip ──▶ letters.zip!1912/one.txt, letters.zip!1912/two.txt, …      each a source of its own

Members are taken in the order of the archive; folders and hidden ones (a name that begins with a dot, anywhere in the
path) are passed over, as in a folder. An archive is read by one worker, a tar from front
to back.

A member whose name is absolute or leads upwards, that is a link, a device, encrypted or sparse, or that has the name of
another, makes the whole archive an error: it was made to harm, or holds something else than it seems to.
"""

import errno
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline import compression
from pipeline.compression import Stream
from pipeline.config import Corpus
from pipeline.errors import InputError, PipelineError

EMPTY = 1 << 16  # bytes of which a tar without a member has fewer: most have 10 KiB
HEADERS = 1 << 20  # bytes of a long name or of further attributes, which are read in one
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)  # headers of attributes, of one member or of all
Listed = tuple[str, int]  # a member's name and its bytes


def open_archive(file: Any, size: int, path: str, corpus: Corpus) -> "Zip | Tar | None":
    """The archive in an open file of so many bytes; None where it holds none."""
    packed = compression.kind(file.pread(512, 0))
    if packed is None:
        found = _kind(compression.Ranged(file, size))
        return Zip(file, size, path, corpus) if found == "zip" else Tar(file, size, path, corpus) if found == "tar" else None
    try:
        found = _kind(compression.Decompressed(compression.Ranged(file, size), packed, path, corpus))
    except InputError:  # damaged: whoever reads it says so
        return None
    return Tar(file, size, path, corpus, packed) if found == "tar" else None


def _kind(stream: Stream) -> str | None:
    """What archive this is. A tar without a member is nothing but blocks of zeros, at least two."""
    head = stream.read(512)
    if head.strip(b"\0"):
        return compression.archive(head)
    rest = stream.read(EMPTY)
    return "tar" if 512 <= len(rest) < EMPTY and not len(rest) % 512 and not rest.strip(b"\0") else None


class _Archive:
    """What both have in common: errors and names."""

    def __init__(self, path: str) -> None:
        self.path = path

    def bad(self, error: Exception | str) -> InputError:
        """The error for an archive that is not sound."""
        return InputError(f"{self.path!r} is not a whole archive: {' '.join(str(error).split()) or type(error).__name__}.")

    def unsafe(self, name: str, what: str) -> InputError:
        """The error for a member that is refused."""
        return InputError(f"{self.path!r} holds {name!r}, {what}: it is not read. Make the archive anew without it.")

    def safe(self, name: str, seen: set[str]) -> str | None:
        """The name as it is used; None where the member is hidden. Raises InputError."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in parts:
            raise self.unsafe(name, "whose path leads out of the archive")
        clean = "/".join(parts)
        if clean in seen:
            raise self.unsafe(name, "twice")
        seen.add(clean)
        return None if any(part.startswith(".") for part in parts) or not parts else clean


ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError, OSError),
    *(OverflowError, MemoryError, KeyError, IndexError, AttributeError),
)


class Zip(_Archive):
    """A zip file."""

    def __init__(self, file: Any, size: int, path: str, corpus: Corpus) -> None:
        super().__init__(path)
        self._corpus, self._size = corpus, size
        try:
            file.seek(0)
            self._zip = zipfile.ZipFile(io.BufferedReader(file, 1 << 16))
        except ZIP_ERRORS as error:
            raise _ours(error) or self.bad(error) from error
        self._infos: dict[str, zipfile.ZipInfo] = {}
        seen: set[str] = set()
        for info in self._zip.infolist():
            if info.filename.endswith("/"):
                continue
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise self.unsafe(info.filename, "which is a link or a device")
            if info.flag_bits & 1:
                raise self.unsafe(info.filename, "which is encrypted")
            if (name := self.safe(info.filename, seen)) is not None:
                compression.require_growth(f"{path}!{name}", info.file_size, info.compress_size, corpus)
                self._infos[name] = info
        compression.require_growth(path, sum(info.file_size for info in self._infos.values()), size, corpus)

    def members(self) -> Iterator[Listed]:
        """Names and sizes, in order."""
        return ((name, info.file_size) for name, info in self._infos.items())

    def member(self, name: str) -> Stream:
        """A member to read. Raises InputError."""
        if name not in self._infos:
            raise self.bad(f"no member {name!r}")
        try:
            return _Guarded(self._zip.open(self._infos[name]), self, ZIP_ERRORS)
        except ZIP_ERRORS as error:
            raise _ours(error) or self.bad(error) from error


class _Header(tarfile.TarInfo):
    """A member's header; what tarfile would take for the end of the archive is said."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"byte {archive.offset}: {error or 'it ends too early'}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        known = self.type in (*tarfile.SUPPORTED_TYPES, *PAX)
        if not known or self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > HEADERS):
            raise tarfile.ReadError(f"a header of type {self.type!r} and {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_pax(self, archive: tarfile.TarFile) -> Any:
        """The member behind a header of attributes, with the path and the size that it gives.

        What tarfile itself does with such a header takes time and memory in the square of its length.
        """
        told = _attributes(archive.fileobj.read(self._block(self.size))[: self.size])  # type: ignore[attr-defined]
        sparse = any(name.startswith(b"GNU.sparse.") for name in told)
        if self.type == tarfile.XGLTYPE and (sparse or told.keys() & {b"path", b"size"}):
            raise tarfile.ReadError("a path or a size for all members")
        try:
            member = self.fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"byte {archive.offset}: {error}") from error
        if b"path" in told:
            member.name = told[b"path"].decode(errors="surrogateescape").rstrip("/")
        if b"size" in told:
            member.size = int(told[b"size"])
            archive.offset = member.offset_data + member._block(member.size)  # type: ignore[attr-defined]
        if sparse:
            member.sparse = b""
        return member


def _attributes(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header. Raises ReadError where there is anything else.

    >>> _attributes(b"12 path=one\\n9 size=2\\n")
    {b'path': b'one', b'size': b'2'}
    """
    told, at = {}, 0
    while at < len(data):
        digits = data[at : at + 20].partition(b" ")[0]
        record = data[at : at + int(digits)] if digits.isdigit() else b""
        name, equals, value = record.partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n") or (name == b"size" and not value[:-1].isdigit()):
            raise tarfile.ReadError(f"a header of attributes with {record[:40]!r} in it")
        told[name] = value[:-1]
        at += len(record)
    return told


TAR_ERRORS = (
    *(tarfile.TarError, EOFError, ValueError, OSError, OverflowError, MemoryError, KeyError, IndexError, TypeError),
    RecursionError,
)


class Tar(_Archive):
    """A tar file, compressed or not, read once from front to back."""

    def __init__(self, file: Any, size: int, path: str, corpus: Corpus, packed: str | None = None) -> None:
        super().__init__(path)
        self._corpus, self._size = corpus, size
        self._stream: Stream = compression.Ranged(file, size)
        if packed:
            self._stream = compression.Decompressed(self._stream, packed, path, corpus)
        self._seen: set[str] = set()
        try:
            self._tar = tarfile.open(fileobj=self._stream, mode="r|", tarinfo=_Header)  # type: ignore[call-overload]  # noqa: SIM115
        except TAR_ERRORS as error:
            raise _ours(error) or self.bad(error) from error

    def _next(self) -> tuple[str, tarfile.TarInfo] | None:
        while True:
            try:
                info = self._tar.next()
                self._tar.members = []
                if info is None:
                    self._require_end()
                    return None
            except TAR_ERRORS as error:
                raise _ours(error) or self.bad(error) from error
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise self.unsafe(info.name, "which is a link, a device or sparse")
            compression.require_growth(f"{self.path}!{info.name}", info.size, self._size, self._corpus)  # before it is skipped
            if (name := self.safe(info.name, self._seen)) is not None:
                return name, info

    def _require_end(self) -> None:
        while rest := self._stream.read(1 << 16):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows its end")

    def members(self) -> Iterator[Listed]:
        """Names and sizes, in order."""
        while found := self._next():
            yield found[0], found[1].size

    def member(self, name: str) -> Stream:
        """A member to read, which must lie behind the one read before. Raises InputError."""
        while found := self._next():
            if found[0] == name:
                stream = self._tar.extractfile(found[1])
                assert stream is not None
                return _Guarded(stream, self, TAR_ERRORS)
        raise self.bad(f"no member {name!r} where it was planned")


class _Guarded:
    """A member's bytes; what its library raises becomes the error for a person."""

    def __init__(self, stream: Any, archive: _Archive, errors: tuple[type[Exception], ...]) -> None:
        self._stream, self._archive, self._errors = stream, archive, errors

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except self._errors as error:
            raise _ours(error) or self._archive.bad(error) from error


def _ours(error: Exception) -> Exception | None:
    """An error that is already one for a person, or the system's."""
    system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # a place before the file's beginning
    return error if isinstance(error, PipelineError) or system else None
