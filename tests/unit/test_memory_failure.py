"""Memory that fails, at the Rack MMU: who is told, what is never handed out again, and how failures are made."""

from __future__ import annotations

import pytest

from bequest.limits import (
    BROKEN_KEPT_MAX,
    DEATH_TOLD_FOR,
    FAILED_RUNS_MAX,
    GUARD_TIMEOUT,
    HEAD_START,
    PAGE_BYTES,
    SLAB_FAILED_RUNS_MAX,
)
from bequest.protocol.outputs import Output, ToAgent, ToElement, ToMonitor
from bequest.protocol.rack_state import ElementInfo
from bequest.wire import messages as wire
from rack_in_a_box import GIB, MIB, Box

TWO = (ElementInfo(0, "a", "dram", GIB, "a.sock"), ElementInfo(1, "b", "dram", GIB, "b.sock"))


def box() -> Box:
    return Box(elements=TWO)


def slab_of(one: Box, peer: int, element: str = "a", nbytes: int = 2 * MIB) -> wire.SlabStatus:
    """A fresh slab of this process, as a report has it."""
    reply = one.ask(peer, wire.NeedSlab(nbytes // PAGE_BYTES, element=element))
    assert isinstance(reply, wire.SlabReady), reply
    report = one.status("slabs")
    assert isinstance(report, wire.SlabList)
    return next(slab for slab in report.slabs if slab.slab == reply.slab)


def fail(one: Box, slab: wire.SlabStatus, offset: int = 0, nbytes: int = 2 * MIB) -> list[wire.TellProcess]:
    """An element reports it; what agents are told."""
    del one.to_agents[:]
    number = next(element.id for element in TWO if element.name == slab.element)
    one.do(one.mmu.element_message(number, wire.MemoryFailed(slab.slab, offset, nbytes, "a cell died")))
    return [message for message in one.to_agents if isinstance(message, wire.TellProcess)]


def test_the_owners_of_lost_pages_are_told_of_theirs_and_nobody_else() -> None:
    one = box()
    peer, owner = one.attach("owner")
    _, other = one.attach("other")
    slab = slab_of(one, peer)
    shard = one.shards[owner.group]
    shard.own(owner.pid, slab.address, 2)
    shard.own(other.pid, slab.address + 2 * PAGE_BYTES, 1)
    shard.own(owner.pid, slab.address + 3 * PAGE_BYTES, 4)
    told = fail(one, slab, PAGE_BYTES, 3 * PAGE_BYTES)
    runs = {message.pid: message.notice.runs for message in told}
    page = slab.address // PAGE_BYTES
    assert runs == {
        owner.pid: [((page + 1) * PAGE_BYTES, PAGE_BYTES), ((page + 3) * PAGE_BYTES, PAGE_BYTES)],
        other.pid: [((page + 2) * PAGE_BYTES, PAGE_BYTES)],
    }
    assert all(message.notice.cause == "a cell died" and message.notice.element == "a" for message in told)
    assert fail(one, slab, 8 * PAGE_BYTES, PAGE_BYTES) == []  # nobody's
    one.check()


def test_many_runs_become_one_around_them_all() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer, nbytes=8 * MIB)
    one.shards[owner.group].shatter(slab.slab, owner.pid, 1)
    (told,) = fail(one, slab, 0, 8 * MIB)
    assert len(told.notice.runs) == 1
    assert 2 * FAILED_RUNS_MAX * PAGE_BYTES < told.notice.runs[0][1] <= 8 * MIB


def test_the_dead_are_told_too_for_their_contacts_are() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 1)
    one.exit(owner)
    (told,) = fail(one, slab)
    assert (told.pid, told.incarnation) == (owner.pid, owner.incarnation)
    one.pass_time(61)  # its memory is freed, and its agent may forget it
    assert wire.ForgetProcess(owner.pid, owner.incarnation) in one.to_agents


def test_a_failed_slab_is_marked_and_retired_for_good_when_nobody_owns_it() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    shard = one.shards[owner.group]
    region = shard.own(owner.pid, slab.address, 1)
    fail(one, slab, 0, PAGE_BYTES)
    assert slab.slab in shard.failed_slabs
    one.pass_time(2)
    assert one.used() == 2 * MIB
    shard.free(region)
    one.pass_time(2)
    assert one.used() == 0
    assert wire.RetireSlab(slab.slab, recycle=False) in one.to_elements


