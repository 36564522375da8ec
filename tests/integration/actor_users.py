"""The actors of the tests of actors, and what runs them.

A `Ledger` writes down what it is told, by whom, in a Log, and hands out tickets; a `Relay` passes on what it is told to
a ledger, or draws a ticket there. So whatever is lost or done twice in one of them shows in the ledger: in its entries,
in the order of each source's, or in the number of its tickets.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import bequest as bq
from actors import DEADLINE, Seat
from bequest.objects import Log, Map
from bequest.wire import messages as wire

PAGE = 4096
ENTRIES_KEPT = 100_000  # of a ledger: a soak writes millions, which are neither kept nor sent back


class Book(bq.Struct):
    entries: int = 0
    tickets: int = 0
    disorder: str = ""


class Ledger(bq.Actor):
    state: Book

    def setup(self) -> None:
        self.log = Log(self.heap, "log")
        self.last = Map(self.heap, "last")

    def enter(self, source: str, number: int) -> None:
        expected = int(self.last.get(source.encode(), b"0"))
        if number != expected and not self.state.disorder:
            self.state.disorder = f"{source} {number}, not {expected}"
        self.last[source.encode()] = b"%d" % (number + 1)
        self.log.append(f"{source} {number}".encode())
        if len(self.log) > ENTRIES_KEPT:
            self.log.truncate(self.log.end - ENTRIES_KEPT // 2)
        self.state.entries += 1

    def enter_region(self, source: str, number: int, region: bq.Region) -> None:
        """It says itself which it is. The last one is kept."""
        if int(region.array("u8")[0]) != number:
            self.state.disorder = f"{source} {number} came with another's region"
        self.enter(source, number)
        self.regions["last"] = region

    def ticket(self) -> int:
        self.state.tickets += 1
        return self.state.tickets

    def entries(self) -> int:
        return self.state.entries

    def report(self) -> dict[str, Any]:
        return {
            "entries": self.state.entries,
            "tickets": self.state.tickets,
            "disorder": self.state.disorder,
            "next": {source.decode(): int(number) for source, number in self.last.items()},
            "log": [record.decode() for record in self.log],
            "regions": len(self.regions),
        }


class Passed(bq.Struct):
    passed: int = 0
    tickets: int = 0


class Relay(bq.Actor):
    state: Passed

    def pass_on(self, source: str, number: int) -> None:
        self.state.passed += 1
        self.ref("ledger").send("enter", source, number)

    def pass_region_on(self, source: str, number: int, region: bq.Region) -> None:
        self.state.passed += 1
        self.ref("ledger").send("enter_region", source, number, region)

    async def with_ticket(self) -> None:
        """A call from within an event: its ticket is drawn once, however often the event begins."""
        ticket = await self.ref("ledger").call_async("ticket")
        Map(self.heap, "tickets")[b"%d" % ticket] = b""
        self.state.tickets += 1

    def draw_two(self, gate: str) -> None:
        """Two calls within one event, one after the other, which cannot end before that file is there."""
        for _ in range(2):
            ticket = self.ref("ledger").call("ticket")
            Map(self.heap, "tickets")[b"%d" % ticket] = b""
        while not Path(gate).exists():
            time.sleep(0.002)

    def report(self) -> dict[str, Any]:
        tickets = sorted(int(key) for key in Map(self.heap, "tickets"))
        return {"passed": self.state.passed, "tickets": self.state.tickets, "distinct": tickets}


class Total(bq.Struct):
    total: int = 0


class Counter(bq.Actor):
    """All that one actor may do wrong, too."""

    state: Total

    def add(self, number: int) -> int:
        self.state.total += number
        return self.state.total

    async def add_later(self, number: int) -> int:
        self.state.total += number
        await asyncio.sleep(0.001)
        return self.state.total

    def echo(self, *values: Any) -> list[Any]:
        return list(values)

    def fail(self, number: int) -> None:
        self.state.total += number
        raise ZeroDivisionError(f"of {number}")

    async def fail_later(self) -> None:
        self.state.total += 1000
        await asyncio.sleep(0)
        raise KeyError("later")

    def fail_with_region(self, region: bq.Region) -> None:
        view = region.array()
        view[:] = 1
        raise ValueError("with a view alive")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def answer_with_rubbish(self) -> object:
        self.state.total += 1
        return object()

    def double(self, region: bq.Region) -> bq.Region:
        """The zero-copy call."""
        region.array()[:] *= 2
        return region

    def keep(self, name: str, region: bq.Region) -> None:
        self.regions[name] = region

    def give(self, name: str) -> bq.Region:
        return self.regions.pop(name)

    def drop(self, name: str) -> None:
        del self.regions[name]

    def keep_and_fail(self, region: bq.Region) -> None:
        self.regions["kept"] = region
        raise RuntimeError("no")

    def kept(self) -> list[str]:
        return sorted(self.regions)

    def tell(self, to: str, method: str, *values: Any) -> None:
        self.ref(to).send(method, *values)

    def tell_and_fail(self, to: str) -> None:
        self.ref(to).send("add", 1000)
        raise RuntimeError("after sending")

    def ask(self, to: str, method: str, *values: Any) -> Any:
        return self.ref(to).call(method, *values, timeout=5)

    async def ask_all(self, to: str, count: int) -> int:
        numbers = await asyncio.gather(*(self.ref(to).call_async("add", 1, timeout=5) for _ in range(count)))
        return max(numbers)


# --- in processes of their own ------------------------------------------------------------------------------


def class_of(kind: str) -> type[bq.Actor]:
    found = globals()[kind]
    return found.actor if isinstance(found, bq.actors.Function) else found


def begin(seat: Seat) -> None:
    """So that the signal to end does nothing before and after what follows."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def call(seat: Seat, name: str, method: str, *values: Any) -> Any:
    """As a client."""
    return bq.actors.ref(seat.me, name).call(method, *values, timeout=5)


