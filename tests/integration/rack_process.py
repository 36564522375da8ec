"""A real rack for a test, looked at from outside: its processes, their descriptors, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from alive import is_running
from bequest.runtime.config import make_config
from bequest.runtime.directory import RackDirectory
from bequest.runtime.embedded import start_detached
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire
from racks import daemons_of


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it comes true in time; a test waits for what it is about, never for a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class RackProcess:
    def __init__(self, directory: RackDirectory) -> None:
        self.directory = directory
        self.supervisor = directory.notes().supervisor

    @classmethod
    def start(cls, name: str = "test", **flags: object) -> RackProcess:
        flags.setdefault("memory", ["dram0:256MiB"])
        return cls(start_detached(make_config(name=name, **flags)))  # type: ignore[arg-type]

    def daemons(self) -> dict[str, int]:
        """Operating-system pids by role: mmu, and the elements' names; of those that run."""
        return daemons_of(self.supervisor)

    def descriptors(self) -> dict[str, int]:
        return {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in self.daemons().items()}

    def connect(self) -> Channel:
        return Channel.connect(self.directory.mmu_socket)

    def ask(self, message: wire.Message) -> wire.Message:
        channel = self.connect()
        try:
            return channel.request(message)[0]
        finally:
            channel.close()

    def states(self) -> dict[str, str]:
        report = self.ask(wire.Status("processes"))
        assert isinstance(report, wire.ProcessList)
        return {process.name: process.state for process in report.processes}

    def used(self) -> int:
        report = self.ask(wire.Status("elements"))
        assert isinstance(report, wire.ElementList)
        return sum(element.used for element in report.elements)

    def audit(self) -> list[str]:
        report = self.ask(wire.Status("audit"))
        assert isinstance(report, wire.AuditReport)
        return report.findings

    def log(self) -> str:
        return self.directory.log.read_text()

    def stop(self) -> None:
        if is_running(self.supervisor):
            os.kill(self.supervisor, signal.SIGTERM)
        assert until(lambda: not is_running(self.supervisor))
        assert until(lambda: not self.directory.path.exists())


class Member:
    """An attached process with its connections, in this process."""

    def __init__(self, rack: RackProcess, name: str, secret: bytes | None = None) -> None:
        self.rack = rack
        self.mmu = rack.connect()
        reply, fds = self.mmu.request(wire.Attach(name, secret))
        assert isinstance(reply, wire.Attached)
        self.attached = reply
        (self.table_fd,) = fds
        self.agent = Channel.connect(rack.directory.socket(reply.agent_path))
        self.agent.request(wire.Enrol(reply.agent_ticket))
        self.element = Channel.connect(rack.directory.socket(reply.elements[0].path))

    def need(self, nbytes: int, huge: bool = False) -> int:
        reply, _ = self.mmu.request(wire.NeedSlab(nbytes // 4096, huge))
        assert isinstance(reply, wire.SlabReady)
        return reply.slab

    def open(self, slab: int) -> int:
        _, fds = self.element.request(wire.OpenSlab(self.attached.element_ticket, slab))
        (fd,) = fds
        return fd

    def close(self) -> None:
        os.close(self.table_fd)
        for channel in (self.mmu, self.agent, self.element):
            channel.close()


PROGRAM = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from rack_process import Member, RackProcess
from bequest.runtime.directory import RackDirectory
rack = RackProcess(RackDirectory(Path({directory!r})))
member = Member(rack, {name!r})
slab = member.need(2 << 20)
{more}
print("ready", flush=True)
sys.stdin.read()
"""


def run_member(rack: RackProcess, name: str, more: str = "") -> subprocess.Popen[str]:
    """An attached process of its own, with a slab; it ends when its input does."""
    program = PROGRAM.format(
        path=[str(Path(__file__).parent)], directory=str(rack.directory.path), name=name, more=more
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
