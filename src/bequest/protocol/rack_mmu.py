"""The Rack MMU: the control plane's one authority, as a machine without I/O.

Inputs are what clients, memory elements and agents say, that a client has gone, and the passing of time; each returns
the outputs to carry out, in order. Tables are reached through `Shard`. What happens per grant inside a group does not
pass here at all: processes do it in the table, and the Rack MMU decides who is in it and which slabs are.

A process ends in one of two ways. *Detach*: it says so; whatever it still has is freed. *Death*: its connection or its
agent tells. Only the kernel's word (the agent's pidfd) makes its memory orphaned; a process that lost its connection
and runs on might still write. Orphaned memory is kept for a while and then freed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bequest.ids import GroupId
from bequest.limits import COME_BACK_TIMEOUT, EMBEDDED_FIRST_CLIENT, SWEEP_INTERVAL, TICKET_BYTES
from bequest.protocol.announcer import Announcer
from bequest.protocol.books import Change
from bequest.protocol.cross_grant import CrossGrants
from bequest.protocol.groups import Group, Rules
from bequest.protocol.mailboxes import Mailboxes
from bequest.protocol.memory_failure import MemoryFailures
from bequest.protocol.namespace import Namespace
from bequest.protocol.outputs import LookThrough, Note, Output, PeerId, ProcessKey, StopRack, ToAgent
from bequest.protocol.placement import choose_compute
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import MmuConfig, RackState, Session
from bequest.protocol.refusal import Refusal, checked_name
from bequest.protocol.restorer import Restorer
from bequest.protocol.shard import ShardMaker
from bequest.protocol.slab_request import SlabRequests
from bequest.protocol.slab_supply import SlabSupply
from bequest.protocol.standby_desk import StandbyDesk
from bequest.protocol.status_desk import Found, StatusDesk
from bequest.protocol.steal_desk import StealDesk
from bequest.protocol.watch_desk import WatchDesk
from bequest.wire import messages as wire


class RackMmu:
    def __init__(
        self, config: MmuConfig, make_shard: ShardMaker, fresh_bytes: Callable[[int], bytes], now: float
    ) -> None:
        self._config = config
        self._state = RackState(config, make_shard, fresh_bytes)
        self._supply = SlabSupply(self._state)
        self._slab_requests = SlabRequests(self._state, self._supply)
        self._grants = CrossGrants(self._state, self._supply)
        self._mailboxes = Mailboxes(self._state)
        self._failures = MemoryFailures(self._state)
        self._watch = WatchDesk(self._state, self._failures)
        self._announcer = Announcer(self._state, self._supply, self._grants)
        self._names = Namespace(self._state)
        self._steals = StealDesk(self._state, self._names, self._exited)
        self._standbys = StandbyDesk(self._state, self._steals.check_standby)
        self._status = StatusDesk(
            self._state, self._steals.book, now if config.started is None else config.started
        )
        self._next_sweep = now + SWEEP_INTERVAL
        self._stop_at = None if config.linger is None else now + EMBEDDED_FIRST_CLIENT
        self._come_back_by = now
        # Each answers its request, at once or later, exactly once; `Refusal` is the answer no.
        self._requests: dict[type[wire.Message], Callable[[Session, Any, float], None]] = {
            wire.CreateGroup: self._create_group,
            wire.Attach: self._attach,
            wire.Detach: self._detach,
            wire.NeedSlab: self._need_slab,
            wire.FindPeer: self._find_peer,
            wire.CrossGrant: self._cross_grant,
            wire.OpenMailbox: self._open_mailbox,
            wire.CloseMailbox: self._close_mailbox,
            wire.PlaceProcess: self._place_process,
            wire.StandBy: self._stand_by,
            wire.StandDown: self._stand_down,
            wire.BreakMemory: self._failures.break_memory,
            wire.FlipBit: self._failures.flip_bit,
            wire.ReportFailure: self._report_failure,
            wire.Steal: self._steal,
            wire.NameHeir: self._name_heir,
            wire.Publish: self._of_process(self._names.publish),
            wire.Unpublish: self._of_process(self._names.unpublish),
            wire.Lookup: self._of_process(self._names.lookup),
            wire.ListNames: self._list_names,
            wire.Status: self._report,
            wire.Shutdown: self._shutdown,
            wire.Resume: self._resume,
            wire.ComeBack: self._come_back,
        }

    @classmethod
    def restore(
        cls,
        config: MmuConfig,
        make_shard: ShardMaker,
        fresh_bytes: Callable[[int], bytes],
        rows: Iterable[Change],
        now: float,
    ) -> tuple[RackMmu, list[Output]]:
        """The machine of a run before, from what it wrote down; ``make_shard`` opens the tables that it had.

        The outputs are to be carried out like any others. Elements and agents are to be linked afterwards.
        """
        mmu = cls(config, make_shard, fresh_bytes, now)
        state = mmu._state
        state.books.apply(rows)
        Restorer(state, mmu._supply, mmu._slab_requests, mmu._grants, mmu._mailboxes, now).restore()
        mmu._stop_at = None
        mmu._come_back_by = now + COME_BACK_TIMEOUT
        mmu._linger(now)
        mmu._steals.restore(now)
        state.outputs += state.clients.absent()
        state.later(partial(mmu._tidy, now))
        return mmu, state.take_outputs()

    # --- inputs --------------------------------------------------------------------------------------------

    def client_opened(self, peer: PeerId, uid: int, os_pid: int) -> list[Output]:
        self._state.clients.opened(peer, uid, os_pid)
        self._stop_at = None
        return self._state.take_outputs()

    def client_message(self, peer: PeerId, message: wire.Message, now: float) -> list[Output]:
        session = self._state.sessions[peer]
        try:
            request = self._opened(session, message)
            if request is not None:
                self._requests[type(request)](session, request, now)
        except Refusal as refusal:
            self._state.refuse(peer, refusal)
        return self._state.take_outputs()

    def _opened(self, session: Session, message: wire.Message) -> wire.Message | None:
        """The request in its envelope, unless it was carried out before or is under way."""
        if not isinstance(message, wire.Once):
            return message
        if message.number < 1:
            raise Refusal("not-attached", "requests are numbered from 1")
        if session.process is None:
            raise Refusal(
                "not-attached", "only an attached process numbers its requests; attach, or resume, first"
            )
        answer = self._state.clients.answered(session, message.number)
        if answer is not None:
            self._state.reply(session.peer, answer)
            return None
        session.number = message.number
        return None if self._state.clients.is_under_way(session) else message.request

    def client_gone(self, peer: PeerId, now: float) -> list[Output]:
        process = self._process_of(self._state.sessions[peer])
        is_unwatched = process is not None and process.is_attached and not process.enrolled
        if process is not None and is_unwatched and self._may_store(process):
            self._state.outputs.append(self._state.clients.missing(peer))
        else:
            self._state.clients.gone(peer)
        if process is not None:
            self._mailboxes.close_all(process.id)
            if is_unwatched and not self._may_store(process):
                self._exited(process, now)
            elif process.is_attached:
                self._lost(process)
        self._state.groups.creator_is_now(None, peer)
        self._linger(now)
        self._state.later(lambda: self._tidy(now))
        return self._state.take_outputs()

    def absent_client_exited(self, client: PeerId, now: float) -> list[Output]:
        """A client that has not come back will not: its process has ended.

        Of one that has enrolled, its agent tells: somebody may run in its address space still.
        """
        number, os_pid = self._state.clients.exited(client)
        process = None if number is None else self._state.processes.get(number)
        if process is not None and process.os_pid == os_pid and process.state in (State.ATTACHED, State.LOST):
            if not process.enrolled:
                self._exited(process, now)
            elif process.is_attached:
                self._lost(process)
        self._state.groups.creator_is_now(None, client)
        self._linger(now)
        return self._state.take_outputs()

    def _linger(self, now: float) -> None:
        if self._config.linger is not None and not self._state.clients.has_any():
            self._stop_at = now + self._config.linger

    def element_message(self, element: int, message: wire.Message) -> list[Output]:
        match message:
            case wire.SlabReserved(slab):
                self._supply.reserved(element, slab)
            case wire.SlabRefused(slab, text):
                self._supply.refused(slab, text)
            case wire.SlabRegrouped(slab):
                self._grants.regrouped(slab)
            case wire.PagesCopied(job):
                self._grants.copied(job)
            case wire.CopyFailed(job, text):
                self._grants.copy_failed(job, text)
            case wire.PagesPunched(job):
                self._grants.punched(job)
            case wire.ElementReport(usage):
                self._state.usage[element] = usage
            case wire.SlabLost(slab):
                self._slab_lost(element, slab)
            case _:
                self._failures.element_message(element, message)
        return self._state.take_outputs()

    def is_running(self, pid: int, incarnation: int) -> bool:
        """Whether this life of a process is attached, or may still write though its connection has gone."""
        process = self._state.processes.exact(pid, incarnation)
        return process is not None and process.state in (State.ATTACHED, State.LOST)

    def running(self, name: str, peer: PeerId) -> list[tuple[GroupId, ProcessKey]]:
        """Who bears this name and may still write, of the group of the process behind this connection."""
        asker = self._process_of(self._state.sessions[peer])
        found = [] if asker is None else self._state.processes.running(name, asker.group)
        return [(member.group, (member.id, member.incarnation)) for member in found]

    def daemon_runs(self, report: wire.DaemonReport) -> None:
        """For the report: this daemon runs, for the first time or again."""
        self._state.daemons[report.kind, report.name] = report

    def element_linked(self, element: int) -> list[Output]:
        """There is a link to this memory element, the first or a new one: says all that it has to know."""
        self._announcer.to_element(element)
        self._failures.element_linked(element)
        return self._state.take_outputs()

    def agent_linked(self, compute: str) -> list[Output]:
        """Likewise for an agent."""
        self._watch.agent_linked(compute)  # before the announcement ends: nobody can subscribe until then
        self._announcer.to_agent(compute)
        self._steals.agent_linked(compute)
        self._state.outputs += self._state.notices.agent_linked(compute)
        self._failures.agent_linked(compute)
        return self._state.take_outputs()

    def monitor_linked(self) -> list[Output]:
        """Likewise for the rack monitor."""
        self._announcer.to_monitor()
        return self._state.take_outputs()

    def agent_message(self, message: wire.Message, now: float) -> list[Output]:
        match message:
            case wire.ProcessEnrolled(pid, incarnation):
                if (process := self._state.processes.exact(pid, incarnation)) is not None:
                    process.enrolled = True
            case wire.ProcessLost(pid, incarnation):
                if (
                    process := self._state.processes.exact(pid, incarnation)
                ) is not None and process.is_attached:
                    self._lost(process)
            case wire.ProcessExited(pid, incarnation):
                process = self._state.processes.exact(pid, incarnation)
                if process is not None and process.state in (State.ATTACHED, State.LOST):
                    self._exited(process, now)
            case wire.CallContacts():
                self._watch.call_contacts(message)
            case wire.ProcessTold(number):
                self._state.notices.told(number)
            case wire.RangeGuarded():
                self._failures.guarded(message)
            case wire.ProcessFenced() | wire.FenceFailed() | wire.FenceLifted():
                self._steals.agent_message(message, now)
            case _:
                raise AssertionError(f"an agent says {message}")
        return self._state.take_outputs()

    def monitor_message(self, message: wire.Message) -> list[Output]:
        """The rack monitor's word moves nothing."""
        self._watch.hear(message)
        return self._state.take_outputs()

    def tick(self, now: float) -> list[Output]:
        self._watch.tick(now)
        self._failures.tick(now)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._tidy(now)
        self._steals.tick(now)
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
            self._state.outputs.append(StopRack("the last process that used this embedded rack has gone"))
        return self._state.take_outputs()

    def next_deadline(self) -> float:
        stop_at = float("inf") if self._stop_at is None else self._stop_at
        desks = (self._watch, self._failures, self._steals)
        return min(self._next_sweep, stop_at, *(desk.next_deadline() for desk in desks))

    def go_on(self) -> list[Output]:
        """What was put off until the changes have been written down; asked for by the output `GoOn`."""
        self._state.go_on()
        return self._state.take_outputs()

    def looked_through(self, asked: LookThrough, found: Found) -> list[Output]:
        """As asked for by the output `LookThrough`."""
        self._status.found(asked, found)
        return self._state.take_outputs()

    def take_changes(self) -> list[Change]:
        """What the last inputs changed in the books: to be written down before their outputs are carried out."""
        return self._state.books.take_changes()

    def everything(self) -> list[Change]:
        """All that the books hold, to begin a fresh journal with."""
        return self._state.books.everything()

    # --- groups, attaching, detaching ----------------------------------------------------------------------

    def _create_group(self, session: Session, message: wire.CreateGroup, now: float) -> None:
        name = checked_name(message.name, "group's name")
        rules = Rules(message.policy, message.fence, message.verifier)
        group, secret = self._state.groups.create(name, session.peer, rules, message.nonce)
        self._state.announce_group(group)
        self._state.reply(session.peer, wire.GroupCreated(name, secret))

    def _attach(self, session: Session, message: wire.Attach, now: float) -> None:
        state = self._state
        name = checked_name(message.name, "process's name")
        if session.process is not None:
            raise Refusal("not-attached", "this connection has a process attached already; use another one")
        before = state.processes.admitted_by(message.nonce)
        if before is not None and before.os_pid == session.os_pid:
            self._hand_over(before, session)
            return
        if state.processes.attached(name) is not None:
            raise Refusal("name-taken", f"a process {name!r} is attached to this rack already")
        compute = self._compute(message.compute)
        heir = None if message.heir is None else checked_name(message.heir, "heir's name")
        group = self._group_for(session, message.secret)
        process = state.processes.admit(Kind.PROCESS, name, group.id)
        process.os_pid, process.compute, process.nonce = session.os_pid, compute, message.nonce
        process.ticket = state.fresh_bytes(TICKET_BYTES)
        process.heir = heir
        group.shard.admit(process.id, process.incarnation, process.os_pid, name)
        self._announcer.have_watched(process)
        self._standbys.attached(process)
        self._hand_over(process, session)

    def _hand_over(self, process: Member, session: Session) -> None:
        """The process is attached through this connection."""
        process.peer = session.peer
        self._state.clients.resumed(session, process.id)
        self._state.clients.attached(session, process.id, process.incarnation)
        expect = self._announcer.expectation(process)
        self._state.outputs.append(ToAgent(process.compute, expect))
        group = self._state.groups[process.group]
        self._state.reply(session.peer, self._announcer.welcome(process, group), table=group.id)

    def _resume(self, session: Session, message: wire.Resume, now: float) -> None:
        process = self._state.processes.exact(message.pid, message.incarnation)
        if (
            process is None
            or (session.process is not None and process.peer != session.peer)  # else it asks again
            or process.state not in (State.ATTACHED, State.LOST)
            or process.os_pid != session.os_pid
            or not hmac.compare_digest(process.ticket, message.ticket)
        ):
            raise Refusal("not-attached", f"process {message.pid} is not attached any more")
        before = None if process.peer is None else self._state.sessions.get(process.peer)
        if before is not None:
            self._state.clients.detached(before)
        process.peer = session.peer
        self._state.clients.resumed(session, process.id)
        self._state.clients.attached(session, process.id, process.incarnation)
        self._state.reply(session.peer, wire.Resumed(process.id))

    def _come_back(self, session: Session, message: wire.ComeBack, now: float) -> None:
        if self._state.clients.came_back(session, message.client):
            self._state.groups.creator_is_now(session.peer, message.client)
        self._state.reply(session.peer, wire.Done())

    def _group_for(self, session: Session, secret: bytes | None) -> Group:
        if secret is not None:
            return self._state.groups.of_secret(secret)
        group, is_new = self._state.groups.default_of(session.uid)
        if is_new:
            self._state.announce_group(group)
        return group

    def _compute(self, name: str | None) -> str:
        if name is None:
            return choose_compute(self._state.processes.load(self._config.computes))
        if name not in self._config.computes:
            known = ", ".join(self._config.computes)
            raise Refusal("config", f"this rack has no compute element {name!r}; it has {known}")
        return name

    def _detach(self, session: Session, message: wire.Detach, now: float) -> None:
        process = self._process_of(session)
        if process is None or process.state not in (State.ATTACHED, State.LOST):
            raise Refusal("not-attached", "no process is attached through this connection")
        self._mailboxes.close_all(process.id)
        self._standbys.gone(process)
        self._state.clients.detached(session)
        process.peer = None
        self._watch.forget_at_agent(process)
        self._watch.unwatch(process)
        process.become(State.GONE)
        self._state.later(partial(self._finish_detach, process, session.peer, now))

    def _finish_detach(self, process: Member, peer: PeerId, now: float) -> None:
        self._steals.forget(process)
        shard = self._state.shard_of(process.group)
        shard.mark_dead(process.id)
        shard.settle(process.id)
        self._release(process, now)
        self._tidy(now)
        self._state.later(lambda: self._state.reply(peer, wire.Done()))

    # --- memory --------------------------------------------------------------------------------------------

    def _need_slab(self, session: Session, message: wire.NeedSlab, now: float) -> None:
        self._slab_requests.start(session, self._attached_process(session), message)

    def _cross_grant(self, session: Session, message: wire.CrossGrant, now: float) -> None:
        self._grants.start(session, self._attached_process(session), message)

    def _report_failure(self, session: Session, message: wire.ReportFailure, now: float) -> None:
        self._failures.report(session, self._attached_process(session), message, now)

    # --- notices of failures -------------------------------------------------------------------------------

    def _stand_by(self, session: Session, message: wire.StandBy, now: float) -> None:
        checked_name(message.victim, "victim's name")
        self._standbys.stand_by(session, self._attached_process(session), message, now)

    def _stand_down(self, session: Session, message: wire.StandDown, now: float) -> None:
        self._standbys.stand_down(session, self._attached_process(session), message.standby)

    # --- stealing, and the namespace -----------------------------------------------------------------------

    def _steal(self, session: Session, message: wire.Steal, now: float) -> None:
        checked_name(message.victim, "victim's name")
        self._steals.start(session, self._attached_process(session), message, now)

    def _name_heir(self, session: Session, message: wire.NameHeir, now: float) -> None:
        name = None if message.name is None else checked_name(message.name, "heir's name")
        self._attached_process(session).heir = name
        self._state.reply(session.peer, wire.Done())

    def _list_names(self, session: Session, message: wire.ListNames, now: float) -> None:
        self._names.listing(session, self._process_of(session), message)

    def _of_process(
        self, act: Callable[[Session, Member, Any], None]
    ) -> Callable[[Session, Any, float], None]:
        """Of requests that only an attached process can make."""
        return lambda session, message, now: act(session, self._attached_process(session), message)

    # --- names of processes --------------------------------------------------------------------------------

    def _find_peer(self, session: Session, message: wire.FindPeer, now: float) -> None:
        process = self._attached_process(session)
        processes = self._state.processes
        found = processes.attached(message.name) or processes.mailbox(message.name, process.group)
        if found is None:
            if processes.departed(message.name) is not None:
                raise Refusal("dead", f"process {message.name!r} has gone")
            raise Refusal("unknown", f"no process {message.name!r} is attached to this rack")
        reply = wire.PeerFound(found.id, found.incarnation, found.group == process.group)
        self._state.reply(session.peer, reply)

    def _open_mailbox(self, session: Session, message: wire.OpenMailbox, now: float) -> None:
        name = None if message.name is None else checked_name(message.name, "mailbox's name")
        opener = self._attached_process(session)
        mailbox = self._mailboxes.open(opener, name, message.create, now)
        self._state.reply(session.peer, wire.MailboxOpened(mailbox.id, mailbox.incarnation, mailbox.name))

    def _close_mailbox(self, session: Session, message: wire.CloseMailbox, now: float) -> None:
        self._mailboxes.close(self._attached_process(session).id, message.id)
        self._state.reply(session.peer, wire.Done())  # written down with what it answers
        self._state.later(lambda: self._tidy(now))

    # --- the rack ------------------------------------------------------------------------------------------

    def _place_process(self, session: Session, message: wire.PlaceProcess, now: float) -> None:
        self._state.reply(session.peer, wire.Placed(self._compute(None)))

    def _report(self, session: Session, message: wire.Status, now: float) -> None:
        self._status.ask(session.peer, message, now)

    def _shutdown(self, session: Session, message: wire.Shutdown, now: float) -> None:
        self._state.reply(session.peer, wire.Done())
        self._state.outputs.append(StopRack(f"asked to by process {session.os_pid} of user {session.uid}"))

    # --- ends of processes ---------------------------------------------------------------------------------

    # An end is written down before the table shows it: what a table shows cannot be taken back, and would not say why.

    def _lost(self, process: Member) -> None:
        process.become(State.LOST)
        self._standbys.gone(process)
        shard = self._state.shard_of(process.group)
        self._state.later(partial(shard.mark_dead, process.id))

    def _exited(self, process: Member, now: float) -> None:
        process.become(State.ORPHANED)
        process.free_at = now + self._config.orphan_keep
        self._watch.died(process, now)
        self._mailboxes.close_all(process.id)
        self._standbys.gone(process)
        if not process.enrolled:
            self._watch.forget_at_agent(process)
        self._state.later(partial(self._settle, process, now))

    def _settle(self, process: Member, now: float) -> None:
        shard = self._state.shard_of(process.group)
        shard.mark_dead(process.id)
        settled = shard.settle(process.id)
        self._steals.victim_died(process, now)
        self._watch.settled(process, settled, now)

    def _slab_lost(self, element: int, slab: int) -> None:
        """An element that was started anew does not have it: its memory is gone, whoever owns it."""
        name = self._state.elements[element].name
        self._state.outputs.append(Note(f"memory element {name!r} has lost slab {slab}", trouble=True))
        self._grants.slab_lost(slab)
        self._failures.slab_lost(element, slab)

    def _free_all(self, process: Member, now: float) -> None:
        process.become(State.GONE)
        process.free_at = None
        self._steals.forget(process)
        self._state.later(partial(self._release, process, now))

    def _release(self, process: Member, now: float) -> None:
        """Later, if somebody might still store into what this process has stolen from him."""
        if self._steals.may_be_freed(process, now):
            self._state.shard_of(process.group).release(process.id)

    def _tidy(self, now: float) -> None:
        """Frees orphans whose time is up, idle slabs that nobody at home can use, and ids that nothing bears."""
        for member in self._state.processes:
            if member.state is State.ORPHANED and member.free_at is not None and now >= member.free_at:
                self._free_all(member, now)
                self._watch.forget_at_agent(member)
            elif self._never_came(member, now):
                self._exited(member, now)
        self._state.later(partial(self._clear_up, now))

    def _never_came(self, member: Member, now: float) -> bool:
        """It was attaching when the Rack MMU was started anew, and has not been heard of since."""
        is_nobody = member.kind is Kind.PROCESS and member.peer is None and not member.enrolled
        return now >= self._come_back_by and is_nobody and member.is_attached and not self._may_store(member)

    def _may_store(self, process: Member) -> bool:
        """While it runs: it has got memory. Of one that no agent watches, only its end says that it does not run."""
        shard = self._state.shard_of(process.group)
        has_some = shard.holdings(process.id)[1] > 0 or shard.inbox_depth(process.id) > 0
        return has_some or self._state.plan.in_use(process.id)

    def _clear_up(self, now: float) -> None:
        self._watch.sweep(now)
        self._state.notices.sweep()
        self._supply.sweep()
        self._names.sweep()
        for group in self._state.groups:
            self._forget_the_gone(group, now)
            if self._state.forget_group_if_over(group):
                self._names.forget(group.id)

    def _forget_the_gone(self, group: Group, now: float) -> None:
        gone = [m for m in self._state.processes if m.group == group.id and m.state is State.GONE]
        held = {number: pages for number, _, pages, _ in group.shard.usage()} if gone else {}
        for member in gone:
            if held.get(member.id):  # a sender that had looked before it was marked dead committed after it
                self._release(member, now)
            elif member.pending == 0 and member.id not in held and not self._state.plan.in_use(member.id):
                group.shard.vacate(member.id)
                self._state.processes.forget(member)
                self._state.clients.forget_answers_of(member.id)

    # --- within --------------------------------------------------------------------------------------------

    def _process_of(self, session: Session) -> Member | None:
        """The session's process, unless its id has another bearer by now."""
        process = None if session.process is None else self._state.processes.get(session.process)
        return process if process is not None and process.peer == session.peer else None

    def _attached_process(self, session: Session) -> Member:
        process = self._process_of(session)
        if process is None:
            raise Refusal("not-attached", "no process is attached through this connection")
        if process.state is State.LOST:
            text = f"process {process.name!r} was given up when its connection broke; detach, and attach anew"
            raise Refusal("not-attached", text)
        if not process.is_attached:
            raise Refusal("not-attached", f"process {process.name!r} is not attached any more")
        return process
