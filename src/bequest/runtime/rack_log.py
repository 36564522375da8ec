"""The log of a rack that has left the terminal: one file of bounded length, which all its processes write into.

Theory of operation. The log is descriptor 2 of the supervisor and of every daemon: what is logged, what the interpreter
says of its own trouble and the last words of native code are in one place. A line is one write to the end of the file,
so the kernel keeps lines whole, whoever else writes. Nobody waits for the log: what cannot be written is lost.

Only the supervisor makes files. When the log is too long it becomes ``rack.log.1``, in place of the one before, and a
fresh file becomes the log; the same is done when its name was deleted. Daemons are told, and `follow`. Who has not yet,
or cannot, goes on with the file that it has. If the supervisor is killed half-way the rack ends, and with it the
directory; if it cannot make the file it goes on with the former one, and tries again when it looks next.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from bequest.limits import RACK_LOG_BYTES_MAX

log = logging.getLogger("bequest.supervisor")

_DESCRIPTOR = 2


class Lines:
    """A stream for `logging.StreamHandler`, which hands it each line as a whole."""

    def write(self, line: str) -> None:
        """To descriptor 2, whatever that is at the time. If the disk is full, say, there is nowhere to say so."""
        with suppress(OSError):
            os.write(_DESCRIPTOR, line.encode(errors="backslashreplace"))


class RackLog:
    """The supervisor's. Makes the file, and takes descriptor 2 for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trouble = ""
        _take_up(path, os.O_CREAT)

    def look(self) -> bool:
        """Whether there is a new file, which the daemons are to be told of."""
        try:
            is_new = self._look()
        except OSError as error:
            if str(error) != self._trouble:
                log.error("the log cannot be begun anew: %s", error)
            self._trouble = str(error)
            return False
        self._trouble = ""
        return is_new

    def _look(self) -> bool:
        ours = os.fstat(_DESCRIPTOR)
        if self._is_in_place(ours):
            if ours.st_size <= RACK_LOG_BYTES_MAX:
                return False
            self.path.rename(self.path.with_name(f"{self.path.name}.1"))
        _take_up(self.path, os.O_CREAT)
        return True

    def _is_in_place(self, ours: os.stat_result) -> bool:
        try:
            return os.path.samestat(ours, os.lstat(self.path))
        except FileNotFoundError:
            return False


def follow(path: Path) -> None:
    """A daemon's: from now on it writes into the file of this name. Raises OSError, and goes on with its own."""
    _take_up(path, 0)


def _take_up(path: Path, flags: int) -> None:
    """Should a pipe lie there, for somebody's purposes: nobody waits for its reader."""
    flags |= os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, _DESCRIPTOR)
    os.close(opened)
