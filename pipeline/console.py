"""What a person sees: progress while it runs, one table at the end, errors in one line.

Logs and progress go to stderr, the table and the path of the dataset to stdout. On a terminal progress is a
bar with rate and time left; elsewhere it is a plain line every ten seconds.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Advance = Callable[[int], None]


def setup_logging() -> None:
    """Send our log to stderr, one plain line a record; nothing of other libraries below warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file name cannot write to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float) -> str:
    """Bytes for a person: 1,234 B, 12.3 kB, 4.56 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A length of time in its largest unit: 5 s, 3 min, 2 h, 9 d."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Progress of `total` bytes of work; call the result with the bytes that are done."""
    with _bar(what, total) if sys.stderr.isatty() else _lines(what, total) as advance:
        yield advance


@contextlib.contextmanager
def passes(total: int) -> Iterator[Callable[[str, int], None]]:
    """Progress of work that goes over `total` bytes more than once; call the result with the pass and its bytes so far."""
    with contextlib.ExitStack() as stack:
        name, done, advance = "", 0, None

        def told(what: str, count: int) -> None:
            nonlocal name, done, advance
            if what != name or advance is None:
                stack.close()
                name, done, advance = what, 0, stack.enter_context(progress(what, total))
            advance(count - done)
            done = count

        yield told


@contextlib.contextmanager
def _lines(what: str, total: int) -> Iterator[Advance]:
    started = said = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= 10:
            said = now
            rate = done / (now - started)
            left = (total - done) / rate if rate else 0
            logging.getLogger(__name__).info(
                "%s: %s of %s, %s/s, %.0f s left", what, size(done), size(total), size(rate), max(left, 0)
            )

    yield advance


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=False) as bar:
        task = bar.add_task(what, total=total, visible=False)

        def advance(count: int) -> None:
            bar.update(task, advance=count, visible=time.monotonic() - started > 1)

        yield advance


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout: text to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)
    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        right = bool(rows) and all(isinstance(row[index], int | float) or row[index] == "" for row in rows)
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    out.print(grid)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return printable(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
