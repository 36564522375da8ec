"""The votes of this replica, slot by slot: the log.

Votes lie in the ledger from `first_kept` to `last`. Those up to `chosen` are known to be the chosen ones; they are
kept for replicas that lag, and dropped from below.
"""

from __future__ import annotations

from bequest.paxos.core import Core
from bequest.paxos.messages import Ballot, Slot, Vote
from bequest.paxos.timing import ACCEPT_BYTES_MAX, KEPT_BYTES_MAX, KEPT_ENTRIES_MAX


class Log:
    """Votes by slot."""

    def __init__(self, core: Core) -> None:
        self._ledger = core.ledger
        self._votes = core.ledger.votes

    def vote(self, slot: Slot, ballot: Ballot, value: bytes) -> None:
        """Accepts a value."""
        ledger = self._ledger
        size = len(value)
        if slot > ledger.last:
            ledger.last = slot
        elif (before := self._votes.get(slot)) is not None:
            size -= len(before.value)
        self._votes[slot] = Vote(ballot, value)
        ledger.kept_bytes += size

    def value(self, slot: Slot) -> bytes:
        """What was accepted last for this slot."""
        return self._votes[slot].value

    def above(self, slot: Slot) -> dict[Slot, Vote]:
        """All votes for later slots than this."""
        later = range(slot + 1, self._ledger.last + 1)
        return {s: vote for s in later if (vote := self._votes.get(s)) is not None}

    def values_from(self, first: Slot, count_max: int) -> list[bytes]:
        """What to send to a replica that lacks everything from this slot on: at least one value, and not too much."""
        values: list[bytes] = []
        size = 0
        for slot in range(first, min(self._ledger.last + 1, first + count_max)):
            value = self.value(slot)
            size += len(value)
            if values and size > ACCEPT_BYTES_MAX:
                break
            values.append(value)
        return values

    def compact(self, floor: Slot) -> None:
        """Drops what everybody has, and the oldest of what is too much; but nothing that was not applied here."""
        ledger = self._ledger
        end = ledger.applied + 1
        while ledger.first_kept < end and (
            ledger.first_kept < floor
            or ledger.kept_bytes > KEPT_BYTES_MAX
            or ledger.last - ledger.first_kept > KEPT_ENTRIES_MAX
        ):
            self._drop(ledger.first_kept)
            ledger.first_kept += 1

    def start_above(self, slot: Slot) -> None:
        """A snapshot of the state after this slot was installed: nothing below is needed."""
        ledger = self._ledger
        for old in range(ledger.first_kept, min(slot, ledger.last) + 1):
            self._drop(old)
        ledger.first_kept = max(ledger.first_kept, slot + 1)
        ledger.last = max(ledger.last, slot)

    def _drop(self, slot: Slot) -> None:
        vote = self._votes.get(slot)
        if vote is not None:
            self._ledger.kept_bytes -= len(vote.value)
            del self._votes[slot]
