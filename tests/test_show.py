"""What lies in a finished dataset, drawn: plain in a pipe, coloured on a terminal, and nothing of it a control character."""

import re

import pytest

from conftest import composed
from pipeline import console
from pipeline.errors import ConfigError, IntegrityError
from pipeline.run import run
from pipeline.show import show
from pipeline.trace import Finished

HOSTILE = "\x1b[31mred\x1b[0m \u202eevil\u202c \x07bell\rreturn <script>alert(1)</script> [bold]not[/bold]"


@pytest.fixture
def folder(at):
    (at / "in.txt").write_text(f"the ferry was late\n{HOSTILE}\nthe fog was early\n")
    return run(composed("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.context_length=8")).folder


def test_a_row_shows_each_target_beneath_the_input_that_it_follows(folder):
    text = show(folder, row=0, width=60).plain
    inputs, targets = (
        [word for line in re.findall(rf"^{name} +(.*)$", text, re.M) for word in line.split()] for name in ("input", "target")
    )
    assert inputs[1:] == targets[:-1] and "document 0: 'in.txt' bytes 0 to 18" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_document_shows_its_text_its_tokens_and_its_rows(folder):
    text = show(folder, document=2, width=100).plain
    assert "document 2 of 3: 'in.txt'" in text and "  the fog was early" in text and re.search(r"\d+ IDs at .* rows? \d", text)
    with pytest.raises(ConfigError, match="documents 0 to 2"):
        show(folder, document=3)


def test_a_token_is_found_by_its_string_as_shown_or_as_stored_and_by_its_id(folder):
    text = show(folder, token="the").plain
    number = re.search(r"ID (\d+)", text)[1]
    assert show(folder, token=number).plain == text and "place" in text
    assert "special" in show(folder, token="<|endoftext|>").plain
    with pytest.raises(ConfigError, match="Nearest: 'the'"):
        show(folder, token="thee")


def test_a_long_document_is_cut_and_said_to_be(at):
    for lines, cut in ((200, True), (20, False)):
        (at / "in.txt").write_text("the ferry was late\n" * lines)
        folder = run(composed("corpus=text", "corpus.paths=[in.txt]", "window.context_length=8")).folder
        assert ("\n  …\n" in show(folder, document=0).plain) == cut


def test_a_token_of_rows_that_grow_stands_at_their_end(at):
    (at / "in.txt").write_text("the ferry was late\n")
    folder = run(composed("corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "window=prefix")).folder
    text = show(folder, token="was").plain
    assert "the last input of 1 row of 3" in text and "row 2 place 2: the ferry was" in text


@pytest.mark.parametrize("stage", ["load", "tokenize", "encode", "window", "embed"])
def test_the_rows_of_a_stage_come_from_the_cache(folder, stage):
    text = show(folder, stage=stage, width=80).plain
    assert "row 0" in text and max(map(len, text.splitlines())) <= 80
    with pytest.raises(ConfigError, match=r"not in the cache .* \(any more\)"):
        show(folder, stage=stage, cache_dir=folder)
    with pytest.raises(ConfigError, match="none of load"):
        show(folder, stage="loaded")


def test_every_stage_that_is_listed_is_shown_whatever_its_files_are_called(at):
    (at / "in.txt").write_text("".join(f"a line about ferry {n}\n" for n in [1, *range(60)]))
    common = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=words", "window.context_length=8"]
    chosen = run(composed(*common, "split.test=0.2", "selection.duplicates=exact", "embedding.vectors=never")).folder / "test"
    verdicts = show(chosen, stage="selection", width=99).plain
    assert "dropped duplicate documents 1" in verdicts and re.search(r"verdict +0: train", verdicts)
    assert re.search(r"row 0 of copies.arrow\n  verdict +-1: duplicate\n  source +0: 'in.txt'\n", verdicts)
    assert re.search(r"row 0\n  source +0: 'in.txt'\n", show(chosen, stage="arrange", width=99).plain)
    first = int(Finished(chosen).documents["start"][0])
    assert re.search(rf"\n  start +{first}\n", show(chosen, stage="arrange", width=99).plain)  # of this split, not of train
    assert "embeddings.safetensors" in show(chosen, stage="embed", width=99).plain
    parts = "+corpus.parts={a:{paths:[in.txt]},b:{paths:[in.txt],document:line}}"
    mixed = run(composed("corpus=text", "corpus.name=mixed", parts, *common[3:])).folder
    for stage in Finished(mixed).manifest["keys"].keys() - {"tokenizer"}:
        assert "row 0" in show(mixed, stage=stage, width=99).plain, stage


@pytest.mark.parametrize("stage", ["load", "tokenize", "encode", "window"])
def test_a_flipped_bit_of_a_stage_is_not_drawn(folder, at, stage):
    (path,) = at.glob(f"data/cache/{stage}/*/00000000.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(
        IntegrityError, match=r"00000000\.arrow' is damaged: expected \d+ bytes, sha256 \w{64}, found \d+ bytes"
    ):
        show(folder, stage=stage)


def test_no_control_character_of_a_text_is_drawn_and_no_markup_of_it_is_obeyed(folder):
    drawn = [show(folder, document=1), *(show(folder, row=row) for row in range(3)), show(folder, stage="load")]
    for text in drawn:
        assert all(c.isprintable() or c == "\n" for c in text.plain)
    assert "\\x1b[31mred" in drawn[0].plain and "[bold]not[/bold]" in drawn[0].plain and "\\u202eevil" in drawn[0].plain


def test_a_pipe_gets_plain_text_and_a_terminal_colours(folder, capsys, monkeypatch):
    text = show(folder, row=0, width=60)
    console.draw(text)
    assert capsys.readouterr().out == text.plain + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.draw(text)
    coloured = capsys.readouterr().out
    assert "\x1b[3" in coloured and re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text.plain + "\n"


def test_tokens_of_bytes_are_spelt_as_the_text_that_they_stand_for(at):
    (at / "in.txt").write_text("não é\tação 漢字\n" * 40)
    folder = run(composed("corpus=text", "corpus.paths=[in.txt]", "window.context_length=8", "tokenizer.vocab_size=300")).folder
    stream = show(folder, document=0, width=10_000).plain
    assert "não" in stream.split("token", 1)[1] and "Ã" not in stream and "→" in stream
    assert show(folder, token="⏎").plain.startswith("token ⏎  ID ")
    chars = run(composed("corpus=text", "corpus.paths=[in.txt]", "window.context_length=8", "tokenizer=chars", "name=chars"))
    ideographs = next(line for line in show(chars.folder, document=0, width=60).plain.splitlines() if "漢 字" in line)
    assert ideographs.startswith("token")
