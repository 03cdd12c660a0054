"""Mixtures against lists: which documents, how often, in which order."""

import itertools
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_run import digests, table

from conftest import composed
from pipeline import cli, mixture, trace
from pipeline.config import Config, Corpus, Part, check, check_arguments, check_key
from pipeline.errors import ConfigError, InputError
from pipeline.permutation import keys, permute
from pipeline.run import Outcome, run

WORDS = "fog ferry Hester letter late the of céu 你好".split()
TEXTS = {
    name: [" ".join(random.Random(f"{name} {i}").choices(WORDS, k=i % 9 + 3)) for i in range(many)]
    for name, many in (("a", 40), ("b", 7), ("c", 1))
}


@pytest.fixture
def texts(at: Path) -> Path:
    (at / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS["a"]))
    (at / "b.txt").write_text("\n".join(TEXTS["b"]) + "\n")
    (at / "c.txt").write_text(TEXTS["c"][0])
    return at


def parts(weights: tuple[float, ...], limits: tuple[float, ...]) -> str:
    how = {
        "a": "paths:[a.jsonl],format:jsonl,text_column:body",
        "b": "paths:[b.txt],document:line",
        "c": "paths:[c.txt]",
    }
    own = (
        f"{name}:{{{how[name]},weight:{weight},max_repetitions:{limit}}}"
        for name, weight, limit in zip("abc", weights, limits, strict=False)
    )
    return f"+corpus.parts={{{','.join(own)}}}"


def ran(*overrides: str) -> Outcome:
    base = ["corpus=mixture", "tokenizer=bytes", "embedding=none"]
    return run(composed(*base, "window.context_length=4", "window.tail=pad", "window.stride=4", *overrides))


def stream(folder: Path) -> list[int]:
    """The IDs of a dataset, by its rows and the positions that its table of documents tells."""
    rows = table(folder)
    ids = [i for row in rows["input_ids"].to_pylist() for i in row]
    last = [row[-1] for row in rows["target_ids"].to_pylist()]
    return [*ids, last[-1]]


def expected(
    bodies: dict[str, list[list[int]]], weights: Any, limits: Any, budget: int | None, shuffle: str, seed: int
) -> tuple[list[list[int]], dict[str, list[list[int]]]]:
    """Documents of train in their order, and by part, naively."""
    share = {name: Fraction(str(w)) / sum(Fraction(str(w)) for w in weights) for name, w in zip(bodies, weights, strict=True)}
    has = {name: sum(map(len, own)) for name, own in bodies.items()}
    limit = dict(zip(bodies, (Fraction(str(one)) for one in limits), strict=True))
    most = min(limit[name] * has[name] / share[name] for name in bodies if share[name])
    used: dict[str, list[list[int]]] = {}
    for number, (name, own) in enumerate(bodies.items()):
        target = int((most if budget is None else budget) * share[name])
        if shuffle == "documents":
            own = [own[i] for i in permute(np.arange(len(own)), len(own), keys(seed, number + 1)).tolist()]
        used[name], count = [], 0
        for body in itertools.cycle(own):
            over = count + len(body) - target
            if over > target - count or (over > 0 and count + len(body) > limit[name] * has[name]) or count == target:
                break
            used[name].append(body)
            count += len(body)
    flat = [body for own in used.values() for body in own]
    if shuffle == "documents":
        flat = [flat[i] for i in permute(np.arange(len(flat)), len(flat), keys(seed, 0)).tolist()]
    return flat, used


