"""Tokenizers that somebody else made, found by path or by name, never by running their code.

    tokenizer.name ─▶ that path ─▶ data/tokenizers/<name> ─▶ $PIPELINE_ASSETS/tokenizers/<name> ─▶ the Hub
                                                             (there also by the last part of <name>)

A folder with a `tokenizer.json` is taken as it is. Without one `transformers.AutoTokenizer` reads the folder, and
gives a `tokenizer.json` where it can; where it cannot, the folder is kept and its Python tokenizer used, slowly.
A revision on the Hub is resolved to a commit, and everything is read from that commit.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pipeline import backends
from pipeline.config import Tokenizer as Settings
from pipeline.errors import ConfigError, TokenizerError, from_os_error
from pipeline.training import ROLES

log = logging.getLogger(__name__)

HUB_SECONDS = 4.0  # to hear from the Hub, name look-up included
DOWNLOAD_SECONDS = 10.0  # without a byte
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FAST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SMALL = (".json", ".txt", ".model", ".vocab", ".bpe", ".tiktoken", ".jinja")  # what a tokenizer may be made of
NOT_OURS = re.compile(r"\.safetensors|\.index\.json$|generation_config|README|LICENSE|requirements|preprocessor", re.I)
# One of these must be there for a folder to be taken for a tokenizer.
MARKS = ("tokenizer_config.json", "vocab.txt", "vocab.json", "config.json", "merges.txt", "special_tokens_map.json")

Json = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Found:
    """Where a tokenizer lies: a folder, its `tokenizer.json` if it has one, the Hub's commit if it is from there."""

    folder: Path
    json: Path | None
    revision: str | None = None

    def files(self) -> dict[str, bytes]:
        """The files that make the tokenizer, by name."""
        try:
            if self.json is not None:
                beside = {name: self.folder / name for name in FAST[1:] if (self.folder / name).is_file()}
                return {name: path.read_bytes() for name, path in ({FAST[0]: self.json} | beside).items()}
            return {
                path.name: path.read_bytes()
                for path in sorted(self.folder.iterdir())
                if path.is_file() and path.suffix in SMALL and not NOT_OURS.search(path.name)
            }
        except OSError as error:
            raise from_os_error(error, self.folder) from error


def identity(t: Settings) -> Json:
    """sha256 of every file that makes the tokenizer, and the special tokens that the configuration sets."""
    from importlib.metadata import version

    found = find(t)
    out: Json = {
        "kind": "pretrained",
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in found.files().items()},
        "roles": _chosen(t),
    }
    if found.json is None:
        out["transformers"] = version("transformers")  # which then converts it, or runs it
    return out


def origin(t: Settings) -> Json:
    """What to record beside the identity: the name asked for, and the commit on the Hub that it was resolved to."""
    return {"name": t.name, "revision": find(t).revision or t.revision}


def _chosen(t: Settings) -> dict[str, str]:
    return {role: token for role in ROLES if (token := getattr(t, f"{role}_token", None))}


# -- finding ----------------------------------------------------------------------------------------------


def find(t: Settings) -> Found:
    """Look for `tokenizer.name`. Raises TokenizerError naming every place, within five seconds without a network."""
    name = str(t.name)
    places = [Path(name).expanduser()]
    if not places[0].is_absolute():
        places.append(Path("data/tokenizers") / name)
        if mirror := os.environ.get("PIPELINE_ASSETS"):
            places += [Path(mirror) / "tokenizers" / part for part in dict.fromkeys((name, Path(name).name))]
    tried = []
    for place in places:
        if found := _at(place):
            if t.revision:
                log.info("tokenizer: %r is a local copy, tokenizer.revision=%s is not checked", str(place), t.revision)
            return found
        tried.append(f"{str(place)!r}{' (no tokenizer in it)' if place.exists() else ''}")
    where = ", ".join(tried)
    if not HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise TokenizerError(f"tokenizer {name!r} not found; tried {where}. Set tokenizer.name= to a folder or a Hub name.")
    try:
        return _on_hub(name, t.revision)
    except TokenizerError as error:
        raise TokenizerError(
            f"tokenizer {name!r} not found; tried {where}, and the Hub: {error} Set tokenizer.name= to a local folder, "
            "PIPELINE_ASSETS to an offline mirror, or HF_TOKEN where the Hub asks for it."
        ) from error


