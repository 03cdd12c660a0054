"""One corpus in every format, compression and archive gives the same documents, and the same IDs."""

import gzip
import io
import itertools
import json
import tarfile
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import COMPRESSIONS, FORMATS, tarred, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import EVERYTHING, composed
from pipeline import archives, corpus, json_records, plan
from pipeline.arrow import read_batches
from pipeline.cache import Cache
from pipeline.config import Config, Corpus, check
from pipeline.errors import ConfigError, InputError
from pipeline.run import run

ROWS = ['Dear Hester,\nthe "ferry", was late\\ [1] {2}', "x", "naïve €😀", "z" * 5000, *(f"row {i}, é" for i in range(1500))]


def read(settings: Corpus, folder: Path, counts: Counter[str] | None = None, rejected: list[bytes] | None = None) -> list[str]:
    """The documents of a corpus; its balance is checked."""
    counts = Counter() if counts is None else counts
    found, piece = [], ""
    for shard in plan.make(settings, Cache.open(folder / "cache"), False, 1).shards:
        for batch in corpus.load(shard, settings, counts, reject=None if rejected is None else rejected.append):
            batch.validate(full=True)
            for text, ends in zip(batch["text"].to_pylist(), batch["ends"].to_pylist(), strict=True):
                piece += text
                if ends:
                    found.append(piece)
                    piece = ""
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_") and name.endswith("_bytes"))
    grown = counts["recoded_bytes"] + counts["added_bytes"] + counts["repaired_bytes"]
    assert counts["bytes"] + grown == counts["text_bytes"] + dropped + counts["syntax_bytes"]
    return found


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_and_compression_gives_the_same_documents(form: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / "named by nothing"
    path.write_bytes(COMPRESSIONS[compression](FORMATS[form](ROWS)))
    assert read(Corpus(format=form.split()[0], paths=[str(path)], shard_bytes=9000), tmp_path) == ROWS


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "pax", "pax.gz"])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow stream"])
def test_members_of_archives_are_sources_of_their_own(form: str, kind: str, tmp_path: Path) -> None:
    long = "a/" + "é" * 120
    half = {"./b/two.gz": COMPRESSIONS["gz"](FORMATS[form](ROWS[:700])), long: FORMATS[form](ROWS[700:]), "._a": b"\0"}
    path, packed = tmp_path / "archive", "w:gz" if kind.endswith("gz") else "w"
    layout = tarfile.PAX_FORMAT if kind.startswith("pax") else tarfile.GNU_FORMAT
    path.write_bytes(zipped(half) if kind == "zip" else tarred(half, packed, layout))
    asked = Corpus(format=form.split()[0], paths=[str(path)], archives=True)
    assert read(asked, tmp_path) == ROWS
    planned = plan.make(asked, Cache.open(tmp_path / "cache"), True, 1)
    assert planned == plan.make(asked, Cache.open(tmp_path / "cache"), True, 1)
    assert [source.path for source in planned.sources] == [f"{path}!b/two.gz", f"{path}!{long}"]
    with pytest.raises(InputError, match=r"is an archive \(.*set corpus\.archives=true|not a readable"):
        read(Corpus(format=form.split()[0], paths=[str(path)]), tmp_path)


def old_tar(data: bytes) -> bytes:
    """A tar as Unix v7 wrote it: its first member without the mark of POSIX."""
    head = bytearray(data[:512])
    head[257:265], head[148:156] = bytes(8), b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


