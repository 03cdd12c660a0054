import itertools

import numpy as np
import pyarrow as pa
import pytest

from pipeline.arrow import (
    adjoin,
    flags,
    flat_list,
    flattened,
    joined,
    list_values,
    narrowest,
    numbers,
    read_batches,
    read_schema,
    row_offsets,
    string_bytes,
    text_bytes,
    to_numpy,
)
from pipeline.errors import IntegrityError, ResourceError

ROWS = ["", "ab", "é", "", "今日は", "z"]
SLICES = [slice(a, b) for a in range(len(ROWS) + 1) for b in range(a, len(ROWS) + 1)]


@pytest.mark.parametrize("part", SLICES, ids=str)
def test_a_slice_of_strings_is_read_as_its_own_rows(part):
    text, rows = joined([row.encode() for row in ROWS])[part], ROWS[part]
    data, offsets = string_bytes(text)
    assert text.to_pylist() == rows
    assert data.tobytes().decode() == "".join(rows) and text_bytes(text) == len(data)
    assert offsets.tolist() == adjoin([len(row.encode()) for row in rows]).tolist()
    assert np.diff(row_offsets(text)).tolist() == np.diff(offsets).tolist()


@pytest.mark.parametrize("part", SLICES, ids=str)
def test_a_slice_of_lists_is_read_as_its_own_rows(part):
    lists = [list(row.encode()) for row in ROWS]
    flat = numbers(np.array([value for row in lists for value in row], np.uint16))
    names = pa.array([str(i) for i in range(256)])
    for values in (flat, pa.DictionaryArray.from_arrays(flat, names)):
        column = flat_list(values, adjoin([len(row) for row in lists]))[part]
        found, offsets = list_values(column)
        assert found.dtype == np.uint16
        assert [found[a:b].tolist() for a, b in itertools.pairwise(offsets)] == lists[part]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float16", "float32"])
def test_numbers_come_back_as_they_went_over_the_same_memory(dtype):
    values = np.arange(9).astype(dtype)
    column = numbers(values)
    back = to_numpy(column[2:7])
    assert back.dtype == values.dtype and back.tolist() == values[2:7].tolist()
    assert np.shares_memory(back, values)


def test_a_slice_of_bits_is_read_from_its_own_start():
    bits = [i % 3 == 0 for i in range(21)]
    for start in range(21):
        assert flags(pa.array(bits)[start:]).tolist() == bits[start:]


def test_columns_without_rows_are_empty_arrays():
    assert to_numpy(pa.array([], pa.int32())).tolist() == []
    assert string_bytes(pa.array([], pa.string()))[1].tolist() == [0]
    assert list_values(pa.array([], pa.list_(pa.uint8())))[1].tolist() == [0]


def test_lists_of_more_values_than_an_offset_can_count_are_refused():
    with pytest.raises(ValueError, match="too large"):
        flat_list(numbers(np.zeros(1, np.uint8)), np.array([0, 1 << 31]))


@pytest.mark.parametrize(
    ("size", "dtype"), [(0, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_narrowest_dtype_holds_the_largest_id(size, dtype):
    assert narrowest(size) == dtype


@pytest.mark.parametrize("said", ["Memory mapping file failed: Cannot allocate memory", "Input/output error"])
def test_a_file_that_cannot_be_read_is_no_damaged_file(tmp_path, monkeypatch, said):
    path = tmp_path / "0.arrow"
    path.write_bytes(b"no stream")
    for read in (read_schema, lambda path: list(read_batches(path))):
        with pytest.raises(IntegrityError, match="not a whole Arrow stream"):
            read(path)

    def refuse(name):
        raise OSError(said)

    monkeypatch.setattr(pa, "memory_map", refuse)
    for read in (read_schema, lambda path: list(read_batches(path))):
        with pytest.raises(ResourceError, match=r"0\.arrow"):
            read(path)


@pytest.mark.parametrize("part", SLICES, ids=str)
def test_a_slice_of_equal_lists_is_flattened_as_arrow_flattens_it(part):
    rows = pa.FixedSizeListArray.from_arrays(numbers(np.arange(2 * len(ROWS), dtype=np.uint16)), 2)[part]
    assert flattened(rows).to_pylist() == rows.flatten().to_pylist()
    nested = pa.FixedSizeListArray.from_arrays(rows, 1)[1:]
    assert flattened(flattened(nested)).to_pylist() == nested.flatten().flatten().to_pylist()
