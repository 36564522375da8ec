"""Steals on their way: whom they mean, fencing before taking, and everybody who goes away in the middle."""

from __future__ import annotations

import pytest

from bequest.limits import FENCE_TIMEOUT, STEAL_PASSES_MAX, STEAL_SELECTION_MAX, SWEEP_INTERVAL
from bequest.protocol import steal_desk
from bequest.sim.fake_shard import PAGE, FakeShard
from bequest.wire import messages as wire
from rack_in_a_box import MIB, Box
from test_rack_mmu import failed, need, slab_of


class Scene:
    """A victim that owns runs of pages of its slab, a gap between each, and a thief, in one default group."""

    def __init__(self, runs: int = 2, stealable: bool = True) -> None:
        self.box = Box()
        self.answered = 0
        self.thief, self.thief_is = self.box.attach("thief")
        self.victim, self.victim_is = self.box.attach("victim")
        self.slab = slab_of(need(self.box, self.victim, 4 * MIB))
        self.shard: FakeShard = self.box.shards[self.victim_is.group]
        self.address = self.shard.records[self.slab][0]
        self.owned = [self.own(index, stealable) for index in range(runs)]

    def own(self, index: int, stealable: bool = True) -> int:
        return self.shard.own(self.victim_is.pid, self.at(index), 2, stealable)

    def at(self, index: int) -> int:
        return self.address + 4 * index * PAGE

    def steal(self, peer: int | None = None, **how: object) -> wire.Message | None:
        return self.box.ask(peer or self.thief, wire.Steal("victim", **how))  # type: ignore[arg-type]

    def owners(self) -> list[int]:
        return [self.shard.extents[descriptor].owner for descriptor in self.owned]

    def hold_fences(self) -> None:
        self.box.fencing = lambda message: None

    def last_fence(self) -> int:
        return self.box.fences[-1].job

    def answer(self, how: str = "protected") -> None:
        """What agents held back, and what they are asked in consequence."""
        while self.answered < len(self.box.fences):
            self.answered += 1
            self.box.agent(wire.ProcessFenced(self.box.fences[self.answered - 1].job, how))

    def outcomes(self) -> list[str]:
        report = self.box.status("thefts")
        assert isinstance(report, wire.TheftList)
        return [theft.outcome for theft in report.thefts]


def stolen(reply: wire.Message | None, extents: int, how: str) -> wire.Stolen:
    assert isinstance(reply, wire.Stolen), reply
    assert (reply.extents, reply.nbytes, reply.how) == (extents, extents * 2 * PAGE, how)
    return reply


# --- the dead -------------------------------------------------------------------------------------------------


def test_of_who_is_hinted_dead_a_fence_waits_for_proof_once() -> None:
    scene = Scene()
    scene.box.do(
        scene.box.mmu.monitor_message(wire.DeathHint(scene.victim_is.pid, scene.victim_is.incarnation))
    )
    stolen(scene.steal(), 2, "protected")
    assert [fence.hinted for fence in scene.box.fences] == [True, False]


def test_the_dead_are_not_fenced() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    reply = stolen(scene.steal(), 2, "dead")
    assert (reply.pid, reply.incarnation) == (scene.victim_is.pid, scene.victim_is.incarnation)
    assert scene.owners() == [scene.thief_is.pid] * 2
    assert scene.box.fences == []
    scene.box.check()


def test_who_takes_all_from_the_dead_inherits_the_inbox() -> None:
    scene = Scene()
    late, _ = scene.box.attach("late")
    scene.shard.grant(scene.owned.pop(), scene.victim_is.pid)  # on its way to the victim
    scene.box.exit(scene.victim_is)
    assert stolen(scene.steal(only=[scene.at(0)]), 1, "dead").heir is False
    assert scene.shard.heirs == {}
    assert stolen(scene.steal(), 0, "dead").heir is True
    assert scene.shard.heirs == {scene.victim_is.pid: scene.thief_is.pid}
    assert stolen(scene.steal(late), 0, "dead").heir is False, "the first is reading it"
    assert stolen(scene.steal(), 0, "dead").heir is True


