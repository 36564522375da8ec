"""What a process is told of failures, and who in it hears that (paper, section 3.2).

Theory of operation. Nothing happens until a program asks for it: then a second connection to the agent is opened, a
*subscription*, and one thread reads what the agent pushes there. Each notice becomes an event, which waits in a bounded
queue (`Events`) for the program to look at, and is given to those who listen: standbys, and the handler of memory
failures. Their callbacks run in threads of their own (`Callbacks`), so that they may take their time. When the handler
has returned, the agent is told that the failure has been handled; if it raised, that it was not, and the emergency
contacts are called.

If the agent ends, it is started again by its supervisor; the thread subscribes anew. What was pushed meanwhile is lost,
as it is when the program is slow. `EventsDropped` tells that; with a count of 0, since nobody knows how much it was.
Deaths are not lost: they are numbered, and the new agent tells those after the last that this process has heard of.
Nor are failures of memory and calls for emergency contacts: what the agent may not have passed on it is told again. A
failure has a number, by which one that comes twice is known; a call for contacts may come twice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bequest._core import ask_for_short_slices
from bequest.errors import BequestError, NotAttached
from bequest.ids import check_name
from bequest.limits import FAILURES_KEPT_MAX, RESUBSCRIBE_TIMEOUT
from bequest.memory.callbacks import Callbacks
from bequest.memory.connections import expect
from bequest.memory.events import (
    ContactCalled,
    ElementBack,
    ElementSilent,
    Event,
    Events,
    EventsDropped,
    MemoryFailed,
    ProcessCleared,
    ProcessDied,
    ProcessSuspected,
)
from bequest.memory.vigil import Broke, Vigil
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.memory.connections import Connections
    from bequest.runtime.transport import Channel

log = logging.getLogger("bequest")

_RETRY = 0.05  # seconds between tries to reach an agent that is being started again

Handler = Callable[[MemoryFailed], object]


class Notices:
    """One attached process's subscription, and who in this program listens to it."""

    def __init__(self, name: str, links: Connections) -> None:
        self.events = Events()
        self._name = name
        self._links = links
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._suspects: dict[tuple[int, int], str] = {}  # that this process has been told of, and their names
        self._last_death = 0  # that this process has been told of, or was before it asked
        self._is_closed = False
        self._listeners: list[Callable[[Event | wire.NoticeAttached], None]] = []
        self._handler: Handler | None = None
        self._contacts: list[str] | None = None
        self._outcomes: dict[int, bool | None] = {}  # of failures of memory by number; None: not known yet
        self._callers: weakref.WeakSet[Callbacks | Vigil] = weakref.WeakSet()
        self._handling = self.caller("bequest-handler")
        self._reporting = self.caller("bequest-reports")

    def caller(self, thread_name: str) -> Callbacks:
        """Runs callbacks until the process detaches."""
        callbacks = Callbacks(thread_name)
        self._callers.add(callbacks)
        return callbacks

    def vigil(self, thread_name: str, broke: Broke) -> Vigil:
        """Likewise, and waits for a lifeline to break."""
        vigil = Vigil(thread_name, broke)
        self._callers.add(vigil)
        return vigil

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

    def report_hardware_error(self, address: int, nbytes: int) -> None:
        """To the rack, which tells whoever else owns a part of that page; from a thread that is not to wait."""
        self._reporting.run(lambda: self._report(wire.ReportFailure(address, nbytes)))

    def _report(self, report: wire.ReportFailure) -> None:
        try:
            self._links.mmu.request(report)
        except BequestError as error:
            log.warning("the loss of %#x by the hardware is not reported: %s", report.address, error)

    def close(self) -> None:
        """The process detaches."""
        with self._lock:
            self._is_closed = True
            channel = self._channel
        for callbacks in list(self._callers):
            callbacks.close()
        if channel is not None:
            channel.shut_down()  # wakes the thread, which closes it
        self.events._close()

    # --- the thread that reads ------------------------------------------------------------------------------

    def _read(self) -> None:
        ask_for_short_slices()
        try:
            while (notice := self._next_notice()) is not None:
                self._tell(notice)
        finally:
            assert self._channel is not None
            self._channel.close()
            self.events._close()

    def _next_notice(self) -> wire.Message | None:
        """None when there will be no more."""
        while not self._is_closed:
            channel = self._channel
            assert channel is not None
            try:
                return channel.next_notice()
            except BequestError:
                channel.close()
                if not self._resubscribe():
                    return None
        return None

    def _resubscribe(self) -> bool:
        """The agent has gone: its successor has to learn what this program wants. False: there will be none."""
        deadline = time.monotonic() + RESUBSCRIBE_TIMEOUT
        while not self._is_closed and time.monotonic() < deadline and self._links.rack_is_there():
            try:
                channel, _ = self._links.subscribe(
                    self._last_death, [(*key, name) for key, name in self._suspects.items()]
                )
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

    def _is_known(self, notice: wire.Message) -> bool:
        """By an agent that was started anew, and does not know what the one before it has told."""
        match notice:
            case wire.NoticeMemory():
                return self._is_repeated(notice.failure)
            case wire.NoticeSuspected(name, pid, incarnation):
                is_known = (pid, incarnation) in self._suspects
                self._suspects[pid, incarnation] = name
                return is_known
            case wire.NoticeCleared(_, pid, incarnation):
                self._suspects.pop((pid, incarnation), None)
            case wire.NoticeDied(_, pid, incarnation, number):
                self._suspects.pop((pid, incarnation), None)
                self._last_death = number
        return False

    def _tell(self, notice: wire.Message) -> None:
        if self._is_known(notice):
            return
        event = _event(notice)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("%r has not been able to hear of %s", self._name, event)
        if isinstance(event, Event):
            self.events._put(event)
        if (
            isinstance(notice, wire.NoticeMemory)
            and isinstance(event, MemoryFailed)
            and self._handler is not None
        ):
            self._outcomes[notice.failure] = None
            self._handling.run(lambda: self._handle(notice.failure, event))

    def _is_repeated(self, failure: int) -> bool:
        """By an agent that does not know what became of it: that it is told, too."""
        if failure not in self._outcomes:
            self._outcomes[failure] = False  # unless a handler makes it good
            if len(self._outcomes) > FAILURES_KEPT_MAX:
                del self._outcomes[next(iter(self._outcomes))]
            return False
        outcome = self._outcomes[failure]
        if outcome is not None:
            self._handling.run(lambda: self._answer(failure, outcome))
        return True

    def _handle(self, failure: int, event: MemoryFailed) -> None:
        handler, well = self._handler, False
        try:
            if handler is not None:
                handler(event)
                well = True
        except BaseException:
            log.exception(
                "the handler of memory failures of %r has failed; its contacts are told", self._name
            )
        self._outcomes[failure] = well
        self._answer(failure, well)

    def _answer(self, failure: int, well: bool) -> None:
        with contextlib.suppress(BequestError):
            self._links.ask_agent(wire.Handled(failure, well))


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
