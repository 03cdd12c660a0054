"""The quick part of the harness. All points: `python -m tests.faults`."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import shim

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")
@pytest.mark.row("A1", "A2", "A6", "A7", "A8", "A10", "A11", "A12", "A23", "A31")
def test_a_sample_of_all_faults_is_survived():
    done = subprocess.run([sys.executable, "-m", "tests.faults", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    tried = done.stdout.splitlines()[-1].split()
    assert tried[0] == tried[2] and int(tried[0]) > 500


@pytest.mark.slow
@pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")
def test_a_harness_that_is_asked_to_end_leaves_neither_folders_nor_processes():
    before = {path.name for path in shim.workshop().glob("faults-*")}
    harness = subprocess.Popen([sys.executable, "-m", "tests.faults"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (new := {path.name for path in shim.workshop().glob("faults-*/at-*")} - before):
        time.sleep(0.05)
    harness.terminate()
    assert new and harness.wait(30) == 143
    harness.communicate()  # ends only when the last process that could write is gone
    assert {path.name for path in shim.workshop().glob("faults-*")} <= before


@pytest.mark.slow
@pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")
def test_the_library_counts_what_the_kernel_is_asked_for(tmp_path):
    """Every call of a known little program, and none of what it does elsewhere."""
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from tests.faults import shim\n"
        "here, faults = Path.cwd(), shim.Shim(); faults.arm(here / 'in', shim.CHANGING)\n"
        "os.mkdir('in/a'); file = os.open('in/a/f', os.O_WRONLY | os.O_CREAT); os.write(file, b'x'); os.fsync(file); os.close(file)\n"
        "os.replace('in/a/f', here / 'in' / 'g'); os.link('in/g', 'in/h'); os.utime('in/h'); os.unlink('in/h'); os.rmdir('in/a')\n"
        "os.mkdir('out'); Path('other').write_text('y'); os.unlink('other'); print(faults.report.seen)"
    )
    (tmp_path / "in").mkdir()
    environment = {"LD_PRELOAD": str(shim.build(tmp_path)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "10", done.stderr
