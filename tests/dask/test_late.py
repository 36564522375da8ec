"""What comes too late, or twice, changes nothing: the looks before each act, which clusters that go well never need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Reschedule, Status
from distributed.shuffle._core import ShuffleRun

import actors
import bequest as bq
import steal_users
from bequest.dask import compat
from bequest.dask.half_done import HalfDone, Run
from bequest.dask.post import FENCE, Post
from bequest.dask.recovery import Estates, Heir, Member
from bequest.dask.resumable import ROOM_BYTES
from bequest.dask.shards import LARGE_CHUNK_BYTES, Chunk, Strips, tag_of
from bequest.dask.shuffle import RackRun, Shuffles
from bequest.dask.stragglers import Stragglers
from bequest.errors import MemoryLost
from bequest.objects.heap import Heap
from racks import Yard

# --- resumable tasks -------------------------------------------------------------------------------------------------


def fresh_run(me: bq.Process) -> Run:
    region = me.alloc(ROOM_BYTES)
    Heap.create(region, grow=False).close()
    return Run(region)


def test_a_run_that_is_robbed_after_its_last_step_cannot_end(yard: Yard, me: bq.Process) -> None:
    run = fresh_run(me)
    for _ in run.progress(range(3)):
        pass
    how, nbytes = yard.actor("thief").do(steal_users.steal, "me")
    assert nbytes >= ROOM_BYTES, how
    with pytest.raises(MemoryLost):
        run.progress.finish()


def desk_with(run: object) -> HalfDone:
    desk = object.__new__(HalfDone)
    desk._lock = threading.Lock()
    desk._runs = {"task": {"function": run}}  # type: ignore[dict-item]
    desk._kept = {}
    return desk


@pytest.mark.parametrize("finish", ["memory", "released", "rescheduled"])
def test_a_run_is_not_robbed_of_its_progress_by_its_own_worker(finish: str) -> None:
    freed: list[bool] = []
    run = SimpleNamespace(is_over=False, free=lambda: freed.append(True))
    desk = desk_with(run)
    desk.on_transition("task", finish)  # of the task, whose old run is still in its function
    assert not freed
    run.is_over = True
    desk.on_transition("task", "executing")
    assert not freed
    desk.on_transition("task", finish)
    assert freed == [True]
    assert not desk._runs


def test_only_the_worker_that_was_meant_is_robbed() -> None:
    stolen: list[tuple[str, list[str]]] = []

    def steal(victim: str, only: list[str]) -> list[Any]:
        stolen.append((victim, only))
        return [SimpleNamespace()]

    desk = desk_with(None)
    names = [SimpleNamespace(owner=owner, path=f"/{owner}") for owner in ("third", "victim")]
    desk._root = "/root"
    desk._process = SimpleNamespace(list=lambda _: names, steal=steal)  # type: ignore[assignment]
    assert asyncio.run(desk.take_over("task", "victim"))
    assert stolen == [("victim", ["/victim"])]
    names.pop()
    assert not asyncio.run(desk.take_over("task", "victim"))  # it has ended


# --- the scheduler ---------------------------------------------------------------------------------------------------


class Books:
    """Of a scheduler that has two workers and a task, as far as they are looked at."""

    def __init__(self, processing_on: str | None) -> None:
        worker = None if processing_on is None else SimpleNamespace(address=processing_on)
        self.task = SimpleNamespace(
            key="task", processing_on=worker, worker_restrictions=None, prefix=SimpleNamespace(name="task")
        )
        self.tasks = {"task": self.task}
        self.workers = dict.fromkeys(("slow", "idle"))
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.restricted_to: list[set[str] | None] = []
        self.told: list[tuple[str, str]] = []

    def _reschedule(self, key: str, worker: str, stimulus_id: str) -> None:
        self.restricted_to.append(self.task.worker_restrictions)

    def rpc(self, address: str) -> Any:
        async def bequest_take_over(key: str, victim: str) -> bool:
            self.told.append((address, f"take from {victim}"))
            return True

        async def bequest_drop(key: str) -> None:
            self.told.append((address, "drop"))

        return SimpleNamespace(bequest_take_over=bequest_take_over, bequest_drop=bequest_drop)


@pytest.mark.parametrize("runs_on", ["slow", "idle", None])
def test_a_task_is_moved_from_where_it_runs_and_nowhere_else(runs_on: str | None) -> None:
    books: Any = Books(runs_on)
    assert compat.move_task(books, "task", "slow", "idle") is (runs_on == "slow")
    assert books.restricted_to == ([{"idle"}] if runs_on == "slow" else [])
    assert books.task.worker_restrictions is None
    assert not compat.move_task(books, "unheard of", "slow", "idle")


MEMBERS = {"slow": Member("rack", "slow's"), "idle": Member("rack", "idle's")}


async def moved(books: Any) -> Stragglers:
    stragglers = Stragglers(books, dict(MEMBERS))
    stragglers.pace.report("task", "task", "slow", 3, 0.0)
    stragglers._moving["task"] = "idle", asyncio.ensure_future(asyncio.sleep(0))
    await stragglers._move("task", "slow", "idle")
    return stragglers


def test_what_was_taken_for_a_task_that_has_gone_is_dropped() -> None:
    async def scenario() -> None:
        books = Books("slow")
        books.tasks.clear()
        stragglers = await moved(books)
        assert not stragglers._keepers
        await asyncio.gather(*stragglers._dropping)
        assert books.told == [("idle", "take from slow's"), ("idle", "drop")]
        assert stragglers.moves == 0

    asyncio.run(scenario())


def test_who_keeps_the_progress_of_a_task_drops_it_when_the_task_has_ended_elsewhere() -> None:
    async def scenario() -> None:
        books = Books("slow")
        stragglers = await moved(books)
        assert stragglers.moves == 1
        assert stragglers.half_done_by(SimpleNamespace(address="idle", processing=())) == ["task"]  # type: ignore[arg-type]
        stragglers.on_transition("task", "waiting", "processing")
        assert stragglers._keepers == {"task": "idle"}
        stragglers.on_transition("task", "processing", "memory")
        await asyncio.gather(*stragglers._dropping)
        assert books.told[-1] == ("idle", "drop")

    asyncio.run(scenario())


def test_a_worker_that_does_not_run_the_task_any_more_tells_nothing_about_it() -> None:
    async def scenario() -> None:
        stragglers = Stragglers(Books("idle"), dict(MEMBERS))  # type: ignore[arg-type]
        await stragglers._progress("slow", [("task", 5)])
        assert not stragglers.pace.running

    asyncio.run(scenario())


def test_a_task_that_is_being_moved_is_neither_judged_nor_forgotten_nor_moved_again() -> None:
    async def scenario() -> None:
        books: Any = Books("slow")
        stragglers = Stragglers(books, dict(MEMBERS))
        await stragglers._progress("slow", [("task", 5)])
        stragglers._moving["task"] = "idle", asyncio.ensure_future(asyncio.sleep(0))
        before = dict(stragglers._moving)
        await stragglers._progress("slow", [("task", 6)])
        assert stragglers.pace.running["task"].samples[-1][1] == 5
        stragglers.on_transition("task", "processing", "released")
        assert "task" in stragglers.pace.running
        stragglers.pace.stragglers = lambda now: ["task"]  # type: ignore[method-assign]
        stragglers._thief = lambda victim, now: "idle"  # type: ignore[method-assign]
        stragglers._relieve_stragglers()
        assert stragglers._moving == before

    asyncio.run(scenario())


def test_who_is_asked_to_go_on_is_in_the_same_rack_and_has_nothing_else_to_do() -> None:
    def worker(busy: int) -> Any:
        return SimpleNamespace(processing=range(busy), nthreads=1)

    async def scenario() -> None:
        books: Any = Books("slow")
        books.workers = {"slow": worker(1), "elsewhere": worker(0), "busy": worker(1), "idle": worker(0)}
        books.running = books.workers.values()
        members = MEMBERS | {
            "elsewhere": Member("other rack", "elsewhere's"),
            "busy": Member("rack", "busy's"),
        }
        stragglers = Stragglers(books, members)
        assert stragglers._thief("slow", 0.0) == "idle"
        stragglers._moving["other task"] = "idle", asyncio.ensure_future(asyncio.sleep(0))
        assert stragglers._thief("slow", 0.0) is None
        stragglers._moving.clear()
        stragglers.pace._slow["idle"] = 0.0  # it has been relieved itself
        assert stragglers._thief("slow", 0.0) is None
        assert stragglers._thief("nobody's", 0.0) is None

    asyncio.run(scenario())


def test_where_a_task_may_run_is_as_before_when_its_worker_has_been_removed() -> None:
    async def scenario() -> None:
        books: Any = Books("slow")
        books.task.worker_restrictions = {"slow", "elsewhere"}
        stragglers = Stragglers(books, dict(MEMBERS))
        stragglers.inherited("slow", "idle", ["task"])
        assert books.task.worker_restrictions == {"idle"}
        stragglers.removed("slow")
        assert books.task.worker_restrictions == {"slow", "elsewhere"}

    asyncio.run(scenario())


@pytest.mark.parametrize(("expected", "status"), [(True, Status.running), (False, Status.closing_gracefully)])
def test_who_leaves_in_good_order_is_not_inherited_from(expected: bool, status: Status) -> None:
    async def scenario() -> bool:
        estates = object.__new__(Estates)
        estates.members = dict(MEMBERS)
        return await estates._on_removal(SimpleNamespace(address="slow", status=status), expected)  # type: ignore[arg-type]

    assert asyncio.run(scenario())  # at once, without an heir being asked


# --- what is inherited -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_taken"), [("executing", False), ("memory", False), ("released", True), (None, True)]
)
def test_what_the_heir_makes_or_has_is_not_put_in_its_place(state: str | None, is_taken: bool) -> None:
    taken: dict[str, object] = {}
    tasks = {} if state is None else {"task": SimpleNamespace(state=state)}
    worker = SimpleNamespace(
        state=SimpleNamespace(tasks=tasks),
        data=taken,
        update_data=lambda data, stimulus_id: taken.update(data),
    )
    heir = object.__new__(Heir)
    heir._place = SimpleNamespace(worker=worker, shelf=SimpleNamespace(arrive=lambda key, record: "value"))  # type: ignore[assignment]
    has_it = asyncio.run(heir._take("task", b"record", "dead"))
    assert has_it is (is_taken or state == "memory")
    assert bool(taken) is is_taken


def test_a_value_that_is_on_its_way_from_the_dead_is_waited_for_no_longer() -> None:
    abandoned: list[str] = []
    asked_for = SimpleNamespace(state="flight")

    def abandon(address: str) -> None:
        abandoned.append(address)
        asked_for.state = "fetch"

    worker = SimpleNamespace(
        state=SimpleNamespace(tasks={"task": asked_for}), data={}, update_data=lambda data, stimulus_id: None
    )
    heir = object.__new__(Heir)
    heir._place = SimpleNamespace(  # type: ignore[assignment]
        worker=worker,
        shelf=SimpleNamespace(arrive=lambda key, record: "value"),
        transfers=SimpleNamespace(abandon=abandon),
    )
    assert not asyncio.run(heir._take("task", b"record", "dead"))  # Dask has not kept it, whyever
    assert abandoned == ["dead"]


# --- shuffles --------------------------------------------------------------------------------------------------------


def test_the_fence_of_another_is_not_ours(me: bq.Process) -> None:
    passed: list[int] = []
    post = Post(me)
    post._fences[1] = lambda: passed.append(1)
    message = SimpleNamespace(tag=FENCE + b"\x01" + bytes(7), sender="one whose heir we are")
    post._pass_fence(message)  # type: ignore[arg-type]
    assert not passed
    message.sender = me.name
    post._pass_fence(message)  # type: ignore[arg-type]
    assert passed == [1]
    post.start()
    post.close()


def test_when_the_post_ends_nobody_waits_on(me: bq.Process) -> None:
    passed: list[int] = []
    post = Post(me)
    post._fences[1] = lambda: passed.append(1)  # whose message never comes
    post.start()
    post.close()
    assert passed == [1]


def test_another_cannot_end_our_post(yard: Yard, me: bq.Process) -> None:
    post = Post(me)
    yard.actor("other").do(actors.send, "me", b"stop")
    post.start()
    passed = threading.Event()
    post.fence(passed.set)
    assert passed.wait(20)
    assert post.alive
    post.close()


class Here(RackRun):
    """A run without Dask."""

    def __init__(self) -> None:
        self.run_id = 7
        self.closed = False
        self.received: set[Any] = set()
        self.total_recvd = 0
        self.restarts: list[str] = []

    def start_again(self, reason: str) -> Any:
        self.restarts.append(reason)
        raise Reschedule


@pytest.fixture
def run() -> Here:
    one = Here()
    one.partitions_of = {}
    usable = SimpleNamespace(usable=True, place=SimpleNamespace(process=None))
    one.enter(usable)  # type: ignore[arg-type]
    return one


def delivered(me: bq.Process, run: Any, run_id: int = 7, output: int = 1) -> bq.Region:
    """A shard of input 3 for an output, of that run, taken in."""
    shuffles = object.__new__(Shuffles)
    shuffles.plugin = SimpleNamespace(shuffle_runs=SimpleNamespace(_active_runs={"shuffle": run}))
    chunk = Chunk((output,), LARGE_CHUNK_BYTES, lambda room: None)
    strips = Strips(me)
    (region,) = strips.write((3,), {me.name: [chunk]}, {(output,): 0})[me.name]
    strips.close()
    region.grant(me.name, tag=tag_of("shuffle", run_id))
    (came,) = me.accept_all(1)
    shuffles.take_in(came)
    return came


def test_shards_of_another_run_and_those_that_came_before_are_freed(me: bq.Process, run: Here) -> None:
    assert not delivered(me, run, run_id=6).remaining
    assert delivered(me, run).remaining
    assert delivered(me, run, output=2).remaining
    assert not delivered(me, run).remaining
    assert not delivered(me, run, output=2).remaining
    assert [shard.places for shard in run._all_shards] == [[(1,)], [(2,)]]
    run.closed = True
    assert not delivered(me, run, output=3).remaining
    for shard in run._all_shards:
        shard.abandon()


def test_of_an_input_that_came_dasks_way_shards_are_freed(me: bq.Process, run: Here) -> None:
    run.received.add((3,))
    assert not delivered(me, run).remaining


@pytest.mark.parametrize("granted", [0, 1])
def test_a_receiver_gets_all_of_its_shards_or_the_shuffle_begins_anew(
    me: bq.Process, run: Here, monkeypatch: pytest.MonkeyPatch, granted: int
) -> None:
    """Else what goes Dask's way then would be taken for what has come."""

    def grant_some(regions: list[bq.Region], to: str, tag: bytes) -> None:
        for region in regions[:granted]:
            region.grant(to, tag=tag)
        raise bq.ProcessDead("it has died meanwhile")

    monkeypatch.setattr("bequest.dask.shuffle.grant_shards", grant_some)
    run.id = "shuffle"  # type: ignore[assignment]
    run._strips = Strips(me)
    run._turns = {(1,): 0, (2,): 1}
    run.receivers = lambda: {"there": me.name}  # type: ignore[method-assign]
    chunks = [Chunk((number,), LARGE_CHUNK_BYTES, lambda room: None) for number in (1, 2)]
    if granted:
        with pytest.raises(Reschedule):
            run.give((3,), {"there": chunks})
        assert "got some of its shards only: it has died meanwhile" in run.restarts[0]
        me.accept().free()
    else:
        assert run.give((3,), {"there": chunks}) == set()
        assert not run.restarts
    run._strips.close()


