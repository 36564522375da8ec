"""A grant from one group to another (DESIGN D4).

Slabs are the grain of isolation. If the extent is a whole slab, the slab moves: the element guards it for the other
group from then on, it enters their table and leaves the old one; nothing is copied. If it is a part, the memory element
copies it into a slab of the other group at the same address, or into the hole that an earlier grant left there; the
source keeps a hole ("away", owned by the MMU) until the copy has ended.

    withdraw ─ whole ──> regroup ──────────────> deliver ──> granted, 0 bytes copied
             └ part ──> reserve ──> copy ──────> deliver ──> granted; source pages punched
    any failure: undo, restore the sender's ownership, refused

The sender revoked its own mapping before it asked; the extent is nobody's but the MMU's until `deliver`, which is the
commit point: one table operation, after which it is on its way to the receiver.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from bequest._core import STATE_OWNED
from bequest.limits import HUGE_PAGE_BYTES, MAX_EXTENTS, PAGE_BYTES, PAGES_PER_HUGE_PAGE, TAG_BYTES_MAX
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState, Session
from bequest.protocol.refusal import Refusal
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.protocol.slab_supply import SlabSupply
from bequest.wire import messages as wire


class Way(Enum):
    MOVE = "move"
    COPY = "copy"
    COPY_INTO_HOLE = "copy into hole"


class Extent(msgspec.Struct):
    descriptor: int
    word: int
    address: int
    pages: int
    nbytes: int

    @property
    def run(self) -> tuple[int, int]:
        return self.address, self.address + self.pages * PAGE_BYTES

    @property
    def content_bytes(self) -> int:
        """Its pages that hold the region. Those behind them, up to a huge page, show what others had there."""
        return min(max(-(-self.nbytes // PAGE_BYTES), 1), self.pages) * PAGE_BYTES


class CrossGrant:
    """One grant on its way; also the `SlabWaiter` of its copy."""

    def __init__(
        self,
        desk: CrossGrants,
        peer: int,
        sender: Member,
        receiver: Member,
        extent: Extent,
        source: Slab,
        tag: bytes,
    ) -> None:
        self.desk = desk
        self.peer = peer
        self.sender = sender
        self.receiver = receiver
        self.extent = extent
        self.source = source
        self.tag = tag
        self.way = Way.COPY
        self.target: Slab | None = None
        self.giving_back = False  # a slab that moved is on its way back to the sender's group
        self.trouble: Refusal | None = None

    def slab_reserved(self, slab: Slab) -> None:
        self.target = slab
        self.desk.copy(self)

    def slab_refused(self, slab: Slab, message: str) -> None:
        self.desk.fail(self, Refusal("memory", message, self.desk.state.free_memory()))


class CrossGrants:
    def __init__(self, state: RackState, supply: SlabSupply) -> None:
        self.state = state
        self._supply = supply
        self._copying: dict[int, CrossGrant] = {}
        self._moving: dict[int, CrossGrant] = {}  # by slab
        self._last_job = 0

    # --- start ---------------------------------------------------------------------------------------------

    def start(self, session: Session, sender: Member, message: wire.CrossGrant) -> None:
        receiver = self._receiver(sender, message)
        extent, source = self._extent(sender, message)
        grant = CrossGrant(self, session.peer, sender, receiver, extent, source, message.tag)
        self._choose_way(grant)
        shard = self.state.groups[source.group].shard
        if not shard.withdraw(message.descriptor, message.word):
            raise Refusal("moved", "this region is not the caller's any more")
        if shard.descriptor(message.descriptor)[:2] != (extent.address, extent.pages):
            shard.restore(message.descriptor, message.word)
            raise Refusal("moved", "this region has changed while it was granted")
        self._hold(grant, 1)
        try:
            self._set_out(grant)
        except Refusal as refusal:
            self.fail(grant, refusal)

    def _receiver(self, sender: Member, message: wire.CrossGrant) -> Member:
        receiver = self.state.processes.exact(message.to, message.incarnation)
        if receiver is None or receiver.kind is not Kind.PROCESS or not receiver.is_attached:
            raise Refusal("dead", f"process {message.to} has gone")
        if receiver.group == sender.group:
            raise Refusal("protocol", "a grant inside a group needs no help from the Rack MMU")
        if len(message.tag) > TAG_BYTES_MAX:
            raise Refusal("tag", f"the tag has {len(message.tag)} bytes; {TAG_BYTES_MAX} are allowed")
        return receiver

    def _extent(self, sender: Member, message: wire.CrossGrant) -> tuple[Extent, Slab]:
        shard = self.state.groups[sender.group].shard
        if not (0 <= message.descriptor < MAX_EXTENTS and 0 <= message.word < 1 << 64):
            raise Refusal("moved", f"there is no extent {message.descriptor}")
        address, pages, nbytes, number, state, owner, _ = shard.descriptor(message.descriptor)
        slab = self.state.ledger.get(number)
        if owner != sender.id or state != STATE_OWNED or slab is None or slab.state is not SlabState.LIVE:
            raise Refusal("moved", "this region is not the caller's any more")
        return Extent(message.descriptor, message.word, address, pages, nbytes), slab

    def _choose_way(self, grant: CrossGrant) -> None:
        """Looks for slabs of the receiver's group at these addresses: copies, or where it once came from."""
        run = grant.extent.run
        for other in self.state.ledger.overlapping(grant.receiver.group, run):
            if other.covers(run) and other.state is SlabState.LIVE and other.element == grant.source.element:
                grant.way, grant.target = Way.COPY_INTO_HOLE, other
            elif not self._supply.take_if_idle(other):
                raise Refusal(
                    "memory", "the receiver's group still holds part of these addresses; it must free them"
                )
        if grant.target is None and run == grant.source.run:
            grant.way = Way.MOVE

    def _set_out(self, grant: CrossGrant) -> None:
        if grant.way is Way.MOVE:
            self._regroup(grant, grant.receiver.group)
        elif grant.way is Way.COPY_INTO_HOLE:
            self.copy(grant)
        else:
            extent, source = grant.extent, grant.source
            self._supply.place(extent.pages * PAGE_BYTES, [source.element], "best-fit", grant.sender)
            aligned = extent.pages % PAGES_PER_HUGE_PAGE == 0 and extent.address % HUGE_PAGE_BYTES == 0
            self._supply.reserve(
                grant,
                grant.receiver.group,
                source.element,
                extent.address,
                extent.pages,
                source.huge and aligned,
                parent=source.id,
            )

    # --- on the way ----------------------------------------------------------------------------------------

    def copy(self, grant: CrossGrant) -> None:
        assert grant.target is not None
        self._last_job += 1
        self._copying[self._last_job] = grant
        extent, source, target = grant.extent, grant.source, grant.target
        copy = wire.CopyPages(
            self._last_job,
            source.id,
            extent.address - source.address,
            target.id,
            extent.address - target.address,
            extent.content_bytes,
        )
        self.state.tell_element(source.element, copy)

    def copied(self, job: int) -> None:
        self._deliver(self._copying.pop(job))

    def copy_failed(self, job: int, message: str) -> None:
        grant = self._copying.pop(job)
        self.fail(grant, Refusal("memory", f"the memory element could not copy: {message}"))

    def _regroup(self, grant: CrossGrant, group: int) -> None:
        self._moving[grant.source.id] = grant
        self.state.tell_element(grant.source.element, wire.RegroupSlab(grant.source.id, group))

    def regrouped(self, slab: int) -> None:
        grant = self._moving.pop(slab)
        if grant.giving_back:
            self._restore(grant)
        else:
            self._deliver(grant)

    # --- the end -------------------------------------------------------------------------------------------

    def _deliver(self, grant: CrossGrant) -> None:
        try:
            if not grant.receiver.is_attached:
                raise Refusal("dead", f"{grant.receiver.name!r} has gone")
            if not self._enter_table(grant):
                raise Refusal("inbox-full", f"the inbox (or the table) of {grant.receiver.name!r} is full")
        except Refusal as refusal:
            self.fail(grant, refusal)
        else:
            self._conclude(grant)

    def _enter_table(self, grant: CrossGrant) -> bool:
        receiver, extent, sender = grant.receiver, grant.extent, grant.sender
        shard = self.state.groups[receiver.group].shard
        if grant.way is Way.COPY_INTO_HOLE:
            return shard.deliver_into(
                extent.address,
                extent.pages,
                extent.nbytes,
                receiver.id,
                receiver.incarnation,
                sender.id,
                grant.tag,
            )
        slab = grant.source if grant.way is Way.MOVE else grant.target
        assert slab is not None
        return shard.add_slab_granted(
            slab.id,
            slab.address,
            slab.pages,
            slab.element,
            slab.huge,
            extent.nbytes,
            receiver.id,
            receiver.incarnation,
            sender.id,
            grant.tag,
        )

    def _conclude(self, grant: CrossGrant) -> None:
        extent, source, target = grant.extent, grant.source, grant.target
        copied = 0
        if grant.way is Way.MOVE:
            if not self.state.groups[source.group].shard.take_slab(source.id):
                raise AssertionError(
                    f"slab {source.id} is away as a whole, and yet its table will not let it go"
                )
            source.group = grant.receiver.group
        else:
            assert target is not None
            target.state = SlabState.LIVE
            copied = extent.content_bytes
            left = wire.PunchPages(source.id, extent.address - source.address, extent.pages * PAGE_BYTES)
            self.state.tell_element(source.element, left)
        self._hold(grant, -1)
        self.state.reply(grant.peer, wire.CrossGranted(copied))

    def fail(self, grant: CrossGrant, refusal: Refusal) -> None:
        grant.trouble = refusal
        if grant.way is Way.MOVE:
            grant.giving_back = True
            self._regroup(grant, grant.source.group)
            return
        if grant.way is Way.COPY and grant.target is not None:
            self._supply.retire(grant.target)
        self._restore(grant)

    def _restore(self, grant: CrossGrant) -> None:
        sender = grant.sender
        shard = self.state.groups[sender.group].shard
        shard.restore(grant.extent.descriptor, grant.extent.word)
        if sender.state is State.GONE:  # it was released while this was away
            shard.release(sender.id)
        self._hold(grant, -1)
        assert grant.trouble is not None
        self.state.refuse(grant.peer, grant.trouble)

    def _hold(self, grant: CrossGrant, step: int) -> None:
        """While a grant is under way, its slabs are not idle and the ids in it have no other bearer."""
        grant.sender.pending += step
        grant.receiver.pending += step
        grant.source.pins += step
        if grant.way is Way.COPY_INTO_HOLE and grant.target is not None:
            grant.target.pins += step
