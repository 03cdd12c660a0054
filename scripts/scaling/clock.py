"""Where the time of one run goes: `python -m scripts.scaling.clock FIGURES.json ROWS ARGUMENT ...`

It is `python -m pipeline ARGUMENT ...`, with files of ROWS bytes of rows, looked at from inside: the functions of the
pipeline that are named in `install` are wrapped in spans. A span owns the time in which it is the innermost one of its
thread, so the spans of a thread add up to the time of that thread, and nothing is counted twice:

    shard      ├──────────────────────────────────────────────┤
    tokenize       ├───────────────┤                                 tokenize owns 15 of these, hash 6, write 4
    parse            ├──┤
    hash, write                       ├────┤ ├──┤

Spans of threads beside the main one are kept apart: they are work that costs no time of the clock, or several times of it.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BETWEEN = ""  # the phase between phases


class Clock:
    """Seconds by phase and span, of the main thread and of all others."""

    def __init__(self) -> None:
        self.phase = BETWEEN
        self.main: Counter[tuple[str, str]] = Counter()
        self.others: Counter[tuple[str, str]] = Counter()
        self.walls: Counter[str] = Counter()  # seconds of each phase, from its first shard to its last
        self.shards: dict[str, list[float]] = {}  # seconds of each shard, by phase
        self.payloads: dict[str, int] = {}  # bytes of the pickled function that an engine is given
        self._lock = threading.Lock()
        self._threads = threading.local()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Own the time of the block."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begin a span inside the present one."""
        stack = self._threads.__dict__.setdefault("stack", [])
        self._credit(stack)
        stack.append(name)

    def leave(self) -> None:
        """End the innermost span."""
        stack = self._threads.stack
        self._credit(stack)
        stack.pop()

    def _credit(self, stack: list[str]) -> None:
        now = time.perf_counter()
        if stack:
            spent = self.main if threading.current_thread() is threading.main_thread() else self.others
            with self._lock:
                spent[self.phase, stack[-1]] += now - self._threads.mark
        self._threads.mark = now

    # -- what can be wrapped

    def function(self, owner: Any, attribute: str, name: str) -> None:
        """Make a function of a module, or a method of a class, a span."""
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def outer(*arguments: Any, **keywords: Any) -> Any:
            with self.span(name):
                return inner(*arguments, **keywords)

        setattr(owner, attribute, outer)

    def generator(self, owner: Any, attribute: str, name: str) -> None:
        """Make each step of a generator a span."""
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def outer(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            steps = inner(*arguments, **keywords)
            try:
                while True:
                    self.enter(name)
                    try:
                        value = next(steps)
                    except StopIteration:
                        return
                    finally:
                        self.leave()
                    yield value
            finally:
                steps.close()

        setattr(owner, attribute, outer)

    def block(self, owner: Any, attribute: str, name: str) -> None:
        """Make the beginning and the end of a context manager spans, not the block between them."""
        inner = getattr(owner, attribute)

        @contextlib.contextmanager
        def outer(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            manager = inner(*arguments, **keywords)
            with self.span(name):
                value = manager.__enter__()
            try:
                yield value
            except BaseException:
                with self.span(name):
                    if not manager.__exit__(*sys.exc_info()):
                        raise
            else:
                with self.span(name):
                    manager.__exit__(None, None, None)

        setattr(owner, attribute, outer)

    def figures(self) -> dict[str, Any]:
        """Everything, as JSON."""
        kinds = {"main": self.main, "others": self.others}
        spans = {kind: [[*key, seconds] for key, seconds in sorted(found.items())] for kind, found in kinds.items()}
        return {**spans, "walls": dict(self.walls), "shards": self.shards, "payloads": self.payloads}


class _Module:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Hash:
    """A sha256 whose updates are a span."""

    def __init__(self, clock: Clock, *data: Any) -> None:
        self._clock, self._sha = clock, hashlib.sha256(*data)

    def update(self, data: Any) -> None:
        with self._clock.span("hash"):
            self._sha.update(data)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def install(clock: Clock) -> None:
    """Wrap the pipeline. Raises AttributeError where a function is called otherwise by now."""
    from pipeline import (
        cache,
        console,
        corpus,
        engine,
        files,
        output,
        phase,
        places,
        plan,
        run,
        steps,
        tokenizer,
        vocabulary,
        window,
    )

    clock.function(concurrent.futures.Future, "result", "wait")
    clock.function(plan, "make", "plan")
    clock.function(plan, "_measure", "hash source")
    clock.function(steps, "find_tokenizer", "tokenizer")
    clock.function(steps, "_prove", "proof")
    clock.function(steps, "_write_documents", "documents")
    clock.function(cache.Entry, "finish", "finish")
    clock.function(phase.Line, "tell", "tell")
    clock.function(output, "publish", "folder")
    clock.function(run, "_report", "page")
    clock.function(places.LocalFile, "pread", "read")
    clock.generator(corpus, "load", "parse")
    clock.generator(tokenizer, "tokenize", "tokenize")
    clock.generator(vocabulary, "encode", "encode")
    clock.generator(window, "chunk", "window")
    clock.generator(phase, "_publish", "arrow")
    clock.function(cache.Entry, "receipt", "publish")
    clock.block(cache.Entry, "write", "publish")
    clock.function(files.HashingFile, "write", "write")
    clock.function(files.HashingFile, "finish", "sync")
    files.hashlib = _Module(hashlib, sha256=functools.partial(_Hash, clock))  # type: ignore[assignment]

    compute, progress, engine_run = phase.compute, console.progress, engine.run

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        with clock.span("shard"):
            result = compute(*arguments)
        clock.shards.setdefault(clock.phase, []).append(time.perf_counter() - started)
        return result

    @contextlib.contextmanager
    def in_phase(title: str, size: int) -> Iterator[Any]:
        clock.phase, started = title.replace(" ▶ ", " "), time.perf_counter()
        try:
            with progress(title, size) as advance:
                yield advance
        finally:
            clock.walls[clock.phase] += time.perf_counter() - started
            clock.phase = BETWEEN

    def weighed(settings: Any, function: Callable[[Any], Any], items: Any) -> Iterator[Any]:
        if clock.phase:
            (work,) = function.args  # what computes a shard, within what catches damage
            clock.payloads[clock.phase] = len(pickle.dumps(work.args))
        return engine_run(settings, function, items)

    phase.compute, console.progress, engine.run = timed, in_phase, weighed  # type: ignore[assignment]


def main() -> None:
    """Run and note."""
    from pipeline import cli, window

    figures, window.SHARD, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    clock = Clock()
    install(clock)
    with clock.span("rest"):
        code = cli.exit_code(arguments)
    clock.phase = BETWEEN
    figures.write_text(json.dumps(clock.figures()))
    sys.exit(code)


if __name__ == "__main__":
    main()
