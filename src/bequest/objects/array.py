"""Array: a NumPy array in a heap.

It is read in place, through a view that cannot be written to; it is changed by assignment to an element or a slice, in
a `change` block, which gives a copy and assigns what has become of that, or by more and fewer rows. Each of these takes
what will change into the heap's log first, or is one word. No view of the heap's memory that can be written to is ever
given away: it would outlive the statement that it was for, and write into what lies there then.

NumPy is imported where an array is used, and not before.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bequest._core import ArrayBase, array_text
from bequest.errors import HeapMisuse
from bequest.objects.outline import outline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bequest.objects.heap import Heap

    NDArray = np.ndarray[Any, Any]


class Array(ArrayBase):
    """A NumPy array that survives its process: ``weights = Array(heap, "weights", dtype="f4", shape=(1000, 8))``.

    It is found in the heap by its name, or made, all zeroes: of float64 and without rows if nothing else is said. Its
    first axis can grow and shrink; what is said of the others, and of the type, must be so. Raises HeapMisuse if it is
    not, or if the name is that of another object.

    It is read like an array, ``weights[3:5]``, and its views are read-only. ``weights[3] = 0`` happens whole or not at
    all, and so does what is done in ``with weights.change(slice(3, 5)) as part:``. A view is good until rows are added
    or taken away, or the transaction fails in which it was taken.
    """

    __slots__ = ("_dtype", "_row")

    def __init__(
        self,
        heap: Heap,
        name: str,
        *,
        dtype: npt.DTypeLike | None = None,
        shape: int | Sequence[int] | None = None,
    ) -> None:
        import numpy

        there = array_text(heap, name)
        sides = None if shape is None else _sides(shape)
        if there is None:
            self._dtype = _storable(numpy.dtype(dtype))
            rows, *self._row = sides or (0,)
        else:
            rows = 0
            self._dtype, self._row = _understood(there)
            _require_same(self, name, dtype, sides)
        text = repr((numpy.lib.format.dtype_to_descr(self._dtype), tuple(self._row)))
        super().__init__(heap, name, text, self._row_bytes, rows)

    @property
    def _row_bytes(self) -> int:
        import math

        return self._dtype.itemsize * math.prod(self._row)

    def __repr__(self) -> str:
        return outline(self, "name", lambda: f"of {'x'.join(map(str, self.shape))} {self._dtype}")

    # --- read ---------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its elements."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows there are, and then the shape of each."""
        return (len(self), *self._row)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return 1 + len(self._row)

    @property
    def size(self) -> int:
        """How many elements there are."""
        import math

        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return len(self) * self._row_bytes

    @property
    def array(self) -> NDArray:
        """A view of all of it, to be read in place."""
        return self._all(False)

    def tolist(self) -> list[Any]:
        """Its elements as Python's own, in lists of lists."""
        elements: list[Any] = self.array.tolist()
        return elements

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        import numpy

        if dtype is None or numpy.dtype(dtype) == self._dtype:
            return self.array.copy() if copy else self.array
        if copy is False:
            raise ValueError(f"an Array of {self._dtype} cannot be seen as {dtype} without a copy")
        return self.array.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)

    def _all(self, writable: bool) -> NDArray:
        import numpy

        if len(self) == 0:
            return numpy.empty(self.shape, self._dtype)
        memory = self._view()
        # Of a memoryview that is read-only NumPy never makes an array that can be written to, whoever asks for it.
        return numpy.frombuffer(memory if writable else memory.toreadonly(), self._dtype).reshape(self.shape)

    # --- changed ------------------------------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        import numpy

        value = numpy.asarray(value, self._dtype)  # which may run anybody's code: before memory is looked at
        if not self._row and (type(key) is int or isinstance(key, numpy.integer)) and value.ndim == 0:
            place = range(len(self))[key]  # IndexError, if it is outside
            self._write(place * self._dtype.itemsize, value.tobytes())
            return
        whole = self._all(True)
        with self.transaction():
            self._snapshot(*_extent(whole, key))
            whole[key] = value

    @contextmanager
    def change(self, key: Any = ...) -> Iterator[NDArray]:
        """A copy of ``array[key]`` to be written to in a with statement, which ends with assigning it.

        So it is a transaction: if the body raises, or the process dies in it, everything is as it was before. Ask for
        no more than will change. Raises TypeError if the key leads to a single element: assign to that.
        """
        import numpy

        part = self.array[key]
        if not isinstance(part, numpy.ndarray):
            raise TypeError(f"[{key!r}] is one element of the Array: assign to it")
        part = part.copy()
        with self.transaction():
            yield part
            self[key] = part

    def append(self, row: npt.ArrayLike) -> None:
        """Adds one row behind the last: there wholly, or not at all. Raises ValueError if it has another shape."""
        import numpy

        self.extend(numpy.asarray(row, self._dtype)[numpy.newaxis])

    def extend(self, rows: npt.ArrayLike) -> None:
        """Adds several rows behind the last, all or none. Raises ValueError if they have another shape."""
        import numpy

        added = numpy.ascontiguousarray(rows, self._dtype)
        if added.shape[1:] != tuple(self._row):
            raise ValueError(f"rows of this Array have the shape {tuple(self._row)}, not {added.shape[1:]}")
        if len(added) > 0:
            self._append(added.reshape(-1).view(numpy.uint8).data)

    def resize(self, rows: int) -> None:
        """So many rows: those from there on are dropped, or new ones are there, all zeroes."""
        if not 0 <= rows < 2**63:
            raise ValueError(f"an Array cannot have {rows} rows")
        self._resize(rows)


