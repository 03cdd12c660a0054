"""Megatron-LM: `train.bin`, the IDs, and `train.idx`, where each document lies among them.

    .idx   "MMIDIDX\\0\\0"  u64 version 1  u8 dtype code  u64 sequences  u64 document indices
           i32 length of each sequence   i64 byte at which each begins   i64 document indices 0, 1, …, n

All little-endian. A sequence is a whole document, with its end mark. IDs are uint16 (code 8) where the vocabulary has
fewer than 65,500 entries, else int32 (code 4), as megatron-core chooses. Its `GPTDataset` cuts and shifts by itself.
Format: NVIDIA/Megatron-LM, `megatron/core/datasets/indexed_dataset.py`.
"""

import struct

import numpy as np

from pipeline.errors import ConfigError
from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json

NARROW = 65_500  # entries of a vocabulary from which megatron-core takes int32
MOST = 2**31 - 1


def write(source: Source, target: Target) -> Json:
    """Write a split, the index last. Raises ConfigError where an ID or the length of a document needs more than 31 bits."""
    positions, narrow = source.positions, source.vocab_size < NARROW
    dtype = np.dtype("<u2" if narrow else "<i4")
    if source.vocab_size > MOST:
        raise ConfigError(f"export: megatron holds IDs up to {MOST}, the vocabulary has {source.vocab_size}.")
    with target.create(f"{source.split}.bin") as file:
        for ids in source.stream():
            file.write(ids.astype(dtype, copy=False))
    count = sum(len(lengths) for lengths in source.documents())
    with target.create(f"{source.split}.idx") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8 if narrow else 4, count, count + 1))
        for lengths in source.documents():
            if int(lengths.max(initial=0)) > MOST:
                raise ConfigError(f"export: megatron holds documents of up to {MOST} IDs, one has {int(lengths.max())}.")
            file.write(lengths.astype("<i4"))
        at = 0
        for lengths in source.documents():
            ends = at + np.cumsum(lengths)
            file.write(((ends - lengths) * dtype.itemsize).astype("<i8"))
            at += int(lengths.sum())
        for first in range(0, count + 1, 1 << 20):
            file.write(np.arange(first, min(first + (1 << 20), count + 1), dtype="<i8"))
    return {"shape": "stream", "ids": positions, "left_out": source.tokens - positions, "documents": count}
