"""Every point of a run: at each call that changes a file, once per point, kill, interrupt or fail; run again; compare."""

import errno
import hashlib
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import runs, shim
from .runs import CACHE, DATASET, ENGINES, Ended
from .shim import Shim

NOTES = "what a person puts into a dataset's folder stays there"
SETTINGS = {  # scenarios of other settings, which begin with nothing
    "split": ("split.by=files", "split.validation_files=[a.txt]", "split.shuffle=documents", "embedding=none"),
    "trained": ("tokenizer.kind=words", "window.mode=document", "window.truncate=true", "vocabulary.append_eos=false"),
}
PAGED = {"page": (), "pages": SETTINGS["split"]}  # datasets that are there but for their pages
PAGE = "output.report=true"
BEHIND = ("window.stride=8", "embedding.seed=1")  # settings of an older dataset in the same place


@dataclass(frozen=True)
class Group:
    """Which calls, and what happens at each."""

    name: str
    scenario: str  # what lies there before: fresh | replace | heal; or one of SETTINGS, or of PAGED
    engine: str
    mask: int
    action: int
    value: int = 0
    forever: bool = False
    below: str = ""  # only calls below this folder, by a run whose arguments Hydra composes
    plain: bool = False  # a file system that cannot exchange two names


def groups() -> list[Group]:
    """All of them; `python -m tests.faults` runs them in this order."""
    made = []

    def add(name: str, scenarios: str, mask: int, action: int, value: int = 0, **more: Any) -> None:
        for scenario in scenarios.split():
            made.append(Group(f"{name}, {scenario}", scenario, "", mask, action, value, **more))

    add("SIGKILL before any change", "fresh replace heal", shim.CHANGING, shim.SIGNAL, signal.SIGKILL)
    add("SIGKILL before any change", " ".join([*PAGED, *SETTINGS]), shim.CHANGING, shim.SIGNAL, signal.SIGKILL)
    add("SIGKILL in the middle of any write", "fresh", shim.WRITE, shim.TORN)
    add("SIGINT at any change", " ".join(["fresh", *PAGED]), shim.CHANGING, shim.SIGNAL, signal.SIGINT)
    add("SIGTERM at any change", "fresh", shim.CHANGING, shim.SIGNAL, signal.SIGTERM)
    add("ENOSPC once", "fresh replace", shim.STORING, shim.FAIL, errno.ENOSPC)
    add("EDQUOT once", "fresh replace", shim.STORING, shim.FAIL, errno.EDQUOT)
    add("EIO once", " ".join(["fresh replace", *PAGED, *SETTINGS]), shim.CHANGING, shim.FAIL, errno.EIO)
    add("ENOSPC from there on", "fresh", shim.STORING, shim.FAIL, errno.ENOSPC, forever=True)
    add("EIO from there on", "replace", shim.CHANGING, shim.FAIL, errno.EIO, forever=True)
    add("EIO at any read", "fresh replace", shim.READING, shim.FAIL, errno.EIO)
    add("EMFILE at any open", "fresh", shim.CREATE | shim.OPEN, shim.FAIL, errno.EMFILE)
    add("ENOMEM at any read or mmap", "fresh", shim.READ, shim.FAIL, errno.ENOMEM)
    add("ENOSPC in Hydra's record", "fresh", shim.CHANGING, shim.FAIL, errno.ENOSPC, below="data/runs")
    add("EIO in Hydra's record", "fresh", shim.CHANGING, shim.FAIL, errno.EIO, below="data/runs")
    add("SIGKILL without exchange", "replace", shim.CHANGING, shim.SIGNAL, signal.SIGKILL, plain=True)
    add("SIGINT without exchange", "replace", shim.CHANGING, shim.SIGNAL, signal.SIGINT, plain=True)
    add("EIO once without exchange", "replace", shim.CHANGING, shim.FAIL, errno.EIO, plain=True)
    return [replace(group, name=f"{group.name}, {engine}", engine=engine) for engine in ENGINES for group in made]


