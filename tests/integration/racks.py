"""Fixtures: for each test a private place, a rack of its own, and actors; nothing may be left of them.

`yard` makes racks and actors and takes them down again: it asserts that every rack still accounts for each of its pages
(`audit`), that daemons and actors ended as they should, and that the place where racks lie is empty afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bequest as bq
from actors import DEADLINE, Actor, Nursery, run_rack, until
from alive import is_running
from bequest.memory import process as attachments
from bequest.runtime.config import make_config
from bequest.wire import messages as wire

MIB = 1 << 20


class RackUnderTest:
    """A rack that this test started: its directory, its supervisor, and a connection for questions."""

    def __init__(
        self,
        nursery: Nursery,
        environment: dict[str, str],
        config: Any,
        run: Callable[..., None] = run_rack,
        *arguments: Any,
    ) -> None:
        self._nursery = nursery
        self.supervisor, self._connection = nursery.fork(run, environment, config, *arguments)
        assert self._connection.poll(DEADLINE), "the rack has not started"
        self.directory = Path(self._connection.recv())
        self.connection = bq.connect(str(self.directory))
        self.is_expected_to_end = True

    # --- what the Rack MMU says ---------------------------------------------------------------------------

    def audit(self) -> list[str]:
        report = self.connection.request(wire.Status("audit"))
        assert isinstance(report, wire.AuditReport)
        return report.findings

    def processes(self) -> dict[str, wire.ProcessReport]:
        found: dict[str, wire.ProcessReport] = {}
        cursor: int | None = 0
        while cursor is not None:
            report = self.connection.request(wire.Status("processes", cursor))
            assert isinstance(report, wire.ProcessList)
            found |= {process.name: process for process in report.processes}
            cursor = report.next_cursor
        return found

    def elements(self) -> dict[str, wire.ElementStatus]:
        report = self.connection.request(wire.Status("elements"))
        assert isinstance(report, wire.ElementList)
        return {element.name: element for element in report.elements}

    def slabs(self) -> list[wire.SlabStatus]:
        found: list[wire.SlabStatus] = []
        cursor: int | None = 0
        while cursor is not None:
            report = self.connection.request(wire.Status("slabs", cursor))
            assert isinstance(report, wire.SlabList)
            found += report.slabs
            cursor = report.next_cursor
        return found

    def used_bytes(self) -> int:
        return sum(element.used for element in self.elements().values())

    def daemons(self) -> dict[str, int]:
        """Operating-system pids by role: mmu, the memory elements, the compute elements; of those that run."""
        return daemons_of(self.supervisor)

    def daemon(self, role: str) -> int:
        """One of them; if it has just died, its successor."""
        found: int = until(lambda: self.daemons().get(role), f"daemon {role}")
        return found

    # --- its end ------------------------------------------------------------------------------------------

    def kill_daemons(self) -> None:
        """Everything of it at once, as when the machine's operator has had enough."""
        children = self.daemons().values()
        os.kill(self.supervisor, signal.SIGSTOP)  # so that it does not start a fresh generation meanwhile
        for child in children:
            os.kill(child, signal.SIGKILL)
        os.kill(self.supervisor, signal.SIGKILL)
        assert self._nursery.wait(self.supervisor) == -signal.SIGKILL
        for child in children:
            until(lambda child=child: not is_running(child), f"the end of daemon {child}")

    def stop(self) -> None:
        """Checks its books and ends it."""
        if not is_running(self.supervisor):
            return
        findings = self.audit() if self.connection.is_alive() else []
        self.connection.close()
        self._connection.close()
        os.kill(self.supervisor, signal.SIGTERM)
        assert self._nursery.wait(self.supervisor) == 0
        assert findings == []


