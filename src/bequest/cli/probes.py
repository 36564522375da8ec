"""What the machine offers, found by trying it.

A probe does what Bequest would do, on a small scale, and says how it went; it trusts no version number where it can
try. Probes use the C library through ctypes, so that they work where the native core does not. Each returns a `Finding`
for the `Check` that names it; `bequest.cli.doctor` runs the list.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OK, DEGRADED, MISSING = "ok", "degraded", "missing"

MIB = 1 << 20
GIB = 1 << 30
_HUGE_PAGE = 2 * MIB
_PAGE = 4096
WINDOW_BASE, WINDOW_BYTES = 0x2000_0000_0000, 1 << 45

_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_MAP_FAILED = ctypes.c_void_p(-1).value
# Numbers of system calls that Python has no name for: (userfaultfd, get_robust_list).
_SYSTEM_CALLS = {"x86_64": (323, 274), "aarch64": (282, 100)}
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_UFFD_SIGBUS = 1 << 7
_UFFD_WRITE_PROTECT_SHMEM = 1 << 12
_FUTEX_WAITV = 449
_PTRACE_SEIZE = 0x4206
_PR_SET_PTRACER, _ANY_TRACER = 0x59616D61, (1 << 64) - 1


@dataclass(frozen=True)
class Finding:
    """How a probe went: ok, degraded or missing, and what was seen."""

    status: str
    found: str


@dataclass(frozen=True)
class Check:
    """A probe, what is worse if it does not go well, and what to do about that."""

    id: str
    name: str
    probe: Callable[[], Finding]
    affects: str
    remedy: str
    required: bool = False


# --- the machine ----------------------------------------------------------------------------------------------


def probe_platform() -> Finding:
    """Linux on a 64-bit processor with 4 KiB pages."""
    machine, page = platform.machine(), mmap.PAGESIZE
    found = f"{platform.system()} {platform.release()}, {machine}, pages of {page} bytes"
    fits = sys.platform == "linux" and machine in _SYSTEM_CALLS and page == _PAGE and sys.maxsize > 1 << 32
    return Finding(OK if fits else MISSING, found)


def probe_kernel() -> Finding:
    """New enough to have all that is used."""
    release = platform.release()
    numbers = [int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    if numbers < [5, 11]:
        return Finding(MISSING, release)
    return Finding(OK if numbers >= [6, 1] else DEGRADED, release)


def probe_native_core() -> Finding:
    """The compiled part of Bequest."""
    try:
        from bequest import _core
    except ImportError as error:
        return Finding(MISSING, str(error))
    return Finding(OK, f"table version {_core.TABLE_VERSION}")


def probe_runtime_directory() -> Finding:
    """A directory of the user's own, where racks are found."""
    from bequest.errors import BequestError
    from bequest.runtime.directory import base_directory

    try:
        path = base_directory()
    except (BequestError, OSError) as error:
        return Finding(MISSING, str(error))
    return Finding(OK if os.access(path, os.W_OK | os.X_OK) else MISSING, str(path))


# --- memory ---------------------------------------------------------------------------------------------------


