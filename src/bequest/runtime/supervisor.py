"""Starts a rack's daemons, watches them, and cleans up after them.

Theory of operation. One process imports everything, makes all sockets, and forks the daemons, which share its pages and
are ready as soon as the sockets listen: a client that comes early waits in a socket's queue. The supervisor holds the
write end of a pipe (*life*) whose other end every daemon watches: if the supervisor is killed, they end, and the Rack
MMU removes the directory. If a daemon ends, the rack cannot go on at this stage: the others are stopped, and a rack of
``bequest up`` starts over, empty, as its next generation, while an embedded one ends with its memory.

Exit codes of daemons: the Rack MMU's 0 means that the rack is to stop; FOLLOWED that this daemon ended because another
one had, so it is not the cause.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from bequest.errors import BadConfig, BequestError
from bequest.limits import EMBEDDED_LINGER, GENERATIONS_PER_MINUTE, STOP_TIMEOUT
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.agent import Agent
from bequest.runtime.config import RackConfig, make_config
from bequest.runtime.directory import EMBEDDED_PREFIX, ClaimedDirectory, RackNotes, claim
from bequest.runtime.element_server import ElementServer
from bequest.runtime.loop import STOP_SIGNALS, Daemon
from bequest.runtime.mmu_daemon import MmuDaemon
from bequest.runtime.slab_files import SlabFileError, SlabFiles
from bequest.runtime.transport import link, listen

log = logging.getLogger("bequest.supervisor")

FOLLOWED = 3
_CAUSE_TIMEOUT = 1.0  # how long to wait for the cause once a daemon has only followed


class Child(msgspec.Struct):
    role: str
    pid: int
    pidfd: int
    status: int | None = None  # as os.waitstatus_to_exitcode tells


class DaemonPlan(msgspec.Struct):
    """One daemon before its fork: the sockets that are its own, and how to make it."""

    role: str
    own: list[socket.socket]
    make: Callable[[int], Daemon]  # from the read end of the life pipe


class Supervisor:
    def __init__(self, config: RackConfig, directory: ClaimedDirectory) -> None:
        self._config = config
        self._directory = directory
        self._children: list[Child] = []
        self._selector: selectors.DefaultSelector | None = None
        self._signals, self._signal_sender = socket.socketpair()
        self._life: tuple[int, int] = (-1, -1)
        self._generation = 0
        self._starts: list[float] = []
        self._asked_to_stop = False

    def run(self, when_ready: Callable[[], None]) -> int:
        """Until the rack ends; the exit code."""
        self._catch_signals()
        try:
            self._start_generation()
            when_ready()
            while True:
                cause = self._wait_for_end()
                self._stop_daemons()
                if cause is None:
                    return 0
                log.error("the rack has lost its memory: %s", cause)
                if self._config.linger is not None or not self._may_start_again():
                    return 1
                self._start_generation()
        finally:
            self._stop_daemons()
            self._directory.remove()

    # --- a generation of daemons ---------------------------------------------------------------------------

    def _start_generation(self) -> None:
        self._generation += 1
        self._starts.append(time.monotonic())
        for stale in self._directory.path.glob("*.sock"):
            stale.unlink()
        self._life = os.pipe2(os.O_CLOEXEC)
        plans = self._plan(self._config.for_mmu(self._generation))
        sys.stdout.flush()
        gc.collect()
        gc.freeze()  # what has been imported stays in pages that all daemons share
        # A signal between a daemon's fork and its own handlers would be lost on the handlers that it inherits.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for plan in plans:
                self._children.append(self._fork(plan, plans))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        gc.unfreeze()
        os.close(self._life[0])
        for plan in plans:
            for own in plan.own:
                own.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        for child in self._children:
            self._selector.register(child.pidfd, selectors.EVENT_READ)
        log.info(
            "rack %r runs, generation %d, in %s", self._config.name, self._generation, self._directory.path
        )

    def _plan(self, config: MmuConfig) -> list[DaemonPlan]:
        element_links = [link() for _ in config.elements]
        agent_links = [link() for _ in config.computes]
        mmu_listener = listen(self._directory.mmu_socket)
        to_elements, to_agents = [end for end, _ in element_links], [end for end, _ in agent_links]
        make_mmu = partial(MmuDaemon, config, mmu_listener, element_links=to_elements, agent_links=to_agents)
        plans = [DaemonPlan("mmu", [mmu_listener, *to_elements, *to_agents], make_mmu)]
        for element, (_, end) in zip(config.elements, element_links, strict=True):
            listener = listen(self._directory.socket(element.path))
            make_server = partial(ElementServer, config, element, listener, mmu_link=end)
            plans.append(DaemonPlan(element.name, [listener, end], make_server))
        for compute, path, (_, end) in zip(config.computes, config.agent_paths, agent_links, strict=True):
            listener = listen(self._directory.socket(path))
            make_agent = partial(Agent, config, compute, listener, mmu_link=end)
            plans.append(DaemonPlan(compute, [listener, end], make_agent))
        return plans

    def _fork(self, plan: DaemonPlan, plans: Iterable[DaemonPlan]) -> Child:
        pid = os.fork()
        if pid == 0:
            self._become(plan, plans)
        return Child(plan.role, pid, os.pidfd_open(pid))

    def _become(self, plan: DaemonPlan, plans: Iterable[DaemonPlan]) -> None:
        """In the child: does not return."""
        code = 1
        try:
            os.close(self._life[1])
            for other in plans:
                for theirs in other.own if other is not plan else ():
                    theirs.close()
            for child in self._children:
                os.close(child.pidfd)
            self._signals.close()
            self._signal_sender.close()
            with suppress(OSError):
                Path("/proc/self/comm").write_text(f"bequest-{plan.role}"[:15])
            daemon = plan.make(self._life[0])
            daemon.run()
            code = FOLLOWED if daemon.followed else 0
            if plan.role == "mmu" and daemon.supervisor_has_gone():
                self._directory.remove()
        except BaseException:
            log.exception("%s has failed", plan.role)
        finally:
            logging.shutdown()
            os._exit(code)

    # --- its end -------------------------------------------------------------------------------------------

    def _wait_for_end(self) -> str | None:
        """What the rack died of; None if it was to stop."""
        assert self._selector is not None
        deadline: float | None = None
        while not self._asked_to_stop:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._selector.select(timeout)
            self._read_signals()
            self._reap()
            ended = [child for child in self._children if child.status is not None]
            causes = [child for child in ended if child.status != FOLLOWED]
            if any(child.role == "mmu" and child.status == 0 for child in causes):
                return None
            if causes:
                return "; ".join(_obituary(child) for child in causes)
            if ended and deadline is None:
                deadline = time.monotonic() + _CAUSE_TIMEOUT
            elif deadline is not None and time.monotonic() >= deadline:
                return "; ".join(_obituary(child) for child in ended)
        return None

    def _reap(self) -> None:
        for child in self._children:
            if child.status is None:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.status = os.waitstatus_to_exitcode(status)
                    assert self._selector is not None
                    self._selector.unregister(child.pidfd)

    def _stop_daemons(self) -> None:
        """Gently, then not."""
        deadline = time.monotonic() + STOP_TIMEOUT
        for child in self._children:
            if child.status is None:
                os.kill(child.pid, signal.SIGTERM)
        while any(child.status is None for child in self._children):
            assert self._selector is not None
            left = deadline - time.monotonic()
            if left <= 0:
                for child in self._children:
                    if child.status is None:
                        log.error("%s does not end, and is killed", child.role)
                        os.kill(child.pid, signal.SIGKILL)
                left = STOP_TIMEOUT
            self._selector.select(left)
            self._read_signals()
            self._reap()
        self._forget_generation()

    def _forget_generation(self) -> None:
        for child in self._children:
            os.close(child.pidfd)
        self._children = []
        if self._selector is not None:
            self._selector.close()
            self._selector = None
            os.close(self._life[1])

    def _may_start_again(self) -> bool:
        self._starts = [then for then in self._starts if time.monotonic() - then < 60]
        if len(self._starts) > GENERATIONS_PER_MINUTE:
            log.error("%d generations have died within a minute; giving up", len(self._starts))
            return False
        return True

    # --- signals -------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._signal_sender.setblocking(False)
        signal.set_wakeup_fd(self._signal_sender.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._asked_to_stop = True

    def _read_signals(self) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(4096)


def _obituary(child: Child) -> str:
    assert child.status is not None
    if child.status < 0:
        return f"daemon {child.role} (pid {child.pid}) was killed by {signal.Signals(-child.status).name}"
    return f"daemon {child.role} (pid {child.pid}) ended with code {child.status}"


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
        _set_up_log(None if log_to_stderr else directory.log)
        if not log_to_stderr:
            _leave_terminal(directory.log)  # before the daemons are forked: they must not keep it either
        directory.write_notes(RackNotes(config.name, os.getpid(), _version(), config.linger is not None))
        supervisor = Supervisor(config, directory)
    except BaseException:
        directory.remove()
        raise
    return supervisor.run(lambda: when_ready(directory))


def embedded_config() -> RackConfig:
    """Of a rack that ends with its last client."""
    return make_config(name=f"{EMBEDDED_PREFIX}{os.getpid()}", linger=EMBEDDED_LINGER)


def _set_up_log(path: Path | None) -> None:
    logging.basicConfig(
        filename=path,
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


def _leave_terminal(log_path: Path) -> None:
    """Whoever started the rack may wait for the end of its output; what Python cannot log goes to the log as well."""
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    os.close(null)
    os.close(errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
