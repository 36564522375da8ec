"""The other sites, over TCP: who is where, and how to reach it.

Every site dials every other one that it has no link with. Who opens a link, and who takes one, says `Hello`: its
site, which replica it is, in which life, and whether it speaks for the site. A link serves both directions, and
messages to a site go by the link on which its youngest life has spoken last. Should two sites dial each other at the
same time there are two links, and both stay: nothing depends on the order in which messages come, or on their coming
once.

A **standby** has links, too, on which it says that it does not speak for its site. When it inherits, it says hello
again on those, and is heard at once: nothing has to be dialled, and nobody has to notice first that another
connection has ended.

A process that was robbed may run on for a moment, and must not say so much as hello. So the replica is asked for its
`permit` before each hello and each message: that is a store into its memory, which raises if it is not its own any
more.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import msgpack

from bequest.paxos.frames import Link, framed
from bequest.paxos.messages import Message, encode_message
from bequest.paxos.status import Question, Report

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bequest.paxos.config import Service, Site

log = logging.getLogger("bequest.paxos")

VERSION = 1
_REDIAL_FIRST, _REDIAL_MOST = 0.02, 0.5  # seconds between tries; whoever was reborn dials first, and at once
_HELLO_SECONDS = 5.0  # a connection that has not said by then what it is for is ended


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Who is at this end. ``replica`` is 0 where there is none yet; ``speaks`` tells whether it does for the site."""

    service: str
    version: int
    site: str
    replica: int
    life: int
    speaks: bool


_decoder = msgpack.Decoder(Hello | Question | Message)
_encode = msgpack.Encoder().encode


