"""One corpus in every format and compression, for several tests."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _table(rows: list[str]) -> pa.Table:
    return pa.table({"id": range(len(rows)), "text": rows})


def _ipc(new: Callable[..., Any], rows: list[str]) -> bytes:
    sink, table = io.BytesIO(), _table(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return sink.getvalue()


def parquet(rows: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(rows), sink, row_group_size=1000)
    return sink.getvalue()


def _delimited(rows: list[str], delimiter: str) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([["id", "text"], *([str(i), row] for i, row in enumerate(rows))])
    return sink.getvalue().encode()


def warc(rows: list[str]) -> bytes:
    records = []
    for i, row in enumerate(rows):
        payload = row.encode()
        headers = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://example.org/{i}\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        records.append(headers.encode() + payload + b"\r\n\r\n")
    return b"".join(records)


def _objects(rows: list[str]) -> list[dict[str, object]]:
    return [{"id": i, "text": row} for i, row in enumerate(rows)]


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": lambda rows: "".join(json.dumps(one) + "\n" for one in _objects(rows)).encode(),
    "json": lambda rows: json.dumps(_objects(rows), indent=1, ensure_ascii=False).encode(),
    "csv": lambda rows: _delimited(rows, ","),
    "tsv": lambda rows: _delimited(rows, "\t"),
    "parquet": parquet,
    "arrow": lambda rows: _ipc(pa.ipc.new_file, rows),
    "arrow stream": lambda rows: _ipc(pa.ipc.new_stream, rows),
    "warc": warc,
}


def _codec(name: str) -> Callable[[bytes], bytes]:
    return lambda data: bytes(pa.compress(data, codec=name, asbytes=True))


def _twice(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Two members, as `cat a.gz b.gz` makes them."""
    return lambda data: compress(data[: len(data) // 3]) + compress(data[len(data) // 3 :])


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": _twice(lambda data: gzip.compress(data, 1)),
    "zst": _twice(_codec("zstd")),
    "xz": _twice(lambda data: lzma.compress(data, preset=0)),
    "bz2": _twice(lambda data: bz2.compress(data, 1)),
    "lz4": _twice(_codec("lz4")),
}


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w", form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar; a pax one with headers of attributes for all (as git makes them) and for each (as a time in fractions is one)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=form, pax_headers={"comment": "a commit"}) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 0.5
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()
