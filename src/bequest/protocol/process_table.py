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
from collections.abc import Iterator, Sequence
from enum import Enum

from bequest.ids import GroupId, ProcessId
from bequest.limits import FIRST_MAILBOX_ID, LAST_MAILBOX_ID, MAX_PROCESS_ID
from bequest.protocol.books import Books, Row
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
    State.LOST: (State.ORPHANED, State.GONE),
    State.ORPHANED: (State.GONE,),
    State.GONE: (),
}


class Member(Row):
    """A process or a mailbox: whatever has an id and an inbox."""

    kind: Kind
    id: ProcessId
    incarnation: int
    name: str
    group: GroupId
    os_pid: int = 0
    compute: str = ""
    peer: PeerId | None = None
    nonce: bytes = b""  # of the request that attached it
    ticket: bytes = b""  # shown to its agent, and to come back after a restart
    enrolled: bool = False
    pending: int = 0  # operations under way that will still speak of this id
    free_at: float | None = None  # when an orphan's memory is freed
    heir: str | None = None  # who alone may steal from it where the group's policy is "standby"
    state: State = State.ATTACHED
    is_suspect: bool = False  # the rack monitor has seen no sign of life of it for a while
    silent_for: float = 0.0  # so long, when it was suspected
    is_hinted_dead: bool = False  # the monitor says so; its agent may have proof soon

    transient = ("peer", "pending", "is_hinted_dead")

    def become(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], (self, state)
        self.state = state

    @property
    def is_attached(self) -> bool:
        return self.state is State.ATTACHED


class Resting(Row):
    """An id between two bearers."""


class IdPool:
    """Ids of one kind: those that were never borne, then those that have rested longest.

    So what is late will hardly find somebody else. That it does no harm if it does is owed to the incarnation, which
    goes with every id.
    """

    def __init__(self, books: Books, kind: Kind, first: int, last: int) -> None:
        self._resting = books.open(f"resting {kind.value} ids", Resting, int)
        self._fresh = deque(range(first, last + 1))

    def take(self) -> int | None:
        if self._fresh:
            return self._fresh.popleft()
        number = next((number for number, _ in self._resting.items()), None)
        if number is not None:
            self._resting.remove(number)
        return number

    def give_back(self, number: int) -> None:
        self._resting.put(number, Resting())

    def restored(self, borne: Sequence[int]) -> None:
        """``borne`` are the ids that have bearers."""
        used = {*borne, *(number for number, _ in self._resting.items())}
        self._fresh = deque(number for number in self._fresh if number not in used)


class ProcessTable:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._members = books.open("members", Member, int)
        self._pools = {
            Kind.PROCESS: IdPool(books, Kind.PROCESS, 1, MAX_PROCESS_ID),
            Kind.MAILBOX: IdPool(books, Kind.MAILBOX, FIRST_MAILBOX_ID, LAST_MAILBOX_ID),
        }

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def get(self, number: ProcessId) -> Member | None:
        return self._members.get(number)

    def exact(self, number: ProcessId, incarnation: int) -> Member | None:
        """The member, unless the id has another bearer by now."""
        member = self._members.get(number)
        return member if member is not None and member.incarnation == incarnation else None

    def admit(self, kind: Kind, name: str, group: GroupId) -> Member:
        number = self._pools[kind].take()
        if number is None:
            raise Refusal(
                "memory",
                f"all ids for a {kind.value} are in use: by the living, by the dead whose memory is kept, or by memory"
                " at their addresses; free some of it, or wait",
            )
        incarnation = self._books.counter("incarnation").next()
        return self._members.put(number, Member(kind, number, incarnation, name, group))

    def enter_gone(self, kind: Kind, number: ProcessId, incarnation: int, group: GroupId) -> None:
        """One that was admitted to a table, and then nobody was told of it, nor was it written down."""
        self._books.counter("incarnation").pass_by(incarnation)
        self._members.put(number, Member(kind, number, incarnation, "", group, state=State.GONE))

    def forget(self, member: Member) -> None:
        assert member.state is State.GONE and member.pending == 0, member
        self._members.remove(member.id)
        self._pools[member.kind].give_back(member.id)

    def attached(self, name: str) -> Member | None:
        for member in self._members:
            if member.name == name and member.kind is Kind.PROCESS and member.is_attached:
                return member
        return None

    def running(self, name: str, group: GroupId) -> list[Member]:
        """Who may still write."""
        named = [member for member in self._members if (member.name, member.group) == (name, group)]
        return [member for member in named if member.state in (State.ATTACHED, State.LOST)]

    def admitted_by(self, nonce: bytes) -> Member | None:
        """Whom this very request has attached before."""
        for member in self._members:
            if nonce and member.nonce == nonce and member.is_attached:
                return member
        return None

    def restored(self) -> None:
        """The books have been filled with what a run before wrote down."""
        for kind, pool in self._pools.items():
            pool.restored([member.id for member in self._members if member.kind is kind])

    def departed(self, name: str) -> Member | None:
        """A process that bore this name and is still remembered."""
        for member in self._members:
            if member.name == name and member.kind is Kind.PROCESS and not member.is_attached:
                return member
        return None

    def mailbox(self, name: str, group: GroupId) -> Member | None:
        for member in self._members:
            if (
                member.name == name
                and member.group == group
                and member.kind is Kind.MAILBOX
                and member.is_attached
            ):
                return member
        return None

    def any_in(self, group: GroupId) -> bool:
        return any(member.group == group for member in self._members)

    def load(self, computes: tuple[str, ...]) -> dict[str, int]:
        """How many attached processes each compute element has, in the order of the configuration."""
        load = dict.fromkeys(computes, 0)
        for member in self._members:
            if member.kind is Kind.PROCESS and member.is_attached:
                load[member.compute] += 1
        return load
