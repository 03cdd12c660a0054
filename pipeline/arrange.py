"""Stage `arrange`: which documents make a stream, and in which order.

    IDs of all documents   │ a │ b │ c │ d │ e │      what `encode` gave; nothing of it is written again
    verdicts                 0   1   0  -1   0        d repeats an earlier document
    train                  │ a │ c │ e │              a table of where each document's IDs lie
    validation             │ b │

A stream of its own for each split, so that no window holds tokens of two. The table is the `documents.arrow` of the split:

    source, start, end    file and byte range of the document
    first, tokens         where its IDs lie in this stream
    origin                where they lie in the stream that `encode` gave

`split.shuffle=documents` puts the documents of each stream in a random order: the permutation of `permutation.permute` over all
of them, the same for any number of workers, and computed, not sorted.
"""

import itertools
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import mixture
from pipeline.arrow import adjoin, numbers, read_batches, row_offsets, to_numpy
from pipeline.config import Corpus, Split
from pipeline.console import counted
from pipeline.errors import InputError, IntegrityError
from pipeline.permutation import keys, permute
from pipeline.selection import REASONS
from pipeline.stream import Stream

VERSION = 2
SCHEMA = pa.schema([("source", pa.int32())] + [(name, pa.int64()) for name in ("start", "end", "first", "tokens", "origin")])
SHARD = 8 << 20  # IDs in one batch of a table, which is what windows take as a shard
MOST = 1 << 18  # documents in one
WIDE = 32 << 20  # bytes of metadata in one, but for that of a single document

Documents = dict[str, np.ndarray]  # the columns but `first`, arrays of `[documents]`


def identity(split: Split, corpus: Corpus) -> dict[str, Any]:
    """The settings that can change the order, and how often a document is used."""
    shuffle = {"shuffle": split.seed if split.shuffle == "documents" else None}
    return shuffle | ({"mixture": mixture.identity(corpus)} if corpus.parts else {})


