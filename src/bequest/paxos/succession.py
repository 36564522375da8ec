"""Whose heap it is: making a replica's heap, inheriting it, and standing by until that is due.

Whoever owns the heap that is published as ``/paxos/SERVICE`` is the replica: the namespace follows memory through
thefts, so nothing else has to be changed when a replica dies (paper, section 4.1). A heap is published before its owner
says anything to anybody: of two who make one at the same time, one is refused.

A standby is called in a thread of the library as soon as the kernel has marked the death. What it needs it finds by the
address that it noted when it began to stand by: between the call and the open heap there is one request to the Rack
MMU, the theft itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bequest.errors import FenceFailed, InboxFull, ProcessDead, UnknownProcess
from bequest.memory.events import ContactCalled
from bequest.objects.heap import Heap

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.memory.estate import Estate
    from bequest.memory.names import Published
    from bequest.memory.process import Process
    from bequest.memory.standby import Death, Standby

log = logging.getLogger("bequest.paxos")

GREETING = b"standing by"  # what a standby sends the replica, which answers with its number
HEAP_LOST = b"lost"  # what a replica sends its standbys when it ends because its memory has failed

_LOOK_INTERVAL = 0.25  # seconds between looks whether the replica is still there


class Inheritance(NamedTuple):
    """What a standby has got: the heap, from whom, why, and when it was called (monotonic seconds)."""

    heap: Heap
    of: str
    why: str
    called: float
    standby: Standby | None


class HeapLost(Exception):
    """The replica's memory has failed: there is nothing to inherit. ``owner`` may live and not know it yet."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"the memory of {owner!r} has failed")
        self.owner = owner


class Succession:
    """One service's heap in one rack, as a process sees it that may come to own it."""

    def __init__(self, process: Process, service: str) -> None:
        self._process = process
        self._path = f"/paxos/{service}"
        self.replica = 0  # which the owner is, as far as it has said
        self._is_lost = False

    def published(self) -> Published | None:
        """The heap, and whose it is; None if there is none."""
        return next((found for found in self._process.list(self._path) if found.path == self._path), None)

    def make(self, nbytes: int) -> Heap:
        """A fresh heap of this process's, published. Raises NameTaken if there is one by now.

        It has 2 MiB pages, which are quick to hand over and, when a process has died, to take apart.
        """
        region = self._process.alloc(nbytes, huge=True)
        heap = Heap.create(region)
        try:
            self._process.publish(self._path, region)
        except BaseException:
            heap.close()
            region.free()
            raise
        return heap

    def inherit_orphaned(self, found: Published) -> Inheritance | None:
        """From an owner who has died already; None if somebody else was faster, or its memory is gone."""
        called = time.monotonic()
        estate = self.rob(lambda: self._process.steal(found.owner))
        return None if estate is None else self.open(found, estate, "death", called, None)

    def clear(self, owner: str) -> None:
        """Does away with what is left of a heap whose memory has failed: its owner is robbed of it."""
        try:
            self._process.steal(owner).free()
        except (UnknownProcess, ProcessDead):
            log.info("nothing is left of %r", owner)

    async def stand_by(
        self, found: Published, is_ending: asyncio.Event, note: Callable[[str], None]
    ) -> Inheritance | None:
        """Until there is something to inherit; None if things have changed, or this is to end.

        ``note`` is told "standing by" when the death of the owner would be noticed, and "inheriting" when the owner has
        been robbed, in whichever thread that happens. Raises HeapLost.
        """
        watch = _Watch(self, found, note)
        standby = self._process.standby(for_=found.owner, then=watch.called, on_suspicion=watch.called)
        watch.standby = standby
        self.greet(found.owner)
        note("standing by")
        contact: asyncio.Future[Any] = asyncio.ensure_future(self._listen_for_contact(found.owner))
        ending: asyncio.Future[Any] = asyncio.ensure_future(is_ending.wait())
        try:
            changes = 0
            while not is_ending.is_set() and changes < 2:  # a second look: somebody may be about to inherit
                await asyncio.wait(
                    [watch.outcome, contact, ending],
                    timeout=_LOOK_INTERVAL,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if watch.outcome.done():
                    return watch.outcome.result()
                if contact.done():
                    contact.result()
                    raise HeapLost(found.owner)
                self.greet(found.owner)  # again and again: it may have taken this for one who has died
                now = self.published()
                changes += now is None or now.owner != found.owner or now.state == "orphaned"
            return watch.close()
        finally:
            contact.cancel()
            ending.cancel()
            if not watch.has_inherited:
                standby.cancel()

    def greet(self, owner: str) -> None:
        """Tells the replica that it has a standby. It makes that its emergency contact, and says who it is."""
        with contextlib.suppress(
            UnknownProcess, ProcessDead, InboxFull
        ):  # that will be noticed, and this tried again
            self._process.send(owner, GREETING, timeout=0)

    def hear(self) -> None:
        """What the replica has said."""
        while len(self._process.inbox):
            tag = self._process.accept(timeout=0).tag
            if tag == HEAP_LOST:
                self._is_lost = True
            elif tag.isdigit():
                self.replica = int(tag)

    async def _listen_for_contact(self, owner: str) -> None:
        """Until the owner's compute element calls this process, since the owner does nothing about lost memory."""
        while True:
            event = await self._process.events.get_async()
            if isinstance(event, ContactCalled) and event.name == owner and event.what == "memory":
                return

    def rob(self, steal: Callable[[], Estate]) -> Estate | None:
        """All that the owner has; None if somebody else was faster."""
        try:
            return steal()
        except (UnknownProcess, ProcessDead):
            return None

    def open(
        self, found: Published, estate: Estate, why: str, called: float, standby: Standby | None
    ) -> Inheritance | None:
        """The heap among what was the owner's; None if it is not there. Raises HeapLost."""
        self.hear()
        if self._is_lost:
            self._is_lost = False
            estate.free()
            raise HeapLost(found.owner)
        for region in estate.regions:
            if region.address == found.address:
                return Inheritance(Heap.open(region), estate.victim, why, called, standby)
        estate.free()
        return None


class _Watch:
    """One time of standing by: what the library's threads find, told to the event loop."""

    def __init__(self, succession: Succession, found: Published, note: Callable[[str], None]) -> None:
        self._succession = succession
        self._found = found
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._got: Inheritance | None = None
        self.outcome: asyncio.Future[Inheritance | None] = self._loop.create_future()
        self.standby: Standby | None = None

    @property
    def has_inherited(self) -> bool:
        return self._got is not None

    def called(self, death: Death) -> None:
        """By the library, in one of its threads; for a death, after a suspicion perhaps."""
        with self._lock:
            if self._is_closed or self._got is not None:
                return
            why = "suspicion" if death.is_suspicion else "death"
            called = time.monotonic()
            try:
                estate = self._succession.rob(death.steal)
                if estate is not None:
                    self._note("inheriting")  # not before: what this sets going would hold up the theft
                    self._got = self._succession.open(self._found, estate, why, called, self.standby)
            except FenceFailed as error:
                log.warning("%r hangs, and could not be robbed: %s", death.name, error)
                return
            except BaseException as error:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._settle, None, error)
                raise
            self._loop.call_soon_threadsafe(self._settle, self._got, None)

    def _settle(self, got: Inheritance | None, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(got)
        elif isinstance(error, Exception):
            self.outcome.set_exception(error)
        else:
            self.outcome.cancel()

    def close(self) -> Inheritance | None:
        """Nothing is taken any more; what has been taken."""
        with self._lock:
            self._is_closed = True
            return self._got
