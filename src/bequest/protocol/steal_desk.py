"""Stealing: memory is taken from a process that crashed, hangs or straggles (paper, section 3.1).

    check ─> resolve the victim ─┬─ the kernel has said that it is dead ──────────────────────> take all, once ─> reply
                                 └─ it may run ─> list ─> fence ─> take ─> list ─> fence ─> … until nothing is new

Fencing comes before anything changes hands: the victim's agent sees to it that no store of the victim reaches the pages
any more (`wire.FenceProcess`), or proves that it is dead. Only then are the owner words changed, exactly those that
were listed: a word that has moved on since, because the victim granted or freed the extent, is left alone.
`Shard.steal` is the commit point of each extent.

A victim that runs may have been opening pages while it was fenced; it looks at its words once it has. So what was taken
is *in doubt* until it has been fenced once more, and only then is the thief told. The same pass looks for what the
victim has allocated meanwhile, a bounded number of times. If that fence fails, so does the steal: the thief owns what
it may not touch, and gets it by asking again, since doubts are kept until a fence ends them or the victim does.

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
    PAGE_BYTES,
    STEAL_PASSES_MAX,
    STEAL_SELECTION_MAX,
)
from bequest.protocol.address_plan import Run
from bequest.protocol.books import Row
from bequest.protocol.capabilities import (
    Attempt,
    TheftBook,
    WrongCapability,
    WrongTries,
    check_capability,
    check_heir,
)
from bequest.protocol.clients import Caller, Session
from bequest.protocol.groups import Group
from bequest.protocol.namespace import Namespace
from bequest.protocol.outputs import Note, ToAgent
from bequest.protocol.process_table import Kind, Member, State
from bequest.protocol.rack_state import RackState
from bequest.protocol.refusal import Refusal
from bequest.protocol.shard import Shard
from bequest.wire import messages as wire

Bearer = tuple[int, int]  # an id, and the life of it that is meant


class Doubt(Row):
    """These thieves may own what this victim has not been kept from for good. Written down before they do."""

    victim: int
    incarnation: int
    thieves: tuple[Bearer, ...]


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
    unfenced: list[Run] = msgspec.field(default_factory=list)  # ranges that the agent has yet to be told
    fence: int | None = None  # the number of the fence that is waited for
    fencing: list[Run] = msgspec.field(default_factory=list)  # what that one is to fence
    deadline: float = 0.0

    def went(self, how: str) -> None:
        self.how = max(self.how, how, key=_HOWS.index)


class StealDesk:
    def __init__(self, state: RackState, names: Namespace, died: Callable[[Member, float], None]) -> None:
        self._state = state
        self._names = names
        self._died = died  # what is to happen when an agent has proved a victim's death
        self._tries = WrongTries(state.books)
        self.book = TheftBook(state.books)
        self._queues: dict[int, deque[StealJob]] = {}  # by victim; the first is under way
        self._doubts: dict[Bearer, list[Run]] = {}  # by victim: taken, and not fenced since
        self._doubtful = state.books.open("doubts", Doubt, int)  # by the victim's incarnation
        self._fences: dict[int, StealJob] = {}

    def restore(self) -> None:
        """What a run of the Rack MMU before this one left half done: everything that its thieves own is in doubt."""
        for attempt in self.book.under_way():
            self.book.fail(attempt, Refusal("fence", "the Rack MMU was started anew meanwhile"))
        for doubt in self._doubtful:
            victim = self._state.processes.exact(doubt.victim, doubt.incarnation)
            if victim is None or victim.state not in (State.ATTACHED, State.LOST):
                self._doubtful.remove(doubt.incarnation)
                continue
            thieves = [self._state.processes.exact(*thief) for thief in doubt.thieves]
            owned = [row for thief in thieves if thief for row in self._shard(thief).stealable(thief.id)]
            self._doubts[doubt.victim, doubt.incarnation] = [
                (address, address + pages * PAGE_BYTES) for _, _, address, pages in owned
            ]

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
        """Who is meant: of the dead of this name the first who has left anything; else the living; else the dead.

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
        candidates = [*filter(self._has_left_something, dead), *attached, *reversed(dead)]
        if candidates:
            return candidates[0]
        if own:
            raise Refusal("dead", f"{message.victim!r} has gone, and its memory has been freed")
        which = "" if message.incarnation is None else f" of incarnation {message.incarnation}"
        raise Refusal("unknown", f"no process {message.victim!r}{which} is known in this rack")

    def _has_left_something(self, member: Member) -> bool:
        shard = self._shard(member)
        return shard.holdings(member.id)[1] > 0 or shard.inbox_depth(member.id) > 0

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
        while queue and queue[0].fence is None:
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

    def _advance(self, job: StealJob, now: float) -> bool:
        """One pass; whether the job is over with it."""
        victim = job.victim
        if job.passes == 0 and not job.thief.is_attached:
            raise Refusal("dead", f"{job.thief.name!r} has gone before it could steal")
        if victim.state is State.GONE and job.attempt.extents == 0:
            raise Refusal("dead", f"{victim.name!r} has detached, and its memory is freed")
        if victim.state in (State.ATTACHED, State.LOST) and victim is not job.thief:
            doubts = self._doubts.get(_life(victim), [])
            listed = self._list(job) if job.passes < STEAL_PASSES_MAX else []
            if listed or doubts:
                self._fence(job, listed, doubts, now)
                return False
        elif victim.state is not State.GONE:
            job.went("self" if victim is job.thief else "dead")
            self._take(job, [(descriptor, word) for descriptor, word, _, _ in self._list(job)])
        self._conclude(job)
        return True

    def _list(self, job: StealJob) -> list[tuple[int, int, int, int]]:
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

    def _fence(
        self, job: StealJob, listed: list[tuple[int, int, int, int]], doubts: list[Run], now: float
    ) -> None:
        job.passes += 1
        job.listed = [(descriptor, word) for descriptor, word, _, _ in listed]
        runs = [(address, address + pages * PAGE_BYTES) for _, _, address, pages in listed]
        job.unfenced = _joined(runs + doubts)
        self._doubt(job)
        self._tell_agent(job, now)

    def _tell_agent(self, job: StealJob, now: float) -> None:
        job.fencing, job.unfenced = job.unfenced[:FENCE_RANGES_MAX], job.unfenced[FENCE_RANGES_MAX:]
        job.deadline = now + FENCE_TIMEOUT
        self._ask_for_fence(job)

    def _ask_for_fence(self, job: StealJob) -> None:
        job.fence = self._state.books.counter("fence").next()
        self._fences[job.fence] = job
        victim = job.victim
        ranges = [(start, end - start) for start, end in job.fencing]
        reach = self._state.groups[victim.group].rules.fence
        hinted = victim.is_hinted_dead or victim.state is State.LOST
        fence = wire.FenceProcess(job.fence, victim.id, victim.incarnation, reach, ranges, hinted)
        self._state.outputs.append(ToAgent(victim.compute, fence))

    # --- what agents say -------------------------------------------------------------------------------------

    def fenced(self, number: int, how: str, now: float) -> None:
        job = self._fences.pop(number, None)
        if job is None:  # it has been decided without
            return
        job.fence = None
        job.went(how)
        victim = job.victim
        if how in ("dead", "killed") and victim.state in (State.ATTACHED, State.LOST):
            self._died(victim, now)  # which calls victim_died, once its last steps are settled
            return
        victim.is_hinted_dead = False  # its agent has looked
        if job.unfenced:
            self._tell_agent(job, now)
        else:
            self.forget(victim)
            if victim.state in (State.ATTACHED, State.LOST):
                # Also if there is nothing to take, as after the last fence: the victim has to look at its memory once
                # more, or the fence would stay where it gets other memory one day.
                taken = self._take(job, job.listed)
                if taken:
                    self._doubts[_life(victim)] = taken
                    self._doubt(job)
        self._drive(victim, now)

    def agent_linked(self, compute: str) -> None:
        """What it was asked for before may be lost, and so may its answers: it is asked again."""
        for number, job in list(self._fences.items()):
            if job.victim.compute == compute:
                del self._fences[number]
                self._ask_for_fence(job)

    def fence_failed(self, number: int, message: str, now: float) -> None:
        job = self._fences.pop(number, None)
        if job is None:
            return
        job.fence = None
        self._fail(job, Refusal("fence", f"{job.victim.name!r} could not be fenced: {message}"))
        self._queues[job.victim.id].popleft()
        self._hold(job.thief, job.victim, -1)
        self._drive(job.victim, now)

    def victim_died(self, victim: Member, now: float) -> None:
        """The kernel's word on a victim: no fence needs to be waited for any more."""
        self.forget(victim)
        queue = self._queues.get(victim.id)
        if not queue:
            return
        job = queue[0]
        if job.fence is not None:
            del self._fences[job.fence]
            job.fence = None
        self._drive(victim, now)

    def forget(self, victim: Member) -> None:
        """Nothing is left of it to be in doubt about."""
        self._doubts.pop(_life(victim), None)
        if victim.incarnation in self._doubtful:
            self._doubtful.remove(victim.incarnation)

    def _doubt(self, job: StealJob) -> None:
        """From now on, its thief may own what its victim has not been fenced off (once more) since."""
        victim, thief = job.victim, _life(job.thief)
        known = self._doubtful.get(victim.incarnation)
        thieves = () if known is None else known.thieves
        if thief not in thieves:
            doubt = Doubt(victim.id, victim.incarnation, (*thieves, thief))
            self._doubtful.put(victim.incarnation, doubt)

    def tick(self, now: float) -> None:
        for number, job in list(self._fences.items()):
            if now >= job.deadline:
                self.fence_failed(number, f"its agent did not answer within {FENCE_TIMEOUT:.0f} s", now)

    def next_deadline(self) -> float:
        return min((job.deadline for job in self._fences.values()), default=float("inf"))

    # --- the end ---------------------------------------------------------------------------------------------

    def _take(self, job: StealJob, extents: list[tuple[int, int]]) -> list[Run]:
        """Where what was got lies."""
        victim, thief = job.victim, job.thief
        taken = self._shard(victim).steal(extents, victim.id, thief.id)
        runs = [(address, address + pages * PAGE_BYTES) for _, _, address, pages in taken]
        job.attempt.extents += len(taken)
        job.attempt.nbytes += sum(end - start for start, end in runs)
        job.listed = []
        if thief.state is State.GONE:  # it detached after its victim was fenced
            self._shard(thief).release(thief.id)
        return runs

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


def _life(member: Member) -> Bearer:
    return member.id, member.incarnation


def _overlaps(extent: tuple[int, int, int, int], run: Run) -> bool:
    _, _, address, pages = extent
    return address < run[1] and run[0] < address + pages * PAGE_BYTES


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbours as one, in order."""
    joined: list[Run] = []
    for start, end in sorted(runs):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
