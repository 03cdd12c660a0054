"""Datasets in the Hub's layout: the files that the `datasets` library would take, and no others."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import ROOT, composed
from pipeline import config, corpus, hub, plan, run
from pipeline.cache import Cache
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, ResourceError

TEXT = b"The ferry was late because of the fog.\n"
LINE = b'{"text": "The ferry was late because of the fog."}\n'


def make(folder: Path, *names: str, card: str | None = None) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": ["The ferry was late."]}), path)
        else:
            path.write_bytes(LINE if name.endswith(("l", "json")) else TEXT)
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}---\n\n# A dataset\n")


def files(**settings: Any) -> list[str]:
    resolved, _ = hub.resolve(Corpus(kind="hub", **settings))
    return sorted(os.path.relpath(path, resolved.name) for path in resolved.paths)


CARDS = {
    "patterns": "configs:\n- config_name: en\n  default: true\n  data_files: 'en/*.jsonl'\n- config_name: pt\n  data_files: pt/**\n",
    "splits": "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: [en/a.jsonl, 'en/b*']\n  - split: test\n    path: pt/*\n",
    "folder": "configs:\n- config_name: en\n  data_dir: en\n- config_name: pt\n  data_dir: pt\n",
    "no configs": "license: mit\n",
}
LAYOUTS = {
    "sharded": [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001-abc.parquet",
    ],
    "folders": ["data/train/a.jsonl", "data/train/b.jsonl", "data/dev/c.jsonl", "x/my-test set/d.jsonl"],
    "names": ["a_train_1.jsonl", "validation.jsonl", "deep/er/test-2.jsonl", "training.jsonl"],
    "neither": ["a.jsonl", "b/c.jsonl", "restrained.jsonl", "contest.jsonl", "b/evaluate.jsonl"],
    "languages": ["en/a.jsonl", "en/b1.jsonl", "pt/a.jsonl", "pt/deep/c.jsonl"],
    "a split for each language": ["en/train.jsonl", "en/test.jsonl", "pt/train.jsonl"],
}


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_configurations_and_splits_hold_the_files_that_the_datasets_library_takes(at: Path, layout: str, card: str) -> None:
    import datasets

    make(at / "mine", *LAYOUTS[layout], card=CARDS[card])
    for name in ("en", "pt") if "configs:" in CARDS[card] else (None,):
        try:
            found = datasets.load_dataset_builder("mine", name, cache_dir="c").config.data_files
            expected = {
                str(split): sorted(os.path.relpath(file, at / "mine") for file in taken) for split, taken in found.items()
            }
        except (ValueError, FileNotFoundError):
            expected = {}
        for split in ("train", "validation", "test"):
            if expected.get(split):
                assert files(name="mine", config=name, split=split) == expected[split]
            elif not (split == "test" and expected == {}):  # the library refuses all splits where one lacks a file
                with pytest.raises((ConfigError, InputError)):
                    files(name="mine", config=name, split=split)


def test_a_card_with_several_configurations_needs_a_choice_unless_one_is_the_default(at: Path) -> None:
    make(at / "mine", *LAYOUTS["languages"], card=CARDS["folder"])
    with pytest.raises(ConfigError, match=r"corpus\.config is required: dataset 'mine' has 'en', 'pt'"):
        files(name="mine")
    make(at / "mine", card=CARDS["patterns"])
    assert files(name="mine") == ["en/a.jsonl", "en/b1.jsonl"]
    for settings, message in (({"config": "de"}, "has 'en', 'pt'"), ({"split": "dev"}, "has the splits 'train'")):
        with pytest.raises(ConfigError, match=message):
            files(name="mine", **settings)


@pytest.mark.parametrize(
    "card", ["configs: 3\n", "configs:\n- 5\n", "configs: [\n", "configs:\n- config_name: a\n  data_files: [{split: train}]\n"]
)
def test_a_broken_card_is_an_error_that_names_it(at: Path, card: str) -> None:
    make(at / "mine", "a.jsonl", card=card)
    with pytest.raises(InputError, match=r"card|README"):
        files(name="mine")


def test_scripts_hidden_files_and_other_formats_are_left_out_aloud(at: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(at / "mine", "a.parquet", "b.parquet", "mine.py", ".git/c.parquet", "dataset_info.json", "notes.txt")
    assert files(name="mine") == ["a.parquet", "b.parquet"]
    assert "left out 2 files in another format than parquet: 'mine.py', 'notes.txt'" in caplog.text
    make(at / "code", "code.py", "x.bin")
    with pytest.raises(InputError, match=r"holds no files that can be read here: 'code\.py', 'x\.bin'"):
        files(name="code")


def test_what_save_to_disk_wrote_is_read_without_its_notes(at: Path) -> None:
    import datasets

    made = {
        name: datasets.Dataset.from_dict({"text": [f"The {name} was {n} late." for n in range(6)]})
        for name in ("train", "test")
    }
    made["train"].save_to_disk("one", num_shards=2)
    datasets.DatasetDict(made).save_to_disk("both")
    datasets.load_from_disk("one").map(lambda row: {"text": row["text"] * 2})  # which leaves a cache-….arrow there
    assert len(list((at / "one").glob("*.arrow"))) == 3
    assert files(name="one") == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert files(name="both", split="test") == ["test/data-00000-of-00001.arrow"]
    run.run(composed("corpus=hub", "corpus.name=one", "tokenizer=bytes", "window.context_length=4", "embedding=none"))
    with pa.ipc.open_stream("outputs/one/documents.arrow") as reader:
        assert len(reader.read_all()) == 6


def test_a_json_file_is_an_array_or_lines_by_its_content(at: Path) -> None:
    import datasets

    rows = [{"text": f"The ferry {n} was late."} for n in range(6)]
    (at / "mine").mkdir()
    (at / "mine/a.json").write_text(json.dumps(rows[:2], indent=1))
    (at / "mine/b.json").write_text("\n".join(map(json.dumps, rows[2:4])))
    (at / "mine/c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows[4:])).encode()))
    settings, _ = hub.resolve(Corpus(kind="hub", name="mine"))
    assert settings.format == "auto"
    texts = [row["text"] for row in rows]
    shards = plan.make(settings, Cache.open(at / "cache"), True, 1).shards
    batches = [batch for shard in shards for batch in corpus.load(shard, settings, Counter())]
    assert [text for batch in batches for text in batch["text"].to_pylist()] == texts
    assert datasets.load_dataset("mine", split="train", cache_dir="c")["text"] == texts


def test_columns_are_carried_along_where_the_files_have_any(at: Path) -> None:
    make(at / "mine", "a.txt")
    make(at / "sets/rows", "a.parquet")
    pq.write_table(pa.table({"text": ["The ferry was late."], "url": ["u"]}), at / "sets/rows/a.parquet")
    tiny = ["corpus=hub", "tokenizer=bytes", "window.context_length=4", "embedding=none", "corpus.metadata=[url]"]
    with pytest.raises(ConfigError, match=r"corpus\.metadata needs records .*'mine' are text"):
        run.run(composed(*tiny, "corpus.name=mine"))
    folder = run.run(composed(*tiny, "corpus.name=sets/rows")).folder
    with pa.ipc.open_stream(folder / "documents.arrow") as reader:
        assert reader.read_all()["url"].to_pylist() == ["u"]


def test_files_that_their_numbers_say_are_missing_are_missed(at: Path) -> None:
    make(at / "mine", "data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet")
    with pytest.raises(InputError, match="2 of 3 files of 'data/train' are there"):
        files(name="mine")


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_left_out(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(at / "set", "data/train-0.jsonl", "data/more/train-1.jsonl")
    real = os.scandir

    def closed(path: Any) -> Any:
        if os.fspath(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ResourceError, match="Permission denied at 'set/data/more'"):
        files(name="set")


def test_a_run_from_a_folder_is_called_after_it_and_records_what_it_took(at: Path) -> None:
    make(at / "sets/mine", "data/train-00000-of-00001.parquet", card="license: mit\n")
    settings = composed("corpus=hub", "corpus.name=sets/mine", "tokenizer=bytes", "window.context_length=4")
    outcome = run.run(settings)
    assert outcome.folder == Path("outputs/mine")
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["corpus"] == {"name": "sets/mine", "config": None, "split": "train", "revision": None}
    assert manifest["config"]["corpus"]["format"] == "parquet"
    assert [source["path"] for source in manifest["sources"]] == ["sets/mine/data/train-00000-of-00001.parquet"]


def test_what_cannot_work_is_said_before_anything_is_looked_for() -> None:
    for settings, message in (
        (Corpus(kind="hub", name=""), r"corpus\.name is required"),
        (Corpus(kind="hub", name="user/da ta"), r"corpus\.name='da ta' may hold"),
        (Corpus(kind="hub", name="a/b", paths=["x"]), r"corpus\.paths means nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.check(config.Config(corpus=settings))


# -- a Hub of our own, on loopback ------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"---\nconfigs:\n- config_name: plain\n  data_files: 'text/*.jsonl'\n---\n",
    "text/a.jsonl": LINE,
    "text/b.jsonl": LINE * 2,
    "other.py": b"raise SystemExit(7)",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as its own client needs for a dataset at one commit."""

    def do_GET(self) -> None:
        if re.fullmatch(r"/api/datasets/us/set(/revision/(main|v1|" + COMMIT + "))?", self.path.partition("?")[0]):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(json.dumps({"id": "us/set", "sha": COMMIT, "siblings": siblings}).encode(), "application/json")
        elif (name := self.path.partition(f"/datasets/us/set/resolve/{COMMIT}/")[2]) in FILES:
            self.answer(FILES[name], "application/octet-stream")
        else:
            self.send_response(404)
            code = "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(data)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_fetched_at_one_commit_and_read_again_without_a_network(served: str, at: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": served,
        "HF_HOME": str(at / "home"),
        "PYTHONPATH": str(ROOT),
        "PIPELINE_ASSETS": "",
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        environment.pop(name, None)

    def call(*overrides: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "corpus=hub",
            "tokenizer=bytes",
            "window.context_length=8",
            "embedding=none",
        ]
        return subprocess.run([*command, *overrides], env=environment | more, capture_output=True, text=True)

    first = call("corpus.name=us/set", "corpus.revision=v1")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "outputs/set"
    manifest = json.loads((at / "outputs/set/manifest.json").read_text())
    assert manifest["corpus"] == {"name": "us/set", "config": None, "split": "train", "revision": COMMIT}
    addresses = [f"hf://datasets/us/set@{COMMIT}/text/{name}.jsonl" for name in "ab"]
    assert [source["path"] for source in manifest["sources"]] == addresses
    assert hub_file(at, addresses[0]) == LINE

    again = call("corpus.name=us/set", f"corpus.revision={COMMIT}", "name=again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "using what is cached of commit" in again.stdout + again.stderr
    other = json.loads((at / "outputs/again/manifest.json").read_text())
    assert other["keys"] == manifest["keys"] and other["sources"] == manifest["sources"]

    for overrides, message in (
        (["corpus.name=us/none"], "it has none of that name, or not for you"),
        (["corpus.name=us/set", "corpus.revision=v9"], "it has no revision 'v9'"),
    ):
        refused = call(*overrides)
        assert refused.returncode == 3 and message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def hub_file(at: Path, address: str) -> bytes:
    script = "import sys; from pipeline import hub; print(hub.cached(sys.argv[1]))"
    environment = {**os.environ, "HF_HOME": str(at / "home"), "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", script, address], env=environment, capture_output=True, text=True, check=True)
    return Path(found.stdout.strip()).read_bytes()
