"""Who is, or was, in the rack: processes and mailboxes, their ids, names and states.

    attached ──(connection gone, still running)──> lost ──┐
        │                                                 ├─(the kernel says it has gone)──> orphaned
        ├──────────────────(the kernel says it has gone)──┘                                     │
        └──(detach)──────────────────────> gone <──────────────────(kept long enough)───────────┘

What is *gone* owns nothing, but others may own memory at addresses that bear its id; the id is free again only when no
memory bears it, and has rested. The one that has rested longest goes first. Names are unique among the attached, so a
process that was restarted may have its old name at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum

import msgspec

from bequest.ids import GroupId, ProcessId
from bequest.limits import FIRST_MAILBOX_ID, ID_REST, LAST_MAILBOX_ID, MAX_PROCESS_ID
from bequest.protocol.outputs import PeerId
from bequest.protocol.refusal import Refusal


class State(Enum):
    ATTACHED = "attached"
    LOST = "lost"
    ORPHANED = "orphaned"
    GONE = "gone"


class Kind(Enum):
    PROCESS = "process"
    MAILBOX = "mailbox"


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.ATTACHED: (State.LOST, State.ORPHANED, State.GONE),
    State.LOST: (State.ORPHANED,),
    State.ORPHANED: (State.GONE,),
    State.GONE: (),
}


class Member(msgspec.Struct):
    """A process or a mailbox: whatever has an id and an inbox."""

    kind: Kind
    id: ProcessId
    incarnation: int
    name: str
    group: GroupId
    os_pid: int = 0
    compute: str = ""
    peer: PeerId | None = None
    enrolled: bool = False
    pending: int = 0  # operations under way that will still speak of this id
    free_at: float | None = None  # when an orphan's memory is freed
    state: State = State.ATTACHED

    def become(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], (self, state)
        self.state = state

    @property
    def is_attached(self) -> bool:
        return self.state is State.ATTACHED


class IdPool:
    """Ids of one kind, least recently used first."""

    def __init__(self, first: int, last: int) -> None:
        self._resting: deque[tuple[int, float]] = deque(
            (number, float("-inf")) for number in range(first, last + 1)
        )

    def take(self, now: float) -> int | None:
        if not self._resting or self._resting[0][1] > now:
            return None
        return self._resting.popleft()[0]

    def give_back(self, number: int, now: float) -> None:
        self._resting.append((number, now + ID_REST))


class ProcessTable:
    def __init__(self) -> None:
        self._members: dict[ProcessId, Member] = {}
        self._pools = {
            Kind.PROCESS: IdPool(1, MAX_PROCESS_ID),
            Kind.MAILBOX: IdPool(FIRST_MAILBOX_ID, LAST_MAILBOX_ID),
        }
        self._last_incarnation = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, number: ProcessId) -> Member | None:
        return self._members.get(number)

    def exact(self, number: ProcessId, incarnation: int) -> Member | None:
        """The member, unless the id has another bearer by now."""
        member = self._members.get(number)
        return member if member is not None and member.incarnation == incarnation else None

    def admit(self, kind: Kind, name: str, group: GroupId, now: float) -> Member:
        number = self._pools[kind].take(now)
        if number is None:
            raise Refusal(
                "memory",
                f"all ids for a {kind.value} are in use: by the living, by the dead whose memory is kept, or by memory"
                " at their addresses; free some of it, or wait",
            )
        self._last_incarnation += 1
        member = Member(kind, number, self._last_incarnation, name, group)
        self._members[number] = member
        return member

    def forget(self, member: Member, now: float) -> None:
        assert member.state is State.GONE and member.pending == 0, member
        del self._members[member.id]
        self._pools[member.kind].give_back(member.id, now)

    def attached(self, name: str) -> Member | None:
        for member in self._members.values():
            if member.name == name and member.kind is Kind.PROCESS and member.is_attached:
                return member
        return None

    def departed(self, name: str) -> Member | None:
        """A process that bore this name and is still remembered."""
        for member in self._members.values():
            if member.name == name and member.kind is Kind.PROCESS and not member.is_attached:
                return member
        return None

    def mailbox(self, name: str, group: GroupId) -> Member | None:
        for member in self._members.values():
            if (
                member.name == name
                and member.group == group
                and member.kind is Kind.MAILBOX
                and member.is_attached
            ):
                return member
        return None

    def any_in(self, group: GroupId) -> bool:
        return any(member.group == group for member in self._members.values())

    def load(self, computes: tuple[str, ...]) -> dict[str, int]:
        """How many attached processes each compute element has, in the order of the configuration."""
        load = dict.fromkeys(computes, 0)
        for member in self._members.values():
            if member.kind is Kind.PROCESS and member.is_attached:
                load[member.compute] += 1
        return load
