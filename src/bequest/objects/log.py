"""Log: records that are only ever appended, in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, overload

from bequest._core import ChainBase
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from bequest.objects.heap import Heap

_BATCH = 256  # records that iteration fetches at a time


class Log(ChainBase):
    """Append-only records, each with a checksum: ``log = Log(heap, "audit")``, found by its name or made.

    Records are bytes, and have an index for ever: the first ever appended has 0. ``first`` is the index of the oldest
    that is kept, ``end`` that of the next to come. `append` adds one, `extend` many at once, and returns the index of
    the first. `truncate` drops the oldest. A record whose checksum is wrong raises CorruptHeap when it is read.
    """

    __slots__ = ()

    def __init__(self, heap: Heap, name: str) -> None:
        super().__init__(heap, name, False)

    append = ChainBase._append
    extend = ChainBase._extend
    first = ChainBase._first
    end = ChainBase._end

    def __repr__(self) -> str:
        return outline(self, self.name, lambda: f"of {len(self)} records from {self.first}")

    def truncate(self, before: int) -> int:
        """Drops all records with an index below this; how many those were."""
        return self._drop_before(max(0, before))

    def __iter__(self) -> Iterator[bytes]:
        return self.read_from(self.first)

    def read_from(self, index: int) -> Iterator[bytes]:
        """The records from this index on. What is appended meanwhile comes too; what is dropped meanwhile does not."""
        while records := self._read(max(index, self.first), _BATCH):
            index = max(index, self.first) + len(records)
            yield from records

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """By index since ever, or from the end if it is negative. Raises IndexError for what is not kept."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.end)) if i >= self.first]
        place = index + self.end if index < 0 else index
        if not self.first <= place < self.end:
            raise IndexError(f"record {index} is not in the Log: it has {self.first} to {self.end - 1}")
        return self._read(place, 1)[0]
