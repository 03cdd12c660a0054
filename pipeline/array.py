"""One run spread over an array of jobs that have nothing in common but a file system.

Every job is started with the same command and an index of its own (`engine=array`), on the same cache. What is to be
done together is a *task*: a phase over many items, a step that one job does alone, the hashing of what was there
before. Each task has a folder:

    cache/tmp/array~<id>~<count>/encode-3f…/
      agreed            sealed: what the first to come found, so that all divide the same work
      ours              what a job of the array publishes or has verified: nobody else need hash it
      turn.claim-0      a job does what one does alone
      done              the task is over
    cache/tmp/array~<id>~<count>/encode-3f…-0/    its parts, with 0 stages found whole
      part-2            sealed: what part 2 gave, item by item. Part p of n has the items p, p + n, p + 2n, …
      part-3.claim-0    a job works on part 3, or did; its mtime is its sign of life
      part-3.claim-1    … and this one took part 3 up after it
      part-4.bad        sealed: why the corpus is bad there

**Who does what.** A job claims its own part, computes it and publishes it; then it takes up, in turn, whole parts that
nobody claimed or whose claim is dead. (Of very many items each job has several parts.) It waits for parts that a living
job works on. So no part is computed twice while its job lives, one job alone finishes everything, and fewer jobs than
`engine.count` are no reason to wait. When all parts are there, one job publishes the entry from them in the same way: by
a claim. Parts resume behind the receipts of their items, so what a dead job had finished is kept.

**Claims need no locks.** A claim is a file that only one can create (O_EXCL); that of a dead job stays and the next has a
higher number, which again only one can create. A thread touches the claims that a job holds. A claim is dead when it was
given back, when its process is gone from this machine, or when it was not touched for `engine.patience` seconds by the
file system's own clock, which is the mtime of a file created for the purpose. A job that was only very slow may thus be
doubled: it costs its work and no byte, as entries may be written twice.

**What is believed.** What a job of the array has published, or verified for all, is not hashed again by every other:
`ours` says so. The `id` must therefore be that of this array alone, as SLURM_ARRAY_JOB_ID is. What was there before the
array is hashed as ever, by the job whose part it is. What is not as it was written, as a power cut may leave it, counts as
absent: a damaged part is computed anew by the job that needs it. The folder is swept a day after its last sign of life.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import engine
from pipeline.cache import Cache, Entry
from pipeline.config import Engine
from pipeline.errors import InputError, ResourceError, from_os_error
from pipeline.files import Json, seal, unseal
from pipeline.temporary import gone

log = logging.getLogger(__name__)

FIRST = 0.01  # seconds between two looks at what others do, in the beginning
POLL = 2.0  # seconds between two looks at what others do, at most
LOOKS = 16  # claims whose sign of life is looked at in one go
PART = 4096  # items in a part at most: what is told of them is one small file
BEATS = 12  # signs of life in the time of engine.patience

Item = TypeVar("Item")
Result = TypeVar("Result")


class Array:
    """The array as one of its jobs sees it."""

    def __init__(self, cache: Cache, settings: Engine) -> None:
        assert settings.index is not None and settings.count is not None and settings.id is not None
        self.folder = cache.root / "tmp" / f"array~{settings.id}~{settings.count}"
        self._me = cache.run
        self._settings = settings
        self._index = settings.index
        self._count = settings.count
        self._held: set[Path] = set()
        self._lock = threading.Lock()

    def give_signs_of_life(self, left: threading.Event) -> None:
        """Touch what this job claims until it has `left`."""
        while not left.wait(self._settings.patience / BEATS):
            with self._lock:
                for path in (self.folder, *self._held):
                    with contextlib.suppress(OSError):
                        os.utime(path)

    # -- claims -----------------------------------------------------------------------------------------------

    def _look(self, task: Path) -> tuple[set[str], float]:
        """The names in the folder of a task, and the time by the file system's clock.

        That a name of ours comes and goes also makes this machine ask the server, and not remember what was there.
        """
        clock = task / f"clock-{self._me}-{threading.get_ident()}"
        with open(clock, "w") as file:
            now = os.fstat(file.fileno()).st_mtime
        clock.unlink(missing_ok=True)
        return set(os.listdir(task)), now

    def _take(self, task: Path, name: str, names: set[str], now: float) -> Path | None:
        """Claim what nobody living claims, as the folder was found (see `_look`); None where one does, or was faster."""
        number = 0
        while f"{name}.claim-{number}" in names:
            number += 1
        if number and self._lives(task / f"{name}.claim-{number - 1}", now):
            return None
        claim = task / f"{name}.claim-{number}"
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with self._lock:
            self._held.add(claim)
        with open(handle, "w") as file:
            file.write(self._me)
        return claim

    def _lives(self, claim: Path, now: float) -> bool:
        """Is whoever made the claim alive and at it?"""
        try:
            with open(claim) as file:
                touched, owner = os.fstat(file.fileno()).st_mtime, file.read()
        except OSError:
            return False
        return abs(now - touched) < self._settings.patience and not gone(owner)  # the clock may have been set back

    def _give_back(self, claim: Path) -> None:
        with self._lock:
            self._held.discard(claim)
            with contextlib.suppress(OSError):
                os.utime(claim, (0, 0))

    # -- tasks ------------------------------------------------------------------------------------------------

    def _open(self, task: str) -> Path:
        folder = self.folder / task
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, task: str) -> bool:
        """Is a task over?"""
        return (self.folder / task / "done").exists()

    def agree(self, task: str, find: Callable[[], int]) -> int:
        """What the first job to come here found; it alone need look."""
        path = self._open(task) / "agreed"
        if (agreed := unseal(path)) is None:
            self._publish(path, found := {"value": find()}, first=True)
            agreed = unseal(path) or found
        return int(agreed["value"])

    @contextlib.contextmanager
    def alone(self, task: str) -> Iterator[bool]:
        """True for the one job that is to do a task, False for the others, once it is over.

        It is over when the block of that job ends without an error; else the next has its turn.
        """
        folder, pause, told = self._open(task), FIRST, False
        while not self.done(task):
            claim = self._take(folder, "turn", *self._look(folder))
            if claim is not None:
                try:
                    if not self.done(task):
                        yield True
                        (folder / "done").touch()
                        return
                finally:
                    self._give_back(claim)
                break
            if not told and pause >= POLL:
                log.info("%s: another job of the array is at it", task.partition("-")[0])
                told = True
            pause = _wait(pause)
        yield False

    def run(self, task: str, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`function` over all items, here and in the other jobs; gives the results that are computed here, as they come.

        They must be JSON; at the end those of all items are there, see `results`. Raises what `function` raises, and
        InputError where another job found its part of the corpus bad.
        """
        folder, parts = self._open(task), _parts(self._count, len(items))
        todo = sorted(range(parts), key=lambda part: ((part - self._index) % self._count, part))  # our own first
        pause, told = FIRST, False
        while True:
            names, now = self._look(folder)
            todo = [part for part in todo if f"part-{part}" not in names]
            if not todo:
                return
            bad = [said for part in todo if f"part-{part}.bad" in names and (said := unseal(folder / f"part-{part}.bad"))]
            free = [part for part in todo if f"part-{part}.claim-0" not in names]
            begun = [part for part in todo if f"part-{part}.claim-0" in names]
            for part in free + random.sample(begun, min(LOOKS, len(begun))):
                if bad and (part - self._index) % self._count:  # our own parts we try ourselves
                    raise InputError(bad[0]["said"])
                claim = self._take(folder, f"part-{part}", names, now)
                if claim is not None:
                    yield from self._compute(folder / f"part-{part}", claim, function, items[part::parts])
                    pause = FIRST
                    break
            else:
                if not told and pause >= POLL:
                    log.info("waiting for other jobs of the array, which work on %d of %d parts", len(todo), parts)
                    told = True
                pause = _wait(pause)

    def _compute(self, part: Path, claim: Path, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        results = []
        try:
            if not part.exists():  # published just before its job gave the claim back
                for result in engine.run(self._settings, function, items):
                    results.append(result)
                    yield result
                self._publish(part, {"results": results})
        except InputError as error:  # the same for whoever reads it: nobody else need try
            with contextlib.suppress(ResourceError):
                self._publish(part.with_name(f"{part.name}.bad"), {"said": str(error)})
            raise
        finally:
            self._give_back(claim)

    def results(self, task: str, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Any]:
        """What `function` gave for each item, in order, once `run` is through; a part that is damaged is computed anew."""
        parts, found = _parts(self._count, len(items)), []
        for part in range(parts):
            path = self.folder / task / f"part-{part}"
            while (whole := unseal(path)) is None:
                path.unlink(missing_ok=True)
                for _ in self.run(task, function, items):
                    pass
            found.append(whole["results"])
        for index in range(len(items)):
            yield found[index % parts][index // parts]

    def _publish(self, path: Path, value: Json, first: bool = False) -> None:
        """Put a small file in place atomically; with `first` only where none is there that is whole."""
        temporary = path.with_name(f"{path.name}.new-{self._me}-{threading.get_ident()}")
        try:
            temporary.write_bytes(seal(value))
            if first:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    if unseal(path) is None:  # damaged
                        os.replace(temporary, path)
            else:
                os.replace(temporary, path)
        except OSError as error:
            if not first or path.exists():
                raise from_os_error(error, path) from error
            os.replace(temporary, path)  # a file system without hard links
        finally:
            temporary.unlink(missing_ok=True)

    def everywhere(self, task: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Any]:
        """What `function` gives for each item, in order, computed by all jobs of the array together. It must be JSON."""
        for _ in self.run(task, function, items):
            pass
        return list(self.results(task, function, items))

    # -- entries ----------------------------------------------------------------------------------------------

    def ours(self, *entries: Entry) -> None:
        """Say that a job of the array makes entries, or has verified them: they need not be hashed by the others."""
        for entry in entries:
            (self._open(task_of(entry)) / "ours").touch()

    def verified(self, entry: Entry) -> Json | None:
        """`Entry.verified`, with each file hashed by one job of the array, and none that the array has made itself."""
        manifest, ours = entry.manifest(), self.folder / task_of(entry) / "ours"
        if manifest is None or ours.exists():
            return manifest
        task, files = f"verify-{task_of(entry)}", manifest["files"]
        intact = self.everywhere(task, lambda name: entry.intact(name, files[name]), list(files))
        with self.alone(task) as turn:
            if turn and entry.settle(manifest, intact):
                self.ours(entry)
        return manifest if ours.exists() else None


@contextlib.contextmanager
def joined(cache: Cache, settings: Engine) -> Iterator[Array | None]:
    """This job of the array, alive within the block; None where the engine is another, or the cache is only read."""
    array = Array(cache, settings) if settings.kind == "array" else None
    try:
        if array is not None:
            array.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.info("what is there is hashed by each job of the array: %s", error)
        array = None
    if array is None:
        yield None
        return
    left = threading.Event()
    beat = threading.Thread(target=array.give_signs_of_life, args=(left,), daemon=True)
    beat.start()
    try:
        yield array
    finally:
        left.set()
        engine.surely(beat.join)


def task_of(entry: Entry) -> str:
    """The task of making an entry."""
    return f"{entry.stage}-{entry.key}"


def _parts(count: int, items: int) -> int:
    """Into how many parts items are divided: one for each job, or several, so that none has more than PART items."""
    return max(1, min(items, count * -(-items // (count * PART))))


def _wait(pause: float) -> float:
    """Sleep so many seconds, about; returns how many next time."""
    engine.checkpoint()
    time.sleep(pause * random.uniform(0.8, 1.2))
    return min(POLL, pause * 1.5)