def _at(place: Path) -> Found | None:
    if place.is_file():
        return Found(place.parent, place)
    if (place / FAST[0]).is_file():
        return Found(place, place / FAST[0])
    if place.is_dir() and (any((place / mark).is_file() for mark in MARKS) or any(place.glob("*.model"))):
        return Found(place, None)
    return None


def _within(seconds: float, work: Callable[[], Value]) -> Value:
    """`work()`, given up after so many seconds: a look-up of a host name heeds no timeout."""
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


@lru_cache
def _on_hub(name: str, revision: str | None) -> Found:
    """A tokenizer of the Hub at one commit; without a network, what the Hub's own cache holds of the revision."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    if revision and COMMIT.fullmatch(revision) and (known := _in_hub_cache(name, revision)):
        return known
    try:
        info = _within(HUB_SECONDS, lambda: hub.HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS / 2))
    except errors.HFValidationError as error:
        raise TokenizerError("it is no repository name.") from error
    except errors.RevisionNotFoundError as error:
        raise TokenizerError(f"it has no tokenizer.revision={revision!r}.") from error
    except errors.RepositoryNotFoundError as error:  # private and gated ones too
        raise TokenizerError("it has none of that name, or not for you.") from error
    except Exception as error:  # offline mode, or whatever the HTTP library of the day raises without a network
        if known := _in_hub_cache(name, revision):
            log.warning("tokenizer: the Hub cannot be reached; using its cached commit %s of %r", known.revision, name)
            return known
        raise TokenizerError(f"it cannot be reached ({type(error).__name__}).") from error
    names = [sibling.rfilename for sibling in info.siblings or []]
    fast = FAST[0] in names
    wanted = [n for n in names if (n in FAST if fast else "/" not in n and n.endswith(SMALL) and not NOT_OURS.search(n))]
    if not wanted:
        raise TokenizerError("it holds no tokenizer there.")
    folder = Path()
    for file in wanted:
        try:
            path = hub.hf_hub_download(name, file, revision=info.sha, etag_timeout=DOWNLOAD_SECONDS)
        except Exception as error:
            raise TokenizerError(f"{file!r} cannot be downloaded ({type(error).__name__}).") from error
        folder = Path(path).parent
    return Found(folder, folder / FAST[0] if fast else None, info.sha)


def _in_hub_cache(name: str, revision: str | None) -> Found | None:
    """A commit in the Hub's cache on this disk. Its files lie in `…/snapshots/<commit>/`."""
    import huggingface_hub as hub

    for file in (FAST[0], *MARKS):
        with contextlib.suppress(Exception):
            path = hub.try_to_load_from_cache(name, file, revision=revision)
            if isinstance(path, str):
                folder = Path(path).parent
                return Found(folder, folder / FAST[0] if file == FAST[0] else None, folder.name)
    return None


# -- reading ----------------------------------------------------------------------------------------------


def load(t: Settings) -> dict[str, bytes]:
    """The files of the tokenizer's entry: tokenizer.json and tokenizer_config.json, or those of a slow tokenizer.

    Padding and truncation are switched off. Raises TokenizerError where it cannot be read, ConfigError where the
    configuration names a special token that is not in its vocabulary.
    """
    found = find(t)
    if found.json is None:
        return _through_transformers(t, found)
    files = found.files()
    return fast_files(t, files[FAST[0]], _parse(files, FAST[1], found), _parse(files, FAST[2], found), str(found.json))


def _parse(files: dict[str, bytes], name: str, found: Found) -> Json:
    try:
        tree = json.loads(files.get(name, b"{}"))
        if not isinstance(tree, dict):
            raise ValueError("not an object")
        return tree
    except ValueError as error:
        raise TokenizerError(f"{str(found.folder / name)!r} is not JSON: {error}.") from error


