"""When a worker dies: another one of its rack has what it had finished, before Dask gives it up.

Theory of operation. Dask's scheduler removes a dead worker by dropping its replicas and having what is then nowhere
computed again; plugins are told afterwards. So its removal is held up (`compat.before_removal`) while an *heir*, a
living worker of the same rack, steals the dead one's memory, opens its ledger, and takes the values that the
scheduler counts on into its own data. The scheduler is told that the heir has them, and then the removal goes on:
it finds each of these keys at two workers, and drops one. Nothing awaits between the two, so nobody sees a key that
nobody has.

If no worker of the rack is left, the dead one stays in the scheduler's books, given no more work, for as long as
its nanny may take to start another, which becomes the heir. If none comes, Dask does what it does.

Only deaths are treated so. A worker that leaves in good order has its data taken elsewhere by Dask before, and
detaches. The steal proves the death, or fences a worker that was removed because it hangs: it cannot publish a
result any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import Status

from bequest.dask import compat
from bequest.dask.shelf import key_of, read_ledger, references_of
from bequest.dask.stragglers import Stragglers
from bequest.errors import BequestError, ProcessDead, UnknownProcess

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

    from bequest.dask.blocks import Block
    from bequest.dask.rack_worker import RackWorker
    from bequest.memory.estate import Estate

log_of_scheduler = logging.getLogger("distributed.scheduler.bequest")
log_of_worker = logging.getLogger("distributed.worker.bequest")

# Seconds that a nanny has to start another worker, if none is left in the rack: an interpreter and what it imports,
# on a machine that has so much to do that it may have killed the one before.
FRESH_WORKER_TIMEOUT = 30.0
INHERIT_TIMEOUT = 60.0  # seconds for an heir's answer
_FLIGHT_POLL = 0.01
_LEAVING = frozenset({Status.closing, Status.closed, Status.failed, Status.closing_gracefully})
_TAKEABLE = frozenset(
    {"released", "fetch", "missing", "forgotten"}
)  # states of a task that may be given its value


class Member(NamedTuple):
    """A worker in a rack: which rack (its directory, on that worker's host), and its name there."""

    rack: str
    name: str


class Estates:
    """On the scheduler: who is in which rack, and what is done when one of them dies."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.members: dict[str, Member] = {}  # by the worker's address
        self.stragglers = Stragglers(scheduler, self.members)
        self.results_inherited = 0  # so far
        self._scheduler = scheduler
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Condition()  # somebody has joined
        scheduler.handlers["bequest_joined"] = self._joined
        compat.before_removal(scheduler, self._on_removal)

    async def _joined(self, worker: str, rack: str, name: str) -> None:
        async with self._news:
            self.members[worker] = Member(rack, name)
            self._news.notify_all()

    def forget(self, worker: str) -> None:
        """It has been removed."""
        self.members.pop(worker, None)
        self.stragglers.removed(worker)

    async def _on_removal(self, ws: WorkerState, expected: bool) -> bool:
        """Whether the worker may be removed now."""
        member = self.members.get(ws.address)
        if member is None or expected or ws.status in _LEAVING:
            return True
        settling = self._settling.get(ws.address)
        if settling is None:
            if not self._heirs(member.rack, ws.address):
                self._keep_waiting(ws, member)
                return False
            settling = asyncio.create_task(self._settle(ws, member))
            self._settling[ws.address] = settling
            settling.add_done_callback(lambda _: self._settling.pop(ws.address, None))
        elif ws.status is Status.paused:
            return False
        await asyncio.shield(settling)
        return True

    def _heirs(self, rack: str, dead: str) -> list[WorkerState]:
        """The living of that rack, who has least first."""
        workers = self._scheduler.workers
        living = [
            workers[address]
            for address, member in self.members.items()
            if member.rack == rack and address != dead and address in workers
        ]
        usable = [ws for ws in living if ws.status not in _LEAVING and ws.address not in self._settling]
        return sorted(usable, key=lambda ws: ws.nbytes)

    def _keep_waiting(self, ws: WorkerState, member: Member) -> None:
        """Keeps the last of its rack in the books until there is another."""
        compat.set_aside(self._scheduler, ws)

        async def wait_and_settle() -> None:
            try:
                async with asyncio.timeout(FRESH_WORKER_TIMEOUT), self._news:
                    await self._news.wait_for(lambda: bool(self._heirs(member.rack, ws.address)))
                await self._settle(ws, member)
            except TimeoutError:
                log_of_scheduler.warning("%s has died, and no other worker has come to its rack", ws.address)
            finally:
                self._settling.pop(ws.address, None)
                self.forget(ws.address)
                await self._scheduler.remove_worker(ws.address, stimulus_id="bequest-no-heir")

        self._settling[ws.address] = asyncio.create_task(wait_and_settle())

    async def _settle(self, ws: WorkerState, member: Member) -> None:
        """Has somebody inherit, and tells the scheduler who. An heir that dies over it leaves both estates."""
        dead, wanted = [member.name], {ts.key for ts in ws.has_what if len(ts.who_has or ()) == 1}
        begun = self.stragglers.half_done_by(ws)
        for heir in self._heirs(member.rack, ws.address):
            try:
                answer = await asyncio.wait_for(
                    self._scheduler.rpc(heir.address).bequest_inherit(
                        address=ws.address, dead=dead, wanted=list(wanted), begun=begun
                    ),
                    INHERIT_TIMEOUT,
                )
            except (OSError, TimeoutError) as trouble:
                log_of_scheduler.warning(
                    "%s has not inherited from %s: %s", heir.address, ws.address, trouble
                )
                dead.append(self.members[heir.address].name)
                wanted |= {ts.key for ts in heir.has_what}
                begun += self.stragglers.half_done_by(heir)
                continue
            except Exception as trouble:  # noqa: BLE001 - the heir's, told here
                log_of_scheduler.warning("%s cannot inherit from %s: %s", heir.address, ws.address, trouble)
                continue
            self._scheduler.add_keys(worker=heir.address, keys=answer["keys"])
            self.results_inherited += len(answer["keys"])
            self.stragglers.inherited(ws.address, heir.address, answer["half_done"])
            level = logging.INFO if len(answer["keys"]) == len(wanted) else logging.WARNING
            log_of_scheduler.log(
                level,
                "%s has died; %s has inherited %d of its %d results (%s)",
                ws.address, heir.address, len(answer["keys"]), len(wanted), answer["how"],
            )  # fmt: skip
            return
        log_of_scheduler.warning("%s has died, and nobody has inherited from it", ws.address)


class Heir:
    """On a worker: what it inherits."""

    def __init__(self, place: RackWorker) -> None:
        self._place = place
        worker = place.worker
        worker.handlers["bequest_inherit"] = self.inherit
        place.undo.callback(worker.handlers.pop, "bequest_inherit")

    async def inherit(
        self, address: str, dead: list[str], wanted: list[Key], begun: list[Key]
    ) -> dict[str, Any]:
        """Takes what these processes of the rack had finished, as far as it is wanted; answers with the keys.

        The first of them is the worker that was at this address. What they had half done of the tasks that they had
        ``begun`` is kept (`HalfDone`).
        """
        keys: list[Key] = []
        half_done: list[Key] = []
        how: list[str] = []
        for name in dead:
            try:
                estate = await asyncio.to_thread(self._place.process.steal, name)
            except (ProcessDead, UnknownProcess):
                continue  # it has left nothing
            except BequestError as trouble:
                if not how and name == dead[-1]:
                    raise  # then another worker is asked
                log_of_worker.warning("nothing could be inherited from %s: %s", name, trouble)
                continue
            how.append(estate.how)
            progress = await asyncio.to_thread(self._place.half_done.keep, estate, begun)
            half_done += progress.values()
            records, kept = await asyncio.to_thread(self._open, estate, frozenset(wanted), set(progress))
            for key, record in records.items():
                if await self._take(key, record, address):
                    keys.append(key)
            del kept  # until now, since values of the dead one may lie in parts of one block
        return {"keys": keys, "half_done": half_done, "how": ", ".join(how) or "nothing was left"}

    def _open(
        self, estate: Estate, wanted: frozenset[Key], progress: Collection[int]
    ) -> tuple[dict[Key, bytes], list[Block]]:
        """The records of what is wanted, and the blocks they tell of that were the dead one's.

        All else is freed, but for ``progress`` (addresses).
        """
        records: dict[Key, bytes] = {}
        for path, region in estate.names.items():
            if path.startswith("/dask/") and path.endswith("/ledger"):
                for record in read_ledger(region):
                    key = key_of(record)
                    if key in wanted:
                        records[key] = record
        needed = {reference for record in records.values() for reference in references_of(record)}
        kept: list[Block] = []
        for region in [*estate.regions, *estate.inbox]:
            if region.nbytes and region.frozen and region.freeze() in needed:
                kept.append(self._place.shelf.blocks.keep(region))
            elif region.address not in progress:
                region._free_when_dropped()
        return records, kept

    async def _take(self, key: Key, record: bytes, address: str) -> bool:
        """Into the worker's data, unless the worker has it or is making it. It may be asking the dead one for it."""
        worker, shelf = self._place.worker, self._place.shelf
        while (ts := worker.state.tasks.get(key)) is not None and ts.state == "flight":
            self._place.transfers.abandon(address)
            await asyncio.sleep(_FLIGHT_POLL)
        if ts is not None and ts.state == "memory":
            return True
        if ts is not None and ts.state not in _TAKEABLE:
            return False
        try:
            value = shelf.arrive(key, record)
        except Exception as trouble:  # noqa: BLE001 - whatever a class of the user's raises: Dask computes it again
            log_of_worker.warning("%r was inherited, but cannot be made again: %r", key, trouble)
            return False
        worker.update_data({key: value}, stimulus_id="bequest-inherit")
        return key in worker.data
