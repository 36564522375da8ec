"""Messages about sealed memory: the checksums that a memory element keeps of it, and what becomes of a mismatch.

A seal is a number, of some pages of a slab. The element gives it out, the owner of the pages writes it into the table,
and there the Rack MMU looks when the element finds that a page is not what was sealed: a number that has gone from the
table does not come back.
"""

from __future__ import annotations

from bequest.wire.message import Message, Nonce

__all__ = [
    "BitFlipped", "FlipBit", "FlipBitOf", "ForgetSums", "PagesDiffer", "PagesSealed", "PagesVerified", "SealPages",
    "UnsealPages", "VerifyPages",
]  # fmt: skip

# --- client to memory element -----------------------------------------------------------------------------


class SealPages(Message, frozen=True):
    """-> PagesSealed. These pages will not change from now on: they are to be summed, in the element's own time.

    For whoever shows the ticket of the slab's group. Who repeats it gets another number.
    """

    ticket: bytes
    slab: int
    offset: int
    nbytes: int


class PagesSealed(Message, frozen=True):
    """The number of the seal, for the table."""

    number: int


class VerifyPages(Message, frozen=True):
    """-> PagesVerified. Reads these pages now, and compares; those that were not summed yet are summed."""

    ticket: bytes
    slab: int
    offset: int
    nbytes: int
    number: int


class PagesVerified(Message, frozen=True):
    """In bytes. ``different``: runs (offset, bytes) that are not what was sealed, perhaps not all of them.

    ``failed`` have lost their memory, for that reason or another. ``unknown`` are bytes of which the element has no
    checksum under that number.
    """

    verified: int
    unknown: int
    different: list[tuple[int, int]] = []
    failed: list[tuple[int, int]] = []


class UnsealPages(Message, frozen=True):
    """-> Done. A courtesy: what is not said is found out from the table."""

    ticket: bytes
    slab: int
    offset: int
    nbytes: int
    number: int


# --- client to Rack MMU -----------------------------------------------------------------------------------


class FlipBit(Message, frozen=True):
    """-> Done. For tests of programs: one bit of the byte at this address changes, behind everybody's back.

    Who repeats it with the same nonce does not change it twice.
    """

    element: str
    address: int
    nonce: Nonce = b""


# --- Rack MMU to memory element, and back -----------------------------------------------------------------


class PagesDiffer(Message, frozen=True):
    """-> ForgetSums, if nobody owns them under that seal (any more); else they fail, and FailMemory follows."""

    slab: int
    offset: int
    nbytes: int
    number: int


class ForgetSums(Message, frozen=True):
    """These pages are not sealed under that number any more."""

    slab: int
    offset: int
    nbytes: int
    number: int


class FlipBitOf(Message, frozen=True):
    """-> BitFlipped. Unless it was done before, under this nonce."""

    job: int
    slab: int
    offset: int
    nonce: Nonce = b""


class BitFlipped(Message, frozen=True):
    """Or was before, or the slab is not here."""

    job: int
