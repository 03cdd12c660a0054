"""Which split a document belongs to: decided from its content, or from the file it lies in.

    content   hash ──▶ u in [0, 1):   validation │            train            │ test
                                      0         0.05                          0.95       1

By content the answer depends on nothing but the bytes of the document and `split.seed`: not on its file, nor on which
other documents there are, so that adding, renaming and reordering files moves nothing, on any machine. A split that grows
takes only what it gains: validation grows from below, test from above.

A corpus of one document is cut instead, at paragraph borders, with a gap between two splits that no window spans:

    train ───────────────────────── │ gap │ validation │ gap │ test
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.config import Split
from pipeline.errors import InputError

GAP = -3  # instead of the number of a split: text between two of them, in none
BORDER = re.compile(rb"\n[ \t\r]*\n[ \t\r\n]*")  # between paragraphs
READ = 1 << 16  # bytes looked at in one go
NAMES = ("train", "validation", "test")
SHOWN = 8  # files or values that an error names
MANY = 1000  # among which it looks for those that may have been meant


def names(split: Split) -> tuple[str, ...]:
    """The splits that are asked for, in order; none where the corpus is not to be split.

    >>> names(Split(validation=0.1)), names(Split())
    (('train', 'validation'), ())
    """
    if split.by != "content":
        return ("train", *(name for name, wanted in _wanted(split).items() if wanted))
    shares = fractions(split)
    return tuple(name for name in NAMES if shares[name] > 0) if shares["train"] < 1 else ()


def ordered(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """What is known of splits, by name, as they are always listed: train, validation, test."""
    return sorted(found.items(), key=lambda item: NAMES.index(item[0]))


def fractions(split: Split) -> dict[str, float]:
    """The share of each split. One that is not given is nothing; train, where not given, the rest."""
    held = {name: getattr(split, name) or 0.0 for name in NAMES[1:]}
    train = 1 - sum(held.values()) if split.train is None else split.train
    return {"train": round(train, 12), **held}


def identity(split: Split) -> dict[str, Any] | None:
    """The settings that can change which split a document belongs to; None where there are no splits."""
    if not names(split):
        return None
    if split.by != "content":
        return {"by": split.by, "column": split.column, **_wanted(split)}
    return {"by": split.by, "seed": split.seed, **fractions(split)}


def assign(hashes: np.ndarray, split: Split) -> np.ndarray:
    """The number in `names` of each document's split, int8 `[documents]`, by content.

    `hashes` are of the content, uint64 `[documents]`, evenly spread.

    >>> assign(np.array([0, 1 << 62, 3 << 62], np.uint64), Split(validation=0.25, test=0.25))
    array([2, 1, 1], dtype=int8)
    """
    present, shares = names(split), fractions(split)
    mixed = hashes + np.uint64((split.seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    u = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / float(1 << 53)
    out = np.full(len(hashes), present.index("train") if "train" in present else 0, np.int8)
    if "test" in present:
        out[u >= 1 - shares["test"]] = present.index("test")
    if "validation" in present:
        out[u < shares["validation"]] = present.index("validation")
    return out


def assign_files(paths: Sequence[str], split: Split) -> np.ndarray:
    """The number in `names` of the split of each file's documents, int8 `[files]`; `paths` as the manifest shows them."""
    present = names(split)

    def of(path: str) -> int:
        for name, patterns in _wanted(split).items():
            if any(_fits(path, pattern) for pattern in patterns):
                return present.index(name)
        return present.index("train")

    return np.array([of(path) for path in paths], np.int8)


