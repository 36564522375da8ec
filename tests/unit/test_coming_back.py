"""Clients that come back to a Rack MMU: who is believed, what is done once, and who is waited for."""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import ClassVar

import pytest

from bequest.protocol.outputs import Output, ToElement
from bequest.runtime.mmu_daemon import MmuDaemon
from bequest.wire import messages as wire
from restored_world import NONCE, SLAB_PAGES, User, World


def resume(user: User, **changes: object) -> wire.Resume:
    assert user.attached is not None
    values = {
        "pid": user.attached.pid,
        "incarnation": user.attached.incarnation,
        "ticket": user.attached.agent_ticket,
    }
    return wire.Resume(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", [{"ticket": bytes(16)}, {"ticket": b""}, {"incarnation": 99}, {"pid": 2}])
def test_who_cannot_show_the_ticket_is_not_that_process(lie: dict[str, object]) -> None:
    world = World()
    user = world.user("a")
    world.user("b")
    world.restart()
    stranger = world.client(os_pid=user.os_pid)
    refused = world.ask(stranger, resume(user, **lie))
    assert isinstance(refused, wire.Failed) and refused.kind == "not-attached"
    assert isinstance(user.come_back(), wire.Resumed)


def test_nor_is_another_os_process_that_can() -> None:
    world = World()
    user = world.user("a")
    world.restart()
    refused = world.ask(world.client(os_pid=1), resume(user))
    assert isinstance(refused, wire.Failed) and refused.kind == "not-attached"


def test_a_nonce_is_its_process_own() -> None:
    world = World()
    first = world.user(None)
    assert isinstance(first.ask(wire.Attach("a", nonce=NONCE)), wire.Attached)
    thief = world.user(None)
    refused = thief.ask(wire.Attach("a", nonce=NONCE))
    assert isinstance(refused, wire.Failed) and refused.kind == "name-taken"


def test_a_numbered_request_is_carried_out_once() -> None:
    world = World()
    user = world.user("a")
    asked = wire.Once(5, wire.NeedSlab(SLAB_PAGES))
    answer = world.ask(user.peer, asked)
    assert isinstance(answer, wire.SlabReady)
    assert world.ask(user.peer, asked) == answer
    user.come_back()
    assert world.ask(user.peer, asked) == answer
    assert world.ask(user.peer, wire.Once(6, wire.NeedSlab(SLAB_PAGES))) != answer
    assert len(user.shard.records) == 2


def test_numbers_are_for_the_attached() -> None:
    world = World()
    refused = world.ask(world.client(), wire.Once(1, wire.PlaceProcess()))
    assert isinstance(refused, wire.Failed) and refused.kind == "not-attached"
    refused = world.ask(world.user("a").peer, wire.Once(0, wire.PlaceProcess()))
    assert isinstance(refused, wire.Failed) and refused.kind == "not-attached"


def test_an_embedded_rack_waits_for_clients_that_have_not_come_back() -> None:
    world = World(linger=1.0)
    idle, guest = world.user(None), world.user("a")
    world.restart()
    world.pass_time(60)
    assert world.stopped is None
    assert sorted(world.absent.values()) == [idle.os_pid, guest.os_pid]
    guest.come_back()
    guest.ask(wire.Detach())
    world.leave(guest.peer)
    world.pass_time(60)
    assert world.stopped is None
    world.do(world.mmu.absent_client_exited(idle.client, world.now))
    world.pass_time(1.1)
    assert world.stopped is not None


def test_a_group_waits_for_its_creator() -> None:
    world = World()
    creator = world.user(None)
    assert isinstance(creator.ask(wire.CreateGroup("etl", nonce=NONCE)), wire.GroupCreated)
    world.restart()
    world.pass_time(3)
    impostor = world.client(os_pid=1)
    world.ask(impostor, wire.ComeBack(creator.client))
    world.leave(impostor)
    world.pass_time(3)
    assert len(world.shards) == 1
    creator.come_back()
    world.leave(creator.peer)
    world.pass_time(3)
    assert world.shards == {}


def test_who_was_attaching_and_never_asks_again_loses_the_name() -> None:
    world = World()
    attaching = world.client(os_pid=77)
    assert isinstance(world.ask(attaching, wire.Attach("a", nonce=NONCE)), wire.Attached)
    world.restart()
    world.pass_time(20)
    assert world.processes() == {"a": "attached"}
    world.pass_time(12)
    assert world.processes()["a"] == "orphaned"
    assert isinstance(world.user("a").attached, wire.Attached)


def test_who_was_attaching_and_has_memory_is_not_dead_because_it_does_not_ask() -> None:
    world = World()
    attaching = world.client(os_pid=77)
    assert isinstance(world.ask(attaching, wire.Attach("a", nonce=NONCE)), wire.Attached)
    assert isinstance(world.ask(attaching, wire.NeedSlab(SLAB_PAGES)), wire.SlabReady)
    world.restart()
    world.pass_time(40)
    assert world.processes()["a"] == "attached"
    world.do(world.mmu.absent_client_exited(attaching, world.now))
    assert world.processes()["a"] == "orphaned"


def test_of_who_has_enrolled_its_agent_says_that_it_is_dead_and_nobody_else() -> None:
    world = World()
    user = world.user("a")
    assert user.attached is not None
    world.restart()
    world.do(world.mmu.absent_client_exited(user.client, world.now))
    assert world.processes()["a"] == "lost"
    world.exit(user.attached)
    assert world.processes()["a"] == "orphaned"


def test_a_process_that_cannot_be_watched_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        exited: ClassVar[list[int]] = []

        def absent_client_exited(self, client: int, now: float) -> list[Output]:
            self.exited.append(client)
            return []

        def tick(self, now: float) -> list[Output]:
            return []

    daemon = MmuDaemon.__new__(MmuDaemon)
    daemon._machine, daemon._unwatched, daemon._notes = Machine(), {}, deque()  # type: ignore[assignment]
    monkeypatch.setattr(daemon, "_take", lambda given: given())
    trouble = OSError(errno.EMFILE, "out of descriptors")

    def pidfd_open(os_pid: int) -> int:
        raise trouble

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    daemon._await_exit(3, 77)
    daemon.tick(0.0)
    assert Machine.exited == []
    trouble = ProcessLookupError(errno.ESRCH, "gone")
    daemon.tick(0.0)
    daemon.tick(0.0)
    assert Machine.exited == [3]


def test_who_did_not_wait_for_the_answer_may_say_again_on_the_same_connection_that_it_is_back() -> None:
    world = World()
    user = world.user("a")
    world.restart()
    assert user.come_back() == wire.Resumed(user.id)
    assert world.ask(user.peer, resume(user)) == wire.Resumed(user.id)
    assert isinstance(user.ask(wire.NeedSlab(SLAB_PAGES)), wire.SlabReady)
    other = world.ask(
        world.client(os_pid=user.os_pid), wire.Attach("b")
    )  # of the same operating-system process
    assert isinstance(other, wire.Attached)
    taken = world.ask(user.peer, wire.Resume(other.pid, other.incarnation, other.agent_ticket))
    assert isinstance(taken, wire.Failed), "this connection is a's"


def test_a_process_that_was_given_up_is_told_what_it_can_do() -> None:
    world = World()
    user = world.user("a")
    world.leave(user.peer)
    assert user.come_back() == wire.Resumed(user.id)
    refused = user.ask(wire.NeedSlab(SLAB_PAGES))
    assert isinstance(refused, wire.Failed) and "detach, and attach anew" in refused.message
    assert user.ask(wire.Detach()) == wire.Done()


def test_a_request_under_way_is_awaited_and_not_begun_again() -> None:
    world = World()
    user = world.user("a")
    user.number += 1
    asked = wire.Once(user.number, wire.NeedSlab(SLAB_PAGES))
    first = world.mmu.client_message(user.peer, asked, world.now)
    user.come_back()
    again = world.mmu.client_message(user.peer, asked, world.now)
    assert any(isinstance(output, ToElement) for output in first)
    assert not any(isinstance(output, ToElement) for output in again)


def test_who_comes_back_takes_the_place_of_its_own_former_connection_only() -> None:
    world = World()
    one, other = world.user("a"), world.user("b")
    world.restart()
    one.come_back()
    missed = [absent.client for absent in world.mmu._state.clients.absent()]
    assert missed == [other.client]
