"""A replicated service as its users run it, with clients that write down what they see, and somebody who breaks it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from actors import until
from bequest.errors import RackFault
from bequest.paxos.config import Address, Service, Site, write_service
from bequest.paxos.status import Report, ask
from bequest.paxos.timing import Timing
from bequest.wire import messages as wire
from linearizability import Operation
from racks import RackUnderTest, Yard
from wires import Wires

SITES = "abc"
SOON = 30.0
ASK_SECONDS = 0.3
PATIENCE_SECONDS = 0.5  # of a client, for one answer
KEYS = 6
ONCE = Retry(NoBackoff(), 0)  # what is tried again unasked would be one operation that happens twice


OWN_PORTS = range(
    20_000, 32_768
)  # below those that the kernel gives to connections, which could take one meanwhile


def free_ports(count: int) -> list[int]:
    """As many, each another, that nobody listens at."""
    found = []
    for port in random.SystemRandom().sample(OWN_PORTS, len(OWN_PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"fewer than {count} free ports of {OWN_PORTS}")


class ServiceUnderTest:
    """Three sites, each with a rack, a holder, and a file in which the others are at the end of a wire."""

    def __init__(self, yard: Yard, place: Path, *options: str, **timing: float) -> None:
        self._options = options
        self._timing = Timing(**timing)  # type: ignore[arg-type]  # one of them is a bool, and is not set here
        self._place = place
        ports = iter(free_ports(2 * len(SITES)))
        self.peers = {site: ("127.0.0.1", next(ports)) for site in SITES}
        self.clients = {site: ("127.0.0.1", next(ports)) for site in SITES}
        self.wires = Wires(self.peers)
        self.racks: dict[str, RackUnderTest] = {
            site: yard.rack("dram0:128MiB", name=f"rack-{site}") for site in SITES
        }
        self.holders: dict[str, subprocess.Popen[bytes]] = {}
        for site in SITES:
            (place / f"{site}.toml").write_text(write_service(self._seen_from(site)))
            self._start(site, "--founding")

    def _seen_from(self, here: str) -> Service:
        return Service(
            "tested",
            tuple(
                Site(
                    site,
                    str(self.racks[site].directory),
                    Address(*(self.peers[site] if site == here else self.wires.address(here, site))),
                    Address(*self.clients[site]),
                )
                for site in SITES
            ),
            self._timing,
        )

    def _start(self, site: str, *options: str) -> None:
        command = [sys.executable, "-m", "bequest.cli", "paxos", "site", site]
        config = ["--config", str(self._place / f"{site}.toml")]
        with (self._place / "log").open("ab") as log:
            self.holders[site] = subprocess.Popen(
                [*command, *config, *options, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What its processes have said."""
        return (self._place / "log").read_text()

    # --- how it is --------------------------------------------------------------------------------------------------

    def report(self, site: str) -> Report | None:
        """What its replica says; None if it does not answer."""
        with suppress(OSError, RackFault):
            return ask("tested", Address(*self.peers[site]), ASK_SECONDS)
        return None

    def reports(self) -> list[Report]:
        found = [self.report(site) for site in SITES]
        return [report for report in found if report is not None]

    def is_healthy(self) -> bool:
        """All vote, follow one leader, are up to date, and have somebody to go on with them."""
        reports = self.reports()
        roles = sorted(report.role for report in reports)
        return (
            roles == ["follower", "follower", "leader"]
            and len({report.applied for report in reports}) == 1
            and all(len(report.members) == len(SITES) for report in reports)
            and (self._is_plain or all(report.standbys for report in reports))
        )

    @property
    def _is_plain(self) -> bool:
        return "--no-reincarnation" in self._options

    def rest(self) -> None:
        """Waits until it is healthy."""
        try:
            until(self.is_healthy, "the health of the service", SOON)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.reports()}\n{self.log[-4000:]}") from None

    def leader(self) -> Report:
        """The report of whoever leads, once somebody does."""
        return until(
            lambda: next((one for one in self.reports() if one.role == "leader"), None), "a leader", SOON
        )

    def follower(self) -> Report:
        """One of those who follow."""
        return next(report for report in self.reports() if report.role == "follower")

    def successor(self, former: Report) -> Report:
        """What speaks for its site when it no longer does itself."""

        def other() -> Report | None:
            report = self.report(former.site)
            return (
                report if report is not None and report.os_pid != former.os_pid and report.replica else None
            )

        return until(other, f"another process at site {former.site}", SOON)

    def client(self, site: str) -> redis.Redis:
        """Of redis-py, without retries."""
        return redis.Redis(port=self.clients[site][1], socket_timeout=SOON, retry=ONCE)

    def connection(self, site: str) -> socket.socket:
        """To its clients' port: redis-py would connect again by itself where it finds a connection broken."""
        return socket.create_connection(self.clients[site], SOON)

    # --- what is done to it -----------------------------------------------------------------------------------------

    def leader_first(self, chance: random.Random) -> list[Report]:
        """Those that answer: the leader before the others, which are in any order."""
        reports = self.reports()
        chance.shuffle(reports)
        return sorted(reports, key=lambda report: report.role != "leader")

    def lose_memory(self, site: str) -> None:
        """That of its replica's heap, or the beginning of it."""
        connection = self.racks[site].connection
        names = connection.request(wire.ListNames("/paxos", None))
        assert isinstance(names, wire.NameList)
        for heap in names.names:
            connection.request(wire.BreakMemory("dram0", heap.address, heap.nbytes))

    def close(self) -> None:
        with ExitStack() as rest:  # everything is taken down, whatever fails
            rest.callback(self.wires.close)
            for holder in self.holders.values():
                holder.terminate()
                rest.callback(self._see_it_end, holder)

    def _see_it_end(self, holder: subprocess.Popen[bytes]) -> None:
        try:
            assert holder.wait(SOON) == 0, self.log
        finally:
            holder.kill()


