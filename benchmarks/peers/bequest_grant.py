"""Bequest: the region is granted, the receiver accepts it, reads it in place and answers with a message.

A grant takes the pages away from the sender (its mapping is closed) and opens them, for writing too, to the
receiver; the answer is a message without memory. After the timed part B grants the region back, so that every
hand-off moves the same memory: A fills it anew each time, as with every other peer.

Waits come in four manners: both sides spin, the receiver sleeps and the sender spins for its answer, both sleep
at once, and as it comes: Bequest spins for a moment and then sleeps. Two more take the time from the grant until B has
read the first byte only, on 2 MiB and on 4 KiB pages; it is read from B's clock: CLOCK_MONOTONIC is one clock
for all processes.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any, ClassVar

from .. import bequest_side
from ..measure import GIB, PAGE_BYTES
from .pair import PairPeer, Receiver
from .peer import Pattern, as_bytes, checksum

PATIENCE_SECONDS = bequest_side.PATIENCE_SECONDS
ANSWER = struct.Struct("<Bd")


class GrantReceiver(Receiver):
    """Process B: a rack process of its own, named after A's with the suffix `-b`."""

    spin_seconds: ClassVar[float | None] = None

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        rack_key, self.sender = channel
        self.rack = bequest_side.join(rack_key)
        self.me = bequest_side.attach(self.rack, self.sender + "-b", self.spin_seconds)

    def receive(self) -> None:
        region = self.me.accept(PATIENCE_SECONDS)
        answer = self.read(region)
        self.me.send(self.sender, answer)
        self.take_possession(region)
        region.grant(self.sender)

    def read(self, region: Any) -> bytes:
        return ANSWER.pack(checksum(region), 0.0)

    def take_possession(self, region: Any) -> None:
        """Writes, as only an owner may: untimed, to a byte that is not part of the pattern."""
        view = memoryview(region)
        view[PAGE_BYTES - 1] = 7
        view.release()

    def close(self) -> None:
        self.me.detach()


class SpinningReceiver(GrantReceiver):
    """Never sleeps while it waits."""

    spin_seconds = PATIENCE_SECONDS


class SleepingReceiver(GrantReceiver):
    """Sleeps at once when nothing is there."""

    spin_seconds = 0.0


class FirstByteReceiver(GrantReceiver):
    """Answers with the time at which it held the first byte; the others are read after that, for the check."""

    def read(self, region: Any) -> bytes:
        view = memoryview(region)
        first = view[0]
        read_at = time.perf_counter()
        view.release()
        return ANSWER.pack(checksum(region), read_at if first >= 0 else 0.0)


class BequestDefault(PairPeer):
    title = "Bequest grant, as it comes"
    requires = ("bequest",)
    receiver = GrantReceiver
    spin_seconds: ClassVar[float | None] = None
    """How long a wait spins before it sleeps; None is the default of Bequest."""
    huge: ClassVar[bool | None] = None
    region: Any = None

    def make_channel(self) -> Any:
        self.rack = bequest_side.connect()
        self.name = f"benchmark-{os.getpid()}"
        self.me = bequest_side.attach(self.rack, self.name, self.spin_seconds)
        return bequest_side.rack_key(self.rack), self.name

    def prepare(self, nbytes: int) -> None:
        if self.region is not None:
            self.region.free()
        self.region = self.me.alloc(nbytes, huge=self.huge)
        as_bytes(self.region)[:] = 1
        self.pattern = Pattern(nbytes)
        self.announce(nbytes)

    def round(self) -> float:
        accept = self.me.accept
        receiver = self.name + "-b"
        self.pattern.write(self.region)
        started = time.perf_counter()
        self.region.grant(receiver)
        answer = accept(PATIENCE_SECONDS)
        ended = time.perf_counter()
        total, read_at = ANSWER.unpack(answer.tag)
        self.pattern.verify(total)
        self.region = accept(PATIENCE_SECONDS)
        return self.timing(started, ended, read_at)

    def timing(self, started: float, ended: float, read_at: float) -> float:
        return ended - started

    def close(self) -> None:
        super().close()
        self.me.detach()


class BequestSpinning(BequestDefault):
    title = "Bequest grant, both spin"
    receiver = SpinningReceiver
    spin_seconds = PATIENCE_SECONDS
    rest_seconds = 0


class BequestReceiverSleeping(BequestDefault):
    title = "Bequest grant, the receiver sleeps"
    receiver = SleepingReceiver
    spin_seconds = PATIENCE_SECONDS


class BequestSleeping(BequestDefault):
    title = "Bequest grant, both sleep"
    receiver = SleepingReceiver
    spin_seconds = 0.0


class BequestFirstByte(BequestDefault):
    title = "Bequest grant until the first byte is read, 2 MiB pages"
    receiver = FirstByteReceiver
    sizes = (GIB,)
    huge = True

    def timing(self, started: float, ended: float, read_at: float) -> float:
        return read_at - started


class BequestFirstByteSmallPages(BequestFirstByte):
    title = "Bequest grant until the first byte is read, 4 KiB pages"
    huge = False
