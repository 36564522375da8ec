"""Checksums of sealed memory: how fast the memory element makes them, and what the owner notices of it.

The element's code sums a gigabyte in two ways: by its worker when somebody verifies, and by its sweeper, a thread that
runs only where nobody else wants to (here in this process, over the same slab, since the element does not tell when it
has begun). Beside that, what a core of this machine can read and copy.

The owner is pinned to one core and goes through memory of its own, more than its caches hold, while somebody else's
gigabyte is sealed again and again, so that the sweeper always has work; while that is sealed once, so that it is
scrubbed; and while nothing is sealed. The three take turns.
"""

from __future__ import annotations

import os
import select
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from . import bequest_side
from .heirs import receive
from .measure import GIB, MIB, PAGE_BYTES, Figure, Noise, Outcome, Target, size_name

SEALED_BYTES, QUICK_SEALED_BYTES = GIB, 64 * MIB
PASSES, QUICK_PASSES = 7, 3
OWNER_BYTES = 128 * MIB
ROUNDS, QUICK_ROUNDS = 12, 2
PHASE_SECONDS, QUICK_PHASE_SECONDS = 0.6, 0.2
RESEAL_SECONDS = 0.05

A_CORE = Target("at least", 5)
SLOWED = Target("at most", 1.05)

IDLE, SUMMING, SCRUBBING = "nothing is sealed", "the element makes sums", "the element scrubs"


# --- how fast -------------------------------------------------------------------------------------------------------


def rates(count: int, nbytes: int, work: Callable[[], object]) -> list[float]:
    """In GB/s."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        found.append(nbytes / (time.perf_counter() - started) / 1e9)
    return found


def sweep(me: Any, region: Any) -> Callable[[], object]:
    """Has a sweeper of our own sum the region's slab."""
    from bequest._core import SealLedger, Sweeper

    ((slab, offset, nbytes, _),) = region._seals()
    fd, _ = me._links.open_slab(slab)
    size = os.fstat(fd).st_size
    file = SealLedger.make_file(size)
    ledger, sweeper = SealLedger(fd, file, size), Sweeper()
    os.close(fd)
    os.close(file)

    def work() -> None:
        ledger.mark(offset, nbytes)
        sweeper.start(ledger, offset, offset + nbytes, nbytes, True)
        select.select([sweeper.fileno()], [], [])
        swept = sweeper.collect()
        assert swept is not None and swept[1] == nbytes

    return work


def bandwidths(region: Any, passes: int) -> dict[str, list[float]]:
    """What a core can do with that memory besides."""
    words = region.array(np.uint64)
    words[:] = 7
    copy = words.copy()
    return {
        "read": rates(passes, region.nbytes, words.max),
        "copied": rates(passes, region.nbytes, lambda: np.copyto(copy, words)),
    }


def speeds(rack: Any, nbytes: int, passes: int, noise: Noise) -> dict[str, list[float]]:
    """By what was done."""
    with rack.attach("sealer") as me, me.alloc(nbytes) as region:
        found = bandwidths(region, passes)
        region.seal()
        region.verify()
        noise.sample()
        found["verified"] = rates(passes, nbytes, region.verify)
        noise.sample()
        found["swept"] = rates(passes + 1, nbytes, sweep(me, region))[1:]  # the first one maps the slab
        seals = [nbytes / rate / 1e9 for rate in rates(passes, nbytes, region.seal)]
    return found | {"seal_seconds": seals}


# --- what the owner notices -----------------------------------------------------------------------------------------


def keep_busy(orders: Connection, key: str, nbytes: int) -> None:
    """Does with a region of its own what it is told to, until it is told something else."""
    with bequest_side.join(key).attach("other") as me, me.alloc(nbytes) as region:
        region.array()[:] = 1
        orders.send("ready")
        while (order := orders.recv()) != "end":
            if order == IDLE:
                region.unseal()
            elif order == SCRUBBING:
                region.seal()
                region.verify()
            orders.send(order)
            while order == SUMMING and not orders.poll(RESEAL_SECONDS):
                region.seal()