def probe_memfd() -> Finding:
    """Anonymous memory that can be passed on, of a size that nobody can change."""
    try:
        fd = os.memfd_create("bequest-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError) as error:
        return Finding(MISSING, str(error))
    try:
        os.ftruncate(fd, _PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        os.ftruncate(fd, 0)
    except PermissionError:
        return Finding(OK, "a sealed memfd keeps its size")
    except OSError as error:
        return Finding(MISSING, str(error))
    finally:
        os.close(fd)
    return Finding(MISSING, "the seal does not hold")


def probe_collapse() -> Finding:
    """2 MiB pages without privilege or reservation: MADV_COLLAPSE on a memfd."""
    try:
        with _mapped_memfd(_HUGE_PAGE) as address:
            for page in range(0, _HUGE_PAGE, _PAGE):
                ctypes.c_char.from_address(address + page).value = b"\0"
            _advise(address, _HUGE_PAGE, _MADV_COLLAPSE)
    except OSError as error:
        return Finding(MISSING, f"MADV_COLLAPSE on a memfd: {error.strerror}")
    return Finding(OK, "MADV_COLLAPSE makes 2 MiB pages of a memfd")


def probe_populate() -> Finding:
    """Having pages made present in one call."""
    try:
        with _mapped_memfd(16 * _PAGE) as address:
            _advise(address, 16 * _PAGE, _MADV_POPULATE_WRITE)
    except OSError as error:
        return Finding(DEGRADED, f"MADV_POPULATE_WRITE: {error.strerror}")
    return Finding(OK, "MADV_POPULATE_WRITE works")


def probe_window() -> Finding:
    """The rack window, where addresses are the same in all processes, is free in this one."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    where = f"2^45 bytes at {WINDOW_BASE:#x}"
    try:
        address = _map(WINDOW_BASE, WINDOW_BYTES, 0, flags, -1)
    except OSError as error:
        return Finding(MISSING, f"{where}: {error.strerror}{_what_is_in_the_window()}")
    _libc().munmap(address, WINDOW_BYTES)
    return Finding(OK if address == WINDOW_BASE else MISSING, f"{where} can be reserved")


def _what_is_in_the_window() -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start < WINDOW_BASE + WINDOW_BYTES and end > WINDOW_BASE:
            return f"; {line.split(maxsplit=5)[5:] or ['something']} is there"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if soft == resource.RLIM_INFINITY else f"; the address space is limited to {soft >> 20} MiB"


def probe_hugetlb() -> Finding:
    """Reserved huge pages, for memory elements of kind `huge` only."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    count, free = int(fields.get("HugePages_Total", "0")), int(fields.get("HugePages_Free", "0"))
    size = fields.get("Hugepagesize", "0 kB").split()[0]
    return Finding(OK if count else MISSING, f"{count} reserved, {free} free, of {int(size) >> 10} MiB")


def probe_overcommit() -> Finding:
    """Whether the kernel promises memory that it may not have."""
    mode = _read("/proc/sys/vm/overcommit_memory") or "?"
    meaning = {"0": "heuristic", "1": "always", "2": "never"}.get(mode, "unknown")
    return Finding(DEGRADED if mode == "2" else OK, f"vm.overcommit_memory = {mode} ({meaning})")


def probe_cgroup() -> Finding:
    """What a container may use; memory of racks counts for whoever touches it first: the memory element."""
    lowest: int | None = None
    for path in _cgroup_limits():
        text = _read(str(path))
        if text is not None and text.isdigit() and int(text) < 1 << 60:
            lowest = int(text) if lowest is None else min(lowest, int(text))
    if lowest is None:
        return Finding(OK, "no limit")
    return Finding(OK if lowest >= GIB else DEGRADED, f"limited to {lowest >> 20:,} MiB")


def _cgroup_limits() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            start, name = root / path.lstrip("/"), "memory.max"
        elif "memory" in controllers.split(","):
            root = root / "memory"
            start, name = root / path.lstrip("/"), "memory.limit_in_bytes"
        else:
            continue
        for directory in (start, *start.parents):
            if directory.is_relative_to(root):
                yield directory / name


def probe_shm() -> Finding:
    """/dev/shm: not used by racks, whose memory has no name, but by multiprocessing beside them."""
    try:
        about = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding(DEGRADED, f"/dev/shm: {error.strerror}")
    size = about.f_blocks * about.f_frsize >> 20
    writable = os.access("/dev/shm", os.W_OK)
    return Finding(OK if writable else DEGRADED, f"{size:,} MiB" + ("" if writable else ", not writable"))


# --- processes ------------------------------------------------------------------------------------------------


def probe_pidfd() -> Finding:
    """Being told by the kernel that a process has ended."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Finding(MISSING, f"pidfd_open: {error}")
    return Finding(OK, "pidfd_open works")


def probe_robust_futex() -> Finding:
    """Being told by a futex, sooner."""
    numbers = _SYSTEM_CALLS.get(platform.machine())
    if numbers is None:
        return Finding(MISSING, f"unknown on {platform.machine()}")
    head, length = ctypes.c_void_p(), ctypes.c_size_t()
    if _libc().syscall(numbers[1], 0, ctypes.byref(head), ctypes.byref(length)) != 0:
        return Finding(DEGRADED, f"get_robust_list: {os.strerror(ctypes.get_errno())}")
    if not head.value:
        return Finding(DEGRADED, "the C library registers no robust list")
    return Finding(OK, "threads have robust lists")


def probe_futex_waitv() -> Finding:
    """One thread that waits for the deaths of many processes."""
    _libc().syscall(_FUTEX_WAITV, None, 0, 0, None, 0)
    if (number := ctypes.get_errno()) in (errno.ENOSYS, errno.EPERM):  # EINVAL: it looks at its arguments
        return Finding(DEGRADED, f"futex_waitv: {os.strerror(number)}")
    return Finding(OK, "futex_waitv waits for many at once")


def probe_userfaultfd() -> Finding:
    """Stopping another process's writes without its help: opened and asked for what a fence needs of it."""
    numbers = _SYSTEM_CALLS.get(platform.machine())
    if numbers is None:
        return Finding(DEGRADED, f"unknown on {platform.machine()}")
    fd = _libc().syscall(numbers[0], os.O_CLOEXEC | _UFFD_USER_MODE_ONLY)
    if fd < 0:
        return Finding(DEGRADED, f"userfaultfd(USER_MODE_ONLY): {os.strerror(ctypes.get_errno())}")
    try:
        wanted = _UFFD_SIGBUS | _UFFD_WRITE_PROTECT_SHMEM
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("=QQQ", _UFFD_API, wanted, 0))
    except OSError as error:
        return Finding(
            DEGRADED,
            f"opened without privilege, but cannot write-protect shared memory or raise SIGBUS ({error.strerror})",
        )
    finally:
        os.close(fd)
    return Finding(OK, "opened without privilege, write-protects shared memory")


def probe_ptrace() -> Finding:
    """The second way to stop another process's writes: seizing one that is no child, and has allowed it."""
    if platform.machine() != "x86_64":
        return Finding(DEGRADED, f"written for x86-64 only, not for {platform.machine()}")
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    told = "no yama" if scope is None else f"yama.ptrace_scope = {scope}"
    if (number := _seize_a_sibling()) != 0:
        return Finding(DEGRADED, f"a process that allows it cannot be traced: {os.strerror(number)}; {told}")
    return Finding(OK, f"a process that allows it (PR_SET_PTRACER) can be traced by another; {told}")


def _seize_a_sibling() -> int:
    """As an agent would do it to a process of its rack; 0 or the error's number."""
    library = _libc()
    with _child(lambda: library.prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY_TRACER), 0, 0, 0)) as (victim, _):

        def seize() -> int:
            return ctypes.get_errno() if library.ptrace(_PTRACE_SEIZE, victim, None, None) != 0 else 0

        with _child(seize) as (_, number):
            return number


