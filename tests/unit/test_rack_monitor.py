"""The rack monitor in virtual time: who is suspected, when, and who is not."""

from __future__ import annotations

import random

from bequest.limits import ASLEEP_TIMEOUT, BEAT_INTERVAL, POLL_IDLE, POLL_INTERVAL, WATCH_GRACE
from bequest.protocol.outputs import LookAt, Output, SendPing, ToMmu
from bequest.protocol.rack_monitor import ASLEEP, GONE, RUNNABLE, STOPPED, Key, RackMonitor, Sight
from bequest.wire import messages as wire

VICTIM: Key = (3, 7)


class Machine:
    """A monitor, the processes that it watches, and a clock whose ticks may be late."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1000.0
        self.monitor = RackMonitor(self.now)
        self.random = random.Random(seed)
        self.beats: dict[Key, float] = {}  # since when it beats; missing: it does not
        self.counts: dict[Key, int] = {}
        self.last: dict[Key, float] = {}
        self.watched: dict[Key, bool] = {}
        self.threads: dict[object, str] = {}
        self.said: list[tuple[float, wire.Message]] = []
        self.looks = 0
        self.stuck: set[Key] = set()
        self.broken: set[Key] = set()
        self.pings: list[int | str] = []

    def admit(self, key: Key = VICTIM, watched: bool = True) -> None:
        self.monitor.watch(wire.WatchProcess(*key, 4711, 1))
        self.watched[key] = watched
        self.counts[key] = 0
        self.start(key)

    def start(self, key: Key = VICTIM) -> None:
        self.last[key] = self.now
        self.threads[key] = ASLEEP

    def stop(self, key: Key = VICTIM, threads: str = STOPPED) -> None:
        del self.last[key]
        self.threads[key] = threads

    def run(self, seconds: float, late: float = 0.0) -> None:
        """Ticks at its deadlines, each up to so much too late."""
        end = self.now + seconds
        while self.now < end:
            self.now = max(self.monitor.next_deadline(), self.now) + late * self.random.random()
            self.tick()

    def tick(self) -> None:
        for key in self.last:
            while self.now - self.last[key] >= BEAT_INTERVAL and self.watched[key]:
                self.last[key] += BEAT_INTERVAL
                self.counts[key] += 1
        sights = {
            key: Sight(self.watched[key], self.counts[key], key in self.stuck, key in self.broken)
            for key, _ in self.monitor.watched()
        }
        self.obey(self.monitor.tick(self.now, sights))

    def obey(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case ToMmu(message):
                    self.said.append((self.now, message))
                case LookAt(target):
                    self.looks += 1
                    self.obey(self.monitor.looked(target, self.threads.get(target, ASLEEP), self.now))
                case SendPing(to):
                    self.pings.append(to)
                case _:
                    raise AssertionError(output)

    def words(self) -> list[type]:
        return [type(message) for _, message in self.said]


def test_a_stopped_process_is_suspected_within_50_ms_and_cleared_when_it_beats_again() -> None:
    machine = Machine()
    machine.admit()
    machine.run(1)
    assert machine.said == []
    machine.stop()
    stopped = machine.now
    machine.run(0.5)
    ((when, said),) = machine.said
    assert isinstance(said, wire.Suspicion)
    assert (said.pid, said.incarnation) == VICTIM
    assert when - stopped <= 0.050
    machine.start()
    machine.run(0.1)
    assert machine.words() == [wire.Suspicion, wire.Cleared]
    machine.stop()
    stopped = machine.now
    machine.run(0.5)
    assert machine.words()[-1] is wire.Suspicion
    assert machine.said[-1][0] - stopped <= 0.050  # its long silence has not made it patient


def test_one_that_says_of_itself_that_it_is_stuck_is_suspected_at_once_and_without_a_look() -> None:
    machine = Machine()
    machine.admit()
    machine.run(1)
    machine.stuck.add(VICTIM)
    machine.stop(threads=RUNNABLE)
    machine.run(2 * POLL_INTERVAL)
    assert machine.words() == [wire.Suspicion] and machine.looks == 0
    machine.run(1)
    assert machine.words() == [wire.Suspicion]
    machine.stuck.clear()
    machine.start()
    machine.run(0.1)
    assert machine.words() == [wire.Suspicion, wire.Cleared]


def test_one_that_is_runnable_is_never_suspected_and_seldom_looked_at() -> None:
    machine = Machine()
    machine.admit()
    machine.run(1)
    machine.stop(threads=RUNNABLE)
    machine.run(60)
    assert machine.said == []
    assert 5 < machine.looks < 60
    machine.threads[VICTIM] = STOPPED
    machine.run(20)
    assert machine.words() == [wire.Suspicion]


def test_one_that_sleeps_is_suspected_much_later() -> None:
    machine = Machine()
    machine.admit()
    machine.run(1)
    machine.stop(threads=ASLEEP)
    machine.run(0.8 * ASLEEP_TIMEOUT)
    assert machine.said == []
    machine.run(ASLEEP_TIMEOUT)
    assert machine.words() == [wire.Suspicion]


def test_one_whose_threads_are_gone_is_a_hint_of_a_death_and_no_suspicion() -> None:
    machine = Machine()
    machine.admit()
    machine.run(1)
    machine.stop(threads=GONE)
    machine.run(0.05)
    assert set(machine.words()) == {wire.DeathHint}  # again and again, until somebody acts on it


def test_nobody_is_suspected_for_whom_nobody_stands_by() -> None:
    machine = Machine()
    machine.admit(watched=False)
    machine.stop()
    machine.run(5)
    assert machine.said == []
    assert machine.looks == 0
    machine.watched[VICTIM] = True  # somebody begins to, and it has been stopped all along
    began = machine.now
    machine.run(1)
    ((when, said),) = machine.said
    assert isinstance(said, wire.Suspicion)
    assert when - began <= WATCH_GRACE + POLL_IDLE + 0.050
    machine.watched[VICTIM] = False
    machine.run(0.2)
    assert machine.words() == [wire.Suspicion, wire.Cleared]


def test_a_pause_of_the_whole_machine_is_nobodys_silence() -> None:
    """The monitor was not running either: what it has not seen, it does not hold against others."""
    machine = Machine()
    machine.admit()
    machine.run(1)
    machine.threads[VICTIM] = STOPPED  # as a snapshot of a virtual machine may show it
    machine.last[VICTIM] = machine.now + 30  # nobody ran meanwhile
    machine.now += 30
    machine.tick()
    assert machine.looks == 0
    machine.run(1)
    assert machine.said == []


def test_the_time_out_grows_with_the_lateness_that_the_monitor_sees_and_shrinks_again() -> None:
    noisy, quiet = Machine(), Machine()
    for machine in (noisy, quiet):
        machine.admit()
    noisy.run(2, late=0.080)
    quiet.run(2)
    silences = []
    for machine in (noisy, quiet):
        machine.stop()
        machine.run(2)
        silences += [said.silent for _, said in machine.said if isinstance(said, wire.Suspicion)]
    assert silences[0] > 3 * silences[1]
    noisy.start()
    noisy.run(30)
    noisy.stop()
    noisy.run(1)
    assert [said.silent for _, said in noisy.said if isinstance(said, wire.Suspicion)][-1] < 0.050


def test_noise_alone_suspects_nobody() -> None:
    for seed in range(20):
        machine = Machine(seed)
        machine.admit()
        machine.run(20, late=0.030)
        assert machine.said == []


def test_a_broken_lifeline_is_passed_on_once_to_each_who_asks_to_watch() -> None:
    machine = Machine()
    machine.admit(watched=False)
    machine.run(1)
    assert machine.said == []
    machine.broken.add(VICTIM)
    machine.run(1)
    assert [said for _, said in machine.said] == [wire.DeathHint(3, 7)]
    assert machine.said[0][0] <= 1001.0 + 2 * POLL_IDLE
    machine.monitor.watch(wire.WatchProcess(*VICTIM, 4711, 1))  # a Rack MMU that has just come
    machine.run(1)
    assert [said for _, said in machine.said] == [wire.DeathHint(3, 7)] * 2
    machine.monitor.unwatch(wire.UnwatchProcess(*VICTIM))
    assert machine.monitor.watched() == []


def test_an_element_that_does_not_answer_is_silent_and_comes_back() -> None:
    machine = Machine()
    machine.obey(machine.monitor.neighbour_came(0, 99))
    machine.obey(machine.monitor.neighbour_came("host0", 98))
    assert machine.words() == [wire.ElementBack]  # whatever a monitor before this one may have said
    del machine.said[:]
    machine.threads = {0: STOPPED, "host0": STOPPED}
    machine.run(1)
    assert machine.pings == [0, "host0"]  # one at a time
    assert machine.words() == [wire.ElementSilent]  # an agent's silence is nobody's memory
    assert [type(out.message) for out in machine.monitor.suspicions() if isinstance(out, ToMmu)] == [
        wire.ElementSilent
    ]
    machine.obey(machine.monitor.pong(0, machine.now))
    assert machine.words() == [wire.ElementSilent, wire.ElementBack]
    machine.run(1)
    assert machine.words()[2:] == [wire.ElementSilent]
    machine.obey(machine.monitor.neighbour_left(0))  # the supervisor starts another
    assert machine.words()[3:] == [wire.ElementBack]


def test_a_rack_mmu_that_has_just_come_hears_which_elements_answer() -> None:
    """Of what it was told before it died, or what was said while it was away, it may believe otherwise."""
    machine = Machine()
    machine.obey(machine.monitor.neighbour_came(0, 99))
    machine.obey(machine.monitor.neighbour_came("host0", 98))
    assert machine.monitor.suspicions() == [ToMmu(wire.ElementBack(0))]


def test_what_a_monitor_before_suspected_is_cleared_by_the_first_beat_that_this_one_sees() -> None:
    machine = Machine()
    machine.admit()
    machine.counts[VICTIM] = 57  # that it has beaten once is no beat
    machine.monitor.watch(wire.WatchProcess(*VICTIM, 4711, 1, is_suspect=True))
    machine.stop()
    machine.run(1)
    assert machine.said == []
    machine.start()
    machine.run(1)
    assert machine.words() == [wire.Cleared]
