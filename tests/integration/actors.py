"""Other processes for the tests: started bare, told what to do, killed if need be.

A *nursery* is one interpreter that has imported everything and is attached to nothing. It forks actors (users of a
rack) and racks, which costs milliseconds instead of the import of NumPy each time, and as their parent tells how they
ended. An actor runs functions of this module or of a test's own helper module, by name, one at a time, and sends back
what they return or raise. What the functions share lies in their `Seat`.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import bequest as bq
from bequest.memory.rack import Rack  # noqa: F401  # before the fork: `bequest` imports it when asked for it
from bequest.runtime import supervisor

DEADLINE = 20.0  # seconds after which a test's wait has failed; nothing is expected to take as long


class Seat:
    """An actor's state: its rack, its attachment, and what it has kept under names."""

    def __init__(self, rack: bq.Rack) -> None:
        self.rack = rack
        self.me: bq.Process = None  # type: ignore[assignment]  # set when it attaches
        self.kept: dict[str, Any] = {}


# --- the nursery: runs in a process of its own ----------------------------------------------------------------


def nursery(control_fd: int) -> None:
    """Forks what it is asked for and says how it ended, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test runner's to handle
    control = socket.socket(fileno=control_fd)
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not data:
            return
        request = pickle.loads(data)
        match request:
            case ("fork", function, environment, arguments):
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _become(function, environment, fds[0], arguments)
                os.close(fds[0])
                answer = pid
            case ("wait", pid, seconds):
                answer = _wait(pid, seconds)
        control.sendall(pickle.dumps(answer))


def _wait(pid: int, seconds: float) -> int | None:
    """Its exit code, minus the signal that killed it, or None if it still runs."""
    pidfd = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if ready else None


def _become(function: Callable[..., None], environment: dict[str, str], fd: int, arguments: tuple) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.pop("BEQUEST_RACK", None)
        os.environ.update(environment)
        function(Connection(fd), *arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_rack(connection: Connection, config: Any) -> None:
    """A rack's supervisor; answers with the rack's directory."""
    code = supervisor.run_rack(config, lambda directory: connection.send(str(directory.path)))
    if code != 0:
        raise SystemExit(code)


def run_actor(connection: Connection, rack: str, name: str | None, secret: bytes | None) -> None:
    """Attaches, and does as it is told until the other end closes."""
    seat = Seat(bq.connect(rack))
    if name is not None:
        seat.me = seat.rack.attach(name, group=secret)
    connection.send((os.getpid(), seat.me.id if name is not None else 0))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            break
        try:
            answer = (True, function(seat, *arguments))
        except BaseException as error:
            error.__traceback__ = None  # its frames hold views, and it would be sent without them anyway
            error.__context__ = None
            answer = (False, error)
        connection.send(answer)
        del answer
    seat.kept.clear()
    if seat.me is not None:
        seat.me.detach()


# --- what actors do: regions ---------------------------------------------------------------------------------


def attach(seat: Seat, name: str, secret: bytes | None = None) -> int:
    seat.me = seat.rack.attach(name, group=secret)
    return seat.me.id


def detach(seat: Seat) -> None:
    seat.kept.clear()
    seat.me.detach()


def alloc(seat: Seat, key: str, nbytes: int, value: int = 0, **how: Any) -> int:
    region = seat.kept[key] = seat.me.alloc(nbytes, **how)
    region.array()[:] = value
    return region.address


def accept(seat: Seat, key: str, timeout: float | None = DEADLINE) -> tuple[int, int, bytes, str]:
    region = seat.kept[key] = seat.me.accept(timeout)
    return region.address, region.nbytes, region.tag, region.sender


def accept_and_free(seat: Seat, count: int, timeout: float | None = DEADLINE) -> int:
    """Takes this many regions and frees each; their bytes together."""
    total = 0
    for _ in range(count):
        with seat.me.accept(timeout) as region:
            total += region.nbytes
    return total


def fill(seat: Seat, key: str, value: int) -> None:
    seat.kept[key].array()[:] = value


def values(seat: Seat, key: str) -> list[int]:
    """The distinct bytes in a region."""
    return np.unique(seat.kept[key].array()).tolist()


def grant(seat: Seat, key: str, to: str, **how: Any) -> int:
    return seat.kept[key].grant(to, **how)


def grant_part(seat: Seat, key: str, start: int, stop: int, to: str) -> int:
    return seat.kept[key][start:stop].grant(to)


def free(seat: Seat, key: str) -> None:
    seat.kept.pop(key).free()


def send(seat: Seat, to: str, message: bytes, count: int = 1) -> None:
    for _ in range(count):
        seat.me.send(to, message)


def hold_view(seat: Seat, key: str) -> None:
    seat.kept[f"view of {key}"] = memoryview(seat.kept[key])


def own_id(seat: Seat) -> int:
    return seat.me.id


def adopt(seat: Seat, key: str, victim: int, incarnation: int) -> None:
    """Opens the one region that was stolen for it."""
    [seat.kept[key]] = seat.me._adopt(victim, incarnation)


def depth(seat: Seat) -> int:
    return len(seat.me.inbox)


def audit(seat: Seat) -> list[str]:
    return seat.me.table.audit()


def echo(seat: Seat, value: Any) -> Any:
    return value


# --- what actors do: seen from the kernel ---------------------------------------------------------------------


def protection(seat: Seat, address: int) -> str:
    return protection_of(address)


def protection_of(address: int) -> str:
    """Of the mapping that holds this address in this process, as /proc/self/maps has it: ``rw-s``."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, flags = line.split()[:2]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return flags
    return "none"