class Yard:
    """Where one test's racks and actors are."""

    def __init__(self, nursery: Nursery, runtime: Path) -> None:
        self.nursery = nursery
        self.runtime = runtime
        self._environment = {"XDG_RUNTIME_DIR": str(runtime)}
        self.racks: list[RackUnderTest] = []
        self.actors: list[Actor] = []
        self.attached: list[bq.Process] = []

    def rack(self, *memory: str, name: str = "test", **settings: Any) -> RackUnderTest:
        """A rack with these memory elements (``dram0:64MiB``), or with one of 256 MiB."""
        config = make_config(name=name, memory=memory or ("dram0:256MiB",), **settings)
        rack = RackUnderTest(self.nursery, self._environment, config)
        self.racks.append(rack)
        return rack

    def actor(
        self, name: str | None, rack: RackUnderTest | None = None, group: bq.Group | None = None
    ) -> Actor:
        """A process of its own, attached to the rack; bare if it has no name."""
        where = (rack or self.racks[0]).directory
        actor = Actor(self.nursery, self._environment, where, name, group.secret if group else None)
        self.actors.append(actor)
        return actor

    def attach(
        self, name: str, rack: RackUnderTest | None = None, group: bq.Group | None = None
    ) -> bq.Process:
        """This very process, attached."""
        process = (rack or self.racks[0]).connection.attach(name, group=group)
        self.attached.append(process)
        return process

    def close(self) -> None:
        with contextlib.ExitStack() as rest:  # everything is taken down, whatever fails
            for rack in self.racks:
                rest.callback(rack.stop)
            for actor in self.actors:
                rest.callback(_close_actor, actor)
            for process in self.attached:
                rest.callback(_leave, process)


def _close_actor(actor: Actor) -> None:
    if actor._status is None:
        assert actor.close() == 0, f"actor {actor.name} did not end well; see its output"


def _leave(process: bq.Process) -> None:
    gc.collect()
    try:
        process.detach()
    except BufferError:  # a failed test's frames hold views
        process._leave(forked=False)
        process._links.close()


def daemons_of(supervisor: int) -> dict[str, int]:
    """Operating-system pids by role, once all that run have their names (a fork has its parent's at first)."""
    found: dict[str, int] = {}

    def all_named() -> bool:
        found.clear()
        with contextlib.suppress(OSError):  # it has ended itself
            for pid in map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()):
                with contextlib.suppress(OSError):  # gone meanwhile
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    if is_running(pid):
                        found[name.removeprefix("bequest-") if name.startswith("bequest-") else ""] = pid
        return "" not in found

    assert until(all_named), f"a daemon of supervisor {supervisor} never took its name"
    return found


@pytest.fixture(scope="session")
def nursery(nothing_left_behind: None) -> Iterator[Nursery]:
    """One for all tests."""
    one = Nursery()
    yield one
    one.close()


@pytest.fixture
def private_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own, which must be empty of racks in the end."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("BEQUEST_RACK", "")  # so that it is put back, whatever connect() makes of it
    monkeypatch.delenv("BEQUEST_RACK")
    yield runtime
    base = runtime / "bequest"
    until(lambda: rest_of(base) == [], f"the end of the racks in {base}")


def rest_of(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if path.name != ".lock") if base.exists() else []


@pytest.fixture
def yard(nursery: Nursery, private_place: Path) -> Iterator[Yard]:
    one = Yard(nursery, private_place)
    yield one
    one.close()


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """A rack with one memory element of 256 MiB that forgets its dead at once when asked to (``orphan_keep`` 0.2 s)."""
    return yard.rack(orphan_keep=0.2)


@pytest.fixture
def me(yard: Yard, rack: RackUnderTest) -> bq.Process:
    """The test itself, attached to the rack as ``me``."""
    return yard.attach("me")


@pytest.fixture
def found_rack(yard: Yard, rack: RackUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RackUnderTest]:
    """The rack that this program and its children find when they name none."""
    monkeypatch.setenv("BEQUEST_RACK", str(rack.directory))
    yield rack
    attachments._at_exit()  # queues attach this program themselves
