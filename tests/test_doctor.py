"""The doctor: all is well here, and each kind of trouble is told with what to do."""

import json
import os

import pytest

from conftest import composed
from pipeline import doctor, tools
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
    monkeypatch.setattr(doctor, "_loss", lambda: iter(()))
    with pytest.raises(SystemExit) as stop:
        tools.main(None, ["doctor"])
    out, err = capsys.readouterr()
    assert stop.value.code == 5 and "bad   memory" in out and "engine.workers=" in out and "1 finding to mend" in err


def test_a_backend_that_differs_a_missing_package_and_a_check_that_fails_are_findings(at, monkeypatch):
    monkeypatch.setattr("pipeline.backends.differences", lambda *_: 3)
    monkeypatch.setattr(doctor, "_loss", lambda: iter(()))
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["no-such-package>=1", "numpy>=999", "pytest; extra == 'test'"])
    monkeypatch.setattr(doctor, "_hub", lambda: [][0])
    said = {f.what: f for f in findings() if f.state == "bad"}
    assert "differ on 3 of" in said["tokenizer"].said and "backend=hf" in said["tokenizer"].advice
    assert "no-such-package is missing; numpy is" in said["packages"].said
    assert "IndexError" in said["Hub"].said


def test_without_links_or_exchange_the_doctor_only_says_so(at, monkeypatch):
    monkeypatch.setattr(doctor, "_loss", lambda: iter(()))
    monkeypatch.setattr(doctor, "_tokenizers", lambda _: iter(()))
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setenv("PIPELINE_ASSETS", str(at / "nowhere"))
    found = {f.what: f for f in findings()}
    assert found["links"].state == found["renames"].state == "look" and "twice" in found["links"].advice
    assert any(f.what == "Hub" and f.state == "bad" for f in findings())
