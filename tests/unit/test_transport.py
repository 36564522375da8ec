"""The client's end of a conversation: what a daemon says before it closes is heard, whatever the kernel tells first."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bequest.errors import ConnectionRefused, RackGone
from bequest.runtime.transport import Channel, ConnectionLost
from bequest.wire import messages as wire
from bequest.wire.codec import encode

REFUSED = encode(wire.Failed("refused", "too many"))
REPLY = encode(wire.Failed("bad-name", "what an earlier request was answered"))


class Daemon:
    """The other end of a channel."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours, Path("here"))

    def says_and_closes(self, *packets: bytes) -> None:
        for packet in packets:
            self.socket.send(packet)
        self.socket.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    one = Daemon()
    yield one
    one.channel.close()
    one.socket.close()


def before_we_speak(daemon: Daemon) -> Callable[[], object]:
    """Sending fails: EPIPE."""
    daemon.says_and_closes(REFUSED)
    return lambda: None


def with_what_we_said_unread(daemon: Daemon) -> Callable[[], object]:
    """Receiving fails first: ECONNRESET."""
    return lambda: daemon.says_and_closes(REFUSED)


def with_more_unread_before_we_speak(daemon: Daemon) -> Callable[[], object]:
    """Sending fails, and so does the first attempt to receive."""
    daemon.channel._socket.send(b"unread")
    daemon.says_and_closes(REFUSED)
    return lambda: None


@pytest.mark.parametrize(
    "when", [before_we_speak, with_what_we_said_unread, with_more_unread_before_we_speak]
)
def test_a_refusal_is_heard(daemon: Daemon, when: Callable[[Daemon], Callable[[], object]]) -> None:
    meanwhile = when(daemon)
    with pytest.raises(ConnectionRefused, match="too many"):
        daemon.channel.request(wire.PlaceProcess(), meanwhile=meanwhile)
    assert daemon.channel.is_closed
    with pytest.raises(ConnectionLost):
        daemon.channel.request(wire.PlaceProcess())


def test_a_daemon_that_says_nothing_is_lost(daemon: Daemon) -> None:
    daemon.socket.close()
    with pytest.raises(ConnectionLost):
        daemon.channel.request(wire.PlaceProcess())


def test_a_reply_to_an_earlier_request_is_not_taken_for_a_refusal(daemon: Daemon) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        daemon.channel.request(wire.PlaceProcess(), meanwhile=interrupt)
    daemon.says_and_closes(REPLY)
    with pytest.raises(ConnectionLost):
        daemon.channel.request(wire.PlaceProcess())


def test_a_refusal_in_place_of_a_notice(daemon: Daemon) -> None:
    daemon.says_and_closes(REFUSED)
    with pytest.raises(ConnectionRefused):
        daemon.channel.next_notice()
    with pytest.raises(RackGone):
        daemon.channel.next_notice()
