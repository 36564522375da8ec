"""Locks, sessions and groups: what Chubby does (Burrows, OSDI 2006), as commands.

A **session** is a client's life as the service sees it: opened with a lease, it ends when that is not renewed in time,
or is closed; with it go the locks that it holds, the keys that it has set as its own, and its membership of groups.
A **lock** is held by one session. Each time that it changes hands it has a **fencing token**, higher than any before:
whoever is handed work together with the token can ask whether it still counts (``LOCK.CHECK``), can remember the
highest token it has seen and refuse lower ones, or has the service ask (``FENCED lock token command…``). So a holder
that was asleep while its lease ended does no harm when it wakes. A **group** lists those sessions that have joined it.

Sessions, locks and groups are entries of the keyspace like any other, with the calendar of all that expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bequest.paxos.keyspace import GROUP, KEY, LOCK, SESSION, Entry, Keyspace, to_int
from bequest.paxos.replies import Failure

if TYPE_CHECKING:
    from collections.abc import Sized

Words = list[bytes]
_LEASE_MS_MAX = 24 * 3600 * 1000
THINGS_MAX = 1000  # locks, own keys and groups, each, of one session
MEMBERS_MAX = 10_000  # of one group
NAME_BYTES_MAX = 1024  # of a lock, a group, a session, a session's own key
DATA_BYTES_MAX = 256  # of a member


class Session(msgspec.Struct, array_like=True):
    """What is kept of a session, beside when it ends."""

    lease_ms: int
    name: bytes
    locks: list[bytes] = []
    keys: list[tuple[bytes, int]] = []  # and the version in which it set each
    groups: list[bytes] = []
    number: int = 0  # of the last command that it had carried out once
    reply: bytes = b""


class Lock(msgspec.Struct, array_like=True):
    """Who holds it, since which token."""

    session: int
    token: int


pack = msgspec.msgpack.Encoder().encode
read_session = msgspec.msgpack.Decoder(Session).decode
_read_lock = msgspec.msgpack.Decoder(Lock).decode
_read_group = msgspec.msgpack.Decoder(dict[int, bytes]).decode


def watch_over(keys: Keyspace) -> None:
    """Has sessions end when their leases do."""
    keys.on_expiry[SESSION] = lambda name, entry: _end(keys, int.from_bytes(name, "big"), entry)


# --- sessions ---------------------------------------------------------------------------------------------------------


def session_name(session: int) -> bytes:
    """Its entry's."""
    return SESSION + session.to_bytes(8, "big")


def find_session(keys: Keyspace, word: bytes) -> tuple[int, Entry, Session]:
    """Raises Failure if there is no such session (any more)."""
    session = to_int(word)
    entry = keys.find(session_name(session)) if session > 0 else None
    if entry is None:
        raise Failure(f"NOSESSION there is no session {session}, or its lease has ended: open another")
    return session, entry, read_session(entry.data)


def keep_session(keys: Keyspace, session: int, entry: Entry, record: Session) -> None:
    """As it is now; its lease goes on as it was."""
    keys.put(session_name(session), pack(record), entry.expires_ms, entry.bucket)


def _lease(word: bytes) -> int:
    lease_ms = to_int(word)
    if not 0 < lease_ms <= _LEASE_MS_MAX:
        raise Failure(f"ERR a lease has between 1 and {_LEASE_MS_MAX} milliseconds")
    return lease_ms


def open_session(keys: Keyspace, words: Words) -> Any:
    """SESSION.OPEN lease-ms [name]: its id."""
    lease_ms = _lease(words[1])
    name = _short(words[2]) if len(words) > 2 else b""
    session = keys.next_number()
    record = Session(lease_ms, name)
    keys.put(session_name(session), pack(record), keys.now_ms + lease_ms)
    keys.count_own(1)
    return session


def renew_session(keys: Keyspace, words: Words) -> Any:
    """SESSION.RENEW session [lease-ms]: the milliseconds that it now has."""
    session, entry, record = find_session(keys, words[1])
    if len(words) > 2:
        record.lease_ms = _lease(words[2])
    keys.put(session_name(session), pack(record), keys.now_ms + record.lease_ms, entry.bucket)
    return record.lease_ms


