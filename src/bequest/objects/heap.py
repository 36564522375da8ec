"""The heap: regions in which state is consistent at every instant.

The work is done in native code (native/heap; heap_layout.hpp has the theory). Here are its face, and what it asks of
the process around it: another region when it grows, and the regions of its other segments when it is opened.

A heap has one owner at a time, like the regions that it lies in, and keeps a buffer of each: while it is open, they
can be neither granted nor freed (`BufferError`). `close` lets go of them. The threads of the owner take turns.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Literal, NamedTuple

from bequest._core import HeapBase, JournalBase, RegionBase, TransactionBase
from bequest.errors import BadSize, BequestError, HeapMisuse, RackMemoryError
from bequest.limits import HUGE_PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from bequest.memory.region import Region


class Recovery(NamedTuple):
    """What opening a heap had to do: ``did`` is "clean" (nothing was under way), "undone" or "completed"."""

    did: Literal["clean", "undone", "completed"]
    entries: int
    nbytes: int


class Root(NamedTuple):
    """A name in a heap, the kind of what it leads to ("Map", …, or "memory" of the user's own), and where that lies."""

    name: str
    kind: str
    address: int


class Transaction(TransactionBase):
    """What happens whole or not at all: ``with heap.transaction() as tx:``.

    Every operation on the heap's objects within it belongs to it. Memory of your own you change after `snapshot`:
    ``tx.snapshot(view[10:20]); view[10:20] = …``. If the body raises, or the process dies, everything is as it was
    before. One within another is a part of that: it can fail by itself, and counts when the outermost is done.
    """

    __slots__ = ()


class Journal(JournalBase):
    """Bytes of a heap that are written all at once or not at all: ``with heap.journal() as journal:``.

    ``journal.write(view[10:20], data)`` notes what shall be written; it is there after the with statement. If the body
    raises, or the process dies before the end, nothing was written. Within it, change nothing of the heap by other
    means; within a transaction, it is a part of that.
    """

    __slots__ = ()


class Heap(HeapBase):
    """A crash-consistent heap in regions of this process: `create` makes one, `open` finds one.

    ``address`` is where it lies, ``nbytes`` the bytes of all its regions, ``free_bytes`` how many of them are free (not
    necessarily in one piece), ``durable`` whether commits wait for the memory. ``is_open`` is False after `close`. As a
    context manager it closes.
    """

    __slots__ = ()

    @classmethod
    def create(cls, region: Region, *, grow: bool = True, durable: bool | None = None) -> Self:
        """A fresh heap in this region; what was in it is gone.

        With ``grow`` it takes another region of the same process when it is full. With ``durable`` it survives the loss
        of the processor's caches too, and each commit waits for the memory: so it is, unless you say otherwise, in an
        element of kind ``file:``, whose memory outlasts the processor. Raises HeapMisuse if the region is too small
        (16 KiB).
        """
        return cls._in(region, secrets.randbits(64) or 1, grow, durable)

    @classmethod
    def open(cls, region: Region, *, grow: bool = True, durable: bool | None = None) -> Self:
        """The heap that was created in this region; `recovery` tells what had been under way.

        The regions that it had grown by must be this process's, too. Those by which it grew in this process are kept as
        long as the first; of an estate, or of what was accepted, keep all handles until the heap is open. Raises
        CorruptHeap if there is no heap, or not all of one, and ForeignHeap if another version of Bequest wrote it.
        """
        return cls._in(region, None, grow, durable)

    @classmethod
    def _in(cls, region: Region, heap_id: int | None, grow: bool, durable: bool | None) -> Self:
        if not isinstance(region, RegionBase):
            raise TypeError(
                f"a heap lies in a Region, from alloc or accept, not in a {type(region).__name__}"
            )
        if durable is None:
            durable = _is_durable(region)
        return cls(region, heap_id, durable, _grower(region) if grow else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self.is_open:
            return "<Heap closed>"
        try:
            return f"<Heap of {self.nbytes} bytes at {self.address:#x}, {self.free_bytes} free>"
        except BequestError as trouble:
            return f"<Heap that cannot be read: {trouble}>"

    @property
    def regions(self) -> tuple[Region, ...]:
        """What it lies in; the first is the one to open it by. To hand it on, close it and grant all of them."""
        return tuple(self._regions)

    @property
    def recovery(self) -> Recovery:
        """What opening it had to do."""
        return Recovery(*self._recovery)

    @property
    def roots(self) -> tuple[Root, ...]:
        """Everything that has a name in it."""
        return tuple(Root(name.decode(), kind, address) for name, kind, address in self._roots)

    def transaction(self) -> Transaction:
        """Changes that happen whole or not at all: use it in a with statement."""
        return Transaction(self)

    def journal(self) -> Journal:
        """Bytes that are written all at once or not at all: use it in a with statement."""
        return Journal(self)

    def memory(self, name: str, nbytes: int | None = None) -> memoryview:
        """Memory of your own under a name: found, or made, zeroed, if ``nbytes`` says how much.

        Change it within a transaction, each part after a `snapshot`, or by a `journal`. Raises KeyError if it is not
        there and ``nbytes`` is not given, HeapMisuse if it is of another size, or the name is that of something else.
        """
        found = self._find_memory(name)
        if found is None:
            if nbytes is None:
                raise KeyError(name)
            with self.transaction():
                found = self._make_memory(name, _sensible(nbytes))
                found[:] = bytes(nbytes)
            return found
        if nbytes not in (None, len(found)):
            raise HeapMisuse(
                f"{name!r} has {len(found)} bytes in this heap, not {nbytes}: `replace` gives it others"
            )
        return found

    def replace(self, name: str, data: Buffer) -> memoryview:
        """The memory of this name becomes this, of whatever size: it is written aside, and then the name leads to it.

        Returns it. Views of what was there before show what nobody keeps any more. Raises HeapMisuse if the name is
        that of something else.
        """
        with memoryview(data).cast("B") as new, self.transaction():
            if self._find_memory(name) is not None:
                self._remove(name)
            memory = self._make_memory(name, _sensible(new.nbytes))
            memory[:] = new
        return memory

    def remove(self, name: str) -> None:
        """Frees the object or memory of this name, and all that is in it. Raises KeyError if there is none."""
        if not self._remove(name):
            raise KeyError(name)


def _sensible(nbytes: int) -> int:
    if not 0 < nbytes < 2**62:
        raise BadSize(f"memory of {nbytes} bytes cannot be had")
    return nbytes


def _is_durable(region: Region) -> bool:
    return region.process.element_of(region).kind.startswith("file:")


def _grower(region: Region) -> Callable[[int, int], Region | None]:
    """Asks the region's process for another one: as stealable, and of its element if that outlasts the processor."""
    process = region.process
    stealable = region._stealable
    element = process.element_of(region).name if _is_durable(region) else None

    def grow(least: int, wished: int) -> Region | None:
        for nbytes in _sizes(least, wished):
            with contextlib.suppress(RackMemoryError):
                return process.alloc(nbytes, element=element, stealable=stealable)
        return None

    return grow


def _sizes(least: int, wished: int) -> Iterable[int]:
    """What is worth asking for: as much as there is already, and less if the rack has not that much."""
    wished = -(-wished // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    while wished > least:
        yield wished
        wished //= 4
    yield least
