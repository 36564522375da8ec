"""Messages over TCP: four bytes of length, then MessagePack.

A `Link` is one connection in either direction, an asyncio protocol. It hands up what comes, decoded, and gathers what
is to be sent until `flush`, so that what one pass of a replica says is one write. Nobody waits for a reader: what a
link cannot take because `QUEUE_BYTES_MAX` are waiting already is dropped and counted, as a network might; the
consensus sends again what matters. A frame longer than `FRAME_BYTES_MAX`, or one that is no message, ends the
connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from msgspec import msgpack

log = logging.getLogger("bequest.paxos")

FRAME_BYTES_MAX = 64 << 20
QUEUE_BYTES_MAX = 64 << 20
_HEAD = 4

Heard = Callable[["Link", Any], None]
Ended = Callable[["Link"], None]


def framed(packed: bytes) -> bytes:
    """As it goes over the wire."""
    return len(packed).to_bytes(_HEAD, "little") + packed


class Link(asyncio.Protocol):
    """One connection. ``heard`` is called with each message, ``ended`` once, when it is over."""

    def __init__(self, decoder: msgpack.Decoder[Any], heard: Heard, ended: Ended) -> None:
        self._decode = decoder.decode
        self._heard = heard
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._sending: list[bytes] = []
        self.dropped = 0
        self.site = ""  # of whom is at the other end, as it has said; and so the following
        self.replica = 0
        self.life = 0
        self.speaks = False
        self.dialled = ""  # the site, if it was this end that dialled

    @property
    def is_open(self) -> bool:
        """Whether anything can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def peer(self) -> str:
        """Who is at the other end, for people."""
        if self.site:
            return f"site {self.site}"
        where = None if self._transport is None else self._transport.get_extra_info("peername")
        return "a peer" if where is None else f"{where[0]}:{where[1]}"

    def send(self, frame: bytes) -> None:
        """With the next `flush`."""
        if self._transport is None or self._transport.get_write_buffer_size() > QUEUE_BYTES_MAX:
            self.dropped += 1
        else:
            self._sending.append(frame)

    def flush(self) -> None:
        """Writes what has been gathered."""
        if self._sending and self._transport is not None:
            frames, self._sending = self._sending, []
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def close(self) -> None:
        """Ends it, after what was written."""
        if self._transport is not None:
            self._transport.close()

    # --- for asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=QUEUE_BYTES_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._transport = None
        self._ended(self)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        received: bytes | bytearray = data
        if self._received:
            self._received += data
            received = self._received
        used = self._take(received)
        if received is self._received:
            del self._received[:used]
        elif used < len(data):
            self._received += memoryview(data)[used:]

    def _take(self, received: bytes | bytearray) -> int:
        """Hands up each whole frame; how many bytes those were."""
        at, end = 0, len(received)
        while end - at >= _HEAD and self.is_open:
            nbytes = int.from_bytes(received[at : at + _HEAD], "little")
            if nbytes > FRAME_BYTES_MAX:
                self._refuse(f"a frame of {nbytes} bytes; {FRAME_BYTES_MAX} are allowed")
                return end
            if end - at - _HEAD < nbytes:
                break
            frame = bytes(received[at + _HEAD : at + _HEAD + nbytes])
            at += _HEAD + nbytes
            try:
                message = self._decode(frame)
            except msgspec.MsgspecError as error:
                self._refuse(str(error))
                return end
            self._heard(self, message)
        return at if self.is_open else end

    def _refuse(self, why: str) -> None:
        log.warning("%s has sent what is no message, and is hung up on: %s", self.peer, why)
        if self._transport is not None:
            self._transport.abort()
