"""Two finished datasets: what differs in their making (`why`), and in their rows (`diff`).

Rows are compared by what they hold, not by where they stand: a row of one dataset that the other has too, anywhere, is
the same; what is left on both sides under one number is *changed*, the rest *removed* or *added*.

    old   A B C D          same A C E   changed 1: B → X   added 4: F
    new   A X C E F        (D and E: changed 3)

Rows are hashed (BLAKE2b, 128 bits) into buckets on disk by the first byte of their hashes, 24 bytes a row, and compared
one bucket after another, so memory is that of a bucket. Files that are equal in both are only found to be whole.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.arrow import flattened, list_values, read_batches, to_numpy
from pipeline.files import Json, read_record
from pipeline.manifests import data_files
from pipeline.output import STAGES
from pipeline.trace import Finished
from pipeline.why import flatten, shortened

BUCKETS = 64
AT_ONCE = 1 << 20  # rows looked at together
FEW = 3  # rows of each kind that are named
RECORD = np.dtype([("hash", "<u8", 2), ("row", "<i8")])


@dataclass
class Difference:
    """What `diff` found. The numbers of rows count from 0, in the dataset that has them."""

    rows: tuple[int, int]
    same: int
    changed: int  # as numbers under which both have a row that the other has nowhere
    removed: int
    added: int
    parts_at: str | None  # the first stage whose key differs; None where none does
    first: dict[str, list[int]] = field(default_factory=dict)  # the first few rows of each kind


def why(old: Path, new: Path) -> list[str]:
    """What differs in the making of two datasets, one line a field: configuration, versions, machine, sources, stages.

    Empty where nothing does.
    """
    left, right = Finished(old), Finished(new)
    was, now = _facts(left), _facts(right)
    differing = [name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name)]
    lines = [f"{name} {shortened(was.get(name))} → {shortened(now.get(name))}" for name in differing]
    lines += _sources(left.sources, right.sources)
    if (stage := parting(left, right)) is not None:
        lines.append(f"the stages part at {stage}")
    return lines


def _facts(dataset: Finished) -> Json:
    """What is recorded of a run besides its sources, by dotted name."""
    manifest, record = dataset.manifest, read_record(dataset.folder / "run.json")
    origin = {part: manifest[part] for part in ("corpus", "tokenizer", "embedding") if part in manifest}
    run = {name: record.get(name) for name in ("engine", "cores", "host", "python", "platform")}
    return flatten({**manifest["config"], "origin": origin, "versions": manifest["versions"], "run": run})


def _sources(old: list[Json], new: list[Json]) -> list[str]:
    before, after = ({source["path"]: source["sha256"] for source in sources} for sources in (old, new))
    kinds = {
        "only in the first": [path for path in before if path not in after],
        "only in the second": [path for path in after if path not in before],
        "with other content": [path for path in before if path in after and before[path] != after[path]],
    }
    return [
        f"sources: {len(paths):,} {kind}, as {paths[0]!r}" if len(paths) > 1 else f"sources: {paths[0]!r} {kind}"
        for kind, paths in kinds.items()
        if paths
    ]


def parting(left: Finished, right: Finished) -> str | None:
    """The first stage, in the order of the line, whose keys differ."""
    old, new = left.manifest["keys"], right.manifest["keys"]
    return next((stage for stage in STAGES if old.get(stage) != new.get(stage)), None)


def diff(old: Path, new: Path) -> Difference:
    """Compare the rows of two datasets, all columns but `embeddings`. Raises as Finished does."""
    left, right = Finished(old), Finished(new)
    rows, parts_at = (left.rows, right.rows), parting(left, right)
    with tempfile.TemporaryDirectory(prefix="pipeline-diff-") as folder:
        place = Path(folder)
        shared = _shared(left, right)
        only = [np.memmap(place / name, bool, "w+", shape=max(1, count)) for name, count in zip("ab", rows, strict=True)]
        for side, dataset in enumerate((left, right)):
            _scatter(dataset, shared, place, side)
        for bucket in range(BUCKETS):
            for side, numbers in enumerate(_unmatched(*(_records(place, side, bucket) for side in (0, 1)))):
                only[side][numbers] = True
        return _counted(only, rows, parts_at, _same_shape(left, right))


def _same_shape(left: Finished, right: Finished) -> bool:
    """Does row i of one stand for row i of the other?"""
    shapes = [(d.window.mode, d.window.context_length, d.window.stride or d.window.context_length) for d in (left, right)]
    return shapes[0] == shapes[1]


def _shared(left: Finished, right: Finished) -> int:
    """How many of the first files are equal in both."""
    pairs = zip(_files(left), _files(right), strict=False)
    return next((nth for nth, (a, b) in enumerate(pairs) if a[1:] != b[1:]), min(len(_files(left)), len(_files(right))))


def _files(dataset: Finished) -> list[tuple[str, str, int]]:
    """Name, hash and rows of the data files, in order."""
    notes = dataset.manifest["files"]
    return [(name, notes[name]["sha256"], notes[name].get("rows", 0)) for name in data_files(dataset.manifest)]


def _scatter(dataset: Finished, skip: int, place: Path, side: int) -> None:
    """Write the hash and the number of every row, but those of the first `skip` files, into buckets."""
    row = 0
    for name, _, rows in _files(dataset)[:skip]:
        dataset.file(name)
        row += rows
    files = [open(place / f"{side}-{bucket}", "wb") for bucket in range(BUCKETS)]  # noqa: SIM115
    try:
        for name, _, _ in _files(dataset)[skip:]:
            for batch in read_batches(dataset.file(name)):
                records = np.empty(len(batch), RECORD)
                records["hash"] = np.frombuffer(b"".join(_hashes(batch)), "<u8").reshape(-1, 2)
                records["row"] = np.arange(row, row + len(batch))
                row += len(batch)
                bucket = records["hash"][:, 0] % np.uint64(BUCKETS)
                order = np.argsort(bucket, kind="stable")
                edges = np.searchsorted(bucket[order], np.arange(BUCKETS + 1))
                for number, file in enumerate(files):
                    file.write(records[order[edges[number] : edges[number + 1]]].tobytes())
    finally:
        for file in files:
            file.close()


def _hashes(batch: pa.RecordBatch) -> Iterator[bytes]:
    """16 bytes for each row, of all its columns but `embeddings`; IDs count by value, whatever their dtype."""
    columns = []
    for name in batch.schema.names:
        if name != "embeddings":
            column = batch[name]
            if pa.types.is_fixed_size_list(column.type):
                values, offsets = to_numpy(flattened(column)), np.arange(len(column) + 1) * column.type.list_size
            else:
                values, offsets = list_values(column)
            columns.append((values.astype("<u4").tobytes(), (4 * offsets).tolist()))
    for row in range(len(batch)):
        sha = hashlib.blake2b(digest_size=16)
        for data, edges in columns:
            sha.update(memoryview(data)[edges[row] : edges[row + 1]])
        yield sha.digest()


def _records(place: Path, side: int, bucket: int) -> np.ndarray:
    return np.fromfile(place / f"{side}-{bucket}", RECORD)


def _unmatched(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of rows that the other side does not have; of equal rows the last ones, as many as it has fewer."""
    keys = np.concatenate([np.column_stack([side["hash"], _nth(side)]) for side in (left, right)])
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    alone = counts[inverse.reshape(-1)] == 1
    return left["row"][alone[: len(left)]], right["row"][alone[len(left) :]]


