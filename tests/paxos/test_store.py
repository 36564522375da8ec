"""The store by itself: what commands do, when things expire, and that a snapshot is of one instant.

Every test ends with an audit: what the store keeps for itself is counted right, and no note of the calendar is left
once everything has expired.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from bequest.paxos.keyspace import KEY, Entries
from bequest.paxos.replies import NOT_DONE, is_error, pack, unpack
from bequest.paxos.store import Store
from lone_replica import DictEntries

START_MS = 1_700_000_000_000
FOREVER_MS = 10**12


class Lone:
    """A store, its log, and its clock."""

    def __init__(self, entries: Entries | None = None) -> None:
        self.entries = DictEntries() if entries is None else entries
        self.store = Store(self.entries)
        self.store.listen(True)
        self.now_ms = START_MS
        self.index = 0

    def batch(self, *operations: list[Any]) -> list[Any]:
        self.index += 1
        return unpack(self.store.apply(self.index, self.now_ms, pack(operations)))

    def do(self, *words: object) -> Any:
        """One command, from the log."""
        return self.batch([as_bytes(word) for word in words])[0]

    def ask(self, *words: object) -> Any:
        """One question."""
        return unpack(self.store.query(self.now_ms, pack([[as_bytes(word) for word in words]])))[0]

    def fails(self, *words: object) -> str:
        """The error that it ends with, having changed nothing."""
        before = dict(self.entries.items())
        reply = self.do(*words)
        assert is_error(reply), reply
        assert dict(self.entries.items()) == before
        return bytes(reply.data).decode()

    def audit(self) -> None:
        own = sum(1 for name in self.entries if name[:1] != KEY)
        assert self.store.keys.count_keys() == len(self.entries) - own


def as_bytes(word: object) -> Any:
    return word if isinstance(word, bytes | list) else str(word).encode()


@pytest.fixture
def lone() -> Iterator[Lone]:
    lone = Lone()
    lone.do("GET", "nothing")
    yield lone
    lone.audit()
    lone.now_ms += FOREVER_MS
    for _ in range(3):
        while lone.store.is_due(lone.now_ms):
            lone.batch()
        lone.now_ms += FOREVER_MS
    lone.audit()
    notes = [name for name in lone.entries if name[:2] in {b"#n", b"#c"} or name[:1] in b"SG"]
    assert notes == [], "all sessions have ended, and nothing is to be looked at any more"


# --- keys -----------------------------------------------------------------------------------------------------


def test_set_and_get_in_all_their_ways(lone: Lone) -> None:
    assert lone.do("SET", "a", "1") == "OK"
    assert lone.ask("GET", "a") == b"1"
    assert lone.do("SET", "a", "2", "NX") is None
    assert lone.do("SET", "b", "2", "XX") is None
    assert lone.do("SET", "a", "2", "xx", "get") == b"1"
    assert lone.do("SET", "b", "3", "NX", "GET") is None
    assert lone.ask("MGET", "a", "c", "b") == [b"2", None, b"3"]
    assert lone.do("SETNX", "b", "4") == 0
    assert lone.do("GETSET", "b", "5") == b"3"
    assert (lone.do("APPEND", "b", "67"), lone.do("APPEND", "c", "8")) == (3, 1)
    assert (lone.ask("GETRANGE", "b", 1, -1), lone.ask("GETRANGE", "b", 5, 9), lone.ask("STRLEN", "b")) == (
        b"67",
        b"",
        3,
    )
    assert (lone.ask("EXISTS", "a", "b", "z", "a"), lone.ask("TYPE", "a"), lone.ask("TYPE", "z")) == (
        3,
        "string",
        "none",
    )
    assert (lone.do("GETDEL", "b"), lone.do("DEL", "a", "b", "c")) == (b"567", 2)
    assert lone.do("MSET", "k", "1", "l", "2") == "OK"
    assert (lone.do("MSETNX", "m", "1", "l", "2"), lone.ask("EXISTS", "m")) == (0, 0)
    assert (lone.do("MSETNX", "m", "1", "n", "2"), lone.ask("DBSIZE")) == (1, 4)


def test_counting(lone: Lone) -> None:
    assert [
        lone.do("INCR", "n"),
        lone.do("INCRBY", "n", 41),
        lone.do("DECR", "n"),
        lone.do("DECRBY", "n", 1),
    ] == [1, 42, 41, 40]
    lone.do("SET", "n", 2**63 - 1)
    assert lone.fails("INCR", "n") == "ERR increment or decrement would overflow"
    for word in ("x", "1.0", " 1", "+1", "01", "1_0", str(2**63), ""):
        lone.do("SET", "n", word)
        assert lone.fails("INCR", "n") == "ERR value is not an integer or out of range"
    assert lone.fails("INCRBY", "z", "x") == "ERR value is not an integer or out of range"


@pytest.mark.parametrize(
    "words",
    [
        "SET a b NX XX", "SET a b EX", "SET a b EX 1 PX 1", "SET a b KEEPTTL EX 1", "SET a b FOO", "SET a b EX 0",
        "SET a b PX -1", "SET a b EX x", "SETEX a 0 b", "GETEX a EX", "GETEX a PERSIST 1", "MSET a", "MSET a b c",
        "EXPIRE a x", "EXPIRE a 1 FOO", "SCAN x", "SCAN 0 COUNT", "SCAN 0 COUNT 0", "SCAN 0 FOO 1", "SCAN -1",
        f"EXPIRE a {2**62}", "EVAL return 0", "EVALSHA 0123 0", "SESSION.OPEN 0", "SESSION.OPEN x", "SESSION.RENEW 77",
        "LOCK.ACQUIRE l 77", "LOCK.RELEASE l 77", "MEMBER.JOIN g 77", "SESSION.SET 77 a b", "ONCE 77 1 INCR a",
        "FENCED l 1 INCR a",
    ],
)  # fmt: skip
def test_what_cannot_be_done_changes_nothing(lone: Lone, words: str) -> None:
    lone.do("SET", "a", "b")
    assert lone.fails(*words.split()).split()[0] in {"ERR", "NOSESSION", "FENCED", "NOSCRIPT"}


def test_a_failure_is_one_operations_own(lone: Lone) -> None:
    first, second, third = lone.batch([b"SET", b"a", b"x"], [b"INCR", b"a"], [b"GET", b"a"])
    assert (first, is_error(second), third) == ("OK", True, b"x")


def test_scan_finds_what_is_like_the_pattern(lone: Lone) -> None:
    keys = ["hello", "hallo", "hxllo", "hllo", "h*llo", "h[llo", "a.b", "aXb", "", "long" * 9, "h\nllo", "-"]
    for key in keys:
        lone.do("SET", key, "x")

    def like(pattern: str) -> list[str]:
        found, cursor = [], b"0"
        while True:
            cursor, some = lone.ask("SCAN", cursor, "MATCH", pattern, "COUNT", 3)
            found += [key.decode() for key in some]
            if cursor == b"0":
                return sorted(found)

    assert like("*") == sorted(keys)
    assert like("h?llo") == sorted(["hello", "hallo", "hxllo", "h*llo", "h[llo", "h\nllo"])
    assert like("h*llo") == sorted(["hello", "hallo", "hxllo", "hllo", "h*llo", "h[llo", "h\nllo"])
    assert like("h\\*llo") == ["h*llo"]
    assert like("h[ae]llo") == ["hallo", "hello"]
    assert like("h[^e-z]llo") == sorted(["hallo", "h*llo", "h[llo", "h\nllo"])
    assert like("a.b") == ["a.b"]
    assert like("*ong*ong*g") == ["long" * 9]
    lone.do("SET", "o" * 60, "x")
    assert like("*o" * 30 + "z") == [], "at once, whatever the pattern"
    assert (like("[[]"), like(""), like("[-]"), like("h[")) == ([], [""], ["-"], [])
    assert lone.ask("SCAN", 0, "TYPE", "list", "COUNT", 99)[1] == []


# --- time -----------------------------------------------------------------------------------------------------


def test_time_to_live(lone: Lone) -> None:
    lone.do("SET", "a", "1", "PX", 1500)
    assert (lone.ask("PTTL", "a"), lone.ask("TTL", "a")) == (1500, 2)
    assert (lone.ask("PEXPIRETIME", "a"), lone.ask("TTL", "b")) == (START_MS + 1500, -2)
    lone.now_ms += 1499
    assert lone.ask("GET", "a") == b"1"
    lone.now_ms += 1
    assert (lone.ask("GET", "a"), lone.ask("EXISTS", "a"), lone.ask("SCAN", 0, "COUNT", 99)[1]) == (
        None,
        0,
        [],
    )
    assert lone.do("SET", "a", "2", "NX") == "OK", (
        "what has expired is not there, though it has not been removed"
    )
    assert lone.ask("TTL", "a") == -1
    assert lone.do("EXPIRE", "a", 10) == 1
    assert (
        lone.do("EXPIRE", "a", 5, "GT"),
        lone.do("EXPIRE", "a", 20, "LT"),
        lone.do("EXPIRE", "a", 5, "NX"),
    ) == (0, 0, 0)
    assert (lone.do("PEXPIRE", "a", 20_000, "GT"), lone.ask("TTL", "a")) == (1, 20)
    assert (lone.do("SET", "a", "3", "KEEPTTL"), lone.ask("TTL", "a")) == ("OK", 20)
    assert (lone.do("INCR", "a"), lone.ask("TTL", "a")) == (4, 20)
    assert (lone.do("PERSIST", "a"), lone.do("PERSIST", "a"), lone.ask("TTL", "a")) == (1, 0, -1)
    assert (lone.do("GETEX", "a", "EX", 3), lone.ask("TTL", "a")) == (b"4", 3)
    assert (lone.do("EXPIREAT", "a", 1), lone.ask("EXISTS", "a")) == (1, 0), "a time that has been"


def test_what_has_expired_is_removed_by_whatever_comes_next(lone: Lone) -> None:
    for number in range(3000):
        lone.do("SET", f"k{number}", "x", "PX", 1 + number % 700)
    lone.do("SET", "stays", "x", "PX", 60_000)
    lone.store.take_events()
    lone.now_ms += 2000
    assert lone.store.is_due(lone.now_ms)
    batches = 0
    while lone.store.is_due(lone.now_ms):
        lone.batch()
        batches += 1
    assert 3 <= batches <= 12, "some at a time"
    assert [name for name in lone.entries if name[:1] == KEY] == [KEY + b"stays"]
    expired = [key for channel, key in lone.store.take_events() if channel == b"__keyevent@0__:expired"]
    assert len(expired) == 3000


def test_a_lease_that_is_renewed_again_and_again_leaves_no_trail(lone: Lone) -> None:
    lone.do("SET", "a", "x", "PX", 10_000)
    for _ in range(503):
        lone.now_ms += 1000
        lone.do("PEXPIRE", "a", 10_000)
        assert len(lone.entries) <= 6
    assert lone.ask("GET", "a") == b"x"
    lone.do("PEXPIRE", "a", 300)
    lone.now_ms += 500
    lone.batch()
    assert KEY + b"a" not in lone.entries, "it was noted for sooner"


def test_a_key_that_is_made_again_and_again_has_one_note_that_counts(lone: Lone) -> None:
    for _ in range(500):
        lone.now_ms += 100
        lone.do("SET", "a", "x")
        lone.do("SET", "a", "x", "PX", 5000)
    assert len(lone.entries) < 110, "the others are dropped when it is their time"


# --- locks, sessions, groups --------------------------------------------------------------------------------------


def test_a_lock_changes_hands_with_a_higher_token(lone: Lone) -> None:
    first, second = lone.do("SESSION.OPEN", 1000, "one"), lone.do("SESSION.OPEN", 5000)
    token = lone.do("LOCK.ACQUIRE", "l", first)
    assert lone.do("LOCK.ACQUIRE", "l", first) == token
    assert lone.do("LOCK.ACQUIRE", "l", second) is None
    assert lone.ask("LOCK.GET", "l") == [first, token, b"one", 1000]
    assert lone.do("LOCK.RELEASE", "l", second) == 0
    assert lone.do("FENCED", "l", token, "SET", "work", "1") == "OK"
    lone.now_ms += 1000
    assert lone.ask("LOCK.GET", "l") is None, "its lease has ended"
    later = lone.do("LOCK.ACQUIRE", "l", second)
    assert later > token
    assert lone.fails("FENCED", "l", token, "SET", "work", "2").startswith("FENCED token")
    assert (lone.ask("LOCK.CHECK", "l", token), lone.ask("LOCK.CHECK", "l", later)) == (0, 1)
    assert lone.fails("LOCK.RELEASE", "l", first).startswith("NOSESSION")
    assert (lone.do("LOCK.RELEASE", "l", second), lone.ask("LOCK.GET", "l")) == (1, None)
    assert lone.fails("FENCED", "l", later, "SET", "work", "2").startswith("FENCED")
    assert lone.ask("GET", "work") == b"1"
    events = [event for event in lone.store.take_events() if event[0] == b"__lock__:l"]
    assert [message.split()[0] for _, message in events] == [b"acquired", b"acquired", b"released"]


def test_with_a_session_goes_what_was_its(lone: Lone) -> None:
    session = lone.do("SESSION.OPEN", 3000, "me")
    lone.do("LOCK.ACQUIRE", "l", session)
    assert (lone.do("MEMBER.JOIN", "g", session, "here"), lone.do("MEMBER.JOIN", "g", session, "there")) == (
        1,
        0,
    )
    lone.do("SESSION.SET", session, "mine", "1")
    lone.do("SESSION.SET", session, "taken", "1")
    lone.do("SET", "taken", "2")
    assert lone.ask("SESSION.GET", session) == [b"me", 3000, 3000, [b"l"], [b"mine"], [b"g"]]
    assert lone.ask("MEMBER.LIST", "g") == [[session, b"there"]]
    lone.now_ms += 2000
    assert lone.do("SESSION.RENEW", session) == 3000
    lone.now_ms += 2999
    assert lone.ask("SESSION.GET", session)[2] == 1
    lone.now_ms += 1
    assert (lone.ask("SESSION.GET", session), lone.ask("MEMBER.LIST", "g")) == (None, [])
    lone.now_ms += 200
    lone.batch()
    assert (lone.ask("GET", "mine"), lone.ask("GET", "taken"), lone.do("SESSION.CLOSE", session)) == (
        None,
        b"2",
        0,
    )
    assert (b"__member__:g", b"left %d" % session) in lone.store.take_events()


def test_a_session_that_is_closed_ends_at_once(lone: Lone) -> None:
    session, other = lone.do("SESSION.OPEN", 3000), lone.do("SESSION.OPEN", 3000, "other")
    lone.do("LOCK.ACQUIRE", "l", session)
    lone.do("MEMBER.JOIN", "g", session)
    lone.do("MEMBER.JOIN", "g", other)
    lone.do("MEMBER.JOIN", "h", other)
    assert (lone.do("MEMBER.LEAVE", "h", other), lone.do("MEMBER.LEAVE", "h", other)) == (1, 0)
    assert (lone.do("SESSION.CLOSE", session), lone.ask("MEMBER.LIST", "g")) == (1, [[other, b""]])
    assert lone.do("LOCK.ACQUIRE", "l", other) > 0


def test_once(lone: Lone) -> None:
    session = lone.do("SESSION.OPEN", 3000)
    assert [lone.do("ONCE", session, 1, "INCR", "n") for _ in range(3)] == [1, 1, 1]
    assert lone.do("ONCE", session, 2, "incr", "n") == 2
    assert lone.fails("ONCE", session, 1, "INCR", "n").startswith("STALE")
    failed = lone.do("ONCE", session, 3, "INCR", "n", "x")
    lone.do("SET", "n", "7")
    assert is_error(failed)
    assert lone.do("ONCE", session, 3, "INCR", "n", "x") == failed
    assert is_error(lone.do("ONCE", session, 4, "ONCE", session, 5, "INCR", "n"))
    assert lone.do("ONCE", session, 5, "SESSION.CLOSE", session) == 1
    assert lone.ask("GET", "n") == b"7"


# --- transactions ---------------------------------------------------------------------------------------------------


def test_a_transaction_happens_if_nothing_watched_has_changed(lone: Lone) -> None:
    lone.do("SET", "a", "1")
    watched = [[b"a", lone.ask("WATCH", "a")[0]], [b"new", lone.ask("WATCH", "new")[0]]]
    execute = [b"EXEC", watched, [b"INCR", b"a"], [b"SET", b"new", b"x"], [b"INCR", b"new"], [b"GET", b"new"]]
    first = lone.batch(execute)[0]
    assert (first[0], first[1], is_error(first[2]), first[3]) == (2, "OK", True, b"x")
    assert lone.batch(execute) == [NOT_DONE]
    assert lone.ask("GET", "a") == b"2"


def test_a_change_in_the_same_batch_counts(lone: Lone) -> None:
    lone.batch([b"SET", b"a", b"1"], [b"SET", b"b", b"1"])
    versions = lone.ask("WATCH", "a", "b")
    assert versions[0] != versions[1]
    replies = lone.batch(
        [b"SET", b"a", b"2"], [b"EXEC", [[b"a", versions[0]]], [b"SET", b"a", b"3"]], [b"GET", b"a"]
    )
    assert replies == ["OK", NOT_DONE, b"2"]


# --- replies that are large -------------------------------------------------------------------------------------------


def test_a_batch_stops_when_its_replies_are_large(lone: Lone) -> None:
    big = b"x" * (6 << 20)
    lone.do("SET", "big", big)
    replies = lone.batch(*[[b"GETSET", b"big", b"%d" % number + big] for number in range(9)])
    assert len(replies) == 2
    assert lone.ask("GETRANGE", "big", 0, 0) == b"1", "what was not answered was not done"
    assert len(lone.batch(*[[b"APPEND", b"big", b"x"]] * 9)) == 2, "though its replies are small"
    assert len(unpack(lone.store.query(lone.now_ms, pack([[b"GET", b"big"]] * 9)))) == 3
    for command in ("MGET", "EXISTS", "WATCH"):
        assert is_error(lone.ask(command, "big", "big", "big"))
    replies = lone.batch([b"EXEC", [], *[[b"GET", b"big"]] * 11, [b"SET", b"small", b""]])[0]
    assert [is_error(reply) for reply in replies] == [False] * 11 + [True]
    assert lone.fails("APPEND", "big", b"x" * (11 << 20)).startswith("ERR string exceeds")
    lone.batch(*[[b"SET", b"big%d" % number, big] for number in range(2)])
    cursor, found = lone.ask("SCAN", 0, "COUNT", 100)
    assert (cursor, len(found)) == (b"0", 3)


def test_scan_stops_early_where_values_are_large(lone: Lone) -> None:
    for number in range(60):
        lone.do("SET", f"{number}", b"x" * 1_000_000)
    cursor, found = lone.ask("SCAN", 0, "COUNT", 1000)
    assert 16 <= len(found) <= 32
    assert len(found) + len(lone.ask("SCAN", cursor, "COUNT", 1000)[1]) > len(found)


def test_names_are_short_and_things_are_few(lone: Lone) -> None:
    session, name = lone.do("SESSION.OPEN", 1000), b"n" * 1025
    for words in (
        ["LOCK.ACQUIRE", name, session], ["MEMBER.JOIN", name, session], ["SESSION.SET", session, name, "x"],
        ["SESSION.OPEN", 1000, name], ["MEMBER.JOIN", "g", session, b"d" * 257],
    ):  # fmt: skip
        assert "bytes are too many here" in lone.fails(*words)
    for number in range(1000):
        lone.do("LOCK.ACQUIRE", f"l{number}", session)
    assert lone.fails("LOCK.ACQUIRE", "l1000", session).startswith("ERR there are 1000 already")


def test_the_reply_to_what_is_done_once_is_kept_if_it_is_short(lone: Lone) -> None:
    session = lone.do("SESSION.OPEN", 1000)
    lone.do("SET", "a", b"x" * 100_000)
    assert len(lone.do("ONCE", session, 1, "GET", "a")) == 100_000
    assert is_error(lone.do("ONCE", session, 1, "GET", "a"))


# --- snapshots ---------------------------------------------------------------------------------------------------


def random_operation(chance: random.Random, sessions: list[int]) -> list[bytes]:
    key, session = b"k%d" % chance.randrange(30), b"%d" % chance.choice(sessions or [0])
    lock = b"l%d" % chance.randrange(4)
    return chance.choice([
        [b"SET", key, b"%d" % chance.randrange(99)], [b"SET", key, b"7", b"PX", b"%d" % chance.randrange(1, 3000)],
        [b"DEL", key], [b"INCR", key], [b"PEXPIRE", key, b"%d" % chance.randrange(0, 3000)], [b"PERSIST", key],
        [b"GETDEL", key], [b"APPEND", key, b"1"], [b"SESSION.OPEN", b"%d" % chance.randrange(1, 3000)],
        [b"SESSION.RENEW", session], [b"SESSION.CLOSE", session], [b"LOCK.ACQUIRE", lock, session],
        [b"LOCK.RELEASE", lock, session], [b"MEMBER.JOIN", lock, session], [b"MEMBER.LEAVE", lock, session],
        [b"SESSION.SET", session, key, b"s"], [b"MSET", key, b"1", key + b"x", b"2"],
        [b"EXEC", [], [b"INCR", key], [b"DEL", key]],
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_a_snapshot_is_of_the_instant_in_which_it_began(lone: Lone, seed: int) -> None:
    """Whatever happens meanwhile; and who is made from it goes on as the original does."""
    chance = random.Random(seed)
    sessions: list[int] = []

    def some(count: int) -> list[bytes]:
        """What was applied, so that it can be applied elsewhere."""
        log = []
        for _ in range(count):
            lone.now_ms += chance.randrange(200)
            operations = [random_operation(chance, sessions) for _ in range(chance.randrange(4))]
            log.append((lone.index + 1, lone.now_ms, pack(operations)))
            for operation, reply in zip(operations, lone.batch(*operations), strict=True):
                if operation[0] == b"SESSION.OPEN":
                    sessions.append(reply)
            lone.audit()
        return log

    some(60)
    before = dict(lone.entries)
    snapshot, abandoned = lone.store.begin_snapshot(), lone.store.begin_snapshot()
    parts, log = [], []
    while (part := snapshot.next(chance.randrange(1, 400))) is not None:
        parts.append(part)
        log += some(chance.randrange(3))
    abandoned.next(1)
    abandoned.close()
    assert lone.store.keys.before_change == []
    copy = Lone()
    copy.do("SET", "old", "x")
    copy.store.clear()
    for part in parts:
        copy.store.install(part)
    assert dict(copy.entries) == before
    log += some(20)
    for index, stamp_ms, command in log:
        copy.store.apply(index, stamp_ms, command)
    assert dict(copy.entries) == dict(lone.entries)
