"""The plan: where the input is cut, and what it costs to ask again."""

import hashlib
import logging
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import write
from pipeline import corpus, places, plan
from pipeline.cache import Cache
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, ResourceError


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now count as old enough for their stat to be believed."""
    monkeypatch.setattr(plan, "CLOCK", -1e9)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes were hashed, in order."""
    paths: list[str] = []
    original = plan._hash

    def spy(ranges: list[tuple[str, int, int]]) -> list[str]:
        paths.extend(path for path, _, _ in ranges)
        return original(ranges)

    monkeypatch.setattr(plan, "_hash", spy)
    return paths


def make(cache: Cache, trust_stat: bool = True, workers: int = 2, **settings: Any) -> plan.Plan:
    return plan.make(Corpus(**settings), cache, trust_stat, workers)


# -- cut --------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(["a", "bcd", "\n", "\r\n", "\n\n", " ", "\t", "\r", "é"]), max_size=40),
    step=st.integers(1, 30),
    unit=st.sampled_from(["file", "line", "paragraph"]),
    read=st.integers(1, 5),
)
def test_parts_tile_the_file_and_begin_behind_a_line_end_or_a_blank_line(
    pieces: list[str], step: int, unit: str, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    monkeypatch.setattr(plan, "READ", read)
    data = "".join(pieces).encode()
    write(tmp_path, input=data)
    made = make(cache, trust_stat=False, paths=[str(tmp_path / "input")], document=unit, shard_bytes=step)
    parts = [part for shard in made.shards for part in shard.parts]
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])] and parts[-1].end == len(data)
    assert all(part.sha256 == hashlib.sha256(data[part.start : part.end]).hexdigest() for part in parts)
    for part in parts[1:]:
        lines = data[: part.start].split(b"\n")
        assert unit != "file" and lines[-1] == b""
        assert unit == "line" or not lines[-2].strip(b" \t\r")
    if unit == "line":  # and at the first such place
        assert all(data[part.start : part.end - 1].find(b"\n", step) < 0 for part in parts)


def test_small_files_share_a_shard_and_a_small_rest_joins_its_neighbour(here: Path, cache: Cache) -> None:
    write(here, **{f"{i:02d}": "x" * 40 for i in range(10)}, long="line\n" * 24)
    made = make(cache, paths=["."], document="line", shard_bytes=100)
    assert [[(part.path, part.bytes) for part in shard.parts] for shard in made.shards] == [
        [(f"./{i:02d}", 40) for i in range(first, first + 3)] for first in (0, 3, 6)
    ] + [[("./09", 40)], [("./long", 105), ("./long", 15)]]
    assert [shard.index for shard in made.shards] == [0, 1, 2, 3, 4] and made.bytes == 520


def test_row_groups_are_joined_or_cut_by_rows_to_about_a_shard(here: Path, cache: Cache) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.bytes(50).hex() for _ in range(1000)]

    def ranges(group: int, shard_bytes: int) -> list[tuple[int, int]]:
        pq.write_table(pa.table({"n": range(1000), "text": rows}), here / "p", row_group_size=group)
        made = make(cache, paths=["p"], format="parquet", shard_bytes=shard_bytes)
        parts = [part for shard in made.shards for part in shard.parts]
        assert len(parts) == len(made.shards)
        assert abs(sum(part.bytes for part in parts) - 104_000) < 6000
        return [(part.start, part.end) for part in parts]

    assert ranges(1000, 1 << 20) == [(0, 1000)]
    assert ranges(100, 1 << 20) == [(0, 1000)]
    assert ranges(100, 32_000) == [(0, 300), (300, 600), (600, 900), (900, 1000)]
    assert ranges(1000, 50_000) == [(0, 1000)]  # less than three shards: not worth decoding a part of it twice
    assert ranges(1000, 30_000) == [(0, 500), (500, 1000)]
    assert ranges(1000, 1) == [(0, 250), (250, 500), (500, 750), (750, 1000)]
    assert ranges(700, 70_000) == [(0, 700), (700, 1000)]


def test_a_parquet_file_without_rows_is_a_part_of_nothing(here: Path, cache: Cache) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), here / "p")
    settings = Corpus(paths=["p"], format="parquet")
    (shard,) = plan.make(settings, cache, True, 1).shards
    counts: Counter[str] = Counter()
    assert not list(corpus.load(shard, settings, counts)) and counts["empty_files"] == 1


def test_a_parquet_file_without_the_column_is_refused_before_anything_is_read(here: Path, cache: Cache) -> None:
    pq.write_table(pa.table({"text": ["a"]}), here / "a")
    pq.write_table(pa.table({"body": ["a"]}), here / "b")
    with pytest.raises(ConfigError, match=r"'b': no column 'text'; found: body\. Did you mean corpus\.text_column=body\?"):
        make(cache, paths=["b"], format="parquet")
    with pytest.raises(InputError, match=r"'b'.*no column 'text'; found: body"):
        make(cache, paths=["a", "b"], format="parquet")


