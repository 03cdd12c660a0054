"""Stage `load`: documents come out as the definition says, whatever the pieces; every byte is accounted for."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import batches, corpus, places, plan, tables
from pipeline.cache import Cache
from pipeline.config import Config, Corpus, check
from pipeline.errors import ConfigError, InputError

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Document = tuple[bytes, int, int, int]  # text, source, start, end


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], str]:
    """Writes bytes to a file and gives its path; the next call replaces them."""

    def write(data: bytes, name: str = "input") -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def planned(settings: Corpus, folder: Path) -> plan.Plan:
    return plan.make(settings, Cache.open(folder / "cache"), False, 1)


def documents(settings: Corpus, tmp_path: Path, counts: Counter[str] | None = None) -> list[Document]:
    """Every document, its pieces joined; checks what holds for any batch, and that the counts balance."""
    counts = Counter() if counts is None else counts
    found: list[Document] = []
    for shard in planned(settings, tmp_path).shards:
        pieces: list[bytes] = []
        first: tuple[int, ...] = ()
        for batch in corpus.load(shard, settings, counts):
            batch.validate(full=True)
            assert batch.schema == batches.SCHEMA and len(batch)
            rows = batch.to_pydict()
            assert sum(len(text.encode()) for text in rows["text"]) <= batches.BLOCK
            assert all(rows["ends"]) or len(batch) == 1
            for text, source, start, end, ends in zip(*rows.values(), strict=True):
                assert text
                first = first or (source, start)
                pieces.append(text.encode())
                if ends:
                    found.append((b"".join(pieces), *first, end))
                    pieces, first = [], ()
        assert not pieces
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_") and name.endswith("_bytes"))
    grown = counts["recoded_bytes"] + counts["added_bytes"] + counts["repaired_bytes"]
    assert counts["bytes"] + grown == counts["text_bytes"] + dropped + counts["syntax_bytes"]
    assert counts["documents"] == len(found)
    assert counts["text_bytes"] == sum(len(text) for text, *_ in found)
    return found


def texts(settings: Corpus, tmp_path: Path, counts: Counter[str] | None = None) -> list[str]:
    return [text.decode() for text, *_ in documents(settings, tmp_path, counts)]


# -- against a naive reference ----------------------------------------------------------------------------


def reference(data: bytes, unit: str) -> Iterator[bytes]:
    """The definition of a document, word by word."""
    if unit == "file":
        yield data
        return
    lines = data.split(b"\n")
    terminated, last = lines[:-1], lines[-1]
    lines = [line.removesuffix(b"\r") for line in terminated] + ([last] if last else [])
    if unit == "line":
        yield from lines
        return
    raw = [line + b"\n" for line in terminated] + ([last] if last else [])
    paragraph = b""
    for line in raw:
        if line.strip(b" \t\r\n"):
            paragraph += line
        elif paragraph:
            yield trimmed(paragraph)
            paragraph = b""
    if paragraph:
        yield trimmed(paragraph)


def trimmed(paragraph: bytes) -> bytes:
    return paragraph[:-1].removesuffix(b"\r") if paragraph.endswith(b"\n") else paragraph


TEXT = st.lists(
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\r",
            "\n\n",
            " ",
            "\t",
            "a",
            "bc",
            "é",
            "€",
            "😀",
            "\u2028",
            "\x85",
            "\v",
            "\f",
            "\0",
            "\ufeff",
            "word ",
        ]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("unit", ["file", "line", "paragraph"])
@QUICK
@given(text=TEXT, block=st.integers(4, 24), shard_bytes=st.integers(1, 40))
def test_any_piece_size_and_any_shard_size_give_the_documents_of_the_reference(
    unit: str,
    text: str,
    block: int,
    shard_bytes: int,
    file: Callable[[bytes], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "BLOCK", block)
    monkeypatch.setattr(plan, "READ", 3)
    data = text.encode()
    body = data.removeprefix(b"\xef\xbb\xbf")
    settings = Corpus(paths=[file(data)], document=unit, shard_bytes=shard_bytes)
    found = documents(settings, tmp_path)
    assert [one[0] for one in found] == [one for one in reference(body, unit) if one.strip(b" \t\n\r\v\f")]
    for one, source, start, end in found:
        assert source == 0 and data[start:end] == one


@QUICK
@given(
    rows=st.lists(st.text(st.sampled_from("ab é€😀\n\"\\\0\u2028"), max_size=12), max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
    block=st.integers(4, 64), shard_bytes=st.integers(1, 100), ascii=st.booleans(),
)  # fmt: skip
def test_json_lines_of_any_piece_and_shard_size_give_their_texts(
    rows: list[str], block: int, shard_bytes: int, ascii: bool, end: str, file: Callable[[bytes], str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(batches, "BLOCK", block)
    data = "".join(json.dumps({"id": i, "text": row}, ensure_ascii=ascii) + end for i, row in enumerate(rows)).encode()
    settings = Corpus(format="jsonl", paths=[file(data)], shard_bytes=shard_bytes)
    found = documents(settings, tmp_path)
    assert [one[0].decode() for one in found] == [row for row in rows if row.strip(" \n")]
    for text, _, start, stop in found:
        assert json.loads(data[start:stop])["text"].encode() == text


@QUICK
@given(
    rows=st.lists(st.text(st.sampled_from("ab é€😀\n\0"), max_size=12), max_size=30),
    block=st.integers(4, 64), shard_bytes=st.integers(1, 200), group=st.integers(1, 40),
)  # fmt: skip
def test_parquet_of_any_row_group_piece_and_shard_size_gives_its_rows(
    rows: list[str], block: int, shard_bytes: int, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", block)
    path = tmp_path / "input.parquet"
    pq.write_table(pa.table({"id": range(len(rows)), "text": pa.array(rows, pa.string())}), path, row_group_size=group)
    found = documents(Corpus(format="parquet", paths=[str(path)], shard_bytes=shard_bytes), tmp_path)
    assert [(one[0].decode(), one[2], one[3]) for one in found] == [(t, i, i + 1) for i, t in enumerate(rows) if t.strip(" \n")]


@QUICK
@given(data=st.binary(max_size=60), block=st.integers(4, 16))
def test_replacing_in_pieces_equals_replacing_in_the_whole(
    data: bytes, block: int, file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", block)
    data = b"x" + data
    found = documents(Corpus(paths=[file(data)], errors="replace"), tmp_path)
    assert [one[0].decode() for one in found] == [data.decode(errors="replace")]


@QUICK
@given(
    data=st.binary(max_size=200),
    form=st.sampled_from(["text", "jsonl"]),
    errors=st.sampled_from([{}, {"errors": "replace"}, {"on_bad_row": "skip"}]),
)
def test_any_bytes_end_in_documents_or_in_an_error_of_ours(
    data: bytes, form: str, errors: dict[str, str], file: Callable[[bytes], str], tmp_path: Path
) -> None:
    settings = Corpus(format=form, paths=[file(data)], document="line", **errors)
    try:
        documents(settings, tmp_path)
    except (InputError, ConfigError) as error:
        assert "\n" not in str(error)


def test_a_short_example_reads_as_the_docstring_says(file: Callable[[bytes], str], tmp_path: Path) -> None:
    path = file(b"one\r\n\r\n two\nlines\n")
    counts: Counter[str] = Counter()
    assert texts(Corpus(paths=[path], document="line"), tmp_path, counts) == ["one", " two", "lines"]
    assert counts["dropped_blank_documents"] == 1
    assert texts(Corpus(paths=[path], document="paragraph"), tmp_path) == ["one", " two\nlines"]


def test_lone_carriage_returns_and_unicode_line_ends_never_split_a_line(file: Callable[[bytes], str], tmp_path: Path) -> None:
    line = "a\rb\u2028c\x85d\ve\ff\x1cg"
    assert texts(Corpus(paths=[file(f"{line}\r\nnext\r".encode())], document="line"), tmp_path) == [line, "next\r"]


def test_a_line_of_a_form_feed_is_no_blank_line_between_paragraphs(file: Callable[[bytes], str], tmp_path: Path) -> None:
    assert texts(Corpus(paths=[file(b"a\n\f\nb\n \t\r\nc")], document="paragraph"), tmp_path) == ["a\n\f\nb", "c"]


@pytest.mark.parametrize("unit", ["file", "line"])
def test_white_space_longer_than_a_block_is_dropped_alone_and_kept_before_text(
    unit: str, file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 8)
    assert texts(Corpus(paths=[file(b" " * 50)], document=unit), tmp_path) == []
    assert texts(Corpus(paths=[file(b" " * 50 + b"a" * 50)], document=unit), tmp_path) == [" " * 50 + "a" * 50]
    with pytest.raises(InputError, match=r"longer than corpus\.max_document_bytes=20"):
        texts(Corpus(paths=[file(b" " * 50)], document=unit, max_document_bytes=20), tmp_path)


def test_a_byte_order_mark_is_stripped_once_and_counted(file: Callable[[bytes], str], tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    found = documents(Corpus(paths=[file("\ufeff\ufeffa\ufeff".encode())]), tmp_path, counts)
    assert found == [("\ufeffa\ufeff".encode(), 0, 3, 10)]
    assert counts["byte_order_marks"] == 1 and counts["syntax_bytes"] == 3
    assert documents(Corpus(format="jsonl", paths=[file(b'\xef\xbb\xbf{"text":"a"}')]), tmp_path) == [(b"a", 0, 3, 15)]


def test_a_document_longer_than_a_batch_comes_in_rows_cut_between_characters(
    file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 16)
    settings = Corpus(format="jsonl", paths=[file(json.dumps({"text": "€" * 12}).encode() + b'\n{"text":"b"}')])
    loaded = list(corpus.load(planned(settings, tmp_path).shards[0], settings, Counter()))
    assert [len(batch["text"][0].as_py()) for batch in loaded] == [5, 5, 2, 1]
    assert [batch["ends"].to_pylist() for batch in loaded] == [[False], [False], [True], [True]]


# -- what is wrong with an input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"good\nab\xffcd\nrest\n",
            "line 2, byte 3: 0xff is not UTF-8. Set corpus.errors=replace, corpus.on_bad_row=skip, or corpus.encoding=.",
        ),
        (b"good\nab\xe2\x82", "line 2, byte 3: 0xe2 is not UTF-8"),
        (b"\xff\xfea\0", "looks like UTF-16 (BOM ff fe): set corpus.encoding=utf-16"),
        (b"\xff\xfe\0\0a\0\0\0", "looks like UTF-32 (BOM ff fe 00 00): set corpus.encoding=utf-32"),
    ],
)
@pytest.mark.parametrize("unit", ["file", "line", "paragraph"])
def test_bytes_that_are_not_utf8_are_named_with_file_line_and_byte(
    data: bytes, message: str, unit: str, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        documents(Corpus(paths=[file(data)], document=unit), tmp_path)
    assert message in str(error.value) and repr(str(tmp_path / "input")) in str(error.value)


def test_a_bad_byte_deep_in_a_giant_document_is_found_at_its_place(
    file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 8)
    path = file(b"x\n" + b"y" * 50 + b"\xff" + b"z" * 50)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(
            InputError, match=r"line 2, byte 51: 0xff is not UTF-8.*cannot be skipped: set corpus\.errors=replace"
        ):
            documents(Corpus(paths=[path], document="line", on_bad_row=on_bad_row), tmp_path)


def test_replace_and_skip_keep_every_other_row_and_count_the_bad_one(
    file: Callable[[bytes], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file(b"one\ntw\xffo\nthree\n")
    counts: Counter[str] = Counter()
    assert texts(Corpus(paths=[path], document="line", errors="replace"), tmp_path, counts) == ["one", "tw\ufffdo", "three"]
    assert counts["replaced_documents"] == 1
    counts = Counter()
    assert texts(Corpus(paths=[path], document="line", on_bad_row="skip"), tmp_path, counts) == ["one", "three"]
    assert (counts["dropped_undecodable_documents"], counts["dropped_undecodable_bytes"]) == (1, 4)
    assert "1 document of 4 bytes from byte or row 0 on could not be decoded: skipped." in caplog.text


def test_other_encodings_are_read_where_they_are_named(
    file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 7)
    text = "naïve €😀\r\nzweite Zeile\r\n\r\nend"
    for encoding in ("utf-16", "utf-16-be", "utf-32", "UTF_8"):
        settings = Corpus(paths=[file(text.encode(encoding))], document="line", encoding=encoding)
        assert texts(settings, tmp_path) == ["naïve €😀", "zweite Zeile", "end"]
    assert texts(Corpus(paths=[file("\ufeff\ufeffa".encode("utf-16-be"))], encoding="utf-16-be"), tmp_path) == ["\ufeffa"]
    assert texts(Corpus(paths=[file("é".encode("latin-1"))], encoding="latin-1"), tmp_path) == ["é"]
    rows = '{"text":"é€"}\n{"text":"b"}'.encode("utf-16")
    assert texts(Corpus(format="jsonl", paths=[file(rows)], encoding="utf-16"), tmp_path) == ["é€", "b"]
    with pytest.raises(InputError, match=r"cannot be read with corpus\.encoding=utf-16: .* does not start with BOM"):
        documents(Corpus(paths=[file(text.encode("utf-16-le"))], encoding="utf-16"), tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252", "euc_jp"])
@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
def test_a_row_that_is_not_of_its_encoding_is_bad_whatever_the_encoding(
    encoding: str, form: str, file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 16)
    byte = b"\xff" if encoding != "cp1252" else b"\x81"  # every other byte is some character
    row = {"text": b"%s", "jsonl": b'{"text":"%s","more":"b"}', "csv": b"%s,b"}[form]
    head = [b"text,more"] if form == "csv" else []
    rows = [*head, *(row % text for text in (b"first", b"ab" + byte + b"cd", b"last"))]
    asked = Corpus(format=form, paths=[file(b"\n".join(rows))], document="line", encoding=encoding, on_bad_row="skip")
    assert texts(asked, tmp_path) == ["first", "last"]
    place = f"line {2 + len(head)}, byte {3 + row.index(b'%')}"
    with pytest.raises(InputError, match=rf"input' {place}( as UTF-8)?: 0x{byte.hex()} is not (?i:{encoding})\. Set corpus\."):
        documents(dataclasses.replace(asked, on_bad_row="error"), tmp_path)
    assert texts(dataclasses.replace(asked, errors="replace"), tmp_path) == ["first", "ab\ufffdcd", "last"]


def test_nul_bytes_are_kept_counted_and_warned_of(
    file: Callable[[bytes], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    assert texts(Corpus(paths=[file(b"a" * 5000 + b"\0")]), tmp_path, counts) == ["a" * 5000 + "\0"]
    assert counts["nul_bytes"] == 1 and not caplog.records
    counts = Counter()
    documents(Corpus(format="jsonl", paths=[file(b'{"text":"a\\u0000b"}', "od\nd")]), tmp_path, counts)
    assert counts["nul_bytes"] == 1 and "holds 1 NUL bytes in 3: is it a binary file?" in caplog.text
    assert "od\\nd" in caplog.text


def test_empty_files_are_counted_and_warned_of_among_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, data in {"a": b"", "b": b"text", "c": b"", "d": gzip.compress(b"")}.items():
        (tmp_path / name).write_bytes(data)
    counts: Counter[str] = Counter()
    assert texts(Corpus(paths=[str(tmp_path / name) for name in "abcd"]), tmp_path, counts) == ["text"]
    assert counts["empty_files"] == 3 and "2 of 4 files are empty" in caplog.text


def test_a_corpus_without_a_document_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b" \n\t\r\n")
    settings = Corpus(paths=[str(tmp_path / "a"), str(tmp_path / "b")])
    counts: Counter[str] = Counter()
    assert documents(settings, tmp_path, counts) == []
    with pytest.raises(InputError) as error:
        corpus.require_documents(counts, planned(settings, tmp_path))
    assert str(error.value) == (
        "read 2 files, 5 bytes, 0 usable documents (reasons: 1 empty file, 1 document of white space alone)."
    )


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"text": tru}', InputError, "line 2: invalid JSON (col 10)"),
        (b'{"text":"b"} {"text":"c"}', InputError, "line 2: invalid JSON (col 14): Extra data"),
        (b'{"text":\n"b"}', InputError, "line 2: invalid JSON"),
        (b'{"text":\n"b"} {"text":"c"}', InputError, "line 2: invalid JSON"),
        (b'["text"]', InputError, "line 2: a JSON object is needed, found an array"),
        (b'[{"text":"b"},', InputError, "line 2: invalid JSON"),
        (b"3", InputError, "line 2: a JSON object is needed, found 3"),
        (
            b'{"body":"b","id":1}',
            ConfigError,
            "line 2: no column 'text'; found: 'body', 'id'. Did you mean corpus.text_column=body?",
        ),
        (b'{"text":null}', InputError, "line 2: column 'text' holds null, not a string"),
        (b'{"text":5}', InputError, "line 2: column 'text' holds 5, not a string"),
        (b'{"text":NaN}', InputError, "line 2: column 'text' holds NaN, not a string"),
        (b'{"text":{"a":"b"}}', InputError, "line 2: column 'text' holds an object, not a string"),
        (b'{"text":"b","text":"c"}', InputError, "line 2: column 'text' is given 2 times"),
        (
            b'{"text":"\\ud800"}',
            InputError,
            "line 2: column 'text' holds a lone surrogate. Set corpus.errors=replace or corpus.on_bad_row=skip.",
        ),
        (b'{"text":"a\xff"}', InputError, "line 2, byte 11: 0xff is not UTF-8"),
        (b'{"id":"\xff","text":"a"}', InputError, "line 2, byte 8: 0xff is not UTF-8"),
        (b'{"text":"a\tb"}', InputError, "line 2: invalid JSON (col 11)"),
        (b'{"x":' + b"[" * 20000 + b"1", InputError, "line 2: invalid JSON"),
        (b'{"x":' + b"1" * 5000 + b"}", InputError, "line 2: invalid JSON"),
    ],
)
def test_a_bad_json_line_is_named_with_what_is_wrong(
    line: bytes, kind: type[Exception], message: str, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        documents(Corpus(format="jsonl", paths=[file(b'{"text":"a"}\n' + line + b'\n{"text":"z"}\n')]), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_last_json_line_may_lack_its_newline_but_not_its_end(file: Callable[[bytes], str], tmp_path: Path) -> None:
    assert texts(Corpus(format="jsonl", paths=[file(b'{"text":"a"}\n{"text":"b"}')]), tmp_path) == ["a", "b"]
    with pytest.raises(InputError, match=r"line 2: invalid JSON .* The file may be truncated\."):
        documents(Corpus(format="jsonl", paths=[file(b'{"text":"a"}\n{"text":"b')]), tmp_path)


def test_lone_surrogates_are_replaced_or_skipped_where_asked(file: Callable[[bytes], str], tmp_path: Path) -> None:
    path = file(b'{"text":"a"}\n{"text":"b\\ud800"}\n{"text":"c\xff"}\n{"text":"\\ud83d\\ude00"}\n')
    assert texts(Corpus(format="jsonl", paths=[path], errors="replace"), tmp_path) == ["a", "b\ufffd", "c\ufffd", "😀"]
    counts: Counter[str] = Counter()
    assert texts(Corpus(format="jsonl", paths=[path], on_bad_row="skip"), tmp_path, counts) == ["a", "😀"]
    assert counts["dropped_undecodable_documents"] == 2


@pytest.mark.parametrize(
    "odd", [b'{"text":"b"}  ', b'  {"text":"b"}', b'{"text":"b","n":1e999}', b'{"text":"b","x":"\\ud800"}']
)
def test_a_line_that_only_the_slow_parser_takes_gives_what_the_fast_one_gives(
    odd: bytes, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    path = file(b'{"text":"a\\u00e9"}\n' + odd + b'\n{"te\\u0078t":"c"}\n')
    assert texts(Corpus(format="jsonl", paths=[path]), tmp_path) == ["aé", "b", "c"]


DEEP = b"[" * 3000 + b"]" * 3000


@pytest.mark.parametrize(
    "unread", [DEEP, b"Inf", b"-NaN", b"NaN", b"1" * 5000, b"1e999", b'"\\ud800"', b'1,"x":2', b"tru", b'"\t"', b"[1,]"]
)
def test_what_becomes_of_a_line_does_not_depend_on_the_lines_beside_it(
    unread: bytes, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    line = b'{"x":' + unread + b',"text":"b"}\n'
    sound, malformed, surrogate = b'{"text":"a"}\n', b'{"text":\n', b'{"text":"c","x":"\\ud800"}\n'
    kept = []
    for beside, others in ((b"", []), (sound, ["a"]), (malformed + sound, ["a"]), (surrogate, ["c"])):
        asked = Corpus(format="jsonl", paths=[file(beside + line)], on_bad_row="skip")
        found = texts(asked, tmp_path)
        assert found[: len(others)] == others
        kept.append(found[len(others) :])
    assert kept in ([["b"]] * 4, [[]] * 4)
    assert (kept[0] == []) == (unread in (b"tru", b'"\t"', b"[1,]"))


def test_metadata_that_cannot_be_written_as_json_again_is_a_bad_row(file: Callable[[bytes], str], tmp_path: Path) -> None:
    path = file(b'{"text":"a","m":' + b"[" * 600 + b"]" * 600 + b"}\n")
    with pytest.raises(InputError, match=r"line 1: column 'm' holds what cannot be written as JSON again\."):
        documents(Corpus(format="jsonl", paths=[path], metadata=["m"]), tmp_path)


def test_a_json_line_over_the_limit_is_named(
    file: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(b'{"text":"a"}\n{"text":"' + b"b" * 200 + b'"}\n')
    settings = Corpus(format="jsonl", paths=[path], max_document_bytes=100)
    for block in (batches.BLOCK, 16):
        monkeypatch.setattr(batches, "BLOCK", block)
        with pytest.raises(InputError, match=r"in line 2 is longer than corpus\.max_document_bytes=100"):
            documents(settings, tmp_path)
    assert len(texts(Corpus(format="jsonl", paths=[path], max_document_bytes=211), tmp_path)) == 2


def test_parquet_columns_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    settings = Corpus(format="parquet", paths=[str(path)])

    def refused(table: pa.Table, kind: type[Exception], message: str) -> None:
        pq.write_table(table, path)
        with pytest.raises(kind) as error:
            documents(settings, tmp_path)
        assert message in str(error.value) and str(path) in str(error.value)

    refused(
        pa.table({"body": ["a"], "id": [1]}),
        ConfigError,
        "no column 'text'; found: body, id. Did you mean corpus.text_column=body?",
    )
    refused(pa.table({"text": [1]}), InputError, "column 'text' holds int64, not strings")
    refused(pa.table({"text": ["a", None]}), InputError, "row 1: column 'text' is null")
    bad = pa.array([b"a", b"b\xff"]).view(pa.string())
    refused(pa.table({"text": bad}), InputError, "row 1, byte 2: 0xff in 'text' is not UTF-8")
    pq.write_table(pa.table({"text": bad}), path)
    assert texts(Corpus(format="parquet", paths=[str(path)], errors="replace"), tmp_path) == ["a", "b\ufffd"]
    assert texts(Corpus(format="parquet", paths=[str(path)], on_bad_row="skip"), tmp_path) == ["a"]
    path.write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(InputError, match="not a readable Parquet file"):
        documents(settings, tmp_path)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_strings_of_any_kind_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["é", "b"], kind)}), tmp_path / "p.parquet")
    assert texts(Corpus(format="parquet", paths=[str(tmp_path / "p.parquet")]), tmp_path) == ["é", "b"]


def test_damaged_parquet_pages_are_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": [f"row {i} {'x' * i}" for i in range(400)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    for at in range(8, 400, 8):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"p\.parquet"):
        documents(Corpus(format="parquet", paths=[str(path)]), tmp_path)


@pytest.mark.parametrize("form", ["file", "line", "paragraph", "jsonl"])
@pytest.mark.parametrize("space", [" \t", "\n"], ids=repr)
def test_a_long_document_is_cut_before_words(form: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK", 32)
    words = [f"word{i}" for i in range(100)]
    text = (" " if form == "line" else space).join(words)
    path = tmp_path / "long"
    path.write_text(json.dumps({"text": text}) if form == "jsonl" else text)
    kind = {"format": "jsonl"} if form == "jsonl" else {"document": form}
    settings = Corpus(paths=[str(path)], **kind)
    pieces = [batch["text"][0].as_py() for batch in corpus.load(planned(settings, tmp_path).shards[0], settings, Counter())]
    assert "".join(pieces) == text and len(pieces) > 20
    assert [word for piece in pieces for word in piece.split()] == words


# -- sources that change ----------------------------------------------------------------------------------


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def replace(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


def restore_times(path: Path, data: bytes) -> None:
    stat = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, replace, restore_times])
@pytest.mark.parametrize("form", ["text", "parquet"])
@pytest.mark.row("A21")
def test_a_source_changed_between_plan_and_load_is_refused(
    change: Callable[[Path, bytes], None], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "source"
    old, new = b"the old text", b"the new text"
    if form == "parquet":
        versions = []
        for text in (old, new):
            pq.write_table(pa.table({"text": [text.decode()]}), path)
            versions.append(path.read_bytes())
        old, new = versions
    path.write_bytes(old)
    settings = Corpus(format=form, paths=[str(path)])
    shard = planned(settings, tmp_path).shards[0]
    change(path, new)
    with pytest.raises(InputError, match="changed during the run; nothing was published"):
        list(corpus.load(shard, settings, Counter()))


@pytest.mark.parametrize("change", [rewrite, restore_times])
@pytest.mark.row("A21")
def test_a_source_changed_while_it_is_read_is_refused(
    change: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK", 16)
    path = tmp_path / "source"
    path.write_bytes(b"a" * 100)
    settings = Corpus(paths=[str(path)])
    loaded = corpus.load(planned(settings, tmp_path).shards[0], settings, Counter())
    next(loaded)
    change(path, b"b" * 100)
    with pytest.raises(InputError, match="changed during the run"):
        list(loaded)


@pytest.mark.row("A21")
def test_a_source_that_shrinks_or_goes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK", 16)
    path = tmp_path / "source"
    path.write_bytes(b"a" * 100)
    settings = Corpus(paths=[str(path)])
    shard = planned(settings, tmp_path).shards[0]
    loaded = corpus.load(shard, settings, Counter())
    next(loaded)
    os.truncate(path, 20)
    with pytest.raises(InputError, match="became shorter during the run"):
        list(loaded)
    path.unlink()
    with pytest.raises(InputError, match="is gone since the run began"):
        list(corpus.load(shard, settings, Counter()))


def test_a_source_that_is_only_touched_is_read(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"text")
    settings = Corpus(paths=[str(path)])
    shard = planned(settings, tmp_path).shards[0]
    os.utime(path, (1, 1))
    assert sum(len(batch) for batch in corpus.load(shard, settings, Counter())) == 1


@pytest.mark.row("A19")
def test_rehash_sees_a_change_that_stat_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"text")
    settings = Corpus(paths=[str(path)])
    monkeypatch.setattr(plan, "CLOCK", -1e9)
    shard = planned(settings, tmp_path).shards[0]
    path.write_bytes(b"TEXT")
    monkeypatch.setattr(places.LocalFile, "stat", lambda file: shard.parts[0].stat)
    assert sum(len(batch) for batch in corpus.load(shard, settings, Counter())) == 1
    with pytest.raises(InputError, match="changed during the run"):
        list(corpus.load(shard, settings, Counter(), rehash=True))


# -- the rest ---------------------------------------------------------------------------------------------


def test_several_documents_stops_at_the_second(file: Callable[[bytes], str], tmp_path: Path) -> None:
    one = Corpus(paths=[file(b"a\n\n")], document="line")
    assert not corpus.several_documents(planned(one, tmp_path).shards, one)
    two = Corpus(paths=[file(b"a\nb\n\xff\n")], document="line", shard_bytes=1)
    assert corpus.several_documents(planned(two, tmp_path).shards, two)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, []), (1, ["a"]), (2, ["ab"]), (3, ["ab"]), (4, ["ab", "€"][:1]), (5, ["ab", "€"]), (9, ["ab", "€", "c"])],
)
def test_head_gives_about_so_many_bytes_cut_between_characters(limit: int, expected: list[str]) -> None:
    text = pa.array(["skipped", "ab", "€", "c"]).slice(1)
    assert [row for row in batches.head(text, limit).to_pylist() if row] == expected


def test_encodings_are_checked_before_anything_is_read() -> None:
    for bad in ({"encoding": "utf-9"}, {"encoding": "hex"}, {"encoding": "utf-16", "errors": "skip"}):
        with pytest.raises(ConfigError, match="corpus"):
            check(Config(corpus=Corpus(paths=["x"], **bad)))
    check(Config(corpus=Corpus(paths=["x"], encoding="utf-16", errors="replace")))


def test_loading_never_imports_pandas(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", " ", "b"]}), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_bytes(b'{"text":"a"}\n{"text":""}\n{"text":"b"} \n')
    (tmp_path / "p.text").write_bytes(b"a\n\nb\n")
    script = """
