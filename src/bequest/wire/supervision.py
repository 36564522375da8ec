"""What the supervisor and its daemons say to each other, over the control socket of each.

A daemon keeps with its supervisor what it must not lose: `Keep` with file descriptors, `Release`. The supervisor
answers each `Keep` with `Kept`, in order, and hands out the ends of fresh links with `Relink`. What has been deleted of
the rack's directory it makes again, and hands to the daemons with `Listen` and `Hold`. `WriteLog` tells of a new log.
"""

from __future__ import annotations

from bequest.wire.message import Message


class Keep(Message, frozen=True):
    """-> Kept. Under this key, in place of whatever lies there; the descriptors come with the packet."""

    key: str
    meta: bytes


class Release(Message, frozen=True):
    key: str


class Kept(Message, frozen=True):
    """``trouble`` says why it was not; what lay under the key then lies there still."""

    key: str
    trouble: str = ""


class Relink(Message, frozen=True):
    """With one end of a fresh link to a neighbour, which has just been started; any earlier link to it is void."""

    kind: str  # mmu, element, agent or monitor
    name: str
    os_pid: int
    restarts: int


class Listen(Message, frozen=True):
    """With a listening socket in place of the daemon's own, whose name was deleted: nobody finds that any more."""


class Hold(Message, frozen=True):
    """With the lock of the rack's directory, which was deleted and made again: to be held for life."""


class WriteLog(Message, frozen=True):
    """The rack's log is a new file, since the former one has grown too long or was deleted."""

    path: str


DaemonToSupervisor = Keep | Release
SupervisorToDaemon = Kept | Relink | Listen | Hold | WriteLog
