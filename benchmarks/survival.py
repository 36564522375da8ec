"""What goes on while a part of the rack, or of its memory, is gone.

The Rack MMU is killed with SIGKILL again and again. Timed from the kill until a control operation that was asked for
at once (publishing a name) has succeeded. Meanwhile two members of a group hand one region back and forth, which needs
no daemon: counted are the grants in those pauses, and the longest time between two of them, beside the same for
stretches of the same length in which nobody is killed.

And one interpreter touches failed memory, again and again, and catches each exception.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .heirs import receive
from .measure import KIB, PAGE_BYTES, Figure, Noise, Outcome, Target, quantity, timed
from .peers.peer import as_bytes

KILLS, QUICK_KILLS = 20, 3
CALM_SECONDS = 0.8
"""Between two kills: a daemon that dies sooner than after half a second is started anew with a pause."""
FAILED_BYTES = 64 * KIB
FAILURES, QUICK_FAILURES = 10_000, 1_000

CONTROL = Target("at most", 0.1)

SERVER, RETURNER = "server", "returner"
Pause = tuple[float, float]


# --- without the Rack MMU -------------------------------------------------------------------------------------------


def serve(orders: Connection, key: str) -> None:
    """Grants a region and accepts it back until a word comes; then tells when each grant had returned."""
    with bequest_side.join(key).attach(SERVER) as me:
        me.wait_for(RETURNER, PATIENCE_SECONDS)
        region = me.alloc(PAGE_BYTES)
        returned = []
        orders.send("ready")
        while not orders.poll(0):
            region.grant(RETURNER)
            region = me.accept(PATIENCE_SECONDS)
            returned.append(time.perf_counter())
        me.send(RETURNER, b"stop")
        orders.send(returned)


def give_back(orders: Connection, key: str) -> None:
    """The other side of the table."""
    with bequest_side.join(key).attach(RETURNER) as me:
        while (region := me.accept(PATIENCE_SECONDS)).nbytes:
            region.grant(SERVER)


def kill_mmu(rack: Any, me: Any, region: Any, number: int) -> Pause:
    """From the kill until a name has been published."""
    (pid,) = bequest_side.daemon_pids(rack, "mmu")
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    me.publish(f"/after/{number}", region)
    return killed, time.perf_counter()


def pauses(rack: Any, count: int, noise: Noise) -> tuple[list[Pause], list[float]]:
    """The times without a Rack MMU, and those at which a grant had returned."""
    key = bequest_side.rack_key(rack)
    found = []
    with (
        rack.attach("operator") as me,
        bequest_side.partner(give_back, key),
        bequest_side.partner(serve, key) as server,
    ):
        region = me.alloc(PAGE_BYTES)
        receive(server)
        for number in range(count):
            noise.sample()
            time.sleep(CALM_SECONDS)
            found.append(kill_mmu(rack, me, region, number))
        server.send("stop")
        returned: list[float] = receive(server)
        region.free()
    return found, returned


def exchanged(returned: Sequence[float], pause: Pause) -> tuple[int, float]:
    """How many grants returned in that time, and the longest wait for the next one."""
    first, last = bisect_left(returned, pause[0]), bisect_right(returned, pause[1])
    around = returned[max(0, first - 1) : last + 1]
    return last - first, max(after - before for before, after in pairwise(around))


def _grant_figures(gone: Sequence[Pause], returned: Sequence[float]) -> list[Figure]:
    calm = [(start - CALM_SECONDS / 2, end - CALM_SECONDS / 2) for start, end in gone]
    without = [exchanged(returned, pause) for pause in gone]
    with_one = [exchanged(returned, pause) for pause in calm]
    counts, calm_counts = ([count for count, _ in found] for found in (without, with_one))
    gap = quantity(max(gap for _, gap in with_one), "s")
    return [
        Figure(
            "two members hand a region to and fro: round trips while there is no Rack MMU, fewest in a pause",
            min(counts),
            "",
            Target("at least", 1),
            f"median {statistics.median(counts):.0f}; {statistics.median(calm_counts):.0f} in as long with one",
        ),
        Figure(
            "the longest that one of them took meanwhile",
            max(gap for _, gap in without),
            "s",
            None,
            f"{gap} in as long with one",
        ),
    ]


# --- without memory -------------------------------------------------------------------------------------------------


def fail_in_a_row(orders: Connection, key: str, count: int) -> None:
    """Touches failed memory so often; tells how many exceptions were caught, and how long that took."""
    from bequest.errors import MemoryFailure

    rack = bequest_side.join(key)
    with rack.attach("unlucky") as me:
        region = me.alloc(FAILED_BYTES)
        array = as_bytes(region)
        array[:] = 1
        bequest_side.break_memory(rack, region.address, FAILED_BYTES)
        caught = 0
        started = time.perf_counter()
        for number in range(count):
            try:
                array[number % FAILED_BYTES] = 2
            except MemoryFailure:
                caught += 1
        orders.send((caught, time.perf_counter() - started))
        del array
        region.free()


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("survival")
    rack = bequest_side.connect()
    say("survival: killing the Rack MMU")
    gone, returned = pauses(rack, QUICK_KILLS if quick else KILLS, noise)
    say("survival: touching failed memory")
    count = QUICK_FAILURES if quick else FAILURES
    with bequest_side.partner(fail_in_a_row, bequest_side.rack_key(rack), count) as unlucky:
        caught, seconds = receive(unlucky)
    name = "kill -9 of the Rack MMU: a control operation asked for at once has succeeded"
    outcome.figures.append(timed(name, [end - start for start, end in gone], CONTROL))
    outcome.figures += _grant_figures(gone, returned)
    outcome.figures.append(
        Figure(
            "memory failures in a row, survived by one interpreter",
            caught,
            "",
            Target("at least", count),
            f"{quantity(seconds / count, 's')} each",
        )
    )
    outcome.raw.update(pauses=gone, round_trips=len(returned), failures=caught, failure_seconds=seconds)
    return outcome
