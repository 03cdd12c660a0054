"""One way to read windows, measured; run by `python -m scripts.benchmark.loaders` in the environment that it needs.

    python readers.py READER FOLDER --length 1025 --stride 1024 --batch 64 --workers 0 --seconds 2
    python readers.py READER FOLDER --length 1025 --stride 1024 --check

A reader gives random batches of windows as a pair of int64 tensors `[batch, L]`, input and target. The first prints the
seconds from behind the imports to the first batch, and the tokens a second from the tenth batch on; the second prints the
sha256 of the first windows, taken one by one, so that all can be compared.
"""

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

CHECKED = 64  # windows
Pair = tuple[torch.Tensor, torch.Tensor]
Opened = tuple[Callable[[int], Any], Callable[[], Iterator[Pair]]]  # window i; batches, an epoch or without end


def ours(o: argparse.Namespace) -> Callable[[], Opened]:
    """`open_dataset(folder).loader(...)`: every row once an epoch, files hashed when first touched."""
    from pipeline import open_dataset

    def opened() -> Opened:
        dataset = open_dataset(o.folder)
        loader = dataset.loader(o.batch, seed=1, num_workers=o.workers)

        def window(i: int) -> Any:
            return np.append(dataset[i]["input_ids"], dataset[i]["target_ids"][-1])

        return window, lambda: ((b["input_ids"], b["target_ids"]) for b in loader)

    return opened


def datasets(o: argparse.Namespace) -> Callable[[], Opened]:
    """`load_from_disk(folder).with_format("torch")` in a DataLoader that shuffles."""
    from datasets import load_from_disk

    def opened() -> Opened:
        dataset = load_from_disk(str(o.folder)).with_format("torch")
        loader = DataLoader(dataset, o.batch, shuffle=True, num_workers=o.workers)

        def window(i: int) -> Any:
            return np.append(dataset[i]["input_ids"], dataset[i]["target_ids"][-1])

        return window, lambda: ((b["input_ids"], b["target_ids"]) for b in loader)

    return opened


def memmap(o: argparse.Namespace) -> Callable[[], Opened]:
    """nanoGPT's `get_batch`, line by line: a numpy memmap of the stream, sliced at random (here where our windows begin)."""

    class Batches(torch.utils.data.Dataset[Pair]):
        def __getitem__(self, _: int) -> Pair:
            data = np.memmap(o.folder / "train.bin", np.uint16, "r")  # anew each time, as nanoGPT does
            rows = (len(data) - o.length) // o.stride + 1
            starts = torch.randint(rows, (o.batch,)) * o.stride
            return tuple(  # type: ignore[return-value]
                torch.stack([torch.from_numpy(data[i + s : i + s + o.length - 1].astype(np.int64)) for i in starts])
                for s in (0, 1)
            )

    def opened() -> Opened:
        batches, data = Batches(), np.memmap(o.folder / "train.bin", np.uint16, "r")
        loader = DataLoader(batches, None, sampler=range(1 << 40), num_workers=o.workers) if o.workers else None
        return (
            lambda i: data[i * o.stride : i * o.stride + o.length],
            lambda: iter(loader) if loader else map(batches.__getitem__, itertools.count()),
        )

    return opened


def gather(o: argparse.Namespace) -> Callable[[], Opened]:
    """The most that numpy can do: the whole stream as one array, held open, and one fancy index a batch."""

    class Batches(torch.utils.data.Dataset[Pair]):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.asarray(np.memmap(o.folder / "train.bin", np.uint16, "r")), o.length
        )

        def __getitem__(self, _: int) -> Pair:
            rows = np.random.randint((len(self.windows) - 1) // o.stride + 1, size=o.batch) * o.stride
            ids = self.windows[rows]
            return torch.from_numpy(ids[:, :-1].astype(np.int64)), torch.from_numpy(ids[:, 1:].astype(np.int64))

    def opened() -> Opened:
        batches = Batches()
        loader = DataLoader(batches, None, sampler=range(1 << 40), num_workers=o.workers) if o.workers else None
        return (
            lambda i: batches.windows[i * o.stride],
            lambda: iter(loader) if loader else map(batches.__getitem__, itertools.count()),
        )

    return opened


def litdata(o: argparse.Namespace) -> Callable[[], Opened]:
    """litdata's StreamingDataset with TokensLoader, shuffled, in its StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    def opened() -> Opened:
        dataset = StreamingDataset(str(o.folder / "train"), item_loader=TokensLoader(o.length), shuffle=True, drop_last=False)
        loader = StreamingDataLoader(dataset, batch_size=o.batch, num_workers=o.workers)
        return dataset.__getitem__, lambda: ((b[:, :-1].long(), b[:, 1:].long()) for b in loader)

    return opened


def mds(o: argparse.Namespace) -> Callable[[], Opened]:
    """mosaicml-streaming's StreamingDataset, shuffled, its bytes taken as LLM-Foundry takes them."""
    import peers.torchvision_stub  # noqa: F401
    from streaming import StreamingDataset

    def decoded(sample: Any) -> Any:
        return torch.from_numpy(np.frombuffer(sample["tokens"], np.int64).copy())

    def collate(samples: list[Any]) -> Pair:
        stacked = torch.stack([decoded(sample) for sample in samples])
        return stacked[:, :-1], stacked[:, 1:]

    def opened() -> Opened:
        dataset = StreamingDataset(local=str(o.folder), split="train", shuffle=True, batch_size=o.batch)
        loader = DataLoader(dataset, o.batch, num_workers=o.workers, collate_fn=collate)
        return lambda i: decoded(dataset[i]), lambda: iter(loader)

    return opened


def check(opened: Opened) -> str:
    """sha256 of the first windows as int64."""
    sha = hashlib.sha256()
    for i in range(CHECKED):
        sha.update(np.ascontiguousarray(np.asarray(opened[0](i)), np.int64).tobytes())
    return sha.hexdigest()


def measure(opened: Callable[[], Opened], o: argparse.Namespace) -> dict[str, float]:
    """Seconds to the first batch, and the tokens a second afterwards."""
    started = time.perf_counter()
    _, batches = opened()
    endless = itertools.chain.from_iterable(iter(batches, None))
    x, y = next(endless)
    first = time.perf_counter() - started
    if x.dtype != torch.int64 or x.shape != y.shape or x.shape[1] != o.length - 1:
        raise SystemExit(f"a batch is {x.dtype} {tuple(x.shape)}")
    for _ in itertools.islice(endless, 9):
        pass
    tokens, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < o.seconds:
        x, y = next(endless)
        tokens += x.numel()
    return {"first": first, "rate": tokens / passed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=("ours", "memmap", "gather", "datasets", "litdata", "mds"))
    parser.add_argument("folder", type=Path)
    for flag, default in (("length", None), ("stride", None), ("batch", 64), ("workers", 0)):
        parser.add_argument(f"--{flag}", type=int, default=default, required=default is None)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reader = globals()[options.reader](options)
    print(json.dumps({"sha256": check(reader())} if options.check else measure(reader, options)), flush=True)
