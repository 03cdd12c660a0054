"""The configuration as a dataclass tree, and every check that needs nothing but the configuration.

One dataclass per conf group; YAML files under `conf/` only hold values. Hydra composes and types them
against this schema, `cli.py` turns the result into these plain objects, and nothing below it imports
Hydra.
"""

import codecs
import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import guard
from pipeline.errors import ConfigError

MIB = 1 << 20


@dataclass
class Corpus:
    """Where text comes from and what a document is. Stage `load`."""

    name: str = "corpus"  # of the output too, by its last part; hub: user/dataset, or a folder
    kind: str = "files"  # files | hub
    config: str | None = None  # hub: null is the only or the default one
    split: str = "train"  # hub
    revision: str | None = None  # hub: branch, tag or commit
    format: str = "text"  # text | jsonl | json | csv | tsv | parquet | arrow | warc | auto (by each file's name)
    paths: list[str] = field(default_factory=list)  # files, folders, globs, https://…#sha256=…, s3://…; a named asset
    url: str | None = None  # where a single named asset can be downloaded
    sha256: str | None = None  # its checksum, required with `url`
    max_download_bytes: int = 1 << 36  # refuse to fetch a longer file by https
    allow_private_hosts: bool = False  # may https:// lead to a private network?
    archives: bool = False  # read the members of zip and tar files
    max_decompressed_bytes: int | None = None  # of one compressed file; null: any, unless it grows 200 times
    document: str = "file"  # text only: file | line | paragraph
    text_column: str = "text"  # of records; a dot leads into nested ones
    template: str | None = None  # text from several columns instead: "{title}\n\n{text}"
    metadata: list[str] = field(default_factory=list)  # columns kept beside each document, as strings
    encoding: str = "utf-8"  # of all that is text: not of parquet and arrow
    errors: str = "strict"  # undecodable bytes: strict (a bad row) | replace (by U+FFFD)
    on_bad_row: str = "error"  # error | skip: count it and list it in rejects.jsonl
    max_bad_rows: int | None = 1000  # skip: more are an error; null: any number
    newlines: bool = False  # make \r\n and lone \r to \n
    unicode: str = "none"  # none | NFC | NFKC
    ftfy: bool = False  # repair mojibake; needs the extra `ftfy`
    min_characters: int | None = None  # shorter documents are dropped
    max_characters: int | None = None  # longer documents are dropped
    include: str | None = None  # regular expression: a document in which it is not found is dropped
    exclude: str | None = None  # regular expression: a document in which it is found is dropped
    list_dropped: bool = False  # list dropped documents in rejects.jsonl too
    shard_bytes: int = 16 * MIB  # planned size of one unit of work, in input bytes; of more than a TB they are larger
    max_document_bytes: int = 256 * MIB  # of what must be held in one: a line of JSON, a row, a document to repair
    parts: dict[str, Any] = field(default_factory=dict)  # a mixture of several: settings of each by name, see Part
    tokens: int | None = None  # of a mixture: how many to train on; null: as many as max_repetitions allow

    def __post_init__(self) -> None:
        self.parts = {name: part if isinstance(part, Part) else _part(name, part) for name, part in self.parts.items()}


@dataclass
class Part(Corpus):
    """A part of a mixture: a corpus with settings of its own, and how much of it is wanted."""

    weight: float = 1.0  # its share of the tokens, beside the weights of the others
    max_repetitions: float = 1.0  # how often it may be used


@dataclass
class Tokenizer:
    """How text becomes tokens. Stage `tokenize`."""

    kind: str = "bpe"  # bpe | wordpiece | unigram | words | chars | bytes | pretrained
    name: str | None = None  # pretrained: Hub name, folder, or tokenizer.json
    revision: str | None = None  # pretrained: branch, tag or commit
    vocab_size: int | None = 1024  # bpe, wordpiece, unigram: at most; words, chars: the most frequent, null for all
    min_frequency: int = 2  # trained kinds: rarer pairs or words stay out
    special_tokens: list[str] = field(default_factory=list)  # trained kinds: take the first IDs
    eos_token: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    cls_token: str | None = None
    sep_token: str | None = None
    lowercase: bool = False
    pattern: str | None = None  # words: regular expression of the tokens that stand alone
    order: str = "appearance"  # words, chars: appearance | alphabetical | frequency
    sample_bytes: int | None = None  # trained kinds: train on a sample of about this many bytes
    seed: int = 0  # trained kinds: of the sample
    backend: str = "auto"  # auto | hf | gigatoken | splintr


