"""mosaicml-streaming: `train/shard.00000.mds` … and `train/index.json`, written last.

    shard   u32 samples   u32 where each sample begins, and the last one ends   the columns, as JSON   the samples
    sample  u32 bytes of `tokens`   `tokens`

The one column, `tokens`, holds the L + 1 IDs of a window as the bytes of int64: what LLM-Foundry's
`StreamingTextDataset` takes, whose model shifts them itself. With its `max_seq_len=L + 1` every target is trained on.
Format: mosaicml/streaming, `streaming/base/format/mds/writer.py`, version 2.
"""

import json

import numpy as np

from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json

SHARD = 1 << 26  # bytes of samples in a shard at most, the default of MDSWriter
COLUMNS = {
    "column_encodings": ["bytes"],
    "column_names": ["tokens"],
    "column_sizes": [None],
    "compression": None,
    "format": "mds",
    "hashes": ["sha256"],
    "size_limit": SHARD,
    "version": 2,
}


def write(source: Source, target: Target) -> Json:
    """Write a split. Raises ConfigError where rows are not windows, or are padded: there is no mask."""
    columns = json.dumps(COLUMNS, sort_keys=True).encode()
    sample = 4 + 8 * source.length
    shards = []
    for number, part in enumerate(source.parts(max(1, SHARD // sample))):
        rows = len(part)
        name = f"shard.{number:05}.mds"
        with target.create(f"{source.split}/{name}") as file:
            begin = 4 + 4 * (rows + 1) + len(columns)
            file.write(np.array([rows], "<u4"))
            file.write((begin + sample * np.arange(rows + 1)).astype("<u4"))
            file.write(columns)
            for windows in source.windows(part.start, part.stop):
                samples = np.empty(len(windows), [("bytes", "<u4"), ("tokens", "<i8", source.length)])
                samples["bytes"], samples["tokens"] = sample - 4, windows
                file.write(samples.view(np.uint8))
        note = target.files[f"{source.split}/{name}"]
        raw = {"basename": name, "bytes": note["bytes"], "hashes": {"sha256": note["sha256"]}}
        shards.append({**COLUMNS, "raw_data": raw, "samples": rows, "zip_data": None})
    target.text(f"{source.split}/index.json", json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode())
    return {"shape": "windows", "rows": len(source), "length": source.length}
