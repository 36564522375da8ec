"""The checker of histories is shown some: those that have an order, and those that have none."""

from __future__ import annotations

import math
from random import Random

import pytest

from linearizability import Operation, find_violation, step_of_registers

K = b"k"


def op(kind: str, asked: float, ended: float, result: bytes | None, *arguments: bytes) -> Operation:
    return Operation(K, kind, arguments, asked, ended, result)


def unanswered(kind: str, asked: float, *arguments: bytes) -> Operation:
    return op(kind, asked, math.inf, None, *arguments)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [op("set", 0, 1, b"", b"1"), op("get", 2, 3, b"1")],
        [op("set", 0, 9, b"", b"1"), op("get", 1, 2, b""), op("get", 3, 4, b"1")],
        [op("set", 0, 9, b"2", b"1"), op("set", 0, 9, b"", b"2"), op("get", 10, 11, b"1")],
        [unanswered("set", 0, b"1"), op("get", 5, 6, b""), op("get", 7, 8, b"1")],
        [unanswered("set", 0, b"1"), op("get", 5, 6, b"")],
        [op("set", 0, 1, b"", b"1"), op("cas", 2, 3, b"1", b"0", b"9"), op("get", 4, 5, b"1")],
    ],
)
def test_what_has_an_order_passes(history: list[Operation]) -> None:
    assert find_violation(history) is None


@pytest.mark.parametrize(
    "history",
    [
        [op("set", 0, 1, b"", b"1"), op("get", 2, 3, b"")],  # a lost write
        [op("get", 0, 1, b"1"), op("set", 2, 3, b"", b"1")],  # read before it was written
        [op("set", 0, 9, b"", b"1"), op("get", 1, 2, b"1"), op("get", 3, 4, b"")],  # there, and gone again
        [op("append", 0, 1, b"", b"1"), op("get", 2, 3, b",1,1")],  # done twice
        [unanswered("set", 0, b"1"), op("get", 5, 6, b"1"), op("get", 7, 8, b"")],
        [op("set", 0, 1, b"", b"1"), op("set", 2, 3, b"", b"2")],  # the second did not see the first
    ],
)
def test_what_has_none_is_found(history: list[Operation]) -> None:
    assert find_violation(history) == history


def test_operations_on_other_keys_do_not_matter() -> None:
    history = [op("set", 0, 1, b"", b"1"), Operation(b"other", "get", (), 2, 3, b"")]
    assert find_violation(history) is None


@pytest.mark.parametrize("seed", range(20))
def test_real_orders_pass_and_a_changed_answer_is_found(seed: int) -> None:
    """A history made from an order, with intervals around its instants; then one answer in it is another."""
    random = Random(seed)
    state, history = b"", []
    for instant in range(40):
        kind = random.choice(("get", "set", "append"))
        arguments = () if kind == "get" else (b"%d" % instant,)
        asked, ended = instant - random.random() * 4, instant + random.random() * 4
        operation = Operation(K, kind, arguments, asked, ended, state)
        history.append(operation)
        after = step_of_registers(state, operation)
        assert after is not None
        state = after
    random.shuffle(history)
    assert find_violation(history) is None
    random.choice(history).result = b"never there"
    assert find_violation(history) is not None
