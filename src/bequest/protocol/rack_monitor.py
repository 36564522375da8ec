"""The rack monitor: tells the dead, the suspect and the merely slow apart (paper, section 3.2).

Theory of operation. It is an optimisation and never an authority: what it says makes others look, and tells people, but
moves no memory. Three kinds of signs come in, and it keeps them apart.

- *Lifelines*: the kernel has marked a process's lifeline. That is a hint of a death, which the agent has to prove. The
  monitor passes it on when it looks next, and does not wait on the futex: standbys do that themselves, and need the
  processor in the first millisecond more than it does.
- *Beats*: a process that somebody stands by for counts up in shared memory, every `BEAT_INTERVAL`. Silence that lasts
  longer than a time-out makes the monitor look at the process's threads. Stopped: *suspected*. Runnable: the kernel
  does not let it run, so it is not suspected, however long that takes. Asleep: only after much longer, for a beating
  thread does not sleep long. A process may also say of itself that it does not get on (`Process.watchdog`), beating as
  it may: then nothing need be looked at.
- *Pongs* of the other daemons, judged in the same way.

A suspicion is withdrawn when a sign of life comes. Silence is counted in time for which the monitor itself has been
seen running: if the machine was suspended, or the monitor was late, others may have been as well. The time-out adapts
to the noise that it sees: its own lateness, and how irregular the signs of that one have been.
"""

from __future__ import annotations

import math

import msgspec

from bequest.limits import (
    ASLEEP_TIMEOUT,
    BEAT_INTERVAL,
    NOISE_FACTOR,
    NOISE_HALF_LIFE,
    NOISE_MAX,
    PING_INTERVAL,
    PING_TIMEOUT,
    POLL_IDLE,
    POLL_INTERVAL,
    SUSPECT_TIMEOUT,
    WATCH_GRACE,
)
from bequest.protocol.outputs import LookAt, Output, SendPing, ToMmu
from bequest.wire import messages as wire

Key = tuple[int, int]  # process id, incarnation
RUNNABLE, STOPPED, ASLEEP, GONE = "runnable", "stopped", "asleep", "gone"  # what threads look like


class Noise(msgspec.Struct):
    """The worst that was seen lately: half as much for each half-life that has passed since."""

    value: float = 0.0
    at: float = 0.0

    def note(self, amount: float, now: float) -> None:
        self.value = max(min(amount, NOISE_MAX), self.now(now))
        self.at = now

    def now(self, now: float) -> float:
        return self.value * math.exp2((self.at - now) / NOISE_HALF_LIFE)


class Heart(msgspec.Struct):
    """Whatever gives signs of life, and how long it has given none."""

    interval: float  # between two signs
    timeout: float  # without noise
    silence: float = 0.0
    noise: Noise = msgspec.field(default_factory=Noise)
    next_look: float = 0.0  # at its threads, when its silence has lasted so long
    is_suspect: bool = False

    def beat(self, now: float, poll: float) -> bool:
        """A sign of life; whether it ends a suspicion."""
        late = self.silence - self.interval - poll
        if late > 0 and not self.is_suspect:  # how long somebody was stopped says nothing of the machine
            self.noise.note(late, now)
        was_suspect, self.is_suspect = self.is_suspect, False
        self.silence = self.next_look = 0.0
        return was_suspect

    def patience(self, now: float, own_noise: Noise) -> float:
        return self.timeout + NOISE_FACTOR * (self.noise.now(now) + own_noise.now(now))


class Watched(msgspec.Struct):
    """A process."""

    os_pid: int
    group: int
    heart: Heart
    beats: int | None = None  # None: not looked at yet
    watched_for: float | None = None  # seconds since somebody began to stand by for it
    is_broken: bool = False  # and that has been told


class Sight(msgspec.Struct, frozen=True):
    """What the table says of a process at this moment."""

    is_watched: bool
    beats: int
    is_stuck: bool = False
    is_broken: bool = False  # its lifeline


class Neighbour(msgspec.Struct):
    """Another daemon: a memory element by its number, or an agent by its name."""

    os_pid: int
    heart: Heart
    is_owed_pong: bool = False
    next_ping: float = 0.0


Target = Key | int | str


