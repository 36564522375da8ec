"""Drives one memory element: it alone holds the memory, so that it fails on its own."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any

import msgspec

from bequest._core import SealLedger, Sweeper
from bequest.limits import POOL_CLASSES
from bequest.protocol.memory_element import MemoryElement
from bequest.protocol.outputs import (
    CheckPages,
    CloseFile,
    CopyFile,
    DropLedger,
    FlipBitOfFile,
    ForgetPages,
    KeepFile,
    KeepLedger,
    KeptFile,
    LoseFile,
    MakeFile,
    MarkPages,
    Note,
    Output,
    PunchFile,
    Reply,
    SweepPages,
    ToMmu,
)
from bequest.protocol.rack_state import ElementInfo, MmuConfig
from bequest.protocol.seal_desk import Checked, Swept
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.safe import Tether, raise_descriptor_limit
from bequest.runtime.slab_files import SlabFiles
from bequest.runtime.workers import Workers
from bequest.wire import messages as wire

# What somebody waits for, in order; what is so large that it must not hold those up; the pool; and seals: to make
# them, and to have them verified.
_SLABS, _LARGE, _POOL, _SEALS, _CHECKS = "slabs", "large", "pool", "seals", "checks"
_decoder = msgspec.msgpack.Decoder(KeptFile)


class ElementServer(Daemon):
    role = "memory-element"

    def __init__(
        self,
        config: MmuConfig,
        element: ElementInfo,
        listener: socket.socket,
        tether: Tether,
    ) -> None:
        super().__init__(config.name, config.uid, listener, wire.ClientToElement, tether)
        self.role = f"memory element {element.name}"
        raise_descriptor_limit()
        self._files = SlabFiles(element.name, element.kind)
        self._fds = {int(key): deposit.fds[0] for key, deposit in self.kept.items()}
        self._safe = dict.fromkeys(self._fds)  # which of them the supervisor keeps
        found = {int(key): _decoder.decode(deposit.meta) for key, deposit in self.kept.items()}
        self._ledgers = {
            file: (self.kept[str(file)].fds[1], self._open_ledger(file, about))
            for file, about in found.items()
            if about.has_ledger
        }
        self._machine = MemoryElement(element.size, time.monotonic(), found)
        self._mmu = self.add_link("mmu", "mmu", "the Rack MMU", wire.MmuToElement)
        self.add_link("monitor", "monitor", "the rack monitor", wire.Ping)
        self._workers = Workers((_SLABS, _LARGE, _POOL, _SEALS, _CHECKS))
        self.watch(self._workers.fileno(), self._workers.collect)
        self._sweeper = Sweeper()
        self.watch(self._sweeper.fileno(), self._swept)

    # --- inputs --------------------------------------------------------------------------------------------

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        self._carry_out(self._machine.client_message(peer.id, message))

    def link_message(self, link: Link, message: wire.Message) -> None:
        if isinstance(message, wire.Ping):
            self.send_to_link(link, wire.Pong(message.number))
            return
        self._carry_out(self._machine.mmu_message(message, time.monotonic()))

    def link_restored(self, link: Link) -> None:
        if link is self._mmu:
            self._machine.linked()

    def tick(self, now: float) -> None:
        self._carry_out(self._machine.tick(now))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()

    # --- outputs -------------------------------------------------------------------------------------------

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply(peer, message, file=file):
                    self.reply(peer, message, () if file is None else (self._fds[file],))
                case ToMmu(message):
                    self.send_to_link(self._mmu, message)
                case MakeFile():
                    self._make(output)
                case KeepFile(file, about):
                    self._safe[file] = None
                    answered = partial(self._kept, file, about.slab)
                    self.keep(str(file), msgspec.msgpack.encode(about), [self._fds[file]], answered)
                case CloseFile(file):
                    # Freeing a gigabyte takes long, too; and what comes after may count on its having happened.
                    self._drop_ledger(file)
                    discard = partial(self._files.discard, self._fds.pop(file))
                    self._workers.submit(_SLABS, discard, partial(self._discarded, file))
                case PunchFile(job, file, offset, nbytes):
                    punch = partial(self._files.punch, self._fds[file], offset, nbytes)
                    self._workers.submit(_SLABS, punch, partial(self._punched, job))
                case LoseFile(file, run):
                    self._files.lose(self._fds[file], run)  # not in a lane: it is reported as lost next
                case CopyFile():
                    self._copy(output)
                case FlipBitOfFile(file, offset):
                    self._files.flip_bit(self._fds[file], offset)
                case Note(text, trouble):
                    (log.warning if trouble else log.info)("%s: %s", self.role, text)
                case _:
                    self._carry_out_on_ledger(output)

    def _make(self, order: MakeFile) -> None:
        lane = _lane_for(order.nbytes) if order.urgent else _POOL
        make = partial(self._files.make, order.nbytes, order.huge)
        self._workers.submit(lane, make, partial(self._made, order.file))

    def _carry_out_on_ledger(self, output: Output) -> None:
        match output:
            case KeepLedger(file, about):
                make = partial(SealLedger.make_file, about.nbytes)
                self._workers.submit(_SEALS, make, partial(self._ledger_made, file, about))
            case DropLedger(file):
                self._drop_ledger(file)
            case MarkPages(job, file, offset, nbytes):
                mark = partial(self._ledgers[file][1].mark, offset, nbytes)
                self._workers.submit(_SEALS, mark, partial(self._marked, job))
            case CheckPages(job, file, offset, nbytes, number):
                check = partial(self._ledgers[file][1].check, offset, nbytes, number)
                self._workers.submit(_CHECKS, check, partial(self._checked, job))
            case SweepPages(file, offset, end, bytes_max, only_unsummed):
                self._sweeper.start(self._ledgers[file][1], offset, end, bytes_max, only_unsummed)
            case ForgetPages(file, offset, nbytes, number):
                self._ledgers[file][1].forget(offset, nbytes, number)
            case _:
                raise AssertionError(f"the memory element wants {output}")

    def _open_ledger(self, file: int, about: KeptFile) -> SealLedger:
        slab, ledger = self.kept[str(file)].fds
        return SealLedger(slab, ledger, about.nbytes)

    def _drop_ledger(self, file: int) -> None:
        if file in self._ledgers:
            fd, ledger = self._ledgers.pop(file)
            ledger.stop()
            os.close(fd)

    def _copy(self, copy: CopyFile) -> None:
        source, target = self._fds[copy.source], self._fds[copy.target]
        job = partial(self._files.copy, source, copy.source_offset, target, copy.target_offset, copy.nbytes)
        self._workers.submit(_lane_for(copy.nbytes), job, partial(self._copied, copy.job))

    # --- what was done --------------------------------------------------------------------------------------

    def _kept(self, file: int, slab: int, trouble: str) -> None:
        self._carry_out(self._machine.file_kept(file, slab, trouble))

    def _ledger_made(self, file: int, about: KeptFile, outcome: Any) -> None:
        """To be kept in place of the slab's file alone, if that is still here."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            self._ledgers[file] = (outcome, SealLedger(self._fds[file], outcome, about.nbytes))
        except (OSError, KeyError) as error:
            if isinstance(outcome, int):
                os.close(outcome)
            self._ledger_kept(file, about.slab, str(error))
            return
        kept = partial(self._ledger_kept, file, about.slab)
        self.keep(str(file), msgspec.msgpack.encode(about), [self._fds[file], outcome], kept)

    def _ledger_kept(self, file: int, slab: int, trouble: str) -> None:
        self._carry_out(self._machine.ledger_kept(file, slab, trouble))

    def _marked(self, job: int, outcome: Any) -> None:
        self._carry_out(self._machine.pages_marked(job, outcome))

    def _checked(self, job: int, outcome: Any) -> None:
        self._carry_out(self._machine.pages_checked(job, Checked(*outcome)))

    def _swept(self) -> None:
        swept = self._sweeper.collect()
        if swept is not None:
            self._carry_out(self._machine.pages_swept(Swept(*swept), time.monotonic()))

    def _discarded(self, file: int, outcome: Any) -> None:
        """Only now: had this server died before, the next one would have had to do it."""
        self._logged(outcome)
        if file in self._safe:
            del self._safe[file]
            self.release(str(file))

    def _made(self, file: int, outcome: Any) -> None:
        now = time.monotonic()
        if isinstance(outcome, Exception):
            self._carry_out(self._machine.file_failed(file, str(outcome), now))
            return
        self._fds[file], huge_bytes = outcome
        self._carry_out(self._machine.file_made(file, huge_bytes, now))

    def _copied(self, job: int, outcome: Any) -> None:
        now = time.monotonic()
        if isinstance(outcome, Exception):
            self._carry_out(self._machine.copy_failed(job, str(outcome), now))
        else:
            self._carry_out(self._machine.copy_done(job, now))

    def _punched(self, job: int, outcome: Any) -> None:
        self._logged(outcome)
        self._carry_out(self._machine.punch_done(job, time.monotonic()))

    def _logged(self, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            log.error("%s: %s", self.role, outcome)


def _lane_for(nbytes: int) -> str:
    return _LARGE if nbytes > POOL_CLASSES[-1] else _SLABS
