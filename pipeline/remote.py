"""The cache in a bucket: a second level behind the folder on this disk, for machines that share nothing else.

    cache.dir      data/cache/encode/3f…/00000000.arrow    what this machine made or fetched, memory-mapped: a scratch
    cache.remote   s3://bucket/cache/encode/3f…/           the same names: data, receipts, the manifest last

Everything in this program reads memory-mapped files, and that stays. A data file is published on this disk as ever,
then the same bytes are put into the store under the same name, then its receipt; the manifest is put when every file
that it names is there. What is asked for and is not on this disk is looked for in the store, and a file is fetched
when somebody opens it, and hashed as it arrives: so machine B reads the one shard that it needs of what A has made.

**Why it holds without a rename.** An object appears whole or not at all: a PUT, or the last call of a multipart
upload, is what the rename is on a disk. A kill before it leaves nothing that has a name (parts of an upload are for
the bucket's own rule to remove; where the store is a folder, a `*.putting-*` stays, which `gc` removes a DAY later).
Names hold the key, so two writers write the same bytes, and whichever is last changes nothing; the manifest is put on
the condition that there is none, where the store knows conditions. No lock is needed and none is tried: two
machines that compute the same shard at once lose time, nothing else.

**What is believed.** A receipt or a manifest in the store, as on the disk, only when its seal is whole. A data file
only after its sha256 was found right as it arrived. Until then the manifest's word and a listing with the same number
of bytes are enough, so that a stage that is whole is not fetched to be found whole. A file that arrives with other
bytes goes to `quarantine/` in the store and is `Damaged`: the rest of its entry is looked at, and the run is started
again behind what is still whole. As the listing no longer has what was damaged, it computes and puts that again. The
manifest stays: the bytes that it names do too.

**The scratch** is at every moment a cache that is unfinished: files, and receipts of those that this machine made. So
it may be lost, or be used without the store. With `cache.scratch_bytes` the oldest shards are dropped, once the store
says that it has them. Who has one mapped keeps it, as an unlinked file lives on; who was about to map it fetches it
again; and one that a dataset links to takes no room of its own and stays.

**Use and gc.** Each run that names an entry puts an empty object `.used` into it, and again within each hour that it
adds to it. The store's own clock dates it, so no clock of a machine matters. `gc` lists, removes entries by the date
of their last use, and never one used within a DAY. It takes the manifest first and looks again: a run that came in
between finds an entry without a manifest, and computes. Where it adds a file just as the old one of that name is
removed, the listing before its manifest shows that, and the file is put again.

Credentials are the environment's, see stores.py. Their libraries retry; what fails for good is a ResourceError, and
what was finished is in the store or on this disk, from where the next run puts it.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import engine, stores
from pipeline.config import Engine
from pipeline.errors import IntegrityError, PipelineError, ResourceError, from_os_error
from pipeline.files import Json, hash_file, is_note, seal, storing, unsealed

if TYPE_CHECKING:
    from pipeline.cache import Entry

log = logging.getLogger(__name__)

DAY, HOUR = 86_400.0, 3_600.0  # seconds
USED = ".used"
PUTTING = re.compile(r"\.putting-\d+-\d+$")  # in a folder, how the name ends of what is being put
SHARD = re.compile(r"\d{8}\.[a-z.]+")  # what may be dropped from a scratch
KEPT_IN_MEMORY = 4  # manifests

_manifests: "OrderedDict[str, Json]" = OrderedDict()  # of this process, by address; a key's never changes
_marked: dict[str, float] = {}  # when this process said that it uses an entry
_told: set[str] = set()  # files whose damage a person knows of
_added: dict[Path, float] = {}  # bytes in a scratch as last counted, and what was added since


class Damaged(IntegrityError):
    """A file in the store is not what its manifest says, and was set aside. The run, started again, computes it."""

    def __init__(self, shelf: "Shelf", file: str, said: str) -> None:
        super().__init__(shelf, file, said)  # what pickle hands to the copy
        self.shelf, self.name = shelf, f"{shelf.store.url}/{shelf.place(file)}"

    def __str__(self) -> str:
        return f"{self.name!r} is damaged: {self.args[2]}"


# -- a place in a store -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A place in a store, by its address. Names are relative to it. Raises ResourceError where it cannot be reached."""

    url: str

    def read(self, name: str) -> bytes | None:
        """A small object; None where there is none."""
        with _reaching(self.url) as (fs, root), stores.waiting(self.url), contextlib.suppress(FileNotFoundError):
            return bytes(fs.cat_file(_object(fs, f"{root}/{name}")))
        return None

    def put(self, name: str, data: bytes, new: bool = False) -> bool:
        """Put a small object, with `new` only where there is none of that name yet. False: there was one."""
        with _writing(self.url) as (fs, root), stores.waiting(self.url):
            if _on_disk(fs):
                with _renaming(root, name) as temporary:
                    Path(temporary).write_bytes(data)
                return True
            if not new:
                fs.pipe_file(f"{root}/{name}", data)
                return True
            try:
                fs.pipe_file(f"{root}/{name}", data, mode="create")
            except Exception as error:
                if _exists_already(error):
                    return False
                if not isinstance(error, TypeError | ValueError | NotImplementedError) and _errno(error) != errno.ENOSYS:
                    raise
                fs.pipe_file(f"{root}/{name}", data)  # a store without conditions
            return True

    def probe(self) -> float:
        """The time by the store's clock. Raises ResourceError where nothing can be put."""
        self.put("probe", b"")
        try:
            return self.when("probe")
        finally:
            self.remove(["probe"])

    def upload(self, path: Path, name: str) -> None:
        """Put a file; the object appears whole."""
        with _writing(self.url) as (fs, root):
            if _on_disk(fs):
                with _renaming(root, name) as temporary:
                    fs.put_file(str(path), temporary)
            else:
                fs.put_file(str(path), f"{root}/{name}")

    def download(self, name: str, path: Path) -> bool:
        """Fetch an object to a new file. False: there is none."""
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            fs.get_file(_object(fs, f"{root}/{name}"), str(path))
            return True
        return False

    def copy(self, name: str, to: "Store", as_name: str) -> None:
        """Copy an object within the store, without fetching it. Raises FileNotFoundError."""
        with _reaching(self.url) as (fs, root):
            target = stores.connect(to.url, "", stores.NO_PLACE)[1].rstrip("/")
            if _on_disk(fs):
                with _renaming(target, as_name) as temporary:
                    fs.cp_file(_object(fs, f"{root}/{name}"), temporary)
            else:
                fs.cp_file(f"{root}/{name}", f"{target}/{as_name}")

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            info = fs.info(f"{root}/{name}")
            return int(info["size"] or 0) if info["type"] == "file" else None
        return None

    def when(self, name: str) -> float:
        """When an object was put, in seconds since 1970 by the store's clock; 0 where there is none."""
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            return _when(fs.info(f"{root}/{name}"))
        return 0.0

    def hash(self, name: str) -> tuple[int, str] | None:
        """Size in bytes and sha256 of an object, read a few MiB at a time; None where there is none."""
        sha, size = hashlib.sha256(), 0
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            with fs.open(_object(fs, f"{root}/{name}"), "rb", cache_type="none") as file:
                while piece := file.read(stores.AHEAD):
                    engine.checkpoint()
                    sha.update(piece)
                    size += len(piece)
            return size, sha.hexdigest()
        return None

    def listed(self, folder: str = "") -> dict[str, tuple[int, float]]:
        """What lies below a folder, by its name in there: bytes, and when it was put, in seconds since 1970."""
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            place = f"{root}/{folder}".rstrip("/")
            found = fs.find(place, detail=True)
            start = len(fs._strip_protocol(place)) + 1
            return {
                name[start:]: (int(info["size"] or 0), _when(info))
                for name, info in sorted(found.items())
                if info["type"] == "file" and name[start:] and not PUTTING.search(name)
            }
        return {}

    def inside(self, folder: str = "") -> list[str]:
        """The names right in a folder, those of folders too."""
        with _reaching(self.url) as (fs, root), contextlib.suppress(FileNotFoundError):
            place = f"{root}/{folder}".rstrip("/")
            found = sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(place, detail=False))
            return [name for name in found if name and not PUTTING.search(name)]
        return []

    def remove(self, names: list[str]) -> None:
        """Remove objects, as many at once as the store allows; those that are gone already are gone."""
        with _reaching(self.url) as (fs, root):
            paths = [f"{root}/{name}" for name in names]
            plain = [path for path in paths if fs.async_impl and not stores.MAGIC.search(path)]  # `rm` takes patterns
            if len(plain) > 1:
                fs.rm(plain)
                paths = [path for path in paths if stores.MAGIC.search(path)]
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(path)

    def sweep(self) -> dict[str, int]:
        """Remove what was being put into a folder when a run was killed, a DAY ago or more. Returns names and bytes."""
        removed: dict[str, int] = {}
        with _reaching(self.url) as (fs, root):
            left = [path for path in Path(root).rglob("*") if PUTTING.search(path.name)] if _on_disk(fs) else []
            now = self.probe() if left else 0.0
            for path in left:
                with contextlib.suppress(OSError):
                    state = path.stat()
                    if now - state.st_mtime >= DAY:
                        path.unlink()
                        removed[str(path.relative_to(root))] = state.st_size
        return removed


