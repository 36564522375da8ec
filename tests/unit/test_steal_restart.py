"""Stealing and names when the Rack MMU is killed and started anew in the middle."""

from __future__ import annotations

from bequest.limits import FENCE_TIMEOUT
from bequest.protocol.rack_mmu import RackMmu
from bequest.sim.fake_shard import PAGE
from bequest.wire import messages as wire
from rack_in_a_box import Box, as_written
from test_steal_desk import Scene, stolen


def restart(box: Box) -> None:
    """A new machine from what the last one wrote down, and the tables as they are; every connection is gone."""
    rows = as_written(box.mmu.everything())
    make_shard = box.shards.__getitem__
    box.mmu, outputs = RackMmu.restore(box.config, make_shard, box._fresh_bytes, rows, box.now)
    box.do(outputs)


def come_back(box: Box, attached: wire.Attached) -> int:
    peer = box.client(os_pid=5000 + attached.pid)
    resumed = box.ask(peer, wire.Resume(attached.pid, attached.incarnation, attached.agent_ticket))
    assert resumed == wire.Resumed(attached.pid)
    return peer


def test_names_survive() -> None:
    scene = Scene()
    scene.box.ask(scene.victim, wire.Publish("/state", scene.at(0), 2 * PAGE, 8))
    restart(scene.box)
    thief = come_back(scene.box, scene.thief_is)
    found = scene.box.ask(thief, wire.Lookup("/state"))
    assert isinstance(found, wire.Found)
    assert (found.name.owner_name, found.name.offset) == ("victim", 8)
    scene.shard.free(scene.owned[0])
    scene.box.pass_time(3)
    assert len(scene.box.mmu._names._names) == 0


def test_the_book_survives_and_goes_on() -> None:
    scene = Scene()
    scene.steal()
    restart(scene.box)
    thief = come_back(scene.box, scene.thief_is)
    scene.steal(thief)
    report = scene.box.status("thefts")
    assert isinstance(report, wire.TheftList)
    assert [theft.number for theft in report.thefts] == [1, 2]


def test_what_was_taken_but_not_fenced_again_is_fenced_before_the_thief_is_told() -> None:
    scene = Scene()
    scene.hold_fences()
    steal = wire.Once(1, wire.Steal("victim"))
    scene.box.ask(scene.thief, steal)
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    assert scene.owners() == [scene.thief_is.pid] * 2, "taken, and in doubt"
    restart(scene.box)
    thief = come_back(scene.box, scene.thief_is)
    scene.answered = len(scene.box.fences)
    assert scene.box.ask(thief, steal) is None, "the thief is not told yet"
    assert scene.box.fences[-1].ranges == [(scene.at(0), 2 * PAGE), (scene.at(1), 2 * PAGE)]
    scene.answer()
    stolen(scene.box.replies[thief][-1], 0, "protected")
    assert scene.outcomes() == ["failed", "stolen"]


def test_a_repeated_request_means_the_victim_that_it_meant_before() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    steal = wire.Once(1, wire.Steal("victim"))
    stolen(scene.box.ask(scene.thief, steal), 2, "dead")
    scene.box.mmu._state.clients.forget_answers_of(
        scene.thief_is.pid
    )  # it was killed before it wrote that down
    _, newer = scene.box.attach("victim")
    restart(scene.box)
    thief = come_back(scene.box, scene.thief_is)
    again = stolen(scene.box.ask(thief, steal), 0, "dead")
    assert again.incarnation == scene.victim_is.incarnation != newer.incarnation


def test_what_a_failed_steal_left_in_doubt_is_fenced_before_anybody_is_told_that_it_is_his() -> None:
    """The doubt outlives the machine, though the attempt that made it has ended."""
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "no rung holds"))
    assert scene.outcomes() == ["failed"] and scene.owners() == [scene.thief_is.pid] * 2
    restart(scene.box)
    thief = come_back(scene.box, scene.thief_is)
    scene.answered = len(scene.box.fences)
    assert scene.steal(thief) is None, "the thief is not told yet"
    assert scene.box.fences[-1].ranges == [(scene.at(0), 2 * PAGE), (scene.at(1), 2 * PAGE)]
    scene.answer()
    stolen(scene.box.replies[thief][-1], 0, "protected")


def test_doubts_are_forgotten_once_the_fence_stands() -> None:
    scene = Scene()
    scene.steal()
    restart(scene.box)
    before = len(scene.box.fences)
    stolen(scene.steal(come_back(scene.box, scene.thief_is)), 0, "untouched")
    assert len(scene.box.fences) == before


