"""A compute element's notices: who wants them, and the forwarding table of emergency contacts (paper, section 3.2).

Theory of operation. A process *subscribes* over a second connection; what the Rack MMU, or this agent itself, has to
tell it is pushed there. Its *contacts* lie here, in the compute element and not in rack memory, so that no failure of
memory affects them. They are of its group: a name in another group may be anybody's, and what they hear says where
memory was. They are told when their process dies, and when its memory fails and it cannot handle that: at
once if it has no handler, is dead or says that its handler failed, else when it has not answered by a deadline.
Contacts at this agent are told directly: they hear of it even while the Rack MMU is away. The others it passes on, when
it is back. The table survives this agent; contacts may then be told twice, but not never.

A row outlives its process until the Rack MMU forgets that: orphaned memory may fail, too.

What the Rack MMU tells a process has a number, and is told again on every new link until this agent has answered: when
it was pushed, or nobody is there to push it to. A failure of memory is answered when it was handled, or its contacts
have been called. So an agent that follows one that died hears of all that is still open.

Deaths come with numbers that grow. One that has been told is not told again, however often the Rack MMU says it; to a
subscriber that comes back, because the agent before this one has died, the later ones are told that it missed. It says
whom it takes for suspect, and is told who has been cleared meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from bequest.limits import CONTACT_DEADLINE, CONTACTS_MAX, FAILURES_KEPT_MAX, NAME_BYTES_MAX, NOTICE_QUEUE_MAX
from bequest.protocol.outputs import KeepContacts, KeepHandler, Output, PeerId, Push, Reply, ToMmu
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

Key = tuple[int, int]  # process id, incarnation


class OpenFailure(msgspec.Struct):
    """A failure of a process's memory that it has been told of and has yet to handle."""

    notice: wire.NoticeMemory
    deadline: float


class Row(msgspec.Struct):
    name: str
    group: int
    subscribers: tuple[PeerId, ...] = ()  # more than one while the end of a former one is on its way
    contacts: list[str] = []
    handles: bool = False
    is_dead: bool = False
    open_failures: dict[int, OpenFailure] = {}
    # For a subscriber of the agent before this one, until it is back; with the numbers to answer for then.
    waiting: list[tuple[wire.Notice, int]] | None = None

    @property
    def can_handle(self) -> bool:
        """A failure of its memory."""
        return not self.is_dead and self.handles and (bool(self.subscribers) or self.waiting is not None)


class Call(msgspec.Struct):
    """Of contacts at other agents, which the Rack MMU has yet to answer."""

    message: wire.CallContacts
    failure: int  # to be answered for then; 0: none


