"""A dataset in a store: put so that no reader sees a mixture, read lazily, verified as it comes."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_remote import LINES, SMALL, forget

import s3
from conftest import ROOT, composed, letters
from pipeline import cli, open_dataset, window
from pipeline.bucket import Place
from pipeline.errors import ConfigError, IntegrityError, ResourceError
from pipeline.remote import Store
from pipeline.run import run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place in a store that is a folder."""
    forget()
    return Place(f"file://{tmp_path}/store/sets/one")


def publish(place: Place, tmp_path: Path, **texts: bytes) -> bool:
    (tmp_path / "made").write_bytes(b"rows")
    note = {"bytes": 4, "sha256": hashlib.sha256(b"rows").hexdigest(), "counts": {"rows": 2}}
    return place.publish({"data-00000000.arrow": (tmp_path / "made", note)}, dict(texts), {"rows": 2}, "run")


def test_a_dataset_is_put_before_its_manifest_and_the_one_that_it_replaces_goes_after(place: Place, tmp_path: Path) -> None:
    assert publish(place, tmp_path, a=b"1") and not publish(place, tmp_path, a=b"1")
    first = place.manifest()
    assert first is not None
    assert {name.partition("/")[0] for name in place.store.listed()} == {".dataset", "manifest.json", first["at"]}
    assert publish(place, tmp_path, a=b"2")
    second = place.manifest()
    assert second is not None and second["at"] != first["at"]
    assert {name.partition("/")[0] for name in place.store.listed()} == {".dataset", "manifest.json", second["at"]}
    place.store.remove([f"{second['at']}/a"])
    assert publish(place, tmp_path, a=b"2") and place.store.read(f"{second['at']}/a") == b"2"


@pytest.mark.parametrize("name", ["data-00000000.arrow", "a", "manifest.json"])
def test_the_same_dataset_put_again_mends_what_is_damaged_of_it(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    publish(place, tmp_path, a=b"1")
    at = (place.manifest() or {})["at"]
    whole = place.store.read(f"{at}/{name}")
    assert whole
    place.store.put(f"{at}/{name}", bytes(byte ^ 1 for byte in whole))  # as many bytes
    assert publish(place, tmp_path, a=b"1") and place.store.read(f"{at}/{name}") == whole
    assert [f"{at}/{name}' is damaged: expected" in message for message in caplog.messages] == [True]
    assert not publish(place, tmp_path, a=b"1")


def test_a_kill_before_the_manifest_leaves_the_old_dataset_and_a_place_that_is_ours(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, tmp_path, a=b"1")
    before = place.manifest()
    with monkeypatch.context() as killed:
        original = Store.put
        killed.setattr(
            Store, "put", lambda self, name, *a, **k: 1 / 0 if name == "manifest.json" else original(self, name, *a, **k)
        )
        with pytest.raises(ZeroDivisionError):
            publish(place, tmp_path, a=b"2")
    assert place.manifest() == before
    place.require_ours()
    Place(place.url.rpartition("/")[0]).require_ours()  # where the jobs of a sweep lie
    assert publish(place, tmp_path, a=b"2")


def test_what_is_not_ours_is_refused_and_untouched(place: Place) -> None:
    place.store.put("notes.txt", b"mine")
    with pytest.raises(ConfigError, match="holds what this pipeline did not put there: nothing was touched"):
        place.require_ours()
    assert place.store.listed().keys() == {"notes.txt"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output.dir=s3://bucket"], "is no address of a place in a bucket"),
        (["output.dir=s3:bucket/a"], r"output\.dir='s3:bucket/a' is neither a folder nor an address: write it as s3://"),
        (["output.dir=https://example.org/a"], r"'https://example\.org/a' in output\.dir: no such store"),
        (["output.dir=s3://bucket/a/b", "cache.remote=s3://bucket/a"], "may not lie one inside the other"),
    ],
)
def test_where_no_dataset_can_be_put_is_refused(at: Path, overrides: list[str], message: str) -> None:
    Path("a.txt").write_text("text")
    with pytest.raises(ConfigError, match=message):
        run(composed(*SMALL, *overrides))


