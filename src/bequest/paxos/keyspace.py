"""The keyspace: what every command reads and changes, in one map of bytes to bytes.

An entry's first byte says what it is: a key that clients see (``=``), a lock, a session, a group, or the store's own
(``#``). Each but the last begins with a head: the version, which is another one after each change (WATCH compares it);
when it expires, 0 for never; and the bucket of the calendar that will look at it, 0 for none.

**Time** is what the log says it is. Who applies a command takes its stamp for the time, and so all replicas see the
same key expire before the same command. What has expired is not there, whether it has been removed yet or not.

**The calendar** removes it. Time is cut into buckets of 128 ms; an entry that expires is noted in the bucket of that
time, and when a command is applied, the buckets before it are gone through, some at a time. An entry that was given
more time meanwhile is then noted once more; one that is to expire sooner is noted at once, and its head tells which of
its notes counts. So each change costs a note at most, a note is looked at once, and nothing is ever searched.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bequest.paxos.replies import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, LOCK, SESSION, GROUP, _OWN = b"=", b"L", b"S", b"G", b"#"
_BOOKS, _COUNT, _NOTE = b"#", b"#c", b"#n"

_HEAD = struct.Struct("<QQQ")
_HEAD_BYTES = _HEAD.size
_BOOK_FIELDS = struct.Struct("<QQQQ")
_BUCKET_SHIFT = 7  # milliseconds to buckets
_LOOKS_MAX = 1024  # buckets and notes that one command goes through


class Entries(Protocol):
    """What the keyspace asks of a `bequest.objects.Map`."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: bytes) -> bytes: ...
    def __setitem__(self, key: bytes, value: bytes) -> None: ...
    def __delitem__(self, key: bytes) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def scan(self, cursor: int = 0, count: int = 100) -> tuple[int, list[bytes]]:
        """Some keys, and the cursor to go on from."""

    def clear(self) -> None:
        """Removes all."""


class Entry(NamedTuple):
    """What is there under a name: its ``version``, ``expires_ms`` (0: never), ``bucket`` of the calendar, ``data``."""

    version: int
    expires_ms: int
    bucket: int
    data: bytes


