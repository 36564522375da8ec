"""Messages that tell of failures (paper, section 3.2): notices, emergency contacts, standbys, the rack monitor.

A notice starts at the Rack MMU, or at an agent that knows by itself, and ends at a *subscription*: a second connection
of a process to its agent, over which the agent pushes notices as they come. A subscription is read by one who may be
slow; so notices are never waited for, and may be dropped, oldest first, which is told by `NoticesDropped`.
"""

from __future__ import annotations

from bequest.wire.message import Message, Nonce

__all__ = [
    "BreakMemory", "CallContacts", "Cleared", "ContactsCalled", "DeathHint", "ElementBack", "ElementSilent",
    "FailMemory", "FailureMade", "GuardRange", "HandleFailures", "Handled", "MemoryBroken", "MemoryFailed", "Notice",
    "NoticeAttached", "NoticeCleared", "NoticeContact", "NoticeDied", "NoticeElement", "NoticeMemory",
    "NoticeSuspected", "NoticesDropped", "Ping", "Pong", "ProcessTold", "ProveDeath", "RangeGuarded", "ReportFailure",
    "SetContacts", "StandBy", "StandDown", "StandingBy", "Subscribe", "Subscribed", "Suspicion", "TellGroup",
    "TellProcess", "UnwatchProcess", "WatchProcess",
]  # fmt: skip

# --- notices ----------------------------------------------------------------------------------------------


class NoticeDied(Message, frozen=True):
    """The kernel says that this process has gone: nothing of it will ever run again.

    The Rack MMU numbers deaths as they occur, so that none is told twice to one who has said how many it knows of.
    """

    name: str
    pid: int
    incarnation: int
    number: int = 0


class NoticeSuspected(Message, frozen=True):
    """It has shown no sign of life for ``silent`` seconds. It may be alive."""

    name: str
    pid: int
    incarnation: int
    silent: float


class NoticeCleared(Message, frozen=True):
    """It has shown one again: the suspicion is withdrawn."""

    name: str
    pid: int
    incarnation: int


class NoticeAttached(Message, frozen=True):
    """To standbys: one of the name that they stand by for has attached."""

    name: str
    pid: int
    incarnation: int


class NoticeMemory(Message, frozen=True):
    """Memory of the receiver's has failed: these runs (address, bytes). ``failure`` is what `Handled` speaks of.

    The Rack MMU numbers failures. One may be told twice, if an agent dies; it has the same number then.
    """

    element: str
    runs: list[tuple[int, int]]
    cause: str
    failure: int = 0


class NoticeElement(Message, frozen=True):
    """A memory element that holds memory of the receiver's does not answer (or does again). No memory has failed."""

    element: str
    is_silent: bool
    silent: float


class NoticeContact(Message, frozen=True):
    """To an emergency contact of the named process, of which ``what`` is "died" or "memory"."""

    name: str
    pid: int
    incarnation: int
    what: str
    element: str = ""
    runs: list[tuple[int, int]] = []
    cause: str = ""


class NoticesDropped(Message, frozen=True):
    """So many notices, the oldest, were dropped, because their reader did not read."""

    count: int


Notice = (
    NoticeDied
    | NoticeSuspected
    | NoticeCleared
    | NoticeAttached
    | NoticeMemory
    | NoticeElement
    | NoticeContact
    | NoticesDropped
)

# --- client to agent --------------------------------------------------------------------------------------


class Subscribe(Message, frozen=True):
    """-> Subscribed, and from then on notices. On a connection of its own, with the ticket of `Enrol`.

    Who comes back, because its agent was started anew, names the last death that it knows of: later ones follow. And it
    names the ``suspects`` that it knows of (pid, incarnation, name): it is told which of them have been cleared.
    """

    ticket: bytes
    since: int | None = None
    suspects: list[tuple[int, int, str]] = []


class Subscribed(Message, frozen=True):
    """``death``: the number of the last one before this subscription."""

    pid: int
    death: int = 0


class SetContacts(Message, frozen=True):
    """-> Done. Who is told when this process dies, or does not handle a failure of its memory: names of processes."""

    names: list[str]


class HandleFailures(Message, frozen=True):
    """-> Done. Whether this process handles failures of its memory; if not, its contacts are told at once."""

    wanted: bool


