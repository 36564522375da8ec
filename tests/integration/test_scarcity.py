"""When something runs out: memory, addresses, mappings. Seen by processes that go on working afterwards.

Whatever runs out is one error that says what is left, leaves everything as it was, and is over once there is room.
"""

from __future__ import annotations

import pytest

import actors
import bequest as bq
import scarcity_users as users
from actors import DEADLINE
from bequest.limits import PROCESS_SPACE_BYTES
from racks import MIB, Yard

PAGE = 4096


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [False, True])
def test_a_full_element_says_what_is_free_where(yard: Yard, huge: bool) -> None:
    rack = yard.rack("first:32MiB", "second:64MiB")
    me = yard.attach("me")
    kept = []
    with pytest.raises(bq.RackMemoryError) as caught:
        while True:
            kept.append(me.alloc(8 * MIB, huge=huge, element="first"))
    assert caught.type is bq.RackMemoryError and len(kept) == 4
    free = {name: (together, largest) for name, together, largest in caught.value.free}
    assert free == {"first": (0, 0), "second": (64 * MIB, 64 * MIB)}
    assert "first" in str(caught.value) and "second has 64 MiB" in str(caught.value)
    assert rack.audit() == []

    elsewhere = me.alloc(free["second"][1], huge=huge)  # the largest that it says is there
    with pytest.raises(bq.RackMemoryError) as caught:
        me.alloc(2 * MIB, huge=huge)
    assert {together for _, together, _ in caught.value.free} == {0}
    elsewhere.free()
    kept.pop().free()
    kept.append(me.alloc(8 * MIB, huge=huge, element="first"))  # what was freed can be had again
    for region in kept:
        region.free()


def test_a_full_element_serves_grants(yard: Yard) -> None:
    """Handing over what is there takes no memory."""
    yard.rack("dram0:32MiB")
    first, second = yard.actor("first"), yard.actor("second")
    count = first.do(users.fill_up, 2 * MIB)
    assert count == 16
    assert second.do(users.errors_free, PAGE, {})[0] == "RackMemoryError"
    first.do(users.grant_filling, "second")
    assert second.do(actors.accept_and_free, count) == 32 * MIB
    first.do(users.churn, 2 * MIB, 20)


def test_idle_memory_goes_to_who_needs_it_and_back(yard: Yard) -> None:
    rack = yard.rack("dram0:64MiB")
    first, second = yard.actor("first"), yard.actor("second")
    for _ in range(3):
        for one, other in ((first, second), (second, first)):
            assert one.do(users.fill_up, 2 * MIB) == 32  # all that there is
            refusal, _, free = other.do(users.errors_free, 2 * MIB, {})
            assert refusal == "RackMemoryError" and free == [("dram0", 0, 0)]
            one.do(users.free_all)
            other.do(users.churn, 16 * MIB, 2)
    for process in (first, second):
        process.do(users.churn, PAGE, 50)
        process.do(users.churn, 4 * MIB, 10)
    assert rack.audit() == []


def test_a_process_whose_memory_was_reclaimed_goes_on_allocating(yard: Yard) -> None:
    """It does not know, and need not: what it has cached is not there any more when it comes to use it."""
    rack = yard.rack("dram0:64MiB")
    victim, greedy = yard.actor("victim"), yard.actor("greedy")
    address = victim.do(actors.alloc, "kept", 3 * PAGE, 42)
    for nbytes in (PAGE, 3 * MIB, 32 * MIB):
        victim.do(users.churn, nbytes, 3)
    idle = victim.do(users.free_pages)
    assert idle * PAGE >= 32 * MIB
    assert (
        greedy.do(users.fill_up, 2 * MIB) == 31
    )  # all but the slab with the region that the victim has kept
    assert victim.do(users.free_pages) < 512
    assert victim.do(actors.values, "kept") == [42] and victim.do(actors.protection, address) == "rw-s"

    victim.do(users.churn, PAGE, 50)  # in what is left beside the region that it has kept
    greedy.do(users.free_all)
    for nbytes in (PAGE, 3 * MIB, 32 * MIB):
        victim.do(users.churn, nbytes, 3)
    assert victim.do(actors.values, "kept") == [42]
    assert rack.audit() == []


# --- addresses -------------------------------------------------------------------------------------------------


def test_addresses_run_out_while_memory_does_not(yard: Yard) -> None:
    rack = yard.rack("dram0:256GiB")  # a promise: only what is allocated is taken from the machine
    me = yard.attach("me")
    region = me.alloc(PAGE)
    region.array()[:] = 4
    before = me.table.holdings(me.id)
    with pytest.raises(bq.AddressSpaceFull) as caught:
        me.alloc(PROCESS_SPACE_BYTES)
    assert caught.type is bq.AddressSpaceFull
    assert "'me'" in str(caught.value) and "64 GiB" in str(caught.value)
    assert caught.value.free[0][0] == "dram0" and caught.value.free[0][1] > 128 << 30
    assert me.table.holdings(me.id) == before and bytes(memoryview(region)) == b"\x04" * PAGE
    me.alloc(32 * MIB).free()
    assert rack.audit() == []
    region.free()


