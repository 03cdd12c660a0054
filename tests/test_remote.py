"""The cache in a store: the same bytes, nothing computed twice, and what damage, a kill and a silent server leave."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3
from conftest import ROOT, composed
from pipeline import housekeeping, remote
from pipeline.bucket import Place
from pipeline.cache import Cache, Entry
from pipeline.config import Config
from pipeline.errors import ConfigError, ResourceError
from pipeline.remote import Damaged, Store
from pipeline.run import Outcome, run

LINES = "".join(f"The ferry {row} was late because of the fog on day {row * 7}.\n" for row in range(3000))
SMALL = ("corpus=text", "corpus.paths=[a.txt]", "corpus.document=line", "corpus.shard_bytes=16384", "tokenizer.vocab_size=300",
         "window.context_length=16", "embedding.embedding_dim=4", "engine.workers=2")  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder."""
    forget()
    return Store(f"file://{tmp_path}/store/cache")


def forget() -> None:
    """Be as a new process that knows nothing of any store or scratch."""
    from pipeline import cache

    for known in (cache._verified, remote._manifests, remote._marked, remote._added):
        known.clear()
    remote._told.clear()
    remote._file_system.cache_clear()
    if "s3fs" in sys.modules:  # whose instances keep the address of the server they began with
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


def scratch(store: Store, name: str, bound: int | None = None) -> Cache:
    forget()
    return Cache.open(Path(name), store.url, bound)


def write(entry: Entry, name: str, data: bytes) -> dict[str, Any]:
    with entry.write(name, lambda: {"counts": {"rows": 1}}) as file:
        file.write(data)
    return file.note


def whole(cache: Cache, *names: str, data: bytes = b"data of ") -> Entry:
    entry = cache.entry("load", {"n": 1})
    notes = [write(entry, name, data + name.encode()) for name in names]
    entry.finish(list(names), notes, ledger={"load": {"rows": len(names)}}, rows=len(names))
    return entry


def states(outcome: Outcome) -> dict[str, str]:
    return {report.stage: report.state for report in outcome.stages}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("run.json", "report.html")
    }


def test_an_entry_is_whole_on_another_scratch_and_only_what_is_opened_is_fetched(at: Path, store: Store) -> None:
    first = whole(scratch(store, "one"), "00000000.arrow", "00000001.arrow")
    names = set(store.listed(f"load/{first.key}"))
    assert names == {"00000000.arrow", "00000001.arrow", "manifest.json", ".used"}  # and no receipts any more
    second = scratch(store, "two").entry("load", {"n": 1})
    manifest = second.verified()
    assert manifest is not None and list(manifest["files"]) == ["00000000.arrow", "00000001.arrow"]
    assert not second.folder.exists()
    assert Path(second.file("00000001.arrow")).read_bytes() == b"data of 00000001.arrow"
    assert [path.name for path in second.folder.iterdir()] == ["00000001.arrow"]


def test_an_unfinished_entry_is_resumed_on_another_scratch_and_the_first_one_without_the_store(at: Path, store: Store) -> None:
    write(scratch(store, "one").entry("load", {"n": 1}), "00000000.arrow", b"a")
    other = scratch(store, "two").entry("load", {"n": 1})
    assert other.manifest() is None
    note = other.receipt("00000000.arrow")
    assert note is not None and note["counts"] == {"rows": 1} and other.receipt("00000001.arrow") is None
    other.finish(
        ["00000000.arrow", "00000001.arrow"], [note, write(other, "00000001.arrow", b"b")], ledger={"load": {"rows": 2}}, rows=2
    )
    alone = Cache.open(Path("one")).entry("load", {"n": 1})
    assert alone.verified() is None and alone.receipt("00000000.arrow") == note


def test_what_was_finished_without_the_store_is_put_there_when_it_is_found(at: Path, store: Store) -> None:
    whole(Cache.open(Path("one")), "00000000.arrow", "00000001.arrow")
    assert scratch(store, "one").entry("load", {"n": 1}).verified() is not None
    shutil.rmtree("one")
    entry = scratch(store, "one").entry("load", {"n": 1})
    assert entry.verified() is not None and Path(entry.file("00000000.arrow")).read_bytes() == b"data of 00000000.arrow"