def test_a_report_of_a_slab_that_has_gone_is_old_news() -> None:
    one = box()
    assert one.mmu.element_message(0, wire.MemoryFailed(77, 0, 4096, "late")) == []


def test_an_element_that_has_failed_gets_no_slab_any_more_and_others_do() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 1)
    asker = one.client()
    assert one.ask(asker, wire.BreakMemory("a")) is None
    order = one.to_elements[-1]
    assert isinstance(order, wire.FailMemory) and order.slab is None
    fail(one, slab)
    one.do(one.mmu.element_message(0, wire.FailureMade(order.job)))
    assert one.replies[asker][-1] == wire.MemoryBroken(1, 2 * MIB, ["owner"])
    for element in ("a", None):
        reply = one.ask(peer, wire.NeedSlab(512, element=element))
        assert isinstance(reply, wire.Failed if element == "a" else wire.SlabReady), reply
    states = {element.name: (element.state, element.free) for element in one.status("elements").elements}
    assert states["a"] == ("failed", 0)
    assert states["b"][0] == "well"
    assert isinstance(one.ask(asker, wire.BreakMemory("a")), wire.Failed)
    assert isinstance(one.ask(asker, wire.BreakMemory("c")), wire.Failed)


def test_a_range_is_lost_only_when_every_agent_has_guarded_it() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    asker = one.client()
    assert one.ask(asker, wire.BreakMemory("a", slab.address + 100, 5000)) is None
    guards = [message for message in one.to_agents if isinstance(message, wire.GuardRange)]
    assert [(guard.address, guard.nbytes) for guard in guards] == [(slab.address, 2 * PAGE_BYTES)] * 2
    one.do(one.mmu.agent_message(wire.RangeGuarded(guards[0].job), one.now))
    assert not [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    one.do(one.mmu.agent_message(wire.RangeGuarded(guards[1].job), one.now))
    (order,) = [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    assert (order.slab, order.offset, order.nbytes) == (slab.slab, 0, 2 * PAGE_BYTES)


def test_a_range_that_cannot_be_guarded_is_not_lost() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    asker = one.client()
    one.ask(asker, wire.BreakMemory("a", slab.address, PAGE_BYTES))
    job = next(message.job for message in one.to_agents if isinstance(message, wire.GuardRange))
    one.do(one.mmu.agent_message(wire.RangeGuarded(job, ["owner"]), one.now))
    one.do(one.mmu.agent_message(wire.RangeGuarded(job + 1), one.now))
    reply = one.replies[asker][-1]
    assert isinstance(reply, wire.Failed) and "'owner' cannot be guarded" in reply.message
    assert not [message for message in one.to_elements if isinstance(message, wire.FailMemory)]


def test_who_is_linked_anew_is_asked_again_for_what_it_has_not_answered() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    asker = one.client()
    one.ask(asker, wire.BreakMemory("a", slab.address, PAGE_BYTES))
    first, second = (message for message in one.to_agents if isinstance(message, wire.GuardRange))
    one.do(one.mmu.agent_message(wire.RangeGuarded(first.job), one.now))
    del one.to_agents[:]
    for compute in one.config.computes:
        one.do(one.mmu.agent_linked(compute))
    assert [message for message in one.to_agents if isinstance(message, wire.GuardRange)] == [second]
    del one.to_elements[:]
    one.do(one.mmu.agent_message(wire.RangeGuarded(second.job), one.now))
    one.do(one.mmu.agent_message(wire.RangeGuarded(second.job), one.now))  # an answer of an earlier link
    (order,) = (message for message in one.to_elements if isinstance(message, wire.FailMemory))
    del one.to_elements[:]
    one.do(one.mmu.element_linked(0))
    assert [message for message in one.to_elements if isinstance(message, wire.FailMemory)] == [order]
    one.do(one.mmu.element_message(0, wire.FailureMade(order.job)))
    assert isinstance(one.replies[asker][-1], wire.MemoryBroken)


def test_a_range_in_no_slab_and_an_agent_that_does_not_answer_are_told() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    asker = one.client()
    assert isinstance(one.ask(asker, wire.BreakMemory("b", slab.address, PAGE_BYTES)), wire.Failed)
    assert one.ask(asker, wire.BreakMemory("a", slab.address, PAGE_BYTES)) is None
    one.pass_time(GUARD_TIMEOUT + 1)
    refused = one.replies[asker][1]
    assert isinstance(refused, wire.Failed) and "did not answer in time" in refused.message
    job = next(message.job for message in one.to_agents if isinstance(message, wire.GuardRange))
    one.do(one.mmu.agent_message(wire.RangeGuarded(job), one.now))  # too late
    assert not [message for message in one.to_elements if isinstance(message, wire.FailMemory)]


# --- the rack monitor's word ------------------------------------------------------------------------------------


def told_by(one: Box, outputs: list[Output]) -> list[wire.Message]:
    del one.to_agents[:]
    one.do(outputs)
    return list(one.to_agents)


def test_a_silent_element_is_told_to_owners_and_changes_nothing_else() -> None:
    one = box()
    peer, owner = one.attach("owner")
    one.attach("bystander")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 1)
    (told,) = told_by(one, one.mmu.monitor_message(wire.ElementSilent(0, 0.5)))
    assert told == wire.TellProcess(owner.pid, owner.incarnation, wire.NoticeElement("a", True, 0.5), 1)
    assert told_by(one, one.mmu.monitor_message(wire.ElementSilent(0, 0.9))) == []
    assert [element.state for element in one.status("elements").elements] == ["silent", "well"]
    assert isinstance(one.ask(peer, wire.NeedSlab(512, element="a")), wire.SlabReady)
    (told,) = told_by(one, one.mmu.monitor_message(wire.ElementBack(0)))
    assert isinstance(told, wire.TellProcess) and told.notice == wire.NoticeElement("a", False, 0.0)


def test_a_hint_of_a_death_only_has_the_agent_prove_it() -> None:
    one = box()
    _, victim = one.attach("victim")
    hint = wire.DeathHint(victim.pid, victim.incarnation)
    assert told_by(one, one.mmu.monitor_message(hint)) == [wire.ProveDeath(victim.pid, victim.incarnation)]
    assert one.processes()["victim"] == "attached"
    assert told_by(one, one.mmu.monitor_message(wire.DeathHint(victim.pid, victim.incarnation + 1))) == []
    one.exit(victim)
    assert told_by(one, one.mmu.monitor_message(hint)) == []


def test_a_suspicion_is_told_once_and_withdrawn_once_and_moves_nothing() -> None:
    one = box()
    _, victim = one.attach("victim")
    suspicion = wire.Suspicion(victim.pid, victim.incarnation, 0.04)
    told = told_by(one, one.mmu.monitor_message(suspicion))
    notice = wire.NoticeSuspected("victim", victim.pid, victim.incarnation, 0.04)
    assert told == [wire.TellGroup(victim.group, notice)] * 2  # both agents
    assert told_by(one, one.mmu.monitor_message(suspicion)) == []
    assert one.processes()["victim"] == "attached"
    told = told_by(one, one.mmu.monitor_message(wire.Cleared(victim.pid, victim.incarnation)))
    assert [message.notice for message in told if isinstance(message, wire.TellGroup)] == [
        wire.NoticeCleared("victim", victim.pid, victim.incarnation)
    ] * 2
    assert told_by(one, one.mmu.monitor_message(wire.Cleared(victim.pid, victim.incarnation))) == []


# --- standbys ---------------------------------------------------------------------------------------------------


def test_a_standby_is_told_when_its_victim_attaches_and_attaches_again() -> None:
    one = box()
    peer, standby = one.attach("standby")
    assert one.ask(peer, wire.StandBy("victim")) == wire.StandingBy(1)
    shard = one.shards[standby.group]
    for _ in range(2):
        del one.to_agents[:]
        _, victim = one.attach("victim")
        notice = wire.NoticeAttached("victim", victim.pid, victim.incarnation)
        told = [message for message in one.to_agents if isinstance(message, wire.TellProcess)]
        assert [(message.pid, message.notice) for message in told] == [(standby.pid, notice)]
        assert shard.watchers[victim.pid] == 1
        one.exit(victim)


def test_whoever_is_stood_by_for_is_watched_as_long_as_somebody_does() -> None:
    one = box()
    _, victim = one.attach("victim")
    first, _ = one.attach("first")
    second, _ = one.attach("second")
    shard = one.shards[victim.group]
    assert one.ask(first, wire.StandBy("victim")) == wire.StandingBy(1, victim.pid, victim.incarnation)
    one.ask(second, wire.StandBy("victim"))
    assert shard.watchers[victim.pid] == 2
    assert isinstance(one.ask(first, wire.StandDown(2)), wire.Failed)  # another's
    assert one.ask(first, wire.StandDown(1)) == wire.Done()
    assert shard.watchers[victim.pid] == 1
    one.leave(second)
    assert shard.watchers[victim.pid] == 0


def test_standbys_are_of_the_victims_group() -> None:
    one = box()
    one.attach("victim")
    creator = one.client()
    group = one.ask(creator, wire.CreateGroup("others"))
    assert isinstance(group, wire.GroupCreated)
    peer, standby = one.attach("standby", group.secret)
    reply = one.ask(peer, wire.StandBy("victim"))
    assert isinstance(reply, wire.Failed) and "another group" in reply.message
    assert isinstance(one.ask(peer, wire.StandBy("later")), wire.StandingBy)
    _, later = one.attach("later")  # of the default group: not the one that is meant
    assert not [m for m in one.to_agents if isinstance(m, wire.TellProcess) and m.pid == standby.pid]
    assert one.shards[later.group].watchers.get(later.pid, 0) == 0


def test_no_victim_has_an_absurd_name() -> None:
    one = box()
    peer, _ = one.attach("standby")
    for message in (wire.StandBy("x" * 100_000), wire.Steal("x" * 100_000)):
        refused = one.ask(peer, message)
        assert isinstance(refused, wire.Failed) and refused.kind == "bad-name"
    assert not one.written.get("standbys") and not one.written.get("thefts")


def test_one_process_stands_by_for_a_bounded_number_of_others() -> None:
    from bequest.limits import STANDBYS_MAX

    one = box()
    peer, _ = one.attach("standby")
    for number in range(STANDBYS_MAX):
        assert isinstance(one.ask(peer, wire.StandBy(f"victim-{number}")), wire.StandingBy)
    assert isinstance(one.ask(peer, wire.StandBy("one-more")), wire.Failed)


def test_contacts_elsewhere_are_called_through_their_own_agents() -> None:
    one = box()
    _, owner = one.attach("owner")
    _, contact = one.attach("contact")
    notice = wire.NoticeContact("owner", owner.pid, owner.incarnation, "died")
    outputs = one.mmu.agent_message(wire.CallContacts(["contact", "nobody"], notice, owner.group, 7), one.now)
    assert outputs == [
        ToAgent(contact.compute, wire.TellProcess(contact.pid, contact.incarnation, notice, 1)),
        ToAgent(owner.compute, wire.ContactsCalled(7)),
    ]


def test_a_contact_is_one_of_the_owners_group() -> None:
    one = box()
    _, owner = one.attach("owner")
    group = one.ask(one.client(), wire.CreateGroup("others"))
    assert isinstance(group, wire.GroupCreated)
    one.attach("contact", group.secret)
    notice = wire.NoticeContact("owner", owner.pid, owner.incarnation, "memory")
    outputs = one.mmu.agent_message(wire.CallContacts(["contact"], notice, owner.group, 7), one.now)
    assert outputs == [ToAgent(owner.compute, wire.ContactsCalled(7))]


@pytest.mark.parametrize("state", ["exited", "detached"])
def test_only_a_death_is_told_as_one(state: str) -> None:
    one = box()
    peer, victim = one.attach("victim")
    del one.to_agents[:]
    if state == "exited":
        one.exit(victim)
        assert not any(isinstance(message, wire.TellGroup) for message in one.to_agents), "heirs go first"
    else:
        one.ask(peer, wire.Detach())
    one.pass_time(HEAD_START)
    told = [message.notice for message in one.to_agents if isinstance(message, wire.TellGroup)]
    assert told == (
        [wire.NoticeDied("victim", victim.pid, victim.incarnation, 1)] * 2 if state == "exited" else []
    )


def deaths_told(outputs: list[Output], compute: str) -> list[int]:
    return [
        out.message.notice.number
        for out in outputs
        if isinstance(out, ToAgent)
        and out.compute == compute
        and isinstance(out.message, wire.TellGroup)
        and isinstance(out.message.notice, wire.NoticeDied)
    ]


def test_deaths_are_told_again_on_a_new_link_for_as_long_as_an_agent_may_be_away() -> None:
    one = Box(orphan_keep=0.1)
    for name in ("a", "b"):
        one.exit(one.attach(name)[1])
    one.pass_time(5)
    assert one.processes() == {}
    assert deaths_told(one.mmu.agent_linked("host0"), "host0") == [1, 2]
    one.pass_time(DEATH_TOLD_FOR)
    assert deaths_told(one.mmu.agent_linked("host0"), "host0") == []


def test_a_slab_that_an_element_has_lost_is_a_failure_of_its_owners_memory() -> None:
    one = box()
    owner, attached = one.attach("owner")
    slab = slab_of(one, owner)
    one.shards[attached.group].own(attached.pid, slab.address, 3)
    del one.to_agents[:]
    for _ in range(2):  # it says so on each new link
        one.do(one.mmu.element_message(0, wire.SlabLost(slab.slab)))
    (told,) = [message for message in one.to_agents if isinstance(message, wire.TellProcess)]
    assert isinstance(told.notice, wire.NoticeMemory)
    assert told.notice.runs == [(slab.address, 3 * PAGE_BYTES)]
    assert one.shards[attached.group].failed_slabs == {slab.slab: None}


def test_a_suspicion_outlives_the_monitor_that_had_it() -> None:
    one = box()
    _, victim = one.attach("victim")
    one.do(one.mmu.monitor_message(wire.Suspicion(victim.pid, victim.incarnation, 0.1)))
    outputs = one.mmu.monitor_linked()
    watches = [out.message for out in outputs if isinstance(out, ToMonitor)]
    assert [watch.is_suspect for watch in watches if isinstance(watch, wire.WatchProcess)] == [True]


def test_what_is_known_of_a_slab_that_fails_again_and_again_stays_short() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer, nbytes=8 * MIB)
    one.shards[owner.group].own(owner.pid, slab.address, 2048)
    for page in range(SLAB_FAILED_RUNS_MAX + 1):
        assert len(fail(one, slab, 2 * page * PAGE_BYTES, PAGE_BYTES)) == 1
    (adopt,) = [
        out.message
        for out in one.mmu.element_linked(0)
        if isinstance(out, ToElement) and isinstance(out.message, wire.AdoptSlab)
    ]
    assert adopt.failed == [(0, 8 * MIB)]
    assert fail(one, slab, 3 * PAGE_BYTES, PAGE_BYTES) == []  # failed with the rest


