"""The agent's end of a subscription: a socket whose reader may be slow.

Notices that cannot be sent at once wait, up to a number; then the oldest is dropped for each new one, and how many
were is said before the next one that is sent. So a subscriber that does not read costs a bounded queue and nothing
else.
"""

from __future__ import annotations

from bequest.limits import NOTICE_QUEUE_MAX
from bequest.runtime.loop import Wire
from bequest.runtime.transport import send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import encode


class NoticeWire(Wire):
    """In place of a client's `Wire`, once it has subscribed."""

    dropped: int = 0

    @classmethod
    def over(cls, other: Wire) -> NoticeWire:
        return other if isinstance(other, cls) else cls(other.socket, NOTICE_QUEUE_MAX, other.queue)

    def push(self, notice: wire.Message) -> None:
        if len(self.queue) >= self.queue_max:
            self.queue.popleft()
            self.dropped += 1
        self.queue.append((encode(notice), []))
        self.flush()

    def flush(self) -> None:
        if self.dropped:
            try:
                send_packet(self.socket, encode(wire.NoticesDropped(self.dropped)))
            except BlockingIOError:
                return
            self.dropped = 0
        super().flush()