def test_another_inherits_the_inbox_once_the_heir_has_gone() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    late, late_is = scene.box.attach("late")
    scene.steal()
    scene.box.exit(scene.thief_is)
    assert stolen(scene.steal(late), 0, "dead").heir is True
    assert scene.shard.heirs == {scene.victim_is.pid: late_is.pid}


def test_the_living_keep_their_inbox() -> None:
    scene = Scene()
    assert stolen(scene.steal(), 2, "protected").heir is False
    assert scene.shard.heirs == {}


# --- the living -----------------------------------------------------------------------------------------------


def test_the_living_are_fenced_before_anything_changes_hands() -> None:
    scene = Scene()
    scene.hold_fences()
    assert scene.steal() is None
    (fence,) = scene.box.fences
    assert (fence.pid, fence.incarnation, fence.reach) == (
        scene.victim_is.pid,
        scene.victim_is.incarnation,
        "ptrace",
    )
    assert fence.ranges == [(scene.at(0), 2 * PAGE), (scene.at(1), 2 * PAGE)]
    assert scene.owners() == [scene.victim_is.pid] * 2
    assert scene.shard.revocations == {}
    scene.box.agent(wire.ProcessFenced(fence.job, "ptraced"))
    assert scene.owners() == [scene.thief_is.pid] * 2
    assert len(scene.box.replies[scene.thief]) == 1, (
        "the victim may have been opening pages: the thief is not told yet"
    )
    assert scene.box.fences[1].ranges == fence.ranges
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "ptraced"))
    stolen(scene.box.replies[scene.thief][-1], 2, "ptraced")
    assert scene.owners() == [scene.thief_is.pid] * 2
    assert scene.shard.revocations == {scene.victim_is.pid: 2}, "it looks again after the last fence"
    assert scene.box.processes()["victim"] == "attached"
    scene.box.check()


def test_a_victim_that_lost_its_connection_is_fenced_too() -> None:
    scene = Scene()
    scene.box.leave(scene.victim)
    assert scene.box.processes()["victim"] == "lost"
    stolen(scene.steal(), 2, "protected")
    assert len(scene.box.fences) == 2


@pytest.mark.parametrize("reach", ["protect", "ptrace", "kill"])
def test_the_group_says_how_far_the_agent_may_go(reach: str) -> None:
    box = Box()
    made = box.ask(box.client(), wire.CreateGroup("etl", "member", reach))
    assert isinstance(made, wire.GroupCreated)
    thief, _ = box.attach("thief", made.secret)
    victim, victim_is = box.attach("victim", made.secret)
    slab = slab_of(need(box, victim))
    shard = box.shards[victim_is.group]
    shard.own(victim_is.pid, shard.records[slab][0], 1)
    assert isinstance(box.ask(thief, wire.Steal("victim")), wire.Stolen)
    assert [fence.reach for fence in box.fences] == [reach] * 2


def test_what_the_victim_gave_away_while_it_was_fenced_is_left_alone() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    _, third = scene.box.attach("third")
    scene.shard.grant(scene.owned[0], third.pid)
    scene.answer()
    stolen(scene.box.replies[scene.thief][-1], 1, "protected")
    assert scene.owners() == [third.pid, scene.thief_is.pid]


def test_a_victim_that_allocates_on_is_looked_at_again() -> None:
    scene = Scene()

    def allocate_and_answer(message: wire.FenceProcess) -> wire.Message:
        if len(scene.box.fences) == 1:
            scene.owned.append(scene.own(2))
        return wire.ProcessFenced(message.job, "protected")

    scene.box.fencing = allocate_and_answer
    stolen(scene.steal(), 3, "protected")
    ranges = [(scene.at(index), 2 * PAGE) for index in range(3)]
    assert [fence.ranges for fence in scene.box.fences] == [ranges[:2], ranges, ranges[2:]]
    assert scene.owners() == [scene.thief_is.pid] * 3


