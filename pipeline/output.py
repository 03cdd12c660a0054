"""The finished dataset: one folder that `datasets`, plain pyarrow and `open_dataset` read.

    outputs/verdict/
      data-00000000.arrow …        windows, Arrow IPC streams (hard links into the cache where the disk allows it)
      documents.arrow           source, byte range and place in the ID stream of every document
      state.json dataset_info.json   what `datasets.load_from_disk` looks for
      tokenizer/ vocabulary.json embeddings.safetensors README.md
      manifest.json             configuration, keys, ledger, hashes, versions: equal for equal bytes
      sources.jsonl             the input files, where they are more than 10,000; else the manifest lists them
      run.json report.html      what differs between equal runs: times, engine, workers, host; and a page for a person

A folder is built beside its place and swapped in by one rename. Only a folder that holds a manifest of ours is
ever replaced.

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
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import engine, files, manifests
from pipeline.errors import ConfigError, PipelineError, ResourceError, from_os_error
from pipeline.files import Json
from pipeline.split import ordered
from pipeline.temporary import NAME, alive, run_name

log = logging.getLogger(__name__)

File = tuple[os.PathLike[str], Json]  # a finished file of the cache and its receipt
RENAME_EXCHANGE, AT_FDCWD = 2, -100

_serial = itertools.count()
WORKSHOP = ".tmp"  # beside the dataset: where it is built
MANIFESTS = ("manifest.json", "export.json")  # of a dataset, of an export
REPORT = "report.html"
SOURCES = "sources.jsonl"  # what the manifest says of the input files, where they are more than LISTED
LISTED = 10_000  # input files that a manifest lists itself
UNLISTED = ("run.json", REPORT)  # beside the manifest: what differs between equal runs
SWEEP = "sweep.html"  # beside the jobs of a sweep
STAGES = ("load", "fingerprint", "selection", "tokenizer", "tokenize", "encode", "arrange", "window", "embed")


def in_order(stages: Json) -> list[tuple[str, Any]]:
    """What is known by stage, or by stage and split, in the order of the line."""
    return [(name, known) for stage in STAGES for name, known in stages.items() if name.partition(" ")[0] == stage]


@dataclass(frozen=True)
class Folder:
    """Where a dataset is to be put, on this disk; `bucket.Place` is the same in a store."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def require_ours(self) -> None:
        """As the function."""
        require_ours(self.path)

    def holds(self, links: dict[str, File], texts: dict[str, bytes], manifest: Json) -> bool:
        """Is this the dataset that is there, by its manifest?"""
        return files.unseal(self.path / "manifest.json") == describe(links, texts, manifest)

    def publish(self, links: dict[str, File], texts: dict[str, bytes], manifest: Json, run: str) -> bool:
        """As the function."""
        return publish(self.path, links, texts, manifest, run)

    def write_run(self, record: Json, run: str) -> None:
        """As the function."""
        write_run(self.path, record, run)

    def has_report(self) -> bool:
        """Is there a page about the dataset?"""
        return os.path.lexists(self.path / REPORT)

    def write_report(self, run: str) -> None:
        """Write the page about it."""
        from pipeline import report

        report.write(self.path, run)


def require_ours(folder: Path) -> None:
    """Raise, before any work, where no dataset can be put at `folder`.

    ConfigError where something lies there that is not a dataset of ours (an empty folder, or one with nothing but
    datasets of ours, will do); IntegrityError where its manifest is none of ours for all its seal; ResourceError where
    the place cannot be written.
    """
    if folder.name == WORKSHOP:
        raise ConfigError(f"{str(folder)!r} is where datasets are built: set output.dir= or name=.")
    try:
        os.lstat(folder)
    except FileNotFoundError:
        _require_writable(folder)
        return
    except OSError as error:
        raise from_os_error(error, folder) from error
    if folder.is_dir() and not folder.is_symlink():
        inside = {p.name for p in folder.iterdir()} - {WORKSHOP, SWEEP}
        if not inside or manifests.read(folder / "manifest.json") is not None or all(_is_dataset(folder / n) for n in inside):
            _require_writable(folder)
            return
    if os.path.lexists(folder / "manifest.json") and folder.is_symlink():
        raise ConfigError(
            f"{str(folder)!r} is a symbolic link, whose place a dataset would take: nothing was touched. Set output.dir= to "
            f"where it leads, {os.path.realpath(folder)!r}."
        )
    if os.path.lexists(folder / "manifest.json"):
        raise ConfigError(
            f"{str(folder)!r} holds a damaged or foreign manifest.json, so that nothing tells whether it is a dataset of this "
            "pipeline: nothing was touched. Remove the folder, or set output.dir= or name=."
        )
    raise ConfigError(
        f"{str(folder)!r} exists and was not written by this pipeline: nothing was touched. Set output.dir= or name=."
    )


