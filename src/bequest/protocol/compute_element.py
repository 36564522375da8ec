"""A compute element's agent: knows its processes, and tells the Rack MMU when one has ended.

The Rack MMU announces each process with a ticket before the process can show it. An enrolled process is watched by the
kernel's own means (a pidfd, and its address space's userfaultfd). Its connection closing is only a hint, since either
may outlive the other. What processes are told of failures is `NoticeDesk`'s, what is done to them from outside
`FenceDesk`'s. A process that turns out to have gone while it is being fenced is told of as such at once.

An agent that was started anew finds the processes that its predecessor watched (``kept``); they need not enrol again,
though they may, over a new connection. A new link to the Rack MMU begins with all that either has to say: the agent
repeats what it has seen, also deaths until the Rack MMU has forgotten the process; whom the Rack MMU does not announce,
it has forgotten. Until the announcement ends, an unknown ticket is not refused but waits.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping

import msgspec

from bequest.protocol.fence_desk import GONE, FenceDesk
from bequest.protocol.notice_desk import NoticeDesk
from bequest.protocol.outputs import (
    Confirm,
    Output,
    PeerId,
    ProcessKey,
    Reply,
    ToMmu,
    Unwatch,
    Watch,
    WatchedProcess,
)
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire


class Expected(msgspec.Struct):
    process: WatchedProcess
    peer: PeerId | None = None  # its connection, once it has enrolled, and while that lasts
    is_enrolled: bool = False  # it is watched, and that will survive this agent
    is_lost: bool = False
    has_exited: bool = False

    @property
    def key(self) -> ProcessKey:
        return self.process.pid, self.process.incarnation

    @property
    def is_watched(self) -> bool:
        return self.is_enrolled and not self.has_exited


class ComputeElement:
    def __init__(
        self,
        kept: Iterable[WatchedProcess] = (),
        contacts: Mapping[ProcessKey, list[str]] | None = None,
        handlers: Collection[ProcessKey] = (),
    ) -> None:
        self._processes: dict[int, Expected] = {}
        self._notices = NoticeDesk()
        self._fences = FenceDesk()
        self._announced: dict[ProcessKey, bool] | None = {}  # None: all has been said
        self._held: list[tuple[PeerId, int, wire.Message]] = []
        for process in kept:
            added = self._add(process)
            added.is_enrolled = True
            self._notices.restore(added.key, (contacts or {}).get(added.key, []), added.key in handlers)

    # --- inputs --------------------------------------------------------------------------------------------

    def linked(self) -> list[Output]:
        """There is a new link to the Rack MMU."""
        self._announced = {}
        self._fences.linked()
        outputs: list[Output] = []
        for process in self._processes.values():
            if process.is_enrolled:
                outputs.append(ToMmu(wire.ProcessEnrolled(*process.key)))
            if process.is_lost:
                outputs.append(ToMmu(wire.ProcessLost(*process.key)))
            if process.has_exited:
                outputs.append(ToMmu(wire.ProcessExited(*process.key)))
        return outputs + self._notices.linked()

    def unlinked(self) -> None:
        """The link has broken. Whom the next Rack MMU attaches before its link is here is not refused, but waits."""
        self._announced = {}

    def mmu_message(self, message: wire.Message, now: float) -> list[Output]:
        match message:
            case wire.ExpectProcess():
                return self._expect(message)
            case wire.ForgetProcess(pid, incarnation):
                return self._forget(pid) if self._exact((pid, incarnation)) is not None else []
            case wire.AnnouncementEnds():
                return self._announcement_ends(now)
            case wire.ProveDeath(pid, incarnation):
                return [Confirm((pid, incarnation))] if self._is_watched((pid, incarnation)) else []
            case wire.FenceProcess(_, pid, incarnation) | wire.LiftFence(_, pid, incarnation):
                return self._fences.request(message, self._is_watched((pid, incarnation)))
            case wire.GuardRange():
                return self._guard(message)
            case wire.TellProcess():
                return self._notices.tell_process(message, now)
            case wire.ContactsCalled(number):
                return self._notices.contacts_called(number)
            case wire.TellGroup():
                return self._notices.tell_group(message)
            case _:
                raise AssertionError(f"the Rack MMU says {message}")

    def client_message(self, peer: PeerId, os_pid: int, message: wire.Message, now: float) -> list[Output]:
        """``os_pid`` is the kernel's word on who is behind the connection."""
        match message:
            case wire.Enrol(ticket) | wire.Subscribe(ticket):
                process = self._expected(ticket)
                is_subscribing = isinstance(message, wire.Subscribe)  # and is to miss no death
                if self._announced is not None and (process is None or is_subscribing):
                    self._held.append((peer, os_pid, message))
                    return []
                if process is None or process.process.os_pid != os_pid:
                    return [Reply(peer, _stranger(os_pid).reply())]
                if isinstance(message, wire.Subscribe):
                    return self._notices.subscribe(process.key, peer, message.since, message.suspects)
                return self._enrol(peer, process)
            case _:
                process = self._behind(peer)
                if process is None:
                    return [Reply(peer, _stranger(os_pid).reply())]
                try:
                    return self._notices.request(process.key, peer, message, now)
                except Refusal as refusal:
                    return [Reply(peer, refusal.reply())]

    def tick(self, now: float) -> list[Output]:
        return self._notices.tick(now)

    def next_deadline(self) -> float:
        return self._notices.next_deadline()

    def watched(self, key: ProcessKey) -> list[Output]:
        """As asked for by `Watch`; that will survive this agent."""
        process = self._exact(key)
        if process is None or process.has_exited:
            return []
        process.is_enrolled = True
        outputs: list[Output] = [ToMmu(wire.ProcessEnrolled(*key))]
        if process.peer is None:  # its connection has gone meanwhile
            process.is_lost = True
            return [*outputs, ToMmu(wire.ProcessLost(*key))]
        return [*outputs, Reply(process.peer, wire.Enrolled(process.process.pid))]

    def cannot_watch(self, key: ProcessKey, message: str) -> list[Output]:
        process = self._exact(key)
        if process is None or process.peer is None:
            return []
        refused, process.peer = Reply(process.peer, Refusal("memory", message).reply()), None
        return [refused]

    def client_gone(self, peer: PeerId) -> list[Output]:
        self._notices.subscriber_gone(peer)
        process = self._behind(peer)
        if process is None:
            return []
        process.peer = None
        if not process.is_watched:
            return []
        process.is_lost = True
        return [ToMmu(wire.ProcessLost(*process.key))]

    def exited(self, key: ProcessKey) -> list[Output]:
        """It is proven that nothing of the process can ever run again. Said once or more often."""
        process = self._exact(key)
        if process is None or process.has_exited:
            return []
        process.has_exited = True
        self._fences.ended(*key)
        return [ToMmu(wire.ProcessExited(*key)), *self._notices.died(key)]

    # --- who is here ---------------------------------------------------------------------------------------

    def _expect(self, message: wire.ExpectProcess) -> list[Output]:
        key = message.pid, message.incarnation
        if self._announced is not None:
            self._announced[key] = True
        if self._exact(key) is not None:
            return []
        outputs = self._forget(message.pid)
        self._add(WatchedProcess(*key, message.os_pid, message.ticket, message.name, message.group))
        return outputs

    def _add(self, process: WatchedProcess) -> Expected:
        added = self._processes[process.pid] = Expected(process)
        self._notices.expect(added.key, process.name, process.group)
        return added

    def _enrol(self, peer: PeerId, process: Expected) -> list[Output]:
        if process.peer == peer and not process.has_exited:  # it did not wait for the answer, and asks again
            return [Reply(peer, wire.Enrolled(process.process.pid))] if process.is_enrolled else []
        if process.peer is not None:
            return [Reply(peer, _twice(process.process.name).reply())]
        if process.is_lost or process.has_exited:
            return [Reply(peer, _given_up(process.process.name).reply())]
        process.peer = peer
        if process.is_enrolled:  # with the agent before this one
            return [Reply(peer, wire.Enrolled(process.process.pid))]
        return [Watch(process.process, peer)]

    def _announcement_ends(self, now: float) -> list[Output]:
        if self._announced is None:
            return []  # said twice: all that came before it has been taken in
        announced, self._announced = self._announced, None
        outputs: list[Output] = []
        for process in list(self._processes.values()):
            if process.key not in announced:
                outputs += self._forget(process.process.pid)
        outputs += self._notices.announcement_ends()
        held, self._held = self._held, []
        for request in held:
            outputs += self.client_message(*request, now)
        return outputs

    def _forget(self, pid: int) -> list[Output]:
        process = self._processes.pop(pid, None)
        if process is None:
            return []
        self._notices.forget(process.key)
        outputs: list[Output] = [Unwatch(process.key)]
        if process.peer is not None and not process.is_enrolled:  # it waits for that
            outputs.append(Reply(process.peer, _given_up(process.process.name).reply()))
        return outputs

    # --- what is done to processes -------------------------------------------------------------------------

    def fenced(self, job: int, how: str) -> list[Output]:
        process, answer = self._fences.fenced(job, how)
        # The answer is first: only it tells a death from a killing.
        return [*answer, *self.exited(process)] if how in GONE else answer

    def fence_failed(self, job: int, message: str) -> list[Output]:
        return self._fences.failed(job, message)

    def lifted(self, job: int) -> list[Output]:
        return self._fences.lifted(job)

    def guarded(self, job: int, key: ProcessKey, failed: bool) -> list[Output]:
        process = self._exact(key)
        is_unguarded = failed and process is not None and not process.has_exited
        return self._fences.guarded(
            job, process.process.name if is_unguarded and process is not None else None
        )

    def _guard(self, message: wire.GuardRange) -> list[Output]:
        """Once in each address space, by the attachment that has been there longest: the kernel has it no other way."""
        members = [
            process
            for process in self._processes.values()
            if process.process.group == message.group and not process.has_exited
        ]
        first = {process.process.os_pid: process.key for process in reversed(members) if process.is_enrolled}
        watched = [process.key for process in members if process.key in first.values()]
        unguarded = [process.process.name for process in members if process.process.os_pid not in first]
        return self._fences.guard(message, watched, unguarded)

    # --- who is who ----------------------------------------------------------------------------------------

    def _is_watched(self, key: ProcessKey) -> bool:
        process = self._exact(key)
        return process is not None and process.is_watched

    def _exact(self, key: ProcessKey) -> Expected | None:
        process = self._processes.get(key[0])
        return process if process is not None and process.key == key else None

    def _expected(self, ticket: bytes) -> Expected | None:
        found = None
        for process in self._processes.values():
            if hmac.compare_digest(process.process.ticket, ticket):
                found = process
        return found

    def _behind(self, peer: PeerId) -> Expected | None:
        for process in self._processes.values():
            if process.peer == peer:
                return process
        return None


def _stranger(os_pid: int) -> Refusal:
    return Refusal("not-attached", f"os process {os_pid} has shown no valid ticket of a process to enrol")


def _twice(name: str) -> Refusal:
    return Refusal(
        "not-attached", f"process {name!r} has enrolled through another connection, which is still there"
    )


def _given_up(name: str) -> Refusal:
    return Refusal(
        "not-attached", f"process {name!r} has been given up: it has ended, or broke its connection"
    )
