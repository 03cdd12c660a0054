"""A folder put in the place of another, losing nothing of what else lies there.

    outputs/.tmp/<run>/new/verdict     is built, and every name in it has reached the disk
                      /old/verdict     then it is renamed to here, and exchanged with outputs/verdict in one step

**What else lies in a folder that is replaced** (the jobs of a sweep, a person's notes) is linked into the new one before
it is swapped in, so that nothing is away for a moment; what comes after that, be it another run's dataset, moves over
from the old one as that is emptied. There a file is unlinked only where the old dataset's manifest lists it, or where
the new folder has it or a later one of its name; the rest is renamed into the new folder; and a folder goes by `rmdir`,
which refuses where something has just come, and then it is looked through again. From then on a writer who had reached
the old folder is told that it is gone, and ours begin anew. So nothing can fall between the two, and no lock is needed.
A kill in the middle leaves the old folder in the workshop, and the next run goes on emptying it.
"""

import contextlib
import ctypes
import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import engine, files
from pipeline.errors import ConfigError, PipelineError
from pipeline.files import Json
from pipeline.temporary import NAME, alive, run_name

log = logging.getLogger(__name__)

RENAME_EXCHANGE, AT_FDCWD = 2, -100
WORKSHOP = ".tmp"  # beside the dataset: where it is built
MANIFESTS = ("manifest.json", "export.json")  # of a dataset, of an export
UNLISTED = ("run.json", "report.html")  # beside the manifest: what differs between equal runs

_serial = itertools.count()


@contextlib.contextmanager
def workshop(folder: Path, run: str) -> Iterator[Path]:
    """The run's own folder beside `folder`, gone afterwards. What dead runs left in theirs goes too."""
    around = folder.parent / WORKSHOP
    with contextlib.suppress(OSError):
        for other in around.iterdir():
            with contextlib.suppress(OSError):
                if not alive(other):
                    clear(other)
    try:
        yield around / run
    finally:
        engine.surely(lambda: clear(around / run))
        with contextlib.suppress(OSError):
            around.rmdir()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which is swapped with what is at `folder`, if anything, where the block ends well.

    What else lies there stays.
    """
    with workshop(folder, run_name(next(_serial))) as place, swapping(folder, place) as new:
        yield new


@contextlib.contextmanager
def swapping(folder: Path, place: Path) -> Iterator[Path]:
    """As `replacing`, in the workshop `place`. The folder lies in `new` until it is finished, and then in `old`, where what
    it is swapped with comes to lie. Raises FileNotFoundError where the workshop went with a folder around it meanwhile.
    """
    new, ready = place / "new" / folder.name, place / "old" / folder.name
    make(new)
    handle = os.open(new, os.O_RDONLY | os.O_DIRECTORY)  # while it is open no other folder gets its number
    try:
        yield new
        make(ready.parent)
        for made in (*(p for p in new.rglob("*") if p.is_dir()), new, ready.parent):
            files.fsync_dir(made)
        if not same(new, handle):  # made again by a step in the middle, and so not whole
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(new))
        os.rename(new, ready)
        try:
            exchange(ready, folder)
        except OSError:
            if same(ready, handle):  # it was not swapped in: what lies there is ours, and no other's
                shutil.rmtree(ready, ignore_errors=True)
            raise
        files.fsync_dir(folder.parent)
    finally:
        os.close(handle)


def clear(place: Path, home: Path | None = None) -> None:
    """Remove a run's folder. What it had moved aside and not replaced yet returns first, to `home`, and so does what else
    lay in a folder that it has replaced, or all stays.
    """
    for _ in range(10):
        with contextlib.suppress(OSError, PipelineError):
            for old in (*place.glob("aside*/*"), *(place / "old").glob("*")):
                there = (home or place.parents[1]) / old.name
                if os.path.lexists(there):
                    _empty(old, there)
                else:
                    os.rename(old, there)
            return shutil.rmtree(place, ignore_errors=True)
        time.sleep(0.01)  # a folder around it is being replaced, it may be


def _empty(old: Path, home: Path, ours: frozenset[Path] = frozenset()) -> None:
    """Remove a folder that `home` has replaced. What is not of its dataset, and has come since the rest was linked, moves
    there. `ours` are the files of both datasets, and the folders that they lie in. Raises OSError.
    """
    mine, theirs = _manifest(old), _manifest(home)
    ours |= _paths(old, mine) | _paths(home, theirs)
    if mine.get("ledger") and mine != theirs:
        ours |= {old / name for name in UNLISTED}
    for last in (False,) * 100 + (True,):
        for path in sorted(old.iterdir(), key=lambda path: path.name in MANIFESTS):  # last, as it tells what may go
            there = home / path.name
            if path.name == WORKSHOP and not path.is_symlink():  # whose run finds it gone, and begins anew
                for run in path.iterdir():
                    if NAME.fullmatch(run.name):
                        clear(run, home)
                    else:
                        _moved(run, there / run.name)
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.is_dir() and not path.is_symlink():
                if there.is_file():
                    _rename(path, there)
                elif path in ours or not _moved(path, there):
                    while not {path, there} & ours and _later(path / "manifest.json", there / "manifest.json"):
                        exchange(path, there, old)  # another run has put its dataset into the old folder since
                    _empty(path, there, ours)
            elif path in ours:
                path.unlink()
            elif path.name.startswith(".nfs"):
                continue  # what is open and was unlinked, on a network file system
            elif there in ours or there.is_dir():
                _rename(path, there)
            elif not os.path.lexists(there) or _later(path, there):
                there.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, there)
            else:
                path.unlink()
        try:
            return os.rmdir(old)
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _manifest(folder: Path) -> Json:
    """The manifest of the dataset or the export in a folder; one that lists nothing where there is none."""
    return next((found for name in MANIFESTS if (found := files.unseal(folder / name))), {"files": {}})


def _paths(folder: Path, manifest: Json) -> set[Path]:
    """The files of the dataset or the export in a folder, and the folders in it that they lie in."""
    if not manifest["files"]:
        return set()
    found = {folder / name for name in (*MANIFESTS, *manifest["files"])}
    return found | {up for path in found for up in path.parents if up.is_relative_to(folder) and up != folder}


def _later(path: Path, than: Path) -> bool:
    """Are both there, and the first one is another file, and the later one?"""
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime_ns > than.lstat().st_mtime_ns and not same(path, than)
    return False


def _moved(folder: Path, there: Path) -> bool:
    """Move a folder, where nothing is in its place."""
    there.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        try:
            os.rename(folder, there)
            return True
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    return False


def _rename(path: Path, there: Path) -> None:
    """Move what has a name that the new dataset has taken, under another; an empty folder goes."""
    with contextlib.suppress(OSError):
        return path.rmdir()
    free = next(free for n in itertools.count(1) if not os.path.lexists(free := there.with_name(f"{there.name}~{n}")))
    log.warning("%r was in the way of what is new: it is %r now", str(there), free.name)
    os.rename(path, free)


def make(folder: Path) -> None:
    """Create a folder of the workshop."""
    insist(lambda: folder.mkdir(parents=True, exist_ok=True))


def insist(step: Callable[[], None]) -> None:
    """Take a step in a folder that another run may be removing or replacing at this moment; then there is a new one."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return step()
        time.sleep(0.01)
    return step()