def _nth(records: np.ndarray) -> np.ndarray:
    """Of each row, how many equal ones come before it."""
    order = np.lexsort((records["row"], records["hash"][:, 1], records["hash"][:, 0]))
    hashes = records["hash"][order]
    begins = np.ones(len(records), bool)
    begins[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    starts = np.flatnonzero(begins)
    nth = np.zeros(len(records), np.uint64)
    nth[order] = np.arange(len(records)) - np.repeat(starts, np.diff(starts, append=len(records)))
    return nth


def _counted(only: Sequence[np.ndarray], rows: tuple[int, int], parts_at: str | None, pairs: bool) -> Difference:
    counts = dict.fromkeys(("changed", "removed", "added"), 0)
    first: dict[str, list[int]] = {kind: [] for kind in counts}
    for start in range(0, max(rows), AT_ONCE):
        left, right = (side[start : start + AT_ONCE] for side in only)
        both = np.zeros(max(len(left), len(right)), bool)
        if pairs:
            shorter = min(len(left), len(right))
            both[:shorter] = left[:shorter] & right[:shorter]
        found = {"changed": both, "removed": left & ~both[: len(left)], "added": right & ~both[: len(right)]}
        for kind, flags in found.items():
            counts[kind] += int(flags.sum())
            first[kind] += (np.flatnonzero(flags)[: FEW - len(first[kind])] + start).tolist()
    same = rows[0] - counts["changed"] - counts["removed"]
    return Difference(rows, same, **counts, parts_at=parts_at, first=first)
