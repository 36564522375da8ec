"""Starts racks from within another program: an embedded one, or a detached one for ``bequest up --detach``.

The supervisor is a fresh interpreter, since forking a user's threaded program is no way to start a daemon. It reports
through a pipe when its sockets listen, or what went wrong, and leaves this process's family tree.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bequest.errors import BequestError, RackGone
from bequest.limits import EMBEDDED_START_TIMEOUT
from bequest.runtime.directory import RackDirectory, find

if TYPE_CHECKING:
    from bequest.runtime.config import RackConfig

__all__ = ["find", "start_detached", "start_embedded"]

_READY_FD = 3


class _Report(msgspec.Struct):
    """The supervisor's `Report`, said again so as not to import all daemons here."""

    path: str = ""
    error: str = ""


def start_embedded() -> RackDirectory:
    """A rack with defaults, which ends shortly after its last client. Raises `RackGone` if it cannot be started."""
    return _start(["--embedded"])


def start_detached(config: RackConfig) -> RackDirectory:
    """A rack that goes on until it is told to stop. Raises `BequestError` if it cannot be started."""
    return _start(["--config", msgspec.json.encode(config).decode()])


def _start(arguments: list[str]) -> RackDirectory:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        if write_end == _READY_FD:  # dup2 onto itself would leave it closed on exec
            write_end = fcntl.fcntl(write_end, fcntl.F_DUPFD_CLOEXEC, 10)
            os.close(_READY_FD)
        spawned = _spawn([*arguments, "--ready-fd", str(_READY_FD)], write_end)
        os.close(write_end)
        write_end = -1
        try:
            return _directory_from(_read_report(read_end))
        finally:
            os.waitpid(spawned, 0)  # it forks the supervisor and ends at once
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def _spawn(arguments: list[str], write_end: int) -> int:
    if not sys.executable:
        raise RackGone(
            "no rack can be started: this program does not know its Python interpreter (sys.executable)"
        )
    command = [sys.executable, "-m", "bequest.runtime.supervisor", *arguments]
    file_actions = [
        (os.POSIX_SPAWN_DUP2, write_end, _READY_FD),
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
    ]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=file_actions)


def _read_report(read_end: int) -> bytes:
    ready, _, _ = select.select([read_end], [], [], EMBEDDED_START_TIMEOUT)
    if not ready:
        raise RackGone(f"the rack has not started within {EMBEDDED_START_TIMEOUT:g} s")
    return os.read(read_end, 65536)


def _directory_from(data: bytes) -> RackDirectory:
    if not data:
        raise RackGone("the rack's supervisor ended before the rack was ready; its error output says why")
    report = msgspec.json.decode(data, type=_Report)
    if report.error:
        raise BequestError(f"the rack cannot start: {report.error}")
    return RackDirectory(Path(report.path))
