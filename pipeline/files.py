"""Files that are as they were written or count as absent: sealed JSON, hashes, what has reached the disk.

A sealed file is canonical JSON with its own sha256 inside, re-serialised and compared on reading, so that a flip of
any bit, white space included, makes it unreadable, which means absent.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import engine
from pipeline.console import size
from pipeline.errors import IntegrityError, ResourceError, from_os_error

log = logging.getLogger(__name__)

SCHEMA = 1  # of everything sealed
PROBE = 16 << 20  # bytes written to measure a disk
MANIFEST_LIMIT = 64 << 20  # bytes of JSON we are willing to parse

Json = dict[str, Any]
Stat = tuple[int, int, int, int]  # inode, bytes, mtime and ctime in ns


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, ASCII, indented by one."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False)


def digest(value: Any) -> str:
    """sha256, as 64 hex digits, of the canonical JSON of `value`.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def seal(value: Json) -> bytes:
    """JSON that carries its schema's number and its own sha256, so that any changed bit shows."""
    value = {"schema": SCHEMA, **value}
    return canonical({**value, "sealed": digest(value)}).encode() + b"\n"


def unseal(path: Path, links: bool = True) -> Json | None:
    """The value in a sealed file, or None where it is missing or not as it was written.

    Raises IntegrityError where it is whole but written by a newer version, or is a symbolic link and not `links`.
    """
    try:
        with open(open_regular(path, links), "rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        _ignore(str(path), str(error))
        return None
    except OSError as error:
        raise from_os_error(error, path) from error
    return unsealed(data, str(path))


def unsealed(data: bytes, name: str) -> Json | None:
    """The value in sealed bytes, which errors call `name`, or None where they are not as they were written.

    Raises IntegrityError where they are, but by a newer version.
    """
    try:
        value = json.loads(data) if len(data) <= MANIFEST_LIMIT else None
        if not isinstance(value, dict):
            raise ValueError("not a sealed object")
        body = {name: inner for name, inner in value.items() if name != "sealed"}
        if data != canonical({**body, "sealed": (seal := digest(body))}).encode() + b"\n":
            raise ValueError(f"expected the seal {value.get('sealed')!r}, found {seal!r}")
    except (ValueError, RecursionError) as error:
        _ignore(name, str(error))
        return None
    schema = body.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise IntegrityError(f"{name!r} was written by a newer version: upgrade, or use another cache.dir=.")
    return body if schema == SCHEMA else None


@lru_cache(1 << 10)
def _ignore(name: str, why: str) -> None:
    """Warn of a sealed file that is not as it was written; once, however often it is looked at."""
    log.warning("%r is damaged and ignored: %s", name, why)


def open_regular(path: Path, links: bool = False) -> int:
    """A descriptor for reading a regular file; follows a symbolic link only with `links`, never waits for a pipe.

    Raises ValueError where it is something else, IntegrityError where it is a link.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise IntegrityError(f"{str(path)!r} is a symbolic link, which a cache never holds: remove it.") from error
        if error.errno == errno.ENXIO:
            raise ValueError("not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    return handle


def hash_file(file: Path | int) -> tuple[int, str]:
    """Size in bytes and sha256 of a file (a path, or a descriptor, which is closed), read in pieces of 1 MiB."""
    sha, size = hashlib.sha256(), 0
    with open(file, "rb", buffering=0) as source:
        piece = memoryview(bytearray(1 << 20))
        while count := source.readinto(piece):
            engine.checkpoint()
            sha.update(piece[:count])
            size += count
    return size, sha.hexdigest()


def is_note(value: Any) -> bool:
    """Does it say what a manifest or a receipt must say of a finished file?"""
    if not isinstance(value, dict) or not value.keys() >= {"bytes", "sha256"}:
        return False
    counts = value.get("counts", {})
    return isinstance(counts, dict) and all(type(count) is int for count in (value["bytes"], *counts.values()))


def compare(path: Path, note: Json, links: bool = True) -> tuple[str | None, Stat | None]:
    """How a file differs from the bytes and sha256 that are noted of it, in words, None where it does not; and its state
    as it was read, None where it was not.

    Symbolic links are followed only with `links`, pipes and devices never read. Raises ResourceError where the file cannot
    be read, IntegrityError where it is a link and should not be.
    """
    state = None
    try:
        handle = open_regular(path, links)
        state = stat_of(os.fstat(handle))
        size, sha = hash_file(handle)
    except FileNotFoundError:
        found = "nothing"
    except ValueError as error:
        found = str(error)
    except OSError as error:
        raise from_os_error(error, path) from error
    else:
        if (size, sha) == (note["bytes"], note["sha256"]):
            return None, state
        found = f"{size} bytes, sha256 {sha}"
    return f"expected {note['bytes']} bytes, sha256 {note['sha256']}, found {found}", state


def require_whole(path: Path, note: Json) -> None:
    """Raise IntegrityError where a file of a dataset differs from what its manifest notes."""
    if problem := compare(path, note)[0]:
        raise IntegrityError(f"{str(path)!r} is damaged: {problem}. Run the pipeline again: it writes it anew.")


def read_record(path: Path) -> Json:
    """The object in a JSON file that nothing vouches for; empty where it is missing or something else."""
    try:
        with open(open_regular(path, links=True), "rb") as file:
            record = json.loads(file.read(MANIFEST_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def fsync_dir(path: Path) -> None:
    """Make the names in a folder reach the disk, where the file system knows how."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network file systems say of folders
            raise
    finally:
        os.close(handle)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    return place


def require_space(path: Path, needed: int) -> None:
    """Raise ResourceError where fewer than `needed` bytes are free at `path`, which need not exist yet."""
    if said := _shortage(path, needed):
        raise ResourceError(f"{said} Free space, or set cache.dir= and output.dir=.")


def expect_space(path: Path, needed: int) -> None:
    """Warn where fewer than `needed` bytes, an estimate, are free at `path`, which need not exist yet."""
    if said := _shortage(path, needed):
        log.warning("%s What is finished stays if they do not suffice; free space, or set cache.dir=.", said)


def _shortage(path: Path, needed: int) -> str | None:
    free = shutil.disk_usage(existing(path)).free
    if needed <= free:
        return None
    return f"{str(path)!r}: this run needs about {size(needed)}, {size(free)} are free."


def write_rate(folder: Path) -> float:
    """Bytes a second that reach the disk: a nameless file is written, flushed and forgotten. Raises OSError."""
    data = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(PROBE >> 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return PROBE / (time.perf_counter() - started)


def stat_of(found: os.stat_result) -> Stat:
    """What must stay the same for a file to count as unchanged."""
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failed system call into the error for a person, about the file that was to be."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, path) from error


class HashingFile:
    """A new file that hashes what passes; pyarrow and anything else that writes bytes can write to it.

    `target` is the file it will become, which errors name. Buffers are passed on, never copied.
    """

    def __init__(self, path: Path, target: Path) -> None:
        # Mode 444: published files are not for editing. The umask has its say.
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        self._target = target
        self._sha = hashlib.sha256()
        self.bytes = 0
        self.closed = False
        self.note: Json = {}  # what the receipt says, once the file is published

    def write(self, data: Any) -> int:
        """Append bytes or a contiguous buffer; returns how many bytes. Raises ResourceError."""
        with memoryview(data).cast("B") as view:
            self._sha.update(view)
            written = 0
            with storing(self._target):
                while written < len(view):
                    written += os.write(self._handle, view[written:])
            self.bytes += written
            return written

    def flush(self) -> None:
        """Nothing is held back; only `finish` promises anything."""

    def finish(self) -> Json:
        """Flush to the disk and close. Returns {"bytes", "sha256"}. Raises ResourceError; a failed fsync is final."""
        with storing(self._target):
            os.fsync(self._handle)
            self.closed = True
            os.close(self._handle)
        return {"bytes": self.bytes, "sha256": self._sha.hexdigest()}

    def close(self) -> None:
        """Close without a promise."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError):
                os.close(self._handle)
