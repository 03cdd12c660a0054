import contextlib
import errno
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import cache as caches
from pipeline import files, temporary
from pipeline.cache import Cache, Entry
from pipeline.errors import IntegrityError, Interrupted, PipelineError, ResourceError, from_os_error
from pipeline.files import digest, hash_file, require_space, seal, stat_of, unseal, unsealed

SHARDS = {f"{index:05d}.arrow": bytes([index]) * (1000 + index) for index in range(2)}
IDENTITY = {"version": 1, "settings": {"stride": 64}}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Every test sees the cache as a new process would."""
    caches._verified.clear()
    yield
    caches._verified.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


def make(entry: Entry, computed: list[str] | None = None) -> dict[str, Any]:
    """Do what a run does: reuse what is whole, resume behind finished shards, compute the rest."""
    entry.lease()
    manifest = entry.verified()
    if manifest is None:
        for name, data in SHARDS.items():
            if entry.receipt(name) is None:
                with entry.write(name, lambda: {"counts": {"rows": 1}}) as file:
                    file.write(data)
                if computed is not None:
                    computed.append(name)
        notes = [entry.receipt(name) or {} for name in SHARDS]
        rows = sum("counts" in note for note in notes)
        manifest = entry.finish(list(SHARDS), notes, ledger={entry.stage: {"rows": rows}}, rows=rows)
    return manifest


def damaged(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def require_whole(entry: Entry) -> None:
    """The entry is published with the right bytes and nothing lies about."""
    assert entry.manifest() is not None
    assert {p.name: p.read_bytes() for p in entry.folder.glob("0*")} == SHARDS
    assert sorted(p.name for p in entry.folder.iterdir()) == [*SHARDS, "manifest.json"]


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except PipelineError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- keys and seals ---------------------------------------------------------------------------------------


def test_a_key_depends_on_every_value_and_on_no_order(cache: Cache) -> None:
    one = cache.entry("ids", {"a": 1, "b": {"c": 2}})
    assert cache.entry("ids", {"b": {"c": 2}, "a": 1}).key == one.key
    assert one.key == digest({"stage": "ids", "a": 1, "b": {"c": 2}})[:32]
    keys = {cache.entry(stage, i).key for stage in ("ids", "load") for i in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None})}
    assert len(keys) == 8


def test_the_canonical_form_is_not_to_change_under_published_keys() -> None:
    assert digest({"b": [1, "é", None, 1.5], "a": {}}) == "6a8b1ee935918f65b7d74ded10b142317293cecfbe608313a28ec0fc2994f73d"


@pytest.mark.row("A17")
def test_a_flip_of_any_bit_makes_a_sealed_file_unreadable(tmp_path: Path) -> None:
    path, data = tmp_path / "manifest.json", seal({"key": "k", "files": {"0.arrow": {"bytes": 1}}, "text": "é"})
    path.write_bytes(data)
    assert unseal(path) == {"schema": 1, "key": "k", "files": {"0.arrow": {"bytes": 1}}, "text": "é"}
    undetected = []
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            if unseal(path) is not None:
                undetected.append((place, bit))
    assert undetected == []


@pytest.mark.row("A17")
def test_a_sealed_file_of_any_other_length_is_absent(tmp_path: Path) -> None:
    path, data = tmp_path / "manifest.json", seal({"key": "k"})
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert unseal(path) is None
    for more in (b"\n", b" ", b"\0", data):
        path.write_bytes(data + more)
        assert unseal(path) is None
    assert unseal(tmp_path / "nowhere" / "manifest.json") is None


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"sealed": 1}', b"[" * 100_000, b'{"a": NaN}', b"\xff", b"1" * 5000])
@pytest.mark.row("A17")
def test_what_is_no_sealed_file_is_absent(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m").write_bytes(data)
    assert unseal(tmp_path / "m") is None


@pytest.mark.row("A17")
def test_a_sealed_file_of_a_gigabyte_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    os.truncate(tmp_path / "m", 1 << 30)
    assert unseal(tmp_path / "m") is None


def test_a_folder_or_a_pipe_in_place_of_a_sealed_file_is_absent_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert unseal(tmp_path / "folder") is None
    assert unseal(tmp_path / "pipe") is None


@pytest.mark.row("A17")
def test_a_manifest_of_a_newer_version_is_an_integrity_error(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    damaged(entry.folder / "manifest.json", seal({**(entry.manifest() or {}), "schema": 2}))
    with pytest.raises(IntegrityError, match=r"newer version: upgrade, or use another cache\.dir=") as caught:
        entry.verified()
    assert caught.value.exit_code == 4


# -- writing ----------------------------------------------------------------------------------------------


def test_a_stage_is_written_once_and_then_found(cache: Cache) -> None:
    entry, computed = cache.entry("ids", IDENTITY), []
    manifest = make(entry, computed)
    assert computed == list(SHARDS)
    assert manifest == entry.verified() == make(cache.entry("ids", IDENTITY), computed)
    assert computed == list(SHARDS)
    assert manifest["identity"] == {"stage": "ids", **IDENTITY}
    for name in SHARDS:
        size, sha = hash_file(entry.path(name))
        assert manifest["files"][name] == {"bytes": size, "sha256": sha, "counts": {"rows": 1}}
    require_whole(entry)
    cache.close()
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_started_stage_goes_on_behind_its_finished_shards(cache: Cache) -> None:
    entry, computed = cache.entry("ids", IDENTITY), []
    with entry.write("00001.arrow") as file:
        file.write(SHARDS["00001.arrow"])
    make(entry, computed)
    assert computed == ["00000.arrow"]
    require_whole(entry)


def test_published_files_are_read_only_within_the_umask(cache: Cache) -> None:
    before = os.umask(0o077)
    try:
        make(cache.entry("ids", IDENTITY))
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in cache.root.glob("ids/*/*")}
    assert modes == {0o400}


def test_record_batches_pass_through_unchanged(cache: Cache) -> None:
    batch = pa.record_batch({"text": ["a" * 5000, "", "é"], "n": [1, 2, 3]})
    entry = cache.entry("ids", IDENTITY)
    with entry.write("00000.arrow") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(0, 0))
    expected = pa.BufferOutputStream()
    with pa.ipc.new_stream(expected, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(0, 0))
    assert entry.path("00000.arrow").read_bytes() == expected.getvalue().to_pybytes()
    assert entry.receipt("00000.arrow") is not None


@pytest.mark.parametrize("end", ["error", "abandoned"])
def test_an_unfinished_file_leaves_nothing_behind(cache: Cache, end: str) -> None:
    batch = pa.record_batch({"n": [1, 2, 3]})
    entry = cache.entry("ids", IDENTITY)

    def stage() -> Iterator[pa.RecordBatch]:
        with entry.write("00000.arrow") as file, pa.ipc.new_stream(file, batch.schema) as writer:
            for _ in range(3):
                writer.write_batch(batch)
                yield batch

    running = stage()
    next(running)
    assert len(list(cache.tmp.iterdir())) == 1
    if end == "error":
        with pytest.raises(KeyError):
            running.throw(KeyError("x"))  # type: ignore[attr-defined]
    else:
        running.close()  # type: ignore[attr-defined]
    assert list(cache.tmp.iterdir()) == []
    assert list(cache.entries()) == []


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "", ".", "..", ".lock", "a/b", "a\nb", "a\0b", "manifest.json"])
def test_a_name_that_is_not_a_data_file_is_refused(cache: Cache, name: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    with pytest.raises(IntegrityError, match="not the name of a data file"), entry.write(name):
        pass


def test_a_file_may_be_named_as_the_receipt_of_another_would_be(cache: Cache) -> None:
    entry = cache.entry("tokenizer", IDENTITY)
    names = ["tokenizer", "tokenizer.json", "tokenizer.receipt"]
    for name in names:
        with entry.write(name) as file:
            file.write(name.encode())
    entry.finish(names, [entry.receipt(name) or {} for name in names])
    caches._verified.clear()
    assert entry.verified()
    assert [entry.path(name).read_text() for name in names] == names


def test_threads_may_write_to_one_entry_at_once_even_the_same_file(cache: Cache) -> None:
    entry, errors = cache.entry("ids", IDENTITY), []

    def work() -> None:
        try:
            make(entry)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    caches._verified.clear()
    assert entry.verified()
    assert {p.name for p in cache.tmp.iterdir()} == {"lease"}


# -- faults while writing ---------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "unlink", "mkdir", "utime")


class Point:
    """Wraps the system calls that publish, and does something before the n-th; counts them else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, at: int, act: Callable[[], None]) -> None:
        self.seen = 0
        self.open: set[int] = set()
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name), str(root), at, act))

    def wrap(self, name: str, call: Any, root: str, at: int, act: Callable[[], None]) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            ours = args[0] in self.open if isinstance(args[0], int) else os.fspath(args[0]).startswith(root)
            self.seen += ours
            if ours and self.seen == at:
                act()
            if name == "close":
                self.open.discard(args[0])
            result = call(*args, **options)
            if name == "open" and ours:
                self.open.add(result)
            return result

        return wrapped


