"""A Rack MMU that was killed, and is started anew: its books, and the tables, are made to agree again.

Theory of operation. The books are as of the last input that was written down. The tables may be ahead of them by the
one input that was being carried out, and behind them by what that input had put off until it was written down
(`RackState.later`). So:

- *Behind*: whatever the books say has happened to a table is done again; all of it may be done twice.
- *Ahead*: each change of a table that comes before its being written down can be told from the table. A slot that the
  books do not know was being admitted; a slab that only the books have was being taken; one that is being reserved,
  and is there, was added; away pages tell how far a grant between groups had got. Nobody had been told of any of it.

What elements and agents have not heard is repeated when they are linked (`Announcer`).
"""

from __future__ import annotations

from bequest.limits import FIRST_MAILBOX_ID, LAST_MAILBOX_ID, MMU_ID, PAGE_BYTES
from bequest.protocol.address_plan import without
from bequest.protocol.cross_grant import CrossGrants
from bequest.protocol.groups import Group
from bequest.protocol.mailboxes import Mailboxes
from bequest.protocol.outputs import Note
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.shard import LIFE_EMPTY
from bequest.protocol.slab_ledger import SlabState
from bequest.protocol.slab_request import SlabRequests
from bequest.protocol.slab_supply import SlabSupply


class Restorer:
    def __init__(
        self,
        state: RackState,
        supply: SlabSupply,
        requests: SlabRequests,
        grants: CrossGrants,
        mailboxes: Mailboxes,
        now: float,
    ) -> None:
        self._state = state
        self._supply = supply
        self._requests = requests
        self._grants = grants
        self._mailboxes = mailboxes
        self._now = now

    def restore(self) -> None:
        state = self._state
        state.groups.open_tables()
        state.ledger.restored()
        for slab in state.ledger:
            if slab.parent is None:
                state.plan.restore(slab.address, slab.nbytes)
        for group in state.groups:
            group.shard.recover()
            members = {member.id: member for member in state.processes if member.group == group.id}
            for number in range(1, LAST_MAILBOX_ID + 1):
                self._restore_slot(group, number, members.get(number))
        state.processes.restored()
        self._grants.hold_all()
        self._grants.restore()
        self._requests.restore()
        for group in state.groups:
            self._restore_slabs(group)
            self._free_what_nothing_explains(group)

    # --- lives ---------------------------------------------------------------------------------------------

    def _restore_slot(self, group: Group, number: int, member: Member | None) -> None:
        """``member`` is who bears that id in this group by the books."""
        life, incarnation, _, _ = group.shard.life(number)
        if life == LIFE_EMPTY:
            if member is not None:  # it was about to be forgotten
                self._state.processes.forget(member)
            return
        if member is None or member.incarnation != incarnation:
            kind = Kind.PROCESS if number < FIRST_MAILBOX_ID else Kind.MAILBOX
            self._state.processes.enter_gone(kind, number, incarnation, group.id)
            group.shard.mark_dead(number)
            group.shard.settle(number)
            group.shard.release(number)
        else:
            self._catch_up(group, member)

    def _catch_up(self, group: Group, member: Member) -> None:
        if member.kind is Kind.MAILBOX:
            if member.state is State.GONE:
                self._mailboxes.empty(member)
            return
        if member.state is not State.ATTACHED:
            group.shard.mark_dead(member.id)
        if member.state in (State.ORPHANED, State.GONE):
            group.shard.settle(member.id)  # what the gone still have is freed when they are forgotten

    # --- slabs ---------------------------------------------------------------------------------------------

    def _restore_slabs(self, group: Group) -> None:
        state = self._state
        recorded = [number for number, *_ in group.shard.slabs()]
        for slab in state.ledger:
            is_live = slab.state is SlabState.LIVE and slab.group == group.id
            if is_live and slab.id not in recorded and slab.pins == 0:
                self._supply.retire(slab)
        for number in recorded:
            known = state.ledger.get(number)
            is_known = known is not None and known.group == group.id and known.state is SlabState.LIVE
            if not is_known and (known is None or known.pins == 0) and not group.shard.take_slab(number):
                text = f"slab {number} of group {group.name!r} is in use, and not in the books"
                state.outputs.append(Note(text, trouble=True))

    def _free_what_nothing_explains(self, group: Group) -> None:
        """Away pages for which there is neither a copy elsewhere nor a grant: a slab was about to be taken."""
        state = self._state
        if not group.shard.holdings(MMU_ID)[1]:
            return
        for slab in state.ledger:
            if slab.group != group.id or slab.state is not SlabState.LIVE or slab.parent is not None:
                continue
            explained = [copy.run for copy in state.ledger.copies_of(slab)]
            explained += self._grants.runs_under_way(slab.id)
            for start, end in without(slab.run, explained):
                group.shard.free_away(start, (end - start) // PAGE_BYTES)
