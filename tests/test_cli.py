"""What a person sees: the command line as real processes where it must be, as functions where it can be."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, composed
from pipeline import balance, cli, console, tools
from pipeline.files import seal, unseal
from pipeline.run import run

TINY = ["tokenizer=bytes", "embedding=none", "window.context_length=16"]
PIPELINE = [sys.executable, "-m", "pipeline"]
CALM = "Interrupted. What is finished is kept; rerun the same command to continue.\n"


def ran(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PIPELINE, *arguments], capture_output=True, text=True, timeout=60, **settings)


# -- real processes ---------------------------------------------------------------------------------------


def test_help_names_every_choice_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['pipeline', '--help']\nfrom pipeline.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    *text, modules = found.stdout.splitlines()
    assert not {"hydra", "omegaconf", "pyarrow", "numpy", "torch", "rich"} & set(modules.split())
    groups = re.sub(r"\n {4,}", " ", "\n".join(text)).splitlines()  # long lists are folded
    for choice in (p for p in (ROOT / "conf").glob("*/*.yaml") if p.stem != "default"):
        line = next(line for line in groups if line.startswith(f"  {choice.parent.name} "))
        assert choice.stem in line
    assert sum(line.startswith("  python -m pipeline ") for line in text) == 5
    assert max(map(len, text)) <= 120


def test_a_run_ends_with_the_path_on_stdout_and_logs_on_stderr_and_again_computes_nothing(at):
    first, second = ran(*TINY), ran(*TINY)
    for found in (first, second):
        assert found.returncode == 0
        assert found.stdout.splitlines()[-2:] == ["its page: outputs/sample/report.html", "outputs/sample"]
        assert "\x1b" not in found.stdout + found.stderr
    assert "encode" in first.stdout and "embedding" not in first.stdout
    assert "computed" in first.stdout and "tokenize: " in first.stderr
    assert "computed" not in second.stdout and "cached" in second.stdout and second.stderr == ""


@pytest.mark.row("C25", "C26")
def test_C25_and_C26_a_failing_job_of_a_sweep_stops_no_other_and_what_is_done_is_not_done_again(at):
    found = ran("-m", *TINY, "window.stride=8,0,16")
    assert found.returncode == 2 and found.stdout.splitlines()[-1] == "outputs/sample"
    assert "failed (2): window.stride=0 is outside" in found.stdout.replace("\n", "")
    assert "Traceback" not in found.stderr
    assert {p.name for p in (at / "outputs/sample").iterdir()} == {"window.stride=8", "window.stride=16", "sweep.html"}
    again = ran("-m", *TINY, "window.stride=8,16")
    assert again.returncode == 0 and again.stdout.count("all cached") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["A4-SIGINT", "A5-SIGTERM"])
@pytest.mark.parametrize("sweep", [[], pytest.param(["-m"], marks=pytest.mark.slow)], ids=["run", "sweep"])
@pytest.mark.row("A4", "A5")
def test_a_signal_ends_a_run_calmly_and_the_same_command_continues(at, number, sweep):
    (at / "lines.txt").write_text("some words on a line\n" * 300_000)
    slow = ["corpus=text", "corpus.paths=[lines.txt]", "corpus.document=line", "corpus.shard_bytes=500000", "engine=serial"]
    arguments = [*sweep, *TINY, *slow, "window.stride=8,16" if sweep else "window.stride=8"]
    process = subprocess.Popen(
        [*PIPELINE, *arguments, "+engine.batch_size=2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not list(at.glob("data/cache/encode/*/00000000.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    begun = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and time.monotonic() - begun < 10
    assert err.endswith(CALM) and "Traceback" not in err and out == ""
    assert not list(at.glob("data/cache/tmp/*")) and not (at / "outputs").exists()
    if not sweep:
        again = ran(*arguments)
        assert again.returncode == 0 and "computed 12 of 13 shards" in again.stdout, again.stdout + again.stderr


HOOK = """
import os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background begins with it ignored
class Hook:
    def find_spec(self, name, *rest):
        if name == "pipeline.cli":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Hook())
sys.argv = ["x", "--help"]
runpy.run_module("{module}", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["pipeline", "pipeline.tools", "scripts.show"])
@pytest.mark.row("A4", "A5")
def test_a_signal_while_modules_are_still_imported_ends_as_calmly(number, module):
    code = HOOK.format(number=int(number), module=module)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (found.returncode, found.stdout, found.stderr) == (128 + number, "", CALM)


