"""State transfer: a snapshot, in pieces, for a replica that needs more than the log has.

The leader sends a few parts ahead of those acknowledged, and keeps these few for sending again. The receiver installs
them in their order, each in the transaction that notes it: so a receiver that dies on the way, and is reincarnated,
goes on where it was; until the last part its state is a torso, and it answers nobody. With the last part come the
words of the ledger that belong to the state.
"""

from __future__ import annotations

import msgspec

from bequest.paxos.core import Core
from bequest.paxos.ledger import Application, Heard, Installing, Ledger, Session
from bequest.paxos.log import Log
from bequest.paxos.messages import Ballot, Membership, Part, PartInstalled, ReplicaId, Slot, Stream
from bequest.paxos.timing import PART_BYTES, PARTS_IN_FLIGHT


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """What the ledger says of the state after a slot, beside the application's."""

    membership: Membership
    stamp_ms: int
    executed: int
    sessions_opened: int
    sessions_hand: int
    heard: dict[ReplicaId, Heard]
    sessions: dict[int, Session]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Settled).decode


class Sending:
    """One transfer, at the leader."""

    def __init__(self, ledger: Ledger, application: Application, ballot: Ballot, number: int) -> None:
        self.slot: Slot = ledger.applied
        self._ballot = ballot
        self._stream = Stream(ledger.replica, ledger.life, number)
        self._snapshot = application.begin_snapshot()
        self._settled = _encode(
            Settled(
                ledger.membership,
                ledger.stamp_ms,
                ledger.executed,
                ledger.sessions_opened,
                ledger.sessions_hand,
                dict(ledger.heard.items()),
                dict(ledger.sessions.items()),
            )
        )
        self._made: list[Part] = []  # those not acknowledged
        self._acknowledged = 0  # parts before this one are installed
        self._to_send = 0
        self._count: int | None = None  # how many there are, once the last is made

    def parts(self) -> list[Part]:
        """What to send now."""
        while self._count is None and len(self._made) < PARTS_IN_FLIGHT:
            self._make_one()
        new = self._made[self._to_send - self._acknowledged :]
        self._to_send = self._acknowledged + len(self._made)
        return new

    def _make_one(self) -> None:
        index = self._acknowledged + len(self._made)
        data = self._snapshot.next(PART_BYTES)
        settled = b""
        if data is None:
            self._count = index + 1
            settled = self._settled
        self._made.append(Part(self._ballot, self._stream, self.slot, index, data or b"", settled))

    def send_again(self) -> None:
        """What was sent and not acknowledged may be lost."""
        self._to_send = self._acknowledged

    def installed(self, message: PartInstalled) -> bool:
        """The receiver has these; whether that is news."""
        news = message.index - self._acknowledged
        if message.stream != self._stream or news <= 0:
            return False
        del self._made[:news]
        self._acknowledged = message.index
        self._to_send = max(self._to_send, message.index)
        return True

    @property
    def finished(self) -> bool:
        """Everything is installed."""
        return self._acknowledged == self._count

    def close(self) -> None:
        """The application need not keep that state any more."""
        self._snapshot.close()


class Receiving:
    """The other end."""

    def __init__(self, core: Core, log: Log) -> None:
        self._core = core
        self._ledger = core.ledger
        self._log = log

    def on_part(self, sender: ReplicaId, part: Part) -> bool:
        """Installs it, if it is the next one. Whether the state is complete now."""
        ledger = self._ledger
        if part.slot <= ledger.applied and ledger.installing is None:
            return False  # a late one of a transfer that is over
        if not self._belongs(part):
            return False
        installing = ledger.installing
        assert installing is not None
        finished = False
        if part.index == installing.parts:
            if part.data:
                self._core.application.install(part.data)
            ledger.installing = Installing(part.stream, part.index + 1)
            if part.settled:
                self._settle(part.slot, _decode(part.settled))
                finished = True
        self._core.send(
            sender, PartInstalled(part.stream, installing.parts + (part.index == installing.parts))
        )
        return finished

    def _belongs(self, part: Part) -> bool:
        """To the transfer under way, or to one that begins instead."""
        ledger = self._ledger
        current = ledger.installing
        if current is not None:
            if current.stream == part.stream:
                return True
            mine, other = current.stream, part.stream
            if mine.source == other.source and (mine.life, mine.number) > (other.life, other.number):
                return False
        if part.index != 0:
            return False
        self._core.application.clear()
        ledger.installing = Installing(part.stream, 0)
        return True

    def _settle(self, slot: Slot, settled: Settled) -> None:
        ledger = self._ledger
        self._log.start_above(slot)
        ledger.installing = None
        ledger.applied = slot
        ledger.chosen = max(ledger.chosen, slot)
        ledger.stamp_ms = settled.stamp_ms
        ledger.executed = settled.executed
        ledger.sessions_opened = settled.sessions_opened
        ledger.sessions_hand = settled.sessions_hand
        ledger.heard.clear()
        ledger.heard.update(settled.heard)
        ledger.sessions.clear()
        ledger.sessions.update(settled.sessions)
        self._core.adopt_membership(settled.membership)
