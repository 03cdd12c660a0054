"""Opening a finished dataset, and feeding it to a training job.

    from pipeline import open_dataset

    dataset = open_dataset("outputs/verdict")        # map-style: len(dataset), dataset[3]["input_ids"]
    loader = dataset.loader(batch_size=8, seed=1)    # shuffled batches {"input_ids": [8, L], "target_ids": [8, L]}
    for batch in loader:
        ...
    torch.save(loader.state_dict(), "loader.pt")     # {"seed": 1, "epoch": 0, "samples": 2048}

Rows stay in memory-mapped Arrow files; nothing is copied before the cast to int64. `target_ids` is already shifted.

**What is verified.** Opening checks the manifest's own seal and the size of every file it names. A data file is
hashed when one of its rows is first asked for (`verify="touch"`), all files at once (`verify="full"`), or never
(`verify="sizes"`). Whatever differs is an IntegrityError naming the file, what was expected and what was found.

**The shuffle** is a permutation that is computed, not stored: `permute(k, n, keys)` gives the sample at position k
of an epoch, in constant memory whatever n. See there.

**Resuming.** The samples of all ranks and workers form one sequence, a pure function of (seed, epoch, position);
the state is a position in it. So a job may go on with another batch size, world size or number of workers and sees
every sample that was left, once, in the same order.
"""

import json
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import cache, embedding
from pipeline.errors import ConfigError, IntegrityError, from_os_error
from pipeline.model import TOKENS

if TYPE_CHECKING:
    import torch

FILE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")  # below the folder, never out of it
VERIFY = ("touch", "full", "sizes")
ROUNDS = 6  # of the Feistel network; four are enough in theory (Luby and Rackoff 1988) where the halves are large
POSITIONS_AT_ONCE = 8192  # permuted together, so that numpy's overhead is shared

Sample = dict[str, "torch.Tensor"]
Ints = npt.NDArray[np.int64]


def open_dataset(path: str | os.PathLike[str], columns: Sequence[str] | None = None, verify: str = "touch") -> "WindowDataset":
    """A finished dataset, `outputs/<name>`.

    `columns` names the columns to give, by default all but `embeddings`, whose rows are hundreds of times as large.
    Raises ConfigError where `path` is no dataset or has no such column, IntegrityError where its files are not
    those of its manifest.
    """
    return WindowDataset(path, columns, verify)


