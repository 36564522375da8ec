"""The rack's daemons without sockets: the machines of `bequest.protocol`, driven as `bequest.runtime` drives them.

What can go wrong between real daemons is kept, and nothing else. Links are ordered and lose nothing while both ends
live. A daemon gets its turn late, and then does all that has come meanwhile, links first, of each client one packet:
what one daemon told another before it answered a client is known before the client acts on it. A client that is owed a
reply is not read, so that its end is noticed only after it was answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from bequest.limits import MIB, PAGE_BYTES
from bequest.protocol.books import Change
from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.memory_element import MemoryElement
from bequest.protocol.outputs import (
    AwaitExit,
    CloseFile,
    Confirm,
    CopyFile,
    DropTable,
    Fence,
    GoOn,
    Guard,
    KeepFile,
    KeptFile,
    LoseFile,
    MakeFile,
    Note,
    Output,
    ProcessKey,
    PunchFile,
    Push,
    Reply,
    StopRack,
    ToAgent,
    ToElement,
    ToMmu,
    ToMonitor,
    Unwatch,
    Watch,
    WatchedProcess,
)
from bequest.protocol.process_table import Kind
from bequest.protocol.rack_mmu import RackMmu
from bequest.protocol.rack_state import ElementInfo
from bequest.sim.connection import Connection
from bequest.sim.file import SimFile
from bequest.sim.shared_table import SharedTable
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.os_process import OsProcess
    from bequest.sim.world import World


_LARGE = (
    4 * PAGE_BYTES
)  # copies beyond this have a lane of their own, as do real ones beyond the pool's classes


class Died(Exception):
    """SIGKILL, between two outputs."""


class Daemon:
    """What all of them share: turns, links, clients."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.links: dict[str, deque[wire.Message | None]] = {}  # None: the link is new from here on
        self.peers: dict[int, Connection] = {}
        self._last_peer = 0
        self._woken = False
        self._others: list[Callable[[], None]] = []  # pidfds and workers that have something
        self._next_tick = float("inf")
        self.is_dead = False
        self.fuse: int | None = None  # it dies after so many more outputs
        self._cut = {"": True}  # links that are not there (yet), by the other's name

    # --- dying -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Before each output: it may be the last moment."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Died

    def die(self) -> None:
        self.world.trace("fault", self.name, "killed")
        self.is_dead = True
        for connection in self.peers.values():
            connection.break_off()
        for other in self.world.neighbours(self):
            other._cut[self.name] = True
        self.world.daemon_died(self)

    def relinked(self, sender: str) -> None:
        """The supervisor hands over a new link. What came over the old one may have been read, or not."""
        waiting = self.links.setdefault(sender, deque())
        if self.world.random.random() < 0.5:
            waiting.clear()
        self._cut[sender] = True
        waiting.append(None)
        self.wake()

    def say(self, other: Daemon, message: wire.Message) -> None:
        if not other.is_dead and other.name not in self._cut:
            other.tell(self.name, message)

    # --- what comes ------------------------------------------------------------------------------------------

    def connect(self, connection: Connection) -> None:
        self._last_peer += 1
        connection.peer = self._last_peer
        self.peers[connection.peer] = connection
        connection.wake_daemon = self.wake
        self.wake()

    def tell(self, sender: str, message: wire.Message) -> None:
        self.links.setdefault(sender, deque()).append(message)
        self.wake()

    def call(self, what: Callable[[], None]) -> None:
        self._others.append(what)
        self.wake()

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.world.events.after(self.world.delay(), self._turn)

    # --- a turn ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._woken = False
        if self.is_dead:
            return
        try:
            self._take_turn()
        except Died:
            self.die()
        self.world.turn_ended(self)

    def _take_turn(self) -> None:
        peers = [connection for connection in self.peers.values() if connection.is_readable]
        self.world.random.shuffle(peers)
        others, self._others = self._others, []
        for sender in list(self.links):
            while self.links[sender]:
                message = self.links[sender].popleft()
                self.world.trace(self.name, sender, message or "(linked)")
                if message is None:
                    self._cut.pop(sender, None)
                    self.link_restored(sender)
                else:
                    self.link_message(sender, message)
        for connection in peers:
            self._read(connection)
        for call in others:
            call()
        self.tick(self.world.events.now)
        self._plan_tick()
        if self._others or any(self.links.values()) or any(peer.is_readable for peer in self.peers.values()):
            self.wake()

    def _read(self, connection: Connection) -> None:
        message = connection.read()
        if message is None:
            del self.peers[connection.peer]
            if connection.has_greeted:
                self.world.trace(self.name, connection.who, "(gone)")
                self.peer_gone(connection)
            return
        if not connection.has_greeted:
            connection.has_greeted = True
            self.peer_opened(connection)
            return
        connection.is_owed_reply = True
        self.world.trace(self.name, connection.who, message)
        self.peer_message(connection, message)

    def _plan_tick(self) -> None:
        deadline = self.next_deadline()
        if deadline < self._next_tick or self._next_tick <= self.world.events.now:
            self._next_tick = deadline
            if deadline != float("inf"):
                self.world.events.after(max(0.0, deadline - self.world.events.now), self.wake)

    def reply(self, peer: int, message: wire.Message, file: object = None) -> None:
        connection = self.peers.get(peer)
        if connection is not None:
            self.world.trace(connection.who, self.name, message)
            connection.answer(message, file)

    # --- for the subclass ------------------------------------------------------------------------------------

    def peer_opened(self, connection: Connection) -> None: ...

    def peer_gone(self, connection: Connection) -> None: ...

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        raise AssertionError(f"{self.name} serves no clients")

    def link_message(self, sender: str, message: wire.Message) -> None:
        raise AssertionError(f"{self.name} has no links")

    def link_restored(self, sender: str) -> None: ...

    def successor(self) -> Daemon:
        """What the supervisor starts in its place, with what it kept."""
        raise AssertionError(f"nothing follows {self.name}")

    def tick(self, now: float) -> None: ...

    def next_deadline(self) -> float:
        return float("inf")


