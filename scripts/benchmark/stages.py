"""Where our own time goes, stage by stage, beside what one core needs for the same work alone."""

import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

from scripts.benchmark.corpora import Corpus
from scripts.benchmark.environments import PEERS, BenchmarkError, last_words
from scripts.benchmark.report import digits, print_table
from scripts.benchmark.rounds import COMMANDS, Bench, measure, settle

OURS = next(c for c in COMMANDS if c.name == "ours")
IMPORTS = "import gigatoken, hydra, numpy, pyarrow"  # the least that a cold run must load
HEADINGS = ("stage", "seconds", "limit", "× limit", "of it: work", "hash", "write", "MB written")


def show(bench: Bench, corpus: Corpus) -> None:
    """Measure both and print a table. Raises BenchmarkError where one fails."""
    wall, stages = serial(bench, corpus)
    title = f"{corpus.name}: one cold run with engine=serial, {digits(wall)} s in all"
    print_table(title, HEADINGS, table(wall, stages, limits(bench, corpus), corpus.jsonl.stat().st_size))


def serial(bench: Bench, corpus: Corpus) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a cold run in one thread, and what its run.json says of each stage: `stage`, `seconds`, `bytes`."""
    out, log = bench.out(OURS), bench.work / "stages.log"
    shutil.rmtree(out, ignore_errors=True)
    (out / "tmp").mkdir(parents=True)
    settle(corpus.jsonl)
    figures = measure([*bench.arguments(OURS, corpus), "engine=serial"], log, bench.variables(OURS))
    if figures["code"]:
        raise BenchmarkError(f"exit {figures['code']}: {last_words(log.read_text(errors='replace'))}")
    return figures["wall"], json.loads((out / "dataset" / "run.json").read_text())["stages"]


def limits(bench: Bench, corpus: Corpus) -> dict[str, float]:
    """What `peers/limits.py` measures, in the probe's environment, and `start`: seconds to load IMPORTS in ours."""
    tokenizer = bench.assets / "tokenizers" / OURS.tokenizer / "tokenizer.json"
    command = [
        bench.pythons["probe"],
        PEERS / "limits.py",
        "--input",
        corpus.jsonl,
        "--tokenizer",
        tokenizer,
        "--out",
        bench.work,
    ]
    settle(corpus.jsonl)
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=bench.variables(OURS), check=False
    )
    if done.returncode:
        raise BenchmarkError(f"the limits cannot be measured: {last_words(done.stderr)}")
    found: dict[str, float] = json.loads(done.stdout)
    starts = [
        measure([sys.executable, "-c", IMPORTS], bench.work / "start.log", bench.variables(OURS))["wall"] for _ in range(3)
    ]
    return found | {"start": statistics.median(starts)}


def table(wall: float, stages: list[dict[str, Any]], limit: dict[str, float], source_bytes: int) -> list[tuple[str, ...]]:
    """A row of text under HEADINGS per stage that took time, one for the rest of the run, and their sum.

    The limit of a stage is its own work done alone, and its bytes hashed and written at full speed; that of the rest,
    to start and to hash the source.
    """
    rows: list[tuple[str, ...]] = []
    total = 0.0
    for stage in stages:
        if not stage["seconds"]:
            continue
        size = stage["bytes"]
        work = limit[name] if (name := {"load": "parse"}.get(stage["stage"], stage["stage"])) in limit else size / limit["copy"]
        parts = (work, size / limit["hash"], size / limit["write"])
        total += sum(parts)
        times = digits(stage["seconds"] / sum(parts))
        rows.append(
            (stage["stage"], digits(stage["seconds"]), digits(sum(parts)), times, *map(digits, parts), digits(size / 1e6))
        )
    rest = wall - sum(stage["seconds"] for stage in stages)
    start, hashed = limit["start"], source_bytes / limit["hash"]
    total += start + hashed
    rows.append(
        (
            "the rest",
            digits(rest),
            digits(start + hashed),
            digits(rest / (start + hashed)),
            digits(start),
            digits(hashed),
            "",
            "",
        )
    )
    return [*rows, ("all", digits(wall), digits(total), digits(wall / total), "", "", "", "")]
