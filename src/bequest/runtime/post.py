"""One daemon's place in a rack, which outlives the processes that fill it.

A post has what stays: the listening socket (clients of a daemon that has just died queue there for its successor), the
neighbours to be linked with, and how to make the daemon. Its `Child` is the process that fills it now. A successor
follows at once, unless lives have been short for too long: then after a pause that doubles, and in the end not at all.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from bequest.limits import RESTART_PAUSE, SHORT_LIFE, SHORT_LIVES_AT_ONCE, SHORT_LIVES_MAX
from bequest.runtime.loop import Daemon, Wire


class Child(msgspec.Struct, eq=False):
    pid: int
    pidfd: int
    control: Wire
    since: float
    has_hung_up: bool = False


class Post(msgspec.Struct, eq=False):
    kind: str  # mmu, element, agent or monitor
    name: str
    title: str  # for people
    path: Path | None  # of its socket
    listener: socket.socket | None
    make: Callable[..., Daemon]  # from the listening socket and a Tether
    neighbours: list[Post] = []
    child: Child | None = None
    starts: int = 0
    short_lives: int = 0
    start_at: float | None = None  # when a successor is due

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def restarts(self) -> int:
        return max(self.starts - 1, 0)

    def is_neighbour(self, other: Post) -> None:
        self.neighbours.append(other)
        other.neighbours.append(self)

    def began(self, child: Child) -> None:
        self.child = child
        self.starts += 1
        self.start_at = None

    def ended(self, now: float) -> bool:
        """Decides when its successor is due. False: there shall be none, for it dies again and again."""
        assert self.child is not None
        self.short_lives = self.short_lives + 1 if now - self.child.since < SHORT_LIFE else 0
        self.child = None
        return self.delay_start(now)

    def delay_start(self, now: float) -> bool:
        if self.short_lives > SHORT_LIVES_MAX:
            return False
        paused = self.short_lives - SHORT_LIVES_AT_ONCE
        self.start_at = now + (RESTART_PAUSE * 2 ** (paused - 1) if paused > 0 else 0.0)
        return True


def obituary(post: Post, pid: int, status: int) -> str:
    """``status`` is as os.waitstatus_to_exitcode tells."""
    if status < 0:
        return f"{post.title} (pid {pid}) was killed by {signal.Signals(-status).name}"
    return f"{post.title} (pid {pid}) ended with code {status}"
