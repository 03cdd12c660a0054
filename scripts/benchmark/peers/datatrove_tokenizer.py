# /// script
# dependencies = ["datatrove[io,processing]"]
# ///
"""datatrove: a reader and the DocumentTokenizer under the local executor, documents in their order.

One task, as datatrove divides work by files and there is one, while the tokenizer's own threads take both cores: two
tasks on two halves ended no sooner.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from protocol import EOS, main


def prepare(options: Namespace) -> None:
    """Write a file of uint16 and its index."""
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(options.input.parent), glob_pattern=options.input.name),
            DocumentTokenizer(
                str(options.out / "tokens"),
                tokenizer_name_or_path=str(options.tokenizer),
                eos_token=EOS,
                shuffle_documents=False,
            ),
        ],
        tasks=1,
        logging_dir=str(options.out / "logs"),
    ).run()


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """Its files, by rank."""
    for path in sorted((folder / "tokens").glob("*.ds")):
        yield np.fromfile(path, "<u2")


if __name__ == "__main__":
    main(prepare, read_back)
