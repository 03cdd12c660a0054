"""A phase: some stages that follow one another, made whole shard by shard.

    shard 0:  load ▶ tokenize ▶ encode       each ▶ hands a batch on in memory; each stage's file is written,
    shard 1:  load ▶ tokenize ▶ encode       hashed and published as the batches pass
    …

A stage is a generator of Arrow batches and knows nothing of this. `fulfil` finds the last stage that is whole
and computes only what lies behind it, in the engine's workers; a shard that was finished before a kill is
found by its receipt and not computed again.
"""

import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from pipeline import config as configs
from pipeline import console, engine
from pipeline.array import Array, task_of
from pipeline.arrow import read_batches
from pipeline.cache import Cache, Entry
from pipeline.files import Json
from pipeline.plan import Together
from pipeline.remote import Damaged
from pipeline.why import why

log = logging.getLogger(__name__)


class Item(Protocol):
    """A unit of work: an input shard or a window shard."""

    @property
    def index(self) -> int:
        """Its place among the items; the name of its files."""


Batches = Iterator[pa.RecordBatch]
Made = tuple[pa.Schema, Batches]


@dataclass(frozen=True)
class Step:
    """One stage of a phase: where its result goes, and how it is made from the stage before."""

    entry: Entry
    compute: Callable[[Any, Any, "Counter[str]"], Made]  # (source, item, counts); picklable
    beside: str | None = None  # ending of a second file of each item, which `compute` itself writes to the entry

    def receipt(self, item: Item) -> Json | None:
        """The receipt of an item's file, where all that belongs to it is there."""
        whole = self.beside is None or self.entry.receipt(side_name(item.index, self.beside))
        return self.entry.receipt(file_name(item.index)) if whole else None


@dataclass
class Report:
    """What happened to one stage, for the table at the end."""

    stage: str
    key: str
    state: str  # cached | computed | computed k of n shards
    rows: int
    tokens: int
    bytes: int
    seconds: float  # of work, summed over workers
    why: list[str] = field(default_factory=list)


def file_name(index: int) -> str:
    """The name of a shard's file in an entry."""
    return f"{index:08d}.arrow"


def is_shard(name: str) -> bool:
    """Is it the name of a shard's file?"""
    return re.fullmatch(r"\d{8,}\.arrow", name) is not None


def side_name(index: int, ending: str) -> str:
    """The name of what belongs to a shard's file."""
    return f"{index:08d}.{ending}"


def compute(steps: tuple[Step, ...], upstream: Entry | None, item: Item) -> list[tuple[Json, float]]:
    """Publish one item's file of each step. Returns each step's receipt, and the seconds it took: 0 if it was there."""
    name = file_name(item.index)
    source: Any = item if upstream is None else read_batches(upstream.file(name))
    spent = [0.0] * len(steps)
    notes = [step.receipt(item) or {} for step in steps]
    running: Iterable[pa.RecordBatch] = ()
    for index, step in enumerate(steps):
        if not notes[index]:
            source = running = _publish(step, name, source, item, spent, notes, index)
        else:
            _exhaust(running)
            running, source = (), read_batches(step.entry.file(name))
    _exhaust(running)
    own = [max(spent[i] - spent[i - 1], 1e-9) if i and spent[i] else spent[i] for i in range(len(steps))]
    return list(zip(notes, own, strict=True))


def _or_damage(work: Callable[[Item], Any], item: Item) -> Any:
    """What `work` gives, or what it found damaged in the store: the other items need not wait for that."""
    try:
        return work(item)
    except Damaged as damage:
        return damage


def _lie_there(steps: list[Step], items: list[Any], results: list[Any]) -> bool:
    """Is every file that `compute` told of there, with its bytes? A power cut may take a name and leave what tells of it."""
    with contextlib.suppress(OSError):
        return all(
            step.entry.path(file_name(item.index)).stat().st_size == note["bytes"]
            for item, result in zip(items, results, strict=False)
            for step, (note, _) in zip(steps, result, strict=True)
        )
    return False


def _exhaust(batches: Iterable[pa.RecordBatch]) -> None:
    for _ in batches:
        pass


def _publish(step: Step, name: str, source: Any, item: Item, spent: list[float], notes: list[Json], index: int) -> Batches:
    """The step's batches, each written to the step's file as it passes; the file appears behind the last."""
    counts: Counter[str] = Counter()
    started = time.perf_counter()
    schema, batches = step.compute(source, item, counts)
    with step.entry.write(name, lambda: {"counts": dict(counts)}) as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            engine.checkpoint()
            writer.write_batch(batch)
            counts["rows"] += len(batch)
            spent[index] += time.perf_counter() - started
            yield batch
            started = time.perf_counter()
    notes[index] = file.note
    spent[index] += time.perf_counter() - started


