"""What a replica says of itself to whoever asks, over the same port as to the other sites.

A question is one frame, and so is the answer. An asker is no peer: it needs no hello, and the replica forgets it when
the connection ends.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec
from msgspec import msgpack

from bequest.errors import RackFault
from bequest.paxos.frames import FRAME_BYTES_MAX, framed

if TYPE_CHECKING:
    from bequest.paxos.config import Address


class Question(msgspec.Struct, frozen=True, array_like=True, tag=100):
    """How are you?"""

    service: str


class Reincarnation(msgspec.Struct, frozen=True):
    """One death that the replica has outlived: ``at`` is when, in seconds of the wall clock.

    ``took_ms`` is from the moment at which the standby was called until it served; ``of`` and ``by`` are the names of
    the two processes in their rack, ``why`` is "death" or "suspicion".
    """

    at: float
    took_ms: float
    of: str
    by: str
    why: str


class Report(msgspec.Struct, frozen=True, array_like=True, tag=101):
    """The answer. Indexes are slots of the log, ``ballot`` is (round, replica); ``members`` tells their sites by id.

    ``epochs`` tells when the latest configurations began, as far as this process has seen it, by the wall clock.
    """

    service: str
    site: str
    process: str  # its name in its rack
    os_pid: int
    standbys: list[str]
    reincarnations: list[Reincarnation]
    heap_bytes: int
    serving_seconds: float
    dropped_messages: int
    replica: int = 0
    life: int = 0
    role: str = "joining"  # or "leader", "follower", "candidate", "learner", "removed"
    leader: int | None = None
    ballot: tuple[int, int] = (0, 0)
    leased: bool = False
    epoch: int = 0
    epochs: dict[int, float] = {}
    members: dict[int, str] = {}
    learners: dict[int, str] = {}
    chosen: int = 0
    applied: int = 0
    log_bytes: int = 0
    clients: int = 0


_decode = msgpack.Decoder(Report).decode


def ask(service: str, address: Address, timeout: float) -> Report:
    """Asks the replica at this address. Raises OSError (also TimeoutError) if none answers in time."""
    with socket.create_connection((address.host, address.port), timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(framed(msgpack.encode(Question(service))))
        nbytes = int.from_bytes(_exactly(connection, 4), "little")
        if nbytes > FRAME_BYTES_MAX:
            raise RackFault(f"what listens at {address} is no replica of a Bequest service")
        try:
            return _decode(_exactly(connection, nbytes))
        except msgspec.MsgspecError as error:
            raise RackFault(
                f"what listens at {address} gives no answer that could be read: {error}"
            ) from error


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    received = bytearray()
    while len(received) < nbytes:
        part = connection.recv(nbytes - len(received))
        if not part:
            raise ConnectionResetError("the replica has hung up")
        received += part
    return bytes(received)
