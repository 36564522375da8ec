"""A replica as a process: its ledger, its machine and its front, from the first turn to the last.

A replica that **inherits** does in this order: it opens the ledger, which begins its next life; takes connections,
those of clients that have been waiting in the backlog of the socket; and takes a first turn with what these want, as
soon as there is something or after a millisecond, in which a leader sends again what was under way, too, over links
that the standby had made before. So the others hear of it once: that it speaks, and all that it has to say. What can
wait is done when it serves: a note of the reincarnation in the heap, the end of its time as a standby, who stands by
now.

A replica without memory **joins** first: it asks the other sites until it is told which replica it is, and gets the
state as any that lags. The first members of a service are told by the holder that they found it.

It ends when it is told to, or with its memory. Memory that was taken away is another process's by now, and nothing more
is said. Memory that has failed takes the replica with it: the other sites are told at once (paper, section 3.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import msgpack

from bequest.errors import AcceptTimeout, BequestError, MemoryFailure, MemoryRevoked, RackGone
from bequest.memory.events import MemoryFailed, ProcessDied
from bequest.objects.heap import Heap
from bequest.objects.map import Map
from bequest.objects.struct import Struct
from bequest.paxos.driver import Driver, WasRemoved
from bequest.paxos.front import Front
from bequest.paxos.heap_ledger import HeapLedger, clock_of_host
from bequest.paxos.holder import EXIT_ENDED, EXIT_LOST
from bequest.paxos.machine import Machine
from bequest.paxos.messages import MemoryLost, Message, ReplicaId, first_membership
from bequest.paxos.newcomer import Newcomer
from bequest.paxos.room import keep_room
from bequest.paxos.status import Reincarnation, Report
from bequest.paxos.store import Store
from bequest.paxos.succession import GREETING, HEAP_LOST

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.paxos.config import Service, Site
    from bequest.paxos.holder import Lifeline, Options, Sockets
    from bequest.paxos.peers import Peers
    from bequest.paxos.succession import Inheritance

log = logging.getLogger("bequest.paxos")

_LOOK_INTERVAL = 0.25  # seconds between looks at the rack, the standbys and the news
_ACCEPTING = 0.001  # seconds after which an heir speaks though no client has come that had been waiting
_HEAD_START = 0.02  # seconds in which an heir does nothing but serve
_REINCARNATIONS_KEPT = 32


class Beginning(NamedTuple):
    """What a replica begins with: a heap, and whether it founds the service or from whom it has inherited."""

    heap: Heap
    is_founding: bool
    inheritance: Inheritance | None


class _Lives(Struct):
    """What is remembered of the replica's reincarnations, packed; and what a newcomer asks to join with."""

    reincarnations: bytes
    ticket: int


