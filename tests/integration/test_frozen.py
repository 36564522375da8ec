"""Frozen regions among real processes: many readers, no copy, and nobody killed takes anything away from the others."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest

import actors
import bequest as bq
import frozen_users
from actors import until
from bequest.wire import messages as wire
from racks import MIB, RackUnderTest, Yard

pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends
PAGE = 4096


def frozen_region(me: bq.Process, nbytes: int = PAGE, value: int = 7) -> tuple[bq.Region, bq.Frozen]:
    region = me.alloc(nbytes)
    region.array()[:] = value
    return region, region.freeze()


def all_is_free(rack: RackUnderTest) -> bool:
    return all(state == "free" for slab in rack.slabs() for state in {run.state for run in slab.runs})


# --- one process alone -------------------------------------------------------------------------------------------


def test_it_can_only_be_read_and_thaws(me: bq.Process) -> None:
    region, frozen = frozen_region(me, 2 * PAGE)
    assert region.frozen and region.freeze() == frozen == pickle.loads(pickle.dumps(frozen))
    assert (frozen.address, frozen.nbytes, frozen.group) == (region.address, 2 * PAGE, me.group)
    assert "frozen" in repr(region) and len(pickle.dumps(frozen)) < 200
    with memoryview(region) as view:
        assert view.readonly and view[0] == 7
    with pytest.raises(ValueError, match="read-only"):
        region.array()[0] = 1
    with pytest.raises(bq.RegionFrozen, match="thaw"):
        bq.Heap.create(region)
    region.thaw()
    region.thaw()  # does nothing
    assert not region.frozen
    region.array()[0] = 1
    with pytest.raises(bq.RegionMoved, match="thawed"):
        me.read(frozen)
    with pytest.raises(bq.RegionMoved):  # another freeze is another word, and the same region
        me.read(frozen._replace(birth=frozen.birth + 1))
    assert region.freeze() == frozen


def test_it_is_not_frozen_under_a_view_nor_in_part(me: bq.Process) -> None:
    region = me.alloc(4 * PAGE)
    with memoryview(region), pytest.raises(BufferError, match="frozen"):
        region.freeze()
    with pytest.raises(bq.BadSize, match="split"):
        region[:PAGE].freeze()
    region.freeze()
    for act in (region[:PAGE].free, region[:PAGE].thaw):
        with pytest.raises(bq.BadSize, match="whole"):
            act()
    other = me.alloc(PAGE)
    acts = (lambda: region.grant("me"), lambda: region.split(PAGE), lambda: region.merge(other))
    for act in (*acts, lambda: other.merge(region), lambda: region[:PAGE].grant("me")):
        with pytest.raises(bq.RegionFrozen, match="thaw"):
            act()
    assert region.owned and region.frozen


def test_what_was_in_parts_is_frozen_as_one(me: bq.Process) -> None:
    region = me.alloc(3 * PAGE)
    region.array()[:] = 5
    region[PAGE : 2 * PAGE].grant("me")
    with pytest.raises(bq.RegionMoved):
        region.freeze()
    me.accept(0).free()
    whole = me.alloc(2 * PAGE)
    left, right = whole.split(PAGE)
    assert left.merge(right).freeze().nbytes == 2 * PAGE


def test_a_reading_has_views_and_closes_itself(me: bq.Process, rack: RackUnderTest) -> None:
    region, frozen = frozen_region(me, 2 * PAGE)
    reading = me.read(frozen)
    view = memoryview(reading)
    assert view.readonly and view[-1] == 7 and (reading.address, len(reading)) == (region.address, 2 * PAGE)
    assert reading.array("int32", (2, 4), offset=PAGE).shape == (2, 4)
    assert reading.views == 1
    with pytest.raises(BufferError, match="1 view"):
        reading.close()
    with pytest.raises(bq.RegionFrozen, match="'me'"):
        region.thaw()
    with pytest.raises(BufferError):
        me.detach()
    view.release()
    reading.close()
    reading.close()
    assert reading.closed and "closed" in repr(reading)
    with pytest.raises(bq.RegionMoved, match="closed"):
        memoryview(reading)
    with pytest.raises(TypeError, match="freeze"):
        pickle.dumps(reading)
    array = me.read(frozen).array()
    region.free()
    assert array[0] == 7 and actors.protection_of(frozen.address) == "r--s"
    del array
    gc.collect()
    assert actors.protection_of(frozen.address) == "---s" and all_is_free(rack)


def test_a_reading_tells_whether_somebody_keeps_it(me: bq.Process) -> None:
    region = me.alloc(MIB)
    reading = me.read(region.freeze())
    assert reading.kept
    region.free()
    assert not reading.kept
    reading.close()
    with pytest.raises(bq.RegionMoved, match="closed"):
        assert reading.kept


def test_two_attachments_of_one_program_read_one_mapping(
    yard: Yard, me: bq.Process, rack: RackUnderTest
) -> None:
    """One of them lets go, or loses, what the other goes on with."""
    region, frozen = frozen_region(me)
    second = yard.attach("second")
    mine, theirs, again = me.read(frozen), second.read(frozen), second.read(frozen)
    again.close()
    mine.close()
    assert memoryview(region)[0] == memoryview(theirs)[0] == 7
    region.free()
    assert memoryview(theirs)[0] == 7
    theirs.close()
    assert all_is_free(rack)
    region, frozen = frozen_region(me, value=9)
    theirs = second.read(frozen)
    second.steal("me", only=[region.address]).regions[0].free()
    assert not region.owned and memoryview(theirs)[0] == 9


def test_it_is_sealed_and_published_as_any(me: bq.Process) -> None:
    region, frozen = frozen_region(me)
    region.seal()
    me.publish("/frozen", region)
    assert region.verify() == PAGE and me.lookup("/frozen") is not None
    region.unseal()
    assert actors.protection_of(frozen.address) == "r--s"
    region.seal()
    region.thaw()
    assert actors.protection_of(frozen.address) == "r--s"
    with pytest.raises(ValueError, match="read-only"):
        region.array()[0] = 1
    assert region.freeze() == frozen and region.verify() == PAGE
    region.thaw()
    region.unseal()
    region.array()[0] = 1


def test_references_from_elsewhere_are_refused(me: bq.Process, yard: Yard, rack: RackUnderTest) -> None:
    _, frozen = frozen_region(me)
    for other in (frozen._replace(rack="another"), frozen._replace(group="another")):
        with pytest.raises(bq.NotAttached, match="another"):
            me.read(other)
    with pytest.raises(TypeError, match="freeze"):
        me.read(me)  # type: ignore[arg-type]
    for nonsense in (frozen._replace(descriptor=2**31), frozen._replace(address=frozen.address + PAGE)):
        with pytest.raises(bq.RegionMoved):
            me.read(nonsense)


# --- several -----------------------------------------------------------------------------------------------------


def test_many_read_it_at_its_address_and_the_last_frees_it(yard: Yard, rack: RackUnderTest) -> None:
    keeper, *readers = [yard.actor(name) for name in ("keeper", "b", "c")]
    reference = keeper.do(frozen_users.freeze, "x", 4 * MIB)
    addresses = {reader.do(frozen_users.read, "x", reference) for reader in readers}
    assert addresses == {pickle.loads(reference).address}
    assert [reader.do(actors.values, "x") for reader in readers] == [[7], [7]]
    with pytest.raises(bq.RegionFrozen, match="'b', 'c'"):
        keeper.do(frozen_users.thaw, "x")
    keeper.do(actors.free, "x")
    assert keeper.do(actors.protection, addresses.copy().pop()) == "---s"
    readers[0].do(frozen_users.let_go, "x")
    assert not all_is_free(rack)
    readers[0].do(frozen_users.read, "x", reference)  # as long as somebody reads it
    readers[1].do(frozen_users.let_go, "x")
    assert readers[0].do(actors.values, "x") == [7]
    readers[0].do(frozen_users.let_go, "x")
    assert all_is_free(rack)
    with pytest.raises(bq.RegionMoved, match="freed"):
        readers[0].do(frozen_users.read, "x", reference)


def test_its_keeper_is_killed_and_the_thief_keeps_it(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader, thief = [yard.actor(name) for name in ("keeper", "reader", "thief")]
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    keeper.kill()
    assert thief.do(frozen_users.steal_all, "keeper") == [(pickle.loads(reference).address, PAGE, True)]
    assert reader.do(actors.values, "x") == thief.do(actors.values, "stolen 0") == [7]
    with pytest.raises(bq.RegionFrozen, match="'reader'"):
        thief.do(frozen_users.thaw, "stolen 0")
    reader.do(frozen_users.let_go, "x")
    thief.do(frozen_users.thaw, "stolen 0")
    thief.do(actors.fill, "stolen 0", 3)


@pytest.mark.parametrize("reads", [False, True], ids=["who keeps it", "who reads it besides"])
def test_it_is_stolen_from_a_living_keeper(yard: Yard, rack: RackUnderTest, reads: bool) -> None:
    keeper, reader, thief = [yard.actor(name) for name in ("keeper", "reader", "thief")]
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    if reads:
        keeper.do(frozen_users.read, "y", reference)
    assert len(thief.do(frozen_users.steal_all, "keeper")) == 1
    with pytest.raises(bq.MemoryRevoked, match="thief"):
        keeper.do(actors.values, "x")
    assert reader.do(actors.values, "x") == [7]
    if reads:
        assert keeper.do(actors.values, "y") == [7]
        keeper.do(frozen_users.let_go, "y")
    until(
        lambda: keeper.do(actors.protection, pickle.loads(reference).address) in ("---s", "---p"),
        "it is closed",
    )
    reader.do(frozen_users.let_go, "x")
    thief.do(frozen_users.thaw, "stolen 0")
    thief.do(actors.fill, "stolen 0", 3)


def test_what_nobody_keeps_is_inherited_with_a_reader(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader, other, thief = [yard.actor(name) for name in ("keeper", "reader", "other", "thief")]
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    other.do(frozen_users.read, "x", reference)
    keeper.do(actors.free, "x")
    reader.kill()
    assert len(thief.do(frozen_users.steal_all, "reader")) == 1
    assert thief.do(actors.values, "stolen 0") == other.do(actors.values, "x") == [7]
    thief.do(actors.free, "stolen 0")
    assert other.do(actors.values, "x") == [7]
    other.do(frozen_users.let_go, "x")
    assert all_is_free(rack)


def test_nobody_waits_for_a_dead_reader(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader = yard.actor("keeper"), yard.actor("reader")
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    reader.kill()

    def thawed() -> bool:
        try:
            keeper.do(frozen_users.thaw, "x")
        except bq.RegionFrozen:  # its death is not settled yet
            return False
        return True

    until(thawed, "the dead reader's reading to end")


def test_an_orphan_that_is_read_is_its_readers(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader = yard.actor("keeper"), yard.actor("reader")
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    keeper.kill()
    until(lambda: rack.processes()["keeper"].state == "gone", "the keeper's time to pass")
    assert reader.do(actors.values, "x") == [7] and not all_is_free(rack)
    reader.do(frozen_users.let_go, "x")
    until(lambda: all_is_free(rack), "the last reader's memory to be free")


def test_a_process_that_detaches_lets_go(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader = yard.actor("keeper"), yard.actor("reader")
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    keeper.do(actors.detach)
    assert reader.do(actors.values, "x") == [7]
    reader.do(actors.detach)
    until(lambda: all_is_free(rack), "all to be free")


def test_each_who_touches_failed_memory_is_told(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader = yard.actor("keeper"), yard.actor("reader")
    reference = keeper.do(frozen_users.freeze, "x")
    reader.do(frozen_users.read, "x", reference)
    address = pickle.loads(reference).address
    rack.connection.request(wire.BreakMemory("dram0", address, PAGE))
    for process in (keeper, reader):
        with pytest.raises(bq.MemoryFailure) as failure:
            process.do(actors.values, "x")
        assert failure.value.address is not None
    keeper.do(actors.free, "x")
    reader.do(frozen_users.let_go, "x")


def test_readers_hear_of_failures_as_keepers_do(me: bq.Process, yard: Yard, rack: RackUnderTest) -> None:
    keeper = yard.actor("keeper")
    frozen = pickle.loads(keeper.do(frozen_users.freeze, "x"))
    reading = me.read(frozen)
    view = memoryview(reading)
    heard: list[bq.MemoryFailed] = []
    me.on_memory_failure(heard.append)
    rack.connection.request(wire.BreakMemory("dram0", frozen.address, PAGE))
    until(lambda: heard, "the reader to be told")
    assert [(frozen.address, PAGE)] == list(heard[0].runs)
    with pytest.raises(bq.MemoryFailure) as failure:
        view[0]
    view.release()
    assert failure.value.region is reading and failure.value.nbytes == PAGE
    with pytest.raises(bq.MemoryFailure):
        memoryview(reading)
    reading.close()


def test_the_rack_mmu_is_killed_and_nobody_reads_less(yard: Yard, rack: RackUnderTest) -> None:
    keeper, reader, other = [yard.actor(name) for name in ("keeper", "reader", "other")]
    kept, left = keeper.do(frozen_users.freeze, "x"), keeper.do(frozen_users.freeze, "y")
    reader.do(frozen_users.read, "x", kept)
    reader.do(frozen_users.read, "y", left)
    keeper.do(actors.free, "y")
    before = rack.daemon("mmu")
    os.kill(before, signal.SIGKILL)
    until(lambda: rack.daemon("mmu") != before, "its successor")
    assert rack.audit() == []
    assert other.do(frozen_users.read, "x", kept) == pickle.loads(kept).address
    assert reader.do(actors.values, "x") == reader.do(actors.values, "y") == [7]
    reader.kill()
    assert len(other.do(frozen_users.steal_all, "reader")) == 1
    assert other.do(actors.values, "stolen 0") == other.do(actors.values, "x") == [7]


# --- killed at any instant ---------------------------------------------------------------------------------------


def test_kills_at_any_instant_lose_nothing(yard: Yard, rack: RackUnderTest, tmp_path: Path) -> None:
    """Processes freeze, read each other's, and free, until they are killed; whoever is left goes on, and then nothing
    is left."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    place = tmp_path / "references"
    place.mkdir()
    crew = []
    for number in range(12):
        one = yard.actor(f"one-{number}")
        one.start(frozen_users.storm, str(place), dice.randrange(1 << 20))
        crew.append(one)
        if len(crew) == 3:
            time.sleep(dice.uniform(0.02, 0.1))
            victim = crew.pop(dice.randrange(3))
            victim.kill()
            assert rack.audit() == []
    for one in crew:
        one.kill()
    assert not (place / "wrong").exists(), (place / "wrong").read_text()
    until(lambda: not rack.processes() and all_is_free(rack), "all to be free")
