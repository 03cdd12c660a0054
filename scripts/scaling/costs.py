"""What things cost on this machine, measured on the pipeline's own functions: `Costs`.

whole runs with one worker, looked at from inside (`clock.py`), with shards of several sizes
    ─▶ of each component of a shard: seconds a shard, and seconds a byte      (least squares, never below zero)
    ─▶ of what the driver does alone: seconds at all, and seconds a file, a document or a byte
the same with two workers   ─▶ contention: how much longer two take over two shards than one over each
`engine.run` of nothing     ─▶ seconds a task, by engine
many small files            ─▶ seconds and bytes of memory that a file costs the driver
"""

import heapq
import itertools
import json
import os
import shutil
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from scripts.benchmark.corpora import Corpus
from scripts.benchmark.environments import BenchmarkError, last_words
from scripts.benchmark.rounds import machine, measure, say, settle

MIB = 1 << 20
SIZES = (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB)  # of shards; of a corpus of 200 MB none has more than 12.5 MB
PHASES = {"ids": "load tokenize encode", "windows": "window"}  # as the clock names them
COMPONENTS = ("read", "parse", "tokenize", "encode", "window", "arrow", "hash", "write", "sync", "publish")
STAGES = ("load", "tokenize", "encode", "window")
FILES = 1500  # small files, from which the cost of a file is told
SMALL = 100  # bytes of each
COUNTS = {"bos": 0, "eos": 442, "ids": 1157525, "rows": 442, "tokens": 1157083, "unknown": 0}  # as `encode` notes them
DOCUMENTS = 1_000_000  # tiny ones, from which the cost of a document is told
TASKS = 1000  # of nothing, from which the cost of a task is told


@dataclass(frozen=True)
class Line:
    """What grows with a quantity: `fixed` for each (shard, or run), `each` for one more byte, file or document."""

    fixed: float
    each: float

    def __call__(self, quantity: float, times: float = 1.0) -> float:
        """Of `quantity` in all, in `times` pieces."""
        return self.fixed * times + self.each * quantity


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes, of one worker on a machine where nothing else runs."""

    corpus: dict[str, float]  # of the text it was measured on: bytes, text_bytes, documents, ids
    start: float  # of a process: interpreter, imports, composing, leaving
    tokenizer: float  # finding and opening it, beside the hashing of the source
    proof: float  # of processor time beside the first phase: the fast tokenizer against the reference
    source: float  # hashing a byte of the source, in one thread
    ids: dict[str, Line]  # a shard of the first phase by component, over its bytes of source
    windows: dict[str, Line]  # a shard of the second, over its bytes of rows
    documents: Line  # writing documents.arrow, by shards and documents
    finish: Line  # a manifest, by files
    folder: Line  # the dataset that links to them, by files
    page: Line  # its page, by documents
    verify: float  # hashing a stored byte again, in one thread
    stored: dict[str, Line]  # bytes a shard and a byte of source, by stage; of `window`, of rows
    contention: dict[str, float]  # how many times as long a shard takes, by workers at it together
    spread: dict[str, list[float]]  # seconds of shards over their median, by phase
    engines: dict[str, Line] = field(default_factory=dict)  # `fixed`: to start one; `each`: seconds a task
    memory: dict[str, float] = field(default_factory=dict)  # bytes of the driver, a shard or a file
    machine: dict[str, Any] = field(default_factory=dict)

    def shard(self, phase: str, size: float) -> float:
        """Seconds of one worker over a shard of so many bytes."""
        return sum(line(size) for line in getattr(self, phase).values())

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Costs":
        """From JSON. Raises BenchmarkError where there is none."""
        if not path.is_file():
            raise BenchmarkError(f"{path} is not there: python -m scripts.scaling measure")

        def lines(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return Line(**value) if value.keys() == {"fixed", "each"} else {name: lines(one) for name, one in value.items()}

        found: dict[str, Any] = json.loads(path.read_text())
        return cls(**{name: lines(value) if name != "machine" else value for name, value in found.items()})


def fit(quantities: Sequence[float], times: Sequence[float], found: Sequence[float]) -> Line:
    """The line through `found` = fixed * times + each * quantity, neither below zero; least squares of relative errors.

    >>> fit([10, 20, 40], [1, 1, 1], [25, 45, 85])
    Line(fixed=5.0, each=2.0)
    >>> fit([10, 20], [1, 1], [5, 15]).fixed
    0.0
    """
    y = np.asarray(found, float)
    weights = 1 / np.maximum(y, 1e-9 + 1e-3 * y.max())
    columns = np.column_stack([np.asarray(times, float), np.asarray(quantities, float)])
    scale = np.maximum(columns.max(0), 1e-300)
    best, least = np.zeros(2), np.inf
    for kept in ([0, 1], [0], [1]):
        part = np.linalg.lstsq(columns[:, kept] / scale[kept] * weights[:, None], y * weights, rcond=None)[0]
        answer = np.zeros(2)
        answer[kept] = part / scale[kept]
        error = float(((columns @ answer - y) ** 2 * weights**2).sum())
        if answer.min() >= 0 and error < least - 1e-12:
            best, least = answer, error
    return Line(float(f"{best[0]:.6g}"), float(f"{best[1]:.6g}"))


# -- whole runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One whole run: how it was cut, how long it took, and with the clock inside where."""

    bytes: int  # of source
    shards: int
    wall: float
    peak: int = 0  # bytes of memory
    spans: dict[tuple[str, str], float] = field(default_factory=dict)  # of the main thread, by phase and span
    beside: dict[tuple[str, str], float] = field(default_factory=dict)  # of all others
    walls: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)  # of shards, by phase
    payloads: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)  # bytes by stage
    ledger: dict[str, Any] = field(default_factory=dict)


