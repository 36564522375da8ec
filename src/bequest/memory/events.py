"""What a process is told of failures: events, handlers, emergency contacts (paper, section 3.2).

Theory of operation. Nothing happens until a program asks for it: then a second connection to the agent is opened, a
*subscription*, and one thread reads what the agent pushes there. Each notice becomes an event, which waits in a bounded
queue (`Events`) for the program to look at, and is given to those who listen: standbys, and the handler of memory
failures, which runs in a thread of its own, so that it may take its time. When the handler has returned, the agent is
told that the failure has been handled; if it raised, that it was not, and the emergency contacts are called.

If the agent ends, it is started again by its supervisor; the thread subscribes anew. What was pushed meanwhile is lost,
as it is when the program is slow. `EventsDropped` tells that; with a count of 0, since nobody knows how much it was.
Deaths are not lost: they are numbered, and the new agent tells those after the last that this process has heard of.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from _queue import SimpleQueue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bequest.errors import AcceptTimeout, BequestError, NotAttached
from bequest.ids import check_name
from bequest.limits import EVENTS_KEPT_MAX, RESUBSCRIBE_TIMEOUT
from bequest.memory.connections import expect
from bequest.memory.lifelines import Lifelines
from bequest.wire import messages as wire

if TYPE_CHECKING:
    import asyncio

    from bequest.memory.connections import Connections
    from bequest.runtime.transport import Channel

log = logging.getLogger("bequest")

_RETRY = 0.05  # seconds between tries to reach an agent that is being started again


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


Handler = Callable[[MemoryFailed], object]
_H = TypeVar("_H", bound=Callable[..., object])


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


class Notices:
    """One attached process's subscription, and who in this program listens to it."""

    def __init__(self, name: str, links: Connections) -> None:
        self.events = Events()
        self._name = name
        self._links = links
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._last_death = 0  # that this process has been told of, or was before it asked
        self._is_closed = False
        self._listeners: list[Callable[[Event | wire.NoticeAttached], None]] = []
        self._handler: Handler | None = None
        self._contacts: list[str] | None = None
        self._jobs: SimpleQueue[Callable[[], object] | None] | None = None
        self.lifelines = Lifelines()

    # --- what a program asks for ----------------------------------------------------------------------------

    def subscribe(self) -> None:
        """From now on; does nothing the second time."""
        with self._lock:
            if self._is_closed:
                raise NotAttached(f"{self._name!r} is not attached to a rack (any more)")
            if self._channel is not None:
                return
            self._channel, self._last_death = self._links.subscribe()
            threading.Thread(target=self._read, name="bequest-notices", daemon=True).start()

    def listen(self, listener: Callable[[Event | wire.NoticeAttached], None]) -> None:
        """Has it called for each event, in the thread that reads them: it must not wait."""
        self._listeners = [*self._listeners, listener]

    def unlisten(self, listener: Callable[[Event | wire.NoticeAttached], None]) -> None:
        """Ends what `listen` began."""
        self._listeners = [other for other in self._listeners if other != listener]

    def on_memory_failure(self, handler: Handler | None) -> None:
        """One handler, or none."""
        if handler is not None and not callable(handler):
            raise TypeError(f"a handler of memory failures is a function, not {type(handler).__name__}")
        self.subscribe()
        self._handler = handler
        self._links.ask_agent(wire.HandleFailures(handler is not None))

    def set_contacts(self, names: Iterable[str]) -> None:
        """In place of those before."""
        if isinstance(names, str):
            raise TypeError(f"emergency contacts are a list of names: [{names!r}]")
        contacts = [check_name(name) for name in names]
        self._links.ask_agent(wire.SetContacts(contacts))
        self._contacts = contacts

    def stand_by(self, request: wire.StandBy) -> wire.StandingBy:
        """Asks the Rack MMU, which checks the capability."""
        reply, _ = self._links.mmu.request(request)
        return expect(reply, wire.StandingBy)

    def stand_down(self, standby: int | None) -> None:
        """Ends what `stand_by` began."""
        if standby is not None:
            self._links.mmu.request(wire.StandDown(standby))

    def run(self, job: Callable[[], object]) -> None:
        """In the library's thread for callbacks, one after another; what it raises is logged."""
        with self._lock:
            if self._jobs is None:
                self._jobs = SimpleQueue()
                threading.Thread(
                    target=_work, args=(self._jobs,), name="bequest-callbacks", daemon=True
                ).start()
        self._jobs.put(job)

    def close(self) -> None:
        """The process detaches."""
        with self._lock:
            self._is_closed = True
            channel = self._channel
        self.lifelines.close()
        if self._jobs is not None:
            self._jobs.put(None)
        if channel is not None:
            channel.shut_down()  # wakes the thread, which closes it
        self.events._close()

    # --- the thread that reads ------------------------------------------------------------------------------

    def _read(self) -> None:
        while not self._is_closed:
            channel = self._channel
            assert channel is not None
            try:
                notice = channel.next_notice()
            except BequestError:
                channel.close()
                if not self._resubscribe():
                    break
                continue
            self._tell(notice)
        assert self._channel is not None
        self._channel.close()
        self.events._close()

    def _resubscribe(self) -> bool:
        """The agent has gone: its successor has to learn what this program wants. False: there will be none."""
        deadline = time.monotonic() + RESUBSCRIBE_TIMEOUT
        while not self._is_closed and time.monotonic() < deadline and self._links.rack_is_there():
            try:
                channel, _ = self._links.subscribe(self._last_death)
            except BequestError:
                time.sleep(_RETRY)
                continue
            with self._lock:
                self._channel = channel
            with contextlib.suppress(BequestError):
                if self._handler is not None:
                    self._links.ask_agent(wire.HandleFailures(True))
                if self._contacts is not None:
                    self._links.ask_agent(wire.SetContacts(self._contacts))
            self._tell(wire.NoticesDropped(0))
            return True
        return False

    def _tell(self, notice: wire.Message) -> None:
        if isinstance(notice, wire.NoticeDied):
            self._last_death = notice.number
        event = _event(notice)
        for listener in self._listeners:
            listener(event)
        if isinstance(event, Event):
            self.events._put(event)
        if (
            isinstance(notice, wire.NoticeMemory)
            and isinstance(event, MemoryFailed)
            and self._handler is not None
        ):
            self.run(lambda: self._handle(notice.failure, event))

    def _handle(self, failure: int, event: MemoryFailed) -> None:
        handler, well = self._handler, False
        try:
            if handler is not None:
                handler(event)
                well = True
        except Exception:
            log.exception(
                "the handler of memory failures of %r has failed; its contacts are told", self._name
            )
        with contextlib.suppress(BequestError):
            self._links.ask_agent(wire.Handled(failure, well))


def _work(jobs: SimpleQueue[Callable[[], object] | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception:
            log.exception("a callback has failed")


def _event(notice: wire.Message) -> Event | wire.NoticeAttached:
    match notice:
        case wire.NoticeDied(name, pid, incarnation):
            return ProcessDied(name, pid, incarnation)
        case wire.NoticeSuspected(name, pid, incarnation, silent):
            return ProcessSuspected(name, pid, incarnation, silent)
        case wire.NoticeCleared(name, pid, incarnation):
            return ProcessCleared(name, pid, incarnation)
        case wire.NoticeMemory(element, runs, cause):
            return MemoryFailed(element, tuple(runs), cause)
        case wire.NoticeElement(element, True, silent):
            return ElementSilent(element, silent)
        case wire.NoticeElement(element):
            return ElementBack(element)
        case wire.NoticeContact(name, pid, incarnation, what, element, runs, cause):
            return ContactCalled(name, pid, incarnation, what, element, tuple(runs), cause)
        case wire.NoticesDropped(count):
            return EventsDropped(count)
        case wire.NoticeAttached():
            return notice
        case _:
            raise AssertionError(f"the agent tells {notice}")
