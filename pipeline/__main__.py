"""Hydra's door: `python -m pipeline`. Everything else is in `pipeline.cli`, where worker processes can find it."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the run begins, Ctrl-C ends it without a traceback

from pipeline.cli import main

if __name__ == "__main__":
    main()
