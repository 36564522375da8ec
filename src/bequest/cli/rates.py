"""Rates from two looks at a rack: what its counters have gained between them, per second.

Pure: looks in, rates out. A process is the same one in both looks if id, name and operating-system pid are; for one
that is new, everything that it has done is gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bequest.wire.messages import ElementStatus, ProcessReport, RackReport

COUNTERS = (
    "grants", "granted_bytes", "accepts", "allocs", "frees", "reads", "read_bytes", "steals", "resumes",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a rack said at one moment; ``at`` is in seconds of a monotonic clock."""

    at: float
    report: RackReport
    processes: list[ProcessReport]
    elements: list[ElementStatus]


def rates_between(earlier: Look, later: Look) -> list[dict[str, float]]:
    """For each process of the later look, each counter's gain per second."""
    seconds = max(later.at - earlier.at, 1e-9)
    known = {_key(process): process.counters for process in earlier.processes}
    rates = []
    for process in later.processes:
        before = known.get(_key(process), {})
        gains = {name: process.counters.get(name, 0) - before.get(name, 0) for name in COUNTERS}
        rates.append({name: max(0, gain) / seconds for name, gain in gains.items()})
    return rates


def not_copied(rate: dict[str, float]) -> float:
    """Bytes that were handed over, or read where they lie."""
    return rate["granted_bytes"] + rate["read_bytes"]


def total(rates: list[dict[str, float]]) -> dict[str, float]:
    """All processes together."""
    return {name: sum(rate[name] for rate in rates) for name in COUNTERS}


def _key(process: ProcessReport) -> tuple[int, str, int]:
    return process.id, process.name, process.os_pid


_STEPS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """The course of a value, the highest of it as a full block."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return _STEPS[0] * len(values)
    return "".join(_STEPS[min(len(_STEPS) - 1, int(value / highest * len(_STEPS)))] for value in values)
