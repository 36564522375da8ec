"""What `bequest.memory` does for an attached process, act by act, as programs of the simulated world.

It keeps the order that the real library owes: pages are closed before a word is swapped, and opened after. It looks,
pauses (and may be stopped there for long), and acts on what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import msgspec

from bequest.ids import home_of
from bequest.limits import HUGE_PAGE_BYTES, PAGE_BYTES
from bequest.protocol.address_plan import without
from bequest.protocol.lifts import EVERYWHERE
from bequest.sim.connection import Answer, Connection
from bequest.sim.file import SimFile
from bequest.sim.os_process import Ask, Failed, OsProcess, Program, Protected, Revoked, Want
from bequest.sim.shared_table import Grant, SharedTable
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World

Acting = Generator[Want, Answer | None, None]


_MAY_BE_REPEATED = (wire.Attach, wire.Detach, wire.FindPeer, wire.Lookup)  # as of `bequest.runtime.lasting`


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
        if not isinstance(self.greeting, wire.Resume) or isinstance(message, _MAY_BE_REPEATED):
            return message
        self.number += 1
        return wire.Once(self.number, message)  # type: ignore[arg-type]


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
        self.contacts: list[str] = []  # as its agent has confirmed them
        self.contacts_asked: list[str] | None = None  # for, and it is not known whether they are in force
        self.attached_at = ""
        self._revocations = 0
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

    def attach(self, name: str, secret: bytes | None) -> Generator[Want, Answer | None, bool]:
        attach = wire.Attach(name, secret, nonce=self.world.random.randbytes(16))
        reply, table = yield from self._request(self.mmu, attach, "name-taken", "memory", "secret")
        if not isinstance(reply, wire.Attached):
            return False
        assert isinstance(table, SharedTable)
        self.attached, self._table = reply, table
        self.mmu.greeting = wire.Resume(reply.pid, reply.incarnation, reply.agent_ticket)
        self.attached_at = reply.compute
        agent = Line(reply.agent_path, self.process.connect(self.world.agents[reply.agent_path]))
        yield from self._request(agent, wire.Enrol(reply.agent_ticket))
        agent.greeting = wire.Enrol(reply.agent_ticket)
        self._agent = agent
        self.world.attached(self.process, self)
        self.process.start(self._listen(reply))
        return True

    def detach(self) -> Acting:
        self.process.close_all()  # its whole window, free pages at home too
        self.handles.clear()
        self.world.detaching(self.process, self)
        self.is_leaving = True
        yield from self._request(self.mmu, wire.Detach(), "not-attached")
        self.attached = None
        for connection in self.process.connections:
            connection.close()

    # --- notices ---------------------------------------------------------------------------------------------

    def _listen(self, attached: wire.Attached) -> Program:
        """A thread that is told what happens; it subscribes again when its agent has been started anew."""
        since: int | None = None
        while self.attached is not None:
            connection = self.process.connect(self.world.daemon(attached.agent_path))
            answer = yield Ask(connection, wire.Subscribe(attached.agent_ticket, since))
            subscribed = None if answer is None else answer[0]
            if isinstance(subscribed, wire.Failed):
                return  # it is not attached any more
            if isinstance(subscribed, wire.Subscribed) and since is None:
                since = subscribed.death
                self.world.subscribed(self.process, self)
            while (answer := (yield connection)) is not None:
                notice = answer[0]
                since = notice.number if isinstance(notice, wire.NoticeDied) else since
                self.world.told(self.process, self, notice)
            yield 0.002

    def name_contacts(self, names: list[str]) -> Acting:
        self.contacts_asked = names
        reply, _ = yield from self._request(self._agent, wire.SetContacts(names))
        if isinstance(reply, wire.Done):
            self.contacts = names
        self.contacts_asked = None

    def stand_by(self, name: str) -> Acting:
        yield from self._request(self.mmu, wire.StandBy(name), "unknown", "config", "capability")

    # --- memory ----------------------------------------------------------------------------------------------

    def alloc(self, pages: int) -> Acting:
        descriptor = self.table.alloc(self.id, pages)
        if descriptor is None:
            wanted = -(-pages * PAGE_BYTES // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES // PAGE_BYTES
            reply, _ = yield from self._request(self.mmu, wire.NeedSlab(wanted), "memory", "address-space")
            if not isinstance(reply, wire.SlabReady):
                return
            self.reconcile()
            descriptor = self.table.alloc(self.id, pages)
        if descriptor is not None:
            handle = self._handle(descriptor)
            self.world.allocated(self.process, self, handle)
            if (yield from self._open(handle)):
                self.handles.append(handle)
                yield from self.store(handle)

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

    def store(self, handle: Handle) -> Acting:
        yield from self._touch(handle, self.process.store)

    def load(self, handle: Handle) -> Acting:
        def load(address: int) -> None:
            self.world.loaded(self.process, self, address, self.process.load(address))

        yield from self._touch(handle, load)

    def _touch(self, handle: Handle, touch: Callable[[int], None]) -> Acting:
        """What a fault barrier makes of faults: it waits for as long as memory of ours is write-protected.

        What was closed for nothing, by ptrace, is opened again.
        """
        for address in handle.samples:
            try:
                yield from self._await_lifting(handle, address, touch)
            except Failed:
                return
            except (Revoked, Protected):
                if not self.table.owns(self.id, handle.descriptor, handle.word):
                    self.handles.remove(handle)
                    self.world.lost(self.process, self, handle)
                    return
                self._map(handle)
                touch(address)

    def _await_lifting(self, handle: Handle, address: int, touch: Callable[[int], None]) -> Acting:
        while True:
            try:
                touch(address)
                return
            except Protected:
                if not self.table.owns(self.id, handle.descriptor, handle.word):
                    raise
            self.world.trace("fault", repr(self.process), "waits for the lifting of a fence")
            yield 0.001

    def reconcile(self) -> None:
        """What of its regions was stolen. The library looks whenever it is called, and before it has more memory."""
        if self.table.revocations.get(self.id, 0) != self._revocations:
            self._revocations = self.table.revocations.get(self.id, 0)
            for handle in list(self.handles):
                if not self.table.owns(self.id, handle.descriptor, handle.word):
                    self.handles.remove(handle)
                    self._close(handle)
                    self.world.lost(self.process, self, handle)
            self._forget_all_but(self.handles)

    def _forget_all_but(self, held: list[Handle]) -> None:
        """Every mapping, and with it what fences have left on it."""
        for start, end in without(EVERYWHERE, [(handle.address, handle.end) for handle in held]):
            self.process.close(start, end)
            self.process.lift(start, end)

    # --- stealing --------------------------------------------------------------------------------------------

    def steal(self, victim: str, only: list[str | int] | None) -> Acting:
        refusals = ("fence", "dead", "unknown", "capability", "not-owner", "no-name")
        reply, _ = yield from self._request(self.mmu, wire.Steal(victim, None, only), *refusals)
        if not isinstance(reply, wire.Stolen):
            return
        self.world.stole(self.process, self, reply)
        self.reconcile()  # some of it may have been ours, and have been fenced off
        for descriptor in self.table.adopt(self.id, reply.pid, reply.incarnation):
            yield from self._have(descriptor)
        while reply.heir and self.table.heirs.get(reply.pid) == self.id:
            self.reconcile()
            taken = self.table.take(reply.pid, self.id)
            if taken is None:
                return
            self.world.received(self.process, self, self._handle(taken[0]), taken[1])
            yield from self._have(taken[0])

    def _have(self, descriptor: int) -> Acting:
        handle = self._handle(descriptor)
        if (yield from self._open(handle)):
            self.handles.append(handle)
            yield from self.load(handle)

    def publish(self, path: str, handle: Handle) -> Acting:
        message = wire.Publish(path, handle.address, handle.pages * PAGE_BYTES, 0)
        yield from self._request(self.mmu, message, "name-taken", "not-owner")

    def look_up(self, path: str) -> Acting:
        yield from self._request(self.mmu, wire.Lookup(path), "no-name")

    def break_memory(self, handle: Handle) -> Acting:
        element = self.world.element(self.table.records[handle.slab][2]).info.name
        message = wire.BreakMemory(element, handle.address, PAGE_BYTES)
        yield from self._request(self.mmu, message, "fence", "config", "memory")

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
        reply, _ = yield from self._request(self.mmu, message, "dead", "inbox-full", "memory", "moved")
        if isinstance(reply, wire.Failed):
            self.peers.pop(to, None)
            self.reconcile()
            yield from self._take_back(handle)

    def _take_back(self, handle: Handle) -> Acting:
        """The extent is ours again, under a new word, unless it was stolen."""
        if handle.descriptor not in self.table.extents:
            self.world.lost(self.process, self, handle)
            return
        again = self._handle(handle.descriptor)
        if not self.table.owns(self.id, again.descriptor, again.word) or again.address != handle.address:
            self.world.lost(self.process, self, handle)
            return
        yield from self._have(again.descriptor)

    def accept(self, inbox: int) -> Acting:
        self.reconcile()
        taken = self.table.take(inbox, self.id)
        if taken is not None:
            descriptor, tag = taken
            self.world.received(self.process, self, self._handle(descriptor), tag)
            yield from self._have(descriptor)

    def _find(self, name: str) -> Generator[Want, Answer | None, Peer | None]:
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
    ) -> Generator[Want, Answer | None, Answer]:
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

    def _reconnect(self, line: Line) -> Generator[Want, Answer | None, bool]:
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

    def _open(self, handle: Handle) -> Generator[Want, Answer | None, bool]:
        """False if it was stolen meanwhile."""
        if handle.slab not in self._mapped:
            assert self.attached is not None
            number = self.table.records[handle.slab][2]
            if number not in self._elements:
                element = self.world.element(number)
                self._elements[number] = Line(element.name, self.process.connect(element))
            message = wire.OpenSlab(self.attached.element_ticket, handle.slab)
            _, file = yield from self._request(self._elements[number], message, "unknown")
            if not self.table.owns(self.id, handle.descriptor, handle.word):
                self.world.lost(self.process, self, handle)
                return False
            assert isinstance(file, SimFile), f"{self.process!r} owns {handle}, and is not given its memory"
            self._mapped[handle.slab] = file
        if not self.table.owns(self.id, handle.descriptor, handle.word):
            self.world.lost(self.process, self, handle)
            return False
        self._map(handle)
        return True

    def _map(self, handle: Handle) -> None:
        file, base = self._mapped[handle.slab], self.table.records[handle.slab][0]
        self.process.open(handle.address, handle.end, file, (handle.address - base) // PAGE_BYTES)
        self.world.opened(self.process, self, handle)

    def _close(self, handle: Handle) -> None:
        self.process.close(handle.address, handle.end)
