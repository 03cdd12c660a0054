import http.server
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import assets, backends, config, pretrained, tokenizer, training, unigram
from pipeline.arrow import numbers
from pipeline.config import Tokenizer as Settings
from pipeline.errors import ConfigError, InputError, TokenizerError

ROOT = Path(__file__).resolve().parents[1]
ASSETS = os.environ.get("PIPELINE_ASSETS", "")
needs_assets = pytest.mark.skipif(not ASSETS, reason="PIPELINE_ASSETS is not set: no tokenizers or corpora without a network")

LINES = (
    "The cat sat on the mat, and the cat was happy.",
    "O rato roeu a roupa do rei de Roma; a rainha riu.",
    "\tIt's 1908 -- \"who's there?\" he'd said...  They   waited.\r\n",
    "naïve café, Ω≈ç√ 今日は晴れ。明日も。 😀👩‍👩‍👧",
    "The rain, the plain, the train: again and again and again.",
    "x" * 40 + " low lower lowest new newer newest wide wider widest",
)
CORPUS = (*(line for line in LINES for _ in range(3)), "the end\n\nof <|endoftext|> and [PAD] it")
KINDS = {
    "bpe": Settings(kind="bpe", vocab_size=400),
    "bpe lower": Settings(kind="bpe", vocab_size=300, lowercase=True, special_tokens=["endoftext", "<|pad|>"]),
    "wordpiece": Settings(kind="wordpiece", vocab_size=300, lowercase=True),
    "unigram": Settings(kind="unigram", vocab_size=200),
    "words": Settings(kind="words", vocab_size=None, min_frequency=1),
    "words lower": Settings(kind="words", vocab_size=40, min_frequency=1, lowercase=True, order="frequency"),
    "chars": Settings(kind="chars", vocab_size=None, min_frequency=1),
    "bytes": Settings(kind="bytes"),
}


def texts(*rows, size=1000):
    column = pa.array(rows, pa.string())
    return lambda: (column.slice(row, size) for row in range(0, len(column), size))


