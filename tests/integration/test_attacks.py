"""Attacks on a rack: each costs the attacker something, says so clearly, and disturbs nobody else.

What clients may send wrongly is in test_bad_clients.py. Here are those who claim to be others, who come in their
thousands, who take away what lies on the disk, and who write forged descriptors into the table that they share.
"""

from __future__ import annotations

import ast
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from alive import is_running
from bequest.errors import BequestError, ConnectionRefused, NameTaken, NotAttached, RackGone
from bequest.limits import PEERS_OF_ONE_MAX
from bequest.runtime.directory import claim, find
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from rack_process import Member, RackProcess, until
from test_bad_clients import connect, is_dropped, is_served, parting_words

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bequest"
SOCKETS = {
    "mmu.sock": wire.ClientToMmu,
    "element-dram0.sock": wire.ClientToElement,
    "agent-host0.sock": wire.ClientToAgent,
}


@pytest.fixture
def rack() -> Iterator[RackProcess]:
    started = RackProcess.start(memory=["dram0:64MiB"])
    yield started
    started.stop()


def works(member: Member) -> bool:
    """Its control plane answers, and memory can be had."""
    os.close(member.open(member.need(2 << 20)))
    return True


def lives(rack: RackProcess) -> bool:
    newcomer = Member(rack, "newcomer")
    try:
        return works(newcomer)
    finally:
        newcomer.mmu.request(wire.Detach())
        newcomer.close()


def in_another_process(act: Callable[[], object]) -> str:
    """The name of the exception that it raises there, or what it returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = repr(act())
        except BaseException as error:
            told = type(error).__name__
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as result:
        return result.read()


# --- packets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOCKETS)
def test_half_of_any_message_is_garbage(rack: RackProcess, name: str) -> None:
    for kind in typing.get_args(SOCKETS[name]):
        whole = encode(any_of(kind))
        for part in (whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
            client = connect(rack, name)
            client.send(part)
            assert is_dropped(client), (kind, part)
    assert lives(rack)


SIMPLE = {int: 1, str: "x", bytes: b"x", bool: True, float: 1.0}


def any_of(kind: type) -> typing.Any:
    """A message with something in each field that must be given."""
    values = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            first = next(iter(typing.get_args(field.type)), field.type)
            is_list = typing.get_origin(field.type) is list
            values[field.name] = [] if is_list else SIMPLE[first] if first in SIMPLE else any_of(first)
    return kind(**values)


# --- who claims to be another ---------------------------------------------------------------------------------------


def test_a_ticket_is_worth_nothing_to_another_process(rack: RackProcess) -> None:
    """Even the right one: the kernel says who is at the other end."""
    victim = Member(rack, "victim")
    ticket, pid, incarnation = (
        victim.attached.agent_ticket,
        victim.attached.pid,
        victim.attached.incarnation,
    )
    agent, mmu = rack.directory.socket(victim.attached.agent_path), rack.directory.mmu_socket
    for attack in (
        lambda: Channel.connect(agent).request(wire.Enrol(ticket)),
        lambda: Channel.connect(agent).request(wire.Subscribe(ticket)),
        lambda: Channel.connect(mmu).request(wire.Resume(pid, incarnation, ticket)),
    ):
        assert in_another_process(attack) == NotAttached.__name__
    assert works(victim)
    assert rack.states() == {"victim": "attached"}
    victim.close()


def test_a_guessed_ticket_opens_nothing(rack: RackProcess) -> None:
    victim = Member(rack, "victim")
    pid, incarnation = victim.attached.pid, victim.attached.incarnation
    agent, mmu = rack.directory.socket(victim.attached.agent_path), rack.directory.mmu_socket
    for ticket in (b"", bytes(16), os.urandom(16), victim.attached.element_ticket):
        for path, message in (
            (agent, wire.Enrol(ticket)),
            (agent, wire.Subscribe(ticket)),
            (mmu, wire.Resume(pid, incarnation, ticket)),
            (mmu, wire.Resume(pid + 1, incarnation, victim.attached.agent_ticket)),
            (mmu, wire.Resume(pid, incarnation + 1, victim.attached.agent_ticket)),
        ):
            channel = Channel.connect(path)
            with pytest.raises(NotAttached):
                channel.request(message)
            channel.close()
    assert works(victim)
    victim.close()


# --- thousands ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SOCKETS)
def test_ten_thousand_connections(rack: RackProcess, name: str) -> None:
    """One process gets so many and no more, which it is told; whoever comes after them is served."""
    member = Member(rack, "member")
    attack = in_another_process(lambda: flood(rack, name, 10_000))
    held, refused = (int(number) for number in attack.strip("()").split(","))
    assert held == PEERS_OF_ONE_MAX and refused == 10_000 - held
    assert works(member)
    member.close()


def flood(rack: RackProcess, name: str, count: int) -> tuple[int, int]:
    """How many of these connections are served at once, and how many are not; meanwhile others are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients: list[socket.socket] = []
    refused = 0
    for _ in range(count):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(10)
        client.connect(str(rack.directory.path / name))
        if is_served(client):
            clients.append(client)
            continue
        words = parting_words(client)
        refused += words is not None and f"has {PEERS_OF_ONE_MAX} connections" in words.message
    with pytest.raises(ConnectionRefused, match="close some"):
        Channel.connect(rack.directory.path / name)
    answer = in_another_process(lambda: lives(rack))
    assert answer == "True", answer
    return len(clients), refused


# --- what lies on the disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOCKETS)
def test_a_socket_that_was_removed(rack: RackProcess, name: str) -> None:
    """It is made again, and leads to the same daemon; whoever is attached notices nothing."""
    member, daemons = Member(rack, "member"), rack.daemons()
    path = rack.directory.path / name
    path.unlink()
    assert works(member)
    assert until(lambda: answers(path))
    assert lives(rack) and works(member)
    assert rack.daemons() == daemons and "has another" in rack.log()
    member.mmu.request(wire.Detach())
    member.close()


