"""What actors and those who call them say to each other.

Messages travel in *streams*, one from each sender to each receiver. A stream's messages are numbered from 0, and its
name says how long its sender lives: a client, an actor, whose streams outlive its process, or one event of an actor
that calls another. A *post* is what is sent at once: up to 216 bytes as a bare message, more in a region of its own,
an envelope, which the receiver frees when it has read it.

    mail     messages of a stream, from number ``first`` on. Without any it is a question: what do you expect next?
    receipt  the number that its receiver expects next: all before it have been handled, for good
    replies  to those messages that were calls
    query    asks again for replies to calls that have been handled
    farewell the stream has ended, and can be forgotten

Values are msgpack. A region in them is an extension that names it: by its address, which it keeps wherever it goes, and
by its birth, which tells it from an earlier one there. It is granted before the post that speaks of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from bequest.errors import BequestError, NotSendable
from bequest.memory.region import Region

if TYPE_CHECKING:
    from bequest.memory.process import Process

STREAM_BYTES = 16
CLIENT, ACTOR, EVENT = b"C", b"A", b"E"  # the first byte of a stream's name
ENVELOPE, CARRIED = b"\xbeE", b"\xbeC"  # tags of regions

_MAGIC = 0xBE
_MAIL, _RECEIPT, _REPLIES, _QUERY, _FAREWELL = range(1, 6)
_HEAD = struct.Struct("<BB16s")
_MAIL_HEAD = struct.Struct("<IQIQQII")
_RECEIPT_HEAD = struct.Struct("<IQ?")
_QUERY_HEAD = struct.Struct("<II")
_ARRAY = struct.Struct(">BI")  # msgpack's array of up to 2**32 elements
_ENVELOPE_HEAD = struct.Struct("<8sQQ")
_ENVELOPE_MAGIC = b"BEQMAIL\n"
ENVELOPE_BYTES = _ENVELOPE_HEAD.size
_REGION_CODE = 1
_REGION = struct.Struct("<QQ")

Identity = tuple[int, int]  # of a region: its address and its birth
Message = list[
    Any
]  # [wants_reply, method, arguments] or, with regions, [wants_reply, method, packed, identities]


class Address(NamedTuple):
    """An inbox, and the life of its owner."""

    id: int
    incarnation: int


class Mail(NamedTuple):
    """Messages of a stream.

    ``oldest`` is the first that is not known to have been handled, ``answered`` the number before which no reply is
    missing, ``session`` counts up whenever the sender begins anew.
    """

    stream: bytes
    session: int
    first: int
    oldest: int
    answered: int
    sender: Address
    messages: Sequence[Message]


class Receipt(NamedTuple):
    """``expected`` is the next number; with ``is_gap`` something before what has come is missing."""

    stream: bytes
    session: int
    expected: int
    is_gap: bool


class Replies(NamedTuple):
    """Each a list: number, error or None, and the value, or what `pack` made of it, and the regions' identities."""

    stream: bytes
    replies: Sequence[list[Any]]


class Query(NamedTuple):
    """Numbers of calls, each with the digest of the message, of which the reply is wanted."""

    stream: bytes
    sender: Address
    calls: Sequence[list[int]]


class Farewell(NamedTuple):
    """Nothing will come of it, and nothing is missing."""

    stream: bytes


Post = Mail | Receipt | Replies | Query | Farewell


def stream_name(kind: bytes, *parts: bytes) -> bytes:
    """The same for the same parts, and for no others."""
    digest = hashlib.blake2b(digest_size=STREAM_BYTES - 1)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return kind + digest.digest()


# --- posts --------------------------------------------------------------------------------------------------


def mail(
    stream: bytes,
    session: int,
    first: int,
    oldest: int,
    answered: int,
    sender: Address,
    records: Sequence[bytes],
) -> bytes:
    """A post of packed messages."""
    head = _MAIL_HEAD.pack(session, first, len(records), oldest, answered, *sender)
    return b"".join((_HEAD.pack(_MAGIC, _MAIL, stream), head, _array(records)))


def receipt(stream: bytes, session: int, expected: int, is_gap: bool) -> bytes:
    """A post that says what is expected next."""
    return _HEAD.pack(_MAGIC, _RECEIPT, stream) + _RECEIPT_HEAD.pack(session, expected, is_gap)


def replies(stream: bytes, records: Sequence[bytes]) -> bytes:
    """A post of packed replies."""
    return _HEAD.pack(_MAGIC, _REPLIES, stream) + _array(records)


def query(stream: bytes, sender: Address, calls: Sequence[tuple[int, int]]) -> bytes:
    """A post that asks for replies again."""
    return _HEAD.pack(_MAGIC, _QUERY, stream) + _QUERY_HEAD.pack(*sender) + _encoder.encode(calls)


def farewell(stream: bytes) -> bytes:
    """A post that ends a stream."""
    return _HEAD.pack(_MAGIC, _FAREWELL, stream)


