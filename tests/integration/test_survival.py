"""Daemons of a rack are killed at any moment: nothing is lost, nothing has two owners, and users hardly notice.

`storm_users.py` checks every word of what its users own while this kills memory elements' servers, agents, the Rack
MMU and the rack monitor, alone and together. Which is killed when follows from one printed seed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import actors
import bequest as bq
import soaking
import storm_users
from actors import until
from alive import is_running
from bequest.limits import SHORT_LIFE
from bequest.wire import messages as wire
from racks import MIB, RackUnderTest, Yard

ROLES = ("mmu", "dram0", "dram1", "host0", "host1", "monitor")
KILLS = soaking.size(12, 400)
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    return yard.rack("dram0:128MiB", "dram1:128MiB", compute=("host0", "host1"), orphan_keep=0.2)


def kill(rack: RackUnderTest, *roles: str) -> None:
    """And waits until each has a successor that the Rack MMU knows."""
    before = {role: rack.daemon(role) for role in roles}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def are_back() -> bool:
        report = rack.connection.request(wire.Status("rack"))
        assert isinstance(report, wire.RackReport)
        found = {daemon.name: daemon.os_pid for daemon in report.daemons}
        return all(found.get(role, pid) != pid for role, pid in before.items())

    until(are_back, f"the return of {roles}")


# --- memory elements ---------------------------------------------------------------------------------------------


def test_memory_is_where_it_was_when_its_server_has_been_killed(yard: Yard, rack: RackUnderTest) -> None:
    me, peer = yard.attach("me"), yard.actor("peer")
    regions = [me.alloc(size, element=name) for size in (4096, 4 * MIB) for name in ("dram0", "dram1")]
    for number, region in enumerate(regions):
        region.array()[:] = number
    used = rack.used_bytes()
    kill(rack, "dram0", "dram1")
    assert [np.unique(region.array()).tolist() for region in regions] == [[0], [1], [2], [3]]
    for number, region in enumerate(regions):
        region.grant("peer")  # who has to open the slab, at a server that did not make it
        peer.do(actors.accept, str(number))
        assert peer.do(actors.values, str(number)) == [number]
    assert rack.used_bytes() == used and rack.audit() == []
    more = [me.alloc(16 * MIB, element=name) for name in ("dram0", "dram1")]
    for region in more:
        region.array()[:] = 7
        region.free()
    assert rack.audit() == []


def test_what_was_freed_while_the_server_was_away_does_not_come_back(yard: Yard, rack: RackUnderTest) -> None:
    """The supervisor keeps no file of a slab that has been retired."""
    for _ in range(3):
        user = yard.actor("user")
        for number in range(4):
            user.do(actors.alloc, str(number), 8 * MIB, 1)
        user.signal(signal.SIGKILL)
        kill(rack, "dram0", "dram1")
        user.wait()
        until(lambda: rack.used_bytes() == 0, "the return of all memory")
    no_file_is_left(rack)


def no_file_is_left(rack: RackUnderTest) -> None:
    """Once no slab is. Retired files wait for their group to use them again, but no successor adopts them."""
    kill(rack, "dram0", "dram1")
    until(lambda: slab_files(rack.supervisor) == 0, "the end of all files")


def slab_files(pid: int) -> int:
    """How many slabs' files a process has open."""
    return sum("memfd:bequest-dram" in target for target in descriptors(pid))


def descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(entry))
    return found


def test_a_request_that_the_server_took_along_is_met_by_the_next(yard: Yard, rack: RackUnderTest) -> None:
    """The first touch of a large slab takes a while, in which the server is killed, again and again."""
    user = yard.actor("user")
    user.start(actors.alloc, "large", 64 * MIB, 5)
    for _ in range(3):
        time.sleep(0.01)
        kill(rack, "dram0", "dram1")
    user.result()
    assert user.do(actors.values, "large") == [5]
    assert rack.audit() == []


def test_a_grant_to_another_group_outlives_the_server_that_copies(yard: Yard, rack: RackUnderTest) -> None:
    etl = rack.connection.create_group("etl")
    me, stranger = yard.attach("me"), yard.actor("stranger", group=etl)
    for number in range(6):
        region = me.alloc(8 * MIB)
        region.array()[:] = number
        part = region[4096 : 6 * MIB]
        os.kill(rack.daemon("dram0"), signal.SIGKILL)
        os.kill(rack.daemon("dram1"), signal.SIGKILL)
        assert part.grant("stranger") == 6 * MIB - 4096
        stranger.do(actors.accept, "part")
        assert stranger.do(actors.values, "part") == [number]
        assert np.unique(region[:4096].array()).tolist() == [number]
        stranger.do(actors.free, "part")
    assert rack.audit() == []


# --- agents ------------------------------------------------------------------------------------------------------


def test_deaths_are_noticed_by_the_agent_that_comes_after(yard: Yard, rack: RackUnderTest) -> None:
    before, after = yard.actor("before"), yard.actor("after")
    for user in (before, after):
        user.do(actors.alloc, "region", 4096)
    agents = [rack.daemon("host0"), rack.daemon("host1")]
    os.kill(rack.supervisor, signal.SIGSTOP)  # for a while nobody watches
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    before.kill()
    os.kill(rack.supervisor, signal.SIGCONT)
    until(lambda: set(rack.processes()) == {"after"}, "the death of one")
    assert rack.processes()["after"].state == "attached"
    after.kill()
    until(lambda: rack.processes() == {}, "the death of the other")
    assert rack.used_bytes() == 0


