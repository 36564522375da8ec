"""Does a grant cost the same in a crowded rack?

One pair plays (see `grants`) while, in turn, more processes attach to the rack and more extents fill its
table. The cost per grant is compared with that of the same pair before the crowd came and after it left, so
that a machine that drifts does not look like a rack that does not scale.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from . import bequest_side
from .grants import BATCH, PLAYER_A, PLAYER_B, Game, play_back
from .measure import PAGE_BYTES, Figure, Noise, Outcome, Target

PROCESSES = (16, 64, 256)
QUICK_PROCESSES = (16, 32)
EXTENTS = (1_000, 100_000, 1_000_000)
QUICK_EXTENTS = (1_000, 20_000)
HOLDERS = 4
"""So many processes share the extents: a process can have only so many mappings."""
HOLD_SECONDS = 300.0
GROWTH = Target("at most", 1.5)
REPEATS = 5


def stand_by(orders: Connection, key: str, name: str) -> None:
    """A process of the crowd: attached, and idle until its pipe closes."""
    with bequest_side.join(key).attach(name):
        orders.send("ready")
        orders.poll(None)


def hold(orders: Connection, key: str, name: str) -> None:
    """Allocates regions of one page until it has as many as it is told to hold."""
    with bequest_side.join(key).attach(name) as me:
        held: list[Any] = []
        try:
            while True:
                wanted = orders.recv()
                held += [me.alloc(PAGE_BYTES) for _ in range(wanted - len(held))]
                orders.send(len(held))
        except EOFError:
            return


class Field:
    """The pair that is measured, and the levels found so far."""

    def __init__(self, game: Game, seconds: float, noise: Noise) -> None:
        self.game, self.seconds, self.noise = game, seconds, noise
        game.grants_per_second(seconds)

    def cost_of_grant(self) -> float:
        """Seconds per grant: the median of some games."""
        costs = []
        for _ in range(REPEATS):
            self.noise.sample()
            costs.append(1 / self.game.grants_per_second(self.seconds))
        return statistics.median(costs)


def with_crowd(field: Field, key: str, levels: tuple[int, ...]) -> dict[int, float]:
    """The cost of a grant with so many processes attached, the pair included."""
    costs: dict[int, float] = {}
    with ExitStack() as crowd:
        attached = 2
        for level in levels:
            # Not spawn: a fork server that has imported bequest makes 254 processes in seconds, and they only stand by.
            newcomers = [
                crowd.enter_context(
                    bequest_side.partner(stand_by, key, f"bystander-{number}", method="forkserver")
                )
                for number in range(attached, level)
            ]
            for newcomer in newcomers:
                newcomer.recv()
            attached = level
            costs[level] = field.cost_of_grant()
    return costs


def with_extents(field: Field, rack: Any, levels: tuple[int, ...]) -> dict[int, float]:
    """The cost of a grant with about so many extents in the rack."""
    costs: dict[int, float] = {}
    key = bequest_side.rack_key(rack)
    with ExitStack() as holders:
        orders = [
            holders.enter_context(bequest_side.partner(hold, key, f"holder-{number}"))
            for number in range(HOLDERS)
        ]
        for level in levels:
            for order in orders:
                order.send(level // HOLDERS)
            for order in orders:
                if not order.poll(HOLD_SECONDS):
                    raise TimeoutError(f"no {level} extents within {HOLD_SECONDS:.0f} s")
                order.recv()
            costs[bequest_side.extents(rack)] = field.cost_of_grant()
    return costs


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("scale")
    rack = bequest_side.connect()
    key = bequest_side.rack_key(rack)
    arguments = (key, PLAYER_B, PLAYER_A, BATCH)
    with rack.attach(PLAYER_A) as me, bequest_side.partner(play_back, *arguments) as orders:
        game = Game(me, PLAYER_B, orders)
        field = Field(game, 0.1 if quick else 0.3, noise)
        before = field.cost_of_grant()
        say("scale: attaching a crowd")
        crowd = with_crowd(field, key, QUICK_PROCESSES if quick else PROCESSES)
        say("scale: filling the table")
        table = with_extents(field, rack, QUICK_EXTENTS if quick else EXTENTS)
        after = field.cost_of_grant()
        game.close()
    alone = statistics.mean((before, after))
    outcome.raw.update(before=before, after=after, processes=crowd, extents=table)
    outcome.figures.append(Figure("cost of a grant, the pair alone", alone, "s"))
    for costs, what in ((crowd, "processes attached"), (table, "extents in the rack")):
        for level, cost in costs.items():
            note = f"{cost * 1e6:.2f} µs a grant"
            outcome.figures.append(
                Figure(f"cost of a grant with {level:,} {what}, over alone", cost / alone, "", GROWTH, note)
            )
    return outcome
