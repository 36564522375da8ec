"""An agent of the world: its machine, and what it watches and fences processes by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import (
    Confirm,
    Fence,
    Guard,
    KeepContacts,
    KeepHandler,
    Lift,
    Output,
    ProcessKey,
    Push,
    Reply,
    ToMmu,
    Unwatch,
    Watch,
    WatchedProcess,
)
from bequest.sim.connection import Connection
from bequest.sim.daemon import Daemon
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.os_process import OsProcess
    from bequest.sim.world import World


class Agent(Daemon):
    def __init__(self, world: World, name: str, before: Agent | None = None) -> None:
        super().__init__(world, name)
        self.safe: dict[ProcessKey, WatchedProcess] = {} if before is None else before.safe
        self.contacts: dict[ProcessKey, list[str]] = {} if before is None else before.contacts
        self.handlers: dict[ProcessKey, bool] = {} if before is None else before.handlers
        handlers = [key for key, wanted in self.handlers.items() if wanted]
        self.machine = ComputeElement(self.safe.values(), self.contacts, handlers)
        self._watched: dict[ProcessKey, int] = {}  # os pids
        self._lanes: dict[ProcessKey, float] = {}  # when the last job on each process will be done
        for key, process in self.safe.items():
            self._register(key, process.os_pid)

    def successor(self) -> Agent:
        return Agent(self.world, self.name, self)

    def link_restored(self, sender: str) -> None:
        if sender == "mmu":
            self._carry_out(self.machine.linked())

    def link_broken(self, sender: str) -> None:
        if sender == "mmu":
            self.machine.unlinked()

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        self._carry_out(
            self.machine.client_message(connection.peer, connection.os_pid, message, self.world.events.now)
        )

    def peer_gone(self, connection: Connection) -> None:
        self._carry_out(self.machine.client_gone(connection.peer))

    def link_message(self, sender: str, message: wire.Message) -> None:
        if isinstance(message, wire.Ping):
            self.say(sender, wire.Pong(message.number))
        else:
            self._carry_out(self.machine.mmu_message(message, self.world.events.now))

    def tick(self, now: float) -> None:
        self._carry_out(self.machine.tick(now))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.step()
            match output:
                case Reply(peer, message):
                    self.reply(peer, message)
                case ToMmu(message):
                    self.say("mmu", message)
                case Watch(process):
                    self._watch((process.pid, process.incarnation), process)
                case Unwatch(key):
                    self._let_go(key)
                case KeepHandler(key, wanted):
                    self.handlers[key] = wanted
                case KeepContacts(key, names):
                    self.contacts[key] = names
                case Push(peer, notice) if peer in self.peers:
                    self.world.trace(self.peers[peer].who, self.name, notice)
                    self.peers[peer].push(notice)
                case Confirm(key):
                    self.world.events.after(self.world.delay(), partial(self._confirm, key))
                case Fence() | Lift():
                    self._submit(output.process, partial(self._work_on, output))
                case Guard(job, key):
                    self.call(partial(self._guarded, job, key))
                case _:
                    assert isinstance(output, Push), f"the agent wants {output}"

    def _let_go(self, key: ProcessKey) -> None:
        for kept in (self._watched, self.safe, self.contacts, self.handlers):
            kept.pop(key, None)

    def _watch(self, key: ProcessKey, process: WatchedProcess) -> None:
        if self.world.processes[process.os_pid].has_exited:
            self._carry_out(self.machine.exited(key))
            return
        self._register(key, process.os_pid)

        def keep() -> None:
            if key in self._watched and not self.is_dead:
                self.safe[key] = process
                self.call(lambda: self._carry_out(self.machine.watched(key)))

        self.world.events.after(self.world.delay(), keep)

    def _register(self, key: ProcessKey, os_pid: int) -> None:
        """A pidfd tells at once, also of an end long ago."""
        self._watched[key] = os_pid
        process = self.world.processes[os_pid]
        tell = partial(self.call, partial(self._exited, key))
        if process.has_exited:
            tell()
        else:
            process.when_exited.append(tell)

    def _exited(self, key: ProcessKey) -> None:
        if key in self._watched:
            self._carry_out(self.machine.exited(key))

    def _confirm(self, key: ProcessKey) -> None:
        if key in self._watched and not self.world.processes[self._watched[key]].is_alive:
            self.call(partial(self._exited, key))

    def _submit(self, key: ProcessKey, job: Callable[[], None]) -> None:
        """A worker's job: those on one process are done in order, as long as the agent lives."""

        def do() -> None:
            if not self.is_dead:
                job()

        now = self.world.events.now
        self._lanes[key] = max(now, self._lanes.get(key, now)) + self.world.delay()
        self.world.events.after(self._lanes[key] - now, do)

    def _work_on(self, order: Fence | Lift) -> None:
        if isinstance(order, Fence):
            self._fence(order)
        else:
            self._lift(order)

    def _fence(self, order: Fence) -> None:
        """The ladder of `bequest.runtime.fencing`, where each rung may turn out not to hold, or only in part."""
        os_pid = self._watched.get(order.process)
        process = None if os_pid is None else self.world.processes[os_pid]
        reaches = ("protect", "ptrace", "kill")[: ("protect", "ptrace", "kill").index(order.reach) + 1]
        if process is None or not process.is_alive:
            how = "dead"
        else:
            holding = [rung for rung in reaches if rung == "kill" or not self.world.is_unlucky(0.5)]
            if not holding:
                half = order.ranges[: (len(order.ranges) + 1) // 2]
                self._keep_off(process, "protected", half)
                self.call(lambda: self._carry_out(self.machine.fence_failed(order.job, "no rung holds")))
                return
            how = {"protect": "protected", "ptrace": "ptraced", "kill": "killed"}[holding[0]]
            self._keep_off(process, how, order.ranges)
        self.call(lambda: self._carry_out(self.machine.fenced(order.job, how)))

    def _keep_off(self, process: OsProcess, how: str, ranges: list[tuple[int, int]]) -> None:
        self.world.trace("fence", repr(process), how)
        if how == "killed":
            process.kill()
        keep_off = process.protect if how == "protected" else process.close
        for address, nbytes in ranges:
            keep_off(address, address + nbytes)

    def _lift(self, order: Lift) -> None:
        os_pid = self._watched.get(order.process)
        process = None if os_pid is None else self.world.processes[os_pid]
        if process is not None and process.is_alive:
            self.world.trace("fence", repr(process), "lifted")
            for address, nbytes in order.ranges:
                process.lift(address, address + nbytes)
        self.call(lambda: self._carry_out(self.machine.lifted(order.job)))

    def _guarded(self, job: int, key: ProcessKey) -> None:
        self._carry_out(self.machine.guarded(job, key, False))
