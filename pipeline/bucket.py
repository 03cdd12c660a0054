"""The finished dataset in a bucket: putting it there, and reading it where it lies.

    s3://bucket/sets/verdict/
      .dataset              this place is ours: put before anything else
      3f0c…/                a whole dataset, file by file that of a folder on a disk; named by its content
      manifest.json         put last: that of the dataset, and "at": which of these folders it is
      run.json report.html  what differs between equal runs

A store has no rename of a folder, so nothing is ever replaced: another dataset lies beside under another name, and
one small object says which holds. It appears whole or not at all, so that a reader, who reads it first, sees the old
dataset or the new one and never a mixture. Then the old one is removed, and what killed runs left a day ago or more.
Who still reads the old one is told so. Files that the cache has in the same store are copied within it, unread.
Where the same dataset is there already it is read, and what is damaged of it is put again.

    open_dataset("s3://bucket/sets/verdict")

reads the manifest, compares sizes with one listing, and fetches a file into a folder of this disk, `scratch`, when one
of its rows is first asked for. It is hashed as it arrives. A folder there is named by the dataset's content, too, so
that jobs and processes may share it and what was fetched serves the next.
"""

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import engine, manifests, output
from pipeline.config import Engine
from pipeline.errors import ConfigError, IntegrityError
from pipeline.files import Json, digest, hash_file, seal, storing, unsealed
from pipeline.remote import DAY, Kept, Store
from pipeline.stores import URL

log = logging.getLogger(__name__)

OURS = ".dataset"
AT = re.compile(r"[0-9a-f]{16}")
PUTS = 4  # files put side by side
SCRATCH = "data/scratch"  # by default, where files of a dataset in a bucket are fetched to


