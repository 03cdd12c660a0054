"""Finished stages, each under a key made from everything that can change its bytes.

A cache is a folder of entries, `<stage>/<key>/`, and an entry is a handful of files:

    encode/3f…/00000000.arrow …         data, one file per shard
    encode/3f…/.00000001.arrow.receipt  that shard is whole (only until the entry is)
    encode/3f…/manifest.json            the entry is whole: identity, every file's size and sha256, counts
    tmp/<run>/                          what a living run is writing; tmp/<run>/lease names what it uses
    quarantine/                         what was found broken

**The key.** `identity` is a small JSON object: stage, stage version, the stage's own settings, and the
content of its inputs (the upstream keys or the source's digests). The key is the sha256 of its canonical
form. No time, worker count or pickled code is in it, and names of input files only where a list that is stored
tells them (rejects, copies), so equal keys mean equal bytes, and an entry may be written twice by two runs at
once without harm.

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
   warning, the manifest is taken back to receipts for the files that are good, and only the rest is computed, and
   renamed over what was damaged.
7. Locks only save work. Two runs that both compute an entry write the same bytes under the same names by
   renames that replace whole files; whichever is last changes nothing. What one run takes away under another
   (receipts once the entry is whole, a damaged file) costs the other a computation, never a wrong byte.
8. `gc` and a run need no lock either. A run writes its lease, then looks whether a gc has the entry condemned, and
   waits; gc condemns, then reads the leases, and leaves what is leased. Whichever wrote first, the other reads it.

With `cache.remote` the same entries lie in a bucket too, and this folder is a scratch of it: see remote.py.
"""

import contextlib
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import engine
from pipeline.config import Engine
from pipeline.errors import IntegrityError, PipelineError, ResourceError, from_os_error
from pipeline.files import (
    SCHEMA,
    HashingFile,
    Json,
    Stat,
    compare,
    digest,
    fsync_dir,
    is_note,
    seal,
    stat_of,
    storing,
    unseal,
)
from pipeline.guard import as_given
from pipeline.remote import Kept, Shelf, Store
from pipeline.temporary import alive, run_name, sweep

log = logging.getLogger(__name__)

LONG = 1 << 30  # bytes: more than this is hashed by all who take part
LOCK_PATIENCE = 600.0  # seconds without a byte written until who holds a lock is waited for no longer
GC_PATIENCE = 10.0  # seconds that a run waits for a gc that may have died on another machine
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEY = re.compile(r"[0-9a-f]{32}")
OURS = re.compile(r"manifest\.json|\..+\.receipt|\.lock|.+\.arrow")  # names of which one makes a folder an entry
SET_ASIDE = re.compile(r"\w+-[0-9a-f]{32}-.+-\d+")  # what `set_aside` calls it

Checked = tuple[Path | str, str | PipelineError | None]  # a file, and what is wrong with it

# Files that this process has written or hashed, as stat saw them then: they are not hashed twice. Every edit
# changes the ctime, but for one within the clock's own step; that and damage beneath the file system are left
# for the next process to find.
_verified: dict[Path, Stat] = {}
_serial = itertools.count()  # makes temporary names of a process unique, whatever its threads do