def frames(seat: Seat, address: int, nbytes: int) -> list[int]:
    """The page frames behind these addresses (root only: the kernel shows zeros to others)."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(address // 4096 * 8)
        entries = np.frombuffer(pagemap.read(nbytes // 4096 * 8), "u8")
    return (entries & ((1 << 55) - 1)).tolist()


def resident_bytes(seat: Seat) -> int:
    """Shared and private pages of this process that are in memory, counting those of the rack window once."""
    line = next(
        ln for ln in Path("/proc/self/smaps_rollup").read_text().splitlines() if ln.startswith("Rss:")
    )
    return int(line.split()[1]) * 1024


def window_bytes(seat: Seat) -> int:
    """Of rack memory, what is resident by way of this process's mappings."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            inside = 0x2000_0000_0000 <= int(first.split("-")[0], 16) < 0x4000_0000_0000
        elif first == "Rss:" and inside:
            total += int(line.split()[1]) * 1024
    return total


def peek(seat: Seat, address: int) -> int:
    """Reads one byte, wherever that is: ends this process if it may not."""
    import ctypes

    return ctypes.string_at(address, 1)[0]


def poke(seat: Seat, address: int) -> None:
    """Writes one byte, wherever that is: ends this process if it may not."""
    import ctypes

    ctypes.memset(address, 1, 1)


# --- the test's end ------------------------------------------------------------------------------------------


class Nursery:
    """The test's hold on the nursery."""

    def __init__(self) -> None:
        import subprocess

        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import actors"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{program}; actors.nursery({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._control = mine
        self._unread = 0

    def fork(
        self, function: Callable[..., None], environment: dict[str, str], *arguments: Any
    ) -> tuple[int, Connection]:
        mine, theirs = socket.socketpair()
        with mine, theirs:
            request = pickle.dumps(("fork", function, environment, arguments))
            socket.send_fds(self._control, [request], [theirs.fileno()])
            return self._answer(), Connection(os.dup(mine.fileno()))

    def wait(self, pid: int, seconds: float = DEADLINE) -> int | None:
        """Its exit code, minus the signal that killed it, or None if it has not ended by then."""
        self._control.sendall(pickle.dumps(("wait", pid, seconds)))
        return self._answer()

    def _answer(self) -> Any:
        answer = self._control.recv(1 << 16)
        assert answer, "the nursery has ended; its error output says why"
        return pickle.loads(answer)

    def close(self) -> None:
        self._control.close()
        assert self._process.wait(DEADLINE) == 0


class Actor:
    """A process of its own that is attached to a rack under a name."""

    def __init__(
        self,
        nursery: Nursery,
        environment: dict[str, str],
        rack: Path,
        name: str | None,
        secret: bytes | None,
    ):
        self._nursery = nursery
        self.name = name
        self.pid, self._connection = nursery.fork(run_actor, environment, str(rack), name, secret)
        self._status: int | None = None
        assert self._connection.poll(DEADLINE), f"{name} has not attached"
        self.pid, self.id = self._connection.recv()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has it run a function; `result` is what that returns."""
        self._connection.send((function, arguments))

    def result(self, timeout: float = DEADLINE) -> Any:
        assert self._connection.poll(timeout), f"{self.name} has not answered within {timeout} s"
        done, value = self._connection.recv()
        if not done:
            raise value
        return value

    def is_busy(self) -> bool:
        """Whether the function it was given still runs."""
        return not self._connection.poll(0)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start(function, *arguments)
        return self.result()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self, timeout: float = DEADLINE) -> int:
        """Until it has ended; its exit code, minus the signal that killed it."""
        if self._status is None:
            self._status = self._nursery.wait(self.pid, timeout)
        assert self._status is not None, f"{self.name} has not ended within {timeout} s"
        return self._status

    def close(self) -> int:
        """Lets it detach and end."""
        self._connection.close()
        return self.wait()


def until(condition: Callable[[], Any], what: str = "the condition", timeout: float = DEADLINE) -> Any:
    """Waits until it holds, and returns its value; looks at it often enough for a person not to notice."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout} s"
        time.sleep(0.002)
    return value
