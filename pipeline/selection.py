"""Stage `selection`: one verdict for each document, which needs the whole corpus.

    fingerprints of all documents ──▶ copies of an earlier one ──▶ verdict per document   verdicts.arrow
                                  └─▶ split of each            └─▶ what repeats what     copies.arrow ──▶ duplicates.jsonl

A verdict is the number of the document's split (0 where there are no splits), or why it is dropped: DUPLICATE, NEAR. The
text is not touched: every document is tokenized, and `arrange` picks by verdict, so that another threshold or fraction
tokenizes nothing anew.

*Exact duplicates* have equal content; the first in the order of the corpus stays. *Near duplicates* are found by
signatures: those that agree in all places of one of their bands (locality-sensitive hashing; Indyk and Motwani 1998) are
compared, and are alike where `selection.threshold` of all places agree. Of documents that are alike, or linked by such, the
first stays. Bands have so many places that a pair at the threshold is compared with 99 % probability:

    1 - (1 - threshold^places)^bands ≥ 0.99,   0.8 and 128 places: 21 bands of 6

Memory: 56 bytes per document and what the pairs that are alike take; signatures stay memory-mapped.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import split
from pipeline.arrow import adjoin, flags, numbers, read_batches, to_numpy
from pipeline.config import Selection, Split
from pipeline.errors import InputError
from pipeline.fingerprint import EMPTY
from pipeline.split import GAP

log = logging.getLogger(__name__)

VERSION = 4
DUPLICATE, NEAR = -1, -2  # verdicts of documents that are in no split, as GAP is
REASONS = {DUPLICATE: "duplicate", NEAR: "near_duplicate", GAP: "gap"}
SCHEMA = pa.schema([("verdict", pa.int8())])
PLACE = ("source", "start", "end")  # of a document: the number of its file, and where it lies there
COPIES = pa.schema([("verdict", pa.int8()), *((f"{whose}{name}", pa.int64()) for whose in ("", "first_") for name in PLACE)])
RECALL = 0.99
AT_ONCE = 1 << 14  # pairs compared together
SHOWN = 5  # pairs that a report names


def wanted(selection: Selection, splits: Split) -> bool:
    """Does anything need a verdict?"""
    return selection.duplicates != "none" or bool(split.names(splits))


def signed(selection: Selection, splits: Split) -> bool:
    """Are signatures needed?"""
    return selection.duplicates == "near" or (bool(split.names(splits)) and splits.overlap == "near")


def identity(selection: Selection, splits: Split) -> dict[str, Any]:
    """The settings that can change a verdict or what is reported of the overlap."""
    settings: dict[str, Any] = {"duplicates": selection.duplicates, "split": split.identity(splits)}
    if split.names(splits):
        settings["overlap"] = splits.overlap
    return settings | ({"threshold": selection.threshold} if signed(selection, splits) else {})


@dataclass(frozen=True)
class Documents:
    """The fingerprints of all documents, in the order of the corpus: arrays of `[documents]`, `hash` of `[documents, 2]`."""

    source: np.ndarray
    start: np.ndarray
    end: np.ndarray
    bytes: np.ndarray
    hash: np.ndarray
    shards: np.ndarray  # the number of the first document of each shard, and behind the last
    signatures: "Signatures | None"
    splits: np.ndarray | None = None  # int8, the number of each one's split, where it was told by a column

    def __len__(self) -> int:
        return len(self.source)


class Signatures:
    """The signatures of all documents where they lie, memory-mapped."""

    def __init__(self, views: Sequence[np.ndarray]) -> None:
        self._views, self._starts = views, adjoin([len(view) for view in views])

    def column(self, low: int, high: int) -> np.ndarray:
        """Places [low, high) of every signature, uint32 `[documents, high - low]`."""
        return np.concatenate([view[:, low:high] for view in self._views])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Whole signatures, uint32 `[len(indices), permutations]`."""
        out = np.empty((len(indices), self._views[0].shape[1]), np.uint32)
        part = np.searchsorted(self._starts, indices, "right") - 1
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            out[here] = self._views[number][indices[here] - self._starts[number]]
        return out

    @property
    def permutations(self) -> int:
        """Places of a signature."""
        return int(self._views[0].shape[1])


