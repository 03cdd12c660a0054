"""What the costs foretell: of one run on this machine, and of a corpus on many nodes.

one machine   start + plan + ids(shards, workers) + documents + manifests + windows(shards, workers) + folder + page
a cluster     the same; but a shard's bytes pass a network and a storage that all share, and the driver's own parts
              are the driver's, however many nodes there are
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline import plan, window
from scripts.scaling.costs import Costs, makespan

ROWS = window.SHARD  # bytes of rows in a file
MOST = plan.MOST  # shards in a phase, of either
ROUNDS = 4  # shards to a worker at least, so that none waits long for the last
LOCAL = ("read", "write")  # components that are this machine's page cache and disk


def shard_sizes(total: float, shard_bytes: float) -> list[float]:
    """Bytes of each shard of one file of `total` bytes: as many as make `shard_bytes`, and a rest where it is over a quarter.

    >>> [size / 2**20 for size in shard_sizes(17 * 2**20, 8 * 2**20)]
    [4.0, 4.0, 4.0, 5.0]
    """
    size = min(shard_bytes, max(total / plan.SHARDS, plan.LEAST))
    count = max(1, math.ceil(total / size - 1e-9))
    rest = total - size * (count - 1)
    if count > 1 and rest <= size / 4:
        return [size] * (count - 2) + [size + rest]
    return [size] * (count - 1) + [rest]


# -- one machine ------------------------------------------------------------------------------------------


def foretell(costs: Costs, source: float, workers: int, shard_bytes: float = ROWS, cores: int = 2) -> dict[str, float]:
    """Seconds of each part of a cold run over `source` bytes with so many workers, on a machine like this one."""
    slower = costs.contention[str(workers)]
    share = source / costs.corpus["bytes"]
    rows, documents = share * costs.corpus["rows_bytes"], share * costs.corpus["documents"]
    ids, windows = shard_sizes(source, shard_bytes), [ROWS] * int(rows // ROWS) + [rows % ROWS]
    files = 3 * len(ids) + len(windows)
    return {
        "start": costs.start,
        "plan": max(costs.source * source * slower / workers, costs.tokenizer),
        "ids": makespan([slower * costs.shard("ids", size) for size in ids], workers)
        + (costs.proof / cores if workers >= cores else 0.0),
        "documents": costs.documents(documents, len(ids)),
        "manifests": costs.finish(files),
        "windows": makespan([slower * costs.shard("windows", size) for size in windows], workers),
        "folder": costs.folder(len(windows)),
        "page": costs.page(documents),
    }


# -- many nodes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Nodes and what they share. Nothing of this is measured: it is assumed, and said so."""

    nodes: int
    cores: int = 32  # workers of a node
    network: float = 3.1e9  # bytes a second of a node: 25 Gbit/s
    stream: float = 5e8  # bytes a second of one worker's reading or writing
    storage: float = 1e11  # bytes a second of the storage that all share
    mtbf: float = 1000 * 3600.0  # seconds between two failures of a node
    restart: float = 300.0  # seconds until a node that failed is back
    notice: float = 30.0  # seconds until an engine has noticed

    @property
    def workers(self) -> int:
        """Of all nodes."""
        return self.nodes * self.cores


@dataclass(frozen=True)
class Work:
    """One phase: so many equal shards, each computed for `seconds` while `moved` bytes pass."""

    name: str
    shards: int
    compute: float
    moved: float

    def alone(self, cluster: Cluster) -> float:
        """Seconds of a shard that no other keeps waiting: it computes and moves in turn."""
        return self.compute + self.moved / cluster.stream

    def needs(self, cluster: Cluster, per_task: float = 0.0) -> dict[str, float]:
        """Seconds in which the whole phase would be through if one thing alone were to be waited for."""
        return {
            "workers": self.shards * self.alone(cluster) / cluster.workers,
            "network": self.shards * self.moved / (cluster.nodes * cluster.network),
            "storage": self.shards * self.moved / cluster.storage,
            "driver": self.shards * per_task,
        }

    def bound(self, cluster: Cluster, per_task: float) -> str:
        """What is waited for longest."""
        needs = self.needs(cluster, per_task)
        return max(needs, key=lambda name: needs[name])

    def within(self, cluster: Cluster, per_task: float = 0.0) -> float:
        """Seconds in which all of it is done at the latest where nothing fails, whoever is free taking the next shard.

        What is waited for longest, and a shard more: R. L. Graham, "Bounds for certain multiprocessing anomalies", 1966.
        """
        return max(self.needs(cluster, per_task).values()) + self.alone(cluster)

    def room(self, cluster: Cluster) -> float:
        """How many shards can be under way before network or storage keep them waiting."""
        return self.alone(cluster) * min(cluster.storage, cluster.nodes * cluster.network) / max(self.moved, 1e-9)


