"""Real `ray start` processes on this machine, and the pipeline on them, as the README says it: `python -m scripts.cluster`.

The same command runs with the threads of this machine and on a cluster of a head and some nodes, and every file of
cache and output is compared. `--kill worker`, `node` or `head` ends one of them that is at work, in the midst of the run, which
must say that it has noticed; where the run ends with it, it is started again on a new cluster, and what had been published
must still lie there as it was.
"""

import argparse
import contextlib
import hashlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "PIPELINE_NODE"  # an environment variable by which every process of a node is known as ours
COPIES = 200  # of the sample: 3.8 MB
LINE = (
    *("corpus=text", "corpus.paths=[texts]", "corpus.document=paragraph", "corpus.shard_bytes=40000"),
    *("window.context_length=64", "embedding=none", "name=x"),
)


class Cluster:
    """A head, which computes nothing, and nodes of one core. Ends with the block that it is used in."""

    def __init__(self, nodes: int) -> None:
        self.mark, self.started = secrets.token_hex(8), 0
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short name: Ray's sockets lie in it
        with socket.create_server(("", 0)) as free:
            self.address = f"{socket.gethostbyname(socket.gethostname())}:{free.getsockname()[1]}"
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.nodes = nodes

    def start(self, *options: str) -> None:
        """`ray start` with these options."""
        command = ["ray", "start", *options, "--disable-usage-stats"]
        say(command)
        environment = {**self.environment, MARK: f"{self.mark}-{self.started}"}
        self.started += 1
        path = Path(sys.executable).parent / "ray"
        done = subprocess.run([path, *command[1:]], env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(f"ray start failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")

    def processes(self, node: int | None = None) -> Iterator[int]:
        """Those of one node, or of all."""
        wanted = f"{MARK}={self.mark}-{'' if node is None else node}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if any(one == wanted or (node is None and one.startswith(wanted)) for one in path.read_bytes().split(b"\0")):
                    yield int(path.parent.name)

    def kill(self, what: str, run: "subprocess.Popen[bytes]") -> None:
        """End one worker that is at work for the run, the last node, or the head."""
        if what == "worker":
            until(lambda: any(end_at_work(pid) for pid in self.processes()), run)
            return
        for pid in list(self.processes({"node": self.started - 1, "head": 0}[what])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> "Cluster":
        port = self.address.partition(":")[2]
        options = ["--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        try:
            self.start("--head", f"--port={port}", *options)
            for _ in range(self.nodes):
                self.start(f"--address={self.address}", "--num-cpus=1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def say(command: list[str]) -> None:
    """Show a command as a person would type it."""
    print(f"$ {shlex.join(command)}", flush=True)


def end_at_work(pid: int) -> bool:
    """Kill a process, if it is a worker of Ray that computes a shard; it is stopped first, so that it cannot finish."""

    def works() -> bool:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::shard")

    with contextlib.suppress(OSError):
        if works():
            os.kill(pid, signal.SIGSTOP)
            at_work = works()
            os.kill(pid, signal.SIGKILL if at_work else signal.SIGCONT)
            return at_work
    return False


def begin(at: Path, environment: dict[str, str], *engine: str) -> "subprocess.Popen[bytes]":
    """Start the pipeline in a folder, where `said` is what it says on stderr."""
    command = ["python", "-m", "pipeline", *LINE, *engine]
    say(command)
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    with open(at / "said", "w") as said:
        return subprocess.Popen([sys.executable, *command[1:]], cwd=at, env=environment, stdout=subprocess.DEVNULL, stderr=said)


def made(at: Path) -> dict[str, str]:
    """sha256 of every file of the dataset and of every entry of the cache."""
    paths = [p for p in [*(at / "outputs/x").rglob("*"), *(at / "data/cache").glob("*/*/*")] if p.is_file()]
    kept = [p for p in paths if p.name not in ("run.json", "report.html", ".lock") and p.parents[1].name != "tmp"]
    return {str(p.relative_to(at)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def published(at: Path) -> dict[Path, tuple[int, int]]:
    """The files behind receipts: which they are, and when they were written."""
    receipts = (at / "data/cache").glob("*/*/.*.receipt")
    paths = [path.parent / path.name[1 : -len(".receipt")] for path in receipts]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def until(true: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    """Wait while a process runs and something is not yet so."""
    while process.poll() is None and not true():
        time.sleep(0.01)


def main() -> int:
    """The exit code: 0 where all bytes are the same, a death was noticed, and nothing that was published computed again."""
    parser = argparse.ArgumentParser(prog="python -m scripts.cluster", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--kill", choices=("worker", "node", "head"))
    options = parser.parse_args()
    text = (ROOT / "data" / "sample.txt").read_text("utf-8")
    with tempfile.TemporaryDirectory(prefix="pipeline-cluster-") as folder:
        here, there = Path(folder, "here").resolve(), Path(folder, "there").resolve()
        for at in (here, there):
            (at / "texts").mkdir(parents=True)
            (at / "texts" / "sample.txt").write_text(f"{text}\n\n" * COPIES, "utf-8")
        if begin(here, dict(os.environ)).wait():
            print((here / "said").read_text(), end="")
            return 1
        before: dict[Path, tuple[int, int]] = {}
        with Cluster(options.nodes) as cluster:
            run = begin(there, cluster.environment, "engine=ray", f"engine.address={cluster.address}")
            if options.kill:
                until(lambda: len(published(there)) >= 60, run)
                before = published(there)
                print(f"kill a {options.kill}: {len(before)} files are published", flush=True)
                cluster.kill(options.kill, run)
            code = run.wait()
        said = (there / "said").read_text()
        print(said, end="", flush=True)
        noticed = not options.kill or {"head": code == 5}.get(options.kill, "a worker died computing" in said)
        if options.kill == "head":
            print(f"exit code {code}", flush=True)
            with Cluster(options.nodes) as cluster:
                code = begin(there, cluster.environment, "engine=ray", f"engine.address={cluster.address}").wait()
        ours, theirs = made(here), made(there)
        differ = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        again = [path for path, was in before.items() if (path.stat().st_ino, path.stat().st_mtime_ns) != was]
        print(f"{len(theirs)} files, {len(differ)} differ; {len(again)} of {len(before)} were computed again")
        if not noticed:
            print(f"the death of a {options.kill} was not noticed")
        return bool(code or differ or again or not theirs or not noticed)


if __name__ == "__main__":
    sys.exit(main())
