"""Forks, threads, event loops, fresh interpreters, signals: a rack process in the company that Python programs keep."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import actors
import bequest as bq
import fork_users as users
from actors import DEADLINE, until
from bequest.limits import INBOX_CELLS
from bequest.runtime import transport
from bequest.wire import messages as wire
from racks import RackUnderTest, Yard

PAGE = 4096
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends


def in_a_fork(function: Callable[[], object]) -> int:
    """Runs it in a forked child; 0 if it returned, 1 if it raised, minus the signal that killed it."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- fork ----------------------------------------------------------------------------------------------------


def test_the_child_of_a_fork_is_not_attached_and_is_told(
    yard: Yard, rack: RackUnderTest, me: bq.Process
) -> None:
    peer = yard.attach("peer")
    region, message = me.alloc(2 * PAGE), peer.send("me", b"message") or me.accept(0)
    waiting = peer.alloc(PAGE)
    waiting.grant("me")

    def child() -> None:
        acts = [
            lambda: me.alloc(PAGE),
            lambda: me.accept(0),
            lambda: asyncio.run(me.accept_async(0)),
            lambda: me.send("peer", b""),
            lambda: memoryview(region),
            lambda: region.array(),
            lambda: region.grant("peer"),
            lambda: region[:PAGE],
            region.free,
            region.split,
            lambda: bytes(message),
            lambda: bq.dumps(5),
            lambda: bq.dumps(5, me),
            lambda: len(me.inbox),
            me.check_rack,
            bq.current,
            lambda: rack.connection.create_group("group"),
        ]
        for number, act in enumerate(acts):
            try:
                act()
            except bq.NotAttached as error:
                if "attach" in str(error) or "connect" in str(error):
                    continue
                raise AssertionError(f"act {number} is not explained: {error}") from error
            raise AssertionError(f"act {number} worked")
        assert not me.attached and not region.owned
        me.detach()  # has nothing to do
        assert actors.protection_of(region.address) == "none", "rack memory is not inherited"

    assert in_a_fork(child) == 0
    assert me.attached and region.owned
    region.array()[:] = 1
    assert me.accept(0).nbytes == PAGE
    region.grant("peer")
    assert rack.processes()["me"].state == "attached"
    assert me.table.audit() == []


def test_the_end_of_a_forked_child_ends_nothing_of_its_parent(rack: RackUnderTest, me: bq.Process) -> None:
    region = me.alloc(PAGE)
    region.array()[:] = 7
    for leave in (
        lambda: None,
        lambda: sys.exit(0),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        gc.collect,
    ):
        context = multiprocessing.get_context("fork")
        child = context.Process(target=leave)  # which runs what is registered for the end of a program
        child.start()
        child.join(DEADLINE)
        assert child.exitcode in (0, -signal.SIGKILL)
        child.close()
        me.check_rack()
        assert region.array()[0] == 7
        me.alloc(16 << 20).free()  # by way of the daemon
    assert rack.processes()["me"].state == "attached"


def test_memory_in_flight_at_a_fork_is_the_parents(yard: Yard, me: bq.Process) -> None:
    """A child that drops the handles it inherited frees nothing."""
    peer = yard.actor("peer")
    regions = [me.alloc(PAGE) for _ in range(10)]
    held = me.table.holdings(me.id)

    def child() -> None:
        regions.clear()
        gc.collect()

    assert in_a_fork(child) == 0
    assert me.table.holdings(me.id) == held
    me.grant_all(regions, "peer")
    assert peer.do(actors.accept_and_free, 10) == 10 * PAGE


