"""The command line of the cost model."""

import argparse
import json
import os
import sys
from pathlib import Path

import scripts.scaling
from scripts.benchmark.__main__ import SIZES
from scripts.benchmark.corpora import Corpus, prepare
from scripts.benchmark.environments import BenchmarkError
from scripts.benchmark.rounds import say
from scripts.scaling import check, costs, report, scenarios

HERE = Path(__file__).resolve().parent


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    flags = argparse.ArgumentParser(
        prog="python -m scripts.scaling",
        description=scripts.scaling.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("command", choices=["measure", "check", "simulate", "report"])
    flags.add_argument("--rounds", type=positive, default=2, help="of measure and check; default 2")
    flags.add_argument("--sizes", default="20mb,200mb", help=f"check: of {', '.join(SIZES)}; default 20mb,200mb")
    flags.add_argument("--seeds", type=positive, default=20, help="simulate: how often each; default 20")
    flags.add_argument("--figures", type=Path, default=HERE, help="where the JSON files lie; default beside this script")
    flags.add_argument("--page", type=Path, default=HERE.parents[1] / "SCALING.md", help="report: whose tables to fill in")
    flags.add_argument("--work", type=Path, default=Path("data/bench"), help="for corpora and runs; default data/bench")
    flags.add_argument("--assets", type=Path, default=os.environ.get("PIPELINE_ASSETS"), help="default $PIPELINE_ASSETS")
    return flags


def positive(text: str) -> int:
    """A number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0; 1 where a run is further than 15 % from what was foretold; 2 where something is missing."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except BenchmarkError as error:
        say(f"error: {error}")
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what was asked for. Raises BenchmarkError."""
    measured = options.figures / "measured.json"
    if options.command == "measure":
        small, text = (corpus(options, size) for size in ("20mb", "200mb"))
        costs.measure_costs(small, text, options.work.resolve(), options.assets.resolve(), options.rounds).save(measured)
        print(measured)
    elif options.command == "check":
        known = costs.Costs.load(measured)
        texts = [corpus(options, size) for size in options.sizes.split(",")]
        found = check.measure(known, texts, options.work.resolve(), options.assets.resolve(), options.rounds)
        check.save(found, options.figures / "checked.json")
        return int(not check.show(found))
    elif options.command == "simulate":
        known = costs.Costs.load(measured)
        (options.figures / "simulated.json").write_text(
            json.dumps(scenarios.all_of_them(known, options.seeds), indent=1) + "\n"
        )
        print(options.figures / "simulated.json")
    else:
        known, found = costs.Costs.load(measured), check.load(options.figures / "checked.json")
        simulated = scenarios.load(options.figures / "simulated.json")
        if not options.page.is_file():
            raise BenchmarkError(f"there is no page {str(options.page)!r} to fill in: name one with --page.")
        report.plot_nodes(known, simulated, options.page.parent / "docs" / "scaling-nodes.svg")
        report.plot_failures(simulated, options.page.parent / "docs" / "scaling-failures.svg")
        options.page.write_text(report.fill(options.page.read_text(), report.blocks(known, found, simulated)))
        print(options.page)
    return 0


def corpus(options: argparse.Namespace, size: str) -> Corpus:
    """One of the corpora of the benchmark. Raises BenchmarkError where it cannot be had."""
    if size not in SIZES:
        raise BenchmarkError(f"--sizes {size}: known are {', '.join(SIZES)}.")
    name, copies = SIZES[size]
    if options.assets is None or not (source := options.assets / "corpora" / name).is_file():
        raise BenchmarkError(f"{name} is not in the offline mirror {options.assets}: name it in PIPELINE_ASSETS or --assets.")
    return prepare(size, [source], options.work / "corpora", copies)


if __name__ == "__main__":
    sys.exit(main())
