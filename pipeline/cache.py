"""Finished stages, each under a key made from everything that can change its bytes.

A cache is a folder of entries, `<stage>/<key>/`, and an entry is a handful of files:

    encode/3f…/00000000.arrow …         data, one file per shard
    encode/3f…/.00000001.arrow.receipt  that shard is whole (only until the entry is)
    encode/3f…/manifest.json            the entry is whole: identity, every file's size and sha256, counts
    tmp/<run>/                          what a living run is writing; tmp/<run>/lease names what it uses
    quarantine/                         what was found broken

**The key.** `identity` is a small JSON object: stage, stage version, the stage's own settings, and the
content of its inputs (the upstream keys or the source's digests). The key is the sha256 of its canonical
form. No path, time, worker count or pickled code is in it, so equal keys mean equal bytes, and an entry may
be written twice by two runs at once without harm.

**Why a kill at any instruction loses nothing and lies about nothing.**

1. A file is written under `tmp/<run>/`, hashed as it passes, flushed with fsync, closed, and only then renamed
   into its entry. A data file's name inside an entry therefore never stands for half a file: a kill before the
   rename leaves rubbish in `tmp/`, which the next run removes once the process that owned it is gone.
2. After the data file comes its receipt, renamed into place likewise. A kill between the two leaves a data file
   that nothing refers to; the shard is computed again and renamed over it with the same bytes. The old inode
   lives on under any reader that has it mapped, so no reader sees a change or a SIGBUS: published bytes are
   never truncated or overwritten in place, only replaced by name or unlinked.
3. The manifest comes last, after an fsync of every file (step 1) and of the folder that holds their names. It
   is fsynced and appears by one rename. So where a manifest is, every file that it names has reached the disk.
   A kill before that leaves receipts, and the next run resumes behind the last of them; after it the receipts
   are removed.
4. A power cut may drop whatever was not synced: receipts, which are not, or any rename since the last fsync of
   the folder. Nothing relies on the order of such losses. A receipt is believed only when it is sealed and the
   file it names has its size and sha256; a missing manifest only means that the entry is finished again.
5. Manifests and receipts are sealed: canonical JSON with its own sha256 inside, re-serialised and compared
   on reading, so that a flip of any bit, white space included, makes it unreadable, which means absent.
6. Before an entry is reused every file is hashed again. A file that differs goes to `quarantine/` with one
   warning, the manifest is taken back to receipts for the files that are good, and only the rest is computed.
7. Locks only save work. Two runs that both compute an entry write the same bytes under the same names by
   renames that replace whole files; whichever is last changes nothing. What one run takes away under another
   (receipts once the entry is whole, a damaged file) costs the other a computation, never a wrong byte.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import engine
from pipeline.config import Engine
from pipeline.errors import IntegrityError, PipelineError, ResourceError, from_os_error

log = logging.getLogger(__name__)

SCHEMA = 1  # of everything sealed
MANIFEST_LIMIT = 64 << 20  # bytes of JSON we are willing to parse
DAY = 86_400
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEY = re.compile(r"[0-9a-f]{32}")

Json = dict[str, Any]
State = tuple[int, int, int, int]

# Files that this process has written or hashed, as stat saw them then: they are not hashed twice. Every edit
# changes the ctime, but for one within the clock's own step; that and damage beneath the file system are left
# for the next process to find.
_verified: dict[Path, State] = {}
_serial = itertools.count()  # makes temporary names of a process unique, whatever its threads do


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
        with open(_open_regular(path, links), "rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
        value = json.loads(data) if len(data) <= MANIFEST_LIMIT else None
        if not isinstance(value, dict):
            raise ValueError("not a sealed object")
        body = {name: inner for name, inner in value.items() if name != "sealed"}
        if data != canonical({**body, "sealed": digest(body)}).encode() + b"\n":
            raise ValueError("not as it was written")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        log.warning("ignoring %r: %s", str(path), error)
        return None
    except OSError as error:
        raise from_os_error(error, path) from error
    schema = body.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise IntegrityError(f"{str(path)!r} was written by a newer version: upgrade, or use another cache.dir=.")
    return body if schema == SCHEMA else None


def _open_regular(path: Path, links: bool = False) -> int:
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


def require_space(path: Path, needed: int) -> None:
    """Raise ResourceError where fewer than `needed` bytes are free at `path`, which need not exist yet."""
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ResourceError(
            f"{str(path)!r}: this run needs about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free. "
            "Free space, or set cache.dir= and output.dir=."
        )


def _state(s: os.stat_result) -> State:
    return (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
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

    def write(self, data: Any) -> int:
        """Append bytes or a contiguous buffer; returns how many bytes. Raises ResourceError."""
        with memoryview(data).cast("B") as view:
            self._sha.update(view)
            written = 0
            with _storing(self._target):
                while written < len(view):
                    written += os.write(self._handle, view[written:])
            self.bytes += written
            return written

    def flush(self) -> None:
        """Nothing is held back; only `finish` promises anything."""

    def finish(self) -> Json:
        """Flush to the disk and close. Returns {"bytes", "sha256"}. Raises ResourceError; a failed fsync is final."""
        with _storing(self._target):
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


def _host() -> str:
    """This machine since it started, and the process namespace: where a process number means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return digest(parts)[:16]


