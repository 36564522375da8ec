"""One replica's part in the consensus: a pure machine. No I/O, no clock, no chance of its own.

It is Multi-Paxos as in *Paxos Made Simple* (Lamport, 2001), with what *Paxos Made Live* (Chandra et al., 2007) found
missing, and reconfiguration by chosen commands. The roles have their own modules, best read in this order: `messages`,
`acceptor`, `candidate`, `leader`, `learner`; then `reads`, `clerk`, `sessions`, `reconfiguration`, `transfer`.

**Use.** A driver has a ledger, an application, and a machine over both. It works in passes: within one transaction of
the ledger it hands the machine whatever has come meanwhile, and ends the pass with `conclude`, which returns what is
to be done, in order. That is done only after the transaction has committed; if the process dies before, nothing was
said and nothing has changed. `turn.py` is this pass, for the service and the simulation alike::

    with ledger.transaction():
        machine = Machine(ledger, application, timing, chance, clock=host, now=monotonic())
    ...
    outputs = take_turn(machine, ledger, Inputs(messages, commands, queries), monotonic(), wall_ms())
    for output in outputs: ...      # Send, SendToSite, Reply, Refused, MembershipChanged, LeaderChanged, Removed
    ...                             # wait for input, or until machine.deadline

**What the driver owes.** `now` is read after the inputs of the pass have come, from a clock that never goes back and
is named by `clock` (see `timing.py`). Messages may be lost, doubled and reordered, but are those of the replica they
are said to be of. When a connection to a replica is new, `connected` says so, which saves a time-out. Nothing leaves
a process whose memory is another's by now: each pass stores something, and a store into stolen memory raises. A new
machine means a new life of the replica: there is one at a time that can store.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from bequest.paxos.acceptor import Acceptor
from bequest.paxos.candidate import Candidate
from bequest.paxos.clerk import Clerk
from bequest.paxos.core import Core
from bequest.paxos.leader import Leader
from bequest.paxos.learner import Learner
from bequest.paxos.ledger import Application, Ledger
from bequest.paxos.log import Log
from bequest.paxos.messages import (
    Accept,
    Accepted,
    AskSlot,
    Ballot,
    Chosen,
    Command,
    Forward,
    Join,
    Membership,
    MemoryLost,
    Message,
    Parcel,
    Part,
    PartInstalled,
    Prepare,
    Promise,
    ReadSlot,
    Refuse,
    ReplicaId,
    Slot,
)
from bequest.paxos.outputs import Output, Request
from bequest.paxos.reads import Reads
from bequest.paxos.reconfiguration import Reconfiguration
from bequest.paxos.timing import Timing
from bequest.paxos.transfer import Receiving


class Lag(msgspec.Struct):
    """How far another replica is behind, as the leader sees it."""

    replica: ReplicaId
    slots: int
    silent: float  # seconds since it was last heard of
    transfer: bool  # it is getting a snapshot


class Status(msgspec.Struct):
    """For those who look."""

    replica: ReplicaId
    life: int
    role: str  # leader, candidate, follower, learner, removed
    leader: ReplicaId | None
    ballot: Ballot
    chosen: Slot
    applied: Slot
    executed: int
    log_bytes: int
    backlog: int
    leased: bool
    membership: Membership
    lags: list[Lag]


class Machine:
    """A replica. Make it, and use it, within transactions of its ledger."""

    def __init__(
        self,
        ledger: Ledger,
        application: Application,
        timing: Timing,
        chance: Callable[[], float],
        *,
        clock: str,
        now: float,
    ) -> None:
        ledger.life += 1
        if ledger.clock != clock:
            if ledger.clock:
                ledger.granted_until = (
                    now + timing.lease
                )  # what was granted by another clock has ended by then
            ledger.clock = clock
        self._core = core = Core(ledger, application, timing, chance, now)
        self._ledger = ledger
        self._log = Log(core)
        self._learner = Learner(core, self._log)
        self._acceptor = Acceptor(core, self._log, self._learner)
        self._candidate = Candidate(core, self._log)
        self._leader = Leader(core, self._log, self._acceptor, self._learner)
        self._reads = Reads(core, self._leader)
        self._clerk = Clerk(core, self._leader)
        self._reconfiguration = Reconfiguration(core, self._leader)
        self._receiving = Receiving(core, self._log)
        self._learner.on_own = self._clerk.carried_out
        self._learner.on_membership = self._membership_changed
        self._handlers: dict[type, Callable[[ReplicaId, Any], None]] = {
            Accept: self._on_accept,
            Accepted: self._leader.on_accepted,
            Prepare: self._on_prepare,
            Promise: self._on_promise,
            Refuse: self._on_refuse,
            Chosen: lambda _sender, message: self._acceptor.on_chosen(message),
            Forward: self._on_forward,
            AskSlot: self._reads.on_ask,
            ReadSlot: lambda _sender, message: self._reads.on_slot(message),
            Part: self._on_part,
            PartInstalled: self._leader.on_part_installed,
            Join: lambda _sender, message: self._reconfiguration.on_join(message),
            MemoryLost: self._on_memory_lost,
        }
        if ledger.led == ledger.promised and ledger.led.replica == core.me and self._candidate.may_stand():
            self._leader.resume()

    # --- inputs ---

    def receive(self, sender: ReplicaId, message: Message, now: float) -> None:
        """A message of another replica; of 0 if it is of somebody who is none yet."""
        self._core.now = now
        if self._core.removed:
            return
        if self._is_gone(sender) and isinstance(message, Prepare | Forward | AskSlot):
            self._acceptor.refuse(sender, Ballot(0, sender))
            return
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(sender, message)

    def propose(self, request: Request, command: Command, now: float) -> None:
        """A client's command: `Reply` when it was carried out, or `Refused`."""
        self._core.now = now
        self._clerk.propose(request, command)

    def read(self, request: Request, query: bytes, now: float) -> None:
        """A client's query: `Reply`, with what every command acknowledged before has led to, or `Refused`."""
        self._core.now = now
        self._reads.read(request, query)

    def connected(self, replica: ReplicaId, now: float) -> None:
        """There is a new connection to a replica: what was sent to it before may be lost."""
        self._core.now = now
        self._leader.connected(replica)
        if replica == self._core.leader:
            self._clerk.hand_over_again()
            self._reads.ask_again()

    def memory_lost(self, replica: ReplicaId, now: float) -> None:
        """A replica's memory has failed: it will never speak again."""
        self._core.now = now
        self._on_memory_lost(self._core.me, MemoryLost(replica))

    @property
    def deadline(self) -> float:
        """When the machine wants a pass though nothing comes."""
        if self._core.removed:
            return math.inf
        own = self._leader.next_beat() if self._leader.active else self._candidate.stand_at
        times = [self._clerk.deadline(), self._reads.deadline()]
        return min([own, *(time for time in times if time is not None)])

    def conclude(self, now: float, wall_ms: int) -> list[Output]:
        """Ends the pass: decides, and says what is to be done after the ledger's transaction has committed."""
        core = self._core
        core.now = now
        core.wall_ms = wall_ms
        self._clerk.tick()
        self._reads.tick()
        if not core.removed:
            self._keep_time()
            self._clerk.hand_over()
            if self._leader.active:
                self._lead()
        self._reads.conclude()
        if self._leader.active and self._leader.next_beat() <= now:
            self._leader.send()  # a read wants to be confirmed by a majority
        return core.take_outputs()

    # --- what happens in a pass ---

    def _keep_time(self) -> None:
        core = self._core
        if self._leader.active:
            self._leader.tick()
        elif core.now >= self._candidate.stand_at:
            if self._candidate.may_stand():
                self._stand()
            else:
                self._candidate.ask_around()

    def _lead(self) -> None:
        leader = self._leader
        leader.advance()
        if leader.active and leader.stands_again and leader.barrier is None:
            self._stand()  # the members of the epoch that has begun have not promised anything yet
        if leader.active:
            self._clerk.hand_over()
            leader.propose()
            self._reconfiguration.conclude()
            leader.advance()  # a single member decides at once
        if leader.active:
            leader.send()

    def _stand(self) -> None:
        self._leader.step_down()
        self._core.follow(None)
        self._acceptor.promise(self._candidate.prepare())
        self._see_whether_elected()

    def _see_whether_elected(self) -> None:
        if self._candidate.elected():
            ballot = self._candidate.ballot
            assert ballot is not None
            values, stands_again = self._candidate.recover()
            self._candidate.withdraw()
            self._leader.begin(ballot, values, stands_again)
            self._requests_again()

    def _requests_again(self) -> None:
        self._clerk.hand_over_again()
        self._reads.ask_again()

    def _membership_changed(self) -> None:
        core = self._core
        if self._leader.active:
            if core.me in core.membership.members:
                self._leader.membership_changed()
            else:
                self._leader.step_down()
                core.follow(None)
                self._candidate.ask_around()

    def _is_gone(self, replica: ReplicaId) -> bool:
        membership = self._core.membership
        return 0 < replica < membership.next_id and replica not in membership.everybody

    # --- messages ---

    def _on_accept(self, sender: ReplicaId, message: Accept) -> None:
        before = self._ledger.promised
        if self._acceptor.on_accept(sender, message):
            self._leader.step_down()
            self._candidate.withdraw()
            is_new = self._core.follow(sender)
            if is_new or message.ballot != before:
                self._requests_again()

    def _on_prepare(self, sender: ReplicaId, message: Prepare) -> None:
        promised = self._ledger.promised
        knows_less = self._acceptor.on_prepare(sender, message)
        if knows_less:
            self._candidate.stand_soon()
        if self._ledger.promised != promised:
            self._leader.step_down()
            self._candidate.withdraw()
            self._core.follow(None)

    def _on_promise(self, sender: ReplicaId, message: Promise) -> None:
        self._candidate.on_promise(sender, message)
        self._see_whether_elected()

    def _on_refuse(self, _sender: ReplicaId, message: Refuse) -> None:
        if message.membership is not None and self._is_removed_by(message.membership):
            self._core.leave()
            self._leader.step_down()
            return
        self._candidate.on_refuse(message)
        if (
            self._leader.active
            and message.ballot == self._leader.ballot
            and message.promised > message.ballot
        ):
            self._stand()

    def _is_removed_by(self, membership: Membership) -> bool:
        mine = self._core.membership
        return membership.epoch > mine.epoch or self._core.me not in mine.everybody

    def _on_forward(self, sender: ReplicaId, message: Forward) -> None:
        if self._leader.active:
            self._leader.take(Parcel(sender, message.life, message.first, message.commands))

    def _on_part(self, sender: ReplicaId, message: Part) -> None:
        if message.ballot < self._ledger.promised:
            self._acceptor.refuse(sender, message.ballot)
        elif self._receiving.on_part(sender, message):
            self._acceptor.installed()
            self._clerk.snapshot_installed()
            self._learner.apply()

    def _on_memory_lost(self, sender: ReplicaId, message: MemoryLost) -> None:
        if self._reconfiguration.on_memory_lost(message.replica, sender) and (
            message.replica == self._ledger.promised.replica
        ):
            self._ledger.granted_until = 0.0  # whoever had this lease cannot use it any more
            self._core.follow(None)
            self._candidate.stand_after_loss()

    # --- for those who look ---

    @property
    def membership(self) -> Membership:
        """As of the last slot applied."""
        return self._core.membership

    @property
    def leader(self) -> ReplicaId | None:
        """Whom this replica follows: itself, perhaps."""
        return self._core.leader

    @property
    def leads(self) -> bool:
        """Is it this one?"""
        return self._leader.active

    def status(self, now: float) -> Status:
        """Everything at a glance."""
        core, ledger, leader = self._core, self._ledger, self._leader
        core.now = now
        lags = [
            Lag(replica, leader.last - f.match, now - f.heard_at, f.sending is not None)
            for replica, f in leader.followers.items()
        ]
        return Status(
            core.me,
            ledger.life,
            self._role(),
            core.leader,
            ledger.promised,
            ledger.chosen,
            ledger.applied,
            ledger.executed,
            ledger.kept_bytes,
            self._clerk.backlog,
            leader.active and leader.has_lease(),
            core.membership,
            lags,
        )

    def _role(self) -> str:
        if self._core.removed:
            return "removed"
        if self._leader.active:
            return "leader"
        if self._candidate.ballot is not None:
            return "candidate"
        return "follower" if self._core.me in self._core.membership.members else "learner"
