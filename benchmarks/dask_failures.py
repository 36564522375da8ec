"""Jobs in which a worker is killed, or becomes slow, in Dask's own way and on a rack.

Three jobs, all of the same length, on two workers of one thread each:

* *ordinary tasks*, many of a quarter of a second, each with an array for a result, all of which are needed in the end;
* *long tasks*, three for each worker; `bequest.dask.resumable`, which on a rack they are;
* the long ones once more, for the worker that becomes slow.

When nine tenths of the work have been done, a worker is killed with SIGKILL; its nanny starts another. *Work* is the
number of steps that were begun, all told, by the living and the dead. Or else a worker is stopped for 180 ms of every
200 ms from then on (SIGSTOP and SIGCONT), until the job is done: so it is ten times slower in all that it does. More
than a tenth could not be made up for: two workers of which one is slow do half of what they did.

A step is fifty pauses of a millisecond, of which a worker that is stopped makes as many fewer. So a step takes its
time without using the processors, which are few here: what is measured is how work is distributed.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bequest.dask

from .dask_side import WORKERS, Side, both_sides, worker_pid
from .measure import Figure, Noise, Outcome, Target

SECONDS = (
    15.0  # of an undisturbed job: --job 60 for a long one; what a death or a straggler costs is no more there
)
QUICK_SECONDS = 6.0
PAUSES = 50  # of a millisecond, in a step
STEP_SECONDS = 0.055  # about: a pause takes a little more than asked for
ORDINARY_STEPS = 5
LONG_TASKS = 3 * WORKERS
DISTURBED_AT = 0.9
RUNS_SECONDS, STOPPED_SECONDS = 0.02, 0.18
MOST_WORK = 1.05
MOST_TIME = 1.15
UNDISTURBED, KILLED, SLOWED = "undisturbed", "a worker killed", "a worker ten times slower"


def step(notes: str) -> None:
    """Some work, which is written down when it begins."""
    with open(notes, "ab", buffering=0) as out:
        out.write(b".")
    for _ in range(PAUSES):
        time.sleep(0.001)


def digested(digest: int, number: int) -> int:
    """What a step makes of what the one before has made."""
    return (digest * 31 + number) % 1_000_003


def ordinary(task: int, notes: str) -> Any:
    """A short task with a large result."""
    import numpy as np

    for _ in range(ORDINARY_STEPS):
        step(notes)
    return np.full(1 << 17, task)


def total(arrays: list[Any]) -> int:
    """Of all ordinary results."""
    return sum(int(array.sum()) for array in arrays)


@bequest.dask.resumable
def long_way(progress: bequest.dask.Progress, task: int, notes: str, steps: int) -> int:
    """A long task. Without a rack, whoever runs it next begins at the beginning."""
    for number in progress(range(steps)):
        step(notes)
        progress["digest"] = digested(progress.get("digest", task), number)
    digest: int = progress["digest"]
    return digest


@dataclass(frozen=True)
class Job:
    """``start(side, notes)`` gives the futures; ``steps`` are needed for it."""

    name: str
    steps: int
    start: Callable[[Side, str], list[Any]]


def ordinary_job(seconds: float) -> Job:
    """So many ordinary tasks."""
    tasks = max(round(seconds * WORKERS / STEP_SECONDS / ORDINARY_STEPS), WORKERS)

    def start(side: Side, notes: str) -> list[Any]:
        made = side.client.map(ordinary, range(tasks), notes=notes, pure=False)
        return [side.client.submit(total, made, pure=False)]

    return Job("ordinary tasks", tasks * ORDINARY_STEPS, start)


def long_job(seconds: float) -> Job:
    """A few long tasks."""
    steps = round(seconds * WORKERS / STEP_SECONDS / LONG_TASKS)

    def start(side: Side, notes: str) -> list[Any]:
        made: list[Any] = side.client.map(long_way, range(LONG_TASKS), notes=notes, steps=steps, pure=False)
        return made

    return Job("long tasks", steps * LONG_TASKS, start)


@dataclass(frozen=True)
class Run:
    """How a job went: ``work`` in steps that were begun, for each that is needed."""

    seconds: float
    work: float
    result: list[Any]


Disturbance = Callable[[int], AbstractContextManager[None]]  # of a worker, until the job is done


@contextmanager
def kill(pid: int) -> Iterator[None]:
    """The worker's death."""
    os.kill(pid, signal.SIGKILL)
    yield


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """The worker runs for a tenth of the time."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(STOPPED_SECONDS)
            os.kill(pid, signal.SIGCONT)
            over.wait(RUNS_SECONDS)

    hog = threading.Thread(target=stop_and_go)
    hog.start()
    try:
        yield
    finally:
        over.set()
        hog.join()


def perform(side: Side, job: Job, disturb: Disturbance | None) -> Run:
    """The job, on workers that are all there, and the last of them disturbed."""
    side.client.wait_for_workers(WORKERS, timeout=60)
    pids = sorted(side.client.run(worker_pid).values())
    with tempfile.TemporaryDirectory(prefix="bequest-") as directory, ExitStack() as disturbed:
        notes = Path(directory, "notes")
        notes.touch()
        started = time.perf_counter()
        futures = job.start(side, str(notes))
        if disturb is not None:
            while notes.stat().st_size < DISTURBED_AT * job.steps:
                time.sleep(0.01)
            disturbed.enter_context(disturb(pids[-1]))
        result = side.client.gather(futures)
        return Run(time.perf_counter() - started, notes.stat().st_size / job.steps, result)


def run(quick: bool, noise: Noise, say: Callable[[str], None], seconds: float | None = None) -> Outcome:
    """The whole benchmark, of jobs that last about so long."""
    import dask

    # A nanny whose worker is away so long after an earlier one's death would be closed; here they are killed often.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    length = seconds or (QUICK_SECONDS if quick else SECONDS)
    plans: list[tuple[Job, dict[str, Disturbance]]] = [
        (ordinary_job(length), {KILLED: kill}),
        (long_job(length), {KILLED: kill, SLOWED: slowed}),
    ]
    outcome = Outcome("dask_failures")
    with both_sides() as sides:
        for job, disturbances in plans:
            runs: dict[tuple[str, str], Run] = {}
            for what, disturb in {UNDISTURBED: None, **disturbances}.items():
                for side in sides:
                    noise.sample()
                    one = runs[what, side.name] = perform(side, job, disturb)
                    name = f"{job.name}, {what}, {side.name}"
                    say(f"dask_failures: {name}: {one.seconds:.1f} s, {one.work:.3f} of the work")
                    outcome.raw[name] = {"seconds": one.seconds, "work": one.work}
            _report(outcome, job, sides, runs)
    return outcome


def _report(outcome: Outcome, job: Job, sides: list[Side], runs: dict[tuple[str, str], Run]) -> None:
    for (what, name), one in runs.items():
        before = runs[UNDISTURBED, name]
        is_ours = name == sides[-1].name
        title = f"{job.name}, {what}, {name}"
        outcome.figures.append(Figure(title, one.seconds, "s"))
        if what == KILLED:
            bound = Target("at most", MOST_WORK) if is_ours else None
            note = f"{job.steps:,} steps are needed, {before.seconds:.0f} s undisturbed"
            outcome.figures.append(Figure(f"{title}: work", one.work / before.work, "x", bound, note))
        if what == SLOWED:
            bound = Target("at most", MOST_TIME) if is_ours else None
            note = f"which takes {before.seconds:.0f} s"
            outcome.figures.append(
                Figure(
                    f"{title}: time of the undisturbed job", one.seconds / before.seconds, "x", bound, note
                )
            )
    first, *others = [one.result for one in runs.values()]
    equal = all(result == first for result in others)
    outcome.figures.append(Figure(f"{job.name}, results equal", float(equal), "", Target("at least", 1)))