def save(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def make(settings, texts):
    """The files of a tokenizer, found or trained."""
    return tokenizer.train(settings, texts) if tokenizer.trained(settings) else tokenizer.find(settings)


def opened(folder, special="text", backend="hf"):
    return tokenizer.open_tokenizer(folder, tokenizer.backend(folder, backend), special)


def batch(rows, ends=None, start=0):
    n = len(rows)
    where = numbers(np.arange(start, start + n, dtype=np.int64))
    column = pa.array(list(ends or [True] * n), pa.bool_())
    return pa.record_batch(
        [pa.array(rows, pa.string()), numbers(np.zeros(n, np.int32)), where, where, column],
        names=["text", "source", "start", "end", "ends"],
    )


def ids_of(tok, batches, counts=None, **options):
    """IDs per document."""
    documents, current = [], []
    for out in tokenizer.tokenize(batches, tok, Counter() if counts is None else counts, **options):
        assert out.schema == tokenizer.schema(tok)
        for tokens, ends in zip(out["tokens"], out["ends"], strict=True):
            current += tokens.values.indices.to_pylist() if tokens.values is not None else []
            if ends.as_py():
                documents.append(current)
                current = []
    assert not current
    return documents


def tokens_of(tok, text):
    return [tok.vocab[i].as_py() for i in ids_of(tok, [batch([text])])[0]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return {name: save(root / name.replace(" ", "-"), make(settings, texts(*CORPUS))) for name, settings in KINDS.items()}


# -- facts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdict():
    return (Path(ASSETS) / "corpora" / "the-verdict.txt").read_text(encoding="utf-8")


def build_pretrained(tmp_path, **options):
    return save(tmp_path / "entry", tokenizer.find(Settings(kind="pretrained", **options)))


@needs_assets
@pytest.mark.parametrize("order", ["appearance", "alphabetical", "frequency"])
def test_words_count_4690_tokens_in_the_verdict_in_any_order(tmp_path, verdict, order):
    settings = Settings(kind="words", vocab_size=None, min_frequency=1, order=order)
    tok = opened(save(tmp_path, make(settings, texts(verdict))))
    (ids,) = ids_of(tok, [batch([verdict])])
    assert len(ids) == 4690
    assert tok.unk_id not in ids
    words = [tok.vocab[i].as_py() for i in range(2, tok.size)]
    counts = Counter(tokens_of(tok, verdict))
    expected = {"appearance": list(counts), "alphabetical": sorted(counts), "frequency": [w for w, _ in counts.most_common()]}
    assert words == expected[order]


@needs_assets
def test_bert_gives_the_facts_of_the_verdict(tmp_path, verdict):
    tok = opened(build_pretrained(tmp_path, name="google-bert/bert-base-uncased"), backend="auto")
    found = tokens_of(tok, verdict)
    assert len(found) == 5212
    assert " ".join(found[:10]) == "i had always thought jack gi ##sb ##urn rather a"
    assert tok.size == 30522
    assert [tok.vocab[i].as_py() for i in (2308, 457, 12026, 26092, 4856)] == [
        "women", "[unused452]", "sponsorship", "devout", "1950s"
    ]  # fmt: skip
    assert tok.frame == ((101,), (102,), True)
    assert (tok.pad_id, tok.unk_id, tok.frame, tok.eos_id) == (0, 100, ((101,), (102,), True), None)


@needs_assets
def test_gpt2_gives_the_facts_of_the_verdict(tmp_path, verdict):
    tok = opened(build_pretrained(tmp_path, name="gpt2"), backend="auto")
    (ids,) = ids_of(tok, [batch([verdict])])
    assert len(ids) == 5145
    assert ids[:8] == [40, 367, 2885, 1464, 1807, 3619, 402, 271]
    assert (tok.size, tok.dtype, tok.eos_id, tok.unk_id) == (50257, np.uint16, 50256, None)
    assert tok.frame == ((), (), False)


def test_words_get_ids_by_first_appearance_behind_pad_and_unk(tmp_path):
    text = "I love learning because I love new things"
    settings = Settings(kind="words", vocab_size=None, min_frequency=1, lowercase=True)
    tok = opened(save(tmp_path, make(settings, texts(text))))
    assert ids_of(tok, [batch([text])]) == [[2, 3, 4, 5, 2, 3, 6, 7]]
    assert (tok.pad_id, tok.unk_id, tok.vocab[0].as_py(), tok.vocab[1].as_py()) == (0, 1, "[PAD]", "[UNK]")
    assert ids_of(tok, [batch(["I love cheese"])]) == [[2, 3, 1]]


# -- each kind --------------------------------------------------------------------------------------------


def test_special_tokens_come_first_and_have_their_roles(made):
    expected = {
        "bpe": ["<|endoftext|>"],
        "bpe lower": ["endoftext", "<|pad|>", "<|endoftext|>"],
        "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "unigram": ["<unk>", "<|endoftext|>"],
        "words": ["[PAD]", "[UNK]"],
        "words lower": ["[PAD]", "[UNK]"],
        "chars": ["[PAD]", "[UNK]", "<|endoftext|>"],
    }
    for name, special in expected.items():
        assert opened(made[name]).vocab.to_pylist()[: len(special)] == special
    assert opened(made["bpe"]).eos_id == 0
    assert opened(made["bytes"]).eos_id == 256
    assert opened(made["wordpiece"]).frame == ((2,), (3,), True)


def test_the_vocabulary_size_is_an_upper_bound_that_holds(made):
    sizes = {name: opened(folder).size for name, folder in made.items()}
    for name, chosen in KINDS.items():
        if chosen.vocab_size is not None and chosen.kind != "bytes":
            assert sizes[name] <= chosen.vocab_size
    assert (sizes["bpe lower"], sizes["words lower"], sizes["bytes"]) == (300, 40, 257)


def test_every_character_is_a_token_white_space_included(made):
    tok = opened(made["chars"])
    text = "the\n\n cat\tsat\r\n"
    assert tokens_of(tok, text) == list(text)
    assert tok.decode(ids_of(tok, [batch([text])])[0]) == text
    seen = dict.fromkeys("".join(CORPUS))
    assert tok.vocab.to_pylist()[3:] == list(seen)


def test_characters_keep_the_most_frequent_and_then_their_order(tmp_path):
    settings = Settings(kind="chars", vocab_size=5, min_frequency=1)
    tok = opened(save(tmp_path, make(settings, texts("cabbacbd"))))
    assert tok.vocab.to_pylist()[3:] == ["c", "b"]  # a, b, c occur 2, 3, 2 times; of equals the first to appear
    assert ids_of(tok, [batch(["bd"])]) == [[4, tok.unk_id]]


def test_the_id_of_a_byte_is_its_value(made):
    tok = opened(made["bytes"])
    text = "caf\u00e9\0\n 😀"
    assert ids_of(tok, [batch([text])])[0] == list(text.encode())
    assert tok.decode(list(text.encode())) == text


@pytest.mark.parametrize("name", ["bpe", "unigram", "chars", "bytes"])
def test_decoding_gives_back_the_text(made, name):
    tok = opened(made[name])
    text = LINES[0] + "\n" + LINES[1] + "  \n"
    assert tok.decode(ids_of(tok, [batch([text])])[0]) == text


def test_a_rare_word_stays_out_and_a_pattern_is_heeded(tmp_path):
    settings = Settings(kind="words", vocab_size=None, min_frequency=2, pattern="[0-9]")
    tok = opened(save(tmp_path, make(settings, texts("a1b a1b c"))))
    assert tok.vocab.to_pylist() == ["[PAD]", "[UNK]", "a", "1", "b"]


@pytest.mark.parametrize(
    "settings, message",
    [
        (Settings(kind="bpe", vocab_size=256), "tokenizer.vocab_size=256 is too small.*257"),
        (Settings(kind="wordpiece", vocab_size=5), "tokenizer.vocab_size=5 is too small"),
        (Settings(kind="unigram", vocab_size=None), "tokenizer.vocab_size=null"),
        (Settings(kind="words", vocab_size=2), "tokenizer.vocab_size=2 is too small"),
        (Settings(kind="words", pattern="(["), r"tokenizer.pattern='\(\[' is not a regular expression"),
        (Settings(kind="bpe", special_tokens=[""]), "empty string"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        training.train(settings, texts(*CORPUS))


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "words"])
def test_a_corpus_without_a_word_is_an_input_error(kind):
    with pytest.raises(InputError, match="corpus"):
        training.train(Settings(kind=kind), texts("", ""))


def test_progress_tells_how_far_each_pass_has_come():
    told = []
    training.train(KINDS["bpe"], texts("abc", "déf", size=1), lambda what, done: told.append((what, done)))
    assert told == [("learning merges from", 3), ("learning merges from", 7)]


# -- the same bytes always --------------------------------------------------------------------------------

TRAIN = """
import hashlib, sys
import pyarrow as pa
sys.path[:0] = [{tests!r}, {root!r}]
from test_tokenizer import CORPUS, KINDS, texts
from pipeline import training
corpus = [line + " " + other for line in CORPUS for other in CORPUS]
for name, settings in KINDS.items():
    print(name, hashlib.sha256(training.train(settings, texts(*corpus, size={size})).encode()).hexdigest())
"""


@pytest.mark.slow
def test_training_gives_the_same_bytes_whatever_the_process():
    seen = set()
    for seed, parallel, size in (("0", "true", 1000), ("1", "false", 7), ("random", "true", 1)):
        threads = {"TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": str(size % 3 + 1)}
        code = TRAIN.format(tests=str(ROOT / "tests"), root=str(ROOT), size=size)
        ran = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed} | threads, capture_output=True, check=True
        )
        seen.add(ran.stdout.decode())
    assert len(seen) == 1
    assert len(seen.pop().splitlines()) == len(KINDS)


def test_a_sample_depends_on_seed_and_content_and_not_on_batches():
    rows = [f"document {i} " * 50 for i in range(400)]
    total = sum(map(len, rows))

    def sample(size, seed, share=4):
        settings = Settings(kind="bpe", sample_bytes=total // share, seed=seed)
        return list(training._passages(settings, texts(*rows, size=size), lambda done: None))

    assert sample(1, 0) == sample(400, 0) == sample(17, 0)
    assert sample(400, 0) != sample(400, 1)
    assert 0.15 < sum(map(len, sample(400, 0))) / total < 0.35
    assert sample(400, 0, share=1) == rows
    assert len(sample(400, 0, share=total)) == 1  # never nothing


def test_long_texts_become_passages_cut_before_white_space():
    text = "word " * 30_000
    passages = list(training._split(pa.array([text, "", "x" * 150_000])))
    assert "".join(passages) == text + "x" * 150_000
    assert max(map(len, passages)) <= training.PASSAGE
    assert all(passage[0] == " " for passage in passages[1:2])


@pytest.mark.parametrize("space", ["\t", "\u3000", "\x85"])
def test_words_between_white_space_of_any_kind_are_learned_whole(tmp_path, space):
    words = [f"w{i}" for i in range(20_000)]
    files = make(Settings(kind="words", vocab_size=None, min_frequency=1), texts(space.join(words)))
    assert list(json.loads(files["vocabulary.json"]))[2:] == words


# -- unigram ----------------------------------------------------------------------------------------------


def test_expected_uses_equal_those_of_all_segmentations_written_out():
    words = {"abab": 3.0, "ba": 2.0, "c": 1.0}
    order = sorted(words, key=lambda w: (-len(w), w))
    text = np.array([ord(c) for c in "".join(order)], np.int64)
    lengths = np.array([len(w) for w in order])
    starts = np.cumsum(lengths) - lengths
    weights = np.array([words[w] for w in order])
    table, names, counts = unigram._seed(text, starts, lengths, weights, 100, 2)
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        "a": 8,
        "b": 8,
        "c": 1,
        "ab": 6,
        "ba": 5,
        "aba": 3,
        "bab": 3,
        "abab": 3,
    }
    chance = np.arange(1, len(names) + 1) / 100
    p = dict(zip(names, chance.tolist(), strict=True))
    expected = dict.fromkeys(names, 0.0)
    for word, weight in words.items():
        ways = []
        for cuts in product([False, True], repeat=len(word) - 1):
            pieces, last = [], 0
            for at in [i + 1 for i, cut in enumerate(cuts) if cut] + [len(word)]:
                pieces.append(word[last:at])
                last = at
            if all(piece in p for piece in pieces):
                ways.append((np.prod([p[piece] for piece in pieces]), pieces))
        for chance_of_way, pieces in ways:
            for piece in pieces:
                expected[piece] += weight * chance_of_way / sum(c for c, _ in ways)
    uses = unigram._expected(table, starts, lengths, weights, chance)
    np.testing.assert_allclose(uses, [expected[name] for name in names])


def test_the_logarithm_of_our_own_is_a_logarithm():
    x = np.concatenate([np.geomspace(1e-300, 1e300, 1000), [1.0, 0.5, np.sqrt(0.5)]])
    np.testing.assert_allclose(unigram._log(x), np.log(x), rtol=1e-14, atol=1e-15)


def test_unigram_learns_the_words_that_repeat():
    pieces = dict(unigram.train({"▁the": 100, "▁then": 30, "▁cat": 50, "▁cats": 20}, 14, list("▁thencas"), 2))
    assert {"▁the", "▁cat"} <= pieces.keys()
    assert len(pieces) == 14 or len(pieces) < 14
    assert set("▁thencas") <= pieces.keys()
    assert max(pieces.values()) < 0


# -- documents in pieces ----------------------------------------------------------------------------------

PARTS = ["the", " ", "  ", "\n", "\r\n", "\t", "a", "B", "'s", "'", ".", "--", "1", "908", "\u00e9", "e\u0301", "\0", "\u00a0"]
PARTS += ["\u2028", "今日", "。", "한", "😀", "👩\u200d👩", "İ"]
PARTS += ["<|endoftext|>", "[PAD]", "<unk>", "<|end", "oftext|>", "endoftext"]
ALPHABET = st.sampled_from(PARTS)


def pieces_of(text, cuts):
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts} - {0, len(text)}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(ALPHABET, max_size=40), cuts=st.lists(st.integers(0, 10_000), max_size=8), extra=st.booleans())
def test_a_document_in_pieces_gives_the_tokens_of_the_whole(made, parts, cuts, extra):
    text = "".join(parts)
    pieces = pieces_of(text, cuts)
    split = [batch([piece], [i == len(pieces) - 1], i) for i, piece in enumerate(pieces)]
    if extra:
        split = [batch(["before", "x y"]), *split, batch(["after"])]
    for folder, special in product(made.values(), ("text", "token")):
        tok = opened(folder, special)
        whole_counts, piece_counts = Counter(), Counter()
        whole = ids_of(tok, [batch(["before", "x y", text, "after"] if extra else [text])], whole_counts)
        assert ids_of(tok, split, piece_counts) == whole
        assert piece_counts == whole_counts


