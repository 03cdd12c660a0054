import json
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline import backends, cuts
from pipeline.errors import ConfigError, TokenizerError

PROSE = """It was not till three years later that, in the course of a few weeks' idling on the Riviera, it suddenly
occurred to me to wonder why Gisburn had given up his painting. "I'll tell you," she'd said; we're 1,234.5 km away!
O rato roeu a roupa do rei de Roma; não há razão, é só a língua portuguesa, ç e ã.
Мама мыла раму. 中文没有空格。第二句！日本語のカタカナとひらがな、はい。 한국어 텍스트입니다.
def f(x):\n\treturn x['key'] + "\\n"\r\n\r\n    # snake_case CamelCase <html> https://a.b/c?d=e
😀👩‍👩‍👧 हिन्दी ไทย العربية\n"""
SPACES = "\u3000  x\u00a0  y\u2003  z\x85 \n" * 40  # so that merges cross them
ODD = [
    "", " ", "   ", "\t", "\n", "\r\n", " a ", "  a  b  ", " \n \n ", "a\r\nb\r\n\r\nc", "\0", "a\0b",
    "\t'", "\t's it's IT'S 'll 'LL", "''''''s 's's's", "x" * 20000, "é" * 300, "a" * 101,
    "😀", "👩‍👩‍👧‍👦 family", "한국어 텍스트", "\u1100\u1161\u11a8 각", "e\u0301 \u0301e \u0301", "a\u0338=b !\u0338x",
    "\x0b\x0c\x1c\x1d\x85\x7f", "\ud7ff\ue000\uffff\U00010348 \U0001d518\U0010fffd", "ΣΑΣ Σ ΟΔΟΣ.",
    "İstanbul ıI ß ẞ ŉ ǰ", "ﬁ ½ ① ㎏ ﷺ", "\u00a0 \u2003 \u3000x\u2028y", "\u200b\u200d\ufeff\u00ad",
    "中文没有空格。第二句！", "\u1734\u2e52 \U0001e02a\U0002b881",
    "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|> <|endoftext|>", "<|endoftext",
    "[CLS] [UNK] [MASK][PAD]x[SEP]y", "[cls] ##ing [ SEP ]",
    backends.BPE_SEPARATOR, "a" + backends.WORDPIECE_SEPARATOR + "b", PROSE,
]  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Short texts of odd letters and of any code point, the same each time."""
    draw = random.Random(seed)
    alphabet = [c for text in ODD if len(text) < 200 for c in text] + list(" abcST'\n\t") * 8

    def letter() -> str:
        if draw.random() < 0.8:
            return draw.choice(alphabet)
        return chr(draw.choice([draw.randint(0x300, 0x36F), draw.randint(0, 0xD7FF), draw.randint(0xE000, 0x10FFFF)]))

    return ["".join(letter() for _ in range(draw.randint(1, 30))) for _ in range(count)]


def make(model, pre=None, normalizer=None, special=("<|endoftext|>",), added=()) -> bytes:
    tokenizer = Tokenizer(model)
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if isinstance(model, models.BPE):
        alphabet, size = pre_tokenizers.ByteLevel.alphabet(), 600
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
    elif isinstance(model, models.WordPiece):
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(special), show_progress=False)
    elif isinstance(model, models.Unigram):
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=[*special], unk_token=special[0], show_progress=False)
    else:
        trainer = trainers.WordLevelTrainer(special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator([PROSE] * 3 + [SPACES], trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer.to_str().encode()


def byte_level(**kind):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | kind)


def split(pattern: str, last=None):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last or byte_level(use_regex=False)])


def byte_bpe(pre=None, **kind) -> bytes:
    return make(models.BPE(), pre or byte_level(), **kind)


def no_merges(letters, pre) -> bytes:
    vocab = {letter: i for i, letter in enumerate(["<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    tokenizer.add_special_tokens(["<unk>", "<|endoftext|>"])
    return tokenizer.to_str().encode()


def wordpiece(special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), **kind) -> bytes:
    bert = normalizers.BertNormalizer(**kind)
    tokens = [AddedToken(token, special=True, normalized=False) for token in special]
    return make(models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), bert, tokens)


GUARD = pre_tokenizers.Split(Regex(re.escape("[") + "(?=" + re.escape("PAD]") + ")"), "isolated")
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
PUNCTUATION = pre_tokenizers.Split(Regex(r"""[,.:;?_!"()']|--"""), "isolated")
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), PUNCTUATION])
BERT = pre_tokenizers.BertPreTokenizer()
FAST = {
    "bpe": lambda: byte_bpe(),
    "bpe with several special tokens": lambda: byte_bpe(special=["<a", "<ab", "b>", "<|endoftext|>", "[SEP]"]),
    "bpe with tokens that strip": lambda: byte_bpe(
        added=[AddedToken("[SEP]", lstrip=True, special=True), AddedToken("[CLS]", rstrip=True)]
    ),
    "bpe of Llama 3": lambda: byte_bpe(split(backends.LLAMA3)),
    "bpe of Qwen 2 without NFC": lambda: byte_bpe(split(backends.QWEN2)),
    "bpe of GPT-4o": lambda: byte_bpe(split(backends.GPT4O)),
    "bytes": lambda: no_merges(sorted(pre_tokenizers.ByteLevel.alphabet()), byte_level(use_regex=False)),
    "wordpiece": lambda: wordpiece(),
    "wordpiece, cased": lambda: wordpiece(lowercase=False),
    "wordpiece, bare": lambda: wordpiece(clean_text=False, handle_chinese_chars=False, strip_accents=False),
}
HARD = {  # reason: tokenizer that must fall back
    "normalizer NFC": lambda: byte_bpe(normalizer=normalizers.NFC()),
    "pre-tokenizer": lambda: byte_bpe(byte_level(use_regex=False)),
    "pre-tokenizer ": lambda: byte_bpe(byte_level(add_prefix_space=True)),
    "'family'": lambda: byte_bpe(added=[AddedToken("family", single_word=True)]),
    "'in'": lambda: byte_bpe(special=["in"]),
    "' of'": lambda: byte_bpe(special=[" of", "<|endoftext|>"]),
    "'!'": lambda: byte_bpe(special=["!"]),
    "not BPE": lambda: make(models.WordLevel(unk_token="<|endoftext|>"), pre_tokenizers.Whitespace()),
}
CUTTABLE = FAST | {
    "bpe, lower-cased": lambda: byte_bpe(normalizer=normalizers.Lowercase(), special=()),
    "bpe, NFC": lambda: byte_bpe(normalizer=normalizers.NFC(), special=()),
    "chars": lambda: no_merges(sorted(set(PROSE)), None),
    "unigram": lambda: make(models.Unigram(), pre_tokenizers.Metaspace(), special=["<unk>", "<|endoftext|>"]),
    "unigram of words": lambda: make(
        models.Unigram(), split(backends.GPT2, METASPACE), special=["<unk>", "[PAD]"]
    ),
    "words": lambda: make(
        models.WordLevel(unk_token="[UNK]"), WORDS, special=["[UNK]"]
    ),
    "words, guarded": lambda: make(
        models.WordLevel(unk_token="[UNK]"),
        pre_tokenizers.Sequence([GUARD, pre_tokenizers.WhitespaceSplit(), PUNCTUATION]),
        special=["[UNK]", "[PAD]", "a b"],
    ),
    "words, guarded, lower-cased": lambda: make(
        models.WordLevel(unk_token="[UNK]"),
        pre_tokenizers.Sequence([GUARD, pre_tokenizers.WhitespaceSplit(), PUNCTUATION]),
        normalizers.Lowercase(),
        [AddedToken("[UNK]", special=True, normalized=False), AddedToken("[PAD]", special=True, normalized=False)],
    ),
    "whitespace": lambda: make(models.WordLevel(unk_token="[UNK]"), pre_tokenizers.Whitespace(), special=["[UNK]"]),
    "bpe with special tokens that hold borders": lambda: byte_bpe(special=["a b c", "ab!", "。！", "<|endoftext|>"]),
}  # fmt: skip
UNCUTTABLE = {
    "no pre-tokenizer": lambda: make(models.BPE()),
    "no regular expression": lambda: byte_bpe(byte_level(use_regex=False)),
    "prefix space": lambda: byte_bpe(byte_level(add_prefix_space=True)),
    "another pattern": lambda: byte_bpe(split(r"\d+|\D+")),
    "NFKC": lambda: byte_bpe(normalizer=normalizers.NFKC()),
    "rstrip": lambda: byte_bpe(added=[AddedToken("[SEP]", rstrip=True)]),
    "single word": lambda: byte_bpe(added=[AddedToken("family", single_word=True)]),
    "normalized token": lambda: make(
        models.WordPiece(unk_token="[UNK]"), BERT, normalizers.BertNormalizer(), ["[UNK]"], [AddedToken("gpt")]
    ),
    "a guard in lower-cased text": lambda: byte_bpe(
        pre_tokenizers.Sequence([GUARD, byte_level()]),
        normalizer=normalizers.Lowercase(),
        special=[AddedToken("[PAD]", normalized=False)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def built():
    """Each tokenizer is trained once."""
    made: dict = {}
    makers = {**CUTTABLE, **{f"hard {k}": v for k, v in HARD.items()}, **{f"uncuttable {k}": v for k, v in UNCUTTABLE.items()}}

    def build(name: str) -> bytes:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return build


def asset(name: str) -> bytes:
    mirror = os.environ.get("PIPELINE_ASSETS")
    path = Path(mirror or "", "tokenizers", name, "tokenizer.json")
    if not mirror or not path.is_file():
        pytest.skip(f"needs tokenizers/{name}/tokenizer.json in the folder PIPELINE_ASSETS")
    return path.read_bytes()


def assert_exact(tokenizer_json: bytes, special_in_text: bool, texts: list[str]) -> None:
    name = backends.choose(tokenizer_json, "auto")
    assert name != "hf"
    core = backends.open_core(name, tokenizer_json, special_in_text)
    reference = Tokenizer.from_str(tokenizer_json.decode())
    reference.encode_special_tokens = not special_in_text
    expected = [e.ids for e in reference.encode_batch_fast(texts, add_special_tokens=False)]
    for start, stop in ((0, len(texts)), (3, 4), (5, 5), (0, 1)):
        ids, offsets = core.encode(pa.array(texts, pa.string()).slice(start, stop - start))
        assert (ids.dtype, offsets.dtype, len(offsets)) == (np.uint32, np.int64, stop - start + 1)
        got = [ids[a:b].tolist() for a, b in pairwise(offsets)]
        wrong = [texts[start + i] for i in range(stop - start) if got[i] != expected[start + i]]
        assert not wrong, f"{len(wrong)} texts differ, first {wrong[0][:60]!a}"


@pytest.mark.parametrize("special_in_text", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("name", FAST)
def test_fast_core_gives_the_ids_of_hugging_face(built, name, special_in_text):
    separators = (backends.BPE_SEPARATOR, backends.WORDPIECE_SEPARATOR)
    texts = [text for text in ODD + random_texts(600) if not any(s in text for s in separators)]
    assert_exact(built(name), special_in_text, texts)
    assert_exact(built(name), special_in_text, ODD)


@pytest.mark.parametrize("special_in_text", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_fast_core_gives_the_ids_of_hugging_face_for_shipped_tokenizers(name, special_in_text):
    separators = (backends.BPE_SEPARATOR, backends.WORDPIECE_SEPARATOR)
    texts = [text for text in ODD + random_texts(5000, 1) if not any(s in text for s in separators)]
    assert_exact(asset(name), special_in_text, texts)
    assert_exact(asset(name), special_in_text, ODD)


def test_wordpiece_core_agrees_on_every_kind_of_code_point():
    points = [
        c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x3400 or 0xA000 <= c < 0xAC00 or 0xFB00 <= c < 0x20000)
    ]
    assert_exact(
        asset("bert-base-uncased"),
        False,
        ["".join(f"a{chr(c)}b {chr(c)}! " for c in points[i : i + 8]) for i in range(0, len(points), 8)],
    )


@pytest.mark.parametrize("reason", HARD)
def test_a_tokenizer_that_a_fast_core_reads_otherwise_falls_back(built, reason):
    data = built(f"hard {reason}")
    assert backends.choose(data, "auto") == "hf"
    assert backends.choose(data, "hf") == "hf"
    with pytest.raises(ConfigError, match=r"tokenizer\.backend=gigatoken is not exact") as error:
        backends.choose(data, "gigatoken")
    assert reason.strip() in str(error.value)


def test_a_wordpiece_of_another_kind_falls_back(built):
    spec = json.loads(built("wordpiece"))
    for change in (
        {"normalizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": spec["model"] | {"continuing_subword_prefix": "@@"}},
    ):
        assert backends.choose(json.dumps(spec | change).encode(), "auto") == "hf"
        with pytest.raises(ConfigError, match=r"tokenizer\.backend=splintr is not exact"):
            backends.choose(json.dumps(spec | change).encode(), "splintr")


def test_a_backend_that_is_not_installed_is_passed_over_or_named(built, monkeypatch):
    monkeypatch.setattr(backends, "_installed", lambda name: False)
    assert backends.choose(built("bpe"), "auto") == "hf"
    with pytest.raises(ConfigError, match="pip install gigatoken"):
        backends.choose(built("bpe"), "gigatoken")


def test_a_broken_tokenizer_json_is_named():
    with pytest.raises(TokenizerError, match="not JSON"):
        backends.choose(b"\0", "auto")
    with pytest.raises(TokenizerError, match=r"tokenizer\.backend=hf cannot load"):
        backends.open_core("hf", b"{}", False)


def test_every_backend_has_a_version(built):
    for name in backends.PACKAGES:
        assert re.match(r"\d+\.\d+", backends.version(name))


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_two_threads_on_one_core_get_the_same_ids(built, name):
    core = backends.open_core(backends.choose(built(name), "auto"), built(name), False)
    text = pa.array([PROSE * 20, *random_texts(50)] * 20, pa.string())
    ids, offsets = core.encode(text)
    with ThreadPoolExecutor(2) as pool:
        for some, edges in pool.map(core.encode, [text] * 8):
            assert np.array_equal(some, ids)
            assert np.array_equal(edges, offsets)


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_a_fast_core_imports_neither_pandas_nor_awkward_and_hugging_face_only_where_needed(built, name, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(built(name))
    code = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from pipeline import backends
data = Path(sys.argv[1]).read_bytes()
core = backends.open_core(backends.choose(data, "auto"), data, False)
for raw in ("a b c d", "a b c\u2e52"):
    offsets = np.array([0, 3, 3, len(raw.encode())], np.int32)
    ids, edges = core.encode(pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(raw.encode())))
    assert len(edges) == 4 and len(ids) == edges[-1] > 0
    print([module for module in ("pandas", "awkward", "transformers", "torch", "tokenizers") if module in sys.modules])
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "tokenizer.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "[]" if name == "bpe" else "['tokenizers']"]


def test_differences_counts_documents(built):
    text = pa.array(["abc", "<|endoftext|>", "", "a<|endoftext|>"])
    as_text, as_token = (backends.open_core("hf", built("bpe"), special) for special in (False, True))
    assert backends.differences(as_text, as_text, text) == 0
    assert backends.differences(as_text, as_token, text) == 2


def test_reference_ignores_padding_and_truncation(built):
    tokenizer = Tokenizer.from_str(built("bpe").decode())
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    text = pa.array([PROSE, "a"])
    for name in ("hf", "gigatoken"):
        core = backends.open_core(name, tokenizer.to_str().encode(), False)
        assert backends.differences(core, backends.open_core("hf", built("bpe"), False), text) == 0


def test_reference_works_through_more_text_than_one_group(built, monkeypatch):
    monkeypatch.setattr(backends, "HF_GROUP", 64)
    core = backends.open_core("hf", built("bpe"), False)
    assert backends.differences(core, backends.open_core("gigatoken", built("bpe"), False), pa.array(ODD)) == 0


def test_wordpiece_core_joins_groups(built, monkeypatch):
    monkeypatch.setattr(backends, "GROUP", 16)
    core = backends.open_core("splintr", built("wordpiece"), False)
    text = pa.array([t for t in ODD if backends.WORDPIECE_SEPARATOR not in t])
    assert backends.differences(core, backends.open_core("hf", built("wordpiece"), False), text) == 0


# -- cutting a text ---------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "'s", "'", "it's", "don't", "I'LL", "abc", "Été", "1", "1234567", "3.14", "...", "!!", "-",
     "_", "/\r\n", "中文", "没有", "。", "！", "、", "カタ", "ひら", "한국어", "привет", "й", "e\u0301", "\u0301", "=\u0338",
     "\u0308", "😀", "👩‍👧", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\x85", "\x0b", "\x1c", "\0", "½",
     "हिन्दी", "<|endoftext|>", "<|end", "text|>", "[SEP]", "[PAD]", "[pad]", "[UNK]", "a b c", "ab!", "family", "。！", "▁",
     "\u212a", "İ", "ﷺ"]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)


def cut_at(tokenizer_json: bytes, text: str) -> int:
    cut = cuts.safe_cut(tokenizer_json)
    assert cut is not None
    return cut(memoryview(text.encode()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTTABLE)
def test_the_ids_of_both_sides_of_a_cut_are_those_of_the_whole(built, name):
    if name == "bpe with tokens that strip":
        assert cuts.safe_cut(built(name)) is None
        return
    data = built(name)
    cut = cuts.safe_cut(data)
    assert cut is not None
    tokenizers = [Tokenizer.from_str(data.decode()) for _ in range(2)]
    tokenizers[1].encode_special_tokens = True

    @settings(max_examples=120, deadline=None, database=None, derandomize=True)
    @given(TEXTS, TEXTS)
    def check(seen, unseen):
        whole = (seen + unseen).encode()
        at = cut(memoryview(seen.encode()))
        assert 0 <= at <= len(seen.encode())
        for tokenizer in tokenizers:
            ids = tokenizer.encode_batch_fast(
                [whole.decode(), whole[:at].decode(), whole[at:].decode()], add_special_tokens=False
            )
            assert ids[0].ids == ids[1].ids + ids[2].ids, (seen, unseen, at)

    check()


@pytest.mark.parametrize("name", ["bpe", "bpe of Llama 3", "bpe of GPT-4o", "wordpiece", "words, guarded", "unigram"])
def test_every_border_of_a_text_is_safe(built, name):
    data, text = built(name), "".join(random_texts(40, 2)) + PROSE + "family [PAD]<|endoftext|>, a b!"
    tokenizer, whole = Tokenizer.from_str(data.decode()), text.encode()
    cut = cuts.safe_cut(data)
    expected, at, found = tokenizer.encode(text, add_special_tokens=False).ids, len(whole), 0
    while at := cut(memoryview(whole)[:at]):
        sides = tokenizer.encode_batch_fast([whole[:at].decode(), whole[at:].decode()], add_special_tokens=False)
        assert sides[0].ids + sides[1].ids == expected, whole[at - 9 : at + 9]
        found += 1
    assert found > 20


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_a_tokenizer_whose_borders_are_not_proven_is_not_cut(built, name):
    assert cuts.safe_cut(built(f"uncuttable {name}")) is None


def test_a_cut_is_the_last_border(built):
    name = "bpe, NFC"  # without a special token, which could begin near the end
    assert cut_at(built(name), "the cat sat on the m") == 18
    assert cut_at(built(name), "今日は晴れ。明日") == 15
    assert cut_at(built(name), "x" * 50) == 0
    assert cut_at(built(name), "") == 0


def test_a_cut_is_found_far_from_the_end(built):
    assert cut_at(built("bpe"), "ab cd" + "x" * 2_000_000) == 2
    assert cut_at(built("bpe"), "x" * 2_000_000) == 0


@pytest.mark.parametrize("letter", ["\u3000", "。", "é", "中"])
def test_windows_see_whole_characters_at_their_edges(built, letter):
    cut = cuts.safe_cut(built("bpe, NFC"))
    head = f"a {letter}\u3000  "
    near = cut(memoryview((head + "x").encode()))
    for window_start in range(len(head.encode())):
        text = head + "x" * (4096 - len(head.encode()) + window_start)
        assert cut(memoryview(text.encode())) == near


def test_a_cut_never_falls_inside_a_special_token(built):
    name = "bpe with special tokens that hold borders"
    text = "no! a b c"
    assert cut_at(built(name), text + "zzzzzzzzzzzzzzz") == 3
    assert cut_at(built(name), "no! a b") < 4  # "a b c" may follow
