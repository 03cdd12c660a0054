"""What a run will give and cost, said before it is made: `python -m pipeline ... plan=true`.

    text    about 200,000,000 bytes (± 0.1 %) in about 21,650 documents (± 7.2 %)
    tokens  about 56,650,000 (± 1.4 %), from a sample of 7.85 MB
    rows    about 55,330 (± 1.4 %) of 1,024 tokens

A corpus of at most SAMPLE bytes is counted whole. Of a larger one blocks are drawn by bytes (`sample.py`) and tokenized
by the very tokenizer of the run. Where the cache holds the stream of IDs already, everything is known.

A tokenizer that is to be learned from the corpus does not exist yet: two are learned, from blocks of LEARN bytes each. For
text that it has not seen such a one gives more tokens than the real one will, and for text that it has seen fewer. The
estimate lies between the two, and its range holds both. How far a vocabulary will grow follows from what the two share,
by Heaps' law, V = K n^b (Heaps, "Information Retrieval", 1978, section 7.5), up to `tokenizer.vocab_size`.

**Bytes** follow from the counts: what the Arrow files of each stage hold for a document, an ID, a batch and a file.
**Seconds** follow from rates measured on the spot: loading and tokenizing some of the corpus, SHA-256, a nameless file
that is written, flushed and forgotten. On a busy machine they are those of a busy machine.
"""

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import (
    batches,
    console,
    embedding,
    engine,
    files,
    hub,
    keys,
    places,
    plan,
    sample,
    selection,
    split,
    steps,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.arrow import joined
from pipeline.cache import Cache, Entry
from pipeline.errors import ConfigError, InputError
from pipeline.files import Json, Stat
from pipeline.sample import Block, Guess, ratio

SAMPLE = 7_900_000  # bytes that are drawn; what is tokenized may be a little more
HASHED = 1 << 30  # bytes hashed at most, to know what the cache holds
PATIENCE = 4.0  # seconds of tokenizing after which what there is must do
GROUP = 1 << 18  # bytes of text that the tokenizer is given at a time
LEARN = 1 << 20  # bytes from which a tokenizer is learned for a look
LOOK = 4 << 20  # bytes by which the rate of loading is measured

# What an Arrow file holds, in bytes: of a document (offset, source, start, end, ends; and in documents.arrow), and around
# every batch and file.
ROW, DOCUMENT, BATCH, FILE = 24.125, 36, 340, 420
TASTE = 0.10  # of a corpus: the part that people set apart for validation


@dataclass
class Stage:
    """One stage of the run that is planned."""

    stage: str
    state: str  # cached | to do | unknown: the corpus is too large to be hashed for a look
    bytes: Guess


@dataclass
class Estimate:
    """What a run will give and cost."""

    size: int  # bytes of input files
    text: Guess  # bytes
    documents: Guess
    tokens: Guess  # the length of the stream: marks included
    rows: Guess
    context_length: int
    sampled: int  # bytes of text that were tokenized; 0: nothing had to be
    seconds: float
    free: int  # bytes, on the disk of the cache
    stages: list[Stage]
    notes: list[str] = field(default_factory=list)  # what will disappoint
    splits: dict[str, Guess] = field(default_factory=dict)  # rows of each, where there are splits

    @property
    def disk(self) -> Guess:
        """Bytes that the run will add to the cache."""
        return total([stage.bytes for stage in self.stages if stage.state != "cached"])


def total(guesses: list[Guess]) -> Guess:
    """The sum of guesses that err together."""
    return Guess(*(sum(getattr(guess, end) for guess in guesses) for end in ("value", "low", "high")))


@dataclass
class _Counts:
    """What is known of the stream and its rows."""

    text: Guess
    documents: Guess
    ids: Guess
    rows: Guess
    slots: Guess
    lost: Guess
    bytes: Guess  # of all rows
    sampled: int = 0
    seconds: float = 0.0  # of tokenizing `sampled` bytes
    training: float = 0.0  # of learning the tokenizer from the whole corpus, at most


@dataclass
class _Ready:
    """The tokenizer of the run, or one like it."""

    tok: tokenizer.Tokenizer
    backend: str
    entry: Entry | None  # None: it cannot be named yet
    bytes: int  # of its files
    size: int  # of its vocabulary, as it will be


def estimate(config: configs.Config, seed: int = 0) -> Estimate:
    """Look at a run before it is made; `seed` is that of the sample. Nothing is written but to a temporary folder.

    Raises what the run would raise of its configuration, and of what is read of its corpus.
    """
    configs.check(config)
    if config.corpus.parts:
        raise ConfigError("plan=true cannot look at a mixture yet: look at each part as a corpus of its own.")
    config = replace(config, corpus=hub.resolve(config.corpus)[0])
    cache = Cache(Path(config.cache.dir).absolute(), "none")
    found = places.find(config.corpus)
    most = 1 << 62 if config.corpus.archives else HASHED  # what an archive holds only a plan says
    planned = plan.look(config.corpus, found, cache, config.cache.trust_stat, engine.cores(), most)
    with tempfile.TemporaryDirectory(prefix="pipeline-plan-") as scratch:
        return _Look(config, seed, cache, found, planned, Path(scratch)).estimate()


class _Look:
    """One look at a run: what is known of it, and what follows."""

    def __init__(
        self, config: configs.Config, seed: int, cache: Cache, found: dict[str, Stat], planned: plan.Plan | None, scratch: Path
    ) -> None:
        self.config, self.seed, self.cache, self.planned, self.scratch = config, seed, cache, planned, scratch
        self.frame = sample.frame(config.corpus, found, planned)
        self.size = sum(stat[1] for stat in found.values())
        self.found = found
        # Where documents are chosen or shuffled, what follows is made per split, under keys that only the run can tell.
        self.chosen = selection.wanted(config.selection, config.split) or config.split.shuffle == "documents"
        self.files = sum(stat[1] > 0 for stat in found.values())
        self.notes: list[str] = []
        if not self.frame.units:
            raise InputError(f"read {len(found)} files, {self.size} bytes, 0 usable documents (reasons: empty files).")
        self.shards = len(planned.shards) if planned else max(1, round(self.frame.bytes / config.corpus.shard_bytes))
        self.load = keys.load_entry(self.name, config, planned.sha256) if planned else None

    def name(self, stage: str, **identity: Any) -> Entry:
        """An entry, not leased."""
        return self.cache.entry(stage, identity)

    def estimate(self) -> Estimate:
        """Everything."""
        config = self.config
        ready = self.known_tokenizer()
        encode = self.encoded(ready)
        manifest = encode.manifest() if encode else None
        if ready and encode and manifest:
            counts, blocks = self.from_cache(ready, encode, manifest), []
        else:
            blocks = self.blocks()
            ready, counts = self.from_sample(blocks, ready)
        stages = self.stages(ready, counts, encode)
        self.disappointments(ready, counts, blocks)
        made = Estimate(
            size=self.size,
            text=counts.text,
            documents=counts.documents,
            tokens=counts.ids,
            rows=counts.rows,
            context_length=config.window.context_length,
            sampled=counts.sampled,
            seconds=self.seconds(counts, stages),
            free=shutil.disk_usage(files.existing(self.cache.root)).free,
            stages=stages,
            notes=self.notes,
            splits=self.splits(counts),
        )
        if made.disk.high > made.free:
            self.notes.append(
                f"{console.size(made.free)} are free at {config.cache.dir!r}, the run may add {console.size(made.disk.high)}: "
                "free space, or set cache.dir=."
            )
        return made

    # -- the tokenizer

    def known_tokenizer(self) -> _Ready | None:
        """The tokenizer, where it need not be learned or was already."""
        settings = self.config.tokenizer
        if tokenizer.trained(settings):
            entry = keys.tokenizer_entry(self.name, self.config, self.load) if self.load and not self.chosen else None
            return self.opened(entry.folder, entry) if entry and entry.manifest() else None
        entry = keys.tokenizer_entry(self.name, self.config, None)
        if entry.manifest():
            return self.opened(entry.folder, entry)
        return self.opened(self.stored("found", tokenizer.find(settings)), entry)

    def stored(self, name: str, made: dict[str, bytes]) -> Path:
        """Files of a tokenizer in a folder."""
        folder = self.scratch / name
        folder.mkdir()
        for file, data in made.items():
            (folder / file).write_bytes(data)
        return folder

    def opened(self, folder: Path, entry: Entry | None) -> _Ready:
        """The tokenizer in a folder, run as the run will."""
        backend = tokenizer.backend(folder, self.config.tokenizer.backend)
        tok = tokenizer.read(folder, backend, self.config.vocabulary.special_in_text)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
        return _Ready(tok, backend, entry, size, tok.size)

    def encoded(self, ready: _Ready | None) -> Entry | None:
        """The entry of the stream, where it can be named."""
        if ready is None or ready.entry is None or self.load is None:
            return None
        tokenize = keys.tokenize_entry(self.name, self.config, self.load, ready.entry, ready.backend)
        return keys.encode_entry(self.name, self.config, tokenize)

    # -- counting

    def from_cache(self, ready: _Ready, encode: Entry, manifest: Json) -> _Counts:
        """What the cache knows."""
        ledger = manifest["ledger"]
        exact = {name: Guess.of(count) for name, count in {**ledger["load"], **ledger["encode"]}.items()}
        dtype = vocabulary.dtype(self.config.vocabulary, ready.tok.size)
        stream = steps.open_stream(encode, manifest["files"], dtype.name)
        settings, frame = steps.unmarked(self.config.window, ready.tok, ledger["encode"])
        lengths = np.concatenate([stream.document_lengths(shard) for shard in range(len(stream.counts))])
        self.lengths, self.cut = lengths.astype(float), (settings, dtype, self.framed(frame))
        rows, slots, lost, size = map(Guess.of, window.expect(*self.cut, lengths))
        return _Counts(exact["text_bytes"], exact["documents"], exact["ids"], rows, slots, lost, size)

    def framed(self, frame: window.Frame) -> window.Frame:
        """The special tokens around a row, where it gets any."""
        wanted = self.config.window.special_tokens
        return frame if self.config.window.mode == "document" and wanted is not False else ((), (), False)

    def blocks(self) -> list[Block]:
        """All of a small corpus as one block; of a larger one a sample."""
        if self.frame.bytes > SAMPLE or self.planned is None:
            return list(sample.draw(self.config.corpus, self.frame, SAMPLE, self.seed))
        whole = Block(self.frame.bytes)
        for shard in self.planned.shards:
            for _, _, text, _ in sample.documents(self.config.corpus, shard):
                whole.text.append(text)
                whole.begun.append(len(text))
        if not whole.text:
            raise InputError(f"read {self.files} files, {self.size} bytes, 0 usable documents.")
        return [whole]

    def from_sample(self, blocks: list[Block], ready: _Ready | None) -> tuple[_Ready, _Counts]:
        """What the blocks say of the whole."""
        training = 0.0
        if ready is not None:
            tokens, took = self.tokens(ready, blocks)
            blocks = blocks[: len(tokens)]
            versions = [tokens]
        else:
            ready, blocks, versions, took, training = self.from_learning(blocks)
        return ready, self.concluded(ready, blocks, versions, took, training)

    def from_learning(self, blocks: list[Block]) -> tuple[_Ready, list[Block], list[list[np.ndarray]], float, float]:
        """The same where the tokenizer is to be learned: from all of a small corpus, or by two that bound it."""
        read = sum(len(text) for block in blocks for text in block.text)
        started = time.perf_counter()
        if len(blocks) == 1:
            ready = self.learned(blocks, 0)
            tokens, took = self.tokens(ready, blocks)
            return ready, blocks, [tokens], took, time.perf_counter() - started
        apart = max(2, read // LEARN)
        seen = [blocks[half::apart] for half in (0, 1)]
        pair = [self.learned(part, half) for half, part in enumerate(seen)]
        training = (time.perf_counter() - started) / 2 * self.frame.bytes / max(1.0, seen[0][0].size * len(seen[0]))
        counts = [self.tokens(ready, blocks) for ready in pair]
        many = min(len(tokens) for tokens, _ in counts)
        own, other = (
            sum(float(counts[half ^ swap][0][place].sum()) for half in (0, 1) for place in range(half, many, apart))
            for swap in (0, 1)
        )
        fewer = own / max(1.0, other)
        unseen = [counts[int(place % apart == 0)][0][place] for place in range(many)]
        self.strange = 0.0  # what these two do not know the real one may
        names = [set(ready.tok.vocab.to_pylist()) for ready in pair]
        self.grow(pair[0], len(names[0]), len(names[0] | names[1]), sum(block.size for block in seen[0]))
        return pair[0], blocks[:many], [[each * fewer for each in unseen], unseen], counts[0][1], training

    def grow(self, ready: _Ready, one: int, both: int, read: float) -> None:
        """Say how large the vocabulary will be that has `one` entries after `read` bytes, and `both` after twice as many."""
        power = math.log2(max(1.0, both / max(1, one)))
        most = self.config.tokenizer.vocab_size or math.inf
        ready.size = round(min(max(most, one), one * (self.frame.bytes / max(1.0, read)) ** power))

    def learned(self, blocks: list[Block], number: int) -> _Ready:
        """A tokenizer learned from some blocks."""
        text = joined([text for block in blocks for text in block.text])
        made = tokenizer.train(self.config.tokenizer, lambda: iter([text]))
        return self.opened(self.stored(f"learned-{number}", made), None)

    def tokens(self, ready: _Ready, blocks: list[Block]) -> tuple[list[np.ndarray], float]:
        """Tokens of each piece of text of each block, and the seconds that it took; fewer blocks where it takes too long."""
        groups: list[list[Block]] = [[]]
        size = 0
        for block in blocks:
            if size > GROUP:
                groups.append([])
                size = 0
            groups[-1].append(block)
            size += sum(map(len, block.text))
        unknown = ready.tok.unk_id

        def count(group: list[Block]) -> tuple[list[np.ndarray], int]:
            ids, offsets = tokenizer.encode(ready.tok, joined([text for block in group for text in block.text]))
            each = np.split(np.diff(offsets), np.cumsum([len(block.text) for block in group])[:-1])
            return each, 0 if unknown is None else int(np.count_nonzero(ids == unknown))

        workers = configs.Engine("serial" if self.config.engine.kind == "serial" else "threads", self.config.engine.workers)
        started = time.perf_counter()
        made: list[np.ndarray] = []
        strange = 0
        for each, unknowns in engine.run(workers, count, groups):
            made += each
            strange += unknowns
            if time.perf_counter() - started > PATIENCE:
                break
        self.strange = strange / max(1, sum(int(part.sum()) for part in made))
        return made, time.perf_counter() - started

    def concluded(
        self, ready: _Ready, blocks: list[Block], versions: list[list[np.ndarray]], took: float, training: float
    ) -> _Counts:
        """Totals from blocks. `versions` are counts of tokens that bound the truth from both sides, or are it."""
        config, tok = self.config, ready.tok
        sizes = [block.size for block in blocks]
        part, whole = sum(sizes) / self.frame.bytes, self.frame.bytes

        def guess(counts: list[float]) -> Guess:
            return ratio(whole, sizes, counts, part)

        read = [float(sum(map(len, block.text))) for block in blocks]
        begun = [float(len(block.begun)) for block in blocks]
        by_file = self.frame.units[0].part is None and config.corpus.format == "text" and config.corpus.document == "file"
        documents = Guess.of(self.files) if by_file and part < 1 else guess(begun)
        marks = vocabulary.marks(config.vocabulary, tok, documents.value > 1.5)
        added = (marks.eos_id is not None) + (marks.bos_id is not None)
        bounds = [guess([float(each.sum()) for each in version]) for version in versions]
        tokens = between(bounds)
        ids = total([tokens, documents.times(added)])
        per_byte = sum(float(each.sum()) for version in versions for each in version) / max(1.0, sum(read)) / len(versions)
        dtype = vocabulary.dtype(config.vocabulary, ready.size)
        marked = {"eos": marks.eos_id is not None, "bos": marks.bos_id is not None}
        settings, frame = steps.unmarked(config.window, tok, marked)
        self.cut = (settings, dtype, self.framed(frame))

        def expected(lengths: np.ndarray) -> tuple[int, int, int, int]:
            return window.expect(*self.cut, lengths)

        if window.crosses(settings):
            ends = [expected(np.array([round(n)])) for n in (ids.value, ids.low, min(ids.high, 1e15))]
            rows, slots, lost, size = (Guess(*map(float, column)) for column in zip(*ends, strict=True))
        elif part >= 1:
            lengths = np.concatenate(versions[0]) + added
            rows, slots, lost, size = map(Guess.of, expected(lengths))
        elif by_file:
            lengths = np.array([round(unit.bytes * per_byte) + added for unit in self.frame.units])
            spread = ids.high / max(ids.value, 1)
            rows, slots, lost, size = (Guess(n, n / spread, n * spread) for n in expected(lengths))
        else:
            each = [expected(np.round(np.array(block.begun, float) * per_byte).astype(np.int64) + added) for block in blocks]
            rows, slots, lost, size = (guess([float(n) for n in column]) for column in zip(*each, strict=True))
        self.lengths = np.concatenate([np.array(block.begun, float) for block in blocks]) * per_byte + added
        return _Counts(guess(read), documents, ids, rows, slots, lost, size, int(sum(read)), took, training)

    def shares(self) -> dict[str, float]:
        """The part of the text that each split gets, as it is asked for."""
        settings = self.config.split
        names = split.names(settings)
        if settings.by == "content" or not names:
            return {name: split.fractions(settings)[name] for name in names}
        paths = list(self.found)
        sizes = np.array([stat[1] for stat in self.found.values()], float)
        owner = split.assign_files(places.shown(paths), settings)
        return {name: float(sizes[owner == number].sum() / sizes.sum()) for number, name in enumerate(names)}

    def splits(self, counts: _Counts) -> dict[str, Guess]:
        """Rows of each split. By content documents fall where they may: few of them, or a long one, move much."""
        made = {}
        lengths = self.lengths if len(self.lengths) else np.ones(1)
        documents = max(1.0, counts.documents.value * float(lengths.mean() ** 2 / (lengths**2).mean()))  # of equal weight
        for name, share in self.shares().items():
            by_chance = sample.NORMAL * math.sqrt(share * (1 - share) / documents) if self.config.split.by == "content" else 0.0
            ends = (share, max(0.0, share - by_chance), min(1.0, share + by_chance))
            ids = [
                guess * end
                for guess, end in zip((counts.ids.value, counts.ids.low, min(counts.ids.high, 1e15)), ends, strict=True)
            ]
            if window.crosses(self.cut[0]):
                made[name] = Guess(*(float(window.expect(*self.cut, np.array([round(n)]))[0]) for n in ids))
            else:
                made[name] = Guess(counts.rows.value * ends[0], counts.rows.low * ends[1], counts.rows.high * ends[2])
        return made

    # -- bytes and seconds

    def stages(self, ready: _Ready, counts: _Counts, encode: Entry | None) -> list[Stage]:
        """The entries of the run: what is there, and what each holds or will hold."""
        config, grown = self.config, ready.size / max(1, ready.tok.size)
        width = vocabulary.dtype(config.vocabulary, ready.size).itemsize
        blocks = self.shards * FILE + (self.shards + counts.text.value // batches.BLOCK) * BATCH
        rows = counts.documents.times(ROW, blocks)
        tokens = counts.ids.times(width)
        dictionary = self.shards * (ready.tok.vocab.nbytes * grown + FILE)
        around = math.ceil(counts.bytes.value / window.SHARD) * FILE + math.ceil(counts.bytes.value / window.BATCH / 2) * BATCH
        expected = {
            "load": total([counts.text, rows]),
            "tokenizer": Guess.of(ready.bytes * grown),
            "tokenize": total([tokens, rows, Guess.of(dictionary)]),
            "encode": total([tokens, rows, counts.documents.times(DOCUMENT, FILE + self.shards * BATCH)]),
            "window": counts.bytes.times(1, around),
        }
        entries: dict[str, Entry | None] = dict.fromkeys(expected)
        entries |= {"load": self.load, "tokenizer": ready.entry, "encode": encode}
        if encode and self.load and ready.entry:
            entries["tokenize"] = keys.tokenize_entry(self.name, config, self.load, ready.entry, ready.backend)
            entries["window"] = keys.window_entry(self.name, config, encode) if not self.chosen else None
        if config.embedding.kind != "none":
            written, said = embedding.decide(config.embedding, round(counts.slots.value))
            dim = embedding.embedding_dim(config.embedding)
            tables = 4 * dim * (ready.size + (config.embedding.positions != "none") * config.window.context_length)
            vectors = total([counts.slots.times(dim * np.dtype(config.embedding.dtype).itemsize), expected["window"]])
            expected["embed"] = vectors.times(float(written), tables)
            windows = entries["window"]
            entries["embed"] = keys.embed_entry(self.name, config, windows, written) if windows else None
            self.notes += [said] if config.embedding.vectors == "auto" and not written else []
        return [
            Stage(stage, self.state(entries[stage]), self.bytes(entries[stage], guess)) for stage, guess in expected.items()
        ]

    def state(self, entry: Entry | None) -> str:
        """Is it there?"""
        if self.load is None:
            return "unknown"
        return "cached" if entry and entry.manifest() else "to do"

    def bytes(self, entry: Entry | None, guess: Guess) -> Guess:
        """What it holds, or will hold."""
        manifest = entry.manifest() if entry else None
        return Guess.of(sum(note["bytes"] for note in manifest["files"].values())) if manifest else guess

    def seconds(self, counts: _Counts, stages: list[Stage]) -> float:
        """How long the run will take here: the work shared by all cores, then what must reach the disk."""
        todo = {stage.stage: stage.bytes.value for stage in stages if stage.state != "cached"}
        cores = engine.cores()
        sha = _sha_rate() * cores
        seconds = sum(todo.values()) / sha + counts.training
        if self.planned is None:
            seconds += self.size / sha
        if "tokenize" in todo:
            seconds += self.frame.bytes / (self.load_rate() * cores)
            seconds += counts.text.value * counts.seconds / max(1, counts.sampled)
        try:
            seconds += sum(todo.values()) / files.write_rate(files.existing(self.cache.root))
        except OSError as error:
            self.notes.append(f"{self.config.cache.dir!r} cannot be written ({error.strerror}): set cache.dir=.")
        return seconds

    def load_rate(self) -> float:
        """Bytes of the corpus a second that one core reads and parses."""
        unit = max(self.frame.units, key=lambda unit: unit.bytes)
        started = time.perf_counter()
        read = sample.head(self.config.corpus, unit, LOOK)
        return max(1, read) / (time.perf_counter() - started)

    # -- what will disappoint

    def disappointments(self, ready: _Ready, counts: _Counts, blocks: list[Block]) -> None:
        """Say what a person would rather know before."""
        w, ids, settings = self.config.window, counts.ids.value, self.config.tokenizer
        rows, length = round(counts.rows.value), self.config.window.context_length
        least, share = min(self.shares().items(), key=lambda item: item[1], default=("validation", TASTE))
        which = f"the {least} split of {100 * share:.3g} %" if self.shares() else f"a {100 * share:.3g} % validation split"
        if w.mode == "sliding" and window.crosses(w) and length >= ids * share >= 2:
            fits = 1 << int(math.log2(max(1, (ids - 1) * share)))
            made = console.counted(rows, "window")
            self.notes.append(
                f"{ids:,.0f} tokens make {made} of {length:,}; {which} would hold none: use window.context_length<={fits:,}."
            )
        elif not rows:
            self.notes.append("no row comes out of this: the run will end with an error that says why.")
        if self.shares() and self.config.split.by == "content" and counts.documents.value * share < 3:
            many = "is one document" if counts.documents.high == 1 else f"has {counts.documents.value:,.0f} documents"
            self.notes.append(f"the corpus {many}, and whole ones go to a split: set corpus.document=, or split by files.")
        if rows and counts.lost.value > 0.05 * ids and w.mode != "document":
            self.notes.append(
                f"{counts.lost.value / ids:.0%} of the tokens become no target: see window.tail and window.stride."
            )
        if blocks and w.mode == "document":
            room = length - sum(map(len, ready.tok.frame[:2])) if w.special_tokens is not False else length
            long = float((self.lengths > room).mean()) if len(self.lengths) else 0.0
            if long and not w.truncate:
                self.notes.append(
                    f"about {long:.1%} of the documents do not fit a row, which is an error: set window.truncate=true."
                )
        if counts.bytes.value > w.max_bytes:
            self.notes.append(f"the rows would take {console.size(counts.bytes.value)}, which window.max_bytes refuses.")
        if any(block.partial for block in blocks):
            self.notes.append("of a large file that must be read as a whole only the beginning was looked at: expect more.")
        if blocks and self.strange > 0.001:
            self.notes.append(f"{self.strange:.1%} of the tokens are unknown to this tokenizer.")
        if settings.kind == "pretrained" and counts.text.value < 2 * ids:
            self.notes.append(
                f"{counts.text.value / max(ids, 1):.1f} bytes a token: this tokenizer was made for other text than this."
            )
        asked = settings.vocab_size if tokenizer.trained(settings) and counts.documents.exact else None
        if asked and ready.tok.size < asked:
            self.notes.append(f"the text gives {ready.tok.size:,} tokens of tokenizer.vocab_size={asked:,}.")


def between(bounds: list[Guess]) -> Guess:
    """One guess from several that bound the truth."""
    value = sum(guess.value for guess in bounds) / len(bounds)
    return Guess(value, min(guess.low for guess in bounds), max(guess.high for guess in bounds))


def _sha_rate() -> float:
    """Bytes a second that one core hashes."""
    data = bytes(LOOK)
    started = time.perf_counter()
    hashlib.sha256(data).digest()
    return LOOK / (time.perf_counter() - started)


# -- telling it, and remembering it -----------------------------------------------------------------------


def tell(made: Estimate) -> None:
    """Say an estimate on stdout."""
    console.table(["stage", "state", "bytes"], [[s.stage, s.state, console.size(s.bytes.value)] for s in made.stages])
    source = f", from a sample of {console.size(made.sampled)}" if not made.tokens.exact else ""
    several = "" if made.documents.high == 1 else "s"
    lines = [
        f"  text    {made.text} bytes in {made.documents} document{several}",
        f"  tokens  {made.tokens}{source}",
        f"  rows    {made.rows} of {console.counted(made.context_length, 'token')}",
        f"  disk    {console.size(made.disk.value)} more, {console.size(made.free)} free",
        f"  time    about {_duration(made.seconds)} on this machine, as busy as it is",
        *(f"  note    {note}" for note in made.notes),
    ]
    if made.splits:
        lines[3:3] = [f"          {name}: {guess}" for name, guess in made.splits.items()]
    console.say("\n".join(map(console.printable, lines)))


def _duration(seconds: float) -> str:
    return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else console.duration(seconds)


def _note(root: Path, recorded: Json) -> Path:
    return root / "plans" / f"{files.digest(recorded)[:32]}.json"


def remember(made: Estimate, root: Path, recorded: Json) -> None:
    """Note in the cache at `root` what was said of a configuration, so that the run can be set beside it."""
    told = {
        "size": made.size,
        "sampled": made.sampled,
        "seconds": made.seconds,
        "disk": asdict(made.disk),
        **{name: asdict(getattr(made, name)) for name in ("text", "documents", "tokens", "rows")},
    }
    path = _note(root, recorded)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs the comparison
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        aside.write_bytes(files.seal({"plan": told}))
        os.replace(aside, path)


def recall(root: Path, recorded: Json, size: int) -> Json | None:
    """What was said of a configuration whose input had `size` bytes; None where nothing was, or of another input."""
    told = (files.unseal(_note(root, recorded)) or {}).get("plan")
    return told if isinstance(told, dict) and told.get("size") == size else None
