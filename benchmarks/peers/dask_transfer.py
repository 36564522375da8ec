"""Dask distributed: a result that one worker holds is the input of a task on another.

Timed: submitting the reading task to worker B until its result is back at the client; the result of worker A,
which B must fetch, was complete beforehand. Dask caches inputs, so every hand-off has a new key; it is the
same array each time.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import numpy as np

from .peer import Bytes, Pattern, Peer, checksum

_buffers: dict[int, tuple[Bytes, Pattern]] = {}


def filled(nbytes: int, shift: int) -> Bytes:
    """Runs in worker A: its array with the pattern of that number in it."""
    if nbytes not in _buffers:
        _buffers.clear()
        _buffers[nbytes] = np.ones(nbytes, np.uint8), Pattern(nbytes)
    array, pattern = _buffers[nbytes]
    pattern.stamp(array, shift)
    return array


class DaskTransfer(Peer):
    title = "Dask task to task"
    requires = ("dask", "distributed")

    def __init__(self) -> None:
        distributed: Any = import_module("distributed")
        self.wait = distributed.wait
        # No memory limit: spilling to disk is not what is compared.
        self.cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=":0"
        )
        self.client = distributed.Client(self.cluster)
        self.a, self.b = sorted(self.client.scheduler_info()["workers"])

    def prepare(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.pattern = Pattern(nbytes)
        self.serial = 0

    def round(self) -> float:
        self.serial += 1
        key = f"{self.nbytes}-{self.serial}"
        shift = self.pattern.advance()
        held = self.client.submit(filled, self.nbytes, shift, key="filled-" + key, workers=[self.a])
        self.wait(held)
        started = time.perf_counter()
        answer = self.client.submit(checksum, held, key="checksum-" + key, workers=[self.b]).result()
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer)
        return elapsed

    def close(self) -> None:
        self.client.close()
        self.cluster.close()
