"""Section 3.1 of the paper, "Memory reassignment": stealing, sentence by sentence.

Real processes on a real rack. How a name leads into stolen memory is the programming model's business, section 3.1
too; it is used here where the paper speaks of resuming what another process had begun.
"""

from __future__ import annotations

import signal
from functools import partial

import numpy as np
import pytest

import actors
import bequest as bq
import paper_users
import thieves
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


@pytest.mark.parametrize("nbytes", [PAGE, 2 * MIB])
def test_pages_move_from_one_v2p_mapping_to_another(yard: Yard, me: bq.Process, nbytes: int) -> None:
    """ "Memory is reassigned at page granularity by moving it from the V2P mapping of one process to another at the
    Rack MMU […] or may occur involuntarily through memory stealing."
    """
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "region", nbytes, 1)
    held = me.table.holdings(victim.id)[1]
    with me.steal("victim") as estate:
        assert [region.address for region in estate] == [address]
        assert me.table.holdings(victim.id)[1] == 0
        assert me.table.holdings(me.id)[1] == held


def test_cached_mappings_are_invalid_and_access_is_revoked(yard: Yard, me: bq.Process) -> None:
    """ "and invalidating any cached V2P mappings at compute elements. Following this, the Rack MMU revokes access to
    those pages": the victim that lives has neither a valid mapping of them nor a handle.
    """
    victim = yard.actor("victim")
    address = victim.do(actors.alloc, "region", PAGE, 1)
    victim.do(actors.hold_view, "region")
    with me.steal("victim"):
        assert victim.do(thieves.store_through, "view of region") == "MemoryRevoked"
        assert victim.do(actors.protection, address) != "rw-s"
        assert victim.do(thieves.touch, "region") == "MemoryRevoked"
        victim.do(thieves.let_go, "view of region")


def test_stolen_memory_is_like_newly_allocated_memory(yard: Yard, me: bq.Process) -> None:
    """ "the detached memory can then be attached to an existing process similar to newly allocated memory." """
    victim, heir = yard.actor("victim"), yard.actor("heir")
    victim.do(actors.alloc, "region", 4 * PAGE, 3)
    victim.kill()
    (region,) = me.steal("victim")
    left, right = region.split(2 * PAGE)
    left.array()[:] = 4
    me.publish("/left", left)
    left.grant("heir")
    assert heir.do(actors.accept, "left")[1] == 2 * PAGE
    assert heir.do(actors.values, "left") == [4]
    right.free()
    with me.steal("heir") as again:  # and it can be stolen once more
        assert list(again.names) == ["/left"]


def test_a_crashed_process_memory_can_be_stolen(yard: Yard, me: bq.Process) -> None:
    """ "While grants are the most natural flavor of memory reassignment, they are not particularly useful in the case
    of compute element failures. An alternative is for other processes to be able to steal a crashed process' memory."
    """
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 2 * MIB, 42)
    victim.kill()
    with me.steal("victim") as estate:
        assert estate.how == "dead"
        assert np.unique(estate.regions[0].array()).tolist() == [42]


def test_operations_are_resumed_from_the_log_of_a_crashed_server(yard: Yard, me: bq.Process) -> None:
    """ "This is similar to how servers in Frangipani keep their logs remotely, and can request the logs of servers that
    have crashed to resume their operations."
    """
    server = yard.actor("server")
    server.do(actors.alloc, "log", PAGE, 0)
    server.do(thieves.publish, "/server/log", "log")
    server.do(thieves.append, "log", b"credit 10;debit 3;")
    server.kill()
    with me.steal("server") as estate:
        log = bytes(memoryview(estate.names["/server/log"])).rstrip(b"\0")
        assert log.split(b";")[:-1] == [b"credit 10", b"debit 3"]
        with memoryview(estate.names["/server/log"]) as view:  # goes on where it had ended
            view[len(log) : len(log) + 9] = b"credit 5;"
        assert bytes(memoryview(me.lookup("/server/log"))).rstrip(b"\0").endswith(b"debit 3;credit 5;")


