"""Queue: first in, first out, in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING

from bequest._core import ChainBase
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from bequest.objects.heap import Heap


class Queue(ChainBase):
    """Records that are taken in the order in which they were put: ``todo = Queue(heap, "todo")``.

    Unlike `bequest.Queue`, which is a channel between processes, it is state of one process, which survives it. What is
    done with a record goes into the same transaction as taking it: then it is done once, whoever dies::

        with heap.transaction():
            job = todo.get()
            done[job] = b"..."
    """

    __slots__ = ()

    def __init__(self, heap: Heap, name: str) -> None:
        super().__init__(heap, name, True)

    put = ChainBase._append
    put_all = ChainBase._extend

    def __repr__(self) -> str:
        return outline(self, self.name, lambda: f"of {len(self)} records")

    def peek(self) -> bytes:
        """The next one, which stays. Raises queue.Empty if there is none."""
        records = self._read(0, 1)
        if not records:
            raise Empty
        return records[0]

    def get(self) -> bytes:
        """Takes the next one. Raises queue.Empty if there is none; it does not wait."""
        records = self._take(1)
        if not records:
            raise Empty
        return records[0]

    def get_all(self, at_most: int | None = None) -> list[bytes]:
        """Takes all that wait, or so many of them, in order: at once, all or none."""
        return self._take(len(self) if at_most is None else max(0, at_most))

    def __iter__(self) -> Iterator[bytes]:
        """What waits, in order; nothing is taken."""
        return iter(self._read(0, len(self)))
