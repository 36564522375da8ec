"""A storm of allocations, grants, splits and frees, in which one user after the other is killed at any instruction.

Users check every word of what they own (storm_users.py); the test checks the rest: that survivors are never blocked
by the dead, that every page has exactly one owner, and that all memory comes home. Which user is killed when, and what
each user does, follows from one printed seed; what they meet doing it does not.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import bequest as bq
import soaking
import storm_users
from actors import Actor, until
from racks import RackUnderTest, Yard

USERS = 6
KILLS = soaking.size(25, 1000)
PAUSE = 0.02  # seconds between two kills, on average
ORPHAN_KEEP = 0.1


class Storm:
    """The users of it, and the file in which they read who is there."""

    def __init__(self, yard: Yard, rack: RackUnderTest, groups: list[bq.Group | None], seed: int) -> None:
        self.yard = yard
        self.rack = rack
        self.groups = groups
        self.random = random.Random(seed)
        self.users: list[Actor] = []
        self.population = Path(yard.runtime) / "population"
        self._started = 0

    def announce(self, *names: str) -> None:
        fresh = self.population.with_suffix(".new")
        fresh.write_text("\n".join(names))
        fresh.replace(self.population)

    def start_user(self) -> None:
        number = self._started
        self._started += 1
        name = f"user-{number}"
        # Announced before it attaches and after it was killed, so that some grants find nobody.
        self.announce(*(user.name for user in self.users), name)
        user = self.yard.actor(name, self.rack, self.groups[number % len(self.groups)])
        user.start(storm_users.storm, str(self.population), self.random.getrandbits(32))
        self.users.append(user)

    def kill_one(self) -> None:
        time.sleep(self.random.uniform(0.2, 1.8) * PAUSE)
        for user in self.users:
            if not user.is_busy():
                raise AssertionError(f"{user.name} has stopped: {user.result()}")
        self.users.pop(self.random.randrange(len(self.users))).kill()

    def results(self) -> Counter[str]:
        """What the survivors did, together, once they have finished."""
        total: Counter[str] = Counter()
        for user in self.users:
            total += Counter(user.result())
        return total

    def leave(self) -> None:
        for user in self.users:
            assert user.close() == 0, f"{user.name} did not end well; see its output"


@pytest.fixture
def seed() -> int:
    print(f"seed {soaking.SEED} (replay with BEQUEST_SOAK_SEED={soaking.SEED})")  # shown if the test fails
    return soaking.SEED


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(1800, 120))
@pytest.mark.parametrize("group_count", [1, 2], ids=["one group", "two groups"])
def test_no_page_is_lost_or_doubly_owned_when_users_are_killed(
    yard: Yard, seed: int, group_count: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("users killed", KILLS)
    rack = yard.rack("dram0:256MiB", orphan_keep=ORPHAN_KEEP)
    groups = [rack.connection.create_group(f"group-{number}") for number in range(group_count)]
    storm = Storm(yard, rack, list(groups), seed)
    try:
        for _ in range(USERS):
            storm.start_user()
        for _ in range(KILLS):
            storm.kill_one()
            storm.start_user()
    finally:
        storm.announce()  # that was it
    done = storm.results()
    print(f"survivors: {dict(done)}")
    assert done["accepts"] > 0

    # All dead are known by now, or will be: the kernel tells the agent as soon as it tells us.
    survivors = {user.name for user in storm.users}
    until(lambda: attached(rack) == survivors, "the rack's knowledge of its dead")
    assert rack.audit() == []

    storm.leave()
    until(lambda: rack.used_bytes() == 0, "the return of all memory")
    assert rack.slabs() == []
    assert rack.audit() == []
    until(lambda: rack.processes() == {}, "the end of all processes")


def attached(rack: RackUnderTest) -> set[str]:
    """Who the rack believes to be running, whether or not it still has their connection."""
    return {name for name, one in rack.processes().items() if one.state in ("attached", "lost")}
