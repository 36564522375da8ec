"""What drives the machine: the event loop, its timers and the network.

Inputs gather while the event loop goes over its sockets; then one turn (`bequest.paxos.turn`) hands all of them to
the machine, and what that wants done is done, in its order. Whatever a turn raises is the end of the replica in this
process: `over` is called with it, and nothing is said any more. A process that was robbed while it slept ends so, of
the store with which each turn ends (paper, section 4.1).
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from bequest.paxos.outputs import LeaderChanged, MembershipChanged, Refused, Removed, Reply, Send, SendToSite
from bequest.paxos.turn import Inputs, take_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.paxos.ledger import Ledger
    from bequest.paxos.machine import Machine
    from bequest.paxos.messages import Command, Message, ReplicaId
    from bequest.paxos.outputs import Output
    from bequest.paxos.peers import Peers

log = logging.getLogger("bequest.paxos")

_EPOCHS_KEPT = 8


class WasRemoved(Exception):
    """The others have voted this replica out: what it knows is of no use any more."""


class Driver:
    """Runs one machine. ``over`` is called once, when it cannot go on, with the reason.

    ``committed`` is called after each turn, when what it did is kept and before clients are answered.
    """

    def __init__(
        self,
        machine: Machine,
        ledger: Ledger,
        peers: Peers,
        over: Callable[[BaseException], None],
        committed: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._ledger = ledger
        self._peers = peers
        self._over = over
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._inputs = Inputs()
        self._is_due = False
        self._is_over = False
        self._has_begun = False
        self._timer: asyncio.TimerHandle | None = None
        self.epochs: dict[
            int, float
        ] = {}  # when the latest configurations began here, in seconds of the wall clock

    # --- inputs -----------------------------------------------------------------------------------------------------

    def hear(self, sender: ReplicaId, message: Message) -> None:
        """A message has come."""
        self._inputs.messages.append((sender, message))
        self._schedule()

    def submit(self, command: Command, done: Callable[[Reply | Refused], None]) -> None:
        """A client's command. ``done`` is called once, after a later turn, unless the replica dies before."""
        self._inputs.commands.append((done, command))
        self._schedule()

    def read(self, query: bytes, done: Callable[[Reply | Refused], None]) -> None:
        """A client's question; the rest as for `submit`."""
        self._inputs.queries.append((done, query))
        self._schedule()

    def connected(self, replica: ReplicaId) -> None:
        """There is a new connection to this replica."""
        self._inputs.connected.append(replica)
        self._schedule()

    def lose(self, replica: ReplicaId) -> None:
        """This replica's memory has failed."""
        self._inputs.lost.append(replica)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.turn)

    # --- turns ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Takes a first turn, unless something has led to one already."""
        if not self._has_begun:
            self.turn()

    def turn(self) -> None:
        """Hands over what has gathered, and the time."""
        self._is_due = False
        self._has_begun = True
        if self._is_over:
            return
        inputs, self._inputs = self._inputs, Inputs()
        try:
            outputs = take_turn(
                self._machine, self._ledger, inputs, time.monotonic(), time.time_ns() // 1_000_000
            )
            self._committed()
            self._carry_out(outputs)
            self._set_timer()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the replica ends of it
            self.stop()
            self._over(error)

    def _carry_out(self, outputs: list[Output]) -> None:
        peers = self._peers
        sites = self._machine.membership.everybody
        for output in outputs:
            match output:
                case Send(to, message):
                    peers.send(sites.get(to, ""), to, message)
                case SendToSite(site, message):
                    peers.send(site, 0, message)
                case Reply(done) | Refused(done):
                    assert callable(done), "a request is who is told"
                    done(output)
                case LeaderChanged(leader, ballot):
                    self._note("the leader is %s (ballot %d.%d)", leader or "unknown", *ballot)
                case MembershipChanged(membership):
                    self.epochs[membership.epoch] = time.time()
                    self.epochs.pop(membership.epoch - _EPOCHS_KEPT, None)
                    self._note(
                        "epoch %d: members %s, learners %s",
                        membership.epoch,
                        membership.members,
                        membership.learners,
                    )
                case Removed():
                    raise WasRemoved("this replica is not a member any more")
        peers.flush()

    def _note(self, text: str, *values: object) -> None:
        """For the log, in a moment: others wait for what is said to them in this turn."""
        self._loop.call_soon(partial(log.info, text, *values))

    def _set_timer(self) -> None:
        """For the machine's deadline. A timer that comes earlier is left: the turn that it brings sets the next."""
        deadline = self._machine.deadline
        if self._timer is not None:
            if self._loop.time() < self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self.turn)

    def stop(self) -> None:
        """Nothing is done any more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
