"""Memory elements, and memory as the kernel sees it: where it lies, who can touch it, and when it is used up."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import actors
import bequest as bq
from bequest.errors import BadConfig
from bequest.runtime.config import make_config
from racks import MIB, RackUnderTest, Yard

PAGE = 4096
SLAB = 2 * MIB
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends


def elements_of(rack: RackUnderTest, region: bq.Region) -> str:
    """The memory element that holds a region."""
    return next(s.element for s in rack.slabs() if s.address <= region.address < s.address + s.pages * PAGE)


# --- placement -----------------------------------------------------------------------------------------------


def test_placement_is_chosen_per_allocation_by_hint_or_by_name(yard: Yard) -> None:
    rack = yard.rack("small:64MiB", "large:128MiB")
    me = yard.attach("me")

    def placed(**how: str) -> str:
        region = me.alloc(16 * MIB, **how)
        kept.append(region)
        return elements_of(rack, region)

    kept: list[bq.Region] = []
    assert placed() == "small", "best fit is the rack's policy by default: the fullest into which it fits"
    assert placed(placement="worst-fit") == "large"
    assert placed(placement="best-fit") == "small"
    assert placed(placement="spread") == "large", "the one that holds least of this process"
    assert placed(element="large") == "large"
    assert placed(element="small") == "small"
    assert rack.audit() == []
    for region in kept:
        region.array()[:] = 1
        region.free()


def test_the_racks_policy_counts_where_no_hint_is_given(yard: Yard) -> None:
    rack = yard.rack("a:64MiB", "b:64MiB", policy="spread")
    me = yard.attach("me")
    regions = [me.alloc(8 * MIB) for _ in range(4)]
    assert [elements_of(rack, region) for region in regions] == ["a", "b", "a", "b"]


def test_memory_at_hand_serves_an_element_only_if_it_is_of_that_element(yard: Yard) -> None:
    rack = yard.rack("a:64MiB", "b:64MiB")
    me = yard.attach("me")
    for element in ("a", "b", "a", "b"):
        for size in (PAGE, SLAB):
            region = me.alloc(size, element=element)
            assert elements_of(rack, region) == element
            region.free()


def test_one_element_full_does_not_matter_while_another_has_room(yard: Yard) -> None:
    rack = yard.rack("a:32MiB", "b:32MiB")
    me = yard.attach("me")
    regions = []
    with pytest.raises(bq.RackMemoryError) as caught:
        while True:
            regions.append(me.alloc(8 * MIB))
    assert {elements_of(rack, region) for region in regions} == {"a", "b"} and len(regions) >= 7
    assert [name for name, _, _ in caught.value.free] == ["a", "b"]
    assert all(largest < 8 * MIB for _, _, largest in caught.value.free)
    with pytest.raises(bq.RackMemoryError, match="at a "):
        me.alloc(8 * MIB, element="a")


def test_idle_memory_of_others_is_reclaimed_under_pressure(yard: Yard) -> None:
    """What a process has freed stays at hand for it, until somebody else needs it; what it owns does not move."""
    rack = yard.rack("dram0:64MiB")
    me, hoarder = yard.attach("me"), yard.actor("hoarder")
    hoarder.do(actors.alloc, "kept", PAGE, 7)
    for number in range(5):
        hoarder.do(actors.alloc, f"large {number}", 8 * MIB)
    for number in range(5):
        hoarder.do(actors.free, f"large {number}")
    assert rack.processes()["hoarder"].free_bytes >= 40 * MIB
    region = me.alloc(48 * MIB)
    region.array()[:] = 1
    assert hoarder.do(actors.values, "kept") == [7]
    assert rack.audit() == []
    with pytest.raises(bq.RackMemoryError):
        hoarder.do(actors.alloc, "large", 32 * MIB)
    region.free()
    hoarder.do(actors.alloc, "large", 32 * MIB, 5)  # and back again, at addresses that it had mapped before
    assert hoarder.do(actors.values, "large") == [5]
    assert rack.audit() == []


def test_memory_that_was_reclaimed_is_given_back_by_who_had_it_mapped(yard: Yard) -> None:
    """An element of 64 MiB never costs the machine more, though everybody keeps mapped what they once used."""
    yard.rack("dram0:64MiB")
    users = [yard.actor(f"user-{number}") for number in range(3)]
    for _ in range(2):
        for user in users:
            user.do(actors.alloc, "region", 48 * MIB, 7)
            user.do(actors.free, "region")
            assert 48 * MIB <= sum(other.do(actors.window_bytes) for other in users) <= 66 * MIB


# --- kinds ---------------------------------------------------------------------------------------------------


def test_an_element_in_files_leaves_none_behind(yard: Yard, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.mkdir()
    try:
        os.close(os.open(backing, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("the file system of the temporary directory has no unnamed files")
    rack = yard.rack("dram0:32MiB", f"disk0:32MiB:file:{backing}")
    me, peer = yard.attach("me"), yard.actor("peer")
    for size in (PAGE, SLAB):
        region = me.alloc(size, element="disk0")
        region.array()[:] = 7
        address = region.address
        assert elements_of(rack, region) == "disk0"
        assert str(backing) in "".join(
            line for line in Path("/proc/self/maps").read_text().splitlines() if contains(line, address)
        )
        region.grant("peer")
        assert peer.do(actors.accept, "region")[0] == address
        assert peer.do(actors.values, "region") == [7]
        peer.do(actors.free, "region")
    assert list(backing.iterdir()) == []
    assert rack.audit() == []


def contains(line: str, address: int) -> bool:
    start, end = (int(bound, 16) for bound in line.split(maxsplit=1)[0].split("-"))
    return start <= address < end


def test_an_element_of_reserved_huge_pages_says_when_there_are_none() -> None:
    reserved = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("HugePages_Total")
    )
    with pytest.raises(BadConfig, match=r"vm\.nr_hugepages"):
        make_config(memory=[f"huge0:{(reserved + 1) * 2}MiB:huge"])


def test_elements_that_cannot_be(tmp_path: Path) -> None:
    for text in (
        "dram0:1MiB",
        "dram0",
        "dram0:x",
        f"d:4MiB:file:{tmp_path}/none",
        "d:4MiB:tape",
        "a/b:4MiB",
        ":4MiB",
    ):
        with pytest.raises(bq.BequestError):
            make_config(memory=[text])
    with pytest.raises(bq.BequestError):
        make_config(memory=["same:4MiB", "same:4MiB"])


# --- limits --------------------------------------------------------------------------------------------------


def test_the_addresses_of_a_process_are_used_up(yard: Yard, tmp_path: Path) -> None:
    """64 GiB of addresses: used up by huge sparse files, for nobody has the memory to do it honestly."""
    rack = yard.rack("dram0:256MiB")
    me = yard.attach("me")
    region = me.alloc(PAGE)
    region.array()[:] = 7
    with pytest.raises(bq.AddressSpaceFull) as caught:
        me.alloc((1 << 36) + 1)
    assert caught.value.free and "64 GiB" in str(caught.value)
    assert region.array()[0] == 7 and rack.audit() == []


def test_too_many_mappings_are_told_before_the_kernel_tells(yard: Yard) -> None:
    """Every other page granted away makes two mappings of one. At the limit: a clear error, nothing lost, a way out."""
    rack = yard.rack("dram0:512MiB")
    me, peer = yard.attach("me"), yard.actor("peer")
    _, limit = me.mappings
    if limit > 200_000:
        pytest.skip(f"vm.max_map_count allows {limit} more mappings: it would take too long to use them up")
    pages = limit + 2000
    region = me.alloc(pages * PAGE, huge=False)
    parts = region.split(*range(PAGE, pages * PAGE, PAGE))
    away = parts[1::2]
    peer.start(actors.accept_and_free, pages)
    with pytest.raises(bq.TooManyMappings, match=r"vm\.max_map_count"):
        for start in range(0, len(away), 500):
            me.grant_all(away[start : start + 500], "peer")
    used, limit = me.mappings
    assert limit - 2000 < used <= limit
    assert len(Path("/proc/self/maps").read_text().splitlines()) < 65_530
    away = [part for part in away if part.owned]
    for part in away[:500]:
        part.array()[:1] = 1  # those that could not be closed are open
    assert me.table.audit() == []

    while used + 2 <= limit:  # up to the very last
        away.pop(0).grant("peer")
        used, limit = me.mappings
    stranger = yard.actor("stranger", group=rack.connection.create_group("strangers"))
    stuck = away[-2]  # a neighbour on either side is open
    acts = (
        lambda: stuck.grant("peer"),
        lambda: stuck.grant("stranger"),
        lambda: me.grant_all(away[:5], "peer"),
        lambda: me.grant_all(
            [parts[0], stuck, away[0]], "peer"
        ),  # room for two of them, until they are opened again
    )
    for act in acts:
        with pytest.raises(bq.TooManyMappings):
            act()
        assert all(part.owned for part in (stuck, parts[0], *away[:5]))
        for part in (stuck, parts[0], *away[:5]):
            part.array()[:] = 5
    assert me.table.audit() == []

    for part in parts[0:200:2]:  # what lies alone makes fewer mappings when it goes
        part.grant("peer")
    stuck.grant("stranger")
    stranger.do(actors.accept, "region")
    assert stranger.do(actors.values, "region") == [5]
    me.detach()  # with tens of thousands of regions, and without a hitch
    peer.kill()
    assert rack.audit() == []


# --- as the kernel sees it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [PAGE, 64 * PAGE, SLAB, 16 * MIB])
def test_protections_are_flipped(yard: Yard, rack: RackUnderTest, nbytes: int) -> None:
    """Granted pages are closed in the sender, open in the receiver, and mapped in both all the while."""
    a, b = yard.actor("a"), yard.actor("b")
    address = a.do(actors.alloc, "region", nbytes, 7)
    last = address + nbytes - 1
    for sender, receiver in ((a, b), (b, a), (a, b)):
        assert {sender.do(actors.protection, place) for place in (address, last)} == {"rw-s"}
        sender.do(actors.grant, "region", receiver.name)
        assert {sender.do(actors.protection, place) for place in (address, last)} == {"---s"}
        assert receiver.do(actors.protection, address)[:3] == "---", "not before it accepts"
        receiver.do(actors.accept, "region")
        assert {receiver.do(actors.protection, place) for place in (address, last)} == {"rw-s"}
        assert receiver.do(actors.values, "region") == [7]


@pytest.mark.parametrize("act", ["peek", "poke"])
@pytest.mark.parametrize("how", ["granted", "accepted", "freed"])
def test_touching_a_page_that_one_gave_away_is_deadly(
    yard: Yard, rack: RackUnderTest, act: str, how: str
) -> None:
    victim, peer = yard.actor("victim"), yard.actor("peer")
    if how == "freed":  # to another's home; at one's own it stays open, for the next allocation
        address = peer.do(actors.alloc, "region", 3 * PAGE, 7)
        peer.do(actors.grant, "region", "victim")
        victim.do(actors.accept, "region")
        victim.do(actors.free, "region")
    else:
        address = victim.do(actors.alloc, "region", 3 * PAGE, 7)
        victim.do(actors.grant, "region", "peer")
    if how == "accepted":
        peer.do(actors.accept, "region")
    victim.start(getattr(actors, act), address + PAGE)
    assert victim.wait() == -signal.SIGSEGV
    if how == "granted":
        peer.do(actors.accept, "region")
    if how != "freed":
        assert peer.do(actors.values, "region") == [7]
    assert rack.audit() == []


def test_only_the_pages_of_the_part_are_closed(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    yard.actor("peer")
    region = me.alloc(5 * PAGE)
    region[PAGE : 3 * PAGE].grant("peer")
    flags = [actors.protection_of(region.address + number * PAGE) for number in range(5)]
    assert flags == ["rw-s", "---s", "---s", "rw-s", "rw-s"]
    region[3 * PAGE :].array()[:] = 1


@pytest.mark.root
@pytest.mark.parametrize("nbytes", [64 * PAGE, 8 * MIB])
def test_the_page_frames_are_the_same_before_and_after(yard: Yard, rack: RackUnderTest, nbytes: int) -> None:
    """The physical proof that nothing is copied: /proc/PID/pagemap shows the same frames in both processes."""
    a, b = yard.actor("a"), yard.actor("b")
    address = a.do(actors.alloc, "region", nbytes, 7)
    before = a.do(actors.frames, address, nbytes)
    assert len(set(before)) == nbytes // PAGE and 0 not in before
    a.do(actors.grant, "region", "b")
    b.do(actors.accept, "region")
    assert b.do(actors.values, "region") == [7]
    assert b.do(actors.frames, address, nbytes) == before
    b.do(actors.grant, "region", "a")
    a.do(actors.accept, "region")
    a.do(actors.fill, "region", 8)
    assert a.do(actors.frames, address, nbytes) == before


def test_a_grant_makes_no_process_grow(yard: Yard, rack: RackUnderTest) -> None:
    """Back and forth, 32 MiB a time: neither resident memory nor the element's grows with the number of grants."""
    a, b = yard.actor("a"), yard.actor("b")
    a.do(actors.alloc, "region", 32 * MIB, 7)
    for _ in range(2):  # both have it mapped, and their page tables, then
        for sender, receiver in ((a, b), (b, a)):
            sender.do(actors.grant, "region", receiver.name)
            receiver.do(actors.accept, "region")
            assert receiver.do(actors.values, "region") == [7]
    before = [actor.do(actors.resident_bytes) for actor in (a, b)], rack.used_bytes()
    for _ in range(10):
        for sender, receiver in ((a, b), (b, a)):
            sender.do(actors.grant, "region", receiver.name)
            receiver.do(actors.accept, "region")
            receiver.do(actors.fill, "region", 9)
    after = [actor.do(actors.resident_bytes) for actor in (a, b)], rack.used_bytes()
    assert after[1] == before[1]
    for grown, was in zip(after[0], before[0], strict=True):
        assert grown - was < 4 * MIB