def test_a_file_that_arrives_with_other_bytes_is_set_aside_and_computed_again(at: Path, store: Store) -> None:
    key = whole(scratch(store, "one"), "00000000.arrow", "00000001.arrow").key
    store.put(f"load/{key}/00000000.arrow", b"DATA of 00000000.arrow")
    entry = scratch(store, "two").entry("load", {"n": 1})
    assert entry.verified() is not None  # the listing has it, with so many bytes
    with pytest.raises(Damaged, match=r"00000000.arrow' is damaged: expected 22 bytes, sha256 .* found 22 bytes"):
        os.fspath(entry.file("00000000.arrow"))
    assert entry.verified() is None and entry.receipt("00000000.arrow") is None
    assert entry.receipt("00000001.arrow") is not None
    assert len([name for name in store.listed("quarantine") if name.startswith(f"load-{key}")]) == 1
    write(entry, "00000000.arrow", b"data of 00000000.arrow")
    assert entry.verified() is not None


@pytest.mark.parametrize("data", [b"", b"{}", b'{"files": 1}'])
def test_a_manifest_that_is_not_as_it_was_written_counts_as_absent_and_is_put_again(
    at: Path, store: Store, data: bytes
) -> None:
    key = whole(scratch(store, "one"), "00000000.arrow").key
    before = store.read(f"load/{key}/manifest.json")
    store.put(f"load/{key}/manifest.json", data)
    assert scratch(store, "two").entry("load", {"n": 1}).manifest() is None
    whole(scratch(store, "two"), "00000000.arrow")
    assert store.read(f"load/{key}/manifest.json") == before


def test_a_scratch_keeps_to_its_bound_drops_nothing_that_the_store_lacks_and_what_is_mapped_stays(
    at: Path, store: Store
) -> None:
    cache = scratch(store, "one", 5_000)
    entry = cache.entry("load", {"n": 1})
    for number in range(12):
        write(entry, f"{number:08d}.arrow", bytes([number]) * 1000)
        os.utime(entry.path(f"{number:08d}.arrow"), (number, number))
        held = sum(path.stat().st_size for path in entry.folder.glob("*.arrow"))
        assert held <= 5_000
    assert entry.path("00000011.arrow").exists() and not entry.path("00000000.arrow").exists()
    with open(entry.path("00000011.arrow"), "rb") as mapped:
        for number in range(6):
            assert Path(entry.file(f"{number:08d}.arrow")).read_bytes() == bytes([number]) * 1000
        assert mapped.read() == b"\x0b" * 1000
    for path in entry.folder.glob("*.arrow"):
        store.remove([f"load/{entry.key}/{path.name}"])
    left = {path.name for path in entry.folder.glob("*.arrow")}
    write(entry, "00000020.arrow", b"x" * 5000)
    assert left < {path.name for path in entry.folder.glob("*.arrow")}


@pytest.mark.row("A16")
@pytest.mark.parametrize("what", ["a pipe", "a folder"])
@pytest.mark.parametrize("name", ["manifest.json", "00000000.arrow"])
def test_what_is_no_file_in_a_store_that_is_a_folder_is_never_read_and_put_again(
    at: Path, store: Store, what: str, name: str
) -> None:
    config = composed(*SMALL, f"cache.remote={store.url}", "cache.dir=one", "output.dir=o")
    Path("a.txt").write_text(LINES)
    forget()
    run(config)
    (path,) = (Path(store.url[7:]) / "window").glob(f"*/{name}")
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    else:
        (path / "deeper").mkdir(parents=True)
    forget()
    shutil.rmtree("one")
    shutil.rmtree("o")
    assert (
        housekeeping.differs(store, str(path.relative_to(store.url[7:])), 1, "") == "expected 1 bytes, sha256 , found nothing"
    )
    run(config)
    assert path.is_file() and all(problem is None for _, problem in housekeeping.verify(store.url))


