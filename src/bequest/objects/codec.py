"""What the values in a Map, a Log or a Queue are.

The heap holds bytes; a typed object turns its values into them and back. What they are is noted in it when it is made,
as a kind (bytes, str, int, float, bool, or "packed": in MessagePack, by msgspec), so that nobody opens it as what it is
not. A packed value's type is the program's own: msgspec says what of it may change (fields added, with defaults).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Codec = tuple[int, Callable[[Any], bytes] | None, Callable[[bytes], Any] | None]

# ValueType in native/heap/object.hpp.
KINDS: dict[Any, int] = {int: 0, float: 1, bool: 2, bytes: 3, str: 4}
_PACKED = 5


def codec(kind: Any) -> Codec:
    """What native code is told of a type: its number, and how to pack and unpack what has none of its own."""
    if kind in KINDS:
        return (KINDS[kind], None, None)
    from msgspec import msgpack

    encode, decode = msgpack.Encoder().encode, msgpack.Decoder(kind).decode

    def pack(value: Any) -> bytes:
        packed = encode(value)
        decode(packed)  # what cannot be read as what it is said to be is not put
        return packed

    return (_PACKED, pack, decode)