def test_an_agent_that_is_linked_anew_is_asked_again_for_the_fence() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    asked = scene.box.fences[-1]
    scene.box.do(scene.box.mmu.agent_linked("host1" if scene.victim_is.compute == "host0" else "host0"))
    assert len(scene.box.fences) == 1, "another agent has nothing to do with it"
    scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    again = scene.box.fences[-1]
    assert again.job != asked.job and again.ranges == asked.ranges
    scene.box.agent(wire.ProcessFenced(asked.job, "protected"))  # of a link that is no more
    assert scene.owners() == [scene.victim_is.pid] * 2
    scene.answered = 1
    scene.answer()
    stolen(scene.box.replies[scene.thief][-1], 2, "protected")


def test_a_fence_that_is_asked_for_again_and_again_is_not_waited_for_for_ever() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    for _ in range(4):
        scene.box.pass_time(FENCE_TIMEOUT / 3)
        scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    reply = scene.box.replies[scene.thief][-1]
    assert isinstance(reply, wire.Failed) and reply.kind == "fence"
    assert scene.owners() == [scene.victim_is.pid] * 2


def test_a_fence_of_an_earlier_run_is_no_fence_of_this_ones_victim() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    earlier = scene.last_fence()
    restart(scene.box)
    scene.steal(come_back(scene.box, scene.thief_is))
    scene.box.agent(wire.ProcessFenced(earlier, "protected"))
    assert scene.last_fence() > earlier and scene.owners() == [scene.victim_is.pid] * 2


def test_a_guard_of_an_earlier_run_lets_no_memory_of_this_one_go() -> None:
    scene = Scene()
    breaking = wire.BreakMemory("dram0", scene.address, PAGE)
    for _ in range(2):
        scene.box.ask(scene.box.client(), breaking)
        earlier = next(said.job for said in scene.box.to_agents if isinstance(said, wire.GuardRange))
        restart(scene.box)
    scene.box.ask(scene.box.client(), breaking)
    for _ in scene.box.config.computes:
        scene.box.agent(wire.RangeGuarded(earlier))
    assert not [said for said in scene.box.to_elements if isinstance(said, wire.FailMemory)]


def test_a_fence_that_an_earlier_run_had_asked_for_in_vain_is_lifted() -> None:
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    restart(scene.box)
    scene.box.exit(scene.thief_is)
    scene.box.do(
        scene.box.mmu.agent_linked(scene.victim_is.compute)
    )  # what comes there, comes after that fence
    asked = scene.box.fences[-1]
    assert (asked.pid, asked.ranges) == (scene.victim_is.pid, [])
    assert scene.shard.revocations == {}
    scene.box.agent(wire.ProcessFenced(asked.job, "protected"))
    assert scene.shard.revocations == {scene.victim_is.pid: 1}
    assert not scene.box.written["doubts"]


def test_nothing_is_taken_before_it_is_written_down_who_takes_it() -> None:
    scene = Scene()
    scene.box.exit(scene.victim_is)
    outputs = scene.box.mmu.client_message(scene.thief, wire.Steal("victim"), scene.box.now)
    assert scene.owners() == [scene.victim_is.pid] * 2
    scene.box.do(outputs)
    assert scene.owners() == [scene.thief_is.pid] * 2


def test_the_agent_is_told_of_a_hint_that_its_process_has_died() -> None:
    """It then waits a moment for proof, which is quicker than any fence."""
    scene = Scene()
    scene.hold_fences()
    scene.box.agent(wire.ProcessLost(scene.victim_is.pid, scene.victim_is.incarnation))
    scene.steal()
    assert scene.box.fences[-1].hinted


def test_doubts_about_all_thieves_of_a_victim_outlive_the_machine() -> None:
    scene = Scene()
    other, _ = scene.box.attach("other")
    scene.hold_fences()
    scene.steal(only=[scene.at(0)])
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), "protected"))
    scene.box.agent(wire.FenceFailed(scene.last_fence(), "no rung holds"))
    scene.steal(other, only=[scene.at(1)])
    assert scene.owners() == [scene.thief_is.pid, scene.victim_is.pid]
    before = len(scene.box.fences)
    restart(scene.box)
    scene.steal(come_back(scene.box, scene.thief_is))
    fenced = [run for fence in scene.box.fences[before:] for run in fence.ranges]
    assert (scene.at(0), 2 * PAGE) in fenced
