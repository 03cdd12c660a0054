"""Files that lie in a bucket or wherever else fsspec reaches, read in place by ranges.

    s3://texts/2026/*.jsonl ──list──▶ keys with size and ETag ──ranges──▶ bytes

Nothing is downloaded first: a file is read a few MiB at a time, and its parts are read side by side. What a store
says of a file (an ETag, a generation, a time of change) is to us what inode and times are on a disk: a sign that the
bytes are unchanged, never their identity, which is the sha256 of what was read. S3 is asked for each range on the
condition that the ETag is still the same.

Credentials, end points and the like come from the environment alone, as each store's own library reads it
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `FSSPEC_S3='{"anon": true}'`, ...).
"""

import contextlib
import functools
import hashlib
import io
import logging
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pipeline.errors import ConfigError, InputError, PipelineError, ResourceError
from pipeline.files import Stat

log = logging.getLogger(__name__)

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(::[A-Za-z0-9+.-]+)*://")
MAGIC = re.compile(r"[*?\[]")
SLOW = 15.0  # seconds after which it is said that a store has not answered yet
AHEAD = 8 << 20  # bytes fetched in one request where a file is read from front to back
SIGNS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "commit_hash")  # change with the content
TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")  # change with it, most of the time
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# What would read this disk past its rules, go unencrypted, or wrap another address.
REFUSED = frozenset(
    "file local http https ftp data git simplecache filecache blockcache cached zip tar libarchive dir reference generic "
    "async_wrapper asynclocal jlab jupyter dask lakefs".split()
)
NO_PLACE = REFUSED - {"file", "local"}  # to write to, where a folder that machines share may be behind a faster disk of each
MISTYPED = re.compile(r"(s3a?|gc?s|az|abfss?|https?|file):(?!//)", re.I)  # the beginning of what was meant as an address


def is_url(path: str) -> bool:
    """Is it an address and not a path on this disk?"""
    return URL.match(path) is not None


def find(url: str) -> dict[str, Stat]:
    """The files that an address stands for: one, all below a folder, or those that a pattern matches, sorted.

    Where an object has the name of a folder, its address is that of the object, and with a slash behind it the folder's.
    What is hidden (a name that begins with a dot) below a folder is not looked at, and an object whose name ends in a slash,
    which a console leaves where it made a folder, is no file. Raises ConfigError where the address
    cannot work, InputError where nothing is there or the store cannot be reached, ResourceError where it refuses.
    """
    with _reaching(url), waiting(url):
        fs, path = connect(url)
        try:
            info = {} if url.endswith("/") else fs.info(path)
            found = {path: info} if info.get("type") == "file" else fs.find(path, detail=True)
        except FileNotFoundError:
            found = {}
        if not found and MAGIC.search(path):  # without folders: one may hide an object of its name
            found = fs.glob(path, detail=True, withdirs=False)
        base = len(
            path if path in found else MAGIC.split(path)[0].rpartition("/")[0] if MAGIC.search(path) else path.rstrip("/")
        )
        files = {
            fs.unstrip_protocol(name): _stat(info)
            for name, info in sorted(found.items())
            if info["type"] == "file" and not name.endswith("/") and ("/." not in name[base:] or "/." in path[base:])
        }
    if not files:
        raise InputError(f"{url!r} in corpus.paths: no such bucket, or nothing of that name in it.")
    return files


def stat(url: str) -> Stat:
    """What the store says of a file now: a digest of its sign, bytes, and where there is no sign the time of its change."""
    with _reaching(url):
        fs, path = connect(url)
        return _stat(fs.info(path))