@pytest.mark.parametrize("verify", ["touch", "full", "sizes"])
def test_other_columns_of_a_dataset_in_a_store_are_fetched_as_the_first_were(at: Path, verify: str) -> None:
    import torch

    from pipeline.targets import TrainerRows

    Path("a.txt").write_text(LINES[:4000])
    folder = run(
        composed(*SMALL, "name=one", "embedding=random", "embedding.embedding_dim=4", "window.context_length=8")
    ).folder
    forget()
    dataset, local = open_dataset(f"file://{folder.absolute()}", verify=verify), open_dataset(folder)
    for ours, theirs in zip(*(each.loader(8, seed=1, embeddings=True) for each in (dataset, local)), strict=True):
        assert torch.equal(ours["embeddings"], theirs["embeddings"])
    assert torch.equal(TrainerRows(dataset)[3]["labels"], TrainerRows(local)[3]["labels"])
    assert dataset.select(["target_ids"])[2].keys() == {"target_ids"} and "input_ids" in dataset[2]
    fresh = open_dataset(f"file://{folder.absolute()}", verify=verify, scratch="fresh")
    assert fresh.tables["token_embeddings"].shape[1] == 4
    with pytest.raises(ConfigError, match="has no column 'label'"):
        dataset.select(["label"])


# -- S3 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Server]:
    with s3.serving() as running:
        yield running