@dataclass(frozen=True)
class Place:
    """Where a dataset is to be put, by its address. Raises ResourceError where the store cannot be reached."""

    url: str
    aside: Path = Path(SCRATCH)  # where runs have their temporary folders

    def __str__(self) -> str:
        return self.url

    @property
    def store(self) -> Store:
        """It, as a store."""
        return Store(self.url)

    def manifest(self) -> Json | None:
        """The manifest of the dataset that is there, with "at"; None where there is none, or not as it was written."""
        data = self.store.read("manifest.json")
        return unsealed(data, f"{self.url}/manifest.json") if data is not None else None

    def require_ours(self) -> None:
        """Raise ConfigError, before any work, where something lies there that is not a dataset of ours, or of a sweep."""
        inside = set(self.store.inside()) - {"probe"}
        if inside and OURS not in inside and not all(OURS in self.store.inside(name) for name in inside):
            raise ConfigError(
                f"{self.url!r} holds what this pipeline did not put there: nothing was touched. Set output.dir= or name=."
            )

    def holds(self, links: dict[str, output.File], texts: dict[str, bytes], manifest: Json) -> bool:
        """Is this the dataset that is there, by its manifest?"""
        manifest = output.describe(links, texts, manifest)
        return self.manifest() == {**manifest, "at": digest(manifest)[:16]}

    def publish(self, links: dict[str, output.File], texts: dict[str, bytes], manifest: Json, run: str) -> bool:
        """Put a dataset there, as `output.publish` does on a disk. False where the same one is there already, and whole.

        That is known once it was read; then what is damaged of it is put anew, and that from bytes that were verified.
        """
        manifest = output.describe(links, texts, manifest)
        at, texts = digest(manifest)[:16], {**texts, "manifest.json": seal(manifest)}
        notes = output.describe(links, texts, {})["files"]
        self.require_ours()
        old = self.manifest()
        again = old == {**manifest, "at": at}
        todo = self._damaged(at, notes) if again else self._lacking(at, notes)
        if again and not todo:
            return False
        self.store.put(OURS, seal({"dataset": True}))

        def put(name: str) -> None:
            if name in texts:
                self.store.put(f"{at}/{name}", texts[name])
            else:
                self._put(links[name][0], f"{at}/{name}", copy=not again)

        for _ in range(3):
            for _ in engine.run(Engine("threads", PUTS), put, todo):
                pass
            if not (todo := self._lacking(at, notes)):
                break
        self.store.put("manifest.json", seal({**manifest, "at": at}))
        self._clear(at, (old or {}).get("at"))
        return True

    def _lacking(self, at: str, notes: dict[str, Json]) -> list[str]:
        """The files that are not there with their size."""
        there = self.store.listed(at)
        return [name for name, note in notes.items() if there.get(name, (-1, 0.0))[0] != note["bytes"]]

    def _damaged(self, at: str, notes: dict[str, Json]) -> list[str]:
        """The files that are not there with their bytes, said aloud. Reads them all."""
        from pipeline.housekeeping import differs

        def examine(name: str) -> str | None:
            return differs(self.store, f"{at}/{name}", notes[name]["bytes"], notes[name]["sha256"])

        problems = dict(zip(notes, engine.run(Engine("threads", PUTS), examine, notes), strict=True))
        damaged = [name for name, problem in problems.items() if problem]
        for name in damaged:
            log.warning("'%s/%s/%s' is damaged: %s; it is put again", self.url, at, name, problems[name])
        return damaged

    def _put(self, source: os.PathLike[str], name: str, copy: bool) -> None:
        shelf = source.entry.shelf if isinstance(source, Kept) else None
        if copy and isinstance(source, Kept) and shelf and _protocol(shelf.store.url) == _protocol(self.url):
            with contextlib.suppress(FileNotFoundError):  # else it is fetched, which says what is wrong
                shelf.store.copy(shelf.place(source.name), self.store, name)
                return
        self.store.upload(Path(source), name)

    def _clear(self, at: str, old: str | None) -> None:
        """Remove the dataset that was replaced, and what is left of others that were never finished."""
        there = self.store.listed()
        now = there["manifest.json"][1] if "manifest.json" in there else 0.0
        newest: dict[str, float] = {}
        for name, (_, put) in there.items():
            top = name.partition("/")[0]
            if AT.fullmatch(top) and top != at:
                newest[top] = max(put, newest.get(top, 0.0))
        gone = {top for top, put in newest.items() if top == old or put < now - DAY}
        self.store.remove([name for name in there if name.partition("/")[0] in gone])
        self.store.sweep()

    def write_run(self, record: Json, run: str) -> None:
        """`run.json`, beside the manifest, which does not list it."""
        self.store.put("run.json", output.run_text(record).encode())

    def has_report(self) -> bool:
        """Is there a page about the dataset?"""
        return self.store.size(output.REPORT) is not None

    def write_report(self, run: str) -> None:
        """Make the page about the dataset from what it needs of its files, which are fetched for that, and put it there."""
        try:
            self._write_report(run, self.aside / run / "page")
        finally:
            engine.surely(lambda: shutil.rmtree(self.aside / run, ignore_errors=True))

    def _write_report(self, run: str, place: Path) -> None:
        from pipeline import report
        from pipeline.trace import Finished

        mirror = Mirror(self.url, place)
        mirror.bring(name for name in mirror.manifest["files"] if not name.endswith((".arrow", ".safetensors")))

        class Fetched(Finished):
            """A dataset whose files are fetched as they are looked at."""

            def file(self, name: str) -> Path:
                return mirror.fetch((self.folder / name).relative_to(mirror.folder).as_posix())

        (mirror.folder / "run.json").write_bytes(self.store.read("run.json") or b"{}")
        report.write(mirror.folder, run, Fetched)
        for split in ("", *mirror.manifest.get("splits", ())):
            name = f"{split}/{output.REPORT}".lstrip("/")
            self.store.put(name, (mirror.folder / name).read_bytes())


def verify(url: str) -> Iterator[tuple[str, str | None]]:
    """Hash every file of a dataset where it lies; for each its address and what is wrong with it, or None."""
    from pipeline.housekeeping import differs

    top = Place(url.rstrip("/")).manifest()
    if top is None:
        raise IntegrityError(f"{url!r} has no manifest.json that is whole: it is not a finished dataset of this pipeline.")
    manifests.require(top, f"{url.rstrip('/')}/manifest.json")
    store = Store(f"{url.rstrip('/')}/{top['at']}" if "at" in top else url)
    for name, note in top["files"].items():
        yield f"{store.url}/{name}", differs(store, name, note["bytes"], note["sha256"])


