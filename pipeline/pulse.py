"""Does a process hang? It is looked at from outside, as one that hangs cannot say so.

Run as a script this is a watchman: `python pulse.py PID PATIENCE` kills its parent, PID, once that hangs over an item. It
hears on stdin when one begins (+) and ends (-), and ends with its parent. It imports nothing of ours and is there at once.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

LOOK = 1.0  # seconds between two looks at a process


class Pulse:
    """The processor time of a process, from now on."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.seen = (time.monotonic(), self._cpu())  # when it was last seen working, and its processor time then

    def _cpu(self) -> float:
        """Seconds of processor time it has used; ever growing where that cannot be told."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return time.monotonic()

    def stopped(self, patience: float) -> bool:
        """Has it been idle for so many seconds?"""
        now, cpu = time.monotonic(), self._cpu()
        if cpu - self.seen[1] > patience / 200:
            self.seen = (now, cpu)
        return now - self.seen[0] > patience


def watch(pid: int, patience: float) -> None:
    """The life of a watchman."""
    pulse = None
    while True:
        if select.select([0], [], [], LOOK)[0]:
            if not (told := os.read(0, 1)):
                return
            pulse = Pulse(pid) if told == b"+" else None
        elif pulse and pulse.stopped(patience):
            os.kill(pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
