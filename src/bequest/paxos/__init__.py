"""A replicated lock and key-value service whose dead replicas are reincarnated (paper, section 4).

`machine` is the consensus, and says how to read it; `ledger` is what a replica keeps, and what it replicates.
"""

from bequest.paxos.machine import Machine as Machine
from bequest.paxos.newcomer import Newcomer as Newcomer
from bequest.paxos.turn import Inputs as Inputs
from bequest.paxos.turn import take_turn as take_turn
