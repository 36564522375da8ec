"""Who would be zombies: processes that write to their memory in every way there is, and go on when it was stolen.

A victim `begin`s: it takes regions and has *writers*, one thread each, store into them without end. It is stolen from
while they do. When it `finish`es, each writer must have been stopped by what it met at its next store, and the process
must be none the worse for it. Thieves `rob`: what they get they copy or overwrite at once, and `spoilt` tells whether
it has changed since by anybody's hand but theirs.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bequest as bq
import victims
from actors import DEADLINE, Seat

PAGE = 4096
PTRACE_CONT, PTRACE_LISTEN, PTRACE_O_TRACECLONE, WAIT_ALL = 7, 0x4208, 8, 0x40000000
PATTERN = 0xD7  # what a thief fills its loot with, if it does


@dataclass(frozen=True)
class Plan:
    """What a victim does."""

    regions: tuple[int, ...]  # bytes of each
    writers: tuple[tuple[str, int], ...]  # how, and into which region
    fifo: str  # what readers read from
    grant_to: str = ""  # who gets one more region, while it is stolen
    grant_after: float = 0.0


# --- victims: how they write ------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """``ended`` is what stopped it; empty while it goes on."""

    def __init__(self, seat: Seat, plan: Plan, how: str, region: bq.Region | None) -> None:
        super().__init__(name=f"writer ({how})", daemon=True)
        self.me, self.plan, self.how, self.region = seat.me, plan, how, region
        self.over: threading.Event = seat.kept["over"]
        self.has_begun = threading.Event()
        self.ended = ""

    def run(self) -> None:
        try:
            self.ended = WAYS[self.how](self)
        except bq.BequestError as error:
            self.ended = type(error).__name__
        except BaseException as error:
            self.ended = repr(error)
        self.has_begun.set()


def by_item(writer: Writer) -> str:
    with memoryview(writer.region) as view:
        while True:
            for at in range(0, len(view), 1000):
                view[at] = (view[at] + 1) & 0x7F
            writer.has_begun.set()
            time.sleep(0)


def by_numpy(writer: Writer) -> str:
    array = writer.region.array()
    while True:
        np.add(array, 1, out=array)
        writer.has_begun.set()


def by_memset(writer: Writer) -> str:
    """Native stores, without the GIL."""
    array = writer.region.array()
    address, value = array.ctypes.data, 0
    while True:
        value = (value + 1) & 0x7F
        ctypes.memset(address, value, len(array))
        writer.has_begun.set()
        array.item(0)  # lets the exception rise


def by_pread(writer: Writer) -> str:
    """The kernel stores; a page that it may not write to is an error of the call."""
    with open("/proc/self/exe", "rb") as file, memoryview(writer.region) as view:
        while True:
            try:
                os.preadv(file.fileno(), [view], 0)
            except OSError as error:
                return touch_until_told(view, error)
            writer.has_begun.set()


def by_read_in_flight(writer: Writer) -> str:
    """A system call that waits while its buffer is stolen."""
    with open(writer.plan.fifo, "rb+", buffering=0) as fifo, memoryview(writer.region) as view:
        view[0] = 1
        writer.has_begun.set()
        try:
            os.readv(fifo.fileno(), [view])
        except OSError as error:
            return touch_until_told(view, error)
        return touch_until_told(view)  # it fell into another writer's scratch memory


def touch_until_told(view: memoryview, error: OSError | None = None) -> str:
    """The exception may miss one touch: what falls into another thread's scratch memory is dropped without a word."""
    if error is not None and error.errno != errno.EFAULT:
        return repr(error)
    deadline = time.monotonic() + DEADLINE / 4
    while time.monotonic() < deadline:
        view[0] = 1
        time.sleep(0.0002)
    return "nothing"


def by_child(writer: Writer) -> str:
    """A child has no rack memory: its store ends it."""
    address = writer.region.address
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        time.sleep(writer.plan.grant_after)
        ctypes.memset(address, 0x55, PAGE)
        os._exit(0)
    writer.has_begun.set()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "the child died" if status == -signal.SIGSEGV else f"the child ended with {status}"


def by_churn(writer: Writer) -> str:
    """Takes memory and gives it back, in ever other sizes."""
    count = 0
    while not writer.over.is_set():
        count += 1
        with writer.me.alloc(PAGE * (1 + count % 7)) as region:
            region.array()[:] = 3
            for part in region.split(PAGE) if region.nbytes > PAGE else []:
                part.array()[0] = 4
                part.free()
        writer.has_begun.set()
        time.sleep(0.0002)
    return "went on"


def by_grant(writer: Writer) -> str:
    """Gives its region away while it is stolen: one of both is too late."""
    writer.has_begun.set()
    time.sleep(writer.plan.grant_after)
    writer.region.grant(writer.plan.grant_to, tag=b"race")
    return "granted"


WAYS: dict[str, Callable[[Writer], str]] = {
    "item": by_item,
    "numpy": by_numpy,
    "memset": by_memset,
    "pread": by_pread,
    "read in flight": by_read_in_flight,
    "child": by_child,
    "churn": by_churn,
    "grant": by_grant,
}
STOPPED_BY = {  # what each must have met when its memory was stolen
    "child": ("the child died",),
    "churn": ("went on", "MemoryRevoked"),
    "grant": ("granted", "MemoryRevoked"),
}


