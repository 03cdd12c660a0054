"""A seeded sample of a corpus, drawn by bytes, and what it says of the whole.

The files are laid end to end and cut into as many equal stretches as there are blocks; in each a block of BLOCK bytes
begins at random. A block takes from every document the share of its text that lies in the block, so a long document
counts as its length says, and no single one can spoil the estimate:

    files      |......a.txt......|...b.txt...|.............c.txt.............|
    stretches  |        0        |        1        |        2        |
    blocks         [##]                 [##]               [##]

The text of a document between two places is what lies between the first border of words behind each, so neighbouring
blocks would share out the text without seams. What can only be read from its beginning (a row group of Parquet, a compressed
file) is, up to HEAD bytes of text, and a block is a share of its text: of no more than BLOCK bytes, however it is packed.

**The estimate** of a total Y from blocks with sizes x and counts y is by ratio: X Σy / Σx, with the variance
X² (1 - f) s² / (n x̄²), s² that of y - (Σy / Σx) x over the blocks, f the part of the corpus that was read. Cochran,
"Sampling Techniques" (1977), section 6.4. It holds for blocks drawn at random from everywhere; one in each stretch is
a little better than it says.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline import cleaning, corpus, places, plan, stores
from pipeline.arrow import flags, string_bytes, to_numpy
from pipeline.columns import text_leaves
from pipeline.config import Corpus
from pipeline.files import Stat

BLOCK = 1 << 12  # bytes
REACH = 1 << 20  # bytes in which the border of a line or paragraph is looked for
GROUPS = 16  # parts that are read as a whole, where there are more
HEAD = 1 << 28  # bytes of text of one that are read, and held, at most
FETCHES = 32  # blocks of files in a store that are read side by side
SEEKABLE = ("text", "jsonl", "parquet")  # formats that can be read from anywhere, where nothing is wrapped around them
LOOKED = 1000  # files whose heads are looked at
NEAR = 1 << 10  # bytes in which a border of words is looked for
NORMAL = 1.959964  # 97.5 % of the normal distribution lie below
WORD = re.compile(rb"(?=[ \t\n][^ \t-\r])|(?<=\n)(?=[^ \t-\r])")
SEPARATOR = {"line": re.compile(rb"\n"), "paragraph": re.compile(rb"\n[ \t\r]*\n")}


@dataclass
class Block:
    """What was read in one place."""

    size: float  # bytes of the corpus, as `Frame.bytes` counts them
    text: list[bytes] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)  # bytes of text of each document that begins here
    partial: bool = False  # only the head of a part was read, so there is more text than it tells
    path: str = ""  # of the file in which it begins
    start: int = 0  # and where


@dataclass(frozen=True)
class Guess:
    """An estimated count: 95 of 100 times the truth lies from `low` to `high`."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: float) -> "Guess":
        """A count that is known."""
        return cls(count, count, count)

    @property
    def exact(self) -> bool:
        """Was it counted?"""
        return self.low == self.high

    def times(self, factor: float, plus: float = 0) -> "Guess":
        """The same, scaled and moved."""
        return Guess(self.value * factor + plus, self.low * factor + plus, self.high * factor + plus)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.value:,.0f}"
        if not self.low and self.high < math.inf:
            return f"up to {self.high:,.0f}"
        spread = max(self.high - self.value, self.value - self.low) / max(self.value, 1)
        digits = max(0, int(math.log10(max(self.value, 1))) - 3)
        return f"about {round(self.value, -digits):,.0f} (± {100 * spread:.1f} %)"


