"""Splits by content and by files."""

import hashlib
import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import split
from pipeline.config import Config, Split, check
from pipeline.errors import ConfigError, InputError


def hashes(texts: list[str]) -> np.ndarray:
    return np.array(
        [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts], np.uint64
    )


@given(st.permutations([f"text {i}" for i in range(60)]), st.lists(st.text(max_size=5), max_size=20), st.integers(0, 5))
def test_reordering_and_adding_documents_never_changes_the_split_of_one(texts: list[str], more: list[str], seed: int) -> None:
    settings = Split(validation=0.2, test=0.1, seed=seed)
    alone = dict(zip(sorted(texts), split.assign(hashes(sorted(texts)), settings).tolist(), strict=True))
    together = more + texts
    for text, number in zip(together, split.assign(hashes(together), settings).tolist(), strict=True):
        assert alone.get(text, number) == number


@given(st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.floats(0, 0.1))
def test_a_split_that_grows_takes_only_from_train(validation: float, test: float, more: float) -> None:
    some = hashes([str(i) for i in range(500)])
    before = split.assign(some, Split(validation=validation, test=test))
    after = split.assign(some, Split(validation=validation + more, test=test))
    assert set(after[before != after].tolist()) <= {1}
    assert set(before[before != after].tolist()) <= {0}


def test_shares_are_met_and_seeds_differ() -> None:
    some = hashes([str(i) for i in range(20_000)])
    first, second = (split.assign(some, Split(validation=0.05, test=0.1, seed=seed)) for seed in (0, 1))
    counts = np.bincount(first) / len(first)
    assert np.allclose(counts, [0.85, 0.05, 0.1], atol=0.01)
    assert (first != second).mean() > 0.1


def test_patterns_name_the_files_that_are_held_out() -> None:
    settings = Split(by="files", validation_files=["dev-*.txt"], test_files=["old/*"])
    assert split.names(settings) == ("train", "validation", "test")
    paths = ["a.txt", "deep/dev-1.txt", "old/dev-2.txt", "old/b.txt"]
    assert split.assign_files(paths, settings).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Split(train=0.5, validation=0.2), "must make 1"),
        (Split(validation=0.6, test=0.4), r"split\.validation=0\.6 \+ split\.test=0\.4: nothing is left for train"),
        (Split(train=0, validation=1), "must make 1, with some left for train"),
        (Split(max_overlap=0.1), r"split\.max_overlap=0\.1 needs a split"),
        (Split(train=1, validation=0, max_overlap=0.1), r"split\.max_overlap=0\.1 needs a split"),
        (Split(validation=0.1, overlap="none", max_overlap=0), r"split\.max_overlap=0 needs split\.overlap="),
        (Split(by="files", test_files=["a"], overlap="none", max_overlap=0), r"split\.max_overlap=0 needs split\.overlap="),
        (Split(validation=1.5), "outside the allowed range"),
        (Split(by="files"), "needs split.validation_files"),
        (Split(by="files", validation=0.1, validation_files=["a"]), "no shares"),
        (Split(validation_files=["a"]), "need split.by=files"),
        (Split(by="files", validation_files=["a", "b"], test_files=["b"]), "both name 'b': a document is in one split"),
    ],
)
def test_splits_that_cannot_be_are_refused(settings: Split, said: str) -> None:
    config = Config(split=settings)
    config.corpus.paths = ["a"]
    with pytest.raises(ConfigError, match=said):
        check(config)


class Text:
    """A text in memory as a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def pread(self, count: int, offset: int) -> bytes:
        return self.data[offset : offset + count]


@given(st.lists(st.lists(st.sampled_from(["a", "bc", "déf", "x."]), min_size=1, max_size=9).map(" ".join), min_size=4, max_size=60),
       st.sampled_from(["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n"]), st.integers(1, 12), st.sampled_from([1, 7, 1 << 16]))  # fmt: skip
def test_one_document_is_cut_between_paragraphs_with_gaps_of_enough_words(
    paragraphs: list[str], between: str, words: int, read: int
) -> None:
    data = between.join(paragraphs).encode()
    borders = [0, len(data), *(found.end() for found in split.BORDER.finditer(data))]
    settings = Split(validation=0.2, test=0.2)
    before, split.READ = split.READ, read
    try:
        edges, owners = split.sections(Text(data), len(data), settings, words, "a.txt")
    except InputError as error:
        assert "leaves nothing for" in str(error)
        return
    finally:
        split.READ = before
    assert owners == [0, split.GAP, 1, split.GAP, 2]
    assert edges == sorted(edges) and set(edges) <= set(borders) and (edges[0], edges[-1]) == (0, len(data))
    pieces = [data[low:high] for low, high in itertools.pairwise(edges)]
    for owner, piece in zip(owners, pieces, strict=True):
        assert len(piece.split()) >= (words if owner == split.GAP else 1)
    for place in (1, 3):  # no gap is longer than it must be
        whole = [at for at in sorted(borders) if edges[place] < at < edges[place + 1]]
        assert all(len(data[edges[place] : at].split()) < words for at in whole)
    share = int(len(data) * 0.6)  # what is left of a border that begins before may be one still
    behind = [min((at for at in borders if place(at) >= share), default=0) for place in (int, partial(starts_at, data))]
    assert edges[1] in behind


def test_what_is_advised_of_a_text_that_cannot_be_cut_is_the_largest_power_of_two_that_helps() -> None:
    data = "\n\n".join(f"paragraph {n} of some six words" for n in range(200)).encode()
    settings, words = Split(validation=0.2, test=0.2), 1000
    with pytest.raises(InputError, match=r"a larger split.validation=, or window.context_length<=64\.$"):
        split.sections(Text(data), len(data), settings, words, "a.txt")

    def held(fits: int) -> list[int]:
        edges, owners = split.sections(Text(data), len(data), settings, fits, "a.txt")
        pieces = zip(owners, itertools.pairwise(edges), strict=True)
        return [len(data[low:high].split()) for owner, (low, high) in pieces if owner != split.GAP]

    assert split.fitting(Text(data), len(data), settings, words) == 64
    assert min(held(64)) > 64 and min(held(128)) <= 128
    assert split.fitting(Text(data), len(data), settings, 64) == 32
    assert split.fitting(Text(b"one paragraph"), 13, settings, words) is None
    with pytest.raises(InputError, match=r"a larger split.train=\.$"):
        split.sections(Text(b""), 0, settings, words, "a.txt")


def starts_at(data: bytes, end: int) -> int:
    """Where the border that ends at `end` begins."""
    return next((found.start() for found in split.BORDER.finditer(data) if found.end() == end), end)