def test_a_forked_child_can_attach_itself(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    region = me.alloc(PAGE)
    region.array()[:] = 7
    context = multiprocessing.get_context("fork")

    def child() -> None:
        with rack.connection.attach("child") as mine:
            assert bq.current() is mine
            received = mine.accept(DEADLINE)
            assert received.address == region.address and set(received.array().tolist()) == {7}
            received.array()[:] = 8
            received.grant("me")
            grandchild = context.Process(
                target=lambda: rack.connection.attach("grandchild").send("me", b"hello")
            )
            grandchild.start()
            grandchild.join(DEADLINE)
            assert grandchild.exitcode == 0

    process = context.Process(target=child)
    process.start()
    until(lambda: "child" in rack.processes())
    region.grant("child")
    back = me.accept(DEADLINE)
    assert set(back.array().tolist()) == {8}
    assert me.accept(DEADLINE).tag == b"hello"
    process.join(DEADLINE)
    assert process.exitcode == 0
    process.close()


def test_a_fork_in_the_middle_of_other_threads_work(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    """Threads wait in accept, alloc and talk to the daemon while the program forks: each child works, so does it."""
    yard.attach("peer")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            me.alloc(4 << 20).free()
            rack.processes()

    def wait() -> None:
        while not stop.is_set():
            with contextlib.suppress(bq.AcceptTimeout):
                me.accept(0.05)

    threads = [threading.Thread(target=churn), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            assert (
                in_a_fork(lambda number=number: users.work_a_little(rack.directory, f"child-{number}")) == 0
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert me.attached and me.table.audit() == []


# --- spawn, exec ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_children_find_the_rack(found_rack: RackUnderTest, me: bq.Process, method: str) -> None:
    child = multiprocessing.get_context(method).Process(target=users.greet, args=("child", "me"))
    child.start()
    received = me.accept(DEADLINE)
    assert (received.sender, received.tag, bytes(received[:PAGE])) == ("child", b"hello", b"\x07" * PAGE)
    child.join(DEADLINE)
    assert child.exitcode == 0
    child.close()


def test_an_executed_program_finds_the_rack(found_rack: RackUnderTest, me: bq.Process) -> None:
    """And inherits nothing: no descriptor of the rack's survives exec."""
    program = (
        "import os, bequest as bq\n"
        "paths = [f'/proc/self/fd/{fd}' for fd in range(3, 200)]\n"
        "files = [os.readlink(path) for path in paths if os.path.lexists(path)]\n"
        "assert not [name for name in files if 'socket' in name or 'memfd' in name], files\n"
        "bq.connect().attach('program').send('me', b'hello')\n"
    )
    me.alloc(4 << 20).free()
    child = subprocess.Popen([sys.executable, "-c", program], close_fds=False)
    assert child.wait(DEADLINE) == 0
    assert me.accept(0).tag == b"hello"


def test_a_process_that_executes_another_program_leaves(yard: Yard, rack: RackUnderTest) -> None:
    """exec closes its connections and its mappings: nobody can reach it any more, and its name is free."""
    peer = yard.actor("peer")
    peer.do(actors.alloc, "region", PAGE)
    peer.start(users.become_a_sleeper)
    until(lambda: rack.processes()["peer"].state != "attached")
    assert rack.audit() == []
    peer.kill()
    until(lambda: rack.used_bytes() == 0 or all(slab.free_pages == slab.pages for slab in rack.slabs()))


# --- threads -------------------------------------------------------------------------------------------------


def test_threads_share_an_attachment(yard: Yard, me: bq.Process) -> None:
    """Many allocate, fill and grant, many accept and check, through one attachment each way; nothing is lost."""
    threads_of_a_kind, rounds = 4, 150
    peer = yard.attach("peer")
    seen: list[tuple[int, int]] = []
    troubles: list[BaseException] = []

    def produce(who: int) -> None:
        for number in range(rounds):
            region = me.alloc(PAGE * (1 + number % 3) if number % 20 else 1 << 20)
            region.array("u4")[:2] = who, number
            region.grant("peer", tag=b"%d %d" % (who, number))

    def consume() -> None:
        while True:
            region = peer.accept(DEADLINE)
            if region.nbytes == 0:
                return
            with region:
                who, number = region.array("u4")[:2].tolist()
                assert region.tag == b"%d %d" % (who, number)
                seen.append((who, number))

    def guarded(function: Callable[..., None], *arguments: int) -> threading.Thread:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                troubles.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    consumers = [guarded(consume) for _ in range(threads_of_a_kind)]
    producers = [guarded(produce, who) for who in range(threads_of_a_kind)]
    for thread in producers:
        thread.join(DEADLINE)
    for _ in consumers:
        me.send("peer", b"end")
    for thread in consumers:
        thread.join(DEADLINE)
    assert troubles == []
    assert sorted(seen) == [(who, number) for who in range(threads_of_a_kind) for number in range(rounds)]
    assert me.table.audit() == []
    assert me.table.holdings(me.id)[1] == me.table.holdings(peer.id)[1] == 0


def test_a_waiting_thread_lets_the_others_run(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")
    arrived: list[bq.Region] = []
    waiter = threading.Thread(target=lambda: arrived.append(me.accept(DEADLINE)))
    waiter.start()
    for _ in range(200):
        peer.alloc(PAGE).free()
    assert waiter.is_alive()
    peer.send("me", b"now")
    waiter.join(DEADLINE)
    assert arrived[0].tag == b"now"


def test_detaching_wakes_who_waits(yard: Yard, me: bq.Process) -> None:
    yard.attach("peer")
    fates: list[str] = []

    def wait(act: Callable[[], object]) -> None:
        try:
            act()
        except bq.NotAttached:
            fates.append("told")

    def iterate() -> None:
        for _ in me.inbox:
            pass
        fates.append("ended")

    for _ in range(INBOX_CELLS):
        me.send("peer", b"")
    threads = [
        threading.Thread(target=wait, args=(me.accept,)),
        threading.Thread(target=wait, args=(lambda: me.accept(DEADLINE),)),
        threading.Thread(target=wait, args=(lambda: me.send("peer", b""),)),
        threading.Thread(target=iterate),
    ]
    for thread in threads:
        thread.start()
    me.detach()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(fates) == ["ended", "told", "told", "told"]


# --- asyncio -------------------------------------------------------------------------------------------------


def test_asyncio_accepts_grants_and_iterates(yard: Yard, me: bq.Process) -> None:
    async def main() -> None:
        async with yard.attach("peer") as peer:
            region = me.alloc(PAGE)
            assert await region.grant_async("peer", tag=b"one") == 0
            received = await peer.accept_async(DEADLINE)
            assert (received.tag, received.nbytes) == (b"one", PAGE)
            received.free()
            me.send("peer", b"two")
            me.send("peer", b"three")
            tags = []
            async for message in peer.inbox:
                tags.append(message.tag)
                if len(tags) == 2:
                    break
            assert tags == [b"two", b"three"]
        assert not peer.attached

    asyncio.run(main())


def test_the_event_loop_runs_on_while_an_accept_waits(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")

    async def main() -> None:
        waiting = asyncio.create_task(me.accept_async())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not waiting.done()
        peer.send("me", b"now")
        assert (await asyncio.wait_for(waiting, DEADLINE)).tag == b"now"

    asyncio.run(main())


def test_async_timeouts(me: bq.Process) -> None:
    async def main() -> None:
        for seconds in (0, 0.05, 0.4):
            started = time.monotonic()
            with pytest.raises(bq.AcceptTimeout):
                await me.accept_async(seconds)
            assert seconds <= time.monotonic() - started < seconds + 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await me.accept_async()

    asyncio.run(main())


def test_cancelling_an_accept_loses_nothing(yard: Yard, me: bq.Process) -> None:
    """Cancelled at any moment, around the arrival of a region too: it is accepted once, by somebody."""
    peer = yard.attach("peer")

    async def main() -> None:
        for number in range(60):
            waiting = asyncio.create_task(me.accept_async())
            for _ in range(number % 4):
                await asyncio.sleep(0)
            with peer.alloc(PAGE) as region:
                region.grant("me", tag=b"%d" % number)
            for _ in range(number % 3):
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                received = await waiting
            if waiting.cancelled():
                received = await me.accept_async(DEADLINE)
            assert received.tag == b"%d" % number
            received.free()

    asyncio.run(main())
    assert len(me.inbox) == 0 and me.table.audit() == []


def test_several_tasks_wait_for_one_inbox(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")

    async def main() -> None:
        tasks = [asyncio.create_task(me.accept_async(DEADLINE)) for _ in range(8)]
        await asyncio.sleep(0)
        for number in range(8):
            peer.send("me", b"%d" % number)
        messages = await asyncio.gather(*tasks)
        assert sorted(message.tag for message in messages) == [b"%d" % number for number in range(8)]

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5


def test_a_full_inbox_does_not_block_the_event_loop(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")
    regions = me.alloc((INBOX_CELLS + 100) * PAGE).split(*range(PAGE, (INBOX_CELLS + 100) * PAGE, PAGE))

    async def main() -> None:
        with pytest.raises(bq.InboxFull) as caught:
            await me.grant_all_async(regions, "peer", timeout=0.05)
        assert caught.value.granted == INBOX_CELLS, "counted over all its attempts"
        granting = asyncio.create_task(me.grant_all_async(regions[INBOX_CELLS:], "peer"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not granting.done()
        taken = 0
        while taken < len(regions):
            for region in peer.accept_all(50, DEADLINE):
                region.free()
                taken += 1
            await asyncio.sleep(0)
        assert await granting == 0

    asyncio.run(main())
    assert me.table.audit() == []


def test_detaching_ends_an_asynchronous_wait(me: bq.Process) -> None:
    async def main() -> None:
        async def iterate() -> str:
            async for _ in me.inbox:
                pass
            return "ended"

        waiting, iterating = asyncio.create_task(me.accept_async()), asyncio.create_task(iterate())
        for _ in range(5):
            await asyncio.sleep(0)
        me.detach()
        with pytest.raises(bq.NotAttached):
            await asyncio.wait_for(waiting, DEADLINE)
        assert await asyncio.wait_for(iterating, DEADLINE) == "ended"

    asyncio.run(main())


def test_one_event_loop_after_another(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")
    for number in range(3):
        peer.send("me", b"%d" % number)
        assert asyncio.run(me.accept_async(DEADLINE)).tag == b"%d" % number


# --- signals -------------------------------------------------------------------------------------------------

WAITS: dict[str, str] = {
    "accept": "me.accept()",
    "accept with timeout": "me.accept(60)",
    "iteration": "next(iter(me.inbox))",
    "accept_async": "asyncio.run(me.accept_async())",
    "grant to a full inbox": "[me.send('program', b'') for _ in range(2000)]",
    "queue": "bq.Queue().get()",
}


@pytest.mark.parametrize("wait", WAITS)
def test_control_c_interrupts_a_wait_promptly(found_rack: RackUnderTest, wait: str) -> None:
    program = (
        "import asyncio, bequest as bq, time\n"
        "me = bq.connect().attach('program')\n"
        "print('ready', flush=True)\n"
        f"try:\n    {WAITS[wait]}\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "    with me.alloc(4096) as region: region.array()[:] = 1\n"
        "    print(me.table.audit())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        until(lambda: is_waiting(child.pid))
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 2
        output, _ = child.communicate(timeout=DEADLINE)
        assert (output, child.returncode) == ("[]\n", 0)
    finally:
        child.kill()
        child.communicate()


FUTEX, EPOLL_WAIT, EPOLL_PWAIT = "202", "232", "281"  # numbers of system calls on x86-64


def is_waiting(pid: int) -> bool:
    """Whether its main thread sleeps in a futex or an event loop."""
    with open(f"/proc/{pid}/syscall") as syscall:
        return syscall.read().split()[0] in (FUTEX, EPOLL_WAIT, EPOLL_PWAIT)


@pytest.mark.parametrize("moment", ["send_packet", "receive_packet"])
def test_an_interrupted_request_does_not_confuse_the_next(
    rack: RackUnderTest, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C may raise just after the request went out or its reply came in; the next one gets its own reply."""
    original = getattr(transport, moment)

    def interrupted(*arguments: object) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    connection = bq.connect(str(rack.directory))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transport, moment, interrupted)
        connection.request(wire.PlaceProcess())
    monkeypatch.setattr(transport.Channel.request, "__defaults__", (1.0,))
    assert isinstance(connection.request(wire.Status("rack")), wire.RackReport)
    assert isinstance(connection.request(wire.PlaceProcess()), wire.Placed)


def test_a_signal_handler_runs_during_accept_which_then_goes_on(yard: Yard, me: bq.Process) -> None:
    peer = yard.actor("peer")
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
    try:
        peer.start(users.signal_and_send, os.getpid(), "me", 20)
        assert me.accept(DEADLINE).tag == b"after the signals"
        assert len(signals) >= 1
        assert peer.result() == 20
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_use_the_attachment(yard: Yard, me: bq.Process) -> None:
    """Python runs it between two steps of the wait, never inside of one. What needs the daemon is not for handlers."""
    peer = yard.actor("peer")
    taken: list[bytes] = []
    me.alloc(PAGE).free()  # from now on there is memory at hand

    def handle(number: int, frame: object) -> None:
        me.alloc(PAGE).free()
        with contextlib.suppress(bq.AcceptTimeout):
            taken.append(me.accept(0).tag)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        peer.start(users.signal_and_send, os.getpid(), "me", 20, 30)
        while len(taken) < 30:
            with contextlib.suppress(bq.AcceptTimeout):
                taken.append(me.accept(0.2).tag)
        peer.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(taken) == 30 and me.table.audit() == []


def test_an_exception_in_a_signal_handler_ends_the_wait(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")

    class Alarm(Exception):
        pass

    def handle(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            me.accept(DEADLINE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    peer.send("me", b"later")
    assert me.accept(DEADLINE).tag == b"later"