def test_random_long_texts_in_small_pieces_give_the_tokens_of_the_whole(made):
    rng = random.Random(0)
    text = "".join(rng.choice([*LINES, " ", "\n", "今日は晴れ。", "<|endoftext|>"]) for _ in range(200))
    cuts = [rng.randrange(len(text)) for _ in range(60)]
    pieces = pieces_of(text, cuts)
    for name, folder in made.items():
        tok = opened(folder)
        assert tok.cut is not None, name
        split = [batch([piece], [i == len(pieces) - 1], i) for i, piece in enumerate(pieces)]
        assert ids_of(tok, split) == ids_of(tok, [batch([text])])


def test_a_piece_gives_its_tokens_as_soon_as_they_are_certain(made):
    tok = opened(made["words"])
    out = list(tokenizer.tokenize([batch(["the cat sat on the m"], [False]), batch(["at"], [True])], tok, Counter()))
    first, second = ([tok.vocab[i].as_py() for i in row["tokens"][0].values.indices.to_pylist()] for row in out)
    assert first + second == ["the", "cat", "sat", "on", "the", "mat"]
    assert len(first) >= 3


def plain_bpe(**extra):
    """A tokenizer.json that merges across everything: it has no place to cut."""
    vocab = {"a": 0, "b": 1, " ": 2, "ab": 3, "b a": 4, "b ": 5}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    model = {"type": "BPE", "vocab": vocab, "merges": [["b", " "], ["b ", "a"], ["a", "b"]]}
    return json.dumps({"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model, **extra})


def test_where_no_cut_is_safe_the_document_is_joined_and_said_so_once(tmp_path, caplog):
    save(tmp_path / "plain", {"tokenizer.json": plain_bpe()})
    tok = opened(build_pretrained(tmp_path, name=str(tmp_path / "plain")))
    assert tok.cut is None
    split = [batch(["ab"], [False]), batch([" a"], [False]), batch(["b b a"])]
    tokenizer._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert ids_of(tok, split * 2) == ids_of(tok, [batch(["ab ab b a"] * 2)])
    assert len([r for r in caplog.records if "as a whole" in r.message]) == 1


def test_looking_for_a_cut_stays_linear_where_there_is_none(made):
    tok = opened(made["words"])
    looked = []
    tok = tokenizer.Tokenizer(**{**vars(tok), "cut": lambda data: looked.append(len(data)) or 0})
    pieces = [batch(["x" * 10], [False])] * 1000 + [batch(["x"])]
    assert ids_of(tok, pieces) == ids_of(opened(made["words"]), [batch(["x" * 10_001])])
    assert sum(looked) < 4 * 10_000


@pytest.mark.parametrize("name", KINDS)
def test_the_number_of_documents_in_a_call_changes_nothing(made, name):
    rows = [*LINES, "", " ", LINES[0]]
    one, two = Counter(), Counter()
    assert ids_of(opened(made[name]), [batch(rows)], one) == ids_of(opened(made[name]), [batch(rows)], two, batch_size=2)
    assert one == two
    assert one["text_bytes"] == sum(len(row.encode()) for row in rows)


@pytest.mark.parametrize("name", KINDS)
def test_the_chosen_backend_gives_the_ids_of_the_reference(made, name):
    folder = made[name]
    for special in ("text", "token"):
        rows = [*LINES, "", *CORPUS[-1:]]
        assert ids_of(opened(folder, special, "auto"), [batch(rows)]) == ids_of(opened(folder, special, "hf"), [batch(rows)])


def test_the_reference_gets_long_rows_in_pieces_and_gives_the_same(made, monkeypatch):
    rows = ["a b", "", "".join(LINES) * 3, "x" * 300, LINES[0]]
    expected = {name: ids_of(opened(folder), [batch(rows).slice(1)]) for name, folder in made.items()}
    monkeypatch.setattr(tokenizer, "LONG", 64)
    for name, folder in made.items():
        pieces, first = tokenizer.cut_rows(batch(rows).slice(1)["text"], opened(folder).cut)
        assert len(pieces) > 8
        assert "".join(pieces.to_pylist()) == "".join(rows[1:])
        assert len(first) == len(rows)
        assert ids_of(opened(folder), [batch(rows).slice(1)]) == expected[name]


def test_tokens_stand_over_the_flat_ids_without_a_copy(made):
    tok = opened(made["bytes"])
    out = next(tokenizer.tokenize([batch(["abc", "de"])], tok, Counter()))
    column = out["tokens"]
    assert column.type == pa.list_(pa.dictionary(pa.uint16(), pa.string()))
    assert column.values.dictionary.equals(tok.vocab)
    assert column.values.indices.to_pylist() == list(b"abcde")
    column.validate(full=True)


@pytest.mark.row("C2")
def test_an_id_outside_the_vocabulary_is_an_error_and_never_wraps(made):
    tok = opened(made["bytes"])

    class Broken:
        name, version = "broken", "0"

        def encode(self, text):
            return np.array([70000], np.uint32), np.array([0, 1])

    broken = tokenizer.Tokenizer(**{**vars(tok), "core": Broken()})
    with pytest.raises(TokenizerError, match=r"70000.*256"):
        ids_of(broken, [batch(["a"])])


# -- special tokens in text -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_no_document_can_spell_a_special_token(made, name):
    tok = opened(made[name])
    special = {i for i, token in enumerate(tok.vocab.to_pylist()) if token in tok.special}
    text = " ".join(tok.special) + "x".join(tok.special) + "".join(tok.special)
    counts = Counter()
    (ids,) = ids_of(tok, [batch([text])], counts)
    assert not special.intersection(ids) - {tok.unk_id}
    assert counts["special_literals"] >= 3 * len(tok.special)


def test_a_literal_becomes_the_token_where_asked_and_is_counted(made):
    tok = opened(made["bpe"], "token")
    counts = Counter()
    (ids,) = ids_of(tok, [batch(["a<|endoftext|>b"])], counts)
    assert ids.count(0) == 1
    assert counts["special_literals"] == 1


def test_a_literal_is_an_error_where_asked_naming_the_row(made):
    tok = opened(made["bpe"], "error")
    rows = batch(["fine", "also <|endof text|>", "has <|endoftext|> in it"], start=40)
    with pytest.raises(
        InputError, match=r"'a.txt', 42 to 42: the text spells the special token '<\|endoftext\|>'.*special_in_text"
    ):
        ids_of(tok, [rows], sources=["a.txt"])
    ids_of(tok, [rows.slice(0, 2)])


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_literal_across_a_border_of_pieces_is_counted_once_and_refused(made, cut):
    text = "ab<|endoftext|>cd<|endoftext|>"
    pieces = [batch([text[:cut]], [False]), batch([text[cut:]])]
    counts = Counter()
    ids_of(opened(made["bpe"]), pieces, counts)
    assert counts["special_literals"] == 2
    with pytest.raises(InputError, match="endoftext"):
        ids_of(opened(made["bpe"], "error"), pieces)


def test_a_literal_across_two_documents_is_none(made):
    counts = Counter()
    ids_of(opened(made["bpe"], "error"), [batch(["a <|endof", "text|> b"])], counts)
    assert "special_literals" not in counts


def test_many_special_tokens_are_counted_like_one_by_one(tmp_path):
    special = [f"<|reserved_{i}|>" for i in range(300)] + ["<|reserved_1|>x", "[a-z]*"]
    settings = Settings(kind="bytes", special_tokens=special)
    tok = opened(save(tmp_path, make(settings, texts())))
    text = "".join(special) + "<|reserved_|> aaa" + special[7] * 3
    counts = Counter()
    assert ids_of(tok, [batch([text, ""])], counts) == [list(text.encode()), []]
    assert counts["special_literals"] == len(special) + 3


def test_a_model_that_cannot_take_a_literal_as_text_refuses_it(tmp_path):
    vocab = [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.0], ["b", -1.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    added = [
        {
            "id": 1,
            "content": "</s>",
            "special": True,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
    ]
    save(tmp_path / "leaky", {"tokenizer.json": plain_bpe(model=model, added_tokens=added)})
    folder = build_pretrained(tmp_path, name=str(tmp_path / "leaky"), eos_token="</s>")
    assert ids_of(opened(folder), [batch(["ab"])]) == [[2, 3]]
    with pytest.raises(InputError, match="cannot take as text"):
        ids_of(opened(folder), [batch(["fine", "a</s>b"])])
    assert ids_of(opened(folder, "token"), [batch(["a</s>b"])]) == [[2, 1, 3]]


@pytest.mark.row("C7")
def test_characters_that_vanish_are_counted_in_bytes(tmp_path):
    save(tmp_path / "plain", {"tokenizer.json": plain_bpe()})
    tok = opened(build_pretrained(tmp_path, name=str(tmp_path / "plain")))
    counts = Counter()
    assert ids_of(tok, [batch(["axbé", "ab"])], counts) == [[3], [3]]
    assert counts["unknown_bytes"] == 3
    bare = json.loads(plain_bpe())
    del bare["normalizer"], bare["pre_tokenizer"]  # which a file need not have
    save(tmp_path / "bare", {"tokenizer.json": json.dumps(bare)})
    tok, counts = opened(build_pretrained(tmp_path / "built", name=str(tmp_path / "bare"))), Counter()
    assert ids_of(tok, [batch(["axbé"])], counts) == [[3]] and counts["unknown_bytes"] == 3


def test_a_tokenizer_of_every_byte_or_with_an_unknown_token_loses_nothing(made):
    assert all(opened(folder).widths is None for folder in made.values())


# -- somebody else's --------------------------------------------------------------------------------------

BERT_WORDS = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "hello", "##lo", "##b", "world", ","]) + "\n"
ESM_WORDS = "<cls>\n<pad>\n<eos>\n<unk>\nL\nA\nG\nV\n<mask>\n"


def test_a_tokenizer_is_looked_for_by_path_then_in_data_then_in_the_mirror(tmp_path, monkeypatch, made):
    json_of = {name: (folder / "tokenizer.json").read_bytes() for name, folder in made.items()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_ASSETS", str(tmp_path / "mirror"))
    settings = Settings(kind="pretrained", name="some/name")
    places = ["mirror/tokenizers/name", "mirror/tokenizers/some/name", "data/tokenizers/some/name", "some/name"]
    for place, kind in zip(places, ("bpe", "chars", "bytes", "words"), strict=True):
        save(tmp_path / place, {"tokenizer.json": json_of[kind]})
        assert pretrained.load(settings)["tokenizer.json"] == json_of[kind]
    file = tmp_path / "mirror/tokenizers/name/tokenizer.json"
    assert pretrained.load(Settings(kind="pretrained", name=str(file)))["tokenizer.json"] == json_of["bpe"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub's client with an empty cache, pointed elsewhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    monkeypatch.chdir(tmp_path)
    pretrained._on_hub.cache_clear()

    def point(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")

    point("http://127.0.0.1:9")
    yield point
    pretrained._on_hub.cache_clear()


@pytest.mark.parametrize("state", ["offline mode", "nobody answers", "silence"])
@pytest.mark.row("C1")
def test_without_a_network_the_error_names_every_place_within_five_seconds(hub, monkeypatch, state):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if state == "offline mode":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        if state == "silence":
            monkeypatch.setattr(assets, "HUB_SECONDS", 0.5)
            hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TokenizerError) as caught:
            tokenizer.identity(Settings(kind="pretrained", name="acme/none"))
        assert time.monotonic() - started < 5
    message = str(caught.value)
    assert caught.value.exit_code == 6
    for part in (
        "'acme/none'",
        "'data/tokenizers/acme/none'",
        "the Hub",
        "Set tokenizer.name= to a local folder, PIPELINE_ASSETS",
    ):
        assert part in message
    assert "\n" not in message


def test_a_look_up_that_heeds_no_timeout_is_given_up():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer"):
        assets.within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - started < 2


def test_what_cannot_be_a_hub_name_is_not_asked_for(hub):
    with pytest.raises(TokenizerError, match=r"'/no/such/tokenizer.json' not found; tried '/no/such/tokenizer.json'\. Set"):
        pretrained.find(Settings(kind="pretrained", name="/no/such/tokenizer.json"))


@pytest.fixture
def hub_server(hub, made):
    """A Hub with one repository, acme/tok, whose main is a commit."""
    commit = "c" * 40
    files = {
        "tokenizer.json": (made["chars"] / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": b"{}",
        "model.bin": b"x",
    }
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body):
            asked.append(self.path)
            if self.path.startswith("/api/models/acme/tok"):
                info = {"id": "acme/tok", "modelId": "acme/tok", "sha": commit, "siblings": [{"rfilename": n} for n in files]}
                data, extra = json.dumps(info).encode(), {}
            else:
                data = files[self.path.rpartition("/")[2]]
                extra = {"ETag": f'"{len(data)}"', "X-Repo-Commit": commit}
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **extra}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub(f"http://127.0.0.1:{server.server_port}")
    yield commit, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_tokenizer_is_read_at_a_commit_and_found_again_without_a_network(hub, hub_server, made, caplog):
    commit, asked = hub_server
    settings = Settings(kind="pretrained", name="acme/tok")
    files = pretrained.load(settings)
    assert files["tokenizer.json"] == (made["chars"] / "tokenizer.json").read_bytes()
    assert tokenizer.origin(settings) == {"name": "acme/tok", "revision": commit}
    assert not any("model.bin" in path for path in asked)
    assert all(f"/resolve/{commit}/" in path or path.startswith("/api/") for path in asked)
    hub("http://127.0.0.1:9")
    pretrained._on_hub.cache_clear()
    assert pretrained.load(Settings(kind="pretrained", name="acme/tok", revision=commit)) == files


def test_a_folder_with_a_vocabulary_alone_is_converted_and_gives_the_same_ids(tmp_path):
    source = save(tmp_path / "bert", {"vocab.txt": BERT_WORDS, "tokenizer_config.json": '{"tokenizer_class": "BertTokenizer"}'})
    folder = build_pretrained(tmp_path, name=str(source))
    assert (folder / "tokenizer.json").exists()
    tok = opened(folder)
    assert tokens_of(tok, "Hello world, ab x") == ["hello", "world", ",", "a", "##b", "[UNK]"]
    assert tok.frame == ((2,), (3,), True)


@pytest.mark.row("C4")
def test_a_tokenizer_in_python_alone_works_with_one_warning_that_names_its_rate(tmp_path, caplog):
    source = save(tmp_path / "esm", {"vocab.txt": ESM_WORDS, "tokenizer_config.json": '{"tokenizer_class": "EsmTokenizer"}'})
    settings = Settings(kind="pretrained", name=str(source))
    with caplog.at_level(logging.WARNING):
        folder = save(tmp_path / "entry", make(settings, texts("LAGV LAG", "VV")))
    assert [("no fast form" in r.message and "MB/s" in r.message) for r in caplog.records] == [True]
    assert tokenizer.backend(folder, "auto") == "transformers"
    tok = opened(folder)
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(source))
    for text in ("LAGV", "L A<eos>G", "LAXV"):
        assert ids_of(opened(folder, "token"), [batch([text])]) == [reference.encode(text, add_special_tokens=False)]
    assert ids_of(tok, [batch(["LA"], [False]), batch(["GV"])]) == [[4, 5, 6, 7]]
    counts = Counter()
    (ids,) = ids_of(tok, [batch(["LA <eos> G"])], counts)
    assert tok.eos_id == 2
    assert 2 not in ids
    assert counts["special_literals"] == 1
    assert (tok.frame, tok.decode([4, 5])) == (((0,), (2,), False), "L A")


@pytest.mark.row("C18")
def test_remote_code_is_never_run(tmp_path):
    canary = tmp_path / "canary"
    source = save(
        tmp_path / "evil",
        {
            "tokenizer_config.json": '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}',
            "evil.py": f"open({str(canary)!r}, 'w')\nclass Evil: pass\n",
        },
    )
    with pytest.raises(TokenizerError, match="cannot read it"):
        pretrained.load(Settings(kind="pretrained", name=str(source)))
    assert not canary.exists()
    config_ = json.loads(pretrained.config_file({"auto_map": {"AutoTokenizer": "x"}}, {}))
    assert "auto_map" not in config_


def test_what_is_no_tokenizer_is_said_to_be_none(tmp_path):
    source = save(tmp_path / "broken", {"tokenizer.json": '{"model": 1}'})
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
        pretrained.load(Settings(kind="pretrained", name=str(source)))


@pytest.mark.row("C6")
def test_padding_and_truncation_are_switched_off(tmp_path):
    padding = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    save(tmp_path / "limits", {"tokenizer.json": plain_bpe(padding=padding, truncation=truncation)})
    folder = build_pretrained(tmp_path, name=str(tmp_path / "limits"))
    tree = json.loads((folder / "tokenizer.json").read_bytes())
    assert (tree["padding"], tree["truncation"]) == (None, None)
    assert ids_of(opened(folder), [batch(["abab"])]) == [[3, 3]]


def test_special_tokens_come_from_the_files_beside_and_from_the_configuration(tmp_path, made):
    source = save(
        tmp_path / "source",
        {
            "tokenizer.json": (made["wordpiece"] / "tokenizer.json").read_bytes(),
            "tokenizer_config.json": '{"pad_token": {"content": "[PAD]", "lstrip": false}, "bos_token": "<none>"}',
            "special_tokens_map.json": '{"eos_token": "[SEP]", "pad_token": "[MASK]"}',
        },
    )
    folder = build_pretrained(tmp_path, name=str(source), cls_token="[CLS]")
    tok = opened(folder)
    assert (tok.pad_id, tok.eos_id, tok.bos_id, tok.unk_id) == (0, 3, None, 1)
    with pytest.raises(ConfigError, match=r"tokenizer.eos_token='\[SEPP\]' is not in the vocabulary.*\[SEP\]"):
        build_pretrained(tmp_path, name=str(source), eos_token="[SEPP]")


@pytest.mark.row("C5")
def test_a_template_is_recorded_and_never_applied(tmp_path, made):
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing", "single": single, "pair": single,
             "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}}},
        ],
    }  # fmt: skip
    tree = json.loads((made["bytes"] / "tokenizer.json").read_bytes()) | {"post_processor": post}
    save(tmp_path / "bos", {"tokenizer.json": json.dumps(tree)})
    tok = opened(build_pretrained(tmp_path, name=str(tmp_path / "bos")))
    assert tok.frame == ((256,), (), False)
    assert ids_of(tok, [batch(["ab"])]) == [[97, 98]]


