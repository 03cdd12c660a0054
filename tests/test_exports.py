"""Exports: what a format holds is what the documents, tokenized one by one, say it must hold.

The quick tests read each format by a few lines of their own; the slow ones by the package it is for, in an environment
that is made for them.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from conftest import ROOT, composed
from pipeline import files, tools, window
from pipeline.arrow import numbers
from pipeline.dataset import open_dataset
from pipeline.errors import ConfigError, IntegrityError
from pipeline.exports import FORMATS, export, litdata, mds, nanogpt, parquet, source, webdataset
from pipeline.run import run
from scripts.benchmark.environments import environment

READERS = ROOT / "tests" / "consumers" / "readers.py"
TEXTS = [
    "the ferry was late because of the fog .",
    "x",
    *(f"{n} letters came , and {n} more were lost in the fog" for n in range(12)),
    "naïve café 漢字 .",
]
L = 8


def prepared(*overrides: str, tokenizer: str = "bytes") -> tuple[Path, list[list[int]]]:
    """A finished dataset in several files, and the IDs of its documents by the reference tokenizer, end marks behind them."""
    Path("texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    words = ["corpus=text", "corpus.paths=[texts.txt]", "corpus.document=line", f"tokenizer={tokenizer}", "embedding=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "SHARD", 3000)
        patch.setattr(window, "BATCH", 100)
        folder = run(composed(*words, f"window.context_length={L}", "name=letters", *overrides)).folder
    if overrides == ("window.stride=3",):
        assert len(list(folder.glob("data-*.arrow"))) > 1
    reader = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    end = [reader.token_to_id(config["eos_token"])] if config.get("eos_token") else []
    return folder, [reader.encode(text, add_special_tokens=False).ids + end for text in TEXTS]


def columns(folder: Path) -> dict[str, np.ndarray]:
    opened = open_dataset(folder)
    return {name: tensor.numpy() for name, tensor in opened.batch(range(len(opened))).items()}


def rows_of(folder: Path) -> np.ndarray:
    """The windows of L + 1 IDs."""
    rows = columns(folder)
    return np.concatenate([rows["input_ids"], rows["target_ids"][:, -1:]], axis=1)


def manifest(folder: Path) -> dict:
    content = files.unseal(folder / "export.json")
    assert content is not None
    return content


def require_whole(folder: Path) -> None:
    """Every file is in the manifest with the hash it has, and nothing else lies there."""
    there = {
        str(p.relative_to(folder)): files.hash_file(p) for p in folder.rglob("*") if p.is_file() and p.name != "export.json"
    }
    assert there == {name: (note["bytes"], note["sha256"]) for name, note in manifest(folder)["files"].items()}


# -- read by a few lines of our own


@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("stride", [1, 3, L])
def test_nanogpt_holds_the_stream_once_whatever_the_overlap(at, stride, tail):
    folder, documents = prepared(f"window.stride={stride}", f"window.tail={tail}")
    stream = [*chain(*documents)]
    read = np.memmap(export(folder, "nanogpt") / "train.bin", np.uint16, "r")
    said = manifest(Path("outputs/letters-nanogpt"))["splits"]["train"]
    assert read.tolist() == stream[: len(read)]
    assert said["ids"] == len(read) and said["left_out"] == len(stream) - len(read)
    assert said["left_out"] == (0 if tail == "pad" else (len(stream) - L - 1) % stride)


@pytest.mark.parametrize("stride", [3, L])
def test_megatron_holds_whole_documents_with_their_end_marks_and_of_the_last_what_the_windows_have(at, stride):
    folder, documents = prepared(f"window.stride={stride}")
    out = export(folder, "megatron")
    index, ids = (out / "train.idx").read_bytes(), np.fromfile(out / "train.bin", "<u2")
    magic, version, code, count, more = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, code, more) == (b"MMIDIDX\0\0", 1, 8, count + 1)
    lengths = np.frombuffer(index, "<i4", count, 34)
    pointers = np.frombuffer(index, "<i8", count, 34 + 4 * count)
    assert np.frombuffer(index, "<i8", count + 1, 34 + 12 * count).tolist() == list(range(count + 1))
    assert len(index) == 34 + 20 * count + 8
    read = [ids[p // 2 : p // 2 + n].tolist() for p, n in zip(pointers, lengths, strict=True)]
    assert read[:-1] == documents[: count - 1] and read[-1] == documents[count - 1][: len(read[-1])]
    assert sum(map(len, read)) == len(ids)


@pytest.mark.parametrize("shard", [40, 10_000])
def test_mds_holds_every_window_as_int64_bytes_in_shards_of_any_size(at, monkeypatch, shard):
    folder, _ = prepared("window.stride=5")
    monkeypatch.setattr(mds, "SHARD", shard * (4 + 8 * (L + 1)))
    out = export(folder, "mds") / "train"
    read = []
    for item in json.loads((out / "index.json").read_text())["shards"]:
        data = (out / item["raw_data"]["basename"]).read_bytes()
        count = int(np.frombuffer(data, "<u4", 1)[0])
        edges = np.frombuffer(data, "<u4", count + 1, 4)
        assert count == item["samples"] <= shard and edges[-1] == len(data) == item["raw_data"]["bytes"]
        assert json.loads(data[4 * (count + 2) : edges[0]])["column_names"] == ["tokens"]
        read += [np.frombuffer(data[a + 4 : b], np.int64).tolist() for a, b in pairwise(edges)]
    assert read == rows_of(folder).tolist()


@pytest.mark.parametrize("chunk", [40, 10_000])
def test_litdata_holds_every_window_in_chunks_of_whole_windows(at, monkeypatch, chunk):
    folder, _ = prepared("window.stride=5")
    monkeypatch.setattr(litdata, "CHUNK", chunk * 4 * (L + 1))
    out = export(folder, "litdata") / "train"
    read = []
    for item in json.loads((out / "index.json").read_text())["chunks"]:
        data = (out / item["filename"]).read_bytes()
        count = int(np.frombuffer(data, "<u4", 1)[0])
        ids = np.frombuffer(data, "<i4", offset=4 * (count + 2))
        assert item["dim"] == len(ids) == count * (L + 1) and item["chunk_bytes"] == len(data)
        assert np.frombuffer(data, "<u4", count + 1, 4)[-1] == len(data)
        read += ids.reshape(-1, L + 1).tolist()
    assert read == rows_of(folder).tolist()


@pytest.mark.parametrize("mode", ["sliding", "sliding window.tail=pad", "sliding window.cross_documents=false", "document"])
def test_parquet_and_webdataset_hold_every_column_of_every_row_in_files_of_any_size(at, monkeypatch, mode):
    truncate = ["window.truncate=true", "window.special_tokens=false"] if mode == "document" else ["window.stride=3"]
    folder, _ = prepared(*f"window={mode}".split(), *truncate)
    expected = columns(folder)
    monkeypatch.setattr(parquet, "FILE", 2000)
    monkeypatch.setattr(parquet, "GROUP", 500)
    monkeypatch.setattr(webdataset, "FILE", 20_000)

    out = export(folder, "parquet")
    names = sorted(path.name for path in out.glob("*.parquet"))
    assert len(names) > 1 and names[-1] == f"train-{len(names) - 1:05}-of-{len(names):05}.parquet"
    tables = [pq.read_table(out / name) for name in names]
    assert {name: [*chain(*(t[name].to_pylist() for t in tables))] for name in tables[0].column_names} == {
        name: rows.tolist() for name, rows in expected.items()
    }
    assert b"targets" in tables[0].schema.metadata[b"pipeline"]

    out, read = export(folder, "webdataset"), {}
    tars = sorted(out.glob("train-*.tar"))
    for path in tars:
        with tarfile.open(path) as tar:
            read |= {member.name: np.load(BytesIO(tar.extractfile(member).read())) for member in tar}
    assert len(tars) > 1 and len(read) == len(expected) * len(expected["input_ids"])
    for name, rows in expected.items():
        assert [read[f"{i:09}.{name}.npy"].tolist() for i in range(len(rows))] == rows.tolist()


def test_rows_of_different_length_go_to_parquet_and_webdataset_and_nowhere_else(at):
    folder, documents = prepared("window=prefix")
    table = pq.read_table(export(folder, "parquet") / "train-00000-of-00001.parquet")
    pairs = [(d[max(0, i - L) : i], [d[i]]) for d in documents for i in range(1, len(d))]
    assert list(zip(table["input_ids"].to_pylist(), table["target_ids"].to_pylist(), strict=True)) == pairs
    with tarfile.open(export(folder, "webdataset") / "train-000000.tar") as tar:
        for number in (0, 5, len(pairs) - 1):
            assert np.load(BytesIO(tar.extractfile(f"{number:09}.input_ids.npy").read())).tolist() == pairs[number][0]
    for to in ("nanogpt", "megatron", "mds", "litdata"):
        with pytest.raises(ConfigError, match="prepare the dataset with window=sliding"):
            export(folder, to)


# -- refusals, and what is left behind


@pytest.mark.parametrize(
    ("override", "to", "advice"),
    [
        ("window.cross_documents=false", "nanogpt", "window.cross_documents=true"),
        ("window.cross_documents=false", "megatron", "window.cross_documents=true"),
        ("window.tail=pad", "mds", "window.tail=drop"),
        ("window.tail=pad", "litdata", "window.tail=drop"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_advice_and_leaves_nothing(at, override, to, advice):
    folder, _ = prepared("window.stride=3", override)
    with pytest.raises(ConfigError, match=advice):
        export(folder, to)
    assert [path.name for path in Path("outputs").iterdir()] == ["letters"]


def test_gaps_between_windows_are_refused_by_the_formats_of_the_stream(at):
    folder, _ = prepared(f"window.stride={L + 2}", "window.allow_gaps=true")
    with pytest.raises(ConfigError, match=f"window.stride={L} or less"):
        export(folder, "nanogpt")


def test_an_id_that_two_bytes_cannot_hold_is_refused_by_nanogpt_and_kept_by_megatron(at, monkeypatch):
    folder, documents = prepared("vocabulary.dtype=uint32")
    assert np.fromfile(export(folder, "nanogpt") / "train.bin", "<u2")[:5].tolist() == documents[0][:5]

    monkeypatch.setattr(source, "_ids", lambda column, ids=source._ids: ids(column) + np.uint32(70_000))
    monkeypatch.setattr(source.Source, "vocab_size", 70_300)
    with pytest.raises(ConfigError, match=r"up to 65,535, and here is 70,\d\d\d: export to megatron"):
        export(folder, "nanogpt")
    out = export(folder, "megatron")
    assert (out / "train.idx").read_bytes()[17] == 4
    assert np.fromfile(out / "train.bin", "<i4")[:5].tolist() == [70_000 + i for i in documents[0][:5]]


def test_each_split_goes_to_what_the_format_calls_it(at):
    held, documents = prepared("window.stride=3", "output.dir=both/validation")
    prepared("window.stride=5", "output.dir=both/train")
    whole = files.unseal(Path("both/train/manifest.json"))
    notes = {f"train/{name}": note for name, note in whole["files"].items()}
    splits = {name: {"rows": whole["rows"], "ledger": whole["ledger"]["window"]} for name in ("train", "validation")}
    Path("both/manifest.json").write_bytes(files.seal({**whole, "splits": splits, "files": notes}))
    out = export("both", "nanogpt")
    assert sorted(manifest(out)["files"]) == ["train.bin", "val.bin"]
    assert np.fromfile(out / "val.bin", "<u2")[:9].tolist() == [*chain(*documents)][:9]
    assert sorted(manifest(export("both", "megatron"))["files"]) == [
        "train.bin", "train.idx", "validation.bin", "validation.idx",
    ]  # fmt: skip
    assert {name.split("/")[0] for name in manifest(export("both", "mds"))["files"]} == {"train", "validation"}
    table = pq.read_table(export("both", "parquet") / "validation-00000-of-00001.parquet")
    assert table["input_ids"].to_pylist() == columns(held)["input_ids"].tolist()


def test_rows_that_are_not_in_the_order_of_the_stream_are_refused_by_its_formats(at, monkeypatch):
    folder, _ = prepared("window.stride=3", "split.shuffle=windows", "name=shuffled")
    with pytest.raises(ConfigError, match=r"split\.shuffle=none"):
        export(folder, "megatron")
    folder, _ = prepared("window.stride=3")
    rows = source.Source.rows
    monkeypatch.setattr(
        source.Source, "rows", lambda self, *part: (b.take(numbers(np.arange(len(b))[::-1])) for b in rows(self, *part))
    )
    with pytest.raises(ConfigError, match=r"split\.shuffle=none"):
        export(folder, "megatron")


def test_documents_in_another_order_than_the_stream_are_put_into_it(at, monkeypatch):
    folder, _ = prepared("window.stride=3")
    wanted = (export(folder, "megatron") / "train.idx").read_bytes()
    places = source.Source._places
    monkeypatch.setattr(source.Source, "_places", lambda self: ((f[::-1], t[::-1]) for f, t in [*places(self)][::-1]))
    assert (export(folder, "megatron") / "train.idx").read_bytes() == wanted


def test_an_export_is_sealed_repeatable_replaces_an_earlier_one_and_nothing_else(at):
    folder, _ = prepared("window.stride=3")
    for to in FORMATS:
        out = export(folder, to)
        require_whole(out)
        first = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert export(folder, to) == out
        assert first == {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert manifest(out)["dataset"]["manifest"] == files.hash_file(folder / "manifest.json")[1]
    with pytest.raises(ConfigError, match="nothing was touched"):
        export(folder, "nanogpt", folder)
    Path("mine").mkdir()
    export(folder, "nanogpt", "mine")
    (Path("mine") / "export.json").chmod(0o644)
    (Path("mine") / "export.json").write_text("{}")
    with pytest.raises(IntegrityError, match="nothing was touched"):
        export(folder, "nanogpt", "mine")
    assert not list(Path().rglob(".tmp"))


def test_what_a_person_put_into_an_export_stays_when_it_is_replaced_even_in_the_way_of_it(at):
    folder = prepared()[0]
    out = export(folder, "nanogpt")
    (out / "my-notes.txt").write_text("hello")
    (out / "plots").mkdir()
    (out / "plots" / "loss.svg").write_text("<svg/>")
    assert export(folder, "nanogpt") == out
    assert (out / "my-notes.txt").read_text() == "hello" and (out / "plots" / "loss.svg").read_text() == "<svg/>"
    (name,) = [name for name in manifest(export(folder, "parquet", "other"))["files"] if name.endswith(".parquet")]
    (out / name).write_text("mine")
    assert export(folder, "parquet", out) == out and not list(out.glob("*.bin"))
    assert (out / f"{name}~1").read_text() == "mine" and (out / "my-notes.txt").read_text() == "hello"
    assert (out / name).read_bytes() == (Path("other") / name).read_bytes()


@pytest.mark.parametrize("more", [[], ["split.validation=0.3"]])
def test_an_export_names_the_manifest_that_it_was_made_from_where_the_dataset_is_replaced_meanwhile(at, monkeypatch, more):
    prepared()
    words = ["corpus=text", "corpus.paths=[texts.txt]", "corpus.document=line", "tokenizer=bytes", "embedding=none"]
    folder = run(composed(*words, f"window.context_length={L}", *more)).folder
    before = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    write = nanogpt.write

    def replaced(source, target):
        notes = write(source, target)
        os.replace(shutil.copy(folder / "README.md", at / "other"), folder / "manifest.json")
        return notes

    monkeypatch.setattr(nanogpt, "write", replaced)
    out = export(folder, "nanogpt")
    assert json.loads((out / "export.json").read_text())["dataset"]["manifest"] == before


def test_a_damaged_dataset_is_not_exported_and_the_earlier_export_stays(at):
    folder, _ = prepared("window.stride=3")
    before = (export(folder, "nanogpt") / "train.bin").read_bytes()
    victim = folder / sorted(open_dataset(folder).files)[-1]
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        export(folder, "nanogpt")
    assert (Path("outputs/letters-nanogpt/train.bin")).read_bytes() == before
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["letters", "letters-nanogpt"]


def test_the_command_exports_says_where_and_its_files_can_be_verified(at, capsys):
    prepared("window.stride=3")
    with pytest.raises(SystemExit) as stop:
        tools.main("export", ["outputs/letters", "--to", "csv"])
    assert stop.value.code == 2
    capsys.readouterr()
    tools.main("export", ["outputs/letters", "--to", "mds", "--out", "there"])
    assert capsys.readouterr().out == "there\n"
    tools.main("cache", ["verify", "there"])
    assert capsys.readouterr().out == "0 of 2 files damaged\n"


# -- read by the packages they are for


@pytest.fixture(scope="session")
def readers() -> Path:
    return environment(READERS, ROOT / "data" / "environments")


def read_by(python: Path, to: str, folder: Path) -> dict[str, np.ndarray]:
    done = subprocess.run([python, READERS, to, folder, "read.npz"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load("read.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.row("C29")
def test_each_export_read_by_its_own_consumer_gives_the_ids_of_the_dataset_and_the_same_loss(at, readers):
    folder, documents = prepared("window.stride=3")
    read = read_by(readers, "megatron", export(folder, "megatron"))
    assert read["train.ids"].tolist() == [*chain(*documents)][: len(read["train.ids"])]
    assert read["train.lengths"].tolist()[:-1] == [len(d) for d in documents][: len(read["train.lengths"]) - 1]
    read = read_by(readers, "webdataset", export(folder, "webdataset"))
    assert {name.removeprefix("train."): rows.tolist() for name, rows in read.items()} == {
        name: rows.tolist() for name, rows in columns(folder).items()
    }
    for to in ("mds", "litdata"):
        windows = read_by(readers, to, export(folder, to))["train.windows"]
        assert windows.tolist() == rows_of(folder).tolist()
        ours, theirs = losses(columns(folder), windows)
        assert ours == pytest.approx(theirs, abs=1e-5)


def losses(rows: dict[str, np.ndarray], windows: np.ndarray) -> tuple[float, float]:
    """Plain cross-entropy of a small random GPT-2 on inputs and targets, and its own loss on windows as their own labels."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=L + 1, n_embd=16, n_layer=2, n_head=2)).eval()
    inputs, targets, whole = (torch.tensor(ids).long() for ids in (rows["input_ids"], rows["target_ids"], windows))
    with torch.no_grad():
        ours = torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
        return ours.item(), model(whole, labels=whole).loss.item()


@pytest.mark.slow
def test_datasets_reads_the_parquet_export_and_its_splits(at):
    import datasets

    folder, _ = prepared("window.stride=3")
    read = datasets.load_dataset(str(export(folder, "parquet")), cache_dir="cache")
    assert list(read) == ["train"]
    assert read["train"]["input_ids"][:] == columns(folder)["input_ids"].tolist()
