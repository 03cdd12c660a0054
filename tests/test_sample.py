"""Samples by bytes: blocks share out a corpus without seams, and the interval holds the truth as often as it says."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import content, places, sample
from pipeline.config import Corpus

WORDS = ["fog", "ferry", "naïve", "漢字", "late,", "because", "😀", "a"]


def written(at, kind: str, seed: int = 0, documents: int = 400, rows: int = 30) -> tuple[Corpus, list[str]]:
    """A corpus whose documents differ much in length and in words a byte."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        kinds = generator.choice(WORDS, 3)
        texts.append(" ".join(generator.choice(kinds, int(generator.lognormal(3, 1.5)) + 1)))
    if kind == "jsonl":
        (at / "in.jsonl").write_text("".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        return Corpus(format="jsonl", paths=["in.jsonl"]), texts
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), at / "in.parquet", row_group_size=rows)
        return Corpus(format="parquet", paths=["in.parquet"]), texts
    if kind == "folder":
        (at / "in").mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (at / "in" / f"{number:04d}.txt").write_text(text)
        return Corpus(paths=["in"]), texts
    if kind == "utf-16":
        (at / "in").mkdir(exist_ok=True)
        for number in range(40):
            (at / "in" / f"{number:02d}.txt").write_text("\n".join(texts[number::40]), encoding="utf-16")
        return Corpus(paths=["in"], document="line", encoding="utf-16"), texts
    (at / "in.txt").write_text(("\n\n" if kind == "paragraph" else "\n").join(texts))
    return Corpus(paths=["in.txt"], document=kind), texts


def drawn(settings: Corpus, budget: int, seed: int) -> tuple[float, list[sample.Block]]:
    frame = sample.frame(settings, places.find(settings))
    return frame.bytes, list(sample.draw(settings, frame, budget, seed))


