"""Each stage as a step of the line: what it reads, and how its batches are made.

    corpus ─▶ load ─▶ tokenizer      trained kinds read what `load` wrote
    load ▶ tokenize ▶ encode         one phase over input shards, `make_ids`
    arrange                          where the stream is not all documents in their order, `make_streams`
    window                           one over window shards, `make_windows`
    embed                            one over the same, `make_vectors`

The small functions whose names begin with an underscore run in the engine's workers and are picklable.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import (
    arrange,
    batches,
    console,
    corpus,
    embedding,
    engine,
    keys,
    mixture,
    model,
    plan,
    rejects,
    selection,
    split,
    tokenizer,
    vocabulary,
    window,
)
from pipeline import config as configs
from pipeline.arrow import flags, numbers, read_batches, read_schema
from pipeline.cache import Entry
from pipeline.choosing import Chosen
from pipeline.errors import InputError
from pipeline.files import Json, expect_space, require_space
from pipeline.inputs import Input, expected_bytes, speaking_of, together
from pipeline.phase import Line, Made, Step, file_name
from pipeline.remote import Kept
from pipeline.stream import AnyStream, Stream

log = logging.getLogger(__name__)
PROOF_BYTES = 1 << 17  # of text on which a fast tokenizer is compared with the reference in every run that uses it
TABLES, DOCUMENTS_FILE = "embeddings.safetensors", "documents.arrow"
Result = tuple[Entry, Json]  # an entry that is whole, and its manifest
DOCUMENTS = pa.schema(
    [("source", pa.int32()), ("start", pa.int64()), ("end", pa.int64()), ("first", pa.int64()), ("tokens", pa.int64())]
)


# -- tokenizer: a step of its own, since the trained kinds must see the corpus first ----------------------


@dataclass(frozen=True)
class Ready:
    """A tokenizer that lies in the cache, and how it is to be run."""

    entry: Entry
    manifest: Json = field(hash=False, compare=False)
    backend: str
    special: str

    def open(self) -> tokenizer.Tokenizer:
        """The tokenizer itself; cheap when called again."""
        return tokenizer.open_tokenizer(self.entry.here(), self.backend, self.special)


def find_tokenizer(line: Line, config: configs.Config) -> Ready:
    """A tokenizer that need not see the corpus, in the cache."""
    entry = keys.tokenizer_entry(line.entry, config, None)
    return _ready(line, config, entry, lambda: tokenizer.find(config.tokenizer))


def train_tokenizer(
    line: Line, config: configs.Config, planned: plan.Plan, inputs: Sequence[Input], chosen: Chosen | None
) -> Ready:
    """A tokenizer trained on what `load` gives, in the cache; with splits, on the documents of the first, which is train."""
    loads = [own.load.entry for own in inputs]
    entry = keys.tokenizer_entry(line.entry, config, loads, chosen.entry if chosen else None)

    def texts() -> Iterator[pa.StringArray]:
        verdicts = chosen.verdicts() if chosen else None
        paths = [own.load.entry.file(file_name(shard.index)) for own in inputs for shard in own.planned.shards]
        for number, path in enumerate(paths):
            batches = read_batches(path)
            for batch in selection.pick(batches, verdicts[number]) if verdicts is not None else batches:
                engine.checkpoint()
                yield batch["text"]

    def train() -> dict[str, bytes]:
        with console.passes(planned.bytes) as progress:
            return tokenizer.train(config.tokenizer, texts, progress)

    if line.cached([entry]) is None:  # in an array all jobs do this, before one of them trains
        loaded = together(inputs, [own.fulfil()["ledger"] for own in inputs])
        corpus.require_documents(Counter(loaded["load"]), planned)
    return _ready(line, config, entry, train)


def _ready(line: Line, config: configs.Config, entry: Entry, make: Callable[[], dict[str, bytes]]) -> Ready:
    if (manifest := line.cached([entry])) is None:
        line.cache.require_writable()
        with line.lock(entry):
            if (manifest := line.cached([entry])) is None:
                started = time.perf_counter()
                receipts: Json = {}
                for name, data in make().items():
                    with entry.write(name) as file:
                        file.write(data)
                    receipts[name] = file.note
                manifest = entry.finish(list(receipts), list(receipts.values()), ledger={})
                line.tell(entry, manifest, time.perf_counter() - started)
    backend = tokenizer.backend(entry.here(), config.tokenizer.backend)
    ready = Ready(entry, manifest, backend, config.vocabulary.special_in_text)
    if line.reports[entry.stage].state != "cached":
        ready.open()  # a new tokenizer has no IDs yet: open it now, beside the hashing of the corpus
    return ready


# -- the stream of IDs ------------------------------------------------------------------------------------


class BackendDiffers(Exception):
    """The fast tokenizer gave other IDs than the reference on a sample of this corpus."""


def make_ids(own: Input, ready: Ready) -> Result:
    """Phase one. Returns the entry of the IDs and its manifest."""
    with speaking_of(own.name):
        return _make_ids(own, ready)


def _make_ids(own: Input, ready: Ready) -> Result:
    line, config, planned, load = own.line, own.config, own.planned, own.load
    if own.name:
        config = replace(config, vocabulary=vocabulary.of_part(config.vocabulary, ready.open()))
    tokenize = keys.tokenize_entry(line.entry, config, load.entry, ready.entry, ready.backend)
    encode = keys.encode_entry(line.entry, config, tokenize)
    if (manifest := line.cached([load.entry, tokenize, encode])) is not None:
        rejects.require_budget(Counter(manifest["ledger"]["load"]), config.corpus)
        return encode, manifest
    line.cache.require_writable()
    if config.corpus.metadata:  # it stands in what `load` wrote, and goes no further
        line.fulfil([load], list(planned.shards), planned.bytes, {})
    sources = tuple(source.path for source in planned.sources)
    asked = config.vocabulary.append_eos == "auto" and ready.open().eos_id is not None and not planned.sections
    several = asked and corpus.several_documents(planned.shards, config.corpus)
    marks = vocabulary.marks(config.vocabulary, ready.open(), several)
    if marks.eos_id is not None and config.vocabulary.append_eos == "auto":
        log.info("encode: %r ends each document (vocabulary.append_eos=auto)", ready.open().vocab[marks.eos_id].as_py())
    stored = sum(entry.stored() for entry in (load.entry, tokenize, encode))
    vocabulary_bytes = int(ready.open().vocab.nbytes) * len(planned.shards)  # which lies in each file of `tokenize`
    needed = expected_bytes(planned, config.tokenizer.kind, np.dtype(marks.dtype).itemsize) + vocabulary_bytes
    expect_space(line.cache.root, line.cache.held(needed - stored))
    steps = [
        load,
        Step(tokenize, partial(_tokenize, ready=ready, batch_size=config.engine.batch_size, sources=sources)),
        Step(encode, partial(_encode, marks=marks, sources=sources)),
    ]

    def documents(files: Json) -> Json:
        with encode.write(DOCUMENTS_FILE) as file:
            _write_documents(file, open_stream(encode, files, marks.dtype), load.entry, config.corpus.metadata)
        return {DOCUMENTS_FILE: file.note}

    with engine.beside() as aside:
        proof = None
        if ready.backend in ("gigatoken", "splintr") and tokenize.manifest() is None:
            proof = aside(_prove, ready, planned, config.corpus)

        def proven() -> None:
            if proof is not None:
                _judge(proof.result(), ready)

        manifest = line.fulfil(steps, list(planned.shards), planned.bytes, {}, None, documents, proven)
    rejects.require_budget(Counter(manifest["ledger"]["load"]), config.corpus)
    return encode, manifest


def _tokenize(
    source: Any, shard: Any, counts: "Counter[str]", ready: Ready, batch_size: int | None, sources: tuple[str, ...]
) -> Made:
    tok = ready.open()
    return tokenizer.schema(tok), tokenizer.tokenize(source, tok, counts, batch_size, sources)


def _encode(source: Any, shard: Any, counts: "Counter[str]", marks: vocabulary.Marks, sources: tuple[str, ...]) -> Made:
    return marks.schema, vocabulary.encode(source, marks, counts, sources)


def open_stream(encode: Entry, files: Json, dtype: str) -> Stream:
    """The stream over the files of an `encode` entry, by their receipts."""
    names = sorted(name for name in files if name != DOCUMENTS_FILE)
    return Stream([encode.file(name) for name in names], [files[name]["counts"].get("ids", 0) for name in names], dtype)


def _end_to_end(encoded: Sequence[tuple[Entry, Json]], ready: Ready, settings: configs.Vocabulary) -> Stream:
    """The streams of the parts of a mixture as one; of one corpus its own."""
    dtype = vocabulary.dtype(settings, ready.open().size).name
    streams = [open_stream(encode, files, dtype) for encode, files in encoded]
    if len(streams) == 1:
        return streams[0]
    return Stream([path for one in streams for path in one.paths], [n for one in streams for n in one.counts], dtype)


def _write_documents(file: Any, stream: Stream, load: Entry, metadata: list[str]) -> None:
    """Where each document came from, where its IDs lie in the stream, and what was carried along."""
    schema = pa.schema([*DOCUMENTS, *(pa.field(name, pa.string()) for name in metadata)]) if metadata else DOCUMENTS
    with pa.ipc.new_stream(file, schema) as writer:
        for shard, start in enumerate(stream.starts[:-1]):
            documents, lengths = stream.documents(shard), stream.document_lengths(shard)
            first = numbers(start + np.cumsum(lengths) - lengths)
            columns = [documents["source"], documents["start"], documents["end"], first, documents["tokens"]]
            low = 0
            for beside in _carried(load, shard, metadata) if metadata else ():
                here = [column.slice(low, len(beside)) for column in columns]
                writer.write_batch(pa.record_batch([*here, *beside.columns], schema=schema))
                low += len(beside)
            if not metadata:
                writer.write_batch(pa.record_batch(columns, schema=schema))


def _carried(load: Entry, shard: int, metadata: list[str]) -> Iterator[pa.RecordBatch]:
    """The metadata of a shard's documents, that of the last row of each, in batches of about WIDE bytes."""
    waiting: list[pa.RecordBatch] = []
    for batch in read_batches(load.file(file_name(shard))):
        waiting.append(batch.select(metadata).take(numbers(np.flatnonzero(flags(batch["ends"])))))
        if sum(one.nbytes for one in waiting) >= arrange.WIDE:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _prove(ready: Ready, planned: plan.Plan, settings: configs.Corpus) -> tokenizer.Proof:
    """Compare the fast tokenizer with the reference on text from up to four places of the corpus."""
    shards = planned.shards[:: max(1, len(planned.shards) // 4)][:4]
    pieces = []
    for shard in shards:
        first = next(iter(corpus.load(shard, settings, Counter())), None)
        if first is not None:
            pieces.append(batches.head(first["text"], PROOF_BYTES // len(shards)))
    if not pieces:
        return tokenizer.Proof(0, 0, 0, 0.0)
    return tokenizer.prove(ready.entry.here(), ready.backend, ready.special, pa.concat_arrays(pieces))


def _judge(proof: tokenizer.Proof, ready: Ready) -> None:
    if not proof.bytes:
        return
    if proof.differing:
        raise BackendDiffers(
            f"{ready.backend} gives other IDs than the reference in {proof.differing} of {proof.documents} documents"
        )
    log.info(
        "tokenize: %s gives the reference's IDs on %s of this corpus (%.2f s beside the work)",
        *(ready.backend, console.size(proof.bytes), proof.seconds),
    )


@dataclass(frozen=True)
class Ids:
    """The stream that windows are cut from: all that `encode` gave, or a split of it."""

    split: str  # "" where there are no splits
    entry: Entry  # what made it
    ledger: Json = field(hash=False, compare=False)
    stream: Callable[[], AnyStream]
    documents: tuple[PathLike[str], Json] = field(hash=False, compare=False)  # its table of documents, and the receipt
    mixture: Json = field(default_factory=dict, hash=False, compare=False)  # what each part of one gave: `mixture.facts`


def make_streams(
    line: Line,
    config: configs.Config,
    planned: plan.Plan,
    inputs: Sequence[Input],
    ready: Ready,
    encoded: Sequence[Result],
    chosen: Chosen | None,
) -> list[Ids]:
    """One stream for each split, or the only one. Raises InputError where one would be empty."""
    base = partial(_end_to_end, [(encode, made["files"]) for encode, made in encoded], ready, config.vocabulary)
    tables = [encode.file(DOCUMENTS_FILE) for encode, _ in encoded]
    before = together(inputs, [made["ledger"] for _, made in encoded])
    mixed = bool(config.corpus.parts)
    if chosen is None and config.split.shuffle != "documents" and not mixed:
        return [Ids("", encoded[0][0], before, base, (tables[0], encoded[0][1]["files"][DOCUMENTS_FILE]))]
    corpus.require_documents(Counter(before["load"]), planned)
    entry = keys.arrange_entry(line.entry, config, [encode for encode, _ in encoded], chosen.entry if chosen else None)
    names = split.names(config.split)
    if (manifest := line.cached([entry])) is None:
        with line.lock(entry):
            if (manifest := line.cached([entry])) is None:
                started = time.perf_counter()
                counted = [len(own.planned.sources) for own in inputs]
                ids_of = [made["ledger"]["encode"].get("ids", 0) for _, made in encoded]  # a part may be empty
                documents = arrange.read_documents(tables, counted, ids_of)
                metadata = arrange.Metadata(tables)
                verdicts = np.concatenate(chosen.verdicts()) if chosen else np.zeros(len(documents["source"]), np.int8)
                files: Json = {}
                train, facts = np.flatnonzero(verdicts == 0), {}
                if mixed:
                    train, draws = arrange.mix(documents, train, counted, config.corpus, config.split)
                    facts = {"mixture": mixture.facts(config.corpus, draws)}
                for number, name in enumerate(names or ("all",)):
                    own = np.flatnonzero(verdicts == number) if number else train
                    order = own if mixed and not number else arrange.order(own, config.split)
                    with entry.write(f"{name}.arrow") as file:
                        arrange.write(file, documents, metadata, order)
                    files[f"{name}.arrow"] = file.note
                counts = arrange.account(documents, verdicts, names, train if mixed else None)
                gaps = documents["tokens"][verdicts == split.GAP].tolist()
                ledger = before | (chosen.manifest["ledger"] if chosen else {}) | {"arrange": counts}
                manifest = entry.finish(list(files), list(files.values()), ledger=ledger, gaps=gaps, **facts)
                line.tell(entry, manifest, time.perf_counter() - started)
    arrange.require_documents(manifest["ledger"]["arrange"], names, config.split.by)
    if min(manifest["gaps"], default=config.window.context_length) < config.window.context_length:
        raise InputError(
            f"a gap between two splits holds {console.counted(min(manifest['gaps']), 'token')}, fewer than "
            f"window.context_length={config.window.context_length}: this tokenizer joins words. "
            "Set corpus.document=, or lower it."
        )

    def ids(name: str) -> Ids:
        own = f"{name or 'all'}.arrow"
        path, receipt = entry.file(own), manifest["files"][own]
        stream = partial(_arrangement, base, path)
        return Ids(name, entry, manifest["ledger"], stream, (path, receipt), manifest.get("mixture", {}))

    return [ids(name) for name in names or ("",)]


def _arrangement(base: Callable[[], Stream], path: PathLike[str]) -> arrange.Arrangement:
    return arrange.Arrangement(base(), path)


# -- windows and vectors ----------------------------------------------------------------------------------


def make_windows(line: Line, config: configs.Config, planned: plan.Plan, ready: Ready, ids: Ids) -> Result:
    """Phase two. Returns the entry of the windows of a stream and its manifest."""
    entry = keys.window_entry(line.entry, config, ids.entry, ids.split)
    if (cached := line.cached([entry])) is not None:
        return entry, cached
    corpus.require_documents(Counter(ids.ledger["load"]), planned)
    tok = ready.open()
    stream = ids.stream()
    sources = [source.path for source in planned.sources]
    settings, frame = unmarked(config.window, tok, ids.ledger["encode"])
    order = config.split.seed if config.split.shuffle == "windows" else None
    try:
        windows = window.plan(settings, stream.counts, stream.dtype, padding(tok), frame, stream, sources, order)
    except InputError as error:
        raise InputError(f"split {ids.split}: {error}" if ids.split else str(error)) from error
    require_space(line.cache.root, line.cache.held(windows.bytes - entry.stored()))
    step = Step(entry, partial(_window, stream=stream, windows=replace(windows, shards=())))  # each is an item by itself
    return entry, line.fulfil([step], list(windows.shards), windows.bytes, ids.ledger, windows.ledger)


def padding(tok: tokenizer.Tokenizer) -> int | None:
    """The ID that fills rows: of the pad token, or the end mark where there is none; None where there is neither."""
    return tok.eos_id if tok.pad_id is None else tok.pad_id


def unmarked(settings: configs.Window, tok: tokenizer.Tokenizer, marked: Json) -> tuple[configs.Window, window.Frame]:
    """The frame for `window.special_tokens`, less the end and begin marks that documents have from `encode` already."""
    before, after, typed = tok.frame
    if marked["eos"] and after[:1] == (tok.eos_id,):
        after = after[1:]
    if marked["bos"] and before[-1:] == (tok.bos_id,):
        before = before[:-1]
    if tok.frame[0] + tok.frame[1] and not before + after:  # the marks were all that the tokenizer adds
        settings = replace(settings, special_tokens=False)
    return settings, (before, after, typed)


def _window(
    source: Any,
    shard: window.WindowShard,
    counts: "Counter[str]",
    stream: AnyStream,
    windows: window.WindowPlan,
) -> Made:
    return window.schema(windows), window.chunk(stream, windows, shard)


def make_vectors(line: Line, config: configs.Config, ready: Ready, windows: Result, slots: int) -> Result:
    """Phase three: the tables, and the vectors where all `slots` of all splits fit. Returns the entry and its manifest."""
    settings, (rows, made) = config.embedding, windows
    written, said = embedding.decide(settings, slots)
    entry = keys.embed_entry(line.entry, config, rows, written)
    if (manifest := line.cached([entry])) is not None:
        return entry, manifest
    if not any(report.stage.startswith("embed") for report in line.reports.values()):  # once for all splits
        log.info("embed: %s", said)
    tables = embedding.tables(settings, ready.open().size, config.window.context_length)
    size = sum(table.nbytes for table in tables.values())
    cost = embedding.vector_bytes(made["ledger"]["window"]["slots"], embedding.embedding_dim(settings), settings.dtype)
    require_space(line.cache.root, line.cache.held(size + cost * written - entry.stored()))
    with line.turn(entry, TABLES):
        if (saved := entry.receipt(TABLES)) is None:
            with entry.write(TABLES) as file:
                embedding.save(tables, file)
            saved = file.note
    step = Step(entry, partial(_vectors, rows=rows, tables=entry.file(TABLES), settings=settings))
    items = [Shard(index) for index in range(len(made["files"]) * written)]
    return entry, line.fulfil([step], items, cost, made["ledger"], None, lambda files: {TABLES: saved})


@dataclass(frozen=True)
class Shard:
    """A window shard to embed."""

    index: int


def _vectors(
    source: Any, shard: Shard, counts: "Counter[str]", rows: Entry, tables: Path | Kept, settings: configs.Embedding
) -> Made:
    path, loaded = rows.file(file_name(shard.index)), _load_tables(tables)
    schema = embedding.schema(read_schema(path), loaded[model.TOKENS].shape[1], settings.dtype)
    return schema, embedding.embed(read_batches(path), loaded, settings)


@lru_cache(maxsize=1)
def _load_tables(path: Path | Kept) -> embedding.Tables:
    return embedding.load(Path(path))
