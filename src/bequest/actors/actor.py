"""The class that users derive their actors from, and what can be read off such a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, get_type_hints

from bequest.actors.ref import Ref
from bequest.ids import check_name
from bequest.memory.region import Region
from bequest.objects.struct import Struct

if TYPE_CHECKING:
    from bequest.actors.host import Host
    from bequest.memory.process import Process
    from bequest.objects.heap import Heap

Handlers = dict[str, Callable[..., Any]]


class Actor:
    """State that survives its process, and methods that handle the messages which change it.

    ::

        class Count(bq.Struct):
            total: int = 0

        class Counter(bq.Actor):
            state: Count

            def add(self, number: int) -> None:
                self.state.total += number

            async def total(self) -> int:
                return self.state.total

    Every public method is a handler, plain or ``async``. One event, the handling of one message, is one transaction:
    the message is taken, the state changed, and what is sent goes out, all or nothing, whenever the process dies. If
    the handler raises, nothing has changed but that the message is gone (see `Ref.dead_letters`). Events happen one
    after the other. What is kept in attributes of one's own ends with the process.

    ``state`` is the Struct, ``heap`` the heap that it is in, with room for a `Map` or `Log` of one's own; ``name`` the
    actor's name, ``me`` the process that it runs in now, and ``regions`` the regions that it keeps, by name.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.state: Any = host.state
        self.name: str = host.name
        self.heap: Heap = host.heap
        self.me: Process = host.process
        self.regions = KeptRegions(host)

    def setup(self) -> None:
        """Called in each process that becomes this actor, before its first event: for what is not state."""

    def ref(self, name: str) -> Ref:
        """Another actor. What is sent to it within an event goes when the event is done.

        It may be called, too, within an event: ``await self.ref("prices").call_async("of", item)``. That happens at
        once, while this event waits. If this actor dies meanwhile, its event is handled again, and the same call gets
        the same reply.
        """
        return Ref(self._host, check_name(name, "actor's name"))


class KeptRegions(MutableMapping[str, Region]):
    """The regions that an actor keeps beyond an event: ``self.regions["input"] = region``. Changes belong to the event.

    A region that came with a message and is neither kept nor sent on is freed at the end of its event; so is one that
    is deleted here.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> Region:
        region = self._host.kept_region(name)
        if region is None:
            raise KeyError(name)
        return region

    def __setitem__(self, name: str, region: Region) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a region is kept under a str, not {type(name).__name__}")
        if not isinstance(region, Region):
            raise TypeError(f"only a region can be kept here, not {type(region).__name__}")
        self._host.keep_region(name, region)

    def __delitem__(self, name: str) -> None:
        self[name]
        self._host.unkeep_region(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._host.books.all_kept())

    def __len__(self) -> int:
        return len(self._host.books.all_kept())


def state_class(actor: type[Actor]) -> type[Struct] | None:
    """What ``state`` is annotated with; None if the class has none. Raises TypeError if that is no Struct."""
    try:
        kind = get_type_hints(actor).get("state", Any)
    except NameError as error:
        raise TypeError(f"the annotations of {actor.__qualname__} cannot be read: {error}") from None
    if kind is Any:
        return None
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        raise TypeError(f"{actor.__qualname__}.state is to be annotated with a bequest.Struct, not {kind!r}")
    return kind


def handlers(actor: Actor) -> tuple[Handlers, Handlers]:
    """Its public methods by name: the plain ones, and those that are ``async``."""
    plain: Handlers = {}
    asynchronous: Handlers = {}
    for name in dir(type(actor)):
        if name.startswith("_") or hasattr(Actor, name):
            continue
        method = getattr(actor, name)
        if callable(method):
            (asynchronous if inspect.iscoroutinefunction(method) else plain)[name] = method
    return plain, asynchronous