def answers(path: Path) -> bool:
    try:
        Channel.connect(path).close()
    except RackGone:
        return False
    return True


def test_what_is_put_in_place_of_a_socket_does_not_stay(rack: RackProcess) -> None:
    path = rack.directory.mmu_socket
    path.unlink()
    path.write_text("nobody listens here")
    assert until(lambda: answers(path))


def test_who_stands_in_the_queue_of_a_socket_that_is_removed_is_served(rack: RackProcess) -> None:
    mmu = rack.daemons()["mmu"]
    os.kill(mmu, signal.SIGSTOP)
    waiting = [connect(rack, "mmu.sock", greet=False) for _ in range(20)]
    rack.directory.mmu_socket.unlink()
    assert until(rack.directory.mmu_socket.exists)
    os.kill(mmu, signal.SIGCONT)
    for client in waiting:
        assert is_served(client)
        client.close()


@pytest.mark.parametrize("part", ["rack", "base", "lock", "rack.json"])
def test_the_private_directory_deleted(rack: RackProcess, part: str) -> None:
    """Whoever is attached notices nothing; the rack is found again, by its name, and can be ended as ever."""
    member, daemons = Member(rack, "member"), rack.daemons()
    delete(rack.directory.path, part)
    assert works(member)
    assert until(lambda: is_whole(rack))
    found = find("test")
    assert found is not None and found.notes().supervisor == rack.supervisor
    assert found.path.stat().st_mode & 0o777 == 0o700
    assert works(member) and lives(rack)
    assert rack.daemons() == daemons
    with pytest.raises(NameTaken):
        claim("test")
    member.mmu.request(wire.Detach())
    member.close()


def delete(directory: Path, part: str) -> None:
    if part in ("rack", "base"):
        shutil.rmtree(directory if part == "rack" else directory.parent)
    else:
        (directory / part).unlink()


def is_whole(rack: RackProcess) -> bool:
    """All of it is there again, and answers."""
    return (
        (rack.directory.path / "rack.json").exists()
        and rack.directory.is_live()
        and all(answers(rack.directory.path / name) for name in SOCKETS)
    )


def test_nothing_looks_at_a_clock_that_can_be_set() -> None:
    """A clock step changes nothing, since no deadline is counted by the time of day."""
    wall = {"time", "time_ns", "localtime", "gmtime", "now", "today", "utcnow"}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE)
        if place.parts[0] in ("_examples", "_benchmarks", "cli") or place == Path("actors/books.py"):
            continue  # what is only shown to people, as on a dead letter, may say what time it is
        if place.parts[0] == "paxos":
            continue  # keys expire by the time of day, as its clients expect; the consensus counts by no such clock
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="time" | "datetime" | "date"), attr=name):
                    assert name not in wall, f"{path.name}, line {node.lineno}: time.{name}"
                case ast.ImportFrom(module="time" | "datetime", names=names):
                    assert not wall & {alias.name for alias in names}, path.name


# --- a hostile member of the group ------------------------------------------------------------------------------------


def data_ranges(fd: int) -> list[tuple[int, int]]:
    """What of a sparse file was ever written."""
    found, position = [], 0
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            return found
        position = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, position))


def scribble(table: mmap.mmap, ranges: list[tuple[int, int]], chance: random.Random) -> None:
    for _ in range(chance.choice((1, 8, 200))):
        start, end = chance.choice(ranges)
        place = chance.randrange(start, end, 8)
        before = int.from_bytes(table[place : place + 8], "little")
        number = chance.choice(
            (
                0,
                2**64 - 1,
                chance.getrandbits(64),
                before ^ (1 << chance.randrange(64)),
                before + 1,
                3 << 61 | 7,
            )
        )
        table[place : place + 8] = (number % 2**64).to_bytes(8, "little")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_forged_descriptors_harm_ones_own_group_only(rack: RackProcess, seed: int) -> None:
    """The daemons survive any table, and the other group, which has another one, notices nothing."""
    chance = random.Random(seed)
    assert until(lambda: len(rack.daemons()) == 4)  # each has its name by then
    daemons = sorted(rack.daemons().values())
    creator = rack.connect()
    reply, _ = creator.request(wire.CreateGroup("good"))
    good = Member(rack, "good", reply.secret)
    evil, mate = Member(rack, "evil"), Member(rack, "mate")
    slabs = [evil.need(2 << 20), mate.need(2 << 20)]
    table = mmap.mmap(evil.table_fd, os.fstat(evil.table_fd).st_size)
    ranges = data_ranges(evil.table_fd)
    for _ in range(60):
        scribble(table, ranges, chance)
        act = chance.choice((wire.NeedSlab(512), wire.FindPeer("mate"), wire.OpenMailbox(create=True),
                             wire.Status("slabs"), wire.Status("processes"), wire.Status("audit"),
                             wire.CrossGrant(chance.randrange(8), chance.getrandbits(64), good.attached.pid,
                                             good.attached.incarnation)))  # fmt: skip
        with suppress(BequestError):
            chance.choice((evil, mate)).mmu.request(act)
        assert works(good) if chance.random() < 0.1 else True
    for member in (evil, mate):
        with suppress(BequestError):
            member.mmu.request(wire.Detach())
        member.close()
    table.close()
    assert slabs and works(good)
    assert not [line for line in rack.audit() if "'good'" in line]
    assert sorted(rack.daemons().values()) == daemons and all(is_running(pid) for pid in daemons)
    good.mmu.request(wire.Detach())
    good.close()
    creator.close()
    assert until(lambda: "good" not in rack.states())