def read(paths: Sequence[PathLike[str]], sources: Sequence[int] = ()) -> Documents:
    """The fingerprints in files of the stage `fingerprint`, one file per shard.

    `sources` is for each of them how many sources there are before its own, where they are those of several corpora.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("source", "start", "end", "bytes", "hash")}
    views, counts, told = [], [], []
    for path, before in zip(paths, sources or [0] * len(paths), strict=True):
        rows = 0
        for batch in read_batches(path):
            rows += len(batch)
            for name, found in columns.items():
                found.append(to_numpy(batch[name].flatten()).reshape(-1, 2) if name == "hash" else to_numpy(batch[name]))
            columns["source"][-1] = columns["source"][-1] + np.int32(before)
            if "split" in batch.schema.names:
                told.append(to_numpy(batch["split"]))
            if "signature" in batch.schema.names and len(batch):
                signature = batch["signature"]
                views.append(to_numpy(signature.flatten()).reshape(-1, signature.type.list_size))
        counts.append(rows)
    joined = {name: np.concatenate(found) if found else np.empty(0, np.int64) for name, found in columns.items()}
    owners = np.concatenate(told) if told else None
    return Documents(**joined, shards=adjoin(counts), signatures=Signatures(views) if views else None, splits=owners)


def decide(documents: Documents, splits: np.ndarray, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts, int8 `[documents]`, and of what earlier document each is a copy, int64, -1 where of none.

    `splits`, int8, is the number of each document's split, or GAP.

    >>> one = np.array([[1, 0], [2, 0], [1, 0]], np.uint64)
    >>> same = Documents(*(np.arange(3) for _ in range(4)), one, np.array([0, 3]), None)
    >>> decide(same, np.zeros(3, np.int8), Selection(duplicates="exact"))
    (array([ 0,  0, -1], dtype=int8), array([-1, -1,  0]))
    """
    verdicts, repeats = splits.copy(), np.full(len(documents), -1, np.int64)
    if selection.duplicates == "none" or not len(documents):
        return verdicts, repeats
    first = equals(documents.hash)
    if selection.duplicates == "near" and documents.signatures is not None:
        once = first == np.arange(len(first))  # equal ones are alike anyway
        first = components(len(documents), *alike(documents, selection.threshold, once))[first]
    copies = np.flatnonzero((first != np.arange(len(first))) & (splits != GAP))
    exact = (documents.hash[copies] == documents.hash[first[copies]]).all(axis=1)
    verdicts[copies] = np.where(exact, DUPLICATE, NEAR)
    repeats[copies] = first[copies]
    return verdicts, repeats


def equals(hashes: np.ndarray) -> np.ndarray:
    """The first document with the same hash, int64 `[documents]`."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ranked = hashes[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    return first


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """How many bands of how many places: the widest that miss one pair in a hundred at the threshold.

    >>> bands(0.8, 128)
    (21, 6)
    """
    for places in range(permutations, 1, -1):
        many = permutations // places
        if 1 - (1 - threshold**places) ** many >= RECALL:
            return many, places
    return permutations, 1


def alike(
    documents: Documents, threshold: float, among: np.ndarray | None = None, against: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i < j) of documents that are alike, int64 `[pairs]` each, some more than once. One without words is like none.

    Documents that share a band, of all or of those `among` which one looks, are compared with the first of them and with
    the one before; with `against`, with the first of those, and the pairs hold such documents first. Both are bool
    `[documents]`.
    """
    assert documents.signatures is not None
    many, places = bands(threshold, documents.signatures.permutations)
    told = documents.signatures.column(0, 1)[:, 0] != EMPTY
    if among is not None:
        told &= among
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in range(many):
        column = documents.signatures.column(band * places, (band + 1) * places)
        keys = _fold(column)
        order = np.argsort(keys, kind="stable")
        order = order[told[order]]
        ranked = keys[order]
        fresh = np.ones(len(order), bool)
        fresh[1:] = ranked[1:] != ranked[:-1]
        for left, right in _candidates(order, fresh, against):
            for place in range(0, len(left), AT_ONCE):
                i, j = left[place : place + AT_ONCE], right[place : place + AT_ONCE]
                same = documents.signatures.rows(i) == documents.signatures.rows(j)
                good = same.mean(axis=1) >= threshold
                lefts.append(i[good])
                rights.append(j[good])
    return np.concatenate(lefts), np.concatenate(rights)


