"""Deaths that the Rack MMU sees for itself, without asking the agent of a process.

Theory of operation. With the news that a process has enrolled, its agent sends a copy of the userfaultfd by which it
can fence it. Through it the kernel tells at once whether anybody still runs in the address space (native/fence.hpp):
the same proof that the agent would find, without the way there and back, which is most of what a theft from the dead
would take. It is asked before a theft begins. It only ever says that somebody has
gone. Whom it does not know, and who runs, is the agent's to judge and to fence. Copies are let go as soon as their
process has ended, so that no fence outlasts the agent's.
"""

from __future__ import annotations

import os

from bequest import _core
from bequest.protocol.outputs import ProcessKey


class Witnesses:
    """One for each process that runs, as far as agents have sent them."""

    def __init__(self) -> None:
        self._fences: dict[ProcessKey, int] = {}

    def call(self, key: ProcessKey, fence: int) -> None:
        """The descriptor is the witness's now; an agent that was started anew sends another."""
        self.dismiss(key)
        self._fences[key] = fence

    def dismiss(self, key: ProcessKey) -> None:
        """The process has ended, or may not be known at all."""
        fence = self._fences.pop(key, None)
        if fence is not None:
            os.close(fence)

    def saw_the_end_of(self, key: ProcessKey, patience: float = 0.0) -> bool:
        """Whether it is proven that no store through its address space can come any more."""
        fence = self._fences.get(key)
        return fence is not None and _core.wait_until_gone(fence, patience)
