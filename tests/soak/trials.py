"""Trials of stealing: steal, stop, resume, write; and not one zombie write.

In each trial a victim writes to its regions in several ways at once (zombie_users.py). It is stopped, or hangs, or
runs, or is stopped or resumed in the middle; one to three thieves steal from it; then it goes on. What is checked:

* of each region exactly one process is the owner: one thief, whom the victim granted it to, or the victim;
* nothing that a thief holds has changed since its `steal` returned;
* each writer was stopped by what the victim is promised, and the victim goes on (unless the fence was its death);
* every page has one owner (`audit`), from time to time.

A trial is made from the seed and its number alone. What threads make of it is another matter: to replay one, it is
repeated until it fails again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass

import actors
import bequest as bq
import zombie_users as users
from actors import Actor, Seat
from racks import MIB, RackUnderTest, Yard
from zombie_users import PAGE, Plan

RUNGS = ("protect", "ptrace", "kill")
HOW = {"protect": "protected", "ptrace": "ptraced", "kill": "killed"}
STATES = ("stopped", "running", "hung", "resumed meanwhile", "stopped meanwhile")
INTO_ONE = ("item", "numpy", "memset", "pread", "read in flight", "child")  # several may write to one region
TRIALS_OF_ONE_VICTIM = 40
AUDIT_EVERY = 25
GRANT_SEEN = 2.0  # seconds until a grant that was committed before its sender was killed has been delivered


class Zombie(AssertionError):
    """A trial has failed; the message tells how, and how to replay it."""


@dataclass(frozen=True)
class Trial:
    seed: int
    number: int
    state: str
    thieves: int
    fills: bool
    delay: float  # until the theft, or until the signal in the middle of it
    plan: Plan

    @staticmethod
    def make(seed: int, number: int, fifo: str, peer: str) -> Trial:
        chance = random.Random(f"{seed}/{number}")
        sizes = [PAGE * chance.randint(1, 48) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.15:
            sizes[0] = 2 * MIB
        ways = chance.sample(INTO_ONE, chance.randint(1, 4))
        writers = [(how, chance.randrange(len(sizes))) for how in ways]
        to = ""
        if chance.random() < 0.3:
            writers.append(("churn", 0))
        if chance.random() < 0.4:
            to = peer
            writers.append(("grant", len(sizes)))
            sizes.append(PAGE * chance.randint(1, 4))
        plan = Plan(tuple(sizes), tuple(writers), fifo, to, chance.uniform(0, 0.004))
        return Trial(
            seed,
            number,
            state=chance.choice(STATES),
            thieves=chance.choice((1, 1, 2, 3)),
            fills=chance.random() < 0.5,
            delay=chance.uniform(0, 0.002),
            plan=plan,
        )


class Trials:
    """The thieves, and the present victim, which serves for many trials unless it is killed."""

    def __init__(self, yard: Yard, rack: RackUnderTest, rung: str, seed: int) -> None:
        self.yard, self.rack, self.rung, self.seed = yard, rack, rung, seed
        fence = "kill" if rung == "kill" else "ptrace"
        self.group: bq.Group = rack.connection.create_group(rung, fence=fence)
        self.me = Seat(rack.connection)
        self.me.me = yard.attach("me", group=self.group)
        self.rivals = [yard.actor(f"rival-{number}", group=self.group) for number in range(2)]
        self.fifo = yard.runtime / "fifo"
        os.mkfifo(self.fifo)
        self._pipe = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        self._victim: Actor | None = None
        self._served = 0
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        self._retire()
        os.close(self._pipe)

    def run(self, number: int) -> None:
        trial = Trial.make(self.seed, number, str(self.fifo), self.rivals[0].name or "")
        try:
            self._run(trial)
            if number % AUDIT_EVERY == 0:
                assert self.rack.audit() == []
        except Exception as error:
            raise Zombie(
                f"trial {number} by {self.rung} has failed: {error}\n{trial}\nReplay: BEQUEST_SOAK_SEED={self.seed} "
                f"BEQUEST_SOAK_TRIAL={number} python -m pytest tests/soak/test_zombie_writes.py -k {self.rung}"
            ) from error

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _run(self, trial: Trial) -> None:
        victim = self._present_victim()
        addresses = victim.do(users.begin, trial.plan)
        hangs = trial.state == "hung"
        if hangs:
            victim.start(users.hang, 0.004)
        time.sleep(trial.delay / 4)
        ways, got = self._rob(trial, victim)
        self._resume(victim, trial)
        if hangs and self.rung != "kill":
            victim.result()
        if self.rung == "kill":
            granted = self._buried(victim, addresses, got)
        else:
            granted = self._finished(victim, trial, addresses, got)
        self._account(addresses, got, granted)
        assert set(ways) <= {HOW[self.rung], "dead"}, ways
        self._look_again(trial)
        self.counts[f"victim {trial.state}"] += 1

    def _rob(self, trial: Trial, victim: Actor) -> tuple[list[str], list[int]]:
        """How, and what."""
        assert victim.name is not None
        request = (victim.name, self.group.capability, trial.fills)
        rivals = self.rivals[: trial.thieves - 1]
        if trial.state in ("stopped", "resumed meanwhile"):
            victim.signal(signal.SIGSTOP)
        interruption = self._interruption(trial, victim)
        for rival in rivals:
            rival.start(users.rob, *request)
        done = [users.rob(self.me, *request), *(rival.result() for rival in rivals)]
        if interruption is not None:
            interruption.join()
        return [how for how, loot in done if loot], [address for _, loot in done for address, _ in loot]

    def _interruption(self, trial: Trial, victim: Actor) -> threading.Timer | None:
        number = {"resumed meanwhile": signal.SIGCONT, "stopped meanwhile": signal.SIGSTOP}.get(trial.state)
        if number is None:
            return None
        timer = threading.Timer(trial.delay, signal_if_there, (victim.pid, number))
        timer.start()
        return timer

    def _resume(self, victim: Actor, trial: Trial) -> None:
        """It goes on; and what was read in the name of it arrives only now."""
        signal_if_there(victim.pid, signal.SIGCONT)
        for how, _ in trial.plan.writers:
            if how == "read in flight":
                os.write(self._pipe, b"\xee" * 64)

    def _finished(self, victim: Actor, trial: Trial, addresses: list[int], got: list[int]) -> list[int]:
        """What the victim says of its writers; the regions that it granted in time, or kept."""
        ends, kept = victim.do(users.finish)
        self._drain()
        granted: list[int] = []
        for how, end in ends:
            self.counts[f"{how}: {end}"] += 1
            assert end in users.STOPPED_BY.get(how, ("MemoryRevoked",)), f"{how} ended by {end}"
            if end == "granted":
                granted.append(addresses[-1])
                assert self.rivals[0].do(users.receive, addresses[-1], actors.DEADLINE)
        assert not kept, f"not stolen: {kept}"
        return granted

    def _buried(self, victim: Actor, addresses: list[int], got: list[int]) -> list[int]:
        """The victim was killed; what it may have granted is told by the one who got it."""
        status = victim.wait()
        assert status == -signal.SIGKILL, status
        self._victim = None
        self._drain()
        missing = [address for address in addresses if address not in got]
        assert missing in ([], [addresses[-1]]), f"nobody's: {missing}"
        for address in missing:
            assert self.rivals[0].do(users.receive, address, GRANT_SEEN), f"nobody's: {address:#x}"
        return missing

    def _account(self, addresses: list[int], got: list[int], granted: list[int]) -> None:
        owners = Counter([*got, *granted])
        assert set(owners.values()) == {1}, f"two owners: {owners}"
        assert set(addresses) <= set(owners), "some are nobody's"

    def _look_again(self, trial: Trial) -> None:
        crew = self.rivals[: max(trial.thieves - 1, 1)]
        changed = [*users.spoilt(self.me), *(line for rival in crew for line in rival.do(users.spoilt))]
        assert changed == [], "zombie writes: " + "; ".join(changed)
        users.let_go(self.me)
        for rival in crew:
            rival.do(users.let_go)

    # --- victims -----------------------------------------------------------------------------------------------------

    def _present_victim(self) -> Actor:
        if self._served >= TRIALS_OF_ONE_VICTIM:
            self._retire()
        if self._victim is None:
            self._served = 0
            self.counts["victims"] += 1
            name = f"victim-{self.counts['victims']}"
            self._victim = self.yard.actor(None, group=self.group)
            self._victim.name = name
            self._victim.do(users.attach_as_victim, name, self.rung, self.group.secret)
        self._served += 1
        return self._victim

    def _retire(self) -> None:
        if self._victim is not None:
            assert self._victim.close() == 0
            self._victim = None

    def _drain(self) -> None:
        """What no reader has taken."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._pipe, 4096):
                pass


def signal_if_there(pid: int, number: int) -> None:
    """Nothing, if it has been killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
