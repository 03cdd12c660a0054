# /// script
# dependencies = ["pyarrow", "numpy", "gigatoken>=0.10,<0.11"]
# ///
"""The yardstick: the same IDs in windows of 1,024, with nothing cached, hashed, synced or explained.

    JSONL ─▶ blocks of 8 MB on line ends ─▶ Arrow strings ─▶ gigatoken ─▶ IDs and end marks ─▶ windows ─▶ one Arrow file

Two threads, buffer to buffer; no Python object per document. What is left at the end, less than a window, goes
to `tail.npy` so that all IDs can be compared.
"""

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import awkward as ak
import gigatoken
import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from protocol import EOS, main

BLOCK = 8 << 20
WINDOW = 1024


def prepare(options: Namespace) -> None:
    """Write `windows.arrow` and `tail.npy`."""
    tokenizer = gigatoken.Tokenizer(str(options.tokenizer))
    end_mark = tokenizer.encode_batch([EOS], parallel=False)[0][0]
    source = pa.memory_map(str(options.input))
    text = source.read_buffer(source.size())
    schema = pa.schema([("input_ids", pa.list_(pa.uint16(), WINDOW))])
    rest = np.empty(0, np.uint16)
    with (
        pa.OSFile(str(options.out / "windows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        for ids in in_order(pool, options.workers + 1, lambda block: encode(tokenizer, block, end_mark), blocks(text)):
            ids = np.concatenate([rest, ids])
            whole = len(ids) // WINDOW * WINDOW
            rest = ids[whole:].copy()
            values = pa.Array.from_buffers(pa.uint16(), whole, [None, pa.py_buffer(ids)])
            writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(values, WINDOW)], schema=schema))
    np.save(options.out / "tail.npy", rest)


def blocks(text: pa.Buffer) -> Iterator[pa.Buffer]:
    """Pieces of about BLOCK bytes that end behind a line."""
    view, start = memoryview(text), 0
    while start < len(view):
        end = min(start + BLOCK, len(view))
        while end < len(view) and (line_end := bytes(view[end : end + (1 << 16)]).find(b"\n")) < 0:
            end = min(end + (1 << 16), len(view))
        end = min(end + line_end + 1, len(view)) if end < len(view) else end
        yield text.slice(start, end - start)
        start = end


def in_order(
    pool: Executor, ahead: int, function: Callable[[pa.Buffer], np.ndarray], items: Iterable[pa.Buffer]
) -> Iterator[np.ndarray]:
    """The results of `function`, in order, with at most `ahead` begun and not yet taken."""
    begun: deque[Future[np.ndarray]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def encode(tokenizer: gigatoken.Tokenizer, block: pa.Buffer, end_mark: int) -> np.ndarray:
    """The IDs of a block's documents, uint16, an end mark behind each."""
    own_ids, edges = tokenize(tokenizer, parse(block))
    lengths = np.diff(edges)
    ids = np.full(len(own_ids) + len(lengths), end_mark, np.uint16)
    own = np.ones(len(ids), bool)
    own[np.cumsum(lengths + 1) - 1] = False
    ids[own] = own_ids
    return ids


def parse(block: pa.Buffer) -> pa.StringArray:
    """The documents of a block."""
    options = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
    return pj.read_json(pa.BufferReader(block), read_options=options)["text"].combine_chunks()


def tokenize(tokenizer: gigatoken.Tokenizer, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """IDs end to end, and the edges between documents."""
    _, offsets, characters = text.buffers()
    strings = ak.contents.ListOffsetArray(
        ak.index.Index64(np.frombuffer(offsets, np.int32, len(text) + 1).astype(np.int64)),
        ak.contents.NumpyArray(np.frombuffer(characters, np.uint8), parameters={"__array__": "char"}),
        parameters={"__array__": "string"},
    )
    encoded = tokenizer.encode_batch(ak.Array(strings), parallel=False).layout
    edges = np.asarray(encoded.offsets.data).astype(np.int64)
    return np.asarray(encoded.content.data)[edges[0] : edges[-1]], edges


def read_back(folder: Path) -> Iterator[np.ndarray]:
    """The windows, then the tail."""
    for batch in pa.ipc.open_stream(pa.memory_map(str(folder / "windows.arrow"))):
        yield np.asarray(batch["input_ids"].flatten())
    yield np.load(folder / "tail.npy")


if __name__ == "__main__":
    main(prepare, read_back)