def settings(corpus: Corpus, out: Path, workers: int, shard_bytes: int) -> list[str]:
    """The command line of a cold run of a corpus: GPT-2, windows of 1,024."""
    told = {
        "corpus": "jsonl",
        "corpus.paths": f"[{corpus.jsonl}]",
        "corpus.shard_bytes": shard_bytes,
        "tokenizer": "gpt2",
        "window.context_length": 1024,
        "embedding": "none",
        "engine.workers": workers,
        "cache.dir": out / "cache",
        "output.dir": out / "dataset",
        "hydra.run.dir": out / "run",
    }
    return [f"{key}={value}" for key, value in told.items()]


def run(
    corpus: Corpus, work: Path, assets: Path, workers: int, shard_bytes: int, inside: bool = False, cold: bool = True
) -> Run:
    """Run the pipeline over a corpus once in a process of its own. Raises BenchmarkError where it fails."""
    out, figures, log = work / "out", work / "figures.json", work / "run.log"
    if cold:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    door = ["scripts.scaling.clock", str(figures), str(shard_bytes)] if inside else ["pipeline"]
    settle(corpus.jsonl)
    told = {**os.environ, "PIPELINE_ASSETS": str(assets), "HF_HUB_OFFLINE": "1"}
    taken = measure([sys.executable, "-m", *door, *settings(corpus, out, workers, shard_bytes)], log, told)
    if taken["code"]:
        raise BenchmarkError(f"exit {taken['code']}: {last_words(log.read_text(errors='replace'))} (see {log})")
    manifest = json.loads((out / "dataset" / "manifest.json").read_text())
    stages = {stage["stage"]: stage["bytes"] for stage in json.loads((out / "dataset" / "run.json").read_text())["stages"]}
    shards = sum(1 for path in (out / "cache" / "encode" / manifest["keys"]["encode"]).glob("*.arrow") if path.stem.isdigit())
    made = Run(corpus.jsonl.stat().st_size, shards, taken["wall"], taken["peak"], stored=stages, ledger=manifest["ledger"])
    if not inside:
        return made
    told = json.loads(figures.read_text())
    spans, beside = ({(phase, name): seconds for phase, name, seconds in told[kind]} for kind in ("main", "others"))
    return replace(made, spans=spans, beside=beside, walls=told["walls"], times=told["shards"], payloads=told["payloads"])