# -- what others read -------------------------------------------------------------------------------------


def test_auto_tokenizer_opens_every_folder_and_agrees(made):
    from transformers import AutoTokenizer

    for name, folder in made.items():
        tok = opened(folder, "token")
        other = AutoTokenizer.from_pretrained(str(folder))
        for text in (LINES[0], LINES[3], "a <|endoftext|> b [PAD]"):
            assert other.encode(text, add_special_tokens=False) == ids_of(tok, [batch([text])])[0], name
        for role in ("eos", "pad"):
            assert getattr(other, f"{role}_token_id") == getattr(tok, f"{role}_id"), (name, role)


@needs_assets
@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_auto_tokenizer_opens_a_pretrained_folder_and_agrees(tmp_path, verdict, name):
    from transformers import AutoTokenizer

    folder = build_pretrained(tmp_path, name=name)
    assert (
        AutoTokenizer.from_pretrained(str(folder)).encode(verdict[:500], add_special_tokens=False)
        == (ids_of(opened(folder), [batch([verdict[:500]])])[0])
    )


def test_the_vocabulary_can_be_looked_at(made):
    for folder in made.values():
        names = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        assert list(names.values()) == sorted(names.values())
        assert list(names) == opened(folder).vocab.to_pylist()


def test_opening_again_gives_the_same_object(made):
    assert opened(made["bpe"]) is opened(made["bpe"])


