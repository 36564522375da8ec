"""What actors do to each other's memory in the tests of stealing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
import zlib
from typing import Any

import numpy as np

import bequest as bq
from actors import Seat

PAGE = 4096


def steal(seat: Seat, victim: str, *arguments: Any, **how: Any) -> dict[str, Any]:
    """Keeps the estate and tells what is in it."""
    estate = seat.kept["estate"] = seat.me.steal(victim, *arguments, **how)
    return told(estate)


def told(estate: bq.Estate) -> dict[str, Any]:
    return {
        "how": estate.how,
        "addresses": [region.address for region in estate],
        "nbytes": [region.nbytes for region in estate],
        "values": [np.unique(region.array()).tolist() for region in estate],
        "inbox": [(region.tag, region.sender, region.nbytes) for region in estate.inbox],
        "senders": sorted({region.sender for region in estate}),
        "names": {path: region.address for path, region in estate.names.items()},
    }


def fill_estate(seat: Seat, value: int) -> None:
    for region in seat.kept["estate"]:
        region.array()[:] = value


def values_of_estate(seat: Seat) -> list[int]:
    return sorted({value for region in seat.kept["estate"] for value in np.unique(region.array()).tolist()})


def grant_estate(seat: Seat, to: str) -> None:
    for region in seat.kept.pop("estate"):
        region.grant(to)


def alloc_many(seat: Seat, count: int, nbytes: int) -> list[int]:
    for index in range(count):
        region = seat.kept[f"region {index}"] = seat.me.alloc(nbytes)
        region.array()[:] = index % 251
    return [seat.kept[f"region {index}"].address for index in range(count)]


def publish(seat: Seat, path: str, key: str, offset: int = 0) -> None:
    seat.me.publish(path, seat.kept[key], offset)


def write_on(seat: Seat, key: str) -> None:
    """A thread stores into the region until it is told that it must not; then it keeps the error."""
    array = seat.kept[key].array()

    def run() -> None:
        try:
            while True:
                array[:] += 1
        except bq.MemoryRevoked as error:
            seat.kept["error"] = error

    seat.kept["writer"] = threading.Thread(target=run, daemon=True)
    seat.kept["writer"].start()


def written_to_the_end(seat: Seat, seconds: float) -> str:
    """What stopped the writer; else nothing."""
    seat.kept["writer"].join(seconds)
    return type(seat.kept["error"]).__name__ if "error" in seat.kept else ""


def deadlock(seat: Seat) -> None:
    """Two threads that each wait for what the other has, and this one for both; it never returns."""
    first, second, both_have_one = threading.Lock(), threading.Lock(), threading.Barrier(2)

    def run(mine: threading.Lock, other: threading.Lock) -> None:
        with mine:
            both_have_one.wait()
            other.acquire()

    crew = [threading.Thread(target=run, args=locks) for locks in ((first, second), (second, first))]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


def keep_the_gil(seat: Seat) -> None:
    """Waits in C code that never lets another thread run; it never returns."""
    ctypes.PyDLL(None).pause()


def touch(seat: Seat, key: str) -> str:
    """Stores one byte, and tells the error."""
    try:
        seat.kept[key].array()[0] = 99
    except bq.BequestError as error:
        return type(error).__name__
    return "no error"


def die_when_asked(seat: Seat, victim: str) -> None:
    """Asks for the theft and is killed before it has the reply."""
    timer = threading.Timer(0, os.kill, (os.getpid(), signal.SIGKILL))
    timer.start()
    with contextlib.suppress(bq.BequestError):
        seat.me.steal(victim)
    timer.join()


def append(seat: Seat, key: str, record: bytes) -> None:
    with memoryview(seat.kept[key]) as view:
        end = len(bytes(view).rstrip(b"\0"))
        view[end : end + len(record)] = record


def store_through(seat: Seat, key: str) -> str:
    """Into a view that was made before."""
    try:
        seat.kept[key][0] = 99
        time.sleep(0)
    except bq.BequestError as error:
        return type(error).__name__
    return "no error"


def let_go(seat: Seat, key: str) -> None:
    seat.kept.pop(key).release()


# --- state that is whole after a death at any instant -----------------------------------------------------------------

_COPY_BYTES = 6


def update_by_shadow_copy(seat: Seat, key: str, state: bytes, steps: int) -> None:
    """Writes the copy that is not the current one, in two parts, and then makes it that: the first of these steps."""
    assert len(state) == _COPY_BYTES
    with memoryview(seat.kept[key]) as view:
        other = PAGE * (2 if view[0] == 1 else 1)
        parts = [(other, state[:3]), (other + 3, state[3:]), (0, bytes([other // PAGE]))]
        for place, data in parts[:steps]:
            view[place : place + len(data)] = data


def current_copy(region: bq.Region) -> bytes:
    with memoryview(region) as view:
        start = view[0] * PAGE
        return bytes(view[start : start + _COPY_BYTES])


def fill_and_sum_pages(seat: Seat, key: str) -> list[int]:
    array = seat.kept[key].array("uint32")
    array[:] = np.arange(len(array)) * 2654435761 % 2**32
    del array
    return page_sums(seat.kept[key])


def page_sums(region: bq.Region) -> list[int]:
    with memoryview(region) as view:
        return [zlib.crc32(view[start : start + PAGE]) for start in range(0, len(view), PAGE)]


def invoke(seat: Seat, path: str, argument: int) -> dict[str, int]:
    """A function whose state lies in rack memory under a path, as one object; what that is after this call."""
    try:
        region = seat.me.lookup(path)
        state = bq.loads(region)
    except bq.UnknownName:
        state = {"calls": 0, "sum": 0}
    state = {"calls": state["calls"] + 1, "sum": state["sum"] + argument}
    seat.kept["state"] = fresh = bq.dumps(state, seat.me)
    seat.me.publish(path, fresh)  # one step: whoever looks finds the state before or after it
    return state
