"""The whole line against a naive one in plain Python: random settings, random text of the nasty kind, every column.

`Expected` reads the files as the README says, tokenizes each document as one string with `tokenizers` from the
folder that was written, builds the stream as a list and cuts it row by row. It knows nothing of shards, batches,
pieces, fast backends or caches, and shares no code with the package. A run must give the very same, or be refused
where the reference says that it must be.
"""

import dataclasses
import hashlib
import json
import random
import re
import shutil
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import composed
from pipeline import backends, batches, embedding, plan, stream, tokenizer, training, window
from pipeline import config as configs
from pipeline.errors import PipelineError
from pipeline.run import Outcome, run

WHITE = string.whitespace.encode()  # ASCII alone
VISIBLE = (
    "the ferry was late fog don't it's 1950 3.14 ... -- !? (x) _a_ ##ing Ġthe ▁the céu e\u0301te\u0301 Straße İ ſ K Å ﬁ ΑΣ "
    "你好 世界 。 🙂 👩‍👩‍👧 Зимой река 안개 때문에 नाव कोहरे تأخرت \u0300\u0301\u0302 \u200b \ufeff \u180e \x7f \x01 \0 \ufffd \u0c3c \u061d "
    "\U0010ffff \U0010fffe\U0010ffff \U00012470 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)
WORDS = [*VISIBLE.split(" "), "\u00a0", "\u2028", "\x85", "\v", "\f", "\x1c", "\u3000", "\t", "\r", "  "]
SPELLED = "<|endoftext|> [SEP] [CLS] [PAD] [UNK] <unk> <s> <|endof text|> [SE P]".split(" ")
SPACES = [" ", " ", " ", "", "\n", "\t", "  "]
TRAINED = ("bpe", "wordpiece", "unigram", "words", "chars", "bytes")


class Refused(Exception):
    """What a run must refuse."""


# -- the naive line ---------------------------------------------------------------------------------------


def ranges(data: bytes, unit: str) -> list[tuple[int, int]]:
    if unit == "file":
        return [(0, len(data))]
    lines, at = [], 0
    for line in data.split(b"\n"):
        stop = at + len(line)
        lines.append((at, stop - (line.endswith(b"\r") and stop < len(data))))
        at = stop + 1
    if unit == "line":
        return lines
    found: list[tuple[int, int]] = []
    before = False  # does the line before belong to a paragraph?
    for start, stop in lines:
        solid = bool(data[start:stop].strip(b" \t\r"))
        if solid:
            found[len(found) - before :] = [(found[-1][0] if before else start, stop)]
        before = solid
    return found


def documents(settings: configs.Corpus, paths: list[Path]) -> list[tuple[int, int, int, str]]:
    """Source, start, end and text of each document that is not blank."""
    found = []
    for source, path in enumerate(paths):
        if settings.format == "parquet":
            found += [(source, row, row + 1, text) for row, text in enumerate(pq.read_table(path)["text"].to_pylist())]
            continue
        data = path.read_bytes()
        mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        for start, stop in ranges(data[mark:], "line" if settings.format == "jsonl" else settings.document):
            text = data[mark + start : mark + stop].decode()
            if settings.format == "jsonl" and text.strip():
                text = json.loads(text)["text"]
            found.append((source, mark + start, mark + stop, text))
    found = [one for one in found if one[3].encode().strip(WHITE)]
    if not found:
        raise Refused("no document")
    return found


class Expected:
    """All that a run should give, from its configuration, its input files and the folder of its tokenizer."""

    def __init__(self, config: configs.Config, paths: list[Path], folder: Path) -> None:
        from tokenizers import Tokenizer

        self.config, v = config, config.vocabulary
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = v.special_in_text != "token"
        self.names = json.loads((folder / "tokenizer_config.json").read_text())
        self.vocab = self.tokenizer.get_vocab(with_added_tokens=True)
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        self.unknown = model.get("unk_id") if isinstance(model["vocab"], list) else self.vocab.get(model.get("unk_token") or "")
        added = self.tokenizer.get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=lambda token: -len(token.encode()))
        self.literal = re.compile("|".join(map(re.escape, special)))
        self.size = max(self.vocab.values()) + 1
        self.eos, self.bos, pad = (self.vocab.get(self.names.get(f"{role}_token")) for role in ("eos", "bos", "pad"))
        self.pad = self.eos if pad is None else pad
        fits = (name for name in ("uint8", "uint16", "uint32") if self.size - 1 <= np.iinfo(name).max)
        self.dtype = next(fits) if v.dtype == "auto" else v.dtype
        found = documents(config.corpus, paths)
        if self.size - 1 > np.iinfo(self.dtype).max or (v.append_eos == "true" and self.eos is None):
            raise Refused("vocabulary")
        if v.prepend_bos and self.bos is None:
            raise Refused("no begin mark")
        self.ends = self.eos is not None and (v.append_eos == "true" or (v.append_eos == "auto" and len(found) > 1))
        self.counts: Counter[str] = Counter()
        self.texts = [text for *_, text in found]
        self.rows = [self.encode(text) for text in self.texts]
        self.stream = [i for row in self.rows for i in row]
        self.documents, first = [], 0
        for (source, start, end, _), row in zip(found, self.rows, strict=True):
            self.documents.append((source, start, end, first, len(row)))
            first += len(row)
        self.columns: dict[str, list[list[int]]] = {}
        {"sliding": self.slide, "prefix": self.grow, "document": self.frame}[config.window.mode]()
        if not self.columns:
            raise Refused("no row")

    def encode(self, text: str) -> list[int]:
        v, unknown = self.config.vocabulary, self.unknown
        for literal in self.literal.findall(text):
            self.counts["literals"] += 1
            alone = self.tokenizer.encode(literal, add_special_tokens=False).ids
            if v.special_in_text == "error" or (v.special_in_text == "text" and alone == [self.vocab[literal]] != [unknown]):
                raise Refused(f"{literal!r} in the text")
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.counts["tokens"] += len(ids)
        self.counts["unknown"] += ids.count(unknown)
        if v.on_unknown == "error" and unknown in ids:
            raise Refused("unknown token")
        return [self.bos] * v.prepend_bos + ids + [self.eos] * self.ends

    def add(self, **columns: list[int]) -> None:
        for name, row in columns.items():
            self.columns.setdefault(name, []).append(row)

    def padded(self, ids: list[int]) -> list[int]:
        return ids + [self.pad] * (self.config.window.context_length - len(ids))

    def mask(self, real: int) -> list[int]:
        return [int(place < real) for place in range(self.config.window.context_length)]

    def slide(self) -> None:
        w = self.config.window
        length, stride, pads = w.context_length, w.stride or w.context_length, w.tail == "pad"
        if pads and self.pad is None:
            raise Refused("no pad token")
        for ids in [self.stream] if w.cross_documents else self.rows:
            at = reach = 0  # of the next row, and of the last target so far
            while at + length < len(ids) or (pads and max(at, reach) < len(ids) - 1):
                inputs, targets = ids[at : at + length], ids[at + 1 : at + length + 1]
                if pads:
                    self.add(attention_mask=self.mask(len(targets)))
                    inputs, targets = self.padded(inputs), self.padded(targets)
                self.add(input_ids=inputs, target_ids=targets)
                at, reach = at + stride, at + length

    def grow(self) -> None:
        for ids in self.rows:
            for place in range(1, len(ids)):
                start = max(0, place - self.config.window.context_length)
                self.add(input_ids=ids[start:place], target_ids=[ids[place]])

    def frame(self) -> None:
        w = self.config.window
        whole, bare = self.tokenizer.encode("a").ids, self.tokenizer.encode("a", add_special_tokens=False).ids
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        before, after = whole[:at], whole[at + len(bare) :]
        typed = 1 in self.tokenizer.encode("a", "b").type_ids
        if "model_input_names" in self.names:
            typed = "token_type_ids" in self.names["model_input_names"]
        if self.pad is None or (w.special_tokens and len(whole) == len(bare)):
            raise Refused("no pad token, or none of its own to add")
        if self.ends and after[:1] == [self.eos]:
            after = after[1:]
        if self.config.vocabulary.prepend_bos and before[-1:] == [self.bos]:
            before = before[:-1]
        if w.special_tokens is False or not before + after:
            before, after, typed = [], [], False
        room = w.context_length - len(before) - len(after)
        if room < 1 or (not w.truncate and max(map(len, self.rows)) > room):
            raise Refused("no room")
        for ids in self.rows:
            row = before + ids[:room] + after
            self.add(input_ids=self.padded(row), attention_mask=self.mask(len(row)))
            if typed:
                self.add(token_type_ids=[0] * w.context_length)

    def check(self, outcome: Outcome) -> None:
        """Compare everything that the run has written."""
        from safetensors.numpy import load_file

        e, folder, ledger = self.config.embedding, outcome.folder, outcome.ledger
        table = pa.concat_tables([opened(path) for path in sorted(folder.glob("data-*.arrow"))])
        assert set(table.column_names) - {"embeddings"} == set(self.columns)
        for name, rows in self.columns.items():
            assert table[name].to_pylist() == rows, name
        assert str(table.schema.field("input_ids").type.value_type) == self.dtype
        origins = opened(folder / "documents.arrow").to_pydict()
        assert list(zip(*origins.values(), strict=True)) == self.documents
        assert list(origins) == ["source", "start", "end", "first", "tokens"]
        assert json.loads((folder / "vocabulary.json").read_text()) == self.vocab
        load, tokenize, encode, window = (Counter(ledger[stage]) for stage in ("load", "tokenize", "encode", "window"))
        size = sum(len(text.encode()) for text in self.texts)
        assert (load["documents"], load["text_bytes"], tokenize["text_bytes"]) == (len(self.rows), size, size)
        assert load["nul_bytes"] == sum(text.count("\0") for text in self.texts)
        assert load["bytes"] + load["recoded_bytes"] == size + load["dropped_blank_bytes"] + load["syntax_bytes"]
        assert (tokenize["tokens"], tokenize["special_literals"]) == (self.counts["tokens"], self.counts["literals"])
        assert (encode["tokens"], encode["unknown"]) == (self.counts["tokens"], self.counts["unknown"])
        assert (encode["eos"], encode["ids"]) == (len(self.rows) * self.ends, len(self.stream))
        assert (window["rows"], window["tokens"]) == (len(self.columns["input_ids"]), len(self.stream))
        if e.kind == "none":
            return
        tables = load_file(folder / "embeddings.safetensors")
        assert len(tables["token_embeddings"]) == self.size
        if "embeddings" in table.column_names:
            for row, ids in zip(table["embeddings"].to_pylist(), self.columns["input_ids"], strict=True):
                vectors = tables["token_embeddings"][ids]
                if e.positions != "none":
                    vectors = vectors + tables["position_embeddings"][: len(ids)]
                np.testing.assert_array_equal(np.array(row, e.dtype), vectors.astype(e.dtype))


