"""Starts a rack's daemons, starts them again when they die, and cleans up after them.

Theory of operation. One process imports everything, makes all listening sockets, and forks the daemons, which share its
pages. It stays what a rack is made of: while it lives, listening sockets stay open, what daemons keep in the `Safe`
stays theirs, and a daemon that dies is forked again within milliseconds, with all of that and with fresh links to its
neighbours. Clients notice a pause. It also sees to it that the rack can be found (`Upkeep`). It holds one end of a
*control socket* of each daemon, over which it is given things to keep and hands out links; should it be killed itself,
daemons see the other end close, end, and remove the directory.

A rack ends with its supervisor, when the Rack MMU says so (exit code RACK_ENDS), or with a daemon that dies again and
again. The order on a death: the kernel says that it has gone, what it had sent last is taken into the safe, and only
then is the successor forked, so that there are never two of one daemon.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from bequest.errors import BadConfig, BequestError, NameTaken
from bequest.limits import CONTROL_QUEUE_MAX, EMBEDDED_LINGER, SHORT_LIVES_MAX, STOP_TIMEOUT
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.agent import Agent
from bequest.runtime.config import RackConfig, make_config
from bequest.runtime.directory import EMBEDDED_PREFIX, ClaimedDirectory, RackNotes, claim
from bequest.runtime.element_server import ElementServer
from bequest.runtime.loop import STOP_SIGNALS, Daemon, SlowReader, Wire
from bequest.runtime.mmu_daemon import MmuDaemon
from bequest.runtime.monitor import Monitor
from bequest.runtime.post import Child, Post, obituary
from bequest.runtime.rack_log import Lines, RackLog
from bequest.runtime.safe import Deposit, Safe, Tether
from bequest.runtime.slab_files import SlabFileError, SlabFiles
from bequest.runtime.transport import link, listen, new_buffer, receive_packet
from bequest.runtime.upkeep import Upkeep
from bequest.wire.codec import Decoder, GarbledPacket, encode
from bequest.wire.message import Message
from bequest.wire.supervision import DaemonToSupervisor, Keep, Kept, Release, Relink

log = logging.getLogger("bequest.supervisor")

RACK_ENDS = 3
_PACKETS_AT_ONCE = 64  # of one daemon, then the others have their turn
_ERRORS_MAX = 3


class Supervisor:
    def __init__(
        self, config: RackConfig, directory: ClaimedDirectory, rack_log: RackLog | None = None
    ) -> None:
        self._config = config
        self._directory = directory
        self._log = rack_log
        self._safe = Safe()
        self._posts: list[Post] = []
        self._selector = selectors.DefaultSelector()
        self._signals, self._signal_sender = socket.socketpair()
        self._decoder = Decoder(DaemonToSupervisor)
        self._buffer = new_buffer()
        self._asked_to_stop = False
        self._verdict: int | None = None  # the exit code, once the rack is to end

    def run(self, when_ready: Callable[[], None]) -> int:
        """Until the rack ends; the exit code."""
        self._catch_signals()
        try:
            self._posts = self._plan(self._config.for_mmu())
            upkeep = Upkeep(self._directory, self._posts, self._tell, self._log)
            gc.collect()
            for post in self._posts:
                self._start(post)
            log.info("rack %r runs in %s", self._config.name, self._directory.path)
            when_ready()
            while self._verdict is None and not self._asked_to_stop:
                self._wait(min(self._next_start(), upkeep.next_look))
                self._start_those_due()
                self._look_after(upkeep)
            return self._verdict or 0
        finally:
            self._stop_daemons()
            self._directory.remove()

    def _plan(self, config: MmuConfig) -> list[Post]:
        mmu = self._post("mmu", "mmu", "the Rack MMU", "mmu.sock", partial(MmuDaemon, config))
        posts = [mmu]
        for element in config.elements:
            make_server, title = partial(ElementServer, config, element), f"memory element {element.name}"
            posts.append(self._post("element", element.name, title, element.path, make_server))
        for compute, path in zip(config.computes, config.agent_paths, strict=True):
            make_agent = partial(Agent, config, compute)
            posts.append(self._post("agent", compute, f"agent {compute}", path, make_agent))
        for post in posts[1:]:
            mmu.is_neighbour(post)
        return [*posts, self._plan_monitor(config, posts)]

    def _plan_monitor(self, config: MmuConfig, posts: list[Post]) -> Post:
        """Everybody's neighbour: it asks them all whether they are well."""
        make_monitor = partial(Monitor, config)
        monitor = self._post("monitor", "monitor", "the rack monitor", "monitor.sock", make_monitor)
        for post in posts:
            monitor.is_neighbour(post)
        return monitor

    def _post(self, kind: str, name: str, title: str, file: str, make: Callable[..., Daemon]) -> Post:
        path = self._directory.socket(file)
        return Post(kind, name, title, path, listen(path), make)

    # --- starting daemons ----------------------------------------------------------------------------------

    def _start(self, post: Post) -> None:
        """Forks the daemon and links it with those of its neighbours that are there; others link up as they come."""
        ours, theirs = link()
        try:
            pid, pidfd = self._fork(post, ours, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        post.began(Child(pid, pidfd, Wire(ours, CONTROL_QUEUE_MAX), time.monotonic()))
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._ended, post))
        self._selector.register(ours, selectors.EVENT_READ, partial(self._control_ready, post))
        try:
            for neighbour in post.neighbours:
                if neighbour.child is not None:
                    self._connect(post, neighbour)
        except OSError as error:  # it is there, if of no use: its end is what another is started after
            self._execute(post, f"it cannot be linked with its neighbours: {error}")

    def _fork(self, post: Post, ours: socket.socket, theirs: socket.socket) -> tuple[int, int]:
        sys.stdout.flush()
        gc.freeze()  # what has been imported stays in pages that all daemons share
        # A signal between a daemon's fork and its own handlers would be lost on the handlers that it inherits.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become(post, theirs)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            gc.unfreeze()
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # what cannot be watched must not be
            os.waitpid(pid, 0)
            raise

    def _connect(self, one: Post, other: Post) -> None:
        ends = link()
        for post, neighbour, end in ((one, other, ends[0]), (other, one, ends[1])):
            assert neighbour.child is not None
            about = Relink(neighbour.kind, neighbour.name, neighbour.child.pid, neighbour.restarts)
            self._tell(post, about, [end.fileno()])
            end.close()

    def _become(self, post: Post, control: socket.socket) -> None:
        """In the child: does not return."""
        code = 1
        try:
            self._shed(post)
            with suppress(OSError):
                Path("/proc/self/comm").write_text(f"bequest-{post.name}"[:15])
            daemon = post.make(post.listener, Tether(control, self._safe.of(post.key), post.starts))
            daemon.run()
            code = RACK_ENDS if daemon.ends_rack else 0
            if daemon.supervisor_has_gone():
                if daemon.lock is not None:
                    self._directory.lock = daemon.lock
                self._directory.remove()
        except BaseException:
            log.exception("%s has failed", post.title)
        finally:
            logging.shutdown()
            os._exit(code)

    def _shed(self, post: Post) -> None:
        """Lets go of all that is the supervisor's or another daemon's."""
        for other in self._posts:
            if other.child is not None:
                os.close(other.child.pidfd)
                other.child.control.close()
            if other is not post and other.listener is not None:
                other.listener.close()
        self._safe.shed(post.key)
        self._selector.close()
        self._signals.close()
        self._signal_sender.close()

    # --- what daemons ask for ------------------------------------------------------------------------------

    def _control_ready(self, post: Post) -> None:
        child = post.child
        if child is None:
            return
        try:
            child.control.flush()
            for _ in range(_PACKETS_AT_ONCE):
                # Whoever does not read its answers is not read either.
                if child.control.queue or not self._take_one(post, child):
                    break
        except GarbledPacket as error:
            self._execute(post, f"it misbehaves: {error}")
        except OSError:
            self._hang_up(child)
        self._watch_control(post)

    def _take_one(self, post: Post, child: Child) -> bool:
        """False if there is nothing more at the moment."""
        try:
            packet = receive_packet(child.control.socket, self._buffer)
        except BlockingIOError:
            return False
        if not packet.data:
            packet.close_fds()
            self._hang_up(child)
            return False
        try:
            message = self._decoder.decode(packet.data)
        except GarbledPacket:
            packet.close_fds()
            raise
        if isinstance(message, Keep):
            trouble = self._safe.keep(post.key, message.key, Deposit(message.meta, packet.fds))
            self._tell(post, Kept(message.key, trouble))
        else:
            assert isinstance(message, Release)
            packet.close_fds()
            self._safe.release(post.key, message.key)
        return True

    def _tell(self, post: Post, message: Message, fds: list[int] | None = None) -> None:
        child = post.child
        if child is None or child.has_hung_up:
            return
        try:
            child.control.send(encode(message), fds or [])
        except SlowReader as error:
            self._execute(post, f"it does not read what it is told: {error}")
        except OSError:
            self._hang_up(child)
        self._watch_control(post)

    def _watch_control(self, post: Post) -> None:
        child = post.child
        if child is None or child.has_hung_up:
            return
        wants = selectors.EVENT_WRITE if child.control.queue else selectors.EVENT_READ
        key = self._selector.get_key(child.control.socket)
        if key.events != wants:
            self._selector.modify(key.fileobj, wants, key.data)

    def _hang_up(self, child: Child) -> None:
        """It has gone, and its pidfd is about to tell; or it has closed its end, and is no use without."""
        if not child.has_hung_up:
            child.has_hung_up = True
            self._selector.unregister(child.control.socket)
            os.kill(
                child.pid, signal.SIGKILL
            )  # not reaped yet, so the pid is its own; an exit code stays what it was

    def _execute(self, post: Post, reason: str) -> None:
        assert post.child is not None
        log.error("%s (pid %d) is killed: %s", post.title, post.child.pid, reason)
        os.kill(post.child.pid, signal.SIGKILL)

    # --- ends ----------------------------------------------------------------------------------------------

    def _ended(self, post: Post) -> None:
        child = post.child
        if child is None:
            return
        pid, waited = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            return
        status = os.waitstatus_to_exitcode(waited)
        self._take_last_words(post, child)
        self._hang_up(child)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.control.close()
        may_return = post.ended(time.monotonic())
        if self._asked_to_stop or self._verdict is not None:
            return
        if status == RACK_ENDS:
            self._verdict = 0
            return
        log.error("%s", obituary(post, pid, status))
        if not may_return:
            log.error("%s has died %d times in a row: the rack ends", post.title, SHORT_LIVES_MAX + 1)
            self._verdict = 1

    def _take_last_words(self, post: Post, child: Child) -> None:
        """What it had sent is kept; a packet that is none is passed over."""
        errors = 0
        while errors < _ERRORS_MAX:
            try:
                if not self._take_one(post, child):
                    return
            except GarbledPacket:
                continue
            except OSError:  # it left something unread, which the kernel tells before it gives what is there
                errors += 1

    def _look_after(self, upkeep: Upkeep) -> None:
        try:
            upkeep.look(time.monotonic())
        except NameTaken as error:
            log.error("%s: nobody can find this one any more, and it ends", error)
            self._verdict = 1

    def _next_start(self) -> float:
        return min((post.start_at for post in self._posts if post.start_at is not None), default=math.inf)

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for post in self._posts:
            if post.start_at is None or now < post.start_at or self._verdict is not None:
                continue
            try:
                self._start(post)
            except OSError as error:
                log.error("%s cannot be started: %s", post.title, error)
                post.short_lives += 1
                if not post.delay_start(now):
                    self._verdict = 1
            else:
                assert post.child is not None
                log.warning(
                    "%s runs again, as pid %d (restart %d)", post.title, post.child.pid, post.restarts
                )

    def _wait(self, until: float) -> None:
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            key.data()

    def _stop_daemons(self) -> None:
        """Gently, then not."""
        self._asked_to_stop = True
        deadline = time.monotonic() + STOP_TIMEOUT
        for post in self._posts:
            if post.child is not None:
                os.kill(post.child.pid, signal.SIGTERM)
        while any(post.child is not None for post in self._posts):
            if time.monotonic() >= deadline:
                for post in self._posts:
                    if post.child is not None:
                        log.error("%s does not end, and is killed", post.title)
                        os.kill(post.child.pid, signal.SIGKILL)
                deadline = time.monotonic() + STOP_TIMEOUT
            self._wait(deadline)

    # --- signals -------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._signal_sender.setblocking(False)
        signal.set_wakeup_fd(self._signal_sender.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask_to_stop)
        self._selector.register(self._signals, selectors.EVENT_READ, self._read_signals)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._asked_to_stop = True

    def _read_signals(self) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(4096)


