"""Functions whose effect happens once for each key (paper, section 3.1: Function-as-a-Service).

A function is an actor with one method: its state is a Struct, and beside it are the results that it has given, by
idempotency key. To look the key up, to run the body, and to write the result down are one transaction: so whoever
calls again, because a reply was lost, a process died, or to make sure, gets the recorded result, and the state has
changed once. What the body raises undoes it and is not recorded: the same key can be tried again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints, overload

import msgspec

from bequest.actors.actor import Actor
from bequest.actors.mail import pack
from bequest.actors.ref import ref
from bequest.errors import NotSendable
from bequest.limits import RESULTS_KEPT
from bequest.objects.log import Log
from bequest.objects.map import Map
from bequest.objects.struct import Struct

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.objects.heap import Heap

_INVOKE = "invoke"


class Function:
    """What `function` makes of a function. Called as it is, it is that function, for tests of it.

    ``actor`` is the class that runs it: ``bequest run-actor module:charge``, or ``bq.actors.run(charge.actor)``.
    """

    def __init__(self, body: Callable[..., Any], keep: int) -> None:
        functools.update_wrapper(self, body)
        self._body = body
        self._keep = keep
        self._state = _state_of(body)
        self.actor = _actor_of(self)

    def __call__(self, state: Struct, *arguments: Any) -> Any:
        """The plain function."""
        return self._body(state, *arguments)

    def open(self, heap: Heap, name: str | None = None) -> BoundFunction:
        """The function with its state in a heap of this process, found by its name or made."""
        return BoundFunction(self, heap, name or self._name)

    def ref(self, process: Process, name: str | None = None) -> FunctionRef:
        """The function where it runs as an actor, by that name or its own, called from this process."""
        return FunctionRef(self, process, name or self._name)

    @property
    def _name(self) -> str:
        return self._body.__name__

    def __repr__(self) -> str:
        return f"<bequest.Function {self._name}>"


class BoundFunction:
    """A function with its state: ``charge = charge.open(heap)``, then ``charge(5, key="order-17")``."""

    def __init__(self, function: Function, heap: Heap, name: str) -> None:
        self._function = function
        self._heap = heap
        self._state = function._state(heap, name)
        self._results = Map(heap, f"{name}/results", key=str)
        self._keys = Log(heap, f"{name}/keys")

    @property
    def state(self) -> Struct:
        """What the function has made of its state so far."""
        return self._state

    def __call__(self, *arguments: Any, key: str) -> Any:
        """Runs it, unless that key has a result: then that is returned, whatever the arguments are.

        Raises what the function raises, and NotSendable if its result cannot be recorded; then nothing has changed.
        """
        if not isinstance(key, str):
            raise TypeError(f"an idempotency key is a str, not {type(key).__name__}")
        recorded = self._results.get(key)
        if recorded is None:
            with self._heap.transaction():
                recorded = self._record(key, self._function(self._state, *arguments))
        return msgspec.msgpack.decode(recorded)

    def _record(self, key: str, result: Any) -> bytes:
        """Keeps it, and forgets the oldest beyond what is kept."""
        packed = pack(result)
        if packed.regions:
            raise NotSendable("the result of a function is recorded, and a region cannot be given out twice")
        self._results[key] = packed.data
        self._keys.append(key.encode())
        while len(self._keys) > self._function._keep:
            self._results.pop(self._keys[self._keys.first].decode(), None)
            self._keys.truncate(self._keys.first + 1)
        return packed.data

    def __repr__(self) -> str:
        return f"<{self._function!r} with {len(self._results)} results>"


class FunctionRef:
    """A function that runs elsewhere: ``charge.ref(me)(5, key="order-17")``."""

    def __init__(self, function: Function, process: Process, name: str) -> None:
        self._ref = ref(process, name)
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, key: str, timeout: float | None = None) -> Any:
        """Raises RemoteError if the function raises; CallTimeout, after which the same key can be called again."""
        return self._ref.call(_INVOKE, key, arguments, timeout=timeout)

    async def call_async(self, *arguments: Any, key: str, timeout: float | None = None) -> Any:
        """The same, for asyncio."""
        return await self._ref.call_async(_INVOKE, key, arguments, timeout=timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until it runs, as `Ref.wait`."""
        self._ref.wait(timeout)


@overload
def function(body: Callable[..., Any], /) -> Function: ...
@overload
def function(*, keep: int = RESULTS_KEPT) -> Callable[[Callable[..., Any]], Function]: ...
def function(
    body: Callable[..., Any] | None = None, /, *, keep: int = RESULTS_KEPT
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Makes a function one with state, whose effect happens once for each idempotency key.

    ::

        class Account(bq.Struct):
            balance: int = 0

        @bq.function
        def charge(account: Account, amount: int) -> int:
            account.balance -= amount
            return account.balance

    The first parameter is the state, and is annotated with its Struct. Results are what a message may be, without
    regions; those of the last ``keep`` keys are kept. Raises TypeError if the state is not annotated.
    """
    if keep < 1:
        raise ValueError(f"a function keeps at least one result, not {keep}")
    if body is None:
        return lambda body: Function(body, keep)
    return Function(body, keep)


def _state_of(body: Callable[..., Any]) -> type[Struct]:
    hints = get_type_hints(body)
    names = body.__code__.co_varnames[: body.__code__.co_argcount]
    kind = hints.get(names[0]) if names else None
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        raise TypeError(
            f"{body.__qualname__}: a function's first parameter is its state, annotated with a bequest.Struct"
        )
    return kind


def _actor_of(function: Function) -> type[Actor]:
    class Served(Actor):
        def setup(self) -> None:
            self._bound = function.open(self.heap)

        def invoke(self, key: str, arguments: list[Any]) -> Any:
            return self._bound(*arguments, key=key)

    Served.__name__ = Served.__qualname__ = function._name
    Served.__doc__ = function.__doc__
    return Served