GRID = [
    ((3, 1), (1, 4), None),
    ((0.1, 0.9), (0.5, 2.5), None),
    ((1, 0), (1, 1), 500),
    ((0.7, 0.3), (1, 3), 700),
    ((2, 1, 1), (2, 9, 30), None),
    ((2, 1, 1), (1, 5, 30), 400),
]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "limits", "budget"), GRID)
@pytest.mark.parametrize(("shuffle", "splits"), [("none", False), ("documents", True)])
def test_a_mixture_holds_what_lists_would(
    texts: Path, weights: tuple[float, ...], limits: tuple[float, ...], budget: int | None, shuffle: str, splits: bool
) -> None:
    options = [parts(weights, limits), f"split.shuffle={shuffle}", "split.seed=5"]
    options += ["corpus.tokens=" + ("null" if budget is None else str(budget))]
    options += ["split.by=files", "split.validation_files=[c.txt]"] if splits and len(weights) == 3 else []
    held = len(options) > 4
    if held:
        weights, options[0] = (*weights[:2], 0), parts((*weights[:2], 0), limits)
    outcome = ran(*options)
    bodies = {name: [[*text.encode(), 256] for text in TEXTS[name]] for name in "abc"[: len(weights)]}
    if held:
        bodies["c"] = []
    flat, used = expected(bodies, weights, limits, budget, shuffle, 5)
    folder = outcome.folder / "train" if held else outcome.folder
    finished = trace.Finished(folder)
    assert finished.documents["tokens"].tolist() == [len(body) for body in flat]
    ids = [i for body in flat for i in body]
    assert stream(folder)[: len(ids)] == ids
    if held:  # what is held out is there once, whatever its weight
        assert stream(outcome.folder / "validation")[: len(TEXTS["c"][0].encode())] == list(TEXTS["c"][0].encode())
    facts = json.loads((folder / "manifest.json").read_text())["mixture"]
    assert facts == outcome.mixture and list(outcome.mixture) == list(bodies)
    for name, own in used.items():
        has, count = sum(map(len, bodies[name])), sum(map(len, own))
        assert facts[name] == {
            "asked": pytest.approx(dict(zip(bodies, weights, strict=True))[name] / sum(weights)),
            "achieved": pytest.approx(count / len(ids)),
            "tokens": count,
            "documents": len(own),
            "repetitions": pytest.approx(count / max(has, 1)),
            "repeated": count - has + facts[name]["left_out"],
            "left_out": sum(map(len, bodies[name][len(own) :])) if shuffle == "none" else facts[name]["left_out"],
        }
    counts = outcome.ledger["arrange"]
    assert counts["ids"] + counts["repeated"] == sum(count for name, count in counts.items() if name.endswith("_ids"))
    assert counts["repeated"] == sum(part["repeated"] for part in facts.values())
    assert counts["left_out_ids"] == sum(part["left_out"] for part in facts.values())


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_engine(texts: Path) -> None:
    found = []
    for kind, workers in (("serial", 1), ("threads", 3), ("processes", 2)):
        options = [f"engine={kind}", f"engine.workers={workers}", f"cache.dir={kind}", f"output.dir=out/{kind}"]
        mixed = [parts((1, 1, 1), (1, 3, 9)), "split.shuffle=documents", "split.validation=0.3"]
        found.append(digests(ran(*mixed, *options).folder))
    assert found[0] == found[1] == found[2]


def test_another_weight_computes_nothing_before_arrange_and_a_part_is_cached_for_itself(texts: Path) -> None:
    plain = ["tokenizer=bytes", "embedding=none", "window.context_length=4"]
    run(composed("corpus=text", "corpus.paths=[b.txt]", "corpus.document=line", *plain))
    options = ["split.validation=0.3", "selection.duplicates=exact", "name=m"]
    first = {report.stage: report.state for report in ran(parts((1, 1), (1, 3)), *options).stages}
    assert first["load b"] == first["tokenize b"] == "cached" and first["load a"] == "computed"
    outcome = ran(parts((1, 2), (1, 3)), *options)
    assert {report.stage for report in outcome.stages if report.state != "cached"} == {
        "arrange",
        "window train",
        "window validation",
    }
    again = ran(parts((1, 2), (1, 3)), *options)
    assert {report.state for report in again.stages} == {"cached"} and not again.published
    assert again.mixture == outcome.mixture and again.ledger == outcome.ledger
    keys_of = json.loads((outcome.folder / "manifest.json").read_text())["keys"]
    assert {"load a", "load b", "encode a", "encode b", "arrange"} <= set(keys_of)


def test_a_document_that_two_parts_have_is_a_duplicate(texts: Path) -> None:
    (texts / "b.txt").write_text(TEXTS["a"][3] + "\n" + TEXTS["b"][0] + "\n")
    outcome = ran(parts((1, 1), (1, 9)), "selection.duplicates=exact")
    assert outcome.ledger["arrange"]["dropped_duplicate_documents"] == 1
    dropped = json.loads((outcome.folder / "duplicates.jsonl").read_text())
    assert (Path(dropped["source"]).name, Path(dropped["repeats"]["source"]).name) == ("b.txt", "a.jsonl")


