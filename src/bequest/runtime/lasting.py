"""A conversation with a daemon that may be killed, and is followed by another at the same socket.

Theory of operation. The listening socket outlives the daemon, so a client that connects in between waits in its queue.
A request whose connection breaks is repeated on a new one, after the client has said who it is; it is not known whether
it was carried out, so it either does no harm twice or is numbered (`wire.Once`) or carries a nonce. Numbers are given
out, and requests made, one at a time.

A daemon that refuses the connection may have room again soon: whoever had one is not told at once, but waits as for a
successor. The rack has ended when its supervisor has, which the kernel named when we first connected; another one at
the same socket is another rack. All else is a pause, bounded by `RESTART_TIMEOUT`: a socket that is gone may have been
deleted by somebody, and is made again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bequest.errors import BequestError, ConnectionRefused, NotAttached, RackGone
from bequest.limits import CONNECT_TIMEOUT, REQUEST_TIMEOUT, RESTART_POLL, RESTART_TIMEOUT
from bequest.runtime.transport import Channel, ConnectionLost, Meanwhile, NoAnswer
from bequest.wire import codec
from bequest.wire import messages as wire

# These change nothing that a second one would change again. Attach and CreateGroup carry a nonce.
_MAY_BE_REPEATED = (
    wire.Attach,
    wire.ComeBack,
    wire.CreateGroup,
    wire.Detach,
    wire.Enrol,
    wire.FindPeer,
    wire.ListNames,
    wire.Lookup,
    wire.OpenSlab,
    wire.PlaceProcess,
    wire.Resume,
    wire.Shutdown,
    wire.Status,
)
_REFUSED_POLL = 0.1  # each refusal is a line in the rack's log
_LOOK_TIMEOUT = 0.25  # a look whether a daemon answers at all must not take as long as its restart may


class RackLife(NamedTuple):
    """Which rack this is: its supervisor's life. Racks follow one another under a name in one directory."""

    supervisor: int  # its operating-system pid
    began: str  # when, in the kernel's words: that tells it from a later bearer of the pid; "" if it cannot be seen

    @classmethod
    def of(cls, channel: Channel) -> RackLife:
        return cls(channel.peer_pid, _began(channel.peer_pid))

    def has_ended(self) -> bool:
        return _began(self.supervisor) != self.began


