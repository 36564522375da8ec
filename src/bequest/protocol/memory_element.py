"""A memory element: holds pages, and guards them with a table of its own (paper, section 2).

Theory of operation. The Rack MMU reserves slabs here, each for one group. A client is given a slab's file only if it
shows the ticket of the slab's group: that is the local enforcement of what the Rack MMU has decided. A slab's memory is
a *file* (machines know files by number); making one takes long, because its pages are touched for the first time and
gathered into huge ones, so a pool of them is kept *warm* by what was asked for lately, and filled in the background.
A retired slab's file is *recycled*, still warm, but only for the group it served: old members may hold it open for
ever. The file of a slab that has been in two groups is closed.

Memory may *fail*: all of the element's, whose files are then cut to nothing, so that whoever touches them faults; or a
range of a slab, which is given up where nobody may be fooled by the zeros behind it (`protocol/memory_failure.py`).

A slab's file is *kept* (with the supervisor, which outlives this server) before the Rack MMU hears of it, until it is
closed. A server that was started anew finds these files, and on the first link the Rack MMU tells which slabs they are:
those it *adopts*. What it is not told of by the end of the announcement was retired meanwhile, and is closed; so it is
on every new link. An adopted file is never recycled: who has held it open is not known any more. Warm files die with
the server. Until the announcement ends, a client is not refused but waits.

Checksums of sealed memory are kept beside it: protocol/seal_desk.py.

Slabs, warm and recycled files together do not exceed the element's size: the slabs are promised, so the others yield.
(Only a file that is being made for the pool may, until it is made.)
"""

from __future__ import annotations

from collections.abc import Mapping

from bequest.limits import (
    POOL_BYTES_MAX,
    POOL_CLASSES,
    POOL_IDLE,
    POOL_RETRY,
    POOL_START,
    POOL_START_SECONDS,
    RECYCLED_SHARE,
)
from bequest.protocol.failed_runs import Run, lacking, merged, overlap
from bequest.protocol.held_slab import Announced, Demand, File, HeldSlab, Kind
from bequest.protocol.outputs import (
    CloseFile,
    CopyFile,
    KeepFile,
    KeptFile,
    LoseFile,
    MakeFile,
    Note,
    Output,
    PeerId,
    PunchFile,
    Reply,
    ToMmu,
)
from bequest.protocol.refusal import Refusal
from bequest.protocol.seal_desk import Checked, SealDesk, Swept
from bequest.wire import messages as wire

_Request = wire.OpenSlab | wire.SealPages | wire.VerifyPages | wire.UnsealPages
TICK_INTERVAL = 1.0
REPORT_INTERVAL = 0.1


