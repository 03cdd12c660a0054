"""Folders of temporary files, each named after the run that owns it, so that those of dead runs can be told and swept."""

import contextlib
import os
import re
import shutil
import socket
import time
from functools import lru_cache
from pathlib import Path

from pipeline.files import digest

DAY = 86_400  # seconds
NAME = re.compile(r"[0-9a-f]{16}~\d+~\d*~\d+|array~[^~]+~\d+")  # of a run's folder, or one of the jobs of an array


def _host() -> str:
    """This machine since it started, and the process namespace: where a process number means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return digest(parts)[:16]


def _process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where it is gone, a zombie, or unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def run_name(nth: int) -> str:
    """The name of the folder of the calling process's run `nth`: machine, process, and when that started."""
    return f"{_owner(os.getpid())}~{nth}"


@lru_cache(maxsize=1)
def _owner(pid: int) -> str:
    """What the names of all runs of the calling process begin with."""
    return f"{_host()}~{pid}~{_process_start(pid)}"


def alive(run: Path) -> bool:
    """May a folder not be swept? One of another machine is believed for a day after its last file; what is no run's, ever.

    Clocks may differ, by up to a day either way. A folder of a day ahead was left when a clock was wrong: a run that lives
    makes further files in its own, by the clock as it is now.
    """
    if not NAME.fullmatch(run.name):
        return True
    if run.name.partition("~")[0] != _host():
        return abs(time.time() - run.stat().st_mtime) < DAY
    return not gone(run.name)


def gone(run: str) -> bool:
    """Was a run, by its name, on this machine, and its process is no more?"""
    host, pid, start, *_ = [*run.split("~"), "", ""]
    if host != _host():
        return False
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _process_start(int(pid)) != start


def sweep(folder: Path) -> None:
    """Remove from a folder of temporary folders, each named after its run, those of dead runs."""
    with contextlib.suppress(OSError):
        for run in folder.iterdir():
            with contextlib.suppress(OSError):
                if not alive(run):
                    shutil.rmtree(run, ignore_errors=True)
