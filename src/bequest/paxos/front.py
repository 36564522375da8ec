"""The front of a replica: its clients' connections, in asyncio.

Theory of operation. What has come from all connections in one turn of the event loop is sent on as one **batch**
(store.py): one for the log, one of questions. Some batches may be under way at a time; what comes meanwhile gathers
for the next, so batches grow with the load, and what a command costs shrinks. Each connection has one run of operations
in all of them (conversation.py), and its replies leave in one write.

**Nobody can hurt the others.** What clients have sent and is not done, and what they have not fetched, is counted:

* a connection with enough to do is not read from until that is done; the kernel makes its client wait;
* nothing more is carried out for a client that does not fetch its replies; one who leaves a message of a channel
  unfetched for long, or leaves too many, is disconnected;
* beyond what all connections together may hold, the one that asked for the last of it is disconnected;
* beyond so many connections, the next is told so, and closed.

A write whose outcome is not known is answered with an error that says so, never twice tried here: whether it may be
sent again, the client knows.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from bequest.paxos.conversation import Conversation, Run
from bequest.paxos.outputs import Refused
from bequest.paxos.pubsub import Channels
from bequest.paxos.replies import encode, error, pack, unpack
from bequest.paxos.resp import Bounds

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.paxos.outputs import Reply
    from bequest.paxos.store import Store

log = logging.getLogger("bequest.paxos")

_BACKLOG = 4096  # connections that wait in the kernel while nobody serves
_OPERATIONS_MAX = 4096  # in one batch,
_UNDER_WAY_MAX = 2  # of which so many are on their way into the log, and so many again are questions
_BATCH_BYTES = 1 << 20  # of one batch, and one run more
_READ_AHEAD_BYTES = 256 << 10  # of one connection
_UNSENT_BYTES = 256 << 10  # to one connection, before nothing more is done for it
_LINGER = 10.0  # seconds in which the last replies may be fetched
_TICK = 0.1  # seconds between looks at what has expired, and who does not fetch


class Limits(NamedTuple):
    """What clients may ask for: see the module."""

    bounds: Bounds = Bounds()
    connections: int = 10_000
    held_bytes: int = 128 << 20  # received from all clients, and not carried out
    unsent_bytes: int = 256 << 20  # to all clients
    unfetched_bytes: int = 8 << 20  # messages of channels, to one client
    stalled: float = 60.0  # seconds in which a client takes nothing of what waits for it


class Stall(NamedTuple):
    """When a client was last seen to fetch anything, and how much waited for it then."""

    since: float
    unsent_bytes: int


class Front:
    """Serves the clients who connect to ``listener``, which listens already.

    ``submit`` takes a batch for the log, and ``read`` one of questions, each with whom to call with what comes of it,
    `Reply` or `Refused`. ``is_leading`` says whether this replica is to see to it that what has expired goes;
    ``describe`` what INFO says. ``lend`` is told the descriptor of each connection: there may be duplicates of it, so
    it is shut down when it ends, and not just closed. Call `deliver` after each commit.
    """

    def __init__(
        self,
        listener: socket.socket,
        submit: Callable[[bytes, Callable[[Reply | Refused], None]], None],
        read: Callable[[bytes, Callable[[Reply | Refused], None]], None],
        store: Store,
        *,
        is_leading: Callable[[], bool] = lambda: True,
        describe: Callable[[], dict[str, object]] = dict,
        lend: Callable[[int], None] = lambda fd: None,
        limits: Limits = Limits(),  # noqa: B008 - it is immutable
    ) -> None:
        self._listener = listener
        self._writes = _Batches(submit)
        self._reads = _Batches(read)
        self._store = store
        self._is_leading = is_leading
        self._describe = describe
        self.lend = lend
        self.limits = limits
        self.channels = Channels(store.listen)
        self.connections: dict[Connection, None] = {}
        self.blocked: dict[Connection, Stall] = {}  # who does not fetch
        self.waiting: dict[Connection, float] = {}  # who waits for a lock, and until when
        self.dirty: dict[Connection, None] = {}  # who has messages that have not been sent
        self.held_bytes = 0
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._is_expiring = False

    async def start(self) -> None:
        """Serves from now on, also those who have been waiting."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), sock=self._listener, backlog=_BACKLOG
        )
        self._ticker = loop.call_later(_TICK, self._tick)

    def close(self) -> None:
        """Serves no more: closes all connections. What is under way may happen yet."""
        if self._server is not None:
            self._server.close()
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in list(self.connections):
            connection.abort()

    def deliver(self) -> None:
        """What has been published by what was committed goes to those who subscribe."""
        events = self._store.take_events()
        if events:
            self.channels.deliver(events)
            dirty, self.dirty = self.dirty, {}
            for connection in dirty:
                connection.hear()

    def describe(self) -> dict[str, object]:
        """What INFO says."""
        mine = {"connected_clients": len(self.connections), "blocked_clients": len(self.blocked)}
        return mine | self._describe()

    def carry_out(self, connection: Connection, run: Run) -> None:
        """Sends on what one connection wants done, with what others do."""
        (self._writes if run.is_write else self._reads).add(connection, run)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(_TICK, self._tick)
        if not self._is_expiring and self._is_leading() and self._store.is_due(time.time_ns() // 1_000_000):
            self._is_expiring = True
            self._writes.submit(pack([]), self._has_expired)
        now = loop.time()
        for connection, stall in list(self.blocked.items()):
            if connection.unsent_bytes < stall.unsent_bytes:
                self.blocked[connection] = Stall(now, connection.unsent_bytes)
            elif now - stall.since > self.limits.stalled:
                connection.drop(f"has taken nothing for {self.limits.stalled:g} s of what waits for it")

        for connection, until in list(self.waiting.items()):
            if until < now:
                connection.stop_waiting()

    def _has_expired(self, _: Reply | Refused) -> None:
        self._is_expiring = False

    def relieve(self) -> None:
        """Somebody has been blocked: if too much waits in all, who has most is disconnected."""
        unsent = {connection: connection.unsent_bytes for connection in self.blocked}
        if sum(unsent.values()) > self.limits.unsent_bytes:
            worst = max(unsent, key=lambda connection: unsent[connection])
            worst.drop(
                f"has not fetched {unsent[worst]} bytes, and all clients together over {self.limits.unsent_bytes}"
            )


class _Batches:
    """Runs that wait, and batches that are under way, of one kind."""

    def __init__(self, submit: Callable[[bytes, Callable[[Reply | Refused], None]], None]) -> None:
        self.submit = submit
        self._waiting: deque[tuple[Connection, Run]] = deque()
        self._under_way = 0
        self._is_due = False

    def add(self, connection: Connection, run: Run) -> None:
        self._waiting.append((connection, run))
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_due and self._waiting and self._under_way < _UNDER_WAY_MAX:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        batch: list[tuple[Connection, Run]] = []
        operations: list[list[Any]] = []
        nbytes = 0
        while self._waiting and len(operations) < _OPERATIONS_MAX and nbytes < _BATCH_BYTES:
            connection, run = self._waiting.popleft()
            batch.append((connection, run))
            operations += run.operations
            nbytes += run.nbytes
        self._under_way += 1
        self._schedule()
        self.submit(pack(operations), lambda outcome: self._done(batch, outcome))

    def _done(self, batch: list[tuple[Connection, Run]], outcome: Reply | Refused) -> None:
        self._under_way -= 1
        if isinstance(outcome, Refused):
            refusal = error(f"{outcome.why.name.replace('_', '')} {outcome.why.value}")
            replies = [refusal] * sum(len(run.operations) for _, run in batch)
        else:
            replies = unpack(outcome.reply)
        at = 0
        for connection, run in batch:
            mine = replies[at : at + len(run.operations)]
            at += len(mine)
            connection.take_replies(run, mine)
        self._schedule()


class Connection(asyncio.Protocol):
    """One client's."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._conversation = Conversation(
            front.limits.bounds, front.channels, front.describe, self._has_message
        )
        self._transport: asyncio.Transport | None = None
        self._held_bytes = 0  # as counted by the front
        self._unfinished: Run | None = None
        self._is_blocked = self._is_paused = self._has_ended = False
        self.is_lost = False

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        front = self._front
        if len(front.connections) >= front.limits.connections:
            transport.write(encode(error(f"ERR max number of clients reached: {front.limits.connections}")))
            transport.close()
            return
        front.connections[self] = None
        transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        front.lend(own.fileno())

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        self._conversation.receive(data)
        self.go_on()

    def eof_received(self) -> bool:
        """The client sends nothing more, and may wait for replies still."""
        self._has_ended = True
        self.stop_waiting()  # for whom?
        self.go_on()
        return True

    def pause_writing(self) -> None:
        """The client does not fetch."""
        self._is_blocked = True
        self._front.blocked[self] = Stall(asyncio.get_running_loop().time(), self.unsent_bytes)
        self._front.relieve()

    def resume_writing(self) -> None:
        """It has fetched."""
        self._is_blocked = False
        self._front.blocked.pop(self, None)
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self.is_lost = True
        front = self._front
        if self._transport is not None:
            with suppress(OSError):  # it has ended already
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._conversation.end()
        self._holds(0)
        for where in (front.connections, front.blocked, front.waiting, front.dirty):
            where.pop(self, None)

    # --- what is done ------------------------------------------------------------------------------------------

    def take_replies(self, run: Run, replies: list[Any]) -> None:
        """To the first operations of a run. The store may have stopped there, or there is more to ask."""
        conversation = self._conversation
        if conversation.answer(replies):
            self._front.waiting.pop(self, None)
        elif conversation.waits_ms is None:
            self._unfinished = run
        elif self._has_ended:
            conversation.stop_waiting()
        elif not self.is_lost:
            until = asyncio.get_running_loop().time() + conversation.waits_ms / 1000
            self._front.waiting.setdefault(self, until)
        self.flush()
        self.go_on()

    def hear(self) -> None:
        """There is a message, or something has happened to a lock that the client waits for."""
        self._unfinished = self._unfinished or self._conversation.try_again()
        self.flush()
        self.go_on()

    def stop_waiting(self) -> None:
        """The client gets no lock in its time, unless it is just being tried."""
        if self._conversation.waits_ms is not None:
            self._front.waiting.pop(self, None)
            self._conversation.stop_waiting()
            self.go_on()

    def go_on(self) -> None:
        """Has done what can be done now, and sends what can be sent."""
        if self.is_lost or self._transport is None or self._transport.is_closing():
            return
        conversation = self._conversation
        if not self._is_blocked:
            run, self._unfinished = self._unfinished or conversation.next_run(), None
            if run is not None:
                self._front.carry_out(self, run)
        self.flush()
        self._count_held()
        should_pause = conversation.waiting_bytes > _READ_AHEAD_BYTES
        if should_pause != self._is_paused and not self._transport.is_closing():
            self._is_paused = should_pause
            (self._transport.pause_reading if should_pause else self._transport.resume_reading)()

    def flush(self) -> None:
        """Sends what there is to be sent, and closes after the last of it."""
        if self.is_lost or self._transport is None or self._transport.is_closing():
            return
        conversation = self._conversation
        data = conversation.take_output()
        if data:
            self._transport.write(data)
        if conversation.is_subscribed and self.unsent_bytes > self._front.limits.unfetched_bytes:
            self.drop(f"has not fetched {self.unsent_bytes} bytes of messages")
        elif conversation.is_ending or (self._has_ended and conversation.is_idle):
            self._transport.close()
            asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)

    def _count_held(self) -> None:
        front = self._front
        held = self._conversation.held_bytes
        is_more = held > self._held_bytes
        self._holds(held)
        if is_more and front.held_bytes > front.limits.held_bytes and held > _READ_AHEAD_BYTES:
            self._say(
                f"ERR all clients together have sent more than {front.limits.held_bytes} bytes that wait"
            )
            self.drop(
                f"has sent {held} bytes that wait, and all clients together over {front.limits.held_bytes}"
            )

    def _holds(self, held: int) -> None:
        self._front.held_bytes += held - self._held_bytes
        self._held_bytes = held

    def _say(self, last: str) -> None:
        if self._transport is not None:
            self._transport.write(encode(error(last)))

    def _has_message(self) -> None:
        self._front.dirty[self] = None

    @property
    def unsent_bytes(self) -> int:
        """What waits for the client to fetch it."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def drop(self, why: str) -> None:
        """Disconnects it, and says why in the log."""
        if self._transport is not None:
            log.warning("client %s %s: disconnected", self._transport.get_extra_info("peername"), why)
        self.abort()

    def abort(self) -> None:
        """Disconnects it at once."""
        if self._transport is not None:
            self._transport.abort()
