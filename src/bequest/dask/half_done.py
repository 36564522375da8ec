"""The half-done tasks of a worker: where their progress lies, and whose it is.

The progress of a task is one region, with a heap in it that does not grow, published under a path that follows from
the task's key and function alone. Names follow memory; so a worker that begins a task finds by that path whether
some run of it has left something, and who has it: the worker itself, which inherited it; another one, dead or alive.
It steals that one region. If the other still runs the task, it is fenced by that: two runs never have one progress.

The progress is freed by the worker's own thread when the task has come to its end there: for a result, when that is
in the worker's data, so that a worker that dies in between has lost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from bequest.dask.resumable import Progress
from bequest.errors import (
    BequestError,
    CorruptHeap,
    ForeignHeap,
    HeapMisuse,
    MemoryLost,
    NameTaken,
    NotOwner,
    ProcessDead,
    RackMemoryError,
    UnknownName,
    UnknownProcess,
)
from bequest.objects.heap import Heap

if TYPE_CHECKING:
    from dask.typing import Key

    from bequest.dask.rack_worker import RackWorker
    from bequest.memory.estate import Estate
    from bequest.memory.region import Region

logger = logging.getLogger("distributed.worker.bequest")

REPORT_INTERVAL = (
    0.25  # seconds between two words to the scheduler about how far tasks have come; the first is at once
)
_TRIES = 5  # at a progress that others are after, too
_GONE = (UnknownName, NotOwner, UnknownProcess, ProcessDead)  # it went to somebody else, or was freed
_ENDED = frozenset(
    {"memory", "error", "rescheduled", "released", "forgotten"}
)  # states of a task on its worker


class Run:
    """A task that is run here: what it has, in which region, and whether its function has returned."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.heap = Heap.open(region, grow=False)
        self.progress = Progress(self.heap)
        self.is_over = False

    def free(self) -> None:
        """Gives its memory back, as soon as nobody has a view of it."""
        with contextlib.suppress(MemoryLost):
            self.heap.close()
        _free(self.region)