@dataclass
class Vocabulary:
    """How tokens become the stream of IDs. Stage `encode`."""

    append_eos: str = "auto"  # auto | true | false
    prepend_bos: bool = False
    on_unknown: str = "map"  # map | error
    special_in_text: str = "text"  # text | token | error
    dtype: str = "auto"  # auto | uint8 | uint16 | uint32

    def __post_init__(self) -> None:
        self.append_eos = self.append_eos.lower()  # YAML's true arrives as "True"


@dataclass
class Selection:
    """Which documents are kept. Stages `fingerprint` and `selection`."""

    duplicates: str = "none"  # drop copies of earlier documents: none | exact | near
    threshold: float = 0.8  # of near duplicates: the share of word n-grams that two documents have in common
    ngram: int = 5  # words
    permutations: int = 128  # places of a signature: more are more exact, and slower


@dataclass
class Split:
    """Which documents are for training and which are held out, and their order. Stages `selection` and `arrange`."""

    train: float | None = None  # shares of the documents; null: what the others leave
    validation: float | None = None
    test: float | None = None
    by: str = "content"  # content | files | column
    column: str | None = None  # by=column: one of corpus.metadata
    validation_files: list[str] = field(default_factory=list)  # by=files: patterns
    test_files: list[str] = field(default_factory=list)
    validation_values: list[Any] = field(default_factory=list)  # by=column: what stands in it, null for what is missing
    test_values: list[Any] = field(default_factory=list)
    seed: int = 0  # of the shares and of the shuffle
    shuffle: str = "none"  # none | documents | windows
    overlap: str = "near"  # copies across splits are counted: near | exact | none
    max_overlap: float | None = None  # fail where a greater share of a held-out split are copies; null: never

    def __post_init__(self) -> None:
        self.validation_values, self.test_values = map(_as_metadata, (self.validation_values, self.test_values))


def _as_metadata(values: list[Any]) -> list[str]:
    """What YAML takes for numbers, true, false and null as the words that metadata has for them.

    >>> _as_metadata(["True", True, None, 3])
    ['True', 'true', '', '3']
    """
    return [str(value).lower() if isinstance(value, bool) else "" if value is None else str(value) for value in values]


@dataclass
class Window:
    """How the stream of IDs becomes rows. Stage `window`."""

    mode: str = "sliding"  # sliding | prefix | document
    context_length: int = 256
    stride: int | None = None  # sliding: null means context_length
    tail: str = "drop"  # sliding: drop | pad
    cross_documents: bool = True  # sliding: may a window span two documents?
    allow_gaps: bool = False  # sliding: may stride exceed context_length?
    truncate: bool = False  # document: may a longer document be cut?
    special_tokens: bool | None = None  # document: add the tokenizer's own, such as [CLS]; null: where it has any
    max_bytes: int = 1 << 40  # refuse to write more


@dataclass
class Embedding:
    """How IDs become vectors. Stage `embed`."""

    kind: str = "random"  # random | pretrained | none
    embedding_dim: int | None = 64  # pretrained: null is the table's own
    seed: int = 0
    positions: str = "learned"  # learned | sinusoidal | none
    dtype: str = "float32"  # float32 | float16
    vectors: str = "auto"  # auto | always | never
    max_bytes: int = 64 * MIB  # auto: write the vectors where they fit
    device: str = "cpu"  # cpu | cuda
    name: str | None = None  # pretrained: folder or Hub name
    revision: str | None = None
    tensor: str | None = None  # pretrained: name of the input-embedding tensor, where we cannot tell


@dataclass
class Engine:
    """Who does the work. Never changes a byte of output."""

    kind: str = "threads"  # serial | threads | processes | ray | array
    workers: int | None = None  # null: one more than there are cores; ray: as many as the cluster has room for
    batch_size: int | None = None  # documents per tokenizer call; null: a block at a time
    id: str | None = None  # array: what its jobs have in common, and no other array
    index: int | None = None  # array: which of its jobs this is
    count: int | None = None  # array: how many there are, at most
    patience: float = 120.0  # array: seconds without a sign of life until a job on another machine counts as dead
    address: str = "auto"  # ray: auto (the cluster that this machine is a node of) | local (one of our own) | host:port
    cpus: float = 1.0  # ray: cores that a task asks for
    memory: int | None = None  # ray: bytes that a task asks for


