"""Reconfiguration: which replicas are members, and how that changes (paper, 4 and 4.1).

A change is a value like any other, chosen by the members it replaces; the next epoch begins with the slot after it.
The leader makes one change at a time, for one of these reasons, the first that applies:

* a replica's memory has failed: it is removed at once;
* a newcomer asks to join. It gets an id that nobody ever had, and begins as a learner. It has the site's place:
  whoever was the replica there has no memory any more, or the newcomer would have that;
* a member was not heard of for `Timing.remove_after`, if that is to be a reason, and those who remain are at hand;
* a learner has caught up: it becomes a member.

The old members are needed a little longer than the change takes: as long as none of the new ones knows it to be chosen,
a majority of the old ones must be able to elect somebody, who finds it out. So a leader does not remove itself, and one
that finds its own removal among the votes it recovers stays, as an acceptor, until somebody else knows.
"""

from __future__ import annotations

from bequest.paxos.core import Core
from bequest.paxos.leader import Leader
from bequest.paxos.messages import Join, Joined, Membership, MemoryLost, ReplicaId
from bequest.paxos.outputs import SendToSite
from bequest.paxos.timing import LAG_TO_VOTE


class Reconfiguration:
    """The leader's reasons to change the membership."""

    def __init__(self, core: Core, leader: Leader) -> None:
        self._core = core
        self._leader = leader
        self._joins: dict[str, Join] = {}  # by site, the latest

    def on_join(self, message: Join) -> None:
        """A newcomer asks; it will ask again until it is answered."""
        core = self._core
        if self._leader.active:
            self._joins[message.site] = message
        elif core.leader is not None:
            core.send(core.leader, message)

    def on_memory_lost(self, replica: ReplicaId, sender: ReplicaId) -> bool:
        """Notes it, and tells the leader. Whether it is news."""
        core = self._core
        if replica in core.lost or replica not in core.membership.everybody or replica == core.me:
            return False
        core.lost[replica] = True
        if core.leader not in (None, core.me, replica, sender):
            core.send(core.leader, MemoryLost(replica))
        return True

    def conclude(self) -> None:
        """Proposes the next change, if there is a reason and no other is under way."""
        leader = self._leader
        if leader.active and leader.barrier is None and not leader.stands_again:
            self._answer_joined()
            membership = self._next_membership()
            if membership is not None:
                leader.propose_change(membership)

    def _answer_joined(self) -> None:
        membership = self._core.membership
        replicas = {ticket: replica for replica, ticket in membership.tickets.items()}
        for site, join in list(self._joins.items()):
            replica = replicas.get(join.ticket)
            if replica is not None and membership.learners.get(replica) == site:
                self._core.outputs.append(SendToSite(site, Joined(join.ticket, replica, membership)))
                del self._joins[site]

    def _next_membership(self) -> Membership | None:
        membership = self._core.membership
        for replica in self._core.lost:
            if replica in membership.everybody:
                return _without(membership, [replica])
        for join in self._joins.values():
            if join.site != membership.members[self._core.me]:
                return _with_newcomer(membership, join)
        silent = self._silent()
        if silent is not None:
            return _without(membership, [silent])
        for learner in membership.learners:
            if self._has_caught_up(learner):
                return _with_vote(membership, learner)
        return None

    def _silent(self) -> ReplicaId | None:
        patience = self._core.timing.remove_after
        members = self._core.membership.members
        for replica, follower in self._leader.followers.items():
            is_silent = self._core.now - follower.heard_at > patience
            if patience and replica in members and is_silent and self._are_at_hand(replica):
                return replica
        return None

    def _are_at_hand(self, without: ReplicaId) -> bool:
        """Would the others be a majority of those who remain? Otherwise nothing could ever be decided again."""
        membership = self._core.membership
        others = [member for member in membership.members if member != without]
        at_hand = [m for m in others if m == self._core.me or self._is_at_hand(m)]
        return len(at_hand) >= max(membership.quorum, len(others) // 2 + 1)

    def _is_at_hand(self, replica: ReplicaId) -> bool:
        return self._core.now - self._leader.followers[replica].heard_at < self._core.timing.lease

    def _has_caught_up(self, learner: ReplicaId) -> bool:
        follower = self._leader.followers[learner]
        is_near = follower.sending is None and follower.match + LAG_TO_VOTE >= self._leader.last
        return is_near and follower.match > 0 and self._is_at_hand(learner)


def _without(membership: Membership, replicas: list[ReplicaId]) -> Membership:
    return Membership(
        membership.epoch + 1,
        {replica: site for replica, site in membership.members.items() if replica not in replicas},
        {replica: site for replica, site in membership.learners.items() if replica not in replicas},
        {replica: ticket for replica, ticket in membership.tickets.items() if replica not in replicas},
        membership.next_id,
    )


def _with_newcomer(membership: Membership, join: Join) -> Membership:
    former = [replica for replica, site in membership.everybody.items() if site == join.site]
    rest = _without(membership, former)
    newcomer = membership.next_id
    return Membership(
        rest.epoch,
        rest.members,
        rest.learners | {newcomer: join.site},
        rest.tickets | {newcomer: join.ticket},
        newcomer + 1,
    )


def _with_vote(membership: Membership, learner: ReplicaId) -> Membership:
    rest = _without(membership, [learner])
    site = membership.learners[learner]
    return Membership(rest.epoch, rest.members | {learner: site}, rest.learners, rest.tickets, rest.next_id)
