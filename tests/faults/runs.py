"""One run as a process of its own, forked from an interpreter that has everything imported, and what it left."""

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from pipeline import cache, cli, console, engine, files
from pipeline import config as configs
from pipeline.errors import PipelineError

DATASET = "outputs/small"
CACHE = "data/cache"
TIMEOUT = 60  # seconds until a run counts as hanging
TEXTS = {"a.txt": "the ferry was late\n" * 40, "b.txt": "because of fog, 你好\n" * 30, "c.txt": "Gisburn\ncéu 🙂\n" * 12}
SMALL = (
    "corpus=text", "corpus.paths=[texts]", "corpus.document=line", "corpus.shard_bytes=700", "name=small",
    "tokenizer=bytes", "tokenizer.backend=hf", "window.context_length=16", "embedding.embedding_dim=2", "output.report=false",
)  # fmt: skip
ENGINES = {"serial": ("engine=serial",), "threads": ("engine=threads", "engine.workers=2")}


@functools.cache
def composed(*overrides: str) -> Any:
    """What Hydra would hand to a job for these arguments."""
    ConfigStore.instance().store(name="schema", node=configs.Config)
    with initialize_config_dir(version_base="1.3", config_dir=str(configs.conf_dir())):
        return compose("config", overrides=[*SMALL, *overrides])


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code or minus the signal, and what it said."""

    code: int
    out: str
    err: str


class Child:
    """`work` in a fork, in the folder `at`; its output goes to files beside the folder."""

    def __init__(self, at: Path, work: Callable[[], int], tag: str = "") -> None:
        self._said = [at.with_name(f"{at.name}{tag}.{stream}") for stream in ("out", "err")]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                signal.alarm(TIMEOUT)
                os.chdir(at)
                for number, path in enumerate(self._said, 1):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
                cache._verified.clear()
                console.setup()
                code = work()
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def wait(self) -> Ended:
        """Its end."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (path.read_text(errors="replace") for path in self._said)
        return Ended(code, out, err)


def attempt(config: Any, before: Callable[[], None] = lambda: None) -> int:
    """What `python -m pipeline` does once Hydra has composed; returns the exit code."""
    try:
        with engine.signals():
            before()
            return cli.attempt(config).code
    except Exception as error:
        return cli.complain(cli.as_ours(error))


def run(at: Path, config: Any, before: Callable[[], None] = lambda: None) -> Ended:
    """A run in the folder `at`; `before` is called in its process just before it starts."""
    return Child(at, lambda: attempt(config, before)).wait()


def run_line(at: Path, arguments: tuple[str, ...], before: Callable[[], None] = lambda: None) -> Ended:
    """As `run`, from the arguments of the command line on: Hydra composes, and keeps its record of the run."""

    def work() -> int:
        before()
        return cli.exit_code([*SMALL, *arguments])

    return Child(at, work).wait()


def warm(at: Path, config: Any) -> None:
    """Import into this process what a run imports, without starting the threads that it starts."""
    at.mkdir(parents=True, exist_ok=True)
    seed(at)
    reading, writing = os.pipe()

    def work() -> int:
        code = attempt(config)
        with open(writing, "wb") as pipe:
            pickle.dump(list(sys.modules), pipe)
        return code

    child = Child(at, work)
    os.close(writing)
    with open(reading, "rb") as pipe:
        names = pickle.load(pipe)
    ended = child.wait()
    if ended.code:
        raise RuntimeError(f"the undisturbed run failed: {ended.err}")
    for name in names:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError):
                __import__(name)


def seed(at: Path) -> None:
    """The corpus of three files."""
    (at / "texts").mkdir(parents=True)
    for name, text in TEXTS.items():
        (at / "texts" / name).write_text(text, "utf-8")


def clone(template: Path, at: Path) -> None:
    """A copy of a folder, sharing nothing with it."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(template, at, symlinks=True)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset but the record of the run."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.json", "report.html")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def leftovers(at: Path) -> list[str]:
    """What lies in the temporary folders of cache and output; nothing may, once no run lives."""
    places = [at / CACHE / "tmp", (at / DATASET).parent / ".tmp"]
    left = [p for place in places if place.is_dir() for p in place.iterdir()]
    return [str(p.relative_to(at)) for p in (*left, *(at / DATASET).glob(".*"))]


def promised(at: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every shard that a receipt or a manifest says is finished, and that is as it says."""
    root = at / CACHE
    kept = {}
    for entry in cache.Cache(root, "looking").entries():
        with contextlib.suppress(PipelineError):
            manifest = entry.manifest()
            notes = dict(manifest["files"]) if manifest else {}
            for path in entry.folder.glob("[0-9]*.arrow"):
                note = notes.get(path.name) or entry._receipt(path.name)
                if note and files.hash_file(path) == (note["bytes"], note["sha256"]):
                    seen = path.stat()
                    kept[str(path.relative_to(root))] = (seen.st_ino, seen.st_mtime_ns)
    return kept


def faults_of_cache(at: Path) -> list[str]:
    """What `cache verify` finds."""
    return [f"{path.name}: {problem}" for path, problem in cache.Cache(at / CACHE, "looking").verify() if problem]


def faults_of_dataset(at: Path) -> list[str]:
    """What is wrong with the dataset, where there is one: no manifest, or other bytes than it says."""
    folder = at / DATASET
    if not os.path.lexists(folder):
        return []
    wrong = [] if (folder / "manifest.json").is_file() else ["the dataset has no manifest"]
    for path in folder.rglob("manifest.json"):
        manifest = files.unseal(path)
        if manifest is None:
            wrong.append(f"{path.relative_to(folder)} is not as it was written")
            continue
        for name, note in manifest["files"].items():
            try:
                same = files.hash_file(path.parent / name) == (note["bytes"], note["sha256"])
            except OSError as error:
                same = False
                name = f"{name} ({error.strerror})"
            if not same:
                wrong.append(f"{name} is not as the manifest says")
    return wrong
