"""Processes to be fenced: they have a slab mapped as attached processes do, and do what they are told with it.

A victim lives without a rack, so that nothing of the library mends or hides what a fence does to it: a store that
does not get through kills it, and that is how it is seen.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors import DEADLINE, Nursery
from bequest import _core

MIB = 1 << 20
SLAB = _core.WINDOW_BASE + (1 << _core.PROCESS_SPACE_BITS)  # where process 1 allocates
NONE, READ, WRITE = 0, 1, 2
SHARED, PRIVATE, FIXED, ANONYMOUS, NORESERVE, NOREPLACE = 0x1, 0x2, 0x10, 0x20, 0x4000, 0x100000
CLONE_VM = 0x100
PR_SET_PDEATHSIG, PR_SET_PTRACER = 1, 0x59616D61
PTRACE_SEIZE = 0x4206
MADV_REMOVE = 9

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.memset.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def map_slab(fd: int, nbytes: int, protection: int = READ | WRITE, at: int = SLAB) -> None:
    assert libc.mmap(at, nbytes, protection, SHARED | FIXED, fd, 0) == at


# --- within the victim -----------------------------------------------------------------------------------------------


def live(connection: Connection, nbytes: int) -> None:
    """Gets the slab's file, gives its fence, and calls functions of this module until the other end closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line = socket.socket(fileno=os.dup(connection.fileno()))
    _, (slab,), _, _ = socket.recv_fds(line, 1, 1)
    flags = PRIVATE | ANONYMOUS | NORESERVE | NOREPLACE
    window = libc.mmap(_core.WINDOW_BASE, 1 << _core.WINDOW_BITS, NONE, flags, -1, 0)
    assert window == _core.WINDOW_BASE
    map_slab(slab, nbytes)
    fence = _core.open_fence()
    socket.send_fds(line, [b"x"], [fence])
    os.close(fence)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(function(*arguments))


def write_without_end(offset: int, threads: int, chunk: int) -> None:
    """Each thread into a chunk of its own, with another value each time."""

    def write(address: int) -> None:
        value = 0
        while True:
            value += 1
            libc.memset(address, value, chunk)

    for number in range(threads):
        threading.Thread(target=write, args=(SLAB + offset + number * chunk,), daemon=True).start()


def store(offset: int, value: int = 7) -> int:
    ctypes.c_ubyte.from_address(SLAB + offset).value = value
    return load(offset)


def load(offset: int) -> int:
    return ctypes.c_ubyte.from_address(SLAB + offset).value


def touch(nbytes: int) -> None:
    for offset in range(0, nbytes, 4096):
        store(offset)


def protect(nbytes: int, protection: int) -> int:
    result: int = libc.mprotect(SLAB, nbytes, protection)
    return result


def unmap(offset: int, nbytes: int) -> None:
    assert libc.munmap(SLAB + offset, nbytes) == 0


def map_anew_without_end(slab_path: str, offset: int, nbytes: int) -> None:
    """As the library does with memory that it has lost and gets again."""
    fd = os.open(slab_path, os.O_RDWR)

    def remap() -> None:
        while True:
            libc.munmap(SLAB + offset, nbytes)
            libc.mmap(SLAB + offset, nbytes, READ | WRITE, SHARED | FIXED, fd, offset)

    threading.Thread(target=remap, daemon=True).start()


def read_into(fd_path: str, offset: int, nbytes: int) -> tuple[int, int]:
    """read(2) of a named pipe into the slab: result and errno."""
    fd = os.open(fd_path, os.O_RDWR)
    result = libc.read(fd, SLAB + offset, nbytes)
    return result, ctypes.get_errno()


