"""Mailboxes: inboxes that several processes of a group read, each open while anybody has it open.

A mailbox ends in two steps: that it has gone is written down first, and then its slot in the table is emptied.
"""

from __future__ import annotations

from bequest.ids import ProcessId
from bequest.limits import LAST_MAILBOX_ID
from bequest.protocol.books import Row
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal


class Opening(Row):
    """One process has a mailbox open, so many times."""

    process: ProcessId
    mailbox: ProcessId
    count: int = 1


def _key(process: ProcessId, mailbox: ProcessId) -> int:
    return process * (LAST_MAILBOX_ID + 1) + mailbox


class Mailboxes:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._openings = state.books.open("openings", Opening, int)

    def open(self, opener: Member, name: str | None, create: bool, now: float) -> Member:
        mailbox = None if name is None else self._state.processes.mailbox(name, opener.group)
        if mailbox is None:
            mailbox = self._create(opener, name, create, now)
        elif create:
            raise Refusal("name-taken", f"there is a mailbox {name!r} in this group already")
        opening = self._openings.get(_key(opener.id, mailbox.id))
        if opening is None:
            self._openings.put(_key(opener.id, mailbox.id), Opening(opener.id, mailbox.id))
        else:
            opening.count += 1
        return mailbox

    def close(self, process: ProcessId, number: int) -> None:
        key = _key(process, number)
        opening = self._openings.get(key) if 0 <= number <= LAST_MAILBOX_ID else None
        if opening is None:
            raise Refusal("unknown", f"this process has no mailbox {number} open")
        opening.count -= 1
        if opening.count == 0:
            self._closed(key)

    def close_all(self, process: ProcessId) -> None:
        for opening in self._openings:
            if opening.process == process:
                self._closed(_key(process, opening.mailbox))

    def empty(self, mailbox: Member) -> None:
        """The second step of its end; may be done again."""
        shard = self._state.shard_of(mailbox.group)
        shard.mark_dead(mailbox.id)
        shard.settle(mailbox.id)
        shard.release(mailbox.id)

    def _create(self, opener: Member, name: str | None, create: bool, now: float) -> Member:
        if name is not None and not create:
            raise Refusal("unknown", f"no mailbox {name!r} is open in this group")
        processes = self._state.processes
        mailbox = processes.admit(Kind.MAILBOX, name or "", opener.group)
        mailbox.name = name or f"mailbox-{mailbox.id}-{mailbox.incarnation}"
        self._state.shard_of(mailbox.group).admit(mailbox.id, mailbox.incarnation, 0, mailbox.name)
        return mailbox

    def _closed(self, key: int) -> None:
        number = self._openings.remove(key).mailbox
        if any(opening.mailbox == number for opening in self._openings):
            return
        mailbox = self._state.processes.get(number)
        assert mailbox is not None and mailbox.kind is Kind.MAILBOX
        mailbox.become(State.GONE)
        self._state.later(lambda: self.empty(mailbox))
