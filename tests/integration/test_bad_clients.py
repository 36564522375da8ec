"""What clients may do wrong at every socket: it costs them their connection, and the rack nothing."""

from __future__ import annotations

import builtins
import os
import random
import resource
import socket
import types
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import Nursery
from agents import AgentUnderTest
from bequest.errors import BequestError, ConnectionRefused, RackGone, VersionMismatch
from bequest.limits import NONCE_BYTES_MAX, PACKET_BYTES_MAX, TABLE_VERSION, WIRE_VERSION
from bequest.runtime.transport import Channel, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, encode
from bequest.wire.message import Nonce
from rack_process import Member, RackProcess, until

SOCKETS = ["mmu.sock", "element-dram0.sock", "agent-host0.sock", "monitor.sock"]
HELLO = encode(wire.Hello(WIRE_VERSION, TABLE_VERSION))


@pytest.fixture(scope="module")
def rack() -> Iterator[RackProcess]:
    started = RackProcess.start(memory=["dram0:64MiB"])
    yield started
    assert started.audit() == []
    started.stop()


def connect(rack: RackProcess, name: str, greet: bool = True) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(10)
    client.connect(str(rack.directory.path / name))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if greet:
        client.send(HELLO)
        assert b"Welcome" in client.recv(4096)
    return client


def parting_words(client: socket.socket) -> wire.Failed | None:
    """What it is told before its connection ends; None if nothing. The kernel may tell of the end first, once."""
    words = None
    with client:
        for _ in range(3):
            try:
                data = client.recv(PACKET_BYTES_MAX)
            except ConnectionResetError:
                continue
            if not data:
                return words
            reply = Decoder(wire.DaemonToClient).decode(data)
            assert isinstance(reply, wire.Failed), reply
            words = reply
    raise AssertionError("the connection does not end")


def is_dropped(client: socket.socket) -> bool:
    """For what it has sent, which it is told."""
    words = parting_words(client)
    return words is not None and words.kind == "protocol" and "ends this connection" in words.message


def is_served(client: socket.socket) -> bool:
    """Says Hello, and looks whether that is answered with Welcome; leaves what else there is to be read."""
    with suppress(ConnectionResetError, BrokenPipeError):
        client.send(HELLO)
        if b"Welcome" in client.recv(4096, socket.MSG_PEEK):
            client.recv(4096)
            return True
    return False


def lives(rack: RackProcess) -> bool:
    member = Member(rack, "probe")
    os.close(member.open(member.need(2 << 20)))
    member.mmu.request(wire.Detach())
    member.close()
    return True


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00",
    bytes(1000),
    HELLO[:5],
    encode(wire.Enrol(b"x"))[:-1],
    msgspec.msgpack.encode({"type": "Hello", "version": "one", "table_version": None}),
    msgspec.msgpack.encode({"type": "NoSuchMessage"}),
    msgspec.msgpack.encode({"type": "NeedSlab", "pages": 2**63}) + b"tail",
    encode(wire.SlabReserved(1)),  # what only a memory element says, over its link
    encode(wire.ProcessExited(1, 1)),
    encode(wire.Once(1, wire.Hello(WIRE_VERSION, TABLE_VERSION))),  # type: ignore[arg-type]
    b"\xdc\xff\xff" * 1000,
    os.urandom(5000),
    bytes(PACKET_BYTES_MAX + 1),
    bytes(3 * PACKET_BYTES_MAX),
]


@pytest.mark.parametrize("greet", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", SOCKETS)
def test_garbage(rack: RackProcess, name: str, greet: bool) -> None:
    for packet in GARBAGE:
        client = connect(rack, name, greet)
        client.send(packet)
        assert is_dropped(client), packet[:40]
    assert lives(rack)
    assert "drops client" in rack.log()


ODD = {
    int: [0, -1, 1, 511, 1023, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63)],
    bool: [False, True],
    str: ["", "odd", "odd", "x" * 64, "/", "\0", "dram0", "spread", "slabs", "é" * 40_000, "\0" * 100_000],
    bytes: [b"", b"x", bytes(16), bytes(100_000)],
    type(None): [None],
}


SENSIBLE = (
    wire.Hello,
    wire.Shutdown,
    wire.BreakMemory,
)  # a fresh client is greeted; the rest ends what is tested


def odd_value(kind: Any, chance: random.Random) -> Any:
    if kind == Nonce:  # a longer one is not well-formed
        return chance.choice([one for one in ODD[bytes] if len(one) <= NONCE_BYTES_MAX])
    match typing.get_origin(kind):
        case typing.Union | types.UnionType:
            return odd_value(
                chance.choice([one for one in typing.get_args(kind) if one not in SENSIBLE]), chance
            )
        case builtins.list:
            return [
                odd_value(typing.get_args(kind)[0], chance) for _ in range(chance.choice([0, 1, 3, 2000]))
            ]
        case builtins.tuple:
            return tuple(odd_value(item, chance) for item in typing.get_args(kind))
    return chance.choice(ODD[kind]) if kind in ODD else odd_message(kind, chance)


