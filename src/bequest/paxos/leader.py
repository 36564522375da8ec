"""The leader: phase 2, for one slot after another, and the lease that goes with it.

A leader accepts what it proposes itself, in its ledger, before anybody else is asked. It sends each *follower*
(members and learners) what that one lacks, in the order of the slots, many at a time, without waiting for answers. An
answer says up to where the follower has accepted; what a majority of the members has is chosen.

**A replica that comes back.** The ballot with which it became the leader (`led`) and its own votes are in the ledger.
So a leader that died and was reincarnated leads on with the same ballot: it sends again what is not chosen yet, and
nobody elects anybody.

**The membership** that decides a slot is that of the chosen prefix below it. Therefore the leader proposes nothing
above a change (`barrier`) until that is chosen. Then the majority of the new members counts. It needs no new promises
for the slots above: no lower ballot can have got the change chosen, so none has proposed anything there.

**The lease.** Each Accept tells when it was sent, by the leader's clock, and the answer echoes it. A majority's latest
echo is a time at which nobody else could be elected, for another `Timing.leading` seconds. Reads use it (`reads.py`).
"""

from __future__ import annotations

import math

import msgspec

from bequest.paxos.acceptor import Acceptor
from bequest.paxos.core import Core
from bequest.paxos.learner import Learner
from bequest.paxos.ledger import Heard
from bequest.paxos.log import Log
from bequest.paxos.messages import (
    Accept,
    Accepted,
    Ballot,
    Batch,
    Change,
    Membership,
    Parcel,
    PartInstalled,
    ReplicaId,
    Slot,
    decode_value,
    encode_value,
)
from bequest.paxos.timing import ENTRY_BYTES_MAX, IN_FLIGHT_MAX, WINDOW
from bequest.paxos.transfer import Sending


class Follower(msgspec.Struct):
    """What the leader knows of another replica."""

    next: Slot  # the next to be sent
    base: Slot  # `match`; until it has said that, what it is taken to have: all that is chosen
    match: Slot = 0  # it has accepted everything up to here, by this ballot
    echo: float = -math.inf  # the latest time of sending that it has echoed
    heard_at: float = 0.0
    moved_at: float = 0.0  # when `match` last grew, or something was sent again
    sending: Sending | None = None  # a snapshot
    torso: bool = False  # its state is part of a snapshot, ours or another leader's


