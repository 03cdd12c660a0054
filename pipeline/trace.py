"""The thread from a row of a finished dataset back to the file, and from a phrase or a file to the rows.

    step 3, rank 1 ──▶ row 17 ──▶ positions 34 to 39 of the stream
                                   document 2: its IDs 6 to 9  ──▶ bytes 21 to 33 of its text ──▶ letters/two.txt
                                   document 3: its IDs 0 to 2  ──▶ bytes 0 to 9 of its text   ──▶ …

A document is read again from its file and tokenized again as a whole, in the pieces in which the pipeline takes it,
by the reference tokenizer, which tells where in the text each token lies. The IDs must be those that the rows hold, so a
file that has changed since is noticed, whichever way one goes.

Two ranges are given, and they are not the same. `text` counts bytes of UTF-8 within the document's text, which is what
was tokenized: behind a byte-order mark, without a line's end, with JSON's escapes undone. `file` counts bytes of the
file, and is given only where these very bytes stand there, as in plain text. `start` and `end` are always those of the
document in its file: bytes (of its line, in JSONL), or rows of a Parquet file.
"""

import difflib
import itertools
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import backends, corpus, files, hub, manifests, output, places, plan, sample, stores, tokenizer, window
from pipeline import config as configs
from pipeline.arrow import adjoin, flags, numbers, read_batches, string_bytes, to_numpy
from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.pretrained import SLOW
from pipeline.split import ordered

