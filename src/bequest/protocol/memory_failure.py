"""Memory that has failed: whose it was, who is told, and how it is kept from being used again (paper, section 3.2).

Theory of operation. A memory element reports which pages of which slab it has lost, `wire.MemoryFailed`. The Rack MMU
looks in the table whose they are, and has each owner's agent tell it; who owns what is not changed: the owner still has
its addresses, and finds out at access what became of them. A slab with failed pages is marked in the table, so that no
allocator takes a run of it any more, and is retired for good once nobody owns a page of it. An element that has failed
as a whole gets no slab any more; allocation elsewhere goes on.

An element that does not answer has not failed: its owners are told that it is silent, and nothing else changes.

A process to which the hardware says that a page is gone *reports* it: others may own parts of that page, and nobody is
to get it again. `break_memory` makes failures, for tests of programs. In either case a range is lost in three steps:
the agents *guard* it in every process, so that touching a page that is not there faults instead of reading zeros; the
Rack MMU writes down that it is *condemned*, which is the commit point; then the element gives the pages up, and says
so. An element that was away hears on its next link of what is condemned. Who did not hear the answer asks again with
the same nonce. Where somebody cannot be guarded, nothing is made to fail; what the hardware has lost takes its whole
slab along, which is cut short, so that everybody faults.

Sealed memory that is not what it was fails in the same way, when its element has found that out and the table says that
somebody owns it under that very seal (protocol/seal_desk.py). What was unsealed meanwhile may well differ.
"""

from __future__ import annotations

import msgspec

from bequest._core import STATE_FROZEN, STATE_IN_FLIGHT, STATE_OWNED, STATE_THAWING
from bequest.limits import (
    BROKEN_KEPT_MAX,
    FAILED_RUNS_MAX,
    GUARD_TIMEOUT,
    HUGE_PAGE_BYTES,
    MMU_ID,
    PAGE_BYTES,
)
from bequest.protocol.books import Row
from bequest.protocol.failed_runs import covers
from bequest.protocol.outputs import Note, PeerId, ToAgent, ToElement
from bequest.protocol.process_table import Kind, Member
from bequest.protocol.rack_state import FailedElement, RackState, Session, SilentElement
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import ExtentInfo
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.wire import messages as wire

Run = tuple[int, int]  # address, bytes
Part = tuple[int, int, int]  # slab, offset, bytes
_KEPT = (STATE_OWNED, STATE_FROZEN, STATE_THAWING)  # by somebody, who may at least read it
_HAS_OWNER = (*_KEPT, STATE_IN_FLIGHT)
_INJECTED = "injected by bequest fault"
_HARDWARE = "the hardware reports an error"


class Breaking(msgspec.Struct):
    """One `wire.BreakMemory` on its way."""

    peer: PeerId | None  # None: nobody has asked for it
    element: int
    parts: tuple[Part, ...]  # none: all of the element
    cause: str
    deadline: float
    waiting: dict[int, ToAgent | ToElement] = {}  # by job: what agents, then the element, have yet to answer
    nonce: bytes = b""
    unguarded: dict[str, None] = {}


class Broken(Row):
    """A `wire.BreakMemory` that was decided, by its nonce, for who asks again."""

    element: int
    parts: tuple[Part, ...]


