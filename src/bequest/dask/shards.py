"""Shards: what one input partition has for one receiver, as it lies in regions.

    chunk | chunk | … | directory | its length

A chunk is what goes into one output partition: the bytes that Dask's own shuffle would send, or an array's. The
directory (MessagePack) says where each is, whose it is, and where they come from. Small chunks for a receiver make one
shard, which is freed when the last of them has been used.

A large chunk is a shard of its own, freed when it has been used: what is free then is the memory of outputs to come.
Those need longer runs of pages than a chunk has. So large chunks lie in `Strips`: side by side those that are used at
the same *turn*. Each receiver makes its outputs one after the other, and all are about equally fast; so what the
receivers use as their first output is one strip, and what they use next another. The chunks in it are of a few
inputs: more would have memory wait for inputs to come.

A region is used by the loop, which frees it when its shuffle has come to an end, and by the threads that make outputs.
`Shard` counts its readers, so that the last of them frees what the loop wanted to.

What cannot be freed because a profiler still looks at it (`sight`) is freed when it looks away.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bequest.dask.post import KIND_BYTES, SHARD
from bequest.dask.sight import when_unseen
from bequest.errors import RackMemoryError
from bequest.limits import PAGE_BYTES, TAG_BYTES_MAX

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.memory.region import Region

Place = tuple[int, ...]  # of a partition: one number for a data frame's, one for each axis for an array's

LARGE_CHUNK_BYTES = 64 << 10  # on average: then at most 6 % of their pages are unused
STRIP_INPUTS = 4  # whose chunks are put into one strip
_STRIP_SPARE = 32  # by which part of it a strip is longer, since inputs are not equally long
_ALIGNMENT = 64  # of any chunk, as Arrow likes it
_TAG = struct.Struct(f"<{KIND_BYTES}sQ")  # the kind and the run
_LENGTH = struct.Struct("<I")


class Chunk(NamedTuple):
    """What is to be written for one output partition: how long it is, and who writes it there."""

    place: Place
    nbytes: int
    write: Callable[[memoryview], None]
    about: bytes = b""  # for the reader


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A chunk that has been written."""

    place: Place
    offset: int
    nbytes: int
    about: bytes


class Directory(msgspec.Struct, array_like=True, frozen=True):
    """What a shard's region ends with."""

    source: Place  # the input partition
    entries: list[Entry]