def close_session(keys: Keyspace, words: Words) -> Any:
    """SESSION.CLOSE session: 1, or 0 if there was none any more."""
    session = to_int(words[1])
    name = session_name(session) if session > 0 else SESSION
    entry = keys.find(name)
    if entry is None:
        return 0
    keys.remove_raw(name)
    _end(keys, session, entry)
    return 1


def get_session(keys: Keyspace, words: Words) -> Any:
    """SESSION.GET session: its name, lease, milliseconds left, locks, keys, groups; nil if there is none any more."""
    try:
        _, entry, record = find_session(keys, words[1])
    except Failure:
        return None
    own = [key for key, version in record.keys if _is_still(keys, key, version)]
    return [record.name, record.lease_ms, entry.expires_ms - keys.now_ms, record.locks, own, record.groups]


def set_own(keys: Keyspace, words: Words) -> Any:
    """SESSION.SET session key value: a key that goes when the session does, unless somebody has set it since."""
    session, entry, record = find_session(keys, words[1])
    record.keys = [(key, version) for key, version in record.keys if key != words[2]]
    _one_more(record.keys)
    _short(words[2])
    record.keys.append((words[2], keys.version))
    keys.put_key(words[2], words[3], b"set")
    keep_session(keys, session, entry, record)
    return "OK"


def _is_still(keys: Keyspace, key: bytes, version: int) -> bool:
    entry = keys.find(KEY + key)
    return entry is not None and entry.version == version


def _one_more(things: Sized, most: int = THINGS_MAX) -> None:
    if len(things) >= most:
        raise Failure(f"ERR there are {most} already, the most there may be")


def _short(word: bytes, most: int = NAME_BYTES_MAX) -> bytes:
    if len(word) > most:
        raise Failure(f"ERR {len(word)} bytes are too many here: at most {most}")
    return word


def _end(keys: Keyspace, session: int, entry: Entry) -> None:
    """Its entry has gone; so goes what was its."""
    keys.count_own(-1)
    record = read_session(entry.data)
    for lock in record.locks:
        _let_go(keys, lock, session)
    for key, version in record.keys:
        if _is_still(keys, key, version):
            keys.delete_key(key)
    for group in record.groups:
        _leave(keys, group, session)


# --- locks ------------------------------------------------------------------------------------------------------------


def _holder(keys: Keyspace, name: bytes) -> tuple[Lock, Entry] | None:
    """Who has it, and the holder's session; a session that has ended holds nothing, though nobody has looked yet."""
    entry = keys.find(LOCK + name)
    if entry is None:
        return None
    lock = _read_lock(entry.data)
    session = keys.find(session_name(lock.session))
    return None if session is None else (lock, session)


def acquire(keys: Keyspace, words: Words) -> Any:
    """LOCK.ACQUIRE lock session: the fencing token; nil if another session has the lock. The front does the waiting."""
    if len(words) != 3:
        raise Failure("ERR LOCK.ACQUIRE waits for nobody within another command")
    session, entry, record = find_session(keys, words[2])
    held = _holder(keys, words[1])
    if held is not None:
        return held[0].token if held[0].session == session else None
    _one_more(record.locks)
    _short(words[1])
    token = keys.next_number()
    if LOCK + words[1] not in keys.entries:
        keys.count_own(1)
    keys.put(LOCK + words[1], pack(Lock(session, token)))
    record.locks.append(words[1])
    keep_session(keys, session, entry, record)
    keys.announce(b"__lock__:" + words[1], b"acquired %d" % token)
    return token


def release(keys: Keyspace, words: Words) -> Any:
    """LOCK.RELEASE lock session: 1, or 0 if this session did not have it."""
    session, entry, record = find_session(keys, words[2])
    if words[1] not in record.locks or not _let_go(keys, words[1], session):
        return 0
    record.locks.remove(words[1])
    keep_session(keys, session, entry, record)
    return 1


