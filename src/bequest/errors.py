"""What can go wrong, in three kinds that are never mixed.

*The caller's mistake*: the call was wrong and would be wrong again; nothing has changed.
*The peer's doing*: the call was right, but another process is gone, full or silent.
*A component's fault*: the rack, its memory or this machine cannot do it.

Every class is also the built-in exception that Python users would expect there, so ``except TimeoutError`` or
``except MemoryError`` do what they say. The daemons report trouble as ``Failed(kind, …)`` on the wire; `from_failure`
turns that into the exception, and `FAILURE_KINDS` is the whole list of kinds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bequest import _core

if TYPE_CHECKING:
    from bequest._core import RegionBase

# What is free where: (memory element, free bytes, largest allocation that fits).
FreeMemory = tuple[str, int, int]


class BequestError(Exception):
    """Base of everything Bequest raises itself."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, OSError may add an errno.
        return str(self.args[0]) if self.args else ""


# --- the caller's mistakes --------------------------------------------------------------------------------


class RegionMoved(BequestError, ValueError):
    """The region was granted, freed, split or merged away. Use the handle that has it now."""


class NotAttached(BequestError, RuntimeError):
    """This process is not attached to a rack (any more), or was forked from one that is. Attach it first."""


class NameTaken(BequestError, ValueError):
    """Another attached process, group or rack bears this name. Choose another or wait until it has gone."""


class BadName(BequestError, ValueError):
    """A name must have 1 to 63 bytes of UTF-8, without control characters and '/'."""


class UnknownProcess(BequestError, KeyError):
    """No process or mailbox of this name is known in the rack. Check the name, or wait until it has attached."""


class WrongSecret(BequestError, PermissionError):
    """The group secret is not that of any group of this rack."""


class WrongCapability(BequestError, PermissionError):
    """The capability does not open the victim's memory, or the group's policy lets nobody (or not you) have it."""


class UnknownName(BequestError, KeyError):
    """Nothing is published under this path. `Process.list` tells what is."""


class NotOwner(BequestError, PermissionError):
    """What is published there belongs to another process, which the message names."""


class TagTooLong(BequestError, ValueError):
    """The inline message that travels with a region is too long. Put it into the region."""


class BadSize(BequestError, ValueError):
    """A size is zero, negative or absurd."""


class BadConfig(BequestError, ValueError):
    """A flag or a line of the rack's TOML file is wrong; the message says which, and what would be right."""


class BadDirectory(BequestError, PermissionError):
    """The directory for racks, or one rack's, is not this user's own. Remove it, or name another one."""


class RegionSealed(BequestError, BufferError):
    """The region is sealed, and can only be read. `Region.unseal` it to write."""


class RegionFrozen(BequestError, BufferError):
    """The region is frozen, and can only be read. `Region.thaw` it to write, grant, split or merge it.

    From `Region.thaw` itself: somebody is reading it, whom the message names.
    """


class NotSealed(BequestError, ValueError):
    """There are no checksums of this memory, so nothing can be said of it. `Region.seal` has them made."""


class HeapMisuse(BequestError, ValueError):
    """What was asked of a heap makes no sense: the message says why. Nothing was changed."""


class UnknownActor(UnknownProcess):
    """No actor of this name runs in the group, or it has ended. Start it, or wait for it with `Ref.wait`."""


class UnknownMethod(BequestError, AttributeError):
    """The actor has no handler of this name; the message tells which it has."""


class NotSendable(BequestError, TypeError):
    """An argument or a result is of a kind that cannot travel in a message. Nothing was sent."""


# --- the peers' doing -------------------------------------------------------------------------------------


class ProcessDead(BequestError, ProcessLookupError):
    """The recipient has died or detached. The region is still the caller's."""


class InboxFull(BequestError, TimeoutError):
    """The recipient's inbox stayed full. What was not sent is still the caller's; ``granted`` regions have gone."""

    def __init__(self, message: str = "", granted: int = 0) -> None:
        super().__init__(message)
        self.granted = granted


class AcceptTimeout(BequestError, TimeoutError):
    """Nothing arrived in time."""


class CallTimeout(BequestError, TimeoutError):
    """An actor has not answered in time, or not handled what it was sent. It may do so yet, once."""


class RemoteError(BequestError, RuntimeError):
    """The handler of a call has raised, and its event has been undone. The call can be made again.

    ``kind`` is the name of the exception's class, ``remote_traceback`` its traceback as text.
    """

    def __init__(self, message: str = "", *, kind: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),), {"kind": self.kind, "remote_traceback": self.remote_traceback}


# --- faults of components ---------------------------------------------------------------------------------


class FenceFailed(BequestError, RuntimeError):
    """The victim could not be kept from its memory by the means that its group allows. Nothing was stolen."""


