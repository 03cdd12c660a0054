"""Is this machine fit for the pipeline, and does the pipeline do here what it promises?

    ok    disk        59 GB free, 410 MB/s written and flushed at data/cache
    ok    locks       a second lock on the same file waits
    look  Hub         HF_HUB_OFFLINE is set: names are looked for in the cache of the Hub and in PIPELINE_ASSETS alone
    bad   memory      210 MB available: …

Each check is a function that gives findings; a check that fails in an unforeseen way is a finding too. Nothing is left
behind: what is written goes among the temporary folders of the cache and of the output, and is removed at the end; what
a doctor leaves that is killed goes with those of dead runs.
"""

import contextlib
import ctypes
import itertools
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import backends, config, console, cuts, engine, tokenizer, vocabulary, window
from pipeline.arrow import flat_list, flattened, joined, numbers, to_numpy
from pipeline.cache import Cache, Entry
from pipeline.errors import PipelineError, from_os_error
from pipeline.files import existing, fsync_dir, write_rate
from pipeline.stream import Stream
from pipeline.swap import AT_FDCWD, RENAME_EXCHANGE, WORKSHOP

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of the container that this process is in
LITTLE_MEMORY = 1 << 30
LITTLE_DISK = 1 << 30
SLOW_DISK = 20e6  # bytes a second
NEWEST = 3  # tokenizers of the cache that are tried
TOKENIZER = "tokenizer.json"
STATES = ("ok", "look", "bad")  # look: it works, but a person may want to know

# Text that tokenizers are known to stumble over: nothing but spaces, line ends of three kinds, characters of one to four
# bytes, combining marks, right-to-left, joined emoji, controls, a byte-order mark, noncharacters, a long word.
ODD = (
    " ", "   a  b ", "a\r\nb\rc\n\n", "\tx\t", "naïve café e\u0301", "Ελληνικά Русский", "עברית العربية", "漢字かなカナ한글",
    "👩‍👩‍👧‍👦🇧🇷 ok", "\x00\x01\x7f", "\ufeffx", "\ufffe\U0010ffff", "a" * 5000, "don't I'LL we’ve", "1234567890 3.14159",
    "<|endoftext|> [CLS] <s>", "\u2028\u2029\u00a0\u200b\u3000", "!?…—“”", "'s 't", "",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `state` is one of STATES, `advice` what to do where it is not ok."""

    state: str
    what: str
    said: str
    advice: str = ""


Findings = Generator[Finding, None, None]


def doctor(cache_dir: Path = Path("data/cache"), output_dir: Path = Path("outputs")) -> Findings:
    """Look at everything, quick things first; the tokenizers are one trained here and the newest ones of the cache."""
    with contextlib.ExitStack() as stack:
        cache = Cache.open(cache_dir)
        place: Path | None = None
        refused: OSError | None = None
        try:
            place = stack.enter_context(_aside(cache.tmp))
        except OSError as error:
            refused = error
        checks: list[tuple[str, Callable[[], Findings]]] = [
            ("Python", _python),
            ("packages", _packages),
            ("memory", _memory),
            ("disk", lambda: _disk(place, refused, cache_dir, output_dir)),
            ("Hub", _hub),
            ("tokenizers", lambda: _tokenizers(cache, place)),
            ("loss", lambda: _loss(place)),
        ]
        if place is not None:
            folder = place
            checks[4:4] = [
                ("locks", lambda: _locks(folder)),
                ("renames", lambda: _renames(folder)),
                ("links", lambda: _links(folder, output_dir / WORKSHOP / cache.run)),
            ]
        for what, check in checks:
            try:
                yield from check()
            except (OSError, PipelineError) as error:
                engine.checkpoint()
                told = from_os_error(error, error.filename or place) if isinstance(error, OSError) else error
                yield Finding("bad", what, "this could not be tried", console.printable(str(told)))
            except Exception as error:
                engine.checkpoint()
                said = console.printable(f"{type(error).__name__}: {error}")[:200]
                yield Finding("bad", what, f"the check itself failed: {said}", "report it, with this line.")
            engine.checkpoint()


@contextlib.contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """A new folder, gone when the block ends, as is what had to be made above it. Raises OSError."""
    above = existing(place)
    try:
        place.mkdir(parents=True)
        yield place
    finally:
        engine.surely(lambda: shutil.rmtree(place, ignore_errors=True))
        with contextlib.suppress(OSError):  # another has begun to use it
            for parent in itertools.takewhile(lambda parent: parent != above, Path(os.path.abspath(place)).parents):
                parent.rmdir()


# -- what is installed ------------------------------------------------------------------------------------


def _python() -> Findings:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if good else "bad", "Python", f"{version}, {platform.platform()}", "" if good else "use Python 3.11 or newer."
    )
    try:
        "ł·⏎".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        yield Finding("look", "terminal", f"stdout is {sys.stdout.encoding}: other letters are escaped", "set PYTHONUTF8=1.")


def _packages() -> Findings:
    """The installed versions against what the package asks for."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for text in metadata.requires("pretraining-pipeline") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, needed {requirement.specifier}")
    if wrong:
        yield Finding("bad", "packages", "; ".join(wrong), "pip install -c constraints.txt -e .")
    else:
        yield Finding("ok", "packages", f"{count} as the package asks for")