# --- victims: what they are told --------------------------------------------------------------------------------------


def attach_as_victim(seat: Seat, name: str, rung: str, secret: bytes) -> int:
    """``rung`` is how far its agent has to go to fence it: the gentler ways are taken from it."""
    from bequest.memory import connections

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    if rung != "protect":
        connections.open_fence = refuse_userfaultfd
    seat.me = seat.rack.attach(name, group=secret)
    if rung == "kill":
        be_debugged()
    return seat.me.id


def refuse_userfaultfd() -> int:
    raise PermissionError(errno.EPERM, "as a sandbox does")


def be_debugged() -> None:
    """By a child that has all threads of this process, and those to come, so that nobody else can trace any."""
    read_end, write_end = os.pipe()
    parent = os.getpid()
    victims.libc.prctl(victims.PR_SET_PTRACER, -1, 0, 0, 0)
    if os.fork() == 0:
        victims.libc.prctl(victims.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        options = ctypes.c_void_p(PTRACE_O_TRACECLONE)
        for tid in sorted(int(entry.name) for entry in Path(f"/proc/{parent}/task").iterdir()):
            assert victims.libc.ptrace(victims.PTRACE_SEIZE, tid, None, options) == 0
        os.write(write_end, b"x")
        while True:
            debug_on(*os.waitpid(-1, WAIT_ALL))
    assert os.read(read_end, 1) == b"x"


def debug_on(tid: int, status: int) -> None:
    """Lets a thread go on: with its signal, stopped as the process is, or from an event."""
    if not os.WIFSTOPPED(status):
        return
    number, event = os.WSTOPSIG(status), status >> 16
    if event == 128 and number in (signal.SIGSTOP, signal.SIGTSTP):
        victims.libc.ptrace(PTRACE_LISTEN, tid, None, None)
    else:
        victims.libc.ptrace(PTRACE_CONT, tid, None, ctypes.c_void_p(0 if event else number))


def begin(seat: Seat, plan: Plan) -> list[int]:
    """Where its regions are, once each writer has stored something."""
    seat.kept["over"] = threading.Event()
    regions = seat.kept["regions"] = [seat.me.alloc(nbytes) for nbytes in plan.regions]
    for region in regions:
        region.array()[:] = 1
    crew = seat.kept["crew"] = [Writer(seat, plan, how, regions[which]) for how, which in plan.writers]
    for writer in crew:
        writer.start()
    for writer in crew:
        assert writer.has_begun.wait(DEADLINE), writer.name
    return [region.address for region in regions]


def hang(seat: Seat, seconds: float) -> None:
    """With the GIL: no thread of it runs any Python."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def finish(seat: Seat) -> tuple[list[tuple[str, str]], list[int]]:
    """How each writer ended, and the regions that are still this process's own. Frees them, and goes on."""
    seat.kept["over"].set()
    ends = []
    for writer in seat.kept.pop("crew"):
        writer.join(DEADLINE / 2)
        ends.append((writer.how, writer.ended or "going on for ever"))
        writer.region = None
    kept = []
    for region in seat.kept.pop("regions"):
        if region.owned:
            kept.append(region.address)
            region.free()
    with seat.me.alloc(3 * PAGE) as another:
        another.array()[:] = 9
        assert np.unique(another.array()).tolist() == [9]
    return ends, kept


# --- thieves ----------------------------------------------------------------------------------------------------------


def rob(seat: Seat, victim: str, capability: bytes, fills: bool) -> tuple[str, list[tuple[int, int]]]:
    """How the victim was fenced, and the address and bytes of each region that this thief got."""
    try:
        estate = seat.me.steal(victim, capability)
    except (bq.UnknownProcess, bq.ProcessDead):  # others have had all that it left
        return "dead", []
    hold(seat, estate.regions, fills)
    return estate.how, [(region.address, region.nbytes) for region in estate]


def hold(seat: Seat, regions: list[bq.Region], fills: bool) -> None:
    for region in regions:
        array = region.array()
        if fills:
            array[:] = PATTERN
        seat.kept.setdefault("loot", []).append((region, array.copy()))


def receive(seat: Seat, address: int, timeout: float) -> bool:
    """The region that the victim granted while it was stolen from."""
    try:
        region = seat.me.accept(timeout)
    except bq.AcceptTimeout:
        return False
    assert (region.address, region.tag) == (address, b"race")
    hold(seat, [region], fills=True)
    return True


def spoilt(seat: Seat) -> list[str]:
    """What has been written to since it was this thief's."""
    found = []
    for region, copy in seat.kept.get("loot", []):
        wrong = np.flatnonzero(region.array() != copy)
        if len(wrong):
            first = int(wrong[0])
            now, then = int(region.array()[first]), int(copy[first])
            found.append(
                f"{len(wrong)} bytes of {region}, the first at {first:#x}: {now:#x} instead of {then:#x}"
            )
    return found


def let_go(seat: Seat) -> None:
    for region, _ in seat.kept.pop("loot", []):
        region.free()
