"""What the rack decides: machines without I/O, clock or randomness of their own.

Each takes inputs and ``now`` and returns outputs (`outputs.py`); the daemons of `bequest.runtime` carry them out, and
so will a simulator. Nothing here iterates over a set, so that a run can be replayed.
"""