@pytest.mark.row("A28")
def test_what_a_killed_run_was_putting_goes_a_day_later(at: Path, store: Store) -> None:
    whole(scratch(store, "one"), "00000000.arrow")
    folder = Path(store.url[7:])
    names = ["encode/a.arrow.putting-12-34", "b.putting-1-2", "encode/mine.putting-not"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    assert housekeeping.gc(store.url, 1 << 40) == {}
    for name in names[::2]:
        os.utime(folder / name, (1, 1))
    assert housekeeping.gc(store.url, 1 << 40) == {names[0]: 4}
    assert [(folder / name).exists() for name in names] == [False, True, True]
    os.utime(folder / names[1], (1, 1))
    Place(store.url)._clear("", None)
    assert not (folder / names[1]).exists()


@pytest.mark.row("A10")
def test_a_store_on_a_full_disk_says_that_it_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=r"^No space left writing '/.*/store/cache' .*Free space"):
        store.put("x", b"y")


def test_a_put_on_condition_leaves_what_is_there(store: Store) -> None:
    memory = Store("memory://bucket/cache")
    assert memory.put("a/m", b"1", new=True) and memory.read("a/m") == b"1"
    assert not memory.put("a/m", b"2", new=True) and memory.read("a/m") == b"1"
    assert memory.read("a/none") is None and memory.size("a/none") is None and memory.listed("none") == {}
    memory.remove(["a/m"])
    assert memory.read("a/m") is None


def test_a_store_that_refuses_is_an_error_of_the_environment_and_nothing_is_lost(
    at: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = scratch(store, "one").entry("load", {"n": 1})
    with monkeypatch.context() as broken:
        broken.setattr(Store, "upload", lambda *a: (_ for _ in ()).throw(ResourceError("it does not answer")))
        with pytest.raises(ResourceError, match="it does not answer"):
            write(entry, "00000000.arrow", b"a")
    assert store.listed("load/" + entry.key).keys() == set() or set(store.listed("load/" + entry.key)) == {".used"}
    assert entry.receipt("00000000.arrow") is not None  # of this disk; and now the store has it
    assert entry.shelf is not None and entry.shelf.receipt("00000000.arrow") is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cache.remote=bucket/cache"], "is no address"),
        (["cache.dir=s3://bucket/cache"], "cache.remote= to an address"),
        (["cache.scratch_bytes=1"], "needs cache.remote="),
        (["cache.remote=s5://bucket/cache"], "in cache.remote: s5:// is unknown"),
        (["cache.remote=https://example.org/cache"], "in cache.remote: no such store"),
    ],
)
def test_what_cannot_be_a_store_is_refused(at: Path, overrides: list[str], message: str) -> None:
    Path("a.txt").write_text("text")
    with pytest.raises(ConfigError, match=message):
        run(composed(*SMALL, *overrides))


def settings(*overrides: str) -> Config:
    return composed(*SMALL, *overrides)


