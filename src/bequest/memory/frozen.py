"""Frozen regions: read by as many processes of a group as like, each at the same address, uncopied.

This goes beyond the paper, which has one owner for all memory because coherence between several is what a rack cannot
give. A region that nobody may write to needs none. So `Region.freeze` closes a region for writing, once for all, and
hands out a *reference* to it (`Frozen`), which is a name like a path and keeps nothing alive; `Process.read` turns that
into a *reading* (`Reading`), which does. Who keeps the region may change, by death and theft; readers notice nothing.

How it is that no page is freed under a reader, and none is lost when anybody is killed, is in native/readings.hpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bequest._core import ReadingBase, read_frozen
from bequest.errors import NotAttached, RegionMoved
from bequest.memory.views import array_over

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from bequest.memory.process import Process


class Frozen(NamedTuple):
    """A reference to a frozen region, from `Region.freeze`: where it lies and which one it is. A name, not a hold.

    It can be pickled and sent about, and compared. ``address`` and ``nbytes`` are the region's, ``group`` is the name
    of the group whose members may read it. ``rack``, ``descriptor`` and ``birth`` tell it from any other that lay, or
    will lie, at that address.
    """

    rack: str
    group: str
    descriptor: int
    birth: int
    address: int
    nbytes: int


class Reading(ReadingBase):
    """A frozen region that this process reads, from `Process.read`. Its memory stays for as long as this is open.

    Use it through the buffer protocol (``memoryview(reading)``), which is read-only, or `array`. ``address`` and
    ``nbytes`` are the region's; `views` is how many buffers of it live; `kept` is whether somebody keeps the region,
    or who kept it has freed it, and it is its readers' together. It closes itself when neither it nor a view of it is
    left; as a context manager it closes at the end.
    """

    __slots__ = ()

    process: Process

    def array(
        self,
        dtype: npt.DTypeLike = "uint8",
        shape: int | Sequence[int] | None = None,
        offset: int = 0,
    ) -> np.ndarray[Any, Any]:
        """A read-only NumPy array over the region's memory, as `Region.array`: it keeps the reading open."""
        return array_over(self, self.nbytes, dtype, shape, offset)

    def close(self) -> None:
        """Lets go of the region. Raises `BufferError` while a view of it lives. Does nothing the second time."""
        super().close()

    def __len__(self) -> int:
        return self.nbytes

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self.views:  # the frames of the exception may hold views: it matters more
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<bequest.Reading {self.nbytes} bytes at {self.address:#x}{state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a reading is this process's own; send the reference from freeze(), and read that there"
        )


def read(process: Process, frozen: Frozen) -> Reading:
    """`Process.read`."""
    if not isinstance(frozen, Frozen):
        raise TypeError(f"what is read is a reference from region.freeze(), not {type(frozen).__name__}")
    if frozen.rack != process._rack or frozen.group != process.group:
        raise NotAttached(
            f"the frozen region at {frozen.address:#x} is in group {frozen.group!r} of the rack {frozen.rack};"
            f" {process.name!r} is attached to group {process.group!r} of {process._rack}, and can read only there"
        )
    reading: Reading | None = read_frozen(process, Reading, frozen.descriptor, frozen.birth, frozen.address)
    if reading is None:
        raise RegionMoved(
            f"the frozen region at {frozen.address:#x} ({frozen.nbytes} bytes) is not there any more: it was freed,"
            " and nobody was reading it, or it was thawed"
        )
    return reading
