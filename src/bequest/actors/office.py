"""The post office of one sender: its inbox, its streams, and regions that have come before what speaks of them.

A client and an actor have one each, and drive it in their own ways. It never waits: what finds no room in an inbox
is tried again by `retry`, in order for each receiver.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from bequest.actors import mail
from bequest.actors.mail import Address, Identity
from bequest.errors import RackMemoryError, UnknownActor
from bequest.limits import INBOX_CELLS, TAG_BYTES_MAX

if TYPE_CHECKING:
    from bequest.actors.outgoing import Outgoing
    from bequest.memory.names import Published
    from bequest.memory.process import Process
    from bequest.memory.region import Region

_DONE, _FULL = 0, 1  # GrantStatus in native/attachment.hpp
_LIVE = 1  # Life in native/layout.hpp
_READ = 64  # arrivals at a time
_log = logging.getLogger("bequest")


def path_of(actor: str) -> str:
    """Where an actor's heap is published, and so who it is."""
    return f"/actors/{actor}"


def published(process: Process, actor: str) -> Published | None:
    """Its heap, and whose that is; None if there is no such actor."""
    path = path_of(actor)
    return next((found for found in process.list(path) if found.path == path), None)


class Office:
    """``address`` is where answers go, ``arrived`` the regions that no message has claimed yet."""

    def __init__(self, process: Process, address: Address) -> None:
        self.process = process
        self.address = address
        self.arrived: dict[Identity, Region] = {}
        self.outgoing: dict[bytes, Outgoing] = {}
        self._unsent: dict[Address, deque[bytes]] = {}

    # --- what is sent ---------------------------------------------------------------------------------------

    def post(self, to: Address, post: bytes) -> None:
        """Sends it as soon as there is room. To the dead nothing is sent."""
        waiting = self._unsent.get(to)
        if waiting is not None:
            waiting.append(post)
        elif not self._try(to, post):
            self._unsent[to] = deque([post])

    def grant(self, to: Address, region: Region, name: str) -> bool:
        """Grants a region that a post will speak of; False if the receiver is full or dead, and it stays here."""
        if to in self._unsent:
            return False
        status, _ = self.process._grant([region], 0, *to, mail.CARRIED, name, INBOX_CELLS)
        return bool(status == _DONE)

    def retry(self) -> None:
        """Sends what has found no room, as far as there is room now."""
        for to, waiting in list(self._unsent.items()):
            while waiting and self._try(to, waiting[0]):
                waiting.popleft()
            if not waiting:
                del self._unsent[to]

    @property
    def is_waiting_for_room(self) -> bool:
        """Whether `retry` has something to do."""
        return bool(self._unsent)

    def _try(self, to: Address, post: bytes) -> bool:
        """False if there is no room."""
        if len(post) <= TAG_BYTES_MAX:
            return bool(self.process._send(*to, post, INBOX_CELLS) != _FULL)
        if not self.lives(to):
            return True
        try:
            envelope = mail.into_envelope(self.process, post)
        except RackMemoryError as error:
            if to not in self._unsent:
                _log.warning("a post of %d bytes waits until there is memory for it: %s", len(post), error)
            return False
        status, _ = self.process._grant([envelope], 0, *to, mail.ENVELOPE, "", INBOX_CELLS)
        if status != _DONE:
            envelope.free()
        return bool(status != _FULL)

    # --- who is there ---------------------------------------------------------------------------------------

    def lives(self, peer: Address) -> bool:
        """Whether that life of it lasts."""
        life, incarnation, _, _ = self.process.table.life(peer.id)
        return life == _LIVE and incarnation == peer.incarnation

    def find_actor(self, name: str) -> Address | None:
        """Where it is now; None if it has died, and may be inherited. Raises UnknownActor if there is none."""
        found = published(self.process, name)
        if found is None:
            raise UnknownActor(f"there is no actor {name!r} in group {self.process.group!r} of this rack")
        owner = self.process._find(found.owner) if found.state == "attached" else None
        return None if owner is None else Address(*owner)

    # --- what comes -----------------------------------------------------------------------------------------

    def read_all(self) -> int:
        """Takes in what is in the inbox; how much that was."""
        count = 0
        while arrivals := self.process._accept(self.address.id, _READ, 0):
            count += len(arrivals)
            for arrival in arrivals:
                self.take(arrival)
        return count

    def take(self, arrival: Region) -> None:
        """One message or region that has come."""
        if arrival.nbytes == 0:
            data = arrival.tag
        elif arrival.tag == mail.ENVELOPE:
            data = mail.read_envelope(arrival)
            arrival.free()
        else:
            self.arrived[mail.identity(arrival)] = arrival
            return
        post = mail.parse(data)
        if isinstance(post, mail.Receipt):
            outgoing = self.outgoing.get(post.stream)
            if outgoing is not None:
                self.deliver_receipt(outgoing, post)
        elif isinstance(post, mail.Replies):
            for reply in post.replies:
                self.deliver_reply(post.stream, reply)
        elif post is not None:
            self.deliver(post)

    def deliver(self, post: mail.Mail | mail.Query | mail.Farewell) -> None:
        """For an actor; nobody sends one to a client."""

    def deliver_receipt(self, outgoing: Outgoing, receipt: mail.Receipt) -> None:
        """For one of its streams."""
        outgoing.receive(receipt)

    def deliver_reply(self, stream: bytes, reply: list[Any]) -> None:
        """A reply to one of its calls, or one that it has had already."""

    def unclaim(self, name: Identity, region: Region | None) -> None:
        """A region that turned out to be here after all: a message that has yet to be handled brought it."""
        if region is not None:
            self.arrived[name] = region


def let_go(region: Region) -> None:
    """Frees a region that nobody has asked for; as soon as its last view goes, if there are views."""
    with contextlib.suppress(BufferError):
        region._free_remaining()
    region._free_when_dropped()
