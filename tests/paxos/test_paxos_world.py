"""The consensus in a simulated world: many seeds. A failure names its seed; `World(seed).run()` is that run again.

More seeds: `make soak`, or BEQUEST_PAXOS_SEEDS=100000 make test ARGS=tests/paxos/test_paxos_world.py.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import pytest

import soaking
from world import World

SEEDS = int(os.environ.get("BEQUEST_PAXOS_SEEDS") or soaking.size(ci=400, soak=5000))


def failures(seeds: Iterable[int]) -> dict[int, str]:
    """What was found, by seed."""
    found: dict[int, str] = {}
    for seed in seeds:
        try:
            World(seed).run()
        except Exception:
            found[seed] = traceback.format_exc(limit=-5)
    return found


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(60 + SEEDS // 2)
def test_nothing_goes_wrong_whatever_goes_wrong() -> None:
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunks = [range(start, SEEDS, workers * 4) for start in range(workers * 4)]
        found = {seed: text for part in pool.map(failures, chunks) for seed, text in part.items()}
    first = min(found, default=None)
    assert first is None, f"{len(found)} of {SEEDS} seeds failed, the first of them {first}:\n{found[first]}"
