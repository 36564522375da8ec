"""The holder of a site: it owns the listening sockets, and sees to it that somebody serves and somebody stands by.

It decides nothing and keeps no state, so it has little to fail by. It forks its workers, which costs a millisecond,
for it has imported everything that they need; each of them finds out in the rack what it is to be: the replica, or a
standby for it. Both sockets are inherited by all workers, so a connection that is made while nobody serves waits in
the kernel's backlog for the next who does; those that were made before are ended as soon as a standby has robbed the
replica (`duplicates.py`). When a worker ends, another is forked.

If the holder itself is killed, the replica goes on and its standby ends; a fresh holder on the same sockets finds the
replica serving, and has its workers stand by for it.

**Founding.** A replica that has no memory must not take part as if it had never promised anything. So a worker without
memory *joins*, as a fresh replica. Only the first worker of a service that is being founded may begin as one of its
first members; it says ``founded`` before it says anything to anybody else, and from then on nobody founds here.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from bequest.limits import MIB
from bequest.paxos.duplicates import Duplicates

if TYPE_CHECKING:
    from bequest.paxos.config import Address, Service, Site

log = logging.getLogger("bequest.paxos")

EXIT_ENDED = 0  # as it was asked to
EXIT_FAILED = 1  # by a fault of its own; the traceback is in the log
EXIT_LOST = 3  # what it was has gone to another, or its memory is lost: another worker finds out what to be

_BACKLOG = 1024
_ENDING = (signal.SIGINT, signal.SIGTERM)
_END_SECONDS = 5.0  # that a worker has to end when it is asked to
_HEAD_START = 0.25  # seconds in which an heir need not share the processors with a standby that begins
_PAUSE_SECONDS = 0.5  # before a worker is started after one that failed
_FAILURES_MAX = 10  # workers in a row that failed before they had become anything
_ROBBED_GRACE_SECONDS = (
    1.0  # after which a stopped process that was robbed is killed, to let go of its clients
)


class Options(msgspec.Struct, frozen=True):
    """What a site may be started with. The last two are the ways that can be switched off.

    ``heap_bytes`` is what a fresh replica's heap begins with. It gets more before it is full (`room.py`).
    """

    founding: bool = False
    heap_bytes: int = 16 * MIB
    standbys: int = 1
    reincarnation: bool = True
    failure_notices: bool = True


class Sockets(msgspec.Struct, frozen=True):
    """Both of them listen."""

    peers: socket.socket
    clients: socket.socket


class Note(msgspec.Struct):
    """What a worker has become: "founded", "standing by", "inheriting" or "serving". Or "client": it has one more."""

    state: str


_CLIENT = msgspec.json.encode(Note("client"))

Work = Callable[["Service", "Site", Sockets, Options, "Lifeline"], int]


class Lifeline(msgspec.Struct, frozen=True):
    """Between a worker and its holder: ``note`` tells it something, ``end`` can be read when it has died."""

    report: socket.socket
    end: int

    def note(self, state: str) -> None:
        """Tells the holder. That it has gone is no reason to stop."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.report.send(msgspec.json.encode(Note(state)))

    def lend(self, connection: int) -> None:
        """Gives the holder a duplicate of a client's connection, unless it has gone or is busy with others."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            socket.send_fds(self.report, [_CLIENT], [connection], socket.MSG_DONTWAIT)


def listen(address: Address) -> socket.socket:
    """A socket that listens there. Raises OSError, which says where."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot listen at {address}: {error.strerror or error}") from error
    listening.setblocking(False)
    return listening


