"""Opening a finished dataset, and taking rows from it. `loader.py` feeds them to a training job.

    from pipeline import open_dataset

    dataset = open_dataset("outputs/verdict")        # map-style: len(dataset), dataset[3]["input_ids"]
    loader = dataset.loader(batch_size=8, seed=1)    # shuffled batches {"input_ids": [8, L], "target_ids": [8, L]}
    for batch in loader:
        ...
    torch.save(loader.state_dict(), "loader.pt")     # {"seed": 1, "epoch": 0, "samples": 2048}

Rows stay in memory-mapped Arrow files; nothing is copied before the cast to int64. `target_ids` is already shifted.

**What is verified.** Opening checks the manifest's own seal and the size of every file it names. A data file is
hashed when one of its rows is first asked for, the first of them at opening, since it tells the columns
(`verify="touch"`), all files at once (`verify="full"`), or never (`verify="sizes"`). Whatever differs is an
IntegrityError naming the file, what was expected and what was found.
"""

import copy
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import embedding, engine, manifests
from pipeline.arrow import flattened, read_batches, read_schema, row_offsets, to_numpy
from pipeline.errors import ConfigError, IntegrityError, from_os_error
from pipeline.files import Json, Stat, digest, require_whole, stat_of
from pipeline.model import TOKENS
from pipeline.split import ordered
from pipeline.stores import is_url

if TYPE_CHECKING:
    import torch

    from pipeline.bucket import Mirror
    from pipeline.documents import Documents
    from pipeline.loader import Loader

VERIFY = ("touch", "full", "sizes")

Sample = dict[str, "torch.Tensor"]


def open_dataset(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    verify: str = "touch",
    split: str | None = None,
    scratch: str | os.PathLike[str] = "data/scratch",
) -> "WindowDataset":
    """A finished dataset, `outputs/<name>`; where it has splits, one of them, which is the folder `outputs/<name>/<split>`.

    `path` may be the address of one in a store, `s3://bucket/name`: its files are fetched to the folder `scratch` as they
    are touched, see bucket.py.

    `columns` names the columns to give, by default all but `embeddings`, whose rows are hundreds of times as large.
    Raises ConfigError where `path` is no dataset or has no such column, IntegrityError where its files are not
    those of its manifest.
    """
    if is_url(str(path)):
        from pipeline.bucket import Mirror

        whole = Mirror(str(path), scratch)
        require_split(whole.folder, split, str(path))
        mirror = whole.split(split)
        return WindowDataset(mirror.folder, columns, verify, mirror)
    if split is not None:
        require_split(Path(path), split)
        path = Path(path) / split
    return WindowDataset(path, columns, verify)


def require_split(path: Path, split: str | None, called: str | None = None) -> None:
    """Raise ConfigError where the dataset at `path` has no such split, or has splits and none is named.

    The error calls it `called`, by default by its path.
    """
    manifest = manifests.read(path / "manifest.json") or {}
    name = called or str(path)
    known = [each for each, _ in ordered(manifest.get("splits", {}))]
    if known and split not in known:
        raise ConfigError(f"{name!r} has the splits {', '.join(known)}: open one of them, as in split={known[0]!r}.")
    if manifest and not known and split is not None:
        raise ConfigError(f"{name!r} has no splits: leave out split={split!r}.")


