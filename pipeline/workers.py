"""The engine's worker processes.

**When a worker process dies** (the out-of-memory killer, a crash, an exit) its item is tried once more, with one
worker, as is all that follows, and a second death is a ResourceError that names the item. A worker that neither
answers nor uses the processor for PATIENCE seconds is killed and counts as dead; one that computes, however long, is
left alone. A worker whose parent has died ends at once, before the next run sweeps what both were writing.

Workers begin anew (`spawn`): a fork would copy locks that other threads hold. Their functions, items, results and
errors are pickled, and what is larger than a pipe goes through only while the other side reads: a thread of each worker
waits for that, so that the one that looks at the pulses never does.
"""

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.engine import Item, Result, call, keep_memory, undisturbed
from pipeline.errors import PipelineError, ResourceError
from pipeline.pulse import LOOK, Pulse

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds without an answer or processor time until a worker counts as hanging


def start(process: BaseProcess) -> None:
    """Start a process that Ctrl-C, which reaches the whole group, does not stop at any moment: its parent decides."""
    resource_tracker.ensure_running()  # which `start` would do, and when it begins it lets all signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that answers one item at a time through a pipe, and what it is at."""

    def __init__(self, answers: "Answers") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        start(self._process)
        theirs.close()
        self._answers = answers
        self._function: Any = None  # that it was sent last
        self._asking = threading.Thread()
        self.index = 0  # of the item it computes
        self.pulse = Pulse(self._process.pid)

    def give(self, index: int, function: Any, item: Any) -> None:
        """Have it compute an item; what comes of it will be among the answers."""
        self.index, self.pulse = index, Pulse(self._process.pid)
        message = (None if function is self._function else function, item)  # it may be large: the paths of a stream
        self._function = function
        self._asking = threading.Thread(target=self._ask, args=(message,), daemon=True)
        self._asking.start()

    def _ask(self, message: Any) -> None:
        try:
            self._pipe.send(message)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = None
        except Exception as error:  # it cannot be pickled
            answer = (False, error)
        self._answers.put((self, answer))

    def end(self) -> int:
        """Kill it; its exit code."""
        self._process.kill()
        self._process.join(5)
        if self._asking.is_alive():
            self._asking.join(5)  # what it waits for has ended with the process
        self._pipe.close()
        return self._process.exitcode or 0


Answers = queue.SimpleQueue[tuple[_Worker, tuple[bool, Any] | None]]  # (True, result), (False, exception), None: it has died


def _serve(pipe: Connection) -> None:
    """The life of a worker: until its parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # held back until now, see `start`
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()  # waits for the end of a pipe that the kernel closes with the parent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    keep_memory()
    function: Any = None
    while True:
        try:
            given, item = pipe.recv()
            function = function if given is None else given
            answer = (True, call(function, item))
        except EOFError:
            return
        except BaseException as error:
            answer = (False, portable(error))
        try:
            pipe.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            pipe.send((False, RuntimeError(f"a result cannot be sent to the parent process: {error}")))


def portable(error: BaseException) -> BaseException:
    """The exception, or one that says the same, with its traceback as a note: pickle drops the real one."""
    if not isinstance(error, PipelineError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", []):
            plain.add_note(note)
        return plain
    return error


def run(workers: int, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`engine.run` with so many worker processes."""
    source = enumerate(items)
    room = 2 * workers
    pool: list[_Worker] = []
    idle: list[_Worker] = []  # those of the pool that compute nothing
    answers: Answers = queue.SimpleQueue()
    flight: dict[int, Item] = {}  # begun and not given, by index
    again: list[int] = []  # those of a dead worker
    fragile: set[int] = set()  # those that had one before
    done: dict[int, tuple[bool, Any]] = {}
    given = 0

    def begin() -> int | None:
        if again:
            return again.pop()
        for index, item in islice(source, 1 if len(flight) < room else 0):
            flight[index] = item
            return index
        return None

    try:
        while True:
            while idle and len(pool) > workers:
                pool.remove(idle[-1])
                idle.pop().end()
            while (idle or len(pool) < workers) and (index := begin()) is not None:
                if not idle:
                    with undisturbed():
                        idle.append(_Worker(answers))
                        pool.append(idle[0])
                idle.pop().give(index, function, flight[index])
            if given in done:
                fine, value = done.pop(given)
                if not fine:
                    raise value
                del flight[given]
                given += 1
                yield value
                continue
            if not flight:
                return
            try:
                worker, answer = answers.get(timeout=LOOK)
                hangs = False
            except queue.Empty:
                stopped = (worker for worker in pool if worker not in idle and worker.pulse.stopped(PATIENCE))
                if (hanging := next(stopped, None)) is None:
                    continue
                worker, answer, hangs = hanging, None, True
            if worker not in pool:  # it was ended
                continue
            if answer:
                done[worker.index] = answer
                idle.append(worker)
                continue
            pool.remove(worker)
            code = worker.end()
            how = f"no sign of life for {PATIENCE:.0f} s" if hangs else _ending(code)
            if worker.index in fragile:
                raise ResourceError(_epitaph(flight[worker.index], how))
            log.warning("a worker died computing %s (%s): once more, with one worker", flight[worker.index], how)
            fragile.add(worker.index)
            again.append(worker.index)
            workers = 1
    finally:
        for worker in pool:
            worker.end()


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, likely out of memory"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _epitaph(item: object, how: str) -> str:
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3  # of the largest child that has ended
    return (
        f"a worker died twice computing {item}: {how}; the largest used {peak:,.0f} MB. "
        "Lower engine.workers= or engine.batch_size=."
    )
