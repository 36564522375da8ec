"""kill -9 of the Rack MMU: it comes back with its books, and its clients notice a pause at most."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import bequest as bq
import restart_users as users
import soaking
from actors import DEADLINE, until
from bequest.runtime import lasting
from bequest.runtime.transport import listen, new_buffer, receive_packet, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


def kill_mmu(rack: RackUnderTest) -> int:
    """Its pid was this."""
    pid = rack.daemon("mmu")
    os.kill(pid, signal.SIGKILL)
    return pid


def next_mmu(rack: RackUnderTest, before: int) -> int:
    def other() -> int | None:
        found = None
        with contextlib.suppress(OSError):
            found = rack.daemons().get("mmu")
        return found if found != before else None

    pid = until(other, "the next Rack MMU")
    assert isinstance(pid, int)
    return pid


@contextlib.contextmanager
def no_restart(rack: RackUnderTest) -> Iterator[None]:
    """The Rack MMU is killed, and its supervisor does not notice yet."""
    os.kill(rack.supervisor, signal.SIGSTOP)
    try:
        os.kill(rack.daemon("mmu"), signal.SIGKILL)
        yield
    finally:
        os.kill(rack.supervisor, signal.SIGCONT)


# --- what was, is ---------------------------------------------------------------------------------------------


def test_regions_stay_and_more_can_be_had(rack: RackUnderTest, me: bq.Process) -> None:
    region = me.alloc(2 * MIB)
    values = region.array(np.uint64)
    values[:] = np.arange(len(values), dtype=np.uint64)
    kill_mmu(rack)
    more = me.alloc(8 * MIB)
    assert more.address != region.address
    assert (values == np.arange(len(values), dtype=np.uint64)).all()
    assert rack.audit() == []
    assert rack.processes()["me"].owned_bytes == 10 * MIB
    del values
    region.free()
    more.free()


def test_a_racks_age_is_not_that_of_its_rack_mmu(rack: RackUnderTest) -> None:
    def uptime() -> float:
        report = rack.connection.request(wire.Status("rack"))
        assert isinstance(report, wire.RackReport)
        return report.uptime

    until(lambda: uptime() > 0.3)
    kill_mmu(rack)
    assert uptime() > 0.3


def test_names_groups_and_mailboxes_are_known_as_before(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    group = rack.connection.create_group("etl")
    stranger = yard.attach("stranger", group=group)
    opened, _ = me._links.mmu.request(wire.OpenMailbox("box", create=True))
    kill_mmu(rack)
    with pytest.raises(bq.NameTaken):
        rack.connection.attach("me")
    with pytest.raises(bq.NameTaken):
        rack.connection.create_group("etl")
    late = yard.attach("late", group=group)
    assert late.group == stranger.group == "etl"
    found, _ = me._links.mmu.request(wire.FindPeer("box"))
    assert isinstance(opened, wire.MailboxOpened) and isinstance(found, wire.PeerFound)
    assert (found.pid, found.incarnation) == (opened.id, opened.incarnation)
    assert isinstance(me._links.mmu.request(wire.CloseMailbox(opened.id))[0], wire.Done)


def test_a_group_lives_while_its_creator_does_and_no_longer(yard: Yard, rack: RackUnderTest) -> None:
    creator = bq.connect(str(rack.directory))
    group = creator.create_group("etl")
    kill_mmu(rack)
    time.sleep(2.5)  # two sweeps
    yard.attach("member", group=group).detach()
    creator.close()
    until(lambda: "etl" not in report(rack).groups, "the end of the group")


def report(rack: RackUnderTest) -> wire.RackReport:
    answer = rack.connection.request(wire.Status("rack"))
    assert isinstance(answer, wire.RackReport)
    return answer


def test_who_died_meanwhile_is_mourned(yard: Yard, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    with no_restart(rack):
        victim.kill()
    until(lambda: "victim" not in rack.processes(), "the end of its memory")
    yard.actor("victim").close()


def test_who_detached_meanwhile_has_left(yard: Yard, rack: RackUnderTest) -> None:
    guest = yard.attach("guest")
    region = guest.alloc(MIB)
    kill_mmu(rack)
    guest.detach()
    assert not region.owned
    assert "guest" not in rack.processes()
    until(lambda: rack.used_bytes() == 0, "its memory to be given back")


# --- a pause at most ------------------------------------------------------------------------------------------


def test_grants_go_on_while_there_is_no_rack_mmu(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    peer = yard.actor("peer")
    peer.start(users.hand_back, "me")
    region = me.alloc(PAGE)
    for _ in range(10):  # the peer is known from here on
        region.grant("peer")
        region = me.accept(DEADLINE)
    count, longest = 0, 0.0
    with no_restart(rack):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            before = time.monotonic()
            region.grant("peer")
            region = me.accept(DEADLINE)
            longest = max(longest, time.monotonic() - before)
            count += 1
    me.send("peer", b"")
    region.free()
    assert peer.result() == count + 10
    assert count > 1000, f"{count} round trips in a second, the longest {longest * 1e3:.1f} ms"


def test_what_needs_the_daemon_waits_for_it(rack: RackUnderTest, me: bq.Process) -> None:
    took = []
    for _ in range(5):
        pid = kill_mmu(rack)
        start = time.monotonic()
        me.alloc(6 * MIB).free()  # more than is left at home
        assert isinstance(me._links.mmu.request(wire.NeedSlab(512))[0], wire.SlabReady)
        took.append(time.monotonic() - start)
        next_mmu(rack, pid)
    assert min(took) < 0.5, took


def test_a_pause_is_not_the_end(rack: RackUnderTest, me: bq.Process) -> None:
    with no_restart(rack):
        assert rack.connection.is_alive()
        me.check_rack()
        with pytest.raises(bq.AcceptTimeout):
            me.accept(timeout=0.7)
    me.alloc(3 * MIB).free()


def test_a_pause_has_an_end(rack: RackUnderTest, me: bq.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "RESTART_TIMEOUT", 0.3)
    with no_restart(rack), pytest.raises(bq.RackGone, match=r"0\.3 s"):
        me.alloc(6 * MIB)
    monkeypatch.undo()
    me.alloc(6 * MIB).free()


def test_the_end_is_the_end(yard: Yard, rack: RackUnderTest) -> None:
    me = rack.connection.attach("me")
    rack.kill_daemons()
    start = time.monotonic()
    assert not rack.connection.is_alive()
    with pytest.raises(bq.RackGone):
        me.check_rack()
    with pytest.raises(bq.RackGone):
        me.alloc(6 * MIB).free()
    assert time.monotonic() - start < 5
    me._leave(forked=False)
    me._links.close()
    for path in sorted(rack.directory.glob("*")):
        path.unlink()
    rack.directory.rmdir()


def test_ctrl_c_in_the_pause_loses_no_memory(rack: RackUnderTest, me: bq.Process) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with no_restart(rack):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                me.alloc(6 * MIB).free()
    finally:
        signal.signal(signal.SIGALRM, before)
    me.alloc(6 * MIB).free()
    assert rack.audit() == []


def test_asyncio_waits_on(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    async def run() -> bytes:
        pid = kill_mmu(rack)
        waiting = asyncio.ensure_future(me.accept_async(timeout=DEADLINE))
        await asyncio.sleep(0.5)
        next_mmu(rack, pid)
        me.send("me", b"hello")
        return (await waiting).tag

    assert asyncio.run(run()) == b"hello"


def test_a_forked_child_is_told_that_it_is_not_attached(rack: RackUnderTest, me: bq.Process) -> None:
    kill_mmu(rack)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            me.alloc(6 * MIB).free()
        except bq.NotAttached:
            os.write(write_end, b"told")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_end, 4) == b"told"
    os.close(read_end)
    os.close(write_end)
    me.alloc(6 * MIB).free()


def test_who_was_being_greeted_is_greeted_by_the_next(tmp_path: Path) -> None:
    listener = listen(tmp_path / "mmu.sock")
    listener.setblocking(True)

    def greet() -> None:
        listener.accept()[0].close()  # killed
        connection, _ = listener.accept()
        with connection:
            receive_packet(connection, new_buffer())
            send_packet(connection, encode(wire.Welcome("test", "rack-mmu", 2)))
            connection.recv(1)

    daemon = threading.Thread(target=greet)
    daemon.start()
    with listener:
        channel = lasting.LastingChannel(tmp_path / "mmu.sock")
        assert channel.welcome == wire.Welcome("test", "rack-mmu", 2)
        channel.close()
        daemon.join()


# --- embedded racks, other racks ------------------------------------------------------------------------------


def test_an_embedded_rack_does_not_take_a_restart_for_the_end_of_its_clients(private_place: Path) -> None:
    rack = bq.connect()
    mmu = mmu_of(rack)
    os.kill(mmu, signal.SIGKILL)
    time.sleep(3)  # it would have ended 1 s after its last client
    with rack.attach("me") as me:
        me.alloc(PAGE).free()
        os.kill(mmu_of(rack), signal.SIGKILL)
        time.sleep(2.5)
        me.alloc(3 * MIB).free()
    directory = rack.directory
    rack.close()
    until(lambda: not directory.exists(), "the end of the embedded rack")


def mmu_of(rack: bq.Rack) -> int:
    answer = rack.request(wire.Status("rack"))
    assert isinstance(answer, wire.RackReport)
    return next(daemon.os_pid for daemon in answer.daemons if daemon.kind == "mmu")


def test_another_rack_is_not_concerned(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    other = yard.rack(name="other")
    guest = yard.actor("guest", other)
    before = other.daemon("mmu")
    kill_mmu(rack)
    assert guest.do(users.alloc_and_free, 0.1, 1) > 0
    me.alloc(6 * MIB).free()
    assert other.daemon("mmu") == before


# --- under load -----------------------------------------------------------------------------------------------


def test_killed_twice_in_a_row_and_while_it_comes_back(rack: RackUnderTest, me: bq.Process) -> None:
    for pause in (0.0, 0.0, 0.001, 0.003, 0.006, 0.01):
        pid = kill_mmu(rack)
        again = next_mmu(rack, pid)
        time.sleep(pause)
        os.kill(again, signal.SIGKILL)
        me.alloc(6 * MIB).free()
    assert rack.audit() == []


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(900))
def test_killed_at_random_instants_under_load(
    yard: Yard, record_property: Callable[[str, object], None]
) -> None:
    seed = soaking.SEED
    print(f"seed {seed}")
    chance = random.Random(seed)
    rack = yard.rack("dram0:256MiB", "dram1:128MiB", orphan_keep=0.2)
    group = rack.connection.create_group("others")
    seconds = float(soaking.size(8, 120))
    work = [
        (yard.actor("allocates"), users.alloc_and_free, (seconds, seed)),
        (yard.actor("visits"), users.come_and_go, ("visitor", seconds)),
        (yard.actor("gives a part"), users.give_across, ("takes a part", 5 * PAGE, seconds)),
        (yard.actor("takes a part", group=group), users.take_across, ("gives a part",)),
        (yard.actor("gives a slab"), users.give_across, ("takes a slab", 2 * MIB, seconds)),
        (yard.actor("takes a slab", group=group), users.take_across, ("gives a slab",)),
        (yard.actor("opens"), users.open_and_close, (seconds,)),
    ]
    for actor, function, arguments in work:
        actor.start(function, *arguments)
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.0, 1.0))  # short lives in a row, without end, would end the rack
        with contextlib.suppress(KeyError, OSError):
            kill_mmu(rack)
            kills += 1
    done = {actor.name: actor.result(120 + seconds) for actor, _, _ in work}
    print(f"{kills} kills; {done}")
    record_property("times the Rack MMU was killed", kills)
    assert all(done.values()), done
    assert rack.audit() == []
    for actor, _, _ in work:
        assert actor.close() == 0
    until(lambda: rack.used_bytes() == 0, "all memory to be given back")
    assert rack.processes() == {}
