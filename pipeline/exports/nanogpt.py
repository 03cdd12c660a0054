"""nanoGPT: `train.bin` and `val.bin`, the stream as little-endian uint16, without a header.

Its `get_batch` maps the file, cuts `block_size + 1` IDs anywhere and shifts them itself. It evaluates on `val.bin`,
which is the split `validation`. Format: karpathy/nanoGPT, `data/openwebtext/prepare.py` and `train.py`.
"""

from pipeline.errors import ConfigError
from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json

NAMES = {"validation": "val"}


def write(source: Source, target: Target) -> Json:
    """Write a split. Raises ConfigError at an ID above 65,535."""
    positions = source.positions
    with target.create(f"{NAMES.get(source.split, source.split)}.bin") as file:
        for ids in source.stream():
            if source.dtype.itemsize > 2 and len(ids) and (most := int(ids.max())) > 0xFFFF:
                raise ConfigError(f"export: nanogpt holds IDs up to 65,535, and here is {most:,}: export to megatron.")
            file.write(ids.astype("<u2", copy=False))
    return {"shape": "stream", "ids": positions, "left_out": source.tokens - positions}
