"""Repairing text and leaving documents out, only where it is asked for.

    document ──ftfy──▶ ──unicode──▶ ──newlines──▶ long enough? ▶ short enough? ▶ include? ▶ exclude? ──▶ kept

Repairs are counted by document (`repaired_ftfy`, `repaired_unicode`, `repaired_newlines`) and by the bytes that the text
grew (`repaired_bytes`, which may be negative). Documents that are left out are counted by the first reason: `short`, `long`,
`unmatched`, `excluded`, with the bytes of the text as it was then. All of a document is held for it, so none may be longer
than `corpus.max_document_bytes`.

`include` and `exclude` are searched for anywhere in the text, as by Python's `re.search` with `.` for any character but a
line's end. A pattern in which a repeat holds a repeat, as `(a+)+$`, may take a time that doubles with every character: then
a run seems to hang. Write what cannot match in many ways.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import call, joined, numbers, string_bytes, text_bytes, to_numpy
from pipeline.batches import SCHEMA, Batches, make_batch, row_bytes
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import InputError, ResourceError
from pipeline.plain_text import without_blank
from pipeline.rejects import Rejects

LINE_END = re.compile(r"\r\n?")


def asked(corpus: Corpus) -> bool:
    """Is there anything to do?"""
    settings = (corpus.newlines, corpus.unicode != "none", corpus.ftfy, corpus.include, corpus.exclude)
    return any(settings) or corpus.min_characters is not None or corpus.max_characters is not None


def clean(documents: Batches, content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The documents of a content, repaired, less those that are left out."""
    for batch in _whole(documents, content, corpus):
        text = batch["text"]
        if corpus.newlines or corpus.unicode != "none" or corpus.ftfy:
            repaired = [_repair(row.decode(), corpus, counts) for row in row_bytes(text)]
            text = joined([row.encode() for row in repaired])
            counts["repaired_bytes"] += text_bytes(text) - text_bytes(batch["text"])
            batch = batch.set_column(0, SCHEMA.field("text"), text)
            batch = without_blank(batch, counts)
        yield _kept(batch, content, corpus, counts, rejects)


def _whole(documents: Batches, content: Content, corpus: Corpus) -> Batches:
    """The same documents, those that come in pieces as one row."""
    pieces: list[bytes] = []
    size = start = 0
    for batch in documents:
        if not pieces and batch["ends"].true_count == len(batch):
            yield batch
            continue
        if not pieces:
            start, size = batch["start"][0].as_py(), 0
        pieces += row_bytes(batch["text"])
        size += text_bytes(batch["text"])
        if size > corpus.max_document_bytes:
            raise InputError(
                f"{content.name!r}: the document that begins at byte {start} is longer than corpus.max_document_bytes="
                f"{corpus.max_document_bytes}, and must be held to be repaired or judged: raise it, or set corpus.document=."
            )
        if batch["ends"].true_count:
            text, end = joined([b"".join(pieces)]), batch["end"][len(batch) - 1].as_py()
            metadata = {name: batch[name] for name in batch.schema.names[len(SCHEMA) :]}
            yield make_batch(text, content.source, np.array([start]), np.array([end]), metadata=metadata)
            pieces = []


def _repair(text: str, corpus: Corpus, counts: Counts) -> str:
    steps: list[tuple[str, Any]] = []
    if corpus.ftfy:
        steps.append(("ftfy", _unmangled()))
    if corpus.unicode != "none":
        form: Any = corpus.unicode
        steps.append(("unicode", lambda text: unicodedata.normalize(form, text)))
    if corpus.newlines:
        steps.append(("newlines", lambda text: LINE_END.sub("\n", text)))
    for name, step in steps:
        new = step(text)
        counts[f"repaired_{name}"] += new != text
        text = new
    return text


@lru_cache
def _unmangled() -> Callable[[str], str]:
    """ftfy's repair of text that was decoded by the wrong charset, line by line, and none of its other repairs."""
    try:
        import ftfy
    except ImportError as error:
        raise ResourceError("corpus.ftfy=true needs a library: pip install 'pretraining-pipeline[ftfy]'.") from error
    off = dict.fromkeys(
        ("unescape_html", "remove_terminal_escapes", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes",
         "fix_line_breaks", "fix_surrogates", "remove_control_chars"), False
    )  # fmt: skip
    config = ftfy.TextFixerConfig(normalization=None, **off)
    return lambda text: str(ftfy.fix_text(text, config))


def _kept(batch: pa.RecordBatch, content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> pa.RecordBatch:
    """The rows that no rule leaves out."""
    data, offsets = string_bytes(batch["text"])
    reasons: dict[int, str] = {}
    least, most = corpus.min_characters, corpus.max_characters
    if least is not None or most is not None:
        length = to_numpy(call("utf8_length", batch["text"]))
        if least is not None:
            reasons |= dict.fromkeys(np.flatnonzero(length < least).tolist(), "short")
        if most is not None:
            reasons |= dict.fromkeys(np.flatnonzero(length > most).tolist(), "long")
    include, exclude = (re.compile(pattern) if pattern else None for pattern in (corpus.include, corpus.exclude))
    for row in range(len(batch)) if include or exclude else ():
        if row not in reasons:
            text = data[offsets[row] : offsets[row + 1]].tobytes().decode()
            if include and not include.search(text):
                reasons[row] = "unmatched"
            elif exclude and exclude.search(text):
                reasons[row] = "excluded"
    if not reasons:
        return batch
    for row, reason in sorted(reasons.items()):
        start, end = batch["start"][row].as_py(), batch["end"][row].as_py()
        rejects.drop(content, start, end, data[offsets[row] : offsets[row + 1]].tobytes(), reason)
    return batch.take(numbers(np.setdiff1d(np.arange(len(batch)), np.array(list(reasons)))))
