"""The page of a finished dataset, `report.html`, and that of a sweep, `sweep.html`: what came out, for a person.

    manifest.json, run.json ─┐
    documents.arrow          ├─▶ measure ─▶ facts ─▶ pages/report.html ─▶ report.html
    a bounded part of the rows┘

`facts` is a dict of numbers and strings; the template draws it. One file comes out, which loads nothing: its style and its
script stand in it, and a policy in its head forbids any other. All text is escaped by the template, after control
characters were made visible. Like `run.json` the page tells times, so it differs between equal runs; the manifest
does not list it.

What it costs is bounded: the rows of at most `MOST_IDS` IDs are counted, spread evenly over the dataset, `MOST_POINTS`
vectors are projected, and the lengths of documents are read a batch at a time.
"""

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import balance, charts, console, embedding, fingerprint, manifests, model, output, window
from pipeline import config as configs
from pipeline.arrow import flattened, list_values, read_batches, to_numpy
from pipeline.files import Json, read_record
from pipeline.guard import redacted
from pipeline.show import spelt
from pipeline.split import ordered
from pipeline.temporary import run_name
from pipeline.trace import Finished

log = logging.getLogger(__name__)

MOST_IDS = 1 << 22  # counted for the use of the vocabulary
MOST_WORDS = 1 << 13  # IDs read as text for tokens per word
MOST_POINTS = 200  # vectors projected
MOST_NORMS = 4096  # vectors measured
MOST_LENGTH = 1 << 20  # documents of more tokens count as of so many
MOST_DOCUMENTS = 1 << 20  # with more, the drawn windows do not say where they came from
SHOWN = 48  # tokens of a drawn window
NAMED = 3  # documents above it
SOURCES = 20
HUES = 24  # colours of tokens
FATES = ("on", "added", "aside", "lost")  # of the parts of a bar
CHANGED = {"recoded_bytes": "by decoding", "added_bytes": "by the template", "repaired_bytes": "by repairs"}
COPIES = {"exact": "equal", "near": "nearly equal"}
DROPPED = {
    "dropped_duplicate_documents": "dropped, equal to an earlier one",
    "dropped_near_duplicate_documents": "dropped, nearly equal to an earlier one",
}
UNRECORDED = ("engine", "cache", "output")  # groups that change no byte


class Trusted(Finished):
    """A dataset whose files were hashed a moment ago by the run that wrote or found them."""

    def file(self, name: str) -> Path:
        """The path of a file, not hashed again."""
        return self.folder / name


def write(folder: Path, run: str, opened: type[Finished] = Trusted) -> Path:
    """Put the page of a dataset that was just finished beside it, atomically; its path. `run` names the run's workshop.

    Where it has splits each of them has a page, and that of the whole compares them. `opened` is how it is read.
    """
    manifest = manifests.read(folder / "manifest.json") or {}
    for name in manifest.get("splits", ()):
        output.write_text(folder, f"{name}/{output.REPORT}", page(opened(folder / name)), run)
    text = render("report.html", _whole(folder, manifest)) if manifest.get("splits") else page(opened(folder))
    output.write_text(folder, output.REPORT, text, run)
    return folder / output.REPORT


def write_sweep(folder: Path, jobs: Iterable[tuple[str, Path | None, str]], run: str) -> None:
    """Put the page that compares the jobs of a sweep into the folder that holds them; see `sweep_page`."""
    output.write_text(folder, output.SWEEP, sweep_page(folder.name, jobs), run)


def report(folder: Path) -> list[Path]:
    """Write the pages of a folder by hand: of the dataset in it, and of the jobs of a sweep in it.

    The page that a sweep left stays: it also knows the jobs that failed, and their order. Returns the paths of the others.
    Raises ConfigError where there is neither, IntegrityError where a file is damaged.
    """
    written = []
    jobs = sorted(path.parent for path in folder.glob("*/manifest.json") if manifests.read(path) is not None)
    whole = manifests.read(folder / "manifest.json") or {}
    jobs = [job for job in jobs if job.name not in whole.get("splits", ())]
    for place in ([folder] if whole or not jobs else []) + jobs:
        written.append(write(place, run_name(0), Finished))
    if jobs and (folder / output.SWEEP).exists():
        log.info("%s stays as the sweep left it: remove it to have one of the datasets that are there.", folder / output.SWEEP)
    elif jobs:
        write_sweep(folder, [(job.name, job, "") for job in jobs], run_name(0))
        written.append(folder / output.SWEEP)
    return written


