"""Places: what is found on this disk, in which order, and what is refused."""

import errno
import glob
import hashlib
import os
from pathlib import Path
from typing import Any

import pooch
import pytest
import yaml

from conftest import write
from pipeline import config, places, plan
from pipeline.cache import Cache
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, IntegrityError, ResourceError
from pipeline.files import Stat


def make(cache: Cache, trust_stat: bool = True, workers: int = 2, **settings: Any) -> plan.Plan:
    return plan.make(Corpus(**settings), cache, trust_stat, workers)


def names(found: dict[str, Stat]) -> list[str]:
    return [Path(path).name for path in found]


# -- find -------------------------------------------------------------------------------------------------


def test_files_come_in_the_order_listed_and_by_sorted_path_within_a_folder_or_pattern(here: Path) -> None:
    (here / "texts" / "b").mkdir(parents=True)
    write(here / "texts", z="1", a="2")
    write(here / "texts" / "b", c="3")
    write(here, last="4")
    assert list(places.find(Corpus(paths=["last", "texts"]))) == ["last", "texts/a", "texts/b/c", "texts/z"]
    assert list(places.find(Corpus(paths=["texts/**/[acz]"]))) == ["texts/a", "texts/b/c", "texts/z"]


def test_a_name_with_pattern_characters_that_exists_is_itself(here: Path) -> None:
    write(here, **{"a[1]": "x", "a1": "y"})
    assert list(places.find(Corpus(paths=["a[1]"]))) == ["a[1]"]


def test_hidden_files_links_to_folders_and_what_is_no_file_are_left_out_of_a_folder_aloud(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "texts" / ".git").mkdir(parents=True)
    write(here / "texts", a="1", **{".hidden": "2"})
    write(here / "texts" / ".git", config="3")
    os.symlink("..", here / "texts" / "loop")
    os.symlink("nowhere", here / "texts" / "dangling")
    os.mkfifo(here / "texts" / "fifo")
    assert list(places.find(Corpus(paths=["texts"]))) == ["texts/a"]
    assert "skipped 3 links to folders and things that are no files, the first is 'texts/dangling'" in caplog.text


def test_two_files_of_the_same_content_are_both_kept_even_as_hard_links(here: Path) -> None:
    write(here, a="same", b="same")
    os.link(here / "a", here / "c")
    assert names(places.find(Corpus(paths=["a", "b", "c"]))) == ["a", "b", "c"]


def test_one_file_named_twice_is_refused(here: Path) -> None:
    write(here, a="text")
    os.symlink("a", here / "b")
    for paths in (["a", "a"], ["a", "b"], ["a", str(here)]):
        with pytest.raises(ConfigError, match="are the same file; name it once"):
            places.find(Corpus(paths=paths))


def test_what_is_not_a_regular_file_is_refused_without_waiting_for_it(here: Path) -> None:
    os.mkfifo(here / "fifo")
    for path in ("fifo", "/dev/zero"):
        with pytest.raises(ConfigError, match="is not a regular file"):
            places.find(Corpus(paths=[path]))
    os.symlink("nowhere", here / "dangling")
    with pytest.raises(ConfigError, match=r"'dangling' in corpus\.paths cannot be opened: No such file"):
        places.find(Corpus(paths=["dangling"]))
    os.symlink("circle", here / "circle")
    with pytest.raises(ConfigError, match=r"'circle' in corpus\.paths cannot be opened: Too many levels"):
        places.find(Corpus(paths=["circle"]))
    (here / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"the folder 'empty' in corpus\.paths holds no files"):
        places.find(Corpus(paths=["empty"]))
    with pytest.raises(ConfigError, match="NUL"):
        places.find(Corpus(paths=["a\0b"]))


@pytest.mark.parametrize(
    "pattern",
    "*.txt a/*.txt */*.txt ./*/*.txt */*/*.txt a//*.txt */b.txt */.* .*/*.txt [ab]/?.txt l*/*.txt a/* */ a*/ /*x *.none".split(),
)
def test_a_pattern_matches_what_glob_matches(here: Path, pattern: str) -> None:
    for name in ("x.txt", "a/b.txt", "a/c.txt", "b/b.txt", "b/d/e.txt", ".h/f.txt", "a/.g.txt", "b/[x].txt"):
        (here / name).parent.mkdir(exist_ok=True, parents=True)
        (here / name).write_text("x")
    (here / "link").symlink_to("a")
    (here / "a/dangling").symlink_to("nowhere")
    assert places._matches(pattern) == sorted(path for path in glob.glob(pattern) if os.path.isfile(path))


