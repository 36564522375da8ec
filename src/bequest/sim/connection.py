"""A client's connection to a daemon: one request at a time, one reply to each, or notices as they come.

What either has sent before its end is still read by the other, as of a socket; but what a daemon had not read when it
died is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bequest.wire import messages as wire

Answer = tuple[wire.Message, object]  # and the file descriptor that comes with it: a table or a file


class Connection:
    def __init__(self, who: str, uid: int, os_pid: int, wake_daemon: Callable[[], None]) -> None:
        self.who = who
        self.uid = uid
        self.os_pid = os_pid
        self.peer = 0
        self.has_greeted = False
        self.is_owed_reply = False
        self.is_closed = False  # by the client
        self.is_broken = False  # by the daemon
        self._deliver: Callable[[Answer | None], None] | None = None  # to the client that waits; None: broken
        self._sent: deque[wire.Message] = deque()
        self._notices: deque[wire.Message] = deque()
        self.wake_daemon = wake_daemon

    # --- the client's end ------------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        self._sent.append(message)
        self.wake_daemon()

    def hear(self, deliver: Callable[[Answer | None], None]) -> None:
        """What comes next is given to it, once."""
        if self._notices:
            deliver((self._notices.popleft(), None))
        elif self.is_broken or self.is_closed:
            deliver(None)
        else:
            self._deliver = deliver

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._give(None)
            self.wake_daemon()

    # --- the daemon's end ------------------------------------------------------------------------------------

    @property
    def is_readable(self) -> bool:
        return not self.is_owed_reply and (bool(self._sent) or self.is_closed)

    def read(self) -> wire.Message | None:
        """The next packet; None at the end."""
        return self._sent.popleft() if self._sent else None

    def answer(self, message: wire.Message, file: object) -> None:
        self.is_owed_reply = False
        self._give((message, file))

    def push(self, notice: wire.Message) -> None:
        if self._deliver is None:
            self._notices.append(notice)
        else:
            self._give((notice, None))

    def break_off(self) -> None:
        self.is_broken = True
        self._give(None)

    def _give(self, answer: Answer | None) -> None:
        deliver, self._deliver = self._deliver, None
        if deliver is not None:
            deliver(answer)
