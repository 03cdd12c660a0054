"""Mutated inputs of every format and compression: whatever comes, a run ends with an exit code that says why.

    python -m tests.fuzz --count 20000 --processes 200

A sound file is taken apart where it hurts (bytes flipped, cut, doubled, filled with zeros, lengths made enormous, pieces of
another file put in), before it is compressed or after, and read as its own format or another. Each case is a number, from
which it can be made again: `--only 4711`. Allowed are the exit codes 0, 2, 3, 4, 5 and 6. Most cases end behind `load`, every
twentieth goes through the whole line, and `--processes` of them through the command itself.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from formats import COMPRESSIONS, FORMATS, tarred, zipped

from pipeline import cli, corpus, plan, run
from pipeline.cache import Cache
from pipeline.config import Cache as CacheSettings
from pipeline.config import Config, Corpus, Embedding, Engine, Output, Tokenizer, Window, check

ALLOWED = {0, 2, 3, 4, 5, 6}
SECONDS, MEMORY = 10, 2 << 30  # of the processor, for a case
HANGS = 120  # seconds by the clock, on a machine that does other things too
ROWS = ['Dear Hester,\nthe "ferry", was late\\ [1] {2}', "x", "naïve €😀", "z" * 300, *(f"row {i}, é" for i in range(20))]
NUMBERS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\xff" * 8, b"99999999999", b"-1"]
PIECES = [
    b"\n",
    b'"',
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b"\r\n\r\n",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"null",
]
TEXT = {"text": lambda rows: "\n".join(rows).encode(), "text lines": lambda rows: "\n".join(rows).encode()}


def case(number: int) -> tuple[Corpus, bytes]:
    """The settings and the bytes of a case; its path is to be put in."""
    draw = random.Random(number)
    makers = {**FORMATS, **TEXT}
    form = draw.choice(sorted(makers))
    data = makers[form](ROWS[: draw.randint(1, len(ROWS))])
    packed, archive = draw.choice(sorted(COMPRESSIONS)), draw.choice(["", "", "", "zip", "tar", "tar.gz"])
    stages = [draw.random() < 0.5 for _ in range(3)]
    if stages[0]:
        data = mutated(data, draw)
    data = COMPRESSIONS[packed](data)
    if stages[1]:
        data = mutated(data, draw)
    if archive:
        members = {"a": data, "b/c": COMPRESSIONS["plain"](makers[form](ROWS[:3]))}
        data = zipped(members) if archive == "zip" else tarred(members, "w:gz" if archive == "tar.gz" else "w")
    if stages[2] or not any(stages):
        data = mutated(data, draw)
    read_as = draw.choice([*sorted(FORMATS), "text"]) if draw.random() < 0.05 else form
    settings = Corpus(
        format=read_as.split()[0],
        archives=bool(archive) and draw.random() < 0.9,
        document="line" if form == "text lines" else draw.choice(["file", "paragraph"]),
        errors=draw.choice(["strict", "strict", "replace"]),
        on_bad_row=draw.choice(["error", "skip"]),
        max_bad_rows=draw.choice([3, None]),
        shard_bytes=draw.choice([100, 1000, 1 << 24]),
        max_document_bytes=draw.choice([500, 1 << 20]),
        newlines=draw.random() < 0.2,
        min_characters=draw.choice([None, None, 5]),
        include=draw.choice([None, None, "e"]),
    )
    if settings.format != "text" and draw.random() < 0.2:
        settings.metadata = ["id"]
    return settings, data


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with up to six changes."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 6])):
        at = draw.randrange(len(out) + 1)
        if draw.random() < 0.3:  # heads and tails hold what the rest is read by
            at = draw.choice([draw.randrange(min(64, len(out)) + 1), max(0, len(out) - draw.randrange(65))])
        stop = min(len(out), at + draw.choice([1, 4, 16, 200]))
        match draw.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                del out[at:]
            case 2:
                del out[at:stop]
            case 3:
                out[at:at] = out[at:stop] * draw.choice([1, 3, 50])
            case 4:
                out[at:stop] = bytes(stop - at)
            case 5:
                value = draw.choice(NUMBERS)
                out[at : at + len(value)] = value
            case 6:
                out[at:at] = draw.choice(PIECES)
            case _:
                out[at:stop] = draw.randbytes(stop - at)
    return bytes(out)


def configuration(settings: Corpus, folder: Path) -> Config:
    """A whole run on the file `in` of a folder."""
    return Config(
        name="fuzz",
        corpus=replace(settings, paths=[str(folder / "in")]),
        tokenizer=Tokenizer(kind="bytes", vocab_size=None),
        window=Window(context_length=4),
        embedding=Embedding(kind="none"),
        engine=Engine(kind="serial"),
        cache=CacheSettings(dir=str(folder / "cache")),
        output=Output(dir=str(folder / "out")),
    )


def ended(number: int, folder: Path) -> tuple[int, str]:
    """The exit code of a case, decided as the command decides it, and what is said."""
    settings, data = case(number)
    (folder / "in").write_bytes(data)
    config = configuration(settings, folder)
    job = cli.Job(None)
    try:
        if number % 20 == 0:
            run.run(config)
        else:
            check(config)
            counts: Counter[str] = Counter()
            planned = plan.make(config.corpus, Cache.open(folder / "cache"), False, 1)
            for shard in planned.shards:
                for batch in corpus.load(shard, config.corpus, counts, reject=len):
                    batch.validate(full=True)
            corpus.require_documents(counts, planned)
            dropped = sum(count for name, count in counts.items() if name.startswith("dropped_") and name.endswith("_bytes"))
            grown = counts["recoded_bytes"] + counts["added_bytes"] + counts["repaired_bytes"]
            assert counts["bytes"] + grown == counts["text_bytes"] + dropped + counts["syntax_bytes"], "the ledger"
    except Exception as error:
        job.error = cli.as_ours(error, bug=True)
    return job.code, f"{type(job.error).__name__}: {job.error}" if job.error else ""


def in_process(number: int, folder: Path) -> tuple[int, str]:
    """The exit code of a case given to the command itself."""
    settings, data = case(number)
    (folder / "in").write_bytes(data)
    plain = Corpus()
    given = {name: value for name, value in vars(settings).items() if value != getattr(plain, name) and name != "format"}
    keys = [f"corpus.{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in given.items()]
    command = [sys.executable, "-m", "pipeline", f"corpus={settings.format}", "corpus.paths=[in]", "tokenizer=bytes", *keys]
    command += ["embedding=none", "window.context_length=4", "engine=serial"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr[-2000:]


def fuzz(first: int, count: int, processes: int = 0) -> tuple[Counter[int], list[str]]:
    """Cases `first` to `first + count`. Returns how many ended with each code, and what must not be."""
    codes: Counter[int] = Counter()
    wrong: list[str] = []

    def stop(signum: int, frame: object) -> None:
        raise RuntimeError(f"no end after {SECONDS} s of the processor, or {HANGS} s")

    def limit(seconds: int, clock: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(clock)

    logging.disable(logging.WARNING)
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGALRM, signal.SIGPROF)]
    try:
        for number in range(first, first + count):
            as_process = processes and (number - first) % max(1, count // processes) == 0
            with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
                begun = time.monotonic()
                limit(*((0, 0) if as_process else (SECONDS, HANGS)))
                code, said = (in_process if as_process else ended)(number, Path(name))
                limit(0, 0)
            codes[code] += 1
            if code not in ALLOWED:
                wrong.append(f"case {number}: exit code {code} after {time.monotonic() - begun:.1f} s: {said}")
    finally:
        limit(0, 0)
        for number, handler in before:
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)
    if peak_memory() > MEMORY:
        wrong.append(f"peak memory {peak_memory() / 1e6:.0f} MB")
    return codes, wrong


def peak_memory() -> int:
    """Bytes: the most that this process, or one that it started, has held.

    Of this process as /proc says it: `ru_maxrss` is inherited from the parent through fork and exec.
    """
    own = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert own
    return 1024 * max(int(own[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def main() -> None:
    """Fuzz, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=0, help="so many of them as the command itself")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case")
    given = parser.parse_args()
    begun = time.monotonic()
    first, count = (given.only, 1) if given.only is not None else (given.first, given.count)
    codes, wrong = fuzz(first, count, given.processes)
    for line in wrong:
        print(line)
    told = ", ".join(f"{count} ended with {code}" for code, count in sorted(codes.items()))
    print(
        f"{sum(codes.values())} cases in {time.monotonic() - begun:.0f} s, peak {peak_memory() / 1e6:.0f} MB: {told}; {len(wrong)} wrong"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
