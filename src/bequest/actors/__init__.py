"""Event-driven services whose state outlives their process (paper, section 3.1, "Programming models").

    class Counter(bq.Actor):
        state: Count                           # a bequest.Struct

        def add(self, number: int) -> int:     # one event, one transaction
            self.state.total += number
            return self.state.total

    bq.actors.run(Counter, name="counter")     # or: bequest run-actor module:Counter --standby

    counter = bq.actors.ref(me, "counter")     # from any process of the rack
    counter.send("add", 1)
    counter.call("add", 2, timeout=1)

If the process dies, at any instant, whoever inherits its memory goes on with the next message: none is lost, and none
handled twice. `host` has the theory.

This module only re-exports.
"""

from __future__ import annotations

from bequest.actors.actor import Actor
from bequest.actors.books import DeadLetter
from bequest.actors.function import BoundFunction, Function, FunctionRef, function
from bequest.actors.ref import Ref, ref
from bequest.actors.running import run, stand_by

__all__ = [
    "Actor",
    "BoundFunction",
    "DeadLetter",
    "Function",
    "FunctionRef",
    "Ref",
    "function",
    "ref",
    "run",
    "stand_by",
]
