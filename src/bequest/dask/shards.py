"""A shard: what one input partition has for one receiver, as it lies in a region.

    directory | chunk | chunk | …

A chunk is what goes into one output partition: the bytes that Dask's own shuffle would send, or an array's. The
directory (MessagePack) says where each is, whose it is, and where the shard comes from; how long it is, the tag says.

Output partitions are made one after the other. Where chunks are large each has pages of its own, so that these are
freed when it has been used, and become the memory of outputs to come. Those need longer runs of pages than one chunk
has. So chunks lie in the order in which they will be used, and the shards of one input for two receivers side by side,
the first the other way round: what becomes free is next to what has become free before, in both. A shard of small
chunks is freed as a whole.

A region is used by the loop, which frees it when its shuffle has come to an end, and by the threads that make outputs.
`Shard` counts its readers, so that the last of them frees what the loop wanted to.

What cannot be freed because a profiler still looks at it (`sight`) is freed when it looks away.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bequest.dask.post import KIND_BYTES, SHARD
from bequest.dask.sight import when_unseen
from bequest.limits import PAGE_BYTES, TAG_BYTES_MAX

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.memory.region import Region

Place = tuple[int, ...]  # of a partition: one number for a data frame's, one for each axis for an array's

OWN_PAGES_BYTES = (
    64 << 10
)  # chunks of this size on average have pages of their own, at most 6 % of them unused
_ALIGNMENT = 64  # of any chunk, as Arrow likes it
_TAG = struct.Struct(f"<{KIND_BYTES}sQI")  # the kind, the run, and how long the directory is


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
    """What a shard's region begins with."""

    source: Place  # the input partition
    own_pages: bool
    entries: list[Entry]


def _round_up(number: int, to: int) -> int:
    return -(-number // to) * to


def _lay_out(source: Place, chunks: Sequence[Chunk]) -> tuple[bytes, list[Entry], int]:
    """The directory, its entries, and how many bytes all of it takes."""
    own_pages = sum(chunk.nbytes for chunk in chunks) >= OWN_PAGES_BYTES * len(chunks)
    alignment = PAGE_BYTES if own_pages else _ALIGNMENT
    room = 0  # for the directory, whose length depends on the numbers in it
    while True:
        offset = _round_up(room, alignment)
        entries = []
        for chunk in chunks:
            entries.append(Entry(chunk.place, offset, chunk.nbytes, chunk.about))
            offset = _round_up(offset + chunk.nbytes, alignment)
        directory = msgspec.msgpack.encode(Directory(source, own_pages, entries))
        if len(directory) <= room:
            return directory, entries, offset
        room = len(directory) + _ALIGNMENT


def write_shards(
    process: Process, shuffle: str, run: int, source: Place, shares: Sequence[Sequence[Chunk]]
) -> list[tuple[Region, bytes]]:
    """Regions with these chunks, for one receiver or two, and the tags they are to be granted with.

    Raises `RackMemoryError` if the rack has no room, and what the chunks' writers raise.
    """
    if len(shares) == 2:
        shares = [shares[0][::-1], shares[1]]
    plans = [_lay_out(source, chunks) for chunks in shares]
    tags = [_TAG.pack(SHARD, run, len(directory)) + shuffle.encode() for directory, _, _ in plans]
    assert len(tags[0]) <= TAG_BYTES_MAX, f"the shuffle's name is too long: {shuffle}"
    *before, last = (nbytes for _, _, nbytes in plans)
    cuts = [_round_up(nbytes, PAGE_BYTES) for nbytes in before]
    regions = [process.alloc(sum(cuts) + last, packed=True)]
    try:
        if cuts:
            regions = regions[0].split(*cuts)
        for region, chunks, (directory, entries, _) in zip(regions, shares, plans, strict=True):
            memoryview(region)[: len(directory)] = directory
            for chunk, entry in zip(chunks, entries, strict=True):
                chunk.write(memoryview(region)[entry.offset : entry.offset + entry.nbytes])
    except BaseException:
        for region in regions:
            region._free_when_dropped()
        raise
    return list(zip(regions, tags, strict=True))


def read_tag(tag: bytes) -> tuple[str, int, int]:
    """The shuffle, its run, and the directory's length."""
    _, run, length = _TAG.unpack_from(tag)
    return tag[_TAG.size :].decode(), run, length


class Shard:
    """A shard that has come: ``source`` is its input partition, `places` whose chunks it has."""

    def __init__(self, region: Region, directory_bytes: int) -> None:
        with memoryview(region) as view:
            directory = msgspec.msgpack.decode(view[:directory_bytes], type=Directory)
        self.source = directory.source
        self.nbytes = region.nbytes
        region._free_when_dropped()
        self._region = region
        self._own_pages = directory.own_pages
        if self._own_pages:
            _free(region[: min(entry.offset for entry in directory.entries)])
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
        region, start = self._region, entry.offset
        if self._own_pages:
            end = min(_round_up(start + entry.nbytes, PAGE_BYTES), region.nbytes)
            region, start = region[start:end], 0
        try:
            yield entry.about, memoryview(region).toreadonly()[start : start + entry.nbytes]
        finally:
            if self._own_pages:
                _free(region)
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


def grant_shard(region: Region, to: str, tag: bytes) -> None:
    """Grants it, as soon as nobody looks at it any more. Raises as `Region.grant`."""
    when_unseen(region, lambda: region.grant(to, tag=tag))
