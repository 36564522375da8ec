"""Who gets no connection, and what it is told."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from bequest.limits import PEERS_MAX, PEERS_OF_ONE_MAX
from bequest.runtime.admission import last_words, refusal


@pytest.mark.parametrize(
    ("owner", "uid", "of_one", "of_all", "why"),
    [
        (1000, 1000, 0, 0, ""),
        (1000, 0, 0, 0, ""),  # root may look after everybody's racks
        (0, 0, 0, 0, ""),
        (1000, 1001, 0, 0, "user 1000's"),
        (0, 1001, 0, 0, "user 0's"),
        (1, 1, PEERS_OF_ONE_MAX - 1, PEERS_MAX - 1, ""),
        (1, 1, PEERS_OF_ONE_MAX, PEERS_OF_ONE_MAX, f"this process has {PEERS_OF_ONE_MAX} connections"),
        (1, 1, 0, PEERS_MAX, f"the daemon has {PEERS_MAX} connections"),
    ],
)
def test_who_is_refused(owner: int, uid: int, of_one: int, of_all: int, why: str) -> None:
    told = refusal("the daemon", owner, uid, of_one, of_all)
    assert why in told and bool(told) == bool(why)


def test_nobody_waits_for_who_does_not_read() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with suppress(BlockingIOError):
            while True:
                ours.send(b"unread", socket.MSG_DONTWAIT)
        last_words(ours, "protocol", "this does not get through")
