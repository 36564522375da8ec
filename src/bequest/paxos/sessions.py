"""Sessions: what a client does once is done once, whichever replicas it talks to.

The table is replicated like the rest of the state: opened, used and ended by commands alone. A session ends when it
was not used for `SESSION_IDLE_MS` of the leaders' clocks. A hand goes round the ids, a few steps with each session
that is opened, and takes away whatever has been idle that long: so no command has to look through the whole table.
"""

from __future__ import annotations

from collections.abc import Callable

from bequest.paxos.ledger import Ledger, Session
from bequest.paxos.messages import Once, OpenSession
from bequest.paxos.outputs import Why
from bequest.paxos.timing import SESSION_IDLE_MS

HAND_STEPS = 4  # ids the hand goes over with each session opened: more than are opened meanwhile


class Sessions:
    """The replicated table of sessions."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sessions = ledger.sessions

    def execute(
        self,
        command: Once | OpenSession,
        index: int,
        stamp_ms: int,
        apply: Callable[[int, int, bytes], bytes],
    ) -> bytes | Why:
        """Carries the command out if it is new, and says what came of it, now or before."""
        if isinstance(command, OpenSession):
            return self._open(stamp_ms)
        session = self._sessions.get(command.session)
        if session is None:
            return Why.SESSION_UNKNOWN
        if command.number < session.number:
            return Why.SESSION_STALE
        if command.number > session.number:
            session = Session(command.number, stamp_ms, apply(index, stamp_ms, command.body))
            self._sessions[command.session] = session
        return session.reply

    def _open(self, stamp_ms: int) -> bytes:
        self._end_idle(stamp_ms)
        self._ledger.sessions_opened += 1
        opened = self._ledger.sessions_opened
        self._sessions[opened] = Session(0, stamp_ms, b"")
        return b"%d" % opened

    def _end_idle(self, stamp_ms: int) -> None:
        hand = self._ledger.sessions_hand
        for _ in range(min(HAND_STEPS, self._ledger.sessions_opened)):
            hand = hand % self._ledger.sessions_opened + 1
            session = self._sessions.get(hand)
            if session is not None and session.stamp_ms + SESSION_IDLE_MS < stamp_ms:
                del self._sessions[hand]
        self._ledger.sessions_hand = hand
