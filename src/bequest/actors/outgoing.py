"""A stream as its sender has it: what is to be sent, what has been sent, what has been handled.

Theory of operation. A message waits in the stream's *records* until a receipt says that it has been handled. An
inbox loses nothing while its owner lives; so there is a *session* with each life of the receiver. It begins with
a question, what the receiver expects next, and goes on from there. When the receiver has died, its standby has its
state and therefore its numbers, and the question is asked again. Some posts are in flight at a time; what is
written meanwhile goes together with the next one. So a slow receiver gets large posts, and a fast one small ones soon.

**Regions.** A record is written, in the sender's transaction if it has one, before its regions are granted: so a region
that was promised is either here, or it has been granted. The heir of a sender that died between these two finds it in
the estate, and grants it. It asks first: a message that has been handled has been granted its regions, and
if one of those is here, it has come back since and must stay.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol
from zlib import crc32

from bequest.actors import mail
from bequest.actors.mail import Address, Identity
from bequest.errors import UnknownActor
from bequest.limits import ACTOR_POST_BYTES, ACTOR_POST_MESSAGES, ACTOR_POSTS_IN_FLIGHT

if TYPE_CHECKING:
    from bequest.actors.office import Office
    from bequest.memory.region import Region

_LOOK_INTERVAL = 0.002  # seconds between questions who the actor is now
_LOOK_INTERVAL_MAX = 0.1


class Records(Protocol):
    """Messages by number: in memory, or in a heap."""

    @property
    def first(self) -> int: ...
    @property
    def end(self) -> int: ...
    def append(self, record: bytes, /) -> int: ...
    def read(self, index: int, at_most: int, /) -> list[bytes]: ...
    def drop_before(self, index: int, /) -> None: ...


class MemoryRecords:
    """Those of a client: they end with it."""

    def __init__(self) -> None:
        self.first = self.end = 0
        self._records: list[bytes] = []

    def append(self, record: bytes, /) -> int:
        self._records.append(record)
        self.end += 1
        return self.end - 1

    def read(self, index: int, at_most: int, /) -> list[bytes]:
        start = index - self.first
        return self._records[start : start + at_most]

    def drop_before(self, index: int, /) -> None:
        del self._records[: index - self.first]
        self.first = index


class Outgoing:
    """One stream. ``to`` is the actor's name; ``trouble`` what has kept its messages from going, if anything has."""

    def __init__(self, office: Office, stream: bytes, to: str, records: Records) -> None:
        self.to = to
        self.stream = stream
        self.records = records
        self.trouble: UnknownActor | None = None
        self.unanswered: dict[int, int] = {}  # calls by number: the digest of each
        self.promised: dict[Identity, Region] = {}  # regions of messages that have not been granted yet
        self._office = office
        self._peer: Address | None = None
        self._session = 0
        self._is_agreed = False
        self._sent = records.first
        self._in_flight: deque[int] = deque()
        self._next_look = 0.0
        self._look_interval = _LOOK_INTERVAL

    @property
    def is_idle(self) -> bool:
        """Whether everything has been handled and answered."""
        return self.records.first == self.records.end and not self.unanswered

    @property
    def waiting(self) -> int:
        """Messages that have not been handled, as far as is known."""
        return self.records.end - self.records.first

    def call(self, number: int, record: bytes) -> None:
        """The message just written is one that wants a reply."""
        self.unanswered[number] = crc32(record)

    def answer(self, number: int) -> bool:
        """A reply has come; whether it was waited for."""
        return self.unanswered.pop(number, None) is not None

    def say_farewell(self) -> None:
        """If its receiver lives; else whoever inherits will find that the sender has gone."""
        if self._peer is not None:
            self._office.post(self._peer, mail.farewell(self.stream))

    # --- sending ----------------------------------------------------------------------------------------------

    def push(self) -> None:
        """Sends what may be sent now."""
        if self._in_flight and self.records.end - self._sent < ACTOR_POST_MESSAGES:
            return  # the usual case of a message among many
        if self.is_idle or not (self._has_peer() and self._is_agreed):
            return
        while self._sent < self.records.end and (not self._in_flight or self._is_worth_a_post()):
            records = self._next_records()
            if not self._grant(records):
                return
            self._post(records)
            self._sent += len(records)
            self._in_flight.append(self._sent)

    def _is_worth_a_post(self) -> bool:
        """While others are in flight: what is sent together costs less."""
        waiting = self.records.end - self._sent
        return waiting >= ACTOR_POST_MESSAGES and len(self._in_flight) < ACTOR_POSTS_IN_FLIGHT

    def look_after(self) -> None:
        """`push`, and what is due now and then: to find out whether the receiver has died."""
        if not self.is_idle and not (self._peer is not None and self._office.lives(self._peer)):
            self._in_flight.clear()
        self.push()

    def _next_records(self) -> list[bytes]:
        """As many as make one post."""
        records = self.records.read(self._sent, ACTOR_POST_MESSAGES)
        nbytes = 0
        for count, record in enumerate(records):
            nbytes += len(record)
            if nbytes > ACTOR_POST_BYTES and count > 0:
                return records[:count]
        return records

    def _grant(self, records: list[bytes]) -> bool:
        """The regions that they speak of; False if the receiver is not there to have them."""
        if not self.promised:
            return True
        assert self._peer is not None
        for record in records:
            for name in mail.names_in(record):
                region = self.promised.get(name)
                if region is not None:
                    if not self._office.grant(self._peer, region, self.to):
                        return False
                    del self.promised[name]
        return True

    def _post(self, records: list[bytes]) -> None:
        assert self._peer is not None
        oldest = self.records.first
        # An event that is handled again asks again: its replies are kept until its stream is said farewell to.
        is_repeatable = self.stream.startswith(mail.EVENT)
        answered = 0 if is_repeatable else min(self.unanswered, default=self._sent + len(records))
        sender = self._office.address
        post = mail.mail(self.stream, self._session, self._sent, oldest, answered, sender, records)
        self._office.post(self._peer, post)

    # --- the receiver -------------------------------------------------------------------------------------------

    def _has_peer(self) -> bool:
        if self._peer is not None and self._office.lives(self._peer):
            return True
        self._peer = None
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + self._look_interval
        self._look_interval = min(2 * self._look_interval, _LOOK_INTERVAL_MAX)
        try:
            self._peer = self._office.find_actor(self.to)
            self.trouble = None
        except UnknownActor as error:
            self.trouble = error
        if self._peer is None:
            return False
        self._look_interval = _LOOK_INTERVAL
        self._office.read_all()  # what a former receiver has said comes first
        self._begin()
        return self._peer is not None

    def _begin(self) -> None:
        """A session: asks what is expected next."""
        self._session += 1
        self._is_agreed = False
        self._in_flight.clear()
        self._sent = self.records.first
        self._post([])

    def receive(self, receipt: mail.Receipt) -> None:
        """Drops what has been handled; goes on from there, if this was to be found out."""
        expected = min(receipt.expected, self.records.end)
        if expected > self.records.first:
            for record in self.records.read(self.records.first, expected - self.records.first):
                if self.promised:
                    for name in mail.names_in(record):  # granted it was, before this sender's time
                        self._office.unclaim(name, self.promised.pop(name, None))
            self.records.drop_before(expected)
        while self._in_flight and self._in_flight[0] <= expected:
            self._in_flight.popleft()
        if receipt.session != self._session or self._peer is None:
            return
        if not self._is_agreed:
            self._is_agreed = True
            self._sent = self.records.first
            self._ask_again()
        elif receipt.is_gap:
            self._begin()

    def _ask_again(self) -> None:
        """For replies to calls that were handled by an earlier life of the receiver."""
        assert self._peer is not None
        handled = [(number, digest) for number, digest in self.unanswered.items() if number < self._sent]
        if handled:
            self._office.post(self._peer, mail.query(self.stream, self._office.address, handled))
