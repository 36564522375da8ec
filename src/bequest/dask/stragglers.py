"""Half-done tasks, on the scheduler: they are moved from workers that are slow, and follow the memory of the dead.

Workers tell how far their resumable tasks have come (`half_done`); `pace` has the rules by which one of them is a
straggler. Then another worker of the same rack that has a free thread steals the task's progress. That is the commit
point: from there on the old run cannot end another step, and gives up. When it is done, the scheduler is told to have
the thief run the task; if anything has happened to the task meanwhile, it is left at that, for wherever it is begun
next, it takes its progress from the thief.

One that no thread is free for stays where it is: nobody would be sooner done with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from bequest.dask import compat
from bequest.dask.pace import Pace

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

    from bequest.dask.recovery import Member

logger = logging.getLogger("distributed.scheduler.bequest")

LOOK_INTERVAL = 0.25  # seconds
MOVE_TIMEOUT = 30.0  # seconds for a thief's answer


class Stragglers:
    """On the scheduler: watches over the tasks that can be resumed."""

    def __init__(self, scheduler: Scheduler, members: dict[str, Member]) -> None:
        self.pace = Pace()
        self.moves = 0  # that were made
        self._scheduler = scheduler
        self._members = members
        self._keepers: dict[Key, str] = {}  # who was given the progress of a task that is to be begun
        self._moving: dict[Key, tuple[str, asyncio.Task[None]]] = {}  # and to whom
        self._restricted: dict[str, dict[Key, set[str] | None]] = {}  # by the dead worker: what it was before
        self._look: asyncio.TimerHandle | None = None
        self._dropping: set[asyncio.Task[None]] = set()
        scheduler.handlers["bequest_progress"] = self._progress

    async def _progress(self, worker: str, steps: list[tuple[Key, int]]) -> None:
        now = asyncio.get_running_loop().time()
        for key, done in steps:
            ts = compat.running_on(self._scheduler, key, worker)
            if ts is not None and key not in self._moving:
                self.pace.report(key, ts.prefix.name, worker, done, now)
        self._arm()

    def _arm(self) -> None:
        """Looks once more in a while, as long as there is anything to look at."""
        if self._look is None and self.pace.running:
            self._look = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._relieve_stragglers)

    def _relieve_stragglers(self) -> None:
        self._look = None
        now = asyncio.get_running_loop().time()
        for key in self.pace.stragglers(now):
            if key in self._moving:
                continue
            victim = self.pace.running[key].worker
            thief = self._thief(victim, now)
            if thief is not None:
                self._moving[key] = thief, asyncio.create_task(self._move(key, victim, thief))
        self._arm()

    def _thief(self, victim: str, now: float) -> str | None:
        """A worker of the same rack with nothing else to do."""
        member = self._members.get(victim)
        asked = {thief for thief, _ in self._moving.values()}
        for address, other in self._members.items():
            if member is None or other.rack != member.rack or address == victim or address in asked:
                continue
            if compat.has_free_thread(self._scheduler, address) and not self.pace.is_slow(address, now):
                return address
        return None

    async def _move(self, key: Key, victim: str, thief: str) -> None:
        try:
            taken = await asyncio.wait_for(
                self._scheduler.rpc(thief).bequest_take_over(key=key, victim=self._members[victim].name),
                MOVE_TIMEOUT,
            )
            if not taken:
                return  # it has ended
            self._keepers[key] = thief
            if compat.move_task(self._scheduler, key, victim, thief):
                self.moves += 1
                self.pace.moved(key, asyncio.get_running_loop().time())
                logger.info("%r is a straggler on %s; %s goes on with it", key, victim, thief)
            elif key not in self._scheduler.tasks:
                self._drop(key)
        except (OSError, TimeoutError, KeyError) as trouble:
            logger.warning("%r could not be moved from %s to %s: %r", key, victim, thief, trouble)
        finally:
            del self._moving[key]

    # --- what the plugin and the heirs tell --------------------------------------------------------------------------

    def on_transition(self, key: Key, start: str, finish: str) -> None:
        """The scheduler has changed the state of a task."""
        if start == "processing" and key not in self._moving:
            self.pace.ended(key)
        if key in self._keepers and finish in ("memory", "erred", "forgotten"):
            self._drop(key)

    def half_done_by(self, ws: WorkerState) -> list[Key]:
        """The tasks whose progress a worker may have: those that it runs, and those that it keeps it for."""
        kept = [key for key, keeper in self._keepers.items() if keeper == ws.address]
        return list({ts.key for ts in ws.processing}.union(kept))

    def inherited(self, dead: str, heir: str, keys: Collection[Key]) -> None:
        """An heir has what was half done by a worker that is about to be removed: the rack is where to go on."""
        rack = self._members[heir].rack
        workers = {
            address for address, member in self._members.items() if member.rack == rack and address != dead
        }
        for key in keys:
            self._keepers[key] = heir
            self._restricted.setdefault(dead, {})[key] = compat.restrict(self._scheduler, key, workers)

    def removed(self, worker: str) -> None:
        """A worker has been removed, and what it ran is with others."""
        for key, before in self._restricted.pop(worker, {}).items():
            compat.restrict(self._scheduler, key, before)
        self.pace.forget(worker)

    def _drop(self, key: Key) -> None:
        keeper = self._keepers.pop(key)
        if keeper in self._scheduler.workers:
            dropping = asyncio.create_task(self._tell_to_drop(key, keeper))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)

    async def _tell_to_drop(self, key: Key, keeper: str) -> None:
        try:
            await self._scheduler.rpc(keeper).bequest_drop(key=key)
        except OSError as trouble:
            logger.debug("%s has not dropped the progress of %r: %s", keeper, key, trouble)