def _process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where it is gone or unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(run: Path) -> bool:
    """Is the process that owns `tmp/<run>` still there? A stranger is believed for a day after its last file."""
    host, pid, start, *_ = [*run.name.split("~"), "", ""]
    if host != _host():
        return time.time() - run.stat().st_mtime < DAY
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _process_start(int(pid)) == start


def sweep(folder: Path, keep: str = "") -> None:
    """Remove from a folder of temporary folders, each named after its run, those of dead runs."""
    with contextlib.suppress(OSError):
        for run in folder.iterdir():
            with contextlib.suppress(OSError):
                if run.name != keep and not _alive(run):
                    shutil.rmtree(run, ignore_errors=True)


def _size(path: Path) -> int:
    """Bytes of a file or of the files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total


@dataclass(frozen=True)
class Listed:
    """What `ls` tells of an entry."""

    stage: str
    key: str
    bytes: int
    rows: int | None  # as the counts of its files say
    used: float  # when last, in seconds since 1970
    whole: bool


@dataclass(frozen=True)
class Cache:
    """A cache folder as one run sees it. Picklable; `run` names the folder of its temporary files."""

    root: Path
    run: str

    @classmethod
    def open(cls, root: Path) -> "Cache":
        """The cache at `root` for the calling process; rubbish of dead runs is removed."""
        run = f"{_host()}~{os.getpid()}~{_process_start(os.getpid())}~{next(_serial)}"
        cache = cls(Path(os.path.abspath(root)), run)
        sweep(cache.root / "tmp")
        return cache

    @property
    def tmp(self) -> Path:
        """This run's temporary folder."""
        return self.root / "tmp" / self.run

    def close(self) -> None:
        """Remove what this run left in `tmp`, its lease included."""
        shutil.rmtree(self.tmp, ignore_errors=True)

    def entry(self, stage: str, identity: Json) -> "Entry":
        """The entry of a stage for `identity`, whether or not it exists yet.

        `identity["upstream"]`, where it is, maps each stage read from to its key; `why` follows it.
        """
        identity = {"stage": stage, **identity}
        return Entry(self, stage, digest(identity)[:32], identity)

    def require_writable(self) -> None:
        """Raise ResourceError, before any work, where nothing can be stored."""
        try:
            self.tmp.mkdir(parents=True, exist_ok=True)
            (self.tmp / "probe").write_bytes(b"")
            (self.tmp / "probe").unlink()
        except OSError as error:
            raise ResourceError(
                f"the cache {str(self.root)!r} is not writable (uid {os.getuid()}): {error.strerror}. "
                "Set cache.dir= to a folder you can write."
            ) from error

    @contextlib.contextmanager
    def lock(self, entry: "Entry") -> Iterator[None]:
        """Lease the entry and hold its lock, where locks work; a lock only saves doing the same work twice.

        The kernel lets go of a dead holder's lock. Take several in the order of the stages.
        """
        from filelock import FileLock, Timeout

        entry.lease()
        path = entry.folder / ".lock"
        guard = FileLock(path, fallback_to_soft=False)
        told = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while not guard.is_locked:
                try:
                    guard.acquire(timeout=0)
                except Timeout:
                    if not told:
                        log.info("%s: waiting for another run that is computing it", entry.stage)
                    told = True
                    time.sleep(0.05)
        except (OSError, NotImplementedError) as error:
            log.info("working without a lock: %s", error)
        try:
            yield
        finally:
            if guard.is_locked:
                with contextlib.suppress(OSError):
                    path.unlink()  # while it is held: who waits for this inode sees it gone and tries again
                guard.release()

    def entries(self) -> Iterator["Entry"]:
        """Every entry that holds anything, whole or not, by stage and key. Their identities are not read."""
        for folder in sorted(self.root.glob("*/*")):
            if KEY.fullmatch(folder.name) and folder.is_dir() and any(folder.iterdir()):
                yield Entry(self, folder.parent.name, folder.name, {})

    def ls(self) -> list[Listed]:
        """What is stored, the longest unused first."""
        listed = []
        for entry in self.entries():
            content = None
            with contextlib.suppress(PipelineError):
                content = entry.manifest()
            notes = content["files"].values() if content else ()
            rows = [note["counts"]["rows"] for note in notes if "rows" in note.get("counts", {})]
            used = entry.last_use()
            listed.append(
                Listed(entry.stage, entry.key, _size(entry.folder), sum(rows) if rows else None, used, content is not None)
            )
        return sorted(listed, key=lambda e: (e.used, e.stage, e.key))

    def verify(self, workers: int = 1) -> Iterator[tuple[Path, str | None]]:
        """Hash everything that is stored; for every file its path and what is wrong with it, or None.

        Nothing is changed, nothing is taken from memory.
        """
        checks: list[tuple[Entry, str, Json]] = []
        for entry in self.entries():
            path = entry.folder / "manifest.json"
            try:
                content = entry.manifest()
            except PipelineError as error:
                yield path, str(error)
                continue
            if content is not None:
                yield path, None
                checks += [(entry, name, note) for name, note in content["files"].items()]
                continue
            if os.path.lexists(path):
                yield path, "not as it was written"
            for receipt in sorted(entry.folder.glob(".*.receipt")):
                name = receipt.name[1 : -len(".receipt")]
                if note := entry._receipt(name):
                    checks.append((entry, name, note))

        def check(item: tuple[Entry, str, Json]) -> tuple[Path, str | None]:
            entry, name, note = item
            try:
                return entry.path(name), entry._examine(name, note, fresh=True)[0]
            except PipelineError as error:
                return entry.path(name), str(error)

        yield from engine.run(Engine("threads", workers), check, checks)

    def leased(self) -> set[Path]:
        """Folders of the entries that living runs use."""
        used: set[Path] = set()
        with contextlib.suppress(OSError):
            for run in (self.root / "tmp").iterdir():
                with contextlib.suppress(OSError):
                    if _alive(run):
                        used |= {self.root / line for line in (run / "lease").read_text().splitlines()}
        return used

    def gc(self, max_bytes: int) -> dict[Path, int]:
        """Remove what is in quarantine, then the longest unused entries, until at most `max_bytes` are left.

        Entries that a living run leases are kept, unfinished ones count from their last shard. An entry goes
        at once, by a rename. Returns what was removed and its bytes. Raises ResourceError.
        """
        entries = sorted(self.entries(), key=Entry.last_use)
        paths = [*sorted(self.root.glob("quarantine/*")), *(entry.folder for entry in entries)]
        sizes = {path: _size(path) for path in paths}
        total, removed = sum(sizes.values()), {}
        for path, size in sizes.items():
            if total <= max_bytes:
                break
            grave = self.tmp / f"gc-{next(_serial)}"
            try:
                grave.parent.mkdir(parents=True, exist_ok=True)
                if path in self.leased():  # asked anew for each, at the last moment
                    continue
                os.rename(path, grave)
            except FileNotFoundError:  # another gc was faster
                continue
            except OSError as error:
                raise from_os_error(error, path) from error
            if grave.is_dir():
                shutil.rmtree(grave, ignore_errors=True)
            else:
                grave.unlink()
            total -= size
            removed[path] = size
        return removed


