"""What forked, spawned and signalling processes do: top-level functions, so that fresh interpreters find them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import actors
import bequest as bq


def work_a_little(directory: Path, name: str) -> None:
    """A whole life in a rack."""
    with bq.connect(str(directory)) as rack, rack.attach(name) as me:
        region = me.alloc(4096)
        region.array()[:] = 7
        region.grant(name)
        with me.accept(actors.DEADLINE) as received:
            assert set(received.array().tolist()) == {7}


def greet(name: str, to: str) -> None:
    with bq.connect().attach(name) as me:
        region = me.alloc(4096)
        region.array()[:] = 7
        region.grant(to, tag=b"hello")


def become_a_sleeper(seat: actors.Seat) -> None:
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])


def signal_and_send(seat: actors.Seat, pid: int, to: str, signals: int, messages: int = 1) -> int:
    """Signals the process this many times while it waits, and sends in between."""
    for number in range(signals):
        os.kill(pid, signal.SIGUSR1)
        if number < messages - 1:
            seat.me.send(to, b"%d" % number)
    for number in range(signals, messages - 1):
        seat.me.send(to, b"%d" % number)
    seat.me.send(to, b"after the signals")
    return signals
