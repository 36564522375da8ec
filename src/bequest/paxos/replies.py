"""Replies: what the store answers, and how RESP2 and RESP3 write it.

A reply is a plain value, so that it can be kept in a session's books and sent between replicas without knowing which
protocol the client speaks: ``None``, an ``int``, ``bytes`` (a bulk string), ``str`` (a status, as "OK"), a ``list`` of
replies, or an ``Ext`` for what has no plain value: an error, and the null array of a transaction that did not happen.
Only the front makes bytes of the wire out of it. RESP3 differs in how it writes nulls, maps and pushes.
"""

from __future__ import annotations

from typing import Any

from msgspec.msgpack import Decoder, Encoder, Ext

_ERROR, _NULL_ARRAY = 1, 2
NOT_DONE = Ext(_NULL_ARRAY, b"")  # EXEC's, when a watched key has changed

pack = Encoder().encode
unpack = Decoder().decode


class Failure(Exception):
    """The caller's mistake: what the reply says of it, Redis's error code first ("ERR …", "WRONGTYPE …")."""


class Push(list[Any]):
    """What nobody has asked for now: a message of a channel. Out of band in RESP3, an array in RESP2."""


def error(text: str) -> Ext:
    """The reply that tells of a failure. It is one line on the wire, whatever it quotes."""
    return Ext(_ERROR, text.replace("\r", " ").replace("\n", " ").encode())


def is_error(reply: object) -> bool:
    """Whether this reply tells of a failure."""
    return reply.__class__ is Ext and reply.code == _ERROR


def encode(reply: Any, protocol: int = 2) -> bytes:
    """The reply as the wire has it, in RESP2 or RESP3."""
    kind = reply.__class__
    if kind is str:
        return b"+%b\r\n" % reply.encode()
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int:
        return b":%d\r\n" % reply
    if reply is None:
        return b"$-1\r\n" if protocol == 2 else b"_\r\n"
    if kind is list:
        return b"*%d\r\n%b" % (len(reply), b"".join([encode(one, protocol) for one in reply]))
    return _encode_rare(reply, protocol)


def _encode_rare(reply: Any, protocol: int) -> bytes:
    match reply:
        case Push():
            mark = b"*" if protocol == 2 else b">"
            return b"%b%d\r\n%b" % (mark, len(reply), b"".join([encode(one, protocol) for one in reply]))
        case dict():
            flat = b"".join([encode(one, protocol) for pair in reply.items() for one in pair])
            return (
                b"*%d\r\n%b" % (2 * len(reply), flat) if protocol == 2 else b"%%%d\r\n%b" % (len(reply), flat)
            )
        case Ext(code=1):
            return b"-%b\r\n" % bytes(reply.data)
        case Ext(code=2):
            return b"*-1\r\n" if protocol == 2 else b"_\r\n"
    raise TypeError(f"a reply cannot be a {type(reply).__name__}")
