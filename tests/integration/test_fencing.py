"""The ladder, rung by rung, where a process dies on the way or will not be fenced: what is said of it is true."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

import victims
from actors import Nursery, until
from bequest import _core
from bequest.runtime import fencing
from bequest.runtime.fencing import Target, Unfenced, fence, guard, lift, outlive
from victims import MIB, SLAB, Victim

RANGES = [(SLAB, MIB)]


@pytest.fixture
def victim(nursery: Nursery) -> Iterator[Victim]:
    slab = os.memfd_create("slab", os.MFD_CLOEXEC)
    os.ftruncate(slab, MIB)
    one = Victim(nursery, slab)
    yield one
    one.close()
    os.close(slab)


def target_of(victim: Victim, with_fence: bool = True) -> Target:
    return Target(victim.pid, victim.pidfd, victim.fence if with_fence else None)


def fails(error: int) -> Callable[..., None]:
    def act(*arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    return act


def kill_and_wait(victim: Victim) -> None:
    victim.signal(signal.SIGKILL)
    until(lambda: _core.is_gone(victim.fence), "its end")


def test_a_fence_is_inherited_by_nobody() -> None:
    """Whoever has it can lift what the agent closed with its copy."""
    fence = _core.open_fence()
    assert not os.get_inheritable(fence)
    os.close(fence)


def test_who_dies_while_it_is_protected_is_dead(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    protect = _core.write_protect

    def protect_the_dying(*arguments: object) -> None:
        kill_and_wait(victim)
        protect(*arguments)

    monkeypatch.setattr(_core, "write_protect", protect_the_dying)
    assert fence(target_of(victim), "protect", RANGES, hinted=False) == "dead"


@pytest.mark.parametrize("error", [errno.ESRCH, errno.EPERM])
def test_who_is_gone_when_a_rung_has_failed_is_dead(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail_on_the_dead(*arguments: object) -> None:
        kill_and_wait(victim)
        fails(error)()

    monkeypatch.setattr(_core, "write_protect", fail_on_the_dead)
    assert fence(target_of(victim), "protect", RANGES, hinted=False) == "dead"


def test_who_has_no_thread_to_trace_is_about_to_be_dead(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads end one after the other, and the last one may take a moment."""
    monkeypatch.setattr(_core, "write_protect", fails(errno.EINVAL))
    monkeypatch.setattr(_core, "ptrace_close", fails(errno.ESRCH))
    timer = threading.Timer(fencing.DEATH_PATIENCE / 5, victim.signal, (signal.SIGKILL,))
    timer.start()
    assert fence(target_of(victim), "ptrace", RANGES, hinted=False) == "dead"
    timer.join()


@pytest.fixture
def only_killing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "write_protect", fails(errno.EINVAL))
    monkeypatch.setattr(_core, "ptrace_close", fails(errno.EPERM))


@pytest.mark.usefixtures("only_killing")
@pytest.mark.parametrize("with_fence", [True, False])
def test_killed_is_said_when_it_has_gone_and_not_before(victim: Victim, with_fence: bool) -> None:
    assert fence(target_of(victim, with_fence), "kill", RANGES, hinted=False) == "killed"
    assert fencing.has_ended(target_of(victim)) or with_fence
    assert _core.is_gone(victim.fence)


@pytest.mark.usefixtures("only_killing")
def test_killed_is_not_said_while_somebody_runs_in_its_address_space(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "KILL_TIMEOUT", 0.05)
    sharer = victim.call(victims.leave_a_sharer)
    try:
        with pytest.raises(Unfenced, match="something runs in its address space"):
            fence(target_of(victim), "kill", RANGES, hinted=False)
    finally:
        os.kill(sharer, signal.SIGKILL)
    until(lambda: _core.is_gone(victim.fence), "the end of the sharer")


@pytest.mark.usefixtures("only_killing")
@pytest.mark.parametrize("reach", ["protect", "ptrace"])
def test_nobody_is_killed_whose_group_has_not_allowed_it(victim: Victim, reach: str) -> None:
    with pytest.raises(Unfenced, match="protect: Invalid argument"):
        fence(target_of(victim), reach, RANGES, hinted=False)
    assert victim.call(victims.store, 0, 5) == 5


@pytest.mark.parametrize("with_fence", [True, False])
def test_a_fence_is_lifted(victim: Victim, with_fence: bool) -> None:
    target = target_of(victim, with_fence)
    assert victim.call(victims.store, 0, 5) == 5  # slabs have all their pages
    if with_fence:
        assert fence(target, "protect", RANGES, hinted=False) == "protected"
    lift(target, RANGES)
    assert victim.call(victims.store, 0, 6) == 6


def test_who_runs_on_in_the_address_space_of_the_ended_stays_kept_from_it(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole window was closed when the process ended; what was to be lifted then is no more."""
    sharer = victim.call(victims.leave_a_sharer)
    victim.signal(signal.SIGKILL)
    try:
        target = target_of(victim)
        until(lambda: fencing.has_ended(target), "its end")
        monkeypatch.setattr(fencing, "DEATH_PATIENCE", 0.01)
        outlive(target)
        lifted: list[object] = []
        monkeypatch.setattr(_core, "lift_protection", lambda *about: lifted.append(about))
        lift(target, RANGES)
        assert lifted == []
    finally:
        os.kill(sharer, signal.SIGKILL)


@pytest.mark.parametrize("with_fence", [True, False])
def test_the_dead_need_no_guard(victim: Victim, with_fence: bool) -> None:
    kill_and_wait(victim)
    until(lambda: fencing.has_ended(target_of(victim)), "its end")
    guard(target_of(victim, with_fence), SLAB, MIB)
