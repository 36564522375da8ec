"""Tasks that go on where they stood: when their worker dies, or is much slower than others (paper, section 5).

    @bequest.dask.resumable
    def total(progress, paths):
        for path in progress(paths):
            progress["sum"] = progress.get("sum", 0) + work(path)
        return progress["sum"]

    client.submit(total, paths)

Theory of operation. What the task keeps, and how far it has come, lie in one crash-consistent heap in rack memory.
A *step*, what is done for one item, is one transaction of it: its end is the commit point, at which state and cursor
move together. Whoever runs the task next has the heap (`half_done`), and in it the state as of the last whole step.
Whoever has lost the heap cannot end another step, nor the task: its next word to the heap is refused, and its run is
given up.

Without a rack the state lies in a dictionary, and the task begins at the beginning.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

import numpy
from distributed import Reschedule, get_worker
from distributed.protocol.pickle import dumps

from bequest.errors import MemoryLost
from bequest.objects.array import Array
from bequest.objects.map import Map
from bequest.objects.struct import Struct

if TYPE_CHECKING:
    import numpy.typing as npt

    from bequest.dask.half_done import HalfDone
    from bequest.objects.heap import Heap, Transaction

ROOM_BYTES = 512 << 10  # for one task's state, unless it asks for more

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Cursor(Struct):
    """How far a task has come: loops that are over, and steps of the one that is not."""

    loop: int
    step: int
    steps: int  # of all loops


class Progress(MutableMapping[str, Any]):
    """What a resumable task is given first: its cursor, and its state.

    ``for item in progress(items):`` goes over the items that have not been done. The body is a step: what it changes
    of the state counts when it ends, or not at all. A task may have several such loops, one after another, always the
    same ones; those that are over are passed by.

    ``progress[name]`` is a value of the state: anything that can be pickled. What comes out is a copy. ``resumed``
    tells whether an earlier run has left something, ``steps`` how many were done in all.
    """

    def __init__(self, heap: Heap | None = None) -> None:
        self._heap = heap
        self._values: dict[str, bytes] | Map[str, bytes] = (
            {} if heap is None else Map(heap, "values", key=str)
        )
        self._cursor: Any = _Plain() if heap is None else Cursor(heap, "cursor")
        self._arrays: dict[str, PlainArray] = {}
        self._loops = 0  # begun in this run
        self._step: Transaction | None = None
        self._is_stepping = False
        self._is_iterating = False
        self.steps: int = self._cursor.steps
        self.resumed = self.steps > 0 or len(self._values) > 0

    # --- the cursor --------------------------------------------------------------------------------------------------

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """The items that are left. They must come in the same order each time; of a sequence, none is made twice."""
        if self._is_iterating:
            raise RuntimeError(
                "a step is the body of one loop over progress(…): it cannot have another in it"
            )
        self._end_step()  # that was left by break
        loop, self._loops = self._loops, self._loops + 1
        return self._go(items, loop)

    def _go(self, items: Iterable[T], loop: int) -> Iterator[T]:
        cursor = self._cursor
        if loop < cursor.loop:
            return
        if loop > cursor.loop:  # that one was left by break
            self._set(loop, 0)
        self._is_iterating = True
        try:
            for item in _rest(items, cursor.step):
                self._begin_step()
                yield item
                self._end_step()
        finally:
            self._is_iterating = False
        self._set(loop + 1, 0)

    def _set(self, loop: int, step: int) -> None:
        with contextlib.nullcontext() if self._heap is None else self._heap.transaction():
            self._cursor.loop = loop
            self._cursor.step = step

    def _begin_step(self) -> None:
        self._is_stepping = True
        if self._heap is not None:
            self._step = self._heap.transaction()
            self._step.__enter__()

    def _end_step(self) -> None:
        if not self._is_stepping:
            return
        self._is_stepping = False
        self._cursor.step += 1
        self._cursor.steps += 1
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)
        self.steps += 1

    def finish(self) -> None:
        """Ends a step that was left by break, and makes sure that this run has the state still. Raises `MemoryLost`."""
        self._end_step()
        self._set(self._loops, 0)

    def undo(self, error: BaseException) -> None:
        """Takes back what the step under way has changed."""
        self._is_stepping = False
        step, self._step = self._step, None
        if step is not None:
            with contextlib.suppress(MemoryLost):  # then there is nothing to be taken back
                step.__exit__(type(error), error, error.__traceback__)

    # --- the state ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return pickle.loads(self._values[name])

    def __setitem__(self, name: str, value: object) -> None:
        self._values[name] = dumps(value)  # type: ignore[no-untyped-call]

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def array(self, name: str, shape: int | Sequence[int], dtype: npt.DTypeLike = "f8") -> Array | PlainArray:
        """An array of the state, at first all zeroes: read in place, changed by assignment to a part of it.

        On a rack it is an `Array` in the heap; without one, a `PlainArray`, which does as much of the same.
        """
        if self._heap is not None:
            return Array(self._heap, name, dtype=dtype, shape=shape)
        if name not in self._arrays:
            self._arrays[name] = PlainArray(shape, dtype)
        return self._arrays[name]

    def __repr__(self) -> str:
        return f"<bequest.dask.Progress: {self.steps} steps, {', '.join(self) or 'no values'}>"


class PlainArray:
    """What `Progress.array` gives where there is no rack: ``array``, its parts, assignment, and `change`."""

    def __init__(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> None:
        self._whole = numpy.zeros(shape, dtype)
        self.array = self._whole.view()
        self.array.flags.writeable = False

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._whole[key] = value

    def __len__(self) -> int:
        return len(self._whole)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Any:
        return numpy.array(self.array, dtype, copy=bool(copy))

    @contextlib.contextmanager
    def change(self, key: Any = ...) -> Iterator[Any]:
        """A copy of a part, to be written to in a with statement, which ends with assigning it."""
        part = self.array[key].copy()
        yield part
        self[key] = part


class _Plain:
    loop = 0
    step = 0
    steps = 0


def _rest(items: Iterable[T], done: int) -> Iterable[T]:
    """The items from there on: those before are not looked at, if they have numbers."""
    if isinstance(items, Sequence) or (isinstance(items, Sized) and isinstance(items, numpy.ndarray)):
        return (items[index] for index in range(done, len(items)))
    return itertools.islice(items, done, None)


# --- the decorator -----------------------------------------------------------------------------------------------


@overload
def resumable(function: Callable[Concatenate[Progress, P], R], /) -> Callable[P, R]: ...
@overload
def resumable(*, nbytes: int) -> Callable[[Callable[Concatenate[Progress, P], R]], Callable[P, R]]: ...
def resumable(function: Any = None, /, *, nbytes: int = ROOM_BYTES) -> Any:
    """Makes a function one whose task goes on where it stood; it is given a `Progress` before its other arguments.

    ``nbytes`` is the room in rack memory that its state may take, in all; what does not fit raises `HeapFull`. When
    its worker dies or is a straggler, another run of the task, on a worker of the same rack, has the state as of the
    last whole step. What is outside of a loop over ``progress(…)`` is done in each run. Anywhere but in a task of a
    worker in a rack it is an ordinary function. Raises TypeError for a coroutine function.
    """
    if function is None:
        return functools.partial(_decorated, nbytes=nbytes)
    return _decorated(function, nbytes=nbytes)


def _decorated(function: Callable[..., R], *, nbytes: int) -> Callable[..., R]:
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__qualname__} is not a plain function: only such a one can be resumable")
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        desk = _desk()
        if desk is None:
            return function(Progress(), *args, **kwargs)
        with _fenced(), desk.begin(get_worker().get_current_task(), name, nbytes) as progress:
            try:
                result = function(progress, *args, **kwargs)
                progress.finish()
            except BaseException as error:
                progress.undo(error)
                raise
            return result

    return run


@contextlib.contextmanager
def _fenced() -> Iterator[None]:
    """Gives the run up whose state was lost: the scheduler has it run elsewhere, or did so already."""
    try:
        yield
    except MemoryLost as lost:
        raise Reschedule(str(lost)) from lost


def _desk() -> HalfDone | None:
    """Of the worker that runs this task, if it is in a rack."""
    from bequest.dask.rack_worker import here  # it has a desk, which makes Progress

    place = here()
    if place is None:
        return None
    try:
        get_worker()
    except ValueError:  # not in a task
        return None
    return place.half_done
