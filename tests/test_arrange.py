"""Splits, duplicates and shuffles from `arrange` on, against lists."""

import gzip
import hashlib
import itertools
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_run import digests, table
from test_stream import row, stream_of

from conftest import composed
from pipeline import arrange, open_dataset, split
from pipeline.config import Split
from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.permutation import keys, permute
from pipeline.run import Outcome, run

TEXTS = [
    " ".join(random.Random(i).choices("fog ferry Hester letter late the of céu 你好".split(), k=i % 40 + 5)) for i in range(120)
]
TEXTS[50], TEXTS[90] = TEXTS[7], TEXTS[7]


@pytest.fixture
def texts(at: Path) -> Path:
    (at / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return at


def ran(*overrides: str) -> Outcome:
    base = ["corpus=jsonl", "corpus.paths=[a.jsonl]", "tokenizer=words", "tokenizer.eos_token=END", "embedding=none"]
    return run(composed(*base, "window.context_length=8", *overrides))


def documents() -> list[list[int]]:
    """The IDs of every document, by a run without splits whose windows are pairs."""
    folder = ran("window.context_length=1", "name=whole").folder
    rows = table(folder)
    stream = [*rows["input_ids"].to_pylist(), rows["target_ids"].to_pylist()[-1]]
    with pa.memory_map(str(folder / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
        places = reader.read_all().to_pydict()
    flat = [i for one in stream for i in one]
    return [flat[first : first + tokens] for first, tokens in zip(places["first"], places["tokens"], strict=True)]


def verdict(text: str, settings: Split) -> str:
    found = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), "<u8")
    return split.names(settings)[int(split.assign(found[:1].astype(np.uint64), settings)[0])]


def windows(ids: list[int], length: int, stride: int) -> list[list[list[int]]]:
    starts = range(0, len(ids) - length, stride)
    return [[ids[at : at + length], ids[at + 1 : at + length + 1]] for at in starts]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "documents", "windows"])
