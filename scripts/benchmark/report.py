"""What the figures come to: tables, aims, a plot."""

import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.corpora import Corpus
from scripts.benchmark.rounds import COMMANDS, Bench, Run

HEADINGS = ("command", "wall s", "× probe", "M tokens/s", "CPU s", "peak MB", "bytes/token", "IDs")

PURPOSE = {
    "load": "the text, and where each document came from",
    "tokenizer": "tokenizer.json and the vocabulary; the same at any size",
    "tokenize": "tokens a person can read: indices into the vocabulary",
    "encode": "the stream, from which windows of any length are cut",
    "window": "input_ids and target_ids; the dataset links to these files",
    "embed": "the tables of vectors",
}


@dataclass(frozen=True)
class Spread:
    """Median and extremes of a few figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None where there are no figures."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None

    def __str__(self) -> str:
        return f"{digits(self.median)} ({digits(self.least)}–{digits(self.most)})"


def digits(value: float) -> str:
    """A number to about three digits.

    >>> digits(1.234), digits(12.34), digits(1234.5)
    ('1.23', '12.3', '1234')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def of(bench: Bench, corpus: str, command: str) -> list[Run]:
    """The runs of a command on a corpus."""
    return [run for run in bench.runs if (run.corpus, run.command) == (corpus, command)]


def ratio(bench: Bench, corpus: str, over: str, under: str) -> Spread | None:
    """How many times as long `over` took as `under`, round by round; None where no round has both."""
    below = {run.round: run.wall for run in of(bench, corpus, under)}
    return Spread.of(run.wall / below[run.round] for run in of(bench, corpus, over) if run.round in below)


def table(bench: Bench, corpus: str) -> list[tuple[str, ...]]:
    """A row of text under HEADINGS for each command that ran on a corpus.

    IDs are compared with ours, or where ours did not run with those of the first command.
    """
    rows: list[tuple[str, ...]] = []
    digests = bench.digests.get(corpus, {})
    for command in COMMANDS:
        runs = of(bench, corpus, command.name)
        wall = Spread.of(run.wall for run in runs)
        if wall is None:
            continue
        own = digests.get(command.name)
        same = [c for c in COMMANDS if c.name in digests and c.tokenizer == command.tokenizer]
        other = digests[min(same, key=lambda c: c.peer is not None).name] if same else None
        tokens = own["tokens"] if own else 0
        rows.append(
            (
                command.name,
                str(wall),
                str(ratio(bench, corpus, command.name, "probe") or ""),
                digits(tokens / wall.median / 1e6) if tokens else "",
                digits(statistics.median(run.cpu for run in runs)),
                f"{statistics.median(run.peak for run in runs) / 1e6:.0f}",
                digits(runs[0].disk / tokens) if tokens else "",
                ("equal" if own == other else "DIFFER") if own else "",
            )
        )
    return rows


def kept(bench: Bench, corpus: str) -> list[tuple[str, ...]]:
    """Bytes per token in our cache: a row for each of our cold commands and stages, and what the stage is kept for."""
    rows: list[tuple[str, ...]] = []
    for command in (c for c in COMMANDS if c.peer is None and c.cold == c.name):
        tokens = bench.digests.get(corpus, {}).get(command.name, {}).get("tokens", 0)
        for run in of(bench, corpus, command.name)[:1] if tokens else ():
            rows += [(command.name, s, digits(size / tokens), PURPOSE.get(s, "")) for s, size in run.stages.items()]
    return rows


