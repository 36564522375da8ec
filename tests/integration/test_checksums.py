"""Sealed memory: it can only be read, the element keeps its checksums, and what differs is named and fails.

Bits are flipped for real, behind the owner's back, in the element's own file.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import actors
import bequest as bq
import seal_users
from actors import until
from bequest.limits import PAGE_BYTES
from bequest.memory import seals
from bequest.wire import messages as wire
from losses import punch_out
from racks import MIB, RackUnderTest, Yard

pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends
HUGE = 2 * MIB


def flip(rack: RackUnderTest, address: int) -> None:
    reply = rack.connection.request(wire.FlipBit("dram0", address, os.urandom(16)))
    assert reply == wire.Done()


def filled(me: bq.Process, nbytes: int, seed: int = 1, **how: bool) -> bq.Region:
    region = me.alloc(nbytes, **how)
    memoryview(region)[:] = random.Random(seed).randbytes(nbytes)
    return region


def sealed(me: bq.Process, nbytes: int, **how: bool) -> bq.Region:
    region = filled(me, nbytes, **how)
    region.seal()
    return region


def page_of(address: int) -> int:
    return address // PAGE_BYTES * PAGE_BYTES


def kill(rack: RackUnderTest, role: str) -> None:
    """And waits for its successor."""
    before = rack.daemon(role)
    os.kill(before, signal.SIGKILL)
    until(lambda: rack.daemon(role) != before, f"the return of {role}")


def element(rack: RackUnderTest) -> wire.ElementUsage:
    return rack.elements()["dram0"].usage


def summed(rack: RackUnderTest, nbytes: int) -> None:
    """Waits until the element has summed so much by itself, without being asked to."""
    until(lambda: element(rack).summed_bytes >= nbytes, f"{nbytes} bytes to be summed")


# --- what a seal keeps from ----------------------------------------------------------------------------------------


def test_a_sealed_region_can_only_be_read(me: bq.Process) -> None:
    region = filled(me, 3 * PAGE_BYTES)
    before = bytes(region)
    region.seal()
    assert region.sealed and "sealed" in repr(region)
    assert bytes(region) == before and region.verify() == 3 * PAGE_BYTES
    with pytest.raises(TypeError, match="read-only"):
        memoryview(region)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        region.array()[0] = 1
    with pytest.raises(bq.RegionSealed, match="unseal"):
        bq.Heap.create(region)
    with pytest.raises(TypeError):
        ctypes.c_char.from_buffer(region)
    assert bytes(region) == before and region.verify() == 3 * PAGE_BYTES


def test_the_pages_themselves_are_closed_for_writing(rack: RackUnderTest, tmp_path: object) -> None:
    program = """if True:
        import bequest as bq, ctypes, sys
        with bq.connect(sys.argv[1]) as rack, rack.attach("careless") as me:
            region = me.alloc(4096)
            region.seal()
            assert ctypes.string_at(region.address, 4) == bytes(region)[:4]
            print("reads", flush=True)
            ctypes.memset(region.address, 1, 1)
            print("wrote", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(rack.directory)], capture_output=True, check=False
    )
    assert (done.stdout, done.returncode) == (b"reads\n", -signal.SIGSEGV)


def test_unsealed_it_can_be_written_to_and_is_nobodys_business(me: bq.Process, rack: RackUnderTest) -> None:
    region = sealed(me, HUGE)
    ((slab, *run),) = region._seals()
    assert me._links.ask_element(slab, wire.VerifyPages, *run) == wire.PagesVerified(HUGE, 0)
    region.unseal()
    region.unseal()  # does nothing
    assert me._links.ask_element(slab, wire.VerifyPages, *run) == wire.PagesVerified(0, HUGE)
    assert not region.sealed
    region.array()[:] = 3
    with pytest.raises(bq.NotSealed):
        region.verify()
    region.seal()
    assert region.verify() == HUGE
    ((slab, *run),) = region._seals()
    region.free()
    assert me._links.ask_element(slab, wire.VerifyPages, *run) == wire.PagesVerified(0, HUGE)


def test_it_is_not_sealed_under_a_view_nor_in_part(me: bq.Process) -> None:
    region = filled(me, 4 * PAGE_BYTES)
    view = memoryview(region)
    with pytest.raises(BufferError, match="sealed"):
        region.seal()
    view[0] = 1
    view.release()
    with pytest.raises(bq.BadSize, match="split"):
        region[:PAGE_BYTES].seal()
    region.seal()
    with pytest.raises(bq.BadSize, match="split"):
        region[:PAGE_BYTES].unseal()
    assert region[PAGE_BYTES : 3 * PAGE_BYTES].verify() == 2 * PAGE_BYTES
    region.unseal()
    region.array()[0] = 2


