"""The rack monitor of the world: lifelines, beats and threads are looked at, daemons are pinged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.protocol.outputs import LookAt, Note, Output, SendPing, ToMmu
from bequest.protocol.rack_monitor import ASLEEP, GONE, STOPPED, Key, RackMonitor, Sight
from bequest.sim.daemon import Daemon
from bequest.sim.shared_table import SharedTable
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World


class Monitor(Daemon):
    def __init__(self, world: World) -> None:
        super().__init__(world, "monitor")
        self.machine = RackMonitor(world.events.now)
        self._os_pids: dict[Key, int] = {}
        self._tables: dict[Key, SharedTable] = {}

    def successor(self) -> Monitor:
        return Monitor(self.world)

    def link_restored(self, sender: str) -> None:
        if sender == "mmu":
            self._carry_out(self.machine.suspicions())
        else:
            self._carry_out(self.machine.neighbour_came(self._neighbour(sender), 0))
        self.world.events.after(0.0, self.wake)  # to tick from now on

    def link_broken(self, sender: str) -> None:
        if sender == "mmu":
            for key, _ in self.machine.watched():
                self.machine.unwatch(wire.UnwatchProcess(*key))
        else:
            self._carry_out(self.machine.neighbour_left(self._neighbour(sender)))

    def link_message(self, sender: str, message: wire.Message) -> None:
        match message:
            case wire.WatchProcess(pid, incarnation, os_pid):
                self.machine.watch(message)
                self._os_pids[pid, incarnation] = os_pid
                self._tables[pid, incarnation] = self.world.mmu.tables[message.group]
            case wire.UnwatchProcess():
                self.machine.unwatch(message)
            case wire.Pong():
                self._carry_out(self.machine.pong(self._neighbour(sender), self.world.events.now))
            case _:
                raise AssertionError(f"{sender} says {message}")

    def tick(self, now: float) -> None:
        sights = {}
        for key, _ in self.machine.watched():
            watchers = self._tables[key].watchers.get(key[0], 0)
            process = self.world.processes[self._os_pids[key]]
            sights[key] = Sight(watchers > 0, process.beats(), is_broken=not process.is_alive)
        self._carry_out(self.machine.tick(now, sights))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.step()
            match output:
                case ToMmu(message):
                    if isinstance(message, wire.Suspicion):
                        self.world.suspected(
                            self.world.processes[self._os_pids[message.pid, message.incarnation]]
                        )
                    self.say("mmu", message)
                case SendPing(to, number):
                    self.say(self.world.element(to).name if isinstance(to, int) else to, wire.Ping(number))
                case LookAt(target):
                    self._carry_out(self.machine.looked(target, self._threads(target), self.world.events.now))
                case Note(text):
                    self.world.trace("log", self.name, text)
                case _:
                    raise AssertionError(f"the rack monitor wants {output}")

    def _threads(self, target: Key | int | str) -> str:
        if not isinstance(target, tuple):
            return ASLEEP
        process = self.world.processes[self._os_pids[target]]
        return GONE if not process.is_alive else STOPPED if process.is_stopped else ASLEEP

    def _neighbour(self, sender: str) -> int | str:
        return self.world.elements[sender].info.id if sender in self.world.elements else sender
