"""What a plan says, against the run that follows."""

import errno
import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conftest import EVERYTHING, composed
from pipeline import cli, counting, estimate, foretold, sample
from pipeline.cache import Cache
from pipeline.config import Config
from pipeline.errors import ConfigError, InputError
from pipeline.run import run

WORDS = "the ferry was late because of the fog, and Hester (who had waited) went home".split()


def lines(count: int, seed: int = 0) -> str:
    generator = np.random.default_rng(seed)
    return "\n".join(" ".join(generator.choice(WORDS, int(generator.lognormal(2.5, 1)) + 1)) for _ in range(count)) + "\n"


def require_right(config: Config, most: float = 0.05) -> estimate.Estimate:
    """The estimate of a run, made before it, beside it."""
    said, made = estimate.estimate(config), run(config)
    stored = sum(stage.bytes for stage in made.stages)
    assert abs(said.disk.value / stored - 1) < most, [(s.stage, s.bytes.value) for s in said.stages]
    for name, truth in (
        ("tokens", made.ledger["encode"]["ids"]), ("documents", made.ledger["load"]["documents"]),
        ("text", made.ledger["load"]["text_bytes"]), ("rows", made.rows),
    ):  # fmt: skip
        guess = getattr(said, name)
        assert guess.value == truth if guess.exact else guess.low <= truth <= guess.high, (name, guess, truth)
    again = estimate.estimate(config)
    assert {stage.state for stage in again.stages} == {"cached"} and again.disk.value == 0
    assert again.tokens.exact and again.tokens.value == made.ledger["encode"]["ids"] and again.rows.value == made.rows
    return said


@pytest.mark.parametrize(
    "options",
    [
        ["tokenizer=bytes", "embedding=none"],
        ["tokenizer=words", "window.stride=7", "embedding.embedding_dim=8"],
        ["window=prefix", "embedding=none"],
        ["window=document", "window.truncate=true", "embedding=none"],
        ["window.cross_documents=false", "window.tail=pad", "embedding=none"],
        ["vocabulary.append_eos=false", "embedding.vectors=never"],
    ],
)
def test_of_a_small_corpus_everything_is_counted_and_the_bytes_follow(at, options):
    (at / "in.txt").write_text(lines(300))
    said = require_right(
        composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.context_length=32", *options)
    )
    assert said.tokens.exact and said.rows.exact


@pytest.mark.parametrize(
    "options", [["tokenizer=bytes"], ["tokenizer.vocab_size=280"], ["tokenizer=words", "window.cross_documents=false"]]
)
def test_of_a_larger_corpus_a_sample_is_tokenized_and_the_range_holds_the_truth(at, monkeypatch, options):
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    monkeypatch.setattr(counting, "LEARN", 15_000)
    monkeypatch.setattr(sample, "BLOCK", 512)
    (at / "in.txt").write_text(lines(6000))
    common = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.context_length=16", "embedding=none"]
    said = require_right(composed(*common, *options))
    assert not said.tokens.exact and said.tokens.high / said.tokens.low < 1.3 and said.sampled < 70_000


@pytest.mark.parametrize(
    "options",
    [
        ["corpus.document=line", "tokenizer=bytes"],
        ["corpus.document=line", "tokenizer=words", "split.validation=0.2"],
        ["tokenizer=bytes", "window=document", "window.truncate=true"],
    ],
)
def test_a_small_file_of_much_text_is_sampled_like_any_other_and_the_range_holds_the_truth(at, monkeypatch, options):
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    (at / "in.txt.gz").write_bytes(gzip.compress((lines(300) * 40).encode()))
    assert (at / "in.txt.gz").stat().st_size < 60_000
    common = ["corpus=text", "corpus.paths=[in.txt.gz]", "window.context_length=16", "embedding=none"]
    said = require_right(composed(*common, *options))
    assert not said.tokens.exact and 50_000 < said.sampled < 70_000