def _round_up(number: int, to: int) -> int:
    return -(-number // to) * to


class _Plan(NamedTuple):
    """Chunks that are to be a shard, and what they make of a region."""

    chunks: Sequence[Chunk]
    entries: list[Entry]
    end: bytes
    nbytes: int

    @classmethod
    def of(cls, source: Place, chunks: Sequence[Chunk]) -> _Plan:
        offset, entries = 0, []
        for chunk in chunks:
            entries.append(Entry(chunk.place, offset, chunk.nbytes, chunk.about))
            offset = _round_up(offset + chunk.nbytes, _ALIGNMENT)
        directory = msgspec.msgpack.encode(Directory(source, entries))
        end = directory + _LENGTH.pack(len(directory))
        return cls(chunks, entries, end, offset + len(end))

    def write(self, region: Region) -> None:
        with memoryview(region) as view:
            view[-len(self.end) :] = self.end
            for chunk, entry in zip(self.chunks, self.entries, strict=True):
                chunk.write(view[entry.offset : entry.offset + entry.nbytes])


class Strips:
    """The strips that one run's sender writes to. For the threads of its worker."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._left: dict[tuple[str, int], Region] = {}  # of the strip for a receiver's turn
        self._lock = threading.Lock()

    def write(
        self, source: Place, shares: Mapping[str, Sequence[Chunk]], turns: Mapping[Place, int]
    ) -> dict[str, list[Region]]:
        """Shards with the chunks for these receivers. ``turns`` tells when each chunk will be used.

        Raises `RackMemoryError` if the rack has no room, and what the chunks' writers raise.
        """
        written: dict[str, list[Region]] = {receiver: [] for receiver in shares}
        large: dict[tuple[str, int], _Plan] = {}
        try:
            for receiver, chunks in shares.items():
                if sum(chunk.nbytes for chunk in chunks) < LARGE_CHUNK_BYTES * len(chunks):
                    plan = _Plan.of(source, chunks)
                    region = self._process.alloc(plan.nbytes, packed=True)
                    written[receiver].append(region)
                    plan.write(region)
                else:
                    large |= {(receiver, turns[chunk.place]): _Plan.of(source, [chunk]) for chunk in chunks}
            pieces = self._cut({key: _round_up(plan.nbytes, PAGE_BYTES) for key, plan in large.items()})
            for (receiver, _), piece in pieces.items():
                written[receiver].append(piece)
            for key, plan in large.items():
                plan.write(pieces[key])
        except BaseException:
            for regions in written.values():
                for region in regions:
                    region._free_when_dropped()
            raise
        return written

    def _cut(self, sizes: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Region]:
        """A piece of this size from each of these strips."""
        with self._lock:
            if any(key not in self._left or self._left[key].nbytes < nbytes for key, nbytes in sizes.items()):
                self._free_left()
                self._left = self._new(sizes)
            pieces = {}
            for key, nbytes in sizes.items():
                (pieces[key],), left = _split(self._left.pop(key), [nbytes])
                if left is not None:
                    self._left[key] = left
            return pieces

    def _new(self, sizes: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Region]:
        """Neighbouring strips for several inputs of these sizes, or for one if there is no room."""
        order = []
        for number, receiver in enumerate(sorted({receiver for receiver, _ in sizes})):
            order += sorted((key for key in sizes if key[0] == receiver), reverse=number % 2 == 0)
        several = [sizes[key] * STRIP_INPUTS for key in order]
        nbytes = [_round_up(each + each // _STRIP_SPARE, PAGE_BYTES) for each in several]
        try:
            region = self._process.alloc(sum(nbytes), packed=True)
        except RackMemoryError:
            nbytes = [sizes[key] for key in order]
            region = self._process.alloc(sum(nbytes), packed=True)
        strips, _ = _split(region, nbytes)
        return dict(zip(order, strips, strict=True))

    def _free_left(self) -> None:
        left, self._left = self._left, {}
        for strip in left.values():
            _free(strip)

    def close(self) -> None:
        """Frees what is left of them. What is written later begins new ones."""
        with self._lock:
            self._free_left()


def _split(region: Region, sizes: Sequence[int]) -> tuple[list[Region], Region | None]:
    """Neighbours of these sizes, and what is left, if anything."""
    *offsets, end = accumulate(sizes)
    if end < region.nbytes:
        *parts, left = region.split(*offsets, end)
        return parts, left
    return region.split(*offsets) if offsets else [region], None


def tag_of(shuffle: str, run: int) -> bytes:
    """What a shard is granted with."""
    tag = _TAG.pack(SHARD, run) + shuffle.encode()
    assert len(tag) <= TAG_BYTES_MAX, f"the shuffle's name is too long: {shuffle}"
    return tag


def read_tag(tag: bytes) -> tuple[str, int]:
    """The shuffle and its run."""
    _, run = _TAG.unpack_from(tag)
    return tag[_TAG.size :].decode(), run


class Shard:
    """A shard that has come: ``source`` is its input partition, `places` whose chunks it has."""

    def __init__(self, region: Region) -> None:
        with memoryview(region) as view:
            (length,) = _LENGTH.unpack(view[-_LENGTH.size :])
            directory = msgspec.msgpack.decode(view[-_LENGTH.size - length : -_LENGTH.size], type=Directory)
        self.source = directory.source
        self.nbytes = region.nbytes
        region._free_when_dropped()
        self._region = region
        self._unread = {entry.place: entry for entry in directory.entries}
        self._readers = 0
        self._abandoned = False
        self._lock = threading.Lock()

    @property
    def places(self) -> list[Place]:
        """The output partitions that it has something for."""
        return list(self._unread)

    @contextlib.contextmanager
    def read(self, place: Place) -> Iterator[tuple[bytes, memoryview]]:
        """What was said about the chunk for this partition, and the chunk, read-only; once, for it is freed then.

        Afterwards nobody may look at it.
        """
        with self._lock:
            entry = self._unread.pop(place)
            self._readers += 1
        try:
            yield (
                entry.about,
                memoryview(self._region).toreadonly()[entry.offset : entry.offset + entry.nbytes],
            )
        finally:
            with self._lock:
                self._readers -= 1
                self._free_if_done()

    def abandon(self) -> None:
        """Nobody will begin to read it any more: frees it, or has the last who reads it free it."""
        with self._lock:
            self._abandoned = True
            self._free_if_done()

    def _free_if_done(self) -> None:
        if not self._readers and (self._abandoned or not self._unread):
            _free(self._region)


def _free(region: Region) -> None:
    """Frees what is left of it; if somebody looks at it, at the latest when the shard and all views have gone."""
    with contextlib.suppress(BufferError), region:
        pass


def grant_shards(regions: Sequence[Region], to: str, tag: bytes) -> None:
    """Grants them, as soon as nobody looks at any of them. Raises as `Process.grant_all`; see then who owns them."""

    def grant() -> None:
        process = regions[-1].process
        process.grant_all([region for region in regions if region.owned], to, tag=tag)

    when_unseen(regions[-1], grant)
