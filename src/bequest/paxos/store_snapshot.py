"""A snapshot of a store, taken while it goes on: the entries as they were when it began.

Two sources make it up. The map's scan finds every key that stays; and before a key is changed for the first time since
the beginning, the entry that it had goes into the stream. What has gone that way, and what was not there at the
beginning, the scan passes over. So the stream holds each entry of that instant, and none of a later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.paxos.replies import pack

if TYPE_CHECKING:
    from bequest.paxos.keyspace import Keyspace

_KEYS_AT_A_TIME = 256


class StoreSnapshot:
    """Take it piece by piece with `next`, or `close` it: until one of these ends, changes pay for it."""

    def __init__(self, keys: Keyspace) -> None:
        self._keys = keys
        self._cursor: int | None = 0  # None: the scan is through
        self._found: list[bytes] = []  # by the scan, not taken yet
        self._changed: set[bytes] = set()
        self._saved: list[bytes] = []  # names and entries, by turns, from before their change
        keys.before_change.append(self._before_change)

    def _before_change(self, name: bytes) -> None:
        if name not in self._changed:
            self._changed.add(name)
            raw = self._keys.entries.get(name)
            if raw is not None:
                self._saved += (name, raw)

    def next(self, size: int) -> bytes | None:
        """The next piece, of about this size in bytes; None if that was all."""
        part, self._saved = self._saved, []
        nbytes = sum(map(len, part))
        while nbytes < size:
            if not self._found:
                if self._cursor is None:
                    break
                cursor, self._found = self._keys.entries.scan(self._cursor, _KEYS_AT_A_TIME)
                self._cursor = cursor or None
                continue
            name = self._found.pop()
            if name not in self._changed:
                raw = self._keys.entries[name]
                part += (name, raw)
                nbytes += len(name) + len(raw)
        if part:
            return pack(part)
        self.close()
        return None

    def close(self) -> None:
        """It is not wanted any more."""
        if self._before_change in self._keys.before_change:
            self._keys.before_change.remove(self._before_change)
