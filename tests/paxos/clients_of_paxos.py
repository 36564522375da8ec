"""Simulated clients: each does one thing after another, and writes down what it did, when, and what came of it.

An ordinary client that gets no answer does not know whether its command was carried out, and goes on to something else.
A client with a session tries the same command again, at another site, until it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.paxos.messages import Command, Once, OpenSession
from bequest.paxos.outputs import Why
from linearizability import Operation

if TYPE_CHECKING:
    from world import World

NOTHING_DONE = (Why.BUSY, Why.UNAVAILABLE, Why.SESSION_UNKNOWN)
KEYS = (b"k", b"l")


class Client:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.site = world.sites[number % len(world.sites)]
        self.has_session = world.random.random() < 0.4
        self.session: int | None = None
        self.sequence = 0
        self.count = 0
        self.current: Operation | None = None
        self.once: Command | None = None
        self.query: bytes | None = None
        self.is_finishing = False
        self.is_done = False
        self.history: list[Operation] = []

    # --- what it does ---

    def go_on(self, world: World) -> None:
        """Something else, in a while."""
        self.current = None
        world.at(world.now + world.random.expovariate(1 / world.options.pause), self._next)

    def finish(self) -> None:
        """One thing more, and then no more."""
        self.is_finishing = True

    def _next(self) -> None:
        world = self.world
        if self.is_finishing and self.count and self.history and self.history[-1].result is not None:
            self.is_done = True
            return
        if self.has_session and self.session is None:
            self.once, self.query = OpenSession(), None
            self.current = None
        else:
            self._something(world)
        self._ask()

    def _something(self, world: World) -> None:
        self.count += 1
        key = world.random.choice(KEYS)
        value = b"%d.%d" % (self.number, self.count)
        kind = world.random.choice(("get", "get", "set", "append", "cas"))
        arguments = (value,)
        if kind == "get":
            arguments = ()
        elif kind == "cas":
            seen = [op.result for op in self.history if op.key == key and op.result is not None]
            arguments = (seen[-1] if seen else b"", value)
        self.current = Operation(key, kind, arguments, world.now)
        self.history.append(self.current)
        self.query = key if kind == "get" else None
        if kind == "get":
            self.once = None
            return
        body = b" ".join((kind.encode(), key, *arguments))
        self.once = body
        if self.has_session:
            assert self.session is not None
            self.sequence += 1
            self.once = Once(self.session, self.sequence, body)

    def _ask(self) -> None:
        process = self.site.process
        if process is None or not process.alive:
            self._elsewhere()
        else:
            process.ask(self, self.once, self.query)

    def _elsewhere(self) -> None:
        """The same again, at another site: nothing was sent, or it does no harm to send it twice."""
        world = self.world
        self.site = world.random.choice(world.sites)
        world.at(world.now + 0.01 + world.random.random() * 0.02, self._ask)

    # --- what comes of it ---

    def replied(self, world: World, reply: bytes) -> None:
        if self.current is None:
            self.session = int(reply)
            self.sequence = 0
        else:
            self.current.end(world.now, reply)
            world.checkers.acknowledged(self.current)
        self.go_on(world)

    def refused(self, world: World, why: Why) -> None:
        if why is Why.SESSION_UNKNOWN:
            world.checkers.session_was_forgotten()
        self._no_answer(world, is_known=why in NOTHING_DONE)

    def lost(self, world: World) -> None:
        """The connection has ended."""
        self._no_answer(world, is_known=False)

    def _no_answer(self, world: World, is_known: bool) -> None:
        self.site = world.random.choice(world.sites)
        if self.current is None or isinstance(self.once, Once):
            world.at(world.now + 0.02, self._ask)
            return
        if is_known or self.query is not None:
            self.history.remove(self.current)
        self.go_on(world)