def test_nothing_else_is_done_with_it_while_it_is_being_sealed(
    me: bq.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By other threads, which run while the element is asked."""
    region = filled(me, 2 * PAGE_BYTES)
    mark = seals._mark

    def meanwhile(*arguments: Any) -> int:
        acts = (region.free, region.seal, lambda: region.split(PAGE_BYTES), lambda: region.grant("me"))
        for act in acts:
            with pytest.raises(BufferError):
                act()
        with memoryview(region) as view:
            assert view.readonly
        return mark(*arguments)

    monkeypatch.setattr(seals, "_mark", meanwhile)
    region.seal()
    assert region.views == 0 and region.verify() == 2 * PAGE_BYTES

    def unsealed(*arguments: Any) -> int:
        number = mark(*arguments)
        region.unseal()
        return number

    monkeypatch.setattr(seals, "_mark", unsealed)
    with pytest.raises(bq.RegionMoved, match="another thread"):
        region.seal()
    assert not region.sealed and region.views == 0
    memoryview(region)[0] = 1
    region.free()


def test_a_seal_that_fails_leaves_it_as_it_was(me: bq.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    region = filled(me, PAGE_BYTES)

    def refuses(*_: Any) -> int:
        raise bq.RackMemoryError("the memory element cannot keep checksums of it")

    monkeypatch.setattr(seals, "_mark", refuses)
    with pytest.raises(bq.RackMemoryError):
        region.seal()
    assert not region.sealed and region.views == 0
    memoryview(region)[0] = 1
    region.free()


def test_what_was_never_sealed_is_never_reported(me: bq.Process, rack: RackUnderTest) -> None:
    """Beside what is, in one slab; and what was freed while sealed, and is another's by now."""
    plain, kept, gone = (filled(me, PAGE_BYTES) for _ in range(3))
    kept.seal()
    gone.seal()
    place = gone.address
    gone.free()
    again = [me.alloc(PAGE_BYTES) for _ in range(64)]
    assert place in [region.address for region in again]
    rng = random.Random(2)
    for region in (plain, *again):
        memoryview(region)[:] = rng.randbytes(PAGE_BYTES)
    checked = element(rack).scrubbed_bytes
    until(lambda: element(rack).scrubbed_bytes > checked + PAGE_BYTES, "two rounds of the scrubber")
    assert element(rack).mismatched_bytes == 0
    assert kept.verify() == PAGE_BYTES and all(region.owned for region in again)
    memoryview(plain)[0] = 0
    with pytest.raises(bq.NotSealed):
        plain.verify()


# --- bit flips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nbytes", "page_bytes"), [(5 * PAGE_BYTES, PAGE_BYTES), (3 * HUGE - 100, HUGE)])
def test_verify_names_every_page_that_differs(
    me: bq.Process, rack: RackUnderTest, nbytes: int, page_bytes: int
) -> None:
    region = sealed(me, nbytes, huge=page_bytes == HUGE)
    summed(rack, nbytes)
    offsets = [number * page_bytes + number % 2 * (page_bytes - PAGE_BYTES) for number in range(3)]
    for offset in offsets:
        flip(rack, region.address + offset + 123)
    with pytest.raises(bq.ChecksumMismatch) as caught:
        region.verify()
    named = {at for start, length in caught.value.runs for at in range(start, start + length, PAGE_BYTES)}
    assert named == {region.address + offset for offset in offsets}
    assert caught.value.address == region.address and isinstance(caught.value, bq.MemoryFailure)
    until(lambda: element(rack).mismatched_bytes == 3 * PAGE_BYTES, "all of them to be taken away")
    with pytest.raises(bq.MemoryFailure):  # and no longer by their checksums alone
        region.array()[0]
    region.free()


@pytest.mark.parametrize("bit", range(3))
def test_one_bit_anywhere_is_found(me: bq.Process, rack: RackUnderTest, bit: int) -> None:
    """First byte, last, and one in the middle, of regions of odd sizes at odd pages."""
    pages = 1 + 2 * bit
    region = sealed(me, pages * PAGE_BYTES - 7 * bit)
    summed(rack, pages * PAGE_BYTES)
    address = region.address + (0, pages * PAGE_BYTES - 1, pages * PAGE_BYTES // 2)[bit]
    flip(rack, address)
    with pytest.raises(bq.ChecksumMismatch) as caught:
        region.verify()
    assert caught.value.runs == [(page_of(address), PAGE_BYTES)]


def test_the_scrubber_finds_it_unasked_and_the_owner_is_told(yard: Yard, rack: RackUnderTest) -> None:
    me, contact = yard.attach("me"), yard.attach("contact")
    events, calls = me.events, contact.events
    me.emergency_contacts(["contact"])
    region = sealed(me, 3 * PAGE_BYTES)
    summed(rack, 3 * PAGE_BYTES)
    address = region.address + PAGE_BYTES + 1
    flip(rack, address)
    told = events.get(20)
    assert isinstance(told, bq.MemoryFailed) and told.runs == ((page_of(address), PAGE_BYTES),)
    assert f"{page_of(address):#x}" in told.cause and "checksum" in told.cause
    called = calls.get(20)
    assert isinstance(called, bq.ContactCalled) and called.cause == told.cause
    with pytest.raises(bq.MemoryFailure):
        region.array()[PAGE_BYTES]
    until(lambda: element(rack).mismatched_bytes == PAGE_BYTES, "its element to report it")
    assert element(rack).scrubbed_bytes > 0
    assert rack.elements()["dram0"].failed == PAGE_BYTES


def test_memory_that_fails_for_another_reason_is_no_mismatch(me: bq.Process, rack: RackUnderTest) -> None:
    region = sealed(me, 2 * PAGE_BYTES)
    rack.connection.request(wire.BreakMemory("dram0", region.address, PAGE_BYTES))
    with pytest.raises(bq.MemoryFailure, match="gone") as caught:
        region.verify()
    assert not isinstance(caught.value, bq.ChecksumMismatch)


def test_pages_that_a_member_takes_away_differ(me: bq.Process, rack: RackUnderTest) -> None:
    region = sealed(me, 2 * PAGE_BYTES)
    summed(rack, 2 * PAGE_BYTES)
    punch_out(me, region, PAGE_BYTES, PAGE_BYTES)
    with pytest.raises(bq.ChecksumMismatch) as caught:
        region.verify()
    assert caught.value.runs == [(region.address + PAGE_BYTES, PAGE_BYTES)]


def test_a_seal_of_somebody_else_over_the_same_pages_is_not_ours(yard: Yard, rack: RackUnderTest) -> None:
    """A member of the group can void a seal, by asking for one; that is not taken for health."""
    me, other = yard.attach("me"), yard.attach("other")
    region = sealed(me, PAGE_BYTES)
    ((slab, offset, nbytes, _),) = region._seals()
    reply = other._links.ask_element(slab, wire.SealPages, offset, nbytes)
    assert isinstance(reply, wire.PagesSealed)
    with pytest.raises(bq.NotSealed, match="anew"):
        region.verify()
    flip(rack, region.address)
    checked = element(rack).scrubbed_bytes
    until(lambda: element(rack).scrubbed_bytes > checked, "a round of the scrubber")
    assert element(rack).mismatched_bytes == 0 and rack.elements()["dram0"].failed == 0
    region.seal()
    assert region.verify() == PAGE_BYTES


# --- where the memory goes -----------------------------------------------------------------------------------------


def test_a_seal_goes_along_with_a_grant_and_comes_back(yard: Yard, rack: RackUnderTest) -> None:
    me, peer = yard.attach("me"), yard.actor("peer")
    region = sealed(me, 4 * PAGE_BYTES)
    region[PAGE_BYTES : 2 * PAGE_BYTES].grant("peer")  # a part of it
    peer.do(actors.accept, "part")
    assert peer.do(seal_users.state, "part") == (True, PAGE_BYTES)
    peer.do(actors.grant, "part", "me")
    back = me.accept(5)
    assert back.sealed and back.verify() == PAGE_BYTES
    flip(rack, back.address)
    with pytest.raises(bq.ChecksumMismatch):
        back.verify()
    assert region[2 * PAGE_BYTES :].verify() == 2 * PAGE_BYTES  # what stayed is well


def test_splits_are_under_one_seal_and_are_merged_under_one_only(me: bq.Process, rack: RackUnderTest) -> None:
    left, middle, right = sealed(me, 6 * PAGE_BYTES).split(PAGE_BYTES, 3 * PAGE_BYTES)
    assert [part.sealed for part in (left, middle, right)] == [True] * 3
    assert [part.verify() for part in (left, middle, right)] == [PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES]
    left.unseal()
    memoryview(left)[0] = 1
    with pytest.raises(ValueError, match="seal"):
        left.merge(middle)
    joined = middle.merge(right)
    assert joined.verify() == 5 * PAGE_BYTES
    flip(rack, joined.address + 3 * PAGE_BYTES)
    with pytest.raises(bq.ChecksumMismatch):
        joined.verify()


def test_an_estate_is_verified(yard: Yard, rack: RackUnderTest) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    victim.do(seal_users.leave_sealed)
    victim.kill()
    with me.steal("victim") as estate:
        assert sorted((region.nbytes, region.sealed) for region in estate) == [
            (PAGE_BYTES, True), (2 * PAGE_BYTES, False), (3 * PAGE_BYTES, True),
        ]  # fmt: skip
        assert estate.verify() == 4 * PAGE_BYTES
        ours = {region.nbytes: region for region in estate}
        flips = [ours[PAGE_BYTES].address + 5, ours[3 * PAGE_BYTES].address + 2 * PAGE_BYTES]
        for address in (*flips, ours[2 * PAGE_BYTES].address):
            flip(rack, address)
        with pytest.raises(bq.ChecksumMismatch) as caught:
            estate.verify()
        assert sorted(caught.value.runs) == sorted((page_of(address), PAGE_BYTES) for address in flips)


def test_a_living_victims_seal_is_the_thiefs(yard: Yard, rack: RackUnderTest) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    victim.do(seal_users.leave_sealed)
    with me.steal("victim") as estate:
        assert estate.verify() == 4 * PAGE_BYTES
        for region in estate:
            if region.sealed:
                region.unseal()
            region.array()[:] = 1


def test_between_groups_a_slab_keeps_its_seal_and_a_copy_has_none(yard: Yard, rack: RackUnderTest) -> None:
    group = rack.connection.create_group("others")
    me, other = yard.attach("me"), yard.attach("other", group=group)
    whole, part = sealed(me, HUGE), sealed(me, PAGE_BYTES)
    assert whole.grant("other") == 0
    assert part.grant("other") == PAGE_BYTES
    moved, copied = other.accept(5), other.accept(5)
    assert moved.sealed and moved.verify() == HUGE
    assert not copied.sealed
    copied.array()[:] = 1
    flip(rack, moved.address + HUGE - 1)
    with pytest.raises(bq.ChecksumMismatch):
        moved.verify()
    del copied, moved


# --- daemons that die ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["dram0", "mmu"])
def test_seals_outlive_the_rack_s_daemons(yard: Yard, rack: RackUnderTest, role: str) -> None:
    me = yard.attach("me")
    early, late = sealed(me, 3 * PAGE_BYTES), filled(me, HUGE)
    assert early.verify() == 3 * PAGE_BYTES
    late.seal()
    kill(rack, role)  # before or after it was summed
    assert late.verify() == HUGE and early.verify() == 3 * PAGE_BYTES
    assert early.sealed and late.sealed
    flip(rack, early.address)
    flip(rack, late.address + PAGE_BYTES)
    for region, page in ((early, 0), (late, 1)):
        with pytest.raises(bq.ChecksumMismatch) as caught:
            region.verify()
        assert caught.value.runs == [(region.address + page * PAGE_BYTES, PAGE_BYTES)]
    until(lambda: rack.elements()["dram0"].failed == PAGE_BYTES + HUGE, "their memory to be taken away")


def test_it_is_sealed_or_not_while_servers_die(yard: Yard, rack: RackUnderTest) -> None:
    """Seals and verifications go on through the kills; none reports what is well."""
    me = yard.attach("me")
    regions = [filled(me, PAGE_BYTES * (1 + number % 3), seed=number) for number in range(30)]
    stopped = threading.Event()

    def kill_servers() -> None:
        while not stopped.is_set():
            os.kill(rack.daemon("dram0"), signal.SIGKILL)
            stopped.wait(0.6)

    killer = threading.Thread(target=kill_servers)
    killer.start()
    try:
        until_time = time.monotonic() + 3
        rounds = 0
        while time.monotonic() < until_time:
            for number, region in enumerate(regions):
                region.seal()
                assert region.verify() == PAGE_BYTES * (1 + number % 3)
                region.unseal()
                memoryview(region)[:8] = rounds.to_bytes(8, "little")
            rounds += 1
    finally:
        stopped.set()
        killer.join()
    assert rounds > 0 and rack.audit() == []
    assert element(rack).mismatched_bytes == 0