def test_it_takes_the_id_of_the_source_and_a_capability(yard: Yard, rack: RackUnderTest) -> None:
    """ "We propose to expose memory stealing via a syscall that requires the id of the source process and a
    capability;"
    """
    group = rack.connection.create_group("closed")
    victim = yard.actor("victim", group=group)
    victim.do(actors.alloc, "region", PAGE, 1)
    victim.kill()
    thief = yard.attach("thief", group=group)
    for wrong in (None, b"", bytes(len(group.capability or b"")), group.secret):
        with pytest.raises(bq.WrongCapability):
            thief.steal("victim", wrong)
    with pytest.raises(bq.UnknownProcess):
        thief.steal("nobody", group.capability)
    with thief.steal("victim", group.capability) as estate:
        assert len(estate.regions) == 1


def test_memory_can_disallow_it_with_a_flag(yard: Yard, me: bq.Process) -> None:
    """ "memory allocated using brk or mmap can disallow reallocation with the appropriate flags." """
    victim = yard.actor("victim")
    victim.do(partial(actors.alloc, stealable=False), "secret", PAGE, 1)
    stealable = victim.do(actors.alloc, "state", PAGE, 2)
    with me.steal("victim") as estate:
        assert [region.address for region in estate] == [stealable]
        assert victim.do(actors.values, "secret") == [1]
        assert victim.do(thieves.touch, "state") == "MemoryRevoked"


def test_any_member_of_a_trusted_group_may_initiate_it(yard: Yard, me: bq.Process) -> None:
    """ "One possibility is to group trusted processes together and allow any group member to initiate
    reassignment;"
    """
    for name in ("first", "second"):
        victim = yard.actor(f"victim of {name}")
        victim.do(actors.alloc, "region", PAGE, 7)
        victim.kill()
        assert yard.actor(name).do(thieves.steal, f"victim of {name}")["values"] == [[7]]


def test_a_group_may_have_to_reach_consensus(yard: Yard, rack: RackUnderTest) -> None:
    """ "another is to require that a group of processes reach consensus. In such cases, a shared group secret (perhaps
    based on a threshold secret sharing scheme) may act as the capability to steal memory."
    """
    group = rack.connection.create_group("council", steal=bq.Quorum(2, of=3))
    assert group.capability is None
    victim = yard.actor("victim", group=group)
    victim.do(actors.alloc, "region", PAGE, 3)
    victim.kill()
    thief = yard.attach("thief", group=group)
    with pytest.raises(bq.WrongCapability, match="2 shares are needed"):
        thief.steal("victim", shares=group.shares[:1])
    with thief.steal("victim", shares=[group.shares[2], group.shares[0]]) as estate:
        assert np.unique(estate.regions[0].array()).tolist() == [3]


def test_what_is_appropriate_is_the_applications_choice(yard: Yard, rack: RackUnderTest) -> None:
    """ "We do not enforce a specific policy around reassignment and instead leave it up to the application to determine
    what is appropriate"
    """
    group = rack.connection.create_group("hermits", steal="never")
    victim = yard.actor("victim", group=group)
    victim.do(actors.alloc, "region", PAGE, 3)
    with pytest.raises(bq.WrongCapability):
        yard.attach("thief", group=group).steal("victim")
    assert victim.do(actors.values, "region") == [3]


def test_a_buggy_application_can_steal_its_own_memory(me: bq.Process) -> None:
    """ "while this means that a buggy application can mistakenly steal its own memory and crash, this is not morally
    different from threads stomping on each other's memory in buggy shared memory applications."
    """
    region = me.alloc(PAGE)
    with me.steal("me") as estate:
        assert estate.regions[0].address == region.address
        with pytest.raises(bq.BequestError):
            region.array()


def test_from_a_process_that_is_suspected_of_having_crashed(yard: Yard, me: bq.Process) -> None:
    """ "We envision memory stealing as primarily an aid to recovery mechanisms when a process has crashed (or is
    suspected of having crashed)"
    """
    suspect = yard.actor("suspect")
    suspect.do(actors.alloc, "region", 16 * PAGE, 1)
    suspect.signal(signal.SIGSTOP)
    with me.steal("suspect") as estate:
        assert estate.how != "dead"
        estate.regions[0].array()[:] = 2
        suspect.signal(signal.SIGCONT)
        assert suspect.do(thieves.touch, "region") == "MemoryRevoked"
        assert np.unique(estate.regions[0].array()).tolist() == [2]


def test_stealing_from_a_running_process(yard: Yard, me: bq.Process) -> None:
    """ "but there might also be cases where stealing memory from a running process is actually profitable." """
    straggler = yard.actor("straggler")
    done = straggler.do(actors.alloc, "done", PAGE, 1)
    left = straggler.do(actors.alloc, "left", PAGE, 2)
    with me.steal("straggler", only=[left]) as estate:
        assert [region.address for region in estate] == [left]
        assert straggler.do(actors.values, "done") == [1]
        assert done != left


