"""How data goes from worker to worker.

In Dask, a worker that needs a result asks one that has it, which serialises the value and writes it to a socket. In a
rack, a value that lies in blocks is answered by a *parcel*: the record that the shelf has of it, some hundred
bytes. Who asked opens the blocks for reading, where they lie, makes the value over them, and has the same record on
its own shelf. So nothing is copied, and from then on both have it: a copy that either may drop, die with, or
bequeath.

Parcels go only to who is found in the same rack by its address. Who was not found there is looked for again after a
while, for a worker may ask before it has joined. If a parcel cannot be opened, what was meant is asked for again in a
way that is not answered by parcels.

A request to a worker that has died ends when its death is known. Dask's own way is to knock at its door until a
time-out of half a minute, and what was asked for counts as in flight all that time, though another has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.comm.core import CommClosedError
from distributed.protocol.serialize import to_serialize

from bequest.dask import compat
from bequest.errors import BequestError

if TYPE_CHECKING:
    from dask.typing import Key

    from bequest.dask.rack_worker import RackWorker

logger = logging.getLogger("distributed.worker.bequest")

STRANGER_SECONDS = 1.0  # for which a worker that is not found in the rack is not looked for again


class Parcel(NamedTuple):
    """Sent in place of a value: the record of it."""

    record: bytes


def unpack(values: dict[Key, Any], arrive: Callable[[Key, bytes], object]) -> list[Key]:
    """Puts what parcels tell of in their place. Takes out those that cannot be opened, and returns their keys."""
    unopened = []
    for key, value in values.items():
        if type(value) is Parcel:
            try:
                values[key] = arrive(key, value.record)
            except BequestError as trouble:
                logger.warning("%r could not be read where it lies, and is sent instead: %s", key, trouble)
                unopened.append(key)
    for key in unopened:
        del values[key]
    return unopened


async def unpacked(
    answer: Any,
    arrive: Callable[[Key, bytes], object],
    ask_again: Callable[[list[Key]], Awaitable[Any]],
) -> Any:
    """The answer with the values that its parcels tell of. Those that cannot be opened are asked for again."""
    unopened = unpack(answer.get("data", {}), arrive)
    if unopened:
        again = await ask_again(unopened)  # they may be gone by now
        if again["status"] != "OK":
            return again
        answer["data"].update(again["data"])
    return answer


class Transfers:
    """What a worker asks others for, and is asked for."""

    def __init__(self, place: RackWorker) -> None:
        self._place = place
        self._under_way: dict[str, set[asyncio.Future[Any]]] = {}  # by whom they were made to
        self._neighbours: set[str] = set()  # addresses of workers in the same rack
        self._strangers: dict[str, float] = {}  # of those who were not, and until when that is believed
        place.undo.callback(compat.around_requests(self._request))
        place.undo.callback(compat.around_answers(place.worker, self._answer))
        place.undo.callback(compat.around_gifts(place.worker, self._take_in))
        place.undo.callback(compat.when_another_is_removed(place.worker, self._forget))

    # --- being asked -------------------------------------------------------------------------------------------------

    def _answer(self, who: str | None, values: dict[Key, Any]) -> dict[Key, Any]:
        """What is sent for these values to whoever is at that address."""
        if not who or not self.is_neighbour(who):
            return values
        return {key: self._packed(key, value) for key, value in values.items()}

    def _packed(self, key: Key, value: Any) -> Any:
        entry = self._place.shelf.entry(key)
        if entry is None:
            return value
        return to_serialize(Parcel(entry.record))  # type: ignore[no-untyped-call]

    def is_neighbour(self, address: str) -> bool:
        """Whether the worker at this address is in the same rack."""
        now = self._place.worker.loop.time()
        if address in self._neighbours:
            return True
        if now < self._strangers.get(address, now):
            return False
        if self._place.peer(address) is None:
            self._strangers[address] = now + STRANGER_SECONDS
            return False
        self._strangers.pop(address, None)
        self._neighbours.add(address)
        return True

    # --- being given, by a client ------------------------------------------------------------------------------------

    def _take_in(self, values: dict[Key, Any]) -> list[Key]:
        return unpack(values, self._place.shelf.arrive)

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _request(self, ask: compat.Ask, keys: Any, worker: str) -> Any:
        def ask_again(unopened: list[Key]) -> Awaitable[Any]:
            return self._until_it_dies(ask(unopened, ""), worker)

        answer = await self._until_it_dies(ask(keys, None), worker)
        return await unpacked(answer, self._place.shelf.arrive, ask_again)

    async def _until_it_dies(self, asked: Any, worker: str) -> Any:
        asking = asyncio.ensure_future(asked)
        under_way = self._under_way.setdefault(worker, set())
        under_way.add(asking)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking in under_way:  # it is this request's caller that has been cancelled
                asking.cancel()
                raise
            raise CommClosedError(f"{worker} has died") from None
        finally:
            under_way.discard(asking)
            if not under_way:
                self._under_way.pop(worker, None)

    def abandon(self, worker: str) -> None:
        """Ends the requests to a worker that has died, as if it had closed the connection."""
        under_way = self._under_way.pop(worker, set())
        while under_way:
            under_way.pop().cancel()

    def _forget(self, worker: str) -> None:
        self.abandon(worker)
        self._neighbours.discard(worker)
        self._strangers.pop(worker, None)
