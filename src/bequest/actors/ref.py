"""A reference to an actor: how it is sent messages and called, from a plain program and from another actor."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from bequest.actors.books import DeadLetter
from bequest.errors import UnknownActor
from bequest.ids import check_name

if TYPE_CHECKING:
    from bequest.actors.mail import Address
    from bequest.memory.process import Process

_POLL = 0.005  # seconds between looks for an actor that is still starting


class Sender(Protocol):
    """A client, or an actor. Each method is that of `Ref`."""

    def send(self, to: str, method: str, arguments: tuple[object, ...]) -> None:
        """Writes a message."""

    def call(self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None) -> Any:
        """Waits for a reply."""

    async def call_async(
        self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None
    ) -> Any:
        """Waits for a reply, for asyncio."""

    def flush(self, to: str, timeout: float | None) -> None:
        """Waits for receipts."""

    def find_actor(self, name: str) -> Address | None:
        """Where it is now."""


class Ref:
    """An actor by its ``name``, from `bequest.actors.ref` or, within an actor, `Actor.ref`. It need not run yet.

    It stays good when the actor dies and its standby goes on: nobody who calls notices more than a pause.
    """

    def __init__(self, sender: Sender, name: str) -> None:
        self._sender = sender
        self.name = name

    def send(self, method: str, *arguments: object) -> None:
        """Has the actor handle a message: ``counter.send("add", 1)``. Does not wait for that; see `flush`.

        Messages of one sender are handled in their order, each exactly once. Arguments are None, bool, int of 64 bits,
        float, str, bytes, datetime, lists, tuples (which arrive as lists), dicts, and regions, which change hands.
        Sent by an actor, it goes when its event is done, and not at all if that fails.

        Raises NotSendable, and UnknownActor if there is no such actor; BufferError while a view of a region lives.
        """
        self._sender.send(self.name, method, arguments)

    def call(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        """Has it handle a message, and returns what its handler returns: ``counter.call("total", timeout=1)``.

        Raises RemoteError if the handler raises, UnknownMethod if there is none of that name, and CallTimeout after
        ``timeout`` seconds (None: waits for ever); then it may still be handled, once. And what `send` raises.
        """
        return self._sender.call(self.name, method, arguments, timeout)

    async def call_async(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        """`call`, for asyncio."""
        return await self._sender.call_async(self.name, method, arguments, timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything this process has sent it has been handled. Raises CallTimeout, UnknownActor.

        A process that detaches does this by itself, for at most five seconds; one that is killed does not.
        """
        self._sender.flush(self.name, timeout)

    def dead_letters(self, timeout: float | None = None) -> list[DeadLetter]:
        """The messages that its handlers have failed over, oldest first, at most the last 1000."""
        return [DeadLetter(*letter) for letter in self.call(".dead_letters", timeout=timeout)]

    def wait(self, timeout: float | None = None) -> None:
        """Waits until it runs. Raises UnknownActor if it does not within ``timeout`` seconds (None: for ever)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                if self._sender.find_actor(self.name) is not None:
                    return
            except UnknownActor:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL)

    def __repr__(self) -> str:
        return f"<bequest.actors.Ref to {self.name!r}>"


def ref(process: Process, name: str) -> Ref:
    """A reference to the actor of that name in the process's rack and group: ``bq.actors.ref(me, "counter")``."""
    from bequest.actors.client import client_of

    return Ref(client_of(process), check_name(name, "actor's name"))
