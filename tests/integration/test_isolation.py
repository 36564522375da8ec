"""docs/explanation/isolation.md, sentence by sentence: what a hostile process can do, and what it cannot.

What it can do is shown as well, so that the page stays honest: a test that fails here because something has become
impossible is good news, and the page is to be changed.
"""

from __future__ import annotations

import random
import signal

import pytest

import actors
import bequest as bq
import isolation_users as hostile
from actors import until
from bequest.limits import SECRET_BYTES
from racks import MIB, RackUnderTest, Yard

PAGE = 4096
SLAB = 2 * MIB


@pytest.fixture
def red(rack: RackUnderTest) -> bq.Group:
    return rack.connection.create_group("red")


@pytest.fixture
def blue(rack: RackUnderTest) -> bq.Group:
    return rack.connection.create_group("blue")


def only_slab(rack: RackUnderTest, group: bq.Group) -> int:
    [slab] = [slab.slab for slab in rack.slabs() if slab.group == group.name]
    return slab


# --- a member of your own group ------------------------------------------------------------------------------


def test_a_buggy_member_cannot_touch_what_it_granted_away(yard: Yard, rack: RackUnderTest) -> None:
    buggy, mate = yard.actor("buggy"), yard.actor("mate")
    address = buggy.do(actors.alloc, "region", PAGE, 5)
    buggy.do(actors.grant, "region", "mate")
    mate.do(actors.accept, "region")
    buggy.start(actors.poke, address)
    assert buggy.wait() == -signal.SIGSEGV
    assert mate.do(actors.values, "region") == [5]


def test_a_hostile_member_can_open_any_page_of_its_group(yard: Yard, rack: RackUnderTest) -> None:
    enemy, mate = yard.actor("enemy"), yard.actor("mate")
    address = enemy.do(actors.alloc, "region", PAGE, 5)
    enemy.do(actors.grant, "region", "mate")
    mate.do(actors.accept, "region")
    mate.do(actors.fill, "region", 6)
    assert enemy.do(hostile.force_open, address, 66) == 6
    assert mate.do(actors.values, "region") == [6, 66]


def test_a_hostile_member_can_cut_memory_off_which_kills_nobody(yard: Yard, rack: RackUnderTest) -> None:
    enemy, mate = yard.actor("enemy"), yard.actor("mate")
    address = mate.do(actors.alloc, "region", PAGE, 5)
    enemy.do(hostile.cut_slab_at, address)
    with pytest.raises(bq.MemoryFailure):
        mate.do(actors.values, "region")
    other = mate.do(actors.alloc, "other", SLAB, 6)
    assert other != address
    assert mate.do(actors.values, "other") == [6]


def test_a_hostile_member_can_keep_a_slab_after_it_has_detached(
    yard: Yard, rack: RackUnderTest, red: bq.Group
) -> None:
    mate = yard.actor("mate", group=red)
    mate.do(actors.alloc, "region", SLAB, 5)
    enemy = yard.actor("enemy", group=red)
    enemy.do(hostile.keep_slab, only_slab(rack, red))
    enemy.do(hostile.detach_and_keep)
    mate.do(actors.fill, "region", 6)
    assert enemy.do(hostile.bytes_in_kept) == [6]
    assert rack.audit() == []


# --- a member of another group -------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [SLAB, PAGE])
def test_fresh_memory_never_shows_what_another_group_had(yard: Yard, nbytes: int) -> None:
    """On an element with room for little, so that there is no other memory to give out."""
    rack = yard.rack("dram0:4MiB", orphan_keep=0.1)
    red, blue = rack.connection.create_group("red"), rack.connection.create_group("blue")
    for value, group in ((1, red), (2, blue), (3, red)):
        member = yard.actor(f"member-{value}", rack, group)
        for key in ("a", "b") if nbytes == SLAB else ("a",):
            address = member.do(hostile.fresh, key, nbytes)
            shown = set(member.do(hostile.all_around, address))
            assert shown <= ({0} if value < 3 else {0, 1}), "zeros, or what its own group left"
            member.do(actors.fill, key, value)
        assert member.close() == 0
        until(lambda: rack.used_bytes() == 0, "the return of its memory")


def test_a_wrong_secret_joins_nothing_and_changes_nothing(
    yard: Yard, rack: RackUnderTest, red: bq.Group, blue: bq.Group
) -> None:
    member, stranger = yard.actor("member", group=red), yard.actor("stranger", group=blue)
    member.do(actors.alloc, "region", PAGE, 5)
    before = {name: (one.id, one.state, one.group) for name, one in rack.processes().items()}
    flipped = bytes([red.secret[0] ^ 1]) + red.secret[1:]
    for secret in (flipped, red.secret[::-1], bytes(SECRET_BYTES), random.Random(1).randbytes(SECRET_BYTES)):
        with pytest.raises(bq.WrongSecret):
            rack.connection.attach("intruder", group=secret)
        with pytest.raises(bq.WrongSecret):
            stranger.do(hostile.join, "intruder", secret)
    for secret in (b"", red.secret[:-1], red.secret + b"\0"):
        with pytest.raises(bq.WrongSecret):
            stranger.do(hostile.join, "intruder", secret)
    assert {name: (one.id, one.state, one.group) for name, one in rack.processes().items()} == before
    assert member.do(actors.values, "region") == [5]
    assert rack.audit() == []
    yard.actor("intruder", group=red)  # the name was not used up, and the right secret opens


