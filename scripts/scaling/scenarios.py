"""1 TB and 50 TB on 10, 100 and 1,000 nodes: what is foretold, and what the simulation makes of it."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.environments import BenchmarkError
from scripts.benchmark.rounds import say
from scripts.scaling.costs import Costs
from scripts.scaling.model import Cluster, Work, best_shard, driver, foretell_cluster, phases
from scripts.scaling.simulate import Batch, Story, bundled, draw, simulate

TB = 1e12
SOURCES = (1 * TB, 50 * TB)
CLUSTERS = (Cluster(10), Cluster(100), Cluster(1000), Cluster(1000, storage=1e12))
ENGINES = ("ray", "array")
HOURS = (10_000, 1000, 100, 30, 10, 3)  # between two failures of a node
MORE_PARTS = 8  # of an array, for each node


DIVIDED = (("ray", "ray", 0), ("array, 1 part a node", "array", 1), (f"array, {MORE_PARTS} parts a node", "array", MORE_PARTS))


@dataclass(frozen=True)
class Scenario:
    """One corpus on one cluster, without failures and with."""

    source: float  # bytes of text
    nodes: int
    storage: float  # bytes a second
    shard_bytes: int
    shards: int
    windows: int  # shards of the second phase
    parts: dict[str, float]  # seconds foretold, by part
    bound: dict[str, str]  # what a shard waits for, by phase
    simulated: dict[str, list[float]]  # seconds with failures: median, 5 % and 95 %, by engine
    failures: float  # of nodes, on average
    lost: float  # shards that were under way on them


def per_task(costs: Costs, engine: str) -> float:
    """Seconds a task costs the driver of an engine; a job of an array asks nobody."""
    return costs.engines[engine].each if engine in costs.engines else 0.0


def batches(
    costs: Costs, work: Sequence[Work], cluster: Cluster, engine: str, seed: int, source: float = 0.0
) -> tuple[list[Batch], Cluster]:
    """The phases for the simulation, one worker a node; of a corpus of `source` bytes with the driver's time behind each."""
    after = dict.fromkeys(("ids", "windows"), 0.0)
    if source:
        alone = driver(costs, source, work)
        after = {"ids": alone["documents"] + alone["manifests"] * 3 / 4, "windows": alone["manifests"] / 4 + alone["folder"]}
    made = []
    for number, one in enumerate(work):
        tasks, taken, seconds, room = bundled(one, cluster)
        again = (costs.verify * one.moved + one.moved / cluster.stream) * taken / cluster.cores
        times = draw(seconds, tasks, costs.spread[one.name], seed, number)
        made.append(Batch(times, room, taken * per_task(costs, engine), again, after[one.name]))
    return made, replace(cluster, cores=1)


def told(stories: Iterable[Story], more: float) -> list[float]:
    """Median, 5 % and 95 % of seconds, and with them those of what comes before the phases."""
    found = [story.seconds + more for story in stories]
    return [round(float(value), 1) for value in np.quantile(found, (0.5, 0.05, 0.95))]


def scenario(costs: Costs, source: float, cluster: Cluster, seeds: int) -> Scenario:
    """Everything of one."""
    task = per_task(costs, "ray")
    size = best_shard(costs, cluster, source, task)
    work = phases(costs, source, size)
    parts = foretell_cluster(costs, cluster, source, size, task)
    simulated, stories = {}, []
    for engine in ENGINES:
        own = []
        for seed in range(seeds):
            phase, small = batches(costs, work, cluster, engine, seed, source)
            own.append(simulate(phase, small, seed, engine, MORE_PARTS * cluster.nodes))
        simulated[engine] = told(own, parts["start"] + parts["plan"])
        stories += own if engine == "ray" else []
    return Scenario(
        source,
        cluster.nodes,
        cluster.storage,
        size,
        work[0].shards,
        work[1].shards,
        {name: round(seconds, 2) for name, seconds in parts.items()},
        {one.name: one.bound(cluster, task) for one in work},
        simulated,
        round(statistics.mean(story.failures for story in stories), 2),
        round(cluster.cores * statistics.mean(story.lost for story in stories), 1),
    )


def lost_node(costs: Costs, source: float, cluster: Cluster, seeds: int) -> dict[str, list[float]]:
    """Seconds that the loss of one node, at any time of a phase, adds to a run: median, 5 % and 95 %, by engine."""
    safe = replace(cluster, mtbf=math.inf)
    work = phases(costs, source, best_shard(costs, cluster, source, per_task(costs, "ray")))
    found = {}
    for name, engine, parts in DIVIDED:
        more = []
        for seed in range(seeds):
            phase, small = batches(costs, work, safe, engine, seed)
            calm = simulate(phase, small, seed, engine, parts * cluster.nodes)
            when = float(np.random.default_rng([seed, 9]).random()) * calm.seconds
            more.append(simulate(phase, small, seed, engine, parts * cluster.nodes, kill=when).seconds - calm.seconds)
        found[name] = [round(float(value), 1) for value in np.quantile(more, (0.5, 0.05, 0.95))]
    return found


def often(costs: Costs, source: float, cluster: Cluster, seeds: int) -> dict[str, list[list[float]]]:
    """How many times as long the phases take when nodes fail every so many hours: `[hours][median, 5 %, 95 %]`, by engine."""
    work = phases(costs, source, best_shard(costs, cluster, source, per_task(costs, "ray")))
    found: dict[str, list[list[float]]] = {}
    for name, engine, parts in DIVIDED:
        for hours in HOURS:
            ratios = []
            for seed in range(seeds):
                phase, small = batches(costs, work, cluster, engine, seed)
                calm = simulate(phase, replace(small, mtbf=math.inf), seed, engine, parts * cluster.nodes)
                with_failures = simulate(phase, replace(small, mtbf=hours * 3600.0), seed, engine, parts * cluster.nodes)
                ratios.append(with_failures.seconds / calm.seconds)
            found.setdefault(name, []).append([round(float(value), 4) for value in np.quantile(ratios, (0.5, 0.05, 0.95))])
        say(f"failures, {name}: {found[name]}")
    return found


def all_of_them(costs: Costs, seeds: int) -> dict[str, Any]:
    """Every scenario, the loss of a node, and how it goes when nodes fail often."""
    scenarios = []
    for source in SOURCES:
        for cluster in CLUSTERS:
            scenarios.append(scenario(costs, source, cluster, seeds))
            say(f"{source / TB:.0f} TB on {cluster.nodes} nodes: {scenarios[-1].simulated}")
    middle = CLUSTERS[1]
    return {
        "seeds": seeds,
        "assumed": asdict(middle),
        "scenarios": [asdict(one) for one in scenarios],
        "lost_node": {f"{source / TB:.0f} TB": lost_node(costs, source, middle, seeds) for source in SOURCES},
        "often": often(costs, SOURCES[-1], middle, seeds),
    }


def load(path: Path) -> dict[str, Any]:
    """What was saved. Raises BenchmarkError where nothing was."""
    if not path.is_file():
        raise BenchmarkError(f"{path} is not there: python -m scripts.scaling simulate")
    found: dict[str, Any] = json.loads(path.read_text())
    found["scenarios"] = [Scenario(**one) for one in found["scenarios"]]
    return found
