"""Every limit and timeout of the control plane, in one place, with the reason for each figure.

The address plan and the capacities of the shared table are agreed on in native code (native/layout.hpp); they are
re-exported here so that nobody types them a second time. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from bequest._core import (
    BEAT_INTERVAL,
    FIRST_MAILBOX_ID,
    HUGE_PAGE_BYTES,
    INBOX_CELLS,
    LARGE_REGION_BYTES,
    LAST_MAILBOX_ID,
    MAX_EXTENTS,
    MAX_PROCESS_ID,
    MAX_SLABS,
    MMU_ID,
    NAME_BYTES_MAX,
    PAGE_BYTES,
    PROCESS_SPACE_BITS,
    TABLE_VERSION,
    TAG_BYTES_MAX,
    WINDOW_BASE,
    WINDOW_BITS,
)

__all__ = [
    "BEAT_INTERVAL",
    "FIRST_MAILBOX_ID",
    "HUGE_PAGE_BYTES",
    "INBOX_CELLS",
    "LARGE_REGION_BYTES",
    "LAST_MAILBOX_ID",
    "MAX_EXTENTS",
    "MAX_PROCESS_ID",
    "MAX_SLABS",
    "MMU_ID",
    "NAME_BYTES_MAX",
    "PAGE_BYTES",
    "PROCESS_SPACE_BITS",
    "TABLE_VERSION",
    "TAG_BYTES_MAX",
    "WINDOW_BASE",
    "WINDOW_BITS",
]

KIB = 1 << 10
MIB = 1 << 20
PAGES_PER_HUGE_PAGE = HUGE_PAGE_BYTES // PAGE_BYTES
PROCESS_SPACE_BYTES = 1 << PROCESS_SPACE_BITS

# --- wire --------------------------------------------------------------------------------------------------
WIRE_VERSION = 2
PACKET_BYTES_MAX = 128 << 10  # below the 208 KiB that Linux gives a Unix socket by default
PACKET_FDS_MAX = 4  # nobody has reason to send more than one
REPORT_BYTES_MAX = 96 << 10  # a page of a status report, with room for its envelope
REFUSAL_CHARACTERS_MAX = 1000
PEER_QUEUE_MAX = 8  # packets waiting for a client that does not read; requests come one at a time
LINK_QUEUE_MAX = 100_000  # between daemons of one rack
PEERS_MAX = 4096  # clients of one socket
PEERS_OF_ONE_MAX = 1200  # of one process, which may be attached 511 times and have two connections for each
HELLO_TIMEOUT = 10.0  # a client that connects and says nothing is dropped

# --- clients -----------------------------------------------------------------------------------------------
CONNECT_TIMEOUT = 10.0
RESTART_TIMEOUT = 20.0  # a daemon that is started anew answers again within this, or the rack counts as ended
RESTART_POLL = 0.002  # and is looked for this often meanwhile
REQUEST_TIMEOUT = 600.0  # first touch of 64 GiB takes minutes on a small machine
EMBEDDED_START_TIMEOUT = 30.0

# --- the Rack MMU ------------------------------------------------------------------------------------------
GROUPS_MAX = 1024
SECRET_BYTES = 16
NONCE_BYTES_MAX = 32  # of a request; what is longer is no message
TICKET_BYTES = 16
ORPHAN_KEEP = 60.0  # a dead process's memory, or that it had none, waits this long for somebody to take it
SWEEP_INTERVAL = 1.0
JOURNAL_BYTES_MIN = 128 << 10  # a shorter journal is never begun anew: it is read in some 20 ms
JOURNAL_GROWTH = 4  # and a longer one when it has grown to so many times what the books take
COME_BACK_TIMEOUT = 30.0  # who was attaching when the Rack MMU was killed has this long to ask again
EMBEDDED_LINGER = 1.0  # an embedded rack outlives its last client by this
SHARED_LINGER = 5.0  # one that was started by name: a worker that is started anew is to find it
EMBEDDED_FIRST_CLIENT = 15.0  # and waits this long for its first
AUDIT_FINDINGS_MAX = 200
SLAB_RUNS_MAX = 64  # runs of pages drawn for one slab

# --- stealing ----------------------------------------------------------------------------------------------
CAPABILITY_BYTES = 32
VERIFIER_BYTES = 32  # SHA-256
SEED_BYTES = 16  # what Shamir's scheme shares out; the capability is derived from it
SHARES_MAX = 255
WRONG_TRIES_MAX = 5  # of one operating-system process
WRONG_TRIES_OF_USER_MAX = (
    50  # of all processes of a user: more, so that a faulty one does not bar the others soon
)
WRONG_TRIES_WINDOW = 10.0
THEFTS_KEPT = 1000  # attempts that are remembered for `bequest audit`
STEAL_SELECTION_MAX = 1000  # paths and addresses in one request
STEAL_PASSES_MAX = 8  # looks at a victim that runs and allocates on
FENCE_TIMEOUT = (
    15.0  # an agent that has not fenced its process by then, even by SIGKILL, will not: the steal fails
)
OPENING_PATIENCE = 0.1  # then it is stopped, or the machine very busy
OPENING_LOOK_INTERVAL = 0.001  # at a process that is about to open memory: usually it takes microseconds

# --- the namespace -----------------------------------------------------------------------------------------
PATH_BYTES_MAX = 511
PATH_DEPTH_MAX = 16
NAMES_PER_GROUP_MAX = 16_384  # some 16 MiB of the Rack MMU
NAMES_SWEPT_MAX = 1000  # names whose memory is looked at in one sweep: some milliseconds

# --- memory elements ---------------------------------------------------------------------------------------
POOL_CLASSES = tuple(2 * MIB << step for step in range(6))  # 2 … 64 MiB
POOL_START: tuple[tuple[int, bool, int], ...] = (  # (class, huge, how many): 16 MiB together
    (2 * MIB, False, 2),
    (2 * MIB, True, 2),
    (8 * MIB, True, 1),
)
POOL_BYTES_MAX = 256 * MIB  # and never more than an eighth of the element
POOL_DEMAND_WINDOW = 3.0  # as many slabs are kept ready as were asked for in this time
POOL_START_SECONDS = 30.0  # for which that of the start is kept, whoever asks
POOL_IDLE = 5.0  # what nobody asked for in this time is given back
POOL_RETRY = 10.0  # pause after the pool could not be filled
RECYCLED_SHARE = 4  # a quarter of the element may be slabs waiting for re-use in their group
WARM_STEP_BYTES = 8 * MIB  # 512 MiB are warm in 0.7 s so, in one step of 64 MiB in 1.3 to 2.5 s

# --- checksums ---------------------------------------------------------------------------------------------
SUM_SLICE_BYTES = 16 * MIB  # summed at a time: some 2 ms
SUM_RATE = (
    1024 * MIB
)  # bytes a second: a tenth of what a core can, for applications share the memory's bandwidth
SCRUB_SLICE_BYTES = 4 * MIB
SCRUB_RATE = (
    128 * MIB
)  # bytes a second at which an element reads sealed memory again: 1 to 2 % of what memory can
SCRUB_INTERVAL = 1.0  # and none more often than this
VERIFY_BYTES_MAX = 256 * MIB  # in one request, so that others get a word in
FLIPS_KEPT_MAX = 64  # requests to flip a bit that are remembered, should they be repeated

# --- notices of failures -----------------------------------------------------------------------------------
NOTICE_QUEUE_MAX = 256  # notices waiting for one subscriber; then the oldest are dropped
EVENTS_KEPT_MAX = 4096  # events that a program has yet to look at; then the oldest are dropped
DEATH_TOLD_FOR = 60.0  # an agent that was away so long, and is told of it only then, will not come back
CONTACTS_MAX = 16  # emergency contacts of one process
CONTACT_DEADLINE = (
    1.0  # an owner has this long to handle a failure of its memory before its contacts are told
)
FAILURES_KEPT_MAX = (
    1000  # unhandled failures of one process; then its contacts are told of the oldest at once
)
RESUBSCRIBE_TIMEOUT = 30.0  # a subscriber waits this long for an agent that is being started again
NOTICES_OWED_MAX = 1000  # that one process's agent has yet to pass on; then the oldest are dropped
STANDBYS_MAX = 64  # of one process
GUARD_TIMEOUT = 10.0  # agents and an element have this long to make memory fail that was asked to
FAILED_RUNS_MAX = 256  # runs of failed pages named in one notice; beyond that, one run around them all
BROKEN_KEPT_MAX = 64  # requests to make memory fail that are remembered, should they be repeated
SLAB_FAILED_RUNS_MAX = 256  # of one slab: some 5 KiB in a packet; beyond that, all of it fails

# --- actors ------------------------------------------------------------------------------------------------
ACTOR_POST_BYTES = 64 * KIB  # of messages that are sent together: some thousand small ones
ACTOR_POST_MESSAGES = 512  # and no more: a millisecond or two of an actor's time
ACTOR_POSTS_IN_FLIGHT = 4  # of one stream, not handled yet; what comes meanwhile goes with the next
ACTOR_MESSAGES_WAITING = 100_000  # of one stream, in a client's memory; then `send` waits
DEAD_LETTERS_KEPT = 1000  # of one actor
RESULTS_KEPT = 10_000  # of one function, by idempotency key
UNCLAIMED_REGIONS_KEPT = (
    120.0  # an heir keeps so long what no message speaks of: as long as two lives of the dead
)

# --- agents ------------------------------------------------------------------------------------------------
FENCE_RANGES_MAX = 4096  # in one message: 64 KiB of its packet
FENCE_LANES = 8  # fences at a time; a victim that is busy in the kernel holds up one lane
DEATH_PATIENCE = (
    0.25  # after a hint of a death: proof comes within 1 ms, or 20 ms on a busy machine, or never
)
HEAD_START = 0.002  # who steals from the dead goes first: so long do others wait for the news, and the log for its line
WITNESS_PATIENCE = (
    0.001  # the Rack MMU, which has others to serve, waits so long itself; then it asks the agent
)
PTRACE_TIMEOUT = 0.5  # for a thread of a process to stop
KILL_TIMEOUT = 10.0  # from SIGKILL to proof: a thread that waits for a disk dies when the disk has answered

# --- the rack monitor --------------------------------------------------------------------------------------
POLL_INTERVAL = 0.005  # between looks at those who beat
POLL_IDLE = 0.050  # between ticks while nobody does
SUSPECT_TIMEOUT = 0.025  # of silence, on a machine without noise: three missed beats
WATCH_GRACE = 0.100  # a process has this long to begin beating once somebody stands by for it
PING_INTERVAL = 0.100  # of the other daemons
PING_TIMEOUT = 0.300
ASLEEP_TIMEOUT = 1.0  # silence of one whose threads are neither stopped nor runnable
NOISE_HALF_LIFE = 2.0
NOISE_FACTOR = 3  # the worst lateness seen lately counts so many times
NOISE_MAX = 0.5

# --- the supervisor ----------------------------------------------------------------------------------------
UPKEEP_INTERVAL = 0.5  # between looks whether the rack's directory, sockets and log are as they should be
RACK_LOG_BYTES_MAX = 1 << 20  # some 10,000 lines, and as many in the former log
STOP_TIMEOUT = 3.0  # from SIGTERM to SIGKILL for a daemon that does not end
SHORT_LIFE = 0.5  # a daemon that dies sooner may do so again, and again
SHORT_LIVES_AT_ONCE = (
    10  # so many in a row are followed by a successor at once: several kills, a race at a start
)
RESTART_PAUSE = 0.1  # then it rests, twice as long each time
SHORT_LIVES_MAX = 16  # and then the rack ends: 6 s have not helped
SAFE_ENTRIES_MAX = 1 << 17  # things that one daemon keeps: slabs (65536), and some more
SAFE_KEY_CHARACTERS_MAX = 100
SAFE_META_BYTES_MAX = (
    512  # 64 MiB at most for one daemon; what is longer goes into a file, its descriptor here
)
SAFE_TIMEOUT = 10.0  # seconds within which the supervisor says whether it keeps something
SAFE_DESCRIPTORS_SPARE = 512  # of the supervisor's descriptors, those that are its own
CONTROL_QUEUE_MAX = 1000  # packets waiting for a daemon that does not read what its supervisor says
