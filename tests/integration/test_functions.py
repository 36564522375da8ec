"""Functions: one effect for each idempotency key, in a heap of one's own and in an actor that is killed."""

from __future__ import annotations

import asyncio

import pytest

import actor_users
import bequest as bq
from actor_users import Account, FunctionCast, charge, remember_two
from racks import MIB, RackUnderTest, Yard

SOON = 10.0


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


def test_a_key_has_one_effect_and_one_result(me: bq.Process) -> None:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        bound = charge.open(heap)
        assert (bound(5, key="a"), bound(5, key="a"), bound(7, key="a"), bound(1, key="b")) == (
            -5,
            -5,
            -5,
            -6,
        )
        assert charge.open(heap).state.balance == -6 and "2 results" in repr(bound)
        with pytest.raises(ZeroDivisionError):
            bound(0, key="c")
        assert bound.state.balance == -6
        assert bound(2, key="c") == -8  # what failed can be tried again
        with pytest.raises(TypeError, match="a str, not int"):
            bound(1, key=1)
        with pytest.raises(TypeError, match="key"):
            bound(1)


def test_it_is_a_plain_function_too(me: bq.Process) -> None:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        assert charge(Account(heap, "account"), 3) == -3
        assert charge.__name__ == "charge" and repr(charge) == "<bequest.Function charge>"


def test_results_that_cannot_be_kept_undo_the_effect(me: bq.Process) -> None:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        bound = actor_users.give_rubbish.open(heap)
        with pytest.raises(bq.NotSendable):
            bound(key="a")
        assert bound.state.balance == 0


def test_the_oldest_results_are_forgotten(me: bq.Process) -> None:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        bound = remember_two.open(heap)
        assert [bound(key=key) for key in "abcabc"] == [1, 2, 3, 4, 5, 6]
        assert (bound(key="c"), bound(key="b")) == (6, 5)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"annotated with a bequest\.Struct"):
        bq.function(lambda state: None)
    with pytest.raises(ValueError, match="at least one"):
        bq.function(keep=0)


def test_called_elsewhere_and_killed_there(yard: Yard, me: bq.Process) -> None:
    cast = FunctionCast(yard)
    remote = charge.ref(me)
    remote.wait(SOON)
    assert (remote(5, key="a", timeout=SOON), remote(5, key="a", timeout=SOON)) == (-5, -5)
    with pytest.raises(bq.RemoteError, match="ZeroDivisionError"):
        remote(0, key="z", timeout=SOON)
    cast.kill()
    assert remote(9, key="a", timeout=SOON) == -5

    async def twice_each() -> list[int]:
        calls = [remote.call_async(1, key=f"key {number % 50}", timeout=SOON) for number in range(100)]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0.01)
        cast.kill()
        return await waiting

    results = asyncio.run(twice_each())
    assert results[:50] == results[50:] and sorted(results[:50]) == list(range(-55, -5))
    cast.end()
