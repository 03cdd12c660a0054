# /// script
# dependencies = ["datasets", "numpy", "tiktoken", "tqdm"]
# ///
"""nanoGPT's way to prepare data: `datasets.map` over two processes with tiktoken, then one memmap of uint16."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken
from datasets import load_dataset
from protocol import EOS, main
from tqdm import tqdm

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""  # tiktoken's own for gpt2


def gpt2(path: Path) -> tiktoken.Encoding:
    """tiktoken's gpt2 from a tokenizer.json: its IDs are the ranks, its characters stand for bytes."""
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    byte_of = {chr(b): b for b in shown}
    byte_of |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in shown)}
    special = {EOS: vocabulary.pop(EOS)}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def prepare(options: Namespace) -> None:
    """Write `train.bin`."""
    encoding = gpt2(options.tokenizer)

    def process(example: dict[str, str]) -> dict[str, object]:
        ids = encoding.encode_ordinary(example["text"])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    dataset = load_dataset("json", data_files=str(options.input), split="train", cache_dir=str(options.out / "cache"))
    tokenized = dataset.map(process, remove_columns=dataset.column_names, num_proc=options.workers)
    stream = np.memmap(options.out / "train.bin", np.uint16, "w+", shape=(sum(tokenized["len"]),))
    start, pieces = 0, min(1024, len(tokenized))
    for piece in tqdm(range(pieces)):
        batch = tokenized.shard(num_shards=pieces, index=piece, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        stream[start : start + len(ids)] = ids
        start += len(ids)
    stream.flush()


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """The one file."""
    yield np.memmap(folder / "train.bin", "<u2", "r")


if __name__ == "__main__":
    main(prepare, read_back)
