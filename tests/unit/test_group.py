"""Capabilities and their shares, before anybody sees them."""

from __future__ import annotations

import itertools
from hashlib import sha256

import pytest

from bequest.errors import BadConfig, WrongCapability
from bequest.limits import CAPABILITY_BYTES, VERIFIER_BYTES
from bequest.memory.group import SHARE_BYTES, Group, Quorum, combine, make_keys


@pytest.fixture(scope="module")
def keys():
    return make_keys(Quorum(3, of=5))


def test_a_capability_is_fresh_and_its_verifier_is_its_hash() -> None:
    first, second = make_keys("member"), make_keys("standby")
    assert first.capability and first.capability != second.capability
    assert len(first.capability) == CAPABILITY_BYTES and len(first.verifier or b"") == VERIFIER_BYTES
    assert first.verifier == sha256(first.capability).digest()
    assert first.shares == ()


def test_where_nobody_may_steal_there_is_no_capability() -> None:
    keys = make_keys("never")
    assert (keys.capability, keys.verifier, keys.shares) == (None, None, ())


def test_any_quorum_puts_the_capability_together_and_nobody_has_it_alone(keys) -> None:
    assert keys.capability is None and len(set(keys.shares)) == 5
    capabilities = {combine(chosen) for chosen in itertools.permutations(keys.shares, 3)}
    (capability,) = capabilities
    assert sha256(capability).digest() == keys.verifier
    assert combine(keys.shares) == capability
    assert not any(capability[:8] in share for share in keys.shares)


def test_too_few_shares_open_nothing(keys) -> None:
    with pytest.raises(WrongCapability, match="no share"):
        combine([])
    with pytest.raises(WrongCapability, match="3 shares are needed, not 1"):
        combine(keys.shares[:1])
    with pytest.raises(WrongCapability, match="3 shares are needed, not 2"):
        combine(keys.shares[3:])


def test_a_share_counts_once(keys) -> None:
    one, two, *_ = keys.shares
    with pytest.raises(WrongCapability, match="twice"):
        combine([one, two, one])


def test_shares_of_different_groups_do_not_mix(keys) -> None:
    other = make_keys(Quorum(3, of=5)).shares
    with pytest.raises(WrongCapability, match="different groups"):
        combine([*keys.shares[:2], other[2]])


@pytest.mark.parametrize("place", range(SHARE_BYTES))
def test_a_damaged_share_is_told(keys, place: int) -> None:
    damaged = bytearray(keys.shares[0])
    damaged[place] ^= 1
    with pytest.raises(WrongCapability, match=r"damaged|no share"):
        combine([bytes(damaged), *keys.shares[1:3]])


def test_a_forged_share_is_told_when_it_does_not_fit(keys) -> None:
    def forged(change) -> bytes:
        body = bytearray(keys.shares[0][:-4])
        change(body)
        return bytes(body) + sha256(body).digest()[:4]

    def other_part(body: bytearray) -> None:
        body[20] ^= 1

    def other_index(body: bytearray) -> None:
        body[6] = 5

    def no_index(body: bytearray) -> None:
        body[6] = 0

    def fewer_needed(body: bytearray) -> None:
        body[4] = 1

    for change in (other_part, other_index):
        with pytest.raises(WrongCapability, match="do not fit"):
            combine([forged(change), *keys.shares[1:3]])
    for change in (no_index, fewer_needed):
        with pytest.raises(WrongCapability, match="forged"):
            combine([forged(change)])


@pytest.mark.parametrize("share", ["text", None, 7, bytearray(SHARE_BYTES)])
def test_what_is_no_bytes_is_a_type_error(share: object) -> None:
    with pytest.raises(TypeError):
        combine([share])  # type: ignore[list-item]


@pytest.mark.parametrize("share", [b"", b"short", bytes(SHARE_BYTES), bytes(SHARE_BYTES - 1)])
def test_what_is_no_share_is_told(share: bytes) -> None:
    with pytest.raises(WrongCapability, match="no share"):
        combine([share])


@pytest.mark.parametrize(("needed", "of"), [(1, 3), (0, 0), (4, 3), (2, 256), (-2, 3)])
def test_a_quorum_that_cannot_be_is_refused(needed: int, of: int) -> None:
    with pytest.raises(BadConfig):
        Quorum(needed, of=of)


def test_a_quorum_is_of_whole_numbers() -> None:
    with pytest.raises(TypeError):
        Quorum(2.5, of=3)  # type: ignore[arg-type]


def test_a_group_does_not_print_its_secrets(keys) -> None:
    group = Group("etl", b"s" * 16, b"c" * 32, keys.shares)
    assert repr(group) == "<bequest.Group 'etl'>"
