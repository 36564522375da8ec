"""The whole rack in one seed: machines, processes, faults, a virtual clock (DESIGN D9).

A run has three phases. *Safety*: members act while processes are killed, stopped, resumed and cut off, daemons stall
and memory cannot be made. *Healed*: no more faults, everybody is continued, and members wind down: each must come to
its end, or the rack has lost a reply. *Rest*: time passes in an empty rack, which must then be as good as new.

One generator of random numbers decides everything, in the order of events, so that a run is replayed by its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

from bequest.limits import SWEEP_INTERVAL
from bequest.sim.agent import Agent
from bequest.sim.connection import Connection
from bequest.sim.daemon import Daemon, Link
from bequest.sim.element import Element
from bequest.sim.events import EventHeap
from bequest.sim.file import SimFile
from bequest.sim.library import Handle, Library
from bequest.sim.members import life
from bequest.sim.mmu import Mmu
from bequest.sim.monitor import Monitor
from bequest.sim.observer import Observer
from bequest.sim.options import UID, Options
from bequest.sim.os_process import OsProcess
from bequest.wire import messages as wire

MAILBOX = "letters"
_STALL = 0.05  # seconds, at most, that somebody's turn comes late
_WIND_DOWN_MAX = 60.0  # virtual seconds in which everybody must have come to the end


class Finding(Exception):
    """Something is not as it was promised."""


class World:
    def __init__(
        self,
        seed: int,
        observers: Sequence[Observer] = (),
        tell: Callable[[str], None] | None = None,
        options: Options | None = None,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.options = options or Options.drawn(self.random)
        self.config = self.options.rack()
        self.events = EventHeap()
        self._tellers = {event: tellers_of(event, observers) for event in vars(Observer) if event[0] != "_"}
        self.is_healed = False
        self.healed_at = 0.0
        self.is_winding_down = False
        self.processes: dict[int, OsProcess] = {}  # by os pid, the dead too
        self.members = [f"m{number}" for number in range(self.options.members)]
        self.names = [*self.members, MAILBOX]
        self.stores = 0
        self._tell = tell
        self._digest = sha256()
        self._grants = 0
        self._queued: dict[str, list[Connection]] = {}
        self.mmu = Mmu(self)
        self.elements = {info.path: Element(self, info) for info in self.config.elements}
        self.agents = {path: Agent(self, path) for path in self.config.agent_paths}
        self.monitor = Monitor(self) if self.options.has_monitor else None
        self.observe("begun", self)

    # --- the run ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises `Finding`, or whatever a machine raised, if anything is wrong."""
        self._link_all()
        for name in self.members:
            self._start_member(name)
        self._plan_fault(self.options.kill_every, self._kill_one)
        self._plan_fault(self.options.stop_every, self._stop_one)
        self._plan_fault(self.options.hang_up_every, self._hang_one_up)
        self._plan_fault(self.options.daemon_every, self._light_a_fuse)
        self.events.run(self.options.safety_seconds)
        self._heal()
        self.events.run(self.events.now + self.options.safety_seconds)
        self.is_winding_down = True
        if not self.events.run(self.events.now + _WIND_DOWN_MAX, enough=lambda: not self.living()):
            raise Finding(f"{self.living()} have not come to their end: a request was never answered")
        self.events.run(self.events.now + self.config.orphan_keep + 5 * SWEEP_INTERVAL)
        self.observe("ended", self)

    def living(self) -> list[OsProcess]:
        return [process for process in self.processes.values() if process.is_alive]

    def element(self, number: int) -> Element:
        return next(element for element in self.elements.values() if element.info.id == number)

    @property
    def digest(self) -> str:
        """Of the whole trace, if somebody listens to it."""
        return self._digest.hexdigest()

    # --- chance ----------------------------------------------------------------------------------------------

    def delay(self) -> float:
        """Until somebody gets its turn."""
        stalls = not self.is_healed and self.random.random() < self.options.stall_chance
        return (
            self.random.uniform(0, _STALL) if stalls else self.random.expovariate(1 / self.options.slowness)
        )

    def is_unlucky(self, chance: float) -> bool:
        return not self.is_healed and self.random.random() < chance

    def fresh_bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)

    # --- members and what befalls them -----------------------------------------------------------------------

    def _start_member(self, name: str) -> None:
        os_pid = 1000 + len(self.processes)
        uid = UID + self.members.index(name) % self.options.groups
        process = self.processes[os_pid] = OsProcess(self, os_pid, name, uid)
        process.start(life(self, process, None))

    def process_ended(self, process: OsProcess) -> None:
        self.trace("world", repr(process), "ends")
        self.observe("process_ended", process)
        if not self.is_winding_down:
            self.events.after(self.random.uniform(0, 0.05), lambda: self._start_again(process.name))

    def _start_again(self, name: str) -> None:
        if not self.is_winding_down:
            self._start_member(name)

    def _plan_fault(self, every: float, strike: Callable[[OsProcess], None]) -> None:
        def fall() -> None:
            if self.is_healed:
                return
            if living := self.living():
                strike(self.random.choice(living))
            self._plan_fault(every, strike)

        self.events.after(self.random.expovariate(1 / every), fall)

    def _kill_one(self, process: OsProcess) -> None:
        self.trace("fault", repr(process), "killed")
        process.kill()

    def _stop_one(self, process: OsProcess) -> None:
        self.trace("fault", repr(process), "stopped")
        process.stop()

        def resume() -> None:
            if process.is_alive and process.is_stopped:
                self.trace("fault", repr(process), "continued")
                process.resume()

        self.events.after(self.random.choice((0.001, 0.03, 0.3, 1.0)) * self.random.random(), resume)

    def _hang_one_up(self, process: OsProcess) -> None:
        """One of its connections ends, and it does not know."""
        if process.connections:
            connection = self.random.choice(process.connections)
            self.trace("fault", repr(process), "is cut off")
            process.was_cut_off = True
            connection.break_off()
            connection.close()

    # --- daemons ---------------------------------------------------------------------------------------------

    def daemon(self, name: str) -> Daemon:
        return next(daemon for daemon in self.daemons() if daemon.name == name)

    @property
    def daemons_die(self) -> bool:
        return self.options.daemon_every < self.options.safety_seconds * 100

    def daemons(self) -> list[Daemon]:
        monitors = [] if self.monitor is None else [self.monitor]
        return [self.mmu, *self.elements.values(), *self.agents.values(), *monitors]

    def neighbours(self, daemon: Daemon) -> list[Daemon]:
        """The Rack MMU and the rack monitor know everybody; elements and agents know the two of them."""
        others = [other for other in self.daemons() if other.name != daemon.name]
        hubs = ("mmu", "monitor")
        return [other for other in others if daemon.name in hubs or other.name in hubs]

    def _link_all(self) -> None:
        daemons = self.daemons()
        for daemon in daemons:
            for other in self.neighbours(daemon):
                if daemons.index(daemon) < daemons.index(other):
                    self._link(daemon, other)

    def _light_a_fuse(self, _: OsProcess) -> None:
        """Some daemon dies after some more outputs, whatever the others are doing."""
        daemon = self.random.choice(self.daemons())
        if not daemon.is_dead:
            daemon.fuse = self.random.randrange(6)

    def daemon_died(self, daemon: Daemon) -> None:
        self.events.after(self.random.uniform(0.001, 0.05), lambda: self._start_anew(daemon))

    def _start_anew(self, daemon: Daemon) -> None:
        """As the supervisor does: with what it kept, the same listening socket, and fresh links."""
        successor = daemon.successor()
        if isinstance(successor, Mmu):
            self.mmu = successor
        elif isinstance(successor, Element):
            self.elements[daemon.name] = successor
        elif isinstance(successor, Agent):
            self.agents[daemon.name] = successor
        elif isinstance(successor, Monitor):
            self.monitor = successor
        for connection in self._queued.pop(daemon.name, []):
            successor.connect(connection)
        for other in self.neighbours(successor):
            if not other.is_dead:
                self._link(successor, other)

    def _link(self, one: Daemon, other: Daemon) -> None:
        link = Link(one, other)
        one.hand(link)
        other.hand(link)

    def connect_later(self, name: str, connection: Connection) -> None:
        """The socket listens though its daemon is dead: whoever connects waits in its queue."""
        self._queued.setdefault(name, []).append(connection)

    def _heal(self) -> None:
        self.trace("world", "all", "healed")
        self.is_healed = True
        self.healed_at = self.events.now
        for daemon in self.daemons():
            daemon.fuse = None
        for process in self.living():
            if process.is_stopped:
                process.resume()

    # --- what is told ----------------------------------------------------------------------------------------

    def trace(self, to: str, sender: str, what: object) -> None:
        if self._tell is not None:
            line = f"{self.events.now:.6f} {sender} -> {to}: {what}"
            self._digest.update(line.encode())
            self._tell(line)

    def find(self, text: str) -> None:
        raise Finding(text)

    def observe(self, event: str, *what: object) -> None:
        for tell in self._tellers[event]:
            tell(*what)

    def turn_ended(self, daemon: Daemon) -> None:
        self.observe("turn_ended", daemon)

    def attached(self, process: OsProcess, library: Library) -> None:
        self.observe("attached", process, library)

    def detaching(self, process: OsProcess, library: Library) -> None:
        self.observe("detaching", process, library)

    def allocated(self, process: OsProcess, library: Library, handle: Handle) -> None:
        self.trace("world", repr(process), f"allocated {handle}")
        self.observe("allocated", process, library, handle)

    def opened(self, process: OsProcess, library: Library, handle: Handle) -> None:
        self.observe("opened", process, library, handle)

    def granting(self, process: OsProcess, library: Library, handle: Handle) -> bytes:
        self._grants += 1
        self.trace("world", repr(process), f"grants {handle} as {self._grants}")
        self.observe("granting", process, library, handle, self._grants)
        return str(self._grants).encode()

    def received(self, process: OsProcess, library: Library, handle: Handle, tag: bytes) -> None:
        self.trace("world", repr(process), f"received {handle} as {int(tag)}")
        self.observe("received", process, library, handle, int(tag))

    def subscribed(self, process: OsProcess, library: Library) -> None:
        self.observe("subscribed", process, library)

    def told(self, process: OsProcess, library: Library, notice: wire.Message) -> None:
        self.observe("told", process, library, notice)

    def suspected(self, process: OsProcess) -> None:
        self.observe("suspected", process)

    def stole(self, process: OsProcess, library: Library, stolen: wire.Stolen) -> None:
        self.trace("world", repr(process), f"has {stolen}")
        self.observe("stole", process, library, stolen)

    def lost(self, process: OsProcess, library: Library, handle: Handle) -> None:
        self.trace("world", repr(process), f"lost {handle}")
        self.observe("lost", process, library, handle)

    def stored(self, process: OsProcess, address: int, file: SimFile, page: int) -> None:
        self.stores += 1
        self.observe("stored", process, address, file, page, self.stores)
        file.pages[page] = self.stores

    def loaded(self, process: OsProcess, library: Library, address: int, stamp: int) -> None:
        self.observe("loaded", process, library, address, stamp)


def tellers_of(event: str, observers: Sequence[Observer]) -> list[Callable[..., None]]:
    """The methods of those observers that want to know."""
    wanting = (
        observer for observer in observers if getattr(type(observer), event) is not vars(Observer)[event]
    )
    return [getattr(observer, event) for observer in wanting]
