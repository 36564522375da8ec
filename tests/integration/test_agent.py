"""An agent fences, guards and proves deaths: the ladder, on real processes; garbage descriptors do it no harm."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import victims
from actors import Nursery, until
from agents import GROUP, INCARNATION, PID, TICKET, AgentUnderTest
from bequest import _core
from bequest.errors import RackFault
from bequest.limits import DEATH_PATIENCE
from bequest.runtime.transport import Channel, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, encode
from victims import MIB, SLAB, Victim

SLAB_BYTES = 4 * MIB
RANGES = [(SLAB, SLAB_BYTES)]
EXITED = wire.ProcessExited(PID, INCARNATION)


@pytest.fixture
def agent(nursery: Nursery, tmp_path: Path) -> Iterator[AgentUnderTest]:
    one = AgentUnderTest(nursery, tmp_path)
    yield one
    one.close()


@pytest.fixture
def new_victim(nursery: Nursery) -> Iterator[Callable[[], Victim]]:
    slab = os.memfd_create("slab", os.MFD_CLOEXEC)
    os.ftruncate(slab, SLAB_BYTES)
    _core.warm(slab, 0, SLAB_BYTES, False)
    made: list[Victim] = []

    def make() -> Victim:
        made.append(Victim(nursery, slab))
        return made[-1]

    yield make
    for one in made:
        one.close()
    os.close(slab)


@pytest.fixture
def victim(new_victim: Callable[[], Victim]) -> Victim:
    return new_victim()


# --- the ladder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", ["protect", "ptrace", "kill"])
def test_the_gentlest_rung_that_holds_is_taken(agent: AgentUnderTest, victim: Victim, reach: str) -> None:
    agent.expect(victim)
    victim.stop()
    assert agent.fence(RANGES, reach) == wire.ProcessFenced(1, "protected")
    victim.signal(signal.SIGCONT)
    victim.start(victims.store, 4096)
    assert victim.wait() == -signal.SIGBUS
    assert agent.hear(wire.ProcessExited) == EXITED


def test_without_a_userfaultfd_there_remains_ptrace(agent: AgentUnderTest, victim: Victim) -> None:
    agent.expect(victim, with_fence=False)
    refused = agent.fence(RANGES, "protect")
    assert isinstance(refused, wire.FenceFailed) and "no userfaultfd" in refused.message
    assert victim.call(victims.store, 0, 5) == 5
    assert agent.fence(RANGES, "ptrace") == wire.ProcessFenced(2, "ptraced")
    victim.start(victims.store, 0)
    assert victim.wait() == -signal.SIGSEGV


def test_who_can_be_neither_protected_nor_traced_is_killed(agent: AgentUnderTest, victim: Victim) -> None:
    """A thread in a vfork cannot be stopped; a debugger that was there first has the same effect."""
    agent.expect(victim, with_fence=False)
    victim.call(victims.be_traced_by_a_child)
    refused = agent.fence(RANGES, "ptrace")
    assert isinstance(refused, wire.FenceFailed) and "ptrace:" in refused.message
    assert agent.fence(RANGES, "kill") == wire.ProcessFenced(2, "killed")
    assert agent.heard[-2] == EXITED
    assert victim.wait() == -signal.SIGKILL


def test_what_is_lifted_is_lifted_behind_the_fences_before_it(agent: AgentUnderTest, victim: Victim) -> None:
    agent.expect(victim)
    for job in range(1, 9, 2):
        agent.tell(wire.FenceProcess(job, PID, INCARNATION, "protect", RANGES, hinted=job == 1))
        agent.tell(wire.LiftFence(job + 1, PID, INCARNATION, RANGES))
        assert agent.hear(wire.FenceLifted) == wire.FenceLifted(job + 1)
        assert agent.heard[-2] == wire.ProcessFenced(job, "protected")
        assert victim.call(victims.store, 0, job) == job
    agent.tell(wire.LiftFence(9, PID, INCARNATION + 1, RANGES))
    assert agent.hear(wire.FenceLifted) == wire.FenceLifted(9)


@pytest.mark.parametrize("with_fence", [True, False])
def test_who_is_dead_need_not_be_fenced(agent: AgentUnderTest, victim: Victim, with_fence: bool) -> None:
    agent.expect(victim, with_fence=with_fence)
    victim.signal(signal.SIGKILL)
    assert (
        agent.fence(RANGES, "protect", hinted=with_fence) == wire.ProcessFenced(1, "dead") or not with_fence
    )
    agent.hear(wire.ProcessExited) if EXITED not in agent.heard else None
    assert agent.heard.count(EXITED) == 1
    answered = len(agent.heard)
    assert agent.fence(RANGES, "protect") == wire.ProcessFenced(answered, "dead")


def test_a_false_hint_costs_a_moment_and_then_it_is_fenced(agent: AgentUnderTest, victim: Victim) -> None:
    agent.expect(victim)
    before = time.monotonic()
    assert agent.fence(RANGES, "protect", hinted=True) == wire.ProcessFenced(1, "protected")
    assert time.monotonic() - before >= DEATH_PATIENCE


def test_an_agent_answers_while_a_fence_takes_long(
    agent: AgentUnderTest, new_victim: Callable[[], Victim]
) -> None:
    slow, other = new_victim(), new_victim()
    agent.expect(slow, PID)
    agent.expect(other, PID + 1)
    for job in range(5):
        agent.tell(wire.FenceProcess(job, PID, INCARNATION, "protect", RANGES, hinted=True))
    agent.tell(wire.FenceProcess(9, PID + 1, INCARNATION, "protect", RANGES))
    assert agent.hear(wire.ProcessFenced) == wire.ProcessFenced(9, "protected")
    for job in range(5):
        assert agent.hear(wire.ProcessFenced) == wire.ProcessFenced(job, "protected")


def test_a_fence_outlives_the_process_that_it_was_closed_around(
    agent: AgentUnderTest, victim: Victim
) -> None:
    """Somebody shares its address space, and must be kept out as well when the process is said to have ended."""
    sharer = victim.call(victims.leave_a_sharer)
    before = descriptors(agent)
    agent.expect(victim)
    victims_own = descriptors(agent) - before - 2  # all but what it holds the victim by
    try:
        victim.signal(signal.SIGKILL)
        until(lambda: select.select([victim.pidfd], [], [], 0)[0], "its end")
        assert agent.hear(wire.ProcessExited) == EXITED
        # What the test's own copy of the descriptor is told: this range is registered, so the whole window is.
        assert is_registered(victim, sharer)
        agent.tell(wire.ForgetProcess(PID, INCARNATION))
        time.sleep(2 * DEATH_PATIENCE)
        assert is_registered(victim, sharer)
    finally:
        os.kill(sharer, signal.SIGKILL)
    until(lambda: _core.is_gone(victim.fence), "the end of the sharer")
    until(lambda: descriptors(agent) <= before + victims_own, "the descriptors to be closed")


def is_registered(victim: Victim, sharer: int) -> bool:
    """`uw` and `um` among the flags of a mapping: write-protected and missing pages are caught."""
    mappings = Path(f"/proc/{sharer}/smaps").read_text().split("VmFlags:")
    start = next(i for i, text in enumerate(mappings) if f"{SLAB:x}-" in text)
    return {"uw", "um"} <= set(mappings[start + 1].splitlines()[0].split())


# --- proof of death ------------------------------------------------------------------------------------------------


def test_a_false_hint_of_a_death_is_not_passed_on(agent: AgentUnderTest, victim: Victim) -> None:
    agent.expect(victim)
    agent.tell(wire.ProveDeath(PID, INCARNATION))
    time.sleep(1.5 * DEATH_PATIENCE)
    assert agent.fence(RANGES, "protect") == wire.ProcessFenced(1, "protected")
    assert EXITED not in agent.heard


def test_proof_of_a_death_is_told_once(agent: AgentUnderTest, victim: Victim) -> None:
    agent.expect(victim)
    agent.tell(wire.ProveDeath(PID, INCARNATION))  # a false hint
    agent.tell(wire.ProveDeath(PID, INCARNATION - 1))
    time.sleep(DEATH_PATIENCE / 2)
    victim.signal(signal.SIGKILL)
    agent.tell(wire.ProveDeath(PID, INCARNATION))
    assert agent.hear(wire.ProcessExited) == EXITED
    agent.tell(wire.ProveDeath(PID, INCARNATION))
    fenced = agent.fence(RANGES, "kill")
    assert isinstance(fenced, wire.ProcessFenced) and fenced.how == "dead"
    assert agent.heard.count(EXITED) == 1


# --- guards ----------------------------------------------------------------------------------------------------------


def test_a_range_is_guarded_in_every_process_of_the_group(
    agent: AgentUnderTest, new_victim: Callable[[], Victim]
) -> None:
    with_fence, without, debugged = new_victim(), new_victim(), new_victim()
    agent.expect(with_fence, 1)
    agent.expect(without, 2, with_fence=False)
    agent.expect(debugged, 3, with_fence=False)
    debugged.call(victims.be_traced_by_a_child)
    agent.tell(wire.GuardRange(5, GROUP, SLAB, 4096))
    assert agent.hear(wire.RangeGuarded) == wire.RangeGuarded(5, ["victim-3"])
    assert with_fence.call(victims.load, 0) == 0  # still there
    with_fence.call(victims.punch, 0, 4096)
    with_fence.start(victims.load, 0)
    assert with_fence.wait() == -signal.SIGBUS
    without.start(victims.load, 0)
    assert without.wait() == -signal.SIGSEGV


# --- bad descriptors -----------------------------------------------------------------------------------------------


def enrolment(agent: AgentUnderTest, pid: int = PID) -> Channel:
    agent.tell(wire.ExpectProcess(pid, INCARNATION, os.getpid(), TICKET, "me", GROUP))
    return Channel.connect(agent.path)


def test_garbage_descriptors_are_refused_and_closed(agent: AgentUnderTest, victim: Victim) -> None:
    channel = enrolment(agent)
    lingering = socket.create_server(("127.0.0.1", 0))
    garbage = [
        [os.open("/dev/null", os.O_RDWR)],
        [*os.pipe()],
        [os.memfd_create("garbage")],
        [os.dup(victim.fence), os.dup(victim.fence)],
        [lingering.detach()],
    ]
    before = descriptors(agent)
    for fds in garbage:
        with pytest.raises(RackFault, match="one userfaultfd"):
            channel.request(wire.Enrol(TICKET), fds=fds)
        for fd in fds:
            os.close(fd)
    until(lambda: descriptors(agent) == before, "the descriptors to be closed")
    channel.request(wire.Enrol(TICKET))
    channel.close()


def test_closing_what_a_client_sent_does_not_hold_the_agent_up(agent: AgentUnderTest) -> None:
    """A socket with data to send and SO_LINGER blocks whoever closes it last."""
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.setblocking(False)
    try:
        while True:
            accepted.send(bytes(1 << 16))
    except BlockingIOError:
        accepted.setblocking(True)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array.array("i", [1, 20]).tobytes())
    channel = enrolment(agent)
    os.kill(agent.pid, signal.SIGSTOP)  # so that it is the last to have it
    send_packet(channel._socket, encode(wire.Enrol(TICKET)), [accepted.fileno()])
    accepted.close()
    os.kill(agent.pid, signal.SIGCONT)
    before = time.monotonic()
    refused = channel._receive()
    assert isinstance(Decoder(wire.DaemonToClient).decode(refused.data), wire.Failed)
    channel.request(wire.Enrol(TICKET))
    assert time.monotonic() - before < 5
    for one in (channel, client, server):
        one.close()


def test_descriptors_with_other_messages_are_closed(agent: AgentUnderTest) -> None:
    channel = enrolment(agent)
    before = descriptors(agent)
    null = os.open("/dev/null", os.O_RDWR)
    for _ in range(20):
        with pytest.raises(RackFault):
            channel.request(wire.Sync(1), fds=[null, null])
            raise RackFault
    os.close(null)
    until(lambda: descriptors(agent) == before, "the descriptors to be closed")
    channel.close()


def test_an_agent_keeps_two_descriptors_for_each_process_and_gives_them_back(
    agent: AgentUnderTest, new_victim: Callable[[], Victim]
) -> None:
    channel = enrolment(agent, pid=9)  # by then the first one has been seen off
    before = descriptors(agent)
    for pid in (1, 2, 3):
        agent.expect(new_victim(), pid)
    assert descriptors(agent) == before + 3 * 3  # and its connection
    for pid in (1, 2, 3):
        agent.tell(wire.ForgetProcess(pid, INCARNATION))
    until(lambda: descriptors(agent) == before + 3, "the descriptors to be closed")
    channel.close()


def descriptors(agent: AgentUnderTest) -> int:
    return len(os.listdir(f"/proc/{agent.pid}/fd"))
