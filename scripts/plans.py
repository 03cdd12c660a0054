"""What planning costs at any size: processor seconds and peak memory of a simulated corpus, each in its own process.

    python -m scripts.plans                 # 1 TB and 50 TB, a million files, windows over all of it, a manifest
    python -m scripts.plans --files 1000000 --bytes 2000

Nothing is read: the plan is made from a listing, as if each file had been found and hashed already. Its shards are about
65,536, and so are the files that a manifest lists: of a larger corpus both grow in size and not in number. Where files are a
little larger than a shard there are up to 1.6 times as many. Memory grows with the number of files, each of which is noted.
"""

import argparse
import gc
import hashlib
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import plan
from pipeline.cache import Cache
from pipeline.config import Corpus, Window
from pipeline.console import size
from pipeline.files import Stat

TOKENS = 4  # bytes of text in one, about


def peak() -> int:
    """Bytes of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def listing(files: int, each: int) -> dict[str, Stat]:
    """So many files of so many bytes, as `places.find` would find them."""
    return {f"texts/{n // 1000:05d}/{n:08d}.jsonl": (n + 1, each, 10**18 + n, 10**18 + n) for n in range(files)}


def planned(files: int, each: int) -> plan.Plan:
    """The plan of a simulated corpus, cut as `plan.make` cuts one of plain lines, with digests of nothing."""
    found, corpus = listing(files, each), Corpus(format="jsonl", paths=["texts"])
    step = plan.shared_out(corpus, found).shard_bytes
    edges = [*range(0, each, step), each] if each > step * 5 // 4 else [0, each]
    known = {
        path: [(a, b, b - a, hashlib.sha256(f"{path} {a}".encode()).hexdigest(), "") for a, b in itertools.pairwise(edges)]
        for path in found
    }
    return plan.group(plan.shared_out(corpus, found), found, known)


def plan_files(files: int, each: int) -> str:
    """Plan and digest them."""
    made = planned(files, each)
    assert made.bytes == files * each and made.sha256
    return f"{len(made.shards):,} shards of about {size(made.bytes // len(made.shards))}"


def plan_windows(files: int, each: int) -> str:
    """Plan the windows over all tokens of them."""
    from pipeline import window

    shards = len(planned(files, each).shards)
    counts = [files * each // TOKENS // shards] * shards
    settings = Window(context_length=2048, stride=2048, max_bytes=1 << 62)
    made = window.plan(settings, counts, "uint16", None, None, None)  # type: ignore[arg-type]  # no length is read
    return f"{made.rows:,} rows in {len(made.shards):,} files"


def manifest(files: int, each: int) -> str:
    """Publish and read back a manifest of so many files with the counts of stage `load`."""
    with tempfile.TemporaryDirectory() as folder:
        entry = Cache.open(Path(folder)).entry("load", {"version": 0})
        counts = dict.fromkeys(("documents", "records", "rows", "text_bytes", "input_bytes", "dropped_bad_documents"), each)
        note = {"bytes": each, "sha256": "0" * 64, "counts": counts}
        names = [f"{index:08d}.arrow" for index in range(files)]
        entry.finish(names, [note] * files, ledger={"load": {"rows": files * each}}, rows=files * each)
        found = entry.manifest()
        assert found is not None and len(found["files"]) == files
        return f"{files:,} files, {size((entry.folder / 'manifest.json').stat().st_size)}"


def measured(work: Callable[[int, int], str], files: int, each: int) -> tuple[str, float, int]:
    """What `work` says, the processor seconds it took, and the peak of memory of a process that does nothing else."""
    gc.set_threshold(100_000)  # as in a run
    started = time.process_time()
    said = work(files, each)
    return said, time.process_time() - started, peak()


CASES: dict[str, tuple[Callable[[int, int], str], int, int]] = {
    "1 TB in files of 1 GB": (plan_files, 1_000, 10**9),
    "50 TB in files of 1 GB": (plan_files, 50_000, 10**9),
    "50 TB in a million files": (plan_files, 1_000_000, 50 * 10**6),
    "a million files of 2 kB": (plan_files, 1_000_000, 2_000),
    "windows over 50 TB": (plan_windows, 50_000, 10**9),
    "a manifest, written and read": (manifest, plan.MOST, 16 << 20),
}


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(prog="python -m scripts.plans", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, help="one corpus instead: how many files")
    parser.add_argument("--bytes", type=int, default=2_000, help="and how large each is")
    asked = parser.parse_args()
    cases: dict[str, Any] = {f"{asked.files:,} files": (plan_files, asked.files, asked.bytes)} if asked.files else CASES
    for name, case in cases.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            said, seconds, memory = pool.apply(measured, case)
        print(f"{name:<30} {seconds:6.1f} s  {size(memory):>8}  {said}", flush=True)


if __name__ == "__main__":
    main()
