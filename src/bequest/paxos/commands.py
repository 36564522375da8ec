"""Every command that the service knows: how many arguments it takes, and who answers it.

The front answers what concerns a connection (``here``), and reads this table before it sends anything on. A ``read``
changes nothing, and is answered from the state of a replica that knows that it is current. A ``write`` goes into the
log. Commands whose names have a point in them are not Redis's; docs/reference/paxos-commands.md has them all.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from bequest.paxos.replies import Failure

Where = Literal["here", "read", "write"]
_ANY = 1 << 30


class Spec(NamedTuple):
    """A command: its ``name``, the ``least`` and the ``most`` arguments, and ``where`` it is answered."""

    name: bytes
    least: int
    most: int
    where: Where


_TABLE: dict[Where, str] = {
    "here": """
        AUTH 1-2 CLIENT 1+ COMMAND 0+ CONFIG 1+ DISCARD 0 ECHO 1 EXEC 0 HELLO 0+ INFO 0+ KEYS 1 MULTI 0 PING 0-1
        PSUBSCRIBE 1+ PUBSUB 1+ PUNSUBSCRIBE 0+ QUIT 0 READONLY 0 READWRITE 0 RESET 0 SCRIPT 1+ SELECT 1
        SUBSCRIBE 1+ TIME 0 UNSUBSCRIBE 0+ UNWATCH 0 WATCH 1+
    """,
    "read": """
        DBSIZE 0 EXISTS 1+ EXPIRETIME 1 GET 1 GETRANGE 3 MGET 1+ PEXPIRETIME 1 PTTL 1 SCAN 1+ STRLEN 1 TOUCH 1+
        TTL 1 TYPE 1
        LOCK.CHECK 2 LOCK.GET 1 MEMBER.LIST 1 SESSION.GET 1
    """,
    "write": """
        APPEND 2 DECR 1 DECRBY 2 DEL 1+ EVAL 2+ EVALSHA 2+ EXPIRE 2-3 EXPIREAT 2-3 GETDEL 1 GETEX 1-3 GETSET 2 INCR 1
        INCRBY 2 MSET 2+ MSETNX 2+ PERSIST 1 PEXPIRE 2-3 PEXPIREAT 2-3 PSETEX 3 PUBLISH 2 SET 2+ SETEX 3 SETNX 2
        UNLINK 1+
        FENCED 3+ LOCK.ACQUIRE 2-4 LOCK.RELEASE 2 MEMBER.JOIN 2-3 MEMBER.LEAVE 2 ONCE 3+ SESSION.CLOSE 1
        SESSION.OPEN 1-2 SESSION.RENEW 1-2 SESSION.SET 3
    """,
}


def _read_table() -> dict[bytes, Spec]:
    specs: dict[bytes, Spec] = {}
    for where, text in _TABLE.items():
        words = text.split()
        for name, arity in zip(words[::2], words[1::2], strict=True):
            least, _, most = arity.partition("-")
            specs[name.encode()] = Spec(
                name.encode(), int(least.rstrip("+")), _ANY if least[-1] == "+" else int(most or least), where
            )
    return specs


COMMANDS = _read_table()


def look_up(command: list[bytes]) -> Spec:
    """The command's entry; its name is put into capitals. Raises Failure if there is none, or the arity is wrong."""
    spec = COMMANDS.get(command[0])
    if spec is None:
        spec = COMMANDS.get(command[0].upper())
        if spec is None:
            name = command[0][:128].decode(errors="replace")
            raise Failure(
                f"ERR unknown command '{name}': this service has those of docs/reference/paxos-commands.md"
            )
        command[0] = spec.name
    if not spec.least < len(command) <= spec.most + 1:
        raise Failure(f"ERR wrong number of arguments for '{spec.name.decode().lower()}' command")
    return spec