def parse(data: bytes) -> Post | None:
    """What a post says; None if it is none."""
    try:
        magic, kind, stream = _HEAD.unpack_from(data)
        body = memoryview(data)[_HEAD.size :]
        if magic != _MAGIC:
            return None
        match kind:
            case 1:
                session, first, _, oldest, answered, id_, incarnation = _MAIL_HEAD.unpack_from(body)
                messages = _decoder.decode(body[_MAIL_HEAD.size :])
                return Mail(stream, session, first, oldest, answered, Address(id_, incarnation), messages)
            case 2:
                return Receipt(stream, *_RECEIPT_HEAD.unpack(body))
            case 3:
                return Replies(stream, _decoder.decode(body))
            case 4:
                sender = Address(*_QUERY_HEAD.unpack_from(body))
                return Query(stream, sender, _decoder.decode(body[_QUERY_HEAD.size :]))
            case 5:
                return Farewell(stream)
    except (struct.error, msgspec.MsgspecError):
        pass
    return None


def _array(records: Sequence[bytes]) -> bytes:
    """Of packed values one that is the list of them."""
    return _ARRAY.pack(0xDD, len(records)) + b"".join(records)


def read_envelope(region: Region) -> bytes:
    """The post in it."""
    with memoryview(region) as view:
        _, _, nbytes = _ENVELOPE_HEAD.unpack_from(view)
        return bytes(view[ENVELOPE_BYTES : ENVELOPE_BYTES + nbytes])


def into_envelope(process: Process, post: bytes) -> Region:
    """A fresh region with the post in it, which says of itself that it is an envelope."""
    region = process.alloc(ENVELOPE_BYTES + len(post))
    region._free_when_dropped()
    with memoryview(region) as view:
        _ENVELOPE_HEAD.pack_into(view, 0, _ENVELOPE_MAGIC, region._birth, len(post))
        view[ENVELOPE_BYTES : ENVELOPE_BYTES + len(post)] = post
    return region


def is_envelope(region: Region) -> bool:
    """Whether it is one: found in an estate, where tags are lost. An earlier one at its address had another birth."""
    if region.nbytes < ENVELOPE_BYTES:
        return False
    with memoryview(region) as view:
        magic, birth, _ = _ENVELOPE_HEAD.unpack_from(view)
    return bool(magic == _ENVELOPE_MAGIC and birth == region._birth)


# --- values -------------------------------------------------------------------------------------------------


def identity(region: Region) -> Identity:
    """What tells it from every other, wherever it is."""
    return region.address, region._birth


class Packed(NamedTuple):
    """A value as it travels, and the regions in it."""

    data: bytes
    regions: list[Region]


def pack(value: object) -> Packed:
    """Raises NotSendable, before anything has changed, if it cannot travel."""
    regions: list[Region] = []

    def name(part: object) -> msgspec.msgpack.Ext:
        if not isinstance(part, Region):
            raise NotSendable(
                f"{type(part).__qualname__} cannot be sent: a message is made of None, bool, int, float, str, bytes,"
                " datetime, lists, tuples, dicts and regions"
            )
        _check_carriable(part, regions)
        regions.append(part)
        return msgspec.msgpack.Ext(_REGION_CODE, _REGION.pack(*identity(part)))

    try:
        return Packed(msgspec.msgpack.Encoder(enc_hook=name).encode(value), regions)
    except BequestError:  # a region has moved
        raise
    except (OverflowError, RecursionError, ValueError, msgspec.MsgspecError) as error:
        raise NotSendable(f"this cannot be sent: {error}") from error


def pack_message(wants_reply: bool, method: str, arguments: tuple[object, ...]) -> Packed:
    """A message of a stream."""
    try:
        return Packed(_encoder.encode((wants_reply, method, arguments)), [])
    except (OverflowError, RecursionError, TypeError, ValueError, msgspec.MsgspecError):
        data, regions = pack(arguments)  # tells what is wrong with it, or finds the regions
    names = [identity(region) for region in regions]
    return Packed(_encoder.encode((wants_reply, method, data, names)), regions)


def pack_again(message: Message) -> bytes:
    """The same bytes as those that it was decoded from."""
    return _encoder.encode(message)


def pack_reply(number: int, error: list[Any] | None, value: object) -> Packed:
    """A reply of a stream."""
    data, regions = pack(value)
    if not regions:
        return Packed(_encoder.encode((number, error, value)), [])
    names = [identity(region) for region in regions]
    return Packed(_encoder.encode((number, error, data, names)), regions)


def unpack(data: bytes, find: Callable[[Identity], Region]) -> Any:
    """What `pack` was given, with the regions that ``find`` finds."""

    def named(code: int, body: memoryview) -> Region:
        if code != _REGION_CODE:
            raise ValueError(f"an extension {code} of another kind")
        return find(_REGION.unpack(body))

    return msgspec.msgpack.Decoder(ext_hook=named).decode(data)


def names_in(record: bytes) -> Iterable[Identity]:
    """The regions that a packed message or reply speaks of."""
    parts = _decoder.decode(record)
    return [(address, birth) for address, birth in parts[3]] if len(parts) > 3 else ()


def _check_carriable(region: Region, others: Sequence[Region]) -> None:
    if any(region is other for other in others):
        raise NotSendable("the same region is in this message twice, and can arrive but once")
    if region.nbytes == 0:
        raise NotSendable("a region of no bytes is a bare message; send its tag")
    if not region.owned:
        memoryview(region)  # raises what has become of it
    if region.views:
        raise BufferError(f"{region.views} views of this region are alive; release them before it is sent")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()
