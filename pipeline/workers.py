"""The engine's worker processes.

**When a worker process dies** (the out-of-memory killer, a crash, an exit) its item is tried once more, with one
worker, as is all that follows, and a second death is a ResourceError that names the item. A worker that neither
answers nor uses the processor for PATIENCE seconds is killed and counts as dead; one that computes, however long, is
left alone. A worker whose parent has died ends at once, before the next run sweeps what both were writing.

Workers begin anew (`spawn`): a fork would copy locks that other threads hold. Their functions, items, results and
errors are pickled.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from pipeline.engine import Item, Result, call, keep_memory
from pipeline.errors import PipelineError, ResourceError
from pipeline.pulse import LOOK, Pulse

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds without an answer or processor time until a worker counts as hanging


class _Worker:
    """A process that answers one item at a time through a pipe, and what it is at."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.index: int | None = None  # of the item it computes
        self._function: Any = None  # that it was sent last
        self.pulse = Pulse(self.process.pid)

    def give(self, index: int, function: Any, item: Any) -> None:
        self.index, self.pulse = index, Pulse(self.process.pid)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead already: `answer` will say so
            self.pipe.send((None if function is self._function else function, item))  # it may be large: the paths of a stream
            self._function = function

    def answer(self) -> tuple[bool, Any] | None:
        """(True, result) or (False, exception); None where the worker has died."""
        try:
            return self.pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            return None

    def end(self) -> int:
        """Kill it; its exit code."""
        self.process.kill()
        self.process.join(5)
        self.pipe.close()
        return self.process.exitcode or 0


def _serve(pipe: Connection) -> None:
    """The life of a worker: until its parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
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
            idle = [worker for worker in pool if worker.index is None]
            while idle and len(pool) > workers:
                pool.remove(idle[-1])
                idle.pop().end()
            while (idle or len(pool) < workers) and (index := begin()) is not None:
                if not idle:
                    idle.append(_Worker())
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
            ready = multiprocessing.connection.wait([worker.pipe for worker in pool if worker.index is not None], LOOK)
            for worker in list(pool):
                index = worker.index
                if index is None:
                    continue
                hangs = worker.pipe not in ready and worker.pulse.stopped(PATIENCE)
                if worker.pipe in ready and (answer := worker.answer()):
                    done[index], worker.index = answer, None
                elif worker.pipe in ready or hangs:
                    pool.remove(worker)
                    code = worker.end()
                    how = f"no sign of life for {PATIENCE:.0f} s" if hangs else _ending(code)
                    if index in fragile:
                        raise ResourceError(_epitaph(flight[index], how))
                    log.warning("a worker died computing %s (%s): once more, with one worker", flight[index], how)
                    fragile.add(index)
                    again.append(index)
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
