"""A victim that is between its look at an owner word and the opening of the pages: the last fence waits for it.

Otherwise the pages would be opened behind that fence, and what ptrace has closed, or is mapped anew, would be open.
"""

from __future__ import annotations

import pytest

from bequest.limits import OPENING_LOOK_INTERVAL, OPENING_PATIENCE
from bequest.wire import messages as wire
from test_steal_desk import Scene, stolen


def opening(how: str = "ptraced") -> Scene:
    """Its memory is the thief's, and the thief has not been told; the victim may open it yet."""
    scene = Scene()
    scene.hold_fences()
    scene.steal()
    scene.shard.opening.add(scene.victim_is.pid)
    scene.box.agent(wire.ProcessFenced(scene.last_fence(), how))
    scene.answered = 1
    assert scene.owners() == [scene.thief_is.pid] * 2
    return scene


def test_the_last_fence_waits_until_nothing_is_being_opened() -> None:
    scene = opening()
    assert len(scene.box.fences) == 1 and len(scene.box.replies[scene.thief]) == 1
    for _ in range(3):
        assert scene.box.mmu.next_deadline() <= scene.box.now + OPENING_LOOK_INTERVAL
        scene.box.pass_time(OPENING_LOOK_INTERVAL)
        assert len(scene.box.fences) == 1
    scene.shard.opening.clear()
    scene.box.pass_time(OPENING_LOOK_INTERVAL)
    assert scene.box.fences[-1].ranges == scene.box.fences[0].ranges
    scene.answer("ptraced")
    stolen(scene.box.replies[scene.thief][-1], 2, "ptraced")


def test_the_first_fence_does_not_wait() -> None:
    scene = Scene()
    scene.shard.opening.add(scene.victim_is.pid)
    scene.hold_fences()
    scene.steal()
    assert len(scene.box.fences) == 1


def test_a_victim_that_is_stopped_while_it_opens_memory_is_not_waited_for_for_ever() -> None:
    scene = opening()
    scene.box.pass_time(OPENING_PATIENCE - OPENING_LOOK_INTERVAL)
    assert len(scene.box.fences) == 1
    scene.box.pass_time(2 * OPENING_LOOK_INTERVAL)
    assert len(scene.box.fences) == 2
    scene.answer("ptraced")
    stolen(scene.box.replies[scene.thief][-1], 2, "ptraced")


def test_write_protection_does_not_wait() -> None:
    scene = opening("protected")
    assert len(scene.box.fences) == 2
    scene.answer("protected")
    stolen(scene.box.replies[scene.thief][-1], 2, "protected")


@pytest.mark.parametrize("end", ["dies", "agent is linked anew"])
def test_a_fence_that_is_held_is_not_forgotten(end: str) -> None:
    scene = opening()
    if end == "dies":
        scene.box.exit(scene.victim_is)
        stolen(scene.box.replies[scene.thief][-1], 2, "dead")
        return
    scene.box.do(scene.box.mmu.agent_linked(scene.victim_is.compute))
    assert len(scene.box.fences) == 1
    scene.shard.opening.clear()
    scene.box.pass_time(OPENING_LOOK_INTERVAL)
    assert len(scene.box.fences) == 2
