"""What runs an actor: events, one after the other, each one transaction of its heap.

Theory of operation. A message is named by its stream and number. The books, in the heap, say which number of each
stream is expected next; so a message that comes twice is known, and one that was lost is asked for. An event:

    begin          the transaction
      handler      changes the state, writes messages for others into outboxes, keeps and drops regions
      books        reply, if one is wanted; next number of the stream
    commit         <- the commit point: now it has happened, and happens no more
    afterwards     regions are granted and posts sent, from what has been written; the reply; the receipt

A process that dies before the commit has done nothing, and the sender, who has no receipt, sends the message again to
whoever inherits the heap. One that dies after it has done everything that cannot be done again from the heap: the
heir sends the rest. What a receiver gets twice it knows by its number.

**Regions** come before the message that speaks of them and are found by their names (`mail.identity`). At an event's
end a region of it has been promised to a receiver or kept, which is written down, or is freed. The estate of a
dead actor has all of those, and others that had arrived for messages not handled yet; those messages will be sent
again and claim theirs. What nobody claims within some minutes belonged to an event that never was, and is freed.

**A handler that raises** has its event undone; then a second transaction takes the message, with an error for a reply
or a dead letter. So no message is tried for ever. Only that a process is killed makes its event begin again.

**Calls from within an event** cannot wait for its commit. They go at once, in a stream of that event's own: if the
event has to be handled again, its calls have the same names, and the callee knows them and repeats its replies. When
the event is over, a message in the ordinary outbox has the callee forget that stream.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from bequest.actors import calls, mail
from bequest.actors.actor import Actor, handlers, state_class
from bequest.actors.books import Books, Incoming, dead_letter, digest_of
from bequest.actors.event import Event, RegionLost, Stopped
from bequest.actors.mail import Address, Identity
from bequest.actors.office import Office, let_go
from bequest.actors.outgoing import MemoryRecords, Outgoing
from bequest.errors import HeapMisuse, NotSendable, UnknownMethod
from bequest.limits import ACTOR_POST_BYTES, UNCLAIMED_REGIONS_KEPT
from bequest.memory.inbox import as_nanoseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bequest.memory.process import Process
    from bequest.memory.region import Region
    from bequest.objects.heap import Heap

_BUSY_INTERVAL, _IDLE_INTERVAL = 0.01, 0.1  # seconds between looks at who has died, and whether to stop
_READ = 64  # arrivals at a time
_TRACE_CHARACTERS_MAX = 16_000
_FORGET = ".forget"


class Host(Office):
    """An actor in this process. ``regions`` are what it has inherited beside its heap, from all who bore it before."""

    def __init__(
        self,
        process: Process,
        heap: Heap,
        kind: type[Actor],
        name: str,
        books: Books,
        regions: Iterable[Region] = (),
    ) -> None:
        super().__init__(process, address_of(process))
        self.name = name
        self.heap = heap
        self.books = books
        self.is_stopping = False
        self._owned: dict[Identity, Region] = {}  # what is kept
        self._promised: dict[Identity, Region] = {}  # in replies that have not gone
        self._posts: deque[mail.Mail | mail.Query | mail.Farewell] = deque()
        self._due: deque[tuple[bytes, Address, bytes]] = deque()  # replies
        self._receipts: list[tuple[Outgoing, mail.Receipt]] = []  # that came in the middle of an event
        self._answers: dict[tuple[bytes, int], list[Any] | None] = {}  # of calls under way
        self._event: Event | None = None
        self._sort(regions)
        kept = state_class(kind)
        self.state = None if kept is None else kept(heap, "actor/state")
        self.actor = kind(self)
        self._transaction = heap.transaction()
        self._plain_handlers, self._async_handlers = handlers(self.actor)
        self._plain_handlers |= {_FORGET: self.books.forget, ".dead_letters": self.books.dead_letters}
        self.actor.setup()

    def _sort(self, regions: Iterable[Region]) -> None:
        """What was inherited: kept, promised, or for a message that will come."""
        for region in regions:
            if region.nbytes == 0:
                continue  # its sender sends it again, like what is in an envelope
            if mail.is_envelope(region):
                region.free()
            else:
                self.arrived[mail.identity(region)] = region
        for name in self.books.all_kept().values():
            self._move(name, self._owned)
        for to in self.books.destinations():
            outgoing = self._outbox(to)
            for record in outgoing.records.read(
                outgoing.records.first, outgoing.records.end - outgoing.records.first
            ):
                for name in mail.names_in(record):
                    self._move(name, outgoing.promised)
        for record in self.books.kept_replies():
            for name in mail.names_in(record):
                self._move(name, self._promised)
        self._strangers = list(self.arrived)
        self._strangers_until = time.monotonic() + UNCLAIMED_REGIONS_KEPT

    def _move(self, name: Identity, to: dict[Identity, Region]) -> None:
        region = self.arrived.pop(name, None)
        if region is not None:
            to[name] = region

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Handles messages until `stop` is called."""
        if self._async_handlers:
            import asyncio  # on demand, see memory/inbox.py

            with contextlib.suppress(Stopped), asyncio.Runner() as runner:
                runner.run(self._serve())
            return
        with contextlib.suppress(Stopped, StopIteration):
            self._serve().send(None)  # without such handlers, it waits only in the kernel

    def stop(self) -> None:
        """Ends `run` when the event under way is over."""
        self.is_stopping = True

    def close(self) -> None:
        """Lets go of the heap: the process can detach."""
        self.heap.close()

    async def _serve(self) -> None:
        while not self.is_stopping:
            await self._wait()
            self.retry()
            if self._posts:
                await self._handle(self._posts.popleft())
            for outgoing in self.outgoing.values():
                outgoing.look_after()
            self._send_replies()
            self._tidy()

    async def _wait(self) -> None:
        """Until something has come, or it is time to look around."""
        if self._posts:
            self.read_all()
            return
        is_busy = self._due or self.is_waiting_for_room
        is_busy = is_busy or not all(outgoing.is_idle for outgoing in self.outgoing.values())
        interval = _BUSY_INTERVAL if is_busy else _IDLE_INTERVAL
        if self._async_handlers and await _others_run():
            import asyncio

            await self.process.inbox._until_ready(asyncio.get_running_loop(), interval)
            interval = 0.0
        arrivals = self.process._accept(self.address.id, _READ, as_nanoseconds(interval))
        for arrival in arrivals:
            self.take(arrival)
        if not arrivals:
            self.process.check_rack()

    def _tidy(self) -> None:
        self.books.sweep(self.lives)
        if self._strangers and time.monotonic() > self._strangers_until:
            for name in self._strangers:
                region = self.arrived.pop(name, None)
                if region is not None:
                    let_go(region)
            self._strangers = []

    # --- what comes ---------------------------------------------------------------------------------------------

    def deliver(self, post: mail.Mail | mail.Query | mail.Farewell) -> None:
        """In the order in which they come."""
        self._posts.append(post)

    def deliver_receipt(self, outgoing: Outgoing, receipt: mail.Receipt) -> None:
        """Drops records of the heap; not within an event, with which that would be undone."""
        if self._event is not None and outgoing.stream not in self._event.touch().calls:
            self._receipts.append((outgoing, receipt))
        else:
            outgoing.receive(receipt)

    def deliver_reply(self, stream: bytes, reply: list[Any]) -> None:
        """For the event under way; what is left of another's is not wanted any more."""
        key = (stream, reply[0])
        if key in self._answers:
            self._answers[key] = reply
            self.outgoing[stream].answer(reply[0])
            return
        for name in reply[3] if len(reply) > 3 else ():
            region = self.arrived.pop(tuple(name), None)
            if region is not None:
                let_go(region)

    async def _handle(self, post: mail.Mail | mail.Query | mail.Farewell) -> None:
        match post:
            case mail.Mail():
                await self._handle_mail(post)
            case mail.Query(stream, sender, wanted):
                self._repeat_replies(stream, sender, wanted)
            case mail.Farewell(stream):
                self.books.forget(stream)

    async def _handle_mail(self, post: mail.Mail) -> None:
        stream = post.stream
        incoming = self.books.incoming(stream) or self.books.begin(post)
        incoming.sender = post.sender
        if incoming.replies and incoming.replies[0] < post.answered:
            self.books.forget_replies(stream, incoming, post.answered)
        is_gap = post.first > incoming.expected
        if not is_gap:
            known = incoming.expected - post.first
            self._repeat_known(post, post.messages[:known])
            for message in post.messages[known:]:
                await self._handle_message(stream, incoming, message)
        self.post(post.sender, mail.receipt(stream, post.session, incoming.expected, is_gap))

    def _repeat_known(self, post: mail.Mail, messages: Iterable[mail.Message]) -> None:
        """Calls that were handled before: an event that its sender's heir handles again makes them again."""
        calls = [
            [number, digest_of(mail.pack_again(message))]
            for number, message in enumerate(messages, post.first)
            if message[0] and number >= post.answered
        ]
        self._repeat_replies(post.stream, post.sender, calls)

    # --- events ---------------------------------------------------------------------------------------------------

    async def _handle_message(self, stream: bytes, incoming: Incoming, message: mail.Message) -> None:
        event = self._event = Event(stream, incoming.expected)
        reply: bytes | None = None
        try:
            with self._transaction:
                handler = self._plain_handlers.get(message[1])
                if handler is not None and len(message) == 3:
                    value = handler(*message[2])
                else:
                    value = await self._call_handler(event, message)
                if message[0]:
                    reply = self._write_reply(event, message, None, value)
                if event.is_touched:
                    event.write_farewells(self)
                self.books.advance(stream, incoming)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            reply = self._abandon(event, incoming, message, error)
        self._event = None
        incoming.expected += 1
        if reply is not None:
            incoming.replies.append(event.number)
            self._due.append((stream, incoming.sender, reply))
        if event.is_touched:
            self._settle(event)

    def _settle(self, event: Event) -> None:
        event.settle(self)
        for outgoing, receipt in self._receipts:
            outgoing.receive(receipt)
        self._receipts.clear()

    async def _call_handler(self, event: Event, message: mail.Message) -> Any:
        """Of any kind, with arguments of any kind."""
        _, method, arguments = message[:3]
        if len(message) > 3:
            event.touch()
            arguments = mail.unpack(arguments, lambda name: event.claim(self.arrived, name))
        plain = self._plain_handlers.get(method)
        if plain is not None:
            return plain(*arguments)
        handler = self._async_handlers.get(method)
        if handler is None:
            known = sorted(name for name in self._plain_handlers | self._async_handlers if name[0] != ".")
            raise UnknownMethod(f"has no method {method!r}; it has {', '.join(known) or 'none'}")
        return await _shielded(handler(*arguments))

    def _write_reply(
        self, event: Event, message: mail.Message, error: list[Any] | None, value: object
    ) -> bytes:
        packed = mail.pack_reply(event.number, error, value)
        for region in packed.regions:
            event.touch().promise(self, self._promised, region)
        self.books.reply(event.stream, event.number, digest_of(mail.pack_again(message)), packed.data)
        return packed.data

    def _abandon(
        self, event: Event, incoming: Incoming, message: mail.Message, error: Exception
    ) -> bytes | None:
        """The event has failed and been undone: the message is taken nevertheless, with nothing else."""
        trace = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS_MAX:]
        traceback.clear_frames(error.__traceback__)  # they hold views of regions
        error.__traceback__ = None
        event.touch().undo(self)
        with self.heap.transaction():
            reply = None
            if message[0]:
                reply = self._write_reply(event, message, [type(error).__name__, str(error), trace], None)
            else:
                self.books.bury(dead_letter(message, error, trace))
            event.write_farewells(self)
            self.books.advance(event.stream, incoming)
        return reply

    # --- replies --------------------------------------------------------------------------------------------------

    def _repeat_replies(self, stream: bytes, sender: Address, wanted: Iterable[list[int]]) -> None:
        incoming = self.books.incoming(stream)
        for number, digest in wanted:
            kept = self.books.kept_reply(stream, number)
            if kept is None:
                if incoming is not None and number < incoming.expected:
                    lost = [calls.NOT_REPEATABLE, "its reply has been forgotten", ""]
                    self._due.append((stream, sender, mail.pack_reply(number, lost, None).data))
            elif kept[0] != digest:
                other = [
                    calls.NOT_REPEATABLE,
                    "an event that is handled again made another call than before",
                    "",
                ]
                self._due.append((stream, sender, mail.pack_reply(number, other, None).data))
            else:
                self._due.append((stream, sender, kept[1]))

    def _send_replies(self) -> None:
        """Those of one stream together. Stops where a region finds no room, until the next turn."""
        batch: list[bytes] = []
        nbytes = 0
        while self._due:
            stream, sender, record = self._due[0]
            if not self._grant_promised(sender, record):
                break
            self._due.popleft()
            batch.append(record)
            nbytes += len(record)
            if nbytes > ACTOR_POST_BYTES or not self._due or self._due[0][0] != stream:
                self.post(sender, mail.replies(stream, batch))
                batch, nbytes = [], 0
        if batch:
            self.post(sender, mail.replies(stream, batch))

    def _grant_promised(self, to: Address, record: bytes) -> bool:
        """The regions in a reply. To who has died they are not granted: its heir will ask for the reply again."""
        for name in mail.names_in(record) if self._promised else ():
            region = self._promised.get(name)
            if region is not None and self.lives(to):
                if not self.grant(to, region, "who has called"):
                    return False
                del self._promised[name]
        return True

    # --- for the actor, within an event -----------------------------------------------------------------------------

    def event(self) -> Event:
        """The one under way. Raises HeapMisuse if there is none."""
        if self._event is None:
            raise HeapMisuse(f"actor {self.name!r} does this only within the handling of a message")
        return self._event.touch()

    def send(self, to: str, method: str, arguments: tuple[object, ...]) -> None:
        """`Ref.send`: written into the outbox."""
        event = self.event()
        packed = mail.pack_message(False, method, arguments)
        outgoing = self._outbox(to)
        for region in packed.regions:
            event.promise(self, outgoing.promised, region)
        outgoing.records.append(packed.data)

    def forget_stream(self, to: str, stream: bytes) -> None:
        """Has an actor forget the calls of an event that is over."""
        self._outbox(to).records.append(mail.pack_message(False, _FORGET, (stream,)).data)

    def _outbox(self, to: str) -> Outgoing:
        stream = mail.stream_name(mail.ACTOR, self.books.name, to.encode())
        outgoing = self.outgoing.get(stream)
        if outgoing is None:
            if not self.books.has_written_to(to):
                self.find_actor(to)
                self.event().made.append(stream)
            outgoing = self.outgoing[stream] = Outgoing(self, stream, to, self.books.outbox(to))
        return outgoing

    def call(self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None) -> Any:
        """`Ref.call`: takes in what comes while it waits, and handles nothing."""
        outgoing, number = self._begin_call(to, method, arguments)
        deadline = None if timeout is None else time.monotonic() + timeout
        while (reply := self._answers[outgoing.stream, number]) is None:
            left = self._look_after_call(outgoing, method, timeout, deadline)
            for arrival in self.process._accept(self.address.id, _READ, as_nanoseconds(left)):
                self.take(arrival)
        return self._end_call(outgoing, method, reply)

    async def call_async(
        self, to: str, method: str, arguments: tuple[object, ...], timeout: float | None
    ) -> Any:
        """`Ref.call_async`."""
        import asyncio

        loop = asyncio.get_running_loop()
        outgoing, number = self._begin_call(to, method, arguments)
        deadline = None if timeout is None else time.monotonic() + timeout
        while (reply := self._answers[outgoing.stream, number]) is None:
            left = self._look_after_call(outgoing, method, timeout, deadline)
            await self.process.inbox._until_ready(loop, left)
            self.read_all()
        return self._end_call(outgoing, method, reply)

    def flush(self, to: str, timeout: float | None) -> None:
        """`Ref.flush`: an actor cannot wait for what goes when its event is over."""
        raise HeapMisuse(
            "what an actor sends goes when its event is done, and cannot be waited for within it"
        )

    def _begin_call(self, to: str, method: str, arguments: tuple[object, ...]) -> tuple[Outgoing, int]:
        event = self.event()
        if to == self.name:
            raise HeapMisuse(f"actor {to!r} cannot wait for itself: call the method, or send the message")
        packed = mail.pack_message(True, method, arguments)
        if packed.regions:
            raise NotSendable("a call within an event goes at once, and takes no regions along: send them")
        stream = mail.stream_name(
            mail.EVENT, self.books.name, to.encode(), event.stream, event.number.to_bytes(8)
        )
        outgoing = self.outgoing.get(stream)
        if outgoing is None:
            self.find_actor(to)
            outgoing = self.outgoing[stream] = Outgoing(self, stream, to, MemoryRecords())
            event.calls[stream] = to
        number = outgoing.records.end
        outgoing.call(number, packed.data)
        self._answers[stream, number] = None
        outgoing.records.append(packed.data)
        return outgoing, number

    def _look_after_call(
        self, outgoing: Outgoing, method: str, timeout: float | None, deadline: float | None
    ) -> float:
        """Sends what is to be sent; how long to wait. Raises what has become of the call instead."""
        if self.is_stopping:
            raise Stopped
        outgoing.look_after()
        self.retry()
        if outgoing.trouble is not None:
            raise outgoing.trouble
        left = _BUSY_INTERVAL if deadline is None else min(_BUSY_INTERVAL, deadline - time.monotonic())
        if left <= 0:
            raise calls.timed_out(outgoing.to, method, timeout)
        self.process.check_rack()
        return left

    def _end_call(self, outgoing: Outgoing, method: str, reply: list[Any]) -> Any:
        event = self.event()
        return calls.outcome(outgoing.to, method, reply, lambda name: event.claim(self.arrived, name))

    def end_calls(self, streams: Iterable[bytes]) -> None:
        """The event is over."""
        for stream in streams:
            self.outgoing.pop(stream, None)
        self._answers.clear()

    # --- regions that are kept ----------------------------------------------------------------------------------------

    def kept_region(self, name: str) -> Region | None:
        """Under that name, as the event under way has it."""
        found = self.books.kept(name)
        if found is None:
            return None
        region = self._owned.get(found)
        if region is None and self._event is not None:
            region = self._event.touch().kept.get(found)
        if region is None:
            raise RegionLost(f"the region kept as {name!r} is not here")
        return region

    def keep_region(self, name: str, region: Region) -> None:
        """Within the event under way."""
        event = self.event()
        if self.books.kept(name) is not None:
            self.unkeep_region(name)
        event.keep(region)
        self.books.keep(name, mail.identity(region))

    def unkeep_region(self, name: str) -> None:
        """Within the event under way, at whose end it is freed, unless it goes elsewhere."""
        event = self.event()
        region = self.kept_region(name)
        self.books.unkeep(name)
        if region is not None:
            event.release(region)

    def own(self, region: Region) -> None:
        """It is kept, for good."""
        self._owned[mail.identity(region)] = region

    def disown(self, name: Identity) -> None:
        """It is not kept any more, for good."""
        self._owned.pop(name, None)


def address_of(process: Process) -> Address:
    """A process's own inbox."""
    _, incarnation, _, _ = process.table.life(process.id)
    return Address(process.id, incarnation)


async def _others_run() -> bool:
    """Lets other tasks of a handler's making get on; whether there are any."""
    import asyncio

    await asyncio.sleep(0)
    return len(asyncio.all_tasks()) > 1


async def _shielded(handling: Any) -> Any:
    """What a handler returns. That something it waited for was cancelled is an error of its own."""
    import asyncio

    try:
        return await handling
    except asyncio.CancelledError as error:
        raise RuntimeError("what the handler waited for was cancelled") from error
