import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, composed
from pipeline import array, config, plan, temporary
from pipeline.array import Array
from pipeline.cache import Cache
from pipeline.config import Engine
from pipeline.errors import ConfigError, InputError
from pipeline.run import run
from tests.determinism import digests

SETTINGS = Engine("array", workers=1, id="a", index=0, count=3, patience=60)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array, "POLL", 0.02)


def jobs(root: Path, count: int = 3) -> list[Array]:
    """The jobs of one array, all in this process."""
    return [Array(Cache.open(root), replace(SETTINGS, index=index, count=count)) for index in range(count)]


class Computed:
    """A function over items that notes what it was called with."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.items: list[int] = []
        self.seconds = seconds

    def __call__(self, item: int) -> int:
        self.items.append(item)
        time.sleep(self.seconds)
        return item * item


def all_at_once(work: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(120) for future in [pool.submit(one) for one in work]]


@contextlib.contextmanager
def claimed(task: Path, name: str, owner: str) -> Iterator[Path]:
    """A part that some other job has claimed."""
    task.mkdir(parents=True, exist_ok=True)
    claim = task / f"{name}.claim-0"
    claim.write_text(owner)
    yield claim


def test_each_item_is_computed_once_by_the_job_whose_part_it_is(tmp_path: Path) -> None:
    members, computed = jobs(tmp_path), [Computed(0.01) for _ in range(3)]
    work = [lambda job=job, own=own: job.everywhere("t", own, range(20)) for job, own in zip(members, computed, strict=True)]
    assert all_at_once(work) == [[n * n for n in range(20)]] * 3
    assert sorted(item for own in computed for item in own.items) == list(range(20))
    assert [set(own.items) >= {0 + n, 3 + n} for n, own in enumerate(computed)] == [True] * 3


def test_one_job_alone_does_it_all_and_those_that_come_later_nothing(tmp_path: Path) -> None:
    members, computed = jobs(tmp_path), [Computed() for _ in range(3)]
    for job, own in zip(members, computed, strict=True):
        assert job.everywhere("t", own, range(20)) == [n * n for n in range(20)]
    assert [len(own.items) for own in computed] == [20, 0, 0]


@pytest.mark.parametrize("items", [0, 1, 2])
def test_fewer_items_than_jobs(tmp_path: Path, items: int) -> None:
    computed = Computed()
    for job in reversed(jobs(tmp_path)):
        assert job.everywhere("t", computed, range(items)) == [n * n for n in range(items)]
    assert sorted(computed.items) == list(range(items))


def test_what_is_told_of_very_many_items_is_in_files_of_bounded_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(array, "PART", 4)
    (job, *_), computed = jobs(tmp_path), Computed()
    assert job.everywhere("t", computed, range(31)) == [n * n for n in range(31)]
    assert len(list((job.folder / "t").glob("part-?"))) == 9  # three for each job
    assert Counter(item % 9 % 3 for item in computed.items[:11]) == {0: 11}  # its own first
    for items in (1, 12, 13, 1_000_000):
        for count in (1, 3, 1000):
            parts = array._parts(count, items)
            assert -(-items // parts) <= 4 and (parts % count == 0 or parts == items)


def test_a_part_is_waited_for_while_its_job_lives_and_taken_up_when_it_does_not(tmp_path: Path) -> None:
    job, computed = jobs(tmp_path)[0], Computed()
    with claimed(job.folder / "t", "part-1", "another-machine~1~1~0") as claim:
        thread = threading.Thread(target=lambda: list(job.run("t", computed, range(6))))
        thread.start()
        until = time.monotonic() + 60
        while len(computed.items) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        thread.join(0.3)
        assert thread.is_alive() and sorted(computed.items) == [0, 2, 3, 5]
        os.utime(claim, (0, time.time() - 61))  # no sign of life for longer than engine.patience
        thread.join(60)
    assert sorted(computed.items) == [0, 1, 2, 3, 4, 5]
    assert (job.folder / "t" / "part-1.claim-1").read_text() == job._me


def test_a_job_that_died_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    job, computed = jobs(tmp_path)[0], Computed()
    host, _, start, nth = temporary.run_name(0).split("~")
    with claimed(job.folder / "t", "part-1", f"{host}~999999999~{start}~{nth}"):
        assert job.everywhere("t", computed, range(3)) == [0, 1, 4]


def test_a_dead_claim_is_taken_over_by_one(tmp_path: Path) -> None:
    members = jobs(tmp_path, 7)
    with claimed(members[0].folder / "t", "part-0", "") as claim:
        os.utime(claim, (0, 0))
        looks = [job._look(job.folder / "t") for job in members]  # all see the same
        taken = [job._take(job.folder / "t", "part-0", *look) for job, look in zip(members, looks, strict=True)]
    assert [one is not None for one in taken] == [True] + [False] * 6


def test_claims_give_signs_of_life_until_they_are_given_back(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path)
    with array.joined(cache, replace(SETTINGS, patience=1)) as job:
        assert job is not None
        with job.alone("t"):
            claim = job.folder / "t" / "turn.claim-0"
            os.utime(claim, (1, 1))
            os.utime(job.folder, (1, 1))
            until = time.monotonic() + 60
            while min(claim.stat().st_mtime, job.folder.stat().st_mtime) == 1 and time.monotonic() < until:
                time.sleep(0.01)
            assert min(claim.stat().st_mtime, job.folder.stat().st_mtime) > time.time() - 60
            assert job._lives(claim, claim.stat().st_mtime)
        assert not job._lives(claim, time.time())


def test_a_step_is_done_by_one_while_the_others_wait(tmp_path: Path) -> None:
    done: list[int] = []

    def work(job: Array) -> bool:
        with job.alone("t") as turn:
            if turn:
                time.sleep(0.1)
                done.append(1)
            assert done == [1]
        return turn

    assert sorted(all_at_once([lambda job=job: work(job) for job in jobs(tmp_path)])) == [False, False, True]


def test_where_a_step_fails_the_next_has_its_turn(tmp_path: Path) -> None:
    one, two, three = jobs(tmp_path)
    with pytest.raises(OSError, match="full"), one.alone("t") as turn:
        assert turn
        raise OSError("full")
    with two.alone("t") as turn:
        assert turn
    with three.alone("t") as turn:
        assert not turn


def test_bad_input_in_a_part_ends_every_job_and_is_looked_at_once_more_by_its_own(tmp_path: Path) -> None:
    tried: list[int] = []

    def check(item: int) -> int:
        tried.append(item)
        if item == 1:
            raise InputError("FILE line 2: no")
        return item

    one, two, three = jobs(tmp_path)
    for job, seen in ((two, [1]), (one, [0]), (three, [2]), (two, [1])):
        tried.clear()
        with pytest.raises(InputError, match="FILE line 2: no"):
            list(job.run("t", check, range(3)))
        assert tried == seen
    assert (one.folder / "t" / "part-1.bad").exists()


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[::-1])])
def test_a_part_that_is_not_as_it_was_written_is_computed_anew(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    one, two, _ = jobs(tmp_path)
    one.everywhere("t", Computed(), range(7))
    spoil(one.folder / "t" / "part-1")
    again = Computed()
    assert two.everywhere("t", again, range(7)) == [n * n for n in range(7)] and again.items == [1, 4]


def test_bad_input_is_believed_only_where_what_says_so_is_whole(tmp_path: Path) -> None:
    job, computed = jobs(tmp_path)[0], Computed()
    (job.folder / "t").mkdir(parents=True)
    (job.folder / "t" / "part-1.bad").write_bytes(b"")
    assert job.everywhere("t", computed, range(3)) == [0, 1, 4]


def test_a_claim_of_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    job, computed = jobs(tmp_path)[0], Computed()
    with claimed(job.folder / "t", "part-1", "another-machine~1~1~0") as claim:
        os.utime(claim, (0, time.time() + 1e6))
        assert job.everywhere("t", computed, range(3)) == [0, 1, 4]


def test_all_divide_the_work_that_the_first_to_come_found(tmp_path: Path) -> None:
    one, two, _ = jobs(tmp_path)
    assert [one.agree("t", lambda: 2), two.agree("t", lambda: pytest.fail("it was agreed"))] == [2, 2]


def test_what_was_agreed_and_is_damaged_is_agreed_anew(tmp_path: Path) -> None:
    one, two, three = jobs(tmp_path)
    one.agree("t", lambda: 2)
    (one.folder / "t" / "agreed").write_bytes(b"")
    assert [two.agree("t", lambda: 1), three.agree("t", lambda: pytest.fail("it was agreed"))] == [1, 1]


def entry_of_three(cache: Cache) -> Any:
    entry = cache.entry("ids", {"version": 1})
    for name in ("0", "1", "2"):
        with entry.write(name) as file:
            file.write(name.encode() * 1000)
    entry.finish(["0", "1", "2"], [entry.receipt(name) or {} for name in ("0", "1", "2")])
    return entry


def test_what_was_there_before_is_hashed_by_one_job_and_what_the_array_made_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, looked = entry_of_three(Cache.open(tmp_path)), []
    monkeypatch.setattr(type(entry), "intact", lambda self, name, note: looked.append(name) or True)
    found = all_at_once([lambda job=job: job.verified(entry) for job in jobs(tmp_path)])
    assert found == [entry.manifest()] * 3 and sorted(looked) == ["0", "1", "2"]
    jobs(tmp_path)[0].verified(entry)
    assert len(looked) == 3
    Array(Cache.open(tmp_path), replace(SETTINGS, id="b")).verified(entry)
    assert len(looked) == 6
    other = Array(Cache.open(tmp_path), replace(SETTINGS, id="c"))
    other.ours(entry)
    assert other.verified(entry) == entry.manifest() and len(looked) == 6


def test_what_one_job_finds_damaged_none_uses(tmp_path: Path) -> None:
    entry = entry_of_three(Cache.open(tmp_path))
    entry.path("1").unlink()
    entry.path("1").write_bytes(b"1" * 999 + b"0")
    found = all_at_once([lambda job=job: job.verified(entry) for job in jobs(tmp_path)])
    assert found == [None] * 3 and entry.manifest() is None
    assert [bool(entry.receipt(name)) for name in ("0", "1", "2")] == [True, False, True]
    assert len(list((tmp_path / "quarantine").iterdir())) == 2  # the file and the manifest, once


def test_a_large_corpus_is_hashed_by_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n" * 100)
    corpus = config.Corpus(paths=[str(tmp_path / "*.txt")], shard_bytes=1000)
    alone = plan.make(corpus, Cache.open(tmp_path / "c"), True, 1)
    hashed: list[Any] = []
    own = plan._hash
    monkeypatch.setattr(plan, "_hash", lambda ranges: hashed.extend(ranges) or own(ranges))
    monkeypatch.setattr(plan, "LONG", 1000)
    work = [
        lambda job=job: plan.make(corpus, Cache.open(tmp_path / "d"), True, 1, together=job.everywhere)
        for job in jobs(tmp_path / "d")
    ]
    made = all_at_once(work)
    assert [one.sha256 for one in made] == [alone.sha256] * 3
    assert len(hashed) == 9


def test_the_jobs_of_a_slurm_array_know_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"engine\.id is required"):
        config.check(composed("engine=array"))
    with pytest.raises(ConfigError, match=r"engine\.count=3 needs engine=array"):
        config.check(composed("engine.count=3"))
    with pytest.raises(ConfigError, match=r"engine\.id='a/b'"):
        config.check(composed("engine=array", "engine.id=a/b", "engine.index=0", "engine.count=3"))
    for name, value in (("ARRAY_JOB_ID", "4711"), ("ARRAY_TASK_ID", "7"), ("ARRAY_TASK_COUNT", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    made = composed("engine=array")
    config.check(made)
    assert (made.engine.id, made.engine.index, made.engine.count) == ("4711", 7, 7)


def test_a_dataset_that_has_gone_is_written_again_though_the_task_was_over(at: Path) -> None:
    made = composed("tokenizer=bytes", "embedding=none", "engine=array", "engine.id=a", "engine.index=0", "engine.count=2")
    first = run(made)
    assert first.published and not run(made).published
    shutil.rmtree(first.folder)
    assert run(made).published and (first.folder / "manifest.json").exists()


# -- whole runs, as real processes -------------------------------------------------------------------------

ARGUMENTS = [
    *("corpus=text", "corpus.paths=[texts]", "corpus.document=line", "corpus.shard_bytes=3000", "tokenizer=words"),
    *("selection.duplicates=exact", "split.validation=0.2", "window.context_length=16", "embedding.embedding_dim=2"),
    *("name=x", "output.report=false"),
]
DYING = """
import os, signal, sys
from pipeline import phase
calls, compute = iter(range({0})), phase.compute
def dying(*arguments):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments)
phase.compute = dying
from pipeline.__main__ import main
main()
"""
DYING_AT_THE_END = """
import os, signal
from pipeline.array import Array
def dying(self, *_):
    os.kill(os.getpid(), signal.SIGKILL)
