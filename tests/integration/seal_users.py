"""What actors do with sealed memory."""

from __future__ import annotations

from actors import Seat

PAGE = 4096


def state(seat: Seat, key: str) -> tuple[bool, int]:
    """Whether it is sealed, and how much of it is what it was."""
    region = seat.kept[key]
    return region.sealed, region.verify()


def leave_sealed(seat: Seat) -> None:
    """Three regions of 1, 2 and 3 pages; the second is not sealed."""
    for pages in (1, 2, 3):
        region = seat.kept[str(pages)] = seat.me.alloc(pages * PAGE)
        region.array()[:] = pages
        if pages != 2:
            region.seal()
