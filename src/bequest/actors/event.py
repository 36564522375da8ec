"""One event: what it does to regions and streams, kept back until its transaction has been committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.actors import mail
from bequest.actors.mail import Identity
from bequest.actors.office import let_go
from bequest.errors import BequestError, NotSendable

if TYPE_CHECKING:
    from bequest.actors.host import Host
    from bequest.memory.region import Region


class RegionLost(BequestError, LookupError):
    """A region that a message speaks of is not there: its sender was away for minutes, or its memory has failed."""


class Stopped(BaseException):
    """The actor is to end, in the middle of an event that waits: it is undone."""


class Event:
    """The handling of message ``number`` of ``stream``.

    ``calls`` are the streams of calls that it made, and to whom; ``made`` the outboxes that did not exist before.
    """

    __slots__ = (
        "_came",
        "_loose",
        "_promises",
        "_released",
        "calls",
        "is_touched",
        "kept",
        "made",
        "number",
        "stream",
    )

    def __init__(self, stream: bytes, number: int) -> None:
        self.stream = stream
        self.number = number
        self.is_touched = False

    def touch(self) -> Event:
        """Most events only change the state: they are spared the rest."""
        if not self.is_touched:
            self.is_touched = True
            self.calls: dict[bytes, str] = {}
            self.made: list[bytes] = []
            self.kept: dict[Identity, Region] = {}
            self._loose: dict[Identity, Region] = {}  # freed at the end
            self._came: dict[Identity, Region] = {}  # with its message
            self._promises: list[tuple[dict[Identity, Region], Identity, Region]] = []
            self._released: list[Identity] = []  # kept before this event
        return self

    def claim(self, arrived: dict[Identity, Region], name: Identity) -> Region:
        """A region that its message or a reply speaks of."""
        region = arrived.pop(name, None)
        if region is None:
            raise RegionLost(f"the region at {name[0]:#x} that came with this message is not here")
        self._loose[name] = self._came[name] = region
        return region

    def promise(self, host: Host, to: dict[Identity, Region], region: Region) -> None:
        """It goes elsewhere once the event has happened."""
        name = mail.identity(region)
        if any(name == promised for _, promised, _ in self._promises):
            raise NotSendable("this region has been sent already, in this event")
        for key, kept in host.books.all_kept().items():
            if kept == name:
                host.unkeep_region(key)
        self._loose.pop(name, None)
        self._promises.append((to, name, region))

    def keep(self, region: Region) -> None:
        """It stays beyond the event."""
        name = mail.identity(region)
        self._loose.pop(name, None)
        self.kept[name] = region

    def release(self, region: Region) -> None:
        """It was kept, in this event or before."""
        name = mail.identity(region)
        if self.kept.pop(name, None) is None:
            self._released.append(name)
        self._loose[name] = region

    def write_farewells(self, host: Host) -> None:
        """Within its transaction."""
        for stream, to in self.calls.items():
            host.forget_stream(to, stream)

    def undo(self, host: Host) -> None:
        """It has failed: as its transaction, so the rest. What came with the message goes."""
        for stream in self.made:
            host.outgoing.pop(stream, None)
        self.made.clear()
        self.kept.clear()
        self._promises.clear()
        self._released.clear()
        self._loose = dict(self._came)

    def settle(self, host: Host) -> None:
        """It has happened."""
        for name in self._released:
            host.disown(name)
        for region in self.kept.values():
            host.own(region)
        for to, name, region in self._promises:
            to[name] = region
        for region in self._loose.values():
            let_go(region)
        if self.calls:
            host.end_calls(self.calls)
