"""What programs do with signals of their own, around memory that is gone."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time

import actors
import bequest as bq
from bequest import _core
from losses import PAGE, cut_off


def enable_faulthandler(seat: actors.Seat, path: str) -> None:
    seat.kept["log"] = log = open(path, "w")  # noqa: SIM115
    faulthandler.enable(log)


def disable_faulthandler(seat: actors.Seat) -> None:
    faulthandler.disable()


def lose(seat: actors.Seat, key: str) -> int:
    """A region with a view, whose memory fails."""
    region = seat.kept[key] = seat.me.alloc(4 * PAGE)
    seat.kept[key, "view"] = memoryview(region)
    cut_off(seat.me, region)
    return region.address


def keep_view(seat: actors.Seat, key: str) -> None:
    seat.kept[key, "view"] = memoryview(seat.kept[key])


def touch(seat: actors.Seat, key: str, times: int = 1) -> str:
    """The exceptions' names."""
    names = []
    for _ in range(times):
        try:
            seat.kept[key, "view"][0] = 1
            names.append("nothing")
        except bq.MemoryLost as error:
            names.append(type(error).__name__)
    return " ".join(names)


def touch_in_a_thread(seat: actors.Seat, key: str) -> str:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(touch(seat, key)))
    thread.start()
    thread.join()
    return results[0]


def read_nowhere(seat: actors.Seat) -> None:
    ctypes.string_at(8)


def cut_own_mapping(seat: actors.Seat) -> None:
    """SIGBUS outside of the rack window."""
    import mmap

    fd = os.memfd_create("short")
    os.ftruncate(fd, PAGE)
    view = mmap.mmap(fd, PAGE)
    os.ftruncate(fd, 0)
    view[0]


def send_itself(seat: actors.Seat, number: int) -> None:
    os.kill(os.getpid(), number)


def touch_anew(seat: actors.Seat, key: str) -> str:
    time.sleep(0.02)  # it is looked who stands first in line once in a tick of the coarse clock
    seat.kept[key, "view"] = memoryview(seat.kept[key])
    return touch(seat, key)


def wait_and_touch(seat: actors.Seat, key: str) -> str:
    time.sleep(2 * _core.LOOK_INTERVAL)
    return touch(seat, key)


def handle_signals(seat: actors.Seat) -> None:
    seat.kept["signals"] = []
    signal.signal(signal.SIGBUS, lambda number, _: seat.kept["signals"].append(number))


def want_raw_signals(seat: actors.Seat, with_handler: bool) -> None:
    if with_handler:
        handle_signals(seat)
    seat.me.raw_memory_signals(True)


def handled_signals(seat: actors.Seat) -> list[int]:
    return seat.kept["signals"]


def touch_in_a_child(seat: actors.Seat, address: int) -> int:
    """How a forked child ends that touches its parent's memory, or what was its parent's."""
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(address, 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
