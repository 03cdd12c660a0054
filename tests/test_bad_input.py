"""Bad input, by the rows of the fault catalogue: the exit code, and one line that names the place and the way out."""

import contextlib
import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import COMPRESSIONS, tarred, zipped

from pipeline import batches, cli, corpus, places, plan
from pipeline.arrow import text_bytes
from pipeline.cache import Cache
from pipeline.config import Corpus
from pipeline.errors import InputError

End = Callable[..., tuple[int, str]]
TINY = ["tokenizer=bytes", "embedding=none", "window.context_length=4"]
TEXT = "The ferry was late because of the fog.\n"


@pytest.fixture
def ends(at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> End:
    """The command line as a function: its exit code and what it says on stderr."""
    monkeypatch.setattr("sys.argv", ["pipeline"])

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.exit_code([*TINY, *arguments])
        return code, capsys.readouterr().err

    return run


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


# -- places -----------------------------------------------------------------------------------------------


def folder(*names: str) -> None:
    Path("texts").mkdir()
    for name in names:
        Path("texts", name).write_text(TEXT)


def loops() -> None:
    folder("a.txt")
    for number in range(20):
        os.symlink("..", f"texts/up{number}")
        os.symlink(".", f"texts/here{number}")


def linked() -> None:
    folder("a.txt")
    os.symlink("a.txt", "texts/b.txt")


def bound() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")


def forbidden() -> None:
    folder("a.txt")
    os.chmod("texts/a.txt", 0)


@pytest.mark.parametrize(
    ("prepare", "path", "code", "said"),
    [
        pytest.param(lambda: os.symlink("x", "x"), "x", 2, "'x' in corpus.paths cannot be opened: Too many levels", id="B22-loop"),
        pytest.param(loops, "texts", 0, None, id="B22-loops-in-a-folder"),
        pytest.param(loops, '"texts/**/*.txt"', 0, None, id="B22-loops-in-a-pattern"),
        pytest.param(lambda: os.symlink("gone", "x"), "x", 2, "'x' in corpus.paths cannot be opened: No such file", id="B22-dangling"),
        pytest.param(linked, "texts", 2, "are the same file; name it once", id="B22-twice"),
        pytest.param(lambda: Path("texts").mkdir(), "texts", 2, "the folder 'texts' in corpus.paths holds no files", id="B23-folder"),
        pytest.param(lambda: os.mkfifo("pipe"), "pipe", 2, "'pipe' in corpus.paths is not a regular file", id="B23-pipe"),
        pytest.param(bound, "socket", 2, "'socket' in corpus.paths is not a regular file", id="B23-socket"),
        pytest.param(None, "/dev/zero", 2, "'/dev/zero' in corpus.paths is not a regular file", id="B23-device"),
        pytest.param(None, "/proc/version", 2, "'/proc/version' in corpus.paths is not a regular file", id="B23-proc"),
        pytest.param(
            forbidden, "texts/a.txt", 5, "'texts/a.txt': check its owner and mode", id="B24",
            marks=pytest.mark.skipif(os.getuid() == 0, reason="root may read anything"),
        ),
        pytest.param(lambda: folder("verdict.text"), "texts/verdict.txt", 2, "Nearest in 'texts': 'verdict.text'", id="B25-name"),
        pytest.param(lambda: folder("a.md"), '"texts/*.txt"', 2, "pattern 'texts/*.txt' (cwd ", id="B25-pattern"),
        pytest.param(lambda: folder("a.md"), '"texts/**/*.txt"', 2, "pattern 'texts/**/*.txt' (cwd ", id="B25-deep-pattern"),
        pytest.param(None, "http://169.254.169.254/latest", 2, "only https:// and stores", id="B30-http"),
        pytest.param(None, "file:///etc/passwd", 2, "only https:// and stores", id="B30-file"),
        pytest.param(None, "ftp://example.org/a", 2, "only https:// and stores", id="B30-ftp"),
        pytest.param(None, '"https://user:word@example.org/a"', 2, "looks like a secret", id="B30-user"),
        pytest.param(None, "https://example.org/a", 2, "needs its checksum", id="B30-checksum"),
        pytest.param(None, f'"https://169.254.169.254/a#sha256={"0" * 64}"', 3, "is in a private network", id="B30-private"),
        pytest.param(None, "s4://bucket/a", 2, "s4:// is unknown", id="B30-unknown"),
    ],
)  # fmt: skip
@pytest.mark.row("B22", "B23", "B24", "B25", "B30")
def test_places_that_cannot_be_read(
    prepare: Callable[[], None] | None, path: str, code: int, said: str | None, ends: End
) -> None:
    if prepare:
        prepare()
    ended, err = ends("corpus=text", f"corpus.paths=[{path}]")
    assert ended == code, err
    lines = errors(err)
    assert (not lines) if said is None else (len(lines) == 1 and said in lines[0]), err
    assert "user:word" not in err


@pytest.mark.row("B24")
def test_a_file_that_may_not_be_read_is_named_with_the_way_out(ends: End, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("a.txt")

    def deny(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(places, "open_file", deny)
    code, err = ends("corpus=text", "corpus.paths=[texts]")
    assert code == 5 and len(errors(err)) == 1
    assert "Permission denied at 'texts/a.txt': check its owner and mode" in err


@pytest.mark.row("B28")
@pytest.mark.parametrize("change", ["deleted", "shortened", "rewritten", "grown"])
def test_a_file_that_changes_after_it_was_planned(change: str, at: Path) -> None:
    path = at / "a.txt"
    path.write_text(TEXT * 100)
    settings = Corpus(paths=["a.txt"], document="line", shard_bytes=1000)
    planned = plan.make(settings, Cache.open(at / "cache"), True, 1)
    if change == "deleted":
        path.unlink()
    else:
        path.write_text({"shortened": TEXT, "rewritten": TEXT.upper() * 100, "grown": TEXT * 101}[change])

    def read() -> int:
        return sum(len(batch) for shard in planned.shards for batch in corpus.load(shard, settings, Counter()))

    if change == "grown":  # what was planned is still there
        assert read() == 100
        return
    with pytest.raises(InputError, match=r"'a\.txt' (is gone since the run began|changed during the run)"):
        read()


@pytest.mark.row("B32")
def test_two_files_of_the_same_content_are_two_in_the_order_of_their_paths(ends: End) -> None:
    folder("b.txt", "a.txt")
    os.link("texts/a.txt", "texts/c.txt")
    settings = Corpus(paths=["texts"])
    planned = plan.make(settings, Cache.open(Path("cache")), True, 1)
    assert [source.path for source in planned.sources] == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]
    counts: Counter[str] = Counter()
    for shard in planned.shards:
        list(corpus.load(shard, settings, counts))
    assert counts["documents"] == 3


# -- bytes ------------------------------------------------------------------------------------------------


def put(data: bytes, name: str = "x") -> Callable[[], None]:
    return lambda: bool(Path(name).write_bytes(data)) and None


def both(*writes: Callable[[], None]) -> Callable[[], None]:
    return lambda: [write() for write in writes] and None


ROW = b'{"text":"The ferry was late."}\n'
DEEP = b'{"x":' + b"[" * 10000 + b"1}\n"


def parquet(**columns: list[object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def broken_arrow() -> bytes:
    """An Arrow stream whose offsets of strings lead far outside of its memory."""
    sink, batch = io.BytesIO(), pa.record_batch([pa.array(["abcd", "x" * 60])], ["text"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().replace(np.array([0, 4, 64], np.int32).tobytes(), np.array([0, 4, 1 << 30], np.int32).tobytes())


def odd_tar(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        change(info)
        archive.addfile(info)
    return sink.getvalue()


def attributes(records: bytes, members: int = 1, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A tar whose member has so many pax headers with these records before it."""
    head, info = tarfile.TarInfo("h"), tarfile.TarInfo("a.txt")
    head.type, head.size, info.size = kind, len(records), 4
    one = head.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    return one * members + info.tobuf(tarfile.USTAR_FORMAT) + b"text" + bytes(508 + 1024)


def linking(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"


def device(info: tarfile.TarInfo) -> None:
    info.type = tarfile.CHRTYPE


def window_of_2_gib() -> bytes:
    """A frame of zstd (RFC 8878) that asks for a window of 2 GiB: magic, descriptor, window, one raw block."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + (1 | 5 << 3).to_bytes(3, "little") + b"hello"


SKIPPED = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"aside"  # a frame that zstd and lz4 pass over
GZ, ZST, XZ, BZ2 = (COMPRESSIONS[name](ROW * 100) for name in ("gz", "zst", "xz", "bz2"))
ARCHIVES = ["corpus=text", "corpus.archives=true"]
LINES = ["corpus=text", "corpus.document=line"]
BYTES = [
    ("B1", put(b"good text\nab\xffcd\n"), LINES, 3, "'x' line 2, byte 3: 0xff is not UTF-8. Set corpus.errors=replace"),
    ("B1-replace", put(b"good text\nab\xffcd\n"), [*LINES, "corpus.errors=replace"], 0, None),
    ("B1-skip", put(b"good text\nab\xffcd\n"), [*LINES, "corpus.on_bad_row=skip"], 0, None),
    ("B2", put(b"\xef\xbb\xbfgood\xef\xbb\xbf text"), ["corpus=text"], 0, None),
    ("B3", put("good text".encode("utf-16")), ["corpus=text"], 3, "looks like UTF-16 (BOM ff fe)"),
    ("B3-named", put("good text".encode("utf-16")), ["corpus=text", "corpus.encoding=utf-16"], 0, None),
    ("B4", put(b"one\r\ntwo\rthree\r\n"), LINES, 0, None),
    ("B5", put("one\u2028two\x85three\v\f".encode()), LINES, 0, None),
    ("B6", put(b"one two\0three"), ["corpus=text"], 0, None),
    ("B7", put(ROW + b'{"text":"\\ud800"}\n'), ["corpus=jsonl"], 3, "'x' line 2: column 'text' holds a lone surrogate"),
    ("B7-replace", put(ROW + b'{"text":"\\ud800"}\n'), ["corpus=jsonl", "corpus.errors=replace"], 0, None),
    ("B8", both(put(b"", "x"), put(b"text of some length", "y")), ["corpus=text", "corpus.paths=[x,y]"], 0, None),
    ("B9", both(put(b"", "x"), put(b" \n\t", "y")), ["corpus=text", "corpus.paths=[x,y]"], 3, "read 2 files, 3 bytes, 0 usable"),
    ("B10", put(b'{"text":"' + b"b" * 3000 + b'"}\n'), ["corpus=jsonl", "corpus.max_document_bytes=2000"], 3, "is longer than corpus"),
    ("B13", put(ROW + b'{"text": tru}\n' + ROW), ["corpus=jsonl"], 3, "'x' line 2: invalid JSON (col 10)"),
    ("B13-skip", put(ROW + b'{"text": tru}\n' + ROW), ["corpus=jsonl", "corpus.on_bad_row=skip"], 0, None),
    ("B14", put(ROW + ROW[:-1]), ["corpus=jsonl"], 0, None),
    ("B14-torn", put(ROW + ROW[:-4]), ["corpus=jsonl"], 3, "The file may be truncated."),
    ("B15", put(b"[" + ROW + b"]"), ["corpus=jsonl"], 3, "set corpus.format=json"),
    ("B15-reverse", put(ROW * 2), ["corpus=json"], 3, "set corpus.format=jsonl"),
    ("B16", put(b'{"body":"a","id":1}\n'), ["corpus=jsonl"], 2, "no column 'text'; found: 'body', 'id'. Did you mean corpus.text_column=body?"),
    ("B16-csv", put(b"body,id\na,1\n"), ["corpus=csv"], 2, "no column 'text'; found: 'body', 'id'"),
    ("B17-null", put(ROW + b'{"text":null}\n'), ["corpus=jsonl"], 3, "line 2: column 'text' holds null, not a string"),
    ("B17-number", put(ROW + b'{"text":5}\n'), ["corpus=jsonl"], 3, "line 2: column 'text' holds 5, not a string"),
    ("B17-some", put(ROW + b'{"id":5}\n'), ["corpus=jsonl", "corpus.on_bad_row=skip"], 0, None),
    ("B17-parquet", put(parquet(text=["a good text", None])), ["corpus=parquet"], 3, "row 1: column 'text' is null"),
    ("B17-parquet-skip", put(parquet(text=["a good text", None])), ["corpus=parquet", "corpus.on_bad_row=skip"], 0, None),
    ("B18-twice", put(b'{"text":"a","text":"b"}\n'), ["corpus=jsonl"], 3, "line 1: column 'text' is given 2 times"),
    ("B18-nan", put(b'{"text":NaN}\n'), ["corpus=jsonl"], 3, "line 1: column 'text' holds NaN"),
    ("B18-deep", put(DEEP), ["corpus=jsonl"], 3, "'x' line 1: invalid JSON"),
    ("B19-gz", put(GZ[:-5]), ["corpus=jsonl"], 3, "'x' is truncated: its gzip data ends in the middle"),
    ("B19-zst", put(ZST[:-5]), ["corpus=jsonl"], 3, "'x' is truncated: its zstd data ends in the middle"),
    ("B19-xz", put(XZ[:-5]), ["corpus=jsonl"], 3, "'x' is truncated: its xz data ends in the middle"),
    ("B19-bz2", put(BZ2[:-5]), ["corpus=jsonl"], 3, "'x' is truncated: its bz2 data ends in the middle"),
    ("B19-garbage", put(GZ + b"more"), ["corpus=jsonl"], 3, "something else follows its gzip data"),
    ("B19-padding", put(GZ + bytes(70_000) + GZ + bytes(3)), ["corpus=jsonl"], 0, None),
    ("B19-garbage-behind-padding", put(GZ + bytes(3) + b"more"), ["corpus=jsonl"], 3, "something else follows its gzip data"),
    ("B19-padding-xz", put(XZ + bytes(4)), ["corpus=jsonl"], 0, None),
    ("B19-padding-of-three-xz", put(XZ + bytes(3)), ["corpus=jsonl"], 3, "padding of the wrong length"),
    ("B19-skipped-frame", put(SKIPPED + COMPRESSIONS["lz4"](ROW * 100)), ["corpus=jsonl"], 0, None),
    ("B19-skipped-frames", put(SKIPPED * 2 + ZST), ["corpus=jsonl"], 0, None),
    ("B19-garbage-xz", put(XZ + b"more than that"), ["corpus=jsonl"], 3, "something else follows its xz data"),
    ("B19-wrong-name", put(ZST, "x.gz"), ["corpus=jsonl", "corpus.paths=[x.gz]"], 0, None),
    ("B19-not-packed", put(ROW, "x.gz"), ["corpus=jsonl", "corpus.paths=[x.gz]"], 0, None),
    ("B20", put(gzip.compress(b"a" * (65 << 20), 9)), ["corpus=text"], 3, "more than 200 times larger"),
    ("B20-limit", put(GZ), ["corpus=jsonl", "corpus.max_decompressed_bytes=100"], 3, "larger than corpus.max_decompressed_bytes=100"),
    ("B20-twice", put(gzip.compress(GZ)), ["corpus=jsonl"], 3, "is compressed twice (gzip within gzip)"),
    ("B20-window", put(window_of_2_gib()), ["corpus=text"], 3, "'x' takes more memory to decompress than is allowed"),
    ("B21-off", put(tarred({"a.txt": b"text"})), ["corpus=text"], 3, "is an archive (tar): set corpus.archives=true"),
    ("B21-up", put(tarred({"../a.txt": b"text"})), ARCHIVES, 3, "whose path leads out of the archive"),
    ("B21-absolute", put(zipped({"/tmp/a.txt": b"text"})), ARCHIVES, 3, "whose path leads out of the archive"),
    ("B21-link", put(odd_tar(linking)), ARCHIVES, 3, "which is a link, a device or sparse"),
    ("B21-device", put(odd_tar(device)), ARCHIVES, 3, "which is a link, a device or sparse"),
    ("B21-twice", put(tarred({"a.txt": b"text", "./a.txt": b"text"})), ARCHIVES, 3, "'./a.txt', twice"),
    ("B21-up-by-attribute", put(attributes(b"20 path=../../a.txt\n")), ARCHIVES, 3, "whose path leads out of the archive"),
    ("B21-sparse", put(attributes(b"22 GNU.sparse.major=1\n")), ARCHIVES, 3, "which is a link, a device or sparse"),
    ("B21-attributes-in-one-another", put(attributes(b"2 " * 500_000 + b"=")), ARCHIVES, 3, "'x' is not a whole archive: a header of attributes with b'2 ' in it"),
    ("B21-attributes-of-digits", put(attributes(b"1" * 1_000_000)), ARCHIVES, 3, "'x' is not a whole archive"),
    ("B21-attributes-without-end", put(attributes(b"6 a=b\n", 3000)), ARCHIVES, 3, "'x' is not a whole archive"),
    ("B21-attributes-for-all", put(attributes(b"14 path=b.txt\n", kind=tarfile.XGLTYPE)), ARCHIVES, 3, "a path or a size for all members"),
    ("B21-size", put(attributes(b"31 size=9999999999999999999999\n")), ARCHIVES, 3, "'x!a.txt' becomes more than 200 times larger"),
    ("B21-size-of-less-than-nothing", put(attributes(b"10 size=-5\n")), ARCHIVES, 3, "a header of attributes with b'10 size=-5"),
    ("B21-damaged-within", put(gzip.compress(attributes(b"10 size=-5\n"))), ARCHIVES, 3, "a header of attributes with b'10 size=-5"),
    ("B21-fine", put(zipped({"a.txt": b"text of some length"})), ARCHIVES, 0, None),
    ("B26-schema", put(parquet(text=[1])), ["corpus=parquet"], 3, "'x': column 'text' holds int64, not strings"),
    ("B26-footer", put(parquet(text=["a"])[:-8] + b"\xff\xff\0\0PAR1"), ["corpus=parquet"], 3, "'x' is not a readable Parquet file"),
    ("B26-encrypted", put(b"PARE" + b"\0" * 20 + b"PARE"), ["corpus=parquet"], 3, "'x' is not a readable Parquet file"),
    ("B26-no-rows", put(parquet(text=pa.array([], pa.string()))), ["corpus=parquet"], 3, "0 usable documents"),
    ("B26-differing", both(put(parquet(text=["a"])), put(parquet(body=["a"]), "y")), ["corpus=parquet", "corpus.paths=[x,y]"], 3, "'y' has another schema (body string) than 'x' (text string), and not what is wanted: 'y': no column 'text'"),
    ("B26-differing-type", both(put(parquet(text=["a"])), put(parquet(text=[1]), "y")), ["corpus=parquet", "corpus.paths=[x,y]"], 3, "'y' has another schema (text int64) than 'x' (text string)"),
    ("B27", put(broken_arrow()), ["corpus=arrow"], 3, "'x' is not a readable Arrow file"),
]  # fmt: skip


def texts() -> Iterator[Path]:
    """Every text file but the cache's notes of sources, which appear once those are two seconds old."""
    return (path for path in Path().rglob("*.txt") if path.parent != Path("data/cache/sources"))


@pytest.mark.row("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B13", "B14", "B15", "B16", "B17", "B18")
@pytest.mark.row("B19", "B20", "B21", "B26", "B27")
@pytest.mark.parametrize(("prepare", "arguments", "code", "said"), [pytest.param(*row, id=name) for name, *row in BYTES])
def test_bytes_that_are_not_as_they_should_be(
    prepare: Callable[[], None], arguments: list[str], code: int, said: str | None, ends: End
) -> None:
    prepare()
    before = set(texts())
    where = [] if any(argument.startswith("corpus.paths") for argument in arguments) else ["corpus.paths=[x]"]
    ended, err = ends(*arguments, *where)
    assert ended == code, err
    lines = errors(err)
    assert (not lines) if said is None else (len(lines) == 1 and said in lines[0]), err
    assert set(texts()) == before  # no member was unpacked


@pytest.mark.row("B13", "B17")
def test_every_other_row_is_there_and_the_bad_one_is_listed(ends: End) -> None:
    Path("x").write_bytes(ROW + b'{"text": tru}\n' + ROW + b'{"id":1}\n' + b'{"text":7}\n' + ROW)
    code, err = ends("corpus=jsonl", "corpus.paths=[x]", "corpus.on_bad_row=skip", "name=x")
    assert code == 0, err
    (rejects,) = Path("outputs/x/rejects").iterdir()
    rows = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(row["line"], row["excerpt"]) for row in rows] == [(2, '{"text": tru}'), (4, '{"id":1}'), (5, '{"text":7}')]
    data = Path("x").read_bytes()
    assert [data[row["start"] : row["end"]].decode() for row in rows] == [row["excerpt"] for row in rows]


@pytest.mark.row("B10")
def test_a_giant_line_is_passed_over_in_bounded_memory(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.batches.BLOCK", 64)
    (at / "x").write_bytes(ROW + b'{"text":"' + b"b" * 5000 + b'"}\n' + ROW)
    settings = Corpus(format="jsonl", paths=["x"], max_document_bytes=200, on_bad_row="skip")
    counts: Counter[str] = Counter()
    for shard in plan.make(settings, Cache.open(at / "cache"), True, 1).shards:
        list(corpus.load(shard, settings, counts))
    assert (counts["documents"], counts["dropped_bad_documents"], counts["dropped_bad_bytes"]) == (2, 1, 5011)


@pytest.mark.row("B10")
def test_rows_that_were_too_long_come_back_where_longer_ones_are_asked_for(at: Path, ends: End) -> None:
    (at / "x").write_bytes(ROW + b'{"text":"' + b"b" * 5000 + b'"}\n' + ROW)
    for more, documents in ((["corpus.max_document_bytes=200"], 2), ([], 3)):
        code, err = ends("corpus=jsonl", "corpus.paths=[x]", "corpus.on_bad_row=skip", "name=x", *more)
        assert code == 0, err
        assert json.loads(Path("outputs/x/manifest.json").read_text())["ledger"]["load"]["documents"] == documents


SHAPES = {
    "no space": lambda n: "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=n)),
    "one character": lambda n: "a" * n,
    "combining marks": lambda n: "e" + "\u0301" * (n // 2),
    "joined emoji": lambda n: "\U0001f469\u200d" * (n // 7),
    "spaces": lambda n: " " * n + "a",
}


@pytest.mark.slow
@pytest.mark.row("B11")
@pytest.mark.parametrize(("kind", "size"), [("words", 1 << 20), ("bpe", 1 << 14)])
@pytest.mark.parametrize("shape", SHAPES)
def test_text_without_a_place_to_cut_takes_time_in_proportion(shape: str, kind: str, size: int, at: Path, ends: End) -> None:
    spent, tokens = [], []
    for n in (size // 2, size):
        Path(f"{n}.txt").write_text(SHAPES[shape](n) + "\n" + TEXT * 4)
        begun = time.process_time()
        options = [f"tokenizer={kind}", "window.context_length=1", "engine=serial", "output.report=false", f"name=n{n}"]
        code, err = ends("corpus=text", f"corpus.paths=[{n}.txt]", *options)
        spent.append(time.process_time() - begun)
        assert code == 0, err
        tokens.append(json.loads(Path(f"outputs/n{n}/manifest.json").read_text())["ledger"]["encode"]["ids"])
    assert spent[1] <= 4 * spent[0] + 0.5
    assert tokens[1] >= tokens[0] >= 20


def table_of(texts: list[str | None], kind: pa.DataType) -> pa.Table:
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    return pa.table({"text": column, "note": column})


def written(table: pa.Table, form: str, path: Path) -> Path:
    if form == "parquet":
        pq.write_table(table, path, row_group_size=40)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


def loaded(settings: Corpus, counts: Counter[str]) -> list[str]:
    found = ""
    for shard in plan.make(settings, Cache.open(Path("cache")), False, 1).shards:
        for batch in corpus.load(shard, settings, counts):
            batch.validate(full=True)
            found += "".join(
                text + "\n" * ends for text, ends in zip(*(batch[n].to_pylist() for n in ("text", "ends")), strict=True)
            )
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_") and name.endswith("_bytes"))
    assert counts["bytes"] == counts["text_bytes"] + dropped
    return found.splitlines()


@pytest.mark.row("B29")
@pytest.mark.parametrize("wide", [1, 2000, 1 << 40])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_columns_are_taken_in_pieces_whatever_holds_them(
    kind: pa.DataType, form: str, wide: int, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tables.PIECE", 50)
    monkeypatch.setattr("pipeline.tables.WIDE", wide)
    texts = [f"{'fog ' * (n % 9 * 4)}{n % 13}" for n in range(100)]
    path = written(table_of([None, *texts[:50], None, *texts[50:], None], kind).slice(1), form, at / "x")
    settings = Corpus(format=form, paths=[str(path)], on_bad_row="skip", max_document_bytes=100, metadata=["note"])
    counts: Counter[str] = Counter()
    assert loaded(settings, counts) == [text for text in texts if len(text) <= 100]
    assert counts["dropped_bad_documents"] == 2 + sum(len(text) > 100 for text in texts)
    settings.on_bad_row = "error"
    with pytest.raises(InputError, match=r"row 7 is longer than corpus\.max_document_bytes=100|row 50: column 'text' is null"):
        loaded(settings, Counter())


@pytest.mark.row("B29")
@pytest.mark.parametrize("form", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.list_(pa.string())], ids=str
)
def test_metadata_is_held_a_batch_at_a_time_as_text_is(
    kind: pa.DataType, form: str, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.batches.BLOCK", 2000)
    monkeypatch.setattr("pipeline.tables.PIECE", 4000)
    notes = ["m" * (300 if n != 50 else 5000) for n in range(100)]
    values = pa.array([[note] for note in notes] if pa.types.is_list(kind) else notes)
    column = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    if form == "csv":
        (at / "x").write_text("text,note\n" + "".join(f"doc {n},{note}\n" for n, note in enumerate(notes)))
    else:
        written(pa.table({"text": [f"doc {n}" for n in range(100)], "note": column}), form, at / "x")
    read, given = [], []
    monkeypatch.setattr(corpus, "regular", lambda found: batches.regular(read.append(batch) or batch for batch in found))
    settings = Corpus(format=form, paths=["x"], metadata=["note"])
    for shard in plan.make(settings, Cache.open(Path("cache")), False, 1).shards:
        given += corpus.load(shard, settings, Counter())
    for held, most in ((read, 9500), (given, 2000)):
        sizes = [sum(text_bytes(batch[name]) for name in ("text", "note")) for batch in held]
        assert all(size <= most or len(batch) == 1 for size, batch in zip(sizes, held, strict=True))
    plain = [note if form == "csv" or not pa.types.is_list(kind) else json.dumps([note]) for note in notes]
    assert [note for batch in given for note in batch["note"].to_pylist()] == plain
    assert max(map(len, given)) > 4


@pytest.mark.row("B10", "B17")
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_row_of_a_table_that_is_too_long_is_bad_wherever_it_stands(kind: pa.DataType, form: str, at: Path) -> None:
    path = written(table_of(["ferry", None, "fog" * 40, "fog", "fog" * 50], kind), form, at / "x")
    settings = Corpus(format=form, paths=[str(path)], on_bad_row="skip", max_document_bytes=100)
    counts: Counter[str] = Counter()
    assert loaded(settings, counts) == ["ferry", "fog"]
    assert counts["dropped_bad_bytes"] == 270
    settings.max_document_bytes = 130
    assert loaded(settings, Counter()) == ["ferry", "fog" * 40, "fog"]


@pytest.mark.row("B17")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_a_null_among_the_values_of_a_dictionary_is_a_null_of_each_of_its_rows(kind: pa.DataType, at: Path) -> None:
    values = pa.array(["ferry", None, "fog"], kind)
    column = pa.DictionaryArray.from_arrays(pa.array([2, 1, 1, 0], pa.int32()), values)
    path = written(pa.table({"text": column, "note": column}), "arrow", at / "x")
    settings = Corpus(format="arrow", paths=[str(path)], on_bad_row="skip", metadata=["note"])
    counts: Counter[str] = Counter()
    assert loaded(settings, counts) == ["fog", "ferry"]
    assert counts["dropped_bad_documents"] == 2
    settings.on_bad_row = "error"
    with pytest.raises(InputError, match="row 1: column 'text' is null"):
        loaded(settings, Counter())


@pytest.mark.slow
@pytest.mark.row("B20", "B29")
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_two_gigabytes_in_one_column_chunk_take_little_memory_and_must_be_asked_for(form: str, at: Path) -> None:
    body = " ".join(f"fog {n} ferry" for n in range(1 << 16))
    column = pa.DictionaryArray.from_arrays(pa.array(np.arange(2200, dtype=np.int32) % 3), pa.array([body, body[1:], body[2:]]))
    path = at / "x"
    with contextlib.ExitStack() as stack:
        new = pq.ParquetWriter if form == "parquet" else pa.ipc.new_file
        writer = stack.enter_context(new(path, pa.schema([("text", column.type)])))
        writer.write_table(pa.table({"text": column}))
    script = (
        "import re, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from collections import Counter\n"
        "from pipeline import corpus, plan; from pipeline.cache import Cache; from pipeline.config import Corpus\n"
        "settings = Corpus(format=sys.argv[2], paths=['x'], max_decompressed_bytes=int(sys.argv[3]) or None); counts = Counter()\n"
        "(shard,) = plan.make(settings, Cache.open(Path('cache')), False, 1).shards\n"
        "for batch in corpus.load(shard, settings, counts): pass\n"
        "print(counts['documents'], counts['text_bytes'], int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    root = str(Path(corpus.__file__).parents[1])
    ended = [
        subprocess.run([sys.executable, "-c", script, root, form, limit], capture_output=True, text=True)
        for limit in ("0", "3000000000")
    ]
    assert ended[0].returncode and "more than 200 times larger" in ended[0].stderr
    documents, size, peak = map(int, ended[1].stdout.split())
    assert (documents, size) == (2200, sum(len(body) - n % 3 for n in range(2200))) and size > 1 << 31
    assert peak < 300


@pytest.mark.row("B12")
def test_many_tiny_files_need_few_handles_and_little_memory(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at / "texts").mkdir()
    for i in range(3000):
        (at / "texts" / f"{i:04}").write_bytes(b"%d" % i)
    settings = Corpus(paths=["texts"])
    most = 0
    (shard,) = plan.make(settings, Cache.open(at / "cache"), True, 1).shards
    rows = 0
    for batch in corpus.load(shard, settings, Counter()):
        rows += len(batch)
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert rows == 3000 and most < 100
