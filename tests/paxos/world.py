"""A simulated world for the consensus: three sites, a network, clients, and everything that can go wrong.

One seed gives everything: how bad the world is, what happens when, who does what. First a time of faults, then
everything is mended, and there must be progress. Each replica is driven by `take_turn`, as the service does it.

A **site** has a clock of its own and a process, which may be killed in the middle of a turn (its transaction is
undone, or its outputs are lost), stopped (then it comes back later, perhaps robbed: a zombie), and reincarnated from
its **memory** by another process; or the memory is lost, and a newcomer takes the site's place. The network loses,
doubles, delays and cuts off. **Clients** do one thing at a time, at one site after another; some within sessions, and
those try again until they know.

What must hold is `checkers_of_paxos.py`'s to say: it is told of everything that happens, and decides nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import msgspec

from bequest.paxos.ledger import MemoryLedger, UndoDict
from bequest.paxos.machine import Machine
from bequest.paxos.messages import (
    Command,
    Membership,
    MemoryLost,
    Message,
    Vote,
    decode_message,
    encode_message,
    first_membership,
)
from bequest.paxos.newcomer import Newcomer
from bequest.paxos.outputs import Output, Refused, Removed, Reply, Send, SendToSite
from bequest.paxos.timing import Timing
from bequest.paxos.turn import Inputs, take_turn
from checkers_of_paxos import Checkers, Finding
from clients_of_paxos import Client
from registers import Registers

TIMING = Timing(heartbeat=0.05, lease=0.25, election_jitter=0.1, resend=0.1, patience=1.0)


class Options(msgspec.Struct):
    """How bad it is: rates are per message, per turn, or per second of the time of faults."""

    faults_end: float = 1.5
    healed_end: float = 20.0
    loss: float = 0.0
    doubling: float = 0.0
    delay: float = 0.0  # of this part of the messages, by up to 0.3 seconds
    crashes: float = 0.0  # per turn
    kills: float = 0.0  # per second, of some process, whatever it does
    stops: float = 0.0
    cuts: float = 0.0
    memory_losses: float = 0.0
    notices: float = 1.0  # how likely a site is told of lost memory
    away: float = 0.02  # how long a dead process's site has none: on the average
    robbed: float = 0.7  # how likely a stopped process is robbed before it goes on
    skew: float = 0.01  # what two clocks' rates differ by, at most
    remove_after: float = 0.0
    lease: float = TIMING.lease
    election_jitter: float = TIMING.election_jitter
    lease_reads: bool = True
    clients: int = 3
    kept_entries: int = 20_000
    window: int = 64
    pause: float = 0.04  # of a client between two things, on the average


def draw_options(random: Random) -> Options:
    """Some of the faults, each at some rate; a few seeds have none."""

    def some(most: float) -> float:
        return random.choice((0.0, random.uniform(0, most)))

    # A member that is voted out for its silence may be alive: with another whose memory is lost that can be one failure
    # too many, for which nothing is promised.
    removes_silent = random.random() < 0.3
    return Options(
        loss=some(0.1),
        doubling=some(0.1),
        delay=some(0.1),
        crashes=some(0.02),
        kills=some(5.0),
        stops=some(4.0),
        cuts=some(4.0),
        memory_losses=0.0 if removes_silent else some(3.0),
        notices=random.choice((0.0, 0.5, 1.0)),
        away=random.choice((0.005, 0.05, 0.2, 0.5)),
        robbed=random.random(),
        skew=random.choice((0.0, 0.01)),
        remove_after=0.4 if removes_silent else 0.0,
        lease_reads=random.random() < 0.8,
        kept_entries=random.choice((4, 20_000)),
        window=random.choice((1, 4, 64)),
        pause=random.choice((0.02, 0.05)),
    )


class Robbed(Exception):
    """A store into memory that is another's."""


class Killed(Exception):
    """In the middle of a turn."""