# --- failures that are decided, and not done yet ----------------------------------------------------------------


def adopted(one: Box) -> wire.AdoptSlab:
    """What the element is told of its slab on a new link."""
    outputs = [out.message for out in one.mmu.element_linked(0) if isinstance(out, ToElement)]
    (adopt,) = [message for message in outputs if isinstance(message, wire.AdoptSlab)]
    return adopt


def guarded(one: Box, breaking: wire.BreakMemory) -> int:
    """Who asks for it; all agents have guarded the range, and the element has been told to lose it."""
    asker = one.client()
    one.ask(asker, breaking)
    for guard in [message for message in one.to_agents if isinstance(message, wire.GuardRange)]:
        one.agent(wire.RangeGuarded(guard.job))
    return asker


def test_a_failure_that_is_decided_reaches_an_element_that_was_away_and_is_told_once_it_is_done() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 4)
    one.held = []  # what is said to the element is lost
    guarded(one, wire.BreakMemory("a", slab.address, PAGE_BYTES))
    assert not [message for message in one.to_agents if isinstance(message, wire.TellProcess)]
    assert (adopted(one).failed, adopted(one).cause) == ([(0, PAGE_BYTES)], "injected by bequest fault")
    assert len(fail(one, slab, 0, PAGE_BYTES)) == 1
    assert adopted(one).failed == [(0, PAGE_BYTES)]
    assert fail(one, slab, 0, PAGE_BYTES) == []


