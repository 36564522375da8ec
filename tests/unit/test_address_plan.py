"""The address plan: runs never overlap, stay at home, and are found first-fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bequest import ids
from bequest.errors import BadName
from bequest.limits import HUGE_PAGE_BYTES, PROCESS_SPACE_BYTES
from bequest.protocol.address_plan import AddressPlan, without

MIB2 = HUGE_PAGE_BYTES


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 40 * MIB2), st.integers(0, 99)),
        max_size=60,
    )
)
def test_runs_are_disjoint_aligned_and_at_home(steps: list[tuple[bool, int, int, int]]) -> None:
    plan = AddressPlan()
    held: list[tuple[int, int]] = []  # (address, length)
    for takes, home, nbytes, which in steps:
        if takes or not held:
            address = plan.reserve(home, nbytes)
            assert address is not None and address % MIB2 == 0
            length = -(-nbytes // MIB2) * MIB2
            assert ids.home_of(address) == ids.home_of(address + length - 1) == home
            assert all(address + length <= other or other + size <= address for other, size in held)
            held.append((address, length))
        else:
            address, _ = held.pop(which % len(held))
            plan.release(address)
    for home in (1, 2, 3):
        assert plan.in_use(home) == any(ids.home_of(address) == home for address, _ in held)


def test_the_lowest_gap_that_fits_is_taken() -> None:
    plan = AddressPlan()
    start, _ = ids.space_of(5)
    first, second, third = (plan.reserve(5, size * MIB2) for size in (2, 1, 3))
    assert (first, second, third) == (start, start + 2 * MIB2, start + 3 * MIB2)
    assert first is not None and second is not None
    plan.release(first)
    assert plan.reserve(5, 3 * MIB2) == start + 6 * MIB2
    assert plan.reserve(5, 2 * MIB2) == start
    with pytest.raises(ValueError, match="no run"):
        plan.release(start + MIB2)


def test_a_process_has_64_gib_and_no_more() -> None:
    plan = AddressPlan()
    assert plan.reserve(511, PROCESS_SPACE_BYTES) == ids.space_of(511)[0]
    assert plan.reserve(511, 1) is None
    assert plan.reserve(510, 1) is not None


@pytest.mark.parametrize("nobody", [0, 512, 1023, -1])
def test_only_processes_own_addresses(nobody: int) -> None:
    with pytest.raises(ValueError, match="no process id"):
        ids.space_of(nobody)
    assert not ids.is_process_id(nobody)


@given(st.integers(0, 50), st.integers(0, 50), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_what_is_left_of_a_run(start: int, length: int, taken: list[tuple[int, int]]) -> None:
    run = (start, start + length)
    runs = [(low, low + size) for low, size in taken]
    left = {point for low, high in without(run, runs) for point in range(low, high)}
    assert left == set(range(*run)) - {point for low, high in runs for point in range(low, high)}


@pytest.mark.parametrize("name", ["a", "x" * 63, "é" * 31, "mapper-0", "日本"])
def test_good_names(name: str) -> None:
    assert ids.check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "a/b", "a\0b", "tab\t", "\x1b[31m", "\ud800"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadName):
        ids.check_name(name)
