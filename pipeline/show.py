"""One row of a finished dataset as a person reads it.

python -m scripts.show outputs/verdict --row 3
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import console, files, window
from pipeline.arrow import read_batches, to_numpy
from pipeline.config import Window
from pipeline.errors import ConfigError, IntegrityError, from_os_error

SPACES = str.maketrans({"Ġ": "·", "Ċ": "⏎", "ĉ": "→", "▁": "·"})  # how byte-level and SentencePiece tokens spell white space


class Shown:
    """A finished dataset opened for looking at: manifest, vocabulary, documents, rows. Nothing of torch is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = files.unseal(folder / "manifest.json")
        if manifest is None:
            raise ConfigError(
                f"{str(folder)!r} is not a finished dataset of this pipeline: it has no manifest.json that is whole."
            )
        self.manifest = manifest
        known = {f: manifest["config"]["window"][f] for f in Window.__dataclass_fields__ if f in manifest["config"]["window"]}
        self.window = Window(**known)
        self.vocabulary = {i: token for token, i in json.loads(self.file("vocabulary.json").read_text("utf-8")).items()}
        self.documents = pa.Table.from_batches(list(read_batches(self.file("documents.arrow"))))

    def file(self, name: str) -> Path:
        """The path of a file, once its bytes are those that the manifest names. Raises IntegrityError."""
        note, path = self.manifest["files"].get(name), self.folder / name
        try:
            whole = note is not None and files.hash_file(path) == (note["bytes"], note["sha256"])
        except FileNotFoundError:
            whole = False
        except OSError as error:
            raise from_os_error(error, path) from error
        if not whole:
            raise IntegrityError(f"{str(path)!r} is not what its manifest says: run the pipeline again, it writes it anew.")
        return path

    def row(self, index: int) -> dict[str, Any]:
        """The columns of one row. Raises ConfigError where there is no such row."""
        rows = self.manifest["rows"]
        if not -rows <= index < rows:
            raise ConfigError(f"--row {index}: the dataset has rows 0 to {rows - 1}.")
        left = index % rows
        for name in sorted(n for n in self.manifest["files"] if n.startswith("data-")):
            if left >= self.manifest["files"][name]["rows"]:
                left -= self.manifest["files"][name]["rows"]
                continue
            for batch in read_batches(self.file(name)):
                if left < len(batch):
                    return {column: batch[column][left].as_py() for column in batch.schema.names if column != "embeddings"}
                left -= len(batch)
        raise IntegrityError(f"{str(self.folder)!r} holds fewer rows than its manifest says.")

    def origin(self, index: int) -> list[str]:
        """Where a row's text came from: file and byte range of each document that it touches."""
        lengths, starts = (np.concatenate([*map(to_numpy, self.documents[name].chunks)]) for name in ("tokens", "first"))
        first, stop = window.position(self.window, lengths, index % self.manifest["rows"])
        low = int(np.searchsorted(starts, first, "right")) - 1
        high = int(np.searchsorted(starts, stop - 1, "right")) - 1
        lines = [f"stream positions {first:,} to {stop:,}"]
        for document in range(low, min(high, low + 8) + 1):
            where = {name: self.documents[name][document].as_py() for name in ("source", "start", "end")}
            path = self.manifest["sources"][where["source"]]["path"]
            unit = "rows" if path.endswith(".parquet") else "bytes"
            lines.append(f"document {document:,}: {path!r} {unit} {where['start']:,} to {where['end']:,}")
        if high > low + 8:
            lines.append(f"and {high - low - 8} more documents")
        return lines

    def token(self, i: int) -> str:
        """The token of an ID, fit for a terminal."""
        return console.printable(self.vocabulary.get(i, f"[{i}]").translate(SPACES))

    def decode(self, ids: list[int]) -> str:
        """IDs as text, special tokens included."""
        from tokenizers import Tokenizer

        reader = Tokenizer.from_file(str(self.file("tokenizer/tokenizer.json")))
        return str(reader.decode(ids, skip_special_tokens=False))


def show(folder: Path, index: int, width: int | None = None) -> str:
    """A row drawn for a terminal: token strings and IDs, each target beneath the input that it follows."""
    shown = Shown(folder)
    row = shown.row(index)
    width = width or shutil.get_terminal_size((100, 24)).columns
    inputs, targets = row["input_ids"], row.get("target_ids")
    out = [
        f"row {index % shown.manifest['rows']:,} of {shown.manifest['rows']:,} in {os.fspath(folder)}",
        *shown.origin(index),
        "",
    ]
    lines = {"input": [shown.token(i) for i in inputs], "id": [str(i) for i in inputs]}
    if targets is not None:
        shift = len(inputs) - len(targets)
        lines["target"] = [""] * shift + [shown.token(i) for i in targets]
        lines["id "] = [""] * shift + [str(i) for i in targets]
    for name in ("attention_mask", "token_type_ids"):
        if name in row:
            lines[name.split("_")[0]] = [str(v) for v in row[name]]
    out += _columns(lines, width)
    out += ["", "text:", *("  " + console.printable(t) for t in shown.decode(inputs).splitlines())]
    return "\n".join(out)


def _columns(lines: dict[str, list[str]], width: int) -> list[str]:
    """Named rows of cells, aligned, folded at `width`."""
    label = max(map(len, lines)) + 2
    cells = list(zip(*lines.values(), strict=True))
    widths = [max(map(len, column)) + 1 for column in cells]
    out: list[str] = []
    start = 0
    while start < len(cells):
        stop, used = start, label
        while stop < len(cells) and (stop == start or used + widths[stop] <= width):
            used += widths[stop]
            stop += 1
        for place, name in enumerate(lines):
            text = "".join(cells[i][place].ljust(widths[i]) for i in range(start, stop))
            out.append(f"{name.strip():<{label}}{text}".rstrip())
        out.append("")
        start = stop
    return out[:-1]