def _require_writable(folder: Path) -> None:
    place = folder.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"{str(place)!r} cannot be written by user {os.getuid()}: set output.dir=.")


def _is_dataset(folder: Path) -> bool:
    return folder.is_dir() and files.unseal(folder / "manifest.json") is not None


def features(schema: Any) -> Json:
    """The columns of an Arrow schema as Hugging Face features, JSON form (datasets 4 and newer)."""
    import pyarrow as pa

    def feature(kind: Any) -> Json:
        if pa.types.is_fixed_size_list(kind):
            return {"feature": feature(kind.value_type), "length": kind.list_size, "_type": "List"}
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": {"float": "float32", "halffloat": "float16"}.get(str(kind), str(kind)), "_type": "Value"}

    return {field.name: feature(field.type) for field in schema}


def dataset_json(schema: Any, names: list[str], fingerprint: str, description: str) -> dict[str, bytes]:
    """`state.json` and `dataset_info.json` as `datasets.Dataset.save_to_disk` lays them out."""
    state: Json = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": description, "features": features(schema), "homepage": "", "license": ""}
    return {"state.json": _json(state), "dataset_info.json": _json(info)}


def split_json(names: list[str]) -> bytes:
    """`dataset_dict.json` as `datasets.DatasetDict.save_to_disk` lays it out."""
    return _json({"splits": names})


def list_sources(sources: list[Json]) -> tuple[list[Json], dict[str, bytes]]:
    """What a manifest says of its input files, and the small file beside it that does so where they are many."""
    if len(sources) <= LISTED:
        return sources, {}
    return [], {SOURCES: b"".join(json.dumps(source, sort_keys=True).encode() + b"\n" for source in sources)}


def sources(folder: Path, manifest: Json) -> list[Json]:
    """`path`, `bytes`, `sha256`, and `part` of a mixture, of each input file of the dataset at `folder`, in order."""
    if SOURCES not in manifest["files"]:
        return list(manifest["sources"])
    files.require_whole(folder / SOURCES, manifest["files"][SOURCES])
    with open(folder / SOURCES, "rb") as file:
        return [json.loads(line) for line in file]


