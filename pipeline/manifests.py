"""The manifest of a finished dataset or of an export, read, and found to have the shape that its readers rely on.

A seal says that nothing has changed since; it does not say who set it. So one that names a file outside its folder, or
lacks what every manifest has, ends here in one line, before anything else is opened.
"""

import re
from pathlib import Path
from typing import Any

from pipeline.errors import IntegrityError
from pipeline.files import Json, unseal
from pipeline.split import NAMES

FILE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")  # below the folder, never out of it
ROWS = re.compile(r"(?:.*/)?data-[^/]*")  # of a dataset, or of one of its splits: the files of rows
Shape = dict[str | None, Any]
ANY = None  # whatever the name of a field

# A shape is a type, a range, what a text must match in full, the shapes of fields by name, or in a list that of each item.
SIZE = range(1 << 63)
COUNTS: Shape = {ANY: int}  # some are less than 0, as that of the bytes that another encoding adds
NOTE: Shape = {"bytes": SIZE, "sha256": str}
SOURCE: Shape = {"path": str, **NOTE}
CONFIG: Shape = {
    "corpus": dict,
    "embedding": {"dtype": object, "kind": object},
    "tokenizer": {"kind": object},
    "vocabulary": dict,
    "window": {"context_length": object, "mode": object},
}
EVERY: Shape = {
    "name": str,
    "rows": SIZE,
    "shift": str,
    "sources": [SOURCE],
    "config": CONFIG,
    "versions": dict,
    "tokenizer": dict,
    "embedding": object,
    "ledger": {ANY: COUNTS, "load": COUNTS, "encode": {**COUNTS, "tokens": SIZE, "bos": SIZE, "eos": SIZE}},
    "keys": {ANY: re.compile(r"[0-9a-f]{32}")},
}
OF_ROWS: Shape = {"ledger": {"window": {"slots": SIZE}}, "keys": {"window": str}}
OF_SPLITS: Shape = {"splits": {ANY: {"rows": SIZE, "ledger": COUNTS}}}


def read(path: Path, export: bool = False) -> Json | None:
    """The manifest of a dataset, or of an export, at `path`; None where it is missing or not as it was written.

    Raises IntegrityError as `require`, and where it was written by a newer version.
    """
    content = unseal(path)
    return content and require(content, str(path), export)


def require(content: Json, name: str, export: bool = False) -> Json:
    """What was unsealed, where it has the shape of a manifest; `name` is what errors call it. Raises IntegrityError."""
    if problem := _problem(content, export):
        raise IntegrityError(f"{name!r} {problem}; this pipeline writes no such manifest: remove the folder and make it again.")
    return content


def data_files(content: Json) -> list[str]:
    """The files of rows that the manifest of a dataset without splits lists, in the order of their rows."""
    return sorted(name for name in content["files"] if name.startswith("data-"))


def _problem(content: Json, export: bool) -> str | None:
    """What is wrong with a manifest, None for nothing."""
    if field := _wanting(content, {"files": {ANY: NOTE}}):
        return f"has no valid {field!r}"
    if outside := [name for name in content["files"] if not FILE.fullmatch(name)]:
        return f"lists {outside[0]!r}, which is not a file inside its folder"
    if export:
        return None
    splits = content.get("splits", {})
    of_rows = [name for name in content["files"] if ROWS.fullmatch(name)]
    counted = {name: {"rows": SIZE} for name in of_rows if "rows" in content["files"][name]}
    shapes = (EVERY, {"files": counted}, OF_SPLITS if splits != {} else OF_ROWS)
    if field := next((found for shape in shapes if (found := _wanting(content, shape))), None):
        return f"has no valid {field!r}"
    if unknown := [split for split in (*splits, content.get("split")) if split not in (*NAMES, None)]:
        return f"has a split {unknown[0]!r}"
    rows = [content["files"][name].get("rows", 0) for name in of_rows]
    if not rows or sum(rows) != content["rows"]:
        return f"says {content['rows']} rows, and {sum(rows)} of its files"
    return None


def _wanting(value: Any, shape: Any, name: str = "") -> str | None:
    """The dotted name of the first field that is missing, or is something else; None where there is none."""
    if isinstance(shape, type):
        return None if shape in (object, type(value)) else name
    if isinstance(shape, range):
        return None if type(value) is int and value in shape else name
    if isinstance(shape, re.Pattern):
        return None if isinstance(value, str) and shape.fullmatch(value) else name
    if not isinstance(value, type(shape)):
        return name
    if isinstance(shape, list):
        value, shape = dict(enumerate(value)), {ANY: shape[0]}
    for field in [field for field in shape if field is not ANY] + [*(value if ANY in shape else ())]:
        inside = f"{name}.{field}".lstrip(".")
        found = _wanting(value[field], shape.get(field, shape.get(ANY)), inside) if field in value else inside
        if found:
            return found
    return None
