"""Windows against a naive reference, over a grid, and at every border there is."""

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import row, stream_of

from pipeline import config, window
from pipeline.config import Window
from pipeline.console import counted
from pipeline.errors import ConfigError, InputError
from pipeline.permutation import keys, permute
from pipeline.stream import Stream

PAD = 255
BERT = ([101], [102], True)


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents of these lengths whose IDs run on from 0, so that an ID is its position."""
    ids = iter(range(250))
    return [list(itertools.islice(ids, length)) for length in lengths]


def alone(w: Window, documents: list[list[int]]) -> list[list[int]]:
    """What is cut on its own: the stream, or each document."""
    return [list(itertools.chain(*documents))] if w.mode == "sliding" and w.cross_documents else documents


def naive(w: Window, documents: list[list[int]], frame: Any = None) -> list[dict[str, list[int]]]:
    """The rows as one would write them without thinking of speed."""
    length, rows = w.context_length, []
    if w.mode == "document":
        before, after, typed = frame if w.special_tokens else ([], [], False)
        for ids in documents:
            framed = [*before, *ids[: length - len(before) - len(after)], *after]
            pads = length - len(framed)
            rows.append({"input_ids": framed + [PAD] * pads, "attention_mask": [1] * len(framed) + [0] * pads})
            if typed:
                rows[-1]["token_type_ids"] = [0] * length
        return rows
    if w.mode == "prefix":
        return [{"input_ids": d[max(0, i - length) : i], "target_ids": [d[i]]} for d in documents for i in range(1, len(d))]
    for ids in alone(w, documents):
        start, covered = 0, set()
        while start + length < len(ids):
            rows.append({"input_ids": ids[start : start + length], "target_ids": ids[start + 1 : start + 1 + length]})
            covered |= set(range(start + 1, start + 1 + length))
            start += w.stride or length
        left = [p for p in range(start + 1, len(ids)) if p not in covered]
        if w.tail == "pad":
            for r in rows:
                r.setdefault("attention_mask", [1] * length)
            if left:
                real = len(ids) - start
                rows.append(
                    {
                        "input_ids": ids[start:] + [PAD] * (length - real),
                        "target_ids": ids[start + 1 :] + [PAD] * (length - real + 1),
                        "attention_mask": [1] * (real - 1) + [0] * (length - real + 1),
                    }
                )
    return rows


def naive_ledger(w: Window, documents: list[list[int]], frame: Any = None) -> dict[str, int]:
    """The ledger counted token by token, and slot by slot of the naive rows."""
    rows, length = naive(w, documents, frame), w.context_length
    tokens = sum(map(len, documents))
    if w.mode == "document":
        special = (len(frame[0]) + len(frame[1])) * len(rows) if w.special_tokens else 0
        kept = sum(sum(r["attention_mask"]) for r in rows) - special
        padding = sum(r["attention_mask"].count(0) for r in rows)
        return {
            "tokens": tokens, "kept": kept, "truncated": tokens - kept,
            "slots": length * len(rows), "special": special, "padding": padding,
        }  # fmt: skip
    first = [ids[0] for ids in alone(w, documents) if ids]
    if w.mode == "prefix":
        slots = sum(len(r["input_ids"]) for r in rows)
        return {"tokens": tokens, "first": len(first), "targets": len(rows), "slots": slots}
    real = [t for r in rows for t, m in zip(r["target_ids"], r.get("attention_mask", [1] * length), strict=True) if m]
    tail = gap = 0
    for ids in alone(w, documents):
        missed = [i for i in ids[1:] if i not in real]
        behind = [i for i in missed if not any(t > i for t in real if t in ids)]
        tail += len(behind)
        gap += len(missed) - len(behind)
    return {
        "tokens": tokens, "first": len(first), "targets": len(set(real)), "tail": tail, "gap": gap,
        "slots": length * len(rows), "repeated": len(real) - len(set(real)), "padding": length * len(rows) - len(real),
    }  # fmt: skip


def plan_of(
    w: Window, stream: Stream, frame: Any = None, pad_id: int | None = PAD, sources: tuple[str, ...] = ()
) -> window.WindowPlan:
    return window.plan(w, stream.counts, stream.dtype, pad_id, frame, stream, sources)


def rows_of(stream: Stream, plan: window.WindowPlan) -> list[dict[str, list[int]]]:
    """All rows, shard by shard, after a check of what must hold of shards and batches."""
    rows: list[dict[str, list[int]]] = []
    for index, shard in enumerate(plan.shards):
        assert (shard.index, shard.start) == (index, len(rows))
        for batch in window.chunk(stream, plan, shard):
            batch.validate(full=True)
            assert batch.num_rows > 0
            assert batch.schema.equals(window.schema(plan), check_metadata=True)
            rows += batch.to_pylist()
        assert shard.stop == len(rows)
    assert plan.rows == len(rows)
    return rows


def layouts(documents: list[list[int]]) -> list[list[list[list[Any]]]]:
    """The same documents in one batch; in a shard each; and in two shards, as pieces of two IDs, a batch each."""
    half = len(documents) // 2
    pieces = [
        [[row(d[i : i + 2], i + 2 >= len(d))] for d in part for i in range(0, max(len(d), 1), 2)]
        for part in (documents[:half], documents[half:])
    ]
    return [[[[row(d) for d in documents]]], [[[row(d)]] for d in documents], pieces]


def agrees(w: Window, documents: list[list[int]], stream: Stream, frame: Any = None) -> None:
    """Rows, ledger and refusal are those of the reference."""
    expected = naive(w, documents, frame)
    if not expected:
        with pytest.raises(InputError):
            plan_of(w, stream, frame)
        return
    plan = plan_of(w, stream, frame)
    assert rows_of(stream, plan) == expected
    assert plan.ledger == naive_ledger(w, documents, frame)
    assert all(type(count) is int for count in plan.ledger.values())
    window.check_ledger(w.mode, plan.ledger)
    lost = sum(plan.ledger.get(name, 0) for name in ("tail", "gap", "truncated"))
    foretold = window.expect(w, stream.dtype, plan.frame, np.array([*map(len, documents)]))
    assert foretold == (plan.rows, plan.ledger["slots"], lost, plan.bytes)


@pytest.fixture(params=["small", "usual"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few rows and shards of a few batches; or the sizes of real runs."""
    if request.param == "small":
        monkeypatch.setattr(window, "BATCH", 7)
        monkeypatch.setattr(window, "SHARD", 40)
        monkeypatch.setattr(window, "ROWS", 3)