# -- keys -------------------------------------------------------------------------------------------------


def test_the_identity_holds_what_matters_and_nothing_else():
    def differs(kind, **changes):
        return tokenizer.identity(Settings(kind=kind)) != tokenizer.identity(Settings(kind=kind, **changes))

    assert differs("bpe", vocab_size=99)
    assert differs("words", pattern="x")
    assert differs("words", order="frequency")
    assert differs("chars", order="frequency")
    assert differs("bpe", sample_bytes=10)
    assert differs("bytes", eos_token="</s>")
    assert not differs("bpe", pattern="x", order="frequency", seed=3, name="x", revision="y", backend="hf")
    assert not differs("bytes", vocab_size=3, min_frequency=9, lowercase=True, seed=1, sample_bytes=5)
    assert not differs("words", pattern=training.PUNCTUATION)


def test_the_identity_of_a_pretrained_tokenizer_is_its_content(tmp_path, made):
    one = save(tmp_path / "one", {"tokenizer.json": (made["bpe"] / "tokenizer.json").read_bytes()})
    two = save(tmp_path / "two", {"tokenizer.json": (made["bpe"] / "tokenizer.json").read_bytes(), "README.md": "x"})
    ids = [tokenizer.identity(Settings(kind="pretrained", name=str(folder))) for folder in (one, two)]
    assert ids[0] == ids[1]
    assert str(tmp_path) not in json.dumps(ids)
    (two / "tokenizer_config.json").write_text("{}")
    assert tokenizer.identity(Settings(kind="pretrained", name=str(two))) != ids[0]
    assert tokenizer.identity(Settings(kind="pretrained", name=str(one), eos_token="x")) != ids[0]


