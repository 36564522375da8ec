"""A replica alone, in this process: a front, a store, and nothing between them that could disagree.

What the consensus would do, number commands and stamp them, is done here at once, in one transaction for all that has
come in a pass. `DictEntries` stands for a map in a heap where no heap is needed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from bequest.paxos.front import Front, Limits
from bequest.paxos.keyspace import Entries
from bequest.paxos.outputs import Refused, Reply
from bequest.paxos.store import Store

Done = Callable[[Reply | Refused], None]


class DictEntries(dict[bytes, bytes]):
    """A dict that can be scanned: a cursor is a place in the order of keys."""

    def scan(self, cursor: int = 0, count: int = 100) -> tuple[int, list[bytes]]:
        """In the order of (a prefix of) the keys, which does not change with them."""
        places = sorted((int.from_bytes(key[:8].ljust(8, b"\0"), "big"), key) for key in self)
        left = [(place, key) for place, key in places if place >= cursor]
        found = left[:count]
        while len(found) < len(left) and left[len(found)][0] == found[-1][0]:
            found.append(left[len(found)])
        return (0 if len(found) == len(left) else left[len(found)][0]), [key for _, key in found]


class LoneReplica:
    """Serves on a port of its own, in the running loop."""

    def __init__(
        self,
        entries: Entries | None = None,
        transaction: Callable[[], AbstractContextManager[object]] = nullcontext,
        limits: Limits | None = None,
    ) -> None:
        self.store = Store(DictEntries() if entries is None else entries)
        self._transaction = transaction
        self._commands: list[tuple[bytes, Done]] = []
        self._queries: list[tuple[bytes, Done]] = []
        self.applied = 0
        self.skew_ms = 0  # added to the time: tests need not wait
        self.refusal: Refused | None = None  # what is said to all, if set
        self.holding = False  # requests wait while this is set
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = listener.getsockname()[1]
        self.front = Front(listener, self._submit, self._read, self.store, limits=limits or Limits())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.skew_ms

    def _submit(self, command: bytes, done: Done) -> None:
        self._commands.append((command, done))
        asyncio.get_running_loop().call_soon(self.do_pass)

    def _read(self, query: bytes, done: Done) -> None:
        self._queries.append((query, done))
        asyncio.get_running_loop().call_soon(self.do_pass)

    def do_pass(self) -> None:
        """All that has come."""
        if self.holding:
            return
        commands, self._commands = self._commands, []
        queries, self._queries = self._queries, []
        outcomes: list[tuple[Done, Reply | Refused]] = []
        with self._transaction():
            for command, done in commands:
                self.applied += 1
                reply = self.store.apply(self.applied, self.now_ms(), command)
                outcomes.append((done, self.refusal or Reply(None, reply)))
        for query, done in queries:
            outcomes.append((done, self.refusal or Reply(None, self.store.query(self.now_ms(), query))))
        for done, outcome in outcomes:
            done(outcome)
        self.front.deliver()


@contextmanager
def serving(make: Callable[[], LoneReplica] = LoneReplica) -> Iterator[LoneReplica]:
    """A lone replica in a loop of its own, in a thread of its own, for clients that block."""
    ready: list[LoneReplica | BaseException] = []
    woken = threading.Event()

    async def serve() -> None:
        try:
            replica = make()
            await replica.front.start()
        except BaseException as error:
            ready.append(error)
            woken.set()
            raise
        stop = asyncio.Event()
        replica.stop = lambda: loop.call_soon_threadsafe(stop.set)  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        replica.call = lambda action: loop.call_soon_threadsafe(action)  # type: ignore[attr-defined]
        ready.append(replica)
        woken.set()
        await stop.wait()
        replica.front.close()
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    woken.wait()
    found = ready[0]
    if isinstance(found, BaseException):
        thread.join()
        raise found
    try:
        yield found
    finally:
        found.stop()  # type: ignore[attr-defined]
        thread.join()
