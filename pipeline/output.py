"""The finished dataset: one folder that `datasets`, plain pyarrow and `open_dataset` read.

    outputs/verdict/
      data-00000000.arrow …        windows, Arrow IPC streams (hard links into the cache where the disk allows it)
      documents.arrow           source, byte range and place in the ID stream of every document
      state.json dataset_info.json   what `datasets.load_from_disk` looks for
      tokenizer/ vocabulary.json embeddings.safetensors README.md
      manifest.json             configuration, keys, ledger, hashes, versions: equal for equal bytes
      sources.jsonl             the input files, where they are more than 10,000; else the manifest lists them
      run.json report.html      what differs between equal runs: times, engine, workers, host; and a page for a person

A folder is built beside its place and swapped in by one rename, see swap.py. Only a folder that holds a manifest of ours
is ever replaced.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, manifests, swap
from pipeline.errors import ConfigError, ResourceError, from_os_error
from pipeline.files import Json
from pipeline.split import ordered

log = logging.getLogger(__name__)

File = tuple[os.PathLike[str], Json]  # a finished file of the cache and its receipt

REPORT = "report.html"
SOURCES = "sources.jsonl"  # what the manifest says of the input files, where they are more than LISTED
LISTED = 10_000  # input files that a manifest lists itself
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
    if folder.name == swap.WORKSHOP:
        raise ConfigError(f"{str(folder)!r} is where datasets are built: set output.dir= or name=.")
    try:
        os.lstat(folder)
    except FileNotFoundError:
        _require_writable(folder)
        return
    except OSError as error:
        raise from_os_error(error, folder) from error
    if folder.is_dir() and not folder.is_symlink():
        inside = {p.name for p in folder.iterdir()} - {swap.WORKSHOP, SWEEP}
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
    with swap.workshop(folder, run) as place, files.storing(folder):
        if files.unseal(folder / "manifest.json") == manifest and _whole(folder, links, notes):
            return False
        _require_room(folder, links)
        swap.insist(lambda: _swap_in(folder, links, texts, manifest, place))
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


def _whole(folder: Path, links: dict[str, File], notes: dict[str, Json]) -> bool:
    """Is every file of the folder what its manifest says? A link to a file of the cache that was just verified is."""
    for name, note in notes.items():
        path = folder / name
        if name in links and swap.same(path, str(links[name][0])):
            continue
        if problem := files.compare(path, note)[0]:
            log.warning("%r is damaged: %s; the dataset is written again", str(path), problem)
            return False
    return True


def _swap_in(folder: Path, links: dict[str, File], texts: dict[str, bytes], manifest: Json, place: Path) -> None:
    """Build the dataset in the workshop `place` and swap it with what is at `folder`."""
    swap.clear(place)  # of what a folder around it took away in the middle
    with swap.swapping(folder, place) as new:
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
        swap.link(source, new / name)
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
        return swap.carry(folder, new) and swap.same(folder, handle)
    except (FileNotFoundError, ConfigError):
        if swap.same(folder, handle):
            raise
        return False
    finally:
        os.close(handle)


def _require_room(folder: Path, links: dict[str, File]) -> None:
    """Raise ResourceError where the cache lies on another disk, so that its files are copied, and they do not fit here."""
    here = files.existing(folder).stat().st_dev
    elsewhere = (note["bytes"] for source, note in links.values() if files.existing(Path(str(source))).stat().st_dev != here)
    files.require_space(folder, sum(elsewhere))


def write_run(folder: Path, record: Json, run: str) -> None:
    """`run.json`: what differs between two runs with equal bytes. Promised to nobody."""
    write_text(folder, "run.json", run_text(record), run)


def run_text(record: Json) -> str:
    """The content of `run.json`."""
    return _json(record).decode()


def write_text(folder: Path, name: str, text: str, run: str) -> None:
    """A file in the folder, or in that of a split, that no manifest lists, replaced atomically."""
    with swap.workshop(folder, run) as place, files.storing(folder / name):
        new = place / Path(name).name

        def put() -> None:
            swap.make(place)
            new.write_text(text, "utf-8")
            os.replace(new, folder / name)

        swap.insist(put)
