"""A peer whose B is a plain process of ours: spawned, and steered over a pipe that is never used while timing."""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from .peer import Peer


class Receiver(ABC):
    """Process B. `channel` is whatever the sender's `make_channel` returned."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def prepare(self, nbytes: int, details: Any) -> None:  # noqa: B027 - optional
        """Called before the first hand-off of a size, with what the sender passed to `announce`."""

    @abstractmethod
    def receive(self) -> None:
        """Receives one buffer, reads it, answers."""

    def close(self) -> None:  # noqa: B027 - optional
        """Lets go of everything."""


def serve(receiver_class: type[Receiver], channel: Any, orders: Connection) -> None:
    """The main loop of B: sleeps until A announces hand-offs, or closes the pipe."""
    receiver = receiver_class(channel)
    try:
        while True:
            order, argument = orders.recv()
            if order == "prepare":
                receiver.prepare(*argument)
                orders.send("ready")
            elif order == "expect":
                orders.send("ready")
                for _ in range(argument):
                    receiver.receive()
    except EOFError:
        receiver.close()


class PairPeer(Peer):
    """The half in A: starts B and gives it orders."""

    receiver: ClassVar[type[Receiver]]

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel = self.make_channel()
        self.orders, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(self.receiver, self.channel_of_b(), theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def make_channel(self) -> Any:
        """What connects A and B; made before B starts, since some channels can only be inherited."""
        return None

    def channel_of_b(self) -> Any:
        """The end of the channel that B gets."""
        return self.channel

    def announce(self, nbytes: int, details: Any = None) -> None:
        """Has B prepare for a size; returns when it is ready."""
        self._order("prepare", (nbytes, details))

    def expect(self, count: int) -> None:
        self._order("expect", count)

    def _order(self, order: str, argument: Any) -> None:
        self.orders.send((order, argument))
        self.orders.recv()

    def close(self) -> None:
        self.orders.close()
        self.process.join(timeout=10)
