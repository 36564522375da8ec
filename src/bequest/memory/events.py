"""What may happen to the peers and the memory of a process, and the queue in which it waits (paper, section 3.2)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bequest.errors import AcceptTimeout, NotAttached
from bequest.limits import EVENTS_KEPT_MAX

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class ProcessDied(Event):
    """A process of this group has died. That is certain: the kernel says so."""

    name: str
    id: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class ProcessSuspected(Event):
    """A process of this group has shown no sign of life for ``silent`` seconds. It may be alive, and come back."""

    name: str
    id: int
    incarnation: int
    silent: float


@dataclass(frozen=True, slots=True)
class ProcessCleared(Event):
    """A suspected process has shown a sign of life again."""

    name: str
    id: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class MemoryFailed(Event):
    """Memory that this process owns is lost: ``runs`` of (address, bytes) on a memory element."""

    element: str
    runs: tuple[tuple[int, int], ...]
    cause: str

    @property
    def nbytes(self) -> int:
        """How much was lost."""
        return sum(nbytes for _, nbytes in self.runs)


@dataclass(frozen=True, slots=True)
class ElementSilent(Event):
    """A memory element that holds memory of this process does not answer. No memory is lost (yet)."""

    element: str
    silent: float


@dataclass(frozen=True, slots=True)
class ElementBack(Event):
    """A silent memory element answers again."""

    element: str


@dataclass(frozen=True, slots=True)
class ContactCalled(Event):
    """A process that named this one its emergency contact has died, or has not handled a failure of its memory.

    ``what`` is "died" or "memory"; then ``element``, ``runs`` and ``cause`` tell what it lost.
    """

    name: str
    id: int
    incarnation: int
    what: str
    element: str
    runs: tuple[tuple[int, int], ...]
    cause: str


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """So many events (0: nobody knows), older than the next one, were dropped, because nobody looked at them."""

    count: int


class Events:
    """Iterates over what happens, until the process detaches: ``for event in me.events`` or ``async for …``.

    Several readers share them: each event goes to one. ``len(me.events)`` is how many wait now.
    """

    def __init__(self) -> None:
        self._queue: deque[Event] = deque()
        self._dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._async_waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def get(self, timeout: float | None = None) -> Event:
        """The next event. Raises `AcceptTimeout` after ``timeout`` seconds (None: never), `NotAttached` at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (event := self._take()) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise AcceptTimeout(f"no event came within {timeout} s")
                self._changed.wait(left)
            return event

    async def get_async(self, timeout: float | None = None) -> Event:
        """`get`, for asyncio."""
        import asyncio  # on demand, as in inbox.py

        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            with self._changed:
                if (event := self._take()) is not None:
                    return event
                waiter: asyncio.Future[None] = loop.create_future()
                self._async_waiters.append((loop, waiter))
            left = None if deadline is None else deadline - loop.time()
            try:
                await asyncio.wait_for(waiter, left)
            except TimeoutError:
                raise AcceptTimeout(f"no event came within {timeout} s") from None
            finally:
                with self._changed:
                    self._async_waiters = [pair for pair in self._async_waiters if pair[1] is not waiter]

    def __iter__(self) -> Iterator[Event]:
        with contextlib.suppress(NotAttached):
            while True:
                yield self.get()

    async def __aiter__(self) -> AsyncIterator[Event]:
        with contextlib.suppress(NotAttached):
            while True:
                yield await self.get_async()

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    def _put(self, event: Event) -> None:
        with self._changed:
            if len(self._queue) >= EVENTS_KEPT_MAX:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(event)
            self._wake()

    def _close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._async_waiters = self._async_waiters, []
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # its loop has been closed
                loop.call_soon_threadsafe(_resolve, waiter)

    def _take(self) -> Event | None:
        """The lock is held. Raises `NotAttached` when nothing will come any more."""
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return EventsDropped(count)
        if self._queue:
            return self._queue.popleft()
        if self._is_closed:
            raise NotAttached("the process has detached; no events will come any more")
        return None


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
