"""Bad input: each is exactly one exception of the right class, and nothing has changed by it.

"Nothing" is looked at from four sides: the region is still owned and holds what it held, the table accounts for every
page, the rack still serves this process, and the right call after the wrong one works.
"""

# ruff: noqa: B023  (each lambda is called before its loop goes on)
from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import warnings
from collections.abc import Callable

import pytest

import actors
import bequest as bq
from actors import until
from bequest.limits import INBOX_CELLS, TAG_BYTES_MAX
from racks import MIB, RackUnderTest, Yard
from unchanged import PAGE, nothing_changes, raised

pytestmark = pytest.mark.filterwarnings(
    "ignore:a region of:ResourceWarning"
)  # dropped when a test ends; one minds


def test_an_error_is_also_the_builtin_that_python_users_expect() -> None:
    expected = {
        bq.RegionMoved: ValueError,
        bq.NotAttached: RuntimeError,
        bq.NameTaken: ValueError,
        bq.UnknownProcess: KeyError,
        bq.WrongSecret: PermissionError,
        bq.TagTooLong: ValueError,
        bq.BadSize: ValueError,
        bq.ProcessDead: ProcessLookupError,
        bq.InboxFull: TimeoutError,
        bq.AcceptTimeout: TimeoutError,
        bq.RackGone: ConnectionError,
        bq.NoRack: ConnectionError,
        bq.RackMemoryError: MemoryError,
        bq.AddressSpaceFull: bq.RackMemoryError,
        bq.TooManyMappings: bq.RackMemoryError,
        bq.VersionMismatch: ConnectionError,
        bq.UnsupportedPlatform: OSError,
    }
    for error, builtin in expected.items():
        assert issubclass(error, builtin) and issubclass(error, bq.BequestError)
        assert str(error("what happened")) == "what happened"


# --- recipients ----------------------------------------------------------------------------------------------


