"""The soak uses the same real processes as tests/integration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from racks import me, nursery, private_place, rack, yard

__all__ = ["me", "nursery", "private_place", "rack", "yard"]
