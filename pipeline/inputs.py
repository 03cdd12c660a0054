"""What a run reads: a corpus, or the parts of a mixture, each with its plan and its stage `load`."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import pyarrow as pa

from pipeline import config as configs
from pipeline import corpus, engine, keys, plan, rejects
from pipeline.cache import Entry
from pipeline.errors import ConfigError, InputError
from pipeline.files import Json, expect_space
from pipeline.phase import Line, Made, Step, side_name

BYTES_PER_TOKEN = 4  # of English text and a learned vocabulary, for the estimate of what a run stores
LISTS = "rejects.jsonl"  # beside each file of `load`
Reject = Callable[[bytes], Any]


@dataclass(frozen=True)
class Input:
    """A corpus, or a part of a mixture: read, tokenized and encoded as if it were alone."""

    name: str  # of the part, or ""
    line: Line
    config: configs.Config  # with the settings of the part as its corpus
    planned: plan.Plan
    load: Step

    def fulfil(self, *steps: Step) -> Json:
        """The manifest of the last step over its shards, `load` being the first.

        For what must see the corpus before phase one, whose need of space is foretold here where nothing is stored yet.
        """
        if not self.load.entry.stored():
            needed = expected_bytes(self.planned, self.config.tokenizer.kind)
            expect_space(self.line.cache.root, self.line.cache.held(needed))
        with speaking_of(self.name):
            return self.line.fulfil([self.load, *steps], list(self.planned.shards), self.planned.bytes, {})


@contextlib.contextmanager
def speaking_of(part: str) -> Iterator[None]:
    """Errors name the settings of a part of a mixture as they are given: corpus.parts.a.encoding=, not corpus.encoding=."""
    try:
        yield
    except (ConfigError, InputError) as error:
        error.args = tuple(configs.of_part(part, said) for said in error.args)
        raise


def expected_bytes(planned: plan.Plan, kind: str, width: int = 2) -> int:
    """About how many bytes phase one stores: the text, and twice the IDs, of `width` bytes each."""
    return planned.bytes + 2 * width * (planned.bytes // (1 if kind in ("bytes", "chars") else BYTES_PER_TOKEN))


def find_inputs(line: Line, config: configs.Config) -> list[Input]:
    """The corpus, planned; or each part of a mixture, no document of which is cut for splits."""
    workers, trust = config.engine.workers or engine.cores(), config.cache.trust_stat
    shared = line.together
    if not config.corpus.parts:
        planned = plan.make(config.corpus, line.cache, trust, workers, config.split, config.window.context_length, shared)
        return [Input("", line, config, planned, _load_step(line, config, planned))]
    inputs = []
    for name, part in config.corpus.parts.items():
        own, settings = line.branch(name), replace(config, corpus=part)
        with speaking_of(name):
            planned = plan.make(part, line.cache, trust, workers, together=shared)
        inputs.append(Input(name, own, settings, planned, _load_step(own, settings, planned)))
    return inputs


def together(inputs: Sequence[Input], ledgers: Sequence[Json]) -> Json:
    """The sums of the ledgers of all parts by stage, and beside them those of each part; of one corpus its own."""
    if not inputs[0].name:
        return ledgers[0]
    total: dict[str, Counter[str]] = {}
    parts: Json = {}
    for one, ledger in zip(inputs, ledgers, strict=True):
        for stage, counts in ledger.items():
            total.setdefault(stage, Counter()).update(counts)
            parts[f"{stage} {one.name}"] = counts
    return {stage: dict(sorted(counts.items())) for stage, counts in total.items()} | parts


def _load_step(line: Line, config: configs.Config, planned: plan.Plan) -> Step:
    """Stage `load`."""
    entry = keys.load_entry(line.entry, config, planned.sha256)
    work = partial(_load, settings=config.corpus, rehash=not config.cache.trust_stat)
    if not rejects.listed(config.corpus):
        return Step(entry, work)
    return Step(entry, partial(_load_listing, work=work, entry=entry), LISTS)


def list_rejects(own: Input) -> dict[str, tuple[PathLike[str], Json]]:
    """The lists of rejects that hold any, by the name that they have in a dataset; computed again where they are gone."""
    if own.load.beside is None:
        return {}
    files, entry, label = own.fulfil()["files"], own.load.entry, f"{own.name}-" if own.name else ""
    lists = (name for name, note in files.items() if name.endswith(own.load.beside) and note["bytes"])
    return {f"rejects/{label}{name.removesuffix(LISTS)}jsonl": (entry.file(name), files[name]) for name in lists}


def _load(
    source: Any, shard: plan.Shard, counts: "Counter[str]", settings: configs.Corpus, rehash: bool, reject: Reject | None = None
) -> Made:
    return corpus.schema(settings), corpus.load(shard, settings, counts, rehash, reject)


def _load_listing(source: Any, shard: plan.Shard, counts: "Counter[str]", work: Callable[..., Made], entry: Entry) -> Made:
    def batches() -> Iterator[pa.RecordBatch]:
        with entry.write(side_name(shard.index, LISTS)) as file:
            yield from work(source, shard, counts, reject=file.write)[1]

    return work(source, shard, counts)[0], batches()