@dataclass
class Line:
    """One run's cache, engine and story."""

    cache: Cache
    engine: configs.Engine
    array: Array | None = None  # where this is one job of several
    entries: dict[str, Entry] = field(default_factory=dict)  # of this run, by key, to explain what changed upstream
    reports: dict[str, Report] = field(default_factory=dict)
    ledger: Json = field(default_factory=dict)  # of every stage so far: counts by stage
    label: str = ""  # where stages run once per split, or per part of a mixture: which one
    made: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # seconds of shards computed, by label and key

    def branch(self, label: str) -> "Line":
        """The same line for the stages of one split or part, which have a ledger of their own; it tells in the same table."""
        return replace(self, ledger=dict(self.ledger), label=label) if label else self

    def entry(self, stage: str, **identity: Any) -> Entry:
        """The entry of a stage, protected from `gc` from here on."""
        entry = self.cache.entry(stage, identity)
        self.entries[entry.key] = entry
        entry.lease()
        return entry

    def whole(self, entry: Entry) -> Json | None:
        """The manifest of an entry whose every file was hashed and found as published; None where it must be computed."""
        if self.array is not None:
            return self.array.verified(entry)
        return entry.verified(self.engine.workers or engine.cores(), self.together)

    @property
    def together(self) -> Together | None:
        """Who hashes what is large: all jobs of an array, or all nodes of a cluster; None where this machine is alone."""
        if self.array is not None:
            return self.array.everywhere
        if self.engine.kind == "ray":
            return lambda task, function, items: list(engine.run(self.engine, function, items))
        return None

    @contextlib.contextmanager
    def lock(self, entry: Entry) -> Iterator[None]:
        """Keep others from computing the same entry meanwhile; in an array, wait until a job has, or it is our turn."""
        if self.array is None:
            with self.cache.lock(entry):
                yield
            return
        with self.array.alone(task_of(entry)) as turn:
            if turn:
                self.array.ours(entry)
            yield

    @contextlib.contextmanager
    def turn(self, entry: Entry, name: str) -> Iterator[None]:
        """In an array, let one job write a file of an entry before the others look for it."""
        with contextlib.nullcontext() if self.array is None else self.array.alone(f"{task_of(entry)}-{name}"):
            yield

    def tell(self, entry: Entry, manifest: Json, *seconds: float) -> None:
        """Note what happened to a stage, once; where an earlier result was of no use, say why. `seconds` as in `make`."""
        self.make(entry, *seconds)
        name = f"{entry.stage} {self.label}".strip()
        if name in self.reports:
            return
        self.ledger |= manifest["ledger"]
        counts = self.ledger.get(name) or self.ledger.get(entry.stage, {})
        own, total = self.made.get((self.label, entry.key), []), max(1, sum(map(is_shard, manifest["files"])))
        state = "cached" if not own else f"computed {len(own)} of {total} shards" if len(own) < total else "computed"
        reasons = why(entry, self.entries) if state == "computed" else []
        if self.label and any(re.search(r"upstream\.split |(^|: )input ", reason) for reason in reasons):
            reasons = []  # another split's result is not an earlier one, nor another part's
        if reasons:
            log.info("%s: computed, since an earlier result differs in %s", name, self._briefly(reasons))
        size = sum(note["bytes"] for note in manifest["files"].values())
        tokens = counts.get("ids", counts.get("tokens", 0))
        self.reports[name] = Report(name, entry.key, state, counts.get("rows", 0), tokens, size, sum(own), reasons)

    def make(self, entry: Entry, *seconds: float) -> None:
        """Note how long each shard of an entry took that was computed here, or what it has instead of shards."""
        self.made.setdefault((self.label, entry.key), []).extend(seconds)

    def cached(self, entries: list[Entry]) -> Json | None:
        """The manifest of the last entry where it is whole, and so nothing before it is needed; else None."""
        manifest = self.whole(entries[-1])
        if manifest is not None:
            self.found(entries[:-1], manifest)
            self.tell(entries[-1], manifest)
        return manifest

    def found(self, entries: list[Entry], manifest: Json) -> None:
        """Tell of stages that are not needed, as what follows from them is whole and has this manifest."""
        for entry in entries:
            known = entry.believed() if os.access(entry.folder, os.W_OK) else entry.manifest()
            self.tell(entry, known or {"ledger": manifest["ledger"], "files": {}})

    def _briefly(self, reasons: list[str]) -> str:
        """Up to three differences; those of a stage upstream in one word, since that stage has told them."""
        told = {report.stage for report in self.reports.values() if report.why}
        own = [reason for reason in reasons if reason.partition(": ")[0] not in told]
        own.sort(key=lambda reason: " null" in reason)  # what only one of two kinds has says least
        upstream = [stage for stage in dict.fromkeys(reason.partition(": ")[0] for reason in reasons) if stage in told]
        more = [f"{len(own) - 3} more (pipeline-tools why)"] if len(own) > 3 else []
        return ", ".join(own[:3] + more + upstream)

    def fulfil(
        self,
        steps: list[Step],
        items: list[Any],
        size: int,
        ledger: Json,
        facts: Json | None = None,
        extra: Callable[[Json], Json] | None = None,
        before_publishing: Callable[[], None] | None = None,
    ) -> Json:
        """Make the last step's entry whole and return its manifest; steps before the last whole one are not touched.

        `size` is the work in bytes, for progress; `ledger` holds the counts of the stages before, by stage, and
        `facts` further counts of the last one; `extra`, given the receipts of the last stage by name, writes further
        files of its entry and returns their receipts; `before_publishing` may raise, and nothing is published.
        """
        entries = [step.entry for step in steps]
        if (manifest := self.cached(entries)) is not None:
            return manifest
        self.cache.require_writable()

        def work(first: int) -> Callable[[Any], Any]:
            return partial(_or_damage, partial(compute, tuple(steps[first:]), entries[first - 1] if first else None))

        def compute_all(first: int, run: Callable[..., Iterable[Any]]) -> list[Any]:
            todo, results, damaged = steps[first:], [], None
            with console.progress(" ▶ ".join(step.entry.stage for step in todo), size) as advance:
                for result in run(work(first), items if todo else []):
                    if isinstance(result, Damaged):
                        damaged = damaged or result
                        continue
                    results.append(result)
                    for step, (_, seconds) in zip(todo, result, strict=True):
                        self.make(step.entry, *([seconds] if seconds else []))
                    advance(size // len(items))
            if damaged:
                raise damaged
            if before_publishing:
                before_publishing()
            return results

        def publish(first: int, results: list[Any]) -> list[Json]:
            manifest = entries[first - 1].manifest() if first else None
            counted, manifests = manifest["ledger"] if manifest else ledger, []
            for index, step in enumerate(steps[first:]):
                last = step is steps[-1]
                files = {file_name(item.index): result[index][0] for item, result in zip(items, results, strict=True)}
                counts: Counter[str] = Counter(facts if last else None)
                for note in files.values():
                    counts.update(note["counts"])
                counted = {**counted, step.entry.stage: dict(sorted(counts.items()))}
                if last and extra:
                    files |= extra(files)
                if step.beside is not None:
                    names = [side_name(item.index, step.beside) for item in items]
                    files |= {name: step.entry.receipt(name) or {} for name in names}
                manifests.append(step.entry.finish(list(files), list(files.values()), ledger=counted, rows=counts["rows"]))
            return manifests

        manifests: list[Json] = []
        if self.array is None:
            with self.cache.lock(entries[-1]):
                if (first := self._whole(entries)) < len(steps):
                    manifests = publish(first, compute_all(first, self._run))
        else:
            task = task_of(entries[-1])
            first = self.array.agree(task, lambda: self._whole(entries))
            if first and (found := entries[first - 1].manifest()):  # by another job, it may be
                self.found(entries[:first], found)
            parts = f"{task}-{first}"  # should another have agreed on something else, its parts are no matter
            compute_all(first, partial(self.array.run, parts))
            with self.array.alone(task) as turn:
                results = list(self.array.results(parts, work(first), items)) if turn and first < len(steps) else []
                if turn and _lie_there(steps[first:], items, results):
                    self.array.ours(*entries[first:])
                    manifests = publish(first, results)
        if manifests and not items:
            self.make(entries[-1], 0)
        manifests = manifests or [manifest for entry in entries[first:] if (manifest := entry.manifest())]
        for entry, manifest in zip(entries[first:], manifests, strict=False):
            self.tell(entry, manifest)
        if manifests and len(manifests) == len(entries[first:]):
            return manifests[-1]
        again = replace(self, array=None)  # for what another run took away meanwhile
        return self.cached(entries) or again.fulfil(steps, items, size, ledger, facts, extra, before_publishing)

    def _run(self, function: Callable[[Any], Any], items: list[Any]) -> Iterable[Any]:
        if self.engine.kind == "ray" and not self.cache.remote:
            from pipeline import cluster

            function = partial(cluster.seeing, self.cache.tmp / "lease", function)
        return engine.run(self.engine, function, items)

    def _whole(self, entries: list[Entry]) -> int:
        """How many of the entries are whole, counted by the last that is; those are told of."""
        first = len(entries)
        while first and self.cached(entries[:first]) is None:
            first -= 1
        return first
