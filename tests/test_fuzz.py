"""Mutated inputs end with an exit code that says why; `python -m tests.fuzz` does it at length."""

import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.parametrize("first", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_mutated_inputs_end_with_an_exit_code_that_says_why(first: int) -> None:
    count, processes = (2000, 4) if first else (100, 0)
    given = ["--first", str(first), "--count", str(count), "--processes", str(processes)]
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases" in done.stdout and " ended with 0" in done.stdout and " ended with 3" in done.stdout, done.stdout