def test_processes_attach_and_detach_while_agents_die(yard: Yard, rack: RackUnderTest) -> None:
    for number in range(8):
        for role in ("host0", "host1"):
            os.kill(rack.daemon(role), signal.SIGKILL)
        with rack.connection.attach(f"guest-{number}") as guest:
            guest.alloc(4096).free()
        until(lambda: rack.processes() == {}, "the end of the guest")
    assert rack.audit() == []


def test_a_process_that_detaches_while_its_agent_is_away_is_watched_no_more(
    yard: Yard, rack: RackUnderTest
) -> None:
    me = rack.connection.attach("me")
    os.kill(rack.daemon("host0"), signal.SIGKILL)
    os.kill(rack.daemon("host1"), signal.SIGKILL)
    me.detach()
    until(lambda: pidfds(rack.supervisor) == len(rack.daemons()), "the end of all watching")


def pidfds(pid: int) -> int:
    return sum("pidfd" in target for target in descriptors(pid))


# --- all of them, in a storm -------------------------------------------------------------------------------------


@pytest.fixture
def seed() -> int:
    print(f"seed {soaking.SEED} (replay with BEQUEST_SOAK_SEED={soaking.SEED})")  # shown if the test fails
    return soaking.SEED


VICTIMS = [*((role,) for role in ROLES), ROLES]  # all of these in any case, then any two or three
TOGETHER = [*VICTIMS, *itertools.combinations(ROLES, 2), *itertools.combinations(ROLES, 3)]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(1800, 120))
@pytest.mark.parametrize("group_count", [1, 2], ids=["one group", "two groups"])
def test_a_storm_goes_on_while_daemons_are_killed(
    yard: Yard,
    rack: RackUnderTest,
    seed: int,
    group_count: int,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("rounds of kill -9 of daemons", KILLS)
    chance = random.Random(seed)
    groups = [rack.connection.create_group(f"group-{number}") for number in range(group_count)]
    population = Path(yard.runtime) / "population"
    users = [yard.actor(f"user-{n}", rack, groups[n % group_count]) for n in range(4)]
    population.write_text("\n".join(user.name or "" for user in users))
    for user in users:
        user.start(storm_users.storm, str(population), chance.getrandbits(32))
    try:
        rounds = [*VICTIMS, *(chance.choice(TOGETHER) for _ in range(KILLS - len(VICTIMS)))]
        for number, victims in enumerate(rounds):
            time.sleep(chance.uniform(0.02, 0.2))
            if number % 8 == 7:
                time.sleep(SHORT_LIFE)  # short lives in a row, without end, would end the rack
            for user in users:
                assert user.is_busy(), f"{user.name} has stopped: {user.result()}"
            kill(rack, *victims)
            # An audit reads a table in which users are at work: what it finds once may be a change under way.
            until(lambda: rack.audit() == [], "a table without a page lost or doubly owned")
    finally:
        population.with_suffix(".new").write_text("")
        population.with_suffix(".new").replace(population)
    done: Counter[str] = Counter()
    for user in users:
        done += Counter(user.result())
    print(f"users: {dict(done)}")
    assert done["accepts"] > 0
    assert rack.audit() == []
    for user in users:
        assert user.close() == 0
    until(lambda: rack.used_bytes() == 0, "the return of all memory")
    assert rack.slabs() == [] and rack.audit() == []
    until(lambda: rack.processes() == {}, "the end of all processes")
    no_file_is_left(rack)


# --- how it is told ----------------------------------------------------------------------------------------------


def test_it_is_told_who_died_and_who_came(yard: Yard, rack: RackUnderTest) -> None:
    before = rack.daemon("dram1")
    kill(rack, "dram1")
    report = rack.connection.request(wire.Status("rack"))
    assert isinstance(report, wire.RackReport)
    found = {daemon.name: daemon for daemon in report.daemons}
    assert found["dram1"].restarts == 1 and found["dram0"].restarts == 0
    assert {name: daemon.os_pid for name, daemon in found.items()} == rack.daemons()
    log = rack.directory / "rack.log"
    again = f"memory element dram1 runs again, as pid {rack.daemon('dram1')} (restart 1)"
    until(lambda: again in log.read_text(), "a line of the log")
    assert f"memory element dram1 (pid {before}) was killed by SIGKILL" in log.read_text()


def test_a_rack_whose_daemon_dies_again_and_again_ends(yard: Yard, rack: RackUnderTest) -> None:
    connection: bq.Rack = rack.connection
    deadline = time.monotonic() + 50
    while is_running(rack.supervisor) and time.monotonic() < deadline:
        victim = rack.daemons().get("dram0")
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):  # gone, and seen off, since it was looked for
                os.kill(victim, signal.SIGKILL)
        time.sleep(0.001)
    assert not is_running(rack.supervisor)
    assert not connection.is_alive()
    assert yard.nursery.wait(rack.supervisor) == 1