@lru_cache(maxsize=16)
def _file_system(url: str, process: int) -> tuple[Any, str]:
    fs, root = stores.connect(url, "", stores.NO_PLACE)
    return fs, root.rstrip("/")


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The store's file system and the place in it; what its library raises becomes the error for a person."""
    try:
        yield _file_system(url, os.getpid())
    except (PipelineError, FileNotFoundError, engine.Stopped):
        raise
    except Exception as error:
        if (stopped := engine.interrupted()) is not None:
            raise stopped from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise from_os_error(error, PUTTING.sub("", str(error.filename2 or "")) or url.removeprefix("file://")) from error
        said = stores.explain(url, error)
        raise ResourceError(f"{said} What is finished is kept: run again when it answers.") from error


@contextlib.contextmanager
def _writing(url: str) -> Iterator[tuple[Any, str]]:
    """As `_reaching`; what is not found then is the bucket."""
    try:
        with _reaching(url) as place:
            yield place
    except FileNotFoundError as error:
        raise ResourceError(f"{url!r} cannot be written: there is no such bucket.") from error


def _on_disk(fs: Any) -> bool:
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _object(fs: Any, path: str) -> str:
    """The path of an object. Raises FileNotFoundError where in a folder something else has its name: it is never read."""
    if _on_disk(fs) and not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return path