@pytest.mark.parametrize("seed", [0, 3])
def test_each_split_is_cut_from_its_own_documents_in_its_order(texts: Path, shuffle: str, seed: int) -> None:
    settings = Split(validation=0.2, test=0.1, seed=seed)
    options = [f"split.seed={seed}", "split.validation=0.2", "split.test=0.1", f"split.shuffle={shuffle}", "window.stride=3"]
    outcome = ran(*options, "selection.duplicates=exact", "tokenizer=bytes", "name=s")
    whole = ran("tokenizer=bytes", "window.context_length=1", "name=whole").folder
    flat = [i for one in table(whole)["input_ids"].to_pylist() for i in one] + table(whole)["target_ids"].to_pylist()[-1]
    with pa.memory_map(str(whole / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
        places = reader.read_all().to_pydict()
    bodies = [flat[first : first + tokens] for first, tokens in zip(places["first"], places["tokens"], strict=True)]
    kept = [place for place, text in enumerate(TEXTS) if TEXTS.index(text) == place]
    assert set(outcome.splits) == set(split.names(settings))
    for name in split.names(settings):
        own = [place for place in kept if verdict(TEXTS[place], settings) == name]
        if shuffle == "documents":
            own = [own[i] for i in permute(np.arange(len(own)), len(own), keys(seed, 0)).tolist()]
        rows = windows([i for place in own for i in bodies[place]], 8, 3)
        if shuffle == "windows":
            rows = [rows[i] for i in permute(np.arange(len(rows)), len(rows), keys(seed, 0)).tolist()]
        found = table(outcome.folder / name)
        assert [
            list(pair) for pair in zip(found["input_ids"].to_pylist(), found["target_ids"].to_pylist(), strict=True)
        ] == rows
        with pa.memory_map(str(outcome.folder / name / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
            listed = reader.read_all().to_pydict()
        assert listed["start"] == [places["start"][place] for place in own]
        assert listed["first"] == np.cumsum([0, *listed["tokens"]])[:-1].tolist()
        assert listed["origin"] == [places["first"][place] for place in own]


def test_the_ledger_of_all_splits_makes_up_the_ids(texts: Path) -> None:
    outcome = ran("split.validation=0.3", "selection.duplicates=exact", "window.stride=4")
    counts = outcome.ledger["arrange"]
    assert counts["ids"] == counts["train_ids"] + counts["validation_ids"] + counts["dropped_duplicate_ids"]
    assert counts["dropped_duplicate_documents"] == 2
    for name, ledger in outcome.splits.items():
        assert ledger["window"]["tokens"] == counts[f"{name}_ids"]
    chosen = outcome.ledger["selection"]
    assert chosen["text_bytes"] == chosen["train_bytes"] + chosen["validation_bytes"] + chosen["dropped_duplicate_bytes"]
    lines = [json.loads(line) for line in (outcome.folder / "duplicates.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {line["reason"] for line in lines} == {"duplicate"}


def test_copies_are_named_by_the_names_that_files_have_now(texts: Path) -> None:
    Path("held.jsonl").write_bytes(Path("a.jsonl").read_bytes())
    Path("a.jsonl").rename("before.jsonl")
    for name in ("before", "after"):
        read = f"corpus.paths=[{name}.jsonl,held.jsonl]"
        outcome = ran(read, "selection.duplicates=exact")
        assert f'"{name}.jsonl"' in (outcome.folder / "duplicates.jsonl").read_text()
        assert {report.state for report in outcome.stages} == {"computed" if name == "before" else "cached"}
        apart = ran(read, "split.by=files", "split.validation_files=[held.jsonl]", "name=apart").folder / "manifest.json"
        assert f"'{name}.jsonl' from" in json.dumps(json.loads(apart.read_text())["overlap"])
        if name == "before":
            Path("before.jsonl").rename("after.jsonl")


@pytest.mark.parametrize("mode", ["window=prefix", "window=document", "window.cross_documents=false"])
def test_other_windows_take_splits_too(texts: Path, mode: str) -> None:
    options = [mode, "window.context_length=64", "split.validation=0.2", "tokenizer.pad_token=PAD", "window.tail=pad"]
    outcome = ran(*options, "split.shuffle=documents")
    bodies = documents()
    for name in ("train", "validation"):
        own = [place for place, text in enumerate(TEXTS) if verdict(text, Split(validation=0.2)) == name]
        tokens = sum(len(bodies[place]) for place in own)
        assert outcome.splits[name]["window"]["tokens"] == tokens
        assert len(table(outcome.folder / name)) == outcome.splits[name]["window"]["rows"]


@pytest.mark.parametrize(
    "shuffled",
    [
        ["split.shuffle=documents"],
        ["split.shuffle=windows", "window.cross_documents=false", "window.stride=3"],
        ["split.shuffle=windows", "window=prefix", "window.context_length=5"],
    ],
)
@pytest.mark.slow
def test_the_same_bytes_by_any_engine_and_shard_order(
    texts: Path, shuffled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.window.SHARD", 1 << 12)
    options = ["split.validation=0.2", *shuffled, "selection.duplicates=near", "corpus.shard_bytes=2000"]
    seen = set()
    for place, engine in enumerate(["engine=serial", "engine=threads engine.workers=3", "engine=processes engine.workers=2"]):
        outcome = ran(*options, *engine.split(), f"cache.dir=cache{place}", f"output.dir=out{place}", "name=n")
        seen.add(json.dumps(digests(outcome.folder), sort_keys=True))
    assert len(seen) == 1


def test_another_share_tokenizes_nothing_again(texts: Path) -> None:
    ran("split.validation=0.2", "tokenizer=bytes")
    again = ran("split.validation=0.3", "tokenizer=bytes", "split.shuffle=documents")
    states = {report.stage: report.state for report in again.stages}
    assert {states[stage] for stage in ("load", "fingerprint", "tokenizer", "tokenize", "encode")} == {"cached"}
    assert {states[stage] for stage in ("selection", "arrange", "window train", "window validation")} == {"computed"}
    third = ran("split.validation=0.3", "tokenizer=bytes", "split.shuffle=documents")
    assert {report.state for report in third.stages} == {"cached"} and not third.published


def test_a_tokenizer_learns_from_train_alone(texts: Path) -> None:
    (texts / "b.txt").write_text("zebra zebra zebra")
    paths = ["corpus=text", "corpus.paths=[texts/a.txt,texts/b.txt]", "split.by=files", "split.validation_files=[b.txt]"]
    (texts / "texts").mkdir()
    (texts / "texts/a.txt").write_text("the fog was late " * 20)
    (texts / "texts/b.txt").write_text("zebra zebra " * 20)
    folder = ran(*paths).folder
    assert "zebra" not in json.loads((folder / "train/vocabulary.json").read_text())
    assert "zebra" in json.loads((ran(*paths[:2], "name=all").folder / "vocabulary.json").read_text())


def test_splits_open_by_datasets_and_by_name(texts: Path) -> None:
    import datasets

    folder = ran("split.validation=0.2", "window.stride=2").folder
    found = datasets.load_from_disk(str(folder))
    assert isinstance(found, datasets.DatasetDict) and list(found) == ["train", "validation"]
    for name in found:
        ours = open_dataset(folder, split=name, verify="full")
        assert len(ours) == len(found[name])
        assert ours[0]["input_ids"].tolist() == found[name][0]["input_ids"]
    with pytest.raises(ConfigError, match="has the splits"):
        open_dataset(folder)
    with pytest.raises(ConfigError, match="has the splits"):
        open_dataset(folder, split="test")
    with pytest.raises(ConfigError, match="has no splits"):
        open_dataset(ran("name=whole").folder, split="train")


def test_a_split_without_a_document_is_refused(texts: Path) -> None:
    with pytest.raises(InputError, match="split test has none of the 120 documents"):
        ran("split.test=0.000001")
    with pytest.raises(InputError, match="split validation: corpus has"):
        ran("split.validation=0.05", "window.context_length=900")


def test_too_much_overlap_is_refused_and_computed_once(texts: Path) -> None:
    (texts / "t").mkdir()
    for name, number in (("one", 0), ("two", 1), ("held", 0)):
        (texts / f"t/{name}.txt").write_text(TEXTS[number])
    options = ["corpus=text", "corpus.paths=[t]", "split.by=files", "split.validation_files=[held.txt]"]
    with pytest.raises(
        InputError, match=r"1 of 1 documents of validation .*'t/held.txt' from 0 repeats 't/one.txt' from 0 \(exact\)"
    ):
        ran(*options, "split.max_overlap=0")
    assert ran(*options, "window.context_length=2").rows


def test_metadata_goes_with_each_document_a_few_rows_at_a_time(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.batches.BLOCK", 1000)
    monkeypatch.setattr(arrange, "WIDE", 1500)
    notes = {text: f"{place} " * (place % 60) for place, text in enumerate(dict.fromkeys(TEXTS))}
    rows = "".join(json.dumps({"text": text, "note": note}) + "\n" for text, note in notes.items())
    (at / "a.jsonl").write_text(rows)

    def listed(folder: Path) -> list[tuple[bytes, str]]:
        with pa.memory_map(str(folder / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
            batches = [batch for batch in reader if len(batch)]
        sizes = [sum(map(len, batch["note"].to_pylist())) for batch in batches]
        assert all(size <= 2500 or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True)) and len(batches) > 2
        lines = [(rows.encode()[low:high], note) for b in batches for low, high, note in zip(*(b[n].to_pylist() for n in ("start", "end", "note")), strict=True)]  # fmt: skip
        assert all(json.loads(line)["note"] == note for line, note in lines)
        return lines

    plain = listed(ran("corpus.metadata=[note]", "name=plain").folder)
    assert len(plain) == len(notes)
    folder = ran("corpus.metadata=[note]", "split.validation=0.3", "split.shuffle=documents").folder
    assert sorted(listed(folder / "train") + listed(folder / "validation")) == sorted(plain)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_an_arrangement_reads_as_the_list_of_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    bodies = [[1, 2], [], [3], [4, 5, 6], [], [7], [8, 9]]
    base = stream_of(tmp_path, [[[row(ids) for ids in bodies[:4]]], [[row(ids) for ids in bodies[4:]]]])
    table = {
        "source": np.zeros(7, np.int64), "start": np.arange(7), "end": np.arange(7) + 1,
        "tokens": np.array([len(ids) for ids in bodies]), "origin": np.array([0, 2, 2, 3, 6, 6, 7]),
    }  # fmt: skip
    monkeypatch.setattr(arrange, "MOST", batch)
    for number, order in enumerate([[0, 1, 2, 3, 4, 5, 6], [6, 0, 4, 3], [2], [3, 3, 1, 0, 0], [1, 4]]):
        path = tmp_path / f"order{number}"
        with open(path, "wb") as file:
            arrange.write(file, table, arrange.Metadata(), np.array(order))
        found = pickle.loads(pickle.dumps(arrange.Arrangement(base, path)))
        whole = [i for document in order for i in bodies[document]]
        assert len(found) == len(whole) == sum(found.counts)
        for start, stop in itertools.combinations_with_replacement(range(len(whole) + 1), 2):
            assert found.read(start, stop).tolist() == whole[start:stop]
        lengths = [n for shard in range(len(found.counts)) for n in found.document_lengths(shard).tolist()]
        assert lengths == [len(bodies[document]) for document in order]
        with pytest.raises(IndexError):
            found.read(0, len(whole) + 1)
    with pytest.raises(IntegrityError):
        arrange.Arrangement(stream_of(tmp_path / "..", []), tmp_path / "order0")


def test_one_document_is_split_at_paragraphs_and_the_gaps_are_in_no_window(at: Path) -> None:
    paragraphs = [f"p{i} " + " ".join(f"w{i}x{j}" for j in range(20)) for i in range(60)]
    (at / "a.txt").write_text("\n\n".join(paragraphs))
    options = ["corpus=text", "corpus.paths=[a.txt]", "tokenizer=words", "embedding=none", "tokenizer.eos_token=END"]
    shares = ["window.context_length=50", "split.validation=0.2", "split.test=0.2"]
    outcome = run(composed(*options, *shares))
    counts = outcome.ledger["arrange"]
    assert counts["dropped_gap_documents"] == 2 and counts["dropped_gap_ids"] >= 100
    assert counts["ids"] == counts["train_ids"] + counts["validation_ids"] + counts["test_ids"] + counts["dropped_gap_ids"]
    assert outcome.ledger["encode"]["eos"] == 0
    names = {i: token for token, i in json.loads((outcome.folder / "train/vocabulary.json").read_text()).items()}
    seen = {
        name: {int(i) for row in table(outcome.folder / name)["input_ids"].to_pylist() for i in row} for name in outcome.splits
    }
    words = {name: {names[i] for i in ids if names[i].startswith("w")} for name, ids in seen.items()}
    assert words["train"] and max(int(word[1:].partition("x")[0]) for word in words["train"]) < 40
    assert all("w" not in names[i] for i in seen["validation"])  # the tokenizer learned from train alone
    (at / "0.txt").write_text("")
    assert run(composed(*options, *shares, "corpus.paths=[0.txt,a.txt]")).ledger["arrange"] == counts
    (at / "a.txt.gz").write_bytes(gzip.compress((at / "a.txt").read_bytes()))
    (at / "0.txt").write_text(" \n")
    for paths in ("a.txt.gz", "0.txt,a.txt"):
        with pytest.raises(
            InputError, match=r"a plain file of UTF-8 text, .*, and every other file is empty, without even white"
        ):
            run(composed(*options, *shares, f"corpus.paths=[{paths}]"))


@pytest.mark.parametrize("rule", ["min_characters=9", "max_characters=99999", "include=x1", "exclude=nothing"])
def test_rules_do_not_judge_the_parts_of_the_one_document(rule: str, at: Path) -> None:
    (at / "a.txt").write_text("\n\n".join(" ".join(f"w{i}x{j}" for j in range(20)) for i in range(60)))
    options = ["corpus=text", "corpus.paths=[a.txt]", "tokenizer=bytes", "embedding=none", f"corpus.{rule}"]
    with pytest.raises(ConfigError, match=rf"corpus\.{rule}: whole documents are judged, and 'a\.txt' is the only one"):
        run(composed(*options, "split.validation=0.2"))
    assert run(composed(*options)).rows
    assert run(composed(*options, "split.validation=0.2", "corpus.document=line")).rows


def test_a_part_of_the_one_document_that_cannot_be_decoded_is_said_to_be_missing(at: Path) -> None:
    paragraphs = ["the ferry was late " * 20 for _ in range(40)]
    (at / "a.txt").write_bytes("\n\n".join([*paragraphs, "na\xefve", *paragraphs]).encode("latin-1"))
    options = ["corpus=text", "corpus.paths=[a.txt]", "tokenizer=bytes", "embedding=none", "corpus.on_bad_row=skip"]
    with pytest.raises(
        InputError, match=r"left out \(undecodable\), so that it cannot be cut into splits: set corpus\.errors=r"
    ):
        run(composed(*options, "split.validation=0.2", "window.context_length=8"))


def test_a_column_says_the_split_and_goes_with_each_document(at: Path) -> None:
    owners = ["train", "dev", "test", None, "dev", "other"]
    rows = [{"text": f"the fog {i} was late", "part": part, "id": f"n{i}"} for i, part in enumerate(owners)]
    (at / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = ["split.by=column", "split.column=part", "split.validation_values=[dev]", "split.test_values=[test]"]
    folder = ran(*held, "corpus.metadata=[part,id]", "window.context_length=4", "split.shuffle=documents").folder
    for name, ids in (("train", {"n0", "n3", "n5"}), ("validation", {"n1", "n4"}), ("test", {"n2"})):
        with pa.memory_map(str(folder / name / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
            assert set(reader.read_all()["id"].to_pylist()) == ids
    with pytest.raises(ConfigError, match=r"corpus\.metadata"):
        ran(*held, "corpus.metadata=[id]")
    said = (
        r"split test: split\.test_values=\['tset'\] matches none of the values of column 'part': 'train', 'dev', 'test', None"
    )
    with pytest.raises(InputError, match=said):
        ran(*held[:3], "split.test_values=[tset]", "corpus.metadata=[part]")
    said = r"split\.validation_values=\['valdation', 'tset'\] matches none of .* 'test', None, 'other'\. Did you mean 'test'\?"
    with pytest.raises(InputError, match=said):  # what it was to hold out would be trained on
        ran(*held[:2], "split.validation_values=[dev,valdation,tset]", "corpus.metadata=[part]")
    with pytest.raises(InputError, match=r"split train: all of the values of column 'id' are held out: 'n0', 'n1'"):
        ran(
            "split.by=column",
            "split.column=id",
            f"split.test_values=[{','.join(row['id'] for row in rows)}]",
            "corpus.metadata=[id]",
        )


@pytest.mark.parametrize(("value", "held"), [("true", {"n1"}), ("null", {"n2"}), ("3.0", {"n3"}), ("[true,7]", {"n1", "n4"})])
def test_what_yaml_takes_for_no_text_is_held_out_as_metadata_writes_it(value: str, held: set[str], at: Path) -> None:
    rows = [{"text": "the fog was late", "part": part, "id": f"n{i}"} for i, part in enumerate([False, True, None, 3.0, 7])]
    (at / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = value if value.startswith("[") else f"[{value}]"
    by = ["split.by=column", "split.column=part", f"split.validation_values={value}", "corpus.metadata=[part,id]"]
    folder = ran(*by, "window.context_length=2").folder
    with pa.memory_map(str(folder / "validation" / "documents.arrow")) as file, pa.ipc.open_stream(file) as reader:
        assert set(reader.read_all()["id"].to_pylist()) == held


def test_values_are_looked_for_in_what_load_gives_where_only_fingerprints_are_left(at: Path) -> None:
    rows = [{"text": f"the fog {i} was late", "part": ("train", "dev")[i % 2]} for i in range(6)]
    (at / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    by = ["split.by=column", "split.column=part", "corpus.metadata=[part]", "split.validation_values=[dev]"]
    first = ran(*by, "selection.duplicates=exact")
    for folder in at.glob("data/cache/load/*"):
        shutil.rmtree(folder)
    again = ran(*by)
    states = {report.stage: report.state for report in again.stages}
    assert states["fingerprint"] == "cached" and list(at.glob("data/cache/load/*/*.arrow"))
    assert digests(again.folder / "validation") == digests(first.folder / "validation")


def test_a_pattern_that_matches_no_file_is_said_before_anything_is_tokenized(texts: Path) -> None:
    said = r"split validation: split\.validation_files=\['b\*'\] matches none of the files: 'a\.jsonl'\."
    with pytest.raises(InputError, match=said):
        ran("split.by=files", "split.validation_files=[b*]")
    with pytest.raises(InputError, match=r"split train: all of the files are held out: 'a\.jsonl'\. Name fewer of them"):
        ran("split.by=files", "split.validation_files=[a*]")
    (texts / "c.jsonl").write_text('{"text": "the fog"}\n')
    both = ["corpus.paths=[a.jsonl,c.jsonl]", "split.by=files"]
    with pytest.raises(InputError, match=r"_files=\['cc.jsonl'\] matches none of .*'c\.jsonl'\. Did you mean 'c\.jsonl'\?"):
        ran(*both, "split.validation_files=[c.jsonl,cc.jsonl]")
    with pytest.raises(InputError, match=r"split test: another split takes all that split\.test_files=\['c\*'\] matches"):
        ran(*both, "split.validation_files=[c.jsonl]", "split.test_files=[c*]")
