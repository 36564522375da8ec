"""iceoryx2 publish-subscribe: zero copy, both sides spin, the way its own publish-subscribe benchmark does.

A loans a slice and fills it (untimed), sends it; B polls, reads the payload, answers on a second service; A
polls for the answer. Loaning, on both sides, happens outside the timed part, which the benchmark of iceoryx2
itself includes. B may only read what it gets, and A keeps its access: nothing is revoked.
"""

from __future__ import annotations

import ctypes
import os
import time
from importlib import import_module
from typing import Any

from .pair import PairPeer, Receiver
from .peer import Pattern, as_bytes, checksum


def open_service(node: Any, name: str) -> Any:
    """The service with the settings of iceoryx2's own benchmark: one sender, one receiver, one place."""
    iox2 = import_module("iceoryx2")
    return (
        node.service_builder(iox2.ServiceName.new(name))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .max_publishers(1)
        .max_subscribers(1)
        .history_size(0)
        .subscriber_max_buffer_size(1)
        .subscriber_max_borrowed_samples(1)
        .enable_safe_overflow(True)
        .open_or_create()
    )


def open_node() -> Any:
    """A node of this process; it says only what went wrong."""
    iox2 = import_module("iceoryx2")
    iox2.set_log_level(iox2.LogLevel.Error)
    return iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)


def delete_all(*things: Any) -> None:
    """Deletes ports and samples now, not when the collector comes; None is skipped."""
    for thing in things:
        if thing is not None:
            thing.delete()


class SpinningSubscriber(Receiver):
    subscriber: Any = None
    answers: Any = None
    answer: Any = None

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        self.node = open_node()

    def prepare(self, nbytes: int, details: Any) -> None:
        delete_all(self.answer, self.answers, self.subscriber)
        name: str = details
        self.subscriber = open_service(self.node, name).subscriber_builder().create()
        answers = open_service(self.node, name + "/answer").publisher_builder()
        self.answers = answers.initial_max_slice_len(1).create()
        self.answer = self.answers.loan_slice_uninit(1)

    def receive(self) -> None:
        place = self.answer.payload()
        poll = self.subscriber.receive
        sample = poll()
        while sample is None:
            sample = poll()
        place[0] = checksum(sample.payload().as_memory_view())
        self.answer.assume_init().send()
        sample.delete()
        self.answer = self.answers.loan_slice_uninit(1)

    def close(self) -> None:
        delete_all(self.answer, self.answers, self.subscriber)


class Iceoryx2PubSub(PairPeer):
    title = "iceoryx2 publish-subscribe"
    requires = ("iceoryx2",)
    receiver = SpinningSubscriber
    rest_seconds = 0
    publisher: Any = None
    answers: Any = None

    def __init__(self) -> None:
        self.node = open_node()
        super().__init__()

    def prepare(self, nbytes: int) -> None:
        delete_all(self.publisher, self.answers)
        name = f"bequest-benchmark/{os.getpid()}/{nbytes}"
        publishers = open_service(self.node, name).publisher_builder()
        self.publisher = publishers.initial_max_slice_len(nbytes).create()
        self.answers = open_service(self.node, name + "/answer").subscriber_builder().create()
        self.nbytes = nbytes
        self.pattern = Pattern(nbytes)
        self.filled: set[int] = set()
        self.announce(nbytes, name)

    def _filled_sample(self) -> Any:
        """A loaned slice with the next pattern in it; memory never loaned before is filled entirely."""
        loan = self.publisher.loan_slice_uninit(self.nbytes)
        payload = loan.payload()
        if payload.as_ptr() not in self.filled:
            as_bytes(payload.as_memory_view())[:] = 1
            self.filled.add(payload.as_ptr())
        self.pattern.write(payload.as_memory_view())
        return loan.assume_init()

    def round(self) -> float:
        sample = self._filled_sample()
        poll = self.answers.receive
        started = time.perf_counter()
        sample.send()
        answer = poll()
        while answer is None:
            answer = poll()
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer.payload()[0])
        answer.delete()
        return elapsed

    def close(self) -> None:
        super().close()
        delete_all(self.publisher, self.answers)
