"""The agent's desk for what is done to processes from outside: fences and their lifting, and guards of failing memory.

The Rack MMU asks to have a process fenced; by what it was kept from its memory is told, or why nothing could. Jobs are
kept until the driver has an outcome, which may come after the process has gone or been forgotten: the MMU gets its
answer all the same, once.

The driver's jobs have numbers of this agent's own, for another run of the Rack MMU may use its numbers again: were the
outcome of a fence that an earlier run had asked for taken for that of another, memory would change hands unfenced. What
was asked for on an earlier link is carried out, and told to nobody.
"""

from __future__ import annotations

import msgspec

from bequest.limits import FENCE_RANGES_MAX
from bequest.protocol.outputs import Fence, Guard, Lift, Output, ProcessKey, ToMmu
from bequest.wire import messages as wire

REACHES = ("protect", "ptrace", "kill")
GONE = ("dead", "killed")  # ways to be fenced that end a process


class FenceJob(msgspec.Struct):
    asked: int | None  # the Rack MMU's number; None: it asked on an earlier link
    process: ProcessKey


class GuardJob(msgspec.Struct):
    asked: int | None
    open: int  # processes that have yet to be guarded
    unguarded: list[str]


class FenceDesk:
    def __init__(self) -> None:
        self._ended: dict[int, int] = {}  # id -> its last incarnation that has gone
        self._fences: dict[int, FenceJob] = {}
        self._lifts: dict[int, int | None] = {}  # job -> the Rack MMU's number
        self._guards: dict[int, GuardJob] = {}
        self._last_job = 0

    def linked(self) -> None:
        """There is a new link to the Rack MMU, which asks again for what it still wants."""
        for fence in self._fences.values():
            fence.asked = None
        self._lifts = dict.fromkeys(self._lifts)
        for guard in self._guards.values():
            guard.asked = None

    def ended(self, pid: int, incarnation: int) -> None:
        self._ended[pid] = incarnation

    def request(self, message: wire.FenceProcess | wire.LiftFence, is_enrolled: bool) -> list[Output]:
        """``is_enrolled``: the process is."""
        if isinstance(message, wire.LiftFence):
            return self._lift(message, is_enrolled)
        return self._fence(message, is_enrolled)

    def _fence(self, message: wire.FenceProcess, is_enrolled: bool) -> list[Output]:
        asked, pid = message.job, message.pid
        assert message.reach in REACHES and len(message.ranges) <= FENCE_RANGES_MAX, message
        if self._ended.get(pid) == message.incarnation:
            return [ToMmu(wire.ProcessFenced(asked, "dead"))]
        if not is_enrolled:
            text = f"process {pid} has not enrolled with its agent, which can do nothing about it"
            return [ToMmu(wire.FenceFailed(asked, text))]
        job, process = self._next_job(), (pid, message.incarnation)
        self._fences[job] = FenceJob(asked, process)
        return [Fence(job, process, message.reach, message.ranges, message.hinted)]

    def fenced(self, job: int, how: str) -> tuple[ProcessKey, list[Output]]:
        """Whom it was about, and the answer."""
        fence = self._fences.pop(job)
        return fence.process, [] if fence.asked is None else [ToMmu(wire.ProcessFenced(fence.asked, how))]

    def failed(self, job: int, text: str) -> list[Output]:
        fence = self._fences.pop(job)
        return [] if fence.asked is None else [ToMmu(wire.FenceFailed(fence.asked, text))]

    def _lift(self, message: wire.LiftFence, is_enrolled: bool) -> list[Output]:
        if not is_enrolled:
            return [ToMmu(wire.FenceLifted(message.job))]
        job = self._next_job()
        self._lifts[job] = message.job
        return [Lift(job, (message.pid, message.incarnation), message.ranges)]

    def lifted(self, job: int) -> list[Output]:
        asked = self._lifts.pop(job)
        return [] if asked is None else [ToMmu(wire.FenceLifted(asked))]

    def guard(
        self, message: wire.GuardRange, processes: list[ProcessKey], unguarded: list[str]
    ) -> list[Output]:
        """``unguarded`` are those that are not enrolled."""
        if not processes:
            return [ToMmu(wire.RangeGuarded(message.job, unguarded))]
        job = self._next_job()
        self._guards[job] = GuardJob(message.job, len(processes), list(unguarded))
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
        return [] if guard.asked is None else [ToMmu(wire.RangeGuarded(guard.asked, sorted(guard.unguarded)))]

    def _next_job(self) -> int:
        self._last_job += 1
        return self._last_job