@dataclass
class Cache:
    """Where finished stages are kept."""

    dir: str = "data/cache"
    remote: str | None = None  # s3://bucket/cache: the same in a store, for machines that share nothing else
    scratch_bytes: int | None = None  # with remote: how much of it may lie in dir; null: any
    trust_stat: bool = True  # believe size, mtime and ctime that a source file is unchanged


@dataclass
class Output:
    """Where the finished dataset goes."""

    dir: str | None = None  # null: outputs/<name>; or s3://bucket/name
    report: bool = True  # write report.html beside the dataset, for a person


@dataclass
class Config:
    """The whole configuration of a run."""

    name: str | None = None  # of the output; null: the corpus's
    plan: bool = False  # only say what the run would give and cost
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    selection: Selection = field(default_factory=Selection)
    split: Split = field(default_factory=Split)
    window: Window = field(default_factory=Window)
    embedding: Embedding = field(default_factory=Embedding)
    engine: Engine = field(default_factory=Engine)
    cache: Cache = field(default_factory=Cache)
    output: Output = field(default_factory=Output)


CHOICES = {
    "corpus.kind": ("files", "hub"),
    "corpus.format": ("text", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "warc", "auto"),
    "corpus.document": ("file", "line", "paragraph"),
    "corpus.errors": ("strict", "replace"),
    "corpus.on_bad_row": ("error", "skip"),
    "corpus.unicode": ("none", "NFC", "NFKC"),
    "tokenizer.kind": ("bpe", "wordpiece", "unigram", "words", "chars", "bytes", "pretrained"),
    "tokenizer.order": ("appearance", "alphabetical", "frequency"),
    "tokenizer.backend": ("auto", "hf", "gigatoken", "splintr"),
    "vocabulary.append_eos": ("auto", "true", "false"),
    "vocabulary.on_unknown": ("map", "error"),
    "vocabulary.special_in_text": ("text", "token", "error"),
    "vocabulary.dtype": ("auto", "uint8", "uint16", "uint32"),
    "selection.duplicates": ("none", "exact", "near"),
    "split.by": ("content", "files", "column"),
    "split.shuffle": ("none", "documents", "windows"),
    "split.overlap": ("near", "exact", "none"),
    "window.mode": ("sliding", "prefix", "document"),
    "window.tail": ("drop", "pad"),
    "embedding.kind": ("random", "pretrained", "none"),
    "embedding.positions": ("learned", "sinusoidal", "none"),
    "embedding.dtype": ("float32", "float16"),
    "embedding.vectors": ("auto", "always", "never"),
    "embedding.device": ("cpu", "cuda"),
    "engine.kind": ("serial", "threads", "processes", "ray", "array"),
}
LEARNED = ("bpe", "wordpiece", "unigram", "words", "chars")
MEANT_FOR = (  # for which values alone of another setting a group's settings mean anything
    ("corpus.format", ("text", "auto"), "document"),
    ("corpus.format", ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "auto"), "text_column template"),
    ("corpus.kind", ("hub",), "config revision"),
    ("tokenizer.kind", LEARNED, "vocab_size min_frequency lowercase sample_bytes seed"),
    ("tokenizer.kind", (*LEARNED, "bytes"), "special_tokens"),
    ("tokenizer.kind", ("words",), "pattern"),
    ("tokenizer.kind", ("words", "chars"), "order"),
    ("tokenizer.kind", ("pretrained",), "revision"),
    ("window.mode", ("sliding",), "stride tail cross_documents allow_gaps"),
    ("window.mode", ("document",), "truncate"),
    ("embedding.kind", ("random",), "seed"),
    ("embedding.kind", ("pretrained",), "revision tensor"),
    ("embedding.kind", ("random", "pretrained"), "embedding_dim positions dtype"),
    ("engine.kind", ("ray",), "address cpus memory"),
    ("engine.kind", ("array",), "patience"),
)
RANGES: dict[str, tuple[float, float]] = {  # inclusive; the upper ends only keep sizes below what a 64-bit count can hold
    "corpus.shard_bytes": (1, 1 << 40),
    "corpus.max_document_bytes": (1, 1 << 30),
    "corpus.max_download_bytes": (1, 1 << 62),
    "corpus.max_decompressed_bytes": (1, 1 << 62),
    "corpus.max_bad_rows": (0, 1 << 62),
    "corpus.min_characters": (0, 1 << 40),
    "corpus.max_characters": (1, 1 << 40),
    "tokenizer.vocab_size": (1, 1 << 31),
    "tokenizer.min_frequency": (0, 1 << 62),
    "tokenizer.sample_bytes": (1, 1 << 62),
    "tokenizer.seed": (0, (1 << 63) - 1),
    "selection.threshold": (0.1, 1),
    "selection.ngram": (1, 100),
    "corpus.tokens": (1, 1 << 62),
    "selection.permutations": (16, 1024),
    "split.train": (0, 1),
    "split.validation": (0, 1),
    "split.test": (0, 1),
    "split.seed": (0, (1 << 63) - 1),
    "split.max_overlap": (0, 1),
    "window.context_length": (1, 1 << 24),
    "window.stride": (1, 1 << 40),
    "window.max_bytes": (0, 1 << 62),
    "embedding.embedding_dim": (1, 1 << 20),
    "embedding.seed": (0, (1 << 63) - 1),
    "embedding.max_bytes": (0, 1 << 62),
    "cache.scratch_bytes": (0, 1 << 62),
    "engine.workers": (1, 1024),
    "engine.batch_size": (1, 1 << 31),
    "engine.index": (0, 1 << 31),
    "engine.count": (1, 1 << 20),
    "engine.patience": (1, 86_400),
    "engine.cpus": (0.01, 1024),
    "engine.memory": (1, 1 << 46),
}
GROUPS: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Config) if f.name not in ("name", "plan")}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*/[^/]")  # of a place in a bucket, not the bucket itself
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")  # where Hydra itself takes launchers and sweepers from
QUIET = ("version", "disable_existing_loggers")  # settings of a logging that logs nothing
VALUED = frozenset("--config-dir -cd --config-path -cp --config-name -cn --package -p --cfg -c --info -i".split())


