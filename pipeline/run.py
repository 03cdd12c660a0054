"""The line of stages, on one screen.

    plan ─▶ load ▶ tokenize ▶ encode ─▶ window ─▶ embed ─▶ outputs/<name>/

`run` names every stage's entry by everything that can change its bytes, makes the last ones whole, and links
the result into place. What each stage is made from stands in `steps.py`, how it is computed, cached and resumed
in `phase.py`, and what it does in its own module.
"""

import datetime
import json
import logging
import os
import platform
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline import (
    __version__,
    backends,
    corpus,
    embedding,
    engine,
    estimate,
    hub,
    output,
    plan,
    steps,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.arrow import read_schema
from pipeline.cache import Cache
from pipeline.files import Json
from pipeline.phase import Line, Report

log = logging.getLogger(__name__)
STAGES = (corpus, tokenizer, vocabulary, window, embedding)


@dataclass
class Outcome:
    """What a run leaves: the dataset, and the story of each stage."""

    folder: Path
    stages: list[Report]
    ledger: Json
    rows: int
    seconds: float
    published: bool  # False: the same dataset was there already
    plan: Json | None = None  # what plan=true had said of it


def run(config: configs.Config, job: str | None = None, recorded: Json | None = None) -> Outcome:
    """Prepare a dataset.

    `job` names one job of a sweep, which gets a folder of its own inside the output; `recorded` is the
    configuration as the manifest shall show it (interpolations unresolved), by default `config` itself.
    Raises a PipelineError with its exit code; nothing that is already finished is lost by it.
    """
    recorded = configs.recorded(config) if recorded is None else recorded
    started, begun = time.monotonic(), datetime.datetime.now(datetime.UTC)
    configs.check(config)
    folder = Path(config.output.dir or Path("outputs") / configs.output_name(config)) / (job or "")
    output.require_ours(folder)
    if job:
        output.require_ours(folder.parent)
    asked = recorded
    settings, origin = hub.resolve(config.corpus)
    if origin:
        config = replace(config, corpus=settings)
        recorded = {**recorded, "corpus": {**recorded["corpus"], "format": settings.format}}
    cache = Cache.open(Path(config.cache.dir))
    try:
        try:
            line, planned, published = _run(config, recorded, origin, cache, folder)
        except steps.BackendDiffers as differing:
            log.warning("%s: tokenizer.backend=hf is used instead", differing)
            slow = replace(config, tokenizer=replace(config.tokenizer, backend="hf"))
            line, planned, published = _run(slow, recorded, origin, cache, folder)
    finally:
        cache.close()
    reports = [report for _, report in output.in_order(line.reports)]
    rows = line.ledger["window"]["rows"]
    seconds = time.monotonic() - started
    told = estimate.recall(cache.root, asked, sum(source.bytes for source in planned.sources))
    outcome = Outcome(folder, reports, line.ledger, rows, seconds, published, told)
    record = {
        "started": begun.isoformat(),
        "seconds": outcome.seconds,
        "stages": [asdict(report) for report in outcome.stages],
        "plan": outcome.plan,
        "engine": asdict(config.engine),
        "cores": engine.cores(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    output.write_run(folder, record, cache.run)
    if config.output.report and (published or not os.path.lexists(folder / output.REPORT)):
        _report(folder, cache.run)
        outcome.seconds = time.monotonic() - started
    return outcome


def _report(folder: Path, run: str) -> None:
    """The page about the dataset. It is whole without one, so what goes wrong here is a warning."""
    from pipeline import report

    try:
        report.write(folder, run)
    except Exception as error:
        if engine.interrupted():
            raise
        log.warning("%s: the dataset is whole, but its page could not be made: %s", folder / output.REPORT, error)


def _run(
    config: configs.Config, recorded: Json, origin: Json | None, cache: Cache, folder: Path
) -> tuple[Line, plan.Plan, bool]:
    line = Line(cache, config.engine)
    with engine.beside() as aside:  # a tokenizer that need not see the corpus is found while that is hashed
        found = None if tokenizer.trained(config.tokenizer) else aside(steps.find_tokenizer, line, config)
        planned = plan.make(config.corpus, cache, config.cache.trust_stat, config.engine.workers or engine.cores())
        load = steps.load(line, config, planned)
        ready = found.result() if found else steps.train_tokenizer(line, config, planned, load)
    encoded = steps.make_ids(line, config, planned, load, ready)
    windows = steps.make_windows(line, config, planned, ready, encoded)
    vectors = steps.make_vectors(line, config, ready, windows) if config.embedding.kind != "none" else None
    return line, planned, _publish(folder, config, recorded, origin, planned, line, ready, encoded, windows, vectors)


# -- the folder that comes out ----------------------------------------------------------------------------


def _publish(
    folder: Path,
    config: configs.Config,
    recorded: Json,
    origin: Json | None,
    planned: plan.Plan,
    line: Line,
    ready: steps.Ready,
    encoded: steps.Result,
    windows: steps.Result,
    vectors: steps.Result | None,
) -> bool:
    """Link the finished files into `folder`, with what describes them. False where they are there already."""
    links = {"documents.arrow": _file(encoded, "documents.arrow")}
    for name in ready.manifest["files"]:
        links[name if name == "vocabulary.json" else f"tokenizer/{name}"] = _file((ready.entry, ready.manifest), name)
    rows = windows
    if vectors:
        links[steps.TABLES] = _file(vectors, steps.TABLES)
        rows = vectors if len(vectors[1]["files"]) > 1 else windows
    data = {f"data-{name}": _file(rows, name) for name in rows[1]["files"] if name != steps.TABLES}
    schema = read_schema(next(iter(data.values()))[0])
    name = configs.output_name(config)
    manifest = {
        "name": name,
        "config": recorded,
        "keys": {entry.stage: entry.key for entry in line.entries.values()},
        "ledger": windows[1]["ledger"],
        "rows": windows[1]["rows"],
        "shift": json.loads(schema.metadata[b"pipeline"])["targets"],
        "sources": [asdict(source) for source in planned.sources],
        **({"corpus": origin} if origin else {}),
        "tokenizer": {"backend": ready.backend, **tokenizer.origin(config.tokenizer)},
        "embedding": embedding.origin(config.embedding),
        "versions": {
            "pipeline": __version__,
            "pyarrow": pa.__version__,
            "backend": backends.version(ready.backend),
            "stages": {module.__name__.rpartition(".")[2]: module.VERSION for module in STAGES},
        },
    }
    texts = output.dataset_json(schema, list(data), rows[0].key, manifest["shift"])
    texts["README.md"] = output.card(name, manifest)
    return output.publish(folder, data | links, texts, manifest, line.cache.run)


def _file(stage: steps.Result, name: str) -> tuple[Path, Json]:
    entry, manifest = stage
    return entry.path(name), manifest["files"][name]
