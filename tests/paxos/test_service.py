"""Clients in front of one replica: redis-py, redis-cli, and those who mean harm or do not care.

What is behind the front answers at once (lone_replica.py): here it is the front that is looked at.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import bequest as bq
from bequest.paxos.front import Limits
from bequest.paxos.outputs import Refused, Why
from bequest.paxos.resp import Bounds
from lone_replica import LoneReplica, serving

TIGHT = Limits(
    Bounds(bulk_bytes=1 << 20, request_bytes=2 << 20),
    connections=1100, held_bytes=8 << 20, unsent_bytes=8 << 20, unfetched_bytes=1 << 20, stalled=1.0,
)  # fmt: skip


@pytest.fixture
def replica() -> Iterator[LoneReplica]:
    with serving() as replica:
        yield replica


@pytest.fixture
def tight() -> Iterator[LoneReplica]:
    with serving(lambda: LoneReplica(limits=TIGHT)) as replica:
        yield replica


@contextlib.contextmanager
def client(replica: LoneReplica, **options: Any) -> Iterator[redis.Redis]:
    with redis.Redis(port=replica.port, socket_timeout=20, **options) as made:
        yield made


@contextlib.contextmanager
def wire(replica: LoneReplica, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as made:
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(20)
        made.connect(("127.0.0.1", replica.port))
        yield made


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def until(condition: Callable[[], bool]) -> None:
    """Waits; the test's time is limited anyway."""
    while not condition():
        time.sleep(0.005)


# --- redis-py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_redis_py_reads_and_writes(replica: LoneReplica, protocol: int, decode: bool) -> None:
    def text(value: str) -> str | bytes:
        return value if decode else value.encode()

    with client(replica, protocol=protocol, decode_responses=decode) as c:
        assert c.ping() is True
        assert c.set("a", "1") is True
        assert (c.get("a"), c.get("z"), c.set("a", "2", nx=True)) == (text("1"), None, None)
        assert (c.set("a", "2", get=True), c.incr("a"), c.decr("a", 3)) == (text("1"), 3, 0)
        assert c.mset({"k1": "x", "k2": "y"}) is True
        assert c.mget("k1", "z", "k2") == [text("x"), None, text("y")]
        assert sorted(c.keys("k*")) == sorted(c.scan_iter("k*")) == [text("k1"), text("k2")]
        assert (c.expire("k1", 100), c.ttl("k1"), c.ttl("k2"), c.ttl("z")) == (True, 100, -1, -2)
        assert (c.delete("k1", "z"), c.exists("k2", "z"), c.type("k2"), c.dbsize()) == (
            1,
            1,
            text("string"),
            2,
        )
        assert c.getex("k2", px=5000) == text("y")
        assert c.echo("hi") == text("hi")
        assert len(c.time()) == 2
        assert c.client_setname("me") and c.client_getname() in {"me", b"me"}
        assert c.info()["connected_clients"] == 1
        assert c.config_get("maxmemory") == {}
        assert c.command_count() > 70
        with pytest.raises(redis.ResponseError, match="unknown command 'NOPE'"):
            c.execute_command("NOPE")
        with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'get'"):
            c.execute_command("get")
        with pytest.raises(redis.ResponseError, match="not an integer"):
            c.incr("k2")
        with pytest.raises(redis.ResponseError, match="DB index"):
            c.select(1)
        with pytest.raises(redis.ResponseError, match="no passwords"):
            c.execute_command("AUTH", "x")


def test_a_pipeline_of_all_kinds_is_answered_in_order(replica: LoneReplica) -> None:
    with client(replica) as c:
        pipe = c.pipeline(transaction=False)
        expected: list[object] = []
        for number in range(400):
            pipe.set("n", number).get("n").echo("x").incr("n").execute_command("geT", "n")
            expected += [True, b"%d" % number, b"x", number + 1, b"%d" % (number + 1)]
        assert pipe.execute() == expected


