"""A worker of a site: it finds out in the rack what it is to be, the replica or a standby for it.

It finds no heap, and makes one: as a first member of a service that is being founded, or else to join. Or it finds a
heap whose owner has died, and goes on as the same replica: what a heap holds is consistent at every instant, and holds
all that the replica has ever promised. Or its owner lives: then it stands by for that one, warm. It has imported
everything, has rehearsed all that it will have to do (`rehearsal.py`), and has connections to the other sites. What it
does when it is called, in `bequest.paxos.succession`, is to steal and to open; then it serves.

The replica's memory may fail while its processes live. Then what it has promised is lost, and the replica with it: it
says so to the other sites and ends. Should it not be able to, the standby, which is its emergency contact (paper,
section 3.2), says so instead, and then joins as a fresh replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import signal
from typing import TYPE_CHECKING

from bequest.errors import (
    BequestError,
    ConnectionRefused,
    CorruptHeap,
    MemoryFailure,
    MemoryRevoked,
    NameTaken,
    NoRack,
    RackGone,
)
from bequest.memory.rack import connect
from bequest.paxos.holder import EXIT_ENDED, EXIT_FAILED, EXIT_LOST
from bequest.paxos.messages import MemoryLost
from bequest.paxos.peers import Peers
from bequest.paxos.rehearsal import rehearse
from bequest.paxos.replica import Beginning, Replica
from bequest.paxos.succession import HeapLost, Succession

if TYPE_CHECKING:
    from bequest.memory.names import Published
    from bequest.memory.process import Process
    from bequest.memory.rack import Rack
    from bequest.paxos.config import Service, Site
    from bequest.paxos.holder import Lifeline, Options, Sockets

log = logging.getLogger("bequest.paxos")

_RACK_INTERVAL = 0.1  # seconds between looks for a rack that is being started
_LOOK_INTERVAL = 0.05  # and whether a replica has died that nobody is to inherit


def work(service: Service, site: Site, sockets: Sockets, options: Options, lifeline: Lifeline) -> int:
    """What a worker does until it ends; an exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the holder's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return asyncio.run(_live(service, site, sockets, options, lifeline))
    except (MemoryFailure, MemoryRevoked, RackGone) as lost:
        log.warning("%s: this process ends", lost)
        return EXIT_LOST
    except BequestError as error:
        log.error("%s", error)
        return EXIT_FAILED


async def _live(service: Service, site: Site, sockets: Sockets, options: Options, lifeline: Lifeline) -> int:
    return await Worker(service, site, sockets, options, lifeline).run()


class Worker:
    """One process of a site."""

    def __init__(
        self, service: Service, site: Site, sockets: Sockets, options: Options, lifeline: Lifeline
    ) -> None:
        self._service = service
        self._site = site
        self._sockets = sockets
        self._options = options
        self._lifeline = lifeline
        self._is_founding = options.founding
        self._is_ending = asyncio.Event()
        self._peers = Peers(service, site)
        self._is_ready = False
        self._is_replica = False

    async def run(self) -> int:
        """Becomes what there is to be, and is it until the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._is_ending.set)
        loop.add_reader(self._lifeline.end, self._lose_holder)
        rack = await self._find_rack()
        if rack is None:
            return EXIT_ENDED
        self._me = _attach(rack, f"{self._service.name}.{self._site.name}")
        self._succession = Succession(self._me, self._service.name)
        beginning = await self._become()
        if beginning is None:
            self._peers.close()
            self._me.detach()
            return EXIT_ENDED
        self._is_replica = True
        replica = Replica(self._service, self._site, self._options, self._me, self._peers, beginning)
        return await replica.run(self._sockets, self._lifeline, self._is_ending)

    async def _find_rack(self) -> Rack | None:
        """It may be about to start."""
        told = False
        while not self._is_ending.is_set():
            try:
                return connect(self._site.rack)
            except (NoRack, RackGone, ConnectionRefused) as error:
                if not told:
                    log.warning("%s; waiting for it", error)
                told = True
                await asyncio.sleep(_RACK_INTERVAL)
        return None

    def _lose_holder(self) -> None:
        """A standby ends with its holder, lest there be more and more of them. A replica goes on."""
        asyncio.get_running_loop().remove_reader(self._lifeline.end)
        if not self._is_replica:
            log.warning("the holder has died: this standby ends, since a fresh holder has its own")
            self._is_ending.set()

    # --- what to be -------------------------------------------------------------------------------------------------

    async def _become(self) -> Beginning | None:
        """What to serve with; None if this is to end."""
        while not self._is_ending.is_set():
            found = self._succession.published()
            is_founding, self._is_founding = self._is_founding, False  # nobody founds at a second look
            try:
                if found is None:
                    with contextlib.suppress(NameTaken):  # another worker of this site was faster
                        return Beginning(self._succession.make(self._options.heap_bytes), is_founding, None)
                elif not self._options.reincarnation:
                    await self._do_without(found)
                else:
                    heir = await self._wait_for_inheritance(found)
                    if heir is not None:
                        return heir
            except (HeapLost, MemoryFailure, CorruptHeap) as lost:
                self._mourn(found, lost)
        return None

    async def _wait_for_inheritance(self, found: Published) -> Beginning | None:
        if found.state == "orphaned":
            got = self._succession.inherit_orphaned(found)
        else:
            await self._get_ready()
            got = await self._succession.stand_by(found, self._is_ending, self._lifeline.note)
        return None if got is None else Beginning(got.heap, False, got)

    async def _do_without(self, found: Published) -> None:
        """Nobody is to be reincarnated: what the dead have left is done away with."""
        if found.state == "orphaned":
            self._succession.clear(found.owner)
        else:
            await asyncio.sleep(_LOOK_INTERVAL)

    def _mourn(self, found: Published | None, lost: Exception) -> None:
        """The replica's memory is gone: the others are told, and this process becomes another replica."""
        log.error("%s: the replica is lost", lost)
        if found is None:
            raise lost
        self._succession.hear()
        if self._options.failure_notices and self._succession.replica:
            self._peers.tell_everybody(MemoryLost(self._succession.replica))
        self._succession.clear(found.owner)

    # --- standing by ------------------------------------------------------------------------------------------------

    async def _get_ready(self) -> None:
        """Does beforehand all that can be done."""
        if self._is_ready:
            return
        self._is_ready = True
        await rehearse(self._me)
        self._peers.dial()
        gc.collect()
        gc.freeze()


def _attach(rack: Rack, name: str) -> Process:
    for number in itertools.count(1):
        try:
            return rack.attach(f"{name}.{number}")
        except NameTaken:
            continue
    raise AssertionError
