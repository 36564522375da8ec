"""What users do while daemons die at each of their points: all that a rack is asked for, round after round.

Every user checks what it gets: contents, addresses, names, and that each request succeeds although who serves it was
killed in the middle of it.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

import actors
import bequest as bq
from bequest.wire import messages as wire

PAGE, MIB = 4096, 1 << 20
PATIENCE = 30.0
KILLED, STOPPED, SUSPECTED, LEFT = range(4)  # what becomes of a mortal; the last is not stolen from


def fill(region: bq.Region) -> None:
    region.array("u8")[:] = region.address


def check(region: bq.Region) -> None:
    words = region.array("u8")
    assert (words == region.address).all(), f"{region} holds {np.unique(words)[:4]}, not its address"


class User:
    def __init__(self, seat: actors.Seat, stranger: str, rounds: Path) -> None:
        self.rack, self.me, self.stranger = seat.rack, seat.me, stranger
        self.rounds = rounds
        self.counter = os.open(rounds, os.O_WRONLY)
        self.number = 0
        self.mortals = start_mortals(str(seat.rack.directory))

    def run(self) -> int:
        """Until the file that counts its rounds has gone."""
        acts: list[Callable[[], None]] = [
            self.allocate, self.visit, self.give_across, self.use_mailbox, self.found_group, self.publish, self.mourn,
            self.lose_memory, self.ask,
        ]  # fmt: skip
        while self.rounds.exists():
            for act in acts:
                try:
                    act()
                except BaseException as error:
                    error.add_note(f"in {act.__name__}, round {self.number}")
                    raise
            self.number += 1
            os.pwrite(self.counter, str(self.number).encode(), 0)
        self.mortals.close()
        os.close(self.counter)
        return self.number

    def allocate(self) -> None:
        regions = [self.me.alloc(size) for size in (PAGE, 3 * MIB, 5 * MIB)]
        for region in regions:
            fill(region)
        for region in regions:
            check(region)
            region.free()

    def visit(self) -> None:
        """Attaches and detaches under one name, which must be free again each time."""
        with self.rack.attach(f"visitor of {self.me.name}") as visitor:
            region = self.me.alloc(2 * PAGE)
            fill(region)
            region.grant(visitor.name)
            region = visitor.accept(PATIENCE)
            check(region)
            region.free()
            visitor.alloc(MIB)  # what is left is freed

    def give_across(self) -> None:
        """A whole slab, then a part of one, to another group and back."""
        for nbytes in (2 * MIB, 3 * PAGE):
            region = self.me.alloc(nbytes)
            fill(region)
            address = region.address
            region.grant(self.stranger, timeout=PATIENCE)
            region = self.me.accept(PATIENCE)
            assert region.address == address
            check(region)
            region.free()

    def use_mailbox(self) -> None:
        ask = self.me._links.mmu.request
        opened, _ = ask(wire.OpenMailbox(f"box of {self.me.name}", create=True))
        assert isinstance(opened, wire.MailboxOpened)
        assert self.me._send(opened.id, opened.incarnation, b"letter", 8) == 0
        (letter,) = self.me._accept(opened.id, 1, 10**9)
        assert letter.tag == b"letter"
        assert isinstance(ask(wire.CloseMailbox(opened.id))[0], wire.Done)

    def found_group(self) -> None:
        with bq.connect(str(self.rack.directory)) as other:
            group = other.create_group(f"group {self.number} of {self.me.name}")
            with other.attach(f"founder of {self.me.name}", group=group) as founder:
                region = founder.alloc(PAGE)
                fill(region)
                check(region)

    def publish(self) -> None:
        region = self.me.alloc(PAGE)
        path = f"/{self.me.name}/region"
        self.me.publish(path, region)
        assert self.me.lookup(path).address == region.address
        assert [entry.path for entry in self.me.list(f"/{self.me.name}")] == [path]
        self.me.unpublish(path)
        region.free()

    def mourn(self) -> None:
        """A process dies, or hangs: who stands by for it hears of it, and its memory and names come to who steals."""
        name, fate = f"mortal {self.number} of {self.me.name}", self.number % 4
        self.mortals.send(name.encode())
        os_pid = int(self.mortals.recv(64))
        heard: queue.SimpleQueue[object] = queue.SimpleQueue()
        standby = self.me.standby(for_=name, then=heard.put, on_suspicion=heard.put)
        os.kill(os_pid, signal.SIGKILL if fate in (KILLED, LEFT) else signal.SIGSTOP)
        if fate != STOPPED:
            heard.get(timeout=PATIENCE)
        if fate == SUSPECTED:
            os.kill(os_pid, signal.SIGCONT)
        if fate != LEFT:
            estate = self.me.steal(name)
            assert sorted(region.nbytes for region in estate.regions) == [3 * PAGE, 3 * MIB], estate
            for region in estate.regions:
                check(region)
                region.free()
        standby.cancel()
        if fate in (STOPPED, SUSPECTED):
            os.kill(os_pid, signal.SIGKILL)

    def lose_memory(self) -> None:
        region = self.me.alloc(4 * PAGE)
        fill(region)
        home = next(slab for slab in self.slabs() if 0 <= region.address - slab.address < slab.pages * PAGE)
        actors.until(lambda: self.has_lost(home.element, region.address), "the loss of a page")
        try:
            region.array("u8")[0] = 1
        except bq.MemoryFailure:
            region.free()
        else:
            raise AssertionError(f"{region} has not failed")

    def has_lost(self, element: str, address: int) -> bool:
        """Not while somebody of the group is attaching, who cannot be guarded yet."""
        try:
            self.rack.request(wire.BreakMemory(element, address, PAGE))
        except bq.FenceFailed:
            return False
        return True

    def slabs(self) -> list[wire.SlabStatus]:
        found: list[wire.SlabStatus] = []
        cursor: int | None = 0
        while cursor is not None:
            page = self.rack.request(wire.Status("slabs", cursor))
            assert isinstance(page, wire.SlabList)
            found += page.slabs
            cursor = page.next_cursor
        return found

    def ask(self) -> None:
        for what in ("rack", "elements", "processes"):
            self.rack.request(wire.Status(what))


def use(seat: actors.Seat, stranger: str, rounds: str) -> int:
    """How many rounds there were."""
    return User(seat, stranger, Path(rounds)).run()


def take_across(seat: actors.Seat, sender: str) -> int:
    """Grants back whatever comes until a message does; how many that were."""
    count = 0
    while True:
        region = seat.me.accept(None)
        if region.nbytes == 0:
            return count
        check(region)
        region.grant(sender, timeout=PATIENCE)
        count += 1


# --- mortals --------------------------------------------------------------------------------------------------


def start_mortals(directory: str) -> socket.socket:
    """A process that forks one for each name it is sent; that attaches, takes memory, and answers with its pid."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        mine.close()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while name := theirs.recv(256):
            if os.fork() == 0:
                live(theirs, directory, name.decode())
        os._exit(0)
    theirs.close()
    return mine


def live(line: socket.socket, directory: str, name: str) -> None:
    me = bq.connect(directory).attach(name)
    regions = [me.alloc(3 * PAGE), me.alloc(3 * MIB)]
    for region in regions:
        fill(region)
    me.publish(f"/{name}", regions[1])
    line.send(str(os.getpid()).encode())
    end = select.poll()
    end.register(line, 0)  # and hears of its being closed
    end.poll()
    os._exit(0)