def own(orders: Connection, key: str) -> None:
    """Goes through its own memory for as long as it is told to; how long each pass took."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with bequest_side.join(key).attach("owner") as me, me.alloc(OWNER_BYTES) as region:
        words = region.array(np.uint64)
        words[:] = 1
        orders.send("ready")
        while seconds := orders.recv():
            taken = []
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end:
                words.max()
                taken.append(time.perf_counter() - started)
            orders.send(taken)
        del words


def passes_of_owner(
    rack: Any, nbytes: int, rounds: int, seconds: float, noise: Noise
) -> dict[str, list[float]]:
    """The median time of a pass in each phase, by what went on beside it."""
    key = bequest_side.rack_key(rack)
    found: dict[str, list[float]] = {IDLE: [], SUMMING: [], SCRUBBING: []}
    with (
        bequest_side.partner(keep_busy, key, nbytes) as other,
        bequest_side.partner(own, key) as owner,
    ):
        receive(other), receive(owner)
        for number in range(rounds):
            noise.sample()
            order = list(found)
            for what in order[number % 3 :] + order[: number % 3]:
                other.send(what)
                receive(other)
                owner.send(seconds)
                found[what].append(statistics.median(receive(owner)))
        other.send("end")
        owner.send(0)
    return found


# --- the whole ------------------------------------------------------------------------------------------------------


def _speed_figures(found: dict[str, list[float]], nbytes: int) -> list[Figure]:
    median = {what: statistics.median(values) for what, values in found.items()}
    core = f"a core reads {median['read']:.3g} GB/s, and copies {median['copied']:.3g}"
    size = size_name(nbytes)

    def spread(what: str) -> str:
        return f"{min(found[what]):.3g} to {max(found[what]):.3g}, of {len(found[what])}"

    verify = f"verify() of {size}: the element reads it and compares, on one core"
    swept = f"the sweeper sums {size}, on a core that nobody wants"
    return [
        Figure(verify, median["verified"], "GB/s", A_CORE, f"{spread('verified')}; {core}"),
        Figure(swept, median["swept"], "GB/s", A_CORE, spread("swept")),
        Figure(
            f"seal() of {size}, until it returns",
            median["seal_seconds"],
            "s",
            None,
            f"{nbytes // PAGE_BYTES:,} pages are marked",
        ),
    ]


def _owner_figures(found: dict[str, list[float]]) -> list[Figure]:
    if len(os.sched_getaffinity(0)) < 2:
        why = "with one core, the sweeper runs when the owner does not"
        return [Figure("an owner that reads memory, while the element sums", None, "x", SLOWED, why)]
    figures = []
    for what in (SUMMING, SCRUBBING):
        slowed = [ours / quiet for ours, quiet in zip(found[what], found[IDLE], strict=True)]
        note = f"{min(slowed):.3f} to {max(slowed):.3f} in {len(slowed)} rounds; 1 is no slow-down"
        name = f"a pinned owner's pass over {size_name(OWNER_BYTES)} while {what}, over one while {IDLE}"
        figures.append(Figure(name, statistics.median(slowed), "x", SLOWED, note))
    return figures


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("checksums")
    nbytes = QUICK_SEALED_BYTES if quick else SEALED_BYTES
    rack = bequest_side.connect()
    say("checksums: how fast they are made")
    found = speeds(rack, nbytes, QUICK_PASSES if quick else PASSES, noise)
    say("checksums: what the owner notices")
    rounds, seconds = (QUICK_ROUNDS, QUICK_PHASE_SECONDS) if quick else (ROUNDS, PHASE_SECONDS)
    passes = passes_of_owner(rack, nbytes, rounds, seconds, noise)
    outcome.figures += _speed_figures(found, nbytes) + _owner_figures(passes)
    outcome.raw.update(rates=found, owner_passes=passes)
    return outcome
