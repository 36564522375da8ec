"""What processes of another group try, and what they may."""

from __future__ import annotations

import contextlib

import actors
import bequest as bq
from bequest.wire import messages as wire


def element_ticket(seat: actors.Seat) -> bytes:
    return seat.me._links.attached.element_ticket


def try_to_open(seat: actors.Seat, slab: int) -> str:
    """Asks the memory element for a slab, with this process's own ticket."""
    links = seat.me._links
    with contextlib.closing(type(links.mmu)(links.directory / links.attached.elements[0].path)) as element:
        try:
            element.request(wire.OpenSlab(links.attached.element_ticket, slab))
        except bq.BequestError:
            return "refused"
        return "opened"


def try_to_map(seat: actors.Seat, address: int, nbytes: int) -> str:
    """Opens these addresses in this process, whatever the table says."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(address, nbytes, 1) != 0:
        return "OSError"
    content = ctypes.string_at(address, nbytes)
    libc.mprotect(address, nbytes, 0)
    return "zeros" if not any(content) else "content"


def what_the_table_shows(seat: actors.Seat) -> tuple[list[object], list[str]]:
    lives = [seat.me.table.life(number) for number in range(1, 512)]
    return list(seat.me.table.slabs()), [name for state, _, _, name in lives if state]


def forge_grants(seat: actors.Seat, descriptors: list[int], victim: int) -> list[str]:
    """Grants extents to their owner's group that are not this process's, under every word that they may have."""
    answers = []
    incarnation = seat.me.table.life(seat.me.id)[1]
    for descriptor in [*descriptors, 0, 2**21 - 1, 2**31, 2**63]:
        for word in (0, 3 << 61 | victim << 51 | 1, 3 << 61 | seat.me.id << 51 | 1, 2**64 - 1):
            for to in (victim, seat.me.id, 1023, 0):
                try:
                    seat.me._links.mmu.request(wire.CrossGrant(descriptor, word, to, incarnation))
                except bq.BequestError:
                    answers.append("refused")
                else:
                    answers.append("granted")
    return answers


def open_mailbox(seat: actors.Seat, name: str) -> None:
    seat.me._links.mmu.request(wire.OpenMailbox(name))


def first_word(seat: actors.Seat, key: str) -> int:
    return int(seat.kept[key].array("u8")[0])
