"""Groups: what a process of another group can reach (nothing), and what it can be given (anything)."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

import actors
import bequest as bq
import group_users as users
from actors import until
from bequest.limits import INBOX_CELLS
from bequest.runtime.transport import Channel
from bequest.wire import messages as wire
from racks import MIB, RackUnderTest, Yard

PAGE = 4096
SLAB = 2 * MIB
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")  # dropped when a test ends


@pytest.fixture
def strangers(rack: RackUnderTest, me: bq.Process) -> bq.Group:
    """A group beside the default one that `me` is in."""
    return rack.connection.create_group("strangers")


# --- isolation -----------------------------------------------------------------------------------------------


def test_a_slab_cannot_be_opened_with_another_groups_ticket(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    me.alloc(PAGE).array()[:] = 7
    [slab] = [slab.slab for slab in rack.slabs()]
    ticket, other = me._links.attached.element_ticket, stranger.do(users.element_ticket)
    assert len(ticket) == 16 and ticket != other
    element = Channel.connect(rack.directory / me._links.attached.elements[0].path)
    with contextlib.closing(element):
        for wrong in (other, b"", bytes(16), ticket[:-1], ticket + b"\0"):
            with pytest.raises(bq.BequestError):
                element.request(wire.OpenSlab(wrong, slab))
        for nothing in (slab + 1, 2**31, 2**63):
            with pytest.raises(bq.BequestError):
                element.request(wire.OpenSlab(ticket, nothing))
        _, fds = element.request(wire.OpenSlab(ticket, slab))
        os.close(*fds)
    assert stranger.do(users.try_to_open, slab) == "refused"


def test_a_strangers_table_shows_nothing_of_ours(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """It has a table of its own, with neither our slabs nor our processes; so it cannot even name our memory."""
    stranger = yard.actor("stranger", group=strangers)
    region = me.alloc(PAGE)
    region.array()[:] = 7
    assert stranger.do(users.what_the_table_shows) == ([], ["stranger"])
    assert stranger.do(actors.protection, region.address)[:3] == "---"
    assert stranger.do(users.try_to_map, region.address, PAGE) == "zeros", (
        "what it opens there is memory of its own"
    )
    stranger.start(actors.peek, region.address)
    assert stranger.wait() < 0, "killed by the memory access, whose address means nothing there"
    assert region.array()[0] == 7


def test_a_stranger_cannot_take_what_is_ours_by_asking_for_it(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """Forged requests of a member of another group: each refused, and nothing of ours has moved."""
    stranger = yard.actor("stranger", group=strangers)
    region = me.alloc(PAGE)
    region.array()[:] = 7
    extents = [number for number in range(1000) if me.table.descriptor(number)[4] >= 3]
    refusals = stranger.do(users.forge_grants, extents, me.id)
    assert refusals == ["refused"] * len(refusals) and len(refusals) > 0
    assert region.owned and set(region.array().tolist()) == {7}
    assert rack.audit() == []


def test_messages_and_mailboxes_stay_within_a_group(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    with pytest.raises(bq.UnknownProcess, match="another group"):
        me.send("stranger", b"message")
    reply, _ = me._links.mmu.request(wire.OpenMailbox("box", create=True))
    assert isinstance(reply, wire.MailboxOpened)
    with pytest.raises(bq.UnknownProcess):
        stranger.do(users.open_mailbox, "box")


def test_a_groups_secret_is_not_shown(rack: RackUnderTest, strangers: bq.Group) -> None:
    assert len(strangers.secret) == 16
    assert strangers.secret.hex() not in repr(strangers) and repr(strangers.secret) not in repr(strangers)
    assert strangers.secret not in (rack.directory / "rack.log").read_bytes()


# --- grants from group to group ------------------------------------------------------------------------------


def test_a_whole_slab_moves_and_a_part_is_copied(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    whole, part = me.alloc(SLAB), me.alloc(3 * PAGE)
    whole.array("u8")[:] = whole.address  # pointers to itself
    part.array()[:] = 5
    assert whole.grant("stranger", tag=b"whole") == 0
    assert part.grant("stranger", tag=b"part") == 3 * PAGE
    for region, tag, copied in ((whole, b"whole", 0), (part, b"part", 3 * PAGE)):
        assert not region.owned
        received = stranger.do(actors.accept, tag.decode())
        assert received == (region.address, region.nbytes, tag, ""), copied
    assert stranger.do(users.first_word, "whole") == whole.address
    assert stranger.do(actors.values, "part") == [5]
    assert rack.audit() == [] and me.table.audit() == [] and stranger.do(actors.audit) == []
    assert me.table.holdings(me.id)[1] == 0


def test_the_sender_cannot_reach_what_it_gave_away(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """Not by its address, nor by asking for the slab again: its memory is another group's."""
    giver, stranger = yard.actor("giver"), yard.actor("stranger", group=strangers)
    address = giver.do(actors.alloc, "region", SLAB, 5)
    [slab] = [slab.slab for slab in rack.slabs() if slab.address == address]
    assert giver.do(actors.grant, "region", "stranger") == 0
    stranger.do(actors.accept, "region")
    assert giver.do(actors.protection, address)[:3] == "---"
    assert giver.do(users.try_to_open, slab) == "refused"
    giver.start(actors.peek, address)
    assert giver.wait() < 0
    assert stranger.do(actors.values, "region") == [5]


