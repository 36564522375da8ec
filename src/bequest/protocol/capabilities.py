"""Who may steal: what a group's capability must satisfy, how often one may guess, and the book of all attempts.

The Rack MMU keeps no secret. A group's creator makes the capability and tells the rack its SHA-256, the *verifier*;
whoever steals shows the capability itself. Where a quorum must agree, the members put the capability together from
their shares before they show it (`bequest.memory.group`), so that the rack sees no difference.

    never     nobody, whatever is shown
    member    any member of the group that shows the capability. A user's default group has none: the socket has told
              who the user is
    standby   only the process that the victim has named its heir, and only with the capability
    quorum    any member that shows the capability, which no single one has

A wrong guess costs patience: after `WRONG_TRIES_MAX` in `WRONG_TRIES_WINDOW` seconds the process is refused for as
long, right or wrong, and so is its user, in that group, after ten times as many from all his processes. Guesses are
written down: a Rack MMU that is started anew remembers them. Every attempt is in the book.
"""

from __future__ import annotations

import hmac
import math
from hashlib import sha256

from bequest.limits import (
    REPORT_BYTES_MAX,
    THEFTS_KEPT,
    WRONG_TRIES_MAX,
    WRONG_TRIES_OF_USER_MAX,
    WRONG_TRIES_WINDOW,
)
from bequest.protocol.books import Books, Row
from bequest.protocol.groups import Group
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import Session
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

_THEFT_BYTES = 1200  # no report of one attempt is longer
_WHY_CHARACTERS = 160
_IN_VAIN = ("refused", "barred", "failed")  # outcomes


class WrongCapability(Refusal):
    """A guess that was wrong, and counts as one."""

    def __init__(self, message: str) -> None:
        super().__init__("capability", message)


def check_capability(group: Group, capability: bytes | None) -> None:
    """Whether it opens the memory of this group at all; `check_heir` is asked once the victim is known."""
    if group.rules.policy == "never":
        raise Refusal("capability", f"group {group.name!r} lets nobody steal (steal policy 'never')")
    if group.rules.verifier is None:
        return
    if capability is None:
        raise Refusal("capability", f"to steal in group {group.name!r} takes the group's capability")
    if not hmac.compare_digest(sha256(capability).digest(), group.rules.verifier):
        raise WrongCapability(f"this is not the capability of group {group.name!r}")


def check_heir(group: Group, victim: Member, thief: Member) -> None:
    """Whether this thief may steal from this victim, where the victim has a say."""
    if group.rules.policy == "standby" and victim.heir != thief.name:
        raise Refusal(
            "capability",
            f"{thief.name!r} is not the standby that {victim.name!r} has named (steal policy 'standby')",
        )


# --- wrong guesses ----------------------------------------------------------------------------------------


class Guesser(Row):
    """An operating-system process, or a user in a group, that was wrong lately."""

    tries: tuple[float, ...] = ()
    barred_until: float = float("-inf")


class WrongTries:
    def __init__(self, books: Books) -> None:
        self._guessers = books.open("guessers", Guesser, str)

    def check(self, session: Session, group: Group, now: float) -> None:
        """Refuses whoever has guessed too often."""
        for who, _ in _guessers_of(session, group):
            guesser = self._guessers.get(who)
            if guesser is not None and now < guesser.barred_until:
                left = math.ceil(guesser.barred_until - now)
                raise Refusal(
                    "capability", f"{who} has shown too many wrong capabilities; try again in {left} s"
                )

    def count(self, session: Session, group: Group, now: float) -> None:
        """One more wrong guess."""
        self._forget_old(now)
        for who, most in _guessers_of(session, group):
            guesser = self._guessers.get(who) or self._guessers.put(who, Guesser())
            guesser.tries = (*(at for at in guesser.tries if at > now - WRONG_TRIES_WINDOW), now)
            if len(guesser.tries) >= most:
                guesser.barred_until = now + WRONG_TRIES_WINDOW

    def _forget_old(self, now: float) -> None:
        for who, guesser in self._guessers.items():
            if guesser.tries[-1] <= now - WRONG_TRIES_WINDOW and guesser.barred_until <= now:
                self._guessers.remove(who)


def _guessers_of(session: Session, group: Group) -> tuple[tuple[str, int], ...]:
    """Nobody, where there is nothing to guess."""
    if group.rules.verifier is None:
        return ()
    return (
        (f"os process {session.os_pid}", WRONG_TRIES_MAX),
        (f"user {session.uid} in group {group.name!r}", WRONG_TRIES_OF_USER_MAX),
    )


