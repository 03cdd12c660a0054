"""How Ctrl-C and SIGTERM end a process that has hardly begun: in one line, as `engine.signals` does later.

Entry points call `begin` before they import anything else, so this imports next to nothing.
"""

import os
import signal
from types import FrameType

SAID = "Interrupted. What is finished is kept; rerun the same command to continue."


def begin() -> None:
    """From here on SIGINT and SIGTERM, where nobody else takes or ignores them, end the process with 128 + the signal.

    At once: there is nothing yet to be given back.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"{SAID}\n".encode())
    finally:
        os._exit(128 + number)
