"""A group's table with what processes do to it: acts that begin with a look and end with a compare-and-swap.

What native code does in many steps is one step here, for the native explorer already enumerates those interleavings.
The steps that are kept apart are those between which a whole protocol may run: a process looks at a word, is stopped,
and acts on what it saw an hour later.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import msgspec

from bequest.sim.fake_shard import FREE, IN_FLIGHT, OWNED, PAGE, Extent, FakeShard


class Grant(Enum):
    DONE = "done"
    FULL = "full"
    DEAD = "dead"
    LOST = "lost"


class Claim(msgspec.Struct):
    """A cell that a sender has in hand: where the extent goes, and the epoch that says it is committed."""

    to: int
    incarnation: int
    descriptor: int
    epoch: int
    tag: bytes


class SharedTable(FakeShard):
    def __init__(self, group_id: int, inbox_cells: int) -> None:
        super().__init__(group_id, inbox_cells)
        self.claims: dict[int, list[Claim]] = {}
        self.bearers: dict[str, tuple[int, int]] = {}
        self.taken: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by victim: stolen runs (start, end)
        self.strays: dict[int, list[int]] = {}  # by inbox: what was meant for an earlier bearer of the id

    def admit(self, id: int, incarnation: int, os_pid: int, name: str) -> None:
        super().admit(id, incarnation, os_pid, name)
        self.bearers[name] = (id, incarnation)

    # --- looking ---------------------------------------------------------------------------------------------

    def find(self, name: str) -> tuple[int, int] | None:
        """Who bears the name in this group, and lives."""
        found = self.bearers.get(name)
        return found if found is not None and self.is_live(*found) else None

    def is_live(self, number: int, incarnation: int) -> bool:
        return self.lives.get(number) == (1, incarnation)

    def owns(self, number: int, descriptor: int, word: int) -> bool:
        extent = self.extents.get(descriptor)
        return extent is not None and extent.epoch == word and (extent.state, extent.owner) == (OWNED, number)

    def owner_of(self, address: int) -> Extent | None:
        for extent in self.extents.values():
            if extent.address <= address < extent.end:
                return extent
        return None

    def has_room(self, number: int) -> bool:
        claimed = sum(claim.to == number for claims in self.claims.values() for claim in claims)
        return len(self.inboxes[number]) + claimed < self.inbox_cells

    # --- memory ----------------------------------------------------------------------------------------------

    def alloc(self, owner: int, pages: int) -> int | None:
        """First fit among the free runs at home; the descriptor."""
        for slab, (_, _, _, _, home) in self.records.items():
            if home != owner or slab in self.failed_slabs:
                continue
            start = length = 0
            for extent in self._in_slab(slab):
                if extent.state != FREE:
                    start = length = 0
                    continue
                start = start or extent.address
                length += extent.pages
                if length >= pages:
                    return self.own(owner, start, pages)
        return None

    def try_free(self, owner: int, descriptor: int, word: int) -> bool:
        if not self.owns(owner, descriptor, word):
            return False
        self.free(descriptor)
        return True

    def split(self, owner: int, descriptor: int, word: int, pages: int) -> tuple[int, int] | None:
        if not self.owns(owner, descriptor, word):
            return None
        whole = self.extents[descriptor]
        del self.extents[descriptor]
        rest = whole.pages - pages
        left = replace(whole, pages=pages, nbytes=pages * PAGE)
        right = replace(whole, address=whole.address + pages * PAGE, pages=rest, nbytes=rest * PAGE)
        return self._new(left), self._new(right)

    # --- handing over ----------------------------------------------------------------------------------------

    def commit(
        self, sender: int, descriptor: int, word: int, to: int, incarnation: int, tag: bytes
    ) -> Claim | None:
        """The commit point of a grant, whose look was earlier. None: the word has moved on."""
        if not self.owns(sender, descriptor, word):
            return None
        self._set(descriptor, state=IN_FLIGHT, owner=to)
        claim = Claim(to, incarnation, descriptor, self.extents[descriptor].epoch, tag)
        self.claims.setdefault(sender, []).append(claim)
        return claim

    def publish(self, sender: int, claim: Claim) -> Grant:
        """Announces it, or takes it back if the receiver has died meanwhile."""
        self.claims[sender].remove(claim)
        if not self._is_committed(claim):
            return Grant.DONE  # somebody has dealt with it already
        if not self.is_live(claim.to, claim.incarnation):
            self._set(claim.descriptor, state=OWNED, owner=sender)
            return Grant.DEAD
        self._deliver(sender, claim)
        return Grant.DONE

    def take(self, inbox: int, by: int) -> tuple[int, bytes] | None:
        """The next message of an inbox that ``by`` reads: its descriptor and tag."""
        for stray in self.strays.pop(inbox, []):
            if (extent := self.extents.get(stray)) and (extent.state, extent.owner) == (IN_FLIGHT, inbox):
                self.free(stray)
        waiting = self.inboxes.get(inbox, [])
        while waiting:
            descriptor, _, tag = waiting.pop(0)
            extent = self.extents.get(descriptor)
            if extent is not None and (extent.state, extent.owner) == (IN_FLIGHT, inbox):
                self._set(descriptor, state=OWNED, owner=by)
                return descriptor, tag
        return None

    def settle(self, id: int) -> int:
        """What a dead sender had committed is delivered."""
        claims = self.claims.pop(id, [])
        for claim in claims:
            if self._is_committed(claim) and self.lives.get(claim.to, (0, 0))[1] == claim.incarnation:
                self._deliver(id, claim)
            elif self._is_committed(claim):
                self.strays.setdefault(claim.to, []).append(claim.descriptor)
        return super().settle(id) + len(claims)

    def steal(
        self, extents: list[tuple[int, int]], victim: int, thief: int
    ) -> list[tuple[int, int, int, int]]:
        stolen = super().steal(extents, victim, thief)
        runs = [(address, address + pages * PAGE) for _, _, address, pages in stolen]
        self.taken.setdefault((victim, self.lives[victim][1]), []).extend(runs)
        return stolen

    # --- within ----------------------------------------------------------------------------------------------

    def _is_committed(self, claim: Claim) -> bool:
        extent = self.extents.get(claim.descriptor)
        return extent is not None and extent.epoch == claim.epoch

    def _deliver(self, sender: int, claim: Claim) -> None:
        self.inboxes[claim.to].append((claim.descriptor, sender, claim.tag))