def fast_files(t: Settings, data: bytes, config: Json, special_map: Json, place: str) -> dict[str, bytes]:
    """An entry's files, its vocabulary included, from a `tokenizer.json` and what lies beside it."""
    try:
        tree = dict(backends.parse(data))
        vocab = _vocab(tree, data)
    except Exception as error:
        raise TokenizerError(f"{place!r} is not a tokenizer.json that we can read: {' '.join(str(error).split())}") from error
    if tree.get("padding") or tree.get("truncation"):
        tree["padding"] = tree["truncation"] = None
        data = json.dumps(tree, ensure_ascii=False, indent=2).encode()
    chosen = _chosen(t)
    _require_known(chosen, vocab)
    roles = declared(config, special_map)
    missing = [token for role, token in roles.items() if token not in vocab and role not in chosen]
    if missing:
        log.info("tokenizer: %s declares %s, which its vocabulary lacks: ignored", place, ", ".join(map(repr, missing)))
    roles = {role: token for role, token in (roles | chosen).items() if token in vocab}
    if "unk" in chosen and tree["model"].get("unk_token", "") is None:
        tree["model"]["unk_token"] = chosen["unk"]
        data = json.dumps(tree, ensure_ascii=False, indent=2).encode()
    return {FAST[0]: data, FAST[1]: config_file(config, roles), "vocabulary.json": vocabulary_file(vocab)}


def _vocab(tree: Json, data: bytes) -> dict[str, int]:
    """Token -> ID, added tokens included."""
    listed = tree["model"]["vocab"]
    if isinstance(listed, dict):
        return listed | {token["content"]: token["id"] for token in tree["added_tokens"]}
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_buffer(data).get_vocab(with_added_tokens=True))


def vocabulary_file(vocab: dict[str, int]) -> bytes:
    """Token -> ID as JSON, a line each, in the order of the IDs."""
    ordered = dict(sorted(vocab.items(), key=itemgetter(1, 0)))
    return json.dumps(ordered, ensure_ascii=False, separators=(",\n", ": ")).encode() + b"\n"


def declared(config: Json, special_map: Json) -> dict[str, str]:
    """Role -> token as tokenizer_config.json and special_tokens_map.json say, the former first."""
    out = {}
    for role in ROLES:
        token = config.get(f"{role}_token") or special_map.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            out[role] = token
    return out


def config_file(config: Json, roles: dict[str, str]) -> bytes:
    """A tokenizer_config.json that `AutoTokenizer` opens, with these special tokens and without code or limits."""
    drop = {"auto_map", "name_or_path", "is_local", "local_files_only", "added_tokens_decoder"}
    kept = {key: value for key, value in config.items() if key not in drop | {f"{role}_token" for role in ROLES}}
    kept = {"tokenizer_class": "PreTrainedTokenizerFast"} | kept | {f"{role}_token": token for role, token in roles.items()}
    return (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()


def _require_known(chosen: dict[str, str], vocab: dict[str, int]) -> None:
    for role, token in chosen.items():
        if token not in vocab:
            near = difflib.get_close_matches(token, [v for v in vocab if len(v) < 64 and v[:1] == token[:1]], 3, 0.5)
            near = near or [v for v in vocab if v[:1] in "<[" and v[-1:] in ">]" and len(v) > 2][:3]
            hint = f" Near: {', '.join(map(repr, near))}." if near else ""
            raise ConfigError(f"tokenizer.{role}_token={token!r} is not in the vocabulary of this tokenizer.{hint}")


def open_slow(folder: Path) -> Any:
    """`AutoTokenizer` on a local folder, without remote code and without a network."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TokenizerError(
            f"{str(folder)!r} has no tokenizer.json and transformers cannot read it: {type(error).__name__}: {reason}"
        ) from error


def _through_transformers(t: Settings, found: Found) -> dict[str, bytes]:
    import tempfile

    tokenizer, chosen = open_slow(found.folder), _chosen(t)
    _require_known(chosen, tokenizer.get_vocab())
    with tempfile.TemporaryDirectory() as scratch:
        for role, token in chosen.items():
            setattr(tokenizer, f"{role}_token", token)
        tokenizer.save_pretrained(scratch)
        saved = Found(Path(scratch), None).files()
        if backend := getattr(tokenizer, "backend_tokenizer", None):
            data = backend.to_str(pretty=True).encode()
            return fast_files(t, data, json.loads(saved.get(FAST[1], b"{}")), {}, str(found.folder))
    roles = {role: str(value) for role in ROLES if (value := getattr(tokenizer, f"{role}_token", None))} | chosen
    return found.files() | {FAST[1]: config_file(json.loads(saved.get(FAST[1], b"{}")), roles)}
