"""The sizes of the tests that are a soak: short in CI, long in `make soak`, which ends with a table of what was done.

Such a test is marked `soak`, takes its size from `size`, and tells what it did by pytest's ``record_property``; each
property is a cell of its row in the table. ``BEQUEST_SOAK=1`` is the whole soak, ``BEQUEST_SOAK=0.1`` a tenth of it.
"""

from __future__ import annotations

import os
import random
from typing import Any

SCALE = float(os.environ.get("BEQUEST_SOAK") or 0)
SEED = int(os.environ.get("BEQUEST_SOAK_SEED") or random.SystemRandom().getrandbits(32))


def size(ci: int, soak: int) -> int:
    """How many of something, or seconds."""
    return max(ci, round(soak * SCALE))


def timeout(soak_seconds: int, ci_seconds: int = 60) -> int:
    """What a test of the soak may take. A soak on a machine that has other work to do takes much longer than alone."""
    return soak_seconds if SCALE else ci_seconds


def table(reports: list[Any]) -> list[str]:
    """One row for each test that has told what it did, or that failed."""
    rows = []
    for report in reports:
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        verdict = "held" if report.passed else "FAILED"
        rows.append(f"{verdict:6} {report.duration:7.1f} s  {name}")
        rows += [f"{value:>24}  {name}" for name, value in report.user_properties]
    return [*rows, "", f"seed {SEED} (the same again: BEQUEST_SOAK_SEED={SEED})"]