class NoticeDesk:
    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._deaths: dict[int, tuple[int, wire.NoticeDied]] = {}  # by id, the last one; and of which group
        self._last_death = 0
        self._suspects: dict[Key, tuple[int, wire.NoticeSuspected]] = {}  # and of which group
        self._standing: dict[Key, None] = {}  # of these, since the link began
        self._last_told = 0  # the number of the last notice from the Rack MMU
        self._calls: dict[int, Call] = {}
        self._last_call = 0

    # --- the Rack MMU --------------------------------------------------------------------------------------

    def linked(self) -> list[Output]:
        """There is a new link to it."""
        self._standing = {}
        return [ToMmu(call.message) for call in self._calls.values()]

    def announcement_ends(self) -> list[Output]:
        """All suspicions that stand have been said: the others were withdrawn while the link was broken, or a death."""
        over = [(key, group) for key, (group, _) in self._suspects.items() if key not in self._standing]
        return [
            out
            for key, group in over
            for out in self.tell_group(
                wire.TellGroup(group, wire.NoticeCleared(self._suspects[key][1].name, *key))
            )
        ]

    def contacts_called(self, number: int) -> list[Output]:
        """By the Rack MMU."""
        call = self._calls.pop(number, None)
        if call is None:
            return []
        notice = call.message.notice
        if notice.what != "died":
            return _told(call.failure)
        return self._called((notice.pid, notice.incarnation))

    # --- processes -----------------------------------------------------------------------------------------

    def expect(self, key: Key, name: str, group: int) -> None:
        if key not in self._rows:
            self._rows[key] = Row(name, group)

    def restore(self, key: Key, contacts: list[str], handles: bool) -> None:
        """The agent before this one had it, with these contacts, and perhaps a subscription of its."""
        row = self._rows[key]
        row.contacts, row.handles, row.waiting = contacts, handles, []

    def forget(self, key: Key) -> None:
        self._rows.pop(key, None)
        self._calls = {
            number: call
            for number, call in self._calls.items()
            if (call.message.notice.pid, call.message.notice.incarnation) != key
        }

    def died(self, key: Key) -> list[Output]:
        """The kernel says so. Its contacts hear of that, and of what it has not handled."""
        row = self._rows.get(key)
        if row is None or row.is_dead:
            return []
        row.is_dead, row.subscribers = True, ()
        calls = self._call(key, row, "died")
        told = [] if any(isinstance(call, ToMmu) for call in calls) else self._called(key)
        return [*calls, *(told if row.contacts else []), *self._give_up_all(key, row)]

    # --- requests of a process -----------------------------------------------------------------------------

    def subscribe(
        self, key: Key, peer: PeerId, since: int | None, suspects: Iterable[tuple[int, int, str]] = ()
    ) -> list[Output]:
        row = self._rows[key]
        row.subscribers = (*row.subscribers, peer)
        waiting, row.waiting = row.waiting or [], None
        deaths = [] if since is None else self._deaths_in(row.group, since)
        missed = deaths if since is None else [*deaths, *(notice for notice, _ in waiting)]
        return [
            Reply(peer, wire.Subscribed(key[0], self._last_death)),
            *(Push(peer, notice) for notice in missed),
            *(Push(peer, notice) for notice in self._cleared(suspects, missed)),
            *(out for _, number in waiting for out in _told(number)),
        ]

    def _cleared(
        self, suspects: Iterable[tuple[int, int, str]], missed: Sequence[wire.Notice]
    ) -> list[wire.Notice]:
        """Those of them whom nobody suspects any more, unless what was missed says so, or that they have died."""
        ended = {
            (notice.pid, notice.incarnation)
            for notice in missed
            if isinstance(notice, wire.NoticeCleared | wire.NoticeDied)
        }
        return [
            wire.NoticeCleared(name, pid, incarnation)
            for pid, incarnation, name in suspects
            if (pid, incarnation) not in self._suspects and (pid, incarnation) not in ended
        ]

    def _deaths_in(self, group: int, since: int) -> list[wire.NoticeDied]:
        deaths = [died for of, died in self._deaths.values() if of == group and died.number > since]
        return sorted(deaths, key=lambda died: died.number)

    def request(self, key: Key, peer: PeerId, message: wire.Message, now: float) -> list[Output]:
        row = self._rows[key]
        outputs: list[Output] = []
        match message:
            case wire.SetContacts(names):
                row.contacts = _checked(names)
                outputs = [KeepContacts(key, row.contacts)]
            case wire.HandleFailures(wanted):
                row.handles = wanted
                outputs = [KeepHandler(key, wanted)]
                if not wanted:
                    outputs += self._give_up_all(key, row)
            case wire.Handled(failure, well) if failure in row.open_failures:
                outputs = self._handled(row, failure) if well else self._give_up(key, row, failure)
            case wire.Handled():
                pass  # its contacts have been called; or it comes back before the Rack MMU has repeated the failure
            case _:
                raise AssertionError(f"a process asks {message}")
        return [*outputs, Reply(peer, wire.Done())]

    def subscriber_gone(self, peer: PeerId) -> None:
        for row in self._rows.values():
            if peer in row.subscribers:
                row.subscribers = tuple(other for other in row.subscribers if other != peer)

    # --- what is told --------------------------------------------------------------------------------------

    def tell_process(self, message: wire.TellProcess, now: float) -> list[Output]:
        key, number = (message.pid, message.incarnation), message.number
        row = self._rows.get(key)
        if row is None:
            return _told(number)
        if number and number <= self._last_told:  # it was told on an earlier link
            return [] if _is_open(row, number) else _told(number)
        self._last_told = max(self._last_told, number)
        if isinstance(message.notice, wire.NoticeMemory):
            return self._memory_failed(key, row, message.notice, now)
        pushed = _push(row, message.notice, number)
        return pushed if row.waiting is not None else [*pushed, *_told(number)]

    def tell_group(self, message: wire.TellGroup) -> list[Output]:
        if isinstance(message.notice, wire.NoticeDied):
            if message.notice.number <= self._last_death:
                return []  # told before
            self._last_death = message.notice.number
            self._deaths[message.notice.pid] = message.group, message.notice
            self._suspects.pop((message.notice.pid, message.notice.incarnation), None)
        elif not self._is_news(message.group, message.notice):
            return []
        return [
            out
            for row in self._rows.values()
            if row.group == message.group
            for out in _push(row, message.notice)
        ]

    def _is_news(self, group: int, notice: wire.Notice) -> bool:
        """Whether the group has yet to hear of it. A suspicion that stands is said again on a new link."""
        if isinstance(notice, wire.NoticeSuspected):
            key = (notice.pid, notice.incarnation)
            is_known = key in self._suspects
            self._suspects[key], self._standing[key] = (group, notice), None
            return not is_known
        if isinstance(notice, wire.NoticeCleared):
            self._suspects.pop((notice.pid, notice.incarnation), None)
        return True

    def tick(self, now: float) -> list[Output]:
        return [
            out
            for key, row in self._rows.items()
            for number, failure in list(row.open_failures.items())
            if now >= failure.deadline
            for out in self._give_up(key, row, number)
        ]

    def next_deadline(self) -> float:
        deadlines = (
            failure.deadline for row in self._rows.values() for failure in row.open_failures.values()
        )
        return min(deadlines, default=float("inf"))

    # --- within --------------------------------------------------------------------------------------------

    def _memory_failed(self, key: Key, row: Row, notice: wire.NoticeMemory, now: float) -> list[Output]:
        row.open_failures[notice.failure] = OpenFailure(notice, now + CONTACT_DEADLINE)
        outputs = _push(row, notice)
        if not row.can_handle:
            return outputs + self._give_up_all(key, row)
        if len(row.open_failures) > FAILURES_KEPT_MAX:
            outputs += self._give_up(key, row, next(iter(row.open_failures)))
        return outputs

    def _give_up_all(self, key: Key, row: Row) -> list[Output]:
        return [out for number in list(row.open_failures) for out in self._give_up(key, row, number)]

    def _called(self, key: Key) -> list[Output]:
        """Its contacts have been; one who has yet to come back for that would be called again by the next agent."""
        waits = any(
            isinstance(notice, wire.NoticeContact) and (notice.pid, notice.incarnation) == key
            for row in self._rows.values()
            for notice, _ in row.waiting or ()
        )
        return [] if waits else [KeepContacts(key, [])]

    def _give_up(self, key: Key, row: Row, number: int) -> list[Output]:
        """The process has not handled it: its contacts are to know."""
        calls = self._call(key, row, "memory", row.open_failures.pop(number).notice)
        is_over = not any(isinstance(call, ToMmu) for call in calls)  # else the Rack MMU answers first
        return [*calls, *_told(number)] if is_over else calls

    def _handled(self, row: Row, number: int) -> list[Output]:
        del row.open_failures[number]
        return _told(number)

    def _call(self, key: Key, row: Row, what: str, memory: wire.NoticeMemory | None = None) -> list[Output]:
        if not row.contacts:
            return []
        notice = wire.NoticeContact(row.name, key[0], key[1], what)
        if memory is not None:
            notice = msgspec.structs.replace(
                notice, element=memory.element, runs=memory.runs, cause=memory.cause
            )
        mates = [other for other in self._rows.values() if other.group == row.group and not other.is_dead]
        here = {mate.name: mate for mate in mates}
        outputs: list[Output] = [
            out for name in row.contacts if name in here for out in _push(here[name], notice)
        ]
        elsewhere = [name for name in row.contacts if name not in here]
        if elsewhere:
            self._last_call += 1
            call = wire.CallContacts(elsewhere, notice, row.group, self._last_call)
            self._calls[self._last_call] = Call(call, 0 if memory is None else memory.failure)
            outputs.append(ToMmu(call))
        return outputs


def _push(row: Row, notice: wire.Notice, number: int = 0) -> list[Output]:
    if row.subscribers:
        return [Push(peer, notice) for peer in row.subscribers]
    if row.waiting is not None and not isinstance(
        notice, wire.NoticeDied
    ):  # of those it says what it has heard
        row.waiting = [*row.waiting, (notice, number)][-NOTICE_QUEUE_MAX:]
    return []


def _told(number: int) -> list[Output]:
    return [ToMmu(wire.ProcessTold(number))] if number else []


def _is_open(row: Row, number: int) -> bool:
    """The process, or one that calls its contacts, has yet to act on this notice."""
    is_waiting = row.waiting is not None and any(number == waits for _, waits in row.waiting)
    return is_waiting or number in row.open_failures


def _checked(names: list[str]) -> list[str]:
    if len(names) > CONTACTS_MAX:
        raise Refusal("config", f"{len(names)} emergency contacts are too many; {CONTACTS_MAX} are allowed")
    if any(len(name.encode()) > NAME_BYTES_MAX for name in names):
        raise Refusal("bad-name", f"no process can have a name of more than {NAME_BYTES_MAX} bytes")
    return list(dict.fromkeys(names))