@pytest.mark.parametrize("nbytes", [SLAB, 5 * PAGE])
def test_what_was_given_to_another_group_returns_home(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group, nbytes: int
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    for number in range(3):
        region = me.alloc(nbytes)
        region.array()[:] = number
        address = region.address
        region.grant("stranger")
        stranger.do(actors.accept, "region")
        stranger.do(actors.fill, "region", number + 100)
        stranger.do(actors.grant, "region", "me")
        back = me.accept(actors.DEADLINE)
        assert (back.address, back.nbytes) == (address, nbytes)
        assert set(back.array().tolist()) == {number + 100}
        back.free()
        assert rack.audit() == []
    again = me.alloc(nbytes)
    assert again.address == address, "and is home's to give out again"


@pytest.mark.parametrize("nbytes", [SLAB, 3 * PAGE])
def test_memory_that_a_stranger_frees_returns_home(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group, nbytes: int
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    region = me.alloc(nbytes)
    region.grant("stranger")
    stranger.do(actors.accept_and_free, 1)
    until(
        lambda: all(slab.group != "strangers" for slab in rack.slabs()), "the slab's end in the other group"
    )
    until(
        lambda: not any(run.state == "away" for slab in rack.slabs() for run in slab.runs), "the hole's end"
    )
    assert rack.audit() == []
    me.alloc(nbytes).array()[:] = 1


@pytest.mark.parametrize("nbytes", [SLAB, 5 * PAGE])
def test_a_chain_through_three_groups_and_back(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group, nbytes: int
) -> None:
    """A to B to C to A, a pointer in it valid everywhere; whole slabs move at every step."""
    b = yard.actor("b", group=strangers)
    c = yard.actor("c", group=rack.connection.create_group("third"))
    for _ in range(2):
        region = me.alloc(nbytes)
        address = region.address
        region.array("u8")[:] = address
        copied = [region.grant("b")]
        b.do(actors.accept, "region")
        copied.append(b.do(actors.grant, "region", "c"))
        c.do(actors.accept, "region")
        assert c.do(users.first_word, "region") == address
        copied.append(c.do(actors.grant, "region", "me"))
        back = me.accept(actors.DEADLINE)
        assert (back.address, back.nbytes, back.array("u8")[-1]) == (address, nbytes, address)
        if nbytes == SLAB:
            assert copied == [0, 0, 0]
        else:
            assert copied[0] == copied[2] == nbytes, "out as a copy, and home into its place"
        back.free()
        assert rack.audit() == []


def test_parts_go_to_different_groups_and_come_back_in_any_order(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    b = yard.actor("b", group=strangers)
    c = yard.actor("c", group=rack.connection.create_group("third"))
    region = me.alloc(6 * PAGE)
    pages = region.array("u1", (6, PAGE))
    pages[:] = [[number] * PAGE for number in range(6)]
    del pages
    address = region.address
    region[PAGE : 2 * PAGE].grant("b")
    region[3 * PAGE : 5 * PAGE].grant("c")
    assert region.remaining == [(0, PAGE), (2 * PAGE, 3 * PAGE), (5 * PAGE, 6 * PAGE)]
    b.do(actors.accept, "x")
    c.do(actors.accept, "y")
    assert (b.do(actors.values, "x"), c.do(actors.values, "y")) == ([1], [3, 4])
    c.do(actors.grant_part, "y", PAGE, 2 * PAGE, "me")
    b.do(actors.grant, "x", "me")
    c.do(actors.grant_part, "y", 0, PAGE, "me")
    backs = [me.accept(actors.DEADLINE) for _ in range(3)]
    assert [back.address - address for back in backs] == [4 * PAGE, PAGE, 3 * PAGE]
    assert [int(back.array()[0]) for back in backs] == [4, 1, 3]
    assert rack.audit() == []


def test_within_one_program_two_groups_share_addresses(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """This program is in both groups: an address leads to the memory of whoever owns it at the time."""
    other = yard.attach("other", group=strangers)
    region = me.alloc(4 * PAGE)
    region.array()[:] = 1
    assert region[PAGE : 2 * PAGE].grant("other") == PAGE
    theirs = other.accept(actors.DEADLINE)
    theirs.array()[:] = 2
    assert theirs.address == region.address + PAGE
    assert set(region[:PAGE].array().tolist()) == set(region[2 * PAGE :].array().tolist()) == {1}
    theirs.grant("me")
    back = me.accept(actors.DEADLINE)
    assert set(back.array().tolist()) == {2}
    back.array()[:] = 3
    assert set(region[:PAGE].array().tolist()) == {1}
    assert rack.audit() == []


# --- errors give the memory back ------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [SLAB, 3 * PAGE])
@pytest.mark.parametrize("trouble", ["dead", "gone", "inbox full", "element full", "tag"])
def test_a_grant_that_fails_leaves_the_sender_its_memory(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group, trouble: str, nbytes: int
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    region = me.alloc(nbytes)
    region.array()[:] = 7
    expected: type[Exception] = bq.ProcessDead
    tag = b""
    ballast: list[bq.Region] = []
    match trouble:
        case "dead":
            me._find_peer("stranger")
            stranger.kill()
            until(lambda: rack.processes()["stranger"].state != "attached")
        case "gone":
            me._find_peer("stranger")
            stranger.do(actors.detach)
        case "inbox full":
            stranger.do(actors.send, "stranger", b"", INBOX_CELLS)
            expected = bq.InboxFull
        case "element full":
            if nbytes == SLAB:
                pytest.skip("a slab that moves needs no memory")
            with contextlib.suppress(bq.RackMemoryError):
                while True:
                    ballast.append(me.alloc(SLAB))
            expected = bq.RackMemoryError
        case "tag":
            tag, expected = bytes(217), bq.TagTooLong
    for _ in range(2):
        with pytest.raises(expected) as caught:
            region.grant("stranger", tag=tag, timeout=0.05)
        assert caught.type in (expected, bq.UnknownProcess) or trouble in ("dead", "gone")
        if trouble in ("dead", "gone"):
            expected = bq.BequestError  # forgotten by the second time, perhaps
    assert region.owned and set(region.array().tolist()) == {7}
    assert me.table.audit() == [] and rack.audit() == []
    for one in ballast:
        one.free()
    helper = yard.actor("helper", group=strangers)
    region.grant("helper")
    helper.do(actors.accept, "region")
    assert helper.do(actors.values, "region") == [7]


def test_a_grant_to_another_group_waits_for_room(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    stranger = yard.actor("stranger", group=strangers)
    stranger.do(actors.send, "stranger", b"", INBOX_CELLS)
    regions = [me.alloc(SLAB), me.alloc(3 * PAGE)]
    granting = threading.Thread(target=lambda: me.grant_all(regions, "stranger"))
    granting.start()
    with pytest.raises(bq.InboxFull):
        me.alloc(PAGE).grant("stranger", timeout=0)
    assert granting.is_alive()
    assert stranger.do(actors.accept_and_free, INBOX_CELLS + 2) == SLAB + 3 * PAGE
    granting.join(actors.DEADLINE)
    assert not granting.is_alive()


def test_a_name_may_move_to_another_process_between_two_grants(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """From a stranger to a stranger, to one of our group, and back: whoever bears it gets the memory."""
    for group in (strangers, strangers, None, strangers):
        bearer = yard.actor("bearer", group=group)
        region = me.alloc(PAGE)
        region.array()[:] = 9
        region.grant("bearer")
        bearer.do(actors.accept, "region")
        assert bearer.do(actors.values, "region") == [9]
        bearer.do(actors.detach)
    assert rack.audit() == []


def test_the_receiver_dies_with_what_it_was_given(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    """Before it accepted, or after: once its time as an orphan is over the memory is home again, or gone."""
    for accepted in (False, True):
        for nbytes in (SLAB, 3 * PAGE):
            stranger = yard.actor("stranger", group=strangers)
            me.alloc(nbytes).grant("stranger")
            if accepted:
                stranger.do(actors.accept, "region")
            stranger.kill()
            until(lambda: all(slab.group != "strangers" for slab in rack.slabs()), "the orphans' end")
            assert rack.audit() == []
    assert me.table.holdings(me.id)[1] == 0


def test_the_sender_dies_after_it_gave(
    yard: Yard, rack: RackUnderTest, me: bq.Process, strangers: bq.Group
) -> None:
    giver, stranger = yard.actor("giver"), yard.actor("stranger", group=strangers)
    addresses = [
        giver.do(actors.alloc, key, nbytes, 5) for key, nbytes in (("whole", SLAB), ("part", 3 * PAGE))
    ]
    for key in ("whole", "part"):
        giver.do(actors.grant, key, "stranger")
    giver.kill()
    until(lambda: rack.processes()["giver"].state not in ("attached", "lost"))
    for key, address in zip(("whole", "part"), addresses, strict=True):
        assert stranger.do(actors.accept, key)[0] == address
        assert stranger.do(actors.values, key) == [5]
        stranger.do(actors.free, key)
    until(lambda: rack.slabs() == [], "the end of the last slab")


def test_a_group_ends_with_its_last_member(yard: Yard, rack: RackUnderTest) -> None:
    with bq.connect(str(rack.directory)) as creator:
        group = creator.create_group("passing")
        member = yard.actor("member", group=group)
    member.do(actors.alloc, "region", PAGE)
    assert yard.attach("late", group=group).group == "passing", "it lives while anybody is in it"
    yard.attached.pop().detach()
    assert member.close() == 0

    def is_over() -> bool:
        report = rack.connection.request(wire.Status("rack"))
        assert isinstance(report, wire.RackReport)
        return "passing" not in report.groups

    until(is_over, "the end of the group")
    with pytest.raises(bq.WrongSecret):
        rack.connection.attach("too-late", group=group)
    assert rack.slabs() == []