class MemoryElement:
    def __init__(self, size: int, now: float, kept: Mapping[int, KeptFile] | None = None) -> None:
        """``kept`` are the files of an earlier server, by their numbers."""
        self._size = size
        self._pool_max = min(POOL_BYTES_MAX, size // 8)
        self._tickets: dict[bytes, int] = {}
        self._slabs: dict[int, HeldSlab] = {}
        self._slab_bytes = 0
        self._slab_huge_bytes = 0
        self._making: dict[
            int, HeldSlab | None
        ] = {}  # file -> the slab that waits for it; None: for the pool
        self._warming: dict[int, File] = {}
        self._warm: list[File] = []
        self._recycled: dict[int, list[File]] = {}  # by group
        self._demand: dict[Kind, Demand] = {}
        self._start_until = now + POOL_START_SECONDS
        self._pool_rests_until = now
        self._has_failed: str | None = None  # of what
        self._last_file = max(kept or {}, default=0)
        self._unadopted = {about.slab: File.found(file, about) for file, about in (kept or {}).items()}
        self._announced: Announced | None = Announced()  # None: it has ended
        self._held: list[tuple[PeerId, _Request]] = []
        self._jobs: dict[int, int | None] = {}  # ours -> the Rack MMU's number; None: of an earlier link
        self._last_job = 0
        self._delayed: list[wire.Message] = []
        self._last_report: wire.ElementUsage | None = wire.ElementUsage()
        self._hits = self._misses = 0
        self._outputs: list[Output] = []
        self._next_tick = now
        self._next_report = now
        self._seals = SealDesk(self._slabs, now, self._say)

    # --- inputs --------------------------------------------------------------------------------------------

    def linked(self) -> None:
        """There is a new link to the Rack MMU, which begins with all that it knows of this element."""
        self._announced = Announced()
        self._seals.linked()
        self._last_report = None
        self._jobs = dict.fromkeys(self._jobs)
        self._delayed = []

    def mmu_message(self, message: wire.Message, now: float) -> list[Output]:
        if None in self._jobs.values():
            # What was asked for on an earlier link is not undone: it might yet write over what is done now.
            self._delayed.append(message)
        else:
            self._obey(message, now)
        return self._take_outputs()

    def _obey(self, message: wire.Message, now: float) -> None:
        match message:
            case wire.ReserveSlab():
                self._reserve(message, now)
            case wire.AdoptSlab():
                self._adopt(message)
            case wire.RetireSlab(slab, recycle):
                self._retire(slab, recycle, now)
            case wire.AdmitGroup(group, ticket):
                self._tickets[ticket] = group
                if self._announced is not None:
                    self._announced.groups[group] = True
            case wire.ForgetGroup(group):
                self._forget_group(group)
            case wire.AnnouncementEnds():
                self._announcement_ends(now)
            case _:
                self._act(message)

    def _act(self, message: wire.Message) -> None:
        """On a slab that is here."""
        match message:
            case wire.RegroupSlab(slab, group):
                self._regroup(slab, group)
            case wire.CopyPages():
                self._copy(message)
            case wire.FailMemory():
                self._fail(message)
            case wire.ForgetSums():
                self._seals.forget(message)
            case wire.FlipBitOf():
                self._seals.flip(message)
            case wire.PunchPages(job, slab, offset, nbytes):
                if slab not in self._slabs:
                    self._outputs.append(ToMmu(wire.PagesPunched(job)))
                    return
                file = self._slabs[slab].file
                self._seals.punched(self._slabs[slab], (offset, nbytes))
                self._outputs.append(PunchFile(self._number(job), file.id, offset, nbytes))
            case _:
                raise AssertionError(f"the Rack MMU says {message}")

    def client_message(self, peer: PeerId, message: wire.Message) -> list[Output]:
        assert isinstance(message, _Request)
        self._serve(peer, message)
        return self._take_outputs()

    def _serve(self, peer: PeerId, message: _Request) -> None:
        group = self._tickets.get(message.ticket)
        slab = self._slabs.get(message.slab)
        is_open = group is not None and slab is not None and slab.group == group and slab.is_ready
        if not is_open and self._announced is not None:
            self._held.append((peer, message))
        elif slab is None or not is_open:
            # One answer for all of these: who has no right to a slab learns nothing of it.
            refusal = Refusal("unknown", f"this ticket opens no slab {message.slab}")
            self._outputs.append(Reply(peer, refusal.reply()))
        elif isinstance(message, wire.OpenSlab):
            opened = wire.SlabOpened(slab.id, slab.file.nbytes, list(slab.failed))
            self._outputs.append(Reply(peer, opened, file=slab.file.id))
        else:
            self._seals.request(peer, slab, message)

    def file_made(self, file: int, huge_bytes: int, now: float) -> list[Output]:
        slab = self._making.pop(file)
        if self._has_failed is not None:
            self._made_too_late(file, slab)
        elif slab is None:
            warm = self._warming.pop(file)
            warm.huge_bytes, warm.since = huge_bytes, now
            self._warm.append(warm)
            self._evict(self._size)
            self._refill(now)
        elif self._slabs.get(slab.id) is not slab:
            self._outputs.append(CloseFile(file))  # nobody wants it any more
        else:
            slab.file.huge_bytes = huge_bytes
            self._keep(slab)
        return self._take_outputs()

    def file_kept(self, file: int, slab: int, trouble: str) -> list[Output]:
        """It is safe, or is not: ``trouble`` says why."""
        held = self._slabs.get(slab)
        if held is None or held.file.id != file or held.is_ready:
            return []
        if trouble or self._has_failed is not None:
            self._refuse(held, trouble or self._failure())
            self._outputs.append(CloseFile(file))
        else:
            held.is_ready = True
            self._slab_huge_bytes += held.file.huge_bytes
            self._outputs.append(ToMmu(wire.SlabReserved(slab)))
        return self._take_outputs()

    def file_failed(self, file: int, message: str, now: float) -> list[Output]:
        slab = self._making.pop(file)
        if slab is None:
            del self._warming[file]
            self._pool_rests_until = now + POOL_RETRY
            self._outputs.append(Note(f"the pool could not be filled: {message}", trouble=True))
        elif self._slabs.get(slab.id) is not slab:
            pass  # nobody wants it any more
        elif not slab.retried and (self._warm or any(self._recycled.values())):
            slab.retried = True
            self._evict(None)
            self._make(slab.file, slab)
        else:
            self._refuse(slab, message)
        return self._take_outputs()

    def copy_done(self, job: int, now: float) -> list[Output]:
        number = self._jobs.pop(job)
        return self._job_done(None if number is None else wire.PagesCopied(number), now)

    def copy_failed(self, job: int, message: str, now: float) -> list[Output]:
        number = self._jobs.pop(job)
        return self._job_done(None if number is None else wire.CopyFailed(number, message), now)

    def punch_done(self, job: int, now: float) -> list[Output]:
        number = self._jobs.pop(job)
        return self._job_done(None if number is None else wire.PagesPunched(number), now)

    def ledger_kept(self, file: int, slab: int, trouble: str) -> list[Output]:
        self._seals.ledger_kept(file, slab, trouble)
        return self._take_outputs()

    def pages_marked(self, job: int, number: int) -> list[Output]:
        self._seals.pages_marked(job, number)
        return self._take_outputs()

    def pages_checked(self, job: int, checked: Checked) -> list[Output]:
        self._seals.pages_checked(job, checked)
        return self._take_outputs()

    def pages_swept(self, swept: Swept, now: float) -> list[Output]:
        self._seals.pages_swept(swept, now)
        return self._take_outputs()

    def tick(self, now: float) -> list[Output]:
        if now >= self._next_tick:
            self._next_tick = now + TICK_INTERVAL
            self._give_back(now)
            self._refill(now)
        if now >= self._next_report:
            self._next_report = now + REPORT_INTERVAL
            self._report()
        self._seals.tick(now)
        return self._take_outputs()

    def next_deadline(self) -> float:
        return min(self._next_tick, self._seals.next_deadline())

    def usage(self) -> wire.ElementUsage:
        recycled = self._all_recycled()
        return wire.ElementUsage(
            slab_bytes=self._slab_bytes,
            warm_bytes=sum(file.nbytes for file in self._warm)
            + sum(file.nbytes for file in self._warming.values()),
            recycled_bytes=sum(file.nbytes for file in recycled),
            huge_bytes=self._slab_huge_bytes + sum(file.huge_bytes for file in self._warm + recycled),
            warm_hits=self._hits,
            cold_misses=self._misses,
            summed_bytes=self._seals.summed_bytes,
            scrubbed_bytes=self._seals.scrubbed_bytes,
            mismatched_bytes=self._seals.mismatched_bytes,
        )

    # --- a new link ----------------------------------------------------------------------------------------

    def _adopt(self, message: wire.AdoptSlab) -> None:
        slab = self._slabs.get(message.slab)
        if slab is None:
            file = self._unadopted.pop(message.slab, None)
            if file is None:
                self._outputs.append(ToMmu(wire.SlabLost(message.slab)))
                return
            slab = HeldSlab(message.slab, message.group, file, is_ready=True, was_regrouped=True)
            self._slabs[slab.id] = slab
            self._slab_bytes += file.nbytes
            self._slab_huge_bytes += file.huge_bytes
            self._seals.adopted(slab)
        self._agree_on_failures(slab, message)
        if slab.group != message.group:
            slab.group, slab.was_regrouped = message.group, True
        self._announce(slab.id)

    def _agree_on_failures(self, slab: HeldSlab, message: wire.AdoptSlab) -> None:
        """What the Rack MMU takes for lost is: it may have died, or this element, before that was done, or said."""
        unheard = lacking(slab.failed, message.failed)
        for run in lacking(message.failed, slab.failed):
            self._lose(slab, run, message.cause)
        for run in unheard:
            self._outputs.append(ToMmu(wire.MemoryFailed(slab.id, *run, slab.cause)))

    def _announce(self, slab: int) -> None:
        if self._announced is not None:
            self._announced.slabs[slab] = True

    def _announcement_ends(self, now: float) -> None:
        """What has not been announced is of no use to anyone."""
        if self._announced is None:
            return  # said twice: all that came before it has been taken in
        announced, self._announced = self._announced, None
        for slab in list(self._slabs):
            if slab not in announced.slabs:
                self._retire(slab, recycle=False, now=now)
        for file in self._unadopted.values():
            self._outputs.append(CloseFile(file.id))
        self._unadopted = {}
        for group in dict.fromkeys(self._tickets.values()):
            if group not in announced.groups:
                self._forget_group(group)
        held, self._held = self._held, []
        for peer, request in held:
            self._serve(peer, request)

    def _number(self, job: int) -> int:
        """Numbers of our own: another run of the Rack MMU may use its numbers again."""
        self._last_job += 1
        self._jobs[self._last_job] = job
        return self._last_job

    def _job_done(self, answer: wire.Message | None, now: float) -> list[Output]:
        """Once the jobs of an earlier link are over, what has been said on this one is obeyed."""
        if answer is not None:
            self._outputs.append(ToMmu(answer))
        if None not in self._jobs.values():
            delayed, self._delayed = self._delayed, []
            for message in delayed:
                self._obey(message, now)
        return self._take_outputs()

    # --- slabs ---------------------------------------------------------------------------------------------

    def _reserve(self, message: wire.ReserveSlab, now: float) -> None:
        self._announce(message.slab)
        if self._has_failed is not None:
            self._outputs.append(ToMmu(wire.SlabRefused(message.slab, self._failure())))
            return
        kind = (message.nbytes, message.huge)
        if message.slab in self._unadopted:
            self._adopt(wire.AdoptSlab(message.slab, message.group, *kind))
        if (known := self._slabs.get(message.slab)) is not None:  # asked for on an earlier link as well
            if known.is_ready:
                self._outputs.append(ToMmu(wire.SlabReserved(known.id)))
            return
        if message.nbytes in POOL_CLASSES:
            self._demand.setdefault(kind, Demand()).note(now)
        file = self._pick(self._recycled.get(message.group, []), kind) or self._pick(self._warm, kind)
        slab = HeldSlab(message.slab, message.group, file or self._new_file(*kind))
        self._slabs[slab.id] = slab
        self._slab_bytes += slab.file.nbytes
        self._evict(self._size)
        if file is not None:
            self._hits += 1
            self._keep(slab)
        else:
            self._misses += 1
            self._make(slab.file, slab)
        self._refill(now)

    def _keep(self, slab: HeldSlab) -> None:
        file = slab.file
        about = KeptFile(slab.id, file.nbytes, file.huge, file.huge_bytes)
        self._outputs.append(KeepFile(file.id, about))

    def _refuse(self, slab: HeldSlab, message: str) -> None:
        del self._slabs[slab.id]
        self._slab_bytes -= slab.file.nbytes
        self._outputs.append(ToMmu(wire.SlabRefused(slab.id, message)))

    def _regroup(self, number: int, group: int) -> None:
        slab = self._slabs.get(number)
        if slab is None:
            self._outputs.append(ToMmu(wire.SlabLost(number)))
            return
        slab.group, slab.was_regrouped = group, True
        self._outputs.append(ToMmu(wire.SlabRegrouped(number)))

    def _copy(self, message: wire.CopyPages) -> None:
        source, target = self._slabs.get(message.source), self._slabs.get(message.target)
        run = (message.source_offset, message.nbytes)
        if source is None or target is None or any(overlap(run, failed) for failed in source.failed):
            self._outputs.append(ToMmu(wire.CopyFailed(message.job, "these pages have lost their memory")))
            return
        copy = CopyFile(
            self._number(message.job),
            source.file.id,
            message.source_offset,
            target.file.id,
            message.target_offset,
            message.nbytes,
        )
        self._outputs.append(copy)

    def _retire(self, number: int, recycle: bool, now: float) -> None:
        slab = self._slabs.pop(number, None)
        if slab is None:
            return  # lost
        file = slab.file
        self._slab_bytes -= file.nbytes
        self._seals.retired(slab)
        if file.id in self._making:
            return  # closed when it is made
        if not slab.is_ready:
            self._outputs.append(CloseFile(file.id))
            return
        self._slab_huge_bytes -= file.huge_bytes
        recycled_bytes = sum(other.nbytes for other in self._all_recycled())
        is_known = slab.group in self._tickets.values()
        is_one_too_many = recycled_bytes + file.nbytes > self._size // RECYCLED_SHARE
        if not recycle or slab.failed or slab.was_regrouped or not is_known or is_one_too_many:
            self._outputs.append(CloseFile(file.id))
        else:
            file.since = now
            self._recycled.setdefault(slab.group, []).append(file)

    def _forget_group(self, group: int) -> None:
        self._tickets = {ticket: other for ticket, other in self._tickets.items() if other != group}
        for file in self._recycled.pop(group, []):
            self._outputs.append(CloseFile(file.id))

    # --- failures of memory --------------------------------------------------------------------------------

    def _fail(self, message: wire.FailMemory) -> None:
        """Loses memory for real, and reports it."""
        if message.slab is None:
            self._fail_whole(message.cause)
        elif (slab := self._slabs.get(message.slab)) is not None and slab.is_ready:
            self._lose(slab, (message.offset, message.nbytes), message.cause)
        self._outputs.append(ToMmu(wire.FailureMade(message.job)))

    def _fail_whole(self, cause: str) -> None:
        self._has_failed = cause
        for file in [*self._warm, *self._all_recycled()]:
            self._outputs.append(CloseFile(file.id))
        self._warm, self._recycled = [], {}
        for slab in self._slabs.values():
            if slab.is_ready:
                self._lose(slab, (0, slab.file.nbytes), cause)

    def _lose(self, slab: HeldSlab, run: Run, cause: str) -> None:
        """This run of it, or all of it if it has lost too many."""
        slab.failed, slab.cause = merged([*slab.failed, run], slab.file.nbytes), cause
        everything = (0, slab.file.nbytes)
        lost = everything if slab.failed == (everything,) else run
        self._seals.lost(slab, lost)
        self._outputs.append(LoseFile(slab.file.id, None if lost == everything else lost))
        self._outputs.append(ToMmu(wire.MemoryFailed(slab.id, *lost, cause)))

    def _made_too_late(self, file: int, slab: HeldSlab | None) -> None:
        self._outputs.append(CloseFile(file))
        if slab is None:
            del self._warming[file]
        else:
            del self._slabs[slab.id]
            self._slab_bytes -= slab.file.nbytes
            self._outputs.append(ToMmu(wire.SlabRefused(slab.id, self._failure())))

    def _failure(self) -> str:
        return f"the memory of this element has failed ({self._has_failed})"

    # --- files ---------------------------------------------------------------------------------------------

    def _new_file(self, nbytes: int, huge: bool) -> File:
        self._last_file += 1
        return File(self._last_file, nbytes, huge)

    def _make(self, file: File, slab: HeldSlab | None) -> None:
        self._making[file.id] = slab
        self._outputs.append(MakeFile(file.id, file.nbytes, file.huge, urgent=slab is not None))

    def _pick(self, files: list[File], kind: Kind) -> File | None:
        """The one that was used last: its pages are most likely in a cache."""
        for index in range(len(files) - 1, -1, -1):
            if files[index].kind == kind:
                return files.pop(index)
        return None

    def _all_recycled(self) -> list[File]:
        return [file for files in self._recycled.values() for file in files]

    # --- the pool ------------------------------------------------------------------------------------------

    def _wanted(self, now: float) -> dict[Kind, int]:
        """How many of each kind should be warm: what the start needs, then as many as were asked for lately."""
        wanted: dict[Kind, int] = {}
        if now < self._start_until:
            wanted = {(nbytes, huge): count for nbytes, huge, count in POOL_START}
        for kind, demand in self._demand.items():
            wanted[kind] = max(wanted.get(kind, 0), demand.lately(now))
        return wanted

    def _refill(self, now: float) -> None:
        """Makes one file at a time, the scarcest kind first, as far as there is room."""
        if self._warming or self._has_failed is not None or now < self._pool_rests_until:
            return
        room = min(self._pool_max - sum(file.nbytes for file in self._warm), self._size - self._held_bytes())
        lacking = []
        for kind, count in self._wanted(now).items():
            warm = sum(file.kind == kind for file in self._warm)
            if warm < count and kind[0] <= room:
                lacking.append((warm, kind))
        if lacking:
            file = self._new_file(*min(lacking)[1])
            self._warming[file.id] = file
            self._make(file, None)

    def _give_back(self, now: float) -> None:
        """Closes what nobody asked for in a while."""
        wanted = self._wanted(now)
        for file in list(self._warm):
            if now - file.since >= POOL_IDLE and wanted.get(file.kind, 0) == 0:
                self._warm.remove(file)
                self._outputs.append(CloseFile(file.id))
        for group, files in list(self._recycled.items()):
            for file in files:
                if now - file.since >= POOL_IDLE:
                    self._outputs.append(CloseFile(file.id))
            self._recycled[group] = [file for file in files if now - file.since < POOL_IDLE]

    def _evict(self, limit: int | None) -> None:
        """Closes warm and recycled files, oldest first, until everything fits in the limit; all of them without one."""
        spare = sorted([*self._warm, *self._all_recycled()], key=lambda file: file.since)
        excess = None if limit is None else self._held_bytes() - limit
        for file in spare:
            if excess is not None and excess <= 0:
                return
            if file in self._warm:
                self._warm.remove(file)
            else:
                self._recycled = {
                    group: [f for f in files if f is not file] for group, files in self._recycled.items()
                }
            self._outputs.append(CloseFile(file.id))
            excess = None if excess is None else excess - file.nbytes

    def _held_bytes(self) -> int:
        others = [*self._warm, *self._all_recycled(), *self._warming.values()]
        return self._slab_bytes + sum(file.nbytes for file in others)

    # --- within --------------------------------------------------------------------------------------------

    def _report(self) -> None:
        usage = self.usage()
        if usage != self._last_report:
            self._last_report = usage
            self._outputs.append(ToMmu(wire.ElementReport(usage)))

    def _say(self, output: Output) -> None:
        self._outputs.append(output)

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs
