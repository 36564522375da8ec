"""Map: a dictionary in a heap.

The heap holds bytes; a typed map turns keys and values into them and back. What they are is noted in the map when it is
made, as a kind (bytes, str, int, float, bool, or "packed": in MessagePack, by msgspec), so that nobody opens it as what
it is not. A packed value's type is the program's own: msgspec says what of it may change (fields added, with defaults).
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from bequest._core import MapBase
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from bequest.objects.heap import Heap

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

# ValueType in native/heap/object.hpp.
_KINDS: dict[Any, int] = {int: 0, float: 1, bool: 2, bytes: 3, str: 4}
_PACKED = 5
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
        super().__init__(heap, name, (_KINDS[key], None, None), _codec(value))

    def __repr__(self) -> str:
        return outline(self, self.name, lambda: f"of {len(self)} entries")

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

    def __iter__(self) -> Iterator[K]:
        return self._iterate(0)

    def keys(self) -> KeysView[K]:
        """A view of the keys. RuntimeError rises if the map changes its size while one goes over it."""
        return KeysView(cast("Mapping[K, V]", self))

    def values(self) -> ValuesView[V]:
        """A view of the values."""
        return _Values(cast("Mapping[K, V]", self))

    def items(self) -> ItemsView[K, V]:
        """A view of the pairs of a key and its value."""
        return _Items(cast("Mapping[K, V]", self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping | Map):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

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

    def popitem(self) -> tuple[K, V]:
        """Removes and returns some entry; KeyError if there is none."""
        for key, value in self.items():
            del self[key]
            return key, value
        raise KeyError("popitem(): the Map is empty")

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

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        """A dict of both."""
        return dict(self.items()) | dict(other)

    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]:
        return dict(other) | dict(self.items())

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


def _codec(kind: Any) -> tuple[int, Callable[[Any], bytes] | None, Callable[[bytes], Any] | None]:
    """What the native map is told of a type: its number, and how to pack and unpack what has none of its own."""
    if kind in _KINDS:
        return (_KINDS[kind], None, None)
    from msgspec import msgpack

    encode, decode = msgpack.Encoder().encode, msgpack.Decoder(kind).decode

    def pack(value: Any) -> bytes:
        packed = encode(value)
        decode(packed)  # what cannot be read as what it is said to be is not put
        return packed

    return (_PACKED, pack, decode)
