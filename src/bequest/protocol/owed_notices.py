"""Notices that must arrive though whoever carries them may die: written down, and told again until their agent has.

Theory of operation. What a process is owed is a row with a number, written down with what brought it about, so that
neither is without the other. It goes to the process's agent, which says `wire.ProcessTold` when it has passed it on, or
when there is nobody to pass it on to; a failure of memory only when that has been handled or the emergency contacts
have been called. What has not been told is said again on every new link, in the order of the numbers. So a notice may
come twice, never out of order, and whoever gets it knows by its number.

A process that has gone is owed nothing, and no process more than `NOTICES_OWED_MAX`: the oldest yield, as they do where
a reader is slow.
"""

from __future__ import annotations

import msgspec

from bequest.limits import NOTICES_OWED_MAX
from bequest.protocol.books import Books, Row
from bequest.protocol.outputs import Output, ToAgent
from bequest.protocol.process_table import Member, ProcessTable, State
from bequest.wire import messages as wire


class OwedNotice(Row):
    compute: str
    told: wire.TellProcess


class OwedNotices:
    def __init__(self, books: Books, processes: ProcessTable) -> None:
        self._books = books
        self._processes = processes
        self._owed = books.open("owed notices", OwedNotice, int)

    def owe(self, process: Member, notice: wire.Notice) -> list[Output]:
        """A call for a contact that is owed already is the same one: its agent says it until it is answered."""
        mine = [owed for owed in self._owed if _is_of(owed, process)]
        if isinstance(notice, wire.NoticeContact) and any(owed.told.notice == notice for owed in mine):
            return []
        for oldest in mine[: max(0, len(mine) + 1 - NOTICES_OWED_MAX)]:
            self._owed.remove(oldest.told.number)
        number = self._books.counter("notice").next()
        if isinstance(notice, wire.NoticeMemory):
            notice = msgspec.structs.replace(notice, failure=number)
        told = wire.TellProcess(process.id, process.incarnation, notice, number)
        self._owed.put(number, OwedNotice(process.compute, told))
        return [ToAgent(process.compute, told)]

    def told(self, number: int) -> None:
        """Its agent says so; perhaps again."""
        if number in self._owed:
            self._owed.remove(number)

    def agent_linked(self, compute: str) -> list[Output]:
        """What it has not heard, or not passed on, or has but the Rack MMU does not know."""
        owed = sorted(number for number, row in self._owed.items() if row.compute == compute)
        return [ToAgent(compute, self._owed[number].told) for number in owed]

    def sweep(self) -> None:
        for number, owed in self._owed.items():
            process = self._processes.exact(owed.told.pid, owed.told.incarnation)
            if process is None or process.state is State.GONE:
                self._owed.remove(number)


def _is_of(owed: OwedNotice, process: Member) -> bool:
    return (owed.told.pid, owed.told.incarnation) == (process.id, process.incarnation)
