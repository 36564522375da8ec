"""Every message of the control plane.

One message is one packet of a ``SOCK_SEQPACKET`` socket: a msgpack map tagged with the name of its struct. A client
says `Hello` first and gets `Welcome`; from then on it sends one request at a time and gets exactly one reply, the one
named beside the request here or `Failed`. Requests to the Rack MMU, to memory elements and to agents are separate
unions, so that a message at the wrong socket is garbage there. Messages of one subject may have a file of their own;
all are to be had here. Daemons of one rack talk over links made before they
were forked, without requests and replies: what is said over a link arrives in order, once.

File descriptors ride along where it is said: the group's table with `Attached`, the slab's memory with `SlabOpened`.
"""

from __future__ import annotations

import msgspec

from bequest.wire.failures import *
from bequest.wire.message import Message as Message
from bequest.wire.message import Nonce
from bequest.wire.resuming import ComeBack as ComeBack
from bequest.wire.resuming import Resume as Resume
from bequest.wire.resuming import Resumed as Resumed
from bequest.wire.sealing import *
from bequest.wire.slabs import AdmitGroup as AdmitGroup
from bequest.wire.slabs import AdoptSlab as AdoptSlab
from bequest.wire.slabs import AnnouncementEnds as AnnouncementEnds
from bequest.wire.slabs import CopyFailed as CopyFailed
from bequest.wire.slabs import CopyPages as CopyPages
from bequest.wire.slabs import ElementReport as ElementReport
from bequest.wire.slabs import ElementUsage as ElementUsage
from bequest.wire.slabs import ForgetGroup as ForgetGroup
from bequest.wire.slabs import PagesCopied as PagesCopied
from bequest.wire.slabs import PagesPunched as PagesPunched
from bequest.wire.slabs import PunchPages as PunchPages
from bequest.wire.slabs import RegroupSlab as RegroupSlab
from bequest.wire.slabs import ReserveSlab as ReserveSlab
from bequest.wire.slabs import RetireSlab as RetireSlab
from bequest.wire.slabs import SlabLost as SlabLost
from bequest.wire.slabs import SlabRefused as SlabRefused
from bequest.wire.slabs import SlabRegrouped as SlabRegrouped
from bequest.wire.slabs import SlabReserved as SlabReserved
from bequest.wire.stealing import FenceFailed as FenceFailed
from bequest.wire.stealing import FenceLifted as FenceLifted
from bequest.wire.stealing import FenceProcess as FenceProcess
from bequest.wire.stealing import Found as Found
from bequest.wire.stealing import LiftFence as LiftFence
from bequest.wire.stealing import ListNames as ListNames
from bequest.wire.stealing import Lookup as Lookup
from bequest.wire.stealing import NameHeir as NameHeir
from bequest.wire.stealing import NameList as NameList
from bequest.wire.stealing import ProcessFenced as ProcessFenced
from bequest.wire.stealing import Publish as Publish
from bequest.wire.stealing import Published as Published
from bequest.wire.stealing import Steal as Steal
from bequest.wire.stealing import Stolen as Stolen
from bequest.wire.stealing import Theft as Theft
from bequest.wire.stealing import TheftList as TheftList
from bequest.wire.stealing import Unpublish as Unpublish

# --- everywhere -------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """The first message of every client. Its shape never changes, so that a mismatch can always be told."""

    version: int
    table_version: int


class Welcome(Message, frozen=True):
    rack: str
    role: str
    generation: int = 0  # of this daemon: 1, and one more with each restart
    client: int = 0  # this connection's number: never another's, in any run of the daemon


class Sync(Message, frozen=True):
    """-> Synced. From a client that was interrupted and no longer knows which replies it is still owed."""

    number: int


class Synced(Message, frozen=True):
    number: int


class Done(Message, frozen=True):
    """It was done, and there is nothing to tell about it."""


class Failed(Message, frozen=True):
    """It was not done, and nothing has changed. ``kind`` is a key of `bequest.errors.FAILURE_KINDS`."""

    kind: str
    message: str
    free: list[tuple[str, int, int]] = []  # with memory trouble: (element, free bytes, largest allocation)


# --- client to Rack MMU -----------------------------------------------------------------------------------


class CreateGroup(Message, frozen=True):
    """-> GroupCreated. The group lives while this connection does, or anything is in it.

    ``policy`` says who may steal in it (never, member, standby, quorum), ``fence`` how far a victim's agent may go to
    keep it from its memory (protect, ptrace, kill). ``verifier`` is the SHA-256 of the capability that a thief shows.
    A client that repeats the request, because it lost the reply, repeats ``nonce``: it gets the same group, and a new
    secret, for nobody has seen the first.
    """

    name: str
    policy: str = "member"
    fence: str = "ptrace"
    verifier: bytes | None = None
    nonce: Nonce = b""


class GroupCreated(Message, frozen=True):
    name: str
    secret: bytes


