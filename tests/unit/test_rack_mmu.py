"""The Rack MMU's decisions about processes, groups, names, slabs and mailboxes."""

from __future__ import annotations

import msgspec
import pytest

from bequest.ids import home_of
from bequest.limits import FIRST_MAILBOX_ID, LAST_MAILBOX_ID
from bequest.protocol.rack_state import ElementInfo
from bequest.sim.fake_shard import PAGE
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from rack_in_a_box import GIB, MIB, Box


def failed(reply: wire.Message | None, kind: str) -> wire.Failed:
    assert isinstance(reply, wire.Failed), reply
    assert reply.kind == kind, reply
    return reply


def need(box: Box, peer: int, nbytes: int = 2 * MIB, **hints: str) -> wire.Message | None:
    return box.ask(peer, wire.NeedSlab(nbytes // PAGE, False, hints.get("element"), hints.get("policy")))


def slab_of(reply: wire.Message | None) -> int:
    assert isinstance(reply, wire.SlabReady), reply
    return reply.slab


# --- attaching ------------------------------------------------------------------------------------------------


def test_attach_admits_a_process_to_its_users_default_group() -> None:
    box = Box()
    _, mine = box.attach("a")
    _, also_mine = box.attach("b")
    _, other = box.attach("c", uid=0)
    assert mine.group == also_mine.group != other.group
    assert (mine.pid, also_mine.pid, other.pid) == (1, 2, 3)
    assert box.shards[mine.group].lives[mine.pid] == (1, mine.incarnation)


def test_processes_are_spread_over_compute_elements() -> None:
    box = Box()
    assert [box.attach(name)[1].compute for name in "abcd"] == ["host0", "host1", "host0", "host1"]
    failed(box.ask(box.client(), wire.Attach("e", None, "host9")), "config")


@pytest.mark.parametrize("name", ["", "x" * 64, "a/b", "a\nb", "é" * 32])
def test_bad_names_are_refused(name: str) -> None:
    box = Box()
    failed(box.ask(box.client(), wire.Attach(name)), "bad-name")
    assert box.processes() == {}


def test_a_name_is_taken_only_while_its_bearer_is_attached() -> None:
    box = Box()
    peer, first = box.attach("a")
    failed(box.ask(box.client(), wire.Attach("a")), "name-taken")
    box.exit(first)
    _, second = box.attach("a")
    assert second.pid != first.pid and second.incarnation > first.incarnation
    assert peer


def test_one_process_per_connection() -> None:
    box = Box()
    peer, _ = box.attach("a")
    failed(box.ask(peer, wire.Attach("b")), "not-attached")


def test_what_needs_an_attached_process_says_so() -> None:
    box = Box()
    peer = box.client()
    for message in (
        wire.NeedSlab(512),
        wire.FindPeer("a"),
        wire.OpenMailbox(create=True),
        wire.Detach(),
        wire.CrossGrant(0, 0, 1, 1),
    ):
        failed(box.ask(peer, message), "not-attached")


# --- groups -----------------------------------------------------------------------------------------------------


def group(box: Box, name: str = "etl") -> tuple[int, bytes]:
    creator = box.client()
    reply = box.ask(creator, wire.CreateGroup(name))
    assert isinstance(reply, wire.GroupCreated)
    return creator, reply.secret


def test_a_group_is_joined_by_its_secret_alone() -> None:
    box = Box()
    _, secret = group(box)
    _, member = box.attach("a", secret)
    _, stranger = box.attach("b")
    assert member.group_name == "etl" and member.group != stranger.group
    assert member.element_ticket != stranger.element_ticket
    failed(box.ask(box.client(), wire.Attach("c", bytes(16))), "secret")
    failed(box.ask(box.client(), wire.Attach("c", b"")), "secret")
    failed(box.ask(box.client(), wire.CreateGroup("etl")), "name-taken")


def test_a_group_ends_with_its_creator_and_members() -> None:
    box = Box()
    creator, secret = group(box)
    peer, member = box.attach("a", secret)
    box.leave(creator)
    assert member.group in box.shards
    box.ask(peer, wire.Detach())
    box.pass_time(2)
    assert member.group not in box.shards
    assert wire.ForgetGroup(member.group) in box.to_elements
    failed(box.ask(box.client(), wire.Attach("b", secret)), "secret")


# --- slabs ------------------------------------------------------------------------------------------------------


def test_a_slab_lies_at_its_homes_addresses() -> None:
    box = Box()
    peer, process = box.attach("a")
    slab = slab_of(need(box, peer, 3 * MIB))
    address, pages, _, _, home = box.shards[process.group].records[slab]
    assert home_of(address) == home == process.pid
    assert pages * PAGE == 4 * MIB  # whole 2 MiB pages
    assert box.used() == 4 * MIB


def test_the_slab_is_in_the_table_before_it_is_announced() -> None:
    box = Box()
    peer, process = box.attach("a")
    box.held = []
    assert need(box, peer) is None
    assert box.shards[process.group].records == {}
    box.answer_held()
    assert slab_of(box.replies[peer][-1]) in box.shards[process.group].records


def test_too_large_a_request_is_refused_with_what_is_free() -> None:
    box = Box()
    peer, _ = box.attach("a")
    refusal = failed(need(box, peer, 2 * GIB), "memory")
    assert refusal.free == [("dram0", GIB, GIB)]
    failed(need(box, peer, 65 * GIB), "address-space")
    failed(box.ask(peer, wire.NeedSlab(0)), "size")
    failed(box.ask(peer, wire.NeedSlab(-5)), "size")
    failed(need(box, peer, element="dram7"), "config")
    failed(need(box, peer, policy="no-fit"), "config")
    assert box.used() == 0


def test_the_element_has_the_last_word_on_its_memory() -> None:
    elements = tuple(ElementInfo(n, f"dram{n}", "dram", GIB, f"element-{n}.sock") for n in range(2))
    box = Box(elements=elements)
    peer, process = box.attach("a")
    box.refusing = lambda message: (
        len(box.to_elements) and box.to_elements[-1] is message and message.slab == 1
    )
    slab = slab_of(need(box, peer))
    assert box.shards[process.group].records[slab][2] == 1
    box.refusing = lambda message: True
    failed(need(box, peer), "memory")
    assert box.used() == 2 * MIB


def test_idle_slabs_are_reclaimed_from_the_living_only_when_memory_is_short() -> None:
    box = Box()
    hoarder, first = box.attach("hoarder")
    slab = slab_of(need(box, hoarder, GIB))
    needy, second = box.attach("needy")
    shard = box.shards[first.group]
    region = shard.own(first.pid, shard.records[slab][0], 1)
    failed(need(box, needy, 4 * MIB), "memory")
    shard.free(region)
    box.pass_time(5)
    assert slab in shard.records
    slab_of(need(box, needy, 4 * MIB))
    assert slab not in shard.records
    assert box.used() == 4 * MIB
    assert second.pid
    box.check()


def test_addresses_used_up() -> None:
    box = Box(elements=(ElementInfo(0, "dram0", "dram", 200 * GIB, "e.sock"),))
    peer, process = box.attach("a")
    slabs = [slab_of(need(box, peer, 16 * GIB)) for _ in range(4)]
    shard = box.shards[process.group]
    regions = [shard.own(process.pid, shard.records[slab][0], 1) for slab in slabs]
    failed(need(box, peer), "address-space")
    shard.free(regions[1])
    slab_of(need(box, peer))  # its own idle slab made room
    box.check()


def test_a_slab_for_a_process_that_has_died_meanwhile_is_retired() -> None:
    box = Box()
    peer, process = box.attach("a")
    box.held = []
    need(box, peer)
    box.exit(process)
    box.leave(peer)
    box.answer_held()
    assert box.used() == 0
    assert box.shards[process.group].records == {}


def test_a_slab_that_nobody_asks_for_any_more_is_given_back() -> None:
    """A refusal of what was asked for on an earlier link has crossed the repeated request."""
    box = Box()
    box.do(box.mmu.element_message(0, wire.SlabReserved(77)))
    assert box.to_elements == [wire.RetireSlab(77, recycle=False)]


def test_who_was_lost_to_its_agent_while_it_waited_is_told_so() -> None:
    box = Box()
    peer, process = box.attach("a")
    box.held = []
    need(box, peer)
    box.do(box.mmu.agent_message(wire.ProcessLost(process.pid, process.incarnation), box.now))
    box.answer_held()
    failed(box.replies[peer][-1], "not-attached")
    assert box.used() == 0


def test_a_full_table_is_a_clear_refusal() -> None:
    box = Box()
    peer, process = box.attach("a")
    box.shards[process.group].is_full = True
    failed(need(box, peer), "memory")
    assert box.used() == 0


# --- ends of processes ------------------------------------------------------------------------------------------


def test_detach_frees_everything_at_once() -> None:
    box = Box()
    peer, process = box.attach("a")
    slab = slab_of(need(box, peer))
    shard = box.shards[process.group]
    shard.own(process.pid, shard.records[slab][0], 10)
    assert isinstance(box.ask(peer, wire.Detach()), wire.Done)
    assert box.used() == 0
    assert box.processes() == {}
    assert isinstance(box.ask(peer, wire.Attach("a")), wire.Attached)  # the connection can be used again


def test_memory_of_the_dead_is_kept_for_a_while() -> None:
    box = Box(orphan_keep=10.0)
    peer, process = box.attach("a")
    slab = slab_of(need(box, peer))
    shard = box.shards[process.group]
    shard.own(process.pid, shard.records[slab][0], 10)
    box.exit(process)
    box.leave(peer)
    assert box.processes() == {"a": "orphaned"}
    box.pass_time(9)
    assert box.used() == 2 * MIB
    box.pass_time(3)
    assert box.used() == 0
    assert box.processes() == {}


def test_a_lost_connection_alone_frees_nothing() -> None:
    """The process may run on, and write."""
    box = Box(orphan_keep=1.0)
    peer, process = box.attach("a")
    slab = slab_of(need(box, peer))
    shard = box.shards[process.group]
    shard.own(process.pid, shard.records[slab][0], 10)
    box.leave(peer)
    assert box.processes() == {"a": "lost"}
    assert shard.lives[process.pid][0] == 2  # senders are told
    box.pass_time(100)
    assert box.used() == 2 * MIB
    box.exit(process)
    box.pass_time(3)
    assert box.used() == 0


def test_who_never_enrolled_is_judged_by_its_connection() -> None:
    box = Box(orphan_keep=1.0)
    peer = box.client()
    assert isinstance(box.ask(peer, wire.Attach("a")), wire.Attached)
    box.leave(peer)
    box.pass_time(3)
    assert box.processes() == {}


def test_who_never_enrolled_and_has_memory_is_not_dead_because_its_connection_is() -> None:
    box = Box()
    peer = box.client(os_pid=77)
    attached = box.ask(peer, wire.Attach("a"))
    assert isinstance(attached, wire.Attached)
    slab = slab_of(need(box, peer))
    shard = box.shards[attached.group]
    shard.own(attached.pid, shard.records[slab][0], 5)
    thief, _ = box.attach("thief")
    box.leave(peer)
    assert box.processes()["a"] == "lost" and box.absent == {peer: 77}
    box.fencing = lambda message: wire.FenceFailed(message.job, "it has not enrolled")
    failed(box.ask(thief, wire.Steal("a")), "fence")
    box.do(box.mmu.absent_client_exited(peer, box.now))
    assert box.processes()["a"] == "orphaned"
    assert isinstance(box.ask(thief, wire.Steal("a")), wire.Stolen)


def test_what_others_own_at_the_addresses_of_the_dead_stays_theirs() -> None:
    box = Box(orphan_keep=1.0)
    peer, giver = box.attach("giver")
    _, taker = box.attach("taker")
    slab = slab_of(need(box, peer))
    shard = box.shards[giver.group]
    region = shard.own(taker.pid, shard.records[slab][0], 5)  # as if granted
    box.exit(giver)
    box.leave(peer)
    box.pass_time(5)
    assert box.processes() == {"giver": "gone", "taker": "attached"}
    assert box.used() == 2 * MIB
    shard.free(region)
    box.pass_time(2)
    assert box.processes() == {"taker": "attached"}
    assert box.used() == 0
    box.check()


def test_a_late_grant_to_the_gone_is_freed() -> None:
    box = Box()
    peer, gone = box.attach("gone")
    alive_peer, alive = box.attach("alive")
    slab = slab_of(need(box, alive_peer))
    shard = box.shards[alive.group]
    own = slab_of(need(box, peer))
    keep = shard.own(alive.pid, shard.records[own][0], 1)
    box.ask(peer, wire.Detach())
    shard.own(gone.pid, shard.records[slab][0], 7)  # committed by a sender that looked too early
    box.pass_time(2)
    assert shard.holdings(gone.pid)[1] == 0
    shard.free(keep)
    box.pass_time(2)
    assert box.processes() == {"alive": "attached"}


def test_ids_rest_and_the_longest_rested_goes_first() -> None:
    box = Box()
    peer, first = box.attach("a")
    box.ask(peer, wire.Detach())
    for _ in range(510):  # all others
        attached = box.ask(peer, wire.Attach("a"))
        assert isinstance(attached, wire.Attached) and attached.pid != first.pid
        box.ask(peer, wire.Detach())
    attached = box.ask(peer, wire.Attach("a"))
    assert isinstance(attached, wire.Attached) and attached.pid == first.pid


# --- names ------------------------------------------------------------------------------------------------------


def test_finding_peers() -> None:
    box = Box()
    peer, a = box.attach("a")
    _, b = box.attach("b")
    _, c = box.attach("c", uid=0)
    assert box.ask(peer, wire.FindPeer("b")) == wire.PeerFound(b.pid, b.incarnation, True)
    assert box.ask(peer, wire.FindPeer("c")) == wire.PeerFound(c.pid, c.incarnation, False)
    failed(box.ask(peer, wire.FindPeer("d")), "unknown")
    box.exit(b)
    failed(box.ask(peer, wire.FindPeer("b")), "dead")
    assert a


def test_a_mailbox_lives_while_anybody_has_it_open() -> None:
    box = Box()
    one, first = box.attach("one")
    two, second = box.attach("two")
    opened = box.ask(one, wire.OpenMailbox(create=True))
    assert isinstance(opened, wire.MailboxOpened) and opened.id >= 512
    assert box.ask(two, wire.OpenMailbox(opened.name)) == opened
    assert box.ask(two, wire.FindPeer(opened.name)) == wire.PeerFound(opened.id, opened.incarnation, True)
    assert isinstance(box.ask(one, wire.CloseMailbox(opened.id)), wire.Done)
    failed(box.ask(one, wire.CloseMailbox(opened.id)), "unknown")
    box.exit(second)
    box.pass_time(2)
    failed(box.ask(one, wire.OpenMailbox(opened.name)), "unknown")
    assert opened.id not in box.shards[first.group].lives


def test_mailboxes_are_opened_and_closed_faster_than_their_ids_are_many() -> None:
    box = Box()
    one, _ = box.attach("one")
    ids = []
    for _ in range(1200):  # in no time at all
        opened = box.ask(one, wire.OpenMailbox("box", create=True))
        assert isinstance(opened, wire.MailboxOpened), opened
        ids.append(opened.id)
        assert isinstance(box.ask(one, wire.CloseMailbox(opened.id)), wire.Done)
    count = LAST_MAILBOX_ID - FIRST_MAILBOX_ID + 1
    assert ids == [*range(FIRST_MAILBOX_ID, LAST_MAILBOX_ID + 1)] * 2 + ids[2 * count :], (
        "the longest rested comes next"
    )


def test_who_steals_has_the_rack_look_at_processes_of_its_own_group_alone() -> None:
    box = Box()
    one, _ = box.attach("one")
    _, victim = box.attach("victim")
    group = box.ask(box.client(), wire.CreateGroup("others"))
    assert isinstance(group, wire.GroupCreated)
    stranger, _ = box.attach("stranger", group.secret)
    assert box.mmu.running("victim", one) == [(victim.group, (victim.pid, victim.incarnation))]
    assert box.mmu.running("victim", stranger) == box.mmu.running("victim", box.client()) == []


def test_mailboxes_are_their_groups_own() -> None:
    box = Box()
    one, _ = box.attach("one")
    stranger, _ = box.attach("stranger", uid=0)
    assert isinstance(box.ask(one, wire.OpenMailbox("q", create=True)), wire.MailboxOpened)
    failed(box.ask(one, wire.OpenMailbox("q", create=True)), "name-taken")
    failed(box.ask(stranger, wire.OpenMailbox("q")), "unknown")
    failed(box.ask(stranger, wire.FindPeer("q")), "unknown")
    assert isinstance(box.ask(stranger, wire.OpenMailbox("q", create=True)), wire.MailboxOpened)


# --- the rack -----------------------------------------------------------------------------------------------------


def test_an_embedded_rack_ends_after_its_last_client() -> None:
    box = Box(linger=1.0)
    first, second = box.client(), box.client()
    box.pass_time(30)
    box.leave(first)
    box.pass_time(5)
    assert box.stopped is None
    box.leave(second)
    third = box.client()
    box.pass_time(5)
    assert box.stopped is None
    box.leave(third)
    box.pass_time(1.1)
    assert box.stopped is not None


def test_an_embedded_rack_that_nobody_uses_ends() -> None:
    box = Box(linger=1.0)
    box.pass_time(16)
    assert box.stopped is not None


def test_other_racks_go_on() -> None:
    box = Box()
    box.leave(box.client())
    box.pass_time(100)
    assert box.stopped is None
    assert isinstance(box.ask(box.client(), wire.Shutdown()), wire.Done)
    assert box.stopped is not None


def test_the_longest_process_reports_fit_into_packets() -> None:
    compute = "c" * 63
    box = Box(computes=(compute,), agent_paths=("agent.sock",))
    creator = box.client()
    group = box.ask(creator, wire.CreateGroup("g" * 63))
    assert isinstance(group, wire.GroupCreated)
    for index in range(511):
        box.attach(f"{index:03}" + "n" * 60, group.secret)
    seen: list[int] = []
    cursor: int | None = 0
    while cursor is not None:
        report = box.ask(creator, wire.Status("processes", cursor))
        assert isinstance(report, wire.ProcessList)
        worst = [
            msgspec.structs.replace(p, owned_bytes=2**45, free_bytes=2**45, counters=COUNTERS)
            for p in report.processes
        ]
        encode(wire.ProcessList(worst, report.next_cursor))
        seen += [process.id for process in report.processes]
        cursor = report.next_cursor
    assert seen == list(range(1, 512))


COUNTERS = dict.fromkeys(
    ("grants", "granted_bytes", "accepts", "allocs", "frees", "reads", "read_bytes", "steals", "resumes"),
    2**63,
)


def test_status_pages_cover_every_slab_once() -> None:
    box = Box(elements=(ElementInfo(0, "dram0", "dram", 32 * GIB, "e.sock"),))
    peer, process = box.attach("a")
    shard = box.shards[process.group]
    slabs = [slab_of(need(box, peer)) for _ in range(60)]
    for slab in slabs:
        shard.shatter(slab, process.pid, 4)
    seen: list[int] = []
    cursor: int | None = 0
    pages = 0
    while cursor is not None:
        report = box.ask(peer, wire.Status("slabs", cursor))
        assert isinstance(report, wire.SlabList)
        encode(report)  # fits into a packet
        seen += [slab.slab for slab in report.slabs]
        assert all(
            s.free_runs == 64 and s.largest_free_run == 4 and s.free_pages == 256 for s in report.slabs
        )
        cursor = report.next_cursor
        pages += 1
    assert seen == slabs and pages > 1
    failed(box.ask(peer, wire.Status("weather")), "config")
