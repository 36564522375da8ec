"""The plugin that puts a cluster's workers into racks.

`Rack` is a scheduler plugin. When it starts it has the scheduler install `OnWorker` on every worker, those that come
later included. Each worker tells when it has joined; what is done about its death needs nothing else (`recovery`).
What all of them do is seen on a page (`page`) of the scheduler's own HTTP server.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from typing import TYPE_CHECKING, Any

import distributed
from distributed import NannyPlugin, SchedulerPlugin, WorkerPlugin
from tornado.ioloop import PeriodicCallback

from bequest.dask import compat
from bequest.dask.figures import LOOK_SECONDS, Figures
from bequest.dask.page import add_page
from bequest.dask.rack_worker import RackWorker
from bequest.dask.recovery import Estates

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Nanny, Scheduler, Worker

logger = logging.getLogger("distributed.scheduler.bequest")

PLUGIN_NAME = "bequest-rack"


class Rack(SchedulerPlugin):
    """Puts the workers of a Dask cluster into racks: ``client.register_plugin(bequest.dask.Rack())``.

    ``rack`` is the name or the directory of the rack that workers connect to, on their host. Without it they look for
    ``$BEQUEST_RACK``, then for the user's running rack, and else start one for this cluster, which ends with it. A
    worker that finds no rack works in Dask's own way, after one warning. Raises `UnsupportedDask`.
    """

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self, rack: str | None = None) -> None:
        compat.check()
        self.rack = rack
        self.estates: Estates | None = None
        self.figures: Figures | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Called by the scheduler."""
        compat.check()
        self.estates = Estates(scheduler)
        self.figures = figures = Figures(scheduler, self.estates, time.monotonic())
        self._looking = PeriodicCallback(lambda: figures.look(time.monotonic()), LOOK_SECONDS * 1000)
        self._looking.start()
        add_page(scheduler, PLUGIN_NAME)
        compat.place_outputs(scheduler)
        plugin = OnWorker(self.rack, f"dask-{scheduler.id.rpartition('-')[2][:12]}")
        answers: dict[str, Any] = await scheduler.register_worker_plugin(
            comm=None, plugin=pickle.dumps(plugin), name=PLUGIN_NAME, idempotent=True
        )
        for address, answer in answers.items():
            if answer["status"] != "OK":
                logger.error("%s has not joined a rack: %s", address, answer["exception_text"])
        # Not awaited: it waits until all nannies have started, who wait for workers, of whom one may wait for this.
        self._nannies = asyncio.create_task(_have_readers_spared(scheduler))

    async def close(self) -> None:
        """Called by the scheduler."""
        if self.figures is not None:
            self._looking.stop()

    def transition(self, key: Key, start: str, finish: str, *args: object, **more: object) -> None:
        """Called by the scheduler."""
        assert self.estates is not None
        self.estates.stragglers.on_transition(key, start, finish)

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **_: object) -> None:
        """Called by the scheduler."""
        assert self.estates is not None
        self.estates.forget(worker)

    def __reduce__(self) -> tuple[type[Rack], tuple[str | None]]:
        return Rack, (self.rack,)


async def _have_readers_spared(scheduler: Scheduler) -> None:
    """Puts `OnNanny` on all nannies, and tells of those that it is not on."""
    told = "the nanny of %s may end it for rack memory that it has only read: %s"
    try:
        answers: dict[str, Any] = await scheduler.register_nanny_plugin(
            comm=None, plugin=pickle.dumps(OnNanny()), name=PLUGIN_NAME, idempotent=True
        )
    except OSError as trouble:  # one of them has gone; Dask does not say what the others answered
        logger.error(told, "some worker", trouble)
        return
    for worker, answer in answers.items():
        if answer["status"] != "OK":
            logger.error(told, worker, answer["exception_text"])


class OnWorker(WorkerPlugin):
    """On each worker: has it join the rack, and leave it."""

    name = PLUGIN_NAME

    def __init__(self, rack: str | None, shared: str) -> None:
        self._wanted = rack
        self._shared = shared
        self._place: RackWorker | None = None

    async def setup(self, worker: Worker) -> None:
        """Called by the worker."""
        compat.check()
        self._place = await RackWorker.join(worker, self._wanted, self._shared)
        if self._place is not None:
            await worker.scheduler.bequest_joined(
                worker=worker.address, rack=str(self._place.rack.directory), name=self._place.process.name
            )

    def transition(self, key: Key, start: str, finish: str, **more: object) -> None:
        """Called by the worker."""
        if self._place is not None:
            self._place.half_done.on_transition(key, finish)

    def teardown(self, worker: Worker) -> None:
        """Called by the worker."""
        if self._place is not None:
            self._place.leave()
            self._place = None


class OnNanny(NannyPlugin):
    """On each nanny: has it look at its worker's own memory only."""

    name = PLUGIN_NAME

    def setup(self, nanny: Nanny) -> None:
        """Called by the nanny."""
        self._undo = compat.spare_readers(nanny)

    def teardown(self, nanny: Nanny) -> None:
        """Called by the nanny."""
        self._undo()


async def dask_setup(server: Scheduler | Worker) -> None:
    """For ``--preload bequest.dask``, of schedulers and workers."""
    if isinstance(server, distributed.Scheduler):
        await server.register_scheduler_plugin(Rack(), idempotent=True)
    else:
        await server.scheduler.register_scheduler_plugin(
            plugin=pickle.dumps(Rack()), name=PLUGIN_NAME, idempotent=True
        )
