"""The configuration as a dataclass tree, and every check that needs nothing but the configuration.

One dataclass per conf group; YAML files under `conf/` only hold values. Hydra composes and types them
against this schema, `__main__` turns the result into these plain objects, and nothing below it imports
Hydra.
"""

import codecs
import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

MIB = 1 << 20


@dataclass
class Corpus:
    """Where text comes from and what a document is. Stage `load`."""

    name: str = "corpus"
    format: str = "text"  # text | jsonl | parquet
    paths: list[str] = field(default_factory=list)  # files, folders, globs; a named asset where `url` is set
    url: str | None = None  # where a single named asset can be downloaded
    sha256: str | None = None  # its checksum, required with `url`
    document: str = "file"  # text only: file | line | paragraph
    text_column: str = "text"  # jsonl and parquet
    encoding: str = "utf-8"  # text and jsonl
    errors: str = "strict"  # undecodable bytes: strict | replace | skip
    shard_bytes: int = 16 * MIB  # planned size of one unit of work, in input bytes
    max_document_bytes: int = 256 * MIB  # jsonl: a longer line is an error, since it must be parsed in one


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
    special_tokens: bool = False  # document: add the tokenizer's own, such as [CLS] and [SEP]
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

    kind: str = "threads"  # serial | threads | processes
    workers: int | None = None  # null: one per available core
    batch_size: int | None = None  # documents per tokenizer call; null: a block at a time


@dataclass
class Cache:
    """Where finished stages are kept."""

    dir: str = "data/cache"
    trust_stat: bool = True  # believe size, mtime and ctime that a source file is unchanged


@dataclass
class Output:
    """Where the finished dataset goes."""

    dir: str | None = None  # null: outputs/<name>


@dataclass
class Config:
    """The whole configuration of a run."""

    name: str | None = None  # of the output; null: the corpus's
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    window: Window = field(default_factory=Window)
    embedding: Embedding = field(default_factory=Embedding)
    engine: Engine = field(default_factory=Engine)
    cache: Cache = field(default_factory=Cache)
    output: Output = field(default_factory=Output)


CHOICES = {
    "corpus.format": ("text", "jsonl", "parquet"),
    "corpus.document": ("file", "line", "paragraph"),
    "corpus.errors": ("strict", "replace", "skip"),
    "tokenizer.kind": ("bpe", "wordpiece", "unigram", "words", "chars", "bytes", "pretrained"),
    "tokenizer.order": ("appearance", "alphabetical", "frequency"),
    "tokenizer.backend": ("auto", "hf", "gigatoken", "splintr"),
    "vocabulary.append_eos": ("auto", "true", "false"),
    "vocabulary.on_unknown": ("map", "error"),
    "vocabulary.special_in_text": ("text", "token", "error"),
    "vocabulary.dtype": ("auto", "uint8", "uint16", "uint32"),
    "window.mode": ("sliding", "prefix", "document"),
    "window.tail": ("drop", "pad"),
    "embedding.kind": ("random", "pretrained", "none"),
    "embedding.positions": ("learned", "sinusoidal", "none"),
    "embedding.dtype": ("float32", "float16"),
    "embedding.vectors": ("auto", "always", "never"),
    "embedding.device": ("cpu", "cuda"),
    "engine.kind": ("serial", "threads", "processes"),
}
RANGES = {  # inclusive; the upper ends only keep sizes below what a 64-bit count can hold
    "corpus.shard_bytes": (1, 1 << 40),
    "corpus.max_document_bytes": (1, 1 << 30),
    "tokenizer.vocab_size": (1, 1 << 31),
    "tokenizer.min_frequency": (0, 1 << 62),
    "tokenizer.sample_bytes": (1, 1 << 62),
    "tokenizer.seed": (0, (1 << 63) - 1),
    "window.context_length": (1, 1 << 24),
    "window.stride": (1, 1 << 40),
    "window.max_bytes": (0, 1 << 62),
    "embedding.embedding_dim": (1, 1 << 20),
    "embedding.seed": (0, (1 << 63) - 1),
    "embedding.max_bytes": (0, 1 << 62),
    "engine.workers": (1, 1024),
    "engine.batch_size": (1, 1 << 31),
}
NAME = re.compile(r"[A-Za-z0-9._-]+")
SECRET_KEY = re.compile(r"(^|[._])(hf_token|api_?key|access_?key|auth_?token|secret\w*|password|passwd|credentials?)$", re.I)
SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{8,}|AKIA[0-9A-Z]{12,}|://[^/@\s]*:[^/@\s]*@")
UNSAFE_KEY = re.compile(r"_target_|_args_|_partial_|_recursive_|^hydra\.(callbacks|job_logging|hydra_logging)\b")


