"""Placement of memory and processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bequest.protocol.placement import POLICIES, Candidate, choose_compute, choose_element

CANDIDATES = [Candidate(0, 100, 50), Candidate(1, 30, 0), Candidate(2, 60, 10), Candidate(3, 60, 10)]


@pytest.mark.parametrize(
    ("policy", "nbytes", "chosen"),
    [
        ("best-fit", 20, 1),
        ("best-fit", 40, 2),
        ("best-fit", 100, 0),
        ("worst-fit", 20, 0),
        ("spread", 20, 1),
        ("spread", 40, 2),
        ("spread", 61, 0),
    ],
)
def test_policies(policy: str, nbytes: int, chosen: int) -> None:
    assert choose_element(policy, CANDIDATES, nbytes) == chosen


def test_where_it_fits_nowhere() -> None:
    assert all(choose_element(policy, CANDIDATES, 101) is None for policy in POLICIES)
    assert choose_element("best-fit", [], 1) is None


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="best-fit, worst-fit, spread"):
        choose_element("first-fit", CANDIDATES, 1)


@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
    st.integers(1, 9),
)
def test_a_choice_always_fits(policy: str, rooms: list[tuple[int, int]], nbytes: int) -> None:
    candidates = [Candidate(number, free, held) for number, (free, held) in enumerate(rooms)]
    chosen = choose_element(policy, candidates, nbytes)
    assert (chosen is None) == all(free < nbytes for free, _ in rooms)
    assert chosen is None or rooms[chosen][0] >= nbytes


def test_compute() -> None:
    assert choose_compute({"a": 2, "b": 1, "c": 1}) == "b"
