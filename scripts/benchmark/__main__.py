"""The command line of the benchmark."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import scripts.benchmark
from scripts.benchmark import report, stages
from scripts.benchmark.corpora import Corpus, prepare
from scripts.benchmark.environments import PEERS, BenchmarkError, environment
from scripts.benchmark.rounds import COMMANDS, Bench, choose, estimate, say

SIZES = {"20mb": ("bench-20mb.parquet", 1), "200mb": ("bench-200mb.parquet", 1), "2gb": ("bench-200mb.parquet", 10)}
REHEARSAL = 50  # documents on which every command must work before anything is measured


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    told = (scripts.benchmark.__doc__ or "").split("\n\n")
    commands = "\n".join(f"  {c.name:<14} {c.about}" for c in COMMANDS)
    flags = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=told[0],
        epilog=f"commands:\n{commands}\n\n{told[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--sizes", default="20mb,200mb", help=f"of {', '.join(SIZES)}; default 20mb,200mb")
    flags.add_argument("--input", type=Path, nargs="+", help="your own text: JSONL or Parquet with a column `text`, or plain")
    flags.add_argument("--rounds", type=int, default=5, help="default 5")
    flags.add_argument("--only", help="some of the commands below; default all, and of 2gb only ours and the probe")
    flags.add_argument("--stages", action="store_true", help="where our own time goes, stage by stage, and nothing else")
    flags.add_argument(
        "--work", type=Path, default=Path("data/bench"), help="for corpora, environments, results; default data/bench"
    )
    flags.add_argument("--assets", type=Path, default=os.environ.get("PIPELINE_ASSETS"), help="default $PIPELINE_ASSETS")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0; 1 where IDs differ or a command of ours failed; 2 on a wrong command line or missing input."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except BenchmarkError as error:
        say(f"error: {error}")
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what was asked for. Raises BenchmarkError."""
    if options.assets is None or not (options.assets / "tokenizers").is_dir():
        raise BenchmarkError(f"no tokenizers in {options.assets}: name the offline mirror in PIPELINE_ASSETS or --assets.")
    bench = Bench(options.work.resolve(), options.assets.resolve())
    bench.work.mkdir(parents=True, exist_ok=True)
    choose(options.only, 0)
    texts = corpora(options, bench)
    if options.stages:
        bench.pythons["probe"] = environment(PEERS / "probe.py", bench.work / "env")
        for text in texts:
            stages.show(bench, text)
        return 0
    commands = {text.name: choose(options.only, text.text_bytes) for text in texts}
    all_of_them = [c for c in COMMANDS if any(c in some for some in commands.values())]
    for peer in dict.fromkeys(c.peer for c in all_of_them if c.peer):
        try:
            bench.pythons[peer] = environment(PEERS / f"{peer}.py", bench.work / "env")
        except BenchmarkError as error:
            bench.left_out |= {c.name: f"cannot be installed: {error}" for c in all_of_them if c.peer == peer}
    say("rehearsal")
    sources = options.input or [bench.assets / "corpora" / SIZES[texts[0].name][0]]
    few = prepare("rehearsal", sources, bench.work / "corpora", most=REHEARSAL)
    Bench(bench.work, bench.assets, bench.pythons, left_out=bench.left_out).rounds(few, all_of_them, 1)
    for text in texts:
        todo = [c for c in commands[text.name] if c.name not in bench.left_out and c.cold not in bench.left_out]
        minutes = estimate(todo, text.text_bytes, options.rounds) / 60
        say(f"{text.name}: {options.rounds} rounds of {', '.join(c.name for c in todo)}: about {minutes:.0f} min")
        bench.rounds(text, todo, options.rounds, bench.work / "results.json")
    shutil.rmtree(bench.work / "out", ignore_errors=True)
    report.show(bench, texts)
    if not report.plot(bench, texts, bench.work / "ratios.svg"):
        say("no plot: it needs matplotlib and the probe")
    print(bench.work / "results.json")
    differ = any(row[-1] == "DIFFER" for text in texts for row in report.table(bench, text.name))
    return int(differ or any(c.name in bench.left_out for c in COMMANDS if c.peer is None))


def corpora(options: argparse.Namespace, bench: Bench) -> list[Corpus]:
    """The texts to measure on. Raises BenchmarkError where one cannot be had."""
    folder = bench.work / "corpora"
    if options.input:
        for path in options.input:
            if not path.is_file():
                raise BenchmarkError(f"--input {path} is not a file.")
        return [prepare("input", options.input, folder)]
    sizes = options.sizes.split(",")
    for size in sizes:
        if size not in SIZES:
            raise BenchmarkError(f"--sizes {size}: known are {', '.join(SIZES)}.")
        if not (bench.assets / "corpora" / SIZES[size][0]).is_file():
            raise BenchmarkError(
                f"{SIZES[size][0]} is not in the offline mirror {bench.assets}: give your own text with --input."
            )
    say(f"corpora: {', '.join(sizes)}")
    return [prepare(size, [bench.assets / "corpora" / SIZES[size][0]], folder, SIZES[size][1]) for size in sizes]


if __name__ == "__main__":
    sys.exit(main())
