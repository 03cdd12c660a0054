"""WARC, the archive of web crawls (ISO 28500:2017), and WET, its text: each record with a text payload is a document.

    WARC/1.0⏎ WARC-Type: conversion⏎ Content-Type: text/plain⏎ Content-Length: 27⏎ ⏎ <27 bytes> ⏎ ⏎ WARC/1.0⏎ …

Taken are `conversion` and `resource` records whose Content-Type is text, and `response` records whose HTTP answer is 200
and plain text; HTML is no text until somebody has made it to, so it is passed over. What is passed over is counted, HTML
(`html_records`) apart from requests, images and the like, and from answers that were sent in chunks or compressed in a way
that cannot be undone (`other_records`). `start` and `end` of a document are those of its record's payload as it lies there;
`corpus.metadata` names headers of the record, as `WARC-Target-URI`, which are UTF-8 (or encoded words, RFC 2047). A payload
in another charset than UTF-8 that its Content-Type names becomes UTF-8.
"""

import codecs
import contextlib
import io
from collections.abc import Callable, Sequence
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP

import numpy as np

from pipeline import batches, compression
from pipeline.arrow import joined, joined_or_null
from pipeline.batches import Batches, make_batch
from pipeline.columns import columns
from pipeline.config import Corpus
from pipeline.content import Content, Counts
from pipeline.errors import InputError
from pipeline.plain_text import ADVICE, too_long, without_blank
from pipeline.rejects import BadRow, Rejects

HEAD = 1 << 20  # bytes of a record's headers, at most
TYPES = ("conversion", "resource")
HTML = ("text/html", "application/xhtml+xml")
CODINGS = {  # of an answer (RFC 9110, 8.4.1): of what kinds it may be; none where the first bytes tell, if anything was done
    "deflate": ("zlib", "deflate"),  # many servers leave the first of the two out
    "br": ("brotli",),
    **dict.fromkeys(("", "identity", "gzip", "x-gzip", "zstd"), ()),
}
MOST = 8  # codings of an answer


def read(content: Content, corpus: Corpus, counts: Counts, rejects: Rejects) -> Batches:
    """The records, one after another."""
    names = columns(corpus).metadata
    position = 0
    while True:
        data, _ = content.read(position, 1 << 16)
        blank = len(data) - len(data.lstrip(b"\r\n"))
        if blank:
            counts["syntax_bytes"] += blank
            position += blank
            continue
        if not data:
            return
        headers, start = _headers(content, position)
        length = _length(headers, content, position)
        counts["syntax_bytes"] += start - position
        position = start + length
        if not _wanted(headers):
            _pass_over(_media(_header(headers, "Content-Type"))[0], counts)
            _pass(content, start, length, counts)
            continue
        if length > corpus.max_document_bytes:
            error = too_long(start, content, corpus)
            rejects.bad(content, start, position, content.read(start, 1000)[0], _given(error), size=length)
            at = start
            while at < position and (data := content.read(at, min(batches.BLOCK, position - at))[0]):
                at += len(data)
            _require(at == position, content, start)
            continue
        payload, _ = content.read(start, length)
        _require(len(payload) == length, content, start)
        text = _text(payload, headers, start, content, corpus, counts, rejects)
        if text is not None:
            edges = np.array([start]), np.array([position])
            metadata = {name: joined_or_null([_as_bytes(_header(headers, name))]) for name in names}
            yield without_blank(make_batch(joined([text]), content.source, *edges, metadata=metadata), counts)


def _given(error: InputError) -> Callable[[], InputError]:
    return lambda: error


def _require(whole: bool, content: Content, start: int) -> None:
    if not whole:
        raise InputError(f"{content.name!r} is truncated: the record whose payload begins at byte {start} is not all there.")


def _headers(content: Content, position: int) -> tuple[Message, int]:
    """The headers of the record that begins at `position`, and where its payload begins."""
    want = 1 << 12
    while True:
        data, final = content.read(position, want)
        if not data.startswith(b"WARC/"):
            raise InputError(f"{content.name!r} byte {position}: a WARC record is needed, found {data[:20]!r}.")
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            return _parse(data[: end + 4]), position + end + 4
        if final or want >= HEAD:
            raise InputError(
                f"{content.name!r} byte {position}: the headers of a WARC record do not end. Is the file truncated?"
            )
        want *= 4


def _parse(head: bytes) -> Message:
    """The headers below a first line that says what they belong to."""
    return BytesHeaderParser(policy=HTTP.clone(max_line_length=None)).parsebytes(head.partition(b"\r\n")[2])


def _header(headers: Message, name: str) -> str | None:
    try:
        value = headers.get(name)
    except (ValueError, IndexError, TypeError, AttributeError, UnicodeError):  # what the parser makes of a hostile value
        return None
    return None if value is None else str(value)


def _require_utf8(headers: Message, names: Sequence[str]) -> None:
    """Raise UnicodeDecodeError where a header of one of these names is not UTF-8: its value would come with U+FFFD."""
    wanted = {name.lower() for name in names}
    for name, value in headers.raw_items():
        if name.lower() in wanted:
            value.encode("ascii", "surrogateescape").decode()


