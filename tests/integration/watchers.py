"""What actors do about failures: they listen, handle, name contacts, stand by."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from typing import Any

import bequest as bq
from actors import DEADLINE, Seat


def listen(seat: Seat) -> None:
    """From now on."""
    _ = seat.me.events


def next_event(seat: Seat, timeout: float = DEADLINE) -> bq.Event:
    return seat.me.events.get(timeout)


def no_event(seat: Seat, seconds: float) -> list[bq.Event]:
    """What came although nothing was to."""
    try:
        return [seat.me.events.get(seconds)]
    except bq.AcceptTimeout:
        return []


def name_contacts(seat: Seat, *names: str) -> None:
    seat.me.emergency_contacts(names)


def handle(seat: Seat, how: str) -> None:
    """Registers a handler of memory failures: "well", "badly", "late" or "slowly" (never in time)."""
    handled: list[Any] = seat.kept.setdefault("handled", [])

    def handler(event: bq.MemoryFailed) -> None:
        handled.append(event)
        if how == "badly":
            raise ValueError("the handler of this test fails")
        if how == "late":
            time.sleep(0.4)
        if how == "slowly":
            time.sleep(DEADLINE)

    seat.me.on_memory_failure(handler)


def handled(seat: Seat) -> list[Any]:
    return list(seat.kept.get("handled", []))


def threads(seat: Seat) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def page_values(seat: Seat, key: str) -> list[int | None]:
    """The first byte of each page of a region; None for pages that have failed."""
    values: list[int | None] = []
    view = seat.kept[key].array()
    for page in range(len(view) // 4096):
        try:
            value = int(view[page * 4096])
            time.sleep(0)
            values.append(value)
        except bq.MemoryFailure:
            values.append(None)
    return values


def hang_under_a_watchdog(seat: Seat, seconds: float) -> None:
    """Gets on for a while, and then waits in C code with the GIL; and gets on again."""
    with seat.me.watchdog(seconds) as watchdog, seat.me.watchdog(1000):
        for _ in range(10):
            time.sleep(seconds / 4)
            watchdog.progress()
        ctypes.PyDLL(None).usleep(int(4 * seconds * 1e6))
        watchdog.progress()
        time.sleep(seconds / 4)


MCEERR_AR, MCEERR_AO = 4, 5


def machine_check(seat: Seat, address: int, code: int = MCEERR_AR) -> bool:
    """Gets the signal that the kernel sends for a page that the hardware has lost; whether that became an exception.

    It cannot be had for real without a kernel that lets pages be poisoned. A process may send itself any siginfo.
    """
    rt_tgsigqueueinfo, lsb = 297, 12
    about = struct.pack("iiiiQh", signal.SIGBUS, 0, code, 0, address, lsb).ljust(128, b"\0")
    try:
        libc = ctypes.CDLL(None)
        libc.syscall(rt_tgsigqueueinfo, os.getpid(), threading.get_native_id(), int(signal.SIGBUS), about)
        time.sleep(0)
    except bq.MemoryFailure as failure:
        return failure.address == address
    return False


def take_over(seat: Seat, predecessor: str) -> None:
    """As soon as it dies, its memory is this process's."""
    taken = seat.kept["taken"] = threading.Event()

    def steal(death: bq.Death) -> None:
        seat.kept["estate"] = death.steal()
        taken.set()

    seat.kept["standby"] = seat.me.standby(for_=predecessor, then=steal)


def has_taken_over(seat: Seat) -> list[int]:
    """Where, and what its first word says; which is counted up."""
    assert seat.kept["taken"].wait(DEADLINE)
    found = []
    for region in seat.kept["estate"]:
        words = region.array("u8")
        found += [region.address, int(words[0])]
        words[0] += 1
    return found


def receive_and_count(seat: Seat) -> None:
    region = seat.kept["region"] = seat.me.accept(DEADLINE)
    region.array("u8")[0] += 1


def attach_at(seat: Seat, name: str, compute: str) -> int:
    seat.me = seat.rack.attach(name, compute=compute)
    return seat.me.id
