"""The namespace of a group, as its processes use it: paths that lead to regions, whoever owns them now.

It is a map for whoever inherits memory (paper, section 3.1). The Rack MMU keeps it, and looks in the table whose a
region is when it is asked; so a name follows its region through grants and steals. It keeps nothing alive: when the
region is freed, its names end.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, NamedTuple

from bequest._core import ProcessBase
from bequest.errors import NotOwner, RegionMoved
from bequest.ids import check_name, check_path
from bequest.memory.connections import Connections, expect
from bequest.memory.region import Region
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.wire.messages import Message


class Published(NamedTuple):
    """A name: it leads to ``offset`` in the region of ``nbytes`` bytes at ``address``, which ``owner`` owns now.

    ``state`` is the owner's: attached, lost (its connection is gone, it runs on) or orphaned (it is dead, its memory
    kept for a while). ``publisher`` is who published it first.
    """

    path: str
    address: int
    nbytes: int
    offset: int
    publisher: str
    owner: str
    state: str


class Names(ProcessBase):
    """What a `Process` can do with names."""

    _links: Connections

    def publish(self, path: str, region: Region, offset: int = 0) -> None:
        """Publishes a region of this process, and a place in it, under a path like ``"/replica-1/state"``.

        Every member of the group can look it up. Publishing again replaces it. Raises `BadName`, `BadSize`, `NameTaken`
        if the path leads to memory of another process, `RegionMoved` if the region is not owned any more.
        """
        path = check_path(path)
        if not isinstance(region, Region):
            raise TypeError(f"only a region can be published, not {type(region).__name__}")
        if region.process is not self:
            raise NotOwner("a region is published by the process that owns it")
        if not region.owned:
            raise RegionMoved("the region to be published is not owned any more")
        self._ask(wire.Publish(path, region.address, region.nbytes, offset))

    def lookup(self, path: str) -> Region:
        """The region that is published under a path, if this process owns it: allocated, granted or stolen.

        Where in it the publisher pointed is told by ``offset`` in `list`. Raises `UnknownName` if there is none, and
        `NotOwner`, which says who owns it, if it is another's.
        """
        name = expect(self._ask(wire.Lookup(check_path(path))), wire.Found).name
        owner = f"{name.owner_name!r}" + (
            f", which is {name.owner_state}" if name.owner_state != "attached" else ""
        )
        if name.owner != self.id:
            raise NotOwner(f"what is published as {name.path} belongs to {owner}")
        region: Region | None = self._region_at(name.address + name.offset, name.address, name.nbytes)
        if region is None:
            how = "accept it first" if name.in_flight else "this process has no handle of it"
            raise NotOwner(f"what is published as {name.path} came to {owner}: {how}")
        return region

    def unpublish(self, path: str) -> None:
        """Takes a name back. Raises `UnknownName`, or `NotOwner` if it leads to another's memory."""
        self._ask(wire.Unpublish(check_path(path)))

    def name_heir(self, heir: str | None) -> None:
        """Names the only process that may steal from this one where the group's steal policy is "standby"."""
        self._ask(wire.NameHeir(None if heir is None else check_name(heir, "heir's name")))

    def list(self, prefix: str = "/") -> builtins.list[Published]:
        """What is published in the group at ``prefix`` or below it, ordered by path."""
        prefix = check_path(prefix)
        found: builtins.list[Published] = []
        after = None
        while True:
            page = expect(self._ask(wire.ListNames(prefix, after)), wire.NameList)
            found += [_published(name) for name in page.names]
            after = page.next_after
            if after is None:
                return found

    def _ask(self, message: Message) -> Message:
        reply, _ = self._links.mmu.request(message)
        return reply


def _published(name: wire.Published) -> Published:
    return Published(
        name.path, name.address, name.nbytes, name.offset, name.publisher, name.owner_name, name.owner_state
    )