class MemoryLost(BequestError):
    """What `MemoryRevoked` and `MemoryFailure` have in common: memory of this process is not there any more.

    ``address`` is what was touched, or where the lost part begins; ``region`` the handle of the memory, or None if
    there is none (any more); ``nbytes`` its size; ``cause`` what happened, as in "was stolen by 'b'".

    They rise where a program asks for the memory (``memoryview(region)``, ``region.grant``), and where it touches it
    through a view that it has already, from inside NumPy or another C extension too. Then the native fault handler
    raises the class without arguments, in the thread that touched it, and it fills in the particulars itself. What
    was read of the memory in that call means nothing, and what was written to it is gone.
    """

    address: int | None
    region: RegionBase | None
    cause: str
    nbytes: int

    def __init__(
        self,
        message: str | None = None,
        *,
        address: int | None = None,
        region: RegionBase | None = None,
        cause: str = "",
        nbytes: int = 0,
    ) -> None:
        if message is None:
            fault = _core.take_fault()
            message = "memory of this process is gone"
            if fault is not None:
                message, address, region, cause, nbytes = fault
        super().__init__(message)
        self.address, self.region, self.cause, self.nbytes = address, region, cause, nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        # A region cannot go to another process with it.
        state = {"address": self.address, "region": None, "cause": self.cause, "nbytes": self.nbytes}
        return type(self), (str(self),), state


class MemoryRevoked(MemoryLost, BufferError):
    """The memory was stolen from this process: it has another owner, or is about to have. Go on without it.

    A BufferError, for that is what a view is that does not hold: the same call might succeed on other memory.
    """


class MemoryFailure(MemoryLost, OSError):
    """The memory has failed: its memory element has gone, or the hardware under it. What was in it is lost.

    An OSError with errno EIO, which is what reading from a failed disk is. The region can be freed; everything else
    that is done with it raises this again.
    """

    def __init__(self, message: str | None = None, **particulars: Any) -> None:
        super().__init__(message, **particulars)
        self.errno = errno.EIO


class ChecksumMismatch(MemoryFailure):
    """Sealed memory is not what it was when it was sealed. ``runs`` are its pages that differ: (address, bytes).

    The memory element takes them away, so that nobody goes on with them: from then on it is any other `MemoryFailure`.
    """

    def __init__(
        self, message: str | None = None, runs: Sequence[tuple[int, int]] = (), **particulars: Any
    ) -> None:
        super().__init__(message, **particulars)
        self.runs = list(runs)


class RackGone(BequestError, ConnectionError):
    """The rack has ended, and with it every region. Connect anew for a fresh rack."""


class ConnectionRefused(BequestError, ConnectionRefusedError):
    """A daemon of the rack is there, and takes no connection of this process, or of anybody: the message says why."""


class NoRack(BequestError, ConnectionError):
    """No rack runs under the name or directory asked for. Start one with ``bequest up``."""


class RackMemoryError(BequestError, MemoryError):
    """The memory asked for is not there. ``free`` tells what is: (element, free bytes, largest allocation)."""

    def __init__(self, message: str = "", free: Sequence[FreeMemory] = ()) -> None:
        super().__init__(message)
        self.free: list[FreeMemory] = list(free)


class AddressSpaceFull(RackMemoryError):
    """This process has used up its 64 GiB of rack addresses. Free regions that it allocated."""


class TooManyMappings(RackMemoryError):
    """Mapping more would hit the kernel's vm.max_map_count. Use fewer, larger regions, or raise it by sysctl."""


class HeapFull(RackMemoryError):
    """The heap has no room, and could not grow. The transaction under way can be aborted, and is if this leaves it."""


class CorruptHeap(BequestError, RuntimeError):
    """What lies in a heap contradicts itself: something else has written there, or the memory has gone bad.

    Also: there is no heap, or only a part of one. The message says what was found, and where.
    """


class ForeignHeap(BequestError, RuntimeError):
    """The heap was made by another version of Bequest, which writes another format. Open it with that one."""


class VersionMismatch(BequestError, ConnectionError):
    """The library and the rack's daemons speak different versions. Restart the rack with this library."""


class UnsupportedPlatform(BequestError, OSError):
    """The kernel or machine lacks something Bequest needs. ``bequest doctor`` says what."""


class RackFault(BequestError, RuntimeError):
    """A daemon could not make sense of a request, or failed over it. Its log tells more; please report it."""


FAILURE_KINDS: dict[str, type[BequestError]] = {
    "moved": RegionMoved,
    "not-attached": NotAttached,
    "name-taken": NameTaken,
    "bad-name": BadName,
    "unknown": UnknownProcess,
    "secret": WrongSecret,
    "tag": TagTooLong,
    "size": BadSize,
    "config": BadConfig,
    "dead": ProcessDead,
    "inbox-full": InboxFull,
    "memory": RackMemoryError,
    "address-space": AddressSpaceFull,
    "version": VersionMismatch,
    "refused": ConnectionRefused,
    "protocol": RackFault,
    "capability": WrongCapability,
    "no-name": UnknownName,
    "not-owner": NotOwner,
    "fence": FenceFailed,
}


def from_failure(kind: str, message: str, free: Sequence[FreeMemory] = ()) -> BequestError:
    """The exception for a daemon's ``Failed(kind, message, free)``."""
    error = FAILURE_KINDS.get(kind, RackFault)
    if issubclass(error, RackMemoryError):
        return error(message, free)
    return error(message)
