"""Queue: first in, first out, in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bequest._core import ChainBase
from bequest.objects.codec import codec
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bequest.objects.heap import Heap

V = TypeVar("V")


class Queue(ChainBase, Generic[V]):
    """Records that are taken in the order in which they were put: ``todo = Queue(heap, "todo")``.

    They are bytes, or what ``value`` says, as in a `Map`.

    Unlike `bequest.Queue`, which is a channel between processes, it is state of one process, which survives it. What is
    done with a record goes into the same transaction as taking it: then it is done once, whoever dies::

        with heap.transaction():
            job = todo.get()
            done[job] = b"..."
    """

    __slots__ = ()

    @overload
    def __init__(self: Queue[bytes], heap: Heap, name: str) -> None: ...
    @overload
    def __init__(self: Queue[V], heap: Heap, name: str, *, value: type[V]) -> None: ...
    def __init__(self, heap: Heap, name: str, *, value: Any = bytes) -> None:
        super().__init__(heap, name, True, codec(value))

    if TYPE_CHECKING:

        def put(self, record: V) -> int:
            """Adds one at the end."""

        def put_all(self, records: Iterable[V]) -> int:
            """Adds several, all or none."""

    else:
        put = ChainBase._append
        put_all = ChainBase._extend

    def __repr__(self) -> str:
        return outline(self, "name", lambda: f"of {len(self)} records")

    def peek(self) -> V:
        """The next one, which stays. Raises queue.Empty if there is none."""
        records: list[V] = self._read(0, 1)
        if not records:
            raise Empty
        return records[0]

    def get(self) -> V:
        """Takes the next one. Raises queue.Empty if there is none; it does not wait."""
        records: list[V] = self._take(1)
        if not records:
            raise Empty
        return records[0]

    def get_all(self, at_most: int | None = None) -> list[V]:
        """Takes all that wait, or so many of them, in order: at once, all or none."""
        waiting = len(self)
        return self._take(waiting if at_most is None else min(max(0, at_most), waiting))

    def drop(self, count: int = 1) -> int:
        """Drops the next ones unread, damaged ones too; how many those were."""
        return self._drop_before(self._first + min(max(0, count), len(self)))

    def __iter__(self) -> Iterator[V]:
        """What waits, in order; nothing is taken."""
        index, end = self._first, self._end
        while index < end and (records := self._read(index, end - index)):
            index += len(records)
            yield from records
