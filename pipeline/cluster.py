"""The same verb on a Ray cluster: `run` of engine.py, with workers on any number of machines.

    this process ──pipe── conductor, which alone imports Ray ──── cluster ──── workers on its nodes
      items, in order  ─▶             one task each               ─▶    function(item), in our working directory
      results, in order  ◀─           receipts, a few hundred bytes  ◀─       files, on the shared file system

**What is asked of the nodes.** They see the folders that we see, under the same names: the corpus, the cache, this
code or the same one installed. A worker makes our working directory its own, so that relative paths mean what they
mean here, and looks before its first item whether its code and the libraries that make bytes are of our versions.

**Why a conductor.** A Ray driver takes over signals, writes what its raylet said to stderr, and is ended from within
when the head of its cluster is gone for a minute. All that happens to a process of ours that may die at any time: it
holds nothing but the numbers of items. It stays from one phase to the next, and with it the workers stay warm.

**How much is in flight.** At most twice as many items as the living nodes have room for: for each task that computes
one that waits, so that no worker does while its answer comes here and the next item goes there. The room is counted
again every BEAT seconds, so that nodes may come and go. Data never pass through Ray: a function is put into its store once per
phase, and every worker reads it once; a result is a receipt.

**What may die.** A worker: its item is tried again, on any node, and after TRIES deaths a ResourceError names it. One
that uses no processor time for `workers.PATIENCE` seconds is killed by a watchman beside it, see pulse.py, and counts
as dead; one that computes, however long, is left alone. A node: the same. The head, or the node that we are on: a
ResourceError within SILENCE seconds, and the same command goes on behind the last receipt. We: the conductor hears it
by the end of the pipe and disconnects, and Ray ends the workers of whoever has disconnected. Since a shard is published
by its own protocol under its own key, a task that ran twice, or on after it was given up, changes no byte.
"""

import atexit
import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from pipeline import engine, pulse, workers
from pipeline.config import Engine
from pipeline.console import counted
from pipeline.errors import ResourceError
from pipeline.files import digest

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

TRIES = 3  # of an item whose workers die
BEAT = 1.0  # seconds between two looks at the cluster
SILENCE = 20.0  # seconds without one until the head counts as lost; without room for any task until we give up
CONNECT = 90.0  # seconds to find the cluster, or to start one
SEEN = 10.0  # seconds until a file that was just written is seen by all nodes
PARTING = 4.0  # seconds for the conductor to disconnect
STORE = 80 << 20  # bytes of memory for the store of a cluster of our own, through which no data go
LIBRARIES = ("pyarrow", "numpy", "tokenizers", "gigatoken", "splintr-rs", "rensa", "ftfy", "safetensors")


def installed() -> bool:
    """Can this machine be a part of a cluster?"""
    return importlib.util.find_spec("ray") is not None


