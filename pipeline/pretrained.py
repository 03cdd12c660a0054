"""Tokenizers that somebody else made, found by path or by name, never by running their code.

`assets.py` says where one is looked for. A folder with a `tokenizer.json` is taken as it is. Without one
`transformers.AutoTokenizer` reads the folder, and gives a `tokenizer.json` where it can; where it cannot, the folder
is kept and its Python tokenizer used, slowly.
"""

import difflib
import hashlib
import json
import logging
import re
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import assets, backends
from pipeline.arrow import adjoin, joined
from pipeline.config import Tokenizer as Settings
from pipeline.errors import ConfigError, TokenizerError, from_os_error
from pipeline.training import ROLES

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
FAST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SMALL = (".json", ".txt", ".model", ".vocab", ".bpe", ".tiktoken", ".jinja")  # what a tokenizer may be made of
NOT_OURS = re.compile(r"\.safetensors|\.index\.json$|generation_config|README|LICENSE|requirements|preprocessor", re.I)
# One of these must be there for a folder to be taken for a tokenizer.
MARKS = ("tokenizer_config.json", "vocab.txt", "vocab.json", "config.json", "merges.txt", "special_tokens_map.json")

SLOW = "transformers"  # the backend of a tokenizer that exists in Python alone

Json = dict[str, Any]
Frame = tuple[tuple[int, ...], tuple[int, ...], bool]  # IDs before and after a document; has it token types?


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
                path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.is_file() and _is_part(path.name)
            }
        except OSError as error:
            raise from_os_error(error, self.folder) from error


def _is_part(name: str) -> bool:
    """May a file of this name be part of a tokenizer that has no tokenizer.json?"""
    return name.endswith(SMALL) and not NOT_OURS.search(name)


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
    """The tokenizer that tokenizer.name asks for. Raises TokenizerError where it is nowhere, see `assets.find`."""
    name = str(t.name)
    return assets.find("tokenizer", "tokenizer", name, t.revision, _at, lambda: _on_hub(name, t.revision))


def _at(place: Path) -> Found | None:
    if place.is_file():
        return Found(place.parent, place)
    if (place / FAST[0]).is_file():
        return Found(place, place / FAST[0])
    if place.is_dir() and (any((place / mark).is_file() for mark in MARKS) or any(place.glob("*.model"))):
        return Found(place, None)
    return None


@lru_cache
def _on_hub(name: str, revision: str | None) -> Found:
    signs = (FAST[0], *MARKS)
    pinned = assets.cached(name, revision, signs) if revision and COMMIT.fullmatch(revision) else None
    found = pinned or assets.repository(name, revision, signs)
    fast = FAST[0] in found.files
    wanted = sorted(n for n in found.files if (n in FAST if fast else "/" not in n and _is_part(n)))
    if not wanted:
        raise TokenizerError("it holds no tokenizer there.")
    for file in wanted:
        folder = found.fetch(file).parent
    return Found(folder, folder / FAST[0] if fast else None, found.commit)


# -- reading ----------------------------------------------------------------------------------------------


def load(t: Settings) -> dict[str, bytes]:
    """The files of the tokenizer's entry: tokenizer.json (or those of a slow tokenizer), its config, vocabulary.json.

    Padding and truncation are switched off; the rate of a slow tokenizer is said. Raises TokenizerError where it cannot
    be read, ConfigError where the configuration names a special token that is not in its vocabulary.
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


def listed(tree: Json) -> dict[str, int] | None:
    """Token -> ID as a tokenizer.json lists them, added tokens included; None where its model lists them otherwise."""
    vocab = tree["model"]["vocab"]
    return vocab | {token["content"]: token["id"] for token in tree["added_tokens"]} if isinstance(vocab, dict) else None


def _vocab(tree: Json, data: bytes) -> dict[str, int]:
    """Token -> ID, added tokens included."""
    if (names := listed(tree)) is not None:
        return names
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
    files = found.files() | {FAST[1]: config_file(json.loads(saved.get(FAST[1], b"{}")), roles)}
    return files | {"vocabulary.json": vocabulary_file(_measured(files, str(t.name)))}


def _measured(files: dict[str, bytes], name: str) -> dict[str, int]:
    """The vocabulary of a Python tokenizer; warns how slow it is on this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        for file, data in files.items():
            (Path(scratch) / file).write_bytes(data)
        core = SlowCore(Path(scratch), special_in_text=False)
        sample = b"The ferry was late because of the fog. " * 512
        started = time.perf_counter()
        core.encode(joined([sample]))
        rate = len(sample) / 1e6 / max(time.perf_counter() - started, 1e-9)
        log.warning(
            "tokenizer %r has no fast form: transformers runs it in Python, at %.2g MB/s here; engine=processes helps",
            *(name, rate),
        )
        return dict(core.tokenizer.get_vocab())


class SlowCore:
    """A tokenizer that exists in Python alone, run by transformers: exact, and slow."""

    name = SLOW

    def __init__(self, folder: Path, special_in_text: bool) -> None:
        self.tokenizer = open_slow(folder)
        self.tokenizer.model_max_length = 1 << 60
        special = [token for token in self.tokenizer.all_special_tokens if len(token) > 1 and not special_in_text]
        self.inside = re.compile("|".join(f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in special) or "(?!)")

    def encode(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Flat IDs (uint32) and offsets (int64, len(text) + 1). A special token that is to be text is cut in two."""
        rows = [
            [i for part in self.inside.split(document) for i in self.tokenizer.encode(part, add_special_tokens=False)]
            for document in text.to_pylist()
        ]
        return np.array([i for row in rows for i in row], np.uint32), adjoin([len(row) for row in rows])

    def frame(self, config: dict[str, Any]) -> Frame:
        """What it puts around a document, seen from outside."""
        ids = self.tokenizer.encode("a", add_special_tokens=False)
        whole = self.tokenizer.encode("a")
        at = next((i for i in range(len(whole)) if whole[i : i + len(ids)] == ids), 0)
        return tuple(whole[:at]), tuple(whole[at + len(ids) :]), "token_type_ids" in self.tokenizer.model_input_names
