"""A turn: what a driver does with what has come since the last one. The service and the simulation share it.

The commit of the ledger's transaction is the commit point of everything that a replica says. Before it nothing is kept
and nothing was said; after it all of it is kept, and then it is said. `touch` makes sure that there is something to
commit: a store into memory that is another's by now raises, so whoever was robbed in his sleep says nothing more.
"""

from __future__ import annotations

import msgspec

from bequest.paxos.ledger import Ledger
from bequest.paxos.machine import Machine
from bequest.paxos.messages import Command, Message, ReplicaId
from bequest.paxos.outputs import Output, Request


class Inputs(msgspec.Struct):
    """What has come, in its order."""

    messages: list[tuple[ReplicaId, Message]] = []
    commands: list[tuple[Request, Command]] = []
    queries: list[tuple[Request, bytes]] = []
    connected: list[ReplicaId] = []  # replicas to which there is a new connection
    lost: list[ReplicaId] = []  # replicas whose memory has failed


def take_turn(machine: Machine, ledger: Ledger, inputs: Inputs, now: float, wall_ms: int) -> list[Output]:
    """One pass of the machine. Carry out what it returns, in order; but if this raises, end the process."""
    with ledger.transaction():
        for replica in inputs.connected:
            machine.connected(replica, now)
        for replica in inputs.lost:
            machine.memory_lost(replica, now)
        for sender, message in inputs.messages:
            machine.receive(sender, message, now)
        for request, command in inputs.commands:
            machine.propose(request, command, now)
        for request, query in inputs.queries:
            machine.read(request, query, now)
        outputs = machine.conclude(now, wall_ms)
        ledger.touch()
    return outputs
