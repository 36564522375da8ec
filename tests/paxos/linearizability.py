"""Is there an order? A checker of histories, after Wing and Gong (1993), as Lowe (2017) and Porcupine do it.

A history says of each operation when it was asked for, when it was answered, and what the answer was. It is
linearizable if every operation can be given an instant between the two such that, one after another at these instants,
they give those answers. Operations on different keys do not matter to each other, so each key is looked at by itself.

The search tries operations that may be next (asked for before any that is still to come was answered), goes back
where it is stuck, and remembers which sets of operations have led to which state, so as not to try the same twice. An
operation that was never answered may have happened at any time after it was asked for, or never.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

Step = Callable[
    [bytes, "Operation"], "bytes | None"
]  # the state after it, or None: it cannot have answered that


class Operation:
    """What a client did with a key. `kind` and `arguments` are the model's to understand."""

    __slots__ = ("arguments", "asked", "ended", "key", "kind", "result")

    def __init__(
        self,
        key: bytes,
        kind: str,
        arguments: tuple[bytes, ...],
        asked: float,
        ended: float = math.inf,
        result: bytes | None = None,
    ) -> None:
        self.key = key
        self.kind = kind
        self.arguments = arguments
        self.asked = asked
        self.ended = ended
        self.result = result  # None while there is no answer

    def end(self, time: float, result: bytes) -> None:
        self.ended = time
        self.result = result

    def __repr__(self) -> str:
        words = " ".join(map(repr, (self.key, *self.arguments)))
        return f"{self.asked:.4f}-{self.ended:.4f} {self.kind} {words} -> {self.result!r}"


def step_of_registers(state: bytes, operation: Operation) -> bytes | None:
    """Registers whose writes answer with what was there before, as in `registers.py`."""
    result = operation.result
    if result is not None and result != state:
        return None
    match operation.kind, operation.arguments:
        case "set", (value,):
            return value
        case "append", (value,):
            return state + b"," + value
        case "cas", (expected, value):
            return value if state == expected else state
    return state


def find_violation(
    history: Iterable[Operation], step: Step = step_of_registers, initial: bytes = b""
) -> list[Operation] | None:
    """The operations on a key for which there is no order; None if every key has one."""
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    for operations in by_key.values():
        if not has_order(operations, step, initial):
            return operations
    return None


def has_order(operations: list[Operation], step: Step, initial: bytes) -> bool:
    """Can these have happened one after another?"""
    operations = sorted(operations, key=lambda operation: operation.asked)
    everything = (1 << sum(operation.result is not None for operation in operations)) - 1
    # Bits of answered operations come first, so that "all that were answered are done" is one comparison.
    bit: dict[Operation, int] = {}
    for is_answered in (True, False):
        for operation in operations:
            if (operation.result is not None) == is_answered:
                bit[operation] = 1 << len(bit)
    seen = {(0, initial)}
    stack = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & everything == everything:
            return True
        horizon = math.inf  # an operation asked for after this cannot be next
        for operation in operations:
            if operation.asked > horizon:
                break
            if done & bit[operation]:
                continue
            horizon = min(horizon, operation.ended)
            after = step(state, operation)
            if after is not None and (place := (done | bit[operation], after)) not in seen:
                seen.add(place)
                stack.append(place)
    return False
