"""A region: memory that this process owns.

Ownership is exclusive, and a region is its token. What can be done with one follows from that: it exports buffers
(NumPy, memoryview, Arrow), and while any buffer lives, nothing can change who owns the memory, so no view ever points
at pages that are not ours (`BufferError`, as with `bytearray` and `mmap`). When the region has been granted, its handle
is spent (`RegionMoved`). A slice is a *part*: the same memory, page-granular, with a borrow and a fate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from bequest._core import RegionBase, freeze, thaw
from bequest.errors import BadSize
from bequest.limits import PAGE_BYTES
from bequest.memory import seals
from bequest.memory.frozen import Frozen
from bequest.memory.views import array_over

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from bequest.memory.process import Process


class Region(RegionBase):
    """Memory in the rack that this process owns, from `Process.alloc` or `Process.accept`.

    Use it through the buffer protocol (``memoryview(region)``), or `array` for NumPy. `address` is its virtual address,
    the same in every process that ever owns it; `nbytes` its size; `tag` what came along with it, and `sender` the
    name of who granted it ("" if that one is in another group, or has gone and its id been taken by another).
    A region of no bytes is a bare message (see `Process.send`).

    As a context manager it frees, at the end, what is still owned of it.
    """

    __slots__ = ()

    process: Process

    # --- using it ------------------------------------------------------------------------------------------------

    def array(
        self,
        dtype: npt.DTypeLike = "uint8",
        shape: int | Sequence[int] | None = None,
        offset: int = 0,
    ) -> np.ndarray[Any, Any]:
        """A NumPy array over the region's memory, writable unless it is sealed or frozen: a view, nothing is copied.

        ``shape`` defaults to one dimension over everything from ``offset`` (in bytes) on. Raises `RegionMoved` if the
        memory is gone and ValueError if the array does not fit.
        """
        return array_over(self, self.nbytes, dtype, shape, offset)

    def __getitem__(self, key: slice) -> Region:
        """A page-granular part of this region, to be used, granted or freed on its own.

        Offsets are those of this region and do not shift when parts leave. The start must be a multiple of the page
        size, 4096 bytes, and so must the stop unless it is the end.
        """
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise TypeError("a region is indexed by a slice of bytes without step: region[start:stop]")
        start, stop, _ = key.indices(self.nbytes)
        if start >= stop:
            raise BadSize(f"the part [{key.start}:{key.stop}] of a region of {self.nbytes} bytes is empty")
        if (self.offset + start) % PAGE_BYTES or (stop != self.nbytes and (self.offset + stop) % PAGE_BYTES):
            raise BadSize(
                f"a part must begin and end at a page ({PAGE_BYTES} bytes): [{start}:{stop}] does not; "
                "use memoryview(region) to slice bytes"
            )
        part: Region = self._part(start, stop)
        return part

    # --- handing it over -----------------------------------------------------------------------------------------

    def grant(self, to: str, *, tag: bytes = b"", timeout: float | None = None) -> int:
        """Gives this memory to the process named ``to``, at the same address, uncopied (paper, section 3.1).

        Afterwards this handle is spent. ``tag`` is up to 216 bytes that arrive with it. If the recipient's inbox is
        full, waits for at most ``timeout`` seconds (None: for ever; 0: not at all). Returns the bytes that had to be
        copied: 0 within a group, and between groups when a whole slab moves; the size of a smaller part otherwise,
        which the memory element copies to a slab of the other group.

        Raises `BufferError` while a view of it lives, `RegionMoved`, `UnknownProcess`, `ProcessDead`, `InboxFull`.
        After any of them the memory is still this process's.
        """
        process = self.process
        if not process._grant_at_once(self, to, tag):
            return process.grant_all([self], to, tag=tag, timeout=timeout)
        return 0

    async def grant_async(self, to: str, *, tag: bytes = b"", timeout: float | None = None) -> int:
        """`grant`, for asyncio: waits for a full inbox without blocking the event loop."""
        return await self.process.grant_all_async([self], to, tag=tag, timeout=timeout)

    def free(self) -> None:
        """Gives the memory back to the process that allocated it. Raises `BufferError` while a view of it lives.

        Of a frozen region that is being read only the name goes, as with a file that is unlinked while it is open: its
        readers have it from now on, and the last of them to let go frees it. Raises `BadSize` for a part of one.
        """
        seals.free(self, self._free)

    def split(self, *offsets: int) -> list[Region]:
        """Cuts the region at these byte offsets (multiples of the page size) into regions of their own.

        Unlike a slice, which is a part of this region, each of them has its own handle and this one is spent.
        """
        if any(offset % PAGE_BYTES or not 0 < offset < self.nbytes for offset in offsets):
            raise BadSize(f"a region is split at multiples of {PAGE_BYTES} inside of it, not at {offsets}")
        if list(offsets) != sorted(set(offsets)):
            raise BadSize(f"the offsets of a split must ascend: {offsets}")
        parts: list[Region] = self._split(list(offsets))
        return parts

    def merge(self, right: Region) -> Region:
        """One region out of this one and its right neighbour, whose memory begins where this one's ends."""
        merged: Region = self._merge(right)
        return merged

    # --- many readers --------------------------------------------------------------------------------------------

    def freeze(self) -> Frozen:
        """Closes this region for writing, and returns a reference by which every process of the group can read it.

        The memory stays this process's, which is its *keeper*: it is charged to it, and whoever steals from it gets it.
        Others `Process.read` it, at the same address, without a copy. It cannot be granted, split or merged before it
        is thawed (`RegionFrozen`); what asks for a writable view gets `RegionFrozen` too. A frozen region returns the
        same reference again.

        Raises `BufferError` while a view of it lives, `BadSize` for a part (`split` it off first), `RegionMoved`.
        """
        return Frozen(self.process._rack, self.process.group, *freeze(self))

    def thaw(self) -> None:
        """Opens a frozen region for writing again; references to it lead nowhere then. Does nothing if it is not.

        Raises `RegionFrozen`, which says who, while anybody reads it, this process among them; it may also be one who
        tries to in this moment. Views of this handle that were made before stay read-only. Raises `BadSize` for a part,
        `RegionMoved`.
        """
        thaw(self)

    # --- checksums -----------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Promises that this region will not change, and has its memory element keep a checksum of each page.

        From then on it can only be read: views of it are read-only, and what asks for a writable one gets
        `RegionSealed`. The seal goes where the memory goes, by grants and steals, until somebody calls `unseal` or the
        memory is freed. Sums are made by the element, in its own time and on processors that nobody else wants; this
        returns at once. What differs later is found by `verify` and by the element itself, and is a `MemoryFailure`.
        To seal what is sealed takes its present contents for the right ones.

        Raises `BufferError` while a view of it lives, `BadSize` for a part (`split` it off first), `RegionMoved`, and
        `RackMemoryError` if the element cannot keep the sums.
        """
        seals.seal(self)

    def unseal(self) -> None:
        """Opens the region for writing again, and gives its checksums up. Does nothing if it is not sealed.

        Views that were made before stay read-only. Raises `BadSize` for a part, `RegionMoved`.
        """
        seals.unseal(self)

    def verify(self) -> int:
        """Has the memory element read this region, or part, and compare it with its checksums; the bytes verified.

        They are whole pages. What the element had not summed yet is summed now. Raises `ChecksumMismatch`, which names
        the pages that differ, and `NotSealed` if there is nothing to compare with.
        """
        return seals.verify([self])

    # --- the habits of Python ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.nbytes

    def __bool__(self) -> bool:
        return True  # a handle is there, however small its memory

    def __enter__(self) -> Region:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.process.attached:
            return
        try:
            seals.free(self, self._free_remaining)
        except BufferError:
            if kind is None:
                raise
            self._free_when_dropped()  # the frames of the exception hold views: it matters more

    def __repr__(self) -> str:
        kinds = (" frozen" if self.frozen else "") + (" sealed" if self.sealed else "")
        state = kinds if self.owned else " moved"
        tag = f" tag={self.tag!r}" if self.tag else ""
        return f"<bequest.Region {self.nbytes} bytes at {self.address:#x}{tag}{state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a region cannot be pickled, for then it would have two owners; grant it instead")
