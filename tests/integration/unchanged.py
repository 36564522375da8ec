"""What a bad call leaves behind: exactly one exception, and nothing else."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest

import bequest as bq

PAGE = 4096


@pytest.fixture
def region(me: bq.Process) -> Iterator[bq.Region]:
    region = me.alloc(2 * PAGE)
    region.array()[:] = 7
    yield region
    if region.owned:
        region.free()


@contextlib.contextmanager
def nothing_changes(me: bq.Process, *regions: bq.Region) -> Iterator[None]:
    """Around a bad call: what is owned stays owned, unread inboxes stay unread, and the books balance."""
    before = [(r.address, r.nbytes, r.remaining, r.views, bytes(memoryview(r))) for r in regions]
    held, waiting = me.table.holdings(me.id)[1], len(me.inbox)
    yield
    gc.collect()
    assert [(r.address, r.nbytes, r.remaining, r.views, bytes(memoryview(r))) for r in regions] == before
    assert all(region.owned for region in regions)
    assert me.table.holdings(me.id)[1] == held
    assert len(me.inbox) == waiting
    assert me.table.audit() == []
    me.check_rack()


def raised(kind: type[BaseException], call: Callable[[], object], *other_kinds: type[BaseException]) -> str:
    """The message of the exception, which is of exactly one of these kinds, and whose frames are let go of."""
    with pytest.raises((kind, *other_kinds)) as caught:
        call()
    assert caught.type in (kind, *other_kinds)
    message = str(caught.value)
    assert message, f"{kind.__name__} says nothing"
    assert "incompatible function arguments" not in message  # the binding's, which helps nobody
    caught.value.__traceback__ = None
    return message
