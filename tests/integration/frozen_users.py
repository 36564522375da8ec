"""What actors do with frozen memory."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import bequest as bq
from actors import Seat

PAGE = 4096


def freeze(seat: Seat, key: str, nbytes: int = PAGE, value: int = 7) -> bytes:
    """The reference to a new frozen region, as it is sent about."""
    region = seat.kept[key] = seat.me.alloc(nbytes)
    region.array()[:] = value
    return pickle.dumps(region.freeze())


def read(seat: Seat, key: str, reference: bytes) -> int:
    """Begins to read; the address."""
    reading = seat.kept[key] = seat.me.read(pickle.loads(reference))
    return reading.address


def let_go(seat: Seat, key: str) -> None:
    seat.kept.pop(key).close()


def thaw(seat: Seat, key: str) -> None:
    seat.kept[key].thaw()


def is_frozen(seat: Seat, key: str) -> bool:
    return seat.kept[key].frozen


def steal_all(seat: Seat, victim: str) -> list[tuple[int, int, bool]]:
    """(address, bytes, whether it is frozen) of each region; kept as "stolen 0" and so on."""
    estate = seat.me.steal(victim)
    for number, region in enumerate(estate):
        seat.kept[f"stolen {number}"] = region
    return [(region.address, region.nbytes, region.frozen) for region in estate]


def storm(seat: Seat, path: str, seed: int) -> None:
    """Until it is killed: freezes, reads and frees, each with a pattern of its own, and tells of what is wrong."""
    place = Path(path)
    own: list[tuple[bq.Region, int]] = []
    for step in itertools.count(seed):
        value = step % 251
        region = seat.me.alloc(PAGE * (1 + step % 3))
        region.array()[:] = value
        reference = pickle.dumps((region.freeze(), value))
        (place / "new").write_bytes(reference)
        (place / "new").rename(place / str(step % 8))
        own.append((region, value))
        if len(own) > 4:
            own.pop(0)[0].free()
        for other in range(8):
            _read_one(seat, place / str(other))


def _read_one(seat: Seat, path: Path) -> None:
    try:
        frozen, value = pickle.loads(path.read_bytes())
        reading = seat.me.read(frozen)
    except (FileNotFoundError, EOFError, bq.RegionMoved):
        return
    with reading:
        found = reading.array()
        if not (found == value).all():
            (path.parent / "wrong").write_text(f"{frozen} is not {value}: {found}")
        del found
