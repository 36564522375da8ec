"""What an actor must not forget, in its heap, beside its state.

One transaction for each event changes all of it together: the state, which message of the stream is next, the reply
that was given, and what is to be sent to others. That transaction's commit is the event's one commit point: before it
nothing has happened, after it everything has that does not need another process. The rest, receipts, replies, grants
and posts, is done afterwards and can be done again from what is written here.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import msgspec

from bequest.actors import mail
from bequest.actors.mail import Address, Identity
from bequest.limits import DEAD_LETTERS_KEPT
from bequest.objects.log import Log
from bequest.objects.map import Map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bequest.objects.heap import Heap

_BEARER = struct.Struct("<II")
_STREAM = struct.Struct("<QII")  # the next number; and where answers go
_REPLY_KEY = struct.Struct(">Q")
_DIGEST = struct.Struct("<I")
_IDENTITY = struct.Struct("<QQ")
_SWEEP_AFTER = 1000  # streams that were new since it was looked last which clients have died
_OUTBOX = "actor/outbox/"


class DeadLetter(NamedTuple):
    """A message that its handler has failed over, kept for somebody to look at.

    ``method`` and ``arguments`` are the message, ``error`` the type of the exception, ``message`` and ``traceback`` its
    text, ``at`` the time, in seconds since 1970.
    """

    method: str
    arguments: Any
    error: str
    message: str
    traceback: str
    at: float


class Bearer(NamedTuple):
    """A process that is the actor, or has been."""

    name: str
    id: int
    incarnation: int


class LogRecords:
    """The records of a stream in a heap: their indices are the messages' numbers."""

    def __init__(self, heap: Heap, name: str) -> None:
        self._log = Log(heap, name)
        self.append = self._log.append
        self.read = self._log._read

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def end(self) -> int:
        return self._log.end

    def drop_before(self, index: int, /) -> None:
        self._log.truncate(index)


class Incoming:
    """A stream as its receiver has it: the number it ``expected`` next, and where its ``sender`` is."""

    __slots__ = ("expected", "replies", "sender")

    def __init__(self, expected: int, sender: Address) -> None:
        self.expected = expected
        self.sender = sender
        self.replies: deque[int] = deque()  # numbers of calls whose replies are kept


