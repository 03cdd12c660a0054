"""What one core can do of each thing alone, in the probe's environment; figures as JSON on stdout.

`parse` and `tokenize` in seconds for the whole input; `copy`, `hash` and `write` in bytes per second, the last with
the flush to disk.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import gigatoken
import numpy as np
import pyarrow as pa
from probe import blocks, parse, tokenize

PIECE, PIECES = 1 << 20, 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = gigatoken.Tokenizer(str(options.tokenizer))
    source = pa.memory_map(str(options.input))
    spent = {"parse": 0.0, "tokenize": 0.0}
    for block in blocks(source.read_buffer(source.size())):
        started = time.perf_counter()
        text = parse(block)
        parsed = time.perf_counter()
        tokenize(tokenizer, text)
        spent["parse"] += parsed - started
        spent["tokenize"] += time.perf_counter() - parsed
    print(json.dumps(spent | rates(options.out)))


def rates(folder: Path) -> dict[str, float]:
    """Bytes per second."""
    data = np.random.default_rng(0).integers(0, 256, (PIECES, PIECE), np.uint8)
    other = np.zeros_like(data)
    marks = [time.perf_counter()]
    np.copyto(other, data)
    marks.append(time.perf_counter())
    sha = hashlib.sha256()
    for piece in data:
        sha.update(piece)
    marks.append(time.perf_counter())
    path = folder / "written"
    with path.open("wb", buffering=0) as file:
        for piece in data:
            file.write(piece)
        os.fsync(file.fileno())
    marks.append(time.perf_counter())
    path.unlink()
    return {
        name: data.size / (end - start) for name, start, end in zip(("copy", "hash", "write"), marks, marks[1:], strict=False)
    }


if __name__ == "__main__":
    main()
