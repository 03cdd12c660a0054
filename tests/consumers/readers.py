# /// script
# dependencies = ["litdata", "megatron-core", "mosaicml-streaming", "webdataset", "torch", "numpy"]
# ///
"""Every export read back by the package it is for, in an environment of its own: `python readers.py FORMAT FOLDER OUT.npz`.

What was read is saved as arrays `<split>.<what>`.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "benchmark" / "peers"))


def megatron(folder: Path) -> dict[str, np.ndarray]:
    """Documents end to end and their lengths, by megatron-core's own reader."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = {}
    for index in folder.glob("*.idx"):
        documents = IndexedDataset(str(index.with_suffix("")))
        rows = [documents[i] for i in range(len(documents))]
        assert documents.document_indices.tolist() == list(range(len(rows) + 1))
        found |= {f"{index.stem}.ids": np.concatenate(rows), f"{index.stem}.lengths": np.array([len(row) for row in rows])}
    return found


def mds(folder: Path) -> dict[str, np.ndarray]:
    """The tokens of every sample, decoded as LLM-Foundry decodes them."""
    import torchvision_stub  # noqa: F401
    from streaming import StreamingDataset

    found = {}
    for split in (path.parent.name for path in folder.glob("*/index.json")):
        samples = StreamingDataset(local=str(folder), split=split, batch_size=1, validate_hash="sha256")
        rows = [np.frombuffer(samples[i]["tokens"], np.int64) for i in range(samples.num_samples)]
        found[f"{split}.windows"] = np.stack(rows)
    return found


def litdata(folder: Path) -> dict[str, np.ndarray]:
    """Every block, by TokensLoader."""
    from litdata import StreamingDataset, TokensLoader

    found = {}
    for split in (path.parent.name for path in folder.glob("*/index.json")):
        length = json.loads((folder / "export.json").read_text())["splits"][split]["length"]
        blocks = StreamingDataset(str(folder / split), item_loader=TokensLoader(block_size=length), shuffle=False)
        found[f"{split}.windows"] = np.stack([blocks[i].numpy() for i in range(len(blocks))])
    return found


def webdataset(folder: Path) -> dict[str, np.ndarray]:
    """Every column of every row."""
    import webdataset as wds

    found = {}
    for split in {path.name.rpartition("-")[0] for path in folder.glob("*.tar")}:
        tars = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
        rows = list(wds.WebDataset(tars, shardshuffle=False).decode())
        assert [row["__key__"] for row in rows] == [f"{i:09}" for i in range(len(rows))]
        for column in (name for name in rows[0] if not name.startswith("__")):
            found[f"{split}.{column.removesuffix('.npy')}"] = np.stack([row[column] for row in rows])
    return found


if __name__ == "__main__":
    what, source, out = sys.argv[1:]
    np.savez(out, **globals()[what](Path(source)))