class Books:
    """Of the actor whose heap this is."""

    def __init__(self, heap: Heap) -> None:
        self.heap = heap
        self._streams = Map(heap, "actor/streams", key=bytes)
        self._replies = Map(heap, "actor/replies", key=bytes)
        self._kept = Map(heap, "actor/regions", key=str)
        self._dead = Log(heap, "actor/dead")
        about = Map(heap, "actor/about")
        self.name = about.setdefault(
            b"name", secrets.token_bytes(16)
        )  # its own, whatever its heir's process is
        self._bearers = Map(heap, "actor/bearers", key=bytes, value=str)
        self._incoming: dict[bytes, Incoming] = {}
        self._swept_at = 0
        for stream, entry in self._streams.items():
            expected, *sender = _STREAM.unpack(entry)
            self._incoming[stream] = Incoming(expected, Address(*sender))
        for key in sorted(self._replies.keys()):
            number = _REPLY_KEY.unpack_from(key, mail.STREAM_BYTES)[0]
            self._incoming[key[: mail.STREAM_BYTES]].replies.append(number)

    # --- processes that have been this actor ----------------------------------------------------------------

    def bearers(self) -> list[Bearer]:
        """Those whose inboxes may still have something for it: the present one, and others if heirs died early."""
        return [Bearer(name, *_BEARER.unpack(life)) for life, name in self._bearers.items()]

    def bear(self, bearer: Bearer) -> None:
        """This one has everything that was left by those before it."""
        with self.heap.transaction():
            self._bearers.clear()
            self._bearers[_BEARER.pack(bearer.id, bearer.incarnation)] = bearer.name

    # --- streams that come ----------------------------------------------------------------------------------

    def incoming(self, stream: bytes) -> Incoming | None:
        """What is known of a stream."""
        return self._incoming.get(stream)

    def begin(self, post: mail.Mail) -> Incoming:
        """A stream that is not known: what came before its oldest message has been handled, in an earlier life."""
        incoming = self._incoming[post.stream] = Incoming(post.oldest, post.sender)
        return incoming

    def advance(self, stream: bytes, incoming: Incoming) -> None:
        """Writes down that one more message has been handled; within its transaction. `confirm` when that counts."""
        self._streams[stream] = _STREAM.pack(incoming.expected + 1, *incoming.sender)

    def reply(self, stream: bytes, number: int, digest: int, record: bytes) -> None:
        """Keeps a reply, within the event's transaction."""
        self._replies[stream + _REPLY_KEY.pack(number)] = _DIGEST.pack(digest) + record

    def kept_reply(self, stream: bytes, number: int) -> tuple[int, bytes] | None:
        """The digest of the call, and the reply to it."""
        entry = self._replies.get(stream + _REPLY_KEY.pack(number))
        return None if entry is None else (_DIGEST.unpack_from(entry)[0], entry[_DIGEST.size :])

    def kept_replies(self) -> Iterator[bytes]:
        """All that have not been asked to be forgotten."""
        return (entry[_DIGEST.size :] for entry in self._replies.values())

    def forget_replies(self, stream: bytes, incoming: Incoming, before: int) -> None:
        """Their sender has them."""
        with self.heap.transaction():
            while incoming.replies and incoming.replies[0] < before:
                self._replies.pop(stream + _REPLY_KEY.pack(incoming.replies.popleft()), None)

    def forget(self, stream: bytes) -> None:
        """The stream has ended."""
        incoming = self._incoming.pop(stream, None)
        if incoming is not None:
            with self.heap.transaction():
                for number in incoming.replies:
                    self._replies.pop(stream + _REPLY_KEY.pack(number), None)
                self._streams.pop(stream, None)

    def sweep(self, lives: Callable[[Address], bool]) -> None:
        """Forgets clients that have died, now and then: nobody sends their messages again."""
        if len(self._incoming) - self._swept_at < _SWEEP_AFTER:
            return
        for stream, incoming in list(self._incoming.items()):
            if stream.startswith(mail.CLIENT) and not lives(incoming.sender):
                self.forget(stream)
        self._swept_at = len(self._incoming)

    # --- streams that go ------------------------------------------------------------------------------------

    def destinations(self) -> list[str]:
        """The actors that have been sent messages."""
        return [root.name.removeprefix(_OUTBOX) for root in self.heap.roots if root.name.startswith(_OUTBOX)]

    def has_written_to(self, to: str) -> bool:
        """Whether there is an outbox for them."""
        return _OUTBOX + to in self.heap

    def outbox(self, to: str) -> LogRecords:
        """What they are to be sent, found or made."""
        return LogRecords(self.heap, _OUTBOX + to)

    # --- regions --------------------------------------------------------------------------------------------

    def keep(self, name: str, region: Identity) -> None:
        """Within an event's transaction, like all that follows."""
        self._kept[name] = _IDENTITY.pack(*region)

    def unkeep(self, name: str) -> None:
        """The region is not kept any more."""
        del self._kept[name]

    def kept(self, name: str) -> Identity | None:
        """Which region is kept under a name."""
        entry = self._kept.get(name)
        return None if entry is None else _IDENTITY.unpack(entry)

    def all_kept(self) -> dict[str, Identity]:
        """Every name, and its region."""
        return {name: _IDENTITY.unpack(entry) for name, entry in self._kept.items()}

    # --- messages that failed -------------------------------------------------------------------------------

    def bury(self, letter: DeadLetter) -> None:
        """Keeps the last ones."""
        self._dead.append(msgspec.msgpack.encode(letter))
        if len(self._dead) > DEAD_LETTERS_KEPT:
            self._dead.truncate(self._dead.end - DEAD_LETTERS_KEPT)

    def dead_letters(self) -> list[list[Any]]:
        """Oldest first."""
        return [msgspec.msgpack.decode(record, strict=False) for record in self._dead]


def dead_letter(message: mail.Message, error: BaseException, trace: str) -> DeadLetter:
    """Of a message that cannot be handled. Regions in it are gone; their place is told."""
    arguments = message[2] if len(message) == 3 else f"{len(message[3])} regions and more"
    return DeadLetter(message[1], arguments, type(error).__name__, str(error), trace, time.time())


def digest_of(record: bytes) -> int:
    """What tells a call from another one."""
    return crc32(record)
