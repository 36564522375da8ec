"""What processes do that are fenced: they store, count, and look whether a store was lost."""

from __future__ import annotations

import threading
import time

import actors


def read_into(seat: actors.Seat, key: str) -> int:
    """Has the kernel store into it."""
    with open("/dev/zero", "rb", buffering=0) as zeros:
        read = zeros.readinto(memoryview(seat.kept[key]))
    assert read is not None
    return read


def count_on(seat: actors.Seat, key: str) -> None:
    """A thread adds to every byte of it, round after round, and counts the rounds."""
    array, counter = seat.kept[key].array(), Counter()
    array[:] = 0

    def run() -> None:
        while not counter.stop.is_set():
            array[:] += 1
            counter.rounds += 1

    counter.thread = threading.Thread(target=run, daemon=True)
    seat.kept["counter"] = counter
    counter.thread.start()


class Counter:
    def __init__(self) -> None:
        self.rounds = 0
        self.stop = threading.Event()


def has_counted(seat: actors.Seat, key: str) -> bool:
    """Whether no store was lost, and no exception ended it."""
    counter = seat.kept.pop("counter")
    before = counter.rounds
    time.sleep(0.05)
    counter.stop.set()
    counter.thread.join()
    return counter.rounds > before and set(seat.kept[key].array()) == {counter.rounds % 256}
