"""What an actor's heir does with what it finds, one case at a time. At random instants: test_actor_kills.py."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import msgspec
import pytest

import actor_users
import bequest as bq
from actor_users import Cast, Counter, end
from actors import DEADLINE, until
from bequest.actors import mail
from bequest.actors.becoming import Candidate
from bequest.actors.books import Books
from bequest.actors.calls import NOT_REPEATABLE
from bequest.actors.host import Host, address_of
from bequest.actors.mail import Address, Mail
from racks import MIB, RackUnderTest, Yard

SOON = DEADLINE
PAGE = 4096


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


def mail_of(stream: bytes, first: int, sender: Address) -> Mail:
    return Mail(stream, 1, first, first, first, sender, [])


def test_an_heir_that_dies_early_leaves_the_inbox_to_the_next(yard: Yard, me: bq.Process) -> None:
    """The first heir has stolen the heap, and has not looked into the inbox, where a region is on its way."""
    actor = yard.actor(None)
    actor.start(actor_users.run, "Counter", "counter")
    counter = bq.actors.ref(me, "counter")
    counter.wait(SOON)
    counter.call("add", 1, timeout=SOON)
    actor.signal(signal.SIGSTOP)
    region = me.alloc(PAGE)
    region.array()[:] = 7
    counter.send("keep", "late", region)
    actor.kill()
    heir = yard.actor("heir")
    until(lambda: me.list("/actors/counter")[0].state == "orphaned")
    assert heir.do(actor_users.steal_and_look_no_further, "counter") == "counter"
    heir.kill()
    until(lambda: me.list("/actors/counter")[0].state == "orphaned")
    last = yard.actor(None)
    last.do(actor_users.begin)
    last.start(actor_users.run, "Counter", "counter")
    assert counter.call("kept", timeout=SOON) == ["late"]
    with counter.call("give", "late", timeout=SOON) as back:
        assert back.array().min() == 7
    end(last)


def test_an_event_that_is_handled_again_gets_the_answers_of_before(
    yard: Yard, me: bq.Process, tmp_path: Path
) -> None:
    """To all its calls, also those whose answers had led to further calls."""
    casts = [Cast(yard, "Ledger", "ledger"), Cast(yard, "Relay", "relay")]
    ledger, relay = (bq.actors.ref(me, cast.name) for cast in casts)
    for one in (ledger, relay):
        one.wait(SOON)
    gate = tmp_path / "gate"
    relay.send("draw_two", str(gate))
    until(lambda: ledger.call("report", timeout=SOON)["tickets"] == 2)
    casts[1].kill()
    gate.touch()
    assert relay.call("report", timeout=SOON)["distinct"] == [1, 2]
    assert ledger.call("report", timeout=SOON)["tickets"] == 2
    assert relay.dead_letters(SOON) == []
    for cast in casts:
        cast.end()


def test_a_post_for_which_there_is_no_memory_waits(host: Host, yard: Yard) -> None:
    """It goes when there is some; the actor lives on."""
    receiver = yard.attach("receiver")
    receiver_address = address_of(receiver)
    filler = []
    with contextlib.suppress(bq.RackMemoryError):
        while True:
            filler.append(host.process.alloc(MIB, huge=False))
    host.post(receiver_address, bytes(2 * MIB))
    host.retry()
    assert host.is_waiting_for_room
    for region in filler:
        region.free()
    host.retry()
    assert not host.is_waiting_for_room
    with receiver.accept(SOON) as envelope:
        assert mail.read_envelope(envelope) == bytes(2 * MIB)


@pytest.fixture
def host(yard: Yard, rack: RackUnderTest) -> Host:
    """An actor in this very process, which handles nothing."""
    made = Candidate(yard.attach("counter"), Counter, "counter").become()
    yield made
    made.close()


def test_what_nobody_claims_is_freed_after_a_while(host: Host) -> None:
    stray, envelope = host.process.alloc(PAGE), mail.into_envelope(host.process, b"post")
    heir = Host(host.process, host.heap, Counter, "counter", host.books, [stray, envelope])
    assert stray.owned and not envelope.owned  # what is in an envelope is sent again
    heir._tidy()
    assert stray.owned
    heir._strangers_until = 0.0
    heir._tidy()
    assert not stray.owned


def test_an_old_envelope_is_not_taken_for_one(host: Host) -> None:
    """Its bytes are still there when its memory is somebody's region."""
    envelope = mail.into_envelope(host.process, b"post")
    address = envelope.address
    envelope.free()
    with host.process.alloc(PAGE) as region:
        assert region.address == address and not mail.is_envelope(region)


def test_another_call_under_the_same_name_is_refused(host: Host) -> None:
    """An event that is handled again and calls differently must not be given the reply to something else."""
    stream, sender = b"E" + bytes(15), host.address
    incoming = host.books.begin(mail_of(stream, 0, sender))
    host.books.reply(stream, 0, 1234, mail.pack_reply(0, None, "kept").data)
    host.books.advance(stream, incoming)
    incoming.expected += 1
    host._repeat_replies(stream, sender, [[0, 1234], [0, 4321], [1, 99]])
    replies = [msgspec.msgpack.decode(record) for _, _, record in host._due]
    assert replies[0] == [0, None, "kept"] and replies[1][1][0] == NOT_REPEATABLE and len(replies) == 2


def test_the_books_forget_clients_that_have_died_and_nobody_else(me: bq.Process) -> None:
    with me.alloc(4 * MIB) as region, bq.Heap.create(region) as heap:
        books = Books(heap)
        gone, here = Address(5, 1), Address(5, 2)
        for number in range(1000):
            stream = mail.stream_name(mail.CLIENT, b"%d" % number)
            books.advance(stream, books.begin(mail_of(stream, 0, here if number == 7 else gone)))
        for kind in (mail.ACTOR, mail.EVENT):
            stream = mail.stream_name(kind, b"")
            books.advance(stream, books.begin(mail_of(stream, 0, gone)))
        books.reply(stream, 0, 0, b"reply")
        books.sweep(lambda sender: sender == here)
        left = Books(heap)
        assert len(left._incoming) == 3 and left.incoming(stream).replies[0] == 0
        left.forget(stream)
        assert Books(heap).incoming(stream) is None and not list(left.kept_replies())


def test_posts_that_make_no_sense_are_passed_over(host: Host, yard: Yard) -> None:
    stranger = yard.attach("stranger")
    for rubbish in (
        b"",
        b"hello",
        b"\xbe",
        b"\xbe\x01" + bytes(16),
        b"\xbe\x03" + bytes(16) + b"\xc1",
        b"\xbe\x09" + bytes(99),
    ):
        assert mail.parse(rubbish) is None
        stranger.send("counter", rubbish)
    assert host.read_all() == 6 and not host._posts


def test_a_message_that_comes_twice_is_handled_once(host: Host) -> None:
    """And one that comes too early not at all: its sender is told what is missing."""
    stream = mail.stream_name(mail.CLIENT, b"somebody")
    totals, told = [], []
    for first, numbers in ((0, (1, 10)), (0, (1, 10)), (1, (10, 100)), (9, (1000,))):
        messages = [[False, "add", [number]] for number in numbers]
        with contextlib.suppress(StopIteration):
            host._handle_mail(Mail(stream, 1, first, 0, 0, host.address, messages)).send(None)
        totals.append(host.state.total)
        (answer,) = host.process._accept(host.address.id, 9, 0)
        receipt = mail.parse(answer.tag)
        told.append((receipt.expected, receipt.is_gap))
    assert totals == [11, 11, 111, 111]
    assert told == [(2, False), (2, False), (3, False), (3, True)]