def test_only_the_kinds_that_learn_must_see_the_corpus():
    assert [kind for kind in config.CHOICES["tokenizer.kind"] if tokenizer.trained(Settings(kind=kind))] == list(
        training.LEARNED
    )
    assert set(config.CHOICES["tokenizer.kind"]) == {*training.SPECIAL, "pretrained"}


def test_a_wrong_backend_is_found_out(made, monkeypatch):
    sample = pa.array([*LINES, "a"])
    right = tokenizer.prove(made["bpe"], "hf", "text", sample)
    assert (right.documents, right.bytes, right.differing) == (len(sample), sum(len(t.encode()) for t in sample.to_pylist()), 0)
    real = backends.open_core

    class Wrong:
        name, version = "wrong", "0"

        def __init__(self, core):
            self.core = core

        def encode(self, text):
            ids, offsets = self.core.encode(text)
            ids = ids.copy()
            ids[-1] += 1
            return ids, offsets

    monkeypatch.setattr(
        backends, "open_core", lambda name, *rest: real("hf", *rest) if name == "hf" else Wrong(real("hf", *rest))
    )
    assert tokenizer.prove(made["bpe"], "wrong", "text", sample).differing == 1


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "tokenizer").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_choice_composes_into_the_settings(path):
    omegaconf = pytest.importorskip("omegaconf")
    loaded = omegaconf.OmegaConf.load(path)
    settings = omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.merge(omegaconf.OmegaConf.structured(Settings), loaded))
    assert settings.kind in config.CHOICES["tokenizer.kind"]
    assert "_target_" not in path.read_text()
    if settings.kind in training.SPECIAL:
        assert "tokenizer.json" in make(settings, texts(*CORPUS))


def test_tokenizing_with_a_fast_backend_imports_neither_transformers_nor_pandas(made):
    if backends.choose((made["bpe"] / "tokenizer.json").read_bytes(), "auto") == "hf":
        pytest.skip("no fast backend is installed")
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from collections import Counter; from pathlib import Path
import numpy as np, pyarrow as pa
from pipeline import tokenizer
from pipeline.arrow import numbers
folder = Path({str(made["bpe"])!r})
tok = tokenizer.open_tokenizer(folder, tokenizer.backend(folder, "auto"), "text")
n = numbers(np.zeros(1, np.int64)); ends = pa.Array.from_buffers(pa.bool_(), 1, [None, pa.py_buffer(b"\\x01")])
columns = [tokenizer._string(b"a b"), numbers(np.zeros(1, np.int32)), n, n, ends]
rows = pa.record_batch(columns, names=["text", "source", "start", "end", "ends"])
assert sum(len(b) for b in tokenizer.tokenize([rows], tok, Counter())) == 1
print([m for m in ("torch", "transformers", "datasets", "pandas", "hydra", "tokenizers") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