def _candidates(order: np.ndarray, fresh: np.ndarray, against: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs within runs of `order`, where `fresh` is True at the beginning of each."""
    place = np.arange(len(order))
    begin = np.maximum.accumulate(np.where(fresh, place, 0))
    if against is None:
        later = np.flatnonzero(~fresh)
        yield order[begin[later]], order[later]
        chained = later[begin[later] != later - 1]
        yield order[chained - 1], order[chained]
        return
    run = np.cumsum(fresh) - 1
    first = np.full(int(run[-1]) + 1 if len(run) else 0, -1, np.int64)
    chosen = np.flatnonzero(against[order])[::-1]
    first[run[chosen]] = order[chosen]
    others = np.flatnonzero(~against[order] & (first[run] >= 0))
    yield first[run[others]], order[others]


def _fold(rows: np.ndarray) -> np.ndarray:
    """One uint64 for each row of uint32. Different rows may fold alike; pairs are compared in full afterwards."""
    out = np.zeros(len(rows), np.uint64)
    for place in range(rows.shape[1]):
        out = (out ^ rows[:, place]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest number linked with each of 0 … `count` - 1, int64 `[count]`.

    >>> components(5, np.array([1, 3]), np.array([3, 4])).tolist()
    [0, 1, 2, 1, 1]
    """
    label = np.arange(count)
    while True:
        least = np.minimum(label[left], label[right])
        before = label.copy()
        np.minimum.at(label, left, least)
        np.minimum.at(label, right, least)
        label = label[label]
        if (label == before).all():
            return label


# -- overlap between splits -------------------------------------------------------------------------------


def overlap(documents: Documents, verdicts: np.ndarray, splits: Split, threshold: float) -> dict[str, Any]:
    """For each held-out split: its kept `documents`, how many are `exact` or `near` copies of one in train, `pairs`.

    `pairs` has up to five: [held-out document, document of train, "exact" or "near"], each document as the number of its
    source and its start. Empty where `split.overlap=none`, or there is no train split.
    """

    def where(number: int) -> list[int]:
        return [int(documents.source[number]), int(documents.start[number])]

    names = split.names(splits)
    if splits.overlap == "none" or "train" not in names:
        return {}
    train = verdicts == names.index("train")
    repeated = np.full(len(documents), -1, np.int64)  # the document of train that each is a copy of
    kind = np.zeros(len(documents), np.int8)  # 1 exact, 2 near
    if splits.overlap == "near" and documents.signatures is not None:
        left, right = alike(documents, threshold, against=train)
        repeated[right], kind[right] = left, 2
    first = _first_of(documents.hash, train)
    exact = np.flatnonzero(first >= 0)
    repeated[exact], kind[exact] = first[exact], 1
    found: dict[str, Any] = {}
    for number, name in enumerate(names):
        if name == "train":
            continue
        own = verdicts == number
        pairs = np.flatnonzero(own & (kind > 0))[:SHOWN]
        found[name] = {
            "documents": int(own.sum()),
            "exact": int((own & (kind == 1)).sum()),
            "near": int((own & (kind == 2)).sum()),
            "pairs": [[where(i), where(int(repeated[i])), "exact" if kind[i] == 1 else "near"] for i in pairs.tolist()],
        }
    return found


def named(found: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """What `overlap` found, with documents named by the names that their sources have now, as "'a.txt' from 300"."""

    def where(place: list[int]) -> str:
        return f"{sources[place[0]]!r} from {place[1]}"

    pairs = {held: [[where(i), where(j), how] for i, j, how in facts["pairs"]] for held, facts in found.items()}
    return {held: facts | {"pairs": pairs[held]} for held, facts in found.items()}


def _first_of(hashes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The first chosen document with the same hash as each that is not chosen, int64, -1 where there is none."""
    first = equals(hashes)
    holder = np.full(len(hashes), len(hashes), np.int64)
    picked = np.flatnonzero(chosen)
    np.minimum.at(holder, first[picked], picked)
    found = holder[first]
    return np.where(chosen | (found == len(hashes)), -1, found)


def report(found: dict[str, Any]) -> None:
    """Say how many documents of each held-out split are copies of documents in train."""
    for held, facts in split.ordered(found):
        many = facts["exact"] + facts["near"]
        log.log(
            logging.WARNING if many else logging.INFO,
            "selection: %d of %d documents of %s are copies of ones in train (%d exact, %d near)%s",
            *(many, facts["documents"], held, facts["exact"], facts["near"]),
            "; selection.duplicates=near drops them" if many else "",
        )


def require_apart(found: dict[str, Any], splits: Split) -> None:
    """Raise InputError where more of a held-out split repeats train than `split.max_overlap` allows: see `overlap`."""
    if splits.max_overlap is None:
        return
    for held, facts in found.items():
        share = (facts["exact"] + facts["near"]) / max(facts["documents"], 1)
        if share > splits.max_overlap:
            pairs = "; ".join(f"{i} repeats {j} ({how})" for i, j, how in facts["pairs"])
            raise InputError(
                f"{facts['exact'] + facts['near']} of {facts['documents']} documents of {held} are copies of ones in train "
                f"({facts['exact']} exact, {facts['near']} near), {share:.2%}: more than split.max_overlap="
                f"{splits.max_overlap}. "
                f"{pairs}. Set selection.duplicates=near to drop copies, or raise split.max_overlap=."
            )


# -- files ------------------------------------------------------------------------------------------------


def write_verdicts(file: Any, verdicts: np.ndarray, shards: np.ndarray) -> None:
    """One record batch per shard, with the column `verdict` int8."""
    with pa.ipc.new_stream(file, SCHEMA) as writer:
        for low, high in zip(shards[:-1].tolist(), shards[1:].tolist(), strict=True):
            writer.write_batch(pa.record_batch([numbers(verdicts[low:high])], schema=SCHEMA))


def read_verdicts(path: PathLike[str]) -> list[np.ndarray]:
    """The verdicts of each shard's documents, int8."""
    return [to_numpy(batch["verdict"]) for batch in read_batches(path)]


def write_copies(file: Any, documents: Documents, verdicts: np.ndarray, repeats: np.ndarray) -> None:
    """A row for each document that is a copy: why it is dropped, where it lies, and where what it repeats does."""
    all_copies = np.flatnonzero(repeats >= 0)
    with pa.ipc.new_stream(file, COPIES) as writer:
        for low in range(0, len(all_copies), AT_ONCE):
            copies = all_copies[low : low + AT_ONCE]
            places = (getattr(documents, name)[rows] for rows in (copies, repeats[copies]) for name in PLACE)
            columns = [numbers(column.astype(np.int64)) for column in places]
            writer.write_batch(pa.record_batch([numbers(verdicts[copies]), *columns], schema=COPIES))


def write_list(file: Any, copies: Iterable[pa.RecordBatch], sources: Sequence[str]) -> None:
    """The rows of `write_copies`, a line of JSON each, with files by the names that they have now."""
    for batch in copies:
        for row in batch.to_pylist():
            copy, first = (
                {"source": sources[row[f"{whose}source"]], "start": row[f"{whose}start"], "end": row[f"{whose}end"]}
                for whose in ("", "first_")
            )
            file.write(json.dumps({**copy, "reason": REASONS[row["verdict"]], "repeats": first}).encode() + b"\n")


def account(documents: Documents, verdicts: np.ndarray, splits: Split) -> Counter[str]:
    """Documents and bytes of text by what becomes of them: each split, and each reason for which they are dropped."""
    counts: Counter[str] = Counter(documents=len(documents), text_bytes=int(documents.bytes.sum()))
    parts = dict(enumerate(split.names(splits) or ("kept",)))
    parts |= {number: f"dropped_{reason}" for number, reason in REASONS.items()}
    for number, name in parts.items():
        own = verdicts == number
        if own.any() or number >= 0:
            counts[f"{name}_documents"], counts[f"{name}_bytes"] = int(own.sum()), int(documents.bytes[own].sum())
    return counts


def pick(batches: Iterable[pa.RecordBatch], verdicts: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of a shard of `load` whose document is in the first split, which is train where there are splits."""
    before = 0
    for batch in batches:
        ends = flags(batch["ends"])
        document = before + np.cumsum(ends) - ends
        before += int(ends.sum())
        rows = np.flatnonzero(verdicts[document] == 0)
        if len(rows) == len(batch):
            yield batch
        elif len(rows):
            yield batch.take(numbers(rows))