# --- running one ------------------------------------------------------------------------------------------


def run_rack(
    config: RackConfig,
    when_ready: Callable[[ClaimedDirectory], None],
    log_to_stderr: bool = False,
) -> int:
    """Runs a rack in this process, which should do nothing else, until it is to stop; the exit code.

    Either logs to standard error, or to the rack's own log, and then leaves the terminal altogether.
    Raises `BequestError` if it cannot start.
    """
    for element in config.elements:
        try:
            SlabFiles(element.name, element.kind).probe()
        except SlabFileError as error:
            raise BadConfig(str(error)) from error
    directory = claim(config.name)
    try:
        # Before the daemons are forked: they must not keep the terminal either.
        rack_log = None if log_to_stderr else _leave_terminal(directory.log)
        _set_up_log(logging.StreamHandler() if rack_log is None else logging.StreamHandler(Lines()))
        directory.write_notes(RackNotes(config.name, os.getpid(), _version(), config.linger is not None))
        supervisor = Supervisor(config, directory, rack_log)
    except BaseException:
        directory.remove()
        raise
    return supervisor.run(lambda: when_ready(directory))


def embedded_config() -> RackConfig:
    """Of a rack that ends with its last client."""
    return make_config(name=f"{EMBEDDED_PREFIX}{os.getpid()}", linger=EMBEDDED_LINGER)


