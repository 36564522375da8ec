"""An agent: who may enrol, what it tells of the end of processes, and whom it fences and guards."""

from __future__ import annotations

from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import (
    Confirm,
    Fence,
    Guard,
    Lift,
    Push,
    Reply,
    ToMmu,
    Unwatch,
    Watch,
    WatchedProcess,
)
from bequest.wire import messages as wire

TICKET = b"t" * 16
PROCESS = WatchedProcess(3, 8, 4711, TICKET, "a", 2)
EXPECT = wire.ExpectProcess(3, 8, 4711, TICKET, "a", 2)


def linked() -> ComputeElement:
    """An agent of a rack without processes."""
    agent = ComputeElement()
    assert agent.linked() == []
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == []
    return agent


def enrolled() -> ComputeElement:
    agent = linked()
    agent.mmu_message(EXPECT, 0)
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == [Watch(PROCESS, 1)]
    assert agent.watched((3, 8)) == [ToMmu(wire.ProcessEnrolled(3, 8)), Reply(1, wire.Enrolled(3))]
    return agent


def refused(agent: ComputeElement, peer: int, os_pid: int, ticket: bytes) -> bool:
    (reply,) = agent.client_message(peer, os_pid, wire.Enrol(ticket), 0)
    return isinstance(reply, Reply) and isinstance(reply.message, wire.Failed)


def test_the_expected_process_with_its_ticket_enrols_once() -> None:
    agent = linked()
    assert refused(agent, 1, 4711, TICKET)
    agent.mmu_message(EXPECT, 0)
    assert refused(agent, 1, 4711, b"u" * 16)
    assert refused(agent, 1, 4712, TICKET)  # a child of the process, say
    agent = enrolled()
    assert refused(agent, 2, 4711, TICKET)


def test_who_did_not_wait_for_the_answer_may_enrol_again_on_the_same_connection() -> None:
    agent = linked()
    agent.mmu_message(EXPECT, 0)
    agent.client_message(1, 4711, wire.Enrol(TICKET), 0)
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == [], "the first answer is on its way"
    agent.watched((3, 8))
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == [Reply(1, wire.Enrolled(3))]
    agent.exited((3, 8))
    assert refused(agent, 1, 4711, TICKET)


def test_the_end_of_a_connection_is_a_hint_that_of_the_process_a_fact() -> None:
    agent = enrolled()
    assert agent.client_gone(1) == [ToMmu(wire.ProcessLost(3, 8))]
    assert agent.exited((3, 8)) == [ToMmu(wire.ProcessExited(3, 8))]
    assert agent.exited((3, 8)) == []
    assert agent.client_gone(1) == []


def test_a_detached_process_is_watched_no_more() -> None:
    agent = enrolled()
    assert agent.mmu_message(wire.ForgetProcess(3, 7), 0) == []  # an earlier bearer of the id
    assert agent.mmu_message(wire.ForgetProcess(3, 8), 0) == [Unwatch((3, 8))]
    assert agent.client_gone(1) == []
    assert agent.exited((3, 8)) == []


def test_a_hint_of_a_death_is_looked_into() -> None:
    agent = enrolled()
    assert agent.mmu_message(wire.ProveDeath(3, 7), 0) == []
    assert agent.mmu_message(wire.ProveDeath(3, 8), 0) == [Confirm((3, 8))]
    assert agent.exited((3, 8)) == [ToMmu(wire.ProcessExited(3, 8))]
    assert agent.mmu_message(wire.ProveDeath(3, 8), 0) == []


RANGES = [(0x2010_0000_0000, 4096)]
FENCE = wire.FenceProcess(5, 3, 8, "ptrace", RANGES, hinted=True)


def test_a_live_process_is_fenced_and_goes_on() -> None:
    agent = enrolled()
    assert agent.mmu_message(FENCE, 0) == [Fence(1, (3, 8), "ptrace", RANGES, True)]
    assert agent.fenced(1, "protected") == [ToMmu(wire.ProcessFenced(5, "protected"))]
    assert agent.mmu_message(wire.ForgetProcess(3, 8), 0) == [Unwatch((3, 8))]


def test_a_process_that_has_gone_is_told_of_after_the_answer() -> None:
    for how in ("dead", "killed"):
        agent = enrolled()
        agent.mmu_message(FENCE, 0)
        gone = ToMmu(wire.ProcessExited(3, 8))
        assert agent.fenced(1, how) == [ToMmu(wire.ProcessFenced(5, how)), gone]
        assert agent.exited((3, 8)) == []  # the pidfd, later