Array.results = dying
from pipeline.__main__ import main
main()
"""
LOCKLESS = """
import fcntl
def flock(*_):
    raise OSError(38, "Function not implemented")
fcntl.flock = flock
from pipeline.__main__ import main
main()
"""


def started(at: Path, engine: list[str], code: str | None = None) -> "subprocess.Popen[str]":
    program = ["-c", code] if code else ["-m", "pipeline"]
    command = [sys.executable, *program, *ARGUMENTS, *engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=at, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def job(index: int, count: int) -> list[str]:
    return ["engine=array", "engine.id=a", f"engine.index={index}", f"engine.count={count}", "engine.workers=1"]


def ended(processes: list["subprocess.Popen[str]"], codes: list[int]) -> list[str]:
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == codes, said
    return said


def computed(said: list[str]) -> Counter[str]:
    """How many shards were computed, by stage, as the tables of all jobs say; a step done whole counts as one."""
    counts: Counter[str] = Counter()
    for line in "\n".join(said).splitlines():
        stage, _, rest = line.partition(" computed")
        if rest.startswith("  "):
            counts[stage.strip()] += 1
        elif rest.startswith(" "):
            counts[stage.strip()] += int(rest.split()[0])
    return counts


def texts(at: Path) -> Path:
    (at / "texts").mkdir(parents=True)
    for number in range(4):
        lines = [f"the ferry {number % 3} was late on day {line} of {line % 7} because of fog\n" for line in range(250)]
        (at / "texts" / f"{number}.txt").write_text("".join(lines))
    return at


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[str]]:
    """The files of the dataset by another engine, and the entries and files of its cache."""
    at = texts(tmp_path_factory.mktemp("serial"))
    ended([started(at, ["engine=serial"])], [0])
    return digests(at / "outputs/x"), stored(at)


def stored(at: Path) -> list[str]:
    cache = at / "data/cache"
    names = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith(("tmp/", "sources/")))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_jobs_at_once_give_the_same_bytes_and_compute_nothing_twice(tmp_path: Path, serial: Any, count: int) -> None:
    at = texts(tmp_path)
    said = ended([started(at, job(index, count)) for index in range(count)], [0] * count)
    assert (digests(at / "outputs/x"), stored(at)) == serial
    assert "".join(said).count("wrote ") == 1 and "".join(said).count("there already") == count - 1
    counts = computed(said)
    once = {stage: counts[stage] for stage in ("tokenizer", "selection", "arrange")}
    assert once == dict.fromkeys(once, 1)
    shards = len([name for name in stored(at) if name.startswith("load/") and name.endswith(".arrow")])
    assert shards > 14
    if count > 1:
        assert {counts[stage] for stage in ("load", "fingerprint", "tokenize", "encode")} <= {shards, 1}


@pytest.mark.slow
def test_jobs_one_after_another_without_locks(tmp_path: Path, serial: Any) -> None:
    at = texts(tmp_path)
    first, second = (ended([started(at, job(index, 3), LOCKLESS)], [0]) for index in (2, 0))
    assert (digests(at / "outputs/x"), stored(at)) == serial
    assert "wrote" in first[0] and "there already" in second[0] and not computed(second)


@pytest.mark.slow
def test_an_array_given_again_puts_back_a_dataset_that_is_gone_or_was_replaced(tmp_path: Path, serial: Any) -> None:
    at = texts(tmp_path)
    for spoil in (
        None,
        lambda: shutil.rmtree(at / "outputs"),
        lambda: ended([started(at, ["engine=serial", "window.context_length=8"])], [0]),
    ):
        if spoil:
            spoil()
        said = [ended([started(at, job(index, 2))], [0]) for index in range(2)]
        assert digests(at / "outputs/x") == serial[0]
        assert "wrote" in said[0][0] and "there already" in said[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["never restarted", "restarted"])
def test_a_job_that_is_killed_is_survived(tmp_path: Path, serial: Any, restarted: bool) -> None:
    at = texts(tmp_path)
    processes, codes = [started(at, job(1, 3), DYING.format(3))], [-9, 0, 0]
    while not list(at.glob("data/cache/tmp/array~*/*/part-1.claim-0")):  # which has more than three items
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes += [started(at, job(0, 3)), started(at, job(2, 3), LOCKLESS)]
    if restarted:
        processes[0].wait(60)
        processes.append(started(at, job(1, 3)))
        codes.append(0)
    ended(processes, codes)
    assert (digests(at / "outputs/x"), stored(at)) == serial


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["a part", "a file that a part tells of"])
def test_a_power_cut_before_the_end_of_a_phase_is_survived(tmp_path: Path, serial: Any, lost: str) -> None:
    at = texts(tmp_path)
    ended([started(at, job(0, 2), DYING_AT_THE_END)], [-9])
    where = "tmp/array~*/fingerprint-*/part-0" if lost == "a part" else "fingerprint/*/00000000.arrow"
    (path,) = at.glob(f"data/cache/{where}")
    path.unlink()
    if lost == "a part":
        path.touch()
    ended([started(at, job(0, 2))], [0])
    assert (digests(at / "outputs/x"), stored(at)) == serial


@pytest.mark.slow
def test_of_three_jobs_only_two_ever_run(tmp_path: Path, serial: Any) -> None:
    at = texts(tmp_path)
    said = ended([started(at, job(index, 3), LOCKLESS) for index in (0, 2)], [0, 0])
    assert (digests(at / "outputs/x"), stored(at)) == serial
    assert set(computed(said).values()) >= {1}
