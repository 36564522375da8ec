"""What processes do while the Rack MMU is killed: top-level functions, for actors."""

from __future__ import annotations

import random
import time

import actors
import bequest as bq
from bequest.wire import messages as wire

PAGE = 4096
MIB = 1 << 20


def hand_back(seat: actors.Seat, to: str) -> int:
    """Grants back whatever comes, until an empty message does; how many that were."""
    count = 0
    while True:
        region = seat.me.accept(60)
        if region.nbytes == 0:
            return count
        region.grant(to)
        count += 1


def alloc_and_free(seat: actors.Seat, seconds: float, seed: int) -> int:
    """Needs slabs all the time, gives some of the memory back, and finds in it what it wrote."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    held: list[tuple[bq.Region, int]] = []
    count = 0
    while time.monotonic() < end:
        size = chance.choice((PAGE, 3 * MIB, 5 * MIB))
        try:
            region = seat.me.alloc(size)
        except bq.RackMemoryError:
            assert held, "there must be room for one"
        else:
            mark = chance.randrange(256)
            memoryview(region)[:8] = bytes([mark]) * 8
            held.append((region, mark))
            count += 1
        while len(held) > 4:
            region, mark = held.pop(chance.randrange(len(held)))
            assert bytes(memoryview(region)[:8]) == bytes([mark]) * 8
            region.free()
    for region, mark in held:
        assert bytes(memoryview(region)[:8]) == bytes([mark]) * 8
        region.free()
    return count


def come_and_go(seat: actors.Seat, name: str, seconds: float) -> int:
    """Attaches and detaches under one name, which must be free again each time."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        with seat.rack.attach(name) as process:
            region = process.alloc(2 * PAGE)
            region.grant(name)
            assert process.accept(30).address == region.address
        count += 1
    return count


def give_across(seat: actors.Seat, to: str, nbytes: int, seconds: float) -> int:
    """Grants to another group and waits until it comes back; every page is as it was."""
    end = time.monotonic() + seconds
    region = seat.me.alloc(nbytes)
    count = 0
    while time.monotonic() < end:
        memoryview(region)[:] = bytes([count % 256]) * nbytes
        address = region.address
        region.grant(to, timeout=30)
        region = seat.me.accept(60)
        assert region.address == address
        count += 1
        assert bytes(memoryview(region)) == bytes([count % 256]) * nbytes
    region.free()
    seat.me.alloc(PAGE).grant(to, tag=b"over")
    return count


def take_across(seat: actors.Seat, to: str) -> int:
    count = 0
    while True:
        region = seat.me.accept(120)
        if region.tag == b"over":
            region.free()
            return count
        count += 1
        with memoryview(region) as view:
            view[:] = bytes([count % 256]) * region.nbytes
        region.grant(to, timeout=30)


def open_and_close(seat: actors.Seat, seconds: float) -> int:
    """Mailboxes: each is opened under a name, used, and closed, and the name is free again."""
    end = time.monotonic() + seconds
    me = seat.me
    count = 0
    while time.monotonic() < end:
        opened, _ = me._links.mmu.request(wire.OpenMailbox(f"box of {me.name}", create=True))
        assert isinstance(opened, wire.MailboxOpened), opened
        assert me._send(opened.id, opened.incarnation, b"letter", 8) == 0
        (letter,) = me._accept(opened.id, 1, 10**9)
        assert letter.tag == b"letter"
        closed, _ = me._links.mmu.request(wire.CloseMailbox(opened.id))
        assert isinstance(closed, wire.Done)
        count += 1
    return count