def measure_costs(small: Corpus, corpus: Corpus, work: Path, assets: Path, rounds: int = 1) -> Costs:
    """Everything, in one to two minutes a round on two cores."""
    runs: list[Run] = []
    pairs: list[Run] = []
    for number in range(1, rounds + 1):
        for text, size in [(small, SIZES[-1]), *((corpus, size) for size in SIZES)]:
            runs.append(run(text, work, assets, 1, size, inside=True))
            say(f"round {number} of {rounds}: {text.name}, {runs[-1].shards} shards, one worker: {runs[-1].wall:.2f} s")
        pairs.append(run(corpus, work, assets, 2, 4 * MIB, inside=True))
        say(f"round {number} of {rounds}: {corpus.name}, {pairs[-1].shards} shards, two workers: {pairs[-1].wall:.2f} s")
    base = {"base": run(corpus, work, assets, 1, 4 * MIB, cold=False).peak}  # of one who finds everything
    shutil.rmtree(work / "out", ignore_errors=True)
    say("many small files, the source, tasks of nothing")
    costs = conclude(runs, base | many_files(work), many_documents(work), hash_rate(corpus.jsonl))
    return replace(costs, contention={"1": 1.0, "2": contention(costs, pairs)}, engines=engines(work))


def conclude(runs: Sequence[Run], files: dict[str, float], documents: dict[str, float], hashing: float) -> Costs:
    """What the runs with one worker say together."""
    whole = [one for one in runs if one.bytes == max(other.bytes for other in runs)]

    def at(one: Run, name: str, phase: str = "") -> float:
        return one.spans.get((phase, name), 0.0)

    def middle(values: Sequence[float]) -> float:
        return float(f"{statistics.median(values):.6g}")

    ids, windows = ({c: _component(runs, phase, c) for c in COMPONENTS} for phase in PHASES)
    ids["arrow"], windows["arrow"] = (_component(runs, phase, "arrow", "shard", "rest", "wait") for phase in PHASES)
    ledger = whole[0].ledger
    seen = {
        "bytes": whole[0].bytes,
        "text_bytes": ledger["load"]["text_bytes"],
        "documents": ledger["load"]["documents"],
        "ids": ledger["encode"]["ids"],
        "rows_bytes": whole[0].stored["window"],
    }
    return Costs(
        corpus=seen,
        start=middle([one.wall - sum(one.spans.values()) + _between(one) for one in runs]),
        tokenizer=middle([sum(s for (phase, name), s in one.beside.items() if not phase and name != "proof") for one in runs]),
        proof=middle([sum(s for (phase, name), s in one.beside.items() if phase == PHASES["ids"]) for one in runs]),
        source=hashing,
        ids={name: line for name, line in ids.items() if line != Line(0.0, 0.0)},
        windows={name: line for name, line in windows.items() if line != Line(0.0, 0.0)},
        documents=Line(_rest(runs, "documents", documents["documents"], lambda one: one.shards), documents["documents"]),
        finish=Line(middle([at(one, "finish") for one in runs]), files["finish"]),
        folder=Line(middle([at(one, "folder") for one in runs]), files["folder"]),
        page=Line(_rest(runs, "page", documents["page"], lambda one: 1), documents["page"]),
        verify=hashing,
        stored={stage: _stored(runs, stage) for stage in STAGES},
        contention={"1": 1.0},
        spread={phase: _spread(whole, told) for phase, told in PHASES.items()},
        memory={name: value for name, value in files.items() if name not in ("finish", "folder")} | {"payload": _payload(runs)},
        machine=machine(),
    )


