"""What must hold in the simulated world, whatever happens. The checkers look from outside: at memories after each
commit, at messages as they are sent, at what is applied and what clients are told. They use nothing of the machine but
its ledger's words.

| checker | what must hold |
|---|---|
| agreement | a slot has one value, for ever; when it is first known, a majority of its members has accepted it |
| one history | the n-th command applied is the same at every replica, with the same stamp and result |
| exactly once | no command of a client is carried out twice |
| durability | what was acknowledged has been carried out, and is part of every replica's state in the end |
| promises | they never go down; who promised a ballot accepts nothing lower; votes never go back to a lower ballot |
| one leader | a ballot proposes one value for a slot; two replicas never hold a lease at the same time |
| linearizability | of what clients saw (`linearizability.py`) |
| liveness | after everything was mended (`World.run`) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.paxos.ledger import Undo
from bequest.paxos.messages import (
    NO_BALLOT,
    Accept,
    Accepted,
    Ballot,
    Change,
    Membership,
    Message,
    Promise,
    Slot,
    Vote,
    decode_value,
)
from linearizability import Operation, find_violation
from registers import Registers

if TYPE_CHECKING:
    from world import Memory, Process, World


class Finding(Exception):
    """Something that must not be."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Finding(text)


class Checkers:
    def __init__(self, world: World, membership: Membership) -> None:
        self.world = world
        self.memories: dict[int, Memory] = {}
        self.alive: dict[int, bool] = {}
        self.values: list[bytes] = [b""]  # by slot, from 1
        self.membership = membership  # after the last of these
        self.checked: dict[int, Slot] = {}  # by replica, up to which slot agreement was checked
        self.applied: list[tuple[int, bytes, bytes]] = []
        self.seen_commands: dict[bytes, int] = {}
        self.fresh: list[tuple[int, int, bytes, bytes]] = []  # applied in the turn under way
        self.promised: dict[int, Ballot] = {}
        self.said: dict[int, Ballot] = {}
        self.votes: dict[int, dict[Slot, Vote]] = {}  # those not known to be chosen, after the last commit
        self.proposals: dict[tuple[Ballot, Slot], bytes] = {}
        self.acknowledged_writes: list[bytes] = []

    # --- told by the world ---

    def begun(self, memory: Memory) -> None:
        replica = memory.replica
        self.memories[replica] = memory
        self.alive[replica] = True
        self.checked[replica] = memory.chosen
        self.promised[replica] = NO_BALLOT
        self.said[replica] = NO_BALLOT
        self.votes[replica] = {}
        memory.registers.on_apply = lambda *applied: self.fresh.append(applied)

    def lost(self, memory: Memory) -> None:
        self.alive[memory.replica] = False

    def undone(self, memory: Memory) -> None:
        memory.votes.dropped.clear()
        self.fresh.clear()

    def may_lose(self, memory: Memory) -> bool:
        """Would a majority of every membership that may be in force keep its memory?"""
        members = self.membership.members
        remaining = [m for m in members if self.alive[m] and m != memory.replica]
        is_settled = all(
            not isinstance(decode_value(vote.value), Change)
            for m, other in self.memories.items()
            if self.alive[m]
            for slot, vote in other.votes.items()
            if slot > len(self.values) - 1
        )
        knowing = [
            m
            for m in remaining
            if self.memories[m].membership.epoch == self.membership.epoch
            and self.memories[m].installing is None
        ]
        return is_settled and len(knowing) >= self.membership.quorum

    def session_was_forgotten(self) -> None:
        raise Finding("a session ended that was in use")

    def acknowledged(self, operation: Operation) -> None:
        if operation.kind != "get":
            command = b" ".join((operation.kind.encode(), operation.key, *operation.arguments))
            require(command in self.seen_commands, f"{operation} was acknowledged and never carried out")

    def sent(self, process: Process, message: Message) -> None:
        replica = process.replica
        if isinstance(message, Promise):
            self.said[replica] = max(self.said[replica], message.ballot)
        elif isinstance(message, Accepted):
            require(
                message.ballot >= self.said[replica], f"{replica} promised {self.said[replica]}: {message}"
            )
        elif isinstance(message, Accept):
            for slot, value in enumerate(message.values, start=message.first):
                first = self.proposals.setdefault((message.ballot, slot), value)
                require(first == value, f"two values for slot {slot} by one ballot {message.ballot}")

    def committed(self, process: Process) -> None:
        memory = process.memory
        assert memory is not None
        self._check_agreement(memory)
        self._check_history()
        self._check_promises(memory)
        self._check_lease(process)

    # --- after each step ---

    def _check_agreement(self, memory: Memory) -> None:
        replica = memory.replica
        for slot in range(self.checked[replica] + 1, memory.chosen + 1):
            vote = memory.votes.get(slot) or memory.votes.dropped.get(slot)
            if vote is None:
                continue  # covered by a snapshot
            if slot < len(self.values):
                require(self.values[slot] == vote.value, f"two values chosen for slot {slot}")
            else:
                self._first_chosen(replica, slot, vote.value)
        self.checked[replica] = memory.chosen
        memory.votes.dropped.clear()

    def _first_chosen(self, replica: int, slot: Slot, value: bytes) -> None:
        require(
            slot == len(self.values), f"{replica} says that {slot} is chosen, before {len(self.values)} is"
        )
        members = self.membership.members
        accepted = [m for m in members if not self.alive[m] or self._has(self.memories[m], slot, value)]
        require(
            len(accepted) >= self.membership.quorum,
            f"{replica} says that {slot} is chosen, which only {accepted} of {list(members)} have accepted",
        )
        self.values.append(value)
        decoded = decode_value(value)
        if isinstance(decoded, Change):
            self.membership = decoded.membership

    @staticmethod
    def _has(memory: Memory, slot: Slot, value: bytes) -> bool:
        vote = memory.votes.get(slot)
        return memory.applied >= slot or (vote is not None and vote.value == value)

    def _check_history(self) -> None:
        for index, stamp_ms, command, before in self.fresh:
            entry = (stamp_ms, command, before)
            if index <= len(self.applied):
                require(
                    self.applied[index - 1] == entry, f"command {index}: {entry}, {self.applied[index - 1]}"
                )
                continue
            require(index > len(self.applied), f"command {index} after {len(self.applied)}")
            while len(self.applied) < index - 1:
                self.applied.append((0, b"", b""))  # a session's: opened, or answered from the table
            require(command not in self.seen_commands, f"{command!r} was carried out twice")
            require(not self.applied or stamp_ms >= self.applied[-1][0], "time went back")
            self.seen_commands[command] = index
            self.applied.append(entry)
        self.fresh.clear()

    def _check_promises(self, memory: Memory) -> None:
        replica = memory.replica
        require(memory.promised >= self.promised[replica], f"{replica} went back on a promise")
        self.promised[replica] = memory.promised
        require(memory.promised >= self.said[replica], f"{replica} does not remember what it has promised")
        votes: dict[Slot, Vote] = {}
        before = self.votes[replica]
        for slot in range(memory.chosen + 1, memory.last + 1):
            vote = memory.votes.get(slot)
            if vote is not None:
                votes[slot] = vote
            if slot in before:
                is_kept = vote is not None and vote.ballot >= before[slot].ballot
                require(is_kept, f"{replica} went back on its vote for {slot}: {before[slot]}, now {vote}")
        self.votes[replica] = votes

    def _check_lease(self, process: Process) -> None:
        if not self._is_leased(process):
            return
        for site in self.world.sites:
            other = site.process
            if (
                other is not None
                and other.alive
                and other.replica != process.replica
                and self._is_leased(other)
            ):
                raise Finding(f"{process.replica} and {other.replica} both have the lease")

    @staticmethod
    def _is_leased(process: Process) -> bool:
        machine, memory = process.machine, process.memory
        if machine is None or memory is None or not machine.leads or memory.owner is not process:
            return False
        return machine.status(process.site.clock()).leased

    # --- in the end ---

    def ended(self) -> None:
        final = Registers(Undo())
        for _, command, _ in self.applied:
            if command:
                final.apply(0, 0, command)
        for site in self.world.sites:
            memory = site.memory
            assert memory is not None
            require(
                dict(memory.registers.values) == dict(final.values),
                f"{memory.replica} has another state in the end: {memory.registers.values}, {final.values}",
            )
        history = [operation for client in self.world.clients for operation in client.history]
        violation = find_violation(history)
        require(violation is None, f"there is no order of {violation}")

    def describe(self) -> str:
        lines = [f"epoch {self.membership}, {len(self.values) - 1} slots chosen"]
        for site in self.world.sites:
            process = site.process
            if process is None or process.machine is None:
                lines.append(f"{site.name}: {'nobody' if process is None else 'a newcomer'}")
            else:
                lines.append(f"{site.name}: {process.machine.status(site.clock())}")
        lines += [
            f"client {client.number}: done={client.is_done} {client.current}" for client in self.world.clients
        ]
        return "\n".join(lines)