def leave_a_sharer() -> int:
    """A child that shares the address space, as a child of vfork does until its exec; its pid."""
    stack = libc.mmap(None, MIB, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
    child: int = libc.clone(
        ctypes.cast(libc.pause, ctypes.c_void_p), stack + MIB - 64, CLONE_VM | signal.SIGCHLD, None
    )
    assert child > 0
    return child


def compute_and_sleep(rounds: int) -> tuple[int, int, int]:
    """A digest that comes out right only if nobody meddles with registers; system calls cut short; signals handled."""
    signals = 0

    def count(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGUSR1, count)
    signal.siginterrupt(signal.SIGUSR1, False)
    digest, cut_short = 1, 0
    read_end, write_end = os.pipe()
    for _ in range(rounds):
        for step in range(2000):
            digest = (digest * 6364136223846793005 + step) % (1 << 64)
        writer = threading.Timer(0.001, os.write, (write_end, b"x"))
        writer.start()
        byte = ctypes.c_char()
        cut_short += (
            libc.read(read_end, ctypes.addressof(byte), 1) != 1
        )  # a system call in which it is stopped
        writer.join()
        time.sleep(0.0005)
    return digest, cut_short, signals


def count_signals() -> None:
    def count(number: int, frame: object) -> None:
        _kept.append(number)

    signal.signal(signal.SIGUSR1, count)


def signals_counted() -> int:
    return _kept.count(signal.SIGUSR1)


def digest_of(rounds: int) -> int:
    digest = 1
    for _ in range(rounds):
        for step in range(2000):
            digest = (digest * 6364136223846793005 + step) % (1 << 64)
    return digest


def enrol(path: str, ticket: bytes, with_fence: bool) -> str:
    """As the library does; the connection stays open."""
    from bequest.memory.connections import enrol as hand_over
    from bequest.runtime.transport import Channel
    from bequest.wire import messages as wire

    channel = Channel.connect(Path(path))
    if with_fence:
        hand_over(channel, ticket)
    else:
        channel.request(wire.Enrol(ticket))
    _kept.append(channel)
    return "enrolled"


def be_traced_by_a_child() -> None:
    """A debugger that was there first, so that nobody else can trace it."""
    read_end, write_end = os.pipe()
    parent = os.getpid()
    libc.prctl(PR_SET_PTRACER, -1, 0, 0, 0)
    if os.fork() == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        seized = libc.ptrace(PTRACE_SEIZE, parent, None, None) == 0
        os.write(write_end, bytes([seized]))
        signal.pause()
    assert os.read(read_end, 1) == b"\x01"


def punch(offset: int, nbytes: int) -> None:
    """As a memory element does."""
    assert libc.madvise(SLAB + offset, nbytes, MADV_REMOVE) == 0


_kept: list[Any] = []


# --- outside of it ---------------------------------------------------------------------------------------------------


class Victim:
    """The test's hold on one."""

    def __init__(self, nursery: Nursery, slab: int) -> None:
        self._nursery = nursery
        nbytes = os.fstat(slab).st_size
        self.pid, self._connection = nursery.fork(live, {}, nbytes)
        with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            socket.send_fds(line, [b"x"], [slab])
            _, (self.fence,), _, _ = socket.recv_fds(line, 1, 1)
        self.pidfd = os.pidfd_open(self.pid)
        self._status: int | None = None

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._connection.send((function, arguments))

    def result(self, timeout: float = DEADLINE) -> Any:
        assert self._connection.poll(timeout), "the victim has not answered"
        return self._connection.recv()

    def has_answered(self) -> bool:
        return self._connection.poll()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start(function, *arguments)
        return self.result()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)
        while self.state() != "T":
            time.sleep(0.0001)

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def wait(self, timeout: float = DEADLINE) -> int | None:
        """Its exit code, minus the signal that killed it, or None if it lives on."""
        if self._status is None:
            self._status = self._nursery.wait(self.pid, timeout)
        return self._status

    def close(self) -> None:
        if self._connection.closed:
            return
        self._connection.close()
        if self._status is None:
            self.signal(signal.SIGKILL)
            assert self.wait() is not None
        os.close(self.pidfd)
        os.close(self.fence)