def test_a_victim_that_never_stops_allocating_is_not_looked_at_for_ever() -> None:
    scene = Scene()

    def allocate_and_answer(message: wire.FenceProcess) -> wire.Message:
        scene.owned.append(scene.own(len(scene.owned)))
        return wire.ProcessFenced(message.job, "protected")

    scene.box.fencing = allocate_and_answer
    stolen(scene.steal(), STEAL_PASSES_MAX + 1, "protected")
    assert len(scene.box.fences) == STEAL_PASSES_MAX + 1
    assert scene.box.fences[-1].ranges == [(scene.at(STEAL_PASSES_MAX), 2 * PAGE)]


def test_neighbours_are_fenced_as_one_and_many_ranges_in_several_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steal_desk, "FENCE_RANGES_MAX", 3)
    scene = Scene(runs=0)
    for index in range(4):
        scene.shard.own(scene.victim_is.pid, scene.address + 3 * index * PAGE, 1)
        scene.shard.own(scene.victim_is.pid, scene.address + (3 * index + 1) * PAGE, 1)
    reply = scene.steal()
    assert isinstance(reply, wire.Stolen) and reply.extents == 8
    assert [len(fence.ranges) for fence in scene.box.fences] == [3, 1] * 2
    assert scene.box.fences[0].ranges[0] == (scene.address, 2 * PAGE)


def test_nothing_is_taken_before_all_of_it_is_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steal_desk, "FENCE_RANGES_MAX", 3)
    scene = Scene(runs=4)
    scene.hold_fences()
    scene.steal()
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    assert len(scene.box.fences) == 2 and set(scene.owners()) == {scene.victim_is.pid}
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    assert set(scene.owners()) == {scene.thief_is.pid}


def test_who_has_nothing_is_not_fenced() -> None:
    scene = Scene(runs=0)
    stolen(scene.steal(), 0, "untouched")
    scene = Scene(stealable=False)
    stolen(scene.steal(), 0, "untouched")
    assert scene.owners() == [scene.victim_is.pid] * 2
    assert scene.box.fences == []


# --- a part ---------------------------------------------------------------------------------------------------


def test_a_part_is_taken_by_address_or_by_name_and_nothing_else_is_fenced() -> None:
    scene = Scene(runs=3)
    publish = wire.Publish("/state", scene.at(1), 2 * PAGE)
    assert scene.box.ask(scene.victim, publish) == wire.Done()
    stolen(scene.steal(only=[scene.at(0) + PAGE, "/state"]), 2, "protected")
    assert scene.owners() == [scene.thief_is.pid, scene.thief_is.pid, scene.victim_is.pid]
    assert [fence.ranges for fence in scene.box.fences] == [
        [(scene.at(0), 2 * PAGE), (scene.at(1), 2 * PAGE)]
    ] * 2


def test_a_part_may_be_asked_for_again() -> None:
    scene = Scene()
    stolen(scene.steal(only=[scene.at(0)]), 1, "protected")
    stolen(scene.steal(only=[scene.at(0)]), 0, "untouched")
    stolen(scene.steal(only=[]), 0, "untouched")


def test_a_part_that_is_not_the_victims_is_refused() -> None:
    scene = Scene()
    third, third_is = scene.box.attach("third")
    slab = slab_of(need(scene.box, third))
    address = scene.shard.records[slab][0]
    scene.shard.own(third_is.pid, address, 1)
    scene.box.ask(third, wire.Publish("/third", address, PAGE))
    for part in (address, "/third", 0, -1, 1 << 64, 7):
        failed(scene.steal(only=[scene.at(0), part]), "not-owner")
    failed(scene.steal(only=["/nothing"]), "no-name")
    failed(scene.steal(only=["nothing"]), "bad-name")
    failed(scene.steal(only=[scene.at(0)] * (STEAL_SELECTION_MAX + 1)), "size")
    assert scene.owners() == [scene.victim_is.pid] * 2
    assert scene.box.fences == []


def test_a_part_that_may_not_be_stolen_is_refused() -> None:
    scene = Scene(stealable=False)
    scene.own(5)
    failed(scene.steal(only=[scene.at(5), scene.at(0)]), "capability")
    assert scene.box.fences == []
    assert scene.outcomes() == ["failed"]


# --- when fencing fails ---------------------------------------------------------------------------------------