@pytest.mark.parametrize("packed", [bytes, COMPRESSIONS["gz"]], ids=["plain", "gz"])
def test_a_tar_is_known_by_its_checksum_alone_and_where_it_holds_nothing(
    packed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "in"
    asked = Corpus(paths=[str(path)], archives=True)
    tar = old_tar(tarred({"a.txt": b"the ferry"}))
    path.write_bytes(packed(tar))
    assert read(asked, tmp_path) == ["the ferry"]
    with pytest.raises(InputError, match=r"is an archive \(tar\): set corpus\.archives=true"):
        read(replace(asked, archives=False), tmp_path)
    path.write_bytes(packed(tarred({})))
    with pytest.raises(InputError, match="is an archive without a file that could be read"):
        read(asked, tmp_path)
    zeros, changed = bytes(1024), tar[:99] + b"x" + tar[100:]
    for text in (zeros + b"fog " * 256, zeros[:-1], changed, b"0" * 148 + b"0040712 " + b"0" * 500, b"12345670" * 64):
        path.write_bytes(packed(text))
        assert read(asked, tmp_path) == [text.decode()]


def test_a_compressed_zip_is_said_to_be_one_whether_archives_are_read_or_not(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(COMPRESSIONS["gz"](zipped({"a.txt": b"the ferry"})))
    for archives_too in (True, False):
        with pytest.raises(InputError, match=r"is an archive \(zip\) within gzip: decompress it first, then corpus\.archives"):
            read(Corpus(paths=[str(tmp_path / "in")], archives=archives_too), tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_read_once_more_to_count_lines_however_many_members_have_bad_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"{n}.jsonl": b'{"text": "fog"}\n{"text": tru}\n' for n in range(9)}
    (tmp_path / "in").write_bytes(zipped(members) if kind == "zip" else tarred(members, "w:gz"))
    opened: list[str] = []
    plain = archives.open_archive
    monkeypatch.setattr(archives, "open_archive", lambda *given: opened.append("") or plain(*given))
    asked = Corpus(format="jsonl", paths=[str(tmp_path / "in")], archives=True, on_bad_row="skip")
    rejected: list[bytes] = []
    assert read(asked, tmp_path, rejected=rejected) == ["fog"] * 9
    assert [(row["line"], row["file"]) for row in map(json.loads, rejected)] == [
        (2, f"{tmp_path}/in!{name}") for name in members
    ]
    assert len(opened) == 3  # to plan, to read, to count lines


def test_a_folder_of_many_formats_is_read_by_the_endings_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for place, name in enumerate(("a.jsonl.gz", "b.csv", "c.parquet", "d.WET")):
        form = {"jsonl.gz": "jsonl", "WET": "warc"}.get(name[2:], name[2:])
        data = FORMATS[form](ROWS[place * 10 : place * 10 + 10])
        (folder / name).write_bytes(COMPRESSIONS["gz"](data) if name.endswith("gz") else data)
    (folder / "e.md").write_text("# A title")
    asked = Corpus(format="auto", paths=[str(folder)])
    assert read(asked, tmp_path) == [*ROWS[:40], "# A title"]
    before = plan.make(asked, Cache.open(tmp_path / "cache"), True, 1).sha256
    (folder / "e.md").rename(folder / "e.markdown")
    assert plan.make(asked, Cache.open(tmp_path / "cache"), True, 1).sha256 == before
    packed = tmp_path / "archive"
    packed.write_bytes(zipped({"one.jsonl": FORMATS["jsonl"](ROWS[:9]), "two.md": b"# Another"}))
    assert read(Corpus(format="auto", paths=[str(packed), str(folder / "b.csv")], archives=True), tmp_path) == [
        *ROWS[:9],
        "# Another",
        *ROWS[10:20],
    ]
    (folder / "f.doc").write_text("?")
    with pytest.raises(ConfigError, match=r"f\.doc.*corpus\.format=auto knows the endings"):
        read(asked, tmp_path)


def record(kind: str, media: str, payload: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Type: {media}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload + b"\r\n\r\n"


def answer(media: bytes, body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: " + media + b"\r\n" + more + b"\r\n"
    return record("response", "application/http; msgtype=response", head + body)


def test_of_a_crawl_plain_text_is_taken_and_html_is_counted_and_said_to_be_html(tmp_path: Path) -> None:
    pages = [
        record("warcinfo", "application/warc-fields", b"software: x\r\n"),
        record("request", "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"),
        answer(b"text/html; charset=utf-8", b"<p>The ferry was late.</p>"),
        answer(b"text/html", gzip.compress(b"<p>fog</p>"), more=b"Content-Encoding: gzip\r\n"),
        answer(b"text/plain", b"gone", status=b"404 Not Found"),
        answer(b"image/png", b"\x89PNG"),
        record("conversion", "text/html", b"<p>The fog was late.</p>"),
    ]
    texts = [
        answer(b"text/plain; charset=latin-1", "naïve".encode("latin-1")),
        answer(b"text/plain", b"4\r\nfog \r\n3\r\nwas\r\n0\r\n\r\n", more=b"Transfer-Encoding: chunked\r\n"),
        answer(b"text/plain", gzip.compress(b"late"), more=b"Content-Encoding: gzip\r\n"),
        record("resource", "text/plain", b"the ferry"),
    ]
    path = tmp_path / "in.warc"
    path.write_bytes(b"".join(itertools.chain.from_iterable(itertools.zip_longest(pages, texts, fillvalue=b""))))
    counts: Counter[str] = Counter()
    assert read(Corpus(format="warc", paths=[str(path)]), tmp_path, counts) == ["naïve", "fog was", "late", "the ferry"]
    assert (counts["html_records"], counts["other_records"]) == (3, 4)
    path.write_bytes(b"".join(pages))
    planned = plan.make(Corpus(format="warc", paths=[str(path)]), Cache.open(tmp_path / "cache"), False, 1)
    counts = Counter()
    assert not list(corpus.load(planned.shards[0], Corpus(format="warc"), counts))
    with pytest.raises(InputError, match="3 records of HTML, of which text must be made first"):
        corpus.require_documents(counts, planned)


def test_an_answer_is_taken_as_it_was_before_it_was_sent_or_not_at_all(tmp_path: Path) -> None:
    text = "The ferry was late: naïve.".encode("latin-1")
    raw = zlib.compressobj(wbits=-15)
    deflated = raw.compress(text) + raw.flush()
    brotli, zstd = (bytes(pa.compress(text, codec=name, asbytes=True)) for name in ("brotli", "zstd"))
    chunked = b"%x\r\n%s\r\n0\r\n\r\n"
    packed = gzip.compress(text)
    good = [
        ("Content-Encoding: deflate", zlib.compress(text)),
        ("Content-Encoding: Deflate", deflated),
        ("Content-Encoding: br", brotli),
        ("Content-Encoding: zstd", zstd),
        ("Content-Encoding: x-gzip", packed),
        ("Content-Encoding: gzip", text),  # undone by who wrote the file
        ("Content-Encoding: identity", text),
        ("Content-Encoding: deflate, gzip", gzip.compress(zlib.compress(text))),
        ("Content-Encoding: deflate\r\nTransfer-Encoding: chunked", chunked % (len(deflated), deflated)),
        ("Transfer-Encoding: gzip, chunked", chunked % (len(packed), packed)),
    ]
    bad = [
        ("Content-Encoding: deflate", zlib.compress(text)[:-6]),
        ("Content-Encoding: deflate", text),
        ("Content-Encoding: br", brotli[:-3]),
        ("Content-Encoding: compress", text),
        ("Content-Encoding: gzip", packed[:-9]),
        ("Content-Encoding: " + "deflate," * 9, deflated),
        ("Transfer-Encoding: chunked", chunked % (99, text)),
    ]
    path, counts = tmp_path / "in.warc", Counter[str]()
    pages = [answer(b"text/plain; charset=latin-1", body, more=head.encode() + b"\r\n") for head, body in [*bad, *good]]
    path.write_bytes(b"".join(pages))
    asked = Corpus(format="warc", paths=[str(path)])
    assert read(asked, tmp_path, counts) == [text.decode("latin-1")] * len(good)
    assert counts["other_records"] == len(bad)
    for head, body in (("br", bytes(pa.compress(b"fog" * (1 << 24), codec="brotli", asbytes=True))), ("deflate", zlib.compress(b"fog" * (1 << 24)))):  # fmt: skip
        path.write_bytes(answer(b"text/plain", body, more=f"Content-Encoding: {head}\r\n".encode()))
        with pytest.raises(InputError, match="more than 200 times larger"):
            read(asked, tmp_path)


def test_of_the_headers_of_a_record_only_utf_8_is_carried_along(tmp_path: Path) -> None:
    url = {"good": "https://b.example/naïve".encode(), "bad": b"https://b.example/na\xefve"}
    path = tmp_path / "in.warc"

    def written(*kinds: str) -> None:
        pages = [record("conversion", "text/plain", b"fog") for _ in kinds]
        heads = [b"WARC/1.0\r\nWARC-Target-URI: " + url[kind] + b"\r\n" for kind in kinds]
        path.write_bytes(b"".join(head + page.partition(b"\r\n")[2] for head, page in zip(heads, pages, strict=True)))

    written("good", "bad")
    asked = Corpus(format="warc", paths=[str(path)], metadata=["WARC-Target-URI"])
    with pytest.raises(InputError, match=r"record at byte .*can't decode byte 0xef"):
        carried(asked, tmp_path)
    assert read(Corpus(format="warc", paths=[str(path)]), tmp_path) == ["fog", "fog"]  # the header is not asked for
    kept = [("fog", "https://b.example/naïve"), ("fog", "https://b.example/na\ufffdve")]
    assert carried(replace(asked, errors="replace"), tmp_path) == kept
    assert carried(replace(asked, on_bad_row="skip"), tmp_path) == kept[:1]


# -- columns ----------------------------------------------------------------------------------------------


def carried(asked: Corpus, folder: Path) -> list[tuple[str, ...]]:
    shards = plan.make(asked, Cache.open(folder / "cache"), False, 1).shards
    rows = [batch for shard in shards for batch in corpus.load(shard, asked, Counter())]
    return [row for b in rows for row in zip(*(b[name].to_pylist() for name in ("text", *asked.metadata)), strict=True)]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "arrow"])
def test_text_comes_from_nested_columns_and_templates_and_others_are_carried_along(form: str, tmp_path: Path) -> None:
    rows = [{"title": f"T{i}", "meta": {"body": {"text": f"b€{i}"}, "n": i}, "url": f"u{i}"} for i in range(3)]
    path = tmp_path / "in"
    if form in ("jsonl", "json"):
        path.write_text("\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows))
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) if form == "arrow" else pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
    asked = Corpus(format=form, paths=[str(path)], template="{title}\\n{meta.body.text}.", metadata=["url", "meta.n"])
    assert carried(asked, tmp_path) == [(f"T{i}\nb€{i}.", f"u{i}", f"{i}") for i in range(3)]
    counts: Counter[str] = Counter()
    assert read(Corpus(format=form, paths=[str(path)], text_column="meta.body.text"), tmp_path, counts) == ["b€0", "b€1", "b€2"]
    with pytest.raises(ConfigError, match=r"no column 'meta\.none'"):
        read(Corpus(format=form, paths=[str(path)], text_column="meta.none"), tmp_path)
    with pytest.raises(InputError, match=r"column 'meta\.n' holds"):
        read(Corpus(format=form, paths=[str(path)], text_column="meta.n"), tmp_path)


def test_a_key_that_has_a_dot_in_its_very_name_goes_before_a_nested_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    nested, both, neither = '{"text":"a","m":{"n":"deep"}}', '{"text":"b","m":{"n":"deep"},"m.n":"own"}', '{"text":"c"}'
    asked = Corpus(format="jsonl", paths=[str(tmp_path / "in")], metadata=["m.n"])
    for rows, found in (
        ([nested, both, neither], ["deep", "own", None]),
        ([both], ["own"]),
        ([nested, neither], ["deep", None]),
    ):
        (tmp_path / "in").write_text("\n".join(rows))
        assert [m for _, m in carried(asked, tmp_path)] == found


def test_of_files_without_columns_the_metadata_is_null(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("a line\n" * 3)
    (tmp_path / "in/b.jsonl").write_text('{"text":"b","url":"u"}\n{"text":"c"}\n')
    asked = Corpus(format="auto", paths=[str(tmp_path / "in")], document="line", metadata=["url"])
    check(Config(corpus=asked))
    assert carried(asked, tmp_path) == [("a line", None)] * 3 + [("b", "u"), ("c", None)]


def bad_table(nested: bool) -> bytes:
    """A Parquet file whose metadata is not UTF-8 in its second row, and null in its third."""
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 4, 4], np.int32)), pa.py_buffer(b"ac\xffd"), pa.py_buffer(b"\3")
    )
    table = pa.table({"text": ["one", "two", "three"], "m": pa.StructArray.from_arrays([bad], ["n"]) if nested else bad})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("form", "data", "place", "replaced"),
    [
        ("parquet", bad_table(False), "row 1, byte 2: 0xff in 'm' is not UTF-8.", ["a", "c\ufffdd", None]),
        ("parquet", bad_table(True), "row 1, byte 2: 0xff in 'm' is not UTF-8.", ['{"n": "a"}', "c\ufffdd", '{"n": null}']),
        ("csv", b"text,m\none,a\ntwo,\"c\n\xffd\"\nthree,\n", "line 4, byte 1: 0xff is not UTF-8.", ["a", "c\n\ufffdd", ""]),
        ("jsonl", b'{"text":"one","m":"a"}\n{"text":"two","m":"c\\ud800"}\n{"text":"three"}\n', "line 2: column 'm' holds a lone surrogate.", ["a", "c\ufffd", None]),
        ("jsonl", b'{"text":"one","m":"a"}\n{"text":"two","m":["\\udc00"]}\n{"text":"three"}\n', "line 2: column 'm' holds a lone surrogate.", ["a", '["\ufffd"]', None]),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_decoded_is_a_bad_row_as_text_is(
    form: str, data: bytes, place: str, replaced: list[str | None], tmp_path: Path
) -> None:
    path = tmp_path / "in"
    path.write_bytes(data)
    asked = Corpus(format=form, paths=[str(path)], metadata=["m"])
    with pytest.raises(InputError) as error:
        read(asked, tmp_path)
    assert f"'{path}' {place} Set corpus.errors=replace" in str(error.value)
    rejected: list[bytes] = []
    assert read(replace(asked, on_bad_row="skip"), tmp_path, rejected=rejected) == ["one", "three"]
    (row,) = map(json.loads, rejected)
    assert (row["detail"], row["reason"], row.get("line")) == (
        f"'{path}' {place}",
        "undecodable",
        {"csv": 3, "jsonl": 2}.get(form),
    )
    assert carried(replace(asked, errors="replace"), tmp_path) == [*zip(["one", "two", "three"], replaced, strict=True)]
    counts: Counter[str] = Counter()
    read(replace(asked, errors="replace"), tmp_path, counts)
    assert counts["replaced_documents"] == 1


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary(4), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary()), pa.list_(pa.binary())],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_bytes_in_metadata_are_the_text_that_they_are_or_hexadecimal(form: str, kind: pa.DataType, tmp_path: Path) -> None:
    values, expected = [b"fog!", "né!".encode(), b"\xff\0\1\2", None], ["fog!", "né!", "ff000102", None]
    nested = pa.types.is_list(kind)
    column = pa.array([[value] for value in values] if nested else values, None if pa.types.is_dictionary(kind) else kind)
    table = pa.table({"text": ["a"] * 4, "m": column.dictionary_encode() if pa.types.is_dictionary(kind) else column})
    path = tmp_path / "in"
    with pq.ParquetWriter(path, table.schema) if form == "parquet" else pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    found = [m for _, m in carried(Corpus(format=form, paths=[str(path)], metadata=["m"]), tmp_path)]
    assert found == ([json.dumps([value], ensure_ascii=False) for value in expected] if nested else expected)


