"""Stealing on a real rack: from the dead, the stopped and the living, in part, by several at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import actors
import bequest as bq
import thieves
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


@pytest.mark.parametrize("nbytes", [PAGE - 5, 16 * PAGE, 4 * MIB])
def test_from_the_dead(yard: Yard, me: bq.Process, rack: RackUnderTest, nbytes: int) -> None:
    victim = yard.actor("victim")
    addresses = sorted(victim.do(actors.alloc, key, nbytes, value) for key, value in (("a", 1), ("b", 2)))
    victim.kill()
    with me.steal("victim") as estate:
        assert (estate.victim, estate.how, estate.inbox) == ("victim", "dead", [])
        assert [region.address for region in estate] == addresses
        assert {region.nbytes for region in estate} == {nbytes}
        assert sorted(int(value) for region in estate for value in np.unique(region.array())) == [1, 2]
        estate.regions[0].array()[:] = 3
        assert "of 'victim' (dead): 2 regions" in repr(estate)
        assert rack.audit() == []
    assert not any(region.owned for region in estate)
    assert rack.audit() == []


def test_what_is_not_stealable_is_left(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    victim.do(partial(actors.alloc, stealable=False), "kept", PAGE, 1)
    given = victim.do(actors.alloc, "given", PAGE, 2)
    victim.kill()
    with me.steal("victim") as estate:
        assert [region.address for region in estate] == [given]
    assert me.table.holdings(rack.processes()["victim"].id)[1] == 1


def test_what_nobody_can_steal_of_the_dead_is_freed_when_their_time_is_up(yard: Yard) -> None:
    rack = yard.rack(orphan_keep=0.2)
    victim = yard.actor("victim")
    victim.do(partial(actors.alloc, stealable=False), "kept", PAGE, 1)
    victim.kill()
    actors.until(lambda: "victim" not in rack.processes(), "the end of what is left of it")
    assert rack.audit() == []


def test_one_who_has_left_nothing_to_take_does_not_hide_the_next(yard: Yard, me: bq.Process) -> None:
    for stealable in (False, True):
        victim = yard.actor("victim")
        victim.do(partial(actors.alloc, stealable=stealable), "state", PAGE, 1)
        victim.kill()
    with me.steal("victim") as estate:
        assert [region.nbytes for region in estate] == [PAGE]


def test_a_stopped_victim_stores_nothing_when_it_goes_on(
    yard: Yard, me: bq.Process, rack: RackUnderTest
) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 16 * PAGE, 1)
    victim.do(actors.alloc, "small", PAGE, 1)
    victim.do(thieves.write_on, "region")
    victim.signal(signal.SIGSTOP)
    with me.steal("victim") as estate:
        assert estate.how in ("protected", "ptraced")
        assert len(estate.regions) == 2
        for region in estate:
            region.array()[:] = 200
        victim.signal(signal.SIGCONT)
        assert victim.do(thieves.written_to_the_end, actors.DEADLINE) == "MemoryRevoked"
        assert victim.do(thieves.touch, "small") == "MemoryRevoked"
        assert all(np.unique(region.array()).tolist() == [200] for region in estate)
        victim.do(actors.alloc, "another", PAGE, 4)  # it goes on
        assert victim.do(actors.values, "another") == [4]
        assert rack.audit() == []


def test_a_living_victim_that_writes(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 16 * PAGE, 1)
    victim.do(thieves.write_on, "region")
    with me.steal("victim") as estate:
        (region,) = estate
        array = region.array()
        before = array.copy()
        assert victim.do(thieves.written_to_the_end, actors.DEADLINE) == "MemoryRevoked"
        assert (array == before).all()
        del array
    assert rack.audit() == []


@pytest.mark.parametrize("hang", [thieves.deadlock, thieves.keep_the_gil])
def test_a_victim_that_hangs_without_being_stopped(
    yard: Yard, me: bq.Process, hang: Callable[[actors.Seat], None]
) -> None:
    """It goes on beating, for the thread that beats is not Python's: nobody suspects it; who knows may steal."""
    victim = yard.actor("victim")
    suspicions: list[bq.Death] = []
    with me.standby(for_="victim", then=lambda death: None, on_suspicion=suspicions.append):
        victim.do(actors.alloc, "region", 16 * PAGE, 5)
        victim.start(hang)
        time.sleep(0.3)
        with me.steal("victim") as estate:
            assert estate.how in ("protected", "ptraced")
            assert np.unique(estate.regions[0].array()).tolist() == [5]
        assert victim.is_busy() and suspicions == []
        victim.kill()


def test_what_is_granted_back_to_the_resumed_victim_works(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 4 * MIB, 1)
    victim.signal(signal.SIGSTOP)
    estate = me.steal("victim")
    (region,) = estate
    region.array()[:] = 7
    victim.signal(signal.SIGCONT)
    region.grant("victim")
    assert victim.do(actors.accept, "back")[0] == region.address
    assert victim.do(actors.values, "back") == [7]
    victim.do(actors.fill, "back", 8)
    assert victim.do(actors.values, "back") == [8]
    victim.do(actors.grant, "back", "me")
    with me.accept(actors.DEADLINE) as again:
        assert np.unique(again.array()).tolist() == [8]


