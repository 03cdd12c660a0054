# /// script
# dependencies = ["mosaicml-streaming", "tokenizers", "numpy"]
# ///
"""mosaicml-streaming: an MDSWriter of windows of 1,024, as llm-foundry converts a text dataset."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torchvision_stub  # noqa: F401
from protocol import EOS, main
from streaming import LocalDataset, MDSWriter
from tokenizers import Tokenizer

WINDOW = 1024


def prepare(options: Namespace) -> None:
    """Write shards of 64 MB; the last window may be shorter, so that no ID is lost."""
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    end_mark = tokenizer.token_to_id(EOS)
    with MDSWriter(out=str(options.out / "mds"), columns={"tokens": "ndarray:int32"}, size_limit=1 << 26) as writer:
        buffer: list[int] = []
        for batch in batches(options.input, 1000):
            for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                buffer += [*encoded.ids, end_mark]
                whole = len(buffer) // WINDOW * WINDOW
                for start in range(0, whole, WINDOW):
                    writer.write({"tokens": np.array(buffer[start : start + WINDOW], np.int32)})
                del buffer[:whole]
        if buffer:
            writer.write({"tokens": np.array(buffer, np.int32)})


def batches(path: Path, size: int) -> Iterator[list[str]]:
    """The documents, `size` at a time."""
    waiting: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            waiting.append(json.loads(line)["text"])
            if len(waiting) == size:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """Every window, through streaming's own reader."""
    dataset = LocalDataset(str(folder / "mds"))
    for index in range(len(dataset)):
        yield dataset[index]["tokens"]


if __name__ == "__main__":
    main(prepare, read_back)
