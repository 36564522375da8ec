"""Slabs come and go: placement, reservation at the element, reclaiming and retirement.

A slab's memory is reserved at its element first, which may take long (first touch) and may fail; only then does it
enter the table. Whoever waits for it is told by `SlabWaiter`. Idle slabs, in which nobody owns a page, are taken back
at once where their home cannot use them any more, and from living homes when memory is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bequest.ids import GroupId, SlabId
from bequest.limits import PAGE_BYTES
from bequest.protocol.address_plan import without
from bequest.protocol.placement import Candidate, choose_element
from bequest.protocol.process_table import Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.wire import messages as wire


class SlabWaiter(Protocol):
    def slab_reserved(self, slab: Slab) -> None:
        """The memory is there. The waiter puts the slab into a table (LIVE) or has it retired."""

    def slab_refused(self, slab: Slab, message: str) -> None:
        """It is not, and the slab is forgotten already."""


class SlabSupply:
    def __init__(self, state: RackState) -> None:
        self._state = state
        self._waiters: dict[SlabId, SlabWaiter] = {}

    # --- coming --------------------------------------------------------------------------------------------

    def place(self, nbytes: int, elements: Sequence[int], policy: str, process: Member) -> int:
        """An element with room for it, made by reclaiming idle slabs if there is no other way."""
        for attempt in (self._choose, self._reclaim_and_choose):
            element = attempt(nbytes, elements, policy, process)
            if element is not None:
                return element
        state = self._state
        where = ", ".join(f"{name} has {free >> 20} MiB free" for name, free, _ in state.free_memory())
        among = ", ".join(state.elements[element].name for element in elements) or "no element"
        raise Refusal("memory", f"no {nbytes >> 20} MiB free at {among} ({where})", state.free_memory())

    def reserve(
        self,
        waiter: SlabWaiter,
        group: GroupId,
        element: int,
        address: int,
        pages: int,
        huge: bool,
        parent: SlabId | None = None,
    ) -> Slab:
        try:
            slab = self._state.ledger.add(group, element, address, pages, huge, parent)
        except OverflowError as error:
            raise Refusal("memory", str(error), self._state.free_memory()) from error
        self._waiters[slab.id] = waiter
        self.ask_for(slab)
        return slab

    def ask_for(self, slab: Slab) -> None:
        """Tells the element; again on a new link to it, for it may not have heard."""
        message = wire.ReserveSlab(slab.id, slab.group, slab.nbytes, slab.huge)
        self._state.tell_element(slab.element, message)

    def wait_for(self, slab: Slab, waiter: SlabWaiter) -> None:
        """In place of the waiter that a run before had."""
        self._waiters[slab.id] = waiter

    def reserved(self, element: int, number: SlabId) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is not None:  # else it was said before, to a run of the daemon that had not written it down
            waiter.slab_reserved(self._state.ledger[number])
        elif (
            self._state.ledger.get(number) is None
        ):  # a refusal of what was asked before crossed the repeated request
            self._state.tell_element(element, wire.RetireSlab(number, recycle=False))

    def refused(self, number: SlabId, message: str) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is None:
            return
        slab = self._state.ledger[number]
        self._end(slab)
        waiter.slab_refused(slab, message)

    # --- going ---------------------------------------------------------------------------------------------

    def retire(self, slab: Slab) -> None:
        """Gives the memory of a slab back which is in no table (any more), and its addresses if nothing bears them."""
        recycle = not self._home_may_touch(slab) and not slab.failed
        self._state.tell_element(slab.element, wire.RetireSlab(slab.id, recycle))
        self._end(slab)

    def take_if_idle(self, slab: Slab) -> bool:
        if slab.state is not SlabState.LIVE or slab.pins > 0:
            return False
        if not self._state.groups[slab.group].shard.take_slab(slab.id):
            return False
        self.retire(slab)
        return True

    def sweep(self) -> int:
        """Takes the idle slabs that have failed or whose homes are dead or in another group; how many."""
        useless = [slab for slab in self._state.ledger if not self._home_can_use(slab)]
        return sum(self.take_if_idle(slab) for slab in self._idle_among(useless))

    def reclaim_addresses(self, process: Member) -> bool:
        """Takes the process's own idle slabs, for their addresses."""
        own = [slab for slab in self._state.ledger if slab.home == process.id]
        return sum(self.take_if_idle(slab) for slab in self._idle_among(own)) > 0

    # --- within --------------------------------------------------------------------------------------------

    def _choose(self, nbytes: int, elements: Sequence[int], policy: str, process: Member) -> int | None:
        state = self._state
        spreading = policy == "spread"
        candidates = [
            Candidate(
                element,
                state.free_bytes(element),
                state.ledger.held_at_home(element, process.id) if spreading else 0,
            )
            for element in elements
        ]
        return choose_element(policy, candidates, nbytes)

    def _reclaim_and_choose(
        self, nbytes: int, elements: Sequence[int], policy: str, process: Member
    ) -> int | None:
        """Useless idle slabs go first, then the oldest; no more than needed."""
        state = self._state
        possible = [element for element in elements if state.elements[element].size >= nbytes]
        idle = self._idle_among([slab for slab in state.ledger if slab.element in possible])
        for slab in sorted(idle, key=self._home_can_use):
            if self.take_if_idle(slab):
                chosen = self._choose(nbytes, possible, policy, process)
                if chosen is not None:
                    return chosen
        return None

    def _idle_among(self, slabs: Sequence[Slab]) -> list[Slab]:
        """Those in which nobody owns a page. Asks each table once, which reads all of it."""
        idle: dict[GroupId, list[SlabId]] = {}
        for slab in slabs:
            if slab.state is SlabState.LIVE and slab.group not in idle:
                idle[slab.group] = self._state.groups[slab.group].shard.idle_slabs()
        return [slab for slab in slabs if slab.state is SlabState.LIVE and slab.id in idle[slab.group]]

    def _home_may_touch(self, slab: Slab) -> bool:
        home = self._state.processes.get(slab.home)
        return home is not None and home.group == slab.group and home.state in (State.ATTACHED, State.LOST)

    def _home_can_use(self, slab: Slab) -> bool:
        home = self._state.processes.get(slab.home)
        return home is not None and home.is_attached and home.group == slab.group and not slab.failed

    def _end(self, slab: Slab) -> None:
        if slab.state is SlabState.RESERVING:
            slab.is_stillborn = True
        self._state.ledger.lose_memory(slab)
        self._dissolve(slab)

    def _dissolve(self, ghost: Slab) -> None:
        """Lets the addresses go once no copy lies at them; they return to the slab they were copied from."""
        state = self._state
        if state.ledger.copies_of(ghost):
            return
        state.ledger.forget(ghost)
        if ghost.parent is None:
            state.plan.release(ghost.address)
            return
        parent = state.ledger[ghost.parent]
        if parent.state is SlabState.GHOST:
            self._dissolve(parent)
        elif parent.state is SlabState.LIVE and not ghost.is_stillborn and self._home_may_touch(parent):
            # Elsewhere nobody can use what is free; a hole can be filled again by a grant.
            still_away = [copy.run for copy in state.ledger.copies_of(parent)]
            for start, end in without(ghost.run, still_away):
                state.groups[parent.group].shard.free_away(start, (end - start) // PAGE_BYTES)
