"""Callbacks into the program: none holds up another, none ends what calls it; and what is left when something fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import pytest

import actors
import bequest as bq
from actors import DEADLINE, until
from bequest.memory import estate as estates
from bequest.wire import messages as wire
from racks import RackUnderTest, Yard

PAGE = 4096


@pytest.fixture
def me(yard: Yard, rack: RackUnderTest) -> bq.Process:
    return yard.attach("me")


def test_a_standby_that_takes_its_time_holds_up_no_other(yard: Yard, me: bq.Process) -> None:
    slow, quick = yard.actor("slow"), yard.actor("quick")
    may_end, entered, told = threading.Event(), threading.Event(), threading.Event()

    def take_time(death: bq.Death) -> None:
        entered.set()
        may_end.wait(DEADLINE)

    with me.standby(for_="slow", then=take_time), me.standby(for_="quick", then=lambda death: told.set()):
        slow.kill()
        assert entered.wait(DEADLINE)
        quick.kill()
        assert told.wait(DEADLINE)
        may_end.set()


def test_threads_of_standbys_end_with_the_attachment(yard: Yard, rack: RackUnderTest) -> None:
    def waiting() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("bequest-standby")]

    process = rack.connection.attach("brief")
    standbys = [process.standby(for_=f"nobody-{number}", then=print) for number in range(3)]
    assert len(waiting()) == 3  # before anybody has died: nobody waits for a thread to start then
    standbys[0].cancel()
    until(lambda: len(waiting()) == 2, "the end of the thread of one that was cancelled")
    process.detach()
    until(lambda: not waiting(), "the end of the others")


def test_a_callback_cannot_end_the_thread_that_calls_it(yard: Yard, me: bq.Process) -> None:
    deaths: list[bq.Death] = []

    def leave(death: bq.Death) -> None:
        deaths.append(death)
        raise SystemExit

    with me.standby(for_="victim", then=leave):
        for count in (1, 2):
            yard.actor("victim").kill()
            assert until(lambda count=count: len(deaths) == count)


def test_a_standby_that_is_refused_leaves_nothing_behind(yard: Yard, me: bq.Process) -> None:
    _ = me.events
    victim = yard.actor("victim")
    with pytest.raises(bq.BadName):
        me.standby(for_="no/name", then=print)
    assert not [one for one in threading.enumerate() if one.name.startswith("bequest-standby")]
    assert me._notices._listeners == []
    deaths: list[bq.Death] = []
    with me.standby(for_="victim", then=deaths.append):
        victim.kill()
        assert until(lambda: deaths)
    assert [type(me.events.get(DEADLINE))] == [bq.ProcessDied], "events are still told"


def test_what_was_stolen_is_not_freed_because_its_inbox_cannot_be_read(
    yard: Yard, me: bq.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, sender = yard.actor("victim"), yard.actor("sender")
    victim.do(actors.alloc, "own", PAGE, 7)
    sender.do(actors.alloc, "sent", PAGE, 5)
    sender.do(partial(actors.grant, tag=b"sent"), "sent", "victim")
    victim.kill()
    with monkeypatch.context() as patch:
        patch.setattr(estates, "INBOX_CELLS", -1)
        with pytest.raises(TypeError) as caught:
            me.steal("victim")
    estate = caught.value.estate  # type: ignore[attr-defined]
    assert "`estate`" in caught.value.__notes__[0]
    caught = None  # type: ignore[assignment]
    assert [bytes(memoryview(region))[0] for region in estate] == [7]
    rest = me.steal("victim", incarnation=estate.incarnation)
    assert [region.tag for region in rest.inbox] == [b"sent"]
    estate.free()
    rest.free()


def test_an_estate_frees_what_it_can(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    for name in "abc":
        victim.do(actors.alloc, name, PAGE, 1)
    victim.kill()
    estate = me.steal("victim")
    view = memoryview(estate.regions[1])
    with pytest.raises(BufferError):
        estate.free()
    assert [region.nbytes for region in estate if region.owned] == [PAGE]
    view.release()
    estate.free()
    assert not [region for region in estate if region.owned]


def test_bequest_standby_ends_with_its_rack(rack: RackUnderTest) -> None:
    command = [
        sys.executable,
        "-m",
        "bequest.cli",
        "standby",
        "--rack",
        str(rack.directory),
        "--for",
        "nobody",
        "--",
        "true",
    ]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None and "Standing by" in waiting.stderr.readline()
    rack.connection.request(wire.Shutdown())
    told = waiting.stderr.read()
    waiting.stderr.close()
    assert waiting.wait(DEADLINE) == 1 and "the rack has ended" in told