def conf_dir() -> Path:
    """The folder of YAML choices: inside the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parent / "conf"
    return packaged if packaged.is_dir() else packaged.parents[1] / "conf"


def get(config: Any, dotted: str) -> Any:
    """The value at a dotted path: `get(config, "window.stride")`."""
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def check_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Refuse secrets, code and misspelt keys before Hydra starts and writes anything down.

    Returns Hydra's flags with their values, and the overrides.
    """
    flags: list[str] = []
    overrides: list[str] = []
    valued = False
    for argument in arguments:
        name = argument.lstrip("+~").partition("=")[0]
        if guard.SECRET_VALUE.search(argument):
            raise ConfigError(guard.secret(guard.redacted(name)))
        if len(name) > 2 and "--experimental-rerun".startswith(name):
            raise ConfigError("--experimental-rerun is not supported: it would run code from a pickle file.")
        if argument.startswith("corpus.parts."):  # a part need not be there yet, nor its setting
            argument = f"++{argument}"
        if argument.startswith("-") and not argument.isprintable():
            raise ConfigError(f"{argument!r} is no option.")
        (flags if valued or argument.startswith("-") else overrides).append(argument)
        valued = argument in VALUED
    if not {"-sc", "--shell-completion"} & set(flags):
        for override in overrides:
            _check_override(override)
    return flags, overrides


def _check_override(argument: str) -> None:
    key, _, value = argument.lstrip("+~").partition("=")
    for part in key.split(".") if key.startswith("hydra.") else ():
        guard.check_name(part, key)
    if key.partition("@")[0] in GROUPS and "=" in argument and value in ("", "null"):
        raise ConfigError(f"{argument}: a group needs one of its choices: {', '.join(options(key.partition('@')[0]))}.")
    if key.startswith("hydra.") or key == "experiment" or re.search("[@/]", key):
        return  # Hydra knows
    check_key(key)
    if "=" not in argument and not argument.startswith("~"):
        raise ConfigError(f"{key!r} has no value: write {key}=VALUE.")


