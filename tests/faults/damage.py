"""Flipped bits and cut ends: every artifact of a finished cache and dataset, damaged at random; none may pass unseen."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import cache, files, open_dataset
from pipeline.errors import PipelineError
from pipeline.tools import _check_dataset

from . import runs
from .points import Templates
from .runs import CACHE, DATASET

LINE = ("load", "tokenize", "encode", "window", "embed")
STEP = 64  # bytes between two lengths to which a file is cut


def artifacts(at: Path) -> list[Path]:
    """Every file that a manifest answers for, and every manifest."""
    places = [at / CACHE / stage for stage in (*LINE, "tokenizer")]
    found = [p for place in (*places, at / DATASET) for p in sorted(place.rglob("*")) if p.is_file()]
    return [p for p in found if p.name not in ("run.json", "report.html", "notes.txt")]


def damages(data: bytes, flips: int, cuts: int | None, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """The file with one bit flipped, so many times, and cut at steps of 64 bytes, at most so many."""
    bits = range(8 * len(data)) if flips >= 8 * len(data) else draw.sample(range(8 * len(data)), flips)
    for bit in bits:
        yield f"bit {bit}", data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    lengths = [*range(0, len(data), STEP), len(data) - 1]
    for length in lengths if cuts is None else draw.sample(lengths, min(cuts, len(lengths))):
        yield f"cut at {length}", data[:length]
    yield "one byte more", data + b"\0"
    yield "zeros", bytes(len(data))


def seen(path: Path, at: Path) -> bool:
    """Does verification of what holds the file find it damaged?"""
    if path.is_relative_to(at / DATASET):
        if path.name == "manifest.json":
            return files.unseal(path) is None
        return any(where == path and problem for where, problem in _check_dataset(at / DATASET))
    stage, key, name = path.relative_to(at / CACHE).parts
    entry = cache.Entry(cache.Cache(at / CACHE, "looking"), stage, key, {})
    manifest = entry.manifest()
    if name == "manifest.json":
        return manifest is None
    return entry._examine(name, manifest["files"][name], fresh=True)[0] is not None if manifest else True


def unseen(path: Path, at: Path, flips: int, cuts: int | None) -> tuple[int, list[str]]:
    """How many damages were tried on a file, and which of them passed for whole."""
    data, draw, missed, tried = path.read_bytes(), random.Random(path.name), [], 0
    path.unlink()  # it may be a hard link of another artifact, which is not to be damaged with it
    path.write_bytes(data)
    if seen(path, at):
        return 1, [f"{path.name} counts as damaged though it is not"]
    for what, damaged in damages(data, flips, cuts, draw):
        path.write_bytes(damaged)
        tried += 1
        if not seen(path, at):
            missed.append(f"{path.relative_to(at)}: {what}")
    path.write_bytes(data)
    return tried, missed


def healed(path: Path, at: Path, templates: Templates) -> list[str]:
    """What is wrong with a run over one damaged artifact, and with a reader of a damaged dataset."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    path.write_bytes(data)
    wrong = []
    if path.is_relative_to(at / CACHE) and (stage := path.parts[-3]) in LINE:  # so that the run has need of it
        for later in LINE[LINE.index(stage) + 1 :]:
            shutil.rmtree(at / CACHE / later)
    reads = path.is_relative_to(at / DATASET) and (path.suffix == ".arrow" and path.name != "documents.arrow")
    if reads or path == at / DATASET / "manifest.json":
        try:
            rows = open_dataset(at / DATASET)
            for row in range(len(rows)):
                rows[row]
            wrong.append("the reader gave damaged rows")
        except PipelineError:
            pass
    ended = runs.run(at, templates.configs["threads"])
    if path == at / DATASET / "manifest.json":  # nothing tells any more that the folder is ours
        if ended.code != 2 or "Traceback" in ended.err:
            wrong.append(f"exit {ended.code}: {ended.err}")
        return wrong
    if ended.code or runs.digests(at / DATASET) != templates.expected["fresh"]:
        wrong.append(f"exit {ended.code}, not as undisturbed: {ended.err}")
    return wrong + runs.faults_of_cache(at) + runs.faults_of_dataset(at)


def checks(templates: Templates, at: Path, quick: bool) -> Iterator[tuple[str, int, Callable[[int], tuple[int, list[str]]]]]:
    """Name, number of artifacts, and the test of one, of each group."""
    whole = templates.base / "whole"
    names = [path.relative_to(whole) for path in artifacts(whole)]

    def missed(number: int) -> tuple[int, list[str]]:
        runs.clone(whole, at)
        path = at / names[number]
        every = 8 * path.stat().st_size if path.name == "manifest.json" else 2000
        return unseen(path, at, 10 if quick else every, 3 if quick else None)

    def unhealed(number: int) -> tuple[int, list[str]]:
        runs.clone(whole, at)
        return 1, [f"{names[number]}: {problem}" for problem in healed(at / names[number], at, templates)]

    yield "damages of every artifact, seen by verification", len(names), missed
    yield "artifacts damaged, healed by the next run", len(names), unhealed
