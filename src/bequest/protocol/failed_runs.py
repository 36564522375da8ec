"""Which runs of a slab have lost their memory, so that the account of it stays short however often that happens.

Neighbours are one run. A slab with more than `SLAB_FAILED_RUNS_MAX` of them has failed as a whole: what is said of it
must fit a packet, and memory that fails in so many places is of no use. The memory element makes that true.
"""

from __future__ import annotations

from collections.abc import Iterable

from bequest.limits import SLAB_FAILED_RUNS_MAX

Run = tuple[int, int]  # offset, bytes


def merged(runs: Iterable[Run], nbytes: int) -> tuple[Run, ...]:
    """In order, neighbours as one; all of the slab's ``nbytes`` if they are too many."""
    found: list[Run] = []
    for offset, length in sorted(runs):
        if found and offset <= sum(found[-1]):
            start, _ = found[-1]
            found[-1] = (start, max(sum(found[-1]), offset + length) - start)
        else:
            found.append((offset, length))
    return tuple(found) if len(found) <= SLAB_FAILED_RUNS_MAX else ((0, nbytes),)


def covers(runs: Iterable[Run], run: Run) -> bool:
    """Whether all of ``run`` lies in one of these, which are merged."""
    return any(offset <= run[0] and sum(run) <= offset + length for offset, length in runs)


def lacking(runs: Iterable[Run], known: Iterable[Run]) -> list[Run]:
    """Those of ``runs`` that are not covered by what is known."""
    here = tuple(known)
    return [run for run in runs if not covers(here, run)]


def overlap(one: Run, other: Run) -> bool:
    """Whether they have anything in common."""
    return one[0] < sum(other) and other[0] < sum(one)


def common(one: Run, other: Run) -> Run | None:
    """What they have in common."""
    low, high = max(one[0], other[0]), min(sum(one), sum(other))
    return (low, high - low) if low < high else None
