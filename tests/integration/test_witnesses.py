"""Deaths that the Rack MMU sees for itself: a theft from the dead waits for no agent."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

import actors
import bequest as bq
from actors import until
from racks import MIB, RackUnderTest, Yard


def witnesses(rack: RackUnderTest) -> int:
    """How many address spaces the Rack MMU can look into."""
    found = 0
    for entry in Path(f"/proc/{rack.daemon('mmu')}/fd").iterdir():
        try:
            found += "userfaultfd" in os.readlink(entry)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


def test_a_theft_from_the_dead_waits_for_no_agent(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", MIB, 3)
    until(lambda: witnesses(rack) == 2, "both processes to be known")
    agent = rack.daemon("host0")
    os.kill(agent, signal.SIGSTOP)
    try:
        victim.kill()
        with me.steal("victim") as estate:
            assert estate.how == "dead"
            assert set(estate.regions[0].array()) == {3}
        assert rack.processes()["victim"].state == "orphaned"
    finally:
        os.kill(agent, signal.SIGCONT)
    assert rack.audit() == []


def test_witnesses_come_and_go_with_processes(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    killed, detached = yard.actor("killed"), yard.actor("detached")
    until(lambda: witnesses(rack) == 3, "all to be known")
    killed.kill()
    detached.do(actors.detach)
    until(lambda: witnesses(rack) == 1, "the others to be let go")
    before = rack.daemon("mmu")
    os.kill(before, signal.SIGKILL)
    until(lambda: rack.daemons().get("mmu") not in (None, before), "the next Rack MMU")
    yard.actor("late")  # the agent has said before what it knew, of the dead as well
    until(lambda: witnesses(rack) == 2, "the late one to be known")


def test_who_steals_maps_what_it_will_get(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "region", 4 * MIB, 3)
    hidden = victim.do(partial(actors.alloc, stealable=False), "hidden", 64 * MIB)
    before = me.mappings[0]
    me._map_ahead("nobody")
    assert me.mappings[0] == before
    me._map_ahead("victim")
    assert me.mappings[0] > before
    assert actors.protection_of(address) == "---s"  # not opened: it is another's
    assert actors.protection_of(hidden) != "---s"
    assert victim.do(actors.values, "region") == [3]


def test_who_stands_by_is_ready_to_steal(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "region", 4 * MIB, 3)
    assert actors.protection_of(address) != "---s"
    with me.standby(for_="victim", then=print):
        until(lambda: actors.protection_of(address) == "---s", "its slab to be mapped")


def test_a_silent_element_holds_up_no_standby(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 4 * MIB, 3)
    element = rack.daemon("dram0")
    os.kill(element, signal.SIGSTOP)
    told = threading.Event()
    start = time.monotonic()
    try:
        with me.standby(for_="victim", then=lambda death: told.set()):
            victim.kill()
            assert told.wait(actors.DEADLINE)
        assert time.monotonic() - start < actors.DEADLINE / 4
        me.detach()
    finally:
        os.kill(element, signal.SIGCONT)
    until(
        lambda: not [one for one in threading.enumerate() if one.name.startswith("bequest-standby")],
        "the end of who fetches",
    )
    yard.attach("again")  # what was fetched too late was not mapped into the window
