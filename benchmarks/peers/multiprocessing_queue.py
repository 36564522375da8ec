"""`multiprocessing.SimpleQueue`: the array is pickled, written to a pipe, read from it and unpickled."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np

from .pair import PairPeer, Receiver
from .peer import Pattern, checksum


class QueueReceiver(Receiver):
    def receive(self) -> None:
        items, answers = self.channel
        answers.put(checksum(items.get()))


class MultiprocessingQueue(PairPeer):
    title = "multiprocessing.SimpleQueue"
    receiver = QueueReceiver

    def make_channel(self) -> tuple[SimpleQueue[Any], SimpleQueue[int]]:
        context = multiprocessing.get_context("spawn")
        return context.SimpleQueue(), context.SimpleQueue()

    def prepare(self, nbytes: int) -> None:
        self.array = np.ones(nbytes, np.uint8)
        self.pattern = Pattern(nbytes)
        self.announce(nbytes)

    def round(self) -> float:
        self.pattern.write(self.array)
        items, answers = self.channel
        started = time.perf_counter()
        items.put(self.array)
        answer = answers.get()
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer)
        return elapsed
