"""Memory that becomes ours while something is stolen from us, and on whose mapping a fence lies from before.

A process may be stopped between its look at what was stolen from it and its taking of memory that was its own once, was
stolen, and has come back meanwhile. Here the fence is laid in the middle of the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import actors
import bequest as bq
from bequest import _core
from bequest.memory.connections import Connections
from losses import PAGE, slab_of
from racks import MIB, Yard
from test_failed_fences import is_writable


class Interruption:
    """What happens, once, when the library has to ask for a slab."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.act: Callable[[int], object] | None = None
        real = Connections.open_slab

        def open_slab(links: Connections, slab: int) -> Any:
            act, self.act = self.act, None
            if act is not None:
                act(slab)
            return real(links, slab)

        monkeypatch.setattr(Connections, "open_slab", open_slab)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    return Interruption(monkeypatch)  # before anybody attaches


@pytest.fixture
def me(interruption: Interruption, yard: Yard) -> bq.Process:
    yard.rack()
    return yard.attach("me")


@pytest.fixture
def fence() -> Iterator[int]:
    fd = _core.open_fence()
    yield fd
    os.close(fd)


def be_robbed(me: bq.Process, fence: int, address: int, nbytes: int) -> None:
    """Fenced off this, and told that something was stolen."""
    _core.write_protect(fence, os.getpid(), [(address, nbytes)])
    me.table.steal([], me.id, me.id)


def test_what_is_accepted_with_a_fence_on_it_can_be_used(
    yard: Yard, me: bq.Process, fence: int, interruption: Interruption
) -> None:
    sender = yard.actor("sender")
    for key, nbytes in (("mapped", PAGE), ("fenced", PAGE), ("in another slab", 4 * MIB)):
        sender.do(actors.alloc, key, nbytes, 1)
    sender.do(actors.grant, "mapped", "me")
    mapped = me.accept(actors.DEADLINE)
    sender.do(actors.grant, "fenced", "me")
    sender.do(actors.grant, "in another slab", "me")
    _, start = slab_of(me, mapped)
    interruption.act = lambda slab: be_robbed(me, fence, start, 2 * MIB)
    fenced, other = me.accept_all()
    assert interruption.act is None and slab_of(me, fenced) == slab_of(me, mapped) != slab_of(me, other)
    assert bytes(memoryview(fenced)[:1]) == b"\1"
    assert is_writable(fenced) and is_writable(other)
    for region in (fenced, other):
        region.free()
    mapped.free()


def test_what_is_allocated_with_a_fence_on_it_can_be_used(
    me: bq.Process, fence: int, interruption: Interruption
) -> None:
    def be_robbed_of_what_was_here(slab: int) -> None:
        me._map_ahead("me")
        _, start, pages, *_ = next(row for row in me.table.slabs() if row[0] == slab)
        be_robbed(me, fence, start, pages * PAGE)

    interruption.act = be_robbed_of_what_was_here
    with me.alloc(PAGE) as region:
        assert interruption.act is None
        assert is_writable(region)
