"""What machines want done. A daemon carries a list of these out in its order, which is owed.

`Reply` answers a client's request, exactly once; the file descriptor that goes with it is named by what it stands
for, since machines know no descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass

from bequest.wire import messages as wire

PeerId = int


@dataclass(frozen=True, slots=True)
class Reply:
    peer: PeerId
    message: wire.Message
    table: int | None = None  # the Rack MMU: with the table of this group
    file: int | None = None  # a memory element: with this file


@dataclass(frozen=True, slots=True)
class Drop:
    """Close this client's connection; it is owed no reply any more."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class ToElement:
    element: int
    message: wire.Message


@dataclass(frozen=True, slots=True)
class ToAgent:
    compute: str
    message: wire.Message


@dataclass(frozen=True, slots=True)
class ToMmu:
    message: wire.Message


@dataclass(frozen=True, slots=True)
class DropTable:
    """The group has ended; nothing refers to its table any more."""

    group: int


@dataclass(frozen=True, slots=True)
class StopRack:
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """For the log."""

    text: str
    trouble: bool = False


# --- memory elements --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeFile:
    """-> `MemoryElement.file_made` or `file_failed`. Slow (first touch); what is ``urgent`` goes first."""

    file: int
    nbytes: int
    huge: bool
    urgent: bool


@dataclass(frozen=True, slots=True)
class CloseFile:
    file: int


@dataclass(frozen=True, slots=True)
class PunchFile:
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CopyFile:
    """-> `MemoryElement.copy_done` or `copy_failed`."""

    job: int
    source: int
    source_offset: int
    target: int
    target_offset: int
    nbytes: int


# --- agents -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """Tell `ComputeElement.exited` when this operating-system process, the one behind the peer, has gone."""

    peer: PeerId
    os_pid: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    peer: PeerId


Output = (
    Reply
    | Drop
    | ToElement
    | ToAgent
    | ToMmu
    | DropTable
    | StopRack
    | Note
    | MakeFile
    | CloseFile
    | PunchFile
    | CopyFile
    | Watch
    | Unwatch
)
