"""What all roles of one replica share: its ledger, what it wants done, whom it follows, and the time of this pass."""

from __future__ import annotations

from collections.abc import Callable

from bequest.paxos.ledger import Application, Ledger
from bequest.paxos.messages import Membership, Message, ReplicaId
from bequest.paxos.outputs import LeaderChanged, MembershipChanged, Output, Removed, Send
from bequest.paxos.timing import Timing


class Core:
    """Common ground of the roles."""

    def __init__(
        self,
        ledger: Ledger,
        application: Application,
        timing: Timing,
        chance: Callable[[], float],
        now: float,
    ) -> None:
        self.ledger = ledger
        self.application = application
        self.timing = timing
        self.chance = chance
        self.me = ledger.replica
        self.now = now
        self.wall_ms = 0
        self.membership = ledger.membership  # decoded, as of the last slot applied
        self.leader: ReplicaId | None = None
        self.lost: dict[ReplicaId, bool] = {}  # replicas whose memory is known to have failed
        self.removed = False
        self._told_removed = False
        self.outputs: list[Output] = []

    def send(self, to: ReplicaId, message: Message) -> None:
        """Wants a message sent."""
        self.outputs.append(Send(to, message))

    def follow(self, leader: ReplicaId | None) -> bool:
        """From now on this is the leader, as far as is known here. Whether that is news."""
        if leader == self.leader:
            return False
        self.leader = leader
        self.outputs.append(LeaderChanged(leader, self.ledger.promised))
        return True

    def adopt_membership(self, membership: Membership) -> None:
        """As of the slot that is being applied, or of the snapshot that was installed."""
        self.ledger.membership = self.membership = membership
        self.outputs.append(MembershipChanged(membership))
        if self.me not in membership.everybody and self.leader != self.me:
            self.leave()  # who leads must first be sure that somebody else knows

    def leave(self) -> None:
        """This replica is a member no longer, nor a learner."""
        if not self.removed:
            self.removed = True
            self.follow(None)

    def take_outputs(self) -> list[Output]:
        """What is to be done now. That this replica was removed is said last of all: requests are refused before."""
        outputs, self.outputs = self.outputs, []
        if self.removed and not self._told_removed:
            self._told_removed = True
            outputs.append(Removed())
        return outputs

    def lease_runs(self) -> bool:
        """Has this replica, as an acceptor, granted a lease that has not ended?"""
        return self.now < self.ledger.granted_until
