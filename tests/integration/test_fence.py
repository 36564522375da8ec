"""Fences: after one has closed no store of the victim arrives, whatever runs in it and however it goes on.

The victims are processes without a rack (see victims.py), fenced through the native calls that agents use; what
an agent makes of them is in test_agent.py.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import soaking
import victims
from actors import Nursery, until
from bequest import _core
from victims import MIB, SLAB, Victim

SLAB_BYTES = 8 * MIB
SMALL, HUGE, ABSENT = (
    0,
    2 * MIB,
    4 * MIB,
)  # offsets in the slab: 4 KiB pages, a 2 MiB page, pages not touched yet
PAGES = pytest.mark.parametrize("offset", [SMALL, HUGE, ABSENT], ids=["small", "huge", "absent"])
TRIALS = soaking.size(80, 2000)

Close = Callable[[Victim, int, int], None]


def protect(victim: Victim, offset: int, nbytes: int) -> None:
    _core.write_protect(victim.fence, victim.pid, [(SLAB + offset, nbytes)])


def lift(victim: Victim, offset: int, nbytes: int) -> None:
    _core.lift_protection(victim.fence, victim.pid, [(SLAB + offset, nbytes)])


def trace(victim: Victim, offset: int, nbytes: int) -> None:
    try:
        _core.ptrace_close(victim.pid, victim.pidfd, [(SLAB + offset, nbytes)], 5.0)
    except (
        ProcessLookupError
    ):  # another thread ran into it, and that was the end, before this one could go on
        assert _core.wait_until_gone(victim.fence, 10)


FENCES = pytest.mark.parametrize(
    ("close", "death"), [(protect, signal.SIGBUS), (trace, signal.SIGSEGV)], ids=["userfaultfd", "ptrace"]
)


class Slab:
    """A slab's file, and its pages as others see them."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("slab", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SLAB_BYTES)
        _core.warm(self.fd, SMALL, 2 * MIB, False)
        _core.warm(self.fd, HUGE, 2 * MIB, True)
        self.pages = mmap.mmap(self.fd, SLAB_BYTES)


@pytest.fixture
def slab() -> Iterator[Slab]:
    one = Slab()
    yield one
    one.pages.close()
    os.close(one.fd)


@pytest.fixture
def new_victim(nursery: Nursery, slab: Slab) -> Iterator[Callable[[], Victim]]:
    made: list[Victim] = []

    def make() -> Victim:
        made.append(Victim(nursery, slab.fd))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def victim(new_victim: Callable[[], Victim]) -> Victim:
    return new_victim()


def has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


# --- no store arrives --------------------------------------------------------------------------------------------


@FENCES
@PAGES
def test_a_store_faults(victim: Victim, slab: Slab, close: Close, death: int, offset: int) -> None:
    assert victim.call(victims.store, offset, 5) == 5
    close(victim, offset, 2 * MIB)
    victim.start(victims.store, offset + 4096, 9)
    assert victim.wait() == -death
    assert (slab.pages[offset], slab.pages[offset + 4096]) == (5, 0)


@FENCES
def test_what_lies_beside_goes_on(victim: Victim, slab: Slab, close: Close, death: int) -> None:
    close(victim, SMALL + 4096, 4096)
    for offset in (SMALL, SMALL + 8192, HUGE, ABSENT):
        assert victim.call(victims.store, offset, 5) == 5
    victim.start(victims.store, SMALL + 4096)
    assert victim.wait() == -death


