"""An operating-system process of the world: it runs a program, has pages open, can be stopped, resumed and killed.

A program is a generator; a process runs one for each of its threads. It yields a number of seconds to sleep, an `Ask`
to send a request and be given the answer, or a connection to be given what comes next over it. Between two yields
nothing else happens. A stopped process gets its turns when it is continued, however much has happened meanwhile; what
it had open it may still write to, and that is where zombies come from. It ends with its first thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bequest.limits import BEAT_INTERVAL, PAGE_BYTES, TABLE_VERSION, WIRE_VERSION
from bequest.protocol.address_plan import Run, without
from bequest.sim.connection import Answer, Connection
from bequest.sim.daemon import Daemon
from bequest.sim.file import SimFile
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World


class Ask(msgspec.Struct):
    connection: Connection
    message: wire.Message


Want = Ask | Connection | float
Program = Generator[Want, Answer | None, None]


class OpenRun(NamedTuple):
    start: int
    end: int
    file: SimFile
    page: int

    def part(self, run: Run) -> OpenRun:
        start, end = run
        return OpenRun(start, end, self.file, self.page + (start - self.start) // PAGE_BYTES)


class Revoked(Exception):
    """What the hardware says when a page is touched that is not open (any more)."""


class Protected(Exception):
    """What the hardware says when a page is stored to that is write-protected; here, that it is touched."""


class Failed(Exception):
    """What the hardware says when a page is touched whose memory has been lost."""


class OsProcess:
    def __init__(self, world: World, os_pid: int, name: str, uid: int) -> None:
        self.world = world
        self.os_pid = os_pid
        self.name = name
        self.uid = uid
        self.is_alive = True
        self.is_stopped = False
        self.was_cut_off = False
        self.has_exited = False  # and the kernel says so
        self.when_exited: list[Callable[[], None]] = []
        self._open: list[OpenRun] = []  # as far as they are not protected
        self._protected: list[Run] = []
        self.connections: list[Connection] = []
        self._threads: list[Program] = []
        self._held_up: list[tuple[Program, Answer | None]] = []  # what would go on, were it not stopped
        self._ran = 0.0  # seconds, until it last began to run
        self._since = world.events.now  # when that was

    def __repr__(self) -> str:
        return f"{self.name}[{self.os_pid}]"

    # --- its life --------------------------------------------------------------------------------------------

    def start(self, program: Program) -> None:
        """The first thread, or one more."""
        self._threads.append(program)
        self._go_on_soon(program, None)

    def stop(self) -> None:
        if not self.is_stopped:
            self._ran += self.world.events.now - self._since
        self.is_stopped = True

    def resume(self) -> None:
        self.is_stopped = False
        self._since = self.world.events.now
        held_up, self._held_up = self._held_up, []
        for program, answer in held_up:
            self._go_on_soon(program, answer)

    def beats(self) -> int:
        running = 0.0 if self.is_stopped or not self.is_alive else self.world.events.now - self._since
        return int((self._ran + running) / BEAT_INTERVAL)

    def kill(self) -> None:
        """SIGKILL, or the end of its program: no instruction of it runs from now on."""
        if not self.is_alive:
            return
        if not self.is_stopped:
            self._ran += self.world.events.now - self._since
        self.is_alive = False
        self._threads = []
        self._open.clear()
        self.world.process_ended(self)
        for connection in self.connections:
            self.world.events.after(self.world.delay(), connection.close)
        self.world.events.after(self.world.delay(), self._exited)

    def _exited(self) -> None:
        self.has_exited = True
        for tell in self.when_exited:
            tell()

    # --- its turns -------------------------------------------------------------------------------------------

    def _go_on_soon(self, program: Program, answer: Answer | None) -> None:
        self.world.events.after(self.world.delay(), lambda: self._go_on(program, answer))

    def _go_on(self, program: Program, answer: Answer | None) -> None:
        if not self.is_alive:
            return
        if self.is_stopped:
            self._held_up.append((program, answer))
            return
        try:
            wanted = program.send(answer)
        except StopIteration:
            if program is self._threads[0]:
                self.kill()
            return
        if isinstance(wanted, float):
            self.world.events.after(wanted, lambda: self._go_on(program, None))
        elif isinstance(wanted, Ask):
            if not wanted.connection.is_broken and not wanted.connection.is_closed:
                wanted.connection.send(wanted.message)
            wanted.connection.hear(lambda answer: self._go_on_soon(program, answer))
        else:
            wanted.hear(lambda answer: self._go_on_soon(program, answer))

    def connect(self, daemon: Daemon) -> Connection:
        connection = Connection(repr(self), self.uid, self.os_pid, daemon.wake)
        connection.send(wire.Hello(WIRE_VERSION, TABLE_VERSION))
        if daemon.is_dead:
            self.world.connect_later(daemon.name, connection)
        else:
            daemon.connect(connection)
        self.connections.append(connection)
        return connection

    # --- memory ----------------------------------------------------------------------------------------------

    @property
    def open_runs(self) -> list[OpenRun]:
        """What can be touched."""
        return [
            run.part(left) for run in self._open for left in without((run.start, run.end), self._protected)
        ]

    def open(self, start: int, end: int, file: SimFile, page: int) -> None:
        """From now on these addresses show the file, from that page of it; if they are protected, once they are not."""
        self.close(start, end)
        self._open.append(OpenRun(start, end, file, page))

    def close(self, start: int, end: int) -> None:
        """No access to these addresses succeeds until they are opened."""
        runs, self._open = self._open, []
        for run in runs:
            self._open += [run.part(left) for left in without((run.start, run.end), [(start, end)])]

    def close_all(self) -> None:
        self._open.clear()

    def protect(self, start: int, end: int) -> None:
        """No access to these addresses succeeds, whatever the process does, until that is lifted."""
        self._protected.append((start, end))

    def lift(self, start: int, end: int) -> None:
        """Whoever holds the process's userfaultfd may, and the process itself by mapping anew what lies there."""
        runs, self._protected = self._protected, []
        for run in runs:
            self._protected += without(run, [(start, end)])

    def store(self, address: int) -> None:
        file, page = self._page_at(address)
        self.world.stored(self, address, file, page)

    def load(self, address: int) -> int:
        file, page = self._page_at(address)
        return file.pages.get(page, 0)

    def _page_at(self, address: int) -> tuple[SimFile, int]:
        if any(start <= address < end for start, end in self._protected):
            raise Protected(f"{self!r} touched {address:#x}, which is write-protected")
        for run in self._open:
            if run.start <= address < run.end:
                page = run.page + (address - run.start) // PAGE_BYTES
                if page in run.file.lost:
                    raise Failed(f"{self!r} touched {address:#x}, whose memory is lost")
                return run.file, page
        raise Revoked(f"{self!r} touched {address:#x}, which is not open")
