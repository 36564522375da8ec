"""kill -9 in the middle of a storm of allocations, splits, merges, frees and grants: no page is lost or owned twice.

Eight processes of two groups hand each other memory at random. In every round some are killed where they stand, the
others are stopped, and the books of the rack must balance at that very moment; then they go on, with successors of the
dead under the same names. In the end all memory must have found its way back: to the elements, to the last page.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import actors
import bequest as bq
import sailors
from actors import Actor, until
from racks import RackUnderTest, Yard

ROUNDS = int(os.environ.get("OVERBOARD_ROUNDS", "12"))
CREW = 6
STRANGERS = 2


class Storm:
    def __init__(self, yard: Yard, seed: int) -> None:
        self.yard = yard
        self.random = random.Random(seed)
        self.rack: RackUnderTest = yard.rack("a:96MiB", "b:96MiB", orphan_keep=0.3)
        self.group = self.rack.connection.create_group("strangers")
        self.names = [f"sailor-{number}" for number in range(CREW + STRANGERS)]
        self.crew: dict[str, Actor] = {}
        for name in self.names:
            self.sign_on(name)

    def sign_on(self, name: str) -> None:
        group = self.group if int(name.rpartition("-")[2]) >= CREW else None
        actor = self.crew[name] = self.yard.actor(name, group=group)
        actor.start(sailors.sail, self.random.getrandbits(32), self.names)

    def grants(self) -> int:
        return sum(report.counters["grants"] for report in self.rack.processes().values())

    def look_around(self) -> None:
        """Raises what a sailor has met."""
        for actor in self.crew.values():
            if not actor.is_busy():
                actor.result()
                raise AssertionError(f"{actor.name} has stopped")

    def stop(self, actor: Actor) -> None:
        actor.signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{actor.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def round(self) -> None:
        before = self.grants()
        until(lambda: self.look_around() or self.grants() > before + 50, "progress")
        doomed = self.random.sample(self.names, self.random.randint(1, 3))
        for name in doomed:
            self.crew[name].signal(signal.SIGKILL)
            # Some fall at once, some while the others go on.
            time.sleep(self.random.choice([0, 0, 0.002]))
        for name, actor in self.crew.items():
            if name not in doomed:
                self.stop(actor)
        for name in doomed:
            assert self.crew[name].wait() == -signal.SIGKILL, "it ended of its own before"
        until(self.is_settled, "the settlement of the dead")
        assert self.rack.audit() == []
        for name, actor in self.crew.items():
            if name not in doomed:
                assert actor.is_busy(), actor.result()
                actor.signal(signal.SIGCONT)
        for name in doomed:
            self.sign_on(name)

    def is_settled(self) -> bool:
        """Whether everybody who is said to be attached still runs."""
        living = {actor.pid for actor in self.crew.values() if actor._status is None}
        return all(
            p.os_pid in living for p in self.rack.processes().values() if p.state in ("attached", "lost")
        )

    def calm(self) -> None:
        """All are told to free what they have and to leave."""
        for group in (None, self.group):
            with self.rack.connection.attach("captain", group=group) as captain:
                for name in self.names:
                    number = int(name.rpartition("-")[2])
                    if (number >= CREW) == (group is not None):
                        captain.send(name, b"over", timeout=20)
        for actor in self.crew.values():
            actor.result()
            assert actor.close() == 0


@pytest.mark.slow
@pytest.mark.timeout(20 + 3 * ROUNDS)
def test_a_storm_with_men_overboard(yard: Yard) -> None:
    seed = int(os.environ.get("BEQUEST_STORM_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"replay with BEQUEST_STORM_SEED={seed}")
    storm = Storm(yard, seed)
    try:
        for number in range(ROUNDS):
            print(f"round {number}: {storm.grants()} grants by those alive")
            storm.round()
    finally:
        for actor in storm.crew.values():
            if actor._status is None:
                actor.signal(signal.SIGCONT)
    storm.calm()
    until(lambda: storm.rack.slabs() == [], "the return of all slabs to their elements")
    until(lambda: storm.rack.used_bytes() == 0)
    until(lambda: storm.rack.processes() == {}, "the end of all ids")
    assert storm.rack.audit() == []
    with yard.attach("again") as again:  # all of it can be had again
        regions = [again.alloc(40 << 20, element=element) for element in ("a", "b") for _ in range(2)]
        for region in regions:
            region.free()


def test_the_living_and_the_dead_owe_each_other_nothing(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    """The quiet version, step by step: what a dead process held at each stage of a region's life returns."""
    for stage in ("allocated", "in flight to it", "accepted", "in flight from it", "split", "granted part"):
        victim, peer = yard.actor("victim"), yard.actor("peer")
        region = me.alloc(4 * 4096)
        region.array()[:] = 3
        if stage == "allocated":
            victim.do(actors.alloc, "region", 4 * 4096)
        elif stage == "in flight from it":
            victim.do(actors.alloc, "region", 4 * 4096, 3)
            victim.do(actors.grant, "region", "peer")
        else:
            region.grant("victim")
        if stage in ("accepted", "split", "granted part"):
            victim.do(actors.accept, "region")
        if stage == "split":
            victim.do(sailors.split_in_two)
        if stage == "granted part":
            victim.do(actors.grant_part, "region", 4096, 2 * 4096, "peer")
        victim.kill()
        until(lambda: rack.processes()["victim"].state not in ("attached", "lost"))
        assert rack.audit() == [], stage
        if stage in ("in flight from it", "granted part"):
            peer.do(actors.accept, "region")
            assert peer.do(actors.values, "region") == [3], "what was granted has been granted"
            peer.do(actors.free, "region")
        assert peer.close() == 0
        yard.actors.remove(peer)
        until(lambda: "victim" not in rack.processes(), f"the end of the orphan's time, {stage}")
        if region.owned:
            region.free()
        assert me.table.holdings(me.id)[1] == 0, stage
        assert {slab.home for slab in rack.slabs()} == {me.id}
    assert rack.audit() == []
