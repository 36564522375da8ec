"""The machines of `bequest.protocol` in a small deterministic world, where one seed decides everything."""

from bequest.sim.observer import Observer
from bequest.sim.world import Finding, World

__all__ = ["Finding", "Observer", "World"]
