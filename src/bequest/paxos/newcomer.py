"""A newcomer: a process with empty memory that is to be the replica of its site, and is none yet.

It asks the other sites, all of them, until one has found the leader and that one has given it an id. Then its driver
makes a ledger for this id and membership, and a machine over it, which is a learner. Asking twice does no harm: the
ticket, a number that nobody else draws, tells that it is the same newcomer.
"""

from __future__ import annotations

from bequest.paxos.messages import Join, Joined, Message
from bequest.paxos.outputs import SendToSite
from bequest.paxos.timing import Timing


class Newcomer:
    """Asks to join."""

    def __init__(self, site: str, others: list[str], ticket: int, timing: Timing, now: float) -> None:
        self._join = Join(site, ticket)
        self._others = others
        self._timing = timing
        self.deadline = now  # when it wants `tick`
        self.joined: Joined | None = None  # who it is, once it is somebody

    def receive(self, message: Message) -> None:
        """From whomever."""
        if isinstance(message, Joined) and message.ticket == self._join.ticket:
            self.joined = message

    def tick(self, now: float) -> list[SendToSite]:
        """Asks, if it is time."""
        if self.joined is not None or now < self.deadline:
            return []
        self.deadline = now + self._timing.resend
        return [SendToSite(site, self._join) for site in self._others]
