"""Drives the Rack MMU: tables are real, time passes, bytes are random, and clients call."""

from __future__ import annotations

import os
import socket
import time

from bequest._core import Table
from bequest.protocol.outputs import Drop, DropTable, GoOn, Note, Output, Reply, StopRack, ToAgent, ToElement
from bequest.protocol.rack_mmu import RackMmu
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.journal import Journal
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.safe import Tether
from bequest.wire import messages as wire


class MmuDaemon(Daemon):
    role = "rack-mmu"

    def __init__(
        self,
        config: MmuConfig,
        listener: socket.socket,
        tether: Tether,
    ) -> None:
        super().__init__(config.name, config.uid, listener, wire.MmuSocket, tether)
        self._tables: dict[int, Table] = {}
        self._machine = RackMmu(config, self._make_table, os.urandom, time.monotonic())
        self._journal = Journal.begin(self._machine.everything())
        self._elements = {
            element.id: self.add_link(
                "element", element.name, f"memory element {element.name}", wire.ElementToMmu
            )
            for element in config.elements
        }
        self._element_ids = {link.name: element for element, link in self._elements.items()}
        self._agents = {
            compute: self.add_link("agent", compute, f"agent {compute}", wire.AgentToMmu)
            for compute in config.computes
        }
        self._machine.daemon_runs(wire.DaemonReport("mmu", "mmu", os.getpid(), self.restarts))

    # --- inputs --------------------------------------------------------------------------------------------

    def peer_opened(self, peer: Peer) -> None:
        self._carry_out(self._machine.client_opened(peer.id, peer.uid, peer.os_pid))

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        try:
            outputs = self._machine.client_message(peer.id, message, time.monotonic())
        except MemoryError as error:
            # Out of descriptors or memory for a table, say: this request fails, the rack lives.
            log.exception("no memory for %s", type(message).__name__)
            outputs = [Reply(peer.id, wire.Failed("memory", f"the Rack MMU has no memory left: {error}"))]
        self._carry_out(outputs)

    def peer_gone(self, peer: Peer) -> None:
        self._carry_out(self._machine.client_gone(peer.id, time.monotonic()))

    def link_message(self, link: Link, message: wire.Message) -> None:
        if link.kind == "element":
            self._carry_out(self._machine.element_message(self._element_ids[link.name], message))
        else:
            self._carry_out(self._machine.agent_message(message, time.monotonic()))

    def link_restored(self, link: Link) -> None:
        self._machine.daemon_runs(wire.DaemonReport(link.kind, link.name, link.os_pid, link.restarts))
        if link.kind == "element":
            self._carry_out(self._machine.element_linked(self._element_ids[link.name]))
        elif link.kind == "agent":
            self._carry_out(self._machine.agent_linked(link.name))

    def tick(self, now: float) -> None:
        self._carry_out(self._machine.tick(now))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()

    # --- outputs -------------------------------------------------------------------------------------------

    def _carry_out(self, outputs: list[Output]) -> None:
        self._journal.write(self._machine.take_changes())
        for output in outputs:
            match output:
                case Reply(peer, message, table):
                    self.reply(peer, message, () if table is None else (self._tables[table].fileno(),))
                case ToElement(element, message):
                    self.send_to_link(self._elements[element], message)
                case ToAgent(compute, message):
                    self.send_to_link(self._agents[compute], message)
                case DropTable(group):
                    del self._tables[group]
                case GoOn():
                    self._carry_out(self._machine.go_on())
                case Drop(peer, reason):
                    self.drop(self._peers[peer], reason)
                case StopRack(reason):
                    self.ends_rack = True
                    self.stop(reason)
                case Note(text, trouble):
                    (log.warning if trouble else log.info)("%s", text)
                case _:
                    raise AssertionError(f"the Rack MMU wants {output}")

    def _make_table(self, group: int) -> Table:
        try:
            self._tables[group] = Table.create(group)
        except OSError as error:
            raise MemoryError(f"no table for another group: {error.strerror or error}") from error
        return self._tables[group]
