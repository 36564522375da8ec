"""Groups: processes that trust each other, with one table and one ticket at every memory element.

The secret of a group is given out once and never kept, only its SHA-256; of the capability that opens the memory of
its members to thieves, the rack knows only the SHA-256 until somebody steals. Every user of the rack has a default
group that needs neither, because the socket has told who the user is. A group lives while anything is in it or the
connection that made it is open. Who may steal in it, and how far its victims' agents may go, is decided when it is
made.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import cast

import msgspec

from bequest.ids import GroupId
from bequest.limits import GROUPS_MAX, SECRET_BYTES, TICKET_BYTES, VERIFIER_BYTES
from bequest.protocol.books import Books, Row
from bequest.protocol.outputs import PeerId
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard, ShardMaker

STEAL_POLICIES = ("never", "member", "standby", "quorum")
FENCE_REACHES = ("protect", "ptrace", "kill")


class Rules(msgspec.Struct, frozen=True):
    """Who may steal (`bequest.protocol.capabilities`), and how far a victim may be gone against."""

    policy: str = "member"
    fence: str = "ptrace"
    verifier: bytes | None = None  # the SHA-256 of the capability

    def check(self) -> None:
        if self.policy not in STEAL_POLICIES:
            raise Refusal("config", f"no steal policy {self.policy!r}; there are {', '.join(STEAL_POLICIES)}")
        if self.fence not in FENCE_REACHES:
            raise Refusal("config", f"no fence {self.fence!r}; there are {', '.join(FENCE_REACHES)}")
        if self.verifier is None:
            if self.policy in ("standby", "quorum"):
                raise Refusal("config", f"a group with the steal policy {self.policy!r} needs a verifier")
        elif len(self.verifier) != VERIFIER_BYTES:
            raise Refusal("config", f"a verifier has {VERIFIER_BYTES} bytes, not {len(self.verifier)}")


def _not_opened_yet() -> Shard:
    return cast("Shard", None)


class Group(Row):
    id: GroupId
    name: str
    ticket: bytes
    secret_digest: bytes | None = None
    nonce: bytes = b""  # of the request that made it
    creator: PeerId | None = None
    uid: int | None = None  # of a user's default group
    rules: Rules = Rules()
    shard: Shard = msgspec.field(default_factory=_not_opened_yet)

    transient = ("shard",)

    @property
    def is_default(self) -> bool:
        return self.uid is not None


class Groups:
    def __init__(self, books: Books, make_shard: ShardMaker, fresh_bytes: Callable[[int], bytes]) -> None:
        self._books = books
        self._make_shard = make_shard
        self._fresh_bytes = fresh_bytes
        self._groups = books.open("groups", Group, int)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def __getitem__(self, group: GroupId) -> Group:
        return self._groups[group]

    def __len__(self) -> int:
        return len(self._groups)

    def create(self, name: str, creator: PeerId, rules: Rules, nonce: bytes = b"") -> tuple[Group, bytes]:
        """A new group and its secret, which is not to be had again.

        If the same request has made it before, its secret is another from now on: nobody has seen the first.
        """
        rules.check()
        group = next((group for group in self if group.name == name), None)
        if group is None:
            group = self._add(name)
            group.nonce = nonce
        elif not nonce or group.nonce != nonce:
            raise Refusal("name-taken", f"there is a group {name!r} in this rack already")
        secret = self._fresh_bytes(SECRET_BYTES)
        group.secret_digest = sha256(secret).digest()
        group.creator = creator
        group.rules = rules
        return group, secret

    def creator_is_now(self, peer: PeerId | None, before: PeerId) -> None:
        """It has gone, or has come back through another connection."""
        for group in self:
            if group.creator == before:
                group.creator = peer

    def default_of(self, uid: int) -> tuple[Group, bool]:
        """The group of a user's processes that name no other, and whether it is new."""
        for group in self:
            if group.uid == uid:
                return group, False
        group = self._add(f"user-{uid}")
        group.uid = uid
        return group, True

    def of_secret(self, secret: bytes) -> Group:
        digest = sha256(secret).digest()
        found = None
        for group in self:  # all of them, always: the time taken tells nothing
            if group.secret_digest is not None and hmac.compare_digest(group.secret_digest, digest):
                found = group
        if found is None:
            raise Refusal("secret", "no group of this rack has this secret; ask the group's creator for it")
        return found

    def open_tables(self) -> None:
        """Of the groups that were in the books of a run before."""
        for group in self:
            group.shard = self._make_shard(group.id)

    def forget(self, group: GroupId) -> None:
        self._groups.remove(group)

    def _add(self, name: str) -> Group:
        if len(self._groups) >= GROUPS_MAX:
            raise Refusal("memory", f"this rack has {GROUPS_MAX} groups already; let some end")
        number = self._books.counter("group").next()
        group = Group(number, name, self._fresh_bytes(TICKET_BYTES), shard=self._make_shard(number))
        return self._groups.put(number, group)
