"""Stage `tokenize`: text becomes tokens that a person can read.

    text     "I had gone"            a batch of documents, or one piece of a long one
    tokens   [I] [Ġhad] [Ġgone]      dictionary-encoded: the dictionary is the vocabulary, the index is the ID

Every tokenizer is a folder with an ordinary `tokenizer.json`, whether trained here (`training.py`) or found
(`pretrained.py`); `backends.py` runs it. What stays in this module is what any of them needs: opening the folder,
and documents that arrive in pieces (`cuts.py` says where they may be cut).

**A document in pieces** gives the tokens of the whole. Of what has arrived the part before the last place where
no token can cross is tokenized; the rest waits for the next piece:

    arrives   "the quick bro" · "wn fox ju" · "mps"
    given     [the][Ġquick]   · [Ġbrown][Ġfox] · [Ġjumps]

Where a tokenizer has no such place the pieces are joined and tokenized at the end.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import backends, cuts, pretrained, training
from pipeline import config as configs
from pipeline.arrow import adjoin, flags, flat_list, joined, narrowest, numbers, row_offsets, strings, text_bytes
from pipeline.batches import ORIGIN
from pipeline.errors import InputError, PipelineError, TokenizerError
from pipeline.literals import Literals
from pipeline.pretrained import SLOW, Frame, SlowCore

log = logging.getLogger(__name__)

VERSION = 2
LONG = 1 << 18  # bytes of a row that the reference gets as one; it needs 150 times as much memory
LIMIT = np.iinfo(np.int32).max  # bytes of text that one Arrow string array can hold

Counts = Counter[str]


# -- making one -------------------------------------------------------------------------------------------


def trained(t: configs.Tokenizer) -> bool:
    """Must the corpus be seen before this tokenizer exists?"""
    return t.kind in configs.LEARNED


def identity(t: configs.Tokenizer) -> dict[str, Any]:
    """Everything but the corpus that can change the tokenizer's bytes. Raises TokenizerError where it is not found."""
    return pretrained.identity(t) if t.kind == "pretrained" else training.identity(t)


def origin(t: configs.Tokenizer) -> dict[str, Any]:
    """What to record that changes no byte: the name of a pretrained tokenizer and its commit on the Hub."""
    return pretrained.origin(t) if t.kind == "pretrained" else {}


