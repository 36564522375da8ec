"""Section 2 of the paper, "DDC architecture and resource allocation", sentence by sentence.

Real processes on a real rack; what they may touch is asked of the kernel, not of the library under test.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing

import pytest

import actors
import bequest as bq
from bequest._core import STATE_OWNED
from bequest.ids import home_of, space_of
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire
from paper_users import OPEN, protection_in, who_may_touch
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


def owned_extents(process: bq.Process) -> list[int]:
    """By the V2P table: who owns each run of pages that somebody owns, by address."""
    extents = sorted(run for slab, *_ in process.table.slabs() for run in process.table.slab_extents(slab))
    return [owner for _, _, state, owner, _ in extents if state == STATE_OWNED]


def owners(process: bq.Process) -> dict[int, int]:
    """By the V2P table: for each page that somebody owns, its address and the owner's id."""
    found = {}
    for slab, *_ in process.table.slabs():
        for address, pages, state, owner, _ in process.table.slab_extents(slab):
            if state == STATE_OWNED:
                found |= {address + page * PAGE: owner for page in range(pages)}
    return found


@pytest.fixture
def two_elements(yard: Yard) -> RackUnderTest:
    return yard.rack("large:128MiB", "small:64MiB")


# --- compute and memory elements ------------------------------------------------------------------------------


def test_memory_elements_are_servers_of_their_own(two_elements: RackUnderTest) -> None:
    """ "Figure 1 […] has three core components: individual blades with compute elements and memory elements,
    connected over a low-latency programmable resource interconnect."
    """
    daemons = two_elements.daemons()
    assert len(set(daemons.values())) == len(daemons) == 5
    assert sorted(two_elements.elements()) == ["large", "small"]
    assert "mmu" in daemons


# --- resource partitioning and allocation ---------------------------------------------------------------------


def test_processes_share_an_element_but_never_a_region(yard: Yard, rack: RackUnderTest) -> None:
    """ "processes may share the same memory element but not the same memory regions (i.e., there is no shared
    memory)"
    """
    crew = [yard.actor(name) for name in ("a", "b", "c")]
    for actor in crew:
        actor.do(actors.alloc, "own", 2 * PAGE, actor.id)
        actor.do(actors.alloc, "to the next", 2 * PAGE, actor.id)
    for actor, following in zip(crew, [*crew[1:], crew[0]], strict=True):
        actor.do(actors.grant, "to the next", following.name)
    for actor in crew:
        actor.do(actors.accept, "from before")
    assert list(rack.elements()) == ["dram0"]

    pid_of = {actor.id: actor.pid for actor in crew}
    owner_of = owners(yard.attach("onlooker"))
    assert len(owner_of) == 3 * 4
    for page, owner in owner_of.items():
        assert who_may_touch(list(pid_of.values()), page) == [pid_of[owner]]


def test_all_threads_of_a_process_are_on_one_compute_element(yard: Yard) -> None:
    """ "compute elements can host multiple processes, but all the threads of a process are restricted to a single
    compute element"
    """
    rack = yard.rack(compute=("host0", "host1"))
    me = yard.attach("me")
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(bq.current().compute)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {me.compute}
    assert rack.processes()["me"].compute == me.compute


def test_the_rack_mmu_picks_the_compute_element(yard: Yard) -> None:
    """ "The Rack MMU is responsible for placement decisions for processes and picks compute and memory elements on
    the basis of some bin-packing policy"
    """
    rack = yard.rack(compute=("host0", "host1"))
    for name in "abcd":
        yard.actor(name)
    placed = sorted(process.compute for process in rack.processes().values())
    assert placed == ["host0", "host0", "host1", "host1"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # 128 and 64 MiB free; 40 + 40 + 16 MiB are wanted
        ("best-fit", ["small", "large", "small"]),  # the fullest into which it still fits
        ("worst-fit", ["large", "large", "small"]),  # the emptiest
        ("spread", ["large", "small", "large"]),  # the one that holds least of this process
    ],
)
def test_the_rack_mmu_picks_memory_elements_by_bin_packing(
    yard: Yard, policy: str, expected: list[str]
) -> None:
    """ "The Rack MMU […] picks compute and memory elements on the basis of some bin-packing policy" """
    rack = yard.rack("large:128MiB", "small:64MiB", policy=policy)
    me = yard.attach("me")
    regions = [me.alloc(size * MIB) for size in (40, 40, 16)]
    element_of = {slab.address: slab.element for slab in rack.slabs()}
    assert [element_of[region.address] for region in regions] == expected
    for region in regions:
        region.free()


