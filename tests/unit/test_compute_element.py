"""An agent: who may enrol, and what it tells of the end of processes."""

from __future__ import annotations

from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import Reply, ToMmu, Unwatch, Watch
from bequest.wire import messages as wire

TICKET = b"t" * 16
EXPECT = wire.ExpectProcess(3, 8, 4711, TICKET)


def enrolled() -> ComputeElement:
    agent = ComputeElement()
    agent.mmu_message(EXPECT, 0)
    outputs = agent.client_message(1, 4711, wire.Enrol(TICKET), 0)
    assert outputs == [Watch(1, 4711), ToMmu(wire.ProcessEnrolled(3, 8)), Reply(1, wire.Enrolled(3))]
    return agent


def refused(agent: ComputeElement, peer: int, os_pid: int, ticket: bytes) -> bool:
    (reply,) = agent.client_message(peer, os_pid, wire.Enrol(ticket), 0)
    return isinstance(reply, Reply) and isinstance(reply.message, wire.Failed)


def test_the_expected_process_with_its_ticket_enrols_once() -> None:
    agent = ComputeElement()
    assert refused(agent, 1, 4711, TICKET)
    agent.mmu_message(EXPECT, 0)
    assert refused(agent, 1, 4711, b"u" * 16)
    assert refused(agent, 1, 4712, TICKET)  # a child of the process, say
    agent = enrolled()
    assert refused(agent, 2, 4711, TICKET)


def test_the_end_of_a_connection_is_a_hint_that_of_the_process_a_fact() -> None:
    agent = enrolled()
    assert agent.client_gone(1) == [ToMmu(wire.ProcessLost(3, 8))]
    assert agent.exited(1) == [Unwatch(1), ToMmu(wire.ProcessExited(3, 8))]
    assert agent.exited(1) == []
    assert agent.client_gone(1) == []


def test_a_detached_process_is_watched_no_more() -> None:
    agent = enrolled()
    assert agent.mmu_message(wire.ForgetProcess(3, 7), 0) == []  # an earlier bearer of the id
    assert agent.mmu_message(wire.ForgetProcess(3, 8), 0) == [Unwatch(1)]
    assert agent.client_gone(1) == []
    assert agent.exited(1) == []
