"""The walk from a text to a vector, on the sample and on the text of the chapter."""

import re

import pytest

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
    assert len(re.findall(r"^  by hand: python -m pipeline", said, re.M)) == 7


@pytest.mark.slow
def test_the_walk_shows_what_the_chapter_shows(at, assets, monkeypatch, capsys):
    said = " ".join(walked(monkeypatch, capsys, "corpus=verdict").split())
    for shown in ("20,479 bytes in 1 document", "I HAD always thought Jack Gisburn rather a cheap genius", "words 4,690 tokens",
                  "gpt2 5,145 tokens", "bert 5,212 tokens", "i had always thought jack gi ##sb ##urn rather a",
                  "5,141 rows", "[40, 367, 2885, 1464]", "50,257 × 64"):  # fmt: skip
        assert shown in said, shown


def test_a_flag_is_refused_in_one_line(at, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        walked(monkeypatch, capsys, "--multirun")
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