@contextmanager
def _child(act: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """A forked process that has acted, and waits for this one: its pid, and what that returned."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            theirs.send(bytes([act() & 0xFF]))
            theirs.recv(1)  # until the other end is closed, in whatever way this program ends
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield pid, (ours.recv(1) or bytes([errno.ECHILD]))[0]
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- limits ---------------------------------------------------------------------------------------------------


def probe_mappings() -> Finding:
    """How many mappings a process may have; each run of pages with another protection is one."""
    limit = int(_read("/proc/sys/vm/max_map_count") or 0)
    return Finding(OK if limit >= 65_530 else DEGRADED, f"vm.max_map_count = {limit:,}")


def probe_descriptors() -> Finding:
    """How many files a process may open: a memory element holds one for each slab, and takes the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = ["unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}" for limit in (soft, hard)]
    enough = hard == resource.RLIM_INFINITY or hard >= 4096
    return Finding(OK if enough else DEGRADED, f"{told[0]} (soft), {told[1]} (hard)")


# --- ways to the kernel ---------------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    library.ptrace.restype = ctypes.c_long
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def _map(address: int, nbytes: int, protection: int, flags: int, fd: int) -> int:
    mapped: int | None = _libc().mmap(address or None, nbytes, protection, flags, fd, 0)
    if mapped is None or mapped == _MAP_FAILED:
        raise _last_error()
    return mapped


def _advise(address: int, nbytes: int, advice: int) -> None:
    if _libc().madvise(address, nbytes, advice) != 0:
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{os.strerror(number)} ({errno.errorcode.get(number, number)})")


@contextmanager
def _mapped_memfd(nbytes: int) -> Iterator[int]:
    """The address of a fresh memfd, mapped at a multiple of 2 MiB as collapsing wants it."""
    fd = os.memfd_create("bequest-doctor", os.MFD_CLOEXEC)
    reserved = nbytes + _HUGE_PAGE
    try:
        os.ftruncate(fd, nbytes)
        start = _map(0, reserved, 0, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        try:
            aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
            yield _map(aligned, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_SHARED | _MAP_FIXED, fd)
        finally:
            _libc().munmap(start, reserved)
    finally:
        os.close(fd)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
