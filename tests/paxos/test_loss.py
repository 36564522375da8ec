"""A replica that is told of the loss of its memory: it counts as handled when the others have been told, not before."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from bequest.errors import MemoryFailure
from bequest.memory.events import MemoryFailed
from bequest.paxos.messages import Message
from bequest.paxos.replica import Replica

SOON = 20.0


def test_lost_memory_is_handled_when_the_others_have_been_told() -> None:
    """Else a replica whose event loop hangs would keep its emergency contacts from being called."""
    asked: list[tuple[object, ...]] = []
    told: list[Message] = []
    replica = object.__new__(Replica)
    replica.__dict__ |= {
        "_loop": SimpleNamespace(call_soon_threadsafe=lambda *call: asked.append(call)),
        "_has_told": threading.Event(),
        "_over": SimpleNamespace(done=lambda: False, set_exception=lambda error: None),
        "_driver": SimpleNamespace(stop=lambda: None),
        "_options": SimpleNamespace(failure_notices=True),
        "_peers": SimpleNamespace(tell_everybody=told.append),
        "_ledger": SimpleNamespace(replica=3),
    }
    event = MemoryFailed("dram0", ((0, 4096),), "worn out")
    handling = threading.Thread(target=replica._hear_of_failure, args=(event,), daemon=True)
    handling.start()
    handling.join(0.1)
    assert handling.is_alive() and not told, "the event loop has not come to it yet"
    ((give_up, error),) = asked
    assert isinstance(error, MemoryFailure)
    give_up(error)  # type: ignore[operator]
    handling.join(SOON)
    assert not handling.is_alive() and [message.replica for message in told] == [3]  # type: ignore[attr-defined]