def find(t: configs.Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer that need not see the corpus: tokenizer.json, tokenizer_config.json, vocabulary.json.

    A tokenizer that exists in Python alone has files of its own instead of tokenizer.json; its rate is said once.
    """
    return pretrained.load(t) if t.kind == "pretrained" else train(t, lambda: iter(()))


def train(
    t: configs.Tokenizer, texts: training.Texts, progress: training.Progress = lambda what, done: None
) -> dict[str, bytes]:
    """The files of a tokenizer made from the corpus, as those of `find`.

    `texts()` streams the corpus and may be called again; `progress(what, bytes)` is told how far a pass has come.
    """
    special, roles = training.special_tokens(t)
    made = training.train(t, texts, progress)
    return pretrained.fast_files(configs.Tokenizer(), made.encode(), _made_config(t, special, roles), {}, t.kind)


def _made_config(t: configs.Tokenizer, special: list[str], roles: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {f"{role}_token": token for role, token in roles.items()}
    config["clean_up_tokenization_spaces"] = False
    if t.kind == "wordpiece":
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if others := [token for token in special if token not in roles.values()]:
        config["extra_special_tokens"] = others
    return config


# -- opening one ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer ready to run. IDs are 0 to `size` - 1; `vocab[i]` is token i, "" where there is none."""

    folder: Path
    vocab: pa.StringArray
    core: backends.Core
    cut: Callable[[memoryview], int] | None  # see cuts.safe_cut
    frame: Frame
    special: tuple[str, ...]  # tokens that are no text
    special_in_text: str
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None  # what the model itself gives for what it does not know
    widths: np.ndarray | None = None  # bytes of text in each token, where characters that it does not know vanish
    leaking: frozenset[str] = frozenset()  # special tokens that come out of text even where text is to be text

    @property
    def size(self) -> int:
        """Largest ID plus one."""
        return len(self.vocab)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest unsigned dtype that holds every ID."""
        return narrowest(self.size)

    def decode(self, ids: Sequence[int]) -> str:
        """IDs as text, special tokens included."""
        if isinstance(self.core, SlowCore):
            return str(self.core.tokenizer.decode(list(ids)))
        return str(_reference(self.folder).decode(list(ids), skip_special_tokens=False))


def backend(folder: Path, requested: str) -> str:
    """The backend that `tokenizer.backend=requested` means for this tokenizer. Raises ConfigError where it cannot be."""
    path = folder / "tokenizer.json"
    return backends.choose(path.read_bytes(), requested) if path.exists() else SLOW


@lru_cache(maxsize=8)
def open_tokenizer(folder: Path, backend: str, special_in_text: str) -> Tokenizer:
    """The tokenizer in the folder of an entry, as `read` gives it; the same object when called again."""
    return read(folder, backend, special_in_text)


def read(folder: Path, backend: str, special_in_text: str) -> Tokenizer:
    """The tokenizer in the folder of an entry, or of a finished dataset, run by `backend`.

    `special_in_text` as in `vocabulary`: "token" lets a literal special token become the token.
    """
    config = _json(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    slow = backend == SLOW or not path.exists()
    data = b"" if slow else path.read_bytes()
    tree = {} if slow else backends.parse(data)
    names = _names(folder, tree)
    roles = {role: names.get(token) for role, token in pretrained.declared(config, {}).items()}
    ids: dict[str, Any] = {f"{role}_id": roles.get(role) for role in ("eos", "bos", "pad")}
    as_token = special_in_text == "token"
    if slow:
        python = SlowCore(folder, as_token)
        special = tuple(sorted(python.tokenizer.all_special_tokens))
        unk = python.tokenizer.unk_token_id
        return Tokenizer(folder, _vocab(names), python, None, python.frame(config), special, special_in_text, unk_id=unk, **ids)
    special = tuple(token["content"] for token in tree["added_tokens"] if token["special"] and token["content"])
    core = backends.open_core(backend, data, as_token)
    unknown = _unknown(tree["model"], names)
    return Tokenizer(
        folder,
        _vocab(names),
        core,
        cuts.safe_cut(data),
        template(tree, config),
        special,
        special_in_text,
        unk_id=unknown,
        widths=_widths(tree, names),
        leaking=frozenset() if as_token else _leaks(core, special, names, unknown),
        **ids,
    )


def _names(folder: Path, tree: dict[str, Any]) -> dict[str, int]:
    """Token -> ID: what vocabulary.json holds, and most of the tokenizer.json that were read already."""
    if tree and (names := pretrained.listed(tree)) is not None:
        return names
    vocabulary = folder / "vocabulary.json"  # which in a finished dataset lies one folder above
    return _json(vocabulary if vocabulary.exists() else folder.parent / vocabulary.name)


def _json(path: Path) -> dict[str, Any]:
    tree = json.loads(path.read_bytes())
    assert isinstance(tree, dict)
    return tree


def _vocab(names: dict[str, int]) -> pa.StringArray:
    tokens = [b""] * (max(names.values(), default=-1) + 1)
    for name, i in names.items():
        tokens[i] = name.encode(errors="replace")
    return joined(tokens)


def _unknown(model: dict[str, Any], names: dict[str, int]) -> int | None:
    """The ID that the model gives for what it does not know, where it has one."""
    if model.get("type") == "Unigram" or isinstance(model.get("vocab"), list):
        return model.get("unk_id")
    return names.get(model.get("unk_token") or "")


def template(tree: dict[str, Any], config: dict[str, Any]) -> Frame:
    """What the tokenizer puts around a single document: IDs before, IDs after, and whether it has token types.

    Read from the post-processor of tokenizer.json, https://huggingface.co/docs/tokenizers/api/post-processors.
    Token types are those of `model_input_names` where it is set; else of a processor that numbers two segments.
    """
    post = tree.get("post_processor") or {}
    steps = post["processors"] if post.get("type") == "Sequence" else [post]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    types = False
    for step in steps:
        kind = step.get("type")
        if kind in ("BertProcessing", "RobertaProcessing"):
            before, after = (step["cls"][1], *before), (*after, step["sep"][1])
            types = types or kind == "BertProcessing"
        elif kind == "TemplateProcessing":
            seen = False
            lead: list[int] = []
            tail: list[int] = []
            for item in step["single"]:
                if "Sequence" in item:
                    seen = True
                else:
                    (tail if seen else lead).extend(step["special_tokens"][item["SpecialToken"]["id"]]["ids"])
            before, after = (*lead, *before), (*after, *tail)
            second = any(item.get("SpecialToken", {}).get("type_id") == 1 for item in step["pair"])
            types = types or (second and bool(tail))
    if "model_input_names" in config:
        types = "token_type_ids" in config["model_input_names"]
    return before, after, types


def _widths(tree: dict[str, Any], names: dict[str, int]) -> np.ndarray | None:
    """Bytes of text that each token holds, for a BPE with neither an unknown token nor a token for every byte.

    White space counts as nothing, since a pre-tokenizer may drop it; but where letters stand for bytes it counts.
    None for the tokenizers that lose nothing.
    """
    model = tree["model"]
    if model.get("type", "BPE" if "merges" in model else "") != "BPE" or model.get("unk_token"):
        return None
    vocab, letters = model["vocab"], backends.byte_letters()
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return None
    in_letters = bytewise(tree)
    if in_letters and all(letter in vocab for letter in letters):
        return None
    widths = np.zeros(max(names.values(), default=-1) + 1, np.int64)
    for name, i in names.items():
        name = name.removeprefix(model.get("continuing_subword_prefix") or "").removesuffix(
            model.get("end_of_word_suffix") or ""
        )
        widths[i] = len(name) if in_letters else len("".join(name.replace("\u2581", " ").split()).encode())
    return widths


def bytewise(tree: dict[str, Any]) -> bool:
    """Do letters of its tokens stand for bytes?"""
    return '"ByteLevel"' in json.dumps([tree["pre_tokenizer"], tree["normalizer"]])


def _leaks(core: backends.Core, special: tuple[str, ...], names: dict[str, int], unknown: int | None) -> frozenset[str]:
    """Special tokens whose literal the model itself finds in text, though it was told that text is text."""
    try:
        ids, offsets = core.encode(joined([token.encode() for token in special]))
    except Exception:  # a model that knows neither these characters nor an unknown token
        return frozenset()
    alone = {token: int(ids[at]) for token, at, size in zip(special, offsets, np.diff(offsets), strict=False) if size == 1}
    return frozenset(token for token, found in alone.items() if found == names.get(token) != unknown)


@lru_cache(maxsize=8)
def _reference(folder: Path) -> Any:
    """The tokenizer in Hugging Face's own implementation."""
    from tokenizers import Tokenizer as Reference

    return Reference.from_buffer((folder / "tokenizer.json").read_bytes())


# -- running one ------------------------------------------------------------------------------------------


def schema(tokenizer: Tokenizer) -> pa.Schema:
    """Of the batches that `tokenize` gives."""
    kind = pa.dictionary(pa.from_numpy_dtype(tokenizer.dtype), pa.string())
    return pa.schema({"tokens": pa.list_(kind)} | ORIGIN)


def tokenize(
    batches: Iterable[pa.RecordBatch],
    tokenizer: Tokenizer,
    counts: Counts,
    batch_size: int | None = None,
    sources: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Batches with `text` become batches with `tokens`; rows stay rows, see `schema`.

    A row that is a piece of a document may give its last tokens with a later piece. `batch_size` bounds the
    documents in one call of the backend and changes nothing else; `sources` are names for error messages.
    `counts` gains `tokens`, `text_bytes`, `special_literals` (special tokens spelt out in text) and, where a
    tokenizer drops what it does not know, `unknown_bytes`. Raises InputError on a literal special token where
    `special_in_text` is "error", or where this tokenizer cannot take it as text; TokenizerError where the
    tokenizer fails.
    """
    literals = Literals(tokenizer.special, tokenizer.special_in_text, tokenizer.leaking, sources)
    document = Pieces(tokenizer)
    for batch in batches:
        ends = flags(batch["ends"])
        whole = document.empty and bool(ends.all())
        for part in [batch] if whole else [batch.slice(row, 1) for row in range(len(batch))]:
            text = part["text"]
            counts["text_bytes"] += text_bytes(text)
            if found := literals.count(part, whole):
                counts["special_literals"] += found
            if not whole:
                text = document.take(text, bool(part["ends"][0].as_py()))
            ids, offsets = encode(tokenizer, text, batch_size)
            counts["tokens"] += len(ids)
            if tokenizer.widths is not None:
                counts["unknown_bytes"] += _spelled(tokenizer, text) - int(tokenizer.widths[ids].sum())
            tokens = pa.DictionaryArray.from_arrays(numbers(_narrow(ids, tokenizer)), tokenizer.vocab, safe=False)
            columns = [flat_list(tokens, offsets), *(part[name] for name in ORIGIN)]
            yield pa.record_batch(columns, schema=schema(tokenizer))


class Pieces:
    """The text of a document that has arrived in pieces and is not tokenized yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.cut, self.name = tokenizer.cut, tokenizer.folder.name
        self.waiting: list[pa.Buffer] = []
        self.size = 0
        self.retry = 0  # bytes that must wait before a cut is looked for again
        self.empty = True  # at the border of a document?

    def take(self, text: pa.StringArray, ends: bool) -> pa.StringArray:
        """One more piece comes; the text that can be tokenized now goes, as a single row."""
        piece = text[0].as_buffer()
        if self.empty and not ends and self.cut is None:
            _say_once(self.name)
        self.empty = ends
        self.waiting.append(piece)
        self.size += piece.size
        if self.size > LIMIT:
            raise InputError(
                f"a document of more than {LIMIT:,} bytes has no place where this tokenizer lets it be cut: "
                "split it, as with corpus.document=line or paragraph, or choose another tokenizer."
            )
        if not ends and (self.cut is None or self.size < self.retry):
            return _string(b"")
        data = self.waiting[0] if len(self.waiting) == 1 else pa.py_buffer(b"".join(self.waiting))
        at = data.size if ends or self.cut is None else self.cut(memoryview(data))
        # Where there is no place yet, waiting until the text has doubled keeps the work linear.
        self.retry = 0 if at else 2 * data.size
        self.waiting = [data.slice(at)] if at < data.size else []
        self.size = data.size - at
        return _string(data.slice(0, at))


@lru_cache
def _say_once(name: str) -> None:
    log.info("tokenize: this tokenizer has no place where a long document may be cut: it is tokenized as a whole")


def encode(tokenizer: Tokenizer, text: pa.StringArray, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """IDs (uint32) and offsets (int64) of a batch; the backend is called on `batch_size` rows at a time."""
    if not text_bytes(text):
        return np.zeros(0, np.uint32), np.zeros(len(text) + 1, np.int64)
    if tokenizer.core.name == "hf" and tokenizer.cut is not None:
        pieces, rows = cut_rows(text, tokenizer.cut)
        if len(pieces) > len(text):
            ids, offsets = _call(tokenizer, pieces, batch_size)
            return ids, offsets[rows]
    return _call(tokenizer, text, batch_size)


def cut_rows(text: pa.StringArray, cut: Callable[[memoryview], int]) -> tuple[pa.StringArray, np.ndarray]:
    """The same text with rows longer than LONG cut into several, and where each row of `text` begins among them."""
    offsets = row_offsets(text)
    edges, rows = [int(offsets[0])], [0]
    for stop in offsets[1:].tolist():
        room = LONG
        while stop - edges[-1] > room:
            at = cut(memoryview(text.buffers()[2])[edges[-1] : edges[-1] + room])
            room = LONG if at else 2 * room
            if at:
                edges.append(edges[-1] + at)
        edges.append(stop)
        rows.append(len(edges) - 1)
    return strings(text.buffers()[2], np.array(edges)), np.array(rows)


def _call(tokenizer: Tokenizer, text: pa.StringArray, batch_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        if batch_size is None or batch_size >= len(text):
            return tokenizer.core.encode(text)
        parts = [tokenizer.core.encode(text.slice(row, batch_size)) for row in range(0, len(text), batch_size)]
    except PipelineError:
        raise
    except Exception as error:
        raise TokenizerError(
            f"the tokenizer failed ({tokenizer.core.name}): {' '.join(str(error).split())}. Does it have an unknown token? "
            "See tokenizer.unk_token=."
        ) from error
    return np.concatenate([ids for ids, _ in parts]), adjoin(np.concatenate([np.diff(offsets) for _, offsets in parts]))


def _narrow(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """IDs in the narrowest dtype, each checked to be one of the vocabulary."""
    if len(ids) and int(ids.max()) >= tokenizer.size:
        raise TokenizerError(f"the tokenizer gave ID {ids.max()}, its vocabulary ends at {tokenizer.size - 1}: it is damaged.")
    return ids.astype(tokenizer.dtype, copy=False)


def _string(data: Any) -> pa.StringArray:
    """One row over a buffer of UTF-8."""
    buffer = pa.py_buffer(data)
    return strings(buffer, np.array([0, buffer.size]))


def _spelled(tokenizer: Tokenizer, text: pa.StringArray) -> int:
    """Bytes of the normalized text as `_widths` counts them."""
    tree = backends.parse((tokenizer.folder / "tokenizer.json").read_bytes())
    every_byte = bytewise(tree)
    normalizer = _reference(tokenizer.folder).normalizer
    documents = text.to_pylist()
    if normalizer is not None and '"ByteLevel"' not in json.dumps(tree["normalizer"]):
        documents = [normalizer.normalize_str(document) for document in documents]
    return sum(len((document if every_byte else "".join(document.split())).encode()) for document in documents)


# -- proving one ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """What comparing a backend with Hugging Face's implementation on some text showed."""

    documents: int
    bytes: int
    differing: int  # documents whose IDs are not the same
    seconds: float


def prove(folder: Path, backend: str, special_in_text: str, sample: pa.StringArray) -> Proof:
    """Compare `backend` with the reference on `sample`; the caller decides what follows from it."""
    started = time.perf_counter()
    core = open_tokenizer(folder, backend, special_in_text).core  # the very one that does the work
    reference = backends.open_core("hf", (folder / "tokenizer.json").read_bytes(), special_in_text == "token")
    differing = backends.differences(core, reference, sample) if len(sample) else 0
    return Proof(len(sample), text_bytes(sample), differing, time.perf_counter() - started)