class MemoryFailures:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._breaking: dict[int, Breaking] = {}  # by the numbers of the jobs that it waits for
        self._broken = state.books.open("broken memory", Broken, bytes)
        self._flipping: dict[int, tuple[PeerId, ToElement]] = {}  # by job

    # --- what elements report ------------------------------------------------------------------------------

    def element_message(self, element: int, message: wire.Message) -> None:
        match message:
            case wire.MemoryFailed():
                self.failed(element, message)
            case wire.FailureMade(job):
                self.made(job)
            case wire.PagesDiffer():
                self.differ(element, message)
            case wire.BitFlipped(job):
                if job in self._flipping:
                    peer, _ = self._flipping.pop(job)
                    self._state.reply(peer, wire.Done())
            case _:
                raise AssertionError(f"a memory element says {message}")

    def failed(self, element: int, message: wire.MemoryFailed) -> None:
        state = self._state
        slab = state.ledger.get(message.slab)
        if slab is None or slab.state is SlabState.GHOST:
            return
        if not slab.fail((message.offset, message.nbytes), message.cause):
            return  # an element that was started anew has said it before
        lost = (slab.address + message.offset, slab.address + message.offset + message.nbytes)
        owners: list[Member] = []
        if slab.state is SlabState.LIVE:
            state.groups[slab.group].shard.fail_slab(slab.id)
            owners = self._tell_owners(slab, lost, message.cause)
        name = state.elements[element].name
        of = ", ".join(repr(owner.name) for owner in owners) or "nobody"
        lost_text = f"{message.nbytes >> 10} KiB at {lost[0]:#x}, owned by {of}"
        text = f"memory element {name!r} has lost {lost_text} ({message.cause})"
        state.outputs.append(Note(text, trouble=True))

    def slab_lost(self, element: int, number: int) -> None:
        """The element was started anew, and nobody had kept this slab for it."""
        slab = self._state.ledger.get(number)
        if slab is not None:
            lost = wire.MemoryFailed(number, 0, slab.nbytes, "its server died, and it was not in the safe")
            self.failed(element, lost)

    def element_failed(self, element: int, cause: str) -> None:
        """All of it: it gets no slab any more."""
        if element not in self._state.failed_elements:
            self._state.failed_elements.put(element, FailedElement(element, cause))

    def differ(self, element: int, message: wire.PagesDiffer) -> None:
        """Sealed pages are not what they were, if they are sealed still: their memory is to fail."""
        slab = self._state.ledger.get(message.slab)
        sealed: list[Run] = []
        if slab is not None and slab.state is SlabState.LIVE:
            first = slab.address + message.offset
            for address, nbytes in self._state.groups[slab.group].shard.sealed_in(slab.id, message.number):
                low, high = max(address, first), min(address + nbytes, first + message.nbytes)
                if low < high:
                    _add(sealed, (low, high - low))
        if slab is None or not sealed:
            forget = wire.ForgetSums(message.slab, message.offset, message.nbytes, message.number)
            self._state.tell_element(element, forget)
            return
        for address, nbytes in sealed:
            offset = address - slab.address
            part = _whole_pages(slab, offset, offset + nbytes)
            if covers(slab.doomed, part[1:]) or self._is_breaking(part):
                continue
            cause = f"checksum: {nbytes} bytes at {address:#x} are not what was sealed"
            # Nobody waits, so there is no deadline: who is linked anew is asked again.
            self._begin(Breaking(None, element, (part,), cause, float("inf")))

    def _is_breaking(self, part: Part) -> bool:
        return any(part in breaking.parts for breaking in self._breaking.values())

    def _tell_owners(self, slab: Slab, lost: tuple[int, int], cause: str) -> list[Member]:
        told = []
        for member, runs in self._owners_of(slab, lost):
            notice = wire.NoticeMemory(self._state.elements[slab.element].name, _few(runs), cause)
            self._state.outputs += self._state.notices.owe(member, notice)
            told.append(member)
        return told

    def _owners_of(self, slab: Slab, lost: tuple[int, int]) -> list[tuple[Member, list[Run]]]:
        """And what of the lost addresses is whose."""
        runs: dict[int, list[Run]] = {}
        for address, pages, state, owner, _ in self._state.groups[slab.group].shard.slab_extents(slab.id):
            low, high = max(address, lost[0]), min(address + pages * PAGE_BYTES, lost[1])
            if low < high and owner != MMU_ID and state in _HAS_OWNER:
                _add(runs.setdefault(owner, []), (low, high - low))
        for address, pages, reader in self._state.groups[slab.group].shard.read_in(slab.id):
            low, high = max(address, lost[0]), min(address + pages * PAGE_BYTES, lost[1])
            if low < high and (low, high - low) not in runs.setdefault(reader, []):
                _add(runs[reader], (low, high - low))
        owners = [(self._state.processes.get(number), theirs) for number, theirs in sorted(runs.items())]
        return [(who, theirs) for who, theirs in owners if who is not None and who.kind is Kind.PROCESS]

    # --- elements that do not answer -----------------------------------------------------------------------

    def silent(self, element: int, is_silent: bool, seconds: float = 0.0) -> None:
        """The rack monitor says so; who owns memory there is told, and nothing else changes."""
        state = self._state
        if is_silent == (element in state.silent_elements):
            return
        if is_silent:
            state.silent_elements.put(element, SilentElement(element, seconds))
        else:
            state.silent_elements.remove(element)
        name = state.elements[element].name
        said = f"has not answered for {seconds * 1000:.0f} ms" if is_silent else "answers again"
        state.outputs.append(Note(f"memory element {name!r} {said}", trouble=is_silent))
        for owner in self._owners_at(element):
            state.outputs += state.notices.owe(owner, wire.NoticeElement(name, is_silent, seconds))

    def _owners_at(self, element: int) -> list[Member]:
        ids: dict[int, None] = {}
        for slab in self._state.ledger:
            if slab.element == element and slab.state is SlabState.LIVE:
                for _, _, state, owner, _ in self._state.groups[slab.group].shard.slab_extents(slab.id):
                    if state in _HAS_OWNER:
                        ids[owner] = None
        members = [self._state.processes.get(number) for number in sorted(ids)]
        return [member for member in members if member is not None and member.kind is Kind.PROCESS]

    # --- making memory fail --------------------------------------------------------------------------------

    def break_memory(self, session: Session, message: wire.BreakMemory, now: float) -> None:
        if self._is_repeated(session, message.nonce, now):
            return
        element = self._element(message.element)
        parts = self._parts(element, message) if message.nbytes else ()
        deadline = now + GUARD_TIMEOUT
        self._begin(Breaking(session.peer, element, parts, _INJECTED, deadline, nonce=message.nonce))

    def flip_bit(self, session: Session, message: wire.FlipBit, now: float) -> None:
        """For tests of programs."""
        element = self._element(message.element)
        ((number, offset, _), *_) = self._parts(
            element, wire.BreakMemory(message.element, message.address, 1)
        )
        slab = self._state.ledger[number]
        offset = message.address - slab.address
        flip = wire.FlipBitOf(self._next_job(), number, offset, message.nonce)
        self._flipping[flip.job] = (session.peer, ToElement(element, flip))
        self._state.tell_element(element, flip)

    def report(self, session: Session, process: Member, message: wire.ReportFailure, now: float) -> None:
        """The hardware has lost a page of this process's: so it has for whoever else owns a part of it."""
        shard = self._state.groups[process.group].shard
        page = message.address // PAGE_BYTES * PAGE_BYTES
        slabs = self._state.ledger.overlapping(process.group, (page, page + PAGE_BYTES))
        extent = shard.find_extent(page, 0) if len(slabs) == 1 else None  # else it may be no address at all
        if extent is None or not (
            _is_of(extent, process) or _reads(shard.read_in(slabs[0].id), process, page)
        ):
            raise Refusal("not-owner", f"{message.address:#x} is no memory of process {process.name!r}")
        slab = slabs[0]
        start = page - slab.address
        part = _whole_pages(slab, start, start + min(max(message.nbytes, PAGE_BYTES), HUGE_PAGE_BYTES))
        deadline = now + GUARD_TIMEOUT
        self._begin(Breaking(session.peer, slab.element, (part,), _HARDWARE, deadline))

    def _begin(self, breaking: Breaking) -> None:
        for slab, offset, nbytes in breaking.parts:
            at = self._state.ledger[slab]
            for compute in self._state.config.computes:
                guard = wire.GuardRange(self._next_job(), at.group, at.address + offset, nbytes)
                self._ask(breaking, guard.job, ToAgent(compute, guard))
        if not breaking.parts:
            self._commit(breaking)

    def _is_repeated(self, session: Session, nonce: bytes, now: float) -> bool:
        """By a client that did not hear the answer: what was decided is done again, which does no harm."""
        if not nonce:
            return False
        under_way = [breaking for breaking in self._breaking.values() if breaking.nonce == nonce]
        broken = self._broken.get(nonce)
        if under_way:
            under_way[0].peer = session.peer
        elif broken is not None:
            deadline = now + GUARD_TIMEOUT
            self._order(
                Breaking(session.peer, broken.element, broken.parts, _INJECTED, deadline, nonce=nonce)
            )
        return bool(under_way) or broken is not None

    def agent_linked(self, compute: str) -> None:
        """What it was asked for before may be lost, and so may its answers: it is asked again."""
        asked = [breaking.waiting[job] for job, breaking in self._breaking.items()]
        self._state.outputs += [ask for ask in asked if isinstance(ask, ToAgent) and ask.compute == compute]

    def element_linked(self, element: int) -> None:
        """Likewise."""
        asked = [breaking.waiting[job] for job, breaking in self._breaking.items()]
        asked += [order for _, order in self._flipping.values()]
        self._state.outputs += [ask for ask in asked if isinstance(ask, ToElement) and ask.element == element]

    def guarded(self, message: wire.RangeGuarded) -> None:
        breaking = self._answered(message.job)
        if breaking is None:
            return
        breaking.unguarded |= dict.fromkeys(message.unguarded)
        if breaking.waiting:
            return
        if breaking.unguarded and breaking.cause == _HARDWARE:  # it is lost in any case: then all of the slab
            slabs = [self._state.ledger.get(slab) for slab, _, _ in breaking.parts]
            breaking.parts = tuple((slab.id, 0, slab.nbytes) for slab in slabs if slab is not None)
        elif breaking.unguarded:
            self._refuse_unguarded(breaking)
            return
        self._commit(breaking)

    def _refuse_unguarded(self, breaking: Breaking) -> None:
        who = ", ".join(repr(name) for name in breaking.unguarded)
        text = (
            f"nothing was lost: {who} cannot be guarded (its agent's log says why), and would read zeros in place of a"
            " fault; let all of the element fail instead, without a range"
        )
        self._refuse(breaking, Refusal("fence", text))

    def _refuse(self, breaking: Breaking, refusal: Refusal) -> None:
        if breaking.peer is not None:
            self._state.refuse(breaking.peer, refusal)
        else:
            self._state.outputs.append(Note(f"{breaking.cause}; {refusal}", trouble=True))

    def made(self, job: int) -> None:
        breaking = self._answered(job)
        if breaking is None or breaking.waiting:
            return
        owners: dict[str, None] = {}
        parts = breaking.parts or self._all_of(breaking.element)
        for number, offset, nbytes in parts:
            slab = self._state.ledger.get(number)
            if slab is not None and slab.state is SlabState.LIVE:
                lost = (slab.address + offset, slab.address + offset + nbytes)
                owners |= dict.fromkeys(who.name for who, _ in self._owners_of(slab, lost))
        reply = wire.MemoryBroken(len(parts), sum(nbytes for _, _, nbytes in parts), list(owners))
        if breaking.peer is not None:
            self._state.reply(breaking.peer, reply)

    def tick(self, now: float) -> None:
        late = [breaking for breaking in self._breaking.values() if now >= breaking.deadline]
        for breaking in late:
            if breaking.waiting:  # it may have waited for several
                self._forget(breaking)
                if any(isinstance(asked, ToElement) for asked in breaking.waiting.values()):
                    text = "the memory element did not answer in time: the memory is lost, or will be when it does"
                else:
                    text = "nothing was lost: an agent that was to guard the range did not answer in time"
                self._refuse(breaking, Refusal("memory", text))

    def next_deadline(self) -> float:
        return min((breaking.deadline for breaking in self._breaking.values()), default=float("inf"))

    def _ask(self, breaking: Breaking, job: int, ask: ToAgent | ToElement) -> None:
        self._breaking[job] = breaking
        breaking.waiting[job] = ask
        self._state.outputs.append(ask)

    def _answered(self, job: int) -> Breaking | None:
        """What that answers, unless it was given up."""
        breaking = self._breaking.pop(job, None)
        if breaking is not None:
            del breaking.waiting[job]
        return breaking

    def _forget(self, breaking: Breaking) -> None:
        for job in breaking.waiting:
            del self._breaking[job]
        breaking.waiting = {}

    def _next_job(self) -> int:
        return self._state.books.counter("guard").next()

    def _commit(self, breaking: Breaking) -> None:
        """It is decided: that is written down before anybody is told, and whoever lives then does the rest."""
        if not breaking.parts:
            self.element_failed(breaking.element, breaking.cause)
        for number, offset, nbytes in breaking.parts:
            slab = self._state.ledger.get(number)
            if slab is not None:
                slab.condemn((offset, nbytes), breaking.cause)
        if breaking.nonce:
            for nonce, _ in self._broken.items()[: max(0, len(self._broken) + 1 - BROKEN_KEPT_MAX)]:
                self._broken.remove(nonce)
            self._broken.put(breaking.nonce, Broken(breaking.element, breaking.parts))
        self._order(breaking)

    def _order(self, breaking: Breaking) -> None:
        parts: list[tuple[int | None, int, int]] = [*breaking.parts] or [(None, 0, 0)]
        for slab, offset, nbytes in parts:
            order = wire.FailMemory(self._next_job(), slab, offset, nbytes, breaking.cause)
            self._ask(breaking, order.job, ToElement(breaking.element, order))

    def _all_of(self, element: int) -> tuple[Part, ...]:
        mine = [
            slab for slab in self._state.ledger if slab.element == element and slab.state is SlabState.LIVE
        ]
        return tuple((slab.id, 0, slab.nbytes) for slab in mine)

    def _element(self, name: str) -> int:
        for element in self._state.elements.values():
            if element.name == name:
                if element.id in self._state.failed_elements:
                    raise Refusal("config", f"memory element {name!r} has failed already")
                return element.id
        known = ", ".join(element.name for element in self._state.elements.values())
        raise Refusal("config", f"this rack has no memory element {name!r}; it has {known}")

    def _parts(self, element: int, message: wire.BreakMemory) -> tuple[Part, ...]:
        """What of the range lies in slabs of this element, in whole pages of theirs."""
        parts = []
        for slab in self._state.ledger:
            low, high = max(slab.address, message.start), min(slab.run[1], message.start + message.nbytes)
            if slab.element != element or slab.state is not SlabState.LIVE or low >= high:
                continue
            parts.append(_whole_pages(slab, low - slab.address, high - slab.address))
        if not parts:
            name, end = self._state.elements[element].name, message.start + message.nbytes
            raise Refusal(
                "config",
                f"no slab of memory element {name!r} lies at {message.start:#x} to {end:#x}; `bequest mem` shows those"
                " that do",
            )
        return tuple(parts)


def _is_of(extent: ExtentInfo, process: Member) -> bool:
    _, _, _, state, owner, _ = extent
    return state in _KEPT and owner == process.id


def _reads(readings: list[tuple[int, int, int]], process: Member, page: int) -> bool:
    return any(reader == process.id and at <= page < at + n * PAGE_BYTES for at, n, reader in readings)


def _whole_pages(slab: Slab, start: int, end: int) -> Part:
    """What of it the pages are that have something of this run of offsets."""
    page = HUGE_PAGE_BYTES if slab.huge else PAGE_BYTES
    first, last = start // page * page, min(-(-end // page) * page, slab.nbytes)
    return slab.id, first, last - first


def _add(runs: list[Run], run: Run) -> None:
    """Neighbours are one run."""
    if runs and runs[-1][0] + runs[-1][1] == run[0]:
        runs[-1] = (runs[-1][0], runs[-1][1] + run[1])
    else:
        runs.append(run)


def _few(runs: list[Run]) -> list[Run]:
    """A notice has bounds: many runs become the one around them all."""
    if len(runs) <= FAILED_RUNS_MAX:
        return runs
    return [(runs[0][0], runs[-1][0] + runs[-1][1] - runs[0][0])]
