"""Events per second through one actor, every one durable, beside a Redis stream.

A client sends small messages to an actor in another process, which adds each to a counter: one event, one transaction
of its heap, so that a standby goes on with the next one. Timed from the first message until all have been handled.
Beside it a stream of Redis with its append-only file flushed every second: a producer adds entries in pipelines, and a
consumer of a group reads them in batches of the same size, adds each to a counter and acknowledges it, in one MULTI for
each batch. It may lose a second of events when its machine dies, and none when its process does; so does an actor.

Then the actor is killed under load: timed until its standby has answered a call.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .heirs import receive
from .measure import Figure, Noise, Outcome, Target, quantity, timed
from .redis_side import RedisServer, missing, redis_client

EVENTS, QUICK_EVENTS = 300_000, 50_000
ROUNDS, QUICK_ROUNDS = 5, 2
CALLS, QUICK_CALLS = 2_000, 200
KILLS, QUICK_KILLS = 10, 2
BATCH = 512  # as many messages as Bequest sends together at most
DURABLE_EVENTS = Target("at least", 100_000)
STREAM, GROUP = "stream", "group"


# --- Bequest --------------------------------------------------------------------------------------------------------


def act(orders: Connection, key: str) -> None:
    """The actor's process."""
    from bequest import actors

    from .counter import Counter

    actors.run(Counter, rack=bequest_side.join(key), ready=lambda: orders.send(os.getpid()))


def stand_by(orders: Connection, key: str) -> None:
    """A standby's."""
    from bequest import actors

    from .counter import Counter

    actors.stand_by(Counter, rack=bequest_side.join(key), ready=lambda: orders.send(os.getpid()))


class Line:
    """An actor, a standby for it, one for that when it has taken over, and so on."""

    def __init__(self, rack: Any) -> None:
        self._key = bequest_side.rack_key(rack)
        self._processes = ExitStack()
        self._pid = self._start(act)

    def _start(self, task: Callable[..., None]) -> int:
        pid: int = receive(self._processes.enter_context(bequest_side.partner(task, self._key)))
        return pid

    def kill(self, counter: Any) -> float:
        """Seconds from a kill under load until the standby has answered."""
        heir = self._start(stand_by)
        for _ in range(BATCH):
            counter.send("add", 1)
        killed = time.perf_counter()
        os.kill(self._pid, signal.SIGKILL)
        counter.call("add", 1, timeout=PATIENCE_SECONDS)
        self._pid = heir
        return time.perf_counter() - killed

    def close(self) -> None:
        os.kill(self._pid, signal.SIGTERM)
        self._processes.close()


def send_all(counter: Any, events: int) -> float:
    """Seconds from the first message until all have been handled."""
    started = time.perf_counter()
    for _ in range(events):
        counter.send("add", 1)
    counter.flush(PATIENCE_SECONDS)
    return time.perf_counter() - started


def call_once(counter: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    counter.call("add", 1, timeout=PATIENCE_SECONDS)
    return time.perf_counter() - started


# --- Redis ----------------------------------------------------------------------------------------------------------


def consume(orders: Connection, socket: str, events: int) -> None:
    """Reads so many entries of the stream, in batches, and counts each."""
    client = redis_client(socket)
    orders.send("ready")
    done = 0
    while done < events:
        found = client.xreadgroup(GROUP, "consumer", {STREAM: ">"}, count=BATCH, block=1000)
        entries = found[0][1] if found else []
        if entries:
            transaction = client.pipeline(transaction=True)
            for _, fields in entries:
                transaction.incrby("counter", int(fields[b"number"]))
            transaction.xack(STREAM, GROUP, *(number for number, _ in entries))
            transaction.execute()
            done += len(entries)
    orders.send(done)


def stream_seconds(server: RedisServer, events: int) -> float:
    """Seconds from the first entry until all have been handled."""
    server.client.flushall()
    server.client.xgroup_create(STREAM, GROUP, mkstream=True)
    with bequest_side.partner(consume, server.socket, events) as consumer:
        receive(consumer)
        started = time.perf_counter()
        for _ in range(0, events, BATCH):
            pipeline = server.client.pipeline(transaction=False)
            for _ in range(min(BATCH, events)):
                pipeline.xadd(STREAM, {"number": 1})
            pipeline.execute()
        receive(consumer)
        return time.perf_counter() - started


# --- the whole ------------------------------------------------------------------------------------------------------


def _stream_rates(events: int, rounds: int, noise: Noise) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        server = RedisServer(Path(directory), "--appendonly", "yes", "--appendfsync", "everysec")
        try:
            server.wait()
            rates = []
            for _ in range(rounds):
                noise.sample()
                rates.append(events / stream_seconds(server, events))
        finally:
            server.close()
    return rates


def _rate(name: str, rates: list[float], target: Target | None = None, note: str = "") -> Figure:
    if not rates:
        return Figure(name, None, "/s", target, note)
    best = f"of {len(rates)} rounds; the fastest {quantity(max(rates), '/s')}"
    return Figure(name, statistics.median(rates), "/s", target, f"{best}; {note}" if note else best)


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    from bequest import actors

    outcome = Outcome("actors")
    events, rounds = (QUICK_EVENTS, QUICK_ROUNDS) if quick else (EVENTS, ROUNDS)
    rack = bequest_side.connect()
    with rack.attach("client") as me:
        line = Line(rack)
        counter = actors.ref(me, "counter")
        say("actors: events")
        send_all(counter, events // 10)
        rates = []
        for _ in range(rounds):
            noise.sample()
            rates.append(events / send_all(counter, events))
        say("actors: calls")
        answered = [call_once(counter) for _ in range(QUICK_CALLS if quick else CALLS)]
        say("actors: deaths")
        inherited = [line.kill(counter) for _ in range(QUICK_KILLS if quick else KILLS)]
        line.close()
    absent = missing()
    streamed: list[float] = []
    if not absent:
        say("actors: Redis")
        streamed = _stream_rates(events // 5 // BATCH * BATCH, rounds, noise)
    outcome.figures += [
        _rate("events through one actor, durable, sent by one client", rates, DURABLE_EVENTS),
        _rate(
            "Redis stream, AOF everysec: entries counted and acknowledged by one consumer",
            streamed,
            None,
            absent,
        ),
        timed("one call, and its reply", answered),
        timed("kill -9 of the actor with 512 events waiting: its standby has answered a call", inherited),
    ]
    outcome.raw.update(events=rates, redis=streamed, calls=answered, deaths=inherited)
    return outcome
