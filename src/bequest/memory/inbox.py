"""The inbox of a process: regions that others granted it, in the order in which each sender sent them.

Waiting is done in native code, which spins briefly and then sleeps on a futex without the GIL. Asyncio waits through
one helper thread for each process, started at the first ``async`` call: a futex is no file descriptor, and a sender
must not pay for a receiver's event loop with a system call of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from bequest.errors import AcceptTimeout, NotAttached

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from bequest.memory.process import Process
    from bequest.memory.region import Region

FOREVER = -1
RACK_CHECK_INTERVAL = 0.5  # seconds after which a wait without end looks whether the rack is still there
_RACK_CHECK_NS = int(RACK_CHECK_INTERVAL * 1e9)
_ASYNC_SLICE = 0.2  # seconds: how long a cancelled waiter's thread may linger


def as_nanoseconds(timeout: float | None) -> int:
    """The native core's idea of a timeout: nanoseconds, or -1 for ever."""
    if timeout is None:
        return FOREVER
    return max(0, int(timeout * 1e9))


class Inbox:
    """Iterates over what arrives, for ever: ``for region in me.inbox`` or ``async for region in me.inbox``.

    ``len(me.inbox)`` is how many are waiting now.
    """

    def __init__(self, process: Process, mailbox: int | None = None) -> None:
        self._process = process
        self._id = process.id if mailbox is None else mailbox
        self._waiter: ThreadPoolExecutor | None = None

    def accept(self, timeout: float | None = None) -> Region:
        """The next region. Raises `AcceptTimeout` if none comes within ``timeout`` seconds (None: wait for ever)."""
        return self._take(1, timeout)[0]

    def accept_all(self, limit: int, timeout: float | None = None) -> list[Region]:
        """All that is waiting, up to ``limit``; waits for the first. Opens neighbouring pages in one step."""
        if limit < 1:
            raise ValueError(f"accept_all wants a limit of at least 1, not {limit}")
        return self._take(limit, timeout)

    def _take(self, limit: int, timeout: float | None) -> list[Region]:
        # What comes soon is to cost no look at a clock: a hand-over takes microseconds.
        patience = _RACK_CHECK_NS
        if timeout is not None and not timeout >= RACK_CHECK_INTERVAL:  # a NaN is refused below
            patience = as_nanoseconds(timeout)
        regions: list[Region] = self._process._accept(self._id, limit, patience)
        return regions or self._take_patiently(limit, timeout)

    def _take_patiently(self, limit: int, timeout: float | None) -> list[Region]:
        """Nothing has come for the first slice of ``timeout``: waits for the rest of it, slice by slice."""
        left = None if timeout is None else timeout - RACK_CHECK_INTERVAL
        deadline = None if left is None else time.monotonic() + left
        while left is None or left > 0:
            self._process.check_rack()  # without a rack nobody would tell us that all senders are dead
            slice_ = RACK_CHECK_INTERVAL if left is None else min(left, RACK_CHECK_INTERVAL)
            regions: list[Region] = self._process._accept(self._id, limit, as_nanoseconds(slice_))
            if regions:
                return regions
            if deadline is not None:
                left = deadline - time.monotonic()
        raise self._nothing_came(timeout)

    async def accept_async(self, timeout: float | None = None) -> Region:
        """`accept`, for asyncio. Cancelling it loses nothing: what has not been accepted stays in the inbox."""
        import asyncio  # on demand: it would be half of the time that importing bequest takes

        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            regions = self._process._accept(self._id, 1, 0)
            if regions:
                region: Region = regions[0]
                return region
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise self._nothing_came(timeout)
            self._process.check_rack()
            await self._until_ready(loop, _ASYNC_SLICE if left is None else min(left, _ASYNC_SLICE))

    async def _until_ready(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if self._waiter is None:
            from concurrent.futures import ThreadPoolExecutor

            self._waiter = ThreadPoolExecutor(1, thread_name_prefix="bequest-inbox")
        await loop.run_in_executor(self._waiter, self._process._wait_ready, self._id, as_nanoseconds(seconds))

    def _nothing_came(self, timeout: float | None) -> Exception:
        if not self._process.attached:
            return NotAttached("the process detached while it waited for a region")
        return AcceptTimeout(f"nothing was granted to this process within {timeout} s")

    def close(self) -> None:
        """Lets the helper thread end. The process calls it when it detaches."""
        if self._waiter is not None:
            self._waiter.shutdown(wait=False)
            self._waiter = None

    def __len__(self) -> int:
        return self._process._depth(self._id)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Region]:
        with contextlib.suppress(NotAttached):
            while True:
                yield self.accept()

    async def __aiter__(self) -> AsyncIterator[Region]:
        with contextlib.suppress(NotAttached):
            while True:
                yield await self.accept_async()