# -- sliding ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.row("C10")
def test_windows_over_the_stream_equal_the_reference_on_a_grid(tmp_path: Path, tail: str) -> None:
    for n in range(14):
        documents = documents_of([n])
        streams = [
            stream_of(tmp_path / f"{n}-{i}", layout, "uint8") for i, layout in enumerate(_cuts(documents[0], tmp_path, n))
        ]
        for length, stride in itertools.product(range(1, 6), range(1, 8)):
            w = Window(context_length=length, stride=stride, tail=tail, allow_gaps=True)
            for stream in streams:
                agrees(w, documents, stream)


def _cuts(ids: list[int], folder: Path, n: int) -> list[Any]:
    """The stream in one piece; in shards of 3 with batches of 2; and in shards of 4 with an empty one before each."""
    for i in range(3):
        (folder / f"{n}-{i}").mkdir()
    threes = [[[row(part[:2])], [row(part[2:])]] for part in (ids[i : i + 3] for i in range(0, n, 3))]
    fours = [shard for i in range(0, n, 4) for shard in ([], [[row(ids[i : i + 4])]])]
    return [[[[row(ids)]]], threes, fours]


@pytest.mark.parametrize("mode", ["sliding", "prefix", "document"])
@pytest.mark.parametrize("lengths", [[14], [6, 5, 1, 0, 9], [0, 8, 2]])
def test_the_position_of_a_row_is_where_the_reference_took_it_from(mode: str, lengths: list[int]) -> None:
    documents = documents_of(lengths)
    for length, stride, cross, tail in itertools.product((1, 2, 4, 7), (1, 2, 5, 9), (True, False), ("drop", "pad")):
        w = Window(mode=mode, context_length=length, stride=stride, cross_documents=cross, tail=tail, allow_gaps=True)
        for number, line in enumerate(naive(w, documents)):
            held = set(line["input_ids"] + line.get("target_ids", [])) - {PAD}  # an ID is its position
            held |= set(documents[number]) if mode == "document" else set()  # what was cut off counts
            if held:
                assert window.position(w, np.array(lengths), number) == (min(held), max(held) + 1)


