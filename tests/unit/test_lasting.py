"""A client that comes back to a daemon which takes its time keeps the connection on which it has said who it is."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from bequest.errors import ConnectionRefused, RackGone
from bequest.limits import PACKET_BYTES_MAX
from bequest.runtime import lasting
from bequest.runtime.admission import send_away
from bequest.runtime.lasting import LastingChannel, RackLife, _began
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, encode

RESUME = wire.Resume(7, 1, b"ticket")


class SlowDaemon:
    """Answers at once, but a process that comes back only when it may; notes what it was told, per connection."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        self.told: list[list[wire.Message]] = []
        self.may_answer = threading.Event()
        self.was_resumed = threading.Event()
        self.refuses = 0  # so many connections
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            if self.refuses > 0:
                self.refuses -= 1
                send_away(connection, "too many connections")
                continue
            self.told.append([])
            threading.Thread(target=self._serve, args=(connection, self.told[-1]), daemon=True).start()

    def _serve(self, connection: socket.socket, told: list[wire.Message]) -> None:
        decoder = Decoder(wire.MmuSocket)
        while data := self._received(connection):
            message = decoder.decode(data)
            told.append(message)
            answer: wire.Message = wire.Done()
            if isinstance(message, wire.Hello):
                answer = wire.Welcome("test", "rack-mmu", 1, len(self.told))
            elif isinstance(message, wire.Sync):
                answer = wire.Synced(message.number)
            elif isinstance(message, wire.Resume):
                self.was_resumed.set()
                self.may_answer.wait(10)
                answer = wire.Resumed(7)
            connection.send(encode(answer))

    def _received(self, connection: socket.socket) -> bytes:
        try:
            return connection.recv(PACKET_BYTES_MAX)
        except OSError:
            return b""

    def close(self) -> None:
        self.may_answer.set()
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[SlowDaemon]:
    one = SlowDaemon(tmp_path / "mmu.sock")
    yield one
    one.close()


@pytest.fixture
def channel(daemon: SlowDaemon, tmp_path: Path) -> Iterator[LastingChannel]:
    """Whose daemon has just died, and been followed by another at the same socket."""
    one = LastingChannel(tmp_path / "mmu.sock")
    one.returns_as(RESUME)
    daemon.connections[0].shutdown(socket.SHUT_RDWR)
    yield one
    one.close()


def test_a_look_whether_the_daemon_is_there_waits_for_the_answer_of_one_that_is(
    daemon: SlowDaemon, channel: LastingChannel
) -> None:
    threading.Timer(0.5, daemon.may_answer.set).start()
    assert channel.is_alive()
    channel.request(wire.PlaceProcess())
    assert len(daemon.told) == 2, "the connection of the look was kept"
    assert [type(message) for message in daemon.told[1]] == [wire.Hello, wire.Resume, wire.PlaceProcess]


def test_an_interrupt_keeps_the_connection_and_the_next_request_says_again_who_is_back(
    daemon: SlowDaemon, channel: LastingChannel
) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            channel.request(wire.PlaceProcess())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert daemon.was_resumed.is_set()
    daemon.may_answer.set()
    reply, _ = channel.request(wire.PlaceProcess())
    assert reply == wire.Done()
    assert len(daemon.told) == 2
    asked = [type(message) for message in daemon.told[1]]
    assert asked == [wire.Hello, wire.Resume, wire.Sync, wire.Resume, wire.PlaceProcess]


def test_whoever_was_connected_waits_for_a_daemon_that_has_no_room(
    daemon: SlowDaemon, channel: LastingChannel
) -> None:
    daemon.may_answer.set()
    daemon.refuses = 3
    assert channel.is_alive(), "it refuses, so it is there"
    reply, _ = channel.request(wire.PlaceProcess())
    assert reply == wire.Done() and daemon.refuses == 0


def test_but_not_for_ever(
    daemon: SlowDaemon, channel: LastingChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "RESTART_TIMEOUT", 0.2)
    daemon.refuses = 1000
    with pytest.raises(ConnectionRefused, match="too many"):
        channel.request(wire.PlaceProcess())


def test_a_first_connection_that_is_refused_is_told_at_once(daemon: SlowDaemon, tmp_path: Path) -> None:
    daemon.refuses = 1000
    with pytest.raises(ConnectionRefused, match="too many"):
        LastingChannel(tmp_path / "mmu.sock")
    assert daemon.refuses == 999


def test_another_rack_at_the_same_socket_is_told_from_ones_own(daemon: SlowDaemon, tmp_path: Path) -> None:
    """Though both run."""
    another = RackLife(os.getppid(), _began(os.getppid()))
    assert not another.has_ended()
    with pytest.raises(RackGone, match="has ended"):
        LastingChannel(tmp_path / "mmu.sock", another)