def test_metadata_that_python_cannot_hold_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    far = pa.StructArray.from_arrays([pa.array([1 << 61], pa.timestamp("ms"))], ["t"])
    pq.write_table(pa.table({"text": ["one"], "m": far}), tmp_path / "in")
    with pytest.raises(InputError, match=r"in' is not a readable Parquet file: .*too large"):
        read(Corpus(format="parquet", paths=[str(tmp_path / "in")], metadata=["m"]), tmp_path)


def test_a_csv_column_that_is_missing_or_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,body,body\n1,a,b\n")
    with pytest.raises(ConfigError, match=r"line 1: no column 'text'; found: 'id', 'body', 'body'"):
        read(Corpus(format="csv", paths=[str(path)]), tmp_path)
    with pytest.raises(InputError, match="column 'body' is given 2 times"):
        read(Corpus(format="csv", paths=[str(path)], text_column="body"), tmp_path)


def test_blank_lines_may_stand_before_the_header_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"\r\n\nid,text\n\n1,a\n")
    assert read(Corpus(format="csv", paths=[str(path)]), tmp_path) == ["a"]
    with pytest.raises(ConfigError, match=r"line 3: no column 'body'; found: 'id', 'text'"):
        read(Corpus(format="csv", paths=[str(path)], text_column="body"), tmp_path)