class Votes(UndoDict[int, Vote]):
    """Remembers what was dropped as applied within the turn: the checkers have not seen it."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory.undo)
        self.memory = memory
        self.dropped: dict[int, Vote] = {}

    def __delitem__(self, slot: int) -> None:
        if slot <= self.memory.applied:
            self.dropped[slot] = self[slot]
        super().__delitem__(slot)


class Memory(MemoryLedger):
    """What outlives a replica's processes: its ledger, and the application's state."""

    def __init__(self, replica: int, membership: Membership) -> None:
        super().__init__(replica, membership)
        self.votes = Votes(self)
        self.registers = Registers(self.undo)
        self.owner: Process | None = None
        self.user: Process | None = None  # whose turn it is
        self.dies = False  # whose turn it is, before the commit

    def touch(self) -> None:
        if self.owner is not self.user:
            raise Robbed
        if self.dies:
            raise Killed


class Process:
    """One life of a replica, or a newcomer."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.world = site.world
        self.alive = True
        self.stopped = False
        self.inputs = Inputs()
        self.turn_at: float | None = None
        self.requests: dict[int, Client] = {}
        self.memory: Memory | None = site.memory
        self.machine: Machine | None = None
        self.newcomer: Newcomer | None = None
        if self.memory is not None:
            self._open(self.memory)
        else:
            others = [other.name for other in self.world.sites if other is not site]
            ticket = self.world.random.getrandbits(40)
            self.newcomer = Newcomer(site.name, others, ticket, self.world.timing, site.clock())
        self.plan(0.0)

    def _open(self, memory: Memory) -> None:
        memory.owner = memory.user = self
        memory.dies = False
        with memory.transaction():
            self.machine = Machine(
                memory,
                memory.registers,
                self.world.timing,
                Random(self.world.random.getrandbits(32)).random,
                clock=self.site.name,
                now=self.site.clock(),
            )

    @property
    def replica(self) -> int:
        return self.memory.replica if self.memory is not None else 0

    # --- turns ---

    def plan(self, delay: float) -> None:
        """A turn, no later than this."""
        at = self.world.now + delay
        if self.turn_at is None or at < self.turn_at:
            self.turn_at = at
            self.world.at(at, lambda: self._turn_if(at))

    def _turn_if(self, at: float) -> None:
        if self.turn_at == at and self.alive and not self.stopped:
            self.turn_at = None
            self.turn()

    def turn(self) -> None:
        if self.machine is None or self.memory is None:
            self._ask_to_join()
            return
        inputs, self.inputs = self.inputs, Inputs()
        dies = self.world.faulty and self.world.random.random() < self.world.options.crashes
        self.memory.user = self
        self.memory.dies = dies and self.world.random.random() < 0.5
        try:
            outputs = take_turn(self.machine, self.memory, inputs, self.site.clock(), self.site.wall_ms())
        except (Robbed, Killed):
            self.world.checkers.undone(self.memory)
            self.die()
            return
        self.world.checkers.committed(self)
        if dies:
            outputs = outputs[: self.world.random.randrange(len(outputs) + 1)]
        for output in outputs:
            self._carry_out(output)
        if dies:
            self.die()
        elif self.alive:
            self.plan(max(0.0, self.site.until(self.machine.deadline)))

    def _carry_out(self, output: Output) -> None:
        match output:
            case Send(to=to, message=message):
                self.world.checkers.sent(self, message)
                site = self.world.site_of.get(to)
                if site is not None:
                    self.world.send(self, site, to, message)
            case SendToSite(site=name, message=message):
                self.world.send(self, self.world.by_name[name], None, message)
            case Reply(request=request, reply=reply):
                self.requests.pop(request).replied(self.world, reply)
            case Refused(request=request, why=why):
                self.requests.pop(request).refused(self.world, why)
            case Removed():
                self.die()
                if self.site.memory is self.memory:
                    self.site.memory = None

    def _ask_to_join(self) -> None:
        newcomer = self.newcomer
        assert newcomer is not None
        for _, message in self.inputs.messages:
            newcomer.receive(message)
        self.inputs = Inputs()
        joined = newcomer.joined
        if joined is not None:
            self.memory = self.site.memory = Memory(joined.replica, joined.membership)
            self.world.begun(self.memory, self.site)
            self._open(self.memory)
            self.plan(0.0)
            return
        for output in newcomer.tick(self.site.clock()):
            self._carry_out(output)
        self.plan(max(0.0, self.site.until(newcomer.deadline)))

    # --- inputs ---

    def ask(self, client: Client, command: Command | None, query: bytes | None) -> None:
        request = next(self.world.requests)
        self.requests[request] = client
        if self.machine is None:
            self.die()  # nobody serves here: the connection ends
        elif command is not None:
            self.inputs.commands.append((request, command))
        elif query is not None:
            self.inputs.queries.append((request, query))
        if self.alive:
            self.plan(self.world.moment())

    def receive(self, sender: int, to: int | None, message: Message) -> None:
        if not self.alive or (to is not None and to != self.replica):
            return
        self.inputs.messages.append((sender, message))
        if isinstance(message, MemoryLost) and self.machine is None:
            self.inputs.messages.pop()
        self.plan(self.world.moment())

    # --- ends ---

    def die(self) -> None:
        if self.alive:
            self.alive = False
            requests, self.requests = self.requests, {}
            for client in requests.values():
                client.lost(self.world)
            if self.site.process is self:
                self.site.process = None
                away = self.world.random.expovariate(1 / self.world.options.away)
                self.world.at(self.world.now + away, self.site.start)

    def stop(self, seconds: float) -> None:
        self.stopped = True
        self.world.at(self.world.now + seconds, self._go_on)

    def _go_on(self) -> None:
        self.stopped = False
        if self.alive:
            self.turn_at = None
            self.plan(0.0)


