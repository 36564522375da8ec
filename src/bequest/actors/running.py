"""Running an actor in this process, until it is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bequest.actors.actor import Actor
from bequest.actors.becoming import Candidate, attach
from bequest.ids import check_name
from bequest.memory.rack import connect

if TYPE_CHECKING:
    from types import FrameType

    from bequest.actors.host import Host
    from bequest.memory.group import Group
    from bequest.memory.process import Process
    from bequest.memory.rack import Rack

_ENDING = (signal.SIGINT, signal.SIGTERM)


def _nothing() -> None:
    """Nobody wants to be told."""


class _Stop:
    """Told by a signal, passed on to whatever runs."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.host: Host | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_wanted = True
        if self.host is not None:
            self.host.stop()


def run(
    actor: type[Actor],
    *,
    name: str | None = None,
    rack: Rack | None = None,
    group: Group | bytes | None = None,
    capability: bytes | None = None,
    ready: Callable[[], object] | None = None,
) -> None:
    """Runs an actor in this process until SIGINT or SIGTERM: it is made, or inherited if it has died.

    ``name`` defaults to the class's, in lower case. ``rack`` and ``group`` are as in `Rack.attach`, ``capability`` what
    inheriting needs in that group. ``ready`` is called when it takes messages. At the end its memory is freed, as that
    of every process which detaches. Raises NameTaken if it runs already.
    """
    _run(
        actor,
        name,
        rack,
        group,
        1,
        lambda me, called, stop: _become(me, actor, called, capability, ready or _nothing),
    )


def stand_by(
    actor: type[Actor],
    *,
    name: str | None = None,
    rack: Rack | None = None,
    group: Group | bytes | None = None,
    capability: bytes | None = None,
    ready: Callable[[], object] | None = None,
    inherited: Callable[[], object] | None = None,
    suspected: Callable[[], object] | None = None,
) -> None:
    """Stands by for an actor in this process; when that dies, inherits it and runs it. The rest is as in `run`.

    Returns when the actor has ended in good order. ``ready`` is called once it stands by, ``inherited`` when it has
    become the actor, ``suspected`` in another thread when the rack monitor finds that the actor hangs. It is inherited
    when it has died, so whoever wants that must end it: what waits in its inbox cannot be had before.
    """

    def wait(me: Process, called: str, stop: _Stop) -> Host | None:
        candidate = Candidate(me, actor, called, capability)
        host = candidate.stand_by(ready or _nothing, lambda: stop.is_wanted, suspected)
        if host is not None:
            (inherited or _nothing)()
        return host

    _run(actor, name, rack, group, 2, wait)


def _become(
    me: Process, actor: type[Actor], name: str, capability: bytes | None, ready: Callable[[], object]
) -> Host:
    host = Candidate(me, actor, name, capability).become()
    ready()
    return host


def _run(
    actor: type[Actor],
    name: str | None,
    rack: Rack | None,
    group: Group | bytes | None,
    first: int,
    arrive: Callable[[Process, str, _Stop], Host | None],
) -> None:
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        raise TypeError(f"an actor is a subclass of bequest.Actor, not {actor!r}")
    called = check_name(actor.__name__.lower() if name is None else name, "actor's name")
    stop = _Stop()
    former = _on_signals(stop)
    try:
        with attach(rack or connect(), called, group, first) as me:
            stop.host = arrive(me, called, stop)
            if stop.host is not None:
                if stop.is_wanted:
                    stop.host.stop()
                stop.host.run()
                stop.host.close()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _on_signals(stop: _Stop) -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, stop) for number in _ENDING}
