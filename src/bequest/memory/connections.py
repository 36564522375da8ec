"""The connections behind one attached process: to the Rack MMU, to its agent, and to memory elements.

The MMU's connection is the attachment's life on the control plane; the agent's is how a death is noticed (and, with
it, pidfd); memory elements are connected to when the first slab of theirs is needed, and hand out a slab's memory to
whoever shows the group's ticket.

All of them outlive the daemon they lead to: a daemon that is killed is followed by another, and what was asked of the
first is asked of the second.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from bequest._core import PAGE_BYTES, Table, allow_tracer, open_fence
from bequest.errors import BequestError, RackFault
from bequest.limits import TICKET_BYTES
from bequest.runtime.lasting import LastingChannel
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire

_Reply = TypeVar("_Reply", bound=wire.Message)


class Connections:
    """Made by attaching: raises `NameTaken`, `WrongSecret`, `BadName`, `RackGone`, and holds nothing if it does."""

    def __init__(
        self, directory: Path, name: str, secret: bytes | None, compute: str | None, heir: str | None = None
    ) -> None:
        self.directory = directory
        self._elements: dict[int, LastingChannel] = {}
        self._connecting = threading.Lock()
        self._has_ended = False
        self._agent: LastingChannel | None = None
        self.mmu = LastingChannel(directory / "mmu.sock")
        try:
            nonce = os.urandom(TICKET_BYTES)
            reply, fds = self.mmu.request(wire.Attach(name, secret, compute, heir, nonce))
            self.attached = expect(reply, wire.Attached)
            ticket = self.attached.agent_ticket
            self.mmu.returns_as(wire.Resume(self.attached.pid, self.attached.incarnation, ticket))
            self.table = _open_table(fds)
            self._agent = LastingChannel(directory / self.attached.agent_path, self.mmu.rack)
            enrol(self._agent, ticket)
            self._agent.returns_as(wire.Enrol(ticket))
        except BaseException:
            self.leave()
            raise

    @property
    def rack(self) -> str:
        """Which rack this is: racks that follow one another under a name in one directory are not the same."""
        return f"{self.directory} #{self.mmu.rack.supervisor}.{self.mmu.rack.began}"

    def open_slab(self, slab: int) -> tuple[int, list[tuple[int, int]]]:
        """A file descriptor of the slab's memory, for the native core to map and close, and what of it has failed."""
        element = self._element_of(slab)
        reply, fds = self._channel_to(element).request(wire.OpenSlab(self.attached.element_ticket, slab))
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise RackFault(f"memory element {element.name} sent {len(fds)} descriptors for slab {slab}")
        return fds[0], expect(reply, wire.SlabOpened).failed

    def ask_element(self, slab: int, request: Callable[..., wire.Message], *run: int) -> wire.Message:
        """The answer of a slab's memory element to a request about it, which shows it the group's ticket."""
        message = request(self.attached.element_ticket, slab, *run)
        reply, _ = self._channel_to(self._element_of(slab)).request(message)
        return reply

    def reach_elements(self) -> None:
        """Connects to all memory elements, so that the first slab of each does not have to."""
        for element in self.attached.elements:
            self._channel_to(element)

    def _channel_to(self, element: wire.ElementAddress) -> LastingChannel:
        with self._connecting:  # of two threads that need a new element, one connects
            channel = self._elements.get(element.id)
            if channel is None:
                channel = self._elements[element.id] = LastingChannel(
                    self.directory / element.path, self.mmu.rack
                )
                if self._has_ended:  # while we waited for the element
                    channel.close()
            return channel

    def ask_agent(self, message: wire.Message) -> wire.Message:
        """A request to the agent, over the connection on which this process is enrolled."""
        assert self._agent is not None
        reply, _ = self._agent.request(message)
        return reply

    def subscribe(
        self, since: int | None = None, suspects: Sequence[tuple[int, int, str]] = ()
    ) -> tuple[Channel, int]:
        """A second connection to the agent, over which it pushes notices from now on, and the last death before them.

        With the last death that is known already, ``since``, it begins with those after that; and with who of the
        known ``suspects`` is one no more.
        """
        channel = Channel.connect(self.directory / self.attached.agent_path)
        try:
            reply, _ = channel.request(wire.Subscribe(self.attached.agent_ticket, since, list(suspects)))
            return channel, expect(reply, wire.Subscribed).death
        except BaseException:
            channel.close()
            raise

    def rack_is_there(self) -> bool:
        """False once it has ended."""
        return not self.mmu.rack.has_ended()

    def _element_of(self, slab: int) -> wire.ElementAddress:
        number = self.table.slab_element(slab)
        for element in self.attached.elements:
            if element.id == number:
                return element
        raise RackFault(f"slab {slab} lies on memory element {number}, which this rack does not have")

    def element_at(self, address: int) -> wire.ElementAddress:
        """The memory element of the slab that lies there."""
        for slab, start, pages, *_ in self.table.slabs():
            if start <= address < start + pages * PAGE_BYTES:
                return self._element_of(slab)
        raise RackFault(f"no slab lies at {address:#x}")

    def element_number(self, name: str) -> int:
        """The number of a memory element, from its name. Raises ValueError for an unknown one."""
        for element in self.attached.elements:
            if element.name == name:
                return element.id
        known = ", ".join(element.name for element in self.attached.elements)
        raise ValueError(f"this rack has no memory element {name!r}; it has {known}")

    def leave(self) -> None:
        """Detaches, and ends all connections. A rack that has gone holds nothing of ours."""
        with contextlib.suppress(BequestError):
            self.mmu.request(wire.Detach())
        self.close()

    def close(self) -> None:
        """Ends all connections; the agent takes that for the end of the attachment."""
        self._has_ended = True
        for channel in (self.mmu, self._agent, *self._elements.values()):
            if channel is not None:
                channel.close()


def expect(reply: wire.Message, kind: type[_Reply]) -> _Reply:
    """The reply, which must be of this kind; else the daemon is broken, and that is said."""
    if not isinstance(reply, kind):
        raise RackFault(f"the rack answered {type(reply).__name__} where {kind.__name__} was due")
    return reply


def enrol(agent: Channel | LastingChannel, ticket: bytes) -> None:
    """Has the agent watch this process, and puts into its hands what it can fence it by, should it ever hang."""
    allow_tracer(agent.peer_pid)
    try:
        fence = [open_fence()]
    except OSError:  # a sandbox forbids it: there remain ptrace and kill, as `bequest doctor` tells
        fence = []
    try:
        agent.request(wire.Enrol(ticket), fds=fence)
    finally:
        for fd in fence:
            os.close(fd)  # what holds for this process is not for it to lift


def _open_table(fds: list[int]) -> Table:
    try:
        if len(fds) != 1:
            raise RackFault(f"the Rack MMU sent {len(fds)} descriptors with the V2P table, not one")
        return Table.open(fds[0])
    finally:
        for fd in fds:
            os.close(fd)
