"""Drives the agent of one compute element: watches its processes through pidfds."""

from __future__ import annotations

import os
import socket
import time
from functools import partial

from bequest.protocol.compute_element import ComputeElement
from bequest.protocol.outputs import Output, Push, Reply, ToMmu, Unwatch, Watch
from bequest.protocol.rack_state import MmuConfig
from bequest.runtime.loop import Daemon, Link, Peer, log
from bequest.runtime.notices import NoticeWire
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
        self._pidfds: dict[int, int] = {}

    def peer_message(self, peer: Peer, message: wire.Message) -> None:
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
                case _:
                    raise AssertionError(f"the agent wants {output}")

    def _watch_process(self, peer: int, os_pid: int) -> None:
        """The peer has just spoken, so the pid is still its own; should it have died since, the pidfd tells at once."""
        try:
            self._pidfds[peer] = os.pidfd_open(os_pid)
        except OSError as error:
            log.warning("%s cannot watch os pid %d: %s", self.role, os_pid, error)
            self._peer_cannot_be_watched(peer, os_pid, error)
            return
        self.watch(self._pidfds[peer], partial(self._process_exited, peer))

    def _peer_cannot_be_watched(self, peer: int, os_pid: int, error: OSError) -> None:
        if isinstance(error, ProcessLookupError):
            self._carry_out(self._machine.exited(peer))
        else:
            self.reply(
                peer, wire.Failed("memory", f"the agent cannot watch os pid {os_pid}: {error.strerror}")
            )
            self.drop(self._peers[peer], "it cannot be watched")

    def _process_exited(self, peer: int) -> None:
        self._carry_out(self._machine.exited(peer))

    def _unwatch_process(self, peer: int) -> None:
        pidfd = self._pidfds.pop(peer, None)
        if pidfd is not None:
            self.unwatch(pidfd)
            os.close(pidfd)

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
