"""numpy arrays as Arrow arrays and back, over the same memory.

`pa.array(ndarray)` would import pandas where it is installed, which takes a second; these never do.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import IntegrityError, from_os_error


def numbers(values: np.ndarray) -> pa.Array:
    """A one-dimensional numpy array of numbers as an Arrow array, zero-copy where it is contiguous."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def flat_list(values: pa.Array, offsets: np.ndarray) -> pa.ListArray:
    """Rows of a flat array: row i is `values[offsets[i]:offsets[i + 1]]`. Offsets must fit int32."""
    if len(offsets) and int(offsets[-1]) > np.iinfo(np.int32).max:
        raise ValueError(f"a batch of {offsets[-1]} values is too large for one list array")
    return pa.ListArray.from_arrays(numbers(offsets.astype(np.int32)), values)


def list_values(rows: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Flat values (the indices, where they are dictionary-encoded) and int64 offsets that start at 0."""
    offsets = np.frombuffer(rows.buffers()[1], np.int32)[rows.offset : rows.offset + len(rows) + 1].astype(np.int64)
    if not len(offsets):
        offsets = np.zeros(1, np.int64)
    values = rows.values.slice(offsets[0], offsets[-1] - offsets[0])
    if isinstance(values, pa.DictionaryArray):
        values = values.indices
    kind = np.dtype(values.type.to_pandas_dtype())  # not values.to_numpy(), which imports pandas as well
    return np.frombuffer(values.buffers()[1], kind, len(values), values.offset * kind.itemsize), offsets - offsets[0]


def flags(column: pa.BooleanArray) -> np.ndarray:
    """A column of bits, without nulls, as an array of bool."""
    if not len(column):
        return np.empty(0, bool)
    bits = np.unpackbits(np.frombuffer(column.buffers()[1], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].view(bool)


def narrowest(size: int) -> np.dtype[Any]:
    """The narrowest unsigned dtype that holds IDs 0 to `size` - 1.

    >>> narrowest(256).name, narrowest(257).name, narrowest(65537).name
    ('uint8', 'uint16', 'uint32')
    """
    return np.min_scalar_type(max(size - 1, 0))


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow IPC stream file, memory-mapped. Raises IntegrityError where it is not one."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise from_os_error(error, path) from error
        raise IntegrityError(f"{str(path)!r} is not a whole Arrow stream: {error}.") from error


def read_schema(path: Path) -> pa.Schema:
    """The schema of an Arrow IPC stream file."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.schema
