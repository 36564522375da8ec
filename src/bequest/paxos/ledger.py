"""What a replica must not forget, and what it replicates: the two things that a driver brings along.

A **Ledger** is a handful of durable words and three durable mappings. It decides nothing; that is the machine's. The
driver wraps every batch of inputs to the machine in one `transaction`, and lets nothing out before it has committed:
so whatever a replica has said is kept, and whoever opens its ledger after it died *is* that replica, with every
promise. Applying a command is in the same transaction as the word that says it was applied.
`bequest.paxos.heap_ledger` keeps a ledger in rack memory; the one here keeps it in this process's, for tests and for
the simulation.

An **Application** is the replicated state machine. It is deterministic: what it says and becomes depends on the
commands alone, with their indices and stamps. Its state lies under the ledger's transactions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from bequest.paxos.messages import NO_BALLOT, Ballot, Membership, ReplicaId, Slot, Stream, Vote

K = TypeVar("K")
V = TypeVar("V")


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """Of an origin's commands, those up to this number of this life of it have been carried out."""

    life: int
    number: int


class Session(msgspec.Struct, frozen=True, array_like=True):
    """The last command of a session: its number, when it was carried out, and the reply."""

    number: int
    stamp_ms: int
    reply: bytes


class Installing(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot is being received: the application's state is a torso, of these many parts."""

    stream: Stream
    parts: int


class Ledger(Protocol):
    """Durable words (assign them like any attribute) and mappings. All of it changes within `transaction` only."""

    replica: ReplicaId  # who this is
    life: int  # how many processes have been this replica
    clock: str  # what `granted_until` is measured by: a host, and its start
    promised: Ballot  # nothing of a lower ballot is accepted. Its replica has the lease, if there is one
    led: Ballot  # the last ballot with which this replica became the leader
    granted_until: float  # until then no other replica's Prepare is answered
    chosen: Slot  # what was chosen is known up to here
    applied: Slot  # and carried out up to here
    first_kept: Slot  # votes below are not kept any more
    last: Slot  # the highest slot with a vote
    kept_bytes: int  # of the votes that are kept
    membership: Membership  # as of `applied`
    stamp_ms: int  # of the last entry applied
    executed: int  # commands, ever
    sessions_opened: int
    sessions_hand: int  # the session that was last looked at for whether it has ended
    installing: Installing | None

    @property
    def votes(self) -> MutableMapping[Slot, Vote]:
        """What was accepted, from `first_kept` to `last`."""

    @property
    def heard(self) -> MutableMapping[ReplicaId, Heard]:
        """By origin."""

    @property
    def sessions(self) -> MutableMapping[int, Session]:
        """By id."""

    def transaction(self) -> AbstractContextManager[object]:
        """All that changes within is kept, or nothing."""

    def touch(self) -> None:
        """Stores something, anything: raises if this memory is somebody else's by now."""


class Snapshot(Protocol):
    """The application's state as it was at one time, piece by piece."""

    def next(self, size: int) -> bytes | None:
        """The next piece, of about this size in bytes; None if that was all."""

    def close(self) -> None:
        """It is not wanted any more."""


class Application(Protocol):
    """What is replicated."""

    def apply(self, index: int, stamp_ms: int, command: bytes) -> bytes:
        """Carries a command out.

        The index is its place among all commands ever carried out: one more each time. The stamp is the wall clock of
        whoever led then, and never goes back.
        """

    def query(self, now_ms: int, query: bytes) -> bytes:
        """Answers without changing anything. The time is the wall clock, and no earlier than the last stamp."""

    def begin_snapshot(self) -> Snapshot:
        """The state as it is now, to be fetched while commands go on to be applied. Several may be under way."""

    def clear(self) -> None:
        """Forgets everything: a snapshot is about to be installed."""

    def install(self, part: bytes) -> None:
        """Takes in a piece of a snapshot. Pieces come in their order, each once."""


class Undo:
    """What would take back the changes of the transaction under way."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], Any]] | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Takes everything back if it is left by an exception."""
        self.steps = []
        try:
            yield
        except BaseException:
            for step in reversed(self.steps):
                step()
            raise
        finally:
            self.steps = None


class UndoDict(dict[K, V]):
    """A dict whose changes can be taken back."""

    def __init__(self, undo: Undo) -> None:
        super().__init__()
        self._undo = undo

    def _remember(self, key: K) -> None:
        if self._undo.steps is not None:
            if key in self:
                before = self[key]
                self._undo.steps.append(lambda: dict.__setitem__(self, key, before))
            else:
                self._undo.steps.append(lambda: dict.pop(self, key, None))

    def __setitem__(self, key: K, value: V) -> None:
        self._remember(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        self._remember(key)
        super().__delitem__(key)

    def clear(self) -> None:
        """Without everything."""
        for key in list(self):
            del self[key]

    def update(self, other: Mapping[K, V]) -> None:  # type: ignore[override]
        """With all of these, too."""
        for key, value in other.items():
            self[key] = value


class MemoryLedger:
    """A ledger in the memory of this process. Whatever is to be undone with it lives by the same `undo`."""

    def __init__(self, replica: ReplicaId, membership: Membership) -> None:
        self.replica = replica
        self.life = 0
        self.clock = ""
        self.promised = NO_BALLOT
        self.led = NO_BALLOT
        self.granted_until = 0.0
        self.chosen = 0
        self.applied = 0
        self.first_kept = 1
        self.last = 0
        self.kept_bytes = 0
        self.membership = membership
        self.stamp_ms = 0
        self.executed = 0
        self.sessions_opened = 0
        self.sessions_hand = 0
        self.installing: Installing | None = None
        self.undo = Undo()
        self.votes: UndoDict[Slot, Vote] = UndoDict(self.undo)
        self.heard: UndoDict[ReplicaId, Heard] = UndoDict(self.undo)
        self.sessions: UndoDict[int, Session] = UndoDict(self.undo)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Takes everything back if it is left by an exception."""
        words = self.__dict__.copy()
        try:
            with self.undo.transaction():
                yield
        except BaseException:
            self.__dict__.update(words)
            raise

    def touch(self) -> None:
        """This memory cannot be taken away."""
