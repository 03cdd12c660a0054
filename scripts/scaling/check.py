"""Whole runs beside what the costs foretell."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.benchmark.corpora import Corpus
from scripts.benchmark.environments import BenchmarkError
from scripts.benchmark.report import Spread, print_table
from scripts.benchmark.rounds import say
from scripts.scaling.costs import MIB, Costs, run
from scripts.scaling.model import foretell

WORKERS = (1, 2)
SHARD = 16 * MIB  # the default of corpus.shard_bytes
ALLOWED = 0.15


@dataclass(frozen=True)
class Checked:
    """A corpus with so many workers: seconds of each round, and of each part as foretold."""

    corpus: str
    bytes: int
    workers: int
    measured: list[float]
    foretold: dict[str, float]

    @property
    def error(self) -> float:
        """How far the foretold sum is from the median: 0.1 for 10 % too much."""
        return sum(self.foretold.values()) / statistics.median(self.measured) - 1


def measure(costs: Costs, corpora: list[Corpus], work: Path, assets: Path, rounds: int) -> list[Checked]:
    """Run each corpus with one worker and with two, in turn, `rounds` times over."""
    walls: dict[tuple[str, int], list[float]] = {}
    for number in range(1, rounds + 1):
        for corpus in corpora:
            for workers in WORKERS:
                wall = run(corpus, work, assets, workers, SHARD).wall
                walls.setdefault((corpus.name, workers), []).append(round(wall, 3))
                say(f"round {number} of {rounds}: {corpus.name}, {workers} of 2 workers: {wall:.2f} s")
    sizes = {corpus.name: corpus.jsonl.stat().st_size for corpus in corpora}
    return [
        Checked(name, sizes[name], workers, found, {k: round(v, 4) for k, v in foretell(costs, sizes[name], workers).items()})
        for (name, workers), found in walls.items()
    ]


def save(found: list[Checked], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


def load(path: Path) -> list[Checked]:
    """From JSON. Raises BenchmarkError where there is none."""
    if not path.is_file():
        raise BenchmarkError(f"{path} is not there: python -m scripts.scaling check")
    return [Checked(**one) for one in json.loads(path.read_text())]


def rows(found: list[Checked]) -> list[tuple[str, ...]]:
    """A row of text each."""
    return [
        (
            one.corpus,
            str(one.workers),
            str(Spread.of(one.measured)),
            f"{sum(one.foretold.values()):.2f}",
            f"{100 * one.error:+.0f} %",
        )
        for one in found
    ]


HEADINGS = ("corpus", "workers", "measured s", "foretold s", "error")


def show(found: list[Checked]) -> bool:
    """Print them; True where all are within what is allowed."""
    print_table("whole runs, cold: measured and foretold", HEADINGS, rows(found))
    for one in found:
        print(one.corpus, one.workers, "workers:", ", ".join(f"{part} {seconds:.2f}" for part, seconds in one.foretold.items()))
    return all(abs(one.error) <= ALLOWED for one in found)
