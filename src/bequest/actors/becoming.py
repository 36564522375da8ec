"""Becoming an actor: by making it, by inheriting it, or by standing by until that is due.

An actor is whoever owns its heap, which is published as ``/actors/NAME``: the namespace follows memory through thefts,
so it says at once who the actor is, and there is nothing else to be changed when it dies (paper, section 3.1). The heap
is published when it is complete; two who make the same actor find out then, and one of them gives up.

An heir steals from the one that it saw die, and has its inbox. It may die itself before it had all of that, and the
next one then steals from it, and has to look for the rest where it still is: so the heap says who bore the actor, until
an heir has everything. A standby that got some of it and not the heap, because another was faster, passes it on.
"""

from __future__ import annotations

import itertools
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from bequest.actors import mail
from bequest.actors.actor import Actor
from bequest.actors.books import Bearer, Books
from bequest.actors.host import Host, address_of
from bequest.actors.office import path_of, published
from bequest.errors import NameTaken, ProcessDead, UnknownProcess
from bequest.ids import NOBODY
from bequest.limits import INBOX_CELLS, MIB
from bequest.objects.heap import Heap

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.memory.estate import Estate
    from bequest.memory.group import Group
    from bequest.memory.names import Published
    from bequest.memory.process import Process
    from bequest.memory.rack import Rack
    from bequest.memory.region import Region
    from bequest.memory.standby import Death

_HEAP_BYTES = 4 * MIB
_LOOK_INTERVAL = 0.25  # seconds between looks whether the actor is still there
_DEAD = 2  # Life in native/layout.hpp


def attach(rack: Rack, name: str, group: Group | bytes | None, first: int) -> Process:
    """Attaches under the actor's name, or if that is taken under one like ``counter.2``; standbys begin there."""
    for number in itertools.count(first):
        try:
            return rack.attach(name if number == 1 else f"{name}.{number}", group=group)
        except NameTaken:
            continue
    raise AssertionError


class Candidate:
    """A process that is to be the actor ``name`` of this class. ``ready`` is called once it stands by."""

    def __init__(
        self, process: Process, kind: type[Actor], name: str, capability: bytes | None = None
    ) -> None:
        self._process = process
        self._kind = kind
        self._name = name
        self._capability = capability
        self._loot: list[Region] = []  # got from the dead, and not the heap: somebody else has that

    def become(self) -> Host:
        """Makes the actor, or inherits it if it has died. Raises NameTaken if it lives."""
        while True:
            found = published(self._process, self._name)
            if found is None:
                try:
                    return self._make()
                except NameTaken:
                    continue  # another was faster
            if found.state != "orphaned":
                self._pass_on_loot(found)
                raise NameTaken(
                    f"actor {self._name!r} runs already, in process {found.owner!r}; stand by for it instead"
                )
            host = self._inherit_orphaned(found)
            if host is not None:
                return host

    def stand_by(
        self,
        ready: Callable[[], object],
        is_stopping: Callable[[], bool],
        suspected: Callable[[], object] | None = None,
    ) -> Host | None:
        """Waits until the actor dies, and inherits it; None if it has ended in good order, or this is to stop.

        The actor need not run yet. ``suspected`` is called when it hangs.
        """
        seen = False
        while not is_stopping():
            found = published(self._process, self._name)
            if found is None and seen:
                return None
            seen = seen or found is not None
            if found is not None and found.state == "orphaned":
                host = self._inherit_orphaned(found)
            else:
                host = self._watch(found, ready, is_stopping, suspected)
            if host is not None:
                return host
        return None

    def _watch(
        self,
        found: Published | None,
        ready: Callable[[], object],
        is_stopping: Callable[[], bool],
        suspected: Callable[[], object] | None,
    ) -> Host | None:
        """While that process is the actor, or while there is none yet."""
        deaths: SimpleQueue[Death] = SimpleQueue()
        owner = self._name if found is None else found.owner
        with self._process.standby(
            for_=owner,
            capability=self._capability,
            then=deaths.put,
            on_suspicion=None if suspected is None else lambda _: suspected(),
        ):
            if found is not None:
                self._pass_on_loot(found)
                ready()
            while not is_stopping():
                try:
                    death = deaths.get(timeout=_LOOK_INTERVAL)
                except Empty:
                    self._process.check_rack()
                    now = published(self._process, self._name)
                    if now != found and (now is None or found is None or now.owner != owner):
                        return None
                    if now is not None and now.state == "orphaned":
                        return None
                else:
                    return self._inherit(Bearer(death.name, death.id, death.incarnation))
        return None

    # --- inheriting -------------------------------------------------------------------------------------------

    def _inherit_orphaned(self, found: Published) -> Host | None:
        """From who has died, of whose name there may be another bearer; None if somebody else was faster."""
        extent = self._process.table.find_extent(found.address, 0)
        owner = NOBODY if extent is None else extent[4]
        life, incarnation, _, bearer = self._process.table.life(owner)
        return self._inherit(Bearer(bearer, owner, incarnation)) if life == _DEAD else None

    def _inherit(self, bearer: Bearer) -> Host | None:
        estate = self._steal(bearer)
        region = None if estate is None else estate.names.get(path_of(self._name))
        if region is None:
            return None
        heap = Heap.open(region)
        books = Books(heap)
        for former in books.bearers():
            # Who inherited before this one may have died before it had everything.
            if former != bearer and former.id != self._process.id:
                self._steal(former)
        parts = {part.address for part in heap.regions}
        others = [other for other in self._loot if other.address not in parts]
        self._loot = []
        books.bear(self._bearer)
        self._process._count_resumed()
        return Host(self._process, heap, self._kind, self._name, books, others)

    def _steal(self, bearer: Bearer) -> Estate | None:
        """All that it has left, also of its inbox, becomes loot."""
        try:
            estate = self._process.steal(bearer.name, self._capability, incarnation=bearer.incarnation)
        except (UnknownProcess, ProcessDead):
            return None
        self._loot += [*estate.regions, *estate.inbox]
        return estate

    def _pass_on_loot(self, found: Published) -> None:
        """To the actor, which another process has become."""
        owner = self._process._find(found.owner)
        if owner is not None:
            for region in self._loot:
                if region.nbytes:
                    self._process._grant([region], 0, *owner, mail.CARRIED, found.owner, INBOX_CELLS)
        self._loot = []

    @property
    def _bearer(self) -> Bearer:
        return Bearer(self._process.name, *address_of(self._process))

    # --- making -----------------------------------------------------------------------------------------------

    def _make(self) -> Host:
        region = self._process.alloc(_HEAP_BYTES)
        region._free_when_dropped()
        heap = Heap.create(region)
        try:
            books = Books(heap)
            books.bear(self._bearer)
            host = Host(self._process, heap, self._kind, self._name, books)
            self._process.publish(path_of(self._name), region)
        except BaseException:
            heap.close()
            raise
        return host