class Replica:
    """This process's replica of the service."""

    def __init__(
        self, service: Service, site: Site, options: Options, me: Process, peers: Peers, beginning: Beginning
    ) -> None:
        self._service = service
        self._site = site
        self._options = options
        self._me = me
        self._peers = peers
        self._beginning = beginning
        self._heap = beginning.heap
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Any] = self._loop.create_future()
        self._standbys: list[str] = []
        self._began = time.monotonic()
        self._reincarnations: list[Reincarnation] = []
        self._driver: Driver | None = None
        self._front: Front | None = None
        self._has_told = threading.Event()  # that its memory has failed

    async def run(self, sockets: Sockets, lifeline: Lifeline, is_ending: asyncio.Event) -> int:
        """Serves until it is told to end, or has lost its memory. An exit code."""
        if self._beginning.is_founding:
            lifeline.note("founded")
        ending: asyncio.Future[Any] = asyncio.ensure_future(is_ending.wait())
        try:
            if not HeapLedger.is_in(self._heap):
                await self._become_somebody(sockets, ending)
            if not is_ending.is_set() and not self._over.done():
                await self.serve(sockets, lifeline)
                self._looking = asyncio.ensure_future(self._look_around(lifeline))
                self._keeping = asyncio.ensure_future(self._keep_room())
                await asyncio.wait([self._over, ending], return_when=asyncio.FIRST_COMPLETED)
            return self._end()
        except MemoryRevoked as lost:
            log.warning("%s: another process is this replica now; this one ends, and says nothing more", lost)
        except (MemoryFailure, RackGone) as lost:
            self._lose_memory(lost)
        logging.shutdown()
        os._exit(EXIT_LOST)

    # --- the beginning ----------------------------------------------------------------------------------------------

    async def _become_somebody(self, sockets: Sockets, ending: asyncio.Future[Any]) -> None:
        """The heap is empty: this is a first member, or it joins."""
        if self._beginning.is_founding:
            sites = [site.name for site in self._service.sites]
            HeapLedger.found(self._heap, sites.index(self._site.name) + 1, first_membership(sites))
            return
        joining: asyncio.Future[Any] = asyncio.ensure_future(self._join(sockets))
        await asyncio.wait([joining, self._over, ending], return_when=asyncio.FIRST_COMPLETED)
        joining.cancel()

    async def _join(self, sockets: Sockets) -> None:
        lives = _Lives(self._heap, "lives")
        if not lives.ticket:
            lives.ticket = secrets.randbits(62) or 1
        others = [site.name for site in self._service.sites if site.name != self._site.name]
        newcomer = Newcomer(self._site.name, others, lives.ticket, self._service.timing, time.monotonic())
        self._peers.speak(0, 0, lambda _, message: newcomer.receive(message), self._report, self._permit)
        self._peers.dial()
        await self._peers.listen(sockets.peers)
        log.info("site %s has no memory of a replica: it asks to join", self._site.name)
        while newcomer.joined is None:
            for request in newcomer.tick(time.monotonic()):
                self._peers.send(request.site, 0, request.message)
            self._peers.flush()
            await asyncio.sleep(0.01)
        log.info("site %s is replica %d from now on", self._site.name, newcomer.joined.replica)
        HeapLedger.found(self._heap, newcomer.joined.replica, newcomer.joined.membership)

    def _permit(self) -> None:
        """Raises if this heap is another's by now. While joining nobody minds: there is nothing to say."""
        if self._driver is not None:
            self._ledger.touch()

    async def serve(self, sockets: Sockets, lifeline: Lifeline) -> None:
        """Goes on with what is in the heap, until `stop`. Raises nothing afterwards: `run` does."""
        self._ledger = HeapLedger(self._heap)
        self._store = Store(Map(self._heap, "entries", key=bytes))
        with self._ledger.transaction():
            self._machine = Machine(
                self._ledger,
                self._store,
                self._service.timing,
                random.Random().random,
                clock=clock_of_host(),
                now=time.monotonic(),
            )
        self._driver = Driver(self._machine, self._ledger, self._peers, self._give_up, self._committed)
        self._front = Front(
            sockets.clients,
            self._driver.submit,
            self._driver.read,
            self._store,
            is_leading=lambda: self._machine.leads,
            describe=self._describe,
            lend=lifeline.lend,
        )
        self._peers.speak(
            self._ledger.replica,
            self._ledger.life,
            self._hear,
            self._report,
            self._permit,
            self._driver.connected,
        )
        await self._front.start()
        self._loop.call_later(_ACCEPTING, self._driver.begin)
        self._began = time.monotonic()
        await self._peers.listen(sockets.peers)
        self._peers.dial()

    def _committed(self) -> None:
        assert self._front is not None
        self._front.deliver()

    def _hear(self, sender: ReplicaId, message: Message) -> None:
        assert self._driver is not None
        if isinstance(message, MemoryLost):
            if self._options.failure_notices:
                self._driver.lose(message.replica)
        else:
            self._driver.hear(sender, message)

    # --- beside serving ---------------------------------------------------------------------------------------------

    async def _look_around(self, lifeline: Lifeline) -> None:
        """Everything that is not urgent. First come those who have been waiting while nobody served."""
        try:
            if self._beginning.inheritance is not None:
                await asyncio.sleep(_HEAD_START)
            lifeline.note("serving")
            await asyncio.to_thread(self._settle_in)
            self._note_reincarnation()
            while True:
                self._me.check_rack()
                if self._hear_news() | self._greet_standbys() and self._options.failure_notices:
                    await asyncio.to_thread(self._me.emergency_contacts, self._standbys)
                await asyncio.sleep(_LOOK_INTERVAL)
        except BaseException as error:  # noqa: BLE001 - it is told by whoever waits for the end
            self._give_up(error)

    async def _keep_room(self) -> None:
        try:
            await keep_room(self._me, self._heap, lambda: self._ledger.applied)
        except BaseException as error:  # noqa: BLE001 - as above
            self._give_up(error)

    def _settle_in(self) -> None:
        """What waits for the rack's daemons, in a thread beside the replica's."""
        self._me.on_memory_failure(self._hear_of_failure)
        len(self._me.events)  # from the first look on they are told
        inheritance = self._beginning.inheritance
        if inheritance is not None and inheritance.standby is not None:
            inheritance.standby.cancel()

    def _note_reincarnation(self) -> None:
        lives = _Lives(self._heap, "lives")
        if lives.reincarnations:
            self._reincarnations = msgpack.decode(lives.reincarnations, type=list[Reincarnation])
        inheritance = self._beginning.inheritance
        if inheritance is None:
            return
        took = self._began - inheritance.called
        log.info("replica %d goes on after the %s of %s, %.1f ms after the call", self._ledger.replica,
                 inheritance.why, inheritance.of, took * 1e3)  # fmt: skip
        self._reincarnations.append(
            Reincarnation(time.time() - took, took * 1e3, inheritance.of, self._me.name, inheritance.why)
        )
        lives.reincarnations = msgpack.encode(self._reincarnations[-_REINCARNATIONS_KEPT:])

    def _hear_news(self) -> bool:
        """Of standbys that have died; whether there are any."""
        events, before = self._me.events, len(self._standbys)
        while len(events):
            event = events.get(timeout=0)
            if isinstance(event, ProcessDied) and event.name in self._standbys:
                self._standbys.remove(event.name)
        return len(self._standbys) != before

    def _greet_standbys(self) -> bool:
        """Answers those who say that they stand by; whether there are new ones."""
        before = len(self._standbys)
        with contextlib.suppress(AcceptTimeout):
            while True:
                message = self._me.accept(timeout=0)
                if message.tag == GREETING and message.sender not in self._standbys:
                    self._standbys.append(message.sender)
                    with contextlib.suppress(BequestError):  # it has died already
                        self._me.send(message.sender, b"%d" % self._ledger.replica, timeout=0)
        return len(self._standbys) != before

    # --- the end ----------------------------------------------------------------------------------------------------

    def _give_up(self, error: BaseException) -> None:
        """The replica cannot go on in this process. That its memory has failed the others must know before all else."""
        if self._over.done():
            return
        if isinstance(error, MemoryFailure | RackGone):
            self._tell_of_loss()
        self._over.set_exception(error)

    def _hear_of_failure(self, event: MemoryFailed) -> None:
        """In a thread of the library: memory of this process is lost, though nobody may have touched it yet.

        It counts as handled when the others have been told: if the event loop hangs, the emergency contacts are called.
        """
        self._loop.call_soon_threadsafe(
            self._give_up, MemoryFailure(f"{event.nbytes} bytes on {event.element}: {event.cause}")
        )
        self._has_told.wait()

    def _end(self) -> int:
        """In good order; or raises what has happened."""
        code = EXIT_ENDED
        if self._over.done():
            try:
                self._over.result()
            except WasRemoved as removed:
                log.warning("%s; site %s joins anew", removed, self._site.name)
                code = EXIT_LOST
        self.stop()
        self._me.detach()
        return code

    def stop(self) -> None:
        """Serves no more, and lets go of the heap."""
        if self._driver is not None and self._front is not None:
            self._driver.stop()
            self._front.close()
        self._peers.close()
        self._heap.close()

    def _tell_of_loss(self) -> None:
        """What was promised is lost: nothing more is said but that."""
        if self._driver is not None and not self._has_told.is_set():
            self._driver.stop()
            if self._options.failure_notices:
                self._peers.tell_everybody(MemoryLost(self._ledger.replica))
        self._has_told.set()

    def _lose_memory(self, lost: Exception) -> None:
        """The other sites are told, and the standby. It clears away what is left."""
        self._tell_of_loss()
        log.error("%s: the replica is lost", lost)
        for standby in self._standbys:
            with contextlib.suppress(BequestError):
                self._me.send(standby, HEAP_LOST, timeout=0)

    # --- what it says of itself -------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, object]:
        """For INFO, among clients."""
        self._permit()
        status = self._machine.status(time.monotonic())
        return {
            "service": self._service.name,
            "site": self._site.name,
            "replica": status.replica,
            "role": status.role,
            "leader": status.leader or 0,
            "reincarnations": len(self._reincarnations),
        }

    def _report(self) -> Report:
        """For `bequest paxos status`."""
        report = Report(
            service=self._service.name,
            site=self._site.name,
            process=self._me.name,
            os_pid=os.getpid(),
            standbys=self._standbys,
            reincarnations=self._reincarnations,
            heap_bytes=self._heap.nbytes,
            serving_seconds=time.monotonic() - self._began,
            dropped_messages=self._peers.dropped,
        )
        if self._driver is None or self._front is None:
            return report
        status = self._machine.status(time.monotonic())
        return msgspec.structs.replace(
            report,
            replica=status.replica,
            life=status.life,
            role=status.role,
            leader=status.leader,
            ballot=status.ballot,
            leased=status.leased,
            epoch=status.membership.epoch,
            epochs=self._driver.epochs,
            members=status.membership.members,
            learners=status.membership.learners,
            chosen=status.chosen,
            applied=status.applied,
            log_bytes=status.log_bytes,
            clients=len(self._front.connections),
        )
