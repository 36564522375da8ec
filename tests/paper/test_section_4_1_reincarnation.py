"""Section 4.1 of the paper, "Paxos reconfiguration in DDCs", sentence by sentence, on three racks."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress

import pytest

from actors import until
from alive import is_running
from service_under_test import SITES, SOON, ServiceUnderTest


@pytest.fixture
def service(whole_service: ServiceUnderTest) -> ServiceUnderTest:
    """ "We assume that replicas run in different racks": three, each with a replica and a standby."""
    whole_service.rest()
    return whole_service


def is_hung_up(connection: socket.socket) -> bool:
    """Whether nothing comes of it any more but its end."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_dead_compute_with_live_memory(service: ServiceUnderTest) -> None:
    """ "When a replica dies, one could reassign its memory […] to another compute element and the system could continue
    operating unimpeded. Such reassignment *reincarnates* the old node, from the perspective of Paxos, allowing the
    consensus group to return to full health faster (no need to fetch the state […] from other replicas)." And:
    "reincarnation can be transparent to the rest of the system. In such cases, clients and other replicas only observe
    a connection termination and will attempt to reconnect."
    """
    former = service.leader()
    there = service.connection(former.site)
    with there, service.client(service.follower().site) as elsewhere:
        there.sendall(b"SET key value\r\n")
        assert there.recv(100) == b"+OK\r\n" and elsewhere.get("key") == b"value"
        os.kill(former.os_pid, signal.SIGKILL)
        assert (
            elsewhere.incr("count") == 1
        )  # its connection has not ended, and its request was carried out once
        assert is_hung_up(there)
    with service.client(former.site) as again:  # at the same address: nobody had to be told of another
        assert again.get("key") == b"value"
    heir = service.successor(former)
    assert (heir.replica, heir.ballot, heir.epoch) == (former.replica, former.ballot, former.epoch)
    assert heir.life == former.life + 1
    for report in service.reports():
        assert (report.leader, report.ballot) == (former.replica, former.ballot)
        assert report.members == former.members and not report.learners


def test_standbys_take_ownership_by_stealing(service: ServiceUnderTest) -> None:
    """ "Replicas can register "standbys" with the rack monitor to be contacted when the replica dies and which can take
    ownership of the dead replica's memory using memory stealing."
    """
    former = service.follower()
    [standby] = former.standbys
    assert service.racks[former.site].processes()[former.process].owned_bytes > 0
    os.kill(former.os_pid, signal.SIGKILL)
    heir = service.successor(former)
    assert heir.process == standby
    service.rest()  # by then that is noted
    told = service.report(former.site).reincarnations[-1]  # type: ignore[union-attr]
    assert (told.of, told.by, told.why) == (former.process, standby, "death")
    assert service.racks[former.site].processes()[standby].owned_bytes >= heir.heap_bytes


def test_who_was_only_away_cannot_corrupt_the_state(service: ServiceUnderTest) -> None:
    """ "In response to the steal operation, the Rack MMU revokes and reassigns access to the region of memory.
    Revocation is needed because failures are not always fail-stop and the system must prevent a temporarily unavailable
    compute element from returning and corrupting state." And "to fence the old compute element off from the rest of the
    network": its clients are the heir's, who hear of it at once, and it says nothing more.
    """
    former = service.leader()
    with service.connection(former.site) as there, service.connection(former.site) as waiting:
        for connection in (there, waiting):
            connection.sendall(b"SET key before\r\n")
            assert connection.recv(100) == b"+OK\r\n"
        os.kill(former.os_pid, signal.SIGSTOP)
        assert is_hung_up(waiting) and is_running(
            former.os_pid
        )  # which is killed a second after its heir serves
        service.successor(former)
        with service.client(former.site) as again:
            again.set("key", "after")
        with suppress(BrokenPipeError, ConnectionResetError):
            there.sendall(b"SET key by-a-ghost\r\n")
        os.kill(former.os_pid, signal.SIGCONT)
        until(lambda: not is_running(former.os_pid), "the end of the old process", SOON)
        assert is_hung_up(there)
    service.rest()
    for site in SITES:
        with service.client(site) as client:
            assert client.get("key") == b"after"


def test_dead_memory_with_live_compute(service: ServiceUnderTest) -> None:
    """ "Instead of terminating the application right away […], the OS propagates a signal up the stack or forwards the
    signal to other replicas. This mechanism allows other replicas to detect memory failures and initiate
    reconfigurations": the first change of the membership is that the lost replica is removed, before its site asks to
    join again.
    """
    victim = service.follower()
    seen = len(service.log)
    service.lose_memory(victim.site)
    service.rest()
    removed = f"epoch {victim.epoch + 1}: members "
    said = next(line for line in service.log[seen:].splitlines() if removed in line)
    assert f"{victim.replica}: '{victim.site}'" not in said and "learners {}" in said
    assert service.successor(victim).replica != victim.replica


def test_an_owner_that_cannot_say_so_is_spoken_for(service: ServiceUnderTest) -> None:
    """ "Forwards the signal to other replicas": its replica is stopped, and nobody suspects it, for the monitor is
    stopped as well; so its compute element calls its emergency contact, the standby, which tells the others (3.2).
    """
    victim = service.follower()
    monitor = service.racks[victim.site].daemon("monitor")
    seen = len(service.log)
    removed = f"epoch {victim.epoch + 1}: members "
    try:
        os.kill(monitor, signal.SIGSTOP)
        os.kill(victim.os_pid, signal.SIGSTOP)
        service.lose_memory(victim.site)
        until(lambda: removed in service.log[seen:], "the lost replica's removal", SOON)
        assert (
            f"{victim.replica}: '{victim.site}'"
            not in service.log[seen:].partition(removed)[2].splitlines()[0]
        )
        assert f"the memory of {victim.process!r} has failed" in service.log[seen:]
    finally:
        os.kill(monitor, signal.SIGCONT)
        with suppress(ProcessLookupError):  # once there is another replica it is killed
            os.kill(victim.os_pid, signal.SIGCONT)
    until(lambda: not is_running(victim.os_pid), "the end of the old process", SOON)
    service.rest()
    assert service.successor(victim).replica != victim.replica
