"""How memory is lost, for the tests: cut off, punched out, closed or fenced from outside, taken in the table."""

from __future__ import annotations

import ctypes
import mmap
import os

import bequest as bq

PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def slab_of(me: bq.Process, region: bq.Region) -> tuple[int, int]:
    """The number and the address of the slab it lies in."""
    for slab, address, pages, *_ in me.table.slabs():
        if address <= region.address < address + pages * PAGE:
            return slab, address
    raise LookupError(hex(region.address))


def cut_off(me: bq.Process, region: bq.Region) -> None:
    """Its memory fails, and that of its whole slab, as when a memory element loses it."""
    fd = me._links.open_slab(slab_of(me, region)[0])[0]
    os.ftruncate(fd, 0)
    os.close(fd)


def close_from_outside(region: bq.Region) -> None:
    """What a fence by ptrace does."""
    assert LIBC.mprotect(region.address, region.nbytes, 0) == 0


def punch_out(me: bq.Process, region: bq.Region, offset: int, nbytes: int) -> None:
    """The memory element loses some of its pages."""
    slab, address = slab_of(me, region)
    fd = me._links.open_slab(slab)[0]
    with mmap.mmap(fd, nbytes, offset=region.address - address + offset) as pages:
        pages.madvise(mmap.MADV_REMOVE)
    os.close(fd)
