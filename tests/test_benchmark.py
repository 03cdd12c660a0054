import hashlib
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import composed
from pipeline.run import run as prepare_dataset
from scripts.benchmark import __main__ as door
from scripts.benchmark import environments, loaders, report, rounds, stages
from scripts.benchmark.corpora import prepare
from scripts.benchmark.environments import PEERS, BenchmarkError, environment, requirements
from scripts.benchmark.peers.protocol import digest
from scripts.benchmark.rounds import COMMANDS, Bench, Run, choose, estimate, measure

TEXTS = ["one\nline", "", 'quotes " and \\', "não é ASCII 🎈", *(f"document {n}" for n in range(20))]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.parquet"
    pq.write_table(pa.table({"text": TEXTS, "other": range(len(TEXTS))}), path)
    return path


def documents(corpus):
    lines = [json.loads(line)["text"] for line in corpus.jsonl.read_text(encoding="utf-8").split("\n")[:-1]]
    assert pq.read_table(corpus.parquet)["text"].to_pylist() == lines
    assert (corpus.documents, corpus.text_bytes) == (len(lines), sum(len(line.encode()) for line in lines))
    return lines


def run(command, number=1, wall=1.0, corpus="200mb", peak=100e6, disk=1000, stages=None):
    return Run(command, corpus, number, wall, wall, int(peak), disk, stages or {})


def bench_of(tmp_path, *runs, **digests):
    return Bench(tmp_path, tmp_path, runs=list(runs), digests={"200mb": digests})


# -- corpora ----------------------------------------------------------------------------------------------


def test_a_corpus_holds_the_documents_of_its_source_in_both_formats(source, tmp_path):
    assert documents(prepare("small", [source], tmp_path / "corpora")) == TEXTS


def test_every_copy_holds_all_documents_in_an_order_of_its_own(source, tmp_path):
    found = documents(prepare("big", [source], tmp_path / "corpora", copies=3))
    copies = [found[at : at + len(TEXTS)] for at in range(0, len(found), len(TEXTS))]
    assert [sorted(copy) for copy in copies] == [sorted(TEXTS)] * 3
    assert len({tuple(copy) for copy in copies} | {tuple(TEXTS)}) == 4
    assert documents(prepare("big", [source], tmp_path / "again", copies=3)) == found


def test_a_corpus_is_written_once_and_again_when_its_source_changed(source, tmp_path):
    first = prepare("small", [source], tmp_path / "corpora")
    first.jsonl.write_text("mark")
    prepare("small", [source], tmp_path / "corpora")
    assert first.jsonl.read_text() == "mark"
    pq.write_table(pa.table({"text": ["changed"]}), source)
    assert documents(prepare("small", [source], tmp_path / "corpora")) == ["changed"]


def test_a_rehearsal_takes_the_first_documents(source, tmp_path):
    assert documents(prepare("few", [source, source], tmp_path / "corpora", most=30)) == (TEXTS + TEXTS)[:30]


def test_jsonl_and_plain_text_of_ones_own_are_taken(tmp_path):
    lines, plain = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text('{"text": "from\\nJSON"}\n', encoding="utf-8")
    plain.write_text("\nfirst\nblock\n\n \nsecond block", encoding="utf-8")
    assert documents(prepare("own", [lines, plain], tmp_path / "corpora")) == ["from\nJSON", "first\nblock\n", "second block"]


