"""WebDataset: `train-000000.tar` …, a tar member per row and column, as numpy files.

    000000000.input_ids.npy  000000000.target_ids.npy  000000001.input_ids.npy  …

The key is the number of the row; `.decode()` gives arrays in the dtype of the dataset. `target_ids` is already shifted.
Format: webdataset/webdataset, its README; POSIX tar.
"""

import io
import tarfile
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline.arrow import flattened, row_offsets, to_numpy
from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json

FILE = 256 << 20  # bytes of members in a file, about
MEMBER = 1024  # bytes that a member has beside its IDs, about


def write(source: Source, target: Target) -> Json:
    """Write a split."""
    each = -(-source.bytes // len(source)) + MEMBER * len(source.schema.names)
    row = 0
    for number, part in enumerate(source.parts(max(1, FILE // each))):
        with target.create(f"{source.split}-{number:06}.tar") as file, tarfile.open(mode="w|", fileobj=cast(Any, file)) as tar:
            for batch in source.rows(part.start, part.stop):
                columns = {name: _rows(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
                for nth in range(len(batch)):
                    for name, (values, edges) in columns.items():
                        data = _npy(values[edges[nth] : edges[nth + 1]])
                        member = tarfile.TarInfo(f"{row:09}.{name}.npy")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    row += 1
    return {"shape": "rows", "rows": len(source), "columns": source.schema.names}


def _rows(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists end to end, and where each row begins among them, and the last one ends."""
    if pa.types.is_list(column.type):
        return to_numpy(column.values), row_offsets(column)
    return to_numpy(flattened(column)), np.arange(len(column) + 1) * column.type.list_size


def _npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, values, version=(1, 0), allow_pickle=False)
    return out.getvalue()
