"""Who is a straggler, by the rules (paper, section 5)."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed")

from bequest.dask.pace import EVIDENCE_SECONDS, MOVES_MAX, SILENCE, SLOW_FOR, Pace


def told(pace: Pace, key: str, worker: str, rate: float, until: float, since: float = 0.0) -> None:
    """A task does so many steps a second, and its worker says so four times a second."""
    for quarter in range(int((until - since) * 4) + 1):
        pace.report(key, "walk", worker, int(rate * quarter / 4), since + quarter / 4)


def test_a_task_three_times_slower_than_its_siblings_is_a_straggler() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 4)
    told(pace, "slow", "d", 3, 4)
    assert pace.stragglers(4) == ["slow"]


def test_one_half_as_fast_is_not() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 4)
    told(pace, "half", "d", 5, 4)
    assert pace.stragglers(4) == []


def test_nobody_is_judged_before_the_time() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 4)
    told(pace, "slow", "d", 0, 4, since=4 - EVIDENCE_SECONDS + 0.25)
    assert pace.stragglers(4) == []
    pace.report("slow", "walk", "d", 0, 4.25)
    assert pace.stragglers(4.25) == ["slow"]


def test_nobody_is_judged_by_too_few_siblings_or_by_those_of_other_kinds_or_on_the_same_worker() -> None:
    pace = Pace()
    told(pace, "on a", "a", 10, 4)
    told(pace, "slow", "d", 0, 4)
    told(pace, "beside it", "d", 10, 4)
    for quarter in range(17):
        pace.report("other", "crawl", "b", quarter * 10, quarter / 4)
    assert pace.stragglers(4) == []
    told(pace, "on c", "c", 10, 4)
    assert pace.stragglers(4) == ["slow"]


def test_long_steps_take_the_time_of_three() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 0.5, 20)
    told(pace, "slow", "d", 0, 5.75)
    assert pace.stragglers(5.75) == []
    told(pace, "slow", "d", 0, 6)
    assert pace.stragglers(6) == ["slow"]


def test_those_that_have_ended_are_siblings_still() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 4)
        pace.ended(f"on {worker}")
    told(pace, "slow", "d", 1, 10, since=6)
    assert pace.stragglers(10) == ["slow"]


def test_what_a_task_did_before_it_became_slow_does_not_count() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 23)
    told(pace, "slowed", "d", 10, 20)
    assert pace.stragglers(20) == []
    for quarter in range(1, 13):
        pace.report("slowed", "walk", "d", 200, 20 + quarter / 4)
    assert pace.stragglers(23) == ["slowed"]


def test_a_silent_worker_is_left_alone_for_a_while() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 10)
    told(pace, "silent", "d", 10, 5)
    assert pace.stragglers(5 + SILENCE) == []
    assert pace.stragglers(5.25 + SILENCE) == ["silent"]


def test_what_was_moved_is_judged_anew_and_not_moved_for_ever() -> None:
    pace = Pace()
    for worker in "abc":
        told(pace, f"on {worker}", worker, 10, 100)
    now = 4.0
    for _ in range(MOVES_MAX):
        told(pace, "slow", "d", 0, now, since=now - 4)
        assert pace.stragglers(now) == ["slow"]
        pace.moved("slow", now)
        assert pace.is_slow("d", now)
        assert pace.stragglers(now + 1) == []
        now += 5
    told(pace, "slow", "d", 0, now + 5, since=now)
    assert pace.stragglers(now + 5) == []
    assert not pace.is_slow("d", now + SLOW_FOR)
