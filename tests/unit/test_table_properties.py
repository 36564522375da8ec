"""Whatever a group does, every page has exactly one owner, and what was written is what is read.

Hypothesis drives the real native core, with real memory and no daemons: three processes (all in this operating-system
process, so that they share one window), and the acts of the Rack MMU. A model in a few lines knows of each page who
should own it; after every act the table is taken apart page by page and compared with it. The table's own audit is
asked too, and must agree. Every page carries a number, written when it was allocated, that must still be there
whenever somebody receives it: ownership moves, addresses and contents do not.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bequest import _core

PAGE = _core.PAGE_BYTES
IDS = (1, 2, 3)
SLAB_PAGES = 8
SLABS_EACH = 3
CAPACITY = 4  # messages that may wait in an inbox, so that some grants find it full
DONE, FULL, DEAD = 0, 1, 2  # GrantStatus

ids = st.sampled_from(IDS)
choices = st.integers(min_value=0, max_value=10**6)


def some_region(group: Group) -> bool:
    return any(group.handles.values())


def some_whole_region(group: Group) -> bool:
    return group.pick(0, whole=True) is not None


class Region(_core.RegionBase):
    """What the bindings hand out; the public face's class does more with it."""

    __slots__ = ()


@dataclass
class Handle:
    """A region as its process knows it: which pages of it are still there."""

    region: Region
    pages: list[int]  # addresses
    present: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.present = self.present or set(self.pages)

    @property
    def whole(self) -> bool:
        return len(self.present) == len(self.pages)

    def run(self, first: int, count: int) -> list[int]:
        """Up to `count` pages that are present and follow each other, beginning at the first present one from there."""
        start = next((i for i in range(first, len(self.pages)) if self.pages[i] in self.present), None)
        if start is None:
            return []
        held = itertools.takewhile(lambda page: page in self.present, self.pages[start : start + count])
        return list(held)

    def part(self, run: list[int]) -> Region:
        """The handle of these pages; the last one ends where the user's bytes end."""
        start = run[0] - self.pages[0]
        return self.region._part(start, min(start + len(run) * PAGE, self.region.nbytes))


@dataclass
class Slab:
    id: int
    home: int
    address: int
    file: int


