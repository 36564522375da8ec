"""Where a replicated service that runs on one machine is noted: a private directory beside those of the racks.

It holds the service's TOML file, and a lock file for each process that has to be asked to end: the launcher's
(``up.lock``) and each holder's (``SITE.lock``). These are POSIX record locks, which the kernel lets go when their
process ends, and of which it tells the process that has them: so nobody is taken for another that bears its number now.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bequest.errors import BadDirectory, NameTaken, NoRack, RackFault

if TYPE_CHECKING:
    from bequest.paxos.config import Service

DEFAULT_NAME = "default"
_LAUNCHER = "up"
_FLOCK = "hhqqi4x"  # struct flock of a 64-bit Linux: type, whence, start, length, pid
_POLL_SECONDS = 0.01
_END_SECONDS = 20.0


class Place:
    """The directory of the service of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = _base() / name

    @property
    def file(self) -> Path:
        """The service's TOML file."""
        return self._path / "service.toml"

    def make(self) -> None:
        """Makes it, and takes the launcher's lock. Raises NameTaken if anything of such a service still runs."""
        for directory in (self._path.parent, self._path):
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        holders = self.holders()
        if holders:
            raise NameTaken(
                f"service {self.name!r} is running already (process {next(iter(holders.values()))}); "
                f"`bequest paxos down {self.name}` ends it"
            )
        self.lock(_LAUNCHER)

    def lock(self, who: str) -> int:
        """Takes a lock, for as long as this process lives and the descriptor is open. Raises NameTaken."""
        fd = os.open(self._path / f"{who}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise NameTaken(f"{who!r} of service {self.name!r} is running already") from None
        return fd

    def write(self, service: Service) -> None:
        """Notes what the service consists of."""
        from bequest.paxos.config import write_service

        self.file.write_text(write_service(service))

    def read(self) -> Service:
        """What the service consists of. Raises NoRack if there is no such service."""
        from bequest.paxos.config import read_service

        if not self.file.exists():
            others = ", ".join(running()) or "none"
            raise NoRack(
                f"no service {self.name!r} is running on this machine (running: {others}); "
                "start it with `bequest paxos up`, or give its file by --config"
            )
        return read_service(self.file)

    def holders(self) -> dict[str, int]:
        """Who has which lock: operating-system pids, the launcher's first.

        Not for a process that has one itself: closing any descriptor of the file lets go of it.
        """
        found = {}
        for path in sorted(self._path.glob("*.lock"), key=lambda path: path.stem != _LAUNCHER):
            pid = _locked_by(path)
            if pid:
                found[path.stem] = pid
        return found

    def end(self) -> list[int]:
        """Has all of them end, the launcher first; who they were. Raises RackFault if one does not."""
        ended: list[int] = []
        deadline = time.monotonic() + _END_SECONDS
        while holders := self.holders():
            for who, pid in holders.items():
                if pid not in ended:
                    ended.append(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                if who == _LAUNCHER:
                    break  # it ends the others itself
            if time.monotonic() > deadline:
                raise RackFault(
                    f"process {next(iter(holders.values()))} has not ended within {_END_SECONDS:g} s"
                )
            time.sleep(_POLL_SECONDS)
        return ended

    def remove(self) -> None:
        """Takes the directory away, and that of all services if it was the last."""
        for path in sorted(self._path.glob("*")):
            path.unlink(missing_ok=True)
        for directory in (self._path, self._path.parent):
            with suppress(OSError):  # another service has its place there, or it has gone already
                directory.rmdir()


def running() -> list[str]:
    """The names of the services that are noted on this machine."""
    return sorted(path.parent.name for path in _base().glob("*/service.toml"))


def _base() -> Path:
    from bequest.runtime.directory import base_directory

    racks = base_directory()
    base = racks.with_name(f"{racks.name}-paxos")
    if base.exists() or base.is_symlink():
        found = base.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise BadDirectory(
                f"{base} is not a directory of user {os.getuid()}'s own; have it removed, then try again"
            )
    return base


def _locked_by(path: Path) -> int:
    """The process that has the lock; 0 if nobody has."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return 0 if kind == fcntl.F_UNLCK else pid