class HalfDone:
    """The desk of one worker. `begin` is called in tasks' threads, all else in the worker's."""

    def __init__(self, place: RackWorker) -> None:
        worker = place.worker
        self._place = place
        self._process = place.process
        self._root = f"/dask/{_digest(worker.scheduler.address)}/progress"
        self._lock = threading.Lock()
        self._runs: dict[Key, dict[str, Run]] = {}  # by function
        self._kept: dict[str, Region] = {}  # by path: what is nobody's run yet
        self._warned = False
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()  # a task that the scheduler has not been told of
        worker.handlers["bequest_take_over"] = self.take_over
        worker.handlers["bequest_drop"] = self.drop
        place.undo.callback(worker.handlers.pop, "bequest_take_over")
        place.undo.callback(worker.handlers.pop, "bequest_drop")
        reporter = asyncio.create_task(self._report())
        place.undo.callback(reporter.cancel)
        place.undo.callback(self._leave)

    # --- in a task's thread ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def begin(self, key: Key, function: str, nbytes: int) -> Iterator[Progress]:
        """The progress of a task: what an earlier run has left, or a fresh one."""
        run = self._run(key, function, nbytes)
        if run is None:
            yield Progress()
            return
        try:
            yield run.progress
        finally:
            run.is_over = True

    def _run(self, key: Key, function: str, nbytes: int) -> Run | None:
        """None if there is no room, or if the task has called this function before: it has one progress."""
        with self._lock:
            if function in self._runs.get(key, ()):
                return None
        path = f"{self._path(key)}/{_digest(function)}"
        try:
            run = self._found(path) or self._fresh(path, nbytes)
        except RackMemoryError as full:
            if not self._warned:
                self._warned = True
                logger.warning("a resumable task has no room in the rack, and will not be resumed: %s", full)
            return None
        with self._lock:
            self._runs.setdefault(key, {})[function] = run
        self._loop.call_soon_threadsafe(self._begun.set)
        if run.progress.resumed:
            self._process._count_resumed()
            logger.info("%r goes on after %d steps", key, run.progress.steps)
        return run

    def _found(self, path: str) -> Run | None:
        """What is there under this path, taken from whoever has it."""
        for _ in range(_TRIES):
            with self._lock:
                region = self._kept.pop(path, None)
            region = region or self._taken(path)
            if region is None:
                return None
            try:
                return Run(region)
            except MemoryLost:
                continue  # somebody has taken it meanwhile; take it back
            except (CorruptHeap, ForeignHeap, HeapMisuse) as trouble:
                logger.warning("what was half done cannot be opened, and is done anew: %s", trouble)
                _free(region)
                return None
        raise NameTaken(f"{path} goes from hand to hand: the task is run by several workers at once")

    def _taken(self, path: str) -> Region | None:
        """The region under this path, ours from now on; None if there is none."""
        for name in self._process.list(path):
            with contextlib.suppress(*_GONE):
                (region,) = self._process.steal(name.owner, only=[name.path])
                return region
        return None

    def _fresh(self, path: str, nbytes: int) -> Run:
        region = self._process.alloc(nbytes)
        try:
            Heap.create(region, grow=False).close()
            self._process.publish(path, region)
            return Run(region)
        except BaseException:
            _free(region)
            raise

    # --- in the worker's thread --------------------------------------------------------------------------------------

    def on_transition(self, key: Key, finish: str) -> None:
        """Frees the progress of a task that has come to its end here."""
        if finish not in _ENDED or key not in self._runs:
            return
        with self._lock:
            runs = self._runs[key]
            for function in [name for name, run in runs.items() if run.is_over]:
                runs.pop(function).free()
            if not runs:
                del self._runs[key]

    def keep(self, estate: Estate, begun: Collection[Key]) -> dict[int, Key]:
        """Keeps what a dead worker had half done of these tasks, for whoever goes on: where it lies, and the task."""
        paths = {self._path(key): key for key in begun}
        kept: dict[int, Key] = {}
        for path, region in estate.names.items():
            key = paths.get(path.rpartition("/")[0])
            if key is not None:
                with self._lock:
                    self._kept[path] = region
                kept[region.address] = key
        return kept

    async def take_over(self, key: Key, victim: str) -> bool:
        """Takes the progress of a task from the living worker that runs it, and so fences that run."""
        taken = False
        for name in await asyncio.to_thread(self._process.list, self._path(key)):
            if name.owner != victim:
                continue
            try:
                (region,) = await asyncio.to_thread(self._process.steal, victim, only=[name.path])
            except _GONE:
                continue  # it has ended meanwhile
            with self._lock:
                self._kept[name.path] = region
            taken = True
        return taken

    async def drop(self, key: Key) -> None:
        """Frees what was kept for a task that nobody will run."""
        prefix = self._path(key) + "/"
        with self._lock:
            regions = [self._kept.pop(path) for path in list(self._kept) if path.startswith(prefix)]
        for region in regions:
            _free(region)

    async def _report(self) -> None:
        """Tells the scheduler how far each task has come, while there are any.

        Of one that has begun at once: of a worker that then never says another word it is known what it was doing.
        """
        worker = self._place.worker
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), REPORT_INTERVAL)
            self._begun.clear()
            with self._lock:
                steps = [
                    (key, run.progress.steps)
                    for key, runs in self._runs.items()
                    for run in runs.values()
                    if not run.is_over
                ]
            if steps:
                try:
                    await worker.scheduler.bequest_progress(worker=worker.address, steps=steps)
                except OSError as trouble:  # Dask finds out by itself, and tells
                    logger.debug("the scheduler was not told of progress: %s", trouble)

    def _leave(self) -> None:
        with self._lock:
            runs = [run for of_task in self._runs.values() for run in of_task.values()]
            kept = list(self._kept.values())
            self._runs.clear()
            self._kept.clear()
        for run in runs:
            if run.is_over:
                run.free()
        for region in kept:
            _free(region)

    def _path(self, key: Key) -> str:
        return f"{self._root}/{_digest(repr(key))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _free(region: Region) -> None:
    """Now, or when the last view has gone. What is another's by now is not ours to free."""
    with contextlib.suppress(BequestError):
        try:
            region.free()
        except BufferError:
            region._free_when_dropped()