def points(tmp_path: Path) -> int:
    """How many publishing system calls a run makes."""
    with pytest.MonkeyPatch.context() as patch:
        counter = Point(patch, tmp_path / "count", 0, lambda: None)
        run(tmp_path / "count")
    assert counter.seen > 40
    return counter.seen


def run(root: Path) -> None:
    cache = Cache.open(root)
    try:
        make(cache.entry("ids", IDENTITY))
    finally:
        cache.close()


@pytest.mark.row("A1")
def test_a_run_killed_at_any_system_call_is_finished_by_the_next(tmp_path: Path) -> None:
    total = points(tmp_path)
    for at in range(1, total + 1):
        root = tmp_path / f"killed-{at}"

        def killed(root: Path = root, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                Point(patch, root, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                run(root)

        assert in_child(killed) == -signal.SIGKILL, at
        finished = {p.name[1:-8] for p in root.glob("ids/*/.*.receipt")}
        cache, computed = Cache.open(root), []
        whole = cache.entry("ids", IDENTITY).manifest() is not None
        make(cache.entry("ids", IDENTITY), computed)
        assert not finished & set(computed), at
        assert not (whole and computed), at
        cache.close()
        caches._verified.clear()
        require_whole_but_for_receipts(cache.entry("ids", IDENTITY))
        assert list((root / "tmp").iterdir()) == [], at


def require_whole_but_for_receipts(entry: Entry) -> None:
    """As `require_whole`; a kill behind the manifest may leave receipts, which nothing reads any more."""
    for receipt in entry.folder.glob(".*.receipt"):
        receipt.unlink()
    assert entry.verified() is not None
    require_whole(entry)


@pytest.mark.row("A3")
def test_whatever_a_power_cut_keeps_a_manifest_stands_for_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a disk: contents are kept if fsynced; of the names changed since the folder's fsync, any may be lost."""
    entry = Cache.open(tmp_path / "cache").entry("ids", IDENTITY)
    synced: set[int] = set()  # inodes
    events: list[tuple[str, bytes | None] | None] = []  # a name and its new content, or None: the folder was fsynced
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def fsync(handle: int) -> None:
        real["fsync"](handle)
        synced.add(os.fstat(handle).st_ino)
        if os.readlink(f"/proc/self/fd/{handle}") == str(entry.folder):
            events.append(None)

    def replace(old: Path, new: Path) -> None:
        if Path(new).parent == entry.folder:
            events.append((Path(new).name, Path(old).read_bytes() if Path(old).stat().st_ino in synced else b""))
        real["replace"](old, new)

    def unlink(path: Path) -> None:
        real["unlink"](path)
        if Path(path).parent == entry.folder:
            events.append((Path(path).name, None))

    with monkeypatch.context() as patch:
        for name, call in (("fsync", fsync), ("replace", replace), ("unlink", unlink)):
            patch.setattr(os, name, call)
        make(entry)
    assert len(events) > 8
    tried = published = 0
    for end in range(len(events) + 1):
        last = max((i for i in range(end) if events[i] is None), default=0)
        kept = [event for event in events[:last] if event]
        pending = [event for event in events[last:end] if event]
        one = [[event] for event in pending]
        but_one = [[event for event in pending if event is not lost] for lost in pending]
        for survivors in [[], pending, *one, *but_one]:
            disk: dict[str, bytes | None] = {}
            for name, content in kept + survivors:
                disk[name] = content
            root = tmp_path / f"disk-{(tried := tried + 1)}"
            after = Cache.open(root).entry("ids", IDENTITY)
            after.folder.mkdir(parents=True)
            for name, data in disk.items():
                if data is not None:
                    (after.folder / name).write_bytes(data)
            if disk.get("manifest.json") is not None:
                published += 1
                assert after.verified() is not None, (end, survivors)
            make(after)
            require_whole_but_for_receipts(after)
    assert published > 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.row("A11")
def test_a_run_that_fails_at_any_system_call_says_so_and_publishes_nothing_wrong(tmp_path: Path, number: int) -> None:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    outcomes = set()
    for at in range(1, points(tmp_path) + 1):
        root = tmp_path / f"failed-{at}"
        with pytest.MonkeyPatch.context() as patch:
            Point(patch, root, at, act)
            try:
                run(root)
                outcomes.add(0)
            except PipelineError as error:
                outcomes.add(error.exit_code)
                assert "\n" not in str(error)
                assert "/tmp/" not in str(error).replace(str(tmp_path), "")
        caches._verified.clear()
        for path, problem in Cache.open(root).verify():
            assert problem is None, (at, path)
        run(root)
        caches._verified.clear()
        require_whole_but_for_receipts(Cache.open(root).entry("ids", IDENTITY))
    assert outcomes == {0, 5}


@pytest.mark.row("A11")
def test_a_failed_fsync_is_not_tried_again_and_never_published(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    entry = cache.entry("ids", IDENTITY)
    with pytest.raises(ResourceError, match=r"Input/output error at .*/00000\.arrow'"), entry.write("00000.arrow") as file:
        file.write(b"x")
    assert len(calls) == 1
    assert not entry.path("00000.arrow").exists()
    assert list(cache.tmp.iterdir()) == []


@pytest.mark.row("A10")
def test_a_full_disk_names_the_file_and_what_to_do(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    entry = cache.entry("ids", IDENTITY)
    monkeypatch.setattr(os, "write", write)
    batch = pa.record_batch({"n": [1]})
    with (
        pytest.raises(ResourceError, match=r"No space left writing '.*/00000\.arrow' \([\d,]+ MB free\)\. .*cache\.dir="),
        entry.write("00000.arrow") as file,
        pa.ipc.new_stream(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def test_a_short_write_is_continued(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:7]))
    make(cache.entry("ids", IDENTITY))
    caches._verified.clear()
    assert cache.entry("ids", IDENTITY).verified()
    require_whole(cache.entry("ids", IDENTITY))


@pytest.mark.parametrize("lost", ["receipt emptied", "receipt zeroed", "data emptied", "data lost", "manifest emptied"])
@pytest.mark.row("A3")
def test_what_a_power_cut_drops_is_computed_again(cache: Cache, lost: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    for name, data in SHARDS.items():
        with entry.write(name) as file:
            file.write(data)
    data, receipt = entry.path("00001.arrow"), entry.folder / ".00001.arrow.receipt"
    if lost == "manifest emptied":
        (entry.folder / "manifest.json").touch()
    elif lost == "data lost":
        data.unlink()
    elif lost == "receipt zeroed":
        damaged(receipt, b"\0" * receipt.stat().st_size)
    else:
        damaged(data if lost == "data emptied" else receipt, b"")
    caches._verified.clear()
    computed: list[str] = []
    make(entry, computed)
    assert computed == ([] if lost == "manifest emptied" else ["00001.arrow"])
    require_whole(entry)


# -- damage and healing -----------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda p: damaged(p, bytes([p.read_bytes()[0] ^ 4]) + p.read_bytes()[1:]),
    "cut to nothing": lambda p: damaged(p, b""),
    "cut to a byte": lambda p: damaged(p, p.read_bytes()[:1]),
    "cut in half": lambda p: damaged(p, p.read_bytes()[:500]),
    "cut by a byte": lambda p: damaged(p, p.read_bytes()[:-1]),
    "extended": lambda p: damaged(p, p.read_bytes() + b"\0"),
    "filled with zeros": lambda p: damaged(p, b"\0" * p.stat().st_size),
    "another shard": lambda p: damaged(p, p.with_name("00000.arrow").read_bytes()),
    "missing": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir())[1],
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p))[1],
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.row("A15", "A16")
def test_a_damaged_file_is_set_aside_with_one_warning_and_it_alone_is_computed(
    cache: Cache, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    caches._verified.clear()
    DAMAGE[kind](entry.path("00001.arrow"))
    computed: list[str] = []
    make(entry, computed)
    assert computed == ["00001.arrow"]
    require_whole(entry)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "00001.arrow' is damaged: expected 1001 bytes, sha256 " in warning
    aside = [p.name for p in (cache.root / "quarantine").iterdir()]
    assert sum("00001.arrow" in name for name in aside) == (kind != "missing")
    assert sum("manifest.json" in name for name in aside) == 1


def test_a_kill_that_left_receipts_beside_the_manifest_does_not_double_the_warning(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = cache.entry("ids", IDENTITY)
    for name, note in make(entry)["files"].items():
        entry._publish_receipt(name, note)
    DAMAGE["cut in half"](entry.path("00001.arrow"))
    caches._verified.clear()
    make(entry)
    assert len(caplog.messages) == 1
    require_whole(entry)


@pytest.mark.parametrize("kind", ["cut in half", "extended"])  # the mended one is larger, or smaller
def test_a_file_that_another_run_mends_meanwhile_is_not_set_aside(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    path = entry.path("00001.arrow")
    DAMAGE[kind](path)
    caches._verified.clear()
    real = hash_file

    def mended_after(handle: int) -> tuple[int, str]:
        found = real(handle)
        if found[0] == len(path.read_bytes()) != len(SHARDS["00001.arrow"]):
            path.write_bytes(SHARDS["00001.arrow"])  # in place: the inode stays
        return found

    monkeypatch.setattr(files, "hash_file", mended_after)
    assert entry.verified() is None
    assert path.read_bytes() == SHARDS["00001.arrow"]
    assert [p.name.split("-")[2] for p in (cache.root / "quarantine").iterdir()] == ["manifest.json"]


@pytest.mark.row("A7")
def test_a_file_that_another_run_mends_at_the_last_moment_keeps_its_name(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    caches._verified.clear()
    path = entry.path("00001.arrow")
    good, link = path.read_bytes(), os.link
    damaged(path, b"x")

    def mended_first(*arguments: Any, **options: Any) -> None:
        damaged(path, good)
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", mended_first)
    assert entry.receipt("00001.arrow") is None
    assert path.read_bytes() == good


@pytest.mark.parametrize("name", ["00000.arrow", "vocabulary.json"])
def test_a_damaged_file_keeps_its_name_beside_a_copy_in_quarantine_and_a_manifest_does_not(cache: Cache, name: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    with entry.write(name) as file:
        file.write(b"whole")
    entry.finish([name], [file.note])
    caches._verified.clear()
    damaged(entry.path(name), b"hole")
    assert entry.verified() is None
    assert [p.name for p in entry.folder.iterdir()] == [name]
    aside = {p.name.split("-")[2]: p for p in (cache.root / "quarantine").iterdir()}
    assert aside.keys() == {name, "manifest.json"} and aside[name].read_bytes() == b"hole"


@pytest.mark.parametrize("size", [2000, 10])
def test_a_file_is_known_from_its_writing_until_it_changes(cache: Cache, size: int) -> None:
    entry = cache.entry("ids", IDENTITY)
    assert not entry.known("00001.arrow")
    make(entry)
    assert entry.known("00001.arrow") and not entry.known("00009.arrow")
    damaged(entry.path("00001.arrow"), b"x" * size)
    assert not entry.known("00001.arrow") and entry.known("00000.arrow")
    make(entry)
    caches._verified.clear()
    assert not entry.known("00001.arrow")


def test_a_small_file_is_sent_to_the_store_and_brought_from_there(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    one, two = (Cache.open(tmp_path / name, url) for name in ("one", "two"))
    note = one.root / "sources" / "note.txt"
    two.bring(two.root / "sources" / "note.txt")
    assert not two.root.joinpath("sources").exists()
    note.parent.mkdir(parents=True)
    note.write_text("of all")
    one.send(note)
    two.bring(two.root / "sources" / "note.txt")
    assert (two.root / "sources" / "note.txt").read_text() == "of all"
    note.write_text("mine")
    one.bring(note)
    assert note.read_text() == "mine" and list(two.tmp.iterdir()) == []


def test_at_most_the_scratch_must_find_room_where_it_is_bounded(tmp_path: Path) -> None:
    assert Cache.open(tmp_path / "one").held(100) == 100
    bounded = Cache.open(tmp_path / "two", f"file://{tmp_path}/store", 40)
    assert (bounded.held(100), bounded.held(30)) == (40, 30)


@pytest.mark.parametrize(("bound", "shared"), [(2000, True), (2001, False), (2002, False)])
def test_only_a_large_entry_is_hashed_by_all_together(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, bound: int, shared: bool
) -> None:
    monkeypatch.setattr(caches, "LONG", bound)
    entry = cache.entry("ids", IDENTITY)
    make(entry)  # 2,001 bytes
    asked = []

    def together(task: str, function: Callable[[Any], bool], files: list[Any]) -> list[bool]:
        asked.append(task)
        return [function(file) for file in files]

    assert entry.verified(1, together) == entry.manifest()
    assert bool(asked) == shared


@pytest.mark.parametrize("other", [b"w", b"wrong", b"wrong and longer"])
def test_a_file_that_another_run_replaces_at_once_is_not_taken_for_ours(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    entry = cache.entry("ids", IDENTITY)
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        real(old, new)
        if Path(new).suffix == ".arrow":
            os.chmod(new, 0o644)
            Path(new).write_bytes(other)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with entry.write("00000.arrow") as file:
            file.write(b"right")
    assert entry.receipt("00000.arrow") is None


@pytest.mark.row("A17")
def test_a_damaged_manifest_means_that_the_entry_is_computed_again(cache: Cache) -> None:
    entry, computed = cache.entry("ids", IDENTITY), []
    make(entry)
    manifest = entry.folder / "manifest.json"
    damaged(manifest, manifest.read_bytes().replace(b"ids", b"idz"))
    make(entry, computed)
    assert computed == list(SHARDS)
    require_whole(entry)


def test_a_whole_entry_under_another_key_is_not_believed(cache: Cache) -> None:
    entry, other = cache.entry("ids", IDENTITY), cache.entry("ids", {"version": 2})
    make(entry)
    entry.folder.rename(other.folder)
    assert other.verified() is None


def test_a_receipt_moved_to_another_shard_is_not_believed(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)
    with entry.write("00000.arrow") as file:
        file.write(b"zero")
    entry.path("00000.arrow").rename(entry.path("00001.arrow"))
    (entry.folder / ".00000.arrow.receipt").rename(entry.folder / ".00001.arrow.receipt")
    assert entry.receipt("00001.arrow") is None


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../x"])
@pytest.mark.row("A18")
def test_a_manifest_that_lists_a_path_is_rejected_unopened(cache: Cache, name: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    manifest = make(entry)
    damaged(entry.folder / "manifest.json", seal({**manifest, "files": {name: {"bytes": 1, "sha256": "0"}}}))
    with pytest.raises(IntegrityError, match="not the name of a data file") as caught:
        entry.verified()
    assert caught.value.exit_code == 4


NOTE = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "files", [[], {"0.arrow": 1}, {"0.arrow": {}}, {"0.arrow": None}, {"0.arrow": {**NOTE, "counts": 1}}, None]
)
def test_a_manifest_of_another_shape_is_absent(cache: Cache, files: Any) -> None:
    entry = cache.entry("ids", IDENTITY)
    manifest = make(entry)
    damaged(entry.folder / "manifest.json", seal({**manifest, "files": files}))
    assert entry.verified() is None


@pytest.mark.parametrize("lost", ["ledger", "identity", "rows", "counts", "files", "stage", "rows of the ledger"])
def test_a_manifest_that_does_not_add_up_is_absent_and_its_entry_is_computed_again(cache: Cache, lost: str) -> None:
    entry, computed = cache.entry("ids", IDENTITY), []
    manifest = make(entry)
    if lost == "counts":
        del manifest["files"]["00001.arrow"]["counts"]
    elif lost == "files":
        manifest["files"] = {}
    elif lost == "stage":
        manifest["ledger"] = {}
    elif lost == "rows of the ledger":
        manifest["ledger"]["ids"] = []
    else:
        del manifest[lost]
    damaged(entry.folder / "manifest.json", seal(manifest))
    assert dict(cache.verify())[entry.folder / "manifest.json"] == "not as it was written"
    assert entry.verified() is None
    make(entry, computed)
    assert computed == list(SHARDS)
    require_whole(entry)


def test_an_entry_without_files_is_whole_only_where_it_says_that_it_has_no_rows(cache: Cache) -> None:
    empty, emptied = (cache.entry("tokenizer", {"n": n}) for n in range(2))
    empty.finish([], [], rows=0)
    emptied.finish([], [])
    assert empty.verified() is not None and emptied.verified() is None


def test_a_receipt_of_another_shape_is_absent(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)
    with entry.write("00000.arrow") as file:
        file.write(b"zero")
    damaged(entry.folder / ".00000.arrow.receipt", seal({"of": ["ids", entry.key, "00000.arrow"]}))
    assert entry.receipt("00000.arrow") is None


@pytest.mark.parametrize("name", ["00001.arrow", "manifest.json"])
@pytest.mark.row("A18")
def test_a_link_out_of_the_cache_is_rejected_and_not_followed(cache: Cache, tmp_path: Path, name: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    caches._verified.clear()
    outside = tmp_path / "outside"
    (entry.folder / name).rename(outside)
    (entry.folder / name).symlink_to(outside)
    read = outside.stat().st_atime_ns
    with pytest.raises(IntegrityError, match="symbolic link, which a cache never holds: remove it"):
        entry.verified()
    assert outside.exists()
    assert outside.stat().st_atime_ns == read


@pytest.mark.row("A11")
def test_an_unreadable_file_is_an_error_not_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    caches._verified.clear()

    def broken(file: object) -> tuple[int, str]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "hash_file", broken)
    with pytest.raises(ResourceError, match=r"Input/output error at .*00000\.arrow"):
        entry.verified()
    assert not (cache.root / "quarantine").exists()


def test_a_file_is_hashed_once_and_again_when_it_was_touched(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    real = hash_file
    monkeypatch.setattr(files, "hash_file", lambda file: hashed.append(file) or real(file))
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    assert entry.verified() and hashed == []  # as written by this process
    caches._verified.clear()
    assert entry.verified() and len(hashed) == 2
    assert entry.verified() and len(hashed) == 2
    os.utime(entry.path("00001.arrow"))
    assert entry.verified() and len(hashed) == 3


@pytest.mark.row("A9")
def test_a_reader_keeps_its_bytes_while_a_file_is_replaced_set_aside_and_collected(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    mapped = pa.memory_map(str(entry.path("00001.arrow"))).read_buffer()
    with entry.write("00001.arrow") as file:
        file.write(SHARDS["00001.arrow"])
    DAMAGE["a flipped bit"](entry.path("00001.arrow"))
    caches._verified.clear()
    assert entry.verified() is None
    assert cache.gc(0)
    assert mapped.to_pybytes() == SHARDS["00001.arrow"]


# -- read-only caches -------------------------------------------------------------------------------------


@pytest.fixture
def readonly() -> Iterator[Path]:
    """A folder that any user can read and nobody but root can write, with one entry."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "cache")
        run(root)
        caches._verified.clear()
        places = [Path(folder), root, *root.rglob("*")]
        for place in places:
            place.chmod(0o555 if place.is_dir() else 0o444)
        yield root
        for place in places:
            place.chmod(0o755)


def as_nobody(work: Callable[[], None]) -> int:
    def demoted() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_child(demoted)


@pytest.mark.row("A13")
def test_a_read_only_cache_is_used_and_not_touched(readonly: Path) -> None:
    def work() -> None:
        cache = Cache.open(readonly)
        entry = cache.entry("ids", IDENTITY)
        entry.lease()
        assert entry.verified() is not None
        cache.close()

    before = {p: (p.lstat().st_mtime_ns, p.lstat().st_ctime_ns) for p in [readonly, *readonly.rglob("*")]}
    assert as_nobody(work) == 0
    assert {p: (p.lstat().st_mtime_ns, p.lstat().st_ctime_ns) for p in [readonly, *readonly.rglob("*")]} == before


@pytest.mark.row("A14")
def test_a_read_only_cache_is_refused_before_work_starts(readonly: Path) -> None:
    def work() -> None:
        with pytest.raises(ResourceError, match=r"cache '.*' is not writable \(uid \d+\).*Set cache\.dir=") as caught:
            Cache.open(readonly).require_writable()
        raise caught.value

    assert as_nobody(work) == 5


@pytest.mark.row("A15")
def test_a_damaged_read_only_cache_is_an_integrity_error(readonly: Path) -> None:
    (path,) = readonly.glob("ids/*/00001.arrow")
    path.chmod(0o644)
    path.write_bytes(b"x")
    path.chmod(0o444)
    assert as_nobody(lambda: Cache.open(readonly).entry("ids", IDENTITY).verified() and None) == 4


def test_a_cache_beneath_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cache\.dir="):
        Cache.open(tmp_path / "file" / "cache").require_writable()


def test_a_writable_cache_is_left_as_it_was(cache: Cache) -> None:
    cache.require_writable()
    assert list(cache.tmp.iterdir()) == []


# -- runs beside one another ------------------------------------------------------------------------------


@pytest.mark.row("A28")
def test_a_holder_of_a_lock_that_writes_nothing_any_more_is_waited_for_no_longer(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(caches, "LOCK_PATIENCE", 0.3)
    entry, locked, done = cache.entry("ids", IDENTITY), threading.Event(), threading.Event()

    def holder() -> None:
        with cache.lock(entry):
            locked.set()
            done.wait(60)

    thread = threading.Thread(target=holder)
    thread.start()
    assert locked.wait(60)
    with Cache.open(cache.root).lock(entry):
        assert thread.is_alive()
    done.set()
    thread.join(60)
    assert [m for m in caplog.messages if "no sign of life" in m] == [
        "ids: the run that is computing it gives no sign of life; computed here"
    ]


@pytest.mark.row("A28")
def test_rubbish_of_dead_runs_is_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    mine = Cache.open(root)
    mine.require_writable()
    host, pid, start, _ = mine.run.split("~")

    def run_folder(name: str, age: float = 0) -> Path:
        folder = root / "tmp" / name
        folder.mkdir()
        (folder / "half").touch()
        os.utime(folder, (time.time() - age,) * 2)
        return folder

    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [
        run_folder(f"{host}~{dead.pid}~123~0"),
        run_folder(f"{host}~{pid}~{int(start) - 1}~0"),  # the number was given again
        run_folder("0123456789abcdef~1~1~0", age=90_000),
        run_folder("array~a.b~3", age=90_000),
        run_folder("0123456789abcdef~2~1~0", age=-90_000),  # a clock has been set back since
    ]
    kept = [mine.tmp, run_folder(f"{host}~{pid}~{start}~99"), run_folder("0123456789abcdef~1~1~1", age=3600)]
    kept += [run_folder("0123456789abcdef~2~1~1", age=-3600)]  # a clock that is ahead of ours
    kept += [run_folder(f"{host}~x", age=90_000), run_folder("precious", age=90_000)]  # nothing of ours
    Cache.open(root)
    assert sorted((root / "tmp").iterdir()) == sorted(kept)
    assert not any(p.exists() for p in gone)


def test_two_caches_of_one_process_do_not_remove_each_others_files(tmp_path: Path) -> None:
    one, two = Cache.open(tmp_path), Cache.open(tmp_path)
    with one.entry("ids", IDENTITY).write("00000.arrow") as file:
        two.close()
        file.write(b"x")
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("locks", ["locks", "no locks"])
@pytest.mark.row("A6", "A7")
def test_runs_at_once_all_end_well_with_the_same_bytes(tmp_path: Path, locks: str) -> None:
    for round_ in range(8):
        root = tmp_path / str(round_)
        gate, opened = os.pipe()

        def work(root: Path = root, gate: int = gate, opened: int = opened) -> None:
            os.close(opened)
            cache = Cache.open(root)
            entry = cache.entry("ids", IDENTITY)
            os.read(gate, 1)
            with cache.lock(entry) if locks == "locks" else contextlib.nullcontext():
                computed: list[str] = []
                make(entry, computed)
                if computed:
                    (root / f"computed-{os.getpid()}").touch()
            cache.close()

        children = []
        for _ in range(4):
            if (child := os.fork()) == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    work()
                    code = 0
                os._exit(code)
            children.append(child)
        os.close(gate)
        os.close(opened)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        assert len(list(root.glob("computed-*"))) == 1 or locks == "no locks"
        require_whole_but_for_receipts(Cache.open(root).entry("ids", IDENTITY))
        assert list((root / "tmp").iterdir()) == []


@pytest.mark.row("A6")
def test_a_lock_keeps_others_waiting_and_leaves_no_file(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    entry, order = cache.entry("ids", IDENTITY), []

    def other() -> None:
        with cache.lock(entry):
            order.append("other")

    thread = threading.Thread(target=other)
    with cache.lock(entry):
        thread.start()
        end = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        order.append("first")
    thread.join(60)
    assert order == ["first", "other"]
    assert caplog.messages == ["ids: waiting for another run that is computing it"]
    assert list(entry.folder.iterdir()) == []
    assert entry.folder in cache.leased()


@pytest.mark.row("A28")
def test_the_lock_of_a_killed_holder_is_free(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)

    def holder() -> None:
        with cache.lock(entry):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(holder) == -signal.SIGKILL
    assert (entry.folder / ".lock").exists()
    with cache.lock(entry):
        pass


@pytest.mark.row("A7")
def test_where_locks_do_not_exist_work_goes_on_without(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with cache.lock(cache.entry("ids", IDENTITY)):
        make(cache.entry("ids", IDENTITY))
    assert cache.entry("ids", IDENTITY).verified()


# -- gc, ls, verify ---------------------------------------------------------------------------------------


def stored(cache: Cache, number: int, age: float) -> Entry:
    entry = cache.entry("ids", {"number": number})
    with entry.write("00000.arrow", lambda: {"counts": {"rows": number}}) as file:
        file.write(b"x" * 10_000)
    entry.finish(["00000.arrow"], [entry.receipt("00000.arrow") or {}], ledger={"ids": {"rows": number}}, rows=number)
    os.utime(entry.folder / "manifest.json", (time.time() - age,) * 2)
    return entry


def test_gc_removes_the_longest_unused_first_and_no_more_than_needed(cache: Cache) -> None:
    old, older, new = stored(cache, 1, 200), stored(cache, 2, 300), stored(cache, 3, 100)
    removed = cache.gc(22_000)
    assert list(removed) == [older.folder]
    assert 10_000 < removed[older.folder] < 11_000
    old.verified()  # used just now
    assert list(cache.gc(12_000)) == [new.folder]
    assert old.verified() and not new.folder.exists()
    assert cache.gc(12_000) == {}


@pytest.mark.row("A31")
def test_gc_keeps_what_a_living_run_leases(tmp_path: Path, cache: Cache) -> None:
    kept, gone = stored(cache, 1, 300), stored(cache, 2, 100)
    cache.close()
    reader = Cache.open(cache.root)
    reader.entry("ids", {"number": 1}).lease()
    assert list(cache.gc(0)) == [gone.folder]
    reader.close()
    assert list(cache.gc(0)) == [kept.folder]


@pytest.mark.row("A31")
def test_a_run_that_leases_an_entry_as_gc_takes_it_waits_and_finds_it_gone(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    cache.close()
    other = Cache.open(tmp_path / "cache").entry("ids", IDENTITY)
    late, found = threading.Thread(target=lambda: (other.lease(), found.append(other.manifest()))), []
    rename = os.rename

    def slow(old: Path, new: Path) -> None:
        late.start()
        late.join(0.2)
        assert late.is_alive()
        rename(old, new)

    monkeypatch.setattr(os, "rename", slow)
    assert entry.folder in cache.gc(0)
    late.join(60)
    assert found == [None]


def test_gc_does_not_honour_the_lease_of_a_dead_run(cache: Cache) -> None:
    entry = stored(cache, 1, 0)

    def work() -> None:
        Cache.open(cache.root).entry("ids", {"number": 1}).lease()

    assert in_child(work) == 0
    assert list(cache.gc(0)) == [entry.folder]


def test_gc_empties_the_quarantine_first_and_takes_unfinished_entries_in_their_turn(cache: Cache) -> None:
    entry = stored(cache, 1, 100)
    half = cache.entry("ids", {"number": 2})
    with half.write("00000.arrow") as file:
        file.write(b"x" * 10_000)
    (cache.root / "quarantine").mkdir()
    broken, folder = (f"ids-{entry.key}-{name}-1" for name in ("00000.arrow", "manifest.json"))
    (cache.root / "quarantine" / broken).write_bytes(b"x" * 10_000)
    (cache.root / "quarantine" / folder).mkdir()
    assert [p.name for p in cache.gc(25_000)] == [broken]
    assert [p.name for p in cache.gc(0)] == [folder, entry.key, half.key]
    assert list(cache.entries()) == []


def test_gc_needs_no_byte_of_a_full_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.entry("encode", {"n": 1})
    with entry.write("00000000.arrow") as file:
        file.write(b"rows")
    cache.tmp.mkdir(parents=True, exist_ok=True)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    other = Cache(cache.root, f"{cache.run}1")
    seen: list[bool] = []
    monkeypatch.setattr(Cache, "leased", lambda self: seen.append(other._condemned(entry.folder)) or set())
    assert set(cache.gc(0)) == {entry.folder} and seen == [True] and not other._condemned(entry.folder)


def test_gc_leaves_what_is_no_entry_alone(cache: Cache) -> None:
    stored(cache, 1, 100)
    strange = [cache.root / "photos" / ("0" * 32) / "p.jpg", cache.root / "quarantine" / "mine.txt", cache.root / "notes.txt"]
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    cache.gc(0)
    assert all(path.read_text() == "mine" for path in strange) and list(cache.entries()) == []


@pytest.mark.row("A16")
@pytest.mark.parametrize("how", ["flip", "cut", "folder", "pipe", "another entry's"])
def test_a_damaged_manifest_is_set_aside_with_one_warning(cache: Cache, caplog: pytest.LogCaptureFixture, how: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    path = entry.folder / "manifest.json"
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        other = seal({**(unseal_data := unsealed(data, "x") or {}), "key": "0" * len(str(unseal_data["key"]))})
        path.write_bytes({"flip": bytes([data[0], data[1] ^ 1]) + data[2:], "cut": data[:-9]}.get(how, other))
    computed: list[str] = []
    make(entry, computed)
    require_whole(entry)
    assert computed == list(SHARDS)
    (kept,) = (cache.root / "quarantine").iterdir()
    assert kept.name.startswith(f"ids-{entry.key}-manifest.json-")
    assert len([message for message in caplog.messages if "damaged" in message]) == (how != "another entry's")


@pytest.mark.row("A16")
@pytest.mark.parametrize("what", ["stage", "entry", "receipt"])
def test_what_lies_in_the_place_of_a_folder_or_a_receipt_is_set_aside(cache: Cache, what: str) -> None:
    entry = cache.entry("ids", IDENTITY)
    if what == "receipt":
        entry._receipt_path("00000.arrow").mkdir(parents=True)
    else:
        place = entry.folder if what == "entry" else entry.folder.parent
        place.parent.mkdir(parents=True)
        place.write_text("mine")
    (found,) = [path for path, problem in cache.verify() if problem] if what != "stage" else [entry.folder.parent]
    make(entry)
    require_whole(entry)
    (kept,) = (cache.root / "quarantine").iterdir()
    assert f"-{found.name}-" in kept.name and (kept.is_dir() or kept.read_text() == "mine")


@pytest.mark.row("A18")
def test_an_entry_that_is_a_link_is_refused(cache: Cache, tmp_path: Path) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    entry.folder.rename(tmp_path / "elsewhere")
    entry.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a symbolic link, which a cache never holds"):
        entry.verified()


def test_ls_tells_stage_key_bytes_rows_and_age(cache: Cache) -> None:
    entry = stored(cache, 7, 50)
    half = cache.entry("load", IDENTITY)
    with half.write("00000.arrow") as file:
        file.write(b"x")
    one, two = cache.ls()
    assert (one.stage, one.key, one.rows, one.whole) == ("ids", entry.key, 7, True)
    assert one.bytes == sum(path.stat().st_size for path in entry.folder.iterdir()) == entry.stored() > 10_000
    assert 45 < time.time() - one.used < 65
    assert (two.stage, two.rows, two.whole) == ("load", None, False)


def test_gc_keeps_what_fits_to_the_byte_and_needs_no_folder_of_its_own_before(cache: Cache) -> None:
    entry = stored(cache, 1, 100)
    cache.close()
    (cache.root / "tmp").rmdir()
    assert cache.gc(entry.stored()) == {}
    assert list(cache.gc(entry.stored() - 1)) == [entry.folder]
    assert entry.last_use() == 0 and entry.stored() == 0


def test_gc_goes_on_where_another_was_faster_and_says_where_the_disk_refuses(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, left = stored(cache, 1, 300), stored(cache, 2, 100)
    real = os.rename

    def rename(old: Path, new: Path, error: int = errno.ENOENT) -> None:
        if old == taken.folder:
            raise OSError(error, os.strerror(error))
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    assert list(cache.gc(0)) == [left.folder]
    monkeypatch.setattr(os, "rename", lambda old, new: rename(old, new, errno.EIO))
    with pytest.raises(ResourceError, match="Input/output error at .*" + taken.key):
        cache.gc(0)


def test_every_entry_that_is_leased_counts_not_the_first_alone(cache: Cache) -> None:
    entries = [cache.entry("ids", {"number": number}) for number in range(3)]
    for entry in entries:
        entry.lease()
    assert cache.leased() == {entry.folder for entry in entries}
    cache.require_writable()  # where its folder is there already


def test_verify_goes_on_behind_an_entry_of_a_newer_version_or_with_names_that_lead_out(cache: Cache) -> None:
    newer, outside, fine = sorted((stored(cache, number, 0) for number in range(3)), key=lambda entry: entry.key)
    content = unseal(newer.folder / "manifest.json") or {}
    damaged(newer.folder / "manifest.json", seal({**content, "schema": 999}))
    content = unseal(outside.folder / "manifest.json") or {}
    damaged(outside.folder / "manifest.json", seal({**content, "files": {"../x": {"bytes": 1, "sha256": ""}}}))
    found = dict(cache.verify())
    assert "newer version" in str(found[newer.folder / "manifest.json"])
    assert "not the name of a data file" in str(found[outside.folder / "manifest.json"])
    assert found[fine.folder / "manifest.json"] is None and found[fine.path("00000.arrow")] is None
    (newer.folder / "manifest.json").unlink()
    (newer.folder / ".00000.arrow.receipt").symlink_to(fine.folder / "manifest.json")
    assert "symbolic link" in str(dict(cache.verify())[newer.folder / ".00000.arrow.receipt"])
    with pytest.raises(IntegrityError, match="symbolic link"):
        newer.receipt("00000.arrow")


def test_what_was_published_under_one_key_or_name_is_not_believed_under_a_smaller_or_larger_one(cache: Cache) -> None:
    one, two = (stored(cache, number, 0) for number in range(2))
    manifests = [(entry.folder / "manifest.json").read_bytes() for entry in (one, two)]
    for source, target, data in ((one, two, manifests[0]), (two, one, manifests[1])):
        damaged(target.folder / "manifest.json", data)
        assert target.manifest() is None
        note = {"bytes": 1, "sha256": ""}
        (target.folder / ".00000.arrow.receipt").write_bytes(seal({"of": ["ids", source.key, "00000.arrow"], "note": note}))
        assert target._receipt("00000.arrow") is None


def test_verify_names_a_receipt_that_cannot_be_read_and_goes_on(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, real = cache.entry("ids", IDENTITY), caches.unseal
    for name, data in SHARDS.items():
        with entry.write(name) as file:
            file.write(data)

    def unreadable(path: Path, **options: Any) -> Any:
        if path.name == ".00000.arrow.receipt":
            raise ResourceError("the disk is ill")
        return real(path, **options)

    monkeypatch.setattr(caches, "unseal", unreadable)
    found = {path.name: problem and str(problem) for path, problem in cache.verify()}
    assert found == {".00000.arrow.receipt": "the disk is ill", "00001.arrow": None}


def test_verify_names_a_file_that_cannot_be_read_and_goes_on(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, real = cache.entry("ids", IDENTITY), hash_file
    make(entry)

    def ill(handle: int) -> tuple[int, str]:
        size, sha = real(handle)
        if size == len(SHARDS["00000.arrow"]):
            raise OSError(errno.EIO, "Input/output error")
        return size, sha

    monkeypatch.setattr(files, "hash_file", ill)
    problems = {path.name: problem for path, problem in cache.verify()}
    assert "Input/output error" in str(problems.pop("00000.arrow"))
    assert problems == {"manifest.json": None, "00001.arrow": None}


@pytest.mark.parametrize("place", ["", "ids", "quarantine"])
def test_what_cannot_be_listed_is_an_error_and_no_empty_cache(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    make(cache.entry("ids", IDENTITY))
    real = os.listdir

    def closed(path: Path) -> list[str]:
        if Path(path) == cache.root / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", closed)
    for look in (cache.ls, lambda: list(cache.verify()), lambda: cache.gc(0)):
        if place != "quarantine" or look is not cache.ls:
            (cache.root / "quarantine").mkdir(exist_ok=True)
            with pytest.raises(ResourceError, match="Permission denied"):
                look()


def test_verify_takes_nothing_from_memory(cache: Cache) -> None:
    entry = cache.entry("ids", IDENTITY)
    make(entry)
    path = entry.path("00001.arrow")
    DAMAGE["a flipped bit"](path)
    caches._verified[path] = stat_of(path.lstat())
    assert entry.verified() is not None
    assert [p for p, problem in cache.verify() if problem] == [path]


def test_verify_names_every_damaged_file_and_changes_nothing(cache: Cache) -> None:
    fine, flipped, torn = (cache.entry("ids", {"n": n}) for n in range(3))
    for entry in (fine, flipped, torn):
        make(entry)
    DAMAGE["a flipped bit"](flipped.path("00001.arrow"))
    flipped.path("00000.arrow").unlink()
    damaged(torn.folder / "manifest.json", b"{}")
    half = cache.entry("load", IDENTITY)
    with half.write("00000.arrow") as file:
        file.write(b"x")
    DAMAGE["extended"](half.path("00000.arrow"))
    before = sorted(p for p in cache.root.rglob("*"))
    problems = {path: problem for path, problem in cache.verify(workers=2) if problem}
    assert set(problems) == {
        flipped.path("00001.arrow"), flipped.path("00000.arrow"), torn.folder / "manifest.json", half.path("00000.arrow"),
    }  # fmt: skip
    assert "found nothing" in problems[flipped.path("00000.arrow")]
    assert sum(1 for path, problem in cache.verify() if problem is None) == 3 + 1
    assert sorted(p for p in cache.root.rglob("*")) == before


# -- the disk and its errors ------------------------------------------------------------------------------


@pytest.mark.row("A10")
def test_too_little_space_is_said_before_work_with_both_numbers(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(ResourceError, match=r"needs about 900 TB, [\d.]+ .B are free\..*cache\.dir=") as caught:
        require_space(tmp_path / "not" / "yet", 9 * 10**14)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left writing"),
        (errno.EDQUOT, "Disk quota reached writing"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOMEM, "out of memory"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "cache.dir="),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.row("A10", "A12")
def test_a_failed_call_names_path_and_remedy_in_one_line(number: int, says: str) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "/some/\nplace")
    assert isinstance(error, ResourceError)
    assert says in str(error) and "'/some/\\nplace'" in str(error) and "\n" not in str(error)


def test_an_interruption_keeps_its_exit_code_across_processes() -> None:
    error = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (error.exit_code, str(error)) == (143, str(Interrupted(2)))


@pytest.mark.row("A27")
def test_the_cache_may_lie_anywhere(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "a b" / "é\n'" / ("x" * 255))
    make(cache.entry("ids", IDENTITY))
    caches._verified.clear()
    assert cache.entry("ids", IDENTITY).verified()


def test_importing_the_cache_imports_nothing_heavy() -> None:
    code = "import sys, pipeline.cache; print(*{'pyarrow', 'numpy', 'torch', 'filelock', 'hydra'} & sys.modules.keys())"
    root = Path(caches.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).split() == []


def test_processes_of_the_same_number_on_two_machines_do_not_write_to_one_temporary_file(cache, monkeypatch):
    monkeypatch.setattr("pipeline.cache._serial", itertools.repeat(0))
    monkeypatch.setattr("pipeline.temporary._owner", temporary._owner.__wrapped__)  # each time anew
    entry = cache.entry("load", {})
    with entry.write("0.arrow") as ours:
        ours.write(b"same")
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        with entry.write("0.arrow") as theirs:
            theirs.write(b"same")
    assert entry.path("0.arrow").read_bytes() == b"same" and ours.note == theirs.note
