"""Room in the heap: a replica takes more memory in before there is none left.

A heap that is full asks its rack for as much again as it has, in the middle of a transaction, and nothing else is done
until that has been made ready: a tenth of a second for 32 MiB, seconds for gigabytes. All replicas have the same state,
so all of them would stand still at the same time, and nobody be answered. Therefore a thread asks for more as soon as
three quarters are used: not for as much again, which takes longer, so that the heap might be full by then. If writes
come faster than memory is made ready, or the rack has no more, the heap still does what it can when it is full.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from bequest.errors import RackMemoryError
from bequest.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.memory.process import Process
    from bequest.memory.region import Region
    from bequest.objects.heap import Heap

log = logging.getLogger("bequest.paxos")

_LOOK_INTERVAL = 0.1  # seconds
_REFUSED_INTERVAL = 5.0  # after the rack had nothing left
_FREE_PART = 4  # one part in so many is to be free
_GROWTH_PART = 4  # it grows by one part in so many: to 10 GiB by 32 regions,
_GROWTH_BYTES = 16 * MIB  # or by so much, if that is more
_LEAST_BYTES = 4 * MIB  # less is not worth a region: a heap can have 64


async def keep_room(process: Process, heap: Heap, progress: Callable[[], int]) -> None:
    """Sees to it, until it is cancelled. As long as ``progress`` says the same, the heap is taken to be unchanged."""
    seen, told = -1, False
    while True:
        await asyncio.sleep(_LOOK_INTERVAL)
        before, seen = seen, progress()
        if seen == before or heap.free_bytes * _FREE_PART >= heap.nbytes:
            continue
        wanted = max(heap.nbytes // _GROWTH_PART, _GROWTH_BYTES)
        region = await asyncio.to_thread(_allocated, process, wanted)
        if region is not None:
            heap.extend(region)
            told = False
            continue
        if not told:
            log.warning(
                "the heap is almost full, %d of %d bytes are free, and the rack has no more: give it more memory",
                heap.free_bytes, heap.nbytes,
            )  # fmt: skip
        told = True
        await asyncio.sleep(_REFUSED_INTERVAL)


def _allocated(process: Process, nbytes: int) -> Region | None:
    """So much, or a part of it; None if there is nothing worth while."""
    while nbytes >= _LEAST_BYTES:
        try:
            return process.alloc(nbytes)
        except RackMemoryError:
            nbytes //= 2
    return None
