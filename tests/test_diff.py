"""Two datasets, compared: against Python's own multisets."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import composed
from pipeline import diff
from pipeline.arrow import numbers
from pipeline.errors import IntegrityError
from pipeline.run import run


def prepared(name: str, *overrides: str) -> Path:
    common = ["corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "embedding=none", "window.context_length=4"]
    return run(composed(*common, f"name={name}", *overrides)).folder


def text(*words: str) -> str:
    return " ".join(words)


def test_equal_datasets_have_no_difference_and_a_changed_word_changes_the_rows_that_hold_it(at):
    words = [f"w{i}" for i in range(41)]
    (at / "in.txt").write_text(text(*words))
    old = prepared("old")
    assert diff.diff(old, prepared("again")).same == 10 and diff.why(old, old) == []
    (at / "in.txt").write_text(text(*words[:12], "w1", *words[13:]))  # a known word: the vocabulary keeps its order
    found = diff.diff(old, prepared("new", "tokenizer.order=appearance"))
    assert found.parts_at == "load" and found.rows == (10, 10)
    assert found.same + found.changed == 10 and found.removed == found.added == 0 and 2 in found.first["changed"]


@pytest.mark.parametrize("side", [0, 1])
def test_a_flipped_bit_is_found_even_where_both_were_made_from_the_same(at, side):
    (at / "in.txt").write_text(text(*(f"w{i}" for i in range(41))))
    pair = [prepared("old"), prepared("new")]
    path = pair[side] / "data-00000000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{path}' is damaged: expected \d+ bytes, sha256 \w{{64}}, found"):
        diff.diff(*pair)


def test_text_behind_the_last_row_adds_rows_and_another_shape_changes_none_but_replaces_all(at):
    words = [f"w{i % 7}" for i in range(41)]
    (at / "in.txt").write_text(text(*words))
    old = prepared("old")
    wider = prepared("wider", "window.context_length=8")
    (at / "in.txt").write_text(text(*words, *words[:8]))
    found = diff.diff(old, prepared("new"))
    assert (found.same, found.changed, found.removed, found.added) == (10, 0, 0, 2) and found.first["added"] == [10, 11]
    found = diff.diff(old, wider)
    assert found.changed == found.same == 0 and (found.removed, found.added) == found.rows and found.parts_at == "window"


def test_why_names_fields_sources_and_the_stage_where_two_runs_part(at):
    (at / "in.txt").write_text("a b c d e f g h i j")
    old = prepared("old")
    (at / "in.txt").write_text("a b c d e f g h i k")
    lines = diff.why(old, prepared("new", "window.stride=2"))
    assert {"window.stride null → 2", "sources: 'in.txt' with other content", "the stages part at load"} <= set(lines)
    assert not any("corpus" in line for line in lines)


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_unmatched_rows_are_those_of_a_multiset(left, right):
    def records(values: list[int]) -> np.ndarray:
        made = np.zeros(len(values), diff.RECORD)
        made["hash"][:, 0] = made["hash"][:, 1] = values
        made["row"] = np.arange(len(values))
        return made

    a, b = diff._unmatched(records(left), records(right))
    assert Counter(left[i] for i in a) == Counter(left) - Counter(right)
    assert Counter(right[i] for i in b) == Counter(right) - Counter(left)
    for value in set(left):  # of equal rows the last ones are left over
        places = [i for i, v in enumerate(left) if v == value]
        kept = sum(left[i] == value for i in a)
        assert [i for i in a if left[i] == value] == places[len(places) - kept :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_rows_are_equal_by_the_values_of_their_ids_whatever_their_dtype(dtype):
    def batch(values: list[int], kind: type) -> pa.RecordBatch:
        return pa.record_batch({"input_ids": pa.FixedSizeListArray.from_arrays(numbers(np.array(values, kind)), 2)})

    same = [*diff._hashes(batch([1, 2, 3, 4], dtype))]
    assert same == [*diff._hashes(batch([1, 2, 3, 4], np.uint16))] and len(set(same)) == 2
    growing = pa.record_batch(
        {"input_ids": pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), numbers(np.array([1, 2, 3, 4], dtype)))}
    )
    assert [*diff._hashes(growing)] == same
