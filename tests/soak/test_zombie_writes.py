"""After `steal` has returned no store of the victim reaches the pages: trials.py, by each rung of the ladder."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import soaking
from racks import Yard
from trials import Trials

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(soaking.timeout(7200))]
ONLY = os.environ.get("BEQUEST_SOAK_TRIAL")  # this one, over and over
TIMES = 200


@pytest.mark.parametrize(
    ("rung", "count"),
    [
        ("protect", soaking.size(160, 5500)),
        ("ptrace", soaking.size(100, 3500)),
        ("kill", soaking.size(40, 1000)),
    ],
    ids=["protect", "ptrace", "kill"],
)
def test_no_zombie_write(
    yard: Yard, rung: str, count: int, record_property: Callable[[str, object], None]
) -> None:
    print(f"seed {soaking.SEED}")
    rack = yard.rack("dram0:256MiB", orphan_keep=5.0)
    trials = Trials(yard, rack, rung, soaking.SEED)
    for number in [int(ONLY)] * TIMES if ONLY else range(count):
        trials.run(number)
    trials.close()
    record_property("trials", count)
    for name in sorted(trials.counts):
        record_property(name, trials.counts[name])
    assert rack.audit() == []
