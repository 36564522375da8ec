"""A victim that lives: its memory is fenced and stolen, it is told where it touches it, and it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

import actors
import bequest as bq
from bequest import _core
from losses import PAGE, close_from_outside, punch_out
from racks import MIB, Yard


@pytest.fixture
def fence() -> Iterator[int]:
    """What the agent holds of this process."""
    fd = _core.open_fence()
    yield fd
    os.close(fd)


def rob(me: bq.Process, thief: int, *regions: bq.Region) -> None:
    """What the Rack MMU does to the table, without the fence around it."""
    only = [(region.address, region.nbytes) for region in regions]
    wanted = [(descriptor, word) for descriptor, word, _, _ in me.table.stealable(me.id, only)]
    assert len(me.table.steal(wanted, me.id, thief)) == len(regions)


@pytest.mark.parametrize("nbytes", [4 * PAGE, 4 * MIB])
@pytest.mark.parametrize("reach", ["protect", "ptrace"])
def test_a_store_to_stolen_memory_raises_and_reaches_nobody(
    yard: Yard, me: bq.Process, fence: int, reach: str, nbytes: int
) -> None:
    thief = yard.actor("thief")
    thief_id = thief.do(actors.own_id)
    region, other = me.alloc(nbytes), me.alloc(nbytes)
    array, untouched = region.array(), other.array()
    array[:], untouched[:] = 5, 6
    if reach == "protect":
        _core.write_protect(fence, os.getpid(), [(region.address, max(nbytes, PAGE))])
    else:
        close_from_outside(region)
    rob(me, thief_id, region)
    thief.do(actors.adopt, "region", me.id, me.table.life(me.id)[1])
    thief.do(actors.fill, "region", 9)
    for _ in range(3):
        with pytest.raises(bq.MemoryRevoked) as caught:
            array[:] = 7
        assert caught.value.region is region
        assert caught.value.cause == "was stolen by 'thief'"
        assert "was stolen by 'thief'" in str(caught.value)
    assert thief.do(actors.values, "region") == [9]
    assert set(untouched) == {6}
    with pytest.raises(bq.MemoryRevoked):
        region.free()
    with pytest.raises(bq.MemoryRevoked):
        memoryview(region)
    assert region.remaining == []
    assert me.table.audit() == []
    del untouched
    other.free()


def test_a_handle_tells_without_a_touch(yard: Yard, me: bq.Process) -> None:
    thief = yard.actor("thief").do(actors.own_id)
    region = me.alloc(4 * PAGE)
    part = region[PAGE : 2 * PAGE]
    rob(me, thief, region)
    uses = (
        region.array,
        part.array,
        region.free,
        lambda: region.grant("thief"),
        lambda: part.grant(me.name),
    )
    for use in uses:
        with pytest.raises(bq.MemoryRevoked):
            use()
    assert not region.owned


def test_stolen_memory_that_is_granted_back_is_as_good_as_new(yard: Yard, me: bq.Process, fence: int) -> None:
    """The leftovers of the fence go, and so do scratch pages: the same addresses are mapped anew."""
    thief = yard.actor("thief")
    region = me.alloc(4 * MIB)
    array = region.array()
    array[:] = 5
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    rob(me, thief.do(actors.own_id), region)
    with pytest.raises(bq.MemoryRevoked):
        array[PAGE] = 1
    thief.do(actors.adopt, "region", me.id, me.table.life(me.id)[1])
    thief.do(actors.fill, "region", 9)
    thief.do(actors.grant, "region", "me")
    again = me.accept(timeout=actors.DEADLINE)
    assert again.address == region.address
    fresh = again.array()
    assert set(fresh) == {9}
    fresh[:] = 10
    assert set(fresh) == {10}
    del fresh, array
    again.grant("thief")
    thief.do(actors.accept, "again")
    assert thief.do(actors.values, "again") == [10]


def test_what_is_stolen_back_can_be_stored_to(yard: Yard, me: bq.Process, fence: int) -> None:
    """What a fence has left on it goes, though nothing of ours was touched or looked at since."""
    thief = yard.actor("thief")
    thief_id = thief.do(actors.own_id)
    region = me.alloc(4 * PAGE)
    region.array()[:] = 5
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    rob(me, thief_id, region)
    thief.do(actors.adopt, "region", me.id, me.table.life(me.id)[1])
    taken = [(descriptor, word) for descriptor, word, _, _ in me.table.stealable(thief_id)]
    assert len(me.table.steal(taken, thief_id, me.id)) == 1
    [again] = me._adopt(thief_id, me.table.life(thief_id)[1])
    again.array()[:] = 10
    assert again.address == region.address and set(again.array()) == {10}
    again.free()


def test_free_runs_at_home_are_mapped_anew_after_a_theft(yard: Yard, me: bq.Process, fence: int) -> None:
    """They are open to the process that allocated them, and a fence may have gone over them."""
    thief = yard.actor("thief").do(actors.own_id)
    kept, victim, freed = me.alloc(PAGE), me.alloc(PAGE), me.alloc(PAGE)
    kept.array()[:] = 3
    address = freed.address
    freed.array()[:] = 1
    freed.free()
    _core.write_protect(fence, os.getpid(), [(victim.address, 2 * PAGE)])
    assert address == victim.address + PAGE
    rob(me, thief, victim)
    again = me.alloc(PAGE)
    assert again.address == address
    again.array()[:] = 2
    assert set(again.array()) == {2}
    assert set(kept.array()) == {3}
    for region in (again, kept):
        region.free()


def test_a_part_that_was_not_stolen_stays(yard: Yard, me: bq.Process) -> None:
    thief = yard.actor("thief").do(actors.own_id)
    left, right = me.alloc(2 * PAGE).split(PAGE)
    right.array()[:] = 4
    rob(me, thief, left)
    with pytest.raises(bq.MemoryRevoked):
        left.array()
    assert set(right.array()) == {4}
    right.free()


def test_other_attachments_of_the_program_keep_their_memory(
    yard: Yard, me: bq.Process, rack: object, fence: int
) -> None:
    second = yard.attach("second")
    mine = second.alloc(4 * PAGE)
    mine.array()[:] = 8
    view = mine.array()
    region = me.alloc(4 * PAGE)
    rob(me, yard.actor("thief").do(actors.own_id), region)
    with pytest.raises(bq.MemoryRevoked):
        region.array()
    assert set(view) == {8}
    view[:] = 9
    assert set(mine.array()) == {9}
    del view
    mine.free()


def test_a_program_steals_from_itself(yard: Yard, me: bq.Process) -> None:
    second = yard.attach("second")
    region = me.alloc(4 * PAGE)
    old = region.array()
    old[:] = 8
    rob(me, second.id, region)
    [stolen] = second._adopt(me.id, me.table.life(me.id)[1])
    assert set(stolen.array()) == {8}
    with pytest.raises(bq.MemoryRevoked):
        memoryview(region)
    stolen.array()[:] = 9
    assert set(stolen.array()) == {9}
    with pytest.raises(BufferError, match="earlier region"):
        stolen.free()
    del old
    stolen.free()


def come_back(me: bq.Process, thief: actors.Actor, region: bq.Region) -> bq.Region:
    """Stolen, and given back."""
    rob(me, thief.do(actors.own_id), region)
    thief.do(actors.adopt, "region", me.id, me.table.life(me.id)[1])
    thief.do(actors.grant, "region", "me")
    return me.accept(timeout=actors.DEADLINE)


def test_old_views_of_what_has_come_back_borrow_it(yard: Yard, me: bq.Process) -> None:
    """There is one memory at an address: a view of what was there before would reach into another process."""
    thief = yard.actor("thief")
    region = me.alloc(4 * PAGE)
    old = region[PAGE : 2 * PAGE].array()
    again = come_back(me, thief, region)
    for use in (again.free, lambda: again.grant("thief"), lambda: again[PAGE:].grant("thief")):
        with pytest.raises(BufferError, match="1 view of an earlier region"):
            use()
    again[2 * PAGE :].grant("thief")
    del old
    again[: 2 * PAGE].grant("thief")
    assert not again.owned


def test_old_views_outlive_what_has_come_back(yard: Yard, me: bq.Process) -> None:
    thief = yard.actor("thief")
    region = me.alloc(4 * PAGE)
    old = region.array()
    again = come_back(me, thief, region)
    old[0] = 3
    again._free_when_dropped()
    del again
    for _ in range(2):
        with pytest.raises(bq.MemoryRevoked):
            old[0] = 1


def test_old_views_keep_their_addresses_from_being_allocated(yard: Yard, me: bq.Process) -> None:
    thief = yard.actor("thief")
    region = me.alloc(4 * PAGE)
    address, old = region.address, region.array()
    rob(me, thief.do(actors.own_id), region)
    thief.do(actors.adopt, "region", me.id, me.table.life(me.id)[1])
    thief.do(actors.free, "region")
    others = [me.alloc(4 * PAGE) for _ in range(8)]
    assert address not in [other.address for other in others]
    with pytest.raises(bq.MemoryRevoked):
        old[0] = 1
    del old
    for other in others:
        other.free()


def test_a_load_raises_soon_after_the_theft(yard: Yard, me: bq.Process, fence: int) -> None:
    """Write protection lets loads through; nothing of the library is used meanwhile."""
    thief = yard.actor("thief")
    thief_id = thief.do(actors.own_id)
    region, other = me.alloc(4 * MIB), me.alloc(PAGE)
    array, untouched = region.array(), other.array()
    array[:], untouched[:] = 5, 6
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    rob(me, thief_id, region)
    ends = time.monotonic() + actors.DEADLINE
    with pytest.raises(bq.MemoryRevoked, match="was stolen by 'thief'"):
        while time.monotonic() < ends:
            assert array[PAGE] == 5
    assert set(untouched) == {6}
    del untouched
    other.free()


def test_good_pages_of_a_region_that_failed_in_part_outlive_a_theft(
    yard: Yard, me: bq.Process, fence: int
) -> None:
    region, other = me.alloc(4 * PAGE), me.alloc(4 * PAGE)
    array = region.array()
    array[:] = 5
    _core.guard_missing(fence, os.getpid(), [(region.address, region.nbytes)])
    punch_out(me, region, PAGE, PAGE)
    with pytest.raises(bq.MemoryFailure):
        array[PAGE] = 1
    rob(me, yard.actor("thief").do(actors.own_id), other)
    with pytest.raises(bq.MemoryRevoked):
        other.array()
    assert set(array[:PAGE]) == {5}
    with pytest.raises(bq.MemoryFailure):
        array[PAGE] = 1
    del array
    region.free()


def test_two_threads_adopt_the_same_estate(
    yard: Yard, me: bq.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has the GIL while the other waits for a slab's file."""
    victim = yard.actor("victim")
    victim_id = victim.do(actors.own_id)
    victim.do(actors.alloc, "region", 4 * PAGE, 5)
    table = me.table
    wanted = [(descriptor, word) for descriptor, word, _, _ in table.stealable(victim_id)]
    table.steal(wanted, victim_id, me.id)
    faster: list[bq.Region] = []
    element_of = me._links._element_of

    def waits(slab: int) -> object:
        monkeypatch.setattr(me._links, "_element_of", element_of)
        faster.extend(me._adopt(victim_id, table.life(victim_id)[1]))
        return element_of(slab)

    monkeypatch.setattr(me._links, "_element_of", waits)
    assert me._adopt(victim_id, table.life(victim_id)[1]) == []
    [region] = faster
    assert set(region.array()) == {5}
    region.free()


