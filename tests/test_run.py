"""The whole line: what comes out, what is cached, and that nothing but the input and the settings decides a byte."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conftest import ROOT, composed
from pipeline import cache, corpus, estimate, files, phase, steps, swap
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.run import Outcome, run

SMALL = ["window.context_length=16", "window.stride=8", "embedding.embedding_dim=4"]


def ran(*overrides: str, job: str | None = None) -> Outcome:
    return run(composed(*overrides), job)


def states(outcome: Outcome) -> dict[str, str]:
    return {report.stage: report.state for report in outcome.stages}


def table(folder: Path) -> pa.Table:
    tables = []
    for path in sorted(folder.glob("data-*.arrow")):
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            tables.append(reader.read_all())
    return pa.concat_tables(tables)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset but the record of the run."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.json", "report.html")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def texts(at: Path) -> Path:
    """Forty small documents in three files, one of them of several MiB in one line."""
    folder = at / "texts"
    folder.mkdir()
    words = np.array("the ferry was late because of fog and Gisburn céu 你好 🙂 don't 1950s\t ".split(" "))
    rng = np.random.default_rng(0)
    for name, size in (("a", 2_000), ("b", 30_000), ("c", 500)):
        (folder / f"{name}.txt").write_text(" ".join(rng.choice(words, size)), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("overrides", "read"),
    [(["tokenizer=bytes"], 2), (["tokenizer=bytes", "vocabulary.append_eos=false"], 1), (["tokenizer=hub"], 1)],
)
def test_a_corpus_is_read_twice_only_where_it_matters_whether_it_is_one_document(at, monkeypatch, overrides, read):
    (at / "a.txt").write_text("abba" * 9)
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    (at / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    named = ["tokenizer.name=tokenizer.json"] if "tokenizer=hub" in overrides else []
    begun, load = [], corpus.load
    monkeypatch.setattr(corpus, "load", lambda *given, **more: begun.append(1) or load(*given, **more))
    ran(
        "corpus=text",
        "corpus.paths=[a.txt]",
        "embedding=none",
        "window.context_length=4",
        "engine=serial",
        "tokenizer.backend=hf",
        *overrides,
        *named,
    )
    assert len(begun) == read


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tokenizer=bytes", "tokenizer.lowercase=true"], "tokenizer.lowercase=True means nothing to tokenizer.kind=bytes"),
        (["window=prefix", "window.stride=4"], "window.stride=4 means nothing to window.mode=prefix"),
        (["corpus.template='{a}'"], "corpus.template={a} means nothing to corpus.format=text"),
        (["tokenizer=words", "tokenizer.order=frequency"], None),
    ],
)
def test_what_is_set_in_vain_is_said_by_the_run_and_by_the_plan(at, caplog, overrides, said):
    (at / "a.txt").write_text("The ferry was late because of the fog.")
    given = ["corpus=text", "corpus.paths=[a.txt]", "embedding=none", "window.context_length=4", *overrides]
    ran(*given)
    heard = [record.getMessage() for record in caplog.records if "means nothing" in record.getMessage()]
    assert heard == ([said] if said else [])
    assert [note for note in estimate.estimate(composed(*given)).notes if "means nothing" in note] == [
        f"{one}." for one in heard
    ]


def test_the_sample_becomes_a_dataset_that_datasets_pyarrow_and_torch_open(at):
    outcome = ran(*SMALL)
    assert outcome.folder == Path("outputs/sample") and outcome.published
    rows = table(outcome.folder)
    assert rows.num_rows == outcome.rows > 100
    inputs, targets = rows["input_ids"].to_pylist(), rows["target_ids"].to_pylist()
    assert all(len(row) == 16 for row in inputs + targets)
    assert all(a[1:] == b[:-1] for a, b in zip(inputs, targets, strict=True))

    import datasets

    opened = datasets.load_from_disk(str(outcome.folder))
    assert opened.num_rows == outcome.rows
    row = opened.with_format("torch")[3]
    assert str(row["input_ids"].dtype) == "torch.int64" and tuple(row["input_ids"].shape) == (16,)
    assert row["input_ids"].tolist() == inputs[3]

    from pipeline import open_dataset

    ours = open_dataset(outcome.folder)
    assert len(ours) == outcome.rows and ours[3]["target_ids"].tolist() == targets[3]


def test_the_output_carries_all_that_reproduces_it_and_no_path_time_or_host(at):
    outcome = ran(*SMALL)
    manifest = files.unseal(outcome.folder / "manifest.json")
    assert set(manifest["ledger"]) == {"load", "tokenize", "encode", "window"}
    assert manifest["config"]["window"]["stride"] == 8 and "engine" not in manifest["config"]
    assert set(manifest["keys"]) == {"load", "tokenizer", "tokenize", "encode", "window", "embed"}
    for name, note in manifest["files"].items():
        assert files.hash_file(outcome.folder / name) == (note["bytes"], note["sha256"])
    present = {str(p.relative_to(outcome.folder)) for p in outcome.folder.rglob("*") if p.is_file()}
    assert present == set(manifest["files"]) | {"manifest.json", "run.json"}
    assert {"tokenizer/tokenizer.json", "vocabulary.json", "embeddings.safetensors", "README.md", "documents.arrow"} <= present
    assert "already shifted by one" in manifest["shift"]
    assert "already shifted" in table(outcome.folder).schema.metadata[b"pipeline"].decode()
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["host"] and record["engine"]["kind"] == "threads" and record["seconds"] > 0


def test_the_ledger_balances_from_text_to_targets(texts):
    outcome = ran("corpus=text", "corpus.paths=[texts]", *SMALL, "embedding=none")
    encode, window = outcome.ledger["encode"], outcome.ledger["window"]
    assert outcome.ledger["tokenize"]["tokens"] == encode["tokens"]
    assert encode["ids"] == encode["tokens"] + encode["eos"] == window["tokens"]
    assert encode["eos"] == outcome.ledger["load"]["documents"] == 3
    assert window["tokens"] == window["first"] + window["targets"] + window["tail"]


def test_a_second_run_computes_nothing_and_touches_nothing(at):
    first = ran(*SMALL)
    before = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.name not in ("run.json", "report.html")}
    second = ran(*SMALL)
    assert set(states(second).values()) == {"cached"} and not second.published
    assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.name not in ("run.json", "report.html")} == before
    assert second.ledger == first.ledger


def test_another_stride_computes_window_and_embed_alone_and_says_why(at):
    ran(*SMALL)
    outcome = ran(*SMALL[:1], "window.stride=4", SMALL[2])
    assert states(outcome) == {
        "load": "cached", "tokenizer": "cached", "tokenize": "cached", "encode": "cached", "window": "computed", "embed": "computed",
    }  # fmt: skip
    reasons = {report.stage: report.why for report in outcome.stages}
    assert any("stride" in line and "8 → 4" in line for line in reasons["window"])


def test_a_changed_byte_of_the_corpus_computes_everything(texts):
    corpus = ["corpus=text", "corpus.paths=[texts]", *SMALL]
    ran(*corpus)
    (texts / "c.txt").write_text("entirely other words")
    assert set(states(ran(*corpus)).values()) == {"computed"}


def test_engine_workers_and_batch_size_recompute_nothing(at):
    ran(*SMALL)
    outcome = ran(*SMALL, "engine=processes", "engine.workers=2", "engine.batch_size=1")
    assert set(states(outcome).values()) == {"cached"}


@pytest.mark.parametrize("tokenizer", ["bpe", pytest.param("words", marks=pytest.mark.slow)])
@pytest.mark.row("A29")
def test_every_engine_worker_count_and_batch_size_gives_the_same_bytes(texts, tokenizer):
    common = [
        "corpus=text",
        "corpus.paths=[texts]",
        "corpus.document=line",
        f"tokenizer={tokenizer}",
        *SMALL,
        "corpus.shard_bytes=40000",
    ]
    found = []
    engines = [("serial", 1, "null"), ("threads", 1, "7"), ("threads", 2, "1"), ("threads", 4, "null"), ("processes", 2, "64")]
    for kind, workers, batch in engines:
        place = f"{kind}-{workers}-{batch}"
        outcome = ran(*common, f"engine={kind}", f"engine.workers={workers}", f"+engine.batch_size={batch}" if kind == "serial" else f"engine.batch_size={batch}", f"cache.dir={place}", f"output.dir=out-{place}")  # fmt: skip
        assert set(states(outcome).values()) == {"computed"}
        found.append(digests(outcome.folder))
    assert all(other == found[0] for other in found[1:])


def test_shards_leave_no_seams(texts):
    common = ["corpus=text", "corpus.paths=[texts]", "corpus.document=line", "tokenizer=bytes", *SMALL, "embedding=none"]
    one = ran(*common, "output.dir=one")
    many = ran(*common, "corpus.shard_bytes=3000", "output.dir=many")
    assert table(one.folder).equals(table(many.folder))


@pytest.mark.row("A15")
def test_a_damaged_file_is_set_aside_and_only_its_shard_is_computed_again(texts):
    common = ["corpus=text", "corpus.paths=[texts]", *SMALL, "corpus.shard_bytes=3000"]
    first = ran(*common, "output.dir=one")
    victim = sorted(Path("data/cache/window").glob("*/00000000.arrow"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    copy = victim.with_name("copy")
    copy.write_bytes(data)
    copy.replace(victim)
    cache._verified.clear()
    again = ran(*common, "output.dir=two")
    assert states(again)["window"] == "computed" and states(again)["encode"] == "cached"
    assert digests(first.folder) == digests(again.folder)
    assert list(Path("data/cache/quarantine").iterdir())


def test_a_damaged_output_is_written_again(at):
    outcome = ran(*SMALL)
    path = outcome.folder / "README.md"
    path.write_text("mine now")
    again = ran(*SMALL)
    assert again.published and path.read_text() != "mine now"


@pytest.mark.row("A17")
def test_a_damaged_manifest_of_a_stage_that_is_not_needed_is_told_once_and_set_aside(at, caplog):
    ran(*SMALL)
    (path,) = Path("data/cache/tokenize").glob("*/manifest.json")
    path.chmod(0o644)
    path.write_bytes(b"")
    for said in (1, 0):
        files._ignore.cache_clear()
        caplog.clear()
        ran(*SMALL, "window.context_length=12")
        assert sum("damaged and ignored" in message for message in caplog.messages) == said
    assert not path.exists() and [name for name in os.listdir("data/cache/quarantine") if "manifest.json" in name]
    assert all(problem is None for _, problem in cache.Cache.open(Path("data/cache")).verify())


@pytest.mark.row("A32")
def test_a_folder_that_is_not_ours_is_never_touched(at):
    folder = Path("outputs/sample")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="was not written by this pipeline"):
        ran(*SMALL)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"] and not Path("data/cache").exists()


def test_a_dataset_with_a_damaged_manifest_is_not_touched_and_not_called_foreign(at):
    path = ran(*SMALL).folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"sample", b"simple"))
    with pytest.raises(ConfigError, match=r"damaged or foreign manifest\.json.*nothing was touched"):
        ran(*SMALL)


@pytest.mark.parametrize("exchange", [True, False])
def test_what_a_run_that_died_had_moved_aside_returns(at, monkeypatch, exchange):
    """Killed between two renames, where the kernel cannot exchange two folders; notes of a person are in the older one."""
    ran(*SMALL)
    folder = Path("outputs/sample")
    (folder / "notes.txt").write_text("mine")
    aside = Path("outputs/.tmp/host~0~0~0/old/sample")
    monkeypatch.setattr(swap, "alive", lambda run: run.name != "host~0~0~0")
    aside.parent.mkdir(parents=True)
    folder.rename(aside)
    if not exchange:
        monkeypatch.setattr(swap.ctypes, "CDLL", lambda *args, **options: None)
    outcome = ran(*SMALL[:1], "window.stride=4", SMALL[2])
    assert outcome.published and (folder / "notes.txt").read_text() == "mine"
    assert not Path("outputs/.tmp").exists()


@pytest.mark.row("A32")
def test_a_dataset_that_cannot_be_replaced_stays(at, monkeypatch):
    digest = digests(ran(*SMALL).folder)
    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *args, **options: None)
    rename = os.rename

    def refuse(old, new):
        if Path(new) == Path("outputs/sample") and "old" in Path(old).parts:
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ResourceError, match="Input/output error"):
        ran(*SMALL[:1], "window.stride=4", SMALL[2])
    assert digests(Path("outputs/sample")) == digest and not Path("outputs/.tmp").exists()


def test_jobs_of_a_sweep_live_inside_the_output_and_survive_a_run_of_their_parent(at):
    ran(*SMALL, job="window.stride=8")
    ran(*SMALL)
    ran("window.context_length=8", *SMALL[2:])
    inside = Path("outputs/sample/window.stride=8")
    assert files.unseal(inside / "manifest.json") is not None
    assert files.unseal(Path("outputs/sample/manifest.json"))["config"]["window"]["context_length"] == 8
    assert not Path("outputs/.tmp").exists()


@pytest.mark.row("C9")
def test_more_context_than_corpus_is_an_input_error_with_both_numbers(at):
    Path("tiny.txt").write_text("only a few words here")
    with pytest.raises(InputError, match=r"corpus has \d+ tokens, one window needs 257; lower window.context_length"):
        ran("corpus=text", "corpus.paths=[tiny.txt]", "tokenizer=bytes")


def test_a_corpus_of_white_space_is_an_input_error_with_the_counts(at):
    Path("blank.txt").write_text(" \n\n ")
    with pytest.raises(InputError, match="0 usable documents"):
        ran("corpus=text", "corpus.paths=[blank.txt]")


@pytest.mark.row("A20")
def test_a_renamed_or_touched_corpus_is_a_cache_hit(texts):
    ran("corpus=text", "corpus.paths=[texts]", *SMALL, "name=x")
    texts.rename(texts.with_name("renamed"))
    (texts.with_name("renamed") / "a.txt").touch()
    assert set(states(ran("corpus=text", "corpus.paths=[renamed]", *SMALL, "name=x")).values()) == {"cached"}


@pytest.mark.row("A7")
def test_receipts_that_another_run_takes_away_at_once_cost_nothing(texts, monkeypatch):
    common = ["corpus=text", "corpus.paths=[texts]", *SMALL, "corpus.shard_bytes=40000"]
    expected = digests(ran(*common).folder)
    monkeypatch.setattr(cache.Entry, "_publish_receipt", lambda *arguments: None)
    assert digests(ran(*common, "cache.dir=other", "output.dir=out").folder) == expected


@pytest.mark.row("A22")
def test_times_of_files_and_of_the_clock_change_nothing(texts, monkeypatch):
    common = ["corpus=text", "corpus.paths=[texts]", *SMALL]
    now = digests(ran(*common).folder)
    real = time.time
    for stamp in (0, 4_070_908_800):  # 1970 and 2099, of the corpus and of all that is cached
        for path in (*texts.iterdir(), *Path("data/cache").rglob("*")):
            os.utime(path, (stamp, stamp))
        monkeypatch.setattr(time, "time", lambda: real() - 86_400)  # and the clock goes back by a day
        cache._verified.clear()
        again = ran(*common)
        assert set(states(again).values()) == {"cached"} and digests(again.folder) == now
        fresh = ran(*common, f"cache.dir=fresh-{stamp}", f"output.dir=out-{stamp}")
        assert digests(fresh.folder) == now


@pytest.mark.row("A30")
def test_a_stage_of_another_version_is_computed_again_and_those_before_it_are_not(at, monkeypatch):
    before = digests(ran(*SMALL).folder)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.window.VERSION", 999)
        newer = states(ran(*SMALL))
    assert newer["window"] == newer["embed"] == "computed" and newer["encode"] == newer["load"] == "cached"
    older = ran(*SMALL)
    assert set(states(older).values()) == {"cached"} and digests(older.folder) == before


@pytest.mark.row("A8")
def test_different_configurations_at_once_on_one_cache_give_what_each_gives_alone(texts):
    common = ["corpus=text", "corpus.paths=[texts]", "engine=serial", "corpus.shard_bytes=40000"]
    different = [
        [*SMALL, "tokenizer=bytes"],
        ["window.context_length=32", SMALL[2], "tokenizer=bytes"],
        [*SMALL, "tokenizer=chars"],
    ]
    configs = [composed(*common, *choices, f"output.dir=together-{i}") for i, choices in enumerate(different)]
    with ThreadPoolExecutor(3) as pool:
        together = [digests(outcome.folder) for outcome in pool.map(run, configs)]
    for i, choices in enumerate(different):
        assert digests(ran(*common, *choices, f"output.dir=alone-{i}", f"cache.dir=alone-cache-{i}").folder) == together[i]


@pytest.mark.row("A10")
@pytest.mark.parametrize("given", [["tokenizer.vocab_size=300"], ["tokenizer=bytes", "selection.duplicates=exact"]])
def test_the_estimate_comes_before_what_must_see_the_corpus_first(texts, monkeypatch, caplog, given):
    usage, told = shutil.disk_usage, []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    monkeypatch.setattr("pipeline.inputs.Line.fulfil", lambda *arguments: told.extend(caplog.messages) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ran("corpus=text", "corpus.paths=[texts]", "embedding=none", *given)
    assert any("this run needs about" in message for message in told)


@pytest.mark.row("A10")
def test_an_estimate_of_what_will_be_stored_warns_before_work_and_knows_what_is_there(texts, monkeypatch, caplog):
    common = [
        "corpus=text",
        "corpus.paths=[texts]",
        "tokenizer=bytes",
        "embedding=none",
        "window.stride=256",
        "corpus.shard_bytes=3000",
    ]
    free = [10**12]
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free[0]))
    rows = ran(*common, "cache.dir=roomy").rows
    sizes = [
        sum(p.stat().st_size for p in Path("roomy", stage).rglob("*.arrow"))
        for stage in ("load", "tokenize", "encode", "window")
    ]
    for part, said in ((0.8, True), (1.05, False)):
        caplog.clear()
        free[0] = max(int(part * sum(sizes[:3])), sizes[3])
        ran(*common, f"cache.dir=tight-{part}", f"output.dir=out-{part}")
        assert any("this run needs about" in message for message in caplog.messages) == said
    free[0] = 1000
    with pytest.raises(ResourceError, match="this run needs about"):
        ran(*common, "cache.dir=roomy", "window.context_length=512")
    (manifest,) = Path("roomy/window").glob("*/manifest.json")
    entry, notes = (
        cache.Entry(cache.Cache(Path("roomy"), "x"), "window", manifest.parent.name, {}),
        files.unseal(manifest)["files"],
    )
    manifest.unlink()
    for name, note in notes.items():
        entry._publish_receipt(name, note)
    assert ran(*common, "cache.dir=roomy").rows == rows  # stored as far as it goes: nothing more is needed


@pytest.mark.row("A10")
def test_a_dataset_that_must_be_copied_to_a_full_disk_is_refused_before_a_byte_is(at, monkeypatch):
    """Cache and output on two disks, as their device numbers tell."""
    ran(*SMALL)
    cached, stat = os.path.abspath("data/cache"), Path.stat

    def elsewhere(path, **options):
        found = stat(path, **options)
        return os.stat_result((*found[:2], found.st_dev + (os.path.abspath(path).startswith(cached)), *found[3:]))

    monkeypatch.setattr(Path, "stat", elsewhere)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10))
    with pytest.raises(ResourceError, match="'out': this run needs about"):
        ran(*SMALL, "output.dir=out")
    assert not Path("out").exists() and not Path(".tmp").exists()


@pytest.mark.row("A10")
def test_a_disk_without_room_for_a_dataset_is_looked_at_before_what_was_written_goes(at, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.swap.link", full)
    monkeypatch.setattr(
        "pipeline.errors._free", lambda _: f" ({sum(map(Path.is_dir, Path('outputs/.tmp').rglob('new')))} there)"
    )
    with pytest.raises(ResourceError, match=r"'outputs/sample' \(1 there\)"):
        ran(*SMALL)
    assert not Path("outputs/.tmp").exists()


def test_a_run_imports_neither_pandas_nor_torch_nor_transformers_nor_datasets(at):
    program = (
        "import sys; from conftest import composed; from pipeline.run import run; run(composed('embedding.embedding_dim=4'));"
        "print(*sorted({'pandas', 'torch', 'transformers', 'datasets', 'awkward'} & set(sys.modules)))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# -- the facts of the chapter -----------------------------------------------------------------------------


@pytest.fixture
def verdict(assets, at):
    return ["corpus=verdict", "embedding=none"]


def test_gpt2_counts_5145_tokens_and_these_windows(verdict):
    one = ran(*verdict, "tokenizer=gpt2", "window.context_length=4", "window.stride=1")
    assert one.ledger["encode"]["tokens"] == 5145 and one.rows == 5141
    rows = table(one.folder)
    assert rows["input_ids"][0].as_py() == [40, 367, 2885, 1464] and rows["target_ids"][0].as_py() == [367, 2885, 1464, 1807]
    assert rows["input_ids"][4].as_py() == [1807, 3619, 402, 271]
    assert ran(*verdict, "tokenizer=gpt2", "window.context_length=256", "window.stride=128").rows == 39
    assert ran(*verdict, "tokenizer=gpt2", "window.context_length=1024", "window.stride=1024").rows == 5


def test_bert_counts_5212_tokens_that_begin_as_in_the_chapter(verdict):
    outcome = ran(*verdict, "tokenizer=bert")
    assert outcome.ledger["tokenize"]["tokens"] == 5212
    vocabulary = json.loads((outcome.folder / "vocabulary.json").read_text("utf-8"))
    assert len(vocabulary) == 30522
    named = {"women": 2308, "[unused452]": 457, "sponsorship": 12026, "devout": 26092, "1950s": 4856}
    assert {token: vocabulary[token] for token in named} == named
    reverse = {i: token for token, i in vocabulary.items()}
    first = table(outcome.folder)["input_ids"][0].as_py()[:10]
    assert [reverse[i] for i in first] == "i had always thought jack gi ##sb ##urn rather a".split()


def test_bert_with_special_tokens_gives_the_tensors_of_the_chapter(verdict):
    outcome = ran(*verdict, "tokenizer=bert", "window=document", "window.truncate=true")
    rows = table(outcome.folder)
    assert rows.column_names == ["input_ids", "attention_mask", "token_type_ids"] and rows.num_rows == 1
    assert all(len(rows[name][0]) == 512 for name in rows.column_names)
    assert rows["input_ids"][0].as_py()[:10] == [101, 1045, 2018, 2467, 2245, 2990, 21025, 19022, 14287, 2738]
    assert rows["input_ids"][0].as_py()[-1] == 102 and set(rows["attention_mask"][0].as_py()) == {1}


def test_words_count_4690_tokens(verdict):
    assert ran(*verdict, "tokenizer=words").ledger["tokenize"]["tokens"] == 4690


@pytest.mark.slow
def test_the_embedding_layer_for_bert_has_30522_rows_of_768(assets, at):
    from safetensors.numpy import load_file

    outcome = ran("corpus=verdict", "tokenizer=bert", "embedding.embedding_dim=768", "embedding.vectors=never")
    weight = load_file(outcome.folder / "embeddings.safetensors")["token_embeddings"]
    assert weight.shape == (30522, 768) and abs(float(weight.std()) - 1) < 0.01


def test_words_by_first_appearance_after_pad_and_unk(at):
    Path("love.txt").write_text("I love learning because I love new things")
    outcome = ran("corpus=text", "corpus.paths=[love.txt]", "tokenizer=words", "tokenizer.lowercase=true", "window.context_length=7", "embedding=none")  # fmt: skip
    row = table(outcome.folder)
    assert row["input_ids"][0].as_py() + row["target_ids"][0].as_py()[-1:] == [2, 3, 4, 5, 2, 3, 6, 7]


def test_the_rat_of_rome_gives_eight_growing_pairs(at):
    Path("rato.txt").write_text("O rato roeu a roupa do rei de Roma")
    outcome = ran("corpus=text", "corpus.paths=[rato.txt]", "tokenizer=words", "window=prefix", "embedding=none")
    words = {i: w for w, i in json.loads((outcome.folder / "vocabulary.json").read_text("utf-8")).items()}
    rows = table(outcome.folder)
    pairs = [
        ([words[i] for i in a], words[b[0]])
        for a, b in zip(rows["input_ids"].to_pylist(), rows["target_ids"].to_pylist(), strict=True)
    ]
    text = "O rato roeu a roupa do rei de Roma".split()
    assert pairs == [(text[:n], text[n]) for n in range(1, 9)]


@pytest.mark.parametrize("choice", sorted(f"{p.parent.name}={p.stem}" for p in (ROOT / "conf").glob("*/*.yaml")))
def test_every_choice_under_conf_composes_and_names_no_code(choice):
    group, name = choice.split("=")
    text = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    assert "_target_" not in text
    composed(f"+{choice}" if group == "experiment" else choice)


def test_what_a_person_put_into_a_dataset_stays_when_it_is_replaced(at):
    folder = ran(*SMALL).folder
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.svg").write_text("<svg/>")
    (folder / "latest").symlink_to("data-00000000.arrow")
    ran("window.context_length=8", *SMALL[2:])
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "plots" / "loss.svg").read_text() == "<svg/>"
    assert (folder / "latest").is_symlink()


@pytest.mark.row("A8")
@pytest.mark.parametrize("error", [None, FileNotFoundError, ConfigError])
def test_what_a_person_put_into_a_dataset_stays_where_another_run_replaces_it_meanwhile(at, monkeypatch, error):
    folder, carry, carried = ran(*SMALL).folder, swap.carry, []
    (folder / "notes.txt").write_text("mine")

    def as_of_a_folder_being_removed(old, new):
        carried.append(new)
        if len(carried) > 1:
            return carry(old, new)
        shutil.copytree(folder, at / "another")  # with the notes
        shutil.rmtree(folder)
        os.rename(at / "another", folder)
        if error:
            raise error

    monkeypatch.setattr(swap, "carry", as_of_a_folder_being_removed)
    ran("window.context_length=8", *SMALL[2:])
    assert len(carried) == 2 and (folder / "notes.txt").read_text() == "mine"


@pytest.fixture(params=["one step", "three steps"])
def meanwhile(request, at, monkeypatch):
    """Does something once, in the moment before the next dataset takes its place."""
    if request.param == "three steps":
        monkeypatch.setattr(swap.ctypes, "CDLL", lambda *args, **options: None)
    exchange, todo = swap.exchange, []

    def later(*args):
        while todo:
            todo.pop()()
        exchange(*args)

    monkeypatch.setattr(swap, "exchange", later)
    return todo.append


@pytest.mark.row("A8")
def test_what_comes_into_a_dataset_in_the_moment_before_it_is_replaced_stays(meanwhile):
    folder = ran(*SMALL).folder
    ran(*SMALL, job="window.stride=8")
    (folder / "tokenizer" / "mine.txt").write_text("first")
    stayed = digests(folder / "window.stride=8")

    def come():
        ran(*SMALL, "window.context_length=12", job="window.stride=8")
        ran(*SMALL, "window.context_length=14", job="window.stride=9")
        os.replace(shutil.copy(folder / "README.md", "n"), folder / "notes.txt")
        Path("n").write_text("second")
        os.utime("n", (2**32, 2**32))
        os.replace("n", folder / "tokenizer" / "mine.txt")

    meanwhile(come)
    ran("window.context_length=8", *SMALL[2:])
    lengths = [files.unseal(place / "manifest.json")["config"]["window"]["context_length"] for place in jobs(folder)]
    assert lengths == [8, 12, 14] and digests(folder / "window.stride=8") != stayed and (folder / "notes.txt").is_file()
    assert (folder / "tokenizer" / "mine.txt").read_text() == "second" and not list(Path().rglob(".tmp"))
    assert not ran(*SMALL, "window.context_length=12", job="window.stride=8").published  # it is whole
    assert not ran(*SMALL, "window.context_length=14", job="window.stride=9").published


def jobs(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.glob("window.stride=*"))]


@pytest.mark.row("A8")
def test_a_job_whose_sweep_s_folder_is_replaced_while_its_dataset_is_built_begins_anew(meanwhile):
    folder = ran(*SMALL).folder
    meanwhile(lambda: ran("window.context_length=8", *SMALL[2:]))
    ran(*SMALL, job="window.stride=8")
    assert not ran(*SMALL, job="window.stride=8").published and len(jobs(folder)) == 2
    assert not ran("window.context_length=8", *SMALL[2:]).published and not list(Path().rglob(".tmp"))


@pytest.mark.row("A1", "A8")
def test_a_kill_before_a_replaced_folder_is_emptied_loses_nothing_of_what_had_come(meanwhile, monkeypatch):
    folder = ran(*SMALL).folder
    meanwhile(lambda: (folder / "notes.txt").write_text("mine"))
    with monkeypatch.context() as killed:
        killed.setattr(swap, "clear", lambda place, home=None: None)
        ran("window.context_length=8", *SMALL[2:])
    (left,) = Path("outputs/.tmp").iterdir()
    left.rename(left.with_name("host~0~0~0"))
    assert not (folder / "notes.txt").exists()
    monkeypatch.setattr(swap, "alive", lambda run: run.name != "host~0~0~0")
    assert not ran("window.context_length=8", *SMALL[2:]).published
    assert (folder / "notes.txt").read_text() == "mine" and not Path("outputs/.tmp").exists()


@pytest.mark.row("A10")
def test_where_no_name_can_be_given_any_more_nothing_is_left_of_the_first_dataset(at, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    make = swap.make

    def then_full(folder):
        make(folder)
        if folder.name == "old":
            monkeypatch.setattr(
                "os.rename", lambda old, new, rename=os.rename: full() if "outputs/sample" in str(new) else rename(old, new)
            )
            monkeypatch.setattr(swap.ctypes, "CDLL", lambda *args, **options: None)

    monkeypatch.setattr(swap, "make", then_full)
    with pytest.raises(ResourceError, match="No space left"):
        ran(*SMALL)
    assert not Path("outputs/.tmp").exists() and not Path("outputs/sample").exists()


@pytest.mark.row("A16")
@pytest.mark.parametrize("name", ["state.json", "data-00000000.arrow", "tokenizer/vocabulary.json"])
def test_a_folder_in_place_of_a_file_of_a_dataset_goes_where_it_is_empty_and_is_named_where_it_is_not(at, name):
    folder = ran(*SMALL, "tokenizer=bytes").folder
    name = name if (folder / name).exists() else "tokenizer/" + sorted(os.listdir(folder / "tokenizer"))[0]
    before = digests(folder)
    (folder / name).unlink()
    (folder / name / "deeper").mkdir(parents=True)
    assert ran(*SMALL, "tokenizer=bytes").published and digests(folder) == before and not Path("outputs/.tmp").exists()
    (folder / name).unlink()
    (folder / name / "deeper").mkdir(parents=True)
    (folder / name / "deeper" / "mine.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"deeper' holds 'mine\.txt'.*nothing was replaced"):
        ran(*SMALL, "tokenizer=bytes")
    assert (folder / name / "deeper" / "mine.txt").read_text() == "years of work"


@pytest.mark.row("A8")
def test_a_record_is_put_into_the_folder_that_has_just_replaced_the_one_that_was_meant(at, monkeypatch):
    folder, replace = ran(*SMALL).folder, os.replace
    told = []

    def gone_once(old, new):
        if Path(new).name == "run.json" and not told:
            told.append(new)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", new)
        replace(old, new)

    monkeypatch.setattr("os.replace", gone_once)
    (folder / "run.json").unlink()
    ran(*SMALL)
    assert told and (folder / "run.json").is_file()


def test_a_person_s_file_within_a_split_stays_and_one_in_the_way_of_the_new_dataset_is_not_lost(at):
    folder = ran(*SMALL, "split.validation=0.3", "window.context_length=4", "window.stride=4").folder
    (folder / "train" / "notes.txt").write_text("mine")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("mine too")
    ran(*SMALL, "split.validation=0.4", "window.context_length=4", "window.stride=4")
    assert (folder / "train" / "notes.txt").read_text() == "mine" and (folder / ".git" / "config").read_text() == "mine too"
    ran(*SMALL, "embedding=none")
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["notes.txt"]
    (folder / "embeddings.safetensors").write_text("mine")
    before = digests(folder)
    with pytest.raises(ConfigError, match=r"holds 'embeddings\.safetensors', which this pipeline did not write"):
        ran(*SMALL)
    assert digests(folder) == before and not Path("outputs/.tmp").exists()


def test_no_dataset_is_put_where_datasets_are_built(at):
    with pytest.raises(ConfigError, match=r"'outs/\.tmp' is where datasets are built"):
        ran(*SMALL, "output.dir=outs/.tmp")


@pytest.mark.row("A28")
def test_a_folder_beside_the_datasets_that_no_run_made_is_never_removed(at):
    for name in ("precious", "machine~1~2~3", "0123456789abcdef~1~2~3"):
        (Path("outputs/.tmp") / name).mkdir(parents=True)
        (Path("outputs/.tmp") / name / "thesis.txt").write_text("mine")
        os.utime(Path("outputs/.tmp") / name, (0, 0))
    ran(*SMALL)
    assert sorted(path.name for path in Path("outputs/.tmp").iterdir()) == ["machine~1~2~3", "precious"]


def test_a_damaged_file_of_a_dataset_is_mended_aloud(at, caplog):
    file = ran(*SMALL).folder / "data-00000000.arrow"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole + b"x")
    assert ran(*SMALL).published and file.read_bytes() == whole
    (said,) = [message for message in caplog.messages if "damaged" in message]
    assert said.startswith(f"{str(file)!r} is damaged: expected {len(whole)} bytes, sha256 ") and "written again" in said


def test_a_sweep_is_not_written_into_a_folder_that_is_not_ours(at):
    Path("o").mkdir()
    Path("o/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not written by this pipeline"):
        ran(*SMALL, "output.dir=o", job="window.stride=8")
    assert [p.name for p in Path("o").iterdir()] == ["mine.txt"]


def test_a_fast_tokenizer_that_differs_on_this_corpus_is_never_served(at, monkeypatch, caplog):
    differing = steps.tokenizer.Proof(documents=3, bytes=100, differing=1, seconds=0.0)
    monkeypatch.setattr(steps, "_prove", lambda *args: differing)
    for _ in range(2):  # the second run finds what the first one made with the reference
        outcome = ran(*SMALL)
        manifest = files.unseal(outcome.folder / "manifest.json")
        assert manifest["tokenizer"]["backend"] == "hf" and manifest["config"]["tokenizer"]["backend"] == "auto"
    assert "gives other IDs than the reference in 1 of 3 documents" in caplog.text
    assert len(list(Path("data/cache/tokenize").glob("*/manifest.json"))) == 1
    assert states(ran(*SMALL, "tokenizer.backend=hf"))["tokenize"] == "cached"


def test_names_of_shards_sort_as_their_numbers_do():
    names = [phase.file_name(index) for index in (0, 9, 10, 99_999, 100_000, 12_345_678)]
    assert names == sorted(names)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="needs a libc that can exchange two names")
def test_of_two_first_datasets_at_once_neither_is_away_for_a_moment(at, monkeypatch):
    new, old, exists = at / "workshop/new/x", at / "x", os.path.lexists
    (new / "ours").mkdir(parents=True)

    def another_comes(path):
        (old / "theirs").mkdir(parents=True, exist_ok=True)
        return exists(path)

    monkeypatch.setattr("os.path.lexists", another_comes)
    monkeypatch.setattr("os.rename", lambda *_: pytest.fail("one was taken aside"))
    swap.exchange(new, old)
    assert (old / "ours").is_dir() and (new / "theirs").is_dir()


@pytest.mark.row("C24")
def test_the_card_shows_names_of_files_as_text(at):
    Path("a|b <script>alert(1)<script>`x`.txt").write_text("the ferry was late, said the clerk. " * 99)
    card = (ran("corpus=text", "corpus.paths=['*.txt']", *SMALL).folder / "README.md").read_text()
    assert "<script>" not in card and "`x`" not in card
    (row,) = [line for line in card.splitlines() if "alert" in line]
    assert row.count("|") == 4
