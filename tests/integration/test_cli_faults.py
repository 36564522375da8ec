"""The commands that make faults, and the one that waits for them: `bequest fault`, `bequest standby`.

What a fault does to programs has tests of its own; here it is what the command line does, says and refuses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import actors
import watchers
from actors import until
from racks import RackUnderTest, Yard

PAGE = 4096
Done = subprocess.CompletedProcess[str]


class Commands:
    """`bequest …` on one rack."""

    def __init__(self, rack: RackUnderTest) -> None:
        self._rack = rack

    def __call__(self, *arguments: str) -> Done:
        command = [sys.executable, "-m", "bequest.cli", *arguments, "--rack", str(self._rack.directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def document(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def bequest(rack: RackUnderTest) -> Commands:
    return Commands(rack)


# --- bequest fault ----------------------------------------------------------------------------------------------------


def test_processes_are_stopped_continued_and_killed(
    yard: Yard, rack: RackUnderTest, bequest: Commands
) -> None:
    victim = yard.actor("victim")
    for option, state, name in (("--stop", "T", "SIGSTOP"), ("--cont", "S", "SIGCONT")):
        told = bequest.document("fault", "process", "victim", option)
        assert told == {"fault": "process", "name": "victim", "signal": name, "os_pid": victim.pid}
        until(lambda state=state: state_of(victim.pid) == state)  # type: ignore[misc]
    assert bequest("fault", "process", "victim").stdout.startswith(
        f"Process victim (os pid {victim.pid}) was killed"
    )
    assert victim.wait() == -signal.SIGKILL
    assert "no process 'victim' runs" in bequest.refused("fault", "process", "victim")


def state_of(os_pid: int) -> str:
    with open(f"/proc/{os_pid}/stat") as about:
        return about.read().rpartition(")")[2].split()[0]


def test_a_compute_element_fails_with_all_that_runs_there(yard: Yard) -> None:
    rack = yard.rack(compute=("host0", "host1"), orphan_keep=0.2)
    bequest = Commands(rack)
    there, elsewhere = yard.actor(None), yard.actor(None)
    there.do(watchers.attach_at, "there", "host0")
    elsewhere.do(watchers.attach_at, "elsewhere", "host1")
    agent = rack.daemon("host0")
    told = bequest.document("fault", "compute", "host0")
    assert (told["processes"], set(told["os_pids"])) == (["there"], {there.pid, agent})
    assert there.wait() == -signal.SIGKILL
    assert elsewhere.do(actors.alloc, "region", PAGE)
    until(lambda: rack.daemons().get("host0", agent) != agent)


@pytest.mark.parametrize("kind", [("element", "dram0"), ("mmu",), ("monitor",)])
def test_daemons_are_killed_and_come_back(
    yard: Yard, rack: RackUnderTest, bequest: Commands, kind: Any
) -> None:
    name = kind[-1]
    before = rack.daemon(name)
    told = bequest.document("fault", *kind)
    assert told == {"fault": kind[0], "name": name, "signal": "SIGKILL", "os_pid": before}
    until(lambda: rack.daemons().get(name, before) != before)


def test_what_is_not_there_cannot_fail(rack: RackUnderTest, bequest: Commands) -> None:
    assert "no memory element 'x'; it has dram0" in bequest.refused("fault", "memory", "x")
    assert "no compute element 'x'; it has host0" in bequest.refused("fault", "compute", "x")
    assert "no process 'x' runs" in bequest.refused("fault", "process", "x")
    for run in ("0", "0x200000000000:much"):
        assert "write START:LENGTH" in bequest.refused("fault", "memory", "dram0", f"--range={run}")
    assert "no slab of memory element 'dram0'" in bequest.refused(
        "fault", "memory", "dram0", "--range=0:4KiB"
    )


def test_a_bit_is_flipped_and_nobody_is_told(yard: Yard, rack: RackUnderTest, bequest: Commands) -> None:
    me = yard.attach("me")
    region = me.alloc(PAGE)
    region.array()[:] = 6
    document = bequest.document("fault", "memory", "dram0", "--flip", hex(region.address + 9))
    assert document == {"fault": "memory", "element": "dram0", "flipped": region.address + 9}
    assert bytes(region) == b"\x06" * 9 + b"\x07" + b"\x06" * (PAGE - 10)
    assert rack.elements()["dram0"].failed == 0
    assert "no slab" in bequest.refused("fault", "memory", "dram0", "--flip", hex(region.address - PAGE))
    assert "write an address" in bequest.refused("fault", "memory", "dram0", "--flip", "there")
    both = ("--flip", hex(region.address), "--range", f"{region.address:#x}:4KiB")
    assert "choose one" in bequest.refused("fault", "memory", "dram0", *both)
    region.free()


def test_a_range_is_lost_and_no_more(yard: Yard, rack: RackUnderTest, bequest: Commands) -> None:
    owner = yard.actor("owner")
    address = owner.do(actors.alloc, "region", 4 * PAGE, 1)
    told = bequest.document("fault", "memory", "dram0", "--range", f"{address + PAGE + 1:#x}:4KiB")
    assert told == {
        "fault": "memory", "element": "dram0", "slabs": 1, "lost_bytes": 2 * PAGE, "owners": ["owner"]
    }  # fmt: skip
    assert owner.do(watchers.page_values, "region") == [1, None, None, 1]


# --- bequest standby --------------------------------------------------------------------------------------------------

PRINT = "import json, os; print(json.dumps({key: os.environ[key] for key in os.environ if key[:8] == 'BEQUEST_'}))"


class Waiting:
    """`bequest standby` with a command that prints its environment."""

    def __init__(self, rack: RackUnderTest, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "bequest.cli",
            "standby",
            "--for",
            "victim",
            "--rack",
            str(rack.directory),
        ]
        self.process = subprocess.Popen(
            [*command, *options, "--", sys.executable, "-c", PRINT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "Standing by for victim.\n"

    def environment(self) -> dict[str, str]:
        output, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        found: dict[str, str] = json.loads(output)
        return found


def test_a_command_is_run_when_the_process_dies(yard: Yard, rack: RackUnderTest) -> None:
    group = rack.connection.create_group("pair")
    assert group.capability is not None
    options = ("--group", group.secret.hex(), "--capability", group.capability.hex())
    waiting = Waiting(rack, *options)  # before the process is there
    victim = yard.actor("victim", group=group)
    victim.kill()
    told = waiting.environment()
    assert (told["BEQUEST_VICTIM"], told["BEQUEST_CAPABILITY"]) == ("victim", group.capability.hex())
    assert (told["BEQUEST_RACK"], int(told["BEQUEST_VICTIM_INCARNATION"]) > 0) == (str(rack.directory), True)


def test_a_command_is_run_when_the_process_hangs_if_that_is_asked_for(
    yard: Yard, rack: RackUnderTest
) -> None:
    victim = yard.actor("victim")
    waiting = Waiting(rack, "--hung")
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        assert waiting.environment()["BEQUEST_VICTIM"] == "victim"
    finally:
        os.kill(victim.pid, signal.SIGCONT)


def test_what_is_wrong_is_said_at_once(rack: RackUnderTest, bequest: Commands) -> None:
    group = rack.connection.create_group("pair")

    def refused(*options: str) -> str:
        command = [
            sys.executable,
            "-m",
            "bequest.cli",
            "standby",
            "--rack",
            str(rack.directory),
            "--for",
            "victim",
        ]
        done = subprocess.run(
            [*command, *options, "--", "true"], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        return done.stderr

    assert "--capability is hexadecimal" in refused("--capability", "xyz")
    assert "capability" in refused("--group", group.secret.hex(), "--capability", "00" * 32)
    assert "secret" in refused("--group", "00" * 16)
