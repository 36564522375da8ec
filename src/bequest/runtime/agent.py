"""Drives the agent of one compute element: watches its processes through pidfds, and fences them."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import partial

from bequest import _core
from bequest.limits import DEATH_PATIENCE, FENCE_LANES
from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import Confirm, Fence, Guard, Output, Push, Reply, ToMmu, Unwatch, Watch
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.fencing import Target, fence, guard, is_gone, outlive
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.notices import NoticeWire
from bequest.runtime.workers import Job, Then, Workers
from bequest.wire import messages as wire


class Agent(Daemon):
    role = "agent"

    def __init__(
        self, config: MmuConfig, compute: str, listener: socket.socket, life: int, mmu_link: socket.socket
    ) -> None:
        super().__init__(config.name, config.generation, config.uid, listener, wire.ClientToAgent, life)
        self.role = f"agent {compute}"
        self._machine = ComputeElement()
        self._mmu = self.add_link("the Rack MMU", mmu_link, wire.MmuToAgent)
        self._targets: dict[int, Target] = {}  # by peer
        self._lanes = tuple(f"fence-{number}" for number in range(FENCE_LANES))
        self._workers = Workers(self._lanes)
        self.watch(self._workers.fileno(), self._workers.collect)

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
        """A descriptor comes with `wire.Enrol` alone, and must be what it should be."""
        if len(peer.fds) > 1 or not all(_core.is_fence(fd) for fd in peer.fds):
            text = "a process enrols with one userfaultfd for SIGBUS and write protection, or with none"
            self.reply(peer.id, wire.Failed("protocol", text))
            return
        self._carry_out(self._machine.client_message(peer.id, peer.os_pid, message, time.monotonic()))

    def peer_gone(self, peer: Peer) -> None:
        self._carry_out(self._machine.client_gone(peer.id))

    def link_message(self, link: Link, message: wire.Message) -> None:
        self._carry_out(self._machine.mmu_message(message, time.monotonic()))

    def tick(self, now: float) -> None:
        self._carry_out(self._machine.tick(now))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply(peer, message):
                    self.reply(peer, message)
                case ToMmu(message):
                    self.send_to_link(self._mmu, message)
                case Watch(peer, os_pid):
                    self._watch_process(peer, os_pid)
                case Unwatch(peer):
                    self._unwatch_process(peer)
                case Push(peer, notice):
                    self._push(peer, notice)
                case Confirm(peer):
                    self._confirm(peer)
                case Fence(job, peer, reach, ranges, hinted):
                    fencing = partial(fence, self._targets[peer], reach, ranges, hinted)
                    self._submit(peer, fencing, partial(self._fence_done, job))
                case Guard(job, peer, address, nbytes):
                    guarding = partial(guard, self._targets[peer], address, nbytes)
                    self._submit(peer, guarding, partial(self._guard_done, job, peer))
                case _:
                    raise AssertionError(f"the agent wants {output}")

    # --- watching ------------------------------------------------------------------------------------------

    def _watch_process(self, peer: int, os_pid: int) -> None:
        """The peer has just spoken, so the pid is still its own; should it have died since, the pidfd tells at once."""
        try:
            pidfd = os.pidfd_open(os_pid)
        except OSError as error:
            log.warning("%s cannot watch os pid %d: %s", self.role, os_pid, error)
            self._peer_cannot_be_watched(peer, os_pid, error)
            return
        fds = self._peers[peer].fds
        self._targets[peer] = Target(os_pid, pidfd, fds.pop() if fds else None)
        self.watch(pidfd, partial(self._process_ended, peer))

    def _peer_cannot_be_watched(self, peer: int, os_pid: int, error: OSError) -> None:
        if isinstance(error, ProcessLookupError):
            self._carry_out(self._machine.exited(peer))
        else:
            self.reply(
                peer, wire.Failed("memory", f"the agent cannot watch os pid {os_pid}: {error.strerror}")
            )
            self.drop(self._peers[peer], "it cannot be watched")

    def _process_ended(self, peer: int) -> None:
        """The process has; what shares its address space, such as a child of vfork before its exec, may still run."""
        self.unwatch(self._targets[peer].pidfd)
        if is_gone(self._targets[peer]):
            self._carry_out(self._machine.exited(peer))
        else:
            log.warning("%s: os pid %d has outlived itself", self.role, self._targets[peer].os_pid)
            self._outlive(peer)

    def _outlive(self, peer: int) -> None:
        self._submit(peer, partial(outlive, self._targets[peer]), partial(self._outlived, peer))

    def _outlived(self, peer: int, outcome: object) -> None:
        if outcome is True:
            self._carry_out(self._machine.exited(peer))
        elif peer in self._targets:
            self._outlive(peer)

    def _unwatch_process(self, peer: int) -> None:
        """Its descriptors are closed behind the work that still uses them."""
        target = self._targets.pop(peer, None)
        if target is None:
            return
        with suppress(KeyError):  # it has ended: unwatched already
            self.unwatch(target.pidfd)
        self._close(peer, target)

    def _close(self, peer: int, target: Target) -> None:
        self._submit(peer, target.close, partial(self._closed, peer, target))

    def _closed(self, peer: int, target: Target, outcome: object) -> None:
        if outcome is False:
            self._close(peer, target)

    def _confirm(self, peer: int) -> None:
        target = self._targets.get(peer)
        if target is not None:
            self._submit(peer, partial(is_gone, target, DEATH_PATIENCE), partial(self._confirmed, peer))

    def _confirmed(self, peer: int, outcome: object) -> None:
        if outcome is True:
            self._carry_out(self._machine.exited(peer))

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

    def _submit(self, peer: int, job: Job, then: Then) -> None:
        self._workers.submit(self._lanes[peer % FENCE_LANES], job, then)

    def _fence_done(self, job: int, outcome: object) -> None:
        if isinstance(outcome, str):
            self._carry_out(self._machine.fenced(job, outcome))
        else:
            log.warning("%s cannot fence (job %d): %s", self.role, job, outcome)
            self._carry_out(self._machine.fence_failed(job, str(outcome)))

    def _guard_done(self, job: int, peer: int, outcome: object) -> None:
        if outcome is not None:
            log.warning("%s cannot guard memory of peer %d (job %d): %s", self.role, peer, job, outcome)
        self._carry_out(self._machine.guarded(job, peer, outcome is not None))
