"""What the Rack MMU and a memory element say to each other of slabs.

A new link begins with all that the Rack MMU knows of the element: groups, slabs, what is outstanding. Whatever the
element has beyond that is left over, and goes when the announcement ends.
"""

from __future__ import annotations

import msgspec

from bequest.wire.message import Message


class ElementUsage(msgspec.Struct, frozen=True):
    """What an element says of itself: bytes by purpose, and how many of its slabs' bytes are on huge pages.

    Of sealed memory: bytes summed, checked by the scrubber, and found different, since its server was started.
    """

    slab_bytes: int = 0
    warm_bytes: int = 0
    recycled_bytes: int = 0
    huge_bytes: int = 0
    warm_hits: int = 0
    cold_misses: int = 0
    summed_bytes: int = 0
    scrubbed_bytes: int = 0
    mismatched_bytes: int = 0


class AnnouncementEnds(Message, frozen=True):
    """The Rack MMU has said it all; also to agents."""


class AdoptSlab(Message, frozen=True):
    """-> SlabLost if the element does not have it; MemoryFailed for what of it has failed beyond ``failed``.

    What has not failed yet of that does now.
    """

    slab: int
    group: int
    nbytes: int
    huge: bool
    failed: list[tuple[int, int]] = []  # (offset, bytes) that have lost their memory, or are to
    cause: str = ""


class SlabLost(Message, frozen=True):
    """The element does not have this slab: its memory is gone."""

    slab: int


class AdmitGroup(Message, frozen=True):
    group: int
    ticket: bytes


class ForgetGroup(Message, frozen=True):
    group: int


class ReserveSlab(Message, frozen=True):
    """-> SlabReserved or SlabRefused, later and in any order. May be said again on a new link."""

    slab: int
    group: int
    nbytes: int
    huge: bool


class SlabReserved(Message, frozen=True):
    slab: int


class SlabRefused(Message, frozen=True):
    slab: int
    message: str


class RetireSlab(Message, frozen=True):
    """The slab has left the table: its memory may serve its group again, or is given back.

    Not ``recycle`` if its home still runs: an allocator has its free runs open, so the memory would be in two hands.
    """

    slab: int
    recycle: bool


class RegroupSlab(Message, frozen=True):
    """-> SlabRegrouped, or SlabLost. Members of the old group may hold its memory open, so it is never recycled."""

    slab: int
    group: int


class SlabRegrouped(Message, frozen=True):
    slab: int


class CopyPages(Message, frozen=True):
    """-> PagesCopied or CopyFailed. Inside the element, by its own processor."""

    job: int
    source: int
    source_offset: int
    target: int
    target_offset: int
    nbytes: int


class PagesCopied(Message, frozen=True):
    job: int


class CopyFailed(Message, frozen=True):
    job: int
    message: str


class PunchPages(Message, frozen=True):
    """-> PagesPunched. Gives the memory of pages back whose contents have gone elsewhere; the addresses stay."""

    job: int
    slab: int
    offset: int
    nbytes: int


class PagesPunched(Message, frozen=True):
    """Also when it failed, which is logged: then their memory is not given back, and that is all."""

    job: int


class ElementReport(Message, frozen=True):
    usage: ElementUsage
