"""Grants between groups: what moves, what is copied, and that every address has one owner in the whole rack."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from bequest.sim.fake_shard import IN_FLIGHT, MMU, OWNED, PAGE, FakeShard
from bequest.wire import messages as wire
from rack_in_a_box import MIB, Box

SLAB_PAGES = 512


class TwoGroups:
    """A process in each of two groups; the first has a slab of 4 MiB, all of it one region."""

    def __init__(self, **changes: object) -> None:
        self.box = Box(**changes)
        self.giver_peer, self.giver = self.box.attach("giver")
        self.taker_peer, self.taker = self.box.attach("taker", uid=0)
        self.source = self.box.shards[self.giver.group]
        self.target = self.box.shards[self.taker.group]
        ready = self.box.ask(self.giver_peer, wire.NeedSlab(2 * SLAB_PAGES))
        assert isinstance(ready, wire.SlabReady)
        self.slab = ready.slab
        self.address = self.source.records[self.slab][0]

    def grant(self, descriptor: int) -> wire.Message | None:
        message = wire.CrossGrant(
            descriptor, self.source.word(descriptor), self.taker.pid, self.taker.incarnation, b"tag"
        )
        return self.box.ask(self.giver_peer, message)

    def grant_back(self, descriptor: int) -> wire.Message | None:
        message = wire.CrossGrant(
            descriptor, self.target.word(descriptor), self.giver.pid, self.giver.incarnation
        )
        return self.box.ask(self.taker_peer, message)

    def said(self, kind: type[wire.Message]) -> list[wire.Message]:
        return [message for message in self.box.to_elements if isinstance(message, kind)]


def test_a_whole_slab_moves_without_a_copy() -> None:
    world = TwoGroups()
    region = world.source.own(world.giver.pid, world.address, 2 * SLAB_PAGES)
    assert world.grant(region) == wire.CrossGranted(0)
    assert world.source.records == {}
    assert list(world.target.records) == [world.slab]
    assert world.said(wire.RegroupSlab) == [wire.RegroupSlab(world.slab, world.taker.group)]
    assert world.said(wire.CopyPages) == []
    received = world.target.accept(world.taker.pid)
    assert world.target.extents[received].address == world.address
    world.box.check()


def test_a_part_is_copied_at_its_address_and_punched_at_the_source() -> None:
    world = TwoGroups()
    part = world.source.own(world.giver.pid, world.address + 8 * PAGE, 4)
    assert world.grant(part) == wire.CrossGranted(4 * PAGE)
    (copy,) = world.said(wire.CopyPages)
    assert isinstance(copy, wire.CopyPages)
    assert (copy.source_offset, copy.target_offset, copy.nbytes) == (8 * PAGE, 0, 4 * PAGE)
    assert world.said(wire.PunchPages) == [wire.PunchPages(2, world.slab, 8 * PAGE, 4 * PAGE)]
    assert world.source.extents[part].owner == MMU
    received = world.target.accept(world.taker.pid)
    assert world.target.extents[received].address == world.address + 8 * PAGE
    world.box.check()


def test_when_the_copy_has_ended_its_address_comes_home() -> None:
    world = TwoGroups()
    part = world.source.own(world.giver.pid, world.address, 4)
    world.grant(part)
    world.target.free(world.target.accept(world.taker.pid))
    world.box.pass_time(2)
    assert world.target.records == {}
    assert world.source.holdings(MMU) == (0, 0, 0)
    assert world.source.own(world.giver.pid, world.address, 4)  # it can be allocated again
    world.box.check()


def test_a_part_that_comes_back_fills_the_hole_it_left() -> None:
    world = TwoGroups()
    part = world.source.own(world.giver.pid, world.address, 4)
    world.grant(part)
    received = world.target.accept(world.taker.pid)
    assert world.grant_back(received) == wire.CrossGranted(4 * PAGE)
    back = world.source.accept(world.giver.pid)
    assert world.source.extents[back].slab == world.slab
    world.box.pass_time(2)
    assert world.target.records == {}
    assert world.source.extents[back].owner == world.giver.pid
    world.box.check()


class LatePunches:
    """The element has yet to punch what it was told to."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.obey = box._obey
        self.jobs: list[int] = []
        box._obey = self.hold

    def hold(self, element: int, message: wire.Message) -> None:
        if isinstance(message, wire.PunchPages):
            self.jobs.append(message.job)
        else:
            self.obey(element, message)

    def punch(self) -> None:
        for job in self.jobs:
            self.box.do(self.box.mmu.element_message(0, wire.PagesPunched(job)))
        self.jobs = []


def test_nothing_comes_back_into_a_hole_that_is_yet_to_be_punched() -> None:
    """It would be punched out with it."""
    world = TwoGroups()
    late = LatePunches(world.box)
    assert world.grant(world.source.own(world.giver.pid, world.address, 4)) == wire.CrossGranted(4 * PAGE)
    assert world.grant_back(world.target.accept(world.taker.pid)) is None
    assert len(world.said(wire.CopyPages)) == 1
    late.punch()
    assert world.box.replies[world.taker_peer][-1] == wire.CrossGranted(4 * PAGE)
    assert len(world.said(wire.CopyPages)) == 2


