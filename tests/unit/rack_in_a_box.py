"""The Rack MMU's machine with fake tables, memory elements that obey at once (or are held), and no sockets."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from bequest.protocol.books import Change
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
)
from bequest.protocol.rack_mmu import RackMmu
from bequest.protocol.rack_state import ElementInfo, MmuConfig
from bequest.protocol.status_desk import look_through
from bequest.sim.fake_shard import FakeShard
from bequest.wire import messages as wire

MIB = 1 << 20
GIB = 1 << 30


def config(**changes: object) -> MmuConfig:
    values: dict[str, object] = {
        "name": "test",
        "uid": 1000,
        "elements": (ElementInfo(0, "dram0", "dram", GIB, "element-dram0.sock"),),
        "computes": ("host0", "host1"),
        "agent_paths": ("agent-host0.sock", "agent-host1.sock"),
        "orphan_keep": 60.0,
    }
    return MmuConfig(**(values | changes))  # type: ignore[arg-type]


def as_written(changes: list[Change]) -> list[Change]:
    """There and back again: what a journal gives back is plain data."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=list[Change])


class Box:
    def __init__(self, **changes: object) -> None:
        self.now = 100.0
        self.shards: dict[int, FakeShard] = {}
        self.config = config(**changes)
        self._fresh_bytes = random.Random(7).randbytes
        self.mmu = RackMmu(self.config, self._make_shard, self._fresh_bytes, self.now)
        self.replies: dict[int, list[wire.Message]] = {}
        self.to_agents: list[wire.Message] = []
        self.to_elements: list[wire.Message] = []
        self.notes: list[str] = []
        self.held: list[tuple[int, wire.Message]] | None = None  # what elements have yet to answer
        self.refusing: Callable[[wire.ReserveSlab], bool] = lambda message: False
        self.fences: list[wire.FenceProcess] = []
        self.fencing: Callable[[wire.FenceProcess], wire.Message | None] = lambda message: wire.ProcessFenced(
            message.job, "protected"
        )  # what agents answer; None: nothing yet
        self.stopped: str | None = None
        self.written: dict[str, dict[object, object]] = {}  # by book and key
        self.absent: dict[int, int] = {}  # clients that have not come back, and their os pids
        self._answers: list[tuple[int, wire.Message]] = []
        self._depth = 0
        self._last_peer = 0

    # --- acts ---------------------------------------------------------------------------------------------------

    def client(self, uid: int = 1000, os_pid: int | None = None) -> int:
        self._last_peer += 1
        self.replies[self._last_peer] = []
        self.do(self.mmu.client_opened(self._last_peer, uid, os_pid or 5000 + self._last_peer))
        return self._last_peer

    def ask(self, peer: int, message: wire.Message) -> wire.Message | None:
        """The reply, or None if it is still to come."""
        before = len(self.replies[peer])
        self.do(self.mmu.client_message(peer, message, self.now))
        return self.replies[peer][-1] if len(self.replies[peer]) > before else None

    def attach(self, name: str, secret: bytes | None = None, uid: int = 1000) -> tuple[int, wire.Attached]:
        peer = self.client(uid)
        reply = self.ask(peer, wire.Attach(name, secret))
        assert isinstance(reply, wire.Attached), reply
        self.do(self.mmu.agent_message(wire.ProcessEnrolled(reply.pid, reply.incarnation), self.now))
        return peer, reply

    def exit(self, attached: wire.Attached) -> None:
        self.do(self.mmu.agent_message(wire.ProcessExited(attached.pid, attached.incarnation), self.now))

    def agent(self, message: wire.Message) -> None:
        self.do(self.mmu.agent_message(message, self.now))

    def leave(self, peer: int) -> None:
        self.do(self.mmu.client_gone(peer, self.now))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.stopped is None:
            self.now = min(end, max(self.now + 0.001, self.mmu.next_deadline()))
            self.do(self.mmu.tick(self.now))

    def answer_held(self) -> None:
        held, self.held = self.held or [], None
        for element, message in held:
            self._obey(element, message)

    # --- views --------------------------------------------------------------------------------------------------

    def status(self, what: str) -> wire.Message:
        peer = self.client()
        reply = self.ask(peer, wire.Status(what))
        self.leave(peer)
        assert reply is not None
        return reply

    def processes(self) -> dict[str, str]:
        report = self.status("processes")
        assert isinstance(report, wire.ProcessList)
        return {process.name: process.state for process in report.processes}

    def used(self) -> int:
        report = self.status("elements")
        assert isinstance(report, wire.ElementList)
        return sum(element.used for element in report.elements)

    def check(self) -> None:
        report = self.status("audit")
        assert isinstance(report, wire.AuditReport)
        assert report.findings == []

    # --- within -------------------------------------------------------------------------------------------------

    def write_down(self) -> None:
        """As the daemon does before it carries out outputs; and what it wrote must be all that there is to write."""
        for change in as_written(self.mmu.take_changes()):
            rows = self.written.setdefault(change.book, {})
            if change.row is None:
                rows.pop(change.key, None)
            else:
                rows[change.key] = change.row
        self.compare_books()

    def compare_books(self) -> None:
        everything: dict[str, dict[object, object]] = {}
        for change in as_written(self.mmu.everything()):
            everything.setdefault(change.book, {})[change.key] = change.row
        written = {book: rows for book, rows in self.written.items() if rows}
        assert written == everything, "a row was changed in a way that its book did not note"

    def do(self, outputs: list[Output]) -> None:
        """Carries them out; elements answer when all of it, also what was put off, has been done."""
        self._depth += 1
        self._carry_out(outputs)
        self._depth -= 1
        while self._depth == 0 and self._answers:
            self.do(self.mmu.element_message(*self._answers.pop(0)))

    def _carry_out(self, outputs: list[Output]) -> None:
        self.write_down()
        for output in outputs:
            self._carry_out_one(output)

    def _carry_out_one(self, output: Output) -> None:
        match output:
            case Reply(peer, message):
                self.replies[peer].append(message)
            case ToAgent(_, message):
                self.to_agents.append(message)
                if isinstance(message, wire.FenceProcess):
                    self.fences.append(message)
                    if (answer := self.fencing(message)) is not None:
                        self.agent(answer)
            case Note(text):
                self.notes.append(text)
            case ToElement(element, message):
                self.to_elements.append(message)
                if self.held is not None:
                    self.held.append((element, message))
                else:
                    self._obey(element, message)
            case DropTable(group):
                del self.shards[group]
            case LookThrough() | GoOn():
                self._carry_out(self._what_comes_of(output))
            case AwaitExit(client, os_pid):
                self.absent[client] = os_pid
            case StopRack(reason):
                self.stopped = reason

    def _what_comes_of(self, output: LookThrough | GoOn) -> list[Output]:
        if isinstance(output, GoOn):
            return self.mmu.go_on()
        return self.mmu.looked_through(output, look_through(self.shards, output))

    def _obey(self, element: int, message: wire.Message) -> None:
        answer: wire.Message
        match message:
            case wire.ReserveSlab(slab) if self.refusing(message):
                answer = wire.SlabRefused(slab, "no memory")
            case wire.ReserveSlab(slab):
                answer = wire.SlabReserved(slab)
            case wire.RegroupSlab(slab):
                answer = wire.SlabRegrouped(slab)
            case wire.CopyPages(job):
                answer = wire.PagesCopied(job)
            case wire.PunchPages(job):
                answer = wire.PagesPunched(job)
            case _:
                return
        self._answers.append((element, answer))
        if self._depth == 0:
            self.do([])

    def _make_shard(self, group: int) -> FakeShard:
        self.shards[group] = FakeShard(group)
        return self.shards[group]
