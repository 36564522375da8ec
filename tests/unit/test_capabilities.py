"""Who may steal: policies, capabilities, wrong guesses, and the book of attempts."""

from __future__ import annotations

from hashlib import sha256

import pytest

from bequest.limits import (
    REPORT_BYTES_MAX,
    THEFTS_KEPT,
    WRONG_TRIES_MAX,
    WRONG_TRIES_OF_USER_MAX,
    WRONG_TRIES_WINDOW,
)
from bequest.protocol import capabilities
from bequest.protocol.books import Books
from bequest.protocol.capabilities import WrongTries
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from rack_in_a_box import Box
from test_rack_mmu import failed

CAPABILITY = bytes(range(32))
VERIFIER = sha256(CAPABILITY).digest()


class Crew:
    """A group with a thief and a victim, which owns nothing: who may steal is decided before what."""

    def __init__(
        self, policy: str = "member", verifier: bytes | None = VERIFIER, heir: str | None = None
    ) -> None:
        self.box = Box()
        creator = self.box.client()
        made = self.box.ask(creator, wire.CreateGroup("etl", policy, "ptrace", verifier))
        assert isinstance(made, wire.GroupCreated), made
        self.secret = made.secret
        self.thief, self.thief_is = self.box.attach("thief", made.secret)
        self.victim, self.victim_is = self.box.attach("victim", made.secret)
        if heir is not None:
            assert self.box.ask(self.victim, wire.NameHeir(heir)) == wire.Done()

    def steal(self, capability: bytes | None = CAPABILITY, peer: int | None = None) -> wire.Message | None:
        return self.box.ask(peer or self.thief, wire.Steal("victim", capability))

    def thefts(self) -> list[wire.Theft]:
        report = self.box.status("thefts")
        assert isinstance(report, wire.TheftList)
        return report.thefts


# --- policies -------------------------------------------------------------------------------------------------


def test_a_member_with_the_capability_may_steal() -> None:
    assert isinstance(Crew().steal(), wire.Stolen)


@pytest.mark.parametrize("wrong", [None, b"", bytes(32), CAPABILITY[:-1], CAPABILITY + b"\0", VERIFIER])
@pytest.mark.parametrize("policy", ["member", "standby", "quorum"])
def test_nobody_steals_without_the_capability(policy: str, wrong: bytes | None) -> None:
    failed(Crew(policy, heir="thief").steal(wrong), "capability")


def test_where_nobody_may_steal_the_capability_is_of_no_use() -> None:
    failed(Crew("never").steal(), "capability")
    failed(Crew("never", None).steal(None), "capability")


def test_a_users_default_group_needs_no_capability() -> None:
    box = Box()
    thief, _ = box.attach("thief")
    box.attach("victim")
    assert isinstance(box.ask(thief, wire.Steal("victim")), wire.Stolen)


def test_only_the_named_standby_may_steal() -> None:
    failed(Crew("standby").steal(), "capability")
    failed(Crew("standby", heir="another").steal(), "capability")
    crew = Crew("standby", heir="thief")
    failed(crew.steal(None), "capability")  # the name alone opens nothing
    assert isinstance(crew.steal(), wire.Stolen)
    crew.box.ask(crew.victim, wire.NameHeir(None))
    failed(crew.steal(), "capability")


def test_a_standby_may_be_named_when_attaching() -> None:
    crew = Crew("standby")
    peer = crew.box.client()
    assert isinstance(crew.box.ask(peer, wire.Attach("other", crew.secret, None, "thief")), wire.Attached)
    assert isinstance(crew.box.ask(crew.thief, wire.Steal("other", CAPABILITY)), wire.Stolen)
    failed(crew.box.ask(crew.box.client(), wire.Attach("x", crew.secret, None, "a/b")), "bad-name")


def test_a_standby_named_by_one_gets_nothing_of_another() -> None:
    crew = Crew("standby", heir="thief")
    crew.box.attach("other", crew.secret)
    failed(crew.box.ask(crew.thief, wire.Steal("other", CAPABILITY)), "capability")