GAP = 1 << 20  # bytes or rows between two documents up to which one reading serves both
FOUND = 1000  # places of a phrase, or documents of a file, that are followed
MAPPED = 64  # files of rows kept mapped

Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Consecutive IDs of a row that belong to one document; see the module for `text` and `file`."""

    document: int
    path: str
    start: int
    end: int
    first: int  # place of the first of the IDs among those of its document
    ids: list[int]
    text: Span | None  # None where there are only marks, or the tokenizer cannot tell
    file: Span | None
    words: str  # the text itself; where a range cuts a character, U+FFFD


@dataclass(frozen=True)
class Place:
    """Where a phrase, a byte or a document was found."""

    document: int
    path: str
    start: int
    end: int
    text: Span | None  # None for all of it
    positions: Span  # in the stream
    rows: Sequence[int]  # that hold all of it; where none does, those that hold a part


def _known(group: Any, given: dict[str, Any]) -> Any:
    """Settings of a group, less what this version does not know, and less the parts of a mixture."""
    fields = group.__dataclass_fields__.keys() - {"parts"}
    return group(**{name: value for name, value in given.items() if name in fields})


class Finished:
    """A finished dataset opened for looking at: manifest, vocabulary, documents, rows. Nothing of torch is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = manifests.read(folder / "manifest.json")
        if manifest is None:
            raise ConfigError(
                f"{str(folder)!r} is not a finished dataset of this pipeline: it has no manifest.json that is whole."
            )
        self.manifest = manifest
        if manifest.get("splits"):
            inside = ", ".join(repr(str(folder / split)) for split, _ in ordered(manifest["splits"]))
            raise ConfigError(f"{str(folder)!r} holds splits, each a dataset of its own: name one of {inside}.")
        self.rows = int(manifest["rows"])
        self.window: configs.Window = self._settings(configs.Window)

    def _settings(self, group: Any) -> Any:
        """A group of the recorded configuration, less what this version does not know."""
        return _known(group, self.manifest["config"][group.__name__.lower()])

    def corpus(self, source: int) -> Any:
        """How a source was read: by the settings of the corpus, or of its part of a mixture."""
        part, given = self.sources[source].get("part"), self.manifest["config"]["corpus"]
        if part is None:
            return _known(configs.Corpus, given)
        settings = {name: value for name, value in given["parts"][part].items() if "${" not in str(value)}  # as written
        return _known(configs.Part, settings)

    def file(self, name: str) -> Path:
        """The path of a file, once its bytes are those that the manifest names. Raises IntegrityError."""
        path = self.folder / name
        if name not in self.manifest["files"]:
            raise IntegrityError(f"{str(path)!r} is not listed in its manifest: run the pipeline again, it writes it anew.")
        files.require_whole(path, self.manifest["files"][name])
        return path

    @cached_property
    def sources(self) -> list[Any]:
        """The input files, as the manifest or what stands beside it lists them."""
        return output.sources(self.folder, self.manifest)

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Tokens by ID."""
        return {i: token for token, i in json.loads(self.file("vocabulary.json").read_text("utf-8")).items()}

    @cached_property
    def letters(self) -> dict[str, int]:
        """The byte that each letter of a token stands for; empty where tokens are spelt as they are."""
        letters = {letter: byte for byte, letter in enumerate(backends.byte_letters())}
        return letters if letters.keys() <= set(self.vocabulary.values()) else {}

    @cached_property
    def documents(self) -> dict[str, np.ndarray]:
        """Of every document, int64 `[documents]`: `source`, `start`, `end`, `first` (position in the stream), `tokens`."""
        batches = list(read_batches(self.file("documents.arrow")))
        names = ("source", "start", "end", "first", "tokens")
        return {name: np.concatenate([np.empty(0, np.int64), *(to_numpy(b[name]) for b in batches)]) for name in names}

    @cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer, run by the reference implementation."""
        self.file("vocabulary.json")
        for name in self.manifest["files"]:
            if name.startswith("tokenizer/"):
                self.file(name)
        special = self._settings(configs.Vocabulary).special_in_text
        fast = "tokenizer/tokenizer.json" in self.manifest["files"]
        return tokenizer.read(self.folder / "tokenizer", "hf" if fast else SLOW, special)

    def decode(self, ids: list[int]) -> str:
        """IDs as text, special tokens included."""
        return self.tokenizer.decode(ids)

    @cached_property
    def spelt(self) -> np.ndarray | None:
        """Bytes of text in each token, int64 `[V]`, where letters of tokens stand for bytes; else None."""
        tree = backends.parse(self.file("tokenizer/tokenizer.json").read_bytes())
        if not tokenizer.bytewise(tree):
            return None
        widths = np.zeros(self.tokenizer.size, np.int64)
        for i, token in self.vocabulary.items():
            widths[i] = len(token)
        for token in tree["added_tokens"]:
            widths[token["id"]] = len(token["content"].encode())
        return widths

    @property
    def marks(self) -> tuple[bool, bool]:
        """Has every document a begin mark, an end mark?"""
        counts = self.manifest["ledger"]["encode"]
        return bool(counts["bos"]), bool(counts["eos"])

    # -- rows and documents

    def place(self, row: int) -> int:
        """A row's number, counted from the front. Raises ConfigError where there is no such row."""
        if not -self.rows <= row < self.rows:
            raise ConfigError(f"row {row}: {str(self.folder)!r} has rows 0 to {self.rows - 1}.")
        return row % self.rows

    def row(self, index: int) -> dict[str, Any]:
        """The columns of one row, less `embeddings`."""
        batch, at = self._row(index)
        return {column: batch[column][at].as_py() for column in batch.schema.names if column != "embeddings"}

    def ids(self, index: int) -> np.ndarray:
        """The IDs of one row: its inputs and its last target."""
        batch, at = self._row(index)
        kept = [to_numpy(batch[name][at].values) for name in ("input_ids", "target_ids") if name in batch.schema.names]
        return np.concatenate([kept[0], *(targets[-1:] for targets in kept[1:])])

    def _row(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The batch that a row lies in, and its place there."""
        left, (names, edges) = self.place(index), self._shards
        number = int(np.searchsorted(edges, left, "right")) - 1
        left -= int(edges[number])
        for batch in self._batches(names[number]) if number < len(names) else ():
            if left < len(batch):
                return batch, left
            left -= len(batch)
        raise IntegrityError(f"{str(self.folder)!r} holds fewer rows than its manifest says.")

    @cached_property
    def _shards(self) -> tuple[list[str], np.ndarray]:
        """The files of rows, and the first row of each; behind them the number of rows."""
        notes, names = self.manifest["files"], manifests.data_files(self.manifest)
        return names, adjoin([notes[name].get("rows", 0) for name in names])

    @cached_property
    def _batches(self) -> Callable[[str], list[pa.RecordBatch]]:
        """The batches of a file of rows, which is hashed when it is mapped."""
        return lru_cache(MAPPED)(lambda name: list(read_batches(self.file(name))))

    def span(self, row: int) -> Span:
        """The positions of the stream that a row holds, its last target included: [first, stop)."""
        nth = int(window.shuffled(np.array([self.place(row)]), self.rows, self.order)[0])
        first, stop = window.position(self.window, self.documents["tokens"], nth)
        return first, self._held(first, stop)

    def _held(self, first: int, stop: int) -> int:
        """Where what a row holds of [first, stop) ends: with window.mode=document maybe before the document does."""
        whole = self.window.mode != "document"
        return stop if whole else min(stop, first + self.window.context_length - self.special)

    @property
    def special(self) -> int:
        """Special tokens around each row."""
        return int(self.manifest["ledger"]["window"].get("special", 0)) // max(1, self.rows)

    @property
    def order(self) -> int | None:
        """The seed of the order of the rows (see `window.shuffled`); None for that of the stream."""
        settings = self.manifest["config"].get("split", {})
        return int(settings["seed"]) if settings.get("shuffle") == "windows" else None

    def rows_at(self, first: int, stop: int) -> Sequence[int]:
        """The rows that hold a position of [first, stop), in order."""
        return self._stand(window.rows_at(self.window, self.documents["tokens"], first, stop) if first < stop else range(0))

    def rows_of(self, document: int, first: int, stop: int) -> Sequence[int]:
        """The rows that hold one of the IDs [first, stop) of a document, in order."""
        length, begin, before = self._cut(document)
        rows = window.rows_at(self.window, length, begin + first, begin + stop) if first < stop else range(0)
        return self._stand(range(before + rows.start, before + rows.stop))

    def _stand(self, rows: range) -> Sequence[int]:
        """Where rows of the order of the stream stand in the dataset."""
        return rows if self.order is None else sorted(self._standing[rows.start : rows.stop].tolist())

    @cached_property
    def _standing(self) -> np.ndarray:
        """Where each row of the order of the stream stands in the dataset, int64 `[rows]`."""
        return np.argsort(window.shuffled(np.arange(self.rows), self.rows, self.order))

    def _cut(self, document: int) -> tuple[np.ndarray, int, int]:
        """What is cut as one with a document, the stream or itself: its length, int64 `[1]`, where the document begins
        in it, and how many rows come before it in the order of the stream.
        """
        first, tokens = self.documents["first"], self.documents["tokens"]
        if window.crosses(self.window):
            return first[-1:] + tokens[-1:], int(first[document]), 0
        return tokens[document : document + 1], 0, int(self._first_rows[document])

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """In the order of the stream the first row of each document that is cut on its own."""
        return window.first_rows(self.window, self.documents["tokens"])

    def between(self, first: int, stop: int) -> range:
        """The documents that the positions [first, stop) lie in."""
        low, high = np.searchsorted(self.documents["first"], [first, max(first, stop - 1)], "right").tolist()
        return range(low - 1, high)

    def path(self, document: int) -> str:
        """The file of a document, as the manifest names it."""
        return str(self.sources[int(self.documents["source"][document])]["path"])

    def where(self, document: int) -> str:
        """A document's place in its file, in words."""
        start, end = (int(self.documents[name][document]) for name in ("start", "end"))
        return f"{self.path(document)!r} {self.unit(document)} {start:,} to {end:,}"

    def unit(self, document: int) -> str:
        """What its place in the file counts: in what was compressed, or in another encoding, bytes of the text itself."""
        settings = self.corpus(int(self.documents["source"][document]))
        return "rows" if plan.file_format(self.path(document), settings) in corpus.TABLES else "bytes"

    @property
    def other_splits(self) -> list[str]:
        """The splits beside this one, where it is one."""
        splits = (files.unseal(self.folder.parent / "manifest.json") or {}).get("splits") or {}
        return [name for name, _ in ordered(splits) if name != self.manifest["split"]] if self.manifest.get("split") else []

    # -- text and tokens of documents

    def locate(self, source: int) -> tuple[str, str]:
        """Where an input lies today: a file, and its member where it is an archive. Raises ConfigError where it is gone."""
        name = str(self.sources[source]["path"])
        if stores.is_url(name):
            return hub.cached(name) or name, ""
        archive, _, member = name.partition("!") if self.corpus(source).archives else (name, "", "")
        for file, inside in ((name, ""), (archive, member)):
            for place in (Path(file).expanduser(), *(place / file for place in places.data_dirs())):
                if place.is_file():
                    return str(place), inside
        raise ConfigError(f"the input file {name!r} is gone, or lies elsewhere: call this in the folder of the run.")

    def changed(self, document: int) -> IntegrityError:
        """The error for a file that no longer holds what was prepared."""
        return IntegrityError(f"{self.where(document)}: the file no longer holds document {document}; it has changed since.")

    def read(self, documents: Sequence[int]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """Documents from their files, in the order of these: the number of each row's document, int64 `[rows]`, and the rows.

        The rows are those of the stage `load`: a long document comes in several. Raises IntegrityError where a file
        does not hold them any more.
        """
        chosen = np.asarray(documents, np.int64)
        chosen = chosen[np.lexsort((self.documents["start"][chosen], self.documents["source"][chosen]))]
        start, source = (self.documents[name][chosen] for name in ("start", "source"))
        fresh = np.ones(len(chosen), bool)  # what a mixture repeats is read once for each time
        fresh[1:] = (start[1:] != start[:-1]) | (source[1:] != source[:-1])
        place = np.arange(len(chosen))
        nth = place - np.maximum.accumulate(np.where(fresh, place, 0))
        for time in range(int(nth.max(initial=-1)) + 1):
            yield from self._read(chosen[nth == time])

    def _read(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """Documents as `read` gives them, each one once and in the order of their files."""
        start, end = (self.documents[name][chosen] for name in ("start", "end"))
        for begin, stop, part in self._parts(chosen):
            whole = np.zeros(stop - begin, bool)
            try:
                for batch in corpus.load(plan.Shard(0, (part,)), self.corpus(part.source), Counter()):
                    at = to_numpy(batch["start"])
                    number = np.searchsorted(start[begin:stop], at, "right") + begin - 1  # a piece begins within its document
                    known = np.flatnonzero((number >= begin) & (at < end[number]))
                    if len(known):
                        rows = batch if len(known) == len(batch) else batch.take(numbers(known))
                        number = number[known]
                        whole[number[flags(rows["ends"]) & (to_numpy(rows["end"]) == end[number])] - begin] = True
                        yield chosen[number], rows
            except InputError as error:  # it could be read when it was prepared
                raise self.changed(int(chosen[begin + int(whole.argmin())])) from error
            if not whole.all():
                raise self.changed(int(chosen[begin + int(whole.argmin())]))

    def _parts(self, chosen: np.ndarray) -> Iterator[tuple[int, int, plan.Part]]:
        """What is read of the files of documents that are in order: (the first of them, the one behind the last, where)."""
        start, end, source = (self.documents[name][chosen] for name in ("start", "end", "source"))
        for own in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(source)) + 1) if len(chosen) else ():
            number = int(source[own[0]])
            path, member = self.locate(number)
            stat, settings = places.file_stat(path), self.corpus(number)
            by_rows = plan.file_format(str(self.sources[number]["path"]), settings) == "parquet"
            anywhere = not member and not plan.packed(path) and (by_rows or sample.anywhere(settings, [path]))
            apart = own[1:][start[own[1:]] - end[own[:-1]] > GAP] if anywhere else []
            for begin, stop in itertools.pairwise([int(own[0]), *map(int, apart), int(own[-1]) + 1]):
                low, high = (int(start[begin]), int(end[stop - 1])) if anywhere else (0, stat[1])
                yield begin, stop, plan.Part(number, path, low, high, high - low, "", stat, member)

    def tokens(self, documents: Sequence[int]) -> Iterator[tuple[int, bytes, np.ndarray, np.ndarray]]:
        """Documents tokenized again: (document, some of its text, the IDs of that text, their edges), as `read` gives them.

        IDs are uint32 `[n]`; edges are int64 `[n, 2]`, the bytes in which each token lies, counted from the beginning
        of that piece of text. Nothing where a tokenizer cannot tell. Raises IntegrityError where the IDs are not those
        that the rows hold.
        """
        tok, (begin, end) = self.tokenizer, self.marks
        if tok.core.name == SLOW:
            return
        pieces = tokenizer.Pieces(tok)
        current, count = -1, 0
        for numbered, batch in self.read(documents):
            for row, ends in enumerate(flags(batch["ends"]).tolist()):
                if numbered[row] != current:
                    current, count = int(numbered[row]), int(begin)
                text = pieces.take(batch["text"].slice(row, 1), ends)
                for piece in tokenizer.cut_rows(text, tok.cut)[0] if tok.cut else text:
                    data = piece.as_buffer().to_pybytes()
                    ids, edges = self._edges(data)
                    if not self._holds(current, count, ids):
                        raise self.changed(current)
                    count += len(ids)
                    yield current, data, ids, edges
                if ends and count + end != self.documents["tokens"][current]:
                    raise self.changed(current)

    def _holds(self, document: int, first: int, ids: np.ndarray) -> bool:
        """Are these the IDs of a document from the `first` on, as far as rows hold them? Each is looked up in one row."""
        if first + len(ids) > self.documents["tokens"][document]:
            return False
        length, begin, before = self._cut(document)
        at, stop = begin + first, begin + first + len(ids)
        while at < stop and (rows := window.rows_at(self.window, length, at, stop)):
            nth = max(rows.start, window.rows_at(self.window, length, at, at + 1).stop - 1)  # that reaches furthest
            low, high = window.position(self.window, length, nth)
            at, end = max(at, low), min(stop, self._held(low, high))
            if at >= end:  # behind what its row holds
                break
            (row,) = self._stand(range(before + nth, before + nth + 1))
            held, wanted = self.ids(row)[at - low :], ids[at - begin - first : end - begin - first]
            shifts = range(self.special + 1)  # special tokens may stand before it
            if not any(np.array_equal(held[shift : shift + len(wanted)], wanted) for shift in shifts):
                return False
            at = end
        return True

    def _edges(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The IDs of a text and their edges.

        Tokens whose letters stand for bytes are as long as they are spelt, also where they cut a character; of any
        other the reference tells the characters.
        """
        encoding = self.tokenizer.core.tokenizer.encode(data.decode(), add_special_tokens=False)  # type: ignore[attr-defined]
        ids = np.array(encoding.ids, np.uint32)
        if self.spelt is not None and int(self.spelt[ids].sum()) == len(data):
            borders = adjoin(self.spelt[ids])
            return ids, np.stack([borders[:-1], borders[1:]], 1)
        characters = np.append(np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80), len(data))
        return ids, characters[np.array(encoding.offsets, np.int64).reshape(-1, 2)]

    def in_file(self, document: int, text: Span, words: bytes) -> Span | None:
        """Where in its file a range of a document's text stands as it is; None where it does not."""
        source = int(self.documents["source"][document])
        settings, (path, member) = self.corpus(source), self.locate(source)
        if settings.format != "text" or member or not sample.anywhere(settings, [path]):
            return None
        start = int(self.documents["start"][document]) + text[0]
        with places.open_file(path) as file:
            return (start, start + len(words)) if file.pread(len(words), start) == words else None


# -- from a row -------------------------------------------------------------------------------------------


def trace(dataset: Finished, row: int) -> list[Piece]:
    """The documents of a row, in order, with the bytes of each whose tokenization gave the row's IDs.

    The IDs of the pieces end to end are the row's: its `input_ids` and its last target. Padding, and the special
    tokens around a row (`window.special_tokens`), belong to no document. Raises ConfigError where there is no such
    row or a file is gone, IntegrityError where one has changed since.
    """
    first, stop = dataset.span(row)
    begin, end = dataset.marks
    wanted: dict[int, Span] = {}  # of each document, which of its IDs
    for document in dataset.between(first, stop):
        origin, length = (int(dataset.documents[name][document]) for name in ("first", "tokens"))
        span = (max(0, first - origin), min(stop - origin, length))
        if span[0] < span[1]:
            wanted[document] = span
    ids: dict[int, list[int]] = {document: [] for document in wanted}
    text: dict[int, Span] = {}
    words = dict.fromkeys(wanted, b"")
    awaited = set(wanted)
    current, count, at = -1, 0, 0  # of the document: itself, IDs and bytes that came before
    for document, data, tokens, edges in dataset.tokens(list(wanted)):
        if document != current:
            awaited.discard(current)
            current, count, at = document, int(begin), 0
        low, high = (min(max(0, place - count), len(tokens)) for place in wanted[document])
        if low < high:
            left, right = int(edges[low:high, 0].min()), int(edges[low:high, 1].max())
            text[document] = (text.get(document, (at + left, 0))[0], at + right)
            words[document] += data[left:right]
            ids[document] += tokens[low:high].tolist()
        if high < len(tokens) and awaited == {document}:  # what follows is not asked for
            break
        count, at = count + len(tokens), at + len(data)
    tok = dataset.tokenizer
    pieces = []
    for document, (low, high) in wanted.items():
        length = int(dataset.documents["tokens"][document])
        told = [*[tok.bos_id] * (begin and low == 0), *ids[document], *[tok.eos_id] * (end and high == length)]
        part = text.get(document)
        pieces.append(
            Piece(
                document=document,
                path=dataset.path(document),
                start=int(dataset.documents["start"][document]),
                end=int(dataset.documents["end"][document]),
                first=low,
                ids=[int(i or 0) for i in told],
                text=part,
                file=dataset.in_file(document, part, words[document]) if part else None,
                words=words[document].decode(errors="replace"),
            )
        )
    return pieces


def rows_of_step(
    folder: Path,
    step: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> list[int]:
    """The rows that `open_dataset(folder).loader(...)` gives a rank at a step, from 0, of an epoch."""
    from pipeline.dataset import open_dataset

    opened = open_dataset(folder, verify="sizes")
    return opened.loader(batch_size, seed, epoch=epoch, rank=rank, world_size=world_size, shuffle=shuffle).rows_at(step)


# -- to the rows ------------------------------------------------------------------------------------------


def find(dataset: Finished, phrase: str) -> Iterator[Place]:
    """Where a phrase stands in the documents, and the rows that hold it; at most FOUND places.

    All documents are read, and those that hold it once more. Raises ConfigError where it cannot be looked for or a file
    is gone, IntegrityError where one has changed since.
    """
    try:
        sought = phrase.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the phrase {phrase!r} is not UTF-8.") from error
    if not sought:
        raise ConfigError("the phrase is empty.")
    found: dict[int, list[Span]] = {}
    for document, span in itertools.islice(_matches(dataset, sought), FOUND):
        found.setdefault(document, []).append(span)
    yield from _places(dataset, found)


def find_file(dataset: Finished, path: str, at: int | None = None) -> Iterator[Place]:
    """The documents of a file and the rows that hold them, at most FOUND; or what lies at byte (Parquet: row) `at` of it.

    Raises ConfigError where the dataset was not made from such a file, or no document lies there; IntegrityError where
    it has changed since.
    """
    names = [source["path"] for source in dataset.sources]
    chosen = [i for i, name in enumerate(names) if path == name or Path(path).absolute() == Path(name).absolute()]
    if not chosen:
        near = difflib.get_close_matches(path, names, 3, 0.3)
        raise ConfigError(f"no input file is called {path!r}." + (f" Nearest: {', '.join(map(repr, near))}." if near else ""))
    columns = dataset.documents
    here = np.flatnonzero(np.isin(columns["source"], chosen))
    if at is None:
        yield from _places(dataset, {document: [] for document in here[:FOUND].tolist()})
        return
    last = int(columns["end"][here].max(initial=0))
    here = here[(columns["start"][here] <= at) & (at < columns["end"][here])]
    if not len(here):
        if not 0 <= at < last:
            raise ConfigError(f"{path!r}: {at} lies in no document; the last ends at {last}, counted from 0.")
        others = ", ".join(repr(str(dataset.folder.parent / split)) for split in dataset.other_splits)
        lies = f"in another split ({others}), a line's end" if others else "in a line's end"
        raise ConfigError(f"{path!r}: {at} lies in no document, but {lies}, a mark, or what was dropped.")
    inside = at - int(columns["start"][here[0]])
    with places.open_file(dataset.locate(chosen[0])[0]) as file:
        same = dataset.in_file(int(here[0]), (inside, inside + 1), file.pread(1, at))
    yield from _places(dataset, {int(here[0]): [(inside, inside + 1)] if same else []})


def _matches(dataset: Finished, phrase: bytes) -> Iterator[tuple[int, Span]]:
    """Every place of a phrase, as (document, range of its text)."""
    current, tail, at = -1, b"", 0  # of a document that goes on: itself, its last bytes, where they begin
    for numbered, batch in dataset.read(range(len(dataset.documents["first"]))):
        data, offsets = string_bytes(batch["text"])
        joined, ends = bytes(data), flags(batch["ends"])
        if int(numbered[0]) == current:  # then the batch is one row
            joined, offsets = tail + joined, np.array([0, len(tail) + len(joined)])
        else:
            tail, at = b"", 0
        place = joined.find(phrase)
        while place >= 0:
            row = int(np.searchsorted(offsets, place, "right")) - 1
            if place + len(phrase) <= offsets[row + 1]:
                left = place - int(offsets[row]) + at
                yield int(numbered[row]), (left, left + len(phrase))
            place = joined.find(phrase, place + 1)
        current = -1 if ends[-1] else int(numbered[-1])
        kept = min(len(joined), len(phrase) - 1)
        tail, at = joined[len(joined) - kept :], at + len(joined) - kept


def _places(dataset: Finished, wanted: dict[int, list[Span]]) -> Iterator[Place]:
    """Ranges of the text of documents, of one length and in order, or all of it where none is given, as places in the
    stream and in rows. Each document is read and tokenized once.
    """
    held: dict[tuple[int, Span], Span] = {}  # of each range, which of the IDs of its document
    current, count, at = -1, 0, 0
    for document, data, tokens, edges in dataset.tokens(list(wanted)):
        if document != current:
            current, count, at = document, int(dataset.marks[0]), 0
        spans = wanted[document]
        low = bisect_right(spans, at, key=lambda span: span[1])
        high = bisect_left(spans, at + len(data), key=lambda span: span[0])
        for span in spans[low:high]:
            hit = count + np.flatnonzero((edges[:, 0] + at < span[1]) & (edges[:, 1] + at > span[0]))
            if len(hit):
                held[document, span] = (held.get((document, span), hit)[0], int(hit[-1]) + 1)
        count, at = count + len(tokens), at + len(data)
    for document, spans in wanted.items():
        whole = (0, int(dataset.documents["tokens"][document]))
        if not spans:
            yield _place(dataset, document, None, whole)
        for span in spans:
            yield _place(dataset, document, span, held.get((document, span), whole))


def _place(dataset: Finished, document: int, text: Span | None, ids: Span) -> Place:
    """A range of a document's text, or all of it, and which of its IDs that is, as a place in the stream and in rows."""
    columns = dataset.documents
    first, (low, high) = int(columns["first"][document]), map(int, ids)
    rows = dataset.rows_of(document, low, high)
    if rows:  # a row is one stretch of the stream: it holds all where it holds both ends
        ends = [set(dataset.rows_of(document, place, place + 1)) for place in (low, high - 1)]
        rows = [row for row in rows if row in ends[0] and row in ends[1]] or rows
    return Place(
        document=document,
        path=dataset.path(document),
        start=int(columns["start"][document]),
        end=int(columns["end"][document]),
        text=text,
        positions=(first + low, first + high),
        rows=rows,
    )


def told_rows(rows: Sequence[int]) -> str:
    """Numbers of rows, in order, in words."""
    if len(rows) < 2 or rows[-1] - rows[0] + 1 == len(rows):
        return "no row" if not rows else f"row {rows[0]:,}" if len(rows) == 1 else f"rows {rows[0]:,} to {rows[-1]:,}"
    return f"rows {', '.join(f'{row:,}' for row in rows[:8])}" + (f" and {len(rows) - 8:,} more" if len(rows) > 8 else "")


def told(dataset: Finished, found: Piece | Place) -> str:
    """A piece or a place in words."""
    lines = [f"document {found.document:,}: {dataset.where(found.document)}"]
    if isinstance(found, Place):
        part = f"bytes {found.text[0]:,} to {found.text[1]:,} of its text, " if found.text else ""
        inside = told_rows(found.rows)
        lines.append(f"  {part}stream positions {found.positions[0]:,} to {found.positions[1]:,}, in {inside}")
        return "\n".join(lines)
    if not found.ids:
        return f"{lines[0]}\n  this tokenizer does not tell which bytes"
    many = f"IDs {found.first:,} to {found.first + len(found.ids) - 1:,}" if len(found.ids) > 1 else f"ID {found.first:,}"
    if found.text is None:
        return f"{lines[0]}\n  its {many}: a mark, no text"
    stands = f", {found.file[0]:,} to {found.file[1]:,} of the file" if found.file else ""
    lines += [f"  its {many}: bytes {found.text[0]:,} to {found.text[1]:,} of its text{stands}", f"  {found.words!r}"]
    return "\n".join(lines)
