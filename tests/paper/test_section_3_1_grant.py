"""Section 3.1 of the paper, "Memory reassignment": grants, sentence by sentence.

Real processes on a real rack; what they may touch is asked of the kernel, not of the library under test.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import actors
import bequest as bq
import paper_users
from bequest._core import STATE_FREE
from paper_users import CLOSED, OPEN, protection_in, who_may_touch
from racks import MIB, RackUnderTest, Yard

PAGE = 4096
SIZES = [PAGE, 16 * PAGE, 2 * MIB]


def extent_at(process: bq.Process, address: int) -> tuple[int, int]:
    """State and owner of the page, by the V2P table."""
    for slab, start, pages, *_ in process.table.slabs():
        if start <= address < start + pages * PAGE:
            for first, length, state, owner, _ in process.table.slab_extents(slab):
                if first <= address < first + length * PAGE:
                    return state, owner
    raise AssertionError(f"no slab holds {address:#x}")


# --- reassignment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_grant_moves_pages_between_v2p_mappings(yard: Yard, me: bq.Process, nbytes: int) -> None:
    """ "Memory is reassigned at page granularity by moving it from the V2P mapping of one process to another at the
    Rack MMU and invalidating any cached V2P mappings at compute elements."
    """
    receiver = yard.actor("receiver")
    region = me.alloc(nbytes)
    region.array()[:] = 77
    address = region.address
    assert extent_at(me, address)[1] == me.id
    held = me.table.holdings(me.id)[1]

    assert region.grant("receiver", tag=b"yours") == 0  # bytes copied
    assert not region.owned
    assert extent_at(me, address)[1] == receiver.id
    assert me.table.holdings(me.id)[1] == 0 and me.table.holdings(receiver.id)[1] == held
    assert receiver.do(actors.accept, "it") == (address, nbytes, b"yours", "me")
    assert receiver.do(actors.values, "it") == [77]


@pytest.mark.parametrize("nbytes", SIZES)
def test_the_senders_access_is_revoked(yard: Yard, me: bq.Process, nbytes: int) -> None:
    """ "Following this, the Rack MMU revokes access to those pages by modifying the page table entries at the source
    memory element"
    """
    receiver = yard.actor("receiver")
    region = me.alloc(nbytes)
    pages = [region.address, region.address + nbytes // 2 // PAGE * PAGE, region.address + nbytes - PAGE]
    assert {protection_in(os.getpid(), page) for page in pages} == {OPEN}
    region.grant("receiver")
    assert {protection_in(os.getpid(), page) for page in pages} == {CLOSED}
    for page in pages:
        assert who_may_touch([os.getpid(), receiver.pid], page) == []  # on its way, it is nobody's to touch
    receiver.do(actors.accept, "it")
    assert {protection_in(os.getpid(), page) for page in pages} == {CLOSED}
    assert {protection_in(receiver.pid, page) for page in pages} == {OPEN}


def test_only_the_pages_granted_are_revoked(yard: Yard, me: bq.Process) -> None:
    """ "Memory is reassigned at page granularity" """
    receiver = yard.actor("receiver")
    region = me.alloc(5 * PAGE)
    region.array()[:] = 9
    region[2 * PAGE : 3 * PAGE].grant("receiver")
    receiver.do(actors.accept, "page")
    seen = [protection_in(os.getpid(), region.address + page * PAGE) for page in range(5)]
    assert seen == [OPEN, OPEN, CLOSED, OPEN, OPEN]
    assert (
        bytes(memoryview(region[: 2 * PAGE])) == bytes(memoryview(region[3 * PAGE :])) == b"\x09" * 2 * PAGE
    )
    for start, stop in region.remaining:
        region[start:stop].free()


def test_granted_memory_is_like_newly_allocated_memory(yard: Yard, me: bq.Process) -> None:
    """ "the detached memory can then be attached to an existing process similar to newly allocated memory" """
    first, second = yard.actor("first"), yard.actor("second")
    region = me.alloc(4 * PAGE)
    address = region.address
    region.grant("first")
    first.do(actors.accept, "it")
    first.do(actors.fill, "it", 12)  # written,
    first.do(actors.grant_part, "it", 0, PAGE, "second")  # granted on, also in parts,
    assert second.do(actors.accept, "part")[:2] == (address, PAGE)
    assert second.do(actors.values, "part") == [12]
    second.do(actors.free, "part")  # and freed by whoever has it
    assert extent_at(me, address) == (STATE_FREE, me.id)
    assert extent_at(me, address + PAGE)[1] == first.id


@pytest.mark.root
@pytest.mark.parametrize("nbytes", SIZES)
def test_a_grant_gifts_the_very_pages(yard: Yard, me: bq.Process, nbytes: int) -> None:
    """ "the source initiates the transfer through a syscall similar to vmsplice() with the SPLICE_F_GIFT flag in Linux,
    thereby "gifting" the memory to the kernel": the page frames that the receiver has are those that the sender had.
    """
    receiver = yard.actor("receiver")
    region = me.alloc(nbytes)
    region.array()[:] = 1
    before = actors.frames(None, region.address, nbytes)  # type: ignore[arg-type]  # this process has no seat
    assert all(before) and len(set(before)) == nbytes // PAGE
    region.grant("receiver")
    address, *_ = receiver.do(actors.accept, "it")
    assert receiver.do(actors.values, "it") == [1]
    assert receiver.do(actors.frames, address, nbytes) == before


@pytest.mark.parametrize("touch", [actors.peek, actors.poke])
@pytest.mark.parametrize("nbytes", [PAGE, 2 * MIB])
def test_whoever_breaks_the_promise_dies(yard: Yard, me: bq.Process, nbytes: int, touch: object) -> None:
    """ "and promising to never access it again": who does so by a stale pointer is stopped by its hardware, and harms
    nobody.
    """
    sender = yard.actor("sender")
    address = sender.do(actors.alloc, "it", nbytes, 5)
    assert sender.do(actors.peek, address) == 5  # while it is the sender's, the same access is lawful
    sender.do(actors.grant, "it", "me")
    region = me.accept(actors.DEADLINE)
    sender.start(touch, address)
    assert sender.wait() == -signal.SIGSEGV
    assert bytes(memoryview(region)) == b"\x05" * nbytes
    region.free()


# --- notification ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [PAGE, 2 * MIB])
def test_the_recipient_is_told_when_the_reassignment_is_complete(
    yard: Yard, me: bq.Process, nbytes: int
) -> None:
    """ "After the reassignment at the Rack MMU and memory elements is complete, the source's OS notifies the
    recipient's OS of the changed page mappings via message passing": not once is the page still the sender's when the
    receiver hears of it.
    """
    rounds = 100 if nbytes == PAGE else 40  # all of them fit at once, should the receiver be slow
    receiver = yard.actor("receiver")
    receiver.start(paper_users.accept_and_look, os.getpid(), rounds)
    for _ in range(rounds):
        me.alloc(nbytes).grant("receiver")
    seen = receiver.result()
    # The sender may have it back, freed by the receiver, only after the look: so what is seen is never open.
    assert seen == [CLOSED] * rounds


def test_the_notice_wakes_the_recipient(yard: Yard, me: bq.Process) -> None:
    """ "which then notifies the destination process via signals" """
    receiver = yard.actor("receiver")
    receiver.start(actors.accept, "it")
    stat = Path(f"/proc/{receiver.pid}/stat")
    actors.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the receiver's sleep")
    assert receiver.is_busy()
    region = me.alloc(PAGE)
    address = region.address
    region.grant("receiver")
    assert receiver.result()[0] == address


# --- authority ------------------------------------------------------------------------------------------------


def test_a_process_gives_away_only_its_own_memory(yard: Yard, me: bq.Process) -> None:
    """ "It is clear in the context of grants that a process should have the authority to give away its own memory":
    and not memory that it has given away already.
    """
    receiver = yard.actor("receiver")
    region = me.alloc(PAGE)
    region.grant("receiver")
    receiver.do(actors.accept, "it")
    for again in ("receiver", "me"):
        with pytest.raises(bq.RegionMoved):
            region.grant(again)
    assert extent_at(me, region.address)[1] == receiver.id
    assert receiver.do(actors.depth) == 0


def test_trusted_processes_are_grouped(yard: Yard, rack: RackUnderTest) -> None:
    """ "One possibility is to group trusted processes together […] In such cases, a shared group secret […] may act as
    the capability": who does not show it, is not of the group.
    """
    group = rack.connection.create_group("trusted")
    first, second = yard.actor("first", group=group), yard.actor("second", group=group)
    with pytest.raises(bq.WrongSecret):
        rack.connection.attach("intruder", group=os.urandom(16))
    address = first.do(actors.alloc, "it", PAGE, 3)
    assert first.do(actors.grant, "it", "second") == 0
    assert second.do(actors.accept, "it")[0] == address
    assert {rack.processes()[name].group for name in ("first", "second")} == {"trusted"}