@pytest.mark.parametrize("data", [b"id,text\r1,a\r", b"id,text\n1,a\rb\n"])
def test_a_lone_carriage_return_outside_of_quotes_of_a_csv_is_said_to_be_one(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"line [12]: a lone carriage return \(\\r\) outside of quotes; make it \\n"):
        read(Corpus(format="csv", paths=[str(tmp_path / "in.csv")]), tmp_path)


@pytest.mark.parametrize("template", ["{", "{0!r}", "{a:3}", "no column", "{}"])
def test_a_template_that_names_no_column_is_refused(template: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"text":"a"}')
    with pytest.raises(ConfigError, match=r"corpus\.template"):
        read(Corpus(format="jsonl", paths=[str(tmp_path / "in")], template=template), tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\[]{},: €'), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('a"\\,]'), max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(JSON, min_size=1, max_size=6), indent=st.sampled_from([None, 1]), cut=st.integers(1, 200))
def test_an_array_is_cut_into_its_elements_wherever_the_block_ends(rows: list[object], indent: int | None, cut: int) -> None:
    data = json.dumps(rows, indent=indent)[1:].encode()
    found: list[object] = []
    while True:
        piece = np.frombuffer(data[:cut], np.uint8)
        starts, stops, rest, closed = json_records._elements(piece)
        found += [json.loads(data[a:b]) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        data = data[rest:]
        if closed:
            break
        cut += 0 if rest else 1
    assert found == rows and not data


# -- what is left out, and repaired -----------------------------------------------------------------------


def test_rules_leave_documents_out_count_them_and_list_them_where_asked(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("ab\nabcdefghij\nkeep this\nkeep that\nother\n")
    asked = Corpus(
        paths=[str(tmp_path / "in")], document="line", min_characters=3, max_characters=9, include="keep", exclude="that"
    )
    counts: Counter[str] = Counter()
    rejected: list[bytes] = []
    assert read(asked, tmp_path, counts, rejected) == ["keep this"] and not rejected
    for reason in ("short", "long", "unmatched", "excluded"):
        assert counts[f"dropped_{reason}_documents"] == 1, reason
    asked.list_dropped = True
    assert read(asked, tmp_path, rejected=rejected) == ["keep this"]
    listed = [(row["line"], row["start"], row["end"], row["reason"], row["excerpt"]) for row in map(json.loads, rejected)]
    assert listed == [
        (1, 0, 2, "short", "ab"),
        (2, 3, 13, "long", "abcdefghij"),
        (4, 24, 33, "excluded", "keep that"),
        (5, 34, 39, "unmatched", "other"),
    ]


def test_a_list_of_rejects_names_an_asset_as_on_any_other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS", str(tmp_path))
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "notes.jsonl").write_text('{"text": "fog"}\n{"text": tru}\n')
    rejected: list[bytes] = []
    read(Corpus(format="jsonl", paths=["notes.jsonl"], on_bad_row="skip"), tmp_path, rejected=rejected)
    (row,) = map(json.loads, rejected)
    assert row["file"] == "notes.jsonl" and row["detail"].startswith("'notes.jsonl' line 2: ")


def test_a_document_that_is_judged_takes_memory_of_a_few_times_its_size(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("é fog " * (1 << 20))
    size = (tmp_path / "in").stat().st_size
    for rules in ({"newlines": True}, {"min_characters": 3}, {"exclude": "ferry"}):
        tracemalloc.start()
        assert len(read(Corpus(paths=[str(tmp_path / "in")], **rules), tmp_path)[0]) == 6 << 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 14 * size, rules


def test_repairs_are_made_where_asked_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes("e\u0301\r\nﬁ\rx".encode())
    path = [str(tmp_path / "in")]
    counts: Counter[str] = Counter()
    assert read(Corpus(paths=path, newlines=True, unicode="NFC"), tmp_path, counts) == ["é\nﬁ\nx"]
    assert (counts["repaired_newlines"], counts["repaired_unicode"], counts["repaired_bytes"]) == (1, 1, -2)
    assert read(Corpus(paths=path, unicode="NFKC"), tmp_path) == ["é\r\nfi\rx"]
    assert read(Corpus(paths=path), tmp_path) == ["e\u0301\r\nﬁ\rx"]


def test_ftfy_repairs_what_was_decoded_by_the_wrong_charset(tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    (tmp_path / "in").write_text("schÃ¶n &amp; “gut”")
    assert read(Corpus(paths=[str(tmp_path / "in")], ftfy=True), tmp_path) == ["schön &amp; “gut”"]


def test_a_long_document_is_judged_and_repaired_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.batches.BLOCK", 16)
    text = "e\u0301 word " * 50 + "end"
    (tmp_path / "in").write_text(text)
    asked = Corpus(paths=[str(tmp_path / "in")], unicode="NFC", include="word é word é.*end$", min_characters=352)
    assert read(asked, tmp_path) == [text.replace("e\u0301", "é")]
    asked.max_document_bytes = 100
    with pytest.raises(InputError, match=r"longer than corpus\.max_document_bytes=100, and must be held"):
        read(asked, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"include": "("}, {"min_characters": 5, "max_characters": 4}, {"metadata": ["text"]}, {"metadata": ["origin"], "format": "csv"}, {"metadata": ["url"]},
     {"format": "csv", "metadata": ["a", "a"]}, {"unicode": "NFD"}, {"on_bad_row": "drop"}],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_anything_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="corpus"):
        check(Config(corpus=Corpus(paths=["x"], **wrong)))


# -- the whole line ---------------------------------------------------------------------------------------


def ids(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("data-*.arrow")):
        for batch in read_batches(path):
            yield batch["input_ids"].flatten().to_numpy()


def prepared(form: str, path: Path, *more: str) -> tuple[int, list[int]]:
    """Windows and IDs of a corpus file."""
    config = composed(
        f"corpus={form}",
        f"corpus.paths=[{path}]",
        "window.context_length=64",
        "embedding=none",
        "engine=serial",
        "output.report=false",
        "name=x",
        *more,
    )
    config.output.dir, config.cache.dir = str(path.parent / "out"), str(path.parent / "cache")
    outcome = run(config)
    return outcome.rows, np.concatenate(list(ids(outcome.folder))).tolist()


def test_metadata_and_rejects_end_in_the_dataset(at: Path) -> None:
    (at / "in").write_bytes(COMPRESSIONS["gz"](b'{"text":"one two three","url":"u"}\nbad\n{"text":"four five","url":7}\n'))
    skip = ("corpus.on_bad_row=skip", "corpus.metadata=[url]", "tokenizer=bytes", "window.context_length=4")
    prepared("jsonl", at / "in", *skip)
    (rejects,) = (at / "out" / "rejects").iterdir()
    row = json.loads(rejects.read_text())
    assert (row["file"], row["line"], row["start"], row["end"], row["reason"], row["excerpt"]) == (
        str(at / "in"),
        2,
        35,
        38,
        "bad",
        "bad",
    )
    with pa.ipc.open_stream(at / "out" / "documents.arrow") as stream:
        assert stream.read_all()["url"].to_pylist() == ["u", "7"]
    with pytest.raises(InputError, match=r"more than corpus\.max_bad_rows=0 rows"):
        prepared("jsonl", at / "in", *skip, "corpus.max_bad_rows=0")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_megabytes_in_every_format_and_compression_give_identical_ids(assets: Path, tmp_path: Path) -> None:
    rows = pq.read_table(assets / "corpora" / "bench-20mb.parquet", columns=["text"])["text"].to_pylist()
    path, first = tmp_path / "in", None
    more = ("tokenizer=gpt2", "window.context_length=1024")
    for number, (form, write) in enumerate(FORMATS.items()):
        data, one = write(rows), [*COMPRESSIONS][number % len(COMPRESSIONS)]
        for name in COMPRESSIONS if EVERYTHING or form == "jsonl" else [one]:
            path.write_bytes(COMPRESSIONS[name](data))
            found = prepared(form.split()[0], path, *more)
            first = first or found
            assert found == first, (form, name)
