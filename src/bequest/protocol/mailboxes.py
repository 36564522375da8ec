"""Mailboxes: inboxes that several processes of a group read, each open while anybody has it open."""

from __future__ import annotations

from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState, Session
from bequest.protocol.refusal import Refusal


class Mailboxes:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._openers: dict[int, int] = {}  # mailbox -> sessions that have it open

    def open(self, session: Session, opener: Member, name: str | None, create: bool, now: float) -> Member:
        mailbox = None if name is None else self._state.processes.mailbox(name, opener.group)
        if mailbox is None:
            mailbox = self._create(opener, name, create, now)
        elif create:
            raise Refusal("name-taken", f"there is a mailbox {name!r} in this group already")
        if mailbox.id not in session.mailboxes:
            self._openers[mailbox.id] += 1
        session.mailboxes[mailbox.id] = session.mailboxes.get(mailbox.id, 0) + 1
        return mailbox

    def close(self, session: Session, number: int) -> None:
        count = session.mailboxes.get(number)
        if count is None:
            raise Refusal("unknown", f"this process has no mailbox {number} open")
        if count > 1:
            session.mailboxes[number] = count - 1
        else:
            del session.mailboxes[number]
            self._closed(number)

    def close_all(self, session: Session) -> None:
        for number in list(session.mailboxes):
            del session.mailboxes[number]
            self._closed(number)

    def _create(self, opener: Member, name: str | None, create: bool, now: float) -> Member:
        if name is not None and not create:
            raise Refusal("unknown", f"no mailbox {name!r} is open in this group")
        processes = self._state.processes
        mailbox = processes.admit(Kind.MAILBOX, name or "", opener.group, now)
        mailbox.name = name or f"mailbox-{mailbox.id}-{mailbox.incarnation}"
        self._openers[mailbox.id] = 0
        self._state.groups[mailbox.group].shard.admit(mailbox.id, mailbox.incarnation, 0, mailbox.name)
        return mailbox

    def _closed(self, number: int) -> None:
        self._openers[number] -= 1
        if self._openers[number] > 0:
            return
        del self._openers[number]
        mailbox = self._state.processes.get(number)
        assert mailbox is not None and mailbox.kind is Kind.MAILBOX
        shard = self._state.groups[mailbox.group].shard
        shard.mark_dead(number)
        shard.release(number)
        mailbox.become(State.GONE)
