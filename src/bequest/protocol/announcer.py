"""What the Rack MMU says first on a new link: all that the other side has to know.

A link is new because one of its ends is. Either may have said or done things that the other never heard of, so
nothing is taken for known: the element or agent compares what it is told with what it has, says what it lacks, and
lets go of the rest when the announcement ends.
"""

from __future__ import annotations

from bequest.limits import MMU_ID, PAGE_BYTES
from bequest.protocol.cross_grant import CrossGrants
from bequest.protocol.outputs import ToAgent
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.protocol.slab_supply import SlabSupply
from bequest.wire import messages as wire


class Announcer:
    def __init__(self, state: RackState, supply: SlabSupply, grants: CrossGrants) -> None:
        self._state = state
        self._supply = supply
        self._grants = grants

    def to_element(self, element: int) -> None:
        state = self._state
        for group in state.groups:
            state.tell_element(element, wire.AdmitGroup(group.id, group.ticket))
        slabs = [slab for slab in state.ledger if slab.element == element]
        for slab in slabs:
            if slab.state is SlabState.LIVE:
                adopt = wire.AdoptSlab(slab.id, slab.group, slab.nbytes, slab.huge)
                state.tell_element(element, adopt)
            elif slab.state is SlabState.RESERVING:
                self._supply.ask_for(slab)
        state.tell_element(element, wire.AnnouncementEnds())
        for slab in slabs:
            if slab.state is SlabState.LIVE and (slab.parent is not None or state.ledger.copies_of(slab)):
                self._punch_holes(slab)
        self._grants.outstanding(element)

    def to_agent(self, compute: str) -> None:
        for member in self._state.processes:
            if (
                member.kind is Kind.PROCESS
                and member.compute == compute
                and member.state in (State.ATTACHED, State.LOST)
            ):
                self._state.outputs.append(ToAgent(compute, self.expectation(member)))
        self._state.outputs.append(ToAgent(compute, wire.AnnouncementEnds()))

    def expectation(self, member: Member) -> wire.ExpectProcess:
        """What an agent is told of a process."""
        return wire.ExpectProcess(
            member.id, member.incarnation, member.os_pid, member.ticket, member.name, member.group
        )

    def _punch_holes(self, slab: Slab) -> None:
        """What has gone to another group has no memory here any more; to be said once too often does no harm."""
        under_way = self._grants.runs_under_way(slab.id)
        for address, pages, _, owner, _ in self._state.shard_of(slab.group).slab_extents(slab.id):
            end = address + pages * PAGE_BYTES
            if owner == MMU_ID and not any(start < end and address < stop for start, stop in under_way):
                punch = wire.PunchPages(slab.id, address - slab.address, pages * PAGE_BYTES)
                self._state.tell_element(slab.element, punch)
