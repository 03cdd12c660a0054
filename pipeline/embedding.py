"""Stage `embed`: IDs become vectors by looking them up in tables.

    input_ids [L]          40     367    2885          one row of a window
    token_embeddings      [V, D]  row 40, row 367, row 2885
    position_embeddings + [L, D]  row 0,  row 1,   row 2
    embeddings [L, D]      the sum, in float32, rounded once more where embedding.dtype=float16

The tables are float32 whatever `embedding.dtype` is, since a training job starts from them; the dtype is that of
the written vectors alone. They are always saved, in `embeddings.safetensors`; the vectors, D × 4 bytes for an ID
of 1 to 4, only where they are wanted (`decide`).

**random.** Row i of a table is standard normal, as in a fresh `torch.nn.Embedding`. Each table has a child seed of
its own, so that neither its size nor the other table changes a row. Numbers are drawn in float64 and rounded to
float32, so that the last bit of a machine's logarithm does not show.

**pretrained.** The input-embedding tensor of a safetensors model, converted to float32, and only that: what a model
does to its embeddings afterwards (scaling, normalisation, token types) is the model's. `positions=learned` is
then the model's own position table, where it has one; a model with rotary positions has none.
"""

import json
import weakref
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import console
from pipeline.arrow import flat_list, flattened, list_values, to_numpy
from pipeline.config import Embedding
from pipeline.errors import ConfigError, IntegrityError, ResourceError, TokenizerError
from pipeline.model import POSITIONS, TOKENS, find, pretrained, safetensors

VERSION = 1
BLOCK = 8 << 20  # bytes of vectors in a batch, where a row is not longer
PIECE = 256 << 10  # bytes looked up and added at a time, so that they stay in a core's cache
FLOAT16_MAX = 65504.0

Floats = npt.NDArray[np.float32]
Tables = dict[str, Floats]
Lookup = Callable[[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[Any]], None]


class Writer(Protocol):
    """Anything that takes bytes."""

    def write(self, data: Any) -> int:
        """Append a contiguous buffer."""


# -- what is decided before anything is written -------------------------------------------------------------


def identity(e: Embedding, vectors: bool) -> dict[str, object]:
    """The settings that can change what this stage gives; `vectors` is what `decide` said.

    Budgets, the device and where a model was found are not among them: a pretrained tensor stands for itself, by
    its sha256. Raises what `tables` raises where the model cannot be had.
    """
    if e.kind == "none":
        return {"kind": "none"}
    common: dict[str, object] = {"kind": e.kind, "positions": e.positions, "vectors": e.dtype if vectors else None}
    if e.kind == "random":
        return common | {"embedding_dim": e.embedding_dim, "seed": e.seed}
    tensors = pretrained(e)
    return common | {name: tensor.identity() for name, tensor in tensors.items()}


def origin(e: Embedding) -> dict[str, object] | None:
    """For the manifest: name, commit and tensors of a pretrained model, else None. Never a local path."""
    if e.kind != "pretrained":
        return None
    tensors = pretrained(e)
    found = find(e)
    return {
        "name": Path(str(e.name)).name if found.revision is None else e.name,
        "revision": found.revision,
        "tensors": {name: tensor.name for name, tensor in tensors.items()},
    }


def embedding_dim(e: Embedding) -> int:
    """D, the width of a vector: configured, or the pretrained table's own; 0 for kind none."""
    if e.kind == "none":
        return 0
    return int(e.embedding_dim or 0) if e.kind == "random" else pretrained(e)[TOKENS].shape[1]


def vector_bytes(ids: int, embedding_dim: int, dtype: str) -> int:
    """Bytes of the vectors of `ids` IDs (rows × context_length where all rows are of one length).

    >>> vector_bytes(39 * 256, 64, "float32")
    2555904
    """
    return ids * embedding_dim * np.dtype(dtype).itemsize


def decide(e: Embedding, ids: int) -> tuple[bool, str]:
    """Whether the vectors of `ids` IDs are written, and the sentence that says so, with what they cost."""
    if e.kind == "none":
        return False, "no embedding"
    cost = vector_bytes(ids, embedding_dim(e), e.dtype)
    size, budget = console.size(cost), console.size(e.max_bytes)
    if e.vectors == "always":
        return True, f"vectors written: {size}, embedding.vectors=always"
    if e.vectors == "never":
        return False, f"vectors not written, embedding.vectors=never; they would take {size}"
    if cost <= e.max_bytes:
        return True, f"vectors written: {size}, within embedding.max_bytes ({budget})"
    return False, f"vectors not written: {size} is more than embedding.max_bytes ({budget}); embedding.vectors=always would"