class Handled(Message, frozen=True):
    """-> Done. Whether a failure of its memory was handled; if not, its contacts are told now."""

    failure: int
    well: bool = True


# --- client to Rack MMU -----------------------------------------------------------------------------------


class StandBy(Message, frozen=True):
    """-> StandingBy. The victim, of the own group, may attach later: then a `NoticeAttached` follows."""

    victim: str
    capability: bytes | None = None


class StandingBy(Message, frozen=True):
    """The present bearer of the name; id 0 if there is none yet."""

    standby: int
    pid: int = 0
    incarnation: int = 0


class StandDown(Message, frozen=True):
    """-> Done."""

    standby: int


class BreakMemory(Message, frozen=True):
    """-> MemoryBroken. For tests of programs: makes a memory element fail, or a range of its addresses.

    Who repeats it with the same nonce is told what became of the first.
    """

    element: str
    start: int = 0
    nbytes: int = 0  # 0: all of the element
    nonce: Nonce = b""


class ReportFailure(Message, frozen=True):
    """-> MemoryBroken. The hardware has told the sender that it has lost memory of its, at a page's address."""

    address: int
    nbytes: int


class MemoryBroken(Message, frozen=True):
    slabs: int
    nbytes: int
    owners: list[str]


# --- Rack MMU to agent, and back --------------------------------------------------------------------------


class ProveDeath(Message, frozen=True):
    """There is a hint that it has died. -> ProcessExited, as soon as the kernel says so, if it does."""

    pid: int
    incarnation: int


class TellProcess(Message, frozen=True):
    """Pass the notice on to this process, if it has subscribed. -> ProcessTold, if it has a number.

    Numbers grow. On a new link those come again that are not answered yet.
    """

    pid: int
    incarnation: int
    notice: Notice
    number: int = 0


class ProcessTold(Message, frozen=True):
    """It has been passed on, or there is nobody to pass it on to.

    A failure of memory: it has been handled, or the emergency contacts have been called.
    """

    number: int


class TellGroup(Message, frozen=True):
    """Pass the notice on to all processes of a group that have subscribed."""

    group: int
    notice: Notice


class CallContacts(Message, frozen=True):
    """-> ContactsCalled. Pass the notice on to processes of these names, of this group, which are not at this agent."""

    names: list[str]
    notice: NoticeContact
    group: int
    number: int = 0  # the agent's; it says it again on a new link until it is answered


class ContactsCalled(Message, frozen=True):
    """As far as there are processes of these names."""

    number: int


class GuardRange(Message, frozen=True):
    """-> RangeGuarded. From now on, in every process, touching a page of this range that is not there faults."""

    job: int
    group: int
    address: int
    nbytes: int


class RangeGuarded(Message, frozen=True):
    """``unguarded``: processes (names) that could not be guarded, and would read zeros."""

    job: int
    unguarded: list[str] = []


# --- Rack MMU to memory element, and back -----------------------------------------------------------------


class FailMemory(Message, frozen=True):
    """-> MemoryFailed for each slab concerned, then FailureMade. Loses memory for real; all of it without a slab."""

    job: int
    slab: int | None
    offset: int
    nbytes: int
    cause: str


class MemoryFailed(Message, frozen=True):
    slab: int
    offset: int
    nbytes: int
    cause: str


class FailureMade(Message, frozen=True):
    job: int


# --- the rack monitor -------------------------------------------------------------------------------------


class WatchProcess(Message, frozen=True):
    """With the table of its group as file descriptor, when the monitor has not been sent that yet."""

    pid: int
    incarnation: int
    os_pid: int
    group: int
    is_suspect: bool = False  # a monitor before this one has said so, and it is not withdrawn yet


class UnwatchProcess(Message, frozen=True):
    pid: int
    incarnation: int


class DeathHint(Message, frozen=True):
    """Its lifeline has broken. A hint: the agent has to prove it."""

    pid: int
    incarnation: int


class Suspicion(Message, frozen=True):
    pid: int
    incarnation: int
    silent: float


class Cleared(Message, frozen=True):
    pid: int
    incarnation: int


class ElementSilent(Message, frozen=True):
    element: int
    silent: float


class ElementBack(Message, frozen=True):
    element: int


class Ping(Message, frozen=True):
    """-> Pong, at once: that is its meaning."""

    number: int


class Pong(Message, frozen=True):
    number: int
