"""Clusters for the benchmarks of `bequest.dask`: Dask's own and one on a rack, which take turns at the same job.

Both have the same two workers, processes of one thread each, and no limit of memory. What is looked at meanwhile:

* *bytes written to sockets*, by all of Dask's connections, in the workers and in the scheduler, which is in here;
* *memory*: what the workers have to themselves (RssAnon), and the slabs that the rack has handed out, free parts of
  them included; the largest sum of both, sampled. Dask's shuffle keeps shards in files, whose pages are not counted.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .measure import Noise

WORKERS = 2
SAMPLE_SECONDS = 0.05
SIDES = ("Dask's own", "on a rack")


_written: list[int] = []  # bytes, one for each message that went out of this process since it counts


def count_socket_bytes() -> None:
    """From now on, in this process."""
    from distributed.comm import tcp

    from bequest.dask.compat import wrap

    def counting(write: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
        async def write_and_count(*arguments: Any, **options: Any) -> int:
            _written.append(await write(*arguments, **options))
            return _written[-1]

        return write_and_count

    wrap(tcp.TCP, "write", counting)


def socket_bytes() -> int:
    """Counted in this process."""
    return sum(_written)


def rack_directory() -> str:
    """Of a worker's rack."""
    from bequest.dask.rack_worker import here

    place = here()
    assert place is not None, "the worker has joined no rack"
    return str(place.rack.directory)


def worker_pid() -> int:
    """Of the worker that runs this."""
    import os

    return os.getpid()


@dataclass
class Side:
    """A cluster, and what is known of its rounds."""

    name: str
    client: Any
    pids: list[int]
    rack: Any = None  # a connection for questions
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    socket_bytes: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def memory(self) -> int:
        """In use now."""
        total = sum(_private_bytes(pid) for pid in self.pids)
        if self.rack is not None:
            from bequest.wire import messages as wire

            daemons = self.rack.request(wire.Status("rack")).daemons
            total += sum(_memory_files(daemon.os_pid) for daemon in daemons if daemon.kind == "element")
        return total

    def sent(self) -> int:
        """Bytes written to sockets so far, in the workers and here."""
        return int(sum(self.client.run(socket_bytes).values())) + socket_bytes()

    def keep(self, collection: Any) -> Any:
        """The collection, computed and kept in the workers."""
        import distributed

        with self.client.as_current():
            kept = collection.persist()
            distributed.wait(kept)
        return kept

    def timed(self, job: Callable[[Side], Any]) -> Any:
        """One round: what the job makes."""
        sent = self.sent()
        with self.client.as_current(), _peak(self) as peak:
            started = time.perf_counter()
            made = job(self)
            self.seconds.append(time.perf_counter() - started)
        self.peak_bytes.append(peak[0])
        self.socket_bytes.append(self.sent() - sent)
        return made


def _memory_files(pid: int) -> int:
    """Of the files in memory that an element has made: slabs, those too that nobody has asked for yet."""
    total = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "memfd:bequest-" in str(link.readlink()):
                total += link.stat().st_blocks * 512
    return total


def _private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _peak(side: Side) -> Iterator[list[int]]:
    peak = [side.memory()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], side.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


@contextmanager
def both_sides(*, count_sockets: bool = True) -> Iterator[list[Side]]:
    """Dask's own cluster and one on a rack, both up; they work in turns."""
    import logging

    import distributed

    import bequest
    import bequest.dask

    if count_sockets:
        count_socket_bytes()
    kinds = (distributed.LocalCluster, bequest.dask.RackCluster)
    with ExitStack() as stack:
        sides = []
        for name, kind in zip(SIDES, kinds, strict=True):
            cluster = stack.enter_context(
                kind(
                    n_workers=WORKERS, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                    silence_logs=logging.ERROR,
                )
            )  # fmt: skip
            client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
            if count_sockets:
                client.run(count_socket_bytes)
            rack = None
            if kind is bequest.dask.RackCluster:
                (directory,) = set(client.run(rack_directory).values())
                rack = stack.enter_context(bequest.connect(directory))
            sides.append(Side(name, client, list(client.run(worker_pid).values()), rack))
        yield sides


def take_turns(
    sides: list[Side], job: Callable[[Side], Any], rounds: int, noise: Noise, say: Callable[[str], None]
) -> dict[str, list[Any]]:
    """What the job made on each side, round by round. The first round warms up and does not count."""
    made: dict[str, list[Any]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            noise.sample()
            made[side.name].append(side.timed(job))
            say(f"  {side.name}: {side.seconds[-1]:.2f} s")
            if number == 0:
                for samples in (side.seconds, side.peak_bytes, side.socket_bytes):
                    samples.clear()
    return made