def _fits(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


def assign_values(values: Sequence[str | None], split: Split) -> np.ndarray:
    """The number in `names` of each document's split, int8 `[documents]`, by what stands in `split.column`."""
    number = {value: names(split).index(name) for name, wanted in reversed(_wanted(split).items()) for value in wanted}
    return np.array([number.get(value or "", 0) for value in values], np.int8)


def require_matches(found: Sequence[str | None], split: Split) -> None:
    """Raise InputError where a pattern or a value of a split by files or by column is that of none of the paths or values
    that were `found`, so that what it names would be trained on; or where one of the splits takes nothing.
    """
    by_files = split.by == "files"
    form, things = ("files", "the files") if by_files else ("values", f"the values of column {split.column!r}")
    texts = [one or "" for one in found]
    shown = ", ".join(map(repr, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
    for name, wanted in _wanted(split).items():
        if idle := [one for one in wanted if not (any(_fits(text, one) for text in texts) if by_files else one in texts)]:
            near = dict.fromkeys(text for one in idle for text in difflib.get_close_matches(one, texts[:MANY], 1))
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InputError(f"split {name}: split.{name}_{form}={idle} matches none of {things}: {shown}.{hint}")
    owners = assign_files(texts, split) if by_files else assign_values(texts, split)
    for number, name in enumerate(names(split)):
        if number in owners:
            continue
        if name == "train":
            raise InputError(
                f"split train: all of {things} are held out: {shown}. Name fewer of them in split.validation_{form}=."
            )
        raise InputError(f"split {name}: another split takes all that split.{name}_{form}={_wanted(split)[name]} matches.")


def _wanted(split: Split) -> dict[str, list[str]]:
    """The patterns, or the values, of each split that is held out."""
    if split.by == "files":
        return {"validation": split.validation_files, "test": split.test_files}
    return {"validation": split.validation_values, "test": split.test_values}


Holds = Callable[[int, int, int], int]  # (begin, end, length): does a range of a text hold a window of this length?


class Bytes(Protocol):
    """A file that can be read at any place."""

    def pread(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset` on."""


def sections(file: Bytes, size: int, split: Split, words: int, name: str) -> tuple[list[int], list[int]]:
    """Where a text of `size` bytes is cut: borders, 0 and `size` included, and the split of each range, or GAP.

    Each split ends at the first paragraph border behind its share of the bytes; the gap behind it takes at least `words`
    runs of bytes between white space, each of which is a token or more, up to a paragraph border again, and comes out of
    the next split's share. Reads what is around the borders. Raises InputError where a split would hold no text.
    """
    if isinstance(found := _cut(file, size, split, words, lambda begin, end, _: _words(file, begin, end, 1)), str):
        fits = fitting(file, size, split, words)
        raise InputError(
            f"{name!r} is one document of {size} bytes: cut at paragraphs, with gaps of {words} words, it leaves nothing for "
            f"{found}. Set corpus.document=paragraph or line, or a larger split.{found}="
            + (f", or window.context_length<={fits}." if fits else ".")
        )
    return found


def fitting(file: Bytes, size: int, split: Split, words: int, holds: Holds | None = None) -> int | None:
    """The largest power of two below `words` with which a text is cut so that every split holds a window of so many words
    and one more, or what `holds(begin, end, length)` says of a range; None where there is none.
    """
    enough = holds or (lambda begin, end, length: _words(file, begin, end, length + 1))
    powers = (1 << bits for bits in range((words - 1).bit_length() - 1, 0, -1))
    return next((power for power in powers if not isinstance(_cut(file, size, split, power, enough), str)), None)


def _cut(file: Bytes, size: int, split: Split, words: int, holds: Holds) -> tuple[list[int], list[int]] | str:
    """The borders and the owners of `sections`; or the first split whose range does not hold what it must."""
    present, shares = names(split), fractions(split)
    borders, owners, behind = [0], [], 0.0
    for number, part in enumerate(present):
        behind += shares[part]
        last = number == len(present) - 1
        end = size if last else _border(file, max(int(size * behind), borders[-1]), size)
        if not holds(borders[-1], end, words):
            return part
        borders.append(end)
        owners.append(number)
        if not last:
            borders.append(_border(file, _words(file, end, size, words) or size, size))
            owners.append(GAP)
    return borders, owners


def _border(file: Bytes, position: int, size: int) -> int:
    """The end of the first blank lines that begin at `position` or later, or `size`."""
    data = b""
    while position + len(data) < size:
        piece = file.pread(READ, position + len(data))
        if not piece:
            break
        data += piece
        found = BORDER.search(data)
        if found and (found.end() < len(data) or position + len(data) >= size):
            return position + found.end()
        if not found and b"\n" in data:  # nothing before the last line break can still be part of a border
            done = len(data.rstrip(b" \t\r\n"))
            done = data.rfind(b"\n", 0, done) + 1
            position, data = position + done, data[done:]
    return size


def _words(file: Bytes, position: int, size: int, count: int) -> int:
    """The position behind `count` words, 0 where there are fewer before `size`."""
    inside = False
    while position < size and (piece := file.pread(min(READ, size - position), position)):
        for found in re.finditer(rb"\S+", piece):
            count -= not (inside and found.start() == 0)
            if count == 0:
                return position + found.end()
        inside = not piece[-1:].isspace()
        position += len(piece)
    return 0
