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
"""

import contextlib
import ctypes
import errno
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import engine, files, manifests
from pipeline.errors import ConfigError, ResourceError, from_os_error
from pipeline.files import Json
from pipeline.split import ordered
from pipeline.temporary import alive, run_name

log = logging.getLogger(__name__)

File = tuple[os.PathLike[str], Json]  # a finished file of the cache and its receipt
RENAME_EXCHANGE, AT_FDCWD = 2, -100

_serial = itertools.count()
WORKSHOP = ".tmp"  # beside the dataset: where it is built
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
        _swap_in(folder, links, texts, manifest, place / "new" / folder.name)
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
    """An empty folder to write to, which is swapped with what is at `folder`, if anything, where the block ends well."""
    with _workshop(folder, run_name(next(_serial))) as place:
        new = place / "new" / folder.name
        _make(new)
        yield new
        _settle(new, folder)


def _clear(place: Path) -> None:
    """Remove a run's folder. A dataset that it had moved aside and not replaced yet returns first, or all stays."""
    with contextlib.suppress(OSError):
        for old in (place / "old").glob("*"):
            if not os.path.lexists(home := place.parents[1] / old.name):
                os.rename(old, home)
        shutil.rmtree(place, ignore_errors=True)


def _make(folder: Path) -> None:
    """Create a folder of the workshop."""
    _insist(lambda: folder.mkdir(parents=True, exist_ok=True))


def _insist(step: Callable[[], None]) -> None:
    """Take a step in a folder that another run may be removing or replacing at this moment; then there is a new one."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return step()
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


def _swap_in(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, new: Path) -> None:
    """Build the dataset at `new` and swap it with what is at `folder`."""
    _require_room(folder, links)
    while not _build(folder, links, texts, manifest, new):
        shutil.rmtree(new)
    _settle(new, folder)


def _build(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, new: Path) -> bool:
    """The dataset at `new`, with what else lies at `folder`. False where another run has replaced that meanwhile: of a
    folder that is being removed some may be gone already.
    """
    _make(new)
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
        _carry(folder, new)
    except (FileNotFoundError, ConfigError):
        if _same(folder, handle):
            raise
    finally:
        unmoved = _same(folder, handle)
        os.close(handle)
    return unmoved


def _settle(new: Path, folder: Path) -> None:
    """Make the names in `new` reach the disk, then swap it in."""
    for place in (*(p for p in new.rglob("*") if p.is_dir()), new, new.parent):
        files.fsync_dir(place)
    _exchange(new, folder)
    files.fsync_dir(folder.parent)


def _require_room(folder: Path, links: dict[str, File]) -> None:
    """Raise ResourceError where the cache lies on another disk, so that its files are copied, and they do not fit here."""
    here = files.existing(folder).stat().st_dev
    elsewhere = (note["bytes"] for source, note in links.values() if files.existing(Path(str(source))).stat().st_dev != here)
    files.require_space(folder, sum(elsewhere))


def _carry(old: Path, new: Path) -> None:
    """What else lies in a folder that is replaced stays in it: the jobs of a sweep, a person's notes.

    Raises ConfigError where it is in the way of what is new.
    """
    ours = {"manifest.json", *(files.unseal(old / "manifest.json") or {"files": {}})["files"]}
    places = {os.path.dirname(name) for name in ours}  # the folder itself, and those of splits
    for here, folders, names in os.walk(old):
        place = Path(here).relative_to(old)
        if place == Path():
            folders[:] = [name for name in folders if name != WORKSHOP]
        names += [name for name in folders if Path(here, name).is_symlink()]
        apart = UNLISTED if os.path.dirname(place / "x") in places else ()
        kept = [name for name in names if name not in apart and str(place / name) not in ours]
        clash = [name for name in kept if (new / place).is_file() or os.path.lexists(new / place / name)]
        if clash:
            raise ConfigError(
                f"{here!r} holds {', '.join(map(repr, sorted(clash)[:3]))}, which this pipeline did not write and "
                "which is in the way of the new dataset: nothing was replaced. Move it away, or set output.dir= or name=."
            )
        if kept or not names:
            (new / place).mkdir(parents=True, exist_ok=True)
        for name in kept:
            _link(Path(here, name), new / place / name)


def _link(source: os.PathLike[str] | str, target: Path | str) -> None:
    """The file of the cache under a second name; a copy where the file system has no hard links."""
    source = os.fspath(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open(source, "rb") as old, open(target, "wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())


def _exchange(new: Path, old: Path) -> None:
    """Put a folder in the place of another, if there is one: in one step where the kernel can (renameat2), else in two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    aside = new.parents[1] / "old" / new.name
    for last in (False,) * 100 + (True,):
        if renameat2 and renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
        missing = renameat2 is not None and ctypes.get_errno() == errno.ENOENT  # nothing was there, else they were exchanged
        try:
            if os.path.lexists(old):
                if missing and not last:
                    continue  # it has come this moment: taken aside it would be away for another
                shutil.rmtree(aside.parent, ignore_errors=True)
                aside.parent.mkdir()
                os.rename(old, aside)
            os.rename(new, old)
            return
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
        _make(place)
        new = place / Path(name).name
        new.write_text(text, "utf-8")
        _insist(lambda: os.replace(new, folder / name))
