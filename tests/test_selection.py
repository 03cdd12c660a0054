"""Fingerprints and verdicts, against plain Python."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fingerprint, selection
from pipeline.arrow import read_batches
from pipeline.batches import make_batch
from pipeline.config import Selection, Split
from pipeline.errors import InputError

WORDS = "the fog was late because of ferry and Hester Nils wrote a letter to harbour ÄÖ 中文字 end".split()


def batches(texts: list[str], pieces: int = 1) -> list[pa.RecordBatch]:
    """What `load` gives: each text one document, in so many pieces."""
    out = []
    for place, text in enumerate(texts):
        data = text.encode()
        edges = np.linspace(0, len(text), pieces + 1, dtype=int)
        for number in range(pieces):
            part = text[edges[number] : edges[number + 1]]
            row = pa.array([part], pa.string())
            start, end = np.array([100 * place]), np.array([100 * place + len(data)])
            out.append(make_batch(row, 0, start, end, number == pieces - 1))
    return out


def documents(texts: list[str], settings: Selection, tmp_path: Path, near: bool = True) -> selection.Documents:
    path = tmp_path / "f.arrow"
    with pa.ipc.new_stream(str(path), fingerprint.schema(settings, near, Split())) as writer:
        for batch in fingerprint.fingerprint(batches(texts), settings, near, Split(), Counter()):
            writer.write_batch(batch)
    return selection.read([path])


def naive_ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(
        r"[\u3000-\udfff](?:[^\W_]|[^\x00-\u2fff])*?(?=[\u3000-\udfff]|)|[a-z0-9\x80-\u2fff\ue000-\U0010ffff]+",
        text.translate(LOWER),
    )
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, min(len(words), 1)))}


LOWER = {i: i + 32 for i in range(ord("A"), ord("Z") + 1)}


@given(
    st.lists(st.lists(st.sampled_from([*WORDS, ", ", " ", "A-b"]), max_size=20).map(" ".join), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_ngrams_are_those_of_plain_python(texts: list[str], n: int) -> None:
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)])
    hashes, borders = fingerprint.shingles(data, offsets, n)
    for row, text in enumerate(texts):
        own = set(hashes[borders[row] : borders[row + 1]].tolist())
        assert len(own) == len(naive_ngrams(text, n))
        for other in range(row):
            theirs = set(hashes[borders[other] : borders[other + 1]].tolist())
            assert len(own & theirs) == len(naive_ngrams(text, n) & naive_ngrams(texts[other], n))


def test_a_document_in_pieces_has_the_hash_of_the_whole() -> None:
    text = " ".join(WORDS * 20)
    settings = Selection()
    whole, pieces = (
        next(b for b in fingerprint.fingerprint(batches([text], k), settings, False, Split(), Counter()) if len(b))
        for k in (1, 5)
    )
    assert whole["hash"].to_pylist() == pieces["hash"].to_pylist()
    assert whole["bytes"].to_pylist() == pieces["bytes"].to_pylist() == [len(text.encode())]
    assert pieces["start"].to_pylist() == [0]


def test_signatures_estimate_the_share_of_common_ngrams() -> None:
    rng = np.random.default_rng(0)
    one = [f"w{i}" for i in rng.integers(0, 10**6, 2000)]
    two = one[:1500] + [f"v{i}" for i in range(500)]
    texts = [" ".join(one), " ".join(two)]
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    signed = fingerprint.signatures(data, np.cumsum([0, *map(len, texts)]), Selection(permutations=512))
    a, b = (naive_ngrams(text, 5) for text in texts)
    assert abs((signed[0] == signed[1]).mean() - len(a & b) / len(a | b)) < 0.08


def test_a_row_longer_than_a_block_has_the_signature_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{i}" for i in range(3000))
    data, offsets, settings = np.frombuffer(text.encode(), np.uint8), np.array([0, len(text)]), Selection(ngram=1)
    whole = fingerprint.signatures(data, offsets, settings)
    monkeypatch.setattr(fingerprint, "BLOCK", 500)
    assert (fingerprint.signatures(data, offsets, settings) == whole).all()


def test_the_first_of_equal_documents_stays(tmp_path: Path) -> None:
    found = documents(["a b", "c", "a b", "c", "a b c"], Selection(), tmp_path, near=False)
    verdicts, repeats = selection.decide(found, np.zeros(5, np.int8), Selection(duplicates="exact"))
    assert verdicts.tolist() == [0, 0, selection.DUPLICATE, selection.DUPLICATE, 0]
    assert repeats.tolist() == [-1, -1, 0, 1, -1]
    kept, _ = selection.decide(found, np.zeros(5, np.int8), Selection())
    assert not kept.any()


@given(st.lists(st.integers(0, 5), max_size=40))
def test_equals_finds_the_first_with_the_same_hash(values: list[int]) -> None:
    hashes = np.array([[value % 3, value // 3] for value in values], np.uint64).reshape(-1, 2)
    assert selection.equals(hashes).tolist() == [values.index(value) for value in values]


@given(st.integers(1, 30), st.data())
def test_components_are_those_of_a_graph(count: int, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=40))
    groups = [{i} for i in range(count)]
    for i, j in pairs:
        merged = groups[i] | groups[j]
        for k in merged:
            groups[k] = merged
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert selection.components(count, left, right).tolist() == [min(group) for group in groups]


def test_near_duplicates_are_dropped_and_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = [f"w{i}" for i in rng.integers(0, 10**6, 400)]
    changed = [*base]
    changed[200] = "otherwise"
    other = [f"u{i}" for i in range(400)]
    found = documents([" ".join(base), " ".join(other), " ".join(changed), " ".join(base)], Selection(), tmp_path)
    verdicts, repeats = selection.decide(found, np.zeros(4, np.int8), Selection(duplicates="near"))
    assert verdicts.tolist() == [0, 0, selection.NEAR, selection.DUPLICATE]
    path, copies = tmp_path / "duplicates.jsonl", tmp_path / "copies.arrow"
    with open(copies, "wb") as file:
        selection.write_copies(file, found, verdicts, repeats)
    with open(path, "wb") as file:
        selection.write_list(file, read_batches(copies), ["a.txt"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["near_duplicate", "duplicate"]
    assert lines[0]["start"] == 200 and lines[0]["repeats"]["start"] == 0
    counts = selection.account(found, verdicts, Split())
    assert counts["kept_documents"] + counts["dropped_duplicate_documents"] + counts["dropped_near_duplicate_documents"] == 4
    assert (
        counts["kept_bytes"] + counts["dropped_duplicate_bytes"] + counts["dropped_near_duplicate_bytes"]
        == counts["text_bytes"]
    )


def test_documents_without_words_are_near_to_none_and_equal_ones_are_copies(tmp_path: Path) -> None:
    near = Selection(duplicates="near")
    found = documents(["!!! ???", "... ---", "one word", "!!! ???", "(*)"], near, tmp_path)
    verdicts, repeats = selection.decide(found, np.zeros(5, np.int8), near)
    assert verdicts.tolist() == [0, 0, 0, selection.DUPLICATE, 0] and repeats.tolist() == [-1, -1, -1, 0, -1]
    verdicts, _ = selection.decide(documents(["?", "!"], near, tmp_path), np.zeros(2, np.int8), near)
    assert verdicts.tolist() == [0, 0]


def test_a_planted_copy_across_splits_is_found_and_refused(tmp_path: Path) -> None:
    texts = [" ".join(f"w{i}x{j}" for j in range(300)) for i in range(20)]
    texts += [texts[3].replace("w3x150", "changed"), texts[4]]
    found = documents(texts, Selection(), tmp_path)
    verdicts = np.zeros(22, np.int8)
    verdicts[[7, 20, 21]] = 1
    settings = Split(validation=0.1, max_overlap=0.1)
    facts = selection.named(selection.overlap(found, verdicts, settings, 0.8), ["a"])
    assert facts == {
        "validation": {
            "documents": 3,
            "exact": 1,
            "near": 1,
            "pairs": [["'a' from 2000", "'a' from 300", "near"], ["'a' from 2100", "'a' from 400", "exact"]],
        }
    }
    with pytest.raises(InputError, match=r"2 of 3 documents of validation .* 2000 repeats 'a' from 300 \(near\)"):
        selection.require_apart(facts, settings)
    selection.require_apart(facts, Split(validation=0.1))
    selection.require_apart(facts, Split(validation=0.1, max_overlap=0.7))


def test_bands_miss_one_pair_in_a_hundred_at_most() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        many, places = selection.bands(threshold, 128)
        assert many * places <= 128
        assert 1 - (1 - threshold**places) ** many >= 0.99


def test_verdicts_come_back_by_shard(tmp_path: Path) -> None:
    with open(tmp_path / "v", "wb") as file:
        selection.write_verdicts(file, np.array([0, -1, 1, 0], np.int8), np.array([0, 3, 3, 4]))
    assert [part.tolist() for part in selection.read_verdicts(tmp_path / "v")] == [[0, -1, 1], [], [0]]