def test_no_address_comes_home_whose_page_is_yet_to_be_punched() -> None:
    world = TwoGroups()
    late = LatePunches(world.box)
    part = world.source.own(world.giver.pid, world.address, 4)
    world.grant(part)
    world.target.free(world.target.accept(world.taker.pid))
    world.box.pass_time(3)
    assert world.source.extents[part].owner == MMU
    late.punch()
    world.box.pass_time(3)
    assert world.target.records == {}
    assert world.source.holdings(MMU)[1] == 0
    world.box.check()


def test_what_has_been_round_three_groups_may_come_by_again() -> None:
    """The hole that it left in a copy stays one: its home is in another group, and could not use free pages there."""
    world = TwoGroups()
    third_peer, third = world.box.attach("third", uid=7)
    elsewhere = world.box.shards[third.group]
    world.grant(world.source.own(world.giver.pid, world.address, 10))
    world.target.accept(world.taker.pid)
    part = world.target._carve(OWNED, world.taker.pid, world.address, 4)
    onward = wire.CrossGrant(part, world.target.word(part), third.pid, third.incarnation)
    assert isinstance(world.box.ask(world.taker_peer, onward), wire.CrossGranted)
    part = elsewhere.accept(third.pid)
    home = wire.CrossGrant(part, elsewhere.word(part), world.giver.pid, world.giver.incarnation)
    assert isinstance(world.box.ask(third_peer, home), wire.CrossGranted)
    world.box.pass_time(2)
    assert elsewhere.records == {}
    assert world.grant(world.source.accept(world.giver.pid)) == wire.CrossGranted(4 * PAGE)
    world.box.check()


def test_a_copy_outlives_the_slab_it_came_from() -> None:
    world = TwoGroups(orphan_keep=1.0)
    part = world.source.own(world.giver.pid, world.address, 4)
    world.grant(part)
    received = world.target.accept(world.taker.pid)
    world.box.ask(world.giver_peer, wire.Detach())
    world.box.pass_time(2)
    assert world.source.records == {}
    assert world.box.processes() == {"giver": "gone", "taker": "attached"}  # its addresses are in use
    world.target.free(received)
    world.box.pass_time(2)
    assert world.box.processes() == {"taker": "attached"}
    assert world.box.used() == 0


@pytest.mark.parametrize("pages", [4, 2 * SLAB_PAGES])
def test_a_full_inbox_undoes_it(pages: int) -> None:
    world = TwoGroups()
    world.target.inbox_cells = 0
    region = world.source.own(world.giver.pid, world.address, pages)
    reply = world.grant(region)
    assert isinstance(reply, wire.Failed) and reply.kind == "inbox-full"
    assert world.source.extents[region].owner == world.giver.pid
    assert world.source.extents[region].state == OWNED
    assert world.target.records == {}
    assert world.said(wire.PunchPages) == []
    assert world.box.used() == 4 * MIB
    world.box.check()


@pytest.mark.parametrize("pages", [4, 2 * SLAB_PAGES])
def test_a_receiver_that_dies_on_the_way_undoes_it(pages: int) -> None:
    world = TwoGroups()
    region = world.source.own(world.giver.pid, world.address, pages)
    world.box.held = []
    assert world.grant(region) is None
    world.box.exit(world.taker)
    world.box.answer_held()
    reply = world.box.replies[world.giver_peer][-1]
    assert isinstance(reply, wire.Failed) and reply.kind == "dead"
    assert world.source.extents[region].owner == world.giver.pid
    assert world.box.used() == 4 * MIB
    world.box.check()


@pytest.mark.parametrize("pages", [4, 2 * SLAB_PAGES])
def test_a_sender_that_dies_on_the_way_has_granted(pages: int) -> None:
    world = TwoGroups(orphan_keep=0.0)
    region = world.source.own(world.giver.pid, world.address, pages)
    world.box.held = []
    assert world.grant(region) is None
    world.box.exit(world.giver)
    world.box.leave(world.giver_peer)
    world.box.pass_time(3)  # its slab is pinned, and its id not given away
    assert world.box.processes()["giver"] == "gone"
    world.box.answer_held()
    assert world.target.accept(world.taker.pid)
    world.box.check()


def test_no_room_for_the_copy() -> None:
    world = TwoGroups()
    world.box.refusing = lambda message: True
    part = world.source.own(world.giver.pid, world.address, 4)
    reply = world.grant(part)
    assert isinstance(reply, wire.Failed) and reply.kind == "memory"
    assert world.source.extents[part].owner == world.giver.pid
    world.box.check()


