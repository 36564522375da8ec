"""Places to keep a dictionary in, each behind the same two calls, `put` and `get`.

Every put is a transaction of its own. None of them waits for a disk (LMDB with `sync=False`, SQLite with
`synchronous=OFF`): like a heap in rack memory, they survive the process and not the machine. The Manager's dictionary
is a server process's; it survives the one that puts, and has no transactions.
"""

from __future__ import annotations

import multiprocessing
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .measure import GIB

COMMIT_EVERY = 50_000
"""Entries in one transaction while a store is filled; the puts that are timed have one each."""

Pair = tuple[bytes, bytes]
Get = Callable[[bytes], bytes | None]


class Store(ABC):
    """A dictionary from bytes to bytes."""

    title: str
    package = ""
    """What has to be installed, beyond Python."""

    put: Callable[[bytes, bytes], Any]
    get: Get

    @abstractmethod
    def __init__(self, directory: Path, me: Any) -> None:
        """A new one, in this directory or in the memory of this process of a rack."""

    @contextmanager
    def reading(self) -> Iterator[Get]:
        """What to get with, while nothing is put."""
        yield self.get

    @abstractmethod
    def fill(self, pairs: list[Pair]) -> None:
        """Puts all of these in as fast as it can."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of it."""


class BequestMap(Store):
    """Map in a heap in rack memory."""

    title = "Bequest Map"

    def __init__(self, directory: Path, me: Any) -> None:
        del directory
        from bequest.objects import Heap, Map

        region = me.alloc(GIB)
        self._heap = Heap.create(region)
        self._map = Map(self._heap, "bench")
        self._region = region
        self.put, self.get = self._map.__setitem__, self._map.__getitem__

    def fill(self, pairs: list[Pair]) -> None:
        for key, value in pairs:
            self.put(key, value)

    def close(self) -> None:
        self._heap.close()
        self._region.free()


class Lmdb(Store):
    """LMDB: a B+ tree in a mapped file, one writer."""

    title = "LMDB, sync=False"
    package = "lmdb"

    def __init__(self, directory: Path, me: Any) -> None:
        del me
        self._lmdb = import_module("lmdb")
        self._environment = self._lmdb.open(
            str(directory / type(self).__name__), map_size=4 * GIB, sync=False, metasync=False
        )
        self.put, self.get = self._put, self._get
        self._begin = self._environment.begin

    def _put(self, key: bytes, value: bytes) -> None:
        with self._begin(write=True) as transaction:
            transaction.put(key, value)

    def _get(self, key: bytes) -> bytes | None:
        with self._begin() as transaction:
            found: bytes | None = transaction.get(key)
            return found

    def fill(self, pairs: list[Pair]) -> None:
        with self._begin(write=True) as transaction:
            for key, value in pairs:
                transaction.put(key, value)

    def close(self) -> None:
        self._environment.close()


class LmdbOneReader(Lmdb):
    """The same, read within one transaction, which sees nothing that is put after it has begun."""

    title = "LMDB, sync=False, many gets in a transaction"

    @contextmanager
    def reading(self) -> Iterator[Get]:
        with self._begin(buffers=True) as transaction:
            yield transaction.get


class Sqlite(Store):
    """SQLite: a table with a primary key, a write-ahead log."""

    title = "SQLite, WAL, synchronous=OFF"

    def __init__(self, directory: Path, me: Any) -> None:
        del me
        self._connection = sqlite3.connect(directory / "bench.sqlite", isolation_level=None)
        self._execute = self._connection.execute
        self._execute("PRAGMA journal_mode=WAL")
        self._execute("PRAGMA synchronous=OFF")
        self._execute("CREATE TABLE pairs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self.put, self.get = self._put, self._get

    def _put(self, key: bytes, value: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (key, value))

    def _get(self, key: bytes) -> bytes | None:
        row = self._execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def fill(self, pairs: list[Pair]) -> None:
        for start in range(0, len(pairs), COMMIT_EVERY):
            self._execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO pairs VALUES (?, ?)", pairs[start : start + COMMIT_EVERY]
            )
            self._execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


class ManagerDict(Store):
    """multiprocessing's dictionary in a server process."""

    title = "multiprocessing.Manager().dict"

    def __init__(self, directory: Path, me: Any) -> None:
        del directory, me
        self._manager = multiprocessing.Manager()
        proxy = self._manager.dict()
        self._update = proxy.update
        self.put, self.get = proxy.__setitem__, proxy.get

    def fill(self, pairs: list[Pair]) -> None:
        for start in range(0, len(pairs), COMMIT_EVERY):
            self._update(pairs[start : start + COMMIT_EVERY])

    def close(self) -> None:
        self._manager.shutdown()


STORES: tuple[type[Store], ...] = (BequestMap, Lmdb, LmdbOneReader, Sqlite, ManagerDict)