@dataclass(frozen=True)
class Entry:
    """One stage's result under one key. Nothing but names until something is written."""

    cache: Cache
    stage: str
    key: str
    identity: Json = field(hash=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.cache.root / self.stage / self.key

    def path(self, name: str) -> Path:
        """The path of one of its files. Raises IntegrityError on a name that leaves the entry or is our own."""
        if not FILE_NAME.fullmatch(name) or name == "manifest.json":
            raise IntegrityError(f"{str(self.folder)!r} lists {name!r}, which is not the name of a data file.")
        return self.folder / name

    def last_use(self) -> float:
        """When it was last verified or added to, in seconds since 1970; 0 where it is gone."""
        for path in (self.folder / "manifest.json", self.folder):
            with contextlib.suppress(OSError):
                return path.lstat().st_mtime
        return 0.0

    def lease(self) -> None:
        """Tell `gc` that this run uses the entry; silently nothing where the cache is read-only."""
        with contextlib.suppress(OSError):
            self.cache.tmp.mkdir(parents=True, exist_ok=True)
            with open(self.cache.tmp / "lease", "a") as file:
                file.write(f"{self.stage}/{self.key}\n")

    def manifest(self) -> Json | None:
        """The manifest where the entry is whole, else None; its files are not looked at.

        Raises IntegrityError where it names anything outside the entry, or comes from a newer version.
        """
        content = unseal(self.folder / "manifest.json", links=False)
        if content is None or content.get("key") != self.key or not isinstance(content.get("files"), dict):
            return None
        for name, note in content["files"].items():
            self.path(name)
            if not isinstance(note, dict) or not note.keys() >= {"bytes", "sha256"}:
                return None
        return content

    def receipt(self, name: str) -> Json | None:
        """{"bytes", "sha256"} and the notes of a finished file, where it is still as it was then; else None."""
        note = self._receipt(name)
        if note is None and (manifest := self.manifest()):  # another run has finished the entry meanwhile
            note = manifest["files"].get(name)
        return note if note and self._intact(name, note) else None

    def verified(self, workers: int = 1) -> Json | None:
        """The manifest, after every file has been hashed, in so many threads, and found as published; else None.

        Where a file is damaged it is set aside and the entry goes back to receipts for its good files, so that
        only the rest is computed again. Where all is well nothing needs to be written. Raises IntegrityError
        where a damaged file cannot be set aside, ResourceError where a file cannot be read.
        """
        manifest = self.manifest()
        if manifest is None:
            return None
        files = manifest["files"]
        intact = list(engine.run(Engine("threads", workers), lambda name: self._intact(name, files[name]), files))
        if not all(intact):
            for (name, note), good in zip(files.items(), intact, strict=True):
                if good:
                    self._publish_receipt(name, note)
            self._set_aside(self.folder / "manifest.json")
            return None
        if os.access(self.folder, os.W_OK):
            with contextlib.suppress(OSError):
                os.utime(self.folder / "manifest.json")
        return manifest

    @contextlib.contextmanager
    def write(self, name: str, notes: Callable[[], Json] = dict) -> Iterator[HashingFile]:
        """Write one file of the entry; it and its receipt appear when the block ends without an error.

        `notes()`, called at the end, adds what else the receipt is to say, as {"counts": {"rows": 12}}. Nothing
        is left behind on an error, an abandoned generator included. Any number of threads and processes may
        write to one entry at once. Raises ResourceError.
        """
        path = self.path(name)
        temporary = self._temporary(name)
        with _storing(path):
            file = HashingFile(temporary, path)
        try:
            yield file
            note = {**notes(), **file.finish()}
            with _storing(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                written = temporary.stat()
                os.replace(temporary, path)
                now = path.stat()  # the rename has changed the ctime; the rest tells whether it is still ours
            if _state(now)[:3] == _state(written)[:3]:
                _verified[path] = _state(now)
            self._publish_receipt(name, note)
        finally:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()

    def finish(self, names: list[str], receipts: list[Json], **facts: Any) -> Json:
        """Publish the manifest over finished files; from here on the entry exists. Returns it. Raises ResourceError."""
        files = dict(zip(names, receipts, strict=True))
        content = {**facts, "schema": SCHEMA, "key": self.key, "identity": self.identity, "files": files}
        with _storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            fsync_dir(self.folder)
            self._publish("manifest.json", seal(content), durable=True)
            for folder in (self.folder, self.folder.parent, self.cache.root):
                fsync_dir(folder)
        for name in names:
            with contextlib.suppress(OSError):
                self._receipt_path(name).unlink()
        return content

    def _receipt_path(self, name: str) -> Path:
        return self.folder / f".{self.path(name).name}.receipt"

    def _receipt(self, name: str) -> Json | None:
        """The receipt of a file as it stands; the file is not looked at."""
        content = unseal(self._receipt_path(name), links=False)
        if content is None or content.get("of") != [self.stage, self.key, name]:
            return None
        return dict(content["note"])

    def _publish_receipt(self, name: str, note: Json) -> None:
        self._publish(self._receipt_path(name).name, seal({"of": [self.stage, self.key, name], "note": note}))

    def _examine(self, name: str, note: Json, fresh: bool = False) -> tuple[str | None, State | None]:
        """What is wrong with a file, None for nothing, and the state in which it was looked at."""
        path, state = self.path(name), None
        try:
            state = _state(path.lstat())
            if not fresh and _verified.get(path) == state:
                return None, state
            handle = _open_regular(path)
            state = _state(os.fstat(handle))
            size, sha = hash_file(handle)
        except FileNotFoundError:
            found = "nothing"
        except ValueError as error:
            found = str(error)
        except OSError as error:
            raise from_os_error(error, path) from error
        else:
            if (size, sha) == (note["bytes"], note["sha256"]):
                _verified[path] = state
                return None, state
            found = f"{size} bytes, sha256 {sha}"
        return f"expected {note['bytes']} bytes, sha256 {note['sha256']}, found {found}", state

    def _intact(self, name: str, note: Json) -> bool:
        """Is the file as noted? If not it is set aside, aloud."""
        problem, state = self._examine(name, note)
        if problem is None:
            return True
        path = self.path(name)
        log.warning("%r is damaged: %s; it is set aside and computed again", str(path), problem)
        with contextlib.suppress(OSError):
            self._receipt_path(name).unlink()
        with contextlib.suppress(FileNotFoundError):
            if _state(path.lstat()) == state:  # else another run has just mended it
                self._set_aside(path)
        return False

    def _set_aside(self, path: Path) -> None:
        place = self.cache.root / "quarantine"
        try:
            place.mkdir(parents=True, exist_ok=True)
            os.rename(path, place / f"{self.stage}-{self.key}-{path.name}-{time.time_ns()}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise IntegrityError(f"{str(path)!r} is damaged and cannot be set aside: {error.strerror}.") from error

    def _temporary(self, name: str) -> Path:
        with _storing(self.cache.tmp):
            self.cache.tmp.mkdir(parents=True, exist_ok=True)
        return self.cache.tmp / f"{self.stage}-{self.key[:8]}-{name}-{os.getpid()}-{next(_serial)}"

    def _publish(self, name: str, data: bytes, durable: bool = False) -> None:
        """Put a small file in place atomically."""
        temporary, path = self._temporary(name), self.folder / name
        with _storing(path):
            file = HashingFile(temporary, path)
        try:
            file.write(data)
            if durable:
                file.finish()
            file.close()
            with _storing(path):
                os.replace(temporary, path)
        finally:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested object as dotted paths: {"a": {"b": 1}} gives {"a.b": 1}."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def why(entry: Entry, upstream: dict[str, Entry] | None = None) -> list[str]:
    """What separates an entry that does not exist from the nearest one of its stage that does.

    One line a field, `stride 128 → 64`; a field of a stage upstream is led by that stage, `tokenizer:
    vocab_size 1024 → 512`. `upstream` maps the keys of this run to its entries: a changed upstream key is
    explained by its own fields where both are known, and stands as it is where not. Empty where nothing else of
    this stage is stored.
    """
    stored = sorted((entry.cache.root / entry.stage).glob("*/manifest.json"), key=_mtime, reverse=True)[:16]
    others = [identity for path in stored if path.parent.name != entry.key and (identity := _identity(path))]
    return min((explain(old, entry, upstream or {}) for old in others), key=len, default=[])


def explain(old: Json, new: Entry, known: dict[str, Entry], prefix: str = "") -> list[str]:
    """What differs between an identity and that of an entry, one line a field; `known` as `upstream` in `why`."""
    before, after = flatten(old), flatten(new.identity)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        stage = name.removeprefix("upstream.")
        source = known.get(str(now)) if stage != name else None
        earlier = source and _identity(source.cache.root / stage / str(was) / "manifest.json")
        if source and earlier:
            lines += explain(earlier, source, known, f"{stage}: ")
        else:
            lines.append(f"{prefix}{name} {_short(was)} → {_short(now)}")
    return list(dict.fromkeys(lines))  # two stages may have read from the same changed one


def _identity(manifest: Path) -> Json | None:
    with contextlib.suppress(PipelineError):
        return (unseal(manifest) or {}).get("identity")
    return None


def _mtime(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,64}", value):
        return value[:8] + "…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