def _set_up_log(handler: logging.Handler) -> None:
    logging.basicConfig(
        handlers=[handler],
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
        level=logging.INFO,
        force=True,
    )


def _version() -> str:
    from bequest.limits import TABLE_VERSION, WIRE_VERSION

    return f"{WIRE_VERSION}.{TABLE_VERSION}"


# --- detached: the other side of bequest.runtime.embedded -------------------------------------------------


class Report(msgspec.Struct):
    """What a detached supervisor writes into the pipe of whoever started it: where the rack is, or what went wrong."""

    path: str = ""
    error: str = ""


def main(arguments: list[str]) -> int:
    """``--embedded`` or ``--config JSON``, and ``--ready-fd N``; leaves its parent."""
    ready = int(arguments[arguments.index("--ready-fd") + 1])
    os.set_inheritable(ready, False)
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    os.chdir("/")

    def report(message: Report) -> None:
        os.write(ready, msgspec.json.encode(message))
        os.close(ready)

    def started(directory: ClaimedDirectory) -> None:
        report(Report(path=str(directory.path)))

    try:
        if "--embedded" in arguments:
            config = embedded_config()
        else:
            config = msgspec.json.decode(arguments[arguments.index("--config") + 1], type=RackConfig)
        return run_rack(config, started)
    except (BequestError, OSError) as error:
        with suppress(OSError):
            report(Report(error=f"{type(error).__name__}: {error}"))
        return 1


def _leave_terminal(log_path: Path) -> RackLog:
    """Whoever started the rack may wait for the end of its output."""
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1):
        os.dup2(null, target)
    os.close(null)
    return RackLog(log_path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