@settings(deadline=None)
@given(st.data())
def test_rows_at_is_the_inverse_of_position(data):
    w = Window(
        mode=data.draw(st.sampled_from(["sliding", "prefix", "document"])),
        context_length=data.draw(st.integers(1, 6)),
        stride=data.draw(st.integers(1, 8)),
        tail=data.draw(st.sampled_from(["drop", "pad"])),
        cross_documents=data.draw(st.booleans()),
        allow_gaps=True,
    )
    lengths = np.array(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5)))
    cut = np.array([lengths.sum()]) if window.crosses(w) else lengths
    spans = [window.position(w, lengths, row) for row in range(int(window._row_counts(w, cut).sum()))]
    first = data.draw(st.integers(0, int(lengths.sum()) - 1))
    stop = data.draw(st.integers(first + 1, int(lengths.sum())))
    assert list(window.rows_at(w, lengths, first, stop)) == [r for r, (a, b) in enumerate(spans) if a < stop and first < b]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("lengths", [[6, 5, 1, 0, 9], [3, 3, 3, 3], [0, 0, 8], [2, 12], [1, 1], [5, 5]])
def test_windows_within_documents_equal_the_reference(tmp_path: Path, tail: str, lengths: list[int]) -> None:
    documents = documents_of(lengths)
    for i, layout in enumerate(layouts(documents)):
        (tmp_path / str(i)).mkdir()
        stream = stream_of(tmp_path / str(i), layout, "uint8")
        for length, stride in itertools.product((1, 2, 3, 4, 5, 8), (1, 2, 3, 5, 9)):
            agrees(Window(context_length=length, stride=stride, tail=tail, cross_documents=False), documents, stream)


@pytest.mark.parametrize(
    ("n", "length", "stride", "rows"),
    [
        (5145, 4, 1, 5141),
        (5145, 256, 128, 39),
        (5145, 1024, 1024, 5),
        (9, 8, 1, 1),
        (10, 8, 1, 2),
        (10, 8, 2, 1),
        (11, 8, 2, 2),
    ],
)
@pytest.mark.row("C10")
def test_the_number_of_windows_is_that_of_the_formula(tmp_path: Path, n: int, length: int, stride: int, rows: int) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(n)))]]])
    plan = plan_of(Window(context_length=length, stride=stride), stream)
    assert plan.rows == (n - length - 1) // stride + 1 == rows
    assert len(rows_of(stream, plan)) == rows


@pytest.mark.parametrize("n", [1, 7, 8])
@pytest.mark.row("C9", "C10")
def test_a_stream_of_at_most_context_length_is_refused_with_both_numbers(tmp_path: Path, n: int) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(n)))]]])
    with pytest.raises(InputError) as error:
        plan_of(Window(context_length=8), stream)
    assert (
        str(error.value)
        == f"corpus has {counted(n, 'token')}, one window needs 9; lower window.context_length, or set window.tail=pad."
    )
    assert error.value.exit_code == 3


def test_without_crossing_the_longest_document_is_named(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row([1, 2, 3])]], [[row([4, 5, 6, 7, 8]), row([9])]]])
    with pytest.raises(InputError) as error:
        plan_of(Window(context_length=5, cross_documents=False), stream)
    assert str(error.value) == (
        "the longest document has 5 tokens, one window needs 6; lower window.context_length, or set window.tail=pad or "
        "window.cross_documents=true."
    )


@pytest.mark.parametrize("w", [Window(tail="pad"), Window(mode="prefix"), Window(tail="pad", cross_documents=False)])
def test_one_token_gives_nothing_to_predict(tmp_path: Path, w: Window) -> None:
    with pytest.raises(InputError, match=r"has 1 token, one row needs 2: add text"):
        plan_of(w, stream_of(tmp_path, [[[row([1])]]]))


def test_documents_without_a_token_are_counted_as_such_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the longest document has 0 tokens, one row needs 2"):
        plan_of(Window(mode="prefix"), stream_of(tmp_path, [[[row([]), row([])]]]))


def test_every_token_but_the_first_is_a_target_exactly_once_where_stride_is_context_length(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(43)))]]])
    plan = plan_of(Window(context_length=5, tail="pad"), stream)
    targets = [t for r in rows_of(stream, plan) for t, m in zip(r["target_ids"], r["attention_mask"], strict=True) if m]
    assert targets == list(range(1, 43))
    assert plan.ledger == {
        "tokens": 43, "first": 1, "targets": 42, "tail": 0, "gap": 0, "slots": 45, "repeated": 0, "padding": 3,
    }  # fmt: skip
    assert plan_of(Window(context_length=5), stream).ledger["tail"] == 2


def test_the_number_of_window_shards_is_bounded_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, w = stream_of(tmp_path, [[[row(list(range(5000)))]]]), Window(context_length=4, stride=1)
    monkeypatch.setattr(window, "SHARD", 160)
    monkeypatch.setattr(window, "BATCH", 80)
    ordinary = plan_of(w, stream)
    assert len(ordinary.shards) == 500
    monkeypatch.setattr(window, "MOST", 7)
    fewer = plan_of(w, stream)
    assert 7 <= len(fewer.shards) <= 14 and [s.stop for s in fewer.shards][-1] == fewer.rows == ordinary.rows
    assert all(s.start % 10 == 0 for s in fewer.shards)  # whole batches


