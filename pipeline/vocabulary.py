"""Stage `encode`: tokens become the stream of IDs.

    tokens   [I] [had]          [He] [went]           two documents
    IDs       5   8    0         7    9    0          0 is the end mark, one behind each document

The index of a token in the tokenizer's vocabulary is its ID, so what is left to do is to mark where documents
begin and end, to apply the policy for unknown tokens, and to choose the narrowest dtype. The IDs of all shards
end to end are the stream that windows are cut from.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import adjoin, flags, flat_list, list_values, narrowest, numbers
from pipeline.batches import ORIGIN
from pipeline.config import Vocabulary
from pipeline.errors import ConfigError, InputError

VERSION = 1


@dataclass(frozen=True)
class Marks:
    """What `encode` puts around documents and how it writes IDs; decided once per run."""

    eos_id: int | None  # appended to each document; None: nothing is
    bos_id: int | None
    unknown_id: int | None
    on_unknown: str
    dtype: str

    @property
    def schema(self) -> pa.Schema:
        """Of the batches that `encode` gives."""
        kind = pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.schema({"input_ids": pa.list_(kind)} | ORIGIN)


def identity(vocabulary: Vocabulary) -> dict[str, Any]:
    """The settings that can change the stream (`special_in_text` acts in the tokenize stage)."""
    settings = asdict(vocabulary)
    del settings["special_in_text"]
    return settings


def dtype(vocabulary: Vocabulary, size: int) -> np.dtype[Any]:
    """Of the IDs of a vocabulary of `size` entries. Raises ConfigError where a forced one is too narrow."""
    found = narrowest(size) if vocabulary.dtype == "auto" else np.dtype(vocabulary.dtype)
    if size - 1 > np.iinfo(found).max:
        raise ConfigError(
            f"vocabulary.dtype={vocabulary.dtype} holds IDs up to {np.iinfo(found).max}, the vocabulary has IDs up to "
            f"{size - 1}: set vocabulary.dtype=auto."
        )
    return found


def of_part(vocabulary: Vocabulary, tokenizer: Any) -> Vocabulary:
    """The settings of a part of a mixture, where `auto` means `true`: documents of other parts follow even an only one."""
    auto = vocabulary.append_eos == "auto" and tokenizer.eos_id is not None
    return replace(vocabulary, append_eos="true") if auto else vocabulary


def marks(vocabulary: Vocabulary, tokenizer: Any, several_documents: bool) -> Marks:
    """Settle `auto` and check what can only be checked with the tokenizer at hand.

    Raises ConfigError where a mark is asked for that the tokenizer lacks, or the dtype is too narrow.
    """
    eos = None
    if vocabulary.append_eos == "true" or (vocabulary.append_eos == "auto" and several_documents):
        eos = tokenizer.eos_id
    if vocabulary.append_eos == "true" and eos is None:
        raise ConfigError(
            "vocabulary.append_eos=true, but the tokenizer has no eos_token: set tokenizer.eos_token=, "
            "or vocabulary.append_eos=false."
        )
    if vocabulary.prepend_bos and tokenizer.bos_id is None:
        raise ConfigError(
            "vocabulary.prepend_bos=true, but the tokenizer has no bos_token: set tokenizer.bos_token=, "
            "or vocabulary.prepend_bos=false."
        )
    bos = tokenizer.bos_id if vocabulary.prepend_bos else None
    return Marks(eos, bos, tokenizer.unk_id, vocabulary.on_unknown, dtype(vocabulary, tokenizer.size).name)


def encode(
    batches: Iterable[pa.RecordBatch], marks: Marks, counts: Counter[str], sources: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Batches with `tokens` (list of dictionary) become batches with `input_ids` (list of `marks.dtype`).

    Rows stay rows. The begin mark goes before a document's first row, the end mark behind its last. `counts`
    gains `tokens`, `eos`, `bos`, `unknown` and `ids` (= tokens + eos + bos). Raises InputError on an unknown
    token where `marks.on_unknown` is "error"; it names the file by `sources`.
    """
    begins = True  # does the next row begin a document?
    for batch in batches:
        indices, offsets = list_values(batch["tokens"])
        lengths = np.diff(offsets)
        ends = flags(batch["ends"])
        first = np.concatenate([[begins], ends[:-1]]) if len(ends) else ends
        begins = bool(ends[-1]) if len(ends) else begins
        if marks.unknown_id is not None:
            unknown = int(np.count_nonzero(indices == marks.unknown_id))
            counts["unknown"] += unknown
            if unknown and marks.on_unknown == "error":
                _refuse(batch, indices, offsets, marks.unknown_id, sources)
        before = first.astype(np.int64) * (marks.bos_id is not None)
        after = ends.astype(np.int64) * (marks.eos_id is not None)
        edges = adjoin(lengths + before + after)
        if marks.bos_id is None and marks.eos_id is None:
            ids = indices.astype(marks.dtype, copy=False)
        else:
            ids = np.empty(int(edges[-1]), marks.dtype)
            own = np.ones(len(ids), bool)
            for mark, rows in ((marks.bos_id, edges[:-1][before > 0]), (marks.eos_id, edges[1:][after > 0] - 1)):
                if mark is not None:
                    own[rows] = False
                    ids[rows] = mark
            ids[own] = indices
        counts["tokens"] += len(indices)
        counts["bos"] += int(before.sum())
        counts["eos"] += int(after.sum())
        counts["ids"] += len(ids)
        columns = [flat_list(numbers(ids), edges), *(batch[name] for name in ORIGIN)]
        yield pa.record_batch(columns, schema=marks.schema)


def _refuse(batch: pa.RecordBatch, indices: np.ndarray, offsets: np.ndarray, unknown: int, sources: Sequence[str]) -> None:
    row = int(np.searchsorted(offsets, np.argmax(indices == unknown), "right")) - 1
    source, start, end = (batch[name][row].as_py() for name in ("source", "start", "end"))
    name = repr(sources[source]) if sources else f"source {source}"
    raise InputError(
        f"{name}, {start} to {end}: a token of this document is not in the vocabulary. "
        "Set vocabulary.on_unknown=map to count such tokens instead."
    )