class _Worker:
    """A forked process, as its holder sees it."""

    def __init__(self, pid: int, reports: socket.socket) -> None:
        self.pid = pid
        self.reports = reports
        self.state = ""
        self.kill_at: float | None = None

    def listen(self) -> tuple[str, list[int]]:
        """The next that it has said, and the connection that came along; nothing when it has ended."""
        said, connections, _, _ = socket.recv_fds(self.reports, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        return (msgspec.json.decode(said, type=Note).state if said else ""), connections


class Holder:
    """Runs a site until it is told to end. ``work`` is what its workers do; its result is their exit code."""

    def __init__(self, service: Service, site: Site, sockets: Sockets, options: Options, work: Work) -> None:
        self._service = service
        self._site = site
        self._sockets = sockets
        self._options = options
        self._work = work
        self._is_founding = options.founding
        self._is_ending = False
        self._failures = 0
        self._not_before = 0.0  # monotonic; the next worker
        self._workers: dict[int, _Worker] = {}  # by the descriptor on which they report
        self._clients = Duplicates()
        self._selector = selectors.DefaultSelector()
        self._end_reader, self._end_writer = os.pipe2(os.O_CLOEXEC)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """Until SIGINT or SIGTERM, and all workers have ended. An exit code."""
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, self._end)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._selector.register(self._clients, selectors.EVENT_READ)
        gc.collect()
        gc.freeze()  # so that collections in workers do not copy the pages that they share with this process
        while True:
            self._start_workers()
            if not self._workers and self._is_ending:
                return EXIT_ENDED if self._failures < _FAILURES_MAX else EXIT_FAILED
            for key, _ in self._selector.select(self._patience()):
                if key.fd == self._wake_reader:
                    os.read(self._wake_reader, 64)
                elif key.fileobj is self._clients:
                    self._clients.forget_ended()
                else:
                    self._hear(self._workers[key.fd])
            self._kill_overdue()

    def _patience(self) -> float | None:
        due = [worker.kill_at for worker in self._workers.values() if worker.kill_at is not None]
        if not self._is_ending and len(self._workers) < self._wanted:
            due.append(self._not_before)
        return max(0.0, min(due) - time.monotonic()) if due else None

    # --- workers ----------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> int:
        """How many workers there should be: one, until that has found out what it is."""
        settled = any(worker.state for worker in self._workers.values())
        return 1 + (self._options.standbys if self._options.reincarnation and settled else 0)

    def _start_workers(self) -> None:
        while not self._is_ending and self._present < self._wanted and time.monotonic() >= self._not_before:
            self._fork()

    @property
    def _present(self) -> int:
        """Those that are to stay."""
        return sum(worker.kill_at is None for worker in self._workers.values())

    def _fork(self) -> None:
        reports, report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            reports.close()
            self._become_worker(report)
        report.close()
        self._workers[reports.fileno()] = _Worker(pid, reports)
        self._selector.register(reports, selectors.EVENT_READ)

    def _become_worker(self, report: socket.socket) -> None:
        """In the child; does not return."""
        code = EXIT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            self._clients.close()
            for fd in (self._end_writer, self._wake_reader, self._wake_writer, *self._workers):
                os.close(fd)
            options = msgspec.structs.replace(self._options, founding=self._is_founding)
            lifeline = Lifeline(report, self._end_reader)
            code = self._work(self._service, self._site, self._sockets, options, lifeline)
        except BaseException:
            log.exception("a worker has failed")
        finally:
            logging.shutdown()
            os._exit(code)

    def _hear(self, worker: _Worker) -> None:
        state, connections = worker.listen()
        for connection in connections:
            self._clients.keep(connection, worker.pid)
        if state == "":
            self._bury(worker)
        elif state == "founded":
            self._is_founding = False
        elif state != "client":
            if state == "inheriting":
                self._end_clients(worker)
            worker.state = state
            self._failures = 0
            log.info("process %d of site %s is %s", worker.pid, self._site.name, state)
            if state == "serving":
                self._replace_robbed(worker)

    def _end_clients(self, successor: _Worker) -> None:
        """Those of whoever served before: nobody answers them any more."""
        for worker in self._workers.values():
            if worker is not successor and worker.state == "serving":
                self._clients.shut_down(worker.pid)

    def _replace_robbed(self, successor: _Worker) -> None:
        """Whoever served before and is still there was stopped, or hangs, and has been robbed."""
        for worker in self._workers.values():
            if worker is not successor and worker.state == "serving":
                worker.kill_at = time.monotonic() + _ROBBED_GRACE_SECONDS

    def _bury(self, worker: _Worker) -> None:
        self._clients.shut_down(worker.pid)
        self._selector.unregister(worker.reports)
        del self._workers[worker.reports.fileno()]
        worker.reports.close()
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        what = f"was killed by signal {-code}" if code < 0 else f"has ended with exit code {code}"
        log.info(
            "process %d of site %s (%s) %s", worker.pid, self._site.name, worker.state or "starting", what
        )
        if self._present:
            self._not_before = time.monotonic() + _HEAD_START
        if code == EXIT_FAILED:
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            self._failures += not worker.state
            if self._failures >= _FAILURES_MAX and not self._is_ending:
                log.error(
                    "%d workers in a row have failed; site %s gives up", self._failures, self._site.name
                )
                self._end()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end(self, *_: object) -> None:
        self._is_ending = True
        for worker in self._workers.values():
            os.kill(worker.pid, signal.SIGTERM)
            worker.kill_at = time.monotonic() + _END_SECONDS

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.kill_at is not None and now >= worker.kill_at:
                os.kill(worker.pid, signal.SIGKILL)
                worker.kill_at = now + _END_SECONDS
