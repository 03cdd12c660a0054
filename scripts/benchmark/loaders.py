"""How fast windows are read back, beside the loaders people use: `python -m scripts.benchmark.loaders outputs/verdict`.

    dataset ─▶ exports ─▶ windows compared ─▶ rounds: A B C … A B C … ─▶ table, loaders.json

Every reader of `readers.py` gives random batches of the same windows as int64 tensors, in a process of its own: ours and
`datasets` read the dataset, the others its exports for nanoGPT, litdata and mosaicml-streaming. Rounds interleave them, and
the ratios are taken within a round. First: seconds from behind the imports to the first batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.console import table
from pipeline.errors import PipelineError
from pipeline.exports import export
from pipeline.exports.source import Source
from scripts.benchmark.environments import PEERS, ROOT, BenchmarkError, environment, last_words

READERS = {  # and what each reads
    "ours": None,
    "memmap": "nanogpt",
    "gather": "nanogpt",
    "datasets": None,
    "litdata": "litdata",
    "mds": "mds",
}
PEER = {"litdata": "litdata_optimize", "mds": "mosaic_mds"}  # the peer in whose environment a reader runs
YARDSTICK = "memmap"


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    told = (__doc__ or "").split("\n\n")
    flags = argparse.ArgumentParser(prog="python -m scripts.benchmark.loaders", description=told[0], epilog=told[2])
    flags.add_argument("dataset", type=Path, help="a finished dataset of window=sliding whose windows cross documents")
    flags.add_argument("--rounds", type=int, default=5, help="default 5")
    flags.add_argument("--seconds", type=float, default=2.0, help="that each reader reads in a round; default 2")
    flags.add_argument("--only", default=",".join(READERS), help="some of the readers; default all")
    flags.add_argument("--batches", default="8,64", help="default 8,64")
    flags.add_argument("--workers", default="0,2", help="default 0,2")
    flags.add_argument("--work", type=Path, default=Path("data/bench"), help="for exports, environments, results")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0; 1 where windows differ; 2 where it cannot be measured."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except (BenchmarkError, PipelineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what was asked for. Raises BenchmarkError."""
    from pipeline import open_dataset

    names = [name for name in READERS if name in options.only.split(",")]
    dataset = open_dataset(options.dataset)
    source = Source(dataset, "train")
    shape = ["--length", str(source.length), "--stride", str(source.window.stride or source.window.context_length)]
    folders, pythons = {}, {}
    for name in names:
        to = READERS[name]
        folders[name] = export(options.dataset, to, options.work / "loaders" / to) if to else dataset.path
        pythons[name] = Path(sys.executable)
        if name in PEER:
            pythons[name] = environment(PEERS / f"{PEER[name]}.py", (options.work / "env").resolve())

    def ask(name: str, *words: str) -> Any:
        command = [pythons[name], Path(__file__).with_name("readers.py"), name, folders[name], *shape, *words]
        own = os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{name}: {last_words(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])

    sums = {name: ask(name, "--check")["sha256"] for name in names}
    if len(set(sums.values())) > 1:
        print(f"windows differ: {sums}", file=sys.stderr)
        return 1
    settings = [(int(b), int(w)) for w in options.workers.split(",") for b in options.batches.split(",")]
    results: dict[str, list[dict[str, float]]] = {}
    for turn in range(options.rounds):
        for batch, workers in settings:
            print(f"round {turn + 1} of {options.rounds}: batch {batch}, {workers} workers", file=sys.stderr, flush=True)
            for name in names:
                words = ("--batch", str(batch), "--workers", str(workers), "--seconds", str(options.seconds))
                results.setdefault(f"{name} {batch} {workers}", []).append(ask(name, *words))
    (options.work / "loaders.json").write_text(json.dumps({"rows": len(dataset), "results": results}, indent=1))
    print(f"{len(dataset):,} windows of {source.length - 1:,}, all the same; medians of {options.rounds} rounds")
    table(["reader", "batch", "workers", "M tokens/s", f"× {YARDSTICK}", "first batch, s"], rows(results, names, settings))
    return 0


def rows(results: dict[str, list[dict[str, float]]], names: list[str], settings: list[tuple[int, int]]) -> list[list[Any]]:
    """The table: medians over rounds, and the median of the ratios to the yardstick within each round."""
    out = []
    for batch, workers in settings:
        beside = results.get(f"{YARDSTICK} {batch} {workers}")
        for name in names:
            own = results[f"{name} {batch} {workers}"]
            rate, first = (statistics.median(each[what] for each in own) for what in ("rate", "first"))
            ratio: Any = ""
            if beside:
                ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(own, beside, strict=True))
            out.append([name, str(batch), str(workers), rate / 1e6, ratio, first])
    return out


if __name__ == "__main__":
    sys.exit(main())
