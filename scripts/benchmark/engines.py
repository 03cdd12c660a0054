"""What an engine costs per task, beside the others on the same cores: `python -m scripts.benchmark.engines`.

A corpus (by default the 200 MB of English, as JSONL) is cut into many shards, and every engine in turn makes GPT-2
windows of it in this process, each into a new cache, several rounds. The workers of Ray are warm: they have run the same
line over one shard before. What is compared is the median wall time of a run, and of an empty task by itself.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import config, engine
from pipeline.run import run
from scripts.benchmark.__main__ import SIZES
from scripts.benchmark.corpora import prepare
from scripts.benchmark.rounds import say

EMPTY = 2000  # tasks that do next to nothing


def settings(path: Path, work: Path, assets: Path, how: config.Engine, shard_bytes: int) -> config.Config:
    """The line that is measured."""
    return config.Config(
        name="x",
        corpus=config.Corpus(format="jsonl", paths=[str(path)], shard_bytes=shard_bytes),
        tokenizer=config.Tokenizer(kind="pretrained", name=str(assets / "tokenizers" / "gpt2")),
        window=config.Window(context_length=1024),
        embedding=config.Embedding(kind="none"),
        engine=how,
        cache=config.Cache(dir=str(work / "cache")),
        output=config.Output(dir=str(work / "outputs"), report=False),
    )


def measured(*settings_of: Any) -> tuple[float, int]:
    """Seconds of a run into a new cache, and its tasks."""
    asked = settings(*settings_of)
    for folder in (asked.cache.dir, asked.output.dir):
        shutil.rmtree(str(folder), ignore_errors=True)
    started = time.perf_counter()
    run(asked)
    seconds = time.perf_counter() - started
    tasks = sum(len(list(Path(asked.cache.dir, stage).glob("*/*.arrow"))) for stage in ("load", "window"))
    return seconds, tasks


def main() -> int:
    """The exit code: 0, or 1 where Ray takes more than `--most` times the faster of the other engines."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.engines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="200mb")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-bytes", type=int, default=1 << 20)
    parser.add_argument("--address", default="local", help="of the Ray cluster; default: one of our own")
    parser.add_argument("--most", type=float, default=1.5)
    parser.add_argument("--work", type=Path, default=Path("data/bench"))
    parser.add_argument("--assets", type=Path, default=os.environ.get("PIPELINE_ASSETS"))
    options = parser.parse_args()
    name, copies = SIZES[options.size]
    corpora = options.assets / "corpora"
    large = prepare(options.size, [corpora / name], options.work.resolve() / "corpora", copies).jsonl
    small = prepare("warm", [corpora / "bench-20mb.parquet"], options.work.resolve() / "corpora", most=200).jsonl
    work = options.work.resolve() / "engines"
    engines = [
        config.Engine("threads", options.workers),
        config.Engine("processes", options.workers),
        config.Engine("ray", options.workers, address=options.address),
    ]
    walls: dict[str, list[float]] = {how.kind: [] for how in engines}
    empty: dict[str, list[float]] = {how.kind: [] for how in engines}
    tasks = 0
    for round in range(options.rounds):
        for how in engines:
            measured(small, work, options.assets, how, options.shard_bytes)
            started = time.perf_counter()
            assert sum(engine.run(how, abs, range(EMPTY))) == EMPTY * (EMPTY - 1) // 2
            empty[how.kind].append((time.perf_counter() - started) / EMPTY)
            seconds, tasks = measured(large, work, options.assets, how, options.shard_bytes)
            walls[how.kind].append(seconds)
            say(f"round {round + 1} {how.kind}: {seconds:.2f} s")
    shutil.rmtree(work, ignore_errors=True)
    best = min(statistics.median(walls[how.kind]) for how in engines if how.kind != "ray")
    print(f"{tasks} tasks on {options.workers} workers\n\n| engine | wall s | times the best local | ms an empty task |")
    print("|---|---|---|---|")
    for kind, seconds_of in walls.items():
        wall = statistics.median(seconds_of)
        print(f"| {kind} | {wall:.2f} | {wall / best:.2f} | {1e3 * statistics.median(empty[kind]):.2f} |")
    ratio = statistics.median(walls["ray"]) / best
    more = 1e3 * (statistics.median(walls["ray"]) - best) * options.workers / tasks
    print(f"\nRay: {more:.1f} ms more of a worker's time per task")
    return ratio > options.most


if __name__ == "__main__":
    sys.exit(main())