def test_parts_may_be_of_the_hub_and_a_column_of_each_says_the_split(texts: Path) -> None:
    (texts / "set/data").mkdir(parents=True)
    rows = [{"text": text, "part": ("train", "dev")[n % 3 == 0], "n": n} for n, text in enumerate(TEXTS["a"])]
    pq.write_table(pa.Table.from_pylist(rows), texts / "set/data/train-00000-of-00001.parquet")
    pq.write_table(pa.table({"text": ["not asked for"]}), texts / "set/data/test-00000-of-00001.parquet")
    (texts / "b.jsonl").write_text("".join(json.dumps({"text": text, "part": "dev"}) + "\n" for text in TEXTS["b"]))
    given = "h:{kind:hub,name:set,metadata:[part,n]},b:{paths:[b.jsonl],format:jsonl,metadata:[part],weight:0}"
    by = ["split.by=column", "split.column=part", "split.validation_values=[dev]"]
    outcome = ran(f"+corpus.parts={{{given}}}", *by)
    held = [text for n, text in enumerate(TEXTS["a"]) if n % 3 == 0] + TEXTS["b"]
    taken = [text for n, text in enumerate(TEXTS["a"]) if n % 3]
    for split, texts_of in (("train", taken), ("validation", held)):
        flat = [i for text in texts_of for i in (*text.encode(), 256)]
        assert stream(outcome.folder / split)[: len(flat)] == flat
        with pa.memory_map(str(outcome.folder / split / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
            listed = reader.read_all()
        numbers = [str(n) for n in range(len(TEXTS["a"])) if (n % 3 == 0) == (split == "validation")]
        assert listed["n"].to_pylist() == numbers + [None] * (len(texts_of) - len(numbers))  # the other part has no such column
    manifest = json.loads((outcome.folder / "train/manifest.json").read_text())
    assert manifest["corpus"]["h"]["name"] == "set" and manifest["config"]["corpus"]["parts"]["h"]["format"] == "parquet"
    finished = trace.Finished(outcome.folder / "train")
    assert trace.trace(finished, 0)[0].words == bytes(finished.row(0)["input_ids"]).decode() + chr(
        finished.row(0)["target_ids"][-1]
    )
    with pytest.raises(ConfigError, match=r"split\.column=n: split\.by=column needs .* corpus\.parts\.b\.metadata"):
        ran(f"+corpus.parts={{{given}}}", "split.by=column", "split.column=n", "split.validation_values=[3]")


def test_a_trained_tokenizer_learns_from_all_parts(texts: Path) -> None:
    words = ["tokenizer=words", "tokenizer.eos_token=END", "tokenizer.min_frequency=1"]
    (texts / "b.txt").write_text("onlyhere\n" * 3)
    known = json.loads((ran(parts((1, 1), (1, 9)), *words).folder / "vocabulary.json").read_text())
    assert "onlyhere" in known and "Hester" in known


def test_rows_of_a_mixture_are_traced_to_the_files_of_their_parts(texts: Path) -> None:
    finished = trace.Finished(ran(parts((1, 1, 1), (1, 5, 30)), "split.shuffle=documents").folder)
    seen = set()
    for row in range(0, finished.rows - 1, 3):
        pieces = trace.trace(finished, row)
        ids = [i for piece in pieces for i in piece.ids]
        whole = finished.row(row)
        assert ids == [*whole["input_ids"], whole["target_ids"][-1]]
        seen |= {Path(finished.path(piece.document)).name for piece in pieces}
    assert seen == {"a.jsonl", "b.txt", "c.txt"}
    places = list(trace.find(finished, TEXTS["c"][0]))
    assert len(places) > 1 and {Path(place.path).name for place in places} == {"c.txt"}  # once for each repetition


def test_a_part_may_be_empty_where_its_weight_is_nothing_and_a_budget_must_fit_a_document(texts: Path) -> None:
    (texts / "b.txt").write_text("")
    with pytest.raises(InputError, match=r"part b of the mixture has no tokens.*corpus\.parts\.b\.weight=0"):
        ran(parts((1, 1), (1, 1)))
    outcome = ran(parts((1, 0), (1, 1)), "split.shuffle=documents")
    assert outcome.mixture["b"]["tokens"] == 0 and outcome.mixture["a"]["achieved"] == 1
    with pytest.raises(InputError, match=r"takes none of its 40 documents.*corpus\.tokens="):
        ran(parts((1, 0), (1, 1)), "corpus.tokens=1")


def test_a_budget_that_repetitions_do_not_allow_is_refused_with_the_numbers(texts: Path) -> None:
    has = sum(len(text.encode()) + 1 for text in TEXTS["b"])
    with pytest.raises(ConfigError, match=rf"corpus\.tokens=100000 .* the {4 * has} .*: b has {has} tokens.*max_repetitions=2"):
        ran(parts((1, 1), (900, 2)), "corpus.tokens=100000")
    with pytest.raises(InputError, match=r"part b of the mixture has no tokens.*: all of its documents \(\d+\) are held out"):
        ran(parts((1, 1), (1, 1)), "split.by=files", "split.validation_files=[b.txt]")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": {"a": 3}}, r"corpus\.parts\.a must hold the settings"),
        ({"parts": {"a": {"wieght": 3}}}, "did you mean 'weight'"),
        ({"parts": {"a": {"weight": "x"}}}, r"corpus\.parts\.a\.weight='x' is not of type float"),
        ({"parts": {"a": {"paths": "x"}}}, r"corpus\.parts\.a\.paths='x' is not of type list\[str\]"),
        ({"parts": {"a": {"min_characters": True}}}, "is not of type int"),
        ({"parts": {"a": {"parts": {"b": {}}}}}, "has no parts itself"),
        ({"parts": {"a": {"tokens": 100}}}, r"corpus\.parts\.a\.tokens means nothing to a part: set corpus\.tokens= of all"),
        ({"parts": {"a": {}}}, r"corpus\.parts\.a\.paths is empty"),
        ({"parts": {"a": {"paths": ["corpus.txt"], "format": "xls"}}}, r"corpus\.parts\.a\.format='xls'"),
        ({"parts": {"a": {"paths": ["x"]}}, "format": "csv"}, r"corpus\.format means nothing to a mixture"),
        ({"parts": {"a": {"paths": ["x"], "weight": -1}}}, "outside the allowed range"),
        ({"parts": {"a": {"paths": ["x"], "weight": float("nan")}}}, "outside the allowed range"),
        ({"parts": {"a": {"paths": ["x"], "weight": 0}}}, "every weight is 0"),
        ({"parts": {"a": {"paths": ["x"], "max_repetitions": 0}}}, "leaves it out"),
        ({"parts": {"a.b": {"paths": ["x"]}}}, "letters, digits"),
        ({"paths": ["x"], "tokens": 3}, r"corpus\.tokens needs a mixture"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(Config(corpus=Corpus(**given)))


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("options", [[], ["tokenizer=words"], ["split.validation=0.5"]])
def test_what_is_wrong_in_a_part_names_the_settings_of_the_part(texts: Path, engine: str, options: list[str]) -> None:
    with open(texts / "a.jsonl", "a") as file:
        file.write('{"body": 5}\n')
    with pytest.raises(InputError, match=r"line 41: column 'body' holds 5.* Set corpus\.parts\.a\.on_bad_row=skip to leave"):
        ran(parts((1, 1), (1, 9)), f"engine={engine}", *options)


def test_what_is_wrong_in_the_plan_of_a_part_names_the_settings_of_the_part(texts: Path) -> None:
    (texts / "b.txt").rename(texts / "b")
    with pytest.raises(ConfigError, match=r"'b': corpus\.parts\.b\.format=auto knows .*set corpus\.parts\.b\.format=\."):
        ran("+corpus.parts={b:{paths:[b],format:auto}}")


def test_settings_of_parts_can_be_named_on_the_command_line() -> None:
    check_key("corpus.parts.wiki.weight")
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        check_key("corpus.parts.wiki.wieght")
    with pytest.raises(ConfigError, match=r"corpus\.parts\.wiki\.weight is a value"):
        check_key("corpus.parts.wiki.weight.x")
    _, overrides = check_arguments(["corpus=mixture", "corpus.parts.wiki.paths=[x]", "corpus.parts.wiki.weight=2"])
    config = composed(*overrides)
    assert isinstance(config.corpus.parts["wiki"], Part) and config.corpus.parts["wiki"].weight == 2
    with pytest.raises(ConfigError, match=r"corpus\.parts\.letters\.paths"):
        check(composed("corpus=mixture"))


def test_a_budget_of_one_part_is_said_to_mean_nothing_and_not_to_be_a_secret(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline"])
    assert cli.exit_code(["corpus.parts.b.paths=[b.txt]", "corpus.parts.b.tokens=100"]) == 2
    assert "corpus.parts.b.tokens means nothing to a part" in capsys.readouterr().err
    assert cli.exit_code(["corpus.parts.b.paths=[b.txt]", "corpus.parts.b.hub_token=100"]) == 2
    assert "corpus.parts.b.hub_token looks like a secret" in capsys.readouterr().err


def test_a_draw_never_goes_past_its_target_by_a_whole_document_nor_past_its_limit() -> None:
    random_numbers = np.random.default_rng(4)
    for _ in range(300):
        tokens = random_numbers.integers(1, 30, 12)
        own = random_numbers.permutation(12)[: random_numbers.integers(1, 12)]
        has, most = int(tokens[own].sum()), float(random_numbers.choice([0.5, 1, 2, 3.5]))
        target = int(random_numbers.integers(0, int(has * most) + 1))
        drawn = mixture.draw(own, tokens, target, most)
        assert drawn.used == int(tokens[drawn.order].sum()) <= has * most
        assert abs(drawn.used - target) < tokens[own].max()
        assert drawn.left == int(tokens[np.setdiff1d(own, drawn.order)].sum())
        assert drawn.repeated == drawn.used - int(tokens[np.unique(drawn.order)].sum())