@pytest.mark.parametrize("pattern", ["in/*/*.txt", "in/**/*.txt", "in/*/b.txt", "in"])
@pytest.mark.parametrize("closed", ["in/sub", "in/sub/b.txt"])
def test_what_cannot_be_looked_at_is_an_error_and_not_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, closed: str
) -> None:
    for folder in (here / "in/ok", here / "in/sub"):
        folder.mkdir(parents=True)
        write(folder, **{"b.txt": "x"})

    def refusing(real: Any) -> Any:
        def refuse(path: Any = ".", *rest: Any, **options: Any) -> Any:
            if os.fspath(path) in (closed, f"{closed}/b.txt"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, *rest, **options)

        return refuse

    for name in ("listdir", "scandir", "stat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(ResourceError, match=f"Permission denied at '{closed}"):
        places.find(Corpus(paths=[pattern]))


def test_a_pattern_that_matches_nothing_is_named_with_the_folder_and_the_nearest_names(here: Path) -> None:
    (here / "texts").mkdir()
    write(here / "texts", **{"verdict.text": "x", "other.bin": "y"})
    with pytest.raises(ConfigError) as error:
        places.find(Corpus(paths=["texts/verdict.txt"]))
    assert f"pattern 'texts/verdict.txt' (cwd {str(here)!r}) matched no files." in str(error.value)
    assert "Nearest in 'texts': 'verdict.text'" in str(error.value)
    with pytest.raises(ConfigError, match=r"pattern 'gone/deep/\*\.txt' .* matched no files"):
        places.find(Corpus(paths=["gone/deep/*.txt"]))


@pytest.mark.row("C24")
def test_names_that_would_forge_a_log_line_are_escaped(here: Path, caplog: pytest.LogCaptureFixture, cache: Cache) -> None:
    write(here, **{"a\nforged \x1b[31m": ""})
    make(cache, paths=["."])
    assert "a\\nforged \\x1b[31m" in caplog.text and "\x1b" not in caplog.text


# -- named assets -----------------------------------------------------------------------------------------


def test_the_sample_is_found_from_any_folder(here: Path) -> None:
    values = yaml.safe_load((config.conf_dir() / "corpus" / "sample.yaml").read_text())
    (path,) = places.find(Corpus(**values))
    assert Path(path).name == "sample.txt" and Path(path).stat().st_size > 15_000


def test_a_named_asset_is_taken_from_data_before_the_mirror(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mirror" / "corpora").mkdir(parents=True)
    write(here / "mirror" / "corpora", asset="mirror")
    monkeypatch.setenv("PIPELINE_ASSETS", str(here / "mirror"))
    assert list(places.find(Corpus(paths=["asset"]))) == [str(here / "mirror" / "corpora" / "asset")]
    (here / "data").mkdir()
    write(here / "data", asset="data")
    assert list(places.find(Corpus(paths=["asset"]))) == ["data/asset"]
    write(here, asset="named")
    assert list(places.find(Corpus(paths=["asset"]))) == ["asset"]


def test_an_asset_that_is_nowhere_is_downloaded_with_its_checksum(
    here: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    asked = {}

    def retrieve(url: str, **rest: Any) -> str:
        asked.update(url=url, **rest)
        (here / rest["path"]).mkdir(parents=True)
        write(here / rest["path"], asset="text")
        return "asset"

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    sha = hashlib.sha256(b"text").hexdigest()
    found = make(cache, paths=["asset"], url="https://example.org/asset", sha256=sha)
    assert asked.pop("downloader") and asked.pop("path")
    assert asked == {"url": "https://example.org/asset", "known_hash": f"sha256:{sha}", "fname": "asset"}
    assert found.sources == (plan.Source("asset", 4, sha),)


def test_an_asset_that_cannot_be_had_names_every_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, **rest: Any) -> str:
        raise InputError(f"{url}: NameResolutionError, in 4 attempts.")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    values = yaml.safe_load((config.conf_dir() / "corpus" / "verdict.yaml").read_text())
    with pytest.raises(InputError) as error:
        places.find(Corpus(**{**values, "paths": ["no-such-verdict.txt"]}))
    for place in ("'data/no-such-verdict.txt'", "PIPELINE_ASSETS", values["url"]):
        assert place in str(error.value)


def test_a_download_or_a_local_file_with_another_checksum_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    def mismatch(url: str, **rest: Any) -> str:
        raise ValueError("SHA256 hash of downloaded file (x) does not match\nthe known hash: expected 1 but got 2.")

    monkeypatch.setattr(pooch, "retrieve", mismatch)
    settings = {"paths": ["asset"], "url": "https://example.org/asset", "sha256": "0" * 64}
    with pytest.raises(IntegrityError, match="expected 1 but got 2"):
        make(cache, **settings)
    write(here, asset="text of another size")
    for shard_bytes in (1 << 20, 5):
        with pytest.raises(IntegrityError, match=r"'asset' has sha256 .*, not 000"):
            make(cache, **settings, document="line", shard_bytes=shard_bytes)


def test_the_verdict_is_found_in_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    if "PIPELINE_ASSETS" not in os.environ:
        pytest.skip("PIPELINE_ASSETS is not set: no the-verdict.txt")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((config.conf_dir() / "corpus" / "verdict.yaml").read_text())
    found = make(cache, **values)
    assert found.bytes == 20_479 and found.sources[0].sha256 == values["sha256"]


def test_corpus_files_hold_values_only_and_every_one_fits_the_dataclass() -> None:
    files = sorted((config.conf_dir() / "corpus").glob("*.yaml"))
    assert {"sample", "verdict", "text", "jsonl", "parquet"} <= {file.stem for file in files}
    for file in files:
        values = yaml.safe_load(file.read_text())
        settings = Corpus(**values)
        settings.name = settings.name or "x"
        settings.paths = settings.paths or ["x"] * (settings.kind == "files" and not settings.parts)
        config.check(config.Config(corpus=settings))
