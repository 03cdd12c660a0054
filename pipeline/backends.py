"""Tokenizer cores: text in Arrow buffers becomes flat IDs, exactly as Hugging Face `tokenizers` gives them.

    core        serves                                            MB/s on two cores, English
    gigatoken   byte-level BPE split by a known regular expression          about 400
    splintr     WordPiece after BertNormalizer and BertPreTokenizer         about 140
    hf          every tokenizer.json; the reference                          about 10

The fast cores take one text a call. The documents of a batch are joined with a separator that the core knows as
one more token, and the IDs are cut where it appears: no Python object per document, and the GIL is released
while they work.

    documents   "ab" "" "c"   ──join──▶  ab|sep|sep|c   ──encode──▶  7 99 99 3   ──cut──▶  7 3,  offsets 0 1 1 2

A text that holds the separator itself gives one too many: then that batch goes to `hf`. So does every document
that a fast core is known to read differently.
"""

import functools
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.arrow import adjoin, call, flat_list, row_offsets, strings
from pipeline.errors import ConfigError, TokenizerError

PACKAGES = {"hf": "tokenizers", "gigatoken": "gigatoken", "splintr": "splintr-rs", "transformers": "transformers"}
GROUP = 1 << 16  # bytes that splintr gets in one string: enough of them to feed its threads
HF_GROUP = 1 << 20  # bytes that tokenizers gets at a time; it needs about 150 times as much memory

# The regular expressions that split words, from the tokenizer.json of GPT-2, Llama 3, Qwen 2 and GPT-4o.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LATER = (LLAMA3, QWEN2, GPT4O)

# Two noncharacters: they mean nothing in any text, and no model joins them to a neighbour.
BPE_SEPARATOR = "\U0010fffe\U0010ffff"
# Cuneiform word divider: punctuation since Unicode 5.0, so BertPreTokenizer sets it apart.
WORDPIECE_SEPARATOR = "\U00012470"
# Characters that splintr's newer Unicode tables class otherwise than those of `tokenizers` 0.23 (found by trying
# every code point in five contexts), widened to few ranges: documents with one of them go to `hf`.
NEWER_UNICODE = (
    "[\u061d\u07fd-\u08e2\u09fd\u09fe\u0a76\u0afa-\u0aff\u0b55\u0c04\u0c3c\u0c77\u0c84\u0d00\u0d3b\u0d3c\u0d81\u0eba\u0ece"
    "\u166d\u1734\u180f\u1885\u1886\u1abf-\u1ace\u1b4e-\u1b7f\u1df6-\u1dfb\u2e43-\u2e5d\ua82c\ua8c5\ua8ff\ua9bd"
    "\U00010d24-\U0001e95f\U0002b820-\U0002b91f]"
)


class Core(Protocol):
    """What turns text into IDs. `encode` may be called from several threads at once."""

    name: str

    def encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """IDs (uint32, flat) and offsets (int64, `len(text) + 1`). No special tokens are added."""


@functools.cache
def version(name: str) -> str:
    """The installed version of the library behind a backend."""
    from importlib.metadata import version

    return version(PACKAGES[name])


def choose(tokenizer_json: bytes, requested: str) -> str:
    """The backend for a tokenizer: the requested one, or for `auto` the fastest that is exact for it.

    Cheap: reads the JSON, imports no backend. Raises ConfigError where the requested one cannot serve it.
    """
    spec = parse(tokenizer_json)
    reasons = {"gigatoken": _not_gigatoken, "splintr": _not_splintr}
    if requested == "auto":
        return next((name for name, reason in reasons.items() if reason(spec) is None and _installed(name)), "hf")
    if requested in reasons:
        if reason := reasons[requested](spec):
            raise ConfigError(f"tokenizer.backend={requested} is not exact for this tokenizer: {reason}. Use auto or hf.")
        if not _installed(requested):
            raise ConfigError(f"tokenizer.backend={requested} needs: pip install {PACKAGES[requested]}")
    return requested


def open_core(name: str, tokenizer_json: bytes, special_in_text: bool) -> Core:
    """A core by name, for a tokenizer that `choose` found it fit for.

    `special_in_text`: a special token spelled out in a text becomes that token; else it is tokenized like any
    text (`encode_special_tokens` of Hugging Face). Raises TokenizerError where the library refuses the tokenizer.
    """
    cores: dict[str, Callable[[bytes, bool], Core]] = {"hf": HuggingFace, "gigatoken": Gigatoken, "splintr": Splintr}
    try:
        return cores[name](tokenizer_json, special_in_text)
    except Exception as error:
        raise TokenizerError(f"tokenizer.backend={name} cannot load this tokenizer.json: {error}") from error


def differences(core: Core, reference: Core, text: pa.StringArray) -> int:
    """How many documents of a sample get other IDs from `core` than from `reference`."""
    ids, offsets = core.encode(text)
    expected, edges = reference.encode(text)
    pairs = zip(pairwise(offsets), pairwise(edges), strict=True)
    return sum(not np.array_equal(ids[a:b], expected[c:d]) for (a, b), (c, d) in pairs)


