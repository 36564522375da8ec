"""The machines of `bequest.protocol` in a small deterministic world, where one seed decides everything."""

from bequest.sim.fake_shard import FakeShard

__all__ = ["FakeShard"]
