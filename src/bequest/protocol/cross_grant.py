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

A grant is in the book from before it is withdrawn until it has ended, so that a Rack MMU that is started anew goes on
with it: backwards if it had failed, forwards if not. Whether it was delivered, the receiver's table tells.

After a copy, the memory of the source pages is given back, and the grant has ended only when that is done: until then
neither slab goes and nothing comes back into the hole, for what is written there could still be punched out.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from functools import partial

import msgspec

from bequest._core import STATE_OWNED
from bequest.ids import GroupId, ProcessId, SlabId
from bequest.limits import (
    HUGE_PAGE_BYTES,
    MAX_EXTENTS,
    MMU_ID,
    PAGE_BYTES,
    PAGES_PER_HUGE_PAGE,
    TAG_BYTES_MAX,
)
from bequest.protocol.address_plan import Run
from bequest.protocol.books import Row
from bequest.protocol.clients import Caller, Session
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.protocol.slab_supply import SlabSupply
from bequest.wire import messages as wire


class Way(Enum):
    MOVE = "move"
    COPY = "copy"
    COPY_INTO_HOLE = "copy into hole"


class Extent(msgspec.Struct, frozen=True):
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


class CrossGrant(Row):
    """One grant on its way."""

    number: int
    caller: Caller
    sender: ProcessId
    sender_incarnation: int
    receiver: ProcessId
    receiver_incarnation: int
    extent: Extent
    source: SlabId
    tag: bytes
    way: Way = Way.COPY
    target: SlabId | None = None
    trouble: wire.Failed | None = None  # what will be answered, if it goes back
    is_delivered: bool = False  # and answered; what is left is to punch the source


class CopyWaiter:
    """Waits for the slab that a part is copied into."""

    def __init__(self, desk: CrossGrants, grant: CrossGrant) -> None:
        self._desk = desk
        self._grant = grant

    def slab_reserved(self, slab: Slab) -> None:
        self._desk.copy(self._grant)

    def slab_refused(self, slab: Slab, message: str) -> None:
        self._grant.target = None
        self._desk.fail(self._grant, Refusal("memory", message, self._desk.state.free_memory()))


