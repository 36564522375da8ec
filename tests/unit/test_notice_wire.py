"""A subscription's socket whose reader is slow: a bounded queue, the oldest dropped, and that is told."""

from __future__ import annotations

import socket

from bequest.limits import NOTICE_QUEUE_MAX
from bequest.runtime.loop import Wire
from bequest.runtime.notices import NoticeWire
from bequest.runtime.transport import link, new_buffer, receive_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder


def heard(end: socket.socket) -> list[wire.Message]:
    decoder, buffer, messages = Decoder(wire.Notice), new_buffer(), []
    while True:
        try:
            messages.append(decoder.decode(receive_packet(end, buffer).data))
        except BlockingIOError:
            return messages


def test_what_a_reader_reads_arrives_in_order() -> None:
    mine, theirs = link()
    line = NoticeWire.over(Wire(mine, 8))
    for number in range(20):
        line.push(wire.NoticeDied("victim", number, 1))
    assert heard(theirs) == [wire.NoticeDied("victim", number, 1) for number in range(20)]
    assert NoticeWire.over(line) is line
    mine.close()
    theirs.close()


def test_the_oldest_are_dropped_and_their_number_is_told_in_their_place() -> None:
    mine, theirs = link()
    line = NoticeWire.over(Wire(mine, 8))
    count = 5000
    for number in range(count):
        line.push(wire.NoticeDied("victim", number, 1))
        assert len(line.queue) <= NOTICE_QUEUE_MAX
    assert line.dropped > 0
    in_socket = heard(theirs)
    line.flush()
    rest = heard(theirs)
    dropped = rest[0]
    assert isinstance(dropped, wire.NoticesDropped)
    assert len(in_socket) + dropped.count + len(rest) - 1 == count
    assert [notice.pid for notice in in_socket] == list(range(len(in_socket)))
    assert [notice.pid for notice in rest[1:]] == list(range(count - NOTICE_QUEUE_MAX, count))
    line.push(wire.NoticeDied("another", 1, 1))
    assert heard(theirs) == [wire.NoticeDied("another", 1, 1)]
    mine.close()
    theirs.close()
