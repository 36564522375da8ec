"""Shuffles whose data is granted: the worker's side of Dask's peer-to-peer shuffle, in the rack.

Dask's own stays what it is, graph and scheduler's side, so that `DataFrame.shuffle`, `merge`, `groupby`, `set_index`
and array `rechunk` come here whenever they would use "p2p". A worker takes part in one by a *run*. When Dask has made
one, it is given the methods of ours (`FrameRun`, `ArrayRun`), which differ in two places:

* An input partition is cut, for each receiver in the rack, into a region that is granted to it (`shards`), where
  Dask's would serialise it, send it by a socket, cut it once more, and write it to a file.
* An output partition is made of what lies in the regions that have come, where Dask's would read that file.

What cannot go this way goes Dask's, shard by shard, and an output is made of both: for receivers that are not in the
rack or whose run is Dask's, when the rack is full, and for data that only Dask's can cut. The order of rows is that of
Dask's: by input partition, and within one as they stood there.

Ends. A sender grants before its task ends, and all of these have ended at the barrier; what was granted is then in the
inbox, and a run waits until the post has delivered it (`RackRun.inputs_done`). A worker that dies has the scheduler
fail the run and begin a new one, under a new number; regions of the old one are freed where they are. Whenever a run
finds that it has lost a shard, or is asked for an output a second time, it asks the scheduler to do the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from distributed import Reschedule
from distributed.shuffle._core import ShuffleRun
from distributed.shuffle._exceptions import P2PConsistencyError, ShuffleClosedError
from distributed.shuffle._rechunk import ArrayRechunkRun
from distributed.shuffle._shuffle import DataFrameShuffleRun
from distributed.utils import sync

import dask
from bequest.dask import compat
from bequest.dask.post import SHARD
from bequest.dask.shards import Chunk, Place, Shard, Strips, grant_shards, read_tag, tag_of
from bequest.errors import BequestError, RackGone, RackMemoryError

if TYPE_CHECKING:
    from bequest.dask.rack_worker import RackWorker
    from bequest.memory.region import Region

logger = logging.getLogger("distributed.worker.bequest")

SWITCH = "bequest.shuffle"  # in the workers' Dask configuration: whether runs made from now on are ours; default: true


class Shuffles:
    """What the runs on a worker have in common. `install` makes it."""

    def __init__(self, place: RackWorker, plugin: Any) -> None:
        self.place = place
        self.plugin = plugin  # Dask's own, which has the runs
        self._loop = place.worker.loop
        self._delivered: deque[Region] = deque()
        self._is_awake = False  # and will take in what was delivered
        self._warned = False

    async def join(self, shuffle_id: str, run_id: int) -> bool:
        """Asked by another worker of the rack: whether shards of this run may be granted to this one."""
        try:
            run = await self.plugin.shuffle_runs.get_with_run_id(shuffle_id=shuffle_id, run_id=run_id)
        except (P2PConsistencyError, ShuffleClosedError):
            return False
        return isinstance(run, RackRun) and self.usable

    def deliver(self, region: Region) -> None:
        """From the post, in its thread."""
        self._delivered.append(region)
        if not self._is_awake:  # waking the loop for each would take longer than the rest
            self._is_awake = True
            self._loop.add_callback(self._take_in_all)

    def _take_in_all(self) -> None:
        self._is_awake = False  # before the last look: who delivers from now on wakes us again
        while self._delivered:
            self.take_in(self._delivered.popleft())

    def take_in(self, region: Region) -> None:
        """Gives a shard to its run, or frees it if that is no more."""
        shuffle, run_id = read_tag(region.tag)
        run = self.plugin.shuffle_runs._active_runs.get(shuffle)
        shard = Shard(region)
        if run is None or run.run_id != run_id or not isinstance(run, RackRun) or not run.take_in(shard):
            shard.abandon()

    @property
    def usable(self) -> bool:
        """Whether the rack is still there."""
        return self.place.post.alive

    async def fence(self) -> None:
        """Waits until what has been granted to this worker has been taken in, or the rack has ended."""
        passed = asyncio.Event()
        await asyncio.to_thread(self.place.post.fence, lambda: self._loop.add_callback(passed.set))
        await passed.wait()

    def tell_of_full_rack(self, trouble: RackMemoryError) -> None:
        """A warning, once for each worker."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "the rack is full, so shuffles go Dask's own way, by sockets and disk: %s", trouble
            )