class Group(RuleBasedStateMachine):
    """Three processes of one group, its table, and the model of both."""

    def __init__(self) -> None:
        super().__init__()
        self.table = _core.Table.create(1)
        self.slabs: dict[int, Slab] = {}
        self.slab_numbers = itertools.count(1)
        self.stamps = itertools.count(1)
        self.incarnations = dict.fromkeys(IDS, 0)
        self.processes: dict[int, _core.ProcessBase] = {}
        self.handles: dict[int, list[Handle]] = {}
        # The model: a page in neither is free, and belongs to the allocator at home.
        self.owner: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}
        self.stamp: dict[int, int] = {}
        self.kept: set[int] = set()  # pages that were allocated not to be stolen
        self.waiting: dict[int, deque[tuple[bytes, list[int]]]] = {}

    def teardown(self) -> None:
        for process in self.processes.values():
            process._leave(False)
        for slab in self.slabs.values():
            os.close(slab.file)

    # --- helpers -------------------------------------------------------------------------------------------

    def admit(self, id: int) -> None:
        self.incarnations[id] += 1
        self.table.admit(id, self.incarnations[id], os.getpid(), f"process-{id}")
        self.processes[id] = _core.ProcessBase(
            self.table, id, "a rack without daemons", self.open_slab, Region, 0.0
        )
        self.handles[id] = []
        self.waiting[id] = deque()

    def open_slab(self, slab: int) -> tuple[int, list[tuple[int, int]]]:
        return os.dup(self.slabs[slab].file), []

    def add_slab(self, home: int) -> bool:
        """At the lowest addresses that no slab of this home has, so that addresses are used again."""
        base = _core.WINDOW_BASE + (home << _core.PROCESS_SPACE_BITS)
        taken = {slab.address for slab in self.slabs.values()}
        places = (base + i * SLAB_PAGES * PAGE for i in range(SLABS_EACH))
        address = next((place for place in places if place not in taken), None)
        if address is None:
            return False
        number = next(self.slab_numbers)
        file = os.memfd_create("slab")
        os.ftruncate(file, SLAB_PAGES * PAGE)
        self.slabs[number] = Slab(number, home, address, file)
        assert self.table.add_slab(number, address, SLAB_PAGES, 0, False, home)
        return True

    def pages_of(self, slab: Slab) -> range:
        return range(slab.address, slab.address + SLAB_PAGES * PAGE, PAGE)

    def free_run(self, home: int) -> int:
        """The longest run of free pages that an allocator at home could have, merging all it can."""
        longest = 0
        for slab in self.slabs.values():
            if slab.home != home:
                continue
            free = [page not in self.owner and page not in self.in_flight for page in self.pages_of(slab)]
            longest = max([longest, *(len(list(run)) for is_free, run in itertools.groupby(free) if is_free)])
        return longest

    def write(self, handle: Handle) -> None:
        with memoryview(handle.region) as view:
            for i, page in enumerate(handle.pages):
                self.stamp[page] = next(self.stamps)
                view[i * PAGE : i * PAGE + 8] = self.stamp[page].to_bytes(8, "little")

    def read(self, handle: Handle) -> None:
        with memoryview(handle.region) as view:
            for i, page in enumerate(handle.pages):
                assert int.from_bytes(view[i * PAGE : i * PAGE + 8], "little") == self.stamp[page]

    def hold(self, id: int, region: Region, count: int) -> Handle:
        handle = Handle(region, [region.address + i * PAGE for i in range(count)])
        self.handles[id].append(handle)
        return handle

    def pick(self, choice: int, whole: bool = False) -> tuple[int, Handle] | None:
        fit = [(id, h) for id, handles in self.handles.items() for h in handles if h.whole or not whole]
        return fit[choice % len(fit)] if fit else None

    def gone(self, id: int, handle: Handle, pages: list[int]) -> None:
        for page in pages:
            del self.owner[page]
        handle.present -= set(pages)
        if not handle.present:
            self.handles[id].remove(handle)
            assert not handle.region.owned

    # --- acts of processes -----------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for id in IDS:
            self.admit(id)

    @rule(id=ids, pages=st.integers(1, 6), slack=st.integers(0, PAGE - 64), rarely=st.integers(0, 3))
    def alloc(self, id: int, pages: int, slack: int, rarely: int) -> None:
        if id not in self.processes:
            return
        stealable = rarely > 0
        region = self.processes[id]._alloc(pages * PAGE - slack, False, _core.ANY_ELEMENT, stealable)
        if region is None:
            assert self.free_run(id) < pages, "a run that is free was not found"
            if not self.add_slab(id):
                return
            region = self.processes[id]._alloc(pages * PAGE - slack, False, _core.ANY_ELEMENT, stealable)
        handle = self.hold(id, region, pages)
        for page in handle.pages:
            assert page not in self.owner
            assert page not in self.in_flight
            self.owner[page] = id
        (self.kept.difference_update if stealable else self.kept.update)(handle.pages)
        self.write(handle)

    @precondition(some_region)
    @rule(to=ids, choice=choices, first=st.integers(0, 5), count=st.integers(1, 6))
    def grant(self, to: int, choice: int, first: int, count: int) -> None:
        id, handle = self.pick(choice)
        if not (run := handle.run(first, count)):
            return
        tag = str(next(self.stamps)).encode()
        room = to in self.processes and len(self.waiting[to]) < CAPACITY
        status = self.processes[id]._grant(
            [handle.part(run)], 0, to, self.incarnations[to], tag, f"process-{to}", CAPACITY
        )
        if to not in self.processes:
            assert status == (DEAD, 0)
        elif not room:
            assert status == (FULL, 0)
        else:
            assert status == (DONE, 1)
            self.gone(id, handle, run)
            self.in_flight.update(dict.fromkeys(run, to))
            self.waiting[to].append((tag, run))

    @precondition(some_whole_region)
    @rule(to=ids, choice=choices, first=st.integers(0, 5), count=st.integers(1, 6))
    def act_while_viewed(self, to: int, choice: int, first: int, count: int) -> None:
        """Refused if any page of it is in the view, with nothing changed."""
        id, handle = self.pick(choice, whole=True)
        if not (run := handle.run(first, count)):
            return
        granted = ([handle.region], 0, to, self.incarnations[to], b"", "nobody", CAPACITY)
        with memoryview(handle.part(run)):
            with pytest.raises(BufferError, match="1 view"):
                self.processes[id]._grant(*granted)
            with pytest.raises(BufferError, match="1 view"):
                handle.region._free()
            with pytest.raises(BufferError, match="1 view"):
                handle.region._free_remaining()
            with pytest.raises(BufferError, match="1 view"):
                handle.region._split([PAGE])
            with pytest.raises(BufferError, match="1 view"):
                self.processes[id]._surrender(handle.region)
        assert handle.region.views == 0

    @rule(id=ids, limit=st.integers(1, 3))
    def accept(self, id: int, limit: int) -> None:
        if id not in self.processes:
            return
        for region in self.processes[id]._accept(id, limit, 0):
            tag, pages = self.waiting[id].popleft()
            assert region.tag == tag, "messages have changed their order"
            assert region.address == pages[0], "an address has changed"
            handle = self.hold(id, region, len(pages))
            for page in pages:
                del self.in_flight[page]
                self.owner[page] = id
            self.read(handle)

    @precondition(some_region)
    @rule(choice=choices, first=st.integers(0, 5), count=st.integers(1, 6))
    def free(self, choice: int, first: int, count: int) -> None:
        id, handle = self.pick(choice)
        if run := handle.run(first, count):
            assert handle.part(run)._free() == len(run) * PAGE
            self.gone(id, handle, run)

    @precondition(some_region)
    @rule(choice=choices)
    def free_the_rest(self, choice: int) -> None:
        id, handle = self.pick(choice)
        assert handle.region._free_remaining() == len(handle.present) * PAGE
        self.gone(id, handle, list(handle.present))

    @precondition(some_whole_region)
    @rule(choice=choices, at=st.integers(1, 5))
    def split(self, choice: int, at: int) -> None:
        id, handle = self.pick(choice, whole=True)
        if at >= len(handle.pages):
            return
        left, right = handle.region._split([at * PAGE])
        self.handles[id].remove(handle)
        assert not handle.region.owned
        assert (left.nbytes, right.nbytes) == (at * PAGE, handle.region.nbytes - at * PAGE)
        for region, count in ((left, at), (right, len(handle.pages) - at)):
            self.read(self.hold(id, region, count))

    @precondition(some_whole_region)
    @rule(choice=choices)
    def merge(self, choice: int) -> None:
        id, left = self.pick(choice, whole=True)
        end = left.pages[-1] + PAGE
        right = next((h for h in self.handles[id] if h.whole and h.pages[0] == end), None)
        if right is None or left.region.nbytes != len(left.pages) * PAGE:
            return
        if (left.pages[0] in self.kept) != (end in self.kept):
            with pytest.raises(ValueError, match="stealable"):
                left.region._merge(right.region)
            return
        if any(slab.address == end for slab in self.slabs.values()):
            with pytest.raises(ValueError, match="different slabs"):
                left.region._merge(right.region)
            return
        whole = left.region._merge(right.region)
        assert whole.nbytes == left.region.nbytes + right.region.nbytes
        self.handles[id].remove(left)
        self.handles[id].remove(right)
        self.read(self.hold(id, whole, len(left.pages) + len(right.pages)))

    # --- acts of the Rack MMU ----------------------------------------------------------------------------------

    @rule(choice=choices)
    def take_slab(self, choice: int) -> None:
        if not self.slabs:
            return
        slab = list(self.slabs.values())[choice % len(self.slabs)]
        idle = not any(page in self.owner or page in self.in_flight for page in self.pages_of(slab))
        assert self.table.slab_idle(slab.id) == idle
        assert (slab.id in self.table.idle_slabs()) == idle
        assert self.table.take_slab(slab.id) == idle
        if idle:
            os.close(slab.file)
            del self.slabs[slab.id]

    @precondition(some_whole_region)
    @rule(choice=choices, to=ids, fate=st.sampled_from(["restored", "freed", "delivered"]))
    def carry_away(self, choice: int, to: int, fate: str) -> None:
        """A region leaves for another group; it comes back to its owner, or home, or to somebody here in part."""
        id, handle = self.pick(choice, whole=True)
        descriptor, word = self.processes[id]._surrender(handle.region)
        assert self.table.withdraw(descriptor, word)
        assert not self.table.withdraw(descriptor, word)
        if fate == "restored" or to not in self.processes or len(self.waiting[to]) >= _core.INBOX_CELLS:
            self.table.restore(descriptor, word)
            self.processes[id]._take_back(handle.region, descriptor, word)
            self.read(handle)
            return
        first, *rest = handle.pages
        self.gone(id, handle, list(handle.pages))
        if fate == "delivered":
            tag = str(next(self.stamps)).encode()
            assert self.table.deliver_into(first, 1, PAGE, to, self.incarnations[to], id, tag)
            self.kept.discard(first)
            self.in_flight[first] = to
            self.waiting[to].append((tag, [first]))
        else:
            rest = handle.pages
        assert self.table.free_away(handle.pages[0], len(handle.pages)) == len(rest)

    @rule(id=ids, rarely=st.integers(0, 7))
    def die(self, id: int, rarely: int) -> None:
        if id not in self.processes or rarely > 0:
            return
        self.processes.pop(id)._leave(False)
        self.table.mark_dead(id)
        assert self.table.settle(id) == 0
        freed = [page for page, owner in {**self.owner, **self.in_flight}.items() if owner == id]
        assert self.table.release(id) == len(freed)
        for page in freed:
            self.owner.pop(page, None)
            self.in_flight.pop(page, None)
        del self.handles[id], self.waiting[id]
        assert self.table.settle(id) == self.table.release(id) == 0

    # --- thefts --------------------------------------------------------------------------------------------------

    def stolen(self, victim: int, thief: int, extents: list[tuple[int, int, int, int]]) -> None:
        """These extents, which are the victim's, are the thief's from now on, and it finds them, once."""
        regions = self.processes[thief]._adopt(victim, self.incarnations[victim])
        assert [region.address for region in regions] == [address for _, _, address, _ in extents]
        assert self.processes[thief]._adopt(victim, self.incarnations[victim]) == []
        for region, (_, _, address, count) in zip(regions, extents, strict=True):
            pages = [address + i * PAGE for i in range(count)]
            for page in pages:
                assert self.owner[page] == victim
                assert page not in self.kept
                self.owner[page] = thief
            self.read(self.hold(thief, region, count))

    def stealable(self, victim: int) -> list[tuple[int, int, int, int]]:
        """What the table lists, which is all that the model says."""
        listed = self.table.stealable(victim)
        pages = [address + i * PAGE for _, _, address, count in listed for i in range(count)]
        expected = [page for page, owner in self.owner.items() if owner == victim and page not in self.kept]
        assert sorted(expected) == pages
        return listed

    @rule(victim=ids, thief=ids, rarely=st.integers(0, 5))
    def die_and_be_robbed(self, victim: int, thief: int, rarely: int) -> None:
        """Another takes all, reads what had been sent to the dead, and leaves what is not to be stolen."""
        if victim not in self.processes or thief not in self.processes or thief == victim or rarely > 0:
            return
        self.processes.pop(victim)._leave(False)
        self.table.mark_dead(victim)
        assert self.table.settle(victim) == 0
        listed = self.stealable(victim)
        stolen = self.table.steal([extent[:2] for extent in listed], victim, thief)
        assert [extent[2:] for extent in stolen] == [extent[2:] for extent in listed]
        assert self.table.steal([extent[:2] for extent in listed], victim, thief) == []
        del self.handles[victim]
        self.stolen(victim, thief, stolen)
        self.inherit(victim, thief)
        left = [page for page, owner in self.owner.items() if owner == victim]
        assert self.table.release(victim) == len(left)
        for page in left:
            del self.owner[page]
        del self.waiting[victim]

    def inherit(self, dead: int, heir: int) -> None:
        process, incarnation = self.processes[heir], self.incarnations[dead]
        assert process._inherit(dead, incarnation, _core.INBOX_CELLS) == []
        assert self.table.name_heir(dead, heir)
        others = [id for id in self.processes if id != heir]
        assert not any(self.table.name_heir(dead, other) for other in others)
        for region in process._inherit(dead, incarnation, _core.INBOX_CELLS):
            tag, pages = self.waiting[dead].popleft()
            assert (region.tag, region.address) == (tag, pages[0])
            for page in pages:
                del self.in_flight[page]
                self.owner[page] = heir
            self.read(self.hold(heir, region, len(pages)))
        assert not self.waiting[dead]

    @precondition(some_region)
    @rule(victim=ids, thief=ids, choice=choices, part=st.booleans(), stale=st.booleans())
    def rob_the_living(self, victim: int, thief: int, choice: int, part: bool, stale: bool) -> None:
        """All that it has, or the extent that has one of its pages; also when its words have moved on meanwhile."""
        if victim not in self.processes or thief not in self.processes or thief == victim:
            return
        if not (listed := self.stealable(victim)):
            return
        if part:
            _, _, address, count = listed[choice % len(listed)]
            page = address + choice % count * PAGE
            listed = self.table.stealable(victim, [(page, 1)])
            assert [extent[2:] for extent in listed] == [(address, count)]
        before = self.table.revocations(victim)
        if stale:
            assert self.table.steal([(d, word - 1) for d, word, _, _ in listed], victim, thief) == []
        stolen = self.table.steal([extent[:2] for extent in listed], victim, thief)
        assert len(stolen) == len(listed)
        assert self.table.revocations(victim) > before
        gone = {address + i * PAGE for _, _, address, count in stolen for i in range(count)}
        for handle in list(self.handles[victim]):
            handle.present -= gone
            if not handle.present:
                self.handles[victim].remove(handle)
        self.stolen(victim, thief, stolen)

    @precondition(lambda self: len(self.processes) < len(IDS))
    @rule()
    def bear_ids_anew(self) -> None:
        """An id goes to another process when nothing bears it: no page, no slab at its addresses."""
        for id in IDS:
            homes = {slab.home for slab in self.slabs.values()}
            if id not in self.processes and id not in homes and self.table.holdings(id) == (0, 0, 0):
                self.table.vacate(id)
                self.admit(id)

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def every_page_has_its_one_owner(self) -> None:
        found: dict[int, tuple[int, int]] = {}
        for number, address, pages, _, _, home in self.table.slabs():
            assert (address, pages, home) == (self.slabs[number].address, SLAB_PAGES, self.slabs[number].home)
            for start, count, state, owner, _ in self.table.slab_extents(number):
                for page in range(start, start + count * PAGE, PAGE):
                    assert page not in found, f"page {page:#x} has two owners"
                    found[page] = (state, owner)
        expected: dict[int, tuple[int, int]] = {}
        for slab in self.slabs.values():
            for page in self.pages_of(slab):
                expected[page] = (_core.STATE_FREE, slab.home)
        expected |= {page: (_core.STATE_OWNED, owner) for page, owner in self.owner.items()}
        expected |= {page: (_core.STATE_IN_FLIGHT, owner) for page, owner in self.in_flight.items()}
        assert found == expected
        assert self.table.audit() == []

    @invariant()
    def handles_know_what_they_hold(self) -> None:
        for id, handles in self.handles.items():
            held = [page for handle in handles for page in handle.present]
            assert sorted(held) == sorted(page for page, owner in self.owner.items() if owner == id)
            assert all(handle.region.owned == handle.whole for handle in handles)

    @invariant()
    def counts_agree(self) -> None:
        for id in IDS:
            mine = [page for page, owner in {**self.owner, **self.in_flight}.items() if owner == id]
            assert self.table.holdings(id)[1] == len(mine)
            assert self.table.inbox_depth(id) == len(self.waiting.get(id, ()))


@pytest.mark.slow
def test_ownership_is_a_partition_whatever_happens() -> None:
    run_state_machine_as_test(
        Group,
        settings=settings(
            max_examples=80,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