def ratio(total: float, sizes: Sequence[float], counts: Sequence[float], part: float) -> Guess:
    """The total that belongs to `total` bytes, from blocks of these sizes and counts; `part` of the corpus was read."""
    x, y = np.asarray(sizes, float), np.asarray(counts, float)
    slope = y.sum() / max(1.0, x.sum())
    value = float(total * y.sum() / max(1.0, x.sum()))
    if part >= 1:
        return Guess(value, value, value)
    if len(x) < 2:
        return Guess(value, 0, math.inf)
    variance = (1 - part) * float(((y - slope * x) ** 2).sum()) / (len(x) - 1) / len(x) / float(x.mean()) ** 2
    half = total * _student(len(x) - 1) * math.sqrt(variance)
    return Guess(value, max(0.0, value - half), value + half)


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.5."""
    z = NORMAL
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum((term / float(degrees) ** power for power, term in enumerate(terms, 1)), 0.0)


# -- drawing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What blocks are drawn from: a file that can be read from anywhere, or a part that is read as a whole."""

    path: str
    bytes: int
    part: plan.Part | None = None  # what is read as a whole: a row group, a compressed file, one in another encoding


@dataclass(frozen=True)
class Frame:
    """All that can be drawn from."""

    units: tuple[Unit, ...]

    @property
    def bytes(self) -> int:
        """Of the files; in Parquet, of the values of the text column as its metadata tell."""
        return sum(unit.bytes for unit in self.units)


def frame(settings: Corpus, files: dict[str, Stat], planned: plan.Plan | None = None) -> Frame:
    """What there is to draw from: sizes, metadata and the heads of files alone are read."""
    if anywhere(settings, list(files)):
        if settings.format == "parquet":
            return Frame(tuple(unit for path, stat in files.items() for unit in _row_groups(settings, path, stat)))
        return Frame(tuple(Unit(path, stat[1]) for path, stat in files.items() if stat[1]))
    if planned is not None:
        parts = [part for shard in planned.shards for part in shard.parts]
    else:
        parts = [plan.Part(0, path, 0, stat[1], stat[1], "", stat) for path, stat in files.items()]
    return Frame(tuple(Unit(part.path, part.bytes, part) for part in parts if part.bytes))


