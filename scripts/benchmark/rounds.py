"""The commands, and how they are run in turn and measured."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmark.corpora import Corpus
from scripts.benchmark.environments import PEERS, ROOT, BenchmarkError, last_words, versions
from scripts.benchmark.peers.protocol import digest

LARGE = 1 << 30  # bytes of text from which only ours and the probe run, unless others are named
LAUNCH = """
import ctypes, json, os, sys, time
SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
started = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
status, used = os.wait4(child, 0)[1:]
wall = time.perf_counter() - started
all_used = [used]
while True:
    try:
        all_used.append(os.wait4(-1, 0)[2])
    except ChildProcessError:
        break
cpu = sum(used.ru_utime + used.ru_stime for used in all_used)
peak = max(used.ru_maxrss for used in all_used) * 1024
with open(sys.argv[1], "w") as file:
    json.dump({"wall": wall, "cpu": cpu, "peak": peak, "code": os.waitstatus_to_exitcode(status)}, file)
"""


@dataclass(frozen=True)
class Command:
    """One measured command. `peer` is a script of `peers/`; without one it is ours."""

    name: str
    about: str
    peer: str | None = None
    tokenizer: str = "gpt2"
    format: str = "jsonl"
    seconds: float = 1.0  # to start, and
    rate: float = 3.0  # MB/s from there on, both about, for the estimate alone

    @property
    def cold(self) -> str:
        """The command whose output this one finds: of a warm one, the cold one; else itself."""
        return self.name.removesuffix("-warm")


COMMANDS = (
    Command("probe", "the yardstick: IDs alone, nothing cached or hashed", "probe", seconds=0.5, rate=250),
    Command("ours", "cold: every stage computed, cached and hashed", rate=100),
    Command("ours-warm", "again: every stage found and verified", rate=1000),
    Command("ours-parquet", "cold, from Parquet", format="parquet", rate=100),
    Command("nanogpt", "nanoGPT's prepare: tiktoken, two processes", "nanogpt_prepare", seconds=4, rate=14),
    Command("datatrove", "DocumentTokenizer", "datatrove_tokenizer", seconds=2),
    Command("datasets", "one batched map", "datasets_map", seconds=2),
    Command("litdata", "optimize, two processes", "litdata_optimize", seconds=6),
    Command("megatron", "IndexedDatasetBuilder, two processes", "megatron_indexed", seconds=6),
    Command("mds", "mosaicml-streaming's MDSWriter", "mosaic_mds", seconds=4),
    Command("ours-bert", "cold, WordPiece", tokenizer="bert-base-uncased", rate=40),
    Command("datasets-bert", "one batched map, WordPiece", "datasets_map", "bert-base-uncased", seconds=2),
)
CHOICE = {"gpt2": "gpt2", "bert-base-uncased": "bert"}  # what the pipeline calls each tokenizer


def choose(only: str | None, text_bytes: int) -> list[Command]:
    """The commands to run, in order. Raises BenchmarkError on an unknown name."""
    if only is None:
        return [c for c in COMMANDS if text_bytes < LARGE or c.name == "probe" or c.peer is None]
    wanted, names = set(only.split(",")), [c.name for c in COMMANDS]
    if unknown := wanted - set(names):
        raise BenchmarkError(f"--only {','.join(sorted(unknown))}: known are {', '.join(names)}.")
    wanted |= {c.cold for c in COMMANDS if c.name in wanted}
    return [c for c in COMMANDS if c.name in wanted]


def estimate(commands: Iterable[Command], text_bytes: int, rounds: int) -> float:
    """About how many seconds the rounds will take."""
    return rounds * sum(c.seconds + 1 + text_bytes / 1e6 / c.rate for c in commands)


@dataclass(frozen=True)
class Run:
    """One measured run."""

    command: str
    corpus: str
    round: int
    wall: float  # seconds
    cpu: float  # seconds, user and system, of the whole tree
    peak: int  # bytes, of the largest process of the tree
    disk: int  # bytes left behind, whatever they are for
    stages: dict[str, int]  # ours: bytes in the cache, by stage


@dataclass
class Bench:
    """Where everything lies, and what came of it."""

    work: Path
    assets: Path
    pythons: dict[str, Path] = field(default_factory=dict)  # by peer
    runs: list[Run] = field(default_factory=list)
    digests: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # by corpus and command
    left_out: dict[str, str] = field(default_factory=dict)  # commands, and why

    def out(self, command: Command) -> Path:
        """The folder of a command's output."""
        return self.work / "out" / command.cold

    def arguments(self, command: Command, corpus: Corpus) -> list[str]:
        """The command line."""
        out = self.out(command)
        if command.peer:
            tokenizer = self.assets / "tokenizers" / command.tokenizer / "tokenizer.json"
            script = [self.pythons[command.peer], PEERS / f"{command.peer}.py"]
            return [str(a) for a in (*script, "--input", corpus.jsonl, "--tokenizer", tokenizer, "--out", out)]
        settings = {
            "corpus": command.format,
            "corpus.paths": f"[{corpus.path(command.format)}]",
            "tokenizer": CHOICE[command.tokenizer],
            "window.context_length": 1024,
            "embedding": "none",
            "cache.dir": out / "cache",
            "output.dir": out / "dataset",
            "hydra.run.dir": out / "run",
        }
        return [sys.executable, "-m", "pipeline", *(f"{key}={value}" for key, value in settings.items())]

    def variables(self, command: Command) -> dict[str, str]:
        """The process's environment: nothing that leads to other packages or settings; every cache in the output."""
        foreign = re.compile(r"PYTHON|VIRTUAL_ENV|HF_|TOKENIZERS_|DATA_OPTIMIZER_")
        out = self.out(command)
        own = {"HF_HOME": out / "hf", "TMPDIR": out / "tmp", "PIPELINE_ASSETS": self.assets, "HF_HUB_OFFLINE": 1}
        own |= {"DATA_OPTIMIZER_CACHE_FOLDER": out / "tmp" / "chunks", "DATA_OPTIMIZER_DATA_CACHE_FOLDER": out / "tmp" / "data"}
        return {k: v for k, v in os.environ.items() if not foreign.match(k)} | {k: str(v) for k, v in own.items()}

    def run(self, command: Command, corpus: Corpus, round: int) -> Run:
        """Measure a command once. Raises BenchmarkError, with its last words, where it fails."""
        out, log = self.out(command), self.work / f"{command.name}.log"
        if command.cold == command.name:
            shutil.rmtree(out, ignore_errors=True)
        (out / "tmp").mkdir(parents=True, exist_ok=True)
        settle(corpus.path(command.format))
        figures = measure(self.arguments(command, corpus), log, self.variables(command))
        if code := figures.pop("code"):
            raise BenchmarkError(f"exit {code}: {last_words(log.read_text(errors='replace'))} (see {log})")
        shutil.rmtree(out / "tmp", ignore_errors=True)
        stages = {} if command.peer else {s.name: disk(s) for s in sorted((out / "cache").iterdir()) if any(s.glob("*/*"))}
        return Run(command.name, corpus.name, round, disk=disk(out), stages=stages, **figures)

    def check(self, command: Command, corpus: Corpus) -> dict[str, Any]:
        """Number and sha256 of the IDs that a command left behind. Raises BenchmarkError."""
        if command.peer is None:
            return our_digest(self.out(command))
        arguments = [*self.arguments(command, corpus), "--check"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=self.variables(command), cwd=ROOT, check=False)
        if done.returncode:
            raise BenchmarkError(f"its output cannot be read back: {last_words(done.stderr)}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def rounds(self, corpus: Corpus, commands: list[Command], count: int, results: Path | None = None) -> None:
        """Run the commands in turn, `count` times over; compare IDs in the first round; note `results` after each."""
        for round in range(1, count + 1):
            for place, command in enumerate(commands):
                if command.name in self.left_out or command.cold in self.left_out:
                    continue
                try:
                    run = self.run(command, corpus, round)
                    if round == 1:
                        self.digests.setdefault(corpus.name, {})[command.name] = self.check(command, corpus)
                except BenchmarkError as error:
                    self.left_out[command.name] = str(error)
                    say(f"{command.name} is left out from here on: {error}")
                else:
                    self.runs.append(run)
                    say(f"{corpus.name}, round {round} of {count}: {command.name} {run.wall:.2f} s")
                if all(later.cold != command.cold for later in commands[place + 1 :]):
                    shutil.rmtree(self.out(command), ignore_errors=True)
            if results:
                results.write_text(json.dumps(self.record(), indent=1) + "\n")

    def record(self) -> dict[str, Any]:
        """All raw figures, and what they were measured on."""
        return {
            "machine": machine(),
            "runs": [asdict(run) for run in self.runs],
            "digests": self.digests,
            "left_out": self.left_out,
            "versions": {"ours": versions()} | {peer: versions(python) for peer, python in self.pythons.items()},
        }


def measure(arguments: list[str], log: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Run a command from beginning to end: `wall` and `cpu` seconds, `peak` bytes, exit `code`.

    A small process of its own starts it: Linux counts the memory of the process that starts another as that other's
    too, and this one may be large. It also awaits and counts what the command leaves running behind it.
    """
    figures = log.with_suffix(".figures")
    with log.open("wb") as output:
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(figures), *arguments]
        subprocess.run(launch, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=variables, check=True)
    found: dict[str, Any] = json.loads(figures.read_text())
    figures.unlink()
    return found


def settle(path: Path) -> None:
    """Let the disk finish what earlier runs left to it, and have `path` in the page cache."""
    os.sync()
    with path.open("rb", buffering=0) as file:
        piece = bytearray(1 << 20)
        while file.readinto(piece):
            pass


def disk(folder: Path) -> int:
    """Bytes of the files under a folder, each counted once however many names it has."""
    found = [Path(top, name).lstat() for top, _, names in os.walk(folder) for name in names]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in found}.values())


def our_digest(out: Path) -> dict[str, Any]:
    """The same of our own stream: the stage `encode`, found through the manifest of the dataset."""
    import pyarrow as pa

    key = json.loads((out / "dataset" / "manifest.json").read_text())["keys"]["encode"]
    shards = sorted(path for path in (out / "cache" / "encode" / key).glob("*.arrow") if path.stem.isdigit())
    batches = (batch for path in shards for batch in pa.ipc.open_stream(pa.memory_map(str(path))))
    return digest(batch["input_ids"].flatten().to_numpy() for batch in batches)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"(?m)^model name\s*: (.*)$", cpu.read_text()) if cpu.is_file() else None
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
