"""The doctor: all is well here, and each kind of trouble is told with what to do."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import composed
from pipeline import calm, doctor, tools
from pipeline.errors import ResourceError
from pipeline.run import run


def findings(**options):
    return list(doctor.doctor(**options))


@pytest.mark.slow
def test_here_all_is_well_nothing_is_left_behind_and_the_exit_code_is_0(at, capsys, monkeypatch):
    run(composed("tokenizer=bytes", "embedding=none"))
    before = sorted(path for path in at.rglob("*"))
    monkeypatch.setattr(doctor, "LITTLE_DISK", 0)
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 0)
    tools.main(None, ["doctor", "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f for f in found if f["state"] == "bad"] == []
    assert {"Python", "packages", "memory", "disk", "locks", "renames", "links", "Hub", "tokenizer", "loss"} <= {
        f["what"] for f in found
    }
    assert sum("of the cache" in f["said"] for f in found) >= 1
    assert sorted(path for path in at.rglob("*")) == before


def test_trouble_is_told_with_advice_and_ends_with_5(at, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1 << 60)
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    with pytest.raises(SystemExit) as stop:
        tools.main(None, ["doctor"])
    out, err = capsys.readouterr()
    assert stop.value.code == 5 and "bad   memory" in out and "engine.workers=" in out and "1 finding to mend" in err


def test_a_backend_that_differs_a_missing_package_and_a_check_that_fails_are_findings(at, monkeypatch):
    monkeypatch.setattr("pipeline.backends.differences", lambda *_: 3)
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["no-such-package>=1", "numpy>=999", "pytest; extra == 'test'"])
    monkeypatch.setattr(doctor, "_hub", lambda: [][0])
    said = {f.what: f for f in findings() if f.state == "bad"}
    assert "differ on 3 of" in said["tokenizer"].said and "backend=hf" in said["tokenizer"].advice
    assert "no-such-package is missing; numpy is" in said["packages"].said
    assert "IndexError" in said["Hub"].said


def test_without_links_or_exchange_the_doctor_only_says_so(at, monkeypatch):
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    monkeypatch.setattr(doctor, "_tokenizers", lambda *_: iter(()))
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setenv("PIPELINE_ASSETS", str(at / "nowhere"))
    found = {f.what: f for f in findings()}
    assert found["links"].state == found["renames"].state == "look" and "twice" in found["links"].advice
    assert any(f.what == "Hub" and f.state == "bad" for f in findings())


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line_and_nothing_is_left_behind(at, number, cached):
    if cached:
        (at / "data/cache/tmp").mkdir(parents=True)
    before = sorted(at.rglob("*"))
    process = begun(at)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"{calm.SAID}\n" and process.returncode == 128 + number
    assert sorted(at.rglob("*")) == before


def test_what_a_killed_one_leaves_the_next_one_sweeps(at, monkeypatch):
    process = begun(at)
    process.kill()
    process.communicate()
    assert list(at.glob("data/cache/tmp/*"))
    monkeypatch.setattr(doctor, "_tokenizers", lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    findings()
    assert not list(at.glob("data/cache/tmp/*"))


def begun(at):
    """A doctor at work, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tools", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(at.glob("data/cache/tmp/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: path.write_text("{}"), "found 2 bytes"),
        (os.mkfifo, "found not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
    ],
    ids=["damaged", "pipe", "link"],
)
def test_a_damaged_tokenizer_of_the_cache_is_told_with_what_to_do_and_not_used(at, monkeypatch, put, said):
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    run(composed("tokenizer=bytes", "embedding=none"))
    (path,) = at.glob("data/cache/tokenizer/*/tokenizer.json")
    path.unlink()
    put(path)
    (found,) = (f for f in findings() if f.state == "bad" and f.what == "tokenizer")
    assert path.parent.name[:8] in found.said and said in found.said + found.advice
    assert "run the pipeline again" in found.advice or "remove it" in found.advice


def test_the_row_of_the_loss_is_cut_in_a_folder_whose_name_is_no_unicode(tmp_path):
    place = tmp_path / os.fsdecode(b"\xff")
    place.mkdir()
    inputs, targets = doctor._row(np.arange(17), place)
    assert (inputs.tolist(), targets.tolist()) == ([*range(16)], [*range(1, 17)])


@pytest.mark.parametrize(("lies", "what"), [("data/cache/tmp", "disk"), ("outputs/.tmp", "links")])
def test_what_lies_where_a_run_must_write_is_to_be_mended(at, monkeypatch, lies, what):
    monkeypatch.setattr(doctor, "_tokenizers", lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_loss", lambda _: iter(()))
    (at / lies).parent.mkdir(parents=True)
    (at / lies).touch()
    (found,) = (f for f in findings() if f.state == "bad" and f.what == what)
    assert "Not a directory" in found.said + found.advice or "File exists" in found.said + found.advice
    with pytest.raises(ResourceError):
        run(composed("tokenizer=bytes", "embedding=none"))


@pytest.mark.parametrize(("limit", "room"), [("5000000000", 3_000_000_000), ("max", 64 << 20 << 10)])
def test_the_memory_of_a_container_is_its_limit_less_what_is_used_and_not_given_back(at, monkeypatch, limit, room):
    told = {"max": limit, "current": "3000000000", "stat": "anon 2000000000\ninactive_file 1000000000"}
    group = at / "group"
    group.mkdir()
    for name, text in told.items():
        (group / f"memory.{name}").write_text(f"{text}\n")
    (at / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable: 67108864 kB\n")
    monkeypatch.setattr(doctor, "GROUP", group)
    monkeypatch.setattr(doctor, "MEMINFO", at / "meminfo")
    assert doctor.available_memory() == room
    (group / "memory.stat").unlink()
    (at / "meminfo").unlink()
    assert doctor.available_memory() is None


def test_a_full_disk_is_told_as_such_by_every_check_that_needs_room(at, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "write_rate", full)
    monkeypatch.setattr(doctor.tokenizer, "train", full)
    monkeypatch.setattr(doctor, "_loss", lambda _: full())
    found = {f.what: f for f in findings() if f.state == "bad"}
    assert found.keys() >= {"disk", "tokenizers", "loss"}
    for what in ("disk", "tokenizers", "loss"):
        assert "could not be tried" in found[what].said and "Free space or set cache.dir=" in found[what].advice
