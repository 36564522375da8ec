"""A client that keeps trying: it writes one key after the other, to whichever member of a service acknowledges it.

Every service is asked in the same way. A write that was not acknowledged, for whatever reason, is tried again at once:
where the connection broke at the same member, since another process may answer there, otherwise at the next one. A
member that says nothing is given up after `ATTEMPT_SECONDS`. Each key is written once, so what is missing afterwards of
the acknowledged ones has been lost.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

ATTEMPT_SECONDS = 0.1
ROUND_PAUSE_SECONDS = 0.0005
"""After every member has been tried in vain."""
LONGEST_OUTAGE_SECONDS = 60.0


class Refused(OSError):
    """The member has answered, and not acknowledged."""


class Member(Protocol):
    """One way in to a service."""

    def put(self, key: str, value: str) -> None:
        """Returns when the write was acknowledged. Raises OSError."""

    def close(self) -> None:
        """Hangs up."""


class RespMember:
    """Speaks the Redis protocol."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def put(self, key: str, value: str) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, ATTEMPT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(set_command(key, value))
            answer = self._socket.recv(4096)
            if not answer:
                raise ConnectionResetError("hung up")
        except OSError:
            self.close()
            raise
        if answer != b"+OK\r\n":
            raise Refused(answer.decode(errors="replace"))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def set_command(key: str, value: str) -> bytes:
    """SET, as the Redis protocol writes it."""
    parts = (b"SET", key.encode(), value.encode())
    return b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class EtcdMember:
    """Speaks etcd's protocol of JSON over HTTP."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=ATTEMPT_SECONDS)

    def put(self, key: str, value: str) -> None:
        body = {
            "key": base64.b64encode(key.encode()).decode(),
            "value": base64.b64encode(value.encode()).decode(),
        }
        try:
            self._connection.request("POST", "/v3/kv/put", json.dumps(body))
            answer = self._connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise error if isinstance(error, OSError) else ConnectionResetError(str(error)) from error
        if answer.status != 200:
            raise Refused(said.decode(errors="replace"))

    def close(self) -> None:
        self._connection.close()


class Acknowledged(NamedTuple):
    """A write: when its successful attempt began, and when it was acknowledged."""

    key: str
    begun: float
    at: float


class Writer(threading.Thread):
    """Writes ``PREFIX:0``, ``PREFIX:1``, … until it is told to stop. ``acknowledged`` is what it may count on."""

    def __init__(self, prefix: str, members: Sequence[Member]) -> None:
        super().__init__(name=prefix, daemon=True)
        self._prefix = prefix
        self._members = members
        self._at = 0
        self._is_stopping = threading.Event()
        self._news = threading.Condition()
        self.acknowledged: list[Acknowledged] = []
        self.attempted = 0

    def run(self) -> None:
        for number in itertools.count():
            written = self._write(f"{self._prefix}:{number}")
            if written is None:
                break
            with self._news:
                self.acknowledged.append(written)
                self._news.notify_all()
        for member in self._members:
            member.close()

    def _write(self, key: str) -> Acknowledged | None:
        """One write, however long that takes; None if it is to stop."""
        in_vain = 0
        broken_here = False
        while not self._is_stopping.is_set():
            begun = time.perf_counter()
            self.attempted += 1
            try:
                self._members[self._at].put(key, key)
            except (ConnectionResetError, BrokenPipeError):
                broken_here = not broken_here
                in_vain += 1
                if broken_here:
                    continue  # its heir listens there, perhaps
            except OSError:
                in_vain += 1
            else:
                return Acknowledged(key, begun, time.perf_counter())
            self._at = (self._at + 1) % len(self._members)
            if in_vain >= len(self._members):
                time.sleep(ROUND_PAUSE_SECONDS)
        return None

    def first_after(self, moment: float) -> Acknowledged:
        """The first write that was acknowledged to an attempt which began later. Raises TimeoutError."""
        with self._news:
            done = self._news.wait_for(
                lambda: bool(self.acknowledged) and self.acknowledged[-1].begun >= moment,
                LONGEST_OUTAGE_SECONDS,
            )
            if not done:
                raise TimeoutError(f"no write was acknowledged within {LONGEST_OUTAGE_SECONDS:g} s")
            return next(write for write in self.acknowledged if write.begun >= moment)

    def stop(self) -> list[str]:
        """The keys that were acknowledged."""
        self._is_stopping.set()
        self.join(LONGEST_OUTAGE_SECONDS)
        return [write.key for write in self.acknowledged]