@dataclass(frozen=True)
class Aim:
    """A figure and the bounds it is held against."""

    text: str
    measured: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Is it within them?"""
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)

    def __str__(self) -> str:
        least = [] if self.least is None else [f"at least {digits(self.least)}"]
        most = [] if self.most is None else [f"at most {digits(self.most)}"]
        return f"{'met' if self.met else 'MISSED':<6} {self.text}: {digits(self.measured)} ({', '.join(least + most)})"


def aims(bench: Bench, text_bytes: Mapping[str, int]) -> list[Aim]:
    """Every aim that the figures speak of; `text_bytes` is by corpus."""

    def times(corpus: str, over: str, under: str, least: float | None = None, most: float | None = None) -> list[Aim]:
        found = ratio(bench, corpus, over, under)
        return [Aim(f"{corpus}: time of {over} over {under}", found.median, least, most)] if found else []

    found = times("200mb", "ours", "probe", most=1.7) + times("200mb", "ours-parquet", "probe", most=1.7)
    found += times("200mb", "datatrove", "ours", least=30) + times("200mb", "nanogpt", "ours", least=8)
    found += times("20mb", "datatrove", "ours", least=8) + times("200mb", "datasets-bert", "ours-bert", least=8)
    if warm := Spread.of(run.wall for run in of(bench, "200mb", "ours-warm")):
        found.append(Aim("200mb: seconds of ours-warm", warm.median, most=1.5))
    cold = {
        size: runs for corpus, size in sorted(text_bytes.items(), key=lambda c: c[1]) if (runs := of(bench, corpus, "ours"))
    }
    peaks = [statistics.median(run.peak for run in runs) / 1e6 for runs in cold.values()]
    if peaks:
        found.append(Aim("peak MB of ours", max(peaks), most=1000))
    if len(peaks) > 1:
        found.append(Aim("peak of ours, the largest over the smallest of all sizes", max(peaks) / min(peaks), most=1.3))
    if len(cold) > 2:
        (x0, y0), (x1, y1), (x2, y2) = (
            (size, statistics.median(run.wall for run in runs)) for size, runs in list(cold.items())[:3]
        )
        steepness = ((y2 - y1) / (x2 - x1)) / ((y1 - y0) / (x1 - x0))
        found.append(Aim("seconds per byte of ours, the upper step over the lower", steepness, 0.9, 1.1))
    return found


def print_table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table for a person; numbers to the right. Nothing where there are no rows."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("command", "stage", "IDs", "for") else "right")
    for row in rows:
        shown.add_row(*row)
    if rows:
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(shown)


def show(bench: Bench, corpora: list[Corpus]) -> None:
    """Print tables, what was left out, and the aims."""
    for corpus in corpora:
        title = f"{corpus.name}: {corpus.text_bytes / 1e6:.0f} MB of text, {corpus.documents:,} documents"
        print_table(title, HEADINGS, table(bench, corpus.name))
        print_table(
            f"{corpus.name}: what our cache keeps", ("command", "stage", "bytes/token", "for"), kept(bench, corpus.name)
        )
    print("median (least–most); the peak is the largest process of a tree; bytes count all that was left on disk.")
    for name, reason in bench.left_out.items():
        print(f"left out: {name}: {reason}")
    for aim in aims(bench, {corpus.name: corpus.text_bytes for corpus in corpora}):
        print(aim)


def plot(bench: Bench, corpora: list[Corpus], path: Path) -> bool:
    """Bars of the ratios to the probe on a logarithmic scale; False where matplotlib is not installed or nothing ran."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    found = {corpus.name: {c.name: ratio(bench, corpus.name, c.name, "probe") for c in COMMANDS} for corpus in corpora}
    names = [c.name for c in reversed(COMMANDS) if any(spreads[c.name] for spreads in found.values())]
    if not names:
        return False
    figure = Figure(figsize=(8, 1 + 0.3 * len(names) * len(corpora)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(corpora)
    for place, (corpus, spreads) in enumerate(found.items()):
        bars = [(y + 0.4 - height * (place + 0.5), spread) for y, name in enumerate(names) if (spread := spreads[name])]
        reach = [[s.median - s.least for _, s in bars], [s.most - s.median for _, s in bars]]
        drawn = axes.barh([y for y, _ in bars], [s.median for _, s in bars], height, xerr=reach, label=corpus)
        axes.bar_label(drawn, [digits(s.median) for _, s in bars], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlabel("wall time over the probe's: median, least and most")
    axes.margins(x=0.12)
    axes.legend()
    figure.savefig(path)
    return True