def test_only_ones_own_can_be_granted() -> None:
    world = TwoGroups()
    _, friend = world.box.attach("friend")
    theirs = world.source.own(friend.pid, world.address, 4)
    mine = world.source.own(world.giver.pid, world.address + 4 * PAGE, 4)
    to = (world.taker.pid, world.taker.incarnation)
    for descriptor, word, receiver, kind in (
        (theirs, world.source.word(theirs), to, "moved"),
        (mine, world.source.word(mine) + 1, to, "moved"),
        (999, 1, to, "moved"),
        (-1, 1, to, "moved"),
        (2**40, 1, to, "moved"),
        (mine, -1, to, "moved"),
        (mine, 2**64, to, "moved"),
        (mine, world.source.word(mine), (77, 1), "dead"),
        (mine, world.source.word(mine), (world.taker.pid, 999), "dead"),
        (mine, world.source.word(mine), (friend.pid, friend.incarnation), "protocol"),
    ):
        reply = world.box.ask(world.giver_peer, wire.CrossGrant(descriptor, word, *receiver))
        assert isinstance(reply, wire.Failed) and reply.kind == kind
    long = wire.CrossGrant(mine, world.source.word(mine), *to, b"x" * 500)
    reply = world.box.ask(world.giver_peer, long)
    assert isinstance(reply, wire.Failed) and reply.kind == "tag"
    world.box.check()


class Rack(RuleBasedStateMachine):
    """Three groups of processes allocate, grant to anybody, free, die and detach, in any order."""

    regions = Bundle("regions")  # (process name, descriptor)

    def __init__(self) -> None:
        super().__init__()
        self.box = Box(orphan_keep=2.0)
        self.live: dict[str, tuple[int, wire.Attached]] = {}
        for index, name in enumerate(("a", "b", "c", "d")):
            self.live[name] = self.box.attach(name, uid=(1000, 0, 1000, 7)[index])

    def shard(self, name: str) -> FakeShard:
        return self.box.shards[self.live[name][1].group]

    def is_mine(self, name: str, descriptor: int) -> bool:
        if name not in self.live:
            return False
        extent = self.shard(name).extents.get(descriptor)
        return extent is not None and extent.state == OWNED and extent.owner == self.live[name][1].pid

    @rule(target=regions, name=st.sampled_from("abcd"), cuts=st.lists(st.integers(1, 511), max_size=3))
    def allocate(self, name: str, cuts: list[int]) -> object:
        if name not in self.live:
            return multiple()
        peer, process = self.live[name]
        reply = self.box.ask(peer, wire.NeedSlab(SLAB_PAGES))
        if not isinstance(reply, wire.SlabReady):
            return multiple()
        shard = self.shard(name)
        address = shard.records[reply.slab][0]
        edges = [0, *sorted(set(cuts)), SLAB_PAGES]
        pieces = list(pairwise(edges))
        return multiple(
            *((name, shard.own(process.pid, address + low * PAGE, high - low)) for low, high in pieces)
        )

    @rule(target=regions, region=consumes(regions), to=st.sampled_from("abcd"), hold=st.booleans())
    def grant(self, region: tuple[str, int], to: str, hold: bool) -> object:
        name, descriptor = region
        if not self.is_mine(name, descriptor) or to not in self.live or self.shard(to) is self.shard(name):
            return multiple(region)
        peer, _ = self.live[name]
        receiver = self.live[to][1]
        word = self.shard(name).word(descriptor)
        if hold:
            self.box.held = []
        self.box.ask(peer, wire.CrossGrant(descriptor, word, receiver.pid, receiver.incarnation))
        if hold:
            self.box.pass_time(1.5)
            while self.box.held is not None:
                self.box.answer_held()
        return multiple(region, *self.accept_all(to))

    def accept_all(self, name: str) -> list[tuple[str, int]]:
        shard, process = self.shard(name), self.live[name][1]
        return [(name, shard.accept(process.pid)) for _ in list(shard.inboxes[process.pid])]

    @rule(region=consumes(regions))
    def free(self, region: tuple[str, int]) -> None:
        if self.is_mine(*region):
            self.shard(region[0]).free(region[1])

    @rule(name=st.sampled_from("abcd"), politely=st.booleans())
    def end(self, name: str, politely: bool) -> None:
        if name not in self.live or len(self.live) == 1:
            return
        peer, process = self.live.pop(name)
        if politely:
            self.box.ask(peer, wire.Detach())
        else:
            self.box.exit(process)
        self.box.leave(peer)

    @rule(seconds=st.sampled_from([0.5, 1.5, 5.0]))
    def wait(self, seconds: float) -> None:
        self.box.pass_time(seconds)

    @invariant()
    def ownership_is_a_partition(self) -> None:
        self.box.check()
        owned: dict[int, tuple[int, int]] = {}
        for group, shard in self.box.shards.items():
            for extent in shard.extents.values():
                if extent.state in (OWNED, IN_FLIGHT) and extent.owner != MMU:
                    for page in range(extent.address, extent.end, PAGE):
                        assert page not in owned, "two groups own one address"
                        owned[page] = (group, extent.owner)

    def teardown(self) -> None:
        for peer, process in self.live.values():
            self.box.exit(process)
            self.box.leave(peer)
        self.box.pass_time(10)
        assert self.box.used() == 0
        assert self.box.processes() == {}
        assert all(not shard.records for shard in self.box.shards.values())


TestRack = Rack.TestCase
TestRack.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
