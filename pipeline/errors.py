"""Errors a person can act on: what, where, why, what to do. Each carries its exit code.

0 done, 1 a bug of ours, 2 configuration, 3 input, 4 integrity, 5 environment (disk, permission,
memory), 6 tokenizer or model, 130/143 interrupted.
"""

import errno
import os
import shutil
from pathlib import Path

from pipeline.calm import SAID


class PipelineError(Exception):
    """Base of every error we raise on purpose; `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(PipelineError):
    """A value in the configuration cannot work."""

    exit_code = 2


class InputError(PipelineError):
    """The corpus cannot be read as configured."""

    exit_code = 3


class IntegrityError(PipelineError):
    """Bytes on disk are not the bytes their manifest names."""

    exit_code = 4


class ResourceError(PipelineError):
    """The environment refuses: disk, permission, memory, a dead worker."""

    exit_code = 5


class TokenizerError(PipelineError):
    """A tokenizer or a model cannot be had or cannot be used."""

    exit_code = 6


class Interrupted(PipelineError):
    """SIGINT or SIGTERM asked us to stop; `exit_code` is 128 + the signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)  # what pickle hands to the copy
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return SAID


def from_os_error(error: OSError, path: Path | str | None = None) -> PipelineError:
    """The one-line error for a failed system call: the path, the limit that was hit, the way out."""
    if error.errno == errno.ENOENT and not (path or error.filename):  # of os.getcwd
        return ResourceError("the current folder is gone: change into one that exists.")
    name = str(path or error.filename or "a file")
    where = repr(name) if path or error.filename else name
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "Disk quota reached" if error.errno == errno.EDQUOT else "No space left"
        return ResourceError(
            f"{reason} writing {where}{_free(name)}. Nothing already finished was lost. "
            "Free space or set cache.dir=, output.dir= or hydra.run.dir=."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(f"too many open files at {where}: raise the limit (ulimit -n) or lower engine.workers=.")
    if error.errno == errno.EFBIG:
        return ResourceError(f"a file became too large at {where}: raise the limit (ulimit -f), or set another cache.dir=.")
    if error.errno == errno.ENOMEM:
        return ResourceError(f"out of memory at {where}: lower engine.workers=.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(
            f"{error.strerror} at {where}: check its owner and mode, or set cache.dir=, output.dir= or hydra.run.dir=."
        )
    return ResourceError(f"{error.strerror or error} at {where}.")


def _free(path: str) -> str:
    """` (3 MB free)` at the nearest folder above `path` that exists; empty where it cannot be told, or `path` is no path."""
    if os.sep not in path and not os.path.lexists(path):
        return ""
    place = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        found = os.statvfs(place)
        if found.f_files and not found.f_favail:
            return " (no room for more files)"
        return f" ({shutil.disk_usage(place).free / 1e6:,.0f} MB free)"
    except OSError:
        return ""
