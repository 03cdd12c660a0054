"""numpy arrays as Arrow arrays and back, over the same memory.

`pa.array(ndarray)` would import pandas where it is installed, which takes a second; these never do.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import IntegrityError, from_os_error


def numbers(values: np.ndarray) -> pa.Array:
    """A one-dimensional numpy array of numbers as an Arrow array, zero-copy where it is contiguous."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def call(kernel: str, *arguments: pa.Array) -> Any:
    """What a kernel of Arrow's gives. To import `pyarrow.compute`, which makes a Python function for each, takes 0.06 s."""
    try:
        from pyarrow._compute import call_function
    except ImportError:
        from pyarrow.compute import call_function
    return call_function(kernel, arguments)


def flat_list(values: pa.Array, offsets: np.ndarray) -> pa.ListArray:
    """Rows of a flat array: row i is `values[offsets[i]:offsets[i + 1]]`. Offsets must fit int32."""
    if len(offsets) and int(offsets[-1]) > np.iinfo(np.int32).max:
        raise ValueError(f"a batch of {offsets[-1]} values is too large for one list array")
    return pa.ListArray.from_arrays(numbers(offsets.astype(np.int32)), values)


def to_numpy(column: pa.Array) -> np.ndarray:
    """A column of numbers, without nulls, as a numpy array `[rows]` over the same memory."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1] or b"", dtype, len(column), column.offset * dtype.itemsize)


def adjoin(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of the ranges of these lengths begins when laid end to end, and the last one ends.

    int64 `[len(lengths) + 1]`.

    >>> adjoin([3, 0, 2])
    array([0, 3, 3, 5])
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def row_offsets(column: pa.ListArray | pa.StringArray) -> np.ndarray:
    """Where each row of a column of lists or strings begins among its values, and the last one ends: int64 `[rows + 1]`.

    In a slice of a column the first need not be 0.
    """
    if not len(column):
        return np.zeros(1, np.int64)
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)


def list_values(rows: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Flat values (the indices, where they are dictionary-encoded) and int64 offsets that start at 0."""
    offsets = row_offsets(rows)
    values = rows.values.slice(offsets[0], offsets[-1] - offsets[0])
    if isinstance(values, pa.DictionaryArray):
        values = values.indices
    return to_numpy(values), offsets - offsets[0]


def flattened(column: pa.FixedSizeListArray) -> pa.Array:
    """The values of a column of equal lists end to end. Its own `flatten()` would import pyarrow.compute, which takes 0.1 s."""
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)


def strings(data: Any, offsets: np.ndarray) -> pa.StringArray:
    """Rows of a buffer of UTF-8, which is neither copied nor checked: row i is `data[offsets[i]:offsets[i + 1]]`."""
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data))


def joined(rows: Sequence[bytes]) -> pa.StringArray:
    """Rows of UTF-8 as a string array, a copy."""
    return strings(b"".join(rows), adjoin([*map(len, rows)]))


def joined_or_null(rows: Sequence[bytes | None]) -> pa.StringArray:
    """The same, of rows some of which may be null."""
    array = joined([row or b"" for row in rows])
    if None not in rows:
        return array
    valid = np.packbits(np.array([row is not None for row in rows], bool), bitorder="little")
    return pa.StringArray.from_buffers(len(rows), *array.buffers()[1:], pa.py_buffer(valid))


def string_bytes(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 of all rows end to end, uint8, and int64 offsets that start at 0, `[rows + 1]`."""
    offsets, data = row_offsets(text), text.buffers()[2]
    values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


def text_bytes(text: pa.StringArray) -> int:
    """How many bytes of UTF-8 the rows hold."""
    offsets = row_offsets(text)
    return int(offsets[-1] - offsets[0])


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


def read_batches(path: os.PathLike[str]) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow IPC stream file, memory-mapped. Raises IntegrityError where it is not one."""
    with _reading(path), _mapped(path) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def read_schema(path: os.PathLike[str]) -> pa.Schema:
    """The schema of an Arrow IPC stream file. Raises IntegrityError where it is not one."""
    with _reading(path), _mapped(path) as file, pa.ipc.open_stream(file) as reader:
        return reader.schema


def _mapped(path: os.PathLike[str]) -> pa.MemoryMappedFile:
    """The file in memory. One that is fetched from a store may be dropped here before it is mapped: it is fetched again."""
    for _ in range(0 if isinstance(path, Path) else 9):
        with contextlib.suppress(FileNotFoundError):
            return pa.memory_map(os.fsencode(path))
    return pa.memory_map(os.fsencode(path))


@contextlib.contextmanager
def _reading(path: os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        number = _number(error)
        if number not in (None, errno.ENOENT):
            raise from_os_error(OSError(number, os.strerror(number)), str(path)) from error
        raise IntegrityError(f"{str(path)!r} is not a whole Arrow stream: {error}.") from error


def _number(error: Exception) -> int | None:
    """The system's number of a failed call. Where a file cannot be mapped pyarrow gives the words alone, at the end."""
    limits = (errno.ENOMEM, errno.EAGAIN, errno.ENODEV, errno.EIO)
    said = (number for number in limits if isinstance(error, OSError) and str(error).endswith(os.strerror(number)))
    return getattr(error, "errno", None) or next(said, None)
