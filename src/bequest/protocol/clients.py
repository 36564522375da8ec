"""Clients of the Rack MMU: who is connected, who has yet to come back after a restart, and what was answered.

Theory of operation. A client that lost its connection in a request does not know whether it was carried out, so it
repeats it. A request that must not be done twice comes in an envelope (`wire.Once`) with a number of its process's
own; the answer is written down with what the request changed, and whoever repeats the number gets it again. What is
still under way when it is repeated is simply awaited, by whoever is connected when the answer comes.

Connections end with the daemon, and many a client notices only when it next has something to ask. So they are written
down, too: one that has not come back after a restart is *absent*, and counts as a client until its process has ended.
"""

from __future__ import annotations

import msgspec

from bequest.ids import ProcessId
from bequest.protocol.books import Books, Row
from bequest.protocol.outputs import AwaitExit, PeerId
from bequest.wire import messages as wire


class Session(msgspec.Struct):
    """A client's connection, after its Hello."""

    peer: PeerId
    uid: int
    os_pid: int
    process: ProcessId | None = None
    incarnation: int = 0  # of that process
    number: int = 0  # of the request that is under way, if it has one


class Connection(Row):
    """What is known of a client for as long as it does not come back."""

    uid: int
    os_pid: int
    process: ProcessId | None = None


class Answer(Row):
    """The last one that a process got to a numbered request."""

    incarnation: int
    number: int
    reply: wire.DaemonToClient


class Caller(msgspec.Struct, frozen=True):
    """Whom a request's answer is for: a process, whatever connection it has by then, if the request had a number."""

    peer: PeerId
    process: ProcessId = 0
    incarnation: int = 0
    number: int = 0

    @property
    def key(self) -> tuple[ProcessId, int, int]:
        return self.process, self.incarnation, self.number


class Clients:
    def __init__(self, books: Books) -> None:
        self.sessions: dict[PeerId, Session] = {}
        self._connections = books.open("connections", Connection, int)
        self._answers = books.open("answers", Answer, int)
        self._under_way: dict[tuple[ProcessId, int, int], None] = {}

    # --- connections ---------------------------------------------------------------------------------------

    def opened(self, peer: PeerId, uid: int, os_pid: int) -> Session:
        self.sessions[peer] = Session(peer, uid, os_pid)
        self._connections.put(peer, Connection(uid, os_pid))
        return self.sessions[peer]

    def gone(self, peer: PeerId) -> Session:
        self._connections.remove(peer)
        return self.sessions.pop(peer)

    def missing(self, peer: PeerId) -> AwaitExit:
        """It has gone, and counts as a client until it has come back, or its process has ended."""
        del self.sessions[peer]
        return AwaitExit(peer, self._connections[peer].os_pid)

    def attached(self, session: Session, process: ProcessId, incarnation: int) -> None:
        session.process, session.incarnation = process, incarnation
        self._connections[session.peer].process = process

    def detached(self, session: Session) -> None:
        session.process = None
        self._connections[session.peer].process = None

    def has_any(self) -> bool:
        return len(self._connections) > 0

    # --- after a restart -----------------------------------------------------------------------------------

    def absent(self) -> list[AwaitExit]:
        """Those that were connected in a run before and have not come back."""
        return [
            AwaitExit(peer, connection.os_pid)
            for peer, connection in self._connections.items()
            if peer not in self.sessions
        ]

    def came_back(self, session: Session, client: PeerId) -> bool:
        """The session takes the place of that connection, if it was the same user's and process's."""
        before = self._connections.get(client)
        if client in self.sessions or before is None:
            return False
        if (before.uid, before.os_pid) != (session.uid, session.os_pid):
            return False
        self._connections.remove(client)
        return True

    def resumed(self, session: Session, process: ProcessId) -> None:
        """The process that is attached there has come back: its former connection is not missed any more."""
        for peer, connection in self._connections.items():
            if peer not in self.sessions and connection.process == process:
                self.came_back(session, peer)

    def exited(self, client: PeerId) -> tuple[ProcessId | None, int]:
        """The process that was attached there, and its os pid."""
        if client in self.sessions or client not in self._connections:
            return None, 0
        gone = self._connections.remove(client)
        return gone.process, gone.os_pid

    # --- answers -------------------------------------------------------------------------------------------

    def answered(self, session: Session, number: int) -> wire.Message | None:
        """What the process was answered to this number before."""
        answer = None if session.process is None else self._answers.get(session.process)
        if answer is None or (answer.incarnation, answer.number) != (session.incarnation, number):
            return None
        return answer.reply

    def is_under_way(self, session: Session) -> bool:
        return (session.process, session.incarnation, session.number) in self._under_way

    def caller(self, session: Session) -> Caller:
        """For a request that is answered later, perhaps by another run of the daemon."""
        if session.process is None:
            return Caller(session.peer)
        return Caller(session.peer, session.process, session.incarnation, session.number)

    def await_answer(self, caller: Caller) -> None:
        """Its request has begun: when it comes again, it is not to be begun again."""
        if caller.number:
            self._under_way[caller.key] = None

    def note_answer(self, caller: Caller, reply: wire.Message) -> None:
        self._under_way.pop(caller.key, None)
        before = self._answers.get(caller.process)
        is_later = before is None or (before.incarnation, before.number) < (caller.incarnation, caller.number)
        if caller.number and is_later:
            self._answers.put(caller.process, Answer(caller.incarnation, caller.number, reply))  # type: ignore[arg-type]

    def forget_answers_of(self, process: ProcessId) -> None:
        if process in self._answers:
            self._answers.remove(process)