# -- the machine ------------------------------------------------------------------------------------------


def _memory() -> Findings:
    free = available_memory()
    if free is None:
        yield Finding("look", "memory", f"{engine.cores()} cores; how much memory is available cannot be told here")
    elif free < LITTLE_MEMORY:
        yield Finding("bad", "memory", f"{console.size(free)} available", "lower engine.workers= and corpus.shard_bytes=.")
    else:
        yield Finding("ok", "memory", f"{console.size(free)} available, {console.counted(engine.cores(), 'core')}")


def available_memory() -> int | None:
    """Bytes that this process may still take, by the kernel and by the limit of its container; None where unknown."""
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) << 10)
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used, told = ((GROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = dict(line.split() for line in told.splitlines())["inactive_file"]  # given back when it is asked for
        known.append(int(limit) - int(used) + int(cached))  # "max": no limit, no number
    return min(known, default=None)


def _disk(place: Path | None, refused: OSError | None, cache_dir: Path, output_dir: Path) -> Findings:
    for name, folder in (("cache.dir", cache_dir), ("output.dir", output_dir)):
        here = existing(folder)
        free = shutil.disk_usage(here).free
        if refused and name == "cache.dir":
            said = f"nothing can be written at {str(folder)!r}: {refused.strerror}"
            yield Finding("bad", "disk", said, f"mend that, or set {name}=.")
        elif not os.access(here, os.W_OK | os.X_OK):
            yield Finding("bad", "disk", f"{str(here)!r} cannot be written by user {os.getuid()}", f"set {name}=.")
        elif free < LITTLE_DISK:
            yield Finding("bad", "disk", f"{console.size(free)} free at {str(here)!r}", f"free space, or set {name}=.")
        elif name == "output.dir" and os.stat(here).st_dev == os.stat(existing(cache_dir)).st_dev:
            continue  # the same disk, which is told once
        else:
            yield Finding("ok", "disk", f"{console.size(free)} free at {str(here)!r}")
    if place is not None:
        rate = write_rate(place)
        slow = "" if rate > SLOW_DISK else "a run will wait for this disk: set cache.dir= to a faster one."
        yield Finding("look" if slow else "ok", "disk", f"{console.size(rate)}/s written and flushed", slow)


def _locks(place: Path) -> Findings:
    from filelock import FileLock, Timeout

    first, second = (FileLock(place / "lock", fallback_to_soft=False, is_singleton=False) for _ in range(2))
    try:
        with first:
            try:
                second.acquire(timeout=0)
            except Timeout:
                yield Finding("ok", "locks", "a second lock on the same file waits")
                return
        said = "two locks on one file are given at once"
    except (OSError, NotImplementedError) as error:
        said = f"this file system has none: {error}"
    yield Finding("look", "locks", said, "two runs at once may compute the same twice; results stay right.")


def _renames(place: Path) -> Findings:
    for name in ("a", "b"):
        (place / name).mkdir()
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = [os.fsencode(place / name) for name in ("a", "b")]
    if renameat2 and renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        yield Finding("ok", "renames", "a folder is exchanged for another in one step")
    else:
        advice = "do not read a dataset in the moment in which it is replaced."
        yield Finding("look", "renames", "folders are exchanged in two steps here", advice)
    fsync_dir(place)


def _links(place: Path, aside: Path) -> Findings:
    (place / "file").write_bytes(b"x")
    with _aside(aside) as there:
        try:
            os.link(place / "file", there / "link")
        except OSError as error:
            advice = "a dataset is copied and takes its space twice: put both on one file system."
            yield Finding("look", "links", f"no hard links from cache.dir to output.dir: {error.strerror}", advice)
            return
    yield Finding("ok", "links", "a finished dataset shares its files with the cache")


def _hub() -> Findings:
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")]
    mirror = os.environ.get("PIPELINE_ASSETS")
    if mirror and not Path(mirror).is_dir():
        yield Finding("bad", "Hub", f"PIPELINE_ASSETS={mirror!r} is not a folder", "set it to the mirror, or unset it.")
    said = f"PIPELINE_ASSETS={mirror!r} is looked at before the network" if mirror else "no offline mirror (PIPELINE_ASSETS)"
    if offline:
        yield Finding("look", "Hub", f"{offline[0]} is set, {said}", "unset it to have names fetched from the Hub.")
    else:
        yield Finding("ok", "Hub", f"{said}; what it lacks is fetched from the Hub{_token()}")


def _token() -> str:
    return ", with the token of HF_TOKEN" if os.environ.get("HF_TOKEN") else ""


# -- what the pipeline promises ---------------------------------------------------------------------------


def _tokenizers(cache: Cache, place: Path | None) -> Findings:
    """On odd text: does a trained BPE give it back, and do fast backend and reference give the same IDs?"""
    with tempfile.TemporaryDirectory(prefix="pipeline-doctor-", dir=place) as made:
        own = Path(made)
        text = joined([part.encode(errors="replace") for part in ODD])
        settings = config.Tokenizer(vocab_size=300, eos_token="<|endoftext|>")
        for name, data in tokenizer.train(settings, lambda: iter([text] * 3)).items():
            (own / name).write_bytes(data)
        yield from _tokenizer("the trained BPE", own, lossless=True)
    kept = [entry for entry in cache.entries() if entry.stage == "tokenizer"]
    for entry in sorted(kept, key=Entry.last_use, reverse=True)[:NEWEST]:
        yield from _cached(entry)


def _cached(entry: Entry) -> Findings:
    """As `_tokenizer`, of one in the cache whose files are as they were written; one of words has no such file."""
    name = f"{entry.key[:8]} of the cache"
    try:
        notes = (entry.manifest() or {"files": {}})["files"]
        problem = entry.examine(TOKENIZER, notes[TOKENIZER]) if TOKENIZER in notes else None
    except PipelineError as error:
        yield Finding("bad", "tokenizer", f"{name} cannot be used", str(error))
        return
    if problem:
        advice = "run the pipeline again: it sets the file aside and makes it anew."
        yield Finding("bad", "tokenizer", f"{name}: {TOKENIZER} is damaged: {problem}", advice)
    elif TOKENIZER in notes:
        yield from _tokenizer(name, entry.folder, lossless=False)


def _tokenizer(name: str, folder: Path, lossless: bool) -> Findings:
    data = (folder / TOKENIZER).read_bytes()
    backend = backends.choose(data, "auto")
    core, reference = (backends.open_core(kind, data, False) for kind in (backend, "hf"))
    text = joined([part.encode(errors="replace") for part in ODD])
    differing = backends.differences(core, reference, text)
    if differing:
        said = f"{name}: {backend} and the reference differ on {differing} of {len(ODD)} odd texts"
        yield Finding("bad", "tokenizer", said, "set tokenizer.backend=hf, and report it.")
    else:
        yield Finding("ok", "tokenizer", f"{name}: {backend} gives the reference's IDs on {len(ODD)} odd texts")
    if lossless:
        ids, offsets = core.encode(text)
        decoder = reference.tokenizer  # type: ignore[attr-defined]
        spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        wrong = [part for part, (a, b) in zip(ODD, spans, strict=True) if decoder.decode(ids[a:b].tolist()) != part]
        if wrong:
            yield Finding("bad", "tokenizer", f"{name}: {wrong[0]!r} is not itself again after tokens", "report it.")
        else:
            yield Finding("ok", "tokenizer", f"{name}: {len(ODD)} odd texts are themselves again after tokens")
    if cuts.safe_cut(data) is None:
        advice = "documents of gigabytes need their size in memory: split them, as with corpus.document=paragraph."
        yield Finding("look", "tokenizer", f"{name} has no place where a long document may be cut", advice)


def _loss(place: Path | None) -> Findings:
    """A tiny GPT-2's loss on our `target_ids` against the one that it computes itself, shifting `labels`."""
    if missing := [name for name in ("torch", "transformers") if not _installed(name)]:
        yield Finding("look", "loss", f"{missing[0]} is not installed: training was not tried", f"pip install {missing[0]}")
        return
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GPT2Config, GPT2LMHeadModel

    generator = torch.Generator().manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sizes = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(sizes)
    model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator) / 4)
        row = _row(np.random.default_rng(0).integers(0, 50, 17), place)
        inputs, targets = (torch.from_numpy(column.astype(np.int64))[None] for column in row)
        found = model(input_ids=inputs, labels=inputs)
        ours = cross_entropy(found.logits[0, :-1], targets[0, :-1])
    if torch.allclose(found.loss, ours, rtol=1e-5):
        yield Finding(
            "ok",
            "loss",
            f"on target_ids it is {ours:.4f}, as a causal model computes it from labels (torch {torch.__version__})",
        )
    else:
        said = f"on target_ids it is {ours:.4f}, a causal model computes {found.loss:.4f} from labels"
        yield Finding("bad", "loss", said, "report it, with the versions of torch and transformers.")


def _row(ids: np.ndarray, place: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The one row that the stage `window` cuts from a stream of IDs: inputs and targets."""
    with tempfile.TemporaryDirectory(prefix="pipeline-doctor-", dir=place) as folder:
        path = Path(folder) / "ids.arrow"
        marks = vocabulary.Marks(None, None, None, "map", "uint8")
        document = [numbers(np.array([value], kind)) for value, kind in ((0, np.int32), (0, np.int64), (1, np.int64))]
        columns = [flat_list(numbers(ids.astype(np.uint8)), np.array([0, len(ids)])), *document, pa.array([True])]
        with open(path, "wb") as file, pa.ipc.new_stream(file, marks.schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=marks.schema))
        stream = Stream([path], [len(ids)], "uint8")
        settings = config.Window(context_length=len(ids) - 1)
        plan = window.plan(settings, stream.counts, stream.dtype, None, None, stream)
        batch = next(window.chunk(stream, plan, plan.shards[0]))
        return to_numpy(flattened(batch["input_ids"])), to_numpy(flattened(batch["target_ids"]))


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