def contention(costs: Costs, pairs: Sequence[Run]) -> float:
    """How many times as long a shard takes where two workers are at it on two cores: over both phases, one factor.

    It is all that they share: memory, caches, disk, the interpreter's lock, and the clock of the processor.
    """
    took = ideal = 0.0
    for one in pairs:
        for phase, told in PHASES.items():
            count = len(one.times[told])
            size = one.bytes if phase == "ids" else one.stored["window"]
            ideal += makespan([costs.shard(phase, size / count)] * count, 2)
            took += one.walls[told]
        took -= costs.proof / 2
    return float(f"{max(1.0, took / ideal):.4g}")


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of the shards is done, each given to the first worker that is free.

    >>> makespan([2, 1, 1, 1], 2)
    3.0
    """
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return float(max(free))


def _between(one: Run) -> float:
    """Seconds of the main thread that belong to no part of the model: the configuration, looking, telling."""
    named = ("documents", "finish", "folder", "page", "plan", "hash source", "wait")
    return sum(seconds for (phase, name), seconds in one.spans.items() if not phase and name not in named)


def _payload(runs: Sequence[Run]) -> float:
    """Bytes by which the function of the second phase grows with each shard of the first."""
    told = PHASES["windows"]
    few, many = min(runs, key=lambda one: one.shards), max(runs, key=lambda one: one.shards)
    return round((many.payloads[told] - few.payloads[told]) / max(1, many.shards - few.shards), 1)


def _rest(runs: Sequence[Run], name: str, each: float, times: Callable[[Run], int]) -> float:
    """What a span costs each time, less what its documents do."""
    found = [(one.spans["", name] - each * one.ledger["load"]["documents"]) / times(one) for one in runs]
    return float(f"{max(0.0, statistics.median(found)):.4g}")


def _component(runs: Sequence[Run], phase: str, *names: str) -> Line:
    told = PHASES[phase]
    sizes = [one.bytes if phase == "ids" else one.stored["window"] for one in runs]
    return fit(
        sizes, [len(one.times[told]) for one in runs], [sum(one.spans.get((told, name), 0.0) for name in names) for one in runs]
    )


def _stored(runs: Sequence[Run], stage: str) -> Line:
    phase = "windows" if stage == "window" else "ids"
    sizes = [one.stored["window"] if stage == "window" else one.bytes for one in runs]
    return fit(sizes, [len(one.times[PHASES[phase]]) for one in runs], [one.stored[stage] for one in runs])


def _spread(runs: Sequence[Run], told: str) -> list[float]:
    """Seconds of each shard over the median of its run, the last one, which is a rest, left out."""
    ratios = [t / statistics.median(one.times[told][:-1]) for one in runs for t in one.times[told][:-1]]
    return [round(float(q), 4) for q in np.quantile(ratios, np.linspace(0, 1, 101))]


# -- what a file, a byte and a task cost ------------------------------------------------------------------


def hash_rate(path: Path) -> float:
    """Seconds that hashing one byte takes in one thread, read from the page cache; of the best of three."""
    from pipeline.files import hash_file

    taken = []
    for _ in range(3):
        started = time.perf_counter()
        size, _ = hash_file(path)
        taken.append((time.perf_counter() - started) / size)
    return float(f"{min(taken):.6g}")


def many_files(work: Path) -> dict[str, float]:
    """Seconds that a small file costs the driver at the end (`finish`, `folder`), and bytes of its memory.

    `plan`, `receipt` and `manifest` are kept for each shard, each file and each file's line on the disk; `sealing` is
    what comes and goes for each file of the manifest that is being written.
    """
    from pipeline import output, plan
    from pipeline.cache import Cache
    from pipeline.phase import file_name

    place = work / "files"
    shutil.rmtree(place, ignore_errors=True)
    cache = Cache.open(place / "cache")
    try:
        entry = cache.entry("encode", {"version": 1})
        names, notes = [file_name(number) for number in range(FILES)], []
        for name in names:
            with entry.write(name, lambda: {"counts": COUNTS}) as file:
                file.write(bytes(SMALL))
            notes.append(file.note)
        started = time.perf_counter()
        entry.finish(names, notes, ledger={})
        finished = time.perf_counter()
        links = {f"data-{name}": (entry.path(name), note) for name, note in zip(names, notes, strict=True)}
        output.publish(place / "dataset", links, {}, {"ledger": {}}, cache.run)
        published = time.perf_counter()
        size = (entry.folder / "manifest.json").stat().st_size
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        stat = (1 << 40, 1 << 40, time.time_ns(), time.time_ns())
        shas = [f"{number:064x}" for number in range(FILES)]
        parts = [plan.Part(0, "a", n * MIB, n * MIB + MIB, MIB, sha, stat) for n, sha in enumerate(shas)]
        shards = list(plan._group(parts, MIB))
        planned = tracemalloc.get_traced_memory()[0]
        copies = [json.loads(json.dumps(note)) for note in notes]
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        entry.finish(names, copies, ledger={})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found = {"plan": planned - before, "receipt": kept - planned, "sealing": peak - kept, "manifest": size}
        assert len(shards) == FILES
        taken = {"finish": finished - started, "folder": published - finished}
        return {name: float(f"{value / FILES:.6g}") for name, value in (found | taken).items()}
    finally:
        cache.close()
        shutil.rmtree(place, ignore_errors=True)


def many_documents(work: Path) -> dict[str, float]:
    """Seconds that a document costs the driver: to be entered in documents.arrow, and to be counted for the page."""
    import pyarrow as pa

    from pipeline import report, steps
    from pipeline.cache import Cache
    from pipeline.files import HashingFile
    from pipeline.stream import Stream
    from pipeline.vocabulary import Marks

    place = work / "documents"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    schema, taken = Marks(0, None, None, "map", "uint16").schema, []
    try:
        for count in (1, DOCUMENTS):
            path, table = place / f"{count}.arrow", place / f"table-{count}.arrow"
            with pa.ipc.new_stream(str(path), schema) as writer:
                edges, places = pa.array(range(0, 2 * count + 1, 2), pa.int32()), pa.array(range(count), pa.int64())
                ids = pa.ListArray.from_arrays(edges, pa.array([7] * 2 * count, pa.uint16()))
                columns = [ids, pa.array([0] * count, pa.int32()), places, places, pa.array([True] * count)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
            marks = [time.perf_counter()]
            file = HashingFile(table, table)
            steps._write_documents(file, Stream([path], [2 * count], "uint16"), Cache(place, "").entry("load", {}), [])
            file.finish()
            marks.append(time.perf_counter())
            report._lengths(SimpleNamespace(file=lambda name, table=table: table))  # type: ignore[arg-type]
            marks.append(time.perf_counter())
            taken.append(np.diff(marks))
        entered, counted = np.maximum(0.0, taken[1] - taken[0]) / DOCUMENTS
        return {"documents": float(f"{entered:.4g}"), "page": float(f"{counted:.4g}")}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def nothing(payload: bytes, item: int) -> int:
    """What costs nothing but being asked for."""
    return item


def engines(work: Path) -> dict[str, Line]:
    """Seconds to start each engine with two workers, and a task: in turn given out, done and collected.

    Ray on a cluster of its own, where it is installed; one job of an array that is alone.
    """
    from pipeline import engine
    from pipeline.array import joined
    from pipeline.cache import Cache
    from pipeline.config import Engine

    function = partial(nothing, bytes(2400))  # as large as the function that a phase gives its engine

    def taken(tasks: Callable[[int], Iterable[int]], count: int) -> float:
        started = time.perf_counter()
        if sum(1 for _ in tasks(count)) != count:
            raise BenchmarkError(f"an engine gave other than {count} results")
        return time.perf_counter() - started

    def line(tasks: Callable[[int], Iterable[int]]) -> Line:
        first, few, many = taken(tasks, 2), taken(tasks, 2), taken(tasks, TASKS)
        return Line(float(f"{first:.4g}"), float(f"{max(0.0, many - few) / (TASKS - 2):.4g}"))

    kinds = ["serial", "threads", "processes"] + ["ray"] * bool(find_spec("ray") and find_spec("pipeline.cluster"))
    settings = {"ray": {"address": "local"}}
    found = {}
    for kind in kinds:
        how = Engine(kind, 2, **settings.get(kind, {}))
        found[kind] = line(lambda count, how=how: engine.run(how, function, range(count)))
    cache, serial = Cache.open(work / "array"), itertools.count()
    try:
        with joined(cache, Engine("array", 2, id="measured", index=0, count=1)) as array:
            assert array is not None
            found["array"] = line(lambda count: array.run(f"nothing-{next(serial)}", function, range(count)))
    finally:
        cache.close()
        shutil.rmtree(work / "array", ignore_errors=True)
    return found