def conf_dir() -> Path:
    """The folder of YAML choices: inside the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parent / "conf"
    return packaged if packaged.is_dir() else packaged.parents[1] / "conf"


def get(config: Any, dotted: str) -> Any:
    """The value at a dotted path: `get(config, "window.stride")`."""
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def check_arguments(arguments: list[str]) -> None:
    """Refuse secrets, code and misspelt keys before Hydra starts and writes anything down."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        key = key.lstrip("+~")
        if SECRET_KEY.search(key) or SECRET_VALUE.search(argument):
            raise ConfigError(
                f"{key[:40]!r} looks like a secret: put it in the environment (HF_TOKEN), not on the command line."
            )
        if UNSAFE_KEY.search(key) or "_target_" in value:
            raise ConfigError(f"unsafe override {key!r}: configuration is data here and may not name code.")
        if "=" in argument and not key.startswith(("-", "hydra", "experiment")) and not re.search(r"[@/]", key):
            check_key(key)


def check_key(dotted: str) -> None:
    """Raise ConfigError with the nearest known name where `dotted` is not a field of Config."""
    node: Any = Config
    for depth, part in enumerate(dotted.split(".")):
        fields = {f.name: f for f in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        if part not in fields:
            close = difflib.get_close_matches(part, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(fields)}." if fields else "."
            raise ConfigError(f"unknown key {part!r} in {dotted!r}{hint}")
        factory = fields[part].default_factory
        node = factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None
        if node is None and depth + 1 < len(dotted.split(".")):
            raise ConfigError(f"unknown key {dotted!r}: {part!r} is a value, not a group.")


def check(config: Config) -> None:
    """Every rule that needs only the configuration. Raises ConfigError naming key, value and rule."""
    for dotted, choices in CHOICES.items():
        value = get(config, dotted)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{dotted}={value!r} is not one of {', '.join(choices)}.{hint}")
    for dotted, (low, high) in RANGES.items():
        value = get(config, dotted)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{dotted}={value} is outside the allowed range {low} to {high}.")
    for dotted, name in (("name", config.name), ("corpus.name", config.corpus.name)):
        if name is not None and (not NAME.fullmatch(name) or name in (".", "..")):
            raise ConfigError(f"{dotted}={name!r} may hold only letters, digits, '.', '_' and '-'.")
    for dotted in ("cache.dir", "output.dir", "tokenizer.name", "embedding.name"):
        if "\0" in (get(config, dotted) or ""):
            raise ConfigError(f"{dotted} holds a NUL character.")
    if not config.corpus.paths:
        raise ConfigError("corpus.paths is empty: name files, folders or globs, as in corpus.paths=[texts/].")
    if config.corpus.url is not None and not config.corpus.url.startswith("https://"):
        raise ConfigError(f"corpus.url={config.corpus.url!r}: only https:// is allowed.")
    if config.corpus.url is not None and not config.corpus.sha256:
        raise ConfigError("corpus.url needs corpus.sha256: a download is trusted by its checksum alone.")
    if config.corpus.url is not None and [Path(path).name for path in config.corpus.paths] != config.corpus.paths[:1]:
        raise ConfigError(f"corpus.paths={config.corpus.paths!r}: with corpus.url it must hold one plain file name.")
    _check_encoding(config.corpus)
    if config.tokenizer.kind == "pretrained" and not config.tokenizer.name:
        raise ConfigError("tokenizer.name is required: a Hub name, a folder, or a tokenizer.json.")
    if config.embedding.kind == "pretrained" and not config.embedding.name:
        raise ConfigError("embedding.name is required: a Hub name or a folder holding *.safetensors.")
    if config.embedding.kind == "random" and config.embedding.embedding_dim is None:
        raise ConfigError("embedding.embedding_dim is required: random vectors have no width of their own.")
    if config.embedding.kind == "none" and config.embedding.vectors == "always":
        raise ConfigError("embedding.vectors=always needs an embedding: set embedding=random or embedding=pretrained.")
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


def check_secrets(tree: Any, dotted: str = "") -> None:
    """Refuse a configuration that holds what looks like a secret. Raises ConfigError naming the key, not the value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            check_secrets(value, f"{dotted}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for value in tree:
            check_secrets(value, dotted)
    elif isinstance(tree, str) and SECRET_VALUE.search(tree):
        raise ConfigError(f"{dotted} looks like a secret: put it in the environment (HF_TOKEN), not in the configuration.")


def recorded(tree: Config | dict[str, Any]) -> dict[str, Any]:
    """What a manifest records of a configuration: all but what cannot change a byte (engine, cache, output)."""
    groups = tree if isinstance(tree, dict) else dataclasses.asdict(tree)
    return {group: value for group, value in groups.items() if group not in ("engine", "cache", "output")}


def _check_encoding(corpus: Corpus) -> None:
    try:
        "".encode(corpus.encoding)
        name = codecs.lookup(corpus.encoding).name
    except (LookupError, ValueError) as error:
        raise ConfigError(f"corpus.encoding={corpus.encoding!r} is not a text encoding that Python knows.") from error
    if corpus.errors == "skip" and name not in ("utf-8", "utf-8-sig"):
        raise ConfigError(
            f"corpus.errors=skip works in UTF-8 only, not in corpus.encoding={corpus.encoding}: set corpus.errors=replace."
        )