class Peers:
    """Links to all other sites of the service. Nothing is heard before `speak`."""

    def __init__(self, service: Service, site: Site) -> None:
        self._service = service
        self._site = site
        self._loop = asyncio.get_running_loop()
        self._links: set[Link] = set()
        self._speakers: dict[str, Link] = {}  # by site
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._lost = {other.name: asyncio.Event() for other in service.sites if other.name != site.name}
        self._server: asyncio.Server | None = None
        self._hello = Hello(service.name, VERSION, site.name, 0, 0, False)
        self._packed: tuple[Any, bytes] = (None, b"")
        self._dropped = 0
        self._heard: Callable[[int, Message], None] = lambda sender, message: None
        self._report: Callable[[], Report] | None = None
        self._permit: Callable[[], None] = lambda: None
        self._connected: Callable[[int], None] = lambda replica: None

    def dial(self) -> None:
        """Makes links to all sites, and makes them again when they are lost. Does nothing the second time."""
        for other in self._service.sites:
            if other.name != self._site.name and other.name not in self._dialling:
                self._dialling[other.name] = self._loop.create_task(self._keep_dialling(other))

    def speak(
        self,
        replica: int,
        life: int,
        heard: Callable[[int, Message], None],
        report: Callable[[], Report],
        permit: Callable[[], None],
        connected: Callable[[int], None] = lambda replica: None,
    ) -> None:
        """Speaks for the site from now on, as this replica (0: one that has yet to join).

        ``heard(sender, message)`` is called with what comes, ``report`` answers who asks for the status, and ``permit``
        raises if this process has lost the replica's memory. ``connected(replica)`` tells of new connections. Those who
        speak for other sites are told with the next `flush`.
        """
        self._heard, self._report, self._permit, self._connected = heard, report, permit, connected
        self._hello = Hello(self._service.name, VERSION, self._site.name, replica, life, True)
        for link in list(self._links):
            if link.site or link.dialled:
                self._greet(link)
                if self._speakers.get(link.site) is not link:
                    link.flush()

    async def listen(self, listening: socket.socket) -> None:
        """Takes links of others on this socket, too. Does nothing the second time."""
        if self._server is None:
            self._server = await self._loop.create_server(self._take, sock=listening)

    @property
    def dropped(self) -> int:
        """Messages that could not be sent, since there was no link, or too much waited on it."""
        return self._dropped + sum(link.dropped for link in self._links)

    # --- messages ---------------------------------------------------------------------------------------------------

    def send(self, site: str, replica: int, message: Message) -> None:
        """With the next `flush`, unless nobody speaks for that site, or another replica than that (0: any).

        Without a site, to the replica wherever it speaks: one that was removed, and does not know it yet.
        """
        link = self._speakers.get(site) if site else self._speaker(replica)
        if link is None or not link.is_open or replica not in (0, link.replica):
            self._dropped += 1
            return
        if self._packed[0] is not message:
            self._packed = (message, framed(encode_message(message)))
        link.send(self._packed[1])

    def _speaker(self, replica: int) -> Link | None:
        return next((link for link in self._speakers.values() if link.replica == replica), None)

    def flush(self) -> None:
        """Lets out what was sent since the last time."""
        for link in self._speakers.values():
            link.flush()
        self._packed = (None, b"")

    def tell_everybody(self, message: Message) -> None:
        """At once, at sites where nobody has said yet that he speaks over all links that there are."""
        frame = framed(encode_message(message))
        for link in self._links:
            if link.site and self._speakers.get(link.site, link) is link:
                link.send(frame)
                link.flush()

    def _hear(self, link: Link, frame: Any) -> None:
        if isinstance(frame, Hello):
            self._meet(link, frame)
        elif isinstance(frame, Question):
            if self._report is not None and frame.service == self._service.name:
                link.send(framed(_encode(self._report())))
                link.flush()
            else:
                link.close()
        elif link.site:
            self._heard(link.replica, frame)
        else:
            log.warning("%s has not said who it is, and is hung up on", link.peer)
            link.close()

    # --- links ------------------------------------------------------------------------------------------------------

    def _take(self) -> Link:
        link = self._new_link()
        self._loop.call_later(_HELLO_SECONDS, self._end_nameless, link)
        return link

    def _new_link(self) -> Link:
        link = Link(_decoder, self._hear, self._lose)
        self._links.add(link)
        return link

    def _end_nameless(self, link: Link) -> None:
        if link.is_open and not link.site:
            link.close()

    def _greet(self, link: Link) -> None:
        self._permit()
        link.send(framed(_encode(self._hello)))

    def _meet(self, link: Link, hello: Hello) -> None:
        """Who is at the other end has said so, for the first time or because it has changed."""
        is_known = bool(link.site)
        if (hello.service, hello.version) != (self._service.name, VERSION) or hello.site not in self._lost:
            log.warning(
                "%s is site %r of service %r (version %d), which is none of ours; it is hung up on",
                link.peer, hello.site, hello.service, hello.version,
            )  # fmt: skip
            link.close()
            return
        link.site, link.replica, link.life, link.speaks = hello.site, hello.replica, hello.life, hello.speaks
        if hello.speaks:
            before = self._speakers.get(hello.site)
            if (
                before is None
                or not before.is_open
                or (before.replica, before.life) <= (link.replica, link.life)
            ):
                self._speakers[hello.site] = link
                self._connected(hello.replica)
        if not is_known and not link.dialled:
            self._greet(link)
            link.flush()

    def _lose(self, link: Link) -> None:
        self._links.discard(link)
        self._dropped += link.dropped
        if self._speakers.get(link.site) is link:
            del self._speakers[link.site]
            for other in self._links:  # another of its links may be open still
                if (
                    other.site == link.site
                    and other.is_open
                    and other.replica == link.replica
                    and other.speaks
                ):
                    self._speakers[link.site] = other
        for site in {link.site, link.dialled} - {""}:
            self._lost[site].set()

    async def _keep_dialling(self, other: Site) -> None:
        pause, told = _REDIAL_FIRST, False
        while True:
            try:
                await self._dial(other)
                pause, told = _REDIAL_FIRST, False
                await self._wait_until_lost(other.name)
            except OSError as error:
                if not told:
                    log.info("site %s cannot be reached (%s); trying again", other.name, error)
                told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _REDIAL_MOST)

    async def _dial(self, other: Site) -> None:
        _, link = await self._loop.create_connection(self._new_link, other.peers.host, other.peers.port)
        link.dialled = other.name
        self._greet(link)
        link.flush()

    async def _wait_until_lost(self, site: str) -> None:
        """Until there is no link any more with who speaks for that site, or will when it takes what was dialled."""
        lost = self._lost[site]
        while any(
            link.is_open and (link.dialled == site or (link.site == site and link.speaks))
            for link in self._links
        ):
            lost.clear()
            await lost.wait()

    def close(self) -> None:
        """Ends all links, after what was written."""
        for task in self._dialling.values():
            task.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()
