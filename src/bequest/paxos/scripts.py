"""The scripts of redis.lock.Lock, by their SHA1.

The service runs no scripts. But redis-py's lock lets go of itself, extends and renews itself by three short ones, whose
text has not changed for years; what they do is done here. Each is given the lock's key and its arguments.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from bequest.paxos.keyspace import KEY, Keyspace, to_int
from bequest.paxos.replies import Failure
from bequest.paxos.strings import pexpire

if TYPE_CHECKING:
    from collections.abc import Callable

Words = list[bytes]


def release(keys: Keyspace, key: bytes, arguments: Words) -> int:
    """Arguments: the token. Deletes the key if that is its value."""
    if not arguments or keys.value(key) != arguments[0]:
        return 0
    keys.delete_key(key)
    return 1


def extend(keys: Keyspace, key: bytes, arguments: Words) -> int:
    """Arguments: the token, milliseconds, "0" if they are on top of those left. A lock without end has none."""
    entry = keys.find(KEY + key)
    if len(arguments) < 3 or entry is None or entry.data != arguments[0] or not entry.expires_ms:
        return 0
    more_ms = to_int(arguments[1]) + (entry.expires_ms - keys.now_ms if arguments[2] == b"0" else 0)
    pexpire(keys, [b"PEXPIRE", key, b"%d" % more_ms])
    return 1


def reacquire(keys: Keyspace, key: bytes, arguments: Words) -> int:
    """Arguments: the token, milliseconds."""
    if len(arguments) < 2 or keys.value(key) != arguments[0]:
        return 0
    pexpire(keys, [b"PEXPIRE", key, arguments[1]])
    return 1


SCRIPTS: dict[bytes, Callable[[Keyspace, bytes, Words], int]] = {
    b"c3f8721cbb97f72bc19e972846bd7aaf91901658": release,
    b"a4e8783852e6b949f9ef3a97212805108459a890": extend,
    b"1cac51482acf5858da00f6d685d68f886cd6b6b2": reacquire,
}
NOT_SERVED = (
    "this service runs no scripts but those of redis.lock.Lock: use MULTI/EXEC with WATCH, or LOCK.ACQUIRE"
)


def load(text: bytes) -> bytes:
    """SCRIPT LOAD: the script's SHA1, if it is one of these. Raises Failure."""
    digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
    if digest not in SCRIPTS:
        raise Failure(f"ERR {NOT_SERVED}")
    return digest


def evalsha(keys: Keyspace, words: Words) -> Any:
    """EVALSHA sha1 1 key argument…."""
    script = SCRIPTS.get(words[1].lower())
    if script is None:
        raise Failure(f"NOSCRIPT No matching script: {NOT_SERVED}")
    if words[2] != b"1" or len(words) < 4:
        raise Failure("ERR each script served has one key")
    return script(keys, words[3], words[4:])


def evaluate(keys: Keyspace, words: Words) -> Any:
    """EVAL script 1 key argument…."""
    return evalsha(keys, [b"EVALSHA", load(words[1]), *words[2:]])


WRITES = {b"EVAL": evaluate, b"EVALSHA": evalsha}
