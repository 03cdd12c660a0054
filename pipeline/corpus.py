"""Stage `load`: a shard of source bytes becomes batches of documents.

    part ──content──▶ bytes ──reader of its format──▶ documents ──[cleaning]──▶ batches of at most 2 MiB
                                        └──[rejects]──▶ rejects.jsonl

`content.py` takes a part out of its archive and its compression. Each family of formats has a reader: `plain_text.py`,
`json_records.py`, `delimited.py`, `tables.py`, `web_archive.py`; `columns.py` says which columns make the text.
`cleaning.py` repairs and leaves out what the configuration asks for, `rejects.py` keeps the list of what was left out.

Every byte is accounted for, in `counts` of `load`. Bytes read, and what was added to them:

    bytes + recoded_bytes + added_bytes + repaired_bytes
        = text_bytes + syntax_bytes + the dropped bytes of every reason: blank, bad, undecodable, short, long, ...

`bytes` are those of the decompressed text; in tables (Parquet, Arrow) of the values of the text columns. `syntax_bytes` are
line ends, blank lines, byte-order marks and all of a record that is not its text; `recoded_bytes` is what the text grew by
when it became UTF-8, or when what could not be decoded became U+FFFD; `added_bytes` are the words of a template, and
`repaired_bytes` what repairs added, or less than nothing where they took away.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import cleaning, delimited, json_records, plain_text, tables
from pipeline.arrow import string_bytes, text_bytes
from pipeline.batches import Batches, regular, with_metadata
from pipeline.config import Corpus
from pipeline.console import counted
from pipeline.content import Counts, Opener
from pipeline.errors import InputError, from_os_error
from pipeline.plan import Plan, Shard, require_planned
from pipeline.rejects import Rejects

log = logging.getLogger(__name__)

VERSION = 8
READERS = {
    "text": plain_text.read,
    "jsonl": json_records.read_lines,
    "json": json_records.read_array,
    "csv": delimited.read,
    "tsv": delimited.read,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
}
TABLES = ("parquet", "arrow")
BAD = {"undecodable": "could not be decoded", "bad": "could not be read"}
RULES = ("short", "long", "unmatched", "excluded")
ASKED = (  # settings that are in the key only where they are not left at their default
    *("template", "metadata", "on_bad_row", "newlines", "unicode", "ftfy", "include", "exclude", "list_dropped", "archives"),
    *("min_characters", "max_characters"),
)


def identity(corpus: Corpus) -> dict[str, object]:
    """The settings that can change what `load` gives."""
    common: dict[str, object] = {"format": corpus.format, "errors": corpus.errors, "shard_bytes": corpus.shard_bytes}
    if corpus.format in ("text", "auto"):
        common |= {"document": corpus.document}
    if corpus.format not in TABLES:
        common |= {"encoding": corpus.encoding}
    if corpus.format != "text":
        common |= {"text_column": corpus.text_column}
    plain = Corpus()
    bounded = corpus.on_bad_row == "skip" or corpus.format in ("warc", "auto")  # what is too long to be held is left out
    if bounded and corpus.max_document_bytes != plain.max_document_bytes:
        common |= {"max_document_bytes": corpus.max_document_bytes}
    return common | {name: getattr(corpus, name) for name in ASKED if getattr(corpus, name) != getattr(plain, name)}


def schema(corpus: Corpus) -> pa.Schema:
    """The columns of what `load` gives."""
    return with_metadata(corpus.metadata)


def load(
    shard: Shard, corpus: Corpus, counts: Counts, rehash: bool = False, reject: Callable[[bytes], Any] | None = None
) -> Batches:
    """The documents of a shard, in batches of at most 2 MiB of text.

    `counts` gains `documents`, `nul_bytes`, `empty_files` and the bytes that the module's equation names; `reject` is
    given the lines of the list of rejects. Raises InputError naming file, line and byte of what is wrong, or where a file
    is no longer what was planned: its stat is compared before and after, and its bytes are hashed again where that
    differs, or always with `rehash`.
    """
    for batch in regular(_read(shard, corpus, counts, rehash, reject)):
        counts["documents"] += batch["ends"].true_count
        counts["text_bytes"] += text_bytes(batch["text"])
        yield batch


def several_documents(shards: Iterable[Shard], corpus: Corpus) -> bool:
    """Does the corpus hold two documents or more? Reads no further than the second, so all of it where there is but one."""
    counts: Counts = Counter()
    return any(counts["documents"] > 1 for shard in shards for _ in load(shard, corpus, counts))


def require_documents(counts: Counts, plan: Plan) -> None:
    """Raise InputError where the `counts` of all shards together hold no document, with the reasons."""
    if not counts["documents"]:
        reasons = {
            ("empty file", ""): counts["empty_files"],
            ("document", " of white space alone"): counts["dropped_blank_documents"],
            ("undecodable document", ""): counts["dropped_undecodable_documents"],
            ("bad row", ""): counts["dropped_bad_documents"],
            ("document", " left out by a rule"): sum(counts[f"dropped_{reason}_documents"] for reason in RULES),
            ("record", " of HTML, of which text must be made first, as WET files hold it"): counts["html_records"],
            ("record", " without text"): counts["other_records"],
        }
        told = (
            ", ".join(counted(count, what) + of for (what, of), count in reasons.items() if count) or "nothing but separators"
        )
        size = counted(sum(source.bytes for source in plan.sources), "byte")
        raise InputError(f"read {counted(len(plan.sources), 'file')}, {size}, 0 usable documents (reasons: {told}).")


def _reader(form: str) -> Callable[..., Batches]:
    """What reads a format."""
    if form == "warc":
        from pipeline import web_archive  # which takes Python's package for e-mail along

        return web_archive.read
    return READERS[form]


def _read(shard: Shard, corpus: Corpus, counts: Counts, rehash: bool, reject: Callable[[bytes], Any] | None) -> Batches:
    """The documents of a shard as its readers give them, from files that are what was planned."""
    rejects = Rejects(corpus, counts, reject)
    with Opener(corpus) as opener:
        for part in shard.parts:
            nul = size = 0
            before = counts.copy()
            try:
                file = opener.open(part)
                stat = file.stat()
                if stat != part.stat:
                    require_planned(file, part, corpus)
                content = opener.content(part)
                documents = _reader(content.format)(content, corpus, counts, rejects)
                if cleaning.asked(corpus):
                    documents = cleaning.clean(documents, content, corpus, counts, rejects)
                for batch in documents:
                    data, _ = string_bytes(batch["text"])
                    size += len(data)
                    if len(data) and not data.min():  # most text has none, and to see that is faster than to count
                        nul += len(data) - int(np.count_nonzero(data))
                    yield batch
                if rehash or file.stat() != stat:
                    require_planned(file, part, corpus)
            except FileNotFoundError as error:
                raise InputError(
                    f"{part.path!r} is gone since the run began; nothing was published from it. Run again."
                ) from error
            except OSError as error:
                raise from_os_error(error, part.path) from error
            counts["nul_bytes"] += nul
            if nul > size / 1000:
                _warn(f"{content.name!r} holds {nul} NUL bytes in {size}: is it a binary file?")
            for reason, said in BAD.items():
                rows, lost = (
                    counts[name] - before[name] for name in (f"dropped_{reason}_documents", f"dropped_{reason}_bytes")
                )
                if rows:
                    what = f"{counted(rows, 'document')} of {counted(lost, 'byte')} from byte or row {part.start} on"
                    _warn(f"{content.name!r}: {what} {said}: skipped.")
            if content.format not in TABLES:
                counts["bytes"] += content.size
            if part.start == part.end or not (content.plain or content.size):
                counts["empty_files"] += 1


@lru_cache
def _warn(message: str) -> None:
    """Warn once, however often a part is read in a run."""
    log.warning("%s", message)