def test_window_shards_are_cut_from_the_row_count_into_whole_batches(tmp_path: Path) -> None:
    ids = np.arange(1_000_001) % 65536
    streams = []
    for name, layout in {"a": [ids], "b": np.array_split(ids, 3)}.items():
        (tmp_path / name).mkdir()
        streams.append(stream_of(tmp_path / name, [[[row(part.tolist())]] for part in layout]))
    one, other = streams
    w = Window(context_length=128, stride=16)
    plan = plan_of(w, one)
    assert plan.shards == plan_of(w, other).shards
    assert plan.bytes == plan.rows * 128 * 2 * 2
    sizes = [s.stop - s.start for s in plan.shards]
    assert sizes[0] * 512 == window.SHARD
    assert sizes == [32768, plan.rows - 32768]
    batches = list(window.chunk(one, plan, plan.shards[0]))
    assert [len(b) for b in batches] == [8192] * 4
    for got, again in zip(batches, window.chunk(other, plan, plan.shards[0]), strict=True):
        assert got.equals(again)
    view = np.lib.stride_tricks.sliding_window_view(ids, 128)[: 32768 * 16 : 16]
    flat = pa.Table.from_batches(batches)["input_ids"].combine_chunks().values
    np.testing.assert_array_equal(np.frombuffer(flat.buffers()[1], np.uint16).reshape(-1, 128), view)


def test_windows_that_do_not_overlap_are_views_into_the_map(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(1000)))]]])
    plan = plan_of(Window(context_length=10), stream)
    (batch,) = window.chunk(stream, plan, plan.shards[0])
    address = stream.read(0, 1).__array_interface__["data"][0]
    assert [batch[name].values.buffers()[1].address - address for name in ("input_ids", "target_ids")] == [0, 2]


@pytest.mark.parametrize("mode", ["sliding", "document"])
def test_a_batch_never_spans_much_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(window, "BATCH", 64)
    stream = stream_of(tmp_path, [[[row(list(range(i * 250, i * 250 + 250)))]] for i in range(8)])
    w = Window(mode=mode, context_length=2, stride=100, allow_gaps=True, truncate=True)
    plan = plan_of(w, stream)
    read = stream.read
    longest = 0

    def measured(start: int, stop: int) -> np.ndarray:
        nonlocal longest
        longest = max(longest, stop - start)
        return read(start, stop)

    monkeypatch.setattr(stream, "read", measured)
    documents = [list(range(i * 250, i * 250 + 250)) for i in range(8)]
    assert rows_of(stream, plan) == naive(w, documents)
    assert longest <= 64 // 2 + 3


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_shuffled_rows_are_those_of_the_reference_in_the_order_of_the_permutation(tmp_path_factory, data) -> None:
    w = Window(
        mode=data.draw(st.sampled_from(["sliding", "prefix", "document"])),
        context_length=data.draw(st.integers(3, 6)),
        stride=data.draw(st.integers(1, 8)),
        tail=data.draw(st.sampled_from(["drop", "pad"])),
        cross_documents=data.draw(st.booleans()),
        allow_gaps=True,
        truncate=True,
        special_tokens=data.draw(st.booleans()),
    )
    documents = documents_of(data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=8)))
    layout = data.draw(st.sampled_from(layouts(documents)))
    stream = stream_of(tmp_path_factory.mktemp("s"), layout, "uint8")
    expected, seed = naive(w, documents, BERT), data.draw(st.integers(0, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "SHARD", data.draw(st.sampled_from([40, 1 << 20])))
        patch.setattr(window, "BATCH", data.draw(st.sampled_from([7, 1 << 20])))
        if expected:
            plan = window.plan(w, stream.counts, stream.dtype, PAD, BERT, stream, order=seed)
            order = permute(np.arange(len(expected)), len(expected), keys(seed, 0)).tolist()
            assert rows_of(stream, plan) == [expected[row] for row in order]
            assert plan.ledger == naive_ledger(w, documents, BERT)


def test_shuffled_rows_are_gathered_file_by_file(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(100)))]] for _ in range(12)])
    mapped = []
    whole = stream._map
    stream._map = lambda index: mapped.append(index) or whole(index)  # type: ignore[method-assign, func-returns-value]
    for mode in ("sliding", "document"):
        w = Window(mode=mode, context_length=4, stride=1, truncate=True)
        plan = window.plan(w, stream.counts, stream.dtype, PAD, None, stream, order=1)
        mapped.clear()
        list(itertools.chain.from_iterable(window.chunk(stream, plan, shard) for shard in plan.shards))
        assert len(mapped) <= 12 + 4


