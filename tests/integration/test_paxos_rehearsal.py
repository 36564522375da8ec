"""A standby rehearses what it has to do when its replica dies; nothing of that is left when it stands by."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

import bequest as bq
from bequest.paxos import rehearsal
from racks import RackUnderTest


def test_nothing_is_left_of_a_rehearsal_and_nothing_said(
    rack: RackUnderTest, me: bq.Process, caplog: pytest.LogCaptureFixture
) -> None:
    async def twice() -> list[tuple[int, int]]:
        left = []
        for _ in range(2):
            await rehearsal.rehearse(me)
            await asyncio.sleep(0)  # what has been closed is let go of in the next turn of the event loop
            left.append((len(os.listdir("/proc/self/fd")), rack.used_bytes()))
        return left

    caplog.set_level(logging.INFO, "bequest.paxos")
    first, second = asyncio.run(twice())
    assert first == second, "descriptors, and bytes of memory"
    assert caplog.text == ""
    assert logging.getLogger("bequest.paxos").level == logging.INFO


def test_who_goes_on_without_an_answer_to_its_client_is_not_ready(
    me: bq.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_SAID", ((b"*1\r\n$4\r\nPING\r\n", b"+PANG\r\n"),))
    with pytest.raises(AssertionError, match="is answered with"):
        asyncio.run(rehearsal.rehearse(me))
