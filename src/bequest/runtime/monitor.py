"""Drives the rack monitor: lifelines and beats are read from the shared tables, daemons are pinged.

It holds the tables of all groups, which the Rack MMU hands over, but changes nothing in them. When it dies, its
supervisor starts another, which the Rack MMU tells everything anew.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from bequest._core import Table
from bequest.protocol.outputs import LookAt, Output, SendPing, ToMmu
from bequest.protocol.rack_monitor import ASLEEP, GONE, RUNNABLE, STOPPED, Key, RackMonitor, Sight
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.safe import Tether
from bequest.wire import messages as wire


class Monitor(Daemon):
    role = "monitor"

    def __init__(self, config: MmuConfig, listener: socket.socket, tether: Tether) -> None:
        super().__init__(config.name, config.uid, listener, wire.ClientToMonitor, tether)
        self._machine = RackMonitor(time.monotonic())
        self._tables: dict[int, Table] = {}  # by group
        self._mmu = self.add_link("mmu", "mmu", "the Rack MMU", wire.MmuToMonitor)
        self._neighbours: dict[int | str, Link] = {
            element.id: self.add_link("element", element.name, f"memory element {element.name}", wire.Pong)
            for element in config.elements
        }
        self._neighbours |= {
            compute: self.add_link("agent", compute, f"agent {compute}", wire.Pong)
            for compute in config.computes
        }
        self._names = {id(link): name for name, link in self._neighbours.items()}

    # --- inputs --------------------------------------------------------------------------------------------

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        raise AssertionError(f"a client asks the rack monitor {message}")

    def link_message(self, link: Link, message: wire.Message) -> None:
        match message:
            case wire.WatchProcess():
                self._watch_process(link, message)
            case wire.UnwatchProcess(pid, incarnation):
                self._unwatch_process((pid, incarnation))
            case wire.Pong():
                self._carry_out(self._machine.pong(self._names[id(link)], time.monotonic()))
            case _:
                raise AssertionError(f"{link.title} says {message}")

    def link_restored(self, link: Link) -> None:
        if link is self._mmu:
            self._carry_out(self._machine.suspicions())
        else:
            self._carry_out(self._machine.neighbour_came(self._names[id(link)], link.os_pid))

    def link_broken(self, link: Link) -> None:
        if link is self._mmu:
            for key, _ in self._machine.watched():  # its successor says anew who there is
                self._unwatch_process(key)
        else:
            self._carry_out(self._machine.neighbour_left(self._names[id(link)]))

    def tick(self, now: float) -> None:
        sights = {}
        for key, group in self._machine.watched():
            table = self._tables[group]
            pid = key[0]
            sights[key] = Sight(
                table.watchers(pid) > 0, table.beats(pid), table.is_stuck(pid), table.is_broken(pid)
            )
        self._carry_out(self._machine.tick(now, sights))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()

    # --- processes -----------------------------------------------------------------------------------------

    def _watch_process(self, link: Link, message: wire.WatchProcess) -> None:
        if message.group not in self._tables:
            if len(link.fds) != 1:
                log.error("the rack monitor got no table of group %d", message.group)
                return
            self._tables[message.group] = Table.open(link.fds[0])
        self._machine.watch(message)

    def _unwatch_process(self, key: Key) -> None:
        self._machine.unwatch(wire.UnwatchProcess(*key))
        used = {group for _, group in self._machine.watched()}
        for group in [group for group in self._tables if group not in used]:
            del self._tables[group]

    # --- outputs -------------------------------------------------------------------------------------------

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case ToMmu(message):
                    self.send_to_link(self._mmu, message)
                case SendPing(to, number):
                    self.send_to_link(self._neighbours[to], wire.Ping(number))
                case LookAt(target, os_pid):
                    seen = what_threads_do(os_pid)
                    self._carry_out(self._machine.looked(target, seen, time.monotonic()))
                case _:
                    raise AssertionError(f"the rack monitor wants {output}")


def what_threads_do(os_pid: int) -> str:
    """Of a process that is silent: one word for all of its threads, as proc(5) tells their states."""
    states = ""
    for stat in Path(f"/proc/{os_pid}/task").glob("*/stat"):
        try:
            states += stat.read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue  # that thread has ended
    if not states.strip("ZXx"):
        return GONE
    if "R" in states:
        return RUNNABLE
    return STOPPED if "T" in states or "t" in states else ASLEEP
