"""Notices of failures, with real processes: who hears what, who need not listen, and who is slow."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import time

import pytest

import actors
import bequest as bq
import watchers
from actors import Actor, until
from bequest.wire import messages as wire
from racks import RackUnderTest, Yard

MIB = 1 << 20


def break_memory(
    rack: RackUnderTest, element: str = "dram0", start: int = 0, nbytes: int = 0
) -> wire.MemoryBroken:
    reply = rack.connection.request(wire.BreakMemory(element, start, nbytes))
    assert isinstance(reply, wire.MemoryBroken)
    return reply


def listener(yard: Yard, name: str) -> Actor:
    actor = yard.actor(name)
    actor.do(watchers.listen)
    return actor


def test_a_death_is_told_to_the_group(yard: Yard, rack: RackUnderTest) -> None:
    me = yard.attach("me")
    events = me.events
    group = rack.connection.create_group("strangers")
    stranger = yard.actor("stranger", group=group)
    stranger.do(watchers.listen)
    victim = yard.actor("victim")
    victim.kill()
    event = events.get(5)
    assert isinstance(event, bq.ProcessDied)
    assert (event.name, event.id) == ("victim", victim.id)
    assert stranger.do(watchers.no_event, 0.1) == []


def test_a_clean_detachment_is_no_death(yard: Yard, rack: RackUnderTest) -> None:
    events = yard.attach("me").events
    other = yard.actor("other")
    other.do(actors.detach)
    third = yard.actor("third")
    third.kill()
    event = events.get(5)
    assert isinstance(event, bq.ProcessDied)
    assert event.name == "third"


def test_events_can_be_awaited(yard: Yard, rack: RackUnderTest) -> None:
    events = yard.attach("me").events
    victim = yard.actor("victim")

    async def first() -> bq.Event:
        async for event in events:
            return event
        raise AssertionError("no event")

    async def scenario() -> bq.Event:
        with pytest.raises(bq.AcceptTimeout):
            await events.get_async(0.01)
        task = asyncio.create_task(first())
        await asyncio.sleep(0)
        victim.kill()
        return await asyncio.wait_for(task, 5)

    event = asyncio.run(scenario())
    assert isinstance(event, bq.ProcessDied)


def test_events_end_with_the_attachment(yard: Yard, rack: RackUnderTest) -> None:
    me = rack.connection.attach("me")
    events = me.events
    me.detach()
    assert list(events) == []
    with pytest.raises(bq.NotAttached):
        events.get(1)
    with pytest.raises(bq.NotAttached):
        _ = me.events


def test_who_registers_nothing_pays_nothing(yard: Yard, rack: RackUnderTest) -> None:
    actor = yard.actor("plain")
    sockets = len(os.listdir(f"/proc/{actor.pid}/fd"))
    before = actor.do(watchers.threads)
    assert not [name for name in before if name.startswith("bequest-notices")]
    actor.do(watchers.listen)
    assert "bequest-notices" in actor.do(watchers.threads)
    assert len(os.listdir(f"/proc/{actor.pid}/fd")) == sockets + 1


def test_an_owner_hears_of_its_lost_memory_and_its_contacts_if_it_does_not(
    yard: Yard, rack: RackUnderTest
) -> None:
    owner, friend, bystander = yard.actor("owner"), listener(yard, "friend"), listener(yard, "bystander")
    address = owner.do(actors.alloc, "region", 4 * MIB)
    owner.do(watchers.name_contacts, "friend", "not-there")
    bystander.do(actors.alloc, "region", 4096)
    assert sorted(break_memory(rack).owners) == ["bystander", "owner"]
    called = friend.do(watchers.next_event)
    assert isinstance(called, bq.ContactCalled)
    assert (called.name, called.what, called.element) == ("owner", "memory", "dram0")
    assert called.runs == ((address, 4 * MIB),)
    told = bystander.do(watchers.next_event)
    assert isinstance(told, bq.MemoryFailed)
    assert told.nbytes == 4096


@pytest.mark.parametrize(("how", "contact_is_called"), [("well", False), ("badly", True), ("slowly", True)])
def test_contacts_are_called_only_if_the_handler_fails(
    yard: Yard, rack: RackUnderTest, how: str, contact_is_called: bool
) -> None:
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    address = owner.do(actors.alloc, "region", 4 * MIB)
    owner.do(watchers.name_contacts, "friend")
    owner.do(watchers.handle, how)
    started = time.monotonic()
    break_memory(rack)
    (event,) = until(lambda: owner.do(watchers.handled))
    assert isinstance(event, bq.MemoryFailed)
    assert event.runs == ((address, 4 * MIB),)
    if contact_is_called:
        assert isinstance(friend.do(watchers.next_event), bq.ContactCalled)
        assert (time.monotonic() - started > 0.9) == (how == "slowly")
    else:
        assert friend.do(watchers.no_event, 1.2) == []
    if how == "slowly":
        owner.kill()


def test_contacts_hear_of_a_death_without_the_rack_mmu(yard: Yard, rack: RackUnderTest) -> None:
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    owner.do(watchers.name_contacts, "friend")
    owner.kill()
    events = [friend.do(watchers.next_event), friend.do(watchers.next_event)]
    kinds = {type(event) for event in events}
    assert kinds == {bq.ContactCalled, bq.ProcessDied}


@pytest.mark.parametrize("killed", [("host0",), ("mmu",), ("host0", "mmu")])
def test_a_death_while_daemons_are_away_is_told_by_the_next_ones(
    yard: Yard, rack: RackUnderTest, killed: tuple[str, ...]
) -> None:
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    owner.do(
        watchers.name_contacts, "friend"
    )  # it has no subscription, by which it would learn of a new agent
    os.kill(rack.supervisor, signal.SIGSTOP)
    for daemon in killed:
        os.kill(rack.daemon(daemon), signal.SIGKILL)
    owner.kill()
    os.kill(rack.supervisor, signal.SIGCONT)
    events = []
    while not {bq.ContactCalled, bq.ProcessDied} <= {type(event) for event in events}:
        events.append(friend.do(watchers.next_event))
    assert [event.name for event in events if isinstance(event, bq.ProcessDied)] == ["owner"]


def test_a_failure_outlives_the_agent_that_told_it(yard: Yard, rack: RackUnderTest) -> None:
    """Its owner hangs, and so cannot repeat to the next agent what it wanted of this one."""
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    owner.do(actors.alloc, "region", 4 * MIB)
    owner.do(watchers.name_contacts, "friend")
    owner.do(watchers.handle, "slowly")
    break_memory(rack)
    until(lambda: owner.do(watchers.handled))
    owner.signal(signal.SIGSTOP)
    os.kill(rack.daemon("host0"), signal.SIGKILL)
    events: list[bq.Event] = []
    while not any(isinstance(event, bq.ContactCalled) for event in events):
        events.append(friend.do(watchers.next_event))
    assert [event.what for event in events if isinstance(event, bq.ContactCalled)] == ["memory"]
    owner.signal(signal.SIGCONT)
    assert isinstance(owner.do(watchers.next_event), bq.MemoryFailed)
    assert isinstance(owner.do(watchers.next_event), bq.EventsDropped)
    assert owner.do(watchers.no_event, 0.3) == [], "the same failure was told again"


def test_that_a_suspect_is_well_again_is_told_though_the_agent_dies_meanwhile(
    yard: Yard, rack: RackUnderTest
) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    with me.standby(for_="victim", then=lambda death: None):
        until(lambda: me.table.beats(victim.id) > 3, "the victim's beats")
        victim.signal(signal.SIGSTOP)
        assert isinstance(me.events.get(actors.DEADLINE), bq.ProcessSuspected)
        agent, supervisor = rack.daemon("host0"), rack.supervisor
        os.kill(supervisor, signal.SIGSTOP)  # so that the agent has no successor yet
        os.kill(agent, signal.SIGKILL)
        victim.signal(signal.SIGCONT)
        time.sleep(0.3)  # long enough for the monitor, and it does no harm if it is not
        os.kill(supervisor, signal.SIGCONT)
        events = [me.events.get(actors.DEADLINE) for _ in range(2)]
    assert {type(event) for event in events} == {bq.EventsDropped, bq.ProcessCleared}


def test_a_suspicion_that_stands_is_not_told_again_by_the_next_agent(yard: Yard, rack: RackUnderTest) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    with me.standby(for_="victim", then=lambda death: None):
        until(lambda: me.table.beats(victim.id) > 3, "the victim's beats")
        victim.signal(signal.SIGSTOP)
        assert isinstance(me.events.get(actors.DEADLINE), bq.ProcessSuspected)
        os.kill(rack.daemon("host0"), signal.SIGKILL)
        assert isinstance(me.events.get(actors.DEADLINE), bq.EventsDropped)
        time.sleep(0.1)
        victim.signal(signal.SIGCONT)
        assert isinstance(me.events.get(actors.DEADLINE), bq.ProcessCleared)


def test_a_handler_has_its_time_though_its_agent_dies(yard: Yard, rack: RackUnderTest) -> None:
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    owner.do(actors.alloc, "region", 4 * MIB)
    owner.do(watchers.name_contacts, "friend")
    owner.do(watchers.handle, "late")
    break_memory(rack)
    os.kill(rack.daemon("host0"), signal.SIGKILL)
    assert isinstance(friend.do(watchers.next_event), bq.EventsDropped)
    assert friend.do(watchers.no_event, 1.2) == []


def test_a_subscriber_that_does_not_read_costs_nobody_anything(yard: Yard, rack: RackUnderTest) -> None:
    deaf, well = listener(yard, "deaf"), listener(yard, "well")
    deaf.signal(signal.SIGSTOP)
    for number in range(3):
        yard.actor(f"victim-{number}").kill()
        event = well.do(watchers.next_event)
        assert isinstance(event, bq.ProcessDied)
        assert event.name == f"victim-{number}"
    deaf.signal(signal.SIGCONT)
    assert [deaf.do(watchers.next_event).name for _ in range(3)] == ["victim-0", "victim-1", "victim-2"]


def test_alloc_goes_on_elsewhere(yard: Yard) -> None:
    rack = yard.rack("a:64MiB", "b:64MiB", orphan_keep=0.2)
    me = yard.attach("me")
    kept = [me.alloc(1 * MIB, element="a"), me.alloc(1 * MIB, element="b")]
    break_memory(rack, "a")
    elements = rack.elements()
    assert elements["a"].state == "failed"
    assert elements["a"].failed > 0
    assert elements["b"].state == "well"
    with pytest.raises(bq.RackMemoryError, match="failed"):
        me.alloc(1 * MIB, element="a")
    with pytest.raises(bq.RackMemoryError, match="failed"):
        me.alloc(4096, element="a")
    kept.append(me.alloc(1 * MIB))
    assert kept[-1].array()[0] in range(256)
    kept[0].free()
    kept[1].array()[:] = 7
    again = [me.alloc(1 * MIB) for _ in range(8)]
    for region in again:
        region.array()[:] = 7  # none of it is lost memory
    until(lambda: rack.elements()["a"].slabs == 0, "the failed slab is retired")
    with pytest.raises(bq.BadConfig, match="failed already"):
        break_memory(rack, "a")
    with pytest.raises(bq.BadConfig, match="no memory element"):
        break_memory(rack, "c")
    for region in [*kept[1:], *again]:
        region.free()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(watchers.MCEERR_AR, id="touched"),
        pytest.param(watchers.MCEERR_AO, id="untouched"),  # an early warning: nothing is raised
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_what_the_hardware_tells_one_process_the_rack_tells_the_others(
    yard: Yard, rack: RackUnderTest, code: int
) -> None:
    """The signal is made by the process itself; all that follows is as for a real one."""
    owner, friend = yard.actor("owner"), listener(yard, "friend")
    address = owner.do(actors.alloc, "region", 16 * 4096, 5)
    owner.do(watchers.name_contacts, "friend")
    assert owner.do(watchers.machine_check, address + 3 * 4096, code) == (code == watchers.MCEERR_AR)
    called = friend.do(watchers.next_event)
    assert isinstance(called, bq.ContactCalled)
    assert called.runs == ((address + 3 * 4096, 4096),) and called.cause == "the hardware reports an error"
    (slab,) = [slab for slab in rack.slabs() if slab.failed]
    assert slab.address <= address < slab.address + slab.pages * 4096 and slab.failed == 4096
    if code == watchers.MCEERR_AO:
        assert owner.do(watchers.page_values, "region") == [5] * 3 + [None] + [5] * 12
    with pytest.raises(bq.MemoryFailure):
        owner.do(actors.grant, "region", "friend")


def test_a_range_fails_for_all_who_have_it_and_for_who_maps_it_later(yard: Yard, rack: RackUnderTest) -> None:
    owner = yard.actor("owner")
    yard.actor("heir")
    owner.do(watchers.handle, "well")
    address = owner.do(actors.alloc, "region", 16 * 4096, 5)
    lost = (address + 4 * 4096, 2 * 4096)
    broken = break_memory(rack, "dram0", lost[0], lost[1])
    assert (broken.slabs, broken.nbytes, broken.owners) == (1, 2 * 4096, ["owner"])
    (event,) = until(lambda: owner.do(watchers.handled))
    assert event.runs == (lost,)
    assert owner.do(watchers.page_values, "region") == [5] * 4 + [None] * 2 + [5] * 10
    with pytest.raises(bq.MemoryFailure):
        owner.do(actors.grant, "region", "heir")
    (slab,) = [slab for slab in rack.slabs() if slab.address <= address < slab.address + slab.pages * 4096]
    assert slab.failed == 2 * 4096
    owner.do(actors.alloc, "another", 16 * 4096)
    (fresh,) = [
        slab
        for slab in rack.slabs()
        if slab.failed == 0 and slab.group == f"user-{os.getuid()}" and slab.owners
    ]
    assert fresh.slab != slab.slab  # nothing of the failed one is handed out any more


def test_who_is_granted_lost_memory_finds_it_lost(yard: Yard, rack: RackUnderTest) -> None:
    """It has never mapped it, so nothing of it was guarded: its own library keeps it from reading zeros."""
    owner, heir = yard.actor("owner"), yard.actor("heir")
    address = owner.do(actors.alloc, "region", 16 * 4096, 5)
    break_memory(rack, "dram0", address + 4 * 4096, 2 * 4096)
    owner.do(actors.grant, "region", "heir")
    heir.do(actors.accept, "region")
    assert heir.do(watchers.page_values, "region") == [5] * 4 + [None] * 2 + [5] * 10
