"""An agent alone: a real one, in a process of its own, with a supervisor that forgets, whose Rack MMU is the test."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from actors import DEADLINE, Nursery
from bequest.protocol.rack_state import ElementInfo, MmuConfig
from bequest.runtime import loop
from bequest.runtime.agent import Agent
from bequest.runtime.safe import Tether
from bequest.runtime.transport import Channel, link, listen, new_buffer, receive_packet, send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import Decoder, encode
from bequest.wire.supervision import DaemonToSupervisor, Keep, Kept, Relink
from victims import Victim, enrol

PID, INCARNATION, GROUP = 3, 8, 2
TICKET = b"t" * 16


def run(connection: Connection, path: str, uid: int, hello_timeout: float) -> None:
    """An agent whose link to the Rack MMU is sent to the test."""
    loop.HELLO_TIMEOUT = hello_timeout
    config = MmuConfig(
        name="test",
        uid=uid,
        elements=(ElementInfo(0, "dram0", "dram", 1 << 30, "element-dram0.sock"),),
        computes=("host0",),
        agent_paths=("agent-host0.sock",),
        orphan_keep=60.0,
    )
    (ours, theirs), (control, supervisor) = link(), link()
    supervisor.setblocking(True)
    threading.Thread(target=supervise, args=(supervisor, ours), daemon=True).start()
    agent = Agent(config, "host0", listen(Path(path)), Tether(control, {}))
    line = socket.socket(fileno=os.dup(connection.fileno()))
    socket.send_fds(line, [b"x"], [theirs.fileno()])
    theirs.close()
    agent.run()


def supervise(control: socket.socket, mmu_link: socket.socket) -> None:
    """Hands the link in, and says that it keeps what it is given."""
    send_packet(control, encode(Relink("mmu", "mmu", os.getpid(), 0)), [mmu_link.fileno()])
    decoder = Decoder(DaemonToSupervisor)
    while (packet := receive_packet(control, new_buffer())).data:
        packet.close_fds()
        message = decoder.decode(packet.data)
        if isinstance(message, Keep):
            send_packet(control, encode(Kept(message.key)))


class AgentUnderTest:
    def __init__(self, nursery: Nursery, directory: Path, hello_timeout: float = loop.HELLO_TIMEOUT) -> None:
        self._nursery = nursery
        self.path = directory / "agent-host0.sock"
        self.pid, self._connection = nursery.fork(run, {}, str(self.path), os.geteuid(), hello_timeout)
        with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            _, (fd,), _, _ = socket.recv_fds(line, 1, 1)
        self._link = socket.socket(fileno=fd)
        self._decoder = Decoder(wire.AgentToMmu)
        self.heard: list[wire.Message] = []
        self.tell(wire.AnnouncementEnds())
        Channel.connect(self.path).close()  # it is ready

    def tell(self, message: wire.Message) -> None:
        send_packet(self._link, encode(message))

    def hear(self, kind: type[wire.Message], seconds: float = DEADLINE) -> wire.Message:
        """The next message of this kind; the others are kept in `heard` as well, in order."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._link], [], [], deadline - time.monotonic())[0]:
                packet = receive_packet(self._link, new_buffer())
                assert packet.data, "the agent has ended"
                self.heard.append(self._decoder.decode(packet.data))
                if isinstance(self.heard[-1], kind):
                    return self.heard[-1]
        raise AssertionError(f"no {kind.__name__} within {seconds} s, but {self.heard}")

    def expect(self, victim: Victim, pid: int = PID, with_fence: bool = True) -> None:
        """Has the victim enrol as this process."""
        ticket = TICKET[:-1] + bytes([pid])
        self.tell(wire.ExpectProcess(pid, INCARNATION, victim.pid, ticket, f"victim-{pid}", GROUP))
        assert victim.call(enrol, str(self.path), ticket, with_fence) == "enrolled"
        assert self.hear(wire.ProcessEnrolled) == wire.ProcessEnrolled(pid, INCARNATION)

    def fence(
        self, ranges: list[tuple[int, int]], reach: str, hinted: bool = False, pid: int = PID
    ) -> wire.Message:
        """What it answers."""
        self.tell(wire.FenceProcess(len(self.heard), pid, INCARNATION, reach, ranges, hinted))
        return self.hear(wire.ProcessFenced | wire.FenceFailed)  # type: ignore[arg-type]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        assert self._nursery.wait(self.pid) == 0
        self._link.close()
        self._connection.close()