class Site:
    """A place with a clock, a process now and then, and memory."""

    def __init__(self, world: World, name: str, skew: float) -> None:
        self.world = world
        self.name = name
        self.offset = world.random.uniform(0, 1000)
        self.rate = 1 + world.random.choice((-0.49, 0.0, 0.49)) * skew
        self.wall_offset = world.random.randrange(-200, 200)
        self.memory: Memory | None = None
        self.process: Process | None = None

    def clock(self) -> float:
        return self.offset + self.world.now * self.rate

    def until(self, local: float) -> float:
        """Seconds of the world until the clock shows this, and a little more: lest rounding wakes one early."""
        return (local - self.clock()) / self.rate + 1e-9

    def wall_ms(self) -> int:
        return 1_000_000 + self.wall_offset + int(self.world.now * 1000)

    def start(self) -> None:
        """A process, if there is none: over the memory that there is, or with none."""
        if self.process is None:
            self.process = Process(self)
            if self.process.machine is not None:
                self.world.connected(self.process)

    def rob(self) -> None:
        """The standby takes over from a process that is stopped."""
        process = self.process
        if process is not None and process.machine is not None:
            self.process = None
            self.start()

    def lose_memory(self) -> None:
        memory, process = self.memory, self.process
        self.memory = None
        if memory is None:
            return
        memory.owner = None
        self.world.checkers.lost(memory)
        if process is not None:
            process.die()
        for other in self.world.sites:
            if other.process is not None and self.world.random.random() < self.world.options.notices:
                other.process.receive(0, None, MemoryLost(memory.replica))