class RackRun(ShuffleRun[Any, Any]):
    """What both kinds of run have in common. Dask makes the object; `enter` makes it one of these."""

    shuffles: Shuffles
    partitions_of: dict[
        str, list[Any]
    ]  # of both kinds of Dask's runs: the outputs of each worker, by its address

    def enter(self, shuffles: Shuffles) -> None:
        """Takes part in the rack."""
        self.shuffles = shuffles
        self._strips = Strips(shuffles.place.process)
        self._turns: dict[Place, int] = {}  # of each output, when its worker makes it
        for its in self.partitions_of.values():
            self._turns |= {self.place_of(output): turn for turn, output in enumerate(its)}
        self._shards: dict[Place, list[Shard]] = {}  # what has come, by output partition
        self._came: dict[Any, set[Place]] = {}  # the same, by input partition as Dask's run calls it
        self._all_shards: list[Shard] = []
        self._given_out: set[Place] = set()
        self._receivers: asyncio.Task[dict[str, str]] | None = None

    # --- sending ----------------------------------------------------------------------------------------------------

    def receivers(self) -> dict[str, str]:
        """The names in the rack of the workers to whom shards of this run are granted, by address. From any thread."""
        names: dict[str, str] = sync(self._loop, self._meet)
        return names

    async def _meet(self) -> dict[str, str]:
        if self._receivers is None:
            self._receivers = asyncio.ensure_future(self._meet_all())
        return await asyncio.shield(self._receivers)

    async def _meet_all(self) -> dict[str, str]:
        addresses = sorted(self.partitions_of)
        names = await asyncio.gather(*map(self._meet_one, addresses))
        return {address: name for address, name in zip(addresses, names, strict=True) if name is not None}

    async def _meet_one(self, address: str) -> str | None:
        if address == self.local_address:
            return str(self.shuffles.place.process.name)
        name = await asyncio.to_thread(self.shuffles.place.peer, address)
        if name is None:
            return None
        try:
            joined = await self.rpc(address).bequest_shuffle_join(shuffle_id=self.id, run_id=self.run_id)
        except OSError as trouble:
            logger.info("%s does not answer and gets its shards Dask's way: %s", address, trouble)
            return None
        return name if joined else None

    def give(self, source: Place, shares: Mapping[str, Sequence[Chunk]]) -> set[str]:
        """Grants each worker its shard; the addresses of those who got it, while that of others is to go Dask's way.

        The chunks for a worker are in the order of `partitions_of`.
        """
        names = self.receivers()
        given: set[str] = set()
        try:
            written = self._strips.write(
                source,
                {address: chunks for address, chunks in shares.items() if address in names},
                self._turns,
            )
        except RackMemoryError as trouble:
            self.shuffles.tell_of_full_rack(trouble)
            return given
        except RackGone as trouble:  # what was granted before is lost, and the receivers will begin anew
            logger.info("the shards of %s go Dask's way: %s", source, trouble)
            return given
        tag = tag_of(str(self.id), self.run_id)
        for address, regions in written.items():
            try:
                grant_shards(regions, names[address], tag)
            except BequestError as trouble:  # dead, gone: the scheduler will say what becomes of the shuffle
                left = [region for region in regions if region.owned]
                for region in left:
                    region._free_when_dropped()
                if len(left) < len(regions):
                    self.start_again(f"{address} got some of its shards only: {trouble}")
                logger.info("shards for %s go Dask's way: %s", address, trouble)
            else:
                given.add(address)
        return given

    # --- receiving --------------------------------------------------------------------------------------------------

    def take_in(self, shard: Shard) -> bool:
        """A shard has come; False if it is not wanted, since it came before or the run is over. In the loop."""
        source = self.received_as(shard.source)
        if self.closed or (source in self.received and source not in self._came):
            return False
        self.received.add(source)
        came = self._came.setdefault(source, set())
        if not came.isdisjoint(shard.places):
            return False
        came.update(shard.places)
        self.total_recvd += shard.nbytes
        self._all_shards.append(shard)
        for place in shard.places:
            self._shards.setdefault(place, []).append(shard)
        return True

    def received_as(self, source: Place) -> Any:
        """How Dask's run calls an input partition."""
        return source

    def place_of(self, output: Any) -> Place:
        """The place of what Dask's run calls so."""
        place: Place = output
        return place

    async def inputs_done(self) -> None:
        """The barrier: all has been sent. Waits until it is here."""
        await super().inputs_done()
        self._strips.close()
        await self.shuffles.fence()

    def shards_for(self, place: Place) -> list[Shard]:
        """What has come for an output partition, in the order of inputs. It can be had once: it is freed when read."""
        if not self.shuffles.usable:
            self.start_again("the rack has ended")
        if place in self._given_out:
            self.start_again(f"output {place} is wanted a second time")
        self._given_out.add(place)
        return sorted(self._shards.pop(place, ()), key=lambda shard: shard.source)

    @contextlib.contextmanager
    def losing_nothing(self) -> Iterator[None]:
        """Whoever loses a shard in here begins anew."""
        try:
            yield
        except BequestError as trouble:
            self.start_again(f"a shard was lost: {trouble}")

    def start_again(self, reason: str) -> NoReturn:
        """Has the scheduler begin the shuffle anew, and this task with it. Raises."""
        logger.info("%s begins anew: %s", self, reason)
        sync(self._loop, self._restart)
        raise Reschedule

    async def _restart(self) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it has been begun anew by now
            await self.scheduler.shuffle_barrier(id=self.id, run_id=self.run_id, consistent=False)

    async def close(self) -> None:
        """The run is over, well or not."""
        await super().close()
        self._strips.close()
        self._shards.clear()
        for shard in self._all_shards:
            shard.abandon()
        self._all_shards.clear()


def _kind_of(run: object) -> type[RackRun] | None:
    """Ours for Dask's. What a kind needs, which is much, is imported when there is a run of it."""
    if type(run) is DataFrameShuffleRun:
        from bequest.dask.shuffle_frames import FrameRun

        return FrameRun
    if type(run) is ArrayRechunkRun:
        from bequest.dask.shuffle_arrays import ArrayRun

        return ArrayRun
    return None


def install(place: RackWorker) -> None:
    """Has the worker's runs, from now on, take part in the rack; ``place.undo`` puts it back."""
    shuffles = Shuffles(place, place.worker.plugins["shuffle"])

    def entering(refresh: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def refresh_and_enter(*args: Any, **kwargs: Any) -> Any:
            run = await refresh(*args, **kwargs)
            kind = _kind_of(run)
            if kind is not None and shuffles.usable and dask.config.get(SWITCH, True):
                run.__class__ = kind
                run.enter(shuffles)
            return run

        return refresh_and_enter

    place.undo.callback(compat.wrap(shuffles.plugin.shuffle_runs, "_refresh", entering))
    place.worker.handlers["bequest_shuffle_join"] = shuffles.join
    place.undo.callback(place.worker.handlers.pop, "bequest_shuffle_join")
    place.post.route(SHARD, shuffles.deliver)
