"""What is too rare for the simulation, on purpose; and each time without the check that it is about."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, mutated
from rare_chances import RARE


@pytest.mark.parametrize("name", RARE)
def test_it_is_as_it_must_be_and_without_the_check_it_is_not(name: str) -> None:
    RARE[name]()
    with mutated(MUTANTS[name]), pytest.raises(AssertionError):
        RARE[name]()