def page(dataset: Finished) -> str:
    """The page of a dataset as HTML."""
    return render("report.html", measure(dataset))


# -- the template -----------------------------------------------------------------------------------------------


def render(template: str, facts: Json) -> str:
    """A page: the template filled with facts, whose strings hold no control characters and no secrets afterwards."""
    style, script = (_text(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    from markupsafe import Markup

    return str(
        _environment().get_template(template).render(_clean(facts), style=Markup(style), script=Markup(script), digest=digest)
    )


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    pages = Path(__file__).parent / "pages"
    kept = pages / "__pycache__"  # compiled templates, as Python keeps compiled modules
    with contextlib.suppress(OSError):
        kept.mkdir(exist_ok=True)
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(pages),
        bytecode_cache=FileSystemBytecodeCache(str(kept)) if os.access(kept, os.W_OK) else None,
    )
    made.filters |= {"size": console.size, "number": lambda value: f"{value:,}", "counted": console.counted, "hue": hue}
    made.filters["draw"] = lambda chart, label: Markup(charts.draw(chart, label))
    return made


def hue(i: int) -> int:
    """The number of the colour of a token: equal ones have equal colours, neighbouring IDs different ones."""
    return i * 7 % HUES


def _text(name: str) -> str:
    return (Path(__file__).parent / "pages" / name).read_text("utf-8")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return console.printable(redacted(value))
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value


# -- the facts of a dataset -------------------------------------------------------------------------------------


def measure(dataset: Finished) -> Json:
    """All that the page of a dataset tells."""
    made, ledger = _made(dataset.folder, dataset.manifest, dataset.manifest["ledger"]), dataset.manifest["ledger"]
    use, words = _use(dataset)
    tokens, text = made["tokens"] - made["documents"] * made["marks"], made["text_bytes"]
    unknown = ledger["encode"].get("unknown", 0)  # in all that was read
    return made | {
        "targets": _kept(ledger["window"]),
        "windows": _windows(dataset),
        "lengths": _lengths(dataset),
        "per_byte": tokens / text if text else None,
        "per_word": words,
        "unknown": unknown if "arrange" not in ledger or not unknown else None,
        "use": use,
        "embedding": _embedding(dataset, use["frequent"]),
    }


def _whole(folder: Path, manifest: Json) -> Json:
    """All that the page of the folder of splits tells; what is in the rows stands on the page of each."""
    ledger, disk = manifest["ledger"], manifest["files"]
    window = sum((Counter(own["ledger"]) for own in manifest["splits"].values()), Counter())
    splits = [
        {
            "name": name,
            "documents": ledger["arrange"][f"{name}_documents"],
            "ids": ledger["arrange"][f"{name}_ids"],
            "rows": own["rows"],
            "targets": _kept(own["ledger"]),
            "disk": sum(note["bytes"] for file, note in disk.items() if file.startswith(f"{name}/")),
        }
        for name, own in ordered(manifest["splits"])
    ]
    made = _made(folder, manifest, {**ledger, "window": window})
    return made | {"splits": splits, "targets": _kept(window), "use": None, "windows": None}


def _kept(counts: Json) -> int:
    """Targets, or the tokens of rows that have none, from the counts of the stage `window`."""
    return int(counts.get("targets", 0) + counts.get("kept", 0))


def _made(folder: Path, manifest: Json, ledger: Json) -> Json:
    """What both kinds of page tell: how the dataset was made, what it holds, and what became of the text."""
    record, window, sources = _record(folder), manifest["config"]["window"], output.sources(folder, manifest)
    names = [manifest["split"]] if manifest.get("split") else [*manifest.get("splits", ())] or ["kept"]
    return {
        "name": manifest["name"],
        "split": manifest.get("split"),
        "splits": [],
        "rows": manifest["rows"],
        "mode": window["mode"],
        "context_length": window["context_length"],
        "shift": manifest["shift"],
        **_held(ledger, names),
        "tokens": ledger["window"]["tokens"],
        "marks": sum(bool(ledger["encode"].get(mark)) for mark in ("bos", "eos")),  # of each document
        "flow": flow(ledger, manifest.get("split")),
        "mixture": [{"name": part, **manifest["mixture"][part]} for part in manifest["config"]["corpus"].get("parts") or ()],
        "copies": _copies(manifest, manifests.read(folder.parent / "manifest.json") if manifest.get("split") else None),
        "stages": _stages(record, ledger["load"].get("text_bytes", 0)),
        "record": {name: record.get(name) for name in ("started", "seconds", "cores", "host", "python", "platform")},
        "disk": sum(note["bytes"] for note in manifest["files"].values()),
        "config": _flat(manifest["config"]),
        "keys": output.in_order(manifest["keys"]),
        "versions": _flat(manifest["versions"]),
        "origin": _flat({"tokenizer": manifest["tokenizer"], "embedding": manifest["embedding"] or {}}),
        "sources": sources[:SOURCES],
        "more_sources": max(0, len(sources) - SOURCES),
        "command": command(manifest["config"]),
    }


def _held(ledger: Json, names: list[str]) -> Json:
    """Documents and bytes of text in these splits, or in what is "kept"; no bytes where weights chose: nobody counted them."""
    load, arrange, selection = (ledger.get(stage, {}) for stage in ("load", "arrange", "selection"))
    documents, text = load.get("documents", 0), load.get("text_bytes", 0)
    if arrange:
        documents = sum(arrange[f"{name}_documents"] for name in names)
    if selection:
        text = sum(selection[f"{name}_bytes"] for name in names)
    weighed = {"kept", "train"} & {*names} and (arrange.get("left_out_ids") or arrange.get("repeated"))
    return {"documents": documents, "text_bytes": None if weighed else text}


def _record(folder: Path) -> Json:
    """What `run.json` says, for a split that of the whole; nothing where it is missing or damaged."""
    return read_record((folder if (folder / "run.json").exists() else folder.parent) / "run.json")


def _flat(tree: Json, dotted: str = "") -> list[tuple[str, str]]:
    """Dotted names and their values, as JSON writes them."""
    found = []
    for name, value in sorted(tree.items()):
        path = f"{dotted}.{name}".lstrip(".")
        found += _flat(value, path) if isinstance(value, dict) and value else [(path, json.dumps(value, ensure_ascii=False))]
    return found


def flow(ledger: Json, split: str | None = None) -> list[Json]:
    """The balance as bars, one below the other, each the sum of its parts: what goes on, what is added, what is lost.

    A part is `(name, count, fate)`, with fate `on`, `added`, `aside` (in another split than this one) or `lost`; parts of 0
    are left out. What goes on and what is added are the whole of the next bar.
    """
    load, encode, window = (ledger.get(stage, {}) for stage in ("load", "encode", "window"))
    dropped = {
        unit: [
            (f"{name.removeprefix('dropped_').removesuffix(f'_{unit}')} (dropped)", count, "lost")
            for name, count in sorted(load.items())
            if name.startswith("dropped_") and name.endswith(f"_{unit}")
        ]
        for unit in ("bytes", "documents")
    }
    lost = ("first", "tail", "gap", "truncated")
    used = [(said, window.get(part, 0), "lost" if part in lost else "on") for part, said in balance.USED.items()]
    filled = [
        (said, window.get(part, 0), "on" if part in ("targets", "kept") else "added") for part, said in balance.FILLED.items()
    ]
    bars = [
        ("Text", _read(load), [("bytes of text", load.get("text_bytes", 0), "on"), *dropped["bytes"],
                               ("syntax: line ends, and all of a record but its text", load.get("syntax_bytes", 0), "lost")]),
        ("Documents", "", [("kept", load.get("documents", 0), "on"), *dropped["documents"]]),
        ("Token IDs", "", [("tokens", encode.get("tokens", 0), "on"), *((said, encode.get(part, 0), "added")
                           for part, said in balance.ADDED.items() if part != "tokens")]),
        ("Choice of documents", "IDs", _chosen(ledger.get("arrange", {}), split)),
        ("Use of the IDs", "", used),
        ("Slots of the rows", "", filled),
    ]  # fmt: skip
    made = []
    for title, unit, parts in bars:
        kept = [{"name": balance.beside(count, name), "count": count, "fate": fate} for name, count, fate in parts if count]
        kept.sort(key=lambda part: FATES.index(part["fate"]))
        if total := sum(part["count"] for part in kept):
            made.append({"title": title, "unit": balance.beside(total, unit), "total": total, "parts": kept})
    return made


def _read(load: Json) -> str:
    """The other side of the first bar, where it is not just the bytes read: see the equation in `corpus.py`."""
    changed = {said: load.get(name, 0) for name, said in CHANGED.items()}
    told = "".join(f" {'+' if count > 0 else '−'} {abs(count):,} {said}" for said, count in changed.items() if count)
    return f"bytes = {load.get('bytes', 0):,} read{told}" if told else "bytes read"


def _chosen(counts: Json, split: str | None) -> list[tuple[str, int, str]]:
    """The IDs of this dataset's documents, of other splits, and of documents that were left out; nothing where all stay."""
    parts, repeated = [], counts.get("repeated", 0)
    for name, said in balance.CHOSEN.items():
        lost, own = name.startswith(("dropped_", "left_out_")), split is None or name == f"{split}_ids"
        fate = "lost" if lost else "on" if own else "aside"
        again = repeated if name in ("kept_ids", "train_ids") and name in counts else 0
        parts += [(said, counts.get(name, 0) - again, fate), (f"{said} again", again, "added" if own else "aside")]
    return parts


def _copies(manifest: Json, whole: Json | None) -> list[tuple[str, int]]:
    """Documents left out as copies of others, and copies found across splits, as far as a run looked."""
    counts = manifest["ledger"].get("arrange", {})
    said = [(text, counts[name]) for name, text in DROPPED.items() if counts.get(name)]
    for held, facts in ordered(manifest.get("overlap") or (whole or {}).get("overlap") or {}):
        said += [(f"in {held}, {how} to one in train", facts.get(kind, 0)) for kind, how in COPIES.items()]
    return said


def _windows(dataset: Finished) -> list[Json]:
    """The first row, one in the middle, the last."""
    drawn = []
    placed = dataset.manifest["ledger"]["load"].get("documents", 0) <= MOST_DOCUMENTS
    for index in sorted({0, dataset.rows // 2, dataset.rows - 1}) if dataset.rows else []:
        row = dataset.row(index)
        inputs, targets = row["input_ids"], row.get("target_ids")
        shift = len(inputs) - len(targets) if targets is not None else 0
        first, stop = dataset.span(index) if placed else (0, 0)
        documents = dataset.between(first, stop) if placed else range(0)
        begin = max(0, len(inputs) - SHOWN) if shift else 0  # the one target of a prefix stands at its end
        cells = []
        for i in range(begin, min(len(inputs), begin + SHOWN)):
            target = targets[i - shift] if targets is not None and i >= shift else None
            cells.append(
                {
                    "input": _token(dataset, inputs[i]),
                    "target": None if target is None else _token(dataset, target),
                    "origin": _origin(dataset, row, first, stop, i),
                }
            )
        drawn.append(
            {
                "row": index,
                "first": first if placed else None,
                "where": [dataset.where(document) for document in documents[:NAMED]],
                "others": max(0, len(documents) - NAMED),
                "cells": cells,
                "begin": begin,
                "more": len(inputs) - len(cells),
                "targets": targets is not None,
            }
        )
    return drawn


def _origin(dataset: Finished, row: Json, first: int, stop: int, i: int) -> str:
    """Where the ID at place i of a row with the positions [first, stop) comes from, in words; nothing for padding."""
    position, told = first + i, f"position {first + i:,} "
    if dataset.window.mode == "document":  # one document's, perhaps with special tokens before it
        position, told = first if row["attention_mask"][i] else stop, ""
    return f"{told}in {dataset.where(dataset.between(position, position + 1)[0])}" if position < stop else ""


def _token(dataset: Finished, i: int) -> Json:
    return {"id": i, "text": spelt(dataset, i)}


def _ids(dataset: Finished, firsts: np.ndarray) -> Iterator[np.ndarray]:
    """The IDs in a bounded part of the rows, each position of the stream once: whole batches, spread evenly."""
    slots, before = dataset.manifest["ledger"]["window"]["slots"], 0
    every, files = max(1, -(-slots // MOST_IDS)), manifests.data_files(dataset.manifest)
    for number, batch in enumerate(itertools.chain.from_iterable(read_batches(dataset.file(name)) for name in files)):
        if number % every == 0:
            rows = window.shuffled(np.arange(before, before + len(batch)), dataset.rows, dataset.order)
            yield _fresh(batch, dataset.window, np.isin(rows, firsts))[:MOST_IDS]
        before += len(batch)


def _fresh(batch: pa.RecordBatch, w: configs.Window, begins: np.ndarray) -> np.ndarray:
    """The IDs of rows, end to end, less padding and what a row repeats of the one before it in the stream.

    `begins`, bool, are the rows that have none before them. With gaps no row repeats anything; with stride 2:

        row 0  [0 1 2 3] → [1 2 3 4]    0 1 2 3 4
        row 1  [2 3 4 5] → [3 4 5 6]    5 6
    """

    def column(name: str) -> np.ndarray:
        return to_numpy(flattened(batch[name])).reshape(-1, batch[name].type.list_size)

    if w.mode == "document":
        return column("input_ids")[column("attention_mask") > 0]
    targets = column("target_ids")
    if w.mode == "prefix":
        values, edges = list_values(batch["input_ids"])
        first, step = values[edges[:-1]], 1
    else:
        first, step = column("input_ids")[:, 0], w.stride or w.context_length
    real = np.ones((len(batch), 1 + targets.shape[1]), bool)
    if "attention_mask" in batch.schema.names:
        real[:, 1:] = column("attention_mask") > 0
    real[:, 0] = begins | (step > w.context_length)
    real[~begins, 1 : max(1, real.shape[1] - step)] = False
    return np.column_stack([first, targets])[real]


def _first_rows(dataset: Finished) -> np.ndarray:
    """The rows, in the order of the stream, that begin what is cut on its own; none where documents are too many to look."""
    if dataset.window.mode == "document" or window.crosses(dataset.window):
        return np.zeros(1, np.int64)
    few = dataset.manifest["ledger"]["load"].get("documents", 0) <= MOST_DOCUMENTS
    return window.first_rows(dataset.window, dataset.documents["tokens"]) if few else np.empty(0, np.int64)


def _use(dataset: Finished) -> tuple[Json, Json | None]:
    """How often each token stands in what the rows hold of the stream, and how many tokens a word takes."""
    size = max(dataset.vocabulary, default=-1) + 1
    counts, words, firsts = np.zeros(size, np.int64), None, _first_rows(dataset)
    ledger = dataset.manifest["ledger"]["window"]
    for ids in _ids(dataset, firsts):
        counts += np.bincount(ids, minlength=size)
        if words is None and len(ids):
            words = _per_word(dataset, ids[:MOST_WORDS].tolist())
    seen = int(np.count_nonzero(counts))
    order = np.argsort(-counts, kind="stable")[:seen]
    pieces = np.array_split(counts > 0, min(64, max(1, size)))
    begins = np.cumsum([0, *map(len, pieces)]).tolist()
    shares = [100 * float(piece.mean()) if len(piece) else 0.0 for piece in pieces]
    return {
        "size": size,
        "seen": seen,
        "counted": int(counts.sum()),
        "part": ledger["slots"] > MOST_IDS or not len(firsts),
        "overlap": bool(ledger.get("repeated")) or dataset.window.mode == "prefix",
        "rank": _ranks(dataset, order, counts) if seen > 1 else None,
        "by_id": charts.bars(
            [charts.short(begin) for begin in begins[:-1]],
            shares,
            [f"IDs {a:,} to {b - 1:,}: {share:.1f} % used" for a, b, share in zip(begins, begins[1:], shares, strict=False)],
        ),
        "frequent": [{**_token(dataset, i), "count": int(counts[i])} for i in order[:MOST_POINTS].tolist()],
    }, words


def _ranks(dataset: Finished, order: np.ndarray, counts: np.ndarray) -> charts.Chart:
    """Counts by rank, of ranks that grow by a factor."""
    ranks = [*dict.fromkeys(np.geomspace(1, len(order), 120).astype(np.int64).tolist())]
    tokens = order[np.array(ranks) - 1].tolist()
    return charts.curve(
        [(rank, int(counts[i])) for rank, i in zip(ranks, tokens, strict=True)],
        [
            f"rank {rank:,}: {_token(dataset, i)['text']}, {console.counted(int(counts[i]), 'time')}"
            for rank, i in zip(ranks, tokens, strict=True)
        ],
    )


def _per_word(dataset: Finished, ids: list[int]) -> Json | None:
    """Tokens for a word, as `fingerprint.words` tells words apart, in some text."""
    tokens = [dataset.vocabulary.get(i, "") for i in ids]
    if letters := dataset.letters:
        text = bytes(letters[c] for c in "".join(tokens) if c in letters).decode(errors="replace")
    elif any(token.startswith("##") for token in dataset.vocabulary.values()):
        text = " ".join(tokens).replace(" ##", "")
    elif dataset.manifest["config"]["tokenizer"]["kind"] == "words":
        text = " ".join(tokens)
    else:
        text = "".join(tokens).replace("▁", " ")
    words = int(np.count_nonzero(fingerprint.words(np.frombuffer(text.encode(errors="replace"), np.uint8))))
    return {"ratio": len(ids) / words, "tokens": len(ids), "words": words} if words else None


def _lengths(dataset: Finished) -> Json | None:
    """The lengths of the documents in tokens: bins that double, and what a person asks of them."""
    counts = np.zeros(1, np.int64)
    for batch in read_batches(dataset.file("documents.arrow")):
        more = np.bincount(np.minimum(to_numpy(batch["tokens"]), MOST_LENGTH))
        counts, more = (counts, more) if len(counts) >= len(more) else (more, counts)
        counts[: len(more)] += more
    total = int(counts.sum())
    if not total:
        return None
    reached = np.cumsum(counts)
    edges = [0, *(1 << i for i in range((len(counts) - 1).bit_length() + 1))]
    bins = [(a, b, int(counts[a:b].sum())) for a, b in itertools.pairwise(edges)]
    while len(bins) > 1 and not bins[0][2]:
        bins.pop(0)
    said = [console.counted(a, "token") if b - a == 1 else f"{a:,} to {b - 1:,} tokens" for a, b, _ in bins]
    return {
        "count": total,
        "quantiles": [
            (name, int(np.searchsorted(reached, max(1, total * share))))
            for name, share in (("shortest", 0), ("a tenth up to", 0.1), ("half up to", 0.5), ("nine tenths up to", 0.9),
                                ("longest", 1))
        ],
        "chart": charts.bars(
            [charts.short(a) for a, _, _ in bins],
            [count for _, _, count in bins],
            [f"{name}: {console.counted(count, 'document')}" for name, (_, _, count) in zip(said, bins, strict=True)],
        ),
    }  # fmt: skip


def _embedding(dataset: Finished, frequent: list[Json]) -> Json | None:
    """Norms of a part of the token vectors, and the most frequent tokens in the plane of their two widest directions."""
    if "embeddings.safetensors" not in dataset.manifest["files"]:
        return None
    table = embedding.load(dataset.file("embeddings.safetensors"))[model.TOKENS]
    rows = np.array(table[:: max(1, len(table) // MOST_NORMS)][:MOST_NORMS], np.float32)
    norms = np.linalg.norm(rows, axis=1)
    low, high = float(norms.min()), float(norms.max())
    bins, edges = np.histogram(norms, 24, (low, high if high > low else low + 1))
    ids = [token["id"] for token in frequent if token["id"] < len(table)]
    vectors = np.array(table[ids], np.float64)
    return {
        "shape": list(table.shape),
        "kind": dataset.manifest["config"]["embedding"]["kind"],
        "measured": len(rows),
        "mean": float(norms.mean()),
        "norms": charts.bars(
            [f"{edge:.3g}" for edge in edges[:-1]],
            bins.tolist(),
            [f"{a:.4g} to {b:.4g}: {console.counted(n, 'vector')}"
             for a, b, n in zip(edges, edges[1:], bins.tolist(), strict=False)],
        ),
        **_plane(vectors, frequent),
    }  # fmt: skip


def _plane(vectors: np.ndarray, frequent: list[Json]) -> Json:
    """Principal components: the projection, and the share of the variance in it.

    With X = UΣVᵀ the centred vectors, float64 `[n, D]`, their places on the two widest directions are the first columns
    of UΣ.
    """
    if len(vectors) < 3:
        return {"plane": None, "variance": 0.0}
    left, widths, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    places = np.pad(left * widths, ((0, 0), (0, 1)))[:, :2]  # vectors of one dimension lie on a line
    places *= np.where(places[np.abs(places).argmax(0), [0, 1]] < 0, -1, 1)  # a direction has no sign of its own
    shown = frequent[: len(places)]
    total = float((widths**2).sum())
    return {
        "plane": charts.cloud(
            places.tolist(),
            [f"{token['text']}  ID {token['id']:,}, {console.counted(token['count'], 'time')}" for token in shown],
            [f"t{hue(token['id'])}" for token in shown],
        ),
        "variance": 100 * float((widths[:2] ** 2).sum()) / total if total else 0.0,
    }


def _stages(record: Json, text: int) -> list[Json]:
    stages: list[Json] = []
    for stage in record.get("stages", []):
        if not isinstance(stage, dict):
            continue
        seconds = stage.get("seconds") or 0.0
        stages.append(
            {
                **{name: stage.get(name) for name in ("stage", "state", "rows", "tokens", "bytes")},
                "seconds": seconds,
                "rate": f"{console.size(text / seconds)}/s" if seconds and text else "",
                "why": stage.get("why") or [],
            }
        )
    widest = max((stage["seconds"] for stage in stages), default=0) or 1
    return [{**stage, "share": round(100 * stage["seconds"] / widest, 1)} for stage in stages]


# -- the command that makes it again ----------------------------------------------------------------------------


def command(recorded: Json) -> str:
    """The shortest command line that composes this configuration: for each group the nearest choice, then single values.

    `recorded` is the configuration as a manifest has it.
    """
    import yaml

    load = partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the same, in C where that was built
    words = ["python", "-m", "pipeline"]
    defaults = load((configs.conf_dir() / "config.yaml").read_text("utf-8"))["defaults"]
    usual = {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}
    single = []
    for group, factory in configs.GROUPS.items():
        if group in UNRECORDED or group not in recorded:
            continue
        plain = dataclasses.asdict(factory())
        given = {name: value for name, value in recorded[group].items() if name in plain}
        apart = {}
        for choice in configs.options(group):
            content = load((configs.conf_dir() / group / f"{choice}.yaml").read_text("utf-8")) or {}
            if content.get("parts", {}) not in ({}, given.get("parts")):
                continue  # Hydra would add other parts to these, not replace them
            made = plain | content
            apart[choice] = {name: value for name, value in given.items() if made.get(name) != value}
        choice = min(apart, key=lambda name: (len(apart[name]), name != usual.get(group)))
        if choice != usual.get(group):
            words.append(f"{group}={choice}")
        for name, value in sorted(apart[choice].items()):
            single.append(f"{'+' * isinstance(value, dict)}{group}.{name}={_hydra(value)}")
    if recorded.get("name") is not None:
        single.append(f"name={_hydra(recorded['name'])}")
    return " ".join(shlex.quote(word) for word in words + single)


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_hydra(key)}:{_hydra(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    if not isinstance(value, str) or (re.fullmatch(r"[A-Za-z_./-][\w./*-]*", text) and not re.fullmatch(WORDS, text, re.I)):
        return text
    return '"' + re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text)) + '"'


WORDS = r"null|true|false|[+-]?(inf|nan)|[-.].*"  # which Hydra would not take as strings


# -- a sweep ----------------------------------------------------------------------------------------------------


def sweep_page(name: str, jobs: Iterable[tuple[str, Path | None, str]]) -> str:
    """The page that compares jobs: of each its name, its folder (None where it failed), and what went wrong.

    A name such as `tokenizer=words,window.stride=64` is a column for each setting.
    """
    compared = [_job(*job) for job in jobs]
    settings = list(dict.fromkeys(key for job in compared for key in job["settings"]))
    for job in compared:
        for figure in ("rows", "targets", "disk", "seconds"):
            top = max((other[figure] or 0 for other in compared), default=0) or 1
            job[f"{figure}_share"] = round(100 * (job[figure] or 0) / top, 1)
    return render("sweep.html", {"name": name, "jobs": compared, "settings": settings})


def _job(name: str, folder: Path | None, problem: str) -> Json:
    settings = dict(setting.split("=", 1) for setting in re.split(r",(?=[^,=]+=)", name) if "=" in setting)
    nothing = dict.fromkeys(("rows", "targets", "disk", "seconds", "lost", "link"))
    job: Json = {"name": name, "settings": settings or {"job": name}, "problem": problem, **nothing}
    manifest = manifests.read(folder / "manifest.json") if folder else None
    if folder is None or manifest is None:
        return job
    splits = [own["ledger"] for own in manifest.get("splits", {}).values()] or [manifest["ledger"]["window"]]
    used, kept = sum(own.get(part, 0) for own in splits for part in balance.USED), sum(map(_kept, splits))
    return job | {
        "link": f"{folder.name}/{output.REPORT}" if (folder / output.REPORT).exists() else None,
        "rows": manifest["rows"],
        "targets": kept,
        "lost": 100 * (1 - kept / used) if used else 0.0,
        "disk": sum(note["bytes"] for note in manifest["files"].values()),
        "seconds": _record(folder).get("seconds"),
    }
