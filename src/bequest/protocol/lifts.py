"""Fences that were left on memory which is its victim's own.

Theory of operation. A fence may come to nothing: a part of it fails, its agent does not answer in time, the word that
it was for has moved on, or the memory has come back to its victim while it stood. Write protection stays until it is
lifted. So it is noted what each process was fenced off, and as soon as nothing more is to be taken from it and no fence
of it is under way, its agent is told to lift what lies on memory that it owns now (`wire.LiftFence`). A thread of it
that stores there meanwhile waits for that (native/fault_barrier.hpp). Then its library is told to mend what is left
(native/lookout.hpp): where lifting has failed, and what ptrace has closed, which nobody opens from outside.

What makes it safe is the order. Whose memory is, is looked up when the message is sent. If it is stolen later, the
fence for that is asked for later, over the same link, and carried out in the same lane of the agent: behind the
lifting. So the lifting is behind a fence whose answer is not waited for any more. If the victim itself gives the memory
away, it has closed the pages, and lifting changes nothing about that. There may be a doubt about memory that the victim
has got back (`doubts.py`); it owns that memory, and nobody gets it but in one of these two ways.

An agent that is linked anew is told again, what is so by then. A Rack MMU that is started anew knows no more than whom
its predecessor had begun to steal from, and has all lifted that these own.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bequest.limits import FENCE_RANGES_MAX, WINDOW_BASE, WINDOW_BITS
from bequest.protocol.address_plan import Run
from bequest.protocol.doubts import joined, life, runs_of
from bequest.protocol.outputs import ToAgent
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import RackState
from bequest.wire import messages as wire

EVERYWHERE: Run = (WINDOW_BASE, WINDOW_BASE + (1 << WINDOW_BITS))


class Lift(msgspec.Struct):
    target: Member
    runs: list[Run]


class Lifts:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._fenced: dict[tuple[int, int], list[Run]] = {}  # by whose memory it may have been left on
        self._asked: dict[int, Lift] = {}  # agents, which have yet to answer

    def fenced(self, target: Member, runs: Iterable[Run]) -> None:
        """It is about to be fenced off these."""
        self._fenced.setdefault(life(target), []).extend(runs)

    def lift(self, target: Member) -> None:
        """No fence of it is under way that would be needed."""
        fenced = self._fenced.pop(life(target), None)
        if not fenced:
            return
        runs = _overlaps(joined(fenced), self._own(target, fenced))
        for first in range(0, len(runs), FENCE_RANGES_MAX):
            lift = Lift(target, runs[first : first + FENCE_RANGES_MAX])
            number = self._state.books.counter("fence").next()
            self._asked[number] = lift
            ranges = [(start, end - start) for start, end in lift.runs]
            message = wire.LiftFence(number, target.id, target.incarnation, ranges)
            self._state.outputs.append(ToAgent(target.compute, message))

    def lifted(self, number: int) -> None:
        """As far as an agent can."""
        lift = self._asked.pop(number, None)
        if lift is not None:
            self._state.shard_of(lift.target.group).have_mended(lift.target.id)

    def agent_linked(self, compute: str) -> list[Member]:
        """Whose fences are to be lifted again, since it may not have heard of that."""
        lost = [number for number, lift in self._asked.items() if lift.target.compute == compute]
        targets = []
        for number in lost:
            lift = self._asked.pop(number)
            self.fenced(lift.target, lift.runs)
            targets.append(lift.target)
        return targets

    def forget(self, target: Member) -> None:
        """Nothing of it runs any more."""
        self._fenced.pop(life(target), None)
        for number in [number for number, lift in self._asked.items() if lift.target is target]:
            del self._asked[number]

    def _own(self, target: Member, runs: list[Run]) -> list[Run]:
        """What it owns, around these."""
        start, end = min(start for start, _ in runs), max(end for _, end in runs)
        shard = self._state.shard_of(target.group)
        return joined(runs_of(shard.owned(target.id, [(start, end - start)])))


def _overlaps(some: list[Run], others: list[Run]) -> list[Run]:
    """What is in one of either; both are in order."""
    found = []
    mine, theirs = iter(some), iter(others)
    one, other = next(mine, None), next(theirs, None)
    while one and other:
        start, end = max(one[0], other[0]), min(one[1], other[1])
        if start < end:
            found.append((start, end))
        if one[1] <= other[1]:
            one = next(mine, None)
        else:
            other = next(theirs, None)
    return found
