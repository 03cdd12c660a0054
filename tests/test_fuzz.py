"""Mutated inputs end with an exit code that says why; `python -m tests.fuzz` does it at length."""

import pytest
from fuzz import fuzz


@pytest.mark.parametrize("first", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_mutated_inputs_end_with_an_exit_code_that_says_why(first: int) -> None:
    codes, wrong = fuzz(first, 2000 if first else 100, processes=4 if first else 0)
    assert not wrong and codes[0] and codes[3]