class Attach(Message, frozen=True):
    """-> Attached, with the group's table as file descriptor. One process per connection.

    Without a secret: the default group of the connection's user. Without a compute element: the rack places it.
    ``heir`` as in NameHeir. A client that repeats the request, because it lost the reply, repeats ``nonce``.
    """

    name: str
    secret: bytes | None = None
    compute: str | None = None
    heir: str | None = None
    nonce: Nonce = b""


class ElementAddress(msgspec.Struct, frozen=True):
    """Where a memory element listens: a socket's name in the rack's directory."""

    id: int
    name: str
    kind: str
    path: str


class Attached(Message, frozen=True):
    pid: int
    incarnation: int
    group: int
    group_name: str
    compute: str
    agent_path: str
    agent_ticket: bytes
    elements: list[ElementAddress]
    element_ticket: bytes


class Detach(Message, frozen=True):
    """-> Done. Everything the process still owns or was sent is freed at once."""


class NeedSlab(Message, frozen=True):
    """-> SlabReady; the slab is in the table by then, free, at the asking process's addresses.

    ``element`` names the only memory element that will do, ``policy`` how to choose one: best-fit, worst-fit, spread.
    """

    pages: int
    huge: bool = False
    element: str | None = None
    policy: str | None = None


class SlabReady(Message, frozen=True):
    slab: int


class FindPeer(Message, frozen=True):
    """-> PeerFound. Looks for an attached process anywhere in the rack, then for a mailbox of the own group."""

    name: str


class PeerFound(Message, frozen=True):
    pid: int
    incarnation: int
    same_group: bool


class CrossGrant(Message, frozen=True):
    """-> CrossGranted. Grants an extent, whose owner word is ``word``, to a process of another group.

    The sender has revoked its own mapping before. Should this fail, the extent is the sender's again, but under a new
    owner word, which is to be read from the table.
    """

    descriptor: int
    word: int
    to: int
    incarnation: int
    tag: bytes = b""


class CrossGranted(Message, frozen=True):
    copied_bytes: int  # 0 when the whole slab moved


class OpenMailbox(Message, frozen=True):
    """-> MailboxOpened. Without a name the rack makes one up. Freed when its last opener has closed it or gone."""

    name: str | None = None
    create: bool = False


class MailboxOpened(Message, frozen=True):
    id: int
    incarnation: int
    name: str


class CloseMailbox(Message, frozen=True):
    """-> Done."""

    id: int


class PlaceProcess(Message, frozen=True):
    """-> Placed: the compute element that the rack would choose for the next process."""


class Placed(Message, frozen=True):
    compute: str


class Shutdown(Message, frozen=True):
    """-> Done, and then the rack ends, with everything in it."""


# --- status: plain data for the command line --------------------------------------------------------------


class Status(Message, frozen=True):
    """-> RackReport, ProcessList, ElementList, SlabList, AuditReport or TheftList.

    ``what`` is "rack", "processes", "elements", "slabs", "audit" or "thefts". Lists come in pages: ask again with the
    ``next_cursor`` of the last reply until it is None.
    """

    what: str
    cursor: int = 0


class DaemonReport(msgspec.Struct, frozen=True):
    kind: str  # mmu, element, agent or monitor
    name: str
    os_pid: int
    restarts: int


class RackReport(Message, frozen=True):
    name: str
    uid: int
    daemons: list[DaemonReport]
    uptime: float
    policy: str
    orphan_keep: float
    embedded: bool
    wire_version: int
    table_version: int
    groups: list[str]
    computes: dict[str, int]  # compute element -> processes attached there
    clients: int
    slabs: int
    extents: int
    slab_bytes: int


class ProcessReport(msgspec.Struct, frozen=True):
    id: int
    name: str
    group: str
    compute: str
    os_pid: int
    state: str  # attached, lost (connection gone, still running), orphaned, gone (freed, but its addresses are in use)
    kind: str  # process or mailbox
    extents: int
    owned_bytes: int  # regions, and what is on its way to it
    free_bytes: int  # cached at home for its next allocations
    inbox_depth: int
    counters: dict[str, int]
    freed_in: float | None = None  # seconds until an orphan's memory is freed


class ProcessList(Message, frozen=True):
    processes: list[ProcessReport]
    next_cursor: int | None = None


class ElementStatus(msgspec.Struct, frozen=True):
    id: int
    name: str
    kind: str
    size: int
    used: int
    free: int
    slabs: int
    usage: ElementUsage
    state: str = "well"  # or failed (it has lost all of its memory), silent (it does not answer)
    failed: int = 0  # bytes of its slabs that have lost their memory


class ElementList(Message, frozen=True):
    elements: list[ElementStatus]


class SlabRun(msgspec.Struct, frozen=True):
    pages: int
    state: str  # free, owned, in-flight, frozen, away
    owner: int


class SlabStatus(msgspec.Struct, frozen=True):
    slab: int
    group: str
    element: str
    home: int
    address: int
    pages: int
    huge: bool
    extents: int
    free_pages: int
    free_runs: int
    largest_free_run: int
    owners: list[tuple[int, int]]  # (id, pages), ordered by id
    runs: list[SlabRun]  # neighbours of one owner joined; the first few only
    failed: int = 0  # bytes that have lost their memory


