"""The shelf: a worker's ledger of what it has finished, in rack memory, for whoever inherits from it.

For each result there is a *record* in a map in a crash-consistent heap: the key, and the pickled value with its large
buffers out of it (pickle protocol 5). What is small lies in the record itself. What is large is copied once into a
block, and the value made again over it, so that it is not there twice; the record tells the places. A buffer that
lies in a block already, because the result is a part of what the task was given, is not copied at all.

The record is made after the block is whole, and goes before the block does. So whoever opens the ledger of a worker
that was killed at any instant finds records of whole values, and at worst regions that no record tells of, which it
frees.

What cannot be pickled, or finds no room, stays where it was: it is Dask's alone, and computed again when its worker
dies.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.protocol.pickle import dumps

from bequest.dask.blocks import Block, Blocks, Bytes, Place
from bequest.errors import BequestError, RackMemoryError
from bequest.limits import LARGE_REGION_BYTES
from bequest.objects.heap import Heap
from bequest.objects.map import Map

if TYPE_CHECKING:
    from dask.typing import Key

    from bequest.memory.frozen import Frozen
    from bequest.memory.process import Process
    from bequest.memory.region import Region

logger = logging.getLogger("distributed.worker.bequest")

INLINE_BYTES_MAX = 32 << 10  # of a value that lies in its record
_BUFFER_BYTES_MIN = 4 << 10  # of a buffer that is worth a place of its own
_FIRST_BYTES = 1 << 20  # of the ledger; it grows
_PENDING_MAX = 64  # values between their task's thread and the worker's data
_PLAIN = frozenset({int, float, bool, str, bytes, complex, type(None)})  # pickled without a look for __main__

Part = bytes | Place


class Entry(NamedTuple):
    """A value's record, and the blocks that its memory is in."""

    record: bytes
    blocks: tuple[Block, ...]


def ledger_path(name: str) -> str:
    """Where the ledger of the process of this name is published."""
    return f"/dask/{name}/ledger"


class Shelf:
    """What one worker has finished. Its records are changed by the worker's own thread alone."""

    def __init__(self, process: Process) -> None:
        self.blocks = Blocks(process)
        region = process.alloc(_FIRST_BYTES)
        self._heap = Heap.create(region)
        self._ledger: Map[int, bytes] = Map(self._heap, "results", key=int)
        process.publish(ledger_path(process.name), region)
        self._entries: dict[Key, Entry] = {}  # of values with blocks
        self._serials: dict[Key, int] = {}  # of all
        self._next = 1
        self._pending: dict[Key, tuple[object, Entry]] = {}
        self._warned = False

    # --- values, in any thread ---------------------------------------------------------------------------------------

    def place(self, key: Key, value: object) -> object:
        """The value, over rack memory if it is large: to be given to `put` next, or to be forgotten."""
        try:
            made = shelved(self.blocks, key, value)
        except BequestError as trouble:
            self._warn(trouble)
            return value
        if made is None:
            return value
        self._expect(key, *made)
        return made[0]

    def arrive(self, key: Key, record: bytes) -> object:
        """The value that another worker's record tells of: to be given to `put` next. Raises as `Process.read`."""
        blocks = tuple(self.blocks.open(reference) for reference in references_of(record))
        value = value_of(record, blocks)
        self._expect(key, value, Entry(record, blocks))
        return value

    def prepare(
        self, key: Key, sizes: Sequence[int], fill: Callable[[Sequence[Bytes]], None]
    ) -> list[memoryview]:
        """Memory of these sizes, filled by ``fill``, for the value that will be placed under this key: it stays there.

        Large ones have a block each, which finds room where one for all of them would not. Read-only. Raises
        `RackMemoryError`, after one warning.
        """
        try:
            if min(sizes, default=0) >= LARGE_REGION_BYTES:
                blocks = self.blocks.make_each(sizes, fill)
                views = [block.view(0, nbytes) for block, nbytes in zip(blocks, sizes, strict=True)]
            else:
                block, offsets = self.blocks.make(sizes, fill)
                blocks = [block]
                views = [block.view(offset, nbytes) for offset, nbytes in zip(offsets, sizes, strict=True)]
        except RackMemoryError as trouble:
            self._warn(trouble)
            raise
        # Or it would be forgotten before `place` looks for it.
        self._expect(key, blocks, Entry(b"", tuple(blocks)))
        return views

    def _expect(self, key: Key, value: object, entry: Entry) -> None:
        while len(self._pending) >= _PENDING_MAX:  # their tasks were cancelled meanwhile
            self._pending.pop(next(iter(self._pending)), None)
        self._pending[key] = (value, entry)

    # --- records, in the worker's thread -----------------------------------------------------------------------------

    def put(self, key: Key, value: object) -> object:
        """Records a value under a key that has none; returns it, over rack memory if it is large."""
        if type(value) in _PLAIN and (not isinstance(value, str | bytes) or len(value) < INLINE_BYTES_MAX):
            self._write(key, pickle.dumps((key, value), 5))
            return value
        expected = self._pending.pop(key, None)
        if expected is None or expected[0] is not value:
            value = self.place(key, value)
            expected = self._pending.pop(key, None)
        if expected is not None:
            entry = expected[1]
            if self._write(key, entry.record) and entry.blocks:
                self._entries[key] = entry
        return value

    def drop(self, key: Key) -> None:
        """Strikes a record out, if there is one. The memory goes when nobody has a view of it any more."""
        serial = self._serials.pop(key, None)
        if serial is not None:
            del self._ledger[serial]
        self._entries.pop(key, None)

    def entry(self, key: Key) -> Entry | None:
        """Of a large value on this shelf."""
        return self._entries.get(key)

    def large_keys(self) -> list[Key]:
        """Of the values that are over rack memory."""
        return list(self._entries)

    def _write(self, key: Key, record: bytes) -> bool:
        serial = self._next
        try:
            self._ledger[serial] = record
        except BequestError as trouble:
            self._warn(trouble)
            return False
        self._next = serial + 1
        self._serials[key] = serial
        return True

    def _warn(self, trouble: BequestError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "some results stay outside of the rack, where they are lost with their worker: %s", trouble
            )

    def close(self) -> None:
        """Gives everything up. Values that somebody still has keep their memory."""
        self._entries.clear()
        self._pending.clear()
        regions = self._heap.regions
        self._heap.close()
        for region in regions:
            region.free()