class RackMonitor:
    def __init__(self, now: float) -> None:
        self._processes: dict[Key, Watched] = {}
        self._neighbours: dict[int | str, Neighbour] = {}
        self._own_noise = Noise()
        self._last_tick = now
        self._expected_tick = now
        self._last_ping = 0

    # --- whom to watch -------------------------------------------------------------------------------------

    def watch(self, message: wire.WatchProcess) -> None:
        heart = Heart(BEAT_INTERVAL, SUSPECT_TIMEOUT, is_suspect=message.is_suspect)
        self._processes[message.pid, message.incarnation] = Watched(message.os_pid, message.group, heart)

    def unwatch(self, message: wire.UnwatchProcess) -> None:
        self._processes.pop((message.pid, message.incarnation), None)

    def watched(self) -> list[tuple[Key, int]]:
        """All processes, and their groups, whose tables are to be looked at."""
        return [(key, process.group) for key, process in self._processes.items()]

    def neighbour_came(self, name: int | str, os_pid: int) -> list[Output]:
        """For the first time, or again after its death."""
        before = self._neighbours.get(name)
        self._neighbours[name] = Neighbour(os_pid, Heart(PING_INTERVAL, PING_TIMEOUT))
        is_known_well = before is not None and not before.heart.is_suspect
        return [] if is_known_well else self._back(name)  # a monitor before this one may have said otherwise

    def neighbour_left(self, name: int | str) -> list[Output]:
        """Its link broke: the supervisor knows that it has died, and starts another."""
        before = self._neighbours.pop(name, None)
        return self._back(name) if before is not None and before.heart.is_suspect else []

    def suspicions(self) -> list[Output]:
        """All that stand, for a Rack MMU that has just come (back), and which memory elements answer.

        It may have written down otherwise, when this monitor was another, or it could not hear. Of processes it says
        itself what it knows, and hears of each when that changes.
        """
        outputs: list[Output] = []
        for key, process in self._processes.items():
            if process.heart.is_suspect:
                outputs.append(ToMmu(wire.Suspicion(*key, process.heart.silence)))
        for name, neighbour in self._neighbours.items():
            if neighbour.heart.is_suspect and isinstance(name, int):
                outputs.append(ToMmu(wire.ElementSilent(name, neighbour.heart.silence)))
            else:
                outputs += self._back(name)
        return outputs

    # --- signs ---------------------------------------------------------------------------------------------

    def pong(self, name: int | str, now: float) -> list[Output]:
        neighbour = self._neighbours.get(name)
        if neighbour is None:
            return []
        neighbour.is_owed_pong = False
        return self._back(name) if neighbour.heart.beat(now, POLL_IDLE) else []

    def tick(self, now: float, sights: dict[Key, Sight]) -> list[Output]:
        """``sights`` of all processes that are watched. Called when `next_deadline` says, as nearly as can be."""
        late = max(0.0, now - self._expected_tick)
        planned = max(POLL_INTERVAL, self._expected_tick - self._last_tick)
        elapsed = min(now - self._last_tick, 2 * planned)
        self._last_tick = now
        self._own_noise.note(late, now)
        outputs = [out for key, sight in sights.items() for out in self._hint(key, sight)]
        outputs += [out for key, sight in sights.items() for out in self._see(key, sight, elapsed, now)]
        outputs += [out for name in list(self._neighbours) for out in self._check(name, elapsed, now)]
        self._expected_tick = now + (POLL_INTERVAL if self._somebody_beats() else POLL_IDLE)
        return outputs

    def next_deadline(self) -> float:
        return self._expected_tick

    def looked(self, target: Target, threads: str, now: float) -> list[Output]:
        """What the threads of a silent one look like: the answer to `LookAt`."""
        heart = self._heart(target)
        if heart is None or heart.is_suspect or heart.next_look == 0.0:
            return []  # a sign of life has come since
        if isinstance(target, tuple) and threads == GONE:
            return [ToMmu(wire.DeathHint(*target))]
        is_suspicious = threads == STOPPED or (threads == ASLEEP and heart.silence >= ASLEEP_TIMEOUT)
        if not is_suspicious:
            return []
        heart.is_suspect = True
        if isinstance(target, tuple):
            return [ToMmu(wire.Suspicion(*target, heart.silence))]
        return [ToMmu(wire.ElementSilent(target, heart.silence))] if isinstance(target, int) else []

    # --- within --------------------------------------------------------------------------------------------

    def _hint(self, key: Key, sight: Sight) -> list[Output]:
        process = self._processes.get(key)
        if process is None or process.is_broken or not sight.is_broken:
            return []
        process.is_broken = True
        return [ToMmu(wire.DeathHint(*key))]

    def _see(self, key: Key, sight: Sight, elapsed: float, now: float) -> list[Output]:
        process = self._processes.get(key)
        if process is None:
            return []
        has_beaten = process.beats is not None and sight.beats != process.beats
        process.beats = sight.beats
        if not sight.is_watched:
            process.watched_for = None
        elif process.watched_for is None:
            process.watched_for = 0.0
        else:
            process.watched_for += elapsed
        is_due = process.watched_for is not None and process.watched_for >= WATCH_GRACE
        if has_beaten or not is_due:
            ended = process.heart.beat(now, POLL_INTERVAL) if has_beaten or not sight.is_watched else False
            process.heart.silence = 0.0
            return [ToMmu(wire.Cleared(*key))] if ended else []
        if sight.is_stuck:
            return self._stuck(key, process.heart, elapsed)
        return self._silent(key, process.os_pid, process.heart, elapsed, now)

    def _check(self, name: int | str, elapsed: float, now: float) -> list[Output]:
        neighbour = self._neighbours[name]
        outputs: list[Output] = []
        if neighbour.is_owed_pong:
            outputs = self._silent(name, neighbour.os_pid, neighbour.heart, elapsed, now)
        elif now >= neighbour.next_ping:
            neighbour.is_owed_pong, neighbour.next_ping = True, now + PING_INTERVAL
            self._last_ping += 1
            outputs = [SendPing(name, self._last_ping)]
        return outputs

    def _stuck(self, key: Key, heart: Heart, elapsed: float) -> list[Output]:
        heart.silence += elapsed
        if heart.is_suspect:
            return []
        heart.is_suspect = True
        return [ToMmu(wire.Suspicion(*key, heart.silence))]

    def _silent(self, target: Target, os_pid: int, heart: Heart, elapsed: float, now: float) -> list[Output]:
        heart.silence += elapsed
        if heart.is_suspect or heart.silence < max(heart.patience(now, self._own_noise), heart.next_look):
            return []
        heart.next_look = heart.silence * 1.25  # a starved machine is not to be burdened with looking
        return [LookAt(target, os_pid)]

    def _back(self, name: int | str) -> list[Output]:
        return [ToMmu(wire.ElementBack(name))] if isinstance(name, int) else []

    def _heart(self, target: Target) -> Heart | None:
        if isinstance(target, tuple):
            process = self._processes.get(target)
            return None if process is None else process.heart
        neighbour = self._neighbours.get(target)
        return None if neighbour is None else neighbour.heart

    def _somebody_beats(self) -> bool:
        return any(process.watched_for is not None for process in self._processes.values())
