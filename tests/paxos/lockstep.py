"""A few replicas whose messages arrive at once and in order: for tests of one behaviour at a time, and for measuring.

Messages go through their encoding, as between real processes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from bequest.paxos.ledger import MemoryLedger
from bequest.paxos.machine import Machine
from bequest.paxos.messages import Membership, decode_message, encode_message, first_membership
from bequest.paxos.outputs import Output, Refused, Reply, Send, SendToSite
from bequest.paxos.timing import Timing
from bequest.paxos.turn import Inputs, take_turn
from registers import Registers


class Replica:
    def __init__(self, cluster: Cluster, ledger: MemoryLedger, application: Registers) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.application = application
        self.inputs = Inputs()
        with ledger.transaction():
            self.machine = Machine(
                ledger,
                application,
                cluster.timing,
                Random(ledger.replica).random,
                clock="one",
                now=cluster.now,
            )

    def turn(self) -> list[Output]:
        inputs, self.inputs = self.inputs, Inputs()
        return take_turn(self.machine, self.ledger, inputs, self.cluster.now, int(self.cluster.now * 1000))


class Cluster:
    """Replicas by id. Who is in `cut` hears and says nothing."""

    def __init__(self, size: int = 3, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.now = 100.0
        self.replies: dict[object, bytes | Refused] = {}
        self.cut: set[int] = set()
        self.passes = 0
        self.watch: Callable[[int, Output], None] = lambda _replica, _output: None
        membership = first_membership([f"site{i}" for i in range(1, size + 1)])
        self.replicas = {id_: self.make(id_, membership) for id_ in membership.members}

    def make(self, id_: int, membership: Membership) -> Replica:
        ledger = MemoryLedger(id_, membership)
        return Replica(self, ledger, Registers(ledger.undo))

    def reincarnate(self, id_: int) -> Replica:
        old = self.replicas[id_]
        self.replicas[id_] = Replica(self, old.ledger, old.application)
        return self.replicas[id_]

    def settle(self) -> None:
        """Passes, until nobody has anything more to say."""
        for _ in range(1000):
            before = self.passes
            for replica in list(self.replicas.values()):
                self._pass(replica)
            if self.passes == before:
                return
        raise AssertionError("they never stop talking")

    def _pass(self, replica: Replica) -> None:
        inputs = replica.inputs
        has_inputs = inputs.messages or inputs.commands or inputs.queries or inputs.connected or inputs.lost
        if replica.ledger.replica in self.cut or not (has_inputs or replica.machine.deadline <= self.now):
            return
        self.passes += 1
        for output in replica.turn():
            self._carry_out(replica.ledger.replica, output)

    def _carry_out(self, sender: int, output: Output) -> None:
        self.watch(sender, output)
        match output:
            case Send(to=to, message=message):
                if to in self.replicas and not {to, sender} & self.cut:
                    sent = decode_message(encode_message(message))
                    self.replicas[to].inputs.messages.append((sender, sent))
            case Reply(request=request, reply=reply):
                self.replies[request] = reply
            case Refused(request=request):
                self.replies[request] = output
            case SendToSite(site=site, message=message):
                self.replies[site] = encode_message(message)

    def run(self, seconds: float) -> None:
        """Lets time pass, from deadline to deadline."""
        end = self.now + seconds
        self.settle()
        while True:
            deadlines = [r.machine.deadline for id_, r in self.replicas.items() if id_ not in self.cut]
            if min(deadlines) > end:
                break
            self.now = max(self.now, min(deadlines))
            self.settle()
        self.now = end

    @property
    def leader(self) -> Replica:
        leaders = [r for id_, r in self.replicas.items() if r.machine.leads and id_ not in self.cut]
        assert leaders, "nobody leads"
        return max(leaders, key=lambda replica: replica.ledger.promised)

    def do(self, command: bytes, at: int | None = None) -> bytes | Refused:
        """Has it done at this replica, or at the leader, without time passing; what came of it."""
        replica = self.replicas[at] if at is not None else self.leader
        request = object()
        replica.inputs.commands.append((request, command))
        self.settle()
        return self.replies.pop(request)

    def get(self, key: bytes, at: int | None = None) -> bytes | Refused:
        replica = self.replicas[at] if at is not None else self.leader
        request = object()
        replica.inputs.queries.append((request, key))
        self.settle()
        return self.replies.pop(request)
