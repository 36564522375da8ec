"""Packets with file descriptors over Unix sockets, and the client's end of a conversation.

``SOCK_SEQPACKET`` keeps packets apart and tells when the other side has gone. Descriptors that arrive are owned by the
`Packet`; whoever does not want them closes it, so that none leaks. Socket paths are limited to 107 bytes by the kernel;
longer ones are reached through a descriptor of their directory.

A `Channel` belongs to the process that opened it. A fork closes the child's copy: otherwise the daemons would not see
the parent end, and two processes would read one conversation.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from bequest.errors import NotAttached, RackFault, RackGone, VersionMismatch, from_failure
from bequest.limits import (
    CONNECT_TIMEOUT,
    PACKET_BYTES_MAX,
    PACKET_FDS_MAX,
    REQUEST_TIMEOUT,
    TABLE_VERSION,
    WIRE_VERSION,
)
from bequest.runtime.foreign import close_foreign
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, GarbledPacket, encode

_PATH_BYTES_MAX = 107
_CREDENTIALS = struct.Struct("3i")
# Room for more descriptors than are allowed, so that too many are seen, and closed, rather than cut off.
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * PACKET_FDS_MAX * array.array("i").itemsize)


class Packet:
    """What came out of a socket. Empty ``data`` is the end of the conversation."""

    __slots__ = ("data", "fds")

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.data = data
        self.fds = fds

    def close_fds(self) -> None:
        while self.fds:
            close_foreign([self.fds.pop()])


def receive_packet(connection: socket.socket, buffer: bytearray) -> Packet:
    """One packet. Raises `GarbledPacket`, with no descriptor left open, if it was too long or had too many of them.

    Raises OSError (EMFILE) if this process can have no more descriptors; the packet is lost then.
    """
    count, ancillary, flags, _ = connection.recvmsg_into([buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    packet = Packet(bytes(memoryview(buffer)[:count]), [])
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            packet.fds += fds
    if flags & socket.MSG_CTRUNC and len(packet.fds) <= PACKET_FDS_MAX:
        packet.close_fds()
        raise OSError(errno.EMFILE, "no file descriptor is left in this process; raise the limit (ulimit -n)")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(packet.fds) > PACKET_FDS_MAX:
        packet.close_fds()
        raise GarbledPacket("the packet was too long, or carried too many file descriptors")
    return packet


def send_packet(connection: socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Sends copies of the descriptors along; the sender's stay its own."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], ancillary, flags | socket.MSG_NOSIGNAL)


def new_buffer() -> bytearray:
    """For `receive_packet`: room for the longest."""
    return bytearray(PACKET_BYTES_MAX)


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Operating-system pid and uid of whoever connected, by the kernel's word."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """A listening socket there; what its directory lets in may connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _short_path(path) as short:
        listener.bind(short)
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def link() -> tuple[socket.socket, socket.socket]:
    """A connection between two daemons, made before they are forked: nobody else can pose as one."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


# --- the client's end -------------------------------------------------------------------------------------

Meanwhile = Callable[[], object]
_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class ConnectionLost(RackGone):
    """The connection has broken, or nobody was there to make one; the daemon may be followed by another."""


class NoAnswer(RackGone):
    """The daemon is there, or its socket is, but it has not answered in time."""


class Channel:
    """A conversation with one daemon: blocking requests, one at a time, from any thread.

    Raises the exception that a `wire.Failed` stands for, and `RackGone` when the daemon has ended.
    """

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._socket = connection
        self._path = path
        self._lock = threading.Lock()
        self._buffer = new_buffer()
        self._decoder = _daemon_decoder()
        self._was_interrupted = False  # in a request: a reply to it may be on its way, or not
        self._syncs = 0
        self._owner = os.getpid()
        self.is_closed = False
        self._end: str | None = None  # why, if it was not us who closed it
        self.welcome: wire.Welcome | None = None
        _channels.add(self)

    @classmethod
    def connect(cls, path: Path, timeout: float = CONNECT_TIMEOUT) -> Channel:
        """Connects to a daemon's socket and exchanges Hello and Welcome."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(timeout)
            with _short_path(path) as short:
                connection.connect(short)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise RackGone(f"no daemon answers at {path}: {error.strerror or error}") from error
        except OSError as error:
            connection.close()
            raise ConnectionLost(f"no daemon answers at {path}: {error.strerror or error}") from error
        channel = cls(connection, path)
        try:
            reply, _ = channel.request(wire.Hello(WIRE_VERSION, TABLE_VERSION), timeout)
        except BaseException:
            channel.close()
            raise
        if not isinstance(reply, wire.Welcome):
            channel.close()
            raise VersionMismatch(f"the daemon at {path} answers Hello with {type(reply).__name__}")
        channel.welcome = reply
        return channel

    def request(
        self,
        message: wire.Message,
        timeout: float = REQUEST_TIMEOUT,
        fds: Sequence[int] = (),
        meanwhile: Meanwhile = lambda: None,
    ) -> tuple[wire.Message, list[int]]:
        """The reply, and the file descriptors that came with it, which the caller owns. ``fds`` are sent along.

        ``meanwhile`` is called while the daemon is at work, once the request has been sent. It should not raise.
        """
        self._check_usable()
        with self._lock:
            packet = self._exchange(encode(message), timeout, fds, meanwhile)
        try:
            reply = self._decoder.decode(packet.data)
        except GarbledPacket as error:
            packet.close_fds()
            self.close()
            raise RackFault(f"the daemon at {self._path} sent garbage: {error}") from error
        if isinstance(reply, wire.Failed):
            packet.close_fds()
            raise from_failure(reply.kind, reply.message, reply.free)
        return reply, packet.fds

    def next_notice(self) -> wire.Message:
        """Waits for what the daemon says unasked, on a connection on which nothing is asked any more."""
        try:
            self._socket.settimeout(None)
            packet = self._receive()
            packet.close_fds()
            notice = self._decoder.decode(packet.data)
        except (OSError, GarbledPacket) as error:
            raise RackGone(f"the daemon at {self._path} has gone: {error}") from error
        if isinstance(notice, wire.Failed):
            raise from_failure(notice.kind, notice.message)
        return notice

    def shut_down(self) -> None:
        """Has whoever waits on this connection see its end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def is_alive(self) -> bool:
        """False once the daemon has closed its end; costs one system call."""
        if self.is_closed or os.getpid() != self._owner:
            return False
        if self._lock.locked():
            return True  # a request is under way, and will tell
        try:
            # Not recv(MSG_DONTWAIT): Python waits for a socket with a timeout before it calls that.
            waiting = select.poll()
            waiting.register(self._socket, select.POLLIN)
            if not waiting.poll(0):
                return True
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except (OSError, ValueError):
            return False

    @property
    def peer_pid(self) -> int:
        """The process that made the daemon's socket: the rack's supervisor, whose descendants are the daemons."""
        return peer_credentials(self._socket)[0]

    def fileno(self) -> int:
        """Readable when the daemon has gone, while no request is under way."""
        return self._socket.fileno()

    def close(self) -> None:
        self.is_closed = True
        self._socket.close()

    def _check_usable(self) -> None:
        if os.getpid() != self._owner:
            raise NotAttached(
                "this process was forked from one that is connected to a rack; it must connect itself"
            )
        if self._end is not None:
            raise ConnectionLost(self._end)
        if self.is_closed:
            raise NotAttached("the connection to the rack has been closed")

    def _exchange(self, data: bytes, timeout: float, fds: Sequence[int], meanwhile: Meanwhile) -> Packet:
        is_owed_nothing = not self._was_interrupted
        try:
            self._socket.settimeout(timeout)
            if self._was_interrupted:
                self._synchronise()
            self._was_interrupted = True
            send_packet(self._socket, data, fds)
            meanwhile()
            packet = self._receive()
            self._was_interrupted = False
            return packet
        except TimeoutError as error:
            raise NoAnswer(f"the daemon at {self._path} has not answered for {timeout:g} s") from error
        except OSError as error:
            if error.errno == errno.EMFILE:  # the answer has come, and the request may be made again
                self._was_interrupted = False
                raise
            # Only if no reply to an earlier request may be among what is left.
            words = self._parting_words() if is_owed_nothing else None
            lost = self._lost(error)
            if words is None:
                raise lost from error
            return words
        except GarbledPacket as error:
            raise self._lost(error) from error

    def _parting_words(self) -> Packet | None:
        """What the daemon said before it closed its end: the kernel tells of the end once, then gives what is left."""
        self._socket.settimeout(0)
        with suppress(OSError, GarbledPacket):
            return self._receive()
        return None

    def _lost(self, error: Exception) -> ConnectionLost:
        self.close()
        self._end = f"the daemon at {self._path} has gone: {error}"
        return ConnectionLost(self._end)

    def _synchronise(self) -> None:
        """Reads past the reply to a request whose caller did not wait for it, if there is one."""
        self._syncs += 1
        send_packet(self._socket, encode(wire.Sync(self._syncs)))
        while True:
            packet = self._receive()
            packet.close_fds()
            if self._decoder.decode(packet.data) == wire.Synced(self._syncs):
                return

    def _receive(self) -> Packet:
        packet = receive_packet(self._socket, self._buffer)
        if not packet.data:
            packet.close_fds()
            raise ConnectionResetError("it closed the connection")
        return packet


@lru_cache(maxsize=1)
def _daemon_decoder() -> Decoder:
    return Decoder(wire.DaemonToClient)


def _close_all_in_child() -> None:
    for channel in list(_channels):
        channel.close()


os.register_at_fork(after_in_child=_close_all_in_child)