class LastingChannel:
    """Blocking requests, one at a time, from any thread; raises as `Channel` does, but outlives the daemon.

    Raises `RackGone` at once if no daemon listens there now; unless it is one of a ``rack`` that is known to be there.
    """

    def __init__(self, path: Path, rack: RackLife | None = None) -> None:
        self._path = path
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._is_closed = False
        self._number = 0
        self._greeting: wire.Resume | wire.Enrol | None = None
        self._client = 0  # what the daemon calls this connection, if it keeps account of them
        self._is_greeted = False  # on this connection it has been said who is back
        self._rack = rack
        self._channel = self._first_channel()
        self._greet()

    @property
    def welcome(self) -> wire.Welcome | None:
        return self._channel.welcome

    @property
    def peer_pid(self) -> int:
        """As of `Channel`."""
        return self._channel.peer_pid

    @property
    def rack(self) -> RackLife:
        assert self._rack is not None
        return self._rack

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def returns_as(self, greeting: wire.Resume | wire.Enrol) -> None:
        """From now on, this is what is said first on a new connection."""
        self._greeting = greeting

    def request(
        self,
        message: wire.Message,
        timeout: float = REQUEST_TIMEOUT,
        fds: Sequence[int] = (),
        meanwhile: Meanwhile = lambda: None,
    ) -> tuple[wire.Message, list[int]]:
        """The reply, and the file descriptors that came with it, which the caller owns. Sends copies of ``fds``.

        ``meanwhile`` is called as by `Channel`, and again for a request that has to be repeated. Raises TypeError for a
        message with parts of the wrong type.
        """
        self._check_owner()
        codec.check(message)
        with self._lock:
            sent = self._numbered(message)
            gone_at: float | None = None
            while True:
                try:
                    if gone_at is not None or self._channel.is_closed:
                        self._reconnect(RESTART_TIMEOUT)
                    self._greet()
                    return self._channel.request(sent, timeout, fds, meanwhile)
                except (ConnectionLost, ConnectionRefused) as error:
                    gone_at = gone_at or time.monotonic()
                    self._wait_for_successor(gone_at, error)

    def is_alive(self) -> bool:
        """False once the rack has ended. Costs one system call while the daemon is there."""
        if self._is_closed or os.getpid() != self._owner:
            return False
        if self._channel.is_alive():
            return True
        if not self._lock.acquire(blocking=False):
            return True  # a request is under way, and will tell
        try:
            self._reconnect(_LOOK_TIMEOUT)
            self._greet()
        except (NoAnswer, ConnectionRefused):
            return True
        except ConnectionLost:
            return not self.rack.has_ended()
        except RackGone:
            return False
        except NotAttached:
            return True  # the rack is; requests will say that this process is not its any more
        finally:
            self._lock.release()
        return True

    def fileno(self) -> int:
        """As of `Channel`; of the connection of the moment."""
        return self._channel.fileno()

    def close(self) -> None:
        """A daemon that follows the one we talked to has to be told, or it would wait for us to come back."""
        may_be_missed = self._client and self._greeting is None and not self._is_closed
        if may_be_missed and os.getpid() == self._owner and self._lock.acquire(blocking=False):
            try:
                with suppress(BequestError):
                    if not self._channel.is_alive():
                        self._reconnect(_LOOK_TIMEOUT)
                    self._greet()
            finally:
                self._lock.release()
        self._is_closed = True
        self._channel.close()

    # --- within --------------------------------------------------------------------------------------------

    def _check_owner(self) -> None:
        """Before any lock: a forked child may have inherited it locked."""
        if os.getpid() != self._owner:
            raise NotAttached(
                "this process was forked from one that is connected to a rack; it must connect itself"
            )
        if self._is_closed:
            raise NotAttached("the connection to the rack has been closed")

    def _numbered(self, message: wire.Message) -> wire.Message:
        if not isinstance(self._greeting, wire.Resume) or isinstance(message, _MAY_BE_REPEATED):
            return message
        self._number += 1
        return wire.Once(self._number, message)  # type: ignore[arg-type]

    def _reconnect(self, timeout: float) -> None:
        self._channel.close()
        if self.rack.has_ended():
            raise self._the_end()
        self._channel, self._is_greeted = self._connect(timeout), False
        if self._is_closed:
            self._channel.close()

    def _connect(self, timeout: float) -> Channel:
        """Raises `ConnectionLost` for what may pass, if it is known that the rack is there."""
        try:
            channel = Channel.connect(self._path, timeout)
        except ConnectionLost:
            raise
        except RackGone as error:  # nobody listens, there is no socket, or no answer comes
            if self._rack is None:
                raise
            if self._rack.has_ended():
                raise self._the_end() from error
            raise ConnectionLost(str(error)) from error
        found = RackLife.of(channel)
        if self._rack not in (None, found):
            channel.close()
            raise self._the_end()
        self._rack = found
        return channel

    def _greet(self) -> None:
        """Says on a new connection who is back.

        Whoever does not wait for the answer keeps the connection, and asks again: the daemon may have taken note by
        then, and would take the end of that connection for the process's.
        """
        if self._is_greeted:
            return
        if self._greeting is not None:
            self._channel.request(self._greeting, RESTART_TIMEOUT)
        elif self._client:
            self._channel.request(wire.ComeBack(self._client), RESTART_TIMEOUT)
        if self._channel.welcome is not None:
            self._client = self._channel.welcome.client
        self._is_greeted = True

    def _first_channel(self) -> Channel:
        """The daemon may be killed while it greets, too."""
        since = time.monotonic()
        while True:
            try:
                return self._connect(CONNECT_TIMEOUT)
            except ConnectionLost as error:
                self._wait_for_successor(since, error)

    def _wait_for_successor(self, gone_at: float, error: ConnectionLost | ConnectionRefused) -> None:
        """A moment; raises `RackGone`, or the refusal, if that cannot help any more."""
        self._check_owner()
        if self._rack is not None and self._rack.has_ended():
            raise self._the_end() from error
        is_refused = isinstance(error, ConnectionRefused)
        if time.monotonic() - gone_at > RESTART_TIMEOUT:
            if is_refused:
                raise error
            raise RackGone(
                f"the daemon at {self._path} was lost, and no other has answered for {RESTART_TIMEOUT:g} s"
            ) from error
        time.sleep(_REFUSED_POLL if is_refused else RESTART_POLL)

    def _the_end(self) -> RackGone:
        return RackGone(f"the rack at {self._path.parent} has ended")


def _began(os_pid: int) -> str:
    """Nothing, if there is no such process, or only its parent has yet to take note of its end."""
    try:
        state, *fields = Path(f"/proc/{os_pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