def test_memory_is_allocated_in_pages(me: bq.Process) -> None:
    """ "Memory is allocated at a page-sized granularity based on the architecture of the compute and memory
    elements."
    """
    for nbytes, pages in [(1, 1), (PAGE - 1, 1), (PAGE, 1), (PAGE + 1, 2), (10 * PAGE, 10)]:
        with me.alloc(nbytes) as region:
            assert me.table.holdings(me.id)[1] == pages
            assert region.address % PAGE == 0 and region.nbytes == nbytes


# --- addressing and access control ----------------------------------------------------------------------------


def test_a_contiguous_private_address_space_over_several_elements(
    yard: Yard, two_elements: RackUnderTest
) -> None:
    """ "Processes expect to see a contiguous private virtual address space, regardless of the physical layout of the
    underlying memory."
    """
    me, other = yard.attach("me"), yard.actor("other")
    regions = [me.alloc(2 * MIB, element=element) for element in ("large", "small", "large")]
    starts = sorted(region.address for region in regions)
    assert starts == [starts[0] + step * 2 * MIB for step in range(3)]  # no gap, on two elements by turns

    start, end = space_of(me.id)
    assert start <= starts[0] and starts[-1] + 2 * MIB <= end
    theirs = other.do(actors.alloc, "theirs", 2 * MIB)
    assert not start <= theirs < end
    for region in regions:
        region.free()


def test_the_v2p_table_says_what_the_kernel_does(yard: Yard, me: bq.Process) -> None:
    """ "the Rack MMU stores a virtual-to-physical (V2P) mapping for each process, which resembles a traditional page
    table. Compute elements look up these mappings (and may cache them locally)"
    """
    other = yard.actor("other")
    region = me.alloc(16 * PAGE)
    for page in (1, 2, 7, 15):
        region[page * PAGE : (page + 1) * PAGE].grant("other")
        other.do(actors.accept, f"page {page}")
    owner_of = owners(me)
    for page in range(16):
        address = region.address + page * PAGE
        owner = os.getpid() if owner_of[address] == me.id else other.pid
        assert owner == (other.pid if page in (1, 2, 7, 15) else os.getpid())
        assert who_may_touch([os.getpid(), other.pid], address) == [owner]
    for start, stop in region.remaining:
        region[start:stop].free()


def test_the_v2p_table_maps_individual_pages(yard: Yard, me: bq.Process) -> None:
    """ "While we expect the V2P table to be relatively coarse-grained to preserve Rack MMU memory, it needs to support
    mapping individual pages for memory reassignment."
    """
    other = yard.actor("other")
    for huge in (False, True):
        region = me.alloc(512 * PAGE, huge=huge)
        region.array()[:] = 3
        assert owned_extents(me) == [me.id]  # coarse: one entry, however large
        region[100 * PAGE : 101 * PAGE].grant("other")
        assert other.do(actors.accept, "page")[:2] == (region.address + 100 * PAGE, PAGE)
        assert owned_extents(me) == [me.id, other.id, me.id]
        assert [me.table.holdings(who)[1] for who in (me.id, other.id)] == [511, 1]  # pages
        assert other.do(actors.values, "page") == [3]
        other.do(actors.free, "page")
        for start, stop in region.remaining:
            region[start:stop].free()


def test_memory_elements_enforce_access_locally(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    """ "It also configures the page tables at the memory elements with the process identifier (effectively the CR3),
    the virtual address, and the appropriate permissions, enabling local enforcement at the memory elements."
    """
    with me.alloc(PAGE), closing(Channel.connect(rack.directory / "element-dram0.sock")) as element:
        [slab, *_] = [slab.slab for slab in rack.slabs()]
        stranger = yard.attach("stranger", group=rack.connection.create_group("others"))
        wrong = [bytes(16), os.urandom(16), b"", b"x", stranger._links.attached.element_ticket]
        for ticket in wrong:
            with pytest.raises(bq.BequestError):
                element.request(wire.OpenSlab(ticket, slab))
        ticket = me._links.attached.element_ticket
        with pytest.raises(bq.BequestError):
            element.request(wire.OpenSlab(ticket, slab + 1_000_000))  # a slab that is none
        reply, fds = element.request(wire.OpenSlab(ticket, slab))  # the right one opens it
        assert isinstance(reply, wire.SlabOpened) and len(fds) == 1
        os.close(fds[0])


def test_a_process_of_another_group_has_no_mapping_at_all(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    """ "the Rack MMU ensures that the topology of the interconnect allows for the existence of a path between the
    corresponding compute and memory elements": and where no memory was allocated, there is no path.
    """
    stranger = yard.actor("stranger", group=rack.connection.create_group("others"))
    member = yard.actor("member")
    region = me.alloc(PAGE)
    region.array()[:] = 5
    assert protection_in(os.getpid(), region.address) == OPEN
    for other in (stranger, member):
        assert protection_in(other.pid, region.address) == "---p"  # reserved addresses, no memory behind them
        assert home_of(region.address) == me.id
    region.free()
