"""What the actors of test_scarcity.py do: fill elements, live through reclaiming, and run short of mappings."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Any

import bequest as bq
from actors import DEADLINE, Seat

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def fill_up(seat: Seat, nbytes: int) -> int:
    """Allocates and keeps regions of this size until no more are to be had; how many."""
    kept = seat.kept.setdefault("filling", [])
    try:
        while True:
            kept.append(seat.me.alloc(nbytes))
            kept[-1].array()[:] = 1
    except bq.RackMemoryError as error:
        error.__traceback__ = None
        return len(kept)


def free_all(seat: Seat) -> None:
    for region in seat.kept.pop("filling"):
        region.free()


def grant_filling(seat: Seat, to: str) -> None:
    seat.me.grant_all(seat.kept.pop("filling"), to)


def churn(seat: Seat, nbytes: int, rounds: int) -> None:
    """Allocates, writes, reads back and frees."""
    for value in range(rounds):
        with seat.me.alloc(nbytes) as region:
            array = region.array()
            array[:] = value % 251
            assert array.min() == array.max() == value % 251
            del array


def free_pages(seat: Seat) -> int:
    return int(seat.me.table.holdings(seat.me.id)[2])


def errors_free(seat: Seat, nbytes: int, how: dict[str, Any]) -> tuple[str, str, list[tuple[str, int, int]]]:
    """The class, the message and the ``free`` of the error that this allocation is."""
    try:
        region = seat.me.alloc(nbytes, **how)
    except bq.RackMemoryError as error:
        return type(error).__name__, str(error), error.free
    region.free()
    return "", "", []


# --- too many mappings -----------------------------------------------------------------------------------------


def attach_with_few_mappings_left(seat: Seat, name: str, left: int) -> int:
    """Attaches when the kernel has hardly any mappings left for this process; how many the rack may use.

    Other memory uses up the rest, so that a test need not grant tens of thousands of regions.
    """
    with open("/proc/sys/vm/max_map_count") as file:
        limit = int(file.read())
    with open("/proc/self/maps") as file:
        taken = len(file.readlines())
    clutter = limit - taken - left
    memory = mmap.mmap(-1, clutter * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in range(1, clutter - 1, 2):  # each splits its mapping into three
        if _libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), mmap.PROT_READ):
            raise OSError(ctypes.get_errno(), "mprotect")
    seat.kept["clutter"] = memory
    seat.me = seat.rack.attach(name)
    return int(seat.me.mappings[1])


def split(seat: Seat, pages: int) -> None:
    """One region of so many pages, as a region for each page, with its number in it."""
    region = seat.me.alloc(pages * PAGE, huge=False)
    region.array("u8", (pages, PAGE // 8))[:, 0] = range(pages)
    seat.kept["pages"] = region.split(*range(PAGE, pages * PAGE, PAGE))


def grant_every_other(seat: Seat, to: str) -> tuple[int, str]:
    """Grants pages 0, 2, 4 … until that is refused; how many went, and why no more did."""
    gone = 0
    for page in seat.kept["pages"][::2]:
        try:
            page.grant(to)
        except bq.TooManyMappings as error:
            error.__traceback__ = None
            return gone, str(error)
        gone += 1
    return gone, ""


def intact(seat: Seat) -> list[int]:
    """The pages that are still ours and hold what they held."""
    numbers = []
    for number, page in enumerate(seat.kept["pages"]):
        if page.owned and page.array("u8")[0] == number:
            numbers.append(number)
    return numbers


def free_pages_left(seat: Seat) -> None:
    for page in seat.kept.pop("pages"):
        if page.owned:
            page.free()


def churn_small(seat: Seat, nbytes: int, rounds: int) -> None:
    """Allocates all of it in 4 KiB pages, in one piece, and frees it."""
    for _ in range(rounds):
        with seat.me.alloc(nbytes, huge=False) as region:
            region.array()[:] = 1


def grant_odd_pages(seat: Seat, to: str, count: int) -> None:
    """Grants pages 1, 3, 5 …, whose neighbours have gone."""
    for page in seat.kept["pages"][1 : 2 * count : 2]:
        page.grant(to)


def grant_page(seat: Seat, number: int, to: str) -> None:
    seat.kept["pages"][number].grant(to)


def accept_while_possible(seat: Seat, count: int) -> int:
    """Accepts and keeps so many regions, or as many as the kernel has mappings for."""
    kept = seat.kept.setdefault("filling", [])
    try:
        while len(kept) < count:
            kept.append(seat.me.accept(DEADLINE))
    except bq.TooManyMappings as error:
        error.__traceback__ = None
    return len(kept)


def grant_many_at_once(seat: Seat, to: str, count: int) -> str:
    """Grants pages 0, 2, 4 … in one call; why that was refused."""
    try:
        seat.me.grant_all(seat.kept["pages"][: 2 * count : 2], to, timeout=0)
    except bq.TooManyMappings as error:
        error.__traceback__ = None
        return str(error)
    return ""


def lose_while_short_of_mappings(seat: Seat, key: str) -> list[str]:
    """What views of a stolen region raise while the kernel has no more mappings, and when it has some again."""
    hoard = _use_up_mappings()
    first = _error_of_view(seat.kept[key])
    for memory in hoard:
        memory.close()
    return [first, _error_of_view(seat.kept[key])]


def _use_up_mappings() -> list[mmap.mmap]:
    """All that the kernel has for this process."""
    with open("/proc/sys/vm/max_map_count") as file:
        pages = int(file.read())
    hoard = [mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)]
    start = ctypes.addressof(ctypes.c_char.from_buffer(hoard[0]))
    for page in range(1, pages, 2):
        if _libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), mmap.PROT_READ):
            break
    with contextlib.suppress(OSError):
        while True:
            hoard.append(mmap.mmap(-1, PAGE))  # shared: no two of them are joined
    return hoard


def _error_of_view(region: bq.Region) -> str:
    try:
        memoryview(region)
    except Exception as error:
        return type(error).__name__
    return "nothing"
