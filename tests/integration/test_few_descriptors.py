"""When file descriptors run out, in the supervisor and in a client: what needs one fails, and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from racks import RackUnderTest, Yard
from screen import SMALL, Screen

FEW = 512 + 20  # limits.SAFE_DESCRIPTORS_SPARE are for the supervisor itself

CREATES_GROUPS = """
import os, signal, sys
import bequest as bq
from bequest.wire import messages as wire

rack = bq.connect()

def create(name):
    groups = []
    try:
        while len(groups) < 100:
            groups.append(rack.create_group(f"{name}-{len(groups)}"))
    except bq.RackMemoryError as error:
        print(error)
    return groups

me = rack.attach("member", group=rack.create_group("first"))
region = me.alloc(4096)
before = create("before")
(mmu,) = [daemon.os_pid for daemon in rack.request(wire.Status("rack")).daemons if daemon.name == "mmu"]
os.kill(mmu, signal.SIGKILL)
again = create("after")
me.publish("/region", region)
print(len(before), len(again), me.lookup("/region").nbytes)
region.free()
me.detach()
"""


def test_a_group_whose_table_cannot_be_kept_is_refused_and_the_rack_goes_on(bequest: Screen) -> None:
    """Also after the Rack MMU was killed: it finds the table of every group that it had promised."""
    done = bequest(
        "up", "--detach", *SMALL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", CREATES_GROUPS],
        env=bequest.environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, counts = done.stdout.splitlines()
    assert "file descriptors and can have no more" in first and "no more" in second
    before, after, nbytes = map(int, counts.split())
    assert 0 < before < 20 and after == 0 and nbytes == 4096


def test_a_client_without_descriptors_is_told_so_and_goes_on_when_it_has_some(
    yard: Yard, rack: RackUnderTest
) -> None:
    me = yard.attach("me")
    me.alloc(4096).free()  # it is connected to the memory element
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        with pytest.raises(OSError, match="no file descriptor is left in this process"):
            me.alloc(16 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    with me.alloc(16 << 20) as region:
        assert memoryview(region)[0] == 0
