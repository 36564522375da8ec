"""What the machine wants done, in the order in which it is owed: after the ledger's transaction has committed.

A `Send` may be lost. `Reply` or `Refused` comes once for each request, unless the replica dies before.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

import msgspec

from bequest.paxos.messages import Ballot, Membership, Message, ReplicaId

Request = Hashable  # whatever the driver knows it by


class Send(msgspec.Struct):
    """To this replica, wherever it runs by now; if it is in the membership no more, by the connection it came by."""

    to: ReplicaId
    message: Message


class SendToSite(msgspec.Struct):
    """To whoever runs at this site, though it be no replica yet."""

    site: str
    message: Message


class Reply(msgspec.Struct):
    """What the application said to a command or a query."""

    request: Request
    reply: bytes


class Why(enum.Enum):
    """Why a request gets no reply."""

    BUSY = "too many requests are under way: nothing was done; try again later"
    OUTCOME_UNKNOWN = "no leader answered in time: the command may still be carried out"
    REPLY_LOST = "it was carried out, but its reply is not known here"
    UNAVAILABLE = "no leader answered in time: nothing was read; try again"
    REMOVED = (
        "this replica was removed from the membership: the command may have been carried out; go to another"
    )
    SESSION_UNKNOWN = "there is no such session (any more): nothing was done"
    SESSION_STALE = "the session has gone on to later commands: the reply to this one is not kept"


class Refused(msgspec.Struct):
    """No reply will come."""

    request: Request
    why: Why
    leader: ReplicaId | None  # as far as is known


class MembershipChanged(msgspec.Struct):
    """Who decides from now on. Connect to everybody in it."""

    membership: Membership


class LeaderChanged(msgspec.Struct):
    """Whom this replica follows (itself, perhaps), or that it knows of nobody."""

    leader: ReplicaId | None
    ballot: Ballot


class Removed(msgspec.Struct):
    """This replica is in the membership no longer. Its site may start another, with empty memory, that joins."""


Output = Send | SendToSite | Reply | Refused | MembershipChanged | LeaderChanged | Removed
