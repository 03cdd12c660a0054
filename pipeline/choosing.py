"""Which documents are kept, and in which split each is: a verdict for each, made from the whole corpus.

load ▶ fingerprint ─▶ selection ─▶ listing      where splits or duplicates ask for it
"""

import itertools
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline import config as configs
from pipeline import corpus, fingerprint, keys, plan, selection, split
from pipeline.arrow import adjoin, call, read_batches
from pipeline.cache import Entry
from pipeline.errors import InputError
from pipeline.files import Json
from pipeline.inputs import Input, together
from pipeline.phase import Line, Made, Step, is_shard

VERDICTS, COPIES, LIST = "verdicts.arrow", "copies.arrow", "duplicates.jsonl"


@dataclass(frozen=True)
class Chosen:
    """A verdict for each document, in the cache."""

    entry: Entry
    manifest: Json = field(hash=False, compare=False)

    def verdicts(self) -> list[np.ndarray]:
        """Of the documents of each input shard, int8."""
        return selection.read_verdicts(self.entry.file(VERDICTS))


def make_verdicts(line: Line, config: configs.Config, planned: plan.Plan, inputs: Sequence[Input]) -> Chosen:
    """Fingerprints of all documents, and what follows from them. Raises InputError where too many copies cross splits."""
    near = selection.signed(config.selection, config.split)
    prints = [keys.fingerprint_entry(line.entry, config, own.load.entry) for own in inputs]
    sources = [source.path for source in planned.sources]
    files = splits_of_files(config.split, planned)
    entry = keys.selection_entry(line.entry, config, prints, files)
    if (manifest := line.cached([entry])) is not None:
        for own, found in zip(inputs, prints, strict=True):
            own.line.found([own.load.entry, found], manifest)
    else:
        work = partial(_fingerprint, settings=config.selection, near=near, splits=config.split)
        made = [own.fulfil(Step(found, work)) for own, found in zip(inputs, prints, strict=True)]
        if config.split.by == "column":  # what stands in it is in no fingerprint
            _require_values([(own, own.fulfil()) for own in inputs], config.split)
        ledger = together(inputs, [one["ledger"] for one in made])
        corpus.require_documents(Counter(ledger["load"]), planned)
        with line.lock(entry):
            if (manifest := line.cached([entry])) is None:
                started = time.perf_counter()
                before = adjoin([len(own.planned.sources) for own in inputs]).tolist()
                paths = [
                    (found.file(name), n) for found, one, n in zip(prints, made, before, strict=False) for name in one["files"]
                ]
                documents = selection.read([path for path, _ in paths], [n for _, n in paths])
                manifest = _decide(entry, config, planned, documents, files, ledger)
                line.tell(entry, manifest, time.perf_counter() - started)
    manifest = {**manifest, "overlap": selection.named(manifest["overlap"], sources)}
    selection.report(manifest["overlap"])
    selection.require_apart(manifest["overlap"], config.split)
    return Chosen(entry, manifest)


def splits_of_files(splits: configs.Split, planned: plan.Plan) -> list[int] | None:
    """The number of the split of each file, or of each part of the one document that is cut; None where neither is split.

    Raises InputError where a pattern of `split.by=files` matches no file.
    """
    if splits.by != "files" or not split.names(splits):
        return list(planned.sections) or None
    sources = [source.path for source in planned.sources]
    split.require_matches(sources, splits)
    numbers: list[int] = split.assign_files(sources, splits).tolist()
    return numbers


def splits_of_documents(
    splits: configs.Split,
    planned: plan.Plan,
    documents: selection.Documents,
    files: list[int] | None,
    counts: Mapping[str, int],
) -> np.ndarray:
    """The number of the split of each document, int8; `files` is what `splits_of_files` gives, `counts` are those of `load`.

    Raises InputError where a part of the one document that is cut was left out.
    """
    owners: np.ndarray = np.zeros(len(documents), np.int8)
    if planned.sections:
        owners = np.array(planned.sections, np.int8)
        if len(owners) != len(documents):
            lost = [name.split("_")[1] for name in counts if re.fullmatch("dropped_.*_documents", name) and counts[name]]
            raise InputError(
                f"a part of the one document was left out ({', '.join(sorted(lost))}), so that it cannot be cut into splits: "
                "set corpus.errors=replace, or corpus.document=paragraph or line."
            )
    elif files is not None:
        owners = np.array(files, np.int8)[documents.source]
    elif documents.splits is not None:
        owners = documents.splits
    elif split.names(splits):
        owners = split.assign(documents.hash[:, 0], splits)
    return owners


def make_list(line: Line, chosen: Chosen, planned: plan.Plan) -> tuple[Entry, Json]:
    """The list of copies, in an entry of its own, so that a new name of a file makes nothing else anew."""
    sources = [source.path for source in planned.sources]
    entry = keys.listing_entry(line.entry, chosen.entry, sources)
    with line.lock(entry):
        if (manifest := line.whole(entry)) is None:
            with entry.write(LIST) as file:
                selection.write_list(file, read_batches(chosen.entry.file(COPIES)), sources)
            manifest = entry.finish([LIST], [file.note], ledger=chosen.manifest["ledger"])
    return entry, manifest


def _fingerprint(
    source: Any, shard: Any, counts: "Counter[str]", settings: configs.Selection, near: bool, splits: configs.Split
) -> Made:
    schema = fingerprint.schema(settings, near, splits)
    return schema, fingerprint.fingerprint(source, settings, near, splits, counts)


def _require_values(loaded: Sequence[tuple[Input, Json]], splits: configs.Split) -> None:
    """Raise what `split.require_matches` raises of the values that stand in the column, of which it keeps no more than some."""
    wanted, found = {*splits.validation_values, *splits.test_values}, dict[str | None, None]()
    paths = (own.load.entry.file(name) for own, made in loaded for name in made["files"] if is_shard(name))
    for batch in itertools.chain.from_iterable(map(read_batches, paths)):
        for value in call("unique", batch[str(splits.column)]).to_pylist():
            if (value or "") in wanted or len(found) <= len(wanted) + split.MANY:
                found[value] = None
    split.require_matches(list(found), splits)


def _decide(
    entry: Entry,
    config: configs.Config,
    planned: plan.Plan,
    documents: selection.Documents,
    files: list[int] | None,
    ledger: Json,
) -> Json:
    """Write the verdicts and the copies, and publish the entry."""
    splits = splits_of_documents(config.split, planned, documents, files, ledger["load"])
    verdicts, repeats = selection.decide(documents, splits, config.selection)
    with entry.write(VERDICTS) as file:
        selection.write_verdicts(file, verdicts, documents.shards)
    with entry.write(COPIES) as copies:
        selection.write_copies(copies, documents, verdicts, repeats)
    counts = selection.account(documents, verdicts, config.split)
    found = selection.overlap(documents, verdicts, config.split, config.selection.threshold)
    files_written = {VERDICTS: file.note, COPIES: copies.note}
    ledger = {**ledger, "selection": dict(sorted(counts.items()))}
    return entry.finish(list(files_written), list(files_written.values()), ledger=ledger, overlap=found)