@pytest.mark.parametrize(
    "message",
    [
        wire.CreateGroup("g", "anybody", "ptrace", VERIFIER),
        wire.CreateGroup("g", "member", "nuke", VERIFIER),
        wire.CreateGroup("g", "quorum"),
        wire.CreateGroup("g", "standby"),
        wire.CreateGroup("g", "member", "ptrace", VERIFIER[:-1]),
    ],
)
def test_groups_with_rules_that_mean_nothing_are_refused(message: wire.CreateGroup) -> None:
    box = Box()
    failed(box.ask(box.client(), message), "config")
    assert len(box.shards) == 0


def test_the_rack_keeps_no_capability() -> None:
    crew = Crew()
    crew.steal()
    everything = [crew.box.mmu._state.groups._groups, crew.thefts(), crew.box.notes]
    assert repr(CAPABILITY)[2:-1] not in repr(everything) and CAPABILITY.hex() not in repr(everything)


# --- wrong guesses --------------------------------------------------------------------------------------------


def test_who_guesses_too_often_is_refused_for_a_time_even_when_right() -> None:
    crew = Crew()
    for _ in range(WRONG_TRIES_MAX - 1):
        failed(crew.steal(b"wrong"), "capability")
    assert isinstance(crew.steal(), wire.Stolen)
    assert "too many" not in failed(crew.steal(b"wrong"), "capability").message
    assert "too many" in failed(crew.steal(), "capability").message
    crew.box.now += WRONG_TRIES_WINDOW - 0.1
    assert "too many" in failed(crew.steal(), "capability").message
    crew.box.now += 0.2
    assert isinstance(crew.steal(), wire.Stolen)


def test_wrong_guesses_long_ago_do_not_count() -> None:
    crew = Crew()
    for _ in range(3 * WRONG_TRIES_MAX):
        failed(crew.steal(b"wrong"), "capability")
        crew.box.now += WRONG_TRIES_WINDOW / (WRONG_TRIES_MAX - 1)
    assert isinstance(crew.steal(), wire.Stolen)


def test_showing_nothing_is_no_guess() -> None:
    crew = Crew()
    for _ in range(2 * WRONG_TRIES_MAX):
        failed(crew.steal(None), "capability")
    assert isinstance(crew.steal(), wire.Stolen)


