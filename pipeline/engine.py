"""Who does the work: one after another, in threads, in processes, or on a cluster. Never changes a byte.

All are one verb, `run(engine, function, items)`: results come in the order of the items, at most twice as
many items as there are workers are begun and not yet given, and the first error in that order ends the run, so
that every engine ends with the same error. Threads are the default: the tokenizer, the JSON parser, sha256 and
the file system all work outside the interpreter's lock. Processes pay where a tokenizer holds that lock and
there are more than a few cores; see workers.py.

**How work is stopped.** Within `signals()`, SIGINT and SIGTERM raise Interrupted in the main thread. It leaves
`run`, whose cleaning up kills worker processes and tells threads to end; a task hears that at its next
`checkpoint()`, which is called between batches. What no exception reaches, a thread or a main thread deep in
foreign code, ends with the process after GRACE seconds; a second signal ends it at once. An abandoned
generator and an error in one task stop the others in the same way.
"""

import contextlib
import ctypes
import logging
import math
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import Engine
from pipeline.errors import Interrupted, PipelineError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds from the first signal to the end of the process, whatever hangs
_interrupted = 0  # the signal that asked the process to stop
_held = False  # is the main thread at what no exception may come into?
_task = threading.local()  # .stop: the event that ends this thread's tasks


class Stopped(Exception):
    """Raised inside a task that is no longer wanted."""


def checkpoint() -> None:
    """Called by tasks between batches. Raises Stopped or Interrupted where they are to end."""
    if _interrupted:
        raise Interrupted(_interrupted)
    stop = getattr(_task, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


def surely(clean: Callable[[], None]) -> None:
    """Call what cleans up, and once more where a signal came meanwhile: Interrupted is raised once in a process."""
    try:
        clean()
    except Interrupted:
        clean()
        raise


def interrupted() -> Interrupted | None:
    """What a signal has asked for, if one came. Whatever is raised after it is its doing: it may come in the midst of
    a library's own locking or of an `except`, and be told as something else.
    """
    return Interrupted(_interrupted) if _interrupted else None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A signal waits for the end of the block: a thread or process that was begun but not noted would not be ended."""
    global _held
    main = threading.current_thread() is threading.main_thread()
    _held = _held or main
    try:
        yield
    finally:
        if main:
            _held = False
            if _interrupted:
                raise Interrupted(_interrupted)


def _submit(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
    """Start work in a pool."""
    with undisturbed():
        return pool.submit(function, *arguments)


@contextlib.contextmanager
def beside() -> Iterator[Callable[..., "Future[Any]"]]:
    """A thread for work beside the main thread's; gives what starts work in it and returns a future.

    It has ended where the block is left, whatever was raised and when.
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield partial(_submit, pool)
    finally:
        surely(lambda: pool.shutdown(wait=True, cancel_futures=True))


def cores() -> int:
    """The cores this process may use: its affinity, and the processor quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # "max 100000": none
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def keep_memory() -> None:
    """Let glibc keep freed blocks during a phase: the kernel would zero each one again for its next use.

    Blocks of a few MB come and go all the time; this saves about 5 % of a run. What the phase before left is given
    back. Elsewhere it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, max(2, cores()))  # M_ARENA_MAX: an arena that a thread of another phase left serves the next
        libc.malloc_trim(0)  # what the phase before held


def run(engine: Engine, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` over `items`, results in order; `items` is read as workers become free.

    Raises what `function` raises, with a note naming the item, and ResourceError where worker processes die.
    """
    keep_memory()
    workers = engine.workers or cores() + 1  # one more than cores: somebody is always waiting for the disk
    if engine.kind == "ray":
        from pipeline import cluster

        yield from cluster.run(engine, function, items)
    elif engine.kind == "processes":
        from pipeline import workers as processes

        yield from processes.run(workers, function, items)
    elif engine.kind != "serial" and workers > 1:
        yield from _in_threads(workers, function, items)
    else:
        for item in items:
            checkpoint()
            yield call(function, item)


def call(function: Callable[[Item], Result], item: Item) -> Result:
    """`function(item)`; an error that is no PipelineError gets a note naming the item."""
    try:
        return function(item)
    except Exception as error:
        if not isinstance(error, PipelineError | Stopped):
            error.add_note(f"while computing {item}")
        raise


def _in_threads(workers: int, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    stop = threading.Event()

    def task(item: Item) -> Result:
        _task.stop = stop
        checkpoint()
        return call(function, item)

    pool = ThreadPoolExecutor(workers)
    flight: deque[Future[Result]] = deque()
    source = iter(items)
    try:
        while True:
            flight.extend(_submit(pool, task, item) for item in islice(source, 2 * workers - len(flight)))
            if not flight:
                return
            yield flight.popleft().result()
    finally:
        stop.set()
        surely(lambda: pool.shutdown(wait=True, cancel_futures=True))


# -- signals ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the process: the first raises Interrupted here, the second ends it at once.

    For the main thread, once, around everything. After the first signal the process ends within GRACE seconds,
    by itself or by a watcher that hears of signals from the kernel even while the main thread is in foreign
    code. Its exit code, 130 or 143, is for the caller to return; the watcher uses the same. Where the block is
    left by Interrupted the watch goes on until the process ends.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    inside = True

    def stop(number: int, frame: object) -> None:
        global _interrupted
        if not _interrupted:
            _interrupted = number
            if not _held:
                raise Interrupted(number)

    def watch() -> None:
        first = 0
        while heard := os.read(reading, 1):  # nothing once the other end is closed
            if heard[0] in numbers:
                first = heard[0]
                break
        deadline = time.monotonic() + GRACE
        while first:
            left = max(0.0, deadline - time.monotonic())
            second = os.read(reading, 1)[0] if select.select([reading], [], [], left)[0] else None
            if second is None and inside:
                os.write(2, f"{Interrupted(first)}\n".encode())
            if second is None or second in numbers:
                os._exit(128 + (second or first))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = {number: signal.signal(number, stop) for number in numbers}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        inside = False
        if not _interrupted:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writing)
            watcher.join()
            os.close(reading)
