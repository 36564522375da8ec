"""An agent's notices: who is told, who is called instead, and when."""

from __future__ import annotations

import pytest

from bequest.limits import CONTACT_DEADLINE, CONTACTS_MAX, FAILURES_KEPT_MAX
from bequest.protocol.notice_desk import NoticeDesk
from bequest.protocol.outputs import Output, Push, Reply, ToMmu
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

OWNER, FRIEND, STRANGER = (1, 1), (2, 2), (3, 3)
LOSS = wire.NoticeMemory("dram0", [(0x2000, 4096)], "broken")


def desk(*, subscribed: bool = True, handles: bool = True) -> NoticeDesk:
    """An owner with a friend here and one elsewhere as its contacts; all but the owner have subscribed, at 10 + id."""
    one = NoticeDesk()
    for key, name, group in ((OWNER, "owner", 1), (FRIEND, "friend", 1), (STRANGER, "stranger", 2)):
        one.expect(key, name, group)
    one.subscribe(FRIEND, 12)
    one.subscribe(STRANGER, 13)
    if subscribed:
        one.subscribe(OWNER, 11)
    one.request(OWNER, 1, wire.HandleFailures(handles), 0)
    one.request(OWNER, 1, wire.SetContacts(["friend", "far", "friend"]), 0)
    return one


def lose(one: NoticeDesk, now: float = 0.0) -> list[Output]:
    return one.tell_process(wire.TellProcess(*OWNER, LOSS), now)


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
    assert one.request(OWNER, 1, wire.Handled(1), 5.1) == [Reply(1, wire.Done())]
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
    assert lose(one) == []


def test_a_dead_contact_is_looked_for_elsewhere() -> None:
    """It may have been started again on another compute element."""
    one = desk(handles=False)
    one.died(FRIEND)
    assert calls(lose(one)) == ["friend", "far"]
    (call,) = [out for out in lose(one) if isinstance(out, ToMmu)]
    assert call.message.names == ["friend", "far"]


def test_who_has_no_contacts_troubles_nobody() -> None:
    one = desk(handles=False)
    one.request(OWNER, 1, wire.SetContacts([]), 0)
    assert all(isinstance(out, Push) and out.peer == 11 for out in lose(one))
    assert one.died(OWNER) == []


def test_a_group_is_told_and_no_other() -> None:
    died = wire.NoticeDied("somebody", 9, 9)
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
