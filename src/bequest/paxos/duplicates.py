"""Duplicates of the clients' connections, which the holder has, lest clients wait for the kernel.

The kernel takes a dead process's memory apart before it closes its sockets, and that takes milliseconds: so long its
clients would wait for answers that nobody gives. So a replica hands its holder a duplicate of each connection, and the
holder shuts them down as soon as a standby says that it goes on. A process that is merely stopped keeps its sockets for
as long as it is there: its clients, too, hear at once that somebody else serves now.

Nobody has to be told when a connection has ended otherwise: the replica shuts it down before it closes it, and the
kernel tells whoever has a duplicate. There are no more of them than half of the descriptors that a process may have;
whose connection is not among them learns of a death as the kernel gets to it.
"""

from __future__ import annotations

import os
import resource
import select
import socket
from contextlib import suppress


class Duplicates:
    """The connections of some workers' clients, each by the worker's pid."""

    def __init__(self) -> None:
        self._ended = select.epoll()
        self._owners: dict[int, int] = {}  # by descriptor
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def __len__(self) -> int:
        return len(self._owners)

    def fileno(self) -> int:
        """What can be read when some have ended: see `forget_ended`."""
        return self._ended.fileno()

    def keep(self, fd: int, owner: int) -> None:
        """Takes over this descriptor."""
        if len(self._owners) >= self._most:
            os.close(fd)
            return
        self._owners[fd] = owner
        self._ended.register(fd, 0)  # errors and the end of both directions are told always

    def forget_ended(self) -> None:
        """Closes those that have ended."""
        for fd, _ in self._ended.poll(0):
            self._forget(fd)
            os.close(fd)

    def shut_down(self, owner: int) -> None:
        """Ends all connections of this worker's clients, whoever has them open."""
        for fd in [fd for fd, whose in self._owners.items() if whose == owner]:
            self._forget(fd)
            with socket.socket(fileno=fd) as connection, suppress(OSError):  # it may have ended just now
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Lets go of all of them, which changes nothing for those who have them open."""
        for fd in self._owners:
            os.close(fd)
        self._owners = {}
        self._ended.close()

    def _forget(self, fd: int) -> None:
        del self._owners[fd]
        self._ended.unregister(fd)