def run(seat: Seat, kind: str, name: str) -> None:
    """Runs the actor until the process is told to end."""
    bq.actors.run(class_of(kind), name=name, rack=seat.rack)


def stand_by(seat: Seat, kind: str, name: str) -> None:
    bq.actors.stand_by(class_of(kind), name=name, rack=seat.rack)


def owned_bytes(rack: Any, prefix: str) -> int:
    """What the processes of an actor hold."""
    return sum(process.owned_bytes for name, process in rack.processes().items() if name.startswith(prefix))


def end(process: Any) -> None:
    """Tells it to end, until it has heard: it may have just begun."""
    deadline = time.monotonic() + DEADLINE
    while process.is_busy():
        assert time.monotonic() < deadline, "it does not end"
        process.signal(signal.SIGTERM)
        process._connection.poll(0.2)
    process.result()


class Cast:
    """An actor and its standby, in processes that may be killed."""

    def __init__(self, yard: Any, kind: str, name: str) -> None:
        self.yard, self.kind, self.name = yard, kind, name
        self.actor = self._another(run)
        self.standby = self._another()

    def _another(self, function: Any = stand_by) -> Any:
        process = self.yard.actor(None)
        process.do(begin)
        process.start(function, self.kind, self.name)
        return process

    def kill(self) -> None:
        """The actor dies, its standby becomes it, and has one itself."""
        self.actor.kill()
        self.actor, self.standby = self.standby, self._another()

    def kill_both(self, after: float) -> None:
        self.actor.kill()
        time.sleep(after)
        self.standby.kill()
        self.actor, self.standby = self._another(), self._another()

    def end(self) -> None:
        """Tells both, until they have heard: one may have just begun."""
        for one in (self.standby, self.actor):
            end(one)


# --- functions ----------------------------------------------------------------------------------------------


class Account(bq.Struct):
    balance: int = 0


@bq.function
def charge(account: Account, amount: int) -> int:
    """Takes money, once for each key."""
    account.balance -= amount
    if amount == 0:
        raise ZeroDivisionError
    return account.balance


@bq.function(keep=2)
def remember_two(account: Account) -> int:
    account.balance += 1
    return account.balance


@bq.function
def give_rubbish(account: Account) -> object:
    account.balance += 1
    return object()


class FunctionCast(Cast):
    """A function that runs as an actor, with its standby."""

    def __init__(self, yard: Any) -> None:
        super().__init__(yard, "charge", "charge")


def steal_and_look_no_further(seat: Seat, victim: str) -> str:
    """Owns the memory then, and is the heir of the inbox."""
    reply, _ = seat.me._links.mmu.request(wire.Steal(victim, None))
    assert isinstance(reply, wire.Stolen) and reply.heir
    return reply.name
