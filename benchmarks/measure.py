"""What every benchmark reports, and the ruler they are all held against.

A benchmark returns an `Outcome`: figures (each with the target it must reach, where there is one) and the raw
numbers behind them. A figure that could not be measured has no value and says why; it is never left out.

Shared machines drift. `Noise` times one fixed piece of work, again and again between the measurements: its
median says how fast the machine was, its spread how far two figures of the same run can be trusted to differ.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_BYTES = 4 * KIB

SPIN_STEPS = 20_000
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """The bound a figure must keep, and on which side of it."""

    sense: Literal["at most", "at least"]
    bound: float

    def factor_missed(self, value: float) -> float:
        """How many times too large (or too small) `value` is: 1.0 or less means that the target is met."""
        small, large = (self.bound, value) if self.sense == "at most" else (value, self.bound)
        if small > 0:
            return large / small
        return math.inf if large > small else 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its unit and target; `value` is None when it was not measured (`note` says why)."""

    name: str
    value: float | None
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        factor = self.target.factor_missed(self.value)
        if factor <= 1:
            return "met"
        return f"missed by {factor:.2f}x" if math.isfinite(factor) else "missed"


@dataclass(slots=True)
class Outcome:
    """What one benchmark found; `failure` says why it found nothing, if it did not come to its end."""

    benchmark: str
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The distribution of repeated timings, in seconds."""

    median: float
    p90: float
    p99: float
    minimum: float
    count: int


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample; percentiles are of the nearest rank."""
    ordered = sorted(samples)

    def percentile(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return Summary(statistics.median(ordered), percentile(0.9), percentile(0.99), ordered[0], len(ordered))


def timed(name: str, samples: Sequence[float], target: Target | None = None, note: str = "") -> Figure:
    """The median of repeated timings in seconds as a figure, with the 99th percentile and the minimum beside it."""
    if not samples:
        return Figure(name, None, "s", target, note)
    found = summarize(samples)
    spread = f"p99 {quantity(found.p99, 's')}, min {quantity(found.minimum, 's')}, of {found.count}"
    return Figure(name, found.median, "s", target, f"{spread}; {note}" if note else spread)


def moment_of(condition: Callable[[], bool], trouble: str, poll_seconds: float) -> float:
    """When the condition held first, looked at every so often. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{trouble} after {PATIENCE_SECONDS:g} s")
        time.sleep(poll_seconds)
    return time.perf_counter()


class Noise:
    """A fixed spin, timed between measurements."""

    def __init__(self, samples: Sequence[float] = ()) -> None:
        self.samples = list(samples)

    def sample(self) -> None:
        """Spins once."""
        started = time.perf_counter()
        for _ in range(SPIN_STEPS):
            pass
        self.samples.append(time.perf_counter() - started)

    def describe(self) -> str:
        """The median, and the spread: the 90th percentile over the 10th, which is 1.0 on a silent machine."""
        if not self.samples:
            return "no noise samples"
        ordered = sorted(self.samples)
        low, high = ordered[len(ordered) // 10], ordered[(len(ordered) * 9) // 10]
        median = quantity(statistics.median(ordered), "s")
        return f"{SPIN_STEPS:,} steps took {median} (median of {len(ordered)}), p90 over p10 {high / low:.2f}"


def quantity(value: float | None, unit: str) -> str:
    """`value` with its unit, scaled so that a person can read it."""
    if value is None:
        return "-"
    if unit == "s":
        for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value / 1e-9:.3g} ns"
    if unit == "bytes":
        for size, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value >= size:
                return f"{value / size:.4g} {name}"
        return f"{value:.4g} B"
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()


def size_name(nbytes: int) -> str:
    """`65536` as `64 KiB`."""
    return quantity(nbytes, "bytes")