def test_transactions(replica: LoneReplica) -> None:
    with client(replica) as c, client(replica) as other:
        c.set("a", "1")
        pipe = c.pipeline()
        pipe.watch("a", "b")
        value = int(pipe.get("a"))
        pipe.multi()
        pipe.set("a", value + 1).get("a").incr("b")
        assert pipe.execute() == [True, b"2", 1]
        pipe.watch("a")
        other.set("a", "2")
        pipe.multi()
        pipe.set("a", "lost")
        with pytest.raises(redis.WatchError):
            pipe.execute()
        pipe.watch("a")
        pipe.unwatch()
        other.set("a", "9")
        pipe.multi()
        assert pipe.incr("a").execute() == [10]
        c.execute_command("MULTI")
        with pytest.raises(redis.ResponseError, match="wrong number"):
            c.execute_command("SET", "a")
        with pytest.raises(redis.ResponseError, match="inside MULTI"):
            c.execute_command("SUBSCRIBE", "a")
        with pytest.raises(redis.exceptions.ExecAbortError):
            c.execute_command("EXEC")
        for words in (["EXEC"], ["DISCARD"]):
            with pytest.raises(redis.ResponseError, match="without MULTI"):
                c.execute_command(*words)
        c.execute_command("MULTI")
        assert c.execute_command("INCR", "a") == b"QUEUED"
        assert c.execute_command("DISCARD") in {b"OK", True}
        assert c.get("a") == b"10"


