"""Section 3.1 of the paper, "Memory reassignment": who is allowed to steal, and the map of what was left.

Real processes on a real rack; whether a store of the victim still reaches its memory is asked of the victim.
"""

from __future__ import annotations

import signal

import pytest

import actors
import bequest as bq
import steal_users as users
from bequest.memory.group import combine
from racks import RackUnderTest, Yard

PAGE = 4096
BYTES = 16 * PAGE
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """One that keeps the memory of the dead for a minute."""
    return yard.rack()


def owner_of(process: bq.Process, address: int) -> int:
    """By the V2P table."""
    extent = process.table.find_extent(address, 0)
    assert extent is not None
    return extent[4]


def test_stealing_requires_the_id_of_the_source_process_and_a_capability(
    yard: Yard, rack: RackUnderTest
) -> None:
    """ "... via a syscall that requires the id of the source process and a capability" """
    group = rack.connection.create_group("crew")
    thief = yard.attach("thief", rack, group)
    victim = yard.actor("victim", group=group)
    address = victim.do(actors.alloc, "state", BYTES)
    victim.kill()
    with pytest.raises(bq.UnknownProcess):
        users.take(thief, "nobody", group.capability)
    with pytest.raises(bq.WrongCapability):
        users.take(thief, "victim")
    assert owner_of(thief, address) == victim.id
    assert users.take(thief, "victim", group.capability).nbytes == BYTES
    assert owner_of(thief, address) == thief.id


def test_any_group_member_may_initiate_reassignment(yard: Yard, me: bq.Process) -> None:
    """ "One possibility is to group trusted processes together and allow any group member to initiate reassignment" """
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "state", BYTES)
    victim.kill()
    assert users.take(me, "victim").how == "dead"
    assert owner_of(me, address) == me.id


def test_a_group_may_have_to_reach_consensus_by_shares_of_a_secret(yard: Yard, rack: RackUnderTest) -> None:
    """ "another is to require that a group of processes reach consensus. In such cases, a shared group secret (perhaps
    based on a threshold secret sharing scheme) may act as the capability to steal memory."
    """
    group = rack.connection.create_group("crew", steal=bq.Quorum(2, of=3))
    thief = yard.attach("thief", rack, group)
    victim = yard.actor("victim", group=group)
    victim.do(actors.alloc, "state", BYTES)
    victim.kill()
    mine, yours, _ = group.shares
    with pytest.raises(bq.WrongCapability):
        users.take(thief, "victim", combine([mine]))
    assert users.take(thief, "victim", combine([mine, yours])).nbytes == BYTES


@pytest.mark.parametrize("policy", ["member", "standby", "never"])
def test_the_application_determines_the_policy(yard: Yard, rack: RackUnderTest, policy: str) -> None:
    """ "We do not enforce a specific policy around reassignment and instead leave it up to the application to determine
    what is appropriate"
    """
    group = rack.connection.create_group("crew", steal=policy)
    thief = yard.attach("thief", rack, group)
    victim = yard.actor(None)
    victim.do(users.attach_with_heir, "victim", group.secret, "thief" if policy == "standby" else None)
    victim.do(actors.alloc, "state", BYTES)
    victim.kill()
    if policy == "never":
        with pytest.raises(bq.WrongCapability):
            users.take(thief, "victim", group.capability)
    else:
        assert users.take(thief, "victim", group.capability).nbytes == BYTES


def test_a_buggy_application_can_steal_its_own_memory(yard: Yard, me: bq.Process) -> None:
    """ "a buggy application can mistakenly steal its own memory and crash": here its old handles are spent."""
    region = me.alloc(BYTES)
    words = me.table.find_extent(region.address, 0)
    stolen = users.take(me, me.name)
    assert (stolen.how, stolen.nbytes) == ("self", BYTES)
    assert owner_of(me, region.address) == me.id
    assert words is not None
    with pytest.raises(bq.BequestError):
        memoryview(region)


def test_memory_of_a_running_process_can_be_stolen(yard: Yard, me: bq.Process) -> None:
    """ "there might also be cases where stealing memory from a running process is actually profitable" """
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "state", BYTES, 1)
    victim.signal(signal.SIGSTOP)  # suspected of having crashed
    stolen = users.take(me, "victim")
    assert stolen.how in ("protected", "ptraced") and stolen.nbytes == BYTES
    victim.signal(signal.SIGCONT)
    with pytest.raises(bq.BequestError):
        victim.do(users.store, "state", 2)
    assert owner_of(me, address) == me.id


def test_a_namespace_acts_as_a_map_to_locate_critical_state(yard: Yard, me: bq.Process) -> None:
    """ "Metadata for these objects (this could be as minimal as the root of a tree) can be stored and distributed in a
    file system like namespace that acts as a "map" to help locate critical state."
    """
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "state", BYTES)
    victim.do(users.publish, "/victim/tree/root", "state", 640)
    victim.kill()
    users.take(me, "victim")
    [name] = me.list("/victim")
    assert (name.path, name.address, name.offset) == ("/victim/tree/root", address, 640)
    assert (name.publisher, name.owner) == ("victim", me.name)