# --- mappings: in processes that have hardly any left, so that a thousand grants suffice ------------------------


def test_mappings_run_out(yard: Yard) -> None:
    """Each page granted from between others costs its owner mappings; before the kernel has none left, we refuse."""
    rack = yard.rack("dram0:64MiB")
    giver, taker = yard.actor(None), yard.actor("taker")
    limit = giver.do(users.attach_with_few_mappings_left, "giver", 3000)
    assert 100 < limit < 2000
    pages = 2 * limit
    giver.do(users.split, pages)
    gone, why = giver.do(users.grant_every_other, "taker")
    assert limit // 4 <= gone <= limit
    assert "vm.max_map_count" in why

    # Nothing has changed by what was refused: not the region, not the books, not the right to try again.
    still_there = [number for number in range(pages) if number % 2 or number >= 2 * gone]
    for _ in range(3):
        assert giver.do(users.intact) == still_there
        with pytest.raises(bq.TooManyMappings):
            giver.do(users.grant_page, 2 * gone, "taker")
    assert taker.do(actors.accept_and_free, gone) == gone * PAGE
    assert taker.do(actors.depth) == 0
    assert rack.audit() == []

    giver.do(users.grant_odd_pages, "taker", 10)  # their neighbours have gone: each was a mapping of its own
    giver.do(users.grant_page, 2 * gone, "taker")
    assert taker.do(actors.accept_and_free, 11) == 11 * PAGE
    assert rack.audit() == []


def test_mappings_run_out_at_the_receiver(yard: Yard) -> None:
    """What cannot be opened for want of mappings stays in the inbox, and comes when there is room."""
    rack = yard.rack("dram0:64MiB")
    giver, taker = yard.actor("giver"), yard.actor(None)
    limit = taker.do(users.attach_with_few_mappings_left, "taker", 2400)
    giver.do(users.split, 2 * limit)
    gone, why = giver.do(users.grant_every_other, "taker")
    assert (gone, why) == (limit, "")
    got = taker.do(users.accept_while_possible, gone)
    assert limit // 4 <= got < gone
    for _ in range(3):
        with pytest.raises(bq.TooManyMappings):
            taker.do(actors.accept, "no")
        assert taker.do(actors.depth) == gone - got  # none is lost
    assert rack.audit() == []
    taker.do(users.free_all)
    assert taker.do(actors.accept_and_free, gone - got, DEADLINE) == (gone - got) * PAGE
    assert rack.audit() == []


def test_freeing_makes_room_for_mappings(yard: Yard) -> None:
    yard.rack("dram0:64MiB")
    giver, taker = yard.actor(None), yard.actor("taker")
    pages = 2 * giver.do(users.attach_with_few_mappings_left, "giver", 3000)
    giver.do(users.split, pages)
    gone, why = giver.do(users.grant_every_other, "taker")
    assert why
    assert taker.do(actors.accept_and_free, gone) == gone * PAGE
    giver.do(users.free_pages_left)
    giver.do(users.churn_small, pages * PAGE, 3)  # what it had at first: one region, one mapping


def test_mappings_run_out_in_the_middle_of_a_batch(yard: Yard) -> None:
    """A batch that cannot go for want of mappings goes back whole: each page is open to its owner as before."""
    rack = yard.rack("dram0:64MiB")
    giver, taker = yard.actor(None), yard.actor("taker")
    limit = giver.do(users.attach_with_few_mappings_left, "giver", 3000)
    giver.do(users.split, 2 * limit)
    why = giver.do(users.grant_many_at_once, "taker", limit)
    if "vm.max_map_count" not in why or taker.do(actors.depth) != 0 or rack.audit() != []:
        raise RuntimeError(f"the batch was not refused cleanly: {why}")
    try:
        left = giver.do(users.intact)
    except (EOFError, ConnectionResetError):
        left = f"touching its own memory ended the giver: {giver.wait()}"
    assert left == list(range(2 * limit))


def test_a_theft_is_found_out_when_there_are_mappings_again(yard: Yard) -> None:
    """What was stolen is forgotten by mapping over it, which the kernel may refuse."""
    yard.rack()
    thief, victim = yard.attach("thief"), yard.actor("victim")
    victim.do(actors.alloc, "region", 4 * PAGE, 1)
    victim_id = victim.do(actors.own_id)
    wanted = [(descriptor, word) for descriptor, word, _, _ in thief.table.stealable(victim_id)]
    assert len(thief.table.steal(wanted, victim_id, thief.id)) == 1
    assert victim.do(users.lose_while_short_of_mappings, "region") == ["TooManyMappings", "MemoryRevoked"]
