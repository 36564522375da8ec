"""A rehearsal: a standby does beforehand, for nobody, what it will have to do in a hurry when its replica dies.

What a process does for the first time is slow. Its modules are shared with the holder that it was forked from, and each
page is copied as it is written to for the first time; the interpreter has yet to learn what types it will meet; and
what is imported or made at first use is not there. Together that is milliseconds, between a death and the next answer.

So a standby goes on as a replica again and again: one of a service of its own with a single site, whose heap is
thrown away afterwards. A client comes each time, and writes and reads over TCP, as those will who have been waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from bequest.limits import MIB
from bequest.objects.heap import Heap
from bequest.paxos.config import Address, Service, Site
from bequest.paxos.heap_ledger import HeapLedger
from bequest.paxos.holder import Lifeline, Options, Sockets, listen
from bequest.paxos.messages import first_membership
from bequest.paxos.peers import Peers
from bequest.paxos.replica import Beginning, Replica
from bequest.paxos.timing import Timing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bequest.memory.process import Process

_LIVES = 10  # the interpreter has seen enough of a function after eight calls
_HEAP_BYTES = 4 * MIB
_HERE = Address("127.0.0.1", 0)
_SITE = Site("here", "", _HERE, _HERE)
_SERVICE = Service("rehearsal", (_SITE,), Timing(heartbeat=0.002, lease=0.005, election_jitter=0.0))
_SAID = (
    (b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n", b"+OK\r\n"),
    (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"$1\r\n1\r\n"),
)


async def rehearse(me: Process) -> None:
    """Goes on as a replica some times over. Raises RackMemoryError if there is no memory for that."""
    with me.alloc(_HEAP_BYTES) as region, _nothing_logged():
        heap = Heap.create(region)
        HeapLedger.found(heap, 1, first_membership([_SITE.name]))
        for _ in range(_LIVES):
            await _live(me, heap)
            heap = Heap.open(region)
        heap.close()


async def _live(me: Process, heap: Heap) -> None:
    """One life of it; the heap is closed afterwards."""
    replica = Replica(_SERVICE, _SITE, Options(), me, Peers(_SERVICE, _SITE), Beginning(heap, False, None))
    sockets = Sockets(listen(_HERE), listen(_HERE))
    clients = sockets.clients.getsockname()
    holder, report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    holder.close()  # who lends connections to nobody is told, and does not mind
    try:
        with report:
            await replica.serve(sockets, Lifeline(report, -1))
            await asyncio.wait_for(_be_a_client(clients), _SERVICE.timing.patience)
    finally:
        replica.stop()


async def _be_a_client(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        for said, answer in _SAID:
            writer.write(said)
            heard = await reader.readexactly(len(answer))
            assert heard == answer, f"{said!r} is answered with {heard!r}"
    finally:
        writer.close()
        await writer.wait_closed()


@contextlib.contextmanager
def _nothing_logged() -> Iterator[None]:
    """None of what would be worth a line if it were not a rehearsal. Warnings are."""
    log = logging.getLogger("bequest.paxos")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
