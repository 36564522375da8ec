"""The loop under every daemon: a listening socket, clients, links to other daemons, deadlines, and the end.

Theory of operation. One thread waits in epoll and hands what comes to the daemon, a subclass. Links are read before
clients: what one daemon told another before it answered a client is then known before the client acts on it. A client
is read only when it has been answered, so it cannot pile up work. Whatever a client does wrong costs it its connection,
which it is told, and nobody else anything; only the end of the supervisor or a signal ends the loop.

Links break when a neighbour dies, and the supervisor hands out a fresh one with its successor. What is said into a
broken link is lost, as is what was still in it: both sides tell each other on a new link all that the other must know
(`link_restored`), so nothing needs to be queued, and what comes twice does no harm. What a daemon must not lose itself
it gives to its supervisor with `keep`; its successor finds it in `kept`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import selectors
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from bequest.errors import BadSize
from bequest.limits import (
    HELLO_TIMEOUT,
    LINK_QUEUE_MAX,
    PEER_QUEUE_MAX,
    SAFE_TIMEOUT,
    TABLE_VERSION,
    WIRE_VERSION,
)
from bequest.runtime.admission import NO_DESCRIPTORS, last_words, refusal, send_away
from bequest.runtime.rack_log import follow
from bequest.runtime.safe import Deposit, Tether
from bequest.runtime.transport import Packet, new_buffer, peer_credentials, receive_packet, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, GarbledPacket, encode
from bequest.wire.supervision import (
    Hold,
    Keep,
    Kept,
    Listen,
    Release,
    Relink,
    SupervisorToDaemon,
    WriteLog,
)

log = logging.getLogger("bequest.daemon")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SlowReader(Exception):
    """The other side does not read what it is sent."""


class Wire(msgspec.Struct, eq=False):
    """A socket with what waits to be sent through it."""

    socket: socket.socket
    queue_max: int
    queue: deque[tuple[bytes, list[int]]] = msgspec.field(default_factory=deque)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        """Now if possible, else later; descriptors that must wait are duplicated, as their owner may close them."""
        if not self.queue:
            try:
                send_packet(self.socket, data, fds)
                return
            except BlockingIOError:
                pass
        if len(self.queue) >= self.queue_max:
            raise SlowReader(f"{self.queue_max} packets wait for it")
        self.queue.append((data, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        while self.queue:
            data, fds = self.queue[0]
            try:
                send_packet(self.socket, data, fds)
            except BlockingIOError:
                return
            self.queue.popleft()
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        for _, fds in self.queue:
            for fd in fds:
                os.close(fd)
        self.queue.clear()
        self.socket.close()


class Peer(msgspec.Struct, eq=False):
    """A client."""

    id: int
    wire: Wire
    os_pid: int
    uid: int
    silent_until: float | None  # when a client that has not said Hello is dropped; None: it has
    events: int = selectors.EVENT_READ
    is_owed_reply: bool = False
    fds: list[int] = []  # that came with the message under way; who leaves them here does not want them


class Link(msgspec.Struct, eq=False):
    """The way to another daemon of the rack, while that is there."""

    kind: str
    name: str
    title: str  # for people
    decoder: Decoder
    wire: Wire | None = None
    events: int = selectors.EVENT_READ
    os_pid: int = 0  # of the daemon behind it
    restarts: int = 0
    fds: list[int] = []  # that came with the message under way; who leaves them here does not want them


class Daemon(ABC):
    """Base of the rack's daemons; a subclass brings the machine."""

    role = "daemon"
    remembers_clients = False  # it knows a client that comes back by its number

    def __init__(self, rack: str, uid: int, listener: socket.socket, union: object, tether: Tether) -> None:
        self._rack = rack
        self._uid = uid
        self._listener = listener
        self._decoder = Decoder(union)
        self._selector = selectors.DefaultSelector()
        self._buffer = new_buffer()
        self._peers: dict[int, Peer] = {}
        self._links: list[Link] = []
        self._last_peer = 0
        self._spare_fd: int | None = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._stopping: str | None = None
        self.ends_rack = False  # it stops because the rack is to
        self.lock: int | None = None  # of the rack's directory, if that had to be made again
        self.kept: dict[str, Deposit] = tether.kept
        self.restarts = tether.restarts
        self._control = Wire(tether.control, LINK_QUEUE_MAX)
        self._control_decoder = Decoder(SupervisorToDaemon)
        self._keeping: deque[Callable[[str], None] | None] = deque()  # who waits for which answer
        self._unheard: deque[Packet] = deque()  # of the supervisor, while somebody waited for another answer
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(tether.control, selectors.EVENT_READ, self._control_ready)
        self._next_hello_check = time.monotonic() + HELLO_TIMEOUT

    # --- for the subclass ----------------------------------------------------------------------------------

    @abstractmethod
    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        """To be answered by `reply`, now or later, once."""

    @abstractmethod
    def link_message(self, link: Link, message: wire.Message) -> None:
        """What another daemon says."""

    def peer_opened(self, peer: Peer) -> None:  # noqa: B027 - not all want to know
        """It has said Hello."""

    def peer_gone(self, peer: Peer) -> None:  # noqa: B027
        """It had said Hello, and its connection has ended."""

    def link_restored(self, link: Link) -> None:  # noqa: B027
        """A daemon is there, for the first time or again: tell it all that it must know."""

    def link_broken(self, link: Link) -> None:  # noqa: B027
        """The daemon behind it has gone. `link_restored` will follow; until then nothing reaches it."""

    def tick(self, now: float) -> None:  # noqa: B027
        """Called after every batch of events and at the deadline."""

    def next_deadline(self) -> float:
        return float("inf")

    # --- the loop ------------------------------------------------------------------------------------------

    def add_link(self, kind: str, name: str, title: str, union: object) -> Link:
        """To a neighbour; the supervisor hands the socket in when both are there."""
        new = Link(kind, name, title, Decoder(union))
        self._links.append(new)
        return new

    def keep(
        self, key: str, meta: bytes, fds: Sequence[int], then: Callable[[str], None] | None = None
    ) -> None:
        """Has the supervisor keep copies for the next life, in place of what it kept under this key.

        Once this has returned they survive this process, unless the supervisor is hundreds of packets behind or refuses
        for want of descriptors: ``then`` is called with its reason, or with "" when they are safe.
        """
        self._keeping.append(then)
        self._say(Keep(key, meta), fds)

    def keep_now(self, key: str, meta: bytes, fds: Sequence[int]) -> None:
        """`keep`, and waits for the answer. Raises OSError if the supervisor refuses."""
        answers: list[str] = []
        self.keep(key, meta, fds, answers.append)
        deadline = time.monotonic() + SAFE_TIMEOUT
        waiting = select.poll()
        waiting.register(self._control.socket, select.POLLIN)
        while not answers:
            self._control.flush()
            if not waiting.poll(max(0, round(1000 * (deadline - time.monotonic())))):
                raise OSError(errno.ETIMEDOUT, f"the supervisor has not kept {key} for {SAFE_TIMEOUT:g} s")
            packet = self._hear_supervisor()
            if packet is None:
                raise OSError(errno.EPIPE, "the supervisor has gone")
            if isinstance(message := self._control_decoder.decode(packet.data), Kept):
                self._hear(message, packet.fds)
            else:
                self._unheard.append(packet)
        if answers[0]:
            raise OSError(errno.EMFILE, answers[0])

    def release(self, key: str) -> None:
        self.kept.pop(key, None)
        self._say(Release(key), ())

    def watch(self, fd: int, when_readable: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, when_readable)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def stop(self, reason: str) -> None:
        if self._stopping is None:
            log.info("%s stops: %s", self.role, reason)
            self._stopping = reason

    def supervisor_has_gone(self) -> bool:
        try:
            return self._control.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def run(self) -> None:
        self._wakeup = self._catch_signals()  # open to the end: a signal may come until then
        self._selector.register(
            self._wakeup[0], selectors.EVENT_READ, lambda: self.stop("terminated by a signal")
        )
        while self._stopping is None:
            now = time.monotonic()
            self._drop_silent(now)
            self.tick(now)
            deadline = min(self.next_deadline(), self._next_hello_check)
            if self._unheard:
                self._control_ready()
            self._handle(self._selector.select(max(0.0, deadline - time.monotonic())))

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        signal.set_wakeup_fd(ends[1].fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the supervisor decides
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked by the supervisor before the fork
        return ends

    def _handle(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            if isinstance(key.data, Link):
                self._link_ready(key.data, mask)
        for key, mask in events:
            if isinstance(key.data, Peer):
                self._peer_ready(key.data, mask)
            elif not isinstance(key.data, Link) and self._stopping is None and self._is_watched(key):
                key.data()

    def _is_watched(self, key: selectors.SelectorKey) -> bool:
        """Still, although others have had their turn in this batch."""
        try:
            return self._selector.get_key(key.fileobj).data is key.data
        except (KeyError, ValueError):
            return False

    # --- the supervisor ------------------------------------------------------------------------------------

    def _say(self, message: wire.Message, fds: Sequence[int]) -> None:
        try:
            self._control.send(encode(message), fds)
        except (OSError, SlowReader) as error:
            self.stop(f"the supervisor does not listen: {error}")
        self._watch_control()

    def _control_ready(self) -> None:
        try:
            self._control.flush()
            self._watch_control()
            while self._stopping is None:
                packet = self._unheard.popleft() if self._unheard else self._hear_supervisor()
                if packet is None:
                    return
                self._hear(self._control_decoder.decode(packet.data), packet.fds)
        except BlockingIOError:
            pass
        except OSError as error:
            self.stop(f"the supervisor has gone: {error}")

    def _hear_supervisor(self) -> Packet | None:
        """None if it has gone."""
        packet = receive_packet(self._control.socket, self._buffer)
        if packet.data:
            return packet
        self.stop("the supervisor has gone")
        return None

    def _hear(self, message: wire.Message, fds: list[int]) -> None:
        match message:
            case Kept(key, trouble):
                then = self._keeping.popleft()
                if then is not None:
                    then(trouble)
                elif trouble:
                    log.error("%s: %s is not safe from its death: %s", self.role, key, trouble)
            case Relink(kind, name, os_pid, restarts):
                (link,) = (link for link in self._links if (link.kind, link.name) == (kind, name))
                self._relink(link, socket.socket(fileno=fds[0]))
                link.os_pid, link.restarts = os_pid, restarts
                self.link_restored(link)
            case Listen():
                self._listen_at(socket.socket(fileno=fds[0]))
            case Hold():
                if self.lock is not None:
                    os.close(self.lock)
                self.lock = fds[0]
            case WriteLog(path):
                with self._spare_descriptor(), suppress(OSError):
                    follow(Path(path))
            case _:
                raise AssertionError(f"the supervisor says {message}")

    def _watch_control(self) -> None:
        wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._control.queue else 0)
        if self._selector.get_key(self._control.socket).events != wants:
            self._selector.modify(self._control.socket, wants, self._control_ready)

    # --- links ---------------------------------------------------------------------------------------------

    def send_to_link(self, link: Link, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """Or to nobody, while the link is broken."""
        if link.wire is None:
            return
        try:
            link.wire.send(encode(message), fds)
        except BadSize as error:  # what is too long now is so on the next link, too: better that it be lost
            log.error("%s cannot tell %s: %s", self.role, link.title, error)
        except (ConnectionError, SlowReader) as error:
            self._break(link, str(error), gone=isinstance(error, ConnectionError))
        except OSError as error:
            self._break(link, str(error), gone=False)
        else:
            self._watch_for(link)

    def _relink(self, link: Link, end: socket.socket) -> None:
        if link.wire is not None:
            self._break(link, "there is a new one", gone=True)
        end.setblocking(False)
        link.wire = Wire(end, LINK_QUEUE_MAX)
        link.events = selectors.EVENT_READ
        self._selector.register(end, link.events, link)

    def _break(self, link: Link, reason: str, *, gone: bool) -> None:
        """A neighbour that has ``gone`` comes back with a new link; else there is a new one only when we begin anew."""
        assert link.wire is not None
        log.info("%s: the link to %s is broken: %s", self.role, link.title, reason)
        if not gone:
            self.stop(f"{link.title} is there, but cannot be reached: {reason}")
        self._selector.unregister(link.wire.socket)
        link.wire.close()
        link.wire = None
        self.link_broken(link)

    def _link_ready(self, link: Link, mask: int) -> None:
        here = link.wire
        try:
            if here is not None and mask & selectors.EVENT_WRITE:
                here.flush()
                self._watch_for(link)
            while mask & selectors.EVENT_READ and self._stopping is None and here is not None:
                if link.wire is not here:
                    return  # broken while a message of it was acted on
                packet = receive_packet(here.socket, self._buffer)
                link.fds = packet.fds
                try:
                    if not packet.data:
                        self._break(link, "it has gone", gone=True)
                        return
                    self.link_message(link, link.decoder.decode(packet.data))
                finally:
                    packet.close_fds()
        except BlockingIOError:
            pass
        except (OSError, GarbledPacket) as error:
            if link.wire is here and here is not None:
                self._break(link, str(error), gone=isinstance(error, ConnectionError))

    # --- clients -------------------------------------------------------------------------------------------

    def reply(self, peer_id: int, message: wire.Message, fds: Sequence[int] = ()) -> None:
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        peer.is_owed_reply = False
        try:
            peer.wire.send(_encoded_reply(message), fds)
        except (OSError, SlowReader) as error:
            self.drop(peer, f"it cannot be sent to: {error}")
        else:
            self._watch_for(peer)

    def drop(self, peer: Peer, reason: str) -> None:
        if self._peers.pop(peer.id, None) is None:
            return
        if peer.events:
            self._selector.unregister(peer.wire.socket)
        peer.wire.close()
        if reason:
            who = f"client {peer.id} (os pid {peer.os_pid}, user {peer.uid})"
            log.warning("%s drops %s: %s", self.role, who, reason)
        if peer.silent_until is None:
            self.peer_gone(peer)

    def _expel(self, peer: Peer, reason: str) -> None:
        """`drop`, for something that it has done itself."""
        if not peer.wire.queue:
            last_words(peer.wire.socket, "protocol", f"{self.role} ends this connection: {reason}")
        self.drop(peer, reason)

    def _listen_at(self, listener: socket.socket) -> None:
        """From now on; whoever has found the former socket has time enough to be let in."""
        self._selector.unregister(self._listener)
        while self._accept_one():
            pass
        self._listener.close()
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        for _ in range(16):  # then let those who are connected have their turn
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """False if there is nobody, or it could not be done."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            self._refuse_one(error)
            return False
        self._admit(connection)
        return True

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        os_pid, uid = peer_credentials(connection)
        of_one = sum(peer.os_pid == os_pid for peer in self._peers.values())
        if why := refusal(self.role, self._uid, uid, of_one, len(self._peers)):
            log.warning("%s refuses os pid %d of user %d: %s", self.role, os_pid, uid, why)
            send_away(connection, why)
            return
        self._last_peer += 1
        silent_until = time.monotonic() + HELLO_TIMEOUT
        peer = Peer(self._last_peer, Wire(connection, PEER_QUEUE_MAX), os_pid, uid, silent_until)
        self._peers[peer.id] = peer
        self._selector.register(connection, peer.events, peer)

    def _refuse_one(self, error: OSError) -> None:
        """Out of descriptors: the spare one serves to accept a client and send it away, or it would wait for ever."""
        log.error("%s cannot accept a client: %s", self.role, error)
        with self._spare_descriptor(), suppress(OSError):
            send_away(self._listener.accept()[0], NO_DESCRIPTORS.format(self.role))

    @contextmanager
    def _spare_descriptor(self) -> Iterator[None]:
        """For what needs one for a moment when all are in use."""
        if self._spare_fd is not None:
            os.close(self._spare_fd)
            self._spare_fd = None
        yield
        with suppress(OSError):  # another thread was quicker: at the next one, perhaps
            self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _peer_ready(self, peer: Peer, mask: int) -> None:
        if peer.id not in self._peers:
            return  # dropped earlier in this batch
        try:
            if mask & selectors.EVENT_WRITE:
                peer.wire.flush()
            if mask & selectors.EVENT_READ and not peer.is_owed_reply:
                self._read(peer)
        except BlockingIOError:
            pass
        except OSError as error:
            self.drop(peer, f"{type(error).__name__}: {error}")
        except GarbledPacket as error:
            self._expel(peer, f"it sent what is no request: {error}")
        if peer.id in self._peers:
            self._watch_for(peer)

    def _read(self, peer: Peer) -> None:
        """One packet only: the next may speak of what a link has yet to tell."""
        packet = receive_packet(peer.wire.socket, self._buffer)
        peer.fds = packet.fds
        try:
            self._obey(peer, packet.data)
        finally:
            packet.close_fds()

    def _obey(self, peer: Peer, data: bytes) -> None:
        if not data:
            self.drop(peer, "")
            return
        message = self._decoder.decode(data)
        peer.is_owed_reply = True
        if peer.silent_until is not None:
            self._greet(peer, message)
        elif isinstance(message, wire.Hello):
            raise GarbledPacket("a second Hello")
        elif isinstance(message, wire.Sync):
            self.reply(peer.id, wire.Synced(message.number))
        else:
            self.peer_message(peer, message)

    def _greet(self, peer: Peer, message: wire.Message) -> None:
        if not isinstance(message, wire.Hello):
            raise GarbledPacket(f"{type(message).__name__} before Hello")
        if (message.version, message.table_version) != (WIRE_VERSION, TABLE_VERSION):
            text = (
                f"this rack speaks version {WIRE_VERSION} (table {TABLE_VERSION}), the client {message.version} (table"
                f" {message.table_version}); restart the rack with the same bequest as the client"
            )
            self.reply(peer.id, wire.Failed("version", text))
            self.drop(peer, "it speaks another version")
            return
        peer.silent_until = None
        self.peer_opened(peer)
        client = peer.id if self.remembers_clients else 0
        self.reply(peer.id, wire.Welcome(self._rack, self.role, self.restarts + 1, client))

    def _drop_silent(self, now: float) -> None:
        if now < self._next_hello_check:
            return
        for peer in list(self._peers.values()):
            if peer.silent_until is not None and now >= peer.silent_until:
                self._expel(peer, f"it has said nothing for {HELLO_TIMEOUT:g} s")
        self._next_hello_check = now + HELLO_TIMEOUT / 4

    def _watch_for(self, end: Peer | Link) -> None:
        """Read unless a reply is owed; write while something waits."""
        if end.wire is None:
            return
        wants = selectors.EVENT_WRITE if end.wire.queue else 0
        if isinstance(end, Link) or not end.is_owed_reply:
            wants |= selectors.EVENT_READ
        if wants == end.events:
            return
        if wants and end.events:
            self._selector.modify(end.wire.socket, wants, end)
        elif wants:
            self._selector.register(end.wire.socket, wants, end)
        else:
            self._selector.unregister(end.wire.socket)
        end.events = wants


def _encoded_reply(message: wire.Message) -> bytes:
    """Or the answer that it is too long: one request that has no other answer must not end the daemon."""
    try:
        return encode(message)
    except BadSize as error:
        log.error("a reply cannot be sent: %s", error)
        return encode(wire.Failed("size", str(error)))
