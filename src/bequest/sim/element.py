"""A memory element of the world: its machine, the files that it makes, and workers that take their time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bequest.limits import MIB, PAGE_BYTES
from bequest.protocol.memory_element import MemoryElement
from bequest.protocol.outputs import (
    CloseFile,
    CopyFile,
    KeepFile,
    KeptFile,
    LoseFile,
    MakeFile,
    Note,
    Output,
    PunchFile,
    Reply,
    ToMmu,
)
from bequest.protocol.rack_state import ElementInfo
from bequest.sim.connection import Connection
from bequest.sim.daemon import Daemon
from bequest.sim.file import SimFile
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World

_LARGE = 4 * PAGE_BYTES  # copies beyond this have a lane of their own, as real ones beyond the pool's classes


class Element(Daemon):
    """Its workers take their time; jobs of one lane are done in order."""

    def __init__(self, world: World, info: ElementInfo, before: Element | None = None) -> None:
        super().__init__(world, info.path)
        self.info = info
        self.safe: dict[int, KeptFile] = {} if before is None else before.safe
        self.files: dict[int, SimFile] = (
            {} if before is None else {n: file for n, file in before.files.items() if n in self.safe}
        )
        self.machine = MemoryElement(info.size, world.events.now, self.safe)
        self._lanes = {
            "slabs": 0.0,
            "large": 0.0,
            "pool": 0.0,
        }  # when the last job of the lane will have been done

    def successor(self) -> Element:
        return Element(self.world, self.info, self)

    def link_restored(self, sender: str) -> None:
        if sender == "mmu":
            self.machine.linked()

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        self._carry_out(self.machine.client_message(connection.peer, message))

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
                case Reply(peer, message, file=file):
                    self.reply(peer, message, None if file is None else self.files[file])
                case ToMmu(message):
                    self.say("mmu", message)
                case MakeFile(file, nbytes, _, urgent):
                    self._submit("slabs" if urgent else "pool", nbytes, self._maker(file, nbytes))
                case KeepFile(file, about):
                    self.world.events.after(self.world.delay(), self._keeper(file, about))
                case CloseFile(file):
                    closing = self.files.pop(file)
                    self.safe.pop(file, None)
                    self._submit("slabs", closing.nbytes, closing.close)
                case PunchFile():
                    self._submit("slabs", output.nbytes, self._puncher(output))
                case LoseFile(file, run):
                    offset, nbytes = run or (0, self.files[file].nbytes)
                    self.files[file].lose(offset, nbytes)
                case CopyFile():
                    lane = "large" if output.nbytes > _LARGE else "slabs"
                    self._submit(lane, output.nbytes, self._copier(output))
                case Note(text):
                    self.world.trace("log", self.name, text)
                case _:
                    raise AssertionError(f"the memory element wants {output}")

    def _submit(self, lane: str, nbytes: int, job: Callable[[], None]) -> None:
        now = self.world.events.now
        self._lanes[lane] = max(now, self._lanes[lane]) + self.world.delay() * (1 + nbytes / MIB)
        self.world.events.after(self._lanes[lane] - now, job)

    def _maker(self, file: int, nbytes: int) -> Callable[[], None]:
        def make() -> None:
            if self.world.is_unlucky(self.world.options.element_trouble):
                self.call(
                    lambda: self._carry_out(self.machine.file_failed(file, "no room", self.world.events.now))
                )
                return
            made = SimFile(self.name, file, nbytes)
            self.call(lambda: self._made(made))

        return make

    def _made(self, file: SimFile) -> None:
        self.files[file.number] = file
        self._carry_out(self.machine.file_made(file.number, 0, self.world.events.now))

    def _puncher(self, punch: PunchFile) -> Callable[[], None]:
        file = self.files[punch.file]

        def work() -> None:
            if self.is_dead:
                return
            file.punch(punch.offset, punch.nbytes)
            self.call(lambda: self._carry_out(self.machine.punch_done(punch.job, self.world.events.now)))

        return work

    def _keeper(self, file: int, about: KeptFile) -> Callable[[], None]:
        def keep() -> None:
            if file in self.files and not self.is_dead:
                self.safe[file] = about
                self.call(lambda: self._carry_out(self.machine.file_kept(file, about.slab, "")))

        return keep

    def _copier(self, copy: CopyFile) -> Callable[[], None]:
        source, target = self.files[copy.source], self.files[copy.target]

        def work() -> None:
            if self.is_dead:
                return
            if self.world.is_unlucky(self.world.options.element_trouble):
                self.call(
                    lambda: self._carry_out(
                        self.machine.copy_failed(copy.job, "no luck", self.world.events.now)
                    )
                )
                return
            source.copy(copy.source_offset, target, copy.target_offset, copy.nbytes)
            self.call(lambda: self._carry_out(self.machine.copy_done(copy.job, self.world.events.now)))

        return work
