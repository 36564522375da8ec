"""The rack monitor with real processes: who is suspected, who is not, and what its own death costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import bequest as bq
import soaking
import watchers
from actors import until
from alive import is_running
from racks import RackUnderTest, Yard

SOAK_SECONDS = soaking.size(5, 60)


def test_a_stopped_process_is_suspected_and_cleared_when_it_goes_on(yard: Yard, rack: RackUnderTest) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    deaths: list[bq.Death] = []
    suspicions: list[bq.Death] = []
    with me.standby(for_="victim", then=deaths.append, on_suspicion=suspicions.append):
        until(lambda: me.table.beats(victim.id) > 3, "the victim's beats")
        time.sleep(0.15)
        silences = []
        for _ in range(5):
            stopped = time.monotonic()
            victim.signal(signal.SIGSTOP)
            event = me.events.get(5)
            silences.append(time.monotonic() - stopped)
            assert isinstance(event, bq.ProcessSuspected)
            assert (event.name, event.id) == ("victim", victim.id)
            victim.signal(signal.SIGCONT)
            assert isinstance(me.events.get(5), bq.ProcessCleared)
            time.sleep(0.05)
        assert len(until(lambda: len(suspicions) == 5 and suspicions)) == 5
        assert suspicions[0].is_suspicion
        assert not suspicions[0].confirmed
        assert deaths == []
        assert min(silences) < 0.3, silences  # 50 ms where nothing else runs: see the machine's own tests


def test_a_process_that_does_not_get_on_is_suspected_if_it_has_a_watchdog(
    yard: Yard, rack: RackUnderTest
) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    with me.standby(for_="victim", then=lambda death: None):
        events = me.events
        time.sleep(0.15)
        started = time.monotonic()
        victim.start(watchers.hang_under_a_watchdog, 0.2)
        assert isinstance(events.get(5), bq.ProcessSuspected)
        assert time.monotonic() - started > 10 * 0.2 / 4 + 0.2  # while it got on, it was not
        assert victim.is_busy()
        assert isinstance(events.get(5), bq.ProcessCleared)
        victim.result()
        with pytest.raises(bq.AcceptTimeout):
            events.get(0.4)  # the watchdog has been left
    with pytest.raises(ValueError, match="more than 0 seconds"):
        me.watchdog(0)


def test_a_process_for_which_nobody_stands_by_neither_beats_nor_is_suspected(
    yard: Yard, rack: RackUnderTest
) -> None:
    me, victim = yard.attach("me"), yard.actor("victim")
    events = me.events
    victim.signal(signal.SIGSTOP)
    with pytest.raises(bq.AcceptTimeout):
        events.get(0.3)
    assert me.table.beats(victim.id) == 0
    victim.signal(signal.SIGCONT)


@pytest.mark.soak
@pytest.mark.timeout(soaking.timeout(300))
def test_no_false_report_while_every_core_is_busy(
    yard: Yard, rack: RackUnderTest, record_property: Callable[[str, object], None]
) -> None:
    me = yard.attach("me")
    victims = [yard.actor(f"victim-{number}") for number in range(3)]
    standbys = [me.standby(for_=victim.name, then=lambda death: None) for victim in victims]
    events = me.events
    program = (
        "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
    )
    crowd = 2 * (os.cpu_count() or 1)
    busy = [subprocess.Popen([sys.executable, "-c", program, str(SOAK_SECONDS)]) for _ in range(crowd)]
    for process in busy:
        process.wait()
    record_property("s with every core busy", SOAK_SECONDS)
    record_property("false reports", len(events))
    assert len(events) == 0, [events.get(0) for _ in range(len(events))]
    for standby in standbys:
        standby.cancel()


def test_the_monitors_own_death_is_tolerated(yard: Yard, rack: RackUnderTest) -> None:
    me, victim, other = yard.attach("me"), yard.actor("victim"), yard.actor("other")
    deaths: list[bq.Death] = []
    with me.standby(for_="victim", then=deaths.append):
        first = rack.daemon("monitor")
        os.kill(first, signal.SIGKILL)
        other.kill()  # while there is none, or just one: the agent tells
        event = me.events.get(5)
        assert isinstance(event, bq.ProcessDied)
        until(lambda: rack.daemons().get("monitor", first) != first, "another monitor")
        assert not is_running(first)
        time.sleep(0.3)
        victim.signal(signal.SIGSTOP)
        assert isinstance(me.events.get(5), bq.ProcessSuspected)
        victim.signal(signal.SIGCONT)
        assert isinstance(me.events.get(5), bq.ProcessCleared)
        victim.kill()
        until(lambda: deaths)


def test_a_standbys_callback_runs_at_once_and_is_confirmed_later(yard: Yard, rack: RackUnderTest) -> None:
    me = yard.attach("me")
    deaths: list[tuple[float, bq.Death]] = []
    with me.standby(for_="victim", then=lambda death: deaths.append((time.monotonic(), death))) as standby:
        delays = []
        for round_ in range(10):
            victim = yard.actor("victim")  # a new incarnation each time
            time.sleep(0.02)
            killed = time.monotonic()
            victim.kill()
            until(lambda round_=round_: len(deaths) > round_)
            when, death = deaths[round_]
            delays.append(when - killed)
            assert (death.name, death.id) == ("victim", victim.id)
            assert death.wait_confirmed(5)
        assert len({death.incarnation for _, death in deaths}) == 10
        assert min(delays) < 0.002, delays
    assert "cancelled" in repr(standby)
    yard.actor("victim").kill()
    time.sleep(0.1)
    assert len(deaths) == 10


def test_a_victim_that_detaches_has_not_died(yard: Yard, rack: RackUnderTest) -> None:
    import actors

    me, victim = yard.attach("me"), yard.actor("victim")
    deaths: list[bq.Death] = []
    with me.standby(for_="victim", then=deaths.append):
        victim.do(actors.detach)
        time.sleep(0.1)
        assert deaths == []
        victim.do(actors.attach, "victim")
        victim.kill()
        until(lambda: deaths)


def test_a_rack_stands_by_with_a_process_of_its_own(yard: Yard, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    deaths: list[bq.Death] = []
    with rack.connection.standby(for_="victim", then=deaths.append):
        assert [name for name in rack.processes() if name.startswith("standby-")]
        victim.kill()
        (death,) = until(lambda: deaths)
        assert death.wait_confirmed(5)
    assert not [name for name in rack.processes() if name.startswith("standby-")]


def test_a_failing_callback_is_logged_and_the_next_one_runs(
    yard: Yard, rack: RackUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    me = yard.attach("me")
    deaths: list[bq.Death] = []

    def fails(death: bq.Death) -> None:
        deaths.append(death)
        raise ValueError("this test's callback fails")

    with me.standby(for_="victim", then=fails):
        for round_ in (1, 2):
            yard.actor("victim").kill()
            until(lambda round_=round_: len(deaths) == round_)
        until(lambda: caplog.text.count("this test's callback fails") >= 2)


def test_a_stopped_element_is_told_as_silent_and_the_data_plane_goes_on(
    yard: Yard, rack: RackUnderTest
) -> None:
    owner, me = yard.actor("owner"), yard.attach("me")
    import actors

    owner.do(actors.alloc, "region", 1 << 20)
    owner.do(watchers.listen)
    server = rack.daemon("dram0")
    os.kill(server, signal.SIGSTOP)
    try:
        event = owner.do(watchers.next_event)
        assert isinstance(event, bq.ElementSilent)
        assert event.element == "dram0"
        assert rack.elements()["dram0"].state == "silent"
        owner.do(actors.fill, "region", 7)
        assert owner.do(actors.values, "region") == [7]
        with pytest.raises(bq.AcceptTimeout):
            me.events.get(0.05)  # no memory of its own is there
    finally:
        os.kill(server, signal.SIGCONT)
    assert isinstance(owner.do(watchers.next_event), bq.ElementBack)
    assert rack.elements()["dram0"].state == "well"
