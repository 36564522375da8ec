"""What the Rack MMU says first on a new link: all that the other side has to know.

A link is new because one of its ends is. Either may have said or done things that the other never heard of, so
nothing is taken for known: the element or agent compares what it is told with what it has, says what it lacks, and
lets go of the rest when the announcement ends.
"""

from __future__ import annotations

from bequest.protocol.cross_grant import CrossGrants
from bequest.protocol.groups import Group
from bequest.protocol.outputs import ToAgent, ToMonitor
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.slab_ledger import SlabState
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
                of_it = (slab.id, slab.group, slab.nbytes, slab.huge)
                state.tell_element(element, wire.AdoptSlab(*of_it, list(slab.doomed), slab.cause))
            elif slab.state is SlabState.RESERVING:
                self._supply.ask_for(slab)
        if element in state.failed_elements:
            failed = wire.FailMemory(0, None, 0, 0, state.failed_elements[element].cause)
            state.tell_element(element, failed)
        state.tell_element(element, wire.AnnouncementEnds())
        self._grants.outstanding(element)

    def to_agent(self, compute: str) -> None:
        for member in self._state.processes:
            if (
                member.kind is Kind.PROCESS
                and member.compute == compute
                and (
                    member.state in (State.ATTACHED, State.LOST)
                    or (member.state is State.ORPHANED and member.enrolled)
                )
            ):
                self._state.outputs.append(ToAgent(compute, self.expectation(member)))
        self._state.outputs.append(ToAgent(compute, wire.AnnouncementEnds()))

    def to_monitor(self) -> None:
        for member in self._state.processes:
            if member.kind is Kind.PROCESS and member.state in (State.ATTACHED, State.LOST):
                self.have_watched(member)

    def have_watched(self, member: Member) -> None:
        """The monitor need not be there: it is told of everybody when it comes."""
        watch = wire.WatchProcess(
            member.id, member.incarnation, member.os_pid, member.group, member.is_suspect
        )
        self._state.outputs.append(ToMonitor(watch, member.group))

    def expectation(self, member: Member) -> wire.ExpectProcess:
        """What an agent is told of a process."""
        return wire.ExpectProcess(
            member.id, member.incarnation, member.os_pid, member.ticket, member.name, member.group
        )

    def welcome(self, member: Member, group: Group) -> wire.Attached:
        """What a process is told of itself, and of where everything is."""
        config = self._state.config
        return wire.Attached(
            pid=member.id,
            incarnation=member.incarnation,
            group=group.id,
            group_name=group.name,
            compute=member.compute,
            agent_path=config.agent_paths[config.computes.index(member.compute)],
            agent_ticket=member.ticket,
            elements=[wire.ElementAddress(e.id, e.name, e.kind, e.path) for e in config.elements],
            element_ticket=group.ticket,
        )
