"""The service's file: what may be written there, and what is said of what may not."""

from __future__ import annotations

import pytest

from bequest.errors import BadConfig
from bequest.paxos.config import parse_address, parse_service, write_service

SITE = '[[site]]\nname = "{0}"\nrack = "rack-{0}"\npeers = "10.0.0.1:{1}"\nclients = "[::1]:{1}"\n'
GOOD = 'name = "locks"\n[timing]\nlease = 2.0\n' + SITE.format("a", 7400) + SITE.format("b", 7401)


def test_what_was_written_is_read() -> None:
    service = parse_service(GOOD)
    assert [site.name for site in service.sites] == ["a", "b"] and service.timing.lease == 2.0
    assert str(service.site("b").clients) == "[::1]:7401" and service.site("b").clients.host == "::1"
    assert parse_service(write_service(service)) == service


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = ", "Invalid value"),
        ('name = "locks"', "site"),
        ('name = "a/b"\n' + SITE.format("a", 1), "contains '/'"),
        ('name = "locks"\nsite = []', "1 to 9 sites, not 0"),
        (GOOD.replace('name = "b"', 'name = "a"'), "two sites are called 'a'"),
        (GOOD.replace("rack-b", "rack-a"), "two sites use the rack 'rack-a'"),
        (GOOD.replace("7401", "7400"), "two sockets have the address"),
        (GOOD.replace("lease", "leese"), "timing has no 'leese'"),
        (GOOD.replace("2.0", "0.1"), "at least two of them"),
        (GOOD.replace("2.0", "-1.0"), "must be more than 0 s"),
        (GOOD.replace("rack =", "rock ="), "rock"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    with pytest.raises(BadConfig, match=told.replace("(", r"\(")):
        parse_service(text)


@pytest.mark.parametrize("text", ["here", "here:", ":1", "here:x", "here:65536", "::1:7400", "here:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadConfig, match="is no address"):
        parse_address(text)


def test_an_unknown_site_is_told() -> None:
    with pytest.raises(BadConfig, match="it has a, b"):
        parse_service(GOOD).site("c")
