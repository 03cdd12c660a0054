"""The tables of SCALING.md and its plots, from the figures beside this script and from nothing else."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from scripts.benchmark.environments import BenchmarkError
from scripts.benchmark.report import digits
from scripts.scaling import check
from scripts.scaling.costs import Costs
from scripts.scaling.model import Cluster, best_shard, driver, foretell_cluster, found_again, memory, phases, stored
from scripts.scaling.scenarios import CLUSTERS, HOURS, SOURCES, TB, Scenario, per_task

MARK = re.compile(r"(<!-- scaling: (\w+) -->\n).*?(<!-- end -->)", re.S)
ABOUT = {
    "read": "read the source",
    "parse": "parse JSONL, columns, batches",
    "tokenize": "tokenize",
    "encode": "IDs and end marks",
    "window": "cut rows out of the stream",
    "arrow": "Arrow files, the loop, collecting",
    "hash": "sha256 of what is written",
    "write": "write",
    "sync": "fsync",
    "publish": "temporary name, rename, receipt",
}
ASSUMED = {
    "cores": ("workers of a node, each as fast as one of the two measured", lambda v: f"{v}"),
    "network": ("of a node, in and out together", lambda v: f"{v / 1e9:.1f} GB/s (25 Gbit/s)"),
    "stream": ("of one worker reading or writing", lambda v: f"{v / 1e9:.1f} GB/s"),
    "storage": ("that all nodes share", lambda v: f"{v / 1e9:.0f} GB/s"),
    "mtbf": ("between two failures of a node", lambda v: f"{v / 3600:.0f} h"),
    "restart": ("until a node that failed is back", lambda v: f"{v:.0f} s"),
    "notice": ("until Ray has noticed a lost node", lambda v: f"{v:.0f} s"),
}


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown; all but the first columns to the right."""
    lines = [headings, ["---"] * left + ["--:"] * (len(headings) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def duration(seconds: float) -> str:
    """For a person.

    >>> duration(0.0123), duration(12.34), duration(1234), duration(12345)
    ('0.012 s', '12.3 s', '20.6 min', '3.43 h')
    """
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 600:
        return f"{digits(seconds)} s"
    return f"{digits(seconds / 60)} min" if seconds < 7200 else f"{digits(seconds / 3600)} h"


def size(number: float) -> str:
    """Bytes for a person.

    >>> size(1.5e12), size(64 * 2**20), size(800)
    ('1.50 TB', '67.1 MB', '800 B')
    """
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= of:
            return f"{digits(number / of)} {unit}"
    return f"{number:.0f} B"


def _more(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"


def _middle(simulated: dict[str, Any], source: float) -> Scenario:
    """The scenario of a corpus on 100 nodes."""
    found: Scenario = next(s for s in simulated["scenarios"] if s.source == source and s.nodes == CLUSTERS[1].nodes)
    return found


# -- tables -----------------------------------------------------------------------------------------------


def shard_costs(costs: Costs) -> str:
    """What a shard costs one worker."""
    rows = []
    for name, about in ABOUT.items():
        lines = [getattr(costs, phase).get(name) for phase in ("ids", "windows")]
        if any(lines):
            told = [[digits(1e3 * line.fixed), digits(1e9 * line.each)] if line else ["", ""] for line in lines]
            rows.append([about, *told[0], *told[1]])
    totals = [(sum(x.fixed for x in part.values()), sum(x.each for x in part.values())) for part in (costs.ids, costs.windows)]
    rows.append(["**all**", *(text for fixed, each in totals for text in (digits(1e3 * fixed), digits(1e9 * each)))])
    return table(["", "ms a shard", "s a GB of source", "ms a shard of rows", "s a GB of rows"], rows)


def run_costs(costs: Costs) -> str:
    """What the driver does alone, and what an engine adds."""
    documents, finish, folder, page = costs.documents, costs.finish, costs.folder, costs.page
    rows = [
        ["start: interpreter, imports, composing, leaving", duration(costs.start), ""],
        ["finding and opening the tokenizer, beside the next", duration(costs.tokenizer), ""],
        ["hashing the source, one thread", "", f"{digits(1e9 * costs.source)} s a GB"],
        ["documents.arrow", "", f"{digits(1e3 * documents.fixed)} ms a shard, {digits(1e6 * documents.each)} µs a document"],
        ["the manifests", duration(finish.fixed), f"{digits(1e6 * finish.each)} µs a file"],
        ["the folder of the dataset", duration(folder.fixed), f"{digits(1e6 * folder.each)} µs a file"],
        ["its page", duration(page.fixed), f"{digits(1e9 * page.each)} ns a document"],
    ]
    for kind, line in costs.engines.items():
        rows.append([f"engine `{kind}`, 2 workers", duration(line.fixed), f"{digits(1e6 * line.each)} µs a task"])
    return table(["", "once", "and"], rows)


def contention(costs: Costs) -> str:
    """How much longer a shard takes where several are at it."""
    rows = [[workers, f"{factor:.2f}", f"{int(workers) / factor:.2f}"] for workers, factor in costs.contention.items()]
    return table(["workers", "a shard takes, times", "shards a second, times"], rows)


def checked(found: Sequence[check.Checked]) -> str:
    """Whole runs beside what was foretold."""
    return table(check.HEADINGS, check.rows(list(found)))


def assumed(simulated: dict[str, Any]) -> str:
    """What is not measured."""
    given = simulated["assumed"]
    told = [(f.name, *ASSUMED[f.name]) for f in fields(Cluster) if f.name in ASSUMED]
    return table(["assumed", "of", "value"], [[f"`{name}`", about, show(given[name])] for name, about, show in told], 2)


def times(simulated: dict[str, Any]) -> str:
    """Where the time goes on each cluster."""
    rows = []
    for one in simulated["scenarios"]:
        p, ray, array = one.parts, one.simulated["ray"], one.simulated["array"]
        rows.append(
            [
                f"{one.source / TB:.0f} TB",
                f"{one.nodes:,}" + (f", {one.storage / 1e12:.0f} TB/s" if one.storage != CLUSTERS[0].storage else ""),
                size(one.source / one.shards),
                f"{one.shards:,}",
                duration(p["plan"]),
                f"{duration(p['ids'])} ({one.bound['ids']})",
                f"{duration(p['windows'])} ({one.bound['windows']})",
                duration(p["documents"] + p["manifests"] + p["folder"]),
                duration(sum(p.values())),
                f"{duration(ray[0])} ({duration(ray[1])}–{duration(ray[2])})",
                f"{duration(array[0])} ({duration(array[1])}–{duration(array[2])})",
            ]
        )
    heads = [
        "text",
        "nodes",
        "shard",
        "shards",
        "hash source",
        "IDs",
        "windows",
        "one process alone",
        "in all",
        "Ray, with failures",
        "array, with failures",
    ]
    return table(heads, rows, 2)


def storage(costs: Costs, simulated: dict[str, Any]) -> str:
    """Bytes by stage."""
    found = {source: stored(costs, source, _middle(simulated, source).shard_bytes) for source in SOURCES}
    names = list(next(iter(found.values())))
    rows = [[name, *(size(found[source][name]) for source in found)] for name in names]
    rows.append(["**all**", *(size(sum(found[source].values())) for source in found)])
    return table(["stage", *(f"{source / TB:.0f} TB" for source in found)], rows)


def driver_memory(costs: Costs, simulated: dict[str, Any]) -> str:
    """What the driver holds."""
    rows = []
    for one in simulated["scenarios"]:
        if one.storage != CLUSTERS[0].storage:
            continue
        rows.append(
            [
                f"{one.source / TB:.0f} TB",
                f"{one.nodes:,}",
                f"{one.shards:,}",
                f"{one.windows:,}",
                size(memory(costs, one.shards, one.windows)),
                size(costs.memory["manifest"] * one.windows),
                size(costs.memory["payload"] * one.shards),
            ]
        )
    return table(
        ["text", "nodes", "shards of IDs", "of rows", "driver's memory", "largest manifest", "function of a task"], rows, 2
    )


def limits(costs: Costs, simulated: dict[str, Any]) -> str:
    """From how many nodes on more of them help little."""
    rows = []
    for source in SOURCES:
        one, node = _middle(simulated, source), Cluster(1)
        work = phases(costs, source, one.shard_bytes)
        alone = sum(driver(costs, source, work).values())
        needs = [w.needs(node, per_task(costs, "ray")) for w in work]
        one_node = [max(need["workers"], need["network"]) for need in needs]
        full, handed = (
            [most / need[name] for most, need in zip(one_node, needs, strict=True)] for name in ("storage", "driver")
        )
        shards = min(w.shards for w in work) / node.cores
        together = sum(one_node)
        numbers = [together / alone, min(full), min(handed), shards]
        rows.append([f"{source / TB:.0f} TB", duration(together), duration(alone), *(f"{number:,.0f}" for number in numbers)])
    heads = ["text", "phases, on one node", "one process alone", "nodes at which both are equal"]
    return table([*heads, "that fill the storage", "that keep a Ray driver busy", "with a shard for each worker"], rows)


def losses(costs: Costs, simulated: dict[str, Any]) -> str:
    """What a lost node adds, and a lost driver."""
    rows = []
    for source, by_engine in simulated["lost_node"].items():
        for name, (median, low, high) in by_engine.items():
            rows.append([source, name, _more(median), f"{_more(low)} to {_more(high)}"])
    return table(["text, 100 nodes", "engine", "median", "5 % to 95 %"], rows, 2)


def lost_drivers(costs: Costs, simulated: dict[str, Any]) -> str:
    """What the same command takes again."""
    found = [found_again(costs, CLUSTERS[1], source, _middle(simulated, source).shard_bytes) for source in SOURCES]
    rows = [[when, *(duration(one[when]) for one in found)] for when in found[0]]
    return table(["100 nodes, lost when", *(f"{source / TB:.0f} TB" for source in SOURCES)], rows)


def blocks(costs: Costs, found: Sequence[check.Checked], simulated: dict[str, Any]) -> dict[str, str]:
    """Every table by the name that it has in SCALING.md."""
    return {
        "shard": shard_costs(costs),
        "run": run_costs(costs),
        "contention": contention(costs),
        "check": checked(found),
        "assumed": assumed(simulated),
        "times": times(simulated),
        "storage": storage(costs, simulated),
        "memory": driver_memory(costs, simulated),
        "limits": limits(costs, simulated),
        "losses": losses(costs, simulated),
        "drivers": lost_drivers(costs, simulated),
    }


def fill(text: str, tables: dict[str, str]) -> str:
    """The text with each table in its place. Raises KeyError where it asks for another.

    >>> fill("<!-- scaling: a -->\\nold\\n<!-- end -->", {"a": "new\\n"})
    '<!-- scaling: a -->\\nnew\\n<!-- end -->'
    """
    return MARK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


# -- plots ------------------------------------------------------------------------------------------------


def _figure(path: Path, draw: Callable[[Any], None], title: str) -> None:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError("the plots need matplotlib: pip install -c constraints.txt -e '.[benchmark]'.") from error

    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def plot_nodes(costs: Costs, simulated: dict[str, Any], path: Path) -> None:
    """Hours over nodes: in all, and what is the driver's alone."""

    def draw(axes: Any) -> None:
        task, nodes = per_task(costs, "ray"), [round(10 ** (x / 8)) for x in range(0, 29)]
        for source, colour in zip(SOURCES, ("tab:blue", "tab:orange"), strict=True):
            clusters = [(cluster := Cluster(n), best_shard(costs, cluster, source, task)) for n in nodes]
            parts = [foretell_cluster(costs, cluster, source, size, task) for cluster, size in clusters]
            name = f"{source / TB:.0f} TB"
            axes.plot(nodes, [sum(p.values()) / 3600 for p in parts], color=colour, label=f"{name}: in all")
            axes.plot(
                nodes, [(p["ids"] + p["windows"]) / 3600 for p in parts], color=colour, ls="--", label=f"{name}: both phases"
            )
            drawn = [s for s in simulated["scenarios"] if s.source == source and s.storage == CLUSTERS[0].storage]
            middle, low, high = ([s.simulated["ray"][i] / 3600 for s in drawn] for i in range(3))
            reach = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
            axes.errorbar([s.nodes for s in drawn], middle, yerr=reach, color=colour, fmt="o", ms=4)
        axes.set(xscale="log", yscale="log", xlabel="nodes of 32 workers", ylabel="hours")

    _figure(path, draw, "lines: foretold; points: simulated, nodes failing every 1,000 h")


def plot_failures(simulated: dict[str, Any], path: Path) -> None:
    """How much longer the work takes when nodes fail often."""

    def draw(axes: Any) -> None:
        for name, found in simulated["often"].items():
            middle, low, high = ([100 * (one[i] - 1) for one in found] for i in range(3))
            axes.plot(HOURS, middle, marker="o", ms=4, label=name)
            axes.fill_between(HOURS, low, high, alpha=0.15)
        axes.set(xscale="log", xlabel="hours between two failures of a node", ylabel="% more time")
        axes.invert_xaxis()

    _figure(path, draw, f"50 TB on 100 nodes: median of {simulated['seeds']} seeds, 5 % to 95 %")