def options(group: str) -> list[str]:
    """The names of a group's YAML files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def check_key(dotted: str) -> None:
    """Raise ConfigError where `dotted` is not a field of Config: with the nearest name, or why there can be none."""
    node: Any = Config
    parts = dotted.split(".")
    if parts[:2] == ["corpus", "parts"] and len(parts) > 2:
        for part in parts[2:]:
            if part not in Part.__dataclass_fields__:
                guard.check_name(part, dotted)
        if len(parts) == 3:
            return
        node, parts = Part, parts[3:]
    for depth, part in enumerate(parts):
        fields = {f.name: f for f in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        if part not in fields:
            guard.check_name(part, dotted)
            close = difflib.get_close_matches(part, fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}."
            if not fields:
                hint = f"{dotted.removesuffix('.' + '.'.join(parts[depth:]))} is a value, not a group."
            raise ConfigError(f"unknown key {part!r} in {dotted!r}; {hint}")
        factory = fields[part].default_factory
        node = factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def check_tree(tree: Any, dotted: str = "") -> None:
    """Refuse code and secrets anywhere in a composed configuration, Hydra's own part included.

    For use before anything of it is instantiated or written down. Raises ConfigError naming the key, never the value.
    Of Hydra's part only the launcher and the sweeper may name a class, a plugin that Hydra knows; callbacks and the
    configuration of logging would call what they name, and variables of the environment have others load it.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            path = f"{dotted}.{key}".lstrip(".")
            plugin = path in ("hydra.launcher._target_", "hydra.sweeper._target_") and str(value).startswith(PLUGINS)
            logs = path in ("hydra.job_logging", "hydra.hydra_logging") and not _logs_nothing(value)
            if (path == "hydra.callbacks" and value) or logs:
                raise ConfigError(guard.code(path))
            if not plugin and not _is_field(path) and value not in (None, ""):
                guard.check_name(str(key), path)
            check_tree(value, path)
            if path == "hydra.job.env_set" and value:
                raise ConfigError(guard.code(path))
    elif isinstance(tree, list):
        for value in tree:
            check_tree(value, dotted)
    elif isinstance(tree, str) and guard.SECRET_VALUE.search(tree):
        raise ConfigError(guard.secret(dotted))


def _logs_nothing(logging: Any) -> bool:
    """Is it Hydra's `none`, or what it always adds?"""
    return isinstance(logging, dict) and not any(value for name, value in logging.items() if name not in QUIET)


def _is_field(dotted: str) -> bool:
    group, _, name = dotted.partition(".")
    if re.fullmatch(r"corpus\.parts\.[^.]+\.[^.]+", dotted):
        return name.rpartition(".")[2] in Part.__dataclass_fields__
    factory = GROUPS.get(group)
    return factory is not None and name in {f.name for f in dataclasses.fields(factory)}


