"""What needs minutes, a large corpus or an installation of its own; run by `make test-all`."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow
LANGUAGES = [
    "Der Fährmann wartete, weil der Nebel dicht war; „Straße“ schrieb man mit ß.",
    "O céu está azul, e a jabuticabeira floresceu em dezembro. Não há pressa.",
    "Зимой река замёрзла, и паром не ходил три недели.",
    "船は霧のために遅れた。彼は待った、そして数えた。",
    "因为有雾，渡船来晚了。机器只认得数字。",
    "안개 때문에 배가 늦었다. 그는 기다리며 세었다.",
    "تأخرت العبارة بسبب الضباب، فانتظر وعدّ الأوراق.",
    "नाव कोहरे के कारण देर से आई; उसने पत्ते गिने।",
    "Το πλοίο άργησε λόγω της ομίχλης.",
    "e\u0301te\u0301 🙂👩‍👩‍👧 don't\t's <|endoftext|> [SEP] \u00a0\u2028x\u0000y  \r\n end" + "a" * 3000,
]


def pipeline(*overrides: str, cwd: Path, program: tuple[str, ...] = (sys.executable, "-m", "pipeline"), **env: str):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run([*program, *overrides], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def digests(folder: Path, pattern: str = "data-*.arrow") -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob(pattern))}


@pytest.fixture
def twenty(assets, at) -> Path:
    """20 MB of English as JSON lines, with many languages mixed in."""
    path = at / "twenty.jsonl"
    texts = pq.read_table(assets / "corpora" / "bench-20mb.parquet")["text"].to_pylist()
    with open(path, "w", encoding="utf-8") as file:
        for index, text in enumerate(texts):
            file.write(json.dumps({"text": text}, ensure_ascii=bool(index % 2)) + "\n")
            file.write(json.dumps({"text": LANGUAGES[index % len(LANGUAGES)] * (1 + index % 7)}, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize("tokenizer", ["gpt2", "bert"])
def test_every_byte_equals_the_slow_path_on_twenty_megabytes_and_many_languages(twenty, at, tokenizer):
    common = [
        "corpus=jsonl",
        f"corpus.paths=[{twenty}]",
        f"tokenizer={tokenizer}",
        "window.context_length=512",
        "embedding=none",
    ]
    fast = pipeline(*common, "cache.dir=fast", "output.dir=out-fast", cwd=at)
    slow = pipeline(*common, "tokenizer.backend=hf", "engine=serial", "cache.dir=slow", "output.dir=out-slow", cwd=at)
    assert (fast.returncode, slow.returncode) == (0, 0), fast.stderr + slow.stderr
    assert "gives the reference's IDs" in fast.stderr and "gives the reference's IDs" not in slow.stderr
    assert digests(at / "out-fast") == digests(at / "out-slow") and digests(at / "out-fast")
    for stage in ("load", "tokenize", "encode", "window"):
        one, two = (next((at / cache / stage).iterdir()) for cache in ("fast", "slow"))
        assert digests(one, "*.arrow") == digests(two, "*.arrow")


def test_one_gigabyte_in_one_line_takes_less_than_two_of_memory(assets, at):
    sentence = (ROOT / "data" / "sample.txt").read_text("utf-8").replace("\n", " ")
    with open(at / "line.txt", "w", encoding="utf-8") as file:
        for _ in range(2**30 // len(sentence.encode()) + 1):
            file.write(sentence)
    program = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    wrapped = (sys.executable, "-c", program, sys.executable, "-m", "pipeline")
    done = pipeline(
        "corpus=text",
        "corpus.paths=[line.txt]",
        "tokenizer=gpt2",
        "window.context_length=1024",
        "embedding=none",
        cwd=at,
        program=wrapped,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2 * 2**20  # kilobytes


def living_sessions() -> set[int]:
    """The sessions of all processes that are no zombies."""
    sessions = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                sessions.add(int(session))
    return sessions


@pytest.mark.row("A2")
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(twenty, at):
    common = [
        "corpus=jsonl",
        f"corpus.paths=[{twenty}]",
        "tokenizer=gpt2",
        "window.context_length=512",
        "embedding=none",
        "corpus.shard_bytes=1000000",
    ]
    undisturbed = pipeline(*common, "cache.dir=calm", "output.dir=out-calm", cwd=at)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for engine in ("threads", "processes"):
        killed = set()
        for attempt in range(12):
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *common, f"engine={engine}", f"cache.dir={engine}", f"output.dir=out-{engine}"],
                cwd=at, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(0.3 + 0.05 * attempt)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed.add(process.pid)
            process.wait()
        assert killed
        end = time.monotonic() + 60
        while killed & living_sessions():  # a worker may outlive its parent by a moment, and write meanwhile
            assert time.monotonic() < end
            time.sleep(0.02)
        final = pipeline(*common, f"engine={engine}", f"cache.dir={engine}", f"output.dir=out-{engine}", cwd=at)
        assert final.returncode == 0, final.stderr
        assert digests(at / f"out-{engine}", "**/*.arrow") == digests(at / "out-calm", "**/*.arrow")
        assert not list((at / engine / "tmp").glob("*/*"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel, installed in a folder of its own beside the dependencies that are here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder), "-c", str(ROOT / "constraints.txt")], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def test_the_wheel_runs_from_any_folder_with_its_conf_and_sample_inside(installed, at):
    scripts = {name: (sys.executable, str(installed / "bin" / name)) for name in ("pipeline", "pipeline-tools")}
    done = pipeline("window.context_length=64", cwd=at, program=scripts["pipeline"], PYTHONPATH=str(installed))
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "outputs/sample", done.stderr
    shown = pipeline("show", "outputs/sample", cwd=at, program=scripts["pipeline-tools"], PYTHONPATH=str(installed))
    assert shown.returncode == 0 and "document 0" in shown.stdout, shown.stderr
    helped = pipeline("--help", cwd=at, program=scripts["pipeline"], PYTHONPATH=str(installed))
    assert helped.returncode == 0 and "verdict" in helped.stdout