# -- prefix and document ----------------------------------------------------------------------------------


def test_the_sentence_of_the_textbook_gives_eight_growing_pairs(tmp_path: Path) -> None:
    words = ["O", "rato", "roeu", "a", "roupa", "do", "rei", "de", "Roma"]
    stream = stream_of(tmp_path, [[[row(list(range(9)))]]])
    plan = plan_of(Window(mode="prefix"), stream, pad_id=None)
    pairs = [(" ".join(words[i] for i in r["input_ids"]), words[r["target_ids"][0]]) for r in rows_of(stream, plan)]
    assert len(pairs) == 8
    assert pairs[0] == ("O", "rato")
    assert pairs[1] == ("O rato", "roeu")
    assert pairs[7] == ("O rato roeu a roupa do rei de", "Roma")


def test_prefix_batches_hold_as_many_ids_as_fit_and_at_least_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "BATCH", 12)  # six IDs of two bytes
    stream = stream_of(tmp_path, [[[row(list(range(10)))]]])
    plan = plan_of(Window(mode="prefix", context_length=8), stream)
    batches = [b["input_ids"].value_lengths().to_pylist() for b in window.chunk(stream, plan, plan.shards[0])]
    assert batches == [[1, 2, 3], [4], [5], [6], [7], [8], [8]]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("lengths", [[6, 5, 1, 0, 9], [3, 3, 3], [0, 2], [12]])
def test_prefix_pairs_equal_the_reference(tmp_path: Path, lengths: list[int]) -> None:
    documents = documents_of(lengths)
    for i, layout in enumerate(layouts(documents)):
        (tmp_path / str(i)).mkdir()
        stream = stream_of(tmp_path / str(i), layout, "uint8")
        for length in (1, 2, 3, 5, 8, 20):
            agrees(Window(mode="prefix", context_length=length), documents, stream)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("frame", [None, BERT, ([7, 8], [], False), ([7], [8], False), ([], [9, 10], True)])
@pytest.mark.parametrize("lengths", [[6, 5, 1, 0, 9], [3, 3, 3], [0], [0, 2], [12, 0]])
def test_document_rows_equal_the_reference(tmp_path: Path, lengths: list[int], frame: Any) -> None:
    documents = documents_of(lengths)
    for i, layout in enumerate(layouts(documents)):
        (tmp_path / str(i)).mkdir()
        stream = stream_of(tmp_path / str(i), layout, "uint8")
        for length in (3, 4, 5, 8, 20):
            w = Window(mode="document", context_length=length, truncate=True, special_tokens=frame is not None)
            agrees(w, documents, stream, frame)


def test_a_bert_row_is_framed_cut_and_typed(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(600))), row([5, 6])]]])
    w = Window(mode="document", context_length=512, truncate=True, special_tokens=True)
    plan = plan_of(w, stream, BERT)
    long, short = rows_of(stream, plan)
    assert long == {"input_ids": [101, *range(510), 102], "attention_mask": [1] * 512, "token_type_ids": [0] * 512}
    assert short["input_ids"] == [101, 5, 6, 102] + [PAD] * 508
    assert short["attention_mask"] == [1] * 4 + [0] * 508
    assert plan.ledger == {
        "tokens": 602, "kept": 512, "truncated": 90, "slots": 1024, "special": 4, "padding": 508,
    }  # fmt: skip


def test_a_document_too_long_is_an_error_with_its_place_and_length(tmp_path: Path) -> None:
    layout = [
        [[row([1] * 6)]],
        [[([1] * 4, 1, 10, 20, True), ([2] * 4, 1, 20, 25, False), ([3] * 3, 1, 25, 31, True), ([4] * 9, 1, 31, 40, True)]],
    ]
    stream = stream_of(tmp_path, layout)
    w = Window(mode="document", context_length=8, special_tokens=True)
    with pytest.raises(InputError) as error:
        plan_of(w, stream, BERT, sources=("a.txt", "b.txt"))
    assert str(error.value) == (
        "'b.txt', document at 20 to 31: 7 tokens, but a row of window.context_length=8 holds 6. Set window.truncate=true to "
        "cut it, or raise window.context_length=."
    )
    with pytest.raises(InputError, match="source 1, document at 20 to 31"):
        plan_of(w, stream, BERT)
    with pytest.raises(InputError, match="source 1, document"):
        plan_of(w, stream, BERT, sources=("a.txt",))
    w.context_length = 11
    assert plan_of(w, stream, BERT).ledger["truncated"] == 0


