"""The walk from a text to a vector, on the sample and on the text of the chapter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from scripts import walkthrough


def walked(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["walkthrough", *arguments])
    walkthrough.main()
    return capsys.readouterr().out


PAIRS = ["[O] → rato", "[O rato] → roeu", "[O rato roeu a roupa do rei de] → Roma"]


def test_the_walk_needs_nothing_but_the_sample(at, monkeypatch, capsys):
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    monkeypatch.setattr(walkthrough, "TOKENIZERS", (("words", ""), ("bpe", ""), ("wordpiece", "")))
    said = walked(monkeypatch, capsys)
    assert [int(n) for n in re.findall(r"^(\d)\. ", said, re.M)] == list(range(1, 8))
    for pair in PAIRS:
        assert f"  {pair}\n" in said
    assert "\x1b" not in said and not (at / "outputs").exists()
    assert len(re.findall(r"^  by hand: .*python -m pipeline ", said, re.M)) == 7


@pytest.mark.slow
def test_the_walk_shows_what_the_chapter_shows(at, assets, monkeypatch, capsys):
    said = " ".join(walked(monkeypatch, capsys, "corpus=verdict").split())
    for shown in ("20,479 bytes in 1 document", "I HAD always thought Jack Gisburn rather a cheap genius", "words 4,690 tokens",
                  "gpt2 5,145 tokens", "bert 5,212 tokens", "i had always thought jack gi ##sb ##urn rather a",
                  "5,141 rows", "[40, 367, 2885, 1464]", "50,257 × 64"):  # fmt: skip
        assert shown in said, shown


@pytest.mark.slow
def test_what_is_said_to_do_it_by_hand_does_it(at, monkeypatch, capsys):
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    monkeypatch.setattr(walkthrough, "TOKENIZERS", (("words", ""), ("bpe", ""), ("wordpiece", "")))
    (at / "my own.txt").write_text("the ferry was late because of the fog\n" * 9)
    said = walked(monkeypatch, capsys, "corpus=text", 'corpus.paths=["my own.txt"]', f"cache.dir={at / 'kept'}")
    assert not (at / "data").exists()
    commands = re.findall(r"^  by hand: (.*)$", said, re.M)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    printed = [subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True) for command in commands]
    assert "row 7 of 8" in printed[4].stdout
    tensors = said.partition("6. Tensors")[2]
    rows = [re.sub(r"\s", "", row) for row in re.findall(r"^    (\[.*\])$", tensors, re.M)]
    assert len(rows) == 4 and all(row in re.sub(r"\s", "", printed[5].stdout) for row in rows)


@pytest.mark.parametrize(
    "override", ["embedding=none", "split.validation=0.3", "window=prefix", "window.tail=pad", "tokenizer=gpt2", "name=mine",
                 "output.dir=mine", "plan=true", "vocabulary.append_eos=true", "embedding.vectors=always"],
)  # fmt: skip
def test_what_the_lesson_decides_itself_is_refused_by_name(at, monkeypatch, capsys, override):
    with pytest.raises(SystemExit) as stop:
        walked(monkeypatch, capsys, override)
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and said == f"error: walkthrough: the lesson decides {override.split('=')[0]} itself: leave it out.\n"
    )


def test_a_text_too_short_for_the_lesson_is_said_to_be_so_without_advice_that_the_lesson_refuses(at, monkeypatch, capsys):
    (at / "one.txt").write_text("one")
    with pytest.raises(SystemExit) as stop:
        walked(monkeypatch, capsys, "corpus=text", "corpus.paths=[one.txt]")
    said = capsys.readouterr().err
    assert stop.value.code == 3 and said == "error: corpus has 1 token, one window needs 5: the lesson wants a longer text.\n"


def test_help_says_how_it_is_called(at, monkeypatch, capsys):
    assert "python -m scripts.walkthrough corpus=verdict" in walked(monkeypatch, capsys, "--help")


def test_a_flag_is_refused_in_one_line(at, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        walked(monkeypatch, capsys, "--multirun")
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
