"""What Bequest needs of Dask distributed that is not its public face, all in one place.

Dask's plugins can see what happens, but some of what must be done here happens before they are asked: a worker's
death is told to them when its results have been given up. So a few methods of the scheduler and of workers are
wrapped. Each is looked up here, by a function that says what it is for; nothing else in this package reaches for a
name that distributed does not promise. `check` refuses a release outside of the range that was tested, and one in
which a name is missing or has other parameters, before anything is changed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

import distributed
import distributed.client
import distributed.worker
import psutil  # Dask's own dependency
from distributed.protocol.serialize import to_serialize
from distributed.shuffle._core import ShuffleRun, ShuffleSpec, barrier_key
from distributed.shuffle._merge import merge_unpack
from distributed.shuffle._rechunk import ArrayRechunkRun, rechunk_unpack
from distributed.shuffle._scheduler_plugin import ShuffleSchedulerPlugin
from distributed.shuffle._shuffle import DataFrameShuffleRun, shuffle_unpack
from distributed.shuffle._worker_plugin import _ShuffleRunManager
from distributed.utils_comm import scatter_to_workers
from packaging.version import Version

from bequest.errors import BequestError

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Client, Nanny, Scheduler, Worker
    from distributed.comm.core import Comm
    from distributed.scheduler import TaskState, WorkerState

VERSION = importlib.metadata.version("distributed")
OLDEST = "2026.1.0"  # tested with both
NEWEST = "2026.8"  # its first two numbers; a later patch of it is welcome

# The functions of tasks that make the outputs of shuffles, and which of their arguments says which one.
_OUTPUT_ARGUMENTS: dict[object, int] = {shuffle_unpack: 1, merge_unpack: 2, rechunk_unpack: 1}

Undo = Callable[[], object]
Ask = Callable[[Any, "str | None"], Awaitable[Any]]
Request = Callable[[Ask, Any, str], Awaitable[Any]]
Values = dict["Key", Any]
Give = Callable[[Values], Awaitable[dict[str, Any]]]
Scatter = Callable[[Give, Values, str], Awaitable[dict[str, Any]]]
Calculate = Callable[[ShuffleSpec[Any]], dict[Any, str]]

# What is wrapped or called, and the parameters that it must have.
_NEEDED: tuple[tuple[Callable[..., object], tuple[str, ...]], ...] = (
    (distributed.Scheduler.remove_worker, ("address", "stimulus_id", "expected", "close")),
    (distributed.Scheduler.add_keys, ("worker", "keys", "stimulus_id")),
    (distributed.Scheduler._reschedule, ("key", "worker", "stimulus_id")),
    (distributed.Scheduler.register_worker_plugin, ("comm", "plugin", "name", "idempotent")),
    (distributed.Worker.update_data, ("data", "stimulus_id")),
    (distributed.Worker.get_data, ("comm", "keys", "who", "serializers")),
    (distributed.worker.get_data_from_worker, ("rpc", "keys", "worker", "who")),
    (scatter_to_workers, ("workers", "data", "rpc")),
    (_ShuffleRunManager._refresh, ("shuffle_id", "key")),
    (_ShuffleRunManager.get_with_run_id, ("shuffle_id", "run_id")),
    (ShuffleSchedulerPlugin.barrier, ("id", "run_id", "consistent")),
    (ShuffleSchedulerPlugin._calculate_worker_for, ("spec",)),
    (ShuffleSchedulerPlugin._set_restriction, ("ts", "worker")),
    (ShuffleRun._read_from_disk, ("id",)),
    (DataFrameShuffleRun._shard_partition, ("data", "partition_id")),
    (DataFrameShuffleRun._get_output_partition, ("partition_id", "key")),
    (ArrayRechunkRun._shard_partition, ("data", "partition_id")),
    (ArrayRechunkRun._get_output_partition, ("partition_id", "key")),
    (distributed.worker._run_task, ("task", "data", "execution_state", "key")),
)


class UnsupportedDask(BequestError, ImportError):
    """This release of Dask distributed is not one that Bequest was tested with. Install one that is."""


def check(version: str = VERSION) -> None:
    """Raises `UnsupportedDask` unless all that is needed is there."""
    found = Version(version)
    if not Version(OLDEST) <= Version(found.base_version) or found.release[:2] > Version(NEWEST).release:
        raise UnsupportedDask(
            f"bequest.dask works with distributed {OLDEST} to {NEWEST}, this is {version}: install one of these, "
            "or a newer Bequest"
        )
    for function, parameters in _NEEDED:
        missing = [name for name in parameters if name not in inspect.signature(function).parameters]
        if missing:
            raise UnsupportedDask(
                f"distributed {version} has {function.__qualname__} without {', '.join(missing)}: this build of it "
                f"is not one that Bequest knows"
            )


def wrap(owner: Any, name: str, around: Callable[[Any], Any]) -> Undo:
    """Puts ``around(what was there)`` in the place of an attribute; the call that takes it away again."""
    before = getattr(owner, name)
    is_own = name in vars(owner)
    setattr(owner, name, around(before))

    def undo() -> None:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

    return undo


# --- the scheduler ---------------------------------------------------------------------------------------------------


def before_removal(scheduler: Scheduler, may: Callable[[WorkerState, bool], Awaitable[bool]]) -> None:
    """Has ``may(worker, expected)`` awaited before a worker is removed; if it says no, the worker stays for now.

    Plugins are told of a removal when the worker's results have been given up. The method is also among the
    scheduler's handlers, as it was when that was made.
    """
    remove_worker = scheduler.remove_worker

    async def ask_and_remove(
        address: str, *, stimulus_id: str, expected: bool = False, close: bool = True
    ) -> str:
        ws = scheduler.workers.get(scheduler.coerce_address(address))
        is_running = scheduler.status is distributed.Status.running
        if ws is not None and is_running and not await may(ws, expected):
            return "OK"
        return await remove_worker(address, stimulus_id=stimulus_id, expected=expected, close=close)

    scheduler.remove_worker = ask_and_remove  # type: ignore[method-assign,assignment]
    scheduler.handlers["unregister"] = ask_and_remove


def place_outputs(scheduler: Scheduler) -> None:
    """Has each output of a shuffle be made where it belongs from the start, and its workers be told in which order.

    Dask lets the task of an output run anywhere, which finds out that it belongs elsewhere and has itself sent there;
    by then the order is lost. Here the task is read, unless it is fused with others.
    """
    plugin: Any = scheduler.plugins["shuffle"]

    def around(calculate: Calculate) -> Calculate:
        def calculate_and_place(spec: ShuffleSpec[Any]) -> dict[Any, str]:
            worker_for = calculate(spec)
            turns: dict[Any, int] = {}
            for ts in sorted(
                scheduler.tasks[barrier_key(spec.id)].dependents, key=lambda ts: ts.priority or ()
            ):
                output = _output_of(ts)
                if output in worker_for:
                    turns.setdefault(output, len(turns))
                    plugin._set_restriction(ts, worker_for[output])
            return {
                output: worker_for[output]
                for output in sorted(worker_for, key=lambda output: turns.get(output, len(turns)))
            }

        return calculate_and_place

    wrap(plugin, "_calculate_worker_for", around)


def _output_of(ts: TaskState) -> Any:
    """Which output of a shuffle this task makes; None if that cannot be seen."""
    place = _OUTPUT_ARGUMENTS.get(getattr(ts.run_spec, "func", None))
    return None if place is None else ts.run_spec.args[place]  # type: ignore[union-attr]


def add_to_dashboard(scheduler: Scheduler, page: str) -> bool:
    """Names a page in the bar at the top of Dask's dashboard; False if there is none, since bokeh is not installed."""
    try:
        from distributed.dashboard.scheduler import template_variables
    except ImportError:
        return False
    pages = template_variables(scheduler)["pages"]
    if page not in pages:
        pages.append(page)
    return True