# --- the book ---------------------------------------------------------------------------------------------


class Attempt(Row):
    """As in `wire.Theft`. It is written down before anything is taken, so that a restart finds what was under way."""

    number: int
    at: float
    thief: str
    thief_id: int
    thief_incarnation: int
    request: int  # the number of the thief's request, if it had one
    os_pid: int
    uid: int
    group: str
    victim: str
    pid: int = 0
    incarnation: int = 0
    outcome: str = "under way"
    how: str = ""
    extents: int = 0
    nbytes: int = 0
    times: int = 1

    @property
    def in_vain_like(self) -> tuple[object, ...]:
        """What makes two attempts of a row the same."""
        what = () if self.outcome == "barred" else (self.victim, self.how)
        return (self.outcome, self.os_pid, self.uid, self.group, *what)

    @property
    def asked(self) -> tuple[int, int, int]:
        return self.thief_id, self.thief_incarnation, self.request


class TheftBook:
    """The last attempts, oldest first.

    Equal refusals in a row are one entry, and they go before thefts do, so that nobody can have his theft forgotten by
    asking in vain.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._attempts = books.open("thefts", Attempt, int)
        self._before: dict[tuple[int, int, int], Attempt] = {}  # of earlier runs, by who asked

    def open(self, session: Session, thief: Member, group: Group, victim: str, now: float) -> Attempt:
        number = self._books.counter("theft").next()
        attempt = Attempt(
            number=number,
            at=now,
            thief=thief.name,
            thief_id=thief.id,
            thief_incarnation=thief.incarnation,
            request=session.number,
            os_pid=session.os_pid,
            uid=session.uid,
            group=group.name,
            victim="".join(character if character.isprintable() else "?" for character in victim[:64]),
        )
        self._make_room()
        self._attempts.put(number, attempt)
        return attempt

    def _make_room(self) -> None:
        if len(self._attempts) < THEFTS_KEPT:
            return
        for outcomes in (_IN_VAIN, ("stolen",)):
            for attempt in self._attempts:
                if attempt.outcome in outcomes:
                    self._attempts.remove(attempt.number)
                    return

    def fail(self, attempt: Attempt, refusal: Refusal) -> None:
        attempt.outcome, attempt.how = "failed", refusal.message[:_WHY_CHARACTERS]

    def refuse(self, attempt: Attempt, refusal: Refusal, outcome: str = "refused") -> bool:
        """The attempt has ended as soon as it was made. Whether it is the first of a row of the same."""
        attempt.outcome, attempt.how = outcome, refusal.message[:_WHY_CHARACTERS]
        before = self._attempts.get(attempt.number - 1)
        if before is None or before.in_vain_like != attempt.in_vain_like:
            return True
        before.times += attempt.times
        before.at = attempt.at
        self.withdraw(attempt)
        return False

    def withdraw(self, attempt: Attempt) -> None:
        """It is no entry of its own: it belongs to the one before, or somebody only asked whether it were allowed."""
        self._attempts.remove(attempt.number)
        self._books.counter("theft").last = attempt.number - 1

    def repeated(self, session: Session, thief: Member) -> Attempt | None:
        """The attempt that this request made in an earlier run; one of this run is answered, or awaited, instead."""
        return self._before.get((thief.id, thief.incarnation, session.number)) if session.number else None

    def restored(self) -> list[Attempt]:
        """What earlier runs have written down has been read; returns the attempts that were under way."""
        self._before = {attempt.asked: attempt for attempt in self._attempts}
        return [attempt for attempt in self._attempts if attempt.outcome == "under way"]

    def report(self, cursor: int, now: float) -> wire.TheftList:
        """In the order of numbers; the cursor is the first number to report."""
        due = [attempt for attempt in self._attempts if attempt.number >= cursor]
        room = REPORT_BYTES_MAX // _THEFT_BYTES
        thefts = [_as_theft(attempt, now) for attempt in due[:room]]
        return wire.TheftList(thefts, due[room].number if len(due) > room else None)


def _as_theft(attempt: Attempt, now: float) -> wire.Theft:
    return wire.Theft(
        number=attempt.number,
        age=now - attempt.at,
        thief=attempt.thief,
        os_pid=attempt.os_pid,
        uid=attempt.uid,
        group=attempt.group,
        victim=attempt.victim,
        pid=attempt.pid,
        incarnation=attempt.incarnation,
        outcome=attempt.outcome,
        how=attempt.how,
        extents=attempt.extents,
        nbytes=attempt.nbytes,
        times=attempt.times,
    )
