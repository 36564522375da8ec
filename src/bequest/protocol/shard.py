"""What the Rack MMU asks of one group's table: the machine's only way to the shared memory.

The native ``bequest._core.Table`` is one; tests and the simulator bring their own. None of these calls blocks. `audit`
and `summaries` look through all of the table, and may run beside the others, in a thread of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

# Descriptor, address, pages, state, owner, birth. The birth is the same, whoever gets the extent, until it is freed.
ExtentInfo = tuple[int, int, int, int, int, int]

# Slab, extents, free pages, runs of them, the longest; (owner, pages) in order; the first runs: (pages, state, owner).
SlabSummary = tuple[int, int, int, int, int, list[tuple[int, int]], list[tuple[int, int, int]]]

LIFE_EMPTY, LIFE_LIVE, LIFE_DEAD = 0, 1, 2


class Shard(Protocol):
    def admit(self, id: int, incarnation: int, os_pid: int, name: str) -> None: ...

    def life(self, id: int) -> tuple[int, int, int, str]:
        """LIFE_EMPTY, LIFE_LIVE or LIFE_DEAD; incarnation; operating-system pid; name."""

    def recover(self) -> int:
        """Ends what a Rack MMU that was killed was doing here; how many steps that took."""

    def mark_dead(self, id: int) -> None: ...

    def vacate(self, id: int) -> None: ...

    def add_slab(self, slab: int, address: int, pages: int, element: int, huge: bool, home: int) -> bool:
        """Records a slab and one FREE extent over it, announced to its live home. False: the table is full."""

    def add_slab_granted(
        self,
        slab: int,
        address: int,
        pages: int,
        element: int,
        huge: bool,
        nbytes: int,
        to: int,
        incarnation: int,
        sender: int,
        tag: bytes,
        seal: int = 0,
    ) -> bool:
        """Records a slab and one extent over it, on its way to a receiver. False, and no change: no room."""

    def fail_slab(self, slab: int) -> None:
        """Memory of it has failed: no run of it is allocated any more."""

    def watch(self, id: int, watchers: int) -> None:
        """So many want this process to beat."""

    def idle_slabs(self) -> list[int]:
        """The slabs in which nobody owns a page: all is free, or away in another group."""

    def take_slab(self, slab: int) -> bool:
        """Removes an idle slab. False, and no change, if it is not idle."""

    def withdraw(self, descriptor: int, word: int) -> bool:
        """A member's extent becomes the MMU's ("away"). False if the word no longer stands."""

    def restore(self, descriptor: int, word: int) -> int:
        """Undoes `withdraw` (``word`` is the one from before it); returns the new word."""

    def deliver_into(
        self, address: int, pages: int, nbytes: int, to: int, incarnation: int, sender: int, tag: bytes
    ) -> bool:
        """Away pages inside a slab become an extent on its way to a receiver. False: no room."""

    def free_away(self, address: int, pages: int) -> int: ...

    def settle(self, id: int) -> int: ...

    def release(self, id: int) -> int: ...

    def holdings(self, id: int) -> tuple[int, int, int]: ...

    def stealable(
        self, victim: int, only: list[tuple[int, int]] | None = None
    ) -> list[tuple[int, int, int, int]]:
        """What may be stolen of a process: (descriptor, word, address, pages) of each extent, sorted by address.

        ``only`` narrows it to the extents that touch one of these ranges (address, bytes). Extents are taken whole.
        """

    def owned(self, id: int, only: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
        """All that a process owns and that touches these ranges, as `stealable` lists it."""

    def steal(
        self, extents: list[tuple[int, int]], victim: int, thief: int
    ) -> list[tuple[int, int, int, int]]:
        """Takes these (descriptor, word) from the victim for the thief; returns those it got, with their new words.

        What was granted, freed, split or merged since its word was read is skipped: ask `stealable` again, until
        nothing is left. A dead victim was settled before. One that lives was fenced off these pages before, and is
        fenced off them once more after this and before the thief is told: it may have been opening pages while it was
        fenced, and looks at its words only after that.
        """

    def have_mended(self, id: int) -> None:
        """A fence may have been left on what is its own: its library is to see to it that it can store there."""

    def is_opening(self, id: int) -> bool:
        """Whether it is about to open memory that it saw to be its own.

        Once this is false nothing is opened any more by what it saw before.
        """

    def name_heir(self, victim: int, thief: int) -> bool:
        """Lets the thief empty the inbox of a dead process. False if another living process may do so already."""

    def find_extent(self, address: int, hint: int) -> ExtentInfo | None:
        """The extent in which an address lies; ``hint`` is a descriptor to look at first. None if no slab is there."""

    def usage(self) -> list[tuple[int, int, int, int]]: ...

    def slabs(self) -> list[tuple[int, int, int, int, bool, int]]: ...

    def slab_extents(self, slab: int) -> list[tuple[int, int, int, int, int]]: ...

    def summaries(self, slabs: list[int], runs: int) -> list[SlabSummary]:
        """Of those of these slabs that are here, with at most so many runs each."""

    def sealed_in(self, slab: int, number: int) -> list[tuple[int, int]]:
        """Where in a slab (address, bytes) somebody owns memory, or is about to, that is sealed under that number."""

    def read_in(self, slab: int) -> list[tuple[int, int, int]]:
        """What of a slab is frozen and read: (address, pages, reader), once for each reading."""

    def seal(self, index: int) -> int:
        """The number of a descriptor's seal, or 0."""

    def descriptor(self, index: int) -> tuple[int, int, int, int, int, int, int]: ...

    def inbox_depth(self, id: int) -> int: ...

    def counters(self, id: int) -> dict[str, int]: ...

    def audit(self) -> list[str]: ...


ShardMaker = Callable[[int], Shard]  # from a group id
