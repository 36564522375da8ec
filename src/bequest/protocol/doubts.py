"""Memory that was taken from a process that runs, and from which it has not been kept for good since.

Theory of operation. A victim that runs may have been opening pages while it was fenced, so what was taken from it is in
doubt until it has been fenced once more (`steal_desk.py`). The doubt is about the victim: whoever owns the memory
meanwhile, the victim may store there. So it is asked about by address, before the memory changes hands again or is
freed; and it ends with a fence of that victim, or with its end, and with nothing else.

That there may be doubts is written down before there are any: which thieves may own what was taken. Of that, a
restored Rack MMU makes the doubts anew: everything that these own.
"""

from __future__ import annotations

from collections.abc import Iterable

from bequest._core import STATE_FROZEN, STATE_THAWING
from bequest.limits import PAGE_BYTES
from bequest.protocol.address_plan import Run
from bequest.protocol.books import Row
from bequest.protocol.process_table import Member, State
from bequest.protocol.rack_state import RackState

_STATE_SHIFT = 61  # of an owner word (native/layout.hpp)

Bearer = tuple[int, int]  # an id, and the life of it that is meant
Listed = tuple[int, int, int, int]  # an extent, as `Shard.stealable` lists it


class Doubt(Row):
    """These thieves may own what this victim has not been kept from for good. Written down before they do."""

    victim: int
    incarnation: int
    thieves: tuple[Bearer, ...]


class Doubts:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._runs: dict[Bearer, list[Run]] = {}  # by victim
        self._book = state.books.open("doubts", Doubt, int)  # by the victim's incarnation

    def restore(self) -> list[Member]:
        """The victims there may be doubts about."""
        victims = []
        processes = self._state.processes
        for doubt in self._book:
            victim = processes.exact(doubt.victim, doubt.incarnation)
            if victim is None or victim.state not in (State.ATTACHED, State.LOST):
                self._book.remove(doubt.incarnation)
                continue
            shard = self._state.shard_of(victim.group)
            thieves = [processes.exact(*thief) for thief in doubt.thieves]
            owned = [row for thief in thieves if thief for row in shard.stealable(thief.id)]
            self._runs[doubt.victim, doubt.incarnation] = runs_of(owned)
            victims.append(victim)
        return victims

    def __len__(self) -> int:
        return len(self._runs)

    def of(self, victim: Member) -> list[Run]:
        """The same list as long as they are the same doubts."""
        return self._runs.get(life(victim), [])

    def over(self, runs: Iterable[Run], besides: tuple[Member, ...]) -> Member | None:
        """Somebody else who may still store into one of these."""
        wanted = list(runs)
        for bearer, doubtful in self._runs.items():
            victim = self._state.processes.exact(*bearer)
            if victim is None or victim in besides:
                continue
            if any(_overlap(run, other) for run in doubtful for other in wanted):
                return victim
        return None

    def may_arise(self, victim: Member, thief: Member) -> None:
        """From now on, this thief may own what its victim has not been fenced off (once more) since."""
        known = self._book.get(victim.incarnation)
        thieves = () if known is None else known.thieves
        if life(thief) not in thieves:
            doubt = Doubt(victim.id, victim.incarnation, (*thieves, life(thief)))
            self._book.put(victim.incarnation, doubt)

    def arise(self, victim: Member, runs: list[Run]) -> None:
        self._runs[life(victim)] = runs

    def end(self, victim: Member, doubts: list[Run], may_more_arise: bool) -> None:
        """It has been fenced off those; others may have arisen since that fence was asked for."""
        if self._runs.get(life(victim), doubts) is doubts:
            self._runs.pop(life(victim), None)
            if not may_more_arise and victim.incarnation in self._book:
                self._book.remove(victim.incarnation)

    def forget(self, victim: Member) -> None:
        """Nothing is left of it to be in doubt about."""
        self._runs.pop(life(victim), None)
        if victim.incarnation in self._book:
            self._book.remove(victim.incarnation)


def life(member: Member) -> Bearer:
    """Not to be mistaken for another bearer of its id."""
    return member.id, member.incarnation


def runs_of(listed: Iterable[Listed]) -> list[Run]:
    """Where these extents lie."""
    return [(address, address + pages * PAGE_BYTES) for _, _, address, pages in listed]


def writable(listed: Iterable[Listed]) -> list[Listed]:
    """Those that their owner may store into. Of what is frozen nobody need be kept, and it may be reading it."""
    return [row for row in listed if row[1] >> _STATE_SHIFT not in (STATE_FROZEN, STATE_THAWING)]


def joined(runs: Iterable[Run]) -> list[Run]:
    """Neighbours, and what overlaps, as one; in order."""
    whole: list[Run] = []
    for start, end in sorted(runs):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], end))
        else:
            whole.append((start, end))
    return whole


def _overlap(one: Run, other: Run) -> bool:
    return one[0] < other[1] and other[0] < one[1]
