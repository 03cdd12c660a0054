"""The line of stages, on one screen.

    plan ─▶ load ▶ tokenize ▶ encode ─▶ (arrange) ─▶ window ─▶ embed ─▶ outputs/<name>/     once per split from `arrange` on

`run` names every stage's entry by everything that can change its bytes, makes the last ones whole, and links
the result into place. What a stage's key is made of stands in `keys.py`, what it reads in `steps.py`, how it is
computed, cached and resumed in `phase.py`, and what it does in its own module.
"""

import datetime
import json
import logging
import platform
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from pipeline import (
    __version__,
    arrange,
    backends,
    bucket,
    choosing,
    corpus,
    embedding,
    engine,
    files,
    fingerprint,
    foretold,
    hub,
    output,
    plan,
    selection,
    steps,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.array import joined
from pipeline.arrow import read_schema
from pipeline.cache import Cache
from pipeline.files import Json
from pipeline.inputs import find_inputs, list_rejects
from pipeline.phase import Line, Report
from pipeline.remote import Damaged, Shelf

log = logging.getLogger(__name__)

Place = output.Folder | bucket.Place
STAGES = (corpus, tokenizer, vocabulary, window, embedding)
CHOOSING = (fingerprint, selection, arrange)  # stages that a run has only where it is asked for


@dataclass
class Outcome:
    """What a run leaves: the dataset, and the story of each stage."""

    folder: Path  # on this disk; else `address` says where
    stages: list[Report]
    ledger: Json  # of the only split, or the first
    rows: int
    seconds: float
    published: bool  # False: the same dataset was there already
    plan: Json | None = None  # what plan=true had said of it
    splits: dict[str, Json] = field(default_factory=dict)  # the ledger of each; "" where there are none
    mixture: Json = field(default_factory=dict)  # what each part of one gave: see `mixture.facts`
    address: str = ""  # of the dataset: a path, or that of a place in a store


def run(config: configs.Config, job: str | None = None, recorded: Json | None = None) -> Outcome:
    """Prepare a dataset.

    `job` names one job of a sweep, which gets a folder of its own inside the output; `recorded` is the
    configuration as the manifest shall show it (interpolations unresolved), by default `config` itself.
    Raises a PipelineError with its exit code; nothing that is already finished is lost by it.
    """
    recorded = configs.recorded(config) if recorded is None else recorded
    started, begun = time.monotonic(), datetime.datetime.now(datetime.UTC)
    configs.check(config)
    for said in configs.idle(config):
        log.warning("%s", said)
    place = place_of(config, job)
    if isinstance(place, bucket.Place):
        place.store.probe()  # of a folder its mode tells
    asked = recorded
    settings, origin = hub.resolve(config.corpus)
    if origin:
        config = replace(config, corpus=settings)
        recorded = {**recorded, "corpus": hub.recorded(recorded["corpus"], settings)}
    cache = Cache.open(Path(config.cache.dir), config.cache.remote, config.cache.scratch_bytes)
    try:
        with joined(cache, config.engine) as array:
            line = Line(cache, config.engine, array)
            try:
                line, planned, manifests, published = _mending(config, recorded, origin, line, place)
            except steps.BackendDiffers as differing:
                log.warning("%s: tokenizer.backend=hf is used instead", differing)
                slow = replace(config, tokenizer=replace(config.tokenizer, backend="hf"))
                line = Line(cache, config.engine, array)
                line, planned, manifests, published = _mending(slow, recorded, origin, line, place)
    finally:
        cache.close()
    reports = [report for _, report in output.in_order(line.reports)]
    ledgers = {split: manifest["ledger"] for split, manifest in manifests.items()}
    rows = sum(manifest["rows"] for manifest in manifests.values())
    drawn = next(iter(manifests.values())).get("mixture", {})
    mixed = {name: drawn[name] for name in config.corpus.parts}
    seconds = time.monotonic() - started
    told = foretold.recall(cache.root, asked, sum(source.bytes for source in planned.sources))
    ledger, address = next(iter(ledgers.values())), str(place)
    outcome = Outcome(Path(address), reports, ledger, rows, seconds, published, told, ledgers, mixed, address)
    record = {
        "started": begun.isoformat(),
        "seconds": outcome.seconds,
        "stages": [asdict(report) for report in outcome.stages],
        "plan": outcome.plan,
        "engine": asdict(config.engine),
        "cores": engine.cores(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
    }
    if published or array is None:
        place.write_run(record, cache.run)
    if config.output.report and (published or (array is None and not place.has_report())):
        _report(place, cache.run)
        outcome.seconds = time.monotonic() - started
    return outcome


def place_of(config: configs.Config, job: str | None = None) -> Place:
    """Where the dataset goes. Raises what `require_ours` raises where something else lies there."""
    places = [_place(config, each) for each in dict.fromkeys((None, job))]  # of a job of a sweep the folder around it too
    for place in places:
        place.require_ours()
    return places[-1]


def _place(config: configs.Config, job: str | None) -> Place:
    given, last = config.output.dir, f"/{job}" if job else ""
    if bucket.is_address(given):
        return bucket.Place(f"{str(given).rstrip('/')}{last}", Path(config.cache.dir) / "tmp")
    return output.Folder(Path(given or Path("outputs") / configs.output_name(config)) / (job or ""))


def _report(place: Place, run: str) -> None:
    """The page about the dataset. It is whole without one, so what goes wrong here is a warning."""
    try:
        place.write_report(run)
    except Exception as error:
        if engine.interrupted():
            raise
        log.warning("%s: the dataset is whole, but its page could not be made: %s", place, error)


def _mending(
    config: configs.Config, recorded: Json, origin: Json | None, line: Line, place: Place
) -> tuple[Line, plan.Plan, dict[str, Json], bool]:
    """`_run`, once more for every entry of a store that arrives damaged: what is still whole is found, the rest computed."""
    known: set[str] = set()
    while True:
        try:
            return _run(config, recorded, origin, line, place)
        except Damaged as damage:
            if damage.name in known:
                raise
            found = [damage, *(other for other in damage.shelf.damaged(line.engine) if other.name != damage.name)]
            known |= {each.name for each in found}
            Shelf.tell(found)
            line = Line(line.cache, line.engine, made=line.made)


def _run(
    config: configs.Config, recorded: Json, origin: Json | None, line: Line, place: Place
) -> tuple[Line, plan.Plan, dict[str, Json], bool]:
    with engine.beside() as aside:  # a tokenizer that need not see the corpus is found while that is hashed
        found = None if tokenizer.trained(config.tokenizer) else aside(steps.find_tokenizer, line, config)
        inputs = find_inputs(line, config)  # one, or the parts of a mixture
        planned = plan.together([own.planned for own in inputs])
        choose = selection.wanted(config.selection, config.split)
        chosen = choosing.make_verdicts(line, config, planned, inputs) if choose else None
        ready = found.result() if found else steps.train_tokenizer(line, config, planned, inputs, chosen)
    encoded = [steps.make_ids(own, ready) for own in inputs]
    streams = steps.make_streams(line, config, planned, inputs, ready, encoded, chosen)
    branches = [line.branch(ids.split) for ids in streams]
    windows = [steps.make_windows(own, config, planned, ready, ids) for own, ids in zip(branches, streams, strict=True)]
    slots = sum(manifest["ledger"]["window"]["slots"] for _, manifest in windows)
    vectors: list[steps.Result | None] = [None] * len(windows)
    if config.embedding.kind != "none":
        vectors = [steps.make_vectors(own, config, ready, rows, slots) for own, rows in zip(branches, windows, strict=True)]
    sources = [asdict(source) | ({"part": own.name} if own.name else {}) for own in inputs for source in own.planned.sources]
    listed, beside = output.list_sources(sources)
    about = _about(config, recorded, origin, listed, line, ready)
    about |= {"mixture": streams[0].mixture} if streams[0].mixture else {}
    parts = {
        ids.split: _part(about, line, ready, ids, rows, table)
        for ids, rows, table in zip(streams, windows, vectors, strict=True)
    }
    for part in parts.values():
        part[1].update(beside)
    links, texts, manifest = parts[""] if "" in parts else _together(about, parts, chosen)
    if chosen and config.selection.duplicates != "none":
        links[choosing.LIST] = _file(choosing.make_list(line, chosen, planned), choosing.LIST)
    for own in inputs:
        links |= list_rejects(own)
    texts |= beside | {"README.md": output.card(about["name"], manifest, sources)}
    if line.array is None:
        published = place.publish(links, texts, manifest, line.cache.run)
    else:
        with line.array.alone(f"output-{files.digest([str(place), manifest])[:32]}") as turn:
            again = turn or not place.holds(links, texts, manifest)  # it may be gone since the array put it there
            published = again and place.publish(links, texts, manifest, line.cache.run)
    return line, planned, {name: part[2] for name, part in parts.items()}, published


# -- the folder that comes out ----------------------------------------------------------------------------

Part = tuple[dict[str, output.File], dict[str, bytes], Json]  # finished files, small files, manifest: see output.publish


def _about(
    config: configs.Config, recorded: Json, origin: Json | None, sources: list[Json], line: Line, ready: steps.Ready
) -> Json:
    """What a manifest says of the whole run."""
    used = {entry.stage for entry in line.entries.values()}
    return {
        "name": configs.output_name(config),
        "config": recorded,
        "sources": sources,
        **({"corpus": origin} if origin else {}),
        "tokenizer": {"backend": ready.backend, **tokenizer.origin(config.tokenizer)},
        "embedding": embedding.origin(config.embedding),
        "versions": {
            "pipeline": __version__,
            "pyarrow": pa.__version__,
            "backend": backends.version(ready.backend),
            "stages": {
                module.__name__.rpartition(".")[2]: module.VERSION
                for module in STAGES + tuple(module for module in CHOOSING if module.__name__.rpartition(".")[2] in used)
            },
        },
    }


def _part(
    about: Json, line: Line, ready: steps.Ready, ids: steps.Ids, windows: steps.Result, vectors: steps.Result | None
) -> Part:
    """The dataset of one split, or of all: complete in itself."""
    links: dict[str, output.File] = {steps.DOCUMENTS_FILE: ids.documents}
    for name in ready.manifest["files"]:
        links[name if name == "vocabulary.json" else f"tokenizer/{name}"] = _file((ready.entry, ready.manifest), name)
    rows = windows
    if vectors:
        links[steps.TABLES] = _file(vectors, steps.TABLES)
        rows = vectors if len(vectors[1]["files"]) > 1 else windows
    data = {f"data-{name}": _file(rows, name) for name in rows[1]["files"] if name != steps.TABLES}
    schema = read_schema(next(iter(data.values()))[0])
    own = [windows[0], *([vectors[0]] if vectors else [])]
    keys = {stage: report.key for stage, report in line.reports.items() if stage.split()[0] not in ("window", "embed")}
    manifest = {
        **about,
        **({"split": ids.split} if ids.split else {}),
        "keys": keys | {entry.stage: entry.key for entry in own},
        "ledger": windows[1]["ledger"],
        "rows": windows[1]["rows"],
        "shift": json.loads(schema.metadata[b"pipeline"])["targets"],
    }
    return data | links, output.dataset_json(schema, list(data), rows[0].key, manifest["shift"]), manifest


def _together(about: Json, parts: dict[str, Part], chosen: choosing.Chosen | None) -> Part:
    """The folder of all splits: each a folder in it, complete in itself, and what tells `datasets` of them."""
    links: dict[str, output.File] = {}
    texts = {"dataset_dict.json": output.split_json(list(parts))}
    for split, (own, small, manifest) in parts.items():
        small = small | {"manifest.json": files.seal(output.describe(own, small, manifest))}
        links |= {f"{split}/{name}": file for name, file in own.items()}
        texts |= {f"{split}/{name}": data for name, data in small.items()}
    first = next(iter(parts.values()))[2]
    shared = {stage: counts for stage, counts in first["ledger"].items() if stage != "window"}
    splits = {split: {"rows": part[2]["rows"], "ledger": part[2]["ledger"]["window"]} for split, part in parts.items()}
    return (
        links,
        texts,
        {
            **about,
            "splits": splits,
            "overlap": chosen.manifest["overlap"] if chosen else {},
            "keys": {stage: key for stage, key in first["keys"].items() if stage not in ("window", "embed")},
            "ledger": shared,
            "rows": sum(split["rows"] for split in splits.values()),
            "shift": first["shift"],
        },
    )


def _file(stage: steps.Result, name: str) -> output.File:
    entry, manifest = stage
    return entry.file(name), manifest["files"][name]
