"""What must hold in the simulated rack, whatever happens. The checkers know nothing of how the rack does it.

They look at the tables (the truth about ownership), at the files (the truth about contents), and at what processes do
and see. Only the last one, which asks whether an empty rack is as good as new, opens the machines' own books.
"""

from __future__ import annotations

from collections.abc import Iterator

from bequest.limits import PAGE_BYTES
from bequest.protocol.status_desk import look_through
from bequest.sim import Finding, Observer, World
from bequest.sim.daemon import Daemon
from bequest.sim.fake_shard import FREE, OWNED, home
from bequest.sim.file import SimFile
from bequest.sim.library import Handle, Library
from bequest.sim.mmu import Mmu
from bequest.sim.os_process import OpenRun, OsProcess
from bequest.wire import messages as wire


def require(condition: object, text: str) -> None:
    if not condition:
        raise Finding(text)


class Attachments(Observer):
    """Knows who is attached where."""

    def begun(self, world: World) -> None:
        self.world = world
        self.libraries: dict[OsProcess, Library] = {}

    def attached(self, process: OsProcess, library: Library) -> None:
        self.libraries[process] = library

    def table_of(self, process: OsProcess):
        return self.libraries[process].table


class OwnershipIsAPartition(Attachments):
    """Every page of every slab has exactly one owner, who is (or was) somebody."""

    def turn_ended(self, daemon: Daemon) -> None:
        if isinstance(daemon, Mmu):
            for table in daemon.tables.values():
                self._check(table)

    def ended(self, world: World) -> None:
        for table in world.mmu.tables.values():
            self._check(table)

    def _check(self, table) -> None:
        ends = {address: address + pages * PAGE_BYTES for address, pages, *_ in table.records.values()}
        covered = {address: address for address in ends}
        for extent in sorted(table.extents.values(), key=lambda extent: extent.address):
            slab = table.records.get(extent.slab)
            if slab is None or covered[slab[0]] != extent.address:
                raise Finding(f"{extent} lies in no slab, or does not follow its neighbour: {covered}")
            covered[slab[0]] = extent.address + extent.pages * PAGE_BYTES
            if extent.state == FREE and extent.owner != home(extent.address):
                raise Finding(f"{extent} is free, but not at home")
        require(covered == ends, f"pages without an owner: {covered} instead of {ends}")


