"""Standbys under repeated kills: a line of processes, each standing by for the one before it, hands one state on.

The state is a region whose first word counts its owners. In most rounds the owner is killed and its standby goes on
from where it was; in the others the standby is killed as well, at any moment of taking over, and whoever steals from
both has the state all the same, once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

import bequest as bq
import soaking
import watchers
from actors import Actor, alloc
from racks import RackUnderTest, Yard

ROUNDS = soaking.size(12, 1000)
NBYTES = 64 * 4096
TAKING_OVER = 0.004  # seconds, roughly


class Line:
    """The owner of the state, its standby, and how often the state has changed hands."""

    def __init__(self, yard: Yard, rack: RackUnderTest) -> None:
        self.yard, self.rack = yard, rack
        self.undertaker = yard.attach("undertaker")
        self.count = 0
        self._started = 0
        self.owner = self._start()
        self.address = self.owner.do(alloc, "state", NBYTES, 0)
        self.heir = self._start()
        self._stand_by()

    def _start(self) -> Actor:
        self._started += 1
        return self.yard.actor(f"replica-{self._started}")

    def _stand_by(self) -> None:
        self.heir.do(watchers.take_over, self.owner.name)

    def owner_dies(self) -> None:
        self.owner.kill()
        assert self.heir.do(watchers.has_taken_over) == [self.address, self.count]
        self.count += 1
        self.owner, self.heir = self.heir, self._start()
        self._stand_by()

    def both_die(self, after: float) -> None:
        self.owner.kill()
        time.sleep(after)
        self.heir.kill()
        found = [region for who in (self.heir, self.owner) for region in self._loot(who)]
        assert [(region.address, int(region.array("u8")[0])) for region in found] == [
            (self.address, self.count)
        ]
        self.owner, self.heir = self._start(), self._start()
        found[0].grant(self.owner.name or "")
        self.owner.do(watchers.receive_and_count)
        self.count += 1
        self._stand_by()

    def _loot(self, who: Actor) -> list[bq.Region]:
        try:
            return self.undertaker.steal(who.name or "").regions
        except (bq.UnknownProcess, bq.ProcessDead):  # all of it was stolen, and it is forgotten
            return []


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(1800))
def test_the_state_survives_all_its_owners(
    yard: Yard, record_property: Callable[[str, object], None]
) -> None:
    print(f"seed {soaking.SEED}")
    chance = random.Random(soaking.SEED)
    rack = yard.rack(orphan_keep=5.0)  # more die in a minute than there are ids
    line = Line(yard, rack)
    both = 0
    for _ in range(ROUNDS):
        if chance.random() < 0.3:
            line.both_die(chance.uniform(0, TAKING_OVER))
            both += 1
        else:
            line.owner_dies()
    record_property("owners killed", ROUNDS)
    record_property("of them together with their standby", both)
    assert rack.audit() == []
