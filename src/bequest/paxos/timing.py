"""How long, how many and how much: every figure of the consensus, each with its reason.

**What is assumed of clocks.** Safety of elections, of the log and of sessions assumes nothing. Reads by lease (and
only they) assume that

1. over a lease, the clocks of two replicas run at the same rate but for one part in `1 / drift`. Nothing is assumed of
   what they show;
2. a replica's clock never goes back. Whoever opens a replica's ledger under another clock (another host, or the same
   one after a restart) says so, and waits as long as any lease that was granted can last.

An acceptor's grant lasts `lease` seconds of its clock from when it gave it. The leader counts `lease / (1 + drift)`
seconds of its own from when it *asked*, which was before: so the leader's idea of its lease ends first.
"""

from __future__ import annotations

import msgspec

ENTRY_BYTES_MAX = 1 << 20  # commands of one pass go into one entry up to about this size
WINDOW = 64  # entries under way at a time
ACCEPT_BYTES_MAX = 4 << 20  # of values in one message to a replica that lags
IN_FLIGHT_MAX = 256  # entries sent to a replica that have not been acknowledged
BACKLOG_MAX = 20_000  # requests that wait at one replica, before it refuses more
PART_BYTES = 256 << 10  # of a snapshot in one message
PARTS_IN_FLIGHT = 8
KEPT_BYTES_MAX = 64 << 20  # of the log, for a replica that lags; then it gets a snapshot instead
KEPT_ENTRIES_MAX = 20_000
LAG_TO_VOTE = 64  # a learner that lags by no more than this many slots gets a vote
SESSION_IDLE_MS = 3_600_000  # a session unused for so long ends


class Timing(msgspec.Struct, frozen=True):
    """Seconds. The defaults are etcd's: conservative, for a machine whose processors are busy."""

    heartbeat: float = 0.1
    lease: float = 1.0
    drift: float = 0.01  # the rates of two clocks differ by no more than this part
    lease_reads: bool = True  # otherwise each read asks a majority, and nothing is assumed of clocks
    election_jitter: float = 0.3  # candidates wait a random part of this, lest they stand all at once
    resend: float = 0.2  # what was not acknowledged for so long is sent again
    patience: float = 10.0  # a request that has no reply by then is refused
    remove_after: float = 0.0  # a member that was not heard of for so long is voted out; 0: never

    @property
    def leading(self) -> float:
        """How long the leader may count on a lease, from when it asked for it."""
        return self.lease / (1 + self.drift)