def test_a_part_by_address_and_by_name(yard: Yard, me: bq.Process) -> None:
    straggler = yard.actor("straggler")
    first, second, third = (straggler.do(actors.alloc, key, 2 * PAGE, 5) for key in ("a", "b", "c"))
    straggler.do(thieves.publish, "/work/2", "b")
    with me.steal("straggler", only=["/work/2", third + PAGE]) as estate:
        assert [region.address for region in estate] == sorted([second, third])
        assert list(estate.names) == ["/work/2"]
        assert estate.names["/work/2"].address == second
        assert straggler.do(actors.values, "a") == [5]
        assert straggler.do(thieves.touch, "b") == "MemoryRevoked"
        with pytest.raises(bq.NotOwner):
            me.steal("straggler", only=[1 << 20])
        with pytest.raises(bq.UnknownName):
            me.steal("straggler", only=["/work/9"])
    with me.steal("straggler", only=[first]) as rest:
        assert [region.address for region in rest] == [first]


def test_names_go_along(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "state", 16 * PAGE, 3)
    victim.do(thieves.publish, "/victim/log", "state", 2 * PAGE)
    victim.kill()
    with me.steal("victim") as estate:
        assert {path: region.address for path, region in estate.names.items()} == {"/victim/log": address}
        assert me.lookup("/victim/log").address == address


def test_what_was_in_flight(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    """What had been sent to the dead is the heir's; what the dead had sent is its receiver's."""
    victim, sender, thief = yard.actor("victim"), yard.actor("sender"), yard.actor("thief")
    sender.do(actors.alloc, "to the victim", PAGE, 4)
    sender.do(partial(actors.grant, tag=b"first"), "to the victim", "victim")
    sender.do(actors.send, "victim", b"second")
    victim.do(actors.alloc, "from the victim", PAGE, 5)
    victim.do(partial(actors.grant, tag=b"mine"), "from the victim", "me")
    victim.kill()
    told = thief.do(thieves.steal, "victim")
    assert told["addresses"] == []
    assert told["inbox"] == [(b"first", "sender", PAGE), (b"second", "sender", 0)]
    with me.accept(actors.DEADLINE) as region:
        assert (region.tag, np.unique(region.array()).tolist()) == (b"mine", [5])
    assert rack.audit() == []


def test_several_thieves_at_once(yard: Yard, rack: RackUnderTest) -> None:
    count = 200
    victim = yard.actor("victim")
    addresses = victim.do(thieves.alloc_many, count, PAGE)
    crew = [yard.actor(f"thief-{number}") for number in range(3)]
    victim.kill()
    with ThreadPoolExecutor(len(crew)) as pool:
        loot = list(pool.map(lambda thief: thief.do(thieves.steal, "victim")["addresses"], crew))
    assert sorted(address for part in loot for address in part) == sorted(addresses)
    assert rack.audit() == []


def test_a_thief_that_is_killed_in_the_middle(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    """What it had got is its own by then; whoever steals from both has all."""
    victim, thief = yard.actor("victim"), yard.actor("thief")
    addresses = victim.do(thieves.alloc_many, 50, PAGE)
    victim.kill()
    with pytest.raises(EOFError):
        thief.do(thieves.die_when_asked, "victim")
    thief.wait()
    with me.steal("thief") as first, me.steal("victim") as second:
        assert sorted(region.address for region in [*first, *second]) == sorted(addresses)
        for region in [*first, *second]:
            assert region.array()[0] == addresses.index(region.address) % 251
        assert rack.audit() == []


def test_asked_again_it_has_nothing_new(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", PAGE, 1)
    victim.kill()
    with me.steal("victim") as estate:
        again = me.steal("victim", incarnation=estate.incarnation)
        assert (again.regions, again.inbox) == ([], [])
        assert len(estate.regions) == 1


def test_from_oneself(me: bq.Process, rack: RackUnderTest) -> None:
    region = me.alloc(4 * PAGE)
    region.array()[:] = 6
    with me.steal("me") as estate:
        assert estate.how == "self"
        assert [stolen.address for stolen in estate] == [region.address]
        assert np.unique(estate.regions[0].array()).tolist() == [6]
        assert not region.owned
        assert rack.audit() == []


def test_mistakes(me: bq.Process) -> None:
    with pytest.raises(bq.UnknownProcess):
        me.steal("nobody")
    with pytest.raises(bq.UnknownProcess, match="no process can have that name"):
        me.steal("a/b")
    with pytest.raises(TypeError, match="not by both"):
        me.steal("me", b"capability", shares=[])
    with pytest.raises(bq.WrongCapability):
        me.steal("me", shares=[])
    with pytest.raises(TypeError):
        me.steal("me", only=[1.5])