def test_memory_is_acquired_at_any_time(yard: Yard, me: bq.Process) -> None:
    """ "memory stealing allows memory to be forcibly acquired at any time" """
    victim = yard.actor("victim")
    victim.do(actors.alloc, "region", 16 * PAGE, 1)
    victim.do(thieves.write_on, "region")
    with me.steal("victim") as estate:
        frozen = bytes(memoryview(estate.regions[0]))
        assert victim.do(thieves.written_to_the_end, actors.DEADLINE) == "MemoryRevoked"
        assert bytes(memoryview(estate.regions[0])) == frozen


# --- pointer semantics ----------------------------------------------------------------------------------------


def test_pointers_in_stolen_memory_lead_where_they_led(yard: Yard, me: bq.Process) -> None:
    """ "As reassigned memory pages may contain data structures with internal references, these pages must be attached
    to the same virtual address to prevent dangling pointers."
    """
    victim = yard.actor("victim")
    addresses = [victim.do(actors.alloc, f"{number}", PAGE) for number in range(8)]
    nodes = [address + 16 * number for number in range(20) for address in addresses]
    victim.do(paper_users.build_list, nodes)
    victim.kill()
    with me.steal("victim"):
        assert paper_users.follow_links(nodes[0]) == list(range(160))


def test_stolen_addresses_are_in_use(yard: Yard, me: bq.Process) -> None:
    """ "As reassigned pages continue to use the same virtual address space, the sender OS marks the virtual address as
    being "in use" and prevents further allocations or mappings to it."
    """
    victim = yard.actor("victim")
    stolen = {victim.do(actors.alloc, f"{number}", PAGE) for number in range(20)}
    with me.steal("victim") as estate:
        assert {region.address for region in estate} == stolen
        fresh = {
            victim.do(actors.alloc, f"new {number}", PAGE) for number in range(600)
        }  # more than was free there
        assert not fresh & stolen


# --- crash consistency ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", range(4))
def test_an_application_that_writes_a_shadow_copy_is_consistent_at_any_time(
    yard: Yard, me: bq.Process, written: int
) -> None:
    """ "as neither of these scenarios provide the source an opportunity to gracefully make state consistent, remote
    memory must always be kept crash consistent. […] Applications can adopt any of these mechanisms, which rely on […]
    shadow copies".
    """
    victim = yard.actor("victim")
    victim.do(actors.alloc, "state", 4 * PAGE)
    victim.do(thieves.publish, "/state", "state")
    victim.do(thieves.update_by_shadow_copy, "state", b"before", 3)
    victim.do(thieves.update_by_shadow_copy, "state", b"after!", written)  # so many of its three steps
    victim.kill()
    with me.steal("victim") as estate:
        expected = b"after!" if written == 3 else b"before"
        assert thieves.current_copy(estate.names["/state"]) == expected


def test_integrity_is_verified_by_page_checksums(yard: Yard, me: bq.Process) -> None:
    """ "Additionally, to verify data integrity after reassignment, applications can use page checksums" """
    victim = yard.actor("victim")
    victim.do(actors.alloc, "data", 8 * PAGE)
    sums = victim.do(thieves.fill_and_sum_pages, "data")
    victim.kill()
    with me.steal("victim") as estate:
        assert thieves.page_sums(estate.regions[0]) == sums


# --- programming models -----------------------------------------------------------------------------------------


def test_all_critical_state_is_an_object_that_persists_across_invocations(yard: Yard, me: bq.Process) -> None:
    """ "One possibility is for applications to use an […] event-based model or a Function-as-a-Service one that forces
    them to package all critical state into an object which persists across invocations. Metadata for these objects […]
    can be stored and distributed in a file system like namespace".
    """
    total = 0
    for invocation in range(3):  # each is another process, which is killed after it
        function = yard.actor(f"invocation {invocation}")
        if invocation:
            assert function.do(thieves.steal, f"invocation {invocation - 1}")["names"]
        total += invocation
        assert function.do(thieves.invoke, "/function/state", invocation) == {
            "calls": invocation + 1,
            "sum": total,
        }
        function.kill()
    with me.steal("invocation 2") as estate:
        assert list(estate.names) == ["/function/state"]