class StoredFile(io.RawIOBase):
    """A file in a store, open for reading: `read`, `seek`, and `pread` for a range. Not for two threads at once.

    Raises InputError where it is gone, has changed or cannot be reached, ResourceError where the store refuses.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        self._position = 0
        self._start, self._data = 0, b""  # what was fetched last
        with _reaching(url):
            fs, path = connect(url)
            self._file = fs.open(path, "rb", cache_type="none")
            self._size = int(self._file.seek(0, io.SEEK_END))

    def stat(self) -> Stat:
        """What the store says of the file now."""
        return stat(self.name)

    def pread(self, size: int, position: int) -> bytes:
        """At most `size` bytes from `position` on, fewer only at the end."""
        size = max(0, min(size, self._size - position))
        last = self._start + len(self._data)
        if not self._start <= position <= position + size <= last:
            onward = bool(self._data) and self._start <= position <= last
            with _reaching(self.name):
                self._file.seek(position)
                wanted = min(max(size, AHEAD), self._size - position) if onward else size
                self._start, self._data = position, self._file.read(wanted)
        begin = position - self._start
        data = self._data[begin : begin + size]
        if len(data) < size:
            raise InputError(f"{self.name!r} became shorter during the run; nothing was published from it. Run again.")
        return data

    def pread_into(self, view: memoryview, position: int) -> int:
        """Fill `view` from `position` on; returns how many bytes there were."""
        data = self.pread(len(view), position)
        view[: len(data)] = data
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Read on from where the last reading ended."""
        count = self.pread_into(memoryview(buffer).cast("B"), self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Where the next reading begins."""
        return self._position

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            with contextlib.suppress(Exception):
                self._file.close()
        self._data = b""
        super().close()


# -- fsspec -----------------------------------------------------------------------------------------------


def connect(url: str, what: str = "corpus.paths", refused: frozenset[str] = REFUSED) -> tuple[Any, str]:
    """The file system of an address and the path in it. Listings are not kept, so that changes show.

    Raises as `check`, and ResourceError where a library is missing.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = check(url, what, refused)
    try:
        fs, path = url_to_fs(protocol + url[len(protocol) :], use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = f"pip install 'pretraining-pipeline[{extra}]'" if extra else known_implementations[protocol].get("err", error)
        raise ResourceError(f"{url!r} needs a library that is not installed: {install}.") from error
    return fs, path


@functools.cache
def _tell(url: str) -> None:
    log.warning("%r takes more than %.0f s to answer: waiting for it", url, SLOW)


@contextlib.contextmanager
def waiting(url: str) -> Iterator[None]:
    """Say it, once, where a store keeps one waiting for what is soon done: a listing, a small object."""
    timer = threading.Timer(SLOW, _tell, (url,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check(url: str, what: str, refused: frozenset[str]) -> str:
    """The protocol of an address. Raises ConfigError where it cannot work; `what` is the setting that it names, if any."""
    from fsspec.registry import known_implementations

    match = URL.match(url)
    protocol, where = match[1].lower() if match else "", f"{url!r} in {what}" if what else repr(url)
    if protocol in refused or "::" in url:
        known = "only https:// and stores such as s3:// and gs:// are read" if what == "corpus.paths" else "no such store"
        raise ConfigError(f"{where}: {known}; a file on this disk is named by its path.")
    if protocol not in known_implementations:
        raise ConfigError(f"{where}: {protocol}:// is unknown; try a path, https://, s3:// or gs://.")
    return protocol


def _stat(info: dict[str, Any]) -> Stat:
    sign = next((info[key] for key in SIGNS if info.get(key)), None)
    time = None if sign else next((info[key] for key in TIMES if info.get(key)), None)
    if isinstance(time, datetime):
        time = time.timestamp()
    changed = int(time * 1e9) if isinstance(time, (int, float)) else 0
    shown = str(sign or time or "")
    number = int(hashlib.sha256(shown.encode()).hexdigest()[:15], 16) if shown else 0
    return (number, int(info["size"] or 0), changed, changed)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn whatever a store's library raises into the error for a person."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        raise explain(url, error) from error


def explain(url: str, error: Exception) -> PipelineError:
    """What a store's library raised, as the error for a person: of an input that is read."""
    kind = type(error).__name__
    said = " ".join(str(error).split())[:200]
    if kind == "FileExpired" or "PreconditionFailed" in said or "precondition" in said.lower():
        return InputError(f"{url!r} changed during the run; nothing was published from it. Run again.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{url!r}: no such bucket or file, or it is gone since the run began.")
    if "Credential" in kind or "Token" in kind or "Unauthorized" in said:
        return ResourceError(
            f"{url!r}: no valid credentials in the environment ({kind}). Set those of the store, such as AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, PermissionError):
        return ResourceError(f"{url!r}: access denied ({said}). Check the credentials in the environment.")
    return InputError(f"{url!r} cannot be reached or read ({kind}: {said}).")