def test_grant_to_an_unknown_recipient(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    for name in ("nobody", "", "x" * 64, "x" * 1_000_000, "a/b", "\udc80", "tab\t"):
        with nothing_changes(me, region):
            raised(bq.UnknownProcess, lambda name=name: region.grant(name))
            raised(bq.UnknownProcess, lambda name=name: me.send(name, b"message"))
    yard.attach("peer")
    region.grant("peer")


def test_grant_to_something_that_is_no_name(me: bq.Process, region: bq.Region) -> None:
    for name in [None, 5, b"peer"]:
        with nothing_changes(me, region):
            raised(TypeError, lambda: region.grant(name))  # type: ignore[arg-type]
            raised(TypeError, lambda: me.send(name, b"message"))  # type: ignore[arg-type]


def test_grant_to_a_process_that_was_killed(
    yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region
) -> None:
    peer = yard.actor("peer")
    me.send("peer", b"so that its address is known")
    peer.kill()
    until(lambda: rack.processes().get("peer", None) is None or rack.processes()["peer"].state != "attached")
    with nothing_changes(me, region):
        assert "'peer' has" in raised(bq.ProcessDead, lambda: region.grant("peer"))
        # The rack remembers the dead for a while only.
        raised(bq.ProcessDead, lambda: me.send("peer", b"message"), bq.UnknownProcess)
    peer = yard.actor("peer")  # the name may be borne again, at once
    region.grant("peer")
    assert peer.do(actors.accept, "region")[1] == 2 * PAGE


def test_grant_to_a_process_that_has_detached(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    peer = yard.attach("peer")
    me.send("peer", b"so that its address is known")
    peer.detach()
    with nothing_changes(me, region):
        raised(bq.ProcessDead, lambda: region.grant("peer"))
        raised(bq.ProcessDead, lambda: me.send("peer", b"message"), bq.UnknownProcess)


def test_no_regions_are_granted_at_once_to_anybody(yard: Yard, me: bq.Process) -> None:
    """An empty batch is no error, and no reason to wait for ever either."""
    yard.attach("peer")
    with nothing_changes(me):
        assert me.grant_all([], "peer", timeout=0) == 0
        assert me.grant_all([], "peer") == 0
        raised(bq.UnknownProcess, lambda: me.grant_all([], "nobody"))


def test_a_batch_with_one_bad_region_grants_none(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    yard.attach("peer")
    moved, viewed = me.alloc(PAGE), me.alloc(PAGE)
    moved.free()
    view = memoryview(viewed)
    with nothing_changes(me, region, viewed):
        raised(bq.RegionMoved, lambda: me.grant_all([region, moved], "peer"))
        raised(BufferError, lambda: me.grant_all([region, viewed], "peer"))
        raised(ValueError, lambda: me.grant_all([region, region], "peer"))
        raised(ValueError, lambda: me.grant_all([region, region[:PAGE]], "peer"))
        raised(ValueError, lambda: me.grant_all([region[PAGE:], region], "peer"))
        raised(TypeError, lambda: me.grant_all([region, b"no region"], "peer"))  # type: ignore[list-item]
    view.release()
    assert me.grant_all([region[PAGE:], region[:PAGE], viewed], "peer") == 0


def test_a_region_of_another_attachment(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    other = yard.attach("other")
    theirs = other.alloc(PAGE)
    with nothing_changes(me, region):
        raised(ValueError, lambda: me.grant_all([theirs], "other"))
        raised(ValueError, lambda: region.merge(theirs))
    theirs.free()


# --- views ---------------------------------------------------------------------------------------------------


def test_acts_on_memory_with_live_views(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    yard.attach("peer")
    yard.attach("stranger", group=rack.connection.create_group("strangers"))
    acts: dict[str, Callable[[bq.Region, bq.Region], object]] = {
        "grant": lambda left, right: right.grant("peer"),
        "grant across": lambda left, right: right.grant("stranger"),
        "free": lambda left, right: right.free(),
        "split": lambda left, right: right.split(),
        "merge": lambda left, right: left.merge(right),
        "with": lambda left, right: right.__exit__(None, None, None),
        "detach": lambda left, right: me.detach(),
    }
    for name, act in acts.items():
        left, right = me.alloc(2 * PAGE).split(PAGE)
        for count in (1, 3):
            views = [memoryview(right) for _ in range(count)]
            with nothing_changes(me, left, right):
                message = raised(BufferError, lambda act=act, left=left, right=right: act(left, right))
                assert f"{count} view{'s' if count > 1 else ''} " in message, name
            for view in views:
                view.release()
        act(left, right)
        assert not right.owned


def test_views_of_parts_count_where_they_are(yard: Yard, me: bq.Process) -> None:
    yard.attach("peer")
    region = me.alloc(3 * PAGE)
    view = memoryview(region[PAGE : 2 * PAGE])
    whole = memoryview(region)
    raised(BufferError, lambda: region[:PAGE].grant("peer"))  # the view of the whole sees this page
    whole.release()
    region[:PAGE].grant("peer")
    raised(BufferError, lambda: region[PAGE:].grant("peer"))
    raised(BufferError, lambda: region[PAGE : 2 * PAGE].free())
    region[2 * PAGE :].grant("peer")
    view[:] = bytes(PAGE)
    view.release()
    region[PAGE : 2 * PAGE].free()
    assert me.table.audit() == []


def test_views_of_views_count_until_the_last_has_gone(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    yard.attach("peer")
    array = region.array("u4", (2, PAGE // 4))
    row = array[1, 5:9]
    del array
    raised(BufferError, lambda: region.grant("peer"))
    row[:] = 1
    del row
    region.grant("peer")


def test_an_error_in_a_with_statement_is_not_masked_by_its_views(me: bq.Process) -> None:
    """Views in the frames of an exception keep a region from being freed; the exception matters more."""

    def fails() -> None:
        with me.alloc(PAGE) as region:
            array = region.array()
            raise LookupError(f"with a view of {array.nbytes} bytes")

    raised(LookupError, fails)
    gc.collect()
    assert me.table.holdings(me.id)[1] == 0, "freed once the frames have gone"


# --- moved regions -------------------------------------------------------------------------------------------

USES: dict[str, Callable[[bq.Region, bq.Region], object]] = {
    "memoryview": lambda r, _: memoryview(r),
    "array": lambda r, _: r.array(),
    "bytes": lambda r, _: bytes(r),
    "slice": lambda r, _: r[:PAGE],
    "grant": lambda r, _: r.grant("peer"),
    "free": lambda r, _: r.free(),
    "split": lambda r, _: r.split(PAGE),
    "merge": lambda r, other: r.merge(other),
    "merge with": lambda r, other: other.merge(r),
    "loads": lambda r, _: bq.loads(r),
}


@pytest.mark.parametrize("how", ["granted", "freed", "split", "merged"])
def test_any_use_of_a_moved_region(yard: Yard, me: bq.Process, region: bq.Region, how: str) -> None:
    yard.attach("peer")
    left, moved = me.alloc(4 * PAGE).split(2 * PAGE)
    match how:
        case "granted":
            moved.grant("peer")
        case "freed":
            moved.free()
        case "split":
            parts = moved.split(PAGE)
        case "merged":
            parts = [left.merge(moved)]
    for name, use in USES.items():
        with nothing_changes(me, region):
            message = raised(bq.RegionMoved, lambda use=use: use(moved, region))
            assert how in message and (how != "granted" or "'peer'" in message), name
    assert not moved.owned and moved.remaining == []
    assert repr(moved).endswith(" moved>")
    moved.__exit__(None, None, None)  # at the end of a with statement there is nothing left to free: no error
    if how in ("split", "merged"):
        assert all(part.owned for part in parts)


def test_a_region_of_which_a_part_has_moved(yard: Yard, me: bq.Process) -> None:
    yard.attach("peer")
    region = me.alloc(4 * PAGE)
    region[PAGE : 2 * PAGE].grant("peer")
    assert region.remaining == [(0, PAGE), (2 * PAGE, 4 * PAGE)]
    for use in (
        lambda: memoryview(region),
        region.free,
        lambda: region.grant("peer"),
        lambda: region[: 2 * PAGE],
    ):
        assert "a part of" in raised(bq.RegionMoved, use)
    region[2 * PAGE :].array()[:] = 1
    with region:
        pass
    assert region.remaining == []
    assert me.table.holdings(me.id)[1] == 0


# --- names, secrets, sizes -----------------------------------------------------------------------------------


def test_a_wrong_secret(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    group = rack.connection.create_group("closed")
    for secret in (b"", b"guess", bytes(16), bytes(1 << 20), b"\xff" * 15):
        with nothing_changes(me):
            raised(bq.WrongSecret, lambda secret=secret: rack.connection.attach("intruder", group=secret))
        assert "intruder" not in rack.processes()
    assert yard.attach("intruder", group=group).group == "closed"


def test_a_secret_that_is_no_bytes(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    for secret in ["text", 5, ["list"]]:
        with nothing_changes(me):
            raised(TypeError, lambda: yard.attach("intruder", group=secret))  # type: ignore[arg-type]
        assert rack.connection.is_alive()


def test_arguments_of_the_wrong_type_cost_nobody_a_place(
    yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region
) -> None:
    """The rack drops who sends what it cannot understand; so nothing of the kind is sent."""
    wrong = [
        lambda: me.steal("me", "00ff"),
        lambda: me.steal("me", bytearray(32)),
        lambda: me.steal("me", shares=["00ff"]),
        lambda: me.steal("me", only="/path"),
        lambda: me.steal("me", only=[region]),
        lambda: me.steal("me", incarnation="first"),
        lambda: me.publish("/path", region, 1.5),
        lambda: me.standby(for_="me", then=None),
        lambda: me.standby(for_="me", then=print, on_suspicion="print"),
        lambda: me.standby(for_="me", capability="00ff", then=print),
        lambda: me.on_memory_failure("print"),
        lambda: me.emergency_contacts("me"),
        lambda: yard.attach("other", compute=3),
    ]
    for call in wrong:
        with nothing_changes(me, region):
            raised(TypeError, call)
    me.publish("/path", region)
    assert me.lookup("/path").address == region.address


def test_a_name_that_is_taken(yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region) -> None:
    before = rack.processes().keys()
    with nothing_changes(me, region):
        assert "'me'" in raised(bq.NameTaken, lambda: yard.attach("me"))
        strangers = rack.connection.create_group("strangers")
        raised(bq.NameTaken, lambda: yard.attach("me", group=strangers))  # one rack, one name
        raised(bq.NameTaken, lambda: rack.connection.create_group("strangers"))
    assert rack.processes().keys() == before
    me.send("me", b"still the one meant")
    assert me.accept(0).tag == b"still the one meant"


def test_a_bad_name(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    for name in ["", "x" * 64, "é" * 32, "a/b", "new\nline", "x" * 1_000_000, "\udc80"]:
        with nothing_changes(me):
            raised(bq.BadName, lambda: yard.attach(name))
            raised(bq.BadName, lambda: rack.connection.create_group(name))
        assert list(rack.processes()) == ["me"]
        assert rack.connection.is_alive()


def test_a_name_that_is_no_text(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    for name in [None, 5, b"bytes"]:
        with nothing_changes(me):
            raised(TypeError, lambda: yard.attach(name))  # type: ignore[arg-type]
            raised(TypeError, lambda: rack.connection.create_group(name))  # type: ignore[arg-type]
        assert rack.connection.is_alive()


def test_a_size_that_is_none(me: bq.Process, region: bq.Region) -> None:
    for size in [0, -1, -(2**63), -(2**70)]:
        with nothing_changes(me, region):
            raised(bq.BadSize, lambda: me.alloc(size))


def test_a_size_that_is_no_number(me: bq.Process, region: bq.Region) -> None:
    for size in [1.5, "4096", None, b"x"]:
        with nothing_changes(me, region):
            raised(TypeError, lambda: me.alloc(size))  # type: ignore[arg-type]


def test_a_size_may_be_any_integer_type(me: bq.Process) -> None:
    import numpy as np

    for size in (np.int64(PAGE), np.uint8(7), True):
        region = me.alloc(size)
        assert region.nbytes == int(size)
        region.free()


def test_a_size_larger_than_the_element(me: bq.Process, region: bq.Region) -> None:
    for size in [256 * MIB + 1, 1 << 36]:
        for huge in [None, False, True]:
            with nothing_changes(me, region), pytest.raises(bq.RackMemoryError) as caught:
                me.alloc(size, huge=huge)
            assert caught.type is bq.RackMemoryError
            [(element, free, largest)] = caught.value.free
            assert element == "dram0" and 0 < largest <= free <= 256 * MIB
            assert "dram0 has" in str(caught.value)
            me.alloc(16 * MIB).free()


def test_a_size_larger_than_all_addresses(me: bq.Process, region: bq.Region) -> None:
    for size in [(1 << 36) + 1, 10**12, 1 << 52, 1 << 62, 2**64 - 4096, 2**64 - 1, 2**64, 2**70]:
        with nothing_changes(me, region), pytest.raises(bq.AddressSpaceFull) as caught:
            me.alloc(size)
        assert caught.value.free[0][0] == "dram0"


def test_an_element_that_is_full(me: bq.Process) -> None:
    regions = []
    with pytest.raises(bq.RackMemoryError) as caught:
        while True:
            regions.append(me.alloc(32 * MIB))
    assert len(regions) >= 7 and caught.value.free[0][2] < 32 * MIB
    assert me.table.audit() == []
    regions.pop().free()
    regions.append(me.alloc(32 * MIB))  # what was freed can be had again
    for region in regions:
        region.free()


def test_an_unknown_memory_element(me: bq.Process, region: bq.Region) -> None:
    with nothing_changes(me, region):
        assert "dram0" in raised(ValueError, lambda: me.alloc(PAGE, element="dram7"))


def test_an_unknown_placement_is_refused_even_when_no_slab_is_needed(
    me: bq.Process, region: bq.Region
) -> None:
    with nothing_changes(me, region):
        for size in (PAGE, 64 * MIB):
            assert "worst-fit" in raised(bq.BadConfig, lambda size=size: me.alloc(size, placement="nearest"))


def test_an_unknown_compute_element(rack: RackUnderTest, me: bq.Process) -> None:
    with nothing_changes(me):
        assert "host0" in raised(bq.BadConfig, lambda: rack.connection.attach("other", compute="host7"))
    assert "other" not in rack.processes()


def test_a_part_that_is_none(me: bq.Process, region: bq.Region) -> None:
    for key in [slice(1, PAGE), slice(9), slice(PAGE, PAGE), slice(PAGE, 0), slice(9 * PAGE, None)]:
        with nothing_changes(me, region):
            raised(bq.BadSize, lambda: region[key])


def test_a_region_is_indexed_by_ranges_of_bytes_only(me: bq.Process, region: bq.Region) -> None:
    for key in [0, slice(0, PAGE, 2), "x", (slice(0, PAGE),)]:
        with nothing_changes(me, region):
            raised(TypeError, lambda: region[key])  # type: ignore[index]


def test_a_split_where_none_can_be(me: bq.Process, region: bq.Region) -> None:
    for offsets in [(0,), (2 * PAGE,), (-PAGE,), (1,), (PAGE, PAGE), (5 * PAGE,)]:
        with nothing_changes(me, region):
            raised(bq.BadSize, lambda: region.split(*offsets))


def test_merging_what_are_no_neighbours(me: bq.Process) -> None:
    a, b, c = me.alloc(3 * PAGE).split(PAGE, 2 * PAGE)
    with nothing_changes(me, a, b, c):
        for left, right in ((a, c), (b, a), (a, a), (c, b)):
            raised(ValueError, lambda left=left, right=right: left.merge(right))
    a.merge(b).merge(c).free()


def test_arrays_that_do_not_fit(me: bq.Process, region: bq.Region) -> None:
    with nothing_changes(me, region):
        for arguments in (("u1", 2 * PAGE + 1), ("f8", (PAGE, PAGE)), ("u1", None, 3 * PAGE), ("u1", 5, -8)):
            raised(ValueError, lambda arguments=arguments: region.array(*arguments))


# --- messages without memory ---------------------------------------------------------------------------------

MESSAGE_USES: dict[str, tuple[type[BaseException], Callable[[bq.Region, bq.Region], object]]] = {
    "grant": (bq.BadSize, lambda m, _: m.grant("peer")),
    "grant across": (bq.BadSize, lambda m, _: m.grant("stranger")),
    "merge": (bq.BadSize, lambda m, other: m.merge(other)),
    "slice": (bq.BadSize, lambda m, _: m[:]),
    "split": (bq.BadSize, lambda m, _: m.split()),
    "loads": (bq.NotPickled, lambda m, _: bq.loads(m)),
}


def test_a_message_has_no_memory_to_use(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    peer = yard.attach("peer")
    yard.attach("stranger", group=rack.connection.create_group("strangers"))
    peer.send("me", b"one")
    peer.send("me", b"two")
    one, two = me.accept_all()
    for kind, call in MESSAGE_USES.values():
        with nothing_changes(me, one, two):
            raised(kind, lambda call=call: call(one, two))
    assert (one.tag, one.nbytes, bytes(one), one.array().size) == (b"one", 0, b"", 0)
    one.free()


def test_a_tag_that_is_too_long(yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region) -> None:
    peer = yard.attach("peer")
    yard.attach("stranger", group=rack.connection.create_group("strangers"))
    long = bytes(TAG_BYTES_MAX + 1)
    with nothing_changes(me, region):
        for to in ("peer", "stranger"):
            raised(bq.TagTooLong, lambda to=to: region.grant(to, tag=long))
            raised(TypeError, lambda to=to: region.grant(to, tag="text"))  # type: ignore[arg-type]
        raised(bq.TagTooLong, lambda: me.send("peer", long))
        raised(TypeError, lambda: me.send("peer", "text"))  # type: ignore[arg-type]
    region.grant("peer", tag=long[1:])
    arrived = peer.accept(0)
    assert arrived.tag == long[1:]
    arrived.free()


# --- inboxes -------------------------------------------------------------------------------------------------


def test_an_inbox_that_is_full_raises_or_blocks(yard: Yard, me: bq.Process, region: bq.Region) -> None:
    peer = yard.actor("peer")
    for _ in range(INBOX_CELLS):
        me.send("peer", b"", timeout=0)
    with nothing_changes(me, region):
        raised(bq.InboxFull, lambda: region.grant("peer", timeout=0))
        raised(bq.InboxFull, lambda: me.send("peer", b"", timeout=0))
        started = time.monotonic()
        raised(bq.InboxFull, lambda: region.grant("peer", timeout=0.15))
        assert 0.15 <= time.monotonic() - started < 5

    granted = threading.Event()
    waiting = threading.Thread(target=lambda: (region.grant("peer"), granted.set()))
    waiting.start()
    assert not granted.wait(0.05), "without a timeout it blocks"
    peer.do(actors.accept_and_free, INBOX_CELLS)
    waiting.join(actors.DEADLINE)
    assert granted.is_set()
    assert peer.do(actors.accept, "region")[1] == 2 * PAGE


def test_a_batch_that_does_not_fit_says_how_many_went(yard: Yard, me: bq.Process) -> None:
    peer = yard.actor("peer")
    regions = me.alloc(1500 * PAGE).split(*range(PAGE, 1500 * PAGE, PAGE))
    with pytest.raises(bq.InboxFull) as caught:
        me.grant_all(regions, "peer", timeout=0.01)
    assert caught.value.granted == INBOX_CELLS
    assert [region.owned for region in regions] == [False] * INBOX_CELLS + [True] * (1500 - INBOX_CELLS)
    assert me.table.audit() == []
    regions[-1].array()[:] = 1  # those that stayed are open again
    peer.start(actors.accept_and_free, 1500)
    me.grant_all(regions[INBOX_CELLS:], "peer")
    assert peer.result() == 1500 * PAGE


def test_waiting_for_nothing(me: bq.Process) -> None:
    with nothing_changes(me):
        for timeout in (0, 0.05, -1):
            started = time.monotonic()
            raised(bq.AcceptTimeout, lambda timeout=timeout: me.accept(timeout))
            assert max(0, timeout) <= time.monotonic() - started < 5
        raised(ValueError, lambda: me.accept_all(0))
        raised(ValueError, lambda: me.accept(float("nan")))


# --- regions are tokens --------------------------------------------------------------------------------------


def test_a_region_cannot_be_copied_pickled_or_made_up(me: bq.Process, region: bq.Region) -> None:
    with nothing_changes(me, region):
        for call in (
            lambda: pickle.dumps(region),
            lambda: copy.copy(region),
            lambda: copy.deepcopy(region),
            lambda: bq.dumps(region, me),
            lambda: bq.Region(),
        ):
            raised(TypeError, call)


def test_a_region_that_is_dropped_warns_and_is_freed(me: bq.Process) -> None:
    before = me.table.holdings(me.id)[1]
    region = me.alloc(3 * PAGE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del region
    assert [w.category for w in caught] == [ResourceWarning] and "12288 bytes was dropped" in str(
        caught[0].message
    )
    assert me.table.holdings(me.id)[1] == before
    assert me.table.audit() == []