def phases(costs: Costs, source: float, shard_bytes: float) -> list[Work]:
    """Both phases over a corpus of `source` bytes. A shard computes as on this machine with two workers.

    Shards are larger where there would be more than about MOST of them.
    """
    slower = costs.contention["2"]
    share = source / costs.corpus["bytes"]
    rows = share * costs.corpus["rows_bytes"]
    made = []
    for name, total, size in (("ids", source, shard_bytes), ("windows", rows, ROWS)):
        count = max(1, min(MOST, round(total / size)))
        each = total / count
        compute = slower * sum(line(each) for part, line in getattr(costs, name).items() if part not in LOCAL)
        written = sum(costs.stored[s](each) for s in (("load", "tokenize", "encode") if name == "ids" else ("window",)))
        read = each if name == "ids" else each * costs.stored["encode"].each * source / rows
        made.append(Work(name, count, compute, read + written))
    return made


def hash_seconds(costs: Costs, cluster: Cluster, size: float) -> float:
    """Of hashing so many bytes, which all workers do together: those of the source, or of what an earlier run left."""
    return size * max(costs.source / cluster.workers, 1 / (cluster.network * cluster.nodes), 1 / cluster.storage)


def driver(costs: Costs, source: float, work: Iterable[Work]) -> dict[str, float]:
    """Seconds of what one process does alone between the phases and behind them, whatever the number of nodes."""
    ids, windows = work
    documents = source / costs.corpus["bytes"] * costs.corpus["documents"]
    return {
        "documents": costs.documents(documents, ids.shards),
        "manifests": costs.finish(3 * ids.shards + windows.shards),
        "folder": costs.folder(windows.shards) + costs.page(documents),
    }


def foretell_cluster(costs: Costs, cluster: Cluster, source: float, shard_bytes: float, per_task: float) -> dict[str, float]:
    """Seconds of each part on a cluster where nothing fails."""
    work = phases(costs, source, shard_bytes)
    found = {"start": costs.start, "plan": hash_seconds(costs, cluster, source)}
    for one in work:
        found[one.name] = one.within(cluster, per_task)
    return found | driver(costs, source, work)


def best_shard(costs: Costs, cluster: Cluster, source: float, per_task: float) -> int:
    """The size of shard, 16 MiB or a larger power of two, with which that is fastest, at least ROUNDS shards to a worker."""
    sizes = [size for power in range(9) if MOST >= source / (size := ROWS << power) >= ROUNDS * cluster.workers]
    return min(sizes or [ROWS], key=lambda size: sum(foretell_cluster(costs, cluster, source, size, per_task).values()))


def found_again(costs: Costs, cluster: Cluster, source: float, shard_bytes: float) -> dict[str, float]:
    """Seconds of the same command again until it goes on where the driver was lost: what is there is hashed."""
    kept = stored(costs, source, shard_bytes)
    ids = hash_seconds(costs, cluster, kept["load"] + kept["tokenize"] + kept["encode"])
    stream, windows = (hash_seconds(costs, cluster, kept[stage]) for stage in ("encode", "window"))
    return {
        "half of the IDs were there": costs.start + ids / 2,
        "half of the rows were there": costs.start + stream + windows / 2,
        "all was there": costs.start + stream + windows,
    }


def stored(costs: Costs, source: float, shard_bytes: float) -> dict[str, float]:
    """Bytes by stage."""
    share = source / costs.corpus["bytes"]
    shards = min(MOST, source / shard_bytes)
    found = {stage: costs.stored[stage](source, shards) for stage in ("load", "tokenize", "encode")}
    return found | {"documents": 36 * share * costs.corpus["documents"], "window": share * costs.corpus["rows_bytes"]}


def memory(costs: Costs, ids: int, windows: int) -> float:
    """Bytes that the driver holds at most: the plan, the receipts of a phase, and a manifest while it is written."""
    m = costs.memory
    first = ids * (m["plan"] + 3 * m["receipt"] + m["sealing"])
    second = ids * (m["plan"] + m["receipt"]) + windows * (m["receipt"] + m["sealing"])
    return m["base"] + max(first, second)
