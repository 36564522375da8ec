"""Closing descriptors that somebody else has sent, without trusting them.

Closing can wait: for the other end of a connection (SO_LINGER), or for a file system that a program of its sender's
serves. What the kernel makes itself is closed at once; the rest by a thread that has nothing else to do.
"""

from __future__ import annotations

import os
import threading
from _queue import SimpleQueue
from collections.abc import Iterable
from contextlib import suppress

_HARMLESS = ("anon_inode:", "/memfd:", "pipe:")
_closers: dict[int, SimpleQueue[int]] = {}  # by process: a thread does not survive a fork


def close_foreign(fds: Iterable[int]) -> None:
    """Returns at once, whatever they are."""
    for fd in fds:
        if _is_harmless(fd):
            os.close(fd)
        else:
            _closer().put(fd)


def _is_harmless(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(_HARMLESS)
    except OSError:
        return False


def _closer() -> SimpleQueue[int]:
    queue = _closers.get(os.getpid())
    if queue is None:
        queue = _closers[os.getpid()] = SimpleQueue()
        threading.Thread(target=_close_all, args=(queue,), name="closer", daemon=True).start()
    return queue


def _close_all(queue: SimpleQueue[int]) -> None:
    while True:
        with suppress(OSError):
            os.close(queue.get())