def read_documents(paths: Sequence[PathLike[str]], sources: Sequence[int], ids: Sequence[int]) -> Documents:
    """The tables that `encode` wrote, end to end: of one corpus, or of the parts of a mixture.

    `sources` is how many files each part has and `ids` how many IDs: both are numbered through.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMA.names if name != "first"}
    for path, source, origin in zip(paths, adjoin(sources)[:-1].tolist(), adjoin(ids)[:-1].tolist(), strict=True):
        for batch in read_batches(path):
            columns["source"].append(to_numpy(batch["source"]) + np.int32(source))
            columns["origin"].append(to_numpy(batch["first"]) + origin)
            for name in ("start", "end", "tokens"):
                columns[name].append(to_numpy(batch[name]))
    return {name: np.concatenate([np.empty(0, np.int64), *found]) for name, found in columns.items()}


class Metadata:
    """What stands beside each document: the columns of the tables that `encode` wrote which are not ours.

    They stay in the files, which are memory-mapped. Null where a part of a mixture has none of a column. `names` are
    those of the columns, `bytes`, int64 `[documents]`, how many each document has.
    """

    def __init__(self, paths: Sequence[PathLike[str]] = ()) -> None:
        self._batches = [batch for path in paths for batch in read_batches(path)]
        self._starts = adjoin([len(batch) for batch in self._batches])
        found = (name for batch in self._batches for name in batch.schema.names if name not in SCHEMA.names)
        self.names = tuple(dict.fromkeys(found))
        self.bytes = np.zeros(int(self._starts[-1]), np.int64)
        for batch, low in zip(self._batches, self._starts.tolist(), strict=False):
            for name in set(self.names) & set(batch.schema.names):
                self.bytes[low : low + len(batch)] += np.diff(row_offsets(batch[name]))

    def take(self, name: str, chosen: np.ndarray) -> pa.Array:
        """A column of these documents, in this order."""
        owner = np.searchsorted(self._starts, chosen, "right") - 1
        by_owner = np.argsort(owner, kind="stable")
        owners, begins = np.unique(owner[by_owner], return_index=True)
        pieces = []
        for number, places in zip(owners.tolist(), np.split(chosen[by_owner], begins[1:]), strict=True):
            batch, rows = self._batches[number], numbers(places - self._starts[number])
            pieces.append(batch[name].take(rows) if name in batch.schema.names else pa.nulls(len(rows), pa.string()))
        whole = pa.concat_arrays(pieces)
        return whole if (by_owner[1:] > by_owner[:-1]).all() else whole.take(numbers(np.argsort(by_owner)))


def order(chosen: np.ndarray, split: Split, part: int = 0) -> np.ndarray:
    """The documents of a stream in their order: as they are given, or shuffled; those of parts, from 1, each in its own way."""
    if split.shuffle != "documents":
        return chosen
    return chosen[permute(np.arange(len(chosen)), len(chosen), keys(split.seed, part))]


def mix(
    documents: Documents, chosen: np.ndarray, sources: Sequence[int], corpus: Corpus, split: Split
) -> tuple[np.ndarray, list[mixture.Draw]]:
    """The documents to train on, of which there are `chosen`, as often as the weights of a mixture want, in their order;
    and what each part gave. `sources` is how many files each part has. Raises what `mixture.targets` raises.
    """
    edges = np.searchsorted(documents["source"][chosen], adjoin(sources))  # parts lie end to end
    held = np.diff(np.searchsorted(documents["source"], adjoin(sources)))
    for (name, part), all_of_it, rest in zip(corpus.parts.items(), held.tolist(), np.diff(edges).tolist(), strict=True):
        if part.weight and all_of_it and not rest:
            raise InputError(
                f"part {name} of the mixture has no tokens to train on: all of its documents ({all_of_it}) are held out, or "
                "are copies. Give it more or smaller documents, hold out less, or set another split.seed=."
            )
    own = [order(chosen[low:high], split, part + 1) for part, (low, high) in enumerate(itertools.pairwise(edges.tolist()))]
    wanted = mixture.targets(corpus, [int(documents["tokens"][part].sum()) for part in own])
    limits = [part.max_repetitions for part in corpus.parts.values()]
    draws = [mixture.draw(part, documents["tokens"], *one) for part, *one in zip(own, wanted, limits, strict=True)]
    return order(np.concatenate([one.order for one in draws]), split), draws


def write(file: Any, documents: Documents, metadata: Metadata, order: np.ndarray) -> None:
    """The table of a stream with these documents in this order."""
    first, schema = 0, pa.schema([*SCHEMA, *((name, pa.string()) for name in metadata.names)])
    with pa.ipc.new_stream(file, schema) as writer:
        for low, high in _cuts(documents["tokens"][order], metadata.bytes[order] if metadata.names else np.zeros(len(order))):
            chosen = order[low:high]
            edges = first + adjoin(documents["tokens"][chosen])
            columns = {name: documents[name][chosen] for name in SCHEMA.names if name != "first"} | {"first": edges[:-1]}
            columns["source"] = columns["source"].astype(np.int32)
            ours = [numbers(columns[name]) for name in SCHEMA.names]
            beside = [metadata.take(name, chosen) for name in metadata.names]
            writer.write_batch(pa.record_batch(ours + beside, schema=schema))
            first = int(edges[-1])


def _cuts(tokens: np.ndarray, metadata: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents, each of about SHARD tokens, MOST documents, or at most WIDE bytes of metadata."""
    edges, wide, low = adjoin(tokens), adjoin(metadata), 0
    while low < len(tokens):
        high = min(int(np.searchsorted(edges, edges[low] + SHARD, "left")), low + MOST, len(tokens))
        high = max(low + 1, min(high, int(np.searchsorted(wide, wide[low] + WIDE, "right")) - 1))
        yield low, high
        low = high


def account(
    documents: Documents, verdicts: np.ndarray, names: Sequence[str], mixed: np.ndarray | None = None
) -> dict[str, int]:
    """What becomes of the IDs that `encode` gave: each split's, and those dropped, by reason. They make up all.

    `mixed` is the order of what is trained on in a mixture, whose counts hold a document once for each repetition:
    `repeated` is how many IDs that adds to those of `encode`. What it leaves out stands apart.
    """
    counts = {"ids": int(documents["tokens"].sum()), "documents": len(verdicts)}
    parts = dict(enumerate(names or ("kept",))) | {number: f"dropped_{reason}" for number, reason in REASONS.items()}
    for number, name in parts.items():
        own = verdicts == number
        if number >= 0 or own.any():
            counts |= {f"{name}_ids": int(documents["tokens"][own].sum()), f"{name}_documents": int(own.sum())}
    if mixed is not None:
        used, train = np.bincount(mixed, minlength=len(verdicts)), (names or ("kept",))[0]
        counts["repeated"] = int(documents["tokens"] @ np.maximum(used - 1, 0))
        for name, times in ((train, used), ("left_out", (used == 0) & (verdicts == 0))):
            counts |= {f"{name}_ids": int(documents["tokens"] @ times), f"{name}_documents": int(times.sum())}
    if counts["ids"] + counts.get("repeated", 0) != sum(count for name, count in counts.items() if name.endswith("_ids")):
        raise RuntimeError(f"the ledger of arrange does not balance: {counts}")
    return dict(sorted(counts.items()))


