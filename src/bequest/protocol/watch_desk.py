"""What the rack monitor and the agents tell, passed on to whom it concerns. None of it moves memory.

A hint of a death has the agent prove it; a suspicion is told to the group, once, and withdrawn, once. Emergency
contacts that their process's agent does not know are called through their own.

A death must not be lost on its way, for somebody may wait for nothing else. So it is written down, with a number, and
told again on every new link to an agent, as long as an agent may be away; who has heard it before knows by the number.
The first time it is told a moment late, so that heirs have the processors to themselves.
Suspicions that stand are said on every new link as well: the agent tells those that it has not heard of, and withdraws
those that stand no more.
"""

from __future__ import annotations

from collections import deque

from bequest.limits import DEATH_TOLD_FOR, HEAD_START
from bequest.protocol.books import Row
from bequest.protocol.memory_failure import MemoryFailures
from bequest.protocol.outputs import Note, ToAgent, ToMonitor
from bequest.protocol.process_table import Member, State
from bequest.protocol.rack_state import RackState
from bequest.wire import messages as wire


class DeathRow(Row):
    group: int
    notice: wire.NoticeDied
    until: float  # when nobody needs to be told any more


class WatchDesk:
    def __init__(self, state: RackState, failures: MemoryFailures) -> None:
        self._state = state
        self._failures = failures
        self._deaths = state.books.open("deaths", DeathRow, int)  # by their numbers
        self._ends: deque[tuple[float, Member, int]] = (
            deque()
        )  # when to tell of whom, and how many steps were settled

    def died(self, process: Member, now: float) -> None:
        """To be written down; told when it is `settled`."""
        number = self._state.books.counter("death").next()
        notice = wire.NoticeDied(process.name, process.id, process.incarnation, number)
        self._deaths.put(number, DeathRow(process.group, notice, now + DEATH_TOLD_FOR))

    def settled(self, process: Member, steps: int, now: float) -> None:
        """Whoever waits to steal from it goes first: others hear of it a moment later."""
        self._ends.append((now + HEAD_START, process, steps))

    def tick(self, now: float) -> None:
        while self._ends and now >= self._ends[0][0]:
            self._tell_end(*self._ends.popleft()[1:])

    def next_deadline(self) -> float:
        return self._ends[0][0] if self._ends else float("inf")

    def _tell_end(self, process: Member, steps: int) -> None:
        self.unwatch(process)
        text = f"process {process.name!r} ({process.id}, os pid {process.os_pid}) has died; {steps} steps settled"
        self._state.outputs.append(Note(text))
        for death in self._deaths:
            if death.notice.incarnation == process.incarnation:
                self.tell_group(process, death.notice)

    def unwatch(self, process: Member) -> None:
        self._state.outputs.append(ToMonitor(wire.UnwatchProcess(process.id, process.incarnation)))

    def forget_at_agent(self, process: Member) -> None:
        forget = wire.ForgetProcess(process.id, process.incarnation)
        self._state.outputs.append(ToAgent(process.compute, forget))

    def agent_linked(self, compute: str) -> None:
        """What has been told it may not have heard, or not passed on."""
        for death in self._deaths:
            self._state.outputs.append(ToAgent(compute, wire.TellGroup(death.group, death.notice)))
        for process in self._state.processes:
            if process.is_suspect and self._running(process.id, process.incarnation) is not None:
                self._state.outputs.append(
                    ToAgent(compute, wire.TellGroup(process.group, _suspected(process)))
                )

    def sweep(self, now: float) -> None:
        for number, death in self._deaths.items():
            if now >= death.until:
                self._deaths.remove(number)

    def hear(self, message: wire.Message) -> None:
        """The rack monitor's word."""
        match message:
            case wire.DeathHint(pid, incarnation):
                process = self._running(pid, incarnation)
                if process is not None:
                    process.is_hinted_dead = True  # a fence waits for proof, first
                    self._state.outputs.append(ToAgent(process.compute, wire.ProveDeath(pid, incarnation)))
            case wire.Suspicion(pid, incarnation, silent):
                self._suspect(pid, incarnation, silent)
            case wire.Cleared(pid, incarnation):
                self._suspect(pid, incarnation, None)
            case wire.ElementSilent(element, silent):
                self._failures.silent(element, True, silent)
            case wire.ElementBack(element):
                self._failures.silent(element, False)
            case _:
                raise AssertionError(f"the rack monitor says {message}")

    def tell_group(self, process: Member, notice: wire.Notice) -> None:
        for compute in self._state.config.computes:
            self._state.outputs.append(ToAgent(compute, wire.TellGroup(process.group, notice)))

    def call_contacts(self, message: wire.CallContacts) -> None:
        notice = message.notice
        for name in message.names:
            contact = self._state.processes.attached(name)
            if contact is not None and contact.group == message.group:
                self._state.outputs += self._state.notices.owe(contact, notice)
        caller = self._state.processes.exact(notice.pid, notice.incarnation)
        if caller is not None:
            self._state.outputs.append(ToAgent(caller.compute, wire.ContactsCalled(message.number)))

    def _suspect(self, pid: int, incarnation: int, silent: float | None) -> None:
        process = self._running(pid, incarnation)
        if process is None or process.is_suspect == (silent is not None):
            return
        process.is_suspect, process.silent_for = silent is not None, silent or 0.0
        if silent is None:
            self.tell_group(process, wire.NoticeCleared(process.name, pid, incarnation))
        else:
            self.tell_group(process, _suspected(process))

    def _running(self, pid: int, incarnation: int) -> Member | None:
        process = self._state.processes.exact(pid, incarnation)
        is_running = process is not None and process.state in (State.ATTACHED, State.LOST)
        return process if is_running else None


def _suspected(process: Member) -> wire.NoticeSuspected:
    return wire.NoticeSuspected(process.name, process.id, process.incarnation, process.silent_for)