def card(name: str, manifest: Json, inputs: list[Json]) -> bytes:
    """The dataset card: YAML front matter by huggingface_hub, then what a person wants to know first."""
    from huggingface_hub.repocard_data import DatasetCardData

    rows, ids = manifest["rows"], manifest["ledger"]["encode"]["ids"]
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    size = next((text for bound, text in bounds if rows < bound), "n>10M")
    data_files = [{"split": split, "path": f"{split}/data-*.arrow"} for split, _ in ordered(manifest.get("splits", {}))]
    data_files = data_files or [{"split": "train", "path": "data-*.arrow"}]
    # Without `configs`, `load_dataset` of the pushed folder would take the JSON files for the data.
    data = DatasetCardData(
        pretty_name=name,
        task_categories=["text-generation"],
        size_categories=[size],
        tags=["pretraining"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    ledger = "\n".join(
        f"| {stage} | {what.replace('_', ' ')} | {count:,} |"
        for stage, counts in in_order(manifest["ledger"])
        for what, count in sorted(counts.items())
    )
    keys = "\n".join(f"| {stage} | `{key}` |" for stage, key in in_order(manifest["keys"]))
    sources = "\n".join(f"| {_cell(os.path.basename(s['path']))} | {s['bytes']:,} | `{s['sha256']}` |" for s in inputs[:100])
    more = len(inputs) - 100
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{rows:,} rows from {ids:,} token IDs, prepared for pretraining.\n\n"
        f"{manifest['shift']}\n\n"
        f"## Ledger\n\n| stage | what | count |\n|---|---|---|\n{ledger}\n\n"
        f"## Sources\n\n| file | bytes | sha256 |\n|---|---|---|\n{sources}\n"
        + (f"\nand {more:,} more in `{SOURCES if len(inputs) > LISTED else 'manifest.json'}`.\n" if more > 0 else "")
        + f"\n## Keys\n\n| stage | key |\n|---|---|\n{keys}\n"
    ).encode()


def _cell(name: str) -> str:
    """The name of a file as Markdown shows it in a table, whatever it holds."""
    return "".join(c if c.isalnum() or c in " ._/:!,=+'-" else f"&#{ord(c)};" for c in repr(name))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def publish(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, run: str) -> bool:
    """Put a dataset at `folder`. Returns False where the same one is there already, untouched and whole.

    `links` maps names in the folder to a finished file of the cache and its receipt; `texts` are
    small files by content; `manifest` gains "files". Raises ConfigError where something that is not ours is there.
    """
    manifest = describe(links, texts, manifest)
    notes = manifest["files"]
    require_ours(folder)
    with _workshop(folder, run) as place, files.storing(folder):
        if files.unseal(folder / "manifest.json") == manifest and _whole(folder, links, notes):
            return False
        _require_room(folder, links)
        _insist(lambda: _swap_in(folder, links, texts, manifest, place))
    return True


def describe(links: dict[str, File], texts: dict[str, bytes], manifest: Json) -> Json:
    """The manifest of a folder that holds these files, by name: with "files", each with its size, hash and rows."""
    import hashlib

    notes = {
        name: {"bytes": note["bytes"], "sha256": note["sha256"]}
        | ({"rows": note["counts"].get("rows", 0)} if "counts" in note else {})
        for name, (_, note) in links.items()
    }
    notes |= {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in texts.items()}
    return {"schema": files.SCHEMA, **manifest, "files": notes}


@contextlib.contextmanager
def _workshop(folder: Path, run: str) -> Iterator[Path]:
    """The run's own folder beside `folder`, gone afterwards. What dead runs left in theirs goes too."""
    workshop = folder.parent / WORKSHOP
    with contextlib.suppress(OSError):
        for other in workshop.iterdir():
            with contextlib.suppress(OSError):
                if not alive(other):
                    _clear(other)
    try:
        yield workshop / run
    finally:
        engine.surely(lambda: _clear(workshop / run))
        with contextlib.suppress(OSError):
            workshop.rmdir()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which is swapped with what is at `folder`, if anything, where the block ends well.

    What else lies there stays.
    """
    with _workshop(folder, run_name(next(_serial))) as place, _swapping(folder, place) as new:
        yield new


@contextlib.contextmanager
def _swapping(folder: Path, place: Path) -> Iterator[Path]:
    """As `replacing`, in the workshop `place`. The folder lies in `new` until it is finished, and then in `old`, where what
    it is swapped with comes to lie. Raises FileNotFoundError where the workshop went with a folder around it meanwhile.
    """
    new, ready = place / "new" / folder.name, place / "old" / folder.name
    _make(new)
    handle = os.open(new, os.O_RDONLY | os.O_DIRECTORY)  # while it is open no other folder gets its number
    try:
        yield new
        _make(ready.parent)
        for made in (*(p for p in new.rglob("*") if p.is_dir()), new, ready.parent):
            files.fsync_dir(made)
        if not _same(new, handle):  # made again by a step in the middle, and so not whole
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(new))
        os.rename(new, ready)
        _exchange(ready, folder)
        files.fsync_dir(folder.parent)
    finally:
        os.close(handle)


def _clear(place: Path, home: Path | None = None) -> None:
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
                        _clear(run, home)
                    else:
                        _moved(run, there / run.name)
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.is_dir() and not path.is_symlink():
                if there.is_file():
                    _rename(path, there)
                elif path in ours or not _moved(path, there):
                    while not {path, there} & ours and _later(path / "manifest.json", there / "manifest.json"):
                        _exchange(path, there, old)  # another run has put its dataset into the old folder since
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
        return path.lstat().st_mtime_ns > than.lstat().st_mtime_ns and not _same(path, than)
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


def _make(folder: Path) -> None:
    """Create a folder of the workshop."""
    _insist(lambda: folder.mkdir(parents=True, exist_ok=True))


def _insist(step: Callable[[], None]) -> None:
    """Take a step in a folder that another run may be removing or replacing at this moment; then there is a new one."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return step()
        time.sleep(0.01)
    return step()


def _whole(folder: Path, links: dict[str, File], notes: dict[str, Json]) -> bool:
    """Is every file of the folder what its manifest says? A link to a file of the cache that was just verified is."""
    for name, note in notes.items():
        path = folder / name
        if name in links and _same(path, str(links[name][0])):
            continue
        if problem := files.compare(path, note)[0]:
            log.warning("%r is damaged: %s; the dataset is written again", str(path), problem)
            return False
    return True


def _same(path: Path, other: Path | str | int) -> bool:
    """Are these one file or folder, by another name or opened?"""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.stat(other))
    return False