@FENCES
@PAGES
def test_a_system_call_in_flight_fails(
    victim: Victim, slab: Slab, tmp_path: Path, close: Close, death: int, offset: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    victim.start(victims.read_into, str(fifo), offset, 5)
    until(lambda: waits_in_read(victim), "the read")
    close(victim, offset, 2 * MIB)
    with fifo.open("wb", buffering=0) as pipe:
        pipe.write(b"later")
    assert victim.result() == (-1, errno.EFAULT)
    assert slab.pages[offset : offset + 5] == bytes(5)


def waits_in_read(victim: Victim) -> bool:
    return Path(f"/proc/{victim.pid}/wchan").read_text() in ("pipe_read", "anon_pipe_read")


@PAGES
def test_mprotect_does_not_lift_a_write_protection(victim: Victim, slab: Slab, offset: int) -> None:
    protect(victim, offset, 2 * MIB)
    for protection in (victims.NONE, victims.READ, victims.READ | victims.WRITE):
        assert victim.call(victims.protect, SLAB_BYTES, protection) == 0
    victim.start(victims.store, offset)
    assert victim.wait() == -signal.SIGBUS
    assert slab.pages[offset] == 0


def test_a_closed_page_that_is_opened_again_stays_protected(victim: Victim, slab: Slab) -> None:
    victim.call(victims.protect, SLAB_BYTES, victims.NONE)
    protect(victim, SMALL, SLAB_BYTES)
    victim.call(victims.protect, SLAB_BYTES, victims.READ | victims.WRITE)
    victim.start(victims.store, HUGE)
    assert victim.wait() == -signal.SIGBUS


@pytest.mark.soak
@pytest.mark.timeout(soaking.timeout(1200))
@FENCES
def test_stop_fence_resume_no_store_arrives(
    new_victim: Callable[[], Victim],
    slab: Slab,
    close: Close,
    death: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Without a library that mends anything. Half of the victims are fenced while they run, threads and all."""
    record_property("trials", TRIALS)
    for trial in range(TRIALS):
        victim = new_victim()
        offset = random.choice((SMALL, HUGE, ABSENT))
        victim.call(victims.write_without_end, offset, 2, 64 * 1024)
        until(lambda offset=offset, before=slab.pages[offset]: slab.pages[offset] != before, "a store")
        if trial % 2:
            victim.stop()
        close(victim, offset, 2 * MIB)
        found = slab.pages[offset : offset + 2 * MIB]
        victim.signal(signal.SIGCONT)
        assert victim.wait() == -death
        assert slab.pages[offset : offset + 2 * MIB] == found, f"a store arrived in trial {trial}"
        victim.close()


# --- what there is to fence ----------------------------------------------------------------------------------------


@FENCES
def test_gaps_in_the_mappings_are_passed_over(victim: Victim, slab: Slab, close: Close, death: int) -> None:
    victim.call(victims.unmap, MIB, MIB)
    victim.call(victims.unmap, SLAB_BYTES, MIB)
    close(victim, SMALL, SLAB_BYTES + 2 * MIB)  # two gaps, and what is reserved but not mapped
    close(victim, MIB, MIB)  # nothing but a gap
    victim.start(victims.store, HUGE)
    assert victim.wait() == -death


def test_a_process_that_maps_and_unmaps_can_be_write_protected(victim: Victim, slab: Slab) -> None:
    """What has just been found may not be there any more; what is mapped later is another mapping's business."""
    victim.call(victims.map_anew_without_end, f"/proc/{os.getpid()}/fd/{slab.fd}", MIB, 64 * 1024)
    for _ in range(8000):
        protect(victim, MIB, 64 * 1024)
    protect(victim, 0, 4096)
    victim.start(victims.store, 0)
    assert victim.wait() == -signal.SIGBUS


@pytest.mark.parametrize("offset", [SMALL, HUGE], ids=["small", "huge"])
def test_a_protection_that_is_lifted_is_as_if_it_had_not_been(
    victim: Victim, slab: Slab, offset: int
) -> None:
    """What lies beside stays protected, and what was never protected or never mapped is in nobody's way."""
    victim.call(victims.unmap, 6 * MIB, MIB)
    protect(victim, offset, 2 * MIB)
    lift(victim, offset, MIB)
    assert victim.call(victims.store, offset, 5) == 5
    lift(victim, 6 * MIB, 2 * MIB)
    victim.start(victims.store, offset + MIB)
    assert victim.wait() == -signal.SIGBUS
    lift(victim, 0, SLAB_BYTES)  # nobody is left


def test_what_mprotect_has_closed_stays_so_when_a_protection_is_lifted(victim: Victim, slab: Slab) -> None:
    protect(victim, SMALL, 2 * MIB)
    victim.call(victims.protect, SLAB_BYTES, victims.NONE)
    lift(victim, SMALL, 2 * MIB)
    victim.start(victims.store, SMALL)
    assert victim.wait() == -signal.SIGSEGV


def test_a_guard_outlives_the_lifting_of_a_fence(victim: Victim, slab: Slab) -> None:
    _core.guard_missing(victim.fence, victim.pid, [(SLAB, SLAB_BYTES)])
    protect(victim, SMALL, 2 * MIB)
    lift(victim, SMALL, 2 * MIB)
    slab.pages.madvise(mmap.MADV_REMOVE, SMALL, 4096)
    assert victim.call(victims.load, SMALL + 4096) == 0
    victim.start(victims.load, SMALL)
    assert victim.wait() == -signal.SIGBUS


def test_memory_that_cannot_be_write_protected_is_told(nursery: Nursery, tmp_path: Path) -> None:
    """A memory element of kind file lies on a disk's file system; then there remains ptrace."""
    with (tmp_path / "slab").open("wb+") as file:
        file.truncate(SLAB_BYTES)
        if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
            pytest.skip("temporary files are in memory here")
        victim = Victim(nursery, file.fileno())
        with pytest.raises(OSError, match="write-protecting"):
            protect(victim, SMALL, SLAB_BYTES)
        trace(victim, SMALL, SLAB_BYTES)
        victim.start(victims.store, SMALL)
        assert victim.wait() == -signal.SIGSEGV
        victim.close()


@pytest.mark.parametrize("range", [(0, 4096), (SLAB, 0), (SLAB + 1, 4096), (SLAB, 100), (SLAB, 1 << 60)])
def test_only_whole_pages_of_the_window_are_fenced(victim: Victim, range: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no run of pages"):
        _core.write_protect(victim.fence, victim.pid, [range])


def test_a_guard_does_not_lift_a_fence(victim: Victim, slab: Slab) -> None:
    protect(victim, SMALL, 2 * MIB)
    _core.guard_missing(victim.fence, victim.pid, [(SLAB, SLAB_BYTES)])
    victim.start(victims.store, SMALL)
    assert victim.wait() == -signal.SIGBUS


@PAGES
def test_pages_that_are_taken_out_of_a_guarded_file_fault(victim: Victim, slab: Slab, offset: int) -> None:
    assert victim.call(victims.store, offset, 5) == 5
    _core.guard_missing(victim.fence, victim.pid, [(SLAB + offset, 2 * MIB)])
    assert victim.call(victims.store, offset, 6) == 6  # nothing has gone yet
    punch(slab, offset)
    victim.start(victims.load, offset)
    assert victim.wait() == -signal.SIGBUS


def test_without_a_guard_lost_memory_would_read_as_zeros(victim: Victim, slab: Slab) -> None:
    assert victim.call(victims.store, SMALL, 5) == 5
    punch(slab, SMALL)
    assert victim.call(victims.load, SMALL) == 0


def test_a_fence_outlives_what_becomes_of_the_memory(victim: Victim, slab: Slab) -> None:
    """Stolen memory is freed, given back, made fresh and given to others: the one from whom it was stolen stays out."""
    protect(victim, SMALL, SLAB_BYTES)
    for offset in (SMALL, HUGE, ABSENT):
        punch(slab, offset)
    slab.pages[:] = bytes([3]) * SLAB_BYTES
    _core.warm(slab.fd, 0, SLAB_BYTES, True)
    victim.start(victims.store, HUGE + 4096)
    assert victim.wait() == -signal.SIGBUS
    assert slab.pages[HUGE + 4096] == 3


def punch(slab: Slab, offset: int) -> None:
    keep_size, punch_hole = 1, 2
    length = victims.ctypes.c_long(2 * MIB)
    assert victims.libc.fallocate(slab.fd, keep_size | punch_hole, victims.ctypes.c_long(offset), length) == 0


# --- proof of death ------------------------------------------------------------------------------------------------


def test_a_process_is_gone_when_it_was_killed_and_not_when_it_is_stopped(victim: Victim) -> None:
    assert not _core.is_gone(victim.fence)
    victim.stop()
    assert not _core.wait_until_gone(victim.fence, 0.02)
    victim.signal(signal.SIGKILL)
    assert _core.wait_until_gone(victim.fence, 10)
    protect(victim, SMALL, SLAB_BYTES)  # of nobody: done


def test_who_shares_the_address_space_keeps_it(victim: Victim, slab: Slab) -> None:
    sharer = victim.call(victims.leave_a_sharer)
    try:
        victim.signal(signal.SIGKILL)
        until(lambda: has_ended(victim.pidfd), "the end of the victim")
        assert not _core.wait_until_gone(victim.fence, 0.05)
        protect(victim, SMALL, SLAB_BYTES)
    finally:
        os.kill(sharer, signal.SIGKILL)
    assert _core.wait_until_gone(victim.fence, 10)


@pytest.mark.slow
def test_proof_of_death_comes_before_the_mappings_are_taken_apart(nursery: Nursery) -> None:
    fd = os.memfd_create("slab", os.MFD_CLOEXEC)
    os.ftruncate(fd, 256 * MIB)
    _core.warm(fd, 0, 256 * MIB, False)
    came_first = 0
    for _ in range(5):
        victim = Victim(nursery, fd)
        victim.call(victims.touch, 256 * MIB)
        victim.signal(signal.SIGKILL)
        assert _core.wait_until_gone(victim.fence, 10)
        came_first += not has_ended(victim.pidfd)
        victim.close()
    os.close(fd)
    assert came_first > 0


# --- ptrace ----------------------------------------------------------------------------------------------------------


def test_a_stopped_process_stays_stopped(victim: Victim) -> None:
    victim.stop()
    for _ in range(20):
        trace(victim, ABSENT, 2 * MIB)
        until(lambda: victim.state() == "T", "the stop")  # it passes through "running" within the kernel
    victim.signal(signal.SIGCONT)
    assert victim.call(victims.load, SMALL) == 0


def test_ptrace_leaves_no_trace(victim: Victim) -> None:
    """Registers, system calls under way and signals: all are as if nothing had been."""
    before = mask_of(victim)
    victim.start(victims.compute_and_sleep, 60)
    traced = sent = 0
    while not victim.has_answered():
        trace(victim, ABSENT, 2 * MIB)
        traced += 1
        if traced > 20:
            victim.signal(signal.SIGUSR1)
            sent += 1
    digest, cut_short, signals = victim.result()
    assert digest == victims.digest_of(60)
    assert cut_short == 0
    assert traced > 30 and 0 < signals <= sent
    assert mask_of(victim) == before


def test_a_signal_that_comes_while_it_is_traced_is_delivered(victim: Victim) -> None:
    victim.call(victims.count_signals)
    for number in range(1, 101):
        victim.signal(signal.SIGUSR1)
        trace(victim, ABSENT, 2 * MIB)
        until(lambda number=number: victim.call(victims.signals_counted) == number, "the signal")


def mask_of(victim: Victim) -> str:
    return next(
        line
        for line in Path(f"/proc/{victim.pid}/status").read_text().splitlines()
        if line.startswith("SigBlk")
    )


def test_a_process_that_has_ended_cannot_be_traced(victim: Victim) -> None:
    victim.signal(signal.SIGKILL)
    until(lambda: has_ended(victim.pidfd), "its end")
    with pytest.raises(ProcessLookupError):
        _core.ptrace_close(victim.pid, victim.pidfd, [(SLAB, MIB)], 5.0)


def test_the_pid_must_be_the_one_that_the_pidfd_means(new_victim: Callable[[], Victim]) -> None:
    gone, other = new_victim(), new_victim()
    gone.signal(signal.SIGKILL)
    gone.wait()
    with pytest.raises(ProcessLookupError):
        _core.ptrace_close(other.pid, gone.pidfd, [(SLAB, MIB)], 5.0)  # as if the pid had been given again
    assert other.call(victims.store, SMALL, 5) == 5


# --- what is a fence -------------------------------------------------------------------------------------------------


def test_garbage_is_no_fence(victim: Victim, tmp_path: Path) -> None:
    assert _core.is_fence(victim.fence)
    named_like_one = tmp_path / "anon_inode:[userfaultfd]"
    ends = os.pipe()
    garbage = [
        *ends,
        os.open("/dev/null", os.O_RDWR),
        os.open(tmp_path, os.O_PATH),
        os.open(named_like_one, os.O_RDWR | os.O_CREAT),
        os.memfd_create("anon_inode:[userfaultfd]"),
        os.eventfd(0),
        os.pidfd_open(os.getpid()),
        socket.socket(socket.AF_UNIX).detach(),
        select.epoll().fileno(),
        raw_userfaultfd(features=None),
        raw_userfaultfd(features=0),
        -1,
        999_999,
    ]
    assert [fd for fd in garbage if _core.is_fence(fd)] == []
    for fd in garbage[:-4]:
        os.close(fd)


def raw_userfaultfd(features: int | None) -> int:
    fd: int = victims.libc.syscall(323, os.O_CLOEXEC | 1)
    if features is not None:
        fcntl.ioctl(fd, 0xC018AA3F, struct.pack("=QQQ", 0xAA, features, 0))
    return fd
