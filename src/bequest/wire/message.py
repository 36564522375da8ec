"""What every message is."""

from __future__ import annotations

from typing import Annotated

import msgspec

from bequest.limits import NONCE_BYTES_MAX

Nonce = Annotated[bytes, msgspec.Meta(max_length=NONCE_BYTES_MAX)]  # by which a repeated request is known


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages; the tag is the struct's name."""