# -- the cores --------------------------------------------------------------------------------------------


class HuggingFace:
    """`tokenizers` itself: the reference, for every tokenizer."""

    name = "hf"

    def __init__(self, tokenizer_json: bytes, special_in_text: bool) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = not special_in_text

    def encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """See Core. Works through the batch in groups, since each byte of text costs it about 150 of memory."""
        edges = _groups(row_offsets(text), HF_GROUP)
        ids, lengths = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
        for start, stop in pairwise(edges):
            rows = text.slice(start, stop - start).to_pylist()
            encodings = self.tokenizer.encode_batch_fast(rows, add_special_tokens=False)
            ids += [np.array(encoding.ids, np.uint32) for encoding in encodings]
            lengths.append(np.array([len(encoding) for encoding in encodings], np.int64))
        return np.concatenate(ids), np.cumsum(np.concatenate(lengths))


class Gigatoken:
    """Byte-level BPE."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: bytes, special_in_text: bool) -> None:
        from gigatoken import Tokenizer

        self.reference = functools.cache(lambda: HuggingFace(tokenizer_json, special_in_text))
        spec, self.separator = _plain(tokenizer_json, special_in_text)
        spec["added_tokens"].append(_added(self.separator, BPE_SEPARATOR))
        self.tokenizer = Tokenizer.from_json(json.dumps(spec))

    def encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """See Core."""
        from gigatoken import BytesSource

        data = _join(text, np.array([0, len(text)]), BPE_SEPARATOR)[0].as_buffer().to_pybytes()
        ids = np.zeros(0, np.uint32)
        if data:  # one row as wide as it is long: this call gives numpy arrays, where encode_batch imports awkward
            matrix, _ = self.tokenizer.encode_batch_padded(BytesSource(data), 0)
            ids = matrix.reshape(-1)
        return _cut(ids, np.array([len(ids)]), self.separator, len(text)) or self.reference().encode(text)


class Splintr:
    """WordPiece as BERT has it."""

    name = "splintr"

    def __init__(self, tokenizer_json: bytes, special_in_text: bool) -> None:
        import splintr

        self.reference = functools.cache(lambda: HuggingFace(tokenizer_json, special_in_text))
        spec, self.separator = _plain(tokenizer_json, special_in_text)
        spec["model"] = spec["model"] | {"vocab": spec["model"]["vocab"] | {WORDPIECE_SEPARATOR: self.separator}}
        self.tokenizer = splintr.from_json_bytes(json.dumps(spec).encode())

    def encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """See Core."""
        import pyarrow.compute as pc

        newer = pc.match_substring_regex(text, NEWER_UNICODE)
        if not pc.any(newer).as_py():
            return self._encode(text)
        ids, offsets = self._encode(text.filter(pc.invert(newer)))
        others, edges = self.reference().encode(text.filter(newer))
        rows = np.frombuffer(pc.indices_nonzero(newer).buffers()[1], np.uint64, len(edges) - 1).astype(np.int64)
        before = rows - np.arange(len(rows))  # documents of the first kind that stand before each of the second
        lengths = np.insert(np.diff(offsets), before, np.diff(edges))
        merged = np.insert(ids, np.repeat(offsets[before], np.diff(edges)), others)
        return merged, adjoin(lengths)

    def _encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        groups = _join(text, _groups(row_offsets(text), GROUP), WORDPIECE_SEPARATOR)
        flat, ends = self.tokenizer.encode_batch_flat(groups.to_pylist())
        ids, stops = np.frombuffer(flat, np.uint32), np.frombuffer(ends, np.uint64)[1:].astype(np.int64)
        return _cut(ids, stops, self.separator, len(text)) or self.reference().encode(text)


def _plain(tokenizer_json: bytes, special_in_text: bool) -> tuple[dict[str, Any], int]:
    """A tokenizer.json that only encodes, and the first ID that is free in it."""
    spec = dict(parse(tokenizer_json))
    free = 1 + max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])])
    kept = [token for token in spec["added_tokens"] if special_in_text or not token["special"]]
    return spec | {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}, free


def _added(index: int, content: str) -> dict[str, Any]:
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return {"id": index, "content": content, **flags}


def _groups(offsets: np.ndarray, size: int) -> np.ndarray:
    """Rows at which to cut a batch into groups of about `size` bytes, from 0 to the number of rows."""
    cuts = np.searchsorted(offsets, np.arange(offsets[0] + size, offsets[-1], size))
    edges = np.concatenate([[0], cuts, [len(offsets) - 1]])
    return edges[np.diff(edges, prepend=-1) > 0]  # each once: np.unique would import numpy.ma


def _join(text: pa.StringArray, edges: np.ndarray, separator: str) -> pa.StringArray:
    """One string per group of rows."""
    data = separator.encode()
    between = strings(data, np.array([0, len(data)]))[0]  # a Python string here would import pandas
    return call("binary_join", flat_list(text, edges), between)


def _cut(ids: np.ndarray, stops: np.ndarray, separator: int, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    """IDs without separators, and the offsets of the documents: at each separator and at each end of a group.

    None where there are not as many as documents, since a text holds the separator itself.
    """
    if len(stops) == 0 or rows == 0:
        return np.zeros(0, np.uint32), np.zeros(rows + 1, np.int64)
    keep = ids != separator
    at = np.flatnonzero(~keep)
    if len(at) + len(stops) != rows:
        return None
    ends = np.concatenate([at - np.arange(len(at)), stops - np.searchsorted(at, stops)])
    return ids[keep], np.concatenate([[0], np.sort(ends)])


# -- which core is exact for what -------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def parse(tokenizer_json: bytes) -> dict[str, Any]:
    """A tokenizer.json, to be read only."""
    try:
        spec = json.loads(tokenizer_json)
        present = {key: value for key, value in spec.items() if value is not None}
        return {"added_tokens": [], "normalizer": None, "pre_tokenizer": None} | present
    except (ValueError, AttributeError) as error:
        raise TokenizerError(f"tokenizer.json is not JSON that holds a tokenizer: {error}") from error


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def components(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Normalizers or pre-tokenizers in order, without the Sequences around them."""
    if node is None:
        return []
    children = node.get("pretokenizers", node.get("normalizers", []))
    return [step for child in children for step in components(child)] if node["type"] == "Sequence" else [node]