@contextlib.contextmanager
def _renaming(root: str, name: str) -> Iterator[str]:
    """In a folder an object appears by a rename, as in the cache. A folder in its place is set aside."""
    path = f"{root}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.putting-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield temporary
        if os.path.isdir(path):
            log.warning("%r is not a file: it is set aside", path)
            os.makedirs(f"{root}/quarantine", exist_ok=True)
            os.rename(path, f"{root}/quarantine/{name.replace('/', '-')}-{time.time_ns()}")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _errno(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _exists_already(error: Exception) -> bool:
    said = str(error).lower()
    conditions = ("pre-condition", "precondition", "conditional request", "conditionnotmet")
    return isinstance(error, FileExistsError) or any(word in said for word in conditions)


def _when(info: Json) -> float:
    time = next((info[key] for key in stores.TIMES if info.get(key)), 0.0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return float(time.timestamp() if isinstance(time, datetime) else time)


# -- an entry in it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A file of an entry that may not be on this disk yet: whoever opens it has it fetched. Picklable."""

    entry: "Entry"
    name: str

    def __fspath__(self) -> str:
        shelf = self.entry.shelf
        return str(shelf.fetch(self.name) if shelf else self.entry.path(self.name))

    def __str__(self) -> str:
        return str(self.entry.path(self.name))


@dataclass(frozen=True)
class Shelf:
    """An entry in the store."""

    store: Store
    entry: "Entry"

    def place(self, name: str) -> str:
        """The name of one of its files in the store."""
        return f"{self.entry.stage}/{self.entry.key}/{name}"

    def _receipt_place(self, name: str) -> str:
        return self.place(f".{name}.receipt")

    def mark(self) -> None:
        """Say that the entry is in use; nothing where the store may only be read."""
        address = f"{self.store.url}/{self.place(USED)}"
        if time.monotonic() - _marked.get(address, -HOUR) >= HOUR:
            _marked[address] = time.monotonic()
            try:
                self.store.put(self.place(USED), b"")
            except ResourceError as error:
                log.debug("%s", error)

    def manifest(self) -> Json | None:
        """The manifest in the store, or None. Raises IntegrityError as `Entry.manifest`."""
        address = f"{self.store.url}/{self.place('manifest.json')}"
        if (known := _manifests.get(address)) is None:
            data = self.store.read(self.place("manifest.json"))
            known = self.entry.checked(unsealed(data, address)) if data is not None else None
            if known is not None:
                _manifests[address] = known
                while len(_manifests) > KEPT_IN_MEMORY:
                    _manifests.popitem(last=False)
        return known

    def receipt(self, name: str) -> Json | None:
        """What is known of a finished file in the store, or None."""
        if (note := self._sealed_receipt(name)) is not None:
            return note
        note = (self.manifest() or {"files": {}})["files"].get(name)
        if note is not None and self.store.size(self.place(name)) == note["bytes"]:
            return dict(note)
        return None

    def _sealed_receipt(self, name: str) -> Json | None:
        data = self.store.read(self._receipt_place(name))
        content = unsealed(data, self._receipt_place(name)) if data is not None else None
        if content is None or content.get("of") != [self.entry.stage, self.entry.key, name] or not is_note(content.get("note")):
            return None
        return dict(content["note"])

    def keep(self, name: str, note: Json) -> None:
        """Put a file of the entry that was just published on this disk: first it, then its receipt."""
        self.mark()
        self.store.upload(self.entry.path(name), self.place(name))
        self._put_receipt(name, note)
        trim(self.entry, name, note["bytes"])

    def ensure(self, name: str, note: Json) -> None:
        """Put a file that is whole on this disk, where the store does not have it yet."""
        if self.store.size(self.place(name)) == note["bytes"]:
            self._put_receipt(name, note)
        else:
            self.keep(name, note)

    def _put_receipt(self, name: str, note: Json) -> None:
        self.store.put(self._receipt_place(name), seal({"of": [self.entry.stage, self.entry.key, name], "note": note}))

    def complete(self, manifest: Json, workers: int = 1) -> bool:
        """Does the store have every file that the manifest names? What it lacks and this disk has is put first.

        What neither has is said aloud, once.
        """
        files, there = manifest["files"], self.store.listed(self.place(""))

        def settle(name: str) -> Damaged | None:
            path, note = self.entry.path(name), files[name]
            if path.exists() and self.entry.examine(name, note) is None:
                self.keep(name, note)
                return None
            found = f"{there[name][0]} bytes" if name in there else "nothing"
            return Damaged(self, name, f"expected {note['bytes']} bytes, found {found}")

        lacking = [name for name, note in files.items() if there.get(name, (-1, 0.0))[0] != note["bytes"]]
        if lost := [damage for damage in engine.run(Engine("threads", workers), settle, lacking) if damage]:
            self.tell(lost)
            return False
        if "manifest.json" not in there:
            self._put_manifest(manifest)
        return True

    def damaged(self, how: Engine) -> list[Damaged]:
        """What is damaged of its finished files; those that are not have been fetched, and need not be again."""
        receipts = [name[1:-8] for name in self.store.listed(self.place("")) if name.endswith(".receipt")]
        names = list((self.manifest() or {"files": receipts})["files"])
        return [damage for damage in engine.run(how, self._damage, names) if damage]

    def _damage(self, name: str) -> Damaged | None:
        try:
            self.fetch(name)
        except Damaged as damage:
            return damage
        return None

    @staticmethod
    def tell(damaged: list[Damaged]) -> None:
        """Say which files of an entry are damaged, in one line, unless it was said."""
        if new := [damage for damage in damaged if damage.name not in _told]:
            _told.update(damage.name for damage in new)
            they = "it is" if len(new) == 1 else f"it and {len(new) - 1} more files beside it are"
            log.warning("%s; %s set aside and computed again", new[0], they)

    def finish(self, manifest: Json) -> None:
        """Put the manifest, once every file that it names is seen there, and remove the receipts."""
        files = manifest["files"]
        there = self.store.listed(self.place(""))
        for name, note in files.items():
            if there.get(name, (-1, 0.0))[0] != note["bytes"]:  # gc was at it, or somebody's hand
                if not self.entry.path(name).exists():
                    raise Damaged(self, name, f"expected {note['bytes']} bytes, found nothing")
                self.keep(name, note)
        self._put_manifest(manifest)
        self.store.remove([self.place(name) for name in there if name.endswith(".receipt")])

    def _put_manifest(self, manifest: Json) -> None:
        name, data = self.place("manifest.json"), seal(manifest)
        if not self.store.put(name, data, new=True) and self.store.read(name) != data:
            self.store.put(name, data)  # what was there is damaged, or of other bytes

    def fetch(self, name: str) -> Path:
        """The path of a file on this disk, as its manifest or receipt says it; fetched where it is not here.

        Raises Damaged where the store has other bytes or none.
        """
        entry, path = self.entry, self.entry.path(name)
        if entry.known(name):
            return path
        note = entry.receipt_here(name) or (self.manifest() or {"files": {}})["files"].get(name) or self._sealed_receipt(name)
        if note is None:
            raise Damaged(self, name, "no manifest or receipt tells of it")
        if os.path.lexists(path):
            if (problem := entry.examine(name, note)) is None:
                return path
            log.warning("%r is damaged: %s; it is set aside and fetched again", str(path), problem)
            entry.set_aside(path)
        with entry.temporary(name) as temporary:
            if not self.store.download(self.place(name), temporary):
                raise Damaged(self, name, f"expected {note['bytes']} bytes, found nothing")
            try:
                size, sha = hash_file(temporary)
                temporary.chmod(0o444)
            except OSError as error:
                raise from_os_error(error, path) from error
            if (size, sha) != (note["bytes"], note["sha256"]):
                self._quarantine(name)
                raise Damaged(
                    self, name, f"expected {note['bytes']} bytes, sha256 {note['sha256']}, found {size} bytes, sha256 {sha}"
                )
            with storing(path):
                entry.adopt(temporary, name)
        trim(entry, name, size)
        return path

    def _quarantine(self, name: str) -> None:
        aside = f"quarantine/{self.entry.stage}-{self.entry.key}-{name}-{time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):  # another machine was faster
            self.store.copy(self.place(name), self.store, aside)
            self.store.remove([self.place(name), self._receipt_place(name)])


# -- the scratch ------------------------------------------------------------------------------------------


def trim(entry: "Entry", name: str, added: int) -> None:
    """Drop the oldest shards of a scratch that holds more than `cache.scratch_bytes`, if the store has them.

    `name` of `entry` is what was just added, of so many bytes, and stays. Counted anew whenever a sixteenth of the
    bound has been added.
    """
    cache = entry.cache
    if cache.scratch_bytes is None:
        return
    _added[cache.root] = _added.get(cache.root, float("inf")) + added
    if _added[cache.root] <= cache.scratch_bytes:
        return
    found: list[tuple[int, int, Path]] = []
    for path in cache.root.glob("*/*/*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            if SHARD.fullmatch(path.name) and state.st_nlink == 1:  # an output's link would keep the room
                found.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in found)
    store = Store(str(cache.remote))
    for _, size, path in sorted(found):
        if total <= cache.scratch_bytes * 15 // 16:
            break
        if path == entry.path(name) or store.size(str(path.relative_to(cache.root))) != size:
            continue
        for gone in (path.parent / "manifest.json", path.parent / f".{path.name}.receipt", path):
            with contextlib.suppress(OSError):
                gone.unlink()
        total -= size
    _added[cache.root] = max(total, cache.scratch_bytes * 15 // 16)
