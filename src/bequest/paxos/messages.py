"""What replicas say to each other, and what they agree on.

The vocabulary is that of *Paxos Made Simple* (Lamport, 2001). A **ballot** is a proposal number: a round, and the
replica whose it is, so that no two replicas ever use the same. A **slot** is one instance of consensus; slots are
numbered from 1, and what is chosen in them is carried out in their order. A **value** is what a slot is for: a batch
of clients' commands, or a change of the membership.

| message | paper | who to whom |
|---|---|---|
| `Prepare` | phase 1a | a candidate to the members |
| `Promise` | phase 1b | an acceptor to the candidate |
| `Accept` | phase 2a | the leader to members and learners; without values it is a heartbeat, or tells what was chosen |
| `Accepted` | phase 2b | an acceptor to the leader |
| `Refuse` | a courtesy of phase 1b and 2b | an acceptor to whoever asked with too low a ballot, or knows too little |
| `Chosen` | what learners are told | an acceptor to a candidate that knows too little |

One message stands for many instances: a `Prepare` speaks of every slot above those its sender knows to be chosen, an
`Accepted` of every slot up to the one it names. A message may be lost, late, doubled or out of order: all that costs
is time.

Messages are MessagePack, an array each, tagged by its first element. Their encoding and that of values is here, too:
a value is encoded once, by the leader that first proposes it, and travels and is kept as those bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

ReplicaId = int
Slot = int


class Ballot(NamedTuple):
    """A proposal number: compared by its round first."""

    round: int
    replica: ReplicaId


NO_BALLOT = Ballot(0, 0)  # lower than any


# --- what is chosen ---------------------------------------------------------------------------------------


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """Who decides, from the slot after the one in which this was chosen until the next such.

    Members vote. Learners are told everything and do not vote: so a newcomer fetches the state before anybody has to
    wait for it. An id is a replica's for ever: whose memory is lost comes back under another.
    """

    epoch: int
    members: dict[ReplicaId, str]  # and their sites
    learners: dict[ReplicaId, str] = {}
    tickets: dict[ReplicaId, int] = {}  # what each learner asked to join with: the same twice is one learner
    next_id: ReplicaId = 0

    @property
    def quorum(self) -> int:
        """How many members are a majority."""
        return len(self.members) // 2 + 1

    @property
    def everybody(self) -> dict[ReplicaId, str]:
        """Members and learners, with their sites."""
        return self.members | self.learners


def first_membership(sites: list[str]) -> Membership:
    """Epoch 1: a member at each of these sites, with the ids 1, 2, 3… in their order."""
    members = dict(enumerate(sites, start=1))
    return Membership(1, members, next_id=len(members) + 1)


class OpenSession(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A command: its reply is the new session's id, as a decimal number in ASCII."""


class Once(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A command of a session: sent again, by whomever and through whichever replica, it is not carried out again.

    A session's numbers go up from 1. It has one command under way at a time: the reply to the last is kept, and given
    to whoever repeats it.
    """

    session: int
    number: int
    body: bytes


Command = bytes | Once | OpenSession


class Parcel(msgspec.Struct, array_like=True):
    """Commands that came to one replica, in one life of it, from its clients: numbered from `first` on."""

    origin: ReplicaId
    life: int
    first: int
    commands: list[Command]


class Batch(msgspec.Struct, array_like=True, tag=1):
    """Commands of one pass of the leader, and its wall clock. Without any it is what fills a gap: a no-op."""

    stamp_ms: int
    parcels: list[Parcel]


class Change(msgspec.Struct, array_like=True, tag=2):
    """The membership is this from the next slot on."""

    stamp_ms: int
    membership: Membership


Value = Batch | Change

encode_value = msgspec.msgpack.Encoder().encode
decode_value = msgspec.msgpack.Decoder(Value).decode
NO_OP = encode_value(Batch(0, []))


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """That an acceptor has accepted this value for a slot, by this ballot."""

    ballot: Ballot
    value: bytes


# --- messages ---------------------------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Promise me to accept nothing of a lower ballot, and tell me your votes above this slot."""

    ballot: Ballot
    chosen: Slot  # the candidate knows what was chosen up to here


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """I promise; and this is what I have voted for above the slot you named."""

    ballot: Ballot  # the candidate's
    votes: dict[Slot, Vote]


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """I will not follow this ballot of yours."""

    ballot: Ballot  # the refused one
    promised: Ballot  # what I have promised
    chosen: Slot  # if this is more than the candidate knew, that is why
    membership: Membership | None = None  # if it is why: the one asking is not in it


class Chosen(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """For the slots from `first` on these values were chosen. To a candidate that did not know."""

    first: Slot
    values: list[bytes]


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Accept these values for the slots from `first` on. The same object goes to several replicas: encode it once."""

    ballot: Ballot
    first: Slot
    values: list[bytes]
    chosen: Slot  # everything up to here is
    floor: Slot  # nobody needs to be sent anything below
    sent: float  # the leader's clock, to be echoed; 0: no answer is wanted, and no lease


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """I have accepted by this ballot, or know to be chosen, every slot up to this one."""

    ballot: Ballot
    upto: Slot
    sent: float  # echoed: since then, if not before, you have a lease from me
    gap: bool  # something is missing between that and what you have sent
    torso: bool  # my state is a snapshot's that was begun and not finished: no log can mend that


class Forward(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Commands of my clients. Numbered, so that they may be sent again, to another leader, too."""

    life: int
    first: int
    commands: list[Command]


class AskSlot(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Up to which slot must I have applied, to answer the reads that I have collected under this number?"""

    life: int
    number: int


class ReadSlot(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Up to this one. At some time after you asked I was the leader, and nothing more was acknowledged."""

    life: int
    number: int
    slot: Slot


class Stream(msgspec.Struct, frozen=True, array_like=True):
    """A transfer of the state: whose, in which of its lives, its how manieth. Never the same twice."""

    source: ReplicaId
    life: int
    number: int


class Part(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A piece of a snapshot, in its turn. The last one has the `Settled` state of the replica itself."""

    ballot: Ballot
    stream: Stream
    slot: Slot  # the state is as it was after this slot
    index: int
    data: bytes
    settled: bytes = b""


class PartInstalled(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """I have all parts of this stream below `index`."""

    stream: Stream
    index: int


class Join(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A newcomer, with empty memory, wants to be the replica of this site. Whoever gets it hands it to the leader."""

    site: str
    ticket: int


class Joined(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """You are this replica, a learner for now."""

    ticket: int
    replica: ReplicaId
    membership: Membership


class MemoryLost(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """This replica's memory has failed. It cannot speak any more, and will never come back."""

    replica: ReplicaId


Message = (
    Prepare
    | Promise
    | Refuse
    | Chosen
    | Accept
    | Accepted
    | Forward
    | AskSlot
    | ReadSlot
    | Part
    | PartInstalled
    | Join
    | Joined
    | MemoryLost
)

encode_message = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(Message).decode
