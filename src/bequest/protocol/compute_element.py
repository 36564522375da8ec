"""A compute element's agent: knows its processes, and tells the Rack MMU when one has ended.

The Rack MMU announces each process with a ticket before the process can show it. An enrolled process is watched by the
kernel's own means (a pidfd). Its connection closing is only a hint, since either may outlive the other.
"""

from __future__ import annotations

import hmac

import msgspec

from bequest.protocol.outputs import Output, PeerId, Reply, ToMmu, Unwatch, Watch
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire


class Expected(msgspec.Struct):
    pid: int
    incarnation: int
    os_pid: int
    ticket: bytes
    peer: PeerId | None = None  # once enrolled


class ComputeElement:
    def __init__(self) -> None:
        self._processes: dict[int, Expected] = {}

    def mmu_message(self, message: wire.Message) -> list[Output]:
        match message:
            case wire.ExpectProcess(pid, incarnation, os_pid, ticket):
                self._processes[pid] = Expected(pid, incarnation, os_pid, ticket)
                return []
            case wire.ForgetProcess(pid, incarnation):
                return self._forget(pid, incarnation)
            case _:
                raise AssertionError(f"the Rack MMU says {message}")

    def client_message(self, peer: PeerId, os_pid: int, message: wire.Message) -> list[Output]:
        """``os_pid`` is the kernel's word on who is behind the connection."""
        assert isinstance(message, wire.Enrol)
        process = self._expected(message.ticket)
        if process is None or process.peer is not None or process.os_pid != os_pid:
            refusal = Refusal(
                "not-attached", f"os process {os_pid} has shown no valid ticket of a process to enrol"
            )
            return [Reply(peer, refusal.reply())]
        process.peer = peer
        enrolled = wire.ProcessEnrolled(process.pid, process.incarnation)
        return [Watch(peer, os_pid), ToMmu(enrolled), Reply(peer, wire.Enrolled(process.pid))]

    def client_gone(self, peer: PeerId) -> list[Output]:
        process = self._enrolled(peer)
        return [] if process is None else [ToMmu(wire.ProcessLost(process.pid, process.incarnation))]

    def exited(self, peer: PeerId) -> list[Output]:
        process = self._enrolled(peer)
        if process is None:
            return []
        del self._processes[process.pid]
        return [Unwatch(peer), ToMmu(wire.ProcessExited(process.pid, process.incarnation))]

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
