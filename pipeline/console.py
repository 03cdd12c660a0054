"""What a person sees: progress while it runs, one table at the end, errors in one line.

Logs and progress go to stderr, the table and the path of the dataset to stdout. On a terminal progress is a
bar with rate and time left; elsewhere it is a plain line, the first after three seconds, then every ten.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import from_os_error
from pipeline.guard import redacted

Advance = Callable[[int], None]


def setup() -> None:
    """Make stdout and stderr safe to write to, and send our log to stderr, one plain line a record."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before we started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks a character is no reason to fail
    handler = _Stderr()
    handler.setFormatter(_Plain())
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("pipeline"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)


class _Stderr(logging.Handler):
    """To what is stderr at the moment: while a bar is drawn, rich writes above it."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(redacted(record.getMessage()))
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def say(text: str, end: str = "\n") -> None:
    """Print to stdout at once, with what others have printed. Where its reader has gone, nothing more is said.

    Raises ResourceError where it cannot be written.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still held would be tried again as the process ends
        if not isinstance(error, BrokenPipeError):
            raise from_os_error(error, "standard output") from error


def tell(text: str, end: str = "\n") -> None:
    """Print to stderr at once. Where it cannot be written nothing more is told: how a run ends does not hang on it."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def draw(text: Any) -> None:
    """Print a `rich.text.Text` to stdout: in colour on a terminal (unless NO_COLOR is set), plain elsewhere."""
    if not sys.stdout.isatty():
        say(text.plain)
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file name cannot write to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float) -> str:
    """Bytes for a person.

    >>> size(999), size(12_345), size(999_600)
    ('999 B', '12.3 kB', '1 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5 or unit == "PB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def counted(count: int, what: str) -> str:
    """A count with its noun: 1 row, 39 rows."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


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
    started = time.monotonic()
    said = started - 7  # the first line after three seconds, then one every ten
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

    started = time.monotonic()

    class Late(Progress):
        """Shows itself after a second, whether or not anything has advanced by then."""

        def get_renderables(self) -> Any:
            return super().get_renderables() if time.monotonic() - started > 1 else ()

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Late(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def table(columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout: text to the left, numbers to the right, no column that is empty in every row.

    Text is folded between words where the terminal is too narrow; never within one, even if a line grows too long.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    utf = "utf" in (sys.stdout.encoding or "").lower()
    grid = Table(box=box.SIMPLE_HEAD if utf else box.ASCII2, pad_edge=False, show_edge=False)
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    least = 0
    for index in kept:
        cells = [_cell(row[index]) for row in rows]
        number = all(isinstance(row[index], int | float) or row[index] == "" for row in rows)
        longest = max(
            len(word) for cell in (columns[index], *cells) for word in (cell.split(" ") if len(cell) > 24 else [cell])
        )
        grid.add_column(columns[index], justify="right" if number else "left", min_width=longest)
        least += longest + 4  # and what separates columns
    for row in rows:
        grid.add_row(*(Text(_cell(row[index])) for index in kept))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
    out = io.StringIO()
    Console(file=out, width=max(width, least), highlight=False, color_system=None).print(grid)
    say("\n".join(line.rstrip() for line in out.getvalue().splitlines()))


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return printable(redacted(str(value)))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
