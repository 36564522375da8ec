"""The acceptor: what a replica promises, accepts, and refuses.

Three promises, all of them in the ledger before they are sent:

* to a candidate, to accept nothing of a lower ballot (phase 1b);
* to a leader, that a value is accepted (phase 2b). Acceptors accept the slots of a ballot in their order, without gaps
  above what they know to be chosen, so one number says which: `upto`;
* with each such answer a *lease*: to answer no other replica's Prepare for a while. A lease does not keep an acceptor
  from following a leader of a higher ballot: that one was elected by others whose leases had ended, and a majority of
  leases meets every majority that elects.

A candidate that knows of fewer chosen slots than the acceptor is refused, and told what it lacks. So whoever is elected
knows the membership that elects it. The acceptor, who knows more, stands itself, too, if it may.
"""

from __future__ import annotations

from bequest.paxos.core import Core
from bequest.paxos.learner import Learner
from bequest.paxos.log import Log
from bequest.paxos.messages import (
    NO_BALLOT,
    Accept,
    Accepted,
    Ballot,
    Chosen,
    Prepare,
    Promise,
    Refuse,
    ReplicaId,
    Slot,
)


class Acceptor:
    """One of those whose majority decides."""

    def __init__(self, core: Core, log: Log, learner: Learner) -> None:
        self._core = core
        self._ledger = core.ledger
        self._log = log
        self._learner = learner
        self.upto = self._ledger.chosen  # accepted by the promised ballot, or chosen
        self._find_upto()

    def _find_upto(self) -> None:
        votes = self._ledger.votes
        while (vote := votes.get(self.upto + 1)) is not None and vote.ballot == self._ledger.promised:
            self.upto += 1

    def promise(self, ballot: Ballot) -> None:
        """From now on nothing of a lower ballot is accepted."""
        self._ledger.promised = ballot
        self.upto = self._ledger.chosen

    def on_prepare(self, candidate: ReplicaId, message: Prepare) -> bool:
        """Phase 1: promises, or refuses. Whether it was refused for knowing less than this replica."""
        ledger = self._ledger
        leased = self._core.lease_runs() and ledger.promised.replica != candidate
        behind = message.chosen < ledger.chosen
        if message.ballot < ledger.promised or message.ballot == NO_BALLOT or leased or behind:
            self.refuse(candidate, message.ballot)
            if behind and message.ballot != NO_BALLOT:
                self._teach(candidate, message.chosen + 1)
            return behind and not leased
        if message.ballot > ledger.promised:
            self.promise(message.ballot)
        self._core.send(candidate, Promise(message.ballot, self._log.above(message.chosen)))
        return False

    def refuse(self, sender: ReplicaId, ballot: Ballot) -> None:
        """Tells it why."""
        membership = self._core.membership
        gone = membership if sender not in membership.everybody and sender < membership.next_id else None
        self._core.send(sender, Refuse(ballot, self._ledger.promised, self._ledger.chosen, gone))

    def _teach(self, candidate: ReplicaId, first: Slot) -> None:
        ledger = self._ledger
        if first >= ledger.first_kept and ledger.installing is None:
            values = self._log.values_from(first, ledger.chosen + 1 - first)
            self._core.send(candidate, Chosen(first, values))

    def on_chosen(self, message: Chosen) -> None:
        """Learns it. Who has accepted something else for such a slot drops that: it can never be chosen."""
        ledger = self._ledger
        if message.first > ledger.chosen + 1:
            return
        for slot, value in enumerate(message.values, start=message.first):
            if slot > ledger.chosen:
                self._log.vote(slot, ledger.promised, value)
                self.upto = max(self.upto, slot)
                self._learner.learn(slot)

    def on_accept(self, leader: ReplicaId, message: Accept) -> bool:
        """Phase 2: accepts, unless something higher was promised. Whether it did."""
        ledger = self._ledger
        if message.ballot < ledger.promised:
            self.refuse(leader, message.ballot)
            return False
        if message.ballot > ledger.promised:
            self.promise(message.ballot)
        if message.sent:
            ledger.granted_until = self._core.now + self._core.timing.lease
        gap = message.first > self.upto + 1
        if not gap:
            for slot, value in enumerate(message.values, start=message.first):
                if slot > self.upto:
                    self._log.vote(slot, message.ballot, value)
                    self.upto = slot
        self._learner.learn(min(message.chosen, self.upto))
        self._log.compact(message.floor)
        if message.sent or gap:
            self._core.send(
                leader, Accepted(message.ballot, self.upto, message.sent, gap, ledger.installing is not None)
            )
        return True

    def installed(self) -> None:
        """A snapshot was: what it covers is chosen."""
        self.upto = max(self.upto, self._ledger.chosen)
        self._find_upto()