def opened(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


# -- random corpora and settings --------------------------------------------------------------------------


def words(draw: random.Random, most: int, spelled: bool) -> str:
    pool = WORDS + SPELLED * spelled
    pool = draw.sample(pool, draw.randint(3, len(pool)))
    return "".join(draw.choice(pool) + draw.choice(SPACES) for _ in range(draw.randint(0, most)))


def plain(draw: random.Random, spelled: bool, shard_bytes: int) -> bytes:
    if draw.random() < 0.15:
        return draw.choice([b"", b"\n", b" \n\n", b"\xef\xbb\xbf", b"\r\n\r\n", b"\v\f\n\nx"])
    between = draw.choice(["\n", "\r\n", "\n\n", "\n \t\r\n", "\r", "\u2028", "\n\n\n"])
    if draw.random() < 0.2:  # documents that end just where a shard may
        rows = [("ab c" * 2000)[: min(shard_bytes, 5000) + draw.choice([-2, -1, 0, 1])] for _ in range(draw.randint(1, 4))]
    else:
        rows = [words(draw, 50, spelled) for _ in range(draw.randint(1, 12))]
    text = between.join(rows) + draw.choice(["", "", "\n", "\r\n", "\r", "\n\n \n"])
    return draw.choice([b"", b"", b"", b"\xef\xbb\xbf"]) + text.encode()


def json_lines(draw: random.Random, spelled: bool, shard_bytes: int) -> bytes:
    lines = []
    for _ in range(draw.randint(0, 25)):
        fields: list[tuple[str, Any]] = [("text", words(draw, 30, spelled))]
        if draw.random() < 0.5:
            fields.insert(draw.randint(0, 1), ("other", draw.choice([None, 1.5, "}{", "\n", {"text": "inner"}, [{"text": 1}]])))
        colon, ascii = draw.choice([":", " : ", ":\t"]), draw.random() < 0.5
        inside = draw.choice([",", " , "]).join(json.dumps(k) + colon + json.dumps(v, ensure_ascii=ascii) for k, v in fields)
        lines.append(draw.choice(["", "", " ", "\t"]) + "{" + inside + "}" + draw.choice(["", "", " ", "\r"]))
        lines += draw.choice([[], [], [], [""], [" "], ["\r"]])
    return ("\n".join(lines) + draw.choice(["", "\n"])).encode()


def parquet(draw: random.Random, spelled: bool, shard_bytes: int) -> bytes:
    rows = [words(draw, 20, spelled) for _ in range(draw.randint(0, 40))]
    kind = draw.choice([pa.string(), pa.large_string(), pa.string_view(), None])
    column = pa.array(rows, pa.string()).dictionary_encode() if kind is None else pa.array(rows, kind)
    nested = pa.array([{"text": "inner"}] * len(rows), pa.struct({"text": pa.string()}))
    sink = pa.BufferOutputStream()
    pages = {"row_group_size": draw.choice([1, 3, 100]), "data_page_size": draw.choice([64, 1 << 20])}
    pq.write_table(pa.table({"nested": nested, "text": column}), sink, use_dictionary=draw.random() < 0.5, **pages)
    return sink.getvalue().to_pybytes()


def drawn(draw: random.Random, folder: Path, kinds: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """Choices of groups and values of keys; the corpus is written to `folder`."""
    form, kind = draw.choice(["text", "text", "jsonl", "parquet"]), draw.choice(kinds)
    mode = draw.choice(["sliding", "sliding", "prefix", "document"])
    length = draw.choice([1, 2, 3, 5, 8, 16, 64, 400] if mode == "document" else [1, 2, 3, 5, 8, 16, 64])
    groups = [f"corpus={form}", f"tokenizer={kind}", f"window={mode}", draw.choice(["embedding=none", "embedding=random"])]
    groups.append(draw.choice(["engine=serial", "engine=threads"]))
    settings: dict[str, Any] = {
        "corpus.paths": [str(folder)],
        "corpus.document": draw.choice(["file", "line", "paragraph"]),
        "corpus.shard_bytes": draw.choice([64, 300, 1000, 5000, 16 << 20]),
        "vocabulary.append_eos": draw.choice(["auto"] * 4 + ["true", "false"]),
        "vocabulary.special_in_text": draw.choice(["text"] * 4 + ["token"] * 4 + ["error"]),
        "vocabulary.dtype": draw.choice(["auto"] * 6 + ["uint8", "uint16", "uint32"]),
        "window.context_length": length,
        "window.truncate": draw.random() < 0.9,
        "engine.batch_size": draw.choice([None, 1, 2, 7]),
        "embedding.embedding_dim": draw.choice([1, 3]),
        "embedding.positions": draw.choice(["learned", "sinusoidal", "none"]),
        "embedding.dtype": draw.choice(["float32", "float16"]),
    }
    if mode == "sliding":
        settings["window.stride"] = draw.choice([None, 1, max(1, length // 2), length, length + draw.choice([1, 2, 40])])
        settings |= {"window.allow_gaps": True, "window.tail": draw.choice(["drop", "pad"])}
        settings["window.cross_documents"] = draw.random() < 0.5
    if mode == "document":
        settings["window.special_tokens"] = draw.choice([None, None, True, False])
    if kind in TRAINED:
        settings["tokenizer.lowercase"] = draw.random() < 0.25
        settings["tokenizer.bos_token"] = draw.choice([None, None, "<s>", "<|endoftext|>"])
        settings["tokenizer.pad_token"] = draw.choice([None, None, "<pad>", "[PAD]"])
        settings["tokenizer.special_tokens"] = draw.choice([[], [], ["<a>", "fog", "the "], ["--", "[X]", "[SE"]])
        settings["vocabulary.prepend_bos"] = draw.random() < 0.7 and settings["tokenizer.bos_token"] is not None
    if kind in ("bpe", "wordpiece", "unigram"):
        settings["tokenizer.vocab_size"] = draw.choice([400, 2000])
    if kind in ("words", "chars"):
        settings["tokenizer.order"] = draw.choice(["appearance", "alphabetical", "frequency"])
        settings["tokenizer.vocab_size"] = draw.choice([None, None, 50])
    settings["vocabulary.on_unknown"] = draw.choice(["map"] * 12 + ["error"])
    written(draw, folder, form, settings["corpus.shard_bytes"])
    return groups, settings


def written(draw: random.Random, folder: Path, form: str, shard_bytes: int) -> None:
    """A corpus of up to five files in place of what lies in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spelled = draw.random() < 0.5
    for number in range(draw.choice([1, 1, 2, 5])):
        (folder / str(number)).write_bytes(
            {"text": plain, "jsonl": json_lines, "parquet": parquet}[form](draw, spelled, shard_bytes)
        )


CHOSEN: dict[str, Any] = {}  # what each choice of a group composes to: composing costs more than a small run


def configured(groups: list[str], settings: dict[str, Any], cache: Path, output: Path) -> configs.Config:
    for choice in groups:
        if choice not in CHOSEN:
            CHOSEN[choice] = getattr(composed(choice), choice.partition("=")[0])
    config = configs.Config(**{choice.partition("=")[0]: dataclasses.replace(CHOSEN[choice]) for choice in groups})
    for key, value in (settings | {"cache.dir": str(cache), "output.dir": str(output)}).items():
        group, _, name = key.partition(".")
        setattr(getattr(config, group), name, value)
    return config


def attempt(config: configs.Config) -> Outcome | PipelineError:
    try:
        return run(config)
    except PipelineError as error:
        return error


def compare(seed: int, folder: Path, kinds: tuple[str, ...]) -> bool:
    """Run one random configuration and its reference. False where both refuse it."""
    groups, settings = drawn(random.Random(seed), folder / "corpus", kinds)
    config = configured(groups, settings, folder / "cache", folder / "out")
    outcome = attempt(config)
    failed = isinstance(outcome, PipelineError)
    made = sorted(folder.glob("cache/tokenizer/*/tokenizer.json" if failed else "out/tokenizer/tokenizer.json"))
    try:
        paths = sorted((folder / "corpus").iterdir())
        if made:
            Expected(config, paths, made[0].parent).check(outcome)  # type: ignore[arg-type]
        else:
            documents(config.corpus, paths)
            assert "is too small" in str(outcome), outcome  # the vocabulary for so many characters
        return bool(made)
    except Refused as refused:
        assert failed, f"a run that should be refused: {refused}"
        return False
    finally:
        shutil.rmtree(folder)


def grid(tmp_path: Path, seeds: range, kinds: tuple[str, ...] = TRAINED) -> None:
    compared = 0
    for seed in seeds:
        try:
            compared += compare(seed, tmp_path / str(seed), kinds)
        except Exception as error:
            error.add_note(f"seed {seed}, tokenizers {kinds}")
            raise
    assert compared >= len(seeds) // 2


@pytest.fixture(params=[pytest.param("usual blocks", marks=pytest.mark.slow), "tiny blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, or so small that every document is read, tokenized and cut in many pieces."""
    if request.param == "tiny blocks":
        sizes = {
            batches: {"BLOCK": 40, "NEAR": 9},
            plan: {"READ": 5},
            training: {"PASSAGE": 80},
            tokenizer: {"LONG": 48},
            backends: {"HF_GROUP": 100, "GROUP": 64},
            stream: {"MAPPED": 2},
            window: {"BATCH": 64, "SHARD": 300, "ROWS": 3},
            embedding: {"BLOCK": 64, "PIECE": 64},
        }
        for module, names in sizes.items():
            for name, size in names.items():
                monkeypatch.setattr(module, name, size)


@pytest.mark.usefixtures("blocks")
def test_random_runs_give_what_the_naive_line_gives(tmp_path: Path) -> None:
    grid(tmp_path, range(6))


@pytest.mark.slow
@pytest.mark.usefixtures("blocks")
def test_random_runs_of_pretrained_tokenizers_give_what_the_naive_line_gives(assets: Path, tmp_path: Path) -> None:
    grid(tmp_path, range(2), ("gpt2", "bert"))


@pytest.mark.slow
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("part", range(2))
def test_many_random_runs_give_what_the_naive_line_gives(tmp_path: Path, part: int) -> None:
    grid(tmp_path, range(1000 + part * 20, 1020 + part * 20))


@pytest.mark.slow
@pytest.mark.usefixtures("blocks")
def test_many_random_runs_of_pretrained_tokenizers_give_what_the_naive_line_gives(assets: Path, tmp_path: Path) -> None:
    grid(tmp_path, range(1000, 1006), ("gpt2", "bert"))


# -- one cache, many changes ------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("run.json", "report.html")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(draw: random.Random, folder: Path) -> None:
    """Delete, cut or flip a bit of some files; by a new file, or in the very bytes that the output shares."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in draw.sample(files, min(3, len(files))):
        data = bytearray(path.read_bytes())
        action = draw.choice(["delete", "cut", "flip"])
        if action == "delete" or not data:
            path.unlink()
            continue
        if action == "cut":
            del data[draw.randrange(len(data)) :]
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.5:
            path.unlink()
        else:
            path.chmod(0o644)
        path.write_bytes(data)


def changes(seed: int, folder: Path, steps: int) -> None:
    """After each change a run on the old cache gives what one on an empty cache gives: the same bytes, or error."""
    draw = random.Random(seed)
    groups, settings = drawn(draw, folder / "corpus", TRAINED)
    for step in range(steps):
        what = draw.choice(["setting", "setting", "group", "corpus", "cache", "nothing"])
        other_groups, others = drawn(draw, folder / "other", TRAINED)
        if what == "setting":
            key = draw.choice(sorted(settings.keys() & others.keys() - {"corpus.paths"}))
            settings = settings | {key: others[key]}
        elif what == "group":
            at = draw.choice([2, 3, 4])
            groups = [*groups[:at], other_groups[at], *groups[at + 1 :]]
        elif what == "corpus":
            written(draw, folder / "corpus", groups[0].partition("=")[2], settings["corpus.shard_bytes"])
        elif what == "cache":
            damage(draw, folder / "cache")
        outcome = attempt(configured(groups, settings, folder / "cache", folder / "out"))
        shutil.rmtree(folder / "fresh", ignore_errors=True)
        again = attempt(configured(groups, settings, folder / "fresh" / "cache", folder / "fresh" / "out"))
        if isinstance(outcome, Outcome) and isinstance(again, Outcome):
            assert digests(outcome.folder) == digests(again.folder), f"seed {seed}, step {step}: {what}"
            assert outcome.ledger == again.ledger
        else:
            assert str(outcome) == str(again), f"seed {seed}, step {step}: {what}"


def test_after_any_change_or_damage_an_old_cache_gives_what_an_empty_one_gives(tmp_path: Path) -> None:
    for seed in range(3):
        changes(seed, tmp_path / str(seed), 6)


@pytest.mark.slow
def test_after_many_changes_and_damages_an_old_cache_gives_what_an_empty_one_gives(tmp_path: Path) -> None:
    for seed in range(100, 104):
        changes(seed, tmp_path / str(seed), 10)
