"""The loop under the daemons: what cannot be sent is not the end of the sender."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bequest.limits import PACKET_BYTES_MAX
from bequest.runtime.loop import Daemon, Link, Peer, Wire
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder

TOO_LONG = wire.Failed("memory", "x" * PACKET_BYTES_MAX)


class Mute(Daemon):
    def __init__(self) -> None:
        """No supervisor, no clients: only what sending needs."""
        self._selector = selectors.DefaultSelector()
        self._peers = {}

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        raise AssertionError

    def link_message(self, link: Link, message: wire.Message) -> None:
        raise AssertionError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


def received(end: socket.socket, union: Any) -> wire.Message:
    return Decoder(union).decode(end.recv(PACKET_BYTES_MAX))


def test_what_is_too_long_for_a_link_is_lost_and_the_link_is_not(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    daemon, link = Mute(), Link("element", "a", "memory element a", Decoder(wire.Done), Wire(ends[0], 8))
    daemon._selector.register(ends[0], selectors.EVENT_READ, link)
    daemon.send_to_link(link, TOO_LONG)
    daemon.send_to_link(link, wire.Done())
    assert received(ends[1], wire.Done | wire.Failed) == wire.Done()


def test_a_reply_that_is_too_long_is_answered_as_such(ends: tuple[socket.socket, socket.socket]) -> None:
    daemon = Mute()
    daemon._peers[1] = Peer(1, Wire(ends[0], 8), 1, 1, None)
    daemon._selector.register(ends[0], selectors.EVENT_READ, daemon._peers[1])
    daemon.reply(1, TOO_LONG)
    reply = received(ends[1], wire.Done | wire.Failed)
    assert isinstance(reply, wire.Failed) and reply.kind == "size"


def test_what_is_unwatched_in_a_batch_is_not_called_in_it() -> None:
    """Two processes that end at once: what is done about the first may be to forget the second."""
    daemon = Mute()
    daemon._stopping = None
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def forget_the_other(number: int) -> None:
        called.append(number)
        daemon.unwatch(pipes[1 - number][0])

    for number, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        daemon.watch(read_end, partial(forget_the_other, number))
    daemon._handle(daemon._selector.select(0))
    assert len(called) == 1
    for end in (*pipes[0], *pipes[1]):
        os.close(end)