# -- what the tokenizer and the limits forbid -------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "why"), [(Window(tail="pad"), "window.tail=pad"), (Window(mode="document"), "window.mode=document")]
)
def test_padding_without_a_pad_or_eos_token_is_a_config_error(tmp_path: Path, w: Window, why: str) -> None:
    stream = stream_of(tmp_path, [[[row([1, 2, 3])]]])
    with pytest.raises(ConfigError) as error:
        plan_of(w, stream, pad_id=None)
    assert str(error.value) == f"{why} needs a pad or an EOS token, and the tokenizer has neither: set tokenizer.pad_token=."
    assert error.value.exit_code == 2
    assert plan_of(w, stream, pad_id=0).pad_id == 0


@pytest.mark.parametrize("frame", [None, ([], [], True)])
def test_special_tokens_that_the_tokenizer_lacks_are_a_config_error(tmp_path: Path, frame: Any) -> None:
    stream = stream_of(tmp_path, [[[row([1, 2, 3])]]])
    with pytest.raises(ConfigError, match="the tokenizer adds none"):
        plan_of(Window(mode="document", special_tokens=True), stream, frame)


@pytest.mark.parametrize("mode", ["sliding", "prefix"])
def test_special_tokens_are_for_whole_documents_alone(tmp_path: Path, mode: str) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(9)))]]])
    w = Window(mode=mode, context_length=4)
    assert rows_of(stream, plan_of(w, stream, BERT)) == naive(w, [list(range(9))])


def test_a_frame_that_fills_the_row_is_a_config_error(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row([1])]]])
    with pytest.raises(ConfigError, match=r"window.context_length=2 leaves no room beside 2 special tokens"):
        plan_of(Window(mode="document", context_length=2, special_tokens=True), stream, BERT)
    with pytest.raises(ConfigError, match="no room beside 3 special tokens"):
        plan_of(Window(mode="document", context_length=3, special_tokens=True), stream, ([1, 2], [3], True))
    assert plan_of(Window(mode="document", context_length=3, special_tokens=True), stream, BERT).rows == 1


@pytest.mark.parametrize("special", [{"pad_id": 256}, {"frame": ([256], [], False)}, {"frame": ([], [256], False)}])
def test_a_special_token_that_the_dtype_cannot_hold_is_a_config_error(tmp_path: Path, special: dict[str, Any]) -> None:
    stream = stream_of(tmp_path, [[[row([1])]]], "uint8")
    w = Window(mode="document", special_tokens="frame" in special)
    with pytest.raises(ConfigError, match=r"vocabulary.dtype=uint8 cannot hold the special token 256"):
        plan_of(w, stream, **special)


@pytest.mark.parametrize("mode", ["sliding", "prefix", "document"])
@pytest.mark.parametrize("tail", ["drop", "pad"])
def test_the_planned_size_is_the_size_of_the_columns_and_the_limit_is_exact(tmp_path: Path, mode: str, tail: str) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(50))), row([1, 2])]]])
    w = Window(mode=mode, context_length=4, stride=2, tail=tail, truncate=True, special_tokens=mode == "document")
    plan = plan_of(w, stream, BERT)
    size = 0
    for batch in itertools.chain.from_iterable(window.chunk(stream, plan, s) for s in plan.shards):
        for column in batch.columns:
            size += len(column.flatten()) * column.type.value_type.bit_width // 8
        size += 4 * len(batch) * (mode == "prefix")
    assert plan.bytes == size
    w.max_bytes = size
    assert plan_of(w, stream, BERT).rows == plan.rows
    w.max_bytes = size - 1
    with pytest.raises(ConfigError) as error:
        plan_of(w, stream, BERT)
    overlap = plan.ledger["slots"] / 52
    assert (
        f"window.max_bytes={size - 1}, but {plan.rows} rows would take {size} bytes: every token would be written {overlap:.1f} times"
        in str(error.value)
    )
    assert ("Raise window.stride=" if mode == "sliding" else "Lower window.context_length=") in str(error.value)


