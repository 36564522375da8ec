"""The Rack MMU of the world: its machine, the tables, and a journal that the supervisor keeps."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from bequest.protocol.books import Change
from bequest.protocol.outputs import (
    AwaitExit,
    DropTable,
    GoOn,
    Note,
    Output,
    Reply,
    StopRack,
    ToAgent,
    ToElement,
    ToMonitor,
)
from bequest.protocol.process_table import Kind
from bequest.protocol.rack_mmu import RackMmu
from bequest.sim.connection import Connection
from bequest.sim.daemon import Daemon
from bequest.sim.shared_table import SharedTable
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World


class Mmu(Daemon):
    def __init__(self, world: World, before: Mmu | None = None) -> None:
        super().__init__(world, "mmu")
        self.tables: dict[int, SharedTable] = {}
        self.journal: dict[tuple[str, str], Change] = {}
        if before is None:
            self.machine = RackMmu(world.config, self._make_table, world.fresh_bytes, world.events.now)
            self._let_ids_be_few()
        else:
            self._restore(before)

    def _restore(self, before: Mmu) -> None:
        self._last_peer = before._last_peer
        self._is_restoring = True
        self.tables, self.journal = before.tables, before.journal
        self.machine, outputs = RackMmu.restore(
            self.world.config,
            self._open_table,
            self.world.fresh_bytes,
            list(self.journal.values()),
            self.world.events.now,
        )
        self._is_restoring = False
        self._let_ids_be_few()
        self.call(lambda: self._carry_out(outputs))

    def _let_ids_be_few(self) -> None:
        pool = self.machine._state.processes._pools[Kind.PROCESS]
        pool._fresh = deque(number for number in pool._fresh if number <= self.world.options.ids)

    def successor(self) -> Mmu:
        return Mmu(self.world, self)

    def link_restored(self, sender: str) -> None:
        if sender in self.world.agents:
            self._carry_out(self.machine.agent_linked(sender.removeprefix("agent-")))
        elif sender == "monitor":
            self._carry_out(self.machine.monitor_linked())
        else:
            self._carry_out(self.machine.element_linked(self.world.elements[sender].info.id))

    def peer_opened(self, connection: Connection) -> None:
        self._carry_out(self.machine.client_opened(connection.peer, connection.uid, connection.os_pid))

    def peer_gone(self, connection: Connection) -> None:
        self._carry_out(self.machine.client_gone(connection.peer, self.world.events.now))

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        self._carry_out(self.machine.client_message(connection.peer, message, self.world.events.now))

    def link_message(self, sender: str, message: wire.Message) -> None:
        if sender in self.world.agents:
            self._carry_out(self.machine.agent_message(message, self.world.events.now))
        elif sender == "monitor":
            self._carry_out(self.machine.monitor_message(message))
        else:
            self._carry_out(self.machine.element_message(self.world.elements[sender].info.id, message))

    def tick(self, now: float) -> None:
        self._carry_out(self.machine.tick(now))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()

    def _open_table(self, group: int) -> SharedTable:
        """Those that were written about are opened again; what a run before only began is made anew."""
        return self.tables[group] if self._is_restoring else self._make_table(group)

    def _write_down(self) -> None:
        """What a journal gives back is plain data."""
        changes = self.machine.take_changes()
        if not changes:
            return
        for change in msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=list[Change]):
            key = (change.book, repr(change.key))
            if change.row is None:
                self.journal.pop(key, None)
            else:
                self.journal[key] = change

    def _absent(self, client: int, os_pid: int) -> None:
        process = self.world.processes[os_pid]
        told = partial(self.machine.absent_client_exited, client)

        def gone() -> None:
            self.call(lambda: self._carry_out(told(self.world.events.now)))

        if process.has_exited:
            gone()
        else:
            process.when_exited.append(gone)

    def _make_table(self, group: int) -> SharedTable:
        self.tables[group] = SharedTable(group, self.world.options.inbox_cells)
        return self.tables[group]

    def _carry_out(self, outputs: list[Output]) -> None:
        self._write_down()
        self.step()
        for output in outputs:
            self.step()
            match output:
                case Reply(peer, message, table):
                    self.reply(peer, message, None if table is None else self.tables[table])
                case ToElement(element, message):
                    self.say(self.world.element(element).name, message)
                case ToMonitor(message):
                    self.say("monitor", message)
                case ToAgent(compute, message):
                    self.say(f"agent-{compute}", message)
                case AwaitExit(client, os_pid):
                    self._absent(client, os_pid)
                case DropTable(group):
                    del self.tables[group]
                case GoOn():
                    self._carry_out(self.machine.go_on())
                case Note(text):
                    self.world.trace("log", self.name, text)
                case StopRack(reason):
                    raise AssertionError(f"the rack would stop: {reason}")
                case _:
                    raise AssertionError(f"the Rack MMU wants {output}")
