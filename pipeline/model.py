"""One tensor of somebody's model: the table that turns IDs into vectors, without loading the model.

    embedding.name ─▶ folder or Hub ─▶ model.safetensors(.index.json) ─▶ header ─▶ name, shape, place of the tensor

`assets.py` says where a model is looked for. Only safetensors is read: a pickle may run code. From the Hub only the
file that holds the tensor is downloaded, and of a file only the tensor's bytes are read.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.config import Embedding
from pipeline.errors import ConfigError, TokenizerError, from_os_error

TOKENS = "token_embeddings"
POSITIONS = "position_embeddings"
PIECE = 256 << 10  # bytes converted at a time
HEADER_LIMIT = 100 << 20  # bytes of JSON in a safetensors file, the format's own limit
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: the upper half of a float32

# Endings of the names of input-embedding tensors, the surest first.
TOKEN_TENSORS = (
    "shared.weight",  # T5, BART
    "wte.weight",  # GPT-2, GPT-J, MPT
    "embed_tokens.weight",  # Llama, Qwen, Gemma, OPT
    "tok_embeddings.weight",  # Llama as published by Meta
    "embed_in.weight",  # GPT-NeoX, Pythia
    "word_embeddings.weight",  # BERT and its kin, BLOOM, Falcon
)
# model_type -> ending of its position table, for the models whose first position is row 0 (RoBERTa's is not).
POSITION_TENSORS = {
    "gpt2": "wpe.weight",
    "bert": "embeddings.position_embeddings.weight",
    "distilbert": "embeddings.position_embeddings.weight",
    "electra": "embeddings.position_embeddings.weight",
}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in a safetensors file. Nothing is read before it is asked for."""

    path: Path
    name: str
    dtype: str  # as the format names it: F32, BF16, …
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def _raw(self) -> npt.NDArray[Any]:
        return np.memmap(self.path, STORED[self.dtype], "r", self.start, self.shape)

    def identity(self) -> dict[str, object]:
        """dtype, shape and sha256 of the stored bytes."""
        sha = hashlib.sha256(self._raw.data)
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": sha.hexdigest()}

    def read(self) -> npt.NDArray[np.float32]:
        """The tensor as float32, exact but for float64. Raises TokenizerError naming the first row with NaN or infinity."""
        raw, out = self._raw, np.empty(self.shape, np.float32)
        step = max(1, PIECE // (4 * self.shape[1]))
        for row in range(0, self.shape[0], step):
            part = out[row : row + step]
            with np.errstate(over="ignore"):  # a float64 too large becomes infinity, which is refused below
                if self.dtype == "BF16":
                    np.left_shift(raw[row : row + step], 16, out=part.view(np.uint32), dtype=np.uint32)
                else:
                    part[...] = raw[row : row + step]
            finite = np.isfinite(part).all(axis=1)
            if not finite.all():
                raise TokenizerError(
                    f"{str(self.path)!r}: row {row + int(finite.argmin())} of {self.name!r} holds NaN or infinity in float32."
                )
        return out


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, from its header alone. Raises TokenizerError where it is not one.

    The format: 8 bytes of header length, little-endian; a JSON header; the data.
    https://huggingface.co/docs/safetensors#format
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length))
        found = {}
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            (start, stop), shape = map(int, entry["data_offsets"]), tuple(map(int, entry["shape"]))
            if not 0 <= start <= stop <= size - 8 - length or min(shape, default=0) < 0:
                raise ValueError(f"tensor {name!r} reaches outside the file of {size} bytes")
            dtype = str(entry["dtype"])
            if dtype in STORED and stop - start != prod(shape) * np.dtype(STORED[dtype]).itemsize:
                raise ValueError(f"tensor {name!r} has {stop - start} bytes, not those of {dtype} {list(shape)}")
            found[name] = Tensor(path, name, dtype, shape, 8 + length + start)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"{str(path)!r} is not a whole safetensors file: {error}.") from error
    except OSError as error:
        raise from_os_error(error, path) from error


