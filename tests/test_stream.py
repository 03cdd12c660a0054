"""The stream reads the same IDs however they lie in files and batches."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import stream as stream_module
from pipeline.errors import IntegrityError
from pipeline.stream import Stream

Row = tuple[list[int], int, int, int, bool]  # input_ids, source, start, end, ends


def write(path: Path, batches: list[list[Row]], dtype: str = "uint16") -> Path:
    types = [pa.list_(getattr(pa, dtype)()), pa.int32(), pa.int64(), pa.int64(), pa.bool_()]
    schema = pa.schema(list(zip(["input_ids", "source", "start", "end", "ends"], types, strict=True)))
    with pa.ipc.new_stream(str(path), schema) as writer:
        for rows in batches:
            columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return path


def stream_of(folder: Path, layout: list[list[list[Row]]], dtype: str = "uint16") -> Stream:
    """A stream over shards of batches of rows."""
    paths = [write(folder / f"{i:05}.arrow", batches, dtype) for i, batches in enumerate(layout)]
    counts = [sum(len(row[0]) for rows in batches for row in rows) for batches in layout]
    return Stream(paths, counts, np.dtype(dtype))


def row(ids: list[int], ends: bool = True) -> Row:
    return (ids, 0, 0, 0, ends)


TWO_SHARDS = [
    [
        [([1, 2], 7, 10, 20, True), ([3], 7, 20, 30, False)],
        [([], 7, 30, 40, False)],
        [],
        [([4, 5, 6], 7, 40, 50, True), ([], 8, 0, 5, True)],
    ],
    [[([7], 8, 5, 9, True), ([8, 9], 9, 0, 4, True)]],
]


def test_every_range_reads_as_the_slice_of_the_whole(tmp_path: Path) -> None:
    whole = list(range(1, 10))
    stream = stream_of(tmp_path, TWO_SHARDS)
    assert len(stream) == 9
    assert stream.starts.tolist() == [0, 6, 9]
    for start in range(10):
        for stop in range(start, 10):
            got = stream.read(start, stop)
            assert got.dtype == np.uint16
            assert got.tolist() == whole[start:stop]


def test_a_range_within_one_batch_is_a_view_into_the_map(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, TWO_SHARDS)
    once, again = stream.read(3, 6), stream.read(4, 6)
    assert np.shares_memory(once, again)
    assert not once.flags.writeable
    assert not np.shares_memory(stream.read(2, 4), stream.read(2, 4))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 10), (10, 10)])
def test_a_range_outside_the_stream_is_an_index_error(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=r"not within \[0, 9\)"):
        stream_of(tmp_path, TWO_SHARDS).read(start, stop)


def test_pieces_of_a_document_count_as_one(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, TWO_SHARDS)
    assert stream.document_lengths(0).tolist() == [2, 4, 0]
    assert stream.document_lengths(0).dtype == np.int64
    assert stream.document_lengths(1).tolist() == [1, 2]
    assert stream.documents(0).to_pydict() == {
        "source": [7, 7, 8],
        "start": [10, 20, 0],
        "end": [20, 50, 5],
        "tokens": [2, 4, 0],
    }
    assert stream.documents(1).schema == pa.schema(
        [("source", pa.int32()), ("start", pa.int64()), ("end", pa.int64()), ("tokens", pa.int64())]
    )


@pytest.mark.parametrize("batches", [[], [[]]])
def test_an_empty_shard_has_no_documents_and_hides_nothing(tmp_path: Path, batches: list[list[Row]]) -> None:
    stream = stream_of(tmp_path, [batches, [[row([1, 2])]], batches, [[row([3])]], batches])
    assert stream.read(0, 3).tolist() == [1, 2, 3]
    assert stream.document_lengths(0).tolist() == []
    assert stream.documents(0).num_rows == 0


def test_columns_sliced_out_of_larger_ones_read_the_same(tmp_path: Path) -> None:
    shard = [row([i] * (i % 3), i % 2 == 0) for i in range(21)]
    path = write(tmp_path / "whole", [shard])
    with pa.ipc.open_stream(str(path)) as reader:
        whole = reader.read_next_batch()
    parts = [whole.slice(0, 5), whole.slice(5, 8), whole.slice(13)]
    stream = Stream([path], [21], np.dtype("uint16"))
    expected = stream.document_lengths(0).tolist()
    stream._mapped[0] = stream_module._Shard(parts, [], np.zeros(1))
    assert stream.document_lengths(0).tolist() == expected
    assert sum(expected) == 21


def test_few_files_stay_mapped_and_the_one_used_last_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAPPED", 2)
    stream = stream_of(tmp_path, [[[row([i])]] for i in range(5)])
    first = stream.read(0, 1)
    assert stream.read(0, 5).tolist() == [0, 1, 2, 3, 4]
    assert list(stream._mapped) == [3, 4]
    stream.read(3, 4)
    stream.read(0, 1)
    assert list(stream._mapped) == [3, 0]
    assert first.tolist() == [0]  # a view outlives the map's place in the list


def test_a_stream_is_pickled_without_its_maps(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, TWO_SHARDS)
    stream.read(0, 9)
    again = pickle.loads(pickle.dumps(stream))
    assert (again.paths, again.counts, again.dtype, again._mapped) == (stream.paths, stream.counts, stream.dtype, {})
    assert again.read(0, 9).tolist() == stream.read(0, 9).tolist()


def test_a_file_that_holds_another_count_or_dtype_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [[row([1, 2, 3])]])
    for count in (2, 4):
        with pytest.raises(IntegrityError, match=f"'{path}' holds 3 tokens, its manifest says {count}"):
            Stream([path], [count], np.dtype("uint16")).read(0, 1)
    with pytest.raises(IntegrityError, match=r"holds list<item: uint16>, not list<item: uint8>"):
        Stream([path], [3], np.dtype("uint8")).read(0, 1)
    with pytest.raises(ValueError, match="1 paths, but 2 counts"):
        Stream([path], [3, 4], np.dtype("uint16"))


def test_a_shard_that_ends_within_a_document_is_refused(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row([1]), row([2], ends=False)]]])
    with pytest.raises(IntegrityError, match="ends within a document"):
        stream.document_lengths(0)


@pytest.mark.parametrize("damage", ["empty", "cut", "missing"])
def test_a_file_that_is_not_whole_is_an_integrity_error_with_its_path(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a", [[row(list(range(1000)))]])
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: {"empty": 0, "cut": len(data) // 2}[damage]])
    with pytest.raises(IntegrityError, match=str(path)):
        Stream([path], [1000], np.dtype("uint16")).read(0, 1)


def test_reading_does_not_import_pandas(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, TWO_SHARDS)
    code = (
        "import sys, pickle; from pathlib import Path\n"
        f"stream = pickle.loads({pickle.dumps(stream)!r})\n"
        "stream.read(0, 9); stream.documents(0)\n"
        "assert 'pandas' not in sys.modules, 'pandas'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ROWS = st.lists(st.lists(st.tuples(st.lists(st.integers(0, 255), max_size=4), st.booleans()), max_size=4), max_size=4)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=3), st.data())
def test_any_layout_gives_the_documents_end_to_end(
    tmp_path_factory: pytest.TempPathFactory, shards: list, data: st.DataObject
) -> None:
    layout = [[[row(ids, ends) for ids, ends in batch] for batch in shard] for shard in shards]
    for shard in layout:
        for batch in [b for b in shard if b][-1:]:
            batch[-1] = row(batch[-1][0])
    stream = stream_of(tmp_path_factory.mktemp("s"), layout, "uint8")
    whole = [i for shard in layout for batch in shard for r in batch for i in r[0]]
    stop = data.draw(st.integers(0, len(whole)))
    start = data.draw(st.integers(0, stop))
    assert stream.read(start, stop).tolist() == whole[start:stop]
    for index, shard in enumerate(layout):
        lengths, open_document = [], 0
        for ids, *_, ends in (r for batch in shard for r in batch):
            open_document += len(ids)
            if ends:
                lengths.append(open_document)
                open_document = 0
        assert stream.document_lengths(index).tolist() == lengths
        assert stream.documents(index)["tokens"].to_pylist() == lengths