def test_an_empty_input_is_an_error_and_leaves_nothing_to_reuse(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for _ in range(2):
        with pytest.raises(BenchmarkError, match="no document"):
            prepare("own", [tmp_path / "empty.txt"], tmp_path / "corpora")


# -- environments -----------------------------------------------------------------------------------------


def test_every_peer_that_is_run_says_what_it_needs():
    for command in COMMANDS:
        if command.peer:
            assert requirements(PEERS / f"{command.peer}.py")
    assert requirements(PEERS / "probe.py") == ["pyarrow", "numpy", "gigatoken>=0.10,<0.11"]
    assert requirements(PEERS / "protocol.py") == []


def test_an_environment_is_made_once_and_again_when_its_needs_change(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        environments, "_quietly", lambda command: made.append(command) or (tmp_path / "probe").mkdir(exist_ok=True)
    )
    assert (
        environment(PEERS / "probe.py", tmp_path)
        == environment(PEERS / "probe.py", tmp_path)
        == tmp_path / "probe" / "bin" / "python"
    )
    assert len(made) == 2 and made[1][-3:] == requirements(PEERS / "probe.py") and "constraints.txt" in made[1][-4]
    monkeypatch.setattr(environments, "requirements", lambda script: ["something-else"])
    environment(PEERS / "probe.py", tmp_path)
    assert len(made) == 4 and made[3][-1] == "something-else"


def test_a_failed_install_is_told_in_the_installers_last_words():
    with pytest.raises(BenchmarkError, match=r"^no such thing$"):
        environments._quietly([sys.executable, "-c", "import sys; sys.exit('much\\nno such thing\\n')"])


# -- rounds -----------------------------------------------------------------------------------------------


def test_a_warm_run_brings_its_cold_one_and_unknown_names_are_refused():
    assert [c.name for c in choose("ours-warm,probe", 0)] == ["probe", "ours", "ours-warm"]
    with pytest.raises(BenchmarkError, match="--only datatrov: known are probe"):
        choose("datatrov", 0)


def test_the_largest_corpus_is_for_ours_and_the_probe_unless_others_are_named():
    assert {c.peer for c in choose(None, 2 << 30)} == {None, "probe"}
    assert choose(None, 200_000_000) == list(COMMANDS)
    assert [c.name for c in choose("datatrove", 2 << 30)] == ["datatrove"]


def test_an_estimate_grows_with_text_and_rounds():
    assert estimate(COMMANDS, 10**6, 1) * 4 == pytest.approx(estimate(COMMANDS, 10**6, 4))
    assert estimate(COMMANDS, 10**9, 1) > 10 * estimate(COMMANDS, 10**6, 1)


@pytest.mark.slow
def test_a_process_is_measured_with_its_children_but_without_the_memory_of_its_parent(tmp_path):
    ballast = np.ones(400_000_000, np.uint8)
    child = "data = b'1' * 120_000_000; print(sum(i for i in range(10 ** 6)))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); sys.exit(3)"
    found = measure([sys.executable, "-c", code], tmp_path / "a.log", dict(os.environ))
    assert ballast.all() and 120e6 < found["peak"] < 300e6
    assert found["code"] == 3 and found["wall"] > 0 and found["cpu"] > 0
    assert (tmp_path / "a.log").read_text() == "499999500000\n" and [p.name for p in tmp_path.iterdir()] == ["a.log"]


def test_what_a_command_leaves_running_is_awaited_and_counted(tmp_path):
    child = "import time; time.sleep(0.3); data = b'1' * 120_000_000; print('done', flush=True)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    found = measure([sys.executable, "-W", "ignore", "-c", code], tmp_path / "a.log", dict(os.environ))
    assert found["peak"] > 120e6 and (tmp_path / "a.log").read_text() == "done\n"


def test_a_command_runs_without_foreign_settings_and_keeps_its_caches_in_its_output(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    bench = Bench(tmp_path, tmp_path / "assets")
    found = bench.variables(COMMANDS[0])
    assert "elsewhere" not in found.values()
    assert found["HF_HOME"] == str(tmp_path / "out" / "probe" / "hf")


def test_a_file_with_two_names_is_counted_once_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"678")
    assert rounds.disk(tmp_path) == 8


def test_our_ids_are_found_through_the_manifest(tmp_path):
    encode = tmp_path / "cache" / "encode" / "k1"
    encode.mkdir(parents=True)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").write_text('{"keys": {"encode": "k1"}}')
    for name, lists in (("00001", [[3]]), ("00000", [[1, 2], []]), ("documents", [[9]])):
        batch = pa.record_batch({"input_ids": pa.array(lists, pa.list_(pa.uint16()))})
        with pa.OSFile(str(encode / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
    assert rounds.our_digest(tmp_path) == {"tokens": 3, "sha256": hashlib.sha256(b"\1\0\2\0\3\0").hexdigest()}


def test_a_digest_depends_on_the_ids_alone_and_never_wraps():
    assert digest([np.array([1, 2], np.int64), np.array([], np.int32), np.array([3], ">u4")]) == digest(
        [np.array([1, 2, 3], np.uint16)]
    )
    with pytest.raises(OverflowError):
        digest([np.array([65536])])


def test_a_failing_command_is_left_out_with_its_reason_and_the_others_go_on(tmp_path, monkeypatch):
    corpus = prepare("small", [_plain(tmp_path)], tmp_path / "corpora")
    bench = Bench(tmp_path / "work", tmp_path)
    bench.work.mkdir()

    def attempt(command, corpus, number):
        if command.name == "ours" and number == 2:
            raise BenchmarkError("exit 4: broken")
        return run(command.name, number, corpus=corpus.name)

    monkeypatch.setattr(bench, "run", attempt)
    monkeypatch.setattr(bench, "check", lambda command, corpus: {"tokens": 1, "sha256": "a"})
    bench.rounds(corpus, choose("probe,ours,ours-warm", 0), 3, tmp_path / "results.json")
    assert [(r.round, r.command) for r in bench.runs] == [
        (1, "probe"),
        (1, "ours"),
        (1, "ours-warm"),
        (2, "probe"),
        (3, "probe"),
    ]
    assert bench.left_out == {"ours": "exit 4: broken"}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert len(saved["runs"]) == 5 and saved["machine"]["cores"] and saved["versions"]["ours"]["pyarrow"]


def _plain(folder):
    (folder / "plain.txt").write_text("words\n")
    return folder / "plain.txt"


# -- report -----------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds(tmp_path):
    walls = {"probe": [1.0, 10.0, 2.0], "ours": [2.0, 10.0, 3.0]}
    bench = bench_of(
        tmp_path, *(run(name, n, wall) for name, row in walls.items() for n, wall in enumerate(row)), run("ours", 9, 99)
    )
    assert report.ratio(bench, "200mb", "ours", "probe") == report.Spread(1.5, 1.0, 2.0)
    assert report.ratio(bench, "200mb", "datatrove", "probe") is None
    assert str(report.Spread(1.5, 1.0, 234.5)) == "1.50 (1.00–234)"


def test_the_table_tells_whose_ids_differ_from_ours(tmp_path):
    right, wrong = {"tokens": 500, "sha256": "a"}, {"tokens": 500, "sha256": "b"}
    runs = [run(name) for name in ("probe", "ours", "datatrove", "datasets-bert")]
    bench = bench_of(tmp_path, *runs, **{"probe": right, "ours": right, "datatrove": wrong, "datasets-bert": wrong})
    rows = {row[0]: row for row in report.table(bench, "200mb")}
    assert [rows[name][-1] for name in rows] == ["equal", "equal", "DIFFER", "equal"]
    assert rows["ours"][1:3] == ("1.00 (1.00–1.00)", "1.00 (1.00–1.00)") and rows["ours"][5:7] == ("100", "2.00")
    assert all(len(row) == len(report.HEADINGS) for row in rows.values())


def test_what_the_cache_keeps_is_told_per_token(tmp_path):
    bench = bench_of(tmp_path, run("ours", stages={"load": 2500, "encode": 1000}), ours={"tokens": 500, "sha256": "a"})
    assert [row[:3] for row in report.kept(bench, "200mb")] == [("ours", "load", "5.00"), ("ours", "encode", "2.00")]


def test_aims_are_held_against_what_was_measured(tmp_path):
    runs = [run("probe", wall=1.0), run("ours", wall=1.8), run("datatrove", wall=60.0), run("ours-warm", wall=1.0)]
    runs += [run("ours", wall=0.9, corpus="20mb", peak=60e6), run("ours", wall=10.8, corpus="2gb", peak=110e6)]
    found = {aim.text: aim for aim in report.aims(bench_of(tmp_path, *runs), {"2gb": 2000, "20mb": 20, "200mb": 200})}
    missed = {text for text, aim in found.items() if not aim.met}
    assert missed == {"200mb: time of ours over probe", "peak of ours, the largest over the smallest of all sizes"}
    assert found["200mb: time of datatrove over ours"].measured == pytest.approx(60 / 1.8)
    assert found["seconds per byte of ours, the upper step over the lower"].measured == pytest.approx(1.0)
    assert str(found["200mb: time of ours over probe"]) == "MISSED 200mb: time of ours over probe: 1.80 (at most 1.70)"


def test_no_figures_make_no_aims_and_no_rows(tmp_path):
    empty = Bench(tmp_path, tmp_path)
    assert report.aims(empty, {"20mb": 20}) == [] and report.table(empty, "20mb") == []


@pytest.mark.slow
def test_the_plot_shows_every_command_that_ran_beside_the_probe(tmp_path):
    pytest.importorskip("matplotlib")
    corpus = prepare("200mb", [_plain(tmp_path)], tmp_path / "corpora")
    bench = bench_of(tmp_path, run("probe"), run("ours", wall=1.5), run("datatrove", wall=60))
    assert report.plot(bench, [corpus], tmp_path / "ratios.svg")
    assert not report.plot(Bench(tmp_path, tmp_path), [corpus], tmp_path / "none.svg")
    assert (tmp_path / "ratios.svg").stat().st_size and not (tmp_path / "none.svg").exists()


def test_stages_are_set_against_what_their_work_hash_and_write_take_alone():
    told = [
        {"stage": "load", "seconds": 2.0, "bytes": 100},
        {"stage": "tokenize", "seconds": 4.0, "bytes": 50},
        {"stage": "window", "seconds": 3.0, "bytes": 200},
        {"stage": "embed", "seconds": 0.0, "bytes": 0},
    ]
    rows = stages.table(
        10.0, told, {"parse": 0.5, "tokenize": 1.0, "copy": 400.0, "hash": 200.0, "write": 100.0, "start": 0.25}, 50
    )
    by_stage = {row[0]: row[1:4] for row in rows}
    assert by_stage == {
        "load": ("2.00", "2.00", "1.00"),
        "tokenize": ("4.00", "1.75", "2.29"),
        "window": ("3.00", "3.50", "0.86"),
        "the rest": ("1.00", "0.50", "2.00"),
        "all": ("10.0", "7.75", "1.29"),
    }
    assert all(len(row) == len(stages.HEADINGS) for row in rows)


# -- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sizes", "3mb"], "--sizes 3mb: known are 20mb, 200mb, 2gb"),
        (["--sizes", "20mb"], "bench-20mb.parquet is not in the offline mirror"),
        (["--input", "nowhere.txt"], "--input nowhere.txt is not a file"),
        (["--only", "nothing"], "--only nothing: known are"),
    ],
)
def test_what_is_missing_or_misspelt_ends_with_one_line_and_code_2(arguments, told, tmp_path, capsys):
    (tmp_path / "tokenizers").mkdir()
    assert door.main([*arguments, "--assets", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("error:") == 1


def test_without_the_offline_mirror_it_says_how_to_name_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    assert door.main(["--work", str(tmp_path)]) == 2
    assert "PIPELINE_ASSETS" in capsys.readouterr().err


def test_the_help_names_every_command():
    about = door.parser().format_help()
    assert all(command.name in about for command in COMMANDS)


# -- loaders


def test_ratios_of_loaders_are_taken_within_a_round():
    rates = {"ours 8 0": (4e6, 90e6, 20e6), "memmap 8 0": (2e6, 30e6, 10e6)}
    results = {name: [{"rate": rate, "first": 0.5} for rate in each] for name, each in rates.items()}
    assert loaders.rows(results, ["ours", "memmap"], [(8, 0)]) == [
        ["ours", "8", "0", 20.0, 2.0, 0.5],
        ["memmap", "8", "0", 10.0, 1.0, 0.5],
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_loaders_that_need_no_environment_give_the_same_windows_and_a_table(at, capsys):
    prepare_dataset(composed("embedding=none", "window.context_length=32", "window.stride=16"))
    words = ["outputs/sample", "--only", "ours,memmap", "--rounds", "1", "--seconds", "0.1", "--workers", "0"]
    assert loaders.main([*words, "--batches", "4"]) == 0
    told = capsys.readouterr().out
    assert "windows of 32, all the same" in told and told.count("memmap") == 2
    assert loaders.main(["nowhere"]) == 2
