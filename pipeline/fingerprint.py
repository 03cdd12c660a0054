"""Stage `fingerprint`: what tells documents apart, and nearly equal ones together.

    text ──▶ hash        blake2b of the document's bytes: equal for equal documents, and which split it belongs to
         └─▶ signature   MinHash of its word n-grams: two signatures agree in about as many places as the documents share

*Words* are runs of ASCII letters and digits, lower-cased, and of other characters; each character from U+3000 to U+DFFF
(Chinese, Japanese, Korean) is a word of its own, since no spaces stand between words there. The n-grams of "a b c d" with
n = 3 are {"a b c", "b c d"}; a document of fewer words is one n-gram. The *Jaccard similarity* of two documents is the
number of n-grams that both have over the number that either has. Each place of a signature holds the smallest value that
one random hash function gives any n-gram, so that two signatures agree in a place with just that probability (A. Broder,
"On the resemblance and containment of documents", 1997): with 128 places the estimate is right within 0.04 (one sigma).

The hash functions are rensa's. Words and n-grams are hashed here, over the buffer, with no Python string:

    hash of bytes s…e = (P[e] - P[s]) · x^-s,   P[i] = sum of byte j · x^j over j < i,   modulo 2^64, x odd

which is a polynomial in x of the bytes alone, wherever they lie.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline import split
from pipeline.arrow import adjoin, flags, numbers, string_bytes, to_numpy
from pipeline.config import Selection, Split

VERSION = 1
BLOCK = 1 << 20  # bytes of text hashed at a time: a dozen arrays of eight times as many bytes
X = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
HASH = pa.list_(pa.uint64(), 2)
EMPTY = np.uint32(0xFFFFFFFF)  # what a signature holds where there is no n-gram
LETTER = np.zeros(256, bool)  # bytes that belong to words
LETTER[[*b"0123456789", *b"abcdefghijklmnopqrstuvwxyz", *b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *range(128, 256)]] = True
LOWER = np.arange(256, dtype=np.uint8)
LOWER[ord("A") : ord("Z") + 1] += 32
OWN_WORD = np.zeros(256, bool)  # bytes with which a character begins that is a word of its own
OWN_WORD[0xE3:0xEE] = True


def identity(selection: Selection, near: bool, splits: Split) -> dict[str, object]:
    """The settings that can change a fingerprint; `near`: are signatures wanted?"""
    owner = {"split": split.identity(splits)} if splits.by == "column" else {}
    if not near:
        return {"signature": None, **owner}
    from rensa import RMinHash

    version = int(RMinHash.ALGORITHM_VERSION)
    return {"signature": {"ngram": selection.ngram, "permutations": selection.permutations, "rensa": version}, **owner}


def schema(selection: Selection, near: bool, splits: Split) -> pa.Schema:
    """Columns: `source` int32, `start` and `end` int64 (of the document, as `load` has them), `bytes` int64 of its text,
    `hash` fixed_size_list<uint64, 2>; where `near`, `signature` fixed_size_list<uint32, permutations>; and with
    `split.by=column`, `split` int8, the number of its split.
    """
    fields: dict[str, pa.DataType] = {
        "source": pa.int32(),
        "start": pa.int64(),
        "end": pa.int64(),
        "bytes": pa.int64(),
        "hash": HASH,
    }
    fields |= {"signature": pa.list_(pa.uint32(), selection.permutations)} if near else {}
    return pa.schema(fields | ({"split": pa.int8()} if splits.by == "column" else {}))


def fingerprint(
    batches: Iterable[pa.RecordBatch], selection: Selection, near: bool, splits: Split, counts: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """One row per document of what `load` gives; a document in several pieces is hashed as a whole.

    n-grams that span two pieces, one per 2 MiB, are left out. `counts` gains `documents`.
    """
    sha, size, begin = hashlib.blake2b(digest_size=16), 0, -1  # of the document that is not at its end yet
    signature = np.full(selection.permutations, EMPTY)
    for batch in batches:
        data, offsets = string_bytes(batch["text"])
        signed = signatures(data, offsets, selection) if near else None
        starts, ends = to_numpy(batch["start"]), flags(batch["ends"])
        hashes, sizes, firsts = [], [], []
        for row, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            begin = int(starts[row]) if begin < 0 else begin
            sha.update(data[low:high].data)
            size += high - low
            if signed is not None:
                np.minimum(signature, signed[row], out=signed[row])
                signature = signed[row]
            if ends[row]:
                hashes.append(sha.digest())
                sizes.append(size)
                firsts.append(begin)
                sha, size, begin = hashlib.blake2b(digest_size=16), 0, -1
                signature = np.full(selection.permutations, EMPTY)
        signature = signature.copy()
        last = np.flatnonzero(ends)
        columns = [
            numbers(to_numpy(batch["source"])[last]),
            numbers(np.array(firsts, np.int64)),
            numbers(to_numpy(batch["end"])[last]),
            numbers(np.array(sizes, np.int64)),
            pa.FixedSizeListArray.from_arrays(numbers(np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)), 2),
        ]
        if signed is not None:
            flat = numbers(np.ascontiguousarray(signed[last]).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, selection.permutations))
        if splits.by == "column":
            values = batch[str(splits.column)].to_pylist()
            columns.append(numbers(split.assign_values([values[row] for row in last.tolist()], splits)))
        counts["documents"] += len(last)
        yield pa.record_batch(columns, schema=schema(selection, near, splits))


def signatures(data: np.ndarray, offsets: np.ndarray, selection: Selection) -> np.ndarray:
    """MinHash signatures, uint32 `[rows, permutations]`, of rows of UTF-8: row i is `data[offsets[i]:offsets[i + 1]]`."""
    out = np.full((len(offsets) - 1, selection.permutations), EMPTY)
    row = 0
    while row < len(out):
        stop = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK, "right")) - 1)
        if stop > row + 1 or offsets[stop] - offsets[row] <= BLOCK:
            out[row:stop] = _signatures(data[offsets[row] : offsets[stop]], offsets[row : stop + 1] - offsets[row], selection)
        else:  # one row longer than a block: the least of its parts, cut at words
            for low, high in _parts(data, int(offsets[row]), int(offsets[stop])):
                part = _signatures(data[low:high], np.array([0, high - low]), selection)
                np.minimum(out[row], part[0], out=out[row])
        row = stop
    return out


def _parts(data: np.ndarray, low: int, high: int) -> Iterator[tuple[int, int]]:
    while low < high:
        stop = min(low + BLOCK, high)
        if stop < high and len(gaps := np.flatnonzero(~LETTER[data[low:stop]])):
            stop = low + int(gaps[-1]) + 1
        yield low, stop
        low = stop


def _signatures(data: np.ndarray, offsets: np.ndarray, selection: Selection) -> np.ndarray:
    from rensa import RMinHash

    ngrams, borders = shingles(data, offsets, selection.ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(ngrams, borders.astype(np.uint64), selection.permutations, 0)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(offsets) - 1, selection.permutations)


def words(data: np.ndarray) -> np.ndarray:
    """Where words begin in UTF-8, bool, one a byte.

    >>> [int(words(np.frombuffer(text.encode(), np.uint8)).sum()) for text in ("One céu azul.", "日本語")]
    [3, 3]
    """
    letter = LETTER[data]
    begins: np.ndarray = OWN_WORD[data] | (letter & ~np.concatenate([[False], letter[:-1]]))
    return begins


def shingles(data: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the word n-grams of each row, uint64, end to end, and where each row's begin, int64 `[rows + 1]`.

    >>> text = np.frombuffer(b"One two three, ONE TWO THREE", np.uint8)
    >>> hashes, borders = shingles(text, np.array([0, 14, len(text)]), 3)
    >>> len(hashes), borders.tolist(), bool(hashes[0] == hashes[1])
    (2, [0, 1, 2], True)
    """
    letter, begins = LETTER[data], words(data)
    inner = offsets[1:-1]
    begins[inner[inner < len(data)]] |= letter[inner[inner < len(data)]]  # a word ends with its row
    start = np.flatnonzero(begins)
    gap = np.flatnonzero(~letter)
    after = np.append(gap, len(data))[np.searchsorted(gap, start)]  # the first byte behind each word that is no letter
    stop = np.minimum(after, np.append(start[1:], len(data)))
    hashes = _mixed(_polynomial(LOWER[data].astype(np.uint64) + np.uint64(1), start, stop))
    first = np.searchsorted(start, offsets)  # of each row's words
    many = np.diff(first)
    own = np.where(many > 0, np.maximum(many - n + 1, 1), 0)  # n-grams of each row
    borders = adjoin(own)
    place = np.repeat(first[:-1], own) + np.arange(borders[-1]) - np.repeat(borders[:-1], own)
    until = np.minimum(place + n, np.repeat(first[1:], own))
    return _mixed(_polynomial(hashes, place, until)), borders


def _polynomial(values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The hash of each range of `values`, modulo 2^64: see above."""
    power, inverse = _powers(1 << max(len(values), 1).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * power[: len(values)], dtype=np.uint64)])
    found: np.ndarray = (sums[stop] - sums[start]) * inverse[start]
    return found


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """x^0, x^1, … and x^0, x^-1, … modulo 2^64."""
    both = []
    for base in (X, pow(X, -1, 1 << 64)):
        factors = np.full(count, np.uint64(base))
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]


def _mixed(values: np.ndarray) -> np.ndarray:
    """The values with their bits well spread: the finalizer of splitmix64 (G. Steele, D. Lea, C. Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
