"""What the command line asks: who is here, who owns what, and whether the books agree.

Answers that may be long come in pages, each bounded in bytes by the packet. What has to look through a whole table,
which may have millions of extents, is done beside all else (`LookThrough`): the table is shared memory, and changes
under whoever looks. So an audit that has found something is done once more with nobody else served, lest it blame what
was only on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from bequest._core import STATE_FREE, STATE_FROZEN, STATE_IN_FLIGHT, STATE_THAWING
from bequest.limits import (
    AUDIT_FINDINGS_MAX,
    MMU_ID,
    PAGE_BYTES,
    REPORT_BYTES_MAX,
    SLAB_RUNS_MAX,
    TABLE_VERSION,
    WIRE_VERSION,
)
from bequest.protocol.capabilities import TheftBook
from bequest.protocol.outputs import LookThrough, PeerId
from bequest.protocol.process_table import Member
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard, SlabSummary
from bequest.protocol.slab_ledger import Slab, SlabState
from bequest.wire import messages as wire

_PROCESS_REPORT_BYTES = 600  # no report of one process is longer
_SLAB_STATUS_BYTES = 500
_SLAB_RUN_BYTES = 50
_OWNER_BYTES = 10


_LOOKS = ("slabs", "audit")


class Found(msgspec.Struct):
    """By `look_through`."""

    summaries: list[SlabSummary] = []
    problems: dict[int, list[str]] = {}  # by group


def look_through(shards: Mapping[int, Shard], asked: LookThrough) -> Found:
    """On any thread."""
    found = Found()
    for group, slabs in asked.slabs.items():
        if asked.question.what == "slabs":
            found.summaries += shards[group].summaries(slabs, SLAB_RUNS_MAX) if slabs else []
        else:
            found.problems[group] = shards[group].audit()
    return found


class StatusDesk:
    def __init__(self, state: RackState, thefts: TheftBook, started: float) -> None:
        self._state = state
        self._thefts = thefts
        self._started = started

    def ask(self, peer: PeerId, question: wire.Status, now: float) -> None:
        """The answer may come later."""
        if question.what in _LOOKS:
            self._state.outputs.append(self._look(peer, question))
        else:
            self._state.reply(peer, self._report(question, now))

    def found(self, asked: LookThrough, found: Found) -> None:
        report = self._slabs(asked, found) if asked.question.what == "slabs" else self._audit(found)
        self._state.reply(asked.peer, report)

    def _report(self, question: wire.Status, now: float) -> wire.Message:
        answers: dict[str, Callable[[], wire.Message]] = {
            "rack": lambda: self._rack(now),
            "processes": lambda: self._processes(question.cursor, now),
            "elements": self._elements,
            "thefts": lambda: self._thefts.report(question.cursor, now),
        }
        if question.what not in answers:
            known = ", ".join((*answers, *_LOOKS))
            raise Refusal("config", f"no report {question.what!r}; there are {known}")
        return answers[question.what]()

    def _rack(self, now: float) -> wire.RackReport:
        state = self._state
        config = state.config
        return wire.RackReport(
            name=config.name,
            uid=config.uid,
            daemons=list(state.daemons.values()),
            uptime=now - self._started,
            policy=config.policy,
            orphan_keep=config.orphan_keep,
            embedded=config.linger is not None,
            wire_version=WIRE_VERSION,
            table_version=TABLE_VERSION,
            groups=[group.name for group in state.groups][:AUDIT_FINDINGS_MAX],
            computes=state.processes.load(config.computes),
            clients=len(state.sessions),
            slabs=sum(slab.state is SlabState.LIVE for slab in state.ledger),
            extents=sum(extents for group in state.groups for _, extents, _, _ in group.shard.usage()),
            slab_bytes=sum(state.ledger.used(element) for element in state.elements),
        )

    # --- processes -----------------------------------------------------------------------------------------

    def _processes(self, cursor: int, now: float) -> wire.ProcessList:
        """In the order of ids; the cursor is the first id to report."""
        state = self._state
        members = sorted((m for m in state.processes if m.id >= cursor), key=lambda member: member.id)
        room = REPORT_BYTES_MAX // _PROCESS_REPORT_BYTES
        usage = {
            (group.id, number): (extents, pages, free)
            for group in state.groups
            for number, extents, pages, free in group.shard.usage()
        }
        reports = [
            self._process(member, usage.get((member.group, member.id), (0, 0, 0)), now)
            for member in members[:room]
        ]
        return wire.ProcessList(reports, members[room].id if len(members) > room else None)

    def _process(self, member: Member, held: tuple[int, int, int], now: float) -> wire.ProcessReport:
        group = self._state.groups[member.group]
        extents, pages, free = held
        return wire.ProcessReport(
            id=member.id,
            name=member.name,
            group=group.name,
            compute=member.compute,
            os_pid=member.os_pid,
            state=member.state.value,
            kind=member.kind.value,
            extents=extents,
            owned_bytes=pages * PAGE_BYTES,
            free_bytes=free * PAGE_BYTES,
            inbox_depth=group.shard.inbox_depth(member.id),
            counters=group.shard.counters(member.id),
            freed_in=None if member.free_at is None else max(0.0, member.free_at - now),
        )

    # --- memory --------------------------------------------------------------------------------------------

    def _elements(self) -> wire.ElementList:
        state = self._state
        counts = dict.fromkeys(state.elements, 0)
        failed = dict.fromkeys(state.elements, 0)
        for slab in state.ledger:
            if slab.state is not SlabState.GHOST:
                counts[slab.element] += 1
                failed[slab.element] += _failed_bytes(slab)
        return wire.ElementList(
            [
                wire.ElementStatus(
                    id=element.id,
                    name=element.name,
                    kind=element.kind,
                    size=element.size,
                    used=state.ledger.used(element.id),
                    free=state.free_bytes(element.id),
                    slabs=counts[element.id],
                    usage=state.usage[element.id],
                    state=self._health(element.id),
                    failed=failed[element.id],
                )
                for element in state.elements.values()
            ]
        )

    def _health(self, element: int) -> str:
        if element in self._state.failed_elements:
            return "failed"
        return "silent" if element in self._state.silent_elements else "well"

    def _look(self, peer: PeerId, question: wire.Status) -> LookThrough:
        """What has to be looked through for this question."""
        slabs: dict[int, list[int]] = {group.id: [] for group in self._state.groups}
        if question.what == "slabs":
            for slab in self._live_from(question.cursor)[: REPORT_BYTES_MAX // _SLAB_STATUS_BYTES]:
                slabs[slab.group].append(slab.id)
        return LookThrough(peer, question, slabs)

    def _live_from(self, cursor: int) -> list[Slab]:
        live = [slab for slab in self._state.ledger if slab.state is SlabState.LIVE and slab.id >= cursor]
        return sorted(live, key=lambda slab: slab.id)

    def _slabs(self, asked: LookThrough, found: Found) -> wire.SlabList:
        """In the order of slab ids; the cursor is the first id to report. What has come meanwhile: on a later page."""
        summaries = {summary[0]: summary for summary in found.summaries}
        reports: list[wire.SlabStatus] = []
        room = REPORT_BYTES_MAX
        for slab in self._live_from(asked.question.cursor):
            if slab.id not in asked.slabs[slab.group]:
                return wire.SlabList(reports, slab.id)
            summary = summaries.get(slab.id)
            if summary is None:  # its table does not have it: an audit says so
                continue
            report = self._slab(slab, summary)
            room -= (
                _SLAB_STATUS_BYTES + _SLAB_RUN_BYTES * len(report.runs) + _OWNER_BYTES * len(report.owners)
            )
            if reports and room < 0:
                return wire.SlabList(reports, slab.id)
            reports.append(report)
        return wire.SlabList(reports)

    def _slab(self, slab: Slab, summary: SlabSummary) -> wire.SlabStatus:
        state = self._state
        _, extents, free_pages, free_runs, largest_free_run, owners, runs = summary
        return wire.SlabStatus(
            slab=slab.id,
            group=state.groups[slab.group].name,
            element=state.elements[slab.element].name,
            home=slab.home,
            address=slab.address,
            pages=slab.pages,
            huge=slab.huge,
            extents=extents,
            free_pages=free_pages,
            free_runs=free_runs,
            largest_free_run=largest_free_run,
            owners=owners,
            runs=[wire.SlabRun(pages, _state_name(code, owner), owner) for pages, code, owner in runs],
            failed=_failed_bytes(slab),
        )

    # --- audit ---------------------------------------------------------------------------------------------

    def _audit(self, found: Found) -> wire.AuditReport:
        state = self._state
        findings: list[str] = []
        slabs = 0
        for group in state.groups:
            if found.problems.get(group.id):
                findings += [f"group {group.name!r}: {problem}" for problem in group.shard.audit()]
            recorded = sorted(number for number, *_ in group.shard.slabs())
            known = sorted(s.id for s in state.ledger if s.group == group.id and s.state is SlabState.LIVE)
            slabs += len(recorded)
            if recorded != known:
                findings.append(f"group {group.name!r}: the table has slabs {recorded}, the Rack MMU {known}")
        return wire.AuditReport(
            [line[:200] for line in findings[:AUDIT_FINDINGS_MAX]], len(state.groups), slabs
        )


def _failed_bytes(slab: Slab) -> int:
    """Runs may have failed twice."""
    total = end = 0
    for offset, nbytes in sorted(slab.failed):
        total += max(0, offset + nbytes - max(offset, end))
        end = max(end, offset + nbytes)
    return total


def _state_name(state: int, owner: int) -> str:
    if state == STATE_FREE:
        return "free"
    if state == STATE_IN_FLIGHT:
        return "in-flight"
    if state in (STATE_FROZEN, STATE_THAWING):
        return "frozen"
    return "away" if owner == MMU_ID else "owned"
