"""A rack in a box whose Rack MMU is killed at a step, and comes back: what it wrote down, and the tables, are left.

A step is a call of a table that changes it, a writing down of changes, or the carrying out of one output: between any
two of them a process can be killed. Memory elements and agents are real enough to be told things twice, to have missed
others, and to have said what nobody heard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bequest.protocol.books import Change
from bequest.protocol.outputs import Output, ToAgent, ToElement
from bequest.protocol.rack_mmu import RackMmu
from bequest.sim.fake_shard import FakeShard
from bequest.wire import messages as wire
from rack_in_a_box import Box, as_written

CHANGES_OF_A_TABLE = frozenset({
    "admit", "mark_dead", "vacate", "add_slab", "add_slab_granted", "take_slab", "withdraw", "restore", "deliver_into",
    "free_away", "settle", "release", "recover", "steal", "name_heir", "watch", "fail_slab",
})  # fmt: skip


class Killed(BaseException):
    """The Rack MMU ends here."""


class WatchedShard:
    """A table that tells of each change."""

    def __init__(self, shard: FakeShard, step: Callable[[str], None]) -> None:
        self._shard = shard
        self._step = step

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._shard, name)
        if name not in CHANGES_OF_A_TABLE:
            setattr(self, name, call)  # asked for once: a restart looks at each life that there may be
            return call

        def watched(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            self._step(f"table: {name}" if result != [] else f"table: {name} nothing")
            return result

        return watched


class Element:
    """A memory element: what it holds, for which group, and what it was told that it need not hold any more."""

    def __init__(self, refuses: Callable[[wire.ReserveSlab], bool]) -> None:
        self.slabs: dict[int, tuple[int, int]] = {}  # -> (group, bytes)
        self.groups: dict[int, None] = {}
        self.failed: dict[int, wire.MemoryFailed] = {}  # by slab: what has failed of it
        self._refuses = refuses
        self._announced: tuple[dict[int, None], dict[int, None]] | None = None

    def linked(self) -> None:
        self._announced = ({}, {})

    def told(self, message: wire.Message) -> wire.Message | None:
        match message:
            case wire.AdmitGroup(group):
                self.groups[group] = None
                if self._announced is not None:
                    self._announced[0][group] = None
            case wire.ForgetGroup(group):
                self.groups.pop(group, None)
            case wire.ReserveSlab(slab, group, nbytes):
                if slab not in self.slabs and self._refuses(message):
                    return wire.SlabRefused(slab, "no memory")
                self._hold(slab, group, nbytes)
                return wire.SlabReserved(slab)
            case wire.AdoptSlab(slab, group, nbytes, _, known):
                assert slab in self.slabs, f"slab {slab} has been lost"
                self._hold(slab, group, nbytes)
                failed = self.failed.get(slab)
                if failed is not None and (failed.offset, failed.nbytes) not in known:
                    return failed
            case wire.RetireSlab(slab):
                self.slabs.pop(slab, None)
            case wire.RegroupSlab(slab, group):
                self._hold(slab, group, self.slabs[slab][1])
                return wire.SlabRegrouped(slab)
            case wire.CopyPages(job, source, _, target):
                assert source in self.slabs and target in self.slabs
                return wire.PagesCopied(job)
            case wire.PunchPages(job, slab):
                assert slab in self.slabs
                return wire.PagesPunched(job)
            case wire.AnnouncementEnds():
                self._announcement_ends()
        return None

    def fail(self, failed: wire.MemoryFailed) -> None:
        self.failed[failed.slab] = failed

    def _hold(self, slab: int, group: int, nbytes: int) -> None:
        self.slabs[slab] = (group, nbytes)
        if self._announced is not None:
            self._announced[1][slab] = None

    def _announcement_ends(self) -> None:
        assert self._announced is not None
        groups, slabs = self._announced
        self.groups = {group: None for group in self.groups if group in groups}
        self.slabs = {slab: held for slab, held in self.slabs.items() if slab in slabs}
        self._announced = None


class Agents:
    """All of them: who is enrolled, lost or has exited, until the Rack MMU forgets."""

    def __init__(self) -> None:
        self.processes: dict[tuple[int, int], str] = {}
        self._announced: dict[tuple[int, int], None] = {}
        self.fenced: list[tuple[int, list[tuple[int, int]]]] = []  # after how many steps, and which ranges
        self.steps: list[str] = []
        self._calls: dict[int, wire.CallContacts] = {}  # that the Rack MMU has yet to answer

    def says(self, call: wire.CallContacts) -> None:
        self._calls[call.number] = call

    def linked(self) -> list[wire.Message]:
        said: list[wire.Message] = [*self._calls.values()]
        for key, state in self.processes.items():
            if state != "expected":
                said.append(wire.ProcessEnrolled(*key))
            if state == "lost":
                said.append(wire.ProcessLost(*key))
            if state == "exited":
                said.append(wire.ProcessExited(*key))
        self._announced = {}
        return said

    def told(self, message: wire.Message) -> wire.Message | None:
        match message:
            case wire.FenceProcess(job, _, _, _, ranges):
                self.fenced.append((len(self.steps), ranges))
                return wire.ProcessFenced(job, "protected")
            case wire.ExpectProcess(pid, incarnation):
                self._announced[pid, incarnation] = None
                self.processes.setdefault((pid, incarnation), "expected")
            case wire.ForgetProcess(pid, incarnation):
                self.processes.pop((pid, incarnation), None)
            case wire.ContactsCalled(number):
                self._calls.pop(number, None)
        return None


class KillableBox(Box):
    def __init__(self, **changes: object) -> None:
        self.steps: list[str] = []
        self._fenced: list[wire.Message] = []  # answers of agents that are on their way
        self.kill_at: int | None = None  # before this many more steps are done; None: never
        super().__init__(**changes)
        self.refuses: Callable[[wire.ReserveSlab], bool] = lambda message: False
        self.elements = {
            element.id: Element(lambda message: self.refuses(message)) for element in self.config.elements
        }
        self.agents = Agents()
        self.agents.steps = self.steps

    def step(self, what: str) -> None:
        self.steps.append(what)
        if self.kill_at is not None:
            self.kill_at -= 1
            if self.kill_at == 0:
                raise Killed(what)

    def until_killed(self, act: Callable[[], object], kill_at: int) -> str | None:
        """Does it, and is killed at that step of it: at which, or None if it has fewer."""
        self.kill_at = kill_at
        try:
            act()
        except Killed as killed:
            return str(killed)
        finally:
            self.kill_at = None
        return None

    def restart(self) -> None:
        """From what was written down; a table that is in no book is dropped; elements and agents are linked anew."""
        self._answers.clear()
        self._fenced.clear()
        self._depth = 0
        rows = [Change(book, key, row) for book, rows in self.written.items() for key, row in rows.items()]
        self.shards = {group: self.shards[group] for group in self.written.get("groups", {})}  # type: ignore[index]
        self._are_linked = False
        self.mmu, outputs = RackMmu.restore(
            self.config, self._make_shard, self._fresh_bytes, as_written(rows), self.now
        )
        self.do(outputs)
        self._are_linked = True
        for number, element in self.elements.items():
            element.linked()
            self.do(self.mmu.element_linked(number))
        for compute in self.config.computes:
            self.do(self.mmu.agent_linked(compute))
        for message in self.agents.linked():
            self.do(self.mmu.agent_message(message, self.now))

    _are_linked = True

    def do(self, outputs: list[Output]) -> None:
        """And agents answer when all of it has been done."""
        super().do(outputs)
        while self._depth == 0 and self._fenced:
            super().do(self.mmu.agent_message(self._fenced.pop(0), self.now))

    # --- as the box, but in steps ---------------------------------------------------------------------------------

    def _carry_out(self, outputs: list[Output]) -> None:
        self.write_down()
        self.step("written down")
        for output in outputs:
            match output:
                case ToElement(element, message):
                    if self._are_linked:
                        self.to_elements.append(message)
                        answer = self.elements[element].told(message)
                        if answer is not None:
                            self._answers.append((element, answer))
                case ToAgent(_, message):
                    if self._are_linked:
                        self.to_agents.append(message)
                        fenced = self.agents.told(message)
                        if fenced is not None:
                            self._fenced.append(fenced)
                case _:
                    super()._carry_out_one(output)
            self.step(f"output: {type(output).__name__}")

    def _make_shard(self, group: int) -> Any:
        if group not in self.shards:
            super()._make_shard(group)
            self.step("table: made")
        return WatchedShard(self.shards[group], self.step)

    def attach(self, name: str, secret: bytes | None = None, uid: int = 1000) -> tuple[int, wire.Attached]:
        peer, attached = super().attach(name, secret, uid)
        self.agents.processes[attached.pid, attached.incarnation] = "enrolled"
        return peer, attached

    def exit(self, attached: wire.Attached) -> None:
        self.agents.processes[attached.pid, attached.incarnation] = "exited"
        super().exit(attached)
