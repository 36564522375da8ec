"""A client at the rack of its workers: what it gathers it reads where it lies, what it scatters is read where it was.

Dask has no plugins for clients. What a client gathers comes by sockets, through the scheduler, and is copied several
times on its way, also when client and workers are on one host. A client that has *joined* is a process of the rack
like a worker is, only that it keeps no results: it asks workers itself, is answered by parcels (`transfer`), and opens
them for reading. What it reads stays for as long as the client holds it, whatever becomes of the worker, as with any
frozen region.

What it scatters goes the other way: it is copied once, into a block, and the worker is sent the parcel. Then the client
frees the block, which is its reader's from then on: the worker's, or the heir's when that dies (native/readings.hpp).

With workers of other racks, and with values that find no room, it is Dask's own way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
from typing import TYPE_CHECKING, Any

from bequest.dask import compat
from bequest.dask.blocks import Block, Blocks
from bequest.dask.rack_worker import name_of
from bequest.dask.shelf import references_of, shelved, value_of
from bequest.dask.transfer import Parcel, unpacked
from bequest.errors import BequestError, NoRack, RackGone, UnknownProcess
from bequest.memory.rack import connect

if TYPE_CHECKING:
    from types import TracebackType

    from dask.typing import Key
    from distributed import Client, Scheduler

    from bequest.memory.process import Process
    from bequest.memory.rack import Rack

logger = logging.getLogger("distributed.client.bequest")

_numbers = itertools.count()
_left: set[Seat] = set()  # that are closed, but whose clients still have values


class Seat:
    """A client's place in the rack, until `close`; a context manager. `join` makes it."""

    def __init__(self, client: Client, rack: Rack, process: Process, address: str) -> None:
        self._rack = rack
        self._process = process
        self._address = address  # what workers are told about who asks
        self._blocks = Blocks(process)
        self._undo = contextlib.ExitStack()
        self._undo.callback(setattr, client, "direct_to_workers", client.direct_to_workers)
        client.direct_to_workers = True
        self._undo.callback(compat.around_client(client, compat.Joined(self._gather, self._scatter)))

    async def _gather(self, ask: compat.Ask, keys: Any, worker: str) -> Any:
        return await unpacked(await ask(keys, self._address), self._open, lambda again: ask(again, ""))

    async def _scatter(self, give: compat.Give, values: compat.Values, worker: str) -> dict[str, Any]:
        if not self._is_here(worker):
            return await give(values)
        sent, blocks = await asyncio.to_thread(self._packed, values)
        answer = await give(sent)
        unopened = {key: values[key] for key in answer.get("left", ())}
        if unopened:
            again = await give(unopened)
            answer["nbytes"] |= again["nbytes"]
        del blocks  # until now: the worker reads them
        return answer

    def _is_here(self, worker: str) -> bool:
        try:
            self._process.wait_for(name_of(worker), timeout=0)
        except (UnknownProcess, RackGone):
            return False
        return True

    def _packed(self, values: compat.Values) -> tuple[compat.Values, list[Block]]:
        """What is sent for these: parcels of what is large; and what must be held until they have been opened."""
        sent, blocks = dict(values), list[Block]()
        for key, value in values.items():
            try:
                made = shelved(self._blocks, key, value)
            except BequestError as trouble:
                logger.warning("%r finds no place in the rack, and is sent instead: %s", key, trouble)
                continue
            if made is not None and made[1].blocks:
                sent[key] = Parcel(made[1].record)
                blocks += made[1].blocks
        return sent, blocks

    def _open(self, key: Key, record: bytes) -> object:
        return value_of(record, [self._blocks.open(reference) for reference in references_of(record)])

    def close(self) -> None:
        """From now on the client gathers copies again. What it has gathered before stays readable."""
        self._undo.close()
        gc.collect()
        _left.add(self)
        for seat in list(_left):
            seat._leave()

    def _leave(self) -> None:
        try:
            self._process.detach()
        except BufferError:  # the client has values still: when another seat is left it is tried again
            return
        self._rack.close()
        _left.discard(self)

    def __enter__(self) -> Seat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def join(client: Client) -> Seat:
    """Has a client take part in the rack of its workers on this host: ``with bequest.dask.join(client): …``.

    From then on large results that it gathers (`Client.gather`, `Future.result`, ``compute``) are not copied, and are
    read-only; large values that it scatters are copied once. It asks workers directly, and must be able to reach them.

    Raises `NoRack` if there is none of theirs here, and TypeError for an asynchronous client.
    """
    compat.check()
    if client.asynchronous:
        raise TypeError(
            "an asynchronous client cannot join: have it run in a thread of its own, asynchronous=False"
        )
    trouble: BequestError | None = None
    for directory in client.run_on_scheduler(_racks):  # type: ignore[no-untyped-call]
        address = f"{client.id}|{next(_numbers)}"
        try:
            rack = connect(directory)
        except BequestError as error:  # of another host
            trouble = error
            continue
        try:
            return Seat(client, rack, rack.attach(name_of(address)), address)
        except BaseException:
            rack.close()
            raise
    raise NoRack(
        "no worker of this cluster is in a rack on this host that this process may join"
    ) from trouble


def _racks(dask_scheduler: Scheduler) -> list[str]:
    """On the scheduler: the directories of all racks that workers are in."""
    plugin: Any = dask_scheduler.plugins.get("bequest-rack")
    return [] if plugin is None else sorted({member.rack for member in plugin.estates.members.values()})