def test_who_cannot_be_fenced_keeps_everything() -> None:
    scene = Scene()
    scene.box.fencing = lambda message: wire.FenceFailed(message.job, "no ptrace here")
    reply = failed(scene.steal(), "fence")
    assert "no ptrace here" in reply.message
    assert scene.owners() == [scene.victim_is.pid] * 2
    assert scene.outcomes() == ["failed"]


def test_what_is_in_doubt_is_the_thiefs_only_once_it_has_been_fenced_again() -> None:
    scene = Scene()

    def answer(message: wire.FenceProcess) -> wire.Message:
        if len(scene.box.fences) == 2:
            return wire.FenceFailed(message.job, "not again")
        return wire.ProcessFenced(message.job, "protected")

    scene.box.fencing = answer
    failed(scene.steal(), "fence")
    assert scene.outcomes() == ["failed"]
    assert scene.owners() == [scene.thief_is.pid] * 2
    stolen(scene.steal(), 0, "protected")
    assert scene.box.fences[2].ranges == scene.box.fences[1].ranges
    stolen(scene.steal(), 0, "untouched")


@pytest.mark.parametrize("end", ["death", "detach"])
def test_doubts_end_with_the_victim(end: str) -> None:
    scene = Scene()
    scene.box.fencing = lambda message: (
        wire.FenceFailed(message.job, "no")
        if message.job == 2
        else wire.ProcessFenced(message.job, "protected")
    )
    failed(scene.steal(), "fence")
    assert scene.box.mmu._steals._doubts
    if end == "death":
        scene.box.exit(scene.victim_is)
        stolen(scene.steal(), 0, "dead")
    else:
        scene.box.ask(scene.victim, wire.Detach())
    assert not scene.box.mmu._steals._doubts


def test_an_agent_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.pass_time(FENCE_TIMEOUT - 0.1)
    assert not scene.box.replies[scene.thief][1:]
    assert scene.box.mmu.next_deadline() <= scene.box.now + 0.11
    scene.box.pass_time(0.2)
    failed(scene.box.replies[scene.thief][-1], "fence")
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))  # too late: it is not even heard
    assert scene.owners() == [scene.victim_is.pid] * 2
    scene.box.fencing = lambda message: wire.ProcessFenced(message.job, "protected")
    stolen(scene.steal(), 2, "protected")


# --- who goes away in the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dead", "killed"])
def test_an_agents_proof_of_death_is_the_kernels_word(how: str) -> None:
    scene = Scene()
    scene.box.fencing = lambda message: wire.ProcessFenced(message.job, how)
    assert stolen(scene.steal(), 2, how).heir is True
    assert scene.box.processes()["victim"] == "orphaned"
    scene.box.exit(scene.victim_is)  # the pidfd tells later
    assert scene.box.processes()["victim"] == "orphaned"
    scene.box.check()


def test_a_victim_that_dies_while_it_is_fenced_needs_no_fence_any_more() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.exit(scene.victim_is)
    assert stolen(scene.box.replies[scene.thief][-1], 2, "dead").heir is True
    for late in (
        wire.ProcessFenced(scene.last_fence(), "protected"),
        wire.FenceFailed(scene.last_fence(), "gone"),
    ):
        scene.box.agent(late)
    assert scene.owners() == [scene.thief_is.pid] * 2
    assert scene.outcomes() == ["stolen"]


def test_a_victim_that_detaches_while_it_is_fenced_leaves_nothing() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    assert scene.box.ask(scene.victim, wire.Detach()) == wire.Done()
    scene.box.pass_time(2 * SWEEP_INTERVAL)
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    failed(scene.box.replies[scene.thief][-1], "dead")
    scene.box.pass_time(2)
    assert scene.box.used() == 0
    scene.box.check()


def test_a_thief_that_dies_after_its_victim_was_fenced_leaves_the_loot_to_the_next() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.exit(scene.thief_is)
    scene.box.leave(scene.thief)
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    assert scene.owners() == [scene.thief_is.pid] * 2
    scene.answered = 1
    second, second_is = scene.box.attach("second")
    assert scene.box.ask(second, wire.Steal("thief")) is None, "the first victim may still store there"
    assert scene.owners() == [scene.thief_is.pid] * 2
    scene.answer()
    stolen(scene.box.replies[second][-1], 2, "dead")
    assert scene.owners() == [second_is.pid] * 2
    scene.box.check()


