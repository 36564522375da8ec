"""What the rack's daemons share in the world: turns, links to each other, clients, and sudden ends.

What can go wrong between real daemons is kept, and nothing else. A link is a socket pair: what is said over it arrives
in order, or, when one end dies, only its beginning does; what the dead had not read is lost. Its successor gets fresh
links, of which either end learns in its own time. A daemon gets its turn late, and then does all that has come
meanwhile, links first, of each client one packet: what one daemon told another before it answered a client is known
before the client acts on it. A client that is owed a reply is not read, so that its end is noticed only after it was
answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bequest.sim.connection import Connection
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.sim.world import World


class Died(Exception):
    """SIGKILL, between two outputs."""


class Link:
    def __init__(self, one: Daemon, other: Daemon) -> None:
        self._one, self._other = one, other
        self._ends = {one.name: one, other.name: other}
        self._said: dict[str, deque[wire.Message]] = {one.name: deque(), other.name: deque()}

    @property
    def is_broken(self) -> bool:
        return self._one.is_dead or self._other.is_dead

    def other(self, name: str) -> str:
        return self._one.name if self._other.name == name else self._other.name

    def say(self, to: str, message: wire.Message) -> None:
        if not self.is_broken:
            self._said[to].append(message)
            self._ends[to].wake()

    def hear(self, name: str) -> wire.Message | None:
        return self._said[name].popleft() if self._said[name] else None

    def has_news_for(self, name: str) -> bool:
        return bool(self._said[name]) or self.is_broken

    def lose(self, kept_of: Callable[[int], int]) -> None:
        """An end has died: of what was said, only a beginning arrives."""
        for name, said in self._said.items():
            while len(said) > kept_of(len(said)):
                said.pop()
            self._ends[name].wake()


class Daemon:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.fuse: int | None = None  # it dies after so many more outputs
        self.links: dict[str, Link] = {}  # that it knows of, by the other's name
        self._new_links: deque[Link] = deque()  # that its supervisor has handed it
        self.peers: dict[int, Connection] = {}
        self._last_peer = 0
        self._woken = False
        self._others: list[Callable[[], None]] = []  # pidfds and workers that have something
        self._next_tick = float("inf")

    # --- dying -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Before each output: it may be the last moment."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Died

    def die(self) -> None:
        self.world.trace("fault", self.name, "killed")
        self.is_dead = True
        for connection in self.peers.values():
            connection.break_off()
        for link in (*self.links.values(), *self._new_links):
            link.lose(lambda count: self.world.random.choice((count, self.world.random.randint(0, count))))
        self.world.daemon_died(self)

    def successor(self) -> Daemon:
        """What the supervisor starts in its place, with what it kept."""
        raise AssertionError(f"nothing follows {self.name}")

    # --- what comes ------------------------------------------------------------------------------------------

    def hand(self, link: Link) -> None:
        self._new_links.append(link)
        self.wake()

    def say(self, to: str, message: wire.Message) -> None:
        """Or to nobody, while there is no link."""
        if to in self.links:
            self.links[to].say(to, message)

    def connect(self, connection: Connection) -> None:
        self._last_peer += 1
        connection.peer = self._last_peer
        self.peers[connection.peer] = connection
        connection.wake_daemon = self.wake
        self.wake()

    def call(self, what: Callable[[], None]) -> None:
        self._others.append(what)
        self.wake()

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.world.events.after(self.world.delay(), self._turn)

    # --- a turn ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._woken = False
        if self.is_dead:
            return
        try:
            self._take_turn()
        except Died:
            self.die()
        self.world.turn_ended(self)

    def _take_turn(self) -> None:
        peers = [connection for connection in self.peers.values() if connection.is_readable]
        self.world.random.shuffle(peers)
        others, self._others = self._others, []
        for link in list(self.links.values()):
            self._hear(link)
        are_links_first = self.world.random.random() < 0.5
        if are_links_first:
            self._take_links()
        for connection in peers:
            self._read(connection)
        if not are_links_first:
            self._take_links()
        for call in others:
            call()
        self.tick(self.world.events.now)
        self._plan_tick()
        has_news = any(link.has_news_for(self.name) for link in self.links.values())
        if self._others or has_news or any(peer.is_readable for peer in self.peers.values()):
            self.wake()

    def _hear(self, link: Link) -> None:
        other = link.other(self.name)
        while (message := link.hear(self.name)) is not None:
            self.world.trace(self.name, other, message)
            self.link_message(other, message)
        if link.is_broken:
            del self.links[other]
            self.link_broken(other)

    def _take_links(self) -> None:
        while self._new_links:
            link = self._new_links.popleft()
            other = link.other(self.name)
            self.world.trace(self.name, other, "(linked)")
            if other in self.links:
                del self.links[other]
                self.link_broken(other)
            self.links[other] = link
            self.link_restored(other)

    def _read(self, connection: Connection) -> None:
        message = connection.read()
        if message is None:
            del self.peers[connection.peer]
            if connection.has_greeted:
                self.world.trace(self.name, connection.who, "(gone)")
                self.peer_gone(connection)
            return
        if not connection.has_greeted:
            connection.has_greeted = True
            self.peer_opened(connection)
            return
        connection.is_owed_reply = True
        self.world.trace(self.name, connection.who, message)
        self.peer_message(connection, message)

    def _plan_tick(self) -> None:
        deadline = self.next_deadline()
        if deadline < self._next_tick or self._next_tick <= self.world.events.now:
            self._next_tick = deadline
            if deadline != float("inf"):
                self.world.events.after(max(0.0, deadline - self.world.events.now), self.wake)

    def reply(self, peer: int, message: wire.Message, file: object = None) -> None:
        connection = self.peers.get(peer)
        if connection is not None:
            self.world.trace(connection.who, self.name, message)
            connection.answer(message, file)

    # --- for the subclass ------------------------------------------------------------------------------------

    def peer_opened(self, connection: Connection) -> None: ...

    def peer_gone(self, connection: Connection) -> None: ...

    def peer_message(self, connection: Connection, message: wire.Message) -> None:
        raise AssertionError(f"{self.name} serves no clients")

    def link_message(self, sender: str, message: wire.Message) -> None:
        raise AssertionError(f"{self.name} has no links")

    def link_restored(self, sender: str) -> None: ...

    def link_broken(self, sender: str) -> None: ...

    def tick(self, now: float) -> None: ...

    def next_deadline(self) -> float:
        return float("inf")
