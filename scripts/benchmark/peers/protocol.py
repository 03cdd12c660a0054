"""The two commands that every peer answers: prepare, which is measured, and `--check`, which is not.

    python PEER.py --input corpus.jsonl --tokenizer tokenizer.json --out folder
    python PEER.py --input corpus.jsonl --tokenizer tokenizer.json --out folder --check

The second reads back what the first wrote and prints the number of IDs and the sha256 of the stream as
little-endian uint16, so that every ID of every peer can be compared.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

EOS = "<|endoftext|>"


def main(prepare: Callable[[argparse.Namespace], None], read_back: Callable[[Path], Iterable[Any]]) -> None:
    """Do what the command line says; `read_back(folder)` yields the IDs in order as numpy integer arrays."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True, help="JSONL with a column `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        print(json.dumps(digest(read_back(options.out))))
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        prepare(options)


def digest(arrays: Iterable[Any]) -> dict[str, Any]:
    """Number and sha256 of the IDs in numpy integer arrays. Raises OverflowError where one needs more than two bytes."""
    sha, tokens = hashlib.sha256(), 0
    for ids in arrays:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 16:
            raise OverflowError("an ID does not fit two bytes")
        sha.update(ids.astype("<u2").tobytes())
        tokens += len(ids)
    return {"tokens": tokens, "sha256": sha.hexdigest()}
