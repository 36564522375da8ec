"""Messages and packets: everything comes back as it went, and nothing else comes through."""

from __future__ import annotations

import os
import socket
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bequest.errors import FAILURE_KINDS, BequestError, RackFault, RackMemoryError, from_failure
from bequest.limits import NONCE_BYTES_MAX, PACKET_BYTES_MAX
from bequest.runtime.transport import new_buffer, receive_packet, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, GarbledPacket, encode

UNIONS = [
    wire.ClientToMmu,
    wire.ClientToAgent,
    wire.ClientToElement,
    wire.DaemonToClient,
    wire.MmuToElement,
    wire.ElementToMmu,
    wire.MmuToAgent,
    wire.AgentToMmu,
]


PLAIN: dict[object, st.SearchStrategy[object]] = {
    int: st.integers(0, 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=9),
    bytes: st.binary(max_size=9),
    type(None): st.none(),
}


@pytest.mark.parametrize("union", UNIONS)
@settings(deadline=None)
@given(data=st.data())
def test_every_message_comes_back(union: object, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(typing.get_args(union)))
    fields = msgspec.structs.fields(kind)
    message = kind(**{field.name: data.draw(values_of(field.type)) for field in fields})
    assert Decoder(union).decode(encode(message)) == message


def values_of(hint: object) -> st.SearchStrategy[object]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        fields = msgspec.structs.fields(hint)
        return st.builds(hint, **{field.name: values_of(field.type) for field in fields})
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if typing.get_origin(hint) is tuple:
        return st.tuples(*map(values_of, arguments))
    if typing.get_origin(hint) is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=3)
    return st.one_of(*map(values_of, arguments))


@given(st.binary(max_size=200))
def test_garbage_is_refused(packet: bytes) -> None:
    for union in UNIONS:
        try:
            message = Decoder(union).decode(packet)
        except GarbledPacket:
            continue
        assert isinstance(message, typing.get_args(union))


@given(st.integers(0, 100))
def test_half_a_message_is_refused(cut: int) -> None:
    packet = encode(wire.Attach("somebody", b"secret", "host0"))
    with pytest.raises(GarbledPacket):
        Decoder(wire.ClientToMmu).decode(packet[: cut % len(packet)])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        encode(wire.Shutdown()) + b"\x00",
        encode(wire.SlabReserved(1)),  # a daemon's
        msgspec.msgpack.encode({"type": "NeedSlab", "pages": "many"}),
        msgspec.msgpack.encode({"type": "Attach"}),
        msgspec.msgpack.encode(["Shutdown"]),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        bytes(PACKET_BYTES_MAX + 1),
    ],
)
def test_what_does_not_belong_here_is_refused(packet: bytes) -> None:
    with pytest.raises(GarbledPacket):
        Decoder(wire.ClientToMmu).decode(packet)


def test_too_long_a_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        encode(wire.Failed("memory", "x" * PACKET_BYTES_MAX))


def test_every_kind_of_failure_is_an_exception_of_ours() -> None:
    for kind, error in FAILURE_KINDS.items():
        raised = from_failure(kind, "what happened", [("dram0", 1, 0)])
        assert type(raised) is error and isinstance(raised, BequestError) and str(raised) == "what happened"
        assert getattr(raised, "free", None) == (
            [("dram0", 1, 0)] if isinstance(raised, RackMemoryError) else None
        )
    assert type(from_failure("from a later version", "?")) is RackFault


# --- packets --------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> typing.Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_packets_keep_their_borders_and_descriptors(ends: tuple[socket.socket, socket.socket]) -> None:
    read_end, write_end = os.pipe()
    send_packet(ends[0], b"one", (read_end,))
    send_packet(ends[0], b"two")
    os.close(read_end)
    packet = receive_packet(ends[1], new_buffer())
    assert packet.data == b"one" and len(packet.fds) == 1
    os.write(write_end, b"through")
    assert os.read(packet.fds[0], 100) == b"through"
    assert not os.get_inheritable(packet.fds[0])
    packet.close_fds()
    os.close(write_end)
    assert receive_packet(ends[1], new_buffer()).data == b"two"
    ends[0].close()
    assert receive_packet(ends[1], new_buffer()).data == b""


@pytest.mark.parametrize("count", [5, 16, 17, 100])
def test_too_many_descriptors_are_closed(ends: tuple[socket.socket, socket.socket], count: int) -> None:
    read_end, write_end = os.pipe()  # of the kinds that are closed at once
    before = open_descriptors()
    send_packet(ends[0], b"flood", [read_end] * count)
    with pytest.raises(GarbledPacket):
        receive_packet(ends[1], new_buffer())
    assert open_descriptors() == before
    os.close(read_end)
    os.close(write_end)


def test_an_oversized_packet_is_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    read_end, write_end = os.pipe()  # of a kind that is closed at once
    send_packet(ends[0], bytes(PACKET_BYTES_MAX + 1), [read_end])
    before = open_descriptors()
    with pytest.raises(GarbledPacket):
        receive_packet(ends[1], new_buffer())
    assert open_descriptors() == before
    os.close(read_end)
    os.close(write_end)


def test_nonces_are_short() -> None:
    longest = bytes(NONCE_BYTES_MAX)
    for attach in (wire.Attach("a", nonce=longest), wire.BreakMemory("a", nonce=longest)):
        assert Decoder(wire.ClientToMmu).decode(encode(attach)) == attach
        with pytest.raises(GarbledPacket):
            Decoder(wire.ClientToMmu).decode(encode(msgspec.structs.replace(attach, nonce=longest + b"x")))