class Templates:
    """What lies there before a run, by scenario, and the dataset that an undisturbed run leaves."""

    def __init__(self, base: Path) -> None:
        self.base = base / "templates"
        self.configs = {name: runs.composed(*overrides) for name, overrides in ENGINES.items()}
        runs.warm(self.base / "whole", runs.composed("engine=serial", PAGE))
        runs.seed(self.base / "fresh")
        self._make("replace", runs.composed("engine=serial", *BEHIND))
        (self.base / "replace" / DATASET / "notes.txt").write_text(NOTES)
        shutil.copytree(self.base / "whole", self.base / "heal")
        victims = [
            next((self.base / "heal" / CACHE).glob(f"{stage}/*/00000000.arrow")) for stage in ("tokenize", "encode", "window")
        ]
        for path in (*victims, self.base / "heal" / DATASET / "README.md"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.chmod(0o644)
            path.write_bytes(data)
        self.expected = dict.fromkeys(("fresh", "heal"), runs.digests(self.base / "whole" / DATASET))
        self.expected["replace"] = self.expected["fresh"] | {"notes.txt": hashlib.sha256(NOTES.encode()).hexdigest()}
        for name, settings in SETTINGS.items():
            config = runs.composed("engine=serial", *settings)
            self._make(name, config)
            self.expected[name] = runs.digests(self.base / name / DATASET)
            runs.clone(self.base / "fresh", self.base / name)
        for name, settings in PAGED.items():
            self._make(name, runs.composed("engine=serial", *settings))
            self.expected[name] = runs.digests(self.base / name / DATASET)
        again = self.base / "again"
        runs.clone(self.base / "fresh", again)
        ended = runs.run(again, self.configs["threads"])
        if ended.code or runs.digests(again / DATASET) != self.expected["fresh"]:
            raise RuntimeError(f"two undisturbed runs differ: {ended.err}")

    def config(self, group: Group) -> Any:
        """What Hydra composes for a run of the group."""
        settings = SETTINGS.get(group.scenario, ())
        if group.scenario in PAGED:
            settings = (PAGE, *PAGED[group.scenario])
        return runs.composed(*ENGINES[group.engine], *settings) if settings else self.configs[group.engine]

    def _make(self, name: str, config: Any) -> None:
        runs.seed(self.base / name)
        ended = runs.run(self.base / name, config)
        if ended.code:
            raise RuntimeError(f"the older run failed: {ended.err}")


def _run(group: Group, faults: Shim, at: Path, number: int, templates: "Templates") -> Ended:
    def arm() -> None:
        if group.plain:
            faults.plain()
        faults.arm(at / group.below, group.mask, number, group.action, group.value, group.forever)

    if group.below:
        return runs.run_line(at, ENGINES[group.engine], arm)
    return runs.run(at, templates.config(group), arm)


def count(group: Group, templates: Templates, at: Path, faults: Shim) -> int:
    """How many points the group has: the calls that an undisturbed run makes."""
    runs.clone(templates.base / group.scenario, at)
    ended = _run(group, faults, at, 0, templates)
    if ended.code or runs.digests(at / DATASET) != templates.expected[group.scenario]:
        raise RuntimeError(f"the undisturbed run failed: {ended.err}")
    return faults.report.seen


def tried(group: Group, number: int, templates: Templates, at: Path, faults: Shim) -> list[str]:
    """What is wrong after point `number` of the group; nothing, one hopes."""
    config = templates.config(group)
    for _ in range(5):  # the tokenizer is found beside the rest, so that a run may make a call or two less than another
        runs.clone(templates.base / group.scenario, at)
        ended = _run(group, faults, at, number, templates)
        if faults.report.fired:
            break
    else:
        seen, same = faults.report.seen, runs.digests(at / DATASET) == templates.expected[group.scenario]
        return [] if ended.code == 0 and same and seen < number else [f"never reached: exit {ended.code} after {seen} calls"]
    wrong = [*_at_once(group, ended, faults, at, templates)]
    finished = runs.promised(at)
    again = runs.run(at, config)
    if again.code:
        wrong.append(f"the next run ended with {again.code}: {again.err.strip()}")
    elif runs.digests(at / DATASET) != templates.expected[group.scenario]:
        wrong.append("other bytes than those of an undisturbed run")
    elif group.scenario in PAGED:
        made = [path.parent for path in (at / DATASET).rglob("manifest.json")]
        wrong += [f"no page in {folder.name} after the next run" for folder in made if not (folder / "report.html").is_file()]
    if "Traceback" in again.err:
        wrong.append(f"the next run said {again.err}")
    lost = finished.items() - runs.promised(at).items()
    if lost:
        wrong.append(f"computed again though finished: {sorted(name for name, _ in lost)}")
    wrong += runs.leftovers(at)
    wrong += runs.faults_of_cache(at)
    wrong += runs.faults_of_dataset(at)
    return [f"{faults.point}: {problem}" for problem in wrong]


def _at_once(group: Group, ended: Ended, faults: Shim, at: Path, templates: Templates) -> list[str]:
    """What is wrong with how the disturbed run ended and what it left."""
    wrong = []
    lines = ended.err.strip().splitlines()
    if "Traceback" in ended.err:
        wrong.append(f"a traceback: {ended.err}")
    if group.scenario == "replace" and not group.plain and not (at / DATASET / "notes.txt").is_file():
        wrong.append("a person's file is gone")
    if group.scenario != "heal":
        wrong += runs.faults_of_cache(at)
        wrong += runs.faults_of_dataset(at)
    if (group.action, group.value) in ((shim.TORN, 0), (shim.SIGNAL, signal.SIGKILL)):
        if ended.code != -signal.SIGKILL:
            wrong.append(f"exit {ended.code} instead of a kill")
        return wrong
    if ended.code == 0:
        if runs.digests(at / DATASET) != templates.expected[group.scenario]:
            wrong.append("exit 0 with other bytes")
    elif group.action == shim.SIGNAL:
        if ended.code != 128 + group.value or not lines or not lines[-1].startswith("Interrupted."):
            wrong.append(f"exit {ended.code} after a signal: {ended.err}")
    else:
        allowed = {3, 5} if group.mask & shim.READING else {5}
        if (
            ended.code not in allowed
            or sum(line.startswith("error: ") for line in lines) != 1
            or not lines[-1].startswith("error: ")
        ):
            wrong.append(f"exit {ended.code}: {ended.err}")
    cleaning = group.action == shim.FAIL and group.mask & (
        shim.UNLINK | shim.RMDIR | shim.READING
    )  # or its own broom was taken
    if not cleaning:
        wrong += [f"left behind at once: {name}" for name in runs.leftovers(at)]
    return wrong


def spread(total: int, most: int | None) -> list[int]:
    """The points 1 … total, or about `most` of them, the last included."""
    if most is None or total <= most:
        return list(range(1, total + 1))
    return sorted({total - i * (total - 1) // (most - 1) for i in range(most)})
