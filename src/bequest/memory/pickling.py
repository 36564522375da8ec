"""Python objects in regions: pickle protocol 5 with its large buffers out of band.

A region that holds an object is laid out as::

    magic, version, number of buffers, bytes of pickle          one 32-byte header
    (offset, bytes) for each buffer                             16 bytes each
    the pickle
    each buffer, at a multiple of 64 bytes

`dumps` copies each buffer once, into its place. `loads` copies none: the arrays, frames and tables that it returns use
the region's memory, writable if they were, and the region is freed when the last of them has gone.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

from bequest.errors import BequestError
from bequest.memory.process import Process, current
from bequest.memory.region import Region

_MAGIC = 0x3150_4B50_5145_4221  # arbitrary; a region of anything else does not begin so
_HEADER = struct.Struct("<QIIQQ")
_ENTRY = struct.Struct("<QQ")
_ALIGNMENT = 64  # a cache line, and more than any NumPy dtype or Arrow buffer asks for
_READ_ONLY = 1 << 63  # in an entry's length


class NotPickled(BequestError, pickle.UnpicklingError):
    """The region does not hold an object that `dumps` put there."""


class Pickled:
    """An object's pickle, and its large buffers that were kept out of it."""

    def __init__(self, obj: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self.data = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
        self.buffers = [buffer.raw() for buffer in buffers]

    def into_region(self, process: Process) -> Region:
        """A region that ``process`` allocates, with all of it in its place."""
        position = pickle_at = _HEADER.size + _ENTRY.size * len(self.buffers)
        position += len(self.data)
        entries: list[tuple[int, int]] = []
        for buffer in self.buffers:
            position = _aligned(position)
            entries.append((position, buffer.nbytes | (_READ_ONLY if buffer.readonly else 0)))
            position += buffer.nbytes

        region = process.alloc(position)
        with memoryview(region) as memory:
            _HEADER.pack_into(memory, 0, _MAGIC, 1, len(self.buffers), len(self.data), 0)
            for index, entry in enumerate(entries):
                _ENTRY.pack_into(memory, _HEADER.size + index * _ENTRY.size, *entry)
            memory[pickle_at : pickle_at + len(self.data)] = self.data
            for buffer, (offset, _) in zip(self.buffers, entries, strict=True):
                memory[offset : offset + buffer.nbytes] = buffer
        return region


def dumps(obj: object, process: Process | None = None) -> Region:
    """A new region holding ``obj``: its pickle, and beside it its large buffers (NumPy, Arrow, pandas), aligned.

    ``process`` allocates it (default: the one attached last). Raises what pickling raises, and `RackMemoryError`.
    """
    return Pickled(obj).into_region(process or current())


def loads(region: Region) -> Any:
    """The object that `dumps` put into a region, using the region's memory: no buffer is copied.

    The region belongs to the object afterwards: it cannot be granted (`BufferError`) while an array or buffer in it
    lives, and is freed when the last of them, and the handle, have gone. As with any pickle, load only what comes from
    processes you trust: those of your group. Raises `NotPickled` for other regions.
    """
    memory = memoryview(region)
    try:
        offsets, pickle_at, pickle_bytes = _read_header(memory)
    except NotPickled:
        memory.release()  # the exception would keep it, and the region from being granted
        raise
    views = []
    for offset, length in offsets:
        view = memory[offset : offset + (length & ~_READ_ONLY)]
        views.append(view.toreadonly() if length & _READ_ONLY else view)
    obj = pickle.loads(memory[pickle_at : pickle_at + pickle_bytes], buffers=views)
    region._free_when_dropped()
    return obj


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _read_header(memory: memoryview) -> tuple[list[tuple[int, int]], int, int]:
    """((offset, length) of each buffer, offset and length of the pickle), all within the region."""
    if memory.nbytes < _HEADER.size:
        raise NotPickled(f"a region of {memory.nbytes} bytes holds no object that dumps() put there")
    magic, version, count, pickle_bytes, _ = _HEADER.unpack_from(memory)
    if magic != _MAGIC or version != 1:
        raise NotPickled("this region holds no object that dumps() put there")
    pickle_at = _HEADER.size + count * _ENTRY.size
    if pickle_at + pickle_bytes > memory.nbytes:
        raise NotPickled("the object in this region is cut off")
    offsets = [_ENTRY.unpack_from(memory, _HEADER.size + index * _ENTRY.size) for index in range(count)]
    if any(offset + (length & ~_READ_ONLY) > memory.nbytes for offset, length in offsets):
        raise NotPickled("the object in this region is cut off")
    return offsets, pickle_at, pickle_bytes