@pytest.fixture
def bucket(server: s3.Server, at: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and a corpus whose windows fill several files."""
    monkeypatch.setattr(window, "SHARD", 1 << 16)
    Path("a.txt").write_text(LINES[: 1 << 16])
    forget()
    with s3.bucket(server) as client:
        yield client
    forget()


@pytest.mark.parametrize(
    "verb", ["show X", "report X", "trace X --row 0", "diff outputs/x X", "export X --to mds", "push X me/it"]
)
def test_what_needs_a_folder_says_so_of_an_address(at: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    from pipeline import tools

    with pytest.raises(SystemExit) as code:
        tools.main(None, verb.replace("X", "s3://bucket/x").split())
    said = capsys.readouterr().err
    assert code.value.code == 2 and len(said.splitlines()) == 1
    assert said.startswith("error: 's3://bucket/x' lies in a store, and this reads a folder: copy there what")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["cache.remote=s3://bucket/cache"]], ids=["local cache", "cache in the bucket"])
def test_a_dataset_in_a_bucket_is_that_on_a_disk_and_a_loader_reads_it(bucket: Any, server: s3.Server, more: list[str]) -> None:
    import torch

    here = run(composed(*SMALL, "name=one", "cache.dir=plain", "window.context_length=8"))
    server.asked.clear()
    there = run(composed(*SMALL, "name=one", "cache.dir=two", "window.context_length=8", "output.dir=s3://bucket/sets/one",
                         "output.report=true", *more))  # fmt: skip
    assert there.address == "s3://bucket/sets/one" and there.published
    puts = [path for method, path in server.asked if method == "PUT" and "/sets/one/" in path]
    assert puts[-3:] == [f"/bucket/sets/one/{name}" for name in ("manifest.json", "run.json", "report.html")]
    manifest = Place(there.address).manifest()
    assert manifest is not None
    bucket.download_file("bucket", f"sets/one/{manifest['at']}/manifest.json", "copy.json")
    assert json.loads(Path("copy.json").read_text()) == json.loads((here.folder / "manifest.json").read_text())
    again = run(
        composed(*SMALL, "name=one", "cache.dir=two", "window.context_length=8", "output.dir=s3://bucket/sets/one", *more)
    )
    assert not again.published
    forget()
    server.asked.clear()
    dataset, local = open_dataset(there.address, scratch="reads"), open_dataset(here.folder)
    assert len(dataset) == len(local) and len(dataset.files) > 1
    assert len([path for path in server.fetched() if "/data-" in path]) == 1  # the first, for its columns
    assert dataset.verified(dataset.files[0]).read_bytes() == (here.folder / dataset.files[0]).read_bytes()
    for workers in (0,) if more else (0, 2):
        ours = list(dataset.loader(batch_size=64, seed=1, num_workers=workers))
        theirs = list(local.loader(batch_size=64, seed=1))
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(ours, theirs, strict=True))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5]["target_ids"], local[5]["target_ids"])
    assert b"<html" in (Store(there.address).read("report.html") or b"")[:200].lower()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "README.pt-BR.md"])
def test_what_a_page_says_of_a_bucket_is_done_as_it_is_printed(bucket: Any, at: Path, page: str) -> None:
    blocks = re.findall(r"```sh\nexport AWS.*\n((?:.*\n)*?)```", (ROOT / page).read_text("utf-8"))
    (commands,) = (block for block in blocks if "output.dir=s3:" in block)
    letters(at)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.check_output(["bash", "-ec", commands], cwd=at, env=environment, text=True)
    first, second = said.split("s3://bucket/letters\n")
    assert " computed " in first and " computed " not in second and second.count(" cached ") == 6
    there, here = open_dataset("s3://bucket/letters"), open_dataset("outputs/other")
    assert [there.verified(name).read_bytes() for name in there.files] == [
        here.verified(name).read_bytes() for name in here.files
    ]


@pytest.mark.slow
def test_a_damaged_file_of_a_bucket_is_told_when_it_is_touched_and_a_replaced_dataset_too(bucket: Any) -> None:
    made = run(composed(*SMALL, "name=one", "cache.dir=two", "output.dir=s3://bucket/sets/one"))
    manifest = Place(made.address).manifest()
    assert manifest is not None
    store, name = Store(f"{made.address}/{manifest['at']}"), "data-00000001.arrow"
    whole = bytearray(store.read(name) or b"")
    whole[-50] ^= 1
    store.put(name, bytes(whole))
    dataset = open_dataset(made.address, scratch="reads")
    assert dataset[0]["input_ids"].shape == (16,)
    with pytest.raises(IntegrityError, match=r"data-00000001.arrow' is damaged: expected \d+ bytes, sha256"):
        dataset.verified(name)
    run(composed(*SMALL, "name=one", "cache.dir=two", "window.stride=4", "output.dir=s3://bucket/sets/one"))
    with pytest.raises(IntegrityError, match="is gone: the dataset was replaced while in use"):
        dataset.verified("documents.arrow")
    assert len(open_dataset(made.address, scratch="reads")) > len(dataset)


@pytest.mark.slow
def test_a_file_that_the_cache_had_damaged_when_it_was_copied_is_mended_by_the_same_command(bucket: Any) -> None:
    command = (*SMALL, "name=one", "cache.remote=s3://bucket/cache", "cache.dir=two")
    here = run(composed(*command))
    cache = Store("s3://bucket/cache")
    damaged = [name for name in cache.listed("embed") if name.endswith("/00000001.arrow")]
    whole = cache.read(f"embed/{damaged[0]}") or b""
    cache.put(f"embed/{damaged[0]}", whole[:-50] + bytes(50))
    forget()
    made = run(composed(*command[:-1], "cache.dir=three", "output.dir=s3://bucket/sets/one"))
    with pytest.raises(IntegrityError, match=r"data-00000001.arrow' is damaged.*Run the pipeline again"):
        open_dataset(made.address, scratch="reads").verified("data-00000001.arrow")
    forget()
    assert run(composed(*command[:-1], "cache.dir=three", "output.dir=s3://bucket/sets/one")).published
    name = "data-00000001.arrow"
    assert open_dataset(made.address, scratch="reads").verified(name).read_bytes() == (here.folder / name).read_bytes()
    assert cache.read(f"embed/{damaged[0]}") == whole


@pytest.mark.slow
def test_splits_in_a_bucket_are_opened_by_name(bucket: Any) -> None:
    split = ["split.validation=0.2", "embedding=none", "name=one"]
    here = run(composed(*SMALL, "cache.dir=two", *split))
    made = run(composed(*SMALL, "cache.dir=two", "output.dir=s3://bucket/sets/one", "output.report=true", *split))
    with pytest.raises(ConfigError, match=r"^'s3://bucket/sets/one' has the splits train, validation"):
        open_dataset(made.address, scratch="reads")
    for name in ("train", "validation"):
        mine, theirs = open_dataset(made.address, split=name, scratch="reads"), open_dataset(here.folder, split=name)
        assert len(mine) == len(theirs) and mine[-1]["input_ids"].tolist() == theirs[-1]["input_ids"].tolist()
        assert Store(made.address).size(f"{name}/report.html")


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told_before_any_work(bucket: Any) -> None:
    for setting in ("output.dir=s3://nowhere/sets/one", "cache.remote=s3://nowhere/cache"):
        with pytest.raises(ResourceError, match="cannot be written: there is no such bucket"):
            run(composed(*SMALL, "cache.dir=two", setting))


@pytest.mark.slow
def test_a_plan_puts_nothing_into_a_bucket_and_refuses_what_is_not_ours(bucket: Any, server: s3.Server) -> None:
    given = [*SMALL, "cache.dir=two", "output.dir=s3://bucket/sets/one", "plan=true"]
    assert cli.exit_code(given) == 0
    assert not [path for method, path in server.asked if method in ("PUT", "POST", "DELETE")]
    bucket.put_object(Bucket="bucket", Key="sets/one/mine.txt", Body=b"x")
    forget()
    assert cli.exit_code(given) == 2
