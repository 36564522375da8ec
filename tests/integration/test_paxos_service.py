"""The replicated service as a whole: real racks, real deaths, and what its clients notice of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxos_service import RunningService, is_healthy, leader_of, wait_for_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    runtime = tmp_path_factory.mktemp("paxos") / "run"
    runtime.mkdir(mode=0o700)
    one = RunningService(runtime)
    yield one
    one.close()
    assert left_in(runtime) == []


def left_in(runtime: Path) -> list[str]:
    return sorted(path.name for path in runtime.glob("**/*") if path.name not in {"bequest", ".lock"})


def test_a_dead_leader_goes_on_as_the_same_replica(service: RunningService) -> None:
    """Same ballot, same membership, no election, and nothing that was acknowledged is lost (paper, 4.1)."""
    before = leader_of(service.healthy())
    for number in range(3):
        service.insist(before.site, "number", number)
        victim = leader_of(service.healthy())
        os.kill(victim.os_pid, signal.SIGKILL)
        with service.client(before.site) as client:
            assert client.get("number") == str(number).encode()
        service.insist(before.site, "next", number)
    after = leader_of(service.healthy())
    assert (after.site, after.replica, after.epoch) == (before.site, before.replica, before.epoch)
    assert after.ballot == before.ballot and after.life == before.life + 3
    told = after.reincarnations[len(before.reincarnations) :]
    assert [one.why for one in told] == ["death"] * 3 and told[-1].by == after.process


def test_a_dead_follower_goes_on_as_the_same_replica(service: RunningService) -> None:
    reports = service.healthy()
    victim = next(report for report in reports.values() if report.role == "follower")
    os.kill(victim.os_pid, signal.SIGKILL)
    service.insist(victim.site, "key", "value")
    after = service.healthy()[victim.site]
    assert (after.replica, after.epoch, after.life) == (victim.replica, victim.epoch, victim.life + 1)


def test_a_dead_standby_is_replaced(service: RunningService) -> None:
    reports = service.healthy()
    some = next(iter(reports.values()))
    rack = service.service.site(some.site).rack
    (standby,) = some.standbys
    begun = service.standbys_begun(some.site)
    assert service.run("fault", "process", standby, "--rack", rack).returncode == 0
    service.wait(lambda _: service.standbys_begun(some.site) > begun)
    service.healthy()


def test_a_stopped_leader_is_replaced_and_cannot_speak_when_it_returns(service: RunningService) -> None:
    """Fenced by the theft: it ends of its first store, and its clients with it (paper, 4.1)."""
    victim = leader_of(service.healthy())
    with service.client(victim.site) as old:
        old.set("key", "before")
        os.kill(victim.os_pid, signal.SIGSTOP)
        service.insist(victim.site, "key", "after")
        os.kill(victim.os_pid, signal.SIGCONT)
        wait_for_end(victim.os_pid)
        assert old.get("key") == b"after"  # it has connected anew
    after = service.healthy()[victim.site]
    assert (after.replica, after.epoch) == (victim.replica, victim.epoch)
    assert after.reincarnations[-1].why == "suspicion"


def test_lost_memory_is_told_and_the_site_gets_a_fresh_replica(service: RunningService) -> None:
    """The others reconfigure at once, and the newcomer gets the state from them (paper, 3.2 and 4.1)."""
    victim = leader_of(service.healthy())
    service.insist(victim.site, "kept", "memory")
    began = time.time()
    service.lose_memory(victim)
    after = service.healthy()[victim.site]
    assert after.replica > 3 and after.replica != victim.replica and victim.replica not in after.members
    removed = [
        report.epochs[victim.epoch + 1] for site, report in service.reports().items() if site != victim.site
    ]
    assert len(removed) == 2 and all(began < at <= time.time() for at in removed)
    with service.client(victim.site) as client:
        assert client.get("kept") == b"memory"


def test_a_dead_holder_is_replaced(service: RunningService) -> None:
    victim = leader_of(service.healthy())
    rack = service.service.site(victim.site).rack
    holder = int(Path(f"/proc/{victim.os_pid}/stat").read_text().rpartition(")")[2].split()[1])
    begun = service.standbys_begun(victim.site)
    os.kill(holder, signal.SIGKILL)
    service.wait(lambda _: service.standbys_begun(victim.site) > begun + 1)
    os.kill(victim.os_pid, signal.SIGKILL)
    service.insist(victim.site, "key", "value")
    after = service.healthy()[victim.site]
    assert after.replica == victim.replica and rack == service.service.site(after.site).rack


def test_a_rack_that_ends_is_a_lost_memory(service: RunningService) -> None:
    victim = leader_of(service.healthy())
    service.insist(victim.site, "kept", "rack")
    assert service.run("down", service.service.site(victim.site).rack).returncode == 0
    service.wait(lambda reports: reports[victim.site].replica != victim.replica and is_healthy(reports))
    with service.client(victim.site) as client:
        assert client.get("kept") == b"rack"


def test_status_says_how_everybody_is(service: RunningService) -> None:
    service.healthy()
    told = json.loads(service.run("paxos", "status", service.name, "--json").stdout)
    assert [one["site"] for one in told["sites"]] == ["a", "b", "c"]
    assert told["leader"] in [one["site"] for one in told["sites"] if one["role"] == "leader"]
    assert all(one["answers"] and one["standbys"] for one in told["sites"])
    table = service.run("paxos", "status", service.name).stdout
    assert "leader" in table and "REINCARNATED" in table


def test_what_a_killed_launcher_leaves_down_ends(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    service = RunningService(runtime, "--replicas", "1", "--no-reincarnation", name="left")
    replica = service.wait(lambda reports: True)["a"]
    service.launcher.kill()
    service.launcher.wait()
    service.insist("a", "key", "value")
    again = service.run("paxos", "up", "--name", "left")
    assert again.returncode == 1 and "bequest paxos down left" in again.stderr
    assert service.run("paxos", "down", "left").returncode == 0
    wait_for_end(replica.os_pid)
    assert left_in(runtime) == []
    gone = service.run("paxos", "status", "left")
    assert gone.returncode == 1 and "bequest paxos up" in gone.stderr
    service.close()


def test_without_reincarnation_a_fresh_replica_takes_the_place_of_the_dead(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    service = RunningService(runtime, "--no-reincarnation", name="baseline")
    try:
        victim = leader_of(service.healthy(standbys=0))
        service.insist("a", "key", "value")
        os.kill(victim.os_pid, signal.SIGKILL)
        after = service.wait(
            lambda reports: victim.replica not in reports["a"].members and len(reports["a"].members) == 3
        )
        assert after[victim.site].replica > 3 and after[victim.site].reincarnations == []
        assert service.interrupt() == 0
    finally:
        service.close()
    assert left_in(runtime) == []