class WindowDataset:
    """Rows of windows, by number: what torch calls a map-style dataset. Picklable: a copy opens the files again.

    `dataset[i]` is a dict of tensors: IDs and masks int64 of shape (context_length,), or of the row's own length
    with window.mode=prefix; `embeddings` float of shape (context_length, embedding_dim), where asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str] | None = None,
        verify: str = "touch",
        mirror: "Mirror | None" = None,
    ) -> None:
        if verify not in VERIFY:
            raise ConfigError(f"verify={verify!r} is not one of {', '.join(VERIFY)}.")
        self._mirror = mirror  # whence its files are fetched
        self._set_up(Path(path).absolute(), columns, verify, {})
        if verify == "full":
            for name in self.manifest["files"]:
                self._require_hash(name)

    def select(self, columns: Sequence[str]) -> "WindowDataset":
        """The same rows with these columns; nothing is hashed again. Raises ConfigError where there is no such column."""
        other = copy.copy(self)
        other._choose(columns)
        return other

    def _set_up(self, path: Path, columns: Sequence[str] | None, verify: str, hashed: dict[str, Stat]) -> None:
        self.path, self.verify = path, verify
        self._hashed = hashed  # file -> what stat said when its hash was found right
        self.manifest = self._read_manifest()
        if self._mirror is not None:
            self._mirror.require_sizes()
        else:
            for name in self.manifest["files"]:
                self._require_size(name)
        self._names = manifests.data_files(self.manifest)
        rows = [self.manifest["files"][name].get("rows", 0) for name in self._names]
        self._starts: list[int] = [0, *np.cumsum(rows, dtype=np.int64).tolist()]
        self._files: list[_File | None] = [None] * len(rows)
        self._untouched = len(rows)
        self.schema = self._open(0).schema
        self._choose([name for name in self.schema.names if name != "embeddings"] if columns is None else columns)

    def _choose(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        if missing := [name for name in self.columns if name not in self.schema.names]:
            raise ConfigError(f"{str(self.path)!r} has no column {missing[0]!r}; it has {', '.join(self.schema.names)}.")

    # -- rows

    def __len__(self) -> int:
        """How many windows."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Row `index`; negative ones count from the end. Raises IndexError beyond the ends."""
        block, row = self._locate(index)
        return {name: _tensor(block[name][row]) for name in self.columns}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Rows as a list of samples, which share the memory of one batch: what torch's DataLoader asks for."""
        if not self.fixed:
            return [self[index] for index in indices]
        batch = self.batch(indices)
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]

    def batch(self, indices: Sequence[int]) -> Sample:
        """Rows stacked: a dict of tensors [len(indices), L]. Each row is read once, and cast as it is copied.

        Raises ConfigError where rows differ in length (window.mode=prefix).
        """
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays(indices, cast=True).items()}

    def arrays(self, indices: Sequence[int], cast: bool = False) -> dict[str, npt.NDArray[Any]]:
        """`batch` as numpy arrays, in the dtypes in which they are stored unless `cast`; torch is not needed."""
        if not self.fixed:
            raise ConfigError("rows of window.mode=prefix differ in length: take them one by one and pad them as you need.")
        self._touch(indices)
        rows = [self._locate(index) for index in indices]
        out = {}
        for name in self.columns:
            like = rows[0][0][name]
            stacked = np.empty((len(rows), *like.shape[1:]), _given(like.dtype) if cast else like.dtype)
            for place, (block, row) in enumerate(rows):
                stacked[place] = block[name][row]
            out[name] = stacked
        return out

    def record_batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop) in order, all columns, as they lie in the memory-mapped files; nothing of torch is needed."""
        stop = len(self) if stop is None else stop
        for number, name in enumerate(self._names):
            at = self._starts[number]
            if start < self._starts[number + 1] and at < stop:
                for batch in read_batches(self.verified(name)):
                    first, last = max(start - at, 0), min(stop - at, len(batch))
                    if first < last:
                        yield batch.slice(first, last - first)
                    at += len(batch)

    @property
    def fixed(self) -> bool:
        """Are all rows of one length?"""
        return not any(pa.types.is_list(self.schema.field(name).type) for name in self.columns)

    @property
    def files(self) -> list[str]:
        """The names of its data files, in the order of their rows."""
        return list(self._names)

    @property
    def shift(self) -> str:
        """The convention by which `target_ids` follows `input_ids`, in words."""
        return str(self.manifest["shift"])

    # -- vectors

    @cached_property
    def tables(self) -> embedding.Tables:
        """The saved embedding tables, by name. Raises ConfigError where there are none."""
        name = "embeddings.safetensors"
        if name not in self.manifest["files"]:
            raise ConfigError(f"{str(self.path)!r} has no embedding tables: it was prepared with embedding=none.")
        return embedding.load(self.verified(name))

    def embedding_layer(self, freeze: bool = False) -> "torch.nn.Embedding":
        """A torch.nn.Embedding [V, D] float32 that starts from the saved token table, to be trained unless `freeze`."""
        import torch

        table = torch.from_numpy(np.array(self.tables[TOKENS]))
        layer: torch.nn.Embedding = torch.nn.Embedding.from_pretrained(table, freeze=freeze)  # type: ignore[no-untyped-call]
        return layer

    def embeddings(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Vectors [..., L, D] of input_ids [..., L], positions included: bit for bit those that are, or would be, written.

        Raises TokenizerError where an ID or a position has no row in the tables.
        """
        import torch

        dtype = str(self.manifest["config"]["embedding"]["dtype"])
        return torch.from_numpy(embedding.lookup(ids.numpy(), self.tables, dtype))

    # -- documents

    @cached_property
    def documents(self) -> "Documents":
        """Where the documents lie in its rows. Raises ConfigError where rows cannot tell; see documents.py."""
        from pipeline.documents import Documents

        return Documents(self.verified("documents.arrow"), self.manifest)

    # -- training

    def loader(self, batch_size: int, seed: int = 0, **options: Any) -> "Loader":
        """Batches for training, shuffled and resumable: see Loader for the options."""
        from pipeline.loader import Loader

        return Loader(self, batch_size, seed, **options)

    # -- files

    def _read_manifest(self) -> Json:
        path = self.path / "manifest.json"
        if not path.is_file():
            raise ConfigError(f"{str(self.path)!r} is no finished dataset: it has no manifest.json.")
        require_split(self.path, None)
        manifest = manifests.read(path)
        if manifest is None:
            raise IntegrityError(f"{str(path)!r} is not as it was written: run the pipeline again to restore it.")
        return manifest

    def _stat(self, name: str) -> Stat:
        if self._mirror is not None:
            self._mirror.fetch(name)
        try:
            found = (self.path / name).stat()
        except FileNotFoundError:
            return (-1, -1, -1, -1)
        except OSError as error:
            raise from_os_error(error, self.path / name) from error
        if not stat.S_ISREG(found.st_mode):
            raise IntegrityError(f"{str(self.path / name)!r} is damaged: not a regular file. Run the pipeline again.")
        return stat_of(found)

    def _require_size(self, name: str) -> None:
        note = self.manifest["files"].get(name)
        if note is None:
            raise IntegrityError(f"{str(self.path)!r}: its manifest does not list {name!r}.")
        size = self._stat(name)[1]
        if size != note["bytes"]:
            found = f"{size} bytes" if size >= 0 else "nothing"
            raise IntegrityError(
                f"{str(self.path / name)!r} is damaged: expected {note['bytes']} bytes, found {found}. Run the pipeline again."
            )

    def verified(self, name: str) -> Path:
        """The path of a file of the dataset, hashed as `verify` says. Raises IntegrityError where it was changed."""
        self._require_size(name)
        if self.verify != "sizes":
            self._require_hash(name)
        return self.path / name

    def _require_hash(self, name: str) -> None:
        if self._mirror is not None:
            self._mirror.fetch(name)  # hashed when it came
            return
        if self._hashed.get(name) == (before := self._stat(name)):
            return
        require_whole(self.path / name, self.manifest["files"][name])
        self._hashed[name] = before

    def _open(self, number: int) -> "_File":
        file = self._files[number]
        if file is None:
            name = self._names[number]
            file = self._files[number] = _File(self.verified(name))
            self._untouched -= 1
            rows = self._starts[number + 1] - self._starts[number]
            if file.rows != rows:
                raise IntegrityError(f"{str(self.path / name)!r} holds {file.rows} rows, its manifest says {rows}.")
        return file

    def _touch(self, indices: Sequence[int]) -> None:
        """Hash the files of these rows that are not open yet side by side, so that the first random batch is not slow."""
        if self.verify == "sizes" or not self._untouched:
            return
        numbers = {bisect_right(self._starts, index % len(self)) - 1 for index in indices}
        if len(fresh := [self._names[number] for number in numbers if self._files[number] is None]) > 1:
            with ThreadPoolExecutor(min(len(fresh), engine.cores())) as pool:
                list(pool.map(self._require_hash, fresh))

    def _locate(self, index: int) -> tuple["Block", int]:
        """The block of a row, and its place in there."""
        count = self._starts[-1]
        if not -count <= index < count:
            raise IndexError(f"row {index} of a dataset of {count} rows")
        index %= count
        number = bisect_right(self._starts, index) - 1
        file = self._files[number] or self._open(number)
        row = index - self._starts[number]
        block = bisect_right(file.starts, row) - 1
        return file.blocks[block], row - file.starts[block]

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("path", "columns", "verify", "_mirror")}
        return state | {"hashed": self._hashed, "manifest": digest(self.manifest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._mirror = state["_mirror"]
        # What the original has hashed is not hashed again, as long as stat says the same of it.
        self._set_up(state["path"], state["columns"], state["verify"], state["hashed"])
        if digest(self.manifest) != state["manifest"]:
            raise IntegrityError(f"{str(self.path)!r} was replaced while it was in use: open it again.")


# -- one Arrow file -----------------------------------------------------------------------------------------


class _File:
    """An Arrow IPC stream, memory-mapped: per record batch, numpy views of its columns."""

    def __init__(self, path: Path) -> None:
        batches = [batch for batch in read_batches(path) if len(batch)]
        self.schema = read_schema(path)
        self.blocks: list[Block] = [dict(zip(batch.schema.names, map(_view, batch.columns), strict=True)) for batch in batches]
        self.starts: list[int] = [0, *np.cumsum([len(batch) for batch in batches], dtype=np.int64).tolist()]
        self.rows = self.starts[-1]


class _Ragged:
    """Rows of different lengths: row i is values[borders[i]:borders[i + 1]]."""

    def __init__(self, values: npt.NDArray[Any], borders: npt.NDArray[np.int64]) -> None:
        self._values, self._borders = values, borders
        self.dtype, self.shape = values.dtype, (len(borders) - 1, None)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        return self._values[self._borders[row] : self._borders[row + 1]]


Block = dict[str, Any]  # column name -> array [rows], [rows, L] or [rows, L, D], or _Ragged


def _view(column: pa.Array) -> Any:
    """An Arrow column as numpy, over the same memory."""
    if pa.types.is_list(column.type):
        return _Ragged(_view(column.values), row_offsets(column))
    if pa.types.is_fixed_size_list(column.type):
        inner = _view(flattened(column))
        return inner.reshape(len(column), column.type.list_size, *inner.shape[1:])
    return to_numpy(column)


def _given(dtype: np.dtype[Any]) -> Any:
    """int64 for integers, as torch's losses and lookups want them; floats as they are."""
    return np.int64 if dtype.kind in "iu" else dtype


def _tensor(row: Any) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.array(row, _given(row.dtype)))
