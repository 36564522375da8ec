"""A ledger in rack memory: what a replica has promised survives the process that promised it.

The words are fields of a `Struct`, the mappings `Map`s, all in one heap with the application's state: so one
transaction of that heap covers everything that a batch of inputs changes. The process works with a copy of the words,
and writes those that have changed when the transaction ends: most change several times in a batch, or not at all.

Whoever opens the heap after its owner died *is* the replica; all that has to be done is to begin another life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from msgspec import msgpack

from bequest.objects.heap import Heap
from bequest.objects.map import Map
from bequest.objects.struct import Struct
from bequest.paxos.ledger import Heard, Installing, Session
from bequest.paxos.messages import NO_BALLOT, Ballot, Membership, ReplicaId, Slot, Vote

V = TypeVar("V")

_encode = msgpack.Encoder().encode


class _Words(Struct):
    """As they are kept. Ballots and what has a structure are packed."""

    replica: int
    life: int
    clock: str
    promised: bytes
    led: bytes
    granted_until: float
    chosen: int
    applied: int
    first_kept: int = 1
    last: int
    kept_bytes: int
    membership: bytes
    stamp_ms: int
    executed: int
    sessions_opened: int
    sessions_hand: int
    installing: bytes
    touches: int


_PACKED: dict[str, Callable[[bytes], Any]] = {
    "promised": msgpack.Decoder(Ballot).decode,
    "led": msgpack.Decoder(Ballot).decode,
    "membership": msgpack.Decoder(Membership).decode,
    "installing": msgpack.Decoder(Installing | None).decode,
}
_NAMES = [field.name for field in _Words.fields if field.name != "touches"]


class _Packed(MutableMapping[int, V], Generic[V]):
    """A Map whose values are of one msgspec type. What is put is of that type already, so it is not checked again."""

    def __init__(self, heap: Heap, name: str, kind: Any) -> None:
        self._map = Map(heap, name, key=int, value=bytes)
        self._decode: Callable[[bytes], V] = msgpack.Decoder(kind).decode

    def __getitem__(self, key: int) -> V:
        return self._decode(self._map[key])

    def __setitem__(self, key: int, value: V) -> None:
        self._map[key] = _encode(value)

    def __delitem__(self, key: int) -> None:
        del self._map[key]

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __iter__(self) -> Iterator[int]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def clear(self) -> None:
        """Of MutableMapping, but not one by one."""
        self._map.clear()


class HeapLedger:
    """A `Ledger` in a heap: found there, or made for `replica` with this membership."""

    replica: ReplicaId
    life: int
    clock: str
    promised: Ballot
    led: Ballot
    granted_until: float
    chosen: Slot
    applied: Slot
    first_kept: Slot
    last: Slot
    kept_bytes: int
    membership: Membership
    stamp_ms: int
    executed: int
    sessions_opened: int
    sessions_hand: int
    installing: Installing | None

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        with heap.transaction():
            self._kept = _Words(heap, "ledger")
            self.votes: MutableMapping[Slot, Vote] = _Packed(heap, "votes", Vote)
            self.heard: MutableMapping[ReplicaId, Heard] = _Packed(heap, "heard", Heard)
            self.sessions: MutableMapping[int, Session] = _Packed(heap, "sessions", Session)
        self._words: dict[str, Any] = {}
        self._load()

    @classmethod
    def found(cls, heap: Heap, replica: ReplicaId, membership: Membership) -> HeapLedger:
        """That of a replica which has never said anything."""
        with heap.transaction():
            words = _Words(heap, "ledger")
            words.replica = replica
            words.promised = words.led = _encode(NO_BALLOT)
            words.membership = _encode(membership)
            words.installing = _encode(None)
        return cls(heap)

    @staticmethod
    def is_in(heap: Heap) -> bool:
        """Whether there is one in this heap. If not, its owner died before it was any replica."""
        return "ledger" in heap

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that changes within is kept, or nothing. A change in a word is seen by comparing it with before."""
        try:
            with self._heap.transaction():
                yield
                self._keep()
        except BaseException:
            self.__dict__.update(self._words)
            raise
        self._words = {name: getattr(self, name) for name in _NAMES}

    def touch(self) -> None:
        """Stores something: raises MemoryRevoked if this memory is somebody else's by now."""
        self._kept.touches += 1

    def _keep(self) -> None:
        before, mine = self._words, self.__dict__
        for name in _NAMES:
            value = mine[name]
            if value is not before[name] and value != before[name]:
                setattr(self._kept, name, _encode(value) if name in _PACKED else value)

    def _load(self) -> None:
        for name in _NAMES:
            value = getattr(self._kept, name)
            self._words[name] = _PACKED[name](value) if name in _PACKED else value
        self.__dict__.update(self._words)


@cache
def clock_of_host() -> str:
    """What CLOCK_MONOTONIC counts from: this host, and when it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
