"""An attached process: it allocates, grants and accepts.

What happens per grant happens in native code and shared memory, without any daemon (DESIGN: a slow control plane, a
fast data plane). This file is the thin way in, and the slow paths: asking the Rack MMU for a slab, looking a peer up,
granting to another group. A process has one attachment for each rack name it bears; threads may share it.
"""

from __future__ import annotations

import atexit
import contextlib
import operator
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bequest._core import ANY_ELEMENT, Lifeline, pass_raw_memory_signals, report_hardware_errors_to
from bequest.errors import (
    BadConfig,
    BadName,
    BadSize,
    InboxFull,
    NotAttached,
    ProcessDead,
    RackGone,
    RackMemoryError,
    RegionMoved,
    TagTooLong,
    UnknownProcess,
)
from bequest.ids import check_name
from bequest.limits import (
    HUGE_PAGE_BYTES,
    INBOX_CELLS,
    LARGE_REGION_BYTES,
    MIB,
    PAGE_BYTES,
    PROCESS_SPACE_BYTES,
    TAG_BYTES_MAX,
)
from bequest.memory.connections import Connections, expect
from bequest.memory.estate import Estate, steal
from bequest.memory.events import Events
from bequest.memory.frozen import Frozen, Reading, read
from bequest.memory.inbox import RACK_CHECK_INTERVAL, Inbox, as_nanoseconds
from bequest.memory.names import Names
from bequest.memory.notices import Handler, Notices
from bequest.memory.region import Region
from bequest.memory.standby import Standby, Then
from bequest.memory.watchdog import Watchdog, Watchdogs
from bequest.protocol.placement import POLICIES
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_SPIN = 50e-6  # seconds a receiver spins before it sleeps: about what a wake-up costs
_DONE, _FULL, _DEAD, _LOST = range(4)  # GrantStatus in native/attachment.hpp
_SLAB_BYTES_MAX, _SLAB_SHARES = 32 * MIB, {False: 8, True: 32}  # of what was asked for before, by kind
_ABSURD_BYTES = 1 << 52  # as much as a slab request can speak of
_PEER_POLL = 0.002  # seconds between looks for a process that is still starting: attaching takes as long
_ASYNC_POLL = 0.0005  # seconds between looks at a full inbox, from asyncio


class Peer(NamedTuple):
    """An inbox in the rack, and the life of its owner that was meant."""

    id: int
    incarnation: int
    same_group: bool


