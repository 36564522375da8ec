"""What hostile processes do: they keep what they once had, and open what they should not."""

from __future__ import annotations

import ctypes
import mmap
import os

import actors
from bequest.wire import messages as wire

PAGE = 4096


def keep_slab(seat: actors.Seat, slab: int) -> None:
    """Maps a slab's memory aside, where neither the library nor the rack knows of it."""
    fd = seat.me._links.open_slab(slab)[0]
    seat.kept["slab"] = mmap.mmap(fd, os.fstat(fd).st_size)
    os.close(fd)


def cut_slab_at(seat: actors.Seat, address: int) -> None:
    """Takes the memory of a whole slab away from everybody."""
    [slab] = [slab[0] for slab in seat.me.table.slabs() if slab[1] <= address < slab[1] + slab[2] * PAGE]
    fd = seat.me._links.open_slab(slab)[0]
    os.ftruncate(fd, 0)
    os.close(fd)


def read_kept(seat: actors.Seat, offset: int, nbytes: int) -> bytes:
    return seat.kept["slab"][offset : offset + nbytes]


def bytes_in_kept(seat: actors.Seat) -> list[int]:
    """The distinct bytes in all of it."""
    return sorted(set(seat.kept["slab"][:]))


def write_kept(seat: actors.Seat, offset: int, value: bytes) -> None:
    seat.kept["slab"][offset : offset + len(value)] = value


def detach_and_keep(seat: actors.Seat) -> None:
    seat.me.detach()


def force_open(seat: actors.Seat, address: int, value: int) -> int:
    """Opens a page whoever owns it, reads its first byte and writes another."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    found = ctypes.string_at(address, 1)[0]
    ctypes.memset(address, value, 1)
    return found


def all_around(seat: actors.Seat, address: int) -> list[int]:
    """The distinct bytes in the slab of this group that holds the address, read through the memory element."""
    slabs = [slab for slab in seat.me.table.slabs() if slab[1] <= address < slab[1] + slab[2] * PAGE]
    keep_slab(seat, slabs[0][0])
    return bytes_in_kept(seat)


def reopen(seat: actors.Seat, slab: int) -> None:
    """Asks the memory element for a slab once more, whatever the own table says of it."""
    links = seat.me._links
    _, fds = links._elements[0].request(wire.OpenSlab(links.attached.element_ticket, slab))
    os.close(*fds)


def join(seat: actors.Seat, name: str, secret: bytes) -> None:
    """Asks the Rack MMU for a place in a group, over a connection of its own."""
    links = seat.me._links
    mmu = type(links.mmu)(links.directory / "mmu.sock")
    try:
        mmu.request(wire.Attach(name, secret))
    finally:
        mmu.close()


def fresh(seat: actors.Seat, key: str, nbytes: int) -> int:
    """Allocates, and touches nothing."""
    region = seat.kept[key] = seat.me.alloc(nbytes)
    return region.address
