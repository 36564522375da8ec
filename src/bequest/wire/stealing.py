"""Messages about memory that is taken from a process, and about the names under which memory is found.

They are part of `bequest.wire.messages`, which says how messages travel.
"""

from __future__ import annotations

import msgspec

from bequest.wire.message import Message

# --- client to Rack MMU: stealing -------------------------------------------------------------------------


class Steal(Message, frozen=True):
    """-> Stolen. Takes the stealable memory of a process of the own group.

    ``only`` takes a part: what is published under these paths, and the regions at these addresses. ``incarnation`` pins
    the bearer of the name that is meant. Sent in a `Once`, it means the same victim when it is repeated, whoever bears
    its name by then.
    """

    victim: str
    capability: bytes | None = None
    only: list[str | int] | None = None
    incarnation: int | None = None


class Stolen(Message, frozen=True):
    """What is the thief's now is in the table, marked with whom it was taken from; these are totals of this request.

    ``how`` the victim was kept from its memory: dead, protected, ptraced or killed; "self" if thief and victim are one;
    "untouched" if there was nothing to take. ``heir``: the thief may empty the dead victim's inbox.
    """

    pid: int
    incarnation: int
    name: str
    how: str
    extents: int
    nbytes: int
    heir: bool = False


class NameHeir(Message, frozen=True):
    """-> Done. The only process that may steal from the asking one where the group's policy is "standby"."""

    name: str | None


# --- client to Rack MMU: the namespace --------------------------------------------------------------------


class Publish(Message, frozen=True):
    """-> Done. ``path`` leads to ``offset`` in the region at ``address``, which the asking process owns."""

    path: str
    address: int
    nbytes: int
    offset: int = 0


class Unpublish(Message, frozen=True):
    """-> Done."""

    path: str


class Lookup(Message, frozen=True):
    """-> Found."""

    path: str


class Published(msgspec.Struct, frozen=True):
    """A name, and who owns what it leads to at this moment."""

    path: str
    group: str
    address: int
    nbytes: int
    offset: int
    publisher: str
    owner: int
    owner_name: str
    owner_state: str  # as in ProcessReport
    in_flight: bool = False  # granted to the owner, and not yet accepted


class Found(Message, frozen=True):
    name: Published


class ListNames(Message, frozen=True):
    """-> NameList: what is published at ``prefix`` or below, in order. A process sees the names of its group.

    Without a process attached: those of every group. ``after`` is the ``next_after`` of the last reply.
    """

    prefix: str = "/"
    after: tuple[int, str] | None = None  # (group, path)


class NameList(Message, frozen=True):
    names: list[Published]
    next_after: tuple[int, str] | None = None


# --- status -----------------------------------------------------------------------------------------------


class Theft(msgspec.Struct, frozen=True):
    """An attempt to steal."""

    number: int
    age: float  # seconds ago
    thief: str
    os_pid: int
    uid: int
    group: str
    victim: str
    pid: int  # of the victim; 0: it was not found
    incarnation: int
    outcome: str  # stolen, refused, failed (it was allowed, and could not be done), under way
    how: str  # as in Stolen; else why not
    extents: int = 0
    nbytes: int = 0
    times: int = 1  # attempts in a row that were refused because of too many wrong ones


class TheftList(Message, frozen=True):
    """Oldest first."""

    thefts: list[Theft]
    next_cursor: int | None = None


# --- Rack MMU to agent, and back --------------------------------------------------------------------------


class FenceProcess(Message, frozen=True):
    """-> ProcessFenced or FenceFailed. No store of the process may reach ``ranges`` (address, bytes) from then on.

    ``reach`` is how far the agent may go: protect, ptrace or kill. If it is ``hinted`` that the process has died, the
    agent waits a moment for proof of that first. At most `FENCE_RANGES_MAX` ranges of whole pages.
    """

    job: int
    pid: int
    incarnation: int
    reach: str
    ranges: list[tuple[int, int]]
    hinted: bool = False


class ProcessFenced(Message, frozen=True):
    """``how``: dead, protected, ptraced or killed."""

    job: int
    how: str


class FenceFailed(Message, frozen=True):
    """Nothing may change hands; a part of the ranges may have been fenced, and stays so until it is lifted."""

    job: int
    message: str


class LiftFence(Message, frozen=True):
    """-> FenceLifted. The process was fenced off ``ranges`` (address, bytes), and they have turned out to be its own.

    Comes after every fence that the process was asked to be kept off them by, and before any other.
    """

    job: int
    pid: int
    incarnation: int
    ranges: list[tuple[int, int]]


class FenceLifted(Message, frozen=True):
    """As far as it could be from outside, or the process has gone. Its library is to mend the rest."""

    job: int