def _as_bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode(errors="replace")


def _length(headers: Message, content: Content, position: int) -> int:
    value = (_header(headers, "Content-Length") or "").strip()
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise InputError(f"{content.name!r} byte {position}: a WARC record without a Content-Length.")
    return int(value)


def _media(value: str | None) -> tuple[str, str]:
    """The media type of a Content-Type and its charset, both in small letters; "" where there is none."""
    kind, _, rest = (value or "").partition(";")
    charset = next((part.partition("=")[2] for part in rest.split(";") if part.strip().lower().startswith("charset=")), "")
    return kind.strip().lower(), charset.strip().strip("\"'").lower()


def _wanted(headers: Message) -> bool:
    kind = (_header(headers, "WARC-Type") or "").strip().lower()
    media, _ = _media(_header(headers, "Content-Type"))
    return (kind in TYPES and media == "text/plain") or (kind == "response" and media == "application/http")


def _pass_over(media: str, counts: Counts) -> None:
    counts["html_records" if media in HTML else "other_records"] += 1


def _pass(content: Content, start: int, length: int, counts: Counts) -> None:
    at = start
    while at < start + length:
        data, _ = content.read(at, min(batches.BLOCK, start + length - at))
        _require(bool(data), content, start)
        at += len(data)
    counts["syntax_bytes"] += length


def _text(
    payload: bytes, headers: Message, start: int, content: Content, corpus: Corpus, counts: Counts, rejects: Rejects
) -> bytes | None:
    """The text of a payload as UTF-8; None where there is none, which is counted."""
    body, charset = payload, _media(_header(headers, "Content-Type"))[1]
    if (_header(headers, "WARC-Type") or "").strip().lower() == "response":
        answer = _answer(payload, f"{content.name} byte {start}", corpus, counts)
        if answer is None:
            counts["syntax_bytes"] += len(payload)
            return None
        body, charset = answer
    counts["recoded_bytes"] += len(body) - len(payload)
    text = None
    try:
        codec = codecs.lookup(charset or "utf-8").name
        text = body.decode(codec).encode()
        _require_utf8(headers, columns(corpus).metadata)
    except (LookupError, ValueError, UnicodeError) as error:
        if corpus.errors == "replace":
            text = body.decode(errors="replace").encode() if text is None else text
            counts["replaced_documents"] += 1
        else:
            counts["recoded_bytes"] -= len(body) - len(payload)
            said = f"{content.name!r} record at byte {start}: {' '.join(str(error).split())}."
            rejects.bad(content, start, start + len(payload), payload, lambda: BadRow(said, ADVICE), "undecodable")
            return None
    counts["recoded_bytes"] += len(text) - len(body)
    return text


def _answer(payload: bytes, name: str, corpus: Corpus, counts: Counts) -> tuple[bytes, str] | None:
    """The body of an HTTP answer and its charset; None where it is no plain text that is whole, which is counted."""
    head, _, body = payload.partition(b"\r\n\r\n")
    status, headers = head.partition(b"\r\n")[0], _parse(head)
    media, charset = _media(_header(headers, "Content-Type"))
    found = None
    if status.startswith(b"HTTP/") and status.split(b" ")[1:2] == [b"200"] and media == "text/plain":
        sent = (_header(headers, field) or "" for field in ("Content-Encoding", "Transfer-Encoding"))
        found = _body(body, [coding.strip().lower() for coding in ",".join(sent).split(",")], name, corpus)
    if found is None:
        _pass_over(media, counts)
        return None
    return found, charset


def _body(body: bytes, codings: list[str], name: str, corpus: Corpus) -> bytes | None:
    """The body of an answer as it was before these codings were applied to it, one after another; None where that cannot be
    told, or it is too long to be held.
    """
    for coding in reversed(codings):
        if coding == "chunked":
            try:
                body = _unchunked(body)
            except ValueError:
                return None
        elif coding not in CODINGS or len(codings) > MOST:
            return None
        elif kinds := CODINGS[coding] or tuple(filter(None, [compression.kind(body[:16])])):
            undone = _decompressed(body, kinds, name, corpus)
            if undone is None:
                return None
            body = undone
    return body


def _decompressed(body: bytes, kinds: Sequence[str], name: str, corpus: Corpus) -> bytes | None:
    """The body by the first of these kinds that it is of; None where it is of none, or too long."""
    for kind in kinds:
        with contextlib.suppress(compression.DamagedData):
            whole = compression.Decompressed(io.BytesIO(body), kind, name, corpus).read(corpus.max_document_bytes + 1)
            return whole if len(whole) <= corpus.max_document_bytes else None
    return None


def _unchunked(body: bytes) -> bytes:
    """The body of an answer sent in chunks (RFC 9112, 7.1). Raises ValueError where it is not."""
    pieces: list[bytes] = []
    at = 0
    while True:
        line = body.index(b"\r\n", at)
        size = int(body[at:line].partition(b";")[0].strip() or b"x", 16)
        if size < 0 or line + 2 + size > len(body):
            raise ValueError("a chunk that is not all there")
        if not size:
            return b"".join(pieces)
        pieces.append(body[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
