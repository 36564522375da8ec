"""Messages to packets and back.

There is no framing of our own: ``SOCK_SEQPACKET`` keeps the borders of packets. What remains to be checked is that a
packet is a message that belongs at this socket; anything else is `GarbledPacket`, whose sender is to be dropped.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from bequest.errors import BadSize
from bequest.limits import PACKET_BYTES_MAX
from bequest.wire import messages as wire


class GarbledPacket(Exception):
    """The packet is no message that belongs here: garbage, truncated, of the wrong type, or too long."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: wire.Message) -> bytes:
    """The packet. Raises `BadSize` if it were too long: a name or tag as long as no name or tag can be."""
    packet = _encoder.encode(message)
    if len(packet) > PACKET_BYTES_MAX:
        name = type(message).__name__
        raise BadSize(f"a {name} of {len(packet)} bytes exceeds the {PACKET_BYTES_MAX} of a packet")
    return packet


def check(message: wire.Message) -> None:
    """Raises TypeError if a part of it has a type that the other side would not understand.

    It would take the packet for garbage and drop whoever sent it: an argument of the wrong type must not cost a program
    its place in the rack.
    """
    try:
        _decoder_of(type(message)).decode(_encoder.encode(message))
    except msgspec.ValidationError as error:
        raise TypeError(f"the arguments make no {type(message).__name__}: {error}") from None


@lru_cache
def _decoder_of(kind: type[wire.Message]) -> msgspec.msgpack.Decoder[wire.Message]:
    return msgspec.msgpack.Decoder(kind)


class Decoder:
    """Understands the messages of one union, such as `wire.ClientToMmu`, and nothing else."""

    def __init__(self, union: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[wire.Message] = msgspec.msgpack.Decoder(union)

    def decode(self, packet: bytes | bytearray | memoryview) -> wire.Message:
        if len(packet) > PACKET_BYTES_MAX:
            raise GarbledPacket(f"{len(packet)} bytes exceed the {PACKET_BYTES_MAX} of a packet")
        try:
            return self._decoder.decode(packet)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise GarbledPacket(str(error)) from error
