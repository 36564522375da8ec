"""A run of an array's rechunk in the rack (see `shuffle`).

An input chunk is cut along all axes into pieces, each of which belongs to one output chunk. Those for one receiver are
copied, each at once, into a region that is granted to it; Dask's copies each, then serialises and sends them. An output
is put together from the pieces where they lie, and they are freed.

Arrays of other kinds than NumPy's own, and of Python objects or records, go Dask's way.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import product
from typing import Any

import msgspec
import numpy as np
from distributed.metrics import context_meter
from distributed.shuffle._exceptions import DataUnavailable
from distributed.shuffle._rechunk import ArrayRechunkRun, convert_chunk

from bequest.dask.shards import Chunk, Place, Shard
from bequest.dask.shuffle import RackRun

Array = np.ndarray[Any, Any]


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """What is said about a chunk of bytes: the array that it is, and where in the output that belongs."""

    index: Place
    dtype: str
    shape: tuple[int, ...]


class ArrayRun(RackRun, ArrayRechunkRun):
    """A worker's part in the rechunking of an array."""

    def _shard_partition(self, data: Array, partition_id: Place) -> dict[str, Any]:
        """Grants what can be granted; returns what is to go Dask's way, by receiver."""
        if type(data) is not np.ndarray or data.dtype.kind not in "biufcmMSU":
            shards: dict[str, Any] = super()._shard_partition(data, partition_id)
            return shards
        pieces = defaultdict(list)
        for split in product(*(axis[i] for axis, i in zip(self.split_axes, partition_id, strict=True))):
            output, index, part = zip(*split, strict=True)
            pieces[self.worker_for[output]].append((output, index, data[part]))
        given = self.give(
            partition_id, {address: [chunk_of(*piece) for piece in its] for address, its in pieces.items()}
        )
        shards = {
            address: (partition_id, [(output, (index, piece.copy())) for output, index, piece in its])
            for address, its in pieces.items()
            if address not in given
        }
        context_meter.digest_metric("p2p-shards", len(shards), "count")
        return shards

    def _get_output_partition(self, partition_id: Place, key: Any, **kwargs: Any) -> Array:
        """An output of what has come, both ways."""
        shards = self.shards_for(partition_id)
        came: list[list[tuple[Place, Array]]] = []
        with contextlib.suppress(DataUnavailable):
            came = self._read_from_disk(partition_id)
        with self.losing_nothing(), contextlib.ExitStack() as reading:
            ours = [_piece(reading, shard, partition_id) for shard in shards]
            output: Array = convert_chunk([*came, ours])
            ours.clear()  # nothing may look at the regions when they are freed
        return output


def chunk_of(output: Place, index: Place, piece: Array) -> Chunk:
    """The chunk of a shard that is this piece of an array."""

    def write(room: memoryview) -> None:
        np.frombuffer(room, piece.dtype).reshape(piece.shape)[...] = piece

    about = msgspec.msgpack.encode(Piece(index, piece.dtype.str, piece.shape))
    return Chunk(output, piece.nbytes, write, about)


def _piece(reading: contextlib.ExitStack, shard: Shard, output: Place) -> tuple[Place, Array]:
    about, view = reading.enter_context(shard.read(output))
    piece = msgspec.msgpack.decode(about, type=Piece)
    return piece.index, np.frombuffer(view, np.dtype(piece.dtype)).reshape(piece.shape)
