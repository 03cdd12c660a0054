"""Why an entry of the cache had to be computed: what differs between it and the nearest one before it, field by field.

Keys are hashes, so two of them tell nothing; the identities from which they were made do.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from pipeline.cache import Entry
from pipeline.errors import PipelineError
from pipeline.files import Json, unseal


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested object as dotted paths: {"a": {"b": 1}} gives {"a.b": 1}."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def why(entry: Entry, upstream: dict[str, Entry] | None = None) -> list[str]:
    """What separates an entry that does not exist from the nearest one of its stage that does.

    One line a field, `stride 128 → 64`; a field of a stage upstream is led by that stage, `tokenizer:
    vocab_size 1024 → 512`. `upstream` maps the keys of this run to its entries: a changed upstream key is
    explained by its own fields where both are known, and stands as it is where not. Empty where nothing else of
    this stage is stored.
    """
    stored = sorted((entry.cache.root / entry.stage).glob("*/manifest.json"), key=_mtime, reverse=True)[:16]
    others = [identity for path in stored if path.parent.name != entry.key and (identity := _identity(path))]
    return min((explain(old, entry, upstream or {}) for old in others), key=len, default=[])


def explain(old: Json, new: Entry, known: dict[str, Entry], prefix: str = "") -> list[str]:
    """What differs between an identity and that of an entry, one line a field; `known` as `upstream` in `why`."""
    before, after = flatten(old), flatten(new.identity)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        stage = name.removeprefix("upstream.")
        source = known.get(str(now)) if stage != name else None
        earlier = source and _identity(source.cache.root / source.stage / str(was) / "manifest.json")
        if source and earlier:
            lines += explain(earlier, source, known, f"{stage}: ")
        else:
            lines.append(f"{prefix}{name} {shortened(was)} → {shortened(now)}")
    return list(dict.fromkeys(lines))  # two stages may have read from the same changed one


def _identity(manifest: Path) -> Json | None:
    with contextlib.suppress(PipelineError):
        return (unseal(manifest) or {}).get("identity")
    return None


def _mtime(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def shortened(value: Any) -> str:
    """A value as JSON, of at most forty characters."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,64}", value):
        return value[:8] + "…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