def odd_message(kind: type[wire.Message], chance: random.Random) -> wire.Message:
    return kind(**{field.name: odd_value(field.type, chance) for field in msgspec.structs.fields(kind)})


@pytest.mark.parametrize(
    ("name", "union"),
    list(
        zip(
            SOCKETS,
            [wire.MmuSocket, wire.ClientToElement, wire.ClientToAgent, wire.ClientToMonitor],
            strict=True,
        )
    ),
    ids=SOCKETS,
)
def test_well_formed_nonsense(rack: RackProcess, name: str, union: object) -> None:
    chance = random.Random(20)
    client = Channel.connect(rack.directory.socket(name))
    for attempt in range(600):
        if name == "mmu.sock" and attempt % 20 == 0:
            with suppress(BequestError):
                client.request(wire.Attach(f"fuzz-{attempt}"))
        try:
            client.request(odd_value(union, chance))
        except RackGone:
            client = Channel.connect(rack.directory.socket(name))
        except BequestError:
            pass
    client.close()
    assert lives(rack)
    assert rack.audit() == []


@pytest.mark.parametrize("name", SOCKETS)
def test_another_version_is_told_so(rack: RackProcess, name: str) -> None:
    client = connect(rack, name, greet=False)
    client.send(encode(wire.Hello(WIRE_VERSION + 1, TABLE_VERSION)))
    words = parting_words(client)
    assert words is not None and words.kind == "version"


def test_the_library_turns_that_into_an_exception(rack: RackProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bequest.runtime.transport.WIRE_VERSION", WIRE_VERSION + 1)
    with pytest.raises(VersionMismatch, match="restart the rack"):
        rack.connect()


@pytest.mark.parametrize("name", SOCKETS)
def test_descriptors_nobody_asked_for_do_not_stay(rack: RackProcess, name: str) -> None:
    before = rack.descriptors()
    for count, packet in ((1, encode(wire.Hello(9, 9))), (4, HELLO), (5, HELLO), (200, HELLO), (200, b"x")):
        client = connect(rack, name, greet=False)
        send_packet(client, packet, [0] * count)
        client.recv(4096)
        client.close()
    assert until(lambda: rack.descriptors() == before)


@pytest.mark.parametrize("name", SOCKETS)
def test_a_client_that_reads_nothing_stops_only_itself(rack: RackProcess, name: str) -> None:
    question = {
        "mmu.sock": wire.Status("slabs"),
        "element-dram0.sock": wire.OpenSlab(b"", 1),
        "agent-host0.sock": wire.Enrol(b""),
        "monitor.sock": wire.Sync(1),
    }[name]
    client = connect(rack, name)
    client.setblocking(False)
    packet = encode(question)
    with suppress(
        BlockingIOError, ConnectionResetError, BrokenPipeError
    ):  # its buffer is full, or it is dropped
        while True:
            client.send(packet)
    assert lives(rack)
    client.close()
    assert lives(rack)


@pytest.mark.parametrize("role", ["mmu", "dram0", "host0"])
def test_out_of_descriptors(rack: RackProcess, role: str) -> None:
    name = {"mmu": SOCKETS[0], "dram0": SOCKETS[1], "host0": SOCKETS[2]}[role]
    pid = rack.daemons()[role]
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (rack.descriptors()[role] + 10, limits[1]))
    clients = [connect(rack, name, greet=False) for _ in range(30)]
    served = [client for client in clients if is_served(client)]
    assert 0 < len(served) < len(clients)
    for client in clients:
        if client not in served:
            words = parting_words(client)
            assert words is not None and words.kind == "refused" and "file descriptor" in words.message
    for client in served:
        client.close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert until(lambda: lives(rack))
    assert "cannot accept a client" in rack.log()


def test_those_who_say_nothing_are_dropped(nursery: Nursery, tmp_path: Path) -> None:
    agent = AgentUnderTest(nursery, tmp_path, hello_timeout=0.2)
    quiet = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    quiet.settimeout(10)
    quiet.connect(str(agent.path))
    polite = Channel.connect(agent.path)
    words = parting_words(quiet)
    assert words is not None and words.kind == "protocol" and "said nothing for 0.2 s" in words.message
    assert polite.is_alive()
    polite.close()
    agent.close()


@pytest.mark.root
def test_another_user_is_refused(rack: RackProcess) -> None:
    """Its directory keeps others out; were it open, the sockets would still ask the kernel who is there."""
    rack.directory.path.parent.chmod(0o755)
    rack.directory.path.parent.parent.chmod(0o755)
    rack.directory.path.chmod(0o755)
    for name in SOCKETS:
        (rack.directory.path / name).chmod(0o777)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            Channel.connect(rack.directory.mmu_socket)
        except ConnectionRefused as error:
            os._exit(0 if "user 65534" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    rack.directory.path.chmod(0o700)
    assert "refuses os pid" in rack.log()
