"""Calling actors from a program that is none.

A client is made for each attachment, with a mailbox of its own, so that what actors send does not mix with what the
program accepts; regions come to the program's own process all the same. A thread takes in what arrives, and sends what
has to be sent again when an actor has died and its standby goes on. What has been sent and not been handled is in this
process's memory: it is lost with it, and never handled twice.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, NamedTuple

from bequest.actors import calls, mail
from bequest.actors.mail import Address
from bequest.actors.office import Office, let_go
from bequest.actors.outgoing import MemoryRecords, Outgoing
from bequest.errors import BequestError, CallTimeout, RemoteError, UnknownActor
from bequest.limits import ACTOR_MESSAGES_WAITING
from bequest.memory.connections import expect
from bequest.memory.inbox import as_nanoseconds
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.memory.process import Process

_BUSY_INTERVAL, _IDLE_INTERVAL = 0.01, 0.1  # seconds between looks whether an actor has died
_PARTING = 5.0  # seconds for what has been sent to be handled, when the process detaches
_log = logging.getLogger("bequest")


class _Call(NamedTuple):
    future: Future[Any]
    actor: str
    method: str


class Client(Office):
    """The sender that a `Ref` of a plain process stands for."""

    def __init__(self, process: Process) -> None:
        reply, _ = process._links.mmu.request(wire.OpenMailbox(None, create=True))
        mailbox = expect(reply, wire.MailboxOpened)
        super().__init__(process, Address(mailbox.id, mailbox.incarnation))
        self._lock = threading.RLock()
        self._progress = threading.Condition(self._lock)
        self._streams: dict[str, Outgoing] = {}
        self._calls: dict[tuple[bytes, int], _Call] = {}
        self._is_closed = False
        self._fault: BequestError | None = None
        process._before_leaving.append(self._part)
        threading.Thread(target=self._serve, name="bequest-actors", daemon=True).start()

    # --- sending ----------------------------------------------------------------------------------------------

    def send(self, to: str, method: str, arguments: tuple[object, ...]) -> None:
        """`Ref.send`."""
        packed = mail.pack_message(False, method, arguments)
        with self._lock:
            outgoing = self._usable(to)
            self._append(outgoing, packed)
            if packed.regions or outgoing.waiting >= ACTOR_MESSAGES_WAITING:
                self._wait(outgoing, lambda: not outgoing.promised and self._has_room(outgoing), None)

    def call(self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None) -> Any:
        """`Ref.call`."""
        number, outgoing, future = self._begin_call(to, method, arguments)
        try:
            return future.result(timeout)
        except FutureTimeout:
            if future.done():
                raise
            self._give_up(outgoing, number)
            raise calls.timed_out(to, method, timeout) from None

    async def call_async(
        self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None
    ) -> Any:
        """`Ref.call_async`."""
        import asyncio  # on demand, see memory/inbox.py

        number, outgoing, future = self._begin_call(to, method, arguments)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError as error:
            if isinstance(error, CallTimeout | RemoteError):
                raise
            raise calls.timed_out(to, method, timeout) from None
        finally:
            self._give_up(outgoing, number)

    def flush(self, to: str, timeout: float | None) -> None:
        """`Ref.flush`."""
        with self._lock:
            outgoing = self._streams.get(to)
            if outgoing is not None and not self._wait(outgoing, lambda: outgoing.waiting == 0, timeout):
                raise CallTimeout(
                    f"actor {to!r} has not handled {outgoing.waiting} messages within {timeout} s"
                )

    def _begin_call(
        self, to: str, method: str, arguments: tuple[object, ...]
    ) -> tuple[int, Outgoing, Future[Any]]:
        packed = mail.pack_message(True, method, arguments)
        with self._lock:
            outgoing = self._usable(to)
            number = outgoing.records.end
            future: Future[Any] = Future()
            self._calls[outgoing.stream, number] = _Call(future, to, method)
            outgoing.call(number, packed.data)
            self._append(outgoing, packed)
            if packed.regions:
                self._wait(outgoing, lambda: not outgoing.promised, None)
            return number, outgoing, future

    def _append(self, outgoing: Outgoing, packed: mail.Packed) -> None:
        if packed.regions:
            outgoing.promised.update((mail.identity(region), region) for region in packed.regions)
        outgoing.records.append(packed.data)
        outgoing.push()

    def _usable(self, to: str) -> Outgoing:
        """The stream to that actor. Raises UnknownActor, or what has ended the client."""
        if self._fault is not None:
            raise self._fault
        outgoing = self._streams.get(to)
        if outgoing is None:
            self.find_actor(to)
            stream = mail.stream_name(mail.CLIENT, secrets.token_bytes(16))
            outgoing = self._streams[to] = self.outgoing[stream] = Outgoing(self, stream, to, MemoryRecords())
        if outgoing.trouble is not None:
            outgoing.push()  # perhaps there is one again
            if outgoing.trouble is not None:
                raise outgoing.trouble
        return outgoing

    @staticmethod
    def _has_room(outgoing: Outgoing) -> bool:
        return outgoing.waiting < ACTOR_MESSAGES_WAITING

    def _wait(self, outgoing: Outgoing, is_done: Any, timeout: float | None) -> bool:
        """Until it is, or until it cannot be; the lock is held. False after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_done():
            if self._fault is not None:
                raise self._fault
            if outgoing.trouble is not None:
                raise outgoing.trouble
            left = _IDLE_INTERVAL if deadline is None else min(_IDLE_INTERVAL, deadline - time.monotonic())
            if left <= 0:
                return False
            self._progress.wait(left)
        return True

    def _give_up(self, outgoing: Outgoing, number: int) -> None:
        """The reply is not wanted any more."""
        with self._lock:
            outgoing.answer(number)
            self._calls.pop((outgoing.stream, number), None)

    # --- in the client's thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._is_closed:
                is_busy = not all(outgoing.is_idle for outgoing in list(self._streams.values()))
                interval = _BUSY_INTERVAL if is_busy or self.is_waiting_for_room else _IDLE_INTERVAL
                self.process._wait_ready(self.address.id, as_nanoseconds(interval))
                with self._lock:
                    if not self._is_closed:
                        self._turn()
        except BequestError as error:
            with self._lock:
                self._fault = error
                for call in self._calls.values():
                    _fail(call, error)
                self._progress.notify_all()

    def _turn(self) -> None:
        if self.read_all() == 0:
            self.process.check_rack()
        self.retry()
        for outgoing in self._streams.values():
            outgoing.look_after()
            if outgoing.trouble is not None:
                self._fail_calls(outgoing)
        self._progress.notify_all()

    def _fail_calls(self, outgoing: Outgoing) -> None:
        for number in list(outgoing.unanswered):
            outgoing.answer(number)
            call = self._calls.pop((outgoing.stream, number), None)
            if call is not None:
                _fail(
                    call,
                    UnknownActor(f"{outgoing.trouble}; whether it has handled {call.method}() is not known"),
                )

    def deliver_reply(self, stream: bytes, reply: list[Any]) -> None:
        """Ends the call, unless nobody waits for it any more: then its regions go."""
        outgoing = self.outgoing.get(stream)
        call = self._calls.pop((stream, reply[0]), None)
        if outgoing is None or not outgoing.answer(reply[0]) or call is None:
            for name in reply[3] if len(reply) > 3 else ():
                region = self.arrived.pop(tuple(name), None)
                if region is not None:
                    let_go(region)
            return
        try:
            value = calls.outcome(call.actor, call.method, reply, self.arrived.pop)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            _fail(call, error)
        else:
            if not call.future.cancelled():
                call.future.set_result(value)

    def _part(self) -> None:
        """The process detaches: what has been sent is handled before, if that does not take long."""
        deadline = time.monotonic() + _PARTING
        with self._lock:
            for outgoing in self._streams.values():
                try:
                    done = self._wait(
                        outgoing, lambda one=outgoing: one.waiting == 0, deadline - time.monotonic()
                    )
                except BequestError:
                    done = outgoing.waiting == 0
                if not done:
                    _log.warning(
                        "%d messages to actor %r were not handled when %r detached",
                        outgoing.waiting,
                        outgoing.to,
                        self.process.name,
                    )
                outgoing.say_farewell()
            self._is_closed = True
            self.arrived.clear()


def _fail(call: _Call, error: BaseException) -> None:
    if not call.future.done():
        call.future.set_exception(error)


# What keeps a client is its process, which has to part from it when it detaches.
_clients: weakref.WeakKeyDictionary[Process, weakref.ref[Client]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def client_of(process: Process) -> Client:
    """The one client of an attachment."""
    with _making:
        known = _clients.get(process)
        client = None if known is None else known()
        if client is None:
            process.check_rack()
            client = Client(process)
            _clients[process] = weakref.ref(client)
        return client
