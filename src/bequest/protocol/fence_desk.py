"""The agent's desk for what is done to processes from outside: proofs of death, fences, and guards of failing memory.

The Rack MMU asks to have a process fenced; by what it was kept from its memory is told, or why nothing could. Jobs are
kept until the driver has an outcome, which may come after the process has gone or been forgotten: the MMU gets its
answer all the same, once.
"""

from __future__ import annotations

import msgspec

from bequest.limits import FENCE_RANGES_MAX
from bequest.protocol.outputs import Fence, Guard, Output, ProcessKey, ToMmu
from bequest.wire import messages as wire

REACHES = ("protect", "ptrace", "kill")
GONE = ("dead", "killed")  # ways to be fenced that end a process


class GuardJob(msgspec.Struct):
    open: int  # processes that have yet to be guarded
    unguarded: list[str]


class FenceDesk:
    def __init__(self) -> None:
        self._ended: dict[int, int] = {}  # id -> its last incarnation that has gone
        self._fences: dict[int, ProcessKey] = {}  # job -> whom
        self._guards: dict[int, GuardJob] = {}

    def ended(self, pid: int, incarnation: int) -> None:
        self._ended[pid] = incarnation

    def fence(self, message: wire.FenceProcess, is_enrolled: bool) -> list[Output]:
        """``is_enrolled``: the process is."""
        job, pid = message.job, message.pid
        assert message.reach in REACHES and len(message.ranges) <= FENCE_RANGES_MAX, message
        if self._ended.get(pid) == message.incarnation:
            return [ToMmu(wire.ProcessFenced(job, "dead"))]
        if not is_enrolled:
            text = f"process {pid} has not enrolled with its agent, which can do nothing about it"
            return [ToMmu(wire.FenceFailed(job, text))]
        self._fences[job] = process = (pid, message.incarnation)
        return [Fence(job, process, message.reach, message.ranges, message.hinted)]

    def fenced(self, job: int) -> ProcessKey:
        """Whom it was about."""
        return self._fences.pop(job)

    def guard(
        self, message: wire.GuardRange, processes: list[ProcessKey], unguarded: list[str]
    ) -> list[Output]:
        """``unguarded`` are those that are not enrolled."""
        job = message.job
        if not processes:
            return [ToMmu(wire.RangeGuarded(job, unguarded))]
        self._guards[job] = GuardJob(len(processes), list(unguarded))
        return [Guard(job, process, message.address, message.nbytes) for process in processes]

    def guarded(self, job: int, unguarded: str | None) -> list[Output]:
        """One more of the job's processes is guarded, or the one named cannot be."""
        guard = self._guards[job]
        guard.open -= 1
        if unguarded is not None:
            guard.unguarded.append(unguarded)
        if guard.open > 0:
            return []
        del self._guards[job]
        return [ToMmu(wire.RangeGuarded(job, sorted(guard.unguarded)))]
