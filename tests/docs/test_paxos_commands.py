"""The page of commands has those that there are, with the arguments that they take, and the limits that hold."""

from __future__ import annotations

import re

import pytest

from bequest.paxos import front, locks, store, strings
from bequest.paxos.commands import COMMANDS, Spec
from pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "paxos-commands.md").read_text()
DOCUMENTED = {line.split()[0]: line for line in re.findall(r"^\| `([A-Z][^`]*)` \|", PAGE, re.MULTILINE)}


def test_the_page_has_every_command() -> None:
    assert sorted(DOCUMENTED) == sorted(name.decode() for name in COMMANDS)


@pytest.mark.parametrize("spec", COMMANDS.values(), ids=lambda spec: spec.name.decode())
def test_a_command_takes_what_is_said(spec: Spec) -> None:
    said = DOCUMENTED[spec.name.decode()].split(maxsplit=1)[1:]
    arguments = said[0] if said else ""
    required = re.sub(r"\[.*?\]", "", arguments).replace("…", "").split()
    assert len(required) == spec.least
    if "[" not in arguments and "…" not in arguments:
        assert spec.most == spec.least
    if "…" in arguments:
        assert spec.most > 100


def test_the_limits_are_those_of_the_code() -> None:
    limits = front.Limits()
    mib = 1 << 20
    for figure in (
        f"| one string | {limits.bounds.bulk_bytes // mib} MiB",
        f"| words of one command | {limits.bounds.arguments:,}",
        f"| one command, or one transaction | {limits.bounds.request_bytes // mib} MiB",
        f"| values that one command reads, or one that grows | {strings.TOUCHED_BYTES_MAX // mib} MiB",
        f"| connections of a replica | {limits.connections:,}",
        f"| sent by all clients, and not done | {limits.held_bytes // mib} MiB",
        f"| not fetched by all clients | {limits.unsent_bytes // mib} MiB",
        f"| messages of channels that one client has not fetched | {limits.unfetched_bytes // mib} MiB",
        f"| nothing fetched of what waits | {limits.stalled:g} s",
        f"| values that one transaction reads and writes | {store.TRANSACTION_BYTES_MAX // mib} MiB",
        f"| locks, own keys and groups of one session | {locks.THINGS_MAX:,} each",
        f"| members of one group | {locks.MEMBERS_MAX:,}, with {locks.DATA_BYTES_MAX} bytes",
        f"session's own key | {locks.NAME_BYTES_MAX:,} bytes",
    ):
        assert figure in PAGE
