"""Shards on nodes that fail: a simulation by events, drawn from a seed.

    time ─▶   0        1        2        3
    node 0    [0][2][4][7]  …                    done: the worker takes the next shard
    node 1    [1][3][5]✗ . . . . . . back [8]    lost: what it was at is noticed after a while and given out again
                      └──────▶ [5] on node 0

Seconds of a shard are those of the model times a draw from the spread that was measured; where all together ask more of
the network or the storage than there is, all slow down alike (processor sharing). Nodes fail as a Poisson process
each, and are back after a while; what a node had published stays. Between two phases there is a barrier.

* `ray`: a driver hands out one shard after another, each to the first free worker; what was lost comes first.
* `array`: parts p, p + n, p + 2n, … of the shards, one to a job; whoever is through takes up a part that nobody claims, or
  whose job gave no sign of life for `patience`, and finds what that one had published after hashing it again.

A run is checked as it goes: every shard is completed exactly once.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.scaling.model import Cluster, Work

BEGUN, FAILED, BACK, NOTICED = range(4)


@dataclass(frozen=True)
class Batch:
    """One phase: seconds of each shard, float `[shards]`; of giving one out; of finding one that is there again."""

    seconds: np.ndarray  # alone; where more than `room` are under way all of them slow down
    room: float = math.inf
    schedule: float = 0.0
    again: float = 0.0
    after: float = 0.0  # of the driver, between this phase and what follows


@dataclass
class Story:
    """What happened."""

    seconds: float = 0.0
    phases: list[float] = field(default_factory=list)
    failures: int = 0  # of nodes
    lost: int = 0  # shards that were being computed there
    wasted: float = 0.0  # seconds of workers that had gone into them


class Nodes:
    """Which nodes are there, and when each will fail next."""

    def __init__(self, cluster: Cluster, random: np.random.Generator) -> None:
        self.cluster, self.random = cluster, random
        self.back = [0.0] * cluster.nodes  # since when each is there, or from when on
        self.life = [0] * cluster.nodes  # how often each has failed: what it was at before is void
        self.next = self._draws(cluster.nodes).tolist()

    def _draws(self, count: int) -> np.ndarray:
        return (
            self.random.exponential(self.cluster.mtbf, count) if math.isfinite(self.cluster.mtbf) else np.full(count, math.inf)
        )

    def fail(self, node: int, now: float) -> None:
        """The node is gone, and will be back, and fail again some time."""
        self.life[node] += 1
        self.back[node] = now + self.cluster.restart
        self.next[node] = self.back[node] + float(self._draws(1)[0])


class Shared:
    """All shards in one row, for whoever is free: a driver hands them out."""

    def __init__(self, shards: int, cluster: Cluster) -> None:
        self.waiting = deque(range(shards))
        self.notice = cluster.notice

    def take(self, node: int, now: float) -> tuple[int, float] | None:
        """The next shard for a worker of a node, and when it may begin; None where there is none."""
        return (self.waiting.popleft(), now) if self.waiting else None

    def finished(self, node: int, shard: int) -> None:
        """A shard is there."""

    def lost(self, node: int, shards: set[int]) -> Any:
        """A node is gone; what is to be told to `noticed` after `notice`."""
        return shards

    def noticed(self, shards: set[int]) -> None:
        """What it was at is given out again."""
        self.waiting.extendleft(sorted(shards, reverse=True))


class Parts:
    """Shards p, p + n, p + 2n, …: parts that jobs claim as a whole."""

    def __init__(self, shards: int, cluster: Cluster, parts: int, patience: float, again: float) -> None:
        self.shards = [deque(range(part, shards, parts)) for part in range(parts)]
        self.there = [0] * parts
        self.open = [0] * parts  # shards of each that are being computed
        self.free = deque(part for part in range(parts) if self.shards[part])
        self.claims: list[int | None] = [None] * cluster.nodes
        self.notice, self.again, self.cores = patience, again, cluster.cores
        self.ready = [0.0] * cluster.nodes  # from when on each computes: what it found was hashed

    def take(self, node: int, now: float) -> tuple[int, float] | None:
        """The next of the part that the node is at, or of one that is free once all of it is there."""
        part = self.claims[node]
        if part is not None and not self.shards[part]:
            if self.open[part]:
                return None
            part = self.claims[node] = None
        if part is None:
            if not self.free:
                return None
            part = self.claims[node] = self.free.popleft()
            self.ready[node] = now + self.there[part] * self.again / self.cores
        self.open[part] += 1
        return self.shards[part].popleft(), max(now, self.ready[node])

    def finished(self, node: int, shard: int) -> None:
        """A shard is there."""
        part = self.claims[node]
        assert part is not None
        self.open[part] -= 1
        self.there[part] += 1

    def lost(self, node: int, shards: set[int]) -> Any:
        """A node is gone, and the claim that it had will be dead."""
        part, self.claims[node] = self.claims[node], None
        if part is not None:
            self.shards[part].extendleft(sorted(shards, reverse=True))
            self.open[part] = 0
        return part

    def noticed(self, part: int | None) -> None:
        """The part is free."""
        if part is not None and self.shards[part]:
            self.free.append(part)


def simulate(
    batches: Sequence[Batch],
    cluster: Cluster,
    seed: int,
    engine: str = "ray",
    parts: int = 0,
    patience: float = 120.0,
    kill: float | None = None,
) -> Story:
    """One run. With `engine="array"` in so many `parts`, by default one for each node; `kill`: when node 0 fails for once."""
    nodes, story = Nodes(cluster, np.random.default_rng([seed, 0])), Story()
    if kill is not None:
        nodes.next[0] = kill
    for batch in batches:
        count = len(batch.seconds)
        queue: Any = Shared(count, cluster)
        if engine == "array":
            queue = Parts(count, cluster, parts or cluster.nodes, patience, batch.again)
        begun = story.seconds
        _phase(batch, queue, nodes, story, driven=engine == "ray")
        story.phases.append(story.seconds - begun)
        story.seconds += batch.after
    return story


def _phase(batch: Batch, queue: Any, nodes: Nodes, story: Story, driven: bool) -> None:
    """All shards of a phase, from `story.seconds` on, which becomes the time at which the last one is there.

    `work` is what a shard that was under way from the beginning would have behind it: the clock of all that compute.
    """
    begin, seconds = story.seconds, batch.seconds.tolist()
    cluster = nodes.cluster
    events: list[tuple[float, int, int, int, Any]] = []  # time, kind, node, its life, shard or what was lost
    ends: list[tuple[float, int, int, int]] = []  # by the clock of work: when a shard will be there; node, its life, shard
    at: list[dict[int, float]] = [{} for _ in range(cluster.nodes)]  # shards that each node has, and since when they compute
    completed = np.zeros(len(seconds), bool)
    left, driver, now, work, active = len(seconds), begin, begin, 0.0, 0

    for node in range(cluster.nodes):
        while nodes.next[node] < begin:  # it failed while nothing was to be computed
            nodes.fail(node, nodes.next[node])
        here = nodes.back[node] <= begin
        heapq.heappush(events, (nodes.next[node], FAILED, node, 0, None) if here else (nodes.back[node], BACK, node, 0, None))

    def compute(node: int, shard: int) -> None:
        nonlocal active
        at[node][shard] = now
        active += 1
        heapq.heappush(ends, (work + seconds[shard], node, nodes.life[node], shard))

    def fill(node: int) -> None:
        """Give the free workers of a node something to do."""
        nonlocal driver
        while len(at[node]) < cluster.cores and (taken := queue.take(node, now)) is not None:
            shard, ready = taken
            if driven:
                ready = driver = max(driver, now) + batch.schedule
            else:
                ready += batch.schedule
            if ready > now:
                at[node][shard] = math.inf
                heapq.heappush(events, (ready, BEGUN, node, nodes.life[node], shard))
            else:
                compute(node, shard)

    def fill_all() -> None:
        for node in range(cluster.nodes):
            if nodes.back[node] <= now:
                fill(node)

    fill_all()
    while left:
        while ends and ends[0][2] != nodes.life[ends[0][1]]:  # lost with its node
            heapq.heappop(ends)
        pace = min(1.0, batch.room / active) if active else 1.0
        end = now + (ends[0][0] - work) / pace if ends else math.inf
        if end <= events[0][0]:
            work, node, _, shard = heapq.heappop(ends)
            now = end
            del at[node][shard]
            active -= 1
            assert not completed[shard], f"shard {shard} was completed twice"
            completed[shard] = True
            left -= 1
            queue.finished(node, shard)
            fill(node)
            continue
        work += (events[0][0] - now) * pace
        now, kind, node, life, what = heapq.heappop(events)
        if kind == BEGUN:
            if life == nodes.life[node]:
                compute(node, what)
        elif kind == FAILED:
            begun = [now - since for since in at[node].values() if since <= now]
            active -= len(begun)
            story.failures += 1
            story.lost += len(begun)
            story.wasted += sum(begun)
            gone, at[node] = queue.lost(node, set(at[node])), {}
            nodes.fail(node, now)
            heapq.heappush(events, (now + queue.notice, NOTICED, node, 0, gone))
            heapq.heappush(events, (nodes.back[node], BACK, node, 0, None))
        elif kind == BACK:
            heapq.heappush(events, (nodes.next[node], FAILED, node, 0, None))
            fill(node)
        else:
            queue.noticed(what)
            fill_all()
    assert completed.all()
    story.seconds = now


def draw(seconds: float, shards: int, spread: Sequence[float], seed: int, number: int) -> np.ndarray:
    """Seconds of so many shards, float `[shards]`, that take `seconds` each on average, spread as was measured.

    `spread` are evenly spaced quantiles of seconds over their median.
    """
    random = np.random.default_rng([seed, number + 1])
    ratios = np.interp(random.random(shards), np.linspace(0, 1, len(spread)), spread)
    mean = float(np.trapezoid(spread, np.linspace(0, 1, len(spread))))
    return seconds * ratios / mean


def bundled(work: Work, cluster: Cluster, most: int = 20_000) -> tuple[int, int, float, float]:
    """The same in fewer events: tasks, shards in each, its seconds, and how many have room to be under way.

    A node is one worker here, and its task a shard on each of its cores at once; where there would still be more than
    `most` tasks, several shards after one another. So a lost node loses no less than it would.
    """
    deep = math.ceil(work.shards / cluster.cores / most)
    taken = deep * cluster.cores
    return math.ceil(work.shards / taken), taken, work.alone(cluster) * deep, work.room(cluster) / cluster.cores
