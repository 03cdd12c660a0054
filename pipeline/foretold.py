"""What `plan=true` said of a configuration, kept in the cache so that the run can be set beside it."""

import contextlib
import os
from pathlib import Path

from pipeline import files
from pipeline.files import Json


def remember(plan: Json, root: Path, recorded: Json) -> None:
    """Note in the cache at `root` what was said of a configuration."""
    path = _note(root, recorded)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs the comparison
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        aside.write_bytes(files.seal({"plan": plan}))
        os.replace(aside, path)


def recall(root: Path, recorded: Json, size: int) -> Json | None:
    """What was said of a configuration whose input had `size` bytes; None where nothing was, or of another input."""
    told = (files.unseal(_note(root, recorded)) or {}).get("plan")
    return told if isinstance(told, dict) and told.get("size") == size else None


def _note(root: Path, recorded: Json) -> Path:
    return root / "plans" / f"{files.digest(recorded)[:32]}.json"
