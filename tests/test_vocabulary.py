"""Stage `encode`: marks around documents, unknown tokens, dtypes."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import vocabulary
from pipeline.arrow import flat_list, list_values, narrowest, numbers
from pipeline.config import Vocabulary
from pipeline.errors import ConfigError, InputError
from pipeline.vocabulary import Marks


def batch(rows: list[list[int]], ends: list[bool]) -> pa.RecordBatch:
    flat = np.array([i for row in rows for i in row], np.uint16)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    dictionary = pa.array([f"t{i}" for i in range(100)])
    tokens = flat_list(pa.DictionaryArray.from_arrays(numbers(flat), dictionary), offsets)
    n = len(rows)
    return pa.record_batch(
        [
            tokens,
            pa.array([0] * n, pa.int32()),
            pa.array(range(n), pa.int64()),
            pa.array(range(1, n + 1), pa.int64()),
            pa.array(ends),
        ],
        names=["tokens", "source", "start", "end", "ends"],
    )


def encoded(batches: list[pa.RecordBatch], **marks: object) -> tuple[list[list[int]], Counter[str]]:
    settings = {"eos_id": None, "bos_id": None, "unknown_id": None, "on_unknown": "map", "dtype": "uint16"} | marks
    counts: Counter[str] = Counter()
    out = list(vocabulary.encode(batches, Marks(**settings), counts))  # type: ignore[arg-type]
    for b in out:
        b.validate(full=True)
    return [row for b in out for row in b["input_ids"].to_pylist()], counts


def tokenizer(**ids: object) -> SimpleNamespace:
    return SimpleNamespace(**({"size": 100, "eos_id": None, "bos_id": None, "unk_id": None} | ids))


def test_end_and_begin_marks_go_once_around_each_document_even_where_it_spans_batches():
    first, second = batch([[1, 2], [3]], [True, False]), batch([[4, 5], [], [6]], [True, True, True])
    rows, counts = encoded([first, second], eos_id=9, bos_id=8)
    assert rows == [[8, 1, 2, 9], [8, 3], [4, 5, 9], [8, 9], [8, 6, 9]]
    assert (counts["tokens"], counts["eos"], counts["bos"], counts["ids"]) == (6, 4, 4, 14)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=5), st.booleans()), max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 5),
)
def test_the_stream_equals_a_naive_reference_however_it_is_batched(rows, eos, bos, step):
    rows = [*rows, ([7], True)]
    cut = [rows[i : i + step] for i in range(0, len(rows), step)]
    got, counts = encoded(
        [batch([r for r, _ in part], [e for _, e in part]) for part in cut],
        eos_id=99 if eos else None,
        bos_id=98 if bos else None,
    )
    expected, begins = [], True
    for row, ends in rows:
        expected += [98] * (bos and begins) + row + [99] * (eos and ends)
        begins = ends
    flat = [i for row in got for i in row]
    assert flat == expected
    assert counts["ids"] == counts["tokens"] + counts["eos"] + counts["bos"] == len(expected)


@pytest.mark.row("C7")
def test_unknown_tokens_are_counted_or_refused_naming_the_document():
    b = batch([[1, 2], [3, 3, 5]], [True, True])
    assert encoded([b], unknown_id=3)[1]["unknown"] == 2
    with pytest.raises(InputError, match=r"source 0, 1 to 2: a token .*on_unknown=map"):
        encoded([b], unknown_id=3, on_unknown="error")


def test_slices_of_a_larger_batch_are_read_where_they_lie():
    whole = batch([[1], [2, 3], [4]], [True, True, True])
    assert encoded([whole.slice(1, 2)], eos_id=9)[0] == [[2, 3, 9], [4, 9]]


@pytest.mark.row("C2")
def test_the_narrowest_dtype_holds_the_vocabulary_and_a_forced_one_is_checked():
    assert [narrowest(n).name for n in (1, 256, 257, 65536, 65537)] == ["uint8", "uint8", "uint16", "uint16", "uint32"]
    assert vocabulary.dtype(Vocabulary(), 50257).name == "uint16"
    assert vocabulary.dtype(Vocabulary(dtype="uint32"), 50257).name == "uint32"
    with pytest.raises(ConfigError, match=r"uint16 holds IDs up to 65535.*up to 70000"):
        vocabulary.dtype(Vocabulary(dtype="uint16"), 70001)


def test_auto_appends_an_end_only_between_several_documents_of_a_tokenizer_that_has_one():
    has, lacks = tokenizer(eos_id=5), tokenizer()
    assert vocabulary.marks(Vocabulary(), has, True).eos_id == 5
    assert vocabulary.marks(Vocabulary(), has, False).eos_id is None
    assert vocabulary.marks(Vocabulary(), lacks, True).eos_id is None
    assert vocabulary.marks(Vocabulary(append_eos="true"), has, False).eos_id == 5
    assert vocabulary.marks(Vocabulary(append_eos="false"), has, True).eos_id is None


@pytest.mark.parametrize(("asked", "named"), [({"append_eos": "true"}, "eos_token"), ({"prepend_bos": True}, "bos_token")])
@pytest.mark.row("C3")
def test_a_mark_that_the_tokenizer_lacks_is_a_configuration_error(asked, named):
    with pytest.raises(ConfigError, match=f"no {named}: set tokenizer.{named}="):
        vocabulary.marks(Vocabulary(**asked), tokenizer(), True)


def test_list_values_start_at_zero_for_empty_and_sliced_lists():
    empty = flat_list(numbers(np.empty(0, np.uint16)), np.zeros(1, np.int64))
    values, offsets = list_values(empty)
    assert (len(values), offsets.tolist()) == (0, [0])
