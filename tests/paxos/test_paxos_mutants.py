"""A check that can be deleted without anybody noticing is none: some mutants of the consensus, each missed by a seed.

All of them, with what found each, and those that nothing has found yet: `mutants.py`.
"""

from __future__ import annotations

import os

import pytest

from mutants import MUTANTS, NOT_FOUND, SEEDS_MAX, found_by, harsh
from world import World

# Those that are found soon; all that are found at all are for `BEQUEST_PAXOS_MUTANTS=all`.
SOON = [
    "accept a lower ballot",
    "accept beyond a gap",
    "chosen by one too few",
    "a session does it again",
]
FOUND = [name for name in MUTANTS if name not in NOT_FOUND]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FOUND if os.environ.get("BEQUEST_PAXOS_MUTANTS") == "all" else SOON)
def test_a_deleted_check_is_missed(name: str) -> None:
    found = found_by(MUTANTS[name], range(SEEDS_MAX), lambda seed: World(seed, harsh(seed)).run())
    assert found is not None, f"{SEEDS_MAX} seeds did not miss: {MUTANTS[name].purpose}"
