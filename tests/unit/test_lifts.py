"""Fences that were left on memory of the victim's own: they are lifted, and no others are."""

from __future__ import annotations

import pytest

from bequest.limits import FENCE_RANGES_MAX, FENCE_TIMEOUT
from bequest.protocol.lifts import Lifts, _overlaps
from bequest.protocol.outputs import ToAgent
from bequest.sim.fake_shard import PAGE, FakeShard
from bequest.wire import messages as wire
from test_steal_desk import Scene, stolen
from test_steal_restart import restart


class Fenced(Scene):
    """Agents answer when they are told to."""

    def __init__(self, runs: int = 2, stealable: bool = True) -> None:
        super().__init__(runs, stealable)
        self.hold_fences()

    def lifts(self) -> list[wire.LiftFence]:
        return [message for message in self.box.to_agents if isinstance(message, wire.LiftFence)]

    def fail(self) -> None:
        self.box.agent(wire.FenceFailed(self.last_fence(), "no rung holds"))

    def fence(self, how: str = "protected") -> None:
        self.box.agent(wire.ProcessFenced(self.last_fence(), how))

    def run(self, index: int) -> tuple[int, int]:
        return self.at(index), 2 * PAGE


def test_what_a_fence_that_failed_has_left_is_lifted() -> None:
    scene = Fenced()
    scene.steal()
    scene.fail()
    (lift,) = scene.lifts()
    assert (lift.pid, lift.incarnation) == (scene.victim_is.pid, scene.victim_is.incarnation)
    assert lift.ranges == [scene.run(0), scene.run(1)]


def test_of_what_was_stolen_nothing_is_lifted() -> None:
    scene = Fenced()
    scene.steal()
    scene.fence()
    scene.fence()
    stolen(scene.box.replies[scene.thief][-1], 2, "protected")
    assert scene.lifts() == []


def test_what_is_in_doubt_stays_fenced() -> None:
    """The last fence has failed: the thief owns it."""
    scene = Fenced()
    scene.steal()
    scene.fence()
    scene.owned.append(scene.own(2))
    scene.fail()
    assert scene.lifts() == []


@pytest.mark.parametrize("end", ["free", "kept", "split"])
def test_of_words_that_have_moved_on_what_the_victim_still_owns_is_lifted(end: str) -> None:
    """And no more than what was fenced of it."""
    scene = Fenced()
    scene.steal(only=[scene.at(0)])
    if end == "free":
        scene.shard.free(scene.owned[0])
    elif end == "kept":
        scene.shard.free(scene.owned[0])
        scene.shard.own(scene.victim_is.pid, scene.at(0), 4, stealable=False)
    else:
        scene.shard.free(scene.owned[0])
        scene.shard.own(scene.victim_is.pid, scene.at(0), 1, stealable=False)
    scene.fence()
    pages = {"free": 0, "kept": 2, "split": 1}[end]
    assert [lift.ranges for lift in scene.lifts()] == ([[(scene.at(0), pages * PAGE)]] if pages else [])


def test_what_has_come_back_to_the_victim_is_lifted_though_it_was_in_doubt() -> None:
    scene = Fenced()
    scene.steal()
    scene.fence()
    for descriptor in scene.owned:  # granted back before the last fence
        scene.shard._set(descriptor, owner=scene.victim_is.pid)
    scene.fail()
    (lift,) = scene.lifts()
    assert lift.ranges == [scene.run(0), scene.run(1)]


def test_as_long_as_the_victim_is_being_stolen_from_nothing_is_lifted() -> None:
    """The next thief's fence would lie on it again, and be noted as lifted."""
    scene = Fenced()
    second, _ = scene.box.attach("second")
    scene.steal()
    scene.steal(second)
    scene.fail()
    assert len(scene.box.fences) == 2 and scene.lifts() == []
    scene.fail()
    (lift,) = scene.lifts()
    assert lift.ranges == [scene.run(0), scene.run(1)]


def test_a_fence_that_nobody_waits_for_any_more_is_lifted_behind_it() -> None:
    scene = Fenced()
    scene.steal()
    scene.box.pass_time(FENCE_TIMEOUT + 1)
    sent = scene.box.to_agents
    assert [type(message) for message in sent[-2:]] == [wire.FenceProcess, wire.LiftFence]


def test_a_fence_that_comes_late_is_lifted_from_what_has_come_back_meanwhile() -> None:
    scene = Fenced()
    scene.steal()
    job = scene.last_fence()
    for descriptor in scene.owned:  # granted away, when the fence is given up
        scene.shard._set(descriptor, owner=scene.thief_is.pid)
    scene.box.pass_time(FENCE_TIMEOUT + 1)
    assert scene.lifts() == []
    scene.shard._set(scene.owned[1], owner=scene.victim_is.pid)
    scene.box.agent(wire.ProcessFenced(job, "protected"))
    assert [lift.ranges for lift in scene.lifts()] == [[scene.run(1)]]