def check(config: Config) -> None:
    """Every rule that needs only the configuration. Raises ConfigError naming key, value and rule."""
    on_hub = config.corpus.kind == "hub"
    for dotted, choices in CHOICES.items():
        value = get(config, dotted)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            if (dotted, value) == ("corpus.errors", "skip"):
                hint = " Set corpus.on_bad_row=skip."
            raise ConfigError(f"{dotted}={value!r} is not one of {', '.join(choices)}.{hint}")
    for dotted, (low, high) in RANGES.items():
        value = get(config, dotted)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{dotted}={value} is outside the allowed range {low} to {high}.")
    if on_hub and not config.corpus.name:
        raise ConfigError("corpus.name is required: a dataset of the Hub, as in user/dataset, or a folder of the same layout.")
    for dotted, name in (("name", config.name), ("corpus.name", output_name(config) if on_hub else config.corpus.name)):
        if name is not None and not NAME.fullmatch(name):
            raise ConfigError(
                f"{dotted}={name[:120]!r} may hold at most 100 letters, digits, '.', '_' and '-', and not begin with '.'."
            )
    for dotted in ("cache.dir", "cache.remote", "output.dir", "tokenizer.name", "embedding.name"):
        value = get(config, dotted)
        if value is not None and ("\0" in value or not value):
            raise ConfigError(f"{dotted} " + ("holds a NUL character." if value else "is empty."))
    _check_stores(config.cache, config.output)
    folder = Path(config.output.dir or f"outputs/{output_name(config)}")
    place, kept = folder.absolute(), Path(config.cache.dir).absolute()
    if "://" not in (config.output.dir or "") and (place.is_relative_to(kept) or kept.is_relative_to(place)):
        raise ConfigError(f"output.dir={str(folder)!r} and cache.dir={config.cache.dir!r} may not lie one inside the other.")
    if on_hub and config.corpus.paths:
        raise ConfigError("corpus.paths means nothing to corpus.kind=hub: the dataset's card or names say what its files are.")
    if config.corpus.parts:
        _check_mixture(config)
    elif config.corpus.tokens is not None:
        raise ConfigError("corpus.tokens needs a mixture: corpus.parts=.")
    elif not on_hub and not config.corpus.paths:
        raise ConfigError(
            "corpus.paths is empty: name files, folders or globs, as in corpus.paths=[texts/]; or, of a mixture, those of "
            "each part, as in corpus.parts.letters.paths=[letters/]."
        )
    if config.corpus.url is not None and not config.corpus.url.startswith("https://"):
        raise ConfigError(f"corpus.url={config.corpus.url!r}: only https:// is allowed.")
    if config.corpus.url is not None and not config.corpus.sha256:
        raise ConfigError("corpus.url needs corpus.sha256: a download is trusted by its checksum alone.")
    if config.corpus.url is not None and [Path(path).name for path in config.corpus.paths] != config.corpus.paths[:1]:
        raise ConfigError(f"corpus.paths={config.corpus.paths!r}: with corpus.url it must hold one plain file name.")
    _check_reading(config.corpus)
    _check_engine(config.engine)
    if config.engine.kind == "array" and config.cache.remote is not None:
        raise ConfigError(
            "engine=array needs a cache.dir that all its jobs share, on one file system; cache.remote= is for machines that "
            "share none: use engine=ray with it."
        )
    if config.tokenizer.kind == "pretrained" and not config.tokenizer.name:
        raise ConfigError("tokenizer.name is required: a Hub name, a folder, or a tokenizer.json.")
    for group, kind, name in (
        ("tokenizer", config.tokenizer.kind, config.tokenizer.name),
        ("embedding", config.embedding.kind, config.embedding.name),
    ):
        if kind != "pretrained" and name:
            choice = "hub" if group == "tokenizer" else "pretrained"
            raise ConfigError(
                f"{group}.name={name!r} means nothing to {group}.kind={kind}: set {group}={choice}, or leave it out."
            )
    if config.embedding.kind == "pretrained" and not config.embedding.name:
        raise ConfigError("embedding.name is required: a Hub name or a folder holding *.safetensors.")
    if config.embedding.kind == "random" and config.embedding.embedding_dim is None:
        raise ConfigError("embedding.embedding_dim is required: random vectors have no width of their own.")
    if config.embedding.kind == "none" and config.embedding.vectors == "always":
        raise ConfigError("embedding.vectors=always needs an embedding: set embedding=random or embedding=pretrained.")
    if not config.corpus.parts:  # each of which was checked by itself
        _check_split(config.split, config.corpus.metadata)
    window = config.window
    stride = window.stride or window.context_length
    if window.mode == "sliding" and stride > window.context_length and not window.allow_gaps:
        skipped = 100 * (stride - window.context_length) / stride
        raise ConfigError(
            f"window.stride={stride} is larger than window.context_length={window.context_length}: {skipped:.0f} % of the "
            "tokens would be skipped. Lower the stride, or set window.allow_gaps=true."
        )
    if window.special_tokens and window.mode != "document":
        raise ConfigError("window.special_tokens=true needs window.mode=document.")


def idle(config: Config) -> list[str]:
    """What was set in vain, a sentence each.

    >>> idle(Config(window=Window("prefix", stride=4)))
    ['window.stride=4 means nothing to window.mode=prefix']
    """
    plain, said = Config(), []
    various = bool(config.corpus.parts) or config.corpus.kind == "hub"  # then the formats are not known yet
    for decisive, values, names in MEANT_FOR:
        group, value = decisive.partition(".")[0], get(config, decisive)
        if value in values or (various and group == "corpus"):
            continue
        for dotted in (f"{group}.{name}" for name in names.split()):
            if get(config, dotted) != get(plain, dotted):
                said.append(f"{dotted}={get(config, dotted)} means nothing to {decisive}={value}")
    return said


def _check_engine(engine: Engine) -> None:
    if not re.fullmatch(r"auto|local|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", engine.address):
        raise ConfigError(f"engine.address={engine.address!r} is none of auto, local and host:port.")
    given = {name: getattr(engine, name) for name in ("id", "index", "count")}
    for name, value in given.items():
        if engine.kind == "array" and value is None:
            raise ConfigError(
                f"engine.{name} is required: each job of an array has its own engine.index=, all have the same engine.count= "
                "and the same engine.id=, which no other array has. In a Slurm array they are known."
            )
        if engine.kind != "array" and value is not None:
            raise ConfigError(f"engine.{name}={value} needs engine=array.")
    if engine.id is not None and not NAME.fullmatch(engine.id):
        raise ConfigError(f"engine.id={engine.id[:120]!r} may hold at most 100 letters, digits, '.', '_' and '-'.")


