"""The preloaded library, from Python: built with the machine's compiler, armed in a child, read by its parent."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CREATE, WRITE, FSYNC, CLOSE, RENAME, MKDIR, UNLINK, RMDIR, LINK, UTIME, OPEN, READ = (1 << bit for bit in range(12))
STORING = CREATE | WRITE | FSYNC | CLOSE | RENAME | MKDIR | LINK  # what a disk may refuse
CHANGING = STORING | UNLINK | RMDIR | UTIME
READING = OPEN | READ
COUNT, SIGNAL, FAIL, TORN = range(4)


def missing() -> str | None:
    """Why the harness cannot run on this machine; None where it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux: LD_PRELOAD and /proc"
    if not (shutil.which("gcc") or shutil.which("cc")):
        return "needs a C compiler (gcc or cc) for the preloaded library"
    return None


def build(folder: Path) -> Path:
    """The shared library, compiled into `folder`."""
    library = folder / "shim.so"
    compiler = shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def workshop() -> Path:
    """Where folders are made and thrown away: in memory where there is room, since fsync is free there."""
    memory = Path("/dev/shm")
    fits = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    return memory if fits else Path(tempfile.gettempdir())


class Report(ctypes.Structure):
    """What the library saw; the page is shared with forked children."""

    _fields_ = (("seen", ctypes.c_long), ("fired", ctypes.c_int), ("what", ctypes.c_char * 16), ("path", ctypes.c_char * 1024))


class Shim:
    """The library as it is loaded in this process; its page is this process's and its children's own."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.fault_report.restype = ctypes.POINTER(Report)
        self.report: Report = self._library.fault_report().contents

    def arm(self, folder: Path, mask: int, at: int = 0, action: int = COUNT, value: int = 0, forever: bool = False) -> None:
        """Count calls of these kinds below `folder`, in this process, and act at number `at`."""
        self._library.fault_arm(
            os.fsencode(folder),
            *(ctypes.c_uint(mask), ctypes.c_long(at), ctypes.c_int(action), ctypes.c_int(value), int(forever)),
        )

    def disarm(self) -> None:
        """Count and act no more."""
        self._library.fault_disarm()

    def unlock(self) -> None:
        """From now on flock, in this process, succeeds without locking."""
        self._library.fault_unlock()

    def plain(self) -> None:
        """From now on this process cannot exchange two names in one step."""
        self._library.fault_plain()

    @property
    def point(self) -> str:
        """The call at which it acted, and its path below the folder."""
        return f"{self.report.what.decode()} {self.report.path.decode(errors='replace')}"
