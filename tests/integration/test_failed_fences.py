"""A fence that comes to nothing, with real processes: memory that stays its owner's goes on being of use, in silence.

A memory element of kind file cannot be write-protected, and the group allows no other rung. So who steals from
somebody with memory here and there has one part fenced, and fails at the other.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import actors
import bequest as bq
import fenced_users
import soaking
import thieves
from bequest import _core
from losses import LIBC, PAGE
from racks import MIB, Yard

STEALS = soaking.size(20, 500)


def on_disk(path: Path) -> str:
    if os.statvfs(path).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("temporary files are in memory here")
    return f"disk0:16MiB:file:{path}"


class Wreck:
    """A victim with a region that can be fenced and one that cannot, and a thief."""

    def __init__(self, yard: Yard, path: Path) -> None:
        self.rack = yard.rack("dram0:64MiB", on_disk(path))
        self.group = self.rack.connection.create_group("crew", fence="protect")
        self.victim = yard.actor("victim", group=self.group)
        self.thief = yard.attach("thief", group=self.group)
        for key, element, nbytes in (("small", "dram0", 16 * PAGE), ("huge", "dram0", 4 * MIB)):
            self.victim.do(partial(actors.alloc, element=element), key, nbytes, 1)
        self.victim.do(partial(actors.alloc, element="disk0"), "disk", 16 * PAGE, 1)

    def try_to_steal(self) -> None:
        with contextlib.suppress(bq.FenceFailed):
            self.thief.steal("victim", self.group.capability)

    def steal_in_vain(self, only: list[str | int] | None = None) -> None:
        with pytest.raises(bq.FenceFailed, match="write-protecting"):
            self.thief.steal("victim", self.group.capability, only=only)


@pytest.fixture
def wreck(yard: Yard, tmp_path: Path) -> Wreck:
    return Wreck(yard, tmp_path)


@pytest.mark.parametrize("key", ["small", "huge"])
def test_a_victim_that_writes_all_the_time_notices_nothing(wreck: Wreck, key: str) -> None:
    wreck.victim.do(fenced_users.count_on, key)
    for _ in range(STEALS):
        wreck.steal_in_vain()
    assert wreck.victim.do(fenced_users.has_counted, key)
    assert wreck.rack.audit() == []


@pytest.mark.parametrize("key", ["small", "huge"])
def test_a_stopped_victim_finds_its_memory_as_it_was(wreck: Wreck, key: str) -> None:
    """Also for system calls, which cannot wait: the protection is lifted without a touch."""
    wreck.victim.signal(signal.SIGSTOP)
    wreck.steal_in_vain()
    time.sleep(0.2)
    wreck.victim.signal(signal.SIGCONT)
    assert wreck.victim.do(fenced_users.read_into, key) == (16 * PAGE if key == "small" else 4 * MIB)
    assert wreck.victim.do(actors.values, key) == [0]


def test_it_can_be_granted_split_and_stolen_afterwards(wreck: Wreck) -> None:
    wreck.steal_in_vain()
    wreck.victim.do(actors.grant, "small", "thief")
    with wreck.thief.accept(actors.DEADLINE) as region:
        region.array()[:] = 3
    for value in range(3):
        address = wreck.victim.do(actors.alloc, f"more {value}", PAGE, value)
        wreck.steal_in_vain()
        with wreck.thief.steal("victim", wreck.group.capability, only=[address]) as estate:
            estate.regions[0].array()[:] = 100
            assert wreck.victim.do(thieves.touch, f"more {value}") == "MemoryRevoked"
            assert set(estate.regions[0].array()) == {100}
    wreck.victim.do(actors.fill, "huge", 9)
    assert wreck.rack.audit() == []


@pytest.mark.parametrize("daemon", ["mmu", "host0"])
def test_a_daemon_that_is_killed_meanwhile_costs_a_moment(wreck: Wreck, daemon: str) -> None:
    wreck.victim.do(fenced_users.count_on, "huge")
    for _ in range(4):
        tried = threading.Thread(target=wreck.try_to_steal, daemon=True)
        tried.start()
        time.sleep(0.001)
        os.kill(wreck.rack.daemon(daemon), signal.SIGKILL)
        tried.join(actors.DEADLINE)
    assert wreck.victim.do(fenced_users.has_counted, "huge")
    wreck.victim.do(actors.fill, "small", 9)
    assert wreck.victim.do(actors.values, "small") == [9]


# --- the fault handler alone ---------------------------------------------------------------------------------------


@pytest.fixture
def fence() -> Iterator[int]:
    fd = _core.open_fence()
    yield fd
    os.close(fd)


def from_another_process(act: Callable[[], object], seconds: float) -> int:
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        act()
        os._exit(0)
    return child


def test_a_store_to_memory_that_is_fenced_but_ours_waits_for_the_lifting(me: bq.Process, fence: int) -> None:
    region = me.alloc(4 * PAGE)
    array = region.array()
    run = [(region.address, region.nbytes)]
    _core.write_protect(fence, os.getpid(), run)
    child = from_another_process(partial(_core.lift_protection, fence, os.getpid(), run), 0.2)
    before = time.monotonic()
    array[:] = 5
    assert 0.1 < time.monotonic() - before < actors.DEADLINE
    assert set(array) == {5}
    assert os.waitpid(child, 0)[1] == 0
    del array
    region.free()


def test_a_store_to_memory_that_is_stolen_while_it_waits_is_told(
    yard: Yard, me: bq.Process, fence: int
) -> None:
    thief = yard.actor("thief").do(actors.own_id)
    region = me.alloc(4 * PAGE)
    array = region.array()
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    wanted = [(descriptor, word) for descriptor, word, _, _ in me.table.stealable(me.id)]
    child = from_another_process(partial(me.table.steal, wanted, me.id, thief), 0.2)
    before = time.monotonic()
    with pytest.raises(bq.MemoryRevoked, match="was stolen by 'thief'"):
        array[:] = 5
    assert 0.1 < time.monotonic() - before < actors.DEADLINE
    assert os.waitpid(child, 0)[1] == 0


def test_what_another_attachment_of_this_program_has_stolen_is_not_waited_for(
    yard: Yard, me: bq.Process, fence: int
) -> None:
    """Its thief may need the very interpreter that would wait."""
    other = yard.attach("other")
    region = me.alloc(4 * PAGE)
    array = region.array()
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    me.table.steal([row[:2] for row in me.table.stealable(me.id)], me.id, other.id)
    before = time.monotonic()
    with pytest.raises(bq.MemoryRevoked):
        array[:] = 5
    assert time.monotonic() - before < actors.DEADLINE / 2


# --- what cannot be lifted from outside ----------------------------------------------------------------------------


def is_writable(region: bq.Region) -> bool:
    """Its last page. Asked of the kernel, which answers where a touch would wait or raise."""
    with open("/dev/zero", "rb", buffering=0) as zeros, contextlib.suppress(OSError):
        return zeros.readinto(memoryview(region)[-PAGE:]) == PAGE
    return False


@pytest.mark.parametrize("nbytes", [6 * PAGE, 20 * MIB])
@pytest.mark.parametrize("rung", ["protect", "ptrace"])
def test_memory_that_stays_fenced_is_mended(
    yard: Yard, me: bq.Process, fence: int, rung: str, nbytes: int
) -> None:
    """All that is our own, and nothing that was stolen."""
    thief = yard.actor("thief").do(actors.own_id)
    region, other = me.alloc(nbytes), me.alloc(nbytes)
    half = region[: nbytes // 2]
    half.grant(me.name)
    half, rest = me.accept(actors.DEADLINE), region[nbytes // 2 :]
    array, stolen = rest.array(), other.array()
    array[:] = 5
    for one in (region, other):
        run = (one.address, nbytes)
        if rung == "protect":
            _core.write_protect(fence, os.getpid(), [run])
        else:
            assert LIBC.mprotect(*run, 0) == 0
    me.table.steal([row[:2] for row in me.table.stealable(me.id, [(other.address, nbytes)])], me.id, thief)
    me.table.have_mended(me.id)
    actors.until(lambda: is_writable(half) and is_writable(rest), "its mending")
    assert (array[:-PAGE] == 5).all()
    array[:] = 6
    assert (array == 6).all()
    with pytest.raises(bq.MemoryRevoked, match="was stolen by 'thief'"):
        stolen[:] = 1
    del array, stolen
    half.free()
    rest.free()


def test_a_store_that_waits_for_memory_that_cannot_be_lifted_goes_on(me: bq.Process, fence: int) -> None:
    """The thread that waits has the interpreter's lock."""
    region = me.alloc(4 * PAGE)
    view = memoryview(region)
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    child = from_another_process(partial(me.table.have_mended, me.id), 0.2)
    before = time.monotonic()
    view[0] = 7
    assert time.monotonic() - before < actors.DEADLINE / 2
    assert view[0] == 7
    assert os.waitpid(child, 0)[1] == 0
    view.release()
    region.free()


def test_what_cannot_be_mended_is_not_waited_for(me: bq.Process, fence: int) -> None:
    region = me.alloc(32 * MIB)
    array = region.array()
    _core.write_protect(fence, os.getpid(), [(region.address, region.nbytes)])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 8 * MIB, limits[1]))  # there is no room to map it again
    try:
        me.table.have_mended(me.id)
        before = time.monotonic()
        with pytest.raises(bq.MemoryRevoked, match="was fenced off for a theft"):
            array[:] = 5
        assert time.monotonic() - before < actors.DEADLINE / 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    del array
    region.free()