def test_many_transactions_on_one_key_lose_none(replica: LoneReplica) -> None:
    def add_once(pipe: Any) -> None:
        now = int(pipe.get("n") or 0)
        pipe.multi()
        pipe.set("n", now + 1)

    def work() -> None:
        with client(replica) as c:
            for _ in range(10):
                c.transaction(add_once, "n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with client(replica) as c:
        assert c.get("n") == b"40"


def test_the_lock_of_redis_py(replica: LoneReplica) -> None:
    with client(replica) as c, client(replica) as other:
        with c.lock("l", timeout=10) as lock:
            assert lock.owned() and not other.lock("l").acquire(blocking=False)
            assert lock.extend(10) and 19_000 < c.pttl("l") <= 20_000
            assert lock.extend(5, replace_ttl=True) and 4_000 < c.pttl("l") <= 5_000
            assert lock.reacquire() and 9_000 < c.pttl("l") <= 10_000
        assert c.get("l") is None
        lost = c.lock("l", timeout=10)
        assert lost.acquire()
        replica.skew_ms += 10_000
        assert other.lock("l", timeout=10).acquire(blocking=False)
        for action in (lost.reacquire, lost.release):
            with pytest.raises(redis.exceptions.LockNotOwnedError):
                action()
        with pytest.raises(redis.ResponseError, match="no scripts but those of redis"):
            c.eval("return 1", 0)
        with pytest.raises(redis.exceptions.NoScriptError):
            c.evalsha("0" * 40, 0)
        assert c.script_exists("0" * 40, lost.lua_release.sha) == [False, True]


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_and_changes_are_heard(replica: LoneReplica, protocol: int) -> None:
    with client(replica, protocol=protocol) as c, c.pubsub() as heard:
        heard.subscribe("news", "other")
        heard.psubscribe("__keyspace@0__:a*")
        kinds = [heard.get_message(timeout=20)["type"] for _ in range(3)]
        assert kinds == ["subscribe", "subscribe", "psubscribe"]
        assert (c.publish("news", "hello"), c.publish("nobody", "x")) == (1, 0)
        c.mset({"a1": "x", "b1": "x"})
        c.set("a2", "x", px=1)
        replica.skew_ms += 1000
        found = [heard.get_message(timeout=20) for _ in range(4)]
        assert [(one["channel"], one["data"]) for one in found] == [
            (b"news", b"hello"), (b"__keyspace@0__:a1", b"set"), (b"__keyspace@0__:a2", b"set"),
            (b"__keyspace@0__:a2", b"expired"),
        ]  # fmt: skip
        assert c.pubsub_channels() == [b"news", b"other"]
        assert (c.pubsub_numsub("news", "z"), c.pubsub_numpat()) == ([(b"news", 1), (b"z", 0)], 1)
        heard.unsubscribe("news")
        heard.punsubscribe()
        assert [heard.get_message(timeout=20)["data"] for _ in range(2)] == [2, 1]
        heard.ping()
        assert heard.get_message(timeout=20)["type"] == "pong"
        if protocol == 2:
            heard.connection.send_command("GET", "a1")
            with pytest.raises(redis.ResponseError, match="are allowed in this context"):
                heard.connection.read_response()
    until(lambda: not replica.front.connections)
    assert not replica.store.keys.is_listened_to, "who has gone, hears nothing"


def test_redis_py_with_asyncio(replica: LoneReplica) -> None:
    import asyncio

    async def use() -> None:
        async with redis.asyncio.Redis(port=replica.port) as c:
            await asyncio.gather(*(c.incr("n") for _ in range(100)))
            assert await c.get("n") == b"100"
            async with c.lock("l", timeout=5) as lock:
                assert await lock.owned()

    asyncio.run(use())


def test_locks_with_fencing_tokens(replica: LoneReplica) -> None:
    with client(replica) as c:
        session = c.execute_command("SESSION.OPEN", 5000, "worker")
        token = c.execute_command("LOCK.ACQUIRE", "l", session)
        assert c.execute_command("FENCED", "l", token, "INCR", "n") == 1
        replica.skew_ms += 5000
        with pytest.raises(redis.ResponseError, match="does not count any more"):
            c.execute_command("FENCED", "l", token, "INCR", "n")


def test_waiting_for_a_lock(replica: LoneReplica) -> None:
    with client(replica) as c, client(replica) as other:
        first, second, third = (c.execute_command("SESSION.OPEN", lease) for lease in (5000, 50_000, 50_000))
        token = c.execute_command("LOCK.ACQUIRE", "l", first, "WAIT", 1000)
        assert c.execute_command("LOCK.ACQUIRE", "l", second, "WAIT", 1) is None
        got: list[int] = []
        for session in (second, third):
            waiter = threading.Thread(
                target=lambda session=session: got.append(
                    other.execute_command("LOCK.ACQUIRE", "l", session, "wait", 60_000)
                )
            )
            waiter.start()
            until(lambda: bool(replica.front.waiting))
            if session == second:
                c.execute_command("LOCK.RELEASE", "l", first)
            else:  # the holder's lease ends
                c.execute_command("SESSION.RENEW", third, 3600_000)
                replica.skew_ms += 60_000
                c.set("a", "1")
            waiter.join()
        assert token < got[0] < got[1]
        for words, told in (
            (["l", 77, "WAIT", 5000], "NOSESSION"), (["l", third, "WAIT", "x"], "integer"),
            (["l", third, "FOO", 1], "at most"),
            (["l", third, "WAIT"], "at most"),
        ):  # fmt: skip
            with pytest.raises(redis.ResponseError, match=told):
                c.execute_command("LOCK.ACQUIRE", *words)
        for prefix in (["ONCE", third, 1], ["FENCED", "l", got[1]]):
            with pytest.raises(redis.ResponseError, match="waits for nobody"):
                c.execute_command(*prefix, "LOCK.ACQUIRE", "m", third, "WAIT", 5000)
        c.execute_command("MULTI")
        with pytest.raises(redis.ResponseError, match="inside MULTI"):
            c.execute_command("LOCK.ACQUIRE", "m", third, "WAIT", 5000)
        c.execute_command("DISCARD")
        with wire(replica) as gone:
            session = c.execute_command("SESSION.OPEN", 5000)
            gone.sendall(b"LOCK.ACQUIRE l %d WAIT 60000\r\n" % session)
            until(lambda: bool(replica.front.waiting))
        until(lambda: not replica.front.waiting)
        assert not replica.store.keys.is_listened_to


def test_redis_cli(replica: LoneReplica) -> None:
    cli = shutil.which("redis-cli")
    if cli is None:
        pytest.skip("redis-cli is not installed (Debian: apt-get install redis-tools)")

    def run(*words: str) -> str:
        done = subprocess.run(
            [cli, "-p", str(replica.port), *words], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout

    assert (run("SET", "a", "1"), run("INCR", "a"), run("-3", "GET", "z")) == ("OK\n", "2\n", "\n")
    assert run("SESSION.OPEN", "1000") == "1\n"
    assert run("NOPE").startswith("ERR unknown command")
    assert run("--scan", "--pattern", "a*") == "a\n"


def test_on_a_map_in_rack_memory() -> None:
    with bq.connect() as rack, rack.attach("lone") as me, bq.Heap.create(me.alloc(8 << 20)) as heap:
        entries = bq.Map(heap, "entries")
        with (
            serving(lambda: LoneReplica(entries, heap.transaction)) as replica,
            client(replica) as c,
        ):
            c.mset({f"k{number}": number for number in range(500)})
            assert len(c.keys("k*")) == len(set(c.scan_iter(count=7))) == c.dbsize() == 500
            with c.lock("l", timeout=5):
                assert c.delete(*(f"k{number}" for number in range(0, 500, 2))) == 250
        with (
            serving(lambda: LoneReplica(bq.Map(heap, "entries"), heap.transaction)) as replica,
            client(replica) as c,
        ):
            assert (c.dbsize(), c.get("k3"), c.get("k4")) == (250, b"3", None)


# --- the protocol ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"*1000000000\r\n", b"invalid multibulk length"),
        (b"*1\r\n$536870912\r\n", b"invalid bulk length"),
        (b"*2\r\n*2\r\n*2\r\n", b"expected '$', got '*'"),
        (b"\x16\x03\x01" + b"\0" * 5000, b"too big inline request"),
    ],
)
def test_what_is_no_request_is_told_so_and_disconnected(
    replica: LoneReplica, sent: bytes, told: bytes
) -> None:
    with wire(replica) as connection, client(replica) as c:
        connection.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n" + sent + b"PING\r\n")
        found = read_all(connection)
        assert (
            found.startswith(b"+OK\r\n-ERR Protocol error: ") and told in found and found.count(b"\r\n") == 2
        )
        assert c.get("a") == b"1", "the others are served"


