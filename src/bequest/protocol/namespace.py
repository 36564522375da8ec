"""The namespace: a map from paths to places in memory, so that whoever inherits memory finds what is in it.

The paper, section 3.1: metadata "can be stored and distributed in a file system like namespace that acts as a map to
help locate critical state". Each group has its own. A path leads to a region and an offset in it; who owns the region
is never written here but looked up in the table whenever somebody asks. So names go along wherever memory goes within
the group, be it granted or stolen, and nothing has to be moved.

A name ends with the memory that it leads to. Whether that is still the region which was published is told by the
*birth* that the table keeps with each extent: it lasts through grants, steals and splits until the extent is freed, and
the next region at these addresses has another. Memory of the dead keeps its names for as long as it is kept. What
leaves for another group leaves its names behind, and they end.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from bequest._core import STATE_FROZEN, STATE_IN_FLIGHT, STATE_OWNED, STATE_THAWING
from bequest.errors import BadName
from bequest.ids import GroupId, check_path
from bequest.limits import (
    MMU_ID,
    NAMES_PER_GROUP_MAX,
    NAMES_SWEPT_MAX,
    PROCESS_SPACE_BYTES,
    REPORT_BYTES_MAX,
    WINDOW_BASE,
    WINDOW_BITS,
)
from bequest.protocol.books import Row
from bequest.protocol.clients import Session
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import ExtentInfo
from bequest.wire import messages as wire

_KEPT = (STATE_OWNED, STATE_FROZEN, STATE_THAWING)  # by somebody, who may at least read it
_PUBLISHED_BYTES = 1000  # no report of one name is longer


class Name(Row):
    group: GroupId
    path: str
    address: int  # of the region
    nbytes: int
    offset: int
    publisher: str
    birth: int = 0
    descriptor: int = 0  # where its extent was last time

    transient = ("descriptor",)

    @property
    def key(self) -> str:
        return _key(self.group, self.path)

    @property
    def place(self) -> int:
        return self.address + self.offset


class Owner(msgspec.Struct, frozen=True):
    id: int
    in_flight: bool


class Namespace:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._names = state.books.open("names", Name, str)
        self._paths: dict[GroupId, dict[str, None]] | None = None  # those that were swept longest ago first

    # --- what processes ask ----------------------------------------------------------------------------------

    def publish(self, session: Session, publisher: Member, message: wire.Publish) -> None:
        path = _normal(message.path)
        if path == "/":
            raise Refusal("bad-name", "the path '/' is the root of all names; publish below it")
        name = self._name(path, publisher, message)
        paths = self._paths_of(publisher.group)
        former = self._names.get(name.key)
        if former is None and len(paths) >= NAMES_PER_GROUP_MAX:
            raise Refusal("memory", f"{NAMES_PER_GROUP_MAX} names are published in this group already")
        if former is not None:
            owner = self._owner(former)
            if owner is not None and owner.id != publisher.id:
                raise Refusal("name-taken", f"{path} is published by {self._bearer(owner)} already")
        self._names.put(name.key, name)
        paths[path] = None
        self._state.reply(session.peer, wire.Done())

    def _name(self, path: str, publisher: Member, message: wire.Publish) -> Name:
        name = Name(publisher.group, path, message.address, message.nbytes, message.offset, publisher.name)
        in_window = WINDOW_BASE <= name.address < WINDOW_BASE + (1 << WINDOW_BITS)
        if not in_window or not 0 < name.nbytes <= PROCESS_SPACE_BYTES or not 0 <= name.offset < name.nbytes:
            raise Refusal(
                "size",
                f"offset {name.offset} does not lie in a region of {name.nbytes} bytes at {name.address:#x}",
            )
        extent = self._extent(name)
        if extent is None or extent[3] not in _KEPT or extent[4] != publisher.id:
            raise Refusal(
                "not-owner", f"what is to be published as {path} is not owned by {publisher.name!r}"
            )
        name.birth = extent[5]
        return name

    def unpublish(self, session: Session, asker: Member, message: wire.Unpublish) -> None:
        name, owner = self.find(asker.group, message.path)
        if owner.id != asker.id:
            bearer = self._bearer(owner)
            raise Refusal("not-owner", f"{name.path} leads to memory of {bearer}, who alone may unpublish it")
        self._remove(name)
        self._state.reply(session.peer, wire.Done())

    def lookup(self, session: Session, asker: Member, message: wire.Lookup) -> None:
        name, owner = self.find(asker.group, message.path)
        self._state.reply(session.peer, wire.Found(self._published(name, owner)))

    def find(self, group: GroupId, path: str) -> tuple[Name, Owner]:
        """What is published there and whose it is now."""
        normal = _normal(path)
        name = self._names.get(_key(group, normal))
        owner = None if name is None else self._owner(name)
        if name is None or owner is None:
            raise Refusal("no-name", f"nothing is published as {normal}")
        return name, owner

    def listing(self, session: Session, asker: Member | None, message: wire.ListNames) -> None:
        """Names at the prefix and below, by group and path, as many as fit into a packet."""
        prefix = _normal(message.prefix)
        groups = [group.id for group in self._state.groups] if asker is None else [asker.group]
        found: list[wire.Published] = []
        after = message.after
        for group in groups:
            paths = sorted(path for path in self._paths_of(group) if _is_within(path, prefix))
            if message.after is not None and group <= message.after[0]:
                paths = paths[bisect_right(paths, message.after[1]) :] if group == message.after[0] else []
            for path in paths:
                if (len(found) + 1) * _PUBLISHED_BYTES > REPORT_BYTES_MAX:
                    return self._state.reply(session.peer, wire.NameList(found, after))
                after = (group, path)
                name = self._names[_key(group, path)]
                if (owner := self._owner(name)) is not None:
                    found.append(self._published(name, owner))
        return self._state.reply(session.peer, wire.NameList(found))

    # --- whose it is -----------------------------------------------------------------------------------------

    def _owner(self, name: Name) -> Owner | None:
        """Who owns what it leads to; None if that has been freed, or has left the group."""
        extent = self._extent(name)
        if extent is None:
            return None
        _, _, _, state, owner, birth = extent
        if owner == MMU_ID or birth != name.birth or state not in (*_KEPT, STATE_IN_FLIGHT):
            return None
        return Owner(owner, state == STATE_IN_FLIGHT)

    def _extent(self, name: Name) -> ExtentInfo | None:
        extent = self._state.shard_of(name.group).find_extent(name.place, name.descriptor)
        if extent is not None:
            name.descriptor = extent[0]
        return extent

    def _published(self, name: Name, owner: Owner) -> wire.Published:
        bearer = self._state.processes.get(owner.id)
        return wire.Published(
            path=name.path,
            group=self._state.groups[name.group].name,
            address=name.address,
            nbytes=name.nbytes,
            offset=name.offset,
            publisher=name.publisher,
            owner=owner.id,
            owner_name="" if bearer is None else bearer.name,
            owner_state="" if bearer is None else bearer.state.value,
            in_flight=owner.in_flight,
        )

    def _bearer(self, owner: Owner) -> str:
        bearer = self._state.processes.get(owner.id)
        return f"process {owner.id}" if bearer is None else repr(bearer.name)

    # --- what ends -------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Drops names whose memory has gone: some in each group, those first that were looked at longest ago."""
        for group in self._state.groups:
            paths = self._paths_of(group.id)
            for path in list(paths)[:NAMES_SWEPT_MAX]:
                name = self._names[_key(group.id, path)]
                if self._owner(name) is None and not self._may_return(name):
                    self._remove(name)
                else:
                    del paths[path]
                    paths[path] = None

    def _may_return(self, name: Name) -> bool:
        """It is on its way to another group, and that may fail."""
        run = (name.place, name.place + 1)
        return any(slab.pins > 0 for slab in self._state.ledger.overlapping(name.group, run))

    def forget(self, group: GroupId) -> None:
        for path in list(self._paths_of(group)):
            self._remove(self._names[_key(group, path)])

    def _remove(self, name: Name) -> None:
        self._names.remove(name.key)
        paths = self._paths_of(name.group)
        del paths[name.path]
        if not paths and self._paths is not None:
            del self._paths[name.group]

    def _paths_of(self, group: GroupId) -> dict[str, None]:
        """What is published in a group, from the book: a machine that was restored finds it there."""
        if self._paths is None:
            self._paths = {}
            for name in self._names:
                self._paths.setdefault(name.group, {})[name.path] = None
        return self._paths.setdefault(group, {})


def _key(group: GroupId, path: str) -> str:
    return f"{group}:{path}"


def _normal(path: str) -> str:
    try:
        return check_path(path)
    except BadName as error:
        raise Refusal("bad-name", str(error)) from error


def _is_within(path: str, prefix: str) -> bool:
    return prefix in ("/", path) or path.startswith(prefix + "/")
