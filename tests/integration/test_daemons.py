"""A rack's daemons as real processes: attaching, memory, deaths on either side, and nothing left behind."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bequest as bq
from alive import is_running
from bequest import errors
from bequest.errors import NotAttached, RackGone, RackMemoryError, UnknownProcess
from bequest.runtime.config import make_config
from bequest.runtime.directory import find
from bequest.runtime.embedded import start_detached, start_embedded
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire
from rack_process import Member, RackProcess, end, run_member, until

MIB = 1 << 20


@pytest.fixture
def start() -> Iterator[Callable[..., RackProcess]]:
    """Starts racks, which end with the test, however it ends: the next one wants their names."""
    started: list[RackProcess] = []

    def start_one(*name: str, **flags: object) -> RackProcess:
        started.append(RackProcess.start(*name, **flags))
        return started[-1]

    yield start_one
    for one in reversed(started):
        one.stop()


@pytest.fixture
def rack(start: Callable[..., RackProcess]) -> RackProcess:
    return start(orphan_keep=0.3)


# --- memory -----------------------------------------------------------------------------------------------------


def test_two_processes_share_the_pages_of_their_groups_slab(rack: RackProcess) -> None:
    one, two = Member(rack, "one"), Member(rack, "two")
    slab = one.need(2 * MIB)
    fds = one.open(slab), two.open(slab)
    with mmap.mmap(fds[0], 2 * MIB) as mine, mmap.mmap(fds[1], 2 * MIB) as theirs:
        mine[4096:4101] = b"hello"
        assert theirs[4096:4101] == b"hello"
    for fd in fds:
        os.close(fd)
    assert rack.audit() == []
    one.close()
    two.close()


def test_another_group_cannot_open_it(rack: RackProcess) -> None:
    creator = rack.connect()
    group, _ = creator.request(wire.CreateGroup("etl"))
    assert isinstance(group, wire.GroupCreated)
    one, stranger = Member(rack, "one"), Member(rack, "stranger", group.secret)
    slab = one.need(2 * MIB)
    with pytest.raises(UnknownProcess):
        stranger.open(slab)
    with pytest.raises(UnknownProcess):
        stranger.element.request(wire.OpenSlab(b"guess", slab))
    for member in (one, stranger):
        member.close()
    creator.close()


def test_nobody_can_make_a_slab_larger(rack: RackProcess) -> None:
    member = Member(rack, "one")
    fd = member.open(member.need(2 * MIB, huge=True))
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4 * MIB)
    os.close(fd)
    member.close()


def test_more_than_there_is(rack: RackProcess) -> None:
    member = Member(rack, "one")
    with pytest.raises(RackMemoryError) as caught:
        member.need(1024 * MIB)
    assert caught.value.free == [("dram0", 256 * MIB, 256 * MIB)]
    for _ in range(4):
        member.need(64 * MIB)
    other = Member(rack, "two")
    with pytest.raises(RackMemoryError):
        other.need(512 * MIB)
    other.close()
    member.mmu.request(wire.Detach())
    assert rack.used() == 0
    member.close()


def test_memory_in_files_leaves_none_behind(start: Callable[..., RackProcess], tmp_path: Path) -> None:
    rack = start(memory=[f"pmem0:64MiB:file:{tmp_path}"])
    member = Member(rack, "one")
    fd = member.open(member.need(2 * MIB))
    assert os.fstat(fd).st_blocks * 512 >= 2 * MIB  # allocated, so a full disk is no SIGBUS later
    assert list(tmp_path.iterdir()) == []
    os.close(fd)
    member.close()


# --- deaths of users ----------------------------------------------------------------------------------------------


def test_a_killed_process_is_noticed_kept_and_freed(rack: RackProcess) -> None:
    process = run_member(rack, "victim")
    assert rack.states() == {"victim": "attached"}
    process.kill()
    assert until(lambda: rack.states() != {"victim": "attached"})
    assert until(lambda: rack.states() == {})
    assert rack.used() == 0
    assert rack.audit() == []
    assert "'victim'" in rack.log() and "has died" in rack.log()
    end(process)


def test_a_forked_child_that_outlives_the_process_hides_nothing(rack: RackProcess) -> None:
    fork = "child = os.fork()\nif child == 0:\n    sys.stdin.read()\n    os._exit(0)"
    process = run_member(rack, "parent", fork)
    process.kill()
    assert until(lambda: rack.states() == {})
    end(process)


def test_a_closed_connection_is_not_a_death(rack: RackProcess) -> None:
    member = Member(rack, "one")
    member.need(2 * MIB)
    member.close()
    assert until(lambda: rack.states() == {"one": "lost"})
    assert not until(lambda: rack.states() == {}, seconds=1.5)  # this process runs on


def test_a_forked_child_is_not_attached(rack: RackProcess) -> None:
    channel = rack.connect()
    child = os.fork()
    if child == 0:
        try:
            channel.request(wire.Status("rack"))
        except NotAttached:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(channel.request(wire.Status("rack"))[0], wire.RackReport)
    channel.close()


def test_many_come_and_go(rack: RackProcess) -> None:
    def come_and_go(times: int) -> None:
        for index in range(times):
            member = Member(rack, f"m{index}")
            member.need(2 * MIB)
            member.mmu.request(wire.Detach())
            member.close()

    come_and_go(1)  # the user's own group and its table stay
    rack.ask(wire.Status("rack"))
    before = rack.descriptors()
    come_and_go(40)
    assert until(lambda: rack.descriptors()["mmu"] <= before["mmu"])
    assert until(lambda: rack.descriptors()["host0"] <= before["host0"])
    assert rack.used() == 0


# --- deaths of daemons --------------------------------------------------------------------------------------------


def test_asked_to_stop_nothing_is_left(start: Callable[..., RackProcess]) -> None:
    rack = start()
    daemons = rack.daemons()
    member = Member(rack, "one")
    member.need(2 * MIB)
    rack.ask(wire.Shutdown())
    assert until(lambda: not rack.directory.path.exists())
    assert until(lambda: not any(map(is_running, [rack.supervisor, *daemons.values()])))
    assert not member.mmu.is_alive()
    with pytest.raises(RackGone):
        member.mmu.request(wire.Status("rack"))
    member.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_rack_in_the_foreground(number: signal.Signals) -> None:
    program = (
        "from bequest.runtime.supervisor import run_rack; from bequest.runtime.config import make_config;"
        "config = make_config(name='front', memory=['d:64MiB']);"
        "raise SystemExit(run_rack(config, lambda d: print(d.path, flush=True), log_to_stderr=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    assert path.name == "front"
    assert path.is_dir()
    process.send_signal(number)
    assert process.wait(10) == 0
    assert not path.exists()
    process.stdout.close()


def test_a_killed_supervisor_takes_everything_with_it(start: Callable[..., RackProcess]) -> None:
    rack = start()
    daemons = rack.daemons()
    os.kill(rack.supervisor, signal.SIGKILL)
    assert until(lambda: not any(map(is_running, daemons.values())))
    assert until(lambda: not rack.directory.path.exists())


def test_all_killed_at_once_is_swept_by_the_next(start: Callable[..., RackProcess]) -> None:
    rack = start()
    for pid in (rack.supervisor, *rack.daemons().values()):
        os.kill(pid, signal.SIGSTOP)
    for pid in (*rack.daemons().values(), rack.supervisor):
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not rack.directory.is_live())
    assert rack.directory.path.exists()
    with pytest.raises(errors.NoRack):
        find("test")
    again = start()
    assert isinstance(again.ask(wire.Status("rack")), wire.RackReport)


TITLES = {
    "mmu": "the Rack MMU",
    "dram0": "memory element dram0",
    "host0": "agent host0",
    "monitor": "the rack monitor",
}


@pytest.mark.parametrize("role", TITLES)
def test_a_killed_daemon_is_started_again(start: Callable[..., RackProcess], role: str) -> None:
    rack = start()
    member = Member(rack, "one")
    slab = member.need(2 * MIB)
    daemons = rack.daemons()
    os.kill(daemons[role], signal.SIGKILL)
    assert until(lambda: rack.daemons().get(role, daemons[role]) != daemons[role])

    def reported() -> dict[str, wire.DaemonReport]:
        report = rack.ask(wire.Status("rack"))
        assert isinstance(report, wire.RackReport) and report.slabs == 1
        return {daemon.name: daemon for daemon in report.daemons}

    assert until(lambda: reported()[role].restarts == 1)  # the Rack MMU has its new link by then
    found = reported()
    assert {name: daemon.restarts for name, daemon in found.items()} == dict.fromkeys(daemons, 0) | {role: 1}
    assert {name: daemon.os_pid for name, daemon in found.items()} == rack.daemons()
    assert f"{TITLES[role]} (pid {daemons[role]}) was killed by SIGKILL" in rack.log()
    assert until(
        lambda: f"{TITLES[role]} runs again, as pid {rack.daemons()[role]} (restart 1)" in rack.log()
    )
    member.element.close()
    member.element = Channel.connect(rack.directory.socket(member.attached.elements[0].path))
    os.close(member.open(slab))
    member.close()


@pytest.mark.parametrize("role", ["dram0", "host0", "monitor"])
def test_an_embedded_rack_survives_its_daemons_and_still_ends(role: str) -> None:
    rack = RackProcess(start_embedded())
    channel = rack.connect()
    assert until(lambda: role in rack.daemons())
    before = rack.daemons()[role]
    os.kill(before, signal.SIGKILL)
    assert until(lambda: rack.daemons().get(role, before) != before)
    assert channel.is_alive()
    channel.close()
    assert until(lambda: not rack.directory.path.exists())
    assert until(lambda: not is_running(rack.supervisor))


def test_an_embedded_rack_ends_after_its_last_client() -> None:
    rack = RackProcess(start_embedded())
    first, second = rack.connect(), rack.connect()
    first.close()
    assert not until(lambda: not rack.directory.path.exists(), seconds=2)
    second.close()
    assert until(lambda: not rack.directory.path.exists())
    assert until(lambda: not is_running(rack.supervisor))


SHARING = """
import sys
import bequest as bq
from bequest.memory import rack as racks

