"""`python -m tests.faults.cost [--megabytes 200] [--rounds 3]`: what hashing and fsync cost a cold run.

The processor time of every sha256 update is added up in the threads that make it, and set against that of the whole
process; the wall-clock time of runs is set against that of runs, in turn with them, whose updates and fsyncs do
nothing. Ratios mean something on a busy machine too, seconds do not.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .kill import OPTIONS, ROOT, write_corpus

spent = {"sha256": 0.0, "fsync": 0.0}  # seconds: of processor time, of waiting
_lock = threading.Lock()


class Watched:
    """sha256 whose updates are timed; with `idle` they do nothing."""

    idle = False
    _make = hashlib.sha256

    def __init__(self, data: bytes = b"", **options: Any) -> None:
        self._sha = Watched._make(data, **options)

    def update(self, data: Any) -> None:
        """Hash, and count how long it takes."""
        if not Watched.idle:
            began = time.thread_time()
            self._sha.update(data)
            with _lock:
                spent["sha256"] += time.thread_time() - began

    def digest(self) -> bytes:
        """As sha256's."""
        return self._sha.digest()

    def hexdigest(self) -> str:
        """As sha256's."""
        return self._sha.hexdigest()


def child(idle: bool, at: Path, tokenizer: str) -> int:
    """One cold run in this process; prints its seconds as JSON."""
    from pipeline import cli

    fsync = os.fsync

    def watched(handle: int) -> None:
        began = time.monotonic()
        if not idle:
            fsync(handle)
        with _lock:
            spent["fsync"] += time.monotonic() - began

    Watched.idle = idle
    vars(hashlib)["sha256"], vars(os)["fsync"] = Watched, watched
    os.chdir(at)
    began, cpu = time.monotonic(), time.process_time()
    code = cli.exit_code([*OPTIONS, f"tokenizer={tokenizer}", "cache.dir=cache", "output.dir=out"])
    figures = {"wall": time.monotonic() - began, "cpu": time.process_time() - cpu, **spent}
    print(json.dumps(figures))
    return code


def main() -> int:
    """Rounds of a run as it is and one without; prints the shares. Returns 1 where hashing takes more than a quarter."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cost", description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", default="bytes", help="gpt2 needs the offline mirror; bytes stores most for its work")
    parser.add_argument("--child", choices=["whole", "idle"], help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child == "idle", options.at, options.tokenizer)
    at = Path(tempfile.mkdtemp(prefix="cost-"))
    found: dict[str, list[dict[str, float]]] = {"whole": [], "idle": []}
    try:
        write_corpus(at / "big.txt", options.megabytes * 1_000_000)
        for _ in range(options.rounds):
            for kind in found:
                for name in ("cache", "out"):
                    shutil.rmtree(at / name, ignore_errors=True)
                command = [sys.executable, "-m", "tests.faults.cost", "--child", kind, "--at", str(at)]
                command += ["--tokenizer", options.tokenizer]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(at, ignore_errors=True)
    shares = [one["sha256"] / one["cpu"] for one in found["whole"]]
    walls = [whole["wall"] / idle["wall"] for whole, idle in zip(found["whole"], found["idle"], strict=True)]
    print(
        f"sha256, of the processor time of a cold run of {options.megabytes} MB, tokenizer={options.tokenizer}: {statistics.median(shares):.1%}"
    )
    print(f"wall clock with hashing and fsync, of that without: {statistics.median(walls):.2f}")
    print(json.dumps(found))
    return int(statistics.median(shares) > 0.25)


if __name__ == "__main__":
    sys.exit(main())
