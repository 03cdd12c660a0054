# /// script
# dependencies = ["datasets", "tokenizers"]
# ///
"""The `datasets` idiom, lean: one batched `map` from text to IDs, nothing else kept, saved to disk.

One process, as the tokenizer's own threads take both cores: two processes took half as much processor time again and
ended no sooner.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Features, List, Value, load_dataset, load_from_disk
from protocol import EOS, main
from tokenizers import Tokenizer


def prepare(options: Namespace) -> None:
    """Write a dataset of one list of int32 per document. A tokenizer without an end mark gets none."""
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.encode_special_tokens = True  # a literal [MASK] in the text is text, as everywhere in this comparison
    end_mark = tokenizer.token_to_id(EOS)
    end = [] if end_mark is None else [end_mark]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [one.ids + end for one in encoded]}

    dataset = load_dataset("json", data_files=str(options.input), split="train", cache_dir=str(options.out / "cache"))
    features = Features({"input_ids": List(Value("int32"))})
    dataset = dataset.map(encode, batched=True, remove_columns=dataset.column_names, features=features)
    dataset.save_to_disk(str(options.out / "dataset"))


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """The lists end to end."""
    for batch in load_from_disk(str(folder / "dataset")).with_format("arrow").iter(1000):
        yield batch["input_ids"].combine_chunks().flatten().to_numpy()


if __name__ == "__main__":
    main(prepare, read_back)
