"""The learner: carries out what was chosen, slot by slot.

Everything here is deterministic: all replicas become the same by it. A parcel of an origin is carried out from the
first command on that follows on what was carried out of that origin before; what came twice is skipped, and a parcel
that does not join on is skipped as a whole (its origin sends it again). So a replica may hand the same commands to
one leader after another. Ids are never given out twice, hence what comes from a replica that was removed is skipped,
too.
"""

from __future__ import annotations

from collections.abc import Callable

from bequest.paxos.core import Core
from bequest.paxos.ledger import Heard
from bequest.paxos.log import Log
from bequest.paxos.messages import Batch, Command, Membership, Parcel, ReplicaId, Slot, decode_value
from bequest.paxos.outputs import Why
from bequest.paxos.sessions import Sessions

Outcome = bytes | Why


class Learner:
    """Knows what was chosen, and applies it."""

    def __init__(self, core: Core, log: Log) -> None:
        self._core = core
        self._ledger = core.ledger
        self._log = log
        self._sessions = Sessions(core.ledger)
        # Told: the commands of this very process that were carried out, with what came of each.
        self.on_own: Callable[[int, list[Outcome]], None] = lambda _first, _outcomes: None
        self.on_membership: Callable[[], None] = lambda: None

    def learn(self, chosen: Slot) -> None:
        """Everything up to this slot was chosen, and what was accepted here is it."""
        if chosen > self._ledger.chosen:
            self._ledger.chosen = chosen
            self.apply()

    def apply(self) -> None:
        """Applies what is chosen and not applied yet."""
        ledger = self._ledger
        if ledger.installing is not None:
            return
        while ledger.applied < ledger.chosen:
            slot = ledger.applied + 1
            value = decode_value(self._log.value(slot))
            stamp_ms = max(ledger.stamp_ms, value.stamp_ms)
            if isinstance(value, Batch):
                for parcel in value.parcels:
                    self._carry_out(parcel, stamp_ms)
            ledger.stamp_ms = stamp_ms
            ledger.applied = slot
            if not isinstance(value, Batch):
                self._change(value.membership)

    def _carry_out(self, parcel: Parcel, stamp_ms: int) -> None:
        heard = self._ledger.heard
        before = heard.get(parcel.origin)
        done = before.number if before is not None and before.life == parcel.life else 0
        outdated = before is not None and parcel.life < before.life
        skipped = done + 1 - parcel.first
        if outdated or skipped < 0 or skipped >= len(parcel.commands):
            return
        if parcel.origin not in self._core.membership.everybody:
            return
        commands = parcel.commands[skipped:] if skipped else parcel.commands
        outcomes = self._execute(commands, stamp_ms)
        heard[parcel.origin] = Heard(parcel.life, done + len(commands))
        if parcel.origin == self._core.me and parcel.life == self._ledger.life:
            self.on_own(done + 1, outcomes)

    def _execute(self, commands: list[Command], stamp_ms: int) -> list[Outcome]:
        index = self._ledger.executed
        apply = self._core.application.apply
        outcomes: list[Outcome] = []
        for command in commands:
            index += 1
            if isinstance(command, bytes):
                outcomes.append(apply(index, stamp_ms, command))
            else:
                outcomes.append(self._sessions.execute(command, index, stamp_ms, apply))
        self._ledger.executed = index
        return outcomes

    def _change(self, membership: Membership) -> None:
        self._forget_origins(membership.everybody)
        if membership.epoch <= self._core.membership.epoch:
            return  # a newcomer was told of a later one when it joined, and learns how it came to that
        assert membership.epoch == self._core.membership.epoch + 1, "a leader proposes one change at a time"
        self._core.adopt_membership(membership)
        self.on_membership()

    def _forget_origins(self, everybody: dict[ReplicaId, str]) -> None:
        for origin in [origin for origin in self._ledger.heard if origin not in everybody]:
            del self._ledger.heard[origin]