def _swap_in(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, place: Path) -> None:
    """Build the dataset in the workshop `place` and swap it with what is at `folder`."""
    _clear(place)  # of what a folder around it took away in the middle
    with _swapping(folder, place) as new:
        while not _build(folder, links, texts, manifest, new):
            for path in new.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _build(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, new: Path) -> bool:
    """The dataset at `new`, with what else lies at `folder`. False where another run has replaced that meanwhile: of a
    folder that is being removed some may be gone already.
    """
    for name in (*links, *texts):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
    for name, (source, _) in links.items():
        _link(source, new / name)
    for name, data in {**texts, "manifest.json": files.seal(manifest)}.items():
        with open(new / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # while it is open no other folder gets its number
    except FileNotFoundError:
        return True
    try:
        return _carry(folder, new) and _same(folder, handle)
    except (FileNotFoundError, ConfigError):
        if _same(folder, handle):
            raise
        return False
    finally:
        os.close(handle)


def _require_room(folder: Path, links: dict[str, File]) -> None:
    """Raise ResourceError where the cache lies on another disk, so that its files are copied, and they do not fit here."""
    here = files.existing(folder).stat().st_dev
    elsewhere = (note["bytes"] for source, note in links.values() if files.existing(Path(str(source))).stat().st_dev != here)
    files.require_space(folder, sum(elsewhere))


def _carry(old: Path, new: Path) -> bool:
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
            _link(Path(here, name), new / place / name)
    return all(os.path.samestat(state, path.lstat()) for path, state in known.items())


def _link(source: os.PathLike[str] | str, target: Path | str) -> None:
    """The file of the cache under a second name; a copy where the file system has no hard links."""
    source = os.fspath(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())


def _exchange(new: Path, old: Path, place: Path | None = None) -> None:
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


def write_run(folder: Path, record: Json, run: str) -> None:
    """`run.json`: what differs between two runs with equal bytes. Promised to nobody."""
    write_text(folder, "run.json", run_text(record), run)


def run_text(record: Json) -> str:
    """The content of `run.json`."""
    return _json(record).decode()


def write_text(folder: Path, name: str, text: str, run: str) -> None:
    """A file in the folder, or in that of a split, that no manifest lists, replaced atomically."""
    with _workshop(folder, run) as place, files.storing(folder / name):
        new = place / Path(name).name

        def put() -> None:
            _make(place)
            new.write_text(text, "utf-8")
            os.replace(new, folder / name)

        _insist(put)
