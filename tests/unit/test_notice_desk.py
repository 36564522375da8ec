"""An agent's notices: who is told, who is called instead, and when."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bequest.limits import CONTACT_DEADLINE, CONTACTS_MAX, FAILURES_KEPT_MAX, NOTICE_QUEUE_MAX
from bequest.protocol.notice_desk import NoticeDesk
from bequest.protocol.outputs import KeepContacts, KeepHandler, Output, Push, Reply, ToMmu
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

OWNER, FRIEND, STRANGER = (1, 1), (2, 2), (3, 3)
LOSS = wire.NoticeMemory("dram0", [(0x2000, 4096)], "broken")


def desk(*, subscribed: bool = True, handles: bool = True) -> NoticeDesk:
    """An owner with a friend here and one elsewhere as its contacts; all but the owner have subscribed, at 10 + id."""
    one = NoticeDesk()
    for key, name, group in ((OWNER, "owner", 1), (FRIEND, "friend", 1), (STRANGER, "stranger", 2)):
        one.expect(key, name, group)
    one.subscribe(FRIEND, 12, None)
    one.subscribe(STRANGER, 13, None)
    if subscribed:
        one.subscribe(OWNER, 11, None)
    one.request(OWNER, 1, wire.HandleFailures(handles), 0)
    one.request(OWNER, 1, wire.SetContacts(["friend", "far", "friend"]), 0)
    return one


def lose(one: NoticeDesk, now: float = 0.0, number: int | None = None) -> list[Output]:
    """A new failure, or that with a number."""
    number = one._last_told + 1 if number is None else number
    return one.tell_process(wire.TellProcess(*OWNER, replace(LOSS, failure=number), number), now)


def told(outputs: list[Output]) -> list[int]:
    """What the Rack MMU need not say again."""
    return [
        out.message.number
        for out in outputs
        if isinstance(out, ToMmu) and isinstance(out.message, wire.ProcessTold)
    ]


def calls(outputs: list[Output]) -> list[str]:
    """Who was called: a friend here, or far away through the Rack MMU."""
    called = []
    for output in outputs:
        match output:
            case Push(12, wire.NoticeContact(name="owner")):
                called.append("friend")
            case ToMmu(wire.CallContacts(names, wire.NoticeContact(name="owner"))):
                called += names
    return called


def test_an_owner_that_handles_its_loss_in_time_keeps_it_to_itself() -> None:
    one = desk()
    (push,) = lose(one, 5.0)
    assert isinstance(push, Push) and isinstance(push.notice, wire.NoticeMemory)
    assert (push.peer, push.notice.failure, push.notice.runs) == (11, 1, LOSS.runs)
    assert one.next_deadline() == 5.0 + CONTACT_DEADLINE
    assert one.request(OWNER, 1, wire.Handled(1), 5.1) == [ToMmu(wire.ProcessTold(1)), Reply(1, wire.Done())]
    assert one.next_deadline() == float("inf")
    assert one.tick(100.0) == []


def test_an_owner_that_is_late_has_its_contacts_called_once() -> None:
    one = desk()
    lose(one, 5.0)
    assert one.tick(5.0 + CONTACT_DEADLINE - 0.01) == []
    assert calls(one.tick(5.0 + CONTACT_DEADLINE)) == ["friend", "far"]
    assert one.tick(100.0) == []
    assert calls(one.request(OWNER, 1, wire.Handled(1, well=False), 100.0)) == []


def test_an_owner_whose_handler_fails_has_them_called_at_once() -> None:
    one = desk()
    lose(one)
    outputs = one.request(OWNER, 1, wire.Handled(1, well=False), 0.1)
    assert calls(outputs) == ["friend", "far"]
    assert outputs[-1] == Reply(1, wire.Done())


@pytest.mark.parametrize(("subscribed", "handles"), [(False, True), (True, False), (False, False)])
def test_an_owner_that_cannot_handle_it_has_them_called_at_once(subscribed: bool, handles: bool) -> None:
    assert calls(lose(desk(subscribed=subscribed, handles=handles))) == ["friend", "far"]


def test_giving_up_the_handler_gives_up_what_is_open() -> None:
    one = desk()
    lose(one)
    lose(one)
    assert calls(one.request(OWNER, 1, wire.HandleFailures(False), 0)) == ["friend", "far"] * 2


def test_a_subscription_that_ends_leaves_the_rest_to_the_deadline() -> None:
    one = desk()
    lose(one)
    one.subscriber_gone(11)
    assert calls(one.tick(CONTACT_DEADLINE)) == ["friend", "far"]
    assert calls(lose(one)) == ["friend", "far"]


def test_the_contacts_of_the_dead_hear_of_its_death_and_of_what_it_left_open() -> None:
    one = desk()
    lose(one)
    outputs = one.died(OWNER)
    assert [out.notice.what for out in outputs if isinstance(out, Push)] == ["died", "memory"]
    assert one.died(OWNER) == []
    assert calls(lose(one)) == ["friend", "far"]  # its orphaned memory fails
    one.forget(OWNER)
    assert lose(one, number=9) == [ToMmu(wire.ProcessTold(9))]


def test_a_dead_contact_is_looked_for_elsewhere() -> None:
    """It may have been started again on another compute element."""
    one = desk(handles=False)
    one.died(FRIEND)
    assert calls(lose(one)) == ["friend", "far"]
    (call,) = [out for out in lose(one) if isinstance(out, ToMmu)]
    assert isinstance(call.message, wire.CallContacts) and call.message.names == ["friend", "far"]


def test_who_has_no_contacts_troubles_nobody() -> None:
    one = desk(handles=False)
    one.request(OWNER, 1, wire.SetContacts([]), 0)
    push, answer = lose(one, number=4)
    assert isinstance(push, Push) and push.peer == 11
    assert told([answer]) == [4]
    assert one.died(OWNER) == []


def test_a_group_is_told_and_no_other() -> None:
    died = wire.NoticeDied("somebody", 9, 9, 1)
    assert desk().tell_group(wire.TellGroup(1, died)) == [Push(11, died), Push(12, died)]
    assert desk(subscribed=False).tell_group(wire.TellGroup(1, died)) == [Push(12, died)]


def test_failures_that_nobody_handles_are_bounded() -> None:
    one = desk()
    for number in range(FAILURES_KEPT_MAX):
        assert calls(lose(one)) == [], number
    assert calls(lose(one)) == ["friend", "far"]


@pytest.mark.parametrize("names", [["x"] * (CONTACTS_MAX + 1), ["x" * 64], ["fine", "ä" * 40]])
def test_absurd_contacts_are_refused_and_the_old_ones_stay(names: list[str]) -> None:
    one = desk(handles=False)
    with pytest.raises(Refusal):
        one.request(OWNER, 1, wire.SetContacts(names), 0)
    assert calls(lose(one)) == ["friend", "far"]


def died(number: int, pid: int = 9) -> wire.TellGroup:
    return wire.TellGroup(1, wire.NoticeDied("somebody", pid, number, number))


def test_a_death_is_told_once_however_often_the_rack_mmu_says_it() -> None:
    one = desk()
    assert len(one.tell_group(died(1))) == 2
    assert one.tell_group(died(1)) == []
    assert len(one.tell_group(died(2))) == 2


def test_who_comes_back_hears_of_the_deaths_that_it_missed_in_its_group() -> None:
    one = NoticeDesk()
    one.expect(OWNER, "owner", 1)
    for number in (3, 4, 5):
        one.tell_group(died(number, pid=number))
    one.tell_group(wire.TellGroup(2, wire.NoticeDied("stranger", 6, 6, 6)))
    reply, *missed = one.subscribe(OWNER, 11, 3)
    assert reply == Reply(11, wire.Subscribed(1, 6))
    assert missed == [Push(11, died(number, pid=number).notice) for number in (4, 5)]


def test_who_comes_for_the_first_time_hears_of_no_earlier_death() -> None:
    one = NoticeDesk()
    one.expect(OWNER, "owner", 1)
    one.tell_group(died(3))
    assert one.subscribe(OWNER, 11, None) == [Reply(11, wire.Subscribed(1, 3))]


def test_who_comes_back_hears_which_of_its_suspects_were_cleared_meanwhile() -> None:
    """Not of those that are suspect still, that have died, or whose end has been waiting for it."""
    one = NoticeDesk()
    one.expect(OWNER, "owner", 1)
    one.restore(OWNER, [], False)
    one.tell_group(wire.TellGroup(1, wire.NoticeSuspected("slow", 4, 4, 0.5)))
    one.tell_group(died(3, pid=5))
    one.tell_group(wire.TellGroup(1, wire.NoticeSuspected("quick", 6, 6, 0.5)))
    one.tell_group(wire.TellGroup(1, wire.NoticeCleared("quick", 6, 6)))
    dead = died(3, pid=5).notice
    assert isinstance(dead, wire.NoticeDied)
    suspects = [(4, 4, "slow"), (5, dead.incarnation, "dead"), (6, 6, "quick"), (7, 7, "well")]
    _, *told = one.subscribe(OWNER, 11, 2, suspects)
    cleared = [
        out.notice for out in told if isinstance(out, Push) and isinstance(out.notice, wire.NoticeCleared)
    ]
    assert cleared == [wire.NoticeCleared("quick", 6, 6), wire.NoticeCleared("well", 7, 7)]


def test_contacts_survive_the_agent() -> None:
    one = desk()
    assert one.request(OWNER, 1, wire.SetContacts(["far"]), 0)[0] == KeepContacts(OWNER, ["far"])
    successor = NoticeDesk()
    successor.expect(OWNER, "owner", 1)
    successor.restore(OWNER, ["far"], handles=False)
    assert calls(successor.died(OWNER)) == ["far"]


def test_what_is_told_before_a_subscriber_of_the_last_agent_is_back_waits_for_it() -> None:
    one = NoticeDesk()
    for key, name in ((OWNER, "owner"), (FRIEND, "friend"), (STRANGER, "new")):
        one.expect(key, name, 1)
    one.restore(OWNER, ["friend", "new"], handles=False)
    one.restore(FRIEND, [], handles=False)
    one.died(OWNER)
    one.tell_group(died(1))
    _, called = one.subscribe(FRIEND, 12, 1)
    assert isinstance(called, Push) and isinstance(called.notice, wire.NoticeContact)
    one.subscriber_gone(12)
    assert len(one.subscribe(FRIEND, 12, 1)) == 1, "once"
    assert len(one.subscribe(STRANGER, 13, None)) == 1, "it had no subscription that could be missed"


def test_a_call_through_the_rack_mmu_is_repeated_until_it_is_answered() -> None:
    one = desk()
    one.request(OWNER, 1, wire.SetContacts(["far"]), 0)
    (call,) = one.died(OWNER)
    assert one.linked() == [call] == one.linked()
    assert isinstance(call, ToMmu) and isinstance(call.message, wire.CallContacts)
    assert one.contacts_called(call.message.number) == [KeepContacts(OWNER, [])]
    assert one.linked() == [] == one.contacts_called(call.message.number)


def test_contacts_are_kept_while_one_has_yet_to_come_back_for_the_call() -> None:
    one = NoticeDesk()
    for key, name in ((OWNER, "owner"), (FRIEND, "friend")):
        one.expect(key, name, 1)
        one.restore(key, ["friend"] if key is OWNER else [], handles=False)
    assert one.died(OWNER) == [], "the next agent would call it again"
    _, called = one.subscribe(FRIEND, 12, 1)
    assert isinstance(called, Push) and isinstance(called.notice, wire.NoticeContact)


def test_contacts_that_have_been_told_of_a_death_are_not_kept() -> None:
    one = desk()
    one.request(OWNER, 1, wire.SetContacts(["friend"]), 0)
    assert one.died(OWNER)[-1] == KeepContacts(OWNER, [])


def test_nothing_is_called_for_one_that_is_forgotten() -> None:
    one = desk()
    one.died(OWNER)
    one.forget(OWNER)
    assert one.linked() == []


# --- what the Rack MMU says again until it is answered ----------------------------------------------------------


def attached(number: int) -> wire.TellProcess:
    return wire.TellProcess(*FRIEND, wire.NoticeAttached("victim", 9, 9), number)


def test_what_was_told_is_answered_and_not_told_again() -> None:
    one = desk()
    assert one.tell_process(attached(5), 0) == [Push(12, attached(5).notice), ToMmu(wire.ProcessTold(5))]
    assert one.tell_process(attached(5), 0) == [ToMmu(wire.ProcessTold(5))]
    assert one.tell_process(wire.TellProcess(7, 7, attached(6).notice, 6), 0) == [ToMmu(wire.ProcessTold(6))]


def test_a_failure_is_answered_when_it_is_handled_or_the_contacts_have_been_called() -> None:
    one = desk()
    lose(one, number=1)
    assert lose(one, number=1) == []  # again, on a new link
    assert told(one.request(OWNER, 1, wire.Handled(1), 0)) == [1]
    lose(one, number=2)
    assert (
        told(one.request(OWNER, 1, wire.Handled(2, well=False), 0)) == []
    )  # one of the contacts is far away
    assert told(one.contacts_called(1)) == [2]
    one.request(OWNER, 1, wire.SetContacts(["friend"]), 0)
    lose(one, number=3)
    assert told(one.tick(CONTACT_DEADLINE)) == [3]


def successor_of(one: NoticeDesk, handles: bool = True) -> NoticeDesk:
    """The agent that follows, which has what is kept, and whose subscribers are not back yet."""
    other = NoticeDesk()
    for key, name in ((OWNER, "owner"), (FRIEND, "friend")):
        other.expect(key, name, 1)
        other.restore(key, ["friend"] if key == OWNER else [], handles=handles and key == OWNER)
    return other


def test_an_owner_that_handles_its_failures_has_its_time_with_the_next_agent_as_well() -> None:
    one = desk()
    assert KeepHandler(OWNER, True) in one.request(OWNER, 1, wire.HandleFailures(True), 0)
    lose(one, number=1)
    two = successor_of(one)
    assert lose(two, number=1) == []
    (_, failure) = two.subscribe(OWNER, 11, 0)
    assert isinstance(failure, Push) and failure.notice == replace(LOSS, failure=1)
    assert told(two.request(OWNER, 1, wire.Handled(1), 0)) == [1]
    assert calls(two.tick(100)) == []


@pytest.mark.parametrize("handles", [False, True])
def test_one_that_hangs_has_its_contacts_called_by_the_next_agent(handles: bool) -> None:
    two = successor_of(desk(), handles)
    at_once = lose(two, number=1)
    later = two.tick(CONTACT_DEADLINE)
    assert (told(at_once), told(later)) == (([], [1]) if handles else ([1], []))
    (_, called, *_) = two.subscribe(FRIEND, 12, 0)
    assert isinstance(called, Push) and isinstance(called.notice, wire.NoticeContact)


def test_an_answer_to_an_earlier_failure_closes_no_other() -> None:
    """A program handles a failure while its agent dies; meanwhile its memory fails again."""
    two = successor_of(desk())
    lose(two, number=2)
    assert told(two.request(OWNER, 1, wire.Handled(1), 0)) == []
    assert told(two.tick(CONTACT_DEADLINE)) == [2]


def test_what_waits_for_a_subscriber_is_answered_when_that_is_back() -> None:
    two = successor_of(desk())
    assert two.tell_process(attached(5), 0) == []
    assert two.tell_process(attached(5), 0) == []
    assert two.subscribe(FRIEND, 12, 0)[1:] == [Push(12, attached(5).notice), ToMmu(wire.ProcessTold(5))]


def test_a_late_word_of_a_former_subscription_does_not_end_the_present_one() -> None:
    one = NoticeDesk()
    one.expect(OWNER, "owner", 1)
    one.subscribe(OWNER, 12, None)  # the new one is read first
    one.subscribe(OWNER, 11, None)
    one.subscriber_gone(11)
    assert one.tell_group(died(1)) == [Push(12, died(1).notice)]


def test_a_suspicion_is_told_once_and_withdrawn_when_it_stands_no_more_on_a_new_link() -> None:
    one = desk()
    suspected = wire.TellGroup(1, wire.NoticeSuspected("stuck", 9, 9, 0.5))
    assert len(one.tell_group(suspected)) == 2
    one.linked()
    assert one.tell_group(suspected) == []
    assert one.announcement_ends() == []
    one.linked()
    assert one.announcement_ends() == [Push(peer, wire.NoticeCleared("stuck", 9, 9)) for peer in (11, 12)]
    one.linked()
    assert one.announcement_ends() == []
    assert len(one.tell_group(suspected)) == 2


def test_a_suspicion_that_was_withdrawn_or_came_true_is_not_withdrawn_again() -> None:
    one = desk()
    for number, end in enumerate((wire.NoticeCleared("stuck", 9, 9), wire.NoticeDied("stuck", 9, 9, 1))):
        assert len(one.tell_group(wire.TellGroup(1, wire.NoticeSuspected("stuck", 9, 9, 0.5)))) == 2, number
        one.tell_group(wire.TellGroup(1, end))
        one.linked()
        assert one.announcement_ends() == []


def test_one_of_the_contacts_name_in_another_group_hears_nothing() -> None:
    one = desk(handles=False)
    one.request(OWNER, 1, wire.SetContacts(["stranger"]), 0)
    outputs = lose(one)
    assert not [out for out in outputs if isinstance(out, Push) and out.peer == 13]
    (call,) = [out.message for out in outputs if isinstance(out, ToMmu)]
    assert isinstance(call, wire.CallContacts) and call.group == 1  # perhaps there is one elsewhere


def test_what_waits_for_a_subscriber_is_bounded() -> None:
    one = NoticeDesk()
    one.expect(FRIEND, "friend", 1)
    one.restore(FRIEND, [], handles=False)
    for pid in range(NOTICE_QUEUE_MAX + 5):
        one.tell_group(wire.TellGroup(1, wire.NoticeSuspected("slow", pid, 9, 1.0)))
    _, *waited = one.subscribe(FRIEND, 12, 0)
    assert len(waited) == NOTICE_QUEUE_MAX
