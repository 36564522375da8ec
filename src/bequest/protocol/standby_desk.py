"""Standbys: processes that want to know at once when another one, of their group, dies or hangs (paper, 3.2 and 4.1).

Theory of operation. A standby stands by for a *name*: its bearer may attach later, and again, each time under a new
incarnation. What opens the victim's memory is checked when it stands by, so that it does not find out in an emergency
that it has the wrong capability; stealing checks it again. Who is stood by for is *watched*: it beats, and the rack
monitor looks for its beats. Standbys hear of deaths and suspicions as every member of the group does.
"""

from __future__ import annotations

from collections.abc import Callable

from bequest.limits import STANDBYS_MAX
from bequest.protocol.books import Row
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import RackState, Session
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

# Raises `Refusal` if this process may not steal from that one (None: not attached yet) with this capability.
CapabilityCheck = Callable[[Session, Member, str, Member | None, bytes, float], None]


class Standby(Row):
    id: int
    process: int
    incarnation: int
    group: int
    victim: str


class StandbyDesk:
    def __init__(self, state: RackState, check: CapabilityCheck) -> None:
        self._state = state
        self._check = check
        self._standbys = state.books.open("standbys", Standby, int)

    def stand_by(self, session: Session, process: Member, message: wire.StandBy, now: float) -> None:
        mine = [standby for standby in self._standbys if _is_of(standby, process)]
        if len(mine) >= STANDBYS_MAX:
            raise Refusal("config", f"one process stands by for {STANDBYS_MAX} others at most")
        victim = self._state.processes.attached(message.victim)
        if victim is not None and victim.group != process.group:
            raise Refusal(
                "unknown", f"{message.victim!r} is in another group; standbys are of the same group"
            )
        if message.capability is not None:
            self._check(session, process, message.victim, victim, message.capability, now)
        number = self._state.books.counter("standby").next()
        standby = Standby(number, process.id, process.incarnation, process.group, message.victim)
        self._standbys.put(standby.id, standby)
        if victim is None:
            self._state.reply(session.peer, wire.StandingBy(standby.id))
        else:
            self._watch(victim)
            self._state.reply(session.peer, wire.StandingBy(standby.id, victim.id, victim.incarnation))

    def stand_down(self, session: Session, process: Member, number: int) -> None:
        standby = self._standbys.get(number)
        if standby is None or not _is_of(standby, process):
            raise Refusal("unknown", f"this process has no standby {number}")
        self._drop(standby)
        self._state.reply(session.peer, wire.Done())

    def gone(self, process: Member) -> None:
        """It stands by for nobody any more."""
        for standby in self._standbys:
            if _is_of(standby, process):
                self._drop(standby)

    def attached(self, process: Member) -> None:
        """Somebody may have waited for one of this name."""
        waiting = self._for(process)
        if waiting:
            self._watch(process)
        for standby in waiting:
            by = self._state.processes.exact(standby.process, standby.incarnation)
            if by is not None:
                notice = wire.NoticeAttached(process.name, process.id, process.incarnation)
                self._state.outputs += self._state.notices.owe(by, notice)

    def _for(self, process: Member) -> list[Standby]:
        return [
            standby
            for standby in self._standbys
            if standby.victim == process.name and standby.group == process.group
        ]

    def _drop(self, standby: Standby) -> None:
        self._standbys.remove(standby.id)
        victim = self._state.processes.attached(standby.victim)
        if victim is not None and victim.group == standby.group:
            self._watch(victim)

    def _watch(self, victim: Member) -> None:
        self._state.groups[victim.group].shard.watch(victim.id, len(self._for(victim)))


def _is_of(standby: Standby, process: Member) -> bool:
    return (standby.process, standby.incarnation) == (process.id, process.incarnation)
