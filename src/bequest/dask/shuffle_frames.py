"""A run of a data frame's shuffle in the rack (see `shuffle`).

**Cutting.** The column that says which output a row is for is of small integers. One stable sort of it, by counting,
gives the rows in the order of receivers and outputs. Those for each output are gathered from there: plain columns
right into the region (`shuffle_columns`), all others by Arrow, as a stream. Dask sorts the whole frame, sends it, and
sorts it again for the outputs.

**Making.** The chunks for an output lie in regions of several inputs and are read where they are. Put one after the
other, in the order of inputs, they become a frame; then they are freed. Hence the frame must not be made of their
memory, as pandas would like to with whole columns of Arrow's: those are copied first.

An output can be made once. A frame that is merged with itself has one shuffle, whose outputs one task wants twice: as
long as the first is in use, the second is a view of it.

What came Dask's way is in Dask's buffer. Then, and where inputs differ in their types from what was foreseen, all
goes through the function that Dask has for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask.dataframe.dispatch import from_pyarrow_table_dispatch, to_pyarrow_table_dispatch
from distributed.metrics import context_meter
from distributed.shuffle import _arrow as arrow
from distributed.shuffle._exceptions import DataUnavailable
from distributed.shuffle._shuffle import DataFrameShuffleRun

from bequest.dask.shards import Chunk, Place
from bequest.dask.shuffle import RackRun
from bequest.dask.shuffle_columns import Columns

_COUNTED_MAX = 4000  # numbers that Arrow sorts by counting; with more of them radix sort is faster
_COUNTED_AT_ONCE = 1 << 14  # numbers that NumPy makes long for it
_NUMPY_TYPE = re.compile(r"bool$|u?int\d+$|float\d+$|(datetime|timedelta)64(\[\w+\])?$")


Cut = Callable[[int, "np.ndarray[Any, Any]"], Chunk]  # of an output partition, and the rows of it


class Outputs(NamedTuple):
    """The outputs in the order of their receivers."""

    partitions: list[int]
    ranges: dict[str, range]  # which of them are a receiver's, by its address
    ranks: np.ndarray[
        Any, Any
    ]  # of each partition, its place in that order; the last: of any that is not wanted

    @classmethod
    def of(cls, partitions_of: dict[str, list[int]]) -> Outputs:
        """From the partitions of each receiver."""
        partitions: list[int] = []
        ranges = {}
        for address, its in partitions_of.items():
            ranges[address] = range(len(partitions), len(partitions) + len(its))
            partitions += its
        unwanted = len(partitions)
        ranks = np.full(max(partitions, default=-1) + 2, unwanted, np.min_scalar_type(-unwanted - 1))
        ranks[partitions] = range(unwanted)
        return cls(partitions, ranges, ranks)

    def rows(self, numbers: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The rows in the order of outputs, and where each output's begin. ``numbers`` says whose each row is."""
        unwanted = len(self.ranks) - 1
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < unwanted:
            numbers = np.where((numbers >= 0) & (numbers < unwanted), numbers, unwanted)
        ranks = self._ranks_of(numbers)
        counts = np.zeros(len(self.partitions) + 1, np.int64)
        for start in range(0, len(ranks), _COUNTED_AT_ONCE):
            counts += np.bincount(ranks[start : start + _COUNTED_AT_ONCE], minlength=len(counts))
        if len(counts) <= _COUNTED_MAX:
            order = pc.array_sort_indices(pa.array(ranks)).to_numpy().view(np.int64)
        else:
            order = np.argsort(ranks, kind="stable")
        return order, np.concatenate([[0], np.cumsum(counts)])

    def _ranks_of(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if np.array_equal(self.ranks[:-1], range(len(self.ranks) - 1)):
            return numbers.astype(self.ranks.dtype, copy=False)  # they are what they would be
        return self.ranks.take(numbers)


class FrameRun(RackRun, DataFrameShuffleRun):
    """A worker's part in the shuffle of a data frame."""

    @functools.cached_property
    def _outputs(self) -> Outputs:
        return Outputs.of(self.partitions_of)

    @functools.cached_property
    def _foreseen(self) -> pd.DataFrame:
        return self.meta.drop(columns=self.column) if self.drop_column else self.meta

    @functools.cached_property
    def _columns(self) -> Columns:
        return Columns(self._foreseen)

    def received_as(self, source: Place) -> int:
        """How Dask's run calls an input partition."""
        return source[0]

    def place_of(self, output: int) -> Place:
        """The place of what Dask's run calls so."""
        return (output,)

    # --- cutting ----------------------------------------------------------------------------------------------------

    def _shard_partition(self, data: pd.DataFrame, partition_id: int, **kwargs: Any) -> dict[str, Any]:
        """Grants what can be granted; returns what is to go Dask's way, by receiver."""
        numbers = data[self.column]
        if not _can_cut(data, numbers):
            shards: dict[str, Any] = super()._shard_partition(data, partition_id, **kwargs)
            return shards
        rows, starts = self._outputs.rows(numbers.to_numpy())
        cut = self._plain_cut(data) or self._arrow_cut(data)
        its_rows = {
            address: rows[starts[its.start] : starts[its.stop]]
            for address, its in self._outputs.ranges.items()
            if starts[its.start] < starts[its.stop]
        }
        chunks = {
            address: [
                cut(self._outputs.partitions[output], rows[starts[output] : starts[output + 1]])
                for output in self._outputs.ranges[address]
                if starts[output] < starts[output + 1]
            ]
            for address in its_rows
            if address in self.receivers()
        }
        given = self.give((partition_id,), chunks)
        shards = {}
        for address, its in its_rows.items():
            if address not in given:
                table = to_pyarrow_table_dispatch(data, preserve_index=True)
                shards[address] = (partition_id, arrow.serialize_table(table.take(pa.array(its))))
        context_meter.digest_metric("p2p-shards", sum(len(shard) for _, shard in shards.values()), "bytes")
        context_meter.digest_metric("p2p-shards", len(shards), "count")
        return shards

    def _plain_cut(self, data: pd.DataFrame) -> Cut | None:
        """How to make chunks of plain columns; None if these are not."""
        columns = self._columns.of(data.drop(columns=self.column) if self.drop_column else data)
        return (
            None if columns is None else lambda partition, rows: self._columns.chunk(partition, columns, rows)
        )

    def _arrow_cut(self, data: pd.DataFrame) -> Cut:
        """How to make chunks of any columns."""
        wanted = data.drop(columns=self.column) if self.drop_column else data
        table = to_pyarrow_table_dispatch(wanted, preserve_index=True).combine_chunks()
        return lambda partition, rows: chunk_of(partition, table.take(pa.array(rows)))

    # --- making -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _in_use(self) -> weakref.WeakValueDictionary[int, pd.DataFrame]:
        """The outputs that were made and are still there."""
        return weakref.WeakValueDictionary()

    def _get_output_partition(self, partition_id: int, key: Any, **kwargs: Any) -> pd.DataFrame:
        """An output of what has come, both ways."""
        in_use = self._in_use.get(partition_id)
        if in_use is not None:
            return in_use.copy(deep=False)
        frame = self._make_output(partition_id, key, **kwargs)
        self._in_use[partition_id] = frame
        return frame

    def _make_output(self, partition_id: int, key: Any, **kwargs: Any) -> pd.DataFrame:
        shards = self.shards_for((partition_id,))
        if not shards:
            return super()._get_output_partition(partition_id, key, **kwargs)
        came_otherwise: list[pa.Table] = []
        with contextlib.suppress(DataUnavailable):
            came_otherwise = self._read_from_disk((partition_id,))
        with self.losing_nothing(), contextlib.ExitStack() as reading:
            ours = [
                (shard.source[0], *reading.enter_context(shard.read((partition_id,)))) for shard in shards
            ]
            if not came_otherwise and all(about for _, about, _ in ours):
                plain = [self._columns.read(about, view) for _, about, view in ours]
                frame = self._columns.output(self.shuffles.place.shelf, key, plain)
                del plain
            else:
                tables = [(source, self._table(about, view, len(ours))) for source, about, view in ours]
                frame = self._frame_of_tables(came_otherwise, tables)
                del tables
            del ours  # nothing may look at the regions when they are freed
        return frame

    def _table(self, about: bytes, view: memoryview, count: int) -> pa.Table:
        """A chunk, one of so many, as a table which becomes a frame that does not need the chunk."""
        if about:
            return to_pyarrow_table_dispatch(
                self._columns.frame([column.copy() for column in self._columns.read(about, view)]),
                preserve_index=True,
            )
        with pa.ipc.open_stream(pa.py_buffer(view)) as stream:
            return own_columns(stream.read_all(), all_of_them=count == 1)

    def _frame_of_tables(self, otherwise: list[pa.Table], ours: list[tuple[int, pa.Table]]) -> pd.DataFrame:
        frame = None if otherwise else self._frame_in_order([table for _, table in ours])
        if frame is None:
            marked = [mark(table, source) for source, table in ours]
            frame = arrow.convert_shards([*otherwise, *marked], self.meta, self.column, self.drop_column)
        return frame

    def _frame_in_order(self, tables: list[pa.Table]) -> pd.DataFrame | None:
        """The frame of tables that are in order; None if its types are not those that were foreseen."""
        frame = from_pyarrow_table_dispatch(self._foreseen, arrow.concat_tables(tables), self_destruct=True)
        for column, dtype in self._foreseen.dtypes.items():
            actual = frame[column].dtype
            if actual != dtype and not (
                isinstance(actual, pd.CategoricalDtype) and isinstance(dtype, pd.CategoricalDtype)
            ):
                return None
        return frame


def _can_cut(data: Any, numbers: Any) -> bool:
    """Whether it is a frame of pandas' own, and its rows are numbered by plain integers."""
    return (
        type(data) is pd.DataFrame
        and isinstance(numbers, pd.Series)
        and isinstance(numbers.dtype, np.dtype)
        and numbers.dtype.kind in "iu"
    )


def chunk_of(partition: int, table: pa.Table) -> Chunk:
    """The chunk that is this table, as a stream."""
    counter = pa.MockOutputStream()
    write_stream(counter, table)

    def write(room: memoryview) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(room)) as sink:
            write_stream(sink, table)

    return Chunk((partition,), counter.size(), write)


