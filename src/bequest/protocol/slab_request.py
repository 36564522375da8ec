"""A process needs a slab: placement, address, reservation, and into the table."""

from __future__ import annotations

from typing import NoReturn

from bequest.limits import (
    MAX_EXTENTS,
    MAX_SLABS,
    PAGE_BYTES,
    PAGES_PER_HUGE_PAGE,
    PROCESS_SPACE_BYTES,
)
from bequest.protocol.books import Row
from bequest.protocol.clients import Caller, Session
from bequest.protocol.placement import POLICIES
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import ElementInfo, RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.protocol.slab_supply import SlabSupply
from bequest.wire import messages as wire


class Wanted(Row):
    """A `wire.NeedSlab` on its way; the key in its book is the slab that is being reserved for it."""

    caller: Caller
    pages: int
    huge: bool
    policy: str
    elements: tuple[int, ...]  # that may still be tried


class SlabRequests:
    """All that are on their way."""

    def __init__(self, state: RackState, supply: SlabSupply) -> None:
        self.state = state
        self.supply = supply
        self.wanted = state.books.open("slab requests", Wanted, int)

    def start(self, session: Session, process: Member, message: wire.NeedSlab) -> None:
        policy = message.policy or self.state.config.policy
        if policy not in POLICIES:
            raise Refusal("config", f"unknown placement policy {policy!r}; there are {', '.join(POLICIES)}")
        pages = _whole_huge_pages(message.pages)
        elements = tuple(_elements_for(self.state, message.element, message.huge))
        caller = self.state.clients.caller(session)
        SlabRequest(self, process, Wanted(caller, pages, message.huge, policy, elements)).start()
        self.state.clients.await_answer(caller)

    def restore(self) -> None:
        """Goes on with what a run before has begun. A slab that is in the table by now is its asker's."""
        for number, wanted in self.wanted.items():
            slab = self.state.ledger[number]
            process = self.state.processes.exact(wanted.caller.process, wanted.caller.incarnation)
            if process is None:
                self.wanted.remove(number)
                self.supply.retire(slab)
                continue
            request = SlabRequest(self, process, wanted)
            if any(known == number for known, *_ in self.state.shard_of(slab.group).slabs()):
                request.ready(slab)
            else:
                self.state.clients.await_answer(wanted.caller)
                self.supply.wait_for(slab, request)


class SlabRequest:
    """One that tries one element after another until it is met or refused."""

    def __init__(self, requests: SlabRequests, process: Member, wanted: Wanted) -> None:
        self._requests = requests
        self._state = requests.state
        self._supply = requests.supply
        self._process = process
        self._wanted = wanted

    def start(self) -> None:
        wanted = self._wanted
        nbytes = wanted.pages * PAGE_BYTES
        if nbytes > PROCESS_SPACE_BYTES:
            raise Refusal(
                "address-space",
                f"{nbytes >> 30} GiB cannot lie in the {PROCESS_SPACE_BYTES >> 30} GiB of addresses of one process",
                self._state.free_memory(),
            )
        element = self._supply.place(nbytes, wanted.elements, wanted.policy, self._process)
        address = self._reserve_address(nbytes)
        try:
            slab = self._supply.reserve(
                self, self._process.group, element, address, wanted.pages, wanted.huge
            )
        except Refusal:
            self._state.plan.release(address)
            raise
        self._requests.wanted.put(slab.id, wanted)

    def slab_reserved(self, slab: Slab) -> None:
        process = self._process
        if not process.is_attached:
            self._requests.wanted.remove(slab.id)
            self._supply.retire(slab)
            refusal = Refusal("not-attached", f"{process.name!r} has been given up meanwhile")
            self._state.answer(self._wanted.caller, refusal.reply())
            return
        shard = self._state.shard_of(slab.group)
        if shard.add_slab(slab.id, slab.address, slab.pages, slab.element, slab.huge, slab.home):
            self.ready(slab)
            return
        self._requests.wanted.remove(slab.id)
        self._supply.retire(slab)
        text = f"the group's table is full: {MAX_SLABS} slabs or {MAX_EXTENTS} extents"
        self._state.answer(self._wanted.caller, Refusal("memory", text).reply())

    def ready(self, slab: Slab) -> None:
        """It is in the table."""
        self._requests.wanted.remove(slab.id)
        slab.state = SlabState.LIVE
        self._state.answer(self._wanted.caller, wire.SlabReady(slab.id))

    def slab_refused(self, slab: Slab, message: str) -> None:
        wanted = self._requests.wanted.remove(slab.id)
        wanted.elements = tuple(element for element in wanted.elements if element != slab.element)
        try:
            if not wanted.elements:
                raise Refusal("memory", message, self._state.free_memory())
            self.start()
        except Refusal as refusal:
            self._state.answer(wanted.caller, refusal.reply())

    def _reserve_address(self, nbytes: int) -> int:
        plan, home = self._state.plan, self._process.id
        address = plan.reserve(home, nbytes)
        if address is None and self._supply.reclaim_addresses(self._process):
            address = plan.reserve(home, nbytes)
        if address is None:
            raise Refusal(
                "address-space",
                f"{self._process.name!r} has no {nbytes >> 20} MiB of its {PROCESS_SPACE_BYTES >> 30} GiB of addresses"
                " left in one piece; what it granted away still uses the addresses it was allocated at",
                self._state.free_memory(),
            )
        return address


def _whole_huge_pages(pages: int) -> int:
    if not 1 <= pages <= 1 << 40:
        raise Refusal("size", f"a slab of {pages} pages makes no sense")
    return -(-pages // PAGES_PER_HUGE_PAGE) * PAGES_PER_HUGE_PAGE


def _elements_for(state: RackState, name: str | None, huge: bool) -> list[int]:
    """The elements that may hold it. The kernel's reserved huge pages cannot be protected by the 4 KiB."""
    named = [element for element in state.elements.values() if name in (None, element.name)]
    if not named:
        known = ", ".join(element.name for element in state.elements.values())
        raise Refusal("config", f"this rack has no memory element {name!r}; it has {known}")
    named = [element for element in named if element.id not in state.failed_elements] or _all_failed(
        state, named
    )
    suitable = [element.id for element in named if huge or element.kind != "huge"]
    if not suitable:
        names = ", ".join(element.name for element in named)
        text = (
            f"small regions need 4 KiB pages, but {names} has only reserved ones of 2 MiB; use dram or a file"
        )
        raise Refusal("memory", text, state.free_memory())
    return suitable


def _all_failed(state: RackState, named: list[ElementInfo]) -> NoReturn:
    names = ", ".join(element.name for element in named)
    raise Refusal(
        "memory", f"the memory of {names} has failed; `bequest mem` shows what is left", state.free_memory()
    )
