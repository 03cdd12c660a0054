# /// script
# dependencies = ["litdata", "tokenizers"]
# ///
"""litdata: `optimize` over two processes, each given a range of the file, one tensor per document."""

import itertools
import json
import re
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from litdata import TokensLoader, optimize
from protocol import EOS, main
from tokenizers import Tokenizer


def encode(piece: tuple[Path, int, int], tokenizer: Path) -> Iterator[torch.Tensor]:
    """The IDs of each document in a range of bytes."""
    path, start, end = piece
    encoder = Tokenizer.from_file(str(tokenizer))
    end_mark = encoder.token_to_id(EOS)
    with path.open("rb") as file:
        file.seek(start)
        while file.tell() < end:
            ids = encoder.encode(json.loads(file.readline())["text"], add_special_tokens=False).ids
            yield torch.tensor([*ids, end_mark], dtype=torch.int32)


def prepare(options: Namespace) -> None:
    """Write chunks of 64 MB."""
    optimize(
        fn=partial(encode, tokenizer=options.tokenizer),
        inputs=ranges(options.input, options.workers),
        output_dir=str(options.out / "chunks"),
        chunk_bytes="64MB",
        num_workers=options.workers,
        item_loader=TokensLoader(block_size=1024),
    )


def ranges(path: Path, count: int) -> list[tuple[Path, int, int]]:
    """`count` ranges of about equal size that end behind a line."""
    size, edges = path.stat().st_size, [0]
    with path.open("rb") as file:
        for part in range(1, count):
            file.seek(size * part // count)
            file.readline()
            edges.append(file.tell())
    edges.append(size)
    return [(path, start, end) for start, end in itertools.pairwise(edges)]


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """Every chunk by worker and number: the count of items, their offsets, their IDs."""
    for path in sorted((folder / "chunks").glob("*.bin"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)]):
        data = np.fromfile(path, np.uint8)
        header = 4 * (2 + int(data[:4].view("<u4")[0]))
        yield data[header:].view("<i4")


if __name__ == "__main__":
    main(prepare, read_back)