# -- what a plan depends on -------------------------------------------------------------------------------


def test_the_digest_is_that_of_content_in_order_and_of_nothing_else(here: Path, cache: Cache) -> None:
    def digest(*names: str, workers: int = 2, **rest: Any) -> str:
        return make(cache, paths=list(names), workers=workers, **rest).sha256

    write(here, a="one\n" * 99, b="two\n", c="one\n" * 99, d="two\n", e="tw0\n")
    first = digest("a", "b")
    os.utime("a", (1, 1))
    assert first == digest("a", "b", workers=7) == digest("c", "d") == digest(str(here / "a"), "d")
    cut = digest("a", "b", document="line", shard_bytes=16)
    assert len({first, digest("b", "a"), digest("a", "e"), digest("a"), cut}) == 5


@pytest.mark.row("A23")
def test_a_shard_is_told_by_its_files_and_what_it_takes_of_each(here: Path, cache: Cache) -> None:
    write(here, a="a line\n" * 10, b="b", c="c", d="d", e="e")
    (shard,) = make(cache, paths=["a", "b", "c", "d", "e"]).shards
    assert str(shard) == "shard 0 ('a' from 0 to 70, 'b' from 0 to 1, 'c' from 0 to 1, 2 more files)"


def test_a_plan_survives_pickling(here: Path, cache: Cache) -> None:
    write(here, a="text")
    made = make(cache, paths=["a"])
    assert pickle.loads(pickle.dumps(made)) == made


# -- asking again -----------------------------------------------------------------------------------------


def test_only_files_whose_stat_changed_are_hashed_again(here: Path, cache: Cache, settled: None, hashed: list[str]) -> None:
    write(here, a="one\n" * 30, b="two", c="")
    settings: dict[str, Any] = {"paths": ["."], "document": "line", "shard_bytes": 50}
    first = make(cache, **settings)
    assert hashed == ["./a", "./a", "./a", "./b", "./c"]
    hashed.clear()
    assert make(cache, **settings) == first and not hashed
    write(here, b="TWO")
    second = make(cache, **settings)
    assert hashed == ["./b"] and second.sha256 != first.sha256
    hashed.clear()
    assert make(cache, **settings) == second and not hashed
    assert make(cache, trust_stat=False, **settings) == second and len(hashed) == 5
    assert len(list((cache.root / "sources").iterdir())) == 1