KINDS = ["line", "paragraph", "file", "folder", "jsonl", "parquet", "utf-16"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_holds_words_documents_and_bytes_of_the_whole_as_often_as_it_says(at, monkeypatch, kind):
    monkeypatch.setattr(sample, "BLOCK", 512)
    settings, texts = written(at, kind)
    if kind == "file":
        texts = ["\n".join(texts)]
    truths = {
        "words": (sum(len(text.split()) for text in texts), lambda block: sum(len(text.split()) for text in block.text)),
        "bytes": (sum(len(text.encode()) for text in texts), lambda block: sum(map(len, block.text))),
        "documents": (len(texts), lambda block: len(block.begun)),
    }
    held = dict.fromkeys(truths, 0)
    for seed in range(20):
        total, blocks = drawn(settings, 16 << 10, seed)
        sizes = [block.size for block in blocks]
        assert 13 << 10 <= sum(sizes) <= 17 << 10
        for what, (truth, count) in truths.items():
            guess = sample.ratio(total, sizes, [count(block) for block in blocks], sum(sizes) / total)
            held[what] += guess.low <= truth <= guess.high or abs(guess.value / truth - 1) < 0.005
    assert held["words"] >= 16 and held["bytes"] >= 16
    assert held["documents"] >= 16 or kind == "file"  # one document begins in one block, or in none


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_blocks_again_and_another_seed_others(at, kind):
    settings, _ = written(at, kind, documents=2000)
    assert drawn(settings, 32 << 10, 1) == drawn(settings, 32 << 10, 1) != drawn(settings, 32 << 10, 2)


@pytest.mark.parametrize("kind", ["line", "paragraph", "file", "jsonl"])
def test_neighbouring_blocks_share_out_every_word_of_a_file_once(at, monkeypatch, kind):
    settings, texts = written(at, kind, documents=60)
    (path, stat), *_ = places.find(settings).items()
    unit, words, begun = sample.Unit(path, stat[1]), [], 0
    for low in range(0, stat[1], 777):
        block = sample.Block(0)
        sample._from_file(settings, unit, low, min(low + 777, stat[1]), block)
        assert all(text.decode() is not None for text in block.text)  # no character is cut
        words += [word for text in block.text for word in text.decode().split()]
        begun += len(block.begun)
    whole = [word for text in texts for word in text.split()]
    assert words == whole and begun == (1 if kind == "file" else len(texts))


def test_a_line_longer_than_the_reach_is_cut_between_characters_and_still_counts_by_its_bytes(at, monkeypatch):
    monkeypatch.setattr(sample, "REACH", 1 << 14)
    (at / "in.txt").write_text("漢" * 100_000 + "\n")
    settings = Corpus(paths=["in.txt"], document="line")
    total, blocks = drawn(settings, 64 << 10, 3)
    guess = sample.ratio(total, [b.size for b in blocks], [sum(map(len, b.text)) for b in blocks], 0.2)
    assert abs(guess.value / 300_000 - 1) < 0.01 and all(text.decode() for b in blocks for text in b.text)


@pytest.mark.parametrize("long", [False, True])
def test_of_what_is_packed_no_more_text_is_drawn_than_of_what_is_not_and_no_more_than_the_head_is_held(at, monkeypatch, long):
    line = "the ferry was late because of the fog" + (" " if long else "\n")
    (at / "in.txt.gz").write_bytes(gzip.compress((line * 20_000).encode()))
    settings = Corpus(paths=["in.txt.gz"], document="file" if long else "line")
    total, blocks = drawn(settings, 64 << 10, 0)
    text = sum(len(text) for block in blocks for text in block.text)
    assert total < 16 << 10 and 60 << 10 < text < 68 << 10
    guess = sample.ratio(total, [block.size for block in blocks], [sum(map(len, b.text)) for b in blocks], 0.1)
    assert guess.low <= len(line.rstrip("\n")) * 20_000 <= guess.high and guess.high / guess.low < 1.05
    monkeypatch.setattr(sample, "HEAD", 100_000)
    monkeypatch.setattr("pipeline.batches.BLOCK", 1 << 14)
    unit = sample.frame(settings, places.find(settings)).units[0]
    values = sample._values(settings, unit)
    assert values.partial and 100_000 < len(values.text) < 120_000


def test_a_part_of_which_only_the_head_is_read_says_so(at, monkeypatch):
    settings, _ = written(at, "utf-16")
    assert not any(block.partial for block in drawn(settings, 16 << 10, 0)[1])
    monkeypatch.setattr(sample, "HEAD", 100)
    assert any(block.partial for block in drawn(settings, 16 << 10, 0)[1])


def test_an_estimate_from_everything_is_exact_and_from_one_block_knows_that_it_knows_nothing():
    assert sample.ratio(100, [50, 50], [3, 4], 1.0) == sample.Guess(7, 7, 7)
    assert sample.ratio(100, [50], [3], 0.5).high == np.inf
    assert (
        str(sample.Guess(5145, 5145, 5145)) == "5,145"
        and str(sample.Guess(56_712_345, 56e6, 57.5e6)) == "about 56,710,000 (± 1.4 %)"
    )


def test_students_quantile_is_that_of_the_tables():
    for degrees, quantile in ((4, 2.776), (10, 2.228), (30, 2.042), (100, 1.984)):
        assert abs(sample._student(degrees) - quantile) < 0.01


def test_the_sample_of_a_folder_of_many_files_reads_few_of_them(at, monkeypatch):
    settings, _ = written(at, "folder", documents=500)
    opened = set()
    real = places.open_file

    def spy(path):
        opened.add(path)
        return real(path)

    monkeypatch.setattr(sample, "BLOCK", 256)
    monkeypatch.setattr(sample, "LOOKED", 20)
    files = places.find(settings)
    monkeypatch.setattr(places, "open_file", spy)
    monkeypatch.setattr(content, "open_file", spy)
    list(sample.draw(settings, sample.frame(settings, files), 4 << 10, 0))
    assert 4 <= len([path for path in opened if path.endswith(".txt")]) <= 90