def is_address(path: str | os.PathLike[str] | None) -> bool:
    """Is it the address of a place in a store?"""
    return isinstance(path, str) and URL.match(path) is not None


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()


def _reopened(url: str, base: str, manifest: Json, scratch: Path) -> "Mirror":
    """What was pickled, as it was: no manifest is read again."""
    mirror = Mirror.__new__(Mirror)
    mirror._set_up(url, base, manifest, scratch)
    return mirror


class Mirror:
    """A dataset in a store, and the folder of this disk to which its files are fetched. Safe to share between threads.

    Raises ConfigError where there is none, IntegrityError where its manifest is not as it was written.
    """

    def __init__(self, url: str, scratch: str | os.PathLike[str] = SCRATCH) -> None:
        url = url.rstrip("/")
        top = self._read(url)
        base = f"{url}/{top['at']}" if "at" in top else url
        self._set_up(url, base, self._read(base), Path(scratch).absolute())

    def _set_up(self, url: str, base: str, manifest: Json, scratch: Path) -> None:
        self.url, self.base, self.manifest, self.scratch = url, base, manifest, scratch
        self.folder = self.scratch / digest(self.manifest)[:16]
        self._lock = threading.Lock()
        self._whole: set[str] = set()
        self._keep("manifest.json", seal(self.manifest))

    def _read(self, url: str) -> Json:
        data = Store(url).read("manifest.json")
        if data is None:
            raise ConfigError(f"{url!r} is no finished dataset: it has no manifest.json.")
        manifest = unsealed(data, f"{url}/manifest.json")
        if manifest is None:
            raise IntegrityError(f"'{url}/manifest.json' is not as it was written: run the pipeline again to restore it.")
        return manifests.require(manifest, f"{url}/manifest.json")

    def split(self, name: str | None) -> "Mirror":
        """One of its splits; itself where `name` is None."""
        return self if name is None else Mirror(f"{self.base}/{name}", self.scratch)

    def require_sizes(self) -> None:
        """Raise IntegrityError where the store lacks a file, or has one of another size."""
        there = Store(self.base).listed()
        for name, note in self.manifest["files"].items():
            size, _ = there.get(name, (-1, 0.0))
            if size != note["bytes"]:
                found = f"{size} bytes" if size >= 0 else "nothing"
                raise IntegrityError(
                    f"'{self.base}/{name}' is damaged: expected {note['bytes']} bytes, found {found}. Run the pipeline again."
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.url, self.base, self.manifest, self.scratch)

    def bring(self, names: Iterable[str]) -> None:
        """Have these files here."""
        for name in names:
            self.fetch(name)

    def fetch(self, name: str) -> Path:
        """A file on this disk, whose sha256 was found right once. Raises IntegrityError where the store has another."""
        path, note = self.folder / name, self.manifest["files"][name]
        with self._lock:
            if name in self._whole and path.exists():
                return path
        with storing(path):
            if path.exists() and hash_file(path) == (note["bytes"], note["sha256"]):
                self._whole.add(name)
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.fetching-{os.getpid()}-{time.monotonic_ns()}")
            try:
                if not Store(self.base).download(name, temporary):
                    raise IntegrityError(f"'{self.base}/{name}' is gone: the dataset was replaced while in use, or damaged.")
                size, sha = hash_file(temporary)
                if (size, sha) != (note["bytes"], note["sha256"]):
                    raise IntegrityError(
                        f"'{self.base}/{name}' is damaged: expected {note['bytes']} bytes, sha256 {note['sha256']}, "
                        f"found {size} bytes, sha256 {sha}. Run the pipeline again."
                    )
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        self._whole.add(name)
        return path

    def _keep(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with storing(path):
            if path.exists() and path.read_bytes() == data:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.fetching-{os.getpid()}-{time.monotonic_ns()}")
            temporary.write_bytes(data)
            os.replace(temporary, path)