def anywhere(settings: Corpus, paths: Sequence[str]) -> bool:
    """May these files be read from anywhere, a record or a row group at a time? Of very many some are looked at."""
    if settings.format not in SEEKABLE or settings.archives or cleaning.asked(settings):
        return False
    if settings.format != "parquet" and not plan.is_utf8(settings):
        return False
    return not any(plan.packed(path) for path in paths[:: max(1, len(paths) // LOOKED)])


def _row_groups(settings: Corpus, path: str, stat: Stat) -> Iterator[Unit]:
    with places.open_file(path) as file:
        metadata = plan.open_parquet(file, path, settings).metadata
    own, first = text_leaves(metadata, settings), 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        size = sum(group.column(i).total_uncompressed_size - 4 * group.num_rows for i in own)  # 4 bytes of length a value
        if group.num_rows:
            part = plan.Part(0, path, first, first + group.num_rows, max(1, size), "", stat)
            yield Unit(path, part.bytes, part)
        first += group.num_rows


def draw(settings: Corpus, drawn: Frame, budget: int, seed: int) -> Iterator[Block]:
    """Blocks of `budget` bytes together, in an order that is random too, so that one may stop at any of them.

    Of parts that are read as a whole some are chosen where there are many: GROUPS, or as many as hold a few times the
    budget; what is drawn from each then counts as one block. Raises what reading the corpus raises.
    """
    generator = np.random.default_rng(seed)
    units, whole = drawn.units, drawn.units[0].part is not None
    many = max(GROUPS, math.ceil(4 * budget * len(units) / drawn.bytes)) if whole else len(units)
    if some := many < len(units):
        chosen = ((np.arange(many) + generator.random()) * len(units) / many).astype(int).tolist()
        units = tuple(units[i] for i in chosen)
    ends = np.cumsum([unit.bytes for unit in units])
    count = max(1, budget // BLOCK)
    width = int(ends[-1]) / count
    starts = ((np.arange(count) + generator.random(count) * max(0.0, 1 - BLOCK / width)) * width).astype(np.int64)
    order = generator.permutation(count)
    if not whole:
        with ThreadPoolExecutor(FETCHES) as pool:
            blocks = partial(_block, settings, units, ends)
            far = any(stores.is_url(unit.path) for unit in units)  # then many a round trip is waited for
            yield from (pool.map if far else map)(blocks, starts[order].tolist())
        return
    blocks_of = np.bincount(np.searchsorted(ends, starts, "right"), minlength=len(units)).tolist()
    for index in generator.permutation(len(units)).tolist():
        if not (own := blocks_of[index]):
            continue
        values, size = _values(settings, units[index]), units[index].bytes
        share = min(1 / own, BLOCK / max(size, int(values.edges[-1])))
        place = {"path": units[index].path, "start": units[index].part.start if units[index].part else 0}
        merged = Block(0, **place)
        for low in generator.permutation((np.arange(own) + generator.random(own) * (1 - share * own)) / own).tolist():
            block = merged if some else Block(0, **place)
            _from_rows(values, low, low + share, block)
            block.size += share * size
            block.partial = values.partial
            if not some:
                yield block
        if some:
            yield merged


def _block(settings: Corpus, units: Sequence[Unit], ends: np.ndarray, start: int) -> Block:
    """What lies within BLOCK bytes from `start` on."""
    block, position, stop = Block(0), start, min(start + BLOCK, int(ends[-1]))
    while position < stop:
        index = int(np.searchsorted(ends, position, "right"))
        origin = int(ends[index]) - units[index].bytes
        low, high = position - origin, min(stop, int(ends[index])) - origin
        if position == start:
            block.path, block.start = units[index].path, low
        _from_file(settings, units[index], low, high, block)
        block.size += high - low
        position = origin + high
    return block


@dataclass(frozen=True)
class Values:
    """The documents of a part end to end, where each begins and the last ends, and are some not read?"""

    text: memoryview
    edges: np.ndarray
    partial: bool


def _values(settings: Corpus, unit: Unit) -> Values:
    """The documents of a part; of a very large one those at its head."""
    assert unit.part is not None
    text, edges = bytearray(), array("q", [0])
    for _, _, piece, ends in _pieces(settings, plan.Shard(0, (unit.part,)), HEAD):
        text += piece
        if ends or len(text) > HEAD:
            edges.append(len(text))
    return Values(memoryview(text), np.array(edges), len(text) > HEAD)


def _from_rows(values: Values, low: float, high: float, block: Block) -> None:
    """The share [low, high) of the text of a part, by bytes."""
    edges = values.edges
    left, right = low * int(edges[-1]), high * int(edges[-1])
    for row in range(int(np.searchsorted(edges, left, "right")) - 1, min(len(edges) - 1, int(np.searchsorted(edges, right)))):
        begin, end = int(edges[row]), int(edges[row + 1])
        text = values.text[begin:end]
        a, b = (_word(text, int(max(0, place - begin))) for place in (left, right))
        block.text.append(bytes(text[a:b]))
        if left <= begin < right:
            block.begun.append(len(text))


def _from_file(settings: Corpus, unit: Unit, low: int, high: int, block: Block) -> None:
    """The bytes [low, high) of a file of text or JSON lines."""
    if settings.format == "text" and settings.document == "file":
        with places.open_file(unit.path) as file:
            base = max(0, low - 1)
            data = file.pread(high - base + NEAR, base)
        block.text.append(data[_word(data, low - base) : _word(data, high - base)])
        if low == 0:
            block.begun.append(unit.bytes)
        return
    left, right = _records(settings, unit, low, high)
    part = plan.Part(0, unit.path, left, right, right - left, "", places.file_stat(unit.path))
    for start, end, text, whole in documents(settings, plan.Shard(0, (part,))):
        share = len(text) / max(1, end - start)
        a, b = (_word(text, int(max(0, place - start) * share)) for place in (low, high))
        if a < b:
            block.text.append(text[a:b])
        if low <= start < high and whole:
            block.begun.append(len(text))


def head(settings: Corpus, unit: Unit, most: int) -> int:
    """Read about `most` bytes from the beginning of a unit, documents and all; how many it were, of a part of its text."""
    if unit.part is not None:
        return sum(len(piece) for _, _, piece, _ in _pieces(settings, plan.Shard(0, (unit.part,)), most))
    whole = settings.format == "text" and settings.document == "file"
    stop = min(most, unit.bytes) if whole or most >= unit.bytes else _records(settings, unit, 0, most)[1]
    part = plan.Part(0, unit.path, 0, stop, stop, "", places.file_stat(unit.path))
    for _ in corpus.load(plan.Shard(0, (part,)), settings, Counter()):
        pass
    return stop


def documents(settings: Corpus, shard: plan.Shard, most: float = math.inf) -> Iterator[tuple[int, int, bytes, bool]]:
    """(start, end, text, is all of it there) of the documents of a shard; a long one in pieces that are put together.

    No more is read once there are more than `most` bytes of text.
    """
    waiting: list[bytes] = []
    begin = end = 0
    for start, end, piece, ends in _pieces(settings, shard, most):
        begin = begin if waiting else start
        waiting.append(piece)
        if ends:
            yield begin, end, b"".join(waiting), True
            waiting = []
    if waiting:
        yield begin, end, b"".join(waiting), False


def _pieces(settings: Corpus, shard: plan.Shard, most: float) -> Iterator[tuple[int, int, bytes, bool]]:
    """(start, end, text, does a document end with it) of the rows of a shard, as many as make more than `most` bytes."""
    size = 0
    for batch in corpus.load(shard, settings, Counter()):
        data, offsets = string_bytes(batch["text"])
        starts, stops, ends = to_numpy(batch["start"]), to_numpy(batch["end"]), flags(batch["ends"])
        for row in range(len(batch)):
            yield int(starts[row]), int(stops[row]), data[offsets[row] : offsets[row + 1]].tobytes(), bool(ends[row])
            size += int(offsets[row + 1] - offsets[row])
            if size > most:
                return


def _records(settings: Corpus, unit: Unit, low: int, high: int) -> tuple[int, int]:
    """The borders of the records around [low, high) of a file; of characters where there is none in REACH."""
    separator = SEPARATOR["line" if settings.format == "jsonl" else settings.document]
    reach = settings.max_document_bytes if settings.format == "jsonl" else REACH
    with places.open_file(unit.path) as file:
        near, left = 2 * BLOCK, -1 if low else 0
        while left < 0:
            base = max(0, low - near)
            data = file.pread(low - base, base)
            ends = [base + match.end() for match in separator.finditer(data)]
            if ends or not base:
                left = ends[-1] if ends else 0
            elif near >= reach:
                left = base + _character(data, 0)
            near *= 4
        near, right = 2 * BLOCK, -1
        while right < 0:
            data = file.pread(near, high - 1)
            match = separator.search(data)
            if match:
                right = high - 1 + match.end()
            elif high - 1 + len(data) >= unit.bytes:
                right = unit.bytes
            elif near >= reach:
                right = high - 1 + _character(data, len(data) - 8)
            near *= 4
    return left, right


def _character(data: bytes | memoryview, place: int) -> int:
    """The first border of UTF-8 characters at or behind a place."""
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place += 1
    return place


def _word(text: bytes | memoryview, place: int) -> int:
    """The first border of words at or behind a place in a text; of characters where there is none near."""
    if not 0 < place < len(text):
        return min(max(place, 0), len(text))
    found = WORD.search(text, place, min(len(text), place + NEAR))
    if found or len(text) < place + NEAR:
        return found.start() if found else len(text)
    return _character(text, place)
