"""Section 3.1 of the paper, "Maintaining pointer semantics", sentence by sentence.

The pointers here are raw addresses in memory, followed by ctypes: a wrong one ends the process that follows it.
"""

from __future__ import annotations

import itertools
import random

import pytest

import actors
import bequest as bq
import paper_users
from bequest.ids import home_of
from bequest.limits import PROCESS_SPACE_BITS, WINDOW_BASE
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


def nodes_in(address: int, nbytes: int, count: int) -> list[int]:
    """Places for a list's nodes, scattered over all of a region."""
    places = range(address, address + nbytes, 2 * paper_users.POINTER)
    return random.Random(1).sample(places, count)


# --- the same address -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [PAGE, 16 * PAGE, 2 * MIB])
def test_absolute_pointers_still_lead_where_they_led(yard: Yard, rack: RackUnderTest, nbytes: int) -> None:
    """ "As reassigned memory pages may contain data structures with internal references, these pages must be attached
    to the same virtual address to prevent dangling pointers."
    """
    crew = [yard.actor(name) for name in ("a", "b", "c")]
    address = crew[0].do(actors.alloc, "it", nbytes)
    nodes = nodes_in(address, nbytes, 200)
    crew[0].do(paper_users.build_list, nodes)
    for actor, following in zip(crew, [*crew[1:], crew[0]], strict=True):  # all the way round
        actor.do(actors.grant, "it", following.name)
        assert following.do(actors.accept, "it")[0] == address
        assert following.do(paper_users.walk_list, nodes[0]) == list(range(200))


def test_pointers_between_regions_granted_one_by_one(yard: Yard, me: bq.Process) -> None:
    """The same holds "to prevent dangling pointers" from one region to another, whoever allocated them, in whatever
    order they arrive.
    """
    sender = yard.actor("sender")
    theirs = [sender.do(actors.alloc, f"{number}", PAGE) for number in range(8)]
    mine = [me.alloc(PAGE) for _ in range(8)]
    addresses = [address for pair in zip(theirs, (r.address for r in mine), strict=True) for address in pair]
    for region in mine:
        region.grant("sender")
    for number in range(8):
        sender.do(actors.accept, f"of me {number}")
    sender.do(paper_users.build_list, addresses)

    keys = [f"{number}" for number in range(8)] + [f"of me {number}" for number in range(8)]
    random.Random(2).shuffle(keys)
    for key in keys:
        sender.do(actors.grant, key, "me")
    regions = [me.accept(actors.DEADLINE) for _ in keys]
    assert paper_users.follow_links(addresses[0]) == list(range(16))
    for region in regions:
        region.free()


def test_a_part_keeps_its_address_too(yard: Yard, me: bq.Process) -> None:
    """ "these pages must be attached to the same virtual address": each page on its own account."""
    receiver = yard.actor("receiver")
    region = me.alloc(8 * PAGE)
    nodes = nodes_in(region.address + 3 * PAGE, 2 * PAGE, 50)
    paper_users.write_links(nodes)
    region[3 * PAGE : 5 * PAGE].grant("receiver")
    assert receiver.do(actors.accept, "part")[0] == region.address + 3 * PAGE
    assert receiver.do(paper_users.walk_list, nodes[0]) == list(range(50))
    for start, stop in region.remaining:
        region[start:stop].free()


# --- the identifier in the address ----------------------------------------------------------------------------


def test_the_top_bits_of_an_address_name_who_allocated_it(yard: Yard, rack: RackUnderTest) -> None:
    """ "we propose reserving a fixed number of bits of the virtual address to act as an identifier for the process that
    allocated the memory pages"
    """
    crew = [yard.actor(name) for name in ("a", "b", "c")]
    for actor, following in zip(crew, [*crew[1:], crew[0]], strict=True):
        for nbytes in (PAGE, 64 * PAGE, 2 * MIB):
            address = actor.do(actors.alloc, "it", nbytes)
            assert (address - WINDOW_BASE) >> PROCESS_SPACE_BITS == actor.id
            actor.do(actors.grant, "it", following.name)
            granted, *_ = following.do(actors.accept, "granted")
            assert home_of(granted) == actor.id != following.id  # for life, whoever owns it now
            following.do(actors.free, "granted")