def _sides(shape: int | Sequence[int]) -> tuple[int, ...]:
    sides = tuple(shape) if isinstance(shape, Iterable) else (operator.index(shape),)
    if not sides or min(sides) < 0:
        raise ValueError(f"an Array has at least one axis, and no negative ones: {shape} is no shape for it")
    return sides


def _storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.hasobject or dtype.subdtype is not None or dtype.itemsize == 0:
        raise TypeError(
            f"an Array holds plain values, and {dtype!r} is none: give its size, or its parts as the shape"
        )
    return dtype


def _understood(text: str) -> tuple[np.dtype[Any], list[int]]:
    """What an array was said to be when it was made: its type, and the shape of a row."""
    import numpy

    descr, row = ast.literal_eval(text)
    return numpy.lib.format.descr_to_dtype(descr), list(row)


def _require_same(
    array: Array, name: str, dtype: npt.DTypeLike | None, sides: tuple[int, ...] | None
) -> None:
    """Of what is asked for, all but the number of rows."""
    import numpy

    if dtype is not None and numpy.dtype(dtype) != array._dtype:
        raise HeapMisuse(f"{name!r} is an Array of {array._dtype} in this heap, not of {numpy.dtype(dtype)}")
    if sides is not None and list(sides[1:]) != array._row:
        raise HeapMisuse(
            f"{name!r} is an Array with rows of the shape {tuple(array._row)} in this heap, not {sides[1:]}"
        )


def _extent(whole: NDArray, key: Any) -> tuple[int, int]:
    """Where assignment to ``whole[key]`` can write: the first byte, and how many."""
    import numpy

    part = whole[key]
    if isinstance(part, numpy.ndarray) and numpy.may_share_memory(part, whole):
        return _bounds(part, whole)
    if not isinstance(key, tuple) and numpy.ndim(key) == 1:  # rows, by number or by mask
        rows = numpy.arange(len(whole))[key]
        return _bounds(whole[rows.min() : rows.max() + 1], whole) if rows.size else (0, 0)
    return 0, whole.nbytes


def _bounds(part: NDArray, whole: NDArray) -> tuple[int, int]:
    """Where a view lies within a contiguous array: its first byte, and how many there are up to its last."""
    if part.size == 0:
        return 0, 0
    spans = [(side - 1) * stride for side, stride in zip(part.shape, part.strides, strict=True)]
    first = part.ctypes.data - whole.ctypes.data + sum(span for span in spans if span < 0)
    return first, sum(map(abs, spans)) + part.itemsize