def _check_stores(cache: Cache, output: Output) -> None:
    from pipeline import stores

    for dotted, place in (("cache.dir", cache.dir), ("cache.remote", cache.remote), ("output.dir", output.dir)):
        if stores.MISTYPED.match(place or ""):
            raise ConfigError(f"{dotted}={place!r} is neither a folder nor an address: write it as s3://bucket/name.")
    if "://" in cache.dir:
        raise ConfigError(f"cache.dir={cache.dir!r} must be a folder of this machine: set cache.remote= to an address.")
    if cache.remote is not None and not ADDRESS.match(cache.remote):
        raise ConfigError(f"cache.remote={cache.remote!r} is no address: write it as s3://bucket/cache.")
    if "://" in (output.dir or "") and not ADDRESS.match(output.dir or ""):
        raise ConfigError(f"output.dir={output.dir!r} is no address of a place in a bucket: write it as s3://bucket/name.")
    for dotted, place in (("cache.remote", cache.remote), ("output.dir", output.dir)):
        if "://" in (place or ""):
            stores.check(str(place), dotted, stores.NO_PLACE)
    if cache.remote is not None and output.dir is not None:
        kept, place = (address.rstrip("/") + "/" for address in (cache.remote, output.dir))
        if kept.startswith(place) or place.startswith(kept):
            raise ConfigError(f"output.dir={output.dir!r} and cache.remote={cache.remote!r} may not lie one inside the other.")
    if cache.remote is None and cache.scratch_bytes is not None:
        raise ConfigError("cache.scratch_bytes needs cache.remote=: without a store nothing that is finished may be dropped.")


def _part(name: str, given: Any) -> Part:
    """The settings of a part of a mixture. Raises ConfigError where there is no such one, or a value has another type."""
    where = f"corpus.parts.{name}"
    if not isinstance(given, dict):
        raise ConfigError(f"{where} must hold the settings of a corpus, as in {where}.paths=[texts/].")
    fields = {f.name: f.type for f in dataclasses.fields(Part)}
    for key, value in given.items():
        if key not in fields:
            check_key(f"{where}.{key}")
        if key == "parts" and value:
            raise ConfigError(f"{where}.parts means nothing: a part of a mixture has no parts itself.")
        if key == "tokens" and value:
            raise ConfigError(f"{where}.tokens means nothing to a part: set corpus.tokens= of all, or {where}.weight= of this.")
        if not _fits(value, fields[key]):
            wanted = str(fields[key]) if typing.get_args(fields[key]) else getattr(fields[key], "__name__", "")
            raise ConfigError(f"{where}.{key}={str(value)[:80]!r} is not of type {wanted}.")
    return Part(**given)


def _fits(value: Any, wanted: Any) -> bool:
    """Is the value of that type, as annotated in Part?"""
    inside = typing.get_args(wanted)
    if typing.get_origin(wanted) is list:
        return isinstance(value, list) and all(_fits(one, inside[0]) for one in value)
    if typing.get_origin(wanted) is dict:
        return isinstance(value, dict)
    if inside:
        return any(_fits(value, one) for one in inside)
    return isinstance(value, (int, float) if wanted is float else wanted) and (wanted is bool or not isinstance(value, bool))


def _check_mixture(config: Config) -> None:
    plain, own = Corpus(), config.corpus
    for name in Corpus.__dataclass_fields__:
        if name not in ("name", "parts", "tokens") and getattr(own, name) != getattr(plain, name):
            first = next(iter(own.parts))
            raise ConfigError(f"corpus.{name} means nothing to a mixture: set corpus.parts.{first}.{name}= instead.")
    for name, part in own.parts.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise ConfigError(f"corpus.parts: {name[:100]!r} may hold nothing but letters, digits, '_' and '-'.")
        try:
            check(dataclasses.replace(config, name=output_name(config), corpus=part))
        except ConfigError as error:
            raise ConfigError(of_part(name, str(error))) from error
        for key, value in (("weight", part.weight), ("max_repetitions", part.max_repetitions)):
            if not 0 <= value <= 1e9:
                raise ConfigError(f"corpus.parts.{name}.{key}={value} is outside the allowed range 0 to 1000000000.")
        if part.weight and not part.max_repetitions:
            raise ConfigError(f"corpus.parts.{name}.max_repetitions=0 leaves it out: set its weight=0.")
    if not any(part.weight for part in own.parts.values()):
        raise ConfigError("corpus.parts: every weight is 0; give one of them more.")


