"""A Dask worker's place in the rack.

A worker attaches under a name that is its Dask address, so that anybody who knows a worker's address can ask the
rack's table, without a message, whether that worker is in the same rack: `RackWorker.peer`. Between hosts the
answer is no, and Dask's own ways are taken.

There is one place for each operating-system process. Workers that share a process (``processes=False``) share their
objects already; the first has the place, and the others need none.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
from typing import TYPE_CHECKING

from distributed import Status

from bequest.dask import compat, shuffle
from bequest.dask.data import RackData
from bequest.dask.figures import METRIC, figures_of
from bequest.dask.half_done import HalfDone
from bequest.dask.post import Post
from bequest.dask.recovery import Heir
from bequest.dask.shelf import INLINE_BYTES_MAX, Shelf
from bequest.dask.transfer import Transfers
from bequest.errors import BequestError, RackGone, UnknownProcess
from bequest.limits import NAME_BYTES_MAX
from bequest.memory.rack import connect
from bequest.runtime.directory import find

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Worker

    from bequest.memory.process import Process
    from bequest.memory.rack import Rack

logger = logging.getLogger("distributed.worker.bequest")  # seen where Dask shows its workers' logs

_here: RackWorker | None = None


def here() -> RackWorker | None:
    """The place of this process's worker in a rack, if it has one."""
    return _here


def name_of(address: str) -> str:
    """The name in the rack of the worker at this Dask address."""
    place = address.rpartition("://")[2].replace("/", "|")
    name = f"dask {place}"
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"dask {hashlib.sha256(place.encode()).hexdigest()[:32]}"
    return name


def find_rack(wanted: str | None, shared: str) -> Rack:
    """The rack named, else ``$BEQUEST_RACK``, the user's running one, or one for this cluster on this host."""
    found = find(wanted)
    return connect(shared, start=True) if found is None else connect(str(found.path))


class RackWorker:
    """What the parts of this package share on a worker.

    ``worker`` is Dask's, ``process`` what it is attached to the rack as. ``undo`` is called, last part first, when
    the plugin or the worker goes: whoever changes something of the worker's leaves there what puts it back.
    """

    def __init__(self, worker: Worker, rack: Rack, process: Process) -> None:
        self.worker = worker
        self.rack = rack
        self.process = process
        self.post = Post(process)
        self.undo = contextlib.ExitStack()
        self.shelf = Shelf(process)
        self.transfers = Transfers(self)
        self.half_done = HalfDone(self)

    @classmethod
    async def join(cls, worker: Worker, wanted: str | None, shared: str) -> RackWorker | None:
        """Attaches; None, with one warning, if no rack is to be had: then the worker works as without Bequest."""
        global _here  # noqa: PLW0603 - a process has one
        if _here is not None or worker.address.startswith("inproc://"):
            return None
        try:
            rack, process = await asyncio.to_thread(_attach, worker.address, wanted, shared)
        except BequestError as trouble:
            logger.warning("no rack for %s, which works in Dask's own way: %s", worker.address, trouble)
            return None
        _here = cls(worker, rack, process)
        _here._install()
        return _here

    def _install(self) -> None:
        """What the parts of this package change of the worker."""
        worker, shelf = self.worker, self.shelf
        data = RackData(worker.data, shelf)
        compat.replace_data(worker, data)
        self.undo.callback(self._give_data_back, data)
        Heir(self)
        self.post.start()
        self.undo.callback(self.post.close)
        shuffle.install(self)
        self.undo.callback(compat.count_memory(worker, shelf.blocks.kept_bytes))
        self.undo.callback(compat.after_each_task(worker, self._keep_large))
        worker.metrics[METRIC] = figures_of
        self.undo.callback(worker.metrics.pop, METRIC)

    def _keep_large(self, key: Key, result: object, nbytes: int) -> object:
        return self.shelf.place(key, result) if nbytes > INLINE_BYTES_MAX else result

    def _give_data_back(self, data: RackData) -> None:
        is_closing = self.worker.status in (Status.closing, Status.closed, Status.failed)
        compat.replace_data(self.worker, data.give_back(is_closing=is_closing))
        self.shelf.close()

    def peer(self, address: str) -> str | None:
        """The name in the rack of the worker at this Dask address, if it is in this rack and lives; else None."""
        name = name_of(address)
        try:
            self.process.wait_for(name, timeout=0)
        except (UnknownProcess, RackGone):
            return None
        return name

    def leave(self) -> None:
        """Puts everything back, and detaches. What somebody still has a view of is freed when this process ends."""
        global _here  # noqa: PLW0603 - a process has one
        _here = None
        self.undo.close()
        gc.collect()
        try:
            self.process.detach()
        except BufferError as trouble:
            logger.info("%s stays in the rack until its process ends: %s", self.worker.address, trouble)
        self.rack.close()


def _attach(address: str, wanted: str | None, shared: str) -> tuple[Rack, Process]:
    rack = find_rack(wanted, shared)
    try:
        return rack, rack.attach(name_of(address))
    except BaseException:
        rack.close()
        raise
