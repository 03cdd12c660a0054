"""Stores: a bucket on a real HTTP S3 server on loopback that the test starts itself, and what goes wrong with one."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import s3
from conftest import ROOT, composed
from pipeline import places, plan, run, stores
from pipeline.cache import Cache
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, ResourceError

pytest.importorskip("s3fs", reason="needs the extra test-all")
pytest.importorskip("moto.server", reason="needs the extra test-all")

pytestmark = pytest.mark.slow
ROWS = [f"The ferry {row} was late because of the fog on day {row * 7}." for row in range(6000)]
JSONL = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ROWS)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    with s3.serving() as running:
        yield running.url


@pytest.fixture
def bucket(server: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket called texts, as something with put(key, data); requests holds what was asked of it."""
    import boto3
    import s3fs

    for name, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")

    class Bucket:
        def put(self, key: str, data: bytes) -> None:
            client.put_object(Bucket="texts", Key=key, Body=data)

        def remove(self, key: str) -> None:
            client.delete_object(Bucket="texts", Key=key)

    yield Bucket()
    for item in client.list_objects_v2(Bucket="texts").get("Contents", []):
        client.delete_object(Bucket="texts", Key=item["Key"])
    client.delete_bucket(Bucket="texts")
    s3fs.S3FileSystem.clear_instance_cache()


def settings(*overrides: str) -> Any:
    return composed("tokenizer=bytes", "window.context_length=16", "embedding=none", "engine.workers=4", *overrides)


def keys(outcome: run.Outcome) -> dict[str, str]:
    return json.loads((outcome.folder / "manifest.json").read_text())["keys"]


def test_a_bucket_gives_the_keys_that_the_same_files_on_disk_give(bucket: Any, at: Path) -> None:
    table = pa.table({"text": ROWS, "more": ROWS})
    pq.write_table(table, "b.parquet", row_group_size=500)
    for format, name, data in (("jsonl", "a.jsonl", JSONL), ("parquet", "b.parquet", Path("b.parquet").read_bytes())):
        Path(name).write_bytes(data)
        bucket.put(f"in/{name}", data)
        shards = f"corpus.shard_bytes={1 << 16}"
        here = run.run(settings(f"corpus={format}", f"corpus.paths=[{name}]", shards, f"name=here-{format}", "cache.dir=c1"))
        there = run.run(settings(f"corpus={format}", f"corpus.paths=[s3://texts/in/{name}]", shards, "cache.dir=c2"))
        assert keys(here) == keys(there)
        manifest = json.loads((there.folder / "manifest.json").read_text())
        assert [source["path"] for source in manifest["sources"]] == [f"s3://texts/in/{name}"]


def test_files_of_a_bucket_come_by_folder_pattern_or_name_in_sorted_order_without_what_is_hidden(bucket: Any) -> None:
    for key in ("in/b.txt", "in/a.txt", "in/deep/c.txt", "in/.hidden/d.txt", "in/.e", "other/f[1].txt"):
        bucket.put(key, key.encode())
    for key in ("in/", "in/deep/", "in/deep/empty/"):  # as a console makes folders
        bucket.put(key, b"")
    for url, expected in {
        "s3://texts/in": ["in/a.txt", "in/b.txt", "in/deep/c.txt"],
        "s3://texts/in/": ["in/a.txt", "in/b.txt", "in/deep/c.txt"],
        "S3://texts/in/*": ["in/a.txt", "in/b.txt"],
        "s3://texts/in/*.txt": ["in/a.txt", "in/b.txt"],
        "s3://texts/in/**/*.txt": ["in/a.txt", "in/b.txt", "in/deep/c.txt"],
        "s3://texts/other/f[1].txt": ["other/f[1].txt"],
    }.items():
        found = places.find(Corpus(paths=[url]))
        assert list(found) == [f"s3://texts/{key}" for key in expected], url
    for key in ("x/same", "x/same/k.txt", "x/deep/l.txt"):  # an object of the name of a folder
        bucket.put(key, key.encode())
    for url, expected in {
        "s3://texts/x/same": ["x/same"],
        "s3://texts/x/same/": ["x/same/k.txt"],
        "s3://texts/x/*": ["x/same"],
        "s3://texts/x/**": ["x/deep/l.txt", "x/same", "x/same/k.txt"],
        "s3://texts/x": ["x/deep/l.txt", "x/same", "x/same/k.txt"],
    }.items():
        assert list(places.find(Corpus(paths=[url]))) == [f"s3://texts/{key}" for key in expected], url
    with pytest.raises(ConfigError, match="named twice"):
        places.find(Corpus(paths=["s3://texts/in", "s3://texts/in/a.txt"]))