import sys
from collections import Counter
from pathlib import Path
from pipeline import batches, corpus, plan
from pipeline.cache import Cache
from pipeline.config import Corpus
for form in ("text", "jsonl", "parquet"):
    settings = Corpus(format=form, paths=[f"p.{form}"], document="line")
    for shard in plan.make(settings, Cache.open(Path("cache")), True, 1).shards:
        assert sum(map(len, corpus.load(shard, settings, Counter()))) == 2, form
assert "pandas" not in sys.modules
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=True)


def test_the_real_corpus_reads_the_same_as_lines_of_json_and_as_parquet(tmp_path: Path) -> None:
    if "PIPELINE_ASSETS" not in os.environ:
        pytest.skip("PIPELINE_ASSETS is not set: no bench-20mb.parquet")
    source = Path(os.environ["PIPELINE_ASSETS"], "corpora", "bench-20mb.parquet")
    rows = pq.read_table(source)["text"].to_pylist()[:1000]
    pq.write_table(pa.table({"text": rows}), tmp_path / "p.parquet", row_group_size=300)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for form in ("parquet", "jsonl"):
        assert texts(Corpus(format=form, paths=[str(tmp_path / f"p.{form}")], shard_bytes=1 << 20), tmp_path) == rows


def test_a_parquet_file_of_ordinary_texts_is_decoded_without_its_dictionaries_in_batches_of_some_size(tmp_path: Path) -> None:
    """Read with its dictionaries, each batch would carry a copy of all of one: as many bytes as the row group has."""
    rows = [f"{n} " + "the ferry was late because of the fog " * 99 for n in range(3000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "p.parquet")
    assert pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(0).column(0).has_dictionary_page
    decoded = []
    joined = tables._joined

    def watched(batches: Any) -> Any:
        def passing() -> Any:
            for batch in batches:
                decoded.append((str(batch.schema.field("text").type), batch.nbytes))
                yield batch

        return joined(passing())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_joined", watched)
        chosen = Corpus(format="parquet", paths=[str(tmp_path / "p.parquet")])
        (shard, *_) = planned(chosen, tmp_path).shards
        given = [batch["text"].nbytes for batch in corpus.load(shard, chosen, Counter())]
    assert {kind for kind, _ in decoded} == {"string"} and sum(size for _, size in decoded) < 2 * sum(map(len, rows))
    assert len(given) < 20 and min(given[:-1]) > 1 << 20


def test_batches_that_are_small_are_joined_and_others_pass_as_they_are() -> None:
    batches = [pa.record_batch({"text": ["x" * size]}) for size in (10, 1 << 20, 1 << 21, 3, 4)]
    joined = list(tables._joined(iter(batches)))
    assert [len(batch) for batch in joined] == [2, 1, 2] and joined[1] is batches[2]
    assert pa.concat_batches(joined) == pa.concat_batches(batches)