@pytest.mark.row("C13")
def test_absurd_sizes_are_refused_or_planned_without_allocation(tmp_path: Path) -> None:
    import resource

    stream = stream_of(tmp_path, [[[row(list(range(100)))]]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="corpus has 100 tokens, one window needs 1000000000001"):
        plan_of(Window(context_length=10**12), stream)
    with pytest.raises(
        ConfigError, match=r"1 row would take 5000000000000 bytes: every token would be written 10000000000.0 times"
    ):
        plan_of(Window(context_length=10**12, tail="pad"), stream)
    for tail in ("drop", "pad"):
        plan = plan_of(Window(context_length=4, stride=10**12, allow_gaps=True, tail=tail), stream)
        assert [r["target_ids"] for r in rows_of(stream, plan)] == [[1, 2, 3, 4]]
        assert (plan.ledger["tail"], plan.ledger["gap"]) == (95, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stride": 0}, "window.stride=0 is outside the allowed range 1 to"),
        ({"stride": -1}, "window.stride=-1 is outside the allowed range 1 to"),
        ({"context_length": 0}, "window.context_length=0 is outside the allowed range 1 to"),
        ({"context_length": 10**12}, "window.context_length=1000000000000 is outside the allowed range 1 to"),
        ({"stride": 10**12}, "100 % of the tokens would be skipped"),
        ({"stride": 512}, "window.stride=512 is larger than window.context_length=256: 50 % of the tokens would be skipped"),
        ({"mode": "slide"}, "window.mode='slide' is not one of sliding, prefix, document. Did you mean sliding?"),
        ({"special_tokens": True}, "window.special_tokens=true needs window.mode=document"),
        ({"tail": "keep"}, "window.tail='keep' is not one of drop, pad"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(changes: dict[str, Any], said: str) -> None:
    whole = config.Config(window=Window(**changes))
    whole.corpus.paths = ["a.txt"]
    with pytest.raises(ConfigError) as error:
        config.check(whole)
    assert said in str(error.value)


@pytest.mark.row("C12")
def test_gaps_are_allowed_where_asked_for() -> None:
    whole = config.Config(window=Window(stride=512, allow_gaps=True))
    whole.corpus.paths = ["a.txt"]
    config.check(whole)


# -- ledger, identity, schema -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sliding", "prefix", "document"])
def test_a_ledger_off_by_one_in_any_entry_is_a_bug_said_aloud(tmp_path: Path, mode: str) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(50))), row([1, 2])]]])
    w = Window(mode=mode, context_length=4, stride=3, tail="pad", truncate=True)
    ledger = plan_of(w, stream).ledger
    window.check_ledger(mode, ledger)
    for name in ledger.keys() - ({"slots"} if mode == "prefix" else set()):
        with pytest.raises(RuntimeError, match="does not balance"):
            window.check_ledger(mode, ledger | {name: ledger[name] + 1})
    with pytest.raises(RuntimeError, match="does not balance"):
        window.check_ledger(
            "sliding",
            dict.fromkeys(window.BALANCE["sliding"]["slots"] + ("tokens", "first", "slots"), 0) | {"tail": -1, "gap": 1},
        )


def test_the_identity_holds_what_changes_rows_and_nothing_else() -> None:
    assert window.identity(Window(context_length=8, allow_gaps=True, max_bytes=5, truncate=True)) == {
        "mode": "sliding", "context_length": 8, "stride": 8, "tail": "drop", "cross_documents": True,
    }  # fmt: skip
    assert window.identity(Window(context_length=8)) == window.identity(Window(context_length=8, stride=8))
    assert window.identity(Window(mode="prefix", context_length=8, stride=3, tail="pad")) == {
        "mode": "prefix",
        "context_length": 8,
    }
    assert window.identity(Window(mode="document", context_length=8, stride=3, truncate=True)) == {
        "mode": "document", "context_length": 8, "truncate": True, "special_tokens": None,
    }  # fmt: skip