@dataclass(frozen=True)
class Model:
    """A model's files, wherever they are; `fetch` gives the local path of one."""

    place: str
    files: frozenset[str]
    fetch: Callable[[str], Path]
    revision: str | None = None  # commit on the Hub

    def tensor_files(self) -> dict[str, str]:
        """Tensor name -> file. Raises TokenizerError where there is no safetensors."""
        try:
            if "model.safetensors.index.json" in self.files:
                index = json.loads(self.fetch("model.safetensors.index.json").read_bytes())["weight_map"]
                missing = sorted(set(index.values()) - self.files)
                if missing:
                    raise TokenizerError(f"{self.place}: its index names {missing[0]!r}, which is not there.")
                return dict(index)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise TokenizerError(f"{self.place}: model.safetensors.index.json is not an index of tensors.") from error
        names = sorted(name for name in self.files if name.endswith(".safetensors"))
        name = "model.safetensors" if "model.safetensors" in names else names[0] if len(names) == 1 else None
        if name is None and names:
            raise TokenizerError(
                f"{self.place} holds several safetensors files and no index: name one, as in embedding.name={names[0]}."
            )
        if name is None:
            pickled = sorted(name for name in self.files if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
            found = f"only {pickled[0]}, a pickle, which may run code" if pickled else "none"
            raise TokenizerError(
                f"{self.place}: embedding needs *.safetensors, found {found}. Convert it: "
                "AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors."
            )
        return dict.fromkeys(safetensors(self.fetch(name)), name)

    def model_type(self) -> str | None:
        """`model_type` of config.json, where there is one."""
        try:
            found = json.loads(self.fetch("config.json").read_bytes()) if "config.json" in self.files else {}
            return str(found["model_type"]) if "model_type" in found else None
        except (ValueError, TypeError) as error:
            raise TokenizerError(f"{self.place}: config.json is not JSON.") from error


def pretrained(e: Embedding) -> dict[str, Tensor]:
    """The model's token table and, for positions=learned, its position table; headers alone are read."""
    model = find(e)
    files = model.tensor_files()
    name = e.tensor or _token_tensor(model, files)
    if name not in files:
        raise TokenizerError(f"{model.place} has no tensor embedding.tensor={e.tensor!r}. {_candidates(files)}")
    wanted = {TOKENS: name}
    if e.positions == "learned":
        kind = model.model_type()
        ending = POSITION_TENSORS.get(kind or "")
        matches = _ending(files, ending) if ending else []
        if len(matches) != 1:
            raise TokenizerError(
                f"{model.place} (model_type {kind or 'unknown'}) has no position table that we know of: "
                "set embedding.positions=none or sinusoidal."
            )
        wanted[POSITIONS] = matches[0]
    found = {}
    for role, name in wanted.items():
        tensor = safetensors(model.fetch(files[name])).get(name)
        if tensor is None:
            raise TokenizerError(f"{model.place}: {files[name]} lacks tensor {name!r}, which the index promises.")
        if tensor.dtype not in STORED or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise TokenizerError(
                f"{model.place}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; a table [rows, dim] of "
                f"{', '.join(STORED)} is needed. {_candidates(files)}"
            )
        found[role] = tensor
    dims = {role: tensor.shape[1] for role, tensor in found.items()}
    if len(set(dims.values())) != 1:
        raise TokenizerError(
            f"{model.place}: tokens have {dims[TOKENS]} columns, positions {dims[POSITIONS]}: set embedding.positions=none."
        )
    if e.embedding_dim not in (None, dims[TOKENS]):
        raise ConfigError(
            f"embedding.embedding_dim={e.embedding_dim}, but {found[TOKENS].name!r} of {model.place} has {dims[TOKENS]} "
            "columns: set embedding.embedding_dim=null."
        )
    return found


def _ending(names: Iterable[str], ending: str) -> list[str]:
    return [name for name in names if name == ending or name.endswith("." + ending)]


def _token_tensor(model: Model, files: dict[str, str]) -> str:
    for ending in TOKEN_TENSORS:
        matches = _ending(files, ending)
        if len(matches) == 1:
            return matches[0]
        if matches:
            break
    raise TokenizerError(
        f"cannot tell the input-embedding tensor of {model.place}: set embedding.tensor=. {_candidates(files)}"
    )


def _candidates(names: Iterable[str]) -> str:
    """The tensors that look most like a table, for an error message."""
    likely = sorted(names, key=lambda name: (not re.search(r"emb|wte|shared", name), not name.endswith("weight"), name))
    return f"It has: {', '.join(likely[:8])}{', …' if len(likely) > 8 else ''}."


def find(e: Embedding) -> Model:
    """The model that embedding.name asks for. Raises TokenizerError where it is nowhere, see `assets.find`."""
    name = str(e.name)
    return assets.find("model", "embedding", name, e.revision, partial(_at, name), lambda: _on_hub(name, e.revision))


def _at(name: str, place: Path) -> Model | None:
    if place.is_dir():
        return Model(repr(name), frozenset(item.name for item in place.iterdir()), partial(Path, place))
    return Model(repr(name), frozenset([place.name]), partial(Path, place.parent)) if place.is_file() else None


@lru_cache
def _on_hub(name: str, revision: str | None) -> Model:
    found = assets.repository(name, revision, ("model.safetensors.index.json", "model.safetensors"))
    return Model(f"{name!r} on the Hub", found.files, found.fetch, found.commit)
