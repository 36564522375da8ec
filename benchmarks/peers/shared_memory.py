"""`multiprocessing.shared_memory`: the segment is filled beforehand, its name is sent, B opens and maps it.

The same segment serves every hand-off, which spares this peer the first touch that a segment per message
would cost.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from .pair import PairPeer, Receiver
from .peer import Bytes, Pattern, as_bytes, checksum


class NameReceiver(Receiver):
    def receive(self) -> None:
        connection: Connection = self.channel
        segment = SharedMemory(name=connection.recv())
        connection.send(checksum(segment.buf))
        segment.close()


class SharedMemoryByName(PairPeer):
    title = "multiprocessing.shared_memory"
    receiver = NameReceiver
    segment: SharedMemory | None = None

    def make_channel(self) -> tuple[Connection, Connection]:
        return multiprocessing.get_context("spawn").Pipe()

    def channel_of_b(self) -> Connection:
        end: Connection = self.channel[1]
        return end

    def prepare(self, nbytes: int) -> None:
        self._let_go()
        self.segment = SharedMemory(create=True, size=nbytes)
        view: Bytes = as_bytes(self.segment.buf)
        view[:] = np.uint8(1)
        self.pattern = Pattern(nbytes)
        self.announce(nbytes)

    def round(self) -> float:
        assert self.segment is not None
        self.pattern.write(self.segment.buf)
        connection: Connection = self.channel[0]
        started = time.perf_counter()
        connection.send(self.segment.name)
        answer = connection.recv()
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer)
        return elapsed

    def _let_go(self) -> None:
        if self.segment is not None:
            self.segment.close()
            self.segment.unlink()
            self.segment = None

    def close(self) -> None:
        super().close()
        self._let_go()
