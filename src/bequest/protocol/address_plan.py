"""Which virtual addresses of the rack window are in use.

An address is for life (paper, section 3.1): the slab lies there in every process that may ever own part of it, so the
run stays reserved at its home for as long as any memory bears it, whoever holds that memory. Each home has 64 GiB, cut
at 2 MiB; a run is found first-fit, which keeps the space dense and the choice reproducible.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from bequest.ids import ProcessId, home_of, space_of
from bequest.limits import HUGE_PAGE_BYTES

Run = tuple[int, int]  # first address, and the first beyond


class AddressPlan:
    def __init__(self) -> None:
        self._runs: dict[ProcessId, list[Run]] = {}

    def reserve(self, home: ProcessId, nbytes: int) -> int | None:
        """The address of a fresh run of whole 2 MiB pages, or None if no gap at home is long enough."""
        length = -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        runs = self._runs.setdefault(home, [])
        address = _first_gap(runs, space_of(home), length)
        if address is not None:
            insort(runs, (address, address + length))
        return address

    def restore(self, address: int, nbytes: int) -> None:
        """Reserves a run that was reserved in a run of the daemon before."""
        insort(self._runs.setdefault(home_of(address), []), (address, address + nbytes))

    def release(self, address: int) -> None:
        """Ends the reservation of the run that starts here."""
        home = home_of(address)
        runs = self._runs.get(home, [])
        index = bisect_left(runs, (address, 0))
        if index == len(runs) or runs[index][0] != address:
            raise ValueError(f"no run is reserved at {address:#x}")
        del runs[index]
        if not runs:
            del self._runs[home]

    def in_use(self, home: ProcessId) -> bool:
        return home in self._runs


def _first_gap(runs: list[Run], space: Run, length: int) -> int | None:
    start, space_end = space
    for begin, end in runs:
        if begin - start >= length:
            return start
        start = end
    return start if space_end - start >= length else None


def without(run: Run, taken: list[Run]) -> list[Run]:
    """What is left of a run once others are cut out of it."""
    left: list[Run] = []
    start, end = run
    for begin, stop in sorted(taken):
        if stop <= start or begin >= end:
            continue
        if begin > start:
            left.append((start, begin))
        start = max(start, stop)
    if start < end:
        left.append((start, end))
    return left
