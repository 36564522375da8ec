"""What machines want done. A daemon carries a list of these out in its order, which is owed.

`Reply` answers a client's request, exactly once; the file descriptor that goes with it is named by what it stands
for, since machines know no descriptors.
"""

from __future__ import annotations

import msgspec

from bequest.wire import messages as wire

PeerId = int
ProcessKey = tuple[int, int]  # id and incarnation


class Reply(msgspec.Struct, frozen=True):
    peer: PeerId
    message: wire.Message
    table: int | None = None  # the Rack MMU: with the table of this group
    file: int | None = None  # a memory element: with this file


class ToElement(msgspec.Struct, frozen=True):
    element: int
    message: wire.Message


class ToAgent(msgspec.Struct, frozen=True):
    compute: str
    message: wire.Message


class ToMonitor(msgspec.Struct, frozen=True):
    message: wire.Message
    table: int | None = None  # with the table of this group


class ToMmu(msgspec.Struct, frozen=True):
    message: wire.Message


class DropTable(msgspec.Struct, frozen=True):
    """The group has ended; nothing refers to its table any more."""

    group: int


class GoOn(msgspec.Struct, frozen=True):
    """The last of its input's outputs: there is more to do, now that what was decided has been written down.

    The Rack MMU: call `RackMmu.go_on`, before any other input.
    """


class LookThrough(msgspec.Struct, frozen=True):
    """-> `RackMmu.looked_through`, with what `look_through` finds in these slabs, by group.

    It takes long; others are served meanwhile.
    """

    peer: PeerId
    question: wire.Status
    slabs: dict[int, list[int]]


class AwaitExit(msgspec.Struct, frozen=True):
    """Tell `RackMmu.absent_client_exited` when this process, the one behind a former connection, has gone."""

    client: PeerId
    os_pid: int


class StopRack(msgspec.Struct, frozen=True):
    reason: str


class Note(msgspec.Struct, frozen=True):
    """For the log."""

    text: str
    trouble: bool = False


# --- memory elements --------------------------------------------------------------------------------------


class MakeFile(msgspec.Struct, frozen=True):
    """-> `MemoryElement.file_made` or `file_failed`. Slow (first touch); what is ``urgent`` goes first."""

    file: int
    nbytes: int
    huge: bool
    urgent: bool


class KeptFile(msgspec.Struct, frozen=True):
    """What lies in the safe beside a slab's file."""

    slab: int
    nbytes: int
    huge: bool
    huge_bytes: int
    has_ledger: bool = False  # the file of its checksums lies there as well


class KeepFile(msgspec.Struct, frozen=True):
    """-> `MemoryElement.file_kept`. From then on the file survives the server, until it is closed."""

    file: int
    about: KeptFile


class CloseFile(msgspec.Struct, frozen=True):
    file: int


class LoseFile(msgspec.Struct, frozen=True):
    """Give its memory up, at once: a run of it (offset, bytes), or all, so that whoever touches it then faults."""

    file: int
    run: tuple[int, int] | None = None


class PunchFile(msgspec.Struct, frozen=True):
    """-> `MemoryElement.punch_done`."""

    job: int
    file: int
    offset: int
    nbytes: int


class CopyFile(msgspec.Struct, frozen=True):
    """-> `MemoryElement.copy_done` or `copy_failed`."""

    job: int
    source: int
    source_offset: int
    target: int
    target_offset: int
    nbytes: int


class KeepLedger(msgspec.Struct, frozen=True):
    """-> `MemoryElement.ledger_kept`. Makes a ledger for the checksums of this file, to be kept with it."""

    file: int
    about: KeptFile


class DropLedger(msgspec.Struct, frozen=True):
    file: int


class MarkPages(msgspec.Struct, frozen=True):
    """-> `MemoryElement.pages_marked`: they are sealed, under a new number."""

    job: int
    file: int
    offset: int
    nbytes: int


class CheckPages(msgspec.Struct, frozen=True):
    """-> `MemoryElement.pages_checked`. Somebody waits for it."""

    job: int
    file: int
    offset: int
    nbytes: int
    number: int


class SweepPages(msgspec.Struct, frozen=True):
    """-> `MemoryElement.pages_swept`. While nothing else wants the processor; one of these at a time."""

    file: int
    offset: int
    end: int
    bytes_max: int
    only_unsummed: bool


class ForgetPages(msgspec.Struct, frozen=True):
    """At once. Under this number only, if it is not 0."""

    file: int
    offset: int
    nbytes: int
    number: int = 0


class FlipBitOfFile(msgspec.Struct, frozen=True):
    """At once."""

    file: int
    offset: int


# --- agents -----------------------------------------------------------------------------------------------


class WatchedProcess(msgspec.Struct, frozen=True):
    """What lies in the safe beside the descriptors of an enrolled process."""

    pid: int
    incarnation: int
    os_pid: int
    ticket: bytes
    name: str
    group: int


class Watch(msgspec.Struct, frozen=True):
    """-> `ComputeElement.watched`, then `exited` when the operating-system process behind the peer has gone."""

    process: WatchedProcess
    peer: PeerId


class Unwatch(msgspec.Struct, frozen=True):
    process: ProcessKey


class KeepContacts(msgspec.Struct, frozen=True):
    """The emergency contacts of this process, in place of those before: they are to survive this agent."""

    process: ProcessKey
    names: list[str]


class KeepHandler(msgspec.Struct, frozen=True):
    """Whether this process handles failures of its memory: that is to survive this agent."""

    process: ProcessKey
    wanted: bool


# --- the rack monitor -------------------------------------------------------------------------------------


class LookAt(msgspec.Struct, frozen=True):
    """-> `RackMonitor.looked`: what the threads of this silent process, or daemon, look like."""

    target: tuple[int, int] | int | str
    os_pid: int


class SendPing(msgspec.Struct, frozen=True):
    """To a memory element (a number) or an agent (a name)."""

    to: int | str
    number: int


class Push(msgspec.Struct, frozen=True):
    """A notice for a client that has subscribed. If it does not read, its oldest are dropped, and it is told so."""

    peer: PeerId
    notice: wire.Message


class Confirm(msgspec.Struct, frozen=True):
    """Tell `ComputeElement.exited` if this process is seen to have gone; wait a moment for it."""

    process: ProcessKey


class Fence(msgspec.Struct, frozen=True):
    """-> `ComputeElement.fenced` or `fence_failed`."""

    job: int
    process: ProcessKey
    reach: str
    ranges: list[tuple[int, int]]
    hinted: bool


class Lift(msgspec.Struct, frozen=True):
    """-> `ComputeElement.lifted`."""

    job: int
    process: ProcessKey
    ranges: list[tuple[int, int]]


class Guard(msgspec.Struct, frozen=True):
    """-> `ComputeElement.guarded`."""

    job: int
    process: ProcessKey
    address: int
    nbytes: int


Output = (
    Reply
    | ToElement
    | ToAgent
    | ToMonitor
    | ToMmu
    | DropTable
    | GoOn
    | LookThrough
    | AwaitExit
    | StopRack
    | Note
    | MakeFile
    | KeepFile
    | CloseFile
    | LoseFile
    | PunchFile
    | CopyFile
    | KeepLedger
    | DropLedger
    | MarkPages
    | CheckPages
    | SweepPages
    | ForgetPages
    | FlipBitOfFile
    | Watch
    | Unwatch
    | KeepContacts
    | KeepHandler
    | Push
    | LookAt
    | SendPing
    | Confirm
    | Fence
    | Lift
    | Guard
)
