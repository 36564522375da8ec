"""Map: a dictionary in a heap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from bequest._core import MapBase

if TYPE_CHECKING:
    from bequest.objects.heap import Heap


class Map(MapBase):
    """A dictionary from bytes to bytes that survives its process: ``jobs = Map(heap, "jobs")``.

    It is found in the heap by its name, or made. It does what a dict does, in no particular order; keys and values may
    be given as anything with a buffer, and come as bytes. Every operation happens whole or not at all, and so do all
    those within one ``with heap.transaction():``.
    """

    __slots__ = ("__weakref__", "_name")

    def __init__(self, heap: Heap, name: str) -> None:
        super().__init__(heap, name)
        self._name = name

    def __repr__(self) -> str:
        return f"<Map {self._name!r} of {len(self)} entries>"

    def __iter__(self) -> Iterator[bytes]:
        return self._iterate(0)

    def keys(self) -> Iterator[bytes]:
        """The keys, one after the other. RuntimeError rises if the map changes its size meanwhile."""
        return self._iterate(0)

    def values(self) -> Iterator[bytes]:
        """The values."""
        return self._iterate(1)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of a key and its value."""
        return self._iterate(2)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping | Map):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]

    def pop(self, key: bytes, *default: Any) -> Any:
        """Removes a key and returns its value, or the default; KeyError if there is neither."""
        value = self.get(key)
        if value is None:
            if default:
                return default[0]
            raise KeyError(key)
        del self[key]
        return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Removes and returns some entry; KeyError if there is none."""
        for key, value in self.items():
            del self[key]
            return key, value
        raise KeyError("popitem(): the Map is empty")

    def setdefault(self, key: bytes, default: bytes = b"") -> bytes:
        """The key's value; if it has none, it gets this one."""
        value = self.get(key)
        if value is None:
            self[key] = value = bytes(default)
        return value

    def update(self, other: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        """Puts all of these, in one transaction."""
        pairs = other.items() if isinstance(other, Mapping | Map) else other
        with self.heap.transaction():
            for key, value in pairs:
                self[key] = value

    @property
    def heap(self) -> Heap:
        """The heap that it is in."""
        heap: Heap = self._heap
        return heap


MutableMapping.register(Map)
