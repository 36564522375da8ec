"""Memory that a victim which runs may still store into: nobody else gets it or frees it before that one is fenced."""

from __future__ import annotations

import pytest

from bequest.limits import FENCE_TIMEOUT
from bequest.sim.fake_shard import PAGE
from bequest.wire import messages as wire
from test_rack_mmu import failed
from test_steal_desk import Scene, stolen


def in_doubt() -> Scene:
    """The thief owns what its victim, which runs, has not been kept from for good: the last fence has failed."""
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "not again"))
    scene.answered = 2
    assert scene.owners() == [scene.thief_is.pid] * 2
    return scene


@pytest.mark.parametrize("how", ["dead", "protected", "self"])
def test_who_steals_from_a_thief_gets_nothing_that_a_victim_of_it_may_still_store_into(how: str) -> None:
    scene = in_doubt()
    second, _ = (scene.thief, None) if how == "self" else scene.box.attach("second")
    if how == "dead":
        scene.box.exit(scene.thief_is)
    scene.box.ask(second, wire.Steal("thief"))
    asked = scene.box.fences[-1]
    assert asked.pid == scene.victim_is.pid
    assert asked.ranges == [(scene.at(0), 2 * PAGE), (scene.at(1), 2 * PAGE)]
    assert scene.owners() == [scene.thief_is.pid] * 2 and isinstance(
        scene.box.replies[second][-1], wire.Attached | wire.Failed
    )
    scene.answer("protected")
    stolen(scene.box.replies[second][-1], 2, how)
    assert scene.shard.revocations[scene.victim_is.pid] > 2, "it may own some of that again"


def test_a_first_victim_that_cannot_be_fenced_keeps_others_from_its_thiefs_loot() -> None:
    scene = in_doubt()
    second, _ = scene.box.attach("second")
    scene.box.exit(scene.thief_is)
    scene.box.ask(second, wire.Steal("thief"))
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "no rung holds"))
    reply = failed(scene.box.replies[second][-1], "fence")
    assert "'victim' could not be fenced" in reply.message and "'thief' has taken" in reply.message
    assert scene.owners() == [scene.thief_is.pid] * 2
    scene.box.ask(second, wire.Steal("thief"))
    scene.box.exit(scene.victim_is)
    stolen(scene.box.replies[second][-1], 2, "dead")


@pytest.mark.parametrize("end", ["detach", "orphan"])
def test_what_a_thief_leaves_is_not_freed_before_its_victim_is_kept_from_it(end: str) -> None:
    scene = in_doubt()
    if end == "detach":
        assert scene.box.ask(scene.thief, wire.Detach()) == wire.Done()
    else:
        scene.box.exit(scene.thief_is)
        scene.box.pass_time(scene.box.config.orphan_keep + 1)
    scene.box.pass_time(3)
    assert scene.owners() == [scene.thief_is.pid] * 2
    assert len(scene.box.fences) == 3, "one fence at a time"
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "not yet"))
    scene.box.pass_time(2)
    scene.answered = 3
    scene.answer()
    scene.box.pass_time(2)
    assert scene.shard.holdings(scene.thief_is.pid) == (0, 0, 0)
    scene.box.check()


def test_a_doubt_that_arises_while_an_older_one_is_ended_is_kept() -> None:
    scene = in_doubt()
    second, _ = scene.box.attach("second")
    scene.box.ask(second, wire.Steal("thief"))
    clearing = scene.last_fence()
    scene.owned.append(scene.own(2))
    scene.steal()
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    scene.box.agent(wire.ProcessFenced(clearing, "protected"))
    assert len(scene.box.mmu._steals._doubts) == 1
    assert scene.victim_is.incarnation in scene.box.written["doubts"]


def test_a_theft_under_way_stays_written_down_though_an_older_doubt_ends() -> None:
    scene = in_doubt()
    second, _ = scene.box.attach("second")
    scene.box.ask(second, wire.Steal("thief"))
    clearing = scene.last_fence()
    scene.owned.append(scene.own(2))
    scene.steal()  # and takes something as soon as its fence stands
    scene.box.agent(wire.ProcessFenced(clearing, "protected"))
    assert scene.victim_is.incarnation in scene.box.written["doubts"]


def test_a_victim_that_steals_its_own_back_is_not_kept_from_it() -> None:
    scene = in_doubt()
    scene.box.ask(scene.victim, wire.Steal("thief"))
    assert [fence.pid for fence in scene.box.fences[2:]] == [scene.thief_is.pid]
    scene.answer()
    stolen(scene.box.replies[scene.victim][-1], 2, "protected")


def test_a_victim_whose_fence_failed_looks_at_its_memory_and_so_lifts_what_there_is_of_it() -> None:
    scene = Scene()
    scene.box.fencing = lambda message: wire.FenceFailed(message.job, "no ptrace here")
    scene.steal()
    assert scene.shard.revocations == {scene.victim_is.pid: 1}


@pytest.mark.parametrize("late", ["fenced", "failed", "gone"])
def test_a_fence_that_comes_when_nobody_waits_for_it_any_more_is_lifted(late: str) -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.pass_time(FENCE_TIMEOUT + 1)
    before = scene.shard.revocations[scene.victim_is.pid]
    if late == "fenced":
        scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    elif late == "failed":
        scene.box.agent(wire.FenceFailed(scene.last_fence(), "no"))
    else:
        scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    assert scene.shard.revocations[scene.victim_is.pid] == before + 1