def test_large_regions_lie_on_huge_pages_and_small_ones_do_not(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    large, small = me.alloc(4 * MIB), me.alloc(MIB - 1)
    chosen, refused = me.alloc(PAGE, huge=True), me.alloc(4 * MIB, huge=False)
    huge = {slab.address: slab.huge for slab in rack.slabs()}

    def is_huge(region: bq.Region) -> bool:
        return next(flag for start, flag in sorted(huge.items(), reverse=True) if start <= region.address)

    assert [is_huge(region) for region in (large, small, chosen, refused)] == [True, False, True, False]
    assert large.address % SLAB == chosen.address % SLAB == 0
    assert (chosen.nbytes, small.nbytes) == (PAGE, MIB - 1)


def test_packed_regions_share_large_pages_and_waste_nothing(me: bq.Process) -> None:
    size = SLAB + PAGE
    me.alloc(8 * SLAB).free()  # room for all of them
    before, first, second, behind = (me.alloc(size, packed=True) for _ in range(4))
    start = before.address
    assert [region.address - start for region in (first, second, behind)] == [size, 2 * size, 3 * size]
    before.array()[:], behind.array()[:] = 1, 2
    first.free()
    second.free()
    # One of them lies in the hole, where a large page begins.
    others = [me.alloc(SLAB, huge=True) for _ in range(4)]
    assert start + 2 * SLAB in {region.address for region in others}
    for region in others:
        assert region.address % SLAB == 0
        region.array()[:] = 3
    assert (before.array() == 1).all()
    assert (behind.array() == 2).all()
    assert me.table.audit() == []


def test_no_two_regions_overlap(me: bq.Process) -> None:
    """Allocations of all sizes in both kinds, freed in a scrambled order: contents stay apart."""
    random = np.random.default_rng(seed := int.from_bytes(os.urandom(4), "little"))
    print(f"seed {seed}")
    regions: dict[int, bq.Region] = {}
    for number in range(600):
        if regions and random.random() < 0.45:
            key = list(regions)[random.integers(len(regions))]
            region = regions.pop(key)
            assert np.all(region.array("u4") == key), f"region {key}"
            region.free()
        size = int(random.choice([4, 100, 5000, 70_000, 1 << 20, 3 << 20])) // 4 * 4
        with contextlib.suppress(bq.RackMemoryError):
            regions[number] = me.alloc(size, packed=bool(random.random() < 0.5))
            regions[number].array("u4")[:] = number
    for key, region in regions.items():
        assert np.all(region.array("u4") == key)
    assert me.table.audit() == []
    regions.clear()
    del region
    gc.collect()
    assert me.table.holdings(me.id)[1] == 0
