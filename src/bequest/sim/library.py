"""What `bequest.memory` does for an attached process, act by act, as programs of the simulated world.

It keeps the order that the real library owes: pages are closed before a word is swapped, and opened after. It looks,
pauses (and may be stopped there for long), and acts on what it saw.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import msgspec

from bequest.ids import home_of
from bequest.limits import HUGE_PAGE_BYTES, PAGE_BYTES
from bequest.sim.connection import Answer, Connection
from bequest.sim.file import SimFile
from bequest.sim.os_process import Ask, OsProcess
from bequest.sim.shared_table import Grant, SharedTable
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World

Acting = Generator[Ask | float, Answer | None, None]


class RackLost(Exception):
    """A connection has ended; the library raises `RackGone`."""


class Handle(msgspec.Struct, eq=False):
    """A region: an extent that this process owns, or thinks it does."""

    descriptor: int
    word: int
    address: int
    pages: int
    slab: int

    @property
    def end(self) -> int:
        return self.address + self.pages * PAGE_BYTES

    @property
    def samples(self) -> tuple[int, ...]:
        """Of many pages, the first and the last stand for all."""
        last = self.end - PAGE_BYTES
        return (self.address, last) if last > self.address else (self.address,)


class Peer(msgspec.Struct, frozen=True):
    id: int
    incarnation: int
    same_group: bool


class Line(msgspec.Struct, eq=False):
    """A conversation with a daemon, which may be followed by another (`bequest.runtime.lasting`)."""

    daemon: str
    connection: Connection
    greeting: wire.Message | None = None  # what is said first on a new connection
    number: int = 0  # of the last request that must not be done twice

    def numbered(self, message: wire.Message) -> wire.Message:
        once = (wire.NeedSlab, wire.CrossGrant, wire.OpenMailbox, wire.CloseMailbox)
        if not isinstance(self.greeting, wire.Resume) or not isinstance(message, once):
            return message
        self.number += 1
        return wire.Once(self.number, message)


class Library:
    def __init__(self, world: World, process: OsProcess) -> None:
        self.world = world
        self.process = process
        self.mmu = Line("mmu", process.connect(world.mmu))
        self.attached: wire.Attached | None = None
        self.handles: list[Handle] = []
        self.is_leaving = False
        self.mailboxes: list[wire.MailboxOpened] = []
        self.peers: dict[str, Peer] = {}
        self._elements: dict[int, Line] = {}
        self._mapped: dict[int, SimFile] = {}

    @property
    def id(self) -> int:
        assert self.attached is not None
        return self.attached.pid

    @property
    def table(self) -> SharedTable:
        return self._table

    # --- coming and going ------------------------------------------------------------------------------------

    def attach(self, name: str, secret: bytes | None) -> Generator[Ask | float, Answer | None, bool]:
        attach = wire.Attach(name, secret, nonce=self.world.random.randbytes(16))
        reply, table = yield from self._request(self.mmu, attach, "name-taken", "memory", "secret")
        if not isinstance(reply, wire.Attached):
            return False
        assert isinstance(table, SharedTable)
        self.attached, self._table = reply, table
        self.mmu.greeting = wire.Resume(reply.pid, reply.incarnation, reply.agent_ticket)
        agent = Line(reply.agent_path, self.process.connect(self.world.agents[reply.agent_path]))
        yield from self._request(agent, wire.Enrol(reply.agent_ticket))
        self.world.attached(self.process, self)
        return True

    def detach(self) -> Acting:
        self.process.open_runs.clear()  # its whole window, free pages at home too
        self.handles.clear()
        self.world.detaching(self.process, self)
        self.is_leaving = True
        yield from self._request(self.mmu, wire.Detach(), "not-attached")
        self.attached = None
        for connection in self.process.connections:
            connection.close()

    # --- memory ----------------------------------------------------------------------------------------------

    def alloc(self, pages: int) -> Acting:
        descriptor = self.table.alloc(self.id, pages)
        if descriptor is None:
            wanted = -(-pages * PAGE_BYTES // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES // PAGE_BYTES
            reply, _ = yield from self._request(self.mmu, wire.NeedSlab(wanted), "memory", "address-space")
            if not isinstance(reply, wire.SlabReady):
                return
            descriptor = self.table.alloc(self.id, pages)
        if descriptor is not None:
            handle = self._handle(descriptor)
            self.world.allocated(self.process, self, handle)
            yield from self._open(handle)
            self.handles.append(handle)
            self.store(handle)

    def free(self, handle: Handle) -> None:
        self.handles.remove(handle)
        if home_of(handle.address) != self.id:  # an allocator keeps its free pages open
            self._close(handle)
        if not self.table.try_free(self.id, handle.descriptor, handle.word):
            self.world.lost(self.process, self, handle)

    def split(self, handle: Handle, pages: int) -> None:
        both = self.table.split(self.id, handle.descriptor, handle.word, pages)
        self.handles.remove(handle)
        if both is None:
            self._close(handle)
            self.world.lost(self.process, self, handle)
        else:
            self.handles += [self._handle(descriptor) for descriptor in both]

    def store(self, handle: Handle) -> None:
        for address in handle.samples:
            self.process.store(address)

    def load(self, handle: Handle) -> None:
        for address in handle.samples:
            self.world.loaded(self.process, self, address, self.process.load(address))

    # --- handing over ----------------------------------------------------------------------------------------

    def grant(self, handle: Handle, to: str) -> Acting:
        peer = self.peers.get(to) or (yield from self._find(to))
        if peer is None:
            return
        tag = self.world.granting(self.process, self, handle)
        if not peer.same_group:
            yield from self._grant_across(handle, to, peer, tag)
            return
        if not self.table.is_live(peer.id, peer.incarnation):
            del self.peers[to]
        elif self.table.has_room(peer.id):
            yield from self._commit(handle, to, peer, tag)

    def _commit(self, handle: Handle, to: str, peer: Peer, tag: bytes) -> Acting:
        self._close(handle)
        self.handles.remove(handle)
        yield self.world.delay()
        claim = self.table.commit(self.id, handle.descriptor, handle.word, peer.id, peer.incarnation, tag)
        if claim is None:
            self.world.lost(self.process, self, handle)
            return
        yield self.world.delay()
        if self.table.publish(self.id, claim) is Grant.DEAD:
            self.peers.pop(to, None)
            yield from self._take_back(handle)

    def _grant_across(self, handle: Handle, to: str, peer: Peer, tag: bytes) -> Acting:
        self._close(handle)
        self.handles.remove(handle)
        message = wire.CrossGrant(handle.descriptor, handle.word, peer.id, peer.incarnation, tag)
        reply, _ = yield from self._request(self.mmu, message, "dead", "inbox-full", "memory")
        if isinstance(reply, wire.Failed):
            self.peers.pop(to, None)
            yield from self._take_back(handle)

    def _take_back(self, handle: Handle) -> Acting:
        """The extent is ours again, under a new word."""
        again = self._handle(handle.descriptor)
        if not self.table.owns(self.id, again.descriptor, again.word) or again.address != handle.address:
            self.world.lost(self.process, self, handle)
            return
        yield from self._open(again)
        self.handles.append(again)
        self.load(again)

    def accept(self, inbox: int) -> Acting:
        taken = self.table.take(inbox, self.id)
        if taken is not None:
            descriptor, tag = taken
            handle = self._handle(descriptor)
            self.world.received(self.process, self, handle, tag)
            yield from self._open(handle)
            self.handles.append(handle)
            self.load(handle)

    def _find(self, name: str) -> Generator[Ask | float, Answer | None, Peer | None]:
        found = self.table.find(name)
        if found is not None:
            self.peers[name] = Peer(*found, same_group=True)
            return self.peers[name]
        reply, _ = yield from self._request(self.mmu, wire.FindPeer(name), "dead", "unknown")
        if not isinstance(reply, wire.PeerFound):
            return None
        self.peers[name] = Peer(reply.pid, reply.incarnation, reply.same_group)
        return self.peers[name]

    # --- mailboxes -------------------------------------------------------------------------------------------

    def open_mailbox(self, name: str) -> Acting:
        reply, _ = yield from self._request(self.mmu, wire.OpenMailbox(name), "unknown")
        if isinstance(reply, wire.Failed):
            reply, _ = yield from self._request(
                self.mmu, wire.OpenMailbox(name, create=True), "name-taken", "memory"
            )
        if isinstance(reply, wire.MailboxOpened):
            self.mailboxes.append(reply)

    def close_mailbox(self, mailbox: wire.MailboxOpened) -> Acting:
        self.mailboxes.remove(mailbox)
        yield from self._request(self.mmu, wire.CloseMailbox(mailbox.id))

    # --- within ----------------------------------------------------------------------------------------------

    def _request(
        self, line: Line, message: wire.Message, *expected: str
    ) -> Generator[Ask | float, Answer | None, Answer]:
        """The answer; a refusal of a kind that is not expected is a finding."""
        sent = line.numbered(message)
        answer = yield Ask(line.connection, sent)
        while answer is None:
            if not (yield from self._reconnect(line)):
                return wire.Done(), None
            answer = yield Ask(line.connection, sent)
        reply = answer[0]
        if isinstance(reply, wire.Failed) and reply.kind == "not-attached" and self.process.was_cut_off:
            raise RackLost
        if isinstance(reply, wire.Failed) and reply.kind not in expected:
            self.world.find(f"{self.process!r} was refused {message}: {reply.kind}: {reply.message}")
        return answer

    def _reconnect(self, line: Line) -> Generator[Ask | float, Answer | None, bool]:
        """On a new connection it is said who is back. False: nobody is missed there, as was wanted."""
        while True:
            if self.process.was_cut_off:
                raise RackLost
            yield 0.002
            line.connection = self.process.connect(self.world.daemon(line.daemon))
            if line.greeting is None:
                return True
            answer = yield Ask(line.connection, line.greeting)
            if answer is not None and isinstance(answer[0], wire.Failed):
                if self.is_leaving:
                    return False
                self.world.find(f"{self.process!r} cannot come back: {answer[0].message}")
            if answer is not None:
                return True

    def _handle(self, descriptor: int) -> Handle:
        extent = self.table.extents[descriptor]
        return Handle(descriptor, extent.epoch, extent.address, extent.pages, extent.slab)

    def _open(self, handle: Handle) -> Acting:
        if handle.slab not in self._mapped:
            assert self.attached is not None
            number = self.table.records[handle.slab][2]
            if number not in self._elements:
                element = self.world.element(number)
                self._elements[number] = Line(element.name, self.process.connect(element))
            message = wire.OpenSlab(self.attached.element_ticket, handle.slab)
            _, file = yield from self._request(self._elements[number], message)
            if not isinstance(file, SimFile):
                return
            self._mapped[handle.slab] = file
        file, base = self._mapped[handle.slab], self.table.records[handle.slab][0]
        self.process.open(handle.address, handle.end, file, (handle.address - base) // PAGE_BYTES)
        self.world.opened(self.process, self, handle)

    def _close(self, handle: Handle) -> None:
        self.process.close(handle.address, handle.end)
