"""Disks of fifty sizes, most of them too small: a clear end, nothing finished lost, and the same bytes once there is room."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from . import runs
from .points import Templates
from .runs import DATASET

PAGE = 4096


def mount(at: Path, *options: str) -> None:
    """A disk in memory at `at`; it goes with the harness, whose mounts are its own."""
    subprocess.run(["mount", "-t", "tmpfs", *options, "faults", str(at)], check=True)


def filled(size: int, at: Path, templates: Templates) -> list[str]:
    """A run on a disk of `size` bytes, and another once it has grown."""
    at.mkdir(parents=True, exist_ok=True)
    mount(at, "-o", f"size={size}")
    try:
        runs.seed(at)
        ended = runs.run(at, templates.configs["threads"])
        wrong = [
            f"{problem} at once" for problem in (*runs.leftovers(at), *runs.faults_of_cache(at), *runs.faults_of_dataset(at))
        ]
        lines = ended.err.strip().splitlines()
        if ended.code == 0:
            wrong += [] if runs.digests(at / DATASET) == templates.expected["fresh"] else ["exit 0 with other bytes"]
        elif (
            ended.code != 5
            or sum(line.startswith("error: ") for line in lines) != 1
            or not any(said in lines[-1] for said in ("No space left writing", "this run needs about", "is not writable"))
        ):
            wrong.append(f"exit {ended.code}: {ended.err}")
        finished = runs.promised(at)
        mount(at, "-o", "remount,size=64m")
        again = runs.run(at, templates.configs["threads"])
        if again.code or runs.digests(at / DATASET) != templates.expected["fresh"]:
            wrong.append(f"with room: exit {again.code}: {again.err}")
        if lost := finished.items() - runs.promised(at).items():
            wrong.append(f"computed again though finished: {sorted(name for name, _ in lost)}")
        return [f"{size} bytes: {problem}" for problem in (*wrong, *runs.leftovers(at), *runs.faults_of_cache(at))]
    finally:
        subprocess.run(["umount", str(at)], check=True)


def checks(templates: Templates, at: Path, quick: bool) -> Iterator[tuple[str, int, Callable[[int], tuple[int, list[str]]]]]:
    """Name, number of sizes, and the test of one; nothing where disks cannot be mounted."""
    if os.getuid() or not shutil.which("unshare"):
        print("skipped: disks of 50 sizes need root, to mount them")
        return
    texts = sum(-(-len(text.encode()) // PAGE) for text in runs.TEXTS.values())
    sizes = range((texts + 2) * PAGE, (texts + 52) * PAGE, PAGE)  # the largest hold all that a run stores
    sizes = sizes[::10] if quick else sizes
    yield "full disks of many sizes, then with room", len(sizes), lambda n: (1, filled(sizes[n], at, templates))
