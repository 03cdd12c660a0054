"""What `plan=true` said of a configuration, kept in the cache so that the run can be set beside it."""

import contextlib
import os
from pathlib import Path

from pipeline import files
from pipeline.cache import Cache
from pipeline.files import Json

GUESSES = ("text", "documents", "tokens", "rows", "disk")


def remember(plan: Json, root: Path, recorded: Json) -> None:
    """Note in the cache at `root` what was said of a configuration."""
    path, cache = _note(root, recorded), Cache.open(root)
    try:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs the comparison
            path.parent.mkdir(parents=True, exist_ok=True)
            cache.tmp.mkdir(parents=True, exist_ok=True)
            (cache.tmp / path.name).write_bytes(files.seal({"plan": plan}))
            os.replace(cache.tmp / path.name, path)
    finally:
        cache.close()


def recall(root: Path, recorded: Json, size: int) -> Json | None:
    """What was said of a configuration whose input had `size` bytes; None where nothing was, or of another input."""
    told = (files.unseal(_note(root, recorded)) or {}).get("plan")
    return told if isinstance(told, dict) and _ours(told) and told["size"] == size else None


def _ours(told: Json) -> bool:
    """Has it what `Estimate.record` has?"""
    try:
        said = [told["size"], told["sampled"], told["seconds"], *(told[name]["value"] for name in GUESSES)]
    except (KeyError, TypeError):
        return False
    return all(type(number) in (int, float) and 0 <= number < 1 << 63 for number in said)


def _note(root: Path, recorded: Json) -> Path:
    return root / "plans" / f"{files.digest(recorded)[:32]}.json"
