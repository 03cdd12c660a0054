# /// script
# dependencies = ["megatron-core", "torch", "numpy", "tokenizers"]
# ///
"""Megatron-LM's way to preprocess data: a pool of two encoders and megatron-core's IndexedDatasetBuilder."""

import json
import multiprocessing
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from protocol import EOS, main
from tokenizers import Tokenizer


class Encoder:
    """One process's tokenizer."""

    tokenizer: Tokenizer
    end_mark: int

    @classmethod
    def start(cls, path: Path) -> None:
        """Load it, once per process."""
        cls.tokenizer = Tokenizer.from_file(str(path))
        cls.end_mark = cls.tokenizer.token_to_id(EOS)

    @classmethod
    def encode(cls, line: str) -> list[int]:
        """The IDs of one document."""
        return [*cls.tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids, cls.end_mark]


def prepare(options: Namespace) -> None:
    """Write `text.bin` and `text.idx`."""
    size = Tokenizer.from_file(str(options.tokenizer)).get_vocab_size()
    builder = IndexedDatasetBuilder(str(options.out / "text.bin"), dtype=DType.optimal_dtype(size))
    with (
        options.input.open(encoding="utf-8") as lines,
        multiprocessing.Pool(options.workers, initializer=Encoder.start, initargs=(options.tokenizer,)) as pool,
    ):
        for ids in pool.imap(Encoder.encode, lines, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(str(options.out / "text.idx"))


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """Every sequence, through Megatron's own reader."""
    dataset = IndexedDataset(str(folder / "text"))
    for index in range(len(dataset)):
        yield dataset[index]


if __name__ == "__main__":
    main(prepare, read_back)