def test_a_corpus_too_large_to_be_hashed_is_sampled_all_the_same(at, monkeypatch):
    (at / "in.txt").write_text(lines(3000))
    config = composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=bytes", "embedding=none")
    monkeypatch.setattr(estimate, "HASHED", 10)
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    said = estimate.estimate(config)
    assert {stage.state for stage in said.stages} == {"unknown"} and said.disk.value > 0
    made = run(config)
    assert said.tokens.low <= made.ledger["encode"]["ids"] <= said.tokens.high


def test_a_vocabulary_that_grows_with_the_corpus_is_foreseen(at, monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE", 80_000)
    monkeypatch.setattr(counting, "LEARN", 20_000)
    generator = np.random.default_rng(1)
    (at / "in.txt").write_text(" ".join(f"w{int(n)}" for n in generator.zipf(1.4, 120_000)))
    config = composed("corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "embedding=none", "window.context_length=64")
    said, made = estimate.estimate(config), run(config)
    sizes = {stage.stage: stage.bytes for stage in made.stages}
    tokenizer = next(stage.bytes.value for stage in said.stages if stage.stage == "tokenizer")
    assert 0.6 < tokenizer / sizes["tokenizer"] < 1.6


def test_what_will_disappoint_is_said(at):
    (at / "in.txt").write_text(lines(30))
    common = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "embedding=none"]
    tokens = int(estimate.estimate(composed(*common, "tokenizer=words")).tokens.value)
    notes = {
        "validation split would hold none": ["tokenizer=words", f"window.context_length={tokens // 3}"],
        "become no target": [
            "tokenizer=words",
            f"window.context_length={tokens // 12}",
            f"window.stride={tokens // 6}",
            "window.allow_gaps=true",
        ],
        "do not fit a row": ["tokenizer=words", "window=document", "window.context_length=4"],
        "of tokenizer.vocab_size=1,024": ["tokenizer=bpe"],
        "window.max_bytes refuses": ["tokenizer=bytes", "window.max_bytes=10", "window.context_length=8"],
        "tokens are unknown": ["tokenizer=words", "tokenizer.vocab_size=3", "window.context_length=8"],
    }
    for note, options in notes.items():
        said = estimate.estimate(composed(*common, *options)).notes
        assert any(note in line for line in said), (note, said)


SPLITS = ["corpus.document=line", "split.validation=0.1", "split.test=0.05"]
COLUMN = ["corpus=jsonl", "corpus.paths=[in.jsonl]", "corpus.metadata=[part]", "split.by=column", "split.column=part",
          "split.validation_values=[held]"]  # fmt: skip
FILES = [
    "corpus=text",
    "corpus.paths=[in.txt,held.txt]",
    "corpus.document=line",
    "split.by=files",
    "split.validation_files=[held.txt]",
]
PARTS = "+corpus.parts={a:{paths:[in.txt],document:line,weight:3},b:{paths:[held.txt],document:line,max_repetitions:4}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["corpus=text", "corpus.paths=[in.txt]", *SPLITS],
        ["corpus=text", "corpus.paths=[in.txt]", *SPLITS, "split.shuffle=documents", "embedding=random"],
        ["corpus=text", "corpus.paths=[in.txt]", *SPLITS, "window=document", "window.truncate=true"],
        ["split.validation=0.1", "window.context_length=64", "tokenizer=bpe"],  # one document, cut between paragraphs
        COLUMN,
        FILES,
        ["corpus=text", "corpus.name=ab", PARTS],
        ["corpus=text", "corpus.name=ab", PARTS, "corpus.tokens=2000", "window.cross_documents=false", "window.tail=pad"],
        ["corpus=text", "corpus.name=ab", PARTS, "split.validation=0.1", "embedding=random"],
    ],
)
def test_of_small_splits_and_mixtures_all_is_foreseen_and_afterwards_all_is_known_to_be_there(at, options):
    (at / "in.txt").write_text(lines(400))
    (at / "held.txt").write_text(lines(60, seed=1))
    rows = [{"text": text, "part": "held" if n % 7 == 0 else "main"} for n, text in enumerate(lines(200).splitlines())]
    (at / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = composed("tokenizer=words", "embedding=none", "window.context_length=16", *options)
    said, made = estimate.estimate(config), run(config)
    assert said.rows.exact and said.rows.value == made.rows
    assert set(said.splits) == ({*made.splits} if "" not in made.splits else set())
    for name, own in said.splits.items():
        assert own.ids.value == made.splits[name]["window"]["tokens"]
    for name, part in said.mixture.items():
        assert abs(part["expected"] - made.mixture[name]["achieved"]) < 1e-9 and part["asked"] == made.mixture[name]["asked"]
    assert [stage.stage for stage in said.stages] == [stage.stage for stage in made.stages]
    again = estimate.estimate(config)
    assert {stage.state for stage in again.stages} == {"cached"} and again.disk.value == 0
    assert again.rows.exact and again.rows.value == made.rows
    other = estimate.estimate(
        composed("tokenizer=words", "embedding=none", "window.context_length=16", *options, "window.stride=5")
    )
    assert {s.state for s in other.stages if s.stage.startswith("window")} == {"to do"} or config.window.mode == "document"
    assert {s.state for s in other.stages if not s.stage.startswith(("window", "embed"))} == {"cached"}


@pytest.mark.slow
def test_of_larger_splits_and_mixtures_the_ranges_hold_the_truth(at, monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    monkeypatch.setattr(sample, "BLOCK", 512)
    (at / "in.txt").write_text(lines(6000))
    (at / "held.txt").write_text(lines(3000, seed=1))
    common = ["tokenizer=words", "embedding=none", "window.context_length=16", "corpus=text"]
    for options in ([*SPLITS, "corpus.paths=[in.txt]"], ["corpus.name=ab", PARTS, "split.validation=0.2"]):
        config = composed(*common, *options)
        said, made = estimate.estimate(config), run(config)
        assert 0 < said.sampled < 90_000
        for name, own in said.splits.items():
            truth = made.splits[name]["window"]["tokens"]
            assert own.ids.low <= truth <= own.ids.high and own.ids.high / own.ids.low < 2, (name, own.ids, truth)
            assert own.rows.count.low <= made.splits[name]["window"]["rows"] <= own.rows.count.high
        for name, part in said.mixture.items():
            assert abs(part["expected"] - made.mixture[name]["achieved"]) < 0.01


def test_a_split_that_stays_empty_is_said_and_what_the_run_refuses_the_plan_refuses(at):
    (at / "in.txt").write_text(lines(2000))
    (at / "held.txt").write_text(lines(20, seed=1))
    common = ["corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "embedding=none", "window.context_length=16"]
    short = estimate.estimate(composed(*common, "corpus.document=line", "split.validation=0.001", "window.context_length=64"))
    assert "none of them in validation: the run will end with an error" in short.notes[0]
    with pytest.raises(InputError, match="leaves nothing for validation"):
        estimate.estimate(composed(*common, "split.validation=0.1"))  # one paragraph
    parts = ["corpus.paths=[]", "corpus.name=ab", PARTS, "corpus.tokens=1000000"]
    with pytest.raises(ConfigError, match="is more than the"):
        estimate.estimate(composed(*common, *parts))


@pytest.mark.slow
def test_the_verdict_in_windows_of_1024_is_too_short_for_a_validation_split(at, assets):
    said = estimate.estimate(composed("corpus=verdict", "tokenizer=gpt2", "window.context_length=1024"))
    assert said.notes == [
        "5,145 tokens make 5 windows of 1,024; a 10 % validation split would hold none: use window.context_length<=128."
    ]
    cut = ["corpus=verdict", "tokenizer=gpt2", "embedding=none", "split.validation=0.1"]
    assert min(own["window"]["rows"] for own in run(composed(*cut, "window.context_length=128")).splits.values()) > 0
    for length in (256, 512):  # a power more is too much: the gap comes out of the split
        with pytest.raises(InputError):
            run(composed(*cut, f"window.context_length={length}"))
    with pytest.raises(InputError, match=r"or window.context_length<=64\.$"):  # without a tokenizer, by its words
        estimate.estimate(composed(*cut, "window.context_length=512"))


def refused(config: Config) -> bool:
    """Does a run of it end with an error of its input?"""
    try:
        run(config)
    except InputError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        ["window.context_length=100000"],
        ["window.context_length=100000", "window.tail=pad"],
        ["window.context_length=900", "corpus.document=line", "window.cross_documents=false"],
        ["window.context_length=900", "corpus.document=line", "split.validation=0.02"],
        ["window.context_length=900", "corpus.document=line", "split.validation=0.02", "window.tail=pad"],
        ["window.context_length=900", "corpus.document=line", "split.validation=0.02", "window.stride=600"],
        ["window.context_length=3000", "corpus.document=paragraph", "split.validation=0.1"],
        ["window.context_length=250", "split.validation=0.15", "tokenizer=words"],
        ["window.context_length=16", "window=document", "corpus.document=line"],
        ["window.context_length=400", "window=document", "corpus.document=line"],
        ["window.context_length=16", "window=prefix"],
        ["window.context_length=8", "corpus.document=line", "split.validation=0.0001"],
    ],
)
def test_that_a_run_will_end_with_an_error_is_said_where_it_will_and_what_is_advised_helps(at, options, cached):
    (at / "in.txt").write_text("\n\n".join(lines(4, seed=n).rstrip() for n in range(40)) + "\n")
    common = ["corpus=text", "corpus.paths=[in.txt]", "tokenizer=bytes", "embedding=none", "window.context_length=8"]
    if cached:
        run(composed(*common, *[option for option in options if option.startswith("corpus")]))
    config = composed(*common, *options)
    notes = estimate.estimate(config).notes
    said = [note for note in notes if "the run will end with an error" in note]
    assert notes[:1] == said if said else True
    assert refused(config) == bool(said), notes
    for length in re.findall(r"use window.context_length<=([\d,]+)", " ".join(said)):
        assert not refused(composed(*common, *options, f"window.context_length={length.replace(',', '')}"))
    if "window=document" in options and said:
        assert not refused(composed(*common, *options, "window.truncate=true"))


def test_rows_that_differ_in_length_are_said_to_be_of_up_to_so_many_tokens(at, capsys):
    (at / "in.txt").write_text(lines(3))
    options = [
        "corpus=text",
        "corpus.paths=[in.txt]",
        "tokenizer=bytes",
        "embedding=none",
        "window.context_length=8",
        "plan=true",
    ]
    for mode, said in (("prefix", " of up to 8 tokens"), ("sliding", " of 8 tokens")):
        assert cli.exit_code([*options, f"window={mode}"]) == 0
        assert said in capsys.readouterr().out


def test_unknown_tokens_are_said_whether_they_are_counted_or_the_cache_tells(at):
    (at / "in.txt").write_text(lines(30))
    config = composed("corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "tokenizer.vocab_size=5", "embedding=none",
                      "window.context_length=8")  # fmt: skip
    before = [note for note in estimate.estimate(config).notes if "are unknown" in note]
    run(config)
    assert before and before == [note for note in estimate.estimate(config).notes if "are unknown" in note]


def test_a_plan_writes_nothing_but_a_note_and_the_run_stands_beside_what_it_said(at, capsys):
    assert cli.exit_code(["plan=true", "embedding=none"]) == 0
    assert "  tokens  6,257" in capsys.readouterr().out
    assert [path.parent.name for path in at.rglob("*") if path.is_file()] == ["plans"]
    assert cli.exit_code(["embedding=none"]) == 0
    assert "  plan    had said 6,257 tokens (exact), 24 rows (exact), " in capsys.readouterr().out
    record = json.loads((at / "outputs/sample/run.json").read_text())
    assert record["plan"]["tokens"] == {"value": 6257, "low": 6257, "high": 6257} and record["plan"]["disk"]["value"] > 1e5
    assert "plan" not in json.loads((at / "outputs/sample/manifest.json").read_text())["config"]
    assert cli.exit_code(["embedding=none", "window.stride=64"]) == 0  # of which no plan was made
    assert "had said" not in capsys.readouterr().out


def test_the_plan_of_archives_stands_beside_the_run_too(at, capsys):
    with zipfile.ZipFile(at / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.txt", lines(40, seed=number))
    options = ["corpus=text", "corpus.paths=[in.zip]", "corpus.archives=true", "corpus.document=line", "tokenizer=words",
               "embedding=none", "window.context_length=16"]  # fmt: skip
    assert cli.exit_code([*options, "plan=true"]) == cli.exit_code(options) == 0
    assert "  plan    had said " in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", [{"tokens": None}, {"rows": 3}, {"seconds": "1"}, {"disk": {"value": 10**400}}, {"size": None}]
)
def test_a_note_of_another_shape_is_no_plan(at, damage):
    recorded, number = {"a": 1}, {"value": 3, "low": 2, "high": 4.5}
    said = {"size": 7, "sampled": 0, "seconds": 0.5, **dict.fromkeys(foretold.GUESSES, number)}
    foretold.remember(said, at, recorded)
    assert foretold.recall(at, recorded, 7) == said and foretold.recall(at, recorded, 8) is None
    foretold.remember(said | damage, at, recorded)
    assert foretold.recall(at, recorded, 7) is None
    for other in (None, [], "plan", {}):
        foretold.remember(other, at, recorded)
        assert foretold.recall(at, recorded, 7) is None


def test_what_is_not_bounded_can_be_noted_all_the_same(at, monkeypatch, capsys):
    monkeypatch.setattr(counting, "SAMPLE", sample.BLOCK)  # one block, which knows that it knows nothing
    (at / "in.txt").write_text(lines(400))
    options = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=bytes", "embedding=none"]
    assert cli.exit_code([*options, "plan=true"]) == cli.exit_code(options) == 0
    assert "had said" in capsys.readouterr().out


def test_what_a_plan_cannot_note_for_want_of_room_leaves_nothing(at, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    foretold.remember({"size": 7}, at, {"corpus": {}})
    assert not [path for path in at.rglob("*") if path.is_file()] and not list((at / "tmp").iterdir())


@pytest.mark.slow
def test_a_sweep_of_plans_says_each_and_a_wrong_value_is_an_error_of_the_configuration(at, capsys):
    assert cli.exit_code(["-m", "plan=true", "embedding=none", "window.context_length=64,128"]) == 0
    out = capsys.readouterr().out
    assert "of 64 tokens" in out and "of 128 tokens" in out and not (at / "data/runs").exists()
    assert cli.exit_code(["plan=true", "window.stride=999"]) == 2
    assert cli.exit_code(["plan=perhaps"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["bench-200mb.parquet"])
def test_of_200_mb_95_of_100_seeds_are_within_2_percent_from_8_mb_and_the_disk_within_5(at, assets, corpus):
    seeds = 100 if EVERYTHING else 20
    config = composed(
        "corpus=parquet", f"corpus.paths=[{assets}/corpora/{corpus}]", "tokenizer=gpt2", "window.context_length=1024", "embedding=none"
    )  # fmt: skip
    (at / "scratch").mkdir()
    look = estimate.Look(config, Cache(at / "data/cache", "none"), at / "scratch")
    ready = look.known_tokenizer()
    guesses, most = [], 0
    for seed in range(seeds):
        counting.draw(look.inputs, seed)
        most = max(most, counting.count(config, ready, look.inputs, at / "scratch").sampled)
        guesses.append(look.inputs[0].counts.ids)
    said, made = estimate.estimate(config), run(config)
    truth = made.ledger["encode"]["ids"]
    near = sum(abs(guess.value / truth - 1) <= 0.02 for guess in guesses)
    held = sum(guess.low <= truth <= guess.high for guess in guesses)
    disk = said.disk.value / sum(stage.bytes for stage in made.stages) - 1
    print(f"of {seeds} {near} within 2 %, {held} ranges hold the truth, {most:,} bytes at most, disk {disk:+.2%}")
    assert near >= 0.95 * seeds and held >= 0.9 * seeds and most <= 8_000_000 and abs(disk) < 0.05


@pytest.mark.parametrize("text", [b"", b" \n"])
@pytest.mark.parametrize("splits", [[], ["split.validation=0.3"], ["split.by=files", "split.validation_files=['v*.txt']"]])
def test_a_part_of_a_mixture_that_holds_nothing_is_let_lie_as_by_the_run(at, text, splits):
    (at / "w.txt").write_text(lines(20))
    (at / "v.txt").write_text(lines(20, 1))
    (at / "e.txt").write_bytes(text)
    parts = [
        "corpus=mixture",
        "++corpus.parts.w.paths=[w.txt,v.txt]",
        "++corpus.parts.w.document=line",
        *splits,
        "++corpus.parts.e.paths=[e.txt]",
        "tokenizer=bytes",
    ]
    config = composed(*parts, "++corpus.parts.e.weight=0", "window.context_length=8", "embedding=none")
    for _ in ("before", "after"):
        said = estimate.estimate(config)
        assert said.rows.exact and said.rows.value == run(config).rows


@pytest.mark.parametrize(
    "options",
    [
        ["corpus.paths=[blank.txt]"],
        ["corpus.paths=[empty.txt]"],
        ["corpus.paths=[in.txt]", "corpus.min_characters=10000"],
        ["corpus.paths=[in.txt,two.txt]", "split.by=files", "split.validation_files=['*.txt']"],
        ["corpus.paths=[in.txt]", "tokenizer=wordpiece", "window=document", "window.truncate=true", "window.context_length=2"],
    ],
)
def test_what_cannot_be_is_said_in_the_words_of_the_run(at, options):
    (at / "in.txt").write_text(lines(3))
    (at / "two.txt").write_text(lines(3))
    (at / "blank.txt").write_text(" \n\n")
    (at / "empty.txt").write_text("")
    config = composed("corpus=text", "embedding=none", *options)
    said = []
    for look in (estimate.estimate, run):
        with pytest.raises((ConfigError, InputError)) as error:
            look(config)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_rows_of_documents_that_a_mixture_will_draw_at_random_are_not_called_exact(at):
    (at / "a.txt").write_text(lines(40))
    (at / "b.txt").write_text(lines(60, 1))
    parts = [f"++corpus.parts.{name}.paths=[{name}.txt]" for name in "ab"] + ["++corpus.parts.b.document=line"]
    options = ["corpus=mixture", "++corpus.parts.a.document=line", "++corpus.parts.a.weight=2", "tokenizer=words", *parts]
    config = composed(*options, "window.context_length=8", "window.cross_documents=false", "embedding=none")
    drawn = estimate.estimate(config)
    config.split.shuffle = "documents"
    said, made = estimate.estimate(config), run(config)
    assert drawn.rows.exact and not said.rows.exact and said.rows.low <= made.rows <= said.rows.high < 2 * made.rows
    part = said.mixture["b"]["tokens"]
    assert part.low <= made.mixture["b"]["tokens"] <= part.high


@pytest.mark.parametrize(
    "options", [["corpus.document=line", "split.by=files", "split.validation_files=['*b.txt']"], ["split.validation=0.3"]]
)
def test_splits_of_other_text_than_the_rest_are_foreseen_by_what_they_hold_and_not_by_their_bytes(at, monkeypatch, options):
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    monkeypatch.setattr(sample, "BLOCK", 512)
    generator = np.random.default_rng(2)
    rare = "\n\n".join("".join(map(chr, generator.integers(0x4E00, 0x9FA5, 60))) for _ in range(900))
    name, common = ("a.txt", "in.txt")[len(options) == 1], lines(4000).replace("\n", "\n\n")
    (at / "texts").mkdir()
    (at / "texts" / name).write_text(common + (rare if len(options) == 1 else ""), "utf-8")
    if len(options) > 1:
        (at / "texts" / "b.txt").write_text(rare, "utf-8")
    config = composed("corpus=text", "corpus.paths=[texts]", "tokenizer.vocab_size=300", "embedding=none",
                      "window.context_length=16", "split.overlap=none", *options)  # fmt: skip
    said, made = estimate.estimate(config), run(config)
    assert not said.tokens.exact
    for split in ("train", "validation"):
        truth, guess = made.ledger["arrange"][f"{split}_ids"], said.splits[split].ids
        assert guess.low <= truth <= guess.high and guess.high < 1.6 * guess.low, (split, guess, truth)


@pytest.mark.parametrize("kind", ["exact", "near"])
@pytest.mark.parametrize("options", [[], ["split.validation=0.3"], ["window=prefix"]])
def test_of_a_small_corpus_the_copies_that_will_be_dropped_are_known(at, kind, options):
    body = lines(200)
    (at / "in.txt").write_text(body + body.replace("the", "a", 3) + body)
    said = require_right(composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.context_length=8",
                                  "embedding=none", f"selection.duplicates={kind}", *options))  # fmt: skip
    assert said.rows.exact and not any("copies" in note for note in said.notes)


def test_of_a_larger_corpus_with_copies_rows_are_said_to_be_up_to_so_many(at, monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE", 60_000)
    (at / "in.txt").write_text(lines(300) * 40)
    config = composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=bytes", "embedding=none",
                      "window.context_length=16", "selection.duplicates=exact")  # fmt: skip
    said, made = estimate.estimate(config), run(config)
    assert str(said.rows).startswith("up to ")
    assert said.rows.low <= made.rows <= said.rows.high and any("how many is not foreseen" in note for note in said.notes)
    again = estimate.estimate(config)  # the cache tells
    assert again.rows.exact and again.rows.value == made.rows and again.disk.value == 0
    (verdicts,) = at.glob("data/cache/selection/*/verdicts.arrow")
    verdicts.unlink()
    verdicts.write_bytes(b"no Arrow")
    assert estimate.estimate(config).rows.high >= made.rows


def test_the_time_of_fingerprints_and_verdicts_is_part_of_the_time(at, monkeypatch):
    (at / "in.txt").write_text(lines(300))
    config = composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=bytes", "embedding=none",
                      "window.context_length=16", "split.validation=0.3")  # fmt: skip
    before = estimate.estimate(config).seconds
    monkeypatch.setattr(estimate.Look, "judging", lambda self, one: (100.0 * estimate.engine.cores(), 10.0))
    assert 100 < estimate.estimate(config).seconds - before < 111


def test_a_plan_refuses_a_place_that_is_not_ours_as_the_run_does(at, capsys):
    (at / "foreign").mkdir()
    (at / "foreign" / "a").touch()
    for more in ([], ["plan=true"]):
        assert cli.exit_code(["output.dir=foreign", *more]) == 2
        assert "was not written by this pipeline" in capsys.readouterr().err


def test_that_unknown_tokens_will_end_the_run_is_said(at):
    (at / "in.txt").write_text(lines(60))
    given = ["corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "tokenizer.vocab_size=5", "embedding=none",
             "window.context_length=8"]  # fmt: skip
    (said,) = (note for note in estimate.estimate(composed(*given)).notes if "unknown" in note)
    assert "error" not in said
    (said,) = (note for note in estimate.estimate(composed(*given, "vocabulary.on_unknown=error")).notes if "unknown" in note)
    assert said.endswith("the run will end with an error; set vocabulary.on_unknown=map.")
    with pytest.raises(InputError, match=r"'in.txt', 0 to \d+: a token of this document is not in the vocabulary"):
        run(composed(*given, "vocabulary.on_unknown=error"))
