"""Frames of plain columns, which a shuffle copies twice and no more.

What pandas keeps in arrays of NumPy's own (numbers, times, truth values; the index as well) needs no Arrow. The rows
for an output are gathered, column by column, from where the input has them into the shard's region. An output's columns
are put together from all its chunks in a block of the receiver's shelf, where they stay. With Arrow each of these steps
makes one more copy, in memory that is fresh each time.

A chunk is its columns one after another, the index first, each at a multiple of 64 bytes. Both sides know their types
from what was foreseen for the frame. An input that differs from that, by a type, a label, or an index of several
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
        series = (data.iloc[:, number] for number in range(data.shape[1]))
        return [np.ascontiguousarray(column.to_numpy()) for column in (data.index, *series)]

    def chunk(self, partition: int, columns: Sequence[Array], rows: Array) -> Chunk:
        """These rows of an input, for an output."""

        def write(room: memoryview) -> None:
            for column, part in zip(columns, self._lie_in(room, len(rows)), strict=True):
                np.take(column, rows, out=part, mode="clip")  # any other mode gathers elsewhere first

        return Chunk((partition,), self._nbytes(len(rows)), write, msgspec.msgpack.encode(len(rows)))

    def read(self, about: bytes, view: memoryview) -> list[Array]:
        """The columns in a chunk, where they lie."""
        return list(self._lie_in(view, msgspec.msgpack.decode(about, type=int)))

    def frame(self, columns: Sequence[Array]) -> pd.DataFrame:
        """The frame that has these columns, which are not copied."""
        index = pd.Index(columns[0], name=self._index.name, copy=False)
        made = pd.DataFrame(dict(enumerate(columns[1:])), index=index, copy=False)
        made.columns = self._columns
        return made

    def output(self, shelf: Shelf, key: Key, chunks: Sequence[Sequence[Array]]) -> pd.DataFrame:
        """The frame of these chunks, one after another, over rack memory if there is room."""
        rows = sum(len(chunk[0]) for chunk in chunks)

        def join(columns: Sequence[Array]) -> None:
            for column, *parts in zip(columns, *chunks, strict=True):
                np.concatenate(parts, out=column)

        return self.frame(make_arrays(shelf, key, rows, self._types, join))

    def _nbytes(self, rows: int) -> int:
        return sum(_aligned(rows * dtype.itemsize) for dtype in self._types)

    def _lie_in(self, room: memoryview, rows: int) -> Iterator[Array]:
        offset = 0
        for dtype in self._types:
            yield np.ndarray(rows, dtype, room, offset)
            offset += _aligned(rows * dtype.itemsize)


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
