"""Section 3.2 of the paper, "Failure notification": one test for each sentence that speaks of behaviour.

Memory and daemons fail for real, as `bequest fault` makes them.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

import actors
import bequest as bq
import fault_users
import watchers
from actors import until
from bequest.wire import messages as wire
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


@pytest.fixture
def two_elements(yard: Yard) -> RackUnderTest:
    return yard.rack("a:64MiB", "b:64MiB", orphan_keep=0.2)


def fail(rack: RackUnderTest, element: str, start: int = 0, nbytes: int = 0) -> wire.MemoryBroken:
    reply = rack.connection.request(wire.BreakMemory(element, start, nbytes))
    assert isinstance(reply, wire.MemoryBroken)
    return reply


# --- memory ---------------------------------------------------------------------------------------------------


def test_memory_failures_are_told_asynchronously_and_on_access(
    yard: Yard, two_elements: RackUnderTest
) -> None:
    """ "Compute elements should be notified of memory failures either asynchronously […] or explicitly in response to
    accesses".
    """
    owner = yard.actor("owner")
    owner.do(watchers.handle, "well")
    address = owner.do(actors.alloc, "region", 4 * PAGE, 1)
    (element,) = [name for name, status in two_elements.elements().items() if status.slabs]
    fail(two_elements, element)
    (told,) = until(lambda: owner.do(watchers.handled))
    assert told.runs == ((address, 4 * PAGE),)
    assert owner.do(watchers.page_values, "region") == [None] * 4


def test_the_controller_of_the_element_tells_of_specific_failures(yard: Yard, rack: RackUnderTest) -> None:
    """ "compute elements can receive messages from the controller of the memory element (when specific elements have
    failed)"
    """
    owner, neighbour = yard.actor("owner"), yard.actor("neighbour")
    for actor in (owner, neighbour):
        actor.do(watchers.listen)
    address = owner.do(actors.alloc, "region", 8 * PAGE, 1)
    neighbour.do(actors.alloc, "region", 8 * PAGE, 2)
    fail(rack, "dram0", address + PAGE, PAGE)
    told = owner.do(watchers.next_event)
    assert isinstance(told, bq.MemoryFailed)
    assert told.runs == ((address + PAGE, PAGE),)
    assert owner.do(watchers.page_values, "region") == [1, None, *[1] * 6]
    assert neighbour.do(watchers.no_event, 0.1) == []
    assert neighbour.do(watchers.page_values, "region") == [2] * 8


def test_an_element_that_is_unreachable_is_found_by_a_timeout(yard: Yard, rack: RackUnderTest) -> None:
    """ "or rely on timeouts (when the entire memory element is unreachable)" """
    owner = yard.actor("owner")
    owner.do(watchers.listen)
    owner.do(actors.alloc, "region", PAGE, 3)
    server = rack.daemon("dram0")
    os.kill(server, signal.SIGSTOP)
    try:
        told = owner.do(watchers.next_event)
    finally:
        os.kill(server, signal.SIGCONT)
    assert isinstance(told, bq.ElementSilent)
    assert owner.do(actors.values, "region") == [3]  # silent is not failed


def test_errors_reach_the_application_by_sigbus(yard: Yard, two_elements: RackUnderTest) -> None:
    """ "Error notifications are propagated back to the application through OS signals (SIGBUS); applications that want
    to manage faults can register for these signals": for who asks for it, instead of an exception.
    """
    owner = yard.actor("owner")
    owner.do(fault_users.want_raw_signals, True)
    owner.do(actors.alloc, "region", PAGE, 1)
    owner.do(fault_users.keep_view, "region")
    (element,) = [name for name, status in two_elements.elements().items() if status.slabs]
    fail(two_elements, element)
    assert owner.do(fault_users.touch, "region") == "nothing"
    assert owner.do(fault_users.handled_signals) == [signal.SIGBUS]


def test_applications_can_register_and_trigger_recovery(yard: Yard, two_elements: RackUnderTest) -> None:
    """ "applications that want to manage faults can register for these signals and trigger a failure-recovery
    protocol"
    """
    me = yard.attach("me")
    state = me.alloc(1 * MIB, element="a")
    state.array()[:] = 7
    recovered: list[bq.Region] = []

    @me.on_memory_failure
    def recover(failure: bq.MemoryFailed) -> None:
        region = me.alloc(1 * MIB, element="b")
        region.array()[:] = 7  # from a checkpoint, say
        recovered.append(region)

    fail(two_elements, "a")
    (region,) = until(lambda: recovered)
    assert set(region.array().tolist()) == {7}
    region.free()
    state.free()


def test_legacy_applications_may_ignore_failures(yard: Yard, two_elements: RackUnderTest) -> None:
    """ "while legacy applications may safely ignore them" """
    legacy = yard.actor("legacy")
    legacy.do(actors.alloc, "lost", PAGE, 1)
    (element,) = [name for name, status in two_elements.elements().items() if status.slabs]
    fail(two_elements, element)
    threads = legacy.do(watchers.threads)
    legacy.do(actors.alloc, "kept", PAGE, 2)  # elsewhere
    assert legacy.do(actors.values, "kept") == [2]
    assert legacy.do(watchers.threads) == threads


# --- emergency contacts -----------------------------------------------------------------------------------------


def test_a_group_of_processes_can_be_registered_to_be_informed(yard: Yard, rack: RackUnderTest) -> None:
    """ "the application […] preregister[s] a group of processes with the OS that will be informed in case of failures
    (these processes essentially serve as 'emergency contacts')"
    """
    owner, contacts = yard.actor("owner"), [yard.actor("first"), yard.actor("second")]
    for contact in contacts:
        contact.do(watchers.listen)
    owner.do(watchers.name_contacts, "first", "second")
    address = owner.do(actors.alloc, "region", PAGE)
    fail(rack, "dram0")
    for contact in contacts:
        called = contact.do(watchers.next_event)
        assert isinstance(called, bq.ContactCalled)
        assert (called.name, called.what, called.runs) == ("owner", "memory", ((address, PAGE),))


def test_no_failure_of_memory_affects_the_forwarding_table(yard: Yard, two_elements: RackUnderTest) -> None:
    """ "This group is stored in a per-process forwarding table within the OS; as the OS is local to the compute
    element, memory failures do *not* affect the forwarding table."
    """
    owner, friend = yard.actor("owner"), yard.actor("friend")
    friend.do(watchers.listen)
    owner.do(watchers.name_contacts, "friend")
    owner.do(actors.alloc, "region", PAGE)
    for element in ("a", "b"):  # all the memory there is
        fail(two_elements, element)
    assert isinstance(friend.do(watchers.next_event), bq.ContactCalled)
    owner.kill()
    called = [friend.do(watchers.next_event), friend.do(watchers.next_event)]
    assert "died" in [event.what for event in called if isinstance(event, bq.ContactCalled)]


def test_the_compute_element_is_a_local_failure_informer(yard: Yard, rack: RackUnderTest) -> None:
    """ "This allows other processes to learn of the failure, making the compute element a local failure informer" """
    owner, friend = yard.actor("owner"), yard.actor("friend")
    friend.do(watchers.listen)
    owner.do(watchers.name_contacts, "friend")
    mmu = rack.daemon("mmu")
    os.kill(mmu, signal.SIGSTOP)  # nobody but the agent can tell
    try:
        owner.kill()
        called = friend.do(watchers.next_event)
    finally:
        os.kill(mmu, signal.SIGCONT)
    assert isinstance(called, bq.ContactCalled)
    assert (called.name, called.what) == ("owner", "died")


# --- the rack monitor -------------------------------------------------------------------------------------------


def test_the_monitor_verifies_health_by_heartbeats(yard: Yard, rack: RackUnderTest) -> None:
    """ "Failures of compute elements can be detected with a rack-level monitor that periodically verifies the health of
    compute elements using heartbeats and triggers the appropriate action when failures are detected".
    """
    me, victim = yard.attach("me"), yard.actor("victim")
    acted: list[bq.Death] = []
    with me.standby(for_="victim", then=acted.append, on_suspicion=acted.append):
        until(lambda: me.table.beats(victim.id) > 3)
        victim.signal(signal.SIGSTOP)
        (suspicion,) = until(lambda: acted)
        assert suspicion.is_suspicion
        victim.kill()
        until(lambda: len(acted) == 2)
        assert not acted[1].is_suspicion
        assert acted[1].wait_confirmed(5)


def test_the_failure_of_a_compute_element_is_told_to_emergency_contacts(yard: Yard) -> None:
    """ "and triggers the appropriate action when failures are detected (e.g., notify emergency contacts of the
    failure)": of all that ran on a compute element, which has failed with its agent and its forwarding table.
    """
    rack = yard.rack(compute=("host0", "host1"), orphan_keep=0.2)
    contact = rack.connection.attach("contact", compute="host1")
    yard.attached.append(contact)
    events = contact.events
    victims = [yard.actor(None), yard.actor(None)]
    for number, victim in enumerate(victims):
        victim.do(watchers.attach_at, f"victim {number}", "host0")
        victim.do(watchers.name_contacts, "contact")
    os.kill(rack.daemon("host0"), signal.SIGKILL)
    for victim in victims:
        victim.kill()
    called: set[str] = set()
    while len(called) < len(victims):
        event = events.get(20)
        if isinstance(event, bq.ContactCalled):
            assert event.what == "died"
            called.add(event.name)
    assert called == {"victim 0", "victim 1"}


def test_the_monitor_is_an_optimization_and_not_a_replacement(yard: Yard, rack: RackUnderTest) -> None:
    """ "While the monitor can also fail, it is an optimization, and not a replacement, to failure detection based on
    end-to-end timeouts."
    """
    me, victim = yard.attach("me"), yard.actor("victim")
    monitor = rack.daemon("monitor")
    os.kill(monitor, signal.SIGSTOP)
    try:
        region = me.alloc(PAGE)
        region.grant("victim")
        with pytest.raises(bq.AcceptTimeout):
            me.accept(timeout=0.1)  # an application's own time-out
        events = me.events
        victim.kill()
        assert isinstance(events.get(5), bq.ProcessDied)
    finally:
        os.kill(monitor, signal.SIGCONT)


def test_the_monitor_is_quicker_than_an_applications_time_out(yard: Yard, rack: RackUnderTest) -> None:
    """ "The monitor can set more aggressive timeouts than the application" """
    me, victim = yard.attach("me"), yard.actor("victim")
    with me.standby(for_="victim", then=lambda death: None):
        events = me.events
        until(lambda: me.table.beats(victim.id) > 3)
        silences = []
        for _ in range(3):
            time.sleep(0.2)
            victim.signal(signal.SIGSTOP)
            suspected = events.get(10)
            assert isinstance(suspected, bq.ProcessSuspected)
            silences.append(suspected.silent)
            victim.signal(signal.SIGCONT)
            assert isinstance(events.get(10), bq.ProcessCleared)
    assert min(silences) < 0.5  # where applications wait for seconds