def test_a_thief_whose_memory_is_freed_before_the_fence_stood_keeps_nothing() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    assert scene.box.ask(scene.thief, wire.Detach()) == wire.Done()
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    scene.answered = 1
    scene.box.pass_time(3)
    assert scene.owners() == [scene.thief_is.pid] * 2, "the victim may still store there"
    scene.answer()
    scene.box.pass_time(3)
    assert scene.shard.holdings(scene.thief_is.pid) == (0, 0, 0)
    assert scene.shard.holdings(scene.victim_is.pid)[1] == 0
    scene.box.check()


def test_a_thief_that_goes_before_its_turn_changes_nothing() -> None:
    scene = Scene()
    second, second_is = scene.box.attach("second")
    scene.hold_fences()
    scene.steal(only=[scene.at(0)])
    scene.steal(second)
    scene.box.exit(second_is)
    scene.answer()
    assert scene.owners() == [scene.thief_is.pid, scene.victim_is.pid]
    assert scene.outcomes() == ["stolen", "failed"]


def test_ids_rest_while_a_steal_that_speaks_of_them_is_under_way() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.ask(scene.victim, wire.Detach())
    scene.box.pass_time(5)
    assert scene.box.processes()["victim"] == "gone"
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "no such process"))
    scene.box.pass_time(5)
    assert "victim" not in scene.box.processes()


# --- several at once ------------------------------------------------------------------------------------------


def test_of_several_thieves_exactly_one_gets_each_region() -> None:
    scene = Scene()
    second, second_is = scene.box.attach("second")
    scene.hold_fences()
    assert scene.steal(only=[scene.at(0)]) is None
    assert scene.steal(second) is None
    assert len(scene.box.fences) == 1, "the second waits for the first"
    scene.answer()
    first, second_run = [(scene.at(0), 2 * PAGE)], [(scene.at(1), 2 * PAGE)]
    assert [fence.ranges for fence in scene.box.fences] == [first, first, second_run, second_run]
    stolen(scene.box.replies[scene.thief][-1], 1, "protected")
    stolen(scene.box.replies[second][-1], 1, "protected")
    assert scene.owners() == [scene.thief_is.pid, second_is.pid]


def test_a_fence_that_fails_fails_one_thief_and_the_next_has_its_turn() -> None:
    scene = Scene()
    second, _ = scene.box.attach("second")
    scene.hold_fences()
    scene.steal()
    scene.steal(second)
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "not now"))
    failed(scene.box.replies[scene.thief][-1], "fence")
    scene.answered = 1
    scene.answer()
    stolen(scene.box.replies[second][-1], 2, "protected")


def test_thieves_may_be_each_others_victims() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    mine = slab_of(need(scene.box, scene.thief))
    address = scene.shard.records[mine][0]
    lost = scene.shard.own(scene.thief_is.pid, address, 2)
    scene.box.ask(scene.victim, wire.Steal("thief"))
    first, second = (fence.job for fence in scene.box.fences)
    scene.box.agent(wire.ProcessFenced(second, "protected"))
    scene.box.agent(wire.ProcessFenced(first, "protected"))
    assert scene.shard.extents[lost].owner == scene.victim_is.pid
    assert scene.owners() == [scene.thief_is.pid] * 2
    scene.box.check()


# --- who is meant ---------------------------------------------------------------------------------------------


def test_a_process_may_steal_from_itself() -> None:
    scene = Scene()
    words = [scene.shard.word(descriptor) for descriptor in scene.owned]
    stolen(scene.steal(scene.victim), 2, "self")
    assert scene.owners() == [scene.victim_is.pid] * 2
    assert [scene.shard.word(descriptor) for descriptor in scene.owned] == [word + 1 for word in words]
    assert scene.box.fences == []