def test_the_end_of_a_process_or_of_its_enrolment_leaves_no_fence_unanswered() -> None:
    agent = enrolled()
    agent.mmu_message(FENCE, 0)
    agent.exited((3, 8))
    assert agent.fenced(1, "dead") == [ToMmu(wire.ProcessFenced(5, "dead"))]
    again = wire.FenceProcess(6, 3, 8, "protect", RANGES)
    assert agent.mmu_message(again, 0) == [ToMmu(wire.ProcessFenced(6, "dead"))]
    agent = enrolled()
    agent.mmu_message(FENCE, 0)
    agent.mmu_message(wire.ForgetProcess(3, 8), 0)
    assert agent.fence_failed(1, "why") == [ToMmu(wire.FenceFailed(5, "why"))]


def test_the_death_of_the_last_bearer_of_an_id_says_nothing_of_this_one() -> None:
    agent = enrolled()
    agent.exited((3, 8))
    agent.mmu_message(wire.ForgetProcess(3, 8), 0)
    agent.mmu_message(wire.ExpectProcess(3, 9, 4712, b"u" * 16, "b", 2), 0)
    agent.client_message(2, 4712, wire.Enrol(b"u" * 16), 0)
    agent.watched((3, 9))
    assert agent.mmu_message(wire.FenceProcess(5, 3, 9, "ptrace", RANGES), 0) == [
        Fence(1, (3, 9), "ptrace", RANGES, False)
    ]


def test_a_fence_is_lifted_and_that_is_told_to_the_link_that_asked() -> None:
    agent = enrolled()
    lift = wire.LiftFence(5, 3, 8, RANGES)
    assert agent.mmu_message(lift, 0) == [Lift(1, (3, 8), RANGES)]
    assert agent.lifted(1) == [ToMmu(wire.FenceLifted(5))]
    agent.mmu_message(lift, 0)
    agent.linked()
    assert agent.lifted(2) == [], "the Rack MMU asks again, and may have meant something else by that number"


def test_of_a_process_that_is_not_here_there_is_nothing_to_lift() -> None:
    assert enrolled().mmu_message(wire.LiftFence(5, 3, 9, RANGES), 0) == [ToMmu(wire.FenceLifted(5))]
    ended = enrolled()
    ended.exited((3, 8))
    for agent in (ended, linked()):
        assert agent.mmu_message(wire.LiftFence(5, 3, 8, RANGES), 0) == [ToMmu(wire.FenceLifted(5))]


def test_what_has_not_enrolled_cannot_be_fenced() -> None:
    agent = ComputeElement()
    agent.mmu_message(EXPECT, 0)
    (answer,) = agent.mmu_message(FENCE, 0)
    assert isinstance(answer, ToMmu) and isinstance(answer.message, wire.FenceFailed)
    (answer,) = enrolled().mmu_message(wire.FenceProcess(5, 3, 9, "protect", RANGES), 0)
    assert isinstance(answer, ToMmu) and isinstance(answer.message, wire.FenceFailed)


def test_a_range_is_guarded_in_all_processes_of_its_group() -> None:
    agent = enrolled()
    agent.mmu_message(wire.ExpectProcess(4, 1, 4712, b"u" * 16, "b", 2), 0)
    agent.client_message(2, 4712, wire.Enrol(b"u" * 16), 0)
    agent.watched((4, 1))
    agent.mmu_message(wire.ExpectProcess(5, 1, 4713, b"v" * 16, "c", 9), 0)
    agent.client_message(3, 4713, wire.Enrol(b"v" * 16), 0)
    agent.watched((5, 1))
    guards = agent.mmu_message(wire.GuardRange(7, 2, 4096, 8192), 0)
    assert guards == [Guard(1, (3, 8), 4096, 8192), Guard(1, (4, 1), 4096, 8192)]
    assert agent.guarded(1, (3, 8), failed=False) == []
    assert agent.guarded(1, (4, 1), failed=True) == [ToMmu(wire.RangeGuarded(7, ["b"]))]
    assert agent.mmu_message(wire.GuardRange(8, 77, 0, 4096), 0) == [ToMmu(wire.RangeGuarded(8))]


