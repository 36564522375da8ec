"""Each benchmark runs in a process of its own: none inherits another's rack, and a crash is one failed line."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from .measure import Noise, Outcome

BENCHMARKS = (
    "handoff",
    "grants",
    "scale",
    "startup",
    "proof",
    "table_size",
    "steal",
    "failure",
    "survival",
    "restart",
    "state",
    "checksums",
    "actors",
    "paxos",
)
# Those of `make bench-dask`.
DASK_BENCHMARKS = ("dask_transfer", "dask_shuffle", "dask_jobs", "dask_failures", "dask_overhead")
LONGEST_SECONDS = 1800.0


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def perform(runner: Connection, benchmark: str, quick: bool, options: dict[str, Any]) -> None:
    """The process of one benchmark."""
    noise = Noise()
    multiprocessing.set_forkserver_preload(["bequest.memory.rack", "numpy"])
    try:
        outcome: Outcome = import_module(f".{benchmark}", __package__).run(quick, noise, say, **options)
    except Exception as error:  # noqa: BLE001 - a benchmark that fails is a line of the report
        traceback.print_exc()
        outcome = Outcome(benchmark, failure=f"{type(error).__name__}: {error}")
    outcome.noise = noise.samples
    runner.send(outcome)


def isolated(benchmark: str, quick: bool, options: dict[str, Any]) -> Outcome:
    """The outcome of a benchmark; a failed one if its process died."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=perform, args=(theirs, benchmark, quick, options), name=benchmark)
    process.start()
    theirs.close()
    try:
        if ours.poll(LONGEST_SECONDS):
            outcome: Outcome = ours.recv()
        else:
            outcome = Outcome(benchmark, failure=f"it did not end within {LONGEST_SECONDS:.0f} s")
            process.terminate()
    except EOFError:
        process.join()
        outcome = Outcome(benchmark, failure=f"its process ended with exit code {process.exitcode}")
    process.join()
    return outcome