def set_aside(scheduler: Scheduler, ws: WorkerState) -> None:
    """Gives a worker that has died no more work, and its name free for another, but keeps it and what it has."""
    ws.status = distributed.Status.paused
    scheduler.running.discard(ws)
    scheduler.idle.pop(ws.address, None)
    scheduler.idle_task_count.discard(ws)
    scheduler.saturated.discard(ws)
    del scheduler.aliases[ws.name]
    ws.name = f"{ws.name} (died)"
    scheduler.aliases[ws.name] = ws.address


def running_on(scheduler: Scheduler, key: Key, worker: str) -> TaskState | None:
    """The task, if that worker is to run it."""
    ts = scheduler.tasks.get(key)
    if ts is None or ts.processing_on is None or ts.processing_on.address != worker:
        return None
    return ts


def has_free_thread(scheduler: Scheduler, worker: str) -> bool:
    """Whether a task that is given to this worker is begun at once."""
    ws = scheduler.workers.get(worker)
    return ws is not None and ws in scheduler.running and len(ws.processing) < ws.nthreads


def restrict(scheduler: Scheduler, key: Key, workers: set[str] | None) -> set[str] | None:
    """Has a task run on these workers only (None: on any); returns what was said before."""
    ts = scheduler.tasks.get(key)
    if ts is None:
        return None
    before = ts.worker_restrictions
    ts.worker_restrictions = workers
    return before


