"""Resumable tasks whose steps note who has done them."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import distributed
import numpy

import bequest.dask
from bequest.dask import Progress
from bequest.dask.half_done import HalfDone
from bequest.dask.rack_worker import here


def note(notes: Path, step: int) -> None:
    """Says that a step was begun, and in which process."""
    with notes.open("a") as out:
        out.write(f"{step} {os.getpid()}\n")


@bequest.dask.resumable
def walk(
    progress: Progress, notes: Path, count: int, seconds: float = 0.01, waits_in: tuple[int, ...] = ()
) -> tuple[int, float, int]:
    """So many steps: what they make depends on all of them, each done once. In some it waits for `let_go`."""
    squares = progress.array("squares", count)
    for step in progress(range(count)):
        note(notes, step)
        while step in waits_in and not gate(notes, step).exists():
            time.sleep(0.005)
        time.sleep(seconds)
        progress["digest"] = (progress.get("digest", 7) * 31 + step) % 1_000_003
        squares[step] = step * step
    return progress["digest"], float(squares.array.sum()), progress.steps


def gate(notes: Path, step: int) -> Path:
    return notes.with_name(f"{notes.name}-{step}")


def let_go(notes: Path, step: int) -> None:
    """Whoever waits in that step goes on."""
    gate(notes, step).touch()


def walked(count: int) -> tuple[int, float, int]:
    """What `walk` comes to."""
    digest = 7
    for step in range(count):
        digest = (digest * 31 + step) % 1_000_003
    return digest, float(numpy.square(numpy.arange(count)).sum()), count


def steps_of(notes: Path) -> list[tuple[int, int]]:
    """The steps that were begun, in order, and by whom."""
    lines = notes.read_text().split("\n")[:-1] if notes.exists() else []
    return [(int(step), int(pid)) for step, pid in map(str.split, lines)]


def wait_for_steps(notes: Path, count: int) -> int:
    """Waits until so many have been begun; by which process the last was."""
    deadline = time.monotonic() + 30
    while len(steps_of(notes)) < count:
        assert time.monotonic() < deadline, f"only {len(steps_of(notes))} of {count} steps were begun"
        time.sleep(0.005)
    return steps_of(notes)[-1][1]


def require_resumed(notes: Path, count: int, moves: int = 1) -> None:
    """Every step was done, and at most the one under way at each move twice."""
    done = Counter(step for step, _ in steps_of(notes))
    assert sorted(done) == list(range(count))
    assert sum(done.values()) <= count + moves, steps_of(notes)
    assert len({pid for _, pid in steps_of(notes)}) == moves + 1


def desk() -> HalfDone:
    place = here()
    assert place is not None
    return place.half_done


def progress_left() -> list[str]:
    """The progress of any task, as the rack knows it."""
    place = here()
    assert place is not None
    return [name.path for name in place.process.list("/dask") if "/progress/" in name.path]


def require_nothing_left(client: distributed.Client) -> None:
    """All progress has been freed. Workers may die meanwhile."""
    deadline = time.monotonic() + 10
    while any(left := client.run(progress_left, on_error="ignore").values()):
        assert time.monotonic() < deadline, list(left)
        time.sleep(0.02)
