"""Tasks that go on where they stood when their worker is killed (paper, section 5)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import distributed
import pytest

import bequest.dask
from bequest.dask import Progress
from clusters import cluster_of
from steps import (
    let_go,
    note,
    require_nothing_left,
    require_resumed,
    steps_of,
    wait_for_steps,
    walk,
    walked,
)

WORKERS = 3  # who are killed and come back
STEPS = 60


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def kill_in_step(notes: Path, step: int, moves: int = 0) -> None:
    """Kills who waits in that step, when the task has been moved so often before; the next one does not wait."""
    os.kill(wait_for_steps(notes, step + 1 + moves), signal.SIGKILL)
    let_go(notes, step)


def test_a_killed_worker_s_task_goes_on_where_it_stood(client: distributed.Client, notes: Path) -> None:
    future = client.submit(walk, notes, STEPS, waits_in=(30,))
    kill_in_step(notes, 30)
    assert future.result() == walked(STEPS)
    require_resumed(notes, STEPS)
    require_nothing_left(client)


def test_it_is_killed_twice(client: distributed.Client, notes: Path) -> None:
    future = client.submit(walk, notes, STEPS, waits_in=(20, 40))
    kill_in_step(notes, 20)
    kill_in_step(notes, 40, moves=1)
    assert future.result() == walked(STEPS)
    require_resumed(notes, STEPS, moves=2)
    require_nothing_left(client)


def test_the_task_of_the_only_worker_is_gone_on_with_by_the_one_that_its_nanny_starts(notes: Path) -> None:
    with cluster_of(1) as client:
        future = client.submit(walk, notes, STEPS, waits_in=(30,))
        kill_in_step(notes, 30)
        assert future.result() == walked(STEPS)
        require_resumed(notes, STEPS)


def test_progress_is_not_another_task_s(client: distributed.Client, notes: Path, tmp_path: Path) -> None:
    """A task that nobody wants any more takes its progress with it, whatever has the same key later."""
    future = client.submit(walk, notes, STEPS, key="walk-it", waits_in=(10,))
    pid = wait_for_steps(notes, 11)
    future.release()
    os.kill(pid, signal.SIGKILL)
    client.wait_for_workers(3, timeout=30)
    require_nothing_left(client)
    again = client.submit(walk, tmp_path / "others", 5, 0, key="walk-it")
    assert again.result() == walked(5)
    assert [step for step, _ in steps_of(tmp_path / "others")] == list(range(5))


def test_a_task_that_fails_leaves_nothing(client: distributed.Client) -> None:
    with pytest.raises(ZeroDivisionError):
        client.submit(bequest.dask.resumable(divide), 1, pure=False).result()
    require_nothing_left(client)


def divide(progress: Progress, by: int) -> None:
    for step in progress(range(4)):
        progress["quotient"] = by / (2 - step)


# --- loops and state -------------------------------------------------------------------------------------------------


@bequest.dask.resumable
def two_loops(progress: Progress, notes: Path, kill_at: int) -> tuple[list[int], list[str], bool]:
    """One that is left by break, and one over an iterator. Kills its worker in a step, once."""
    for item in progress(range(1000)):
        note(notes, item)
        progress["seen"] = [*progress.get("seen", []), item]
        if item == 5:
            break
    for letter in progress(iter("abcdef")):
        note(notes, ord(letter))
        progress["letters"] = [*progress.get("letters", []), letter]
        if len(steps_of(notes)) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress["seen"], progress["letters"], progress.resumed


def test_loops_that_are_over_are_passed_by(client: distributed.Client, notes: Path) -> None:
    seen, letters, resumed = client.submit(two_loops, notes, 9).result()
    assert (seen, letters, resumed) == ([0, 1, 2, 3, 4, 5], list("abcdef"), True)
    assert [step for step, _ in steps_of(notes)] == [0, 1, 2, 3, 4, 5, *map(ord, "abccdef")]


@bequest.dask.resumable
def killed_in_a_step(progress: Progress, notes: Path) -> tuple[int, int]:
    """Changes two things in each step, and dies between them, once."""
    for step in progress(range(8)):
        note(notes, step)
        progress["first"] = progress.get("first", 0) + 1
        if len(steps_of(notes)) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        progress["second"] = progress.get("second", 0) + 1
    return progress["first"], progress["second"]


def test_a_step_counts_whole_or_not_at_all(client: distributed.Client, notes: Path) -> None:
    assert client.submit(killed_in_a_step, notes).result() == (8, 8)


@bequest.dask.resumable(nbytes=64 << 10)
def too_much(progress: Progress) -> None:
    progress["all"] = bytes(1 << 20)


def test_state_that_does_not_fit_is_told(client: distributed.Client) -> None:
    with pytest.raises(Exception, match="the heap has no room"):  # Dask cannot pickle kinds of MemoryError
        client.submit(too_much, pure=False).result()
    require_nothing_left(client)


@bequest.dask.resumable
def caught(progress: Progress) -> dict[str, Any]:
    try:
        for step in progress(range(3)):
            progress["step"] = step
            if step == 1:
                raise LookupError
    except LookupError:
        progress["caught"] = True
    return dict(progress)


def test_an_exception_that_the_task_deals_with_ends_the_step(client: distributed.Client) -> None:
    expected = {"step": 1, "caught": True}
    assert client.submit(caught, pure=False).result() == caught() == expected


def test_progress_as_a_mapping(client: distributed.Client) -> None:
    @bequest.dask.resumable
    def used(progress: Progress) -> list[Any]:
        progress["a"] = {1: "one"}
        progress["b"] = 2
        del progress["b"]
        table = progress.array("table", (3, 2), "int32")
        table[1] = 5
        with table.change(slice(2, 3)) as part:
            part[:] = 7
        return [
            dict(progress),
            len(progress),
            "b" in progress,
            table.array.tolist(),
            len(table),
            progress.resumed,
        ]

    expected = [{"a": {1: "one"}}, 1, False, [[0, 0], [5, 5], [7, 7]], 3, False]
    assert used() == expected  # without a rack
    assert client.submit(used, pure=False).result() == expected


# --- without a rack --------------------------------------------------------------------------------------------------


def test_without_a_rack_it_is_an_ordinary_function(notes: Path) -> None:
    assert walk(notes, 5, 0) == walked(5)
    with cluster_of(1, processes=False) as client:
        assert client.submit(walk, notes, 5, 0).result() == walked(5)


def test_steps_do_not_nest() -> None:
    @bequest.dask.resumable
    def nested(progress: Progress) -> None:
        for _ in progress("ab"):
            for _ in progress("cd"):
                pass

    with pytest.raises(RuntimeError, match="one loop"):
        nested()


def test_only_plain_functions_are_resumable() -> None:
    async def coroutine(progress: Progress) -> None: ...

    with pytest.raises(TypeError, match="coroutine is not a plain function"):
        bequest.dask.resumable(coroutine)


def test_two_at_once_on_one_worker_have_each_their_own(client: distributed.Client, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    futures = client.map(walk, paths, [20 + number for number in range(4)])
    assert client.gather(futures) == [walked(20 + number) for number in range(4)]
    require_nothing_left(client)