def _size(path: Path) -> int:
    """Bytes of a file or of the files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where it is none. Raises ResourceError where it cannot be listed: `glob`
    would pass over it in silence."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise from_os_error(error, folder) from error


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
    remote: str | None = None  # address of the same entries in a store
    scratch_bytes: int | None = None  # with `remote`: how much of them may lie here

    @classmethod
    def open(cls, root: Path, remote: str | None = None, scratch_bytes: int | None = None) -> "Cache":
        """The cache at `root` for the calling process; rubbish of dead runs is removed."""
        remote = remote and remote.rstrip("/")
        cache = cls(Path(os.path.abspath(root)), run_name(next(_serial)), remote, scratch_bytes)
        sweep(cache.root / "tmp")
        return cache

    @property
    def tmp(self) -> Path:
        """This run's temporary folder."""
        return self.root / "tmp" / self.run

    def close(self) -> None:
        """Remove what this run left in `tmp`, its lease included."""
        engine.surely(lambda: shutil.rmtree(self.tmp, ignore_errors=True))

    def entry(self, stage: str, identity: Json) -> "Entry":
        """The entry of a stage for `identity`, whether or not it exists yet.

        `identity["upstream"]`, where it is, maps each stage read from to its key; `why` follows it. What of it came from
        the environment makes the key, but is not written down.
        """
        identity = {"stage": stage, **identity}
        return Entry(self, stage, digest(identity)[:32], as_given(identity))

    def require_writable(self) -> None:
        """Raise ResourceError, before any work, where nothing can be stored."""
        try:
            self.tmp.mkdir(parents=True, exist_ok=True)
            (self.tmp / "probe").write_bytes(b"")
            (self.tmp / "probe").unlink(missing_ok=True)  # by another thread of this run, which asks the same
        except OSError as error:
            raise ResourceError(
                f"the cache {str(self.root)!r} is not writable (uid {os.getuid()}): {error.strerror}. "
                "Set cache.dir= to a folder you can write."
            ) from error
        if self.remote:
            Store(self.remote).probe()

    def bring(self, path: Path) -> None:
        """Fetch a small file of this folder that lies in the store alone; nothing where it is not there either."""
        if self.remote and not path.exists() and (data := Store(self.remote).read(str(path.relative_to(self.root)))):
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.tmp.mkdir(parents=True, exist_ok=True)
                (self.tmp / path.name).write_bytes(data)
                os.replace(self.tmp / path.name, path)

    def send(self, path: Path) -> None:
        """Put a small file of this folder into the store, if there is one."""
        if self.remote:
            Store(self.remote).put(str(path.relative_to(self.root)), path.read_bytes())

    def held(self, needed: int) -> int:
        """How many of so many bytes must find room on this disk at once."""
        return needed if self.scratch_bytes is None else min(needed, self.scratch_bytes)

    @contextlib.contextmanager
    def lock(self, entry: "Entry") -> Iterator[None]:
        """Lease the entry and hold its lock, where locks work; a lock only saves doing the same work twice.

        The kernel lets go of a dead holder's lock; one that is stopped, and writes nothing in LOCK_PATIENCE seconds, is
        waited for no longer. Take several in the order of the stages.
        """
        from filelock import FileLock, Timeout

        entry.lease()
        path = entry.folder / ".lock"
        guard = FileLock(path, fallback_to_soft=False)
        seen, since, looked = -1, 0.0, 0.0
        try:
            entry.make_folder()
            while not guard.is_locked:
                try:
                    guard.acquire(timeout=0)
                except Timeout:
                    if seen < 0:
                        log.info("%s: waiting for another run that is computing it", entry.stage)
                    now = time.monotonic()
                    if now - looked > LOCK_PATIENCE / 100:
                        looked = now
                        if seen != (seen := entry.stored() + _size(self.root / "tmp")):
                            since = now
                        elif now - since > LOCK_PATIENCE:
                            log.warning("%s: the run that is computing it gives no sign of life; computed here", entry.stage)
                            break
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
        for folder in self._places():
            if KEY.fullmatch(folder.name) and any(OURS.fullmatch(path.name) for path in _inside(folder)):
                yield Entry(self, folder.parent.name, folder.name, {})

    def _places(self) -> Iterator[Path]:
        """Whatever lies where an entry might, by stage and name. Raises ResourceError where that cannot be listed."""
        for stage in _inside(self.root):
            yield from _inside(stage)

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

    def verify(self, workers: int = 1) -> Iterator[Checked]:
        """Hash everything that is stored; for every file its path and what is wrong with it, or None.

        An error is what a run will end with, too, until its advice is taken; what is only told, a run mends. Nothing is
        changed, nothing is taken from memory.
        """
        checks: list[tuple[Entry, str, Json]] = []
        for path in self._places():
            if KEY.fullmatch(path.name) and not path.is_dir():
                yield path, "not a folder"
        for entry in self.entries():
            path = entry.folder / "manifest.json"
            try:
                content = entry.manifest()
            except PipelineError as error:
                yield path, error
                continue
            if content is not None:
                yield path, None
                checks += [(entry, name, note) for name, note in content["files"].items()]
                continue
            if os.path.lexists(path):
                yield path, "not as it was written"
            for receipt in sorted(entry.folder.glob(".*.receipt")):
                name = receipt.name[1 : -len(".receipt")]
                try:
                    if note := entry._receipt(name):
                        checks.append((entry, name, note))
                    else:
                        yield receipt, "not as it was written"
                except PipelineError as error:
                    yield receipt, error

        def check(item: tuple[Entry, str, Json]) -> Checked:
            entry, name, note = item
            try:
                return entry.path(name), entry._examine(name, note, fresh=True)[0]
            except PipelineError as error:
                return entry.path(name), error

        yield from engine.run(Engine("threads", workers), check, checks)

    def leased(self) -> set[Path]:
        """Folders of the entries that living runs use."""
        named: set[Path] = set()
        for run in self._runs():
            with contextlib.suppress(OSError):
                named |= {self.root / line for line in (run / "lease").read_text().splitlines()}
        return named

    def _condemned(self, path: Path) -> bool:
        """Has a living gc said that the entry may go now?"""
        return any(os.path.lexists(self._mark(path, run)) for run in self._runs())

    def _mark(self, path: Path, run: Path) -> Path:
        """What a gc says that with: an empty file, since a disk that is full has no room for more."""
        return run / f"condemned~{path.parent.name}~{path.name}"

    def _runs(self) -> Iterator[Path]:
        """The temporary folders of living runs."""
        with contextlib.suppress(OSError):
            for run in (self.root / "tmp").iterdir():
                with contextlib.suppress(OSError):
                    if alive(run):
                        yield run

    @contextlib.contextmanager
    def _condemning(self, path: Path) -> Iterator[None]:
        """Say that an entry may go now; a run that leases it meanwhile waits for the end of this.

        Here the leases are read after this was said, there `condemned` is read after the lease was written: at least
        one of the two learns of the other.
        """
        mark = self._mark(path, self.tmp)
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def gc(self, max_bytes: int) -> dict[Path, int]:
        """Remove what is in quarantine, then the longest unused entries, until at most `max_bytes` are left.

        Entries that a living run leases are kept, unfinished ones count from their last shard. An entry goes
        at once, by a rename. Returns what was removed and its bytes. Raises ResourceError.
        """
        entries = sorted(self.entries(), key=Entry.last_use)
        quarantined = sorted(path for path in _inside(self.root / "quarantine") if SET_ASIDE.fullmatch(path.name))
        paths = [*quarantined, *(entry.folder for entry in entries)]
        sizes = {path: _size(path) for path in paths}
        total, removed = sum(sizes.values()), {}
        for path, size in sizes.items():
            if total <= max_bytes:
                break
            grave = self.tmp / f"gc-{next(_serial)}"
            try:
                grave.parent.mkdir(parents=True, exist_ok=True)
                with self._condemning(path):
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

    @property
    def shelf(self) -> Shelf | None:
        """The same entry in the store, if the cache has one."""
        return Shelf(Store(self.cache.remote), self) if self.cache.remote else None

    def file(self, name: str) -> Path | Kept:
        """One of its files for reading; where it may lie in the store alone, what fetches it when it is opened."""
        return Kept(self, name) if self.cache.remote else self.path(name)

    def here(self) -> Path:
        """Its folder, with every file of it on this disk. For a few small files. Raises as `Shelf.fetch`."""
        if (shelf := self.shelf) and (manifest := self.manifest()):
            for name in manifest["files"]:
                shelf.fetch(name)
        return self.folder

    def path(self, name: str) -> Path:
        """The path of one of its files. Raises IntegrityError on a name that leaves the entry or is our own."""
        if not FILE_NAME.fullmatch(name) or name == "manifest.json":
            raise IntegrityError(f"{str(self.folder)!r} lists {name!r}, which is not the name of a data file: remove it.")
        return self.folder / name

    def stored(self) -> int:
        """Bytes of its files so far, whole or not."""
        return _size(self.folder)

    def last_use(self) -> float:
        """When it was last verified or added to, in seconds since 1970; 0 where it is gone."""
        for path in (self.folder / "manifest.json", self.folder):
            with contextlib.suppress(OSError):
                return path.lstat().st_mtime
        return 0.0

    def lease(self) -> None:
        """Tell `gc` that this run uses the entry, and let one that is at it finish; nothing where the cache is read-only."""
        if shelf := self.shelf:
            shelf.mark()
        with contextlib.suppress(OSError):
            self.cache.tmp.mkdir(parents=True, exist_ok=True)
            with open(self.cache.tmp / "lease", "a") as file:
                file.write(f"{self.stage}/{self.key}\n")
        deadline = time.monotonic() + GC_PATIENCE
        while self.cache._condemned(self.folder) and time.monotonic() < deadline:
            time.sleep(0.01)

    def manifest(self) -> Json | None:
        """The manifest where the entry is whole, else None; its files are not looked at.

        Raises IntegrityError where it names anything outside the entry, or comes from a newer version.
        """
        content = self._manifest_here()
        return self.shelf.manifest() if content is None and self.shelf else content

    def believed(self) -> Json | None:
        """The manifest as `manifest`. One that is damaged is set aside: were it left, every shard and run would tell of it."""
        path = self.folder / "manifest.json"
        before = _state(path)
        manifest = self.manifest()
        if manifest is None and before and _state(path) == before:
            self.set_aside(path)
        return manifest

    def _manifest_here(self) -> Json | None:
        if self.folder.is_symlink():
            raise IntegrityError(f"{str(self.folder)!r} is a symbolic link, which a cache never holds: remove it.")
        return self.checked(unseal(self.folder / "manifest.json", links=False))

    def checked(self, content: Json | None) -> Json | None:
        """What was unsealed, where it is a manifest of this entry that adds up. Raises as `manifest`."""
        if content is None or content.get("key") != self.key:
            return None
        if not all(isinstance(content.get(part), dict) for part in ("files", "identity", "ledger")):
            return None
        for name in content["files"]:
            self.path(name)
        notes = list(content["files"].values())
        if not all(map(is_note, notes)) or not (notes or "rows" in content):
            return None
        told = (content, content["ledger"].get(self.stage, {}))
        rows = sum(note.get("counts", {}).get("rows", 0) for note in notes)
        return content if all(isinstance(part, dict) and part.get("rows", 0) == rows for part in told) else None

    def receipt(self, name: str) -> Json | None:
        """{"bytes", "sha256"} and the notes of a finished file, where it is still as it was then; else None."""
        note = self.receipt_here(name)
        if note and self.intact(name, note):
            if shelf := self.shelf:
                shelf.ensure(name, note)
            return note
        return self.shelf.receipt(name) if self.shelf else None

    def receipt_here(self, name: str) -> Json | None:
        """What this disk says of a finished file, which is not looked at."""
        note = self._receipt(name)
        if note is None and (manifest := self._manifest_here()):  # another run has finished the entry meanwhile
            note = manifest["files"].get(name)
        return note

    def verified(self, workers: int = 1, together: Callable[..., list[bool]] | None = None) -> Json | None:
        """The manifest, after every file has been hashed, in so many threads, and found as published; else None.

        `together` shares out the hashing of a large entry: `Line.together`.

        Where a file is damaged it is set aside and the entry goes back to receipts for its good files, so that
        only the rest is computed again; a damaged manifest is set aside too. Where all is well nothing needs to be
        written. Raises IntegrityError where a damaged file cannot be set aside, ResourceError where a file cannot be
        read. With a store it is the store that must have every file; each is hashed when it is used.
        """
        manifest = self.believed()
        if manifest is None:
            return None
        if shelf := self.shelf:
            return manifest if shelf.complete(manifest, workers) else None
        files = list(manifest["files"].items())
        if together and sum(note["bytes"] for _, note in files) > LONG:
            return self.settle(manifest, together(f"verify-{self.key}", self._as_noted, files))
        return self.settle(manifest, list(engine.run(Engine("threads", workers), self._as_noted, files)))

    def _as_noted(self, file: tuple[str, Json]) -> bool:
        return self.intact(*file)

    def settle(self, manifest: Json, intact: list[bool]) -> Json | None:
        """The manifest where all its files are `intact`; else None, and the entry goes back to receipts for the good ones."""
        if not all(intact):
            for (name, note), good in zip(manifest["files"].items(), intact, strict=True):
                if good:
                    self._publish_receipt(name, note)
            self.set_aside(self.folder / "manifest.json")
            return None
        if os.access(self.folder, os.W_OK):
            with contextlib.suppress(OSError):
                os.utime(self.folder / "manifest.json")
        return manifest

    @contextlib.contextmanager
    def write(self, name: str, notes: Callable[[], Json] = dict) -> Iterator[HashingFile]:
        """Write one file of the entry; it and its receipt appear when the block ends without an error.

        `notes()`, called at the end, adds what else the receipt is to say, as {"counts": {"rows": 12}}; from then on
        it is the file's `note`, which holds even where another run takes the receipt away. Nothing is left behind on
        an error, an abandoned generator included. Any number of threads and processes may write to one entry at
        once. Raises ResourceError.
        """
        path = self.path(name)
        temporary = self._temporary(name)
        with storing(path):
            file = HashingFile(temporary, path)
        try:
            yield file
            note = {**notes(), **file.finish()}
            with storing(path):
                self.adopt(temporary, name)
            self._publish_receipt(name, note)
            if shelf := self.shelf:
                shelf.keep(name, note)
            file.note = note
        finally:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()

    def finish(self, names: list[str], receipts: list[Json], **facts: Any) -> Json:
        """Publish the manifest over finished files; from here on the entry exists. Returns it. Raises ResourceError.

        It is believed where the rows that the files count are the fact `rows`, and those of the stage in the fact `ledger`.
        """
        files = dict(zip(names, receipts, strict=True))
        content = {"ledger": {}, **facts, "schema": SCHEMA, "key": self.key, "identity": self.identity, "files": files}
        if shelf := self.shelf:  # the folder here stays as it is: some of these files may never have been in it
            shelf.finish(content)
            return content
        with storing(self.folder):
            self.make_folder()
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
        if content is None or content.get("of") != [self.stage, self.key, name] or not is_note(content.get("note")):
            return None
        return dict(content["note"])

    def _publish_receipt(self, name: str, note: Json) -> None:
        self._publish(self._receipt_path(name).name, seal({"of": [self.stage, self.key, name], "note": note}))

    def adopt(self, temporary: Path, name: str) -> None:
        """Rename a file that was just written and hashed into the entry. Raises OSError."""
        path = self.path(name)
        self.make_folder()
        written = temporary.stat()
        os.replace(temporary, path)
        now = path.stat()  # the rename has changed the ctime; the rest tells whether it is still ours
        if stat_of(now)[:3] == stat_of(written)[:3]:
            _verified[path] = stat_of(now)

    def known(self, name: str) -> bool:
        """Has this process written or hashed the file, and is it still as it was then?"""
        path = self.path(name)
        with contextlib.suppress(OSError):
            return _verified.get(path) == stat_of(path.lstat())
        return False

    def examine(self, name: str, note: Json) -> str | None:
        """What is wrong with a file on this disk, None for nothing."""
        return self._examine(name, note)[0]

    def _examine(self, name: str, note: Json, fresh: bool = False) -> tuple[str | None, Stat | None]:
        """What is wrong with a file, None for nothing, and the state in which it was looked at."""
        path = self.path(name)
        state = _state(path)
        if not fresh and state and _verified.get(path) == state:
            return None, state
        problem, read = compare(path, note, links=False)
        if problem is None and read:
            _verified[path] = read
        return problem, read or state

    def intact(self, name: str, note: Json) -> bool:
        """Is the file as noted? If not it is set aside, aloud."""
        problem, state = self._examine(name, note)
        if problem is None:
            return True
        path = self.path(name)
        log.warning("%r is damaged: %s; it is set aside and computed again", str(path), problem)
        with contextlib.suppress(OSError):
            self._receipt_path(name).unlink()
        with contextlib.suppress(FileNotFoundError):
            if stat_of(path.lstat()) == state:  # else another run has just mended it
                self.set_aside(path)
        return False

    def set_aside(self, path: Path) -> None:
        """Keep what is at `path` in quarantine.

        The name of a file stays, for nothing refers to it any more: it is written over. Were it taken away, it might
        be one that another run has just mended. A manifest must go, and so must what no rename can write over.
        """
        place = self.cache.root / "quarantine"
        target = place / f"{self.stage}-{self.key}-{path.name}-{time.time_ns()}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            if path.parent == self.folder and path.name != "manifest.json" and not path.is_dir():
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(path, target, follow_symlinks=False)
                    return
            os.rename(path, target)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise IntegrityError(
                f"{str(path)!r} is damaged and cannot be set aside: {error.strerror}. Make the cache writable, or set another "
                "cache.dir=."
            ) from error

    def make_folder(self) -> None:
        """Create the folder of the entry; what lies in its place and is none is set aside, aloud. Raises OSError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            for place in (self.folder.parent, self.folder):
                if os.path.lexists(place) and not place.is_dir():
                    log.warning("%r is not a folder: it is set aside", str(place))
                    self.set_aside(place)
            self.folder.mkdir(parents=True, exist_ok=True)

    def _temporary(self, name: str) -> Path:
        with storing(self.cache.tmp):
            self.cache.tmp.mkdir(parents=True, exist_ok=True)
        return (
            self.cache.tmp / f"{self.stage}-{self.key[:8]}-{name}-{run_name(next(_serial))}"
        )  # the nodes of a cluster share it

    @contextlib.contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """A name for a file that is to become one of the entry; what is left under it goes."""
        path = self._temporary(name)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def _publish(self, name: str, data: bytes, durable: bool = False) -> None:
        """Put a small file in place atomically."""
        temporary, path = self._temporary(name), self.folder / name
        with storing(path):
            file = HashingFile(temporary, path)
        try:
            file.write(data)
            if durable:
                file.finish()
            file.close()
            with storing(path):
                if path.is_dir():  # which no rename can write over
                    self.set_aside(path)
                os.replace(temporary, path)
        finally:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()


def _state(path: Path) -> Stat | None:
    """The state of whatever lies at a path; None where nothing does."""
    with contextlib.suppress(OSError):
        return stat_of(path.lstat())
    return None
