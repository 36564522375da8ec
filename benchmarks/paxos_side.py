"""Our replicated service, started by its command as a user starts it: filled, killed, robbed of its memory, asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from .bequest_side import PATIENCE_SECONDS
from .measure import KIB, MIB, PAGE_BYTES, moment_of
from .writers import RespMember

POLL_SECONDS = 0.0005
EPOCH_POLL_SECONDS = 0.02  # of what is noted when it happens
ASK_SECONDS = 0.1
"""That a replica may take to say how it is, before it counts as one that does not answer."""
VALUE_BYTES = 64 * KIB
FILL_BATCH = 16
READ_BATCH = 1000
NO_REINCARNATION, NO_NOTICES = "--no-reincarnation", "--no-failure-notices"


class PaxosService:
    """Three sites with racks of their own. ``options`` are those of `bequest paxos up`."""

    def __init__(self, name: str, memory_bytes: int, *options: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "bequest.cli", "paxos", "up", "--name", name, "--port", "0"]
        sized = ["--memory", f"{memory_bytes // MIB}MiB"]
        self._launcher = subprocess.Popen(
            [*command, *sized, *options, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.has_standbys = NO_REINCARNATION not in options
        self.sites: list[dict[str, str]] = self._announced()["sites"]
        self._size = len(self.sites)

    def _announced(self) -> dict[str, Any]:
        """The one document that it prints when it has a leader."""
        assert self._launcher.stdout is not None
        text = ""
        for line in self._launcher.stdout:
            text += line
            with suppress(json.JSONDecodeError):
                document: dict[str, Any] = json.loads(text)
                return document
        raise RuntimeError(f"the service did not start; it said: {text or 'nothing'}")

    def members(self) -> list[RespMember]:
        """Ways in, for a writer: the leader's first, as a client has it that has just been redirected nowhere."""
        leader = self.leader()
        ordered = sorted(self.sites, key=lambda site: site["site"] != leader.site)
        return [RespMember(*_address(site["clients"])) for site in ordered]

    @property
    def port(self) -> int:
        """The clients' port of the leader."""
        leader = self.leader()
        return next(_address(site["clients"])[1] for site in self.sites if site["site"] == leader.site)

    # --- how it is --------------------------------------------------------------------------------------------------

    def reports(self, but: str = "") -> list[Any]:
        """What those replicas say of themselves that answer, but for that site's."""
        from bequest.errors import RackFault
        from bequest.paxos.config import parse_address
        from bequest.paxos.status import ask

        found = []
        for site in self.sites:
            if site["site"] != but:
                with suppress(OSError, RackFault):
                    found.append(ask(self.name, parse_address(site["peers"]), ASK_SECONDS))
        return found

    def leader(self) -> Any:
        """Its report. Raises LookupError if there is none at the moment."""
        for report in self.reports():
            if report.role == "leader":
                return report
        raise LookupError("no replica says that it leads")

    def is_healthy(self) -> bool:
        """Whether all replicas vote, follow one leader, and have carried out all that was chosen."""
        reports = self.reports()
        roles = [report.role for report in reports]
        if len(reports) < self._size or roles.count("leader") != 1:
            return False
        if roles.count("leader") + roles.count("follower") < self._size:
            return False
        chosen = max(report.chosen for report in reports)
        return all(report.applied == chosen and len(report.members) == self._size for report in reports)

    def wait_until_healthy(self, poll_seconds: float = POLL_SECONDS) -> float:
        """When that was so."""
        return moment_of(self.is_healthy, f"service {self.name} is not healthy", poll_seconds)

    def rest(self) -> None:
        """Until it is healthy, and each replica that may be killed next has somebody to go on with it."""
        self.wait_until_healthy(0.02)
        if self.has_standbys:
            moment_of(
                lambda: all(report.standbys for report in self.reports()),
                f"{self.name} has no standbys",
                0.02,
            )

    # --- what is done to it -----------------------------------------------------------------------------------------

    def fill(self, nbytes: int) -> None:
        """That many bytes of state."""
        client = self.client()
        for start in range(0, max(nbytes // VALUE_BYTES, 1), FILL_BATCH):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, start + FILL_BATCH):
                pipeline.set(f"state:{number}", os.urandom(VALUE_BYTES))
            pipeline.execute()
        client.close()

    def client(self) -> Any:
        """A client of redis-py, of the replica that leads."""
        import redis

        return redis.Redis(port=self.port, socket_timeout=PATIENCE_SECONDS)

    def count(self, keys: list[str]) -> int:
        """How many of these keys there are."""
        client = self.client()
        found = 0
        for start in range(0, len(keys), READ_BATCH):
            found += client.exists(*keys[start : start + READ_BATCH])
        client.close()
        return found

    def kill(self, report: Any) -> float:
        """SIGKILL to that replica; just before."""
        killed = time.perf_counter()
        os.kill(report.os_pid, signal.SIGKILL)
        return killed

    def break_memory(self, report: Any) -> float:
        """The memory element fails in which that replica's heap lies; just before, in seconds of the wall clock."""
        import bequest
        from bequest.wire import messages as wire

        rack_name = next(site["rack"] for site in self.sites if site["site"] == report.site)
        rack: Any
        with bequest.connect(rack_name) as rack:
            [heap] = rack.request(wire.ListNames("/paxos", None)).names
            slabs = rack.request(wire.Status("slabs")).slabs
            element = next(
                s.element for s in slabs if s.address <= heap.address < s.address + s.pages * PAGE_BYTES
            )
            broken = time.time()
            rack.request(wire.BreakMemory(element, 0, 0))
        return broken

    def next_epoch(self, epoch: int, but: str) -> float:
        """When another site than this one had the configuration after that; it says so, by the wall clock."""
        said: list[float] = []

        def is_there() -> bool:
            said[:] = [r.epochs[epoch + 1] for r in self.reports(but) if epoch + 1 in r.epochs]
            return bool(said)

        moment_of(is_there, "the others have not begun to reconfigure", EPOCH_POLL_SECONDS)
        return min(said)

    def close(self) -> None:
        """Ends it."""
        self._launcher.terminate()
        self._launcher.wait(PATIENCE_SECONDS)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