class Keyspace:
    """The entries at a time. `begin` and `end` enclose each change."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.now_ms = 0
        self.version = 0
        self.touched_bytes = 0  # of values, read and written: what is done for a client costs about that
        self.is_listened_to = False  # whether anybody wants to know of changes
        self.events: list[tuple[bytes, bytes]] = []  # channel, message
        self.before_change: list[Callable[[bytes], None]] = []  # the snapshots under way
        self.on_expiry: dict[bytes, Callable[[bytes, Entry], None]] = {KEY: self._expire_key}
        self._swept = self._notes = self._own = self._numbers = 0
        self._books = b""

    # --- a change -------------------------------------------------------------------------------------------------

    def begin(self, index: int, stamp_ms: int) -> None:
        """A command is going to be applied; what is due by its time is removed first."""
        self.now_ms = stamp_ms
        self.version = index << 16
        self._books = self.entries.get(_BOOKS) or bytes(_BOOK_FIELDS.size)
        self._swept, self._notes, self._own, self._numbers = _BOOK_FIELDS.unpack(self._books)
        self._sweep(stamp_ms >> _BUCKET_SHIFT)

    def end(self) -> None:
        """It has been applied."""
        books = _BOOK_FIELDS.pack(self._swept, self._notes, self._own, self._numbers)
        if books != self._books:
            self.set_raw(_BOOKS, books)

    def next_number(self) -> int:
        """1, 2, 3…: never the same again. Locks' fencing tokens and sessions' ids are of these."""
        self._numbers += 1
        return self._numbers

    # --- entries --------------------------------------------------------------------------------------------------

    def find(self, name: bytes) -> Entry | None:
        """What is there under this name, with its kind in front, unless it has expired."""
        raw = self.entries.get(name)
        if raw is None:
            return None
        self.touched_bytes += len(raw)
        version, expires_ms, bucket = _HEAD.unpack_from(raw)
        if expires_ms and expires_ms <= self.now_ms:
            return None
        return Entry(version, expires_ms, bucket, raw[_HEAD_BYTES:])

    def value(self, key: bytes) -> bytes | None:
        """A client's key's value."""
        raw = self.entries.get(KEY + key)
        if raw is None:
            return None
        self.touched_bytes += len(raw)
        expires_ms = _HEAD.unpack_from(raw)[1]
        return None if expires_ms and expires_ms <= self.now_ms else raw[_HEAD_BYTES:]

    def put(self, name: bytes, data: bytes, expires_ms: int = 0, bucket: int = 0) -> None:
        """``bucket`` is that of the entry that was there, if that is known."""
        if expires_ms:
            wanted = expires_ms >> _BUCKET_SHIFT
            if not bucket or bucket > wanted:
                bucket = wanted
                self._note(name, bucket)
        if self.before_change:
            self._tell_snapshots(name)
        self.touched_bytes += len(data)
        self.entries[name] = _HEAD.pack(self.version, expires_ms, bucket) + data

    def put_key(self, key: bytes, data: bytes, event: bytes, expires_ms: int = 0, bucket: int = 0) -> None:
        """A client's key, and tells who listens."""
        self.put(KEY + key, data, expires_ms, bucket)
        if self.is_listened_to:
            self.tell(event, key)

    def delete(self, name: bytes) -> bool:
        """Whether it was there."""
        was_there = self.find(name) is not None
        if was_there:
            self.remove_raw(name)
        return was_there

    def delete_key(self, key: bytes, event: bytes = b"del") -> bool:
        """Whether it was there."""
        was_there = self.delete(KEY + key)
        if was_there and self.is_listened_to:
            self.tell(event, key)
        return was_there

    def tell(self, event: bytes, key: bytes) -> None:
        """As Redis's keyspace notifications do."""
        self.events.append((b"__keyspace@0__:" + key, event))
        self.events.append((b"__keyevent@0__:" + event, key))

    def announce(self, channel: bytes, message: bytes) -> None:
        """Whoever subscribes to the channel hears of it."""
        if self.is_listened_to:
            self.events.append((channel, message))

    def count_keys(self) -> int:
        """Those of clients, with those that have expired and not been removed yet."""
        own = 0
        books = self.entries.get(_BOOKS)
        if books is not None:
            own = _BOOK_FIELDS.unpack(books)[2] + 1
        return len(self.entries) - own

    def count_own(self, more: int) -> None:
        """So many more entries than before are not clients' keys."""
        self._own += more

    # --- raw --------------------------------------------------------------------------------------------------------

    def set_raw(self, name: bytes, raw: bytes) -> None:
        """Every change comes through here, or through `remove_raw` or `put`: snapshots must know."""
        if self.before_change:
            self._tell_snapshots(name)
        self.entries[name] = raw

    def remove_raw(self, name: bytes) -> None:
        """See `set_raw`."""
        if self.before_change:
            self._tell_snapshots(name)
        del self.entries[name]

    def _tell_snapshots(self, name: bytes) -> None:
        for before_change in self.before_change:
            before_change(name)

    # --- the calendar -----------------------------------------------------------------------------------------------

    def is_due(self, now_ms: int) -> bool:
        """Whether there may be something to remove: a command, be it empty, would do it."""
        books = self.entries.get(_BOOKS)
        if books is None:
            return False
        swept, notes, _, _ = _BOOK_FIELDS.unpack(books)
        if not notes:
            return False
        buckets = range(swept, now_ms >> _BUCKET_SHIFT)
        return len(buckets) > _LOOKS_MAX or any(
            _COUNT + bucket.to_bytes(8, "big") in self.entries for bucket in buckets
        )

    def _note(self, name: bytes, bucket: int) -> None:
        place = bucket.to_bytes(8, "big")
        counted = self.entries.get(_COUNT + place)
        count = int.from_bytes(counted, "big") if counted else 0
        self.set_raw(_NOTE + place + count.to_bytes(4, "big"), name)
        self.set_raw(_COUNT + place, (count + 1).to_bytes(4, "big"))
        self._notes += 1
        self._own += 1 if count else 2

    def _sweep(self, current: int) -> None:
        if not self._notes:
            self._swept = current
            return
        looks = 0
        while self._swept < current and looks < _LOOKS_MAX:
            looks += 1
            place = self._swept.to_bytes(8, "big")
            counted = self.entries.get(_COUNT + place)
            if counted is not None:
                looks += self._go_through(place, int.from_bytes(counted, "big"), _LOOKS_MAX - looks)
                if _COUNT + place in self.entries:
                    return
            self._swept += 1

    def _go_through(self, place: bytes, count: int, at_most: int) -> int:
        """The notes of one bucket, from the last; how many were looked at."""
        left = max(0, count - at_most)
        for number in range(count - 1, left - 1, -1):
            note = _NOTE + place + number.to_bytes(4, "big")
            name = self.entries[note]
            self.remove_raw(note)
            self._look_at(name, int.from_bytes(place, "big"))
        self._notes -= count - left
        self._own -= count - left
        if left:
            self.set_raw(_COUNT + place, left.to_bytes(4, "big"))
        else:
            self.remove_raw(_COUNT + place)
            self._own -= 1
        return count - left

    def _look_at(self, name: bytes, bucket: int) -> None:
        raw = self.entries.get(name)
        if raw is None:
            return
        version, expires_ms, noted = _HEAD.unpack_from(raw)
        if noted != bucket:
            return  # another note counts
        if expires_ms and expires_ms <= self.now_ms:
            self.remove_raw(name)
            self.on_expiry[name[:1]](name[1:], Entry(version, expires_ms, noted, raw[_HEAD_BYTES:]))
            return
        later = expires_ms >> _BUCKET_SHIFT
        if expires_ms:
            self._note(name, later)
        self.set_raw(name, _HEAD.pack(version, expires_ms, later) + raw[_HEAD_BYTES:])

    def _expire_key(self, key: bytes, _: Entry) -> None:
        if self.is_listened_to:
            self.tell(b"expired", key)


def to_int(data: bytes) -> int:
    """A whole number of 64 bits, written as Redis writes it. Raises Failure."""
    if len(data) <= 20:
        try:
            number = int(data)
        except ValueError:
            number = None
        if number is not None and b"%d" % number == data and -(2**63) <= number < 2**63:
            return number
    raise Failure("ERR value is not an integer or out of range")