def test_a_file_is_read_by_ranges_and_no_byte_of_it_twice_in_a_row(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs.core

    asked = []
    original = s3fs.core._fetch_range
    monkeypatch.setattr(
        s3fs.core,
        "_fetch_range",
        lambda fs, b, k, v, start, end, **o: asked.append((start, end)) or original(fs, b, k, v, start, end, **o),
    )
    monkeypatch.setattr(stores, "AHEAD", 100_000)
    bucket.put("a", JSONL)
    with places.open_file("s3://texts/a") as file:
        data = b"".join(file.pread(10_000, position) for position in range(0, len(JSONL), 10_000))
        assert data == JSONL
        assert file.pread(5, 200_000) == JSONL[200_000:200_005]
        assert file.seek(-7, os.SEEK_END) == len(JSONL) - 7 and file.read() == JSONL[-7:]
    assert asked[0] == (0, 10_000) and asked[1] == (10_000, 110_000)
    assert asked[-2] == (200_000, 200_005)
    assert sum(end - start for start, end in asked) <= len(JSONL) + 5 + 7


def test_what_is_unchanged_by_its_etag_is_not_read_again_for_the_plan(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a.jsonl", JSONL)
    corpus, cache = Corpus(paths=["s3://texts/a.jsonl"], format="jsonl", shard_bytes=1 << 16), Cache.open(Path("cache"))
    first = plan.make(corpus, cache, True, 2)
    assert len(first.shards) > 5
    hashed: list[str] = []
    original = plan._hash
    monkeypatch.setattr(plan, "_hash", lambda ranges: hashed.extend(path for path, _, _ in ranges) or original(ranges))
    assert plan.make(corpus, cache, True, 2) == first and not hashed
    assert plan.make(corpus, cache, False, 2) == first and hashed
    hashed.clear()
    bucket.put("a.jsonl", JSONL.replace(b"ferry 1 ", b"FERRY 1 "))
    assert plan.make(corpus, cache, True, 2).sha256 != first.sha256 and hashed


def test_a_change_during_the_run_is_noticed(bucket: Any) -> None:
    bucket.put("a.jsonl", JSONL)
    corpus = Corpus(paths=["s3://texts/a.jsonl"], format="jsonl", shard_bytes=1 << 16)
    planned = plan.make(corpus, Cache.open(Path("cache")), True, 2)
    from collections import Counter

    from pipeline.corpus import load

    with places.open_file("s3://texts/a.jsonl") as file:
        file.pread(10, 0)
        bucket.put("a.jsonl", JSONL.upper())
        with pytest.raises(InputError, match=r"'s3://texts/a\.jsonl' changed during the run"):
            file.pread(10, 200_000)
    with pytest.raises(InputError, match="changed during the run"):
        list(load(planned.shards[0], corpus, Counter()))
    bucket.put("a.jsonl", JSONL)  # the same bytes again are no change
    assert sum(len(batch) for shard in planned.shards for batch in load(shard, corpus, Counter())) == len(ROWS)
    bucket.remove("a.jsonl")
    with pytest.raises(InputError, match="no such bucket or file, or it is gone"):
        list(load(planned.shards[0], corpus, Counter()))


def test_a_source_has_the_sha256_of_its_bytes_whatever_the_etag_says(bucket: Any) -> None:
    bucket.put("a.txt", b"text")
    made = plan.make(Corpus(paths=["s3://texts/a.txt"]), Cache.open(Path("cache")), True, 2)
    assert made.sources == (plan.Source("s3://texts/a.txt", 4, hashlib.sha256(b"text").hexdigest()),)


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("s3://no-such-bucket/a", InputError, "no such bucket, or nothing of that name in it"),
        ("s3://texts/none/*.txt", InputError, "no such bucket, or nothing of that name in it"),
        ("s4://texts/a", ConfigError, "s4:// is unknown; try a path, https://, s3:// or gs://"),
        ("http://example.org/a", ConfigError, "only https:// and stores such as s3:// and gs:// are read"),
        ("ftp://example.org/a", ConfigError, "only https:// and stores"),
        ("file:///etc/passwd", ConfigError, "a file on this disk is named by its path"),
        ("simplecache::s3://texts/a", ConfigError, "only https:// and stores"),
    ],
)
def test_what_cannot_be_read_is_one_line(bucket: Any, url: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        places.find(Corpus(paths=[url]))
    assert len(str(error.value).splitlines()) == 1


def test_a_process_reads_the_bucket_with_credentials_from_the_environment_alone_and_says_when_there_are_none(
    bucket: Any, at: Path, server: str
) -> None:
    bucket.put("in/a.jsonl", JSONL)
    command = [sys.executable, "-m", "pipeline", "corpus=jsonl", "corpus.paths=[s3://texts/in/*.jsonl]", "tokenizer=bytes",
               "window.context_length=16", "embedding=none", "engine=processes", f"corpus.shard_bytes={1 << 16}"]  # fmt: skip

    def call(**changes: str | None) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in ({**os.environ, "PYTHONPATH": str(ROOT)} | changes).items() if value is not None
        }
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = call()
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text(errors="replace") for path in at.rglob("*.json"))
    assert "s3://texts/in/a.jsonl" in written and "testing" not in written
    refused = call(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME=str(at))
    assert refused.returncode == 5 and "no valid credentials in the environment" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_store_that_does_not_answer_is_given_up(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"'s3://texts/a' cannot be reached or read \(EndpointConnectionError"):
        places.find(Corpus(paths=["s3://texts/a"]))


def test_a_store_that_keeps_one_waiting_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "SLOW", 0.02)
    stores._tell.cache_clear()
    for seconds in (0, 0.3, 0.3):
        with stores.waiting("s3://texts"):
            time.sleep(seconds)
        assert len(caplog.messages) == bool(seconds)
    assert caplog.messages == ["'s3://texts' takes more than 0 s to answer: waiting for it"]


def test_a_store_without_any_sign_of_change_is_read_again_each_time(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/places/a.txt", b"text")
    assert stores._stat({"size": 4})[0] == 0
    monkeypatch.setattr(stores, "_stat", lambda info: (0, info["size"], 0, 0))
    hashed: list[str] = []
    original = plan._hash
    monkeypatch.setattr(plan, "_hash", lambda ranges: hashed.extend(path for path, _, _ in ranges) or original(ranges))
    corpus, cache = Corpus(paths=["memory://places/a.txt"]), Cache.open(Path("cache"))
    for _ in range(2):
        made = plan.make(corpus, cache, True, 1)
        assert made.shards[0].parts[0].stat == plan.NEVER
    assert len(hashed) == 2
    memory.rm("/places", recursive=True)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(*arguments: Any, **rest: Any) -> Any:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ResourceError, match=r"pip install 'pretraining-pipeline\[gcs\]'"):
        places.find(Corpus(paths=["gs://texts/a"]))
