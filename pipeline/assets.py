"""Tokenizers, models and datasets by name: on this disk, in an offline mirror, or on the Hub at one commit.

    name ─▶ that path ─▶ data/<kind>s/<name> ─▶ $PIPELINE_ASSETS/<kind>s/<name> ─▶ the Hub
                                                (there also by the last part of <name>)

A revision on the Hub is resolved to a commit and everything read from that commit; without a network, what the Hub's
own cache on this disk holds of the revision will do.
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from pipeline.errors import TokenizerError

log = logging.getLogger(__name__)

HUB_SECONDS = 4.0  # to hear from the Hub, name look-up included
DOWNLOAD_SECONDS = 10.0  # without a byte
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

Found = TypeVar("Found")
Value = TypeVar("Value")


def find(
    kind: str, group: str, name: str, revision: str | None, at: Callable[[Path], Found | None], on_hub: Callable[[], Found]
) -> Found:
    """The tokenizer or model (`kind`) that `group`.name and `group`.revision ask for.

    `at(path)` opens one on this disk, None where there is none; `on_hub()` the one on the Hub. Raises TokenizerError
    naming every place, within five seconds without a network.
    """
    places = [Path(name).expanduser()]
    if not places[0].is_absolute():
        places.append(Path("data", f"{kind}s", name))
        if mirror := os.environ.get("PIPELINE_ASSETS"):
            places += [Path(mirror, f"{kind}s", part) for part in dict.fromkeys((name, Path(name).name))]
    tried = []
    for place in places:
        if found := at(place):
            if revision:
                _say_unchecked(kind, str(place), group, revision)
            return found
        tried.append(f"{str(place)!r}{f' (no {kind} in it)' if place.exists() else ''}")
    where = ", ".join(tried)
    if not HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise TokenizerError(f"{kind} {name!r} not found; tried {where}. Set {group}.name= to a folder or a Hub name.")
    try:
        return on_hub()
    except TokenizerError as error:
        raise TokenizerError(
            f"{kind} {name!r} not found; tried {where}, and the Hub: {error} Set {group}.name= to a local folder, "
            "PIPELINE_ASSETS to an offline mirror, or HF_TOKEN where the Hub asks for it."
        ) from error


@lru_cache
def _say_unchecked(kind: str, place: str, group: str, revision: str) -> None:
    log.info("%s: %r is a local copy, %s.revision=%s is not checked", kind, place, group, revision)


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one commit: its files by name, and how to get the local path of one."""

    commit: str
    files: frozenset[str]
    fetch: Callable[[str], Path]  # raises TokenizerError where it cannot be downloaded


def repository(name: str, revision: str | None, signs: tuple[str, ...], kind: str = "model") -> Repository:
    """A repository of the Hub, the revision resolved to a commit; without a network, the cached one that has a sign.

    `kind` is model or dataset; tokenizers lie with models.

    Raises TokenizerError saying what is wrong with the name or the revision, or that the Hub cannot be reached.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        ask = hub.HfApi().dataset_info if kind == "dataset" else hub.HfApi().model_info
        info = within(HUB_SECONDS, lambda: ask(name, revision=revision, timeout=HUB_SECONDS / 2))
    except errors.HFValidationError as error:
        raise TokenizerError("it is no repository name.") from error
    except errors.RevisionNotFoundError as error:
        raise TokenizerError(f"it has no revision {revision!r}.") from error
    except errors.RepositoryNotFoundError as error:  # private and gated ones too
        raise TokenizerError("it has none of that name, or not for you.") from error
    except Exception as error:  # offline mode, or whatever the HTTP library of the day raises without a network
        if known := cached(name, revision, signs, kind):
            log.warning("the Hub cannot be reached; using what is cached of commit %s of %r", known.commit, name)
            return known
        raise TokenizerError(f"it cannot be reached ({type(error).__name__}).") from error

    def fetch(file: str) -> Path:
        try:
            path = hub.hf_hub_download(name, file, revision=info.sha, repo_type=kind, etag_timeout=DOWNLOAD_SECONDS)
            return Path(path)
        except Exception as error:
            raise TokenizerError(f"{file!r} of {name!r} cannot be downloaded ({type(error).__name__}).") from error

    return Repository(str(info.sha), frozenset(file.rfilename for file in info.siblings or []), fetch)


def cached(name: str, revision: str | None, signs: tuple[str, ...], kind: str = "model") -> Repository | None:
    """What the Hub's cache on this disk holds of a revision, where one of the files `signs`, if any, is among it."""
    import huggingface_hub as hub

    with contextlib.suppress(Exception):
        folder = Path(hub.snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
        files = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if files and (not signs or files & set(signs)):
            return Repository(folder.name, files, partial(Path, folder))  # …/snapshots/<commit>
    return None


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """`work()`, or TimeoutError after so many seconds: a look-up of a host name heeds no timeout of its own."""
    done: list[Value] = []
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            done.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return done[0]