def of_part(name: str, said: str) -> str:
    """What is said of the settings of a corpus, where that is a part of a mixture.

    >>> of_part("a", "Set corpus.encoding=."), of_part("a", "'corpus.text.gz' is damaged"), of_part("", "corpus.tokens=1")
    ('Set corpus.parts.a.encoding=.', "'corpus.text.gz' is damaged", 'corpus.tokens=1')
    """
    fields = "|".join(sorted(Part.__dataclass_fields__.keys() - {"parts", "tokens"}))
    return re.sub(rf"\bcorpus\.(?=({fields})\b(?!\.\w))", f"corpus.parts.{name}.", said) if name else said


def output_name(config: Config) -> str:
    """What the output is called: `name`, or the last part of the corpus's."""
    return config.name or Path(config.corpus.name).name


def _check_split(split: Split, metadata: list[str]) -> None:
    given = {name: getattr(split, name) for name in ("train", "validation", "test")}
    held = sum(share for name, share in given.items() if name != "train" and share)
    for by in ("files", "values"):
        kind = "files" if by == "files" else "column"
        validation, test = getattr(split, f"validation_{by}"), getattr(split, f"test_{by}")
        named = validation + test
        if both := sorted({*validation} & {*test}):
            raise ConfigError(f"split.validation_{by} and split.test_{by} both name {both[0]!r}: a document is in one split.")
        if split.by == kind and any(share is not None for share in given.values()):
            raise ConfigError(f"split.by={kind} takes split.validation_{by}= and split.test_{by}=, no shares.")
        if split.by == kind and not named:
            raise ConfigError(f"split.by={kind} needs split.validation_{by}=[...] or split.test_{by}=[...].")
        if split.by != kind and named:
            raise ConfigError(f"split.validation_{by} and split.test_{by} need split.by={kind}.")
    if (split.column is not None) != (split.by == "column") or (split.column is not None and split.column not in metadata):
        raise ConfigError(f"split.column={split.column}: split.by=column needs a column that corpus.metadata=[...] names.")
    if split.by == "content" and (held >= 1 or (split.train is not None and abs(split.train + held - 1) > 1e-9)):
        told = " + ".join(f"split.{name}={share}" for name, share in given.items() if share is not None)
        if split.train is None:
            raise ConfigError(f"{told}: nothing is left for train; what is held out must be less than 1.")
        raise ConfigError(f"{told} must make 1, with some left for train; leave out split.train to give it the rest.")
    if split.max_overlap is not None and split.by == "content" and not held:
        raise ConfigError(f"split.max_overlap={split.max_overlap} needs a split, as by split.validation=.")
    if split.max_overlap is not None and split.overlap == "none":
        raise ConfigError(f"split.max_overlap={split.max_overlap} needs split.overlap=exact or near, to count what it limits.")


def recorded(tree: Config | dict[str, Any]) -> dict[str, Any]:
    """What a manifest records of a configuration: all but what cannot change a byte (plan, engine, cache, output)."""
    groups = tree if isinstance(tree, dict) else dataclasses.asdict(tree)
    return {group: value for group, value in groups.items() if group not in ("plan", "engine", "cache", "output")}


def _check_reading(corpus: Corpus) -> None:
    try:
        "".encode(corpus.encoding)
        codecs.getincrementaldecoder(corpus.encoding)("backslashreplace").decode(b"x")  # idna and punycode can only be strict
    except (LookupError, ValueError) as error:
        raise ConfigError(f"corpus.encoding={corpus.encoding!r} is not a text encoding that Python knows.") from error
    for name in ("include", "exclude"):
        try:
            re.compile(getattr(corpus, name) or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"corpus.{name} is not a regular expression: {error}.") from error
    if (corpus.min_characters or 0) > (corpus.max_characters or 1 << 62):
        raise ConfigError(
            f"corpus.min_characters={corpus.min_characters} is larger than corpus.max_characters={corpus.max_characters}."
        )
    if taken := sorted({"text", "source", "start", "end", "ends", "first", "tokens", "origin"} & set(corpus.metadata)):
        raise ConfigError(f"corpus.metadata={taken}: documents.arrow has a column of that name already.")
    if len(set(corpus.metadata)) < len(corpus.metadata) or "" in corpus.metadata:
        raise ConfigError(f"corpus.metadata={corpus.metadata}: name each column once.")
    if corpus.metadata and corpus.format == "text" and corpus.kind != "hub":  # whose format is found later
        raise ConfigError("corpus.metadata needs records with columns: a text file has none.")
