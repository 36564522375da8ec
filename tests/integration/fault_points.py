"""Kills a daemon at every step that it carries out, once at each: what `test_fault_points.py` has racks run with.

Theory of operation. A *fault point* lies between two steps that can be told apart from outside: something was taken
in, sent, kept or released; a frame of the journal was written, or half of one; a table was changed; a file made,
filled, punched or cut; a process fenced. It is named by the kind of daemon, by what the daemon was busy with, by the
step, and by whether that was the first such step or a later one. In the rack's processes the functions that carry
steps out are replaced, before the daemons are forked, by ones that do the same and then look at the *aim*, a file. The
daemon that it names kills itself at each point at which none of its kind has died before, and writes that down first,
in a file too. So points need not be known beforehand: whoever runs a load until nobody dies any more has been at all
that the load has. What daemons and their users do natively between two of these steps is enumerated natively, see
tests/native/explorer.hpp.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

import actors
from bequest.runtime import agent, element_server, fencing, journal, loop, mmu_daemon, monitor, notices, post
from bequest.runtime.loop import Daemon
from bequest.runtime.slab_files import SlabFiles
from bequest.runtime.supervisor import Supervisor
from bequest.runtime.workers import Workers

AIM_BYTES = 64
CHANGES_OF_A_TABLE = frozenset({
    "admit", "mark_dead", "vacate", "add_slab", "add_slab_granted", "take_slab", "withdraw", "restore", "deliver_into",
    "free_away", "settle", "release", "recover", "steal", "name_heir", "watch", "fail_slab",
})  # fmt: skip


class FaultPoints:
    """Of one rack; the test's end and the daemons' share two files."""

    def __init__(self, place: Path) -> None:
        self._aim = os.open(place / "aim", os.O_RDWR | os.O_CREAT, 0o600)
        self._deaths = os.open(place / "deaths", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._busy_with = threading.local()
        self._daemon = self._kind = ""  # until one has been forked
        self._known: frozenset[str] = frozenset()

    # --- the test's end ----------------------------------------------------------------------------------------

    def aim(self, daemon: str, *, once: bool) -> None:
        """From now on it dies at points of its kind that are new, or at the next one only; "": nobody does."""
        os.pwrite(self._aim, f"{daemon} {'once' if once else 'again'}".encode().ljust(AIM_BYTES), 0)

    def deaths(self) -> list[str]:
        """The points at which daemons have died, in order."""
        return os.pread(self._deaths, os.fstat(self._deaths).st_size, 0).decode().splitlines()

    # --- in a daemon -------------------------------------------------------------------------------------------

    def begin(self, daemon: str, kind: str) -> None:
        self._daemon, self._kind = daemon, kind
        self._known = frozenset(self.deaths())
        self.turn_to("its start")

    def turn_to(self, task: str) -> None:
        """The steps that follow in this thread belong to that."""
        self._busy_with.task, self._busy_with.steps = task, Counter()

    def step(self, what: str) -> None:
        """It has been done."""
        if not self._daemon:
            return
        if not hasattr(self._busy_with, "task"):
            self.turn_to(threading.current_thread().name.rstrip("-0123456789"))
        self._busy_with.steps[what] += 1
        again = " again" if self._busy_with.steps[what] > 1 else ""
        point = f"{self._kind}, {self._busy_with.task}: {what}{again}"
        if point in self._known:
            return
        with self._lock:
            daemon, _, how = os.pread(self._aim, AIM_BYTES, 0).decode().strip().rpartition(" ")
            if daemon == self._daemon:
                if how == "once":
                    self.aim("", once=True)
                os.write(self._deaths, f"{point}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


def run_rack(connection: Connection, config: Any, place: str) -> None:
    """As `actors.run_rack`, with daemons that die where they are told to."""
    install(FaultPoints(Path(place)))
    post.SHORT_LIFE = 0.0  # type: ignore[misc]  # who dies at each of its points does so often
    actors.run_rack(connection, config)


def install(points: FaultPoints) -> None:
    become = Supervisor._become

    def become_one_of_ours(self: Supervisor, at: Any, control: Any) -> None:
        points.begin(at.name, at.kind)
        become(self, at, control)

    Supervisor._become = become_one_of_ours  # type: ignore[method-assign]
    _watch_sockets(points)
    _watch_tasks(points)
    _watch_journal(points)
    for name in ("_open", "_fill", "make", "punch", "discard", "lose", "copy"):
        _replace(SlabFiles, name, points, f"{name.strip('_')} a slab's file")
    for name in ("guard", "is_gone", "outlive"):
        _replace(agent, name, points, name)
    for rung, function in list(fencing._RUNGS.items()):
        fencing._RUNGS[rung] = _and_then(function, points, f"fenced: {rung}")
    _replace(fencing.Target, "close", points, "let go of a process")


def _and_then(function: Callable[..., Any], points: FaultPoints, what: str) -> Callable[..., Any]:
    def do(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        points.step(what)
        return result

    return do


def _replace(owner: Any, name: str, points: FaultPoints, what: str) -> None:
    setattr(owner, name, _and_then(getattr(owner, name), points, what))


def _watch_sockets(points: FaultPoints) -> None:
    receive, send = loop.receive_packet, loop.send_packet

    def receive_packet(*arguments: Any) -> Any:
        packet = receive(*arguments)
        points.turn_to(tag_of(packet.data) if packet.data else "the end of a connection")
        points.step("taken in")
        return packet

    def send_packet(connection: Any, data: bytes, *more: Any) -> None:
        send(connection, data, *more)
        points.step(f"sent {tag_of(data)}")

    loop.receive_packet, loop.send_packet = receive_packet, send_packet
    notices.send_packet = send_packet


def tag_of(data: bytes) -> str:
    """What kind of message it is; of a numbered one, what it asks for."""
    message = msgspec.msgpack.decode(data)
    tag: str = message.get("request", message)["type"]
    return tag


def _watch_tasks(points: FaultPoints) -> None:
    """What is begun by something else than a packet."""

    def turning(function: Callable[..., Any], task: str) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            points.turn_to(task)
            points.step("begun")
            return function(*arguments)

        return do

    for kind in (mmu_daemon.MmuDaemon, element_server.ElementServer, agent.Agent, monitor.Monitor):
        for name in ("tick", "link_restored", "link_broken", "peer_gone", "_process_ended", "_absent_exited"):
            if name in vars(kind):
                setattr(kind, name, turning(vars(kind)[name], name.strip("_").replace("_", " ")))
    Workers.collect = turning(Workers.collect, "done by a worker")  # type: ignore[method-assign]
    Daemon._admit = turning(Daemon._admit, "a client comes")  # type: ignore[method-assign]


def _watch_journal(points: FaultPoints) -> None:
    def pwrite(fd: int, data: bytes, at: int) -> int:
        half = os.pwrite(fd, data[: len(data) // 2], at)
        points.step("half of a frame in the journal")
        rest = os.pwrite(fd, data[half:], at + half)
        points.step("a frame in the journal")
        return half + rest

    journal.os = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)} | {"pwrite": pwrite})  # type: ignore[assignment]
    table = mmu_daemon.Table
    made = SimpleNamespace(
        create=lambda group: WatchedTable(table.create(group), points),
        open=lambda fd: WatchedTable(table.open(fd), points),
    )
    mmu_daemon.Table = made  # type: ignore[assignment, misc]


class WatchedTable:
    """A table of which each change is a step."""

    def __init__(self, table: Any, points: FaultPoints) -> None:
        self._table = table
        self._points = points
        points.step("a table made")

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._table, name)
        return _and_then(call, self._points, f"table: {name}") if name in CHANGES_OF_A_TABLE else call
