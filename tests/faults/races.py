"""Many runs on one cache, with locks and without; gc while they run; workers killed; runs killed at any moment."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import cache

from . import runs
from .points import Templates
from .runs import CACHE, DATASET, ENGINES, SMALL, Child, Ended
from .shim import Shim

Round = Callable[[int], tuple[int, list[str]]]  # number of the round -> how much was tried, what was wrong
ROOT = Path(__file__).resolve().parents[2]


def _together(at: Path, configs: list[Any], faults: Shim, locks: bool) -> list[Ended]:
    """So many runs in one folder, let loose at the same moment."""
    reading, writing = os.pipe()

    def gate() -> None:
        os.close(writing)
        os.read(reading, 1)  # ends when the last one that could write is gone
        if not locks:
            faults.unlock()

    children = [Child(at, lambda config=config: runs.attempt(config, gate), f"-{i}") for i, config in enumerate(configs)]
    os.close(reading)
    os.close(writing)
    return [child.wait() for child in children]


def race(round: int, at: Path, templates: Templates, faults: Shim, locks: bool) -> list[str]:
    """2 to 8 identical runs: all end well, with the same bytes, each stage computed once where locks work."""
    scenario = ("fresh", "replace", "heal")[round % 3]
    runs.clone(templates.base / scenario, at)
    count = 2 + round % 7
    ended = _together(at, [templates.configs[("threads", "serial")[i % 2]] for i in range(count)], faults, locks)
    wrong = _after(ended, at, templates.expected[scenario])
    if locks and scenario == "fresh":
        table = [line.split() for one in ended for line in one.out.splitlines()]
        for stage in ("load", "tokenizer", "tokenize", "encode", "window", "embed"):
            if (times := sum(row[:2] == [stage, "computed"] for row in table)) != 1:
                wrong.append(f"{stage} was computed {times} times under locks")
    return wrong


def different(round: int, at: Path, templates: Templates, faults: Shim, locks: bool) -> list[str]:
    """Runs of two configurations on one cache, into folders of their own."""
    runs.clone(templates.base / "fresh", at)
    strides = [(4, 8)[i % 2] for i in range(2 + round % 5)]
    configs = [
        runs.composed(*ENGINES["threads"], f"window.stride={s}", f"output.dir=outputs/{i}") for i, s in enumerate(strides)
    ]
    ended = _together(at, configs, faults, locks)
    wrong = [f"exit {one.code}: {one.err}" for one in ended if one.code or "Traceback" in one.err]
    wrong += runs.leftovers(at) + runs.faults_of_cache(at)
    found = [runs.digests(at / "outputs" / str(i)) for i in range(len(configs))]
    runs.clone(templates.base / "fresh", at)
    for i, config in enumerate(configs[:2]):
        runs.run(at, config)
        alone = runs.digests(at / "outputs" / str(i))
        if any(digests != alone for digests in found[i::2]):
            wrong.append(f"a run of stride {strides[i]} differs from one alone")
    return wrong


def _after(ended: list[Ended], at: Path, expected: dict[str, str]) -> list[str]:
    wrong = [f"exit {one.code}: {one.err}" for one in ended if one.code or "Traceback" in one.err]
    if runs.digests(at / DATASET) != expected:
        wrong.append("other bytes than those of an undisturbed run")
    return wrong + runs.leftovers(at) + runs.faults_of_cache(at) + runs.faults_of_dataset(at)


def collected(round: int, at: Path, templates: Templates, faults: Shim, locks: bool) -> list[str]:
    """gc takes all it may, again and again, while runs come and go: none of them notices."""
    runs.clone(templates.base / ("fresh", "whole")[round % 2], at)

    def collect() -> int:
        store = cache.Cache.open(at / CACHE)
        until = time.monotonic() + 30
        while time.monotonic() < until and not (at / "stop").exists():
            store.gc(0)
        store.close()
        return 0

    collector = Child(at, collect, "-gc")
    ended = []
    for _ in range(3):
        ended += _together(at, [templates.configs["threads"]] * (1 + round % 2), faults, locks)
    (at / "stop").touch()
    gone = collector.wait()
    (at / "stop").unlink()
    wrong = [f"gc ended with {gone.code}: {gone.err}"] if gone.code else []
    return wrong + _after(ended, at, templates.expected["fresh"])


def _process(at: Path, *overrides: str) -> "subprocess.Popen[str]":
    """`python -m pipeline` itself, in a new interpreter, without the library."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", *SMALL, *overrides]
    return subprocess.Popen(command, cwd=at, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _workers(parent: int) -> list[int]:
    """The worker processes of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and b"spawn_main" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def worker_killed(round: int, at: Path, templates: Templates) -> list[str]:
    """kill -9 of one worker process at a random moment of its life: the run ends well with the same bytes."""
    runs.clone(templates.base / "fresh", at)
    run = _process(at, "engine=processes", "engine.workers=2")
    draw = random.Random(round)
    while run.poll() is None and not (workers := _workers(run.pid)):
        time.sleep(0.005)
    if run.poll() is None:
        time.sleep(draw.random() * 0.8)
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(workers), signal.SIGKILL)
    out, err = run.communicate(timeout=runs.TIMEOUT)
    return _after([Ended(run.returncode, out, err)], at, templates.expected["fresh"])


def parent_killed(round: int, at: Path, templates: Templates) -> list[str]:
    """kill -9 of the run itself while its workers work: they end within five seconds, the next run ends well."""
    runs.clone(templates.base / "fresh", at)
    run = _process(at, "engine=processes", "engine.workers=2")
    while run.poll() is None and not (workers := _workers(run.pid)):
        time.sleep(0.005)
    time.sleep(random.Random(round).random() * 0.8)
    workers = _workers(run.pid) or workers
    run.kill()
    run.communicate()
    until = time.monotonic() + 5
    while time.monotonic() < until and (alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]):
        time.sleep(0.05)
    wrong = [f"orphans after 5 s: {alive}"] if alive else []
    return wrong + _after([runs.run(at, templates.configs["threads"])], at, templates.expected["fresh"])


def killed_again(round: int, at: Path, templates: Templates) -> list[str]:
    """A run killed at random moments, up to four times in a row, and then left alone."""
    runs.clone(templates.base / ("fresh", "replace")[round % 2], at)
    draw = random.Random(round)
    for _ in range(draw.randint(1, 4)):
        child = Child(at, lambda: runs.attempt(templates.configs["threads"]))
        time.sleep(draw.random() * 0.12)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    finished = runs.promised(at)
    ended = runs.run(at, templates.configs["serial"])
    wrong = _after([ended], at, templates.expected[("fresh", "replace")[round % 2]])
    lost = finished.items() - runs.promised(at).items()
    return wrong + ([f"computed again though finished: {sorted(name for name, _ in lost)}"] if lost else [])


def checks(templates: Templates, at: Path, faults: Shim, quick: bool) -> Iterator[tuple[str, int, Round]]:
    """Name, rounds, and one round, of each group."""

    def one(of: Callable[..., list[str]], *options: Any) -> Round:
        return lambda round: (1, of(round, at, templates, *options))

    for locks, said in ((True, "with locks"), (False, "with locks that do nothing")):
        yield f"2 to 8 identical runs at once, {said}", 6 if quick else 200, one(race, faults, locks)
        yield f"2 to 6 runs of two configurations at once, {said}", 2 if quick else 50, one(different, faults, locks)
        yield f"gc while runs come and go, {said}", 2 if quick else 100, one(collected, faults, locks)
    yield "a run killed at random moments, again and again", 5 if quick else 500, one(killed_again)
    yield "a worker process killed", 1 if quick else 20, one(worker_killed)
    yield "the parent of worker processes killed", 1 if quick else 20, one(parent_killed)