def test_importing_the_package_leaves_signals_alone():
    code = "import signal\nbefore = signal.getsignal(2), signal.getsignal(15)\nimport pipeline.__main__, pipeline.tools\n"
    code += "assert before == (signal.getsignal(2), signal.getsignal(15))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.row("A4", "A5")
def test_a_signal_ends_the_verbs_beside_the_pipeline_calmly(at, number):
    entry = at / "data/cache/load" / ("0" * 32)
    entry.mkdir(parents=True)
    with open(entry / "00000000.arrow", "wb") as file:
        file.truncate(1 << 40)  # a hole that takes long to hash
    note = {"bytes": 1 << 40, "sha256": ""}
    (entry / ".00000000.arrow.receipt").write_bytes(seal({"of": ["load", entry.name, "00000000.arrow"], "note": note}))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tools", "cache", "verify"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until_opened(process, "00000000.arrow")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "", CALM)


def until_opened(process, name):
    """Wait until a process has such a file open."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if any(os.readlink(link).endswith(name) for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                return
        time.sleep(0.01)


OUT = [[*PIPELINE, *TINY], [*PIPELINE, "--help"], [*PIPELINE, "--version"], [*PIPELINE, "--cfg", "job"]]
OUT += [[sys.executable, "-m", "pipeline.tools", *verb] for verb in (["cache", "verify"], ["cache", "ls"], ["--help"])]


@pytest.mark.slow
@pytest.mark.parametrize("command", OUT, ids=lambda command: " ".join(command[2:5]))
def test_all_that_is_said_on_stdout_ends_alike_where_it_is_full_or_its_reader_has_gone(at, command):
    (at / "data/cache").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    assert found.returncode == 5 and found.stderr.splitlines()[-1].startswith("error: No space left writing 'standard output'")
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    os.close(writing)
    assert gone.returncode == 0 and "Error" not in gone.stderr


def test_a_reader_that_has_gone_and_closed_or_full_outputs_end_without_a_traceback(at):
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run([*PIPELINE, *TINY], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert gone.returncode == 0 and "Traceback" not in gone.stderr and (at / "outputs/sample/manifest.json").is_file()
    with open("/dev/full", "w") as full:
        found = subprocess.run([*PIPELINE, *TINY], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == 5 and "No space left writing 'standard output'" in found.stderr


def test_where_stderr_cannot_be_written_the_exit_code_is_the_same_and_a_sweep_goes_on(at):
    with open("/dev/full", "w") as full:
        jobs = ["-m", *TINY, "window.stride=0,8"]
        sweep = subprocess.run([*PIPELINE, *jobs], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
        wrong = subprocess.run([*PIPELINE, "nosuch=1"], stderr=full, timeout=60)
    assert (sweep.returncode, wrong.returncode) == (2, 2)
    assert "failed (2)" in sweep.stdout and (at / "outputs/sample/window.stride=8/manifest.json").is_file()


def test_the_console_script_completes_groups_choices_and_keys(at):
    script = Path(sys.executable).with_name("pipeline")
    if not script.is_file():
        pytest.skip("needs the installed console script")
    settings = {"capture_output": True, "text": True, "timeout": 60}
    for line, expected in (("pipeline tokenizer=b", "tokenizer=bpe"), ("pipeline window.st", "window.stride=")):
        environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
        found = subprocess.run([script, "-sc", "query=bash"], env=environment, **settings)
        assert found.returncode == 0 and expected in found.stdout.split(), found.stderr
    assert "hydra_bash_completion" in subprocess.run([script, "-sc", "install=bash"], **settings).stdout
    assert list(at.iterdir()) == []


@pytest.mark.slow
def test_on_a_terminal_a_long_phase_shows_a_bar_and_the_log_stands_above_it():
    code = (
        "import time, logging\nfrom pipeline import console\nconsole.setup()\n"
        "with console.progress('encode', 100) as advance:\n    advance(40); time.sleep(1.3)\n"
        "    logging.getLogger('pipeline').info('a word'); time.sleep(0.2)\n"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"})
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(parent)
    assert process.wait(10) == 0
    assert b"encode" in shown and b"40/100" in shown and b"a word" in shown


# -- the command line as a function -----------------------------------------------------------------------


@pytest.fixture
def ends(at, monkeypatch, capsys):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("sys.argv", ["pipeline"])

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.exit_code(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cfg", "job"], "context_length: 256"),
        (["--cfg", "job", "--resolve", "-p", "window"], "# @package window"),
        (["--info", "searchpath"], "structured://"),
        (["--hydra-help"], "Hydra (1.3"),
    ],
)
def test_hydras_own_flags_answer_and_run_nothing(ends, at, arguments, said):
    code, out, _ = ends(*arguments)
    assert code == 0 and said in out and not (at / "data").exists()


def test_hydra_help_composes_no_configuration_of_ours(ends):
    assert ends("--hydra-help", "hydra/hydra_logging=default")[0] == 2


@pytest.mark.parametrize("arguments", [["--bogus"], ["--cfg", "nonsense"], ["-m", "--run"], ["--config-dir", "nowhere"]])
def test_a_flag_that_is_wrong_ends_with_2(ends, arguments):
    code, _, err = ends(*TINY, *arguments)
    assert code == 2 and "error: " in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi", "hydra.mode=MULTIRUN"])
def test_however_a_sweep_is_asked_for_and_wherever_its_flag_stands_each_job_has_its_folder(ends, at, flag):
    code, out, _ = ends(*TINY, flag, "window.stride=8,16")
    assert code == 0 and out.splitlines()[-1] == "outputs/sample"
    assert {p.name for p in (at / "outputs/sample").iterdir()} == {"window.stride=8", "window.stride=16", "sweep.html"}


def test_of_what_is_given_twice_the_last_one_names_the_job(ends, at):
    code, out, _ = ends(*TINY, "-m", "window.stride=8", "window.stride=8,16")
    assert code == 0 and [line.split()[0] for line in out.splitlines() if "stride" in line] == [
        "window.stride=8",
        "window.stride=16",
    ]
    assert {p.name for p in (at / "outputs/sample").iterdir()} == {"window.stride=8", "window.stride=16", "sweep.html"}


def test_a_sweep_over_places_ends_with_the_folder_that_holds_them_all(ends, at):
    code, out, _ = ends(*TINY, "-m", f"output.dir=a,{at}/b")
    assert code == 0 and out.splitlines()[-1] == str(at)


def test_values_that_a_file_name_cannot_hold_get_folders_that_differ(at):
    names = [cli.folder_name([f"corpus.paths=[{path}]"]) for path in ("a/b", "a_b", "a b", "ü" * 300, "ü" * 299)]
    assert len(set(names)) == 5 and all(len(name) < 200 and "/" not in name for name in names)
    assert cli.folder_name(["window.stride=64", "+corpus=text"]) == "corpus=text,window.stride=64"


def test_a_bug_of_ours_ends_with_1_a_traceback_and_no_secret(ends, monkeypatch):
    def broken(*_):
        raise RuntimeError("https://user:s3cr3t@example.org is odd")

    monkeypatch.setattr("pipeline.run.run", broken)
    code, _, err = ends(*TINY)
    assert code == 1 and "Traceback" in err and err.endswith("error: this is a bug of ours; the lines above say where.\n")
    assert "s3cr3t" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 5),
        (PermissionError(13, "Permission denied", "x"), 5),
        (OSError(28, "No space left on device", "x"), 5),
        (ValueError("odd"), 1),
    ],
)
def test_what_a_run_raises_becomes_its_exit_code(ends, monkeypatch, error, code):
    def broken(*_):
        raise error

    monkeypatch.setattr("pipeline.run.run", broken)
    assert ends(*TINY)[0] == code


@pytest.mark.parametrize("sweep", [False, True])
def test_a_full_disk_under_Hydras_own_record_is_named(ends, monkeypatch, sweep):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    monkeypatch.setattr("omegaconf.OmegaConf.save", full)
    code, _, err = ends(*(["-m", "hydra.sweep.dir=here"] if sweep else ["hydra.run.dir=here"]), *TINY)
    assert code == 5 and err.startswith("error: No space left writing 'here' (") and len(err.splitlines()) == 1


def test_HYDRA_FULL_ERROR_adds_the_traceback_and_changes_no_exit_code(ends, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = ends("window.stride=abc")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: window.stride=abc: ")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_what_Hydra_is_told_does_not_stay_behind(ends):
    ends("window.stride=abc")
    assert "HYDRA_FULL_ERROR" not in os.environ


# -- what is shown ----------------------------------------------------------------------------------------


def test_the_balance_reads_as_sums_that_add_up(at):
    outcome = run(composed("tokenizer=bytes", "embedding=none", "window.context_length=256", "window.stride=128"))
    text, tokens, slots = balance.lines(outcome.ledger)
    assert text == "  text    18,838 bytes in 1 document"
    assert tokens == "  tokens  18,838 = 1 first (no target) + 18,816 targets + 21 tail (dropped)"
    assert slots == "  slots   37,376 = 18,816 targets + 18,560 repeated by overlap"


def test_the_balance_names_every_reason_and_counts_added_tokens():
    ledger = {
        "load": {"text_bytes": 10, "documents": 2, "empty_files": 1, "nul_bytes": 3},
        "encode": {"tokens": 9, "eos": 2, "unknown": 4},
        "window": {"tokens": 11, "first": 2, "targets": 9, "slots": 12, "padding": 3, "repeated": 0},
    }
    assert balance.lines(ledger) == [
        "  text    10 bytes in 2 documents",
        "          empty files: 1; NUL bytes kept: 3; unknown tokens: 4",
        "  IDs     11 = 9 tokens + 2 EOS",
        "          11 = 2 first (no target) + 9 targets",
        "  slots   12 = 9 targets + 3 padding",
    ]


@pytest.mark.parametrize("window", ["prefix", "document"])
def test_every_mode_has_a_balance_that_adds_up(at, window):
    (at / "two.txt").write_text("one two three\nfour five")
    where = ["corpus=text", "corpus.paths=[two.txt]", "corpus.document=line", "tokenizer=words", "embedding=none"]
    outcome = run(composed(*where, f"window={window}", "window.context_length=8", "window.truncate=true"))
    for line in balance.lines(outcome.ledger)[1:]:
        total, parts = line.replace(",", "").split(" = ")
        assert int(total.split()[-1]) == sum(int(part.split()[0]) for part in parts.split(" + "))


@pytest.mark.row("C24")
def test_a_table_keeps_words_whole_drops_empty_columns_and_escapes_what_it_holds(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((30, 24)))
    console.table(
        ["job", "rows", "tail", "outcome"],
        [["window.stride=64", 1234, "", "all cached"], ["\x1b[31m", "", "", "failed (2): because of a long reason"]],
    )
    text = capsys.readouterr().out
    assert "window.stride=64" in text and "1,234" in text and "tail" not in text and "\x1b" not in text
    assert all(word in text.split() for word in "failed (2): because of a long reason".split())


@pytest.mark.row("C20", "C24")
def test_the_log_is_one_plain_line_a_record_without_control_characters_or_secrets(capsys, monkeypatch):
    import logging

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    console.setup()
    logging.getLogger("pipeline.x").info("a\nb\x1b[31m hf_AbCdEfGh123456")
    logging.getLogger("other").info("not ours")
    logging.getLogger("other").warning("careful")
    assert capsys.readouterr().err == "a\\nb\\x1b[31m [redacted]\nwarning: careful\n"


def test_without_a_terminal_progress_is_a_plain_line_after_three_seconds_and_then_every_ten(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO"), console.progress("encode", 20_000_000) as advance:
        for _ in range(16):
            now[0] += 1
            advance(1_000_000)
    assert [r.getMessage() for r in caplog.records] == [
        "encode: 3 MB of 20 MB, 1 MB/s, 17 s left",
        "encode: 13 MB of 20 MB, 1 MB/s, 7 s left",
    ]


# -- the verbs beside the pipeline ------------------------------------------------------------------------


@pytest.fixture
def verb(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            tools.main(None, list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


def test_trace_refuses_what_it_cannot_follow_and_options_that_would_change_nothing(at, verb, capsys):
    folder = str(run(composed(*TINY)).folder)
    capsys.readouterr()
    for arguments, said in (
        (["--row", "0", "--at", "3", "--rank", "1"], "--at, --rank would change nothing"),
        (["--phrase", "the", "--batch-size", "2", "--no-shuffle"], "--batch-size, --no-shuffle would change nothing"),
        (["--step", "0", "--batch-size", "2", "--at", "3"], "--at would change nothing"),
        (["--phrase", "\udcff"], "the phrase '\\udcff' is not UTF-8"),
        (["--step", "0", "--batch-size", "4294967296"], "batch_size=4294967296 is more than"),
        (["--step", "0", "--batch-size", "9" * 20], "is more than"),
        (["--step", "9" * 20, "--batch-size", "2"], "has steps 0 to"),
        (["--file", "data/sample.txt", "--at", "9" * 20], "no input file is called"),
    ):
        code, out, err = verb("trace", folder, *arguments)
        assert (code, out) == (2, "") and said in err and err.startswith("error: ") and err.count("\n") == 1, err


def test_show_draws_a_row_with_its_source_and_refuses_a_row_that_is_not_there_or_is_damaged(at, verb):
    outcome = run(composed(*TINY))
    code, out, _ = verb("show", "outputs/sample", "--row", "3")
    assert code == 0 and "sample.txt' bytes 0 to 18,838" in out and "\ninput " in out and "\ntarget " in out
    assert verb("show", "outputs/sample", "--row", "-1")[1].startswith(f"row {outcome.rows - 1:,} of")
    code, _, err = verb("show", "outputs/sample", "--row", "999999")
    assert code == 2 and f"rows 0 to {outcome.rows - 1}" in err
    data = at / "outputs/sample/data-00000000.arrow"
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.unlink()
    data.write_bytes(damaged)
    code, _, err = verb("show", "outputs/sample")
    assert code == 4 and re.search(r"data-00000000.arrow' is damaged: expected \d+ bytes, sha256 \w{64}, found \d+ bytes", err)
    assert verb("cache", "verify", "outputs/sample")[0] == 4
    assert verb("show", "nowhere")[0] == 2


def test_the_cache_verbs_list_explain_verify_and_collect(at, verb):
    run(composed(*TINY))
    run(composed(*TINY, "window.stride=8"))
    code, out, _ = verb("cache", "ls")
    assert code == 0 and sum(line.startswith("window ") for line in out.splitlines()) == 2
    assert "window.stride 16 → 8" in verb("why")[1]
    assert verb("cache", "verify")[1].startswith("0 of ")
    assert verb("cache", "gc", "--max-size", "1kB")[0] == 0
    assert verb("why", "zzz")[0] == 2 and verb("cache", "gc", "--max-size", "10XB")[0] == 2
    assert verb("cache", "--dir", "nowhere", "ls")[0] == 2


def test_why_compares_a_dataset_with_the_key_of_a_stage_and_never_with_what_is_not_of_it(at, verb):
    run(composed(*TINY, "name=old"))
    run(composed(*TINY, "name=new", "window.stride=8"))
    (at / "in.txt").write_text("the ferry was late because of the fog, and the fog because of the ferry\n" * 9)
    run(composed(*TINY, "corpus=text", "corpus.paths=[in.txt]", "tokenizer=words", "name=away", "cache.dir=elsewhere"))
    old, new = (unseal(at / f"outputs/{name}/manifest.json")["keys"] for name in ("old", "new"))
    assert verb("why", "outputs/old", new["window"])[1] == (
        f"window {old['window']} and {new['window']}\nwindow.stride 16 → 8\n"
    )
    assert "window.stride 8 → 16" in verb("why", f"window/{new['window'][:9]}", "outputs/old")[1]
    assert "\nthe same entry\n" in verb("why", "outputs/old", old["window"])[1]
    for given, said in (
        (["outputs/away"], "nothing of 'outputs/away' is in the cache 'data/cache' (any more): set --dir."),
        (["outputs/away", new["window"]], "nothing of 'outputs/away' is in the cache"),
        ([old["load"], new["window"]], f"{new['window']!r} has no entry of the stage load in the cache"),
        (["nope"], "'nope' is no finished dataset, and begins no key in the cache 'data/cache': `cache ls` lists them."),
        (["window/"], "'window/' fits 2 entries: give more of the key"),
    ):
        code, out, err = verb("why", *given)
        assert (code, out) == (2, "") and err.startswith(f"error: {said}"), given


def test_why_and_diff_compare_datasets_of_splits_by_the_splits_that_both_hold(at, verb):
    (at / "in.txt").write_text("".join(f"line {n} of many in the fog\n" for n in range(99)))
    common = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "tokenizer=words", "embedding=none"]
    for name, given in (("old", ["split.test=0.2"]), ("new", ["split.test=0.2", "split.validation=0.1"]), ("plain", [])):
        run(composed(*common, *given, "window.context_length=4", f"name={name}"))
    code, out, _ = verb("why", "outputs/old", "outputs/new")
    assert code == 0 and out.startswith("split train of both\n") and "\nsplit.validation null → 0.1\n" in out
    code, out, _ = verb("diff", "outputs/old", "outputs/new")
    assert code == 0 and re.findall(r"^(\w+): ", out, re.M) == ["train", "test"]
    assert json.loads(verb("diff", "--json", "outputs/old", "outputs/new")[1])["test"]["parts_at"] == "selection"
    assert "rows" in json.loads(verb("diff", "--json", "outputs/old/test", "outputs/new/test")[1])
    assert verb("why", "outputs/old", "outputs/plain")[0] == 2
    window = unseal(at / "outputs/old/test/manifest.json")["keys"]["window"]
    assert f"\nwindow {window}: " in verb("why", "outputs/old")[1]
    assert "has 2 entries of the stage window: give " in verb("why", "outputs/old", window)[2]


def test_verify_advises_to_remove_a_damaged_stage_that_no_run_reads(at, verb):
    run(composed(*TINY))
    (data,) = at.glob("data/cache/load/*/00000000.arrow")
    data.unlink()
    run(composed(*TINY))
    code, _, err = verb("cache", "verify")
    assert code == 4 and "(of a stage that it does not read, remove the folder)" in err
    shutil.rmtree(data.parent)
    assert verb("cache", "verify")[0] == 0


def test_trace_why_and_diff_have_colours_on_a_terminal_and_none_in_a_pipe(at, verb, monkeypatch):
    run(composed(*TINY))
    run(composed(*TINY, "name=other", "window.stride=8"))
    calls = (["trace", "outputs/sample", "--row", "0"], ["why"], ["diff", "outputs/sample", "outputs/other"])
    piped = [verb(*call)[1] for call in calls]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for call, plain in zip(calls, piped, strict=True):
        coloured = verb(*call)[1]
        assert "\x1b[" in coloured and "\x1b" not in plain and re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_verify_advises_what_is_true_of_what_it_found(at, verb):
    outcome = run(composed(*TINY))
    assert verb("cache", "verify")[0] == 0
    (data,) = at.glob("data/cache/encode/*/00000000.arrow")
    (link,) = at.glob("data/cache/load/*/00000000.arrow")
    (newer,) = at.glob("data/cache/window/*/manifest.json")
    again, by_hand = (
        "error: run the pipeline again: it sets damaged files aside",
        "do what the lines above say: no run can do it.\n",
    )
    whole = data.read_bytes()
    data.unlink()
    data.write_bytes(whole[:-1])
    code, _, err = verb("cache", "verify")
    assert code == 4 and err.startswith(again) and by_hand not in err
    link.rename(at / "outside")
    link.symlink_to(at / "outside")
    code, out, err = verb("cache", "verify")
    assert code == 4 and err.startswith(again) and err.endswith(f"and {by_hand}") and "remove it" in out
    data.unlink()
    data.write_bytes(whole)
    content = unseal(newer)
    newer.unlink()
    newer.write_bytes(seal({**content, "schema": 99}))
    code, out, err = verb("cache", "verify")
    assert code == 4 and err == f"error: {by_hand}" and "upgrade" in out and "2 of " in out
    (outcome.folder / "README.md").unlink()
    code, _, err = verb("cache", "verify", str(outcome.folder))
    assert code == 4 and err.startswith("error: make it again, with the command that made it")


def test_the_run_record_holds_what_differs_and_the_manifest_does_not(at):
    run(composed(*TINY))
    record = json.loads((at / "outputs/sample/run.json").read_text())
    assert {"host", "seconds", "engine", "stages"} <= set(record)
    assert record["host"] not in (at / "outputs/sample/manifest.json").read_text()
