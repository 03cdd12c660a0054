"""The quick part of the matrix. All of it: `python -m tests.determinism`."""

import tempfile
from pathlib import Path

import pytest

from tests import determinism


@pytest.mark.row("A26", "A29")
@pytest.mark.slow
def test_the_surroundings_of_a_run_change_no_byte(tmp_path):
    expected = determinism.once(tmp_path / "a", "bpe", ("threads", 2), 64, "plain")
    assert determinism.once(tmp_path / "b", "bpe", ("processes", 2), 1, "all at once") == expected
    assert determinism.once(tmp_path / "c", "bpe", ("serial", 1), 1000, "Honolulu, umask 000") == expected


@pytest.mark.slow
@pytest.mark.row("A26", "A29")
def test_each_of_the_surroundings_changes_no_byte():
    cells = [cell for cell in determinism.matrix() if cell[0] == "words"]
    places = list(dict.fromkeys(cell[3] for cell in cells))
    with tempfile.TemporaryDirectory(dir=determinism.workshop()) as base:  # not below /tmp, which one of them fills
        found = []
        for number, place in enumerate(places):
            engines = [cell for cell in cells if cell[3] == place]
            found.append(determinism.once(Path(base, str(number)), *engines[7 * number % len(engines)]))
    assert len(found) >= 9 and all(one == found[0] for one in found)