def test_the_receiver_has_never_used_the_senders_addresses(yard: Yard, rack: RackUnderTest) -> None:
    """ "To avoid a situation in which the receiving process has already used the provided virtual addresses (which
    would create ambiguity)": both use as much memory as they like, then everything changes hands, and fits.
    """
    first, second = yard.actor("first"), yard.actor("second")
    spans = []
    for actor, value in ((first, 1), (second, 2)):
        for number in range(20):
            nbytes = PAGE * (1 + number % 3)
            spans.append((actor.do(actors.alloc, f"{number}", nbytes, value), nbytes))
    assert_disjoint(spans)
    for number in range(20):
        first.do(actors.grant, f"{number}", "second")
        second.do(actors.accept, f"of first {number}")
    for number in range(20):
        assert second.do(actors.values, f"{number}") == [2]
        assert second.do(actors.values, f"of first {number}") == [1]


# --- addresses in use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [PAGE, 2 * MIB])
def test_the_senders_addresses_stay_in_use(yard: Yard, me: bq.Process, nbytes: int) -> None:
    """ "As reassigned pages continue to use the same virtual address space, the sender OS marks the virtual address as
    being "in use" and prevents further allocations or mappings to it."
    """
    receiver = yard.actor("receiver")
    spans = []
    for number in range(20):
        region = me.alloc(nbytes)
        spans.append((region.address, nbytes))
        region.grant("receiver")
        receiver.do(actors.accept, f"{number}")
    assert_disjoint(spans)
    assert me.table.holdings(me.id)[1] == 0  # it owns nothing of it, and yet cannot have the addresses

    receiver.do(actors.free, "7")  # until the memory that bears them has come home
    seen = set()
    regions = []
    while spans[7][0] not in seen and len(regions) < 1000:
        regions.append(me.alloc(nbytes))
        seen.add(regions[-1].address)
    assert spans[7][0] in seen
    assert seen.isdisjoint(address for number, (address, _) in enumerate(spans) if number != 7)
    for region in regions:
        region.free()


def test_addresses_granted_away_count_as_used_up(yard: Yard) -> None:
    """ "the sender OS marks the virtual address as being "in use" and prevents further allocations or mappings to it":
    a process that owns nothing has no 64 GiB in one piece as long as 2 MiB of them are lent to another.
    """
    yard.rack("dram0:256GiB")  # a promise: only what is allocated is taken from the machine
    me, receiver = yard.attach("me"), yard.actor("receiver")
    region = me.alloc(2 * MIB)
    region.grant("receiver")
    receiver.do(actors.accept, "it")
    with pytest.raises(bq.AddressSpaceFull):
        me.alloc(1 << PROCESS_SPACE_BITS)
    me.alloc(2 * MIB).free()


def test_addresses_stay_in_use_after_the_death_of_who_allocated_them(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    """ "the virtual address [is] "in use"" as long as the memory is, even if its first owner is no more: nobody who
    comes after it gets its identifier, and the pointers stay good.
    """
    sender = yard.actor("sender")
    address = sender.do(actors.alloc, "it", PAGE)
    nodes = nodes_in(address, PAGE, 20)
    sender.do(paper_users.build_list, nodes)
    sender.do(actors.grant, "it", "me")
    region = me.accept(actors.DEADLINE)
    sender.kill()
    # Nothing is its own any more, but its addresses are in use:
    actors.until(lambda: rack.processes()["sender"].state == "gone", "the end of the sender's memory")
    for number in range(5):
        successor = yard.actor(f"successor-{number}")
        assert successor.id != home_of(address)
        assert home_of(successor.do(actors.alloc, "it", PAGE)) == successor.id
    assert paper_users.follow_links(nodes[0]) == list(range(20))
    region.free()


def assert_disjoint(spans: list[tuple[int, int]]) -> None:
    ordered = sorted(spans)
    for (start, nbytes), (following, _) in itertools.pairwise(ordered):
        assert start + nbytes <= following, f"{start:#x} + {nbytes} runs into {following:#x}"
