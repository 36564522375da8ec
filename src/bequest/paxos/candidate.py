"""The candidate: phase 1, and when to begin it.

A replica stands when its own lease to the leader has ended and a random time beyond; at once when the leader's memory
is known to be lost. It asks the members for their promises, and with them for their votes above what it knows to be
chosen. From a majority's answers it takes, for each slot, the value of the highest ballot: if any value was chosen
there, it is that one. Slots that nobody has voted for get a no-op.

One thing is special to a membership that changes. Who decides about the slots above a `Change` is said by that change;
so a candidate that finds one among the votes has asked the wrong majority about all that lies above. It gets the slots
up to the change chosen, and stands again.
"""

from __future__ import annotations

from bequest.paxos.core import Core
from bequest.paxos.log import Log
from bequest.paxos.messages import (
    NO_BALLOT,
    NO_OP,
    Ballot,
    Change,
    Prepare,
    Promise,
    Refuse,
    ReplicaId,
    Slot,
    Vote,
    decode_value,
)
from bequest.paxos.outputs import SendToSite


class Candidate:
    """Stands for election, sooner or later."""

    def __init__(self, core: Core, log: Log) -> None:
        self._core = core
        self._ledger = core.ledger
        self._log = log
        self._round = 0  # the highest that anybody has mentioned
        self._promises: dict[ReplicaId, dict[Slot, Vote]] = {}
        self.ballot: Ballot | None = None  # while it stands
        self.stand_at = 0.0
        self.wait()

    def wait(self) -> None:
        """Gives whoever leads, or stands, the time of its lease."""
        since = max(self._core.now, self._ledger.granted_until)
        self.stand_at = since + self._core.timing.election_jitter * self._core.chance()

    def withdraw(self) -> None:
        """Somebody else leads."""
        self.ballot = None
        self._promises = {}
        self.wait()

    def stand_soon(self) -> None:
        """Nobody who knows less can be elected: do not wait for long."""
        soon = self._core.now + self._core.timing.election_jitter * self._core.chance() / 8
        self.stand_at = min(self.stand_at, max(soon, self._ledger.granted_until))

    def stand_after_loss(self) -> None:
        """The leader's memory is lost, and its lease with it: one member stands now, the others soon."""
        core = self._core
        self.stand_soon()
        if core.me == min((m for m in core.membership.members if m not in core.lost), default=0):
            self.stand_at = core.now

    def may_stand(self) -> bool:
        """Is there anything against it?"""
        core = self._core
        leased = core.lease_runs() and self._ledger.promised.replica != core.me
        return core.me in core.membership.members and self._ledger.installing is None and not leased

    def prepare(self) -> Ballot:
        """Phase 1a. The caller has its own acceptor promise this ballot."""
        core = self._core
        self._round = max(self._round, self._ledger.promised.round) + 1
        self.ballot = Ballot(self._round, core.me)
        self._promises = {core.me: self._log.above(self._ledger.chosen)}
        for member in core.membership.members:
            if member != core.me:
                core.send(member, Prepare(self.ballot, self._ledger.chosen))
        self.stand_at = core.now + core.timing.heartbeat + core.timing.election_jitter * core.chance()
        return self.ballot

    def ask_around(self) -> None:
        """Nobody leads as far as is known here, and this replica cannot stand: is it one of them any more?

        It asks for a promise that nobody can give; who knows that it was removed says so when refusing.
        """
        core = self._core
        for replica, site in core.membership.everybody.items():
            if replica != core.me:
                core.outputs.append(SendToSite(site, Prepare(NO_BALLOT, self._ledger.chosen)))
        self.wait()
        self.stand_at += core.timing.resend

    def on_promise(self, sender: ReplicaId, message: Promise) -> None:
        """Phase 1b."""
        if message.ballot == self.ballot and sender in self._core.membership.members:
            self._promises[sender] = message.votes

    def on_refuse(self, message: Refuse) -> None:
        """Somebody has promised more, or knows more."""
        self._round = max(self._round, message.promised.round)

    def elected(self) -> bool:
        """Has a majority promised?"""
        return self.ballot is not None and len(self._promises) >= self._core.membership.quorum

    def recover(self) -> tuple[list[bytes], bool]:
        """The values to propose for the slots above the chosen ones; and whether to stand again after them."""
        best: dict[Slot, Vote] = {}
        for votes in self._promises.values():
            for slot, vote in votes.items():
                if slot not in best or vote.ballot > best[slot].ballot:
                    best[slot] = vote
        first = self._ledger.chosen + 1
        values: list[bytes] = []
        for slot in range(first, max(best, default=0) + 1):
            values.append(best[slot].value if slot in best else NO_OP)
            if isinstance(decode_value(values[-1]), Change):
                return values, True
        return values, False