def _let_go(keys: Keyspace, name: bytes, session: int) -> bool:
    entry = keys.find(LOCK + name)
    if entry is None or _read_lock(entry.data).session != session:
        return False
    keys.remove_raw(LOCK + name)
    keys.count_own(-1)
    keys.announce(b"__lock__:" + name, b"released")
    return True


def get_lock(keys: Keyspace, words: Words) -> Any:
    """LOCK.GET lock: who holds it (session, token, the session's name, milliseconds left); nil if nobody does."""
    held = _holder(keys, words[1])
    if held is None:
        return None
    lock, session = held
    return [lock.session, lock.token, read_session(session.data).name, session.expires_ms - keys.now_ms]


def check(keys: Keyspace, words: Words) -> Any:
    """LOCK.CHECK lock token: 1 if that is the token of who holds it now, else 0."""
    held = _holder(keys, words[1])
    return int(held is not None and held[0].token == to_int(words[2]))


def require_token(keys: Keyspace, words: Words) -> Words:
    """FENCED lock token command…: the command, if the token counts. Raises Failure if it does not any more."""
    if not check(keys, words):
        raise Failure(
            f"FENCED token {to_int(words[2])} of this lock does not count any more: the lock has been lost, and nothing"
            " was done"
        )
    return words[3:]


# --- groups -----------------------------------------------------------------------------------------------------------


def _members(keys: Keyspace, group: bytes) -> dict[int, bytes]:
    entry = keys.find(GROUP + group)
    return {} if entry is None else _read_group(entry.data)


def join(keys: Keyspace, words: Words) -> Any:
    """MEMBER.JOIN group session [data]: 1, or 0 if it was a member already, whose data is now this."""
    session, entry, record = find_session(keys, words[2])
    members = _members(keys, words[1])
    data = _short(words[3], DATA_BYTES_MAX) if len(words) > 3 else b""
    is_new = session not in members
    if is_new:
        _one_more(members, MEMBERS_MAX)
        _one_more(record.groups)
        _short(words[1])
        record.groups.append(words[1])
        keep_session(keys, session, entry, record)
    keys.count_own(0 if members else 1)
    members[session] = data
    keys.put(GROUP + words[1], pack(members))
    keys.announce(b"__member__:" + words[1], (b"joined %d" if is_new else b"changed %d") % session)
    return int(is_new)


def leave(keys: Keyspace, words: Words) -> Any:
    """MEMBER.LEAVE group session: 1, or 0 if it was no member."""
    session, entry, record = find_session(keys, words[2])
    if words[1] not in record.groups:
        return 0
    record.groups.remove(words[1])
    keep_session(keys, session, entry, record)
    _leave(keys, words[1], session)
    return 1


def _leave(keys: Keyspace, group: bytes, session: int) -> None:
    members = _members(keys, group)
    del members[session]
    if members:
        keys.put(GROUP + group, pack(members))
    else:
        keys.remove_raw(GROUP + group)
        keys.count_own(-1)
    keys.announce(b"__member__:" + group, b"left %d" % session)


def list_members(keys: Keyspace, words: Words) -> Any:
    """MEMBER.LIST group: session and data of each member, in the order in which their sessions were opened."""
    members = _members(keys, words[1])
    return [
        [session, members[session]]
        for session in sorted(members)
        if keys.find(session_name(session)) is not None
    ]


READS = {
    b"LOCK.CHECK": check,
    b"LOCK.GET": get_lock,
    b"MEMBER.LIST": list_members,
    b"SESSION.GET": get_session,
}
WRITES = {
    b"LOCK.ACQUIRE": acquire, b"LOCK.RELEASE": release, b"MEMBER.JOIN": join, b"MEMBER.LEAVE": leave,
    b"SESSION.CLOSE": close_session, b"SESSION.OPEN": open_session, b"SESSION.RENEW": renew_session,
    b"SESSION.SET": set_own,
}  # fmt: skip