def test_a_stranger_can_see_who_is_there_and_use_up_the_memory(
    yard: Yard, rack: RackUnderTest, red: bq.Group, blue: bq.Group
) -> None:
    member, stranger = yard.actor("member", group=red), yard.actor("stranger", group=blue)
    assert {"member", "stranger"} <= rack.processes().keys()
    stranger.do(actors.alloc, "all of it", 256 * MIB)
    with pytest.raises(bq.RackMemoryError):
        member.do(actors.alloc, "region", PAGE)
    stranger.do(actors.free, "all of it")
    member.do(actors.alloc, "region", PAGE)


# --- grants between groups -----------------------------------------------------------------------------------


def test_an_old_member_that_kept_a_slab_can_read_and_write_it_after_it_moved(
    yard: Yard, rack: RackUnderTest, red: bq.Group, blue: bq.Group
) -> None:
    """The exception that the page warns of; and its limits: it cannot get it anew, and has nothing of what follows."""
    enemy, receiver = yard.actor("enemy", group=red), yard.actor("receiver", group=blue)
    address = enemy.do(actors.alloc, "region", SLAB, 5)
    slab = only_slab(rack, red)
    enemy.do(hostile.keep_slab, slab)
    assert enemy.do(actors.grant, "region", "receiver") == 0
    assert receiver.do(actors.accept, "region")[:2] == (address, SLAB)
    receiver.do(actors.fill, "region", 6)

    assert enemy.do(hostile.bytes_in_kept) == [6], "it reads what is the other group's"
    enemy.do(hostile.write_kept, 0, b"\x42")
    assert receiver.do(actors.values, "region") == [6, 0x42], "and writes it"

    with pytest.raises(bq.BequestError):
        enemy.do(hostile.reopen, slab)
    receiver.do(actors.free, "region")
    until(lambda: rack.slabs() == [], "the end of the slab")
    for key in "abcd":  # slabs that might be made of the same memory, if it were recycled
        receiver.do(actors.alloc, key, SLAB, 7)
    assert 7 not in enemy.do(hostile.bytes_in_kept), "what has been in two groups is never given out again"
    enemy.do(hostile.write_kept, 0, bytes([0x43]) * SLAB)
    assert [receiver.do(actors.values, key) for key in "abcd"] == [[7]] * 4


def test_an_old_member_has_nothing_of_a_part_that_was_copied(
    yard: Yard, rack: RackUnderTest, red: bq.Group, blue: bq.Group
) -> None:
    enemy, receiver = yard.actor("enemy", group=red), yard.actor("receiver", group=blue)
    address = enemy.do(actors.alloc, "region", 3 * PAGE, 5)
    enemy.do(hostile.keep_slab, only_slab(rack, red))
    assert 5 in enemy.do(hostile.bytes_in_kept)
    assert enemy.do(actors.grant, "region", "receiver") == 3 * PAGE
    assert receiver.do(actors.accept, "region")[:2] == (address, 3 * PAGE)
    until(lambda: enemy.do(hostile.bytes_in_kept) == [0], "the source's being wiped")
    receiver.do(actors.fill, "region", 6)
    assert enemy.do(hostile.bytes_in_kept) == [0]
    enemy.do(hostile.write_kept, 0, bytes([0x42]) * SLAB)
    assert receiver.do(actors.values, "region") == [6]


def test_a_copy_takes_nothing_along_that_was_not_granted(
    yard: Yard, rack: RackUnderTest, red: bq.Group, blue: bq.Group
) -> None:
    """A region on huge pages takes up more than its size; what lies behind it is what its group had there before."""
    giver, receiver = yard.actor("giver", group=red), yard.actor("receiver", group=blue)
    before = giver.do(actors.alloc, "before", SLAB, 9)
    giver.do(actors.free, "before")
    address = giver.do(actors.alloc, "region", SLAB - 64 * PAGE, 5)
    assert address == before
    assert giver.do(hostile.all_around, address) == [5, 9]
    assert giver.do(actors.grant_part, "region", PAGE, SLAB - 64 * PAGE, "receiver") == SLAB - 65 * PAGE
    assert receiver.do(actors.accept, "region")[:2] == (address + PAGE, SLAB - 65 * PAGE)
    assert receiver.do(actors.values, "region") == [5]
    assert 9 not in receiver.do(hostile.all_around, address + PAGE)
    assert rack.audit() == []
