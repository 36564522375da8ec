"""The supervisor's safe: what is kept for whom, and that nobody can fill it."""

from __future__ import annotations

import os

import pytest

from bequest.limits import PACKET_FDS_MAX, SAFE_KEY_CHARACTERS_MAX, SAFE_META_BYTES_MAX
from bequest.runtime import safe as module
from bequest.runtime.safe import Deposit, Safe


def fresh() -> int:
    return os.memfd_create("test")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def safe(monkeypatch: pytest.MonkeyPatch) -> Safe:
    """With room for five descriptors."""
    monkeypatch.setattr(module, "raise_descriptor_limit", lambda: 5 + module.SAFE_DESCRIPTORS_SPARE)
    return Safe()


def test_what_is_kept_is_there_until_it_is_released(safe: Safe) -> None:
    one, two = fresh(), fresh()
    assert safe.keep("mmu", "journal", Deposit(b"about", [one])) == ""
    assert safe.keep("element a", "1", Deposit(b"", [two])) == ""
    assert safe.of("mmu") == {"journal": Deposit(b"about", [one])}
    safe.release("element a", "journal")  # not its own
    safe.release("mmu", "journal")
    safe.release("mmu", "journal")
    assert safe.of("mmu") == {} and not is_open(one) and is_open(two)
    safe.release("element a", "1")


def test_what_is_kept_anew_takes_the_place_of_what_was_there(safe: Safe) -> None:
    for _ in range(20):  # many more than there is room for
        before = safe.of("mmu")
        assert safe.keep("mmu", "journal", Deposit(b"", [fresh()])) == ""
        assert not any(is_open(fd) for deposit in before.values() for fd in deposit.fds)
    safe.release("mmu", "journal")


def test_it_keeps_no_more_descriptors_than_it_can(safe: Safe) -> None:
    for number in range(5):
        assert safe.keep("mmu", str(number), Deposit(b"", [fresh()])) == ""
    refused = fresh()
    assert "ulimit" in safe.keep("element a", "1", Deposit(b"", [refused]))
    assert not is_open(refused) and safe.of("element a") == {}
    safe.release("mmu", "0")
    assert safe.keep("element a", "1", Deposit(b"", [fresh()])) == ""
    safe.shed("nobody")
    assert safe.of("mmu") == {} == safe.of("element a")


def test_it_keeps_no_more_things_than_it_can(safe: Safe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAFE_ENTRIES_MAX", 2)
    assert safe.keep("mmu", "1", Deposit(b"")) == "" == safe.keep("mmu", "2", Deposit(b""))
    assert safe.keep("mmu", "3", Deposit(b"")) != ""
    assert safe.keep("mmu", "2", Deposit(b"again")) == ""
    assert safe.keep("element a", "3", Deposit(b"")) == ""


@pytest.mark.parametrize(
    ("key", "about", "count"),
    [
        ("k" * (SAFE_KEY_CHARACTERS_MAX + 1), b"", 1),
        ("k", bytes(SAFE_META_BYTES_MAX + 1), 1),
        ("k", b"", PACKET_FDS_MAX + 1),
    ],
)
def test_nothing_of_a_deposit_is_larger_than_agreed(safe: Safe, key: str, about: bytes, count: int) -> None:
    old, fds = fresh(), [fresh() for _ in range(count)]
    assert safe.keep("mmu", "k", Deposit(b"old", [old])) == ""
    assert safe.keep("mmu", key, Deposit(about, list(fds))) != ""
    assert not any(map(is_open, fds))
    assert safe.of("mmu") == {"k": Deposit(b"old", [old])}
    safe.release("mmu", "k")


def test_a_daemon_gets_its_own_and_nothing_else(safe: Safe) -> None:
    mine, other = fresh(), fresh()
    safe.keep("mmu", "1", Deposit(b"", [mine]))
    safe.keep("element a", "1", Deposit(b"", [other]))
    safe.shed("mmu")
    assert is_open(mine) and not is_open(other)
    safe.release("mmu", "1")
