"""Struct: a class whose fields live in a heap.

A subclass names its fields as a dataclass does. Each becomes a descriptor in native code, which reads and writes a word
of the heap; there is no copy of the state in the process, and nothing to save.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, get_origin, get_type_hints

from bequest._core import FieldBase, StructBase, struct_layout
from bequest.errors import HeapMisuse
from bequest.objects.outline import outline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bequest.objects.heap import Heap

# In the order of ValueType in native/heap/structure.hpp, each with what a field without a default begins with.
_ZEROES: dict[type, Any] = {int: 0, float: 0.0, bool: False, bytes: b"", str: ""}
_INT_MAX = 2**63


class Field(FieldBase):
    """A field of a Struct class, as ``Counter.fields`` lists them: its ``name``, ``type`` and ``default``."""

    __slots__ = ("default", "name", "type")

    def __init__(self, owner: type, index: int, name: str, kind: type, default: Any) -> None:
        super().__init__(f"{owner.__name__}.{name}", index, list(_ZEROES).index(kind))
        self.name = name
        self.type = kind
        self.default = default

    def __repr__(self) -> str:
        return f"<Field {self.name}: {self.type.__name__} = {self.default!r}>"


class Struct(StructBase):
    """State with named fields: a subclass declares them as a dataclass does, and is opened by name in a heap.

    ::

        class Counter(bq.Struct):
            count: int = 0
            label: str = ""

        state = Counter(heap, "counter")     # found by its name, or made with the defaults
        state.count += 1                     # consistent by itself
        with state.transaction():            # or with others
            state.count += 1
            state.label = "twice"

    A field is an ``int`` of 64 bits, a ``float``, a ``bool``, or ``bytes`` or ``str`` of any length; without a default
    it begins with zero or empty. Subclasses of a subclass have its fields before their own. Methods are as usual. An
    attribute that is no field cannot be set, unless it begins with an underscore: then it is this process's own.

    Raises HeapMisuse if the heap has a Struct with other fields, or another object, under that name.
    """

    fields: ClassVar[tuple[Field, ...]] = ()
    _layout: ClassVar[str] = ""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.fields = tuple(_declared(cls))
        cls._layout = "".join(f"{field.name} {field.type.__name__}\n" for field in cls.fields)
        for field in cls.fields:
            setattr(cls, field.name, field)

    def __init__(self, heap: Heap, name: str) -> None:
        there = struct_layout(heap, name)
        if there is not None and there != self._layout:
            raise HeapMisuse(_difference(type(self), name, there))
        super().__init__(heap, name, self._layout, self.fields)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in self.fields}

    def __repr__(self) -> str:
        return outline(self, "_name", lambda: ", ".join(f"{k}={v!r}" for k, v in self._values().items()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Struct) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]


def _declared(cls: type[Struct]) -> Iterator[Field]:
    """What the class and its bases annotate, the bases' first."""
    index = 0
    for name, kind in get_type_hints(cls).items():
        if kind is ClassVar or get_origin(kind) is ClassVar:
            continue
        if hasattr(Struct, name):
            raise TypeError(f"{cls.__name__}.{name}: a field cannot have this name, which every Struct has")
        if kind not in _ZEROES:
            raise TypeError(
                f"{cls.__name__}.{name}: a field is an int, float, bool, bytes or str, not {kind!r}; keep what is"
                " more than that in a Map, or encoded as bytes"
            )
        yield Field(cls, index, name, kind, _default(cls, name, kind))
        index += 1


def _default(cls: type[Struct], name: str, kind: type) -> Any:
    default: Any = getattr(cls, name, _ZEROES[kind])
    if isinstance(default, Field):  # a base's
        default = default.default
    wanted = (int, float) if kind is float else (kind,)
    if not any(isinstance(default, one) for one in wanted):
        raise TypeError(
            f"{cls.__name__}.{name} is a field of type {kind.__name__}, and its default {default!r}"
        )
    if kind is int and not -_INT_MAX <= default < _INT_MAX:
        raise OverflowError(f"{cls.__name__}.{name} is an int of 64 bits, and its default {default!r}")
    return default


def _difference(cls: type[Struct], name: str, there: str) -> str:
    """What is another way in the heap than in the class, in words."""
    kept = dict(line.split() for line in there.splitlines())
    wanted = {field.name: field.type.__name__ for field in cls.fields}
    differences = [
        *(f"has {field}: {kept[field]}, which the class lacks" for field in kept if field not in wanted),
        *(f"lacks {field}: {wanted[field]}" for field in wanted if field not in kept),
        *(
            f"has {field} as {kept[field]}, not {wanted[field]}"
            for field in kept
            if wanted.get(field, kept[field]) != kept[field]
        ),
    ] or ["has the fields in another order: " + ", ".join(kept)]
    return (
        f"{name!r} in this heap is not a {cls.__name__} of these fields: it {'; it '.join(differences)}. Open it with"
        " a class that has its fields, and copy what is wanted into a Struct of another name"
    )
