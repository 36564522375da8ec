"""Drives the agent of one compute element: watches its processes through pidfds, and fences them."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import partial

import msgspec

from bequest import _core
from bequest.limits import DEATH_PATIENCE, FENCE_LANES
from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import (
    Confirm,
    Fence,
    Guard,
    KeepContacts,
    KeepHandler,
    Lift,
    Output,
    PeerId,
    ProcessKey,
    Push,
    Reply,
    ToMmu,
    Unwatch,
    Watch,
    WatchedProcess,
)
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.fencing import Target, fence, guard, is_gone, lift, outlive
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.notices import NoticeWire
from bequest.runtime.safe import Tether, raise_descriptor_limit
from bequest.runtime.workers import Job, Then, Workers
from bequest.wire import messages as wire

_CONTACT = "contact "  # how keys of emergency contacts begin
_HANDLER = "handler of "  # and of those who handle failures of their memory
_decoder = msgspec.msgpack.Decoder(WatchedProcess)


class Agent(Daemon):
    role = "agent"

    def __init__(self, config: MmuConfig, compute: str, listener: socket.socket, tether: Tether) -> None:
        super().__init__(config.name, config.uid, listener, wire.ClientToAgent, tether)
        self.role = f"agent {compute}"
        raise_descriptor_limit()
        self._mmu = self.add_link("mmu", "mmu", "the Rack MMU", wire.MmuToAgent)
        self.add_link("monitor", "monitor", "the rack monitor", wire.Ping)
        self._lanes = tuple(f"fence-{number}" for number in range(FENCE_LANES))
        self._workers = Workers(self._lanes)
        self.watch(self._workers.fileno(), self._workers.collect)
        self._offered: dict[PeerId, int] = {}  # userfaultfds of those whose request to enrol is under way
        self._targets: dict[ProcessKey, Target] = {}
        self._contacts: dict[ProcessKey, int] = {}  # how many of each process are kept
        found, contacts = self._found()
        self._machine = ComputeElement([process for process, _ in found], contacts, self._found_handlers())
        for process, fds in found:
            self._register(process, Target(process.os_pid, *fds, *[None] * (2 - len(fds))))

    def _found(self) -> tuple[list[tuple[WatchedProcess, list[int]]], dict[ProcessKey, list[str]]]:
        """What the agent before this one kept: processes with their descriptors, and their emergency contacts."""
        processes: list[tuple[WatchedProcess, list[int]]] = []
        contacts: dict[ProcessKey, list[str]] = {}
        for key, deposit in self.kept.items():
            if key.startswith(_CONTACT):
                pid, incarnation = key.split()[-1].split(".")
                contacts.setdefault((int(pid), int(incarnation)), []).append(deposit.meta.decode())
            elif not key.startswith(_HANDLER):
                processes.append((_decoder.decode(deposit.meta), deposit.fds))
        self._contacts = {key: len(names) for key, names in contacts.items()}
        return processes, contacts

    def _found_handlers(self) -> set[ProcessKey]:
        keys = [key.split()[-1].split(".") for key in self.kept if key.startswith(_HANDLER)]
        return {(int(pid), int(incarnation)) for pid, incarnation in keys}

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        """A descriptor comes with `wire.Enrol` alone, and must be what it should be."""
        if len(peer.fds) > 1 or not all(_core.is_fence(fd) for fd in peer.fds):
            text = "a process enrols with one userfaultfd for SIGBUS and write protection, or with none"
            self.reply(peer.id, wire.Failed("protocol", text))
            return
        if peer.fds and peer.id not in self._offered:
            self._offered[peer.id] = peer.fds.pop()
        self._carry_out(self._machine.client_message(peer.id, peer.os_pid, message, time.monotonic()))

    def peer_gone(self, peer: Peer) -> None:
        self._decline(peer.id)
        self._carry_out(self._machine.client_gone(peer.id))

    def link_message(self, link: Link, message: wire.Message) -> None:
        if isinstance(message, wire.Ping):
            self.send_to_link(link, wire.Pong(message.number))
            return
        self._carry_out(self._machine.mmu_message(message, time.monotonic()))

    def link_restored(self, link: Link) -> None:
        if link is self._mmu:
            self._carry_out(self._machine.linked())

    def link_broken(self, link: Link) -> None:
        if link is self._mmu:
            self._machine.unlinked()

    def tick(self, now: float) -> None:
        self._carry_out(self._machine.tick(now))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply(peer, message):
                    self._decline(peer)
                    self.reply(peer, message)
                case ToMmu(message):
                    self._tell_mmu(message)
                case Watch(process, peer):
                    self._watch_process(process, peer)
                case Unwatch(key):
                    self._unwatch_process(key)
                case KeepContacts(key, names):
                    self._keep_contacts(key, names)
                case KeepHandler(key, wanted):
                    self._keep_handler(key, wanted)
                case Push(peer, notice):
                    self._push(peer, notice)
                case Confirm(key):
                    self._confirm(key)
                case Fence() | Lift() | Guard():
                    self._work_on(output)
                case _:
                    raise AssertionError(f"the agent wants {output}")

    def _tell_mmu(self, message: wire.Message) -> None:
        """With the news of a process goes what the Rack MMU can see its death by (runtime/witnesses.py)."""
        fence = None
        if isinstance(message, wire.ProcessEnrolled):
            fence = self._targets[message.pid, message.incarnation].fence
        self.send_to_link(self._mmu, message, () if fence is None else (fence,))

    # --- watching ------------------------------------------------------------------------------------------

    def _decline(self, peer: PeerId) -> None:
        """The userfaultfd of a request that has been answered otherwise."""
        offered = self._offered.pop(peer, None)
        if offered is not None:
            os.close(offered)

    def _watch_process(self, process: WatchedProcess, peer: PeerId) -> None:
        """The peer has just spoken, so the pid is still its own; should it have died since, the pidfd tells at once."""
        try:
            pidfd = os.pidfd_open(process.os_pid)
        except ProcessLookupError:
            self._carry_out(self._machine.exited((process.pid, process.incarnation)))
            return
        except OSError as error:
            self._cannot_watch(process, error.strerror or str(error))
            return
        target = Target(process.os_pid, pidfd, self._offered.pop(peer, None))
        fds = [fd for fd in (target.pidfd, target.fence) if fd is not None]
        about = msgspec.msgpack.encode(process)
        self.keep(_safe_key((process.pid, process.incarnation)), about, fds, partial(self._kept, process))
        self._register(process, target)

    def _kept(self, process: WatchedProcess, trouble: str) -> None:
        if trouble:
            self._cannot_watch(process, trouble)
        else:
            self._carry_out(self._machine.watched((process.pid, process.incarnation)))

    def _cannot_watch(self, process: WatchedProcess, trouble: str) -> None:
        log.warning("%s cannot watch os pid %d: %s", self.role, process.os_pid, trouble)
        self._unwatch_process((process.pid, process.incarnation))
        text = f"the agent cannot watch os pid {process.os_pid}: {trouble}"
        self._carry_out(self._machine.cannot_watch((process.pid, process.incarnation), text))

    def _register(self, process: WatchedProcess, target: Target) -> None:
        key = process.pid, process.incarnation
        self._targets[key] = target
        self.watch(target.pidfd, partial(self._process_ended, key))

    def _process_ended(self, key: ProcessKey) -> None:
        """The process has; what shares its address space, such as a child of vfork before its exec, may still run."""
        self.unwatch(self._targets[key].pidfd)
        if is_gone(self._targets[key]):
            self._carry_out(self._machine.exited(key))
        else:
            log.warning("%s: os pid %d has outlived itself", self.role, self._targets[key].os_pid)
            self._outlive(key)

    def _outlive(self, key: ProcessKey) -> None:
        self._submit(key, partial(outlive, self._targets[key]), partial(self._outlived, key))

    def _outlived(self, key: ProcessKey, outcome: object) -> None:
        if outcome is True:
            self._carry_out(self._machine.exited(key))
        elif key in self._targets:
            self._outlive(key)

    def _keep_contacts(self, key: ProcessKey, names: list[str]) -> None:
        """Each under a key of its own: together they may be longer than what one key has room for."""
        before = self._contacts.pop(key, 0)
        for number, name in enumerate(names):
            self.keep(_contact_key(key, number), name.encode(), ())
        for number in range(len(names), before):
            self.release(_contact_key(key, number))
        if names:
            self._contacts[key] = len(names)

    def _keep_handler(self, key: ProcessKey, wanted: bool) -> None:
        kept = f"{_HANDLER}{key[0]}.{key[1]}"
        if wanted:
            self.keep(kept, b"", ())
        else:
            self.release(kept)

    def _unwatch_process(self, key: ProcessKey) -> None:
        """The Rack MMU has taken note. Its descriptors are closed behind the work that still uses them."""
        self._keep_contacts(key, [])
        self._keep_handler(key, False)
        target = self._targets.pop(key, None)
        if target is None:
            return
        with suppress(KeyError):  # it has ended: unwatched already
            self.unwatch(target.pidfd)
        self.release(_safe_key(key))
        self._close(key, target)

    def _close(self, key: ProcessKey, target: Target) -> None:
        self._submit(key, target.close, partial(self._closed, key, target))

    def _closed(self, key: ProcessKey, target: Target, outcome: object) -> None:
        if outcome is False:
            self._close(key, target)

    def _confirm(self, key: ProcessKey) -> None:
        target = self._targets.get(key)
        if target is not None:
            self._submit(key, partial(is_gone, target, DEATH_PATIENCE), partial(self._confirmed, key))

    def _confirmed(self, key: ProcessKey, outcome: object) -> None:
        if outcome is True:
            self._carry_out(self._machine.exited(key))

    def _push(self, peer_id: int, notice: wire.Message) -> None:
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        peer.wire = line = NoticeWire.over(peer.wire)
        try:
            line.push(notice)
        except OSError as error:
            self.drop(peer, f"it cannot be told: {error}")
        else:
            self._watch_for(peer)

    # --- fencing -------------------------------------------------------------------------------------------

    def _work_on(self, output: Fence | Lift | Guard) -> None:
        key, target = output.process, self._targets[output.process]
        match output:
            case Fence(job, _, reach, ranges, hinted):
                fencing = partial(fence, target, reach, ranges, hinted)
                self._submit(key, fencing, partial(self._fence_done, job))
            case Lift(job, _, ranges):
                self._submit(key, partial(lift, target, ranges), partial(self._lift_done, job))
            case Guard(job, _, address, nbytes):
                guarding = partial(guard, target, address, nbytes)
                self._submit(key, guarding, partial(self._guard_done, job, key))

    def _submit(self, key: ProcessKey, job: Job, then: Then) -> None:
        self._workers.submit(self._lanes[key[0] % FENCE_LANES], job, then)

    def _fence_done(self, job: int, outcome: object) -> None:
        if isinstance(outcome, str):
            self._carry_out(self._machine.fenced(job, outcome))
        else:
            log.warning("%s cannot fence (job %d): %s", self.role, job, outcome)
            self._carry_out(self._machine.fence_failed(job, str(outcome)))

    def _lift_done(self, job: int, outcome: object) -> None:
        if outcome is not None:
            log.warning("%s cannot lift a fence (job %d): %s", self.role, job, outcome)
        self._carry_out(self._machine.lifted(job))

    def _guard_done(self, job: int, key: ProcessKey, outcome: object) -> None:
        if outcome is not None:
            log.warning("%s cannot guard memory of process %d (job %d): %s", self.role, key[0], job, outcome)
        self._carry_out(self._machine.guarded(job, key, outcome is not None))


def _contact_key(key: ProcessKey, number: int) -> str:
    return f"{_CONTACT}{number} of {key[0]}.{key[1]}"


def _safe_key(key: ProcessKey) -> str:
    return f"process {key[0]}.{key[1]}"
