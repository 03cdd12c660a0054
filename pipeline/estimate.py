"""What a run will give and cost, said before it is made: `python -m pipeline ... plan=true`.

    text    about 200,000,000 bytes (± 0.1 %) in about 21,650 documents (± 7.2 %)
    tokens  about 56,650,000 (± 1.4 %), from a sample of 7.85 MB
    rows    about 55,330 (± 1.4 %) of 1,024 tokens

`counting.py` says what a corpus holds, or each part of a mixture. Every stage is named by the key that the run would give
it, so what the cache holds is known, and told exactly.

**Splits** get their share of the IDs: by content documents fall where they may, which widens the range; whole files and
pieces of one document count by the tokens that were found in them. **Mixtures** give of each part what its weight asks of
all. **Copies** that will be dropped are known of a corpus that is counted whole, and where the cache tells; else what is
left is said as a bound.
**Bytes** follow from the counts: what the Arrow files of each stage hold for a document, an ID, a batch and a file.
**Seconds** follow from rates measured on the spot: loading and tokenizing some of the corpus, fingerprints and verdicts
where they are asked for, SHA-256, a nameless file that is written, flushed and forgotten. On a busy machine they are those
of a busy machine.
"""

import contextlib
import hashlib
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import (
    batches,
    choosing,
    console,
    counting,
    embedding,
    engine,
    files,
    fingerprint,
    foretold,
    hub,
    keys,
    mixture,
    places,
    plan,
    sample,
    selection,
    split,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.arrow import adjoin, joined
from pipeline.cache import Cache, Entry
from pipeline.counting import Counted, Counts, Input, Ready, Rows, product, total
from pipeline.errors import ConfigError, PipelineError
from pipeline.files import Json
from pipeline.sample import Guess

HASHED = 1 << 30  # bytes hashed at most, to know what the cache holds
LOOK = 4 << 20  # bytes by which the rate of loading is measured, and in which a window is looked for

# What an Arrow file holds, in bytes: of a document (offset, source, start, end, ends; in documents.arrow; in a table of
# `arrange`; its verdict; in the table of copies), and around every batch and file.
ROW, DOCUMENT, PLACE, VERDICT, COPY, BATCH, FILE = 24.125, 36, 44, 1, 49, 340, 420
TASTE = 0.10  # of a corpus: the part that people set apart for validation
WIDE = 32  # bytes of text that a token surely has no more than, where few are looked for


@dataclass
class Stage:
    """One stage of the run that is planned."""

    stage: str
    state: str  # cached | to do | unknown: the corpus is too large to be hashed for a look
    bytes: Guess


@dataclass
class Stream:
    """What a split gives, or the whole dataset where there are none."""

    ids: Guess
    rows: Rows
    documents: Guess
    lengths: np.ndarray | None  # IDs of its documents, or of all of it where windows cross them; None where not known


@dataclass
class Estimate:
    """What a run will give and cost."""

    size: int  # bytes of input files, or of the members of archives
    text: Guess  # bytes
    documents: Guess
    tokens: Guess  # the length of the stream: marks included
    rows: Guess
    context_length: int
    growing: bool  # do rows differ in length, up to that?
    sampled: int  # bytes of text that were tokenized; 0: nothing had to be
    seconds: float
    free: int  # bytes, on the disk of the cache
    stages: list[Stage]
    notes: list[str] = field(default_factory=list)  # what will disappoint
    splits: dict[str, Stream] = field(default_factory=dict)  # what each gives, where there are splits
    mixture: Json = field(default_factory=dict)  # of each part its share `asked` and `expected`, `tokens` (a Guess), `times`

    @property
    def disk(self) -> Guess:
        """Bytes that the run will add to the cache."""
        return total([stage.bytes for stage in self.stages if stage.state != "cached"])

    @property
    def record(self) -> Json:
        """What a run is set beside."""
        told = {"size": self.size, "sampled": self.sampled, "seconds": self.seconds}
        guesses = {name: getattr(self, name) for name in foretold.GUESSES}
        return told | {name: asdict(replace(each, high=min(each.high, 1e15))) for name, each in guesses.items()}


def estimate(config: configs.Config, seed: int = 0) -> Estimate:
    """Look at a run before it is made; `seed` is that of the sample. Nothing is written but to a temporary folder.

    Raises what the run would raise of its configuration, and of what is read of its corpus.
    """
    configs.check(config)
    config = replace(config, corpus=hub.resolve(config.corpus)[0])
    cache = Cache(Path(config.cache.dir).absolute(), "none", config.cache.remote and config.cache.remote.rstrip("/"))
    with tempfile.TemporaryDirectory(prefix="pipeline-plan-") as scratch:
        return Look(config, cache, Path(scratch), seed).estimate()


def find_inputs(config: configs.Config, cache: Cache) -> list[Input]:
    """The corpus, or the parts of a mixture; nothing is read but what must be hashed."""
    inputs = []
    for name, corpus in (config.corpus.parts or {"": config.corpus}).items():
        found = places.find(corpus)
        most = 1 << 62 if corpus.archives else HASHED  # what an archive holds only a plan says
        cut = (None, 0) if name else (config.split, config.window.context_length)
        planned = plan.look(corpus, found, cache, config.cache.trust_stat, engine.cores(), most, *cut)
        one = Input(name, replace(config, corpus=corpus), found, planned, sample.frame(corpus, found, planned))
        if planned is not None:
            if not one.frame.units and not name:
                counting.require_documents(one)
            one.load = keys.load_entry(_named(cache), one.config, planned.sha256)
        inputs.append(one)
    return inputs


def _named(cache: Cache) -> keys.Name:
    """What names entries and leases none."""

    def name(stage: str, **identity: Any) -> Entry:
        return cache.entry(stage, identity)

    return name


class Look:
    """One look at a run: what is known of it, and what follows."""

    def __init__(self, config: configs.Config, cache: Cache, scratch: Path, seed: int = 0) -> None:
        self.config, self.cache, self.scratch, self.seed = config, cache, scratch, seed
        self.name = _named(cache)
        self.notes: list[str] = []
        self.drawn: dict[int, np.ndarray] = {}  # of inputs of a mixture: IDs of the documents that are trained on, in order
        self.inputs = find_inputs(config, cache)
        self.mixed = bool(config.corpus.parts)
        self.names = split.names(config.split) or ("",)
        self.known = all(one.load is not None for one in self.inputs)  # then every stage can be named
        self.loads = [one.load for one in self.inputs if one.load is not None]
        self.prints: list[Entry] = []
        self.chosen = self._chosen() if self.known and selection.wanted(config.selection, config.split) else None
        self.arrange: Entry | None = None
        self.copies: int | None = 0 if config.selection.duplicates == "none" else None  # None: not known yet

    def _chosen(self) -> Entry:
        """The entry of the verdicts on documents."""
        self.prints = [keys.fingerprint_entry(self.name, self.config, load) for load in self.loads]
        planned = plan.together([one.planned for one in self.inputs if one.planned is not None])
        files = choosing.splits_of_files(self.config.split, planned)
        return keys.selection_entry(self.name, self.config, self.prints, files)

    def estimate(self) -> Estimate:
        """Everything."""
        config, inputs = self.config, self.inputs
        ready = self.known_tokenizer()
        counted = self.count(ready)
        ready = counted.ready
        times = self.times()
        streams = {name: self.stream(name, times) for name in self.names}
        counts = [one.counts for one in inputs if one.counts is not None]
        stages = self.stages(ready, streams)
        self.disappointments(counted, streams)
        made = Estimate(
            size=sum(one.size for one in inputs),
            text=total([each.text for each in counts]),
            documents=total([each.documents for each in counts]),
            tokens=total([each.ids for each in counts]),
            rows=total([stream.rows.count for stream in streams.values()]),
            context_length=config.window.context_length,
            growing=config.window.mode == "prefix",
            sampled=counted.sampled,
            seconds=self.seconds(counted, stages),
            free=shutil.disk_usage(files.existing(self.cache.root)).free,
            stages=stages,
            notes=self.notes,
            splits=streams if self.names != ("",) else {},
            mixture=self.parts(times),
        )
        if made.disk.high > made.free:
            self.notes.append(
                f"{console.size(made.free)} are free at {config.cache.dir!r}, the run may add {console.size(made.disk.high)}: "
                "free space, or set cache.dir=."
            )
        return made

    # -- the tokenizer, and what is counted with it

    def known_tokenizer(self) -> Ready | None:
        """The tokenizer, where it need not be learned or was already; the IDs it gives are named."""
        trained = tokenizer.trained(self.config.tokenizer)
        if trained and not self.known:
            return None
        entry = keys.tokenizer_entry(self.name, self.config, *((self.loads, self.chosen) if trained else (None,)))
        if trained and not entry.manifest():
            return None
        found = entry.manifest()
        folder = entry.here() if found else counting.stored(self.scratch / "found", tokenizer.find(self.config.tokenizer))
        ready = counting.opened(self.config, folder, entry)
        for one in self.inputs:
            if one.load is not None:
                config = one.config
                if one.name:
                    config = replace(config, vocabulary=vocabulary.of_part(config.vocabulary, ready.tok))
                one.tokenize = keys.tokenize_entry(self.name, config, one.load, entry, ready.backend)
                one.encode = keys.encode_entry(self.name, config, one.tokenize)
        return ready

    def count(self, ready: Ready | None) -> Counted:
        """Know what each input holds: from the cache, or by counting."""
        fresh = []
        for one in self.inputs:
            manifest = one.encode.manifest() if one.encode else None
            if ready and manifest:
                counting.recall(ready, one, manifest)
            else:
                fresh.append(one)
        counting.draw(fresh, self.seed)
        self.judge()
        if not fresh and ready:
            return Counted(ready, 0, 0.0, 0.0, 0.0)
        return counting.count(self.config, ready, fresh, self.scratch)

    def judge(self) -> None:
        """Know the verdict on each document, where the cache tells it or the corpus is little."""
        if not selection.wanted(self.config.selection, self.config.split):
            return
        told = None
        if self.chosen and self.chosen.manifest():
            with contextlib.suppress(PipelineError, OSError):  # a damaged file is for the run to mend
                told = selection.read_verdicts(self.chosen.file(choosing.VERDICTS))
        if told is not None:
            counting.told(self.inputs, told)
            self.copies = sum(int(np.isin(verdicts, (selection.DUPLICATE, selection.NEAR)).sum()) for verdicts in told)
        elif all(one.little for one in self.inputs):
            self.copies = counting.judge(self.config, self.inputs, self.scratch)
        elif (planned := self.inputs[0].planned) and planned.sections:
            self.inputs[0].owners = np.array(planned.sections, np.int8)

    # -- splits and mixtures

    def lengths(self, one: Input, name: str) -> np.ndarray | None:
        """IDs of the documents of a split of an input, int64, in their order; None where they are not known."""
        counts, owners = one.counts, one.owners
        assert counts is not None
        judged = selection.wanted(self.config.selection, self.config.split)
        if not counts.every or (judged and (owners is None or len(owners) != len(counts.lengths))):
            return None
        lengths = np.round(counts.lengths).astype(np.int64)
        return lengths if owners is None else lengths[owners == self.names.index(name)]

    def shares(self, one: Input) -> dict[str, Guess]:
        """The part of the IDs of an input that each split gets."""
        settings, counts = self.config.split, one.counts
        assert counts is not None
        if not selection.wanted(self.config.selection, settings):
            return {"": Guess.of(1)}
        known = {name: self.lengths(one, name) for name in self.names}
        if all(own is not None for own in known.values()):
            return {
                name: Guess.of(float(own.sum()) / max(1.0, counts.ids.value)) for name, own in known.items() if own is not None
            }
        least = 1.0 if self.copies is not None else 0.0  # of what there is, where copies are dropped and none are known yet
        if self.names == ("",):
            return {"": Guess(1, least, 1)}
        if settings.by == "column":
            return {name: Guess(float(name == self.names[0]), 0, 1) for name in self.names}
        if strata := self.strata(one):
            return {name: product(share, Guess(1, least, 1)) for name, share in zip(self.names, strata, strict=True)}
        made = {}
        for name in self.names:
            share = split.fractions(settings)[name]
            chance = _chance(counts, share)
            made[name] = Guess(share, least * max(0.0, share - chance), min(1.0, share + chance))
        return made

    def strata(self, one: Input) -> list[Guess] | None:
        """The part of the IDs that each split gets where whole ranges of bytes are split, by the tokens of the blocks in its
        own; None where documents are.
        """
        settings, units = self.config.split, one.frame.units
        if settings.by == "files":
            of_path = dict(zip(one.found, split.assign_files(places.shown(list(one.found)), settings).tolist(), strict=True))
            owners = np.array([of_path[block.path] for block in one.blocks])
            sizes = [sum(unit.bytes for unit in units if of_path[unit.path] == nth) for nth in range(len(self.names))]
        elif one.owners is not None and one.planned and one.planned.sections:
            parts = [part for shard in one.planned.shards for part in shard.parts]
            begins = np.array([part.start for part in parts])
            owners = one.owners[np.searchsorted(begins, [block.start for block in one.blocks], "right") - 1]
            sizes = [sum(part.bytes for part, own in zip(parts, one.owners, strict=True) if own == nth)
                     for nth in range(len(self.names))]  # fmt: skip
        else:
            return None
        taken, read = np.array(one.taken), np.array([block.size for block in one.blocks])
        every = float(taken.sum()) / max(1.0, float(read.sum())) * one.frame.bytes
        made = []
        for nth, size in enumerate(sizes):
            own = owners == nth
            guess = sample.ratio(size, read[own], taken[own], min(1.0, float(read[own].sum()) / max(1, size)))
            if own.sum() < 2:  # too little was read of it to know better than by its bytes
                guess = Guess(size * every / one.frame.bytes, 0, every)
            made.append(guess.times(1 / max(1.0, every)))
        return [replace(each, high=min(1.0, each.high)) for each in made]

    def has(self) -> list[Guess]:
        """The IDs of each input that may be trained on."""
        return [product(one.counts.ids, self.shares(one)[self.names[0]]) for one in self.inputs if one.counts is not None]

    def times(self) -> list[float]:
        """How often the IDs of each input are used."""
        if not self.mixed:
            return [1.0]
        corpus, has = self.config.corpus, self.has()
        try:
            wanted = mixture.targets(corpus, [round(ids.value) for ids in has])
        except ConfigError as error:
            if all(ids.exact for ids in has):
                raise
            self.notes.append(str(error))
            wanted = mixture.targets(replace(corpus, tokens=None), [round(ids.value) for ids in has])
        for place, (one, part) in enumerate(zip(self.inputs, corpus.parts.values(), strict=True)):
            own = self.lengths(one, self.names[0])
            if own is not None and self.config.split.shuffle != "documents":  # then the very documents are known
                drawn = mixture.draw(np.arange(len(own)), own, wanted[place], part.max_repetitions)
                self.drawn[place], wanted[place] = own[drawn.order], drawn.used
        return [target / max(ids.value, 1) for target, ids in zip(wanted, has, strict=True)]

    def often(self, nth: int, times: float) -> Guess:
        """`times` of an input; where documents are drawn in a random order, which are left out at its end is not known."""
        one = self.inputs[nth]
        if not self.mixed or nth in self.drawn or one.counts is None:
            return Guess.of(times)
        chance = _chance(one.counts, times % 1, self.shares(one)[self.names[0]].value)
        return Guess(times, max(0.0, times - chance), times + chance)

    def parts(self, times: list[float]) -> Json:
        """Of each part of a mixture what was asked and what is expected."""
        if not self.mixed:
            return {}
        asked = {name: part.weight for name, part in self.config.corpus.parts.items()}
        used = {
            one.name: product(ids, self.often(nth, times[nth]))
            for nth, (one, ids) in enumerate(zip(self.inputs, self.has(), strict=True))
        }
        every = sum(ids.value for ids in used.values())
        return {
            name: {
                "asked": asked[name] / sum(asked.values()),
                "expected": used[name].value / max(every, 1),
                "tokens": used[name],
                "times": n,
            }
            for name, n in zip(asked, times, strict=True)
        }

    def stream(self, name: str, times: list[float]) -> Stream:
        """What a split gives: told by the cache, or the shares of all inputs."""
        train, ids, rows, documents = name == self.names[0], [], [], []
        known = [
            self.drawn.get(nth) if train and self.mixed else self.lengths(one, name) for nth, one in enumerate(self.inputs)
        ]
        cut = self.inputs[0].cut
        assert cut is not None
        for nth, one in enumerate(self.inputs):
            used = product(self.shares(one)[name], self.often(nth, times[nth]) if train else Guess.of(1))
            assert one.counts is not None
            ids.append(product(one.counts.ids, used))
            rows.append(one.counts.rows.times(used))
            documents.append(product(one.counts.documents, used))
        made = Stream(total(ids), Rows.together(rows), total(documents), None)
        if all(own is not None for own in known):
            every = np.concatenate([own for own in known if own is not None])
            made = Stream(
                Guess.of(int(every.sum())), Rows(*map(Guess.of, window.expect(*cut, every))), Guess.of(len(every)), every
            )
        elif window.crosses(cut[0]):
            made = replace(made, rows=counting.expected(cut, made.ids), lengths=np.array([made.ids.low]))
        if (entry := self.windows(name)) and (manifest := entry.manifest()):
            counts = Counter(manifest["ledger"]["window"])
            lost = sum(counts[kind] for kind in ("tail", "gap", "truncated"))
            size = sum(note["bytes"] for note in manifest["files"].values())
            told = [Guess.of(n) for n in (counts["tokens"], manifest["rows"], counts["slots"], lost, size)]
            made = replace(made, ids=told[0], rows=Rows(*told[1:]))
        return made

    # -- bytes and seconds

    def windows(self, name: str) -> Entry | None:
        """The entry of the rows of a split, where it can be named."""
        encoded = [one.encode for one in self.inputs if one.encode is not None]
        if len(encoded) < len(self.inputs):
            return None
        read = encoded[0]
        if self.arranged:
            read = self.arrange = keys.arrange_entry(self.name, self.config, encoded, self.chosen)
        return keys.window_entry(self.name, self.config, read, name)

    @property
    def arranged(self) -> bool:
        """Are documents picked or put in another order?"""
        config = self.config
        return self.mixed or selection.wanted(config.selection, config.split) or config.split.shuffle == "documents"

    def stages(self, ready: Ready, streams: dict[str, Stream]) -> list[Stage]:
        """The entries of the run in their order: what is there, and what each holds or will hold."""
        config = self.config
        width, grown = vocabulary.dtype(config.vocabulary, ready.size).itemsize, ready.size / max(1, ready.tok.size)
        made: list[tuple[str, Entry | None, Guess]] = []
        read: dict[str, list[tuple[str, Entry | None, Guess]]] = {
            stage: [] for stage in ("load", "fingerprint", "tokenize", "encode")
        }
        documents = total([one.counts.documents for one in self.inputs if one.counts is not None])
        for nth, one in enumerate(self.inputs):
            assert one.counts is not None
            label = f" {one.name}" if one.name else ""
            rows = one.counts.documents.times(
                ROW, one.shards * FILE + (one.shards + one.counts.text.value // batches.BLOCK) * BATCH
            )
            tokens = one.counts.ids.times(width)
            dictionary = Guess.of(one.shards * (ready.tok.vocab.nbytes * grown + FILE))
            listed = one.counts.documents.times(DOCUMENT, FILE + one.shards * BATCH)
            read["load"].append((f"load{label}", one.load, total([one.counts.text, rows])))
            read["tokenize"].append((f"tokenize{label}", one.tokenize, total([tokens, rows, dictionary])))
            read["encode"].append((f"encode{label}", one.encode, total([tokens, rows, listed])))
            if selection.wanted(config.selection, config.split):
                size = one.counts.documents.times(self.print_bytes(), one.shards * (FILE + BATCH))
                read["fingerprint"].append((f"fingerprint{label}", self.prints[nth] if self.prints else None, size))
        made += read["load"] + read["fingerprint"]
        if read["fingerprint"]:
            copies = Guess.of(self.copies) if self.copies is not None else product(documents, Guess(0, 0, 1))
            made.append(("selection", self.chosen, total([documents.times(VERDICT, FILE), copies.times(COPY, FILE)])))
        made.append(("tokenizer", ready.entry, Guess.of(ready.bytes * grown)))
        made += read["tokenize"] + read["encode"]
        rows_of = {name: self.windows(name) for name in streams}
        if self.arranged:
            used = total([stream.documents for stream in streams.values()])
            made.append(("arrange", self.arrange, used.times(PLACE, len(streams) * (FILE + BATCH))))
        expected = {}
        for name, stream in streams.items():
            much = stream.rows.bytes.value
            around = math.ceil(much / window.SHARD) * FILE + math.ceil(much / window.BATCH / 2) * BATCH
            expected[name] = stream.rows.bytes.times(1, around)
            made.append((f"window {name}".strip(), rows_of[name], expected[name]))
        if config.embedding.kind != "none":
            written, said = embedding.decide(
                config.embedding, round(sum(stream.rows.slots.value for stream in streams.values()))
            )
            dim = embedding.embedding_dim(config.embedding)
            tables = 4 * dim * (ready.size + (config.embedding.positions != "none") * config.window.context_length)
            for name, stream in streams.items():
                vectors = total([stream.rows.slots.times(dim * np.dtype(config.embedding.dtype).itemsize), expected[name]])
                above = rows_of[name]
                entry = keys.embed_entry(self.name, config, above, written) if above else None
                made.append((f"embed {name}".strip(), entry, vectors.times(float(written), tables)))
            self.notes += [said] if config.embedding.vectors == "auto" and not written else []
        return [Stage(stage, self.state(entry), self.bytes(entry, guess)) for stage, entry, guess in made]

    def print_bytes(self) -> float:
        """Of the fingerprint of a document."""
        near = selection.signed(self.config.selection, self.config.split)
        return 28 + 16 + 4 * self.config.selection.permutations * near + (self.config.split.by == "column")

    def state(self, entry: Entry | None) -> str:
        """Is it there?"""
        if not self.known:
            return "unknown"
        return "cached" if entry and entry.manifest() else "to do"

    def bytes(self, entry: Entry | None, guess: Guess) -> Guess:
        """What it holds, or will hold."""
        manifest = entry.manifest() if entry else None
        return Guess.of(sum(note["bytes"] for note in manifest["files"].values())) if manifest else guess

    def seconds(self, counted: Counted, stages: list[Stage]) -> float:
        """How long the run will take here: the work shared by all cores, then what must reach the disk."""
        todo = {stage.stage: stage.bytes.value for stage in stages if stage.state != "cached"}
        cores = engine.cores()
        sha = _sha_rate() * cores
        seconds = sum(todo.values()) / sha + counted.training
        for one in self.inputs:
            assert one.counts is not None
            if one.planned is None:
                seconds += one.size / sha
            if one.frame.units and f"tokenize {one.name}".strip() in todo:
                seconds += one.frame.bytes / (_load_rate(one) * cores)
                seconds += one.counts.text.value * counted.seconds / max(1, counted.sampled)
            if one.frame.units and "selection" in todo:
                prints, verdicts = self.judging(one)
                seconds += verdicts + (prints / cores if f"fingerprint {one.name}".strip() in todo else 0)
        try:
            seconds += sum(todo.values()) / files.write_rate(files.existing(self.cache.root))
        except OSError as error:
            self.notes.append(f"{self.config.cache.dir!r} cannot be written ({error.strerror}): set cache.dir=.")
        return seconds

    def judging(self, one: Input) -> tuple[float, float]:
        """Seconds that one core takes for the fingerprints of an input, and for the verdicts on its documents."""
        asked, held = self.config.selection, configs.Split(validation=TASTE, overlap=self.config.split.overlap)
        text, size = [], 0
        for block in one.blocks or sample.draw(one.config.corpus, one.frame, LOOK, self.seed):
            text += block.text
            if (size := sum(map(len, text))) > LOOK // 4:
                break
        edges, near = adjoin([*map(len, text)]), selection.signed(asked, self.config.split)
        batch, path = batches.make_batch(joined(text), 0, edges[:-1], edges[1:]), self.scratch / f"timed {one.name}"
        begun = time.perf_counter()
        with pa.ipc.new_stream(path, fingerprint.schema(asked, near, held)) as writer:
            for prints in fingerprint.fingerprint([batch], asked, near, held, Counter()):
                writer.write_batch(prints)
        printed = time.perf_counter()
        documents = selection.read([path])
        verdicts, _ = selection.decide(documents, split.assign(documents.hash[:, 0], held), asked)
        selection.overlap(documents, verdicts, held, asked.threshold)
        assert one.counts is not None
        scale = one.counts.text.value / max(1, size)
        return (printed - begun) * scale, (time.perf_counter() - printed) * scale

    # -- what will disappoint

    def disappointments(self, counted: Counted, streams: dict[str, Stream]) -> None:
        """Say what a person would rather know before."""
        w, settings, ready = self.config.window, self.config.tokenizer, counted.ready
        rows = [stream.rows for stream in streams.values()]
        ids, lost = sum(stream.ids.value for stream in streams.values()), sum(each.lost.value for each in rows)
        count, size = round(sum(each.count.value for each in rows)), sum(each.bytes.value for each in rows)
        counts = [one.counts for one in self.inputs if one.counts is not None]
        text, documents = (total([getattr(each, what) for each in counts]) for what in ("text", "documents"))
        blocks = [block for one in self.inputs for block in one.blocks]
        parts = {name: stream.ids.value / max(ids, 1) for name, stream in streams.items() if name}
        share = min(parts.values(), default=TASTE)
        if self.config.split.by == "column" and any(one.owners is None for one in self.inputs):
            self.notes.append("which documents are held out only their column tells: what each split gets is not foreseen.")
        else:
            self.rowless(ready, streams, ids, count)
        if w.mode == "document" and not w.truncate:
            self.too_long()
        whole = [one for one in self.inputs if not (one.planned and one.planned.sections)]
        if parts and self.config.split.by == "content" and whole and documents.value * share < 3:
            many = "is one document" if documents.high == 1 else f"has {documents.value:,.0f} documents"
            self.notes.append(f"the corpus {many}, and whole ones go to a split: set corpus.document=, or split by files.")
        if count and lost > 0.05 * ids and w.mode != "document":
            self.notes.append(f"{lost / ids:.0%} of the tokens become no target: see window.tail and window.stride.")
        if size > w.max_bytes:
            self.notes.append(f"the rows would take {console.size(size)}, which window.max_bytes refuses.")
        if self.copies is None:
            self.notes.append("copies will be dropped (selection.duplicates): how many is not foreseen.")
        self.notes += [f"{said}." for said in configs.idle(self.config)]
        if any(block.partial for block in blocks):
            self.notes.append("of a large file that must be read as a whole only the beginning was looked at: expect more.")
        strange = max(counted.strange, *(one.strange for one in self.inputs))
        if strange and self.config.vocabulary.on_unknown == "error":
            self.notes.append(
                f"{strange:.1%} of the tokens are unknown to this tokenizer: the run will end with an error; set "
                "vocabulary.on_unknown=map."
            )
        elif strange > 0.001:
            self.notes.append(f"{strange:.1%} of the tokens are unknown to this tokenizer.")
        tokens = sum(each.ids.value for each in counts)
        if settings.kind == "pretrained" and text.value < 2 * tokens:
            self.notes.append(
                f"{text.value / max(tokens, 1):.1f} bytes a token: this tokenizer was made for other text than this."
            )
        asked = settings.vocab_size if tokenizer.trained(settings) and documents.exact else None
        if asked and ready.tok.size < asked:
            self.notes.append(f"the text gives {ready.tok.size:,} tokens of tokenizer.vocab_size={asked:,}.")

    def rowless(self, ready: Ready, streams: dict[str, Stream], ids: float, count: int) -> None:
        """Say which splits hold no row, or would if there were any, and with which context length they do."""
        w, corpora = self.config.window, [one.counts.documents.value for one in self.inputs if one.counts is not None]
        unit = "window" if w.mode == "sliding" else "row"
        many = console.counted(count, unit) if count else f"no {unit}"
        made = f"{console.counted(round(ids), 'token')} make{'s' * (round(ids) == 1)} {many} of {w.context_length:,}"
        taste = np.array([ids * TASTE])
        if empty := {name: stream.rows.count for name, stream in streams.items() if stream.rows.count.value < 1}:
            which = f", none of them in {' and '.join(empty)}" if count else ""
            will = "will" if any(rows.high < 1 for rows in empty.values()) else "may"
            fits = self.fitting(ready, self.config.split, [stream.lengths for stream in streams.values()])
            advice = f"; use window.context_length<={fits}." if fits else "."
            self.notes.append(f"{made}{which}: the run {will} end with an error{advice}")
        elif self.names == ("",) and window.crosses(w) and ids * TASTE >= 2 and not self.rows_of(w.context_length, taste):
            fits = self.fitting(ready, configs.Split(validation=TASTE), [taste if sum(corpora) * TASTE >= 3 else None])
            advice = f": use window.context_length<={fits}." if fits else "."
            self.notes.append(f"{made}; a {100 * TASTE:.3g} % validation split would hold none{advice}")

    def rows_of(self, length: int, documents: np.ndarray) -> int:
        """The rows of documents of so many IDs, were this the context length."""
        assert self.inputs[0].cut is not None
        settings, dtype, frame = self.inputs[0].cut
        return window.expect(replace(settings, context_length=length), dtype, frame, np.round(documents).astype(np.int64))[0]

    def fitting(self, ready: Ready, splits: configs.Split, documents: Sequence[np.ndarray | None]) -> int | None:
        """The largest power of two below the context length with which every split holds a row; None where none is known to.

        `documents` are the IDs of the documents of each split, where its own do not depend on the context length.
        """
        w, one = self.config.window, self.inputs[0]
        if w.mode != "sliding":
            return None
        if not self.mixed and (path := plan.cut_document(one.config.corpus, one.found, splits)):
            with places.open_file(path) as file:

                def holds(begin: int, end: int, length: int) -> int:
                    most = min(end - begin, WIDE * (length + 1), LOOK)
                    data = file.pread(most, begin).decode(errors="ignore").encode()
                    return self.rows_of(length, np.array([len(tokenizer.encode(ready.tok, joined([data]))[0])]))

                fits = split.fitting(file, one.found[path][1], splits, w.context_length, holds)
        else:
            powers = (1 << bits for bits in range((w.context_length - 1).bit_length() - 1, -1, -1))
            fits = next((n for n in powers if all(own is not None and self.rows_of(n, own) for own in documents)), None)
        return fits if fits and (w.allow_gaps or fits >= (w.stride or 1)) else None

    def too_long(self) -> None:
        """Say how many documents do not fit a row."""
        long = every = 0
        for one in self.inputs:
            assert one.counts is not None and one.cut is not None
            settings, _, frame = one.cut
            room = settings.context_length - len(frame[0]) - len(frame[1])
            long, every = long + int((one.counts.lengths > room).sum()), every + len(one.counts.lengths)
        exact = all(one.counts is not None and one.counts.every for one in self.inputs)
        if long:
            many = f"{long:,} of {every:,}" if exact else f"about {100 * long / every:.1f} %"
            self.notes.append(
                f"documents that do not fit a row: {many}; the run will end with an error: set window.truncate=true."
            )


def _chance(counts: Counts, share: float, part: float = 1.0) -> float:
    """How far the IDs of a `share` of the documents, drawn from a `part` of them, may be from that share of the IDs."""
    lengths = counts.lengths if len(counts.lengths) else np.ones(1)
    documents = max(1.0, part * counts.documents.value * float(lengths.mean() ** 2 / (lengths**2).mean()))  # of equal weight
    return sample.NORMAL * math.sqrt(share * (1 - share) / documents)


def _load_rate(one: Input) -> float:
    """Bytes of the corpus a second, as its frame counts them, that one core reads and parses."""
    assert one.counts is not None
    unit = max(one.frame.units, key=lambda unit: unit.bytes)
    started = time.perf_counter()
    read = max(1, sample.head(one.config.corpus, unit, LOOK)) / (time.perf_counter() - started)
    return read if unit.part is None else read * one.frame.bytes / max(1.0, one.counts.text.value)


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
    several, most = "" if made.documents.high == 1 else "s", "up to " if made.growing else ""
    lines = [
        f"  text    {made.text} bytes in {made.documents} document{several}",
        f"  tokens  {made.tokens}{source}",
        f"  rows    {made.rows} of {most}{console.counted(made.context_length, 'token')}",
        f"  disk    {console.size(made.disk.value)} more, {console.size(made.free)} free",
        f"  time    about {_duration(made.seconds)} on this machine, as busy as it is",
        *(f"  note    {note}" for note in made.notes),
    ]
    width = max(map(len, [*made.splits, *made.mixture]), default=0)
    beneath = [f"          {name:<{width}}  {own.rows.count} from {own.ids} tokens" for name, own in made.splits.items()]
    beneath += [
        f"          {name:<{width}}  {part['tokens']} tokens, {part['expected']:.2%} ({part['asked']:.2%} asked), "
        f"{part['times']:.2f} times"
        for name, part in made.mixture.items()
    ]
    lines[3:3] = beneath
    console.say("\n".join(map(console.printable, lines)))


def _duration(seconds: float) -> str:
    return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else console.duration(seconds)