# -- the tables ---------------------------------------------------------------------------------------------


def tables(e: Embedding, vocab_size: int, context_length: int) -> Tables:
    """`token_embeddings` [V, D] and, unless positions=none, `position_embeddings` [L, D], float32. Empty for kind none.

    V is `vocab_size`, or more where a pretrained table has spare rows. Raises TokenizerError where a pretrained
    model cannot be had, is smaller than the vocabulary or the window, or holds NaN or infinity; ConfigError where
    embedding_dim is not the model's; ResourceError where the memory does not suffice.
    """
    if e.kind == "none":
        return {}
    try:
        if e.kind == "random":
            dim = int(e.embedding_dim or 0)
            out = {TOKENS: normal(e.seed, 0, vocab_size, dim)}
        else:
            tensors = pretrained(e)
            rows, dim = tensors[TOKENS].shape
            if rows < vocab_size:
                raise TokenizerError(
                    f"embedding.name={e.name!r}: its table {tensors[TOKENS].name!r} has {rows} rows, the vocabulary "
                    f"{vocab_size} IDs, {rows} to {vocab_size - 1} without a vector. Use the model's own tokenizer."
                )
            out = {TOKENS: tensors[TOKENS].read()}
        if e.positions == "sinusoidal":
            out[POSITIONS] = sinusoidal(context_length, dim)
        elif e.positions == "learned" and e.kind == "random":
            out[POSITIONS] = normal(e.seed, 1, context_length, dim)
        elif e.positions == "learned":
            own = tensors[POSITIONS]
            if own.shape[0] < context_length:
                raise TokenizerError(
                    f"embedding.name={e.name!r} knows {own.shape[0]} positions, window.context_length={context_length}: lower "
                    "it, or set embedding.positions=sinusoidal or none."
                )
            out[POSITIONS] = own.read()[:context_length].copy()
        return out
    except MemoryError as error:
        raise ResourceError(
            f"not enough memory for tables of {vocab_size} and {context_length} rows of {dim} float32: lower "
            "embedding.embedding_dim, tokenizer.vocab_size or window.context_length."
        ) from error


def normal(seed: int, child: int, rows: int, dim: int) -> Floats:
    """[rows, dim] float32, standard normal, from PCG64 seeded with child `child` of `seed`.

    A longer table begins with the shorter one. numpy may change its stream in a later version (NEP 19); a golden
    test watches over that.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(child,))))
    out = np.empty((rows, dim), np.float32)
    step = max(1, PIECE // (8 * dim))
    for row in range(0, rows, step):
        part = out[row : row + step]
        part[...] = generator.standard_normal(part.shape)
    return out


def sinusoidal(length: int, dim: int) -> Floats:
    """[length, dim] float32: sin(p / 10000^(2i/dim)) in column 2i, its cosine in column 2i + 1.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5. The frequencies come from decimal arithmetic
    and the rest is float64, rounded once: a last bit in which two machines' `pow` differ would grow with p.

    >>> sinusoidal(2, 4).round(3).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8410000205039978, 0.5400000214576721, 0.009999999776482582, 1.0]]
    """
    frequencies = np.array([float(Decimal(10000) ** (Decimal(-column) / dim)) for column in range(0, dim, 2)])
    out = np.empty((length, dim), np.float32)
    step = max(1, PIECE // (8 * dim))
    for row in range(0, length, step):
        angles = np.arange(row, min(length, row + step), dtype=np.float64)[:, None] * frequencies
        out[row : row + step, 0::2] = np.sin(angles)
        out[row : row + step, 1::2] = np.cos(angles[:, : dim // 2])
    return out


def save(tables: Tables, file: Writer) -> None:
    """Write the tables as safetensors: names sorted, little-endian, data on an 8-byte border. Equal tables, equal bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(tables):
        shape, end = list(tables[name].shape), at + tables[name].nbytes
        entries[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}, end
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for name in sorted(tables):
        if tables[name].nbytes:
            file.write(np.ascontiguousarray(tables[name], "<f4"))


def load(path: Path) -> Tables:
    """The tables that `save` wrote, memory-mapped and read-only. Raises IntegrityError where they are something else."""
    try:
        found = safetensors(path)
    except TokenizerError as error:
        raise IntegrityError(str(error)) from error
    shapes = {name: tensor.shape for name, tensor in found.items()}
    if (
        TOKENS not in found
        or not shapes.keys() <= {TOKENS, POSITIONS}
        or any(tensor.dtype != "F32" or len(tensor.shape) != 2 for tensor in found.values())
        or len({shape[1] for shape in shapes.values()}) != 1
    ):
        described = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in found.values())
        raise IntegrityError(
            f"{str(path)!r}: expected {TOKENS} F32 [V, D] and perhaps {POSITIONS} F32 [L, D], found {described or 'nothing'}."
        )
    return {name: np.memmap(path, "<f4", "r", tensor.start, tensor.shape) for name, tensor in found.items()}


