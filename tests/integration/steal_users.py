"""What processes ask of the Rack MMU when they steal, publish, or look names up."""

from __future__ import annotations

from typing import Any

import actors
import bequest as bq
from bequest.memory.connections import expect
from bequest.memory.group import combine
from bequest.wire import messages as wire


def take(process: bq.Process, victim: str, capability: bytes | None = None, **which: Any) -> wire.Stolen:
    """The Rack MMU's part of a steal, without adopting anything."""
    reply, _ = process._links.mmu.request(wire.Steal(victim, capability, **which))
    return expect(reply, wire.Stolen)


def take_with_shares(process: bq.Process, victim: str, shares: list[bytes]) -> wire.Stolen:
    return take(process, victim, combine(shares))


def steal(seat: actors.Seat, victim: str, capability: bytes | None = None) -> tuple[str, int]:
    """How it went, and how many bytes it brought; or the name of the exception."""
    try:
        stolen = take(seat.me, victim, capability)
    except bq.BequestError as error:
        return type(error).__name__, 0
    return stolen.how, stolen.nbytes


def attach_with_heir(seat: actors.Seat, name: str, secret: bytes, heir: str | None) -> int:
    seat.me = seat.rack.attach(name, group=secret, heir=heir)
    return seat.me.id


def name_heir(seat: actors.Seat, heir: str | None) -> None:
    seat.me.name_heir(heir)


def publish(seat: actors.Seat, path: str, key: str, offset: int = 0) -> None:
    seat.me.publish(path, seat.kept[key], offset)


def lookup(seat: actors.Seat, path: str) -> tuple[int, int]:
    region = seat.me.lookup(path)
    return region.address, region.nbytes


def store(seat: actors.Seat, key: str, value: int) -> None:
    """Writes for as long as it may."""
    seat.kept[key].array()[:] = value
