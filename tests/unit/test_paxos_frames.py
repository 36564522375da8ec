"""Frames between sites: however TCP cuts them, and what is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import msgpack

from bequest.paxos.frames import FRAME_BYTES_MAX, QUEUE_BYTES_MAX, Link, framed

MESSAGES = [b"", b"one", b"x" * 70_000, b"last"]


class Pipe(asyncio.Transport):
    """Where a link writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.waiting = 0
        self.is_over = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_over

    def abort(self) -> None:
        self.is_over = True


def opened() -> tuple[Link, Pipe, list[bytes]]:
    heard: list[bytes] = []
    link = Link(msgpack.Decoder(bytes), lambda _, message: heard.append(message), lambda _: None)
    pipe = Pipe()
    link.connection_made(pipe)
    return link, pipe, heard


@pytest.mark.parametrize("step", [1, 3, 4, 5, 4096, 1 << 20])
def test_frames_come_whole_however_they_are_cut(step: int) -> None:
    link, _, heard = opened()
    data = b"".join(framed(msgpack.encode(message)) for message in MESSAGES)
    for at in range(0, len(data), step):
        link.data_received(data[at : at + step])
    assert heard == MESSAGES


@pytest.mark.parametrize(
    "data", [(FRAME_BYTES_MAX + 1).to_bytes(4, "little"), framed(b"\xc1"), framed(b"\x01")]
)
def test_what_is_no_frame_ends_the_link(data: bytes) -> None:
    link, pipe, heard = opened()
    link.data_received(framed(msgpack.encode(b"good")) + data + framed(msgpack.encode(b"never")))
    assert pipe.is_over and heard == [b"good"] and not link.is_open


def test_what_is_sent_in_one_pass_is_one_write() -> None:
    link, pipe, _ = opened()
    link.send(b"a")
    link.send(b"b")
    assert pipe.written == []
    link.flush()
    link.flush()
    assert pipe.written == [b"ab"]


def test_nobody_waits_for_a_slow_reader() -> None:
    link, pipe, _ = opened()
    pipe.waiting = QUEUE_BYTES_MAX + 1
    link.send(b"a")
    link.flush()
    assert pipe.written == [] and link.dropped == 1
