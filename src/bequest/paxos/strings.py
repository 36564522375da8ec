"""Redis's commands on keys and their values, as functions of the keyspace and the words of the command.

Each is given a keyspace that stands at the time and version of the command, and returns its reply. What it cannot do it
says by raising `Failure`, before it has changed anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bequest.paxos.keyspace import KEY, Entry, Keyspace, to_int
from bequest.paxos.replies import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Words = list[bytes]
_SYNTAX = "ERR syntax error"
TOUCHED_BYTES_MAX = 16 << 20  # of values, by one command; one value of any size fits
_SCAN_MAX = 10_000
_SCAN_STEP = 16


def get(keys: Keyspace, words: Words) -> Any:
    """GET key."""
    return keys.value(words[1])


def mget(keys: Keyspace, words: Words) -> Any:
    """MGET key…."""
    return [None if entry is None else entry.data for entry in _find_each(keys, words[1:])]


def _find_each(keys: Keyspace, names: Words) -> Iterator[Entry | None]:
    """What is there under each, unless that is too much."""
    limit = keys.touched_bytes + TOUCHED_BYTES_MAX
    for name in names:
        yield keys.find(KEY + name)
        if keys.touched_bytes > limit:
            raise Failure(f"ERR these are over {TOUCHED_BYTES_MAX} bytes: ask for fewer keys at once")


def getrange(keys: Keyspace, words: Words) -> Any:
    """GETRANGE key start end; the end is included, and negative ones count from the end."""
    value = keys.value(words[1]) or b""
    start, end = to_int(words[2]), to_int(words[3])
    start = max(start + len(value), 0) if start < 0 else start
    end = end + len(value) if end < 0 else end
    return value[start : end + 1] if end >= start else b""


def strlen(keys: Keyspace, words: Words) -> Any:
    """STRLEN key."""
    return len(keys.value(words[1]) or b"")


def exists(keys: Keyspace, words: Words) -> Any:
    """EXISTS key…; TOUCH key…."""
    return sum(entry is not None for entry in _find_each(keys, words[1:]))


def kind(keys: Keyspace, words: Words) -> Any:
    """TYPE key."""
    return "none" if keys.find(KEY + words[1]) is None else "string"


def dbsize(keys: Keyspace, _: Words) -> Any:
    """DBSIZE."""
    return keys.count_keys()


def versions(keys: Keyspace, words: Words) -> Any:
    """What WATCH remembers: the version of each key, 0 for one that is not there."""
    return [0 if entry is None else entry.version for entry in _find_each(keys, words[1:])]


def _remaining(keys: Keyspace, key: bytes, present: Callable[[int], int]) -> int:
    entry = keys.find(KEY + key)
    if entry is None:
        return -2
    return present(entry.expires_ms) if entry.expires_ms else -1


def ttl(keys: Keyspace, words: Words) -> Any:
    """TTL key: in seconds."""
    return _remaining(keys, words[1], lambda at_ms: (at_ms - keys.now_ms + 500) // 1000)


def pttl(keys: Keyspace, words: Words) -> Any:
    """PTTL key: in milliseconds."""
    return _remaining(keys, words[1], lambda at_ms: at_ms - keys.now_ms)


def expiretime(keys: Keyspace, words: Words) -> Any:
    """EXPIRETIME key: a time of day, in seconds."""
    return _remaining(keys, words[1], lambda at_ms: (at_ms + 500) // 1000)


def pexpiretime(keys: Keyspace, words: Words) -> Any:
    """PEXPIRETIME key: a time of day, in milliseconds."""
    return _remaining(keys, words[1], lambda at_ms: at_ms)


# --- writing ------------------------------------------------------------------------------------------------------


def expiry(keys: Keyspace, unit: bytes, amount: bytes, command: str) -> int:
    """When something ends, in milliseconds of the time of day, from an option like EX, PX, EXAT or PXAT."""
    number = to_int(amount)
    at_ms = number if unit.startswith(b"P") else number * 1000
    if not unit.endswith(b"AT"):
        at_ms += keys.now_ms
    if number <= 0 or at_ms >= 2**62:
        raise Failure(f"ERR invalid expire time in '{command}' command")
    return at_ms


def set_(keys: Keyspace, words: Words) -> Any:
    """SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]."""
    if len(words) == 3:
        keys.put_key(words[1], words[2], b"set")
        return "OK"
    expires_ms, flags, at = 0, [], 3
    while at < len(words):
        option = words[at].upper()
        if option in {b"EX", b"PX", b"EXAT", b"PXAT"} and at + 1 < len(words) and not expires_ms:
            expires_ms = expiry(keys, option, words[at + 1], "set")
            at += 1
        elif option in {b"NX", b"XX", b"GET", b"KEEPTTL"}:
            flags.append(option)
        else:
            raise Failure(_SYNTAX)
        at += 1
    if (b"NX" in flags and b"XX" in flags) or (b"KEEPTTL" in flags and expires_ms):
        raise Failure(_SYNTAX)
    old = keys.find(KEY + words[1])
    if b"KEEPTTL" in flags and old is not None:
        expires_ms = old.expires_ms
    is_done = not (b"NX" in flags and old is not None) and not (b"XX" in flags and old is None)
    if is_done:
        keys.put_key(words[1], words[2], b"set", expires_ms, 0 if old is None else old.bucket)
    if b"GET" in flags:
        return None if old is None else old.data
    return "OK" if is_done else None


def setnx(keys: Keyspace, words: Words) -> Any:
    """SETNX key value."""
    return int(set_(keys, [*words, b"NX"]) is not None)


def setex(keys: Keyspace, words: Words) -> Any:
    """SETEX key seconds value."""
    return set_(keys, [b"SET", words[1], words[3], b"EX", words[2]])


def psetex(keys: Keyspace, words: Words) -> Any:
    """PSETEX key milliseconds value."""
    return set_(keys, [b"SET", words[1], words[3], b"PX", words[2]])


def getset(keys: Keyspace, words: Words) -> Any:
    """GETSET key value."""
    return set_(keys, [*words, b"GET"])


def mset(keys: Keyspace, words: Words) -> Any:
    """MSET key value …: all at once."""
    if len(words) % 2 == 0:
        raise Failure("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(words[1::2], words[2::2], strict=True):
        keys.put_key(key, value, b"set")
    return "OK"


def msetnx(keys: Keyspace, words: Words) -> Any:
    """MSETNX key value …: all, or, if one of the keys is there, none."""
    if len(words) % 2 == 0:
        raise Failure("ERR wrong number of arguments for 'msetnx' command")
    if any(entry is not None for entry in _find_each(keys, words[1::2])):
        return 0
    mset(keys, words)
    return 1


def append(keys: Keyspace, words: Words) -> Any:
    """APPEND key value."""
    old = keys.find(KEY + words[1])
    if old is None:
        keys.put_key(words[1], words[2], b"append")
        return len(words[2])
    whole = len(old.data) + len(words[2])
    if whole > TOUCHED_BYTES_MAX:
        raise Failure(f"ERR string exceeds maximum allowed size: {TOUCHED_BYTES_MAX} bytes")
    keys.put_key(words[1], old.data + words[2], b"append", old.expires_ms, old.bucket)
    return whole


def _add(keys: Keyspace, key: bytes, more: int, event: bytes) -> int:
    old = keys.find(KEY + key)
    number = (0 if old is None else to_int(old.data)) + more
    if not -(2**63) <= number < 2**63:
        raise Failure("ERR increment or decrement would overflow")
    expires_ms, bucket = (0, 0) if old is None else (old.expires_ms, old.bucket)
    keys.put_key(key, b"%d" % number, event, expires_ms, bucket)
    return number


def incr(keys: Keyspace, words: Words) -> Any:
    """INCR key."""
    return _add(keys, words[1], 1, b"incrby")


def decr(keys: Keyspace, words: Words) -> Any:
    """DECR key."""
    return _add(keys, words[1], -1, b"decrby")


def incrby(keys: Keyspace, words: Words) -> Any:
    """INCRBY key more."""
    return _add(keys, words[1], to_int(words[2]), b"incrby")


def decrby(keys: Keyspace, words: Words) -> Any:
    """DECRBY key less."""
    return _add(keys, words[1], -to_int(words[2]), b"decrby")


def delete(keys: Keyspace, words: Words) -> Any:
    """DEL key…; UNLINK key…."""
    return sum([keys.delete_key(key) for key in words[1:]])


def getdel(keys: Keyspace, words: Words) -> Any:
    """GETDEL key."""
    value = keys.value(words[1])
    keys.delete_key(words[1])
    return value


def getex(keys: Keyspace, words: Words) -> Any:
    """GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]."""
    entry = keys.find(KEY + words[1])
    option = words[2].upper() if len(words) > 2 else b""
    if len(words) == 4 and option in {b"EX", b"PX", b"EXAT", b"PXAT"}:
        expires_ms, event = expiry(keys, option, words[3], "getex"), b"expire"
    elif len(words) == 3 and option == b"PERSIST":
        expires_ms, event = 0, b"persist"
    elif len(words) > 2:
        raise Failure(_SYNTAX)
    if entry is None:
        return None
    if option:
        keys.put_key(words[1], entry.data, event, expires_ms, entry.bucket)
    return entry.data


def _expire(keys: Keyspace, words: Words, to_ms: Callable[[int], int]) -> int:
    option = words[3].upper() if len(words) == 4 else b""
    if option not in {b"", b"NX", b"XX", b"GT", b"LT"}:
        raise Failure(f"ERR Unsupported option {option.decode(errors='replace')}")
    at_ms = to_ms(to_int(words[2]))
    if at_ms >= 2**62:
        raise Failure(f"ERR invalid expire time in '{words[0].decode().lower()}' command")
    entry = keys.find(KEY + words[1])
    if entry is None:
        return 0
    now = entry.expires_ms or 2**62
    refused = {
        b"NX": entry.expires_ms != 0,
        b"XX": not entry.expires_ms,
        b"GT": at_ms <= now,
        b"LT": at_ms >= now,
    }
    if refused.get(option, False):
        return 0
    if at_ms <= keys.now_ms:
        keys.delete_key(words[1])
    else:
        keys.put_key(words[1], entry.data, b"expire", at_ms, entry.bucket)
    return 1


def expire(keys: Keyspace, words: Words) -> Any:
    """EXPIRE key seconds [NX | XX | GT | LT]."""
    return _expire(keys, words, lambda number: keys.now_ms + number * 1000)


def pexpire(keys: Keyspace, words: Words) -> Any:
    """PEXPIRE key milliseconds [NX | XX | GT | LT]."""
    return _expire(keys, words, lambda number: keys.now_ms + number)


def expireat(keys: Keyspace, words: Words) -> Any:
    """EXPIREAT key seconds [NX | XX | GT | LT]: of the time of day."""
    return _expire(keys, words, lambda number: number * 1000)


def pexpireat(keys: Keyspace, words: Words) -> Any:
    """PEXPIREAT key milliseconds [NX | XX | GT | LT]: of the time of day."""
    return _expire(keys, words, lambda number: number)


def persist(keys: Keyspace, words: Words) -> Any:
    """PERSIST key."""
    entry = keys.find(KEY + words[1])
    if entry is None or not entry.expires_ms:
        return 0
    keys.put_key(words[1], entry.data, b"persist", 0, entry.bucket)
    return 1


# --- going over all -------------------------------------------------------------------------------------------------


def scan(keys: Keyspace, words: Words) -> Any:
    """SCAN cursor [MATCH pattern] [COUNT n] [TYPE t]: a key that is there all the time is found exactly once."""
    try:
        cursor = int(words[1])
    except ValueError:
        raise Failure("ERR invalid cursor") from None
    options = dict(zip([word.upper() for word in words[2::2]], words[3::2], strict=False))
    count = to_int(options.pop(b"COUNT", b"10"))
    pattern = glob(options.pop(b"MATCH", b"*"))
    wanted = options.pop(b"TYPE", b"string")
    if options or len(words) % 2 or count < 1:
        raise Failure(_SYNTAX)
    if not 0 <= cursor < 2**64:
        raise Failure("ERR invalid cursor")
    cursor, found = _scan_some(keys, cursor, min(count, _SCAN_MAX), pattern)
    return [b"%d" % cursor, found if wanted.lower() == b"string" else []]


def _scan_some(keys: Keyspace, cursor: int, count: int, pattern: re.Pattern[bytes]) -> tuple[int, Words]:
    """Fewer than ``count``, if their values are large: whether a key has expired, its value says."""
    limit = keys.touched_bytes + TOUCHED_BYTES_MAX
    found: Words = []
    while count > 0 and keys.touched_bytes < limit:
        cursor, names = keys.entries.scan(cursor, min(count, _SCAN_STEP))
        count -= max(len(names), 1)
        found += [
            name[1:]
            for name in names
            if name[:1] == KEY and pattern.fullmatch(name, 1) and keys.find(name) is not None
        ]
        if not cursor:
            break
    return cursor, found


def glob(pattern: bytes) -> re.Pattern[bytes]:
    """Redis's patterns (``*``, ``?``, ``[a-z]``, ``[^a]``, a backslash before what is to be itself).

    What follows a star is looked for once, from the left, and that is never taken back: so no pattern takes long.
    """
    pieces, at = [b""], 0
    while at < len(pattern):
        one = pattern[at : at + 1]
        if one == b"*":
            pieces.append(b"")
        elif one == b"?":
            pieces[-1] += b"."
        elif one == b"[" and (end := pattern.find(b"]", at + 2)) > 0:
            inside = pattern[at + 1 : end]
            is_negated = inside[:1] == b"^"
            inside = re.sub(rb"([\\\[\]^&~|])", rb"\\\1", inside[is_negated:])
            pieces[-1] += b"[" + b"^" * is_negated + inside + b"]"
            at = end
        else:
            if one == b"\\" and at + 1 < len(pattern):
                at += 1
                one = pattern[at : at + 1]
            pieces[-1] += re.escape(one)
        at += 1
    first, *middle, last = pieces if len(pieces) > 1 else (pieces[0], b"")
    whole = first + b"".join(b"(?>.*?%b)" % piece for piece in middle if piece)
    try:
        return re.compile(whole + (b".*" + last if len(pieces) > 1 else b""), re.DOTALL)
    except re.error:
        raise Failure("ERR invalid pattern") from None


READS = {
    b"DBSIZE": dbsize, b"EXISTS": exists, b"EXPIRETIME": expiretime, b"GET": get, b"GETRANGE": getrange, b"MGET": mget,
    b"PEXPIRETIME": pexpiretime, b"PTTL": pttl, b"SCAN": scan, b"STRLEN": strlen, b"TOUCH": exists, b"TTL": ttl,
    b"TYPE": kind, b"WATCH": versions,
}  # fmt: skip
WRITES = {
    b"APPEND": append, b"DECR": decr, b"DECRBY": decrby, b"DEL": delete, b"EXPIRE": expire, b"EXPIREAT": expireat,
    b"GETDEL": getdel, b"GETEX": getex, b"GETSET": getset, b"INCR": incr, b"INCRBY": incrby, b"MSET": mset,
    b"MSETNX": msetnx, b"PERSIST": persist, b"PEXPIRE": pexpire, b"PEXPIREAT": pexpireat, b"PSETEX": psetex,
    b"SET": set_, b"SETEX": setex, b"SETNX": setnx, b"UNLINK": delete,
}  # fmt: skip