@pytest.mark.row("A19")
def test_a_change_of_equal_size_and_restored_mtime_is_seen(here: Path, cache: Cache, settled: None) -> None:
    write(here, a="old")
    stat = os.stat("a")
    first = make(cache, paths=["a"])
    write(here, a="new")
    os.utime("a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert make(cache, paths=["a"]).sha256 != first.sha256


@pytest.mark.row("A19")
def test_a_file_written_just_now_is_not_believed_and_not_remembered(here: Path, cache: Cache, hashed: list[str]) -> None:
    write(here, a="text", old="old")
    made = make(cache, paths=["a"])
    assert made.shards[0].parts[0].stat == plan.NEVER
    make(cache, paths=["a"])
    assert hashed == ["a", "a"] and not (cache.root / "sources").exists()


def test_a_touched_or_moved_file_is_hashed_again_to_the_same_plan(
    here: Path, cache: Cache, settled: None, hashed: list[str]
) -> None:
    write(here, a="text")
    first = make(cache, paths=["a"]).sha256
    os.utime("a")
    assert make(cache, paths=["a"]).sha256 == first
    os.rename("a", "b")
    assert make(cache, paths=["b"]).sha256 == first and hashed == ["a", "a", "b"]


def test_a_note_that_was_tampered_with_is_not_believed(here: Path, cache: Cache, settled: None, hashed: list[str]) -> None:
    write(here, a="text")
    first = make(cache, paths=["a"])
    (note,) = (cache.root / "sources").iterdir()
    note.write_bytes(note.read_bytes().replace(first.sources[0].sha256[:8].encode(), b"00000000"))
    assert make(cache, paths=["a"]) == first and hashed == ["a", "a"]


def test_a_cache_that_cannot_be_written_only_costs_the_hashing(here: Path, settled: None, hashed: list[str]) -> None:
    write(here, a="text", blocked="a file where the cache should be")
    for _ in range(2):
        assert make(Cache.open(here / "blocked"), paths=["a"]).bytes == 4
    assert hashed == ["a", "a"]


@pytest.mark.parametrize("change", [lambda path: path.write_text("longer"), lambda path: path.write_text("TEXT")])
@pytest.mark.row("A21")
def test_a_file_that_changes_while_it_is_hashed_is_refused(
    change: Callable[[Path], Any], here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, a="text")
    os.utime("a", (1, 1))
    original = plan._hash

    def meddle(ranges: list[tuple[str, int, int]]) -> list[str]:
        shas = original(ranges)
        change(here / "a")
        return shas

    monkeypatch.setattr(plan, "_hash", meddle)
    with pytest.raises(InputError, match="'a' changed while it was read"):
        make(cache, paths=["a"])


def test_a_file_that_may_not_be_read_is_named(here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here, a="text")

    def deny(path: str) -> Any:
        raise PermissionError(13, "Permission denied", "a")

    monkeypatch.setattr(places, "open_file", deny)
    with pytest.raises(ResourceError, match="Permission denied at 'a'"):
        make(cache, trust_stat=False, paths=["a"])


@pytest.mark.slow
def test_many_small_files_are_few_jobs_and_few_open_files(here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "many").mkdir()
    for i in range(2000):
        (here / "many" / str(i)).write_bytes(b"%d" % i)
    jobs = []
    original = plan._hash
    monkeypatch.setattr(plan, "_hash", lambda ranges: jobs.append(len(os.listdir("/proc/self/fd"))) or original(ranges))
    made = make(cache, paths=["many"])
    assert len(made.sources) == 2000 and len(made.shards) == 1
    assert len(jobs) == 1 and max(jobs) < 100


@pytest.mark.parametrize("sizes", [[100], [3] * 50, [40, 1, 40, 1], [9, 10, 11, 12] * 20, [9] * 6], ids=str)
def test_the_number_of_shards_is_bounded_by_their_size(
    here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    for number, size in enumerate(sizes):
        (here / f"{number:03}.txt").write_text("line\n" * size)
    ordinary = make(cache, paths=["*.txt"], document="line", shard_bytes=5)
    assert len(ordinary.shards) > 24
    monkeypatch.setattr(plan, "MOST", 8)
    fewer = make(cache, paths=["*.txt"], document="line", shard_bytes=5)
    assert 3 <= len(fewer.shards) <= 8 * 1.6 + 1 and fewer.bytes == ordinary.bytes
    assert [part.source for shard in fewer.shards for part in shard.parts] == sorted(
        part.source for shard in fewer.shards for part in shard.parts
    )
    large = make(cache, paths=["*.txt"], document="line", shard_bytes=1 << 20)
    assert len(large.shards) == 1


def test_the_script_plans_what_a_run_would(here: Path, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    from scripts import plans

    (here / "texts/00000").mkdir(parents=True)
    for number in range(30):
        (here / f"texts/00000/{number:08d}.jsonl").write_text('{"text": "céu"}\n' * 20_000)
    each = (here / "texts/00000/00000000.jsonl").stat().st_size
    made, simulated = make(cache, paths=["texts"], format="jsonl"), plans.planned(30, each)
    assert [len(shard.parts) for shard in made.shards] == [len(shard.parts) for shard in simulated.shards]
    assert plans.plan_files(30, each) == "2 shards of about 5.1 MB"
    assert 40_000 < int(plans.plan_windows(1000, 10**9).split()[-2].replace(",", "")) < 70_000
    assert plans.manifest(50, 10).startswith("50 files")


def test_planning_imports_no_parquet_for_text(here: Path) -> None:
    import subprocess

    write(here, a="text")
    script = (
        "import sys; from pathlib import Path; from pipeline import plan; from pipeline.cache import Cache; "
        "from pipeline.config import Corpus; plan.make(Corpus(paths=['a']), Cache.open(Path('c')), True, 1); "
        "assert not {'pyarrow', 'pooch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(root)})


def test_nothing_is_printed(here: Path, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, a="")
    logging.getLogger("pipeline").addHandler(logging.NullHandler())
    make(cache, paths=["a"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("format", "name", "size"), [("parquet", "x", 600), ("auto", "a.PQ", 600), ("auto", "a.txt", 200)])
def test_of_a_small_corpus_in_parquet_the_text_is_shared_out_not_the_bytes_it_is_packed_in(
    format: str, name: str, size: int
) -> None:
    total = plan.SHARDS * plan.LEAST * 2
    shared = plan.shared_out(Corpus(format=format), {name: (1, total, 0, 0)})
    assert shared.shard_bytes == min(Corpus().shard_bytes, plan.LEAST * size // 100)
    large = {name: (1, plan.SHARDS * Corpus().shard_bytes, 0, 0)}
    assert plan.shared_out(Corpus(format=format), large).shard_bytes == Corpus().shard_bytes