@pytest.mark.parametrize("whole", [False, True])
def test_who_did_not_hear_that_memory_was_broken_asks_again(whole: bool) -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 512)
    start, nbytes = (0, 0) if whole else (slab.address, PAGE_BYTES)
    breaking = wire.BreakMemory("a", start, nbytes, b"nonce")
    replies = []
    for _ in range(2):
        asker = guarded(one, breaking)
        order = one.to_elements[-1]
        assert isinstance(order, wire.FailMemory)
        fail(one, slab, 0, nbytes or slab.pages * PAGE_BYTES)
        one.do(one.mmu.element_message(0, wire.FailureMade(order.job)))
        replies += one.replies[asker]
    assert replies == [wire.MemoryBroken(1, nbytes or slab.pages * PAGE_BYTES, ["owner"])] * 2


def test_a_request_that_is_repeated_while_it_is_under_way_is_answered_to_the_last_who_asked() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    breaking = wire.BreakMemory("a", slab.address, PAGE_BYTES, b"nonce")
    one.ask(one.client(), breaking)
    asker = guarded(one, breaking)
    orders = [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    one.do(one.mmu.element_message(0, wire.FailureMade(orders[0].job)))
    assert len(orders) == 1 and one.replies[asker] == [wire.MemoryBroken(1, PAGE_BYTES, [])]


def test_few_requests_are_remembered() -> None:
    one = box()
    peer, _ = one.attach("owner")
    slab = slab_of(one, peer)
    for number in range(BROKEN_KEPT_MAX + 3):
        guarded(one, wire.BreakMemory("a", slab.address, PAGE_BYTES, bytes([number + 1])))
    assert len(one.written["broken memory"]) == BROKEN_KEPT_MAX


def test_memory_is_broken_when_all_parts_of_it_are() -> None:
    one = box()
    peer, _ = one.attach("owner")
    first, second = slab_of(one, peer), slab_of(one, peer)
    start, end = min(first.address, second.address), max(first.address, second.address) + 2 * MIB
    asker = one.client()
    one.ask(asker, wire.BreakMemory("a", start, end - start))
    for guard in [message for message in one.to_agents if isinstance(message, wire.GuardRange)]:
        one.do(one.mmu.agent_message(wire.RangeGuarded(guard.job), one.now))
    orders = [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    assert len(orders) >= 2
    for order in orders:
        assert one.replies[asker] == []
        one.do(one.mmu.element_message(0, wire.FailureMade(order.job)))
    assert len(one.replies[asker]) == 1


# --- what the hardware has lost ---------------------------------------------------------------------------------


def hardware(page: int) -> wire.ReportFailure:
    return wire.ReportFailure(page + 100, PAGE_BYTES)


def test_a_page_that_the_hardware_has_lost_is_guarded_then_lost_and_told() -> None:
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 4)
    assert one.ask(peer, hardware(slab.address + PAGE_BYTES)) is None
    guards = [message for message in one.to_agents if isinstance(message, wire.GuardRange)]
    assert [(guard.address, guard.nbytes) for guard in guards] == [
        (slab.address + PAGE_BYTES, PAGE_BYTES)
    ] * 2
    for guard in guards:
        one.agent(wire.RangeGuarded(guard.job))
    (order,) = [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    assert (order.offset, order.nbytes, order.cause) == (
        PAGE_BYTES,
        PAGE_BYTES,
        "the hardware reports an error",
    )
    assert len(fail(one, slab, PAGE_BYTES, PAGE_BYTES)) == 1
    one.do(one.mmu.element_message(0, wire.FailureMade(order.job)))
    assert one.replies[peer][-1] == wire.MemoryBroken(1, PAGE_BYTES, ["owner"])


def test_where_somebody_cannot_be_guarded_the_whole_slab_goes() -> None:
    """The page is lost in any case, and is not to be read as zeros."""
    one = box()
    peer, owner = one.attach("owner")
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 4)
    one.ask(peer, hardware(slab.address))
    for guard in [message for message in one.to_agents if isinstance(message, wire.GuardRange)]:
        one.agent(wire.RangeGuarded(guard.job, ["owner"]))
    (order,) = [message for message in one.to_elements if isinstance(message, wire.FailMemory)]
    assert (order.slab, order.offset, order.nbytes) == (slab.slab, 0, slab.pages * PAGE_BYTES)


def test_nobody_reports_what_it_does_not_own() -> None:
    one = box()
    peer, owner = one.attach("owner")
    stranger, _ = one.attach("stranger")
    group = one.ask(one.client(), wire.CreateGroup("others"))
    assert isinstance(group, wire.GroupCreated)
    outsider, _ = one.attach("outsider", group.secret)
    slab = slab_of(one, peer)
    one.shards[owner.group].own(owner.pid, slab.address, 4)
    for who in (stranger, outsider):
        refused = one.ask(who, hardware(slab.address))
        assert isinstance(refused, wire.Failed) and refused.kind == "not-owner"
    for address in (slab.address + 4 * PAGE_BYTES, 0, -1, -(2**63), 2**63, 2**64 - 1):
        refused = one.ask(peer, hardware(address))
        assert isinstance(refused, wire.Failed) and refused.kind == "not-owner"
    assert not [message for message in one.to_agents if isinstance(message, wire.GuardRange)]