def require_documents(counts: dict[str, int], names: Sequence[str], by: str) -> None:
    """Raise InputError where a split has no document: `counts` are those of `account`, `by` is `split.by`."""
    for name in names or ("kept",):
        if not counts[f"{name}_documents"]:
            if counts.get("left_out_documents"):
                raise InputError(
                    f"the mixture takes none of its {counts['documents']} documents: each is longer than what is asked for. "
                    "Raise corpus.tokens= or the max_repetitions= of its parts."
                )
            said = f"split {name} has none of the {counted(counts['documents'], 'document')}:"
            if by != "content":
                raise InputError(f"{said} what it would hold is empty, or dropped as copies (selection.duplicates=).")
            if counts["documents"] == 1:
                raise InputError(
                    f"split {name} has no document: the corpus is one, which is cut into splits only where it is a plain file "
                    "of UTF-8 text, neither compressed nor in an archive, and every other file is empty, without even white "
                    "space. Make it so and set corpus=text, or add documents."
                )
            raise InputError(
                f"{said} give it a larger share or another split.seed=, or the corpus more or smaller documents (text: "
                "corpus.document=paragraph)."
            )


class Arrangement:
    """A stream of documents out of `base`, by the table at `path`: what `Stream` is to all of them.

    Its shards are the batches of the table. Picklable, and safe to share between threads. `starts`, int64
    `[shards + 1]`, holds the position at which each begins; `counts` how many IDs each has.
    """

    def __init__(self, base: Stream, path: PathLike[str]) -> None:
        self.base, self.path, self.dtype = base, path, base.dtype
        self._batches = list(read_batches(path))
        self._columns = [{name: to_numpy(batch[name]) for name in ("first", "tokens", "origin")} for batch in self._batches]
        self.counts = tuple(int(columns["tokens"].sum()) for columns in self._columns)
        self.starts = adjoin(self.counts)
        origins = [int((c["origin"] + c["tokens"]).max(initial=0)) for c in self._columns]
        if max(origins, default=0) > len(base):
            raise IntegrityError(f"{str(path)!r} names IDs that are not there; remove its folder and run again.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Arrangement, (self.base, self.path)

    def __len__(self) -> int:
        """How many IDs there are."""
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The IDs at positions [start, stop), shape `[stop - start]`; not to be written to, as it may be a view.

        Documents that are neighbours in `base` are read together. Raises IndexError where the range is not within the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"[{start}, {stop}) is not within [0, {len(self)})")
        pieces = []
        while start < stop:
            shard = int(np.searchsorted(self.starts, start, "right")) - 1
            until = min(stop, int(self.starts[shard + 1]))
            first, tokens, origin = (self._columns[shard][name] for name in ("first", "tokens", "origin"))
            low = int(np.searchsorted(first, start, "right")) - 1
            high = int(np.searchsorted(first, until, "left"))
            jumps = np.flatnonzero(origin[low + 1 : high] != origin[low : high - 1] + tokens[low : high - 1]) + low + 1
            for begin, end in zip([low, *jumps.tolist()], [*jumps.tolist(), high], strict=True):
                here = max(start, int(first[begin]))
                there = min(until, int(first[end - 1] + tokens[end - 1]))
                at = int(origin[begin]) + here - int(first[begin])
                pieces.append(self.base.read(at, at + there - here))
            start = until
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def document_lengths(self, shard: int) -> np.ndarray:
        """IDs per document of a shard, int64 `[documents]`."""
        lengths: np.ndarray = self._columns[shard]["tokens"]
        return lengths

    def documents(self, shard: int) -> pa.RecordBatch:
        """Where each document of a shard came from and how many IDs it has: `source`, `start`, `end`, `tokens`."""
        return self._batches[shard].select(["source", "start", "end", "tokens"])
