"""The clerk: commands of this replica's own clients, on their way into the log.

Commands are numbered as they come, from 1 in each life of the replica, and handed to whoever leads, in this order.
What has not been carried out when the leader changes, or for a while, is handed over again, all of it; the learner
carries out each number once. A reply comes when this replica carries the command out itself: so nothing needs to be
sent back.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from bequest.paxos.core import Core
from bequest.paxos.leader import Leader
from bequest.paxos.ledger import Heard
from bequest.paxos.messages import Command, Forward, Parcel
from bequest.paxos.outputs import Refused, Reply, Request, Why
from bequest.paxos.timing import BACKLOG_MAX


class Pending(NamedTuple):
    """A command without a reply."""

    request: Request
    command: Command
    since: float


class Clerk:
    """Sees to it that each command is carried out, once."""

    def __init__(self, core: Core, leader: Leader) -> None:
        self._core = core
        self._life = core.ledger.life
        self._leader = leader
        self._done = 0  # commands up to this number have been carried out
        self._given_up = 0  # those up to this number were refused, and will have no reply
        self._pending: deque[Pending] = deque()  # from number `_done` + 1 on
        self._new: list[Command] = []  # the last of these, not handed over yet
        self._moved_at = 0.0

    @property
    def backlog(self) -> int:
        """How many commands are under way."""
        return len(self._pending)

    def propose(self, request: Request, command: Command) -> None:
        """A client's command."""
        core = self._core
        if len(self._pending) >= BACKLOG_MAX or core.removed:
            core.outputs.append(Refused(request, Why.REMOVED if core.removed else Why.BUSY, core.leader))
            return
        if not self._pending:
            self._moved_at = core.now
        self._pending.append(Pending(request, command, core.now))
        self._new.append(command)

    def hand_over(self) -> None:
        """To the leader, if there is one."""
        core = self._core
        if not self._new or core.leader is None:
            return
        first = self._done + len(self._pending) - len(self._new) + 1
        if core.leader == core.me:
            self._leader.take(Parcel(core.me, self._life, first, self._new))
        else:
            core.send(core.leader, Forward(self._life, first, self._new))
        self._new = []

    def hand_over_again(self) -> None:
        """The leader is another, or something was lost."""
        self._new = [pending.command for pending in self._pending]
        self._moved_at = self._core.now

    def carried_out(self, first: int, outcomes: list[bytes | Why]) -> None:
        """The commands from this number on were."""
        core = self._core
        pending = self._pending
        for number, outcome in enumerate(outcomes, start=first):
            request = pending.popleft().request
            if number <= self._given_up:
                continue
            if isinstance(outcome, bytes):
                core.outputs.append(Reply(request, outcome))
            else:
                core.outputs.append(Refused(request, outcome, core.leader))
        self._settle(first + len(outcomes) - 1)

    def snapshot_installed(self) -> None:
        """What it says was carried out, was; the replies are not in it."""
        heard = self._core.ledger.heard.get(self._core.me, Heard(0, 0))
        if heard.life == self._life:
            for number in range(self._done + 1, heard.number + 1):
                self._refuse(number, self._pending.popleft(), Why.REPLY_LOST)
            self._settle(max(self._done, heard.number))

    def _settle(self, done: int) -> None:
        self._done = done
        self._moved_at = self._core.now
        if len(self._new) > len(self._pending):  # some had been meant to be handed over again
            del self._new[: len(self._new) - len(self._pending)]

    def _refuse(self, number: int, pending: Pending, why: Why) -> None:
        if number > self._given_up:
            self._core.outputs.append(Refused(pending.request, why, self._core.leader))

    def tick(self) -> None:
        """Hands over again what was not carried out for long; refuses what has waited too long."""
        core = self._core
        if self._pending and core.now - self._moved_at > core.timing.resend:
            self.hand_over_again()
        oldest = core.now - core.timing.patience
        for number, pending in enumerate(self._pending, start=self._done + 1):
            if pending.since > oldest and not core.removed:
                break
            self._refuse(number, pending, Why.REMOVED if core.removed else Why.OUTCOME_UNKNOWN)
            self._given_up = max(self._given_up, number)

    def deadline(self) -> float | None:
        """When there is something to hand over again, or to refuse."""
        if not self._pending:
            return None
        resend = self._moved_at + self._core.timing.resend
        waiting = self._given_up - self._done
        if 0 <= waiting < len(self._pending):
            return min(resend, self._pending[waiting].since + self._core.timing.patience)
        return resend