class WindowDataset:
    """Rows of windows, by number: what torch calls a map-style dataset. Picklable: a copy opens the files again.

    `dataset[i]` is a dict of tensors: IDs and masks int64 of shape (context_length,), or of the row's own length
    with window.mode=prefix; `embeddings` float of shape (context_length, embedding_dim), where asked for.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str] | None = None, verify: str = "touch") -> None:
        if verify not in VERIFY:
            raise ConfigError(f"verify={verify!r} is not one of {', '.join(VERIFY)}.")
        self._set_up(Path(path).absolute(), columns, verify, {})
        if verify == "full":
            for name in self.manifest["files"]:
                self._require_hash(name)

    def _set_up(self, path: Path, columns: Sequence[str] | None, verify: str, hashed: dict[str, tuple[int, ...]]) -> None:
        self.path, self.verify = path, verify
        self._hashed = hashed  # file -> what stat said when its hash was found right
        self.manifest = self._read_manifest()
        for name in self.manifest["files"]:
            self._require_size(name)
        self._names = self._data_files()
        rows = [int(self.manifest["files"][name]["rows"]) for name in self._names]
        self._starts: list[int] = [0, *np.cumsum(rows, dtype=np.int64).tolist()]
        if self._starts[-1] != self.manifest["rows"]:
            raise IntegrityError(
                f"{str(path)!r}: {self._starts[-1]} rows in its files, {self.manifest['rows']} in its manifest."
            )
        self._files: list[_File | None] = [None] * len(rows)
        self.schema = self._open(0).schema
        known = self.schema.names
        self.columns = [name for name in known if name != "embeddings"] if columns is None else list(columns)
        if missing := [name for name in self.columns if name not in known]:
            raise ConfigError(f"{str(path)!r} has no column {missing[0]!r}; it has {', '.join(known)}.")

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
        if not self.fixed:
            raise ConfigError("rows of window.mode=prefix differ in length: take them one by one and pad them as you need.")
        import torch

        rows = [self._locate(index) for index in indices]
        out = {}
        for name in self.columns:
            like = rows[0][0][name]
            stacked = np.empty((len(rows), *like.shape[1:]), _given(like.dtype))
            for place, (block, row) in enumerate(rows):
                stacked[place] = block[name][row]
            out[name] = torch.from_numpy(stacked)
        return out

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
    def _tables(self) -> embedding.Tables:
        name = "embeddings.safetensors"
        if name not in self.manifest["files"]:
            raise ConfigError(f"{str(self.path)!r} has no embedding tables: it was prepared with embedding=none.")
        if self.verify != "sizes":
            self._require_hash(name)
        return embedding.load(self.path / name)

    def embedding_layer(self, freeze: bool = False) -> "torch.nn.Embedding":
        """A torch.nn.Embedding [V, D] float32 that starts from the saved token table, to be trained unless `freeze`."""
        import torch

        table = torch.from_numpy(np.array(self._tables[TOKENS]))
        layer: torch.nn.Embedding = torch.nn.Embedding.from_pretrained(table, freeze=freeze)  # type: ignore[no-untyped-call]
        return layer

    def embeddings(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Vectors [..., L, D] of input_ids [..., L], positions included: bit for bit those that are, or would be, written.

        Raises TokenizerError where an ID or a position has no row in the tables.
        """
        import torch

        dtype = str(self.manifest["config"]["embedding"]["dtype"])
        return torch.from_numpy(embedding.lookup(ids.numpy(), self._tables, dtype))

    # -- training

    def loader(self, batch_size: int, seed: int = 0, **options: Any) -> "Loader":
        """Batches for training, shuffled and resumable: see Loader for the options."""
        return Loader(self, batch_size, seed, **options)

    # -- files

    def _read_manifest(self) -> cache.Json:
        path = self.path / "manifest.json"
        if not path.is_file():
            raise ConfigError(f"{str(self.path)!r} is no finished dataset: it has no manifest.json.")
        manifest = cache.unseal(path)
        if manifest is None:
            raise IntegrityError(f"{str(path)!r} is not as it was written: run the pipeline again to restore it.")
        for name, note in manifest["files"].items():
            if not FILE.fullmatch(name):
                raise IntegrityError(f"{str(path)!r} lists {name!r}, which is not a file inside its folder.")
            if not {"bytes", "sha256"} <= note.keys():
                raise IntegrityError(f"{str(path)!r} says too little of {name!r}: run the pipeline again.")
        return manifest

    def _data_files(self) -> list[str]:
        """The data files in order, as state.json lists them; they must be those of the manifest."""
        self._require_size("state.json")
        self._require_hash("state.json")
        state = json.loads((self.path / "state.json").read_bytes())
        names = [item["filename"] for item in state["_data_files"]]
        if unknown := [name for name in names if "rows" not in self.manifest["files"].get(name, {})]:
            raise IntegrityError(
                f"{str(self.path / 'state.json')!r} lists {unknown[0]!r}, whose rows its manifest does not know."
            )
        return names

    def _stat(self, name: str) -> tuple[int, ...]:
        try:
            stat = (self.path / name).stat()
        except FileNotFoundError:
            return (-1, -1, -1, -1)
        except OSError as error:
            raise from_os_error(error, self.path / name) from error
        return (stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)

    def _require_size(self, name: str) -> None:
        note = self.manifest["files"].get(name)
        if note is None:
            raise IntegrityError(f"{str(self.path)!r}: its manifest does not list {name!r}.")
        size = self._stat(name)[0]
        if size != note["bytes"]:
            found = f"{size} bytes" if size >= 0 else "nothing"
            raise IntegrityError(
                f"{str(self.path / name)!r} is damaged: expected {note['bytes']} bytes, found {found}. Run the pipeline again."
            )

    def _require_hash(self, name: str) -> None:
        if self._hashed.get(name) == (before := self._stat(name)):
            return
        note = self.manifest["files"][name]
        try:
            size, sha = cache.hash_file(self.path / name)
        except OSError as error:
            raise from_os_error(error, self.path / name) from error
        if (size, sha) != (note["bytes"], note["sha256"]):
            raise IntegrityError(
                f"{str(self.path / name)!r} is damaged: expected sha256 {note['sha256']}, found {sha}. Run the pipeline again."
            )
        self._hashed[name] = before

    def _open(self, number: int) -> "_File":
        file = self._files[number]
        if file is None:
            name = self._names[number]
            if self.verify != "sizes":
                self._require_hash(name)
            file = self._files[number] = _File(self.path / name)
            rows = self._starts[number + 1] - self._starts[number]
            if file.rows != rows:
                raise IntegrityError(f"{str(self.path / name)!r} holds {file.rows} rows, its manifest says {rows}.")
        return file

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
        state = {name: getattr(self, name) for name in ("path", "columns", "verify")}
        return state | {"hashed": self._hashed, "manifest": cache.digest(self.manifest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What the original has hashed is not hashed again, as long as stat says the same of it.
        self._set_up(state["path"], state["columns"], state["verify"], state["hashed"])
        if cache.digest(self.manifest) != state["manifest"]:
            raise IntegrityError(f"{str(self.path)!r} was replaced while it was in use: open it again.")


# -- one Arrow file -----------------------------------------------------------------------------------------


class _File:
    """An Arrow IPC stream, memory-mapped: per record batch, numpy views of its columns."""

    def __init__(self, path: Path) -> None:
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                self.schema = reader.schema
                batches = [batch for batch in reader if len(batch)]
        except OSError as error:  # pyarrow's own errors of format are ArrowInvalid or a bare OSError
            if error.errno is not None:
                raise from_os_error(error, path) from error
            raise IntegrityError(f"{str(path)!r} is not a whole Arrow stream: {error}.") from error
        except pa.ArrowInvalid as error:
            raise IntegrityError(f"{str(path)!r} is not a whole Arrow stream: {error}.") from error
        self.blocks: list[Block] = [dict(zip(batch.schema.names, map(_view, batch.columns), strict=True)) for batch in batches]
        self.starts: list[int] = [0, *np.cumsum([len(batch) for batch in batches], dtype=np.int64).tolist()]
        self.rows = self.starts[-1]


class _Ragged:
    """Rows of different lengths: row i is values[borders[i]:borders[i + 1]]."""

    def __init__(self, values: npt.NDArray[Any], borders: npt.NDArray[np.int32]) -> None:
        self._values, self._borders = values, borders
        self.dtype, self.shape = values.dtype, (len(borders) - 1, None)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        return self._values[self._borders[row] : self._borders[row + 1]]


Block = dict[str, Any]  # column name -> array [rows], [rows, L] or [rows, L, D], or _Ragged


def _view(column: pa.Array) -> Any:
    """An Arrow column as numpy, over the same memory (truth values excepted, which Arrow packs eight to a byte)."""
    if pa.types.is_list(column.type):
        borders = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        return _Ragged(_view(column.values), borders)
    if pa.types.is_fixed_size_list(column.type):
        inner = _view(column.flatten())
        return inner.reshape(len(column), column.type.list_size, *inner.shape[1:])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def _given(dtype: np.dtype[Any]) -> Any:
    """int64 for integers, as torch's losses and lookups want them; floats as they are."""
    return np.int64 if dtype.kind in "iu" else dtype


def _tensor(row: Any) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.array(row, _given(row.dtype)))


# -- the training loader ------------------------------------------------------------------------------------


class Loader:
    """Batches of a dataset as one rank of a job sees them, from where the loader stands to the end of the epoch.

    Step after step, `world_size * batch_size` consecutive positions of the epoch are shared out in order, rank 0
    first. With n = 10 samples, batch_size 2 and 2 ranks:

        position       0 1 2 3 | 4 5 6 7 | 8 9
        rank           0 0 1 1 | 0 0 1 1 | 0 1          the rest is shared evenly (drop_last: not at all)
        state "samples"        4         8     10

    The sample at a position is `permute(position, n, keys(seed, epoch))`, or the position itself where `shuffle` is
    off. Iterating goes on from where the last iteration stopped; at the end of an epoch the next one begins:

        for epoch in range(loader.epoch, 3):
            for batch in loader:
                ...

    Every rank's state is the same, so any rank's will do, for any world size. Batches that workers have read ahead
    are not counted before they are given out.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle: bool = True,
        drop_last: bool | None = None,
        pin_memory: bool = False,
    ) -> None:
        """`drop_last` leaves out the last, smaller step; None means where there are several ranks, which must take
        equally many steps. Raises ConfigError where a number cannot be, or an epoch would have no batch.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1), ("seed", seed, 0), ("epoch", epoch, 0), ("world_size", world_size, 1),
            ("rank", rank, 0), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value < least:
                raise ConfigError(f"loader: {name}={value} is less than {least}.")
        if rank >= world_size:
            raise ConfigError(f"loader: rank={rank} must be less than world_size={world_size}.")
        if not dataset.fixed:
            raise ConfigError(
                "loader: rows of window.mode=prefix differ in length; use torch's DataLoader with a collate_fn that pads."
            )
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, epoch
        self.rank, self.world_size, self.num_workers, self.shuffle = rank, world_size, num_workers, shuffle
        self.drop_last = world_size > 1 if drop_last is None else drop_last
        self.pin_memory = pin_memory
        self.samples = 0  # of this epoch, of all ranks, given out
        if not len(self):
            raise ConfigError(
                f"loader: {len(dataset)} rows do not fill one step of world_size={world_size} times batch_size={batch_size}: "
                "lower them, or set drop_last=False."
            )

    def __len__(self) -> int:
        """Batches of a whole epoch, for this rank."""
        whole, rest = divmod(len(self.dataset), self.batch_size * self.world_size)
        return whole + (not self.drop_last and self._share(rest)[0] < self._share(rest)[1])

    def __iter__(self) -> Iterator[Sample]:
        """The batches that are left of the epoch: dicts of tensors [batch_size, …]."""
        from torch import Generator
        from torch.utils.data import DataLoader

        counts: deque[int] = deque()

        def rows() -> Iterator[list[int]]:
            for count, indices in self._steps():
                counts.append(count)
                yield indices.tolist()

        if self.num_workers or self.pin_memory:
            batches: Iterable[Sample] = DataLoader(
                _Stacked(self.dataset),  # type: ignore[arg-type]
                batch_size=None,
                sampler=rows(),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                generator=Generator(),  # else it draws a seed from the job's own random numbers
            )
        else:
            batches = map(self.dataset.batch, rows())
        for batch in batches:
            self.samples = counts.popleft()
            yield batch
        self.epoch, self.samples = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, as integers: the seed, the epoch, and the samples of it that all ranks were given."""
        return {"seed": self.seed, "epoch": self.epoch, "samples": self.samples, "shuffle": int(self.shuffle), **self._about()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader stood, whatever its batch size, world size and workers.

        Raises ConfigError where that loader had another dataset or another order.
        """
        here = {"shuffle": int(self.shuffle), **self._about()}
        for name, value in here.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"loader: the state is of another {name}: {state.get(name)}, here {value}; it cannot be resumed."
                )
        self.seed, self.epoch, self.samples = (int(state[name]) for name in ("seed", "epoch", "samples"))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.samples = epoch, 0

    def _about(self) -> dict[str, int]:
        """What says that two datasets have the same rows: 60 bits of their files' hashes."""
        files = self.dataset.manifest["files"]
        return {"dataset": int(cache.digest([files[name]["sha256"] for name in self.dataset.files])[:15], 16)}

    def _share(self, count: int) -> tuple[int, int]:
        """This rank's part of a step of `count` samples."""
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size

    def _steps(self) -> Iterator[tuple[int, Ints]]:
        """(samples of all ranks after the step, this rank's rows in it) for every step that is left."""
        n, at, step = len(self.dataset), self.samples, self.batch_size * self.world_size
        order = keys(self.seed, self.epoch)

        def samples(positions: Ints) -> Ints:
            return permute(positions.reshape(-1), n, order).reshape(positions.shape) if self.shuffle else positions

        own = np.arange(*self._share(step), dtype=np.int64)
        at_once = step * max(1, POSITIONS_AT_ONCE // self.batch_size)
        last = at + (n - at) // step * step
        for first in range(at, last, at_once):
            starts = np.arange(first, min(last, first + at_once), step, dtype=np.int64)
            yield from zip((starts + step).tolist(), samples(starts[:, None] + own), strict=True)
        start, stop = self._share(n - last)
        if start < stop and not self.drop_last:
            yield n, samples(np.arange(last + start, last + stop, dtype=np.int64))


class _Stacked:
    """What DataLoader's workers see: an index is a list of rows, an item their batch."""

    def __init__(self, dataset: WindowDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, indices: list[int]) -> Sample:
        return self._dataset.batch(indices)

    def __len__(self) -> int:
        return len(self._dataset)


def keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """The round keys of an epoch's shuffle, uint64."""
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(ROUNDS, np.uint64).astype(np.uint64)


def permute(positions: Ints, n: int, keys: npt.NDArray[np.uint64]) -> Ints:
    """The images of `positions` (int64, each below n) under a pseudo-random permutation of 0 … n - 1.

    A Feistel network permutes the numbers of 2h bits, with h the least for which 4^h >= n: it splits a number in
    halves and, once per key, replaces (left, right) by (right, left xor F(right, key)). That can be undone whatever
    F is, so no two numbers meet. An image of n or more is permuted again until it is less (cycle walking: Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), fewer than four times on average. F is the finalizer of
    splitmix64. Memory is that of `positions`; nothing is stored per sample.

    With n = 6, h = 2: the network permutes 0 … 15. With seed 1 in epoch 0 it takes 0 to 8, which is no sample, and
    8 to 5, which is; it takes 2 to 4 at once:

        position   0        1         2     3     4                                 5
                   → 8 → 5  → 13 → 3  → 4   → 0   → 10 → 9 → 15 → 7 → 12 → 14 → 11 → 2   → 6 → 1

    >>> permute(np.arange(6), 6, keys(seed=1, epoch=0)).tolist()
    [5, 3, 4, 0, 2, 1]
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)

    def once(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = numbers >> half, numbers & mask
        for key in keys:
            mixed = right + key
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        return (left << half) | right

    out = once(positions.astype(np.uint64))
    while len(walking := np.flatnonzero(out >= n)):
        out[walking] = once(out[walking])
    return out.astype(np.int64)
