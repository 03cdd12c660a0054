"""litdata: `train/chunk-0-0.bin` … and `train/index.json`, written last.

    chunk   u32 items   u32 where each item begins, and the last one ends   the items, int32 IDs

An item is a window of L + 1 IDs, so a chunk is a multiple of that: `TokensLoader(block_size=L + 1)` cuts a chunk into
blocks and drops what is left over, which is nothing. A block gives input = ids[:L], target = ids[1:].
Format: Lightning-AI/litdata, `litdata/streaming/writer.py` and `item_loader.py`.
"""

import json

import numpy as np

from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json, digest

CHUNK = 1 << 26  # bytes of IDs in a chunk at most
INT32 = 16  # its number among litdata's dtypes


def write(source: Source, target: Target) -> Json:
    """Write a split. Raises ConfigError where rows are not windows, or are padded: there is no mask."""
    item = 4 * source.length
    chunks = []
    for number, part in enumerate(source.parts(max(1, CHUNK // item))):
        rows = len(part)
        name = f"chunk-0-{number}.bin"
        with target.create(f"{source.split}/{name}") as file:
            file.write(np.array([rows], "<u4"))
            file.write((4 * (rows + 2) + item * np.arange(rows + 1)).astype("<u4"))
            for windows in source.windows(part.start, part.stop):
                file.write(windows.astype("<i4"))
        chunks.append({"chunk_bytes": file.bytes, "chunk_size": rows, "dim": rows * source.length, "filename": name})
    settings = {
        "chunk_bytes": CHUNK,
        "chunk_size": None,
        "compression": None,
        "data_format": [f"no_header_tensor:{INT32}"],
        "data_spec": json.dumps([1, {"type": None, "context": None, "children_spec": []}]),
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    # litdata keeps what it has downloaded under `updated_at`, so that it must differ where the data does.
    index = {"chunks": chunks, "config": settings, "updated_at": digest(target.files)[:16]}
    target.text(f"{source.split}/index.json", json.dumps(index, sort_keys=True).encode())
    return {"shape": "windows", "rows": len(source), "length": source.length}
