"""A conversation with one client, without I/O: bytes in; operations out for the store; replies in; bytes out.

Theory of operation. Commands are answered in the order in which they came. Those that concern the connection alone are
answered here. The others are sent on in **runs**: as many as have come, in one piece, but one run at a time. So replies
need no sorting, a client that sends without waiting has its commands carried out by the thousand, and what is
remembered of one is bounded: what has come beyond the run under way waits unread in the end. A run begins with reads,
and then has nothing but reads, which some replica answers; or it begins with a write, and goes into the log whole.

MULTI collects commands here; EXEC sends them as one operation, with the versions of the keys that WATCH has asked for:
the store compares them, and does all or nothing.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from bequest.paxos import scripts
from bequest.paxos.commands import COMMANDS, look_up
from bequest.paxos.keyspace import to_int
from bequest.paxos.replies import Failure, Push, encode, error, is_error
from bequest.paxos.resp import Bounds, Requests
from bequest.paxos.strings import glob

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.paxos.pubsub import Channels

Words = list[bytes]
_RUN_OPERATIONS_MAX = 1024
_RUN_BYTES_MAX = 1 << 20
_QUEUED_MAX = 65_536  # commands in one transaction
_WAIT_MS_MAX = 3600 * 1000  # for a lock
_COMMAND_BYTES = 200  # what a command takes here, beside its bytes, about
_KEYS_AT_A_TIME = b"1000"
_IN_SUBSCRIPTION = {b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"PING", b"QUIT", b"RESET"}
_ids = itertools.count(1)


class Again(NamedTuple):
    """Not a reply yet: this operation comes first, alone in its run."""

    operation: list[Any]


class _Wait:
    """For a lock: hears on its channel that it may be free."""

    def __init__(self, lock: bytes, wait_ms: int, wake: Callable[[], None]) -> None:
        self.channel = b"__lock__:" + lock
        self.wait_ms = wait_ms
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.is_parked = False  # nothing is under way: it was somebody else's
        self.has_heard = False
        self._wake = wake

    def hear(self, _: list[bytes]) -> None:
        """Something has happened to it."""
        self.has_heard = True
        self._wake()


class Run:
    """Operations of one client that are sent on together. ``after`` has what is to be made of a reply, by position."""

    __slots__ = ("after", "conversation", "is_write", "nbytes", "operations")

    def __init__(self, conversation: Conversation, *, is_write: bool) -> None:
        self.conversation = conversation
        self.is_write = is_write
        self.operations: list[list[Any]] = []
        self.nbytes = 0  # about
        self.after: dict[int, Callable[[Any], Any]] = {}


class Conversation:
    """With one client. ``describe`` says what INFO says; ``wake`` is called when there is a message for the client."""

    def __init__(
        self,
        bounds: Bounds,
        channels: Channels,
        describe: Callable[[], dict[str, object]],
        wake: Callable[[], None],
    ) -> None:
        self.id = next(_ids)
        self.protocol = 2
        self.name = b""
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.is_ending = False  # nothing more is read of it; what is written is written still
        self._all_channels = channels
        self._describe = describe
        self._wake = wake
        self._requests = Requests(bounds)
        self._waiting: deque[Words] = deque()
        self._waiting_bytes = 0
        self._run: Run | None = None
        self._wait: _Wait | None = None
        self._out: list[bytes] = []
        self._queued: list[Words] | None = None
        self._queued_bytes = 0
        self._bounds = bounds
        self._is_spoilt = False  # the transaction: a command of it was refused
        self._watched: dict[bytes, int] = {}

    # --- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """What the client has sent."""
        commands = [] if self.is_ending else self._requests.feed(data)
        if commands:
            self._waiting += commands
            self._waiting_bytes += len(data) + _COMMAND_BYTES * len(commands)

    @property
    def held_bytes(self) -> int:
        """About what is kept of what the client has sent."""
        return self._waiting_bytes + len(self._requests) + self._queued_bytes

    @property
    def waiting_bytes(self) -> int:
        """About what of it could be carried out, if it were its turn."""
        return self._waiting_bytes

    @property
    def is_idle(self) -> bool:
        """Nothing waits, and nothing is under way."""
        return not self._waiting and self._run is None

    @property
    def is_subscribed(self) -> bool:
        """To any channel."""
        return bool(self.channels or self.patterns)

    def next_run(self) -> Run | None:
        """What is to be carried out next, if nothing is under way; answers what it can on the way."""
        waiting = self._waiting
        if self._run is not None:
            return None
        while waiting and self._run is None and not self.is_ending:
            words = waiting[0]
            try:
                spec = look_up(words)
                if self._queued is None and spec.where != "here":
                    self._check_may(spec.name)
                    self._run = self._collect(is_write=spec.where == "write")
                    break
                waiting.popleft()
                reply = self._queue(words) if self._queued is not None else self._answer_here(words)
            except Failure as failure:
                if waiting and waiting[0] is words:
                    waiting.popleft()
                self._is_spoilt = True
                reply = error(str(failure))
            if reply is not _ANSWERED:
                self._out.append(encode(reply, self.protocol))
        if not waiting:
            self._waiting_bytes = 0
            if self._requests.error and self._run is None and not self.is_ending:
                self._out.append(encode(error(f"ERR Protocol error: {self._requests.error}")))
                self.is_ending = True  # after that, nothing can be understood
        return self._run

    def _collect(self, *, is_write: bool) -> Run:
        """The next run, which has one operation at least."""
        run = Run(self, is_write=is_write)
        operations, waiting = run.operations, self._waiting
        nbytes = 0
        while waiting and len(operations) < _RUN_OPERATIONS_MAX:
            words = waiting[0]
            spec = COMMANDS.get(words[0])
            if spec is None or not spec.least < len(words) <= spec.most + 1:
                break  # its name may only have to be put into capitals: `next_run` sees to that
            if spec.where == "here" or (spec.where == "write" and not is_write):
                break
            if spec.name == b"LOCK.ACQUIRE" and len(words) > 3:
                if not operations:
                    self._begin_wait(run, words)
                    waiting.popleft()
                break
            nbytes += sum(map(len, words))
            if nbytes > _RUN_BYTES_MAX and operations:
                break
            if spec.name == b"PUBLISH":
                run.after[len(operations)] = self._receivers(words[1])
            operations.append(words)
            waiting.popleft()
        run.nbytes = nbytes
        return run

    def _receivers(self, channel: bytes) -> Callable[[Any], int]:
        """Of a message: how many there are here, when it has been published."""
        return lambda _: self._all_channels.count(channel)

    # --- waiting for a lock -------------------------------------------------------------------------------------

    def _begin_wait(self, run: Run, words: Words) -> None:
        """It is tried now, and each time that something happens to the lock, which is heard from before the first."""
        wait_ms = to_int(words[4]) if len(words) == 5 and words[3].upper() == b"WAIT" else -1
        if not 0 <= wait_ms <= _WAIT_MS_MAX:
            raise Failure(
                f"ERR LOCK.ACQUIRE lock session [WAIT milliseconds], which are at most {_WAIT_MS_MAX}"
            )
        wait = self._wait = _Wait(words[1], wait_ms, self._wake)
        self._all_channels.subscribe(wait, wait.channel)
        operation = words[:3]

        def look(token: int | None) -> Any:
            if token is not None:
                return token
            wait.is_parked, wait.has_heard = not wait.has_heard, False
            return Again(operation)

        run.operations.append(operation)
        run.after[0] = look

    def _end_wait(self) -> None:
        if self._wait is not None:
            self._all_channels.forget(self._wait)
            self._wait = None

    @property
    def waits_ms(self) -> int | None:
        """How long the client wants to wait, if nothing is to be done for it until something happens."""
        return self._wait.wait_ms if self._wait is not None and self._wait.is_parked else None

    def try_again(self) -> Run | None:
        """What waited, if something has happened to what it waits for."""
        wait = self._wait
        if wait is None or not (wait.is_parked and wait.has_heard):
            return None
        wait.is_parked = wait.has_heard = False
        return self._run

    def stop_waiting(self) -> None:
        """The time is over: nil."""
        self._end_wait()
        self._run = None
        self._out.append(encode(None, self.protocol))

    # --- runs of one --------------------------------------------------------------------------------------------

    def _run_alone(
        self, operation: list[Any], after: Callable[[Any], Any] | None, *, is_write: bool, nbytes: int = 0
    ) -> object:
        self._run = Run(self, is_write=is_write)
        self._run.operations.append(operation)
        self._run.nbytes = nbytes
        if after is not None:
            self._run.after[0] = after
        return _ANSWERED

    # --- out ----------------------------------------------------------------------------------------------------------

    def answer(self, replies: list[Any]) -> bool:
        """To the first operations of the run under way; whether these were all."""
        run = self._run
        assert run is not None, "replies come to a run"
        protocol = self.protocol
        for position, finish in run.after.items():
            if position < len(replies) and not is_error(replies[position]):
                replies[position] = finish(replies[position])
                if replies[position].__class__ is Again:  # then it was the only one
                    run.operations[0] = replies[position].operation
                    return False
        self._out += [encode(reply, protocol) for reply in replies]
        if len(replies) == len(run.operations):
            self._run = None
            self._end_wait()
            return True
        del run.operations[: len(replies)]
        run.after = {at - len(replies): finish for at, finish in run.after.items() if at >= len(replies)}
        return False

    def hear(self, message: list[bytes]) -> None:
        """A message of a channel."""
        self._out.append(encode(Push(message), self.protocol))
        self._wake()

    def take_output(self) -> bytes:
        """What is to be sent to the client now."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def end(self) -> None:
        """The client has gone."""
        self.is_ending = True
        self._waiting.clear()
        self._end_wait()
        self._all_channels.forget(self)

    # --- what is answered here --------------------------------------------------------------------------------

    def _check_may(self, name: bytes) -> None:
        if self.protocol == 2 and self.is_subscribed and name not in _IN_SUBSCRIPTION:
            raise Failure(
                f"ERR Can't execute '{name.decode().lower()}': only (P)SUBSCRIBE / (P)UNSUBSCRIBE / PING / QUIT / RESET"
                " are allowed in this context"
            )

    def _queue(self, words: Words) -> Any:
        """Within MULTI."""
        assert self._queued is not None
        spec = COMMANDS[words[0]]
        if spec.name in _ENDS_TRANSACTION:
            return self._answer_here(words)
        if spec.name in {b"MULTI", b"WATCH"}:
            raise Failure(f"ERR {spec.name.decode()} inside MULTI is not allowed")
        if spec.where == "here":
            raise Failure(
                f"ERR {spec.name.decode()} inside MULTI is not served: it concerns this connection only"
            )
        if spec.name == b"LOCK.ACQUIRE" and len(words) > 3:
            raise Failure("ERR LOCK.ACQUIRE with WAIT inside MULTI is not allowed")
        self._queued_bytes += sum(map(len, words))
        if len(self._queued) >= _QUEUED_MAX or self._queued_bytes > self._bounds.request_bytes:
            raise Failure(
                f"ERR a transaction has at most {_QUEUED_MAX} commands and {self._bounds.request_bytes} bytes"
            )
        self._queued.append(words)
        return "QUEUED"

    def _answer_here(self, words: Words) -> Any:
        self._check_may(words[0])
        return _HERE[words[0]](self, words)

    def _multi(self, _: Words) -> Any:
        self._queued, self._queued_bytes, self._is_spoilt = [], 0, False
        return "OK"

    def _leave_transaction(self) -> tuple[list[Words], dict[bytes, int]]:
        left = (self._queued or [], self._watched)
        self._queued, self._queued_bytes, self._watched = None, 0, {}
        return left

    def _exec(self, _: Words) -> Any:
        if self._queued is None:
            raise Failure("ERR EXEC without MULTI")
        queued, watched = self._leave_transaction()
        if self._is_spoilt:
            raise Failure("EXECABORT Transaction discarded because of previous errors.")
        return self._run_alone([b"EXEC", list(watched.items()), *queued], None, is_write=True)

    def _discard(self, _: Words) -> Any:
        if self._queued is None:
            raise Failure("ERR DISCARD without MULTI")
        self._leave_transaction()
        return "OK"

    def _watch(self, words: Words) -> Any:
        keys = words[1:]
        if len(self._watched) + len(keys) > _QUEUED_MAX:
            raise Failure(f"ERR at most {_QUEUED_MAX} keys are watched")

        def remember(versions: list[int]) -> str:
            for key, version in zip(keys, versions, strict=True):
                self._watched.setdefault(key, version)
            return "OK"

        return self._run_alone([b"WATCH", *keys], remember, is_write=False)

    def _unwatch(self, _: Words) -> Any:
        self._watched = {}
        return "OK"

    def _keys(self, words: Words) -> Any:
        """One SCAN after the other, so that nobody else waits for it."""
        glob(words[1])
        found: list[bytes] = []
        nbytes = 0

        def scan(cursor: bytes) -> list[Any]:
            return [b"SCAN", cursor, b"MATCH", words[1], b"COUNT", _KEYS_AT_A_TIME]

        def go_on(reply: Any) -> Any:
            nonlocal nbytes
            found.extend(reply[1])
            nbytes += sum(map(len, reply[1]))
            if nbytes > self._bounds.request_bytes:
                return error(f"ERR these are over {self._bounds.request_bytes} bytes of keys: use SCAN")
            return found if reply[0] == b"0" else Again(scan(reply[0]))

        return self._run_alone(scan(b"0"), go_on, is_write=False)

    # --- channels ---------------------------------------------------------------------------------------------

    def _subscribe(self, words: Words) -> Any:
        for channel in words[1:]:
            self._all_channels.subscribe(self, channel)
            self._confirm(b"subscribe", channel)
        return _ANSWERED

    def _psubscribe(self, words: Words) -> Any:
        for pattern in words[1:]:
            self._all_channels.subscribe_pattern(self, pattern)
            self._confirm(b"psubscribe", pattern)
        return _ANSWERED

    def _unsubscribe(self, words: Words) -> Any:
        channels = words[1:] or list(self.channels)
        for channel in channels:
            self._all_channels.unsubscribe(self, channel)
            self._confirm(b"unsubscribe", channel)
        if not channels:
            self._confirm(b"unsubscribe", None)
        return _ANSWERED

    def _punsubscribe(self, words: Words) -> Any:
        patterns = words[1:] or list(self.patterns)
        for pattern in patterns:
            self._all_channels.unsubscribe_pattern(self, pattern)
            self._confirm(b"punsubscribe", pattern)
        if not patterns:
            self._confirm(b"punsubscribe", None)
        return _ANSWERED

    def _confirm(self, what: bytes, name: bytes | None) -> None:
        self._out.append(encode(Push([what, name, len(self.channels) + len(self.patterns)]), self.protocol))

    def _pubsub(self, words: Words) -> Any:
        match words[1].upper(), words[2:]:
            case b"CHANNELS", []:
                return self._all_channels.names()
            case b"CHANNELS", [pattern]:
                like = glob(pattern)
                return [name for name in self._all_channels.names() if like.fullmatch(name)]
            case b"NUMSUB", names:
                return [part for name in names for part in (name, self._all_channels.subscribers(name))]
            case b"NUMPAT", []:
                return self._all_channels.pattern_count
        raise _unknown_subcommand(words)

    # --- the connection ---------------------------------------------------------------------------------------

    def _ping(self, words: Words) -> Any:
        if self.protocol == 2 and self.is_subscribed:
            return [b"pong", words[1] if len(words) > 1 else b""]
        return words[1] if len(words) > 1 else "PONG"

    def _hello(self, words: Words) -> Any:
        rest = words[1:]
        protocol = self.protocol
        if rest:
            if rest[0] not in {b"2", b"3"}:
                raise Failure("NOPROTO unsupported protocol version")
            protocol = int(rest.pop(0))
        while rest:
            option = rest.pop(0).upper()
            if option == b"SETNAME" and rest:
                self.name = rest.pop(0)
            elif option == b"AUTH":
                raise Failure(_NO_PASSWORDS)
            else:
                raise Failure(f"ERR Syntax error in HELLO option '{option.decode(errors='replace').lower()}'")
        self.protocol = protocol
        return {
            b"server": b"bequest", b"version": metadata.version("bequest").encode(), b"proto": protocol, b"id": self.id,
            b"mode": b"standalone", b"role": b"master", b"modules": [],
        }  # fmt: skip

    def _client(self, words: Words) -> Any:
        match words[1].upper(), words[2:]:
            case b"ID", []:
                return self.id
            case b"GETNAME", []:
                return self.name or None
            case b"SETNAME", [name]:
                self.name = name
                return "OK"
            case (b"SETINFO", [_, _]) | (b"NO-EVICT" | b"NO-TOUCH", [_]):
                return "OK"
        raise _unknown_subcommand(words)

    def _select(self, words: Words) -> Any:
        if words[1] != b"0":
            raise Failure("ERR DB index is out of range: there is one database, 0")
        return "OK"

    def _info(self, _: Words) -> Any:
        lines = [f"{name}:{value}" for name, value in self._describe().items()]
        return "\r\n".join(["# Bequest", *lines, ""]).encode()

    def _command(self, words: Words) -> Any:
        match [word.upper() for word in words[1:]]:
            case [b"COUNT"]:
                return len(COMMANDS)
            case [b"LIST"]:
                return sorted(COMMANDS)
            case [] | [b"INFO", *_]:
                return []
            case [b"DOCS", *_]:
                return {}
        raise _unknown_subcommand(words)

    def _config(self, words: Words) -> Any:
        if words[1].upper() == b"GET":
            return {}
        raise Failure("ERR the configuration is that of the service's own file, and of its command line")

    def _script(self, words: Words) -> Any:
        match words[1].upper(), words[2:]:
            case b"LOAD", [text]:
                return scripts.load(text)
            case b"EXISTS", [_, *_] as digests:
                return [int(digest.lower() in scripts.SCRIPTS) for digest in digests]
            case b"FLUSH", _:
                return "OK"
        raise _unknown_subcommand(words)

    def _auth(self, _: Words) -> Any:
        raise Failure(_NO_PASSWORDS)

    def _time(self, _: Words) -> Any:
        microseconds = time.time_ns() // 1000
        return [b"%d" % (microseconds // 1_000_000), b"%d" % (microseconds % 1_000_000)]

    def _reset(self, _: Words) -> Any:
        self._leave_transaction()
        self._all_channels.forget(self)
        self.protocol, self.name = 2, b""
        return "RESET"

    def _quit(self, _: Words) -> Any:
        self.is_ending = True
        return "OK"


_ANSWERED = object()  # or going to be
_NO_PASSWORDS = "ERR this service has no passwords: whoever reaches its address may use it"
_ENDS_TRANSACTION = {b"EXEC", b"DISCARD", b"RESET", b"QUIT"}


def _unknown_subcommand(words: Words) -> Failure:
    return Failure(
        f"ERR unknown subcommand or wrong number of arguments for '{words[1][:128].decode(errors='replace')}'."
        f" This service has not all of Redis's {words[0].decode()}"
    )


_HERE: dict[bytes, Callable[[Conversation, Words], Any]] = {
    b"AUTH": Conversation._auth, b"CLIENT": Conversation._client, b"COMMAND": Conversation._command,
    b"CONFIG": Conversation._config, b"DISCARD": Conversation._discard, b"ECHO": lambda _, words: words[1],
    b"EXEC": Conversation._exec, b"HELLO": Conversation._hello, b"INFO": Conversation._info,
    b"KEYS": Conversation._keys, b"MULTI": Conversation._multi, b"PING": Conversation._ping,
    b"PSUBSCRIBE": Conversation._psubscribe, b"PUBSUB": Conversation._pubsub,
    b"PUNSUBSCRIBE": Conversation._punsubscribe, b"QUIT": Conversation._quit, b"READONLY": lambda *_: "OK",
    b"READWRITE": lambda *_: "OK", b"RESET": Conversation._reset, b"SCRIPT": Conversation._script,
    b"SELECT": Conversation._select, b"SUBSCRIBE": Conversation._subscribe, b"TIME": Conversation._time,
    b"UNSUBSCRIBE": Conversation._unsubscribe, b"UNWATCH": Conversation._unwatch, b"WATCH": Conversation._watch,
}  # fmt: skip
