"""Reads: linearizable, at any replica, without an entry in the log.

A read may be answered from the state after a slot `s` if, at some time after it was asked, nothing beyond `s` had
been acknowledged to anybody. The leader knows such a slot: everything it knows to be chosen (when it was elected:
everything that may have been), provided that nobody else led at that time. Of that it is sure

* by its lease: nobody else can have been elected yet, given what is assumed of clocks (`timing.py`); or
* by a majority that has answered something which it sent after the read was asked. Nothing is assumed then.

A replica that does not lead collects its reads, asks the leader for the slot, one question at a time, and answers from
its own state as soon as that has come so far. The leader asks itself in the same way.
"""

from __future__ import annotations

from typing import NamedTuple

from bequest.paxos.core import Core
from bequest.paxos.leader import Leader
from bequest.paxos.messages import AskSlot, ReadSlot, ReplicaId, Slot
from bequest.paxos.outputs import Refused, Reply, Request, Why
from bequest.paxos.timing import BACKLOG_MAX


class Read(NamedTuple):
    """A query of a client here."""

    request: Request
    query: bytes
    since: float


class Question(NamedTuple):
    """What the leader was asked, and when: by its pulse."""

    pulse: float
    asker: ReplicaId
    life: int
    number: int


class Reads:
    """The reads of this replica's clients, and what others ask the leader."""

    def __init__(self, core: Core, leader: Leader) -> None:
        self._core = core
        self._ledger = core.ledger
        self._leader = leader
        self._new: list[Read] = []
        self._asked: list[Read] = []
        self._asked_at: float | None = None
        self._number = 0
        self._ready: list[tuple[Slot, list[Read]]] = []
        self._questions: list[Question] = []

    def read(self, request: Request, query: bytes) -> None:
        """A client's query."""
        core = self._core
        if len(self._new) >= BACKLOG_MAX or core.removed:
            core.outputs.append(Refused(request, Why.REMOVED if core.removed else Why.BUSY, core.leader))
        else:
            self._new.append(Read(request, query, self._core.now))

    def ask_again(self) -> None:
        """The leader is another, or the question may be lost."""
        self._new = self._asked + self._new
        self._asked = []
        self._asked_at = None
        if not self._leader.active:
            self._questions = []

    def on_ask(self, asker: ReplicaId, message: AskSlot) -> None:
        """A question to the leader."""
        if self._leader.active:
            self._questions.append(Question(self._leader.pulse, asker, message.life, message.number))

    def on_slot(self, message: ReadSlot) -> None:
        """The answer."""
        if (message.life, message.number) == (self._ledger.life, self._number) and self._asked:
            self._ready.append((message.slot, self._asked))
            self._asked = []
            self._asked_at = None

    def conclude(self) -> None:
        """Asks, answers the questions of others, and the reads that can be."""
        self._ask()
        if self._leader.active and self._questions:
            self._answer_questions()
            self._ask()  # what came meanwhile, if it was this replica that asked
        if self._ready:
            self._answer_reads()

    def _ask(self) -> None:
        core = self._core
        if not self._new or self._asked or core.leader is None:
            return
        self._number += 1
        self._asked, self._new = self._new, []
        self._asked_at = core.now
        question = AskSlot(self._ledger.life, self._number)
        if core.leader == core.me:
            self.on_ask(core.me, question)
        else:
            core.send(core.leader, question)

    def _answer_questions(self) -> None:
        leader = self._leader
        leased = self._core.timing.lease_reads and leader.has_lease()
        confirmed = leader.majority_echo()
        slot = max(self._ledger.chosen, leader.read_floor)
        open_questions: list[Question] = []
        for question in self._questions:
            if not leased and confirmed <= question.pulse:
                open_questions.append(question)
                if question.pulse == leader.pulse:
                    leader.beat_now()
                continue
            answer = ReadSlot(question.life, question.number, slot)
            if question.asker == self._core.me:
                self.on_slot(answer)
            else:
                self._core.send(question.asker, answer)
        self._questions = open_questions

    def _answer_reads(self) -> None:
        core = self._core
        if self._ledger.installing is not None:
            return
        now_ms = max(core.wall_ms, self._ledger.stamp_ms)
        later: list[tuple[Slot, list[Read]]] = []
        for slot, reads in self._ready:
            if slot > self._ledger.applied:
                later.append((slot, reads))
                continue
            for read in reads:
                core.outputs.append(Reply(read.request, core.application.query(now_ms, read.query)))
        self._ready = later

    def tick(self) -> None:
        """Asks again what was not answered for long, and refuses what has waited too long."""
        core = self._core
        if self._asked_at is not None and core.now - self._asked_at > core.timing.resend:
            self.ask_again()
        self._new = self._refuse_old(self._new)
        self._asked = self._refuse_old(self._asked)
        self._ready = [(slot, self._refuse_old(reads)) for slot, reads in self._ready]

    def _refuse_old(self, reads: list[Read]) -> list[Read]:
        core = self._core
        oldest = core.now - core.timing.patience
        if not reads or (reads[0].since > oldest and not core.removed):
            return reads
        kept: list[Read] = []
        for read in reads:
            if core.removed:
                core.outputs.append(Refused(read.request, Why.REMOVED, None))
            elif read.since <= oldest:
                core.outputs.append(Refused(read.request, Why.UNAVAILABLE, core.leader))
            else:
                kept.append(read)
        return kept

    def deadline(self) -> float | None:
        """When there is something to do again or to refuse."""
        timing = self._core.timing
        times = [reads[0].since + timing.patience for reads in (self._new, self._asked) if reads]
        times += [reads[0].since + timing.patience for _, reads in self._ready if reads]
        if self._asked_at is not None:
            times.append(self._asked_at + timing.resend)
        return min(times, default=None)