class NoZombieWrites(Attachments):
    """A store lands only in memory that is its process's own at that instant, and in the file that holds it."""

    def stored(self, process: OsProcess, address: int, file: SimFile, page: int, stamp: int) -> None:
        library = self.libraries[process]
        extent = library.table.owner_of(address)
        require(extent is not None, f"{process!r} wrote to {address:#x}, where there is no memory")
        is_own = (extent.state, extent.owner) == (OWNED, library.id)
        require(
            is_own, f"a zombie write: {process!r} (id {library.id}) wrote to {address:#x}, which is {extent}"
        )
        life = library.table.lives[library.id][1]
        require(life == library.attached.incarnation, f"{process!r} wrote as an earlier bearer of its id")
        self._check_file(library, extent.slab, address, file, page)

    def _check_file(self, library: Library, slab: int, address: int, file: SimFile, page: int) -> None:
        base, _, element, *_ = library.table.records[slab]
        require(page == (address - base) // PAGE_BYTES, f"{address:#x} shows page {page} of its slab")
        held = [number for number, about in self.world.element(element).safe.items() if about.slab == slab]
        is_held = held == [file.number] and not file.is_closed
        require(is_held, f"{address:#x} shows file {file.number}, but its memory is in {held}")


class OneHand(Attachments):
    """No two living processes have one page open, not even when one of them is stopped."""

    def opened(self, process: OsProcess, library: Library, handle: Handle) -> None:
        for other in self.libraries:
            if other is not process and other.is_alive:
                for mine, theirs in pairs_in_one_file(process, other):
                    raise Finding(f"{process!r} has {mine} open, while {other!r} has {theirs}")


def pairs_in_one_file(one: OsProcess, other: OsProcess) -> Iterator[tuple[object, object]]:
    for mine in one.open_runs:
        for theirs in other.open_runs:
            if mine.file is theirs.file and mine.page < last_page(theirs) and theirs.page < last_page(mine):
                yield mine, theirs


def last_page(run: OpenRun) -> int:
    return run.page + (run.end - run.start) // PAGE_BYTES


class ContentsStay(Attachments):
    """What was written last by its owner is what is read, by whoever owns it now."""

    def begun(self, world: World) -> None:
        super().begun(world)
        self.book: dict[tuple[int, int], int] = {}  # (group, address) -> the stamp written last
        self.sent: dict[int, dict[int, int]] = {}  # grant -> address -> stamp

    def allocated(self, process: OsProcess, library: Library, handle: Handle) -> None:
        self._forget(library.table.group_id, handle)

    def granting(self, process: OsProcess, library: Library, handle: Handle, serial: int) -> None:
        group = library.table.group_id
        keys = ((group, address) for address in handle.samples)
        self.sent[serial] = {
            address: self.book[group, address] for group, address in keys if (group, address) in self.book
        }

    def received(self, process: OsProcess, library: Library, handle: Handle, serial: int) -> None:
        self._forget(library.table.group_id, handle)
        for address, stamp in self.sent.pop(serial).items():
            self.book[library.table.group_id, address] = stamp

    def stored(self, process: OsProcess, address: int, file: SimFile, page: int, stamp: int) -> None:
        self.book[self.libraries[process].table.group_id, address] = stamp

    def loaded(self, process: OsProcess, library: Library, address: int, stamp: int) -> None:
        written = self.book.get((library.table.group_id, address), stamp)
        require(
            stamp == written, f"{process!r} reads store {stamp} at {address:#x}; store {written} was the last"
        )

    def _forget(self, group: int, handle: Handle) -> None:
        for address in range(handle.address, handle.end, PAGE_BYTES):
            self.book.pop((group, address), None)


class AddressesAreForLife(Observer):
    """Nobody gets an id whose addresses are still borne by memory."""

    def attached(self, process: OsProcess, library: Library) -> None:
        for table in library.world.mmu.tables.values():
            for slab, (_, _, _, _, at) in table.records.items():
                require(
                    at != library.id, f"{process!r} became {library.id}, at whose addresses slab {slab} lies"
                )


class NothingIsTakenForNothing(Attachments):
    """Nobody loses a region unless somebody stole it."""

    def lost(self, process: OsProcess, library: Library, handle: Handle) -> None:
        life = library.id, library.attached.incarnation
        taken = library.table.taken.get(life, [])
        was_stolen = any(start <= handle.address < end for start, end in taken)
        require(was_stolen, f"{process!r} has lost {handle}, and nobody stole it")


class DeathsAreTold(Attachments):
    """Whoever has subscribed is told of each death in its group, once, of no other, and in time if it lives on."""

    def begun(self, world: World) -> None:
        super().begun(world)
        self.since: dict[OsProcess, float] = {}  # when it subscribed
        self.left: dict[OsProcess, float] = {}
        self.dead: dict[tuple[int, int], tuple[OsProcess, float]] = {}
        self.heard: dict[OsProcess, list[tuple[int, int]]] = {}
        self.called: dict[OsProcess, list[tuple[int, int]]] = {}

    def subscribed(self, process: OsProcess, library: Library) -> None:
        self.since[process] = self.world.events.now

    def detaching(self, process: OsProcess, library: Library) -> None:
        self.left.setdefault(process, self.world.events.now)

    def process_ended(self, process: OsProcess) -> None:
        library = self.libraries.get(process)
        if library is not None and library.attached is not None and process not in self.left:
            key = (library.id, library.attached.incarnation)
            self.dead[key] = process, self.world.events.now
        self.left.setdefault(process, self.world.events.now)

    def told(self, process: OsProcess, library: Library, notice: wire.Message) -> None:
        match notice:
            case wire.NoticeDied(_, pid, incarnation):
                heard = self.heard.setdefault(process, [])
                require((pid, incarnation) not in heard, f"{process!r} is told twice: {notice}")
                heard.append((pid, incarnation))
            case wire.NoticeContact(_, pid, incarnation, "died"):
                self.called.setdefault(process, []).append((pid, incarnation))

    def ended(self, world: World) -> None:
        for key, (victim, at) in self.dead.items():
            there = [process for process in self.since if self._is_there(process, victim, at)]
            for process in there:
                is_told = key in self.heard.get(process, [])
                require(is_told, f"{process!r} was never told that {victim!r} {key} has died")
            self._check_contacts(victim, key, there)

    def _is_there(self, process: OsProcess, victim: OsProcess, at: float) -> bool:
        is_in_time = self.since[process] < at and self.left[process] > max(at, self.world.healed_at) + IN_TIME
        return is_in_time and process is not victim and self.table_of(process) is self.table_of(victim)

    def _check_contacts(self, victim: OsProcess, key: tuple[int, int], there: list[OsProcess]) -> None:
        """Those are called that its agent has confirmed; or those it was asking for when it died."""
        library = self.libraries[victim]
        owed = [process for process in there if self._is_owed_a_call(process, library, key)]
        choices = (
            [library.contacts]
            if library.contacts_asked is None
            else [library.contacts, library.contacts_asked]
        )
        uncalled = [[process for process in owed if process.name in names] for names in choices]
        require(not all(uncalled), f"{uncalled}, contacts of {victim!r} {key}, were never called")

    def _is_owed_a_call(self, process: OsProcess, library: Library, key: tuple[int, int]) -> bool:
        """What was on its way over a connection that was cut is lost, as its process is told (`EventsDropped`)."""
        is_near = self.libraries[process].attached_at == library.attached_at
        is_reached = not process.was_cut_off and (is_near or not self.world.daemons_die)
        return is_reached and key not in self.called.get(process, [])


IN_TIME = 0.5  # seconds, after the last fault


class ThievesAreInTheBook(Observer):
    """Every steal is in the book of attempts, and none is left open."""

    def begun(self, world: World) -> None:
        self.stolen: list[tuple[str, int]] = []

    def stole(self, process: OsProcess, library: Library, stolen: wire.Stolen) -> None:
        self.stolen.append((process.name, stolen.incarnation))

    def ended(self, world: World) -> None:
        attempts = list(world.mmu.machine._steals.book._attempts)
        open_ones = [attempt for attempt in attempts if attempt.outcome == "under way"]
        require(not open_ones, f"these steals never ended: {open_ones}")
        written = [
            (attempt.thief, attempt.incarnation) for attempt in attempts if attempt.outcome == "stolen"
        ]
        for steal in self.stolen:
            require(steal in written, f"{steal} has stolen, and is not in the book")
            written.remove(steal)


class SuspectsWereSilent(Observer):
    """Only a process that is stopped or dead is suspected."""

    def suspected(self, process: OsProcess) -> None:
        require(process.is_stopped or not process.is_alive, f"{process!r} runs, and is suspected")


class AsGoodAsNew(Observer):
    """When all have gone: no id, name, address, byte or file is held, and the books agree."""

    def ended(self, world: World) -> None:
        books = world.mmu.machine._state
        require(not list(books.processes), f"ids are stuck: {list(books.processes)}")
        require(not list(books.ledger), f"slabs are stuck: {list(books.ledger)}")
        require(all(group.is_default for group in books.groups), "groups are stuck")
        require(not books.plan._runs, f"addresses are stuck: {books.plan._runs}")
        require(not books.sessions, f"sessions are stuck: {books.sessions}")
        for table in world.mmu.tables.values():
            require(
                not table.extents and not table.lives,
                f"the table still has {table.extents} and {table.lives}",
            )
        for element in world.elements.values():
            require(not element.machine._slabs, f"{element.name} still holds {element.machine._slabs}")
            require(books.ledger.used(element.info.id) == 0, f"{element.name} is still charged for memory")
        for agent in world.agents.values():
            require(not agent.machine._processes, f"{agent.name} still knows {agent.machine._processes}")
        self._ask_for_everything(world)

    def _ask_for_everything(self, world: World) -> None:
        """A newcomer may have a name that was in use, and a group that was."""
        machine, now = world.mmu.machine, world.events.now
        machine.client_opened(-1, 1000, 1)
        (*_, reply) = machine.client_message(-1, wire.Attach(world.members[0]), now)
        require(isinstance(reply.message, wire.Attached), f"a newcomer is refused: {reply.message}")
        (asked,) = machine.client_message(-1, wire.Status("audit"), now)
        (reply,) = machine.looked_through(asked, look_through(world.mmu.tables, asked))
        require(not reply.message.findings, f"the books disagree: {reply.message.findings}")


def all_checkers() -> list[Observer]:
    return [
        OwnershipIsAPartition(),
        NoZombieWrites(),
        OneHand(),
        ContentsStay(),
        AddressesAreForLife(),
        NothingIsTakenForNothing(),
        DeathsAreTold(),
        ThievesAreInTheBook(),
        SuspectsWereSilent(),
        AsGoodAsNew(),
    ]
