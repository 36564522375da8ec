"""Blocks: the memory of one value, which nobody writes to any more.

A value's large buffers are laid one after another into one region, which is then given up for writing. From then on
it is known by a *reference*, which can be written down and sent, and which any worker of the rack turns into a
block of its own. A block holds its memory for as long as the block, or a view of it, lives; nobody closes one.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from bequest.dask.sight import when_unseen
from bequest.limits import WINDOW_BASE, WINDOW_BITS
from bequest.memory.frozen import Frozen

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.memory.region import Region

Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

_ALIGNMENT = 64  # a cache line, and more than any NumPy dtype or Arrow buffer asks for
_WINDOW_END = WINDOW_BASE + (1 << WINDOW_BITS)


class Place(NamedTuple):
    """So many bytes in the block that goes by this reference."""

    reference: Frozen
    offset: int
    nbytes: int


class Block:
    """Memory that is only read. ``address`` is its place in the rack window, the same for everybody.

    Who made it, or inherited it, keeps its ``region``; when that goes, whoever reads it still has it.
    """

    __slots__ = ("__weakref__", "_reading", "_region", "address", "nbytes", "reference")

    def __init__(self, process: Process, reference: Frozen, region: Region | None = None) -> None:
        self._reading = process.read(reference)
        self._region = region
        if region is not None:
            region._free_when_dropped()
        self.reference = reference
        self.address = reference.address
        self.nbytes = reference.nbytes

    @property
    def is_kept(self) -> bool:
        """Whether it is charged to this worker, which made it, or reads it still when nobody else keeps it."""
        return self._region is not None or not self._reading.kept

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Some of its bytes. While the view lives, so does the memory."""
        return memoryview(self._reading)[offset : offset + nbytes]


class Blocks:
    """The blocks that this worker holds, found by what they are known by and by where they lie."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._held: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
        self._addresses: list[int] = []  # ascending; some may be of blocks that have gone

    def write(self, buffers: Sequence[memoryview]) -> tuple[Block, list[int]]:
        """A new block with a copy of these in it, and the offset of each. Raises as `Process.alloc`."""

        def copy(rooms: Sequence[Bytes]) -> None:
            for room, buffer in zip(rooms, buffers, strict=True):
                # NumPy's assignment lets other threads run meanwhile; a memoryview's does not.
                room[:] = numpy.frombuffer(buffer, numpy.uint8)

        return self.make([buffer.nbytes for buffer in buffers], copy)

    def make(self, sizes: Sequence[int], fill: Callable[[Sequence[Bytes]], None]) -> tuple[Block, list[int]]:
        """A new block with rooms of these sizes, which ``fill`` fills and forgets, and the offset of each.

        Raises as `Process.alloc`, and what ``fill`` raises.
        """
        offsets, end = [], 0
        for nbytes in sizes:
            offsets.append(end)
            end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        (block,) = self._filled(
            [end],
            lambda wholes: fill(
                [wholes[0][offset : offset + nbytes] for offset, nbytes in zip(offsets, sizes, strict=True)]
            ),
        )
        return block, offsets

    def make_each(self, sizes: Sequence[int], fill: Callable[[Sequence[Bytes]], None]) -> list[Block]:
        """As `make`, with a block of its own for each size."""
        return self._filled(sizes, fill)

    def _filled(self, sizes: Sequence[int], fill: Callable[[Sequence[Bytes]], None]) -> list[Block]:
        regions: list[Region] = []  # as many as there are, should one of them find no room
        try:
            regions.extend(self._process.alloc(nbytes, packed=True) for nbytes in sizes)
            fill([numpy.frombuffer(memoryview(region), numpy.uint8) for region in regions])
            frozen = [when_unseen(region, region.freeze) for region in regions]
        except BaseException:
            for region in regions:
                region._free_when_dropped()
            raise
        return [
            self._hold(Block(self._process, reference, region))
            for reference, region in zip(frozen, regions, strict=True)
        ]

    def kept_bytes(self) -> int:
        """Of the blocks that this worker made or inherited, or that it has left of another's that has dropped them."""
        return sum(block.nbytes for block in list(self._held.values()) if block.is_kept)

    def keep(self, region: Region) -> Block:
        """The block in a frozen region that is this worker's now."""
        return self._hold(Block(self._process, region.freeze(), region))

    def open(self, reference: Frozen) -> Block:
        """The block of this reference, whoever keeps it. Raises as `Process.read`."""
        held = self._held.get(reference.address)
        if held is not None and held.reference == reference:
            return held
        return self._hold(Block(self._process, reference))

    def _hold(self, block: Block) -> Block:
        self._held[block.address] = block
        insort(self._addresses, block.address)
        return block

    def where(self, buffer: memoryview) -> tuple[Block, int] | None:
        """The block that these bytes lie in, and their offset there; None if it is none of those held here."""
        address = numpy.frombuffer(buffer, numpy.uint8).__array_interface__["data"][0]
        if not WINDOW_BASE <= address < _WINDOW_END:
            return None
        if len(self._addresses) > 2 * len(self._held) + 64:
            self._addresses = sorted(self._held)
        index = bisect_right(self._addresses, address) - 1
        block = self._held.get(self._addresses[index]) if index >= 0 else None
        if block is None or address + buffer.nbytes > block.address + block.nbytes:
            return None
        return block, address - block.address