@pytest.mark.slow
def test_a_shard_that_is_damaged_in_the_store_is_healed_in_the_run_with_one_warning(
    at: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    Path("a.txt").write_text(LINES)
    first = run(settings("name=first", "cache.dir=one", f"cache.remote={store.url}"))
    for stage in ("encode", "embed"):
        name = next(n for n in store.listed() if n.startswith(f"{stage}/") and n.endswith("00000000.arrow"))
        data = bytearray(store.read(name) or b"")
        data[len(data) // 2] ^= 1
        store.put(name, bytes(data))
    forget()
    caplog.clear()
    again = run(settings("name=again", "cache.dir=two", f"cache.remote={store.url}", "window.stride=8"))
    assert states(again)["encode"].startswith("computed 1 of") and states(again)["tokenize"] == "cached"
    told = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(told) == 1 and "encode/" in told[0]
    forget()
    caplog.clear()
    healed = run(settings("name=healed", "cache.dir=three", f"cache.remote={store.url}"))
    assert len([r for r in caplog.records if "damaged" in r.getMessage()]) == 1
    mine, theirs = digests(healed.folder), digests(first.folder)
    assert {n: h for n, h in mine.items() if n[:4] == "data"} == {n: h for n, h in theirs.items() if n[:4] == "data"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_many_damaged_shards_are_found_at_once_said_in_one_line_and_counted_in_the_table(
    at: Path, store: Store, caplog: pytest.LogCaptureFixture, engine: str
) -> None:
    Path("a.txt").write_text(LINES)
    run(settings("name=first", "cache.dir=one", f"cache.remote={store.url}"))
    names = [name for name in store.listed() if re.fullmatch(r"(encode|tokenize)/\w+/\d+\.arrow", name)]
    for name in [*names[:-1], next(n for n in store.listed() if n.startswith("window/") and n.endswith("00000000.arrow"))]:
        flipped = bytearray(store.read(name) or b"")
        flipped[len(flipped) // 2] ^= 1
        store.put(name, bytes(flipped))
    forget()
    caplog.clear()
    again = run(settings("name=again", "cache.dir=two", f"cache.remote={store.url}", "window.stride=8", f"engine={engine}"))
    shards = len(names) // 2
    assert [states(again)[stage] for stage in ("load", "tokenize", "encode", "window")] == [
        "cached",
        f"computed {shards - 1} of {shards} shards",
        "computed",
        "computed",
    ]
    told = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(told) == 2 and f"; it and {shards - 1} more files beside it are set aside and computed again" in told[0]
    assert "/tokenize/" in told[1]
    assert all("/window/" in name for name, problem in housekeeping.verify(store.url) if problem)
    plain = run(settings("name=plain", "cache.dir=three", "window.stride=8"))
    assert data(again.folder) == data(plain.folder)


def test_the_tools_list_verify_and_tidy_a_cache_in_a_store(
    at: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import tools

    def called(*arguments: str) -> str:
        tools.main(None, ["cache", "--dir", store.url, *arguments])
        return capsys.readouterr().out

    cache = scratch(store, "one")
    old, young = whole(cache, "00000000.arrow"), cache.entry("encode", {"n": 2})
    write(young, "00000000.arrow", b"young")
    assert f"load     {old.key}" in (told := called("ls")) and told.count("unfinished") == 1
    assert "0 of 3 files damaged" in called("verify")
    store.put(f"load/{old.key}/00000000.arrow", b"DATA of 00000000.arrow")
    with pytest.raises(SystemExit) as code:
        called("verify")
    assert code.value.code == 4 and f"load/{old.key}/00000000.arrow: expected 22 bytes" in capsys.readouterr().out
    assert called("gc", "--max-size", "0") == "0 B freed\n"  # both were used just now
    for name in store.listed(f"load/{old.key}"):
        os.utime(at / "store/cache/load" / old.key / name, (1000, 1000))
    when = Store.when
    monkeypatch.setattr(Store, "when", lambda self, name: time.time() if name.endswith(".used") else when(self, name))
    assert called("gc", "--max-size", "0") == "0 B freed\n"  # a run has come in between
    assert {entry.stage: entry.whole for entry in housekeeping.ls(store.url)}["load"]
    for name in store.listed(f"load/{old.key}"):
        os.utime(at / "store/cache/load" / old.key / name, (1000, 1000))
    monkeypatch.setattr(Store, "when", when)
    assert called("gc", "--max-size", "0").startswith(f"removed load/{old.key}")
    assert [entry.stage for entry in housekeeping.ls(store.url)] == ["encode"]
    assert young.receipt("00000000.arrow") is not None


@pytest.mark.parametrize("command", ["ls", "verify", "gc --max-size 0"])
def test_where_no_cache_is_the_tools_say_so_and_leave_what_is_there(
    at: Path, store: Store, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import tools

    for name in ("a.txt", f"in/{'0' * 32}/a.arrow", "quarantine/mine"):
        store.put(name, b"a corpus")
    before = store.listed()
    with pytest.raises(SystemExit) as code:
        tools.main(None, ["cache", "--dir", store.url, *command.split()])
    assert code.value.code == 2
    assert capsys.readouterr().err == f"error: there is no cache at '{store.url}': set --dir.\n"
    assert store.listed() == before
    whole(scratch(store, "one"), "00000000.arrow").cache.require_writable()
    tools.main(None, ["cache", "--dir", store.url, *command.split()])
    assert {name: about for name, about in store.listed().items() if name in before} == before
    assert "probe" not in store.listed()


def test_a_folder_that_is_asked_for_whole_has_every_file(at: Path, store: Store) -> None:
    made = whole(scratch(store, "one"), "00000.arrow", "00001.arrow")
    entry = scratch(store, "two").entry(made.stage, made.identity)
    folder = entry.here()
    assert folder == entry.folder
    assert {path.name: path.read_bytes() for path in folder.glob("0*")} == {
        path.name: path.read_bytes() for path in made.folder.glob("0*")
    }
    assert len(list(folder.glob("0*"))) == 2


# -- a bucket ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Server]:
    with s3.serving() as running:
        yield running


@pytest.fixture
def bucket(server: s3.Server, at: Path) -> Iterator[Any]:
    """An empty bucket, and a.txt in the working directory."""
    Path("a.txt").write_text(LINES)
    forget()
    with s3.bucket(server) as client:
        yield client
    forget()


def start(scratch: str, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """A run in a process of its own, with the bucket as its cache."""
    arguments = [*SMALL, f"name={name}", f"cache.dir={scratch}", "cache.remote=s3://bucket/cache", "output.report=false"]
    command = [sys.executable, "-m", "pipeline", *arguments, *overrides]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=100)
    return process.returncode, said


def data(folder: Path | str) -> dict[str, str]:
    return {name: sha for name, sha in digests(Path(folder)).items() if name not in ("manifest.json", "README.md")}


@pytest.mark.slow
def test_a_bucket_gives_the_same_bytes_and_another_machine_fetches_only_what_it_needs(
    bucket: Any, server: s3.Server, at: Path
) -> None:
    plain = run(settings("name=plain", "cache.dir=plain"))
    first = run(settings("name=first", "cache.dir=one", "cache.remote=s3://bucket/cache"))
    assert data(first.folder) == data(plain.folder)
    assert not server.fetched()  # what was made here is read here
    forget()
    server.asked.clear()
    again = run(settings("name=again", "cache.dir=two", "cache.remote=s3://bucket/cache"))
    assert set(states(again).values()) == {"cached"} and data(again.folder) == data(plain.folder)
    fetched = server.fetched()
    assert {path.split("/")[3] for path in fetched} == {"encode", "embed"} and len(fetched) == len(set(fetched))
    assert [path for path in fetched if "/encode/" in path] == [p for p in fetched if p.endswith("/documents.arrow")]
    put = [path for method, path in server.asked if method == "PUT"]
    assert all(path.endswith(".used") or "/sources/" in path for path in put)  # a.txt may be old enough by now to be noted
    written = "".join(path.read_text(errors="replace") for path in at.rglob("*.json"))
    assert "testing" not in written and "bucket" not in written


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_the_bucket_alone(bucket: Any, server: s3.Server, at: Path) -> None:
    plain = run(settings("name=plain", "cache.dir=plain"))
    killed = start("one", "killed")
    put = re.compile(r"/encode/\w+/\.\d+\.arrow\.receipt")
    while len([1 for method, path in list(server.asked) if method == "PUT" and put.search(path)]) < 2:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    shutil.rmtree("one")
    server.asked.clear()
    forget()
    again = run(settings("name=again", "cache.dir=two", "cache.remote=s3://bucket/cache"))
    made, total = re.fullmatch(r"computed (\d+) of (\d+) shards", states(again)["encode"]).groups()  # type: ignore[union-attr]
    assert int(made) < int(total) and data(again.folder) == data(plain.folder)
    puts = [path for method, path in server.asked if method == "PUT" and re.search(r"/encode/\w+/\d+\.arrow$", path)]
    assert len(puts) == int(made)


@pytest.mark.slow
def test_a_flipped_byte_is_healed_and_said_once(bucket: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = run(settings("name=first", "cache.dir=one", "cache.remote=s3://bucket/cache"))
    store = Store("s3://bucket/cache")
    name = next(name for name in store.listed() if re.fullmatch(r"embed/\w+/00000000\.arrow", name))
    flipped = bytearray(store.read(name) or b"")
    flipped[len(flipped) // 2] ^= 1
    store.put(name, bytes(flipped))
    forget()
    caplog.clear()
    again = run(settings("name=again", "cache.dir=two", "cache.remote=s3://bucket/cache"))
    assert data(again.folder) == data(first.folder) and states(again)["embed"].startswith("computed")
    assert len([record for record in caplog.records if "damaged" in record.getMessage()]) == 1
    assert hashlib.sha256(store.read(name) or b"").hexdigest() != hashlib.sha256(flipped).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["a*", "a?", "[ab]1"])
def test_what_is_a_pattern_in_a_shell_is_a_name_in_a_bucket_and_removes_only_itself(bucket: Any, folder: str) -> None:
    names = ["x.arrow", "y.arrow", "z*"]
    for place in ("a1", folder):
        for name in [*names, "zone"]:
            Store(f"s3://bucket/{place}").put(name, b"data")
    Store(f"s3://bucket/{folder}").remove(names)
    assert Store(f"s3://bucket/{folder}").listed().keys() == {"zone"}
    assert Store("s3://bucket/a1").listed().keys() == {*names, "zone"}


@pytest.mark.slow
def test_two_runs_at_once_on_two_scratches_give_the_same_bytes(bucket: Any) -> None:
    both = [start("one", "first"), start("two", "second", "engine=processes")]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert data("outputs/first") == data("outputs/second")
    forget()
    assert set(states(run(settings("name=again", "cache.dir=three", "cache.remote=s3://bucket/cache"))).values()) == {"cached"}


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_ends_the_run_with_5_and_the_next_one_finishes(
    bucket: Any, server: s3.Server
) -> None:
    plain = run(settings("name=plain", "cache.dir=plain"))
    seen: list[str] = []

    def fails(method: str, path: str) -> bool:
        seen.append(path)
        return len([1 for p in seen if "/tokenize/" in p]) > 16

    server.fails = fails
    code, said = ended(start("one", "first", AWS_MAX_ATTEMPTS="1"))
    last = said.strip().splitlines()[-1]
    assert code == 5 and last.startswith("error: 's3://bucket/cache' cannot be reached or read") and "run again" in last, said
    assert "Traceback" not in said and "testing" not in said
    server.fails = lambda method, path: False
    forget()
    again = run(settings("name=again", "cache.dir=one", "cache.remote=s3://bucket/cache"))
    assert states(again)["load"] == "cached" and re.fullmatch(r"computed \d+ of \d+ shards", states(again)["tokenize"])
    assert data(again.folder) == data(plain.folder)
    gone = ended(start("two", "gone", AWS_MAX_ATTEMPTS="1", AWS_ENDPOINT_URL="http://127.0.0.1:9"))
    assert gone[0] == 5 and "cannot be reached" in gone[1]


@pytest.mark.slow
def test_a_scratch_smaller_than_the_cache_is_enough(bucket: Any) -> None:
    plain = run(settings("name=plain", "cache.dir=plain", "embedding=none"))
    bound = 60_000
    small = run(settings("name=small", "cache.dir=one", "cache.remote=s3://bucket/cache", f"cache.scratch_bytes={bound}",
                         "embedding=none", "engine=serial"))  # fmt: skip
    assert data(small.folder) == data(plain.folder)
    kept = [path.stat() for path in Path("one").glob("*/*/0*.arrow")]
    assert (
        sum(state.st_size for state in kept if state.st_nlink == 1)
        <= bound
        < sum(size for size, _ in Store("s3://bucket/cache").listed("load").values())
    )
