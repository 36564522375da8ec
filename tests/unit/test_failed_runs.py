"""The account of what a slab has lost: exact as long as it is short, and short however often memory fails."""

from __future__ import annotations

import random
from itertools import pairwise

from bequest.limits import PAGE_BYTES, SLAB_FAILED_RUNS_MAX
from bequest.protocol.failed_runs import Run, covers, lacking, merged

NBYTES = 4 * SLAB_FAILED_RUNS_MAX * PAGE_BYTES


def pages_of(runs: tuple[Run, ...]) -> set[int]:
    return {page for offset, nbytes in runs for page in range(offset, offset + nbytes, PAGE_BYTES)}


def test_runs_are_merged_and_none_of_them_is_lost() -> None:
    fate = random.Random(3)
    for _ in range(200):
        runs: tuple[Run, ...] = ()
        expected: set[int] = set()
        for _ in range(30):
            run = (fate.randrange(60) * PAGE_BYTES, fate.randint(1, 5) * PAGE_BYTES)
            assert covers(runs, run) == (pages_of((run,)) <= expected)
            expected |= pages_of((run,))
            runs = merged([*runs, run], NBYTES)
            assert pages_of(runs) == expected
            assert all(sum(one) < other[0] for one, other in pairwise(runs))


def test_too_many_runs_are_all_of_the_slab() -> None:
    many = [(2 * page * PAGE_BYTES, PAGE_BYTES) for page in range(SLAB_FAILED_RUNS_MAX)]
    assert merged(many, NBYTES) == tuple(many)
    assert merged([*many, (NBYTES - PAGE_BYTES, PAGE_BYTES)], NBYTES) == ((0, NBYTES),)


def test_what_one_side_lacks() -> None:
    assert lacking([(0, 8), (16, 8)], [(0, 12)]) == [(16, 8)]
    assert lacking([(0, 8)], []) == [(0, 8)]