class Mmu(Daemon):
    def __init__(self, world: World, before: Mmu | None = None) -> None:
        super().__init__(world, "mmu")
        self._cut |= dict.fromkeys(
            (*world.config.agent_paths, *(e.path for e in world.config.elements)), True
        )
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
        changes = msgspec.msgpack.encode(self.machine.take_changes())
        for change in msgspec.msgpack.decode(changes, type=list[Change]):
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
                    self.say(self.world.element(element), message)
                case ToMonitor():
                    pass  # there is none in this world: it decides nothing
                case ToAgent(compute, message):
                    self.say(self.world.agents[f"agent-{compute}"], message)
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


class Element(Daemon):
    """Its workers take their time; jobs of one lane are done in order."""

    def __init__(self, world: World, info: ElementInfo, before: Element | None = None) -> None:
        super().__init__(world, info.path)
        self._cut["mmu"] = True
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
        self.machine.linked()

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        self._carry_out(self.machine.client_message(connection.peer, message))

    def link_message(self, sender: str, message: wire.Message) -> None:
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
                    self.say(self.world.mmu, message)
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
                    self.files[file].punch(offset, nbytes)
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


class Agent(Daemon):
    def __init__(self, world: World, name: str, before: Agent | None = None) -> None:
        super().__init__(world, name)
        self._cut["mmu"] = True
        self.safe: dict[ProcessKey, WatchedProcess] = {} if before is None else before.safe
        self.machine = ComputeElement(self.safe.values())
        self._watched: dict[ProcessKey, int] = {}  # os pids
        for key, process in self.safe.items():
            self._register(key, process.os_pid)

    def successor(self) -> Agent:
        return Agent(self.world, self.name, self)

    def link_restored(self, sender: str) -> None:
        self._carry_out(self.machine.linked())

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        self._carry_out(
            self.machine.client_message(connection.peer, connection.os_pid, message, self.world.events.now)
        )

    def peer_gone(self, connection: Connection) -> None:
        self._carry_out(self.machine.client_gone(connection.peer))

    def link_message(self, sender: str, message: wire.Message) -> None:
        self._carry_out(self.machine.mmu_message(message, self.world.events.now))

    def tick(self, now: float) -> None:
        self._carry_out(self.machine.tick(now))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.step()
            match output:
                case Reply(peer, message):
                    self.reply(peer, message)
                case ToMmu(message):
                    self.say(self.world.mmu, message)
                case Watch(process):
                    self._watch((process.pid, process.incarnation), process)
                case Unwatch(key):
                    self._watched.pop(key, None)
                    self.safe.pop(key, None)
                case Push(peer, notice):
                    if peer in self.peers:
                        self.world.trace(self.peers[peer].who, self.name, notice)
                case Confirm(key):
                    self.world.events.after(self.world.delay(), partial(self._confirm, key))
                case Fence():
                    self.world.events.after(self.world.delay(), partial(self._fence, output))
                case Guard(job, key):
                    self.call(partial(self._guarded, job, key))
                case _:
                    raise AssertionError(f"the agent wants {output}")

    def _watch(self, key: ProcessKey, process: WatchedProcess) -> None:
        if self.world.processes[process.os_pid].has_exited:
            self._carry_out(self.machine.exited(key))
            return
        self._register(key, process.os_pid)

        def keep() -> None:
            if key in self._watched and not self.is_dead:
                self.safe[key] = process
                self.call(lambda: self._carry_out(self.machine.watched(key)))

        self.world.events.after(self.world.delay(), keep)

    def _register(self, key: ProcessKey, os_pid: int) -> None:
        """A pidfd tells at once, also of an end long ago."""
        self._watched[key] = os_pid
        process = self.world.processes[os_pid]
        tell = partial(self.call, partial(self._exited, key))
        if process.has_exited:
            tell()
        else:
            process.when_exited.append(tell)

    def _exited(self, key: ProcessKey) -> None:
        if key in self._watched:
            self._carry_out(self.machine.exited(key))

    def _confirm(self, key: ProcessKey) -> None:
        if key in self._watched and not self.world.processes[self._watched[key]].is_alive:
            self.call(partial(self._exited, key))

    def _fence(self, order: Fence) -> None:
        """A worker's job: the ladder of `bequest.runtime.fencing`, where each rung may turn out not to hold."""
        os_pid = self._watched.get(order.process)
        process = None if os_pid is None else self.world.processes[os_pid]
        reaches = ("protect", "ptrace", "kill")[: ("protect", "ptrace", "kill").index(order.reach) + 1]
        if process is None or not process.is_alive:
            how = "dead"
        else:
            holding = [rung for rung in reaches if rung == "kill" or not self.world.is_unlucky(0.2)]
            if not holding:
                self.call(lambda: self._carry_out(self.machine.fence_failed(order.job, "no rung holds")))
                return
            how = {"protect": "protected", "ptrace": "ptraced", "kill": "killed"}[holding[0]]
            self._keep_off(process, how, order.ranges)
        self.call(lambda: self._carry_out(self.machine.fenced(order.job, how)))

    def _keep_off(self, process: OsProcess, how: str, ranges: list[tuple[int, int]]) -> None:
        self.world.trace("fence", repr(process), how)
        if how == "killed":
            process.kill()
        for address, nbytes in ranges:
            process.close(address, address + nbytes)

    def _guarded(self, job: int, key: ProcessKey) -> None:
        self._carry_out(self.machine.guarded(job, key, False))
