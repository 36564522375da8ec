"""Who a region came from: told by name, also when that one has gone since, and never by the name of another."""

from __future__ import annotations

import bequest as bq
from racks import Yard


def test_the_name_of_a_sender_that_has_gone(yard: Yard, me: bq.Process) -> None:
    with yard.attach("short-lived") as other:
        me.alloc(4096).grant(other.name)
        other.accept(timeout=5).grant(me.name)
        other.send(me.name, b"bye")
        gone = other.id
    assert me.table.life(gone)[0] == 0  # vacated: the Rack MMU has forgotten it
    with me.accept(timeout=5) as region:
        assert region.sender == "short-lived"
    assert me.accept(timeout=5).sender == "short-lived"


def test_not_the_name_of_who_has_its_id_now(yard: Yard, me: bq.Process) -> None:
    with yard.attach("short-lived") as other:
        other.send(me.name, b"bye")
        gone = other.id
    me.table.admit(gone, 1 << 20, 1, "another")  # as the Rack MMU would, had the id rested for long enough
    assert me.accept(timeout=5).sender == ""
    me.table.vacate(gone)
