"""Groups as their creator sees them, and what opens the memory of their members: capabilities and shares of them.

The capability of a group is derived (HKDF-SHA256) from a seed of 16 random bytes, which is made here and forgotten
here; the rack is told the capability's SHA-256 and no more. Where a quorum must agree, nobody gets the capability: the
seed is shared out by Shamir's scheme, so that any *k* of *n* members can put it together, and fewer learn nothing.

A share is 36 bytes: what it is, how many are needed, how many there are, its index, eight *check bytes* that are the
same for all shares of a group, the share itself, and a checksum. So shares of two groups, or the same one twice, or one
that was damaged on its way, are told before anybody is asked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from bequest.errors import BadConfig, WrongCapability
from bequest.limits import CAPABILITY_BYTES, SEED_BYTES, SHARES_MAX

_PURPOSE = b"bequest: the capability of a group"
_MAGIC = b"BQS1"
_SHARE = struct.Struct("<4sBBBx8s16s")  # magic, needed, out of, index, check bytes, share; a checksum follows
_CHECKSUM_BYTES = 4
SHARE_BYTES = _SHARE.size + _CHECKSUM_BYTES


@dataclass(frozen=True)
class Quorum:
    """A steal policy: ``needed`` members out of ``of`` must give their shares. ``bq.Quorum(2, of=3)``."""

    needed: int
    of: int

    def __post_init__(self) -> None:
        if not (isinstance(self.needed, int) and isinstance(self.of, int)):
            raise TypeError("a quorum is two whole numbers: Quorum(2, of=3)")
        if not 2 <= self.needed <= self.of <= SHARES_MAX:
            raise BadConfig(
                f"a quorum of {self.needed} out of {self.of} cannot be: at least 2 must agree, at most {SHARES_MAX}"
            )


@dataclass(frozen=True, repr=False)
class Group:
    """Processes that trust each other with their memory. Whoever has ``secret`` can join: pass it on with care.

    ``capability`` is what a thief must show (see `Process.steal`), or None if nobody alone may have it. ``shares`` are
    for the members of a quorum, one each; as many as it takes are as good as a capability.
    """

    name: str
    secret: bytes
    capability: bytes | None = None
    shares: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<bequest.Group {self.name!r}>"


def check_capability(capability: object) -> None:
    """Raises TypeError for what cannot be one, such as its hexadecimal digits."""
    if capability is not None and not isinstance(capability, bytes):
        hint = "; bytes.fromhex(…) makes them of digits" if isinstance(capability, str) else ""
        raise TypeError(
            f"a capability is bytes, as in Group.capability, not {type(capability).__name__}{hint}"
        )


@dataclass(frozen=True, repr=False)
class Keys:
    """What is made for a new group: what its creator gets, and what the rack is told."""

    capability: bytes | None
    shares: tuple[bytes, ...]
    verifier: bytes | None


def make_keys(policy: str | Quorum) -> Keys:
    """Fresh ones for a steal policy. Where nobody may steal there is nothing to show."""
    if policy == "never":
        return Keys(None, (), None)
    seed = os.urandom(SEED_BYTES)
    capability = _derive(seed)
    verifier = sha256(capability).digest()
    if not isinstance(policy, Quorum):
        return Keys(capability, (), verifier)
    from Crypto.Protocol.SecretSharing import Shamir  # on demand: few programs make groups

    check = _check_bytes(capability)
    parts = Shamir.split(policy.needed, policy.of, seed)
    shares = tuple(_pack(policy, index, check, part) for index, part in parts)
    return Keys(None, shares, verifier)


def combine(shares: Iterable[bytes]) -> bytes:
    """The capability of a group, from the shares of a quorum. Raises `WrongCapability` if they do not make one."""
    found = [_unpack(share) for share in shares]
    if not found:
        raise WrongCapability("no share was given")
    first = found[0]
    if any((share.check, share.quorum) != (first.check, first.quorum) for share in found):
        raise WrongCapability("these are shares of different groups")
    different = {share.index: share for share in found}
    if len(different) < len(found):
        raise WrongCapability("the same share was given twice: every member has one of its own")
    needed = first.quorum.needed
    if len(found) < needed:
        raise WrongCapability(f"{needed} shares are needed, not {len(found)}")
    from Crypto.Protocol.SecretSharing import Shamir

    seed = Shamir.combine([(share.index, share.part) for share in found[:needed]])
    capability = _derive(seed)
    if _check_bytes(capability) != first.check:
        raise WrongCapability("these shares do not fit together: one of them at least was forged")
    return capability


# --- shares as bytes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _Share:
    quorum: Quorum
    index: int
    check: bytes
    part: bytes


def _pack(quorum: Quorum, index: int, check: bytes, part: bytes) -> bytes:
    body = _SHARE.pack(_MAGIC, quorum.needed, quorum.of, index, check, part)
    return body + sha256(body).digest()[:_CHECKSUM_BYTES]


def _unpack(share: object) -> _Share:
    if not isinstance(share, bytes):
        raise TypeError(f"a share is bytes, not {type(share).__name__}")
    if len(share) != SHARE_BYTES or not share.startswith(_MAGIC):
        raise WrongCapability(f"this is no share of a group: {SHARE_BYTES} bytes, as in Group.shares, are")
    body, checksum = share[: _SHARE.size], share[_SHARE.size :]
    if sha256(body).digest()[:_CHECKSUM_BYTES] != checksum:
        raise WrongCapability("a share was damaged on its way: its checksum does not fit")
    _, needed, of, index, check, part = _SHARE.unpack(body)
    if not (2 <= needed <= of and 1 <= index <= of):
        raise WrongCapability(
            f"a share was forged: it is number {index} of {of}, of which {needed} are needed"
        )
    return _Share(Quorum(needed, of=of), index, check, part)


def _check_bytes(capability: bytes) -> bytes:
    """Tell the shares of one group from those of another, and nothing of what they share."""
    return sha256(b"bequest: shares of " + sha256(capability).digest()).digest()[:8]


def _derive(seed: bytes) -> bytes:
    from Crypto.Hash import SHA256
    from Crypto.Protocol.KDF import HKDF

    derived = HKDF(seed, CAPABILITY_BYTES, None, SHA256, context=_PURPOSE)
    assert isinstance(derived, bytes)
    return derived