def test_what_is_attached_twice_is_guarded_once() -> None:
    """A range of an address space can be registered with one userfaultfd only, and then is guarded for both."""
    agent = enrolled()
    agent.mmu_message(wire.ExpectProcess(4, 1, 4711, b"u" * 16, "b", 2), 0)
    guard = wire.GuardRange(7, 2, 4096, 8192)
    assert agent.mmu_message(guard, 0) == [Guard(1, (3, 8), 4096, 8192)]  # though "b" has yet to enrol
    agent.client_message(2, 4711, wire.Enrol(b"u" * 16), 0)
    agent.watched((4, 1))
    assert agent.mmu_message(guard, 0) == [Guard(2, (3, 8), 4096, 8192)]
    assert agent.guarded(2, (3, 8), failed=False) == [ToMmu(wire.RangeGuarded(7))]


def test_a_process_that_went_while_it_was_to_be_guarded_needs_no_guard() -> None:
    agent = enrolled()
    agent.mmu_message(wire.GuardRange(7, 2, 4096, 8192), 0)
    agent.exited((3, 8))
    assert agent.guarded(1, (3, 8), failed=True) == [ToMmu(wire.RangeGuarded(7))]


# --- a new link, a new agent -------------------------------------------------------------------------------


def test_what_another_rack_mmu_asked_for_is_no_answer_to_this_one() -> None:
    """Its numbers come again: were the outcomes confused, memory would change hands unfenced."""
    agent = enrolled()
    agent.mmu_message(FENCE, 0)
    agent.mmu_message(wire.GuardRange(7, 2, 4096, 8192), 0)
    agent.linked()
    agent.mmu_message(EXPECT, 0)
    agent.mmu_message(wire.ExpectProcess(4, 1, 4712, b"u" * 16, "b", 2), 0)
    agent.client_message(2, 4712, wire.Enrol(b"u" * 16), 0)
    agent.watched((4, 1))
    other = wire.FenceProcess(5, 4, 1, "ptrace", RANGES)
    (fence,) = agent.mmu_message(other, 0)
    (guard, _) = agent.mmu_message(wire.GuardRange(7, 2, 4096, 8192), 0)
    assert isinstance(fence, Fence) and isinstance(guard, Guard)
    assert agent.fenced(1, "protected") == []
    assert agent.guarded(2, (3, 8), failed=False) == []
    assert agent.fenced(fence.job, "ptraced") == [ToMmu(wire.ProcessFenced(5, "ptraced"))]
    assert agent.guarded(guard.job, (3, 8), failed=False) == []
    assert agent.guarded(guard.job, (4, 1), failed=False) == [ToMmu(wire.RangeGuarded(7))]


def test_a_death_that_a_fence_of_an_earlier_link_proved_is_told_all_the_same() -> None:
    agent = enrolled()
    agent.mmu_message(FENCE, 0)
    agent.linked()
    assert agent.fenced(1, "dead") == [ToMmu(wire.ProcessExited(3, 8))]
    agent = enrolled()
    agent.mmu_message(FENCE, 0)
    agent.linked()
    assert agent.fence_failed(1, "why") == []


def test_who_was_attached_by_a_rack_mmu_whose_link_is_not_here_yet_waits() -> None:
    agent = linked()
    agent.unlinked()
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == []
    assert agent.linked() == []
    agent.mmu_message(EXPECT, 0)
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == [Watch(PROCESS, 1)]


def test_an_announcement_that_ends_twice_takes_nobody_away() -> None:
    agent = enrolled()
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == []
    assert agent.mmu_message(FENCE, 0) != []


def test_nobody_subscribes_before_the_announcement_has_ended() -> None:
    """What it says of deaths would be taken for news by one, and missed by another."""
    agent = enrolled()
    agent.linked()
    assert agent.client_message(9, 4711, wire.Subscribe(TICKET), 0) == []
    agent.mmu_message(wire.TellGroup(2, wire.NoticeDied("b", 4, 1, 17)), 0)
    agent.mmu_message(EXPECT, 0)
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == [Reply(9, wire.Subscribed(3, 17))]


def test_a_suspicion_that_is_not_said_again_on_a_new_link_is_withdrawn() -> None:
    agent = enrolled()
    agent.client_message(9, 4711, wire.Subscribe(TICKET), 0)
    agent.mmu_message(wire.TellGroup(2, wire.NoticeSuspected("b", 4, 1, 0.1)), 0)
    agent.linked()
    agent.mmu_message(EXPECT, 0)
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == [Push(9, wire.NoticeCleared("b", 4, 1))]