class Leader:
    """Proposes, if this replica leads."""

    def __init__(self, core: Core, log: Log, acceptor: Acceptor, learner: Learner) -> None:
        self._core = core
        self._ledger = core.ledger
        self._log = log
        self._acceptor = acceptor
        self._learner = learner
        self.active = False
        self.ballot: Ballot = self._ledger.led
        self.followers: dict[ReplicaId, Follower] = {}
        self.barrier: Slot | None = None  # a change of the membership that is not chosen yet
        self.stands_again = False  # when the barrier has gone
        self.read_floor: Slot = 0  # reads wait until this slot is applied
        self._waiting: list[Parcel] = []
        self._admitted: dict[ReplicaId, Heard] = {}
        self._floor: Slot = 0
        self._pulse = 0.0  # when the last Accept that wants an answer was sent
        self._beat_at = 0.0
        self._told_chosen: Slot = 0
        self._streams = 0

    # --- beginning and ending ---

    def begin(self, ballot: Ballot, values: list[bytes], stands_again: bool) -> None:
        """Elected: proposes again what may have been chosen."""
        ledger = self._ledger
        for slot, value in enumerate(values, start=ledger.chosen + 1):
            self._log.vote(slot, ballot, value)
        self._acceptor.upto = ledger.chosen + len(values)
        if not stands_again:
            ledger.led = ballot
        self._lead(ballot, stands_again)

    def resume(self) -> None:
        """Reincarnated: goes on with the ballot it had."""
        self._lead(self._ledger.led, stands_again=False)

    def _lead(self, ballot: Ballot, stands_again: bool) -> None:
        self.active = True
        self.ballot = ballot
        self.stands_again = stands_again
        self.barrier = None
        self.read_floor = self.last
        self._waiting = []
        self._admitted = {}
        self.followers = {}
        self._told_chosen = 0
        self._begin_pulse()  # echoes of what an earlier life has sent come after it, and are not taken for more
        self.beat_now()
        for slot in range(self._ledger.applied + 1, self.last + 1):
            self._take_note(slot)
        self.membership_changed()
        self._core.follow(self._core.me)

    def _take_note(self, slot: Slot) -> None:
        """Of what an entry that is not applied yet will mean."""
        value = decode_value(self._log.value(slot))
        if isinstance(value, Batch):
            for parcel in value.parcels:
                self._admitted[parcel.origin] = Heard(parcel.life, parcel.first + len(parcel.commands) - 1)
        elif slot > self._ledger.chosen:
            self.barrier = slot

    def step_down(self) -> None:
        """Somebody else leads, or will."""
        if self.active:
            self.active = False
            for follower in self.followers.values():
                self._end_sending(follower)
            self.followers = {}
            self._waiting = []

    @property
    def last(self) -> Slot:
        """The last slot proposed: with this ballot, or chosen."""
        return self._acceptor.upto

    # --- what comes in ---

    def take(self, parcel: Parcel) -> None:
        """Commands of an origin, its own or another's: those that are new will be proposed."""
        origin = parcel.origin
        known = self._admitted.get(origin) or self._ledger.heard.get(origin) or Heard(0, 0)
        if parcel.life < known.life:
            return
        done = known.number if parcel.life == known.life else 0
        skipped = done + 1 - parcel.first
        if skipped < 0 or skipped >= len(parcel.commands):
            return  # it has all of these, or lacks some before: then the origin will send those again
        if skipped:
            parcel = Parcel(origin, parcel.life, done + 1, parcel.commands[skipped:])
        self._admitted[origin] = Heard(parcel.life, parcel.first + len(parcel.commands) - 1)
        self._waiting.append(parcel)

    def on_accepted(self, sender: ReplicaId, message: Accepted) -> None:
        """Phase 2b."""
        follower = self.followers.get(sender)
        if not self.active or message.ballot != self.ballot or follower is None:
            return
        now = self._core.now
        follower.heard_at = now
        if message.sent > follower.echo and message.sent:
            follower.echo = message.sent
        if message.upto > follower.match:
            follower.match = message.upto
            follower.moved_at = now
            follower.next = max(follower.next, message.upto + 1)
        follower.base = follower.match
        follower.torso = message.torso
        if follower.sending is not None:
            if not message.torso and follower.match >= follower.sending.slot:
                self._end_sending(follower)  # it has that already
        elif message.gap:
            follower.next = follower.base + 1

    def on_part_installed(self, sender: ReplicaId, message: PartInstalled) -> None:
        """A follower has got on with a snapshot."""
        follower = self.followers.get(sender)
        if follower is None or follower.sending is None:
            return
        follower.heard_at = self._core.now
        if follower.sending.installed(message):
            follower.moved_at = self._core.now
            if follower.sending.finished:
                follower.base = follower.match = max(follower.match, follower.sending.slot)
                follower.torso = False
                self._end_sending(follower)

    def connected(self, replica: ReplicaId) -> None:
        """There is a new connection to it: what was sent before may be lost."""
        follower = self.followers.get(replica)
        if follower is not None:
            self._send_again(follower)
            self.beat_now()

    # --- deciding ---

    def advance(self) -> None:
        """What a majority has accepted is chosen."""
        while True:
            chosen = min(self._majority_has(), self.last)
            if chosen <= self._ledger.chosen:
                return
            self._learner.learn(
                chosen
            )  # a change of the membership lies at `last`: what counts then is counted anew
            if self.barrier is not None and chosen >= self.barrier:
                self.barrier = None
            if not self.active:
                return

    def _majority_has(self) -> Slot:
        membership = self._core.membership
        matches = sorted(
            self.last if member == self._core.me else self.followers[member].match
            for member in membership.members
        )
        return matches[len(matches) - membership.quorum]

    def propose(self) -> None:
        """Puts the waiting commands into entries, as many as the window lets."""
        while self._waiting and self.barrier is None and self.last - self._ledger.chosen < WINDOW:
            batch: list[Parcel] = []
            size = 0
            while self._waiting and size < ENTRY_BYTES_MAX:
                parcel = self._waiting.pop(0)
                batch.append(parcel)
                size += weight(parcel)
            self._vote(encode_value(Batch(self._core.wall_ms, batch)))

    def propose_change(self, membership: Membership) -> None:
        """The next epoch."""
        self._vote(encode_value(Change(self._core.wall_ms, membership)))
        self.barrier = self.last

    def _vote(self, value: bytes) -> None:
        slot = self.last + 1
        self._log.vote(slot, self.ballot, value)
        self._acceptor.upto = slot

    def membership_changed(self) -> None:
        """A follower for every other replica there is."""
        core = self._core
        everybody = core.membership.everybody
        for replica in [replica for replica in self.followers if replica not in everybody]:
            self._end_sending(self.followers.pop(replica))
        for replica in everybody:
            if replica != core.me and replica not in self.followers:
                chosen = self._ledger.chosen
                self.followers[replica] = Follower(
                    next=chosen + 1, base=chosen, heard_at=core.now, moved_at=core.now
                )

    # --- the lease ---

    def majority_echo(self) -> float:
        """A majority followed this leader at this time, or later."""
        membership = self._core.membership
        echoes = sorted(
            self._pulse if member == self._core.me else self.followers[member].echo
            for member in membership.members
        )
        return echoes[len(echoes) - membership.quorum]

    def has_lease(self) -> bool:
        """Can nobody else have been elected?"""
        return self._core.now < self.majority_echo() + self._core.timing.leading

    @property
    def pulse(self) -> float:
        """When an answer was last asked for; an echo after this is of something sent later."""
        return self._pulse

    def beat_now(self) -> None:
        """Ask for answers in this pass, whether or not there is something to accept."""
        self._beat_at = self._core.now

    # --- sending ---

    def next_beat(self) -> float:
        """When the next heartbeat is due."""
        return self._beat_at

    def tick(self) -> None:
        """Sends again what was not acknowledged for long."""
        resend = self._core.timing.resend
        for follower in self.followers.values():
            is_behind = follower.match < self.last or follower.sending is not None
            if is_behind and self._core.now - follower.moved_at > resend:
                self._send_again(follower)

    def _send_again(self, follower: Follower) -> None:
        follower.moved_at = self._core.now
        if follower.sending is not None:
            follower.sending.send_again()
        else:
            follower.next = follower.base + 1

    def send(self) -> None:
        """Everything that followers lack, or a heartbeat if it is due; else, at once, that something was chosen."""
        core = self._core
        self._floor = (
            min(
                (f.sending.slot if f.sending is not None else f.match for f in self.followers.values()),
                default=self.last,
            )
            + 1
        )
        self._log.compact(self._floor)
        is_due = core.now >= self._beat_at
        has_news = self._ledger.chosen > self._told_chosen
        wants_answer = is_due or any(f.next <= self.last for f in self.followers.values())
        if wants_answer:
            self._begin_pulse()
        made: dict[Slot, Accept] = {}
        for replica, follower in self.followers.items():
            self._send_to(replica, follower, made, is_due, has_news)
        self._told_chosen = self._ledger.chosen

    def _begin_pulse(self) -> None:
        core = self._core
        self._pulse = max(core.now, math.nextafter(self._pulse, math.inf))
        self._beat_at = core.now + core.timing.heartbeat
        self._ledger.granted_until = core.now + core.timing.lease  # the leader's own acceptor grants it, too

    def _send_to(
        self, replica: ReplicaId, follower: Follower, made: dict[Slot, Accept], is_due: bool, has_news: bool
    ) -> None:
        if follower.sending is not None and follower.sending.slot + 1 < self._ledger.first_kept:
            self._end_sending(follower)  # the log that must follow on it was too long to be kept
        needs_snapshot = follower.sending is None and self._needs_snapshot(replica, follower)
        if needs_snapshot and self._may_lack_state(replica):
            self._begin_sending(follower)
        if follower.sending is not None or needs_snapshot:
            for part in follower.sending.parts() if follower.sending is not None else ():
                self._core.send(replica, part)
            if is_due:
                self._core.send(replica, self._accept(self.last + 1, [], self._pulse))
            return
        in_flight = follower.next - 1 - follower.base
        if follower.next <= self.last and in_flight < IN_FLIGHT_MAX:
            message = made.get(follower.next)
            if message is None:
                proposed = self.last + 1 - follower.next  # above may lie votes for what others have proposed
                values = self._log.values_from(follower.next, min(proposed, IN_FLIGHT_MAX))
                message = made[follower.next] = self._accept(follower.next, values, self._pulse)
            follower.next += len(message.values)
            self._core.send(replica, message)
        elif is_due or has_news:
            sent = self._pulse if is_due else 0.0
            beat = made.get(-follower.next)
            if beat is None:
                beat = made[-follower.next] = self._accept(follower.next, [], sent)
            self._core.send(replica, beat)

    def _needs_snapshot(self, replica: ReplicaId, follower: Follower) -> bool:
        """Does it lack what is not kept? A newcomer does not know the membership with which the log began."""
        is_new = follower.next == 1 and replica in self._core.membership.learners
        return is_new or follower.torso or follower.next < self._ledger.first_kept

    def _may_lack_state(self, replica: ReplicaId) -> bool:
        """Who installs a snapshot has no state until it is done: of the members one at a time."""
        members = self._core.membership.members
        others = [f for other, f in self.followers.items() if other in members and other != replica]
        is_torso = self.followers[replica].torso
        return replica not in members or is_torso or not any(f.torso or f.sending is not None for f in others)

    def _accept(self, first: Slot, values: list[bytes], sent: float) -> Accept:
        return Accept(self.ballot, first, values, self._ledger.chosen, self._floor, sent)

    def _begin_sending(self, follower: Follower) -> None:
        core = self._core
        self._streams += 1
        follower.sending = Sending(core.ledger, core.application, self.ballot, self._streams)
        follower.next = follower.sending.slot + 1
        follower.moved_at = core.now

    def _end_sending(self, follower: Follower) -> None:
        if follower.sending is not None:
            follower.sending.close()
            follower.sending = None
            follower.next = follower.base + 1


def weight(parcel: Parcel) -> int:
    """About how many bytes it is."""
    return sum(
        len(command) if isinstance(command, bytes) else len(getattr(command, "body", b""))
        for command in parcel.commands
    )