def test_what_an_agent_could_not_lift_the_victim_mends() -> None:
    """And what ptrace has closed. Not before the agent has done its part, and once for each answer."""
    scene = Fenced()
    scene.steal()
    scene.fail()
    (lift,) = scene.lifts()
    assert scene.shard.mends == {}
    scene.box.agent(wire.FenceLifted(lift.job))
    scene.box.agent(wire.FenceLifted(lift.job))
    assert scene.shard.mends == {scene.victim_is.pid: 1}


def clearing() -> Fenced:
    """Somebody steals from the thief. So the victim is fenced once more, though it owns a part of that again."""
    scene = Fenced()
    scene.steal()
    scene.fence()
    scene.fail()
    scene.shard._set(scene.owned[0], owner=scene.victim_is.pid)
    second, _ = scene.box.attach("second")
    scene.box.ask(second, wire.Steal("thief"))
    assert scene.box.fences[-1].ranges == [scene.run(0), scene.run(1)] and scene.lifts() == []
    return scene


@pytest.mark.parametrize("holds", [True, False])
def test_what_an_older_doubts_fence_has_hit_is_lifted(holds: bool) -> None:
    scene = clearing()
    scene.fence() if holds else scene.fail()
    (lift,) = scene.lifts()
    assert (lift.pid, lift.ranges) == (scene.victim_is.pid, [scene.run(0)])


def test_a_steal_that_fails_meanwhile_does_not_lift_it_too_soon() -> None:
    scene = clearing()
    job = scene.last_fence()
    scene.steal()
    scene.fail()
    assert scene.lifts() == []
    scene.box.agent(wire.ProcessFenced(job, "protected"))
    (lift,) = scene.lifts()
    assert lift.ranges == [scene.run(0)]


@pytest.mark.parametrize("answered", [True, False])
def test_an_agent_that_is_linked_anew_is_told_again_unless_it_has_answered(answered: bool) -> None:
    scene = Fenced()
    scene.steal()
    scene.fail()
    (lift,) = scene.lifts()
    if answered:
        scene.box.agent(wire.FenceLifted(lift.job))
    scene.shard._set(scene.owned[0], owner=scene.thief_is.pid)  # and of what is the victim's now
    scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    again = scene.lifts()[1:]
    assert [lift.ranges for lift in again] == ([] if answered else [[scene.run(1)]])


def test_the_lifts_of_an_agent_that_is_linked_anew_come_behind_the_fences_that_are_under_way() -> None:
    scene = Fenced()
    scene.steal()
    scene.fail()
    scene.steal()
    scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    assert len(scene.lifts()) == 1
    scene.fence()
    scene.fence()
    assert len(scene.lifts()) == 1, "it is the thief's now"


def test_a_rack_mmu_that_is_started_anew_lifts_what_its_predecessors_fences_have_left() -> None:
    scene = Fenced()
    scene.steal()
    restart(scene.box)
    assert scene.lifts() == []
    scene.fence()
    (lift,) = scene.lifts()
    assert lift.ranges == [scene.run(0), scene.run(1)]


def test_the_dead_are_left_alone() -> None:
    scene = Fenced()
    scene.steal()
    scene.fail()
    scene.box.exit(scene.victim_is)
    scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    assert len(scene.lifts()) == 1


def test_more_than_a_message_holds_comes_in_several() -> None:
    scene = Fenced()
    lifts = Lifts(scene.box.mmu._state)
    victim = scene.box.mmu._state.processes.exact(scene.victim_is.pid, scene.victim_is.incarnation)
    assert victim is not None
    need = FENCE_RANGES_MAX + 1
    shard = scene.shard
    slab = max(shard.records) + 1
    base = scene.address + (64 << 20)
    shard.add_slab(slab, base, 2 * need, 0, False, victim.id)
    shard.shatter(slab, victim.id, 1)
    runs = [(base + 2 * index * PAGE, base + (2 * index + 1) * PAGE) for index in range(need)]
    lifts.fenced(victim, runs)
    lifts.lift(victim)
    told = [output.message for output in scene.box.mmu._state.take_outputs() if isinstance(output, ToAgent)]
    assert [len(lift.ranges) for lift in told if isinstance(lift, wire.LiftFence)] == [FENCE_RANGES_MAX, 1]


def test_overlaps() -> None:
    assert _overlaps([(0, 4), (6, 9)], [(1, 2), (3, 7), (8, 20)]) == [(1, 2), (3, 4), (6, 7), (8, 9)]
    assert _overlaps([(0, 4)], [(4, 8)]) == [] and _overlaps([], [(0, 1)]) == []
    assert FakeShard().owned(1, [(0, 1)]) == []
