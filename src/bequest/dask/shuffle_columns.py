"""Frames of plain columns, which a shuffle copies twice and no more.

What pandas keeps in arrays of NumPy's own (numbers, times, truth values; the index as well) needs no Arrow. The rows
for an output are gathered, column by column, from where the input has them into the shard's region. An output's columns
are put together from all its chunks in a block of the receiver's shelf, where they stay. With Arrow each of these steps
makes one more copy, in memory that is fresh each time.

A chunk is its columns one after another, the index first, each at a multiple of 64 bytes. Both sides know their types
from what was foreseen for the frame. Of an index that is a range, which most are, the chunk has the places in it, as
short numbers. An input that differs from that, by a type, a label, or an index of several
levels, goes as Arrow's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from bequest.dask.shards import Chunk
from bequest.errors import RackMemoryError

if TYPE_CHECKING:
    from dask.typing import Key

    from bequest.dask.shelf import Shelf

Array = np.ndarray[Any, Any]

_ALIGNMENT = 64
_KINDS = "biufcmM"  # of types whose values lie in the array itself
_PLACE = np.dtype(np.uint32)


class About(msgspec.Struct, array_like=True, frozen=True):
    """What is said about a chunk."""

    rows: int
    range: tuple[int, int] | None  # start and step of the input's index, if it is one


class Places:
    """Rows of an index that is a range, by their places in it."""

    def __init__(self, places: Array, start: int, step: int) -> None:
        self._places = places
        self._start = start
        self._step = step

    def __len__(self) -> int:
        return len(self._places)

    def write(self, room: Array) -> None:
        """Writes what the index has there."""
        np.multiply(self._places, self._step, out=room, dtype=room.dtype)
        room += self._start

    def copy(self) -> Array:
        """An array of its own, as of an array."""
        made = np.empty(len(self), np.int64)
        self.write(made)
        return made


class Columns:
    """The plain columns that were foreseen, for cutting inputs and making outputs."""

    def __init__(self, meta: pd.DataFrame) -> None:
        self._index = meta.index
        self._columns = meta.columns
        self._types = [meta.index.dtype, *meta.dtypes]
        self._are_plain = all(isinstance(one, np.dtype) and one.kind in _KINDS for one in self._types)

    def of(self, data: pd.DataFrame) -> list[Array] | None:
        """The columns of an input, the index first; None if they are not what was foreseen, or not plain."""
        if not self._are_plain or isinstance(data.index, pd.MultiIndex) or data.attrs:
            return None
        if [data.index.dtype, *data.dtypes] != self._types or data.index.name != self._index.name:
            return None
        if not data.columns.identical(self._columns):
            return None
        index = data.index if _is_range(data.index) else np.ascontiguousarray(data.index.to_numpy())
        series = (data.iloc[:, number] for number in range(data.shape[1]))
        return [index, *(np.ascontiguousarray(column.to_numpy()) for column in series)]

    def chunk(self, partition: int, columns: Sequence[Any], rows: Array) -> Chunk:
        """These rows of an input, for an output."""
        index = columns[0]
        about = About(len(rows), (index.start, index.step) if isinstance(index, pd.RangeIndex) else None)

        def write(room: memoryview) -> None:
            parts = self._lie_in(room, about)
            if about.range is not None:
                next(parts)[:] = rows
            for column, part in zip(columns[about.range is not None :], parts, strict=True):
                np.take(column, rows, out=part, mode="clip")  # any other mode gathers elsewhere first

        nbytes = sum(_aligned(about.rows * dtype.itemsize) for dtype in self._types_in(about))
        return Chunk((partition,), nbytes, write, msgspec.msgpack.encode(about))

    def read(self, about: bytes, view: memoryview) -> list[Array | Places]:
        """The columns in a chunk, where they lie."""
        said = msgspec.msgpack.decode(about, type=About)
        index, *columns = self._lie_in(view, said)
        return [index if said.range is None else Places(index, *said.range), *columns]

    def frame(self, columns: Sequence[Array]) -> pd.DataFrame:
        """The frame that has these columns, which are not copied."""
        index = pd.Index(columns[0], name=self._index.name, copy=False)
        made = pd.DataFrame(dict(enumerate(columns[1:])), index=index, copy=False)
        made.columns = self._columns
        return made

    def output(self, shelf: Shelf, key: Key, chunks: Sequence[Sequence[Array | Places]]) -> pd.DataFrame:
        """The frame of these chunks, one after another, over rack memory if there is room."""
        rows = sum(len(chunk[0]) for chunk in chunks)

        def join(columns: Sequence[Array]) -> None:
            for column, *parts in zip(columns, *chunks, strict=True):
                end = 0
                for part in parts:
                    start, end = end, end + len(part)
                    if isinstance(part, Places):
                        part.write(column[start:end])
                    else:
                        column[start:end] = part

        return self.frame(make_arrays(shelf, key, rows, self._types, join))

    def _types_in(self, about: About) -> list[np.dtype[Any]]:
        """In a chunk."""
        return self._types if about.range is None else [_PLACE, *self._types[1:]]

    def _lie_in(self, room: memoryview, about: About) -> Iterator[Array]:
        offset = 0
        for dtype in self._types_in(about):
            yield np.ndarray(about.rows, dtype, room, offset)
            offset += _aligned(about.rows * dtype.itemsize)


def _is_range(index: pd.Index[Any]) -> bool:
    """Of so few rows that their places are short numbers."""
    return isinstance(index, pd.RangeIndex) and len(index) <= 1 << 32


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def make_arrays(
    shelf: Shelf,
    key: Key,
    length: int,
    types: Sequence[np.dtype[Any]],
    fill: Callable[[Sequence[Array]], None],
) -> list[Array]:
    """Arrays of a task's result, filled where the shelf has them; if the rack is full, in the worker's own memory."""
    try:
        views = shelf.prepare(
            key,
            [length * dtype.itemsize for dtype in types],
            lambda rooms: fill([room.view(dtype) for room, dtype in zip(rooms, types, strict=True)]),
        )
    except RackMemoryError:  # the shelf has said so
        arrays = [np.empty(length, dtype) for dtype in types]
        fill(arrays)
        return arrays
    return [np.frombuffer(view, dtype) for view, dtype in zip(views, types, strict=True)]