def test_commands_typed_by_hand_and_a_half_closed_connection(replica: LoneReplica) -> None:
    with wire(replica) as connection:
        connection.sendall(b"set a 5\r\nincr a\r\nHELLO 3\r\nget z\r\nquit\r\nget a\r\n")
        found = read_all(connection)
        assert found.startswith(b"+OK\r\n:6\r\n%7\r\n$6\r\nserver\r\n") and found.endswith(b"_\r\n+OK\r\n")
    with wire(replica) as connection:
        connection.sendall(b"incr a\r\nget a\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b":7\r\n$1\r\n7\r\n"


def test_an_unknown_outcome_is_said(replica: LoneReplica) -> None:
    with client(replica) as c:
        replica.refusal = Refused(None, Why.OUTCOME_UNKNOWN, None)
        with pytest.raises(redis.ResponseError, match="OUTCOMEUNKNOWN no leader answered in time"):
            c.set("a", "1")
        replica.refusal = Refused(None, Why.UNAVAILABLE, None)
        for ask in (lambda: c.get("a"), lambda: c.keys("*"), lambda: c.execute_command("WATCH", "a")):
            with pytest.raises(redis.ResponseError, match="UNAVAILABLE"):
                ask()
        replica.refusal = None
        assert c.get("a") == b"1", "it had been carried out"


# --- those who mean harm ---------------------------------------------------------------------------------------


def memory_bytes() -> int:
    """What this process has resident now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def test_a_thousand_idle_connections(tight: LoneReplica) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    try:
        with contextlib.ExitStack() as stack, client(tight) as c:
            c.ping()
            before = memory_bytes()
            for _ in range(1000):
                stack.enter_context(wire(tight)).sendall(b"*2\r\n$4\r\nPI")
            until(lambda: len(tight.front.connections) == 1001)
            assert memory_bytes() - before < 24 << 20
            assert c.set("a", "1")
            for _ in range(99):
                stack.enter_context(wire(tight))
            until(lambda: len(tight.front.connections) == 1100)
            with wire(tight) as one_more:
                assert b"max number of clients reached: 1100" in read_all(one_more)
            assert c.get("a") == b"1"
        until(lambda: not tight.front.connections)
        assert tight.front.held_bytes == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_does_not_fetch_its_replies_is_not_read_from_and_then_disconnected(tight: LoneReplica) -> None:
    with client(tight) as c, wire(tight, receive_bytes=4096) as slow:
        c.set("big", b"x" * 1_000_000)
        before = memory_bytes()
        slow.settimeout(0.05)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:  # a pipeline without end
                slow.sendall(b"GET big\r\n" * 1000)
        until(lambda: len(tight.front.connections) == 1)
        assert memory_bytes() - before < 64 << 20
        assert c.get("big")


def test_nothing_more_is_done_for_who_does_not_fetch(replica: LoneReplica) -> None:
    with client(replica) as c, wire(replica, receive_bytes=4096) as slow:
        c.set("big", b"x" * 1_000_000)
        slow.sendall(b"GET big\r\n" * 300)
        until(lambda: bool(replica.front.blocked))
        for _ in range(30):
            c.get("small")
        assert [connection.unsent_bytes < 18_000_000 for connection in replica.front.blocked] == [True]


def test_who_sends_without_end_is_made_to_wait_and_loses_nothing(tight: LoneReplica) -> None:
    tight.holding = True
    sent, request = 0, b"*3\r\n$3\r\nSET\r\n$1\r\nn\r\n$999\r\n" + b"x" * 999 + b"\r\n"
    with wire(tight) as eager:
        eager.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += eager.send(request * 100)
        assert tight.front.held_bytes < TIGHT.held_bytes
        tight.holding = False
        tight.call(tight.do_pass)
        eager.settimeout(20)
        replies = b""
        while replies.count(b"\r\n") < sent // len(request):
            replies += eager.recv(1 << 20)
        assert replies == b"+OK\r\n" * (sent // len(request))


def test_all_keys_at_once_may_be_too_many(tight: LoneReplica) -> None:
    with client(tight) as c:
        for number in range(5):
            c.set(b"%d" % number * 500_000, "x")
        with pytest.raises(redis.ResponseError, match="use SCAN"):
            c.keys("*")
        assert len(c.keys("1*")) == 1


def test_who_fetches_slowly_is_served(tight: LoneReplica) -> None:
    with client(tight) as c, wire(tight, receive_bytes=65_536) as slow:
        c.set("big", b"x" * 1_000_000)
        slow.sendall(b"GET big\r\n" * 7)
        found = 0
        while found < 7 * 1_000_012:
            found += len(slow.recv(65_536))
            time.sleep(0.015)  # in all, longer than one may fetch nothing


def test_who_fetches_nothing_for_long_is_disconnected(tight: LoneReplica) -> None:
    with client(tight) as c, wire(tight, receive_bytes=4096) as slow:
        c.set("big", b"x" * 1_000_000)
        slow.sendall(b"GET big\r\n" * 6)
        until(lambda: len(tight.front.connections) == 1 and bool(c.get("big")))


def test_what_is_not_fetched_is_bounded_in_all(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(unsent_bytes=8 << 20)
    with (
        serving(lambda: LoneReplica(limits=limits)) as replica,
        contextlib.ExitStack() as stack,
        client(replica) as c,
    ):
        c.set("big", b"x" * 1_000_000)
        for _ in range(10):
            stack.enter_context(wire(replica, receive_bytes=4096)).sendall(b"GET big\r\n" * 6)
        until(lambda: "all clients together over 8388608: disconnected" in caplog.text)
        assert c.get("big")


def test_large_requests_that_never_end_are_bounded_in_all(tight: LoneReplica) -> None:
    with contextlib.ExitStack() as stack, client(tight) as c:
        hogs = [stack.enter_context(wire(tight)) for _ in range(20)]
        for hog in hogs:
            with contextlib.suppress(ConnectionError):
                hog.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1048576\r\n" + b"x" * 1_000_000)
        # Whoever crosses the bound is disconnected, a moment later: what counts is where it settles.
        until(lambda: len(tight.front.connections) < 21 and tight.front.held_bytes <= TIGHT.held_bytes)
        assert c.set("b", "1")
        told = [read_all(hog) for hog in hogs if is_closed(hog)]
        assert told and all(b"all clients together" in one or not one for one in told)


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        connection.settimeout(20)
    return True


def test_a_subscriber_that_does_not_listen_is_disconnected(replica: LoneReplica) -> None:
    with client(replica) as c, wire(replica, receive_bytes=4096) as deaf:
        deaf.sendall(b"SUBSCRIBE news\r\n")
        deaf.recv(10)
        message = b"x" * 100_000
        while c.publish("news", message):
            pass
        assert len(replica.front.connections) == 1


def test_a_transaction_without_end_is_refused(tight: LoneReplica) -> None:
    with client(tight) as c:
        c.execute_command("MULTI")
        with pytest.raises(redis.ResponseError, match="a transaction has at most"):
            for _ in range(3):
                c.execute_command("SET", "a", b"x" * 1_000_000)
        with pytest.raises(redis.exceptions.ExecAbortError):
            c.execute_command("EXEC")


def test_a_flood_does_not_keep_others_waiting(replica: LoneReplica) -> None:
    with client(replica) as c, wire(replica) as flood:
        flood.settimeout(0.05)
        stop = threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        flood.sendall(b"INCR n\r\n" * 10_000)

        def fetch() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        flood.recv(1 << 16)

        threads = [threading.Thread(target=send), threading.Thread(target=fetch)]
        for thread in threads:
            thread.start()
        try:
            for number in range(8):
                before = int(c.get("n") or 0)
                c.set("mine", number)
                assert int(c.get("n") or 0) - before <= 20 * 1024 * 4, "the flood had its turn, and no more"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
