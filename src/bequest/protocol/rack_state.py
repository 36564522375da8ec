"""What the parts of the Rack MMU share: its configuration, its books, and the outputs of the present input."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bequest.errors import FreeMemory
from bequest.ids import GroupId
from bequest.limits import HUGE_PAGE_BYTES, ORPHAN_KEEP
from bequest.protocol.address_plan import AddressPlan
from bequest.protocol.books import Books, Row
from bequest.protocol.clients import Caller, Clients, Session
from bequest.protocol.groups import Group, Groups
from bequest.protocol.outputs import DropTable, GoOn, Output, PeerId, Reply, ToElement
from bequest.protocol.owed_notices import OwedNotices
from bequest.protocol.process_table import ProcessTable
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard, ShardMaker
from bequest.protocol.slab_ledger import SlabLedger
from bequest.wire import messages as wire

__all__ = ["ElementInfo", "MmuConfig", "RackState", "Session"]


class ElementInfo(msgspec.Struct, frozen=True):
    """A memory element as configured. ``path`` is its socket's name in the rack's directory."""

    id: int
    name: str
    kind: str
    size: int
    path: str


class MmuConfig(msgspec.Struct, frozen=True):
    name: str
    uid: int
    elements: tuple[ElementInfo, ...]
    computes: tuple[str, ...]
    agent_paths: tuple[str, ...]
    policy: str = "best-fit"
    orphan_keep: float = ORPHAN_KEEP
    linger: float | None = None  # an embedded rack ends so long after its last client
    started: float | None = None  # when the rack was, which may be long before this run of the Rack MMU


class FailedElement(Row):
    """A memory element that has lost all of its memory, for good."""

    id: int
    cause: str


class SilentElement(Row):
    """A memory element that does not answer, and for how long when that was seen; its owners have been told."""

    id: int
    seconds: float


class RackState:
    def __init__(
        self, config: MmuConfig, make_shard: ShardMaker, fresh_bytes: Callable[[int], bytes]
    ) -> None:
        self.config = config
        self.fresh_bytes = fresh_bytes
        self.elements = {element.id: element for element in config.elements}
        self.usage = {element.id: wire.ElementUsage() for element in config.elements}
        self.books = Books()
        self.groups = Groups(self.books, make_shard, fresh_bytes)
        self.processes = ProcessTable(self.books)
        self.notices = OwedNotices(self.books, self.processes)
        self.ledger = SlabLedger(self.books, [element.id for element in config.elements])
        self.failed_elements = self.books.open("failed elements", FailedElement, int)
        self.silent_elements = self.books.open("silent elements", SilentElement, int)
        self.plan = AddressPlan()
        self.clients = Clients(self.books)
        self.daemons: dict[tuple[str, str], wire.DaemonReport] = {}  # by kind and name
        self.outputs: list[Output] = []
        self._later: list[Callable[[], object]] = []

    @property
    def sessions(self) -> dict[PeerId, Session]:
        return self.clients.sessions

    # --- outputs -------------------------------------------------------------------------------------------

    def take_outputs(self) -> list[Output]:
        outputs, self.outputs = self.outputs, []
        return [*outputs, GoOn()] if self._later else outputs

    def later(self, act: Callable[[], object]) -> None:
        """Does this when what has been decided is written down: for what a table alone could not explain later."""
        self._later.append(act)

    def go_on(self) -> None:
        acts, self._later = self._later, []
        for act in acts:
            act()

    def reply(self, peer: PeerId, message: wire.Message, table: GroupId | None = None) -> None:
        """Answers, unless the client has gone meanwhile."""
        session = self.sessions.get(peer)
        if session is not None:
            if session.number:
                self.clients.note_answer(self.clients.caller(session), message)
                session.number = 0
            self.outputs.append(Reply(peer, message, table))

    def answer(self, caller: Caller, message: wire.Message) -> None:
        """Answers a request that may be older than the client's connection, or than this run of the daemon."""
        if not caller.number:
            self.reply(caller.peer, message)
            return
        self.clients.note_answer(caller, message)
        process = self.processes.exact(caller.process, caller.incarnation)
        session = None if process is None or process.peer is None else self.sessions.get(process.peer)
        if session is not None and session.number == caller.number:
            session.number = 0
            self.outputs.append(Reply(session.peer, message))

    def refuse(self, peer: PeerId, refusal: Refusal) -> None:
        self.reply(peer, refusal.reply())

    def tell_element(self, element: int, message: wire.Message) -> None:
        self.outputs.append(ToElement(element, message))

    # --- groups --------------------------------------------------------------------------------------------

    def announce_group(self, group: Group) -> None:
        for element in self.elements:
            self.tell_element(element, wire.AdmitGroup(group.id, group.ticket))

    def forget_group_if_over(self, group: Group) -> bool:
        if group.is_default or group.creator is not None:
            return False
        if self.processes.any_in(group.id) or self.ledger.any_in(group.id):
            return False
        self.groups.forget(group.id)
        for element in self.elements:
            self.tell_element(element, wire.ForgetGroup(group.id))
        self.outputs.append(DropTable(group.id))
        return True

    def shard_of(self, group: GroupId) -> Shard:
        return self.groups[group].shard

    # --- memory --------------------------------------------------------------------------------------------

    def free_bytes(self, element: int) -> int:
        if element in self.failed_elements:
            return 0
        return self.elements[element].size - self.ledger.used(element)

    def free_memory(self) -> list[FreeMemory]:
        free = ((element.name, self.free_bytes(element.id)) for element in self.elements.values())
        return [(name, nbytes, nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES) for name, nbytes in free]
