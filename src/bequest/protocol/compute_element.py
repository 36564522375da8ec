"""A compute element's agent: knows its processes, and tells the Rack MMU when one has ended.

The Rack MMU announces each process with a ticket before the process can show it. An enrolled process is watched by the
kernel's own means (a pidfd, and its address space's userfaultfd). Its connection closing is only a hint, since either
may outlive the other. What processes are told of failures is `NoticeDesk`'s, what is done to them from outside
`FenceDesk`'s. A process that turns out to have gone while it is being fenced is told of as such at once.
"""

from __future__ import annotations

import hmac

import msgspec

from bequest.protocol.fence_desk import GONE, FenceDesk
from bequest.protocol.notice_desk import NoticeDesk
from bequest.protocol.outputs import Confirm, Output, PeerId, Reply, ToMmu, Unwatch, Watch
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire


class Expected(msgspec.Struct):
    pid: int
    incarnation: int
    os_pid: int
    ticket: bytes
    name: str
    group: int
    peer: PeerId | None = None  # once enrolled


class ComputeElement:
    def __init__(self) -> None:
        self._processes: dict[int, Expected] = {}
        self._notices = NoticeDesk()
        self._fences = FenceDesk()

    def mmu_message(self, message: wire.Message, now: float) -> list[Output]:
        match message:
            case wire.ExpectProcess(pid, incarnation, os_pid, ticket, name, group):
                self._processes[pid] = Expected(pid, incarnation, os_pid, ticket, name, group)
                self._notices.expect((pid, incarnation), name, group)
                return []
            case wire.ForgetProcess(pid, incarnation):
                self._notices.forget((pid, incarnation))
                return self._forget(pid, incarnation)
            case wire.ProveDeath(pid, incarnation):
                peer = self._peer_of(pid, incarnation)
                return [] if peer is None else [Confirm(peer)]
            case wire.FenceProcess(_, pid, incarnation):
                return self._fences.fence(message, self._peer_of(pid, incarnation))
            case wire.GuardRange():
                return self._guard(message)
            case wire.TellProcess():
                return self._notices.tell_process(message, now)
            case wire.TellGroup():
                return self._notices.tell_group(message)
            case _:
                raise AssertionError(f"the Rack MMU says {message}")

    def client_message(self, peer: PeerId, os_pid: int, message: wire.Message, now: float) -> list[Output]:
        """``os_pid`` is the kernel's word on who is behind the connection."""
        match message:
            case wire.Enrol():
                return self._enrol(peer, os_pid, message)
            case wire.Subscribe(ticket):
                process = self._expected(ticket)
                if process is None or process.os_pid != os_pid:
                    return [Reply(peer, _stranger(os_pid).reply())]
                return self._notices.subscribe((process.pid, process.incarnation), peer)
            case _:
                process = self._enrolled(peer)
                if process is None:
                    return [Reply(peer, _stranger(os_pid).reply())]
                try:
                    return self._notices.request((process.pid, process.incarnation), peer, message, now)
                except Refusal as refusal:
                    return [Reply(peer, refusal.reply())]

    def tick(self, now: float) -> list[Output]:
        return self._notices.tick(now)

    def next_deadline(self) -> float:
        return self._notices.next_deadline()

    def _enrol(self, peer: PeerId, os_pid: int, message: wire.Enrol) -> list[Output]:
        process = self._expected(message.ticket)
        if process is None or process.peer is not None or process.os_pid != os_pid:
            return [Reply(peer, _stranger(os_pid).reply())]
        process.peer = peer
        enrolled = wire.ProcessEnrolled(process.pid, process.incarnation)
        return [Watch(peer, os_pid), ToMmu(enrolled), Reply(peer, wire.Enrolled(process.pid))]

    def client_gone(self, peer: PeerId) -> list[Output]:
        self._notices.subscriber_gone(peer)
        process = self._enrolled(peer)
        return [] if process is None else [ToMmu(wire.ProcessLost(process.pid, process.incarnation))]

    def exited(self, peer: PeerId) -> list[Output]:
        """It is proven that nothing of the process can ever run again. Said once or more often."""
        process = self._enrolled(peer)
        if process is None:
            return []
        del self._processes[process.pid]
        self._fences.ended(process.pid, process.incarnation)
        calls = self._notices.died((process.pid, process.incarnation))
        return [Unwatch(peer), ToMmu(wire.ProcessExited(process.pid, process.incarnation)), *calls]

    # --- what is done to processes -------------------------------------------------------------------------

    def fenced(self, job: int, how: str) -> list[Output]:
        peer = self._fences.fenced(job)
        outputs = self.exited(peer) if how in GONE else []
        return [*outputs, ToMmu(wire.ProcessFenced(job, how))]

    def fence_failed(self, job: int, message: str) -> list[Output]:
        self._fences.fenced(job)
        return [ToMmu(wire.FenceFailed(job, message))]

    def guarded(self, job: int, peer: PeerId, failed: bool) -> list[Output]:
        process = self._enrolled(peer)
        return self._fences.guarded(job, process.name if failed and process is not None else None)

    def _guard(self, message: wire.GuardRange) -> list[Output]:
        members = [process for process in self._processes.values() if process.group == message.group]
        peers = [process.peer for process in members if process.peer is not None]
        return self._fences.guard(
            message, peers, [process.name for process in members if process.peer is None]
        )

    # --- who is who ----------------------------------------------------------------------------------------

    def _peer_of(self, pid: int, incarnation: int) -> PeerId | None:
        process = self._processes.get(pid)
        return process.peer if process is not None and process.incarnation == incarnation else None

    def _forget(self, pid: int, incarnation: int) -> list[Output]:
        process = self._processes.get(pid)
        if process is None or process.incarnation != incarnation:
            return []
        del self._processes[pid]
        return [] if process.peer is None else [Unwatch(process.peer)]

    def _expected(self, ticket: bytes) -> Expected | None:
        found = None
        for process in self._processes.values():
            if hmac.compare_digest(process.ticket, ticket):
                found = process
        return found

    def _enrolled(self, peer: PeerId) -> Expected | None:
        for process in self._processes.values():
            if process.peer == peer:
                return process
        return None


def _stranger(os_pid: int) -> Refusal:
    return Refusal("not-attached", f"os process {os_pid} has shown no valid ticket of a process to enrol")
