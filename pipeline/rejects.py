"""What is not kept: counted by reason, and listed in a file of its own, one JSON object a line.

    {"file": "logs.jsonl", "line": 3, "start": 52, "end": 71, "reason": "bad", "detail": "invalid JSON (col 9): …",
     "excerpt": "{\\"text\\": tru}"}

*Bad rows* cannot be read: malformed, without a text, not UTF-8. By default the first is an error; with
`corpus.on_bad_row=skip` they are listed, up to `corpus.max_bad_rows` of them in a run. Documents that are *dropped*
because a rule says so are counted always, and listed with `corpus.list_dropped=true`. `start` and `end` are those that
the document would have had; `line` stands in files of lines, and counts from 1.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline.config import Corpus
from pipeline.content import Content
from pipeline.errors import InputError, PipelineError

EXCERPT = 200  # characters
BAD = ("bad", "undecodable")
SKIP = "Set corpus.on_bad_row=skip to leave such rows out."


class BadRow(InputError):
    """A row that cannot be read: what is wrong, and what may be set, which no list of rejects needs to say."""

    def __init__(self, said: str, advice: str = SKIP) -> None:
        super().__init__(said, advice)

    def __str__(self) -> str:
        return " ".join(self.args)


def listed(corpus: Corpus) -> bool:
    """Does the stage write a list of rejects?"""
    return corpus.on_bad_row == "skip" or corpus.list_dropped


class Rejects:
    """Where readers bring what they cannot keep."""

    def __init__(self, corpus: Corpus, counts: Counter[str], write: Callable[[bytes], Any] | None = None) -> None:
        self._corpus, self.counts, self._write = corpus, counts, write
        self.skipping = corpus.on_bad_row == "skip"

    def bad(
        self, content: Content, start: int, end: int, data: bytes, detail: Callable[[], PipelineError], reason: str = "bad",
        size: int | None = None,
    ) -> None:  # fmt: skip
        """A row that cannot be read: raises the error for it, or counts and lists it. `size`: its bytes, if not `data`."""
        if not self.skipping:
            raise detail()

        def told() -> str:
            return str(detail().args[0]).replace(repr(content.name), repr(content.shown))

        self.drop(content, start, end, data, reason, told, size)
        require_budget(self.counts, self._corpus)

    def drop(
        self, content: Content, start: int, end: int, data: bytes, reason: str, detail: Callable[[], str] = str,
        size: int | None = None,
    ) -> None:  # fmt: skip
        """A document that is not kept for this reason."""
        self.counts[f"dropped_{reason}_documents"] += 1
        self.counts[f"dropped_{reason}_bytes"] += len(data) if size is None else size
        if self._write is not None and (reason in BAD or self._corpus.list_dropped):
            row: dict[str, Any] = {"file": content.shown, "start": start, "end": end, "reason": reason}
            if not content.rowwise:
                row["line"] = content.line_and_byte(start)[0]
            row["detail"] = detail()  # which may look for a later line than that
            row["excerpt"] = data[: 4 * EXCERPT].decode(errors="replace")[:EXCERPT]
            self._write(json.dumps(row, sort_keys=True).encode() + b"\n")


def require_budget(counts: Counter[str], corpus: Corpus) -> None:
    """Raise InputError where there are more bad rows than `corpus.max_bad_rows`."""
    found = sum(counts[f"dropped_{reason}_documents"] for reason in BAD)
    if corpus.max_bad_rows is not None and found > corpus.max_bad_rows:
        raise InputError(
            f"more than corpus.max_bad_rows={corpus.max_bad_rows} rows cannot be read: is it the right corpus.format? "
            "Raise it (null: any number), or set corpus.on_bad_row=error to see the first."
        )