# -- looking up ---------------------------------------------------------------------------------------------


def schema(rows: pa.Schema, dim: int, dtype: str) -> pa.Schema:
    """The schema of what `embed` gives for batches of schema `rows`: `embeddings` comes last, metadata stays."""
    kind = rows.field("input_ids").type
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)
    vectors = pa.list_(vector, kind.list_size) if pa.types.is_fixed_size_list(kind) else pa.list_(vector)
    return rows.append(pa.field("embeddings", vectors))


def embed(batches: Iterable[pa.RecordBatch], tables: Tables, e: Embedding) -> Iterator[pa.RecordBatch]:
    """The same rows and columns, and `embeddings`: for input_ids of type fixed_size_list<uintN, L>
    fixed_size_list<fixed_size_list<float, D>, L>, for list<uintN> (rows that grow) list<fixed_size_list<float, D>>.

    Rows are cut into batches of about BLOCK bytes of vectors. The memory of a batch is used again once the
    batch and everything taken from it are gone. The bytes are the same on cpu and cuda: one addition in IEEE
    float32 and one rounding are the same everywhere. Raises TokenizerError naming the row where an ID has no
    vector, before any lookup; ConfigError where float16 cannot hold the tables.
    """
    tokens, positions = tables[TOKENS], tables.get(POSITIONS)
    dim, dtype = tokens.shape[1], np.dtype(e.dtype)
    if dtype == np.float16:
        largest = sum(max(float(table.max(initial=0)), -float(table.min(initial=0))) for table in tables.values())
        if largest > FLOAT16_MAX:
            raise ConfigError(
                f"embedding.dtype=float16 ends at {FLOAT16_MAX:.0f}, the tables reach {largest:.6g}: use float32."
            )
    look_up = _cuda(tables) if e.device == "cuda" else partial(_look_up, tokens, positions)
    buffers = _Buffers()
    before = 0
    for batch in batches:
        ids, offsets = _flat(batch["input_ids"])
        _require_vectors(ids, offsets, tables, before)
        row = 0
        while row < len(batch):
            limit = offsets[row] + BLOCK // (dim * dtype.itemsize)
            stop = max(row + 1, int(np.searchsorted(offsets, limit, "right")) - 1)
            borders = offsets[row : stop + 1] - offsets[row]
            places = np.arange(borders[-1]) - np.repeat(borders[:-1], np.diff(borders))
            out, buffer = buffers.take(int(borders[-1]) * dim, dtype)
            look_up(ids[offsets[row] : offsets[stop]], places, out.reshape(-1, dim))
            del out
            yield _with_vectors(batch.slice(row, stop - row), borders, buffer, dim, dtype)
            del buffer
            row = stop
        before += len(batch)


def lookup(ids: npt.NDArray[Any], tables: Tables, dtype: str) -> npt.NDArray[Any]:
    """Vectors [..., L, D] of IDs [..., L], bit for bit those that `embed` writes. Raises as `embed` does."""
    length = ids.shape[-1]
    flat, dim = ids.reshape(-1), tables[TOKENS].shape[1]
    _require_vectors(flat, np.arange(0, flat.size + 1, max(1, length)), tables, 0)
    out = np.empty((flat.size, dim), dtype)
    _look_up(tables[TOKENS], tables.get(POSITIONS), flat, np.arange(flat.size) % max(1, length), out)
    return out.reshape(*ids.shape, dim)


