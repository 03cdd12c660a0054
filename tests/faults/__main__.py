"""`python -m tests.faults [--quick] [--only WORDS]`: every group, and "N of N points passed" for each."""

import argparse
import contextlib
import gc
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import shim
from .shim import workshop


def main() -> int:
    """Run the groups in a process group of their own, under the preloaded library. Returns 1 where a point failed.

    However this process is asked to end, it ends them all and removes their folder.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a few points of each group, within a minute")
    parser.add_argument("--only", default="", help="groups whose name holds this text")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="points tried at the same time")
    options = parser.parse_args()
    if reason := shim.missing():
        print(f"skipped: {reason}")
        return 0
    if base := os.environ.get("FAULTS_BASE"):
        return _all(options, Path(base))
    base = tempfile.mkdtemp(prefix="faults-", dir=workshop())
    apart = ["unshare", "-m"] if os.getuid() == 0 and shutil.which("unshare") else []  # what it mounts goes with it
    command, inner = [*apart, sys.executable, "-m", __package__, *sys.argv[1:]], None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        environment = os.environ | {"LD_PRELOAD": str(shim.build(Path(base))), "FAULTS_BASE": base}
        inner = subprocess.Popen(command, env=environment, process_group=0)
        return inner.wait()
    finally:
        if inner:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(inner.pid, signal.SIGKILL)
        shutil.rmtree(base, ignore_errors=True)


def _all(options: argparse.Namespace, base: Path) -> int:
    from . import damage, full, points, races

    templates = points.Templates(base)
    logging.getLogger("pipeline").setLevel(logging.ERROR)  # here; the runs say all
    gc.freeze()  # so that forks share what is imported
    faults = shim.Shim()
    failed = tried = 0
    began = time.monotonic()
    for group in points.groups():
        if options.only not in group.name:
            continue
        started = time.monotonic()
        total = points.count(group, templates, base / "count", faults)
        numbers = points.spread(total, 4 if options.quick else None)
        wrong = _shared(options.jobs, group, numbers, templates, base)
        for number, problems in sorted(wrong.items()):
            print(f"  point {number}: " + "\n    ".join(problems), flush=True)
        failed, tried = failed + len(wrong), tried + len(numbers)
        of = f" (a sample of {total})" if len(numbers) < total else ""
        print(
            f"{len(numbers) - len(wrong)} of {len(numbers)} points passed{of}: {group.name} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    for name, rounds, one in (
        *full.checks(templates, base / "disk", options.quick),
        *damage.checks(templates, base / "damage", options.quick),
        *races.checks(templates, base / "races", faults, options.quick),
    ):
        if options.only not in name:
            continue
        started, count, bad = time.monotonic(), 0, 0
        for number in range(rounds):
            done, problems = one(number)
            count, bad = count + done, bad + bool(problems)
            if problems:
                print(f"  round {number}: " + "\n    ".join(problems), flush=True)
        print(f"{count - bad} of {count} passed: {name} ({time.monotonic() - started:.0f} s)", flush=True)
        failed, tried = failed + bad, tried + count
    print(f"{tried - failed} of {tried} points passed in all ({time.monotonic() - began:.0f} s)")
    return 1 if failed else 0


def _shared(jobs: int, group: object, numbers: list[int], templates: object, base: Path) -> dict[int, list[str]]:
    """The points that failed, tried by so many forks of this process."""
    from . import points

    pipes = []
    for job in range(jobs):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(KeyboardInterrupt):
                faults, at = shim.Shim(), base / f"at-{job}"
                found = {}
                for number in numbers[job::jobs]:
                    if problems := points.tried(group, number, templates, at, faults):  # type: ignore[arg-type]
                        found[number] = problems
                with open(writing, "wb") as pipe:
                    pickle.dump(found, pipe)
                code = 0
            os._exit(code)
        os.close(writing)
        pipes.append((pid, reading))
    wrong: dict[int, list[str]] = {}
    for pid, reading in pipes:
        with open(reading, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        if not data:
            raise RuntimeError("a process of the harness itself died")
        wrong |= pickle.loads(data)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
