"""Tokenizers made from the corpus, or from nothing: each becomes an ordinary Hugging Face `tokenizer.json`.

    kind        a token is                                       IDs in order
    bpe         a run of bytes, merged pair by pair               special, 256 bytes, merges as they were learned
    wordpiece   a part of a word, `##` where it goes on           special, characters, merges as they were learned
    unigram     a piece of a word with a probability              special, pieces from the likeliest down
    words       what stands between white space and punctuation   special, words by `tokenizer.order`
    chars       one Unicode character, white space included       special, characters by `tokenizer.order`
    bytes       one byte; its value is its ID                     256 bytes, special

The same corpus gives the same bytes whatever the hash seeds, threads and batches. BPE in `tokenizers` is so by
itself. Its WordPiece trainer numbers `##x` in the order of a randomly seeded hash map, which then breaks ties
between merges: here the alphabet is counted first and numbered by hand. Its Unigram trainer adds floats in such
an order, see `unigram.py`. The corpus is streamed; what is kept is the count of each distinct word.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import text_bytes
from pipeline.backends import GPT2, byte_letters
from pipeline.config import LEARNED
from pipeline.config import Tokenizer as Settings
from pipeline.errors import ConfigError, InputError

log = logging.getLogger(__name__)

PASSAGE = 1 << 16  # characters of text that training looks at together; also the unit of a sample
LAST_SPACE = re.compile(r"(?s:.*)[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")  # White_Space of Unicode
# Punctuation that stands alone; of "Build a Large Language Model (From Scratch)", chapter 2.
PUNCTUATION = r"""[,.:;?_!"()']|--"""
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
SPECIAL = {
    "bpe": {"eos": "<|endoftext|>"},
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "unigram": {"unk": "<unk>", "eos": "<|endoftext|>"},
    "words": {"pad": "[PAD]", "unk": "[UNK]"},
    "chars": {"pad": "[PAD]", "unk": "[UNK]", "eos": "<|endoftext|>"},
    "bytes": {"eos": "<|endoftext|>"},
}

Texts = Callable[[], Iterable[pa.StringArray]]
Progress = Callable[[str, int], None]  # what is being done, bytes of text so far


def identity(t: Settings) -> dict[str, Any]:
    """The settings that matter for this kind, its special tokens, and the library that trains and writes it."""
    from importlib.metadata import version

    special, roles = special_tokens(t)
    out: dict[str, Any] = {"kind": t.kind, "special_tokens": special, "roles": roles, "tokenizers": version("tokenizers")}
    if t.kind in LEARNED:
        out |= {"vocab_size": t.vocab_size, "min_frequency": t.min_frequency, "lowercase": t.lowercase}
        if t.sample_bytes is not None:
            out |= {"sample_bytes": t.sample_bytes, "seed": t.seed}
    if t.kind == "words":
        out["pattern"] = t.pattern or PUNCTUATION
    if t.kind in ("words", "chars"):
        out["order"] = t.order
    return out


def special_tokens(t: Settings) -> tuple[list[str], dict[str, str]]:
    """Special tokens in the order of their IDs, and role (eos, pad, …) -> token.

    First those of `tokenizer.special_tokens` as listed, then the others in the order of ROLES.
    """
    roles = dict(SPECIAL[t.kind])
    for role in ROLES:
        if chosen := getattr(t, f"{role}_token", None):
            roles[role] = chosen
    roles = {role: roles[role] for role in ROLES if role in roles}
    return list(dict.fromkeys([*t.special_tokens, *roles.values()])), roles


def train(t: Settings, texts: Texts, progress: Progress = lambda what, done: None) -> str:
    """The `tokenizer.json` of a kind other than `pretrained`, learned from `texts()` (which may be called again).

    Raises ConfigError where `vocab_size` is too small or `pattern` is no regular expression, InputError where the
    corpus holds nothing to learn from.
    """
    special, roles = special_tokens(t)
    if "" in special:
        raise ConfigError("tokenizer.special_tokens holds an empty string.")

    def passages(what: str) -> Iterator[str]:
        return _passages(t, texts, lambda done: progress(what, done))

    makers: dict[str, Callable[..., Any]] = {
        "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram, "words": _words, "chars": _chars, "bytes": _bytes
    }  # fmt: skip
    tokenizer = makers[t.kind](t, special, roles, passages)
    added = [_special(token) for token in special]
    tokenizer.add_special_tokens(added)
    return _guarded(tokenizer, t.kind, special)


def _special(token: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(token, special=True, normalized=False)


# -- the corpus as passages -------------------------------------------------------------------------------


def _passages(t: Settings, texts: Texts, progress: Callable[[int], None]) -> Iterator[str]:
    """The corpus in strings of at most PASSAGE characters, cut before white space; or a sample of them.

    A passage is in the sample where its number's draw from PCG64(seed) is below sample_bytes / all bytes: a
    function of the texts and their order alone.
    """
    total = sum(text_bytes(text) for text in texts()) if t.sample_bytes else 0
    rate = min(1.0, t.sample_bytes / max(total, 1)) if t.sample_bytes else 1.0
    draws = np.random.Generator(np.random.PCG64(t.seed))
    first, found, done = None, False, 0
    for text in texts():
        for passage in _split(text):
            if rate == 1.0 or draws.random() < rate:
                found = True
                yield passage
            elif first is None:
                first = passage
        done += text_bytes(text)
        progress(done)
    if not found and first is not None:
        yield first


def _split(text: pa.StringArray) -> Iterator[str]:
    for string in text.to_pylist():
        start = 0
        while len(string) - start > PASSAGE:
            space = LAST_SPACE.match(string, start + 1, start + PASSAGE)
            stop = space.end() - 1 if space else start + PASSAGE
            yield string[start:stop]
            start = stop
        yield string[start:] if start else string


def _word_counts(tokenizer: Any, passages: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, words being what the tokenizer's normalizer and pre-tokenizer leave.

    The trainers of `tokenizers` count words in parallel; the counts are read from a trainer's pickled state.
    """
    from tokenizers import models, trainers

    trainer = trainers.WordLevelTrainer(vocab_size=1, min_frequency=0, show_progress=False)
    tokenizer.model = models.WordLevel(unk_token="")
    tokenizer.train_from_iterator(passages, trainer)
    words: dict[str, int] = json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"]
    if not words:
        raise InputError("the corpus holds no text that a tokenizer could be trained on.")
    return words


def _alphabet(words: dict[str, int], limit: int) -> list[str]:
    """The characters of the words by code point; the `limit` most frequent where there are more, and says so."""
    counts: dict[str, int] = {}
    for word, count in words.items():
        for character in word:
            counts[character] = counts.get(character, 0) + count
    kept = sorted(counts, key=lambda c: (-counts[c], c))[:limit]
    if len(kept) < len(counts):
        rare = len(counts) - len(kept)
        log.info("tokenizer: %d rare characters of %d stay unknown, since tokenizer.vocab_size is small", rare, len(counts))
    return sorted(kept)


def _room(t: Settings, special: list[str], alphabet: int, what: str) -> int:
    """`vocab_size`, checked to hold the special tokens and the alphabet."""
    if t.vocab_size is None:
        raise ConfigError(f"tokenizer.vocab_size=null: tokenizer.kind={t.kind} needs a size.")
    if t.vocab_size < alphabet + len(special):
        raise ConfigError(
            f"tokenizer.vocab_size={t.vocab_size} is too small: {what} and {len(special)} special tokens need at least "
            f"{alphabet + len(special)}."
        )
    return t.vocab_size


# -- one maker a kind -------------------------------------------------------------------------------------


def _bpe(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if t.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_room(t, special, 256, "256 bytes"),
        min_frequency=t.min_frequency,
        special_tokens=[_special(token) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages("learning merges from"), trainer)
    return tokenizer


def _wordpiece(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    size = _room(t, special, 2, "characters")
    tokenizer = Tokenizer(models.WordLevel())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=t.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _word_counts(tokenizer, passages("counting characters in"))
    alphabet = _alphabet(words, max(1, (size - len(special)) // 4))
    inner = {character for word in words for character in word[1:]}.intersection(alphabet)
    # Tokens listed as special get the first IDs, in this order; so nothing is left to the order of a hash map.
    ordered = [*special, *(c for c in alphabet if c not in special), *sorted(f"##{c}" for c in inner)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=t.min_frequency,
        special_tokens=ordered,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.model = models.WordPiece()
    tokenizer.train_from_iterator(passages("learning merges from"), trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    trained = Tokenizer(models.WordPiece(vocab, unk_token=roles["unk"]))  # whose only special tokens are special
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trained.decoder = decoders.WordPiece()
    ends = [(roles[role], vocab[roles[role]]) for role in ("sep", "cls")]
    trained.post_processor = processors.BertProcessing(*ends)
    return trained


def _unigram(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    from pipeline import unigram

    size = _room(t, special, 1, "characters") - len(special)
    tokenizer = Tokenizer(models.Unigram())
    if t.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(GPT2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    counts = _word_counts(tokenizer, passages("counting words in"))
    pieces = unigram.train(counts, size, _alphabet(counts, max(1, size // 2)), t.min_frequency)
    pieces = [piece for piece in pieces if piece[0] not in special][:size]
    vocab = [*((token, 0.0) for token in special), *pieces]
    tokenizer.model = models.Unigram(vocab, unk_id=special.index(roles["unk"]), byte_fallback=False)
    return tokenizer


def _words(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        alone = pre_tokenizers.Split(Regex(t.pattern or PUNCTUATION), "isolated")
    except Exception as error:
        raise ConfigError(f"tokenizer.pattern={t.pattern!r} is not a regular expression: {error}.") from error
    tokenizer = Tokenizer(models.WordLevel())
    if t.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), alone])
    counts = _word_counts(tokenizer, passages("counting words in"))
    names = sorted(word for word, count in counts.items() if count >= t.min_frequency and word not in special)
    if t.order != "alphabetical" or t.vocab_size is not None:
        tokenizer.model = models.WordLevel({name: i for i, name in enumerate(names)} | {"": len(names)}, unk_token="")
        first = np.full(len(names) + 1, np.iinfo(np.int64).max)
        done = 0
        for some in _batches(passages("ordering words of")):
            encodings = tokenizer.encode_batch_fast(some)
            ids = np.concatenate([np.array(e.ids, np.int64) for e in encodings])
            seen, at = np.unique(ids, return_index=True)
            first[seen] = np.minimum(first[seen], at + done)
            done += len(ids)
        names = _ordered(t, names, np.array([counts[name] for name in names], np.int64), first[:-1], special)
    vocab = {name: i for i, name in enumerate([*special, *names])}
    tokenizer.model = models.WordLevel(vocab, unk_token=roles["unk"])
    return tokenizer


def _batches(passages: Iterable[str], size: int = 1 << 22) -> Iterator[list[str]]:
    waiting: list[str] = []
    room = size
    for passage in passages:
        waiting.append(passage)
        room -= len(passage)
        if room <= 0:
            yield waiting
            waiting, room = [], size
    if waiting:
        yield waiting


def _ordered(t: Settings, names: list[str], counts: np.ndarray, first: np.ndarray, special: list[str]) -> list[str]:
    """`names` (given by code point) as `tokenizer.order` says, the most frequent ones where `vocab_size` is set."""
    by_frequency = np.lexsort((first, -counts))
    if t.vocab_size is not None:
        by_frequency = by_frequency[: _room(t, special, 1, "one token") - len(special)]
    chosen = {"frequency": by_frequency, "alphabetical": np.sort(by_frequency)}.get(t.order)
    if chosen is None:
        chosen = by_frequency[np.argsort(first[by_frequency], kind="stable")]
    return [names[i] for i in chosen.tolist()]


def _chars(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    normalizer = normalizers.Lowercase() if t.lowercase else None
    points = 0x110000
    counts, first, done = np.zeros(points, np.int64), np.full(points, np.iinfo(np.int64).max), 0
    for some in _batches(passages("counting characters in")):
        text = "".join(some)
        text = normalizer.normalize_str(text) if normalizer else text
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        seen, at, count = np.unique(codes, return_index=True, return_counts=True)
        counts[seen] += count
        first[seen] = np.minimum(first[seen], at + done)
        done += len(codes)
    counts[[ord(token) for token in special if len(token) == 1]] = 0
    known = np.flatnonzero(counts >= max(1, t.min_frequency))
    if not len(known):
        raise InputError("the corpus holds no characters that a tokenizer could be made of.")
    names = _ordered(t, [chr(c) for c in known.tolist()], counts[known], first[known], special)
    # BPE without a merge gives one token a character, several times faster than splitting at each.
    vocab = {name: i for i, name in enumerate([*special, *names])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token=roles["unk"], fuse_unk=False))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bytes(t: Settings, special: list[str], roles: dict[str, str], passages: Callable[[str], Iterator[str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {letter: byte for byte, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _guarded(tokenizer: Any, kind: str, special: list[str]) -> str:
    """The JSON of a tokenizer, with one more splitting rule where text could spell a special token by itself.

    A model that holds special tokens in its vocabulary finds them in text that says "[PAD]" unless something
    splits it: then its first character is set apart. Special tokens of one character cannot be told from text.
    """

    def leaks(token: str) -> bool:
        encoding = tokenizer.encode(token, add_special_tokens=False)
        own = (tokenizer.token_to_id(token), (0, len(token)))
        return own in zip(encoding.ids, encoding.offsets, strict=True)

    tokenizer.encode_special_tokens = True
    leaking = [token for token in special if len(token) > 1 and leaks(token)]
    text = str(tokenizer.to_str(pretty=True))
    if not leaking:
        return text
    rule = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in leaking)
    guard = {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
    tree = json.loads(text)
    own = tree["pre_tokenizer"]
    parts = own["pretokenizers"] if own and own["type"] == "Sequence" else [own] if own else []
    # Last, so that what cuts at white space still comes first; but before anything that rewrites characters.
    parts = [guard, *parts] if kind in ("bpe", "unigram") else [*parts, guard]
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    return json.dumps(tree, indent=2, ensure_ascii=False)
