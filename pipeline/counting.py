"""What a corpus holds, before a run: told by the cache, counted where it is small, concluded from a sample where it is not.

A corpus of at most SAMPLE bytes is counted whole. Of a larger one blocks are drawn by bytes (`sample.py`) and tokenized
by the very tokenizer of the run; of a mixture, from each part as many as its bytes are of all.

A tokenizer that is to be learned from the corpus does not exist yet: two are learned, from blocks of LEARN bytes each. For
text that it has not seen such a one gives more tokens than the real one will, and for text that it has seen fewer. The
estimate lies between the two, and its range holds both. How far a vocabulary will grow follows from what the two share,
by Heaps' law, V = K n^b (Heaps, "Information Retrieval", 1978, section 7.5), up to `tokenizer.vocab_size`.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import (
    choosing,
    cleaning,
    corpus,
    engine,
    fingerprint,
    plan,
    sample,
    selection,
    steps,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.arrow import joined
from pipeline.cache import Entry
from pipeline.files import Json, Stat
from pipeline.sample import Block, Frame, Guess, ratio

SAMPLE = 7_900_000  # bytes that are drawn; what is tokenized may be a little more
LEAST = 32  # blocks of each part of a mixture
PATIENCE = 4.0  # seconds of tokenizing after which what there is must do
GROUP = 1 << 18  # bytes of text that the tokenizer is given at a time
LEARN = 1 << 20  # bytes from which a tokenizer is learned for a look

Cut = tuple[configs.Window, "np.dtype[np.unsignedinteger]", window.Frame]  # how rows are cut: see `window.expect`


@dataclass
class Rows:
    """What a stream becomes."""

    count: Guess
    slots: Guess
    lost: Guess  # tokens that become no target
    bytes: Guess

    def times(self, factor: Guess) -> "Rows":
        """Of a part of the stream, or of more than all of it."""
        return Rows(*(product(getattr(self, each.name), factor) for each in fields(self)))

    @classmethod
    def together(cls, parts: Sequence["Rows"]) -> "Rows":
        """Of streams end to end."""
        return cls(*(total([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass
class Counts:
    """What is known of a corpus, or a part of a mixture, and of the rows that it would give alone."""

    text: Guess  # bytes
    documents: Guess
    ids: Guess  # marks included
    rows: Rows
    lengths: np.ndarray  # IDs of documents, int64 or float64: of all of them in order where `every`, else of some
    every: bool


@dataclass
class Ready:
    """The tokenizer of the run, or one like it."""

    tok: tokenizer.Tokenizer
    backend: str
    entry: Entry | None  # None: it cannot be named yet
    bytes: int  # of its files
    size: int  # of its vocabulary, as it will be


@dataclass
class Input:
    """A corpus, or a part of a mixture, as it is looked at."""

    name: str  # of the part, or ""
    config: configs.Config  # with the settings of the part as its corpus
    found: dict[str, Stat]
    planned: plan.Plan | None  # None: too large to be hashed for a look
    frame: Frame
    load: Entry | None = None
    tokenize: Entry | None = None  # where they can be named
    encode: Entry | None = None
    blocks: list[Block] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)  # tokens of each of them
    whole: bool = False  # is all of it in the one block?
    owners: np.ndarray | None = None  # the verdict on each document, int8, as `selection` will say it, where it is known
    counts: Counts | None = None
    cut: Cut | None = None
    strange: float = 0.0  # share of unknown tokens, where the cache tells

    @property
    def size(self) -> int:
        """Bytes of its files, or of the members of archives: what the run will say that it read."""
        sizes = [source.bytes for source in self.planned.sources] if self.planned else [stat[1] for stat in self.found.values()]
        return sum(sizes)

    @property
    def shards(self) -> int:
        """In which it is, or will be, cut."""
        return len(self.planned.shards) if self.planned else max(1, round(self.frame.bytes / self.config.corpus.shard_bytes))

    @property
    def little(self) -> bool:
        """Is it so small that all of it may be looked at?"""
        counted = self.whole or (self.counts is not None and self.counts.text.high <= SAMPLE)
        return self.planned is not None and self.frame.bytes <= SAMPLE and counted


@dataclass
class Counted:
    """What counting took and told besides."""

    ready: Ready
    sampled: int  # bytes of text that were tokenized
    seconds: float  # of tokenizing them
    training: float  # of learning the tokenizer from the whole corpus, at most
    strange: float  # share of unknown tokens


def total(guesses: Sequence[Guess]) -> Guess:
    """The sum of guesses that err together."""
    return Guess(*(sum(getattr(guess, end) for guess in guesses) for end in ("value", "low", "high")))


def product(a: Guess, b: Guess) -> Guess:
    """Of guesses of what is not negative."""
    return Guess(a.value * b.value, a.low * b.low, min(a.high, 1e15) * b.high)


def between(bounds: Sequence[Guess]) -> Guess:
    """One guess from several that bound the truth."""
    value = sum(guess.value for guess in bounds) / len(bounds)
    return Guess(value, min(guess.low for guess in bounds), max(guess.high for guess in bounds))


# -- tokenizers -------------------------------------------------------------------------------------------


def stored(folder: Path, made: dict[str, bytes]) -> Path:
    """Files of a tokenizer in a new folder."""
    folder.mkdir()
    for file, data in made.items():
        (folder / file).write_bytes(data)
    return folder


def opened(config: configs.Config, folder: Path, entry: Entry | None) -> Ready:
    """The tokenizer in a folder, run as the run will."""
    backend = tokenizer.backend(folder, config.tokenizer.backend)
    tok = tokenizer.read(folder, backend, config.vocabulary.special_in_text)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
    return Ready(tok, backend, entry, size, tok.size)


# -- counting ---------------------------------------------------------------------------------------------


def recall(ready: Ready, one: Input, manifest: Json) -> None:
    """What the cache knows, by the manifest of `encode`."""
    assert one.encode is not None
    ledger = {stage: Counter(counts) for stage, counts in manifest["ledger"].items()}  # an empty part of a mixture has none
    text, documents, ids = (Guess.of(counts[name]) for counts, name in (
        (ledger["load"], "text_bytes"), (ledger["load"], "documents"), (ledger["encode"], "ids")))  # fmt: skip
    dtype = vocabulary.dtype(one.config.vocabulary, ready.tok.size)
    stream = steps.open_stream(one.encode, manifest["files"], dtype.name)
    one.cut = _cut(one.config, ready, ledger["encode"], dtype)
    lengths = np.concatenate([np.empty(0, np.int64), *map(stream.document_lengths, range(len(stream.counts)))])
    rows = Rows(*map(Guess.of, window.expect(*one.cut, lengths)))
    one.counts = Counts(text, documents, ids, rows, lengths, True)
    one.strange = ledger["encode"]["unknown"] / max(1, ledger["encode"]["tokens"])


def _cut(config: configs.Config, ready: Ready, marked: Json, dtype: np.dtype) -> Cut:
    """How rows are cut, with the special tokens around each, where it gets any. Raises ConfigError as the run will."""
    tok = ready.tok
    settings, frame = steps.unmarked(config.window, tok, marked)
    return settings, dtype, window.checked_frame(settings, dtype, steps.padding(tok), frame)


def require_documents(one: Input) -> None:
    """Raise InputError as the run will, with the reasons, where a corpus that is planned holds no document."""
    assert one.planned is not None
    counts: Counter[str] = Counter()
    for shard in one.planned.shards:
        for _ in corpus.load(shard, one.config.corpus, counts):
            pass
    corpus.require_documents(counts, one.planned)


def draw(inputs: Sequence[Input], seed: int) -> None:
    """All of small corpora as one block each; of larger ones a sample. Raises InputError where one holds no document."""
    every = max(1, sum(one.frame.bytes for one in inputs))
    for one in inputs:
        budget = max(int(SAMPLE * one.frame.bytes / every), LEAST * sample.BLOCK if len(inputs) > 1 else 0)
        whole = _whole(one, min(budget, SAMPLE))
        one.whole = whole is not None
        one.blocks = [whole] if whole else list(sample.draw(one.config.corpus, one.frame, budget, seed))


def _whole(one: Input, most: int) -> Block | None:
    """All of an input; None where it holds more than `most` bytes, packed or not."""
    if one.planned is None or one.frame.bytes > most:
        return None
    whole, size = Block(one.frame.bytes), 0
    for shard in one.planned.shards:
        for _, _, text, _ in sample.documents(one.config.corpus, shard, most - size):
            whole.text.append(text)
            whole.begun.append(len(text))
            size += len(text)
        if size > most:
            return None
    if not whole.text and not one.name:  # the weights of a mixture have their own say
        require_documents(one)
    return whole


def judge(config: configs.Config, inputs: Sequence[Input], scratch: Path) -> int:
    """Know the verdict on each document of little corpora, as `selection` will say it; how many are copies of others."""
    near, before = config.selection.duplicates == "near", 0
    counts: Counter[str] = Counter()
    paths: list[tuple[Path, int]] = []
    planned = plan.together([one.planned for one in inputs if one.planned is not None])
    for one in inputs:
        assert one.planned is not None
        for shard in one.planned.shards:
            paths.append((scratch / f"fingerprint-{len(paths)}", before))
            loaded = corpus.load(shard, one.config.corpus, counts)
            with pa.ipc.new_stream(paths[-1][0], fingerprint.schema(config.selection, near, config.split)) as writer:
                for batch in fingerprint.fingerprint(loaded, config.selection, near, config.split, Counter()):
                    writer.write_batch(batch)
        before += len(one.planned.sources)
    documents = selection.read([path for path, _ in paths], [sources for _, sources in paths])
    files = choosing.splits_of_files(config.split, planned)
    splits = choosing.splits_of_documents(config.split, planned, documents, files, counts)
    verdicts, repeats = selection.decide(documents, splits, config.selection)
    told(inputs, np.split(verdicts, documents.shards[1:-1]))
    return int((repeats >= 0).sum())


def told(inputs: Sequence[Input], verdicts: Sequence[np.ndarray]) -> None:
    """Give each input the verdicts on its documents, from those of all shards."""
    shards, none = iter(verdicts), np.empty(0, np.int8)
    for one in inputs:
        assert one.planned is not None
        own = [next(shards, none) for _ in one.planned.shards]
        one.owners = np.concatenate([none, *own])


def count(config: configs.Config, ready: Ready | None, inputs: Sequence[Input], scratch: Path) -> Counted:
    """Tokenize the blocks of all inputs, and conclude from them what each holds; learn the tokenizer where there is none."""
    drawn = [(rank, one, block) for one in inputs for rank, block in enumerate(one.blocks)]
    drawn.sort(key=lambda each: (each[0] > 1, each[0] / len(each[1].blocks)))  # some of every part, should it take too long
    blocks, training = [block for _, _, block in drawn], 0.0
    if ready is None and all(one.whole for one in inputs):
        started = time.perf_counter()
        ready = _learned(config, [_train(one) for one in inputs], scratch / "learned")
        training = time.perf_counter() - started
    if ready is not None:
        tokens, took, strange = _tokens(config, ready, blocks)
        versions = [tokens]
    else:
        ready, versions, took, training = _between_two(config, blocks, sum(one.frame.bytes for one in inputs), scratch)
        strange = 0.0  # what these two do not know the real one may
    owners = [one for _, one, _ in drawn[: len(versions[0])]]
    for one in inputs:
        own = [place for place, owner in enumerate(owners) if owner is one]
        one.blocks = [blocks[place] for place in own]
        _conclude(ready, one, [[version[place] for place in own] for version in versions])
    sampled = sum(len(text) for block in blocks[: len(owners)] for text in block.text)
    return Counted(ready, sampled, took, training, strange)


def _train(one: Input) -> Block:
    """The documents of a whole input that a tokenizer may see: of those that are kept, those of the first split."""
    (block,) = one.blocks
    if one.owners is None:
        return block
    return Block(block.size, [text for text, owner in zip(block.text, one.owners.tolist(), strict=True) if owner == 0])


def _learned(config: configs.Config, blocks: Sequence[Block], folder: Path) -> Ready:
    """A tokenizer learned from some blocks."""
    text = joined([text for block in blocks for text in block.text])
    return opened(config, stored(folder, tokenizer.train(config.tokenizer, lambda: iter([text]))), None)


def _between_two(
    config: configs.Config, blocks: Sequence[Block], size: int, scratch: Path
) -> tuple[Ready, list[list[np.ndarray]], float, float]:
    """Two tokenizers like that of a corpus of `size` bytes: one of them, counts that bound the truth from both sides, the
    seconds of tokenizing and those of learning from the whole corpus.
    """
    read = sum(len(text) for block in blocks for text in block.text)
    started = time.perf_counter()
    apart = max(2, read // LEARN)
    seen = [blocks[half::apart] for half in (0, 1)]
    pair = [_learned(config, part, scratch / f"learned-{half}") for half, part in enumerate(seen)]
    learned = sum(block.size for block in seen[0])
    training = (time.perf_counter() - started) / 2 * size / max(1.0, learned)
    counts = [_tokens(config, ready, blocks) for ready in pair]
    many = min(len(tokens) for tokens, _, _ in counts)
    own, other = (
        sum(float(counts[half ^ swap][0][place].sum()) for half in (0, 1) for place in range(half, many, apart))
        for swap in (0, 1)
    )
    fewer = own / max(1.0, other)
    unseen = [counts[int(place % apart == 0)][0][place] for place in range(many)]
    names = [set(ready.tok.vocab.to_pylist()) for ready in pair]
    power = math.log2(max(1.0, len(names[0] | names[1]) / max(1, len(names[0]))))  # what twice the text brings
    most = max(config.tokenizer.vocab_size or math.inf, len(names[0]))
    pair[0].size = round(min(most, len(names[0]) * (size / max(1.0, learned)) ** power))
    return pair[0], [[each * fewer for each in unseen], unseen], counts[0][1], training


def _tokens(config: configs.Config, ready: Ready, blocks: Sequence[Block]) -> tuple[list[np.ndarray], float, float]:
    """Tokens of each piece of text of each block, the seconds that it took, and the share of unknown ones; fewer blocks
    where it takes too long.
    """
    groups: list[list[Block]] = [[]]
    size = 0
    for block in blocks:
        if size > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(block)
        size += sum(map(len, block.text))
    unknown = ready.tok.unk_id

    def encoded(group: list[Block]) -> tuple[list[np.ndarray], int]:
        ids, offsets = tokenizer.encode(ready.tok, joined([text for block in group for text in block.text]))
        each = np.split(np.diff(offsets), np.cumsum([len(block.text) for block in group])[:-1])
        return each, 0 if unknown is None else int(np.count_nonzero(ids == unknown))

    workers = configs.Engine("serial" if config.engine.kind == "serial" else "threads", config.engine.workers)
    started = time.perf_counter()
    made: list[np.ndarray] = []
    strange = 0
    for each, unknowns in engine.run(workers, encoded, groups):
        made += each
        strange += unknowns
        if time.perf_counter() - started > PATIENCE:
            break
    return made, time.perf_counter() - started, strange / max(1, sum(int(part.sum()) for part in made))


def _conclude(ready: Ready, one: Input, versions: list[list[np.ndarray]]) -> None:
    """Totals from blocks. `versions` are counts of tokens that bound the truth from both sides, or are it."""
    config, tok, blocks = one.config, ready.tok, one.blocks
    sizes = [block.size for block in blocks]
    part, whole = 1.0 if one.whole else min(sum(sizes) / one.frame.bytes, 1.0), one.frame.bytes

    def guess(counts: list[float]) -> Guess:
        return ratio(whole, sizes, counts, part)

    one.taken = [sum(float(version[place].sum()) for version in versions) / len(versions) for place in range(len(blocks))]
    read = [float(sum(map(len, block.text))) for block in blocks]
    begun = [float(len(block.begun)) for block in blocks]
    cut = bool(one.planned and one.planned.sections)
    by_file = (
        config.corpus.format == "text" and config.corpus.document == "file" and not cut and not cleaning.asked(config.corpus)
    )
    documents = Guess.of(len(one.frame.units)) if by_file and part < 1 else guess(begun)
    if cut and one.planned:
        documents = Guess.of(len(one.planned.sections))
    marks = vocabulary.marks(config.vocabulary, tok, (documents.value > 1.5 and not cut) or bool(one.name))
    added = (marks.eos_id is not None) + (marks.bos_id is not None)
    tokens = between([guess([float(each.sum()) for each in version]) for version in versions])
    ids = total([tokens, documents.times(added)])
    per_byte = sum(float(each.sum()) for version in versions for each in version) / max(1.0, sum(read)) / len(versions)
    marked = {"eos": marks.eos_id is not None, "bos": marks.bos_id is not None}
    one.cut = _cut(config, ready, marked, vocabulary.dtype(config.vocabulary, ready.size))
    lengths = np.concatenate([np.array(block.begun, float) for block in blocks]) * per_byte + added
    if part >= 1:
        lengths = np.concatenate(versions[0]) + added
    if window.crosses(one.cut[0]):
        rows = expected(one.cut, ids)
    elif part >= 1:
        rows = Rows(*map(Guess.of, window.expect(*one.cut, lengths)))
    elif by_file:
        each = np.array([round(unit.bytes * tokens.value / whole) + added for unit in one.frame.units])
        spread = ids.high / max(ids.value, 1)
        rows = Rows(*(Guess(n, n / spread, n * spread) for n in window.expect(*one.cut, each)))
    else:
        drawn = [np.round(np.array(block.begun, float) * per_byte).astype(np.int64) + added for block in blocks]
        columns = zip(*(window.expect(*one.cut, begin) for begin in drawn), strict=True)
        rows = Rows(*(guess([float(n) for n in column]) for column in columns))
    one.counts = Counts(guess(read), documents, ids, rows, lengths, part >= 1)


def expected(cut: Cut, ids: Guess) -> Rows:
    """The rows of a stream whose documents windows cross."""
    ends = [window.expect(*cut, np.array([round(n)])) for n in (ids.value, ids.low, min(ids.high, 1e15))]
    return Rows(*(Guess(*map(float, column)) for column in zip(*ends, strict=True)))