# --- clients --------------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Does one thing after the other to a few keys, at whichever site answers, and writes down what it sees.

    What it is not answered may have happened, now or later: such an operation has no end. It is not tried again.
    """

    def __init__(self, number: int, seed: int, ports: list[int]) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._number = number
        self._chance = random.Random(f"{seed}/{number}")
        self._ports = ports
        self._at = number % len(ports)
        self._connection: redis.Redis | None = None
        self._written = 0
        self.stopping = threading.Event()
        self.history: list[Operation] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            self.step()

    def step(self) -> None:
        operation = self._choose()
        self.history.append(operation)
        try:
            result = self._do(operation)
        except redis.RedisError:
            self._at = (self._at + 1) % len(self._ports)
            self._hang_up()
            time.sleep(self._chance.uniform(0, 0.01))
        else:
            operation.end(time.perf_counter(), result)
            time.sleep(self._chance.expovariate(1 / 0.004))

    def _choose(self) -> Operation:
        key = b"key%d" % self._chance.randrange(KEYS)
        kind = self._chance.choices(("get", "set", "setnx", "swap", "delete"), (5, 3, 1, 2, 1))[0]
        self._written += 1
        value = b"%d.%d" % (self._number, self._written)
        return Operation(key, kind, () if kind in ("get", "delete") else (value,), time.perf_counter())

    def _do(self, operation: Operation) -> bytes:
        if self._connection is None:
            self._connection = redis.Redis(
                port=self._ports[self._at],
                socket_timeout=PATIENCE_SECONDS,
                socket_connect_timeout=PATIENCE_SECONDS,
                retry=ONCE,
            )
        return ask_for(self._connection, operation)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def ask_for(connection: redis.Redis, operation: Operation) -> bytes:
    """Carries it out; what the answer was. An empty one means that there was no value."""
    key, values = operation.key, operation.arguments
    match operation.kind:
        case "get":
            return connection.get(key) or b""
        case "set":
            connection.set(key, *values)
            return b"OK"
        case "setnx":
            return b"OK" if connection.set(key, *values, nx=True) else b"no"
        case "swap":
            return connection.set(key, *values, get=True) or b""
        case _:
            return b"%d" % connection.delete(key)


def step_of_keys(state: bytes, operation: Operation) -> bytes | None:
    """What `ask_for` may be answered where the key has that value, and the value after; empty is none."""
    result = operation.result
    expected, after = {
        "get": (state, state),
        "set": (b"OK", b"".join(operation.arguments)),
        "setnx": (b"no", state) if state else (b"OK", b"".join(operation.arguments)),
        "swap": (state, b"".join(operation.arguments)),
        "delete": (b"%d" % bool(state), b""),
    }[operation.kind]
    return after if result is None or result == expected else None


# --- whoever breaks it ------------------------------------------------------------------------------------------------


class Nemesis:
    """Breaks something, and mends it, again and again. ``done`` tells what it did, and when."""

    def __init__(self, service: ServiceUnderTest, seed: int) -> None:
        self._service = service
        self._chance = random.Random(f"{seed}/nemesis")
        self._stopped: list[int] = []
        self.done: list[str] = []

    def act(self, name: str | None = None) -> None:
        """One thing, by its name or by chance."""
        ways: dict[str, Callable[[Report], None]] = {
            "kill": self.kill,
            "kill both": self.kill_both,
            "stop": self.stop,
            "isolate": self.isolate,
            "lose memory": self.lose_memory,
        }
        name = name or self._chance.choice(list(ways))
        reports = self._service.leader_first(self._chance)
        if reports:
            victim = reports[0] if self._chance.random() < 0.6 else self._chance.choice(reports)
            self.done.append(f"{name} {victim.site} ({victim.role})")
            ways[name](victim)

    def kill(self, victim: Report) -> None:
        with suppress(ProcessLookupError):
            os.kill(victim.os_pid, signal.SIGKILL)
        time.sleep(self._chance.uniform(0, 0.3))

    def kill_both(self, victim: Report) -> None:
        """The replica and whoever would have gone on with it: another does, from the memory that is kept a while."""
        processes = self._service.racks[victim.site].processes()
        for name in [victim.process, *victim.standbys]:
            if name in processes:
                with suppress(ProcessLookupError):
                    os.kill(processes[name].os_pid, signal.SIGKILL)
        time.sleep(self._chance.uniform(0, 0.3))

    def stop(self, victim: Report) -> None:
        """It is suspected, robbed, and wakes up again."""
        with suppress(ProcessLookupError):
            os.kill(victim.os_pid, signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.05, 0.8))
            os.kill(victim.os_pid, signal.SIGCONT)

    def isolate(self, victim: Report) -> None:
        self._service.wires.isolate([victim.site])
        time.sleep(self._chance.uniform(0.1, 1.5))
        self._service.wires.mend()

    def lose_memory(self, victim: Report) -> None:
        """For good: so the service is whole before, lest a majority be lost."""
        self._service.rest()
        self._service.lose_memory(victim.site)
        self._service.rest()