def is_split(step: dict[str, Any], patterns: tuple[str, ...]) -> bool:
    """Is it a Split that keeps every match of one of the patterns as a piece?"""
    pattern = step.get("pattern", {}).get("Regex") if step["type"] == "Split" else None
    return pattern in patterns and step["behavior"] == "Isolated" and not step["invert"]


def is_bytes(step: dict[str, Any], use_regex: bool | None) -> bool:
    """Is it ByteLevel as GPT-2 has it? `use_regex` None: with or without its regular expression."""
    plain = step["type"] == "ByteLevel" and not step["add_prefix_space"]
    return plain and (use_regex is None or step.get("use_regex", True) == use_regex)


def no_merges(spec: dict[str, Any]) -> bool:
    """Is it a BPE in which every character, or byte, stays a token by itself?"""
    model = spec["model"]
    return model.get("type", "BPE") == "BPE" and not model.get("merges") and not model.get("ignore_merges")


def byte_letters() -> list[str]:
    """The letter for each byte in a byte-level vocabulary (`bytes_to_unicode` of GPT-2's encoder.py).

    >>> byte_letters()[ord("a")], byte_letters()[ord(" ")]
    ('a', 'Ġ')
    """
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def _not_gigatoken(spec: dict[str, Any]) -> str | None:
    """Why gigatoken would not be exact, None where it is."""
    model, steps = spec["model"], components(spec["pre_tokenizer"])
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return f"its model is {model.get('type')}, not BPE"
    odd = [k for k in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
    if odd:
        return f"its model has {odd[0]}={model[odd[0]]!r}"
    if spec["normalizer"] is not None:
        return f"it has the normalizer {spec['normalizer']['type']}"
    known = len(steps) == 1 and is_bytes(steps[0], None if no_merges(spec) else True)
    known = known or (len(steps) == 2 and is_split(steps[0], LATER) and is_bytes(steps[1], False))
    if not known:
        return "its pre-tokenizer is not one that gigatoken is known to follow"
    letters = byte_letters()
    if missing := [letter for letter in letters if letter not in model["vocab"]]:
        return f"{len(missing)} of 256 bytes are missing in its vocabulary"
    merges = {merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]}
    for token in spec["added_tokens"]:
        spelled = "".join(letters[byte] for byte in token["content"].encode())
        merged = any(f"{spelled[:at]} {spelled[at:]}" in merges for at in range(1, len(spelled)))
        if token["single_word"] or len(spelled) == 1 or merged or BPE_SEPARATOR in token["content"]:
            return f"its added token {token['content']!r} is matched as a single word, or is also what text gives by itself"
    return None


def _not_splintr(spec: dict[str, Any]) -> str | None:
    """Why splintr would not be exact, None where it is."""
    model = spec["model"]
    if model.get("type") != "WordPiece":
        return f"its model is {model.get('type')}, not WordPiece"
    if model["continuing_subword_prefix"] != "##":
        return f"its continuing_subword_prefix is {model['continuing_subword_prefix']!r}"
    for part, kind in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        if (spec[part] or {}).get("type") != kind:
            return f"its {part} is not {kind}"
    if model["unk_token"] not in model["vocab"] or WORDPIECE_SEPARATOR in model["vocab"]:
        return "its vocabulary lacks the unknown token, or holds our separator"
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    if odd := [t["content"] for t in spec["added_tokens"] if not t["special"] or any(t[flag] for flag in flags)]:
        return f"its added token {odd[0]!r} is not plain"
    return None
