"""Stealing: memory is taken from a process that crashed, hangs or straggles (paper, section 3.1).

    check ─> resolve the victim ─┬─ the kernel has said that it is dead ──────────────────────> take all, once ─> reply
                                 └─ it may run ─> list ─> fence ─> take ─> list ─> fence ─> … until nothing is new

Fencing comes before anything changes hands: the victim's agent sees to it that no store of the victim reaches the pages
any more (`wire.FenceProcess`), or proves that it is dead. Only then are the owner words changed, exactly those that
were listed: a word that has moved on since, because the victim granted or freed the extent, is left alone.
`Shard.steal` is the commit point of each extent.

A victim that runs may have been opening pages while it was fenced; it looks at its words once it has. So what was
taken is *in doubt* until it has been fenced once more, and only then is the thief told. That fence would come too
early while a thread of the victim is between its look at a word and the opening of the pages: by ptrace it waits
until none is (`Shard.is_opening`), though not for ever, since the victim may be stopped there; such a thread closes
what it has opened as soon as it has looked again. What is write-protected stays so. The same pass looks for what the
victim has allocated meanwhile, a bounded number of times. If that fence fails, so does the steal: the thief owns what
it may not touch, and gets it by asking again, since doubts are kept until a fence ends them or the victim does
(`doubts.py`). Who steals from that thief waits for such a fence, too, and so does the freeing of what the thief has
left. Whenever a fence has come to nothing, or may have hit what is the victim's own, the victim is made to look at
its memory, and fences are lifted from what is its own (`lifts.py`). Where it touches what ptrace has closed before
that, it gets `MemoryRevoked`.

Before the first fence a refusal changes nothing. After it the steal is carried out for the thief even if the thief has
gone meanwhile: the memory is then the dead thief's, and can be stolen in turn, while a victim that was fenced for
nothing could neither use its memory nor learn why.

Thieves of one victim wait for each other, so that exactly one gets each extent. Names need not be moved: the namespace
asks the table who owns what (`namespace.py`). A thief that takes all from a dead process becomes its *heir*: it may
empty the inbox, of which the dead would have been the only reader.

A process may steal from itself; the paper would let it crash. Nothing is fenced then, since the thief may touch what it
steals: its old handles are spent, and the estate has new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from bequest.limits import (
    FENCE_RANGES_MAX,
    FENCE_TIMEOUT,
    OPENING_LOOK_INTERVAL,
    OPENING_PATIENCE,
    PAGE_BYTES,
    STEAL_PASSES_MAX,
    STEAL_SELECTION_MAX,
)
from bequest.protocol.address_plan import Run
from bequest.protocol.capabilities import (
    Attempt,
    TheftBook,
    WrongCapability,
    WrongTries,
    check_capability,
    check_heir,
)
from bequest.protocol.clients import Caller, Session
from bequest.protocol.doubts import Doubts, Listed, joined, runs_of, writable
from bequest.protocol.groups import Group
from bequest.protocol.lifts import EVERYWHERE, Lifts
from bequest.protocol.namespace import Namespace
from bequest.protocol.outputs import Note, ToAgent
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard
from bequest.wire import messages as wire

_HOWS = ("untouched", "self", "protected", "ptraced", "dead", "killed")  # each says more than those before it


class StealJob(msgspec.Struct):
    """One steal on its way."""

    caller: Caller
    thief: Member
    victim: Member
    selection: list[Run] | None  # None: everything
    attempt: Attempt
    how: str = "untouched"
    passes: int = 0
    listed: list[tuple[int, int]] = msgspec.field(
        default_factory=list
    )  # (descriptor, word): what is being fenced
    is_waiting: bool = False  # for a fence

    def went(self, how: str) -> None:
        self.how = max(self.how, how, key=_HOWS.index)


class Fence(msgspec.Struct):
    """A process that is being kept from ranges of memory."""

    target: Member
    job: StealJob | None  # that waits for it; None: the memory is to be freed
    doubts: list[Run]  # that end with it
    rest: list[Run]  # that its agent has yet to be told of
    ranges: list[Run] = msgspec.field(default_factory=list)  # that the agent has been told of
    deadline: float = 0.0
    held_until: float | None = None  # at the latest, while its target is opening memory


class StealDesk:
    def __init__(self, state: RackState, names: Namespace, died: Callable[[Member, float], None]) -> None:
        self._state = state
        self._names = names
        self._died = died  # what is to happen when an agent has proved a victim's death
        self._tries = WrongTries(state.books)
        self.book = TheftBook(state.books)
        self._queues: dict[int, deque[StealJob]] = {}  # by victim; the first is under way
        self._doubts = Doubts(state)
        self._lifts = Lifts(state)
        self._fences: dict[int, Fence] = {}
        self._look_at = 0.0  # at whom a fence is held for
        self._given_up: dict[int, Fence] = {}  # that may yet come, though nobody waits for them any more

    def restore(self, now: float) -> None:
        """What a run of the Rack MMU before this one left half done. Its victims may still be about to be fenced."""
        for attempt in self.book.restored():
            self.book.fail(attempt, Refusal("fence", "the Rack MMU was started anew meanwhile"))
        for victim in self._doubts.restore():
            self._lifts.fenced(victim, [EVERYWHERE])
            self._clear(victim, None, now)

    # --- the request -----------------------------------------------------------------------------------------

    def start(self, session: Session, thief: Member, message: wire.Steal, now: float) -> None:
        group = self._state.groups[thief.group]
        before = self.book.repeated(session, thief)
        attempt = self.book.open(session, thief, group, message.victim, now)
        self._check_tries(session, group, attempt, now)
        try:
            check_capability(group, message.capability)
            victim = self._victim(thief, message, before)
            attempt.pid, attempt.incarnation = victim.id, victim.incarnation
            check_heir(group, victim, thief)
            selection = self._selection(thief, victim, message.only)
        except Refusal as refusal:
            self._refuse(session, group, attempt, refusal, now)
            raise
        self._hold(thief, victim, 1)
        caller = self._state.clients.caller(session)
        self._state.clients.await_answer(caller)
        self._queues.setdefault(victim.id, deque()).append(
            StealJob(caller, thief, victim, selection, attempt)
        )
        self._state.later(partial(self._drive, victim, now))

    def check_standby(
        self, session: Session, thief: Member, name: str, victim: Member | None, capability: bytes, now: float
    ) -> None:
        """Raises `Refusal` if it would not open that process's memory. Guesses count, and are in the book."""
        group = self._state.groups[thief.group]
        attempt = self.book.open(session, thief, group, name, now)
        self._check_tries(session, group, attempt, now)
        try:
            check_capability(group, capability)
            if victim is not None:
                attempt.pid, attempt.incarnation = victim.id, victim.incarnation
                check_heir(group, victim, thief)
        except Refusal as refusal:
            self._refuse(session, group, attempt, refusal, now)
            raise
        self.book.withdraw(attempt)

    def _refuse(self, session: Session, group: Group, attempt: Attempt, refusal: Refusal, now: float) -> None:
        if isinstance(refusal, WrongCapability):
            self._tries.count(session, group, now)
        if self.book.refuse(attempt, refusal):
            self._note(attempt)

    def _check_tries(self, session: Session, group: Group, attempt: Attempt, now: float) -> None:
        try:
            self._tries.check(session, group, now)
        except Refusal as refusal:
            if self.book.refuse(attempt, refusal, "barred"):
                self._note(attempt)
            raise

    def _victim(self, thief: Member, message: wire.Steal, before: Attempt | None) -> Member:
        """Who is meant: of the dead of this name the first who has left what can be taken; then the living.

        Whoever repeats a request means the victim that it meant before.
        """
        bearers = [
            member
            for member in self._state.processes
            if member.kind is Kind.PROCESS
            and member.name == message.victim
            and message.incarnation in (None, member.incarnation)
            and (before is None or before.pid in (0, member.id))
            and (before is None or before.incarnation in (0, member.incarnation))
        ]
        own = [member for member in bearers if member.group == thief.group]
        if bearers and not own:
            raise Refusal(
                "capability", f"{message.victim!r} is in another group; memory is stolen within a group only"
            )
        dead = [member for member in own if member.state in (State.ORPHANED, State.LOST)]
        dead.sort(key=lambda member: member.incarnation)
        attached = [member for member in own if member.is_attached]
        if len(dead) + len(attached) == 1:
            return (dead or attached)[0]
        candidates = [*filter(self._has_left_something, dead), *attached, *reversed(dead)]
        if candidates:
            return candidates[0]
        if own:
            raise Refusal("dead", f"{message.victim!r} has gone, and its memory has been freed")
        which = "" if message.incarnation is None else f" of incarnation {message.incarnation}"
        raise Refusal("unknown", f"no process {message.victim!r}{which} is known in this rack")

    def _has_left_something(self, member: Member) -> bool:
        shard = self._shard(member)
        return bool(shard.stealable(member.id)) or shard.inbox_depth(member.id) > 0

    def _selection(self, thief: Member, victim: Member, only: list[str | int] | None) -> list[Run] | None:
        """The runs of addresses that are meant. What the thief has already is left out, so that it may ask again."""
        if only is None:
            return None
        if len(only) > STEAL_SELECTION_MAX:
            raise Refusal("size", f"at most {STEAL_SELECTION_MAX} paths and addresses are stolen at once")
        selection: list[Run] = []
        for item in only:
            run, owner = self._place(thief, item)
            if owner == victim.id:
                selection.append(run)
            elif owner != thief.id:
                what = item if isinstance(item, str) else f"{item:#x}"
                raise Refusal("not-owner", f"{what} is not in memory of {victim.name!r}")
        return selection

    def _place(self, thief: Member, item: str | int) -> tuple[Run, int]:
        """Where that is, and whose."""
        if isinstance(item, str):
            name, owner = self._names.find(thief.group, item)
            return (name.address, name.address + name.nbytes), owner.id
        extent = self._shard(thief).find_extent(item, 0) if 0 <= item < 1 << 64 else None
        return (item, item + 1), 0 if extent is None else extent[4]

    # --- the job ---------------------------------------------------------------------------------------------

    def _drive(self, victim: Member, now: float) -> None:
        """Carries out what waits for this victim, until something has to be waited for."""
        queue = self._queues.get(victim.id)
        while queue and not queue[0].is_waiting:
            job = queue[0]
            try:
                over = self._advance(job, now)
            except Refusal as refusal:
                self._fail(job, refusal)
                over = True
            if over:
                queue.popleft()
                self._hold(job.thief, victim, -1)
        if not queue:
            self._queues.pop(victim.id, None)
            self._lift(victim)

    def _advance(self, job: StealJob, now: float) -> bool:
        """One pass; whether the job is over with it."""
        victim = job.victim
        if job.passes == 0 and not job.thief.is_attached:
            raise Refusal("dead", f"{job.thief.name!r} has gone before it could steal")
        if victim.state is State.GONE and job.attempt.extents == 0:
            raise Refusal("dead", f"{victim.name!r} has detached, and its memory is freed")
        if _runs_on(victim) and victim is not job.thief:
            doubts = self._doubts.of(victim)
            listed = self._list(job) if job.passes < STEAL_PASSES_MAX else []
            if listed or doubts:
                if not self._clears_first(job, listed, now):
                    self._fence(job, listed, doubts, now)
                return False
        elif victim.state is not State.GONE:
            listed = self._list(job)
            if self._clears_first(job, listed, now):
                return False
            job.went("self" if victim is job.thief else "dead")
            self._take(job, [(descriptor, word) for descriptor, word, _, _ in listed])
        self._conclude(job)
        return True

    def _clears_first(self, job: StealJob, listed: list[Listed], now: float) -> bool:
        """Whether there is somebody else to be fenced: from whom the victim has taken this, and who may store there."""
        other = self._doubts.over(runs_of(listed), besides=(job.victim, job.thief))
        if other is not None:
            self._clear(other, job, now)
        return other is not None

    def _list(self, job: StealJob) -> list[Listed]:
        """What is the victim's and to be taken."""
        if job.selection is None:
            return self._shard(job.victim).stealable(job.victim.id)
        ranges = [(start, end - start) for start, end in job.selection]
        listed = self._shard(job.victim).stealable(job.victim.id, ranges)
        if job.passes == 0:
            for run in job.selection:
                if not any(_overlaps(extent, run) for extent in listed):
                    why = "it was allocated so, or is not accepted yet, or free"
                    raise Refusal("capability", f"the memory at {run[0]:#x} cannot be stolen: {why}")
        return listed

    # --- fences ----------------------------------------------------------------------------------------------

    def _fence(self, job: StealJob, listed: list[Listed], doubts: list[Run], now: float) -> None:
        job.passes += 1
        job.listed = [(descriptor, word) for descriptor, word, _, _ in listed]
        job.is_waiting = True
        self._doubts.may_arise(job.victim, job.thief)
        self._tell_agent(Fence(job.victim, job, doubts, joined(runs_of(writable(listed)) + doubts)), now)

    def _clear(self, victim: Member, job: StealJob | None, now: float) -> None:
        """Ends the doubts about a victim."""
        doubts = self._doubts.of(victim)
        if job is not None:
            job.is_waiting = True
        self._tell_agent(Fence(victim, job, doubts, joined(doubts)), now)

    def may_be_freed(self, process: Member, now: float) -> bool:
        """If not, somebody is being fenced who might store into its memory; ask again later."""
        listed = self._shard(process).stealable(process.id)
        other = self._doubts.over(runs_of(listed), besides=(process,))
        if other is None:
            return True
        if not any(fence.target is other and fence.job is None for fence in self._fences.values()):
            self._clear(other, None, now)
        return False

    def _tell_agent(self, fence: Fence, now: float) -> None:
        fence.ranges, fence.rest = fence.rest[:FENCE_RANGES_MAX], fence.rest[FENCE_RANGES_MAX:]
        fence.deadline = now + FENCE_TIMEOUT
        if fence.doubts and self._is_opening(fence):
            fence.held_until = now + OPENING_PATIENCE
        self._ask_for_fence(fence)

    def _is_opening(self, fence: Fence) -> bool:
        """Whether its target may undo it; write protection stays, whatever is opened."""
        is_protected = fence.job is not None and fence.job.how == "protected"
        return not is_protected and self._shard(fence.target).is_opening(fence.target.id)

    def _ask_for_fence(self, fence: Fence) -> None:
        number = self._state.books.counter("fence").next()
        self._fences[number] = fence
        target = fence.target
        if fence.held_until is not None:
            return
        self._lifts.fenced(target, fence.ranges)
        ranges = [(start, end - start) for start, end in fence.ranges]
        reach = self._state.groups[target.group].rules.fence
        hinted = target.is_hinted_dead or target.state is State.LOST
        message = wire.FenceProcess(number, target.id, target.incarnation, reach, ranges, hinted)
        self._state.outputs.append(ToAgent(target.compute, message))

    # --- what agents say -------------------------------------------------------------------------------------

    def agent_message(
        self, message: wire.ProcessFenced | wire.FenceFailed | wire.FenceLifted, now: float
    ) -> None:
        match message:
            case wire.ProcessFenced(job, how):
                self._fenced(job, how, now)
            case wire.FenceFailed(job, text):
                self._fence_failed(job, text, now)
            case wire.FenceLifted(job):
                self._lifts.lifted(job)

    def _fenced(self, number: int, how: str, now: float) -> None:
        fence = self._fences.get(number)
        if fence is None:  # it has been decided without
            self._came_late(number)
            return
        target, job = fence.target, fence.job
        if job is not None and job.victim is target:
            job.went(how)
        if how in ("dead", "killed") and _runs_on(target):
            self._died(target, now)  # which calls victim_died, once its last steps are settled
            return
        del self._fences[number]
        target.is_hinted_dead = False  # its agent has looked
        if fence.rest:
            self._tell_agent(fence, now)
            return
        if job is None or job.victim is not target:
            self._doubts.end(target, fence.doubts, may_more_arise=target.id in self._queues)
            self._have_look(target)  # some of it may be its own again
            self._lift(target)
            self._go_on(job, now)
            return
        self._doubts.end(target, fence.doubts, may_more_arise=False)
        if _runs_on(target):
            # Also if there is nothing to take, as after the last fence: the victim has to look at its memory once
            # more, or the fence would stay where it gets other memory one day.
            taken = self._take(job, job.listed)
            if taken:
                self._doubts.may_arise(target, job.thief)
                self._doubts.arise(target, taken)
        self._go_on(job, now)

    def _go_on(self, job: StealJob | None, now: float) -> None:
        """It need not wait any more."""
        if job is not None:
            job.is_waiting = False
            self._drive(job.victim, now)

    def agent_linked(self, compute: str) -> None:
        """What it was asked for before may be lost, and so may its answers: it is asked again."""
        for number, fence in list(self._fences.items()):
            if fence.target.compute == compute:
                del self._fences[number]
                self._ask_for_fence(fence)
        for number, fence in list(self._given_up.items()):
            if fence.target.compute == compute:
                self._came_late(number)
        for target in self._lifts.agent_linked(compute):
            self._lift(target)

    def _fence_failed(self, number: int, message: str, now: float) -> None:
        fence = self._fences.pop(number, None)
        if fence is None:
            self._came_late(number)
            return
        target, job = fence.target, fence.job
        self._have_look(target)  # a part of it may have been fenced
        self._lift(target)
        text = f"{target.name!r} could not be fenced: {message}"
        if job is None:
            self._state.outputs.append(Note(text, trouble=True))
            return
        if target is not job.victim:
            text = f"{text}; it might still store into what {job.victim.name!r} has taken from it"
            if not _runs_on(target):
                self._go_on(job, now)
                return
        self._fail(job, Refusal("fence", text))
        self._queues[job.victim.id].popleft()
        self._hold(job.thief, job.victim, -1)
        self._drive(job.victim, now)

    def _came_late(self, number: int) -> None:
        """It may have hit what has come back to its target since it was given up."""
        fence = self._given_up.pop(number, None)
        if fence is not None and _runs_on(fence.target):
            self._lifts.fenced(fence.target, fence.ranges)
            self._have_look(fence.target)
            self._lift(fence.target)

    def _have_look(self, victim: Member) -> None:
        """It looks which of its memory is still its own."""
        if _runs_on(victim):
            self._shard(victim).steal([], victim.id, victim.id)

    def _lift(self, victim: Member) -> None:
        """What lies on memory of its own, unless it is still being kept from its memory: then that comes first."""
        is_fenced = any(fence.target is victim for fence in self._fences.values())
        if victim.id not in self._queues and not is_fenced:
            self._lifts.lift(victim)

    def victim_died(self, victim: Member, now: float) -> None:
        """The kernel's word on a victim: no fence needs to be waited for any more."""
        self.forget(victim)
        waiting = [(number, fence) for number, fence in self._fences.items() if fence.target is victim]
        for number, _ in waiting:
            del self._fences[number]
        for _, fence in waiting:
            self._go_on(fence.job, now)

    def forget(self, victim: Member) -> None:
        """Nothing is left of it to be in doubt about."""
        self._doubts.forget(victim)
        self._lifts.forget(victim)

    def tick(self, now: float) -> None:
        self._look_at = now + OPENING_LOOK_INTERVAL
        for number, fence in list(self._fences.items()):
            if fence.held_until is not None:
                if now >= fence.held_until or not self._is_opening(fence):
                    del self._fences[number]
                    fence.held_until = None
                    self._ask_for_fence(fence)
            elif now >= fence.deadline:
                self._given_up[number] = fence
                self._fence_failed(number, f"its agent did not answer within {FENCE_TIMEOUT:.0f} s", now)

    def next_deadline(self) -> float:
        if any(fence.held_until is not None for fence in self._fences.values()):
            return self._look_at
        return min((fence.deadline for fence in self._fences.values()), default=float("inf"))

    # --- the end ---------------------------------------------------------------------------------------------

    def _take(self, job: StealJob, extents: list[tuple[int, int]]) -> list[Run]:
        """Where what was got lies, as far as the victim might store there."""
        victim, thief = job.victim, job.thief
        taken = self._shard(victim).steal(extents, victim.id, thief.id)
        job.attempt.extents += len(taken)
        job.attempt.nbytes += sum(end - start for start, end in runs_of(taken))
        job.listed = []
        return runs_of(writable(taken))

    def _conclude(self, job: StealJob) -> None:
        victim, attempt = job.victim, job.attempt
        attempt.outcome, attempt.how = "stolen", job.how
        self._note(attempt)
        stolen = wire.Stolen(
            pid=victim.id,
            incarnation=victim.incarnation,
            name=victim.name,
            how=job.how,
            extents=attempt.extents,
            nbytes=attempt.nbytes,
            heir=self._inherits(job),
        )
        self._state.answer(job.caller, stolen)

    def _inherits(self, job: StealJob) -> bool:
        """Makes a thief of everything the reader of what is on its way to the dead, unless another is already."""
        victim, thief = job.victim, job.thief
        if job.selection is not None or victim.state is not State.ORPHANED or not thief.is_attached:
            return False
        return self._shard(victim).name_heir(victim.id, thief.id)

    def _fail(self, job: StealJob, refusal: Refusal) -> None:
        self.book.fail(job.attempt, refusal)
        self._note(job.attempt)
        self._state.answer(job.caller, refusal.reply())

    def _note(self, attempt: Attempt) -> None:
        who = f"{attempt.thief!r} (os pid {attempt.os_pid}, user {attempt.uid}, group {attempt.group!r})"
        if attempt.outcome == "stolen":
            text = (
                f"{who} has stolen {attempt.nbytes >> 10} KiB from {attempt.victim!r}, which is {attempt.how}"
            )
        else:
            text = f"{who} could not steal from {attempt.victim!r}: {attempt.how}"
        self._state.outputs.append(Note(text, trouble=attempt.outcome != "stolen"))

    # --- within ----------------------------------------------------------------------------------------------

    def _shard(self, member: Member) -> Shard:
        return self._state.shard_of(member.group)

    def _hold(self, thief: Member, victim: Member, step: int) -> None:
        """While a steal is under way, the ids in it have no other bearer."""
        thief.pending += step
        victim.pending += step


def _runs_on(member: Member) -> bool:
    return member.state in (State.ATTACHED, State.LOST)


def _overlaps(extent: Listed, run: Run) -> bool:
    _, _, address, pages = extent
    return address < run[1] and run[0] < address + pages * PAGE_BYTES