class CrossGrants:
    def __init__(self, state: RackState, supply: SlabSupply) -> None:
        self.state = state
        self._supply = supply
        self._grants = state.books.open("cross grants", CrossGrant, int)
        self._copying: dict[int, CrossGrant] = {}  # by job
        self._moving: dict[SlabId, CrossGrant] = {}
        self._punching: dict[int, CrossGrant] = {}  # by job
        self._waiting: list[CrossGrant] = []  # for the hole that they fill to have been punched

    # --- start ---------------------------------------------------------------------------------------------

    def start(self, session: Session, sender: Member, message: wire.CrossGrant) -> None:
        receiver = self._receiver(sender, message)
        extent, source = self._extent(sender, message)
        caller = self.state.clients.caller(session)
        grant = CrossGrant(
            self.state.books.counter("cross grant").next(),
            caller,
            sender.id,
            sender.incarnation,
            receiver.id,
            receiver.incarnation,
            extent,
            source.id,
            message.tag,
        )
        self._choose_way(grant, receiver.group)
        self._grants.put(grant.number, grant)
        self._hold(grant, 1)
        self.state.clients.await_answer(caller)
        self.state.later(partial(self._withdraw, grant))

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
        shard = self.state.shard_of(sender.group)
        if not (0 <= message.descriptor < MAX_EXTENTS and 0 <= message.word < 1 << 64):
            raise Refusal("moved", f"there is no extent {message.descriptor}")
        address, pages, nbytes, number, state, owner, _ = shard.descriptor(message.descriptor)
        slab = self.state.ledger.get(number)
        if owner != sender.id or state != STATE_OWNED or slab is None or slab.state is not SlabState.LIVE:
            raise Refusal("moved", "this region is not the caller's any more")
        return Extent(message.descriptor, message.word, address, pages, nbytes), slab

    def _choose_way(self, grant: CrossGrant, group: GroupId) -> None:
        """Looks for slabs of the receiver's group at these addresses: copies, or where it once came from."""
        run, source = grant.extent.run, self._source(grant)
        for other in self.state.ledger.overlapping(group, run):
            if other.covers(run) and other.state is SlabState.LIVE and other.element == source.element:
                grant.way, grant.target = Way.COPY_INTO_HOLE, other.id
            elif not self._supply.take_if_idle(other):
                raise Refusal(
                    "memory", "the receiver's group still holds part of these addresses; it must free them"
                )
        if grant.target is None and run == source.run:
            grant.way = Way.MOVE

    def _withdraw(self, grant: CrossGrant) -> None:
        """Unless a run before has done it already."""
        extent = grant.extent
        shard = self._source_shard(grant)
        moved = None
        if not self._is_away(grant) and not shard.withdraw(extent.descriptor, extent.word):
            moved = "this region is not the caller's any more"
        elif shard.descriptor(extent.descriptor)[:2] != (extent.address, extent.pages):
            shard.restore(extent.descriptor, extent.word)
            moved = "this region has changed while it was granted"
        if moved is not None:
            self._end(grant, Refusal("moved", moved).reply())
            return
        try:
            self._set_out(grant)
        except Refusal as refusal:
            self.fail(grant, refusal)

    def _set_out(self, grant: CrossGrant) -> None:
        if grant.way is Way.MOVE:
            self._regroup(grant, self._receiver_of(grant).group)
        elif grant.way is Way.COPY_INTO_HOLE:
            self.copy(grant)
        elif grant.target is not None:  # a run before has asked for it
            self._supply.wait_for(self.state.ledger[grant.target], CopyWaiter(self, grant))
        else:
            extent, source = grant.extent, self._source(grant)
            sender = self._sender_of(grant)
            self._supply.place(extent.pages * PAGE_BYTES, [source.element], "best-fit", sender)
            aligned = extent.pages % PAGES_PER_HUGE_PAGE == 0 and extent.address % HUGE_PAGE_BYTES == 0
            grant.target = self._supply.reserve(
                CopyWaiter(self, grant),
                self._receiver_of(grant).group,
                source.element,
                extent.address,
                extent.pages,
                source.huge and aligned,
                parent=source.id,
            ).id

    # --- on the way ----------------------------------------------------------------------------------------

    def copy(self, grant: CrossGrant) -> None:
        """Under a number of its own each time: what an element says of an earlier copy does not count any more."""
        assert grant.target is not None
        if any(self._would_punch(other, grant) for other in self._punching.values()):
            self._waiting.append(grant)
            return
        job = self.state.books.counter("copy job").next()
        self._copying[job] = grant
        extent, source, target = grant.extent, self._source(grant), self.state.ledger[grant.target]
        copy = wire.CopyPages(
            job,
            source.id,
            extent.address - source.address,
            target.id,
            extent.address - target.address,
            extent.content_bytes,
        )
        self.state.tell_element(source.element, copy)

    def copied(self, job: int) -> None:
        grant = self._copying.pop(job, None)
        if grant is not None:
            self._deliver(grant)

    def copy_failed(self, job: int, message: str) -> None:
        grant = self._copying.pop(job, None)
        if grant is not None:
            self.fail(grant, Refusal("memory", f"the memory element could not copy: {message}"))

    def _regroup(self, grant: CrossGrant, group: int) -> None:
        self._moving[grant.source] = grant
        self.state.tell_element(self._source(grant).element, wire.RegroupSlab(grant.source, group))

    def regrouped(self, slab: int) -> None:
        grant = self._moving.pop(slab, None)
        if grant is None:
            return
        if grant.trouble is not None:
            self._restore(grant)
        else:
            self._deliver(grant)

    def slab_lost(self, slab: SlabId) -> None:
        """The memory that was to move is gone; what was to be copied fails by itself."""
        grant = self._moving.pop(slab, None)
        if grant is not None:
            if grant.trouble is None:
                grant.trouble = wire.Failed("memory", "the memory element has lost this memory")
            self.state.later(partial(self._restore, grant))

    # --- the end -------------------------------------------------------------------------------------------

    def _deliver(self, grant: CrossGrant) -> None:
        receiver = self._receiver_of(grant)
        try:
            if not receiver.is_attached:
                raise Refusal("dead", f"{receiver.name!r} has gone")
            if not self._enter_table(grant, receiver):
                raise Refusal("inbox-full", f"the inbox (or the table) of {receiver.name!r} is full")
        except Refusal as refusal:
            self.fail(grant, refusal)
        else:
            self._conclude(grant)

    def _enter_table(self, grant: CrossGrant, receiver: Member) -> bool:
        extent = grant.extent
        shard = self.state.shard_of(receiver.group)
        addressee = (receiver.id, receiver.incarnation, grant.sender, grant.tag)
        if grant.way is Way.COPY_INTO_HOLE:
            return shard.deliver_into(extent.address, extent.pages, extent.nbytes, *addressee)
        slab = self._delivered_slab(grant)
        # A slab that moves keeps its checksums; what is copied is other memory, and is not sealed.
        seal = self._source_shard(grant).seal(extent.descriptor) if grant.way is Way.MOVE else 0
        return shard.add_slab_granted(
            slab.id, slab.address, slab.pages, slab.element, slab.huge, extent.nbytes, *addressee, seal
        )

    def _conclude(self, grant: CrossGrant) -> None:
        """It is the receiver's. What is left may have been done by a run before."""
        source = self._source(grant)
        if grant.way is Way.MOVE:
            shard = self._source_shard(grant)
            if _has_slab(shard, source.id) and not shard.take_slab(source.id):
                raise AssertionError(
                    f"slab {source.id} is away as a whole, and yet its table will not let it go"
                )
            source.group = self._receiver_of(grant).group
            self._end(grant, wire.CrossGranted(0))
        else:
            assert grant.target is not None
            self.state.ledger[grant.target].state = SlabState.LIVE
            self._deliver_in_part(grant)

    def _deliver_in_part(self, grant: CrossGrant) -> None:
        grant.is_delivered = True
        self._hold_copy(grant, 1)
        self._punch(grant)
        self.state.answer(grant.caller, wire.CrossGranted(grant.extent.content_bytes))

    def _punch(self, grant: CrossGrant) -> None:
        job = self.state.books.counter("copy job").next()
        self._punching[job] = grant
        extent, source = grant.extent, self._source(grant)
        offset = extent.address - source.address
        left = wire.PunchPages(job, source.id, offset, extent.pages * PAGE_BYTES)
        self.state.tell_element(source.element, left)

    def punched(self, job: int) -> None:
        grant = self._punching.pop(job, None)
        if grant is None:
            return
        self._hold_copy(grant, -1)
        self._hold(grant, -1)
        self._grants.remove(grant.number)
        waiting, self._waiting = self._waiting, []
        for other in waiting:
            self.copy(other)

    def _would_punch(self, punching: CrossGrant, grant: CrossGrant) -> bool:
        """Whether the former's hole is where the latter copies to."""
        hole, run = punching.extent.run, grant.extent.run
        return punching.source == grant.target and hole[0] < run[1] and run[0] < hole[1]

    def fail(self, grant: CrossGrant, refusal: Refusal) -> None:
        grant.trouble = refusal.reply()
        self.state.later(partial(self._go_back, grant))

    def _go_back(self, grant: CrossGrant) -> None:
        source = self._source(grant)
        if grant.way is Way.MOVE:
            self._regroup(grant, source.group)
            return
        if grant.way is Way.COPY and grant.target is not None:
            self._supply.retire(self.state.ledger[grant.target])
            grant.target = None
        self._restore(grant)

    def _restore(self, grant: CrossGrant) -> None:
        sender, extent = self._sender_of(grant), grant.extent
        shard = self._source_shard(grant)
        if self._is_away(grant):
            with suppress(ValueError):  # it is another's by now that is away
                shard.restore(extent.descriptor, extent.word)
        if sender.state is State.GONE:  # it was released while this was away
            shard.release(sender.id)
        assert grant.trouble is not None
        self._end(grant, grant.trouble)

    def _end(self, grant: CrossGrant, reply: wire.Message) -> None:
        self._hold(grant, -1)
        self._grants.remove(grant.number)
        self.state.answer(grant.caller, reply)

    # --- after a restart -----------------------------------------------------------------------------------

    def hold_all(self) -> None:
        """First of all: what is under way is not idle."""
        for grant in self._grants:
            self._hold(grant, 1)
            if grant.is_delivered:
                self._hold_copy(grant, 1)
            else:
                self.state.clients.await_answer(grant.caller)

    def restore(self) -> None:
        """Goes on with what a run before has begun."""
        for grant in sorted(self._grants, key=lambda grant: not grant.is_delivered):
            if grant.is_delivered:
                self._punch(grant)
            elif self._was_delivered(grant):
                self._conclude(grant)
            elif grant.trouble is not None:
                self._go_back(grant)
            else:
                self._withdraw(grant)

    def outstanding(self, element: int) -> None:
        """Says again what an element has yet to do: it may not have heard, or its answer was lost."""
        for slab, grant in self._moving.items():
            source = self.state.ledger[slab]
            if source.element == element:
                back = grant.trouble is not None
                group = source.group if back else self._receiver_of(grant).group
                self.state.tell_element(element, wire.RegroupSlab(slab, group))
        copying, self._copying = self._copying, {}
        for job, grant in copying.items():
            if self._source(grant).element == element:
                self.copy(grant)
            else:
                self._copying[job] = grant
        punching, self._punching = self._punching, {}
        for job, grant in punching.items():
            if self._source(grant).element == element:
                self._punch(grant)
            else:
                self._punching[job] = grant

    def runs_under_way(self, slab: SlabId) -> list[Run]:
        """Pages of this slab that are away because of a grant that has not ended."""
        return [grant.extent.run for grant in self._grants if slab in (grant.source, grant.target)]

    def _was_delivered(self, grant: CrossGrant) -> bool:
        """Away pages are the MMU's. So what is there, and no longer the MMU's, is or was the receiver's."""
        shard = self.state.shard_of(self._receiver_of(grant).group)
        number = grant.source if grant.way is Way.MOVE else grant.target
        if number is None or not _has_slab(shard, number):
            return False
        start, end = grant.extent.run
        if any(
            owner == MMU_ID and address < end and start < address + pages * PAGE_BYTES
            for address, pages, _, owner, _ in shard.slab_extents(number)
        ):
            if grant.way is not Way.COPY_INTO_HOLE:
                shard.take_slab(number)  # it was about to be
            return False
        return True

    # --- within --------------------------------------------------------------------------------------------

    def _sender_of(self, grant: CrossGrant) -> Member:
        return self._party(grant.sender, grant.sender_incarnation)

    def _receiver_of(self, grant: CrossGrant) -> Member:
        return self._party(grant.receiver, grant.receiver_incarnation)

    def _party(self, number: ProcessId, incarnation: int) -> Member:
        member = self.state.processes.exact(number, incarnation)
        assert member is not None, "an id in a grant under way has no other bearer"
        return member

    def _source(self, grant: CrossGrant) -> Slab:
        return self.state.ledger[grant.source]

    def _source_shard(self, grant: CrossGrant) -> Shard:
        return self.state.shard_of(self._sender_of(grant).group)

    def _delivered_slab(self, grant: CrossGrant) -> Slab:
        number = grant.source if grant.way is Way.MOVE else grant.target
        assert number is not None
        return self.state.ledger[number]

    def _is_away(self, grant: CrossGrant) -> bool:
        *_, state, owner, _ = self._source_shard(grant).descriptor(grant.extent.descriptor)
        return state == STATE_OWNED and owner == MMU_ID

    def _hold(self, grant: CrossGrant, step: int) -> None:
        """While a grant is under way, its slabs are not idle and the ids in it have no other bearer."""
        self._sender_of(grant).pending += step
        self._receiver_of(grant).pending += step
        self._source(grant).pins += step
        if grant.way is Way.COPY_INTO_HOLE and grant.target is not None:
            self.state.ledger[grant.target].pins += step

    def _hold_copy(self, grant: CrossGrant, step: int) -> None:
        """While the source is punched, its copy stays too: the addresses would come home with it."""
        assert grant.target is not None
        self.state.ledger[grant.target].pins += step


def _has_slab(shard: Shard, slab: SlabId) -> bool:
    return any(number == slab for number, *_ in shard.slabs())
