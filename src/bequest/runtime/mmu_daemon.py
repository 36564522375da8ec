"""Drives the Rack MMU: tables are real, time passes, bytes are random, and clients call.

Theory of operation. The changes of each input are in the journal before the first of its outputs is carried out. The
journal and the tables lie with the supervisor, too: whoever is started in place of a daemon that was killed reads the
one and opens the others, and goes on where the last frame ends. While a journal is replaced by a shorter one, both are
written, until the supervisor has said that it has the new one.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from bequest._core import Table
from bequest.limits import HEAD_START, WITNESS_PATIENCE
from bequest.protocol.outputs import (
    AwaitExit,
    DropTable,
    GoOn,
    LookThrough,
    Note,
    Output,
    Reply,
    StopRack,
    ToAgent,
    ToElement,
    ToMonitor,
)
from bequest.protocol.rack_mmu import RackMmu
from bequest.protocol.rack_state import MmuConfig
from bequest.protocol.status_desk import Found, look_through
from bequest.runtime.journal import Journal
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.safe import Tether
from bequest.runtime.witnesses import Witnesses
from bequest.runtime.workers import Workers
from bequest.wire import messages as wire

_JOURNAL = "journal"
_LOOKS = "looks"  # the lane of what takes long
_TABLE = "table "  # and the group's number

Input = Callable[[], list[Output]]


class MmuDaemon(Daemon):
    role = "rack-mmu"
    remembers_clients = True

    def __init__(self, config: MmuConfig, listener: socket.socket, tether: Tether) -> None:
        super().__init__(config.name, config.uid, listener, wire.MmuSocket, tether)
        self._last_peer = time.monotonic_ns()  # no run before had so many: a client's number is nobody else's
        self._tables: dict[int, Table] = {}
        self._witnesses = Witnesses()
        self._workers = Workers((_LOOKS,))
        self.watch(self._workers.fileno(), self._workers.collect)
        self._inputs: deque[Input] = deque()
        self._notes: deque[tuple[float, Note]] = deque()  # and when they were made
        self._unwatched: dict[
            int, int
        ] = {}  # os pids of clients whose end is awaited, and could not be watched
        self._is_busy = False
        self._is_restoring = False
        self._successor: Journal | None = (
            None  # of the journal, while the supervisor has not said that it has it
        )
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
        self._monitor = self.add_link("monitor", "monitor", "the rack monitor", wire.MonitorToMmu)
        self._machine, outputs = self._restore(config) if _JOURNAL in self.kept else self._begin(config)
        self._machine.daemon_runs(wire.DaemonReport("mmu", "mmu", os.getpid(), self.restarts))
        self._take(lambda: outputs)

    def _begin(self, config: MmuConfig) -> tuple[RackMmu, list[Output]]:
        machine = RackMmu(config, self._open_table, os.urandom, time.monotonic())
        self._journal = Journal.begin(machine.everything())
        self.keep(_JOURNAL, b"", [self._journal.fd], self._first_is_kept)
        return machine, []

    def _first_is_kept(self, trouble: str) -> None:
        if trouble:  # what is not written down by then would be lost with this process
            self.ends_rack = True
            self.stop(f"the supervisor does not keep the journal: {trouble}")

    def _restore(self, config: MmuConfig) -> tuple[RackMmu, list[Output]]:
        self._journal, rows = Journal.open(self.kept.pop(_JOURNAL).fds[0])
        self._is_restoring = True
        machine, outputs = RackMmu.restore(config, self._open_table, os.urandom, rows, time.monotonic())
        self._is_restoring = False
        for key in list(self.kept):  # of groups that were not written down any more, or had ended
            for fd in self.kept[key].fds:
                os.close(fd)
            self.release(key)
        log.info("%s goes on with %d rows and %d tables", self.role, len(rows), len(self._tables))
        return machine, outputs

    # --- inputs --------------------------------------------------------------------------------------------

    def peer_opened(self, peer: Peer) -> None:
        self._take(partial(self._machine.client_opened, peer.id, peer.uid, peer.os_pid))

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        self._take(partial(self._ask, peer.id, message))

    def _ask(self, peer: int, message: wire.Message) -> list[Output]:
        outputs = self._look_at_victim(peer, message)
        try:
            outputs += self._machine.client_message(peer, message, time.monotonic())
        except MemoryError as error:
            # Out of descriptors or memory for a table, say: this request fails, the rack lives.
            log.exception("no memory for %s", type(message).__name__)
            outputs.append(Reply(peer, wire.Failed("memory", f"the Rack MMU has no memory left: {error}")))
        return outputs

    def peer_gone(self, peer: Peer) -> None:
        self._take(lambda: self._machine.client_gone(peer.id, time.monotonic()))

    def link_message(self, link: Link, message: wire.Message) -> None:
        if link.kind == "element":
            self._take(partial(self._machine.element_message, self._element_ids[link.name], message))
        elif link.kind == "agent":
            self._take(partial(self._hear_agent, message))
            if isinstance(message, wire.ProcessEnrolled) and link.fds:
                self._call_witness(message, link)
        else:
            self._take(partial(self._machine.monitor_message, message))

    def _hear_agent(self, message: wire.Message) -> list[Output]:
        return self._machine.agent_message(message, time.monotonic())

    def link_restored(self, link: Link) -> None:
        self._machine.daemon_runs(wire.DaemonReport(link.kind, link.name, link.os_pid, link.restarts))
        if link.kind == "element":
            self._take(partial(self._machine.element_linked, self._element_ids[link.name]))
        elif link.kind == "agent":
            self._take(partial(self._machine.agent_linked, link.name))
        else:
            self._take(self._machine.monitor_linked)

    def tick(self, now: float) -> None:
        self._take(partial(self._machine.tick, now))
        self._log_notes(now - HEAD_START)
        for client, os_pid in list(self._unwatched.items()):
            self._await_exit(client, os_pid)

    def next_deadline(self) -> float:
        log_at = self._notes[0][0] + HEAD_START if self._notes else float("inf")
        return min(log_at, self._machine.next_deadline())

    def stop(self, reason: str) -> None:
        self._log_notes(float("inf"))
        super().stop(reason)

    # --- outputs -------------------------------------------------------------------------------------------

    def _take(self, given: Input) -> None:
        """One input at a time: what carrying out an output brings about waits until all of them are carried out."""
        self._inputs.append(given)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._inputs:
                self._carry_out(self._inputs.popleft()())
        finally:
            self._is_busy = False

    def _carry_out(self, outputs: list[Output]) -> None:
        self._write_down()
        for output in outputs:
            if isinstance(output, Note):  # what people may read later keeps nobody waiting
                self._notes.append((time.monotonic(), output))
                if self._stopping is not None:
                    self._log_notes(float("inf"))
            else:
                self._carry_out_one(output)

    def _log_notes(self, until: float) -> None:
        while self._notes and self._notes[0][0] <= until:
            note = self._notes.popleft()[1]
            (log.warning if note.trouble else log.info)("%s", note.text)

    def _carry_out_one(self, output: Output) -> None:
        match output:
            case Reply(peer, message, table):
                self.reply(peer, message, () if table is None else (self._tables[table].fileno(),))
            case ToElement(element, message):
                self.send_to_link(self._elements[element], message)
            case ToAgent(compute, message):
                self.send_to_link(self._agents[compute], message)
            case ToMonitor(message, table):
                if isinstance(message, wire.UnwatchProcess):
                    self._witnesses.dismiss((message.pid, message.incarnation))
                fds = () if table is None else (self._tables[table].fileno(),)
                self.send_to_link(self._monitor, message, fds)
            case LookThrough():
                self._look_through(output)
            case GoOn():
                self._carry_out(self._machine.go_on())
            case DropTable(group):
                del self._tables[group]
                self.release(f"{_TABLE}{group}")
            case AwaitExit(client, os_pid):
                self._await_exit(client, os_pid)
            case StopRack(reason):
                self.ends_rack = True
                self.stop(reason)
            case _:
                raise AssertionError(f"the Rack MMU wants {output}")

    def _look_through(self, asked: LookThrough) -> None:
        tables = {group: self._tables[group] for group in asked.slabs}  # they stay, though a group may end
        self._workers.submit(
            _LOOKS, partial(look_through, tables, asked), partial(self._looked_through, asked)
        )

    def _looked_through(self, asked: LookThrough, found: Found | Exception) -> None:
        if isinstance(found, Exception):  # out of memory, say: this request fails, the rack lives
            log.error("%s cannot look through its tables: %s", self.role, found)
            text = f"the Rack MMU cannot look through its tables: {str(found) or type(found).__name__}"
            self.reply(asked.peer, wire.Failed("memory", text))
        else:
            self._take(partial(self._machine.looked_through, asked, found))

    # --- deaths that are seen from here --------------------------------------------------------------------

    def _call_witness(self, enrolled: wire.ProcessEnrolled, link: Link) -> None:
        """Unless the process has ended meanwhile: then nothing would dismiss it any more."""
        if self._machine.is_running(enrolled.pid, enrolled.incarnation):
            self._witnesses.call((enrolled.pid, enrolled.incarnation), link.fds.pop())

    def _look_at_victim(self, peer: int, message: wire.Message) -> list[Output]:
        """Whether somebody that is to be stolen from has died is decided first, and written down in the same frame."""
        request = message.request if isinstance(message, wire.Once) else message
        if not isinstance(request, wire.Steal):
            return []
        outputs = []
        for group, key in self._machine.running(request.victim, peer):
            is_hinted = self._tables[group].is_broken(key[0])
            if self._witnesses.saw_the_end_of(key, WITNESS_PATIENCE if is_hinted else 0.0):
                outputs += self._hear_agent(wire.ProcessExited(*key))
            elif is_hinted:
                outputs += self._machine.monitor_message(wire.DeathHint(*key))
        return outputs

    def _open_table(self, group: int) -> Table:
        """The one that a run before had, or a new one, which is kept before its group is written down."""
        kept = self.kept.pop(f"{_TABLE}{group}", None)
        try:
            if kept is not None:
                self._tables[group] = Table.open(kept.fds[0])
                os.close(kept.fds.pop())
            else:
                assert not self._is_restoring, f"the table of group {group} has not been kept"
                table = Table.create(group)
                self.keep_now(f"{_TABLE}{group}", b"", [table.fileno()])
                self._tables[group] = table
        except OSError as error:
            raise MemoryError(f"no table for another group: {error.strerror or error}") from error
        return self._tables[group]

    def _await_exit(self, client: int, os_pid: int) -> None:
        try:
            pidfd = os.pidfd_open(os_pid)
        except ProcessLookupError:
            self._unwatched.pop(client, None)
            self._take(lambda: self._machine.absent_client_exited(client, time.monotonic()))
            return
        except OSError as error:  # out of descriptors, say: that tells nothing about the process
            if client not in self._unwatched:
                log.warning("%s cannot watch os pid %d yet: %s", self.role, os_pid, error.strerror or error)
            self._unwatched[client] = os_pid
            return
        self._unwatched.pop(client, None)
        self.watch(pidfd, partial(self._absent_exited, client, pidfd))

    def _absent_exited(self, client: int, pidfd: int) -> None:
        self.unwatch(pidfd)
        os.close(pidfd)
        self._take(lambda: self._machine.absent_client_exited(client, time.monotonic()))

    # --- the journal ---------------------------------------------------------------------------------------

    def _write_down(self) -> None:
        changes = self._machine.take_changes()
        self._journal.write(changes)
        if self._successor is not None:
            self._successor.write(changes)
        elif self._journal.is_long:
            self._successor = Journal.begin(self._machine.everything())
            self.keep(_JOURNAL, b"", [self._successor.fd], self._successor_is_kept)

    def _successor_is_kept(self, trouble: str) -> None:
        assert self._successor is not None
        if trouble:
            log.error("%s goes on with a long journal: %s", self.role, trouble)
            self._successor.close()
            self._journal.grows_on()
        else:
            self._journal.close()
            self._journal = self._successor
        self._successor = None