def test_on_a_new_link_all_is_said_again_until_it_is_acknowledged() -> None:
    agent = enrolled()
    agent.client_gone(1)
    agent.exited((3, 8))  # into the broken link
    said = [wire.ProcessEnrolled(3, 8), wire.ProcessLost(3, 8), wire.ProcessExited(3, 8)]
    assert agent.linked() == [ToMmu(message) for message in said]
    assert agent.mmu_message(EXPECT, 0) == []
    assert agent.mmu_message(wire.ForgetProcess(3, 8), 0) == [Unwatch((3, 8))]
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == []
    assert agent.linked() == []


def test_a_new_agent_knows_whom_the_last_one_watched() -> None:
    agent = ComputeElement([PROCESS])
    assert agent.linked() == [ToMmu(wire.ProcessEnrolled(3, 8))]
    assert agent.mmu_message(EXPECT, 0) == []
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == []
    assert agent.mmu_message(FENCE, 0) == [Fence(1, (3, 8), "ptrace", RANGES, True)]
    assert agent.exited((3, 8)) == [ToMmu(wire.ProcessExited(3, 8))]


def test_its_process_may_connect_anew_to_a_new_agent() -> None:
    agent = ComputeElement([PROCESS])
    agent.linked()
    agent.mmu_message(EXPECT, 0)
    agent.mmu_message(wire.AnnouncementEnds(), 0)
    assert refused(agent, 1, 4712, TICKET)
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == [Reply(1, wire.Enrolled(3))]
    assert refused(agent, 2, 4711, TICKET)
    assert agent.client_gone(1) == [ToMmu(wire.ProcessLost(3, 8))]
    assert refused(agent, 3, 4711, TICKET)  # the Rack MMU has told others that it is lost


def test_who_is_not_announced_any_more_is_forgotten() -> None:
    agent = ComputeElement([PROCESS])
    agent.linked()
    other = wire.ExpectProcess(3, 9, 4712, b"u" * 16, "b", 2)  # the id has another bearer by now
    assert agent.mmu_message(other, 0) == [Unwatch((3, 8))]
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == []
    assert agent.exited((3, 8)) == []
    agent = ComputeElement([PROCESS])
    agent.linked()
    assert agent.mmu_message(wire.AnnouncementEnds(), 0) == [Unwatch((3, 8))]


def test_a_new_agent_refuses_nobody_before_it_has_heard_who_is_expected() -> None:
    agent = ComputeElement()
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == []
    assert agent.client_message(2, 4711, wire.Enrol(b"u" * 16), 0) == []
    agent.linked()
    agent.mmu_message(EXPECT, 0)
    watch, refusal = agent.mmu_message(wire.AnnouncementEnds(), 0)
    assert watch == Watch(PROCESS, 1)
    assert isinstance(refusal, Reply) and refusal.peer == 2 and isinstance(refusal.message, wire.Failed)


def test_what_ends_while_it_is_being_watched_is_not_enrolled() -> None:
    agent = linked()
    agent.mmu_message(EXPECT, 0)
    agent.client_message(1, 4711, wire.Enrol(TICKET), 0)
    assert agent.client_gone(1) == []
    assert agent.watched((3, 8)) == [ToMmu(wire.ProcessEnrolled(3, 8)), ToMmu(wire.ProcessLost(3, 8))]
    assert agent.mmu_message(wire.ForgetProcess(3, 8), 0) == [Unwatch((3, 8))]
    assert agent.watched((3, 8)) == []


def test_nobody_waits_for_ever_for_an_enrolment_that_is_given_up() -> None:
    agent = linked()
    agent.mmu_message(EXPECT, 0)
    agent.client_message(1, 4711, wire.Enrol(TICKET), 0)
    unwatch, refusal = agent.mmu_message(wire.ForgetProcess(3, 8), 0)
    assert unwatch == Unwatch((3, 8))
    assert isinstance(refusal, Reply) and isinstance(refusal.message, wire.Failed)
    assert agent.cannot_watch((3, 8), "why") == []  # it has been told already
    agent.mmu_message(EXPECT, 0)
    agent.client_message(1, 4711, wire.Enrol(TICKET), 0)
    assert agent.cannot_watch((3, 8), "why") == [Reply(1, wire.Failed("memory", "why"))]
    assert agent.client_message(1, 4711, wire.Enrol(TICKET), 0) == [Watch(PROCESS, 1)]