def move_task(scheduler: Scheduler, key: Key, source: str, target: str) -> bool:
    """Has a task that one worker runs run by another; False, and nothing done, if it is not run there any more."""
    if running_on(scheduler, key, source) is None:
        return False
    before = restrict(scheduler, key, {target})
    scheduler._reschedule(key, source, stimulus_id="bequest-straggler")
    restrict(scheduler, key, before)
    return True


# --- workers ---------------------------------------------------------------------------------------------------------


def replace_data(worker: Worker, data: MutableMapping[Key, object]) -> None:
    """Has the worker keep its results in another mapping: both places where it looks for one."""
    worker.memory_manager.data = data
    worker.state.data = data


def count_memory(worker: Worker, kept: Callable[[], int]) -> Undo:
    """Has the worker's memory be what is its own, and what it keeps in the rack.

    The kernel counts for each process all shared pages that it has ever touched: what it reads of others, and what it
    has freed. By that, workers would pause and spill for memory that is not theirs.
    """

    def around(_: Any) -> Any:
        def own_and_kept() -> int:
            info = worker.monitor.proc.memory_info()
            return int(info.rss - info.shared + kept())

        return own_and_kept

    return wrap(worker.monitor, "get_process_memory", around)


def spare_readers(nanny: Nanny) -> Undo:
    """Has the nanny not end a worker for the rack memory that it has touched: the rack has a limit of its own."""
    monitor = nanny.periodic_callbacks.get("memory_monitor")
    if monitor is None:
        return lambda: None

    def around(look: Callable[[], None]) -> Any:
        def look_unless_it_is_shared() -> None:
            manager = nanny.memory_manager
            with contextlib.suppress(psutil.Error):  # it is just ending, which the nanny sees
                info = psutil.Process(nanny.pid).memory_info()
                allowed = (manager.memory_limit or 0) * manager.memory_terminate_fraction
                if info.rss - info.shared <= allowed:
                    return
            look()

        return look_unless_it_is_shared

    return wrap(monitor, "callback", around)


def after_each_task(worker: Worker, then: Callable[[Key, object, int], object]) -> Undo:
    """Has ``then(key, result, its size in bytes)`` return what each task's result shall be, in the task's thread.

    A plugin hears of it in the worker's own thread, which a large copy would hold up. Tasks of other kinds of
    executors, and actors, are left alone.
    """

    def around(run_task: Any) -> Any:
        def run_and_then(task: Any, data: Any, execution_state: Any, key: Key, *rest: Any) -> Any:
            answer = run_task(task, data, execution_state, key, *rest)
            if (
                execution_state["worker"] is worker
                and answer["op"] == "task-finished"
                and key not in worker.state.actors
            ):
                answer["result"] = then(key, answer["result"], answer["nbytes"])
            return answer

        return run_and_then

    return wrap(distributed.worker, "_run_task", around)


def around_requests(around: Request) -> Undo:
    """Has ``around(ask, keys, worker's address)`` make this process's requests for the data of workers.

    ``ask(keys, who)`` is Dask's own; ``who`` is what the other is told about who asks, None for the truth.
    """

    def make(get_data_from_worker: Any) -> Any:
        async def request(rpc: Any, keys: Any, worker: str, *, who: str | None = None, **more: Any) -> Any:
            def ask(wanted: Any, told: str | None) -> Awaitable[Any]:
                as_who = who if told is None else told
                answer: Awaitable[Any] = get_data_from_worker(rpc, wanted, worker, who=as_who, **more)
                return answer

            joined = _joined.get(id(rpc))
            return await (around if joined is None else joined.gather)(ask, keys, worker)

        return request

    return wrap(distributed.worker, "get_data_from_worker", make)


