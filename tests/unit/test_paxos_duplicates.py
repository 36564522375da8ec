"""The holder's duplicates of clients' connections: ended when their worker is dead, forgotten when they have ended."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bequest.paxos.duplicates import Duplicates


@pytest.fixture
def duplicates() -> Iterator[Duplicates]:
    made = Duplicates()
    yield made
    made.close()


@pytest.fixture
def open_one() -> Iterator[object]:
    """Makes connections: both ends of one."""
    with ExitStack() as opened, socket.create_server(("127.0.0.1", 0)) as listening:

        def connect() -> tuple[socket.socket, socket.socket]:
            client = opened.enter_context(socket.create_connection(listening.getsockname(), 20))
            return client, opened.enter_context(listening.accept()[0])

        yield connect


def keep(duplicates: Duplicates, connection: socket.socket, owner: int) -> None:
    duplicates.keep(connection.dup().detach(), owner)


def test_the_clients_of_one_worker_are_hung_up_on_though_it_keeps_its_sockets(
    duplicates: Duplicates, open_one: object
) -> None:
    (first, one), (second, other), (third, not_its) = (open_one() for _ in range(3))  # type: ignore[operator]
    for connection, owner in ((one, 1), (other, 1), (not_its, 2)):
        keep(duplicates, connection, owner)
    duplicates.shut_down(1)
    assert (first.recv(1), second.recv(1), len(duplicates)) == (b"", b"", 1)
    not_its.sendall(b"x")
    assert third.recv(1) == b"x"


def test_a_connection_that_its_worker_ends_is_forgotten(duplicates: Duplicates, open_one: object) -> None:
    client, served = open_one()  # type: ignore[operator]
    keep(duplicates, served, 1)
    client.shutdown(socket.SHUT_WR)
    assert served.recv(1) == b""
    duplicates.forget_ended()
    assert len(duplicates) == 1, "it may have to be answered still"
    served.shutdown(socket.SHUT_RDWR)
    duplicates.forget_ended()
    assert len(duplicates) == 0
    assert client.recv(1) == b"", "nobody has it open any more"


def test_descriptors_are_left_for_other_things(open_one: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4, 4))
    duplicates = Duplicates()
    for _ in range(3):
        keep(duplicates, open_one()[1], 1)  # type: ignore[operator]
    assert len(duplicates) == 2
    duplicates.close()
