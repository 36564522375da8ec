"""Notices that a Rack MMU owes: a kill at any step of what brings them about loses none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bequest.limits import PAGE_BYTES
from bequest.protocol import owed_notices
from bequest.wire import messages as wire
from killable_box import KillableBox

FAILED = wire.MemoryFailed(1, 0, 8 * PAGE_BYTES, "a cell died")


class World(KillableBox):
    """A process that owns memory, has a contact, and is stood by for under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.peer, self.owner = self.attach("owner")
        self.friend_peer, self.friend = self.attach("friend")
        ready = self.ask(self.peer, wire.NeedSlab(512))
        assert isinstance(ready, wire.SlabReady) and ready.slab == FAILED.slab
        self.address = self.shards[self.owner.group].records[ready.slab][0]
        self.shards[self.owner.group].own(self.owner.pid, self.address, 8)
        assert isinstance(self.ask(self.friend_peer, wire.StandBy("late")), wire.StandingBy)

    def told(self) -> list[tuple[int, wire.Notice]]:
        """Whom agents have told what, each number once."""
        said = {m.number: m for m in self.to_agents if isinstance(m, wire.TellProcess) and m.number}
        return [(m.pid, m.notice) for _, m in sorted(said.items())]


def memory_fails(world: World) -> None:
    world.elements[0].fail(FAILED)
    world.do(world.mmu.element_message(0, FAILED))


def contacts_are_called(world: World) -> None:
    notice = wire.NoticeContact("owner", world.owner.pid, world.owner.incarnation, "memory")
    world.agents.says(wire.CallContacts(["friend"], notice, world.owner.group, 1))
    world.do(world.mmu.agent_message(wire.CallContacts(["friend"], notice, world.owner.group, 1), world.now))


def one_attaches(world: World) -> None:
    world.ask(world.client(os_pid=77), wire.Attach("late", nonce=b"late"))


@pytest.mark.parametrize("act", [memory_fails, contacts_are_called, one_attaches])
def test_a_rack_mmu_that_is_killed_at_any_step_tells_it_all_the_same(act: Callable[[World], None]) -> None:
    world = World()
    before = len(world.steps)
    act(world)
    ((expected_pid, expected),) = world.told()
    for kill_at in range(1, len(world.steps) - before + 1):
        world = World()
        where = world.until_killed(lambda: act(world), kill_at)  # noqa: B023 - called at once
        world.restart()
        if act is one_attaches:
            act(world)
        ((pid, told),) = world.told()
        assert pid == expected_pid and type(told) is type(expected), (where, told)
        if isinstance(expected, wire.NoticeMemory):
            assert isinstance(told, wire.NoticeMemory) and told.runs == expected.runs
            assert FAILED.slab in world.shards[world.owner.group].failed_slabs, where


def test_what_was_answered_is_not_told_again() -> None:
    world = World()
    memory_fails(world)
    (said,) = [m for m in world.to_agents if isinstance(m, wire.TellProcess)]
    world.to_agents.clear()
    world.do(world.mmu.agent_linked(world.owner.compute))
    assert said in world.to_agents
    world.agent(wire.ProcessTold(said.number))
    world.agent(wire.ProcessTold(said.number))
    world.to_agents.clear()
    world.do(world.mmu.agent_linked(world.owner.compute))
    world.restart()
    assert said not in world.to_agents


def test_who_has_gone_is_owed_nothing_and_nobody_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed_notices, "NOTICES_OWED_MAX", 5)
    world = World()
    for number in range(8):
        notice = wire.NoticeContact("owner", 1, 1, "memory", cause=str(number))
        world.agent(wire.CallContacts(["friend"], notice, world.owner.group, number))
    assert len(world.written["owed notices"]) == 5
    world.ask(world.friend_peer, wire.Detach())
    world.pass_time(2)
    assert not world.written["owed notices"]


# --- the rack monitor's word ------------------------------------------------------------------------------------


def test_what_has_recovered_while_the_rack_mmu_was_away_is_told_to_have() -> None:
    world = World()
    key = world.owner.pid, world.owner.incarnation
    world.do(world.mmu.monitor_message(wire.ElementSilent(0, 0.5)))
    world.do(world.mmu.monitor_message(wire.Suspicion(*key, 0.25)))
    world.restart()
    world.to_agents.clear()
    world.do(world.mmu.monitor_message(wire.ElementSilent(0, 0.7)))  # it stands: nobody need hear of it twice
    world.do(world.mmu.monitor_message(wire.Suspicion(*key, 0.7)))
    assert world.to_agents == []
    world.do(world.mmu.monitor_message(wire.ElementBack(0)))
    world.do(world.mmu.monitor_message(wire.Cleared(*key)))
    assert [m.notice for m in world.to_agents if isinstance(m, wire.TellProcess)] == [
        wire.NoticeElement("dram0", False, 0.0)
    ]
    cleared = wire.TellGroup(world.owner.group, wire.NoticeCleared("owner", *key))
    assert world.to_agents[1:] == [cleared] * 2


def test_a_suspicion_that_stands_is_said_on_a_new_link_to_an_agent_before_the_announcement_ends() -> None:
    world = World()
    key = world.owner.pid, world.owner.incarnation
    world.do(world.mmu.monitor_message(wire.Suspicion(*key, 0.25)))
    world.to_agents.clear()
    world.do(world.mmu.agent_linked("host1"))
    suspected = wire.TellGroup(world.owner.group, wire.NoticeSuspected("owner", *key, 0.25))
    assert world.to_agents.index(suspected) < world.to_agents.index(wire.AnnouncementEnds())
    world.do(world.mmu.monitor_message(wire.Cleared(*key)))
    world.to_agents.clear()
    world.do(world.mmu.agent_linked("host1"))
    assert suspected not in world.to_agents