def _look_up(
    tokens: Floats, positions: Floats | None, ids: npt.NDArray[Any], places: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    """out[k] = tokens[ids[k]] + positions[places[k]], a piece at a time. All indices have been checked."""
    dim = tokens.shape[1]
    step = max(1, PIECE // (4 * dim))
    sums, added = np.empty((step, dim), np.float32), np.empty((step, dim), np.float32)
    for start in range(0, len(ids), step):
        target = out[start : start + step]
        piece = target if out.dtype == np.float32 else sums[: len(target)]
        # mode="clip" because numpy's default copies through a buffer of its own
        np.take(tokens, ids[start : start + step], axis=0, out=piece, mode="clip")
        if positions is not None:
            np.take(positions, places[start : start + step], axis=0, out=added[: len(target)], mode="clip")
            piece += added[: len(target)]
        if piece is not target:
            target[...] = piece


def _cuda(tables: Tables) -> Lookup:
    """The same on the GPU, in halves where its memory does not suffice."""
    import torch

    if not torch.cuda.is_available():
        raise ResourceError("embedding.device=cuda: torch sees no CUDA device. Set embedding.device=cpu.")
    try:
        on_device = {name: torch.tensor(table, device="cuda") for name, table in tables.items()}
    except torch.cuda.OutOfMemoryError as error:
        size = sum(table.nbytes for table in tables.values())
        raise ResourceError(
            f"embedding.device=cuda: tables of {size / 1e6:,.0f} MB do not fit. Set embedding.device=cpu."
        ) from error
    tokens, positions = on_device[TOKENS], on_device.get(POSITIONS)

    def look_up(ids: npt.NDArray[Any], places: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        vectors = tokens[torch.from_numpy(ids.astype(np.int64)).cuda()]
        if positions is not None:
            vectors += positions[torch.from_numpy(places).cuda()]
        result = torch.from_numpy(out)
        result.copy_(vectors.to(result.dtype))

    return partial(_in_halves, look_up, torch.cuda.OutOfMemoryError)


def _in_halves(
    look_up: Lookup,
    out_of_memory: type[Exception],
    ids: npt.NDArray[Any],
    places: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    """`look_up`, and where the device's memory does not suffice for all, for one half after the other."""
    try:
        look_up(ids, places, out)
        return
    except out_of_memory as error:
        if len(ids) < 2:
            raise ResourceError("embedding.device=cuda: out of memory for one vector. Set embedding.device=cpu.") from error
    half = len(ids) // 2
    for part in (slice(0, half), slice(half, None)):
        _in_halves(look_up, out_of_memory, ids[part], places[part], out[part])


def _flat(column: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The IDs of a list column end to end, and the borders of its rows (rows + 1), over the column's memory."""
    if not pa.types.is_fixed_size_list(column.type):
        return list_values(column)
    return to_numpy(flattened(column)), np.arange(len(column) + 1) * column.type.list_size


def _require_vectors(ids: npt.NDArray[Any], borders: npt.NDArray[np.int64], tables: Tables, before: int) -> None:
    """Raise TokenizerError where an ID or a position has no row; `before` rows came earlier."""
    rows = len(tables[TOKENS])
    if len(ids) and (ids.max() >= rows or ids.min() < 0):
        at = int(((ids >= rows) | (ids < 0)).argmax())
        row = before + int(np.searchsorted(borders, at, "right")) - 1
        raise TokenizerError(
            f"row {row}: ID {ids[at]} has no vector, the embedding table has {rows} rows. Use the model's own tokenizer."
        )
    if POSITIONS in tables and len(borders) > 1 and np.diff(borders).max() > len(tables[POSITIONS]):
        row = before + int(np.diff(borders).argmax())
        raise TokenizerError(
            f"row {row}: {np.diff(borders).max()} IDs, but the position table has {len(tables[POSITIONS])} rows: "
            "lower window.context_length or set embedding.positions=none."
        )


def _with_vectors(
    batch: pa.RecordBatch, borders: npt.NDArray[np.int64], buffer: pa.Buffer, dim: int, dtype: np.dtype[Any]
) -> pa.RecordBatch:
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(dtype), int(borders[-1]) * dim, [None, buffer])
    vectors = pa.FixedSizeListArray.from_arrays(flat, dim)
    kind = batch["input_ids"].type
    if pa.types.is_fixed_size_list(kind):
        column = pa.FixedSizeListArray.from_arrays(vectors, kind.list_size)
    else:
        column = flat_list(vectors, borders)
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=schema(batch.schema, dim, dtype.name))


class _Buffers:
    """Memory for vectors, given again once nothing refers to it: fresh pages cost as much as the lookup."""

    def __init__(self) -> None:
        self._known: list[tuple[npt.NDArray[np.uint8], weakref.ref[Any]]] = []

    def take(self, count: int, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], pa.Buffer]:
        """An array of `count` values and the Arrow buffer over the same memory, which keeps it taken."""
        size = count * dtype.itemsize
        free = [memory for memory, user in self._known if user() is None and memory.nbytes >= size]
        memory = free[0] if free else np.empty(max(size, BLOCK), np.uint8)
        view = memory[:size]
        others = [(other, user) for other, user in self._known if other is not memory]
        self._known = [*others[-2:], (memory, weakref.ref(view))]
        return memory[:size].view(dtype), pa.py_buffer(view)
