"""How many grants a second one pair of processes makes, and how many allocations a second one process.

The pair plays ball with two batches of 4 KiB regions: each side accepts whatever has come and grants it back
at once, so that both work all the time. Every grant closes the pages in one process and opens them in the
other. The rate counts the grants of both directions; each is one ownership change from end to end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .measure import KIB, PAGE_BYTES, Figure, Noise, Outcome, Target

BATCH = 256
ALLOC_BYTES = 64 * KIB
REPEATS = 5

STOP = b"stop"
PLAYER_A, PLAYER_B = "player-a", "player-b"


def play_back(orders: Connection, key: str, name: str, other: str, batch: int) -> None:
    """Process B: grants back what comes until a message stops the game; the next follows, or the end."""
    with bequest_side.join(key).attach(name) as me:
        orders.send("ready")
        while orders.poll(None):
            try:
                orders.recv()
            except EOFError:
                return
            stopped = False
            while not stopped:
                regions = me.accept_all(batch, PATIENCE_SECONDS)
                if not regions[-1].nbytes:  # a message, always the last of its batch
                    regions.pop()
                    stopped = True
                if regions:
                    me.grant_all(regions, other)
            orders.send("stopped")


class Game:
    """The side in A, which keeps the time."""

    def __init__(self, me: Any, other: str, orders: Connection, batch: int = BATCH) -> None:
        self.me, self.other, self.orders, self.batch = me, other, orders, batch
        orders.recv()  # B is attached
        self.balls = [me.alloc(PAGE_BYTES) for _ in range(2 * batch)]

    def grants_per_second(self, seconds: float) -> float:
        """Plays for that long; returns the grants of both sides per second."""
        me, other, batch = self.me, self.other, self.batch
        self.orders.send("play")
        grants = 0
        started = time.perf_counter()
        for half in (self.balls[:batch], self.balls[batch:]):
            me.grant_all(half, other)
        while (elapsed := time.perf_counter() - started) < seconds:
            regions = me.accept_all(batch, PATIENCE_SECONDS)
            me.grant_all(regions, other)
            grants += 2 * len(regions)  # theirs, which we took, and ours
        me.send(other, STOP)
        self.balls = []
        while len(self.balls) < 2 * batch:
            self.balls += me.accept_all(2 * batch, PATIENCE_SECONDS)
        self.orders.recv()  # B has seen the end of this game, so that it takes no ball of the next for one of this
        return grants / elapsed

    def close(self) -> None:
        """Frees the regions."""
        for ball in self.balls:
            ball.free()


def allocations_per_second(me: Any, seconds: float) -> float:
    """Rounds of alloc and free of 64 KiB, in steady state."""
    alloc = me.alloc
    count = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(500):
            alloc(ALLOC_BYTES).free()
        count += 500
    return count / elapsed


def repeated(measure: Callable[[], float], noise: Noise) -> list[float]:
    """The results of some repeats; the first, which warms up, does not count."""
    measure()
    results = []
    for _ in range(REPEATS):
        noise.sample()
        results.append(measure())
    return results


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    seconds = 0.2 if quick else 0.5
    outcome = Outcome("grants")
    rack = bequest_side.connect()
    with rack.attach(PLAYER_A) as me:
        for batch, target in ((BATCH, Target("at least", 100_000)), (1, None)):
            say(f"grants: batches of {batch}")
            arguments = (bequest_side.rack_key(rack), f"{PLAYER_B}-{batch}", PLAYER_A, batch)
            with bequest_side.partner(play_back, *arguments) as orders:
                game = Game(me, f"{PLAYER_B}-{batch}", orders, batch)
                rates = repeated(lambda: game.grants_per_second(seconds), noise)  # noqa: B023 - called at once
                game.close()
            outcome.raw[f"grants_per_second_batch_{batch}"] = rates
            name = f"grants of 4 KiB, one pair, batches of {batch}"
            outcome.figures.append(Figure(name, statistics.median(rates), "/s", target))
        say("grants: alloc and free")
        rates = repeated(lambda: allocations_per_second(me, seconds), noise)
        outcome.raw["allocations_per_second"] = rates
        target = Target("at least", 200_000)
        outcome.figures.append(Figure("alloc + free of 64 KiB", statistics.median(rates), "/s", target))
    say("grants: the table alone")
    table = bequest_side.table_bench(ALLOC_BYTES)
    outcome.figures.append(
        Figure(
            "grants in the table alone, native",
            table["grants_per_second"] if table else None,
            "/s",
            Target("at least", 1_000_000),
            "" if table else bequest_side.NO_TABLE_BENCH,
        )
    )
    return outcome
