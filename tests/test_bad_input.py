"""Bad input, by the rows of the fault catalogue: the exit code, and one line that names the place and the way out."""

import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli, corpus, places, plan
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
