"""A replicated service as `bequest paxos up` runs it, for tests: asked, harmed, and ended with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from alive import is_running
from bequest.paxos.config import Service, read_service
from bequest.paxos.status import Report, ask

BEQUEST = (sys.executable, "-m", "bequest.cli")
SOON = 30.0  # seconds after which a wait has failed; nothing is expected to take as long


class RunningService:
    """Three sites on this machine."""

    def __init__(self, runtime: Path, *flags: str, name: str = "test") -> None:
        self.name = name
        self.runtime = runtime
        self.environment = os.environ | {"XDG_RUNTIME_DIR": str(runtime)}
        self.log = runtime.parent / f"{name}.log"
        arguments = ["up", "--json", "--port", "0", "--memory", "64MiB", "--name", name, *flags]
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [*BEQUEST, "paxos", *arguments],
                env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        assert self.launcher.stdout is not None
        document = ""
        while not document.endswith("}\n}\n") and not document.endswith("]\n}\n"):
            line = self.launcher.stdout.readline()
            assert line, f"the service has not started:\n{self.said()}"
            document += line
        self.started: dict[str, Any] = json.loads(document)
        self.service: Service = read_service(self.place / "service.toml")

    @property
    def place(self) -> Path:
        return self.runtime / "bequest-paxos" / self.name

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    def standbys_begun(self, site: str) -> int:
        """How often a process of this site has become a standby: names are used again."""
        return len(re.findall(rf" {site} .* is standing by$", self.log.read_text(), re.MULTILINE))

    # --- questions --------------------------------------------------------------------------------------------------

    def reports(self) -> dict[str, Report]:
        """Of the sites that answer."""
        found = {}
        for site in self.service.sites:
            with suppress(OSError):
                found[site.name] = ask(self.name, site.peers, 1.0)
        return found

    def wait(self, wanted: Callable[[dict[str, Report]], object]) -> dict[str, Report]:
        deadline = time.monotonic() + SOON
        while True:
            reports = self.reports()
            if len(reports) == len(self.service.sites) and wanted(reports):
                return reports
            assert time.monotonic() < deadline, f"{reports}\n{self.said()}"
            time.sleep(0.02)

    def healthy(self, standbys: int = 1) -> dict[str, Report]:
        """Once all sites have a voting replica and a standby, and follow one of them."""
        return self.wait(lambda reports: is_healthy(reports, standbys))

    def client(self, site: str) -> redis.Redis:
        address = self.service.site(site).clients
        return redis.Redis(address.host, address.port, socket_timeout=SOON)

    def insist(self, site: str, key: str, value: object) -> None:
        """Sets a key, as a client that keeps trying."""
        deadline = time.monotonic() + SOON
        while True:
            try:
                with self.client(site) as client:
                    client.set(key, value)  # type: ignore[arg-type]
                return
            except (redis.ConnectionError, redis.ResponseError):
                assert time.monotonic() < deadline, self.said()

    # --- harm and end -----------------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*BEQUEST, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SOON,
        )

    def lose_memory(self, report: Report) -> None:
        """Of the element in which the replica's heap lies."""
        rack = self.service.site(report.site).rack
        for element in json.loads(self.run("mem", "--rack", rack, "--json").stdout)["elements"]:
            if element["used_bytes"]:
                done = self.run("fault", "memory", element["name"], "--rack", rack, "--json")
                if report.process in json.loads(done.stdout)["owners"]:
                    return
        raise AssertionError(f"{report.process} has no memory")

    def interrupt(self) -> int:
        """Ctrl-C, which every process of a terminal gets."""
        os.killpg(self.launcher.pid, signal.SIGINT)
        return self.launcher.wait(SOON)

    def close(self) -> None:
        if self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGTERM)
            assert self.launcher.wait(SOON) == 0, self.said()
        assert self.launcher.stdout is not None
        self.launcher.stdout.close()


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + SOON
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} has not ended"
        time.sleep(0.01)


def is_healthy(reports: dict[str, Report], standbys: int = 1) -> bool:
    """Has every site a voting replica and standbys, and follow all one of them?"""
    return (
        sorted(report.role for report in reports.values()) == ["follower", "follower", "leader"]
        and all(len(report.standbys) == standbys for report in reports.values())
        and all(len(report.members) == 3 for report in reports.values())
    )


def leader_of(reports: dict[str, Report]) -> Report:
    (found,) = [report for report in reports.values() if report.role == "leader"]
    return found
