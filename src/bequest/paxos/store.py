"""The store: the state machine that is replicated, a key-value and lock service on one map.

A command of the log is a batch of operations, those of many clients that came in one pass of a front, and its reply is
the list of theirs: the consensus has little to do for each. An operation is the words of a client's command, its name
in capitals. **A batch may get fewer replies than it has operations:** when much has been read and written, the rest is
left undone, on every replica alike, and whoever sent it sends the rest again. So no batch needs much memory, or time.

What clients are to hear of without having asked (messages of channels, changes of keys) is collected while a batch is
applied; whoever drives the replica takes it with `take_events` once that has been committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bequest.paxos import locks, scripts, strings
from bequest.paxos.commands import look_up
from bequest.paxos.keyspace import KEY, Entries, Keyspace, to_int
from bequest.paxos.replies import NOT_DONE, Failure, error, pack, unpack
from bequest.paxos.store_snapshot import StoreSnapshot
from bequest.paxos.strings import TOUCHED_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Words = list[Any]
_KEPT_REPLY_BYTES_MAX = 64 << 10
TRANSACTION_BYTES_MAX = 64 << 20  # of values, read and written


class Store:
    """An `Application` (ledger.py) whose whole state is in ``entries``."""

    def __init__(self, entries: Entries) -> None:
        self.keys = Keyspace(entries)
        locks.watch_over(self.keys)

    # --- the log ------------------------------------------------------------------------------------------------------

    def apply(self, index: int, stamp_ms: int, command: bytes) -> bytes:
        """Carries out a batch of operations."""
        self.keys.begin(index, stamp_ms)
        replies = self._carry_out(unpack(command), _HANDLERS)
        self.keys.end()
        return pack(replies)

    def query(self, now_ms: int, query: bytes) -> bytes:
        """Answers a batch of operations that change nothing."""
        self.keys.now_ms = now_ms
        return pack(self._carry_out(unpack(query), _READS))

    def _carry_out(self, operations: Iterable[Words], handlers: dict[bytes, Callable[..., Any]]) -> list[Any]:
        keys = self.keys
        replies: list[Any] = []
        keys.touched_bytes = 0
        for words in operations:
            keys.version += 1
            try:
                reply = handlers[words[0]](keys, words)
            except Failure as failure:
                reply = error(str(failure))
            replies.append(reply)
            if keys.touched_bytes > TOUCHED_BYTES_MAX:
                break
        return replies

    def take_events(self) -> list[tuple[bytes, bytes]]:
        """What has been published since the last time: channels and messages."""
        events = self.keys.events
        self.keys.events = []
        return events

    def listen(self, is_wanted: bool) -> None:
        """Whether anybody here wants events; else none are made."""
        self.keys.is_listened_to = is_wanted

    def is_due(self, now_ms: int) -> bool:
        """Whether something has expired that an empty batch would remove."""
        return self.keys.is_due(now_ms)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def begin_snapshot(self) -> StoreSnapshot:
        """The state as it is now, to be fetched while commands go on to be applied."""
        return StoreSnapshot(self.keys)

    def clear(self) -> None:
        """Forgets everything."""
        self.keys.entries.clear()

    def install(self, part: bytes) -> None:
        """Takes in a piece of a snapshot."""
        entries = unpack(part)
        for name, raw in zip(entries[::2], entries[1::2], strict=True):
            self.keys.entries[name] = raw


# --- operations that have others in them --------------------------------------------------------------------------


def _inner(keys: Keyspace, words: Words) -> Any:
    """A command within another."""
    spec = look_up(words)
    if spec.where == "here" or spec.name in {b"FENCED", b"ONCE"}:
        raise Failure(f"ERR {spec.name.decode()} cannot be within another command")
    return _HANDLERS[spec.name](keys, words)


def execute(keys: Keyspace, words: Words) -> Any:
    """EXEC: the keys that were watched and their versions, then the operations. All happen, or none."""
    for key, version in words[1]:
        entry = keys.find(KEY + key)
        if (0 if entry is None else entry.version) != version:
            return NOT_DONE
    replies: list[Any] = []
    limit = keys.touched_bytes + TRANSACTION_BYTES_MAX
    for operation in words[2:]:
        try:
            if keys.touched_bytes > limit:
                raise Failure(
                    f"ERR this transaction has read and written {TRANSACTION_BYTES_MAX} bytes by now"
                )
            reply = _HANDLERS[operation[0]](keys, operation)
        except Failure as failure:
            reply = error(str(failure))
        replies.append(reply)
    return replies


def publish(keys: Keyspace, words: Words) -> Any:
    """PUBLISH channel message. Who receives it, each replica knows of its own clients."""
    keys.announce(words[1], words[2])
    return 0


def fenced(keys: Keyspace, words: Words) -> Any:
    """FENCED lock token command…."""
    return _inner(keys, locks.require_token(keys, words))


def once(keys: Keyspace, words: Words) -> Any:
    """ONCE session number command…: carried out the first time, answered each time.

    A client numbers what it sends in a session 1, 2, 3…, and repeats what it has no reply to, with its number.
    """
    session, _, record = locks.find_session(keys, words[1])
    number = to_int(words[2])
    if number == record.number:
        return unpack(record.reply)
    if number < record.number:
        raise Failure(
            f"STALE session {session} has gone on to number {record.number}: this one's reply is not kept"
        )
    try:
        reply = _inner(keys, words[3:])
    except Failure as failure:
        reply = error(str(failure))
    now = keys.find(locks.session_name(session))
    if now is not None:  # it may have closed itself
        record = locks.read_session(now.data)
        record.number = number
        record.reply = pack(reply)
        if len(record.reply) > _KEPT_REPLY_BYTES_MAX:
            record.reply = pack(error("ERR it was carried out; its reply was too long to be kept"))
        locks.keep_session(keys, session, now, record)
    return reply


_READS: dict[bytes, Callable[[Keyspace, Words], Any]] = {**strings.READS, **locks.READS}
_HANDLERS: dict[bytes, Callable[[Keyspace, Words], Any]] = {
    **_READS, **strings.WRITES, **locks.WRITES, **scripts.WRITES,
    b"EXEC": execute, b"FENCED": fenced, b"ONCE": once, b"PUBLISH": publish,
}  # fmt: skip
