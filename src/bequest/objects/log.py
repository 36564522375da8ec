"""Log: records that are only ever appended, in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bequest._core import ChainBase
from bequest.objects.codec import codec
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bequest.objects.heap import Heap

V = TypeVar("V")

_BATCH = 256  # records that iteration fetches at a time


class Log(ChainBase, Generic[V]):
    """Append-only records, each with a checksum: ``log = Log(heap, "audit")``, found by its name or made.

    Records are bytes, or what ``value`` says, as in a `Map`. Each has an index for ever: the first ever appended has 0.
    ``first`` is the index of the oldest that is kept, ``end`` that of the next to come. `append` adds one, `extend`
    many at once, and returns the index of the first. `truncate` drops the oldest. A record whose checksum is wrong
    raises CorruptHeap when it is read.
    """

    __slots__ = ()

    @overload
    def __init__(self: Log[bytes], heap: Heap, name: str) -> None: ...
    @overload
    def __init__(self: Log[V], heap: Heap, name: str, *, value: type[V]) -> None: ...
    def __init__(self, heap: Heap, name: str, *, value: Any = bytes) -> None:
        super().__init__(heap, name, False, codec(value))

    if TYPE_CHECKING:

        def append(self, record: V) -> int:
            """Adds one; its index."""

        def extend(self, records: Iterable[V]) -> int:
            """Adds many, all or none; the index of the first."""

    else:
        append = ChainBase._append
        extend = ChainBase._extend

    first = ChainBase._first
    end = ChainBase._end

    def __repr__(self) -> str:
        return outline(self, "name", lambda: f"of {len(self)} records from {self.first}")

    def truncate(self, before: int) -> int:
        """Drops all records with an index below this; how many those were."""
        return self._drop_before(min(max(0, before), self.end))

    def __iter__(self) -> Iterator[V]:
        return self.read_from(self.first)

    def __reversed__(self) -> Iterator[V]:
        """From the newest to the oldest. What is appended or dropped meanwhile does not come."""
        stop = self.end
        while records := self._read(start := max(stop - _BATCH, self.first), max(stop - start, 0)):
            if start + len(records) < stop:
                self._read(start + len(records), 1)  # is damaged, and raises CorruptHeap
            stop = start
            yield from reversed(records)

    def read_from(self, index: int) -> Iterator[V]:
        """The records from this index on. What is appended meanwhile comes too; what is dropped meanwhile does not."""
        while records := self._read(min(max(index, self.first), self.end), _BATCH):
            index = max(index, self.first) + len(records)
            yield from records

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: int | slice) -> V | list[V]:
        """By index since ever, or from the end if it is negative. Raises IndexError for what is not kept."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.end)) if i >= self.first]
        place = index + self.end if index < 0 else index
        if not self.first <= place < self.end:
            raise IndexError(f"record {index} is not in the Log: it has {self.first} to {self.end - 1}")
        record: V = self._read(place, 1)[0]
        return record
