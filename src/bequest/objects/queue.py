"""Queue: first in, first out, in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING

from bequest._core import ChainBase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bequest.objects.heap import Heap


class Queue(ChainBase):
    """Records that are taken in the order in which they were put: ``todo = Queue(heap, "todo")``.

    Unlike `bequest.Queue`, which is a channel between processes, it is state of one process, which survives it. What is
    done with a record goes into the same transaction as taking it: then it is done once, whoever dies::

        with heap.transaction():
            job = todo.get()
            done[job] = b"..."
    """

    __slots__ = ("_name",)

    def __init__(self, heap: Heap, name: str) -> None:
        super().__init__(heap, name, True)
        self._name = name

    def __repr__(self) -> str:
        return f"<Queue {self._name!r} of {len(self)} records>"

    def put(self, record: bytes) -> None:
        """Adds one at the end."""
        self.append(record)

    def put_all(self, records: Iterable[bytes]) -> None:
        """Adds several, all or none of them."""
        self.extend(records)

    def peek(self) -> bytes:
        """The next one, which stays. Raises queue.Empty if there is none."""
        records = self._read(self.first, 1)
        if not records:
            raise Empty
        return records[0]

    def get(self) -> bytes:
        """Takes the next one. Raises queue.Empty if there is none; it does not wait."""
        record = self.peek()
        self._drop_before(self.first + 1)
        return record

    def __iter__(self) -> Iterator[bytes]:
        """What waits, in order; nothing is taken."""
        yield from self._read(self.first, len(self))