def write_stream(sink: pa.NativeFile, table: pa.Table) -> None:
    """What `arrow.deserialize_table` reads."""
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def mark(table: pa.Table, source: int) -> pa.Table:
    """With the column by which Dask sorts."""
    return table.append_column(
        arrow._INPUT_PARTITION_ID_COLUMN, pa.array(np.full(len(table), source, np.uint32))
    )


@functools.lru_cache(maxsize=64)
def _made_by_numpy(description: bytes | None) -> frozenset[str]:
    """The columns that pandas makes into arrays of NumPy's, copied if they come in several pieces. All others it keeps.

    ``description`` is what pandas has said about the table.
    """
    columns = [] if description is None else json.loads(description)["columns"]
    return frozenset(column["field_name"] for column in columns if _NUMPY_TYPE.match(column["numpy_type"]))


def own_columns(table: pa.Table, *, all_of_them: bool) -> pa.Table:
    """The table, with copies of those columns whose memory pandas would keep."""
    plain = _made_by_numpy((table.schema.metadata or {}).get(b"pandas"))
    kept = [
        number
        for number, field in enumerate(table.schema)
        if all_of_them or field.name not in plain or not pa.types.is_primitive(field.type)
    ]
    if not kept:
        return table
    sink = pa.BufferOutputStream()
    write_stream(sink, table.select(kept))
    copies = arrow.deserialize_table(sink.getvalue())
    for number, copy in zip(kept, copies.columns, strict=True):
        table = table.set_column(number, table.schema.field(number), copy)
    return table