def test_the_schema_says_that_targets_are_shifted_already(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row([1, 2, 3])]]])

    def described(w: Window, frame: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        schema = window.schema(plan_of(w, stream, frame))
        return {f.name: str(f.type) for f in schema}, json.loads(schema.metadata[b"pipeline"])

    ids, mask = "fixed_size_list<item: uint16>[2]", "fixed_size_list<item: uint8>[2]"
    fields, meaning = described(Window(context_length=2, stride=1))
    assert fields == {"input_ids": ids, "target_ids": ids}
    assert meaning == {
        "mode": "sliding",
        "context_length": 2,
        "stride": 1,
        "targets": "target_ids[i][j] is the token that follows input_ids[i][j]; already shifted by one; do not shift again; "
        "do not rename to labels",
    }
    fields, meaning = described(Window(context_length=2, tail="pad"))
    assert fields == {"input_ids": ids, "target_ids": ids, "attention_mask": mask}
    assert meaning["attention_mask"].startswith("1 where target_ids[i][j] is a token of the text")
    fields, meaning = described(Window(mode="prefix", context_length=2))
    assert fields == {"input_ids": "list<item: uint16>", "target_ids": "fixed_size_list<item: uint16>[1]"}
    assert "target_ids[i][0] is the token that follows input_ids[i]" in meaning["targets"]
    assert "stride" not in meaning
    fields, meaning = described(Window(mode="document", context_length=5, special_tokens=True), BERT)
    assert list(fields) == ["input_ids", "attention_mask", "token_type_ids"]
    assert meaning["targets"].startswith("none")
    assert meaning["attention_mask"].startswith("1 where input_ids[i][j] is a token")
    fields, _ = described(Window(mode="document", context_length=5, special_tokens=False), BERT)
    assert list(fields) == ["input_ids", "attention_mask"]


def test_a_plan_survives_pickling(tmp_path: Path) -> None:
    plan = plan_of(Window(context_length=2), stream_of(tmp_path, [[[row([1, 2, 3])]]]))
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_chunking_does_not_import_pandas(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[[row(list(range(9)))]]])
    plans = [
        plan_of(Window(mode=m, context_length=4, tail="pad", truncate=True), stream) for m in ("sliding", "prefix", "document")
    ]
    code = (
        "import sys, pickle; from pathlib import Path; from pipeline import window\n"
        f"stream, plans = pickle.loads({pickle.dumps((stream, plans))!r})\n"
        "for plan in plans: list(window.chunk(stream, plan, plan.shards[0]))\n"
        "assert 'pandas' not in sys.modules, 'pandas'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "w",
    [Window(context_length=4, tail="pad"), Window(mode="document", context_length=4), Window(mode="prefix", context_length=4)],
)
def test_datasets_opens_the_files_and_gives_int64_tensors(tmp_path: Path, w: Window) -> None:
    import datasets
    import torch

    stream = stream_of(tmp_path, [[[row(list(range(4)))]], [], [[row([9, 8])]]])
    plan = plan_of(w, stream)
    files = []
    for shard in plan.shards:  # the second ID shard is empty, and so is its file where documents are not crossed
        files.append(f"data-{shard.index:05}.arrow")
        with pa.ipc.new_stream(str(tmp_path / files[-1]), window.schema(plan)) as writer:
            for batch in window.chunk(stream, plan, shard):
                writer.write_batch(batch)
    datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(window.schema(plan))).write_to_directory(str(tmp_path))
    state = {
        "_data_files": [{"filename": name} for name in files], "_fingerprint": "0", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps(state))
    opened = datasets.load_from_disk(str(tmp_path))
    assert opened.num_rows == plan.rows
    assert opened[:] == {name: [r[name] for r in rows_of(stream, plan)] for name in opened.column_names}
    if w.mode != "prefix":
        assert opened.features["input_ids"] == datasets.List(datasets.Value("uint16"), length=4)
    first = opened.with_format("torch")[0]
    for name, tensor in first.items():
        assert tensor.dtype == torch.int64
        assert tensor.shape == ((1,) if w.mode == "prefix" else (4,)), name


# -- properties -------------------------------------------------------------------------------------------

WINDOWS = st.builds(
    Window,
    mode=st.sampled_from(["sliding", "sliding", "prefix", "document"]),
    context_length=st.integers(1, 9),
    stride=st.one_of(st.none(), st.integers(1, 12)),
    tail=st.sampled_from(["drop", "pad"]),
    cross_documents=st.booleans(),
    truncate=st.just(True),
    allow_gaps=st.just(True),
)


@settings(deadline=None)
@given(
    WINDOWS,
    st.lists(st.integers(0, 13), min_size=1, max_size=9),
    st.integers(1, 64),
    st.integers(1, 200),
    st.integers(1, 8),
    st.data(),
)
def test_rows_and_ledger_hold_for_any_layout_and_any_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    w: Window,
    lengths: list[int],
    batch: int,
    shard: int,
    rows: int,
    data: st.DataObject,
) -> None:
    documents = documents_of(lengths)
    layout: list[list[list[Any]]] = [[[]]]
    for ids in documents:  # cut documents into rows, rows into batches, and documents into shards, anywhere
        if data.draw(st.booleans()):
            layout.append([[]])
        step = data.draw(st.integers(1, 14))
        for i in range(0, max(len(ids), 1), step):
            if data.draw(st.booleans()):
                layout[-1].append([])
            layout[-1][-1].append(row(ids[i : i + step], i + step >= len(ids)))
    stream = stream_of(tmp_path_factory.mktemp("w"), layout, "uint8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "BATCH", batch)
        patch.setattr(window, "SHARD", shard)
        patch.setattr(window, "ROWS", rows)
        agrees(w, documents, stream)
