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
from bequest.protocol.placement import POLICIES
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import ElementInfo, RackState, Session
from bequest.protocol.refusal import Refusal
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.protocol.slab_supply import SlabSupply
from bequest.wire import messages as wire


class SlabRequest:
    """One `wire.NeedSlab` on its way; tries one element after another until it is met or refused."""

    def __init__(
        self, state: RackState, supply: SlabSupply, session: Session, process: Member, message: wire.NeedSlab
    ) -> None:
        self._state = state
        self._supply = supply
        self._peer = session.peer
        self._process = process
        self._pages = _whole_huge_pages(message.pages)
        self._huge = message.huge
        self._policy = message.policy or state.config.policy
        if self._policy not in POLICIES:
            raise Refusal(
                "config", f"unknown placement policy {self._policy!r}; there are {', '.join(POLICIES)}"
            )
        self._elements = _elements_for(state, message.element, message.huge)

    def start(self) -> None:
        nbytes = self._pages * PAGE_BYTES
        if nbytes > PROCESS_SPACE_BYTES:
            raise Refusal(
                "address-space",
                f"{nbytes >> 30} GiB cannot lie in the {PROCESS_SPACE_BYTES >> 30} GiB of addresses of one process",
                self._state.free_memory(),
            )
        element = self._supply.place(nbytes, self._elements, self._policy, self._process)
        address = self._reserve_address(nbytes)
        try:
            self._supply.reserve(self, self._process.group, element, address, self._pages, self._huge)
        except Refusal:
            self._state.plan.release(address)
            raise

    def slab_reserved(self, slab: Slab) -> None:
        process = self._process
        if not process.is_attached:
            self._supply.retire(slab)
            return
        shard = self._state.groups[slab.group].shard
        if not shard.add_slab(slab.id, slab.address, slab.pages, slab.element, slab.huge, slab.home):
            self._supply.retire(slab)
            refusal = Refusal(
                "memory", f"the group's table is full: {MAX_SLABS} slabs or {MAX_EXTENTS} extents"
            )
            self._state.refuse(self._peer, refusal)
            return
        slab.state = SlabState.LIVE
        self._state.reply(self._peer, wire.SlabReady(slab.id))

    def slab_refused(self, slab: Slab, message: str) -> None:
        self._elements = [element for element in self._elements if element != slab.element]
        try:
            if not self._elements:
                raise Refusal("memory", message, self._state.free_memory())
            self.start()
        except Refusal as refusal:
            self._state.refuse(self._peer, refusal)

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
