"""A replica's heap gets more memory before it is full: nobody waits for that in the middle of a write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import bequest as bq
from bequest.objects import Heap, Map
from bequest.paxos.room import keep_room
from racks import MIB, Yard

SOON = 20.0


def fill(heap: Heap, free_part: float) -> None:
    """Until no more than this part of it is free."""
    entries = Map(heap, "entries")
    while heap.free_bytes > free_part * heap.nbytes:
        entries[b"%d" % len(entries)] = bytes(64 << 10)


async def keeping(heap: Heap, me: bq.Process, wanted: Callable[[], bool]) -> None:
    """Until it is as wanted."""
    keeper = asyncio.ensure_future(keep_room(me, heap, lambda: heap.free_bytes))
    async with asyncio.timeout(SOON):
        while not wanted():
            await asyncio.sleep(0.005)
    keeper.cancel()


def test_more_memory_is_there_before_there_is_none_left(yard: Yard) -> None:
    yard.rack("dram0:48MiB")
    me = yard.attach("me")
    with me.alloc(8 * MIB) as region, Heap.create(region, grow=False) as heap:  # it does not grow by itself
        fill(heap, 0.2)
        asyncio.run(keeping(heap, me, lambda: len(heap.regions) > 1))
        assert heap.nbytes == (8 + 16) * MIB
        fill(heap, 0.2)
        asyncio.run(keeping(heap, me, lambda: len(heap.regions) > 2))
        assert heap.nbytes == (8 + 16 + 16) * MIB


def test_as_much_as_there_is_and_a_warning_when_there_is_none(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    yard.rack("dram0:22MiB")
    me = yard.attach("me")
    with me.alloc(16 * MIB) as region, Heap.create(region, grow=False) as heap:
        fill(heap, 0.2)
        asyncio.run(keeping(heap, me, lambda: len(heap.regions) > 1))
        assert heap.nbytes == 20 * MIB
        fill(heap, 0.2)
        asyncio.run(keeping(heap, me, lambda: "give it more memory" in caplog.text))
        assert heap.nbytes == 20 * MIB
