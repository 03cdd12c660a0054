import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import engine, workers
from pipeline.config import Engine
from pipeline.errors import InputError, Interrupted, PipelineError, ResourceError

ENGINES = [
    Engine("serial"),
    Engine("threads", 1),
    Engine("threads", 2),
    Engine("threads", 7),
    Engine("processes", 1),
    Engine("processes", 2),
]
names = [f"{e.kind}-{e.workers}" for e in ENGINES]


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fail(number: int) -> int:
    if number in (3, 5):
        raise ValueError(f"bad {number}")
    return number


def refuse(number: int) -> int:
    raise InputError("FILE line 2: no")


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def odd(number: int) -> int:
    raise Odd(1, 2)


def unsendable(number: int) -> Callable[[], None]:
    return lambda: None


def die(item: tuple[int, str, str]) -> int:
    """End the process as told while the mark is not there: every time, or the first time only."""
    number, how, mark = item
    if number == 3 and not os.path.exists(mark):
        if not how.endswith("always"):
            Path(mark).touch()
        if how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how.startswith("crashes"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if how.startswith("exits"):
            os._exit(0)
        while how.startswith("hangs"):
            time.sleep(60)
    return number


class Heavy:
    """A function that notes how often it is pickled: it may hold the paths of a long stream."""

    pickled = 0

    def __reduce__(self) -> Any:
        Heavy.pickled += 1
        return Heavy, ()

    def __call__(self, number: int) -> int:
        return number * number


def test_a_worker_process_is_sent_the_function_once() -> None:
    assert list(engine.run(Engine("processes", 2), Heavy(), range(40))) == [n * n for n in range(40)]
    assert Heavy.pickled == 2


@pytest.mark.parametrize("how", ENGINES, ids=names)
def test_results_come_in_order_whoever_works(how: Engine) -> None:
    assert list(engine.run(how, slow_square, range(20))) == [n * n for n in range(20)]
    assert list(engine.run(how, slow_square, [])) == []


@pytest.mark.parametrize("how", ENGINES, ids=names)
def test_no_more_than_twice_the_workers_are_begun(how: Engine) -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(30):
            drawn.append(number)
            yield number

    for given, _ in enumerate(engine.run(how, slow_square, items())):
        assert len(drawn) <= given + 1 + 2 * (how.workers or 1)


@pytest.mark.parametrize("how", ENGINES, ids=names)
@pytest.mark.row("A25")
def test_every_engine_ends_with_the_error_of_the_first_item_and_names_it(how: Engine) -> None:
    with pytest.raises(ValueError, match="bad 3") as caught:
        list(engine.run(how, fail, range(9)))
    assert "while computing 3" in caught.value.__notes__
    if how.kind == "processes":
        assert 'raise ValueError(f"bad {number}")' in caught.value.__notes__[1]
    with pytest.raises(InputError, match="line 2") as expected:
        list(engine.run(how, refuse, range(9)))
    assert not hasattr(expected.value, "__notes__")


@pytest.mark.parametrize("end", ["error", "abandoned"])
def test_other_threads_end_at_their_next_checkpoint(end: str) -> None:
    ended = []

    def task(number: int) -> int:
        if number == 0:
            if end == "error":
                raise ValueError
            return 0
        try:
            while True:
                time.sleep(0.01)
                engine.checkpoint()
        except engine.Stopped:
            ended.append(number)
            raise
        return number

    others = threading.active_count()
    results = engine.run(Engine("threads", 3), task, range(10))
    with pytest.raises(ValueError) if end == "error" else contextlib.nullcontext():
        assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert 1 <= len(ended) <= 3
    assert threading.active_count() == others
    engine.checkpoint()  # nothing of it is left for what comes next


def test_an_error_that_cannot_be_pickled_is_told_all_the_same() -> None:
    with pytest.raises(RuntimeError, match="Odd: odd") as caught:
        list(engine.run(Engine("processes", 1), odd, [1]))
    assert "while computing 1" in caught.value.__notes__


def test_a_result_that_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be sent to the parent"):
        list(engine.run(Engine("processes", 1), unsendable, [1]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["killed", "crashes", "exits", pytest.param("hangs", marks=pytest.mark.slow)])
@pytest.mark.row("A23", "A24")
def test_the_item_of_a_dead_worker_is_tried_once_more(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    monkeypatch.setattr(workers, "LOOK", 0.1)
    items = [(number, how, str(tmp_path / "mark")) for number in range(6)]
    assert list(engine.run(Engine("processes", 2), die, items)) == list(range(6))
    (message,) = caplog.messages
    assert "once more, with one worker" in message and str(items[3]) in message


def second(given: object, number: int) -> int:
    return number


def signalled(monkeypatch: pytest.MonkeyPatch, number: int, most: int) -> list[Any]:
    """Signal so many worker processes in their first moment; gives them, as they come."""
    start, seen = workers.start, []

    def starting(process: Any) -> None:
        start(process)
        if len(seen) < most:
            os.kill(process.pid, number)
            seen.append(process)

    monkeypatch.setattr(workers, "start", starting)
    return seen


@pytest.mark.timeout(60)
@pytest.mark.row("A24")
def test_a_worker_that_hangs_before_it_has_read_a_large_function_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    monkeypatch.setattr(workers, "LOOK", 0.05)
    stopped, others = signalled(monkeypatch, signal.SIGSTOP, 1), threading.active_count()
    assert list(engine.run(Engine("processes", 2), partial(second, b"x" * 1_000_000), range(6))) == list(range(6))
    assert not stopped[0].is_alive() and threading.active_count() == others


def test_ctrl_c_does_not_reach_a_worker_that_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    reached = signalled(monkeypatch, signal.SIGINT, 2)
    assert list(engine.run(Engine("processes", 2), slow_square, range(4))) == [0, 1, 4, 9]
    assert len(reached) == 2 and not caplog.messages and capfd.readouterr().err == ""


def test_ctrl_c_while_a_worker_is_begun_is_heard() -> None:
    class Process:
        def start(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.start(Process())  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def crowded(item: tuple[int, str]) -> list[str]:
    """Which other items are being computed; the first try of item 1 dies."""
    number, folder = item
    mine = Path(folder, str(number))
    if number == 1 and not mine.with_name("tried").exists():
        mine.with_name("tried").touch()
        os._exit(1)
    mine.touch()
    time.sleep(0.2)
    others = [p.name for p in Path(folder).iterdir() if p.name not in (mine.name, "tried")]
    mine.unlink()
    return others


@pytest.mark.slow
def test_what_is_tried_once_more_is_computed_alone(tmp_path: Path) -> None:
    results = list(engine.run(Engine("processes", 3), crowded, [(number, str(tmp_path)) for number in range(7)]))
    assert results[1] == []


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("killed always", "killed, likely out of memory"),
        ("crashes always", "SIGSEGV"),
        ("exits always", "exit code 0"),
        ("hangs always", "no sign of life for 1 s"),
    ],
)
@pytest.mark.row("A23", "A24")
def test_an_item_that_ends_two_workers_is_named(how: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    monkeypatch.setattr(workers, "LOOK", 0.1)
    items = [(number, how, "/nowhere/mark") for number in range(6)]
    with pytest.raises(ResourceError, match=r"twice computing \(3, .*used [\d,]+ MB\. Lower engine\.workers=") as caught:
        list(engine.run(Engine("processes", 2), die, items))
    assert says in str(caught.value)
    assert caught.value.exit_code == 5


def busy(seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


@pytest.mark.slow
def test_a_worker_that_computes_long_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    monkeypatch.setattr(workers, "LOOK", 0.05)
    assert list(engine.run(Engine("processes", 1), busy, [2.0])) == [2.0]


def test_cores_heed_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for text, count in (("max 100000\n", 8), ("150000 100000\n", 2), ("1000 100000\n", 1), ("1600000 100000\n", 8), ("", 8)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        assert engine.cores() == count


# -- whole processes --------------------------------------------------------------------------------------

PROGRAM = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from pipeline import engine
from pipeline.cache import Cache
from pipeline.config import Engine
from pipeline.errors import PipelineError

def task(item):
    (entry, number) = item
    with entry.write(f"{number}.arrow") as file:
        file.write(b"x")
        Path(entry.cache.root, f"worker-{os.getpid()}").touch()
        while True:
            engine.checkpoint()
            time.sleep(0.01)

def stuck(item):
    (entry, number) = item
    entry.cache.root.mkdir(parents=True, exist_ok=True)
    Path(entry.cache.root, f"worker-{os.getpid()}").touch()
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal gets through

lingers = task

if __name__ == "__main__":
    kind, workers, function, root = sys.argv[1:]
    if function != "task":
        engine.GRACE = 1.0
    cache = Cache.open(Path(root))
    try:
        with engine.signals():
            items = [(cache.entry("ids", {}), number) for number in range(4)]
            list(engine.run(Engine(kind, int(workers)), globals()[function], items))
    except PipelineError as error:
        print(error, file=sys.stderr)
        if function == "lingers":
            threading.Thread(target=stuck, args=((cache.entry("ids", {}), 0),)).start()  # which the interpreter waits for
        sys.exit(error.exit_code)
    finally:
        cache.close()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[int]]]]:
    """Starts the program and waits until its workers work; gives it and their process numbers."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    running = []

    def start(kind: str, workers: int, function: str) -> tuple[subprocess.Popen[str], list[int]]:
        environment = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[1])}
        command = [sys.executable, str(path), kind, str(workers), function, str(tmp_path / "cache")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        running.append(process)
        until(lambda: len(marks()) >= (workers if kind == "processes" else 1))
        return process, marks()

    def marks() -> list[int]:
        return [int(p.name.partition("-")[2]) for p in (tmp_path / "cache").glob("worker-*")]

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


LINE = "Interrupted. What is finished is kept; rerun the same command to continue.\n"


@pytest.mark.parametrize(("kind", "workers"), [("serial", 1), ("threads", 2), ("processes", 2)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.row("A4", "A5")
def test_a_signal_ends_everything_with_one_line(program: Any, tmp_path: Path, kind: str, workers: int, number: int) -> None:
    process, pids = program(kind, workers, "task")
    started = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, LINE)
    assert time.monotonic() - started < engine.GRACE  # not by the watcher
    assert not any(map(alive, pids))
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
    assert list((tmp_path / "cache").glob("ids/*/*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers", "function"), [("serial", 1, "stuck"), ("threads", 2, "stuck"), ("serial", 1, "lingers")]
)
@pytest.mark.row("A4", "A5")
def test_what_no_exception_reaches_ends_after_a_while(program: Any, kind: str, workers: int, function: str) -> None:
    process, _ = program(kind, workers, function)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, LINE)


@pytest.mark.row("A4")
def test_a_second_signal_ends_at_once(program: Any) -> None:
    process, _ = program("threads", 2, "stuck")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143  # the watcher alone would have ended it with the first, 130


def test_ctrl_c_for_the_whole_group_is_decided_by_the_parent(program: Any) -> None:
    process, pids = program("processes", 2, "task")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, LINE)
    assert not any(map(alive, pids))


@pytest.mark.parametrize("function", ["task", "stuck"])
@pytest.mark.row("A2")
def test_workers_end_within_seconds_of_their_parent(program: Any, function: str) -> None:
    process, pids = program("processes", 2, function)
    process.kill()
    process.wait()
    until(lambda: not any(map(alive, pids)), 5)


@pytest.mark.row("A4", "A5")
def test_work_beside_has_ended_even_where_the_signal_comes_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, shutdown, told = [], ThreadPoolExecutor.shutdown, []

    def interrupted(pool: ThreadPoolExecutor, **options: Any) -> None:
        if not told:
            told.append(True)
            raise Interrupted(signal.SIGINT)
        shutdown(pool, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(Interrupted), engine.beside() as start:
        start(lambda: (time.sleep(0.2), ended.append(True)))
    assert ended


STARTING = """
import os, signal, threading, time
from pipeline import cli, engine
from pipeline.errors import Interrupted

ended, start = [], threading.Thread.start

def signalled(thread):
    start(thread)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

try:
    with engine.signals():
        threading.Thread.start = signalled
        with engine.beside() as begin:
            begin(lambda: (time.sleep(0.2), ended.append(True)))
            print("not stopped")
except Interrupted:
    print(len(ended), type(cli.as_ours(RuntimeError("release unlocked lock"))).__name__)
"""


@pytest.mark.row("A4", "A5")
def test_a_signal_while_a_thread_starts_waits_until_the_thread_is_known_and_is_told_as_what_it_is() -> None:
    root = Path(engine.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", STARTING], text=True, cwd=root).split() == ["1", "Interrupted"]


BEGINNING = """
import multiprocessing, os, signal, time
from pipeline import engine, workers
from pipeline.config import Engine
from pipeline.errors import Interrupted

start = workers.start

def signalled(process):
    start(process)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

workers.start = signalled
try:
    with engine.signals():
        list(engine.run(Engine("processes", 2), abs, range(4)))
except Interrupted:
    print(multiprocessing.active_children())
"""


@pytest.mark.row("A4", "A5")
def test_a_signal_while_a_worker_begins_waits_until_the_worker_is_known_and_ends_it_too() -> None:
    root = Path(engine.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", BEGINNING], text=True, cwd=root, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_signals_leaves_everything_as_it_was() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    others = threading.active_count()
    with engine.signals():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert threading.active_count() == others
    with pytest.raises(PipelineError), engine.signals():
        raise PipelineError
    assert signal.set_wakeup_fd(-1) == -1
