"""Sealing: the owner promises that a region does not change, and the memory element keeps checksums of it.

The order is owed. A region is closed for writing before the element is asked for a number, and its extents in the table
bear that number only when the element has marked the pages with it: so what is summed does not change, and a number
in the table always stands for sums that exist or will. To unseal, the number leaves the table before the pages are
opened. Whoever dies in between leaves a region that is sealed or is not.

The element is told of what was unsealed or freed, as a courtesy; what it is not told it finds out
(protocol/seal_desk.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from bequest.errors import BequestError, ChecksumMismatch, MemoryFailure, NotSealed, RegionMoved
from bequest.limits import VERIFY_BYTES_MAX
from bequest.memory.connections import expect
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.memory.region import Region

Run = tuple[int, int]  # address, bytes
Piece = tuple[int, int, int, int]  # slab, offset, bytes, number of the seal or 0


def seal(region: Region) -> None:
    """`Region.seal`."""
    process: Process = region.process
    pieces = region._begin_sealing()
    try:
        numbers = [_mark(process, piece) for piece in pieces]
        addresses = [region.address + offset for offset in _offsets(pieces)]
        if not region._commit_seals(list(zip(addresses, numbers, strict=True))):
            raise RegionMoved("this region was taken away, or changed by another thread, while it was sealed")
    except BaseException:
        region._end_sealing()
        raise


def unseal(region: Region) -> None:
    """`Region.unseal`."""
    pieces = region._seals()
    region._check_whole("unsealed")
    region._end_sealing()
    _tell_unsealed(region.process, pieces)


def verify(regions: Iterable[Region]) -> int:
    """The bytes that are what they were when they were sealed; raises `ChecksumMismatch` with all that are not."""
    found = [_verify(region) for region in regions]
    different = [one for one in found if one.different]
    if different:
        _raise_mismatch(different)
    for one in found:
        if one.failed:
            _raise_failed(one)
        if one.unknown:
            raise NotSealed(
                f"the memory element has no checksums of {one.unknown} bytes of {one.region!r}, although it is sealed:"
                " they were lost with the element, or somebody has sealed the pages anew; seal it again, if you trust"
                " what it holds"
            )
    return sum(one.verified for one in found)


def free(region: Region, way: Callable[[], object]) -> None:
    """Frees a region in that way; of a sealed one the element is told that it need not check it any more."""
    pieces: list[Piece] = []
    if region.sealed:
        with contextlib.suppress(BequestError):  # what has lost a part can be freed, too
            pieces = region._seals()
    way()
    _tell_unsealed(region.process, pieces)


def _offsets(pieces: list[Piece]) -> list[int]:
    """In the region, of pieces that lie side by side."""
    return [sum(nbytes for _, _, nbytes, _ in pieces[:index]) for index in range(len(pieces))]


def _mark(process: Process, piece: Piece) -> int:
    slab, offset, nbytes, _ = piece
    reply = process._links.ask_element(slab, wire.SealPages, offset, nbytes)
    return expect(reply, wire.PagesSealed).number


class _Found(NamedTuple):
    """What verifying a region has shown: bytes, and runs by address."""

    region: Region
    verified: int
    unknown: int
    different: list[Run]
    failed: list[Run]


def _verify(region: Region) -> _Found:
    pieces = region._seals()
    verified = unknown = 0
    different: list[Run] = []
    failed: list[Run] = []
    for (slab, offset, nbytes, number), place in zip(pieces, _offsets(pieces), strict=True):
        address = region.address + place
        if number == 0:
            raise NotSealed(f"{nbytes} bytes of {region!r}, at {address:#x}, are not sealed")
        for start in range(offset, offset + nbytes, VERIFY_BYTES_MAX):
            length = min(VERIFY_BYTES_MAX, offset + nbytes - start)
            reply = region.process._links.ask_element(slab, wire.VerifyPages, start, length, number)
            found = expect(reply, wire.PagesVerified)
            verified += found.verified
            unknown += found.unknown
            different += [(address + at - offset, length) for at, length in found.different]
            failed += [(address + at - offset, length) for at, length in found.failed]
    return _Found(region, verified, unknown, different, failed)


def _tell_unsealed(process: Process, pieces: Iterable[Piece]) -> None:
    for slab, *run in pieces:
        if run[-1]:
            with contextlib.suppress(BequestError):
                process._links.ask_element(slab, wire.UnsealPages, *run)


def _raise_mismatch(found: list[_Found]) -> NoReturn:
    region = found[0].region
    runs = [run for one in found for run in one.different]
    address, nbytes = runs[0]
    more = f", and {len(runs) - 1} more runs of pages" if len(runs) > 1 else ""
    total = sum(length for _, length in runs)
    raise ChecksumMismatch(
        f"{total} bytes of sealed memory are not what they were when they were sealed: {nbytes} at {address:#x}{more}."
        " The rack takes these pages away; free the region",
        runs,
        address=address,
        region=region,
        cause="is not what was sealed",
        nbytes=region.nbytes,
    )


def _raise_failed(found: _Found) -> NoReturn:
    address, nbytes = found.failed[0]
    raise MemoryFailure(
        f"the memory of {found.region!r} has failed: {nbytes} bytes at {address:#x} are gone",
        address=address,
        region=found.region,
        cause="has failed",
        nbytes=found.region.nbytes,
    )
