"""`python -m tests.faults.kill [--megabytes 200]`: kill -9 twice in the middle of a large run, then let it end.

Each run is `python -m pipeline` in a process group of its own, all of which is killed: once when a third of the
shards is finished, once at two thirds. At the end all bytes are those of an undisturbed run, and every shard that
was finished at a kill is the same file, inode and time, as it was then.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import runs
from .runs import CACHE, DATASET

ROOT = Path(__file__).resolve().parents[2]
SHARD = 4_000_000
OPTIONS = (
    "corpus=text", "corpus.paths=[big.txt]", "corpus.document=line", f"corpus.shard_bytes={SHARD}", "name=small",
    "tokenizer=bpe", "window.context_length=512", "embedding=none",
)  # fmt: skip


def write_corpus(path: Path, size: int) -> None:
    """About so many bytes of lines of words that the sample has, some more often than others."""
    words = np.array(sorted(set((ROOT / "data/sample.txt").read_text("utf-8").split())))
    draw = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < size:
            chosen = words[(len(words) * draw.random(200_000) ** 3).astype(int)]
            file.write("\n".join(" ".join(line) for line in np.split(chosen, 2000)) + "\n")


def start(at: Path, *options: str) -> "subprocess.Popen[str]":
    """A run in the folder `at`."""
    command = [sys.executable, "-m", "pipeline", *OPTIONS, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=at, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finished(at: Path) -> int:
    """How many shards of `encode` lie there with a receipt."""
    return len(list((at / CACHE / "encode").glob("*/.[0-9]*.receipt")))


def main() -> int:
    """Run, kill, run, kill, run, compare. Returns the exit code: 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill", description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of text")
    parser.add_argument("--engine", default="threads", help="threads, processes or serial")
    options = parser.parse_args()
    at = Path(tempfile.mkdtemp(prefix="kill-"))
    try:
        write_corpus(at / "big.txt", options.megabytes * 1_000_000)
        shards = (at / "big.txt").stat().st_size // SHARD  # a small rest joins the last
        began = time.monotonic()
        calm = start(at, f"engine={options.engine}", "cache.dir=calm", "output.dir=outputs/calm")
        said = calm.communicate()[1]
        if calm.returncode:
            raise RuntimeError(f"the undisturbed run failed: {said}")
        print(f"undisturbed: {(at / 'big.txt').stat().st_size:,} bytes, {shards} shards, {time.monotonic() - began:.1f} s")
        kept: dict[str, tuple[int, int]] = {}
        for nth, part in (("first", 1 / 3), ("second", 2 / 3)):
            run = start(at, f"engine={options.engine}")
            while run.poll() is None and finished(at) < part * shards:
                time.sleep(0.005)
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            now = runs.promised(at)
            lost = kept.items() - now.items()
            kept |= now
            print(
                f"{nth} kill: exit {run.returncode}, {len(now)} files finished, {len(lost)} finished before were written again"
            )
            if run.returncode != -signal.SIGKILL or lost:
                return 1
        run = start(at, f"engine={options.engine}")
        out, err = run.communicate()
        computed = re.findall(r"(\w+) +computed (\d+) of (\d+)", out)
        same = runs.digests(at / DATASET) == runs.digests(at / "outputs/calm")
        lost = kept.items() - runs.promised(at).items()
        wrong = [*runs.leftovers(at), *runs.faults_of_cache(at), *runs.faults_of_dataset(at)]
        print(
            f"third run: exit {run.returncode}, computed {', '.join(f'{k} of {n} shards of {stage}' for stage, k, n in computed)}"
        )
        print(f"every byte of {len(runs.digests(at / DATASET))} files is the undisturbed run's: {'yes' if same else 'NO'}")
        print(f"finished files written again: {len(lost)} of {len(kept)}; left lying about or damaged: {wrong or 'nothing'}")
        if run.returncode:
            print(err)
        if run.returncode:
            print(err)
        return int(bool(run.returncode or not same or lost or wrong or not computed))
    finally:
        shutil.rmtree(at, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