class Process(Names):
    """This operating-system process, attached to a rack under a name. From `Rack.attach`; a context manager.

    ``name``, ``group`` and ``compute`` tell how it was attached, ``id`` is its process id in the rack.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        secret: bytes | None,
        compute: str | None,
        spin: float,
        heir: str | None = None,
    ) -> None:
        if spin < 0:
            raise ValueError(f"a process cannot spin for {spin} s; 0 sleeps at once")
        links = Connections(directory, name, secret, compute, heir)
        try:
            super().__init__(links.table, links.attached.pid, links.rack, links.open_slab, Region, spin)
            self._lifeline = Lifeline(links.table, links.attached.pid)
            self._watchdogs = Watchdogs(self._lifeline)
        except BaseException:
            links.leave()
            raise
        self.name = name
        self.group = links.attached.group_name
        self.compute = links.attached.compute
        self._links = links
        self._rack = links.rack  # which `Frozen` compares
        self._peers: dict[str, Peer] = {}
        self._slab_bytes = {False: 0, True: 0}  # asked for so far, by kind; slabs grow with it
        self.inbox = Inbox(self)
        self._notices = Notices(name, links)
        self._before_leaving: list[Callable[[], None]] = []  # for whoever has something to bring to its end
        _attached.append(weakref.ref(self))
        if len(_exit_calls) == 0:
            run_at_exit(_detach_at_exit)

    @property
    def counters(self) -> dict[str, int]:
        """What this process has done since it attached.

        grants, granted_bytes, accepts, allocs and frees; reads and read_bytes of what others keep frozen; steals; and
        resumes: how often it has gone on with what another had half done, an actor or a task of Dask's.
        """
        return self.table.counters(self.id)

    # --- memory ----------------------------------------------------------------------------------------------------

    def alloc(
        self,
        nbytes: int,
        *,
        huge: bool | None = None,
        element: str | None = None,
        placement: str | None = None,
        stealable: bool = True,
        packed: bool = False,
    ) -> Region:
        """A region of ``nbytes`` bytes, owned by this process. Its contents are undefined.

        It gets 2 MiB pages if ``huge``, which defaults to true from 1 MiB on: they change hands a hundred times faster
        than 4 KiB pages, and take up a multiple of 2 MiB, unless ``packed``: then regions share such pages, and fit
        between others. ``element`` names the memory element to take it from; ``placement`` (best-fit, worst-fit,
        spread) how the rack chooses one when a new slab is needed. Memory that is not ``stealable`` is kept out of
        `steal`, also by those in the group whom it is granted to: when its owner dies, it is freed.

        Raises `BadSize`, `RackMemoryError` (saying what is free where), `AddressSpaceFull`, `TooManyMappings`.
        """
        nbytes = operator.index(nbytes)
        if nbytes <= 0:
            raise BadSize(f"a region has at least 1 byte, not {nbytes}")
        if huge is None:
            huge = nbytes >= LARGE_REGION_BYTES
        if placement is not None and placement not in POLICIES:
            raise BadConfig(f"unknown placement policy {placement!r}; there are {', '.join(POLICIES)}")
        wanted = ANY_ELEMENT if element is None else self._links.element_number(element)
        if nbytes > PROCESS_SPACE_BYTES:  # the rack knows what is free, and refuses
            self._need_slab(min(nbytes, _ABSURD_BYTES), huge, element, placement)
        region: Region | None = self._alloc(nbytes, huge, wanted, stealable, packed)
        while region is None:
            self._need_slab(nbytes, huge, element, placement)
            region = self._alloc(nbytes, huge, wanted, stealable, packed)
        return region

    def read(self, frozen: Frozen) -> Reading:
        """Opens a frozen region for reading, whoever keeps it (`Region.freeze`): nothing is copied.

        It stays where it is, and as it is, until the reading is closed, whatever its keeper does or suffers. Raises
        `RegionMoved` if it has been freed or thawed, `NotAttached` if it is in another rack or group, `RackMemoryError`
        if the group has more than 65,536 readings, `TooManyMappings`.
        """
        return read(self, frozen)

    def element_of(self, region: Region) -> wire.ElementAddress:
        """The memory element that a region lies in."""
        return self._links.element_at(region.address)

    def _need_slab(self, nbytes: int, huge: bool, element: str | None, placement: str | None) -> None:
        """Has the Rack MMU add a slab to this process's free memory: larger ones, the more it uses."""
        needed = -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        share = self._slab_bytes[huge] // _SLAB_SHARES[huge] // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        generous = min(max(needed, share), _SLAB_BYTES_MAX)
        try:
            size = max(needed, generous // needed * needed)
            self._links.mmu.request(wire.NeedSlab(size // PAGE_BYTES, huge, element, placement))
        except RackMemoryError:
            if size == needed:
                raise
            size = needed
            self._links.mmu.request(wire.NeedSlab(size // PAGE_BYTES, huge, element, placement))
        self._slab_bytes[huge] += size

    # --- handing over ------------------------------------------------------------------------------------------------

    def _grant_at_once(self, region: Region, to: str, tag: bytes) -> bool:
        """The usual case of a grant, without a detour: the recipient is known and has room. False: nothing done."""
        peer = self._peers.get(to)
        if peer is None or type(tag) is not bytes:
            return False
        id_, incarnation, same_group = peer
        return same_group and self._grant_one(region, id_, incarnation, tag, to) == _DONE

    def grant_all(
        self, regions: Iterable[Region], to: str, *, tag: bytes = b"", timeout: float | None = None
    ) -> int:
        """Grants several regions at once, in order: neighbours in memory change hands in one step.

        As `Region.grant`. If the inbox stays full, `InboxFull` tells in ``granted`` how many have gone.
        """
        batch = list(regions)
        _check_message(tag)
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            peer = self._peers.get(to) or self._find_peer(to)
            if not batch:
                return 0
            if not peer.same_group:
                return self._grant_across(batch[done:], to, peer, tag, timeout)
            status, count = self._grant(batch, done, peer.id, peer.incarnation, tag, to, INBOX_CELLS)
            done += count
            if status == _DONE:
                return 0
            self._check_progress(status, to, done, len(batch))
            if status == _FULL and not self.wait_for_room(peer.id, deadline):
                raise _inbox_full(to, done, len(batch), timeout)

    async def grant_all_async(
        self, regions: Iterable[Region], to: str, *, tag: bytes = b"", timeout: float | None = None
    ) -> int:
        """`grant_all`, for asyncio."""
        import asyncio  # on demand, see inbox.py

        batch = list(regions)
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            try:
                return self.grant_all(batch[done:], to, tag=tag, timeout=0)
            except InboxFull as full:
                done += full.granted
                if deadline is not None and time.monotonic() >= deadline:
                    raise _inbox_full(to, done, len(batch), timeout) from None
            self.check_rack()
            await asyncio.sleep(_ASYNC_POLL)

    def send(self, to: str, message: bytes, *, timeout: float | None = None) -> None:
        """Sends up to 216 bytes without memory. They arrive as an empty region (``nbytes == 0``) whose tag they are."""
        _check_message(message)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            peer = self._peers.get(to) or self._find_peer(to)
            if not peer.same_group:
                raise UnknownProcess(f"{to!r} is in another group; bare messages stay within a group")
            status = self._send(peer.id, peer.incarnation, message, INBOX_CELLS)
            if status == _DONE:
                return
            self._check_progress(status, to, 0, 1)
            if status == _FULL and not self.wait_for_room(peer.id, deadline):
                raise _inbox_full(to, 0, 1, timeout)

    def _check_progress(self, status: int, to: str, done: int, total: int) -> None:
        """Raises what a status other than success means, unless another try can help."""
        if status == _LOST:
            raise RegionMoved(f"region {done + 1} of {total} was taken away before it could be granted")
        if status != _DEAD:
            return
        self._peers.pop(to, None)
        try:
            self._find_peer(to)  # the name may have a new bearer
        except UnknownProcess:
            gone = f"{to!r} has died or detached"
            raise ProcessDead(gone if done == 0 else f"{gone}; it got {done} of {total} regions") from None

    def wait_for_room(self, inbox: int, deadline: float | None, capacity: int = INBOX_CELLS) -> bool:
        """Waits while ``capacity`` messages wait in an inbox; False once ``deadline`` (monotonic) has passed."""
        while True:
            left = RACK_CHECK_INTERVAL
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
                if left <= 0:
                    return False
            if self._wait_for_space(inbox, capacity, as_nanoseconds(left)):
                return True
            self.check_rack()

    def check_rack(self) -> None:
        """Raises `RackGone` once the rack has ended, `NotAttached` after `detach`. One system call."""
        if not self.attached:
            raise NotAttached(f"{self.name!r} is not attached to a rack (any more)")
        if not self._links.mmu.is_alive():
            raise RackGone("the rack has ended, and with it every region; connect anew for a fresh one")

    def _find_peer(self, name: str) -> Peer:
        try:
            check_name(name)
        except BadName as error:
            raise UnknownProcess(f"no process can have that name: {error}") from None
        found = self._find(name)
        if found is not None:
            peer = Peer(*found, same_group=True)
        else:
            reply, _ = self._links.mmu.request(wire.FindPeer(name))
            answer = expect(reply, wire.PeerFound)
            peer = Peer(answer.pid, answer.incarnation, answer.same_group)
        self._peers[name] = peer
        return peer

    def _grant_across(
        self, regions: list[Region], to: str, peer: Peer, tag: bytes, timeout: float | None
    ) -> int:
        """Grants to another group, one by one; the bytes copied."""
        deadline = None if timeout is None else time.monotonic() + timeout
        copied = done = 0
        while done < len(regions):
            try:
                copied += self._give_across(regions[done], to, peer, tag)
                done += 1
            except InboxFull:  # it is in another table, whose bell we cannot hear
                if deadline is not None and time.monotonic() >= deadline:
                    raise _inbox_full(to, done, len(regions), timeout) from None
                time.sleep(_PEER_POLL)
            except ProcessDead as dead:
                try:
                    found = self._find_peer(to)  # the name may have a new bearer
                except UnknownProcess:
                    raise dead from None
                if found == peer:
                    raise
                if found.same_group:
                    return copied + self.grant_all(regions[done:], to, tag=tag, timeout=timeout)
                peer = found
        return copied

    def _give_across(self, region: Region, to: str, peer: Peer, tag: bytes) -> int:
        """Has the Rack MMU carry out a grant to another group: only it may write to both tables."""
        descriptor, word = self._surrender(region)
        try:
            reply, _ = self._links.mmu.request(
                wire.CrossGrant(descriptor, word, peer.id, peer.incarnation, tag)
            )
            copied = expect(reply, wire.CrossGranted).copied_bytes
        except BaseException:
            self._peers.pop(to, None)
            self._take_back(region, descriptor, word)  # unless it has gone by now
            raise
        region._set_fate(f"was granted to {to!r}")
        return copied

    def wait_for(self, name: str, timeout: float | None = None) -> None:
        """Waits until a process named ``name`` is attached, so that it can be granted to.

        Raises `UnknownProcess` if none is within ``timeout`` seconds (None: waits for ever).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                self._find_peer(name)
                return
            except UnknownProcess:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            time.sleep(_PEER_POLL)

    # --- stealing ----------------------------------------------------------------------------------------------------

    def steal(
        self,
        victim: str,
        capability: bytes | None = None,
        *,
        shares: Iterable[bytes] | None = None,
        only: Iterable[str | int] | None = None,
        incarnation: int | None = None,
    ) -> Estate:
        """Takes the memory of another process of the group, at the same addresses, uncopied (paper, section 3.1).

        The victim may have died, hang, or run: before anything changes hands it is kept from the memory, as far as the
        group's ``fence`` allows, and if it lives it gets `MemoryRevoked` where it touches it. ``capability`` is the
        group's, or put together from ``shares``; a user's default group needs none. ``only`` takes a part: what is
        published under these paths, and the regions at these addresses. A name may have had several bearers: the first
        dead one that has left something is meant, else the living one, or the one of this ``incarnation``.

        Of several thieves exactly one gets each region. Memory that was allocated with ``stealable=False``, or is on
        its way in somebody's inbox, is not stolen; what waits in the inbox of a dead victim is part of the estate.

        Raises `WrongCapability`, `UnknownProcess`, `ProcessDead` (its memory has been freed), `UnknownName` and
        `NotOwner` (about ``only``), `FenceFailed` (nothing was stolen), `TooManyMappings`.
        """
        return steal(self, victim, capability, shares, only, incarnation)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def accept(self, timeout: float | None = None) -> Region:
        """The next region granted to this process. Raises `AcceptTimeout` after ``timeout`` seconds (None: never)."""
        return self.inbox.accept(timeout)

    def accept_all(self, limit: int = INBOX_CELLS, timeout: float | None = None) -> list[Region]:
        """All regions that wait, at least one and at most ``limit``; waits for the first like `accept`."""
        return self.inbox.accept_all(limit, timeout)

    async def accept_async(self, timeout: float | None = None) -> Region:
        """`accept`, for asyncio."""
        return await self.inbox.accept_async(timeout)

    # --- losses ------------------------------------------------------------------------------------------------------

    def raw_memory_signals(self, raw: bool) -> None:
        """Whether touching lost memory gives this program the raw SIGBUS (paper, section 3.2) instead of an exception.

        The signal goes to whoever has a handler for it, in C or by `signal.signal`, and kills a program that has
        none. When the handler runs there is scratch memory under the address, so it may simply return.
        """
        pass_raw_memory_signals(raw)

    # --- failures ----------------------------------------------------------------------------------------------------

    @property
    def events(self) -> Events:
        """What happens to this process's memory and to processes of its group, from the first look at this on."""
        self._notices.subscribe()
        return self._notices.events

    def on_memory_failure(self, handler: Handler | None) -> Handler | None:
        """Has ``handler(event)`` called, in a thread of the library, when memory of this process is lost.

        When it returns, the failure counts as handled. If it raises, that is logged and the emergency contacts are
        called; so they are if it does not return within a second. None takes the handler away. May decorate a function.
        """
        self._notices.on_memory_failure(handler)
        return handler

    def emergency_contacts(self, names: Iterable[str]) -> None:
        """Names the processes that are told when this one dies, or cannot handle a failure of its memory.

        They hear it as `ContactCalled` among their events, if they are of this process's group. The list replaces the
        one before. It is kept by the compute element, not in rack memory, so no failure of memory affects it (paper,
        section 3.2).
        """
        self._notices.set_contacts(names)

    def standby(
        self, *, for_: str, capability: bytes | None = None, then: Then, on_suspicion: Then | None = None
    ) -> Standby:
        """Stands by for the process named ``for_``, of the same group: ``then(death)`` runs as soon as it dies.

        It runs in a thread of the library, within some milliseconds; `Death.steal` takes the dead one's memory.
        ``capability`` is what stealing from it needs, and is checked now. ``on_suspicion(death)`` runs when the rack
        monitor finds that the process hangs. The process need not be attached yet, and may be again later.
        Raises `WrongCapability`, and `UnknownProcess` if a process of that name is in another group.
        """
        return Standby(self, check_name(for_), capability, then, on_suspicion, own_process=False)

    def watchdog(self, seconds: float) -> Watchdog:
        """While the returned context manager is entered, its `progress` is to be called every so many seconds.

        If it is not, those who stand by for this process are told that it hangs, as they are without asking when it is
        stopped: a deadlock, or a loop without end, is known to the program alone. Raises ValueError.
        """
        return Watchdog(self._watchdogs, seconds)

    # --- the end -----------------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Leaves the rack; all memory that this process owns is freed. Does nothing the second time.

        Raises `BufferError` while views of its regions live: they would point at memory that is somebody else's.
        """
        if not self.attached:
            return
        while self._before_leaving:
            self._before_leaving.pop()()
        views = self.live_views
        if views:
            raise BufferError(
                f"{self.name!r} cannot detach while {views} view{'s' if views > 1 else ''} of its regions "
                f"live; release them first (del the arrays, memoryview.release())"
            )
        self._lifeline.leave()
        self._leave(forked=False)
        self.inbox.close()
        self._notices.close()
        self._links.leave()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.detach()
            return
        with contextlib.suppress(BufferError):  # the frames of the exception hold views: it matters more
            self.detach()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        if "name" not in self.__dict__:
            return "<bequest.Process, never attached>"
        state = "" if self.attached else " detached"
        return f"<bequest.Process {self.name!r} id={self.id} group={self.group!r}{state}>"


def _check_message(tag: object) -> None:
    if not isinstance(tag, bytes):
        raise TypeError(f"a tag or message is bytes, not {type(tag).__name__}")
    if len(tag) > TAG_BYTES_MAX:
        raise TagTooLong(
            f"a tag or message has at most {TAG_BYTES_MAX} bytes, this one has {len(tag)}; put more into a region"
        )


def _inbox_full(to: str, done: int, total: int, timeout: float | None) -> InboxFull:
    return InboxFull(
        f"the inbox of {to!r} stayed full for {timeout} s; {done} of {total} were sent", granted=done
    )


# --- which process this is -------------------------------------------------------------------------------------------

_attached: list[weakref.ref[Process]] = []


def current() -> Process:
    """The process that this program attached last and has not detached. Raises `NotAttached` if there is none."""
    while _attached:
        process = _attached[-1]()
        if process is not None and process.attached:
            return process
        _attached.pop()
    raise NotAttached("this program is not attached to a rack: use rack.attach(name) first")


def attached_to(directory: Path) -> Process | None:
    """The process that this program attached last to the rack there, if it has one."""
    for reference in reversed(_attached):
        process = reference()
        if process is not None and process.attached and process._links.directory == directory:
            return process
    return None


def _leave_in_child() -> None:
    for reference in _attached:
        process = reference()
        if process is not None:
            process._leave(forked=True)
            process._notices = Notices(process.name, process._links)  # its threads are not here
            process._notices.close()
    _attached.clear()
    _exit_calls.clear()


def _report_hardware_error(address: int, nbytes: int) -> None:
    """In the thread that has found out by touching it."""
    for reference in _attached:
        process = reference()
        if process is not None and process.attached:
            process._notices.report_hardware_error(address, nbytes)


report_hardware_errors_to(_report_hardware_error)


def _detach_at_exit() -> None:
    """What is still attached when the program ends leaves cleanly, unless views keep it: then its death tells."""
    for reference in reversed(_attached):
        process = reference()
        if process is not None and process.attached:
            with contextlib.suppress(BufferError):
                process.detach()


_exit_calls: list[Callable[[], None]] = []


def run_at_exit(call: Callable[[], None]) -> None:
    """Calls it when this process ends, before it detaches: also in a child of multiprocessing, which skips atexit."""
    if not _exit_calls:
        atexit.register(_at_exit)
        if "multiprocessing.util" in sys.modules:
            from multiprocessing.util import Finalize

            Finalize(None, _at_exit, exitpriority=0)
    _exit_calls.append(call)


def _at_exit() -> None:
    while _exit_calls:
        _exit_calls.pop()()


os.register_at_fork(after_in_child=_leave_in_child)
