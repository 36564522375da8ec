"""Actors on a real rack: what they do with messages, calls, regions and mistakes. Kills: test_actor_kills.py."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

import actor_users
import bequest as bq
from actor_users import Cast, owned_bytes
from actors import DEADLINE, until
from bequest.actors import Ref
from racks import RackUnderTest, Yard

SOON = DEADLINE
PAGE = 4096
Start = Callable[..., Ref]


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


@pytest.fixture
def start(yard: Yard, me: bq.Process) -> Iterator[Start]:
    """Starts an actor in a process of its own; ends it when the test is over."""
    running = []

    def started(kind: str = "Counter", name: str = "counter") -> Ref:
        process = yard.actor(None)
        process.do(actor_users.begin)
        process.start(actor_users.run, kind, name)
        running.append(process)
        reference = bq.actors.ref(me, name)
        reference.wait(SOON)
        return reference

    yield started
    for process in running:
        if process._status is None:
            actor_users.end(process)


# --- messages and calls -------------------------------------------------------------------------------------


def test_messages_change_the_state_and_calls_return_it(start: Start) -> None:
    counter = start()
    for number in range(1000):
        counter.send("add", number)
    assert counter.call("add", 0) == sum(range(1000))
    assert counter.call("add_later", 1) == sum(range(1000)) + 1
    counter.flush(SOON)
    assert repr(counter) == "<bequest.actors.Ref to 'counter'>"


def test_what_may_travel(start: Start) -> None:
    now = datetime.now(UTC)
    sent = [None, True, -(2**63), 1.5, "text", b"bytes", [1, [2]], {"a": {"b": []}}, now, "x" * 300_000]
    assert start().call("echo", *sent) == sent
    assert bq.actors.ref(bq.current(), "counter").call("echo", (1, 2)) == [[1, 2]]


def test_calls_at_once_from_asyncio(start: Start) -> None:
    counter = start()

    async def many() -> list[int]:
        return await asyncio.gather(*(counter.call_async("add", 1, timeout=SOON) for _ in range(50)))

    assert sorted(asyncio.run(many())) == list(range(1, 51))


def test_one_actor_tells_and_asks_another(start: Start) -> None:
    first, second = start(), start(name="second")
    first.send("tell", "second", "add", 5)
    first.flush(SOON)
    until(lambda: second.call("add", 0) == 5)
    assert first.call("ask", "second", "add", 1) == 6
    assert first.call("ask_all", "second", 10) == 16
    with pytest.raises(
        bq.RemoteError, match=r"ask.* raised RemoteError: fail.* of actor 'second' raised Zero"
    ):
        first.call("ask", "second", "fail", 1)
    with pytest.raises(bq.RemoteError, match="cannot wait for itself"):
        first.call("ask", "counter", "add", 1)


def test_what_a_failed_event_sent_is_not_sent(start: Start) -> None:
    first, second = start(), start(name="second")
    with pytest.raises(bq.RemoteError, match="after sending"):
        first.call("tell_and_fail", "second")
    first.call("tell", "second", "add", 1)
    until(lambda: second.call("add", 0) == 1)


# --- mistakes -------------------------------------------------------------------------------------------------


def test_a_handler_that_raises_changes_nothing_and_is_not_tried_again(start: Start) -> None:
    counter = start()
    counter.send("add", 1)
    counter.send("fail", 500)
    with pytest.raises(
        bq.RemoteError, match=r"fail\(\) of actor 'counter' raised ZeroDivisionError: of 7"
    ) as told:
        counter.call("fail", 7)
    assert told.value.kind == "ZeroDivisionError" and "def fail" not in told.value.remote_traceback
    assert 'raise ZeroDivisionError(f"of {number}")' in told.value.remote_traceback
    with pytest.raises(bq.RemoteError, match="KeyError"):
        counter.call("fail_later")
    assert counter.call("add", 0) == 1
    (letter,) = counter.dead_letters(SOON)
    assert (letter.method, letter.arguments, letter.error, letter.message) == (
        "fail",
        [500],
        "ZeroDivisionError",
        "of 500",
    )


def test_bad_calls_are_told_one_by_one(start: Start, me: bq.Process) -> None:
    counter = start()
    with pytest.raises(
        bq.UnknownMethod, match="actor 'counter' has no method 'subtract'; it has add, add_later"
    ):
        counter.call("subtract", 1)
    for hidden in ("state", "setup", "ref", "_host", ".forget"):
        with pytest.raises((bq.UnknownMethod, bq.RemoteError)):
            counter.call(hidden)
    with pytest.raises(bq.RemoteError, match=r"TypeError.*positional argument"):
        counter.call("add")
    for rubbish in (object(), 2**64, lambda: None, [[object()]]):
        with pytest.raises(bq.NotSendable):
            counter.send("echo", rubbish)
    with pytest.raises(bq.RemoteError, match="NotSendable: object cannot be sent"):
        counter.call("answer_with_rubbish")
    assert counter.call("add", 0) == 0
    with pytest.raises(bq.UnknownActor, match="no actor 'nobody'"):
        bq.actors.ref(me, "nobody").send("add", 1)
    with pytest.raises(bq.UnknownActor):
        bq.actors.ref(me, "nobody").wait(0.01)
    with pytest.raises(bq.BadName):
        bq.actors.ref(me, "a/b")


def test_a_time_out_names_actor_and_method(start: Start) -> None:
    counter = start()
    counter.send("sleep", 0.2)
    with pytest.raises(bq.CallTimeout, match=r"'counter' has not answered add\(\) within 0.01 s") as told:
        counter.call("add", 1, timeout=0.01)
    assert isinstance(told.value, TimeoutError)
    with pytest.raises(bq.CallTimeout, match=r"1 messages|2 messages"):
        counter.flush(0.01)
    assert counter.call("add", 0, timeout=SOON) == 1  # it was handled, once


def test_what_is_no_actor_is_refused(me: bq.Process) -> None:
    with pytest.raises(TypeError, match=r"subclass of bequest\.Actor"):
        bq.actors.run(int)  # type: ignore[type-var]

    class Wrong(bq.Actor):
        state: int

    with pytest.raises(TypeError, match=r"annotated with a bequest\.Struct"):
        bq.actors.actor.state_class(Wrong)


def test_an_actor_runs_once(start: Start, yard: Yard) -> None:
    start()
    another = yard.actor(None)
    another.start(actor_users.run, "Counter", "counter")
    with pytest.raises(bq.NameTaken, match="'counter' runs already, in process 'counter'"):
        another.result()


def test_an_actor_that_ends_is_unknown_from_then_on(start: Start, yard: Yard) -> None:
    counter = start()
    counter.send("sleep", 0.1)
    yard.actors[-1].signal(signal.SIGTERM)
    with pytest.raises(bq.UnknownActor, match="no actor 'counter'"):
        while True:
            counter.call("add", 1, timeout=SOON)
    with pytest.raises(bq.UnknownActor):
        counter.send("add", 1)


# --- regions --------------------------------------------------------------------------------------------------


def region_of(me: bq.Process, value: int, nbytes: int = PAGE) -> bq.Region:
    region = me.alloc(nbytes)
    region.array()[:] = value
    return region


def test_a_region_goes_there_and_back_without_a_copy(start: Start, me: bq.Process) -> None:
    counter = start()
    region = region_of(me, 21, 2 * PAGE)
    address = region.address
    back = counter.call("double", region)
    assert (back.address, back.nbytes, back.array().max(), back.process) == (address, 2 * PAGE, 42, me)
    with pytest.raises(bq.RegionMoved):
        region.array()
    back.free()


def test_regions_are_kept_given_and_freed(start: Start, me: bq.Process, rack: RackUnderTest) -> None:
    counter = start()
    before = owned_bytes(rack, "counter")
    counter.call("keep", "a", region_of(me, 1))
    counter.call("keep", "a", region_of(me, 2))  # the first is freed
    counter.send("keep", "b", region_of(me, 3))
    counter.send("double", region_of(me, 4))  # nobody wants it
    assert counter.call("kept") == ["a", "b"]
    assert owned_bytes(rack, "counter") == before + 2 * PAGE
    with counter.call("give", "a") as back:
        assert back.array().max() == 2
    counter.call("drop", "b")
    with pytest.raises(bq.RemoteError, match="RuntimeError: no"):
        counter.call("keep_and_fail", region_of(me, 5))
    with pytest.raises(bq.RemoteError, match="ValueError: with a view alive"):
        counter.call("fail_with_region", region_of(me, 6))
    with pytest.raises(bq.RemoteError, match="KeyError"):
        counter.call("give", "a")
    assert counter.call("kept") == [] and owned_bytes(rack, "counter") == before


def test_a_region_is_sent_whole_or_not_at_all(start: Start, me: bq.Process) -> None:
    counter = start()
    region = region_of(me, 1)
    view = memoryview(region)
    with pytest.raises(BufferError, match="1 views"):
        counter.send("keep", "a", region)
    view.release()
    with pytest.raises(bq.NotSendable, match="twice"):
        counter.send("keep", region, region)
    with pytest.raises(bq.NotSendable):
        counter.send("keep", object(), region)
    counter.send("keep", "a", region)
    with pytest.raises(bq.RegionMoved):
        counter.send("keep", "a", region)


# --- deaths ---------------------------------------------------------------------------------------------------


def test_its_standby_goes_on(yard: Yard, me: bq.Process) -> None:
    cast = Cast(yard, "Counter", "counter")
    counter = bq.actors.ref(me, "counter")
    counter.wait(SOON)
    region = region_of(me, 9)
    counter.call("keep", "nine", region)
    assert counter.call("add", 1) == 1
    counter.send("sleep", 0.05)
    for number in range(100):
        counter.send("add", number)
    cast.kill()  # in the middle of it
    assert counter.call("add", 0, timeout=SOON) == 1 + sum(range(100))
    with counter.call("give", "nine", timeout=SOON) as back:
        assert back.array().max() == 9
    cast.end()


def test_what_has_failed_once_is_not_tried_again_by_the_heir(yard: Yard, me: bq.Process) -> None:
    cast = Cast(yard, "Counter", "counter")
    counter = bq.actors.ref(me, "counter")
    counter.wait(SOON)
    counter.send("fail", 7)
    with pytest.raises(bq.RemoteError):
        counter.call("fail", 8, timeout=SOON)
    cast.kill()
    assert counter.call("add", 1, timeout=SOON) == 1
    assert [letter.arguments for letter in counter.dead_letters(SOON)] == [[7]]
    cast.end()


def test_one_that_comes_later_inherits_what_is_kept_for_a_while(
    start: Start, yard: Yard, me: bq.Process
) -> None:
    counter = start()
    counter.call("add", 5)
    yard.actors[-1].kill()
    with pytest.raises(bq.CallTimeout):
        counter.call("add", 1, timeout=0.05)
    counter.send("add", 10)  # while there is none
    start()
    assert counter.call("add", 0, timeout=SOON) == 16


def test_a_reply_that_was_lost_is_given_again(yard: Yard, me: bq.Process) -> None:
    """The event has happened, and its process dies before it has said so."""
    cast = Cast(yard, "Counter", "counter")
    counter = bq.actors.ref(me, "counter")
    counter.wait(SOON)

    async def killed_meanwhile() -> list[int]:
        calls = [asyncio.ensure_future(counter.call_async("add_later", 1, timeout=SOON)) for _ in range(200)]
        await asyncio.sleep(0.02)
        cast.kill()
        return await asyncio.gather(*calls)

    assert sorted(asyncio.run(killed_meanwhile())) == list(range(1, 201))
    cast.end()


def test_actors_of_two_racks_have_nothing_to_do_with_each_other(
    start: Start, yard: Yard, rack: RackUnderTest
) -> None:
    here = start()
    other = yard.rack("dram0:64MiB", name="other")
    away = yard.actor(None, other)
    away.start(actor_users.run, "Counter", "counter")
    client = yard.actor("client", other)
    until(lambda: "counter" in other.processes())
    here.send("add", 1)
    assert client.do(actor_users.call, "counter", "add", 10) == 10
    assert here.call("add", 0, timeout=SOON) == 1
    away.kill()
    assert here.call("add", 1, timeout=SOON) == 2
