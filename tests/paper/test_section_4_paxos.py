"""Section 4 of the paper, "Case study: Paxos", sentence by sentence, on three racks with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import until
from alive import is_running
from racks import Yard
from service_under_test import SITES, SOON, ServiceUnderTest

Found = Callable[..., ServiceUnderTest]


@pytest.fixture
def found(yard: Yard, tmp_path: Path) -> Iterator[Found]:
    """Founds a service, and waits until it is whole."""
    with contextlib.ExitStack() as stack:

        def one(*options: str, **timing: float) -> ServiceUnderTest:
            service = ServiceUnderTest(yard, tmp_path, *options, **timing)
            stack.callback(service.close)
            service.rest()
            return service

        yield one


@pytest.fixture
def service(whole_service: ServiceUnderTest) -> ServiceUnderTest:
    """It has recovered from what the last test did to it."""
    whole_service.rest()
    return whole_service


def test_replicas_go_through_the_same_states_and_requests_may_be_reissued(service: ServiceUnderTest) -> None:
    """ "Paxos ensures that replicas transition through the same sequence of states. If a replica fails, a client can
    reissue its requests to other replicas."
    """
    for number in range(30):
        with service.client(SITES[number % 3]) as client:
            assert client.incr("count") == number + 1
    victim = service.leader()
    os.kill(victim.os_pid, signal.SIGKILL)
    other = next(site for site in SITES if site != victim.site)
    with service.client(other) as client:
        assert client.incr("count") == 31
    service.rest()
    for site in SITES:
        with service.client(site) as client:
            assert client.get("count") == b"31"
    assert len({report.applied for report in service.reports()}) == 1


def test_failed_replicas_are_removed_and_new_ones_introduced(service: ServiceUnderTest) -> None:
    """ "Failures lead to *reconfiguration*, in which failed replicas are removed and new replicas are introduced to
    prevent failures from accumulating over time. Reconfiguration brings new replicas": with the state of the others.
    """
    with service.client("a") as client:
        client.set("kept", "through all of them")
    founders = {1, 2, 3}
    for site in SITES:  # one after the other; together they would be a majority
        members = service.leader().members
        lost = next(replica for replica, at in members.items() if at == site)
        service.lose_memory(site)
        until(
            lambda lost=lost: all(lost not in one.members for one in service.reports()), "its removal", SOON
        )
        service.rest()
    assert not founders & {report.replica for report in service.reports()}
    with service.client("b") as client:
        assert client.get("kept") == b"through all of them"


def test_who_was_excluded_does_not_participate_when_it_comes_back(found: Found) -> None:
    """ "and prevents replicas that have been excluded from the current configuration (presumably because they have
    failed) from participating if they come back."
    """
    service = found(remove_after=1.5)
    victim = service.follower()
    service.wires.isolate([victim.site])
    until(lambda: victim.replica not in service.leader().members, "its exclusion", SOON)
    service.wires.mend()
    service.rest()
    fresh = service.successor(victim)
    assert fresh.replica not in (victim.replica, 0)
    assert all(victim.replica not in report.members for report in service.reports())


def test_heartbeats_and_time_outs_suffice_where_nothing_else_tells(found: Found) -> None:
    """ "Paxos typically relies on heartbeats with conservative timeouts to ascertain the state of processes." """
    service = found("--no-reincarnation", "--no-failure-notices", lease=0.3)
    former = service.leader()
    os.kill(former.os_pid, signal.SIGKILL)
    until(lambda: service.leader().replica != former.replica, "another leader", SOON)
    assert service.leader().ballot > former.ballot


def test_who_is_suspected_and_cannot_be_confirmed_dead_is_replaced_all_the_same(
    service: ServiceUnderTest,
) -> None:
    """ "In cases where failures are suspected but cannot be confirmed, these detectors *kill* the replicas". Ours takes
    the memory away first, so that the process may live and yet is the replica no longer; then it is killed.
    """
    former = service.leader()
    os.kill(former.os_pid, signal.SIGSTOP)
    heir = service.successor(former)
    assert heir.replica == former.replica
    until(lambda: not is_running(former.os_pid), "the end of the process that hung", SOON)
