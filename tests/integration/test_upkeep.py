"""A rack whose directory is deleted while it runs, as the library and the command line see it.

That it is made again, whole and with the same daemons behind it, is in test_attacks.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import actors
import bequest as bq
from actors import until
from alive import is_running
from bequest.limits import UPKEEP_INTERVAL
from bequest.runtime import upkeep as upkeep_module
from bequest.runtime.directory import claim
from bequest.runtime.loop import Daemon
from bequest.runtime.post import Post
from bequest.runtime.transport import listen
from bequest.runtime.upkeep import Upkeep
from bequest.wire.supervision import Listen
from racks import RackUnderTest, Yard
from unchanged import PAGE

pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")


def is_there_again(rack: RackUnderTest) -> bool:
    names = ["mmu.sock", "monitor.sock", "agent-host0.sock", "element-dram0.sock", "rack.json", "lock"]
    return all((rack.directory / name).exists() for name in names)


def test_daemons_that_die_while_it_is_gone_are_found_again(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    """Neither no socket nor a fresh one is taken for the end of the rack, or for another rack."""
    region, peer = me.alloc(PAGE), yard.actor("peer")
    me.publish("/region", region)
    daemons = rack.daemons()
    shutil.rmtree(rack.directory)
    for role in ("mmu", "dram0", "host0"):
        os.kill(daemons[role], signal.SIGKILL)
    assert rack.connection.is_alive()
    me.check_rack()
    me.alloc(32 << 20).free()  # a fresh slab: the Rack MMU is asked, and the memory element
    region.grant("peer")
    peer.do(actors.accept, "region")
    assert sorted(rack.processes()) == ["me", "peer"]
    assert len(me.list()) == 1


def test_a_memory_element_that_is_reached_for_the_first_time(yard: Yard) -> None:
    """While its socket is gone: a process that is attached waits for it."""
    rack = yard.rack("dram0:64MiB", "dram1:64MiB")
    me = yard.attach("me")
    me.alloc(PAGE, element="dram0").free()
    for number in list(me._links._elements):  # as if it had reached none of them
        me._links._elements.pop(number).close()
    shutil.rmtree(rack.directory)
    me.alloc(PAGE, element="dram1").array()[:] = 1


def test_who_attaches_while_the_agents_socket_is_gone_waits_for_it(yard: Yard, rack: RackUnderTest) -> None:
    (rack.directory / "agent-host0.sock").unlink()
    yard.attach("late").alloc(PAGE).free()


def test_notices_go_on(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    """Also those of an agent that is started anew meanwhile."""
    events, peer, daemon = me.events, yard.actor("peer"), rack.daemon("host0")
    shutil.rmtree(rack.directory)
    os.kill(daemon, signal.SIGKILL)
    peer.kill()
    until(lambda: any(isinstance(event, bq.ProcessDied) for event in [next(iter(events))]))


def test_the_command_line_finds_and_ends_it(rack: RackUnderTest, me: bq.Process) -> None:
    shutil.rmtree(rack.directory.parent)
    until(lambda: is_there_again(rack))
    assert "me" in bequest("ps", "--rack", "test")
    me.detach()
    assert "ended" in bequest("down", "test")
    assert not is_running(rack.supervisor) and not rack.directory.exists()


def bequest(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bequest.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_daemons_still_clear_up_when_all_else_is_killed(rack: RackUnderTest) -> None:
    """They hold the lock of the directory that was made again."""
    daemons = rack.daemons()
    shutil.rmtree(rack.directory)
    until(lambda: is_there_again(rack))
    rack.connection.close()
    os.kill(rack.supervisor, signal.SIGKILL)
    until(lambda: not any(is_running(pid) for pid in daemons.values()), "the end of the daemons")
    assert not rack.directory.exists()


def test_a_rack_whose_place_another_has_taken_ends(rack: RackUnderTest, me: bq.Process) -> None:
    """Nobody could find it any more; the other one is not disturbed."""
    shutil.rmtree(rack.directory)
    other = claim("test")
    until(lambda: not is_running(rack.supervisor), "its end")
    with pytest.raises(bq.RackGone):
        me.check_rack()
    assert (other.path / "lock").exists()
    other.remove()
    os.close(other.lock)


def test_a_place_that_cannot_be_had_again_is_waited_for(rack: RackUnderTest, me: bq.Process) -> None:
    """It goes on for those who are attached."""
    base = rack.directory.parent
    me.alloc(PAGE).free()  # so that it is connected to the memory element
    shutil.rmtree(base)
    base.symlink_to(base.parent)  # as somebody else might put there
    me.alloc(32 << 20).free()
    time.sleep(2 * UPKEEP_INTERVAL)
    assert sorted(base.parent.iterdir()) == [base]
    base.unlink()
    until(lambda: is_there_again(rack))
    assert rack.audit() == []


def test_two_racks_in_one_place_are_told_apart(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    """A process that attaches a second time after the directory was made again is in the same rack."""
    shutil.rmtree(rack.directory)
    until(lambda: is_there_again(rack))
    again = yard.attach("again")
    again.alloc(PAGE).grant("me")
    assert me.accept(1).sender == "again"


def test_a_socket_that_cannot_be_had_again_yet_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon has a copy, and so would its successor; clients that have connected wait there."""
    listener = listen(tmp_path / "mmu.sock")
    post = Post("mmu", "mmu", "the Rack MMU", tmp_path / "mmu.sock", listener, make=Daemon)
    told: list[object] = []
    place: Any = SimpleNamespace(path=tmp_path, restore=lambda: False)
    upkeep = Upkeep(place, [post], lambda post, message, fds: told.append(message), None)
    os.unlink(tmp_path / "mmu.sock")

    def refuses(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(upkeep_module, "listen", refuses)
    upkeep.look(upkeep.next_look)
    assert post.listener is listener and listener.fileno() >= 0 and told == []
    monkeypatch.undo()
    upkeep.look(upkeep.next_look)
    assert post.listener is not listener and listener.fileno() < 0 and told == [Listen()]
    post.listener.close()
