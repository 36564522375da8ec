"""Waiting until nobody looks at a region any more.

A profiler that looks at the stacks of threads, as Dask's does, keeps what a function had in its variables for some
moments longer than the function runs, views of regions among it. What is to be done with a region that nobody may have
a view of then, a grant or a freeze, waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from bequest.memory.region import Region

T = TypeVar("T")

_SECONDS = 10.0  # for a profiler to have seen enough: it takes milliseconds
_POLL = 0.001


def when_unseen(region: Region, act: Callable[[], T]) -> T:
    """What ``act`` returns, which is called until it does not meet a view of the region. Raises what it raises."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return act()
        except BufferError:
            if not region.owned or time.monotonic() > deadline:
                raise
        time.sleep(_POLL)
