"""Where memory and processes go: bin-packing, as in the paper's section 2.

- ``best-fit``: the fullest memory element into which it still fits; keeps large holes for large requests.
- ``worst-fit``: the emptiest; levels the load.
- ``spread``: the one that holds least of this process; its loss then costs the process least.

Ties go to the element that was configured first, so that a choice can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

POLICIES = ("best-fit", "worst-fit", "spread")


class Candidate(msgspec.Struct, frozen=True):
    """A memory element as placement sees it."""

    element: int
    free: int
    held_by_process: int


def choose_element(policy: str, candidates: Sequence[Candidate], nbytes: int) -> int | None:
    """The id of the element that shall hold ``nbytes``, or None if it fits nowhere."""
    fitting = [candidate for candidate in candidates if candidate.free >= nbytes]
    if not fitting:
        return None
    if policy == "best-fit":
        return min(fitting, key=lambda candidate: candidate.free).element
    if policy == "worst-fit":
        return max(fitting, key=lambda candidate: candidate.free).element
    if policy == "spread":
        return min(fitting, key=lambda candidate: (candidate.held_by_process, -candidate.free)).element
    raise ValueError(f"unknown placement policy {policy!r}; there are {', '.join(POLICIES)}")


def choose_compute(load: dict[str, int]) -> str:
    """The compute element with the fewest processes."""
    return min(load, key=lambda name: load[name])
