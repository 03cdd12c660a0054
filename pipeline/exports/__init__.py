"""A finished dataset in the format that somebody else's training job reads.

    from pipeline.exports import export

    export("outputs/verdict", "nanogpt", "exports/verdict")

| format | holds | a training job reads |
|---|---|---|
| nanogpt | the stream | `np.memmap("train.bin", np.uint16)` |
| megatron | the stream, by document | megatron-core's `IndexedDataset("train")` |
| mds | windows | mosaicml-streaming's `StreamingDataset(local=..., split="train")`, LLM-Foundry |
| litdata | windows | `StreamingDataset("train", item_loader=TokensLoader(block_size=L + 1))` |
| parquet | rows as they are | anything |
| webdataset | rows as they are | `WebDataset("train-{000000..000009}.tar")` |

**Three shapes**, and what follows for the shift (context length L = 4, stride 2):

    stream    0 1 2 3 4 5 6 7          one ID after the other: the trainer cuts and shifts
    windows   [0 1 2 3 4] [2 3 4 5 6]  L + 1 IDs: input = ids[:L], target = ids[1:]; labels of Hugging Face = ids
    rows      input_ids [0 1 2 3] and target_ids [1 2 3 4], already shifted, as in the dataset

Nowhere is there a column `labels`. The stream is put together again from the windows, which overlap: each ID stands
in it once. What the dataset left out, the tail behind its last window, is not in it either, and the export says how much.

An export is built beside its place and swapped in by one rename. `export.json`, sealed, holds the sha256 of every
file and of the manifest it was made from; equal datasets give equal exports. Every byte read is verified first.
"""

import hashlib
import importlib
import os
import shlex
from pathlib import Path

from pipeline import __version__, console, files, manifests, swap
from pipeline.dataset import WindowDataset, open_dataset
from pipeline.errors import ConfigError, IntegrityError, from_os_error
from pipeline.exports.source import Source
from pipeline.exports.target import MANIFEST, Target
from pipeline.split import ordered

FORMATS = ("nanogpt", "megatron", "mds", "litdata", "parquet", "webdataset")


def export(dataset: str | os.PathLike[str], to: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the finished dataset at `dataset` in the format `to`; returns the folder, by default `<dataset>-<to>`.

    An earlier export there is replaced; what else lies in its folder stays. Raises ConfigError where something else lies
    there, or the format cannot hold the dataset; IntegrityError where its files are not those of its manifest;
    ResourceError where the disk refuses.
    """
    if to not in FORMATS:
        raise ConfigError(f"export: no format {to!r}; there are {', '.join(FORMATS)}.")
    path = Path(os.path.abspath(dataset))
    folder = Path(os.path.abspath(out)) if out is not None else path.with_name(f"{path.name}-{to}")
    require_ours(folder)
    write = importlib.import_module(f"pipeline.exports.{to}").write
    top = manifests.read(path / "manifest.json")
    opened = splits(path)
    sources = [Source(dataset, split) for split, dataset in opened.items()]
    made_from = hashlib.sha256(files.seal(top if top and top.get("splits") else opened["train"].manifest)).hexdigest()
    total = sum(source.bytes for source in sources)
    try:
        with swap.replacing(folder) as place, console.progress(f"export to {to}", total) as advance:
            target = Target(place, folder)
            notes = {}
            for source in sources:
                source.advance = advance
                notes[source.split] = write(source, target)
            manifest = {
                "format": to,
                "dataset": {"name": path.name, "manifest": made_from},
                "command": shlex.join(["python", "-m", "scripts.export", path.name, "--to", to]),
                "vocab_size": sources[0].vocab_size,
                "splits": notes,
                "files": target.files,
                "pipeline": __version__,
            }
            target.text(MANIFEST, files.seal(manifest))
    except OSError as error:
        raise from_os_error(error, folder) from error
    return folder


def splits(path: Path, verify: str = "touch") -> dict[str, WindowDataset]:
    """The splits of a finished dataset by name, each a dataset of its own; what was not split is `train`."""
    manifest = manifests.read(path / "manifest.json")
    if manifest and manifest.get("splits"):
        return {split: open_dataset(path / split, verify=verify) for split, _ in ordered(manifest["splits"])}
    return {"train": open_dataset(path, verify=verify)}


def require_ours(folder: Path) -> None:
    """Raise ConfigError where something lies at `folder` that is neither an export of ours nor an empty folder."""
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and not folder.is_symlink():
        if files.unseal(folder / MANIFEST) is not None or not any(folder.iterdir()):
            return
        if os.path.lexists(folder / MANIFEST):
            raise IntegrityError(
                f"{str(folder / MANIFEST)!r} is not as it was written, so nothing was touched: remove the folder."
            )
    raise ConfigError(f"{str(folder)!r} exists and is not an export of ours: nothing was touched. Give another --out.")
