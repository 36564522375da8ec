"""Owners of a heap are killed at random instants; the next one has all of its state, and goes on (heap_line_users.py).

In some rounds the heir is killed as well, at any moment of stealing, recovering or going on; then the next one steals
from both.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

import heap_line_users as users
import soaking
from actors import Actor
from racks import Yard

KILLS = soaking.size(200, 10_000)
NBYTES = 64 << 10  # it has to grow
PAUSE = 0.02  # seconds, at most
INHERITING = 0.01  # seconds, roughly


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(7200))
def test_a_heap_survives_all_its_owners(yard: Yard, record_property: Callable[[str, object], None]) -> None:
    print(f"seed {soaking.SEED}")
    chance = random.Random(soaking.SEED)
    rack = yard.rack("dram0:256MiB", orphan_keep=10.0)
    owner = yard.actor("owner-0")
    owner.do(users.found, NBYTES)
    dead: list[str] = []
    outcomes: Counter[str] = Counter()
    last = 0

    def kill(actor: Actor) -> None:
        actor.kill()
        dead.append(actor.name or "")

    while outcomes["kills"] < KILLS:
        outcomes["kills"] += 1
        time.sleep(chance.uniform(0, PAUSE) if chance.random() < 0.8 else 0)
        kill(owner)
        owner = yard.actor(f"owner-{outcomes['kills']}")
        if chance.random() < 0.2:
            owner.start(users.inherit, dead[-3:])
            time.sleep(chance.uniform(0, INHERITING))
            outcomes["heirs killed while they took over"] += 1
            continue
        done, did = owner.do(users.inherit, dead[-8:])
        assert done >= last, f"{last - done} steps are lost"
        last = done
        outcomes[f"recovery: {did}"] += 1
    for name, count in sorted(outcomes.items()):
        record_property(name, count)
    record_property("steps", last)
    kill(owner)
    assert rack.audit() == []