def same(path: Path, other: Path | str | int) -> bool:
    """Are these one file or folder, by another name or opened?"""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.stat(other))
    return False


def carry(old: Path, new: Path) -> bool:
    """What else lies in a folder that is replaced stays in it: the jobs of a sweep, a person's notes. False where a folder
    in it was replaced meanwhile, so that some may be of one and some of the other.

    Raises ConfigError where it is in the way of what is new.
    """
    known: dict[Path, os.stat_result] = {}
    ours = {"manifest.json", *(files.unseal(old / "manifest.json") or {"files": {}})["files"]}
    places = {os.path.dirname(name) for name in ours}  # the folder itself, and those of splits
    for here, folders, names in os.walk(old):
        place = Path(here).relative_to(old)
        folders[:] = [name for name in folders if name != WORKSHOP]
        known |= {path: path.lstat() for path in (Path(here, name) for name in folders)}
        blocked = any((new / up).is_file() for up in (place, *place.parents))  # it lies in the place of a file
        names += [name for name in folders if Path(here, name).is_symlink()]
        apart = UNLISTED if os.path.dirname(place / "x") in places else ()
        kept = [name for name in names if name not in apart and str(place / name) not in ours]
        clash = [name for name in kept if blocked or os.path.lexists(new / place / name)]
        if clash:
            raise ConfigError(
                f"{here!r} holds {', '.join(map(repr, sorted(clash)[:3]))}, which this pipeline did not write and "
                "which is in the way of the new dataset: nothing was replaced. Move it away, or set output.dir= or name=."
            )
        if kept or not (names or blocked):
            (new / place).mkdir(parents=True, exist_ok=True)
        for name in kept:
            link(Path(here, name), new / place / name)
    return all(os.path.samestat(state, path.lstat()) for path, state in known.items())


def link(source: os.PathLike[str] | str, target: Path | str) -> None:
    """The file of the cache under a second name; a copy where the file system has no hard links."""
    source = os.fspath(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())


def exchange(new: Path, old: Path, place: Path | None = None) -> None:
    """Put a folder in the place of another, and that, if there is one, in its: in one step where the kernel can
    (renameat2), else in three, by way of a folder in `place`.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    for last in (False,) * 100 + (True,):
        if renameat2 and renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
        missing = renameat2 is not None and ctypes.get_errno() == errno.ENOENT  # nothing was there, else they were exchanged
        aside = (place or new.parents[1]) / f"aside{next(_serial)}" / new.name
        try:
            if not os.path.lexists(old):
                return os.rename(new, old)
            if missing and not last:
                continue  # it has come this moment: taken aside it would be away for another
            aside.parent.mkdir()
            os.rename(old, aside)
            os.rename(new, old)
            os.rename(aside, new)
            return aside.parent.rmdir()
        except OSError as error:  # another run has just put its own there, or taken the old one away
            if last or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                raise
