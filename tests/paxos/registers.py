"""The application that is replicated in these tests: registers, and a counter of what was done to them.

A command is `name key argument…` in words; every write gives back what the register was before, so that a history says
much about what happened. Its state lies under a ledger's transactions.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bequest.paxos.ledger import Undo, UndoDict


class Registers:
    """Keys and values; `set`, `cas`, `append`, and the query `get`."""

    def __init__(self, undo: Undo) -> None:
        self.values: UndoDict[bytes, bytes] = UndoDict(undo)
        self.on_apply: Callable[[int, int, bytes, bytes], None] = lambda *_: None

    def apply(self, index: int, stamp_ms: int, command: bytes) -> bytes:
        verb, key, *arguments = command.split(b" ")
        before = self.values.get(key, b"")
        if verb == b"set":
            self.values[key] = arguments[0]
        elif verb == b"append":
            self.values[key] = before + b"," + arguments[0]
        elif verb == b"cas" and before == arguments[0]:
            self.values[key] = arguments[1]
        self.on_apply(index, stamp_ms, command, before)
        return before

    def query(self, now_ms: int, query: bytes) -> bytes:
        return self.values.get(query, b"")

    def begin_snapshot(self) -> RegistersSnapshot:
        return RegistersSnapshot(dict(self.values))

    def clear(self) -> None:
        self.values.clear()

    def install(self, part: bytes) -> None:
        self.values.update(msgspec.msgpack.decode(part, type=dict[bytes, bytes]))


class RegistersSnapshot:
    """A few keys at a time, whatever size was asked for: so there are several parts."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self.items = list(values.items())

    def next(self, size: int) -> bytes | None:
        if not self.items:
            return None
        some, self.items = dict(self.items[:3]), self.items[3:]
        return msgspec.msgpack.encode(some)

    def close(self) -> None:
        self.items = []