def test_what_is_taken_back_is_what_was_surrendered(me: bq.Process) -> None:
    region = me.alloc(4 * PAGE)
    address = region.address
    descriptor, word = me._surrender(region)
    assert me.table.withdraw(descriptor, word)
    assert me.table.free_away(address, 4) == 4
    another = me.alloc(4 * PAGE)
    assert another.address == address
    me._take_back(region, descriptor, word)
    assert region.remaining == []
    another.free()


def test_memory_that_was_punched_out_under_a_guard_has_failed(me: bq.Process, fence: int) -> None:
    """A range that its element reports; the rest of the region can be saved through views that are there."""
    region = me.alloc(16 * PAGE)
    array = region.array()
    array[:] = 5
    _core.guard_missing(fence, os.getpid(), [(region.address, region.nbytes)])
    punch_out(me, region, 3 * PAGE, 2 * PAGE)
    with pytest.raises(bq.MemoryFailure) as caught:
        array.sum()
    assert caught.value.address == region.address + 3 * PAGE
    for page in range(16):
        if page in (3, 4):
            with pytest.raises(bq.MemoryFailure):
                array[page * PAGE] = 1
        else:
            assert set(array[page * PAGE : (page + 1) * PAGE]) == {5}
    with pytest.raises(bq.MemoryFailure):
        np.frombuffer(region)
    del array, caught
    region.free()
    assert me.table.audit() == []


