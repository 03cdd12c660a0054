"""Splits by content and by files."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import split
from pipeline.config import Config, Split, check
from pipeline.errors import ConfigError


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
        (Split(validation=0.6, test=0.4), "must make 1"),
        (Split(validation=1.5), "outside the allowed range"),
        (Split(by="files"), "needs patterns"),
        (Split(by="files", validation=0.1, validation_files=["a"]), "no shares"),
        (Split(validation_files=["a"]), "need split.by=files"),
    ],
)
def test_splits_that_cannot_be_are_refused(settings: Split, said: str) -> None:
    config = Config(split=settings)
    config.corpus.paths = ["a"]
    with pytest.raises(ConfigError, match=said):
        check(config)