def run(how: Engine, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` over `items`, results in order, as `engine.run`; both must be picklable, and results small.

    Raises what `function` raises, in the order of the items, and ResourceError where there is no cluster, where it is
    lost, or where the workers of one item die again and again.
    """
    cluster = _connect(how)
    source, finished = enumerate(items), False
    flight: dict[int, Item] = {}  # begun and not given, by index
    done: dict[int, bytes] = {}
    deaths: Counter[int] = Counter()
    given = 0
    try:
        cluster.send("function", pickle.dumps((os.getcwd(), _versions(), pickle.dumps(function))))
        while True:
            for index, item in islice(source, max(0, cluster.room() - len(flight))):
                flight[index] = item
                cluster.send("item", index, pickle.dumps(item))
            if given in done:
                fine, value, warnings = pickle.loads(done.pop(given))
                for warning in warnings:
                    log.warning("%s", warning)
                if not fine:
                    raise value
                del flight[given]
                given += 1
                yield value
                continue
            if not flight:
                finished = True
                return
            index, answer = cluster.hear()
            if isinstance(answer, bytes):
                done[index] = answer
                continue
            deaths[index] += 1
            if deaths[index] == TRIES:
                raise ResourceError(
                    f"a worker died {TRIES} times computing {flight[index]}: {answer}. "
                    "Raise engine.memory=, or lower engine.batch_size=."
                )
            log.warning("a worker died computing %s (%s): once more", flight[index], answer)
            cluster.send("item", index, pickle.dumps(flight[index]))
    finally:
        if not finished:
            engine.surely(_disconnect)  # and so end what is no longer wanted


# -- this side of the pipe --------------------------------------------------------------------------------


class _Cluster:
    """The conductor, and what it has told."""

    def __init__(self, how: Engine) -> None:
        libraries = sysconfig.get_path("stdlib")
        paths = [path for path in sys.path if path and "-packages" not in path and not path.startswith(libraries)]
        context = multiprocessing.get_context("spawn")
        self.how, self.where = how, f"the Ray cluster (engine.address={how.address})"
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_conduct, args=(theirs, how, paths, workers.PATIENCE), daemon=True)
        workers.start(self.process)
        theirs.close()
        self.begun = False  # has the cluster ever answered?
        self.slots = 0  # how many tasks the living nodes have room for
        self.heard = self.roomy = time.monotonic()  # when the last beat came, and the last one with any slot

    def room(self) -> int:
        """How many items may be begun and not given."""
        return 2 * max(1, min(self.slots, self.how.workers or self.slots))

    def send(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # it has died: `hear` will say so
            self.pipe.send(message)

    def hear(self) -> tuple[int, bytes | str]:
        """An item's index, and its answer or how its worker died; -1 once, when it begins. Raises ResourceError."""
        while True:
            now = time.monotonic()
            if self.pipe.poll(BEAT):
                try:
                    what, *told = self.pipe.recv()
                except (EOFError, OSError):
                    raise self._lost("it does not answer any more") from None
                if what == "answer":
                    return told[0], told[1]
                if what == "lost":
                    raise self._lost(told[0].rstrip("."))
                if what == "refused":
                    raise ResourceError(f"{self.where} cannot be used: {told[0]}")
                self.heard, (self.slots, nodes) = now, told
                if self.slots or what == "begin":
                    self.roomy = now
                if what == "begin":
                    self.begun = True
                    log.info(
                        "engine: %s of %s, room for %s at once", counted(nodes, "node"), self.where, counted(self.slots, "task")
                    )
                    return -1, b""
            elif now - self.heard > SILENCE:
                raise self._lost(f"its head has not answered for {SILENCE if self.begun else CONNECT:.0f} s")
            if now - self.roomy > SILENCE:
                asked = f"engine.cpus={self.how.cpus}" + (f" and engine.memory={self.how.memory}" if self.how.memory else "")
                raise ResourceError(f"no node of {self.where} has room for a task of {asked}: lower them, or add a node.")

    def _lost(self, why: str) -> ResourceError:
        if not self.begun:
            return ResourceError(f"{self.where} cannot be used: {why}, and never has. Is it running (`ray start`)?")
        return ResourceError(
            f"{self.where} is lost: {why}. What is finished is kept: start it again, and run the same command."
        )

    def end(self) -> None:
        """Disconnect; what the cluster still computes for us is ended by it."""
        self.pipe.close()
        self.process.join(PARTING)
        self.process.kill()
        self.process.join()


_cluster: _Cluster | None = None  # stays from one phase to the next, and from one job of a sweep to the next


def _connect(how: Engine) -> _Cluster:
    global _cluster
    if _cluster is not None and _cluster.how == how and _cluster.process.is_alive():
        return _cluster
    _disconnect()
    with engine.undisturbed():
        _cluster = _Cluster(how)
    try:
        _cluster.heard = _cluster.roomy = time.monotonic() + CONNECT - SILENCE
        _cluster.hear()
    except BaseException:
        engine.surely(_disconnect)
        raise
    return _cluster


@atexit.register
def _disconnect() -> None:
    global _cluster
    if _cluster is not None:
        _cluster.end()
        _cluster = None


# -- the conductor ----------------------------------------------------------------------------------------


def _conduct(pipe: Connection, how: Engine, paths: list[str], patience: float) -> None:
    """The life of the conductor: from the first `ray.init` to the end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # held back until now, see `workers.start`
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    lock = threading.Lock()

    def tell(*message: Any) -> None:
        with lock, contextlib.suppress(OSError):
            pipe.send(message)

    try:
        ray = _init(how)
        task = ray.remote(num_cpus=how.cpus, memory=how.memory, max_retries=0)(_task(paths, patience))
        tell("begin", *_slots(ray, how))
    except Exception as error:
        tell("refused", _first_line(error))
        return

    def beat() -> None:
        with contextlib.suppress(Exception):  # no news is bad news
            while True:
                time.sleep(BEAT)
                tell("beat", *_slots(ray, how))

    def answer(index: int, future: Any) -> None:
        try:
            tell("answer", index, future.result())
        except ray.exceptions.OutOfMemoryError:
            tell("answer", index, "killed by Ray, as its node ran out of memory")
        except ray.exceptions.NodeDiedError:
            tell("answer", index, "its node was lost")
        except ray.exceptions.WorkerCrashedError:
            tell("answer", index, f"killed, out of memory or idle for {patience:.0f} s, or crashed, or its node was lost")
        except Exception as error:
            tell("lost", _first_line(error))

    threading.Thread(target=beat, daemon=True).start()
    try:
        function = None
        while True:
            what, *told = pipe.recv()
            if what == "function":
                function = [ray.put(told[0])]  # in a list it is not fetched for every item
            else:
                task.remote(function, told[1]).future().add_done_callback(partial(answer, told[0]))
    except (EOFError, OSError):
        timer = threading.Timer(PARTING, os._exit, [1])
        timer.daemon = True
        timer.start()
        ray.shutdown()


def _init(how: Engine) -> Any:
    """Ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": how.address}
    if how.address == "local":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # what of it listens, listens to us
        cpus = math.ceil((how.workers or engine.cores() + 1) * how.cpus)
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE}
    elif how.address != "auto":
        host, _, port = how.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 10).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers there ({error.strerror or error}).") from error
    try:
        import ray
    except ImportError as error:
        raise ImportError("it needs a library: pip install 'pretraining-pipeline[ray]'.") from error
    try:
        ray.init(**options, log_to_driver=False, configure_logging=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise ConnectionError(
            f"{_first_line(error).rstrip('.')}. Is it running (`ray start`), and are RAY_AUTH_MODE and token the same there?"
        ) from error
    return ray


def _slots(ray: Any, how: Engine) -> tuple[int, int]:
    """How many tasks the living nodes can hold, and how many nodes there are."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = (min(has.get("CPU", 0) / how.cpus, has.get("memory", 0) / (how.memory or 1)) for has in nodes)
    return sum(map(int, slots)), len(nodes)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _task(paths: list[str], patience: float) -> Callable[[list[Any], bytes], bytes]:
    """What Ray runs on a node. It is pickled by its code, being nested: before it has run, nothing of ours is importable."""

    def shard(function: list[Any], item: bytes) -> bytes:
        import sys

        sys.path[:0] = [path for path in paths if path not in sys.path]
        from pipeline import cluster

        return cluster.serve(function, item, patience)

    return shard


# -- a worker ---------------------------------------------------------------------------------------------

_known: tuple[str, Callable[[Any], Any]] | None = None  # the function of this phase, by the name under which Ray has it


def serve(function: list[Any], item: bytes, patience: float) -> bytes:
    """One item in a worker: (True, result) or (False, exception), and the warnings of the log, pickled."""
    said = _Said(logging.WARNING)
    logging.getLogger().addHandler(said)
    answer: tuple[bool, Any]
    try:
        with _watched(patience):
            answer = (True, engine.call(_function(function[0]), pickle.loads(item)))
    except ResourceError as error:  # what a node lacks is not what the others do
        answer = (False, ResourceError(f"node {socket.gethostname()!r}: {error}"))
    except Exception as error:
        answer = (False, workers.portable(error))
    finally:
        logging.getLogger().removeHandler(said)
    try:
        return pickle.dumps((*answer, said.lines))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        return pickle.dumps((False, RuntimeError(f"a result cannot be sent to the parent process: {error}"), said.lines))


@contextlib.contextmanager
def _watched(patience: float) -> Iterator[None]:
    """Be killed where the block hangs for so many seconds: see pulse.py."""
    told = _watchman(patience).stdin
    assert told is not None
    with contextlib.suppress(OSError):
        told.write(b"+")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            told.write(b"-")


@cache
def _watchman(patience: float) -> "subprocess.Popen[bytes]":
    """A process that looks at this one, as long as it lives."""
    command = [sys.executable, "-I", "-S", pulse.__file__, str(os.getpid()), str(patience)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    )


class _Said(logging.Handler):
    """Keeps what would be logged here, where nobody reads it."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def seeing(file: Path, function: Callable[[Item], Result], item: Item) -> Result:
    """`function` of an item on a node that sees a file of this run. Raises ResourceError where it does not.

    A folder of the same name may be another one. What was written a moment ago may take a while to be seen everywhere.
    """
    until = time.monotonic() + SEEN
    while not file.exists():
        if time.monotonic() > until:
            raise ResourceError(f"it does not see {str(file.parent)!r}: every node needs the same shared file system.")
        time.sleep(0.1)
    return function(item)


def _function(reference: Any) -> Callable[[Any], Any]:
    """The function of this phase, fetched once. Raises ResourceError where this node is not as the others."""
    global _known
    if _known is None or _known[0] != reference.hex():
        import ray

        folder, versions, function = pickle.loads(ray.get(reference))
        try:
            os.chdir(folder)
        except OSError as error:
            raise ResourceError(
                f"it has no folder {folder!r} ({error.strerror}): every node needs the same shared file system."
            ) from error
        for name, version in _versions().items():
            if version != versions[name]:
                raise ResourceError(f"it has {name} {version}, here it is {versions[name]}: install the same on every node.")
        engine.keep_memory()
        _known = (reference.hex(), pickle.loads(function))
    return _known[1]


@cache
def _versions() -> dict[str, str | None]:
    """What must be the same on every node for the bytes to be: our code, by its digest, and the libraries beneath it."""
    folder = Path(__file__).parent
    code = [[str(path.relative_to(folder)), path.read_text("utf-8")] for path in sorted(folder.rglob("*.py"))]
    versions: dict[str, str | None] = {"the code": digest(code)[:12]}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