def test_another_process_of_the_same_user_is_not_barred_until_all_have_guessed_ten_times_as_often() -> None:
    crew = Crew()
    for _ in range(WRONG_TRIES_MAX):
        crew.steal(b"wrong")
    other, _ = crew.box.attach("other", crew.secret)
    assert isinstance(crew.steal(peer=other), wire.Stolen)
    for number in range((WRONG_TRIES_OF_USER_MAX - WRONG_TRIES_MAX) // WRONG_TRIES_MAX):
        guesser, _ = crew.box.attach(f"guesser-{number}", crew.secret)
        for _ in range(WRONG_TRIES_MAX):
            assert "too many" not in failed(crew.steal(b"wrong", guesser), "capability").message
    message = failed(crew.steal(peer=other), "capability").message
    assert "user 1000 in group 'etl' has shown too many" in message and "try again in 10 s" in message


def test_guesses_in_one_group_bar_nobody_in_another() -> None:
    crew = Crew()
    for number in range(WRONG_TRIES_OF_USER_MAX // WRONG_TRIES_MAX):
        guesser, _ = crew.box.attach(f"guesser-{number}", crew.secret)
        for _ in range(WRONG_TRIES_MAX):
            crew.steal(b"wrong", guesser)
    thief, _ = crew.box.attach("a", None)
    crew.box.attach("b", None)
    assert isinstance(crew.box.ask(thief, wire.Steal("b")), wire.Stolen)


def test_guesses_are_remembered_by_the_next_rack_mmu() -> None:
    crew = Crew()
    for _ in range(WRONG_TRIES_MAX):
        crew.steal(b"wrong")
    books = Books()
    after = WrongTries(books)
    books.apply(
        change for change in crew.box.mmu._state.books.everything() if change.book in ("guessers", "counters")
    )
    state = crew.box.mmu._state
    group = next(group for group in state.groups if group.name == "etl")
    with pytest.raises(Refusal, match="too many wrong capabilities"):
        after.check(state.sessions[crew.thief], group, crew.box.now)


def test_a_guesser_who_stops_is_forgotten() -> None:
    crew = Crew()
    tries = crew.box.mmu._steals._tries
    crew.steal(b"wrong")
    crew.box.now += 3 * WRONG_TRIES_WINDOW
    other, _ = crew.box.attach("other", crew.secret)
    crew.steal(b"wrong", other)
    assert len(tries._guessers) == 2  # that process, and its user


# --- the book -------------------------------------------------------------------------------------------------


def test_every_attempt_is_in_the_book_and_in_the_log() -> None:
    crew = Crew()
    crew.steal(b"wrong")
    crew.box.now += 2
    crew.steal()
    crew.box.ask(crew.thief, wire.Steal("nobody", CAPABILITY))
    wrong, right, unknown = crew.thefts()
    assert (wrong.number, wrong.age, wrong.outcome) == (1, 2.0, "refused") and "capability" in wrong.how
    assert (wrong.thief, wrong.victim, wrong.group, wrong.uid) == ("thief", "victim", "etl", 1000)
    assert wrong.os_pid == 5000 + crew.thief and wrong.pid == 0
    assert (right.outcome, right.how, right.pid) == ("stolen", "untouched", crew.victim_is.pid)
    assert right.incarnation == crew.victim_is.incarnation
    assert (unknown.outcome, unknown.victim) == ("refused", "nobody")
    assert len([note for note in crew.box.notes if "'thief' (os pid" in note]) == 3


def test_a_barred_guesser_fills_one_entry_only() -> None:
    crew = Crew()
    for _ in range(WRONG_TRIES_MAX + 30):
        crew.steal(b"wrong")
    entries = crew.thefts()
    assert [entry.outcome for entry in entries] == ["refused", "barred"]
    assert [entry.times for entry in entries] == [WRONG_TRIES_MAX, 30]
    assert len(crew.box.notes) == 2


def test_no_theft_is_forgotten_for_attempts_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "THEFTS_KEPT", 20)
    crew = Crew()
    crew.steal()
    for number in range(50):
        crew.box.ask(crew.thief, wire.Steal(f"nobody-{number}", CAPABILITY))
    outcomes = [entry.outcome for entry in crew.thefts()]
    assert outcomes == ["stolen"] + ["refused"] * 19


def test_the_book_is_bounded_and_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert THEFTS_KEPT >= 1000
    monkeypatch.setattr(capabilities, "THEFTS_KEPT", 200)
    crew = Crew()
    for number in range(250):
        crew.box.ask(crew.thief, wire.Steal(f"nobody-{number}", CAPABILITY))
    numbers: list[int] = []
    cursor: int | None = 0
    while cursor is not None:
        page = crew.box.ask(crew.box.client(), wire.Status("thefts", cursor))
        assert isinstance(page, wire.TheftList)
        assert len(encode(page)) < REPORT_BYTES_MAX
        numbers += [theft.number for theft in page.thefts]
        cursor = page.next_cursor
    assert numbers == list(range(51, 251))


# --- standing by ------------------------------------------------------------------------------------------------


def test_a_standby_has_to_have_what_opens_its_victims_memory() -> None:
    crew = Crew()
    assert failed(crew.box.ask(crew.thief, wire.StandBy("victim", b"?" * 32)), "capability")
    assert [theft.outcome for theft in crew.thefts()] == ["refused"]
    assert isinstance(crew.box.ask(crew.thief, wire.StandBy("victim", CAPABILITY)), wire.StandingBy)
    assert len(crew.thefts()) == 1, "to ask whether it would be allowed is no theft"


def test_only_the_named_standby_may_stand_by_with_a_capability() -> None:
    crew = Crew("standby", heir="somebody else")
    assert failed(crew.box.ask(crew.thief, wire.StandBy("victim", CAPABILITY)), "capability")


def test_guesses_while_standing_by_are_guesses() -> None:
    crew = Crew()
    for _ in range(WRONG_TRIES_MAX):
        crew.box.ask(crew.thief, wire.StandBy("victim", b"?" * 32))
    assert failed(crew.box.ask(crew.thief, wire.StandBy("victim", CAPABILITY)), "capability")
    assert crew.thefts()[-1].outcome == "barred"


def test_groups_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew()
    monkeypatch.setattr("bequest.protocol.groups.GROUPS_MAX", 2)
    assert isinstance(crew.box.ask(crew.box.client(), wire.CreateGroup("one more")), wire.GroupCreated)
    assert failed(crew.box.ask(crew.box.client(), wire.CreateGroup("too many")), "memory")
