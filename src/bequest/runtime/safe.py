"""The safe: what a daemon must not lose when it dies lies with the supervisor.

Theory of operation. A file without a name lives as long as a descriptor of it. So each daemon has the supervisor keep
copies of those that hold its state (slabs, tables, a journal, pidfds), each under a key and with a few bytes that say
what it is. When the daemon has died, its successor is forked from the supervisor and so has them all. Sending is the
commit point: a packet in the control socket's queue holds its descriptors even if the sender is gone, and the
supervisor empties the queue of a dead daemon before it starts the next. What is left to fail is that the supervisor
refuses, so whoever must not go on without waits for its answer.

A daemon is not trusted to be sane: what it keeps is bounded, and descriptors are refused before the supervisor has too
few left for its own work.
"""

from __future__ import annotations

import os
import resource
import socket

import msgspec

from bequest.limits import (
    PACKET_FDS_MAX,
    SAFE_DESCRIPTORS_SPARE,
    SAFE_ENTRIES_MAX,
    SAFE_KEY_CHARACTERS_MAX,
    SAFE_META_BYTES_MAX,
)


class Deposit(msgspec.Struct):
    """What lies under one key."""

    meta: bytes
    fds: list[int] = []


class Tether(msgspec.Struct, eq=False):
    """What a daemon is born with: the way to its supervisor, and what its predecessor kept there."""

    control: socket.socket
    kept: dict[str, Deposit]
    restarts: int = 0


class Safe:
    """The supervisor's side; ``owner`` names the daemon."""

    def __init__(self) -> None:
        self._deposits: dict[str, dict[str, Deposit]] = {}
        self._descriptors = 0
        self._descriptors_max = raise_descriptor_limit() - SAFE_DESCRIPTORS_SPARE

    def keep(self, owner: str, key: str, deposit: Deposit) -> str:
        """Why not, or "" if it is kept; the descriptors are the safe's in either case."""
        mine = self._deposits.setdefault(owner, {})
        trouble = self._objection(mine, key, deposit)
        if trouble:
            _close(deposit)
            return trouble
        self.release(owner, key)
        mine[key] = deposit
        self._descriptors += len(deposit.fds)
        return ""

    def release(self, owner: str, key: str) -> None:
        deposit = self._deposits.get(owner, {}).pop(key, None)
        if deposit is not None:
            self._descriptors -= len(deposit.fds)
            _close(deposit)

    def of(self, owner: str) -> dict[str, Deposit]:
        """In the order in which it was kept."""
        return dict(self._deposits.get(owner, {}))

    def shed(self, owner: str) -> None:
        """Lets go of everything but the owner's: for the child that becomes that daemon."""
        for other in list(self._deposits):
            if other != owner:
                for key in list(self._deposits[other]):
                    self.release(other, key)

    def _objection(self, mine: dict[str, Deposit], key: str, deposit: Deposit) -> str:
        if len(key) > SAFE_KEY_CHARACTERS_MAX or len(deposit.meta) > SAFE_META_BYTES_MAX:
            return f"a key of {len(key)} characters, or {len(deposit.meta)} bytes about it, are too long"
        if len(deposit.fds) > PACKET_FDS_MAX:
            return f"{len(deposit.fds)} descriptors under one key are too many; {PACKET_FDS_MAX} are allowed"
        if key not in mine and len(mine) >= SAFE_ENTRIES_MAX:
            return f"the supervisor keeps {len(mine)} things of this daemon already"
        if self._descriptors + len(deposit.fds) > self._descriptors_max:
            return (
                f"the supervisor keeps {self._descriptors} file descriptors and can have no more; raise the limit of"
                " open files (ulimit -n) before the rack is started"
            )
        return ""


def _close(deposit: Deposit) -> None:
    while deposit.fds:
        os.close(deposit.fds.pop())


def raise_descriptor_limit() -> int:
    """To what the system allows: each slab and each process cost descriptors. How many there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
