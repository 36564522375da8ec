"""A group's table as plain Python: what the machines are tested and simulated on, an oracle of what a table means.

Processes' own acts, which the real table sees in native code, are `own`, `free`, `accept` here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from bequest.protocol.shard import SlabSummary

FREE, OWNED, IN_FLIGHT = 2, 3, 4
MMU = 1023
PAGE = 4096


@dataclass(frozen=True)
class Extent:
    address: int
    pages: int
    nbytes: int
    slab: int
    state: int
    owner: int
    epoch: int = 1
    birth: int = 0
    stealable: bool = True
    seal: int = 0
    stolen: tuple[int, int, int] | None = (
        None  # from whom: id and incarnation; and the epoch of the thief's word
    )

    @property
    def end(self) -> int:
        return self.address + self.pages * PAGE


class FakeShard:
    def __init__(self, group_id: int = 0, inbox_cells: int = 4) -> None:
        self.group_id = group_id
        self.inbox_cells = inbox_cells
        self.records: dict[int, tuple[int, int, int, bool, int]] = {}
        self.extents: dict[int, Extent] = {}  # by descriptor
        self.lives: dict[int, tuple[int, int]] = {}  # id -> (life, incarnation)
        self.inboxes: dict[int, list[tuple[int, int, bytes]]] = {}  # id -> (descriptor, sender, tag)
        self.revocations: dict[int, int] = {}
        self.mends: dict[int, int] = {}
        self.opening: set[int] = set()  # who is about to open memory; in a world of whole steps, nobody is
        self.heirs: dict[int, int] = {}
        self.last_birth = 0
        self.last_descriptor = 0
        self.is_full = False
        self.failed_slabs: dict[int, None] = {}
        self.watchers: dict[int, int] = {}

    # --- what processes do ------------------------------------------------------------------------------------

    def own(self, owner: int, address: int, pages: int, stealable: bool = True) -> int:
        """Allocates these free pages; the descriptor."""
        descriptor = self._carve(FREE, None, address, pages)
        self.last_birth += 1
        changes = {"nbytes": pages * PAGE, "stealable": stealable, "birth": self.last_birth, "seal": 0}
        return self._set(descriptor, state=OWNED, owner=owner, **changes)

    def grant(self, descriptor: int, to: int, tag: bytes = b"") -> None:
        sender = self.extents[descriptor].owner
        assert self.extents[descriptor].state == OWNED and to in self.inboxes
        self._set(descriptor, state=IN_FLIGHT, owner=to)
        self.inboxes[to].append((descriptor, sender, tag))

    def adopt(self, owner: int, victim: int, incarnation: int) -> list[int]:
        """What was stolen for this process from that life of a process; again, it has nothing left to adopt."""
        mine = [
            number
            for number, e in sorted(self.extents.items(), key=lambda pair: pair[1].address)
            if e.state == OWNED and e.owner == owner and e.stolen == (victim, incarnation, e.epoch)
        ]
        return [self._set(number) for number in mine]

    def inherit(self, owner: int, dead: int) -> list[int]:
        """Empties the inbox of a dead process whose heir this one is."""
        if self.heirs.get(dead) != owner:
            return []
        inherited = [self._set(number, state=OWNED, owner=owner) for number, _, _ in self.inboxes[dead]]
        self.inboxes[dead] = []
        return inherited

    def shatter(self, slab: int, owner: int, pages: int) -> None:
        """Allocates every other run of so many pages of a free slab."""
        (whole,) = (number for number, extent in self.extents.items() if extent.slab == slab)
        extent = self.extents.pop(whole)
        for index in range(extent.pages // pages):
            state, owns = (FREE, extent.owner) if index % 2 else (OWNED, owner)
            address = extent.address + index * pages * PAGE
            self._new(Extent(address, pages, pages * PAGE, slab, state, owns))

    def free(self, descriptor: int) -> None:
        extent = self.extents[descriptor]
        self._set(descriptor, state=FREE, owner=home(extent.address))

    def accept(self, owner: int) -> int:
        descriptor, _, _ = self.inboxes[owner].pop(0)
        assert self.extents[descriptor].owner == owner
        return self._set(descriptor, state=OWNED)

    def word(self, descriptor: int) -> int:
        return self.extents[descriptor].epoch

    # --- `bequest.protocol.shard.Shard` -------------------------------------------------------------------------

    def admit(self, id: int, incarnation: int, os_pid: int, name: str) -> None:
        assert id not in self.lives
        self.lives[id] = (1, incarnation)
        self.inboxes[id] = []

    def life(self, id: int) -> tuple[int, int, int, str]:
        life, incarnation = self.lives.get(id, (0, 0))
        return life, incarnation, 0, ""

    def recover(self) -> int:
        return 0  # a step of this table is never half done

    def mark_dead(self, id: int) -> None:
        self.lives[id] = (2, self.lives[id][1])

    def vacate(self, id: int) -> None:
        assert self.lives[id][0] == 2
        assert self.holdings(id) == (0, 0, 0)
        del self.lives[id], self.inboxes[id]
        self.heirs.pop(id, None)

    def add_slab(self, slab: int, address: int, pages: int, element: int, huge: bool, home: int) -> bool:
        assert self.lives[home][0] == 1
        if self.is_full:
            return False
        self._record(slab, address, pages, element, huge, home)
        self._new(Extent(address, pages, 0, slab, FREE, home))
        return True

    def add_slab_granted(
        self, slab: int, address: int, pages: int, element: int, huge: bool,
        nbytes: int, to: int, incarnation: int, sender: int, tag: bytes, seal: int = 0,
    ) -> bool:  # fmt: skip
        if not self._can_receive(to, incarnation):
            return False
        self._record(slab, address, pages, element, huge, home(address))
        self.last_birth += 1
        arriving = Extent(address, pages, nbytes, slab, IN_FLIGHT, to, birth=self.last_birth, seal=seal)
        descriptor = self._new(arriving)
        self.inboxes[to].append((descriptor, sender, tag))
        return True

    def fail_slab(self, slab: int) -> None:
        assert slab in self.records
        self.failed_slabs[slab] = None

    def watch(self, id: int, watchers: int) -> None:
        self.watchers[id] = watchers

    def idle_slabs(self) -> list[int]:
        return [slab for slab in self.records if all(self._is_idle(extent) for extent in self._in_slab(slab))]

    def take_slab(self, slab: int) -> bool:
        if slab not in self.idle_slabs():
            return False
        del self.records[slab]
        self.extents = {number: extent for number, extent in self.extents.items() if extent.slab != slab}
        return True

    def withdraw(self, descriptor: int, word: int) -> bool:
        extent = self.extents.get(descriptor)
        if extent is None or extent.epoch != word or extent.state != OWNED:
            return False
        self._set(descriptor, owner=MMU)
        return True

    def restore(self, descriptor: int, word: int) -> int:
        extent = self.extents[descriptor]
        assert extent.owner == MMU and extent.epoch == word + 1
        self._set(descriptor, owner=self.owner_before[descriptor])
        return self.extents[descriptor].epoch

    def deliver_into(
        self, address: int, pages: int, nbytes: int, to: int, incarnation: int, sender: int, tag: bytes
    ) -> bool:
        if not self._can_receive(to, incarnation):
            return False
        descriptor = self._carve(OWNED, MMU, address, pages)
        self.last_birth += 1
        changes = {"nbytes": nbytes, "stealable": True, "birth": self.last_birth, "seal": 0}
        self._set(descriptor, state=IN_FLIGHT, owner=to, **changes)
        self.inboxes[to].append((descriptor, sender, tag))
        return True

    def free_away(self, address: int, pages: int) -> int:
        freed = 0
        for extent in list(self.extents.values()):
            low, high = max(extent.address, address), min(extent.end, address + pages * PAGE)
            if extent.state == OWNED and extent.owner == MMU and low < high:
                self.free(self._carve(OWNED, MMU, low, (high - low) // PAGE))
                freed += (high - low) // PAGE
        return freed

    def settle(self, id: int) -> int:
        return 0

    def release(self, id: int) -> int:
        mine = [
            number for number, e in self.extents.items() if e.owner == id and e.state in (OWNED, IN_FLIGHT)
        ]
        pages = sum(self.extents[number].pages for number in mine)
        for number in mine:
            self.free(number)
        self.inboxes[id] = []
        return pages

    def holdings(self, id: int) -> tuple[int, int, int]:
        mine = [extent for extent in self.extents.values() if extent.owner == id]
        free = sum(extent.pages for extent in mine if extent.state == FREE)
        return len(mine), sum(extent.pages for extent in mine) - free, free

    def stealable(
        self, victim: int, only: list[tuple[int, int]] | None = None
    ) -> list[tuple[int, int, int, int]]:
        return [row for row in self._owned(victim, only) if self.extents[row[0]].stealable]

    def owned(self, id: int, only: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
        return self._owned(id, only)

    def steal(
        self, extents: list[tuple[int, int]], victim: int, thief: int
    ) -> list[tuple[int, int, int, int]]:
        self.revocations[victim] = self.revocations.get(victim, 0) + 1
        stolen = []
        for number, word in extents:
            e = self.extents.get(number)
            if e is None or e.epoch != word or e.state != OWNED or e.owner != victim or not e.stealable:
                continue
            mark = (victim, self.lives[victim][1], e.epoch + 1)
            self._set(number, owner=thief, stolen=mark)
            stolen.append((number, e.epoch + 1, e.address, e.pages))
        return stolen

    def have_mended(self, id: int) -> None:
        self.mends[id] = self.mends.get(id, 0) + 1

    def is_opening(self, id: int) -> bool:
        return id in self.opening

    def name_heir(self, victim: int, thief: int) -> bool:
        former = self.heirs.get(victim, thief)
        if self.lives[victim][0] != 2 or (former != thief and self.lives.get(former, (0, 0))[0] == 1):
            return False
        self.heirs[victim] = thief
        return True

    def find_extent(self, address: int, hint: int) -> tuple[int, int, int, int, int, int] | None:
        for number, extent in self.extents.items():
            if extent.address <= address < extent.end:
                return number, extent.address, extent.pages, extent.state, extent.owner, extent.birth
        return None

    def usage(self) -> list[tuple[int, int, int, int]]:
        owners = sorted({extent.owner for extent in self.extents.values()})
        return [(owner, *self.holdings(owner)) for owner in owners]

    def slabs(self) -> list[tuple[int, int, int, int, bool, int]]:
        return [(slab, *record) for slab, record in self.records.items()]

    def slab_extents(self, slab: int) -> list[tuple[int, int, int, int, int]]:
        return [(e.address, e.pages, e.state, e.owner, e.epoch) for e in self._in_slab(slab)]

    def summaries(self, slabs: list[int], runs: int) -> list[SlabSummary]:
        return [self._summary(slab, runs) for slab in slabs if slab in self.records]

    def _summary(self, slab: int, runs_max: int) -> SlabSummary:
        extents = self._in_slab(slab)
        neighbours = groupby(extents, lambda extent: (extent.state, extent.owner))
        runs = [(sum(e.pages for e in run), state, owner) for (state, owner), run in neighbours]
        free = [pages for pages, state, _ in runs if state == FREE]
        owners: dict[int, int] = {}
        for pages, state, owner in runs:
            if state != FREE and (state, owner) != (OWNED, MMU):
                owners[owner] = owners.get(owner, 0) + pages
        largest = max(free, default=0)
        return slab, len(extents), sum(free), len(free), largest, sorted(owners.items()), runs[:runs_max]

    def sealed_in(self, slab: int, number: int) -> list[tuple[int, int]]:
        return [
            (e.address, e.pages * PAGE)
            for e in self._in_slab(slab)
            if e.seal == number and e.state in (OWNED, IN_FLIGHT) and e.owner != MMU
        ]

    def read_in(self, slab: int) -> list[tuple[int, int, int]]:
        return []  # nothing is frozen here

    def seal(self, index: int) -> int:
        return self.extents[index].seal if index in self.extents else 0

    def descriptor(self, index: int) -> tuple[int, int, int, int, int, int, int]:
        if index not in self.extents:
            return 0, 0, 0, 0, 0, 0, 0
        e = self.extents[index]
        return e.address, e.pages, e.nbytes, e.slab, e.state, e.owner, e.epoch

    def inbox_depth(self, id: int) -> int:
        return len(self.inboxes[id])

    def counters(self, id: int) -> dict[str, int]:
        return {"grants": 0}

    def audit(self) -> list[str]:
        """Every page of every slab has exactly one owner."""
        findings = []
        for slab, (address, pages, *_) in self.records.items():
            expected = address
            for extent in self._in_slab(slab):
                if extent.address != expected:
                    findings.append(f"slab {slab}: {extent.address:#x} follows {expected:#x}")
                expected = extent.end
            if expected != address + pages * PAGE:
                findings.append(f"slab {slab} ends at {expected:#x}")
        findings += [f"{e} is in no slab" for e in self.extents.values() if e.slab not in self.records]
        return findings

    # --- within ----------------------------------------------------------------------------------------------

    owner_before: dict[int, int]

    def _owned(self, id: int, only: list[tuple[int, int]] | None = None) -> list[tuple[int, int, int, int]]:
        def is_meant(extent: Extent) -> bool:
            return only is None or any(
                start < extent.end and extent.address < start + nbytes for start, nbytes in only
            )

        found = [
            (number, e.epoch, e.address, e.pages)
            for number, e in self.extents.items()
            if e.state == OWNED and e.owner == id and is_meant(e)
        ]
        return sorted(found, key=lambda row: row[2])

    def _record(self, slab: int, address: int, pages: int, element: int, huge: bool, home: int) -> None:
        assert slab not in self.records
        for other, other_pages, *_ in self.records.values():
            assert address + pages * PAGE <= other or other + other_pages * PAGE <= address, (
                "two slabs overlap"
            )
        self.records[slab] = (address, pages, element, huge, home)

    def _can_receive(self, to: int, incarnation: int) -> bool:
        return self.lives.get(to) == (1, incarnation) and len(self.inboxes[to]) < self.inbox_cells

    def _in_slab(self, slab: int) -> list[Extent]:
        return sorted((e for e in self.extents.values() if e.slab == slab), key=lambda e: e.address)

    def _is_idle(self, extent: Extent) -> bool:
        return extent.state == FREE or (extent.state == OWNED and extent.owner == MMU)

    def _new(self, extent: Extent) -> int:
        self.last_descriptor += 1
        self.extents[self.last_descriptor] = extent
        return self.last_descriptor

    def _set(self, descriptor: int, **changes: Any) -> int:
        before = self.extents[descriptor]
        if not hasattr(self, "owner_before"):
            self.owner_before = {}
        self.owner_before[descriptor] = before.owner
        self.extents[descriptor] = replace(before, epoch=before.epoch + 1, **changes)
        return descriptor

    def _carve(self, state: int, owner: int | None, address: int, pages: int) -> int:
        """Cuts neighbours together and apart until exactly these pages are one extent of that state."""
        end = address + pages * PAGE
        touching = [
            (number, e)
            for number, e in self.extents.items()
            if e.state == state and owner in (None, e.owner) and e.address < end and address < e.end
        ]
        touching.sort(key=lambda pair: pair[1].address)
        assert touching and touching[0][1].address <= address and end <= touching[-1][1].end, "not there"
        first, last = touching[0][1], touching[-1][1]
        for number, _ in touching:
            del self.extents[number]
        if first.address < address:
            self._new(replace(first, pages=(address - first.address) // PAGE))
        if end < last.end:
            self._new(replace(last, address=end, pages=(last.end - end) // PAGE))
        return self._new(replace(first, address=address, pages=pages))


def home(address: int) -> int:
    return (address - 0x2000_0000_0000) >> 36