def test_what_is_closed_without_a_theft_is_revoked_and_can_be_freed(me: bq.Process) -> None:
    region = me.alloc(4 * PAGE)
    array = region.array()
    close_from_outside(region)
    with pytest.raises(bq.MemoryRevoked) as caught:
        array[0] = 1
    assert caught.value.cause == "was fenced off for a theft"
    address = region.address
    del array
    region.free()
    again = me.alloc(4 * PAGE)
    assert again.address == address, "it is as good as new"
    again.array()[:] = 3
    assert set(again.array()) == {3}
    again.free()


def test_the_rest_of_a_fenced_region_is_still_known_when_another_was_stolen(
    yard: Yard, me: bq.Process
) -> None:
    """One thread may be in the middle of it while another takes stock: what it touches next is no stray address."""
    thief = yard.actor("thief").do(actors.own_id)
    region, other = me.alloc(4 * PAGE), me.alloc(PAGE)
    array = region.array()
    array[:] = 1
    close_from_outside(region)
    with pytest.raises(bq.MemoryRevoked):
        array[0] = 2
    rob(me, thief, other)
    with pytest.raises(bq.MemoryRevoked):
        other.array()
    for page in (1, 3):
        with pytest.raises(bq.MemoryRevoked):
            array[page * PAGE] = 2


def test_the_handle_of_an_earlier_loss_takes_no_later_one_along(yard: Yard, me: bq.Process) -> None:
    """The same addresses were lost twice; whoever has a view of them still gets an exception, not a signal."""
    thief = yard.actor("thief")
    thief_id, incarnation = thief.do(actors.own_id), me.table.life(me.id)[1]
    first = me.alloc(4 * PAGE)
    rob(me, thief_id, first)
    assert not first.owned
    thief.do(actors.adopt, "first", me.id, incarnation)
    thief.do(actors.free, "first")
    pages = []
    while not pages or pages[-1].address != first.address + PAGE:
        pages.append(me.alloc(PAGE))
    array = pages[-1].array()
    rob(me, thief_id, pages[-1])
    assert not pages[-1].owned
    del first
    with pytest.raises(bq.MemoryRevoked):
        array[1] = 1
    for page in pages[:-1]:
        page.free()
