"""Books: what a machine must not forget when its process is killed, as rows whose changes can be asked for.

Theory of operation. Everything that is to outlive the daemon is a `Row` in a `Book`, which is used like a dict. Each
book notes which keys were put, removed, or had a field of their row assigned. After each input, whoever runs the
machine takes the changes and writes them down *before* it carries out the outputs of that input: what the world has
been told is then always written, and that write is the commit point. A machine that is restored is made anew, gets the
rows, and derives the rest from them.

State that shall survive is added like this::

    class Standby(Row):
        id: int
        victim: str
        peer: PeerId | None = None  # a connection of this run of the daemon
        transient = ("peer",)

    standbys = state.books.open("standbys", Standby, int)  # where a dict would have been made
    standbys.put(7, Standby(7, "replica-1"))
    standbys[7].victim = "replica-2"  # noted by itself
    standbys.remove(7)

Three rules. A row is plain data: numbers, bytes, strings, enums, tuples, other structs, ids of other rows, never
another row. What a field holds is replaced, never changed in place: nobody would note that. And what makes no sense
in another run of the daemon (a connection, an open table) is named in ``transient``, has a default, and is set again
by those who restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import msgspec


class Row(msgspec.Struct, dict=True):
    """Base of what is written into a book."""

    transient: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        note = self.__dict__.get("note")
        if note is not None and name not in self.transient:
            note()

    def durable(self) -> dict[str, Any]:
        """The fields that are written down, by name."""
        fields = msgspec.structs.asdict(self)
        for name in self.transient:
            del fields[name]
        return fields


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A row as it is now, or None if it has been removed. ``key`` and ``row`` are plain data."""

    book: str
    key: Any
    row: Any


Noted = dict[tuple[str, Any], None]  # the rows that have changed, by book and key: a dict, for its order

Key = TypeVar("Key")
R = TypeVar("R", bound=Row)


class Book(Generic[Key, R]):
    """A dict of rows that notes its changes. Iterates over the rows, and may be changed meanwhile."""

    def __init__(self, name: str, row_type: type[R], key_type: Any, changed: Noted) -> None:
        self.name = name
        self._row_type = row_type
        self._key_type = key_type
        self._rows: dict[Key, R] = {}
        self._changed = changed

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __getitem__(self, key: Key) -> R:
        return self._rows[key]

    def get(self, key: Key) -> R | None:
        return self._rows.get(key)

    def items(self) -> list[tuple[Key, R]]:
        return list(self._rows.items())

    def put(self, key: Key, row: R) -> R:
        self._enter(key, row)
        self._note(key)
        return row

    def remove(self, key: Key) -> R:
        """Takes the row out; returns it. Raises KeyError."""
        row = self._rows.pop(key)
        del row.__dict__["note"]
        self._note(key)
        return row

    def change(self, key: Key) -> Change:
        """That row as it is now."""
        row = self._rows.get(key)
        return Change(self.name, key, None if row is None else row.durable())

    def everything(self) -> list[Change]:
        """All rows, as if each had just been put."""
        return [self.change(key) for key in self._rows]

    def apply(self, change: Change) -> None:
        """Carries out a change that was written down: plain data, of which the book makes its own types again."""
        key: Key = msgspec.convert(change.key, self._key_type)
        if change.row is not None:
            self._enter(key, msgspec.convert(change.row, self._row_type))
        elif key in self._rows:
            del self._rows[key]

    def _enter(self, key: Key, row: R) -> None:
        self._rows[key] = row
        row.__dict__["note"] = partial(self._note, key)

    def _note(self, key: Key) -> None:
        self._changed[self.name, key] = None


class Counter(Row):
    """Numbers that are given out once, by any run of the daemon."""

    last: int = 0

    def next(self) -> int:
        self.last += 1
        return self.last

    def pass_by(self, number: int) -> None:
        """Never gives this one out (again)."""
        self.last = max(self.last, number)


class Books:
    """All books of a machine, by name."""

    def __init__(self) -> None:
        self._books: dict[str, Book[Any, Any]] = {}
        self._changed: Noted = {}
        self._counters = self.open("counters", Counter, str)

    def open(self, name: str, row_type: type[R], key_type: Callable[..., Key]) -> Book[Key, R]:
        """A new book. Keys are ``int``, ``str`` or ``bytes``."""
        assert name not in self._books, name
        book: Book[Key, R] = Book(name, row_type, key_type, self._changed)
        self._books[name] = book
        return book

    def counter(self, name: str) -> Counter:
        """To be asked for each time it is used: a restored machine has another."""
        found = self._counters.get(name)
        return found if found is not None else self._counters.put(name, Counter())

    def take_changes(self) -> list[Change]:
        """What has changed since this was last called: each row once, as it is now."""
        changes = [self._books[name].change(key) for name, key in self._changed]
        self._changed.clear()
        return changes

    def everything(self) -> list[Change]:
        return [change for book in self._books.values() for change in book.everything()]

    def apply(self, changes: Iterable[Change]) -> None:
        """Enters what was written down by a run before. Raises KeyError for a book that this version does not have."""
        for change in changes:
            self._books[change.book].apply(change)