def around_answers(worker: Worker, replace: Callable[[str | None, dict[Key, Any]], dict[Key, Any]]) -> Undo:
    """Has ``replace(who asks, values)`` tell what the worker sends when it is asked for data."""
    get_data = worker.handlers["get_data"]

    async def answer(comm: Comm, keys: Any, who: str | None = None, serializers: Any = None) -> Any:
        return await get_data(_Replacing(comm, who, replace), keys=keys, who=who, serializers=serializers)

    worker.handlers["get_data"] = answer
    return lambda: worker.handlers.update(get_data=get_data)


class _Replacing:
    """A connection to somebody who asks for data, in which the data is replaced as it is written."""

    def __init__(
        self, comm: Comm, who: str | None, replace: Callable[[str | None, dict[Key, Any]], dict[Key, Any]]
    ) -> None:
        self._comm = comm
        self._who = who
        self._replace = replace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    async def write(self, message: dict[str, Any], serializers: Any = None) -> Any:
        message["data"] = self._replace(self._who, message["data"])
        return await self._comm.write(message, serializers=serializers)  # type: ignore[no-untyped-call]


def when_another_is_removed(worker: Worker, then: Callable[[str], None]) -> Undo:
    """Has ``then(address)`` called when the scheduler tells the worker that another one has been removed."""
    handle = worker.stream_handlers["remove-worker"]

    def handle_and_tell(*, worker: str, **more: Any) -> Any:
        then(worker)
        return handle(worker=worker, **more)

    worker.stream_handlers["remove-worker"] = handle_and_tell
    return lambda: worker.stream_handlers.update({"remove-worker": handle})


def around_gifts(worker: Worker, open_all: Callable[[Values], list[Key]]) -> Undo:
    """Has ``open_all`` change what clients scatter to the worker, before it is taken in, and tell what it took out."""
    update_data = worker.handlers["update_data"]

    def update(data: Values, **more: Any) -> dict[str, Any]:
        left = open_all(data)
        return {**update_data(data=data, **more), "left": left}

    worker.handlers["update_data"] = update
    return lambda: worker.handlers.update(update_data=update_data)


# --- clients ---------------------------------------------------------------------------------------------------------


class Joined(NamedTuple):
    """What is done in place of a client's own requests to workers.

    ``gather(ask, keys, worker's address)`` is as what `around_requests` is given. ``scatter(give, values, worker's
    address)`` sends a worker what it shall have; ``give(values)`` is Dask's own.
    """

    gather: Request
    scatter: Scatter


_joined: dict[int, Joined] = {}  # by the identity of their connections, which live as long


def around_client(client: Client, joined: Joined) -> Undo:
    """Has this done for one client; undone in any order with those of others."""

    async def ask_only(ask: Ask, keys: Any, worker: str) -> Any:
        return await ask(keys, None)

    if not _joined:
        _undo_clients.append(around_requests(ask_only))
        _undo_clients.append(wrap(distributed.client, "scatter_to_workers", _scattering))
    _joined[id(client.rpc)] = joined

    def undo() -> None:
        _joined.pop(id(client.rpc), None)
        while not _joined and _undo_clients:
            _undo_clients.pop()()

    return undo


_undo_clients: list[Undo] = []  # what is changed as long as some client has joined


def _scattering(scatter: Any) -> Any:
    async def scatter_as_joined(workers: Any, data: Any, rpc: Any) -> Any:
        joined = _joined.get(id(rpc))
        if joined is None:
            return await scatter(workers, data, rpc)
        return await scatter(workers, data, lambda worker: _Giving(rpc(worker), worker, joined.scatter))

    return scatter_as_joined


class _Giving:
    """A client's connection to a worker, by which it gives it values."""

    def __init__(self, rpc: Any, worker: str, scatter: Scatter) -> None:
        self._rpc = rpc
        self._worker = worker
        self._scatter = scatter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rpc, name)

    async def update_data(self, data: dict[Key, Any]) -> dict[str, Any]:
        async def give(values: Values) -> dict[str, Any]:
            wrapped = {key: to_serialize(value) for key, value in values.items()}  # type: ignore[no-untyped-call]
            answer: dict[str, Any] = await self._rpc.update_data(data=wrapped)
            return answer

        return await self._scatter(give, {key: wrapped.data for key, wrapped in data.items()}, self._worker)