racks.SHARED_LINGER = 0.2
me, *others = sys.argv[1:]
with bq.connect("shared", start=True) as rack, rack.attach(me) as process:
    for other in others:
        process.wait_for(other, timeout=30)
        process.send(other, b"here")
    print(sorted(process.accept(timeout=30).sender for _ in others))
"""


def test_programs_that_ask_for_a_rack_by_name_at_once_share_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    names = ["a", "b", "c"]
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, me, *(name for name in names if name != me)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in names
    ]
    told = [program.communicate(timeout=60)[0].strip() for program in programs]
    assert told == ["['b', 'c']", "['a', 'c']", "['a', 'b']"]
    assert until(lambda: not list(tmp_path.glob("bequest/[!.]*")))  # it ends after the last of them


def test_a_rack_that_is_to_be_started_needs_a_name() -> None:
    with pytest.raises(TypeError, match="needs the name"):
        bq.connect(start=True)


# --- not starting ---------------------------------------------------------------------------------------------------


def test_a_name_is_taken_by_a_running_rack(rack: RackProcess) -> None:
    with pytest.raises(errors.BequestError, match="running already"):
        start_detached(make_config(name="test", memory=["dram0:64MiB"]))
    assert isinstance(rack.ask(wire.Status("rack")), wire.RackReport)


def test_two_racks_of_one_user(start: Callable[..., RackProcess], rack: RackProcess) -> None:
    other = start("other")
    Member(rack, "same").close()
    Member(other, "same").close()


def test_a_directory_without_room_for_files(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    config = make_config(name="files", memory=[f"pmem0:64MiB:file:{gone}"])
    gone.rmdir()
    with pytest.raises(errors.BequestError, match="pmem0"):
        start_detached(config)


def test_a_long_path_to_the_sockets(
    start: Callable[..., RackProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    rack = start("long")
    assert len(str(rack.directory.mmu_socket)) > 107
    member = Member(rack, "one")
    os.close(member.open(member.need(2 * MIB)))
    member.close()


def test_channels_survive_an_interrupted_request(rack: RackProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = rack.connect()
    receive = Channel._receive
    monkeypatch.setattr(Channel, "_receive", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        channel.request(wire.Status("rack"))
    monkeypatch.setattr(Channel, "_receive", receive)
    assert isinstance(channel.request(wire.Status("elements"))[0], wire.ElementList)
    channel.close()
