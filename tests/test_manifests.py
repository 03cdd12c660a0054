"""Manifests of datasets that somebody sealed again: whatever they lack or list, every reader ends with 4 and opens nothing."""

import os
import shutil
from pathlib import Path

import pytest

from conftest import composed
from pipeline import diff, manifests, open_dataset, tools, trace
from pipeline.errors import IntegrityError
from pipeline.exports import export
from pipeline.files import seal, unseal
from pipeline.run import run

DATA = "data-00000000.arrow"
NOTE = {"bytes": 1, "sha256": "0" * 64}
LINE = ("corpus=text", "corpus.paths=[in.txt]", "tokenizer=bytes", "embedding=none", "window.context_length=4")
CHANGES = {
    "a file outside": lambda m: m["files"].update({"/etc/passwd": NOTE}),
    "a file above": lambda m: m["files"].update({"../../in.txt": NOTE}),
    "a name with NUL": lambda m: m["files"].update({"a\0b": NOTE}),
    "an empty name": lambda m: m["files"].update({"": NOTE}),
    "no files": lambda m: m.pop("files"),
    "files in a list": lambda m: m.update(files=[]),
    "a file without sha256": lambda m: m["files"]["README.md"].pop("sha256"),
    "a file of negative size": lambda m: m["files"]["README.md"].update(bytes=-1),
    "no file of rows": lambda m: m["files"].pop(DATA),
    "a file of unknown rows": lambda m: m["files"][DATA].pop("rows"),
    "no rows": lambda m: m.pop("rows"),
    "rows in words": lambda m: m.update(rows="many"),
    "other rows": lambda m: m.update(rows=m["rows"] + 1),
    "no configuration": lambda m: m.pop("config"),
    "no window": lambda m: m["config"].pop("window"),
    "a count in words": lambda m: m["ledger"]["load"].update(documents="many"),
    "a source without path": lambda m: m["sources"][0].pop("path"),
    "a key that leads out": lambda m: m["keys"].update(window="../../.."),
    "no key of windows": lambda m: m["keys"].pop("window"),
    "splits in a list": lambda m: m.update(splits=[]),
    "a split that leads out": lambda m: m.update(splits={"../x": {"rows": 1, "ledger": {}}}),
}


@pytest.fixture
def folder(at: Path) -> Path:
    (at / "in.txt").write_text("some words, and a few more of them")
    return run(composed(*LINE, "name=a")).folder


def resealed(folder: Path, change: str) -> Path:
    """A copy of the dataset with another manifest."""
    shutil.copytree(folder, copy := folder.with_name("h"))
    manifest = unseal(copy / "manifest.json")
    CHANGES[change](manifest)
    (copy / "manifest.json").write_bytes(seal(manifest))
    return copy


@pytest.mark.parametrize("said", [True, False])
def test_a_file_of_no_rows_is_a_file_of_a_dataset_whether_its_manifest_says_so_or_not(at, said):
    (at / "in").mkdir()
    for name, text in {"a": "one", "b": "some words, and more", "c": "two", "d": "the last of them"}.items():
        (at / "in" / f"{name}.txt").write_text(text)
    overrides = (*LINE, "corpus.paths=[in]", "corpus.shard_bytes=1", "window.cross_documents=false", "name=a")
    folder = run(composed(*overrides)).folder
    manifest = unseal(folder / "manifest.json")
    rows = [manifest["files"][name]["rows"] for name in manifests.data_files(manifest)]
    assert 0 in rows and sum(rows) == manifest["rows"] > 0
    if not said:
        for name in manifests.data_files(manifest):
            if not manifest["files"][name]["rows"]:
                del manifest["files"][name]["rows"]
        (folder / "manifest.json").write_bytes(seal(manifest))
    assert len(open_dataset(folder)) == manifest["rows"]
    last = trace.trace(trace.Finished(folder), -1)
    assert [piece.path for piece in last] == ["in/d.txt"]
    assert diff.diff(folder, folder).same == manifest["rows"]
    assert run(composed(*overrides)).rows == manifest["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.row("A18")
def test_a_sealed_manifest_of_another_shape_is_refused_by_every_reader_before_anything_else_is_opened(folder, change, capsys):
    path = resealed(folder, change)
    for name in (*unseal(folder / "manifest.json")["files"], "run.json"):  # whoever opens one of them is found out
        (path / name).unlink()
    for reader in (open_dataset, manifests.read, lambda at: export(at, "parquet")):
        with pytest.raises(IntegrityError, match="remove the folder"):
            reader(path / "manifest.json" if reader is manifests.read else path)
    for verb in (
        ["cache", "verify"],
        ["show"],
        ["trace", "--row", "0"],
        ["report"],
        ["diff", str(folder)],
        ["why", str(folder)],
    ):
        with pytest.raises(SystemExit) as stop:
            tools.main(None, [*verb, str(path)])
        assert stop.value.code == 4
    assert capsys.readouterr().err.count("\n") == 6
    with pytest.raises(IntegrityError, match="remove the folder"):
        run(composed(*LINE, "name=h"))


@pytest.mark.parametrize("name", [DATA, "README.md", "documents.arrow", "vocabulary.json"])
@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir], ids=["pipe", "device", "folder"]
)
def test_what_is_no_regular_file_is_damaged_and_never_waited_for(folder, name, put, capsys):
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(SystemExit) as stop:
        tools.main(None, ["cache", "verify", str(folder)])
    out, err = capsys.readouterr()
    assert stop.value.code == 4 and f"{name}: expected" in out and "found not a regular file\n1 of " in out
    assert "make it again" in err
    with pytest.raises(IntegrityError, match="not a regular file"):
        open_dataset(folder, verify="sizes")
    if name != "README.md":
        with pytest.raises(SystemExit) as stop:
            tools.main(None, ["report", str(folder)])
        assert stop.value.code == 4 and "found not a regular file" in capsys.readouterr().err


def test_a_record_that_is_a_pipe_or_no_json_counts_as_missing(folder):
    for put in (os.mkfifo, lambda path: path.write_text("[1]"), lambda path: path.write_text("{")):
        (folder / "run.json").unlink()
        put(folder / "run.json")
        tools.main(None, ["report", str(folder)])
        tools.main(None, ["why", str(folder), str(folder)])


def test_an_export_sealed_again_with_a_file_outside_is_refused(folder):
    out = export(folder, "nanogpt")
    tools.main(None, ["cache", "verify", str(out)])
    manifest = unseal(out / "export.json")
    (out / "export.json").write_bytes(seal({**manifest, "files": {"../a/README.md": NOTE}}))
    with pytest.raises(SystemExit) as stop:
        tools.main(None, ["cache", "verify", str(out)])
    assert stop.value.code == 4