def test_a_process_of_another_group_is_out_of_reach() -> None:
    scene = Scene()
    stranger, _ = scene.box.attach("stranger", uid=0)
    assert "another group" in failed(scene.steal(stranger), "capability").message
    scene.box.exit(scene.victim_is)
    assert "another group" in failed(scene.steal(stranger), "capability").message
    assert scene.owners() == [scene.victim_is.pid] * 2


def test_nobody_and_mailboxes_cannot_be_stolen_from() -> None:
    scene = Scene()
    scene.box.ask(scene.victim, wire.OpenMailbox("box", create=True))
    for name in ("nobody", "box"):
        failed(scene.box.ask(scene.thief, wire.Steal(name)), "unknown")
    for name in ("", "x" * 1000):
        failed(scene.box.ask(scene.thief, wire.Steal(name)), "bad-name")
    failed(scene.box.ask(scene.box.client(), wire.Steal("victim")), "not-attached")


def test_who_has_left_in_good_order_has_left_nothing() -> None:
    scene = Scene()
    third, third_is = scene.box.attach(
        "third"
    )  # owns memory at the victim's addresses, so its id is remembered
    scene.shard.grant(scene.owned[0], third_is.pid)
    scene.box.ask(scene.victim, wire.Detach())
    failed(scene.steal(), "dead")
    scene.box.exit(third_is)
    scene.box.pass_time(scene.box.config.orphan_keep + 1)
    failed(scene.box.ask(scene.thief, wire.Steal("third")), "unknown")
    assert third


def test_a_dead_bearer_of_the_name_comes_first_and_the_oldest_of_them() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    peer, second = scene.box.attach("victim")
    slab = slab_of(need(scene.box, peer))
    second_lot = scene.shard.own(second.pid, scene.shard.records[slab][0], 2)
    scene.box.exit(second)
    _, third = scene.box.attach("victim")
    assert stolen(scene.steal(), 2, "dead").incarnation == scene.victim_is.incarnation
    assert scene.shard.extents[second_lot].owner == second.pid
    assert stolen(scene.steal(), 1, "dead").incarnation == second.incarnation
    assert stolen(scene.steal(), 0, "untouched").incarnation == third.incarnation


def test_an_incarnation_pins_the_bearer() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    _, second = scene.box.attach("victim")
    assert stolen(scene.steal(incarnation=second.incarnation), 0, "untouched").pid == second.pid
    failed(scene.steal(incarnation=second.incarnation + 1), "unknown")
    assert stolen(scene.steal(incarnation=scene.victim_is.incarnation), 2, "dead")


def test_a_request_that_is_repeated_is_carried_out_once() -> None:
    scene = Scene()
    scene.hold_fences()
    steal = wire.Once(1, wire.Steal("victim"))
    assert scene.box.ask(scene.thief, steal) is None
    assert scene.box.ask(scene.thief, steal) is None
    scene.answer()
    stolen(scene.box.ask(scene.thief, steal), 2, "protected")
    assert len(scene.box.fences) == 2
    assert scene.outcomes() == ["stolen"]


def test_memory_between_two_groups_is_not_to_be_stolen() -> None:
    scene = Scene()
    _, stranger = scene.box.attach("stranger", uid=0)
    scene.box.held = []
    word = scene.shard.word(scene.owned[0])
    scene.box.ask(scene.victim, wire.CrossGrant(scene.owned[0], word, stranger.pid, stranger.incarnation))
    scene.box.exit(scene.victim_is)
    stolen(scene.steal(), 1, "dead")
    scene.box.answer_held()
    assert scene.shard.extents[scene.owned[1]].owner == scene.thief_is.pid
    assert scene.box.shards[stranger.group].inbox_depth(stranger.pid) == 1
    scene.box.check()


# --- orphans --------------------------------------------------------------------------------------------------


def test_orphans_are_listed_with_the_time_that_is_left() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    scene.box.pass_time(20)
    report = scene.box.status("processes")
    assert isinstance(report, wire.ProcessList)
    left = {process.name: process.freed_in for process in report.processes}
    assert left["thief"] is None and left["victim"] == pytest.approx(40)
