"""report.html and sweep.html: what they tell is true, what a corpus holds stays text, and they never cost a dataset."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import composed
from pipeline import cli, report, show, tools, trace
from pipeline import config as configs
from pipeline.files import unseal
from pipeline.run import Outcome, run

CANARY = "<script>window.canary=1</script><img src=x onerror=canary()>{{ 7*7 }}</style>&amp;'\""
SMALL = ["window.context_length=16", "embedding.embedding_dim=4"]
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


def made(*overrides: str) -> Outcome:
    return run(composed("output.report=true", *overrides))


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text outside of style and script; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


def opened(folder: Path, name: str = "report.html") -> Page:
    return Page((folder / name).read_text("utf-8"))


def require_alone(page: Page) -> None:
    """Nothing in the page makes a browser ask for anything, and its policy would forbid it."""
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form"), tag
        assert not {"src", "srcset", "data", "action", "background"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "")
        assert tag != "a" or not re.match(r"[a-z]+:|//", attributes["href"] or "")
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1 and "default-src 'none'" in policy[0] and policy[0].count("sha256-") == 1
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_a_run_leaves_one_page_that_loads_nothing_and_tells_what_the_manifest_says(at):
    outcome = made(*SMALL)
    path = outcome.folder / "report.html"
    assert path.stat().st_size < 300_000
    page = opened(outcome.folder)
    require_alone(page)
    manifest = unseal(outcome.folder / "manifest.json")
    for count in (outcome.rows, manifest["ledger"]["window"]["targets"], manifest["ledger"]["encode"]["tokens"]):
        assert f"{count:,}" in page.text
    for key in manifest["keys"].values():
        assert key in page.text
    assert "report.html" not in manifest["files"]
    assert report.page(report.Trusted(outcome.folder)) == path.read_text("utf-8")


@pytest.mark.row("C23")
def test_hostile_text_stays_text(at):
    evil = f"{CANARY}\x00\x07\x1b[31m\u202e\u2066 ]]> \ufeff --> {CANARY}\n"
    (at / "texts").mkdir()
    (at / "texts" / "<b onclick=canary()>.txt").write_text(evil * 3, "utf-8")
    for tokenizer in ("words", "chars", "bytes"):
        outcome = made("corpus=text", "corpus.paths=[texts]", f"tokenizer={tokenizer}", f"name={tokenizer}",
                       "tokenizer.special_tokens=['<script>canary()</script>']" if tokenizer == "words" else "window.stride=8",
                       *SMALL)  # fmt: skip
        page = opened(outcome.folder)
        require_alone(page)
        assert "<b onclick=canary()>.txt" in page.text
        raw = (outcome.folder / "report.html").read_text("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", raw)
        assert "<script>window.canary" not in raw and "<img" not in raw and "<b onclick" not in raw


def test_of_a_very_long_token_the_page_draws_the_beginning(at):
    word = "x" * 20_000
    (at / "in.txt").write_text(f"{word} and {word}y and some more words")
    made = run(composed("corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "window.context_length=4", "embedding=none"))
    page = report.page(trace.Finished(made.folder))
    assert "x" * 63 + "…" in page and "x" * 64 not in page
    drawn = str(show.show(made.folder, token=word))
    assert drawn.count(word) == 1 and "…" in drawn


def test_words_of_any_shape_are_escaped_where_they_are_drawn(at):
    (at / "evil.txt").write_text(" ".join([CANARY.replace(" ", "")] * 40), "utf-8")
    outcome = made("corpus=text", "corpus.paths=[evil.txt]", "tokenizer=words", "tokenizer.pattern='[<]|[>]'", *SMALL)
    page = opened(outcome.folder)
    require_alone(page)
    assert "script" in page.text


def test_a_second_run_leaves_the_page_untouched_and_another_dataset_has_its_own(at):
    folder = made(*SMALL).folder
    before = (folder / "report.html").stat()
    assert not made(*SMALL).published
    assert (folder / "report.html").stat().st_mtime_ns == before.st_mtime_ns
    old = opened(folder).text
    made(*SMALL, "window.stride=4")
    assert opened(folder).text != old
    (folder / "report.html").unlink()
    made(*SMALL, "window.stride=4")
    assert (folder / "report.html").exists()
    run(composed(*SMALL, "output.report=false"))
    assert not (folder / "report.html").exists()  # the page of another dataset does not stay


def test_a_page_that_cannot_be_made_is_one_warning_and_no_loss(at, monkeypatch, caplog):
    monkeypatch.setattr(report, "measure", lambda dataset: 1 / 0)
    outcome = made(*SMALL)
    assert outcome.published and (outcome.folder / "manifest.json").exists()
    assert not (outcome.folder / "report.html").exists()
    assert [r.message for r in caplog.records if "page could not be made" in r.message]


@pytest.mark.parametrize(
    "overrides",
    [
        ["window=prefix", "window.context_length=32"],
        ["window=document", "window.context_length=64"],
        ["window.tail=pad", "window.cross_documents=false", "tokenizer=wordpiece", "tokenizer.vocab_size=200"],
        ["tokenizer=words", "tokenizer.vocab_size=20", "embedding=none"],
        ["window.stride=3", "window.tail=pad"],
        ["window.stride=40", "window.allow_gaps=true", "split.shuffle=windows"],
        ["window.stride=5", "window.cross_documents=false", "split.shuffle=windows"],
        ["window=prefix", "window.context_length=1"],
    ],
)
def test_every_kind_of_row_is_drawn_and_counted(at, overrides):
    (at / "texts").mkdir()
    for i in range(5):
        (at / "texts" / f"{i}.txt").write_text("the ferry was late because of the fog\n" * (i + 1) + "céu azul", "utf-8")
    outcome = made("corpus=text", "corpus.paths=[texts]", *SMALL, *overrides)
    facts = report.measure(report.Trusted(outcome.folder))
    require_alone(opened(outcome.folder))
    dataset = report.Trusted(outcome.folder)
    rows, held = [dataset.row(i) for i in range(outcome.rows)], {}
    for i, row in enumerate(rows):  # what stands at each position of the stream, however many rows hold it
        if "target_ids" in row:
            first, stop = dataset.span(i)
            held |= dict(zip(range(first, stop), dataset.ids(i).tolist(), strict=False))
        else:
            held |= {(i, at): row["input_ids"][at] for at, real in enumerate(row["attention_mask"]) if real}
    ids = [*held.values()]
    counts = np.bincount(ids)
    assert facts["use"]["counted"] == len(ids) and facts["use"]["seen"] == np.count_nonzero(counts)
    assert not facts["use"]["part"]
    assert facts["use"]["frequent"][0]["count"] == counts.max()
    assert facts["lengths"]["count"] == 5
    assert [window["row"] for window in facts["windows"]] == sorted({0, outcome.rows // 2, outcome.rows - 1})
    for window in facts["windows"]:
        row = rows[window["row"]]
        drawn = [cell["input"]["id"] for cell in window["cells"]]
        assert row["input_ids"][window["begin"] :][: len(drawn)] == drawn


def test_of_a_large_dataset_a_part_is_counted_and_the_page_says_so(at, monkeypatch):
    (at / "in.txt").write_text("the ferry was late because of the fog\n" * 300)
    outcome = made("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=bytes",
                   "window.cross_documents=false", *SMALL)  # fmt: skip
    whole = report.measure(report.Trusted(outcome.folder))["use"]
    for most in ("MOST_IDS", "MOST_DOCUMENTS"):
        with monkeypatch.context() as patch:
            patch.setattr(report, most, 100)
            part = report.measure(report.Trusted(outcome.folder))["use"]
            assert part["part"] and 0 < part["counted"] < whole["counted"]
            assert f"{part['counted']:,} IDs that were counted" in Page(report.page(report.Trusted(outcome.folder))).text


@pytest.mark.parametrize("overrides", [[], ["window=prefix"], ["window.tail=pad"], ["window=document"]])
def test_each_token_says_from_which_document_it_comes_and_a_list_that_is_cut_says_so(at, overrides):
    (at / "texts").mkdir()
    for i in range(7):
        (at / "texts" / f"{i}.txt").write_text("the ferry was late\n", "utf-8")
    outcome = made("corpus=text", "corpus.paths=[texts]", "tokenizer=wordpiece", "tokenizer.vocab_size=99", *SMALL, *overrides)
    dataset = report.Trusted(outcome.folder)
    for window in report.measure(dataset)["windows"]:
        pieces = trace.trace(dataset, window["row"])
        paths = [piece.path for piece in pieces for _ in piece.ids]
        assert len(window["where"]) + window["others"] == len(pieces) and len(window["where"]) <= 3
        framed = [cell["origin"] for cell in window["cells"] if cell["input"]["text"] not in ("[PAD]", "[CLS]", "[SEP]")]
        inputs = paths if dataset.window.mode == "document" else paths[: len(framed)]
        assert [re.search(r"in '(.*)' bytes 0 to 19$", origin)[1] for origin in framed] == inputs
        assert not any(cell["origin"] for cell in window["cells"] if cell["input"]["text"] == "[PAD]")
        tips = [a["data-tip"] for _, a in opened(outcome.folder).tags if "data-tip" in a]
        assert all(any(tip.endswith(origin) for tip in tips) for origin in framed)
        assert not window["others"] or f"and {window['others']} more document" in opened(outcome.folder).text


def test_the_parts_of_each_bar_of_the_flow_make_its_whole_and_what_goes_on_is_the_next(at):
    outcome = made(*SMALL, "window.stride=8")
    bars = report.flow(outcome.ledger)
    for bar in bars:
        assert sum(part["count"] for part in bar["parts"]) == bar["total"]
    used, slots = bars[-2], bars[-1]
    assert used["parts"][0] == slots["parts"][0]


@pytest.mark.parametrize(
    ("overrides", "read", "reasons"),
    [
        (["corpus=jsonl", "corpus.paths=[in.jsonl]"], "bytes read", {"blank", "bad", "short"}),
        (["corpus=csv", "corpus.paths=[in.csv]", "corpus.template='{text}!'"], "bytes = {:,} read + 4 by the template", {"short"}),
        (["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "corpus.encoding=utf-16", "corpus.unicode=NFC"],
         "bytes = {:,} read − 83 by decoding − 3 by repairs", {"short"}),
    ],
)  # fmt: skip
def test_the_first_bar_names_every_byte_that_is_read_and_balances_as_the_ledger_does(at, overrides, read, reasons):
    texts = ["The ferry was late, cafe\u0301.", "The fog was early.", "abc", "The ferry\nwas early; cafe\u0301, cafe\u0301."]
    good = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts))
    (at / "in.jsonl").write_text(good + '{"text": tru}\n\n{"text": "   "}\n')
    (at / "in.csv").write_text("text,n\n" + "".join(f'"{text}",{n}\n' for n, text in enumerate(texts)))
    (at / "in.txt").write_text("\n".join(texts[:3] + texts[3].split("\n")), "utf-16")
    common = ["corpus.on_bad_row=skip", "corpus.min_characters=6", "tokenizer=bytes", "window.context_length=8"]
    load = run(composed(*overrides, *common, "embedding=none")).ledger["load"]
    bar = report.flow({"load": load})[0]
    parts = {part["name"]: part["count"] for part in bar["parts"]}
    assert bar["unit"] == read.format(load["bytes"])
    assert {name.removesuffix(" (dropped)") for name in parts if "dropped" in name} == reasons
    grown = sum(load.get(name, 0) for name in report.CHANGED)
    assert load["bytes"] + grown == bar["total"] == sum(parts.values())
    assert parts["bytes of text"] == load["text_bytes"] and any(name.startswith("syntax") for name in parts)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["corpus=verdict", "tokenizer=gpt2", "window.stride=128"],
        ["tokenizer=words", "window=prefix", "embedding=none", "name=x-1"],
        ["corpus=text", r"corpus.paths=['a b/*.txt','it\'s',\"null\",\"5\",'${x}']", "corpus.text_column='t,[x]: \"q\"'"],
        ["tokenizer.eos_token='<|end|>'", "tokenizer.pattern='[,.:;?_!\"()]|--|\\s'", "tokenizer.special_tokens=[' ','']"],
        [
            "corpus=text",
            "corpus.name=ab",
            "+corpus.parts={a:{paths:[a],weight:3.0},b:{paths:[b],format:csv}}",
            "tokenizer=bytes",
        ],
        ["vocabulary.append_eos=false", "embedding.embedding_dim=null", "corpus.encoding=utf-16"],
    ],
)
def test_the_command_of_a_page_composes_the_configuration_again(overrides):
    import dataclasses
    import shlex

    overrides = [o for o in overrides if "${x}" not in o]
    config = composed(*overrides)
    recorded = configs.recorded(config)
    words = shlex.split(report.command(recorded))
    assert words[:3] == ["python", "-m", "pipeline"]
    assert configs.recorded(dataclasses.asdict(composed(*words[3:]))) == recorded
    assert len(words) - 3 <= len(overrides)


@pytest.mark.slow
def test_a_sweep_has_a_page_that_compares_its_jobs(at, capsys):
    arguments = ["-m", "window.context_length=16,64", "embedding=none", "tokenizer=words"]
    assert cli.exit_code(arguments) == 0
    assert capsys.readouterr().out.endswith("\nits page: outputs/sample/sweep.html\noutputs/sample\n")
    page = opened(at / "outputs/sample", "sweep.html")
    require_alone(page)
    assert "window.context_length" in page.text and "2 jobs" in page.text
    links = [a["href"] for tag, a in page.tags if tag == "a" and "report.html" in (a["href"] or "")]
    assert len(links) == 2
    for link in links:
        from urllib.parse import unquote

        assert (at / "outputs/sample" / unquote(link)).exists()
    assert cli.exit_code(arguments) == 0  # the page is no foreign file to the next sweep
    assert cli.exit_code(["embedding=none", "tokenizer=words"]) == 0
    assert (at / "outputs/sample/sweep.html").exists() and (at / "outputs/sample/report.html").exists()


def test_documents_that_were_left_out_or_repeated_are_told(at):
    dataset = report.Trusted(made(*SMALL).folder)
    tokens = dataset.manifest["ledger"]["window"]["tokens"]
    dataset.manifest["ledger"]["arrange"] = {
        "documents": 9, "ids": tokens + 50, "train_ids": tokens, "train_documents": 6, "test_ids": 40, "test_documents": 1,
        "dropped_near_duplicate_ids": 10, "dropped_near_duplicate_documents": 2,
    }  # fmt: skip
    dataset.manifest["ledger"]["selection"] = {"train_bytes": 9}
    dataset.manifest |= {"split": "train", "overlap": {"test": {"documents": 1, "exact": 1, "near": 0, "pairs": []}}}
    facts = report.measure(dataset)
    bar = next(bar for bar in facts["flow"] if bar["title"] == "Choice of documents")
    assert [(part["name"], part["count"], part["fate"]) for part in bar["parts"]] == [
        ("train", tokens, "on"), ("test", 40, "aside"), ("in near copies", 10, "lost"),
    ]  # fmt: skip
    assert facts["copies"] == [("dropped, nearly equal to an earlier one", 2), ("in test, equal to one in train", 1),
                               ("in test, nearly equal to one in train", 0)]  # fmt: skip
    text = Page(report.page(dataset)).text
    assert "dropped, nearly equal to an earlier one2 documents" in text and "in test, equal to one in train1 document\n" in text


def test_a_dataset_of_splits_has_a_page_that_lists_them_in_order_and_each_has_its_own(at):
    (at / "in.txt").write_text("\n".join(f"line {n} of many in the fog" for n in range(300)), "utf-8")
    folder = made("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=words", *SMALL,
                  "split.validation=0.2", "split.test=0.2", "name=whole").folder  # fmt: skip
    whole, manifest = opened(folder), unseal(folder / "manifest.json")
    require_alone(whole)
    assert "Dataset of 3 splits" in whole.text and f"{manifest['rows']:,}" in whole.text
    links = [a["href"] for tag, a in whole.tags if tag == "a" and "report.html" in (a["href"] or "")]
    assert links == [f"{split}/report.html" for split in ("train", "validation", "test")]
    for split, own in manifest["splits"].items():
        page = opened(folder / split)
        require_alone(page)
        assert f"{own['ledger']['targets']:,}" in page.text and own["ledger"]["tokens"] > 0
        assert "../report.html" in {a.get("href") for _, a in page.tags}
    assert sorted(path.parent.name for path in report.report(folder)) == ["whole"]
    targets, first = (sum(own["ledger"][part] for own in manifest["splits"].values()) for part in ("targets", "first"))
    assert ("targets", f"{targets:,}") in tiles(folder) and first == 3
    used = whole.text.partition("Use of the IDs")[2].partition("Slots of the rows")[0]
    assert f"{targets:,} targets" in used and "3 first (no target)" in used


def test_the_page_of_a_split_tells_how_finely_its_own_text_is_cut(at):
    (at / "in").mkdir()
    (at / "in" / "en.txt").write_text("the ferry was late because of the fog\n" * 20)
    (at / "in" / "zh.txt").write_text("".join(chr(0x4E00 + n) for n in range(500)), "utf-8")
    folder = made("corpus=text", "corpus.paths=[in]", "split.by=files", "split.validation_files=['zh*']", "tokenizer=chars",
                  "tokenizer.eos_token=E", *SMALL, "name=two").folder  # fmt: skip
    train, held = (report.measure(report.Trusted(folder / split)) for split in ("train", "validation"))
    assert [own["text_bytes"] for own in (train, held)] == [760, 1500]
    assert [own["per_byte"] for own in (train, held)] == [1.0, pytest.approx(1 / 3)]  # the end mark is none of the text
    assert [own["unknown"] for own in (train, held)] == [None, None]  # 500 in both together
    assert 4 < train["per_word"]["ratio"] < 5
    assert "unknown tokens" not in opened(folder / "validation").text


def test_a_word_of_a_language_without_spaces_is_a_character(at):
    (at / "zh.txt").write_text("".join(chr(0x4E00 + n) for n in range(500)), "utf-8")
    words = report.measure(report.Trusted(made("corpus=text", "corpus.paths=[zh.txt]", "tokenizer=bytes", *SMALL).folder))
    assert words["per_word"]["ratio"] == pytest.approx(3, abs=0.1)


def tiles(folder: Path) -> list[str]:
    """The figures at the head of a page."""
    head = (folder / "report.html").read_text("utf-8").partition('<dl class="facts">')[2].partition("</dl>")[0]
    return re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", head)


def test_the_figures_at_the_head_count_what_the_dataset_holds_and_not_what_was_read(at):
    (at / "in.txt").write_text("the ferry was late\n" * 30 + "the fog was early\n" * 10 + "it snowed\n")
    common = ["corpus.document=line", "tokenizer=bytes", "window.context_length=8", "embedding=none",
              "vocabulary.append_eos=false"]  # fmt: skip
    once = made("corpus=text", "corpus.paths=[in.txt]", "selection.duplicates=exact", "name=once", *common).folder
    assert {("documents", "3"), ("tokens", "44"), ("of text", "44 B")} <= {*tiles(once)}
    (at / "a.txt").write_text("aaaaaaaaaa\n" * 50)
    (at / "b.txt").write_text("bbbbbbbbbb\n" * 2)
    parts = "+corpus.parts={a:{paths:[a.txt],document:line},b:{paths:[b.txt],document:line}}"
    mixed = made("corpus=text", parts, "name=mixed", *common[1:]).folder
    assert {("documents", "4"), ("tokens", "40")} <= {*tiles(mixed)} and "of text" not in dict(tiles(mixed))
    assert report.measure(report.Trusted(mixed))["per_byte"] is None


def test_what_is_one_is_told_in_the_singular(at, capsys):
    (at / "two.txt").write_text("ab")
    two = ["corpus=text", "corpus.paths=[two.txt]", "tokenizer=bytes", "vocabulary.append_eos=false", "name=two"]
    assert cli.exit_code([*two, "window.context_length=1", "plan=true"]) == 0
    capsys.readouterr()
    assert cli.exit_code([*two, "window.context_length=1", "output.report=true"]) == 0
    out = capsys.readouterr().out
    assert "2 = 1 first (no target) + 1 target\n" in out and "had said 2 tokens (exact), 1 row (exact), " in out
    assert ("target", "1") in tiles(at / "outputs/two") and "1 target 50 %" in opened(at / "outputs/two").text
    (at / "two.txt").write_text("a")
    assert cli.exit_code([*two, "window=document", "window.context_length=1", "output.report=true"]) == 0
    out, text = capsys.readouterr().out, opened(at / "outputs/two").text
    for said in ("1 byte in 1 document\n", "1 = 1 kept\n"):
        assert said in out
    for said in (
        "One document of 1 token.",
        "1 byte of text",
        "1 token\n",
        "counted in 1 token of the rows",
        "No targets: rows for",
    ):
        assert said in text
    assert not re.search(r"(?<![\d,.])1 (targets|tokens|bytes|rows|documents|times)\b", out + text)


def test_the_parts_of_a_mixture_are_told_as_asked_and_as_achieved(at):
    for name in ("a", "b"):
        (at / f"{name}.txt").write_text("\n".join(f"{name} {n} in the fog" for n in range(60)), "utf-8")
    parts = "{a:{paths:[a.txt],document:line,weight:3},b:{paths:[b.txt],document:line,weight:1,max_repetitions:2}}"
    outcome = made("corpus=text", f"+corpus.parts={parts}", "corpus.name=ab", "tokenizer=bytes", *SMALL)
    page = opened(outcome.folder)
    require_alone(page)
    for share in ("75.00 %", f"{100 * outcome.mixture['b']['achieved']:.2f} %"):
        assert share in page.text
    bar = next(bar for bar in report.measure(report.Trusted(outcome.folder))["flow"] if bar["title"] == "Choice of documents")
    assert bar["total"] == outcome.ledger["encode"]["ids"] + outcome.ledger["arrange"]["repeated"]


@pytest.mark.slow
def test_a_sweep_of_datasets_with_splits_has_a_column_for_each_setting(at):
    (at / "in.txt").write_text("\n".join(f"line {n} of many in the fog" for n in range(300)), "utf-8")
    arguments = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=words", "embedding=none"]
    assert cli.exit_code(["-m", *arguments, "window.context_length=8", "split.validation=0,0.2", "window.stride=2,4"]) == 0
    text = (at / "outputs/text/sweep.html").read_text("utf-8")
    require_alone(Page(text))
    assert text.count('<a href="split.validation%3D0') == 4 and "window=" not in text
    assert text.count(".<wbr>") == 2  # split.validation, window.stride


def test_the_page_that_a_sweep_left_is_not_replaced_by_hand_with_one_that_knows_less(at, caplog):
    for length in (16, 64):
        run(composed("embedding=none", "tokenizer=words", f"window.context_length={length}"), f"window.context_length={length}")
    folder = at / "outputs/sample"
    jobs = [(path.name, path, "") for path in sorted(folder.iterdir())]
    report.write_sweep(folder, [("window.context_length=0", None, "error: too short"), *jobs], "x-1")
    left = (folder / "sweep.html").read_text("utf-8")
    with caplog.at_level("INFO", "pipeline"):
        assert report.report(folder) == [path / "report.html" for _, path, _ in jobs]
    assert (folder / "sweep.html").read_text("utf-8") == left and "too short" in left
    assert "sweep.html stays as the sweep left it" in caplog.text
    (folder / "sweep.html").unlink()
    assert report.report(folder)[-1] == folder / "sweep.html" and "2 jobs" in opened(folder, "sweep.html").text


def test_a_failed_job_of_a_sweep_says_why():
    text = report.sweep_page("s", [("a", None, f"exit 3: {CANARY}")])
    page = Page(text)
    require_alone(page)
    assert CANARY in page.text


def test_pages_are_made_by_hand_for_what_is_there(at, capsys):
    outcome = run(composed(*SMALL))
    assert not (outcome.folder / "report.html").exists()
    tools.main(None, ["report", "outputs/sample"])
    assert capsys.readouterr().out == "outputs/sample/report.html\n"
    (outcome.folder / "run.json").unlink()
    tools.main(None, ["report", "outputs/sample"])
    assert "run.json, is not there" in opened(outcome.folder).text
    with pytest.raises(SystemExit) as stop:
        tools.main(None, ["report", str(at)])
    assert stop.value.code == 2


def test_a_damaged_record_of_the_run_is_no_reason_to_fail(at):
    outcome = made(*SMALL)
    for damage in ("[]", "{", json.dumps({"stages": [1, {"stage": "load"}]})):
        (outcome.folder / "run.json").write_text(damage)
        require_alone(Page(report.page(report.Trusted(outcome.folder))))