class SlabList(Message, frozen=True):
    slabs: list[SlabStatus]
    next_cursor: int | None = None


class AuditReport(Message, frozen=True):
    """Empty findings: every page of every slab has exactly one owner, and the daemons' books agree with the table."""

    findings: list[str]
    groups: int
    slabs: int


# --- client to agent --------------------------------------------------------------------------------------


class Enrol(Message, frozen=True):
    """-> Enrolled. From now on the agent watches this process; the connection stays open for its life.

    With the userfaultfd by which it can be fenced as file descriptor, or none where the kernel refuses that.
    """

    ticket: bytes


class Enrolled(Message, frozen=True):
    pid: int


# --- client to memory element -----------------------------------------------------------------------------


class OpenSlab(Message, frozen=True):
    """-> SlabOpened, with the slab's memory as file descriptor, for whoever shows the ticket of its group."""

    ticket: bytes
    slab: int


class SlabOpened(Message, frozen=True):
    """``failed``: (offset, bytes) that have lost their memory, and read as zeros in the file; not to be mapped."""

    slab: int
    nbytes: int
    failed: list[tuple[int, int]] = []


# --- Rack MMU to agent, and back --------------------------------------------------------------------------


class ExpectProcess(Message, frozen=True):
    pid: int
    incarnation: int
    os_pid: int
    ticket: bytes
    name: str = ""
    group: int = 0


class ForgetProcess(Message, frozen=True):
    pid: int
    incarnation: int


class ProcessEnrolled(Message, frozen=True):
    pid: int
    incarnation: int


class ProcessLost(Message, frozen=True):
    """Its connection is gone, but it runs: it may still touch what it owns."""

    pid: int
    incarnation: int


class ProcessExited(Message, frozen=True):
    """The kernel says that it has gone: nothing of it will ever run again. Said again until ForgetProcess comes."""

    pid: int
    incarnation: int


MmuRequest = (
    CreateGroup
    | Attach
    | Detach
    | NeedSlab
    | FindPeer
    | CrossGrant
    | OpenMailbox
    | CloseMailbox
    | PlaceProcess
    | Steal
    | NameHeir
    | Publish
    | Unpublish
    | Lookup
    | ListNames
    | Status
    | Shutdown
    | StandBy
    | StandDown
    | BreakMemory
    | FlipBit
    | ReportFailure
    | Resume
    | ComeBack
)


class Once(Message, frozen=True):
    """-> the reply to ``request``, which is carried out once, however often it comes under this number.

    Numbers are the attached process's own, and grow. A number that was answered gets the same answer again.
    """

    number: int
    request: MmuRequest


ClientToMmu = Hello | Sync | MmuRequest
MmuSocket = ClientToMmu | Once
ClientToAgent = Hello | Sync | Enrol | Subscribe | SetContacts | HandleFailures | Handled
ClientToElement = Hello | Sync | OpenSlab | SealPages | VerifyPages | UnsealPages
DaemonToClient = (
    Welcome
    | Synced
    | Done
    | Failed
    | GroupCreated
    | Attached
    | SlabReady
    | PeerFound
    | CrossGranted
    | MailboxOpened
    | Placed
    | RackReport
    | ProcessList
    | ElementList
    | SlabList
    | AuditReport
    | Stolen
    | Found
    | NameList
    | TheftList
    | Resumed
    | Enrolled
    | SlabOpened
    | StandingBy
    | MemoryBroken
    | PagesSealed
    | PagesVerified
    | Subscribed
    | Notice
)
MmuToElement = (
    AdmitGroup
    | ForgetGroup
    | AdoptSlab
    | AnnouncementEnds
    | ReserveSlab
    | RetireSlab
    | RegroupSlab
    | CopyPages
    | PunchPages
    | FailMemory
    | ForgetSums
    | FlipBitOf
)
ElementToMmu = (
    SlabReserved
    | SlabRefused
    | SlabRegrouped
    | SlabLost
    | PagesCopied
    | CopyFailed
    | PagesPunched
    | ElementReport
    | MemoryFailed
    | FailureMade
    | PagesDiffer
    | BitFlipped
)
MmuToAgent = (
    ExpectProcess
    | ForgetProcess
    | AnnouncementEnds
    | ContactsCalled
    | FenceProcess
    | LiftFence
    | ProveDeath
    | TellProcess
    | TellGroup
    | GuardRange
)
AgentToMmu = (
    ProcessEnrolled
    | ProcessLost
    | ProcessExited
    | ProcessTold
    | ProcessFenced
    | FenceFailed
    | FenceLifted
    | CallContacts
    | RangeGuarded
)
MmuToMonitor = WatchProcess | UnwatchProcess
ClientToMonitor = Hello | Sync
MonitorToMmu = DeathHint | Suspicion | Cleared | ElementSilent | ElementBack
