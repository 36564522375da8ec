"""State that is worth inheriting: a crash-consistent heap in rack memory, and objects in it.

Memory that outlives its process is of use only if what is on it makes sense at every instant. `Heap` lies in regions;
whoever owns those, by grant, by theft or after a crash, opens it and finds each transaction done or not done.

    from bequest.objects import Heap, Map

    heap = Heap.create(me.alloc(64 << 20))
    jobs = Map(heap, "jobs")                   # found by its name, or made
    jobs[b"job-1"] = b"waiting"                # each operation is a transaction
    with heap.transaction():                   # several are one
        jobs[b"job-1"] = b"running"
        jobs[b"job-2"] = b"waiting"

This module only re-exports.
"""

from __future__ import annotations

from bequest.objects.array import Array
from bequest.objects.heap import Heap, Journal, Recovery, Root, Transaction
from bequest.objects.log import Log
from bequest.objects.map import Map
from bequest.objects.queue import Queue
from bequest.objects.struct import Field, Struct

__all__ = [
    "Array",
    "Field",
    "Heap",
    "Journal",
    "Log",
    "Map",
    "Queue",
    "Recovery",
    "Root",
    "Struct",
    "Transaction",
]