def shelved(blocks: Blocks, key: Key, value: object) -> tuple[object, Entry] | None:
    """The value over rack memory, if it is large, and its entry; None if it cannot be pickled.

    Raises as `Process.alloc`.
    """
    pickled = _pickled(value)
    if pickled is None:
        return None
    data, buffers = pickled
    total = sum(buffer.nbytes for buffer in buffers)
    if total + len(data) <= INLINE_BYTES_MAX:
        return value, Entry(pickle.dumps((key, data, [bytes(buffer) for buffer in buffers])), ())
    parts, used = _laid(blocks, [memoryview(data), *buffers])
    entry = Entry(pickle.dumps((key, parts[0], parts[1:])), used)
    # What is mostly Python objects would be made twice for nothing.
    return value_of(entry.record, used) if total >= len(data) else value, entry


def _laid(blocks: Blocks, buffers: list[memoryview]) -> tuple[list[Part], tuple[Block, ...]]:
    """Where each of them lies now: in the record, in a block that was there, or in a new one."""
    parts: list[Part | None] = []
    used: dict[int, Block] = {}
    fresh = []
    for buffer in buffers:
        if buffer.nbytes < _BUFFER_BYTES_MIN:
            parts.append(bytes(buffer))
        elif (found := blocks.where(buffer)) is not None:
            block, offset = found
            used[block.address] = block
            parts.append(Place(block.reference, offset, buffer.nbytes))
        else:
            parts.append(None)
            fresh.append(buffer)
    if fresh:
        block, offsets = blocks.write(fresh)
        used[block.address] = block
        places = iter([Place(block.reference, at, b.nbytes) for at, b in zip(offsets, fresh, strict=True)])
        return [next(places) if part is None else part for part in parts], tuple(used.values())
    return [part for part in parts if part is not None], tuple(used.values())


def value_of(record: bytes, blocks: Collection[Block]) -> Any:
    """The value that a record tells of."""
    _, *rest = pickle.loads(record)
    if len(rest) == 1:
        return rest[0]
    held = {block.reference: block for block in blocks}
    data, *buffers = [
        held[part.reference].view(part.offset, part.nbytes) if isinstance(part, Place) else part
        for part in (rest[0], *rest[1])
    ]
    return pickle.loads(data, buffers=buffers)


def key_of(record: bytes) -> Key:
    """The key that a record is about."""
    key: Key = pickle.loads(record)[0]
    return key


def references_of(record: bytes) -> list[Frozen]:
    """Of the blocks that a record tells of, each once."""
    _, *rest = pickle.loads(record)
    parts = (rest[0], *rest[1]) if len(rest) == 2 else ()
    return list(dict.fromkeys(part.reference for part in parts if isinstance(part, Place)))


def read_ledger(region: Region) -> Iterator[bytes]:
    """The records in the ledger of another, which is ours now."""
    with Heap.open(region, grow=False) as heap:
        ledger: Map[int, bytes] = Map(heap, "results", key=int)
        for serial in sorted(ledger.keys()):
            yield ledger[serial]
        del ledger


def _pickled(value: object) -> tuple[bytes, list[memoryview]] | None:
    """None if it cannot be pickled: a lock, an open file."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = dumps(value, buffer_callback=buffers.append)  # type: ignore[no-untyped-call]
    except Exception as trouble:  # noqa: BLE001 - whatever a class of the user's raises
        logger.debug("a %s cannot be pickled: %s", type(value).__name__, trouble)
        return None
    return data, [buffer.raw() for buffer in buffers]
