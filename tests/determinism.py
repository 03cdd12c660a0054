"""The same bytes whoever works, in whatever surroundings: `python -m tests.determinism`.

Every engine × workers × batch size × surroundings, each a new interpreter with a cache and an output of its own; every
file of every dataset is compared. The surroundings: hash seed, locale, time zone, umask, HOME and /tmp.
"""

import argparse
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.shim import workshop

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {
    "a.txt": "the ferry was late again\n" * 90,
    "céu.txt": "because of fog, 你好\n" * 60,
    "z.txt": "Gisburn\ncéu 🙂\n" * 25,
}
LINES = {  # the settings of the data, each with bytes of its own
    "bpe": (
        "tokenizer=bpe",
        "tokenizer.vocab_size=300",
        "corpus.document=line",
        "window.stride=8",
        "embedding.embedding_dim=2",
    ),
    "words": ("tokenizer=words", "corpus.document=paragraph", "window.mode=document", "window.truncate=true", "embedding=none"),
}
ENGINES = [("serial", 1), *itertools.product(("threads", "processes"), (1, 2, 7))]
BATCHES = (1, 64, 1000)
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
SURROUNDINGS: dict[str, dict[str, str | None]] = {  # variables, None for one that is not set; UMASK and FULL are ours
    "plain": {},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 4294967295": {"PYTHONHASHSEED": "4294967295"},
    "an ASCII locale": ASCII,
    "a Turkish locale": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "Kiritimati, umask 077": {"TZ": "Pacific/Kiritimati", "UMASK": "077"},
    "Honolulu, umask 000": {"TZ": "Pacific/Honolulu", "UMASK": "000"},
    "no HOME, no TMPDIR": {"HOME": None, "TMPDIR": "/nowhere"},
    "a full /tmp": {"FULL": "1"},
    "all at once": {**ASCII, "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "UMASK": "077", "HOME": None, "TMPDIR": "/nowhere"},
}
FILL = 'mount -t tmpfs -o size=64k none /tmp && dd if=/dev/zero of=/tmp/full bs=64k count=1 2> /dev/null; exec "$@"'


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset but the record of the run."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.json", "report.html")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def once(at: Path, line: str, engine: tuple[str, int], batch: int, surroundings: str) -> dict[str, str]:
    """The files of the dataset that one run makes in the folder `at`, which is removed again."""
    (at / "texts").mkdir(parents=True)
    for name, text in TEXTS.items():
        (at / "texts" / name).write_text(text, "utf-8")
    settings = SURROUNDINGS[surroundings]
    environment = {k: v for k, v in {**os.environ, "PYTHONPATH": str(ROOT), **settings}.items() if v is not None}
    command = [
        *(sys.executable, "-m", "pipeline", "corpus=text", "corpus.paths=[texts]", "corpus.shard_bytes=700", "name=x"),
        *("window.context_length=16", *LINES[line]),
        *(f"engine={engine[0]}", f"{'+' if engine[0] == 'serial' else ''}engine.batch_size={batch}"),
        *([] if engine[0] == "serial" else [f"engine.workers={engine[1]}"]),
    ]
    if environment.pop("FULL", None):
        command = ["unshare", "-m", "sh", "-c", FILL, "sh", *command]
    mask = int(environment.pop("UMASK", "-1"), 8)
    done = subprocess.run(command, cwd=at, env=environment, umask=mask, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{line}, {engine}, batch {batch}, {surroundings}: exit {done.returncode}: {done.stderr}")
    found = digests(at / "outputs/x")
    shutil.rmtree(at)
    return found


def matrix() -> Iterator[tuple[str, tuple[str, int], int, str]]:
    """Every combination, the plain one of each line first."""
    hidden = any(str(place).startswith("/tmp/") for place in (sys.executable, ROOT))  # by the disk that fills /tmp
    can_fill = os.getuid() == 0 and shutil.which("unshare") and not hidden
    places = [name for name, settings in SURROUNDINGS.items() if "FULL" not in settings or can_fill]
    return itertools.product(LINES, ENGINES, BATCHES, places)


def main() -> int:
    """Run the matrix and print "N of N". Returns the exit code: 1 where a run differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.determinism", description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at the same time")
    jobs = parser.parse_args().jobs
    base, began = Path(tempfile.mkdtemp(prefix="determinism-", dir=workshop())), time.monotonic()
    cells = list(matrix())
    same, pool = 0, ThreadPoolExecutor(jobs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        expected = {line: once(base / line, line, ENGINES[0], BATCHES[0], "plain") for line in LINES}
        results = [pool.submit(once, base / str(number), *cell) for number, cell in enumerate(cells)]
        for cell, result in zip(cells, results, strict=True):
            try:
                differs = [name for name, _ in expected[cell[0]].items() ^ result.result().items()]
            except RuntimeError as error:
                differs = [str(error)]
            same += not differs
            if differs:
                print(f"  {cell}: {sorted(set(differs))}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(base, ignore_errors=True)
    print(f"{same} of {len(cells)} runs gave the same bytes ({time.monotonic() - began:.0f} s)")
    return same < len(cells)


if __name__ == "__main__":
    sys.exit(main())
