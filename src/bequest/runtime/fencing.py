"""The ladder by which an agent keeps a process from its memory: see native/fence.hpp and native/ptrace_fence.hpp.

Theory of operation. First it is looked whether the process has gone already: then no store of it can come. Else the
gentlest rung that holds is taken, and none beyond the group's ``reach``: write protection through the userfaultfd that
the process handed over; having it call mprotect under ptrace; killing it. The commit point is the return of the system
call that holds, and what it promises is that no store reaches the memory afterwards.

All of this may take long in the kernel (a gigabyte to protect, an address space that is busy), so it runs in a lane of
the agent's workers; the work on one process stays in one lane, and so does the closing of its descriptors.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence

import msgspec

from bequest import _core
from bequest.limits import DEATH_PATIENCE, KILL_TIMEOUT, PTRACE_TIMEOUT, WINDOW_BASE, WINDOW_BITS
from bequest.protocol.fence_desk import REACHES

Ranges = Sequence[tuple[int, int]]


class Unfenced(Exception):
    """No rung within reach has held; the message tells what each one met."""


class Target(msgspec.Struct, frozen=True):
    """A process to be fenced: descriptors for its life and, unless the kernel refused it one, its address space."""

    os_pid: int
    pidfd: int
    fence: int | None

    def close(self) -> bool:
        """Not yet, if somebody still runs in the address space of a process that has ended: it may be fenced."""
        if self.fence is not None:
            if has_ended(self) and not is_gone(self, DEATH_PATIENCE):
                return False
            os.close(self.fence)
        os.close(self.pidfd)
        return True


def has_ended(target: Target) -> bool:
    """The process has exited; somebody else may still run in its address space (vfork, CLONE_VM)."""
    poll = select.poll()
    poll.register(target.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_gone(target: Target, patience: float = 0.0) -> bool:
    """Whether it is proven that no store through its address space can come any more."""
    if target.fence is None:
        return has_ended(target)
    return _core.wait_until_gone(target.fence, patience)


def outlive(target: Target) -> bool:
    """For a process that has ended: whether nobody can store through its address space any more.

    Who still runs in it has been left behind by vfork or clone, and will not be for long, or is kept from the whole
    rack window.
    """
    if is_gone(target, DEATH_PATIENCE):
        return True
    assert target.fence is not None
    _core.write_protect(target.fence, target.os_pid, [(WINDOW_BASE, 1 << WINDOW_BITS)])
    return True


def fence(target: Target, reach: str, ranges: Ranges, hinted: bool) -> str:
    """How the process was kept from these ranges: dead, protected, ptraced or killed. Raises `Unfenced`."""
    if is_gone(target, DEATH_PATIENCE if hinted else 0.0):
        return "dead"
    troubles = []
    for rung in REACHES[: REACHES.index(reach) + 1]:
        try:
            return _RUNGS[rung](target, ranges)
        except OSError as error:
            if is_gone(target, DEATH_PATIENCE if isinstance(error, ProcessLookupError) else 0.0):
                return "dead"
            troubles.append(f"{rung}: {error.strerror or error}")
    raise Unfenced("; ".join(troubles))


def lift(target: Target, ranges: Ranges) -> None:
    """Takes back what `fence` may have write-protected. Raises OSError.

    Who still runs in the address space of a process that has ended is kept from all of the rack window, and stays so.
    """
    if target.fence is not None and not has_ended(target):
        _core.lift_protection(target.fence, target.os_pid, ranges)


def _protect(target: Target, ranges: Ranges) -> str:
    if target.fence is None:
        raise OSError("it has handed over no userfaultfd")
    _core.write_protect(target.fence, target.os_pid, ranges)
    return "dead" if is_gone(target) else "protected"


def _ptrace(target: Target, ranges: Ranges) -> str:
    _core.ptrace_close(target.os_pid, target.pidfd, ranges, PTRACE_TIMEOUT)
    return "ptraced"


def _kill(target: Target, ranges: Ranges) -> str:
    signal.pidfd_send_signal(target.pidfd, signal.SIGKILL)
    if target.fence is not None:
        if _core.wait_until_gone(target.fence, KILL_TIMEOUT):
            return "killed"
        raise OSError(f"killed, but something runs in its address space after {KILL_TIMEOUT:g} s")
    poll = select.poll()
    poll.register(target.pidfd, select.POLLIN)
    if not poll.poll(int(KILL_TIMEOUT * 1000)):
        raise OSError(f"killed, but not gone after {KILL_TIMEOUT:g} s")
    return "killed"


_RUNGS = {"protect": _protect, "ptrace": _ptrace, "kill": _kill}


def guard(target: Target, address: int, nbytes: int) -> None:
    """From now on the process faults where pages of the range are not there. Raises OSError if that cannot be had."""
    try:
        if target.fence is None:
            raise OSError("it has handed over no userfaultfd")
        _core.guard_missing(target.fence, target.os_pid, [(address, nbytes)])
    except OSError:
        if not is_gone(target):
            _core.ptrace_close(target.os_pid, target.pidfd, [(address, nbytes)], PTRACE_TIMEOUT)
