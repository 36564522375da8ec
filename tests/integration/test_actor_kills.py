"""Actors under SIGKILL at random instants: no message is lost, none is handled twice, each sender's stay in order.

Clients and a relay send to a ledger what tells what is missing or doubled; the ledger and the relay are killed again
and again, and their standbys go on. The instants are random; the seed is printed.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

import bequest as bq
import soaking
from actor_users import Cast, owned_bytes
from racks import Yard

KILLS = soaking.size(20, 2000)
PAUSE = 0.06  # seconds between kills, on the average
PATIENCE = 30.0


class Load(threading.Thread):
    """A client that sends and calls until it is told to stop. It counts what it has sent."""

    def __init__(self, me: bq.Process, source: str, to: str, seed: int) -> None:
        super().__init__(name=source)
        self.me, self.source = me, source
        self.to = bq.actors.ref(me, to)
        self.ledger = bq.actors.ref(me, "ledger")
        self.chance = random.Random(f"{seed}/{source}")
        self.sent = 0
        self.with_ticket = 0
        self.tickets: list[int] = []
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.step()
            self.to.flush(PATIENCE)
        except BaseException as error:
            self.error = error

    def step(self) -> None:
        plain, region = (
            ("pass_on", "pass_region_on") if self.to.name == "relay" else ("enter", "enter_region")
        )
        what = self.chance.random()
        if what < 0.05:
            self.tickets.append(self.ledger.call("ticket", timeout=PATIENCE))
        elif what < 0.08 and self.to.name == "relay":
            self.to.send("with_ticket")
            self.with_ticket += 1
        elif what < 0.2:
            memory = self.me.alloc(self.chance.choice((4096, 65536)))
            memory.array("u8")[0] = self.sent
            self.to.send(region, self.source, self.sent, memory)
            self.sent += 1
        else:
            for _ in range(self.chance.randint(1, 30)):
                self.to.send(plain, self.source, self.sent)
                self.sent += 1
        if self.chance.random() < 0.3:
            time.sleep(self.chance.uniform(0, 0.004))


@pytest.mark.soak
@pytest.mark.timeout(soaking.timeout(3600))
def test_kills_at_random_instants(yard: Yard, record_property: Any) -> None:
    rack = yard.rack("dram0:512MiB")
    seed = soaking.SEED
    print("seed", seed)
    chance = random.Random(seed)
    casts = [Cast(yard, "Ledger", "ledger"), Cast(yard, "Relay", "relay")]
    me = yard.attach("me")
    for cast in casts:
        bq.actors.ref(me, cast.name).wait(PATIENCE)
    bq.actors.ref(me, "relay").call("report", timeout=PATIENCE)
    loads = [Load(me, "direct", "ledger", seed), Load(me, "relayed", "relay", seed)]
    for load in loads:
        load.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, 2 * PAUSE))
        cast = chance.choice(casts)
        if chance.random() < 0.1:
            cast.kill_both(chance.uniform(0, 0.02))
        else:
            cast.kill()
    for load in loads:
        load.stop.set()
    for load in loads:
        load.join(2 * PATIENCE)
        assert not load.is_alive() and load.error is None, load.error

    ledger, relay = (bq.actors.ref(me, cast.name) for cast in casts)
    sent = {load.source: load.sent for load in loads}
    deadline = time.monotonic() + PATIENCE
    while ledger.call("entries", timeout=PATIENCE) < sum(sent.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    report, passed = (one.call("report", timeout=PATIENCE) for one in (ledger, relay))
    assert (ledger.dead_letters(PATIENCE), relay.dead_letters(PATIENCE)) == ([], [])
    assert report["disorder"] == ""
    assert report["next"] == sent and report["entries"] == sum(sent.values())
    for source, count in sent.items():
        numbers = [int(entry.split()[1]) for entry in report["log"] if entry.startswith(source + " ")]
        assert numbers == list(range(count - len(numbers), count)), source
    drawn = sorted([*passed["distinct"], *(ticket for load in loads for ticket in load.tickets)])
    assert drawn == list(range(1, report["tickets"] + 1))
    assert passed["passed"] == sent["relayed"]
    assert passed["tickets"] == len(passed["distinct"]) == loads[1].with_ticket
    record_property("kills", KILLS)
    record_property("events", sum(sent.values()))
    print("events", sent, "tickets", len(drawn))
    owned = {cast.name: owned_bytes(rack, cast.name) for cast in casts}
    print("owned", owned)
    record_property("bytes owned in the end", str(owned))
    for cast in casts:
        cast.end()