def test_a_shard_for_a_run_that_is_dasks_alone_is_freed(me: bq.Process) -> None:
    assert not delivered(me, SimpleNamespace(run_id=7)).remaining


def test_the_barrier_waits_for_what_has_been_granted(run: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    async def sent(_: object) -> None:
        order.append("all is sent")

    async def fence() -> None:
        order.append("all has come")

    monkeypatch.setattr(ShuffleRun, "inputs_done", sent)
    run.shuffles.fence = fence  # type: ignore[method-assign]
    asyncio.run(run.inputs_done())
    assert order == ["all is sent", "all has come"]


def test_shards_are_read_in_the_order_of_inputs(run: Here) -> None:
    for source in (3, 1, 2):
        run.take_in(SimpleNamespace(source=(source,), nbytes=1, places=[(0,)]))  # type: ignore[arg-type]
    assert [shard.source for shard in run.shards_for((0,))] == [(1,), (2,), (3,)]


def test_an_output_is_given_out_once_and_never_from_a_rack_that_has_ended(me: bq.Process, run: Here) -> None:
    delivered(me, run)
    (shard,) = run.shards_for((1,))
    with pytest.raises(Reschedule):
        run.shards_for((1,))
    shard.abandon()
    run.shuffles.usable = False  # type: ignore[misc]
    with pytest.raises(Reschedule):
        run.shards_for((2,))  # for which nothing seems to have come
    assert len(run.restarts) == 2
