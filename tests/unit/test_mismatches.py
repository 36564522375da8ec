"""Sealed pages that differ, at the Rack MMU: they fail if they are sealed still, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bequest.limits import PAGE_BYTES
from bequest.wire import messages as wire
from rack_in_a_box import MIB, Box

NUMBER = 5


class Scene:
    """One process that owns four pages of a slab under a seal, from the second page on."""

    def __init__(self) -> None:
        self.box = Box()
        self.peer, attached = self.box.attach("owner")
        self.id = attached.pid
        ready = self.box.ask(self.peer, wire.NeedSlab(2 * MIB // PAGE_BYTES))
        assert isinstance(ready, wire.SlabReady)
        self.slab = ready.slab
        (self.shard,) = self.box.shards.values()
        self.address = self.shard.records[self.slab][0]
        self.descriptor = self.shard.own(self.id, self.address + PAGE_BYTES, 4)
        self.set_seal(NUMBER)

    def set_seal(self, number: int) -> None:
        extents = self.shard.extents
        extents[self.descriptor] = replace(extents[self.descriptor], seal=number)

    def differ(self, page: int, pages: int = 1, number: int = NUMBER) -> None:
        del self.box.to_elements[:], self.box.to_agents[:]
        message = wire.PagesDiffer(self.slab, page * PAGE_BYTES, pages * PAGE_BYTES, number)
        self.box.do(self.box.mmu.element_message(0, message))

    def told(self, kind: type) -> list:
        return [message for message in self.box.to_elements if isinstance(message, kind)]

    def guard(self, *unguarded: str) -> None:
        for guard in [one for one in self.box.to_agents if isinstance(one, wire.GuardRange)]:
            self.box.do(
                self.box.mmu.agent_message(wire.RangeGuarded(guard.job, list(unguarded)), self.box.now)
            )


def test_what_is_sealed_still_fails_when_it_is_guarded() -> None:
    scene = Scene()
    scene.differ(2)
    assert scene.told(wire.FailMemory) == [] and scene.told(wire.ForgetSums) == []
    scene.guard()
    (order,) = scene.told(wire.FailMemory)
    assert (order.slab, order.offset, order.nbytes) == (scene.slab, 2 * PAGE_BYTES, PAGE_BYTES)
    assert "checksum" in order.cause and f"{scene.address + 2 * PAGE_BYTES:#x}" in order.cause
    failed = wire.MemoryFailed(scene.slab, order.offset, order.nbytes, order.cause)
    scene.box.do(scene.box.mmu.element_message(0, failed))
    scene.box.do(scene.box.mmu.element_message(0, wire.FailureMade(order.job)))
    (notice,) = [m.notice for m in scene.box.to_agents if isinstance(m, wire.TellProcess)]
    assert isinstance(notice, wire.NoticeMemory) and notice.cause == order.cause
    scene.differ(2)  # said again, or by another run of the element
    assert scene.box.to_elements == [] and scene.box.to_agents == []


@pytest.mark.parametrize("number", [0, NUMBER + 1])
def test_what_is_sealed_no_more_or_anew_is_none_of_its_business(number: int) -> None:
    scene = Scene()
    scene.set_seal(number)
    scene.differ(2)
    assert scene.told(wire.ForgetSums) == [wire.ForgetSums(scene.slab, 2 * PAGE_BYTES, PAGE_BYTES, NUMBER)]
    assert scene.box.to_agents == []


def test_what_is_freed_is_not_sealed() -> None:
    scene = Scene()
    scene.shard.free(scene.descriptor)
    scene.differ(2)
    assert len(scene.told(wire.ForgetSums)) == 1 and scene.box.to_agents == []


def test_memory_on_its_way_is_sealed() -> None:
    scene = Scene()
    _, receiver = scene.box.attach("receiver")
    scene.shard.grant(scene.descriptor, receiver.pid)
    scene.differ(2)
    assert [one for one in scene.box.to_agents if isinstance(one, wire.GuardRange)]


def test_only_what_lies_under_the_seal_fails() -> None:
    scene = Scene()
    scene.differ(0, pages=10)
    scene.guard()
    (order,) = scene.told(wire.FailMemory)
    assert (order.offset, order.nbytes) == (PAGE_BYTES, 4 * PAGE_BYTES)


def test_it_is_begun_once() -> None:
    scene = Scene()
    scene.differ(2)
    guards = list(scene.box.to_agents)
    scene.differ(2)
    assert guards and scene.box.to_agents == []


def test_where_somebody_cannot_be_guarded_the_page_stays_and_the_log_says_so() -> None:
    scene = Scene()
    scene.differ(2)
    scene.guard("owner")
    assert scene.told(wire.FailMemory) == []
    assert any("checksum" in note and "'owner' cannot be guarded" in note for note in scene.box.notes)


def test_a_slab_that_has_gone_is_forgotten() -> None:
    box = Box()
    box.do(box.mmu.element_message(0, wire.PagesDiffer(77, 0, PAGE_BYTES, NUMBER)))
    assert box.to_elements[-1] == wire.ForgetSums(77, 0, PAGE_BYTES, NUMBER)


def test_a_bit_is_flipped_where_its_address_lies() -> None:
    scene = Scene()
    asker = scene.box.client()
    assert scene.box.ask(asker, wire.FlipBit("dram0", scene.address + 4097, b"n")) is None
    (flip,) = scene.told(wire.FlipBitOf)
    assert (flip.slab, flip.offset, flip.nonce) == (scene.slab, 4097, b"n")
    del scene.box.to_elements[:]
    scene.box.do(scene.box.mmu.element_linked(0))
    assert scene.told(wire.FlipBitOf) == [flip]  # it may not have heard of it
    scene.box.do(scene.box.mmu.element_message(0, wire.BitFlipped(flip.job)))
    assert scene.box.replies[asker][-1] == wire.Done()
    scene.box.do(scene.box.mmu.element_message(0, wire.BitFlipped(flip.job)))  # said twice
    refused = scene.box.ask(asker, wire.FlipBit("dram0", scene.address - PAGE_BYTES))
    assert isinstance(refused, wire.Failed) and refused.kind == "config"
