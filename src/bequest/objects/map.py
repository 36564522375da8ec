"""Map: a dictionary in a heap.

What its keys and values are is noted in it when it is made (`codec`).
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from bequest._core import MapBase
from bequest.objects.codec import codec
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from bequest.objects.heap import Heap

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_KEYS = (bytes, str, int)


class Map(MapBase, Generic[K, V]):
    """A dictionary that survives its process: ``jobs = Map(heap, "jobs")``, found in the heap by its name or made.

    It does what a dict does, in no particular order. Keys and values are bytes, and may be given as anything with a
    buffer; or they are what ``key`` and ``value`` say: a key ``bytes``, ``str`` or an ``int`` of 64 bits; a value one
    of these, ``float``, ``bool``, or any type that msgspec can encode (a dataclass, ``msgspec.Struct``, ``dict``,
    ``list[int]``…). What comes out is a copy: change that and put it back. Raises HeapMisuse if the name is another
    object's, or a map's of other types.

    Every operation happens whole or not at all, and so do all those within one ``with heap.transaction():``.
    """

    __slots__ = ("__weakref__",)

    @overload
    def __init__(self: Map[Buffer, bytes], heap: Heap, name: str) -> None: ...
    @overload
    def __init__(self: Map[K, bytes], heap: Heap, name: str, *, key: type[K]) -> None: ...
    @overload
    def __init__(self: Map[Buffer, V], heap: Heap, name: str, *, value: type[V]) -> None: ...
    @overload
    def __init__(self: Map[K, V], heap: Heap, name: str, *, key: type[K], value: type[V]) -> None: ...
    def __init__(self, heap: Heap, name: str, *, key: Any = bytes, value: Any = bytes) -> None:
        if key not in _KEYS:
            raise TypeError(f"a Map's keys are bytes, str or int, not {key!r}")
        super().__init__(heap, name, codec(key), codec(value))

    def __repr__(self) -> str:
        return outline(self, "name", lambda: f"of {len(self)} entries")

    if TYPE_CHECKING:  # they are native

        def __getitem__(self, key: K) -> V: ...
        def __setitem__(self, key: K, value: V) -> None: ...
        def __delitem__(self, key: K) -> None: ...
        @overload
        def get(self, key: K) -> V | None: ...
        @overload
        def get(self, key: K, default: V | T) -> V | T: ...
        def get(self, key: K, default: Any = None) -> Any:
            """The key's value, or the default."""

        def popitem(self) -> tuple[K, V]:
            """Removes and returns some entry; KeyError if there is none."""

    def __iter__(self) -> Iterator[K]:
        return self._iterate(0)

    def keys(self) -> KeysView[K]:
        """A view of the keys. RuntimeError rises if keys come or go while one goes over it; `scan` minds nothing."""
        return KeysView(cast("Mapping[K, V]", self))

    def values(self) -> ValuesView[V]:
        """A view of the values."""
        return _Values(cast("Mapping[K, V]", self))

    def items(self) -> ItemsView[K, V]:
        """A view of the pairs of a key and its value."""
        return _Items(cast("Mapping[K, V]", self))

    def scan(self, cursor: int = 0, count: int = 100) -> tuple[int, list[K]]:
        """Some of the keys, and the cursor to go on from: a way over a map that may change on the way.

        As Redis's SCAN: cursor 0 begins, and 0 is returned at the end, and only there: a call may bring no key, and
        some more than ``count``, which says how much is to be looked at in one call. A key that is in the map from the
        first call to the last is returned exactly once, whatever is put, deleted, or undone meanwhile; of others it is
        not said, but none is returned twice. A cursor holds across closing and opening, also by an heir. Raises
        ValueError for what is no cursor, and for a count below 1.
        """
        if not 0 <= cursor < 2**64:
            raise ValueError(f"a cursor is 0 or what scan() has returned, not {cursor}")
        if count < 1:
            raise ValueError(f"scan() looks at one entry at least, not at {count}")
        return self._scan(cursor, min(count, 2**63))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping | Map):
            return NotImplemented
        return self.copy() == dict(other.items())

    __hash__ = None  # type: ignore[assignment]

    def pop(self, key: K, *default: Any) -> Any:
        """Removes a key and returns its value, or the default; KeyError if there is neither."""
        if key not in self:
            if default:
                return default[0]
            raise KeyError(key)
        value = self[key]
        del self[key]
        return value

    def setdefault(self, key: K, default: V) -> V:
        """The key's value; if it has none, it gets this one."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, other: Mapping[K, V] | Iterable[tuple[K, V]] = (), /, **more: V) -> None:
        """Puts all of these, in one transaction."""
        with self.transaction():
            for key, value in (dict(other) | cast("dict[K, V]", more)).items():
                self[key] = value

    def copy(self) -> dict[K, V]:
        """A dict of all that is in it."""
        return dict(self.items())

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        """A dict of both."""
        return self.copy() | dict(other)

    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]:
        return dict(other) | self.copy()

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Map[K, V]:
        self.update(other)
        return self


class _Values(ValuesView[V]):
    """Without looking each up again."""

    __slots__ = ()

    def __iter__(self) -> Iterator[V]:
        values: Iterator[V] = self._mapping._iterate(1)  # type: ignore[attr-defined]
        return values


class _Items(ItemsView[K, V]):
    """Without looking each up again."""

    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[K, V]]:
        items: Iterator[tuple[K, V]] = self._mapping._iterate(2)  # type: ignore[attr-defined]
        return items


MutableMapping.register(Map)
