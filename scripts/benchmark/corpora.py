"""The texts that are measured, each as JSONL and as Parquet."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.environments import BenchmarkError

DOCUMENTS = 2000  # held at a time, and in a row group of the Parquet that is written


@dataclass(frozen=True)
class Corpus:
    """A text in both formats."""

    name: str
    jsonl: Path
    parquet: Path
    text_bytes: int
    documents: int

    def path(self, kind: str) -> Path:
        """The file of a format."""
        return self.parquet if kind == "parquet" else self.jsonl


def prepare(name: str, sources: list[Path], folder: Path, copies: int = 1, most: int | None = None) -> Corpus:
    """Write `sources` to `folder` as JSONL and Parquet, unless they lie there already.

    Where there are several `copies`, each has its documents in another order, drawn from a seed, and is written as it
    is drawn. At most `most` documents. Raises BenchmarkError where there is none.
    """
    origin = {"sources": [_sha256(path) for path in sources], "copies": copies, "most": most}
    jsonl, parquet, note = (folder / f"{name}.{suffix}" for suffix in ("jsonl", "parquet", "json"))
    known = json.loads(note.read_text()) if note.is_file() else {}
    if known.get("origin") != origin:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        known = {"origin": origin, **_write(_documents(sources, copies, most), jsonl, parquet)}
        note.write_text(json.dumps(known))
    return Corpus(name, jsonl, parquet, known["text_bytes"], known["documents"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(chunks: Iterable[list[str]], jsonl: Path, parquet: Path) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text_bytes = documents = 0
    schema = pa.schema([("text", pa.string())])
    with jsonl.open("wb") as lines, pq.ParquetWriter(parquet, schema) as table:
        for texts in chunks:
            for text in texts:
                lines.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                text_bytes += len(text.encode())
            table.write_batch(pa.record_batch([pa.array(texts, pa.string())], schema=schema))
            documents += len(texts)
    if not documents:
        raise BenchmarkError("the input holds no document.")
    return {"text_bytes": text_bytes, "documents": documents}


def _documents(sources: list[Path], copies: int, most: int | None) -> Iterator[list[str]]:
    import numpy as np

    left = most
    for copy in range(copies):
        chunks = (chunk for path in sources for chunk in _read(path))
        if copies > 1:
            texts = [text for chunk in chunks for text in chunk]
            order = np.random.default_rng([0, copy]).permutation(len(texts))
            chunks = ([texts[i] for i in order[at : at + DOCUMENTS]] for at in range(0, len(texts), DOCUMENTS))
        for chunk in chunks:
            yield chunk[:left]
            left = None if left is None else left - len(chunk)
            if left is not None and left <= 0:
                return


def _read(path: Path) -> Iterator[list[str]]:
    """The column `text` of Parquet or JSONL; of plain text, what stands between blank lines."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(DOCUMENTS, columns=["text"]):
            yield batch["text"].to_pylist()
        return
    waiting: list[str] = []
    with path.open(encoding="utf-8", newline="") as lines:
        for text in (json.loads(line)["text"] for line in lines) if path.suffix == ".jsonl" else _paragraphs(lines):
            waiting.append(text)
            if len(waiting) == DOCUMENTS:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    waiting: list[str] = []
    for line in lines:
        if line.strip():
            waiting.append(line)
        elif waiting:
            yield "".join(waiting)
            waiting = []
    if waiting:
        yield "".join(waiting)