class World:
    """Time, the network, and the order of events."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.random = Random(seed)
        self.options = options or draw_options(self.random)
        self.timing = msgspec.structs.replace(
            TIMING,
            remove_after=self.options.remove_after,
            lease_reads=self.options.lease_reads,
            lease=self.options.lease,
            heartbeat=self.options.lease / 5,
            election_jitter=self.options.election_jitter,
        )
        self.now = 0.0
        self.faulty = True
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.requests = itertools.count(1)
        self.cut: set[str] = set()
        self.sites = [Site(self, name, self.options.skew) for name in ("a", "b", "c")]
        self.by_name = {site.name: site for site in self.sites}
        self.site_of: dict[int, Site] = {}
        membership = first_membership([site.name for site in self.sites])
        self.checkers = Checkers(self, membership)
        for replica, site in zip(membership.members, self.sites, strict=True):
            site.memory = Memory(replica, membership)
            self.begun(site.memory, site)
            site.start()
        self.clients = [Client(self, number) for number in range(self.options.clients)]
        for client in self.clients:
            client.go_on(self)
        self._plan_faults()

    # --- events ---

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.order), action))

    def moment(self) -> float:
        """How long until a process gets to what has come: what comes meanwhile is in the same turn."""
        return self.random.random() * 0.0005

    def begun(self, memory: Memory, site: Site) -> None:
        self.site_of[memory.replica] = site
        self.checkers.begun(memory)

    # --- the network ---

    def send(self, sender: Process, site: Site, to: int | None, message: Message) -> None:
        options, random = self.options, self.random
        if not sender.alive or {site.name, sender.site.name} & self.cut:
            return
        if self.faulty and random.random() < options.loss:
            return
        copies = 2 if self.faulty and random.random() < options.doubling else 1
        sent = decode_message(encode_message(message))
        number = sender.replica
        for _ in range(copies):
            latency = 0.0002 + random.random() * 0.0005
            if self.faulty and random.random() < options.delay:
                latency += random.random() * 0.3
            self.at(self.now + latency, lambda: self._deliver(site, number, to, sent))

    def _deliver(self, site: Site, sender: int, to: int | None, message: Message) -> None:
        if site.process is not None:
            site.process.receive(sender, to, message)

    def connected(self, process: Process) -> None:
        """Connections to and from a process that has just begun."""
        for site in self.sites:
            other = site.process
            if other is not None and other is not process and other.machine is not None:
                if self.faulty and self.random.random() < 0.2:
                    continue
                for one, two in ((other, process), (process, other)):
                    one.inputs.connected.append(two.replica)
                    one.plan(self.moment())

    # --- faults ---

    def _plan_faults(self) -> None:
        options = self.options
        for rate, fault in (
            (options.kills, self._kill),
            (options.stops, self._stop),
            (options.cuts, self._cut),
            (options.memory_losses, self._lose_memory),
        ):
            time = self.random.expovariate(rate) if rate else options.faults_end
            while time < options.faults_end:
                self.at(time, fault)
                time += self.random.expovariate(rate)

    def _some_process(self) -> Process | None:
        return self.random.choice(self.sites).process

    def _kill(self) -> None:
        process = self._some_process()
        if process is not None:
            process.die()

    def _stop(self) -> None:
        process = self._some_process()
        if process is not None and not process.stopped:
            process.stop(self.random.expovariate(5))
            if self.random.random() < self.options.robbed:
                self.at(self.now + self.random.random() * 0.2, process.site.rob)

    def _cut(self) -> None:
        name = self.random.choice(self.sites).name
        self.cut.add(name)
        self.at(self.now + self.random.expovariate(1 / self.options.lease), lambda: self._mend(name))

    def _mend(self, name: str) -> None:
        self.cut.discard(name)
        site = self.by_name[name]
        if site.process is not None and site.process.machine is not None:
            self.connected(site.process)

    def _lose_memory(self) -> None:
        """Of some site, as long as that leaves a majority of the members with theirs."""
        site = self.random.choice(self.sites)
        if site.memory is not None and self.checkers.may_lose(site.memory):
            site.lose_memory()

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self.faulty = False
        self.cut.clear()
        self.options.away = 0.02
        self.options.notices = 1.0
        for site in self.sites:
            if site.process is not None and site.process.stopped:
                site.process.stopped = False
                site.process.turn_at = None
                site.process.plan(0.0)
            if site.process is not None and site.process.machine is not None:
                self.connected(site.process)
        for client in self.clients:
            client.finish()

    # --- running ---

    def run(self) -> World:
        """Everything that this seed means; raises Finding if something must not be."""
        self._run_until(self.options.faults_end, lambda: False)
        self.heal()
        self._run_until(self.options.healed_end, self._is_healthy)
        if not self._is_healthy():
            raise Finding(f"no progress after everything was mended: {self.checkers.describe()}")
        self.checkers.ended()
        return self

    def _run_until(self, end: float, is_done: Callable[[], bool]) -> None:
        events = self.events
        steps = 0
        while events and events[0][0] <= end:
            self.now, _, action = heapq.heappop(events)
            action()
            steps += 1
            if not steps % 64 and is_done():
                return
        self.now = max(self.now, end) if not is_done() else self.now

    def _is_healthy(self) -> bool:
        """Every site has a member, all are equally far, and every client has what it wanted."""
        if not all(client.is_done for client in self.clients):
            return False
        processes = [site.process for site in self.sites]
        machines = [p.machine for p in processes if p is not None and p.machine is not None]
        if len(machines) < len(self.sites):
            return False
        sites = sorted(machines[0].membership.members.values())
        return (
            sites == sorted(self.by_name)
            and not machines[0].membership.learners
            and len({machine.membership.epoch for machine in machines}) == 1
            and len({site.memory.applied for site in self.sites if site.memory is not None}) == 1
            and any(machine.leads for machine in machines)
        )
