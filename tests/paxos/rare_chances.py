"""What happens too rarely for the simulation to come across it, done on purpose: one replica, and what others tell it.

Each of these is called by `test_rare_chances.py`, and again with the check deleted that it is about (`mutants.py`):
then it must fail. The replica is 1 of three; messages of the others are written by hand.
"""

from __future__ import annotations

from bequest.paxos.ledger import Installing, MemoryLedger
from bequest.paxos.machine import Machine
from bequest.paxos.messages import (
    NO_BALLOT,
    Accept,
    Accepted,
    AskSlot,
    Ballot,
    Batch,
    Change,
    Chosen,
    Membership,
    Message,
    Parcel,
    Part,
    Prepare,
    Promise,
    ReadSlot,
    Slot,
    Stream,
    Vote,
    encode_value,
    first_membership,
)
from bequest.paxos.outputs import Output, Reply, Send
from bequest.paxos.timing import Timing
from bequest.paxos.turn import Inputs, take_turn
from registers import Registers

NOW = 100.0
THREE = first_membership(["a", "b", "c"])
TWO = Membership(2, {1: "a", 2: "b"}, next_id=4)
LED_BY_TWO = Ballot(1, 2)
STREAM = Stream(2, 1, 1)


class Alone:
    """Replica 1, which nobody but the test talks to."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger(1, THREE)
        self.registers = Registers(self.ledger.undo)
        self.now = NOW

    def open(self, timing: Timing | None = None) -> Alone:
        """Another life of it."""
        timing = timing or Timing(election_jitter=0.0)
        with self.ledger.transaction():
            self.machine = Machine(
                self.ledger, self.registers, timing, lambda: 0.5, clock="one", now=self.now
            )
        return self

    def voted(self, votes: dict[Slot, Vote]) -> None:
        for slot, vote in votes.items():
            self.ledger.votes[slot] = vote
            self.ledger.last = max(self.ledger.last, slot)
            self.ledger.promised = max(self.ledger.promised, vote.ballot)

    def hear(self, *messages: tuple[int, Message], queries: tuple[bytes, ...] = ()) -> list[Output]:
        inputs = Inputs(messages=list(messages), queries=[(query, query) for query in queries])
        return take_turn(self.machine, self.ledger, inputs, self.now, int(self.now * 1000))

    def stand(self) -> Ballot:
        """Until it asks for promises; with which ballot."""
        self.now = max(self.now, self.machine.deadline)
        [ballot, *_] = [message.ballot for message in sent(self.hear(), Prepare)]
        return ballot


def sent(outputs: list[Output], kind: type) -> list[Message]:
    return [output.message for output in outputs if isinstance(output, Send) and type(output.message) is kind]


def batch(*parcels: Parcel) -> bytes:
    return encode_value(Batch(0, list(parcels)))


def recovered_change() -> tuple[Alone, Ballot, list[Output]]:
    """Elected, with a change among its votes, and above that one what an earlier ballot has left there."""
    alone = Alone()
    left = Vote(LED_BY_TWO, batch(Parcel(2, 1, 1, [b"set a 1"])))
    alone.voted({1: Vote(Ballot(2, 2), encode_value(Change(0, TWO))), 2: left, 3: left})
    ballot = alone.open().stand()
    return alone, ballot, alone.hear((2, Promise(ballot, {})))


def what_lies_above_a_change_is_not_proposed_by_those_before_it() -> None:
    _, _, outputs = recovered_change()
    assert {len(accept.values) for accept in sent(outputs, Accept)} == {1}


def who_has_recovered_a_change_stands_again_before_the_members_it_makes() -> None:
    alone, ballot, _ = recovered_change()
    outputs = alone.hear((2, Accepted(ballot, 1, alone.now, False, False)))
    assert alone.machine.membership == TWO and not alone.machine.leads
    assert [prepare.ballot > ballot for prepare in sent(outputs, Prepare)] == [True]


def an_echo_of_an_earlier_life_confirms_no_read() -> None:
    alone = Alone()
    alone.ledger.promised = alone.ledger.led = Ballot(1, 1)
    alone.open(Timing(lease_reads=False))
    old = Accepted(Ballot(1, 1), 0, NOW - 0.01, False, False)
    assert sent(alone.hear((2, AskSlot(1, 1)), (3, old)), ReadSlot) == []


def a_read_waits_for_what_was_recovered() -> None:
    alone = Alone()
    alone.voted({1: Vote(LED_BY_TWO, batch())})
    ballot = alone.open().stand()
    alone.hear((2, Promise(ballot, {})))
    echo = Accepted(ballot, 0, alone.now, True, False)  # it follows, and has nothing of that yet
    assert [answer.slot for answer in sent(alone.hear((2, echo), (2, AskSlot(1, 1))), ReadSlot)] == [1]


def torso() -> Alone:
    """It had something, is getting a snapshot instead, and has a part of that."""
    alone = Alone()
    alone.ledger.chosen = alone.ledger.applied = 5
    alone.ledger.first_kept, alone.ledger.last = 6, 5
    alone.ledger.installing = Installing(STREAM, 1)
    return alone.open()


def nothing_is_read_from_half_a_snapshot() -> None:
    alone = torso()
    [ask] = sent(alone.hear((2, Accept(LED_BY_TWO, 6, [], 5, 1, NOW)), queries=(b"a",)), AskSlot)
    answered = alone.hear((2, ReadSlot(ask.life, ask.number, 4)))
    assert not [output for output in answered if isinstance(output, Reply)]


def who_has_half_a_snapshot_does_not_stand() -> None:
    alone = torso()
    alone.now = alone.machine.deadline + 1
    assert {prepare.ballot for prepare in sent(alone.hear(), Prepare)} <= {NO_BALLOT}
    assert alone.ledger.promised == NO_BALLOT


def parts_are_installed_in_their_order_and_once() -> None:
    alone = torso()
    for index in (0, 2):  # one again, and one too early
        alone.hear((2, Part(LED_BY_TWO, STREAM, 9, index, b"\x81\xc4\x01a\xc4\x01b")))
    assert alone.registers.values == {} and alone.ledger.installing == Installing(STREAM, 1)
    alone.hear((2, Part(LED_BY_TWO, STREAM, 9, 1, b"\x81\xc4\x01a\xc4\x01b")))
    assert alone.registers.values == {b"a": b"b"}


def carried_out(*parcels: Parcel) -> bytes:
    """What becomes of a register when these are chosen, one after the other."""
    alone = Alone().open()
    alone.hear((2, Chosen(1, [batch(parcel) for parcel in parcels])))
    assert alone.ledger.applied == len(parcels)
    return alone.registers.values.get(b"a", b"")


def a_parcel_that_does_not_join_on_is_skipped() -> None:
    assert carried_out(Parcel(2, 1, 2, [b"append a 2"]), Parcel(2, 1, 1, [b"append a 1"])) == b",1"


def a_parcel_of_an_earlier_life_is_skipped() -> None:
    assert carried_out(Parcel(2, 2, 1, [b"append a 2"]), Parcel(2, 1, 1, [b"append a 1"])) == b",2"


def a_parcel_of_one_who_was_removed_is_skipped() -> None:
    assert carried_out(Parcel(9, 1, 1, [b"append a 9"]), Parcel(2, 1, 1, [b"append a 2"])) == b",2"


RARE = {
    "send what it has not proposed": what_lies_above_a_change_is_not_proposed_by_those_before_it,
    "recover past a change": what_lies_above_a_change_is_not_proposed_by_those_before_it,
    "lead on past a recovered change": who_has_recovered_a_change_stands_again_before_the_members_it_makes,
    "take old echoes for new ones": an_echo_of_an_earlier_life_confirms_no_read,
    "read before what was recovered": a_read_waits_for_what_was_recovered,
    "read from a torso": nothing_is_read_from_half_a_snapshot,
    "stand with a torso": who_has_half_a_snapshot_does_not_stand,
    "install parts out of turn": parts_are_installed_in_their_order_and_once,
    "carry out of order": a_parcel_that_does_not_join_on_is_skipped,
    "hear an earlier life": a_parcel_of_an_earlier_life_is_skipped,
    "hear who was removed": a_parcel_of_one_who_was_removed_is_skipped,
}
